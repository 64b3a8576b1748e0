//go:build aix || solaris || js || wasip1

package emd

// physicalMemory returns 0: unknown.
func physicalMemory() int64 { return 0 }

// cgroupMemory returns 0: control groups are Linux's.
func cgroupMemory() int64 { return 0 }
