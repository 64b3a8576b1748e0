package emgraph

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/emd-go/emd"
)

func quiet(int64, int64) {}

func newGraph(t testing.TB) *Graph {
	g, err := Create(filepath.Join(t.TempDir(), "graph.emd"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return g
}

// sum returns the checksum of the edges as two little-endian words each.
func sum(t *testing.T, g *Graph) string {
	h := sha256.New()
	for _, run := range g.Edges.Views(0, g.Edges.Len()) {
		require.NoError(t, binary.Write(h, binary.LittleEndian, run))
	}
	require.NoError(t, g.Edges.Err())
	return hex.EncodeToString(h.Sum(nil))
}

// The figures are those of another implementation, in Go and in C.
func TestCheckValues(t *testing.T) {
	g := newGraph(t)
	r := RMAT{Nodes: 1000, Edges: 10_000, Seed: 1}
	require.NoError(t, g.Generate(t.Context(), r, quiet))
	require.Equal(t, "c7baf4bc444d7a1fee5b69131211cc7715c9e12d39f9eae3ac5725c239aa9ac1", sum(t, g))
	require.False(t, g.Sorted())

	var xor uint64
	for _, e := range g.Edges.All() {
		xor += uint64(e.Source ^ e.Target)
	}
	assert.EqualValues(t, 5_114_820, xor)
	checkRanks(t, g)
	checkComponents(t, g)

	require.NoError(t, g.Sort(t.Context(), quiet))
	require.Equal(t, "c5107a42f603b89d616a40b07ce93ebd5e4494b458151eb7ee816442f917827e", sum(t, g))
	require.True(t, g.Sorted())
	checkRanks(t, g)
	checkComponents(t, g)

	from, err := g.Busiest()
	require.NoError(t, err)
	assert.EqualValues(t, 387, from)
	out, _ := Degrees(g.Runs(t.Context(), 1, quiet), g.Nodes())
	reached, scanned, depth := 0, 0, 0
	require.NoError(t, BFS(g.Edges, g.Index, from, func(d int, level []uint32) bool {
		depth = d
		reached += len(level)
		for _, v := range level {
			scanned += int(out[v])
		}
		return true
	}))
	assert.Equal(t, []int{729, 9848, 4}, []int{reached, scanned, depth})
}

func checkRanks(t *testing.T, g *Graph) {
	rank := PageRank(g.Runs(t.Context(), 11, quiet), g.Nodes(), 10)
	total, top := 0.0, 0
	for v, x := range rank {
		total += float64(x)
		if x > rank[top] {
			top = v
		}
	}
	assert.InDelta(t, 0.711152, total, 1e-6)
	assert.Equal(t, 387, top)
	assert.InDelta(t, 35.19, rank[top]*float32(g.Nodes()), 0.005)
}

func checkComponents(t *testing.T, g *Graph) {
	component := Components(g.Runs(t.Context(), 1, quiet), g.Nodes())
	slices.Sort(component)
	assert.Len(t, slices.Compact(component), 177)
}

// Small graphs of all kinds against the definitions.
func TestAgainstDefinitions(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			nodes := 2 + r.IntN(25)
			edges := make([]Edge, 1+r.IntN(3*nodes))
			for i := range edges {
				edges[i] = Edge{uint32(r.IntN(nodes)), uint32(r.IntN(nodes))}
			}
			g := newGraph(t)
			require.NoError(t, g.fill(func() (int, error) { return nodes, g.Edges.Append(edges...) }))
			require.NoError(t, g.Sort(t.Context(), quiet))
			root := uint32(r.IntN(nodes))
			away := distances(edges, nodes, root, None)

			next := 0
			require.NoError(t, BFS(g.Edges, g.Index, root, func(depth int, level []uint32) bool {
				require.Equal(t, next, depth)
				next++
				slices.Sort(level)
				require.Equal(t, at(away, func(d int) bool { return d == depth }), level)
				return true
			}))
			require.Equal(t, slices.Max(away)+1, next)

			for steps := 1; steps <= 3; steps++ {
				near, err := Neighbours(g.Edges, g.Index, root, steps)
				require.NoError(t, err)
				// Edges lead to the root itself only round a circle.
				without := slices.DeleteFunc(slices.Clone(near), func(v uint32) bool { return v == root })
				require.ElementsMatch(t, at(away, func(d int) bool { return d > 0 && d <= steps }), without)
				circle := slices.ContainsFunc(edges, func(e Edge) bool { return e.Target == root && away[e.Source] >= 0 && away[e.Source] < steps })
				require.Equal(t, circle, slices.Contains(near, root))
			}

			dominator, err := Dominators(t.Context(), g.Edges, g.Index, root, quiet)
			require.NoError(t, err)
			below := make([]int, nodes)
			for v := range uint32(nodes) {
				require.Equal(t, away[v] < 0, dominator[v] == None)
				if away[v] < 0 {
					continue
				}
				for _, d := range dominators(edges, nodes, root, v) {
					below[d]++
				}
				if v != root {
					chain := dominators(edges, nodes, root, v)
					require.Contains(t, chain, dominator[v])
					require.Len(t, chain, len(dominators(edges, nodes, root, dominator[v]))+1)
				}
			}
			require.Equal(t, root, dominator[root])
			require.Equal(t, below, Dominated(dominator))

			both := slices.Clone(edges)
			for _, e := range edges {
				both = append(both, Edge{e.Target, e.Source})
			}
			for v, c := range Components(g.Runs(t.Context(), 1, quiet), nodes) {
				require.Equal(t, slices.Min(at(distances(both, nodes, uint32(v), None), func(d int) bool { return d >= 0 })), c)
			}
		})
	}
}

// at returns the nodes whose distance is as wanted.
func at(away []int, wanted func(int) bool) (nodes []uint32) {
	for v, d := range away {
		if wanted(d) {
			nodes = append(nodes, uint32(v))
		}
	}
	return nodes
}

// distances returns how many edges each node is away from one, without passing
// another; -1 is no path.
func distances(edges []Edge, nodes int, from, without uint32) []int {
	away := make([]int, nodes)
	for v := range away {
		away[v] = -1
	}
	if from == without {
		return away
	}
	away[from] = 0
	for d := 0; d < nodes; d++ {
		for _, e := range edges {
			if away[e.Source] == d && away[e.Target] < 0 && e.Target != without {
				away[e.Target] = d + 1
			}
		}
	}
	return away
}

// dominators returns the nodes without which v is not reached, itself among them.
func dominators(edges []Edge, nodes int, root, v uint32) (all []uint32) {
	for d := range uint32(nodes) {
		if distances(edges, nodes, root, d)[v] < 0 {
			all = append(all, d)
		}
	}
	return all
}

func TestDistribution(t *testing.T) {
	assert.Equal(t, []int{1, 2, 0, 1}, Distribution([]uint32{1, 3, 0, 1}))
}

func write(t *testing.T, name, text string) string {
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func zipped(t *testing.T, text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}

// named returns the edges of a graph by the names of the nodes.
func named(t *testing.T, g *Graph) (edges []string) {
	for _, e := range g.Edges.All() {
		s, err := g.Name(e.Source)
		require.NoError(t, err)
		d, err := g.Name(e.Target)
		require.NoError(t, err)
		edges = append(edges, s+">"+d)
	}
	require.NoError(t, g.Edges.Err())
	return edges
}

func TestImport(t *testing.T) {
	const text = "# a comment\n% another\n\na b F\nb\tc,J\r\n c;a ;C;x\na a F"
	for name, c := range map[string]struct {
		format TextFormat
		text   string
		nodes  int
		want   []string
	}{
		"names":      {TextFormat{}, text, 3, []string{"a>b", "b>c", "c>a", "a>a"}},
		"gzip":       {TextFormat{}, zipped(t, text), 3, []string{"a>b", "b>c", "c>a", "a>a"}},
		"undirected": {TextFormat{Undirected: true}, "a b\nc c", 3, []string{"a>b", "b>a", "c>c"}},
		"kinds":      {TextFormat{Kinds: []string{"F", "J"}}, text, 3, []string{"a>b", "b>c", "a>a"}},
		"numbered":   {TextFormat{Numbered: true}, "0 7\n3 0", 8, []string{"0>7", "3>0"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGraph(t)
			path := write(t, "edges", c.text)
			var done, total int64
			require.NoError(t, g.Import(t.Context(), c.format, []string{path}, func(d, all int64) { done, total = d, all }))
			assert.Equal(t, c.nodes, g.Nodes())
			assert.Equal(t, c.want, named(t, g))
			assert.Equal(t, int64(len(c.text)), total)
			assert.Equal(t, total, done)
			for v := range uint32(c.nodes) {
				name, err := g.Name(v)
				require.NoError(t, err)
				again, err := g.Number(name)
				require.NoError(t, err)
				assert.Equal(t, v, again)
			}
			_, err := g.Number("nobody")
			assert.ErrorIs(t, err, ErrNoNode)
			assert.ErrorIs(t, g.Import(t.Context(), c.format, []string{path}, quiet), ErrExists)
		})
	}
}

func TestImportSeveral(t *testing.T) {
	g := newGraph(t)
	require.NoError(t, g.Import(t.Context(), TextFormat{}, []string{write(t, "1", "a b"), write(t, "2", zipped(t, "b c"))}, quiet))
	assert.Equal(t, []string{"a>b", "b>c"}, named(t, g))
}

// A graph that could not be read is not there at all, and another can take its place.
func TestImportErrors(t *testing.T) {
	whole := zipped(t, strings.Repeat("some thing\n", 10_000))
	for name, c := range map[string]struct {
		format TextFormat
		text   string
		says   string
	}{
		"one word":   {TextFormat{}, "a b\nc\n", `edges:2: not a list of edges: "c" is one word`},
		"no number":  {TextFormat{Numbered: true}, "1 2\n3 x", `edges:2: not a list of edges: "x" is no number`},
		"large":      {TextFormat{Numbered: true}, "1 4294967296", "is no number from 0 to 4294967295"},
		"long line":  {TextFormat{}, "a b\n" + strings.Repeat("x", 1<<17), "edges:2: not a list of edges: a line of more than"},
		"cut off":    {TextFormat{}, whole[:len(whole)/2], "ends too early"},
		"no gzip":    {TextFormat{}, "\x1f\x8b and then nothing like it", "edges: gzip: invalid header"},
		"no edges":   {TextFormat{}, "# nothing\n", "no edges"},
		"no kinds":   {TextFormat{Kinds: []string{"F"}}, "a b\na b G", "no edges"},
		"long names": {TextFormat{}, strings.Repeat("x", 60_000) + " b\nc", `edges:2: not a list of edges: "c" is one word`},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGraph(t)
			err := g.Import(t.Context(), c.format, []string{write(t, "edges", c.text)}, quiet)
			require.ErrorContains(t, err, c.says)
			assert.Zero(t, g.Nodes())
			assert.Zero(t, g.Edges.Len())
			require.NoError(t, g.Import(t.Context(), TextFormat{}, []string{write(t, "good", "a b")}, quiet))
			assert.Equal(t, []string{"a>b"}, named(t, g))
		})
	}
	assert.ErrorIs(t, newGraph(t).Import(t.Context(), TextFormat{}, []string{"missing"}, quiet), os.ErrNotExist)
}

// Whoever interrupts something finds the graph as it was before it.
func TestInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "graph.emd")
	r := RMAT{Nodes: 5000, Edges: 200_000, Seed: 3}
	g, err := Create(path)
	require.NoError(t, err)
	reopen := func() {
		require.NoError(t, g.Close())
		g, err = OpenForChange(path)
		require.NoError(t, err)
	}
	interrupt := func(after int) (context.Context, Progress) {
		ctx, cancel := context.WithCancel(t.Context())
		return ctx, func(int64, int64) {
			if after--; after < 0 {
				cancel()
			}
		}
	}
	ctx, progress := interrupt(2)
	require.ErrorIs(t, g.Generate(ctx, r, progress), context.Canceled)
	reopen()
	require.Zero(t, g.Nodes())
	require.Zero(t, g.Edges.Len())
	require.NoError(t, g.Generate(t.Context(), r, quiet))
	before := sum(t, g)

	ctx, progress = interrupt(0)
	require.ErrorIs(t, g.Sort(ctx, progress), context.Canceled)
	reopen()
	require.Equal(t, before, sum(t, g))
	require.False(t, g.Sorted())

	ctx, progress = interrupt(0)
	require.ErrorIs(t, g.Sort(ctx, func(done, total int64) {
		if total == int64(r.Edges) { // of the index
			progress(done, total)
		}
	}), context.Canceled)
	reopen()
	require.False(t, g.Sorted())
	require.NoError(t, g.Sort(t.Context(), quiet))
	reopen()
	require.True(t, g.Sorted())

	for range g.Runs(func() context.Context { ctx, _ := interrupt(0); return ctx }(), 1, quiet) {
		break
	}
	ctx, progress = interrupt(1)
	runs := 0
	for range g.Runs(ctx, 3, progress) {
		runs++
	}
	require.Equal(t, 1, runs)
	require.NoError(t, g.Arena.Check(t.Context(), nil))
	require.NoError(t, g.Close())
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(filepath.Join(dir, "missing"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = OpenForChange(filepath.Join(dir, "missing"))
	assert.ErrorIs(t, err, os.ErrNotExist)

	path := filepath.Join(dir, "words")
	l, err := emd.OpenList[int](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	_, err = Open(path)
	assert.ErrorIs(t, err, ErrForeign)
	_, err = Create(path)
	assert.ErrorIs(t, err, ErrForeign)

	path = filepath.Join(dir, "graph")
	g, err := Create(path)
	require.NoError(t, err)
	require.NoError(t, g.Generate(t.Context(), RMAT{Nodes: 10, Edges: 20}, quiet))
	require.NoError(t, g.Close())
	_, err = Create(path)
	assert.ErrorIs(t, err, ErrExists)
	g, err = Open(path)
	require.NoError(t, err)
	assert.Equal(t, 10, g.Nodes())
	assert.ErrorIs(t, g.Sort(t.Context(), quiet), emd.ErrReadOnly)
	require.NoError(t, g.Close())
}

func TestGenerateRefuses(t *testing.T) {
	for _, r := range []RMAT{{Nodes: 1, Edges: 1}, {Nodes: 2}, {Nodes: MaxNodes + 1, Edges: 1}} {
		assert.ErrorContains(t, newGraph(t).Generate(t.Context(), r, quiet), "cannot be made")
	}
}

// Real graphs, where they are: in the folder shared/data of one above.
func TestRealGraphs(t *testing.T) {
	data := sharedData(t)
	for file, want := range map[string]struct {
		nodes, edges, components int
	}{
		"facebook-combined.txt.gz": {4_039, 88_234, 1},
		"email-enron.txt.gz":       {36_692, 183_831, 1065},
		"cit-hep-ph.txt.gz":        {34_546, 421_578, 61},
		"soc-slashdot0902.txt.gz":  {82_168, 948_464, 1},
		"gocompile-cfg.txt.gz":     {461_735, 825_658, 598},
	} {
		t.Run(file, func(t *testing.T) {
			g := newGraph(t)
			require.NoError(t, g.Import(t.Context(), TextFormat{}, []string{filepath.Join(data, file)}, quiet))
			assert.Equal(t, want.nodes, g.Nodes())
			assert.Equal(t, want.edges, g.Edges.Len())
			component := Components(g.Runs(t.Context(), 1, quiet), g.Nodes())
			slices.Sort(component)
			assert.Len(t, slices.Compact(component), want.components)
		})
	}
}

func sharedData(t *testing.T) string {
	dir, err := os.Getwd()
	require.NoError(t, err)
	for {
		data := filepath.Join(dir, "shared", "data")
		if _, err := os.Stat(data); err == nil {
			return data
		}
		if dir == filepath.Dir(dir) {
			t.Skip("there is no folder shared/data above this one")
		}
		dir = filepath.Dir(dir)
	}
}
