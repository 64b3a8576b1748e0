package emd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime/debug"
	"strconv"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Types to encode. rawStruct and intStruct have no padding in memory; in
// intStruct the integers are narrower than in the file on a 32-bit machine.
type (
	namedFloat  float64
	namedByte   byte
	namedString string
	namedBytes  []namedByte

	rawStruct struct {
		Addr uint64
		Size uint32
		perm [4]uint8
	}
	mixedStruct struct {
		A uint8
		B uint64
		C bool
		d int16
		E [3]float32
		F complex64
		G struct {
			X int32
			Y [2]bool
		}
		H complex128
		I uint32
	}
	paddedStruct struct {
		A uint16
		B uint32
	}
	paddedGrid  [3][2]paddedStruct
	blankStruct struct {
		A uint8
		_ [3]uint8
		B uint32
		_ [0]func()
	}
	intStruct struct {
		I int
		U uint
		P uintptr
		J [2]int
	}
)

// forceWordSteps makes the test take the steps of a big-endian machine.
func forceWordSteps(t testing.TB) {
	old := wordSteps
	wordSteps = true
	t.Cleanup(func() { wordSteps = old })
}

func TestCodecFor(t *testing.T) {
	little, wide := !wordSteps, !wordSteps && strconv.IntSize == 64
	for _, test := range []struct {
		got  func() (derivation, error)
		want derivation
	}{
		{derived[bool], derivation{"bool", 1, false}},
		{derived[int8], derivation{"int8", 1, little}},
		{derived[uint64], derivation{"uint64", 8, little}},
		{derived[int], derivation{"int", 8, wide}},
		{derived[uintptr], derivation{"uintptr", 8, wide}},
		{derived[namedFloat], derivation{"float64", 8, little}},
		{derived[complex64], derivation{"complex64", 8, little}},
		{derived[[4]uint32], derivation{"[4]uint32", 16, little}},
		{derived[[2][3]namedByte], derivation{"[2][3]uint8", 6, little}},
		{derived[[2]bool], derivation{"[2]bool", 2, false}},
		{derived[rawStruct], derivation{"struct{Addr uint64; Size uint32; perm [4]uint8}", 16, little}},
		{derived[paddedStruct], derivation{"struct{A uint16; B uint32}", 6, false}},
		{derived[paddedGrid], derivation{"[3][2]struct{A uint16; B uint32}", 36, false}},
		{derived[blankStruct], derivation{"struct{A uint8; B uint32}", 5, false}},
		{derived[intStruct], derivation{"struct{I int; U uint; P uintptr; J [2]int}", 40, wide}},
		{derived[struct{ paddedStruct }], derivation{"struct{paddedStruct struct{A uint16; B uint32}}", 6, false}},
		{derived[struct{}], derivation{"struct{}", 0, little}},
		{derived[[0]uint64], derivation{"[0]uint64", 0, little}},
		{derived[[5]struct{}], derivation{"[5]struct{}", 0, little}},
		{derived[struct{ _ uint64 }], derivation{"struct{}", 0, false}},
		{derived[string], derivation{"string", -1, false}},
		{derived[namedString], derivation{"string", -1, false}},
		{derived[[]byte], derivation{"[]uint8", -1, false}},
		{derived[namedBytes], derivation{"[]uint8", -1, false}},
	} {
		got, err := test.got()
		if assert.NoError(t, err, test.want.sig) {
			assert.Equal(t, test.want, got)
		}
	}
}

// A derivation is what codecFor finds out about a type.
type derivation struct {
	sig  string
	size int
	raw  bool
}

func derived[T any]() (derivation, error) {
	c, err := codecFor[T](nil)
	if err != nil {
		return derivation{}, err
	}
	return derivation{c.sig, c.size, c.raw}, nil
}

func TestCodecUnsupported(t *testing.T) {
	type node struct {
		ID   uint64
		Next *node
		Any  any
	}
	type deep struct {
		A [2]struct {
			B struct{ name map[string][]chan int }
		}
	}
	type link struct{ To *int }
	for _, test := range []struct {
		name string
		err  error
		text string // part of the message
	}{
		{"chan", errorFor[chan int](codecFor), "chan int"},
		{"func", errorFor[func()](codecFor), "func()"},
		{"interface", errorFor[any](codecFor), "interface {}"},
		{"map", errorFor[map[string]error](codecFor), "field [] (error) of map[string]error"},
		{"map key", errorFor[map[any]int](codecFor), "field [key] (interface {})"},
		{"pointer in a map key", errorFor[map[[1]*int]int](codecFor), "field [key][] (*int)"},
		{"slice", errorFor[[]func()](codecFor), "field [] (func())"},
		{"unsafe pointer", errorFor[unsafe.Pointer](codecFor), "unsafe.Pointer"},
		{"empty array", errorFor[[0]chan int](codecFor), "field [] (chan int)"},
		{"field", errorFor[node](codecFor), "field Any (interface {}) of emd.node"},
		{"deep field", errorFor[deep](codecFor), "field A[].B.name[][] (chan int) of emd.deep"},
		{"blank elements", errorFor[[]struct{ _ int }](codecFor), "blank fields only"},
		{"pointer in a key", errorFor[link](keyCodecFor), "field To (*int) of emd.link cannot be part of a key"},
		{"key of bytes", errorFor[namedBytes](keyCodecFor), "emd.namedBytes: a key must be comparable"},
		{"interface key", errorFor[error](keyCodecFor), "error"},
		{"interface in a key", errorFor[[2]any](keyCodecFor), "field [] (interface {})"},
	} {
		if assert.ErrorIs(t, test.err, ErrUnsupportedType, test.name) {
			assert.ErrorContains(t, test.err, test.text, test.name)
		}
	}
}

func errorFor[T any](codecFor func(Codec[T]) (*typeCodec[T], error)) error {
	_, err := codecFor(nil)
	return err
}

func TestCodecTooLarge(t *testing.T) {
	mib := reflect.ArrayOf(1<<20, reflect.TypeFor[uint8]())
	gib := reflect.ArrayOf(1<<10, mib)
	for name, test := range map[string]struct {
		t    reflect.Type
		want error
	}{
		"array, just fits":  {gib, nil},
		"array":             {reflect.ArrayOf(1<<10+1, mib), ErrTooLarge},
		"struct, just fits": {reflect.StructOf([]reflect.StructField{{Name: "A", Type: gib}}), nil},
		"struct": {reflect.StructOf([]reflect.StructField{
			{Name: "A", Type: mib}, {Name: "B", Type: reflect.ArrayOf(1<<10-1, mib)}, {Name: "C", Type: reflect.TypeFor[bool]()},
		}), ErrTooLarge},
	} {
		p := planner{root: test.t}
		l, err := p.plan(test.t, "")
		assert.ErrorIs(t, err, test.want, name)
		if test.want == nil {
			assert.Equal(t, maxPlainSize, l.size, name)
		}
	}
}

// The form in the file, byte by byte, the same with all kinds of steps.
func TestCodecBytes(t *testing.T) {
	check := func(t *testing.T) {
		checkEncoding(t, true, "01")
		checkEncoding(t, int16(-2), "feff")
		checkEncoding(t, uint64(0x0102030405060708), "0807060504030201")
		checkEncoding(t, int(-2), "feffffffffffffff")
		checkEncoding(t, uint(0xFFFFFFFE), "feffffff00000000")
		checkEncoding(t, float32(1), "0000803f")
		checkEncoding(t, complex(float32(1), -2), "0000803f000000c0")
		checkEncoding(t, namedFloat(-2), "00000000000000c0")
		checkEncoding(t, [2]uint16{1, 2}, "01000200")
		checkEncoding(t, rawStruct{Addr: 1, Size: 2, perm: [4]uint8{3, 4, 5, 6}}, "01000000000000000200000003040506")
		checkEncoding(t, blankStruct{A: 1, B: 2}, "0102000000")
		checkEncoding(t, paddedGrid{{{1, 2}, {3, 4}}, {{5, 6}, {7, 8}}, {{9, 10}, {11, 12}}},
			"010002000000"+"030004000000"+"050006000000"+"070008000000"+"09000a000000"+"0b000c000000")
		checkEncoding(t, intStruct{I: -1, U: 2, P: 3, J: [2]int{4, math.MinInt32}},
			"ffffffffffffffff"+"0200000000000000"+"0300000000000000"+"0400000000000000"+"00000080ffffffff")
		checkEncoding(t, struct{}{}, "")
		checkEncoding(t, "", "")
		checkEncoding(t, namedString("a\x00b"), "610062")
		checkEncoding(t, []byte(nil), "")
		checkEncoding(t, []byte{}, "00")
		checkEncoding(t, namedBytes{7, 0}, "070000")
	}
	t.Run("native", check)
	t.Run("words", func(t *testing.T) {
		forceWordSteps(t)
		check(t)
	})
}

// checkEncoding checks that v is written as these bytes, in hexadecimal, and read
// back as v.
func checkEncoding[T any](t *testing.T, v T, want string) {
	t.Helper()
	c, err := codecFor[T](nil)
	require.NoError(t, err)
	b, err := c.encode([]byte("before"), &v)
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(b, []byte("before")), "%#v", v)
	b = b[len("before"):]
	assert.Equal(t, want, hex.EncodeToString(b), "%#v", v)
	var back T
	require.NoError(t, c.decode(&back, b), "%#v", v)
	assert.Equal(t, v, back)
	if c.copied() {
		var copied, kept T
		assert.True(t, c.copy(&copied, b))
		assert.Equal(t, v, copied)
		if own := bytes.Clone(b); c.keep(&kept, own) {
			assert.Equal(t, v, kept)
		} else {
			assert.True(t, c.raw || len(b) == 0, "%#v", v)
		}
		clear(b)
		assert.Equal(t, v, copied)
	}
}

// All kinds of steps write what encoding/binary writes, and read it back.
func TestCodecLikeBinary(t *testing.T) {
	check := func(t *testing.T) {
		likeBinary[uint8](t)
		likeBinary[int16](t)
		likeBinary[[7]uint16](t)
		likeBinary[float32](t)
		likeBinary[complex128](t)
		likeBinary[[3]bool](t)
		likeBinary[paddedStruct](t)
		likeBinary[paddedGrid](t)
		likeBinary[[5]struct {
			A [2]paddedStruct
			B bool
			C [3]int64
			D struct{ E, F uint8 }
			G float64
		}](t)
		likeBinary[[2][2]struct {
			A [2]bool
			B int32
		}](t)
	}
	t.Run("native", check)
	t.Run("words", func(t *testing.T) {
		forceWordSteps(t)
		check(t)
	})
}

func likeBinary[T any](t *testing.T) {
	t.Helper()
	c, err := codecFor[T](nil)
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var v, back T
		randomize(rng, reflect.ValueOf(&v).Elem())
		want, err := binary.Append(nil, binary.LittleEndian, v)
		require.NoError(t, err)
		require.Len(t, want, c.size, c.sig)
		got, err := c.encode(nil, &v)
		require.NoError(t, err)
		require.Equal(t, want, got, c.sig)
		require.NoError(t, c.decode(&back, got))
		require.Equal(t, v, back, c.sig)
	}
}

// randomize sets a plain value with exported fields.
func randomize(rng *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			randomize(rng, v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			randomize(rng, v.Index(i))
		}
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 1)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(rng.NormFloat64())
	case reflect.Complex64, reflect.Complex128:
		v.SetComplex(complex(rng.NormFloat64(), rng.NormFloat64()))
	default:
		if v.CanInt() {
			v.SetInt(int64(rng.Uint64()) >> (64 - 8*v.Type().Size()))
		} else {
			v.SetUint(rng.Uint64() >> (64 - 8*v.Type().Size()))
		}
	}
}

// Adjacent fields move together: the steps are as few as they can be.
func TestCodecSteps(t *testing.T) {
	for _, test := range []struct {
		t             reflect.Type
		native, words int
	}{
		{reflect.TypeFor[rawStruct](), 1, 3},
		{reflect.TypeFor[[9]rawStruct](), 1, 1},
		{reflect.TypeFor[[9]uint64](), 1, 1},
		{reflect.TypeFor[paddedStruct](), 2, 2},
		{reflect.TypeFor[paddedGrid](), 1, 1},
		{reflect.TypeFor[struct {
			A    [2]uint32
			B    complex64
			C, D float32
		}](), 1, 1},
		{reflect.TypeFor[struct {
			A, B bool
			C    [2]bool
		}](), 1, 1},
	} {
		for _, words := range []bool{false, true} {
			old := wordSteps
			wordSteps = words
			p := planner{root: test.t}
			l, err := p.plan(test.t, "")
			wordSteps = old
			require.NoError(t, err)
			want := test.native
			if words {
				want = test.words
			}
			assert.Len(t, l.steps, want, "%v, words %v", test.t, words)
		}
	}
}

// Blank fields belong to whoever owns the memory.
func TestCodecBlank(t *testing.T) {
	c, err := codecFor[blankStruct](nil)
	require.NoError(t, err)
	v := blankStruct{}
	fill := memoryOf(&v)
	for i := range fill {
		fill[i] = 0xAA
	}
	require.NoError(t, c.decode(&v, []byte{1, 2, 0, 0, 0}))
	assert.Equal(t, blankStruct{A: 1, B: 2}, blankStruct{A: v.A, B: v.B})
	assert.Equal(t, []byte{0xAA, 0xAA, 0xAA}, memoryOf(&v)[1:4])
}

func TestCodecKeyFloats(t *testing.T) {
	type point struct {
		X, Y float64
		Z    [2]float32
		W    complex64
	}
	negZero := math.Copysign(0, -1)
	nan, odd := math.NaN(), math.Float64frombits(0xFFF0000000000123)
	nan32, odd32 := float32(nan), math.Float32frombits(0xFF800123)
	zeros := point{negZero, negZero, [2]float32{float32(negZero), float32(negZero)}, complex(float32(negZero), float32(negZero))}

	key, err := keyCodecFor[point](nil)
	require.NoError(t, err)
	assert.False(t, key.raw)
	assert.Equal(t, make([]byte, key.size), encodingOf(t, key, zeros))
	assert.Equal(t,
		encodingOf(t, key, point{nan, 1, [2]float32{nan32, 2}, complex(nan32, 3)}),
		encodingOf(t, key, point{odd, 1, [2]float32{odd32, 2}, complex(odd32, 3)}))
	assert.NotEqual(t, encodingOf(t, key, point{X: 1}), encodingOf(t, key, point{X: -1}))

	var back point
	require.NoError(t, key.decode(&back, encodingOf(t, key, point{1, -2, [2]float32{3, nan32}, complex(4, -5)})))
	assert.Equal(t, []float64{1, -2, 3}, []float64{back.X, back.Y, float64(back.Z[0])})
	assert.True(t, back.Z[1] != back.Z[1])
	assert.Equal(t, complex64(complex(4, -5)), back.W)

	// Values keep their bits.
	value, err := codecFor[point](nil)
	require.NoError(t, err)
	assert.NotEqual(t, make([]byte, value.size), encodingOf(t, value, zeros))
	for _, x := range []float64{negZero, odd} {
		var back point
		require.NoError(t, value.decode(&back, encodingOf(t, value, point{X: x})))
		assert.Equal(t, math.Float64bits(x), math.Float64bits(back.X))
	}
}

func TestCodecKeys(t *testing.T) {
	ints, err := keyCodecFor[[2]uint32](nil)
	require.NoError(t, err)
	assert.Equal(t, !wordSteps, ints.raw)
	strs, err := keyCodecFor[namedString](nil)
	require.NoError(t, err)
	assert.Equal(t, []byte("key"), encodingOf(t, strs, "key"))
	mix, err := keyCodecFor[float32](nil)
	require.NoError(t, err)
	assert.Equal(t, "float32", mix.sig)
	assert.Equal(t, []byte{0, 0, 0xC0, 0x7F}, encodingOf(t, mix, float32(math.NaN())))
}

func encodingOf[T any](t *testing.T, c *typeCodec[T], v T) []byte {
	t.Helper()
	b, err := c.encode(nil, &v)
	require.NoError(t, err)
	return b
}

func TestCodecDecodeCorrupt(t *testing.T) {
	plain, err := codecFor[mixedStruct](nil)
	require.NoError(t, err)
	good := encodingOf(t, plain, mixedStruct{A: 1, C: true, d: 2, I: 3})
	var v mixedStruct
	require.NoError(t, plain.decode(&v, good))
	for n := range good {
		assert.ErrorIs(t, plain.decode(&v, good[:n]), ErrCorrupt, "%d bytes", n)
	}
	assert.ErrorIs(t, plain.decode(&v, append(good, 0)), ErrCorrupt)

	bools, err := codecFor[[3]struct {
		A uint16
		B bool
	}](nil)
	require.NoError(t, err)
	for n := 2; n < 256; n++ {
		src := make([]byte, 9)
		src[5] = byte(n)
		assert.ErrorIs(t, bools.decode(new([3]struct {
			A uint16
			B bool
		}), src), ErrCorrupt, "bool %d", n)
	}

	slice, err := codecFor[[]byte](nil)
	require.NoError(t, err)
	var b []byte
	assert.ErrorIs(t, slice.decode(&b, []byte{1}), ErrCorrupt)
	assert.ErrorIs(t, slice.decode(&b, []byte{0, 1}), ErrCorrupt)
	for _, src := range [][]byte{{1}, {0, 1}} {
		assert.False(t, slice.copy(&b, src))
		assert.False(t, slice.keep(&b, src))
	}
	number, err := codecFor[uint32](nil)
	require.NoError(t, err)
	if number.raw {
		assert.False(t, number.copy(new(uint32), []byte{1, 2, 3}))
	}
}

// What decode returns is the caller's own.
func TestCodecDecodeKeepsNothing(t *testing.T) {
	src := []byte("text\x00")
	strs, err := codecFor[string](nil)
	require.NoError(t, err)
	blobs, err := codecFor[namedBytes](nil)
	require.NoError(t, err)
	var s, s2 string
	var b, b2 namedBytes
	require.NoError(t, strs.decode(&s, src))
	require.NoError(t, blobs.decode(&b, src))
	require.True(t, strs.copy(&s2, src))
	require.True(t, blobs.copy(&b2, src))
	clear(src)
	assert.Equal(t, []string{"text\x00", "text\x00"}, []string{s, s2})
	assert.Equal(t, []namedBytes{namedBytes("text"), namedBytes("text")}, []namedBytes{b, b2})
}

// What keep returns has no room for more: the byte behind it is part of the encoding.
func TestCodecKeepHasNoRoom(t *testing.T) {
	blobs, err := codecFor[namedBytes](nil)
	require.NoError(t, err)
	var b namedBytes
	require.True(t, blobs.keep(&b, []byte("text\x00")))
	assert.Equal(t, namedBytes("text"), b)
	assert.Equal(t, 4, cap(b))
}

// The steps of a 32-bit machine, on any machine.
func TestCodecNarrowInts(t *testing.T) {
	steps := []step{
		{op: opInt32, n: 2, memUnit: 4, fileUnit: 8},
		{op: opUint32, n: 1, mem: 8, file: 16, memUnit: 4, fileUnit: 8},
	}
	type ints struct {
		I [2]int32
		U uint32
	}
	v := ints{[2]int32{-1, math.MaxInt32}, math.MaxUint32}
	file := make([]byte, 24)
	storeSteps(file, unsafe.Pointer(&v), steps)
	assert.Equal(t, "ffffffffffffffff"+"ffffff7f00000000"+"ffffffff00000000", hex.EncodeToString(file))
	var back ints
	require.NoError(t, loadSteps(unsafe.Pointer(&back), file, steps))
	assert.Equal(t, v, back)

	for off, x := range map[int]uint64{0: 1 << 31, 8: 1<<64 - 1<<31 - 1, 16: 1 << 32} {
		bad := bytes.Clone(file)
		binary.LittleEndian.PutUint64(bad[off:], x)
		assert.ErrorIs(t, loadSteps(unsafe.Pointer(&back), bad, steps), ErrTooLarge, "%#x", x)
	}

	// And those of this machine.
	c, err := codecFor[int](nil)
	require.NoError(t, err)
	var i int
	err = c.decode(&i, []byte{0, 0, 0, 0, 1, 0, 0, 0})
	if strconv.IntSize == 32 {
		assert.ErrorIs(t, err, ErrTooLarge)
	} else {
		require.NoError(t, err)
		assert.EqualValues(t, uint64(1)<<32, i)
	}
}

var errOdd = errors.New("odd")

// halves is a codec for even numbers.
type halves struct{ name string }

func (h halves) Name() string { return h.name }

func (halves) Append(dst []byte, v uint64) ([]byte, error) {
	if v%2 != 0 {
		return nil, errOdd
	}
	return binary.AppendUvarint(dst, v/2), nil
}

func (halves) Decode(src []byte) (uint64, error) {
	if cap(src) != len(src) {
		return 0, errors.New("memory behind src is within reach")
	}
	x, n := binary.Uvarint(src)
	if n != len(src) {
		return 0, errOdd
	}
	return 2 * x, nil
}

func TestCodecUser(t *testing.T) {
	for name, codecFor := range map[string]func(Codec[uint64]) (*typeCodec[uint64], error){
		"value": codecFor[uint64], "key": keyCodecFor[uint64],
	} {
		t.Run(name, func(t *testing.T) {
			c, err := codecFor(halves{"halves v1"})
			require.NoError(t, err)
			assert.Equal(t, "halves v1", c.sig)
			assert.Equal(t, -1, c.size)
			assert.False(t, c.raw)
			b := encodingOf(t, c, 1000)
			assert.Equal(t, []byte{0xF4, 0x03}, b)
			var v uint64
			require.NoError(t, c.decode(&v, append(b, 0)[:2]))
			assert.EqualValues(t, 1000, v)

			odd := uint64(1)
			_, err = c.encode(nil, &odd)
			assert.ErrorIs(t, err, errOdd)
			assert.ErrorContains(t, err, "halves v1")
			assert.ErrorIs(t, c.decode(&v, []byte{0x80}), errOdd)

			_, err = codecFor(halves{})
			assert.ErrorIs(t, err, ErrUnsupportedType)
		})
	}
}

// A codec makes a type storable that is not so by itself.
type chanCodec struct{}

func (chanCodec) Name() string                                  { return "chan" }
func (chanCodec) Append(dst []byte, _ chan int) ([]byte, error) { return dst, nil }
func (chanCodec) Decode([]byte) (chan int, error)               { return nil, nil }

func TestCodecUserUnsupported(t *testing.T) {
	_, err := codecFor(Codec[chan int](chanCodec{}))
	assert.NoError(t, err)
}

// TestCodecCollected encodes and decodes values that nothing else refers to, while the garbage collector runs all the time: with
// AddressSanitizer (make sanitize) it ends at a use after free where the collector loses sight of one.
func TestCodecCollected(t *testing.T) {
	type node struct {
		Name string
		Tags []string
		Next []struct{ A, B uint32 }
	}
	c, err := codecFor[node](nil)
	require.NoError(t, err)
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := range pick(0, 30_000, 15_000) {
				b, err := c.encode(nil, &node{strconv.Itoa(i), []string{"x", "y"}, make([]struct{ A, B uint32 }, i%5)})
				if !assert.NoError(t, err) {
					return
				}
				var v node
				if !assert.NoError(t, c.decode(&v, b)) || !assert.Equal(t, strconv.Itoa(i), v.Name) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestCodecAllocs: values, encodings and buffers stay where the caller has them.
func TestCodecAllocs(t *testing.T) {
	// With -d=checkptr=2 whatever is converted to an unsafe.Pointer moves to the
	// heap, so the codec may cost as much as such a conversion does.
	want := testing.AllocsPerRun(100, func() {
		var v mixedStruct
		_ = memoryOf(&v)
	})
	checkAllocs(t, want, rawStruct{Addr: 1})
	checkAllocs(t, want, mixedStruct{A: 1})
	checkAllocs(t, want, paddedGrid{})
	checkAllocs(t, want, uint64(1))
}

func checkAllocs[T any](t *testing.T, want float64, v T) {
	t.Helper()
	for _, get := range []func(Codec[T]) (*typeCodec[T], error){codecFor[T], keyCodecFor[T]} {
		c, err := get(nil)
		require.NoError(t, err)
		assert.LessOrEqual(t, testing.AllocsPerRun(100, func() {
			var buf [128]byte
			local := v
			c.store(buf[:], &local)
			if c.load(&local, buf[:]) != nil {
				t.Error("load failed")
			}
		}), want, "store and load of %s", c.sig)
		buf := make([]byte, 0, 128)
		assert.LessOrEqual(t, testing.AllocsPerRun(100, func() {
			local := v
			b, _ := c.encode(buf, &local)
			if c.decode(&local, b) != nil {
				t.Error("decode failed")
			}
		}), want, "encode and decode of %s", c.sig)
	}
}

// Any bytes either are the encoding of a value or are refused.
func FuzzCodecDecode(f *testing.F) {
	c, err := codecFor[mixedStruct](nil)
	require.NoError(f, err)
	f.Add(make([]byte, c.size))
	f.Add(bytes.Repeat([]byte{1}, c.size))
	f.Add(bytes.Repeat([]byte{0xFF}, c.size))
	f.Fuzz(func(t *testing.T, src []byte) {
		var v mixedStruct
		if err := c.decode(&v, src); err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		again, err := c.encode(nil, &v)
		require.NoError(t, err)
		require.Equal(t, src, again)
	})
}

func BenchmarkCodec(b *testing.B) {
	b.Run("type=uint64", benchmarkCodec[uint64])
	b.Run("type=raw", benchmarkCodec[rawStruct])
	b.Run("type=padded", benchmarkCodec[paddedStruct])
	b.Run("type=mixed", benchmarkCodec[mixedStruct])
}

func benchmarkCodec[T any](b *testing.B) {
	c, err := codecFor[T](nil)
	require.NoError(b, err)
	buf := make([]byte, c.size)
	b.SetBytes(int64(c.size))
	b.ReportAllocs()
	for b.Loop() {
		var v T
		c.store(buf, &v)
		if err := c.load(&v, buf); err != nil {
			b.Fatal(err)
		}
	}
}
