//go:build unix

package emd

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Address space is reserved ahead of the chunks, in steps, so that neighbours
// lie next to each other and merge into few kernel mappings (Linux allows a
// process 65,530). A reservation costs microseconds and no memory, but
// emulators keep tables for it: the steps start small.
const (
	firstStep int64 = 1 << 30
	lastStep  int64 = 64 << 30
	farStep         = 8 // chunks, in far mode
)

// closedRanges holds the reservations of closed files. What was a chunk there
// is readable zero pages, the rest inaccessible.
var closedRanges addressPool

// A unixMapping places chunks with MAP_FIXED into reserved address space.
type unixMapping struct {
	f   *os.File
	use mapUse

	// far places chunks out of order, each beside an inaccessible gap of its
	// size, so that tests find code which takes chunks for neighbours.
	far bool

	// guard has all mapped read-only until own: where private memory is charged
	// when it is mapped, only what changes shall be. In tests it finds stores of
	// which the space is not told.
	guard atomic.Bool

	tells  bool           // of which pages are in memory
	deep   func() bool    // whether the system reads ahead far by itself
	prot   int            // of the file's pages
	step   int64          // bytes of the next reservation
	room   addressRange   // of the last reservation, not used yet
	held   []addressRange // all reservations, whole
	chunks []addressRange
}

// wholeChunks says that a shared chunk must lie in the file as a whole.
const wholeChunks = false

// manyOwned is how many ranges of one size become writable before larger ones do:
// each may split a kernel mapping in three.
const manyOwned = 4096

// newMapping returns a mapping of f, with chunks far apart, and guarded, if far
// is set.
func newMapping(f *os.File, far bool, use mapUse) mapping {
	m := &unixMapping{f: f, far: far, use: use, prot: unix.PROT_READ, step: firstStep}
	m.guard.Store(use == mapPrivate && (far || chargesMaps()))
	m.tells = use != mapToRead || isOwn(f)
	m.deep = sync.OnceValue(func() bool { return readAhead(f) >= aheadSize })
	if use != mapToRead {
		m.prot |= unix.PROT_WRITE
	}
	return m
}

func (m *unixMapping) chunk(off, size, filed int64) (p unsafe.Pointer, guarded bool, err error) {
	p, err = m.place(size)
	if err != nil {
		return nil, false, err
	}
	if m.use == mapShared {
		filed = size
	}
	if filed > 0 {
		guarded, err = m.mapFile(p, filed, off)
	}
	if err == nil && filed < size {
		guarded, err = m.mapMemory(unsafe.Add(p, filed), size-filed)
	}
	if err != nil {
		// A refused MAP_FIXED may leave a hole, which anything in the process may
		// come to fill. Map nothing there again: forget the reservation.
		m.room = addressRange{}
		m.held = m.held[:len(m.held)-1]
		err = full(err)
		if errors.Is(err, ErrFull) && m.use == mapPrivate && !m.guard.Swap(true) {
			return m.chunk(off, size, filed)
		}
		return nil, false, fmt.Errorf("chunk of %d bytes, the first %d a map of the file: %w", size, filed, err)
	}
	m.chunks = append(m.chunks, addressRange{p, size})
	return p, guarded, nil
}

func (m *unixMapping) own(p unsafe.Pointer, n int64) error {
	switch err := mprotect(p, n, m.prot); err {
	case nil:
		return nil
	case unix.ENOMEM, unix.EAGAIN:
		return errPrivate
	default:
		return fmt.Errorf("make %d bytes writable in memory: %w", n, err)
	}
}

// place takes size bytes from the reservation, or from a new one.
func (m *unixMapping) place(size int64) (unsafe.Pointer, error) {
	if m.room.size < size {
		r, err := reserve(m.nextStep(size), size)
		if err != nil {
			return nil, err
		}
		m.room = r
		m.held = append(m.held, r)
	}
	if m.far { // from the top down, over a gap
		p := unsafe.Add(m.room.base, m.room.size-size)
		m.room.size = max(0, m.room.size-2*size)
		return p, nil
	}
	p := m.room.base
	m.room.base = unsafe.Add(p, size)
	m.room.size -= size
	return p, nil
}

// nextStep returns how much to reserve for a chunk of size bytes and what
// follows it.
func (m *unixMapping) nextStep(size int64) int64 {
	if m.far {
		return farStep * size
	}
	if bits.UintSize == 32 {
		return size
	}
	step := max(m.step, size)
	m.step = min(2*m.step, lastStep)
	return step
}

// reserve returns inaccessible address space of want bytes, or less where that
// is refused, but at least least; or a range that a closed file has left.
func reserve(want, least int64) (addressRange, error) {
	if r, ok := closedRanges.take(want, least); ok {
		return r, nil
	}
	for {
		p, err := mmap(-1, 0, nil, want, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|noReserve)
		if err == nil {
			return addressRange{p, want}, nil
		}
		if want == least {
			return addressRange{}, fmt.Errorf("%d bytes of address space: %w", least, full(err))
		}
		want = max(want/2/least*least, least)
	}
}

// guarding returns how pages are mapped from now on, and whether they are guarded then.
func (m *unixMapping) guarding() (prot int, guarded bool) {
	if m.guard.Load() {
		return unix.PROT_READ, true
	}
	return m.prot, false
}

// mapFile puts a mapping of the file at off over [p, p+n).
func (m *unixMapping) mapFile(p unsafe.Pointer, n, off int64) (guarded bool, err error) {
	prot, guarded := m.guarding()
	flags := unix.MAP_PRIVATE | noReserve
	if m.use == mapShared {
		flags = unix.MAP_SHARED
	}
	err = withFD(m.f, func(fd uintptr) error {
		_, err := mmap(int(fd), off, p, n, prot, unix.MAP_FIXED|flags)
		return err
	})
	if err != nil {
		return false, err
	}
	// Before the first touch: read-ahead fills the page cache with large folios,
	// and a later write of one page then costs up to a hundred times more.
	_ = madvise(p, n, unix.MADV_RANDOM)
	return guarded, invalidate(p, n)
}

// mapMemory puts zero memory over [p, p+n).
func (m *unixMapping) mapMemory(p unsafe.Pointer, n int64) (guarded bool, err error) {
	prot, guarded := m.guarding()
	_, err = mmap(-1, 0, p, n, prot, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED|noReserve)
	if err == nil {
		adviseFresh(p, n)
	}
	return guarded, err
}

// adopt replaces the mapping in one step: a reader sees the bytes before or the
// same bytes after.
func (m *unixMapping) adopt(p unsafe.Pointer, n, off int64) (guarded bool, err error) {
	guarded, err = m.mapFile(p, n, off)
	if err != nil {
		return false, fmt.Errorf("map %d bytes of the file at %d: %w", n, off, full(err))
	}
	return guarded, nil
}

func (m *unixMapping) show(p unsafe.Pointer, b []byte, off int64) (guarded bool, err error) {
	return m.adopt(p, int64(len(b)), off)
}

// drop maps the same range of the file anew where private copies cannot be
// dropped otherwise: that works everywhere and costs about the same. It also takes
// back the charge of pages that are guarded.
func (m *unixMapping) drop(p unsafe.Pointer, n, off int64) (guarded bool, err error) {
	if !m.guard.Load() && dropCopies(p, n) == nil {
		return false, nil
	}
	return m.adopt(p, n, off)
}

func (m *unixMapping) zero(p unsafe.Pointer, n int64) (guarded bool, err error) {
	guarded, err = m.mapMemory(p, n)
	if err != nil {
		return false, fmt.Errorf("map %d bytes of memory: %w", n, full(err))
	}
	return guarded, nil
}

func (m *unixMapping) refresh(p unsafe.Pointer, n, _ int64) error { return invalidate(p, n) }

func (m *unixMapping) resident(p unsafe.Pointer, n int64) (is, known bool) {
	if !m.tells {
		return false, false
	}
	return inCore(p, n)
}

func (m *unixMapping) prefetch(p unsafe.Pointer, n int64) { _ = madvise(p, n, unix.MADV_WILLNEED) }

func (m *unixMapping) await(p unsafe.Pointer, n int64) { populate(p, n) }

// stream gives the usual advice. With it Linux reads in large folios, the larger
// the longer a loop goes on, and a page costs a quarter of the system's time;
// MADV_SEQUENTIAL gets there only from the start of a file. Not where pages are written,
// for the reason in mapFile, and not where the system reads ahead less than a slow disk needs.
func (m *unixMapping) stream(p unsafe.Pointer, n int64, on bool) bool {
	if m.prot&unix.PROT_WRITE != 0 || !m.deep() {
		return false
	}
	advice := unix.MADV_RANDOM
	if on {
		advice = unix.MADV_NORMAL
	}
	return madvise(p, n, advice) == nil
}

func (m *unixMapping) sync() (err error) {
	for _, c := range m.chunks {
		err = errors.Join(err, writeShared(c.base, c.size))
	}
	return err
}

func (m *unixMapping) close() error {
	var errs []error
	for _, c := range m.chunks {
		_, err := mmap(-1, 0, c.base, c.size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED|noReserve)
		if err != nil {
			errs = append(errs, fmt.Errorf("unmap %d bytes: %w", c.size, err))
		}
	}
	if errs == nil { // else there may be holes, as in chunk
		closedRanges.put(m.held...)
	}
	m.room, m.held, m.chunks = addressRange{}, nil, nil
	return errors.Join(errs...)
}

// allocTable returns n bytes of zeroed memory outside the Go heap, aligned to a
// page. It becomes resident page by page, as it is touched. Give it back with
// freeTable. ErrFull: no memory or address space.
func allocTable(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	p, err := mmap(-1, 0, nil, int64(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|noReserve)
	if err != nil {
		return nil, fmt.Errorf("table of %d bytes: %w", n, full(err))
	}
	return bytesAt(p, int64(n)), nil
}

// freeTable gives back what allocTable returned, whole. Nobody may hold an
// address inside.
func freeTable(b []byte) {
	if cap(b) == 0 {
		return
	}
	if err := unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(cap(b))); err != nil {
		panic(fmt.Sprintf("emd: table of %d bytes not freed: %v", cap(b), err))
	}
}

// syncDir makes the names in a folder durable, where the file system has a call
// for that: EINVAL and ErrUnsupported say that it has none.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// truncateFile is os.File's Truncate: Unix shrinks mapped files too.
func truncateFile(f *os.File, size int64) error { return f.Truncate(size) }

// mmap maps n bytes; p is nil, or with MAP_FIXED inside a reservation.
func mmap(fd int, off int64, p unsafe.Pointer, n int64, prot, flags int) (q unsafe.Pointer, err error) {
	err = uninterrupted(func() error {
		q, err = unix.MmapPtr(fd, off, p, uintptr(n), prot, flags)
		return err
	})
	return q, err
}

func mprotect(p unsafe.Pointer, n int64, prot int) error {
	return uninterrupted(func() error { return unix.Mprotect(bytesAt(p, n), prot) })
}

func madvise(p unsafe.Pointer, n int64, advice int) error {
	return uninterrupted(func() error { return unix.Madvise(bytesAt(p, n), advice) })
}

// uninterrupted repeats a system call as long as signals interrupt it.
func uninterrupted(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// full marks the kernel's refusal of memory or address space as ErrFull: a limit
// of the process, or strict overcommit, under which private writable maps of
// files are charged in full and MAP_NORESERVE is ignored.
func full(err error) error {
	if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("%w: %w (address space limit, or strict overcommit?)", ErrFull, err)
	}
	return err
}
