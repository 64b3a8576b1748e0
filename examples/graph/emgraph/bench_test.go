//go:build unix

package emgraph

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// Each benchmark has, beside the library, the same loop over a raw mapping of
// the same edges in plain Go (impl=mapped).

const benchNodes, benchEdges = 1 << 20, 1 << 24

// benchGraph returns a graph of 2^24 edges, sorted, and its lists in raw mappings.
func benchGraph(b *testing.B) (g *Graph, edges []Edge, index []uint64) {
	r := RMAT{Nodes: benchNodes, Edges: benchEdges, Seed: 1}
	if testing.Short() {
		r.Nodes, r.Edges = r.Nodes>>8, r.Edges>>8
	}
	g = newGraph(b)
	require.NoError(b, g.Generate(b.Context(), r, quiet))
	require.NoError(b, g.Sort(b.Context(), quiet))
	require.NoError(b, g.Arena.Sync())
	all, offsets := make([]Edge, g.Edges.Len()), make([]uint64, g.Index.Len())
	_, err := g.Edges.CopyTo(all, 0)
	require.NoError(b, err)
	_, err = g.Index.CopyTo(offsets, 0)
	require.NoError(b, err)
	return g, mapped(b, all), mapped(b, offsets)
}

// mapped returns a raw mapping of a file with the memory of values.
func mapped[T any](b *testing.B, values []T) []T {
	size := len(values) * int(unsafe.Sizeof(values[0]))
	path := filepath.Join(b.TempDir(), "raw")
	require.NoError(b, os.WriteFile(path, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), size), 0o600))
	f, err := os.Open(path)
	require.NoError(b, err)
	m, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, syscall.Munmap(m)) })
	require.NoError(b, f.Close())
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(m))), len(values))
}

// turns runs the implementations in turns, so that what else the machine does
// hits them alike, and reports the nanoseconds for each of n things and the ratio to mapped, both of the best run.
func turns(b *testing.B, n int, impls map[string]func()) {
	best := map[string]float64{}
	for b.Loop() {
		for name, run := range impls {
			start := cpuTime()
			run()
			ns := float64(cpuTime()-start) / float64(n)
			if old, ok := best[name]; !ok || ns < old {
				best[name] = ns
			}
		}
	}
	for name, ns := range best {
		b.ReportMetric(ns, name+"-ns")
		if name != "mapped" {
			b.ReportMetric(ns/best["mapped"], name+"/mapped")
		}
	}
}

// cpuTime returns the processor time of the process in nanoseconds.
func cpuTime() int64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return syscall.TimevalToNsec(r.Utime) + syscall.TimevalToNsec(r.Stime)
}

func BenchmarkPageRank(b *testing.B) {
	g, edges, _ := benchGraph(b)
	const iterations = 3
	turns(b, (1+iterations)*len(edges), map[string]func(){
		"mapped": func() { pageRankMapped(edges, g.Nodes(), iterations) },
		"views":  func() { PageRank(g.Edges.Views(0, g.Edges.Len()), g.Nodes(), iterations) },
		"all":    func() { pageRankAll(g, iterations) },
	})
	require.Equal(b, pageRankMapped(edges, g.Nodes(), iterations), PageRank(g.Edges.Views(0, g.Edges.Len()), g.Nodes(), iterations))
}

// pageRankMapped is PageRank over a slice.
func pageRankMapped(edges []Edge, nodes, iterations int) []float32 {
	rank, share, degree := make([]float32, nodes), make([]float32, nodes), make([]uint32, nodes)
	for _, e := range edges {
		degree[e.Source]++
	}
	for v := range rank {
		rank[v] = 1 / float32(nodes)
	}
	for range iterations {
		for v := range rank {
			share[v] = 0.85 * rank[v] / float32(max(degree[v], 1))
			rank[v] = 0.15 / float32(nodes)
		}
		for _, e := range edges {
			rank[e.Target] += share[e.Source]
		}
	}
	return rank
}

// pageRankAll is PageRank with a loop over single elements.
func pageRankAll(g *Graph, iterations int) []float32 {
	nodes := g.Nodes()
	rank, share, degree := make([]float32, nodes), make([]float32, nodes), make([]uint32, nodes)
	for _, e := range g.Edges.All() {
		degree[e.Source]++
	}
	for v := range rank {
		rank[v] = 1 / float32(nodes)
	}
	for range iterations {
		for v := range rank {
			share[v] = 0.85 * rank[v] / float32(max(degree[v], 1))
			rank[v] = 0.15 / float32(nodes)
		}
		for _, e := range g.Edges.All() {
			rank[e.Target] += share[e.Source]
		}
	}
	return rank
}

func BenchmarkComponents(b *testing.B) {
	g, edges, _ := benchGraph(b)
	slice := func(yield func(int, []Edge) bool) { yield(0, edges) }
	turns(b, len(edges), map[string]func(){
		"mapped": func() { Components(slice, g.Nodes()) },
		"views":  func() { Components(g.Edges.Views(0, g.Edges.Len()), g.Nodes()) },
	})
}

func BenchmarkBFS(b *testing.B) {
	g, edges, index := benchGraph(b)
	from, err := g.Busiest()
	require.NoError(b, err)
	count, countMapped := 0, 0
	turns(b, len(edges), map[string]func(){
		"mapped": func() { countMapped = bfsMapped(edges, index, from) },
		"views": func() {
			count = 0
			require.NoError(b, BFS(g.Edges, g.Index, from, func(_ int, level []uint32) bool {
				count += len(level)
				return true
			}))
		},
	})
	require.Equal(b, countMapped, count)
}

// bfsMapped is BFS over slices.
func bfsMapped(edges []Edge, index []uint64, from uint32) (reached int) {
	seen := make([]bool, len(index)-1)
	seen[from] = true
	level := []uint32{from}
	for len(level) > 0 {
		reached += len(level)
		var next []uint32
		for _, v := range level {
			for _, e := range edges[index[v]:index[v+1]] {
				if !seen[e.Target] {
					seen[e.Target] = true
					next = append(next, e.Target)
				}
			}
		}
		level = next
	}
	return reached
}

func BenchmarkNeighbours(b *testing.B) {
	for _, steps := range []int{1, 2} {
		b.Run(fmt.Sprintf("steps=%d", steps), func(b *testing.B) {
			g, edges, index := benchGraph(b)
			queries := map[int]int{1: 100_000, 2: 100}[steps]
			var from []uint32
			for k := uint64(0); len(from) < queries; k++ {
				if v := mix(k) % uint64(g.Nodes()); index[v] < index[v+1] {
					from = append(from, uint32(v))
				}
			}
			sum, sumMapped := 0, 0
			turns(b, queries, map[string]func(){
				"mapped": func() {
					sumMapped = 0
					for _, v := range from {
						sumMapped += len(neighboursMapped(edges, index, v, steps))
					}
				},
				"views": func() {
					sum = 0
					for _, v := range from {
						near, err := Neighbours(g.Edges, g.Index, v, steps)
						if err != nil {
							b.Fatal(err)
						}
						sum += len(near)
					}
				},
			})
			require.Equal(b, sumMapped, sum)
		})
	}
}

// neighboursMapped is Neighbours over slices.
func neighboursMapped(edges []Edge, index []uint64, v uint32, steps int) (all []uint32) {
	level := []uint32{v}
	for range steps {
		var next []uint32
		for _, u := range level {
			for _, e := range edges[index[u]:index[u+1]] {
				next = append(next, e.Target)
			}
		}
		level = sorted(next)
		all = sorted(append(all, level...))
	}
	return all
}

// BenchmarkSort makes a graph and sorts it; instead of a mapping it has slices.SortFunc, in memory, beside it.
func BenchmarkSort(b *testing.B) {
	r := RMAT{Nodes: benchNodes, Edges: benchEdges, Seed: 1}
	if testing.Short() {
		r.Nodes, r.Edges = r.Nodes>>8, r.Edges>>8
	}
	turns(b, r.Edges, map[string]func(){
		"mapped": func() {
			edges := make([]Edge, r.Edges)
			r.fill(edges, 0, r.labels())
			slices.SortFunc(edges, func(a, b Edge) int { return cmp.Compare(a.key(), b.key()) })
		},
		"list": func() {
			g := newGraph(b)
			require.NoError(b, g.Generate(b.Context(), r, quiet))
			require.NoError(b, g.Sort(b.Context(), quiet))
		},
	})
}
