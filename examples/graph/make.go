package main

import (
	"errors"
	"flag"
	"fmt"
	"runtime"
	"strings"

	"github.com/emd-go/emd"
	"github.com/emd-go/emd/examples/graph/emgraph"
)

func generate(flags *flag.FlagSet) action {
	var r emgraph.RMAT
	flags.IntVar(&r.Nodes, "nodes", 250_000, "how many `nodes`")
	flags.IntVar(&r.Edges, "edges", 4_000_000, "how many `edges`; each takes 8 bytes")
	flags.Uint64Var(&r.Seed, "seed", 1, "another `number` makes another graph")
	unsorted := unsortedFlag(flags)
	return func(c *call) error {
		if r.Nodes < 2 || r.Nodes > emgraph.MaxNodes || r.Edges < 1 {
			return usageError{fmt.Sprintf("%d nodes and %d edges: it needs an edge, and from 2 to 4,294,967,296 nodes", r.Nodes, r.Edges)}
		}
		return c.fill(*unsorted, "generating", "generated", func(g *emgraph.Graph, p emgraph.Progress) error {
			return g.Generate(c.ctx, r, p)
		})
	}
}

const importMore = `Each line has the names of two nodes, between blanks, tabs, commas or semicolons.
Empty lines, those that begin with # or %, and further columns are left out.`

func importFiles(flags *flag.FlagSet) action {
	var format emgraph.TextFormat
	flags.BoolVar(&format.Numbered, "numbered", false, "nodes are called 0, 1, 2...; faster, and takes less space, than names")
	flags.BoolVar(&format.Undirected, "undirected", false, "each line is an edge in both directions")
	kinds := flags.String("kinds", "", "only lines whose third column is one of these `words`, separated by commas")
	unsorted := unsortedFlag(flags)
	return func(c *call) error {
		if *kinds != "" {
			format.Kinds = strings.Split(*kinds, ",")
		}
		return c.fill(*unsorted, "reading", "read", func(g *emgraph.Graph, p emgraph.Progress) error {
			return g.Import(c.ctx, format, c.args, p)
		})
	}
}

func unsortedFlag(flags *flag.FlagSet) *bool {
	return flags.Bool("unsorted", false, "leave the edges as they come: enough for pagerank, components, degrees and plot")
}

// fill makes a graph from what add gives it, and sorts it.
func (c *call) fill(unsorted bool, doing, done string, add func(*emgraph.Graph, emgraph.Progress) error) (err error) {
	g, err := emgraph.Create(c.db)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	t := newTask(c.stderr, doing)
	if err := add(g, t.show); err != nil {
		return t.failed(err, "the graph was not made")
	}
	t.finish(done + " " + size(g))
	if unsorted {
		return nil
	}
	return c.sort(g)
}

func sortEdges(*flag.FlagSet) action {
	return func(c *call) (err error) {
		g, err := emgraph.OpenForChange(c.db)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, g.Close()) }()
		if g.Sorted() {
			fmt.Fprintln(c.stderr, "the edges are sorted already")
			return nil
		}
		return c.sort(g)
	}
}

func (c *call) sort(g *emgraph.Graph) error {
	t := newTask(c.stderr, "sorting")
	if err := g.Sort(c.ctx, t.show); err != nil {
		return t.failed(err, "the edges are all there, but not sorted: graph sort does the rest")
	}
	t.finish("sorted " + plural(g.Edges.Len(), "edge"))
	return nil
}

func size(g *emgraph.Graph) string {
	return plural(g.Nodes(), "node") + ", " + plural(g.Edges.Len(), "edge")
}

func info(*flag.FlagSet) action {
	return func(c *call) error {
		return c.ask(false, func(g *emgraph.Graph) error {
			sorted := "yes"
			if !g.Sorted() {
				sorted = "no"
			}
			rows := newTable(c.stdout, "nodes", grouped(g.Nodes()))
			rows.add("edges", grouped(g.Edges.Len()))
			rows.add("sorted", sorted)
			for in := range g.Arena.Containers() {
				rows.add(in.Name, sizeOf(in.Bytes))
			}
			stats := g.Arena.Stats()
			rows.add("file", sizeOf(stats.File))
			rows.add("free", sizeOf(stats.Free))
			return rows.print()
		})
	}
}

// ask opens the graph for reading and runs fn, which fails if a loop over the
// file did.
func (c *call) ask(sorted bool, fn func(g *emgraph.Graph) error) (err error) {
	g, err := emgraph.Open(c.db)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	switch {
	case g.Nodes() == 0:
		return fmt.Errorf("%s: %w", c.db, emgraph.ErrForeign)
	case sorted && !g.Sorted():
		return fmt.Errorf("%s: %w", c.db, emgraph.ErrUnsorted)
	}
	return g.Arena.View(func() error { return guard(func() error { return fn(g) }) })
}

// guard makes the panic about an index out of range an error: the edges and
// the index are input, which a bad disk may have changed.
func guard(fn func() error) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case runtime.Error:
			if !strings.Contains(p.Error(), "out of range") {
				panic(p)
			}
			err = fmt.Errorf("%w: an edge leads out of the graph (%v)", emd.ErrCorrupt, p)
		default:
			panic(p)
		}
	}()
	return fn()
}
