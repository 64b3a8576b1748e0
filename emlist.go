package emd

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"reflect"
	"sync"
	"unsafe"
)

// ListOptions say how [List] opens a list. The zero value, or nil, means the
// defaults.
type ListOptions[T any] struct {
	// MustExist makes a missing list an error that matches [ErrNoContainer].
	MustExist bool
	// Codec turns elements into bytes. It is needed for types that have no
	// codec of their own, and must be the same each time the list is opened.
	Codec Codec[T]
}

// An EMList is a growing slice of T in a file. Any number of goroutines may
// use one at once; readers do not wait for each other, nor for a commit.
//
// As with a slice a bad index is a bug of the caller's and panics; damage and
// a full disk are errors, and so is the use of a closed list, whatever the
// index. An operation that returns an error has left the list as it was; only
// damage in what it deletes or replaces is told after the deed is done.
//
// Elements of fixed size (numbers, and arrays and structs of these) lie one
// after the other. Others take eight bytes each, and a record elsewhere in
// the file. Elements that [EMList.Resize] adds take no space until they are
// written.
//
// Changes become durable with the next commit of the arena: see [Arena.Sync].
type EMList[T any] struct {
	l     *list
	codec *typeCodec[T]
	raw   bool // a slot holds the memory of a T
	word  bool // and T is a number, which the machine loads at once
	alone bool // in a file of its own, which Close closes
}

// mainName is the name of a container that has a file to itself.
const mainName = "main"

// List returns the list of a name in an arena, created if it is absent. Opened
// twice it is one list behind two handles. A container of that name that is
// not a list of T is [ErrTypeMismatch]; a type that no codec is known for,
// [ErrUnsupportedType].
func List[T any](a *Arena, name string, opts *ListOptions[T]) (*EMList[T], error) {
	if opts == nil {
		opts = &ListOptions[T]{}
	}
	e, err := openList(a, name, opts)
	if err != nil {
		return nil, a.opError("open", &handle{name: name}, 0, err)
	}
	return e, nil
}

func openList[T any](a *Arena, name string, opts *ListOptions[T]) (*EMList[T], error) {
	e, err := newEMList(a, name, opts)
	if err != nil {
		return nil, err
	}
	c, err := a.openContainer(e.l, opts.MustExist)
	if err != nil {
		return nil, err
	}
	l := c.(*list)
	if l.width != e.l.width || l.refs != e.l.refs {
		return nil, fmt.Errorf("%w: codec %s has the name of another encoding", ErrTypeMismatch, e.codec.sig)
	}
	e.l = l
	return e, nil
}

// newEMList returns a handle to a list that is not open yet.
func newEMList[T any](a *Arena, name string, opts *ListOptions[T]) (*EMList[T], error) {
	codec, err := codecFor(opts.Codec)
	if err != nil {
		return nil, err
	}
	l := newList(a, name, codec.sig, codec.size)
	raw := codec.raw && !l.refs
	return &EMList[T]{l: l, codec: codec, raw: raw, word: raw && l.word && isScalar[T]()}, nil
}

// OpenList opens the file at path and in it the list "main"; both are created
// if they are absent. The list's Close closes the file. opts may be nil.
func OpenList[T any](path string, opts *Options) (*EMList[T], error) {
	if _, err := codecFor[T](nil); err != nil { // before a file is created for it
		return nil, &Error{Op: "open", Path: path, Container: mainName, Err: err}
	}
	a, err := Open(path, opts)
	if err != nil {
		return nil, err
	}
	e, err := List[T](a, mainName, nil)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	e.alone = true
	return e, nil
}

// Arena returns the arena that the list is in.
func (e *EMList[T]) Arena() *Arena { return e.l.a }

// Sync commits the whole file: see [Arena.Sync].
func (e *EMList[T]) Sync() error {
	if err := e.l.a.check(&e.l.handle); err != nil {
		return e.l.result("sync", err)
	}
	return e.l.a.Sync()
}

// Err returns the first fault that ended a loop over the list early, or nil.
func (e *EMList[T]) Err() error { return e.l.firstFault() }

// Close closes the file if the list has it to itself (see [OpenList]), as
// [Arena.Close] does. A list in an arena stays open as long as that.
func (e *EMList[T]) Close() error {
	if !e.alone {
		return nil
	}
	return e.l.a.Close()
}

// Len returns the number of elements: 0 once the list is closed.
func (e *EMList[T]) Len() int {
	n, err := e.l.count()
	if err != nil {
		return 0
	}
	return n
}

// Get returns element i. It panics if the list has none.
func (e *EMList[T]) Get(i int) (v T, err error) {
	// The way to a number without disturbance by writers is short, so that the
	// processor can wait for the elements of several calls at once.
	if e.word && optimistic {
		l := e.l
		shape := l.shape.load()
		first := l.first.Load()
		if uint64(i) < l.end.Load()-first && shape&1 == 0 {
			if run, at := l.table.Load().run(first + uint64(i)); run != nil {
				v = *(*T)(unsafe.Add(run, at*uint64(unsafe.Sizeof(v))))
				readFence()
				if l.shape.load() == shape {
					return v, nil
				}
			}
		}
	}
	return e.get(i)
}

// get is Get in all cases.
func (e *EMList[T]) get(i int) (v T, err error) {
	if e.raw && optimistic && e.l.tryRead(memoryOf(&v), i) {
		return v, nil
	}
	var el element
	switch {
	case e.tryLoad(&v, i):
	case e.codec.copied() && !e.raw: // the copy made under validation becomes the element
		if el, err = e.l.get(nil, i); err == nil && !e.codec.keep(&v, el.b) {
			v, err = e.decode(i, el)
		}
	default:
		s := newScratch()
		defer s.done()
		if el, err = e.l.get(s.b[:0], i); err == nil {
			v, err = e.decode(i, el)
			s.b = el.b
		}
	}
	return v, e.l.result("get", err)
}

// tryLoad is get of a small plain type where nothing is in the way. Otherwise it
// says no, and leaves *v zero.
func (e *EMList[T]) tryLoad(v *T, i int) bool {
	var slot [128]byte
	n := e.codec.size
	if !optimistic || e.codec.form != plainForm || e.raw || n == 0 || n > len(slot) || !e.l.tryRead(slot[:n], i) {
		return false
	}
	if e.codec.load(v, slot[:n]) == nil {
		return true
	}
	var zero T // damage, which get reports
	*v = zero
	return false
}

// decode returns element i. Its errors name the element.
func (e *EMList[T]) decode(i int, el element) (v T, err error) {
	if el.zero {
		return v, nil
	}
	if err = e.codec.decode(&v, el.b); err != nil {
		var zero T
		return zero, fmt.Errorf("element %d: %w", i, err)
	}
	return v, nil
}

// Set replaces element i. It panics if the list has none.
func (e *EMList[T]) Set(i int, v T) error {
	if e.word {
		if m, p := e.l.lockSlot(i); m != nil {
			*(*T)(m) = v
			e.l.unlockSlot(p)
			return nil
		}
	}
	return e.set(i, v)
}

// set is Set in all cases.
func (e *EMList[T]) set(i int, v T) error {
	if e.raw {
		return e.l.result("set", e.l.set(i, memoryOf(&v)))
	}
	s := newScratch()
	defer s.done()
	err := e.encode(s, &v)
	if err == nil {
		err = e.l.set(i, s.b)
	}
	return e.l.result("set", err)
}

// encode appends an element to the batch in s.
func (e *EMList[T]) encode(s *scratch, v *T) error {
	b, err := e.codec.encode(s.b, v)
	if err != nil {
		return err
	}
	if s.b = b; e.l.refs {
		s.ends = append(s.ends, len(b))
	}
	return nil
}

func (e *EMList[T]) encodeAll(s *scratch, v []T) error {
	for i := range v {
		if err := e.encode(s, &v[i]); err != nil {
			return err
		}
	}
	return nil
}

// Append adds elements at the end, all or none. Readers see them appear one
// after the other.
func (e *EMList[T]) Append(v ...T) error {
	if e.word && len(v) == 1 {
		if m := e.l.lockTail(1); m != nil {
			*(*T)(m) = v[0]
			e.l.unlockTail(1)
			return nil
		}
	}
	return e.l.result("append", e.append(v))
}

func (e *EMList[T]) append(v []T) error {
	switch n := len(v); {
	case n == 0:
		_, err := e.l.count()
		return err
	case e.raw && n <= e.pieceLen():
		return e.l.appendSlots(bytesOf(v), uint64(n), false)
	case !e.raw && n <= e.pieceLen():
		s := newScratch()
		defer s.done()
		if err := e.encodeAll(s, v); err != nil {
			return err
		}
		return e.l.appendPiece(s.piece(e.l, n), false)
	}
	a := e.l.newAppending()
	defer a.close()
	for len(v) > 0 {
		n := min(len(v), e.pieceLen())
		if e.raw {
			if err := a.add(piece{slots: bytesOf(v[:n]), n: n}); err != nil {
				return err
			}
		} else if err := e.addEncoded(&a, v[:n]); err != nil {
			return err
		}
		v = v[n:]
	}
	a.finished = true
	return nil
}

// pieceLen is how many elements are appended at once. It does not depend on the
// machine, whose own commits may come in between.
func (e *EMList[T]) pieceLen() int {
	if e.l.refs {
		return maxEncoded
	}
	return e.l.pieceLen()
}

// maxEncoded is how many elements of variable size are encoded before they
// are appended.
const maxEncoded = 1024

func (e *EMList[T]) addEncoded(a *appending, v []T) error {
	s := newScratch()
	defer s.done()
	if err := e.encodeAll(s, v); err != nil {
		return err
	}
	return a.add(s.piece(e.l, len(v)))
}

// AppendSeq adds the elements of a sequence at the end. They are appended in
// batches, so after an error, a panic of seq among them, those that came
// first may be there. A fault of another list or dict of the arena that ended
// seq early is an error.
func (e *EMList[T]) AppendSeq(seq iter.Seq[T]) error {
	if _, err := e.l.count(); err != nil {
		return e.l.result("append", err)
	}
	faults := e.l.a.faults()
	batch := make([]T, 0, 16)
	var err error
	for v := range seq {
		batch = append(batch, v)
		if len(batch) < cap(batch) {
			continue
		}
		if err = e.append(batch); err != nil {
			return e.l.result("append", err)
		}
		clear(batch)
		if batch = batch[:0]; cap(batch) < maxEncoded {
			batch = make([]T, 0, 4*cap(batch))
		}
	}
	if err = e.append(batch); err == nil {
		err = e.l.a.faultSince(faults)
	}
	return e.l.result("append", err)
}

// Pop deletes the last element and returns it; ok is false when the list is
// empty.
func (e *EMList[T]) Pop() (v T, ok bool, err error) {
	if e.raw {
		ok, err = e.l.pop(memoryOf(&v))
	} else {
		v, ok, err = e.popDecoded()
	}
	return v, ok, e.l.result("pop", err)
}

// popDecoded keeps other writers away until it knows that the element can be
// decoded.
func (e *EMList[T]) popDecoded() (v T, ok bool, err error) {
	h := e.l.hold()
	defer e.l.release()
	n, err := e.l.count()
	if n == 0 || err != nil {
		return v, false, err
	}
	s := newScratch()
	defer s.done()
	el, err := e.l.get(s.b[:0], n-1)
	if err != nil {
		return v, false, err
	}
	s.b = el.b
	if v, err = e.decode(n-1, el); err != nil {
		return v, false, err
	}
	return v, true, e.l.truncate(h.end-1, h)
}

// Insert adds elements before element i, or at the end if i is Len, all or
// none; it panics if i is larger. The cost is that of moving the elements on
// the shorter side: those behind, or those in front if others were deleted
// there. Where that would take much private memory it is written out at once.
func (e *EMList[T]) Insert(i int, v ...T) error {
	return e.l.result("insert", e.insert(i, v))
}

func (e *EMList[T]) insert(i int, v []T) error {
	n, err := e.l.count()
	switch {
	case err != nil:
		return err
	case i < 0 || i > n:
		return badBound(i, n)
	case len(v) == 0:
		return nil
	case e.raw:
		return e.l.insert(i, bytesOf(v), uint64(len(v)))
	}
	s := newScratch()
	defer s.done()
	if err := e.encodeAll(s, v); err != nil {
		return err
	}
	if e.l.refs {
		return e.l.insertRecords(i, &s.batch)
	}
	return e.l.insert(i, s.b, uint64(len(v)))
}

// Delete deletes the elements [i, j). It panics unless 0 <= i <= j <= Len.
// Those on the shorter side move: at the ends of the list none do, so a list
// serves as a queue, whose front gives its space back as it is deleted.
func (e *EMList[T]) Delete(i, j int) error {
	n, err := e.l.count()
	if err == nil {
		err = checkRange(i, j, n)
	}
	if err == nil && i < j {
		err = e.l.remove(i, j)
	}
	return e.l.result("delete", err)
}

// Swap exchanges two elements. It panics if the list lacks one.
func (e *EMList[T]) Swap(i, j int) error {
	return e.l.result("swap", e.l.swap(i, j))
}

// Resize makes the list n elements long: it deletes at the end, or adds zero
// values, which cost nothing until they are written. It panics if n is
// negative. More than 2^40 elements are [ErrTooLarge].
func (e *EMList[T]) Resize(n int) error {
	size, err := e.l.count()
	switch {
	case err == nil && n < 0:
		panic(indexError{fmt.Sprintf("list resized to %d elements", n)})
	case err == nil && n != size:
		err = e.l.resize(n)
	}
	return e.l.result("resize", err)
}

// Fill sets the elements [i, j) to v. It panics unless 0 <= i <= j <= Len.
func (e *EMList[T]) Fill(i, j int, v T) error {
	return e.l.result("fill", e.fill(i, j, &v))
}

func (e *EMList[T]) fill(i, j int, v *T) error {
	n, err := e.l.count()
	if err == nil {
		err = checkRange(i, j, n)
	}
	if err != nil || i == j {
		return err
	}
	s := newScratch()
	defer s.done()
	if err := e.encode(s, v); err != nil {
		return err
	}
	if e.l.refs {
		return e.l.fillRecords(i, j, s.b)
	}
	return e.l.fill(i, j, s.b)
}

// Clear deletes all elements and gives their space back.
func (e *EMList[T]) Clear() error {
	n, err := e.l.count()
	if err == nil && n != 0 {
		err = e.l.clear()
	}
	return e.l.result("clear", err)
}

// DeleteFunc deletes the elements for which del returns true, and returns how
// many. del is called once for each element, in order; it must not call
// methods of this list. Other changes of the list wait. The elements move once
// all are known, so after an error or a panic of del none is gone; in a list
// of more than 2^28 elements that holds for parts of that size.
func (e *EMList[T]) DeleteFunc(del func(T) bool) (n int, err error) {
	h := e.l.hold()
	defer e.l.release()
	size, err := e.l.count()
	for at := 0; at < size && err == nil; {
		s := selection{base: at}
		stop := at + min(size-at, maxSelection)
		w := e.walk("deletefunc", at, stop, false)
		for h.epoch == e.l.epoch.Load() && w.read() {
			for _, v := range w.run {
				s.add(del(v))
			}
		}
		if err = w.err; err == nil {
			err = e.l.removeSelected(&s, h)
		}
		if err == nil {
			n += s.count
			at, size = stop-s.count, size-s.count
		}
	}
	return n, e.l.result("deletefunc", err)
}

// CopyTo copies elements from i on to dst, as many as there are and fit, and
// returns how many. It panics if i is larger than Len.
func (e *EMList[T]) CopyTo(dst []T, i int) (int, error) {
	n, err := e.l.count()
	if err == nil && (i < 0 || i > n) {
		err = badBound(i, n)
	}
	copied := 0
	if err == nil {
		dst = dst[:min(len(dst), n-i)]
		copied, err = e.copyTo(dst, i)
	}
	return copied, e.l.result("copyto", err)
}

func (e *EMList[T]) copyTo(dst []T, i int) (n int, err error) {
	if !e.raw {
		w := e.walk("copyto", i, i+len(dst), false)
		defer w.ahead.done()
		for w.read() {
			n += copy(dst[n:], w.run)
		}
		return n, w.err
	}
	ahead := e.l.lookAhead(i, i+len(dst))
	defer ahead.done()
	for n < len(dst) {
		ahead.reach(i + n)
		m, _, err := e.l.run(bytesOf(dst[n:]), i+n, false)
		if m == 0 || err != nil {
			return n, err
		}
		n += min(m, len(dst)-n)
	}
	return n, nil
}

// GetMany sets dst[k] to element index[k] for all k. It panics if the slices
// differ in length or the list lacks an element. For elements scattered over
// a large list it is faster than Get, as it waits for several at once.
func (e *EMList[T]) GetMany(dst []T, index []int) error {
	_, err := e.l.count()
	if err == nil && len(dst) != len(index) {
		panic(indexError{fmt.Sprintf("GetMany of %d indexes into a slice of length %d", len(index), len(dst))})
	}
	for k := 0; k < len(index) && err == nil; {
		many := min(len(index)-k, getAtOnce)
		if n := e.tryGetMany(dst[k:k+many], index[k:k+many]); n != 0 {
			k += n
			continue
		}
		dst[k], err = e.get(index[k])
		k++
	}
	return e.l.result("getmany", err)
}

// getAtOnce bounds what a writer makes GetMany read again.
const getAtOnce = 1 << 10

// tryGetMany is GetMany of numbers up to the first that takes a closer look. It
// returns how many it has read: none if a writer interfered.
func (e *EMList[T]) tryGetMany(dst []T, index []int) (n int) {
	if !e.word || !optimistic {
		return 0
	}
	l := e.l
	shape := l.shape.load()
	first := l.first.Load()
	size, t := l.end.Load()-first, l.table.Load()
	dst = dst[:len(index)]
	for k, i := range index {
		if uint64(i) >= size {
			break
		}
		run, at := t.run(first + uint64(i))
		if run == nil {
			break
		}
		dst[k] = *(*T)(unsafe.Add(run, at*uint64(unsafe.Sizeof(dst[k]))))
		n = k + 1
	}
	readFence()
	if shape&1 != 0 || l.shape.load() != shape {
		return 0
	}
	return n
}

// All returns a loop over indexes and elements. It runs over the indexes below
// the length at its start, shows each element as it is when its turn comes,
// and stops early if the list becomes shorter; the body may change the list. A fault ends
// it: see [EMList.Err], and [Arena.View], which makes it an error.
func (e *EMList[T]) All() iter.Seq2[int, T] { return e.loop("all", 0, math.MaxInt) }

// Range is [EMList.All] for the elements [i, j). It panics unless
// 0 <= i <= j <= Len.
func (e *EMList[T]) Range(i, j int) iter.Seq2[int, T] {
	e.l.checkRange(i, j)
	return e.loop("range", i, j)
}

// loop is a loop over the elements [i, j), as far as they are there.
func (e *EMList[T]) loop(op string, i, j int) iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		w := e.walk(op, i, j, false)
		defer w.ahead.done()
		for w.next() {
			run, at, seen := w.run, w.at, w.seen
			for k, v := range run {
				if !yield(at+k, v) {
					return
				}
				if seen.changed() {
					w.cut(k + 1)
					break
				}
			}
		}
	}
}

// Backward is [EMList.All] from the last element to the first. Elements that
// are no longer there when their turn comes are left out.
func (e *EMList[T]) Backward() iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		w := e.walk("backward", 0, math.MaxInt, true)
		for w.next() {
			run, at, seen := w.run, w.at, w.seen
			for k := len(run) - 1; k >= 0; k-- {
				if !yield(at+k, run[k]) {
					return
				}
				if seen.changed() {
					w.cut(k)
					break
				}
			}
		}
	}
}

// Values is [EMList.All] without the indexes.
func (e *EMList[T]) Values() iter.Seq[T] {
	return func(yield func(T) bool) {
		w := e.walk("values", 0, math.MaxInt, false)
		defer w.ahead.done()
		for w.next() {
			run, seen := w.run, w.seen
			for k, v := range run {
				if !yield(v) {
					return
				}
				if seen.changed() {
					w.cut(k + 1)
					break
				}
			}
		}
	}
}

// A walk reads neighbouring elements, some at a time, for a loop over each of
// them. That loop is the caller's, for the reason of [scan]. It goes on with an
// element only while nothing in the block has changed since the reading, and
// otherwise cuts the run there, so that the rest is read anew.
type walk[T any] struct {
	e      *EMList[T]
	op     string
	lo, hi int  // what is left
	back   bool // from the last to the first

	// After next: copies of elements, the index of the first, and the state
	// in which they were read.
	run  []T
	at   int
	seen runStamp

	want  int // how many to read at once: few after changes that made it vain
	ahead lookahead
	room  []T
	slots []byte // the memory of room, or encoded elements; none for elements that are read one by one
	one   []byte // the encoding of an element that is read alone
	err   error
}

// A runStamp is the state of a list and of a block at a read.
type runStamp struct {
	list, stripe         *version
	listSeen, stripeSeen uint64
}

// changed says that what was read may not be what the list holds now.
func (s runStamp) changed() bool {
	return s.list.load() != s.listSeen || s.stripe.load() != s.stripeSeen
}

// walk returns one of the elements [i, j), as far as they are there.
func (e *EMList[T]) walk(op string, i, j int, back bool) *walk[T] {
	n, err := e.l.count()
	w := &walk[T]{e: e, op: op, lo: i, hi: max(i, min(j, n)), back: back, want: firstRun, err: err}
	if err == nil {
		if w.makeRoom(); !back {
			w.ahead = e.l.lookAhead(w.lo, w.hi)
		}
	}
	return w
}

const (
	firstRun   = 16  // elements that a walk reads first: many loops are left early
	maxDecoded = 256 // at most, where they are decoded
)

// makeRoom makes room for a block of elements.
func (w *walk[T]) makeRoom() {
	n := min(w.hi-w.lo, 1<<w.e.l.grain)
	switch {
	case w.e.l.refs || w.e.l.width == 0:
		w.room = make([]T, 1)
	case w.e.raw:
		w.room = make([]T, n)
		w.slots = bytesOf(w.room)
	default:
		w.room = make([]T, min(n, maxDecoded))
		w.slots = make([]byte, len(w.room)*int(w.e.l.width))
	}
}

// next reads more elements, and says whether there are any. Damage ends the
// loop: it is a fault.
func (w *walk[T]) next() bool {
	more := w.read()
	if !more && w.err != nil {
		w.e.l.fault(w.op, w.err)
	}
	return more
}

// cut gives up the elements of the run that a loop has not come to: those from
// k on, or, if it goes backwards, those before k.
func (w *walk[T]) cut(k int) {
	if w.back {
		w.run, w.at = w.run[k:], w.at+k
	} else {
		w.run = w.run[:k]
	}
	w.want = 1
}

// read is next for whoever looks at err.
func (w *walk[T]) read() bool {
	if w.back {
		w.hi -= len(w.run)
	} else {
		w.lo += len(w.run)
	}
	for w.run = nil; w.lo < w.hi && w.err == nil; {
		w.ahead.reach(w.lo)
		first := w.lo
		if w.back {
			first = w.hi - 1
		}
		if len(w.slots) > 0 {
			w.readBlock(first)
		} else {
			w.readEach(first)
		}
		if len(w.run) > 0 {
			return true
		}
		if w.err == nil { // the list is shorter now
			var n int
			n, w.err = w.e.l.count()
			w.hi = max(min(w.hi, n), w.lo)
		}
	}
	return false
}

// readBlock reads elements of the block of element i.
func (w *walk[T]) readBlock(i int) {
	l := w.e.l
	n := min(w.want, w.hi-w.lo, len(w.room))
	w.want = min(2*w.want, len(w.room))
	n, stamp, err := l.run(w.slots[:n*int(l.width)], i, w.back)
	if n == 0 || err != nil {
		w.err = err
		return
	}
	w.seen = runStamp{&l.shape.version, stamp.stripe, stamp.shape, stamp.seen}
	if w.at = i; w.back {
		w.at = i - n + 1
	}
	if w.run = w.room[:n]; !w.e.raw {
		w.decode()
	}
}

// decode decodes the elements of the run, or those that a loop comes to before
// one that cannot be.
func (w *walk[T]) decode() {
	width := int(w.e.l.width)
	for n := range len(w.run) {
		k := n
		if w.back {
			k = len(w.run) - 1 - n
		}
		w.run[k], w.err = w.e.decode(w.at+k, element{b: w.slots[k*width : (k+1)*width]})
		if w.err != nil {
			if w.back {
				k++
			}
			w.cut(k)
			return
		}
	}
}

// readEach reads element i, and as many after it as there is room for.
func (w *walk[T]) readEach(i int) {
	l := w.e.l
	shape := l.shape.load()
	w.seen = runStamp{&l.shape.version, &l.shape.version, shape, shape}
	w.at, w.run = i, w.room[:0]
	for ; len(w.run) < len(w.room) && i < w.hi; i++ {
		var el element
		if el, w.err = l.lookup(w.one[:0], i); w.err != nil || !el.ok {
			return
		}
		w.one = el.b
		var v T
		if v, w.err = w.e.decode(i, el); w.err != nil {
			return
		}
		w.run = append(w.run, v)
	}
}

// isScalar says whether T is a number other than a complex one.
func isScalar[T any]() bool {
	switch reflect.TypeFor[T]().Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8,
		reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr, reflect.Float32, reflect.Float64:
		return true
	}
	return false
}

// bytesOf returns the memory of the elements of v, whose T is raw.
func bytesOf[T any](v []T) []byte {
	var zero T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), uintptr(len(v))*unsafe.Sizeof(zero))
}

// A scratch is a buffer for encoded elements.
type scratch struct{ batch }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func newScratch() *scratch { return scratches.Get().(*scratch) }

const maxScratch = 64 << 10

// done puts s back for others, unless it has grown large.
func (s *scratch) done() {
	if cap(s.b) <= maxScratch && cap(s.ends) <= maxEncoded {
		s.reset()
		scratches.Put(s)
	}
}

func (s *scratch) reset() { s.b, s.ends = s.b[:0], s.ends[:0] }

// piece returns the n elements in s as l appends them.
func (s *scratch) piece(l *list, n int) piece {
	if l.refs {
		return piece{records: &s.batch}
	}
	return piece{slots: s.b, n: n}
}

func badIndex(i, n int) error {
	if i < 0 {
		return indexError{fmt.Sprintf("index out of range [%d]", i)}
	}
	return indexError{fmt.Sprintf("index out of range [%d] with length %d", i, n)}
}

func badBound(i, n int) error {
	if i < 0 {
		return indexError{fmt.Sprintf("slice bounds out of range [%d:]", i)}
	}
	return indexError{fmt.Sprintf("slice bounds out of range [%d:%d]", i, n)}
}

func checkRange(i, j, n int) error {
	switch {
	case i >= 0 && i <= j && j <= n:
		return nil
	case j < 0 || j > n:
		return indexError{fmt.Sprintf("slice bounds out of range [:%d] with length %d", j, n)}
	case i < 0:
		return indexError{fmt.Sprintf("slice bounds out of range [%d:]", i)}
	default:
		return indexError{fmt.Sprintf("slice bounds out of range [%d:%d]", i, j)}
	}
}
