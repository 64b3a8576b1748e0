package emd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"unsafe"
)

// What follows changes lists by ranges: it grows, shrinks and moves them.

// appendSlots appends n slots, all or none. It locks.
func (l *list) appendSlots(b []byte, n uint64, holder bool) error {
	if !holder {
		if m := l.lockTail(n); m != nil {
			storeSlot(unsafe.Slice((*byte)(m), len(b)), b)
			l.unlockTail(n)
			return nil
		}
	}
	cost := l.smallCost() + int64(len(b))
	for {
		if err := l.enterAs(cost, holder); err != nil {
			return err
		}
		if n <= l.tail.n {
			l.fillTail(b, n)
			l.leave()
			return nil
		}
		end := l.end.Load()
		need := l.smallCost() + int64(len(b)) + l.growth(end, end+n)
		if need <= cost {
			break
		}
		l.leave()
		cost = need
	}
	defer l.leave()
	return l.extend(b, n)
}

// lockTail locks the list for n more elements, whose slots it marks as changed,
// and returns the memory of these. It does so where the tail has room and nothing
// is in the way; otherwise it returns nil, and nothing is locked.
func (l *list) lockTail(n uint64) unsafe.Pointer {
	if !l.lockShort(int64(n * l.width)) {
		return nil
	}
	if n <= l.tail.n {
		l.markTail(n * l.width)
		return l.tail.mem
	}
	l.leave()
	return nil
}

// markTail marks the next size bytes of the tail as changed. Small elements go to
// the line of the one before, which may be marked still.
func (l *list) markTail(size uint64) {
	t := &l.tail
	line := t.off >> lineShift
	if line == t.line && line == (t.off+size-1)>>lineShift && !raceEnabled && *t.dirty&(1<<(line&63)) != 0 {
		return
	}
	l.a.space.markAlone(t.off, size)
	t.line = (t.off + size - 1) >> lineShift
	t.dirty = l.a.space.dirtyLines(pageNo(t.line << lineShift >> pageShift))
}

func (l *list) unlockTail(n uint64) {
	l.showTail(n)
	l.leave()
}

// fillTail appends n slots, for which the tail has room.
func (l *list) fillTail(b []byte, n uint64) {
	l.markTail(uint64(len(b)))
	storeSlot(unsafe.Slice((*byte)(l.tail.mem), len(b)), b)
	l.showTail(n)
}

// showTail appends the n slots that the tail begins with.
func (l *list) showTail(n uint64) {
	size := n * l.width
	if l.tail.n -= n; l.tail.n != 0 {
		l.tail.mem = unsafe.Add(l.tail.mem, size)
	}
	l.tail.off += size
	if wholeWords && !raceEnabled && size <= pageSize { // see beginShort
		addPlain(&l.end, n)
	} else {
		l.end.Store(l.end.Load() + n)
	}
}

// extend appends n slots, all or none.
func (l *list) extend(b []byte, n uint64) error {
	end := l.end.Load()
	if l.len()+n > maxListLen {
		return ErrTooLarge
	}
	if l.width == 0 {
		l.end.Store(end + n)
		return nil
	}
	if err := l.reserve(end, end+n); err != nil {
		return err
	}
	for t := l.table.Load(); n > 0; {
		k, at := t.locate(l.end.Load())
		room := min(t.slots(k)-at, maxListLen-l.len())
		m, ok := l.slotsAt(t, l.end.Load(), room)
		if !ok || m == nil {
			return l.damaged(t, l.end.Load())
		}
		l.tail = slotRoom{mem: unsafe.Pointer(unsafe.SliceData(m)), off: uint64(t.entry(k))<<pageShift + at*l.width, n: room}
		part := min(n, room)
		l.fillTail(b[:part*l.width], part)
		b, n = b[part*l.width:], n-part
	}
	return nil
}

// A batch is a sequence of encoded elements: the i-th ends at ends[i].
type batch struct {
	b    []byte
	ends []int
}

func (b *batch) at(i int) []byte {
	if i == 0 {
		return b.b[:b.ends[0]]
	}
	return b.b[b.ends[i-1]:b.ends[i]]
}

// cost is the private memory that the records of b may take.
func (b *batch) cost(a *Arena) (n int64) {
	for i := range b.ends {
		n += a.costOf(len(b.at(i))) + 8
	}
	return n
}

// appendRecords appends the elements of b, all or none. It locks.
func (l *list) appendRecords(b *batch, holder bool) error {
	n := uint64(len(b.ends))
	cost := 2*l.smallCost() + b.cost(l.a)
	err := l.enterFor(holder, func() (int64, error) {
		end := l.end.Load()
		return cost + l.growth(end, end+n), nil
	})
	if err != nil {
		return err
	}
	defer l.leave()
	refs, err := l.putRecords(b)
	if err != nil {
		return err
	}
	if err := l.extend(refs, n); err != nil {
		l.freeRefs(refs)
		return err
	}
	return nil
}

// putRecords stores the elements of b as records, all or none, and returns
// the slots that refer to them.
func (l *list) putRecords(b *batch) ([]byte, error) {
	refs := make([]byte, 0, 8*len(b.ends))
	for i := range b.ends {
		x, err := l.recs.put(b.at(i))
		if err != nil {
			l.freeRefs(refs)
			return nil, err
		}
		refs = binary.LittleEndian.AppendUint64(refs, uint64(x))
	}
	return refs, nil
}

// freeRefs frees the records that the slots in b refer to. It goes on after a
// damaged one, and returns the first such finding.
func (l *list) freeRefs(b []byte) (first error) {
	for ; len(b) >= 8; b = b[8:] {
		if err := l.recs.free(ref(binary.LittleEndian.Uint64(b))); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// freeRecords frees the records of the slots [p, q), if the list has records.
func (l *list) freeRecords(p, q uint64) error {
	if !l.refs {
		return nil
	}
	return l.eachExtent(p, q, func(_ uint64, b []byte) error { return l.freeRefs(b) })
}

// eachExtent calls fn with the slots of [p, q) that are not absent, extent by
// extent. It goes on after an error, and returns the first.
func (l *list) eachExtent(p, q uint64, fn func(p uint64, b []byte) error) (first error) {
	t := l.table.Load()
	lo, hi := t.span(p, q)
	for k := lo; k < hi; k++ {
		from, to := max(p, t.start(k)), min(q, t.start(k+1))
		b, ok := l.slotsAt(t, from, to-from)
		var err error
		switch {
		case !ok:
			err = l.damaged(t, from)
		case b != nil:
			err = fn(from, b)
		}
		if err != nil && first == nil {
			first = err
		}
	}
	return first
}

// freeCost bounds the private memory that freeing n elements takes. A
// container's slabs are changed by a line each; that those of many records
// would pass the limit is not foreseen: the excess is small.
func (l *list) freeCost(n uint64) int64 {
	if !l.refs {
		return 0
	}
	return int64(min(n, uint64(l.a.limit/4/pageSize))) * pageSize
}

// reshape makes a change that readers must not see half done.
func (l *list) reshape(fn func() error) error {
	l.shape.begin()
	defer l.shape.end()
	return fn()
}

// setBounds makes [first, end) the slots of the list and frees the extents
// outside. Readers are turned away.
func (l *list) setBounds(first, end uint64) error {
	t := l.table.Load()
	oldFirst, _ := t.locate(l.first.Load())
	oldEnd, _ := t.locate(l.end.Load())
	if first == end {
		return l.setEmpty(oldFirst, oldEnd+2)
	}
	if end != l.end.Load() {
		l.tail = slotRoom{}
	}
	l.first.Store(first)
	l.end.Store(end)
	k, _ := t.locate(first)
	err := l.dropRange(oldFirst, k)
	k, at := t.locate(end)
	if at >= t.slots(k)/2 {
		k++ // a spare: popping and appending around a border must not allocate
	}
	return errors.Join(err, l.dropRange(k+1, oldEnd+2))
}

// setEmpty makes the list empty, frees the extents [lo, hi), all that it has,
// and starts again at slot 0. Readers are turned away. The first extent, a page,
// is kept: a queue is often empty.
func (l *list) setEmpty(lo, hi uint64) error {
	l.tail = slotRoom{}
	l.first.Store(0)
	l.end.Store(0)
	if t := l.table.Load(); t.base == 0 && l.inline(t) {
		return l.dropRange(max(lo, 1), hi)
	}
	return errors.Join(l.dropRange(lo, hi), l.inlineTable())
}

// move moves n slots from src on to dst, both ranges of which have extents.
func (l *list) move(dst, src, n uint64) error {
	if l.width == 0 || dst == src {
		return nil
	}
	t := l.table.Load()
	for n > 0 {
		m := n
		d, s := dst, src
		if dst < src {
			m = min(n, t.room(dst), t.room(src))
			dst, src = dst+m, src+m
		} else { // from the back, as memmove does
			m = min(n, t.roomBefore(dst+n), t.roomBefore(src+n))
			d, s = dst+n-m, src+n-m
		}
		from, ok := l.slotsAt(t, s, m)
		if !ok || from == nil {
			return l.damaged(t, s)
		}
		to, err := l.writable(d, m)
		if err != nil {
			return err
		}
		copy(to, from)
		n -= m
	}
	return nil
}

// A move that takes more private memory than half the limit is made by a
// rewriting instead.
func (l *list) tooMuch(slots uint64) bool { return slots > uint64(l.a.limit/2)/max(1, l.width) }

// rewriteCost is the private memory of a rewriting.
func (l *list) rewriteCost() int64 {
	t := l.table.Load()
	return int64(l.width<<t.last) + pageSize + 4*l.smallCost() + 32*int64(len(t.entries))
}

// manyElements are worth giving everything back when the list becomes empty,
// rather than keeping some space for the next ones.
const manyElements = 1 << 10

// remove deletes the elements [i, j). It locks.
func (l *list) remove(i, j int) error {
	var p, q, first, end uint64 // what goes, and the list
	err := l.enterFor(false, func() (int64, error) {
		if err := checkRange(i, j, int(l.len())); err != nil {
			return 0, err
		}
		first, end = l.first.Load(), l.end.Load()
		p, q = first+uint64(i), first+uint64(j)
		if p-first < end-q {
			return l.moveCost(first, p-first) + l.freeCost(q-p), nil
		}
		return l.moveCost(q, end-q) + l.freeCost(q-p), nil
	})
	if err != nil {
		return err
	}
	defer l.leave()
	if p == first && q == end && q-p >= manyElements {
		return l.reshape(l.empty)
	}
	// The shorter part moves, to lo.
	n := q - p
	lo, src, moved := p, q, end-q
	if p-first < end-q {
		lo, src, moved = first+n, first, p-first
		first += n
	} else {
		end -= n
	}
	apply := func() error { return l.move(lo, src, moved) }
	if l.tooMuch(moved) || !l.dense(min(lo, src), max(lo, src)+moved) {
		w, err := l.rewrite(lo, lo+moved, func(w *rewriting, dst, n uint64) error { return w.copy(dst, dst-lo+src, n) })
		if err != nil {
			return err
		}
		apply = w.adopt
	}
	return l.reshape(func() error {
		damage := l.freeRecords(p, q)
		if err := apply(); err != nil {
			return err
		}
		if err := l.setBounds(first, end); err != nil {
			return err
		}
		return damage // it is gone now
	})
}

// moveCost is the private memory of moving n slots from src on.
func (l *list) moveCost(src, n uint64) int64 {
	if l.tooMuch(n) || !l.dense(src, src+n) {
		return l.rewriteCost()
	}
	return int64(n*l.width) + l.smallCost()
}

// insert puts n slots before element i. It locks.
func (l *list) insert(i int, b []byte, n uint64) error {
	return l.insertAs(i, n, int64(len(b)), func() ([]byte, error) { return b, nil })
}

// insertRecords puts the elements of b before element i. It locks.
func (l *list) insertRecords(i int, b *batch) error {
	return l.insertAs(i, uint64(len(b.ends)), b.cost(l.a), func() ([]byte, error) { return l.putRecords(b) })
}

func (l *list) insertAs(i int, n uint64, cost int64, slots func() ([]byte, error)) error {
	err := l.enterFor(false, func() (int64, error) {
		size := l.len()
		if uint64(i) > size {
			return 0, badBound(i, int(size))
		}
		if size+n > maxListLen {
			return 0, ErrTooLarge
		}
		g := l.openGap(uint64(i), n)
		if l.tooMuch(g.moved+n) && !l.refs {
			return l.rewriteCost(), nil
		}
		return cost + l.moveCost(g.src, g.moved) + l.growth(g.from, g.to), nil
	})
	if err != nil {
		return err
	}
	defer l.leave()
	b, err := slots()
	if err != nil {
		return err
	}
	if i == int(l.len()) && !l.tooMuch(n) {
		err = l.extend(b, n)
	} else {
		err = l.insertSlots(uint64(i), b, n)
	}
	if err != nil && l.refs {
		l.freeRefs(b)
	}
	return err
}

// A gap is how slots are inserted: n of them, to go to p on, after moved
// others from src on have gone to lo.
type gap struct {
	p, n           uint64
	lo, src, moved uint64
	first, end     uint64 // the list afterwards
	from, to       uint64 // all that is written
}

// openGap plans n slots before element i: the shorter part moves, as far as
// there is room at the front.
func (l *list) openGap(i, n uint64) gap {
	first, end := l.first.Load(), l.end.Load()
	p := first + i
	if i < end-p && n <= first {
		return gap{p: p - n, n: n, lo: first - n, src: first, moved: i, first: first - n, end: end, from: first - n, to: p}
	}
	return gap{p: p, n: n, lo: p + n, src: p, moved: end - p, first: first, end: end + n, from: p, to: end + n}
}

// insertSlots stores the slots b before element i.
func (l *list) insertSlots(i uint64, b []byte, n uint64) error {
	g := l.openGap(i, n)
	apply := func() error {
		if err := l.move(g.lo, g.src, g.moved); err != nil {
			return err
		}
		return l.store(g.p, b)
	}
	if l.tooMuch(g.moved+n) || !l.dense(g.src, g.src+g.moved) {
		w, err := l.rewrite(g.from, g.to, func(w *rewriting, dst, n uint64) error { return w.splice(dst, n, &g, b) })
		if err != nil {
			return err
		}
		apply = w.adopt
	} else if err := l.reserve(g.from, g.to); err != nil {
		return err
	}
	return l.reshape(func() error {
		if err := apply(); err != nil {
			return err
		}
		return l.setBounds(g.first, g.end)
	})
}

// store copies slots to those from p on, all of which have extents.
func (l *list) store(p uint64, b []byte) error {
	for t := l.table.Load(); len(b) > 0; {
		n := min(uint64(len(b))/l.width, t.room(p))
		m, err := l.writable(p, n)
		if err != nil {
			return err
		}
		p += uint64(copy(m, b)) / l.width
		b = b[len(m):]
	}
	return nil
}

// replaceSlots stores n slots from element i on. Lines that stay as they are
// are not marked. It locks.
func (l *list) replaceSlots(i int, b []byte, n uint64, h holding) error {
	if l.width == 0 {
		return nil
	}
	p := h.first + uint64(i)
	err := l.enterFor(true, func() (int64, error) {
		return l.growth(p, p+n) + l.smallCost() + int64(len(b)), l.overtaken(h)
	})
	if err != nil {
		return err
	}
	defer l.leave()
	if l.present(p, p+n) < int64(len(b)) && !zeroBytes(b) {
		if err := l.reserve(p, p+n); err != nil {
			return err
		}
	}
	return l.reshape(func() error {
		return l.eachExtent(p, p+n, func(q uint64, m []byte) error {
			t := l.table.Load()
			k, at := t.locate(q)
			off := uint64(t.entry(k))<<pageShift + at*t.width
			for from, b := 0, b[(q-p)*l.width:]; from < len(m); {
				to := min(len(m), from+lineSize-int(off+uint64(from))%lineSize)
				if !bytes.Equal(m[from:to], b[from:to]) {
					l.a.space.mark(off+uint64(from), to-from)
					copy(m[from:to], b[from:to])
				}
				from = to
			}
			return nil
		})
	})
}

// fill stores the slot b in the elements [i, j). It locks.
func (l *list) fill(i, j int, b []byte) error {
	return l.fillAs(i, j, 0, func() ([]byte, error) { return b, nil })
}

// fillRecords stores b in the elements [i, j). It locks.
func (l *list) fillRecords(i, j int, b []byte) error {
	same := batch{b: b, ends: []int{len(b)}}
	return l.fillAs(i, j, same.cost(l.a), func() (refs []byte, err error) {
		for range j - i {
			x, err := l.putRecords(&same)
			if err != nil {
				l.freeRefs(refs)
				return nil, err
			}
			refs = append(refs, x...)
		}
		return refs, nil
	})
}

// fillAs stores slots in the elements [i, j): as many as needed, or one for
// all. cost is the memory that making one of them takes.
func (l *list) fillAs(i, j int, cost int64, slots func() ([]byte, error)) error {
	var p, q uint64
	err := l.enterFor(false, func() (int64, error) {
		if err := checkRange(i, j, int(l.len())); err != nil {
			return 0, err
		}
		p, q = l.first.Load()+uint64(i), l.first.Load()+uint64(j)
		if l.tooMuch(q - p) {
			return l.rewriteCost() + min(cost*int64(q-p), l.a.limit/4), nil
		}
		return l.smallCost() + l.present(p, q) + l.growth(p, q) + min(cost*int64(q-p), l.a.limit/4) + l.freeCost(q-p), nil
	})
	if err != nil || l.width == 0 {
		if err == nil {
			l.leave()
		}
		return err
	}
	defer l.leave()
	b, err := slots()
	if err != nil {
		return err
	}
	apply, err := l.planFill(p, q, b)
	if err != nil {
		if l.refs {
			l.freeRefs(b)
		}
		return err
	}
	return l.reshape(func() error {
		damage := l.freeRecords(p, q)
		if err := apply(); err != nil {
			return err
		}
		return damage
	})
}

// planFill prepares the storing of b in the slots [p, q): what is left to do
// cannot lack space. Zeros leave absent extents absent.
func (l *list) planFill(p, q uint64, b []byte) (apply func() error, err error) {
	zeros := zeroBytes(b)
	if l.tooMuch(q - p) {
		w, err := l.rewrite(p, q, func(w *rewriting, dst, n uint64) error {
			if zeros {
				return nil
			}
			m, err := w.slots(dst, n)
			if err == nil {
				fillSlots(m, b, (dst-p)*l.width, l.width)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		return w.adopt, nil
	}
	if !zeros {
		if err := l.reserve(p, q); err != nil {
			return nil, err
		}
	}
	return func() error {
		return l.eachExtent(p, q, func(at uint64, m []byte) error {
			if _, err := l.writable(at, uint64(len(m))/l.width); err != nil {
				return err
			}
			fillSlots(m, b, (at-p)*l.width, l.width)
			return nil
		})
	}, nil
}

// fillSlots stores in m the bytes of b from off on, or b all over again if it
// is a single slot.
func fillSlots(m, b []byte, off, size uint64) {
	const stride = 32 << 10 // stays in the cache
	switch {
	case uint64(len(b)) != size:
		copy(m, b[off:])
	case zeroBytes(b):
		clear(m)
	default:
		n := copy(m, b)
		for n < len(m) {
			n += copy(m[n:], m[:min(n, max(stride-stride%int(size), int(size)))])
		}
	}
}

func zeroBytes(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// resize gives the list n elements, the new ones absent. It locks.
func (l *list) resize(n int) error {
	var first, end, last uint64
	err := l.enterFor(false, func() (int64, error) {
		if n > maxListLen {
			return 0, ErrTooLarge
		}
		first, end = l.first.Load(), l.end.Load()
		last = first + uint64(n)
		if last < end {
			return 2*l.smallCost() + l.freeCost(end-last), nil
		}
		return l.smallCost() + l.present(end, last), nil
	})
	if err != nil {
		return err
	}
	defer l.leave()
	if last < end {
		return l.cut(last)
	}
	// What is there behind the end may not be zero.
	if err := l.eachExtent(end, last, l.zero); err != nil {
		return err
	}
	l.tail = slotRoom{}
	l.end.Store(last)
	return nil
}

// zero clears the slots b from p on. Pages that are zero are not touched.
func (l *list) zero(p uint64, b []byte) error {
	t := l.table.Load()
	k, at := t.locate(p)
	off := uint64(t.entry(k))<<pageShift + at*l.width
	for len(b) > 0 {
		n := min(len(b), pageSize-int(off&(pageSize-1)))
		if !zeroBytes(b[:n]) {
			l.a.space.mark(off, n)
			clear(b[:n])
		}
		b, off = b[n:], off+uint64(n)
	}
	return nil
}

// clear deletes all elements. It locks.
func (l *list) clear() error {
	err := l.enterFor(false, func() (int64, error) {
		return 4*l.smallCost() + l.freeCost(l.len()), nil
	})
	if err != nil {
		return err
	}
	defer l.leave()
	return l.reshape(l.empty)
}

// empty frees all that the list has but its header page. Readers are turned
// away.
func (l *list) empty() error {
	var damage error
	if l.refs && l.recs.anyLarge() {
		damage = l.eachExtent(l.first.Load(), l.end.Load(), func(_ uint64, b []byte) (first error) {
			for ; len(b) >= 8; b = b[8:] {
				err := l.recs.freeLarge(ref(binary.LittleEndian.Uint64(b)))
				if err != nil && first == nil {
					first = err
				}
			}
			return first
		})
	}
	l.tail = slotRoom{}
	lo, hi := l.table.Load().window()
	if err := l.dropRange(lo, hi); err != nil {
		damage = err
	}
	l.first.Store(0)
	l.end.Store(0)
	if err := l.inlineTable(); err != nil {
		damage = err
	}
	if err := l.recs.freeAll(); err != nil {
		damage = err
	}
	return damage
}

// pop deletes the last element of a list without refs and copies it to dst. It
// locks.
func (l *list) pop(dst []byte) (ok bool, err error) {
	if err := l.enter(2 * l.smallCost()); err != nil {
		return false, err
	}
	defer l.leave()
	if l.len() == 0 {
		return false, nil
	}
	p := l.end.Load() - 1
	if err := l.copySlots(dst, p, 1); err != nil {
		return false, err
	}
	return true, l.cut(p)
}

// truncate deletes the slots from end on of a list that the caller holds. It
// locks.
func (l *list) truncate(end uint64, h holding) error {
	err := l.enterFor(true, func() (int64, error) {
		return 2*l.smallCost() + l.freeCost(l.end.Load()-end), l.overtaken(h)
	})
	if err != nil {
		return err
	}
	defer l.leave()
	return l.cut(end)
}

// cut deletes the slots from end on.
func (l *list) cut(end uint64) error {
	return l.reshape(func() error {
		damage := l.freeRecords(end, l.end.Load())
		if err := l.setBounds(l.first.Load(), end); err != nil {
			return err
		}
		return damage
	})
}

// A piece is elements ready to be appended: n slots, or records to be made.
type piece struct {
	slots   []byte
	n       int
	records *batch
}

// pieceLen is how many elements are appended at once, without a chance to
// make room in between.
func (l *list) pieceLen() int {
	return int(max(1, min(1<<20, uint64(l.a.limit)/8)/max(1, l.width)))
}

func (l *list) appendPiece(p piece, holder bool) error {
	if p.records != nil {
		return l.appendRecords(p.records, holder)
	}
	return l.appendSlots(p.slots, uint64(p.n), holder)
}

// An appending appends piece by piece, all or none: what it has added goes
// again unless it is finished when it is closed.
type appending struct {
	l        *list
	h        holding
	finished bool
}

func (l *list) newAppending() appending { return appending{l: l, h: l.hold()} }

func (a *appending) add(p piece) error {
	if err := a.l.overtaken(a.h); err != nil {
		return err
	}
	return a.l.appendPiece(p, true)
}

func (a *appending) close() {
	if !a.finished {
		a.l.unappend(a.h)
	}
	a.l.release()
}

// unappend deletes what was appended since h began. It changes little, so it
// does not ask for memory that may be short.
func (l *list) unappend(h holding) {
	l.enterAnyway(true)
	defer l.leave()
	if l.overtaken(h) == nil && l.hdr != 0 {
		_ = l.cut(h.end) // the caller has an error already
	}
}
