package emd

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A signature is the text of a type, kept in the file with each container. Two
// types with the same signature have the same encoding, whatever their names.
//
//	sig    = scalar | "string" | "time.Time" | opaque | array | slice | map | pointer | struct | back
//	scalar = bool int int8 int16 int32 int64 uint uint8 uint16 uint32 uint64 uintptr
//	         float32 float64 complex64 complex128
//	array  = "[" N "]" sig
//	slice  = "[]" sig
//	map    = "map[" sig "]" sig
//	pointer= "*" sig
//	struct = "struct{" [ field { "; " field } ] "}"      field = name " " sig
//	back   = "^" N      the Nth enclosing array, slice, map, pointer or struct; 1 is the nearest
//	opaque = form "(" path ")"                           form = "binary" | "text" | "gob"
//
// back closes a recursive type; a slice, map or pointer lies between, or the
// type would contain itself. opaque is a type that writes itself, by
// AppendBinary or MarshalBinary, AppendText or MarshalText, or GobEncode; path
// is its import path, a dot and its name. Anything else is the name of a codec.
//
// A signature is input: one with more than maxSignature bytes or maxSigDepth
// levels is not read as a type.
const maxSigDepth = 10_000

// Kinds of types besides those of package reflect.
const (
	sigTime   reflect.Kind = 100 + iota // time.Time
	sigOpaque                           // a type that writes itself
)

// A sigType is a parsed signature. Those of a recursive type form a graph with
// cycles: a back reference is a pointer to the type that it names.
type sigType struct {
	kind   reflect.Kind
	text   string     // of a type without parts: its signature
	path   string     // of an opaque type
	n      uint64     // elements of an array
	key    *sigType   // of a map
	elem   *sigType   // of an array, slice, map or pointer
	fields []sigField // of a struct

	// min is a lower bound of the bytes that a value takes, at most minLimit.
	min uint64
}

type sigField struct {
	name string
	typ  *sigType
}

const minLimit = math.MaxInt64

// sigLeaves has the types without parts, but for opaque ones.
var sigLeaves = func() map[string]*sigType {
	leaves := map[string]*sigType{}
	add := func(text string, kind reflect.Kind, min uint64) {
		leaves[text] = &sigType{kind: kind, text: text, min: min}
	}
	for kind := reflect.Bool; kind <= reflect.Complex128; kind++ {
		add(kind.String(), kind, scalarSize(kind))
	}
	add("string", reflect.String, 1)
	add(timeSignature, sigTime, timeSize)
	return leaves
}()

// scalarSize returns the bytes of an encoded number or bool.
func scalarSize(kind reflect.Kind) uint64 {
	switch kind {
	case reflect.Bool, reflect.Int8, reflect.Uint8:
		return 1
	case reflect.Int16, reflect.Uint16:
		return 2
	case reflect.Int32, reflect.Uint32, reflect.Float32:
		return 4
	case reflect.Complex128:
		return 16
	}
	return 8
}

// isBytes says whether t is []uint8, which is encoded as a string is.
func (t *sigType) isBytes() bool { return t.kind == reflect.Slice && t.elem.kind == reflect.Uint8 }

// indirect says whether t may contain itself.
func (t *sigType) indirect() bool {
	return t.kind == reflect.Slice || t.kind == reflect.Map || t.kind == reflect.Pointer
}

// parseSignature returns the type that a signature describes. An error means
// that it is the name of a codec, or damaged.
func parseSignature(text string) (*sigType, error) {
	if len(text) > maxSignature {
		return nil, fmt.Errorf("signature of %d bytes", len(text))
	}
	p := sigParser{text: text, indirect: -1}
	t, err := p.parse()
	if err == nil && p.pos != len(text) {
		err = p.fail("end expected")
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// A sigParser reads a signature from left to right. It accepts canonical
// texts only: printing what it returns gives the text again.
type sigParser struct {
	text     string
	pos      int
	open     []*sigType // the enclosing types, outermost first
	indirect int        // index in open of the innermost slice, map or pointer; -1: none
}

func (p *sigParser) parse() (*sigType, error) {
	switch {
	case p.eat("^"):
		return p.back()
	case p.eat("struct{"):
		return p.enter(&sigType{kind: reflect.Struct}, p.fields)
	case p.eat("map["):
		return p.enter(&sigType{kind: reflect.Map, min: 1}, p.keyAndElem)
	case p.eat("*"):
		return p.enter(&sigType{kind: reflect.Pointer, min: 1}, p.elem)
	case p.eat("[]"):
		return p.enter(&sigType{kind: reflect.Slice, min: 1}, p.elem)
	case p.eat("["):
		return p.enter(&sigType{kind: reflect.Array}, p.countAndElem)
	}
	return p.leaf()
}

// enter parses the rest of a type with parts.
func (p *sigParser) enter(t *sigType, rest func(*sigType) error) (*sigType, error) {
	if len(p.open) == maxSigDepth {
		return nil, p.fail("nested deeper than %d levels", maxSigDepth)
	}
	outer := p.indirect
	if t.indirect() {
		p.indirect = len(p.open)
	}
	p.open = append(p.open, t)
	err := rest(t)
	p.open = p.open[:len(p.open)-1]
	p.indirect = outer
	return t, err
}

func (p *sigParser) elem(t *sigType) (err error) {
	t.elem, err = p.parse()
	return err
}

func (p *sigParser) keyAndElem(t *sigType) (err error) {
	if t.key, err = p.parse(); err != nil {
		return err
	}
	if !p.eat("]") {
		return p.fail("] expected")
	}
	return p.elem(t)
}

func (p *sigParser) countAndElem(t *sigType) (err error) {
	if t.n, err = p.number(); err != nil {
		return err
	}
	if !p.eat("]") {
		return p.fail("] expected")
	}
	if err = p.elem(t); err != nil {
		return err
	}
	if min := t.elem.min; min != 0 && t.n > minLimit/min {
		t.min = minLimit
	} else {
		t.min = t.n * min
	}
	return nil
}

func (p *sigParser) fields(t *sigType) error {
	names := map[string]bool{}
	for !p.eat("}") {
		if len(t.fields) > 0 && !p.eat("; ") {
			return p.fail("; or } expected")
		}
		name, _, ok := strings.Cut(p.text[p.pos:], " ")
		if !ok || names[name] || !isFieldName(name) {
			return p.fail("name of another field expected")
		}
		names[name] = true
		p.pos += len(name) + 1
		typ, err := p.parse()
		if err != nil {
			return err
		}
		t.fields = append(t.fields, sigField{name, typ})
		t.min = min(t.min+typ.min, minLimit)
	}
	return nil
}

// isFieldName says whether a struct in Go may have a field of that name that
// is not blank.
func isFieldName(s string) bool {
	for i, r := range s {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
			return false
		}
	}
	return s != "" && s != "_"
}

func (p *sigParser) back() (*sigType, error) {
	n, err := p.number()
	if err != nil {
		return nil, err
	}
	if n == 0 || n > uint64(len(p.open)) {
		return nil, p.fail("^%d inside %d types", n, len(p.open))
	}
	i := len(p.open) - int(n)
	if p.indirect < i {
		return nil, p.fail("^%d is a type that contains itself", n)
	}
	return p.open[i], nil
}

func (p *sigParser) leaf() (*sigType, error) {
	rest := p.text[p.pos:]
	n := strings.IndexAny(rest, "(;}]")
	if n < 0 {
		n = len(rest)
	}
	word := rest[:n]
	if t := sigLeaves[word]; t != nil {
		p.pos += n
		return t, nil
	}
	if (word == "binary" || word == "text" || word == "gob") && n < len(rest) && rest[n] == '(' {
		if path := balanced(rest[n:]); strings.Contains(path, ".") {
			p.pos += n + len(path) + len("()")
			return &sigType{kind: sigOpaque, text: word + "(" + path + ")", path: path, min: 1}, nil
		}
	}
	return nil, p.fail("type expected")
}

// balanced returns what stands in the parentheses that s begins with. There
// may be more of them in the arguments of a generic type.
func balanced(s string) string {
	depth := 0
	for i, c := range []byte(s) {
		switch c {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return s[1:i]
			}
		}
	}
	return ""
}

func (p *sigParser) number() (uint64, error) {
	rest := p.text[p.pos:]
	digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || digits[0] == '0' && len(digits) > 1 {
		return 0, p.fail("number expected")
	}
	p.pos += len(digits)
	return n, nil
}

// eat skips the token, if it is next.
func (p *sigParser) eat(token string) bool {
	ok := strings.HasPrefix(p.text[p.pos:], token)
	if ok {
		p.pos += len(token)
	}
	return ok
}

func (p *sigParser) fail(format string, args ...any) error {
	return fmt.Errorf("signature, byte %d: %s", p.pos, fmt.Sprintf(format, args...))
}

// String returns the signature of t. For a part of a recursive type, where
// outer types have to be repeated, it may be long: see brief.
func (t *sigType) String() string {
	p := sigPrinter{limit: math.MaxInt, levels: map[*sigType]int{}}
	p.print(t)
	return string(p.text)
}

// brief returns the signature of t, cut if it is long.
func (t *sigType) brief() string {
	const most = 60
	p := sigPrinter{limit: most, levels: map[*sigType]int{}}
	p.print(t)
	return cut(string(p.text), most)
}

// cut returns the first characters of s, of at most n bytes.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// A sigPrinter stops soon after limit bytes.
type sigPrinter struct {
	text   []byte
	limit  int
	levels map[*sigType]int // of the enclosing types, 0 for the outermost
}

func (p *sigPrinter) print(t *sigType) {
	if len(p.text) > p.limit {
		return
	}
	if t.text != "" {
		p.add(t.text)
		return
	}
	if level, ok := p.levels[t]; ok {
		p.add("^" + strconv.Itoa(len(p.levels)-level))
		return
	}
	p.levels[t] = len(p.levels)
	switch t.kind {
	case reflect.Struct:
		p.add("struct{")
		for i, f := range t.fields {
			if len(p.text) > p.limit {
				break
			}
			if i > 0 {
				p.add("; ")
			}
			p.add(f.name + " ")
			p.print(f.typ)
		}
		p.add("}")
	case reflect.Map:
		p.add("map[")
		p.print(t.key)
		p.add("]")
		p.print(t.elem)
	case reflect.Pointer:
		p.add("*")
		p.print(t.elem)
	case reflect.Slice:
		p.add("[]")
		p.print(t.elem)
	case reflect.Array:
		p.add("[" + strconv.FormatUint(t.n, 10) + "]")
		p.print(t.elem)
	}
	delete(p.levels, t)
}

func (p *sigPrinter) add(s string) { p.text = append(p.text, s...) }

// maxDifferences is how many differences of two types an error tells.
const maxDifferences = 10

// differences returns what makes the signature have, of a file, another one
// than want, of a program: a line for each field or other part that differs,
// at most maxDifferences and one that says that there are more. whole means
// that the types have nothing in common, or one is a codec: then the one line
// just names both.
func differences(have, want string) (lines []string, whole bool) {
	if have == want {
		return nil, false
	}
	h, herr := parseSignature(have)
	w, werr := parseSignature(want)
	if herr != nil || werr != nil {
		return []string{cut(have, 60) + " in the file, " + cut(want, 60) + " wanted"}, true
	}
	d := sigDiff{most: maxDifferences, steps: 1 << 16, seen: map[[2]*sigType]bool{}}
	d.compare(h, w, nil)
	if len(d.lines) > maxDifferences {
		d.lines[maxDifferences] = "and more"
	}
	return d.lines, d.whole
}

// A sigDiff compares two types, side by side.
type sigDiff struct {
	lines []string
	whole bool // the types themselves differ, not parts of them
	most  int  // lines, but for one more, which shows that there are more
	steps int  // comparisons left: unrolled recursive types may take very many
	seen  map[[2]*sigType]bool
}

func (d *sigDiff) compare(have, want *sigType, at *sigPath) {
	pair := [2]*sigType{have, want}
	if d.steps--; d.steps < 0 || len(d.lines) > d.most || have == want || d.seen[pair] {
		return
	}
	if have.kind != want.kind || have.text != want.text {
		d.differ(at, have.brief(), want.brief())
		return
	}
	d.seen[pair] = true
	switch have.kind {
	case reflect.Struct:
		d.structs(have, want, at)
	case reflect.Map:
		d.compare(have.key, want.key, &sigPath{up: at, step: "key"})
		d.compare(have.elem, want.elem, &sigPath{up: at, step: "[]"})
	case reflect.Pointer:
		d.compare(have.elem, want.elem, &sigPath{up: at, step: "*"})
	case reflect.Array:
		if have.n != want.n {
			d.differ(at, have.brief(), want.brief())
			return
		}
		d.compare(have.elem, want.elem, &sigPath{up: at, step: "[]"})
	case reflect.Slice:
		d.compare(have.elem, want.elem, &sigPath{up: at, step: "[]"})
	}
}

func (d *sigDiff) structs(have, want *sigType, at *sigPath) {
	haveAt, wantAt := have.byName(), want.byName()
	// What only one of them has is a renamed field if the other has a field
	// of that type in the same place, counted from the last common field.
	wantPlaces := map[fieldPlace]int{}
	for j, place := range want.places(haveAt) {
		wantPlaces[place] = j
	}
	renamed := map[int]bool{}
	for i, place := range have.places(wantAt) {
		if len(d.lines) > d.most {
			return
		}
		f := have.fields[i]
		if j, ok := wantAt[f.name]; ok {
			d.compare(f.typ, want.fields[j].typ, &sigPath{up: at, step: "." + f.name})
		} else if j, ok := wantPlaces[place]; ok && d.same(f.typ, want.fields[j].typ) {
			renamed[j] = true
			d.add(fmt.Sprintf("field %d%s: named %q in the file, %q wanted", i+1, at.of(), f.name, want.fields[j].name))
		} else {
			d.add((&sigPath{up: at, step: "." + f.name}).String() + ": only in the file")
		}
	}
	for j, f := range want.fields {
		if _, ok := haveAt[f.name]; !ok && !renamed[j] {
			d.add((&sigPath{up: at, step: "." + f.name}).String() + ": not in the file")
		}
	}
	d.order(have.common(wantAt), want.common(haveAt), at)
}

// order tells when the fields that both structs have are in another order.
func (d *sigDiff) order(have, want []string, at *sigPath) {
	if len(have) != len(want) {
		return
	}
	for len(have) > 0 && have[0] == want[0] {
		have, want = have[1:], want[1:]
	}
	for n := len(have); n > 0 && have[n-1] == want[n-1]; n-- {
		have, want = have[:n-1], want[:n-1]
	}
	if len(have) > 0 {
		d.add(fmt.Sprintf("order of fields%s: %s in the file; %s wanted", at.of(), listNames(have), listNames(want)))
	}
}

func listNames(names []string) string {
	const most = 5
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// same says whether two types are the same.
func (d *sigDiff) same(have, want *sigType) bool {
	sub := sigDiff{steps: d.steps, seen: map[[2]*sigType]bool{}}
	sub.compare(have, want, nil)
	d.steps = sub.steps
	return len(sub.lines) == 0 && sub.steps >= 0
}

func (d *sigDiff) differ(at *sigPath, have, want string) {
	text := have + " in the file, " + want + " wanted"
	if at == nil {
		d.whole = true
		d.add(text)
		return
	}
	d.add(at.String() + ": " + text)
}

func (d *sigDiff) add(line string) {
	if len(d.lines) <= d.most {
		d.lines = append(d.lines, line)
	}
}

func (t *sigType) byName() map[string]int {
	at := make(map[string]int, len(t.fields))
	for i, f := range t.fields {
		at[f.name] = i
	}
	return at
}

// common returns the names of the fields that are also in other.
func (t *sigType) common(other map[string]int) (names []string) {
	for _, f := range t.fields {
		if _, ok := other[f.name]; ok {
			names = append(names, f.name)
		}
	}
	return names
}

// A fieldPlace is the place of a field that another struct lacks: the kth
// after a common field.
type fieldPlace struct {
	after string
	k     int
}

// places returns the places of the fields that are not in other; k is 0 for
// those that are.
func (t *sigType) places(other map[string]int) []fieldPlace {
	places := make([]fieldPlace, len(t.fields))
	at := fieldPlace{}
	for i, f := range t.fields {
		if _, ok := other[f.name]; ok {
			at = fieldPlace{after: f.name}
			continue
		}
		at.k++
		places[i] = at
	}
	return places
}

// A sigPath leads from a type to a part of it: steps are ".Name" to a field,
// "[]" to an element or a value of a map, "key" to a key of a map, "*" to what
// a pointer points to. nil is the type itself.
type sigPath struct {
	up   *sigPath
	step string
}

// String returns the path as an error names it: "field Succ[].Weight".
func (at *sigPath) String() string {
	s := at.expr()
	if strings.HasPrefix(strings.TrimLeft(s, "(*"), ".") {
		return "field " + strings.Replace(s, ".", "", 1)
	}
	return s
}

// of returns " of Succ[]", and nothing for the type itself.
func (at *sigPath) of() string {
	if at == nil {
		return ""
	}
	return " of " + strings.TrimPrefix(at.String(), "field ")
}

// expr writes the path as Go writes what it leads to, with a dot in front of
// the first field; long ones lose their beginning.
func (at *sigPath) expr() string {
	const most = 20
	var steps []string
	for ; at != nil && len(steps) < most; at = at.up {
		steps = append(steps, at.step)
	}
	s, stars := "", ""
	if at != nil {
		s = "..."
	}
	for _, step := range slices.Backward(steps) {
		if step == "*" {
			stars += "*"
			continue
		}
		if step[0] == '.' && len(stars) > 0 {
			stars = stars[1:] // a selector follows one pointer
		}
		if stars != "" {
			s, stars = "("+stars+s+")", ""
		}
		if step == "key" {
			if step = "map key"; s != "" {
				step = ", map key"
			}
		}
		s += step
	}
	return stars + s
}
