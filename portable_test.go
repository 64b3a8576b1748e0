package emd

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Files are the same everywhere. The tests here hold the bytes that the writer
// gives against recorded ones, on whatever machine they run: another word
// size, byte order, page size or system. Since every machine writes the very
// bytes of the sample, and every machine reads the sample, each reads what any
// other has written.

var updateRecorded = flag.Bool("emd.update", false, "record the bytes that the writer gives now in testdata")

const (
	sampleFile = "testdata/sample.emd.gz"
	sumsFile   = "testdata/sums.txt"
	howToMend  = "The bytes of files have changed. While the format is version 0 that may be meant; then record them:\n" +
		"go test -run 'TestSameBytes|TestSample' -emd.update . and say why in the commit."
)

// portableOptions are what the bytes of a file depend on besides the operations.
func portableOptions() testOptions {
	return testOptions{
		opts:            Options{HashSeed: 1, DirtyLimit: 4 << 20, LogLimit: 1 << 20},
		internalOptions: internalOptions{fs: zeroingFS{osFS{heap: raceEnabled}}, inline: true},
	}
}

// write returns the bytes of a new file after the given operations.
func (o testOptions) write(t *testing.T, operate func(a *Arena)) []byte {
	path := filepath.Join(tempDir(t), "portable.emd")
	a, err := openWith(path, &o.opts, o.internalOptions)
	require.NoError(t, err)
	a.space.manyOwned = math.MaxInt // see Options.HashSeed
	operate(a)
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// zeroingFS writes zeros where the file system cannot take free space back: of
// its bytes the format says nothing.
type zeroingFS struct{ osFS }

type zeroingFile struct{ *osFile }

func (z zeroingFS) Open(path string, flag int, mode fs.FileMode) (file, error) {
	f, err := z.osFS.Open(path, flag, mode)
	if err != nil {
		return nil, err
	}
	return zeroingFile{f.(*osFile)}, nil
}

func (z zeroingFS) Lock(f file, exclusive, wait bool) (bool, error) {
	return z.osFS.Lock(f.(zeroingFile).osFile, exclusive, wait)
}

func (z zeroingFS) SameFile(f file, path string) (bool, error) {
	return z.osFS.SameFile(f.(zeroingFile).osFile, path)
}

func (z zeroingFS) Network(f file) (string, bool) { return z.osFS.Network(f.(zeroingFile).osFile) }

func (z zeroingFS) Map(f file, written bool) mapping {
	return z.osFS.Map(f.(zeroingFile).osFile, written)
}

func (f zeroingFile) Punch(off, n int64) error {
	if f.osFile.Punch(off, n) == nil {
		return nil
	}
	_, err := f.WriteAt(make([]byte, n), off)
	return err
}

// ---- the sample

// A sampleContainer is a container of the sample file.
type sampleContainer struct {
	name  string
	write func(t *testing.T, a *Arena)
	check func(t *testing.T, a *Arena)
}

// samples are what the sample file holds. A type that the package learns to
// store gets a line of its own at the end.
var samples = []sampleContainer{
	sampleList("bools", true, false, true),
	sampleList[uint8]("bytes", 0, 1, 0x80, 0xFF),
	sampleList[int16]("int16s", 0, 1, -1, math.MaxInt16, math.MinInt16),
	sampleList[uint32]("uint32s", 0, 1, 0x01020304, math.MaxUint32),
	sampleList[int64]("int64s", 0, 1, -1, 0x0102030405060708, math.MaxInt64, math.MinInt64),
	sampleList("float32s", 0, 1.5, float32(math.Inf(-1)), math.SmallestNonzeroFloat32),
	sampleList("float64s", 0, math.Pi, math.Inf(1), math.Copysign(0, -1), math.MaxFloat64),
	sampleList("complex128s", 0, complex(1, -2), complex(math.Inf(-1), 0.5)),
	sampleList("arrays", [3]uint16{1, 2, 3}, [3]uint16{0x0102, 0, 0xFFFE}),
	sampleList("structs", padded{}, padded{true, 0x0102030405060708, -2, [2]inner{{3, 4.5}, {5, -6.25}}}),
	sampleList("zero size", struct{}{}, struct{}{}),
	sampleList("strings", "", "a", "Grüße, 世界", "\x00\xFF", strings.Repeat("long ", 2000)),
	sampleList("byte slices", nil, []byte{}, []byte{0}, bytes.Repeat([]byte{1, 2, 3}, 3000)),
	sampleList[uint64]("empty list"),
	sampleList("many numbers", squares(3000)...),
	ints("ints", 0, 1, -1, math.MaxInt32, math.MinInt32, 1<<31, math.MinInt32-1, math.MaxInt64, math.MinInt64),
	sparseList("sparse list"),
	queue("queue"),

	sampleDict("numbers", map[uint64]uint64{0: 1, 1: 0, 0x0102030405060708: 3, math.MaxUint64: 4}),
	sampleDict("narrow keys", map[uint32]float32{0: 0.5, 7: -1, math.MaxUint32: 2}),
	sampleDict("small keys", map[int8]bool{-128: true, 0: false, 127: true}),
	sampleDict("a set", map[string]struct{}{"": {}, "a": {}, "Grüße": {}}),
	sampleDict("struct keys", map[inner]padded{{}: {}, {1, 2}: {A: true, B: 3}, {4, -5}: {C: 6}}),
	sampleDict("float keys", map[float64]string{0: "zero", -1.5: "", math.Inf(1): "infinite"}),
	sampleDict("strings to strings", map[string]string{"": "empty", "a": "", "Grüße": "世界", strings.Repeat("k", 5000): strings.Repeat("v", 9000)}),
	sampleDict("strings to bytes", map[string][]byte{"nil": nil, "empty": {}, "zero": {0}}),
	sampleDict("numbers to arrays", map[uint16][5]uint16{1: {1, 2, 3, 4, 5}, 0x0102: {0xFFFE}}),
	sampleList("people", somebody(), person{}),
	sampleList("times", time.Time{}, time.Unix(1e9, 5).UTC(), time.Unix(-1, 0).In(time.FixedZone("", -5400))),
	sampleList("nested", [][]map[int16][]string{nil, {}, {nil, {}, {-2: nil, 300: {"", "a"}, 1: {}}}}),
	sampleDict("trees", map[string]*tree{"": nil, "a": {}, "b": {[]tree{{}, {[]tree{{}}}}}}),
	sampleDict("addresses", map[netip.Addr]url.URL{netip.MustParseAddr("::1"): {Host: "localhost"}, {}: {}}),
	sampleDict("keys of strings", map[base]*base{{1, "one"}: nil, {1, ""}: {2, "two"}}),
	sampleDict("empty dict", map[uint64]string{}),
	sampleDict("many words", words(700)),
	intDict("dict of ints", map[string]int64{"one": 1, "small": math.MinInt32, "large": 1 << 31}),
	changedDict("changed dict"),

	sampleListWith[*big.Int]("codec", bigCodec{}, big.NewInt(1), big.NewInt(-7), new(big.Int).Lsh(big.NewInt(3), 300)),
}

// padded has gaps in memory, which differ between machines, and none in the file.
type padded struct {
	A bool
	B uint64
	C int16
	D [2]inner
}

type inner struct {
	X uint8
	Y float64
}

type bigCodec struct{}

func (bigCodec) Name() string { return "emd.test/big" }

func (bigCodec) Append(dst []byte, v *big.Int) ([]byte, error) { return v.Append(dst, 16), nil }

func (bigCodec) Decode(src []byte) (*big.Int, error) {
	v, ok := new(big.Int).SetString(string(src), 16)
	if !ok {
		return nil, errors.New("no number")
	}
	return v, nil
}

func squares(n int) (v []uint32) {
	for i := range uint32(n) {
		v = append(v, i*i)
	}
	return v
}

func words(n int) map[string]uint64 {
	m := map[string]uint64{}
	for i := range n {
		m[strconv.Itoa(i)] = uint64(i)
	}
	return m
}

// sampleList is a list of the given elements.
func sampleList[T any](name string, want ...T) sampleContainer {
	return sampleListWith[T](name, nil, want...)
}

// sampleListWith is sampleList with a codec.
func sampleListWith[T any](name string, codec Codec[T], want ...T) sampleContainer {
	return sampleContainer{
		name,
		func(t *testing.T, a *Arena) {
			l, err := List(a, name, &ListOptions[T]{Codec: codec})
			require.NoError(t, err)
			require.NoError(t, l.Append(want...))
		},
		func(t *testing.T, a *Arena) {
			l, err := List(a, name, &ListOptions[T]{MustExist: true, Codec: codec})
			require.NoError(t, err)
			checkList(t, l, want)
		},
	}
}

// checkList checks that l holds just the given elements.
func checkList[T any](t *testing.T, l *EMList[T], want []T) {
	require.Equal(t, len(want), l.Len())
	for i, v := range want {
		have, err := l.Get(i)
		require.NoError(t, err)
		assert.Equal(t, v, have, "element %d", i)
	}
	next := 0
	for i, v := range l.All() {
		assert.Equal(t, next, i)
		assert.Equal(t, want[i], v, "element %d", i)
		next++
	}
	assert.Equal(t, len(want), next)
	assert.NoError(t, l.Err())
}

// sampleDict is a dict of the given entries, set in the order of their encodings.
func sampleDict[K comparable, V any](name string, want map[K]V) sampleContainer {
	return sampleContainer{
		name,
		func(t *testing.T, a *Arena) {
			d, err := Dict[K, V](a, name, nil)
			require.NoError(t, err)
			setSorted(t, d, want)
		},
		func(t *testing.T, a *Arena) {
			d, err := Dict(a, name, &DictOptions[K, V]{MustExist: true})
			require.NoError(t, err)
			checkDict(t, d, want)
		},
	}
}

// setSorted sets entries in the order of the keys' encodings.
func setSorted[K comparable, V any](t *testing.T, d *EMDict[K, V], want map[K]V) {
	encoded := map[string]K{}
	for k := range want {
		b, err := d.key.encode(nil, &k)
		require.NoError(t, err)
		encoded[string(b)] = k
	}
	for _, b := range slices.Sorted(maps.Keys(encoded)) {
		require.NoError(t, d.Set(encoded[b], want[encoded[b]]))
	}
}

// checkDict checks that d holds just the given entries.
func checkDict[K comparable, V any](t *testing.T, d *EMDict[K, V], want map[K]V) {
	require.Equal(t, len(want), d.Len())
	for k, v := range want {
		have, ok, err := d.Get(k)
		require.NoError(t, err)
		assert.True(t, ok, "key %v", k)
		assert.Equal(t, v, have, "key %v", k)
	}
	n := 0
	for k, v := range d.All() {
		assert.Equal(t, want[k], v, "key %v", k)
		n++
	}
	assert.Equal(t, len(want), n)
	assert.NoError(t, d.Err())
}

// ints is a list of int with values that 32 bits do not hold. Every machine
// writes it, as int64 under the name of int; one of 32 bits reads the others.
func ints(name string, want ...int64) sampleContainer {
	return sampleContainer{
		name,
		func(t *testing.T, a *Arena) {
			codec, err := codecFor[int64](nil)
			require.NoError(t, err)
			codec.sig = "int"
			c, err := a.openContainer(newList(a, name, codec.sig, codec.size), false)
			require.NoError(t, err)
			l := &EMList[int64]{l: c.(*list), codec: codec, raw: codec.raw}
			require.NoError(t, l.Append(want...))
		},
		func(t *testing.T, a *Arena) {
			l, err := List(a, name, &ListOptions[int]{MustExist: true})
			require.NoError(t, err)
			require.Equal(t, len(want), l.Len())
			for i, x := range want {
				have, err := l.Get(i)
				if x != int64(int(x)) {
					requireTooLarge(t, err, fmt.Sprintf("element %d: ", i), x)
					for range l.Range(i, i+1) {
						t.Error("a loop yields what cannot be read")
					}
					requireTooLarge(t, l.Err(), "element ", want[slices.IndexFunc(want, tooWide)])
					continue
				}
				require.NoError(t, err)
				assert.Equal(t, x, int64(have), "element %d", i)
			}
		},
	}
}

func tooWide(x int64) bool { return x != int64(int(x)) }

func requireTooLarge(t *testing.T, err error, place string, x int64) {
	t.Helper()
	require.ErrorIs(t, err, ErrTooLarge)
	require.ErrorContains(t, err, place)
	require.ErrorContains(t, err, fmt.Sprint(x))
}

// intDict is ints for the values of a dict.
func intDict(name string, want map[string]int64) sampleContainer {
	return sampleContainer{
		name,
		func(t *testing.T, a *Arena) {
			key, err := keyCodecFor[string](nil)
			require.NoError(t, err)
			val, err := codecFor[int64](nil)
			require.NoError(t, err)
			core := newDict(a, key.size, val.size)
			core.name, core.kind, core.key, core.value = name, kindDict, key.sig, "int"
			c, err := a.openContainer(core, false)
			require.NoError(t, err)
			setSorted(t, &EMDict[string, int64]{d: c.(*dict), key: key, val: val}, want)
		},
		func(t *testing.T, a *Arena) {
			d, err := Dict(a, name, &DictOptions[string, int]{MustExist: true})
			require.NoError(t, err)
			require.Equal(t, len(want), d.Len())
			for k, x := range want {
				have, ok, err := d.Get(k)
				if tooWide(x) {
					requireTooLarge(t, err, fmt.Sprintf("value of key %q: ", k), x)
					for range d.Values() { // ends at the value
					}
					requireTooLarge(t, d.Err(), fmt.Sprintf("value of key %q: ", k), x)
					continue
				}
				require.NoError(t, err)
				assert.True(t, ok)
				assert.Equal(t, x, int64(have), k)
			}
		},
	}
}

// sparseList is a list most of whose elements were never written.
func sparseList(name string) sampleContainer {
	want := make([]uint64, 100_000)
	want[0], want[54_321], want[99_999] = 1, 2, 3
	return sampleContainer{
		name,
		func(t *testing.T, a *Arena) {
			l, err := List[uint64](a, name, nil)
			require.NoError(t, err)
			require.NoError(t, l.Resize(len(want)))
			for i, v := range want {
				if v != 0 {
					require.NoError(t, l.Set(i, v))
				}
			}
		},
		func(t *testing.T, a *Arena) {
			l, err := List(a, name, &ListOptions[uint64]{MustExist: true})
			require.NoError(t, err)
			require.Equal(t, len(want), l.Len())
			n := 0
			for i, v := range l.All() {
				if want[i] == v {
					n++
				}
			}
			assert.Equal(t, len(want), n)
			assert.NoError(t, l.Err())
		},
	}
}

// queue is a list of which the front is gone.
func queue(name string) sampleContainer {
	s := sampleList(name, squares(2000)...)
	check := sampleList(name, squares(2000)[1500:]...).check
	return sampleContainer{
		name,
		func(t *testing.T, a *Arena) {
			s.write(t, a)
			l, err := List[uint32](a, name, nil)
			require.NoError(t, err)
			require.NoError(t, l.Delete(0, 1500))
		},
		check,
	}
}

// changedDict is a dict of which most is gone again.
func changedDict(name string) sampleContainer {
	want := words(400)
	maps.DeleteFunc(want, func(_ string, v uint64) bool { return v%7 != 0 })
	check := sampleDict(name, want).check
	return sampleContainer{
		name,
		func(t *testing.T, a *Arena) {
			sampleDict(name, words(400)).write(t, a)
			d, err := Dict[string, uint64](a, name, nil)
			require.NoError(t, err)
			_, err = d.DeleteFunc(func(_ string, v uint64) bool { return v%7 != 0 })
			require.NoError(t, err)
		},
		check,
	}
}

func writeSamples(t *testing.T) []byte {
	return portableOptions().write(t, func(a *Arena) {
		for _, s := range samples {
			s.write(t, a)
		}
		require.NoError(t, a.SetMeta("schema", []byte("1")))
	})
}

// readSample returns the bytes of the sample file.
func readSample(t *testing.T) []byte {
	f, err := os.Open(sampleFile)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	b, err := io.ReadAll(z)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b
}

// TestSampleWritten writes the sample file anew: not a byte of it may differ.
func TestSampleWritten(t *testing.T) {
	b := writeSamples(t)
	if *updateRecorded {
		var z bytes.Buffer
		w, err := gzip.NewWriterLevel(&z, gzip.BestCompression)
		require.NoError(t, err)
		_, err = w.Write(b)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		require.NoError(t, os.WriteFile(sampleFile, z.Bytes(), 0o666))
	}
	requireSameBytes(t, readSample(t), b)
}

// requireSameBytes compares files, and names the first page that differs.
func requireSameBytes(t *testing.T, want, have []byte) {
	t.Helper()
	for off := 0; off < min(len(want), len(have)); off++ {
		if want[off] != have[off] {
			require.Fail(t, howToMend, "first difference at %#x, page %d; %d bytes, recorded were %d",
				off, off>>pageShift, len(have), len(want))
		}
	}
	require.Len(t, have, len(want), howToMend)
}

// TestSampleRead reads every element of the recorded file, for reading only
// and for writing.
func TestSampleRead(t *testing.T) {
	path := filepath.Join(tempDir(t), "sample.emd")
	require.NoError(t, os.WriteFile(path, readSample(t), 0o666))
	for _, readOnly := range []bool{true, false} {
		t.Run(fmt.Sprint("readonly=", readOnly), func(t *testing.T) {
			o := portableOptions()
			o.opts.ReadOnly = readOnly
			a, err := openWith(path, &o.opts, o.internalOptions)
			require.NoError(t, err)
			defer func() { require.NoError(t, a.Close()) }()
			require.NoError(t, a.verify())

			var have, want []string
			for info := range a.Containers() {
				have = append(have, info.Name)
			}
			for _, s := range samples {
				want = append(want, s.name)
				t.Run(s.name, func(t *testing.T) { s.check(t, a) })
			}
			slices.Sort(want)
			assert.Equal(t, want, have, "all containers are known")
			meta, ok := a.Meta("schema")
			assert.True(t, ok)
			assert.Equal(t, "1", string(meta))
		})
	}
}

// ---- operations

// TestSameBytes runs operations that move, divide, free and commit, and
// compares the sums of the files with recorded ones.
func TestSameBytes(t *testing.T) {
	sums := readSums(t)
	for _, name := range slices.Sorted(maps.Keys(portableScripts)) {
		t.Run(name, func(t *testing.T) {
			o := portableOptions()
			script := portableScripts[name]
			if script.options != nil {
				script.options(&o)
			}
			b := o.write(t, func(a *Arena) { script.operate(&portableWorld{t: t, a: a}) })
			sum := fmt.Sprintf("%x", sha256.Sum256(b))
			if *updateRecorded {
				sums[name] = sum
			}
			assert.Equal(t, sums[name], sum, howToMend)
		})
	}
	if *updateRecorded {
		var text strings.Builder
		for _, name := range slices.Sorted(maps.Keys(portableScripts)) {
			fmt.Fprintf(&text, "%s  %s\n", sums[name], name)
		}
		require.NoError(t, os.WriteFile(sumsFile, []byte(text.String()), 0o666))
	}
}

// readSums reads the recorded sums, in the form of sha256sum.
func readSums(t *testing.T) map[string]string {
	sums := map[string]string{}
	text, err := os.ReadFile(sumsFile)
	if *updateRecorded && errors.Is(err, fs.ErrNotExist) {
		return sums
	}
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		sum, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		sums[name] = sum
	}
	return sums
}

// A portableWorld is an arena and a source of numbers that are the same on
// every machine.
type portableWorld struct {
	t     *testing.T
	a     *Arena
	state uint64
}

func (w *portableWorld) next(n int) int { return int(splitmix64(&w.state) % uint64(n)) }

func (w *portableWorld) text(most int) string {
	b := make([]byte, w.next(most))
	for i := range b {
		b[i] = byte('a' + w.next(26))
	}
	return string(b)
}

func (w *portableWorld) ok(err error) {
	w.t.Helper()
	require.NoError(w.t, err)
}

func listIn[T any](w *portableWorld, name string) *EMList[T] {
	l, err := List[T](w.a, name, nil)
	w.ok(err)
	return l
}

func dictIn[K comparable, V any](w *portableWorld, name string) *EMDict[K, V] {
	d, err := Dict[K, V](w.a, name, nil)
	w.ok(err)
	return d
}

// A portableScript is a sequence of operations and what it is run with.
type portableScript struct {
	options func(o *testOptions)
	operate func(w *portableWorld)
}

var portableScripts = map[string]portableScript{
	"samples": {operate: func(w *portableWorld) {
		for _, s := range samples {
			s.write(w.t, w.a)
		}
	}},
	"lists": {operate: func(w *portableWorld) {
		changeList(w, "numbers", func() uint64 { return splitmix64(&w.state) })
		changeList(w, "ints", func() int { return w.next(1<<30) - 1<<29 })
		changeList(w, "bools", func() bool { return w.next(2) == 0 })
		changeList(w, "structs", func() padded { return padded{A: w.next(2) == 0, B: splitmix64(&w.state), C: int16(w.next(9))} })
		changeList(w, "strings", func() string { return w.text(300) })
		changeList(w, "byte slices", func() []byte { return []byte(w.text(5000)) })
		changeList(w, "large", func() [9000]uint64 { return [9000]uint64{1: splitmix64(&w.state)} })
	}},
	"dicts": {operate: func(w *portableWorld) {
		changeDict(w, "numbers", 4000, func(i int) uint64 { return uint64(i) }, func() uint64 { return splitmix64(&w.state) })
		changeDict(w, "ints", 2000, func(i int) int { return i - 1000 }, func() int { return w.next(1 << 30) })
		changeDict(w, "narrow", 2000, func(i int) uint32 { return uint32(i) }, func() [3]uint32 { return [3]uint32{uint32(w.next(9))} })
		changeDict(w, "structs", 1000, func(i int) inner { return inner{uint8(i), float64(i)} }, func() padded { return padded{C: int16(w.next(9))} })
		changeDict(w, "strings", 1500, func(i int) string { return strings.Repeat("k", i%700) + strconv.Itoa(i) }, func() string { return w.text(900) })
		changeDict(w, "bytes", 500, func(i int) string { return strconv.Itoa(i) }, func() []byte { return []byte(w.text(20_000)) })
		changeDict(w, "set", 1500, func(i int) [2]uint16 { return [2]uint16{uint16(i), 7} }, func() struct{} { return struct{}{} })
	}},
	"slices": {operate: func(w *portableWorld) {
		numbers, texts := dictIn[int, []int](w, "numbers"), dictIn[string, []string](w, "texts")
		structs, bytes := dictIn[uint32, []padded](w, "structs"), dictIn[uint64, []byte](w, "bytes")
		for i := range 6000 {
			k := w.next(1 + w.next(1+w.next(60)))
			w.ok(AppendTo(numbers, k, make([]int, 1+w.next(i%200+1))...))
			w.ok(AppendTo(texts, strconv.Itoa(k), w.text(40), w.text(9)))
			w.ok(AppendTo(structs, uint32(k), padded{B: uint64(i)}))
			w.ok(AppendTo(bytes, uint64(k), byte(i), byte(k)))
			switch {
			case i%1000 == 999:
				w.ok(w.a.Sync())
			case i%300 == 299:
				_, err := numbers.Delete(k)
				w.ok(err)
				w.ok(texts.Set(strconv.Itoa(k), nil))
			}
		}
		w.ok(AppendTo(bytes, 1, make([]byte, 6<<20)...))
	}},
	"fan out": {operate: func(w *portableWorld) {
		d := dictIn[uint64, uint64](w, "words")
		for i := range uint64(130_000) {
			w.ok(d.Set(i*i, i))
			if i%50_000 == 0 {
				w.ok(w.a.Sync())
			}
		}
		require.EqualValues(w.t, rootBits, d.d.table.Load().bits)
		for i := range uint64(130_000) {
			if i%5 != 0 {
				_, err := d.Delete(i * i)
				w.ok(err)
			}
		}
		e := dictIn[string, [200]byte](w, "strings")
		for i := range 8000 {
			w.ok(e.Set(strconv.Itoa(i), [200]byte{byte(i)}))
		}
	}},
	"own commits": {
		options: func(o *testOptions) { o.opts.DirtyLimit, o.opts.LogLimit = 1<<20, 128<<10 },
		operate: func(w *portableWorld) {
			l := listIn[uint64](w, "list")
			e := listIn[padded](w, "encoded")
			s := listIn[string](w, "strings")
			d := dictIn[uint64, uint64](w, "words")
			for range 10 {
				w.ok(l.Append(make([]uint64, 40_000)...))
				w.ok(e.Append(make([]padded, 9000)...))
			}
			w.ok(w.a.Sync())
			for i := range 20_000 {
				w.ok(l.Set(w.next(l.Len()), uint64(i)))
				w.ok(d.Set(splitmix64(&w.state)%50_000, uint64(i)))
				if i%10 == 0 {
					w.ok(e.Set(w.next(e.Len()), padded{B: uint64(i)}))
					w.ok(s.Append(w.text(400)))
				}
				if i%1000 == 999 {
					w.ok(e.Append(make([]padded, 9000)...))
				}
			}
			require.Greater(w.t, w.a.Stats().OwnCommits, int64(5))
			require.Greater(w.t, w.a.Stats().Checkpoints, int64(5))
		},
	},
	"transactions": {operate: func(w *portableWorld) {
		l, d := listIn[uint64](w, "list"), dictIn[string, string](w, "dict")
		failed := errors.New("failed")
		for i := range 60 {
			err := w.a.Update(func() error {
				for range w.next(2000) {
					w.ok(d.Set(strconv.Itoa(w.next(1000)), w.text(100)))
					w.ok(l.Append(uint64(i)))
				}
				if i%4 == 3 {
					return failed
				}
				return nil
			})
			if i%4 == 3 {
				require.ErrorIs(w.t, err, failed)
			} else {
				w.ok(err)
			}
			w.ok(w.a.SetMeta("last", []byte(strconv.Itoa(i))))
			switch i % 5 {
			case 0:
				w.ok(w.a.Rollback())
			case 1:
				w.ok(l.Delete(0, l.Len()/2))
			case 2:
				x := listIn[[100]byte](w, "dropped")
				w.ok(x.Append(make([][100]byte, 3000)...))
				w.ok(w.a.Sync())
				w.ok(w.a.Drop("dropped"))
			}
		}
	}},
}

// changeList makes a list and changes it in all ways, with commits in between.
func changeList[T any](w *portableWorld, name string, value func() T) {
	l := listIn[T](w, name)
	for round := range 4 {
		values := make([]T, 100)
		for i := range values {
			values[i] = value()
		}
		w.ok(l.Append(values...))
		w.ok(l.Append(value()))
		for range 30 {
			w.ok(l.Set(w.next(l.Len()), value()))
			w.ok(l.Swap(w.next(l.Len()), w.next(l.Len())))
		}
		at := w.next(l.Len())
		w.ok(l.Insert(at, values[:20]...))
		at = w.next(l.Len() - 40)
		w.ok(l.Delete(at, at+w.next(40)))
		w.ok(l.Fill(at, at+10, value()))
		w.ok(w.a.Sync())
		n := 0
		_, err := l.DeleteFunc(func(T) bool { n++; return n%(5+round) == 0 })
		w.ok(err)
		_, _, err = l.Pop()
		w.ok(err)
		w.ok(l.Resize(l.Len() + 5))
		w.ok(l.AppendSeq(slices.Values(values[:30])))
	}
	w.ok(w.a.Sync())
}

// changeDict makes a dict of n entries and changes it in all ways, with commits
// in between.
func changeDict[K comparable, V any](w *portableWorld, name string, n int, key func(i int) K, value func() V) {
	d := dictIn[K, V](w, name)
	for i := range n {
		w.ok(d.Set(key(i), value()))
	}
	w.ok(w.a.Sync())
	for range n {
		k := key(w.next(2 * n))
		var err error
		switch w.next(6) {
		case 0:
			_, err = d.Delete(k)
		case 1:
			_, _, err = d.GetOrSet(k, value())
		case 2:
			_, _, err = d.Swap(k, value())
		case 3:
			_, _, err = d.Compute(k, func(v V, ok bool) (V, Op) { return value(), Op(w.next(3)) })
		default:
			err = d.Set(k, value())
		}
		w.ok(err)
	}
	w.ok(w.a.Sync())
	i := 0
	_, err := d.DeleteFunc(func(K, V) bool { i++; return i%3 != 0 })
	w.ok(err)
	w.ok(d.Grow(n))
	for i := range n / 2 {
		w.ok(d.Set(key(i), value()))
	}
	w.ok(w.a.Sync())
}
