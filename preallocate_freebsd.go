package emd

import (
	"math/bits"

	"golang.org/x/sys/unix"
)

// preallocate makes the file n bytes longer than size. The call returns its
// error as a value. ZFS refuses it (EINVAL).
func preallocate(fd uintptr, size, n int64) error {
	if bits.UintSize == 32 {
		return unix.ENOSYS // there an offset is two words, in an order that depends on the processor
	}
	r, _, errno := unix.Syscall(unix.SYS_POSIX_FALLOCATE, fd, uintptr(size), uintptr(n))
	if errno != 0 {
		return errno
	}
	if r != 0 {
		return unix.Errno(r)
	}
	return nil
}
