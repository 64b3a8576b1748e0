package emgraph

// Components returns for each node the smallest that is connected with it,
// whatever the direction of the edges (union-find). It goes over the edges once.
func Components(edges Runs, nodes int) []uint32 {
	parent := make([]uint32, nodes)
	for v := range parent {
		parent[v] = uint32(v)
	}
	for _, run := range edges {
		for _, e := range run {
			a, b := root(parent, e.Source), root(parent, e.Target)
			parent[max(a, b)] = min(a, b)
		}
	}
	for v := range parent {
		parent[v] = root(parent, uint32(v))
	}
	return parent
}

// root follows parents to the last, and halves the way for those who come later.
func root(parent []uint32, v uint32) uint32 {
	for parent[v] != v {
		parent[v] = parent[parent[v]]
		v = parent[v]
	}
	return v
}
