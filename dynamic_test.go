package emd

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	oldrand "math/rand"
	mathrand "math/rand/v2"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/quick"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A signedCodec stores encodings as they are, under any signature.
type signedCodec string

func (c signedCodec) Name() string                              { return string(c) }
func (signedCodec) Append(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil }
func (signedCodec) Decode(src []byte) (string, error)           { return string(src), nil }

// bytesOfHex returns the bytes that a text in hexadecimal with spaces means.
func bytesOfHex(t testing.TB, text string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	require.NoError(t, err, text)
	return b
}

func lengthAnd(b []byte) string {
	return hex.EncodeToString(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
}

func sure[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// deflated is what the codec of Flate writes.
func deflated(b []byte) []byte {
	out := bytes.NewBuffer(binary.AppendUvarint(nil, uint64(len(b))))
	w := sure(flate.NewWriter(out, flate.BestCompression))
	sure(w.Write(b))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

type dynamicCase struct {
	sig, enc string // the encoding in hexadecimal
	want     any
	json     string
}

func dynamicCases() []dynamicCase {
	third := big.NewRat(1, 3)
	return []dynamicCase{
		{"bool", "00", false, "false"},
		{"bool", "01", true, "true"},
		{"int", "feffffffffffffff", int64(-2), "-2"},
		{"int8", "80", int8(-128), "-128"},
		{"int16", "0080", int16(-32768), "-32768"},
		{"int32", "ffffff7f", int32(math.MaxInt32), "2147483647"},
		{"int64", "0000000000000080", int64(math.MinInt64), "-9223372036854775808"},
		{"uint", "ffffffffffffffff", uint64(math.MaxUint64), "18446744073709551615"},
		{"uint8", "ff", uint8(255), "255"},
		{"uint16", "0102", uint16(0x201), "513"},
		{"uint32", "01020304", uint32(0x4030201), "67305985"},
		{"uint64", "0102030405060708", uint64(0x807060504030201), "578437695752307201"},
		{"uintptr", "0100000000000000", uint64(1), "1"},
		{"float32", "0000c03f", float32(1.5), "1.5"},
		{"float32", "cdcccc3d", float32(0.1), "0.1"},
		{"float64", "000000000000f83f", 1.5, "1.5"},
		{"float64", "0000000000000080", math.Copysign(0, -1), "-0"},
		{"float64", "000000000000f07f", math.Inf(1), `"+Inf"`},
		{"float32", "000080ff", float32(math.Inf(-1)), `"-Inf"`},
		{"complex64", "0000803f 00000040", complex64(1 + 2i), `"(1+2i)"`},
		{"complex128", "000000000000f03f 00000000000000c0", 1 - 2i, `"(1-2i)"`},
		{"string", "", "", `""`},
		{"string", "c3a4223c5c0a", "ä\"<\\\n", `"ä\"<\\\n"`},
		{"string", "ff", "\xff", `"\ufffd"`},
		{"[]uint8", "", nil, "null"},
		{"[]uint8", "00", []byte{}, `""`},
		{"[]uint8", "010200", []byte{1, 2}, `"AQI="`},
		{"time.Time", "0000000000000000 00000000 00000000", time.Time{}, `"0001-01-01T00:00:00Z"`},
		{"time.Time", "ffffffffffffffff ffc99a3b 100e0000", time.Time{}.Add(-1).In(time.FixedZone("", 3600)), `"0001-01-01T00:59:59.999999999+01:00"`},
		{"[3]uint16", "0100 0200 0300", []any{uint16(1), uint16(2), uint16(3)}, "[1,2,3]"},
		{"[2]uint8", "0102", []any{uint8(1), uint8(2)}, "[1,2]"},
		{"[0]string", "", []any{}, "[]"},
		{"[2]string", "0161 00", []any{"a", ""}, `["a",""]`},
		{"[]uint16", "00", nil, "null"},
		{"[]uint16", "01", []any{}, "[]"},
		{"[]uint16", "03 0100 0200", []any{uint16(1), uint16(2)}, "[1,2]"},
		{"[][]uint8", "04 00 01 02ff", []any{nil, []byte{}, []byte{255}}, `[null,"","/w=="]`},
		{"[]string", "03 0161 026263", []any{"a", "bc"}, `["a","bc"]`},
		{"[]struct{}", "04", []any{Record{}, Record{}, Record{}}, "[{},{},{}]"},
		{"map[string]bool", "00", nil, "null"},
		{"map[string]bool", "01", Map{}, "{}"},
		{"map[string]bool", "03 0161 01 0162 00", Map{{"a", true}, {"b", false}}, `{"a":true,"b":false}`},
		{"map[uint8][]uint8", "03 01 00 02 0309 08", Map{{uint8(1), nil}, {uint8(2), []byte{9, 8}}}, `[[1,null],[2,"CQg="]]`},
		{"map[struct{}]bool", "02 01", Map{{Record{}, true}}, "[[{},true]]"},
		{"*int8", "00", nil, "null"},
		{"*int8", "01ff", int8(-1), "-1"},
		{"**string", "01 00", nil, "null"},
		{"**string", "01 01 0161", "a", `"a"`},
		{"struct{}", "", Record{}, "{}"},
		{"struct{B uint8; A string; C struct{D []^2}}", "07 0161 02 00",
			Record{{"B", uint8(7)}, {"A", "a"}, {"C", Record{{"D", []any{Record{{"D", nil}}}}}}}, `{"B":7,"A":"a","C":{"D":[{"D":null}]}}`},
		{"struct{V uint8; Next *^2}", "01 01 02 00", Record{{"V", uint8(1)}, {"Next", Record{{"V", uint8(2)}, {"Next", nil}}}},
			`{"V":1,"Next":{"V":2,"Next":null}}`},
		{"[]^1", "03 00 02 01", []any{nil, []any{[]any{}}}, "[null,[[]]]"},
		{"*struct{A [2]^3}", "01 00 01 00 00", Record{{"A", []any{nil, Record{{"A", []any{nil, nil}}}}}}, `{"A":[null,{"A":[null,null]}]}`},
		{"gob(math/big.Int)", lengthAnd(sure(big.NewInt(-77).GobEncode())), big.NewInt(-77), "-77"},
		{"gob(math/big.Int)", "00", new(big.Int), "0"},
		{"gob(math/big.Float)", lengthAnd(sure(big.NewFloat(2.5).GobEncode())), big.NewFloat(2.5), `"2.5"`},
		{"gob(math/big.Rat)", lengthAnd(sure(third.GobEncode())), third, `"1/3"`},
		{"binary(net/netip.Addr)", "00", netip.Addr{}, `""`},
		{"binary(net/netip.Addr)", "04 7f000001", netip.MustParseAddr("127.0.0.1"), `"127.0.0.1"`},
		{"binary(net/netip.AddrPort)", "06 7f000001 5000", netip.MustParseAddrPort("127.0.0.1:80"), `"127.0.0.1:80"`},
		{"binary(net/netip.Prefix)", "05 0a000000 08", netip.MustParsePrefix("10.0.0.0/8"), `"10.0.0.0/8"`},
		{"binary(net/url.URL)", lengthAnd([]byte("http://a/b?c=<d")), sure(url.Parse("http://a/b?c=<d")), `"http://a/b?c=<d"`},
		{"[]binary(example.com/x.T)", "03 00 0205", []any{[]byte{}, nil}, ""}, // see below: too short
		{"binary(example.com/x.T)", "020506", []byte{5, 6}, `"BQY="`},
		{"text(example.com/x.T)", "0261 62", "ab", `"ab"`},
		{"map[text(example.com/x.T)]int8", "02 0161 01", Map{{"a", int8(1)}}, `{"a":1}`},
		{"json", hex.EncodeToString([]byte(`{"a":[1]}`)), json.RawMessage(`{"a":[1]}`), `{"a":[1]}`},
		{"gob", "0102", Encoded{1, 2}, `"AQI="`},
		{"example.com/geo.Point v2", "", Encoded{}, `""`},
		{"sealed(int)", "ff", Encoded{255}, `"/w=="`},
		{"flate(string)", hex.EncodeToString(deflated([]byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaa"))), "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", `"aaaaaaaaaaaaaaaaaaaaaaaaaaaa"`},
		{"flate(flate(json))", hex.EncodeToString(deflated(deflated([]byte("[]")))), json.RawMessage("[]"), "[]"},
		{"flate(other)", hex.EncodeToString(deflated([]byte{1, 2})), Encoded{1, 2}, `"AQI="`},
		{"flate([]uint8)", hex.EncodeToString(deflated(nil)), nil, "null"},
		{strings.Repeat("flate(", 9) + "int" + strings.Repeat(")", 9), "01", Encoded{1}, `"AQ=="`},
	}
}

func TestDynamicDecode(t *testing.T) {
	for _, c := range dynamicCases() {
		codec := dynCodecFor(c.sig)
		src := bytesOfHex(t, c.enc)
		v, err := codec.decode(src)
		if c.json == "" {
			assert.ErrorIs(t, err, ErrCorrupt, "%s of %s", c.sig, c.enc)
			continue
		}
		if !assert.NoError(t, err, "%s of %s", c.sig, c.enc) {
			continue
		}
		clear(src) // nothing of it may be kept
		assert.Equal(t, c.want, v, "%s of %s", c.sig, c.enc)
		text, err := AppendJSON([]byte("x"), v)
		require.NoError(t, err)
		assert.Equal(t, "x"+c.json, string(text), "%s of %s", c.sig, c.enc)
		again, err := json.Marshal(Record{{"F", v}})
		require.NoError(t, err)
		assert.JSONEq(t, `{"F":`+c.json+`}`, string(again))
	}
}

// Each prefix of an encoding is refused, and so is a byte more, where the type
// tells the size.
func TestDynamicPrefixes(t *testing.T) {
	for _, c := range dynamicCases() {
		codec := dynCodecFor(c.sig)
		if codec.typ == nil && codec.flates == 0 || c.sig == "string" || c.sig == "[]uint8" || c.json == "" {
			continue
		}
		src := bytesOfHex(t, c.enc)
		for n := range src {
			_, err := codec.decode(src[:n])
			assert.ErrorIs(t, err, ErrCorrupt, "%s of %x", c.sig, src[:n])
		}
		_, err := codec.decode(append(src, 0))
		assert.ErrorIs(t, err, ErrCorrupt, "%s of %x00", c.sig, src)
	}
}

func TestDynamicCorrupt(t *testing.T) {
	for _, c := range []struct{ sig, enc string }{
		{"bool", "02"},
		{"*int8", "0201"},
		{"[]uint8", "01"},
		{"[]uint16", "8000"},
		{"[]uint16", "830001000200"},
		{"[]uint16", "ffffffffffffffffff01"},
		{"[]uint16", "ffffffffffffffffff02"},
		{"[]uint16", "ffffffffffffffffffff01"},
		{"[][]uint8", "02ffffffffffffffffff01"},
		{"[]string", "02ffffffffffffffffff01"},
		{"[]string", "02 810061"},
		{"[]struct{}", "8180808008"},
		{"[]struct{}", "ffffffffffffffffff01"},
		{"map[string]int", "ffffffffffffffffff01"},
		{"map[struct{}]struct{}", "ffffffffffffffffff01"},
		{"map[string]bool", "03 0162 01 0161 00"},
		{"[9223372036854775807]int", "00"},
		{"[9223372036854775807]string", "00"},
		{"time.Time", "0000000000000000 00ca9a3b 00000000"},
		{"time.Time", "0000000000000000 ffffffff 00000000"},
		{"binary(net/netip.Addr)", "0101"},
		{"binary(net/netip.Prefix)", "00"},
		{"binary(net/netip.AddrPort)", "0101"},
		{"binary(net/url.URL)", "023a3a"},
		{"gob(math/big.Int)", "01ff"},
		{"gob(math/big.Rat)", "0502ffffffff"},
		{"gob(math/big.Float)", "0101"},
		{"json", ""},
		{"json", "7b"},
		{"flate(string)", ""},
		{"flate(string)", "ffffffffffffffffff01 00"},
		{"flate(string)", "8080808040 00"},
		{"flate(string)", "05" + hex.EncodeToString(deflated([]byte("abcd"))[1:])},
		{"flate(string)", "03" + hex.EncodeToString(deflated([]byte("abcd"))[1:])},
		{"flate(bool)", hex.EncodeToString(deflated([]byte("ab")))},
	} {
		codec := dynCodecFor(c.sig)
		_, err := codec.decode(bytesOfHex(t, c.enc))
		assert.ErrorIs(t, err, ErrCorrupt, "%s of %s", c.sig, c.enc)
	}
}

// Few bytes cannot make a decoder take much memory or time, or many levels of
// the stack.
func TestDynamicHostile(t *testing.T) {
	wide := "struct{A0 struct{}"
	for i := range 20_000 {
		wide += fmt.Sprintf("; A%d struct{}", i+1)
	}
	wide += "}"
	tall := strings.Repeat("struct{A ", 5000) + "bool" + strings.Repeat("}", 5000)
	for name, c := range map[string]struct {
		sig string
		enc []byte
		is  error // nil: no error
	}{
		"zero-size elements":     {"[]struct{}", binary.AppendUvarint(nil, 1<<31), ErrTooLarge},
		"too many of them":       {"[]struct{}", binary.AppendUvarint(nil, 1<<31+1), ErrCorrupt},
		"as an array":            {"[9223372036854775807]struct{}", nil, ErrTooLarge},
		"of arrays":              {"[1000][1000][1000]struct{}", nil, ErrTooLarge},
		"in many slices":         {"[][]struct{}", append([]byte{21}, bytes.Repeat([]byte{0x80, 0x80, 0x08}, 20)...), ErrTooLarge},
		"as pairs":               {"map[struct{}]struct{}", binary.AppendUvarint(nil, 1<<17), ErrCorrupt},
		"with many fields":       {"[]" + wide, binary.AppendUvarint(nil, 1<<19), ErrTooLarge},
		"tall structs":           {"[]" + tall, append(binary.AppendUvarint(nil, 1<<16+1), make([]byte, 1<<16)...), ErrTooLarge},
		"lengths within lengths": {"[]^1", bytes.Repeat([]byte{0x81, 0x20}, 8192), ErrTooLarge},
		"of doubling structs":    {"*struct{A ^2; B ^2}", bytes.Repeat([]byte{1}, 1<<16), ErrCorrupt},
		"deep":                   {"*^1", append(bytes.Repeat([]byte{1}, maxNesting), 0), nil},
		"too deep":               {"*^1", append(bytes.Repeat([]byte{1}, maxNesting+2), 0), ErrCorrupt},
		"deep slices":            {"[]^1", append(bytes.Repeat([]byte{2}, maxNesting-1), 1), nil},
		"too deep slices":        {"[]^1", append(bytes.Repeat([]byte{2}, maxNesting+2), 1), ErrCorrupt},
		"much too deep":          {"map[bool]^1", bytes.Repeat([]byte{2, 1}, 1<<20), ErrCorrupt},
		"deep type":              {tall, []byte{1}, nil},
		"deep with structs":      {"struct{A struct{B struct{C *^4}}}", append(bytes.Repeat([]byte{1}, maxNesting), 0), nil},
		"deep value, deep type":  {"*" + strings.Repeat("struct{A ", 5000) + "*^5002" + strings.Repeat("}", 5000), bytes.Repeat([]byte{1}, 10_000), ErrTooLarge},
		"deflated zeros":         {"flate([]bool)", deflated(append(binary.AppendUvarint(nil, 1<<26), make([]byte, 1<<16)...)), ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			codec := dynCodecFor(c.sig)
			require.NotNil(t, codec.typ)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			v, err := codec.decode(c.enc)
			runtime.ReadMemStats(&after)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(128<<20+2048*len(c.enc)))
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
				return
			}
			require.NoError(t, err)
			_, err = AppendJSON(nil, v)
			require.NoError(t, err)
		})
	}
}

// Numbers whose decimal form takes long are printed in hexadecimal.
func TestAppendJSONHuge(t *testing.T) {
	huge := new(big.Int).Lsh(big.NewInt(-3), 1<<25)
	far := new(big.Float).SetMantExp(big.NewFloat(1.5), math.MaxInt32-1)
	for name, v := range map[string]any{
		"int": huge, "rat": new(big.Rat).SetFrac(big.NewInt(1), huge), "float": far, "small float": new(big.Float).SetMantExp(big.NewFloat(1), math.MinInt32+1),
		"long float": new(big.Float).SetInt(huge), "infinity": new(big.Float).SetInf(true),
		"below the limit": new(big.Int).Lsh(big.NewInt(-3), maxDecimalBits-10), "float below it": new(big.Float).SetMantExp(big.NewFloat(1.5), maxDecimalBits-10),
	} {
		text, err := AppendJSON(nil, v) // or the test times out
		require.NoError(t, err)
		assert.True(t, json.Valid(text), name)
	}
}

func TestAppendJSONOthers(t *testing.T) {
	text, err := AppendJSON(nil, []any{nil, int(1), struct{ A int }{2}, json.RawMessage(nil), []any(nil), Map(nil), Record(nil), math.NaN(), complex(math.NaN(), 1)})
	require.NoError(t, err)
	assert.Equal(t, `[null,1,{"A":2},null,null,null,{},"NaN","(NaN+1i)"]`, string(text))
	_, err = AppendJSON(nil, Map{{"a", Record{{"b", make(chan int)}}}})
	assert.Error(t, err)
}

// entriesOf returns what Entries yields, and the fault that ended it.
func entriesOf(a *Arena, name string) (m Map, err error) {
	err = a.View(func() error {
		for k, v := range a.Entries(name) {
			m = append(m, Pair{k, v})
		}
		return nil
	})
	return m, err
}

func TestEntries(t *testing.T) {
	type part struct {
		ID   uint32
		Pos  [3]float32
		Sold bool
		N    int
	}
	path := filepath.Join(tempDir(t), "test.emd")
	long := strings.Repeat("long", 30_000)
	a := reopen(t, path, testOptions{})
	parts := sure(List[part](a, "parts", nil))
	require.NoError(t, parts.Append(part{1, [3]float32{1, 2, 3}, true, -1}, part{N: 7}))
	texts := sure(List[string](a, "texts", nil))
	require.NoError(t, texts.Append("a", "", long))
	require.NoError(t, texts.Resize(4))
	words := sure(Dict[uint64, uint64](a, "words", nil))
	require.NoError(t, words.Set(0, 1))
	require.NoError(t, words.Set(1<<40, 2))
	wide := sure(Dict[string, [40]uint16](a, "wide", nil))
	require.NoError(t, wide.Set(long[:60_000], [40]uint16{39: 5}))
	blobs := sure(Dict[string, []byte](a, "blobs", nil))
	require.NoError(t, blobs.Set("long", []byte(long)))
	require.NoError(t, blobs.Set("nil", nil))
	zeros := sure(List[[100]uint64](a, "zeros", nil))
	require.NoError(t, zeros.Resize(3))
	for _, sig := range []string{"struct{P binary(net/netip.Prefix); T time.Time; S text(a.b)}", "example.com/x"} {
		unwritten := sure(List(a, sig, &ListOptions[string]{Codec: signedCodec(sig)}))
		require.NoError(t, unwritten.Resize(1))
	}
	signed := sure(List(a, "signed", &ListOptions[string]{Codec: signedCodec("map[string][]time.Time")}))
	require.NoError(t, signed.Append("\x00", "\x02\x01a\x02"+strings.Repeat("\x00", 16)))
	require.NoError(t, signed.Resize(3))
	_ = sure(Dict[string, string](a, "empty", nil))

	check := func(a *Arena) {
		row := func(id uint32, x, y, z float32, sold bool, n int64) Record {
			return Record{{"ID", id}, {"Pos", []any{x, y, z}}, {"Sold", sold}, {"N", n}}
		}
		want := map[string]Map{
			"parts":  {{0, row(1, 1, 2, 3, true, -1)}, {1, row(0, 0, 0, 0, false, 7)}},
			"texts":  {{0, "a"}, {1, ""}, {2, long}, {3, ""}},
			"words":  {{uint64(0), uint64(1)}, {uint64(1 << 40), uint64(2)}},
			"blobs":  {{"long", []byte(long)}, {"nil", nil}},
			"signed": {{0, nil}, {1, Map{{"a", []any{time.Time{}}}}}, {2, nil}},
			"empty":  nil,
			"struct{P binary(net/netip.Prefix); T time.Time; S text(a.b)}": {{0, Record{{"P", netip.Prefix{}}, {"T", time.Time{}}, {"S", ""}}}},
			"example.com/x": {{0, nil}},
		}
		for name, m := range want {
			have, err := entriesOf(a, name)
			require.NoError(t, err)
			if a.opened(name).base().kind == kindDict {
				assert.ElementsMatch(t, m, have, name)
			} else {
				assert.Equal(t, m, have, name)
			}
		}
		have, err := entriesOf(a, "wide")
		require.NoError(t, err)
		require.Len(t, have, 1)
		assert.Equal(t, long[:60_000], have[0].Key)
		assert.Equal(t, uint16(5), have[0].Value.([]any)[39])
		have, err = entriesOf(a, "zeros")
		require.NoError(t, err)
		require.Len(t, have, 3)
		assert.Equal(t, uint64(0), have[2].Value.([]any)[99])
		for range a.Entries("parts") {
			break
		}
		require.NoError(t, a.Err())
	}
	check(a) // opened by their types
	require.NoError(t, a.Close())
	a = reopen(t, path, testOptions{opts: Options{ReadOnly: true}})
	check(a)
	require.NoError(t, a.Close())
	a = reopen(t, path, testOptions{})
	check(a)
	// They can be opened by their types afterwards.
	parts = sure(List[part](a, "parts", nil))
	require.NoError(t, parts.Append(part{ID: 9}))
	words = sure(Dict[uint64, uint64](a, "words", nil))
	v, ok, err := words.Get(1 << 40)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, uint64(2), v)
	have, err := entriesOf(a, "parts")
	require.NoError(t, err)
	require.Len(t, have, 3)
	_, err = Dict[uint64, int64](a, "words", nil)
	require.ErrorIs(t, err, ErrTypeMismatch)
	_, err = Dict(a, "words", &DictOptions[uint64, string]{ValueCodec: signedCodec("uint64")})
	require.ErrorIs(t, err, ErrTypeMismatch, "the same signature, but of another size")
}

func TestEntriesFaults(t *testing.T) {
	a := testArena(t, testOptions{})
	_, err := entriesOf(a, "none")
	isError(t, err, a.path, ErrNoContainer)
	require.ErrorIs(t, a.Err(), ErrNoContainer)

	l := sure(List(a, "list", &ListOptions[string]{Codec: signedCodec("[]bool")}))
	require.NoError(t, l.Append("\x02\x01", "\x02\x02", "\x01"))
	m, err := entriesOf(a, "list")
	isError(t, err, a.path, ErrCorrupt)
	assert.ErrorContains(t, err, "element 1")
	assert.Equal(t, Map{{0, []any{true}}}, m)
	assert.ErrorIs(t, l.Err(), ErrCorrupt)

	bad := strings.Repeat("\x00", 100)
	d := sure(Dict(a, "dict", &DictOptions[string, string]{KeyCodec: signedCodec("int8"), ValueCodec: signedCodec("int16")}))
	require.NoError(t, d.Set("\x01", "xxx"))
	_, err = entriesOf(a, "dict")
	isError(t, err, a.path, ErrCorrupt)
	assert.ErrorContains(t, err, `value of key "\x01"`)
	require.NoError(t, d.Clear())
	require.NoError(t, d.Set(bad, "xx"))
	_, err = entriesOf(a, "dict")
	isError(t, err, a.path, ErrCorrupt)
	assert.ErrorContains(t, err, "key ")
	assert.ErrorIs(t, d.Err(), ErrCorrupt)

	err = a.Update(func() error {
		for range a.Entries("none") {
			t.Error("an entry")
		}
		return nil
	})
	require.ErrorIs(t, err, ErrNoContainer)

	require.NoError(t, a.Drop("list"))
	_, err = entriesOf(a, "list")
	require.ErrorIs(t, err, ErrNoContainer)
	_ = a.Err()
	require.NoError(t, a.Close())
	for range a.Entries("dict") {
		t.Error("an entry of a closed arena")
	}
}

// The body of the loop may use the arena, and changes of others do not disturb
// the loop.
func TestEntriesWhileChanging(t *testing.T) {
	path := filepath.Join(tempDir(t), "test.emd")
	a := reopen(t, path, tiny())
	const n = 3000
	l, d := sure(List[uint32](a, "list", nil)), sure(Dict[uint64, string](a, "dict", nil))
	for i := range n {
		require.NoError(t, l.Append(uint32(i)))
		require.NoError(t, d.Set(uint64(i), "v"))
	}
	require.NoError(t, a.Close())
	a = reopen(t, path, tiny())

	var wg sync.WaitGroup
	stop := make(chan struct{})
	began := make(chan struct{})
	wg.Go(func() {
		<-began
		l, d := sure(List[uint32](a, "list", nil)), sure(Dict[uint64, string](a, "dict", nil))
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			err := errors.Join(d.Set(uint64(n+i%n), strings.Repeat("w", i%5000)), l.Append(uint32(l.Len())), l.Set(i%n, uint32(i%n)))
			if i%100 == 99 {
				err = errors.Join(err, a.Sync())
			}
			if i%500 == 499 {
				err = errors.Join(err, a.Rollback())
			}
			if !assert.NoError(t, err) {
				return
			}
		}
	})
	seen, i := map[uint64]bool{}, 0
	require.NoError(t, a.View(func() error {
		for k, v := range a.Entries("dict") {
			if i++; i == 2 {
				close(began)
			}
			if k := k.(uint64); k < n {
				require.Equal(t, "v", v)
				require.False(t, seen[k])
				seen[k] = true
			}
			if i%500 == 0 {
				other, err := List[int](a, fmt.Sprint("other", i), nil)
				require.NoError(t, err)
				if err := errors.Join(other.Append(i), a.Sync()); err != nil {
					require.ErrorIs(t, err, ErrRolledBack) // by the other goroutine
				}
			}
		}
		return nil
	}))
	require.Len(t, seen, n)
	i = 0
	require.NoError(t, a.View(func() error {
		for k, v := range a.Entries("list") {
			require.Equal(t, i, k)
			require.Equal(t, uint32(i), v)
			i++
		}
		return nil
	}))
	require.GreaterOrEqual(t, i, n)
	close(stop)
	wg.Wait()

	// A container that goes ends the loop.
	for range a.Entries("list") {
		require.NoError(t, a.Drop("list"))
	}
	_, err := entriesOf(a, "list")
	require.ErrorIs(t, err, ErrNoContainer)
	_ = a.Err()
}

// A rollback takes back a container that Entries has seen.
func TestEntriesRollback(t *testing.T) {
	a := testArena(t, testOptions{})
	l := sure(List[int](a, "list", nil))
	require.NoError(t, l.Append(1))
	m, err := entriesOf(a, "list")
	require.NoError(t, err)
	require.Len(t, m, 1)
	require.NoError(t, a.Rollback())
	_, err = entriesOf(a, "list")
	require.ErrorIs(t, err, ErrNoContainer)
	_ = a.Err()
	require.NoError(t, l.Append(2))
	m, err = entriesOf(a, "list")
	require.NoError(t, err)
	require.Equal(t, Map{{0, int64(2)}}, m)
}

// anyOf returns what a dynCodec makes of a value without methods.
func anyOf(v reflect.Value) any {
	t := v.Type()
	switch {
	case t.Kind() == reflect.Slice && v.IsNil(), t.Kind() == reflect.Map && v.IsNil():
		return nil
	case isByteSlice(t):
		return append([]byte{}, v.Bytes()...)
	}
	switch t.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return anyOf(v.Elem())
	case reflect.Slice, reflect.Array:
		elems := make([]any, v.Len())
		for i := range elems {
			elems[i] = anyOf(v.Index(i))
		}
		return elems
	case reflect.Struct:
		r := make(Record, t.NumField())
		for i := range r {
			r[i] = Field{t.Field(i).Name, anyOf(v.Field(i))}
		}
		return r
	case reflect.Map:
		m := make(Map, 0, v.Len())
		for k, e := range v.Seq2() {
			m = append(m, Pair{anyOf(k), anyOf(e)})
		}
		return m
	case reflect.Int:
		return v.Int()
	case reflect.Uint, reflect.Uintptr:
		return v.Uint()
	}
	return v.Interface()
}

// sortMaps brings the pairs of all maps in v into an order of their own.
func sortMaps(v any) any {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			sortMaps(e)
		}
	case Record:
		for _, f := range v {
			sortMaps(f.Value)
		}
	case Map:
		for _, p := range v {
			sortMaps(p.Value)
		}
		slices.SortFunc(v, func(a, b Pair) int { return strings.Compare(fmt.Sprint(a.Key), fmt.Sprint(b.Key)) })
	}
	return v
}

// What a program of a type accepts, a dynCodec reads alike; what it refuses,
// that refuses.
func TestDynamicReadsDerived(t *testing.T) {
	for seed := range uint64(pick(*seedsFlag, 300, 100)) {
		r := mathrand.New(mathrand.NewPCG(seed+*firstFlag, 6))
		typ := typeMaker{r}.make(1 + r.IntN(4))
		d := deriver{planner: planner{root: typ}}
		p, sig, err := d.derive()
		require.NoError(t, err)
		sigType, err := parseSignature(sig)
		require.NoError(t, err)
		require.Equal(t, sig, sigType.String())
		require.LessOrEqual(t, sigType.min, uint64(p.least))
		dynamic := func(b []byte) (any, error) { // not as a whole value
			d := dynDecoder{src: b, room: spareValues + partsPerByte*uint64(len(b))}
			v, err := d.value(sigType)
			if err == nil && len(d.src) != 0 {
				err = corrupt("more bytes")
			}
			return v, err
		}
		values := oldrand.New(oldrand.NewSource(int64(seed)))
		for range 10 {
			v, ok := quick.Value(typ, values)
			require.True(t, ok)
			x := reflect.New(typ)
			x.Elem().Set(v)
			b, err := p.encode(nil, x.UnsafePointer(), &encoder{})
			require.NoError(t, err)
			have, err := dynamic(b)
			require.NoError(t, err, "seed %d: %s of %x", seed, sig, b)
			require.Equal(t, sortMaps(anyOf(v)), sortMaps(have), "seed %d: %s of %x", seed, sig, b)
			for range 20 {
				if len(b) == 0 {
					break
				}
				bad := bytes.Clone(b)
				bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
				rest, err := p.decode(reflect.New(typ).UnsafePointer(), bad, &decoder{})
				_, again := dynamic(bad)
				if !errors.Is(err, ErrTooLarge) && !errors.Is(again, ErrTooLarge) {
					require.Equal(t, err == nil && len(rest) == 0, again == nil, "seed %d: %s of %x: %v, but %v", seed, sig, bad, err, again)
				}
			}
		}
	}
}

// Entries prints what the derived codecs store.
func TestEntriesOfDerived(t *testing.T) {
	a := testArena(t, testOptions{})
	people := sure(Dict[netip.Addr, person](a, "people", nil))
	require.NoError(t, people.Set(netip.MustParseAddr("::1"), somebody()))
	wrapped := sure(List(a, "wrapped", &ListOptions[[]tree]{Codec: sure(CodecOf[[]tree]())}))
	require.NoError(t, wrapped.Append([]tree{{}, {[]tree{{}}}}))
	levels := sure(List[level](a, "levels", nil))
	require.NoError(t, levels.Append(level{"high"}))
	times := sure(List[time.Time](a, "times", nil))
	require.NoError(t, times.Append(somebody().Born, time.Time{}))
	for name, want := range map[string]string{
		"people": `[["::1",{"base":{"ID":7,"Name":"Ada"},"Born":"1815-12-10T01:02:03.000000004-01:00","Nick":"","Friends":[1,18446744073709551615],` +
			`"Tags":{"":null,"x":[],"yy":["a",""]},"Scores":[[1,"+Inf"],[3,0.5]],"Photo":"","Home":"fe80::1%eth0","Fortune":-1099511627776,` +
			`"parts":[{"a":"a","b":"b"},{"a":"","b":"d"}],"Site":"https://example.com/x","Nothing":{},"Few":[null,5,null],` +
			`"Deep":[null,[null,[[-1,["deep"]]]]],"Ratio":"-1/3","Flag":true,"Interval":60000000000}]]`,
		"wrapped": `[[0,[{"Kids":null},{"Kids":[{"Kids":null}]}]]]`,
		"levels":  `[[0,"high"]]`,
		"times":   `[[0,"1815-12-10T01:02:03.000000004-01:00"],[1,"0001-01-01T00:00:00Z"]]`,
	} {
		m, err := entriesOf(a, name)
		require.NoError(t, err)
		text, err := AppendJSON(nil, m)
		require.NoError(t, err)
		assert.Equal(t, want, string(text))
	}
}

// Any bytes either are an encoding or are refused, at a bounded cost.
func FuzzDynamic(f *testing.F) {
	for _, c := range dynamicCases() {
		f.Add(c.sig, bytesOfHex(f, c.enc))
	}
	f.Fuzz(func(t *testing.T, sig string, src []byte) {
		codec := dynCodecFor(sig)
		v, err := codec.zero()
		if err != nil {
			require.ErrorIs(t, err, ErrTooLarge)
		} else {
			checkJSON(t, v)
		}
		v, err = codec.decode(src)
		if err != nil {
			require.True(t, errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTooLarge), err)
			return
		}
		checkJSON(t, v)
	})
}

func checkJSON(t *testing.T, v any) {
	text, err := AppendJSON(nil, v)
	require.NoError(t, err)
	if !json.Valid(text) {
		var deep any // package json knows at most 10,000 levels
		require.ErrorContains(t, json.Unmarshal(text, &deep), "depth")
	}
}
