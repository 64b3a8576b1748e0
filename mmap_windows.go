package emd

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// lockByte is the byte that Lock locks, the last but one that a file can have:
// Windows keeps others from reading and writing locked bytes.
const lockByte int64 = 1<<63 - 2

var (
	kernel32                 = windows.NewLazySystemDLL("kernel32.dll")
	procMapViewOfFileEx      = kernel32.NewProc("MapViewOfFileEx")
	procPrefetchVirtual      = kernel32.NewProc("PrefetchVirtualMemory")
	procGlobalMemoryStatusEx = kernel32.NewProc("GlobalMemoryStatusEx")
)

// closedRanges holds the memory of closed files, committed zero pages that are
// read-only; closedViews what were their views, and are views of zeroSection.
var closedRanges, closedViews addressPool

// zeroSection is zero memory, of which views take the place of those of closed
// files. Windows charges it once, however many there are.
var zeroSection = sync.OnceValues(func() (windows.Handle, error) {
	return windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE, 0, zeroSize, nil)
})

const zeroSize = defaultChunkSize

// A windowsMapping shows a chunk that lies in the file as a whole through a
// view, read-only at first; own makes pages of it copy-on-write. Other chunks are
// committed memory, into which the filed part is read: views cannot be placed
// beside memory inside one range by calls that all supported versions of Windows
// have.
//
// Windows charges memory and copy-on-write pages against its commit limit, the
// latter also before they are written, and read-only pages not at all. So what is
// charged of the file's pages is what has changed since Open. Where pages
// cannot change one by one, see ownsPages, a view for writing is copy-on-write as
// a whole, and charged in full.
type windowsMapping struct {
	f      *os.File
	far    bool
	use    mapUse
	next   uintptr // where the last chunk ends
	chunks []windowsChunk
}

type windowsChunk struct {
	addressRange
	view bool // of the file; else committed memory
}

// newMapping returns a mapping of f. A chunk is put behind the one before it,
// where there is room and far is not set: what lies side by side is found
// faster.
func newMapping(f *os.File, far bool, use mapUse) mapping {
	return &windowsMapping{f: f, far: far, use: use}
}

// wholeChunks says that a shared chunk must lie in the file as a whole, as
// views must.
const wholeChunks = true

// manyOwned has no limit to keep: VirtualProtect splits no view.
const manyOwned = math.MaxInt

func (m *windowsMapping) chunk(off, size, filed int64) (p unsafe.Pointer, guarded bool, err error) {
	view := filed == size || m.use == mapShared
	guarded = view && m.use == mapPrivate && ownsPages()
	if view {
		p, err = m.view(off, size, guarded)
	} else {
		p, err = m.readChunk(off, size, filed)
	}
	if err != nil {
		return nil, false, err
	}
	m.chunks = append(m.chunks, windowsChunk{addressRange{p, size}, view})
	if !m.far {
		m.next = uintptr(p) + uintptr(size)
	}
	return p, guarded, nil
}

func (m *windowsMapping) own(p unsafe.Pointer, n int64) error {
	var old uint32 // not by protect, which makes an error
	err := windows.VirtualProtect(uintptr(p), uintptr(n), windows.PAGE_WRITECOPY, &old)
	switch {
	case err == nil:
		return nil
	case isShort(err):
		return errPrivate
	}
	return fmt.Errorf("make %d bytes writable in memory: %w", n, os.NewSyscallError("VirtualProtect", err))
}

// ownsPages says whether VirtualProtect makes pages of a read-only view
// copy-on-write, whether they have been read before or not. Wine's lets stores through to the section.
var ownsPages = sync.OnceValue(func() bool {
	const size = 2 * pageSize
	section, err := windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE, 0, size, nil)
	if err != nil {
		return false
	}
	defer windows.CloseHandle(section)
	var views [2][]byte
	for i := range views {
		p, err := mapView(section, windows.FILE_MAP_READ, 0, size, 0)
		if err != nil {
			return false
		}
		defer windows.UnmapViewOfFile(uintptr(p))
		views[i] = bytesAt(p, size)
	}
	ours, theirs := views[0], views[1]
	if ours[0] != 0 || protect(addressRange{unsafe.Pointer(&ours[0]), size}, windows.PAGE_WRITECOPY) != nil {
		return false
	}
	ours[0], ours[pageSize] = 1, 1
	return theirs[0] == 0 && theirs[pageSize] == 0
})

// readChunk returns memory of size bytes, the first filed of them read from the
// file at off.
func (m *windowsMapping) readChunk(off, size, filed int64) (unsafe.Pointer, error) {
	p, err := commitMemory(m.next, size)
	if err != nil {
		return nil, err
	}
	if err := readWhole(m.f, bytesAt(p, filed), off); err != nil {
		return nil, errors.Join(err, retire(addressRange{p, size}))
	}
	return p, nil
}

// adopt keeps the memory: it holds the file's bytes already, so it is correct
// as it is. Only the OS gets nothing back to evict, and no mapping can be put in
// its place without a moment in which the range is not readable.
func (m *windowsMapping) adopt(unsafe.Pointer, int64, int64) (guarded bool, err error) {
	return false, nil
}

func (m *windowsMapping) show(p unsafe.Pointer, b []byte, _ int64) (guarded bool, err error) {
	copy(bytesAt(p, int64(len(b))), b)
	return false, nil
}

// drop keeps the private copies, for the same reasons.
func (m *windowsMapping) drop(unsafe.Pointer, int64, int64) (guarded bool, err error) {
	return false, nil
}

// zero clears the memory: a chunk that holds fresh space is never a view.
func (m *windowsMapping) zero(p unsafe.Pointer, n int64) (guarded bool, err error) {
	clear(bytesAt(p, n))
	return false, nil
}

func (m *windowsMapping) resident(unsafe.Pointer, int64) (is, known bool) { return false, false }

// await has nothing to call.
func (m *windowsMapping) await(unsafe.Pointer, int64) {}

func (m *windowsMapping) stream(unsafe.Pointer, int64, bool) bool { return false }

// refresh is never called: files are not punched here.
func (m *windowsMapping) refresh(unsafe.Pointer, int64, int64) error { return nil }

func (m *windowsMapping) prefetch(p unsafe.Pointer, n int64) {
	if procPrefetchVirtual.Find() != nil {
		return
	}
	r := struct { // WIN32_MEMORY_RANGE_ENTRY
		base unsafe.Pointer
		size uintptr
	}{p, uintptr(n)}
	_, _, _ = procPrefetchVirtual.Call(uintptr(windows.CurrentProcess()), 1, uintptr(unsafe.Pointer(&r)), 0)
}

// sync starts the writing of the views.
func (m *windowsMapping) sync() (err error) {
	for _, c := range m.chunks {
		err = errors.Join(err, os.NewSyscallError("FlushViewOfFile", windows.FlushViewOfFile(uintptr(c.base), uintptr(c.size))))
	}
	return err
}

// lateReader is how long a read that began before Close may go on. It is a matter
// of nanoseconds, or of a page from the disk, but its thread may have to wait for a processor.
const lateReader = 20 * time.Millisecond

// close unmaps all views, after which the file may be shrunk, renamed and
// deleted. Windows has no call that replaces a view in place: until zero pages
// have taken it, some microseconds later, a view's range is not readable. So
// first it lets those finish who may still read; others have been turned away.
func (m *windowsMapping) close() error {
	if slices.ContainsFunc(m.chunks, func(c windowsChunk) bool { return c.view }) {
		time.Sleep(lateReader)
	}
	var errs []error
	for _, c := range m.chunks {
		if c.view {
			errs = append(errs, closeView(c.addressRange))
		} else {
			errs = append(errs, retire(c.addressRange))
		}
	}
	m.chunks = nil
	return errors.Join(errs...)
}

// view maps [off, off+size) of the file: untouched pages show the file, also
// what WriteFile changes later; a page written to is private, but in a shared mapping the file's.
func (m *windowsMapping) view(off, size int64, guarded bool) (p unsafe.Pointer, err error) {
	protection, access := uint32(windows.PAGE_WRITECOPY), uint32(windows.FILE_MAP_COPY)
	switch {
	case m.use == mapToRead:
		protection, access = windows.PAGE_READONLY, windows.FILE_MAP_READ
	case m.use == mapShared:
		protection, access = windows.PAGE_READWRITE, windows.FILE_MAP_WRITE
	case guarded:
		access = windows.FILE_MAP_READ
	}
	err = withFD(m.f, func(fd uintptr) error {
		// A section of size 0 is as long as the file is now. The view keeps it
		// alive.
		section, err := windows.CreateFileMapping(windows.Handle(fd), nil, protection, 0, 0, nil)
		if err != nil {
			return os.NewSyscallError("CreateFileMapping", err)
		}
		defer windows.CloseHandle(section)
		if at := closedViewPlace(size); at != 0 {
			if p, err = mapView(section, access, off, size, at); err == nil {
				return nil
			}
			zeroView(addressRange{pointer(at), size})
		}
		if m.next != 0 {
			if p, err = mapView(section, access, off, size, m.next); err == nil {
				return nil
			}
		}
		p, err = mapView(section, access, off, size, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("view of %d bytes at %d: %w", size, off, full(err))
	}
	return p, nil
}

// mapView maps [off, off+size) of a section, at an address or, if that is 0,
// anywhere.
func mapView(section windows.Handle, access uint32, off, size int64, at uintptr) (unsafe.Pointer, error) {
	addr, _, err := procMapViewOfFileEx.Call(uintptr(section), uintptr(access),
		uintptr(uint32(off>>32)), uintptr(uint32(off)), uintptr(size), at)
	if addr == 0 {
		return nil, os.NewSyscallError("MapViewOfFileEx", err)
	}
	return pointer(addr), nil
}

// closedViewPlace frees the place of a view of a closed file for a new one of
// size bytes, and returns it; 0 if there is none. For a moment the place is not
// readable, as in close.
func closedViewPlace(size int64) uintptr {
	r, ok := closedViews.take(size, size)
	if !ok {
		return 0
	}
	if err := windows.UnmapViewOfFile(uintptr(r.base)); err != nil {
		return 0
	}
	if r.size > size {
		zeroView(addressRange{unsafe.Add(r.base, size), r.size - size})
	}
	return uintptr(r.base)
}

// closeView unmaps a view and puts zero pages in its place.
func closeView(r addressRange) error {
	// A copy-on-write view has nothing of its own to write; this starts the
	// writing of what WriteFile left in the cache. Sync alone waits for the disk.
	_ = windows.FlushViewOfFile(uintptr(r.base), uintptr(r.size))
	if err := windows.UnmapViewOfFile(uintptr(r.base)); err != nil {
		return os.NewSyscallError("UnmapViewOfFile", err)
	}
	zeroView(r)
	return nil
}

// zeroView puts zero pages into a range that was just unmapped, and the range
// into the pool. If somebody else has taken it in between, it is theirs.
func zeroView(r addressRange) {
	section, err := zeroSection()
	if err == nil && r.size <= zeroSize {
		_, err = mapView(section, windows.FILE_MAP_READ, 0, r.size, uintptr(r.base))
		if err == nil {
			closedViews.put(r)
			return
		}
	}
	if _, err := windows.VirtualAlloc(uintptr(r.base), uintptr(r.size),
		windows.MEM_RESERVE|windows.MEM_COMMIT, windows.PAGE_READONLY); err == nil {
		closedRanges.put(r)
	}
}

// commitMemory returns zero memory of size bytes: from the pool, or else at an
// address, or anywhere.
func commitMemory(at uintptr, size int64) (unsafe.Pointer, error) {
	if r, ok := closedRanges.take(size, size); ok {
		if r.size > size {
			closedRanges.put(addressRange{unsafe.Add(r.base, size), r.size - size})
		}
		if err := protect(addressRange{r.base, size}, windows.PAGE_READWRITE); err != nil {
			return nil, full(err)
		}
		return r.base, nil
	}
	if at != 0 {
		if p, err := allocPages(at, size, 0); err == nil {
			return p, nil
		}
	}
	return allocPages(0, size, 0)
}

// retire makes committed memory read-only zeros and puts it into the pool.
func retire(r addressRange) error {
	clear(bytesAt(r.base, r.size))
	// The zeros need not be kept on disk: pages that Windows takes back under
	// MEM_RESET read as zeros again.
	_, _ = windows.VirtualAlloc(uintptr(r.base), uintptr(r.size), windows.MEM_RESET, windows.PAGE_READWRITE)
	if err := protect(r, windows.PAGE_READONLY); err != nil {
		return err
	}
	closedRanges.put(r)
	return nil
}

func protect(r addressRange, prot uint32) error {
	var old uint32
	return os.NewSyscallError("VirtualProtect",
		windows.VirtualProtect(uintptr(r.base), uintptr(r.size), prot, &old))
}

// allocTable returns n bytes of zeroed memory outside the Go heap, aligned to a
// page. It becomes resident page by page, as it is touched. Give it back with
// freeTable. ErrFull: no memory or address space.
func allocTable(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	// From the other end, to leave room behind the chunks.
	p, err := allocPages(0, int64(n), windows.MEM_TOP_DOWN)
	if err != nil {
		return nil, err
	}
	return bytesAt(p, int64(n)), nil
}

// freeTable gives back what allocTable returned, whole. Nobody may hold an
// address inside.
func freeTable(b []byte) {
	if cap(b) == 0 {
		return
	}
	if err := windows.VirtualFree(uintptr(unsafe.Pointer(unsafe.SliceData(b))), 0, windows.MEM_RELEASE); err != nil {
		panic(fmt.Sprintf("emd: table of %d bytes not freed: %v", cap(b), err))
	}
}

// allocPages returns new zero memory of n bytes, at an address or, if that is 0,
// anywhere.
func allocPages(at uintptr, n int64, how uint32) (unsafe.Pointer, error) {
	addr, err := windows.VirtualAlloc(at, uintptr(n), windows.MEM_RESERVE|windows.MEM_COMMIT|how, windows.PAGE_READWRITE)
	if err != nil {
		return nil, fmt.Errorf("memory of %d bytes: %w", n, full(os.NewSyscallError("VirtualAlloc", err)))
	}
	return pointer(addr), nil
}

// full marks the refusal of memory or address space as ErrFull.
func full(err error) error {
	if isShort(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

func isShort(err error) bool {
	return errors.Is(err, windows.ERROR_NOT_ENOUGH_MEMORY) || errors.Is(err, windows.ERROR_COMMITMENT_LIMIT) ||
		errors.Is(err, windows.ERROR_NO_SYSTEM_RESOURCES)
}

// pointer returns an address that the OS gave, which lies outside the Go heap,
// as a pointer. go vet takes the plain conversion for a mistake.
func pointer(addr uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&addr)) }

// lockFD locks lockByte. Nobody else's handle may hold it, our own included.
func lockFD(fd uintptr, exclusive, wait bool) (bool, error) {
	var flags uint32
	if exclusive {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	if !wait {
		flags |= windows.LOCKFILE_FAIL_IMMEDIATELY
	}
	err := windows.LockFileEx(windows.Handle(fd), flags, 0, 1, 0, lockPlace())
	if err == windows.ERROR_LOCK_VIOLATION || err == windows.ERROR_IO_PENDING {
		return false, nil
	}
	return err == nil, err
}

func unlockFD(fd uintptr) error {
	return windows.UnlockFileEx(windows.Handle(fd), 0, 1, 0, lockPlace())
}

func lockPlace() *windows.Overlapped {
	const low = lockByte & (1<<32 - 1)
	return &windows.Overlapped{Offset: uint32(low), OffsetHigh: uint32(lockByte >> 32)}
}

// syncFile is FlushFileBuffers.
func syncFile(f *os.File) error { return f.Sync() }

// writeOut has no call but FlushFileBuffers, which waits.
func writeOut(*os.File, int64, int64) {}

// syncDir has nothing to do: NTFS keeps names in its journal, and folders
// cannot be flushed.
func syncDir(string) error { return nil }

// punchFD leaves the blocks: it would need sparse files, which the views of the
// file may refuse.
func punchFD(uintptr, int64, int64) error { return errors.ErrUnsupported }

// truncateFile is os.File's Truncate. A file of the right size stays as it is:
// Wine, in passing, makes it longer, which fails on a full disk.
func truncateFile(f *os.File, size int64) error {
	if info, err := f.Stat(); err == nil && info.Size() == size {
		return nil
	}
	return truncateError(f.Truncate(size))
}

// truncateError marks the refusal to shrink a mapped file: try again when
// nothing is mapped.
func truncateError(err error) error {
	if errors.Is(err, windows.ERROR_USER_MAPPED_FILE) {
		return fmt.Errorf("%w: a file that this or another program has mapped cannot be cut; close it there first: %w",
			ErrUnsupported, err)
	}
	return err
}

// networkFS returns "UNC" for files of another machine, else "".
func networkFS(fd uintptr) string {
	// A path has at most 32,767 characters, and what is before it.
	name := make([]uint16, 1<<16)
	n, err := windows.GetFinalPathNameByHandle(windows.Handle(fd), &name[0], uint32(len(name)), 0)
	if err != nil || int(n) > len(name) {
		return ""
	}
	if strings.HasPrefix(windows.UTF16ToString(name[:n]), `\\?\UNC\`) {
		return "UNC"
	}
	return ""
}

// copyOnWriteFS does not know ReFS, which copies only where integrity streams are on.
func copyOnWriteFS(uintptr) string { return "" }

// allocateFD makes room past the end of the file; before it there are no holes,
// as the file is not sparse.
func allocateFD(fd uintptr, off, n int64) error {
	h := windows.Handle(fd)
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(h, &info); err != nil {
		return os.NewSyscallError("GetFileInformationByHandle", err)
	}
	size := int64(info.FileSizeHigh)<<32 | int64(info.FileSizeLow)
	room := off + n // FILE_ALLOCATION_INFO
	if room <= size {
		return nil // less would cut the file
	}
	err := windows.SetFileInformationByHandle(h, windows.FileAllocationInfo, (*byte)(unsafe.Pointer(&room)), uint32(unsafe.Sizeof(room)))
	if err != nil && !isFull(err) {
		return errors.ErrUnsupported // by Wine, and some file systems
	}
	return os.NewSyscallError("SetFileInformationByHandle", err)
}
