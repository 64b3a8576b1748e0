//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package emd

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// physicalMemory returns the bytes of memory of the machine, 0 if unknown.
func physicalMemory() int64 {
	name := "hw.physmem"
	switch runtime.GOOS {
	case "darwin", "ios":
		name = "hw.memsize"
	case "netbsd", "openbsd":
		name = "hw.physmem64"
	}
	if n, err := unix.SysctlUint64(name); err == nil {
		return int64(n)
	}
	n, _ := unix.SysctlUint32(name) // a word where words have 32 bits
	return int64(n)
}

// cgroupMemory returns 0: control groups are Linux's.
func cgroupMemory() int64 { return 0 }
