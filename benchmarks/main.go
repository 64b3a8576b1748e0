// Benchmarks measures an EMDict beside Go's map and prints their ratios. The program in the folder peers has more
// columns: other embedded stores.
package main

import "github.com/emd-go/emd/benchmarks/matrix"

var impls = []matrix.Impl{matrix.Map, matrix.EMD}

func main() { matrix.Main(impls...) }
