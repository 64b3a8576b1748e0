package emd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// resident returns the bytes of the mapped file that are in memory.
func (s *space) resident() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.table.Load().all {
		size := uintptr(c.pages) << pageShift
		// The call fills a byte for each page of the machine; qemu-user, which may
		// show a program larger pages than the machine's, more than the program asked for.
		room := make([]byte, c.pages)
		pages := room[:int(size)/osPageSize()]
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(c.mem), size, uintptr(unsafe.Pointer(&room[0]))); errno != 0 {
			return 0
		}
		for _, p := range pages {
			n += int64(p&1) * int64(osPageSize())
		}
	}
	return n
}

// residencyKnown says that inMemory tells.
const residencyKnown = true

// inMemory says whether page p can be read without the disk.
func (s *space) inMemory(p pageNo) bool {
	b := s.osPages(uint64(p)<<pageShift, pageSize)
	var vec [16]byte // one for each page of the machine, and room for qemu-user's
	if b == nil {
		return true
	}
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	return errno != 0 || vec[0]&1 != 0
}
