package emd

import (
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bareArena has space and allocator of a new file, but no containers.
func bareArena(t *testing.T) *Arena {
	disk := newSimDisk()
	f, err := disk.Open("/bare", 0x42, 0)
	require.NoError(t, err)
	a := &Arena{file: f, fs: disk, limit: 1 << 30}
	a.space, err = newSpace(f, disk.Map(f, true), minChunkSize, 0, 0, true)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.space.close()) })
	a.alloc = newAllocator(a.space, 0)
	require.NoError(t, a.alloc.format())
	return a
}

// takeLogged makes everything handed out so far logged space, as a commit does.
func takeLogged(t *testing.T, a *Arena) {
	a.alloc.roundUp()
	from := a.space.border.Load()
	end, _ := a.alloc.usage()
	require.NoError(t, a.space.writeFresh(from, end))
	require.NoError(t, a.space.settle(from, end))
	a.space.border.Store(end)
	a.space.sweep()
	a.alloc.committed()
}

func allocSeeds() uint64 {
	if testing.Short() {
		return 2
	}
	return 8
}

// TestAllocator allocates and frees runs at random and compares with what it
// handed out: no page twice, none lost, all zeroed.
func TestAllocator(t *testing.T) {
	for seed := range allocSeeds() {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			a := bareArena(t)
			al := a.alloc
			r := rand.New(rand.NewPCG(seed, 2))
			owned := map[pageNo]uint32{}
			for step := range 3000 {
				switch n := r.IntN(100); {
				case n < 52:
					size := uint32(1)
					if r.IntN(3) == 0 {
						size = 1 + r.Uint32N(al.maxRun())
					}
					get := al.alloc
					if r.IntN(20) == 0 {
						get = al.allocFresh
					}
					p, err := get(size)
					require.NoError(t, err)
					for i := range size {
						if *a.space.page(p + i) != (page{}) {
							require.Fail(t, "not zero", "page %d of run %d+%d at step %d", p+i, p, size, step)
						}
						a.space.touch(p+i, allLines)
						a.space.page(p + i)[r.IntN(pageSize)] = 1
					}
					owned[p] = size
				case n < 98 && len(owned) > 0:
					p := someKey(r, owned)
					size := owned[p]
					delete(owned, p)
					if keep := r.Uint32N(size + 1); keep > 0 && keep < size { // the front only
						al.free(p, keep)
						owned[p+keep] = size - keep
					} else {
						al.free(p, size)
					}
				default:
					takeLogged(t, a)
				}
				if step%250 == 0 {
					checkRuns(t, al, owned)
				}
			}
			for p, n := range owned {
				al.free(p, n)
			}
			checkRuns(t, al, nil)
		})
	}
}

func someKey(r *rand.Rand, m map[pageNo]uint32) pageNo {
	keys := slices.Sorted(maps.Keys(m))
	return keys[r.IntN(len(keys))]
}

func checkRuns(t *testing.T, al *allocator, owned map[pageNo]uint32) {
	t.Helper()
	used, err := newOwnership(al.end)
	require.NoError(t, err)
	defer used.release()
	for p, n := range owned {
		require.NoError(t, used.claim(p, n, "owned"))
	}
	require.NoError(t, al.verify(used, true))
}

// TestAllocatorReuse allocates and frees the same runs again and again: the
// file must not grow.
func TestAllocatorReuse(t *testing.T) {
	a := bareArena(t)
	end := uint64(0)
	for round := range 50 {
		var runs []pageRun
		for n := range uint32(40) {
			p, err := a.alloc.alloc(n + 1)
			require.NoError(t, err)
			runs = append(runs, pageRun{p, n + 1})
		}
		for _, run := range runs {
			a.alloc.free(run.p, run.n)
		}
		takeLogged(t, a)
		if got, _ := a.alloc.usage(); round < 4 { // until each run has found its place
			end = got
		} else {
			assert.Equal(t, end, got, "round %d", round)
		}
	}
}

// TestAllocatorPlace places runs of all sizes: in one chunk and one region, behind its first pages.
func TestAllocatorPlace(t *testing.T) {
	a := bareArena(t)
	r := newRand(rand.Uint64())
	for _, shift := range []uint8{6, 8, 12, regionShift} {
		a.space.shift = shift
		al := newAllocator(a.space, unitPages)
		for range 100_000 {
			end := slotPages + r.Uint64N(3<<regionShift)
			if r.IntN(3) == 0 {
				end = uint64(1+r.IntN(3))<<regionShift - r.Uint64N(300)
			}
			n := 1 + r.Uint64N(uint64(al.maxRun()))
			if r.IntN(2) == 0 {
				n = 1 << r.IntN(al.order+1)
			}
			start := al.place(end, n)
			last := start + n - 1
			ok := start >= end && start%(n&-n) == 0 && start>>shift == last>>shift && start>>regionShift == last>>regionShift &&
				start >= uint64(a.space.region(int(start>>regionShift)).firstData()) && (start >= regionPages || bits.Len64(start) == bits.Len64(last))
			require.True(t, ok, "%d pages from %d on at %d, chunks of %d", n, end, start, 1<<shift)
		}
	}
}

// TestAllocatorRegions crosses regions, whose first pages are never handed out.
func TestAllocatorRegions(t *testing.T) {
	a := bareArena(t)
	a.alloc.order = maxOrder // chunks do not matter to the bookkeeping
	owned := map[pageNo]uint32{}
	for range 5 {
		a.alloc.mu.Lock()
		p, err := a.alloc.extend(regionPages / 2)
		a.alloc.mu.Unlock()
		require.NoError(t, err)
		owned[p] = regionPages / 2
	}
	checkRuns(t, a.alloc, owned)
	end, _ := a.alloc.usage()
	assert.Equal(t, uint64(5<<regionShift), end)
	for p, n := range owned {
		a.alloc.free(p, n)
	}
	checkRuns(t, a.alloc, nil)
}

// TestRecords puts, replaces and frees records of all sizes against a map.
func TestRecords(t *testing.T) {
	for seed := range allocSeeds() {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			a := bareArena(t)
			hdr, err := a.alloc.alloc(1)
			require.NoError(t, err)
			var recs records
			recs.init(a, uint64(hdr)<<pageShift+128)
			r := rand.New(rand.NewPCG(seed, 3))
			model := map[ref][]byte{}
			data := func() []byte {
				n := r.IntN(100)
				switch r.IntN(12) {
				case 0:
					n = r.IntN(5000)
				case 1:
					n = r.IntN(900_000) // more than a chunk: in pieces
				case 2:
					n = 0
				}
				b := make([]byte, n)
				for i := range b {
					b[i] = byte(r.Uint32())
				}
				return b
			}
			some := func() ref {
				keys := slices.Sorted(maps.Keys(model))
				return keys[r.IntN(len(keys))]
			}
			for step := range 2000 {
				switch n := r.IntN(100); {
				case n < 45:
					b := data()
					x, err := recs.put(b)
					require.NoError(t, err)
					require.NotZero(t, x)
					if len(b) > 0 {
						require.NotContains(t, model, x)
						model[x] = b
					}
				case n < 65 && len(model) > 0:
					old, b := some(), data()
					x, err := recs.replace(old, b)
					require.NoError(t, err)
					delete(model, old)
					if len(b) > 0 {
						model[x] = b
					}
				case n < 99 && len(model) > 0:
					x := some()
					require.NoError(t, recs.free(x))
					delete(model, x)
				case n == 99:
					takeLogged(t, a)
				}
				if step%200 == 0 {
					checkRecords(t, a, hdr, &recs, model)
				}
			}
			for x := range model {
				require.NoError(t, recs.freeLarge(x))
			}
			require.NoError(t, recs.freeAll())
			checkRecords(t, a, hdr, &recs, nil)
		})
	}
}

func checkRecords(t *testing.T, a *Arena, hdr pageNo, recs *records, model map[ref][]byte) {
	t.Helper()
	used, err := newOwnership(a.alloc.end)
	require.NoError(t, err)
	defer used.release()
	require.NoError(t, used.claim(hdr, 1, "header"))
	check, err := recs.verify(func(p pageNo, n uint32) error { return used.claim(p, n, "owned") })
	require.NoError(t, err)
	for x, want := range model {
		got, err := recs.get(nil, x)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, check.ref(x))
	}
	require.NoError(t, check.done())
	require.NoError(t, a.alloc.verify(used, true))
}

// TestRecordsHostile reads refs that no record has: an error or some bytes,
// never a fault.
func TestRecordsHostile(t *testing.T) {
	a := bareArena(t)
	hdr, err := a.alloc.alloc(1)
	require.NoError(t, err)
	var recs records
	recs.init(a, uint64(hdr)<<pageShift+128)
	x, err := recs.put(make([]byte, 700_000))
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(1, 1))
	for range 20_000 {
		y := x ^ 1<<r.IntN(64)
		if r.IntN(2) == 0 {
			y = ref(r.Uint64() >> r.IntN(64))
		}
		if b, err := recs.get(nil, y); err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			require.LessOrEqual(t, len(b), 1<<25)
		}
	}
	index := a.space.view(x.off(), indexHeader)
	for i := range index {
		old := index[i]
		index[i] ^= 0x55
		if _, err := recs.get(nil, x); err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
		}
		index[i] = old
	}
}
