package emd

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Hostile files: whatever bytes the data file and its log hold, opening, reading, verifying, changing and closing it gives values or errors
// that say where; never a panic, a fault, an endless loop or memory in no proportion to the file. The fuzz targets explore that; the plain
// tests damage small real files at every place that has a meaning.

// A memFS is a file system in memory without the memory of what was synced that a simDisk has.
type memFS struct {
	mu    sync.Mutex
	files map[string]*memFile
}

type memFile struct {
	fs       *memFS
	mu       sync.Mutex
	b        []byte
	writer   bool
	readers  int
	readOnly bool // set by tests: writes fail
}

// A memHandle is an open file.
type memHandle struct {
	*memFile
	held int // 1 a shared lock, -1 an exclusive one
}

func newMemFS(data, log []byte) *memFS {
	d := &memFS{files: map[string]*memFile{}}
	if data != nil {
		d.files[hostilePath] = &memFile{fs: d, b: slices.Clone(data)}
	}
	if log != nil {
		d.files[logPath(hostilePath)] = &memFile{fs: d, b: slices.Clone(log)}
	}
	return d
}

func (d *memFS) Open(path string, flag int, _ fs.FileMode) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[path]
	switch {
	case f == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	case f != nil && flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrExist}
	case f == nil:
		f = &memFile{fs: d}
		d.files[path] = f
	}
	return &memHandle{memFile: f}, nil
}

func (d *memFS) Lock(f file, exclusive, _ bool) (bool, error) {
	h := f.(*memHandle)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.writer || exclusive && h.readers > 0:
		return false, nil
	case exclusive:
		h.writer, h.held = true, -1
	default:
		h.readers++
		h.held = 1
	}
	return true, nil
}

func (d *memFS) Link(old, new string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[new] != nil {
		return fs.ErrExist
	}
	d.files[new] = d.files[old]
	return nil
}

func (d *memFS) Remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[path] == nil {
		return fs.ErrNotExist
	}
	delete(d.files, path)
	return nil
}

func (d *memFS) SyncDir(string) error { return nil }

func (d *memFS) SameFile(f file, path string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files[path] == f.(*memHandle).memFile, nil
}

func (d *memFS) Resolve(path string) (string, error) { return path, nil }
func (d *memFS) Network(file) (string, bool)         { return "", false }
func (d *memFS) CopyOnWrite(file) (string, bool)     { return "", false }
func (d *memFS) Map(f file, _ bool) mapping          { return newHeapMapping(f) }
func (d *memFS) MapShared(f file) mapping            { return newSharedHeapMapping(f) }

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off < 0 || off >= int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(b, f.b[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readOnly {
		return 0, errors.New("written to")
	}
	if n := off + int64(len(b)); n > int64(len(f.b)) {
		f.b = resized(f.b, n)
	}
	return copy(f.b[off:], b), nil
}

func (f *memFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readOnly {
		return errors.New("truncated")
	}
	f.b = resized(f.b, size)
	return nil
}

func (f *memFile) Sync() error { return nil }

func (f *memFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.b)), nil
}

func (f *memFile) Allocate(int64, int64) error { return nil }

func (f *memFile) WriteOut(int64, int64) {}

func (f *memFile) Punch(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.b[min(off, int64(len(f.b))):min(off+n, int64(len(f.b)))])
	return nil
}

func (h *memHandle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.held {
	case 1:
		h.readers--
	case -1:
		h.writer = false
	}
	h.held = 0
	return nil
}

var hostileRuns = flag.Int("emd.hostile", 300, "random damages of TestHostileRandom")

const hostilePath = "/hostile.emd"

func hostileOptions(fs fileSystem) internalOptions {
	return internalOptions{fs: fs, heap: true, chunkSize: minChunkSize, dirtyLimit: 8 << 20, logLimit: 64 << 10, inline: true}
}

// A fileImage is a real file, and its log if it was not closed.
type fileImage struct {
	name      string
	data, log []byte
}

// A resident is a container of the images that the tests know the type of.
type resident struct {
	name  string
	make  func(h *hostile, a *Arena, n int)
	read  func(h *hostile, a *Arena)
	write func(h *hostile, a *Arena)
	stays func(a *Arena) error // that it has the elements that make gave it
}

type hostileStruct struct {
	A uint32
	B [6]byte
}

func longText(i int) string {
	return strings.Repeat(fmt.Sprint(i, "-"), []int{1, 3, 40, 400, 2500}[i%5])
}

var residents = []resident{
	residentDict("words", 300, func(i int) uint64 { return uint64(i) * 7 }, func(i int) uint64 { return uint64(i) << 32 }, nil),
	residentDict("control", 120, func(i int) [3]byte { return [3]byte{byte(i), 1} }, func(i int) [20]byte { return [20]byte{byte(i)} }, nil),
	residentDict("slotted", 60, func(i int) string { return fmt.Sprint("key ", i) }, longText, nil),
	residentDict("farkeys", 12, func(i int) string { return fmt.Sprint(i) + strings.Repeat("k", 600*(i%3)) }, func(i int) uint32 { return uint32(i) }, nil),
	residentDict("json", 10, func(i int) int16 { return int16(i) }, func(i int) map[string]int { return map[string]int{"n": i} },
		&DictOptions[int16, map[string]int]{ValueCodec: JSON[map[string]int]()}),
	residentDict("chains", 700, func(i int) uint64 { return uint64(i) + 1 }, func(i int) uint64 { return uint64(i) }, nil),
	residentSlices("slices", func(i int) uint64 { return uint64(i)*7 + 1 }),
	residentSlices("texts", func(i int) string { return fmt.Sprint(i, strings.Repeat("-", i%9)) }),
	residentSlices("bytes", func(i int) byte { return byte(i) }),
	residentDict("none", 0, func(i int) uint64 { return uint64(i) }, func(i int) string { return longText(i) }, nil),
	residentList("plain", 700, func(i int) uint64 { return uint64(i) + 1 }),
	residentList("structs", 100, func(i int) hostileStruct { return hostileStruct{uint32(i), [6]byte{9}} }),
	residentList("strings", 50, longText),
	residentList("zero", 5, func(int) struct{} { return struct{}{} }),
}

// A hostile is one run on one image.
type hostile struct {
	t    testing.TB
	what string
	ops  int // done

	relaxed bool // the arena that is open: a damaged header may say so

	allocated uint64 // by the process, at the last of them
	bound     uint64 // of what one may allocate; 0: none
}

// must is for building images.
func (h *hostile) must(err error) { require.NoError(h.t, err, h.what) }

// hostileErrors are what a damaged file may cause. ErrClosed is what a container is after a Rollback has found that its catalogue is damaged.
var hostileErrors = []error{ErrCorrupt, ErrVersion, ErrTypeMismatch, ErrNoContainer, ErrTooLarge, ErrUpdateTooLarge, ErrClosed, ErrRolledBack, ErrUnclean}

// allow accepts success and the errors that a damaged file may cause, with the file's name.
func (h *hostile) allow(op string, err error) {
	h.ops++
	now := heapAllocated()
	if h.bound != 0 && now-h.allocated > h.bound {
		h.t.Fatalf("%s: %s: allocated %d bytes", h.what, op, now-h.allocated)
	}
	h.allocated = now
	if err == nil {
		return
	}
	var e *Error
	if !errors.As(err, &e) || e.Path != hostilePath {
		h.t.Fatalf("%s: %s: error without a place: %v", h.what, op, err)
	}
	if h.relaxed && errors.Is(err, ErrUnsupported) {
		return // there is no Rollback
	}
	for _, allowed := range hostileErrors {
		if errors.Is(err, allowed) {
			return
		}
	}
	h.t.Fatalf("%s: %s: %v", h.what, op, err)
}

const hostileLoop = 3000 // elements that a loop looks at: lists may be sparse, and long

func residentDict[K comparable, V any](name string, n int, key func(int) K, val func(int) V, opts *DictOptions[K, V]) resident {
	open := func(a *Arena, mustExist bool) (*EMDict[K, V], error) {
		o := DictOptions[K, V]{}
		if opts != nil {
			o = *opts
		}
		o.MustExist = mustExist
		d, err := Dict[K, V](a, name, &o)
		if err == nil && name == "chains" {
			d.d.hashMask = 0 // all keys collide
		}
		return d, err
	}
	return resident{
		name: name,
		make: func(h *hostile, a *Arena, scale int) {
			d, err := open(a, false)
			h.must(err)
			for i := range n * scale {
				h.must(d.Set(key(i), val(i)))
			}
			for i := 3; i < n*scale; i += 10 {
				_, err := d.Delete(key(i))
				h.must(err)
			}
		},
		read: func(h *hostile, a *Arena) {
			d, err := open(a, true)
			h.allow("open "+name, err)
			if err != nil {
				return
			}
			for i := range 20 {
				_, _, err := d.Get(key(i))
				h.allow("get "+name, err)
				_, err = d.Contains(key(1000 + i))
				h.allow("contains "+name, err)
			}
			i := 0
			for range d.All() {
				if i++; i > hostileLoop {
					break
				}
			}
			i = 0
			for range d.Keys() {
				if i++; i > hostileLoop {
					break
				}
			}
			for range d.Values() {
				if i++; i > hostileLoop {
					break
				}
			}
			h.allow("loop "+name, d.Err())
			d.Len()
		},
		write: func(h *hostile, a *Arena) {
			d, err := open(a, true)
			h.allow("open "+name, err)
			if err != nil {
				return
			}
			for i := range 12 {
				h.allow("set "+name, d.Set(key(i*5), val(i+1)))
				h.allow("set new "+name, d.Set(key(5000+i), val(i)))
				_, err := d.Delete(key(i * 7))
				h.allow("delete "+name, err)
				_, _, err = d.GetOrSet(key(6000+i), val(i))
				h.allow("getorset "+name, err)
				_, _, err = d.Swap(key(i), val(i+2))
				h.allow("swap "+name, err)
				_, _, err = d.Compute(key(i+20), func(V, bool) (V, Op) { return val(i), Op(i % 3) })
				h.allow("compute "+name, err)
			}
			i := 0
			_, err = d.DeleteFunc(func(K, V) bool { i++; return i%2 == 0 })
			h.allow("deletefunc "+name, err)
			for i := range min(n, 100) {
				_, err := d.Delete(key(i))
				h.allow("delete "+name, err)
			}
			for i := range 60 {
				h.allow("set again "+name, d.Set(key(i+10), val(i)))
			}
			h.allow("grow "+name, d.Grow(300))
		},
		stays: func(a *Arena) error {
			d, err := open(a, true)
			if err != nil {
				return err
			}
			for i := range n {
				v, ok, err := d.Get(key(i))
				if err != nil {
					return err
				}
				if want := val(i); ok != (i%10 != 3) || ok && !equalStates(v, want) {
					return fmt.Errorf("key %d: %v, %v", i, v, ok)
				}
			}
			return nil
		},
	}
}

// residentSlices is a dict of slices that AppendTo has made longer: of few elements and many.
func residentSlices[E any](name string, elem func(int) E) resident {
	const n = 24
	lengths := func(k int) int { return []int{1, 9, 40, 700}[k%4] }
	some := func(from, to int) (v []E) {
		for i := from; i < to; i++ {
			v = append(v, elem(i))
		}
		return v
	}
	val := func(k int) []E { return some(k, k+lengths(k)) }
	r := residentDict(name, 0, func(i int) uint64 { return uint64(i) }, val, nil)
	open := func(a *Arena) (*EMDict[uint64, []E], error) {
		return Dict(a, name, &DictOptions[uint64, []E]{MustExist: true})
	}
	r.make = func(h *hostile, a *Arena, scale int) {
		d, err := Dict[uint64, []E](a, name, nil)
		h.must(err)
		for k := range n * scale {
			for i := 0; i < lengths(k); i += 20 {
				h.must(AppendTo(d, uint64(k), some(k+i, k+min(i+20, lengths(k)))...))
			}
			if k%10 == 3 {
				_, err := d.Delete(uint64(k))
				h.must(err)
			}
		}
	}
	read, write := r.read, r.write
	r.read = func(h *hostile, a *Arena) {
		read(h, a)
		d, err := open(a)
		if err != nil {
			return
		}
		for k := range uint64(n) {
			i := 0
			for range Elems(d, k) {
				if i++; i > hostileLoop {
					break
				}
			}
			h.allow("elems "+name, d.Err())
		}
	}
	r.write = func(h *hostile, a *Arena) {
		d, err := open(a)
		h.allow("open "+name, err)
		if err != nil {
			return
		}
		for k := range uint64(n) {
			h.allow("append "+name, AppendTo(d, k, elem(1)))
			h.allow("append "+name, AppendTo(d, k, some(0, 300)...))
		}
		write(h, a)
		for k := range uint64(n) {
			h.allow("append "+name, AppendTo(d, k, some(0, 30)...))
		}
	}
	r.stays = func(a *Arena) error {
		d, err := open(a)
		if err != nil {
			return err
		}
		for k := range n {
			v, ok, err := d.Get(uint64(k))
			if err != nil {
				return err
			}
			if ok != (k%10 != 3) || ok && !equalStates(v, val(k)) {
				return fmt.Errorf("key %d: %v, %v", k, v, ok)
			}
		}
		return nil
	}
	return r
}

func residentList[T any](name string, n int, val func(int) T) resident {
	open := func(a *Arena, mustExist bool) (*EMList[T], error) {
		return List[T](a, name, &ListOptions[T]{MustExist: mustExist})
	}
	return resident{
		name: name,
		make: func(h *hostile, a *Arena, scale int) {
			l, err := open(a, false)
			h.must(err)
			for i := range n * scale {
				h.must(l.Append(val(i)))
			}
			h.must(l.Delete(0, n/10))
		},
		read: func(h *hostile, a *Arena) {
			l, err := open(a, true)
			h.allow("open "+name, err)
			if err != nil {
				return
			}
			n := l.Len()
			if n > 0 {
				for _, i := range []int{0, n / 2, n - 1} {
					_, err := l.Get(i)
					h.allow("get "+name, err)
				}
				dst := make([]T, min(n, 100))
				_, err := l.CopyTo(dst, n-len(dst))
				h.allow("copyto "+name, err)
				h.allow("getmany "+name, l.GetMany(dst[:1], []int{n / 3}))
			}
			for _, seq := range []func(func(int, T) bool){l.All(), l.Backward(), l.Range(n/3, n/2)} {
				i := 0
				for range seq {
					if i++; i > hostileLoop {
						break
					}
				}
			}
			h.allow("loop "+name, l.Err())
		},
		write: func(h *hostile, a *Arena) {
			l, err := open(a, true)
			h.allow("open "+name, err)
			if err != nil {
				return
			}
			do := func(op string, fn func(n int) error) {
				if n := l.Len(); n > 3 {
					h.allow(op+" "+name, fn(n))
				}
			}
			h.allow("append "+name, l.Append(val(1), val(2), val(3), val(4)))
			do("set", func(n int) error { return l.Set(n/2, val(7)) })
			do("set", func(n int) error { return l.Set(n-1, val(8)) })
			do("swap", func(n int) error { return l.Swap(0, n-1) })
			do("insert", func(int) error { return l.Insert(1, val(3), val(4)) })
			do("insert", func(n int) error { return l.Insert(n/2, val(6)) })
			do("pop", func(int) error { _, _, err := l.Pop(); return err })
			do("delete", func(n int) error { return l.Delete(n/2, n/2+1) })
			do("delete", func(int) error { return l.Delete(0, 2) })
			do("fill", func(n int) error { return l.Fill(n/2, min(n, n/2+200), val(9)) })
			do("resize", func(n int) error { return l.Resize(min(n+1000, maxListLen)) })
			do("delete", func(n int) error { return l.Delete(max(0, n-500), n) })
			do("deletefunc", func(n int) error {
				if n > 1<<16 {
					return nil
				}
				i := 0
				_, err := l.DeleteFunc(func(T) bool { i++; return i%3 == 0 })
				return err
			})
			h.allow("append "+name, l.AppendSeq(slices.Values([]T{val(1), val(2)})))
		},
		stays: func(a *Arena) error {
			l, err := open(a, true)
			if err != nil {
				return err
			}
			if l.Len() != n-n/10 {
				return fmt.Errorf("%d elements", l.Len())
			}
			for i := range l.Len() {
				v, err := l.Get(i)
				if err != nil {
					return err
				}
				if !equalStates(v, val(i+n/10)) {
					return fmt.Errorf("element %d: %v", i, v)
				}
			}
			return nil
		},
	}
}

// populate fills an arena with residents.
func (h *hostile) populate(a *Arena, scale int, names ...string) {
	for _, r := range residents {
		if len(names) == 0 || slices.Contains(names, r.name) {
			r.make(h, a, scale)
		}
	}
	h.must(a.SetMeta("schema", []byte("7")))
	h.must(a.SetMeta("long", []byte(longText(9))))
}

// image runs fn on a new arena and returns the files: closed, or as a kill leaves them.
func (h *hostile) image(name string, closed bool, fn func(a *Arena)) fileImage {
	disk := newMemFS(nil, nil)
	a, err := openWith(hostilePath, &Options{HashSeed: 7}, hostileOptions(disk))
	h.must(err)
	fn(a)
	if closed {
		h.must(a.Close())
		return fileImage{name: name, data: slices.Clone(disk.files[hostilePath].b)}
	}
	img := fileImage{name, slices.Clone(disk.files[hostilePath].b), slices.Clone(disk.files[logPath(hostilePath)].b)}
	h.must(a.Close())
	return img
}

var hostileImagesOnce sync.Once
var hostileImagesMade []fileImage

// hostileImages returns the real files that are damaged. The last is large.
func hostileImages(t testing.TB) []fileImage {
	hostileImagesOnce.Do(func() {
		h := &hostile{t: t, what: "building"}
		hostileImagesMade = []fileImage{
			h.image("empty", true, func(a *Arena) {}),
			h.image("small", true, func(a *Arena) { h.populate(a, 1, "words", "control", "slotted", "slices", "plain", "strings") }),
			h.image("all", true, func(a *Arena) { h.populate(a, 1) }),
			h.image("crashed", false, func(a *Arena) {
				h.populate(a, 1, "words", "slotted", "plain")
				h.must(a.Sync())
				l, err := List[uint64](a, "plain", nil)
				h.must(err)
				for i := range 5 {
					h.must(l.Append(uint64(i)))
					h.must(a.SetMeta("n", []byte{byte(i)}))
					h.must(a.Sync())
				}
				h.populate(a, 1, "strings")
				h.must(a.Sync())
			}),
			h.image("large", true, func(a *Arena) {
				h.populate(a, 1, "plain")
				for _, r := range residents {
					if r.name == "slotted" || r.name == "strings" {
						r.make(h, a, 4)
					}
				}
				d, err := Dict[string, string](a, "slotted", nil)
				h.must(err)
				h.must(d.Set("in pieces", strings.Repeat("p", 300<<10)))
				w, err := Dict[uint64, uint64](a, "words", nil)
				h.must(err)
				for i := range 90_000 {
					h.must(w.Set(uint64(i)*7, uint64(i)<<32))
				}
				require.NotZero(t, w.d.table.Load().bits, "a dict that has fanned out")
			}),
		}
	})
	return hostileImagesMade
}

// heapAllocated returns the bytes that this process has ever allocated.
func heapAllocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// survive uses the files in every way, and requires of each step success or an error that a damaged file may cause.
func survive(t testing.TB, what string, data, log []byte) (opened bool) {
	h := &hostile{t: t, what: what}
	watchdog := time.AfterFunc(time.Minute, func() { // far more than any of this takes: an endless loop
		debug.SetTraceback("all")
		panic("hangs: " + what)
	})
	defer watchdog.Stop()
	defer func() {
		if p := recover(); p != nil {
			t.Fatalf("%s: panic: %v\n%s", what, p, debug.Stack())
		}
	}()
	h.allocated, h.bound = heapAllocated(), uint64(64<<20+10*(len(data)+len(log)))
	disk := newMemFS(data, log)
	_, err := salvageWith(t.Context(), "/salvaged.emd", hostilePath, nil, hostileOptions(disk))
	h.allow("salvage", err)
	if err == nil {
		s, err := openWith("/salvaged.emd", &Options{ReadOnly: true}, hostileOptions(disk))
		require.NoError(t, err, "%s: what was salvaged", what)
		require.NoError(t, s.Check(t.Context(), nil), "%s: what was salvaged", what)
		require.NoError(t, s.Close(), what)
	}
	a, err := openWith(hostilePath, &Options{ReadOnly: true}, hostileOptions(disk))
	h.allow("open read-only", err)
	if err == nil {
		h.readAll(a)
		h.allow("close read-only", a.Close())
	}
	a, err = openWith(hostilePath, &Options{MustExist: true}, hostileOptions(disk))
	h.allow("open", err)
	if err == nil {
		opened, h.relaxed = true, a.header.relaxed()
		h.readAll(a)
		h.writeAll(a)
		h.allow("close", a.Close())
		a, err = openWith(hostilePath, nil, hostileOptions(disk))
		h.allow("reopen", err)
		if err == nil {
			h.readAll(a)
			h.allow("close again", a.Close())
		}
	}
	return opened
}

func (h *hostile) readAll(a *Arena) {
	var names []string
	for info := range a.Containers() {
		names = append(names, info.Name)
	}
	for _, name := range append(names, "no such container") {
		n := 0
		var text []byte
		for k, v := range a.Entries(name) {
			text, _ = AppendJSON(text[:0], k)
			text, _ = AppendJSON(text[:0], v)
			if n++; n > hostileLoop {
				break
			}
		}
	}
	for _, r := range residents {
		r.read(h, a)
	}
	a.Meta("schema")
	a.Meta("long")
	a.Stats()
	h.allow("err", a.Err())
	h.allow("check", a.Check(h.t.Context(), nil))
}

func (h *hostile) writeAll(a *Arena) {
	for i, r := range residents {
		r.write(h, a)
		if i%3 == 0 {
			h.allow("sync", a.Sync())
		}
		if i%5 == 4 {
			h.allow("rollback", a.Rollback())
		}
	}
	h.allow("setmeta", a.SetMeta("schema", []byte("8")))
	h.allow("setmeta", a.SetMeta("long", nil))
	l, err := List[string](a, "made later", nil)
	h.allow("create", err)
	if err == nil {
		h.allow("append", l.Append("a", longText(4), longText(3)))
	}
	h.allow("sync", a.Sync())
	for i, r := range residents {
		switch i % 3 {
		case 0:
			h.allow("drop", a.Drop(r.name))
		case 1:
			h.allow("update", a.Update(func() error { r.write(h, a); return nil }))
		}
	}
	h.allow("rollback", a.Rollback())
	for i, r := range residents {
		if i%4 == 1 {
			h.allow("drop", a.Drop(r.name))
		}
	}
	if d, err := Dict[uint64, uint64](a, "words", nil); err == nil {
		h.allow("clear", d.Clear())
		h.allow("set", d.Set(1, 2))
	}
	if l, err := List[string](a, "strings", nil); err == nil {
		h.allow("clear", l.Clear())
		h.allow("append", l.Append("x"))
	}
	h.allow("setmeta", a.SetMeta("schema", []byte("9")))
}

// fixSums gives the header slots and the records of a log the checksums that their bytes ask for, so that damage passes them.
func fixSums(data, log []byte) {
	le := binary.LittleEndian
	for i := range slotPages {
		if b := data[min(len(data), i*pageSize):]; len(b) >= slotSize {
			le.PutUint32(b[slotSumOff:], crc32.Checksum(b[:slotSumOff], castagnoli))
		}
	}
	if len(log) >= pageSize {
		le.PutUint32(log[logSumOff:], crc32.Checksum(log[:logSumOff], castagnoli))
	}
	for off := logHeader; off+recHeader+recSum <= len(log); off += pageSize {
		b := log[off:]
		if n := le.Uint64(b[recLengthOff:]); le.Uint32(b) == recMagic && n > recHeader+recSum && n <= uint64(len(b)) {
			le.PutUint32(b[n-recSum:], crc32.Checksum(b[:n-recSum], castagnoli))
		}
	}
}

// TestHostileSeeds: the undamaged files are what they should be.
func TestHostileSeeds(t *testing.T) {
	for _, img := range hostileImages(t) {
		require.True(t, survive(t, img.name, img.data, img.log))
		a, err := openWith(hostilePath, &Options{ReadOnly: true}, hostileOptions(newMemFS(img.data, img.log)))
		require.NoError(t, err)
		if img.name == "small" || img.name == "all" {
			for _, r := range residents {
				if err := r.stays(a); img.name == "all" || !errors.Is(err, ErrNoContainer) {
					require.NoError(t, err, r.name)
				}
			}
		}
		require.NoError(t, a.verify(), img.name)
		require.NoError(t, a.Close())
		t.Logf("%s: %d bytes, log of %d", img.name, len(img.data), len(img.log))
	}
}

// A damage is a change of one image.
type damage struct {
	img       fileImage
	data, log []byte
}

func newDamage(img fileImage) *damage {
	return &damage{img: img, data: slices.Clone(img.data), log: slices.Clone(img.log)}
}

// edit decodes and makes edits of 8 bytes each: what, which file, page u16, offset u16, value u16.
func (d *damage) edit(edits []byte) {
	fix := false
	for ; len(edits) >= 8; edits = edits[8:] {
		le := binary.LittleEndian
		b := &d.data
		if edits[1]&1 != 0 {
			b = &d.log
		}
		if len(*b) == 0 {
			continue
		}
		pages := len(*b)/pageSize + 1
		page, off, val := int(le.Uint16(edits[2:]))%pages, int(le.Uint16(edits[4:]))%pageSize, le.Uint16(edits[6:])
		at := page*pageSize + off
		if at >= len(*b) {
			continue
		}
		rest := (*b)[at:]
		switch edits[0] % 10 {
		case 0:
			rest[0] ^= 1 << (val % 8)
		case 1:
			rest[0] = byte(val)
		case 2:
			copy(rest, binary.LittleEndian.AppendUint16(nil, val))
		case 3: // a word that may be a page number
			copy(rest, binary.LittleEndian.AppendUint32(nil, uint32(val)%uint32(pages+2)))
		case 4:
			copy(rest, binary.LittleEndian.AppendUint64(nil, uint64(val)<<(edits[1]&56)))
		case 5: // another page in its place
			if from := int(val) % pages * pageSize; from+pageSize <= len(*b) && page*pageSize+pageSize <= len(*b) {
				copy((*b)[page*pageSize:][:pageSize], (*b)[from:])
			}
		case 6:
			clear(rest[:min(len(rest), int(val)%pageSize)])
		case 7:
			r := rand.New(rand.NewPCG(uint64(val), 1))
			for i := range min(len(rest), 1+int(edits[1]>>1)) {
				rest[i] = byte(r.Uint32())
			}
		case 8:
			fix = true
		case 9:
			*b = (*b)[:at]
		}
	}
	if fix {
		fixSums(d.data, d.log)
	}
}

// randomEdits chooses edits of places that are not zero, or next to them, mostly at the start of pages, where headers are.
func (d *damage) randomEdits(r *rand.Rand) (edits []byte) {
	le := binary.LittleEndian
	for range 1 + r.IntN(4) {
		b, which := d.data, byte(0)
		if len(d.log) > 0 && r.IntN(3) == 0 {
			b, which = d.log, 1
		}
		page, off := 0, 0
		for range 100 {
			page, off = r.IntN(len(b)/pageSize), r.IntN(pageSize)
			if r.IntN(2) == 0 {
				off = r.IntN([]int{64, 256}[r.IntN(2)])
			}
			if at := page*pageSize + off; !zeroBytes(b[at&^7:at&^7+8]) || r.IntN(20) == 0 {
				break
			}
		}
		val := []int{0, 0xffff, 1, r.IntN(len(b) / pageSize), r.IntN(1 << 16)}[r.IntN(5)]
		e := []byte{byte(r.IntN(8)), which | byte(r.IntN(128))<<1}
		e = le.AppendUint16(le.AppendUint16(le.AppendUint16(e, uint16(page)), uint16(off)), uint16(val))
		edits = append(edits, e...)
	}
	if r.IntN(2) == 0 {
		edits = append(edits, 8, 0, 0, 0, 0, 0, 0, 0)
	}
	if r.IntN(20) == 0 {
		edits = append(edits, 9, byte(r.IntN(2)), byte(r.IntN(256)), 0, byte(r.IntN(256)), byte(r.IntN(16)), 0, 0)
	}
	return edits
}

// FuzzDamage flips bits in real files and their logs, cuts them, and exchanges pages: the first byte chooses the file, the rest are edits.
func FuzzDamage(f *testing.F) {
	for _, i := range []int{1, 2, 3, 31} {
		f.Add(uint8(i), []byte{1, 0, 3, 0, 20, 0, 0xff, 0})
		f.Add(uint8(i), []byte{0, 1, 1, 0, 33, 0, 3, 0, 8, 0, 0, 0, 0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, edits []byte) {
		if len(edits) > 8*40 {
			return
		}
		images := hostileImages(t)
		if which%32 != 31 { // rarely the large one
			images = images[:len(images)-1]
		}
		d := newDamage(images[int(which)%len(images)])
		d.edit(edits)
		survive(t, fmt.Sprintf("%s, edits %x", d.img.name, edits), d.data, d.log)
	})
}

// FuzzOpen opens any bytes as a file and as its log. Zeros at their ends are left out.
func FuzzOpen(f *testing.F) {
	for _, img := range hostileImages(f) {
		if len(img.data) <= 500<<10 {
			f.Add(trimZeros(img.data), trimZeros(img.log), true)
		}
	}
	f.Add([]byte{}, []byte{}, false)
	f.Add([]byte(fileMagic), []byte(logMagic), true)
	f.Fuzz(func(t *testing.T, data, log []byte, fix bool) {
		if len(data) > 1<<20 || len(log) > 1<<20 {
			return
		}
		data = append(slices.Clone(data), make([]byte, -len(data)&(unitSize-1))...)
		if len(log) > 0 {
			log = append(slices.Clone(log), make([]byte, max(0, logHeader+minAreaSize-len(log)))...)
		} else {
			log = nil
		}
		if fix {
			fixSums(data, log)
		}
		survive(t, "any bytes", data, log)
	})
}

func trimZeros(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

var hostileEdits = flag.String("emd.hostile.edits", "", "image and edits, such as small,0102..., that TestHostileRandom makes instead of random ones")

// TestHostileLengths cuts a file, and the log of another, at sectors and beside them.
func TestHostileLengths(t *testing.T) {
	runs := 0
	for _, img := range hostileImages(t)[1:4] {
		step := len(img.data)/120&^511 + 512
		for size := 0; size < len(img.data); size += step {
			for _, n := range []int{size, min(len(img.data), size+1+size/512%509)} {
				survive(t, fmt.Sprintf("%s cut to %d", img.name, n), slices.Clone(img.data[:n]), img.log)
				runs++
			}
		}
		for _, off := range []int{0, 1, 40, 511, 512, slotSize + 1, pageSize - 1, pageSize, 2*pageSize - 7, 3 * pageSize, unitSize - 1} {
			survive(t, fmt.Sprintf("%s cut to %d", img.name, off), slices.Clone(img.data[:off]), img.log)
			runs++
		}
		for n := 0; n < len(img.log); n += len(img.log)/100 + 1 {
			survive(t, fmt.Sprintf("%s, log cut to %d", img.name, n), img.data, slices.Clone(img.log[:n]))
			runs++
		}
	}
	t.Logf("%d lengths", runs)
}

// TestHostileBytes overwrites the bytes of the pages that lead to others, with checksums of header slots and log records put right: where
// a page has something, more of it than of empty stretches. Of each image it changes one byte of so many as -emd.hostile.share says, but the
// header has every state that there is.
func TestHostileBytes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 5))
	runs, opened := 0, 0
	try := func(img fileImage, b []byte, data, log []byte, off int, v byte) {
		was := b[off]
		if v == was {
			return
		}
		b[off] = v
		fixSums(data, log)
		if survive(t, fmt.Sprintf("seed %d: %s, byte %d is %#x, not %#x", seed, img.name, off, v, was), data, log) {
			opened++
		}
		b[off] = was
		runs++
	}
	share := *hostileShare
	for _, img := range hostileImages(t)[1:4] {
		data, log := slices.Clone(img.data), slices.Clone(img.log)
		for slot := range slotPages {
			for state := byte(0); state <= headerUnclean+1; state++ {
				try(img, data, data, log, slot*pageSize+slotStateOff, state)
			}
		}
		for off := range slotUsed { // one slot: the newest counts, and the others have the same form
			for _, slot := range []int{0, 1, 2} {
				if r.IntN(share) == 0 {
					try(img, data, data, log, slot*pageSize+off, []byte{0, 0xff, data[slot*pageSize+off] ^ 1<<r.IntN(8)}[r.IntN(3)])
				}
			}
		}
		for p := slotPages; p < len(data)/pageSize; p++ {
			for in := range pageSize {
				off := p*pageSize + in
				often := share * 30
				switch {
				case in < 64 || data[off] != 0 && in < 256:
					often = share * 4
				case data[off] == 0:
					often = share * 300
				}
				if r.IntN(often) == 0 {
					try(img, data, data, log, off, []byte{0, 1, 0xff, data[off] ^ 1<<r.IntN(8)}[r.IntN(4)])
				}
			}
		}
		for off := range min(len(log), 4*pageSize) {
			if in := off % pageSize; log[off] != 0 && r.IntN(share*8) == 0 || in < recHeader && r.IntN(share) == 0 {
				try(img, log, data, log, off, []byte{0, 0xff, log[off] ^ 1<<r.IntN(8)}[r.IntN(3)])
			}
		}
	}
	t.Logf("seed %d: %d bytes changed, %d of the files could be opened", seed, runs, opened)
}

var hostileShare = flag.Int("emd.hostile.share", 80, "TestHostileBytes changes one byte of so many that it could")

// TestHostileCounts has dicts claim more entries than they have, up to one for each byte of the file: Grow splits buckets until there is room for
// all of them.
func TestHostileCounts(t *testing.T) {
	runs := 0
	for _, img := range hostileImages(t)[1:3] {
		for p := slotPages; p < len(img.data)/pageSize; p++ {
			if hdr := img.data[p*pageSize:][:pageSize]; string(hdr[dictKindOff:dictLayoutOff]) == dictKind {
				for _, n := range []int{len(img.data) / pageSize, len(img.data) / 16, len(img.data)} {
					data := slices.Clone(img.data)
					binary.LittleEndian.PutUint64(data[p*pageSize+dictLenOff:], uint64(n))
					survive(t, fmt.Sprintf("%s: dict at page %d of %d entries", img.name, p, n), data, img.log)
					runs++
				}
			}
		}
	}
	require.NotZero(t, runs)
	t.Logf("%d counts", runs)
}

// TestHostileRandom makes random edits.
func TestHostileRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 2))
	images := hostileImages(t)
	opened, runs := 0, *hostileRuns
	for range runs {
		d := newDamage(images[r.IntN(len(images))])
		edits := d.randomEdits(r)
		if name, text, given := strings.Cut(*hostileEdits, ","); given { // a finding is to be repeated
			var err error
			edits, err = hex.DecodeString(text)
			require.NoError(t, err)
			for _, img := range images {
				if img.name == name {
					d = newDamage(img)
				}
			}
		}
		d.edit(edits)
		if survive(t, fmt.Sprintf("seed %d: %s, edits %x", seed, d.img.name, edits), d.data, d.log) {
			opened++
		}
	}
	t.Logf("seed %d: %d damaged files, %d of them could be opened", seed, runs, opened)
}

func resized(b []byte, n int64) []byte {
	if n <= int64(len(b)) {
		return b[:n:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}
