//go:build unix && !linux

package emd

import (
	"errors"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noReserve is Linux's: FreeBSD and AIX lack the flag, and the others either
// ignore it or reserve memory that a machine with swap has.
const noReserve = 0

// chargesMaps says whether private writable maps of files are charged: Solaris and
// illumos reserve swap for them. Others do not, or show it by refusing one.
func chargesMaps() bool { return runtime.GOOS == "solaris" || runtime.GOOS == "illumos" }

func adviseFresh(unsafe.Pointer, int64) {}

// invalidate makes what write calls wrote visible in a mapping that was just
// made: OpenBSD alone keeps two caches, one for mappings and one for write
// calls.
func invalidate(p unsafe.Pointer, n int64) error {
	if runtime.GOOS != "openbsd" {
		return nil
	}
	return uninterrupted(func() error {
		return unix.Msync(bytesAt(p, n), unix.MS_SYNC|unix.MS_INVALIDATE)
	})
}

// dropCopies fails: outside Linux MADV_DONTNEED is a hint, and copies may stay.
func dropCopies(unsafe.Pointer, int64) error { return errors.ErrUnsupported }

func populate(unsafe.Pointer, int64) {}

// readAhead returns 0: only Linux tells.
func readAhead(*os.File) int64 { return 0 }

func writeShared(p unsafe.Pointer, n int64) error {
	return os.NewSyscallError("msync", uninterrupted(func() error { return unix.Msync(bytesAt(p, n), unix.MS_SYNC) }))
}

// isOwn and inCore say nothing.
func isOwn(*os.File) bool                           { return false }
func inCore(unsafe.Pointer, int64) (is, known bool) { return false, false }

// syncFile is os.File's Sync, which on macOS also empties the drive's cache
// (F_FULLFSYNC).
func syncFile(f *os.File) error { return f.Sync() }

// writeOut is Linux's.
func writeOut(*os.File, int64, int64) {}

func punchFD(uintptr, int64, int64) error { return errors.ErrUnsupported }

// networkFS does not know: what these systems tell does not set FUSE apart.
func networkFS(uintptr) string { return "" }

// copyOnWriteFS does not know either.
func copyOnWriteFS(uintptr) string { return "" }

// allocateFD makes room past the end of the file, where the system has a call for
// that: what lies before has its room, but for holes, which no call here fills
// without writing everything around them anew. A disk that is full then is found
// by the write.
func allocateFD(fd uintptr, off, n int64) error {
	var st unix.Stat_t
	if err := uninterrupted(func() error { return unix.Fstat(int(fd), &st) }); err != nil {
		return err
	}
	if n = off + n - st.Size; n <= 0 {
		return nil
	}
	err := uninterrupted(func() error { return preallocate(fd, st.Size, n) })
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG), errors.Is(err, unix.EIO):
		return err
	}
	return errors.ErrUnsupported // by this file system
}
