package emgraph

import (
	"slices"

	"github.com/emd-go/emd"
)

// BFS follows edges from a node, breadth first. It calls visit with the nodes
// that are no, one, two... edges away until there are none or visit returns false.
func BFS(edges *emd.EMList[Edge], index *emd.EMList[uint64], from uint32, visit func(depth int, level []uint32) bool) error {
	seen := make([]bool, index.Len()-1)
	seen[from] = true
	level := []uint32{from}
	for depth := 0; len(level) > 0 && visit(depth, level); depth++ {
		var next []uint32
		for _, v := range level {
			i, j, err := edgesOf(index, v)
			if err != nil {
				return err
			}
			for _, run := range edges.Views(i, j) {
				for _, e := range run {
					if !seen[e.Target] {
						seen[e.Target] = true
						next = append(next, e.Target)
					}
				}
			}
		}
		level = next
	}
	return edges.Err()
}

// edgesOf returns where the edges of node v are.
func edgesOf(index *emd.EMList[uint64], v uint32) (i, j int, err error) {
	from, err := index.Get(int(v))
	if err != nil {
		return 0, 0, err
	}
	to, err := index.Get(int(v) + 1)
	return int(from), int(to), err
}

// Neighbours returns the nodes to which up to steps edges lead from node v, in
// order. It looks at no more of the file than their edges.
func Neighbours(edges *emd.EMList[Edge], index *emd.EMList[uint64], v uint32, steps int) ([]uint32, error) {
	var all []uint32
	level := []uint32{v}
	for range steps {
		var next []uint32
		for _, u := range level {
			i, j, err := edgesOf(index, u)
			if err != nil {
				return nil, err
			}
			for _, run := range edges.Views(i, j) {
				for _, e := range run {
					next = append(next, e.Target)
				}
			}
		}
		level = sorted(next)
		all = sorted(append(all, level...))
	}
	return all, edges.Err()
}

// sorted returns the nodes in order, each once.
func sorted(nodes []uint32) []uint32 {
	slices.Sort(nodes)
	return slices.Compact(nodes)
}
