package emd

import (
	"fmt"
	"io"
	"sync"
	"unsafe"
)

// A mapping is the memory that shows one file, made chunk by chunk. It holds
// no policy: which pages are mapped, adopted and dropped is decided above it.
//
// That of a relaxed arena is shared: chunks are the file, in their whole length,
// and what is stored there gets to the disk when the system likes. A page
// past the end of the file must not be touched. They are not guarded. Only chunk, sync, prefetch, await,
// stream and close are used of it.
//
// All p and n are multiples of [osPageSize] and [p, p+n) lies inside one
// chunk. chunk and close are called by one goroutine at a time. adopt, show and drop
// may run beside them and each other, for ranges that nobody writes meanwhile;
// readers of the range see its bytes at all times. prefetch, await and stream
// may be called at any time, even after close.
type mapping interface {
	// chunk returns memory for the file range [off, off+size): its first filed
	// bytes are the file's, mapped private (copy on write), and the file is
	// that long already; the rest is zero memory of the process. size and
	// filed are multiples of 64 KiB. The address stays readable for the life of
	// the process. If guarded, it may be written only after own.
	// ErrFull: no address space, or the kernel promises no memory.
	chunk(off, size, filed int64) (p unsafe.Pointer, guarded bool, err error)

	// own has the system promise memory for private copies of [p, p+n), which
	// is guarded; from then on they may be written. Parts that are not guarded stay as they are.
	// errPrivate: there is none to promise, and the range stays as it was.
	own(p unsafe.Pointer, n int64) error

	// adopt replaces the memory [p, p+n) by a private mapping of the file at
	// off, which holds the same bytes already, so that the kernel may evict
	// them again. If guarded, the range is so from now on; else it is as guarded
	// as it was. The same holds for show, drop and zero.
	adopt(p unsafe.Pointer, n, off int64) (guarded bool, err error)

	// show makes fresh memory at p show the bytes b, which the file holds at off:
	// as adopt does, or where that keeps the memory, as a copy. It may not be
	// written meanwhile; after an error it may be as it was.
	show(p unsafe.Pointer, b []byte, off int64) (guarded bool, err error)

	// drop gives back the private copies in [p, p+n), whose bytes equal the
	// file's at off; but for the header slots and the page checksums, which
	// nobody reads here: they may share a page of a machine with larger ones. The range was filed or adopted
	// before.
	drop(p unsafe.Pointer, n, off int64) (guarded bool, err error)

	// zero replaces [p, p+n), of whatever kind, by zero memory of the process.
	zero(p unsafe.Pointer, n int64) (guarded bool, err error)

	// refresh makes [p, p+n), of which there are no private copies, show the
	// file's bytes at off again, which have changed.
	refresh(p unsafe.Pointer, n, off int64) error

	// resident says whether [p, p+n) can be read without the disk, and whether
	// that is known.
	resident(p unsafe.Pointer, n int64) (is, known bool)

	// prefetch has the system begin to read [p, p+n). It is a hint.
	prefetch(p unsafe.Pointer, n int64)

	// await waits until [p, p+n) has been read: inside a system call, where a slow disk
	// holds up no other goroutine, as page faults do. It is a hint.
	await(p unsafe.Pointer, n int64)

	// stream has the system itself read ahead of a loop that reads [p, p+n) from its
	// start to its end; with on unset it ends that. It returns false and does nothing
	// where prefetch is better. Within [p, p+n) prefetch does harm, await does not.
	stream(p unsafe.Pointer, n int64, on bool) bool

	// sync has the system write what the chunks of a shared mapping hold and the
	// file does not. It does not wait for the disk: file.Sync does.
	sync() error

	// close replaces all chunks by zero pages that stay readable, so that a
	// read which began before the close ends without a fault, and puts the
	// address space into a process-wide pool for later opens. A second close
	// does nothing.
	close() error
}

// errPrivate is what own returns when there is no memory. It was made before: to make
// anything then would end the program.
var errPrivate = fmt.Errorf("%w: the system promises no more memory for changes (strict overcommit, the commit limit, or one of the process?)", ErrFull)

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

// mapUse says what newMapping's mapping is for.
type mapUse uint8

const (
	mapToRead  mapUse = iota
	mapPrivate        // what is stored is the process's own
	mapShared         // what is stored is the file's
)

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
