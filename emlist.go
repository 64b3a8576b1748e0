package emd

import (
	"errors"
	"fmt"
	"iter"
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
func (e *EMList[T]) Get(i int) (T, error) {
	if v, ok := e.tryGet(i); ok {
		return v, nil
	}
	return e.get(i)
}

// tryGet is Get of a number without disturbance by writers. It is short, so
// that the processor can wait for the elements of several calls at once.
func (e *EMList[T]) tryGet(i int) (v T, ok bool) {
	if !e.word || !optimistic {
		return v, false
	}
	l := e.l
	shape := l.shape.n.Load()
	first := l.first.Load()
	if uint64(i) >= l.end.Load()-first || shape&1 != 0 {
		return v, false
	}
	p := l.memoryAt(first + uint64(i))
	if p == nil {
		return v, false
	}
	v = *(*T)(p)
	readFence()
	return v, l.shape.n.Load() == shape
}

// get is Get in all cases.
func (e *EMList[T]) get(i int) (v T, err error) {
	if e.raw && optimistic && e.l.tryRead(memoryOf(&v), i) {
		return v, nil
	}
	s := newScratch()
	defer s.done()
	var el element
	if el, err = e.l.get(s.b[:0], i); err == nil {
		v, err = e.decode(i, el)
		s.b = el.b
	}
	return v, e.l.result("get", err)
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
		err = e.visit(at, stop, 1, func(_ int, v T) bool {
			s.add(del(v))
			return h.epoch == e.l.epoch.Load()
		})
		if err == nil {
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
		err := e.visit(i, i+len(dst), 1, func(_ int, v T) bool {
			dst[n] = v
			n++
			return true
		})
		return n, err
	}
	ahead := e.l.lookAhead(i, i+len(dst))
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
	for k := 0; k < len(index) && err == nil; k++ {
		var ok bool
		if dst[k], ok = e.tryGet(index[k]); !ok {
			dst[k], err = e.get(index[k])
		}
	}
	return e.l.result("getmany", err)
}

// All returns a loop over indexes and elements. It runs over the indexes below
// the length at its start, shows each element as it is when its turn comes,
// and stops early if the list becomes shorter; the body may change the list. A fault ends
// it: see [EMList.Err], and [Arena.View], which makes it an error.
func (e *EMList[T]) All() iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		n, err := e.l.count()
		e.loop("all", err, 0, n, 1, yield)
	}
}

// Range is [EMList.All] for the elements [i, j). It panics unless
// 0 <= i <= j <= Len.
func (e *EMList[T]) Range(i, j int) iter.Seq2[int, T] {
	e.l.checkRange(i, j)
	return func(yield func(int, T) bool) {
		n, err := e.l.count()
		e.loop("range", err, i, min(j, n), 1, yield)
	}
}

// Backward is [EMList.All] from the last element to the first. Elements that
// are no longer there when their turn comes are left out.
func (e *EMList[T]) Backward() iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		n, err := e.l.count()
		e.loop("backward", err, n-1, -1, -1, yield)
	}
}

// Values is [EMList.All] without the indexes.
func (e *EMList[T]) Values() iter.Seq[T] {
	return func(yield func(T) bool) {
		n, err := e.l.count()
		e.loop("values", err, 0, n, 1, func(_ int, v T) bool { return yield(v) })
	}
}

// loop is visit for an iterator: an error is a fault.
func (e *EMList[T]) loop(op string, err error, i, end, step int, yield func(int, T) bool) {
	if err == nil {
		err = e.visit(i, end, step, yield)
	}
	if err != nil {
		e.l.fault(op, err)
	}
}

// visit calls yield for the elements from i to the one before end, which
// lies in the direction of step, 1 or -1.
func (e *EMList[T]) visit(i, end, step int, yield func(int, T) bool) error {
	if (end-i)*step <= 0 {
		return nil
	}
	if e.l.refs || e.l.width == 0 {
		return e.visitEach(i, end, step, yield)
	}
	e.l.loops.Add(1)
	defer e.l.loops.Add(-1)
	r := e.newRun((end - i) * step)
	ahead := e.l.lookAhead(i, end)
	for i != end {
		ahead.reach(i)
		if err := r.read(i, (end-i)*step, step < 0); err != nil {
			return err
		}
		if r.n == 0 { // the list is shorter now
			if step > 0 {
				return nil
			}
			n, err := e.l.count()
			if err != nil {
				return err
			}
			i = max(min(i, n-1), end)
			continue
		}
		if e.raw && step > 0 { // the usual loop, in two thirds of the instructions of the other
			k := 0
			for ; k < r.n && (k == 0 || e.l.shape.n.Load() == r.stamp.shape && r.stamp.stripe.n.Load() == r.stamp.seen); k++ {
				if !yield(i+k, r.raw[k]) {
					return nil
				}
			}
			if i += k; k < r.n {
				r.want = 1
			}
			continue
		}
		k := 0
		for ; k < r.n && (k == 0 || e.l.current(r.stamp)); k++ {
			v, err := r.at(k, i, step < 0)
			if err != nil {
				return err
			}
			if !yield(i, v) {
				return nil
			}
			i += step
		}
		if k < r.n {
			r.want = 1
		}
	}
	return nil
}

// A run is some neighbouring elements, read ahead of a loop: a block at most,
// fewer after changes in the block that made reading ahead vain.
type run[T any] struct {
	e       *EMList[T]
	n, want int
	stamp   listStamp
	raw     []T    // room for elements, if T is raw
	slots   []byte // the same memory, or encoded elements
}

func (e *EMList[T]) newRun(n int) *run[T] {
	n = min(n, 1<<e.l.grain)
	r := &run[T]{e: e, want: n}
	if e.raw {
		r.raw = make([]T, n)
		r.slots = bytesOf(r.raw)
	} else {
		r.slots = make([]byte, n*int(e.l.width))
	}
	return r
}

// read reads elements from i on, at most n.
func (r *run[T]) read(i, n int, backwards bool) (err error) {
	room := min(r.want, n) * int(r.e.l.width)
	r.want = min(2*r.want, len(r.slots)/int(r.e.l.width))
	r.n, r.stamp, err = r.e.l.run(r.slots[:room], i, backwards)
	return err
}

// at returns element k of the run in the loop's direction: i of the list.
func (r *run[T]) at(k, i int, backwards bool) (v T, err error) {
	if backwards {
		k = r.n - 1 - k
	}
	if k < len(r.raw) {
		return r.raw[k], nil
	}
	return r.decode(k, i)
}

func (r *run[T]) decode(k, i int) (T, error) {
	width := int(r.e.l.width)
	return r.e.decode(i, element{b: r.slots[k*width : (k+1)*width]})
}

// visitEach is visit for elements that are read one by one.
func (e *EMList[T]) visitEach(i, end, step int, yield func(int, T) bool) error {
	var buf []byte
	for ; i != end; i += step {
		el, err := e.l.lookup(buf[:0], i)
		if err != nil {
			return err
		}
		if !el.ok {
			if step > 0 {
				return nil
			}
			continue
		}
		buf = el.b
		v, err := e.decode(i, el)
		if err != nil {
			return err
		}
		if !yield(i, v) {
			return nil
		}
	}
	return nil
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
