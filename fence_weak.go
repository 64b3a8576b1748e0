//go:build !amd64 && !386 && !s390x

package emd

import "sync/atomic"

// readFence keeps the loads before it before the loads after it. Go has no
// fence of its own, but its atomic read-modify-writes are sequentially
// consistent: on arm64 and the like they release what came before (so the
// plain loads above are done) and acquire for what follows.
func readFence() {
	var word atomic.Uint32
	word.Add(1)
}

// writeFence keeps the stores before it before the stores after it.
func writeFence() { readFence() }
