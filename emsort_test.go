package emd

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// numbered is an element with a key that others have too, and the place it had before.
type numbered struct {
	Key   uint32
	Place uint32
}

func byKey(a, b numbered) int { return cmp.Compare(a.Key, b.Key) }

// sortFixture returns a list that is sorted in many parts, which are merged in several passes.
func sortFixture(t *testing.T, n int) (*EMList[numbered], []numbered) {
	o := tiny()
	o.opts.HashSeed = 1
	e := listOf[numbered](t, testArena(t, o), nil)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	want := make([]numbered, n)
	for i := range want {
		want[i] = numbered{uint32(r.IntN(n/4 + 1)), uint32(i)}
	}
	require.NoError(t, e.Append(want...))
	return e, want
}

func TestSortFunc(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2, 12, 13, 5000, 10922, 10923, 100_000, 300_001} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			e, want := sortFixture(t, n)
			var told []int64
			require.NoError(t, e.SortContext(t.Context(), byKey, func(done, total int64) {
				require.Equal(t, 2*int64(n), total)
				told = append(told, done)
			}))
			slices.SortStableFunc(want, byKey)
			requireSame(t, want, e)
			assert.True(t, slices.IsSorted(told))
			if n > 1 {
				assert.Equal(t, 2*int64(n), told[len(told)-1])
			}
			noScratch(t, e.Arena())
			require.NoError(t, e.Sync())
			require.NoError(t, e.Arena().Check(t.Context(), nil))
		})
	}
}

// noScratch fails if a scratch file is left.
func noScratch(t *testing.T, a *Arena) {
	assert.Empty(t, a.scratches)
	left, err := filepath.Glob(a.path + "-load*")
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestSortFuncStrings(t *testing.T) {
	t.Parallel()
	e := listOf[string](t, testArena(t, tiny()), nil)
	r := rand.New(rand.NewPCG(1, 2))
	var want []string
	for i := range 30_000 {
		want = append(want, strings.Repeat("x", r.IntN(30))+fmt.Sprint(i%100))
	}
	require.NoError(t, e.Append(want...))
	require.NoError(t, e.Set(7, strings.Repeat("long", 50_000)))
	want[7] = strings.Repeat("long", 50_000)
	require.NoError(t, e.Resize(30_100)) // with some that were never written
	want = append(want, make([]string, 100)...)
	require.NoError(t, e.SortFunc(strings.Compare))
	slices.Sort(want)
	requireSame(t, want, e)
	noScratch(t, e.Arena())
}

// Keys that differ in some bits only, high, low and scattered ones, and equal ones keep their order.
func TestSortKey(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2, 13, 5000, 8192, 8193, 100_000, 300_001} {
		if testing.Short() && n > 10_000 {
			break
		}
		for _, mask := range []uint64{0, 0xff, 1<<63 | 1, 0xfff000ff0000f00f, ^uint64(0)} {
			t.Run(fmt.Sprintf("n=%d/mask=%#x", n, mask), func(t *testing.T) {
				t.Parallel()
				e, want := sortFixture(t, n)
				key := func(v numbered) uint64 { return uint64(v.Key) * 0x9e3779b97f4a7c15 & mask }
				done, of := int64(0), int64(0)
				require.NoError(t, e.SortKey(t.Context(), key, func(d, total int64) {
					require.LessOrEqual(t, done, d)
					done, of = d, total
				}))
				slices.SortStableFunc(want, func(a, b numbered) int { return cmp.Compare(key(a), key(b)) })
				requireSame(t, want, e)
				require.Equal(t, of, done)
				noScratch(t, e.Arena())
				require.NoError(t, e.Sync())
				require.NoError(t, e.Arena().Check(t.Context(), nil))
			})
		}
	}
	t.Run("strings", func(t *testing.T) {
		t.Parallel()
		e := listOf[string](t, testArena(t, tiny()), nil)
		var want []string
		for i := range 30_000 {
			want = append(want, strings.Repeat("x", i*7919%300))
		}
		require.NoError(t, e.Append(want...))
		require.NoError(t, e.SortKey(t.Context(), func(v string) uint64 { return uint64(len(v)) }, nil))
		slices.SortFunc(want, func(a, b string) int { return cmp.Compare(len(a), len(b)) })
		requireSame(t, want, e)
	})
	t.Run("signed", func(t *testing.T) {
		t.Parallel()
		e := listOf[int64](t, testArena(t, tiny()), nil)
		require.NoError(t, e.Append(5, -3, math.MaxInt64, 0, math.MinInt64, -1))
		require.NoError(t, e.SortKey(t.Context(), func(v int64) uint64 { return uint64(v) ^ 1<<63 }, nil))
		requireSame(t, []int64{math.MinInt64, -3, -1, 0, 5, math.MaxInt64}, e)
	})
}

// More items than a cache holds, with keys that are spread evenly, all alike, or nearly so.
func TestRadixSort(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for name, key := range map[string]func() uint64{
		"even":   r.Uint64,
		"low":    func() uint64 { return r.Uint64N(1 << 20) },
		"skewed": func() uint64 { return uint64(1e3 / (r.Float64() + 1e-9)) },
		"few":    func() uint64 { return r.Uint64N(3) << 62 },
		"same":   func() uint64 { return 7 },
	} {
		items := make([]keyedSlot[uint64], radixCache/16*5/4)
		for i := range items {
			items[i] = keyedSlot[uint64]{key(), i}
		}
		want := slices.Clone(items)
		slices.SortStableFunc(want, func(a, b keyedSlot[uint64]) int { return cmp.Compare(a.value, b.value) })
		sorted := 0
		err := radixSort(items, slices.Clone(items), func(k keyedSlot[uint64]) uint64 { return k.value }, func(n int) error {
			sorted += n
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, len(items), sorted)
		require.True(t, slices.Equal(want, items), "%s, seed %d", name, seed)
		require.ErrorIs(t, radixSort(items, want, func(keyedSlot[uint64]) uint64 { return r.Uint64() }, func(int) error { return nil }), errKeyDiffers)
	}
}

// A key function that returns now this, now that, loses no element.
func TestSortKeyDiffers(t *testing.T) {
	t.Parallel()
	e, want := sortFixture(t, 5000)
	for calls := range 30_000 {
		if calls%997 != 0 {
			continue
		}
		for _, other := range []uint64{0, math.MaxUint64} { // items that lie before or behind those that they belong to
			left := calls
			err := e.SortKey(t.Context(), func(v numbered) uint64 {
				if left--; left < 0 {
					return other
				}
				return uint64(v.Key)
			}, nil)
			if err == nil { // it differed where that is no matter
				require.NoError(t, e.SortFunc(func(a, b numbered) int { return cmp.Compare(a.Place, b.Place) }))
			} else {
				require.ErrorIs(t, err, errKeyDiffers)
			}
			requireSame(t, want, e)
		}
	}
}

// What ends a sorting early leaves the list as it was, and no scratch file.
func TestSortFuncFails(t *testing.T) {
	t.Parallel()
	const n = 50_000
	t.Run("context", func(t *testing.T) {
		for steps := range 20 {
			e, want := sortFixture(t, n)
			ctx, cancel := context.WithCancel(t.Context())
			err := e.SortContext(ctx, byKey, func(int64, int64) {
				if steps--; steps < 0 {
					cancel()
				}
			})
			cancel()
			if steps >= 0 { // there were fewer
				require.NoError(t, err)
				break
			}
			if err == nil { // it was the last
				continue
			}
			require.ErrorIs(t, err, context.Canceled)
			requireSame(t, want, e)
			noScratch(t, e.Arena())
		}
	})
	t.Run("panic", func(t *testing.T) {
		for _, calls := range []int{0, 100, 300_000, 700_000} {
			e, want := sortFixture(t, n)
			assert.PanicsWithError(t, errRefused.Error(), func() {
				_ = e.SortFunc(func(a, b numbered) int {
					if calls--; calls < 0 {
						panic(errRefused)
					}
					return byKey(a, b)
				})
			}, "too few comparisons")
			requireSame(t, want, e)
			noScratch(t, e.Arena())
			require.NoError(t, e.Append(numbered{}), "others may write again")
		}
	})
	t.Run("rollback", func(t *testing.T) {
		for _, calls := range []int{1, 300_000, 700_000} {
			e, want := sortFixture(t, n)
			require.NoError(t, e.Sync())
			require.NoError(t, e.Append(numbered{}))
			err := e.SortFunc(func(a, b numbered) int {
				if calls--; calls == 0 {
					require.NoError(t, e.Arena().Rollback())
				}
				return byKey(a, b)
			})
			require.Negative(t, calls, "too few comparisons")
			require.ErrorIs(t, err, ErrRolledBack)
			requireSame(t, want, e)
			noScratch(t, e.Arena())
		}
	})
	t.Run("closed", func(t *testing.T) {
		e, _ := sortFixture(t, 10)
		require.NoError(t, e.Arena().Close())
		require.ErrorIs(t, e.SortFunc(byKey), ErrClosed)
		_, _, err := e.BinarySearchFunc(func(numbered) int { return 0 })
		require.ErrorIs(t, err, ErrClosed)
	})
	t.Run("read-only", func(t *testing.T) {
		e, _ := sortFixture(t, 10)
		path := e.Arena().path
		require.NoError(t, e.Arena().Close())
		again := listOf[numbered](t, reopen(t, path, testOptions{opts: Options{ReadOnly: true}}), nil)
		require.ErrorIs(t, again.SortFunc(byKey), ErrReadOnly)
	})
	t.Run("damage", func(t *testing.T) {
		e := listOf[string](t, testArena(t, testOptions{}), &ListOptions[string]{Codec: reversed{}})
		require.NoError(t, e.Append("b", "unreadable", "a"))
		require.ErrorIs(t, e.SortFunc(strings.Compare), errRefused)
		v, err := e.Get(0)
		require.NoError(t, err)
		require.Equal(t, "b", v)
	})
}

// A sorting inside an Update shares its fate, and one larger than DirtyLimit needs no private memory.
func TestSortFuncInUpdate(t *testing.T) {
	t.Parallel()
	e, want := sortFixture(t, 200_000)
	require.NoError(t, e.Sync())
	require.ErrorIs(t, e.Arena().Update(func() error {
		require.NoError(t, e.SortFunc(byKey))
		return errRefused
	}), errRefused)
	requireSame(t, want, e)
	require.NoError(t, e.Arena().Update(func() error { return e.SortFunc(byKey) }))
	slices.SortStableFunc(want, byKey)
	requireSame(t, want, e)
}

// Of a list that is sorted, readers see all old elements or all new ones.
func TestSortFuncConcurrentReaders(t *testing.T) {
	t.Parallel()
	const n = 40_000
	e := listOf[uint64](t, testArena(t, tiny()), nil)
	down := make([]uint64, n)
	for i := range down {
		down[i] = uint64(n - i)
	}
	require.NoError(t, e.Append(down...))
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			for _, i := range []int{0, n / 3, n - 1} {
				v, err := e.Get(i)
				if err != nil || v != uint64(n-i) && v != uint64(i+1) {
					done <- fmt.Errorf("element %d is %d: %w", i, v, err)
					return
				}
			}
		}
	}()
	for range 6 {
		require.NoError(t, e.SortFunc(cmp.Compare[uint64]))
		require.NoError(t, e.SortFunc(func(a, b uint64) int { return cmp.Compare(b, a) }))
	}
	close(stop)
	require.NoError(t, <-done)
	requireSame(t, down, e)
}
