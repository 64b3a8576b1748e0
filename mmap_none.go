//go:build !unix && !windows

package emd

import (
	"errors"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"unsafe"
)

// WebAssembly (js, wasip1) and Plan 9 map no files. There the whole file lies in
// memory of the Go heap, see heapMapping. All else is as everywhere: what is
// written, when, and in which order; so the file is the same, and survives the
// same crashes, as far as the runtime or file server below waits for the disk
// when it is asked to.

// newMapping returns a mapping of f. far changes nothing: chunks of the Go heap
// are neighbours by chance.
func newMapping(f *os.File, far bool, use mapUse) mapping {
	m := &heapMapping{f: f, limit: min(addressLimit(), debug.SetMemoryLimit(-1))}
	if use == mapShared {
		m.shared = &osFile{File: f}
	}
	return m
}

// wholeChunks says that a shared chunk must lie in the file as a whole.
const wholeChunks = false

// manyOwned is of no use: nothing is guarded.
const manyOwned = math.MaxInt

// addressLimit returns how much memory the program may take, as far as one can
// know: of 4 GiB, which is all that WebAssembly and 32 bits can address, 63
// chunks of 64 MiB were to be had under Node.js and wazero; the rest of the
// program needs some, too. A host may give less.
func addressLimit() int64 {
	limit := int64(1 << 62)
	switch {
	case runtime.GOARCH == "wasm":
		limit = 7 << 29
	case bits.UintSize == 32:
		limit = 1 << 31
	}
	if memory := physicalMemory(); memory > 0 {
		limit = min(limit, memory)
	}
	return limit
}

// osPageSize returns the unit in which memory is adopted and dropped. That of
// wasm, 64 KiB, is how its memory grows, and concerns no file.
func osPageSize() int { return pageSize }

// allocTable returns n zero bytes, aligned for 64-bit words.
func allocTable(n int) ([]byte, error) {
	words := make([]uint64, (n+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), n), nil
}

func freeTable([]byte) {}

// fileLocks are the locks that files of this process hold. A second process is
// not kept out: WebAssembly has no call for that, and what Plan 9 has, files of
// exclusive use, keeps readers from each other too, and is a property of the
// file that only its owner may set. Who wants it there creates the file with
// fs.ModeExclusive in Options.Mode.
var fileLocks = struct {
	sync.Mutex
	changed sync.Cond
	held    map[*os.File]fileLock
}{held: map[*os.File]fileLock{}}

func init() { fileLocks.changed.L = &fileLocks }

type fileLock struct {
	info      fs.FileInfo
	exclusive bool
}

func lockFile(f *os.File, exclusive, wait bool) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	l := fileLock{info, exclusive}
	fileLocks.Lock()
	defer fileLocks.Unlock()
	for l.excluded(f) {
		if !wait {
			return false, nil
		}
		fileLocks.changed.Wait()
	}
	fileLocks.held[f] = l
	return true, nil
}

// excluded says whether a lock that another open file holds excludes l, of f.
func (l fileLock) excluded(f *os.File) bool {
	for g, h := range fileLocks.held {
		if g != f && (l.exclusive || h.exclusive) && os.SameFile(l.info, h.info) {
			return true
		}
	}
	return false
}

func unlockFile(f *os.File) error {
	fileLocks.Lock()
	defer fileLocks.Unlock()
	delete(fileLocks.held, f)
	fileLocks.changed.Broadcast()
	return nil
}

func writeOut(*os.File, int64, int64) {}

func syncFile(f *os.File) error { return f.Sync() }

// syncDir makes the names in a folder durable, where folders can be opened and
// flushed: which error says that they cannot depends on the host.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	if err = d.Sync(); !errors.Is(err, syscall.EIO) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// truncateFile is os.File's Truncate: nothing is mapped that could be in the way.
func truncateFile(f *os.File, size int64) error { return f.Truncate(size) }

// allocateFile has no call to use.
func allocateFile(*os.File, int64, int64) error { return errors.ErrUnsupported }

func punchFile(f *os.File, _, _ int64) error {
	if _, err := f.Stat(); err != nil {
		return err // closed
	}
	return errors.ErrUnsupported
}

// networkOf and copyOnWriteOf do not know.
func networkOf(*os.File) string     { return "" }
func copyOnWriteOf(*os.File) string { return "" }
