package emd

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each benchmark runs on this package's container (impl=emd) and on Go's own map or slice (impl=map, impl=slice), so that one run gives ratios.
// bytes/entry is the size of the closed file by its elements.

var benchLarge = flag.Bool("emd.bench.large", false, "benchmark dicts of 10 million entries as well")

// benchLens are the sizes of the dicts of benchmarks.
func benchLens() []int {
	switch {
	case testing.Short(): // whether they run at all
		return []int{100_000}
	case *benchLarge:
		return []int{1_000_000, 10_000_000}
	default:
		return []int{1_000_000}
	}
}

// A benchMap is what the benchmarks of dicts need, of either implementation.
type benchMap[K comparable, V any] interface {
	get(k K) (V, bool)
	set(k K, v V)
	delete(k K)
	compute(k K, fn func(v V, ok bool) V)
	all(yield func(K, V) bool)
	sync()
}

type goMap[K comparable, V any] map[K]V

func (m goMap[K, V]) get(k K) (V, bool) { v, ok := m[k]; return v, ok }
func (m goMap[K, V]) set(k K, v V)      { m[k] = v }
func (m goMap[K, V]) delete(k K)        { delete(m, k) }
func (m goMap[K, V]) sync()             {}

func (m goMap[K, V]) all(yield func(K, V) bool) { maps.All(m)(yield) }

func (m goMap[K, V]) compute(k K, fn func(v V, ok bool) V) {
	v, ok := m[k]
	m[k] = fn(v, ok)
}

type emdMap[K comparable, V any] struct {
	d *EMDict[K, V]
	b testing.TB
}

func (m emdMap[K, V]) get(k K) (V, bool) {
	v, ok, err := m.d.Get(k)
	isZeroErr(m.b, err)
	return v, ok
}

func (m emdMap[K, V]) set(k K, v V) { isZeroErr(m.b, m.d.Set(k, v)) }

func (m emdMap[K, V]) delete(k K) {
	_, err := m.d.Delete(k)
	isZeroErr(m.b, err)
}

func (m emdMap[K, V]) compute(k K, fn func(v V, ok bool) V) {
	_, _, err := m.d.Compute(k, func(v V, ok bool) (V, Op) { return fn(v, ok), OpStore })
	isZeroErr(m.b, err)
}

func (m emdMap[K, V]) all(yield func(K, V) bool) { m.d.All()(yield) }
func (m emdMap[K, V]) sync()                     { isZeroErr(m.b, m.d.Sync()) }

// benchKind is a pair of key and value types.
type benchKind[K comparable, V any] struct {
	name string // as the fields of a benchmark's name
	pair func(i int) (K, V)
}

var (
	uint64Kind = benchKind[uint64, uint64]{"key=uint64/val=uint64", uint64Pair}
	bytesKind  = benchKind[string, [100]byte]{"key=string16/val=bytes100", func(i int) (string, [100]byte) {
		k, _ := stringPair(i)
		_, v := bytesPair(i)
		return k, v
	}}
)

// eachMap runs fn on a filled dict and a filled map of each size.
func eachMap[K comparable, V any](b *testing.B, kind benchKind[K, V], fn func(b *testing.B, m benchMap[K, V], n int)) {
	for _, n := range benchLens() {
		for _, impl := range []string{"emd", "map"} {
			var m benchMap[K, V] // filled once, however often fn runs
			perEntry := 0.0
			b.Run(fmt.Sprintf("impl=%s/%s/len=%d", impl, kind.name, n), func(b *testing.B) {
				if m == nil {
					m, perEntry = newBenchMap(b, impl, kind, n)
				}
				b.ReportAllocs()
				fn(b, m, n)
				if perEntry > 0 {
					b.ReportMetric(perEntry, "bytes/entry")
				}
			})
		}
	}
}

func newBenchMap[K comparable, V any](b *testing.B, impl string, kind benchKind[K, V], n int) (m benchMap[K, V], bytesPerEntry float64) {
	if impl == "map" {
		m = goMap[K, V]{}
	} else {
		m = emdMap[K, V]{benchDict[K, V](b, tempDir(b)), b}
	}
	for i := range n {
		m.set(kind.pair(i))
	}
	m.sync()
	if e, ok := m.(emdMap[K, V]); ok {
		bytesPerEntry = float64(e.d.Arena().Stats().File) / float64(n)
	}
	return m, bytesPerEntry
}

// benchDict opens an empty dict in dir.
func benchDict[K comparable, V any](b *testing.B, dir string) *EMDict[K, V] {
	d, err := OpenDict[K, V](filepath.Join(dir, fmt.Sprintf("%d.emd", rand.Uint64())), nil)
	require.NoError(b, err)
	return d
}

func BenchmarkEMDictGet(b *testing.B) {
	for _, hit := range []bool{true, false} {
		b.Run(fmt.Sprintf("hit=%t", hit), func(b *testing.B) {
			benchGet(b, uint64Kind, hit)
			benchGet(b, bytesKind, hit)
		})
	}
}

func benchGet[K comparable, V any](b *testing.B, kind benchKind[K, V], hit bool) {
	eachMap(b, kind, func(b *testing.B, m benchMap[K, V], n int) {
		// Keys are drawn before the clock runs; absent ones lie above the present ones.
		r := rand.New(rand.NewPCG(1, 1))
		keys := make([]K, 1<<16)
		for i := range keys {
			at := r.IntN(n)
			if !hit {
				at += n
			}
			keys[i], _ = kind.pair(at)
		}
		// A virtual call costs the same on both sides, but more in proportion on the faster one: so it is avoided here.
		found, i := 0, 0
		if e, ok := m.(emdMap[K, V]); ok {
			for b.Loop() {
				if _, ok, _ := e.d.Get(keys[i&(len(keys)-1)]); ok {
					found++
				}
				i++
			}
		} else {
			m := m.(goMap[K, V])
			for b.Loop() {
				if _, ok := m[keys[i&(len(keys)-1)]]; ok {
					found++
				}
				i++
			}
		}
		require.Equal(b, hit, found > 0)
	})
}

// BenchmarkEMDictGetMany looks up batches of 64, in the map one after the other; the time is that of one key.
func BenchmarkEMDictGetMany(b *testing.B) {
	for _, hit := range []bool{true, false} {
		b.Run(fmt.Sprintf("hit=%t", hit), func(b *testing.B) {
			benchGetMany(b, uint64Kind, hit)
			benchGetMany(b, bytesKind, hit)
		})
	}
}

func benchGetMany[K comparable, V any](b *testing.B, kind benchKind[K, V], hit bool) {
	eachMap(b, kind, func(b *testing.B, m benchMap[K, V], n int) {
		const batch = 64
		r := rand.New(rand.NewPCG(1, 1))
		keys := make([]K, 1<<16)
		for i := range keys {
			at := r.IntN(n)
			if !hit {
				at += n
			}
			keys[i], _ = kind.pair(at)
		}
		vals, ok := make([]V, batch), make([]bool, batch)
		found, batches := 0, 0
		for b.Loop() {
			some := keys[batches*batch&(len(keys)-1):][:batch]
			batches++
			if e, is := m.(emdMap[K, V]); is {
				got, err := e.d.GetMany(some, vals, ok)
				isZeroErr(b, err)
				found += got
				continue
			}
			m := m.(goMap[K, V])
			for i, k := range some {
				if vals[i], ok[i] = m[k]; ok[i] {
					found++
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(batches*batch), "ns/key")
		require.Equal(b, hit, found > 0)
	})
}

// BenchmarkEMDictPartition goes over all entries in two parts.
func BenchmarkEMDictPartition(b *testing.B) {
	eachMap(b, uint64Kind, func(b *testing.B, m benchMap[uint64, uint64], n int) {
		for b.Loop() {
			seen := 0
			count := func(uint64, uint64) bool { seen++; return true }
			if e, ok := m.(emdMap[uint64, uint64]); ok {
				e.d.Partition(0, 2)(count)
				e.d.Partition(1, 2)(count)
			} else {
				m.all(count)
			}
			require.Equal(b, n, seen)
		}
		perEntry(b, n)
	})
}

func BenchmarkEMDictSet(b *testing.B) {
	benchSet(b, uint64Kind)
	benchSet(b, bytesKind)
}

func benchSet[K comparable, V any](b *testing.B, kind benchKind[K, V]) {
	for _, n := range benchLens() {
		b.Run(fmt.Sprintf("impl=emd/%s/len=%d", kind.name, n), func(b *testing.B) {
			dir, size := tempDir(b), int64(0)
			for b.Loop() {
				b.StopTimer()
				d := benchDict[K, V](b, dir)
				b.StartTimer()
				for i := range n {
					isZeroErr(b, d.Set(kind.pair(i)))
				}
				isZeroErr(b, d.Sync())
				b.StopTimer()
				size = d.Arena().Stats().File
				require.NoError(b, d.Close())
				require.NoError(b, os.Remove(d.Arena().path))
				b.StartTimer()
			}
			perEntry(b, n)
			b.ReportMetric(float64(size)/float64(n), "bytes/entry")
		})
		b.Run(fmt.Sprintf("impl=map/%s/len=%d", kind.name, n), func(b *testing.B) {
			for b.Loop() {
				m := map[K]V{}
				for i := range n {
					k, v := kind.pair(i)
					m[k] = v
				}
			}
			perEntry(b, n)
		})
	}
}

// perEntry reports the time of one of n elements that an operation handles.
func perEntry(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
}

// BenchmarkEMDictBulkLoad fills an empty dict with BulkLoad, or a map one by one.
func BenchmarkEMDictBulkLoad(b *testing.B) {
	benchBulkLoad(b, uint64Kind)
	benchBulkLoad(b, bytesKind)
}

func benchBulkLoad[K comparable, V any](b *testing.B, kind benchKind[K, V]) {
	for _, n := range benchLens() {
		pairs := func(yield func(K, V) bool) {
			for i := range n {
				if !yield(kind.pair(i)) {
					return
				}
			}
		}
		b.Run(fmt.Sprintf("impl=emd/%s/len=%d", kind.name, n), func(b *testing.B) {
			dir, size := tempDir(b), int64(0)
			for b.Loop() {
				d := benchDict[K, V](b, dir)
				_, err := d.BulkLoad(b.Context(), pairs)
				require.NoError(b, err)
				size = d.Arena().Stats().File
				b.StopTimer()
				require.NoError(b, d.Close())
				require.NoError(b, os.Remove(d.Arena().path))
				b.StartTimer()
			}
			perEntry(b, n)
			b.ReportMetric(float64(size)/float64(n), "bytes/entry")
		})
		b.Run(fmt.Sprintf("impl=map/%s/len=%d", kind.name, n), func(b *testing.B) {
			for b.Loop() {
				m := map[K]V{}
				for k, v := range pairs {
					m[k] = v
				}
				require.NotEmpty(b, m)
			}
			perEntry(b, n)
		})
	}
}

func BenchmarkEMDictOverwrite(b *testing.B) {
	benchOverwrite(b, uint64Kind)
	benchOverwrite(b, bytesKind)
}

func benchOverwrite[K comparable, V any](b *testing.B, kind benchKind[K, V]) {
	eachMap(b, kind, func(b *testing.B, m benchMap[K, V], n int) {
		r := rand.New(rand.NewPCG(2, 2))
		keys := make([]K, 1<<16)
		for i := range keys {
			keys[i], _ = kind.pair(r.IntN(n))
		}
		_, v := kind.pair(1)
		i := 0
		for b.Loop() {
			m.set(keys[i&(len(keys)-1)], v)
			i++
		}
		b.StopTimer()
		m.sync()
	})
}

func BenchmarkEMDictCompute(b *testing.B) {
	eachMap(b, uint64Kind, func(b *testing.B, m benchMap[uint64, uint64], n int) {
		r := rand.New(rand.NewPCG(3, 3))
		keys := make([]uint64, 1<<16)
		for i := range keys {
			keys[i], _ = uint64Pair(r.IntN(n))
		}
		add := func(v uint64, ok bool) uint64 { return v + 1 }
		i := 0
		for b.Loop() {
			m.compute(keys[i&(len(keys)-1)], add)
			i++
		}
		b.StopTimer()
		m.sync()
	})
}

// BenchmarkEMDictDelete empties a filled dict, with one Sync at its end; an operation is the whole of it.
func BenchmarkEMDictDelete(b *testing.B) {
	benchDelete(b, uint64Kind)
	benchDelete(b, bytesKind)
}

func benchDelete[K comparable, V any](b *testing.B, kind benchKind[K, V]) {
	for _, n := range benchLens() {
		for _, impl := range []string{"emd", "map"} {
			b.Run(fmt.Sprintf("impl=%s/%s/len=%d", impl, kind.name, n), func(b *testing.B) {
				m, _ := newBenchMap(b, impl, kind, 0)
				syncs := time.Duration(0)
				for b.Loop() {
					b.StopTimer()
					for i := range n {
						m.set(kind.pair(i))
					}
					m.sync()
					b.StartTimer()
					for i := range n {
						k, _ := kind.pair(i)
						m.delete(k)
					}
					start := time.Now()
					m.sync()
					syncs += time.Since(start)
				}
				perEntry(b, n)
				b.ReportMetric(float64(syncs.Nanoseconds())/float64(b.N)/float64(n), "sync-ns/entry")
			})
		}
	}
}

// BenchmarkEMDictAll goes through a dict; an operation is the whole of it.
func BenchmarkEMDictAll(b *testing.B) {
	benchAll(b, uint64Kind)
	benchAll(b, bytesKind)
}

func benchAll[K comparable, V any](b *testing.B, kind benchKind[K, V]) {
	eachMap(b, kind, func(b *testing.B, m benchMap[K, V], n int) {
		for b.Loop() {
			seen := 0
			for range m.all {
				seen++
			}
			if seen != n {
				b.Fatalf("%d of %d entries", seen, n)
			}
		}
		perEntry(b, n)
	})
}

const benchListLen = 1_000_000

// BenchmarkEMListAppend appends to an empty list one by one, with one Sync at its end; an operation is the whole of it.
func BenchmarkEMListAppend(b *testing.B) {
	b.Run(fmt.Sprintf("impl=emd/elem=uint64/len=%d", benchListLen), func(b *testing.B) {
		dir, size := tempDir(b), int64(0)
		for b.Loop() {
			b.StopTimer()
			l, err := OpenList[uint64](filepath.Join(dir, "list.emd"), nil)
			require.NoError(b, err)
			b.StartTimer()
			for i := range uint64(benchListLen) {
				isZeroErr(b, l.Append(i))
			}
			isZeroErr(b, l.Sync())
			b.StopTimer()
			size = l.Arena().Stats().File
			require.NoError(b, l.Close())
			require.NoError(b, os.Remove(l.Arena().path))
			b.StartTimer()
		}
		perEntry(b, benchListLen)
		b.ReportMetric(float64(size)/benchListLen, "bytes/entry")
	})
	b.Run(fmt.Sprintf("impl=slice/elem=uint64/len=%d", benchListLen), func(b *testing.B) {
		for b.Loop() {
			var s []uint64
			for i := range uint64(benchListLen) {
				s = append(s, i)
			}
			benchSink = s[len(s)-1]
		}
		perEntry(b, benchListLen)
	})
}

// benchSink keeps what a benchmark computes.
var benchSink uint64

// benchLists returns a filled list and a filled slice.
func benchLists(b *testing.B) (*EMList[uint64], []uint64) {
	l, err := OpenList[uint64](filepath.Join(tempDir(b), "list.emd"), nil)
	require.NoError(b, err)
	b.Cleanup(func() { l.Close() })
	s := slices.Collect(count(benchListLen))
	require.NoError(b, l.Append(s...))
	require.NoError(b, l.Sync())
	return l, s
}

// benchIndexes draws places in a list.
func benchIndexes() []int {
	r := rand.New(rand.NewPCG(5, 5))
	at := make([]int, 1<<16)
	for i := range at {
		at[i] = r.IntN(benchListLen)
	}
	return at
}

func BenchmarkEMListGet(b *testing.B) {
	l, s := benchLists(b)
	at := benchIndexes()
	b.Run("impl=emd/elem=uint64", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			v, err := l.Get(at[i&(len(at)-1)])
			isZeroErr(b, err)
			benchSink += v
		}
	})
	b.Run("impl=slice/elem=uint64", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			benchSink += s[at[i&(len(at)-1)]]
		}
	})
}

func BenchmarkEMListSet(b *testing.B) {
	l, s := benchLists(b)
	at := benchIndexes()
	b.Run("impl=emd/elem=uint64", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			isZeroErr(b, l.Set(at[i&(len(at)-1)], uint64(i)))
		}
		b.StopTimer()
		isZeroErr(b, l.Sync())
	})
	b.Run("impl=slice/elem=uint64", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			s[at[i&(len(at)-1)]] = uint64(i)
		}
	})
}

// BenchmarkEMListAll adds all elements; an operation is the whole list.
func BenchmarkEMListAll(b *testing.B) {
	l, s := benchLists(b)
	b.Run(fmt.Sprintf("impl=emd/elem=uint64/len=%d", benchListLen), func(b *testing.B) {
		b.SetBytes(8 * benchListLen)
		for b.Loop() {
			for _, v := range l.All() {
				benchSink += v
			}
		}
		perEntry(b, benchListLen)
	})
	b.Run(fmt.Sprintf("impl=slice/elem=uint64/len=%d", benchListLen), func(b *testing.B) {
		b.SetBytes(8 * benchListLen)
		for b.Loop() {
			for _, v := range s {
				benchSink += v
			}
		}
		perEntry(b, benchListLen)
	})
}

// BenchmarkSync makes one Set durable, beside what the disk needs for one block at least: a write of 4 KiB into written space, and its sync.
func BenchmarkSync(b *testing.B) {
	b.Run("impl=emd", func(b *testing.B) {
		d := benchDict[uint64, uint64](b, tempDir(b))
		for i := range 100_000 {
			isZeroErr(b, d.Set(uint64Pair(i)))
		}
		isZeroErr(b, d.Sync())
		for i := 0; b.Loop(); i++ {
			k, _ := uint64Pair(i % 100_000)
			isZeroErr(b, d.Set(k, uint64(i)))
			isZeroErr(b, d.Sync())
		}
		require.NoError(b, d.Close())
	})
	b.Run("impl=write4KiB", func(b *testing.B) {
		f, err := newOSFS(false, false).Open(filepath.Join(tempDir(b), "raw"), os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(b, err)
		const blocks = 4096
		block := make([]byte, pageSize)
		for i := range int64(blocks) {
			_, err := f.WriteAt(block, i*pageSize)
			isZeroErr(b, err)
		}
		isZeroErr(b, f.Sync())
		for i := 0; b.Loop(); i++ {
			block[0]++
			_, err := f.WriteAt(block, int64(i%blocks)*pageSize)
			isZeroErr(b, err)
			isZeroErr(b, f.Sync())
		}
		require.NoError(b, f.Close())
	})
}

// BenchmarkOpen opens a closed file of a million entries, gets one and closes it; the page cache is warm.
func BenchmarkOpen(b *testing.B) {
	for _, n := range benchLens() {
		b.Run(fmt.Sprintf("len=%d", n), func(b *testing.B) {
			d := benchDict[uint64, uint64](b, tempDir(b))
			for i := range n {
				isZeroErr(b, d.Set(uint64Pair(i)))
			}
			require.NoError(b, d.Close())
			path := d.Arena().path
			for i := 0; b.Loop(); i++ {
				d, err := OpenDict[uint64, uint64](path, nil)
				isZeroErr(b, err)
				k, want := uint64Pair(i % n)
				v, _, err := d.Get(k)
				isZeroErr(b, err)
				if v != want {
					b.Fatal("wrong value")
				}
				b.StopTimer()
				isZeroErr(b, d.Close())
				b.StartTimer()
			}
		})
	}
}

// BenchmarkAppendTo adds edges to a graph in random order, by AppendTo and by Get, append and Set. One operation is one edge; nodes have as many
// at the end as degree says.
func BenchmarkAppendTo(b *testing.B) {
	for _, size := range []struct{ nodes, degree int }{{100_000, 10}, {10_000, 100}, {1000, 1000}} {
		for impl, add := range map[string]func(d *EMDict[uint32, []uint64], from uint32, to uint64) error{
			"AppendTo": func(d *EMDict[uint32, []uint64], from uint32, to uint64) error { return AppendTo(d, from, to) },
			"Set": func(d *EMDict[uint32, []uint64], from uint32, to uint64) error {
				v, _, err := d.Get(from)
				if err != nil {
					return err
				}
				return d.Set(from, append(v, to))
			},
		} {
			b.Run(fmt.Sprintf("impl=%s/nodes=%d/degree=%d", impl, size.nodes, size.degree), func(b *testing.B) {
				total := size.nodes * size.degree
				left := 0
				var d *EMDict[uint32, []uint64]
				r := rand.New(rand.NewPCG(1, 2))
				for range b.N {
					if left == 0 { // a graph is done: another one
						b.StopTimer()
						if d != nil {
							isZeroErr(b, d.Close())
						}
						var err error
						d, err = OpenDict[uint32, []uint64](filepath.Join(tempDir(b), "graph.emd"), &Options{NoSync: true})
						isZeroErr(b, err)
						left = total
						b.StartTimer()
					}
					left--
					isZeroErr(b, add(d, r.Uint32N(uint32(size.nodes)), r.Uint64()))
				}
				b.StopTimer()
				isZeroErr(b, d.Close())
			})
		}
	}
}
