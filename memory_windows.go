package emd

import "unsafe"

// physicalMemory returns the bytes of memory of the machine, 0 if unknown.
func physicalMemory() int64 {
	var s struct { // MEMORYSTATUSEX
		length, load     uint32
		totalPhys        uint64
		_, _, _, _, _, _ uint64 // free memory, and what else it tells
	}
	s.length = uint32(unsafe.Sizeof(s))
	if ok, _, _ := procGlobalMemoryStatusEx.Call(uintptr(unsafe.Pointer(&s))); ok == 0 {
		return 0
	}
	return int64(s.totalPhys)
}

// cgroupMemory returns 0: control groups are Linux's.
func cgroupMemory() int64 { return 0 }
