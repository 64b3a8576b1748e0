package emd

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unsafe"
)

// A list has one writer at a time. Readers do not lock: they read between two
// looks at counters. shape counts what moves elements, takes some away or
// frees space; the stripes count changes of single elements, each those of a
// block of 2^grain slots (and of others that fall on it). What is appended
// lies behind the end that readers know, and needs neither.
type list struct {
	handle
	width   uint64 // of a slot, in bytes
	refs    bool   // slots hold refs
	untyped bool   // width and refs follow from the header page, until that is loaded
	word    bool   // slots are loaded and stored whole by the machine: they cannot tear
	grain   uint8  // log2 of the slots of the first extent, and of a block
	recs    records

	table      atomic.Pointer[extentTable] // never nil
	first, end atomic.Uint64               // physical indexes
	_          [64]byte
	shape      ownLine
	stripes    [listStripes]ownLine

	writer writerLock
	tail   slotRoom
}

const listStripes = 64

// An ownLine is a version with a cache line to itself, so that writers of one
// stripe do not slow down readers of others.
type ownLine struct {
	version
	_ [56]byte
}

// A slotRoom is where the next elements go: n slots in a row from the one at
// mem, which is at offset off of the file.
type slotRoom struct {
	mem unsafe.Pointer
	off uint64
	n   uint64

	line  uint64  // the line of the file that was marked last, 0 for none
	dirty *uint64 // the dirty lines of its page
}

// newList returns the core of a list whose elements take size bytes, or that
// of one with elements of variable size if size is negative. It is empty and
// not in the file.
func newList(a *Arena, name, signature string, size int) *list {
	l := &list{}
	l.handle.a, l.name, l.kind, l.value = a, name, kindList, signature
	l.recs.init(a, 0)
	if size < 0 || size > maxSlot {
		l.setWidth(8, true)
	} else {
		l.setWidth(uint64(size), false)
	}
	l.forget()
	return l
}

// setWidth fixes the form of a slot.
func (l *list) setWidth(width uint64, refs bool) {
	l.width, l.refs = width, refs
	l.word = !refs && bits.OnesCount64(width) == 1 && width <= uint64(unsafe.Sizeof(uintptr(0)))
	l.grain = 0
	if width <= pageSize {
		l.grain = uint8(bits.Len64(pageSize/max(1, width)) - 1)
	}
}

// ---- reading

// firstFault returns what first ended a loop early; the arena need not tell it again.
func (l *list) firstFault() error {
	err := l.err.Load()
	if err == nil {
		return nil
	}
	l.a.faultMu.Lock()
	defer l.a.faultMu.Unlock()
	if l.a.firstFault == *err {
		l.a.faultSeen = true
	}
	return *err
}

// fault keeps what ended a loop early.
func (l *list) fault(op string, err error) { l.a.fault(&l.handle, op, 0, err) }

// result gives an error of a public method its place. A bad index panics.
func (l *list) result(op string, err error) error {
	if err == nil {
		return nil
	}
	if bad, ok := err.(indexError); ok {
		panic(bad)
	}
	return l.a.opError(op, &l.handle, 0, err)
}

// slotsAt returns the memory of n slots from p on, all of one extent: nil if
// that is absent, ok false if the table leads out of the file.
func (l *list) slotsAt(t *extentTable, p, n uint64) (b []byte, ok bool) {
	if m := t.memory(p); m != nil {
		return unsafe.Slice((*byte)(m), n*t.width), true
	}
	k, at := t.locate(p)
	e := t.entry(k)
	if e == 0 {
		return nil, true
	}
	if k-t.base < uint64(len(t.mem)) {
		l.tryRemember(k)
	}
	b = l.a.space.view(uint64(e)<<pageShift+at*t.width, int(n*t.width))
	return b, b != nil
}

// remember notes the memory of extent k, if it is sound. The caller holds the
// lock.
func (l *list) remember(k uint64) {
	t := l.table.Load()
	i := k - t.base
	if i >= uint64(len(t.mem)) || t.entry(k) == 0 {
		return
	}
	if b := l.a.space.view(uint64(t.entry(k))<<pageShift, int(t.pages(k))<<pageShift); b != nil {
		l.table.Store(t.setMem(k, unsafe.Pointer(unsafe.SliceData(b))))
	}
}

// tryRemember is remember for readers, who have the lock only if it is free
// and no Rollback or Close is at work.
func (l *list) tryRemember(k uint64) {
	if !l.writer.mu.TryLock() {
		return
	}
	defer l.writer.mu.Unlock()
	if l.shape.load()&1 == 0 {
		l.remember(k)
	}
}

// damaged is the finding that slot p lies outside the file.
func (l *list) damaged(t *extentTable, p uint64) error {
	k, _ := t.locate(p)
	return corruptAt(t.off+4*(k-t.base), "extent %d at page %d lies outside the file", k, t.entry(k))
}

// A listReader reads a list that others change: begin, read, done, and all
// over again if done says so. In between nothing it reads can be trusted.
type listReader struct {
	l      *list
	stamp  listStamp
	tries  int
	locked bool
}

// A listStamp is the state of a list, and of one block, at a read.
type listStamp struct {
	shape  uint64
	stripe *version // nil: the shape only
	seen   uint64
}

// current says whether what was read under s is what the list holds now.
func (l *list) current(s listStamp) bool {
	return l.shape.load() == s.shape && (s.stripe == nil || s.stripe.load() == s.seen)
}

// begin starts an attempt. It fails when the list is closed.
func (r *listReader) begin() error {
	l := r.l
	for {
		switch {
		case !optimistic:
			l.writer.mu.Lock()
			r.locked = true
		case r.tries > 200: // a commit or rollback at work: nothing to win by haste
			time.Sleep(50 * time.Microsecond)
			r.locked = l.writer.mu.TryLock()
		case r.tries > 3:
			runtime.Gosched()
			r.locked = l.writer.mu.TryLock()
		}
		r.tries++
		r.stamp = listStamp{shape: l.shape.load()}
		if r.stamp.shape&1 == 0 {
			return nil
		}
		r.unlock()
		if err := l.a.check(&l.handle); err != nil {
			return err
		}
	}
}

// watch adds the block of slot p to what must not change.
func (r *listReader) watch(p uint64) {
	r.stamp.stripe = r.l.stripe(p)
	r.stamp.seen = r.stamp.stripe.load()
}

// done says whether what was read since begin is consistent.
func (r *listReader) done() bool {
	readFence()
	ok := r.stamp.seen&1 == 0 && r.l.current(r.stamp)
	r.unlock()
	return ok
}

func (r *listReader) unlock() {
	if r.locked {
		r.l.writer.mu.Unlock()
		r.locked = false
	}
}

func (l *list) stripe(p uint64) *version {
	return &l.stripes[p>>(l.grain&63)%listStripes].version
}

// count returns the number of elements.
func (l *list) count() (int, error) {
	r := listReader{l: l}
	for {
		if err := r.begin(); err != nil {
			return 0, err
		}
		n := int(l.end.Load() - l.first.Load())
		if r.done() {
			return n, nil
		}
	}
}

// An element is what a list holds at an index, as bytes.
type element struct {
	b    []byte
	zero bool // never written: the zero value
	ok   bool // the list has that index
}

// lookup appends element i to dst.
func (l *list) lookup(dst []byte, i int) (e element, err error) {
	r := listReader{l: l}
	for {
		if err := r.begin(); err != nil {
			return element{}, err
		}
		e = element{b: dst}
		first := l.first.Load()
		if e.ok = uint64(i) < l.end.Load()-first; e.ok {
			r.watch(first + uint64(i))
			e.b, e.zero, err = l.read(dst, first+uint64(i))
		}
		if r.done() {
			return e, err
		}
	}
}

// get is lookup where a bad index is the caller's fault.
func (l *list) get(dst []byte, i int) (e element, err error) {
	e, err = l.lookup(dst, i)
	if err == nil && !e.ok {
		n, err := l.count()
		if err != nil {
			return e, err
		}
		return e, badIndex(i, max(n, 0))
	}
	return e, err
}

// tryRead copies element i, which fills a slot, to dst. It is false when
// writers interfered, or damage, or a bad index.
func (l *list) tryRead(dst []byte, i int) bool {
	r := listReader{l: l, stamp: listStamp{shape: l.shape.load()}}
	first := l.first.Load()
	if uint64(i) >= l.end.Load()-first || r.stamp.shape&1 != 0 {
		return false
	}
	p := first + uint64(i)
	r.watch(p)
	src, ok := l.slotsAt(l.table.Load(), p, 1)
	if !ok {
		return false
	}
	if src == nil {
		clear(dst)
	} else {
		copy(dst, src)
	}
	return r.done()
}

// read appends the element in slot p to dst.
func (l *list) read(dst []byte, p uint64) (b []byte, zero bool, err error) {
	t := l.table.Load()
	slot, ok := l.slotsAt(t, p, 1)
	switch {
	case !ok:
		return dst, false, l.damaged(t, p)
	case slot == nil && t.width != 0:
		return dst, true, nil
	case !l.refs:
		return append(dst, slot...), false, nil
	}
	x := ref(binary.LittleEndian.Uint64(slot))
	if x == 0 {
		return dst, true, nil
	}
	b, err = l.recs.get(dst, x)
	return b, false, err
}

// run copies slots to dst, which has room for whole ones: those from element
// i on, or, backwards, those up to and including it; as many as lie in one
// block, and none if the list has no element i. The stamp tells later whether
// they are still what the list holds.
func (l *list) run(dst []byte, i int, backwards bool) (n int, stamp listStamp, err error) {
	r := listReader{l: l}
	room := uint64(math.MaxInt64)
	if l.width != 0 {
		room = uint64(len(dst)) / l.width
	}
	for {
		if err := r.begin(); err != nil {
			return 0, listStamp{}, err
		}
		first, end := l.first.Load(), l.end.Load()
		lo, hi := uint64(0), uint64(0)
		err = nil
		if first <= end && uint64(i) < end-first { // end may be newer than first
			p := first + uint64(i)
			r.watch(p)
			block := p >> (l.grain & 63) << (l.grain & 63)
			if backwards {
				hi = p + 1
				lo = max(block, first, hi-min(room, hi))
			} else {
				lo = p
				hi = min(block+1<<(l.grain&63), end, lo+min(room, math.MaxUint64-lo))
			}
			err = l.copySlots(dst, lo, hi-lo)
		}
		if r.done() {
			return int(hi - lo), r.stamp, err
		}
	}
}

// checkRange panics about a bad range of an open list.
func (l *list) checkRange(i, j int) {
	if uint(i) <= uint(j) && uint64(j) <= l.end.Load()-l.first.Load() && l.shape.load()&1 == 0 {
		return
	}
	if n, err := l.count(); err == nil {
		if err := checkRange(i, j, n); err != nil {
			panic(err)
		}
	}
}

// tryRun returns the memory of the elements [i, j), which are some, if they lie
// in a row and are no more than a loop is to read at once; nil says that this
// takes a closer look. Most runs are a few elements of a large list, for which
// that look would take longer than the loop.
func (l *list) tryRun(i, j int) unsafe.Pointer {
	shape := l.shape.load()
	first := l.first.Load()
	if n := uint64(j - i); uint64(j) > l.end.Load()-first || shape&1 != 0 || n*l.width >= aheadSize {
		return nil
	}
	t := l.table.Load()
	p := t.memory(first + uint64(i))
	if p == nil || t.room(first+uint64(i)) < uint64(j-i) || l.shape.load() != shape {
		return nil
	}
	return p
}

// runAt returns the memory of up to most elements from i on, as many as lie in a
// row, and how many these are: none if the list has no element i. nil is absent
// ones.
func (l *list) runAt(i, most int) (mem unsafe.Pointer, n int, err error) {
	r := listReader{l: l}
	for {
		if err := r.begin(); err != nil {
			return nil, 0, err
		}
		mem, n, err = nil, 0, nil
		first, end := l.first.Load(), l.end.Load()
		if first <= end && uint64(i) < end-first { // end may be newer than first
			t, p := l.table.Load(), first+uint64(i)
			n = int(min(uint64(most), end-p, t.room(p)))
			b, ok := l.slotsAt(t, p, uint64(n))
			if !ok {
				n, err = 0, l.damaged(t, p)
			}
			mem = unsafe.Pointer(unsafe.SliceData(b))
		}
		if r.done() {
			return mem, n, err
		}
	}
}

// A lookahead asks for what a loop is about to read, a piece of aheadSize bytes
// at a time: it waits for the piece that the loop has come to, and has the next
// ones read meanwhile, the more the longer the loop goes on, as it may end early.
// It does so only for pieces that are not in memory, as to ask takes nearly as
// long as to read what is. From the first of them on it leaves all but the waiting to
// the system, where that reads ahead better. Shorter loops do without.
type lookahead struct {
	l         *list
	from, end int
	next      int        // element that the next piece begins with
	asked     int        // elements before it have been asked for, or are in memory
	ready     int        // elements before it are in memory
	left      int        // elements before it, from some on, are left to the system
	streams   []streamed // where these are; done takes them back
}

// A streamed range is one of the file that the system reads ahead.
type streamed struct {
	off  uint64
	size int
}

const (
	aheadSize  = 1 << 20
	aheadDepth = 8 << 20  // bytes from the loop on, in the end: a disk reads several pieces at once
	streamSize = 64 << 20 // bytes that are left to the system at once
)

func (l *list) lookAhead(i, end int) lookahead {
	if l.width == 0 || end-i < aheadSize/int(l.width) {
		i = end
	}
	return lookahead{l: l, from: i, end: end, next: i, asked: i, ready: i}
}

// reach notes that the loop has come to element i.
func (a *lookahead) reach(i int) {
	if i < a.next || i >= a.end {
		return
	}
	s, width := a.l.a.space, int(a.l.width)
	off, size, n := a.place(i, aheadSize/width)
	a.next = i + n
	cold := false
	if i >= a.ready {
		is, _ := s.inMemory(off, size)
		cold = !is
	}
	streams := (cold || a.streams != nil) && a.stream(i)
	if cold && !streams {
		s.prefetchRange(off, size)
	}
	if cold {
		s.await(off, size)
	}
	if streams {
		return
	}
	a.asked, a.ready = max(a.asked, a.next), max(a.ready, a.next)
	depth := min(aheadDepth/width, 2*(aheadSize/width+i-a.from))
	for a.asked < a.end && a.asked-i < depth {
		off, size, n = a.place(a.asked, aheadSize/width)
		if is, _ := s.inMemory(off, size); !is {
			s.prefetchRange(off, size)
		} else if a.ready == a.asked {
			a.ready += n
		}
		a.asked += n
	}
}

// stream leaves what follows from element i on to the system, if that reads
// ahead better, and no longer what came before.
func (a *lookahead) stream(i int) bool {
	if i < a.left {
		return true
	}
	a.done()
	end := i + min(a.end-i, streamSize/int(a.l.width)+1)
	for at := i; at < end; {
		off, size, n := a.place(at, end-at)
		if at += n; size == 0 {
			continue
		}
		if !a.l.a.space.stream(off, size, true) {
			a.done()
			return false
		}
		a.streams = append(a.streams, streamed{off, size})
	}
	a.left = end
	return true
}

// done ends what stream began. Loops defer it.
func (a *lookahead) done() {
	for _, r := range a.streams {
		a.l.a.space.stream(r.off, r.size, false)
	}
	a.streams = nil
}

// place returns the place of n elements from i on, at most most of them, in one
// extent; they are absent if size is 0.
func (a *lookahead) place(i, most int) (off uint64, size, n int) {
	l, t := a.l, a.l.table.Load()
	p := l.first.Load() + uint64(i)
	slots := min(uint64(a.end-i), uint64(max(1, most)), t.room(p))
	if k, at := t.locate(p); t.entry(k) != 0 {
		off, size = uint64(t.entry(k))<<pageShift+at*t.width, int(slots*t.width)
	}
	return off, size, int(slots)
}

// copySlots copies n slots from p on, all of one extent, to dst.
func (l *list) copySlots(dst []byte, p, n uint64) (err error) {
	defer catchFault(&err, debug.SetPanicOnFault(true))
	t := l.table.Load()
	src, ok := l.slotsAt(t, p, n)
	if !ok {
		return l.damaged(t, p)
	}
	dst = dst[:n*t.width]
	if src == nil {
		clear(dst)
	} else {
		copy(dst, src)
	}
	return nil
}

// ---- changing

// enter admits a change of at most cost bytes of private memory and locks the
// list for it. Errors are those of a list that cannot be changed.
func (l *list) enter(cost int64) error { return l.enterAs(cost, false) }

// enterAs is enter also for the one who holds the list.
func (l *list) enterAs(cost int64, holder bool) error {
	for {
		if err := l.a.admit(cost); err != nil {
			return err
		}
		l.enterAnyway(holder)
		if l.hdr != 0 && l.shape.load()&1 == 0 {
			return nil
		}
		l.leave()
		if err := l.a.check(&l.handle); err != nil {
			return err
		}
		if err := l.a.ensure(l); err != nil {
			return err
		}
	}
}

// enterAnyway locks an active list, whatever its state.
func (l *list) enterAnyway(holder bool) {
	for {
		if holder {
			l.writer.mu.Lock()
		} else {
			l.writer.lockKey(0)
		}
		if l.active.Load() {
			return
		}
		l.writer.mu.Unlock()
		l.a.gate.include(l)
	}
}

func (l *list) leave() { l.writer.mu.Unlock() }

// lockShort is enter, for a change of a slot and of extra bytes at most, where
// nothing is in the way. Nearly every change is one of these. A list without a header
// has no slots and no room in its tail; the arena may have been closed before the lock.
func (l *list) lockShort(extra int64) bool {
	if !l.a.admits(l.smallCost() + extra) {
		return false
	}
	l.writer.mu.Lock()
	if len(l.writer.busy) == 0 && l.active.Load() && !l.shape.changing() {
		return true
	}
	l.writer.mu.Unlock()
	return false
}

// enterFor is enter for a change whose cost depends on the list: need tells
// it, inside.
func (l *list) enterFor(holder bool, need func() (int64, error)) error {
	cost := l.smallCost()
	for {
		if err := l.enterAs(cost, holder); err != nil {
			return err
		}
		n, err := need()
		if err == nil && n <= cost {
			return nil
		}
		l.leave()
		if err != nil {
			return err
		}
		cost = n
	}
}

// smallCost is what a change of a slot and the header may cost.
func (l *list) smallCost() int64 { return 2*pageSize + int64(l.width) }

// A holding is how a list was when somebody began to keep other writers away.
// Only a Rollback, Drop or Close changes it behind his back: then the epoch is
// another.
type holding struct{ epoch, first, end uint64 }

// hold keeps other writers away until release, without a lock: callbacks may
// run meanwhile.
func (l *list) hold() holding {
	l.writer.lockRange(0, math.MaxUint64)
	defer l.writer.mu.Unlock()
	l.writer.setBusy(0, math.MaxUint64, nil)
	return holding{l.epoch.Load(), l.first.Load(), l.end.Load()}
}

func (l *list) release() {
	l.writer.mu.Lock()
	defer l.writer.mu.Unlock()
	l.writer.clearBusy(0, math.MaxUint64, nil)
}

func (l *list) claim(by *claim) {
	l.writer.lockRange(0, math.MaxUint64)
	defer l.writer.mu.Unlock()
	l.writer.setBusy(0, math.MaxUint64, by)
}

func (l *list) disclaim(by *claim) {
	l.writer.mu.Lock()
	defer l.writer.mu.Unlock()
	l.writer.clearBusy(0, math.MaxUint64, by)
}

// overtaken returns why a change that began with h cannot go on.
func (l *list) overtaken(h holding) error {
	if l.epoch.Load() == h.epoch {
		return nil
	}
	if err := l.a.check(&l.handle); err != nil {
		return err
	}
	return ErrRolledBack
}

// lostTo returns why a list that is held has become shorter.
func (l *list) lostTo(h holding) error {
	if err := l.overtaken(h); err != nil {
		return err
	}
	return corrupt("list became shorter while it was held")
}

// The methods below, as far as the comment does not say otherwise, are for
// the writer, who holds the lock.

func (l *list) len() uint64 { return l.end.Load() - l.first.Load() }

// slot returns the slot of element i.
func (l *list) slot(i int) (p uint64, err error) {
	if n := l.len(); uint64(i) >= n {
		return 0, badIndex(i, int(n))
	}
	return l.first.Load() + uint64(i), nil
}

// writable returns the memory of n slots from p on, all of one extent, and
// marks it as changed.
func (l *list) writable(p, n uint64) ([]byte, error) {
	t := l.table.Load()
	b, ok := l.slotsAt(t, p, n)
	if !ok || b == nil && t.width != 0 {
		return nil, l.damaged(t, p)
	}
	k, at := t.locate(p)
	l.a.space.mark(uint64(t.entry(k))<<pageShift+at*t.width, len(b))
	return b, nil
}

// put stores the bytes b in slot p of a list without refs.
func (l *list) put(p uint64, b []byte) error {
	m, err := l.writable(p, 1)
	if err != nil {
		return err
	}
	l.beginSlot(p)
	storeSlot(m, b)
	l.endSlot(p)
	return nil
}

// storeSlot copies one slot; a word at once.
func storeSlot(dst, src []byte) {
	d, s := unsafe.Pointer(unsafe.SliceData(dst)), unsafe.Pointer(unsafe.SliceData(src))
	switch {
	case len(dst) != len(src):
		panic("emd: element of another size than the slot")
	case len(src) == 8:
		*(*uint64)(d) = *(*uint64)(s)
	case len(src) == 4:
		*(*uint32)(d) = *(*uint32)(s)
	case len(src) == 2:
		*(*uint16)(d) = *(*uint16)(s)
	default:
		copy(dst, src)
	}
}

// beginSlot and endSlot enclose a change of slot p. Readers of words need not
// notice one, as it happens at once; a loop wants to know afterwards.
func (l *list) beginSlot(p uint64) {
	if !l.word {
		l.stripe(p).begin()
	}
}

func (l *list) endSlot(p uint64) {
	if l.word {
		l.stripe(p).step()
	} else {
		l.stripe(p).end()
	}
}

// loadRef returns the ref in slot p.
func (l *list) loadRef(p uint64) (ref, error) {
	t := l.table.Load()
	b, ok := l.slotsAt(t, p, 1)
	if !ok {
		return 0, l.damaged(t, p)
	}
	if b == nil {
		return 0, nil
	}
	return ref(binary.LittleEndian.Uint64(b)), nil
}

// refBytes returns x as a slot holds it.
func refBytes(x ref) (b [8]byte) {
	binary.LittleEndian.PutUint64(b[:], uint64(x))
	return b
}

// set replaces element i. It locks.
func (l *list) set(i int, b []byte) error {
	if l.refs {
		return l.setRecord(i, b, nil)
	}
	if m, p := l.lockSlot(i); m != nil {
		storeSlot(unsafe.Slice((*byte)(m), l.width), b)
		l.unlockSlot(p)
		return nil
	}
	return l.setReserved(i, b)
}

// lockSlot locks the list for a new element i, whose slot p it marks as changed,
// and returns the memory of that. It does so where nothing is in the way, as
// nearly always; otherwise it returns nil, and nothing is locked.
func (l *list) lockSlot(i int) (m unsafe.Pointer, p uint64) {
	// The slot is looked up before the lock, so that it comes from memory while
	// that is taken. Inside, it is the same if the shape is.
	shape := l.shape.load()
	first := l.first.Load()
	if uint64(i) >= l.end.Load()-first {
		return nil, 0
	}
	t := l.table.Load()
	p = first + uint64(i)
	run, at := t.run(p)
	if run == nil {
		return nil, 0
	}
	m = unsafe.Add(run, at*t.width)
	prefetch(m)
	s := l.a.space
	no, in := s.pageOf(m)
	dirty := s.dirtyLines(no)
	prefetch(unsafe.Pointer(dirty))
	if !l.lockShort(0) {
		return nil, 0
	}
	if l.shape.load() != shape {
		l.leave()
		return nil, 0
	}
	if no != 0 && (in^(in+uintptr(t.width)-1))>>lineShift == 0 {
		s.touchAlone(no, dirty, in)
	} else {
		k, at := t.locate(p)
		s.mark(uint64(t.entry(k))<<pageShift+at*t.width, int(t.width))
	}
	l.beginSlot(p)
	return m, p
}

func (l *list) unlockSlot(p uint64) {
	l.endSlot(p)
	l.leave()
}

// setReserved is set where the element may have no extent.
func (l *list) setReserved(i int, b []byte) error {
	err := l.enterFor(false, func() (int64, error) {
		p, err := l.slot(i)
		return l.growth(p, p+1) + l.smallCost(), err
	})
	if err != nil {
		return err
	}
	defer l.leave()
	p, _ := l.slot(i)
	if err := l.reserve(p, p+1); err != nil {
		return err
	}
	return l.put(p, b)
}

// setRecord is set for a record, by whoever holds the list if h is not nil.
func (l *list) setRecord(i int, b []byte, h *holding) error {
	err := l.enterFor(h != nil, func() (int64, error) {
		p, err := l.slot(i)
		if h != nil && err == nil {
			err = l.overtaken(*h)
		}
		return l.growth(p, p+1) + 2*l.smallCost() + l.a.costOf(len(b)), err
	})
	if err != nil {
		return err
	}
	defer l.leave()
	p, _ := l.slot(i)
	if err := l.reserve(p, p+1); err != nil {
		return err
	}
	old, err := l.loadRef(p)
	if err != nil {
		return err
	}
	l.beginSlot(p)
	defer l.endSlot(p)
	x, err := l.recs.replace(old, b)
	if x == 0 {
		return err
	}
	slot, werr := l.writable(p, 1)
	if werr != nil {
		return werr
	}
	binary.LittleEndian.PutUint64(slot, uint64(x))
	return err // the old record was damaged: it is out of use now
}

// swap exchanges the elements i and j. It locks.
func (l *list) swap(i, j int) error {
	var p, q uint64
	err := l.enterFor(false, func() (cost int64, err error) {
		if p, err = l.slot(i); err != nil {
			return 0, err
		}
		q, err = l.slot(j)
		return l.growth(p, p+1) + l.growth(q, q+1) + 2*l.smallCost(), err
	})
	if err != nil {
		return err
	}
	defer l.leave()
	if p == q || l.width == 0 || l.present(p, p+1)+l.present(q, q+1) == 0 {
		return nil
	}
	if err := l.reserve(p, p+1); err != nil {
		return err
	}
	if err := l.reserve(q, q+1); err != nil {
		return err
	}
	x, err := l.writable(p, 1)
	if err != nil {
		return err
	}
	y, err := l.writable(q, 1)
	if err != nil {
		return err
	}
	l.beginSlot(p)
	if l.stripe(p) != l.stripe(q) {
		l.beginSlot(q)
	}
	if l.word {
		var was [8]byte
		copy(was[:], x)
		storeSlot(x, y)
		storeSlot(y, was[:l.width])
	} else {
		for i := range x {
			x[i], y[i] = y[i], x[i]
		}
	}
	l.endSlot(p)
	if l.stripe(p) != l.stripe(q) {
		l.endSlot(q)
	}
	return nil
}

// ---- the list as a container

// newListFromFile returns a list whose elements are known by their signature
// only: load believes the header about their size.
func newListFromFile(h *handle) container {
	l := newList(h.a, h.name, h.value, 0)
	l.untyped = true
	return l
}

func (l *list) base() *handle { return &l.handle }
func (l *list) lock()         { l.writer.mu.Lock() }
func (l *list) unlock()       { l.writer.mu.Unlock() }

func (l *list) turnAway() {
	if !l.shape.changing() {
		l.shape.begin()
	}
}

func (l *list) readmit() { l.shape.end() }

// flush writes the bounds to the header page.
func (l *list) flush() {
	if l.hdr == 0 || l.state.Load() != stateOpen {
		return
	}
	first, n := l.first.Load(), l.len()
	if h := l.header(); h.first() != first || h.len() != n {
		l.a.space.touch(l.hdr, 1)
		h.setBounds(first, n)
	}
}

// create makes the header page of an empty list.
func (l *list) create() (pageNo, error) {
	p, err := l.a.alloc.alloc(1)
	if err != nil {
		return 0, err
	}
	l.a.space.touch(p, allLines)
	h := listHeader(l.a.space.page(p)[:])
	clear(h)
	copy(h[listKindOff:], listKind)
	h.setGeometry(uint32(l.width), l.refs, l.largest())
	l.writeLabel(l.a.space.page(p))
	return p, l.load(p)
}

// largest returns log2 of the slots of the largest extents of a new list. They are
// small, for in a region, whose first pages are taken, the room of one is lost; but
// maxExtents of them hold 2^40 words, or a file. They are at most an
// eighth of the limit, so that a rewriting can hold some at once.
func (l *list) largest() uint8 {
	size := int64(maxExtentSize)
	if l.width <= 8 {
		size /= 2
	}
	size = min(size, l.a.limit/8, int64(l.a.alloc.maxRun())<<pageShift)
	return max(l.grain, uint8(bits.Len64(uint64(size)/max(1, l.width))-1))
}

// forget makes the list empty and not in the file.
func (l *list) forget() {
	l.hdr = 0
	l.first.Store(0)
	l.end.Store(0)
	l.tail = slotRoom{}
	l.table.Store(&extentTable{grain: l.grain, last: l.grain, width: l.width})
}

// load reads the header page h and believes none of it.
func (l *list) load(h pageNo) error {
	l.forget()
	if h == 0 {
		return nil
	}
	pg := l.a.space.peek(h)
	if pg == nil || h < slotPages {
		return corruptAt(uint64(h)<<pageShift, "list at page %d", h)
	}
	hdr, off := listHeader(pg[:]), uint64(h)<<pageShift
	if string(hdr[:len(listKind)]) != listKind {
		return corruptAt(off, "no list here")
	}
	if hdr.size() > maxSlot || hdr.refs() && hdr.size() != 8 {
		return corruptAt(off+listSizeOff, "list with slots of %d bytes", hdr.size())
	}
	if l.untyped {
		l.setWidth(uint64(hdr.size()), hdr.refs())
		l.forget()
		l.untyped = false // the list may have readers when it is loaded again
	}
	if uint64(hdr.size()) != l.width || hdr.refs() != l.refs {
		return corruptAt(off+listSizeOff, "list with slots of %d bytes, elements need %d", hdr.size(), l.width)
	}
	t := extentTable{grain: l.grain, last: hdr.last(), width: l.width, base: hdr.base(), off: off + listInlineOff}
	if t.last < t.grain || t.last > 40 || (l.width<<t.last+pageSize-1)>>pageShift > uint64(l.a.alloc.maxRun()) && t.last != t.grain {
		return corruptAt(off+listLastOff, "extents of 2^%d slots of %d bytes", t.last, l.width)
	}
	n := hdr.len()
	if hdr.first() > 1<<62 || n > 1<<40 {
		return corruptAt(off+listFirstOff, "list of %d elements from %d on", n, hdr.first())
	}
	if n > maxListLen {
		return ErrTooLarge
	}
	t.entries = tableEntries(pg[listInlineOff:])
	if hdr.cap() != 0 {
		t.off = hdr.table()
		if hdr.cap() > maxExtents || t.off%16 != 0 || t.off < slotPages<<pageShift {
			return corruptAt(off+listTableOff, "table of %d extents at %#x", hdr.cap(), t.off)
		}
		if t.entries = tableEntries(l.a.space.view(t.off, 4*int(hdr.cap()))); t.entries == nil {
			return corruptAt(off+listTableOff, "table of %d extents at %#x", hdr.cap(), t.off)
		}
	}
	if t.base > 1<<62 {
		return corruptAt(off+listBaseOff, "table from extent %d on", t.base)
	}
	t.makeMem()
	l.hdr = h
	l.recs.init(l.a, off+listRecordsOff)
	l.table.Store(&t)
	l.first.Store(hdr.first())
	l.end.Store(hdr.first() + n)
	return nil
}

// length returns the number of elements, 0 if the list is closed.
func (l *list) length() int64 {
	n, err := l.count()
	if err != nil {
		return 0
	}
	return int64(n)
}

// size returns the bytes of the file that the list takes, records not
// counted.
func (l *list) size() int64 {
	l.lock()
	defer l.unlock()
	if l.hdr == 0 || l.a.check(&l.handle) != nil {
		return 0
	}
	t := l.table.Load()
	n := int64(pageSize)
	if !l.inline(t) {
		n += 4 * int64(len(t.entries))
	}
	lo, hi := t.window()
	for k := lo; k < hi; k++ {
		if t.entry(k) != 0 {
			n += int64(t.pages(k)) << pageShift
		}
	}
	return n
}

// free gives back all that the list has.
func (l *list) free() error {
	if l.hdr == 0 {
		return nil
	}
	err := l.empty()
	err = errors.Join(err, l.a.alloc.free(l.hdr, 1))
	l.forget()
	return err
}

// verify checks that the list keeps its own rules, and tells own each run of
// pages that it has. Nobody changes it meanwhile.
func (l *list) verify(own func(p pageNo, n uint32) error) error {
	if l.hdr == 0 {
		return nil
	}
	if err := own(l.hdr, 1); err != nil {
		return err
	}
	check, err := l.recs.verify(own)
	if err != nil {
		return err
	}
	t := l.table.Load()
	if !l.inline(t) {
		if err := check.space(t.off, 4*len(t.entries)); err != nil {
			return err
		}
	}
	first, end := l.first.Load(), l.end.Load()
	from, _ := t.locate(first)
	to, _ := t.locate(end)
	lo, hi := t.window()
	for k := lo; k < hi; k++ {
		e := t.entry(k)
		if e == 0 {
			continue
		}
		if k < from || k > to+1 || l.width == 0 {
			return corruptAt(t.off+4*(k-t.base), "extent %d, but elements are in %d to %d", k, from, to)
		}
		if e < slotPages || l.a.space.view(uint64(e)<<pageShift, int(t.pages(k))<<pageShift) == nil {
			return l.damaged(t, t.start(k))
		}
		if err := own(e, t.pages(k)); err != nil {
			return err
		}
	}
	if l.refs {
		var damage error
		err := l.eachExtent(first, end, func(_ uint64, b []byte) error {
			for ; len(b) >= 8 && damage == nil; b = b[8:] {
				damage = check.ref(ref(binary.LittleEndian.Uint64(b)))
			}
			return damage
		})
		if err != nil {
			return err
		}
	}
	return check.done()
}
