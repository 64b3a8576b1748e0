package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/emd-go/emd/examples/graph/emgraph"
)

func degrees(*flag.FlagSet) action {
	return func(c *call) error {
		return c.ask(false, func(g *emgraph.Graph) error {
			t := newTask(c.stderr, "counting")
			out, in := emgraph.Degrees(g.Runs(c.ctx, 1, t.show), g.Nodes())
			t.end()
			if err := c.ctx.Err(); err != nil {
				return err
			}
			outs, ins := byOctave(out), byOctave(in)
			rows := newTable(c.stdout, "edges", "nodes, outgoing", "nodes, incoming", "")
			for k := range max(len(outs), len(ins)) {
				rows.add(octave(k), grouped(at(outs, k)), grouped(at(ins, k)), "")
			}
			rows.add("largest", grouped(int(slices.Max(out))), grouped(int(slices.Max(in))), "")
			return rows.print()
		})
	}
}

// byOctave counts degrees: 0, 1, 2 to 3, 4 to 7 and so on.
func byOctave(degrees []uint32) (nodes []int) {
	nodes = make([]int, bits.Len32(slices.Max(degrees))+1)
	for _, d := range degrees {
		nodes[bits.Len32(d)]++
	}
	return nodes
}

// octave returns the name of the degrees of number k in byOctave.
func octave(k int) string {
	if k < 2 {
		return fmt.Sprint(k)
	}
	return grouped(1<<(k-1)) + " to " + grouped(1<<k-1)
}

func at(counts []int, k int) int {
	if k < len(counts) {
		return counts[k]
	}
	return 0
}

func pageRank(flags *flag.FlagSet) action {
	iterations := flags.Int("iterations", 10, "how `often` to pass ranks on; more are more exact")
	top := topFlag(flags)
	return func(c *call) error {
		if *iterations < 1 {
			return usageError{"-iterations must be at least 1"}
		}
		return c.ask(false, func(g *emgraph.Graph) error {
			rank, err := c.ranks(g, *iterations)
			if err != nil {
				return err
			}
			rows := newTable(c.stdout, "rank / mean", "node")
			for _, v := range largest(rank, *top) {
				name, err := g.Name(v)
				if err != nil {
					return err
				}
				rows.add(fmt.Sprintf("%.2f", rank[v]*float32(len(rank))), name)
			}
			return rows.print()
		})
	}
}

// ranks returns the PageRank of all nodes.
func (c *call) ranks(g *emgraph.Graph, iterations int) ([]float32, error) {
	t := newTask(c.stderr, "reading edges")
	rank := emgraph.PageRank(g.Runs(c.ctx, 1+iterations, t.show), g.Nodes(), iterations)
	t.end()
	return rank, c.ctx.Err()
}

func topFlag(flags *flag.FlagSet) *int {
	return flags.Int("top", 10, "print so `many`")
}

// largest returns the indexes of the k largest values, the largest first.
func largest[T cmp.Ordered](values []T, k int) []uint32 {
	byValue := func(a, b uint32) int {
		return cmp.Or(cmp.Compare(values[b], values[a]), cmp.Compare(a, b))
	}
	var top []uint32
	for v := range values {
		i, _ := slices.BinarySearchFunc(top, uint32(v), byValue)
		if i < k {
			top = slices.Insert(top, i, uint32(v))
			top = top[:min(len(top), k)]
		}
	}
	return top
}

func components(flags *flag.FlagSet) action {
	top := topFlag(flags)
	return func(c *call) error {
		return c.ask(false, func(g *emgraph.Graph) error {
			t := newTask(c.stderr, "reading edges")
			component := emgraph.Components(g.Runs(c.ctx, 1, t.show), g.Nodes())
			t.end()
			if err := c.ctx.Err(); err != nil {
				return err
			}
			size := make([]int, g.Nodes())
			count := 0
			for v, of := range component {
				size[of]++
				if int(of) == v {
					count++
				}
			}
			rows := newTable(c.stdout, "nodes", "with node")
			for _, v := range largest(size, min(*top, count)) {
				name, err := g.Name(v)
				if err != nil {
					return err
				}
				rows.add(grouped(size[v]), name)
			}
			fmt.Fprintln(c.stdout, plural(count, "component"))
			return rows.print()
		})
	}
}

func bfs(*flag.FlagSet) action {
	return func(c *call) error {
		return c.ask(true, func(g *emgraph.Graph) error {
			from, name, err := c.node(g)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.stdout, "from %s\n", name)
			reached := 0
			err = emgraph.BFS(g.Edges, g.Index, from, func(depth int, level []uint32) bool {
				reached += len(level)
				_, err = fmt.Fprintf(c.stdout, "%s away: %s\n", plural(depth, "edge"), plural(len(level), "node"))
				return c.ctx.Err() == nil && err == nil
			})
			if err := errors.Join(err, c.ctx.Err()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.stdout, "together: %s of %s\n", grouped(reached), grouped(g.Nodes()))
			return err
		})
	}
}

// node returns the node that the user has named, or that of most edges.
func (c *call) node(g *emgraph.Graph) (v uint32, name string, err error) {
	if len(c.args) > 0 {
		v, err = g.Number(c.args[0])
		return v, c.args[0], err
	}
	v, err = g.Busiest()
	if err == nil {
		name, err = g.Name(v)
	}
	return v, name, err
}

func neighbours(flags *flag.FlagSet) action {
	steps := flags.Int("steps", 1, "how many `edges` away at most: 1 or 2")
	return func(c *call) error {
		if *steps < 1 || *steps > 2 {
			return usageError{"-steps must be 1 or 2: graph bfs goes further"}
		}
		return c.ask(true, func(g *emgraph.Graph) error {
			from, name, err := c.node(g)
			if err != nil {
				return err
			}
			all, err := emgraph.Neighbours(g.Edges, g.Index, from, *steps)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.stderr, "%s up to %s from %s\n", plural(len(all), "node"), plural(*steps, "edge"), name)
			for _, v := range all {
				name, err := g.Name(v)
				if err == nil {
					_, err = fmt.Fprintln(c.stdout, name)
				}
				if err == nil {
					err = c.ctx.Err()
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
}

const dominatorsMore = `Without an entry it begins at the node that has most edges. It prints the nodes that
most others cannot be reached without; with -of, those on all paths to one node.`

func dominators(flags *flag.FlagSet) action {
	of := flags.String("of", "", "print the dominators of this `node`, from the entry on")
	top := topFlag(flags)
	return func(c *call) error {
		return c.ask(true, func(g *emgraph.Graph) error {
			entry, name, err := c.node(g)
			if err != nil {
				return err
			}
			t := newTask(c.stderr, "visiting nodes")
			dominator, err := emgraph.Dominators(c.ctx, g.Edges, g.Index, entry, t.show)
			t.end()
			if err != nil {
				return err
			}
			if *of != "" {
				return c.printDominators(g, dominator, *of, name)
			}
			below := emgraph.Dominated(dominator)
			fmt.Fprintf(c.stdout, "%s reached from %s\n", plural(below[entry], "node"), name)
			rows := newTable(c.stdout, "dominates", "node")
			for _, v := range largest(below, *top) {
				name, err := g.Name(v)
				if err != nil {
					return err
				}
				rows.add(grouped(below[v]-1), name)
			}
			return rows.print()
		})
	}
}

// printDominators prints the nodes that must be passed on the way to one.
func (c *call) printDominators(g *emgraph.Graph, dominator []uint32, of, entry string) error {
	v, err := g.Number(of)
	if err != nil {
		return err
	}
	if dominator[v] == emgraph.None {
		return fmt.Errorf("no path leads from %s to %s", entry, of)
	}
	chain := []uint32{v}
	for dominator[v] != v {
		v = dominator[v]
		chain = append(chain, v)
	}
	for _, v := range slices.Backward(chain) {
		name, err := g.Name(v)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(c.stdout, name); err != nil {
			return err
		}
	}
	return nil
}

// A table prints columns of numbers, aligned to the right, and at last one of
// names.
type table struct {
	w     *tabwriter.Writer
	lines strings.Builder
}

func newTable(w io.Writer, heads ...string) *table {
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)}
	t.add(heads...)
	return t
}

func (t *table) add(cells ...string) {
	t.lines.WriteString(strings.Join(cells[:len(cells)-1], "\t") + "\t   " + cells[len(cells)-1] + "\n")
}

func (t *table) print() error {
	_, err := io.WriteString(t.w, t.lines.String())
	return errors.Join(err, t.w.Flush())
}
