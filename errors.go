package emd

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// A program tells these apart with [errors.Is]. They arrive wrapped in an
// [*Error], which says where.
var (
	// ErrClosed reports the use of an arena or container after Close, or of a
	// container after Drop. It matches [fs.ErrClosed].
	ErrClosed error = &sentinel{"already closed", fs.ErrClosed}
	// ErrReadOnly reports a change of an arena opened with Options.ReadOnly.
	ErrReadOnly = errors.New("opened read-only")
	// ErrLocked reports a file that another opener holds: a writer excludes
	// everybody else, readers exclude a writer; on Windows also one that another
	// program does not share. See Options.LockTimeout.
	ErrLocked = errors.New("file is in use")
	// ErrCorrupt reports bytes that break the rules of the format: damage, or
	// a file that is not of this kind.
	ErrCorrupt = errors.New("corrupt file")
	// ErrTypeMismatch reports a container opened as another kind or type than
	// it was created with.
	ErrTypeMismatch = errors.New("type mismatch")
	// ErrUnsupportedType reports a Go type that needs a codec of the caller's.
	ErrUnsupportedType = errors.New("unsupported type")
	// ErrUnsupported reports what this platform or file system cannot do.
	ErrUnsupported = fmt.Errorf("not possible here: %w", errors.ErrUnsupported)
	// ErrNoContainer reports a name that no container has, where none may be
	// created. It matches [fs.ErrNotExist].
	ErrNoContainer error = &sentinel{"no such container", fs.ErrNotExist}
	// ErrVersion reports a file of a format version that this version of the
	// package cannot read.
	ErrVersion = errors.New("unknown format version")
	// ErrUnclean reports a relaxed file that was not closed: see
	// Options.Relaxed and AcceptUnclean.
	ErrUnclean = errors.New("not closed cleanly")
	// ErrTooLarge reports a key, value or list beyond the limits of the format.
	ErrTooLarge = errors.New("too large")
	// ErrUpdateTooLarge reports a change that would need more private memory
	// than Options.DirtyLimit where nothing may be committed to make room:
	// inside Update, or with Options.NoAutoCommit.
	ErrUpdateTooLarge = errors.New("changes exceed DirtyLimit")
	// ErrInUpdate reports a call that the function given to Update must not make.
	ErrInUpdate = errors.New("not allowed inside Update")
	// ErrRolledBack reports a Sync whose changes went with an Update that
	// failed meanwhile, or an operation that a Rollback overtook.
	ErrRolledBack = errors.New("changes were rolled back")
	// ErrLent reports memory of the file that a loop or callback still uses.
	ErrLent = errors.New("memory is lent")
	// ErrFull reports that the disk, a quota or the address space is used up.
	// It matches the system's own error, where that is the cause: on Unix
	// [syscall.ENOSPC], on Windows ERROR_DISK_FULL. After a failed commit
	// the changes are still there: make room and Sync again, or Rollback.
	ErrFull = errors.New("no space left")
)

// sentinel is an error that also matches one of another package.
type sentinel struct {
	text  string
	match error
}

func (s *sentinel) Error() string        { return s.text }
func (s *sentinel) Is(target error) bool { return target == s.match }

// Error says where an operation failed: every error of this package that has
// to do with a file is one. Err is, or wraps, the cause.
type Error struct {
	Op        string // the method, in lower case: "open", "set", "sync"
	Path      string // the data file
	Container string // its name; empty where no single container is concerned
	Offset    int64  // in bytes from the start of the file; 0 where unknown
	Err       error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "emd: %s %s", e.Op, e.Path)
	if e.Container != "" {
		fmt.Fprintf(&b, ": container %q", e.Container)
	}
	if e.Offset != 0 {
		fmt.Fprintf(&b, ": offset %#x", e.Offset)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// corruptError is a finding of ErrCorrupt before path and container are known.
type corruptError struct {
	off  uint64
	text string
}

func (e *corruptError) Error() string { return ErrCorrupt.Error() + ": " + e.text }
func (e *corruptError) Unwrap() error { return ErrCorrupt }

// corrupt returns a finding of damage whose place is not known.
func corrupt(format string, args ...any) error { return corruptAt(0, format, args...) }

// corruptAt returns a finding of damage at an offset of the data file.
func corruptAt(off uint64, format string, args ...any) error {
	return &corruptError{off, fmt.Sprintf(format, args...)}
}

// offsetOf returns the place that a finding of damage names.
func offsetOf(err error) int64 {
	var c *corruptError
	if errors.As(err, &c) {
		return int64(c.off)
	}
	return 0
}

// indexError is the panic of a bad index, a [runtime.Error] as a slice's is.
type indexError struct{ text string }

func (e indexError) Error() string { return "emd: " + e.text }
func (e indexError) RuntimeError() {}
