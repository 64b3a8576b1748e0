package emgraph

// PageRank returns how important each node is: a node gives 85% of its rank to
// those that its edges lead to, in equal parts, and all nodes share the rest.
// The ranks of nodes without edges are lost. It goes over the edges once to
// count them and once for each iteration.
func PageRank(edges Runs, nodes, iterations int) []float32 {
	rank, share, degree := make([]float32, nodes), make([]float32, nodes), make([]uint32, nodes)
	for _, run := range edges {
		for _, e := range run {
			degree[e.Source]++
		}
	}
	for v := range rank {
		rank[v] = 1 / float32(nodes)
	}
	for range iterations {
		for v := range rank {
			share[v] = 0.85 * rank[v] / float32(max(degree[v], 1))
			rank[v] = 0.15 / float32(nodes)
		}
		for _, run := range edges {
			for _, e := range run {
				rank[e.Target] += share[e.Source]
			}
		}
	}
	return rank
}
