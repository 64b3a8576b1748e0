//go:build !linux

package emd

import "unsafe"

// resident returns 0: only Linux is asked.
func (s *space) resident() int64 { return 0 }

const residencyKnown = false

// inCore says nothing.
func inCore(unsafe.Pointer, int64) bool { return false }
