//go:build amd64 || arm64

package emd

import "unsafe"

// prefetch asks for the cache line at p and does not wait for it. A load
// would not do: the atomic instructions of the locks that follow it wait for
// every load before them, and for these 50 ns the memory would be idle.
//
//go:noescape
func prefetch(p unsafe.Pointer)

// prefetchEach is prefetch for the n addresses from p on. An address where
// nothing is mapped, such as nil, does no harm.
//
//go:noescape
func prefetchEach(p *unsafe.Pointer, n int)
