package emd

import (
	"bytes"
	"encoding"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"
)

// The encoding of types that are made of data but vary in size. What has a
// fixed size inside them is written as a plain value is; else
//
//	string            uvarint length, bytes
//	slice             uvarint length+1 (0: nil), elements
//	map               uvarint length+1 (0: nil), pairs in the order of the encoded keys
//	pointer           0 (nil), or 1 and the value
//	array, struct     elements or fields, one after the other
//	methods of its own  uvarint length, what they write
//
// A type is compiled into a program once, when a container is opened.
// Encoding and decoding then take no reflection, but for maps, for the methods of a
// type, and to allocate memory that the garbage collector must know.

const (
	maxNesting     = 10_000 // slices, maps and pointers inside each other
	maxSignature   = 1 << 20
	maxEmptyValues = math.MaxInt32 // elements of a slice that take no space
)

// A program encodes and decodes the values of one type.
type program struct {
	typ    reflect.Type
	moves  []move
	mem    int  // bytes of a value in memory
	least  int  // bytes of the shortest encoding
	cyclic bool // the type is part of itself
	quiet  bool // no pointer to a value or into it is kept or handed out
}

// A move is what a program does with one part of a value.
type move struct {
	op   moveOp
	mem  int // bytes from the start of the value
	typ  reflect.Type
	path string // of the part, for errors

	fixed          // of moveFixed, and of the elements of moveRun
	elem  *program // of slices, maps, pointers and arrays
	key   *program // of maps
	n     int      // elements of an array
}

// fixed is how a part of fixed size is moved.
type fixed struct {
	size  int // bytes in the file
	raw   bool
	steps []step
}

// A moveOp is a way to move a part of a value.
type moveOp uint8

const (
	moveFixed moveOp = iota
	moveString
	moveRun // a slice of elements of fixed size
	moveStrings
	moveSlice
	moveMap
	movePointer
	moveArray
	moveBinary // by the methods of the type
	moveText
	moveGob
)

var (
	binaryAppender    = reflect.TypeFor[encoding.BinaryAppender]()
	binaryMarshaler   = reflect.TypeFor[encoding.BinaryMarshaler]()
	binaryUnmarshaler = reflect.TypeFor[encoding.BinaryUnmarshaler]()
	textAppender      = reflect.TypeFor[encoding.TextAppender]()
	textMarshaler     = reflect.TypeFor[encoding.TextMarshaler]()
	textUnmarshaler   = reflect.TypeFor[encoding.TextUnmarshaler]()

	// gobTypes have methods for gob only, or better ones.
	gobTypes = []reflect.Type{reflect.TypeFor[big.Int](), reflect.TypeFor[big.Rat](), reflect.TypeFor[big.Float]()}
)

// A deriver compiles types into programs.
type deriver struct {
	planner
	programs map[reflect.Type]*program // finished or in work
	inWork   []reflect.Type            // the types that enclose the one at hand
	mapKeys  int                       // how many maps it is part of the key of
}

// derive returns the program of the root type and its signature.
func (d *deriver) derive() (*program, string, error) {
	d.programs = map[reflect.Type]*program{}
	sig, err := d.signature(d.root, "")
	if err != nil {
		return nil, "", err
	}
	p, err := d.program(d.root, "")
	for _, p := range d.programs {
		p.quiet = p.isQuiet()
	}
	return p, sig, err
}

// isQuiet looks for maps and methods, for which a value goes to reflection, and
// for pointers, which are kept while it is encoded.
func (p *program) isQuiet() bool {
	if p.cyclic {
		return false
	}
	for i := range p.moves {
		switch m := &p.moves[i]; m.op {
		case moveFixed, moveString, moveRun, moveStrings:
		case moveArray, moveSlice:
			if !m.elem.isQuiet() {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// opaque returns how the methods of a type move it, if they do. What is a
// string or bytes needs none; text is for what could not be stored otherwise.
func (d *deriver) opaque(t reflect.Type) (op moveOp, form string, ok bool) {
	switch {
	case t.Name() == "" || t.Kind() == reflect.String || t.Kind() == reflect.Interface || isByteSlice(t):
		return 0, "", false
	case d.key && !t.Comparable():
		return 0, "", false
	case slices.Contains(gobTypes, t):
		return moveGob, "gob", true
	case hasBinary(t):
		return moveBinary, "binary", true
	case hasText(t) && !d.derivable(t, map[reflect.Type]bool{}):
		return moveText, "text", true
	}
	return 0, "", false
}

func isByteSlice(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8
}

func hasBinary(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	if !p.Implements(binaryUnmarshaler) || !p.Implements(binaryAppender) && !p.Implements(binaryMarshaler) {
		return false
	}
	return !isPromoted(t, binaryUnmarshaler, func(t reflect.Type) (reflect.Method, bool) { return t.MethodByName("UnmarshalBinary") })
}

func hasText(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	if !p.Implements(textUnmarshaler) || !p.Implements(textAppender) && !p.Implements(textMarshaler) {
		return false
	}
	return !isPromoted(t, textUnmarshaler, func(t reflect.Type) (reflect.Method, bool) { return t.MethodByName("UnmarshalText") })
}

// isPromoted tells that a struct has a method, of the given interface, only
// because a type embedded in it does: it would move that part alone. The method is
// got by a function with its name as a constant, or the linker would have to
// keep all methods of all types.
func isPromoted(t, of reflect.Type, method func(reflect.Type) (reflect.Method, bool)) bool {
	if t.Kind() != reflect.Struct {
		return false
	}
	embeds := false
	for i := range t.NumField() {
		f := t.Field(i)
		embeds = embeds || f.Anonymous && (f.Type.Implements(of) || reflect.PointerTo(f.Type).Implements(of))
	}
	if !embeds {
		return false
	}
	for _, t := range []reflect.Type{t, reflect.PointerTo(t)} {
		if m, ok := method(t); ok {
			pc := m.Func.Pointer()
			if file, _ := runtime.FuncForPC(pc).FileLine(pc); file != "<autogenerated>" {
				return false
			}
		}
	}
	return true
}

// derivable tells whether a type could be stored without its own methods.
func (d *deriver) derivable(t reflect.Type, seen map[reflect.Type]bool) bool {
	if seen[t] {
		return true
	}
	seen[t] = true
	part := func(t reflect.Type) bool { return hasBinary(t) || hasText(t) || d.derivable(t, seen) }
	switch t.Kind() {
	case reflect.Chan, reflect.Func, reflect.Interface, reflect.UnsafePointer:
		return false
	case reflect.Slice, reflect.Pointer:
		return !d.key && part(t.Elem())
	case reflect.Map:
		return !d.key && part(t.Elem()) && part(t.Key())
	case reflect.Array:
		return part(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); f.Name != "_" && !part(f.Type) {
				return false
			}
		}
	}
	return true
}

// signature returns the canonical text of a type at path: with the kinds of
// named types in place of their names, and ^n for the n-th of the slices, arrays,
// maps, pointers and structs around it, counted from the inside.
func (d *deriver) signature(t reflect.Type, path string) (string, error) {
	if pl, err := d.plan(t, path); err != errNotPlain {
		return pl.sig, err
	}
	if _, form, ok := d.opaque(t); ok {
		return form + "(" + t.PkgPath() + "." + t.Name() + ")", nil
	}
	if i := slices.Index(d.inWork, t); i >= 0 {
		return "^" + strconv.Itoa(len(d.inWork)-i), nil
	}
	d.inWork = append(d.inWork, t)
	defer func() { d.inWork = d.inWork[:len(d.inWork)-1] }()
	sig, err := d.composite(t, path)
	if err == nil && len(sig) > maxSignature {
		err = fmt.Errorf("%w: the description of %v is longer than %d bytes", ErrUnsupportedType, d.root, maxSignature)
	}
	return sig, err
}

func (d *deriver) composite(t reflect.Type, path string) (string, error) {
	of := func(head string, elem reflect.Type, path string) (string, error) {
		sig, err := d.signature(elem, path)
		return head + sig, err
	}
	switch t.Kind() {
	case reflect.String:
		return "string", nil
	case reflect.Array:
		return of("["+strconv.Itoa(t.Len())+"]", t.Elem(), path+"[]")
	case reflect.Slice, reflect.Pointer, reflect.Map:
		// In the key of a map, pointers are equal only to themselves.
		if d.key || d.mapKeys > 0 {
			return "", d.unsupportedKey(t, path)
		}
	}
	switch t.Kind() {
	case reflect.Slice:
		return of("[]", t.Elem(), path+"[]")
	case reflect.Pointer:
		return of("*", t.Elem(), path)
	case reflect.Map:
		d.mapKeys++
		key, err := of("map[", t.Key(), path+"[key]")
		d.mapKeys--
		if err != nil {
			return "", err
		}
		return of(key+"]", t.Elem(), path+"[]")
	case reflect.Struct:
		var fields []string
		size := 0
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Name == "_" {
				continue
			}
			sig, err := of(f.Name+" ", f.Type, fieldPath(path, f.Name))
			if err != nil {
				return "", err
			}
			if size += len(sig); size > maxSignature {
				break // signature says so
			}
			fields = append(fields, sig)
		}
		return "struct{" + strings.Join(fields, "; ") + "}", nil
	}
	return "", d.unsupported(t, path)
}

func (d *deriver) unsupportedKey(t reflect.Type, path string) error {
	if path == "" {
		return fmt.Errorf("%w: %v cannot be a key", ErrUnsupportedType, t)
	}
	return fmt.Errorf("%w: field %s (%v) of %v cannot be part of a key", ErrUnsupportedType, path, t, d.root)
}

// program returns the program of a type, whose signature is known to exist.
func (d *deriver) program(t reflect.Type, path string) (*program, error) {
	if p := d.programs[t]; p != nil {
		if i := slices.Index(d.inWork, t); i >= 0 {
			for _, t := range d.inWork[i:] {
				d.programs[t].cyclic = true
			}
		}
		return p, nil
	}
	p := &program{typ: t, mem: int(t.Size())}
	d.programs[t] = p
	d.inWork = append(d.inWork, t)
	defer func() { d.inWork = d.inWork[:len(d.inWork)-1] }()
	return p, d.compile(p, t, 0, path)
}

// compile adds to p what moves a part of type t that lies off bytes from the
// start of its values.
func (d *deriver) compile(p *program, t reflect.Type, off int, path string) error {
	m := move{mem: off, typ: t, path: path}
	pl, err := d.plan(t, path)
	if err == nil {
		if pl.size != 0 {
			m.op, m.fixed = moveFixed, pl.fixed()
			p.add(m)
		}
		return nil
	}
	if err != errNotPlain {
		return err
	}
	err = nil
	if op, _, ok := d.opaque(t); ok {
		m.op = op
		p.add(m)
		return nil
	}
	switch t.Kind() {
	case reflect.String:
		m.op = moveString
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Name == "_" {
				continue
			}
			if err := d.compile(p, f.Type, off+int(f.Offset), fieldPath(path, f.Name)); err != nil {
				return err
			}
		}
		return nil
	case reflect.Array:
		if t.Len() == 0 {
			return nil
		}
		m.op, m.n = moveArray, t.Len()
		if m.elem, err = d.program(t.Elem(), path+"[]"); err == nil && len(m.elem.moves) == 0 {
			return nil
		}
	case reflect.Pointer:
		m.op = movePointer
		m.elem, err = d.program(t.Elem(), path)
	case reflect.Map:
		m.op = moveMap
		if m.key, err = d.program(t.Key(), path+"[key]"); err == nil {
			m.elem, err = d.program(t.Elem(), path+"[]")
		}
	case reflect.Slice:
		err = d.slice(&m, t.Elem(), path+"[]")
	}
	if err != nil {
		return err
	}
	p.add(m)
	return nil
}

// slice chooses how the elements of a slice are moved.
func (d *deriver) slice(m *move, elem reflect.Type, path string) error {
	pl, err := d.plan(elem, path)
	switch {
	case err == nil:
		if pl.size == 0 && elem.Size() != 0 {
			return fmt.Errorf("%w: %s: elements of blank fields only", ErrUnsupportedType, path)
		}
		m.op, m.fixed = moveRun, pl.fixed()
	case err != errNotPlain:
		return err
	case elem.Kind() == reflect.String:
		m.op = moveStrings
	default:
		m.op = moveSlice
	}
	m.elem, err = d.program(elem, path)
	return err
}

// add appends a move, or joins it to the one before if both are of fixed size
// and have nothing between them.
func (p *program) add(m move) {
	if n := len(p.moves); n > 0 && m.op == moveFixed && p.moves[n-1].op == moveFixed {
		last := &p.moves[n-1]
		joined := plan{mem: m.mem - last.mem + int(m.typ.Size()), size: last.size + m.size}
		for _, s := range last.steps {
			joined.add(s)
		}
		for _, s := range m.steps {
			s.mem += m.mem - last.mem
			s.file += last.size
			joined.add(s)
		}
		last.fixed = joined.fixed()
		p.least += m.size
		return
	}
	p.moves = append(p.moves, m)
	switch m.op {
	case moveFixed:
		p.least += m.size
	case moveArray:
		p.least += m.n * m.elem.least
	default:
		p.least++
	}
}

// fixed returns how a part with this plan is moved. It is raw also where a
// value has padding behind its last field.
func (pl *plan) fixed() fixed {
	raw := !wordSteps && len(pl.steps) == 1 && pl.steps[0].op == opCopy && pl.steps[0].mem == 0 && pl.steps[0].n == pl.size
	return fixed{size: pl.size, raw: raw, steps: pl.steps}
}

// ---- encoding

// An encoder is what a program keeps while it encodes one value.
type encoder struct {
	start   int // of the value in dst
	nesting int
	*places // made at the first pointer, slice or map that could be met again
}

// places are parts of a value by where they lie.
type places struct {
	inside []unsafe.Pointer // the slices and maps of cyclic types around the part at hand
	met    []target         // pointers so far
	many   map[target]struct{}
}

// A target is what a pointer points to; its type tells it from its first field.
type target struct {
	p   unsafe.Pointer
	typ *program
}

// fewPointers are looked through one by one.
const fewPointers = 16

// enter notes that the encoding goes into the part of a value at p, a slice or
// a map: nil if it cannot be part of itself.
func (e *encoder) enter(m *move, dst []byte, p unsafe.Pointer) error {
	if e.nesting++; e.nesting > maxNesting {
		return m.errorf(ErrTooLarge, "nested more than %d times", maxNesting)
	}
	if len(dst)-e.start > maxValueSize {
		return m.errorf(ErrTooLarge, "more than %d bytes", maxValueSize)
	}
	if m.elem.cyclic {
		e.track()
		if p != nil && slices.Contains(e.inside, p) {
			return m.errorf(ErrUnsupportedType, "the value contains itself")
		}
		e.inside = append(e.inside, p)
	}
	return nil
}

func (e *encoder) track() {
	if e.places == nil {
		e.places = new(places)
	}
}

func (e *encoder) leave(m *move) {
	e.nesting--
	if m.elem.cyclic {
		e.inside = e.inside[:len(e.inside)-1]
	}
}

// meet notes a pointer. To meet it twice is an error: decoding would make two
// values of one.
func (e *encoder) meet(m *move, p unsafe.Pointer) error {
	if m.elem.mem == 0 {
		return nil // all values of size zero may have one address
	}
	e.track()
	x := target{p, m.elem}
	_, again := e.many[x]
	if again || slices.Contains(e.met, x) {
		return m.errorf(ErrUnsupportedType, "a pointer occurs twice in the value")
	}
	if len(e.met) < fewPointers {
		e.met = append(e.met, x)
		return nil
	}
	if e.many == nil {
		e.many = map[target]struct{}{}
	}
	e.many[x] = struct{}{}
	return nil
}

// errorf names the part of the value.
func (m *move) errorf(sentinel error, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", sentinel, m.name(), fmt.Sprintf(format, args...))
}

// encode appends the encoding of the value at v to dst.
func (p *program) encode(dst []byte, v unsafe.Pointer, e *encoder) (_ []byte, err error) {
	for i := range p.moves {
		m := &p.moves[i]
		at := unsafe.Add(v, m.mem)
		switch m.op {
		case moveFixed:
			if m.raw {
				dst = append(dst, unsafe.Slice((*byte)(at), m.size)...)
			} else {
				dst = m.store(dst, at)
			}
			continue
		case moveString:
			dst = appendString(dst, *(*string)(at))
			continue
		case moveRun:
			dst = m.appendRun(dst, at)
			continue
		case moveStrings:
			s := *(*[]string)(at)
			if s == nil {
				dst = append(dst, 0)
				continue
			}
			dst = appendLen(dst, len(s)+1)
			for _, s := range s {
				dst = appendString(dst, s)
			}
			continue
		case moveArray:
			for i := range m.n {
				if dst, err = m.elem.encode(dst, unsafe.Add(at, i*m.elem.mem), e); err != nil {
					return nil, err
				}
			}
		case moveSlice:
			dst, err = m.appendSlice(dst, at, e)
		case movePointer:
			dst, err = m.appendPointer(dst, *(*unsafe.Pointer)(at), e)
		case moveMap:
			dst, err = m.appendMap(dst, at, e)
		default:
			dst, err = m.appendOpaque(dst, at)
		}
		if err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// appendLen appends a length, most of which take one byte.
func appendLen(dst []byte, n int) []byte {
	if n < 0x80 {
		return append(dst, byte(n))
	}
	return binary.AppendUvarint(dst, uint64(n))
}

func appendString(dst []byte, s string) []byte {
	if n := len(dst); len(s) < 0x80 && cap(dst)-n > len(s) {
		dst = dst[:n+1+len(s)]
		dst[n] = byte(len(s))
		copy(dst[n+1:], s)
		return dst
	}
	return append(appendLen(dst, len(s)), s...)
}

// store appends the encoding of a part of fixed size.
func (f *fixed) store(dst []byte, v unsafe.Pointer) []byte {
	n := len(dst)
	if cap(dst)-n < f.size {
		dst = slices.Grow(dst, f.size)
	}
	dst = dst[:n+f.size]
	storeSteps(dst[n:], v, f.steps)
	return dst
}

func (m *move) appendRun(dst []byte, at unsafe.Pointer) []byte {
	// A slice is seen as one of bytes: its pointer, and its length in elements.
	s := *(*[]byte)(at)
	if s == nil {
		return append(dst, 0)
	}
	n, v := len(s), unsafe.Pointer(unsafe.SliceData(s))
	dst = appendLen(dst, n+1)
	if m.raw && m.size == m.elem.mem {
		return append(dst, unsafe.Slice((*byte)(v), n*m.size)...)
	}
	for i := 0; i < n && m.size != 0; i++ {
		dst = m.store(dst, unsafe.Add(v, i*m.elem.mem))
	}
	return dst
}

func (m *move) appendSlice(dst []byte, at unsafe.Pointer, e *encoder) (_ []byte, err error) {
	s := *(*[]byte)(at)
	if s == nil {
		return append(dst, 0), nil
	}
	n, v := len(s), unsafe.Pointer(unsafe.SliceData(s))
	if n == 0 {
		return append(dst, 1), nil
	}
	if err := e.enter(m, dst, v); err != nil {
		return nil, err
	}
	dst = appendLen(dst, n+1)
	for i := 0; i < n && len(m.elem.moves) != 0; i++ {
		if dst, err = m.elem.encode(dst, unsafe.Add(v, i*m.elem.mem), e); err != nil {
			return nil, err
		}
	}
	e.leave(m)
	return dst, nil
}

func (m *move) appendPointer(dst []byte, p unsafe.Pointer, e *encoder) (_ []byte, err error) {
	if p == nil {
		return append(dst, 0), nil
	}
	if err := e.meet(m, p); err != nil {
		return nil, err
	}
	if err := e.enter(m, dst, nil); err != nil {
		return nil, err
	}
	if dst, err = m.elem.encode(append(dst, 1), p, e); err != nil {
		return nil, err
	}
	e.leave(m)
	return dst, nil
}

// A pair is where an encoded key and value lie.
type pair struct{ key, val, end int }

func (m *move) appendMap(dst []byte, at unsafe.Pointer, e *encoder) (_ []byte, err error) {
	v := reflect.NewAt(m.typ, at).Elem()
	if v.IsNil() {
		return append(dst, 0), nil
	}
	if err := e.enter(m, dst, v.UnsafePointer()); err != nil {
		return nil, err
	}
	dst = appendLen(dst, v.Len()+1)
	key, val := reflect.New(m.key.typ), reflect.New(m.elem.typ)
	pairs := make([]pair, 0, v.Len())
	for it := v.MapRange(); it.Next(); {
		key.Elem().SetIterKey(it)
		val.Elem().SetIterValue(it)
		x := pair{key: len(dst)}
		if dst, err = m.key.encode(dst, key.UnsafePointer(), e); err != nil {
			return nil, err
		}
		x.val = len(dst)
		if dst, err = m.elem.encode(dst, val.UnsafePointer(), e); err != nil {
			return nil, err
		}
		x.end = len(dst)
		pairs = append(pairs, x)
	}
	e.leave(m)
	sortPairs(dst, pairs)
	return dst, nil
}

// sortPairs brings the pairs that end dst into the order of their keys; those
// with one key, as NaNs are, into that of their values.
func sortPairs(dst []byte, pairs []pair) {
	if len(pairs) < 2 {
		return
	}
	compare := func(x, y pair) int {
		if c := bytes.Compare(dst[x.key:x.val], dst[y.key:y.val]); c != 0 {
			return c
		}
		return bytes.Compare(dst[x.val:x.end], dst[y.val:y.end])
	}
	first := pairs[0].key
	slices.SortFunc(pairs, compare)
	sorted := make([]byte, 0, len(dst)-first)
	for _, x := range pairs {
		sorted = append(sorted, dst[x.key:x.end]...)
	}
	copy(dst[first:], sorted)
}

// appendOpaque appends what the methods of a type write.
func (m *move) appendOpaque(dst []byte, at unsafe.Pointer) ([]byte, error) {
	start := len(dst)
	dst, err := m.write(append(dst, 0), reflect.NewAt(m.typ, at).Interface())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.name(), err)
	}
	n := len(dst) - start - 1
	if n < 0 {
		return nil, fmt.Errorf("%s: its methods have cut off what was there", m.name())
	}
	if n < 0x80 {
		dst[start] = byte(n)
		return dst, nil
	}
	// The length takes more than the one byte kept for it.
	var head [binary.MaxVarintLen64]byte
	w := binary.PutUvarint(head[:], uint64(n))
	dst = append(dst, head[1:w]...)
	copy(dst[start+w:], dst[start+1:start+1+n])
	copy(dst[start:], head[:w])
	return dst, nil
}

func (m *move) write(dst []byte, v any) ([]byte, error) {
	var b []byte
	var err error
	switch m.op {
	case moveBinary:
		if v, ok := v.(encoding.BinaryAppender); ok {
			return v.AppendBinary(dst)
		}
		b, err = v.(encoding.BinaryMarshaler).MarshalBinary()
	case moveText:
		if v, ok := v.(encoding.TextAppender); ok {
			return v.AppendText(dst)
		}
		b, err = v.(encoding.TextMarshaler).MarshalText()
	default:
		b, err = v.(gob.GobEncoder).GobEncode()
	}
	return append(dst, b...), err
}

// name names the part of a value for errors.
func (m *move) name() string {
	if m.path == "" {
		return m.typ.String()
	}
	return fmt.Sprintf("%s (%v)", m.path, m.typ)
}

// ---- decoding

// A decoder is what a program keeps while it decodes one value.
type decoder struct{ nesting int }

var errShort = errors.New("the bytes end early")

// corrupt says which part of the value cannot be decoded, and why.
func (m *move) corrupt(err error) error {
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTooLarge) {
		return err // an inner part has said so
	}
	return fmt.Errorf("%w: %s: %w", ErrCorrupt, m.name(), err)
}

// decode sets the value at v, which is zero, from the first bytes of src, and
// returns the others. It believes no length before there are bytes for it.
func (p *program) decode(v unsafe.Pointer, src []byte, d *decoder) (_ []byte, err error) {
	for i := range p.moves {
		m := &p.moves[i]
		at := unsafe.Add(v, m.mem)
		switch m.op {
		case moveFixed:
			src, err = m.load(at, src)
		case moveString:
			src, err = loadString((*string)(at), src)
		case moveRun:
			src, err = m.loadRun(at, src)
		case moveStrings:
			src, err = loadStrings((*[]string)(at), src)
		case moveArray:
			for i := range m.n {
				if src, err = m.elem.decode(unsafe.Add(at, i*m.elem.mem), src, d); err != nil {
					break
				}
			}
		case moveSlice:
			src, err = m.loadSlice(at, src, d)
		case movePointer:
			src, err = m.loadPointer(at, src, d)
		case moveMap:
			src, err = m.loadMap(at, src, d)
		default:
			src, err = m.loadOpaque(at, src)
		}
		if err != nil {
			return nil, m.corrupt(err)
		}
	}
	return src, nil
}

func (d *decoder) enter() error {
	if d.nesting++; d.nesting > maxNesting {
		return fmt.Errorf("nested more than %d times", maxNesting)
	}
	return nil
}

func (f *fixed) load(v unsafe.Pointer, src []byte) ([]byte, error) {
	if len(src) < f.size {
		return nil, errShort
	}
	if f.raw {
		copy(unsafe.Slice((*byte)(v), f.size), src)
		return src[f.size:], nil
	}
	return src[f.size:], loadSteps(v, src[:f.size], f.steps)
}

// loadLen reads a length: of parts that take least bytes each.
func loadLen(src []byte, least int) (n int, rest []byte, err error) {
	if len(src) > 0 && src[0] < 0x80 {
		n, rest = int(src[0]), src[1:]
	} else {
		v, w := binary.Uvarint(src)
		if w <= 0 || w > 1 && src[w-1] == 0 || v > math.MaxInt {
			return 0, nil, errors.New("impossible length")
		}
		n, rest = int(v), src[w:]
	}
	if least == 0 && n > maxEmptyValues || least > 0 && n > len(rest)/least {
		return 0, nil, errShort
	}
	return n, rest, nil
}

// loadCount reads a length+1, -1 for nil.
func loadCount(src []byte, least int) (n int, rest []byte, err error) {
	n, rest, err = loadLen(src, 0)
	if n--; err == nil && n > 0 && least > 0 && n > len(rest)/least {
		err = errShort
	}
	return n, rest, err
}

func loadString(dst *string, src []byte) ([]byte, error) {
	n, src, err := loadLen(src, 1)
	if err != nil {
		return nil, err
	}
	*dst = string(src[:n])
	return src[n:], nil
}

func loadStrings(dst *[]string, src []byte) ([]byte, error) {
	n, src, err := loadCount(src, 1)
	if err != nil || n < 0 {
		return src, err
	}
	s := make([]string, n)
	for i := range s {
		if src, err = loadString(&s[i], src); err != nil {
			return nil, err
		}
	}
	*dst = s
	return src, nil
}

// setSlice makes the slice at p, of any type, one of n elements at data.
func setSlice(p, data unsafe.Pointer, n int) {
	*(*[]struct{})(p) = unsafe.Slice((*struct{})(data), n)
}

func (m *move) loadRun(at unsafe.Pointer, src []byte) ([]byte, error) {
	n, src, err := loadCount(src, m.size)
	if err != nil || n < 0 {
		return src, err
	}
	v, err := m.makeSlice(n)
	if err != nil {
		return nil, err
	}
	size := n * m.size
	if m.raw && m.size == m.elem.mem {
		copy(unsafe.Slice((*byte)(v), size), src[:size])
	} else {
		for i := 0; i < n && m.size != 0; i++ {
			if _, err := m.load(unsafe.Add(v, i*m.elem.mem), src[i*m.size:]); err != nil {
				return nil, err
			}
		}
	}
	setSlice(at, v, n)
	return src[size:], nil
}

// makeSlice returns the memory of n elements.
func (m *move) makeSlice(n int) (unsafe.Pointer, error) {
	if m.elem.mem > 0 && n > math.MaxInt/m.elem.mem {
		return nil, m.errorf(ErrTooLarge, "%d elements of %d bytes", n, m.elem.mem)
	}
	// Numbers need not be known to the garbage collector by their type, and
	// the compiler's own make is faster.
	if m.op == moveRun && m.raw && m.elem.mem > 0 {
		size := n * m.elem.mem
		switch m.elem.typ.Align() {
		case 1:
			return unsafe.Pointer(unsafe.SliceData(make([]byte, size))), nil
		case 2:
			return unsafe.Pointer(unsafe.SliceData(make([]uint16, size/2))), nil
		case 4:
			return unsafe.Pointer(unsafe.SliceData(make([]uint32, size/4))), nil
		case 8:
			return unsafe.Pointer(unsafe.SliceData(make([]uint64, size/8))), nil
		}
	}
	return reflect.MakeSlice(reflect.SliceOf(m.elem.typ), n, n).UnsafePointer(), nil
}

func (m *move) loadSlice(at unsafe.Pointer, src []byte, d *decoder) ([]byte, error) {
	n, src, err := loadCount(src, m.elem.least)
	if err != nil || n < 0 {
		return src, err
	}
	if err := d.enter(); err != nil {
		return nil, err
	}
	v, err := m.makeSlice(n)
	if err != nil {
		return nil, err
	}
	for i := 0; i < n && len(m.elem.moves) != 0; i++ {
		if src, err = m.elem.decode(unsafe.Add(v, i*m.elem.mem), src, d); err != nil {
			return nil, err
		}
	}
	setSlice(at, v, n)
	d.nesting--
	return src, nil
}

func (m *move) loadPointer(at unsafe.Pointer, src []byte, d *decoder) ([]byte, error) {
	switch {
	case len(src) == 0:
		return nil, errShort
	case src[0] == 0:
		return src[1:], nil
	case src[0] != 1:
		return nil, fmt.Errorf("a pointer is %#02x", src[0])
	}
	if err := d.enter(); err != nil {
		return nil, err
	}
	v := reflect.New(m.elem.typ).UnsafePointer()
	src, err := m.elem.decode(v, src[1:], d)
	*(*unsafe.Pointer)(at) = v
	d.nesting--
	return src, err
}

func (m *move) loadMap(at unsafe.Pointer, src []byte, d *decoder) ([]byte, error) {
	least := m.key.least + m.elem.least
	n, src, err := loadCount(src, least)
	if err != nil || n < 0 {
		return src, err
	}
	if least == 0 && n > 1 {
		return nil, errors.New("more than one key of no size")
	}
	if err := d.enter(); err != nil {
		return nil, err
	}
	v := reflect.MakeMapWithSize(m.typ, n)
	key, val := reflect.New(m.key.typ), reflect.New(m.elem.typ)
	var last []byte
	for i := range n {
		key.Elem().SetZero()
		val.Elem().SetZero()
		at := src
		if src, err = m.key.decode(key.UnsafePointer(), src, d); err != nil {
			return nil, err
		}
		at = at[:len(at)-len(src)]
		if i > 0 && bytes.Compare(last, at) > 0 {
			return nil, errors.New("the keys are not in order")
		}
		last = at
		if src, err = m.elem.decode(val.UnsafePointer(), src, d); err != nil {
			return nil, err
		}
		v.SetMapIndex(key.Elem(), val.Elem())
	}
	reflect.NewAt(m.typ, at).Elem().Set(v)
	d.nesting--
	return src, nil
}

// loadOpaque has the methods of a type read what they wrote.
func (m *move) loadOpaque(at unsafe.Pointer, src []byte) ([]byte, error) {
	n, src, err := loadLen(src, 1)
	if err != nil {
		return nil, err
	}
	b, v := src[:n:n], reflect.NewAt(m.typ, at).Interface()
	switch m.op {
	case moveBinary:
		err = v.(encoding.BinaryUnmarshaler).UnmarshalBinary(b)
	case moveText:
		err = v.(encoding.TextUnmarshaler).UnmarshalText(b)
	default:
		err = v.(gob.GobDecoder).GobDecode(b)
	}
	return src[n:], err
}
