package emd

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// fullErrors is empty: here errors are words, and each file server has its own
// for a full disk. So that stops the arena, as any failed write does.
var fullErrors []error

// deniedErrors say that a file or folder may not be written to.
var deniedErrors = []error{fs.ErrPermission}

// errLinks is never met: there are no symbolic links.
var errLinks = errors.New("too many links")

// openError marks the refusal to open a file of exclusive use (see lockFile)
// once more: of cwfs and kfs, fossil, and ramfs, as cmd/go knows them.
func openError(err error) error {
	for _, words := range []string{"file is locked", "exclusive lock", "exclusive use file already open"} {
		if err != nil && strings.Contains(err.Error(), words) {
			return fmt.Errorf("%w by another opener: %w", ErrLocked, err)
		}
	}
	return err
}

// heldBack tells whether another program keeps the file for itself. See
// openError.
func heldBack(error) bool { return false }
