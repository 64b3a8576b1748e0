package emd

import (
	"bytes"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Each slot belongs to one chunk, and runs of pages that are aligned to their
// size lie in one chunk, but those that begin the file, which are never handed out.
func TestSlots(t *testing.T) {
	for grow := range uint8(8) {
		t.Run(strconv.Itoa(int(grow)), func(t *testing.T) {
			s := &space{shift: 4, grow: grow}
			for i, end := 0, 0; i < 2000; i++ {
				first, n := s.slots(i)
				if i == end { // the next chunk
					require.Equal(t, i, first)
					end = first + n
				}
				require.LessOrEqual(t, first, i)
				require.Equal(t, end, first+n, "slot %d", i)
				for size := 1; size <= 1<<grow && size <= i; size *= 2 {
					require.LessOrEqual(t, i&^(size-1)+size, end, "a run of %d slots around slot %d", size, i)
					require.GreaterOrEqual(t, i&^(size-1), first, "a run of %d slots around slot %d", size, i)
				}
			}
		})
	}
}

// A file on the Go heap takes memory as it grows: at most twice its size.
func TestHeapMappingGrows(t *testing.T) {
	path := filepath.Join(tempDir(t), "grows.emd")
	a, err := openWith(path, nil, internalOptions{heap: true})
	require.NoError(t, err)
	assert.Equal(t, firstHeapChunk, a.Stats().Mapped)
	l, err := List[[1000]byte](a, "l", nil)
	require.NoError(t, err)
	for n := range 10_000 {
		require.NoError(t, l.Append([1000]byte{byte(n)}))
		if n%1000 == 0 {
			used, _ := a.alloc.usage()
			require.LessOrEqual(t, a.Stats().Mapped, max(firstHeapChunk, int64(used)<<(pageShift+1)))
		}
	}
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())

	// Chunks of one size show the same file.
	a, err = openWith(path, nil, internalOptions{})
	require.NoError(t, err)
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())
}

// limitedFS shows files in memory of the Go heap, which may grow by extra bytes.
type limitedFS struct {
	osFS
	extra int64
}

func (l limitedFS) Map(f file, _ bool) mapping {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return &heapMapping{f: f, check: true, limit: int64(s.Sys-s.HeapIdle) + l.extra}
}

// A program that has no memory for more of the file gets an error, and goes on.
func TestHeapMappingFull(t *testing.T) {
	path := filepath.Join(tempDir(t), "full.emd")
	a, err := openWith(path, nil, internalOptions{fs: limitedFS{extra: 48 << 20}})
	require.NoError(t, err)
	l, err := List[[1000]byte](a, "l", nil)
	require.NoError(t, err)
	require.NoError(t, l.Append([1000]byte{1}))
	require.NoError(t, a.Sync())
	for n := 0; err == nil; n++ {
		require.Less(t, n, 100_000)
		err = l.Append([1000]byte{2})
	}
	require.ErrorIs(t, err, ErrFull)
	require.ErrorContains(t, err, "the whole file must fit")
	require.NoError(t, a.Sync(), "what there is")
	n := l.Len()
	for err = nil; err == nil; {
		err = l.Append([1000]byte{3})
	}
	require.NoError(t, a.Rollback())
	assert.Equal(t, n, l.Len())
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())

	_, err = openWith(path, nil, internalOptions{fs: limitedFS{extra: 1 << 20}})
	require.ErrorIs(t, err, ErrFull, "at open, not when something is read")
	require.ErrorContains(t, err, path)
}

// What the mapping of the Go heap keeps does not follow the file.
func TestHeapMappingPrivate(t *testing.T) {
	f, content := patternFile(t, testChunk)
	m := &heapMapping{f: f}
	p, err := writableChunk(m, 0, testChunk, testChunk)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, testChunk), 0)
	require.NoError(t, err)
	require.NoError(t, remap(m, m.drop, p, testChunk, 0))
	require.NoError(t, remap(m, m.adopt, p, testChunk, 0))
	assert.True(t, bytes.Equal(content, bytesAt(p, testChunk)))
	require.NoError(t, m.refresh(p, testChunk, 0))
	assert.True(t, allZero(bytesAt(p, testChunk)))
}
