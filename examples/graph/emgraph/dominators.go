package emgraph

import (
	"context"
	"slices"

	"github.com/emd-go/emd"
)

// None is the dominator of nodes that no path leads to.
const None = 1<<32 - 1

// Dominators returns the immediate dominator of each node of a flow graph that
// is entered at root: of the other nodes that are on all paths from root to it, the last.
// That of root is root, and that of nodes without a path None.
//
// It is the algorithm of Cooper, Harvey, Kennedy (A Simple, Fast Dominance
// Algorithm, 2001), turned round: it goes from each node along its edges, which lie
// together, so that it needs no list of edges by target.
//
// It ends early when ctx does. progress counts nodes; how many there are to look
// at, some of them several times, is not known before.
func Dominators(ctx context.Context, edges *emd.EMList[Edge], index *emd.EMList[uint64], root uint32, progress Progress) ([]uint32, error) {
	steps := stepper{ctx: ctx, progress: progress}
	order, err := postorder(edges, index, root, &steps)
	if err != nil {
		return nil, err
	}
	number, dominator := make([]uint32, index.Len()-1), make([]uint32, index.Len()-1)
	for v := range dominator {
		dominator[v] = None
	}
	for i, v := range order {
		number[v] = uint32(i)
	}
	dominator[root] = root
	// common returns the last node that dominates, or is, both a and b.
	common := func(a, b uint32) uint32 {
		for a != b {
			if number[a] < number[b] {
				a = dominator[a]
			} else {
				b = dominator[b]
			}
		}
		return a
	}
	for changed := true; changed; {
		changed = false
		for _, v := range slices.Backward(order) {
			if err := steps.step(); err != nil {
				return nil, err
			}
			i, j, err := edgesOf(index, v)
			if err != nil {
				return nil, err
			}
			for _, run := range edges.Views(i, j) {
				for _, e := range run {
					d := v
					if old := dominator[e.Target]; old != None {
						d = common(old, v)
					}
					if d != dominator[e.Target] {
						dominator[e.Target], changed = d, true
					}
				}
			}
		}
	}
	return dominator, edges.Err()
}

// postorder returns the nodes that edges lead to from root, in the order in
// which a depth-first search leaves them.
func postorder(edges *emd.EMList[Edge], index *emd.EMList[uint64], root uint32, steps *stepper) (order []uint32, err error) {
	type visit struct {
		node    uint32
		at, end int // its edges that are still to be followed
	}
	seen := make([]bool, index.Len()-1)
	var stack []visit
	enter := func(v uint32) error {
		seen[v] = true
		i, j, err := edgesOf(index, v)
		stack = append(stack, visit{v, i, j})
		return err
	}
	if err := enter(root); err != nil {
		return nil, err
	}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if top.at == top.end {
			if err := steps.step(); err != nil {
				return nil, err
			}
			order = append(order, top.node)
			stack = stack[:len(stack)-1]
			continue
		}
		e, err := edges.Get(top.at)
		if err != nil {
			return nil, err
		}
		top.at++
		if !seen[e.Target] {
			if err := enter(e.Target); err != nil {
				return nil, err
			}
		}
	}
	return order, nil
}

// A stepper counts steps, and now and then looks at the clock and at ctx.
type stepper struct {
	ctx      context.Context
	progress Progress
	done     int64
}

func (s *stepper) step() error {
	s.done++
	if s.done%(1<<12) != 0 {
		return nil
	}
	s.progress(s.done, 0)
	return s.ctx.Err()
}

// Dominated returns how many nodes each node dominates, itself included: the
// size of what hangs at it in the tree of dominators.
func Dominated(dominator []uint32) []int {
	children, count := make([]int, len(dominator)), make([]int, len(dominator))
	for v, d := range dominator {
		if d != None && int(d) != v {
			children[d]++
		}
	}
	for v := range dominator {
		// From each leaf up, as far as all that hangs below is counted.
		for u := uint32(v); dominator[u] != None && children[u] == 0; u = dominator[u] {
			count[u]++
			children[u]--
			if dominator[u] == u {
				break
			}
			count[dominator[u]] += count[u]
			children[dominator[u]]--
		}
	}
	return count
}
