package emd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSorter has entries sorted with little memory, and compares them with those of a map, by key; the order is that of their hashes.
func TestSorter(t *testing.T) {
	seed := rand.Uint64()
	for name, mask := range hashMasks {
		for _, memory := range []int{4 << 10, minSortMemory, maxSortMemory} {
			t.Run(fmt.Sprintf("words/hash=%s/memory=%d/seed=%d", name, memory, seed), func(t *testing.T) {
				testSorter[uint64, uint64](t, seed, mask, memory, 30000, 8, 8)
			})
			t.Run(fmt.Sprintf("texts/hash=%s/memory=%d/seed=%d", name, memory, seed), func(t *testing.T) {
				testSorter[string, []byte](t, seed, mask, memory, 3000, -1, -1)
			})
			t.Run(fmt.Sprintf("nothing/hash=%s/memory=%d/seed=%d", name, memory, seed), func(t *testing.T) {
				testSorter[struct{}, struct{}](t, seed, mask, memory, 3000, 0, 0)
			})
		}
	}
}

func testSorter[K comparable, V any](t *testing.T, seed, mask uint64, memory, n, keySize, valSize int) {
	t.Parallel()
	if mask != ^uint64(0) {
		n /= 16
	}
	r := rand.New(rand.NewPCG(seed, uint64(memory)))
	a, err := openWith(filepath.Join(tempDir(t), "a.emd"), nil, internalOptions{heap: raceEnabled})
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	d, err := Dict[K, V](a, "dict", nil)
	require.NoError(t, err)
	d.d.hashMask = mask
	s := newSorter(t.Context(), d.d)
	s.all = s.deal(memory, 0)
	defer func() { require.NoError(t, s.close()) }()

	random := func(size int) []byte {
		if size < 0 {
			size = r.IntN(200)
			if r.IntN(100) == 0 {
				size = r.IntN(3 * farScratch / 2)
			}
		}
		b := make([]byte, size)
		for i := range min(2, size) { // so that keys come again
			b[i] = byte(r.Uint32())
		}
		return b
	}
	want, longest := map[string][]byte{}, 0
	for range n {
		k, v := random(keySize), random(valSize)
		k = k[:min(len(k), maxKeySize)]
		want[string(k)] = v
		longest = max(longest, len(k)+min(len(v), farScratch)+20)
		require.NoError(t, s.add(d.d.hash(k), k, v))
		require.LessOrEqual(t, held(s.all), memory+len(s.all.parts)*longest)
	}
	require.EqualValues(t, n, s.count)

	before := uint64(0)
	ok := s.all.sorted(func(step sortStep) bool {
		p, err := step.part, step.err
		require.NoError(t, err)
		if s.all.spilled {
			require.Zero(t, held(s.all))
		}
		if p == nil {
			return true
		}
		require.NotEmpty(t, p.items)
		if hashes := p.items[len(p.items)-1].hash - p.items[0].hash; hashes != 0 {
			require.LessOrEqual(t, len(p.buf)+2*sortItemSize*len(p.items), memory/2)
		}
		var e sortedEntry
		for i := range p.items {
			p.entry(d.d, i, &e)
			require.GreaterOrEqual(t, e.hash, before)
			require.Equal(t, d.d.hash(e.key), e.hash)
			val := e.val
			if e.how == valScratch {
				val, err = s.scratch.read(nil, int64(binary.LittleEndian.Uint64(e.val)), e.valSize)
				require.NoError(t, err)
			}
			v, known := want[string(e.key)]
			require.True(t, known && bytes.Equal(v, val), "entry of hash %#x", e.hash)
			delete(want, string(e.key))
			before = e.hash
		}
		return true
	})
	require.True(t, ok)
	require.Empty(t, want)
}

// held is the memory that a dealing has.
func held(v *dealing) (n int) {
	for i := range v.parts {
		n += cap(v.parts[i].buf)
	}
	return n
}

// TestMergerClose stops reading sorted entries everywhere in a part. The goroutine that is ahead has ended then: nobody uses the scratch
// file any more.
func TestMergerClose(t *testing.T) {
	a, err := openWith(filepath.Join(tempDir(t), "a.emd"), nil, internalOptions{heap: raceEnabled})
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	d, err := Dict[uint64, uint64](a, "dict", nil)
	require.NoError(t, err)
	const n = 3000
	for pulls := 0; pulls < n; pulls += 97 {
		s := newSorter(t.Context(), d.d)
		s.all = s.deal(minSortMemory, 0)
		for i := range uint64(n) {
			k := binary.LittleEndian.AppendUint64(nil, i)
			require.NoError(t, s.add(d.d.hash(k), k, k))
		}
		m, err := s.sorted(nil)
		require.NoError(t, err)
		for range pulls {
			e, err := m.pull()
			require.NoError(t, err)
			require.NotNil(t, e)
		}
		m.close()
		require.Eventually(t, func() bool {
			stacks := make([]byte, 1<<20)
			return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("(*sorter).sorted"))
		}, time.Minute, 100*time.Microsecond)
		require.NoError(t, s.close())
	}
}
