package emgraph

import "context"

// Sort sorts the edges by source and target and makes the index of them. If it
// ends early, because ctx does, the graph is as it was, or sorted without an index.
func (g *Graph) Sort(ctx context.Context, progress Progress) error {
	if err := g.Edges.SortKey(ctx, Edge.key, progress); err != nil {
		return err
	}
	return g.Arena.Update(func() error { return g.makeIndex(ctx, progress) })
}

// key is in order as edges are.
func (e Edge) key() uint64 { return uint64(e.Source)<<32 | uint64(e.Target) }

// makeIndex notes for each node where its edges begin, and then where the last end.
func (g *Graph) makeIndex(ctx context.Context, progress Progress) error {
	if err := g.Index.Clear(); err != nil {
		return err
	}
	var batch []uint64
	next := 0 // the node whose edges have not begun yet
	begin := func(upTo, at int) error {
		for ; next <= upTo; next++ {
			if batch = append(batch, uint64(at)); len(batch) == 1<<12 {
				if err := g.Index.Append(batch...); err != nil {
					return err
				}
				batch = batch[:0]
			}
		}
		return nil
	}
	for i, run := range g.Runs(ctx, 1, progress) {
		for k, e := range run {
			if int(e.Source) >= next {
				if err := begin(int(e.Source), i+k); err != nil {
					return err
				}
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := begin(g.nodes, g.Edges.Len()); err != nil {
		return err
	}
	return g.Index.Append(batch...)
}
