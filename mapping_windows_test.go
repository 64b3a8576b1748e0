package emd

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/windows"
)

// Under Wine a process now and then ends before its first instruction, which CreateProcess reports as an internal error.
func init() {
	startAgain = func(err error) bool { return errors.Is(err, windows.ERROR_INTERNAL_ERROR) }
}

// protection returns how the page at p may be used.
func protection(t *testing.T, p unsafe.Pointer) uint32 {
	var info windows.MemoryBasicInformation
	require.NoError(t, windows.VirtualQuery(uintptr(p), &info, unsafe.Sizeof(info)))
	return info.Protect
}

// takeAll empties a pool, so that a test starts without what others have left.
func takeAll(pool *addressPool) {
	for ok := true; ok; {
		_, ok = pool.take(1, 1)
	}
}

// Memory that nobody writes to is a read-only view, which is not charged
// against the commit limit.
func TestWindowsReadOnlyView(t *testing.T) {
	f, content := patternFile(t, testChunk)
	for written, want := range map[bool]uint32{true: windows.PAGE_WRITECOPY, false: windows.PAGE_READONLY} {
		m := osFS{}.Map(f, written)
		p, err := writableChunk(m, 0, testChunk, testChunk)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, bytesAt(p, testChunk)))
		assert.Equal(t, want, protection(t, p), "written: %v", written)
		content[testChunk/2] ^= 0xFF
		_, err = f.WriteAt(content, 0)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, bytesAt(p, testChunk)), "what is written shows")
		require.NoError(t, m.close())
		assert.Equal(t, uint32(windows.PAGE_READONLY), protection(t, p), "closed")
	}
}

// TestWindowsOwn has a page of a read-only view become writable. Whether it is private then, TestMappingGuard sees where ownsPages says so.
func TestWindowsOwn(t *testing.T) {
	t.Logf("pages become copy-on-write one by one: %v", ownsPages())
	f, content := patternFile(t, testChunk)
	m := osFS{}.Map(f, true).(*windowsMapping)
	p, err := m.view(0, testChunk, true)
	require.NoError(t, err)
	b := bytesAt(p, testChunk)
	refused := func(i int) bool { return faults(func() { b[i]++ }) }
	require.True(t, bytes.Equal(content, b))
	assert.Equal(t, uint32(windows.PAGE_READONLY), protection(t, p))
	require.True(t, refused(pageSize))
	require.NoError(t, m.own(unsafe.Pointer(&b[pageSize]), pageSize))
	require.False(t, refused(pageSize))
	require.False(t, refused(2*pageSize-1))
	require.True(t, refused(0))
	require.True(t, refused(2*pageSize))
	assert.Equal(t, content[pageSize]+1, b[pageSize])
	require.NoError(t, windows.UnmapViewOfFile(uintptr(p)))
	require.Error(t, m.own(p, pageSize), "nothing is there any more")
}

// An arena that is only read maps its file so, but not where it must show commits
// that a crash has left in the log.
func TestWindowsReadOnlyArena(t *testing.T) {
	s := newSample(t, nil, internalOptions{chunkSize: minChunkSize})
	block := make([]uint64, minChunkSize/4)
	require.NoError(t, s.numbers.Append(block...))
	require.NoError(t, s.a.Sync())
	image := crashImage(t, s.path)
	for path, want := range map[string]uint32{s.path: windows.PAGE_READONLY, image: windows.PAGE_WRITECOPY} {
		if path == s.path {
			require.NoError(t, s.a.Close())
		}
		a, err := openWith(path, &Options{ReadOnly: true}, internalOptions{chunkSize: minChunkSize})
		require.NoError(t, err)
		protections := map[uint32]bool{}
		for _, c := range a.space.table.Load().chunks {
			for i := int64(0); i < minChunkSize; i += pageSize {
				protections[protection(t, unsafe.Add(c.mem, i))] = true
			}
		}
		assert.True(t, protections[want], "%s: %v", path, protections)
		l, err := List[uint64](a, "numbers", nil)
		require.NoError(t, err)
		assert.Equal(t, sampleLen+len(block), l.Len())
		require.NoError(t, a.Close())
	}
}

// The views of closed files are shown anew, and their addresses used again:
// a process that opens and closes for ever keeps its size.
func TestWindowsViewsReused(t *testing.T) {
	const n = 4
	f, content := patternFile(t, n*testChunk)
	takeAll(&closedViews)
	seen := map[unsafe.Pointer]bool{}
	for range 20 {
		m := osFS{}.Map(f, true)
		for i := range int64(n) {
			p, err := writableChunk(m, i*testChunk, testChunk, testChunk)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content[i*testChunk:(i+1)*testChunk], bytesAt(p, testChunk)))
			bytesAt(p, testChunk)[0]++ // private
			seen[p] = true
		}
		require.NoError(t, m.close())
		for p := range seen {
			require.True(t, allZero(bytesAt(p, testChunk)))
		}
	}
	assert.Len(t, seen, n)
	assert.Len(t, closedViews.free, n)

	// A smaller one takes a part.
	m := osFS{}.Map(f, true)
	p, err := writableChunk(m, 64<<10, 64<<10, 64<<10)
	require.NoError(t, err)
	assert.True(t, seen[p])
	assert.True(t, bytes.Equal(content[64<<10:128<<10], bytesAt(p, 64<<10)))
	assert.True(t, allZero(bytesAt(unsafe.Add(p, 64<<10), testChunk-64<<10)), "the rest stays readable")
	require.NoError(t, m.close())
	assert.Len(t, closedViews.free, n+1)
}

// Chunks lie side by side where there is room, views as well as memory.
func TestWindowsNeighbours(t *testing.T) {
	const n = 16
	f, _ := patternFile(t, n*testChunk)
	for name, filed := range map[string]int64{"views": testChunk, "memory": 0} {
		takeAll(&closedViews)
		takeAll(&closedRanges)
		m := osFS{}.Map(f, true)
		neighbours := 0
		var last unsafe.Pointer
		for i := range int64(n) {
			p, err := writableChunk(m, i*testChunk, testChunk, filed)
			require.NoError(t, err)
			if i > 0 && p == unsafe.Add(last, testChunk) {
				neighbours++
			}
			last = p
			table, err := allocTable(100_000)
			require.NoError(t, err)
			defer freeTable(table)
		}
		assert.Greater(t, neighbours, n/2, name)
		require.NoError(t, m.close())
	}
}

func TestWindowsErrors(t *testing.T) {
	wrapped := func(code error) error {
		return &fs.PathError{Op: "write", Path: "f", Err: os.NewSyscallError("WriteFile", code)}
	}
	for _, code := range []error{
		windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL, windows.ERROR_DISK_QUOTA_EXCEEDED, windows.ERROR_FILE_TOO_LARGE,
	} {
		assert.ErrorIs(t, asFull(wrapped(code)), ErrFull, "%d", code)
		assert.ErrorIs(t, asFull(wrapped(code)), code)
	}
	for _, code := range []error{windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_COMMITMENT_LIMIT, windows.ERROR_NO_SYSTEM_RESOURCES} {
		assert.ErrorIs(t, full(wrapped(code)), ErrFull, "%d", code)
	}
	for code, held := range map[error]bool{
		windows.ERROR_SHARING_VIOLATION: true, windows.ERROR_LOCK_VIOLATION: true,
		windows.ERROR_ACCESS_DENIED: false, windows.ERROR_FILE_NOT_FOUND: false,
	} {
		assert.Equal(t, held, heldBack(wrapped(code)), "%d", code)
		assert.False(t, isFull(wrapped(code)), "%d", code)
	}
	assert.False(t, heldBack(nil))
	assert.NoError(t, truncateError(nil))
	assert.NotErrorIs(t, truncateError(windows.ERROR_DISK_FULL), errors.ErrUnsupported)
}

// A program that does not share the file is waited for as one that has locked it.
func TestWindowsNotShared(t *testing.T) {
	s := newSample(t, nil, internalOptions{})
	require.NoError(t, s.a.Close())
	name, err := windows.UTF16PtrFromString(s.path)
	require.NoError(t, err)
	alone, err := windows.CreateFile(name, windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING, 0, 0)
	require.NoError(t, err)
	for _, readOnly := range []bool{false, true} {
		_, err = Open(s.path, &Options{ReadOnly: readOnly, LockTimeout: 20 * time.Millisecond})
		isError(t, err, s.path, ErrLocked, windows.ERROR_SHARING_VIOLATION)
		assert.ErrorContains(t, err, "LockTimeout")
	}
	for _, timeout := range []time.Duration{time.Minute, -1} {
		opened := make(chan error)
		go func() {
			a, err := Open(s.path, &Options{LockTimeout: timeout})
			if err == nil {
				err = a.Close()
			}
			opened <- err
		}()
		select {
		case err := <-opened:
			t.Errorf("did not wait: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		require.NoError(t, windows.CloseHandle(alone))
		require.NoError(t, <-opened)
		alone, err = windows.CreateFile(name, windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING, 0, 0)
		require.NoError(t, err)
	}
	require.NoError(t, windows.CloseHandle(alone))
	sampleIntact(t, s.path)
}

// Windows does not cut a mapped file, whoever has mapped it.
func TestWindowsMappedFileCannotBeCut(t *testing.T) {
	f, content := patternFile(t, 2*testChunk)
	m := osFS{}.Map(f, false)
	_, err := writableChunk(m, 0, testChunk, testChunk)
	require.NoError(t, err)
	err = f.Truncate(testChunk)
	assert.ErrorIs(t, err, windows.ERROR_USER_MAPPED_FILE)
	assert.ErrorIs(t, err, ErrUnsupported)
	assert.ErrorContains(t, err, "close it there first")
	size, err := f.Size()
	require.NoError(t, err)
	assert.EqualValues(t, len(content), size)
	require.NoError(t, f.Truncate(3*testChunk), "it may grow")
	require.NoError(t, m.close())
	require.NoError(t, f.Truncate(testChunk))
}

// A Rollback cannot cut the file either: what it takes back stays in the file,
// is never taken for zeros, and goes at Close.
func TestWindowsRollbackWhileMapped(t *testing.T) {
	in := internalOptions{chunkSize: minChunkSize, dirtyLimit: 512 << 10}
	s := newSample(t, nil, in)
	block := bytes.Repeat([]byte("x"), 3*minChunkSize/8*8)
	require.NoError(t, s.numbers.Append(make([]uint64, minChunkSize/4)...))
	require.NoError(t, s.a.Close())
	before := fileSize(t, s.path)

	a, err := openWith(s.path, &Options{NoAutoCommit: true}, in)
	require.NoError(t, err)
	l, err := List[[64]byte](a, "more", nil)
	require.NoError(t, err)
	for range 2 {
		for i := 0; i < len(block); i += 64 {
			require.NoError(t, l.Append([64]byte(block[i:])))
		}
		require.Greater(t, a.space.fileSize, before, "spilled")
		require.NoError(t, a.Rollback())
		require.Zero(t, l.Len())
		require.NoError(t, a.verify())
	}
	require.NoError(t, a.Close())
	assert.LessOrEqual(t, fileSize(t, s.path), before+minChunkSize)
	a, err = openWith(s.path, nil, in)
	require.NoError(t, err)
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())
}

// A file that is marked read-only can be read.
func TestWindowsReadOnlyFile(t *testing.T) {
	s := newSample(t, nil, internalOptions{})
	require.NoError(t, s.a.Close())
	require.NoError(t, os.Chmod(s.path, 0o400))
	defer os.Chmod(s.path, 0o600)
	if f, err := os.OpenFile(s.path, os.O_RDWR, 0); err == nil {
		t.Log("Wine lets root write to it all the same")
		require.NoError(t, f.Close())
	} else {
		_, err := Open(s.path, nil)
		isError(t, err, s.path, fs.ErrPermission)
	}
	a, err := Open(s.path, &Options{ReadOnly: true})
	require.NoError(t, err)
	isError(t, a.SetMeta("m", nil), s.path, ErrReadOnly)
	require.NoError(t, check(a))
	require.NoError(t, a.Close())
}

// A late reader meets no fault while memory is retired and used again; views
// have a moment in which they cannot be read, see windowsMapping.close.
func TestWindowsLateReaders(t *testing.T) {
	f, _ := patternFile(t, testChunk)
	m := osFS{}.Map(f, true)
	p, err := writableChunk(m, 0, testChunk, testChunk/2)
	require.NoError(t, err)
	var stop atomic.Bool
	done := make(chan any)
	go func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a failure, not a crash
		defer func() { done <- recover() }()
		for sum := byte(0); !stop.Load(); {
			for i := 0; i < testChunk; i += 512 {
				sum += *(*byte)(unsafe.Add(p, i))
			}
		}
	}()
	for range 200 {
		require.NoError(t, m.close())
		m = osFS{}.Map(f, true)
		_, err = writableChunk(m, 0, testChunk, testChunk/2)
		require.NoError(t, err)
	}
	stop.Store(true)
	assert.Nil(t, <-done)
	require.NoError(t, m.close())
}

// Paths may be longer than the 260 characters that Windows once allowed.
func TestWindowsLongPath(t *testing.T) {
	dir := tempDir(t)
	for len(dir) < 400 {
		dir = filepath.Join(dir, "a folder with a name of some length")
	}
	require.NoError(t, os.MkdirAll(dir, 0o700))
	path := filepath.Join(dir, "long.emd")
	s := openSample(t, path, nil, internalOptions{})
	fillSample(t, s)
	assert.FileExists(t, path+"-log")
	_, err := Open(path, nil)
	isError(t, err, path, ErrLocked)
	image := filepath.Join(dir, "crashed.emd")
	copyFile(t, path, image)
	copyFile(t, path+"-log", image+"-log")
	require.NoError(t, s.a.Close())
	sampleIntact(t, path)
	sampleIntact(t, image)
	assert.Equal(t, []string{"crashed.emd", "long.emd"}, dirNames(t, dir))
	f, err := osFS{}.Open(path, os.O_RDONLY, 0)
	require.NoError(t, err)
	name, _ := osFS{}.Network(f)
	assert.Empty(t, name)
	require.NoError(t, f.Close())
}
