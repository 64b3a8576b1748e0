package emd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"
)

// A Codec turns values of one type into bytes and back, for types that emd
// does not store by itself, or to store them in another form. It is given in
// [ListOptions] and [DictOptions] each time the container is opened.
//
// Its methods are called from many goroutines at once, and never while emd
// holds a lock. An error that they return fails the operation and leaves the
// container as it was.
//
// The codec of a dict's keys must be deterministic, in all processes and for
// as long as the file lives: keys are equal when their encodings are, whatever
// == says about them.
type Codec[T any] interface {
	// Name names the encoding. It is kept in the file as the type's signature,
	// and a container opens only with a codec of the same name: change it with
	// every change of the encoding ("example.com/geo.Point v2"). It must not be
	// empty, nor read like a Go type, for such are the signatures of types
	// stored without a codec.
	Name() string

	// Append appends the encoding of v, which may be empty, to dst and returns
	// the extended slice. It must neither keep dst nor change what is in it.
	Append(dst []byte, v T) ([]byte, error)

	// Decode returns the value whose encoding is src. src may be memory of the
	// file: Decode must not change it, and must not keep it, nor return a value
	// that refers to it. Bytes that Append cannot have written should give an
	// error, never a panic: they come from a damaged file.
	Decode(src []byte) (T, error)
}

// A typeCodec is how the values of T are written in a file: by a codec of the
// user's, or in one of four forms derived from T.
//
// A plain T (bool, numbers, and arrays and structs of these) is written field
// after field without padding, at fixed size and little-endian; int, uint and
// uintptr as 64 bits, a bool as 0 or 1, a complex number as two floats. Blank
// fields are left out: decoding leaves them as they are.
//
// A string is written as its bytes; a []byte as its bytes and a zero byte, so
// that it differs from the nil one, which is written as no bytes at all.
//
// Every other type made of data is written by a [program].
type typeCodec[T any] struct {
	// sig is the signature: the name of the user's codec, or the canonical text
	// of the type, with the kinds of named types in place of their names and
	// without blank fields: struct{Addr uint64; Size [4]uint32}.
	sig string

	size int // bytes in the file; -1 where it depends on the value

	// raw tells that memory and file are alike: the bytes of a T, as they lie
	// in memory, are its encoding, and any size bytes are the memory of a T.
	// Never on a big-endian machine.
	raw bool

	form  codecForm
	steps []step    // of the plain form
	prog  *program  // of the varied form
	spare sync.Pool // of the varied form: *T
	user  Codec[T]  // of the user form
}

// memory returns the encoding of v where that is what lies in memory.
func (c *typeCodec[T]) memory(v *T) (b []byte, is bool) {
	switch {
	case c.raw:
		return memoryOf(v), true
	case c.form == stringForm:
		s := *asString(v)
		return unsafe.Slice(unsafe.StringData(s), len(s)), true
	}
	return nil, false
}

// inMemory tells whether memory says yes.
func (c *typeCodec[T]) inMemory() bool { return c.raw || c.form == stringForm }

// copied tells whether a value is made by copying its encoding: whether it is a
// type for copy and keep.
func (c *typeCodec[T]) copied() bool { return c.inMemory() || c.form == bytesForm }

// copy is decode from memory that may change meanwhile. It says no where decode
// has an error, and v does not escape.
func (c *typeCodec[T]) copy(v *T, src []byte) bool {
	switch {
	case c.raw:
		return len(src) == c.size && copy(memoryOf(v), src) == c.size
	case c.form == stringForm:
		*asString(v) = string(src)
		return true
	default:
		b, err := decodeBytes(src)
		*asBytes(v) = b
		return err == nil
	}
}

// keep is copy where the value takes over src, which is nobody else's. It says
// no where that cannot be.
func (c *typeCodec[T]) keep(v *T, src []byte) bool {
	switch c.form {
	case stringForm:
		*asString(v) = unsafe.String(unsafe.SliceData(src), len(src))
		return true
	case bytesForm:
		n := len(src) - 1
		if n < 0 || src[n] != 0 {
			return false
		}
		*asBytes(v) = src[:n:n]
		return true
	}
	return false
}

// A codecForm is one of the ways in which a typeCodec writes a value.
type codecForm uint8

const (
	plainForm  codecForm = iota
	stringForm           // T is of kind string
	bytesForm            // T is a slice of bytes
	variedForm
	userForm
)

// maxPlainSize is how many bytes a plain value may have in the file. It also
// keeps the arithmetic with sizes and offsets inside 32 bits.
const maxPlainSize = 1 << 30

// codecFor returns the codec for elements and values of type T: user, if it is
// not nil, else the one that follows from the type. It costs some reflection,
// once. A type without a codec is ErrUnsupportedType, naming the field that is
// in the way; a plain one of more than 1 GiB is ErrTooLarge.
func codecFor[T any](user Codec[T]) (*typeCodec[T], error) {
	return newTypeCodec(user, planner{})
}

// keyCodecFor is codecFor for keys, which are equal when their encodings are.
// Floats in derived encodings are therefore made unique: -0 is stored as +0 and
// every NaN as one and the same, so that all NaNs are one key.
func keyCodecFor[K any](user Codec[K]) (*typeCodec[K], error) {
	c, err := newTypeCodec(user, planner{key: true})
	if err == nil && c.form == bytesForm {
		return nil, fmt.Errorf("%w: %v: a key must be comparable", ErrUnsupportedType, reflect.TypeFor[K]())
	}
	return c, err
}

func newTypeCodec[T any](user Codec[T], p planner) (*typeCodec[T], error) {
	t := reflect.TypeFor[T]()
	if derived, ok := user.(derivedCodec[T]); ok && derived.c.form != userForm {
		user = nil // what is chosen without it; that of a key may differ
	}
	switch {
	case user != nil:
		name := user.Name()
		if name == "" {
			return nil, fmt.Errorf("%w: the codec of %v has an empty name", ErrUnsupportedType, t)
		}
		return &typeCodec[T]{sig: name, size: -1, form: userForm, user: user}, nil
	case t.Kind() == reflect.String:
		return &typeCodec[T]{sig: "string", size: -1, form: stringForm}, nil
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return &typeCodec[T]{sig: "[]uint8", size: -1, form: bytesForm}, nil
	}
	p.root = t
	pl, err := p.plan(t, "")
	if err == errNotPlain {
		d := deriver{planner: p}
		prog, sig, err := d.derive()
		if err != nil {
			return nil, err
		}
		return &typeCodec[T]{sig: sig, size: -1, form: variedForm, prog: prog}, nil
	}
	if err != nil {
		return nil, err
	}
	return &typeCodec[T]{sig: pl.sig, size: pl.size, raw: pl.raw(), form: plainForm, steps: pl.steps}, nil
}

// CodecOf returns the codec that emd derives from T: what containers use that
// are opened without one. It serves to wrap it ([Flate], [Sealed]), or to
// encode values for other purposes. A type that cannot be stored is [ErrUnsupportedType].
func CodecOf[T any]() (Codec[T], error) {
	c, err := codecFor[T](nil)
	if err != nil {
		return nil, err
	}
	return derivedCodec[T]{c}, nil
}

// A derivedCodec is a typeCodec as others see it.
type derivedCodec[T any] struct{ c *typeCodec[T] }

func (d derivedCodec[T]) Name() string                           { return d.c.sig }
func (d derivedCodec[T]) Append(dst []byte, v T) ([]byte, error) { return d.c.encode(dst, &v) }

func (d derivedCodec[T]) Decode(src []byte) (v T, err error) {
	err = d.c.decode(&v, src)
	return v, err
}

// encode appends the encoding of v to dst. Errors are the user codec's.
//
// encode and decode hand their slices to codecs of the user, so a buffer
// on the caller's stack moves to the heap. With store and load it does not.
func (c *typeCodec[T]) encode(dst []byte, v *T) ([]byte, error) {
	switch c.form {
	case plainForm:
		n := len(dst)
		dst = slices.Grow(dst, c.size)[:n+c.size]
		c.store(dst[n:], v)
		return dst, nil
	case stringForm:
		return append(dst, *asString(v)...), nil
	case bytesForm:
		b := *asBytes(v)
		if b == nil {
			return dst, nil
		}
		return append(append(dst, b...), 0), nil
	case variedForm:
		if c.prog.quiet {
			return c.prog.encode(dst, noescape(unsafe.Pointer(v)), &encoder{start: len(dst)})
		}
		x := c.borrow()
		*x = *v
		dst, err := c.prog.encode(dst, unsafe.Pointer(x), &encoder{start: len(dst)})
		c.giveBack(x)
		return dst, err
	default:
		dst, err := c.user.Append(dst, *v)
		if err != nil {
			return nil, fmt.Errorf("codec %s: %w", c.sig, err)
		}
		return dst, nil
	}
}

// decode sets *v to the value whose encoding is src, and keeps nothing of src.
// Bytes that are no encoding are ErrCorrupt, in derived codecs; other errors
// are the user codec's, and ErrTooLarge on a 32-bit machine for an int that
// does not fit. After an error *v is unspecified.
func (c *typeCodec[T]) decode(v *T, src []byte) error {
	switch c.form {
	case plainForm:
		if len(src) != c.size {
			return corrupt("%d bytes for a value of type %s, not %d", len(src), c.sig, c.size)
		}
		return c.load(v, src)
	case stringForm:
		*asString(v) = string(src)
		return nil
	case bytesForm:
		b, err := decodeBytes(src)
		*asBytes(v) = b
		return err
	case variedForm:
		return c.decodeVaried(v, src)
	default:
		value, err := c.user.Decode(src[:len(src):len(src)])
		if err != nil {
			return fmt.Errorf("codec %s: %w", c.sig, err)
		}
		*v = value
		return nil
	}
}

func (c *typeCodec[T]) decodeVaried(v *T, src []byte) (err error) {
	var rest []byte
	if c.prog.quiet {
		var zero T
		*v = zero
		rest, err = c.prog.decode(noescape(unsafe.Pointer(v)), src, &decoder{})
	} else {
		x := c.borrow()
		rest, err = c.prog.decode(unsafe.Pointer(x), src, &decoder{})
		*v = *x
		c.giveBack(x)
	}
	if err == nil && len(rest) != 0 {
		err = corrupt("%d bytes behind a value of type %s", len(rest), c.sig)
	}
	return err
}

// noescape returns p, but the compiler does not know that: a value that a quiet
// program works on may stay on the stack.
//
// While p is in x alone, the garbage collector does not see it. That is no time
// at all, except under -asan: there x moves to the heap, which may take long.
func noescape(p unsafe.Pointer) unsafe.Pointer {
	x := uintptr(p)
	q := *(*unsafe.Pointer)(unsafe.Pointer(&x))
	runtime.KeepAlive(p)
	return q
}

// borrow returns a zero T on the heap. Programs hand what they work on to
// methods of its parts, so the caller's own value would have to move there
// each time, also those of plain types.
func (c *typeCodec[T]) borrow() *T {
	if x, ok := c.spare.Get().(*T); ok {
		return x
	}
	return new(T)
}

func (c *typeCodec[T]) giveBack(x *T) {
	var zero T
	*x = zero
	c.spare.Put(x)
}

// store writes the encoding of v, of a plain type, to the first size bytes of
// dst. Neither dst nor v escapes.
func (c *typeCodec[T]) store(dst []byte, v *T) {
	if c.raw {
		// The size of the memory, not c.size, though they are equal: it is a
		// constant to the compiler, which turns the copy into moves.
		copy(dst[:unsafe.Sizeof(*v)], memoryOf(v))
		return
	}
	storeSteps(dst[:c.size], unsafe.Pointer(v), c.steps)
}

// load sets *v, of a plain type, from the first size bytes of src. Its errors
// are those of decode. Neither src nor v escapes.
func (c *typeCodec[T]) load(v *T, src []byte) error {
	if c.raw {
		copy(memoryOf(v), src[:unsafe.Sizeof(*v)])
		return nil
	}
	return loadSteps(unsafe.Pointer(v), src[:c.size], c.steps)
}

// decodeBytes returns a copy of the []byte whose encoding is src.
func decodeBytes(src []byte) ([]byte, error) {
	if len(src) == 0 {
		return nil, nil
	}
	n := len(src) - 1
	if src[n] != 0 {
		return nil, corrupt("a byte slice ends in %#02x", src[n])
	}
	b := make([]byte, n)
	copy(b, src)
	return b, nil
}

// A step moves n units between a plain value in memory and its encoding. The
// steps of a type are its program, compiled once, so that a value is encoded
// without reflection. Units follow each other without gaps, at both ends.
type step struct {
	op       stepOp
	n        int
	mem      int    // bytes from the start of the value to the first unit
	file     int    // bytes from the start of the encoding to it
	memUnit  int    // bytes of a unit in memory
	fileUnit int    // and in the file
	body     []step // for opRepeat: what one unit consists of
}

// A stepOp is what a step does with each unit.
type stepOp uint8

const (
	opCopy    stepOp = iota // a byte, as it is
	opWord16                // a little-endian number of 2 bytes
	opWord32                // of 4 bytes
	opWord64                // of 8 bytes
	opBool                  // a byte that is 0 or 1
	opInt32                 // an int of a 32-bit machine, 8 bytes in the file
	opUint32                // its uint or uintptr
	opFloat32               // a float in a key
	opFloat64               // the same of 8 bytes
	opTime                  // a time.Time
	opRepeat                // an element of an array
)

// stepUnits has the bytes of a unit in memory and in the file, except for opRepeat.
var stepUnits = [...]struct{ mem, file int }{
	opCopy: {1, 1}, opWord16: {2, 2}, opWord32: {4, 4}, opWord64: {8, 8}, opBool: {1, 1},
	opInt32: {4, 8}, opUint32: {4, 8}, opFloat32: {4, 4}, opFloat64: {8, 8}, opTime: {int(unsafe.Sizeof(time.Time{})), timeSize},
}

// storeSteps encodes the value at v to dst. The steps were compiled for the
// type that v points to; dst is as long as its encoding.
func storeSteps(dst []byte, v unsafe.Pointer, steps []step) {
	for i := range steps {
		s := &steps[i]
		mem, file := unsafe.Add(v, s.mem), dst[s.file:]
		switch s.op {
		case opCopy, opBool:
			switch s.n { // the commonest without a call
			case 8:
				*(*[8]byte)(file) = *(*[8]byte)(mem)
			case 4:
				*(*[4]byte)(file) = *(*[4]byte)(mem)
			case 1:
				file[0] = *(*byte)(mem)
			default:
				copy(file, unitsAt[byte](mem, s.n))
			}
		case opWord16:
			for i, w := range unitsAt[uint16](mem, s.n) {
				binary.LittleEndian.PutUint16(file[2*i:], w)
			}
		case opWord32:
			for i, w := range unitsAt[uint32](mem, s.n) {
				binary.LittleEndian.PutUint32(file[4*i:], w)
			}
		case opWord64:
			for i, w := range unitsAt[uint64](mem, s.n) {
				binary.LittleEndian.PutUint64(file[8*i:], w)
			}
		case opInt32:
			for i, x := range unitsAt[int32](mem, s.n) {
				binary.LittleEndian.PutUint64(file[8*i:], uint64(x))
			}
		case opUint32:
			for i, x := range unitsAt[uint32](mem, s.n) {
				binary.LittleEndian.PutUint64(file[8*i:], uint64(x))
			}
		case opFloat32:
			for i, x := range unitsAt[float32](mem, s.n) {
				binary.LittleEndian.PutUint32(file[4*i:], keyBits32(x))
			}
		case opFloat64:
			for i, x := range unitsAt[float64](mem, s.n) {
				binary.LittleEndian.PutUint64(file[8*i:], keyBits64(x))
			}
		case opTime:
			for i := range s.n {
				storeTime(file[i*timeSize:], *(*time.Time)(unsafe.Add(mem, i*s.memUnit)))
			}
		case opRepeat:
			for i := range s.n {
				storeSteps(file[i*s.fileUnit:], unsafe.Add(mem, i*s.memUnit), s.body)
			}
		}
	}
}

// loadSteps decodes src to the value at v. The steps were compiled for the type
// that v points to; src is as long as its encoding.
func loadSteps(v unsafe.Pointer, src []byte, steps []step) error {
	for i := range steps {
		s := &steps[i]
		mem, file := unsafe.Add(v, s.mem), src[s.file:]
		switch s.op {
		case opCopy:
			switch s.n {
			case 8:
				*(*[8]byte)(mem) = *(*[8]byte)(file)
			case 4:
				*(*[4]byte)(mem) = *(*[4]byte)(file)
			default:
				copy(unitsAt[byte](mem, s.n), file)
			}
		case opBool:
			for _, b := range file[:s.n] {
				if b > 1 {
					return corrupt("a bool is %#02x", b)
				}
			}
			copy(unitsAt[byte](mem, s.n), file)
		case opWord16:
			words := unitsAt[uint16](mem, s.n)
			for i := range words {
				words[i] = binary.LittleEndian.Uint16(file[2*i:])
			}
		case opWord32, opFloat32:
			words := unitsAt[uint32](mem, s.n)
			for i := range words {
				words[i] = binary.LittleEndian.Uint32(file[4*i:])
			}
		case opWord64, opFloat64:
			words := unitsAt[uint64](mem, s.n)
			for i := range words {
				words[i] = binary.LittleEndian.Uint64(file[8*i:])
			}
		case opInt32:
			ints := unitsAt[int32](mem, s.n)
			for i := range ints {
				x := int64(binary.LittleEndian.Uint64(file[8*i:]))
				if ints[i] = int32(x); int64(ints[i]) != x {
					return fmt.Errorf("%w: int %d on a 32-bit machine", ErrTooLarge, x)
				}
			}
		case opUint32:
			uints := unitsAt[uint32](mem, s.n)
			for i := range uints {
				x := binary.LittleEndian.Uint64(file[8*i:])
				if uints[i] = uint32(x); uint64(uints[i]) != x {
					return fmt.Errorf("%w: uint %d on a 32-bit machine", ErrTooLarge, x)
				}
			}
		case opTime:
			for i := range s.n {
				t, err := loadTime(file[i*timeSize:])
				if err != nil {
					return err
				}
				*(*time.Time)(unsafe.Add(mem, i*s.memUnit)) = t
			}
		case opRepeat:
			for i := range s.n {
				if err := loadSteps(unsafe.Add(mem, i*s.memUnit), file[i*s.fileUnit:], s.body); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const (
	timeSignature = "time.Time"
	timeSize      = 16
	secondsToUnix = (1969*365 + 1969/4 - 1969/100 + 1969/400) * 24 * 60 * 60 // from the year 1 to 1970
)

// isTime tells whether a type is [time.Time] or another name for the same.
func isTime(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t.ConvertibleTo(reflect.TypeFor[time.Time]())
}

// storeTime writes the instant and the zone offset: zeros for the zero time. The
// name of the zone and the monotonic reading are left out.
func storeTime(dst []byte, t time.Time) {
	_, offset := t.Zone()
	binary.LittleEndian.PutUint64(dst, uint64(t.Unix()+secondsToUnix))
	binary.LittleEndian.PutUint32(dst[8:], uint32(t.Nanosecond()))
	binary.LittleEndian.PutUint32(dst[12:], uint32(int32(offset)))
}

func loadTime(src []byte) (time.Time, error) {
	sec, nano := int64(binary.LittleEndian.Uint64(src)), binary.LittleEndian.Uint32(src[8:])
	offset := int32(binary.LittleEndian.Uint32(src[12:]))
	if nano >= 1e9 {
		return time.Time{}, corrupt("a time has %d nanoseconds", nano)
	}
	t := time.Unix(sec-secondsToUnix, int64(nano)).UTC()
	if offset != 0 {
		t = t.In(time.FixedZone("", int(offset)))
	}
	return t, nil
}

// keyBits32 returns the bits of x as a key: one pattern for both zeros, and one
// for all NaNs.
func keyBits32(x float32) uint32 {
	switch {
	case x == 0:
		return 0
	case x != x:
		return 0x7FC00000
	}
	return math.Float32bits(x)
}

// keyBits64 is keyBits32 for float64.
func keyBits64(x float64) uint64 {
	switch {
	case x == 0:
		return 0
	case x != x:
		return 0x7FF8000000000000
	}
	return math.Float64bits(x)
}

// asString returns v as what it points to. The caller knows that T is of kind
// string.
func asString[T any](v *T) *string { return (*string)(unsafe.Pointer(v)) }

// asBytes returns v as what it points to. The caller knows that T is a slice
// whose elements are of kind uint8.
func asBytes[T any](v *T) *[]byte { return (*[]byte)(unsafe.Pointer(v)) }

// memoryOf returns the memory of *v. Only for types without pointers, so
// that the garbage collector need not know what is written there. It lives as long as *v.
func memoryOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// unitsAt returns the n units at p as a slice. The caller has compiled a step
// that says that n numbers of W's size, aligned for W, lie there; they live as
// long as the value they are part of.
func unitsAt[W byte | uint16 | uint32 | uint64 | int32 | float32 | float64](p unsafe.Pointer, n int) []W {
	return unsafe.Slice((*W)(p), n)
}

// A planner compiles plain types into steps.
type planner struct {
	root reflect.Type // the type asked for, to name in errors
	key  bool         // floats are made unique
}

// wordSteps tells that numbers in memory are not in the file's byte order and
// must be moved one by one. A test sets it on a little-endian machine, to take
// the steps that a big-endian one needs.
var wordSteps = binary.NativeEndian.Uint16([]byte{1, 0}) != 1

// A plan is what a planner finds out about a type.
type plan struct {
	sig   string
	mem   int // bytes of a value in memory
	size  int // bytes in the file
	steps []step
}

// raw tells whether the whole value is one copy; see typeCodec.
func (pl *plan) raw() bool {
	if wordSteps || pl.mem != pl.size {
		return false
	}
	return pl.size == 0 || len(pl.steps) == 1 && pl.steps[0].op == opCopy
}

// errNotPlain says that a type has no plan: it varies in size, or cannot be
// stored.
var errNotPlain = errors.New("not plain")

// plan compiles t, which lies at path in the root type ("" for the root).
func (p *planner) plan(t reflect.Type, path string) (plan, error) {
	switch {
	case isTime(t):
		s := step{op: opTime, n: 1, memUnit: stepUnits[opTime].mem, fileUnit: timeSize}
		return plan{sig: timeSignature, mem: int(t.Size()), size: timeSize, steps: []step{s}}, nil
	case t.Kind() == reflect.Struct:
		return p.structPlan(t, path)
	case t.Kind() == reflect.Array:
		return p.arrayPlan(t, path)
	}
	op, n := p.scalar(t)
	if n == 0 {
		return plan{}, errNotPlain
	}
	if !wordSteps && op <= opWord64 {
		op, n = opCopy, n*stepUnits[op].mem
	}
	s := step{op: op, n: n, memUnit: stepUnits[op].mem, fileUnit: stepUnits[op].file}
	return plan{sig: t.Kind().String(), mem: int(t.Size()), size: n * s.fileUnit, steps: []step{s}}, nil
}

// scalar returns the op that moves a value of type t where numbers are moved
// one by one, and how many units the value has: none when t is not plain.
func (p *planner) scalar(t reflect.Type) (op stepOp, n int) {
	switch t.Kind() {
	case reflect.Bool:
		return opBool, 1
	case reflect.Int8, reflect.Uint8:
		return opCopy, 1
	case reflect.Int16, reflect.Uint16:
		return opWord16, 1
	case reflect.Int32, reflect.Uint32:
		return opWord32, 1
	case reflect.Int64, reflect.Uint64:
		return opWord64, 1
	case reflect.Int:
		return narrow(t, opInt32), 1
	case reflect.Uint, reflect.Uintptr:
		return narrow(t, opUint32), 1
	case reflect.Float32:
		return p.float(opWord32, opFloat32), 1
	case reflect.Float64:
		return p.float(opWord64, opFloat64), 1
	case reflect.Complex64:
		return p.float(opWord32, opFloat32), 2
	case reflect.Complex128:
		return p.float(opWord64, opFloat64), 2
	}
	return 0, 0
}

// narrow returns op for an int, uint or uintptr of 32 bits, opWord64 for one of 64.
func narrow(t reflect.Type, op stepOp) stepOp {
	if t.Size() == 4 {
		return op
	}
	return opWord64
}

// float returns the op for a float: in a key, or elsewhere.
func (p *planner) float(plain, key stepOp) stepOp {
	if p.key {
		return key
	}
	return plain
}

func (p *planner) structPlan(t reflect.Type, path string) (plan, error) {
	pl := plan{mem: int(t.Size())}
	var fields []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Name == "_" {
			continue
		}
		sub, err := p.plan(f.Type, fieldPath(path, f.Name))
		if err != nil {
			return plan{}, err
		}
		if sub.size > maxPlainSize-pl.size {
			return plan{}, p.tooLarge()
		}
		for _, s := range sub.steps {
			s.mem += int(f.Offset)
			s.file += pl.size
			pl.add(s)
		}
		pl.size += sub.size
		fields = append(fields, f.Name+" "+sub.sig)
	}
	pl.sig = "struct{" + strings.Join(fields, "; ") + "}"
	return pl, nil
}

// add appends a step, or lengthens the last one if s goes on where it ends.
func (pl *plan) add(s step) {
	if n := len(pl.steps); n > 0 && s.op != opRepeat {
		last := &pl.steps[n-1]
		if last.op == s.op && last.mem+last.n*last.memUnit == s.mem && last.file+last.n*last.fileUnit == s.file {
			last.n += s.n
			return
		}
	}
	pl.steps = append(pl.steps, s)
}

func (p *planner) arrayPlan(t reflect.Type, path string) (plan, error) {
	elem, err := p.plan(t.Elem(), path+"[]")
	if err != nil {
		return plan{}, err
	}
	n := t.Len()
	pl := plan{sig: "[" + strconv.Itoa(n) + "]" + elem.sig, mem: int(t.Size())}
	if n == 0 || elem.size == 0 {
		return pl, nil
	}
	if n > maxPlainSize/elem.size {
		return plan{}, p.tooLarge()
	}
	pl.size = n * elem.size
	if s, ok := elem.single(); ok {
		s.n *= n
		pl.steps = []step{s}
		return pl, nil
	}
	pl.steps = []step{{op: opRepeat, n: n, memUnit: elem.mem, fileUnit: elem.size, body: elem.steps}}
	return pl, nil
}

// single returns the one step that covers all of the value, if there is one:
// then an array of such values is one step too.
func (pl *plan) single() (s step, ok bool) {
	if len(pl.steps) != 1 {
		return step{}, false
	}
	s = pl.steps[0]
	return s, s.n*s.memUnit == pl.mem && s.n*s.fileUnit == pl.size
}

// fieldPath returns the path of a field of the struct at path.
func fieldPath(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

func (p *planner) unsupported(t reflect.Type, path string) error {
	if path == "" {
		return fmt.Errorf("%w: %v; it needs a Codec", ErrUnsupportedType, t)
	}
	return fmt.Errorf("%w: field %s (%v) of %v; it needs a Codec", ErrUnsupportedType, path, t, p.root)
}

func (p *planner) tooLarge() error {
	return fmt.Errorf("%w: a value of type %v has more than %d bytes", ErrTooLarge, p.root, maxPlainSize)
}
