// Package emgraph keeps a directed graph in a file of emd and computes over it
// there: it holds a few bytes a node in memory, and the edges stay on the disk.
//
// A graph is a list of edges in any order, to which [Graph.Generate] and
// [Graph.Import] add. [PageRank] and [Components] need no more. [Graph.Sort]
// sorts the edges by their source and makes an index of them; then [BFS],
// [Neighbours] and [Dominators] find the edges of a node without a search.
package emgraph

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"

	"github.com/emd-go/emd"
)

// An Edge leads from one node to another. Nodes are numbered from 0.
type Edge struct{ Source, Target uint32 }

// A Graph is an open file.
type Graph struct {
	Arena *emd.Arena
	Edges *emd.EMList[Edge]
	// Index has an element for each node and one more: the edges of node v
	// are those from Index[v] to Index[v+1]. It is empty while they are not sorted.
	Index *emd.EMList[uint64]

	names   *emd.EMList[string] // of the nodes; empty if they are just numbers
	numbers *emd.EMDict[string, uint32]
	nodes   int
}

// MaxNodes is how many nodes a graph can have.
const MaxNodes = 1 << 32

// nodesKey is where a file says that it is a graph, and of how many nodes.
const nodesKey = "emgraph.nodes"

var (
	// ErrForeign reports a file that is not a graph.
	ErrForeign = errors.New("it holds no graph")
	// ErrExists reports a graph that has edges already.
	ErrExists = errors.New("it holds a graph already")
	// ErrUnsorted reports a graph without an index of its edges.
	ErrUnsorted = errors.New("its edges are not sorted")
	// ErrNoNode reports a name that no node has.
	ErrNoNode = errors.New("no such node")
)

// Open opens a graph for reading.
func Open(path string) (*Graph, error) { return open(path, &emd.Options{ReadOnly: true}) }

// OpenForChange opens a graph to sort it.
func OpenForChange(path string) (*Graph, error) { return open(path, &emd.Options{MustExist: true}) }

// Create makes a graph without edges, unless there is one already.
func Create(path string) (*Graph, error) {
	g, err := open(path, nil)
	if err == nil && g.Nodes() != 0 {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, ErrExists), g.Close())
	}
	return g, err
}

func open(path string, opts *emd.Options) (*Graph, error) {
	arena, err := emd.Open(path, opts)
	if err != nil {
		return nil, err
	}
	g := &Graph{Arena: arena}
	if err := g.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), arena.Close())
	}
	return g, nil
}

func (g *Graph) open() (err error) {
	nodes, ok := g.Arena.Meta(nodesKey)
	if !ok {
		if !isEmpty(g.Arena) {
			return ErrForeign
		}
		nodes = []byte("0")
		if err := g.Arena.SetMeta(nodesKey, nodes); errors.Is(err, emd.ErrReadOnly) {
			return ErrForeign
		} else if err != nil {
			return err
		}
	}
	if g.nodes, err = strconv.Atoi(string(nodes)); err != nil || g.nodes < 0 || g.nodes > MaxNodes {
		return fmt.Errorf("%w: a graph of %q nodes", emd.ErrCorrupt, nodes)
	}
	if g.Edges, err = emd.List[Edge](g.Arena, "edges", nil); err != nil {
		return err
	}
	if g.Index, err = emd.List[uint64](g.Arena, "index", nil); err != nil {
		return err
	}
	if g.names, err = emd.List[string](g.Arena, "names", nil); err != nil {
		return err
	}
	g.numbers, err = emd.Dict[string, uint32](g.Arena, "numbers", nil)
	return err
}

func isEmpty(arena *emd.Arena) bool {
	for range arena.Containers() {
		return false
	}
	return true
}

// Close commits what has changed and closes the file.
func (g *Graph) Close() error { return g.Arena.Close() }

// Nodes returns the number of nodes.
func (g *Graph) Nodes() int { return g.nodes }

// Sorted tells whether the edges are sorted and have an index.
func (g *Graph) Sorted() bool { return g.nodes > 0 && g.Index.Len() == g.nodes+1 }

// Name returns the name of node v: what stood in the edge list, or its number.
func (g *Graph) Name(v uint32) (string, error) {
	if g.names.Len() == 0 {
		return strconv.FormatUint(uint64(v), 10), nil
	}
	return g.names.Get(int(v))
}

// Number returns the node of that name.
func (g *Graph) Number(name string) (uint32, error) {
	if g.names.Len() > 0 {
		v, ok, err := g.numbers.Get(name)
		if err == nil && !ok {
			err = fmt.Errorf("%w: %q", ErrNoNode, name)
		}
		return v, err
	}
	v, err := strconv.ParseUint(name, 10, 32)
	if err != nil || v >= uint64(g.nodes) {
		return 0, fmt.Errorf("%w: %q; they are called 0 to %d", ErrNoNode, name, g.nodes-1)
	}
	return uint32(v), nil
}

// Busiest returns the node that most edges lead from. The edges must be sorted.
func (g *Graph) Busiest() (v uint32, err error) {
	var most, last uint64
	for i, at := range g.Index.All() {
		if i > 0 && at-last > most {
			v, most = uint32(i-1), at-last
		}
		last = at
	}
	return v, g.Index.Err()
}

// A Progress is told how much of something is done. total is 0 where unknown.
type Progress func(done, total int64)

// fill makes add's edges those of an empty graph: all of them or, after an
// error, none. add returns how many nodes there are.
func (g *Graph) fill(add func() (nodes int, err error)) error {
	if g.nodes != 0 {
		return ErrExists
	}
	nodes := 0
	err := g.Arena.Update(func() (err error) {
		if nodes, err = add(); err != nil {
			return err
		}
		if nodes == 0 {
			return errors.New("no edges")
		}
		return g.Arena.SetMeta(nodesKey, strconv.AppendInt(nil, int64(nodes), 10))
	})
	if err == nil {
		g.nodes = nodes
	}
	return err
}

// Runs returns the edges in runs for a computation that goes over them times
// times. It tells progress how many it has lent, and ends early when ctx does.
func (g *Graph) Runs(ctx context.Context, times int, progress Progress) Runs {
	total, done := int64(g.Edges.Len())*int64(times), int64(0)
	return func(yield func(int, []Edge) bool) {
		for i, run := range g.Edges.Views(0, g.Edges.Len()) {
			progress(done, total)
			if ctx.Err() != nil || !yield(i, run) {
				return
			}
			done += int64(len(run))
		}
	}
}

// Runs yields edges in runs, each with the index of its first: it is what
// Views of a list of edges returns.
type Runs = iter.Seq2[int, []Edge]
