//go:build unix && !aix && (!solaris || illumos)

package emd

import "golang.org/x/sys/unix"

// lockFD locks the open file as a whole. flock belongs to the open file, not to
// the process as fcntl's locks do, which vanish when the process closes any
// descriptor of the file.
func lockFD(fd uintptr, exclusive, wait bool) (bool, error) {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	if !wait {
		how |= unix.LOCK_NB
	}
	err := uninterrupted(func() error { return unix.Flock(int(fd), how) })
	if err == unix.EWOULDBLOCK {
		return false, nil
	}
	return err == nil, err
}

func unlockFD(fd uintptr) error {
	return uninterrupted(func() error { return unix.Flock(int(fd), unix.LOCK_UN) })
}
