// Peers measures an EMDict and Go's map beside other embedded stores and prints their ratios. The tag lmdb adds LMDB, which
// needs cgo, a C compiler, and LMDB's header and library.
package main

import "github.com/emd-go/emd/benchmarks/matrix"

var impls = []matrix.Impl{matrix.Map, matrix.EMD, bboltImpl, badgerImpl, pebbleImpl, sqliteImpl}

func main() { matrix.Main(impls...) }
