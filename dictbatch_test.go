package emd

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEMDictGetManyEdges(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	s := newDictFor[string, []byte](t, testOptions{})
	for name, fn := range map[string]func(){
		"no vals":        func() { _, _ = d.GetMany(make([]uint64, 1), nil, make([]bool, 1)) },
		"no ok":          func() { _, _ = d.GetMany(make([]uint64, 1), make([]uint64, 1), nil) },
		"too much":       func() { _, _ = s.GetMany(nil, make([][]byte, 1), nil) },
		"part too large": func() { d.Partition(3, 3) },
		"part below 0":   func() { d.Partition(-1, 3) },
		"no parts":       func() { d.Partition(0, 0) },
		"parts below 0":  func() { d.Partition(-2, -1) },
	} {
		assert.Panics(t, fn, name)
	}
	n, err := d.GetMany(nil, nil, nil)
	require.NoError(t, err)
	require.Zero(t, n)

	require.NoError(t, d.Set(0, 7), "the key that marks empty slots")
	require.NoError(t, s.Set("", nil))
	require.NoError(t, s.Set("empty", []byte{}))
	vals, ok := []uint64{5, 5, 5}, make([]bool, 3)
	n, err = d.GetMany([]uint64{0, 1, 0}, vals, ok)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, []uint64{7, 0, 7}, vals)
	require.Equal(t, []bool{true, false, true}, ok)
	texts := [][]byte{{1}, {1}, {1}}
	n, err = s.GetMany([]string{"", strings.Repeat("long", maxKeySize), "empty"}, texts, ok)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, [][]byte{nil, nil, {}}, texts)
	require.Equal(t, []bool{true, false, true}, ok)
}

// A codec that fails ends GetMany, wherever in a batch.
func TestEMDictGetManyFails(t *testing.T) {
	a := testArena(t, testOptions{})
	errBad := errors.New("bad")
	refuse := func(s string) error {
		if s == "bad key" {
			return errBad
		}
		return nil
	}
	d, err := Dict(a, "d", &DictOptions[string, string]{KeyCodec: stringCodec{encode: refuse}})
	require.NoError(t, err)
	keys := make([]string, 2*batchSize)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
		require.NoError(t, d.Set(keys[i], "v"))
	}
	vals, ok := make([]string, len(keys)), make([]bool, len(keys))
	n, err := d.GetMany(keys, vals, ok)
	require.NoError(t, err)
	require.Equal(t, len(keys), n)
	for _, at := range []int{0, 1, batchSize, len(keys) - 1} {
		bad := append([]string(nil), keys...)
		bad[at] = "bad key"
		_, err = d.GetMany(bad, vals, ok)
		require.ErrorIs(t, err, errBad, "at %d", at)
	}
}

func TestPartitionRanges(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	counts := []int{1, 2, 3, 5, 512, math.MaxInt, math.MaxInt - 1}
	for range 200 {
		counts = append(counts, 1+int(r.Uint64()>>(1+r.IntN(min(62, bitsOfInt-2)))))
	}
	checked := 0
	for _, n := range counts {
		var parts []int
		if n <= 1000 {
			for i := range n {
				parts = append(parts, i)
			}
		} else {
			parts = []int{0, 1, n / 2, n/2 + 1, n - 2, n - 1}
		}
		for _, i := range parts {
			checked++
			first, last := partition(i, n)
			require.LessOrEqual(t, first, last, "%d of %d", i, n)
			if i == 0 {
				require.Zero(t, first)
			}
			if i == n-1 {
				require.Equal(t, uint64(math.MaxUint64), last)
			} else {
				next, _ := partition(i+1, n)
				require.Equal(t, last+1, next, "%d of %d", i, n)
			}
		}
	}
	t.Logf("%d parts", checked)
}

// bitsOfInt is the size of an int.
const bitsOfInt = 32 << (^uint(0) >> 63)

// Readers of batches and parts meet writers who split, merge and delete. Keys
// below stay for ever and have the value that belongs to them; the others
// come and go, with values that belong to them too.
func TestEMDictBatchesConcurrent(t *testing.T) {
	t.Run("uint64", func(t *testing.T) {
		testBatchesConcurrent(t, func(k uint64) uint64 { return k }, func(k uint64) uint64 { return k*k + 1 })
	})
	t.Run("[16]byte", func(t *testing.T) {
		testBatchesConcurrent(t, func(k uint64) [16]byte { return [16]byte{byte(k), byte(k >> 8), 15: 1} },
			func(k uint64) [24]byte { return [24]byte{byte(k), byte(k >> 8), 23: 1} })
	})
	t.Run("string", func(t *testing.T) {
		testBatchesConcurrent(t, func(k uint64) string { return fmt.Sprint("key ", k) }, longer)
	})
}

func testBatchesConcurrent[K, V comparable](t *testing.T, key func(uint64) K, val func(uint64) V) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	const stay, all = 3000, 12000
	d := newDictFor[K, V](t, testOptions{})
	for k := range uint64(stay) {
		require.NoError(t, d.Set(key(k), val(k)))
	}
	rounds := 30
	if raceEnabled || testing.Short() {
		rounds = 3
	}
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	for w := range uint64(2) {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(seed, w))
			for grow := true; !stop.Load(); grow = !grow {
				for range all {
					k := stay + r.Uint64N(all-stay)
					var err error
					if grow {
						err = d.Set(key(k), val(k))
					} else {
						_, err = d.Delete(key(k))
					}
					assert.NoError(t, err)
				}
			}
		})
	}
	var hits, misses, scanned atomic.Int64
	for g := range uint64(2) {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(seed, 100+g))
			nums := make([]uint64, 3*batchSize)
			keys, vals, ok := make([]K, len(nums)), make([]V, len(nums)), make([]bool, len(nums))
			var zero V
			for range rounds {
				for range 20 {
					for i := range nums {
						nums[i] = r.Uint64N(all)
						keys[i] = key(nums[i])
					}
					found, err := d.GetMany(keys, vals, ok)
					if !assert.NoError(t, err) {
						return
					}
					hits.Add(int64(found))
					misses.Add(int64(len(nums) - found))
					for i, k := range nums {
						if ok[i] {
							found--
							assert.Equal(t, val(k), vals[i])
						} else {
							assert.Equal(t, zero, vals[i])
							assert.GreaterOrEqual(t, k, uint64(stay))
						}
					}
					assert.Zero(t, found)
				}
				want := map[V]bool{}
				n := 1 + r.IntN(20)
				for i := range n {
					for _, v := range d.Partition(i, n) {
						assert.False(t, want[v], "twice")
						want[v] = true
						scanned.Add(1)
					}
				}
				for k := range uint64(stay) {
					if !want[val(k)] {
						t.Errorf("%d of %d partitions miss %d", n, n, k)
						return
					}
				}
			}
		})
	}
	readers.Wait()
	stop.Store(true)
	writers.Wait()
	require.NoError(t, d.Err())
	t.Logf("%d hits, %d misses, %d entries of parts", hits.Load(), misses.Load(), scanned.Load())
}
