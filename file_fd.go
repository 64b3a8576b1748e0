//go:build unix || windows

package emd

import (
	"io/fs"
	"os"
)

// What file.go does with the descriptor or handle of a file, where it has one
// that system calls take.

func lockFile(f *os.File, exclusive, wait bool) (ok bool, err error) {
	err = withFD(f, func(fd uintptr) (err error) {
		ok, err = lockFD(fd, exclusive, wait)
		return err
	})
	return ok, err
}

func unlockFile(f *os.File) error { return withFD(f, unlockFD) }

func allocateFile(f *os.File, off, n int64) error {
	return withFD(f, func(fd uintptr) error { return allocateFD(fd, off, n) })
}

func punchFile(f *os.File, off, n int64) error {
	return withFD(f, func(fd uintptr) error { return punchFD(fd, off, n) })
}

// networkOf takes a file system that cannot be asked for a local one.
func networkOf(f *os.File) (name string) {
	_ = withFD(f, func(fd uintptr) error {
		name = networkFS(fd)
		return nil
	})
	return name
}

func copyOnWriteOf(f *os.File) (name string) {
	_ = withFD(f, func(fd uintptr) error {
		name = copyOnWriteFS(fd)
		return nil
	})
	return name
}

// withFD calls fn with the descriptor or handle of f, which stays open
// meanwhile. Unlike f.Fd it leaves the mode of the descriptor alone. A closed
// file is fs.ErrClosed.
func withFD(f *os.File, fn func(fd uintptr) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	if conn.Control(func(fd uintptr) { fnErr = fn(fd) }) != nil {
		return fs.ErrClosed // its own error does not match that
	}
	return fnErr
}

// osPageSize returns the machine's page size in bytes, the unit in which
// memory is adopted and dropped: 4 KiB to 64 KiB.
func osPageSize() int { return os.Getpagesize() }
