package emd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

// lockByte is the byte that Lock locks, the last but one that a file can have:
// Windows keeps others from reading and writing locked bytes.
const lockByte int64 = 1<<63 - 2

var (
	kernel32                 = windows.NewLazySystemDLL("kernel32.dll")
	procPrefetchVirtual      = kernel32.NewProc("PrefetchVirtualMemory")
	procGlobalMemoryStatusEx = kernel32.NewProc("GlobalMemoryStatusEx")
)

// closedRanges holds the memory of closed files: committed zero pages,
// read-only.
var closedRanges addressPool

// A windowsMapping shows a chunk that lies in the file as a whole through a
// copy-on-write view. Other chunks are committed memory, into which the filed
// part is read: views cannot be placed beside memory inside one range by calls
// that all supported versions of Windows have.
//
// Windows charges both kinds against its commit limit in full.
type windowsMapping struct {
	f      *os.File
	shared bool // then each chunk is a view that writes to the file
	chunks []windowsChunk
}

type windowsChunk struct {
	addressRange
	view bool // of the file; else committed memory
}

// newMapping returns a mapping of f. far changes nothing: no two chunks lie
// side by side here but by chance.
func newMapping(f *os.File, far, shared bool) mapping { return &windowsMapping{f: f, shared: shared} }

// wholeChunks says that a shared chunk must lie in the file as a whole, as
// views must.
const wholeChunks = true

func (m *windowsMapping) chunk(off, size, filed int64) (p unsafe.Pointer, err error) {
	view := filed == size || m.shared
	if view {
		p, err = mapView(m.f, off, size, m.shared)
	} else {
		p, err = m.readChunk(off, size, filed)
	}
	if err != nil {
		return nil, err
	}
	m.chunks = append(m.chunks, windowsChunk{addressRange{p, size}, view})
	return p, nil
}

// readChunk returns memory of size bytes, the first filed of them read from the
// file at off.
func (m *windowsMapping) readChunk(off, size, filed int64) (unsafe.Pointer, error) {
	p, err := commitMemory(size)
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
func (m *windowsMapping) adopt(unsafe.Pointer, int64, int64) error { return nil }

// drop keeps the private copies, for the same reasons.
func (m *windowsMapping) drop(unsafe.Pointer, int64, int64) error { return nil }

// zero clears the memory: a chunk that holds fresh space is never a view.
func (m *windowsMapping) zero(p unsafe.Pointer, n int64) error {
	clear(bytesAt(p, n))
	return nil
}

// prefetch: willNeed does not wait here.
func (m *windowsMapping) prefetch(p unsafe.Pointer, n int64) { m.willNeed(p, n) }

// refresh is never called: files are not punched here.
func (m *windowsMapping) refresh(unsafe.Pointer, int64, int64) error { return nil }

func (m *windowsMapping) willNeed(p unsafe.Pointer, n int64) {
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

// close unmaps all views, after which the file may be shrunk, renamed and
// deleted. Windows has no call that replaces a view in place: until zero pages
// have taken it, some microseconds later, a view's range is not readable.
func (m *windowsMapping) close() error {
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

// mapView maps [off, off+size) of the file, for writing to it or copy-on-write: then
// untouched pages show the file, also what WriteFile changes later; a page written to is private.
func mapView(f *os.File, off, size int64, shared bool) (p unsafe.Pointer, err error) {
	prot, access := uint32(windows.PAGE_WRITECOPY), uint32(windows.FILE_MAP_COPY)
	if shared {
		prot, access = windows.PAGE_READWRITE, windows.FILE_MAP_WRITE
	}
	err = withFD(f, func(fd uintptr) error {
		// A section of size 0 is as long as the file is now. The view keeps it
		// alive.
		section, err := windows.CreateFileMapping(windows.Handle(fd), nil, prot, 0, 0, nil)
		if err != nil {
			return os.NewSyscallError("CreateFileMapping", err)
		}
		defer windows.CloseHandle(section)
		addr, err := windows.MapViewOfFile(section, access,
			uint32(off>>32), uint32(off), uintptr(size))
		if err != nil {
			return os.NewSyscallError("MapViewOfFile", err)
		}
		p = pointer(addr)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("view of %d bytes at %d: %w", size, off, full(err))
	}
	return p, nil
}

// closeView unmaps a view, puts zero pages in its place and those into the pool.
func closeView(r addressRange) error {
	// A copy-on-write view has nothing of its own to write; this starts the
	// writing of what WriteFile left in the cache. Sync alone waits for the disk.
	_ = windows.FlushViewOfFile(uintptr(r.base), uintptr(r.size))
	if err := windows.UnmapViewOfFile(uintptr(r.base)); err != nil {
		return os.NewSyscallError("UnmapViewOfFile", err)
	}
	_, err := windows.VirtualAlloc(uintptr(r.base), uintptr(r.size),
		windows.MEM_RESERVE|windows.MEM_COMMIT, windows.PAGE_READONLY)
	if err == nil {
		closedRanges.put(r)
	}
	return nil // else the range belongs to somebody else already, or is lost
}

// commitMemory returns zero memory of size bytes, from the pool if it can.
func commitMemory(size int64) (unsafe.Pointer, error) {
	if r, ok := closedRanges.take(size, size); ok {
		if r.size > size {
			closedRanges.put(addressRange{unsafe.Add(r.base, size), r.size - size})
		}
		if err := protect(addressRange{r.base, size}, windows.PAGE_READWRITE); err != nil {
			return nil, full(err)
		}
		return r.base, nil
	}
	return allocPages(size)
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
	p, err := allocPages(int64(n))
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

// allocPages returns new zero memory of n bytes.
func allocPages(n int64) (unsafe.Pointer, error) {
	addr, err := windows.VirtualAlloc(0, uintptr(n), windows.MEM_RESERVE|windows.MEM_COMMIT, windows.PAGE_READWRITE)
	if err != nil {
		return nil, fmt.Errorf("memory of %d bytes: %w", n, full(os.NewSyscallError("VirtualAlloc", err)))
	}
	return pointer(addr), nil
}

// full marks the refusal of memory or address space as ErrFull.
func full(err error) error {
	for _, code := range []error{
		windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_COMMITMENT_LIMIT, windows.ERROR_NO_SYSTEM_RESOURCES,
	} {
		if errors.Is(err, code) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
	return err
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

// syncDir has nothing to do: NTFS keeps names in its journal, and folders
// cannot be flushed.
func syncDir(string) error { return nil }

// punchFD leaves the blocks: it would need sparse files, which the views of the
// file may refuse.
func punchFD(uintptr, int64, int64) error { return errors.ErrUnsupported }

// truncateError marks the refusal to shrink a mapped file: try again when
// nothing is mapped.
func truncateError(err error) error {
	if errors.Is(err, windows.ERROR_USER_MAPPED_FILE) {
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err
}

// networkFS returns "UNC" for files of another machine, else "".
func networkFS(fd uintptr) string {
	name := make([]uint16, windows.MAX_LONG_PATH)
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

// allocateFD does nothing: a full disk is then found by the write itself.
func allocateFD(_ uintptr, _, _ int64) error { return nil }
