package emd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The defects of the predecessor, and those that others met with files in memory, one test each, named after the defect.

// reopenDict closes a dict that has its file to itself and opens it again.
func reopenDict[K comparable, V any](t testing.TB, d *EMDict[K, V], path string) *EMDict[K, V] {
	require.NoError(t, d.Arena().verify())
	require.NoError(t, d.Close())
	d, err := OpenDict[K, V](path, nil)
	require.NoError(t, err)
	require.NoError(t, d.Arena().verify())
	t.Cleanup(func() { d.Close() }) // Windows removes no open file
	return d
}

func reopenList[T any](t testing.TB, l *EMList[T], path string) *EMList[T] {
	require.NoError(t, l.Arena().verify())
	require.NoError(t, l.Close())
	l, err := OpenList[T](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.Arena().verify())
	t.Cleanup(func() { l.Close() })
	return l
}

func tempDict[K comparable, V any](t testing.TB) (*EMDict[K, V], string) {
	path := filepath.Join(tempDir(t), "dict.emd")
	d, err := OpenDict[K, V](path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	return d, path
}

func tempList[T any](t testing.TB) (*EMList[T], string) {
	path := filepath.Join(tempDir(t), "list.emd")
	l, err := OpenList[T](path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l, path
}

// hasExactly checks a dict against a map by every way to look.
func hasExactly[K comparable, V any](t testing.TB, want map[K]V, d *EMDict[K, V]) {
	t.Helper()
	require.Equal(t, len(want), d.Len())
	for k, v := range want {
		got, ok, err := d.Get(k)
		require.NoError(t, err)
		if !ok || !equalStates(v, got) {
			require.True(t, ok, "key %v", k)
			require.Equal(t, v, got, "key %v", k)
		}
	}
	n := 0
	for k, v := range d.All() {
		if w, ok := want[k]; !ok || !equalStates(w, v) {
			require.Fail(t, "All yields a wrong pair", "%v: %v", k, v)
		}
		n++
	}
	require.Equal(t, len(want), n)
}

// A deletion cut the probe sequences that went through the slot, and the keys behind it were lost.
func TestDefectDeleteCutsProbeSequence(t *testing.T) {
	t.Parallel()
	d, path := tempDict[uint64, uint64](t)
	want := map[uint64]uint64{}
	r := rand.New(rand.NewPCG(1, 1))
	for range 40 { // full buckets, from which keys go one by one
		for len(want) < 3000 {
			k := r.Uint64N(1 << 20)
			want[k] = k * 3
			require.NoError(t, d.Set(k, k*3))
		}
		for k := range want {
			if r.IntN(3) == 0 {
				ok, err := d.Delete(k)
				require.NoError(t, err)
				require.True(t, ok)
				delete(want, k)
			}
		}
		hasExactly(t, want, d)
	}
	hasExactly(t, want, reopenDict(t, d, path))
}

// A key that lay behind a deleted one was not found by Set, which stored it a second time.
func TestDefectSetAfterDeleteDuplicates(t *testing.T) {
	t.Parallel()
	d, path := tempDict[string, int](t)
	want := map[string]int{}
	for i := range 2000 {
		k := fmt.Sprint("key ", i)
		want[k] = i
		require.NoError(t, d.Set(k, i))
	}
	for i := 0; i < 2000; i += 2 {
		_, err := d.Delete(fmt.Sprint("key ", i))
		require.NoError(t, err)
		delete(want, fmt.Sprint("key ", i))
	}
	for i := 1; i < 2000; i += 2 {
		k := fmt.Sprint("key ", i)
		want[k] = -i
		require.NoError(t, d.Set(k, -i))
	}
	hasExactly(t, want, d)
	hasExactly(t, want, reopenDict(t, d, path))
}

// A deleted key came back: it was deleted in one place and lay in another too.
func TestDefectDeletedKeyComesBack(t *testing.T) {
	t.Parallel()
	d, path := tempDict[uint32, string](t)
	for round := range 20 {
		for k := range uint32(500) {
			require.NoError(t, d.Set(k, strings.Repeat("v", round)))
		}
		for k := range uint32(500) {
			ok, err := d.Delete(k)
			require.NoError(t, err)
			require.True(t, ok)
			ok, err = d.Contains(k)
			require.NoError(t, err)
			require.False(t, ok, "key %d after its Delete", k)
		}
		hasExactly(t, map[uint32]string{}, d)
	}
	hasExactly(t, map[uint32]string{}, reopenDict(t, d, path))
}

// Len was wrong after deletions.
func TestDefectLenAfterDelete(t *testing.T) {
	t.Parallel()
	d, path := tempDict[int, int](t)
	for i := range 1000 {
		require.NoError(t, d.Set(i, i))
	}
	for i := range 400 {
		_, err := d.Delete(i)
		require.NoError(t, err)
		require.Equal(t, 999-i, d.Len())
	}
	d = reopenDict(t, d, path)
	assert.Equal(t, 600, d.Len())
}

// Len went down when an absent key was deleted.
func TestDefectLenAfterDeleteOfAbsentKey(t *testing.T) {
	t.Parallel()
	d, path := tempDict[int, int](t)
	require.NoError(t, d.Set(1, 1))
	for range 3 {
		ok, err := d.Delete(2)
		require.NoError(t, err)
		assert.False(t, ok)
	}
	assert.Equal(t, 1, d.Len())
	d = reopenDict(t, d, path)
	assert.Equal(t, 1, d.Len())
}

// Len went up when a present key was set.
func TestDefectLenAfterOverwrite(t *testing.T) {
	t.Parallel()
	d, path := tempDict[string, string](t)
	for range 3 {
		require.NoError(t, d.Set("k", "v"))
		_, _, err := d.Swap("k", "w")
		require.NoError(t, err)
	}
	assert.Equal(t, 1, d.Len())
	d = reopenDict(t, d, path)
	assert.Equal(t, 1, d.Len())
}

// childStrings adds "key <n>" to a dict of strings for n below args[1], after it has looked for those that are there.
func childStrings(args []string) {
	d, err := OpenDict[string, string](args[0], nil)
	must(err)
	n, err := strconv.Atoi(args[1])
	must(err)
	for i := range d.Len() {
		v, ok, err := d.Get(fmt.Sprint("key ", i))
		must(err)
		if !ok || v != fmt.Sprint("value ", i) {
			must(fmt.Errorf("key %d is lost or wrong: %q", i, v))
		}
	}
	for i := range n {
		must(d.Set(fmt.Sprint("key ", i), fmt.Sprint("value ", i)))
	}
	must(d.Close())
}

// String keys were lost after a restart, because their hash was of the process.
func TestDefectStringKeysLostAfterRestart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "strings.emd")
	for _, n := range []int{100, 1000, 3000} {
		c := child(t, "strings", path, strconv.Itoa(n))
		_, err := c.rest()
		require.NoError(t, err, "%s", c.errs)
	}
	d, err := OpenDict[string, string](path, nil)
	require.NoError(t, err)
	assert.Equal(t, 3000, d.Len(), "a key that is not found is added again")
	for i := range 3000 {
		v, ok, err := d.Get(fmt.Sprint("key ", i))
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, fmt.Sprint("value ", i), v)
	}
	require.NoError(t, d.Close())
}

// The old value was freed before the new one was encoded: after a failed encode it was gone.
func TestDefectFailedEncodeLosesOldValue(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	d, err := Dict(s.a, "moody", &DictOptions[int, moody]{ValueCodec: moodyCodec{}})
	require.NoError(t, err)
	l, err := List(s.a, "moody list", &ListOptions[moody]{Codec: moodyCodec{}})
	require.NoError(t, err)
	require.NoError(t, d.Set(1, "good"))
	require.NoError(t, l.Append("good", "better"))
	bad := moody("bad" + strings.Repeat("!", 3000))
	isError(t, d.Set(1, bad), s.path, errMoody)
	_, _, err = d.Swap(1, bad)
	isError(t, err, s.path, errMoody)
	_, _, err = d.Compute(1, func(moody, bool) (moody, Op) { return bad, OpStore })
	isError(t, err, s.path, errMoody)
	isError(t, l.Set(0, bad), s.path, errMoody)
	isError(t, l.Fill(0, 2, bad), s.path, errMoody)
	isError(t, l.Insert(1, bad), s.path, errMoody)
	v, ok, err := d.Get(1)
	require.NoError(t, err)
	assert.True(t, ok)
	assert.EqualValues(t, "good", v)
	assert.Equal(t, []moody{"good", "better"}, slices.Collect(l.Values()))
	require.NoError(t, s.a.verify())
	s.intact(t)
}

// After a failed encode the entry pointed to freed space, which the next value got: two entries shared it.
func TestDefectFailedEncodeAliasesAnotherEntry(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	d, err := Dict(s.a, "moody", &DictOptions[int, moody]{ValueCodec: moodyCodec{}})
	require.NoError(t, err)
	want := map[int]moody{}
	for i := range 400 {
		want[i] = moody(strings.Repeat(strconv.Itoa(i), 1+i%300))
		require.NoError(t, d.Set(i, want[i]))
		isError(t, d.Set(i/2, moody("bad"+strings.Repeat("!", i*3))), s.path, errMoody)
	}
	hasExactly(t, want, d)
	require.NoError(t, s.a.verify())
	s.intact(t)
}

// A key whose encoding fails left a slot behind.
func TestDefectFailedKeyEncode(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	d, err := Dict(s.a, "moody", &DictOptions[moody, int]{KeyCodec: moodyCodec{}})
	require.NoError(t, err)
	require.NoError(t, d.Set("good", 1))
	isError(t, d.Set("bad", 2), s.path, errMoody)
	_, _, err = d.Get("bad")
	isError(t, err, s.path, errMoody)
	_, err = d.Delete("bad")
	isError(t, err, s.path, errMoody)
	hasExactly(t, map[moody]int{"good": 1}, d)
	s.intact(t)
}

// Values came back padded to the size of their space.
func TestDefectValuesComeBackPadded(t *testing.T) {
	t.Parallel()
	d, path := tempDict[int, string](t)
	b, bPath := tempDict[string, []byte](t)
	l, lPath := tempList[[]byte](t)
	wantD, wantB, wantL := map[int]string{}, map[string][]byte{}, [][]byte{}
	for n := range 1200 {
		v := []byte(strings.Repeat("\x00", n))
		if n%3 == 1 {
			v = bytes.Repeat([]byte{' '}, n)
		}
		wantD[n], wantB[string(v)+"k"] = string(v), v
		wantL = append(wantL, v)
		require.NoError(t, cmpOr(d.Set(n, string(v)), b.Set(string(v)+"k", v), l.Append(v)))
	}
	wantB["nil"] = nil
	require.NoError(t, cmpOr(b.Set("nil", nil), l.Append(nil)))
	wantL = append(wantL, nil)
	for range 2 {
		hasExactly(t, wantD, d)
		hasExactly(t, wantB, b)
		require.Equal(t, wantL, slices.Collect(l.Values()))
		d, b, l = reopenDict(t, d, path), reopenDict(t, b, bPath), reopenList(t, l, lPath)
	}
	require.NoError(t, errors.Join(d.Close(), b.Close(), l.Close()))
}

// A value that became shorter kept the end of the longer one.
func TestDefectShorterValueKeepsOldEnd(t *testing.T) {
	t.Parallel()
	d, _ := tempDict[int, string](t)
	l, _ := tempList[string](t)
	require.NoError(t, l.Append(""))
	for n := 5000; n >= 0; n -= 7 {
		v := strings.Repeat("x", n)
		require.NoError(t, cmpOr(d.Set(1, v), l.Set(0, v)))
		got, _, err := d.Get(1)
		require.NoError(t, err)
		require.Equal(t, len(v), len(got))
		got, err = l.Get(0)
		require.NoError(t, err)
		require.Equal(t, len(v), len(got))
	}
}

// fileSize returns the size of a file after its arena was closed.
func fileSize(t testing.TB, path string) int64 {
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Size()
}

// The list of holes was not in the file: space freed before a close was lost.
func TestDefectHolesLostAtClose(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T, path string) (fill, empty func(), close func()){
		"records": func(t *testing.T, path string) (fill, empty func(), close func()) {
			d, err := OpenDict[int, string](path, nil)
			require.NoError(t, err)
			return func() {
					for i := range 2000 {
						require.NoError(t, d.Set(i, strings.Repeat("v", 600+i%700)))
					}
				}, func() {
					for i := range 2000 {
						_, err := d.Delete(i)
						require.NoError(t, err)
					}
				}, func() { require.NoError(t, d.Close()) }
		},
		"extents": func(t *testing.T, path string) (fill, empty func(), close func()) {
			l, err := OpenList[uint64](path, nil)
			require.NoError(t, err)
			return func() { require.NoError(t, l.AppendSeq(count(300_000))) },
				func() { require.NoError(t, l.Delete(0, l.Len())) },
				func() { require.NoError(t, l.Close()) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(tempDir(t), "holes.emd")
			fill, _, shut := open(t, path)
			fill()
			shut()
			full := fileSize(t, path)
			for range 5 {
				_, empty, shut := open(t, path)
				empty()
				shut()
				fill, _, shut := open(t, path)
				fill()
				shut()
				require.LessOrEqual(t, fileSize(t, path), full+full/8, "space freed before a close is used again")
			}
		})
	}
}

// count yields the numbers below n.
func count(n uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for i := range n {
			if !yield(i) {
				return
			}
		}
	}
}

// Holes were never merged: after many small values there was no room for large ones.
func TestDefectHolesNeverMerged(t *testing.T) {
	t.Parallel()
	d, path := tempDict[int, string](t)
	for i := range 20_000 {
		require.NoError(t, d.Set(i, strings.Repeat("s", 100)))
	}
	require.NoError(t, d.Sync())
	d = reopenDict(t, d, path)
	size := fileSize(t, path)
	_, err := d.DeleteFunc(func(int, string) bool { return true })
	require.NoError(t, err)
	require.NoError(t, d.Sync())
	for i := range 10 { // as many bytes as before, in large pieces
		require.NoError(t, d.Set(i, strings.Repeat("L", 180_000)))
	}
	require.NoError(t, d.Close())
	assert.LessOrEqual(t, fileSize(t, path), size*5/4)
}

// Lengths and offsets in the file were believed. Whatever bytes a file has, no call may panic, allocate without measure, or run for ever.
func TestDefectLengthsFromFileUnchecked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "spoiled.emd")
	a, err := Open(path, &Options{HashSeed: 5})
	require.NoError(t, err)
	open := func(a *Arena) (d *EMDict[string, string], n *EMDict[uint64, uint64], l *EMList[uint64], s *EMList[string], err error) {
		var errs [4]error
		d, errs[0] = Dict[string, string](a, "d", nil)
		n, errs[1] = Dict[uint64, uint64](a, "n", nil)
		l, errs[2] = List[uint64](a, "l", nil)
		s, errs[3] = List[string](a, "s", nil)
		return d, n, l, s, cmpOr(errs[:]...)
	}
	d, n, l, s, err := open(a)
	require.NoError(t, err)
	for i := range 600 {
		require.NoError(t, cmpOr(d.Set(fmt.Sprint(i), strings.Repeat("v", i*i%1500)), n.Set(uint64(i), uint64(i)), l.Append(uint64(i)), s.Append(strings.Repeat("s", i%900))))
	}
	require.NoError(t, a.SetMeta("k", []byte("v")))
	require.NoError(t, a.Close())
	good, err := os.ReadFile(path)
	require.NoError(t, err)

	r := rand.New(rand.NewPCG(9, 9))
	spoil := func(b []byte) {
		at := r.IntN(len(b) - 16)
		if r.IntN(2) == 0 { // where headers of pages are
			at = at&^(pageSize-1) + r.IntN(96)
		}
		switch r.IntN(5) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1: // a length or offset turned huge
			copy(b[at&^7:], "\xff\xff\xff\xff\xff\xff\xff\x7f"[:4+r.IntN(5)])
		case 2:
			copy(b[at&^3:], []byte{byte(r.Uint32()), byte(r.Uint32()), 0, 0})
		case 3: // a page where another should be
			from, to := r.IntN(len(b)/pageSize)*pageSize, r.IntN(len(b)/pageSize)*pageSize
			copy(b[to:to+pageSize], b[from:from+pageSize])
		case 4:
			clear(b[at&^63:][:64])
		}
	}
	// use calls everything; errors are welcome.
	use := func(a *Arena) {
		d, n, l, s, err := open(a)
		if err != nil {
			return
		}
		for range a.Containers() {
		}
		a.Meta("k")
		for i := range 600 {
			d.Get(fmt.Sprint(i))
			n.Get(uint64(i))
			if i < l.Len() {
				l.Get(i)
			}
			if i < s.Len() {
				s.Get(i)
			}
		}
		for range d.All() {
		}
		for range n.All() {
		}
		for range limit(l.All(), 1<<20) {
		}
		for range limit(s.Backward(), 1<<20) {
		}
		if !a.opts.ReadOnly {
			for i := range 100 {
				d.Set(fmt.Sprint(i), "new")
				d.Delete(fmt.Sprint(i + 100))
				n.Set(uint64(i+5000), 1)
				n.Delete(uint64(i))
				s.Append("new")
				l.Append(1)
			}
			s.Clear()
			d.Clear()
			a.Rollback()
			a.Drop("d")
			a.Drop("n")
			a.Drop("l")
			a.SetMeta("k", bytes.Repeat([]byte("x"), 5000))
			a.Sync()
		}
	}
	rounds := pick(0, 400, 60)
	refused := 0
	for round := range rounds {
		b := bytes.Clone(good)
		for range 1 + r.IntN(3) {
			spoil(b)
		}
		require.NoError(t, os.WriteFile(path, b, 0o600))
		done := make(chan string, 1)
		go func() {
			done <- panicOf(func() {
				a, err := Open(path, &Options{NoSync: true, ReadOnly: round%2 == 0})
				if err != nil {
					refused++
					return
				}
				defer a.Close()
				use(a)
			})
		}()
		select {
		case p := <-done:
			if p != "" {
				os.WriteFile(filepath.Join(os.TempDir(), "emd-spoiled.emd"), b, 0o600)
			}
			require.Empty(t, p, "round %d panics; the file is kept as emd-spoiled.emd in the temporary folder", round)
		case <-time.After(60 * time.Second):
			buf := make([]byte, 1<<20)
			require.Fail(t, "hangs", "round %d: %s", round, buf[:runtime.Stack(buf, true)])
		}
	}
	t.Logf("%d of %d spoiled files were refused at open", refused, rounds)
}

// limit ends a sequence after n elements.
func limit[K, V any](seq iter.Seq2[K, V], n int) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k, v := range seq {
			if n--; n < 0 || !yield(k, v) {
				return
			}
		}
	}
}

// The file grew sparse, and a full disk was a SIGBUS at some later store. Now it is an error of the call that needs the space.
func TestDefectFullDiskIsSIGBUS(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if dir := smallDisk(t, kind); dir != "" {
				growIntoFullDisk(t, filepath.Join(dir, "grow.emd"))
			}
		})
	}
}

func growIntoFullDisk(t *testing.T, path string) {
	l, err := OpenList[uint64](path, &Options{DirtyLimit: 1 << 20})
	require.NoError(t, err)
	require.NoError(t, l.Append(1))
	require.NoError(t, l.Sync())
	err = l.AppendSeq(count(1 << 24)) // 128 MiB into 64
	if err == nil {
		err = l.Sync()
	}
	isError(t, err, path, ErrFull, fullErrors[0])
	for i, v := range l.All() { // what was appended can be read
		if i > 0 && uint64(i-1) != v {
			require.EqualValues(t, i-1, v)
		}
	}
	require.NoError(t, l.Arena().Rollback())
	require.NoError(t, l.Close())
	l, err = OpenList[uint64](path, nil)
	require.NoError(t, err)
	v, err := l.Get(0)
	require.NoError(t, err)
	assert.EqualValues(t, 1, v)
	require.NoError(t, l.Close())
}

// A rewrite renamed two files, and between the two there was no index. Here every state on disk after every single write opens and
// holds a whole commit, while buckets split, directories double and the log starts over.
func TestDefectWindowWithoutIndex(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "grow.emd")
	spy := newSpyFS()
	in := internalOptions{fs: spy, logLimit: 64 << 10}
	a, err := openWith(path, nil, in)
	require.NoError(t, err)
	d, err := Dict[uint64, uint64](a, "dict", nil)
	require.NoError(t, err)
	require.NoError(t, a.Sync())
	committed, pending, looks := 0, 0, 0
	spy.after = func(op, _ string) {
		if looks++; looks%9 != 0 && !strings.HasPrefix(op, "truncate") && !strings.HasPrefix(op, "remove") {
			return
		}
		image := crashImage(t, path)
		defer removeImage(image)
		c, err := Open(image, &Options{ReadOnly: looks%2 == 0, NoSync: true})
		if !assert.NoError(t, err, "after %s", op) {
			return
		}
		defer c.Close()
		d, err := Dict(c, "dict", &DictOptions[uint64, uint64]{MustExist: true})
		if !assert.NoError(t, err, "after %s", op) {
			return
		}
		assert.True(t, d.Len() == committed || d.Len() == pending, "after %s: %d entries, not %d or %d", op, d.Len(), committed, pending)
		n := 0
		for k, v := range d.All() {
			if k+1 != v {
				assert.Equal(t, k+1, v)
			}
			n++
		}
		assert.Equal(t, d.Len(), n, "after %s", op)
	}
	for pending < pick(0, 10_000, 4000) && !t.Failed() {
		for range 700 {
			require.NoError(t, d.Set(uint64(pending), uint64(pending)+1))
			pending++
		}
		require.NoError(t, a.Sync())
		committed = pending
	}
	require.NoError(t, a.Close())
	spy.after = nil
	assert.Greater(t, looks, 100)
}

// One container was three files. Now any number of containers are one file, with a log beside it only while it is open.
func TestDefectThreeFiles(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	dir, name := filepath.Dir(s.path), filepath.Base(s.path)
	assert.Equal(t, []string{name, name + "-log"}, dirNames(t, dir))
	require.NoError(t, s.a.Close())
	assert.Equal(t, []string{name}, dirNames(t, dir))
	moved := filepath.Join(tempDir(t), "moved.emd")
	require.NoError(t, os.Rename(s.path, moved))
	sampleIntact(t, moved)
}

// The files had no common version: one of them from another day was taken for its own.
func TestDefectNoCommonVersion(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "versions.emd")
	a, err := openWith(path, &Options{NoSync: true}, internalOptions{logLimit: 64 << 10})
	require.NoError(t, err)
	l, err := List[uint64](a, "list", nil)
	require.NoError(t, err)
	d, err := Dict[string, uint64](a, "dict", nil)
	require.NoError(t, err)
	var images []string
	n := 0
	for range 12 {
		for range 20 {
			require.NoError(t, l.Append(uint64(n)))
			require.NoError(t, d.Set(strings.Repeat("x", n%300)+strconv.Itoa(n), uint64(n)))
			n++
			require.NoError(t, a.Sync())
		}
		images = append(images, crashImage(t, path))
	}
	require.NoError(t, a.Close())
	refused := 0
	for i, main := range images {
		for j, log := range images {
			mixed := filepath.Join(tempDir(t), "mixed.emd")
			copyFile(t, main, mixed)
			copyFile(t, log+"-log", mixed+"-log")
			a, err := Open(mixed, &Options{NoSync: true})
			if err != nil {
				require.NotEqual(t, i, j)
				isError(t, err, mixed, ErrCorrupt)
				refused++
				continue
			}
			// A log and a file of one generation may still make a whole commit; a mixture never.
			got := readCommits(t, a)
			require.Zero(t, got%1)
			require.LessOrEqual(t, got, n)
			if i == j {
				require.Equal(t, (i+1)*20, got)
			}
			require.NoError(t, a.Close())
		}
	}
	assert.NotZero(t, refused)
}

// A dict was opened as a list.
func TestDefectDictOpenedAsList(t *testing.T) {
	t.Parallel()
	d, path := tempDict[uint64, uint64](t)
	require.NoError(t, d.Set(1, 2))
	require.NoError(t, d.Close())
	_, err := OpenList[uint64](path, nil)
	isError(t, err, path, ErrTypeMismatch)
}

// A list was opened as a dict.
func TestDefectListOpenedAsDict(t *testing.T) {
	t.Parallel()
	l, path := tempList[uint64](t)
	require.NoError(t, l.Append(1))
	require.NoError(t, l.Close())
	_, err := OpenDict[uint64, uint64](path, nil)
	isError(t, err, path, ErrTypeMismatch)
}

// A list was opened with elements of another type.
func TestDefectOtherElementType(t *testing.T) {
	t.Parallel()
	l, path := tempList[uint32](t)
	require.NoError(t, l.Append(1))
	require.NoError(t, l.Close())
	_, err := OpenList[float32](path, nil)
	isError(t, err, path, ErrTypeMismatch)
}

// A second opener of the same process wrote over the first one's changes.
func TestDefectNoLockInOneProcess(t *testing.T) {
	t.Parallel()
	l, path := tempList[uint64](t)
	require.NoError(t, l.Append(1))
	_, err := OpenList[uint64](path, nil)
	isError(t, err, path, ErrLocked)
	require.NoError(t, l.Append(2))
	require.NoError(t, l.Close())
	l, err = OpenList[uint64](path, nil)
	require.NoError(t, err)
	assert.Equal(t, []uint64{1, 2}, slices.Collect(l.Values()))
	require.NoError(t, l.Close())
}

// A second process wrote over the first one's changes.
func TestDefectNoLockBetweenProcesses(t *testing.T) {
	t.Parallel()
	path := closedSample(t)
	c := child(t, "open", path, "rw")
	require.Equal(t, "open", c.line())
	_, err := Open(path, nil)
	isError(t, err, path, ErrLocked)
	c.kill()
	sampleIntact(t, path)
}

// A lock outlived the process that held it, when it was a file.
func TestDefectLockOutlivesItsHolder(t *testing.T) {
	t.Parallel()
	path := closedSample(t)
	for range 3 {
		c := child(t, "open", path, "rw")
		require.Equal(t, "open", c.line())
		c.kill()
		a, err := Open(path, nil)
		require.NoError(t, err)
		require.NoError(t, a.Close())
	}
	assert.Equal(t, []string{filepath.Base(path)}, dirNames(t, filepath.Dir(path)))
	sampleIntact(t, path)
}

// The use of a closed container crashed the process, here also while others close it.
func TestDefectUseAfterCloseCrashes(t *testing.T) {
	t.Parallel()
	path := closedSample(t)
	for round := range pick(0, 60, 10) {
		s := openSample(t, path, &Options{ReadOnly: round%2 == 0, NoSync: true}, internalOptions{})
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := w; ; i++ {
					v, ok, err := s.names.Get(sampleName(i % sampleLen))
					if errors.Is(err, ErrClosed) {
						return
					}
					if !assert.NoError(t, err) || !assert.True(t, ok) || !assert.EqualValues(t, i%sampleLen, v) {
						return
					}
					x, err := s.numbers.Get(i % sampleLen)
					if errors.Is(err, ErrClosed) {
						return
					}
					if !assert.NoError(t, err) || !assert.EqualValues(t, i%sampleLen*7, x) {
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		require.NoError(t, s.a.Close())
		wg.Wait()
	}
	sampleIntact(t, path)
}

// Loops over a container that is closed meanwhile, also from their own body, end.
func TestDefectCloseDuringIterationCrashes(t *testing.T) {
	t.Parallel()
	path := closedSample(t)
	s := openSample(t, path, nil, internalOptions{})
	n := 0
	for i := range s.numbers.All() {
		if n++; i == 10 {
			require.NoError(t, s.a.Close())
		}
	}
	assert.Less(t, n, sampleLen)
	s = openSample(t, path, nil, internalOptions{})
	n = 0
	for range s.names.All() {
		if n++; n == 10 {
			require.NoError(t, s.a.Close())
		}
	}
	assert.Less(t, n, sampleLen)
	sampleIntact(t, path)
}

// A second Close released what was no longer its own.
func TestDefectClosedTwice(t *testing.T) {
	t.Parallel()
	l, path := tempList[int](t)
	require.NoError(t, l.Close())
	other, err := OpenList[int](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.NoError(t, l.Arena().Close())
	require.NoError(t, other.Append(1))
	_, err = OpenList[int](path, nil)
	isError(t, err, path, ErrLocked)
	require.NoError(t, other.Close())
}

// Iterators that were left early kept locks, goroutines and memory.
func TestDefectIteratorsLeak(t *testing.T) {
	s := newSample(t, nil, internalOptions{})
	goroutines := runtime.NumGoroutine()
	leave := func() {
		for range s.numbers.All() {
			break
		}
		for range s.numbers.Backward() {
			break
		}
		for range s.names.All() {
			break
		}
		for range s.names.Keys() {
			break
		}
		panicOf(func() {
			for range s.names.Values() {
				panic("left by a panic")
			}
		})
		next, stop := iter.Pull2(s.names.All())
		next()
		stop()
	}
	leave()
	before := heapInUse()
	for range 2000 {
		leave()
	}
	after := heapInUse()
	assert.Less(t, after, before+1<<20, "memory that abandoned loops keep")
	assert.LessOrEqual(t, runtime.NumGoroutine(), goroutines+2)
	next, _ := iter.Pull2(s.names.All()) // never stopped
	next()
	done := make(chan error)
	go func() {
		done <- cmpOr(s.names.Set("new", 1), s.numbers.Append(1), s.a.Sync(), s.a.Rollback())
		_, err := s.names.Delete("new")
		_, _, err2 := s.numbers.Pop()
		done <- cmpOr(err, err2, s.a.Close())
	}()
	for range 2 {
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			t.Fatal("an abandoned iterator holds a lock")
		}
	}
	sampleIntact(t, s.path)
}

// heapInUse returns the bytes of the Go heap that are reachable.
func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What others met.

// Writing from the body of a loop deadlocked, or moved the file under the loop (bolt#378, bbolt#854).
func TestOthersGrowWhileReading(t *testing.T) {
	t.Parallel()
	in := internalOptions{chunkSize: 256 << 10, dirtyLimit: 1 << 20, logLimit: 256 << 10}
	s := newSample(t, &Options{NoSync: true}, in)
	big, err := List[uint64](s.a, "big", nil)
	require.NoError(t, err)
	n := 0
	for i, v := range s.numbers.All() {
		require.EqualValues(t, i*7, v)
		require.NoError(t, big.Append(slices.Repeat([]uint64{v}, 200)...)) // many chunks, commits and checkpoints
		if i%500 == 0 {
			require.NoError(t, s.a.Sync())
		}
		n++
	}
	assert.Equal(t, sampleLen, n)
	for k, v := range s.names.All() {
		require.Equal(t, sampleName(int(v)), k)
		require.NoError(t, big.Append(v))
	}
	assert.Equal(t, sampleLen*201, big.Len())
	s.check(t)
	s.intact(t)
}

// A failed fsync was ignored, or tried again although the data was gone (redis#8111, buntdb#122).
func TestOthersFailedFsyncIgnored(t *testing.T) {
	t.Parallel()
	errDisk := errors.New("the disk is gone")
	for nth := 1; nth <= 4; nth++ {
		t.Run(fmt.Sprintf("fsync=%d", nth), func(t *testing.T) {
			path := filepath.Join(tempDir(t), "fsync.emd")
			spy := newSpyFS()
			a, err := openWith(path, nil, internalOptions{fs: spy, logLimit: 64 << 10})
			require.NoError(t, err)
			s := &sample{path: path, a: a}
			s.numbers, err = List[uint64](a, "numbers", nil)
			require.NoError(t, err)
			s.names, err = Dict[string, uint64](a, "names", nil)
			require.NoError(t, err)
			fillSample(t, s)
			syncs := 0
			spy.before = func(op, _ string) error {
				if op == "sync" {
					if syncs++; syncs == nth {
						return errDisk
					}
				}
				return nil
			}
			acked := s.names.Len()
			for err == nil {
				if err = s.names.Set(fmt.Sprint("more ", s.names.Len()), 1); err == nil {
					if err = a.Sync(); err == nil {
						acked = s.names.Len()
					}
				}
			}
			spy.before = nil
			isError(t, err, path, errDisk)
			assert.ErrorIs(t, a.Err(), errDisk)
			for name, call := range mutators(s) {
				assert.ErrorIs(t, call(), errDisk, "%s after a failed fsync", name)
			}
			assert.ErrorIs(t, a.Sync(), errDisk, "no second try")
			assert.ErrorIs(t, a.Update(func() error { return nil }), errDisk)
			v, ok, err := s.names.Get(sampleName(5))
			require.NoError(t, err, "reads go on")
			assert.True(t, ok)
			assert.EqualValues(t, 5, v)
			assert.Error(t, a.Close())
			s = openSample(t, path, nil, internalOptions{})
			n := s.names.Len()
			assert.True(t, n == acked || n == acked+1, "%d entries; %d were acknowledged", n, acked)
			_, err = s.names.DeleteFunc(func(k string, _ uint64) bool { return strings.HasPrefix(k, "more") })
			require.NoError(t, err)
			s.check(t)
			s.intact(t)
		})
	}
}

// The folder was not synced, and after a power cut the file had no name (etcd#6368, leveldb#196).
func TestOthersFolderNotSynced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "named.emd")
	spy := newSpyFS()
	var ops []string
	spy.after = func(op, p string) { ops = append(ops, op+" "+strings.TrimPrefix(filepath.Base(p), "named.emd")) }
	s := openSample(t, path, nil, internalOptions{fs: spy})
	fillSample(t, s)
	// The name of the file and that of the log are durable before the first commit returns.
	named := lastIndex(ops, "open -log")
	require.GreaterOrEqual(t, named, 0, "%q", ops)
	linked := lastIndex(ops, "link ")
	require.GreaterOrEqual(t, linked, 0, "%q", ops)
	synced := func(from int) bool {
		return slices.ContainsFunc(ops[from:], func(op string) bool { return strings.HasPrefix(op, "syncdir") })
	}
	assert.True(t, synced(linked), "the folder after the file got its name: %q", ops)
	assert.True(t, synced(named), "the folder after the log was made: %q", ops)
	s.intact(t)
}

func lastIndex(ops []string, prefix string) int {
	for i := len(ops) - 1; i >= 0; i-- {
		if strings.HasPrefix(ops[i], prefix) {
			return i
		}
	}
	return -1
}

// A crash inside recovery lost what the first crash had left (pogreb#63, redb#885).
func TestOthersCrashInsideRecovery(t *testing.T) {
	t.Parallel()
	errCut := errors.New("cut")
	crashed := crashedCommits(t, 60, internalOptions{})
	for cut := 1; ; cut += 1 + cut/10 {
		path := crashImage(t, crashed)
		spy := newSpyFS()
		writes := 0
		spy.before = func(op, _ string) error {
			if op != "open" {
				if writes++; writes >= cut {
					return errCut // this and everything after it
				}
			}
			return nil
		}
		a, err := openWith(path, nil, internalOptions{fs: spy})
		if err == nil {
			spy.before = nil
			require.Equal(t, 60, readCommits(t, a))
			require.NoError(t, a.Close())
			require.Greater(t, cut, 4, "a recovery writes")
			return
		}
		require.ErrorIs(t, err, errCut)
		a, err = Open(path, &Options{ReadOnly: cut%2 == 0})
		require.NoError(t, err, "recovery cut at write %d", cut)
		require.Equal(t, 60, readCommits(t, a), "recovery cut at write %d", cut)
		require.NoError(t, a.Close())
		removeImage(path)
	}
}

// A recovery took days, because it read everything (pogreb#35).
func TestOthersRecoveryReadsEverything(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "big.emd")
	l, err := OpenList[uint64](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.AppendSeq(count(2<<20))) // 16 MiB
	require.NoError(t, l.Close())
	l, err = OpenList[uint64](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.Set(77, 0))
	require.NoError(t, l.Sync())
	image := crashImage(t, path)
	require.NoError(t, l.Close())
	spy := newSpyFS()
	a, err := openWith(image, nil, internalOptions{fs: spy})
	require.NoError(t, err)
	assert.Less(t, spy.readBytes.Load(), int64(1<<20), "bytes that recovery reads")
	l, err = List[uint64](a, "main", nil)
	require.NoError(t, err)
	v, err := l.Get(77)
	require.NoError(t, err)
	assert.Zero(t, v)
	require.NoError(t, a.Close())
}

// Input that was made to collide slowed a persistent table down: the seed was the same everywhere.
func TestOthersHashSeedIsKnown(t *testing.T) {
	t.Parallel()
	orders := map[string]bool{}
	for range 4 {
		d, _ := tempDict[uint64, uint64](t)
		for k := range uint64(300) {
			require.NoError(t, d.Set(k, k))
		}
		orders[fmt.Sprint(slices.Collect(d.Keys()))] = true
	}
	assert.Greater(t, len(orders), 1, "each file has a seed of its own")
	seeded := map[string]bool{}
	for i := range 2 {
		path := filepath.Join(tempDir(t), fmt.Sprint(i))
		d, err := OpenDict[uint64, uint64](path, &Options{HashSeed: 1234})
		require.NoError(t, err)
		for k := range uint64(300) {
			require.NoError(t, d.Set(k, k))
		}
		require.NoError(t, d.Close())
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		seeded[string(b)] = true
	}
	assert.Len(t, seeded, 1, "equal seeds and operations make equal files")
}

// Locks and caches of a network file system do not keep what this package needs (prometheus#13179).
func TestOthersNetworkFileSystem(t *testing.T) {
	t.Parallel()
	path := closedSample(t)
	spy := newSpyFS()
	spy.network = "nfs"
	_, err := openWith(path, nil, internalOptions{fs: spy})
	isError(t, err, path, ErrUnsupported)
	assert.ErrorContains(t, err, "nfs")
	a, err := openWith(path, &Options{NetworkFS: true}, internalOptions{fs: spy})
	require.NoError(t, err)
	require.NoError(t, a.Close())
	sampleIntact(t, path)
}

// childShrunk opens a list, says so, waits until somebody has cut the file, loops over it, and says what it met.
func childShrunk(args []string) {
	l, err := OpenList[uint64](args[0], &Options{ReadOnly: true})
	must(err)
	say("open")
	var line string
	fmt.Scanln(&line)
	n := 0
	for range l.Values() {
		n++
	}
	say("%t %t %v", n < l.Len(), l.Err() != nil && l.Arena().Err() != nil, l.Arena().View(func() error {
		for range l.Values() {
		}
		return nil
	}) != nil)
}

// A file that another process cuts made every loop over it a SIGBUS that ended the process (prometheus#3375, ripgrep#579).
func TestOthersFileTruncatedByAnother(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // a mapped file cannot be cut there
	}
	path := filepath.Join(tempDir(t), "cut.emd")
	l, err := OpenList[uint64](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.AppendSeq(count(1<<20)))
	require.NoError(t, l.Close())
	c := child(t, "shrunk", path)
	require.Equal(t, "open", c.line())
	require.NoError(t, os.Truncate(path, 1<<20))
	c.in.Write([]byte("go\n"))
	said, err := c.rest()
	require.NoError(t, err, "%.2000s", c.errs)
	assert.Equal(t, []string{"true true true"}, said, "the loop ends early, Err tells, View fails")
}

// Floats as keys: the two zeros are one key, all NaNs are one key, in structs and arrays too.
func TestOthersFloatKeys(t *testing.T) {
	t.Parallel()
	d, path := tempDict[float64, int](t)
	nan2 := math.Float64frombits(0x7FF8000000000001)
	zero := 0.0
	require.NoError(t, errors.Join(d.Set(0, 1), d.Set(-zero, 2), d.Set(math.Copysign(0, -1), 3), d.Set(math.NaN(), 4), d.Set(nan2, 5), d.Set(math.Inf(1), 6)))
	for range 2 {
		assert.Equal(t, 3, d.Len())
		for k, want := range map[float64]int{0: 3, math.Inf(1): 6} {
			v, ok, err := d.Get(k)
			require.NoError(t, err)
			assert.True(t, ok)
			assert.Equal(t, want, v)
		}
		v, ok, err := d.Get(math.NaN())
		require.NoError(t, err)
		assert.True(t, ok)
		assert.Equal(t, 5, v)
		for k := range d.Keys() {
			assert.False(t, k == 0 && math.Signbit(k), "-0 is stored as +0")
		}
		d = reopenDict(t, d, path)
	}
	type at struct {
		X, Y float32
		Z    [2]float64
	}
	s, _ := tempDict[at, string](t)
	require.NoError(t, s.Set(at{X: float32(math.NaN()), Z: [2]float64{math.Copysign(0, -1), 1}}, "v"))
	v, ok, err := s.Get(at{X: float32(nan2), Z: [2]float64{0, 1}})
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, "v", v)
	require.NoError(t, d.Close())
}

// A program that is made up of the same few keys over and over did not stay the same size.
func TestOthersSameKeysOverAndOver(t *testing.T) {
	t.Parallel()
	d, path := tempDict[string, []byte](t)
	var size int64
	for round := range 30 {
		for i := range 300 {
			require.NoError(t, d.Set(fmt.Sprint(i%50), make([]byte, 1+(i*37+round*101)%5000)))
		}
		require.NoError(t, d.Sync())
		if round == 5 {
			d = reopenDict(t, d, path)
			size = fileSize(t, path)
		}
	}
	require.NoError(t, d.Close())
	assert.LessOrEqual(t, fileSize(t, path), size*3/2)
	assert.Empty(t, maps.Collect(func(yield func(int, int) bool) {}))
}

// Opening left a half-made file when it failed or was cut short.
func TestOthersHalfMadeFile(t *testing.T) {
	t.Parallel()
	errCut := errors.New("cut")
	for cut := 1; ; cut++ {
		dir := tempDir(t)
		path := filepath.Join(dir, "half.emd")
		spy := newSpyFS()
		writes := 0
		spy.before = func(op, _ string) error {
			if writes++; writes >= cut {
				return errCut
			}
			return nil
		}
		a, err := openWith(path, nil, internalOptions{fs: spy})
		if err == nil {
			spy.before = nil
			require.NoError(t, a.Close())
			require.Greater(t, cut, 3)
			return
		}
		require.ErrorIs(t, err, errCut)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			_, err = Open(path, &Options{MustExist: true})
			require.ErrorIs(t, err, fs.ErrNotExist)
		}
		a, err = Open(path, nil)
		require.NoError(t, err, "creation cut at call %d", cut)
		require.NoError(t, a.Close())
	}
}
