package emd

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const testChunk = 256 << 10

// writableChunk is a chunk of which all is owned.
func writableChunk(m mapping, off, size, filed int64) (unsafe.Pointer, error) {
	p, guarded, err := m.chunk(off, size, filed)
	if err == nil && guarded {
		err = m.own(p, size)
	}
	return p, err
}

// remap has m adopt or drop a range, and owns it then.
func remap(m mapping, fn func(p unsafe.Pointer, n, off int64) (bool, error), p unsafe.Pointer, n, off int64) error {
	guarded, err := fn(p, n, off)
	if err == nil && guarded {
		err = m.own(p, n)
	}
	return err
}

// faults tells whether fn meets memory that it may not use.
func faults(fn func()) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { fault = recover() != nil }()
	fn()
	return false
}

// patternFile returns a new open file and its content of size bytes.
func patternFile(t *testing.T, size int) (file, []byte) {
	return patternFileAt(t, filepath.Join(tempDir(t), "f"), size)
}

func patternFileAt(t *testing.T, path string, size int) (file, []byte) {
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i>>8 + i + 1)
	}
	f, err := osFS{}.Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	_, err = f.WriteAt(content, 0)
	require.NoError(t, err)
	return f, content
}

// eachMapping runs test with a mapping of each kind, of a file of 1.25 chunks.
func eachMapping(t *testing.T, test func(t *testing.T, f file, content []byte, m mapping)) {
	for name, fs := range map[string]fileSystem{
		"os":   newOSFS(false, false),
		"far":  newOSFS(false, true),
		"heap": newOSFS(true, false),
	} {
		t.Run(name, func(t *testing.T) {
			f, content := patternFile(t, testChunk+64<<10)
			m := fs.Map(f, true)
			t.Cleanup(func() { assert.NoError(t, m.close()) })
			test(t, f, content, m)
		})
	}
}

func TestMappingChunk(t *testing.T) {
	eachMapping(t, func(t *testing.T, f file, content []byte, m mapping) {
		for _, c := range []struct{ off, filed int64 }{
			{0, testChunk}, {testChunk, 64 << 10}, {2 * testChunk, 0},
		} {
			p, err := writableChunk(m, c.off, testChunk, c.filed)
			require.NoError(t, err)
			b := bytesAt(p, testChunk)
			want := make([]byte, testChunk)
			if c.filed > 0 {
				copy(want, content[c.off:c.off+c.filed])
			}
			require.True(t, bytes.Equal(want, b), "chunk at %d", c.off)
			assert.Zero(t, uintptr(p)%pageSize, "alignment")

			m.prefetch(p, testChunk)
			m.await(p, testChunk)
			for i := range b {
				b[i] ^= 0xFF
			}
		}
		now := make([]byte, len(content))
		require.NoError(t, readWhole(f, now, 0))
		assert.True(t, bytes.Equal(content, now), "memory is private")
	})
}

func TestMappingChunkPastFile(t *testing.T) {
	f, _ := patternFile(t, 64<<10)
	_, err := writableChunk(newHeapMapping(f), 0, testChunk, testChunk)
	assert.Error(t, err)
}

func TestMappingAdoptDrop(t *testing.T) {
	eachMapping(t, func(t *testing.T, f file, content []byte, m mapping) {
		p, err := writableChunk(m, testChunk, testChunk, 64<<10)
		require.NoError(t, err)
		b := bytesAt(p, testChunk)

		// Fresh bytes go to the file, which then backs them.
		fresh := b[64<<10 : 128<<10]
		copy(fresh, content)
		_, err = f.WriteAt(fresh, testChunk+64<<10)
		require.NoError(t, err)
		require.NoError(t, remap(m, m.adopt, unsafe.Pointer(&fresh[0]), int64(len(fresh)), testChunk+64<<10))
		assert.True(t, bytes.Equal(content[:64<<10], fresh), "adopted")

		// Changed pages are written; then their copies may go.
		for _, off := range []int{0, 64 << 10} {
			part := b[off : off+64<<10]
			part[100]++
			want := bytes.Clone(part)
			_, err = f.WriteAt(part, testChunk+int64(off))
			require.NoError(t, err)
			require.NoError(t, remap(m, m.drop, unsafe.Pointer(&part[0]), int64(len(part)), testChunk+int64(off)))
			assert.True(t, bytes.Equal(want, part), "dropped at %d", off)
			part[200]++ // private again
			assert.NotEqual(t, want[200], part[200])
		}
		assert.True(t, allZero(b[128<<10:]), "the rest")
	})
}

// What a guarded chunk shows of the file may be changed after own, page by page, and is private then.
func TestMappingGuard(t *testing.T) {
	f, content := patternFile(t, testChunk)
	m := osFS{far: true}.Map(f, true)
	defer m.close()
	p, guarded, err := m.chunk(0, testChunk, testChunk)
	require.NoError(t, err)
	b := bytesAt(p, testChunk)
	page := osPageSize()
	refused := func(i int) bool { return faults(func() { b[i]++ }) }
	require.True(t, bytes.Equal(content, b))
	if !guarded { // this system promises memory for whole chunks
		require.False(t, refused(2*page))
		return
	}
	require.True(t, refused(2*page))
	require.NoError(t, m.own(unsafe.Pointer(&b[2*page]), int64(page)))
	for _, i := range []int{2 * page, 3*page - 1} {
		require.False(t, refused(i))
	}
	for _, i := range []int{0, 2*page - 1, 3 * page, len(b) - 1} {
		require.True(t, refused(i), "%d", i)
	}
	now := make([]byte, testChunk)
	require.NoError(t, readWhole(f, now, 0))
	require.True(t, bytes.Equal(content, now), "the file stays as it is")
	content[5*page]++
	_, err = f.WriteAt(content, 0)
	require.NoError(t, err)
	assert.Equal(t, content[5*page], b[5*page], "a page that is not owned shows the file")
	assert.NotEqual(t, content[2*page], b[2*page], "one that has changed does not")
	require.NoError(t, m.own(unsafe.Pointer(&b[5*page]), int64(page)))
	assert.Equal(t, content[5*page], b[5*page])
	require.False(t, refused(5*page))
	require.NoError(t, readWhole(f, now, 0))
	require.True(t, bytes.Equal(content, now))
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func TestHeapMappingFindsMissedStore(t *testing.T) {
	f, _ := patternFile(t, testChunk)
	m := newHeapMapping(f)
	p, err := writableChunk(m, 0, testChunk, testChunk)
	require.NoError(t, err)
	require.NoError(t, remap(m, m.drop, p, testChunk, 0))
	bytesAt(p, testChunk)[5*pageSize+7]++
	require.NoError(t, remap(m, m.drop, p, 5*pageSize, 0), "pages before it")
	assert.PanicsWithValue(t, "emd: page 5 differs from the file", func() { _, _ = m.drop(p, testChunk, 0) })
	assert.PanicsWithValue(t, "emd: page 5 differs from the file", func() { _, _ = m.adopt(p, testChunk, 0) })
}

func TestMappingClose(t *testing.T) {
	eachMapping(t, func(t *testing.T, f file, content []byte, m mapping) {
		whole, err := writableChunk(m, 0, testChunk, testChunk)
		require.NoError(t, err)
		part, err := writableChunk(m, testChunk, testChunk, 64<<10)
		require.NoError(t, err)
		bytesAt(part, testChunk)[testChunk-1] = 1
		require.NoError(t, m.close())
		require.NoError(t, m.close(), "twice")
		require.NoError(t, f.Truncate(0), "nothing is mapped any more")
		require.NoError(t, f.Close())
		m.prefetch(whole, testChunk)
		m.await(whole, testChunk)
		assert.True(t, allZero(bytesAt(whole, testChunk)), "whole")
		assert.True(t, allZero(bytesAt(part, testChunk)), "part")
	})
}

// Later files use the addresses of closed ones, and find zeros there.
func TestMappingReuse(t *testing.T) {
	f, _ := patternFile(t, testChunk)
	seen := map[unsafe.Pointer]bool{}
	reused := 0
	for range 20 {
		m := osFS{}.Map(f, true)
		for i := range int64(3) {
			p, err := writableChunk(m, i*testChunk, testChunk, 0)
			require.NoError(t, err)
			b := bytesAt(p, testChunk)
			require.True(t, allZero(b))
			b[i] = 1
			if seen[p] {
				reused++
			}
			seen[p] = true
		}
		require.NoError(t, m.close())
	}
	if _, heap := (osFS{}).Map(f, true).(*heapMapping); heap {
		assert.Zero(t, reused, "a late reader's memory is its own")
		return
	}
	assert.Greater(t, reused, 20)
}

func TestAddressPool(t *testing.T) {
	for name, c := range map[string]struct {
		free        []int64
		want, least int64
		got         int64 // 0: nothing
	}{
		"empty":            {nil, 1, 1, 0},
		"exact":            {[]int64{8, 4, 2}, 4, 1, 4},
		"smallest to fit":  {[]int64{16, 6, 8}, 5, 1, 6},
		"largest of small": {[]int64{2, 4, 3}, 8, 2, 4},
		"fitting beats it": {[]int64{7, 64, 6}, 8, 2, 64},
		"none is enough":   {[]int64{1, 1}, 8, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var pool addressPool
			for _, size := range c.free {
				pool.put(addressRange{nil, size})
			}
			r, ok := pool.take(c.want, c.least)
			assert.Equal(t, c.got != 0, ok)
			assert.Equal(t, c.got, r.size)
			left := len(c.free)
			if ok {
				left--
			}
			assert.Len(t, pool.free, left)
		})
	}
}

func TestTable(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 5000, 3 << 20} {
		b, err := allocTable(n)
		require.NoError(t, err, n)
		require.Len(t, b, n)
		require.True(t, allZero(b), n)
		if n > 0 {
			assert.Zero(t, uintptr(unsafe.Pointer(&b[0]))%8, n)
			b[n-1] = 1
		}
		freeTable(b)
	}
}

func TestFile(t *testing.T) {
	f, content := patternFile(t, 10000)
	size := func() int64 {
		n, err := f.Size()
		require.NoError(t, err)
		return n
	}
	assert.EqualValues(t, 10000, size())
	require.NoError(t, f.Truncate(1<<20))
	assert.EqualValues(t, 1<<20, size())
	require.NoError(t, f.Truncate(128<<10))
	require.NoError(t, f.Sync())

	if err := f.Punch(0, 4096); err != nil {
		assert.ErrorIs(t, err, errors.ErrUnsupported)
	} else {
		clear(content[:4096])
	}
	assert.EqualValues(t, 128<<10, size())
	got := make([]byte, len(content))
	require.NoError(t, readWhole(f, got, 0))
	assert.True(t, bytes.Equal(content, got))

	require.NoError(t, f.Close())
	assert.ErrorIs(t, f.Close(), fs.ErrClosed)
	assert.ErrorIs(t, f.Sync(), fs.ErrClosed)
	assert.ErrorIs(t, f.Punch(0, 4096), fs.ErrClosed)
}

func TestOpenNotRegular(t *testing.T) {
	_, err := osFS{}.Open(tempDir(t), os.O_RDONLY, 0)
	assert.Error(t, err)
	_, err = osFS{}.Open(filepath.Join(tempDir(t), "absent"), os.O_RDWR, 0)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestLock(t *testing.T) {
	for name, c := range map[string]struct{ first, second, both bool }{
		"exclusive, exclusive": {true, true, false},
		"exclusive, shared":    {true, false, false},
		"shared, exclusive":    {false, true, false},
		"shared, shared":       {false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(tempDir(t), "f")
			a, content := patternFileAt(t, path, 10000)
			b, err := osFS{}.Open(path, os.O_RDWR, 0)
			require.NoError(t, err)
			defer b.Close()

			ok, err := osFS{}.Lock(a, c.first, false)
			require.NoError(t, err)
			require.True(t, ok)
			ok, err = osFS{}.Lock(b, c.second, false)
			require.NoError(t, err)
			require.Equal(t, c.both, ok)

			got := make([]byte, len(content))
			require.NoError(t, readWhole(b, got, 0), "the lock does not keep others from reading")

			if !ok {
				done := make(chan error)
				go func() {
					_, err := osFS{}.Lock(b, c.second, true)
					done <- err
				}()
				select {
				case <-done:
					t.Error("did not wait")
				case <-time.After(20 * time.Millisecond):
				}
				require.NoError(t, a.Close())
				require.NoError(t, <-done)
			}
		})
	}
}

func TestNames(t *testing.T) {
	dir := tempDir(t)
	path, other := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	f, _ := patternFileAt(t, path, 100)

	same := func(path string) bool {
		ok, err := osFS{}.SameFile(f, path)
		require.NoError(t, err)
		return ok
	}
	assert.True(t, same(path))
	assert.False(t, same(other), "absent")

	require.NoError(t, osFS{}.Link(path, other))
	assert.True(t, same(other), "a second name")
	assert.ErrorIs(t, osFS{}.Link(path, other), fs.ErrExist)
	require.NoError(t, osFS{}.SyncDir(path))
	third := filepath.Join(dir, "c")
	patternFileAt(t, third, 100)
	assert.False(t, same(third), "another file")
	name, is := osFS{}.Network(f)
	assert.Equal(t, name != "", is)

	require.NoError(t, f.Close())
	require.NoError(t, osFS{}.Remove(other))
	assert.ErrorIs(t, osFS{}.Remove(other), fs.ErrNotExist)
}

func TestResolve(t *testing.T) {
	dir := tempDir(t)
	path := filepath.Join(dir, "a")
	patternFileAt(t, path, 100)
	real, err := filepath.EvalSymlinks(dir)
	require.NoError(t, err)
	t.Chdir(dir)
	for _, p := range []string{path, "a", "./a", "../" + filepath.Base(dir) + "/a"} {
		got, err := osFS{}.Resolve(p)
		require.NoError(t, err, p)
		assert.Equal(t, filepath.Join(real, "a"), got, p)
	}
	got, err := osFS{}.Resolve("absent")
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(real, "absent"), got)
	_, err = osFS{}.Resolve("absent/a")
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestDirtyLimit(t *testing.T) {
	for name, c := range map[string]struct{ memory, cgroup, want int64 }{
		"unknown":               {0, 0, 256 << 20},
		"a quarter":             {2 << 30, 0, 512 << 20},
		"at most":               {64 << 30, 0, 1 << 30},
		"half a group":          {64 << 30, 512 << 20, 256 << 20},
		"half a large group":    {64 << 30, 32 << 30, 1 << 30},
		"a group beyond memory": {2 << 30, 1 << 62, 512 << 20},
	} {
		assert.Equal(t, c.want, dirtyLimitFor(c.memory, c.cgroup), name)
	}
	assert.Greater(t, defaultDirtyLimit(), int64(0))
	switch runtime.GOOS {
	case "aix", "illumos", "solaris", "js", "wasip1":
		assert.Zero(t, physicalMemory(), "unknown")
	default:
		assert.Greater(t, physicalMemory(), int64(16<<20))
	}
}
