package main

import (
	"bytes"
	"context"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// graph runs a command line, in which %db is the file of the graph.
func graph(t *testing.T, db string, line string) (stdout, stderr string, code int) {
	t.Helper()
	return graphContext(t.Context(), db, line)
}

func graphContext(ctx context.Context, db, line string) (stdout, stderr string, code int) {
	var args []string
	for _, arg := range strings.Fields(line) {
		args = append(args, strings.ReplaceAll(arg, "%db", db))
	}
	var out, errs bytes.Buffer
	code = exitCode(run(ctx, args, &out, &errs), &errs)
	return out.String(), errs.String(), code
}

// newDB returns the file of a graph that is made by a command line.
func newDB(t *testing.T, line string) string {
	db := filepath.Join(t.TempDir(), "g.emd")
	_, stderr, code := graph(t, db, line)
	require.Zero(t, code, stderr)
	return db
}

func importText(t *testing.T, flags, text string) string {
	path := filepath.Join(t.TempDir(), "edges.txt")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return newDB(t, "import -db %db "+flags+" "+path)
}

// A function that branches, meets again, and loops: the flow graph of
// if/else before a for.
const flow = "entry then B\nentry else F\nthen join J\nelse join F\njoin loop F\nloop body B\nbody loop J\nloop exit F\nother exit C\n"

func TestCommands(t *testing.T) {
	random := newDB(t, "generate -db %db -nodes 1000 -edges 10000")
	flowDB := importText(t, "", flow)
	for _, c := range []struct{ db, line, want string }{
		{random, "pagerank -db %db -top 2", "   rank / mean   node\n         35.19   387\n         14.51   848\n"},
		{random, "components -db %db -top 2", "177 components\n   nodes   with node\n"},
		{random, "bfs -db %db", "from 387\n0 edges away: 1 node\n1 edge away: 275 nodes\n"},
		{random, "info -db %db", "     nodes   1,000\n     edges   10,000\n    sorted   yes\n"},
		{random, "degrees -db %db", "          edges   nodes, outgoing   nodes, incoming   \n              0               288               270   \n"},
		{flowDB, "bfs -db %db join", "from join\n0 edges away: 1 node\n1 edge away: 1 node\n2 edges away: 2 nodes\ntogether: 4 of 8\n"},
		{flowDB, "neighbours -db %db entry", "then\nelse\n"},
		{flowDB, "neighbours -db %db -steps 2 entry", "then\nelse\njoin\n"},
		{flowDB, "dominators -db %db -of body entry", "entry\njoin\nloop\nbody\n"},
		{flowDB, "dominators -db %db -top 3 entry", "7 nodes reached from entry\n   dominates   node\n           6   entry\n           3   join\n           2   loop\n"},
	} {
		stdout, stderr, code := graph(t, c.db, c.line)
		assert.Zero(t, code, "%s: %s", c.line, stderr)
		assert.True(t, strings.HasPrefix(stdout, c.want), "%s prints\n%s", c.line, stdout)
	}
}

func TestImportFlags(t *testing.T) {
	stdout, _, _ := graph(t, importText(t, "-kinds F,J", flow), "info -db %db")
	assert.Contains(t, stdout, "edges   6\n")
	stdout, _, _ = graph(t, importText(t, "-undirected -unsorted", "a b\nb c"), "info -db %db")
	assert.Contains(t, stdout, "edges   4\n    sorted   no\n")
	stdout, _, _ = graph(t, importText(t, "-numbered", "0 9"), "info -db %db")
	assert.Contains(t, stdout, "nodes   10\n")
}

// What goes wrong is explained, with what to do about it, and a status for scripts.
func TestErrors(t *testing.T) {
	db := newDB(t, "generate -db %db -nodes 100 -edges 300 -unsorted")
	sorted := importText(t, "", flow)
	noGraph := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(noGraph, []byte(strings.Repeat("This is no graph. ", 10_000)), 0o600))
	for _, c := range []struct {
		db, line string
		code     int
		says     []string
	}{
		{db, "", 2, []string{"usage: graph command"}},
		{db, "fly", 2, []string{`no command "fly"`, "graph help"}},
		{db, "bfs -fast", 2, []string{"graph bfs: flag provided but not defined: -fast", "graph help bfs"}},
		{db, "import -db %db", 2, []string{"it needs file..."}},
		{db, "info -db %db x", 2, []string{`does not take "x"`}},
		{db, "generate -db %db -nodes 1", 2, []string{"from 2 to 4,294,967,296 nodes"}},
		{db, "pagerank -db %db -iterations 0", 2, []string{"at least 1"}},
		{db, "neighbours -db %db -steps 3", 2, []string{"graph bfs goes further"}},
		{db, "plot -db %db -o g.gif", 2, []string{".png or .svg"}},
		{db, "bfs -db %db", 1, []string{"its edges are not sorted", "graph sort -db " + db}},
		{db, "generate -db %db", 1, []string{"holds a graph already", "another file with -db"}},
		{db + "x", "info -db %db", 1, []string{"no such file", "graph generate"}},
		{noGraph, "info -db %db", 1, []string{"-db"}},
		{sorted, "bfs -db %db nobody", 1, []string{`no such node: "nobody"`}},
		{sorted, "dominators -db %db -of other entry", 1, []string{"no path leads from entry to other"}},
		{filepath.Join(t.TempDir(), "new"), "import -db %db missing.txt", 1, []string{"missing.txt", "no such file"}},
	} {
		_, stderr, code := graph(t, c.db, c.line)
		assert.Equal(t, c.code, code, "%s: %s", c.line, stderr)
		for _, says := range c.says {
			assert.Contains(t, stderr, says, c.line)
		}
	}
}

func TestSortLater(t *testing.T) {
	db := newDB(t, "generate -db %db -nodes 100 -edges 300 -unsorted")
	_, stderr, code := graph(t, db, "sort -db %db")
	require.Zero(t, code)
	assert.Contains(t, stderr, "sorted 300 edges in ")
	_, stderr, _ = graph(t, db, "sort -db %db")
	assert.Contains(t, stderr, "sorted already")
	_, _, code = graph(t, db, "bfs -db %db 0")
	assert.Zero(t, code)
}

func TestHelp(t *testing.T) {
	stdout, _, code := graph(t, "", "help")
	require.Zero(t, code)
	for _, cmd := range commands {
		assert.Contains(t, stdout, "\n  "+cmd.name+" ")
		help, _, code := graph(t, "", "help "+cmd.name)
		assert.Zero(t, code)
		assert.Contains(t, help, "usage: graph "+cmd.name+" [flags]")
		assert.Contains(t, help, "-db file")
		again, _, _ := graph(t, "", cmd.name+" -help")
		assert.Equal(t, help, again)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	db := filepath.Join(t.TempDir(), "g.emd")
	_, stderr, code := graphContext(ctx, db, "generate -db %db")
	assert.Equal(t, 130, code)
	assert.Equal(t, "graph: interrupted: the graph was not made\n", stderr)
	_, stderr, code = graph(t, db, "generate -db %db -nodes 100 -edges 300 -unsorted")
	require.Zero(t, code, stderr)
	_, stderr, code = graphContext(ctx, db, "sort -db %db")
	assert.Equal(t, 130, code)
	assert.Contains(t, stderr, "graph sort does the rest")
	for _, line := range []string{"pagerank", "components", "degrees", "plot"} {
		stdout, _, code := graphContext(ctx, db, line+" -db %db")
		assert.Equal(t, 130, code, line)
		assert.Empty(t, stdout)
	}
}

func TestPlot(t *testing.T) {
	for name, db := range map[string]string{
		"random":   newDB(t, "generate -db %db -nodes 1000 -edges 10000"),
		"one edge": importText(t, "", "a a"),
	} {
		file := filepath.Join(t.TempDir(), "plot.")
		_, stderr, code := graph(t, db, "plot -db %db -o "+file+"svg")
		require.Zero(t, code, "%s: %s", name, stderr)
		svg, err := os.ReadFile(file + "svg")
		require.NoError(t, err)
		for _, text := range []string{"outgoing", "incoming", "PageRank after 10 iterations", "edges of a node", ">10<"} {
			assert.Contains(t, string(svg), text, name)
		}
		assert.NotContains(t, string(svg), "NaN", name)
		_, stderr, code = graph(t, db, "plot -db %db -iterations 1 -o "+file+"PNG")
		require.Zero(t, code, "%s: %s", name, stderr)
		f, err := os.Open(file + "PNG")
		require.NoError(t, err)
		image, err := png.Decode(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		assert.Greater(t, image.Bounds().Dx(), 1000, name)
		left, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".plot-*"))
		require.NoError(t, err)
		assert.Empty(t, left)
	}
}

func TestAtLeast(t *testing.T) {
	points := atLeast([]uint32{10, 0, 1, 100, 10, 1, 1, 0, 0, 0})
	require.Len(t, points, 3)
	for i, want := range [][2]float64{{0, 0.778}, {1, 0.477}, {2, 0}} {
		assert.InDelta(t, want[0], points[i].X, 1e-3)
		assert.InDelta(t, want[1], points[i].Y, 1e-3)
	}
	assert.Empty(t, atLeast([]float32{0}))
}

func TestProgress(t *testing.T) {
	var b bytes.Buffer
	task := newTask(&b, "sorting")
	task.show(1, 4)
	assert.Empty(t, b.String(), "not at once")
	task.every = 0
	task.show(1, 4)
	assert.Regexp(t, `^sorting: 25%, 0s left\n$`, b.String())
	task.terminal = true
	b.Reset()
	task.show(2, 4)
	task.show(1234, 0)
	task.finish("sorted 4 edges")
	assert.Regexp(t, `^\r\rsorting: 50%, 0s left\r +\rsorting: 1,234\r +\rsorted 4 edges in .*s\n$`, b.String())
}
