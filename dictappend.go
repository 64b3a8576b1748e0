package emd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"runtime/debug"
	"slices"
	"strings"
	"unsafe"
)

// A value of type []E is written with its length in front, or if E is a byte,
// with a zero behind it. To make such a value longer is to write all of it
// anew. So AppendTo stores it in another form once it has growFrom bytes: as a
// growing record, which has room for more. Whoever reads the value gets the
// bytes that its codec would have written.
//
// A growing record begins with a head. The ref that leads to it has the
// length 0:
//
//	0      4       8      12     13        14      16             room
//	+------+-------+------+------+---------+-------+--------------+
//	| size | count | room | form | largest | magic | elements ... |
//	+------+-------+------+------+---------+-------+--------------+
//
// size is the bytes of the elements, which lie one after the other as they are
// encoded; count says how many they are; room is what the head takes, a size
// class of the records or whole pages. form says how the value is written. If
// largest is not 0, the elements lie in extents, runs of pages, and the head
// has the first page of each:
//
//	16     20     24
//	+------+------+-----+
//	| u32  | u32  | ... |
//	+------+------+-----+
//
// Extent 0 has one page and every other one as many as all before it, so an
// extent doubles the room and nothing moves; but none has more than
// 1<<(largest-1) pages. There are no more extents than the elements need.
// Bytes behind the elements mean nothing.
const (
	growSizeOff    = 0
	growCountOff   = growSizeOff + 4
	growRoomOff    = growCountOff + 4
	growFormOff    = growRoomOff + 4
	growLargestOff = growFormOff + 1
	growMagicOff   = growLargestOff + 1
	growHeader     = growMagicOff + 2

	growMagic = 0x7267 // "gr"

	formCounted = 0 // uvarint(count + 1), 0 for nil, then the elements
	formBytes   = 1 // the elements, then a zero; nothing for nil

	// growFrom is where growing begins, in bytes of the value. Shorter ones are
	// written anew in their bucket, until it has no room for the next and is
	// squeezed. In a graph of 10 edges of 8 bytes a node, 48 costs three quarters
	// of the processor time that 128 does, and a third more space.
	growFrom = 48

	maxExtentOrder = 10 // log2 of the pages of the largest extent
	extentsHead    = 64 // bytes of a head for extents, at first
)

const (
	_ = uint(maxPiece - pageSize<<maxExtentOrder) // an extent is no longer than a piece
	_ = uint(maxSlab - growHeader - growFrom)
)

// grows says whether x leads to a growing record.
func (x ref) grows() bool { return x.len() == 0 && x > refEmpty }

// AppendTo appends elements to the slice that is the value of k, as
//
//	v, _, err := d.Get(k)
//	err = d.Set(k, append(v, e...))
//
// would, but atomically and at the cost of the new elements: the value keeps
// room for more, up to as much again as it has. If k has no value, the elements
// become its value; with no elements nothing happens. Other operations see a
// value like any other. One of more than 1 GiB, encoded, is [ErrTooLarge]. On
// error nothing has changed.
//
// Where a [Codec] of the caller's writes the values, that has to decode and
// encode the whole value each time.
func AppendTo[K comparable, E any](d *EMDict[K, []E], k K, e ...E) error {
	return d.error("appendto", appendTo(d, &k, e))
}

func appendTo[K comparable, E any](d *EMDict[K, []E], k *K, e []E) error {
	if len(e) == 0 {
		return d.d.a.check(&d.d.handle)
	}
	if d.val.form == userForm {
		k, e := *k, slices.Clone(e) // so that the caller's stay where they are
		_, _, err := d.compute(&k, func(v []E, _ bool) ([]E, Op) { return append(v, e...), OpStore })
		return err
	}
	b := d.buffers()
	defer d.pool.Put(b)
	key, err := d.encodeKey(b, k)
	if err == nil {
		err = checkSizes(key, nil)
	}
	if err != nil {
		return err
	}
	more := elements{form: d.val.sliceForm(), count: len(e)}
	if _, err := joined(more.form, int64(len(e)), 0); err != nil {
		return err
	}
	if size := elementSize(d.val); size >= 0 {
		more.b = unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(e))), len(e)*size)
	} else {
		v := (*[]E)(noescape(unsafe.Pointer(&e)))
		if !d.val.prog.quiet {
			some := slices.Clone(e)
			v = &some
		}
		if b.val, err = d.val.encode(b.val[:0], v); err != nil {
			return err
		}
		if more, err = split(more.form, b.val); err != nil {
			return err
		}
	}
	return d.d.appendTo(d.d.hash(key), key, more)
}

// sliceForm returns the form of values of a slice type.
func (c *typeCodec[T]) sliceForm() uint8 {
	if c.form == bytesForm {
		return formBytes
	}
	return formCounted
}

// elementSize returns the size of the elements of a slice type if their
// encodings are as in memory, else -1.
func elementSize[E any](c *typeCodec[[]E]) int {
	if c.form == bytesForm {
		return 1
	}
	if m := &c.prog.moves[0]; m.op == moveRun && m.raw && m.size == m.elem.mem {
		return m.size
	}
	return -1
}

// Elems returns an iterator over the elements of the slice that is the value
// of k, with their indexes; there are none if it has no value. They are read a
// few at a time, unless a [Codec] of the caller's decodes the whole value.
//
// The dict may be changed meanwhile, also by the loop, which runs as that over
// an [EMList] does: over the indexes below the length that the value had at the
// start, ending early if the value becomes shorter or goes. Each element is
// one that the value had at its index when some were read. Damage ends the loop;
// [EMDict.Err] tells.
func Elems[K comparable, E any](d *EMDict[K, []E], k K) iter.Seq2[int, E] {
	return func(yield func(int, E) bool) {
		if err := eachElem(d, &k, yield); err != nil {
			d.d.a.fault(&d.d.handle, "elems", 0, err)
		}
	}
}

func eachElem[K comparable, E any](d *EMDict[K, []E], k *K, yield func(int, E) bool) error {
	if d.val.form == userForm {
		var v []E
		var ok bool
		err := d.get(k, &v, &ok)
		for i := 0; i < len(v) && yield(i, v[i]); i++ {
		}
		return err
	}
	b := d.buffers()
	defer d.pool.Put(b)
	key, err := d.encodeKey(b, k)
	if err != nil {
		return err
	}
	if len(key) > maxKeySize {
		return d.d.a.check(&d.d.handle)
	}
	r := elemReader{d: d.d, hash: d.d.hash(key), key: key, form: d.val.sliceForm(), buf: b.val}
	defer func() { b.val = r.buf }()
	if size := elementSize(d.val); size >= 0 {
		r.size = size
		return eachRaw(&r, yield)
	}
	return eachEncoded(&r, d.val.prog.moves[0].elem, yield)
}

// eachRaw is Elems for elements whose encodings are as in memory.
func eachRaw[E any](r *elemReader, yield func(int, E) bool) error {
	for i, end := 0, maxEmptyValues; i < end; {
		some, err := r.read(i*r.size, max(elemBatch, r.size))
		if err != nil {
			return err
		}
		if r.total != max(r.count, 0)*r.size {
			return corrupt("slice of %d elements in %d bytes", r.count, r.total)
		}
		end = min(end, r.count)
		for n := min(end-i, len(some)/r.size); n > 0; i, n = i+1, n-1 {
			var e E
			some = some[copy(memoryOf(&e), some):]
			if !yield(i, e) {
				return nil
			}
		}
	}
	return nil
}

// eachEncoded is Elems for elements that p decodes.
func eachEncoded[E any](r *elemReader, p *program, yield func(int, E) bool) error {
	var e, zero E
	next := 0      // to be yielded
	i, off := 0, 0 // of the first element that was not read
	for end, want := maxEmptyValues, elemBatch; i < end; {
		some, err := r.read(off, want)
		if err != nil {
			return err
		}
		if !r.same {
			i, off = 0, 0
		}
		end = min(end, r.count)
		before := next
		for i < end {
			e = zero
			var left []byte
			if left, err = p.decode(unsafe.Pointer(&e), some, &decoder{}); err != nil {
				break
			}
			off += len(some) - len(left)
			some = left
			i++
			if i <= next {
				continue
			}
			next = i
			if !yield(i-1, e) {
				return nil
			}
		}
		switch {
		case err != nil && off+len(some) >= r.total:
			return fmt.Errorf("element %d: %w", i, err)
		case next == before: // what was read ends before it
			want *= 2
		case r.same:
			want = elemBatch
		}
	}
	if i == r.count && off != r.total {
		return corrupt("slice of %d elements with %d bytes behind them", i, r.total-off)
	}
	return nil
}

// elemBatch is how many bytes of a value a loop copies at once.
const elemBatch = 32 << 10

// An elemReader reads a value of a slice type part by part.
type elemReader struct {
	d    *dict
	hash uint64
	key  []byte
	form uint8
	size int // of an element, 0 if it varies
	buf  []byte

	// What the last read has found.
	count    int  // elements
	total    int  // bytes of them
	same     bool // the value is the one before, or that and more
	table    *segmentTable
	replaced uint32
}

// read returns n bytes of the elements from off on, or as many as there are;
// if they vary in size and the value may not be the same any more, those from
// its start on. It is none if there is no value.
func (r *elemReader) read(off, n int) ([]byte, error) {
	var table *segmentTable
	var replaced uint32
	err := r.d.read(r.hash, func(t *segmentTable, seg *segment, s uint64) (err error) {
		defer catchFault(&err, debug.SetPanicOnFault(true))
		r.buf, r.count, r.total = r.buf[:0], 0, 0
		b, i, err := r.d.search(t, seg, s, r.hash, r.key)
		if err != nil || b == nil {
			return err
		}
		table, replaced = t, seg.replaced.Load()
		r.same = table == r.table && replaced == r.replaced && replaced&1 == 0
		from := off
		if !r.same && r.size == 0 {
			from = 0
		}
		return r.readAt(b, i, from, n)
	})
	r.table, r.replaced = table, replaced
	return r.buf, err
}

// readAt reads from the entry of slot i.
func (r *elemReader) readAt(b *bucket, i, off, n int) error {
	e, ok := r.d.layout.entry(b, entryOff(b, i))
	if !ok {
		return corrupt("entry passes the end of its bucket")
	}
	recs := &r.d.recs
	val := b[e.val:e.end]
	if e.valFar {
		x := b.refAt(e.val)
		var err error
		switch {
		case x.grows():
			g, err := recs.growing(x)
			if err != nil {
				return err
			}
			r.count, r.total = g.count, g.size
			off = min(off, g.size)
			r.buf, err = recs.appendElements(r.buf, &g, off, off+min(n, g.size-off))
			return err
		case x.inPieces():
			return r.readPieces(x, off, n)
		}
		if val, err = recs.bytes(x); err != nil {
			return err
		}
	}
	all, err := split(r.form, val)
	r.count, r.total = all.count, len(all.b)
	part := all.b[min(off, len(all.b)):]
	r.buf = append(r.buf, part[:min(n, len(part))]...)
	return err
}

// readPieces reads from a record in pieces.
func (r *elemReader) readPieces(x ref, off, n int) (err error) {
	recs := &r.d.recs
	_, total, _, err := recs.pieces(x)
	if err != nil {
		return err
	}
	r.count, r.total = total-1, total-1
	head := 0
	if r.form == formCounted {
		var b [binary.MaxVarintLen64]byte
		start, err := recs.getPieces(b[:0], x, 0, len(b))
		if err != nil {
			return err
		}
		v, w := binary.Uvarint(start)
		if w <= 0 || v-1 > maxEmptyValues {
			return corruptAt(x.off(), "slice of impossible length")
		}
		head, r.count, r.total = w, int(v)-1, total-w
	}
	off = min(off, r.total)
	r.buf, err = recs.getPieces(r.buf, x, head+off, head+off+min(n, r.total-off))
	return err
}

// elements are those of a slice, as they are encoded.
type elements struct {
	form  uint8
	count int // -1 for those of the nil slice
	b     []byte
}

// split takes apart the encoding of a slice.
func split(form uint8, val []byte) (elements, error) {
	switch n := len(val); {
	case form == formBytes && n == 0:
		return elements{form, -1, nil}, nil
	case form == formBytes && val[n-1] == 0:
		return elements{form, n - 1, val[:n-1]}, nil
	case form == formCounted:
		v, w := binary.Uvarint(val)
		if w > 0 && v <= maxEmptyValues {
			return elements{form, int(v) - 1, val[w:]}, nil
		}
	}
	return elements{form: form}, corrupt("%d bytes are no slice", len(val))
}

// join is the encoding of count elements that lie in two parts.
func join(dst []byte, form uint8, count int, x, y []byte) []byte {
	if form == formCounted {
		dst = binary.AppendUvarint(dst, uint64(count)+1)
	}
	dst = append(append(dst, x...), y...)
	if form == formBytes {
		dst = append(dst, 0)
	}
	return dst
}

// joined returns the size of what join returns. It is ErrTooLarge if that
// cannot be a value.
func joined(form uint8, count, size int64) (int, error) {
	switch {
	case form == formBytes:
		size++
	case count >= maxEmptyValues:
		return 0, fmt.Errorf("%w: slice of %d elements, at most %d", ErrTooLarge, count, maxEmptyValues-1)
	default:
		size += int64((bits.Len64(uint64(count)+1) + 6) / 7)
	}
	if size > maxValueSize {
		return 0, fmt.Errorf("%w: value of %d bytes, at most %d", ErrTooLarge, size, maxValueSize)
	}
	return int(size), nil
}

// errMoreRoom says that a change needs more memory than it was admitted with.
var errMoreRoom = errors.New("the change needs more memory")

// freeRoom is how many bytes of records any change is admitted with.
const freeRoom = 2 * pageSize

// appendTo appends elements to the value of key.
func (d *dict) appendTo(h uint64, key []byte, more elements) error {
	if _, err := joined(more.form, int64(more.count), int64(len(more.b))); err != nil {
		return err
	}
	for size := len(key) + len(more.b); ; {
		t, seg, err := d.enter(h, size, nil)
		if err != nil {
			return err
		}
		err = d.appendInside(t, seg, h, key, more, &size)
		if err != errFanOut && err != errMoreRoom {
			return d.leave(seg, err, nil)
		}
		seg.mu.Unlock()
		if err == errFanOut {
			if err := d.fanOut(); err != nil {
				return err
			}
		}
	}
}

// appendInside is appendTo with the lock held and the gate open. errMoreRoom
// asks for a new admission, of the given size.
func (d *dict) appendInside(t *segmentTable, seg *segment, h uint64, key []byte, more elements, admitted *int) error {
	p, found, err := d.locate(seg.bucket(h), h, key, 0)
	if err != nil {
		return err
	}
	var buf, joinBuf [maxSlotted]byte
	if !found {
		return d.storeSlotted(t, seg, h, key, join(joinBuf[:0], more.form, more.count, more.b, nil))
	}
	off := entryOff(p.b, p.i)
	e, _ := d.layout.entry(p.b, off)
	var x ref
	if e.valFar {
		if x = p.b.refAt(e.val); x.grows() {
			return d.appendInPlace(seg, p, e.val, x, more, admitted)
		}
	}
	val := buf[:0]
	if e.valFar && !x.inPieces() {
		val, err = d.recs.bytes(x)
	} else {
		val, err = d.valueAt(val, p.b, p.i)
	}
	if err != nil {
		return err
	}
	was, err := split(more.form, val)
	if err != nil {
		return err
	}
	count := max(was.count, 0) + more.count
	size, err := joined(more.form, int64(count), int64(len(was.b))+int64(len(more.b)))
	if err != nil {
		return err
	}
	if !e.valFar && (size <= growFrom || e.end-e.val < farSize) {
		return d.storeSlotted(t, seg, h, key, join(joinBuf[:0], more.form, count, was.b, more.b))
	}
	if size > max(*admitted, freeRoom) {
		*admitted = size
		return errMoreRoom
	}
	y, err := d.recs.newGrowing(was, more, 0)
	if err != nil {
		return err
	}
	if e.valFar {
		d.setFarValue(seg, p, e.val, y)
		return d.recs.free(x)
	}
	// A far value is shorter than the one that was here.
	f := slottedForm{keyFar: e.keyFar, valFar: true}
	var keyRef ref
	if e.keyFar {
		keyRef = p.b.refAt(e.key)
	}
	entry := d.layout.appendEntry(joinBuf[:0], f, key, nil, keyRef, y)
	d.a.space.touch(p.no, lineMask(off, len(entry)))
	seg.begin()
	copy(p.b[off:], entry)
	seg.end()
	return nil
}

// appendInPlace appends elements to the growing record x, to which offset off
// of place p refers.
func (d *dict) appendInPlace(seg *segment, p place, off int, x ref, more elements, admitted *int) error {
	g, err := d.recs.growing(x)
	if err != nil {
		return err
	}
	if g.form != more.form {
		return corruptAt(x.off(), "slice in the form %d", g.form)
	}
	if _, err := joined(g.form, int64(g.count)+int64(more.count), int64(g.size)+int64(len(more.b))); err != nil {
		return err
	}
	size := g.size + len(more.b)
	if g.largest == 0 && growHeader+size > g.room {
		y, err := d.recs.newGrowing(elements{g.form, g.count, g.head[growHeader:][:g.size]}, more, g.room)
		if err != nil {
			return err
		}
		d.setFarValue(seg, p, off, y)
		return d.recs.free(x)
	}
	if g.largest != 0 {
		if room := d.recs.extentRoom(&g, size); room > max(*admitted, freeRoom) {
			*admitted = room
			return errMoreRoom
		}
	}
	y := g
	if err := d.recs.grow(&y, more.b); err != nil {
		return err
	}
	y.size, y.count = size, g.count+more.count
	if y.x != x {
		y.put(d.a.space)
		d.setFarValue(seg, p, off, y.x)
		return d.recs.release(x.off(), g.room) // the extents are those of y
	}
	d.a.space.mark(x.off(), growHeader)
	seg.begin()
	y.putLengths()
	seg.end()
	return nil
}

// setFarValue changes the ref at offset off of place p.
func (d *dict) setFarValue(seg *segment, p place, off int, x ref) {
	d.a.space.touch(p.no, lineMask(off, farSize))
	seg.begin()
	binary.LittleEndian.PutUint64(p.b[off:], uint64(x))
	seg.end()
}

// A growing is the head of a growing record.
type growing struct {
	x           ref
	head        []byte // room bytes
	size, count int
	room        int
	form        uint8
	largest     uint8
}

// growing reads the head of a growing record. It checks the lengths, but not
// yet where the extents lie.
func (r *records) growing(x ref) (g growing, err error) {
	le := binary.LittleEndian
	h := r.a.space.view(x.off(), growHeader)
	if h == nil || x.off() < slotPages<<pageShift || le.Uint16(h[growMagicOff:]) != growMagic {
		return g, corruptAt(x.off(), "no growing record")
	}
	size, count, room := le.Uint32(h[growSizeOff:]), le.Uint32(h[growCountOff:]), le.Uint32(h[growRoomOff:])
	g = growing{x: x, form: h[growFormOff], largest: h[growLargestOff]}
	if size > maxValueSize || count >= maxEmptyValues || room > maxValueSize || g.form > formBytes || g.largest > maxExtentOrder+1 ||
		g.form == formBytes && count != size || g.largest != 0 && size == 0 {
		return g, corruptAt(x.off(), "growing record of %d elements and %d bytes, in the form %d", count, size, g.form)
	}
	g.size, g.count, g.room = int(size), int(count), int(room)
	if roomFor(g.room) != g.room || growHeader+g.inHead() > g.room {
		return g, corruptAt(x.off(), "growing record of %d bytes, with %d for its head", g.size, g.room)
	}
	if g.head = r.a.space.view(x.off(), g.room); g.head == nil {
		return g, corruptAt(x.off(), "growing record outside the file")
	}
	return g, nil
}

// inHead returns the bytes of the head that are in use, but for its header.
func (g *growing) inHead() int {
	if g.largest == 0 {
		return g.size
	}
	return 4 * g.extents()
}

// put writes the header.
func (g *growing) put(s *space) {
	s.mark(g.x.off(), growHeader)
	g.putLengths()
	le := binary.LittleEndian
	le.PutUint32(g.head[growRoomOff:], uint32(g.room))
	g.head[growFormOff], g.head[growLargestOff] = g.form, g.largest
	le.PutUint16(g.head[growMagicOff:], growMagic)
}

// putLengths writes what an append changes. The caller has marked the header.
func (g *growing) putLengths() {
	binary.LittleEndian.PutUint32(g.head[growSizeOff:], uint32(g.size))
	binary.LittleEndian.PutUint32(g.head[growCountOff:], uint32(g.count))
}

// extents returns how many there are.
func (g *growing) extents() int {
	if g.size == 0 || g.largest == 0 {
		return 0
	}
	i, _, _ := g.extentOf(g.size - 1)
	return i + 1
}

// extentOf returns which extent has byte at of the elements, at which byte it
// begins, and its size in pages.
func (g *growing) extentOf(at int) (i, start int, pages uint32) {
	switch page, largest := at>>pageShift, 1<<(g.largest-1); {
	case page == 0:
		return 0, 0, 1
	case page < largest:
		i = bits.Len(uint(page))
		return i, pageSize << (i - 1), 1 << (i - 1)
	default:
		k := page >> (g.largest - 1)
		return int(g.largest) - 1 + k, k * largest << pageShift, uint32(largest)
	}
}

func (g *growing) extent(i int) pageNo {
	return binary.LittleEndian.Uint32(g.head[growHeader+4*i:])
}

// eachExtent calls fn with the extents: where they begin, their pages, and how
// many bytes they have in use.
func (g *growing) eachExtent(fn func(p pageNo, pages uint32, used int) error) error {
	for at := 0; at < g.size && g.largest != 0; {
		i, _, pages := g.extentOf(at)
		used := min(g.size-at, int(pages)<<pageShift)
		if err := fn(g.extent(i), pages, used); err != nil {
			return err
		}
		at += used
	}
	return nil
}

// part returns the memory of the elements from byte at to the end of its
// extent, and where it lies.
func (r *records) part(g *growing, at int) (off uint64, b []byte, err error) {
	if g.largest == 0 {
		return g.x.off() + growHeader + uint64(at), g.head[growHeader+at:], nil
	}
	i, start, pages := g.extentOf(at)
	p := g.extent(i)
	if b, err = r.extent(g, p, pages); err != nil {
		return 0, nil, err
	}
	return uint64(p)<<pageShift + uint64(at-start), b[at-start:], nil
}

// extent returns the memory of an extent.
func (r *records) extent(g *growing, p pageNo, pages uint32) ([]byte, error) {
	b := r.a.space.view(uint64(p)<<pageShift, int(pages)<<pageShift)
	if b == nil || p < slotPages {
		return nil, corruptAt(g.x.off(), "extent at page %d outside the file", p)
	}
	return b, nil
}

// appendElements appends the bytes from..to of the elements to dst.
func (r *records) appendElements(dst []byte, g *growing, from, to int) ([]byte, error) {
	for from < to {
		_, b, err := r.part(g, from)
		if err != nil {
			return dst, err
		}
		n := min(len(b), to-from)
		dst = append(dst, b[:n]...)
		from += n
	}
	return dst, nil
}

// getGrowing appends the value that a growing record stands for to dst.
func (r *records) getGrowing(dst []byte, x ref) ([]byte, error) {
	g, err := r.growing(x)
	if err != nil {
		return dst, err
	}
	if end, _ := r.a.alloc.usage(); uint64(g.size) > end<<pageShift {
		return dst, corruptAt(x.off(), "growing record of %d bytes in a file of %d pages", g.size, end)
	}
	dst = slices.Grow(dst, g.size+binary.MaxVarintLen64)
	if g.form == formCounted {
		dst = binary.AppendUvarint(dst, uint64(g.count)+1)
	}
	if dst, err = r.appendElements(dst, &g, 0, g.size); err == nil && g.form == formBytes {
		dst = append(dst, 0)
	}
	return dst, err
}

// newGrowing stores elements as a growing record, with room for as many again
// as there were. before is the room of the head that they come from, 0 if they
// come from elsewhere.
func (r *records) newGrowing(was, more elements, before int) (x ref, err error) {
	g := growing{form: was.form, count: max(was.count, 0) + more.count, size: len(was.b) + len(more.b)}
	if room := max(growHeader+g.size, 2*(growHeader+len(was.b)), 2*before); room <= maxSlab {
		g.room = roomFor(room)
	} else {
		g.largest = uint8(min(maxExtentOrder, r.a.alloc.order)) + 1
		g.room = roomFor(max(extentsHead, growHeader+4*g.extents()))
	}
	g.size = 0
	off, err := r.space(g.room)
	if err != nil {
		return 0, err
	}
	g.x, g.head = makeRef(off, 0), r.a.space.view(off, g.room)
	for _, b := range [][]byte{was.b, more.b} {
		if err := r.grow(&g, b); err != nil {
			return 0, errors.Join(err, r.freeExtents(&g), r.release(off, g.room))
		}
		g.size += len(b)
	}
	g.put(r.a.space)
	if g.largest != 0 {
		r.countLarge(+1)
	}
	return g.x, nil
}

// grow writes data behind the elements of g, where it means nothing yet, with
// as many new extents as that takes; elements in the head have room there. If
// the head has no room for the extents, g gets another, whose header is yet to
// be written. On error everything is as it was.
func (r *records) grow(g *growing, data []byte) (err error) {
	old, end := *g, *g
	end.size += len(data)
	var made []pageRun
	defer func() {
		if err == nil {
			return
		}
		for _, run := range made {
			err = errors.Join(err, r.a.alloc.free(run.p, run.n))
		}
		if g.x != old.x {
			err = errors.Join(err, r.release(g.x.off(), g.room))
		}
		*g = old
	}()
	if need := growHeader + end.inHead(); need > g.room {
		g.room = roomFor(max(need, 2*g.room))
		off, err := r.space(g.room)
		if err != nil {
			return err
		}
		g.x, g.head = makeRef(off, 0), r.a.space.view(off, g.room)
		n := growHeader + old.inHead()
		r.a.space.mark(off, n)
		copy(g.head, old.head[:n])
	}
	for at, next := g.size, g.extents(); len(data) > 0; {
		fresh := false
		if g.largest != 0 {
			i, _, pages := g.extentOf(at)
			if fresh = i == next; fresh {
				p, err := r.newExtent(pages, end.size-g.size)
				if err != nil {
					return err
				}
				made = append(made, pageRun{p, pages})
				r.a.space.mark(g.x.off()+growHeader+4*uint64(i), 4)
				binary.LittleEndian.PutUint32(g.head[growHeader+4*i:], p)
				next++
			}
		}
		off, b, err := r.part(g, at)
		if err != nil {
			return err
		}
		n := min(len(b), len(data))
		r.a.space.mark(off, n)
		copy(b, data[:n])
		if fresh {
			if run := made[len(made)-1]; r.spillsExtent(run.n, end.size-g.size) {
				if err := r.a.spill(run.p, run.n); err != nil {
					return err
				}
			}
		}
		at, data = at+n, data[n:]
	}
	return nil
}

// newExtent returns pages for an extent that is made to add n bytes.
func (r *records) newExtent(pages uint32, n int) (pageNo, error) {
	if r.spillsExtent(pages, n) {
		return r.a.alloc.allocFresh(pages)
	}
	return r.pages(pages)
}

// spillsExtent says that an extent that is made to add n bytes would take too
// much of the DirtyLimit, or all that is added would; it goes to the file at once.
func (r *records) spillsExtent(pages uint32, n int) bool {
	return int64(pages)<<pageShift > r.a.limit/4 || r.a.spillsRecord(n)
}

// extentRoom bounds the private memory that new extents take if the elements
// come to have the given size.
func (r *records) extentRoom(g *growing, size int) (room int) {
	for at := g.size; at < size; {
		_, start, pages := g.extentOf(at)
		if start >= g.size && !r.spillsExtent(pages, size-g.size) {
			room += int(pages) << pageShift
		}
		at = start + int(pages)<<pageShift
	}
	return room
}

// freeGrowing gives the space of a growing record back. It goes on after a
// damaged extent, and returns the first such finding.
func (r *records) freeGrowing(x ref) error {
	g, err := r.growing(x)
	if err != nil {
		return err
	}
	err = r.freeExtents(&g)
	if g.largest != 0 {
		r.countLarge(-1)
	}
	return errors.Join(err, r.release(x.off(), g.room))
}

func (r *records) freeExtents(g *growing) (first error) {
	_ = g.eachExtent(func(p pageNo, pages uint32, _ int) error {
		_, err := r.extent(g, p, pages)
		if err == nil {
			err = r.a.alloc.free(p, pages)
		}
		if err != nil && first == nil {
			first = err
		}
		return nil
	})
	return first
}

// growing is ref for a growing record, the value of a dict of the given type.
func (c *recordCheck) growing(x ref, sig string) error {
	g, err := c.r.growing(x)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(sig, "[]") || (sig == "[]uint8") != (g.form == formBytes) {
		return corruptAt(x.off(), "growing record of the form %d is a value of type %s", g.form, sig)
	}
	if err := c.space(x.off(), g.room); err != nil || g.largest == 0 {
		return err
	}
	c.large++
	return g.eachExtent(func(p pageNo, pages uint32, _ int) error {
		if _, err := c.r.extent(&g, p, pages); err != nil {
			return err
		}
		return c.own(p, pages)
	})
}
