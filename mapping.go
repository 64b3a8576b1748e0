package emd

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"
)

// A mapping is the memory that shows one file, made chunk by chunk. It holds
// no policy: which pages are mapped, adopted and dropped is decided above it.
//
// That of a relaxed arena is shared: chunks are the file, in their whole length,
// and what is stored there gets to the disk when the system likes. A page
// past the end of the file must not be touched. Only chunk, sync, willNeed, prefetch
// and close are used of it.
//
// All p and n are multiples of [osPageSize] and [p, p+n) lies inside one
// chunk. chunk and close are called by one goroutine at a time. adopt and drop
// may run beside them and each other, for ranges that nobody writes meanwhile;
// readers of the range see its bytes at all times. willNeed may be called at
// any time, even after close.
type mapping interface {
	// chunk returns memory for the file range [off, off+size): its first filed
	// bytes are the file's, mapped private (copy on write), and the file is
	// that long already; the rest is zero memory of the process. size and
	// filed are multiples of 64 KiB. The address stays readable for the life of
	// the process. ErrFull: no address space, or the kernel promises no memory.
	chunk(off, size, filed int64) (unsafe.Pointer, error)

	// adopt replaces the memory [p, p+n) by a private mapping of the file at
	// off, which holds the same bytes already, so that the kernel may evict
	// them again.
	adopt(p unsafe.Pointer, n, off int64) error

	// drop gives back the private copies in [p, p+n), whose bytes equal the
	// file's at off; but for the header slots and the page checksums, which
	// nobody reads here: they may share a page of a machine with larger ones. The range was filed or adopted
	// before.
	drop(p unsafe.Pointer, n, off int64) error

	// zero replaces [p, p+n), of whatever kind, by zero memory of the process.
	zero(p unsafe.Pointer, n int64) error

	// refresh makes [p, p+n), of which there are no private copies, show the
	// file's bytes at off again, which have changed.
	refresh(p unsafe.Pointer, n, off int64) error

	// willNeed reads [p, p+n) ahead inside a system call, where a slow disk
	// holds up no other goroutine, as page faults do. It is a hint.
	willNeed(p unsafe.Pointer, n int64)

	// prefetch is willNeed without waiting for the disk.
	prefetch(p unsafe.Pointer, n int64)

	// sync has the system write what the chunks of a shared mapping hold and the
	// file does not. It does not wait for the disk: file.Sync does.
	sync() error

	// close replaces all chunks by zero pages that stay readable, so that a
	// read which began before the close ends without a fault, and puts the
	// address space into a process-wide pool for later opens. A second close
	// does nothing.
	close() error
}

// osPageSize returns the machine's page size in bytes, the unit in which
// memory is adopted and dropped: 4 KiB to 64 KiB.
func osPageSize() int { return os.Getpagesize() }

// bytesAt returns [p, p+n) as a slice. The caller has checked that the range
// lies inside one chunk; chunks stay readable, so the slice does too.
func bytesAt(p unsafe.Pointer, n int64) []byte {
	return unsafe.Slice((*byte)(p), n)
}

// readWhole fills b from off; a file that ends before is io.ErrUnexpectedEOF.
func readWhole(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// An addressRange is a piece of the process's address space.
type addressRange struct {
	base unsafe.Pointer
	size int64
}

// An addressPool keeps the ranges of closed files. They are never unmapped: a
// late reader may still hold an address inside, and nothing but the chunks of
// a later file may come to lie there.
type addressPool struct {
	mu   sync.Mutex
	free []addressRange
}

// put gives ranges to the pool, as whole reservations: pieces would only
// scatter it.
func (a *addressPool) put(ranges ...addressRange) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free = append(a.free, ranges...)
}

// take removes the smallest range of at least want bytes from the pool; if
// there is none, the largest of at least least bytes.
func (a *addressPool) take(want, least int64) (r addressRange, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	best := -1
	for i, f := range a.free {
		if f.size >= least && (best < 0 || fitsBetter(f.size, a.free[best].size, want)) {
			best = i
		}
	}
	if best < 0 {
		return addressRange{}, false
	}
	r = a.free[best]
	last := len(a.free) - 1
	a.free[best] = a.free[last]
	a.free = a.free[:last]
	return r, true
}

// fitsBetter tells whether size serves a wish for want bytes better than best.
func fitsBetter(size, best, want int64) bool {
	if size >= want && best >= want {
		return size < best
	}
	return size > best
}

// A heapMapping shows a file in memory of the Go heap, for tests: there the
// race detector sees every byte. It maps nothing, so it can check what a real
// mapping must believe: adopt and drop panic when memory and file differ, which
// finds each store that was not marked dirty.
type heapMapping struct {
	f      io.ReaderAt
	shared file // or nil: f, of whose chunks sync writes what the file has room for
	starts []int64
	chunks [][]byte
}

func newHeapMapping(f io.ReaderAt) *heapMapping { return &heapMapping{f: f} }

func newSharedHeapMapping(f file) *heapMapping { return &heapMapping{f: f, shared: f} }

func (m *heapMapping) chunk(off, size, filed int64) (unsafe.Pointer, error) {
	b := make([]byte, size) // the runtime aligns large objects to 8 KiB
	if m.shared != nil {
		end, err := m.shared.Size()
		if err != nil {
			return nil, err
		}
		filed = min(max(end-off, 0), size)
	}
	if err := readWhole(m.f, b[:filed], off); err != nil {
		return nil, err
	}
	m.starts = append(m.starts, off)
	m.chunks = append(m.chunks, b)
	return unsafe.Pointer(unsafe.SliceData(b)), nil
}

func (m *heapMapping) adopt(p unsafe.Pointer, n, off int64) error {
	file := make([]byte, pageSize)
	for i := int64(0); i < n; i += pageSize {
		if p := pageNo((off + i) >> pageShift); p < slotPages || isSums(p) {
			continue
		}
		if err := readWhole(m.f, file, off+i); err != nil {
			return err
		}
		if !bytes.Equal(file, bytesAt(unsafe.Add(p, i), pageSize)) {
			panic(fmt.Sprintf("emd: page %d differs from the file", (off+i)/pageSize))
		}
	}
	return nil
}

func (m *heapMapping) drop(p unsafe.Pointer, n, off int64) error {
	return m.adopt(p, n, off)
}

func (m *heapMapping) zero(p unsafe.Pointer, n int64) error {
	clear(bytesAt(p, n))
	return nil
}

func (m *heapMapping) refresh(p unsafe.Pointer, n, off int64) error {
	return readWhole(m.f, bytesAt(p, n), off)
}

// sync leaves the header slots out: they are written to the file directly.
func (m *heapMapping) sync() error {
	end, err := m.shared.Size()
	for i, b := range m.chunks {
		from, to := int64(0), min(end-m.starts[i], int64(len(b)))
		if m.starts[i] == 0 {
			from = slotPages * pageSize
		}
		if err == nil && from < to {
			_, err = m.shared.WriteAt(b[from:to], m.starts[i]+from)
		}
	}
	return err
}

func (m *heapMapping) willNeed(unsafe.Pointer, int64) {}
func (m *heapMapping) prefetch(unsafe.Pointer, int64) {}

func (m *heapMapping) close() error {
	for _, b := range m.chunks {
		clear(b)
	}
	m.chunks, m.starts = nil, nil
	return nil
}
