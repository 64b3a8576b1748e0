package emd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A bulkModel loads random pairs into a dict and into a map.
func testBulkModel[K, V comparable](t *testing.T, keys int, key func(r *rand.Rand) K, val func(r *rand.Rand) V) {
	seed := rand.Uint64()
	for name, mask := range hashMasks {
		for _, small := range []bool{false, true} {
			t.Run(fmt.Sprintf("hash=%s/tiny=%t/seed=%d", name, small, seed), func(t *testing.T) {
				t.Parallel()
				n := keys
				if mask != ^uint64(0) {
					n /= 16
				}
				if testing.Short() || raceEnabled {
					n /= 8
				}
				m := dictModel[K, V]{t: t, r: rand.New(rand.NewPCG(seed, 5)), mask: mask, key: key, val: val, want: map[K]V{}}
				if small {
					m.opts = []testOptions{tiny(), relaxed()}[seed%2]
				}
				m.opts.opts.NoSync = true
				m.opts.opts.AcceptUnclean = true // for the crash below
				m.path = filepath.Join(tempDir(t), "bulk.emd")
				m.open()
				for round := range 3 {
					count := []int{n, 1, 2 * n}[round]
					pairs := func(yield func(K, V) bool) {
						for range count {
							k, v := key(m.r), val(m.r)
							m.want[k] = v
							if !yield(k, v) {
								return
							}
						}
					}
					got, err := m.d.BulkLoad(context.Background(), pairs)
					require.NoError(t, err)
					require.Equal(t, count, got)
					require.Zero(t, hidden(t, m.d.Arena()))
					m.check()
					for range n / 10 {
						m.step(40)
					}
					m.check()
					if round%2 == 0 {
						require.NoError(t, m.d.Arena().Close())
						m.open()
						m.check()
					}
				}
				if mask == ^uint64(0) { // which a file does not remember
					require.NoError(t, reopen(t, crashImage(t, m.path), m.opts).verify())
				}
				for range len(m.want) {
					m.step(100)
				}
				m.check()
			})
		}
	}
}

func TestBulkLoadModel(t *testing.T) {
	t.Run("uint64 to uint64", func(t *testing.T) { testBulkModel(t, 12000, word, anyWord) })
	t.Run("uint32 to uint32", func(t *testing.T) {
		testBulkModel(t, 8000, func(r *rand.Rand) uint32 { return r.Uint32N(30000) }, func(r *rand.Rand) uint32 { return r.Uint32() })
	})
	t.Run("uint64 to struct{}", func(t *testing.T) {
		testBulkModel(t, 8000, word, func(*rand.Rand) struct{} { return struct{}{} })
	})
	t.Run("[16]byte to uint64", func(t *testing.T) {
		testBulkModel(t, 5000, func(r *rand.Rand) [16]byte {
			return [16]byte{uint8(r.Uint32()), uint8(r.Uint32()), 15: uint8(r.Uint32N(4))}
		}, anyWord)
	})
	t.Run("struct{} to struct{}", func(t *testing.T) {
		testBulkModel(t, 500, func(*rand.Rand) struct{} { return struct{}{} }, func(*rand.Rand) struct{} { return struct{}{} })
	})
	t.Run("string to uint64", func(t *testing.T) { testBulkModel(t, 8000, text(0, 20), anyWord) })
	t.Run("uint64 to string", func(t *testing.T) { testBulkModel(t, 4000, word, text(0, 200)) })
	t.Run("string to string, long", func(t *testing.T) { testBulkModel(t, 1200, text(0, 700), text(0, 4000)) })
	t.Run("string to string, very long", func(t *testing.T) { testBulkModel(t, 60, text(0, 60000), text(0, 200000)) })
	t.Run("[300]byte to [300]byte", func(t *testing.T) {
		testBulkModel(t, 600, func(r *rand.Rand) [300]byte { return [300]byte{uint8(r.Uint32()), 299: uint8(r.Uint32N(4))} }, func(r *rand.Rand) [300]byte { return [300]byte{uint8(r.Uint32())} })
	})
	t.Run("string to [600]byte", func(t *testing.T) {
		testBulkModel(t, 600, text(0, 700), func(r *rand.Rand) [600]byte { return [600]byte{uint8(r.Uint32())} })
	})
}

// bulkPairs yields n pairs of bulkKey and longer, from number first on.
func bulkPairs(first, n uint64) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := first; i < first+n; i++ {
			if !yield(bulkKey(i), longer(i)) {
				return
			}
		}
	}
}

func bulkKey(i uint64) string { return fmt.Sprint("key ", i) }

// fillBulk makes a dict of n pairs in each of several ways to be loaded into.
func fillBulk(t testing.TB, a *Arena, n uint64) *EMDict[string, string] {
	d, err := Dict[string, string](a, "dict", nil)
	require.NoError(t, err)
	_, err = d.SetAll(bulkPairs(0, n))
	require.NoError(t, err)
	return d
}

// requireBulk requires the pairs of numbers below n and nothing else, no hidden container, no scratch file.
func requireBulk(t testing.TB, d *EMDict[string, string], n uint64) {
	t.Helper()
	require.Equal(t, int(n), d.Len())
	got := maps.Collect(d.All())
	require.NoError(t, d.Err())
	require.Len(t, got, int(n))
	for i := range n {
		require.Equal(t, longer(i), got[bulkKey(i)])
	}
	a := d.Arena()
	require.Zero(t, hidden(t, a))
	require.Empty(t, a.scratches)
	for name := range a.open {
		require.False(t, strings.HasPrefix(name, hiddenPrefix), "still registered")
	}
	require.NoError(t, a.verify())
	if disk, ok := a.fs.(*simDisk); ok {
		for name := range disk.names {
			require.NotContains(t, name, "-load")
		}
		return
	}
	left, err := filepath.Glob(a.path + "-load*")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestBulkLoadRefused(t *testing.T) {
	ctx := context.Background()
	none := func(func(string, string) bool) { panic("called") }
	a := testArena(t, testOptions{})
	d := fillBulk(t, a, 10)
	require.NoError(t, a.Sync())
	commits := a.Stats().Commits
	n, err := d.BulkLoad(ctx, func(func(string, string) bool) {})
	require.NoError(t, err)
	require.Zero(t, n)
	require.Equal(t, commits, a.Stats().Commits, "nothing to commit")

	err = a.Update(func() error {
		_, err := d.BulkLoad(ctx, none)
		isError(t, err, a.path, ErrInUpdate)
		return nil
	})
	require.ErrorIs(t, err, ErrInUpdate)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = d.BulkLoad(ended, none)
	isError(t, err, a.path, context.Canceled)
	n, err = d.BulkLoad(ctx, func(yield func(string, string) bool) {
		_ = yield("a", "b") && yield(strings.Repeat("k", maxKeySize+1), "") && yield("c", "d")
	})
	isError(t, err, a.path, ErrTooLarge)
	require.Equal(t, 2, n)
	requireBulk(t, d, 10)

	other := fillBulk(t, testArena(t, testOptions{}), 1)
	require.NoError(t, a.Close())
	_, err = d.BulkLoad(ctx, none)
	isError(t, err, a.path, ErrClosed)
	ro, err := Open(a.path, &Options{ReadOnly: true})
	require.NoError(t, err)
	d, err = Dict[string, string](ro, "dict", nil)
	require.NoError(t, err)
	_, err = d.BulkLoad(ctx, none)
	isError(t, err, ro.path, ErrReadOnly)
	require.NoError(t, ro.Close())
	require.NoError(t, other.Arena().Drop("dict"))
	_, err = other.BulkLoad(ctx, none)
	isError(t, err, other.Arena().path, ErrClosed)
}

// TestBulkLoadFails ends a load at many places: the dict is as it was, all space can be used again, the next load works.
func TestBulkLoadFails(t *testing.T) {
	const old, n = 500, 4000
	for name, o := range map[string]testOptions{"default": {}, "tiny": tiny()} {
		for _, stop := range []uint64{0, 1, n / 2, n - 1} {
			t.Run(fmt.Sprintf("%s/stop=%d", name, stop), func(t *testing.T) {
				t.Parallel()
				o := o
				o.opts.NoSync = true
				a := testArena(t, o)
				d := fillBulk(t, a, old)
				list, err := List[int](a, "list", nil)
				require.NoError(t, err)
				require.NoError(t, a.Sync())
				for _, reason := range []string{"cancel", "panic", "exit", "fault"} {
					ctx, cancel := context.WithCancel(context.Background())
					seq := func(yield func(string, string) bool) {
						for i := range uint64(n) {
							if i == stop {
								switch reason {
								case "cancel":
									cancel()
								case "panic":
									panic(errOfFn)
								case "exit":
									runtime.Goexit()
								case "fault":
									a.fault(&list.l.handle, "all", 0, errOfFn)
								}
							}
							if !yield(bulkKey(i), longer(i+1)) {
								return
							}
						}
					}
					switch reason {
					case "panic":
						require.PanicsWithValue(t, errOfFn, func() { _, _ = d.BulkLoad(ctx, seq) })
					case "exit":
						done := make(chan bool)
						go func() { defer close(done); _, _ = d.BulkLoad(ctx, seq) }()
						<-done
					case "cancel":
						got, err := d.BulkLoad(ctx, seq)
						isError(t, err, a.path, context.Canceled)
						require.EqualValues(t, stop+1, got, "no pair is read in vain")
					case "fault":
						got, err := d.BulkLoad(ctx, seq)
						isError(t, err, a.path, errOfFn)
						require.Equal(t, n, got)
						_ = a.Err()
					}
					cancel()
					requireBulk(t, d, old)
				}
				_, err = d.BulkLoad(context.Background(), bulkPairs(0, n))
				require.NoError(t, err)
				requireBulk(t, d, n)
			})
		}
	}
}

// endingContext ends when it has been asked a number of times.
type endingContext struct {
	context.Context
	left atomic.Int64
}

func (c *endingContext) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// TestBulkLoadCancelled cancels a load each time that it looks whether it is.
func TestBulkLoadCancelled(t *testing.T) {
	o := tiny()
	o.opts.NoSync = true
	a := testArena(t, o)
	const old, n = 300, 1200
	d := fillBulk(t, a, old)
	require.NoError(t, a.Sync())
	cancelled := 0
	for asked := int64(0); ; asked += int64(pick(0, 17, 61)) {
		ctx := &endingContext{Context: context.Background()}
		ctx.left.Store(asked)
		_, err := d.BulkLoad(ctx, bulkPairs(100, n))
		if err == nil {
			break
		}
		isError(t, err, a.path, context.Canceled)
		requireBulk(t, d, old)
		cancelled++
	}
	requireBulk(t, d, 100+n)
	t.Logf("%d cancelled", cancelled)
}

// TestBulkLoadMeanwhile has readers, writers of this and other containers, and commits beside loads: readers see the dict
// before or after one, and nothing is lost.
func TestBulkLoadMeanwhile(t *testing.T) {
	for name, o := range map[string]testOptions{"default": {}, "tiny": tiny()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := o
			o.opts.NoSync = true
			a := testArena(t, o)
			d, err := Dict[uint64, uint64](a, "dict", nil)
			require.NoError(t, err)
			list, err := List[uint64](a, "list", nil)
			require.NoError(t, err)
			const n = 3000
			loads := uint64(pick(0, 12, 5))
			version := func(v uint64) iter.Seq2[uint64, uint64] {
				return func(yield func(uint64, uint64) bool) {
					for k := range uint64(n) {
						if !yield(k, v) {
							return
						}
					}
				}
			}
			_, err = d.BulkLoad(context.Background(), version(0))
			require.NoError(t, err)
			var stop atomic.Bool
			var wg sync.WaitGroup
			var written, reads, commits atomic.Int64
			wg.Go(func() { // keys above those of the loads
				for i := uint64(0); !stop.Load(); i++ {
					assert.NoError(t, d.Set(n+i, i))
					assert.NoError(t, list.Append(i))
					written.Add(1)
				}
			})
			wg.Go(func() {
				for !stop.Load() {
					assert.NoError(t, a.Sync())
					commits.Add(1)
				}
			})
			for range 2 {
				wg.Go(func() {
					last := uint64(0) // a load is seen whole, and stays
					for i := uint64(0); !stop.Load(); i++ {
						v, ok, err := d.Get(i % n)
						assert.NoError(t, err)
						assert.True(t, ok)
						assert.GreaterOrEqual(t, v, last)
						last = max(last, v)
						reads.Add(1)
						if i%500 == 0 {
							for k, w := range d.All() {
								if k < n {
									assert.GreaterOrEqual(t, w, v)
								}
							}
						}
					}
				})
			}
			for v := uint64(1); v <= loads; v++ {
				got, err := d.BulkLoad(context.Background(), version(v))
				require.NoError(t, err)
				require.Equal(t, n, got)
			}
			stop.Store(true)
			wg.Wait()
			require.NoError(t, d.Err())
			require.EqualValues(t, n+written.Load(), d.Len())
			require.EqualValues(t, written.Load(), list.Len())
			for k, v := range d.All() {
				if k < n {
					require.Equal(t, loads, v)
				} else {
					require.Equal(t, k-n, v)
				}
			}
			require.Zero(t, hidden(t, a))
			t.Logf("%d loads, %d reads, %d writes, %d commits", loads, reads.Load(), written.Load(), commits.Load())
		})
	}
}

// TestBulkLoadCrash cuts the power, or kills the program, at every write, sync and change of names of a load.
func TestBulkLoadCrash(t *testing.T) {
	for seed := range uint64(pick(0, 4, 1)) {
		for _, limit := range []int64{512 << 10, 64 << 20} {
			t.Run(fmt.Sprintf("seed=%d/limit=%d", seed, limit), func(t *testing.T) {
				t.Parallel()
				old, n := uint64(400), uint64(pick(0, 6000, 3000))
				disk := newSimDisk()
				in := crashOptions(disk)
				in.dirtyLimit = limit
				a, err := openWith(crashPath, &Options{HashSeed: seed + 1}, in)
				require.NoError(t, err)
				d := fillBulk(t, a, old)
				require.NoError(t, a.Sync())
				r := rand.New(rand.NewPCG(seed, 9))
				states, loaded, returned := 0, 0, false
				check := func(disk *simDisk, what string) {
					states++
					in := in
					in.fs = disk
					a, err := openWith(crashPath, nil, in)
					require.NoError(t, err, what)
					d, err := Dict(a, "dict", &DictOptions[string, string]{MustExist: true})
					require.NoError(t, err, what)
					if d.Len() == int(old) && !returned {
						requireBulk(t, d, old)
					} else {
						loaded++
						requireBulk(t, d, old+n)
					}
					if states%8 == 0 {
						_, err = d.BulkLoad(context.Background(), bulkPairs(0, old+n))
						require.NoError(t, err, what)
						requireBulk(t, d, old+n)
					}
					require.NoError(t, a.Close(), what)
				}
				disk.before = func(i int, op string) error {
					if raceEnabled && i%25 != 0 {
						return nil
					}
					what := fmt.Sprintf("step %d (%s)", i, op)
					check(disk.cut(r), what)
					check(disk.kill(), what+", killed")
					return nil
				}
				_, err = d.BulkLoad(context.Background(), bulkPairs(100, old+n-100))
				require.NoError(t, err)
				returned = true
				check(disk.cut(r), "at the end")
				disk.before = nil
				requireBulk(t, d, old+n)
				require.NoError(t, a.Close())
				check(disk.kill(), "closed")
				t.Logf("%d crash states, %d of them loaded", states, loaded)
			})
		}
	}
}

// TestBulkLoadFailingIO lets every operation of the disk during a load fail, in turn, scratch files included.
func TestBulkLoadFailingIO(t *testing.T) {
	for name, cause := range map[string]error{"EIO": errors.New("input/output error"), "ENOSPC": fullErrors[0], "ENOSPC, short": &simShort{fullErrors[0], 0.6}} {
		for _, limit := range []int64{512 << 10, 64 << 20} {
			t.Run(fmt.Sprintf("%s/limit=%d", name, limit), func(t *testing.T) {
				t.Parallel()
				k := 1
				for bulkFailing(t, k, limit, cause) {
					k += pick(0, 1, 2)
				}
				t.Logf("%d operations", k)
			})
		}
	}
}

// bulkFailing lets operation k and those after it fail, and says whether the load has that many.
func bulkFailing(t *testing.T, k int, limit int64, cause error) (failed bool) {
	old, n := uint64(300), uint64(4000)
	disk := newSimDisk()
	in := crashOptions(disk)
	in.dirtyLimit = limit
	a, err := openWith(crashPath, &Options{HashSeed: 5}, in)
	require.NoError(t, err)
	d := fillBulk(t, a, old)
	require.NoError(t, a.Sync())
	start := disk.ops
	disk.before = func(i int, op string) error {
		failed = failed || i-start >= k
		if failed {
			return cause
		}
		return nil
	}
	_, err = d.BulkLoad(context.Background(), bulkPairs(100, n-100))
	disk.before = nil
	what := fmt.Sprintf("operation %d", k)
	if !failed {
		require.NoError(t, err)
	}
	want := n
	if err != nil {
		isError(t, err, a.path, cause)
		want = old
	}
	if a.failure() == nil {
		for _, name := range []string{scratchPath(crashPath, 0)} { // it could not be removed while removing failed
			_ = disk.Remove(name)
		}
		requireBulk(t, d, want)
		require.NoError(t, d.Set(bulkKey(0), longer(0)), what)
		// Behind it is what the load has left, then what the file is to reach to.
		list, err := List[uint64](a, "list", nil)
		require.NoError(t, err)
		require.NoError(t, list.Append(make([]uint64, 1<<18)...))
		require.NoError(t, a.Sync(), what)
		require.NoError(t, a.verifyMemory(), what)
		require.NoError(t, a.verify(), what)
	}
	_ = a.Close() // may report the failure again
	in.fs = disk.kill()
	a, err = openWith(crashPath, nil, in)
	require.NoError(t, err, what)
	d, err = Dict(a, "dict", &DictOptions[string, string]{MustExist: true})
	require.NoError(t, err)
	if d.Len() == int(n) {
		want = n // the record was written all the same
	}
	requireBulk(t, d, want)
	require.NoError(t, a.Close())
	return failed
}

// TestBulkLoadNoSpace refuses the allocator's requests from each one on.
func TestBulkLoadNoSpace(t *testing.T) {
	refused := 0
	for granted := 0; ; granted++ {
		a := testArena(t, testOptions{opts: Options{NoSync: true}, internalOptions: internalOptions{chunkSize: minChunkSize, dirtyLimit: 512 << 10}})
		d := fillBulk(t, a, 300)
		left := granted
		a.alloc.mu.Lock()
		a.alloc.refuse = func() bool { left--; return left < 0 }
		a.alloc.mu.Unlock()
		_, err := d.BulkLoad(context.Background(), bulkPairs(200, 1200))
		a.alloc.mu.Lock()
		a.alloc.refuse = nil
		a.alloc.mu.Unlock()
		if err == nil {
			requireBulk(t, d, 1400)
			require.NoError(t, a.Close())
			break
		}
		refused++
		isError(t, err, a.path, ErrFull)
		requireBulk(t, d, 300)
		_, err = d.BulkLoad(context.Background(), bulkPairs(200, 1200))
		require.NoError(t, err)
		requireBulk(t, d, 1400)
		require.NoError(t, a.Close())
	}
	t.Logf("refused %d times", refused)
}

// TestBulkLoadScratchNamed is where an open file keeps its name: it goes at the end, and after a kill with the next open.
func TestBulkLoadScratchNamed(t *testing.T) {
	disk := &stubbornDisk{simDisk: newSimDisk(), open: map[string]bool{}}
	in := crashOptions(disk.simDisk)
	in.fs, in.dirtyLimit = disk, 512<<10
	a, err := openWith(crashPath, nil, in)
	require.NoError(t, err)
	d := fillBulk(t, a, 10)
	require.NoError(t, a.Sync())
	names := func(d *simDisk) (n int) {
		for name := range d.names {
			if strings.Contains(name, "-load") {
				n++
			}
		}
		return n
	}
	var killed *simDisk
	_, err = d.BulkLoad(context.Background(), func(yield func(string, string) bool) {
		for k, v := range bulkPairs(10, 3000) {
			if !yield(k, v) {
				return
			}
		}
		require.Equal(t, 1, names(disk.simDisk))
		_, err := d.BulkLoad(context.Background(), bulkPairs(0, 3000))
		require.NoError(t, err, "another one inside")
		killed = disk.kill()
	})
	require.NoError(t, err)
	require.Zero(t, names(disk.simDisk))
	requireBulk(t, d, 3010)
	require.NoError(t, a.Close())

	require.Equal(t, 1, names(killed))
	in.fs = killed
	a, err = openWith(crashPath, nil, in)
	require.NoError(t, err)
	require.Zero(t, names(killed))
	require.NoError(t, a.Close())
}

// TestBulkLoadTurn deals parts out again, which may take long: others may commit meanwhile, and it can be cancelled.
func TestBulkLoadTurn(t *testing.T) {
	for _, inline := range []bool{true, false} {
		t.Run(fmt.Sprint("inline=", inline), func(t *testing.T) { testBulkLoadTurn(t, inline) })
	}
}

func testBulkLoadTurn(t *testing.T, inline bool) {
	var a *Arena
	dealt, cancelAt := 0, 0
	ctx, cancel := context.WithCancel(t.Context())
	disk := scratchPunches{punched: func() {
		dealt++
		// Inline the load waits now; else it may be writing, until it comes to this part.
		free := a.turn.TryLock() || !inline && assert.Eventually(t, a.turn.TryLock, time.Minute, time.Millisecond)
		if assert.True(t, free, "block %d: the load waits and has the turn", dealt) {
			a.turn.Unlock()
		}
		if dealt == cancelAt {
			cancel()
		}
	}}
	disk.heap = raceEnabled
	a, err := openWith(filepath.Join(tempDir(t), "a.emd"), &Options{NoSync: true}, internalOptions{fs: disk, dirtyLimit: 512 << 10, inline: inline})
	require.NoError(t, err)
	d, err := Dict[uint64, uint64](a, "dict", nil)
	require.NoError(t, err)
	const n = 300_000
	pairs := func(yield func(uint64, uint64) bool) {
		for i := uint64(1); i <= n && yield(i, i); i++ {
		}
	}
	_, err = d.BulkLoad(t.Context(), pairs)
	require.NoError(t, err)
	require.Equal(t, n, d.Len())
	require.Greater(t, dealt, n*16/minSortMemory)
	require.NoError(t, a.verify())

	cancelAt = dealt + 3
	_, err = d.BulkLoad(ctx, pairs)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, cancelAt, dealt)
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())
}

// scratchPunches tells when a block of a scratch file was dealt out again.
type scratchPunches struct {
	osFS
	punched func()
}

func (s scratchPunches) Open(path string, flag int, mode fs.FileMode) (file, error) {
	f, err := s.osFS.Open(path, flag, mode)
	if err != nil || !strings.Contains(path, "-load") {
		return f, err
	}
	return toldPunches{f, s.punched}, nil
}

type toldPunches struct {
	file
	punched func()
}

func (f toldPunches) Punch(off, n int64) error {
	f.punched()
	return f.file.Punch(off, n)
}

// A stubbornDisk does not remove open scratch files, like Windows.
type stubbornDisk struct {
	*simDisk
	open map[string]bool
}

func (d *stubbornDisk) Open(path string, flag int, mode fs.FileMode) (file, error) {
	f, err := d.simDisk.Open(path, flag, mode)
	if err != nil || !strings.Contains(path, "-load") {
		return f, err
	}
	d.open[path] = true
	return &stubbornFile{file: f, d: d, path: path}, nil
}

func (d *stubbornDisk) Remove(path string) error {
	if d.open[path] {
		return errors.New("in use")
	}
	return d.simDisk.Remove(path)
}

type stubbornFile struct {
	file
	d    *stubbornDisk
	path string
}

func (f *stubbornFile) Close() error {
	delete(f.d.open, f.path)
	return f.file.Close()
}

func TestBulkLoadFullDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "tmpfs")
	if dir == "" {
		return
	}
	a, err := openWith(filepath.Join(dir, "full.emd"), nil, internalOptions{dirtyLimit: 1 << 20, logLimit: 256 << 10})
	require.NoError(t, err)
	d := fillBulk(t, a, 500)
	require.NoError(t, a.Sync())
	n, err := d.BulkLoad(context.Background(), func(yield func(string, string) bool) {
		for i := 0; yield(fmt.Sprint("huge ", i), strings.Repeat("x", 32<<10)); i++ {
		}
	})
	isError(t, err, a.path, ErrFull)
	t.Logf("full after %d pairs", n)
	requireBulk(t, d, 500)
	_, err = d.BulkLoad(context.Background(), bulkPairs(400, 1000))
	require.NoError(t, err)
	requireBulk(t, d, 1400)
	require.NoError(t, a.Close())
}

// TestBulkLoadWrites counts what a load writes to the file, its commit included: each page once, directly.
func TestBulkLoadWrites(t *testing.T) {
	var written atomic.Int64
	var refused atomic.Bool
	disk := countingFS{newOSFS(raceEnabled, false), &written, &refused}
	a, err := openWith(filepath.Join(tempDir(t), "w.emd"), &Options{NoSync: true}, internalOptions{fs: disk, inline: true})
	require.NoError(t, err)
	d, err := Dict[uint64, uint64](a, "d", nil)
	require.NoError(t, err)
	require.NoError(t, a.Sync())
	written.Store(0)
	_, err = d.BulkLoad(t.Context(), func(yield func(uint64, uint64) bool) {
		for i := uint64(0); i < 400_000 && yield(i, i); i++ {
		}
	})
	require.NoError(t, err)
	require.NoError(t, a.Sync())
	require.NoError(t, a.verifyMemory())
	ratio := float64(written.Load()) / float64(a.Stats().File)
	t.Logf("%.2f bytes for each of the file", ratio)
	limit := 1.1
	if refused.Load() {
		limit++ // as in TestAppendToWrites
	}
	require.LessOrEqual(t, ratio, limit)
	require.NoError(t, a.Close())
}
