package emd

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"math/big"
	"net/netip"
	"net/url"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Entries returns a loop over what the container called name holds: indexes
// (of type int) and elements of a list, keys and values of a dict. It needs no
// Go type, for it goes by the signatures in the file (see [Info]), so a tool
// can print the containers of any file.
//
// Values are bool, the numbers of Go (int64 and uint64 stand for int, uint and
// uintptr too), string, []byte, [time.Time]; []any for other slices and for
// arrays, [Record] for structs, [Map] for maps; a pointer gives what it points
// to; nil pointers, slices and maps are nil. Of types that write themselves,
// *[big.Int], *[big.Float], *[big.Rat], [netip.Addr], [netip.AddrPort],
// [netip.Prefix] and *[url.URL] come as such, others as the string or []byte
// that they wrote. What the codec of [JSON] wrote is a [json.RawMessage], that
// of [Flate] is decompressed, and what any other codec wrote is [Encoded]; an
// element that was never written is nil then. [AppendJSON] prints all of them.
//
// Everything is copied. The loop holds no lock and runs beside changes, its own
// body's among them, as [EMList.All] and [EMDict.All] do; the container counts
// as open from then on. It costs some hundred nanoseconds an element, and more
// for large ones.
//
// A fault ends the loop and is kept: see [Arena.View]. Faults are damage,
// [ErrNoContainer], and [ErrTooLarge] for a value that has far more parts than
// bytes, such as a slice of more than a million empty structs.
func (a *Arena) Entries(name string) iter.Seq2[any, any] {
	return func(yield func(k, v any) bool) {
		h := &handle{name: name}
		c, err := a.openUntyped(name)
		if err == nil {
			h = c.base()
			err = eachEntry(c, yield)
		}
		if err != nil {
			a.fault(h, "entries", 0, err)
		}
	}
}

// A Record is a value of a struct type: its fields in the order of their
// declaration. Its JSON is an object that keeps the order.
type Record []Field

// A Field of a [Record].
type Field struct {
	Name  string
	Value any
}

// A Map is a value of a map type, in the order of the file: that of the
// encoded keys. Its JSON is an object if all keys are strings, and else an
// array of arrays [key, value].
type Map []Pair

// A Pair of a [Map]. Its JSON is the array [key, value].
type Pair struct{ Key, Value any }

// Encoded is a value of a codec that [Arena.Entries] cannot read, as that
// wrote it. Its JSON is that of a []byte.
type Encoded []byte

// MarshalJSON implements [json.Marshaler], by [AppendJSON].
func (r Record) MarshalJSON() ([]byte, error) { return AppendJSON(nil, r) }

// MarshalJSON implements [json.Marshaler], by [AppendJSON].
func (m Map) MarshalJSON() ([]byte, error) { return AppendJSON(nil, m) }

// MarshalJSON implements [json.Marshaler], by [AppendJSON].
func (p Pair) MarshalJSON() ([]byte, error) { return AppendJSON(nil, p) }

// AppendJSON appends the JSON of a value of [Arena.Entries] to dst and returns
// the extended slice. Where JSON has no form of its own it is a string: for
// floats that are not finite, complex numbers "(1+2i)", and for
// numbers of package math/big whose decimal form would be very long, which come
// in hexadecimal. A []byte is in base64. For any other value it
// is what [json.Marshal] returns; only that can fail.
func AppendJSON(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...), nil
	case bool:
		return strconv.AppendBool(dst, v), nil
	case string:
		return appendText(dst, v), nil
	case float32:
		return appendFloat(dst, float64(v), v)
	case float64:
		return appendFloat(dst, v, v)
	case complex64:
		return appendText(dst, strconv.FormatComplex(complex128(v), 'g', -1, 64)), nil
	case complex128:
		return appendText(dst, strconv.FormatComplex(v, 'g', -1, 128)), nil
	case []byte:
		return appendBase64(dst, v), nil
	case Encoded:
		return appendBase64(dst, v), nil
	case time.Time:
		// MarshalJSON refuses what a hostile file may hold.
		return append(v.AppendFormat(append(dst, '"'), time.RFC3339Nano), '"'), nil
	case json.RawMessage:
		if len(v) == 0 {
			return append(dst, "null"...), nil
		}
		return append(dst, v...), nil
	case *big.Int:
		if v.BitLen() > maxDecimalBits {
			return fmt.Appendf(dst, `"%#x"`, v), nil
		}
		return v.Append(dst, 10), nil
	case *big.Float:
		if v.MinPrec() > maxDecimalBits || v.MantExp(nil) > maxDecimalBits || v.MantExp(nil) < -maxDecimalBits {
			return append(v.Append(append(dst, '"'), 'p', 0), '"'), nil
		}
		return append(v.Append(append(dst, '"'), 'g', -1), '"'), nil
	case *big.Rat:
		if v.Num().BitLen() > maxDecimalBits || v.Denom().BitLen() > maxDecimalBits {
			return fmt.Appendf(dst, `"%#x/%#x"`, v.Num(), v.Denom()), nil
		}
		return appendText(dst, v.RatString()), nil
	case *url.URL:
		return appendText(dst, v.String()), nil
	case []any:
		return appendArray(dst, v)
	case Record:
		return appendRecord(dst, v)
	case Map:
		return appendMap(dst, v)
	case Pair:
		return appendArray(dst, []any{v.Key, v.Value})
	}
	b, err := json.Marshal(v)
	return append(dst, b...), err
}

// maxDecimalBits bounds the numbers that are printed in decimal, for that
// takes more than linear time: a tenth of a second for this many bits.
const maxDecimalBits = 1 << 20

func appendArray(dst []byte, elems []any) (_ []byte, err error) {
	if elems == nil {
		return append(dst, "null"...), nil
	}
	dst = append(dst, '[')
	for i, e := range elems {
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = AppendJSON(dst, e); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

func appendRecord(dst []byte, r Record) (_ []byte, err error) {
	dst = append(dst, '{')
	for i, f := range r {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendText(dst, f.Name), ':')
		if dst, err = AppendJSON(dst, f.Value); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

func appendMap(dst []byte, m Map) (_ []byte, err error) {
	if m == nil {
		return append(dst, "null"...), nil
	}
	object := true
	for _, p := range m {
		if _, ok := p.Key.(string); !ok {
			object = false
			break
		}
	}
	if !object {
		pairs := make([]any, len(m))
		for i, p := range m {
			pairs[i] = p
		}
		return appendArray(dst, pairs)
	}
	fields := make(Record, len(m))
	for i, p := range m {
		fields[i] = Field{p.Key.(string), p.Value}
	}
	return appendRecord(dst, fields)
}

// appendFloat appends v, which is f, as package json writes it.
func appendFloat(dst []byte, f float64, v any) ([]byte, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return appendText(dst, strconv.FormatFloat(f, 'g', -1, 64)), nil
	}
	b, err := json.Marshal(v)
	return append(dst, b...), err
}

// appendText appends s as a JSON string, without the escapes for HTML.
func appendText(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7F || c == '"' || c == '\\' {
			b := bytes.NewBuffer(dst)
			e := json.NewEncoder(b)
			e.SetEscapeHTML(false)
			_ = e.Encode(s)              // of a string it cannot fail
			return b.Bytes()[:b.Len()-1] // without its newline
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}

func appendBase64(dst, b []byte) []byte {
	return append(base64.StdEncoding.AppendEncode(append(dst, '"'), b), '"')
}

// openUntyped returns the container of a name, whatever its types, and opens it if it is
// not. Being registered, it is told of changes, as those of typed handles are.
func (a *Arena) openUntyped(name string) (container, error) {
	a.catMu.Lock()
	defer a.catMu.Unlock()
	if a.closed() {
		return nil, ErrClosed
	}
	if strings.HasPrefix(name, hiddenPrefix) {
		return nil, ErrNoContainer
	}
	if c := a.opened(name); c != nil {
		if c.base().absent.Load() {
			return nil, ErrNoContainer
		}
		return c, nil
	}
	b, ok, err := a.catalog.getBytes([]byte(name))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrNoContainer
	}
	e, err := decodeEntry(b)
	if err != nil {
		return nil, err
	}
	c, err := a.byEntry(name, &e)
	if err != nil {
		return nil, err
	}
	a.register(c)
	return c, nil
}

// eachEntry yields the elements or entries of a container until yield returns
// false.
func eachEntry(c container, yield func(k, v any) bool) error {
	val := dynCodecFor(c.base().value)
	if l, ok := c.(*list); ok {
		return eachElement(l, &val, yield)
	}
	d, key := c.(*dict), dynCodecFor(c.base().key)
	cur := cursor{d: d, last: ^uint64(0)}
	for cur.next() {
		b, ok, err := d.farValue(&cur)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		k, err := key.decode(cur.key)
		if err != nil {
			return fmt.Errorf("key %s: %w", cut(strconv.QuoteToASCII(string(cur.key)), 60), err)
		}
		v, err := val.decode(b)
		if err != nil {
			return fmt.Errorf("value of key %s: %w", cut(strconv.QuoteToASCII(string(cur.key)), 60), err)
		}
		if !yield(k, v) {
			return nil
		}
	}
	return cur.err
}

// farValue returns the value of a cursor's entry; ok is false if it has gone
// meanwhile.
func (d *dict) farValue(c *cursor) (val []byte, ok bool, err error) {
	if !c.valFar {
		return c.val, true, nil
	}
	defer catchFault(&err, debug.SetPanicOnFault(true))
	return d.getBytes(c.key)
}

func eachElement(l *list, codec *dynCodec, yield func(k, v any) bool) error {
	n, err := l.count()
	if err != nil {
		return err
	}
	var buf []byte
	for i := range n {
		el, err := l.lookupOnDisk(buf[:0], i)
		if err != nil {
			return err
		}
		if !el.ok {
			return nil // the list is shorter now
		}
		buf = el.b
		var v any
		if el.zero {
			v, err = codec.zero()
		} else {
			v, err = codec.decode(el.b)
		}
		if err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
		if !yield(i, v) {
			return nil
		}
	}
	return nil
}

// lookupOnDisk is lookup that returns the faults of the device.
func (l *list) lookupOnDisk(dst []byte, i int) (el element, err error) {
	defer catchFault(&err, debug.SetPanicOnFault(true))
	return l.lookup(dst, i)
}

// A dynCodec decodes what a signature describes to values of type any.
type dynCodec struct {
	flates int      // how many times it is compressed
	typ    *sigType // nil: what a codec wrote
	json   bool     // namely that of JSON
}

// maxFlates is how many times an encoding may be compressed: files are known
// that decompress to themselves.
const maxFlates = 4

func dynCodecFor(sig string) dynCodec {
	c := dynCodec{}
	inner := sig
	for c.flates < maxFlates && strings.HasPrefix(inner, "flate(") && strings.HasSuffix(inner, ")") {
		inner = inner[len("flate(") : len(inner)-1]
		c.flates++
	}
	c.typ, _ = parseSignature(inner)
	c.json = inner == "json"
	if c.typ == nil && strings.HasPrefix(inner, "flate(") {
		c.flates = 0
	}
	return c
}

// decode returns the value whose encoding is src, and keeps nothing of src.
func (c *dynCodec) decode(src []byte) (any, error) {
	for range c.flates {
		var err error
		if src, err = inflate(nil, src); err != nil {
			return nil, err
		}
	}
	switch {
	case c.typ != nil:
		return decodeAny(c.typ, src)
	case !c.json:
		return Encoded(append([]byte{}, src...)), nil
	case !json.Valid(src):
		return nil, corrupt("%d bytes are no JSON", len(src))
	}
	return json.RawMessage(bytes.Clone(src)), nil
}

// zero returns the value of an element that was never written.
func (c *dynCodec) zero() (any, error) {
	if c.typ == nil {
		return nil, nil
	}
	d := dynDecoder{zero: true, room: spareValues}
	return d.value(c.typ)
}

// uvarint returns the minimal uvarint that b begins with, and its size; 0 if
// there is none.
func uvarint(b []byte) (n uint64, size int) {
	n, size = binary.Uvarint(b)
	if size <= 0 || size > 1 && b[size-1] == 0 {
		return 0, 0
	}
	return n, size
}

// decodeAny returns the value of type t whose encoding, as a whole key, value
// or element, is src. Two types have a form of their own there: a string is its
// bytes alone, a []byte its bytes and a zero byte, or nothing if nil.
func decodeAny(t *sigType, src []byte) (any, error) {
	switch {
	case t.kind == reflect.String:
		return string(src), nil
	case t.isBytes():
		b, err := decodeBytes(src)
		if b == nil {
			return nil, err
		}
		return b, nil
	}
	d := dynDecoder{src: src, room: spareValues + partsPerByte*uint64(len(src))}
	v, err := d.value(t)
	if err == nil && len(d.src) != 0 {
		err = corrupt("%d bytes more than a value of type %s", len(d.src), t.brief())
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// A dynDecoder decodes one value. An encoding is input: no length in it is
// believed, and values that take no bytes, or wrap others, are counted.
type dynDecoder struct {
	src   []byte // what is left
	zero  bool   // src is as many zeros as needed: the value was never written
	depth int    // pointers, slices, maps, arrays and structs around the part at hand
	nest  int    // pointers, slices and maps among them
	room  uint64 // parts that may still be made, see spend
}

const (
	// maxValueNesting is how many pointers, slices and maps may lie within each
	// other: the deriver does not count a slice whose elements have none.
	maxValueNesting = maxNesting + 1
	// maxValueDepth counts arrays and structs too. It bounds the stack.
	maxValueDepth = 100_000
	// A value has at most spareValues parts, and partsPerByte for each byte:
	// more than one only where a struct or array of one part wraps another.
	spareValues  = 1 << 20
	partsPerByte = 16
)

func (d *dynDecoder) value(t *sigType) (any, error) {
	switch t.kind {
	case reflect.String:
		b, err := d.bytes()
		return string(b), err
	case sigOpaque:
		b, err := d.bytes()
		if err != nil {
			return nil, err
		}
		v, err := t.opaque(b)
		if d.zero {
			err = nil // not all types take their zero value from no bytes, but they have it
		}
		return v, err
	case sigTime:
		return d.time()
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Array, reflect.Struct:
		if d.depth++; d.depth > maxValueDepth {
			return nil, fmt.Errorf("%w: a value of more than %d levels", ErrTooLarge, maxValueDepth)
		}
		v, err := d.compound(t)
		d.depth--
		return v, err
	}
	return d.scalar(t.kind)
}

func (d *dynDecoder) compound(t *sigType) (any, error) {
	switch t.kind {
	case reflect.Pointer:
		b, err := d.take(1)
		switch {
		case err != nil:
			return nil, err
		case b[0] > 1:
			return nil, corrupt("a pointer is %#02x", b[0])
		case b[0] == 0:
			return nil, nil
		}
		if err := d.enter(); err != nil {
			return nil, err
		}
		v, err := d.value(t.elem)
		d.nest--
		return v, err
	case reflect.Slice:
		return d.slice(t)
	case reflect.Map:
		return d.mapping(t)
	case reflect.Array:
		if err := d.spend(t.min, t.n); err != nil {
			return nil, err
		}
		return d.elems(t.elem, int(t.n))
	default:
		if err := d.spend(t.min, uint64(len(t.fields))); err != nil {
			return nil, err
		}
		r := make(Record, len(t.fields))
		for i, f := range t.fields {
			r[i].Name = f.name
			var err error
			if r[i].Value, err = d.value(f.typ); err != nil {
				return nil, err
			}
		}
		return r, nil
	}
}

func (d *dynDecoder) slice(t *sigType) (any, error) {
	if t.isBytes() {
		n, err := d.count(1, 0)
		if n < 0 || err != nil {
			return nil, err
		}
		b, err := d.take(uint64(n))
		return append([]byte{}, b...), err
	}
	n, err := d.count(t.elem.min, 1)
	if n < 0 || err != nil {
		return nil, err
	}
	if err := d.enter(); err != nil {
		return nil, err
	}
	v, err := d.elems(t.elem, n)
	d.nest--
	return v, err
}

func (d *dynDecoder) mapping(t *sigType) (any, error) {
	least := t.key.min + t.elem.min
	n, err := d.count(least, 2)
	if n < 0 || err != nil {
		return nil, err
	}
	if least == 0 && n > 1 {
		return nil, corrupt("a map of %d keys without bytes", n)
	}
	if err := d.enter(); err != nil {
		return nil, err
	}
	m := make(Map, n)
	var last []byte
	for i := range m {
		key := d.src
		if m[i].Key, err = d.value(t.key); err != nil {
			return nil, err
		}
		key = key[:len(key)-len(d.src)]
		if bytes.Compare(last, key) > 0 {
			return nil, corrupt("the keys of a map are not in order")
		}
		last = key
		if m[i].Value, err = d.value(t.elem); err != nil {
			return nil, err
		}
	}
	d.nest--
	return m, nil
}

func (d *dynDecoder) enter() error {
	if d.nest++; d.nest > maxValueNesting {
		return corrupt("nested more than %d times", maxNesting)
	}
	return nil
}

func (d *dynDecoder) elems(t *sigType, n int) (any, error) {
	elems := make([]any, n)
	for i := range elems {
		var err error
		if elems[i], err = d.value(t); err != nil {
			return nil, err
		}
	}
	return elems, nil
}

// count takes the length of a slice or map whose elements have at least min
// bytes, and spends parts for each; -1 is that of a nil one.
func (d *dynDecoder) count(min, parts uint64) (int, error) {
	n, err := d.uvarint()
	if n == 0 || err != nil {
		return -1, err
	}
	if n--; n > math.MaxInt32 && min == 0 {
		return 0, corrupt("%d elements without bytes", n)
	}
	if min != 0 && n > uint64(len(d.src))/min {
		return 0, corrupt("%d elements in %d bytes", n, len(d.src))
	}
	return int(n), d.spend(n*min, n*parts)
}

// spend says whether a value of at least size bytes may have n more parts.
// Whoever makes room for parts in memory asks first.
func (d *dynDecoder) spend(size, n uint64) error {
	if size > uint64(len(d.src)) && !d.zero {
		return corrupt("%d bytes where at least %d are needed", len(d.src), size)
	}
	if n > d.room || n > math.MaxInt32 {
		return fmt.Errorf("%w: a value that has far more parts than bytes", ErrTooLarge)
	}
	d.room -= n
	return nil
}

// take returns the next n bytes.
func (d *dynDecoder) take(n uint64) ([]byte, error) {
	if d.zero {
		return make([]byte, n), nil
	}
	if n > uint64(len(d.src)) {
		return nil, corrupt("%d bytes where %d are needed", len(d.src), n)
	}
	b := d.src[:n:n]
	d.src = d.src[n:]
	return b, nil
}

func (d *dynDecoder) uvarint() (uint64, error) {
	if d.zero {
		return 0, nil
	}
	n, size := uvarint(d.src)
	if size == 0 {
		return 0, corrupt("no length where one is needed")
	}
	d.src = d.src[size:]
	return n, nil
}

// bytes takes a length and so many bytes.
func (d *dynDecoder) bytes() ([]byte, error) {
	n, err := d.uvarint()
	if err != nil {
		return nil, err
	}
	return d.take(n)
}

func (d *dynDecoder) time() (any, error) {
	if d.zero {
		return time.Time{}, nil
	}
	b, err := d.take(timeSize)
	if err != nil {
		return nil, err
	}
	return loadTime(b)
}

func (d *dynDecoder) scalar(kind reflect.Kind) (any, error) {
	b, err := d.take(scalarSize(kind))
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	switch kind {
	case reflect.Bool:
		if b[0] > 1 {
			return nil, corrupt("a bool is %#02x", b[0])
		}
		return b[0] == 1, nil
	case reflect.Int8:
		return int8(b[0]), nil
	case reflect.Int16:
		return int16(le.Uint16(b)), nil
	case reflect.Int32:
		return int32(le.Uint32(b)), nil
	case reflect.Int, reflect.Int64:
		return int64(le.Uint64(b)), nil
	case reflect.Uint8:
		return b[0], nil
	case reflect.Uint16:
		return le.Uint16(b), nil
	case reflect.Uint32:
		return le.Uint32(b), nil
	case reflect.Uint, reflect.Uint64, reflect.Uintptr:
		return le.Uint64(b), nil
	case reflect.Float32:
		return math.Float32frombits(le.Uint32(b)), nil
	case reflect.Float64:
		return math.Float64frombits(le.Uint64(b)), nil
	case reflect.Complex64:
		return complex(math.Float32frombits(le.Uint32(b)), math.Float32frombits(le.Uint32(b[4:]))), nil
	case reflect.Complex128:
		return complex(math.Float64frombits(le.Uint64(b)), math.Float64frombits(le.Uint64(b[8:]))), nil
	}
	panic(fmt.Sprintf("emd: a scalar of kind %v", kind))
}

// opaque returns what a type that writes itself has written: as that type, if
// it is one of Go's own, else as it is.
func (t *sigType) opaque(b []byte) (v any, err error) {
	switch t.text {
	case "gob(math/big.Int)":
		x := new(big.Int)
		v, err = x, x.GobDecode(b)
	case "gob(math/big.Float)":
		x := new(big.Float)
		v, err = x, x.GobDecode(b)
	case "gob(math/big.Rat)":
		x := new(big.Rat)
		v, err = x, x.GobDecode(b)
	case "binary(net/netip.Addr)":
		x := netip.Addr{}
		err = x.UnmarshalBinary(b)
		v = x
	case "binary(net/netip.AddrPort)":
		x := netip.AddrPort{}
		err = x.UnmarshalBinary(b)
		v = x
	case "binary(net/netip.Prefix)":
		x := netip.Prefix{}
		err = x.UnmarshalBinary(b)
		v = x
	case "binary(net/url.URL)":
		x := new(url.URL)
		v, err = x, x.UnmarshalBinary(b)
	default:
		if strings.HasPrefix(t.text, "text(") {
			return string(b), nil
		}
		return append([]byte{}, b...), nil
	}
	if err != nil {
		err = corrupt("%d bytes are no %s: %v", len(b), t.path, err)
	}
	return v, err
}
