package emd

import (
	"errors"
	"io/fs"
	"syscall"

	"golang.org/x/sys/windows"
)

// fullErrors say that the disk or a quota is used up, or the file as long as it
// may be. They are not the constants of package syscall named as Unix's, which
// no system call returns here.
var fullErrors = []error{
	windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL, windows.ERROR_DISK_QUOTA_EXCEEDED, windows.ERROR_FILE_TOO_LARGE,
}

// heldBack tells whether another program keeps the file for itself: it has
// opened it without sharing it, as scanners and backups do for a while, or has
// locked bytes of it.
func heldBack(err error) bool {
	return errors.Is(err, windows.ERROR_SHARING_VIOLATION) || errors.Is(err, windows.ERROR_LOCK_VIOLATION)
}

// deniedErrors say that a file or folder may not be written to.
var deniedErrors = []error{fs.ErrPermission, windows.ERROR_WRITE_PROTECT}

// errLinks reports symbolic links that lead to each other.
const errLinks = syscall.ELOOP

// openError returns the error of opening a file as it is.
func openError(err error) error { return err }
