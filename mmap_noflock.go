//go:build aix || (solaris && !illumos)

package emd

import (
	"errors"
	"fmt"
)

// lockFD fails: these systems have only fcntl's locks, which do not exclude a
// second Open in the same process and vanish when any descriptor of the file is
// closed.
func lockFD(uintptr, bool, bool) (bool, error) {
	return false, fmt.Errorf("no flock on this system: %w", errors.ErrUnsupported)
}

func unlockFD(uintptr) error { return nil }
