package emgraph

import (
	"context"
	"fmt"
	"math/bits"
	"runtime"
	"sync"
)

// An RMAT is a random graph whose degrees are as unequal as those of real
// ones: R-MAT (Chakrabarti, Zhan, Faloutsos: R-MAT: A Recursive Model for Graph
// Mining, SIAM SDM 2004) with a, b, c, d of .57, .19, .19, .05. The same three
// numbers always give the same edges, in the same order. Some occur twice;
// none leads from a node to itself.
type RMAT struct {
	Nodes, Edges int
	Seed         uint64
}

// Generate adds the edges of r to a graph that has none.
func (g *Graph) Generate(ctx context.Context, r RMAT, progress Progress) error {
	if r.Nodes < 2 || r.Nodes > MaxNodes || r.Edges < 1 {
		return fmt.Errorf("a graph of %d nodes and %d edges cannot be made: it needs 2 to %d nodes and an edge", r.Nodes, r.Edges, MaxNodes)
	}
	return g.fill(func() (int, error) {
		labels := r.labels()
		batch := make([]Edge, min(r.Edges, 1<<16))
		for done := 0; done < r.Edges; done += len(batch) {
			progress(int64(done), int64(r.Edges))
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			batch = batch[:min(len(batch), r.Edges-done)]
			r.fill(batch, done, labels)
			if err := g.Edges.Append(batch...); err != nil {
				return 0, err
			}
		}
		return r.Nodes, nil
	})
}

// fill sets batch to the edges from number first on, with all processors.
func (r RMAT) fill(batch []Edge, first int, labels []uint32) {
	var all sync.WaitGroup
	parts := runtime.GOMAXPROCS(0)
	for k := range parts {
		all.Go(func() {
			for i := len(batch) * k / parts; i < len(batch)*(k+1)/parts; i++ {
				s, t := r.edge(uint64(first + i))
				batch[i] = Edge{labels[s], labels[t]}
			}
		})
	}
	all.Wait()
}

// edge returns the ends of edge i, as places in the matrix of all pairs. Each
// draw halves the part of the matrix where the edge lies, in both directions;
// outside of the graph, and on the diagonal, it is drawn again.
func (r RMAT) edge(i uint64) (s, t uint32) {
	state := mix(r.Seed*golden + i + 1)
	for {
		var source, target, word uint64
		for level := range bits.Len64(uint64(r.Nodes - 1)) {
			draw := word >> 32
			if level%2 == 0 { // a word is good for two draws
				state += golden
				word = mix(state)
				draw = word & (1<<32 - 1)
			}
			// Sums of comparisons rather than branches, which would be
			// mispredicted at each level.
			a, b, c := atLeast(draw, upToA), atLeast(draw, upToB), atLeast(draw, upToC)
			source, target = source<<1|b, target<<1|(a-b+c)
		}
		if n := uint64(r.Nodes); source < n && target < n && source != target {
			return uint32(source), uint32(target)
		}
	}
}

// The probabilities of the quarters a, a or b, and a, b or c, of 2^32.
const (
	upToA = (1 << 32) * 57 / 100
	upToB = upToA + (1<<32)*19/100
	upToC = upToB + (1<<32)*19/100
)

// atLeast returns 1 if draw >= bound and 0 otherwise; both are below 2^63.
func atLeast(draw, bound uint64) uint64 { return 1 - (draw-bound)>>63 }

// labels returns the numbers of the nodes: a random permutation, as the nodes
// of many edges would be neighbours otherwise.
func (r RMAT) labels() []uint32 {
	labels := make([]uint32, r.Nodes)
	for v := range labels {
		labels[v] = uint32(v)
	}
	seed := mix(r.Seed + golden)
	for i := uint64(r.Nodes - 1); i > 0; i-- {
		j, _ := bits.Mul64(mix(seed+i*golden), i+1)
		labels[i], labels[j] = labels[j], labels[i]
	}
	return labels
}

// golden is 2^64 divided by the golden ratio, the step of splitmix64.
const golden = 0x9e3779b97f4a7c15

// mix is the output function of splitmix64 (Steele, Lea, Flood: Fast
// Splittable Pseudorandom Number Generators, OOPSLA 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
