//go:build !linux

package emd

// resident returns 0: only Linux is asked.
func (s *space) resident() int64 { return 0 }
