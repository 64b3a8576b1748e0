package emd

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"math/big"
	mathrand "math/rand"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Types of the tests: what a program may keep.
type (
	base struct {
		ID   uint64
		Name string
	}
	person struct {
		base     // embedded
		Born     time.Time
		Nick     *string
		Friends  []uint64
		Tags     map[string][]string
		Scores   map[uint8]float64
		Photo    []byte
		Home     netip.Addr
		Fortune  *big.Int
		parts    [2]struct{ a, b string } // unexported, stored all the same
		_        string
		Site     url.URL
		Nothing  struct{}
		Few      [3]*uint16
		Deep     [][]map[int][]string
		Ratio    big.Rat
		Flag     bool
		Interval time.Duration
	}

	tree   struct{ Kids []tree }
	ring   struct{ Next *ring }
	layers map[string]layers
	lists  []lists
	first  struct{ Second *second }
	second struct {
		First []first
		Both  map[string]*first
	}

	// level has text methods only, and an interface inside.
	level struct{ v any }
	// stamped embeds a type with methods, which are not those of stamped.
	stamped struct {
		netip.Addr
		Name string
	}
	// enveloped has its own, beside those of an embedded type.
	enveloped struct {
		netip.Addr
		Name string
	}
	shout string // methods on a string do not count
)

func (l level) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%v", l.v), nil }

func (l *level) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		return errors.New("no level")
	}
	l.v = string(b)
	return nil
}

func (w enveloped) AppendBinary(dst []byte) ([]byte, error) {
	return append(dst, w.Name...), nil
}

func (w *enveloped) UnmarshalBinary(b []byte) error {
	w.Name = string(b)
	return nil
}

func (s shout) MarshalBinary() ([]byte, error) { return nil, errors.New("not used") }
func (s *shout) UnmarshalBinary([]byte) error  { return errors.New("not used") }

func ptr[T any](v T) *T { return &v }

func somebody() person {
	return person{
		base: base{7, "Ada"}, Born: time.Date(1815, 12, 10, 1, 2, 3, 4, time.FixedZone("", -3600)), Nick: ptr(""), Friends: []uint64{1, math.MaxUint64},
		Tags: map[string][]string{"": nil, "x": {}, "yy": {"a", ""}}, Scores: map[uint8]float64{3: 0.5, 1: math.Inf(1)}, Photo: []byte{},
		Home: netip.MustParseAddr("fe80::1%eth0"), Fortune: big.NewInt(-1 << 40), parts: [2]struct{ a, b string }{{"a", "b"}, {"", "d"}},
		Site: url.URL{Scheme: "https", Host: "example.com", Path: "/x"}, Few: [3]*uint16{nil, ptr(uint16(5)), nil},
		Deep: [][]map[int][]string{nil, {nil, {-1: {"deep"}}}}, Ratio: *big.NewRat(3, -9), Flag: true, Interval: time.Minute,
	}
}

func TestDerivedSignatures(t *testing.T) {
	for _, test := range []struct {
		got  func() (derivation, error)
		want string
	}{
		{derived[[]uint16], "[]uint16"},
		{derived[[][]string], "[][]string"},
		{derived[map[string]*int], "map[string]*int"},
		{derived[[2][]struct{}], "[2][]struct{}"},
		{derived[*time.Time], "*time.Time"},
		{derived[tree], "struct{Kids []^2}"},
		{derived[ring], "struct{Next *^2}"},
		{derived[layers], "map[string]^1"},
		{derived[lists], "[]^1"},
		{derived[first], "struct{Second *struct{First []^4; Both map[string]*^5}}"},
		{derived[[]tree], "[]struct{Kids ^2}"},
		{derived[netip.Addr], "binary(net/netip.Addr)"},
		{derived[[]netip.AddrPort], "[]binary(net/netip.AddrPort)"},
		{derived[big.Int], "gob(math/big.Int)"},
		{derived[level], "text(github.com/emd-go/emd.level)"},
		{derived[map[string]level], "map[string]text(github.com/emd-go/emd.level)"},
		{derived[stamped], "struct{Addr binary(net/netip.Addr); Name string}"},
		{derived[enveloped], "binary(github.com/emd-go/emd.enveloped)"},
		{derived[struct{ S shout }], "struct{S string}"},
		{derived[struct {
			_ []chan int
			A []bool
		}], "struct{A []bool}"},
	} {
		got, err := test.got()
		if assert.NoError(t, err, test.want) {
			assert.Equal(t, derivation{test.want, -1, false}, got)
		}
	}
}

// roundTrip encodes v, decodes it and compares. It returns the encoding.
func roundTrip[T any](t *testing.T, v T) []byte {
	t.Helper()
	c, err := CodecOf[T]()
	require.NoError(t, err)
	b, err := c.Append([]byte("before"), v)
	require.NoError(t, err)
	require.Equal(t, "before", string(b[:6]))
	b = b[6:]
	src := bytes.Clone(b)
	got, err := c.Decode(src)
	require.NoError(t, err)
	clear(src) // nothing of it may be kept
	require.Equal(t, v, got)
	again, err := c.Append(nil, got)
	require.NoError(t, err)
	require.Equal(t, b, again, "the encoding is not unique")
	for n := range b {
		_, err := c.Decode(b[:n])
		require.ErrorIs(t, err, ErrCorrupt, "cut to %d of %d bytes", n, len(b))
	}
	_, err = c.Decode(append(bytes.Clone(b), 0))
	require.ErrorIs(t, err, ErrCorrupt, "one byte more")
	return b
}

func TestDerivedRoundTrips(t *testing.T) {
	roundTrip(t, somebody())
	roundTrip(t, person{Born: time.Unix(0, 0).UTC()})
	roundTrip(t, tree{[]tree{{}, {[]tree{{[]tree{}}}}}})
	roundTrip(t, ring{&ring{&ring{}}})
	roundTrip(t, layers{"a": {"b": nil, "c": {}}, "": nil})
	roundTrip(t, lists{nil, {}, {nil, {}}})
	roundTrip(t, first{&second{First: []first{{}, {&second{}}}, Both: map[string]*first{"": nil, "x": {}}}})
	roundTrip(t, level{"high"})
	roundTrip(t, stamped{netip.MustParseAddr("1.2.3.4"), "name"})
	roundTrip(t, struct{ S shout }{"loud"})
	roundTrip(t, []struct{}{{}, {}})
	roundTrip(t, map[struct{}]struct{}{{}: {}})
	roundTrip(t, []*struct{}{{}, {}, nil}) // one address: not shared
	roundTrip(t, [][0]string{{}, {}})
	roundTrip(t, [2]map[bool][]complex64{{true: {1i}, false: nil}, nil})
	roundTrip(t, []base{{1, "a"}, {2, strings.Repeat("long", 100)}})
	roundTrip(t, []struct {
		A uint8
		B uint32 // padding before
	}{{1, 2}, {3, 4}})
	roundTrip(t, []struct {
		A uint32
		B uint8 // padding behind
	}{{1, 2}, {3, 4}})
	roundTrip(t, [][]bool{{true, false}, {}, nil})
	roundTrip(t, []time.Time{time.Unix(1, 2).UTC(), time.Unix(-1e9, 0).In(time.FixedZone("", 1800))})
	require.Equal(t, make([]byte, 16), roundTrip(t, time.Time{}), "what was never written is the zero time")
	roundTrip(t, (*string)(nil))
	roundTrip(t, ptr(ptr("twice")))
	roundTrip(t, url.URL{Scheme: "http", Host: strings.Repeat("h", 200)}) // a length of two bytes
	require.Equal(t, []byte{4, 1, 0, 2, 0, 3, 0}, roundTrip(t, []uint16{1, 2, 3}))
	require.Equal(t, []byte{3, 1, 'a', 1, 2, 'b', 'c', 0}, roundTrip(t, map[string]*struct{}{"bc": nil, "a": {}}))
}

// NaN is unequal to itself, so a map may have it many times as a key.
func TestDerivedNaN(t *testing.T) {
	c, err := CodecOf[map[float64]int]()
	require.NoError(t, err)
	b, err := c.Append(nil, map[float64]int{math.NaN(): 2, math.Copysign(0, -1): 1, math.NaN(): 3})
	require.NoError(t, err)
	m, err := c.Decode(b)
	require.NoError(t, err)
	require.Len(t, m, 3)
	again, err := c.Append(nil, m)
	require.NoError(t, err)
	require.Equal(t, b, again)
}

func TestDerivedRefusals(t *testing.T) {
	refused := func(v any, sentinel error, text string) {
		t.Helper()
		p := programOf(t, reflect.TypeOf(v))
		x := reflect.New(p.typ)
		x.Elem().Set(reflect.ValueOf(v))
		_, err := p.encode(nil, x.UnsafePointer(), &encoder{})
		require.ErrorIs(t, err, sentinel)
		require.ErrorContains(t, err, text)
	}
	n := ptr(5)
	refused([]*int{n, n}, ErrUnsupportedType, "a pointer occurs twice")
	many := make([]*int, 40)
	for i := range many {
		many[i] = ptr(i)
	}
	many[39] = many[20]
	refused(many, ErrUnsupportedType, "a pointer occurs twice")
	cycle := &ring{}
	cycle.Next = &ring{cycle}
	refused(*cycle, ErrUnsupportedType, "a pointer occurs twice")
	self := lists{nil, nil}
	self[1] = self
	refused(self, ErrUnsupportedType, "contains itself")
	both := lists{nil, nil} // would double at each level
	both[0], both[1] = both[:1], both
	refused(both, ErrUnsupportedType, "contains itself")
	round := layers{}
	round["x"] = layers{"y": round}
	refused(round, ErrUnsupportedType, "contains itself")
	long := &ring{}
	for range maxNesting + 1 {
		long = &ring{long}
	}
	refused(*long, ErrTooLarge, "nested")
}

func programOf(t testing.TB, typ reflect.Type) *program {
	d := deriver{planner: planner{root: typ}}
	p, _, err := d.derive()
	require.NoError(t, err)
	return p
}

// A typeMaker makes types at random.
type typeMaker struct{ r *rand.Rand }

var leafTypes = []reflect.Type{
	reflect.TypeFor[bool](), reflect.TypeFor[int](), reflect.TypeFor[int8](), reflect.TypeFor[uint16](), reflect.TypeFor[int32](), reflect.TypeFor[uint64](),
	reflect.TypeFor[float32](), reflect.TypeFor[float64](), reflect.TypeFor[complex128](), reflect.TypeFor[string](), reflect.TypeFor[string](),
	reflect.TypeFor[[]byte](), reflect.TypeFor[struct{}](), reflect.TypeFor[uintptr](), reflect.TypeFor[base](),
}

func (m typeMaker) make(depth int) reflect.Type {
	if depth == 0 || m.r.IntN(4) == 0 {
		return leafTypes[m.r.IntN(len(leafTypes))]
	}
	switch m.r.IntN(7) {
	case 0:
		return reflect.PointerTo(m.make(depth - 1))
	case 1:
		return reflect.ArrayOf(m.r.IntN(4), m.make(depth-1))
	case 2:
		for {
			if key := m.make(1); key.Comparable() && !hasPointers(key) {
				return reflect.MapOf(key, m.make(depth-1))
			}
		}
	case 3, 4:
		return reflect.SliceOf(m.make(depth - 1))
	}
	fields := make([]reflect.StructField, m.r.IntN(6))
	for i := range fields {
		fields[i] = reflect.StructField{Name: fmt.Sprintf("F%d", i), Type: m.make(depth - 1)}
	}
	return reflect.StructOf(fields)
}

func hasPointers(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer:
		return true
	case reflect.Array:
		return hasPointers(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if hasPointers(t.Field(i).Type) {
				return true
			}
		}
	}
	return false
}

// Random values of random types come back; damaged encodings give an error, or another
// value with an encoding of its own, but no panic.
func TestDerivedRandomTypes(t *testing.T) {
	for seed := range uint64(pick(*seedsFlag, 300, 100)) {
		r := rand.New(rand.NewPCG(seed+*firstFlag, 5))
		typ := typeMaker{r}.make(1 + r.IntN(4))
		p := programOf(t, typ)
		values := mathrand.New(mathrand.NewSource(int64(seed)))
		for range 10 {
			v, ok := quick.Value(typ, values)
			require.True(t, ok)
			if !checkRandom(t, p, v, r) {
				t.Fatalf("seed %d: type %v: value %#v", seed, typ, v)
			}
		}
	}
}

func checkRandom(t *testing.T, p *program, v reflect.Value, r *rand.Rand) bool {
	x := reflect.New(p.typ)
	x.Elem().Set(v)
	b, err := p.encode(nil, x.UnsafePointer(), &encoder{})
	if !assert.NoError(t, err) || !assert.GreaterOrEqual(t, len(b), p.least) {
		return false
	}
	y := reflect.New(p.typ)
	rest, err := p.decode(y.UnsafePointer(), b, &decoder{})
	if !assert.NoError(t, err) || !assert.Empty(t, rest) || !assert.True(t, reflect.DeepEqual(x.Interface(), y.Interface()), "differs") {
		return false
	}
	for range 20 {
		if len(b) == 0 {
			break
		}
		bad := bytes.Clone(b)
		for range 1 + r.IntN(3) {
			switch i := r.IntN(len(bad)); r.IntN(4) {
			case 0:
				bad[i] ^= 1 << r.IntN(8)
			case 1:
				bad[i] = 0xFF
			case 2:
				bad = append(bad[:i:i], bad[min(len(bad), i+1+r.IntN(4)):]...)
			case 3:
				bad = append(bad[:i:i], append(binary.AppendUvarint(nil, r.Uint64()), bad[i:]...)...)
			}
			if len(bad) == 0 {
				break
			}
		}
		z := reflect.New(p.typ)
		if _, err := p.decode(z.UnsafePointer(), bad, &decoder{}); err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
				return assert.NoError(t, err)
			}
			continue
		}
		if _, err := p.encode(nil, z.UnsafePointer(), &encoder{}); !assert.NoError(t, err) {
			return false
		}
	}
	return true
}

// Hostile lengths cost an error, not memory.
func TestDerivedHostile(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<62)
	for _, typ := range []reflect.Type{
		reflect.TypeFor[[]uint64](), reflect.TypeFor[[][]string](), reflect.TypeFor[[]string](), reflect.TypeFor[map[string]string](),
		reflect.TypeFor[map[uint64]struct{}](), reflect.TypeFor[map[struct{}]struct{}](), reflect.TypeFor[[]*int](), reflect.TypeFor[[]struct{}](),
		reflect.TypeFor[netip.Addr](), reflect.TypeFor[struct{ A, B string }](), reflect.TypeFor[[][4]string](), reflect.TypeFor[[]struct {
			_ [1 << 20]byte
			A []int8
		}](),
	} {
		p := programOf(t, typ)
		v := reflect.New(typ)
		for _, src := range [][]byte{huge, append(huge, make([]byte, 100)...), {0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0, 0}, {0x80, 0}, {0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01}} {
			_, err := p.decode(v.UnsafePointer(), src, &decoder{})
			require.ErrorIs(t, err, ErrCorrupt, "%v of %x", typ, src)
		}
	}
	// Nesting that would overflow a stack.
	for _, typ := range []reflect.Type{reflect.TypeFor[ring](), reflect.TypeFor[lists](), reflect.TypeFor[tree]()} {
		src := bytes.Repeat([]byte{2}, 1<<20)
		if typ == reflect.TypeFor[ring]() {
			src = bytes.Repeat([]byte{1}, 1<<20)
		}
		_, err := programOf(t, typ).decode(reflect.New(typ).UnsafePointer(), src, &decoder{})
		require.ErrorIs(t, err, ErrCorrupt)
		require.ErrorContains(t, err, "nested")
	}
}

// FuzzDerivedDecode decodes any bytes: an error, or a value that can be stored.
func FuzzDerivedDecode(f *testing.F) {
	c, err := CodecOf[person]()
	require.NoError(f, err)
	trees, err := CodecOf[map[string]*tree]()
	require.NoError(f, err)
	b, err := c.Append(nil, somebody())
	require.NoError(f, err)
	f.Add(b)
	b, err = trees.Append(nil, map[string]*tree{"a": {[]tree{{}, {[]tree{}}}}, "b": nil})
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, src []byte) {
		if v, err := c.Decode(src); err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
		} else {
			b, err := c.Append(nil, v)
			require.NoError(t, err)
			_, err = c.Decode(b)
			require.NoError(t, err)
		}
		if v, err := trees.Decode(src); err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
		} else {
			roundTrip(t, v)
		}
	})
}

// Equal keys have equal encodings, whatever == says of them.
func TestDerivedKeys(t *testing.T) {
	type place struct {
		Name string
		Lat  float64
		When time.Time
		Addr netip.Addr
	}
	d, err := OpenDict[place, string](filepath.Join(tempDir(t), "places.emd"), nil)
	require.NoError(t, err)
	when := time.Now()
	require.NoError(t, d.Set(place{"x", 0, when, netip.Addr{}}, "first"))
	zone := time.FixedZone("somewhere", 0)
	v, ok, err := d.Get(place{"x", math.Copysign(0, -1), when.Round(0).In(when.Location()), netip.Addr{}})
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "first", v)
	_, offset := when.Zone()
	_, ok, err = d.Get(place{"x", 0, when.In(zone), netip.Addr{}})
	require.NoError(t, err)
	require.Equal(t, offset == 0, ok, "another zone offset is another key")
	_, ok, err = d.Get(place{"x", 1, when, netip.Addr{}})
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, d.Close())
}

// Containers take derived types as they take others.
func TestDerivedInContainers(t *testing.T) {
	path := filepath.Join(tempDir(t), "people.emd")
	a, err := Open(path, nil)
	require.NoError(t, err)
	people, err := List[person](a, "people", nil)
	require.NoError(t, err)
	byName, err := Dict[string, map[string]*tree](a, "trees", nil)
	require.NoError(t, err)
	require.NoError(t, people.Append(somebody(), person{Born: time.Unix(0, 0).UTC()}))
	forest := map[string]*tree{"a": {[]tree{{}}}, "b": nil}
	require.NoError(t, byName.Set("forest", forest))
	require.NoError(t, a.Close())
	a, err = Open(path, nil)
	require.NoError(t, err)
	defer a.Close()
	_, err = List[base](a, "people", nil)
	require.ErrorIs(t, err, ErrTypeMismatch)
	people, err = List[person](a, "people", nil)
	require.NoError(t, err)
	got, err := people.Get(0)
	require.NoError(t, err)
	require.Equal(t, somebody(), got)
	byName, err = Dict[string, map[string]*tree](a, "trees", nil)
	require.NoError(t, err)
	v, ok, err := byName.Get("forest")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, forest, v)
	loop := &ring{}
	loop.Next = loop
	rings, err := List[*ring](a, "rings", nil)
	require.NoError(t, err)
	require.ErrorIs(t, rings.Append(&ring{}, loop), ErrUnsupportedType)
	// CodecOf given as the codec is no other codec.
	c, err := CodecOf[person]()
	require.NoError(t, err)
	_, err = List(a, "people", &ListOptions[person]{Codec: c})
	require.NoError(t, err)
	plain, err := CodecOf[uint64]()
	require.NoError(t, err)
	x, err := List[uint64](a, "numbers", nil)
	require.NoError(t, err)
	require.NoError(t, x.Append(1))
	y, err := List(a, "numbers", &ListOptions[uint64]{Codec: plain})
	require.NoError(t, err)
	one, err := y.Get(0)
	require.NoError(t, err)
	require.EqualValues(t, 1, one)
}

// record is what the benchmark moves: ten fields with strings and a slice.
type record10 struct {
	ID, Size, Flags uint64
	Name, Path      string
	Mode            uint32
	Score           float64
	Live            bool
	Refs            []uint64
	Note            string
}

func record10Of() record10 {
	return record10{1 << 40, 4096, 3, "main.handleRequest", "/usr/src/app/server/handlers.go", 0o644, 0.75, true, []uint64{1, 2, 3, 4, 5, 6, 7, 8}, "called from init"}
}

func (x *record10) appendByHand(dst []byte) []byte {
	le := binary.LittleEndian
	str := func(s string) { dst = append(binary.AppendUvarint(dst, uint64(len(s))), s...) }
	dst = le.AppendUint64(le.AppendUint64(le.AppendUint64(dst, x.ID), x.Size), x.Flags)
	str(x.Name)
	str(x.Path)
	dst = le.AppendUint64(le.AppendUint32(dst, x.Mode), math.Float64bits(x.Score))
	if x.Live {
		dst = append(dst, 1)
	} else {
		dst = append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(len(x.Refs)))
	for _, v := range x.Refs {
		dst = le.AppendUint64(dst, v)
	}
	str(x.Note)
	return dst
}

func (x *record10) decodeByHand(src []byte) error {
	le := binary.LittleEndian
	bad := false
	take := func(n uint64) []byte {
		if uint64(len(src)) < n {
			bad = true
			return make([]byte, 32)
		}
		b := src[:n]
		src = src[n:]
		return b
	}
	length := func() uint64 {
		n, w := binary.Uvarint(src)
		if w <= 0 || n > uint64(len(src)-w) {
			bad = true
			return 0
		}
		src = src[w:]
		return n
	}
	x.ID, x.Size, x.Flags = le.Uint64(take(8)), le.Uint64(take(8)), le.Uint64(take(8))
	x.Name = string(take(length()))
	x.Path = string(take(length()))
	x.Mode = le.Uint32(take(4))
	x.Score = math.Float64frombits(le.Uint64(take(8)))
	x.Live = take(1)[0] != 0
	n := length()
	refs := take(8 * n)
	x.Refs = make([]uint64, n)
	for i := range x.Refs {
		x.Refs[i] = le.Uint64(refs[8*i:])
	}
	x.Note = string(take(length()))
	if bad {
		return errShort
	}
	return nil
}

// BenchmarkDerived compares the derived codec of a struct with code written by hand for it, and with encoding/gob.
func BenchmarkDerived(b *testing.B) {
	v := record10Of()
	c, err := codecFor[record10](nil)
	require.NoError(b, err)
	enc, err := c.encode(nil, &v)
	require.NoError(b, err)
	hand := v.appendByHand(nil)
	var stream bytes.Buffer // gob sends the type once: not counted
	g := gob.NewEncoder(&stream)
	require.NoError(b, g.Encode(&v))
	b.Run("encode/impl=emd", func(b *testing.B) {
		b.ReportAllocs()
		var dst []byte
		for b.Loop() {
			dst, _ = c.encode(dst[:0], &v)
		}
	})
	b.Run("encode/impl=hand", func(b *testing.B) {
		b.ReportAllocs()
		var dst []byte
		for b.Loop() {
			dst = v.appendByHand(dst[:0])
		}
	})
	b.Run("encode/impl=gob", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			stream.Reset()
			isZeroErr(b, g.Encode(&v))
		}
	})
	b.Run("decode/impl=emd", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var x record10
			isZeroErr(b, c.decode(&x, enc))
		}
	})
	b.Run("decode/impl=hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var x record10
			isZeroErr(b, x.decodeByHand(hand))
		}
	})
	b.Run("decode/impl=gob", func(b *testing.B) {
		b.ReportAllocs()
		stream.Reset()
		g := gob.NewEncoder(&stream)
		isZeroErr(b, g.Encode(&v))
		head := bytes.Clone(stream.Bytes())
		stream.Reset()
		isZeroErr(b, g.Encode(&v))
		again := bytes.Clone(stream.Bytes())
		src := bytes.NewReader(head)
		r := gob.NewDecoder(src)
		var x record10
		isZeroErr(b, r.Decode(&x))
		for b.Loop() {
			src.Reset(again)
			var x record10
			isZeroErr(b, r.Decode(&x))
		}
	})
}
