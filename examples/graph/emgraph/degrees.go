package emgraph

// Degrees returns how many edges lead from each node and how many to it. It
// goes over the edges once.
func Degrees(edges Runs, nodes int) (out, in []uint32) {
	out, in = make([]uint32, nodes), make([]uint32, nodes)
	for _, run := range edges {
		for _, e := range run {
			out[e.Source]++
			in[e.Target]++
		}
	}
	return out, in
}

// Distribution returns how many nodes have each degree, from 0 to the largest.
func Distribution(degrees []uint32) (nodes []int) {
	for _, d := range degrees {
		for len(nodes) <= int(d) {
			nodes = append(nodes, 0)
		}
		nodes[d]++
	}
	return nodes
}
