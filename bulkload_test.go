package emd

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"testing"

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
					n /= 8
				}
				if testing.Short() || raceEnabled {
					n /= 8
				}
				m := dictModel[K, V]{t: t, r: rand.New(rand.NewPCG(seed, 5)), mask: mask, key: key, val: val, want: map[K]V{}}
				if small {
					m.opts = tiny()
				}
				m.opts.opts.NoSync = true
				m.path = filepath.Join(t.TempDir(), "bulk.emd")
				m.open()
				for round := range 4 {
					count := []int{n, n / 10, 1, 2 * n}[round]
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
				crashed := reopen(t, crashImage(t, m.path), m.opts)
				require.NoError(t, crashed.verify())
				for range len(m.want) {
					m.step(100)
				}
				m.check()
			})
		}
	}
}

func TestBulkLoadModel(t *testing.T) {
	t.Run("uint64 to uint64", func(t *testing.T) { testBulkModel(t, 30000, word, anyWord) })
	t.Run("uint32 to uint32", func(t *testing.T) {
		testBulkModel(t, 20000, func(r *rand.Rand) uint32 { return r.Uint32N(30000) }, func(r *rand.Rand) uint32 { return r.Uint32() })
	})
	t.Run("uint64 to struct{}", func(t *testing.T) {
		testBulkModel(t, 20000, word, func(*rand.Rand) struct{} { return struct{}{} })
	})
	t.Run("[16]byte to uint64", func(t *testing.T) {
		testBulkModel(t, 10000, func(r *rand.Rand) [16]byte { return [16]byte{uint8(r.Uint32()), uint8(r.Uint32()), 15: uint8(r.Uint32N(4))} }, anyWord)
	})
	t.Run("struct{} to struct{}", func(t *testing.T) {
		testBulkModel(t, 500, func(*rand.Rand) struct{} { return struct{}{} }, func(*rand.Rand) struct{} { return struct{}{} })
	})
	t.Run("string to uint64", func(t *testing.T) { testBulkModel(t, 20000, text(0, 20), anyWord) })
	t.Run("uint64 to string", func(t *testing.T) { testBulkModel(t, 8000, word, text(0, 200)) })
	t.Run("string to string, long", func(t *testing.T) { testBulkModel(t, 3000, text(0, 700), text(0, 4000)) })
	t.Run("string to string, very long", func(t *testing.T) { testBulkModel(t, 200, text(0, 60000), text(0, 200000)) })
	t.Run("[300]byte to [300]byte", func(t *testing.T) {
		testBulkModel(t, 1000, func(r *rand.Rand) [300]byte { return [300]byte{uint8(r.Uint32()), 299: uint8(r.Uint32N(4))} }, func(r *rand.Rand) [300]byte { return [300]byte{uint8(r.Uint32())} })
	})
	t.Run("string to [600]byte", func(t *testing.T) {
		testBulkModel(t, 1000, text(0, 700), func(r *rand.Rand) [600]byte { return [600]byte{uint8(r.Uint32())} })
	})
}

var _ = maps.All[map[int]int]
var _ iter.Seq[int]
