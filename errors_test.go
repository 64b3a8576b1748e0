package emd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Each error of the API is provoked through the API, and then the file is opened again and found intact.

// A sample is a file with a list and a dict of known content.
type sample struct {
	path    string
	a       *Arena
	numbers *EMList[uint64]
	names   *EMDict[string, uint64]
}

const sampleLen = 3000

func sampleName(i int) string { return fmt.Sprintf("name %d", i) }

// newSample makes the file, commits it and leaves it open.
func newSample(t testing.TB, opts *Options, in internalOptions) *sample {
	s := openSample(t, filepath.Join(tempDir(t), "sample.emd"), opts, in)
	fillSample(t, s)
	return s
}

func fillSample(t testing.TB, s *sample) {
	for i := range sampleLen {
		require.NoError(t, s.numbers.Append(uint64(i)*7))
		require.NoError(t, s.names.Set(sampleName(i), uint64(i)))
	}
	require.NoError(t, s.a.SetMeta("version", []byte("1")))
	require.NoError(t, s.a.Sync())
}

func openSample(t testing.TB, path string, opts *Options, in internalOptions) *sample {
	a, err := openWith(path, opts, in)
	require.NoError(t, err)
	s := &sample{path: path, a: a}
	s.numbers, err = List[uint64](a, "numbers", nil)
	require.NoError(t, err)
	s.names, err = Dict[string, uint64](a, "names", nil)
	require.NoError(t, err)
	return s
}

// check says what differs from the content that newSample committed.
func (s *sample) check(t testing.TB) {
	require.NoError(t, s.a.verify())
	require.Equal(t, sampleLen, s.numbers.Len())
	require.Equal(t, sampleLen, s.names.Len())
	for i, v := range s.numbers.All() {
		if v != uint64(i)*7 {
			require.EqualValues(t, i*7, v, "element %d", i)
		}
	}
	seen := 0
	for k, v := range s.names.All() {
		if k != sampleName(int(v)) {
			require.Equal(t, sampleName(int(v)), k)
		}
		seen++
	}
	require.Equal(t, sampleLen, seen)
	v, ok := s.a.Meta("version")
	require.True(t, ok)
	require.Equal(t, "1", string(v))
	require.NoError(t, s.a.Err())
}

// intact closes the sample and finds its content unchanged in the file.
func (s *sample) intact(t testing.TB) {
	require.NoError(t, s.a.Close())
	sampleIntact(t, s.path)
}

func sampleIntact(t testing.TB, path string) {
	s := openSample(t, path, nil, internalOptions{})
	s.check(t)
	require.NoError(t, s.a.Close())
}

// closedSample returns the path of a sample that was closed.
func closedSample(t testing.TB) string {
	s := newSample(t, nil, internalOptions{})
	require.NoError(t, s.a.Close())
	return s.path
}

// isError checks that err is an *Error, names the file, and matches the targets.
func isError(t testing.TB, err error, path string, targets ...error) *Error {
	t.Helper()
	require.Error(t, err)
	for _, target := range targets {
		require.ErrorIs(t, err, target)
	}
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, filepath.Base(path), filepath.Base(e.Path))
	assert.NotEmpty(t, e.Op)
	others := strings.Count(err.Error(), e.Path+"-log") // tells of the log, which is another file
	var p *fs.PathError                                 // names the path again
	if errors.As(err, &p) {
		others++
	}
	assert.LessOrEqual(t, strings.Count(err.Error(), e.Path), 1+others, "the path is given once in %q", err)
	return e
}

// folder returns the files of a folder and their bytes.
func folder(t testing.TB, dir string) map[string]string {
	files := map[string]string{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		if e.Type().IsRegular() {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			files[e.Name()] = string(b)
		}
	}
	return files
}

// sameFolder checks that a folder is as it was, without printing megabytes.
func sameFolder(t testing.TB, before map[string]string, dir string) {
	t.Helper()
	after := folder(t, dir)
	require.Equal(t, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)), "files of the folder")
	for name := range before {
		require.True(t, before[name] == after[name], "%s has changed: %d bytes, now %d", name, len(before[name]), len(after[name]))
	}
}

// panicOf runs fn and returns what it panics with as text; "" when it does not.
func panicOf(fn func()) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprint(p)
		}
	}()
	fn()
	return ""
}

func TestErrTypeMismatch(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	tries := map[string]struct {
		open  func(a *Arena) error
		named []string // both types
	}{
		"list as dict":  {func(a *Arena) error { _, err := Dict[uint64, uint64](a, "numbers", nil); return err }, []string{"list", "dict"}},
		"dict as list":  {func(a *Arena) error { _, err := List[uint64](a, "names", nil); return err }, []string{"list", "dict"}},
		"other element": {func(a *Arena) error { _, err := List[int64](a, "numbers", nil); return err }, []string{"uint64", "int64"}},
		"other key":     {func(a *Arena) error { _, err := Dict[uint32, uint64](a, "names", nil); return err }, []string{"string", "uint32"}},
		"other value":   {func(a *Arena) error { _, err := Dict[string, float32](a, "names", nil); return err }, []string{"uint64", "float32"}},
		"same size":     {func(a *Arena) error { _, err := List[[8]byte](a, "numbers", nil); return err }, []string{"uint64"}},
		"with a codec": {func(a *Arena) error {
			_, err := Dict(a, "names", &DictOptions[string, moody]{ValueCodec: moodyCodec{}})
			return err
		}, []string{"uint64", "moody"}},
		"a list that must exist": {func(a *Arena) error { _, err := List(a, "names", &ListOptions[uint64]{MustExist: true}); return err }, []string{"list", "dict"}},
	}
	try := func(a *Arena) {
		for name, c := range tries {
			t.Run(name, func(t *testing.T) {
				err := c.open(a)
				isError(t, err, s.path, ErrTypeMismatch)
				for _, text := range c.named {
					assert.ErrorContains(t, err, text)
				}
			})
		}
	}
	try(s.a)
	require.NoError(t, s.a.Close())
	again, err := Open(s.path, nil)
	require.NoError(t, err)
	try(again)
	require.NoError(t, again.Close())
	sampleIntact(t, s.path)
	t.Run("OpenList of a dict", func(t *testing.T) {
		path := filepath.Join(tempDir(t), "dict.emd")
		d, err := OpenDict[string, string](path, nil)
		require.NoError(t, err)
		require.NoError(t, d.Set("k", "v"))
		require.NoError(t, d.Close())
		_, err = OpenList[string](path, nil)
		isError(t, err, path, ErrTypeMismatch)
		d, err = OpenDict[string, string](path, nil)
		require.NoError(t, err, "the failed open keeps no lock")
		v, ok, err := d.Get("k")
		require.NoError(t, err)
		assert.Equal(t, "v", v)
		assert.True(t, ok)
		require.NoError(t, d.Close())
	})
}

// childOpen opens args[0], read-only if args[1] is "ro", says how that went, and exits without Close when its input ends.
func childOpen(args []string) {
	a, err := Open(args[0], &Options{ReadOnly: args[1] == "ro", MustExist: true})
	switch {
	case errors.Is(err, ErrLocked):
		say("locked")
		return
	case err != nil:
		say("error %v", err)
		return
	}
	say("open")
	io.Copy(io.Discard, os.Stdin)
	if args[1] == "close" {
		must(a.Close())
	}
}

func TestErrLocked(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	_, err := Open(s.path, nil)
	isError(t, err, s.path, ErrLocked)
	_, err = Open(s.path, &Options{ReadOnly: true})
	isError(t, err, s.path, ErrLocked)
	_, err = OpenList[uint64](s.path, nil)
	isError(t, err, s.path, ErrLocked)
	assert.Equal(t, "locked", child(t, "open", s.path, "rw").line(), "a writer in another process")
	assert.Equal(t, "locked", child(t, "open", s.path, "ro").line(), "a reader in another process")

	start := time.Now()
	_, err = Open(s.path, &Options{LockTimeout: 120 * time.Millisecond})
	isError(t, err, s.path, ErrLocked)
	assert.GreaterOrEqual(t, time.Since(start), 120*time.Millisecond)
	s.check(t)
	s.intact(t)

	t.Run("another process holds it", func(t *testing.T) {
		for _, mode := range []string{"rw", "ro"} {
			c := child(t, "open", s.path, mode)
			require.Equal(t, "open", c.line())
			_, err := Open(s.path, nil)
			isError(t, err, s.path, ErrLocked)
			reader, err := Open(s.path, &Options{ReadOnly: true})
			if mode == "rw" {
				isError(t, err, s.path, ErrLocked)
			} else {
				require.NoError(t, err, "any number of readers")
				require.NoError(t, reader.Close())
			}
			for _, timeout := range []time.Duration{time.Minute, -1} {
				time.AfterFunc(100*time.Millisecond, func() { c.in.Close() })
				start := time.Now()
				a, err := Open(s.path, &Options{LockTimeout: timeout})
				require.NoError(t, err, "waiting for the lock")
				assert.Less(t, time.Since(start), 20*time.Second)
				require.NoError(t, a.Close())
				c.rest()
				c = child(t, "open", s.path, mode)
				require.Equal(t, "open", c.line())
			}
			c.kill()
			sampleIntact(t, s.path) // a dead process holds no lock
		}
	})
}

// mutators are the methods that change something, each as a call that would.
func mutators(s *sample) map[string]func() error {
	l, d := s.numbers, s.names
	return map[string]func() error{
		"SetMeta":         func() error { return s.a.SetMeta("k", []byte("v")) },
		"SetMeta nil":     func() error { return s.a.SetMeta("version", nil) },
		"List.Set":        func() error { return l.Set(1, 2) },
		"List.Append":     func() error { return l.Append(1, 2) },
		"List.AppendSeq":  func() error { return l.AppendSeq(slices.Values([]uint64{1, 2})) },
		"List.Pop":        func() error { _, _, err := l.Pop(); return err },
		"List.Insert":     func() error { return l.Insert(1, 2, 3) },
		"List.Delete":     func() error { return l.Delete(1, 3) },
		"List.Swap":       func() error { return l.Swap(1, 2) },
		"List.Resize":     func() error { return l.Resize(7) },
		"List.Fill":       func() error { return l.Fill(0, 2, 9) },
		"List.Clear":      func() error { return l.Clear() },
		"List.DeleteFunc": func() error { _, err := l.DeleteFunc(func(v uint64) bool { return v == 7 }); return err },
		"Dict.Set":        func() error { return d.Set("new", 2) },
		"Dict.Delete":     func() error { _, err := d.Delete(sampleName(1)); return err },
		"Dict.DeleteFunc": func() error { _, err := d.DeleteFunc(func(string, uint64) bool { return true }); return err },
		"Dict.Clear":      func() error { return d.Clear() },
		"Dict.GetOrSet":   func() error { _, _, err := d.GetOrSet("new", 3); return err },
		"Dict.Swap":       func() error { _, _, err := d.Swap("new", 3); return err },
		"Dict.Compute": func() error {
			_, _, err := d.Compute("new", func(uint64, bool) (uint64, Op) { return 1, OpStore })
			return err
		},
		"Dict.SetAll": func() error { _, err := d.SetAll(maps.All(map[string]uint64{"new": 1})); return err },
		"Dict.Grow":   func() error { return d.Grow(100_000) },
	}
}

func TestErrReadOnly(t *testing.T) {
	t.Parallel()
	path := closedSample(t)
	before := folder(t, filepath.Dir(path))
	s := openSample(t, path, &Options{ReadOnly: true}, internalOptions{})
	for name, call := range mutators(s) {
		t.Run(name, func(t *testing.T) { isError(t, call(), path, ErrReadOnly) })
		t.Run("Update "+name, func(t *testing.T) { isError(t, s.a.Update(call), path, ErrReadOnly) })
	}
	t.Run("Drop", func(t *testing.T) { isError(t, s.a.Drop("numbers"), path, ErrReadOnly) })
	t.Run("new container", func(t *testing.T) {
		_, err := List[string](s.a, "new", nil)
		isError(t, err, path)
		assert.True(t, errors.Is(err, ErrNoContainer) || errors.Is(err, ErrReadOnly), "%v", err)
	})
	s.check(t)
	require.NoError(t, s.a.Close())
	sameFolder(t, before, filepath.Dir(path))
	sampleIntact(t, path)
}

func TestErrClosed(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	a, l, d := s.a, s.numbers, s.names
	all, seq := l.All(), d.All()
	require.NoError(t, a.Close())
	calls := mutators(s)
	maps.Copy(calls, map[string]func() error{
		"Sync":           a.Sync,
		"Rollback":       a.Rollback,
		"Update":         func() error { return a.Update(func() error { t.Error("fn runs"); return nil }) },
		"View":           func() error { return a.View(func() error { return nil }) },
		"Drop":           func() error { return a.Drop("numbers") },
		"List":           func() error { _, err := List[uint64](a, "numbers", nil); return err },
		"List new":       func() error { _, err := List[string](a, "new", nil); return err },
		"Dict":           func() error { _, err := Dict[string, uint64](a, "names", nil); return err },
		"List.Get":       func() error { _, err := l.Get(0); return err },
		"List.Get far":   func() error { _, err := l.Get(1 << 30); return err },
		"List.Get -1":    func() error { _, err := l.Get(-1); return err },
		"List.Set far":   func() error { return l.Set(1<<30, 0) },
		"List.Swap far":  func() error { return l.Swap(-1, 1<<30) },
		"List.Insert -1": func() error { return l.Insert(-1, 5) },
		"List.Delete -1": func() error { return l.Delete(-1, 1<<30) },
		"List.Fill -1":   func() error { return l.Fill(-1, 1<<30, 5) },
		"List.CopyTo":    func() error { _, err := l.CopyTo(make([]uint64, 3), 0); return err },
		"List.GetMany":   func() error { return l.GetMany(make([]uint64, 1), []int{1 << 30}) },
		"List.Sync":      l.Sync,
		"Dict.Get":       func() error { _, _, err := d.Get(sampleName(1)); return err },
		"Dict.Contains":  func() error { _, err := d.Contains(sampleName(1)); return err },
		"Dict.Sync":      d.Sync,
	})
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { isError(t, call(), s.path, ErrClosed, fs.ErrClosed) })
	}
	assert.NoError(t, a.Close(), "closing twice")
	assert.NoError(t, l.Close())
	assert.NoError(t, d.Close())
	assert.Zero(t, l.Len())
	assert.Zero(t, d.Len())
	assert.Zero(t, a.Stats())
	v, ok := a.Meta("version")
	assert.Nil(t, v)
	assert.False(t, ok)
	for info := range a.Containers() {
		t.Errorf("container %v of a closed arena", info)
	}
	for range all {
		t.Error("All of a closed list yields")
	}
	for range seq {
		t.Error("All of a closed dict yields")
	}
	for range l.Values() {
		t.Error("Values of a closed list yields")
	}
	for range l.Backward() {
		t.Error("Backward of a closed list yields")
	}
	for range d.Keys() {
		t.Error("Keys of a closed dict yields")
	}
	for range d.Values() {
		t.Error("Values of a closed dict yields")
	}
	assert.Same(t, a, l.Arena())
	sampleIntact(t, s.path)
}

// TestClose checks what closing a container does: with a file of its own it closes the file, in a shared arena nothing.
func TestClose(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	require.NoError(t, s.numbers.Close())
	require.NoError(t, s.names.Close())
	s.check(t)
	require.NoError(t, s.numbers.Append(1))
	require.NoError(t, s.numbers.Sync(), "Sync of a container commits the file")
	_, _, err := s.numbers.Pop()
	require.NoError(t, err)
	s.intact(t)

	path := filepath.Join(tempDir(t), "list.emd")
	l, err := OpenList[string](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.Append("a"))
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	_, err = l.Get(0)
	isError(t, err, path, ErrClosed)
	a, err := Open(path, nil)
	require.NoError(t, err, "the lock is given back")
	require.NoError(t, a.Close())
}

func TestErrUnsupportedType(t *testing.T) {
	t.Parallel()
	type deep struct {
		A  int
		In [3]struct{ Ch chan int }
	}
	s := newSample(t, nil, internalOptions{})
	a := s.a
	for name, c := range map[string]struct {
		open  func() error
		named string
	}{
		"channel":        {func() error { _, err := List[chan int](a, "x", nil); return err }, "chan int"},
		"function":       {func() error { _, err := List[func()](a, "x", nil); return err }, "func()"},
		"interface":      {func() error { _, err := List[any](a, "x", nil); return err }, "interface"},
		"unsafe pointer": {func() error { _, err := List[unsafe.Pointer](a, "x", nil); return err }, "unsafe.Pointer"},
		"field":          {func() error { _, err := List[deep](a, "x", nil); return err }, "Ch"},
		"value":          {func() error { _, err := Dict[string, deep](a, "x", nil); return err }, "Ch"},
		"pointer key":    {func() error { _, err := Dict[*int, int](a, "x", nil); return err }, "*int"},
		"interface key":  {func() error { _, err := Dict[any, int](a, "x", nil); return err }, "interface"},
		"field of key":   {func() error { _, err := Dict[struct{ P *int }, int](a, "x", nil); return err }, "P"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.open()
			isError(t, err, s.path, ErrUnsupportedType)
			if c.named != "interface" || !strings.Contains(err.Error(), "any") {
				assert.ErrorContains(t, err, c.named)
			}
		})
	}
	names := []string{}
	for info := range a.Containers() {
		names = append(names, info.Name)
	}
	assert.ElementsMatch(t, []string{"numbers", "names"}, names)
	_, err := OpenList[chan int](filepath.Join(filepath.Dir(s.path), "never.emd"), nil)
	require.ErrorIs(t, err, ErrUnsupportedType)
	assert.NoFileExists(t, filepath.Join(filepath.Dir(s.path), "never.emd"))
	s.intact(t)
}

// vast is a value whose encoding has as many bytes as it says.
type vast int64

type vastCodec struct{}

func (vastCodec) Name() string { return "vast" }

func (vastCodec) Append(dst []byte, v vast) ([]byte, error) {
	return append(dst, make([]byte, v)...), nil
}

func (vastCodec) Decode(src []byte) (vast, error) { return vast(len(src)), nil }

func TestErrTooLarge(t *testing.T) {
	s := newSample(t, nil, internalOptions{})
	long := strings.Repeat("k", 64<<10+1)
	for name, call := range map[string]func() error{
		"Set":      func() error { return s.names.Set(long, 1) },
		"GetOrSet": func() error { _, _, err := s.names.GetOrSet(long, 1); return err },
		"Swap":     func() error { _, _, err := s.names.Swap(long, 1); return err },
		"Compute": func() error {
			_, _, err := s.names.Compute(long, func(uint64, bool) (uint64, Op) { return 1, OpStore })
			return err
		},
		"SetAll": func() error { _, err := s.names.SetAll(maps.All(map[string]uint64{long: 1})); return err },
	} {
		t.Run(name, func(t *testing.T) {
			isError(t, call(), s.path, ErrTooLarge)
			isError(t, s.a.Update(call), s.path, ErrTooLarge)
			err := s.a.Update(func() error {
				require.NoError(t, s.numbers.Append(1))
				call() // an error that fn drops
				return nil
			})
			isError(t, err, s.path, ErrTooLarge)
			s.check(t)
		})
	}
	longest := long[:64<<10]
	require.NoError(t, s.names.Set(longest, 5))
	v, ok, err := s.names.Get(longest)
	require.NoError(t, err)
	assert.True(t, ok)
	assert.EqualValues(t, 5, v)
	ok, err = s.names.Delete(longest)
	require.NoError(t, err)
	assert.True(t, ok)
	if strconv.IntSize == 64 {
		isError(t, s.numbers.Resize(1<<(strconv.IntSize-24)+1), s.path, ErrTooLarge)
		s.check(t)
		l, err := List(s.a, "vast", &ListOptions[vast]{Codec: vastCodec{}})
		require.NoError(t, err)
		isError(t, l.Append(1<<30+1), s.path, ErrTooLarge)
		d, err := Dict(s.a, "vast dict", &DictOptions[int, vast]{ValueCodec: vastCodec{}})
		require.NoError(t, err)
		isError(t, d.Set(1, 1<<30+1), s.path, ErrTooLarge)
		k, err := Dict(s.a, "vast keys", &DictOptions[vast, int]{KeyCodec: vastCodec{}})
		require.NoError(t, err)
		isError(t, k.Set(64<<10+1, 1), s.path, ErrTooLarge)
		require.NoError(t, k.Set(64<<10, 1))
		assert.Zero(t, l.Len()+d.Len())
	}
	s.intact(t)
}

// TestIndexPanics checks that a bad index panics with the index and the length, as a slice's does, and harms nothing.
func TestIndexPanics(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	l, n := s.numbers, sampleLen
	length := strconv.Itoa(n)
	for name, c := range map[string]struct {
		call  func()
		named []string
	}{
		"Get":             {func() { l.Get(n) }, []string{length, length}},
		"Get -1":          {func() { l.Get(-1) }, []string{"-1"}},
		"Get far":         {func() { l.Get(n + 12345) }, []string{strconv.Itoa(n + 12345), length}},
		"Set":             {func() { l.Set(n, 1) }, []string{length}},
		"Swap":            {func() { l.Swap(1, n+5) }, []string{strconv.Itoa(n + 5), length}},
		"Swap first":      {func() { l.Swap(n+5, 1) }, []string{strconv.Itoa(n + 5), length}},
		"Insert":          {func() { l.Insert(n+1, 1) }, []string{strconv.Itoa(n + 1), length}},
		"Insert nothing":  {func() { l.Insert(n + 1) }, []string{strconv.Itoa(n + 1), length}},
		"Delete":          {func() { l.Delete(1, n+1) }, []string{strconv.Itoa(n + 1), length}},
		"Delete turned":   {func() { l.Delete(5, 4) }, []string{"5", "4"}},
		"Delete nothing":  {func() { l.Delete(n+1, n+1) }, []string{strconv.Itoa(n + 1), length}},
		"Fill":            {func() { l.Fill(-1, 4, 1) }, []string{"-1"}},
		"Fill far":        {func() { l.Fill(0, n+1, 1) }, []string{strconv.Itoa(n + 1), length}},
		"CopyTo":          {func() { l.CopyTo(make([]uint64, 1), n+1) }, []string{strconv.Itoa(n + 1), length}},
		"GetMany":         {func() { l.GetMany(make([]uint64, 2), []int{0, n}) }, []string{length}},
		"GetMany unequal": {func() { l.GetMany(make([]uint64, 2), []int{0}) }, nil},
		"Range":           {func() { l.Range(0, n+1)(func(int, uint64) bool { return true }) }, []string{strconv.Itoa(n + 1), length}},
		"Range turned":    {func() { l.Range(5, 4)(func(int, uint64) bool { return true }) }, []string{"5", "4"}},
		"Resize":          {func() { l.Resize(-1) }, []string{"-1"}},
		"Grow":            {func() { s.names.Grow(-1) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			text := panicOf(c.call)
			require.NotEmpty(t, text, "no panic")
			for _, part := range c.named {
				assert.Contains(t, text, part)
			}
			assert.NotContains(t, text, "nil pointer")
			// In an Update it goes on, and the Update is undone.
			again := panicOf(func() {
				s.a.Update(func() error { l.Set(0, 99); c.call(); return nil })
			})
			assert.NotEmpty(t, again)
			require.Equal(t, n, l.Len())
			first, err := l.Get(0)
			require.NoError(t, err)
			assert.Zero(t, first)
		})
	}
	k, err := l.CopyTo(make([]uint64, 1), n)
	assert.NoError(t, err, "CopyTo at Len")
	assert.Zero(t, k)
	require.NoError(t, errors.Join(l.Delete(n, n), l.Fill(n, n, 1), l.Insert(n), l.Append(), l.Delete(3, 3), l.AppendSeq(slices.Values([]uint64(nil)))), "no-ops")
	for range l.Range(n, n) {
		t.Error("an empty Range yields")
	}
	s.check(t)
	s.intact(t)
}

func TestMissing(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	path := filepath.Join(dir, "missing.emd")
	for name, opts := range map[string]*Options{"MustExist": {MustExist: true}, "ReadOnly": {ReadOnly: true}} {
		_, err := Open(path, opts)
		isError(t, err, path, fs.ErrNotExist)
		assert.NotErrorIs(t, err, ErrNoContainer, name)
	}
	_, err := Open(filepath.Join(dir, "no", "folder.emd"), nil)
	isError(t, err, "folder.emd", fs.ErrNotExist)
	_, err = Open(dir, nil)
	isError(t, err, dir)
	assert.Empty(t, folder(t, dir), "a failed open leaves nothing")

	s := newSample(t, nil, internalOptions{})
	_, err = List(s.a, "missing", &ListOptions[int]{MustExist: true})
	e := isError(t, err, s.path, ErrNoContainer, fs.ErrNotExist)
	assert.Equal(t, "missing", e.Container)
	_, err = Dict(s.a, "missing", &DictOptions[int, int]{MustExist: true})
	isError(t, err, s.path, ErrNoContainer, fs.ErrNotExist)
	isError(t, s.a.Drop("missing"), s.path, ErrNoContainer)
	_, err = List[int](s.a, "", nil)
	isError(t, err, s.path)
	_, err = Dict[int, int](s.a, "", nil)
	isError(t, err, s.path)
	s.intact(t)
}

// TestNotAFile opens files that are not of this kind: ErrCorrupt, nothing changed, nothing left beside them.
func TestNotAFile(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 100_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	good, err := os.ReadFile(closedSample(t))
	require.NoError(t, err)
	for name, content := range map[string][]byte{
		"empty":          nil,
		"one byte":       {0},
		"text":           []byte("# Notes\n\nNot a data file.\n"),
		"random":         random,
		"zeros":          make([]byte, 64<<10),
		"half a magic":   good[:4],
		"magic alone":    good[:8],
		"without header": append(make([]byte, 3*pageSize), good[3*pageSize:]...),
		"shifted":        append([]byte{0}, good...),
	} {
		for _, readOnly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/readOnly=%t", name, readOnly), func(t *testing.T) {
				dir := tempDir(t)
				path := filepath.Join(dir, "file.emd")
				require.NoError(t, os.WriteFile(path, content, 0o600))
				before := folder(t, dir)
				_, err := Open(path, &Options{ReadOnly: readOnly})
				isError(t, err, path, ErrCorrupt)
				sameFolder(t, before, dir)
			})
		}
	}
}

func TestErrVersion(t *testing.T) {
	t.Parallel()
	path := closedSample(t)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, off := range map[string]int{"version": slotVersionOff, "features": slotNeedsOff} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(good)
			for slot := range slotPages {
				h := b[slot*pageSize:][:slotSize]
				binary.LittleEndian.PutUint32(h[off:], 7)
				binary.LittleEndian.PutUint32(h[slotSumOff:], crc32.Checksum(h[:slotSumOff], crc32.MakeTable(crc32.Castagnoli)))
			}
			require.NoError(t, os.WriteFile(path, b, 0o600))
			_, err = Open(path, nil)
			isError(t, err, path, ErrVersion)
			assert.NotErrorIs(t, err, ErrCorrupt)
			_, err = Open(path, &Options{ReadOnly: true})
			isError(t, err, path, ErrVersion)
			now, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(b, now), "the file is untouched")
		})
	}
	require.NoError(t, os.WriteFile(path, good, 0o600))
	sampleIntact(t, path)
}

// TestTruncated cuts a file at every page and at odd sizes: an error or, where only unused space is gone, all of the content; never a panic.
func TestTruncated(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile(closedSample(t))
	require.NoError(t, err)
	dir := tempDir(t)
	path := filepath.Join(dir, "cut.emd")
	refused := 0
	for at := 0; at < len(good); at += pageSize {
		for _, odd := range []int{0, 1, 511, 512, 513, pageSize - 1} {
			n := min(at+odd, len(good)-1)
			require.NoError(t, os.WriteFile(path, good[:n], 0o600))
			a, err := Open(path, &Options{NoSync: true})
			if err != nil {
				isError(t, err, path, ErrCorrupt)
				info, err := os.Stat(path)
				require.NoError(t, err)
				require.EqualValues(t, n, info.Size(), "the file is untouched")
				refused++
				continue
			}
			require.NoError(t, a.Close())
			sampleIntact(t, path)
		}
	}
	assert.NotZero(t, refused)
	require.NoError(t, os.WriteFile(path, good, 0o600))
	sampleIntact(t, path)
}

// crashedCommits leaves a file as a crash after n commits does, and returns its path. Commit i appends i to a list and sets a dict's key i.
func crashedCommits(t testing.TB, n int, in internalOptions) string {
	path := filepath.Join(tempDir(t), "commits.emd")
	a, err := openWith(path, &Options{NoSync: true}, in)
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	l, err := List[uint64](a, "list", nil)
	require.NoError(t, err)
	d, err := Dict[string, uint64](a, "dict", nil)
	require.NoError(t, err)
	for i := range n {
		require.NoError(t, l.Append(uint64(i)))
		require.NoError(t, d.Set(strings.Repeat("x", i%300)+strconv.Itoa(i), uint64(i)))
		require.NoError(t, a.Sync())
	}
	return crashImage(t, path)
}

// readCommits returns how many commits of crashedCommits the file holds, and that it is whole.
func readCommits(t testing.TB, a *Arena) int {
	require.NoError(t, a.verify())
	l, err := List(a, "list", &ListOptions[uint64]{MustExist: true})
	if errors.Is(err, ErrNoContainer) {
		return 0
	}
	require.NoError(t, err)
	d, err := Dict(a, "dict", &DictOptions[string, uint64]{MustExist: true})
	require.NoError(t, err)
	require.Equal(t, l.Len(), d.Len(), "the two containers are of one commit")
	for i, v := range l.All() {
		require.EqualValues(t, i, v)
		got, _, err := d.Get(strings.Repeat("x", i%300) + strconv.Itoa(i))
		require.NoError(t, err)
		require.EqualValues(t, i, got)
	}
	require.NoError(t, l.Err())
	return l.Len()
}

func TestTruncatedLog(t *testing.T) {
	t.Parallel()
	const commits = 40
	path := crashedCommits(t, commits, internalOptions{})
	log, err := os.ReadFile(path + "-log")
	require.NoError(t, err)
	main, err := os.ReadFile(path)
	require.NoError(t, err)
	found := map[int]bool{}
	for at := 0; at < min(len(log), 1<<20); at += pageSize {
		for _, n := range []int{at, at + 1 + at/pageSize*97%(pageSize-1)} { // odd sizes that differ from page to page
			n = min(n, len(log)-1)
			if at > 100*pageSize && at%(8*pageSize) != 0 {
				continue
			}
			require.NoError(t, os.WriteFile(path, main, 0o600))
			require.NoError(t, os.WriteFile(path+"-log", log[:n], 0o600))
			a, err := Open(path, &Options{NoSync: true, ReadOnly: at%(2*pageSize) == 0})
			if err != nil {
				isError(t, err, path, ErrCorrupt)
				continue
			}
			found[readCommits(t, a)] = true
			require.NoError(t, a.Close())
		}
	}
	require.NoError(t, os.WriteFile(path, main, 0o600))
	require.NoError(t, os.WriteFile(path+"-log", log, 0o600))
	a, err := Open(path, nil)
	require.NoError(t, err)
	assert.Equal(t, commits, readCommits(t, a))
	require.NoError(t, a.Close())
}

func TestWrongLog(t *testing.T) {
	t.Parallel()
	const commits = 30
	path := crashedCommits(t, commits, internalOptions{logLimit: 64 << 10})
	foreign := crashedCommits(t, commits, internalOptions{logLimit: 64 << 10})
	refused := func(t *testing.T, path string) {
		t.Helper()
		before := folder(t, filepath.Dir(path))
		for _, readOnly := range []bool{true, false} {
			_, err := Open(path, &Options{ReadOnly: readOnly})
			isError(t, err, path, ErrCorrupt)
		}
		sameFolder(t, before, filepath.Dir(path))
	}
	whole := func(t *testing.T, path string, commits int) {
		t.Helper()
		a, err := Open(path, nil)
		require.NoError(t, err)
		assert.Equal(t, commits, readCommits(t, a))
		require.NoError(t, a.Close())
	}
	t.Run("missing", func(t *testing.T) {
		path := crashImage(t, path)
		require.NoError(t, os.Rename(path+"-log", path+"-gone"))
		refused(t, path)
		require.NoError(t, os.Rename(path+"-gone", path+"-log"))
		whole(t, path, commits)
	})
	t.Run("empty", func(t *testing.T) {
		path := crashImage(t, path)
		require.NoError(t, os.Truncate(path+"-log", 0))
		refused(t, path)
	})
	t.Run("another file's", func(t *testing.T) {
		path := crashImage(t, path)
		copyFile(t, foreign+"-log", path+"-log")
		refused(t, path)
		copyFile(t, crashImage(t, foreign), path)
		whole(t, path, commits)
	})
	t.Run("another file's beside a closed one", func(t *testing.T) {
		path := closedSample(t)
		copyFile(t, foreign+"-log", path+"-log")
		_, err := Open(path, nil)
		isError(t, err, path, ErrCorrupt)
		require.NoError(t, os.Remove(path+"-log"))
		sampleIntact(t, path)
	})
	t.Run("older than the file", func(t *testing.T) {
		// As after a crash between the last header of Close and the removal of the log.
		path := crashImage(t, path)
		old := filepath.Join(tempDir(t), "old-log")
		copyFile(t, path+"-log", old)
		whole(t, path, commits)
		copyFile(t, old, path+"-log")
		whole(t, path, commits)
		assert.NoFileExists(t, path+"-log")
	})
	t.Run("newer than the file", func(t *testing.T) {
		path := filepath.Join(tempDir(t), "newer.emd")
		a, err := openWith(path, &Options{NoSync: true}, internalOptions{logLimit: 64 << 10})
		require.NoError(t, err)
		l, err := List[uint64](a, "list", nil)
		require.NoError(t, err)
		require.NoError(t, l.Append(1))
		require.NoError(t, a.Sync())
		old := crashImage(t, path)
		for n := a.Stats().Checkpoints + 3; a.Stats().Checkpoints < n; {
			require.NoError(t, l.Append(1))
			require.NoError(t, a.Sync())
		}
		copyFile(t, path+"-log", old+"-log")
		require.NoError(t, a.Close())
		refused(t, old)
	})
}

func TestErrInUpdate(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(a *Arena) error{
		"Sync":     (*Arena).Sync,
		"Rollback": (*Arena).Rollback,
		"Close":    (*Arena).Close,
		"Drop":     func(a *Arena) error { return a.Drop("names") },
		"Update":   func(a *Arena) error { return a.Update(func() error { t.Error("fn runs"); return nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSample(t, nil, internalOptions{})
			for _, dropped := range []bool{false, true} {
				err := s.a.Update(func() error {
					require.NoError(t, s.numbers.Append(1))
					err := call(s.a)
					isError(t, err, s.path, ErrInUpdate)
					require.NoError(t, s.names.Set("later", 1), "the Update goes on")
					if dropped {
						return nil
					}
					return err
				})
				isError(t, err, s.path, ErrInUpdate)
				s.check(t)
			}
			require.NoError(t, s.a.Update(func() error { return s.numbers.Set(0, 0) }), "a later Update works")
			s.intact(t)
		})
	}
	t.Run("containers", func(t *testing.T) {
		s := newSample(t, nil, internalOptions{})
		isError(t, s.a.Update(s.numbers.Sync), s.path, ErrInUpdate)
		isError(t, s.a.Update(s.names.Sync), s.path, ErrInUpdate)
		s.intact(t)
	})
}

// TestUpdate checks what an Update leaves when it ends in each of its ways, in memory and in the file.
func TestUpdate(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	extra, err := List[string](s.a, "extra", nil)
	require.NoError(t, err)
	// lasting is what a crash now would leave of extra.
	lasting := func() []string {
		path := crashImage(t, s.path)
		defer removeImage(path)
		a, err := Open(path, nil)
		require.NoError(t, err)
		defer a.Close()
		l, err := List(a, "extra", &ListOptions[string]{MustExist: true})
		if errors.Is(err, ErrNoContainer) {
			return nil
		}
		require.NoError(t, err)
		return slices.Collect(l.Values())
	}
	require.NoError(t, extra.Append("before"))
	assert.Empty(t, lasting())
	assert.ErrorIs(t, s.a.Update(func() error {
		assert.Equal(t, []string{"before"}, lasting(), "Update commits what is pending first")
		extra.Append("inside")
		v, err := extra.Get(1)
		assert.Equal(t, "inside", v)
		assert.NoError(t, err)
		return errOfFn
	}), errOfFn)
	assert.Equal(t, []string{"before"}, slices.Collect(extra.Values()))
	assert.Equal(t, []string{"before"}, lasting())

	assert.PanicsWithValue(t, "enough", func() {
		s.a.Update(func() error { extra.Append("inside"); panic("enough") })
	})
	assert.Equal(t, []string{"before"}, slices.Collect(extra.Values()))

	done := make(chan struct{})
	go func() { // runtime.Goexit, as t.FailNow calls it, is neither success nor panic
		defer close(done)
		s.a.Update(func() error { extra.Append("inside"); runtime.Goexit(); return nil })
	}()
	<-done
	assert.Equal(t, []string{"before"}, slices.Collect(extra.Values()), "after Goexit")

	require.NoError(t, s.a.Update(func() error { return extra.Append("inside") }))
	assert.Equal(t, []string{"before", "inside"}, lasting(), "a successful Update is a commit")
	s.intact(t)
}

func TestErrUpdateTooLarge(t *testing.T) {
	t.Parallel()
	const n = 1 << 20
	path := filepath.Join(tempDir(t), "large.emd")
	opts := &Options{DirtyLimit: 1 << 20, LogLimit: 1 << 20, NoSync: true}
	a, err := Open(path, opts)
	require.NoError(t, err)
	l, err := List[uint64](a, "list", nil)
	require.NoError(t, err)
	d, err := Dict[uint64, uint64](a, "dict", nil)
	require.NoError(t, err)
	fill := func(yield func(uint64) bool) {
		for i := range uint64(n) {
			if !yield(i) {
				return
			}
		}
	}
	require.NoError(t, a.Update(func() error { return l.AppendSeq(fill) }), "fresh space is spilled and does not count")
	require.NoError(t, d.Grow(n/4))
	for i := range uint64(n / 4) {
		require.NoError(t, d.Set(i, i))
	}
	require.NoError(t, a.Sync())
	intact := func() {
		t.Helper()
		require.NoError(t, a.verify())
		require.Equal(t, n, l.Len())
		require.Equal(t, n/4, d.Len())
		for i, v := range l.All() {
			if uint64(i) != v {
				require.EqualValues(t, i, v)
			}
		}
		for k, v := range d.All() {
			if k != v {
				require.Equal(t, k, v)
			}
		}
	}
	scatter := func() error { // touches each page of 8 MiB
		for i := 0; i < n; i += pageSize / 8 {
			if err := l.Set(i, 1<<60); err != nil {
				return err
			}
		}
		return nil
	}
	scatterDict := func() error {
		for i := range uint64(n / 4) {
			if err := d.Set(i*7919%(n/4), 1<<60); err != nil {
				return err
			}
		}
		return nil
	}
	isError(t, a.Update(scatter), path, ErrUpdateTooLarge)
	require.NoError(t, a.Update(func() error { return l.Set(0, 0) }), "a small Update after one that was too large")
	intact()
	isError(t, a.Update(scatterDict), path, ErrUpdateTooLarge)
	intact()
	isError(t, a.Update(func() error { scatter(); return nil }), path, ErrUpdateTooLarge)
	intact()
	assert.LessOrEqual(t, a.Stats().Private, int64(2<<20), "private memory stays near the limit")
	own := a.Stats().OwnCommits
	require.NoError(t, scatter(), "outside Update the library commits by itself")
	assert.Greater(t, a.Stats().OwnCommits, own)
	for i := 0; i < n; i += pageSize / 8 {
		require.NoError(t, l.Set(i, uint64(i)))
	}
	require.NoError(t, a.Close())

	t.Run("NoAutoCommit", func(t *testing.T) {
		opts.NoAutoCommit = true
		a, err = Open(path, opts)
		require.NoError(t, err)
		l, err = List[uint64](a, "list", nil)
		require.NoError(t, err)
		d, err = Dict[uint64, uint64](a, "dict", nil)
		require.NoError(t, err)
		set := 0
		for i := 0; i < n; i += pageSize / 8 {
			if err = l.Set(i, 1<<60); err != nil {
				break
			}
			set = i
		}
		isError(t, err, path, ErrUpdateTooLarge)
		assert.Zero(t, a.Stats().OwnCommits)
		v, err := l.Get(set)
		require.NoError(t, err)
		assert.EqualValues(t, uint64(1<<60), v, "what was done before the failure stays")
		require.NoError(t, a.Rollback())
		intact()
		for i := 0; i < n; i += pageSize / 8 {
			err := l.Set(i, uint64(i))
			if errors.Is(err, ErrUpdateTooLarge) {
				require.NoError(t, a.Sync())
				err = l.Set(i, uint64(i))
			}
			require.NoError(t, err, "after Sync there is room again")
		}
		intact()
		require.NoError(t, a.Close())
	})
	a, err = Open(path, nil)
	require.NoError(t, err)
	l, err = List[uint64](a, "list", nil)
	require.NoError(t, err)
	d, err = Dict[uint64, uint64](a, "dict", nil)
	require.NoError(t, err)
	intact()
	require.NoError(t, a.Close())
}

func TestErrRolledBack(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprintf("fails=%t", fails), func(t *testing.T) {
			t.Parallel()
			s := newSample(t, nil, internalOptions{})
			inside, finish := make(chan struct{}), make(chan struct{})
			updated, synced := make(chan error, 1), make(chan error, 1)
			go func() {
				updated <- s.a.Update(func() error {
					close(inside)
					<-finish
					if fails {
						return errOfFn
					}
					return nil
				})
			}()
			<-inside
			require.NoError(t, s.names.Set("beside", 1), "a write outside the Update")
			go func() { synced <- s.a.Sync() }()
			select {
			case err := <-synced:
				t.Fatalf("Sync did not wait for the Update: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			close(finish)
			if !fails {
				require.NoError(t, <-updated)
				require.NoError(t, <-synced)
				ok, err := s.names.Delete("beside")
				require.NoError(t, err)
				assert.True(t, ok)
				s.intact(t)
				return
			}
			require.ErrorIs(t, <-updated, errOfFn)
			isError(t, <-synced, s.path, ErrRolledBack)
			ok, err := s.names.Contains("beside")
			require.NoError(t, err)
			assert.False(t, ok, "it shares the Update's fate")
			require.NoError(t, s.a.Sync(), "a later Sync is fine")
			s.intact(t)
		})
	}
}

// TestOthersWaitForUpdate checks that Rollback, Close, Drop and Update of other goroutines wait for an Update.
func TestOthersWaitForUpdate(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(a *Arena) error{
		"Rollback": (*Arena).Rollback,
		"Close":    (*Arena).Close,
		"Drop":     func(a *Arena) error { return a.Drop("other") },
		"Update":   func(a *Arena) error { return a.Update(func() error { return nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSample(t, nil, internalOptions{})
			_, err := List[int](s.a, "other", nil)
			require.NoError(t, err)
			inside, finish := make(chan struct{}), make(chan struct{})
			updated, called := make(chan error, 1), make(chan error, 1)
			go func() {
				updated <- s.a.Update(func() error {
					close(inside)
					<-finish
					return s.numbers.Set(0, 0)
				})
			}()
			<-inside
			go func() { called <- call(s.a) }()
			select {
			case err := <-called:
				t.Fatalf("%s did not wait: %v", name, err)
			case <-time.After(50 * time.Millisecond):
			}
			close(finish)
			require.NoError(t, <-updated)
			require.NoError(t, <-called)
			s.intact(t)
		})
	}
}

// A Rollback brings a dropped container back although another of its name, of
// another type, has come meanwhile: that one is gone then.
func TestRollbackAcrossTypes(t *testing.T) {
	a := testArena(t, testOptions{})
	d, err := Dict[uint64, uint64](a, "x", nil)
	require.NoError(t, err)
	require.NoError(t, d.Set(1, 2))
	require.NoError(t, a.Sync())
	for range 2 {
		require.NoError(t, a.Drop("x"))
		l, err := List[string](a, "x", nil)
		require.NoError(t, err)
		require.NoError(t, l.Append("a"))
		require.NoError(t, a.Rollback())
		_, err = l.Get(0)
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorIs(t, l.Append("b"), ErrClosed)
		require.Zero(t, l.Len())
		d, err = Dict[uint64, uint64](a, "x", &DictOptions[uint64, uint64]{MustExist: true})
		require.NoError(t, err)
		v, ok, err := d.Get(1)
		require.NoError(t, err)
		require.True(t, ok)
		require.EqualValues(t, 2, v)
		require.NoError(t, d.Set(3, 4))
		require.NoError(t, a.Sync())
	}
}

// TestHandles checks handles after Drop and after a Rollback past the creation of their container.
func TestHandles(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	l, err := List[string](s.a, "new", nil)
	require.NoError(t, err)
	d, err := Dict[string, string](s.a, "new dict", nil)
	require.NoError(t, err)
	require.NoError(t, l.Append("a", "b"))
	require.NoError(t, d.Set("k", "v"))
	require.NoError(t, s.a.Rollback())
	assert.Zero(t, l.Len()+d.Len())
	assert.Panics(t, func() { l.Get(0) })
	_, ok, err := d.Get("k")
	require.NoError(t, err)
	assert.False(t, ok)
	names := func() (names []string) {
		for info := range s.a.Containers() {
			names = append(names, info.Name)
		}
		return names
	}
	assert.ElementsMatch(t, []string{"numbers", "names"}, names())
	require.NoError(t, l.Append("c"), "the next write creates it again")
	require.NoError(t, d.Set("k", "w"))
	assert.ElementsMatch(t, []string{"numbers", "names", "new", "new dict"}, names())
	same, err := List[string](s.a, "new", nil)
	require.NoError(t, err)
	require.NoError(t, same.Append("d"))
	assert.Equal(t, []string{"c", "d"}, slices.Collect(l.Values()), "two handles, one list")
	require.NoError(t, s.a.Sync())
	assert.Equal(t, 1, d.Len())

	require.NoError(t, s.a.Drop("new"))
	for _, h := range []*EMList[string]{l, same} {
		_, err = h.Get(0)
		isError(t, err, s.path, ErrClosed)
		isError(t, h.Append("x"), s.path, ErrClosed)
		assert.Zero(t, h.Len())
		for range h.All() {
			t.Error("a dropped list yields")
		}
	}
	again, err := List[uint16](s.a, "new", nil)
	require.NoError(t, err, "the name is free, also for another type")
	require.NoError(t, again.Append(7))
	require.NoError(t, s.a.Drop("new"))
	require.NoError(t, s.a.Drop("new dict"))
	require.NoError(t, s.a.Rollback(), "a Rollback brings dropped containers back")
	l, err = List(s.a, "new", &ListOptions[string]{MustExist: true})
	require.NoError(t, err)
	assert.Equal(t, []string{"c", "d"}, slices.Collect(l.Values()))
	d, err = Dict(s.a, "new dict", &DictOptions[string, string]{MustExist: true})
	require.NoError(t, err)
	v, _, err := d.Get("k")
	require.NoError(t, err)
	assert.Equal(t, "w", v)
	isError(t, s.a.Update(func() error { return s.a.Drop("new") }), s.path, ErrInUpdate)
	s.intact(t)
}

// TestMeta checks the edges of SetMeta.
func TestMeta(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	require.NoError(t, s.a.SetMeta("empty", []byte{}))
	v, ok := s.a.Meta("empty")
	assert.True(t, ok)
	assert.NotNil(t, v)
	require.NoError(t, s.a.SetMeta("large", bytes.Repeat([]byte("m"), 100_000)))
	require.NoError(t, s.a.SetMeta("absent", nil))
	require.NoError(t, s.a.Close())
	s = openSample(t, s.path, nil, internalOptions{})
	v, ok = s.a.Meta("empty")
	assert.True(t, ok)
	assert.NotNil(t, v)
	v, _ = s.a.Meta("large")
	assert.Len(t, v, 100_000)
	v[0] = 'x' // the caller's own
	v, _ = s.a.Meta("large")
	assert.EqualValues(t, 'm', v[0])
	_, ok = s.a.Meta("absent")
	assert.False(t, ok)
	require.NoError(t, s.a.SetMeta("empty", nil))
	_, ok = s.a.Meta("empty")
	assert.False(t, ok)
	s.intact(t)
}

// TestIteratorFaults stores values that do not decode: the loop ends, and the fault is kept where nobody can miss it.
func TestIteratorFaults(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "faults.emd")
	open := func(t *testing.T) (*Arena, *EMList[moody], *EMDict[int, moody], *EMList[int]) {
		a, err := Open(path, nil)
		require.NoError(t, err)
		l, err := List(a, "list", &ListOptions[moody]{Codec: moodyCodec{}})
		require.NoError(t, err)
		d, err := Dict(a, "dict", &DictOptions[int, moody]{ValueCodec: moodyCodec{}})
		require.NoError(t, err)
		fine, err := List[int](a, "fine", nil)
		require.NoError(t, err)
		return a, l, d, fine
	}
	// A codec of the same name that is less strict stores what moodyCodec cannot read.
	a, err := Open(path, nil)
	require.NoError(t, err)
	l, err := List(a, "list", &ListOptions[moody]{Codec: meekCodec{}})
	require.NoError(t, err)
	require.NoError(t, l.Append("a", "b", "bad", "c"))
	d, err := Dict(a, "dict", &DictOptions[int, moody]{ValueCodec: meekCodec{}})
	require.NoError(t, err)
	require.NoError(t, d.Set(1, "bad"))
	require.NoError(t, a.Close())

	loops := map[string]func(l *EMList[moody], d *EMDict[int, moody]){
		"list": func(l *EMList[moody], d *EMDict[int, moody]) {
			assert.Equal(t, []moody{"a", "b"}, slices.Collect(l.Values()))
		},
		"backward": func(l *EMList[moody], d *EMDict[int, moody]) { assert.Len(t, maps.Collect(l.Backward()), 1) },
		"dict":     func(l *EMList[moody], d *EMDict[int, moody]) { assert.Empty(t, maps.Collect(d.All())) },
	}
	for name, loop := range loops {
		t.Run(name, func(t *testing.T) {
			a, l, d, fine := open(t)
			require.NoError(t, a.Err())
			loop(l, d)
			assert.ErrorIs(t, cmpOr(l.Err(), d.Err()), errMoody)
			assert.ErrorIs(t, a.Err(), errMoody)
			assert.NoError(t, fine.Err(), "another container's")
			assert.ErrorIs(t, a.View(func() error { loop(l, d); return nil }), errMoody)
			require.NoError(t, a.View(func() error { return nil }), "an earlier fault is not View's")
			isError(t, a.Update(func() error {
				require.NoError(t, fine.Append(1))
				loop(l, d)
				return nil
			}), path, errMoody)
			assert.Zero(t, fine.Len(), "the Update is undone")
			require.NoError(t, a.Update(func() error { return nil }))
			numbers := func(yield func(int) bool) {
				yield(1)
				loop(l, d)
			}
			isError(t, fine.AppendSeq(numbers), path, errMoody)
			pairs, err := Dict[int, int](a, "pairs", nil)
			require.NoError(t, err)
			_, err = pairs.SetAll(func(yield func(int, int) bool) { loop(l, d) })
			isError(t, err, path, errMoody)
			require.NoError(t, a.Rollback())
			require.NoError(t, a.Close(), "Err has been asked")

			a, l, d, _ = open(t)
			loop(l, d)
			assert.ErrorIs(t, a.Close(), errMoody, "a fault that no Err call has seen")
			a, err = Open(path, nil)
			require.NoError(t, err, "the file was closed all the same")
			require.NoError(t, a.Close())
		})
	}
	a, l, d, _ = open(t)
	_, err = l.Get(2)
	isError(t, err, path, errMoody)
	_, _, err = d.Get(1)
	isError(t, err, path, errMoody)
	v, err := l.Get(3)
	require.NoError(t, err, "Get past it")
	assert.EqualValues(t, "c", v)
	require.NoError(t, a.Close())
}

// meekCodec is moodyCodec without its moods.
type meekCodec struct{ moodyCodec }

func (meekCodec) Append(dst []byte, v moody) ([]byte, error) { return append(dst, v...), nil }
func (meekCodec) Decode(src []byte) (moody, error)           { return moody(src), nil }

// childExit commits one element, appends another and exits without Close.
func childExit(args []string) {
	l, err := OpenList[string](args[0], nil)
	must(err)
	must(l.Append("committed"))
	must(l.Sync())
	must(l.Append("pending"))
	os.Exit(0)
}

func TestExitWithoutClose(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "exit.emd")
	for n := 1; n <= 3; n++ {
		_, err := child(t, "exit", path).rest()
		require.NoError(t, err)
		l, err := OpenList[string](path, &Options{ReadOnly: n == 2})
		require.NoError(t, err)
		assert.Equal(t, slices.Repeat([]string{"committed"}, n), slices.Collect(l.Values()))
		require.NoError(t, l.Close())
	}
}

func TestCommitEvery(t *testing.T) {
	t.Parallel()
	s := newSample(t, &Options{CommitEvery: 20 * time.Millisecond}, internalOptions{})
	own := func() int64 { return s.a.Stats().OwnCommits }
	first := own()
	require.NoError(t, s.numbers.Append(1))
	require.Eventually(t, func() bool { return own() > first }, 10*time.Second, 5*time.Millisecond)
	path := crashImage(t, s.path)
	c := openSample(t, path, &Options{ReadOnly: true}, internalOptions{})
	assert.Equal(t, sampleLen+1, c.numbers.Len())
	require.NoError(t, c.a.Close())

	time.Sleep(50 * time.Millisecond)
	idle := own()
	time.Sleep(100 * time.Millisecond)
	assert.Equal(t, idle, own(), "nothing is pending")
	require.ErrorIs(t, s.a.Update(func() error {
		_, _, err := s.numbers.Pop()
		require.NoError(t, err)
		time.Sleep(100 * time.Millisecond)
		assert.Equal(t, idle, own(), "not during an Update")
		return errOfFn
	}), errOfFn)
	assert.Equal(t, sampleLen+1, s.numbers.Len())
	_, _, err := s.numbers.Pop()
	require.NoError(t, err)
	s.intact(t)
}

// TestReadOnlyAfterCrash opens a crashed file read-only: the last commit is there, no byte on disk changes, the log stays.
func TestReadOnlyAfterCrash(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]internalOptions{
		"one log":          {},
		"many checkpoints": {logLimit: 64 << 10},
		"heap":             {heap: true, chunkSize: 256 << 10},
		"guarded":          {far: true, chunkSize: 256 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			path := crashedCommits(t, 200, in)
			before := folder(t, filepath.Dir(path))
			require.Contains(t, before, filepath.Base(path)+"-log")
			times := func() (m [2]time.Time) {
				for i, p := range []string{path, path + "-log"} {
					info, err := os.Stat(p)
					require.NoError(t, err)
					m[i] = info.ModTime()
				}
				return m
			}
			written := times()
			for range 2 {
				a, err := openWith(path, &Options{ReadOnly: true}, in)
				require.NoError(t, err)
				b, err := Open(path, &Options{ReadOnly: true})
				require.NoError(t, err, "two readers")
				assert.Equal(t, 200, readCommits(t, a))
				assert.Equal(t, 200, readCommits(t, b))
				_, err = Open(path, nil)
				isError(t, err, path, ErrLocked)
				require.NoError(t, a.Close())
				require.NoError(t, b.Close())
				sameFolder(t, before, filepath.Dir(path))
				assert.Equal(t, written, times())
			}
			_, err := salvageWith(t.Context(), path+".new", path, nil, in)
			require.NoError(t, err)
			for _, path := range []string{path + ".new", path} {
				a, err := openWith(path, nil, in)
				require.NoError(t, err)
				assert.Equal(t, 200, readCommits(t, a))
				require.NoError(t, a.Close())
			}
		})
	}
}

// TestSymlink opens a file by a link: one file, one log, beside the real file.
func TestSymlink(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	real, link := filepath.Join(dir, "real", "file.emd"), filepath.Join(dir, "links", "link.emd")
	require.NoError(t, os.MkdirAll(filepath.Dir(real), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Dir(link), 0o700))
	err := os.Symlink(filepath.Join("..", "real", "file.emd"), link)
	if err == nil {
		_, err = os.Readlink(link)
	}
	if err != nil {
		require.Equal(t, "windows", runtime.GOOS, "%v", err)
		t.Skipf("links need a privilege on Windows, and Wine 8 only says that it makes them: %v", err)
	}
	s := openSample(t, link, nil, internalOptions{}) // the link dangles
	fillSample(t, s)
	assert.FileExists(t, real)
	assert.FileExists(t, real+"-log")
	_, err = Open(real, nil)
	isError(t, err, real, ErrLocked)
	assert.Equal(t, 1, len(dirNames(t, filepath.Dir(link))))
	image := filepath.Join(dir, "crashed.emd")
	copyFile(t, real, image)
	copyFile(t, real+"-log", image+"-log")
	require.NoError(t, s.a.Close())
	assert.Equal(t, []string{"file.emd"}, dirNames(t, filepath.Dir(real)))
	assert.Equal(t, []string{"link.emd"}, dirNames(t, filepath.Dir(link)))
	sampleIntact(t, real)
	sampleIntact(t, link)
	// After a crash the log is found through the link.
	copyFile(t, image, real)
	copyFile(t, image+"-log", real+"-log")
	sampleIntact(t, link)
	assert.Equal(t, []string{"file.emd"}, dirNames(t, filepath.Dir(real)))
}

func dirNames(t testing.TB, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestMode(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // has no such modes
	}
	for want, mode := range map[fs.FileMode]fs.FileMode{0o600: 0, 0o700: 0o700} {
		path := filepath.Join(tempDir(t), "mode.emd")
		s := openSample(t, path, &Options{Mode: mode}, internalOptions{})
		fillSample(t, s)
		for _, p := range []string{path, path + "-log"} {
			info, err := os.Stat(p)
			require.NoError(t, err)
			assert.Equal(t, want, info.Mode().Perm(), "%s with Mode %o", filepath.Base(p), mode)
		}
		s.intact(t)
	}
}

// TestSmallDisk fills a small file system: Sync says so, nothing is lost, and with more room or a Rollback it goes on.
func TestSmallDisk(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if dir := smallDisk(t, kind); dir != "" { // else TestFileSizeLimit sees the same errors
				fillSmallDisk(t, dir)
				t.Run("recovery", func(t *testing.T) { recoverOnFullDisk(t, dir) })
			}
		})
	}
}

func fillSmallDisk(t *testing.T, dir string) {
	ballast := filepath.Join(dir, "ballast")
	weigh := func(t *testing.T, size int) { require.NoError(t, os.WriteFile(ballast, make([]byte, size), 0o600)) }
	for name, in := range map[string]internalOptions{
		"default":      {},
		"tiny log":     {logLimit: 256 << 10},
		"tiny private": {dirtyLimit: 1 << 20, logLimit: 256 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			weigh(t, 48<<20)
			s := openSample(t, filepath.Join(dir, "full.emd"), nil, in)
			fillSample(t, s)
			l, err := List[[512]byte](s.a, "ballast", nil)
			require.NoError(t, err)
			committed, tried := 0, 0
			fill := func() (err error) { // commits of 128 KiB until one fails
				for err == nil {
					vs := slices.Repeat([][512]byte{{1, 2, 3}}, 256)
					vs[0][511] = byte(l.Len() / 256)
					if err = l.Append(vs...); err != nil {
						return err
					}
					tried = l.Len()
					if err = s.a.Sync(); err == nil {
						committed = l.Len()
					}
				}
				return err
			}
			crashHolds := func() { // on another disk
				dir := tempDir(t)
				to := filepath.Join(dir, "crashed.emd")
				copyFile(t, s.path, to)
				copyFile(t, s.path+"-log", to+"-log")
				c := openSample(t, to, nil, in)
				c.check(t)
				l, err := List[[512]byte](c.a, "ballast", nil)
				require.NoError(t, err)
				// A commit that failed had begun: what it wrote may be whole.
				assert.Contains(t, []int{committed, tried}, l.Len(), "a crash on a full disk leaves a whole commit")
				require.NoError(t, c.a.Close())
			}
			err = fill()
			isError(t, err, s.path, ErrFull, fullErrors[0])
			s.check(t)
			crashHolds()
			pending := l.Len()
			require.Error(t, s.a.Sync(), "still full")
			require.NoError(t, os.Remove(ballast))
			require.NoError(t, s.a.Sync(), "with room again")
			assert.Equal(t, pending, l.Len())
			committed = pending
			crashHolds()
			require.NoError(t, s.a.verify())

			weigh(t, 28<<20)
			err = fill()
			isError(t, err, s.path, ErrFull, fullErrors[0])
			require.NoError(t, s.a.Rollback(), "Rollback needs no room")
			assert.Equal(t, committed, l.Len())
			s.check(t)
			crashHolds()
			if err := s.a.Close(); err != nil { // its checkpoint may need room for what was a hole in the file
				isError(t, err, s.path, ErrFull, fullErrors[0])
			}
			require.NoError(t, os.Remove(ballast))
			s = openSample(t, s.path, nil, in)
			s.check(t)
			l, err = List[[512]byte](s.a, "ballast", nil)
			require.NoError(t, err)
			assert.Equal(t, committed, l.Len())
			for i, v := range l.All() {
				if i%256 == 0 {
					require.EqualValues(t, byte(i/256), v[511], "element %d", i)
				}
			}
			require.NoError(t, s.a.Drop("ballast"))
			require.NoError(t, s.a.Close())
			sampleIntact(t, s.path)
			require.NoError(t, os.Remove(s.path))
		})
	}
	t.Run("no room for a new file", func(t *testing.T) {
		os.WriteFile(ballast, make([]byte, 80<<20), 0o600) // as much as there is room for
		path := filepath.Join(dir, "new.emd")
		a, err := Open(path, nil)
		if err == nil { // it fits into the last bytes
			require.NoError(t, a.Close())
			require.NoError(t, os.Remove(path))
		} else {
			isError(t, err, path, ErrFull, fullErrors[0])
		}
		assert.Equal(t, []string{"ballast"}, dirNames(t, dir))
	})
}

// recoverOnFullDisk opens what a crash left where nothing can be written: a writer is told so and spoils nothing, a reader needs no room.
// After that an Update meets the full disk, and Close does.
func recoverOnFullDisk(t *testing.T, dir string) {
	s := openSample(t, filepath.Join(tempDir(t), "whole.emd"), nil, internalOptions{})
	fillSample(t, s)
	l, err := List[uint64](s.a, "more", nil)
	require.NoError(t, err)
	require.NoError(t, l.Resize(1<<18))
	for v := range uint64(3) { // records that leave no room in the log for a copy of them
		require.NoError(t, s.a.Sync())
		require.NoError(t, l.Fill(0, l.Len(), v+1))
	}
	require.NoError(t, s.a.Sync())
	ballast := filepath.Join(dir, "ballast")
	_ = os.Remove(ballast)
	path := crashImage(t, s.path, dir)
	require.NoError(t, s.a.Close())
	fillUp := func() {
		f, err := os.Create(ballast)
		require.NoError(t, err)
		for n := 1 << 20; n >= 512; {
			if _, err := f.Write(make([]byte, n)); err != nil {
				n /= 2
			}
		}
		_ = f.Close()
	}
	fillUp()
	_, err = Open(path, nil)
	isError(t, err, path, ErrFull, fullErrors[0])
	s = openSample(t, path, &Options{ReadOnly: true}, internalOptions{})
	s.check(t)
	require.NoError(t, s.a.Close())
	require.NoError(t, os.Remove(ballast))
	s = openSample(t, path, nil, internalOptions{})
	s.check(t)
	require.NoError(t, check(s.a))

	fillUp()
	err = s.a.Update(func() error {
		for i := range sampleLen {
			if err := s.names.Set(fmt.Sprint("more", i), 1); err != nil {
				return err
			}
		}
		return s.numbers.Append(make([]uint64, 1<<20)...)
	})
	isError(t, err, path, ErrFull, fullErrors[0])
	s.check(t)
	require.NoError(t, s.a.Err(), "a full disk stops nothing")
	require.NoError(t, s.numbers.Append(make([]uint64, 1<<20)...))
	isError(t, s.a.Close(), path, ErrFull, fullErrors[0])
	require.NoError(t, os.Remove(ballast))
	s = openSample(t, path, nil, internalOptions{})
	s.check(t)
	require.NoError(t, check(s.a))
	require.NoError(t, s.a.Close())
	removeImage(path)
}

// smallDisk mounts a file system of 64 MiB, in memory or in a file, and returns its folder; "" where that is not possible, as it takes root and Linux.
// Under Wine, make wine has mounted one, which the tests use in turn.
func smallDisk(t *testing.T, kind string) string {
	if dir := os.Getenv("EMD_TEST_SMALL_DISK"); dir != "" && kind == "tmpfs" {
		smallDiskMu.Lock()
		t.Cleanup(func() {
			defer smallDiskMu.Unlock()
			for _, name := range dirNames(t, dir) {
				if path := filepath.Join(dir, name); os.Remove(path) != nil {
					assert.NoError(t, removeAll(path))
				}
			}
		})
		return dir
	}
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		return ""
	}
	dir := filepath.Join(tempDir(t), "disk")
	require.NoError(t, os.Mkdir(dir, 0o700))
	mount := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", dir)
	if kind != "tmpfs" {
		image := dir + ".image"
		require.NoError(t, os.WriteFile(image, make([]byte, 68<<20), 0o600))
		if out, err := exec.Command("mkfs."+kind, "-q", image).CombinedOutput(); err != nil {
			require.Empty(t, os.Getenv("EMD_TEST_ROOT"), "mkfs.%s: %v: %s", kind, err, out)
			t.Logf("mkfs.%s: %v: %s", kind, err, out)
			return ""
		}
		mount = exec.Command("mount", "-o", "loop", image, dir)
	}
	if out, err := mount.CombinedOutput(); err != nil {
		require.Empty(t, os.Getenv("EMD_TEST_ROOT"), "mount: %v: %s", err, out)
		t.Logf("mount: %v: %s", err, out)
		return ""
	}
	t.Cleanup(func() { assert.NoError(t, exec.Command("umount", "-l", dir).Run()) })
	os.Remove(filepath.Join(dir, "lost+found"))
	return dir
}

var smallDiskMu sync.Mutex

// TestFileSizeLimit runs childFull under RLIMIT_FSIZE, which makes writes fail with EFBIG.
func TestFileSizeLimit(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // knows no such limit
	}
	path := filepath.Join(tempDir(t), "limited.emd")
	// 8 MiB in blocks of 512 bytes, or of 1024 in some shells.
	line := append([]string{"-c", `trap "" XFSZ; ulimit -f 16384; exec "$0" "$@"`}, childLine(t, path)...)
	c := startChild(t, exec.Command("sh", line...), "full")
	said, err := c.rest()
	require.NoError(t, err, "%s", c.errs)
	require.Equal(t, []string{"full", "rolled back", "closed"}, said)
	sampleIntact(t, path)
}

// childFull fills a file until Sync fails, and rolls back.
func childFull(args []string) {
	a, err := Open(args[0], nil)
	must(err)
	s := &sample{path: args[0], a: a}
	s.numbers, err = List[uint64](a, "numbers", nil)
	must(err)
	s.names, err = Dict[string, uint64](a, "names", nil)
	must(err)
	for i := range sampleLen {
		must(s.numbers.Append(uint64(i) * 7))
		must(s.names.Set(sampleName(i), uint64(i)))
	}
	must(a.SetMeta("version", []byte("1")))
	must(a.Sync())
	block := slices.Repeat([]uint64{1}, 1<<17)
	for err == nil {
		if err = s.numbers.Append(block...); err == nil {
			err = a.Sync()
		}
	}
	if !errors.Is(err, ErrFull) || !slices.ContainsFunc(fullErrors, func(full error) bool { return errors.Is(err, full) }) {
		must(err)
	}
	say("full")
	must(a.Rollback())
	say("rolled back")
	must(s.numbers.Resize(sampleLen))
	must(a.Close())
	say("closed")
}

// TestGroupCommit checks that Syncs of many goroutines share commits, and that each Sync that returned is in the file.
func TestGroupCommit(t *testing.T) {
	t.Parallel()
	s := newSample(t, nil, internalOptions{})
	const each = 50
	var wg sync.WaitGroup
	var failed atomic.Bool
	for w := range 8 {
		wg.Go(func() {
			for i := range each {
				if err := cmpOr(s.names.Set(fmt.Sprintf("extra %d %d", w, i), 1), s.a.Sync()); err != nil {
					failed.Store(true)
				}
			}
		})
	}
	wg.Wait()
	require.False(t, failed.Load())
	c := openSample(t, crashImage(t, s.path), nil, internalOptions{})
	assert.Equal(t, sampleLen+8*each, c.names.Len())
	require.NoError(t, c.a.Close())
	before := s.a.Stats().Commits
	require.NoError(t, s.a.Sync())
	assert.Equal(t, before, s.a.Stats().Commits, "a Sync with nothing new commits nothing")
	n, err := s.names.DeleteFunc(func(k string, _ uint64) bool { return strings.HasPrefix(k, "extra") })
	require.NoError(t, err)
	assert.Equal(t, 8*each, n)
	s.intact(t)
}
