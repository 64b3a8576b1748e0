package emd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// A simDisk is a file system in memory that knows what a power cut may leave:
// all that was synced, and of the rest any subset of sectors, names and sizes.
// It can also fail any operation.
type simDisk struct {
	mu      sync.Mutex
	names   map[string]*simInode // as the running program sees them
	durable map[string]*simInode // as a power cut leaves them
	pending []simName            // changes of names since the folder was synced
	ops     int                  // writes, syncs, truncations and changes of names so far

	// before is called ahead of each such operation and may fail it. A failed
	// sync loses what it should have written, as Linux does.
	before func(n int, op string) error
}

// A simName is a change of the folder: name leads to inode, or nowhere.
type simName struct {
	name  string
	inode *simInode
}

type simInode struct {
	visible []byte
	durable []byte
	pending []simWrite
	locks   int // -1 exclusive
}

// A simWrite is a write, or a truncation to off if data is nil.
type simWrite struct {
	off  int64
	data []byte
}

const simSector = 512

func newSimDisk() *simDisk {
	return &simDisk{names: map[string]*simInode{}, durable: map[string]*simInode{}}
}

func (w simWrite) apply(b []byte) []byte {
	if w.data == nil {
		return resized(b, w.off)
	}
	b = resized(b, max(int64(len(b)), w.off+int64(len(w.data))))
	copy(b[w.off:], w.data)
	return b
}

func resized(b []byte, n int64) []byte {
	if n <= int64(len(b)) {
		return b[:n:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

// sectors cuts a write at the sectors of the disk.
func (w simWrite) sectors() (parts []simWrite) {
	for off, data := w.off, w.data; len(data) > 0; {
		n := min(int64(len(data)), simSector-off%simSector)
		parts = append(parts, simWrite{off, data[:n]})
		off, data = off+n, data[n:]
	}
	return parts
}

// kill returns the disk as another program finds it after this one was killed:
// nothing is lost yet, but nothing more is durable either.
func (d *simDisk) kill() *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newSimDisk()
	inodes := map[*simInode]*simInode{nil: nil}
	copied := func(i *simInode) *simInode {
		if _, ok := inodes[i]; !ok {
			inodes[i] = &simInode{visible: slices.Clone(i.visible), durable: slices.Clone(i.durable), pending: slices.Clone(i.pending)}
		}
		return inodes[i]
	}
	for name, i := range d.names {
		c.names[name] = copied(i)
	}
	for name, i := range d.durable {
		c.durable[name] = copied(i)
	}
	for _, p := range d.pending {
		c.pending = append(c.pending, simName{p.name, copied(p.inode)})
	}
	return c
}

// cut returns the disk as a power cut may leave it; r chooses.
func (d *simDisk) cut(r *rand.Rand) *simDisk {
	c := d.kill()
	names := c.durable
	for _, p := range c.pending[:r.IntN(len(c.pending)+1)] { // folders are journaled: in order
		setName(names, p)
	}
	keep := []int{0, 100, 50, 10, 90}[r.IntN(5)] // per cent of what was not synced
	done := map[*simInode]bool{}
	for _, i := range names {
		if done[i] {
			continue
		}
		done[i] = true
		b := slices.Clone(i.durable)
		for _, w := range i.pending {
			if w.data == nil {
				if r.IntN(100) < keep {
					b = w.apply(b)
				}
				continue
			}
			for _, part := range w.sectors() {
				if r.IntN(100) < keep {
					b = part.apply(b)
				}
			}
		}
		i.visible, i.durable, i.pending = b, slices.Clone(b), nil
	}
	return &simDisk{names: maps.Clone(names), durable: maps.Clone(names)}
}

func setName(names map[string]*simInode, p simName) {
	if p.inode == nil {
		delete(names, p.name)
		return
	}
	names[p.name] = p.inode
}

// do counts an operation and asks whether it fails.
func (d *simDisk) do(op string) error {
	d.ops++
	if d.before == nil {
		return nil
	}
	n := d.ops
	d.mu.Unlock()
	defer d.mu.Lock()
	return d.before(n, op)
}

func (d *simDisk) rename(p simName) {
	setName(d.names, p)
	d.pending = append(d.pending, p)
}

func (d *simDisk) Open(path string, flag int, _ fs.FileMode) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.names[path]
	switch {
	case i == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	case i != nil && flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrExist}
	case i == nil:
		if err := d.do("create " + filepath.Ext(path)); err != nil {
			return nil, err
		}
		i = &simInode{}
		d.rename(simName{path, i})
	}
	return &simFile{d: d, i: i, path: path, readOnly: flag&os.O_RDWR == 0}, nil
}

func (d *simDisk) Lock(f file, exclusive, _ bool) (bool, error) {
	sf := f.(*simFile)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case sf.i.locks < 0 || exclusive && sf.i.locks > 0:
		return false, nil
	case exclusive:
		sf.i.locks = -1
	default:
		sf.i.locks++
	}
	sf.locked = true
	return true, nil
}

func (d *simDisk) Link(old, new string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[new] != nil {
		return fs.ErrExist
	}
	if err := d.do("link"); err != nil {
		return err
	}
	d.rename(simName{new, d.names[old]})
	return nil
}

func (d *simDisk) Remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[path] == nil {
		return fs.ErrNotExist
	}
	if err := d.do("remove"); err != nil {
		return err
	}
	d.rename(simName{path, nil})
	return nil
}

func (d *simDisk) SyncDir(string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.do("syncdir"); err != nil {
		return err
	}
	for _, p := range d.pending {
		setName(d.durable, p)
	}
	d.pending = nil
	return nil
}

func (d *simDisk) SameFile(f file, path string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.names[path] == f.(*simFile).i, nil
}

func (d *simDisk) Resolve(path string) (string, error) { return path, nil }
func (d *simDisk) Network(file) (string, bool)         { return "", false }
func (d *simDisk) Map(f file) mapping                  { return newHeapMapping(f) }

// list names the files, for messages.
func (d *simDisk) list() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		fmt.Fprintf(&b, "%s:%d ", name, len(d.names[name].visible))
	}
	return b.String()
}

type simFile struct {
	d        *simDisk
	i        *simInode
	path     string
	readOnly bool
	locked   bool
}

func (f *simFile) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.i.visible)) {
		return 0, io.EOF
	}
	n := copy(b, f.i.visible[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *simFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.readOnly {
		return 0, errors.New("opened for reading")
	}
	if err := f.d.do("write " + filepath.Ext(f.path)); err != nil {
		return 0, err
	}
	return len(b), f.change(simWrite{off, slices.Clone(b)})
}

func (f *simFile) change(w simWrite) error {
	f.i.visible = w.apply(f.i.visible)
	f.i.pending = append(f.i.pending, w)
	return nil
}

func (f *simFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.readOnly {
		return errors.New("opened for reading")
	}
	if err := f.d.do("truncate"); err != nil {
		return err
	}
	return f.change(simWrite{off: size})
}

func (f *simFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.do("sync"); err != nil {
		f.i.pending = nil // clean in the cache, not on the disk
		return err
	}
	for _, w := range f.i.pending {
		f.i.durable = w.apply(f.i.durable)
	}
	f.i.pending = nil
	return nil
}

func (f *simFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.i.visible)), nil
}

func (f *simFile) Allocate(_, _ int64) error { return nil }

func (f *simFile) Punch(off, n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.do("punch"); err != nil {
		return err
	}
	return f.change(simWrite{off, make([]byte, n)})
}

func (f *simFile) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.locked {
		f.locked = false
		if f.i.locks < 0 {
			f.i.locks = 0
		} else {
			f.i.locks--
		}
	}
	return nil
}
