package emd

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What a file takes: of the disk, of the Go heap, and of the time to open it.

// A spyFS passes everything on to the operating system, counts, and asks before and tells after each call that changes something.
type spyFS struct {
	fileSystem
	before    func(op, path string) error // may fail the call
	after     func(op, path string)
	wrote     func(path string, off, n int64)
	network   string // pretended
	reads     atomic.Int64
	readBytes atomic.Int64
}

func newSpyFS() *spyFS { return &spyFS{fileSystem: newOSFS(false, false)} }

// call runs a call that changes something between the two hooks.
func (s *spyFS) call(op, path string, fn func() error) error {
	if s.before != nil {
		if err := s.before(op, path); err != nil {
			return &fs.PathError{Op: op, Path: path, Err: err}
		}
	}
	err := fn()
	if s.after != nil && err == nil {
		s.after(op, path)
	}
	return err
}

func (s *spyFS) Open(path string, flag int, mode fs.FileMode) (file, error) {
	var f file
	open := func() (err error) { f, err = s.fileSystem.Open(path, flag, mode); return err }
	err := open
	if flag&os.O_CREATE != 0 {
		err = func() error { return s.call("open", path, open) }
	}
	if err := err(); err != nil {
		return nil, err
	}
	return &spyFile{f, s, path}, nil
}

func (s *spyFS) Lock(f file, exclusive, wait bool) (bool, error) {
	return s.fileSystem.Lock(f.(*spyFile).file, exclusive, wait)
}

func (s *spyFS) Link(old, new string) error {
	return s.call("link", new, func() error { return s.fileSystem.Link(old, new) })
}

func (s *spyFS) Remove(path string) error {
	return s.call("remove", path, func() error { return s.fileSystem.Remove(path) })
}

func (s *spyFS) SyncDir(path string) error {
	return s.call("syncdir", path, func() error { return s.fileSystem.SyncDir(path) })
}

func (s *spyFS) SameFile(f file, path string) (bool, error) {
	return s.fileSystem.SameFile(f.(*spyFile).file, path)
}

func (s *spyFS) Network(f file) (string, bool) {
	if s.network != "" {
		return s.network, true
	}
	return s.fileSystem.Network(f.(*spyFile).file)
}

func (s *spyFS) Map(f file, written bool) mapping {
	return s.fileSystem.Map(f.(*spyFile).file, written)
}

type spyFile struct {
	file
	s    *spyFS
	path string
}

func (f *spyFile) ReadAt(b []byte, off int64) (int, error) {
	f.s.reads.Add(1)
	f.s.readBytes.Add(int64(len(b)))
	return f.file.ReadAt(b, off)
}

func (f *spyFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.s.call("write", f.path, func() error { n, err = f.file.WriteAt(b, off); return err })
	if f.s.wrote != nil {
		f.s.wrote(f.path, off, int64(n))
	}
	return n, err
}

func (f *spyFile) Truncate(size int64) error {
	return f.s.call("truncate", f.path, func() error { return f.file.Truncate(size) })
}

func (f *spyFile) Sync() error { return f.s.call("sync", f.path, f.file.Sync) }

// TestEmptyFile bounds the size of a file with nothing in it.
func TestEmptyFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "empty.emd")
	d, err := OpenDict[string, string](path, nil)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	assert.LessOrEqual(t, fileSize(t, path), int64(128<<10))
	l, err := OpenList[string](filepath.Join(tempDir(t), "list.emd"), nil)
	require.NoError(t, err)
	require.NoError(t, l.Sync())
	require.NoError(t, l.Close())
	assert.LessOrEqual(t, fileSize(t, l.Arena().path), int64(128<<10))
	d, err = OpenDict[string, string](path, nil)
	require.NoError(t, err)
	require.NoError(t, d.Set("k", "v"))
	require.NoError(t, d.Close())
	assert.LessOrEqual(t, fileSize(t, path), int64(256<<10), "growth is in proportion")
}

// A filler fills an open container with n elements and checks or deletes them; see fillers.
type filler struct {
	fill, check, empty func(t testing.TB, n int)
	close              func() error
	arena              *Arena
}

func uint64Pair(i int) (k, v uint64) { return uint64(i) * 0x9E3779B97F4A7C15, uint64(i) + 1 }

var zeros = strings.Repeat("0", 100)

// stringPair makes a key of 16 bytes and a value of 100.
func stringPair(i int) (k, v string) {
	digits := strconv.FormatInt(1_000_000_000_000+int64(i), 10)[1:]
	return "key " + digits, "value " + zeros[:81] + digits + "."
}

func isZeroErr(t testing.TB, err error) {
	if err != nil {
		t.Helper()
		require.NoError(t, err)
	}
}

// fillers open one container each in a file of its own.
var fillers = map[string]func(t testing.TB, path string, opts *Options, in internalOptions) filler{
	"dict uint64": func(t testing.TB, path string, opts *Options, in internalOptions) filler {
		return dictFiller(t, path, opts, in, uint64Pair)
	},
	"dict string": func(t testing.TB, path string, opts *Options, in internalOptions) filler {
		return dictFiller(t, path, opts, in, stringPair)
	},
	"dict bytes": func(t testing.TB, path string, opts *Options, in internalOptions) filler {
		return dictFiller(t, path, opts, in, bytesPair)
	},
	"list uint64": func(t testing.TB, path string, opts *Options, in internalOptions) filler {
		return listFiller(t, path, opts, in, func(i int) uint64 { return uint64(i) * 3 })
	},
	"list string": func(t testing.TB, path string, opts *Options, in internalOptions) filler {
		return listFiller(t, path, opts, in, func(i int) string { _, v := stringPair(i); return v[i%50:] })
	},
}

func bytesPair(i int) (k [16]byte, v [100]byte) {
	binary.LittleEndian.PutUint64(k[i%8:], uint64(i)+1)
	k[15] = byte(i % 8)
	binary.LittleEndian.PutUint64(v[92:], uint64(i))
	return k, v
}

func dictFiller[K, V comparable](t testing.TB, path string, opts *Options, in internalOptions, pair func(i int) (K, V)) filler {
	a, err := openWith(path, opts, in)
	require.NoError(t, err)
	d, err := Dict[K, V](a, "dict", nil)
	require.NoError(t, err)
	return filler{
		fill: func(t testing.TB, n int) {
			for i := range n {
				isZeroErr(t, d.Set(pair(i)))
			}
		},
		check: func(t testing.TB, n int) {
			require.Equal(t, n, d.Len())
			for i := range n {
				k, want := pair(i)
				v, ok, err := d.Get(k)
				isZeroErr(t, err)
				if !ok || v != want {
					require.Fail(t, "lost or wrong", "%v: %v %t", k, v, ok)
				}
			}
		},
		empty: func(t testing.TB, n int) {
			for i := range n {
				k, _ := pair(i)
				ok, err := d.Delete(k)
				isZeroErr(t, err)
				if !ok {
					require.True(t, ok, "Delete(%v)", k)
				}
			}
			require.Zero(t, d.Len())
		},
		close: a.Close,
		arena: a,
	}
}

func listFiller[T comparable](t testing.TB, path string, opts *Options, in internalOptions, element func(i int) T) filler {
	a, err := openWith(path, opts, in)
	require.NoError(t, err)
	l, err := List[T](a, "list", nil)
	require.NoError(t, err)
	return filler{
		fill: func(t testing.TB, n int) {
			isZeroErr(t, l.AppendSeq(func(yield func(T) bool) {
				for i := range n {
					if !yield(element(i)) {
						return
					}
				}
			}))
		},
		check: func(t testing.TB, n int) {
			require.Equal(t, n, l.Len())
			for i, v := range l.All() {
				if v != element(i) {
					require.Equal(t, element(i), v, "element %d", i)
				}
			}
			require.NoError(t, l.Err())
		},
		empty: func(t testing.TB, n int) {
			switch rand.IntN(3) {
			case 0:
				isZeroErr(t, l.Delete(0, n))
			case 1:
				for i := n; i > 0; i -= 1000 {
					isZeroErr(t, l.Resize(max(0, i-1000)))
				}
				isZeroErr(t, l.Resize(0))
			case 2:
				for l.Len() > 0 {
					isZeroErr(t, l.Delete(0, min(1000, l.Len())))
				}
			}
			require.Zero(t, l.Len())
		},
		close: a.Close,
		arena: a,
	}
}

// TestSpaceIsUsedAgain fills, deletes everything and fills again, a hundred times: the file keeps its size.
func TestSpaceIsUsedAgain(t *testing.T) {
	t.Parallel()
	for name, open := range fillers {
		for _, reopens := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/reopens=%t", name, reopens), func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(tempDir(t), "again.emd")
				opts, in := &Options{NoSync: true}, internalOptions{}
				n, rounds := 20_000, pick(0, 100, 12)
				if reopens {
					rounds /= 4
				}
				f := open(t, path, opts, in)
				reopen := func() {
					require.NoError(t, f.close())
					f = open(t, path, opts, in)
				}
				var size int64
				for round := range rounds {
					f.fill(t, n)
					require.NoError(t, f.arena.Sync())
					if round%20 == 0 || reopens {
						f.check(t, n)
						require.NoError(t, f.arena.verify())
					}
					if reopens {
						reopen()
					}
					f.empty(t, n)
					require.NoError(t, f.arena.Sync())
					if reopens {
						reopen()
					}
					if round == 2 {
						size = f.arena.Stats().File
					}
				}
				f.fill(t, n)
				require.NoError(t, f.close())
				assert.LessOrEqual(t, fileSize(t, path), size+size/4, "%d rounds", rounds)
			})
		}
	}
}

// TestSpaceOfRandomChange replaces entries for ever: the file stays in proportion to what it holds.
func TestSpaceOfRandomChange(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "churn.emd")
	a, err := openWith(path, &Options{NoSync: true}, internalOptions{logLimit: 1 << 20})
	require.NoError(t, err)
	d, err := Dict[int, string](a, "dict", nil)
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(4, 4))
	var data int64
	lens := map[int]int64{}
	for round := range pick(0, 40, 8) {
		for range 10_000 {
			k := r.IntN(5000)
			data -= lens[k]
			if r.IntN(3) == 0 {
				_, err := d.Delete(k)
				isZeroErr(t, err)
				delete(lens, k)
				continue
			}
			v := strings.Repeat("v", r.IntN(1+r.IntN(3000)))
			isZeroErr(t, d.Set(k, v))
			lens[k] = int64(len(v))
			data += lens[k]
		}
		isZeroErr(t, a.Sync())
		if round > 0 { // space is taken in steps, so bound it by the data, not by an earlier size
			require.LessOrEqual(t, a.Stats().File, 3*data+(1<<20), "round %d, %d bytes of values", round, data)
		}
	}
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())
}

// TestDropClean checkpoints beside changes that no commit has: copies that the file has too are given back, all others stay.
func TestDropClean(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	a := testArena(t, testOptions{opts: Options{NoAutoCommit: true, NoSync: true}})
	l := listOf[[pageSize]byte](t, a, nil)
	const n = 1000
	require.NoError(t, l.Resize(n))
	require.NoError(t, l.Fill(0, n, [pageSize]byte{1}))
	require.NoError(t, a.Sync())
	want, committed := make([]byte, n), make([]byte, n)
	for i := range want {
		want[i] = 1
	}
	change := func(share int) {
		for i := range want {
			if r.IntN(share) == 0 {
				want[i]++
				require.NoError(t, l.Set(i, [pageSize]byte{want[i], pageSize - 1: want[i]}))
			}
		}
	}
	same := func() {
		for i, v := range want {
			got, err := l.Get(i)
			require.NoError(t, err)
			require.Equal(t, v, got[0], "element %d, seed %d", i, seed)
		}
	}
	for round := range 40 {
		change(1 + r.IntN(100))
		require.NoError(t, a.Sync())
		copy(committed, want)
		change(1 + r.IntN(100))
		dirty := int64(0)
		require.NoError(t, a.space.eachDirty(0, maxPages, func(dirtyPage) error { dirty++; return nil }))
		a.turn.Lock()
		require.NoError(t, a.checkpoint())
		a.turn.Unlock()
		if a.space.osShift == 0 {
			require.Equal(t, dirty*pageSize, a.space.private.Load(), "round %d, seed %d", round, seed)
		}
		require.NoError(t, a.verifyMemory())
		same()
		if r.IntN(3) == 0 {
			require.NoError(t, a.Rollback())
			copy(want, committed)
			same()
		}
	}
}

// TestUnmarkedStore requires that verifyMemory, which the model tests call, finds
// a store that bypassed the marks, on every kind of page.
func TestUnmarkedStore(t *testing.T) {
	for _, heap := range []bool{false, true} {
		a := testArena(t, testOptions{internalOptions: internalOptions{heap: heap}})
		d, err := Dict[uint64, uint64](a, "d", nil)
		require.NoError(t, err)
		for i := range uint64(1000) {
			require.NoError(t, d.Set(i, i))
		}
		require.NoError(t, a.Sync())
		require.NoError(t, d.Set(1, 2)) // marked
		require.NoError(t, a.verifyMemory())
		found := 0
		require.NoError(t, d.d.verify(func(p pageNo, _ uint32) error {
			b, err := a.space.writablePage(p)
			require.NoError(t, err)
			b[pageSize-1] ^= 1
			if err := a.verifyMemory(); err != nil {
				require.ErrorContains(t, err, "changed without a mark")
				found++
			}
			b[pageSize-1] ^= 1
			require.NoError(t, a.verifyMemory())
			return nil
		}))
		require.Greater(t, found, 5) // but for a line that a Set has marked
	}
}

// TestOpenReadsLittle opens closed files of a million elements and counts the bytes read for it.
func TestOpenReadsLittle(t *testing.T) {
	n := pick(0, 1_000_000, 100_000)
	for name, open := range fillers {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(tempDir(t), "large.emd")
			f := open(t, path, &Options{NoSync: true}, internalOptions{})
			f.fill(t, n)
			require.NoError(t, f.close())
			spy := newSpyFS()
			f = open(t, path, nil, internalOptions{fs: spy})
			assert.Less(t, spy.readBytes.Load(), int64(64<<10), "bytes read by Open")
			assert.Less(t, spy.reads.Load(), int64(20), "reads by Open")
			assert.Less(t, f.arena.Stats().Private, int64(1<<20))
			f.check(t, n)
			require.NoError(t, f.close())
		})
	}
}

// TestGoHeap compares the Go heap that open containers use at 10^5 and 10^6 elements.
func TestGoHeap(t *testing.T) {
	for name, open := range fillers {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(tempDir(t), "heap.emd")
			var used [2]int64
			for i, n := range []int{100_000, pick(0, 1_000_000, 300_000)} {
				before := heapInUse()
				f := open(t, path, &Options{NoSync: true, DirtyLimit: 64 << 20}, internalOptions{})
				f.fill(t, n)
				require.NoError(t, f.arena.Sync())
				used[i] = int64(heapInUse() - before)
				require.NoError(t, f.close())
				require.NoError(t, os.Remove(path))
			}
			assert.Less(t, used[1]-used[0], int64(512<<10), "Go heap at 10^5 elements: %d bytes, at ten times as many: %d", used[0], used[1])
			assert.Less(t, used[0], int64(4<<20))
		})
	}
}

// TestMillions puts ten million uint64 pairs, and a million strings of 16 bytes with values of 100, in and gets them back, also after reopening.
func TestMillions(t *testing.T) {
	for name, n := range map[string]int{"dict uint64": pick(0, 10_000_000, 1_000_000), "dict string": pick(0, 1_000_000, 100_000)} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(tempDir(t), "millions.emd")
			f := fillers[name](t, path, nil, internalOptions{})
			f.fill(t, n)
			require.NoError(t, f.arena.Sync())
			f.check(t, n)
			require.NoError(t, f.close())
			t.Logf("%.1f bytes an entry on disk", float64(fileSize(t, path))/float64(n))
			f = fillers[name](t, path, nil, internalOptions{})
			f.check(t, n)
			require.NoError(t, f.arena.verify())
			require.NoError(t, f.close())
		})
	}
}

// childRace is the child of TestRacePlanted.
func childRace(args []string) {
	a, err := openWith(args[0], nil, internalOptions{heap: true})
	must(err)
	l, err := List[uint64](a, "l", nil)
	must(err)
	must(l.Append(1, 2, 3))
	page := a.space.page(l.l.hdr)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			for range 1000 {
				page[pageSize-1]++
			}
		})
	}
	both.Wait()
	must(a.Close())
}
