//go:build unix

package emd

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var sink byte

// What is written to the file shows in all pages without a copy of their own.
func TestUnixMappingShowsFile(t *testing.T) {
	for name, giveBack := range map[string]func(m mapping, p unsafe.Pointer) error{
		"drop":  func(m mapping, p unsafe.Pointer) error { return remap(m, m.drop, p, testChunk, 0) },
		"adopt": func(m mapping, p unsafe.Pointer) error { return remap(m, m.adopt, p, testChunk, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			f, content := patternFile(t, testChunk)
			m := osFS{}.Map(f, true)
			defer m.close()
			p, err := writableChunk(m, 0, testChunk, testChunk)
			require.NoError(t, err)
			b := bytesAt(p, testChunk)
			b[0] ^= 0xFF
			content[1], content[testChunk-1] = content[1]^0xFF, content[testChunk-1]^0xFF
			_, err = f.WriteAt(content, 0)
			require.NoError(t, err)
			assert.NotEqual(t, content[0], b[0], "a page of its own")
			assert.NotEqual(t, content[1], b[1], "a page of its own")
			assert.Equal(t, content[testChunk-1], b[testChunk-1])

			require.NoError(t, giveBack(m, p))
			assert.True(t, bytes.Equal(content, b))
		})
	}
}

func TestUnixMappingPlaces(t *testing.T) {
	f, _ := patternFile(t, testChunk)
	const n = 2 * farStep // more than one reservation of far chunks
	chunks := func(m mapping) (all []uintptr) {
		for i := range int64(n) {
			p, err := writableChunk(m, i*testChunk, testChunk, 0)
			require.NoError(t, err)
			all = append(all, uintptr(p))
		}
		return all
	}

	// Ranges in the pool may be shorter than what is asked for: start without.
	emptyPool := func() {
		for ok := true; ok; {
			_, ok = closedRanges.take(1, 1)
		}
	}
	emptyPool()
	far := osFS{far: true}.Map(f, true)
	places := chunks(far)
	for i, p := range places {
		for j, q := range places {
			if i != j {
				assert.GreaterOrEqual(t, max(p, q)-min(p, q), uintptr(2*testChunk), "%d, %d", i, j)
			}
		}
	}
	assert.Greater(t, places[0], places[1], "out of order")
	p, err := writableChunk(far, n*testChunk, testChunk, 0)
	require.NoError(t, err)
	assert.True(t, faults(func() { sink = *(*byte)(unsafe.Add(p, -1)) }), "the gap below")
	require.NoError(t, far.close())

	emptyPool()
	near := osFS{}.Map(f, true).(*unixMapping)
	near.step = n * testChunk
	if near.nextStep(testChunk) == testChunk {
		return // 32 bits: each chunk lies where there is room
	}
	near.step = n * testChunk
	places = chunks(near)
	for i, p := range places {
		assert.Equal(t, places[0]+uintptr(i)*testChunk, p)
	}
	require.NoError(t, near.close())
}

func TestUnixMappingSteps(t *testing.T) {
	m := &unixMapping{step: firstStep}
	if m.nextStep(testChunk) == testChunk {
		return // 32 bits
	}
	assert.Equal(t, 2*firstStep, m.nextStep(testChunk))
	for range 10 {
		m.nextStep(testChunk)
	}
	assert.Equal(t, lastStep, m.nextStep(testChunk))
	assert.Equal(t, 2*lastStep, m.nextStep(2*lastStep), "at least a chunk")
}

func TestUnixMappingClosedIsReadOnly(t *testing.T) {
	f, _ := patternFile(t, testChunk)
	m := osFS{}.Map(f, true)
	p, err := writableChunk(m, 0, testChunk, testChunk)
	require.NoError(t, err)
	require.NoError(t, m.close())
	assert.False(t, faults(func() { sink = *(*byte)(p) }))
	assert.True(t, faults(func() { *(*byte)(p) = 1 }))
}

// A reader meets no fault while its memory is adopted, dropped, closed, and used
// by the next file.
func TestUnixMappingLateReaders(t *testing.T) {
	f, content := patternFile(t, testChunk)
	var current atomic.Pointer[byte]
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a failure, not a crash
			defer func() { assert.Nil(t, recover()) }()
			sum := byte(0)
			for !stop.Load() {
				if p := current.Load(); p != nil {
					for i := 0; i < testChunk; i += 512 {
						sum += *(*byte)(unsafe.Add(unsafe.Pointer(p), i))
					}
				}
			}
			_ = sum
		})
	}
	for range 200 {
		m := osFS{}.Map(f, true)
		p, err := writableChunk(m, 0, testChunk, testChunk/2)
		require.NoError(t, err)
		current.Store((*byte)(p))
		copy(bytesAt(p, testChunk), content)
		require.NoError(t, remap(m, m.adopt, p, testChunk, 0))
		bytesAt(p, testChunk)[0] = content[0]
		require.NoError(t, remap(m, m.drop, p, testChunk, 0))
		require.NoError(t, m.close())
	}
	stop.Store(true)
	readers.Wait()
}

func TestReserveRefused(t *testing.T) {
	const most = 1 << (8*unsafe.Sizeof(uintptr(0)) - 2) // more than any process has, or than is left
	var all []addressRange
	for {
		r, err := reserve(most, most/2)
		if err != nil {
			assert.ErrorIs(t, err, ErrFull)
			assert.ErrorIs(t, err, syscall.ENOMEM)
			break
		}
		all = append(all, r)
	}
	for _, r := range all {
		freeTable(bytesAt(r.base, r.size))
	}
}

func TestResolveLinks(t *testing.T) {
	dir, err := filepath.EvalSymlinks(tempDir(t))
	require.NoError(t, err)
	in := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.MkdirAll(in("sub/deep"), 0o700))
	require.NoError(t, os.WriteFile(in("file"), nil, 0o600))
	for name, target := range map[string]string{
		"link":       "file",
		"absolute":   in("file"),
		"chain":      "link",
		"dangling":   "sub/new",
		"dangling2":  "dangling",
		"folder":     "sub/deep",
		"over":       "folder/../new", // of the real folder's parent
		"loop":       "loop2",
		"loop2":      "loop",
		"nowhere":    "absent/new",
		"sub/up":     "../file",
		"sub/upmore": "../sub/new",
	} {
		require.NoError(t, os.Symlink(target, in(name)))
	}
	for path, want := range map[string]string{
		"file":            "file",
		"link":            "file",
		"absolute":        "file",
		"chain":           "file",
		"dangling":        "sub/new",
		"dangling2":       "sub/new",
		"folder/new":      "sub/deep/new",
		"folder/../new":   "sub/new",
		"over":            "sub/new",
		"sub/up":          "file",
		"folder/../up":    "file",
		"sub/upmore":      "sub/new",
		"sub/../dangling": "sub/new",
	} {
		got, err := osFS{}.Resolve(dir + "/" + path)
		if assert.NoError(t, err, path) {
			assert.Equal(t, in(want), got, path)
		}
	}
	_, err = osFS{}.Resolve(in("loop"))
	assert.ErrorIs(t, err, syscall.ELOOP)
	_, err = osFS{}.Resolve(in("nowhere"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

// An ownFS calls own in place of its mappings' own.
type ownFS struct {
	fileSystem
	own func(m mapping, p unsafe.Pointer, n int64) error
}

type ownMapping struct {
	mapping
	fs ownFS
}

func (o ownFS) Map(f file, written bool) mapping { return ownMapping{o.fileSystem.Map(f, written), o} }

func (m ownMapping) own(p unsafe.Pointer, n int64) error { return m.fs.own(m.mapping, p, n) }

// countOwned counts in owned how often pages become writable.
func countOwned(owned map[uintptr]int) ownFS {
	var mu sync.Mutex
	return ownFS{newOSFS(false, true), func(m mapping, p unsafe.Pointer, n int64) error {
		mu.Lock()
		defer mu.Unlock()
		for i := int64(0); i < n; i += int64(osPageSize()) {
			owned[uintptr(p)+uintptr(i)]++
		}
		return m.own(p, n)
	}}
}

// TestOwnedOnce has goroutines meet at pages that become writable: each does so once.
func TestOwnedOnce(t *testing.T) {
	const pages, writers = 512, 4
	f, _ := patternFile(t, pages*pageSize)
	owned := map[uintptr]int{}
	fs := countOwned(owned)
	s, err := newSpace(f, fs.Map(f, true), minChunkSize, pages, pages*pageSize, true)
	require.NoError(t, err)
	defer s.close()
	for range 2 {
		var done sync.WaitGroup
		for w := range writers {
			done.Go(func() {
				for p := pageNo(0); p < pages; p++ {
					s.touch(p, 1<<w)
				}
			})
		}
		done.Wait()
		require.NoError(t, s.eachDirty(0, pages, func(d dirtyPage) error { *d.word = 0; return nil }))
		s.sweep()
	}
	require.Len(t, owned, pages*pageSize/osPageSize())
	for p, n := range owned {
		require.Equal(t, 1, n, "page at %#x", p)
	}
}

// TestOwnedAreFew changes some pages, again after they were dropped: those and no others become writable, once each time.
func TestOwnedAreFew(t *testing.T) {
	path := filepath.Join(tempDir(t), "owned.emd")
	const n = 2000
	l, err := OpenList[[1024]byte](path, nil)
	require.NoError(t, err)
	for i := range n {
		require.NoError(t, l.Append([1024]byte{byte(i)}))
	}
	require.NoError(t, l.Close())

	owned := map[uintptr]int{}
	a, err := openWith(path, nil, internalOptions{fs: countOwned(owned)})
	require.NoError(t, err)
	l, err = List[[1024]byte](a, mainName, nil)
	require.NoError(t, err)
	for range 3 {
		for i := range n / 2 {
			require.NoError(t, l.Set(i, [1024]byte{byte(i + 1)}))
		}
		require.NoError(t, a.Sync())
		require.NoError(t, a.checkpoint())
		data := n / 2 * 1024 / osPageSize()
		require.InDelta(t, data, len(owned), float64(data)/10+5)
		for p, n := range owned {
			require.Equal(t, 1, n, "page at %#x", p)
		}
		clear(owned)
	}
	require.NoError(t, a.Close())
}

// TestOwnedInRanges changes pages that lie scattered: the more have, the more become writable at once, where there is memory for them; until all
// are dropped but some that follow each other.
func TestOwnedInRanges(t *testing.T) {
	const pages, many = 1 << 15, 40
	f, _ := patternFile(t, 1)
	require.NoError(t, f.Truncate(pages*pageSize))
	for _, most := range []int64{64 << 20, 64 << 10} {
		widths := map[int64]int{}
		fs := ownFS{newOSFS(false, true), func(m mapping, p unsafe.Pointer, n int64) error {
			if n > most {
				return errPrivate
			}
			widths[n]++
			return m.own(p, n)
		}}
		s, err := newSpace(f, fs.Map(f, true), 32<<20, pages, pages*pageSize, true)
		require.NoError(t, err)
		s.manyOwned = many
		random := rand.New(rand.NewPCG(1, 2))
		for range 2 {
			for range 4000 {
				p := pageNo(random.IntN(pages))
				s.touch(p, 1)
				s.page(p)[1]++
			}
			for n, times := range widths {
				require.Contains(t, []int64{int64(osPageSize()), 64 << 10, 1 << 20, 16 << 20}, n)
				require.True(t, times <= 2*many || n < most && most == 64<<10, "%d times %d bytes", times, n)
			}
			if most == 64<<20 {
				require.EqualValues(t, pages*pageSize, s.private.Load(), "all is writable")
			} else {
				require.Greater(t, widths[int64(osPageSize())], many, "more is refused")
			}
			require.NotZero(t, widths[min(most, 16<<20)])
			clear(widths)

			const kept, n = 1600, 32
			for p := range pageNo(n) {
				s.touch(kept+p, 1)
				s.page(kept + p)[1] = 7
			}
			require.NoError(t, s.eachDirty(0, pages, func(d dirtyPage) error {
				if d.no-kept >= n {
					*d.word = 0
				}
				return nil
			}))
			s.sweep()
			require.NoError(t, s.dropClean())
			require.EqualValues(t, n*pageSize, s.private.Load())
			require.Equal(t, 1, s.owning, "runs")
			for p := range pageNo(pages) {
				isKept := p-kept < n
				c, in := s.chunkOf(uint64(p))
				require.Equal(t, !isKept, c.guards[in>>6]>>(in&63)&1 != 0, "page %d is read-only", p)
				require.True(t, isKept || s.page(p)[1] == 0, "page %d is dropped", p)
			}
			require.EqualValues(t, 7, s.page(kept)[1])
			require.EqualValues(t, 7, s.page(kept + n - 1)[1])
		}
		require.NoError(t, s.close())
	}
}

// TestSpilledIsNotOwned adds much more than may be private in one Update: what has been spilled makes the ranges that become writable no larger.
func TestSpilledIsNotOwned(t *testing.T) {
	a, err := openWith(filepath.Join(tempDir(t), "spilled.emd"), nil, internalOptions{far: true, dirtyLimit: 512 << 10})
	require.NoError(t, err)
	a.space.manyOwned = 100
	l, err := List[[pageSize]byte](a, "l", nil)
	require.NoError(t, err)
	require.NoError(t, a.Update(func() error {
		for i := range 4000 {
			if err := l.Append([pageSize]byte{byte(i)}); err != nil {
				return err
			}
		}
		return nil
	}))
	require.NotZero(t, a.Stats().Spilled)
	require.NoError(t, a.Close())
}

// TestOwnRefused has no memory for what a crash left in the log: that is an error of whoever would show it, and no damage.
func TestOwnRefused(t *testing.T) {
	path := crashedCommits(t, 200, internalOptions{})
	before := folder(t, filepath.Dir(path))
	in := internalOptions{fs: ownFS{newOSFS(false, true), func(mapping, unsafe.Pointer, int64) error { return errPrivate }}}
	_, err := openWith(path, &Options{ReadOnly: true}, in)
	isError(t, err, path, ErrFull)
	_, err = salvageWith(t.Context(), path+".new", path, nil, in)
	isError(t, err, path, ErrFull)
	sameFolder(t, before, filepath.Dir(path))
}
