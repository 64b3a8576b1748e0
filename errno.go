//go:build !plan9 && !windows

package emd

import (
	"io/fs"
	"syscall"
)

// fullErrors say that a disk or quota is used up, or that a file is as long as
// it may be.
var fullErrors = []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG}

// deniedErrors say that a file or folder may not be written to.
var deniedErrors = []error{fs.ErrPermission, syscall.EROFS}

// errLinks reports symbolic links that lead to each other.
const errLinks = syscall.ELOOP

// openError returns the error of opening a file as it is.
func openError(err error) error { return err }

// heldBack tells whether another program keeps the file for itself: nothing
// does that here.
func heldBack(error) bool { return false }
