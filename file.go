package emd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// A file is the one interface through which every write of the data file and
// of its log passes, so that tests can record, lose and fail them. A write is
// complete or an error.
type file interface {
	io.ReaderAt
	io.WriterAt

	// Truncate sets the size. Where the OS cannot shrink a file that is mapped
	// (Windows), the error matches errors.ErrUnsupported and nothing changed.
	Truncate(size int64) error

	// Sync returns when all data written so far, and the size, are on the disk.
	// After an error it is unknown what is: a second call may succeed although
	// the data is lost.
	Sync() error

	Size() (int64, error)

	// Allocate makes room on the disk for [off, off+n), without changing what
	// the file holds, so that a later write in place finds it, and so that reading
	// a hole through a mapping, which in tmpfs takes a page, is no SIGBUS. After an
	// error the file may have grown; it is errors.ErrUnsupported, with nothing changed,
	// where that cannot be had but by writing.
	Allocate(off, n int64) error

	// Punch gives the blocks of [off, off+n) back to the file system; the range
	// then reads as zeros, and the size stays. A hint: errors.ErrUnsupported,
	// with nothing changed, is common.
	Punch(off, n int64) error

	// WriteOut has the system begin to write what it keeps of [off, off+n) to the
	// disk, so that a later Sync has less to wait for. A hint, and no promise.
	WriteOut(off, n int64)

	// Close also lets go of the file's lock.
	Close() error
}

// writeInSteps is f.WriteAt in calls of at most step bytes that meet at multiples of
// it. Linux keeps what one call writes in folios of up to its size, and ext4 goes through
// all blocks of a folio for each few bytes that are written to it later: to write
// 4 KiB and wait for the disk takes half as long again in folios of 4 MiB as in those
// of 16 KiB.
func writeInSteps(f file, b []byte, off, step int64) error {
	for len(b) > 0 {
		n := min(int64(len(b)), step-off%step)
		if _, err := f.WriteAt(b[:n], off); err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}

// A fileSystem opens, names and removes files; tests substitute one that
// records, loses and fails.
type fileSystem interface {
	// Open is os.OpenFile for regular files; anything else is an error.
	Open(path string, flag int, mode fs.FileMode) (file, error)

	// Lock takes the kernel's lock of the whole file, once for each open file.
	// It lasts until Close or the end of the process, however that comes. When
	// somebody else holds a lock that excludes this one, Lock waits or returns
	// false. A second Open of the same file is somebody else, also in the same
	// process.
	Lock(f file, exclusive, wait bool) (bool, error)

	// Link gives old a second name; where a file can have only one, it moves
	// there. It fails with fs.ErrExist when new exists.
	Link(old, new string) error

	// Remove deletes a name. Windows refuses while the file is open, by whatever
	// name.
	Remove(path string) error

	// SyncDir makes the names in the folder of path durable.
	SyncDir(path string) error

	// SameFile tells whether path still leads to the open file. A path that
	// leads nowhere does not.
	SameFile(f file, path string) (bool, error)

	// Resolve returns the absolute path to which path leads through symbolic
	// links. The file need not exist, its folder must; a link that leads to no
	// file yet is followed too.
	Resolve(path string) (string, error)

	// Network tells whether the file lies on a network file system, and which
	// kind: there, locks and mappings may not hold what they promise. Only Linux
	// and Windows tell; FUSE counts as local.
	Network(f file) (fsName string, is bool)

	// CopyOnWrite tells whether the file system may need new room to change a page
	// that has some, and which it is. Only Linux tells.
	CopyOnWrite(f file) (fsName string, is bool)

	// Map returns a private mapping of the file, without chunks yet, whose memory is
	// written to or only read. MapShared returns a shared one, to be written to. Close
	// it before the file.
	Map(f file, written bool) mapping
	MapShared(f file) mapping
}

// maxLinks bounds how many symbolic links Resolve follows, as the kernel does.
const maxLinks = 40

// osFS is the file system of the operating system. Its fields are for tests.
type osFS struct {
	heap bool // files are shown in memory of the Go heap, see heapMapping
	far  bool // chunks lie far apart and out of order, see newMapping
}

func newOSFS(heap, far bool) fileSystem { return osFS{heap: heap, far: far} }

// An osFile is a file of osFS. Reading, writing and truncating are os.File's
// own: they retry interrupted calls and complete short writes.
type osFile struct {
	*os.File
	locked bool
}

func (osFS) Open(path string, flag int, mode fs.FileMode) (file, error) {
	f, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, openError(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &osFile{File: f}, nil
}

func (osFS) Lock(f file, exclusive, wait bool) (ok bool, err error) {
	of := f.(*osFile)
	ok, err = lockFile(of.File, exclusive, wait)
	of.locked = of.locked || ok
	return ok, pathError("lock", of.File, err)
}

func (osFS) Link(old, new string) error {
	err := os.Link(old, new)
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// No hard links here (FAT, some FUSE file systems). Renaming would replace a
	// file that somebody else makes in this very moment.
	if _, err := os.Lstat(new); err == nil {
		return fs.ErrExist
	}
	return os.Rename(old, new)
}

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) SyncDir(path string) error { return syncDir(filepath.Dir(path)) }

func (osFS) SameFile(f file, path string) (bool, error) {
	open, err := f.(*osFile).Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(open, named), nil
}

func (osFS) Resolve(path string) (string, error) {
	next := path
	for range maxLinks {
		// Split, unlike Dir, does not clean: in link/../x the two dots belong to
		// the link's target. Once its folder is real, a path may be cleaned.
		dir, base := filepath.Split(next)
		dir, err := filepath.EvalSymlinks(cmp.Or(dir, "."))
		if err != nil {
			return "", err
		}
		real := filepath.Join(dir, base)
		target, err := os.Readlink(real)
		if err != nil { // not a link, or not there
			return filepath.Abs(real)
		}
		if !filepath.IsAbs(target) {
			target = dir + string(filepath.Separator) + target
		}
		next = target
	}
	return "", &fs.PathError{Op: "resolve", Path: path, Err: errLinks}
}

func (osFS) Network(f file) (fsName string, is bool) {
	fsName = networkOf(f.(*osFile).File)
	return fsName, fsName != ""
}

func (osFS) CopyOnWrite(f file) (fsName string, is bool) {
	fsName = copyOnWriteOf(f.(*osFile).File)
	return fsName, fsName != ""
}

func (o osFS) Map(f file, written bool) mapping {
	if o.heap {
		return newHeapMapping(f)
	}
	use := mapToRead
	if written {
		use = mapPrivate
	}
	return newMapping(f.(*osFile).File, o.far, use)
}

func (o osFS) MapShared(f file) mapping {
	if o.heap {
		return newSharedHeapMapping(f)
	}
	return newMapping(f.(*osFile).File, o.far, mapShared)
}

func (f *osFile) Truncate(size int64) error { return truncateFile(f.File, size) }

func (f *osFile) Sync() error { return syncFile(f.File) }

func (f *osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f *osFile) Allocate(off, n int64) error {
	return pathError("allocate", f.File, allocateFile(f.File, off, n))
}

func (f *osFile) Punch(off, n int64) error {
	return pathError("punch", f.File, punchFile(f.File, off, n))
}

func (f *osFile) WriteOut(off, n int64) { writeOut(f.File, off, n) }

// Close unlocks first: a child process between its fork and its exec shares the
// open file, and would keep the lock a moment longer than we live with it; and
// Windows does not promise when a closed file is unlocked.
func (f *osFile) Close() error {
	var unlockErr error
	if f.locked {
		f.locked = false
		unlockErr = pathError("unlock", f.File, unlockFile(f.File))
	}
	return errors.Join(unlockErr, f.File.Close())
}

// denied adds what to do to the error of a file or folder that may not be
// written to.
func denied(err error, advice string) error {
	for _, target := range deniedErrors {
		if errors.Is(err, target) {
			return fmt.Errorf("%w (%s)", err, advice)
		}
	}
	return err
}

// pathError adds the file's name to the error of a system call.
func pathError(op string, f *os.File, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.Name(), Err: err}
}
