package emd

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"unsafe"
)

// firstHeapChunk is the size of a file's first chunk on the Go heap, see
// space.slots.
const firstHeapChunk int64 = 1 << 20

// A heapMapping shows a file in memory of the Go heap, into which it reads each
// chunk when that is made: where the system maps no files, and in tests, because
// the race detector sees every byte there. Memory is private by nature, so
// nothing is left to do when it is adopted or dropped but, in tests, to check
// what a real mapping must believe.
type heapMapping struct {
	f      io.ReaderAt
	check  bool  // panic when what is adopted or dropped differs from the file: a store that was not marked dirty
	limit  int64 // of the memory of the Go heap; 0: none
	shared file  // f, of whose chunks sync writes what the file has room for; nil: the mapping is private
	chunks [][]byte
	starts []int64 // in the file
}

// newHeapMapping returns one that checks.
func newHeapMapping(f io.ReaderAt) *heapMapping { return &heapMapping{f: f, check: true} }

func newSharedHeapMapping(f file) *heapMapping { return &heapMapping{f: f, shared: f} }

func (m *heapMapping) chunk(off, size, filed int64) (p unsafe.Pointer, guarded bool, err error) {
	if err := heapRoom(size, m.limit); err != nil {
		return nil, false, err
	}
	if m.shared != nil {
		end, err := m.shared.Size()
		if err != nil {
			return nil, false, err
		}
		filed = min(max(end-off, 0), size)
	}
	b := make([]byte, size) // the runtime aligns large objects to 8 KiB
	if err := readWhole(m.f, b[:filed], off); err != nil {
		return nil, false, err
	}
	m.chunks = append(m.chunks, b)
	m.starts = append(m.starts, off)
	return unsafe.Pointer(unsafe.SliceData(b)), false, nil
}

// own is never called: nothing is guarded.
func (m *heapMapping) own(unsafe.Pointer, int64) error { return nil }

// heapRoom returns ErrFull when n more bytes would take the Go heap past limit:
// the runtime ends a program that gets no memory.
func heapRoom(n, limit int64) error {
	var s runtime.MemStats
	for collected := false; limit > 0; collected = true {
		runtime.ReadMemStats(&s)
		used := int64(s.Sys - s.HeapIdle)
		if used+n <= limit {
			break
		}
		if collected {
			return fmt.Errorf("%w: %d bytes of memory for the next part of the file, %d of %d are used: on this system the whole file must fit",
				ErrFull, n, used, limit)
		}
		runtime.GC()
	}
	return nil
}

func (m *heapMapping) show(p unsafe.Pointer, b []byte, off int64) (guarded bool, err error) {
	copy(bytesAt(p, int64(len(b))), b)
	return m.adopt(p, int64(len(b)), off)
}

func (m *heapMapping) adopt(p unsafe.Pointer, n, off int64) (guarded bool, err error) {
	if !m.check {
		return false, nil
	}
	file := make([]byte, pageSize)
	for i := int64(0); i < n; i += pageSize {
		if p := pageNo((off + i) >> pageShift); p < slotPages || isSums(p) {
			continue
		}
		if err := readWhole(m.f, file, off+i); err != nil {
			return false, err
		}
		if !bytes.Equal(file, bytesAt(unsafe.Add(p, i), pageSize)) {
			panic(fmt.Sprintf("emd: page %d differs from the file", (off+i)/pageSize))
		}
	}
	return false, nil
}

func (m *heapMapping) drop(p unsafe.Pointer, n, off int64) (guarded bool, err error) {
	return m.adopt(p, n, off)
}

func (m *heapMapping) zero(p unsafe.Pointer, n int64) (guarded bool, err error) {
	clear(bytesAt(p, n))
	return false, nil
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

func (m *heapMapping) prefetch(unsafe.Pointer, int64) {}
func (m *heapMapping) await(unsafe.Pointer, int64)    {}

func (m *heapMapping) stream(unsafe.Pointer, int64, bool) bool { return false }

func (m *heapMapping) resident(unsafe.Pointer, int64) (is, known bool) { return true, true }

// close leaves the memory to the garbage collector: late readers keep it.
func (m *heapMapping) close() error {
	for _, b := range m.chunks {
		clear(b)
	}
	m.chunks, m.starts = nil, nil
	return nil
}
