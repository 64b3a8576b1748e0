package emd

import (
	"encoding/binary"
	"math"
	"math/bits"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unsafe"
)

// A list is the untyped core of an [EMList]: slots of one size in extents. A
// slot holds an element, or a ref to the record that does.
//
// Slots have a physical index that stays the same while the list grows at the
// back and shrinks at the front: element i is slot first+i. Extent 0 holds the
// slots below 2^grain, about a page of them; each further one doubles what is
// there, until extents have their largest size, 2^last slots; from there on
// all have that size. So slot p is found with a few instructions, nothing
// moves when the list grows, and at most half a small list, 16 MiB of a large
// one, is room to grow.
//
//	slots of    first extents:  2^grain  2^grain  2^(grain+1) ... 2^(last-1)
//	            all others:     2^last   2^last   2^last ...
//
// An extent is a run of pages. The table of extents has its first page, or 0
// where nothing was ever written: such slots read as zeros and take no space.
// The table covers a window of extents from number base on; entries outside it
// count as 0. It lies in the header page until it is larger than that has room
// for, then in space of the records. Extents that lie wholly outside [first,
// end) are free, except one spare behind the end. What a slot outside [first,
// end) holds is undefined.
//
// The header page:
//
//	0      8      12     13     14   16      24    32     40      48    52   64        176   3072
//	+------+------+------+------+----+-------+-----+------+-------+-----+----+---------+-----+--------+
//	| kind | size | refs | last | 0  | first | len | base | table | cap | 0  | records | 0   | inline |
//	+------+------+------+------+----+-------+-----+------+-------+-----+----+---------+-----+--------+
//
// size is that of a slot in bytes, refs says that slots hold refs; table and
// cap are the place and the number of entries of a table outside the page (0:
// inline). first and len change in memory and are written before a commit
// captures the page; the rest changes in place.
const (
	listKindOff    = 0
	listSizeOff    = listKindOff + 8
	listRefsOff    = listSizeOff + 4
	listLastOff    = listRefsOff + 1
	listFirstOff   = listLastOff + 3
	listLenOff     = listFirstOff + 8
	listBaseOff    = listLenOff + 8
	listTableOff   = listBaseOff + 8
	listCapOff     = listTableOff + 8
	listRecordsOff = 64
	listInlineOff  = pageSize - 4*inlineExtents

	listKind      = "EMDlist1"
	inlineExtents = 256
	maxExtents    = 1 << 22  // in a table
	maxExtentSize = 16 << 20 // bytes
	maxSlot       = 64 << 10 // bytes; larger elements are records
	maxListLen    = min(1<<40, math.MaxInt)
)

const _ = uint(listRecordsOff - listCapOff - 4)
const _ = uint(listInlineOff - listRecordsOff - recordsSize)

type listHeader []byte

func (h listHeader) size() uint32 { return binary.LittleEndian.Uint32(h[listSizeOff:]) }
func (h listHeader) refs() bool   { return h[listRefsOff] != 0 }
func (h listHeader) last() uint8  { return h[listLastOff] }
func (h listHeader) first() uint64 {
	return binary.LittleEndian.Uint64(h[listFirstOff:])
}
func (h listHeader) len() uint64   { return binary.LittleEndian.Uint64(h[listLenOff:]) }
func (h listHeader) base() uint64  { return binary.LittleEndian.Uint64(h[listBaseOff:]) }
func (h listHeader) table() uint64 { return binary.LittleEndian.Uint64(h[listTableOff:]) }
func (h listHeader) cap() uint32   { return binary.LittleEndian.Uint32(h[listCapOff:]) }

func (h listHeader) setGeometry(size uint32, refs bool, last uint8) {
	binary.LittleEndian.PutUint32(h[listSizeOff:], size)
	if refs {
		h[listRefsOff] = 1
	}
	h[listLastOff] = last
}

func (h listHeader) setBounds(first, n uint64) {
	binary.LittleEndian.PutUint64(h[listFirstOff:], first)
	binary.LittleEndian.PutUint64(h[listLenOff:], n)
}

func (h listHeader) setTable(base, off uint64, n uint32) {
	binary.LittleEndian.PutUint64(h[listBaseOff:], base)
	binary.LittleEndian.PutUint64(h[listTableOff:], off)
	binary.LittleEndian.PutUint32(h[listCapOff:], n)
}

// A list has one writer at a time. Readers do not lock: they read between two
// looks at counters. shape counts what moves elements, takes some away or
// frees space; the stripes count changes of single elements, each those of a
// block of 2^grain slots (and of others that fall on it). What is appended
// lies behind the end that readers know, and needs neither.
type list struct {
	handle
	width   uint64 // of a slot, in bytes
	refs    bool   // slots hold refs
	untyped bool   // width and refs follow from the header page
	word    bool   // slots are loaded and stored whole by the machine: they cannot tear
	grain   uint8  // log2 of the slots of the first extent, and of a block
	shard   uint   // of the gate
	recs    records

	table      atomic.Pointer[extentTable] // never nil
	first, end atomic.Uint64               // physical indexes
	loops      atomic.Int64                // running iterators
	_          [64]byte
	shape      version
	stripes    [listStripes]version

	writer seqlock // its lock and busy ranges; the counters above are finer
	tail   slotRoom
}

const listStripes = 64

// A version is odd while what it stands for changes. It has a cache line to
// itself, so that writers of one stripe do not slow down readers of others.
type version struct {
	n atomic.Uint64
	_ [56]byte
}

func (v *version) begin() {
	v.n.Add(1)
	writeFence()
}

func (v *version) end() { v.n.Add(1) }

// A slotRoom is where the next elements go: n slots in a row from the one at
// mem, which is at offset off of the file.
type slotRoom struct {
	mem unsafe.Pointer
	off uint64
	n   uint64
}

var nextShard atomic.Uint32

// newList returns the core of a list whose elements take size bytes, or that
// of one with elements of variable size if size is negative. It is empty and
// not in the file.
func newList(a *Arena, name, signature string, size int) *list {
	l := &list{shard: uint(nextShard.Add(1))}
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

// An extentTable finds slots. It is replaced, not changed, when the table in
// the file moves; the entries, which it shows in place, do change.
type extentTable struct {
	grain, last uint8
	width       uint64 // of a slot
	base        uint64 // number of the first extent
	off         uint64 // place of the entries in the file
	entries     []uint32

	// mem has the memory of extents, as far as somebody has looked them up
	// and found all their pages in the file: nil says nothing. It is kept
	// for the first cachedExtents of the table.
	mem []unsafe.Pointer
}

// cachedExtents bounds the memory of mem to half a megabyte. It is enough for
// a list of 1 TiB.
const cachedExtents = 1 << 16

// locate returns the extent that slot p lies in, and its index there.
func (t *extentTable) locate(p uint64) (k, at uint64) {
	if whole := p >> (t.last & 63); whole != 0 {
		return whole + uint64(t.last-t.grain), p & (1<<(t.last&63) - 1)
	}
	n := uint64(bits.Len64(p >> (t.grain & 63)))
	if n == 0 {
		return 0, p
	}
	return n, p &^ (1 << ((uint64(t.grain) + n - 1) & 63))
}

// start returns the first slot of extent k.
func (t *extentTable) start(k uint64) uint64 {
	doubling := uint64(t.last - t.grain)
	switch {
	case k == 0:
		return 0
	case k <= doubling:
		return 1 << (uint64(t.grain) + k - 1)
	default:
		return (k - doubling) << t.last
	}
}

// slots returns how many slots extent k has.
func (t *extentTable) slots(k uint64) uint64 { return t.start(k+1) - t.start(k) }

// pages returns how many pages extent k has.
func (t *extentTable) pages(k uint64) uint32 {
	return uint32((t.slots(k)*t.width + pageSize - 1) >> pageShift)
}

// room returns how many slots of p's extent lie from p on.
func (t *extentTable) room(p uint64) uint64 {
	k, at := t.locate(p)
	return t.slots(k) - at
}

// entry returns the first page of extent k.
func (t *extentTable) entry(k uint64) pageNo {
	if i := k - t.base; i < uint64(len(t.entries)) {
		return fileUint32(atomic.LoadUint32(&t.entries[i]))
	}
	return 0
}

// fileUint32 converts between the byte orders of machine and file.
func fileUint32(v uint32) uint32 {
	const swapped = runtime.GOARCH == "s390x" || runtime.GOARCH == "ppc64" || runtime.GOARCH == "mips" || runtime.GOARCH == "mips64"
	if swapped {
		return bits.ReverseBytes32(v)
	}
	return v
}

func (t *extentTable) newMem() []unsafe.Pointer {
	return make([]unsafe.Pointer, min(len(t.entries), cachedExtents))
}

// window returns the extents [lo, hi) outside of which all entries are 0.
func (t *extentTable) window() (lo, hi uint64) {
	i, j := 0, len(t.entries)
	for i < j && t.entries[i] == 0 {
		i++
	}
	for i < j && t.entries[j-1] == 0 {
		j--
	}
	return t.base + uint64(i), t.base + uint64(j)
}

// span returns the extents [lo, hi) that the slots [p, q) lie in, as far as
// the table covers them.
func (t *extentTable) span(p, q uint64) (lo, hi uint64) {
	if p >= q || t.width == 0 {
		return 0, 0
	}
	lo, _ = t.locate(p)
	hi, _ = t.locate(q - 1)
	lo, hi = max(lo, t.base), min(hi+1, t.base+uint64(len(t.entries)))
	return lo, max(lo, hi)
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

// memoryAt returns the memory of slot p, or nil if that takes a closer look.
func (l *list) memoryAt(p uint64) unsafe.Pointer {
	t := l.table.Load()
	k, at := t.locate(p)
	if i := k - t.base; i < uint64(len(t.mem)) {
		if m := atomic.LoadPointer(&t.mem[i]); m != nil {
			return unsafe.Add(m, at*t.width)
		}
	}
	return nil
}

// slotsAt returns the memory of n slots from p on, all of one extent: nil if
// that is absent, ok false if the table leads out of the file.
func (l *list) slotsAt(t *extentTable, p, n uint64) (b []byte, ok bool) {
	k, at := t.locate(p)
	if i := k - t.base; i < uint64(len(t.mem)) {
		if m := atomic.LoadPointer(&t.mem[i]); m != nil {
			return unsafe.Slice((*byte)(unsafe.Add(m, at*t.width)), n*t.width), true
		}
	}
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
		atomic.StorePointer(&t.mem[i], unsafe.Pointer(unsafe.SliceData(b)))
	}
}

// tryRemember is remember for readers, who have the lock only if it is free
// and no Rollback or Close is at work.
func (l *list) tryRemember(k uint64) {
	if !l.writer.mu.TryLock() {
		return
	}
	defer l.writer.mu.Unlock()
	if l.shape.n.Load()&1 == 0 {
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
	return l.shape.n.Load() == s.shape && (s.stripe == nil || s.stripe.n.Load() == s.seen)
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
		r.stamp = listStamp{shape: l.shape.n.Load()}
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
	r.stamp.seen = r.stamp.stripe.n.Load()
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
	return &l.stripes[p>>(l.grain&63)%listStripes]
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
	r := listReader{l: l, stamp: listStamp{shape: l.shape.n.Load()}}
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
		if holder {
			l.writer.mu.Lock()
		} else {
			l.writer.lockKey(0)
		}
		l.a.gate.enter(l.shard)
		if l.hdr != 0 && l.shape.n.Load()&1 == 0 {
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

func (l *list) leave() {
	l.a.gate.exit(l.shard)
	l.writer.mu.Unlock()
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
func (l *list) smallCost() int64 { return 2*l.a.space.osPageBytes() + int64(l.width) }

// A holding is how a list was when somebody began to keep other writers away.
// Only a Rollback, Drop or Close changes it behind his back: then the epoch is
// another.
type holding struct{ epoch, first, end uint64 }

// hold keeps other writers away until release, without a lock: callbacks may
// run meanwhile.
func (l *list) hold() holding {
	l.writer.lockRange(0, math.MaxUint64)
	defer l.writer.mu.Unlock()
	l.writer.setBusy(0, math.MaxUint64)
	return holding{l.epoch.Load(), l.first.Load(), l.end.Load()}
}

func (l *list) release() {
	l.writer.mu.Lock()
	defer l.writer.mu.Unlock()
	l.writer.clearBusy(0, math.MaxUint64)
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

// The methods below, as far as the comment does not say otherwise, are for
// the writer: inside the lock and the gate.

func (l *list) len() uint64 { return l.end.Load() - l.first.Load() }

// slot returns the slot of element i.
func (l *list) slot(i int) (p uint64, err error) {
	if n := l.len(); uint64(i) >= n {
		return 0, badIndex(i, int(n))
	}
	return l.first.Load() + uint64(i), nil
}

// growth bounds the bytes that reserve would take.
func (l *list) growth(p, q uint64) (n int64) {
	if p >= q || l.width == 0 {
		return 0
	}
	t := l.table.Load()
	lo, _ := t.locate(p)
	hi, _ := t.locate(q - 1)
	if lo < t.base || hi >= t.base+uint64(len(t.entries)) {
		n = 16 * int64(uint64(len(t.entries))+min(hi-lo, maxExtents))
	}
	for k := lo; k <= hi && n < l.a.limit; k++ {
		if t.entry(k) == 0 {
			n += int64(t.pages(k)) << pageShift
		}
	}
	return n
}

// present bounds the bytes of the slots [p, q) that are not absent.
func (l *list) present(p, q uint64) (n int64) {
	t := l.table.Load()
	lo, hi := t.span(p, q)
	for k := lo; k < hi; k++ {
		if t.entry(k) != 0 {
			n += int64(min(q, t.start(k+1))-max(p, t.start(k))) * int64(l.width)
		}
	}
	return n
}

// dense says that no extent of the slots [p, q) is absent.
func (l *list) dense(p, q uint64) bool {
	return p >= q || l.present(p, q) == int64(q-p)*int64(l.width)
}

// reserve makes sure that the slots [p, q) have extents, all in the file. On
// error nothing has changed.
func (l *list) reserve(p, q uint64) error {
	if p >= q || l.width == 0 {
		return nil
	}
	t := l.table.Load()
	lo, _ := t.locate(p)
	hi, _ := t.locate(q - 1)
	if err := l.cover(lo, hi+1); err != nil {
		return err
	}
	t = l.table.Load()
	var added []uint64
	for k := lo; k <= hi; k++ {
		if e := t.entry(k); e != 0 {
			if l.a.space.view(uint64(e)<<pageShift, int(t.pages(k))<<pageShift) == nil {
				l.drop(added)
				return l.damaged(t, t.start(k))
			}
			continue
		}
		e, err := l.a.alloc.alloc(t.pages(k))
		if err != nil {
			l.drop(added)
			return err
		}
		l.setEntry(k, e)
		added = append(added, k)
	}
	return nil
}

// drop frees extents.
func (l *list) drop(extents []uint64) {
	for _, k := range extents {
		l.dropRange(k, k+1)
	}
}

// dropRange frees the extents [lo, hi).
func (l *list) dropRange(lo, hi uint64) {
	t := l.table.Load()
	lo, hi = max(lo, t.base), min(hi, t.base+uint64(len(t.entries)))
	for k := lo; k < hi; k++ {
		if e := t.entry(k); e != 0 {
			l.setEntry(k, 0)
			if l.a.space.view(uint64(e)<<pageShift, int(t.pages(k))<<pageShift) != nil {
				l.a.alloc.free(e, t.pages(k))
			}
		}
	}
}

// setEntry stores the first page of extent k, which the table covers.
func (l *list) setEntry(k uint64, e pageNo) {
	t := l.table.Load()
	i := k - t.base
	l.a.space.mark(t.off+4*i, 4)
	atomic.StoreUint32(&t.entries[i], fileUint32(e))
	if i < uint64(len(t.mem)) {
		atomic.StorePointer(&t.mem[i], nil)
		l.remember(k)
	}
}

// cover makes the table cover the extents [lo, hi).
func (l *list) cover(lo, hi uint64) error {
	t := l.table.Load()
	n := uint64(len(t.entries))
	if lo >= t.base && hi <= t.base+n {
		return nil
	}
	if a, b := t.window(); a < b {
		lo, hi = min(lo, a), max(hi, b)
	}
	need := hi - lo
	limit := min(maxExtents, uint64(l.a.alloc.maxRun())*pageSize/4)
	if need > limit {
		return ErrTooLarge
	}
	base := lo
	if lo < t.base {
		base = hi - min(hi, max(n, need)) // it grows downwards: leave the room there
	}
	if need <= n/2 {
		l.shape.begin()
		l.shiftTable(base)
		l.shape.end()
		return nil
	}
	n = min(limit, 1<<bits.Len64(2*need-1))
	if lo < t.base {
		base = hi - min(hi, n)
	}
	off, err := l.recs.alloc(int(4 * n))
	if err != nil {
		return err
	}
	l.shape.begin()
	defer l.shape.end()
	return l.moveTable(base, off, n)
}

// shiftTable lets the table begin with extent base. No entry gets lost.
func (l *list) shiftTable(base uint64) {
	t := *l.table.Load()
	l.a.space.mark(t.off, 4*len(t.entries))
	if base >= t.base {
		moved := copy(t.entries, t.entries[min(base-t.base, uint64(len(t.entries))):])
		clear(t.entries[moved:])
	} else {
		by := min(t.base-base, uint64(len(t.entries)))
		copy(t.entries[by:], t.entries)
		clear(t.entries[:by])
	}
	t.base = base
	l.setTable(&t)
}

// moveTable moves the entries to the n zeros at off; the old place is freed.
func (l *list) moveTable(base, off, n uint64) error {
	old := l.table.Load()
	t := *old
	t.base, t.off, t.entries = base, off, tableEntries(l.a.space.view(off, int(4*n)))
	lo, hi := old.window()
	l.a.space.mark(off, int(4*n))
	for k := lo; k < hi; k++ {
		t.entries[k-base] = old.entries[k-old.base]
	}
	l.setTable(&t)
	if l.inline(old) {
		return nil
	}
	return l.recs.release(old.off, 4*len(old.entries))
}

// inlineTable empties the table, which has no entries left, and brings it
// back to the header page.
func (l *list) inlineTable() error {
	old := l.table.Load()
	t := *old
	t.base, t.off = 0, uint64(l.hdr)<<pageShift+listInlineOff
	t.entries = tableEntries(l.a.space.page(l.hdr)[listInlineOff:])
	l.a.space.mark(t.off, 4*inlineExtents)
	clear(t.entries)
	l.setTable(&t)
	if l.inline(old) {
		return nil
	}
	return l.recs.release(old.off, 4*len(old.entries))
}

func (l *list) inline(t *extentTable) bool { return t.off>>pageShift == uint64(l.hdr) }

// setTable makes t the table, in memory and in the header page.
func (l *list) setTable(t *extentTable) {
	off, n := t.off, uint32(len(t.entries))
	old := l.table.Load()
	t.mem = t.newMem()
	for i := range t.mem {
		if j := t.base + uint64(i) - old.base; j < uint64(len(old.mem)) {
			t.mem[i] = old.mem[j]
		}
	}
	if l.inline(t) {
		off, n = 0, 0
	}
	l.a.space.touch(l.hdr, 1)
	l.header().setTable(t.base, off, n)
	l.table.Store(t)
}

// tableEntries returns b, which is aligned, as entries of a table.
func tableEntries(b []byte) []uint32 {
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}

func (l *list) header() listHeader { return l.a.space.page(l.hdr)[:] }

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
	switch {
	case !l.word:
		l.stripe(p).end()
	case l.loops.Load() != 0:
		l.stripe(p).n.Add(2)
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
		return l.setRecord(i, b)
	}
	if err := l.enter(l.smallCost()); err != nil {
		return err
	}
	p, err := l.slot(i)
	if err == nil && l.memoryAt(p) != nil { // the usual case
		err = l.put(p, b)
		l.leave()
		return err
	}
	l.leave()
	if err != nil {
		return err
	}
	return l.setReserved(i, b)
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

func (l *list) setRecord(i int, b []byte) error {
	err := l.enterFor(false, func() (int64, error) {
		p, err := l.slot(i)
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

// ---- growing and shrinking

// appendSlots appends n slots, all or none. It locks.
func (l *list) appendSlots(b []byte, n uint64, holder bool) error {
	cost := l.smallCost() + int64(len(b))
	for {
		if err := l.enterAs(cost, holder); err != nil {
			return err
		}
		if n <= l.tail.n && l.len()+n <= maxListLen {
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

// fillTail appends n slots, for which the tail has room.
func (l *list) fillTail(b []byte, n uint64) {
	if in := l.tail.off & (pageSize - 1); in+uint64(len(b)) <= pageSize {
		l.a.space.touch(pageNo(l.tail.off>>pageShift), lineMask(int(in), len(b)))
	} else {
		l.a.space.mark(l.tail.off, len(b))
	}
	copy(unsafe.Slice((*byte)(l.tail.mem), len(b)), b)
	l.tail.n -= n
	if l.tail.n != 0 {
		l.tail.mem = unsafe.Add(l.tail.mem, len(b))
	}
	l.tail.off += uint64(len(b))
	l.end.Store(l.end.Load() + n)
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
		room := t.slots(k) - at
		m, ok := l.slotsAt(t, l.end.Load(), room)
		if !ok || m == nil {
			return l.damaged(t, l.end.Load())
		}
		l.tail = slotRoom{unsafe.Pointer(unsafe.SliceData(m)), uint64(t.entry(k))<<pageShift + at*l.width, room}
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
	return int64(min(n, uint64(l.a.limit/4/l.a.space.osPageBytes()))) * l.a.space.osPageBytes()
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
	l.dropRange(oldFirst, k)
	k, at := t.locate(end)
	if at >= t.slots(k)/2 {
		k++ // a spare: popping and appending around a border must not allocate
	}
	l.dropRange(k+1, oldEnd+2)
	return nil
}

// setEmpty makes the list empty, frees the extents [lo, hi), all that it has,
// and starts again at slot 0. Readers are turned away. The first extent, a page,
// is kept: a queue is often empty.
func (l *list) setEmpty(lo, hi uint64) error {
	l.tail = slotRoom{}
	l.first.Store(0)
	l.end.Store(0)
	if t := l.table.Load(); t.base == 0 && l.inline(t) {
		l.dropRange(max(lo, 1), hi)
		return nil
	}
	l.dropRange(lo, hi)
	return l.inlineTable()
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

// roomBefore returns how many slots of the extent of slot p-1 lie before p.
func (t *extentTable) roomBefore(p uint64) uint64 {
	_, at := t.locate(p - 1)
	return at + 1
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
	l.dropRange(lo, hi)
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
	l.writer.mu.Lock()
	l.a.gate.enter(l.shard)
	defer l.leave()
	if l.overtaken(h) == nil && l.hdr != 0 {
		_ = l.cut(h.end) // the caller has an error already
	}
}

// ---- rewriting

// A rewriting makes new extents for a range of slots, in fresh space that is
// written out as it fills, while the old ones stay as they are; adopt
// switches. So its size is bounded by the disk, not by memory, and an error on
// the way changes nothing. An extent into which nothing is written is absent.
type rewriting struct {
	l    *list
	t    *extentTable
	k    uint64 // the extent at work
	page pageNo // 0 while nothing was written to it
	mem  []byte
	done []extent
}

type extent struct {
	k    uint64
	page pageNo // 0: absent
}

// rewrite makes new content for the slots [lo, hi). fill is called for ranges
// of them in ascending order.
func (l *list) rewrite(lo, hi uint64, fill func(w *rewriting, dst, n uint64) error) (*rewriting, error) {
	w := &rewriting{l: l, t: l.table.Load()}
	if lo >= hi || l.width == 0 {
		return w, nil
	}
	k, _ := w.t.locate(lo)
	last, _ := w.t.locate(hi - 1)
	for ; k <= last; k++ {
		w.k, w.page, w.mem = k, 0, nil
		if err := w.fillExtent(lo, hi, fill); err != nil {
			w.abandon()
			return nil, err
		}
		if w.page != 0 || w.t.entry(k) != 0 {
			w.done = append(w.done, extent{k, w.page})
		}
	}
	w.page = 0
	if err := w.coverDone(); err != nil {
		w.abandon()
		return nil, err
	}
	return w, nil
}

// fillExtent makes one extent: what lies outside [lo, hi) is copied.
func (w *rewriting) fillExtent(lo, hi uint64, fill func(w *rewriting, dst, n uint64) error) error {
	from, to := w.t.start(w.k), w.t.start(w.k+1)
	if first := w.l.first.Load(); from < lo && first < lo {
		from := max(from, first)
		if err := w.copy(from, from, lo-from); err != nil {
			return err
		}
	}
	from, to = max(from, lo), min(to, hi)
	if err := fill(w, from, to-from); err != nil {
		return err
	}
	if end := min(w.t.start(w.k+1), w.l.end.Load()); to < end {
		if err := w.copy(to, to, end-to); err != nil {
			return err
		}
	}
	if w.page == 0 {
		return nil
	}
	return w.l.a.spill(w.page, w.t.pages(w.k))
}

// slots returns the memory of the new slots [p, p+n), of the extent at work.
func (w *rewriting) slots(p, n uint64) ([]byte, error) {
	if w.page == 0 {
		e, err := w.l.a.alloc.allocFresh(w.t.pages(w.k))
		if err != nil {
			return nil, err
		}
		w.page = e
		w.mem = w.l.a.space.view(uint64(e)<<pageShift, int(w.t.pages(w.k))<<pageShift)
	}
	off, size := (p-w.t.start(w.k))*w.t.width, n*w.t.width
	w.l.a.space.mark(uint64(w.page)<<pageShift+off, int(size))
	return w.mem[off : off+size : off+size], nil
}

// copy copies n old slots from src on to the new ones from dst on. Absent
// ones stay absent.
func (w *rewriting) copy(dst, src, n uint64) error {
	return w.l.eachExtent(src, src+n, func(at uint64, b []byte) error {
		m, err := w.slots(dst+at-src, uint64(len(b))/w.t.width)
		copy(m, b)
		return err
	})
}

// splice makes the new slots [dst, dst+n): of the inserted ones, b, and of
// those that move.
func (w *rewriting) splice(dst, n uint64, g *gap, b []byte) error {
	if from, to := max(dst, g.p), min(dst+n, g.p+g.n); from < to {
		m, err := w.slots(from, to-from)
		if err != nil {
			return err
		}
		copy(m, b[(from-g.p)*w.t.width:])
	}
	if from, to := max(dst, g.lo), min(dst+n, g.lo+g.moved); from < to {
		return w.copy(from, from-g.lo+g.src, to-from)
	}
	return nil
}

// coverDone makes the table cover the new extents.
func (w *rewriting) coverDone() error {
	for _, e := range w.done {
		if e.page != 0 {
			if err := w.l.cover(e.k, e.k+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// abandon frees what was made.
func (w *rewriting) abandon() {
	for _, e := range append(w.done, extent{w.k, w.page}) {
		if e.page != 0 {
			w.l.a.alloc.free(e.page, w.t.pages(e.k))
		}
	}
}

// adopt puts the new extents in the place of the old. Readers are turned away.
func (w *rewriting) adopt() error {
	for _, e := range w.done {
		w.l.dropRange(e.k, e.k+1)
		if e.page != 0 {
			w.l.setEntry(e.k, e.page)
		}
	}
	w.l.tail = slotRoom{}
	return nil
}

// ---- deleting by choice

// A selection marks elements of a list: bit i stands for element base+i.
type selection struct {
	base  int
	n     int // elements looked at
	count int // of these, marked
	bits  []uint64
}

// maxSelection bounds the memory of a selection: 32 MiB.
const maxSelection = 1 << 28

func (s *selection) add(marked bool) {
	if s.n%64 == 0 {
		s.bits = append(s.bits, 0)
	}
	if marked {
		s.bits[s.n/64] |= 1 << (s.n % 64)
		s.count++
	}
	s.n++
}

// next returns the first index from i on that is marked, or that is not; n if
// there is none.
func (s *selection) next(i int, marked bool) int {
	for i < s.n {
		w := s.bits[i/64]
		if !marked {
			w = ^w
		}
		if w >>= i % 64; w != 0 {
			return min(s.n, i+bits.TrailingZeros64(w))
		}
		i += 64 - i%64
	}
	return s.n
}

// A gathering goes over the slots that stay when the elements of a selection
// go, from the first that goes to the end of the list, in runs.
type gathering struct {
	s    *selection
	base uint64 // slot of bit 0
	end  uint64 // of the list
	at   uint64 // slots [at, stop) are the rest of the run
	stop uint64
}

// next returns the first slot of the rest of the run, and how many follow, at
// most n.
func (g *gathering) next(n uint64) (src, m uint64) {
	if g.at == g.stop && g.at < g.base+uint64(g.s.n) {
		from := g.s.next(int(g.at-g.base), false)
		to := g.s.next(from, true)
		g.at, g.stop = g.base+uint64(from), g.base+uint64(to)
	}
	if g.stop == g.base+uint64(g.s.n) {
		g.stop = g.end // what was not looked at follows
	}
	src, m = g.at, min(n, g.stop-g.at)
	g.at += m
	return src, m
}

// removeSelected deletes the elements of s from a list that the caller
// holds. It locks.
func (l *list) removeSelected(s *selection, h holding) error {
	if s.count == 0 {
		return nil
	}
	var lo, hi uint64 // what is written
	var g gathering
	err := l.enterFor(true, func() (int64, error) {
		if err := l.overtaken(h); err != nil {
			return 0, err
		}
		base := l.first.Load() + uint64(s.base)
		lo = base + uint64(s.next(0, true))
		hi = l.end.Load() - uint64(s.count)
		g = gathering{s: s, base: base, end: l.end.Load(), at: lo, stop: lo}
		return l.moveCost(lo, l.end.Load()-lo) + l.freeCost(uint64(s.count)), nil
	})
	if err != nil {
		return err
	}
	defer l.leave()
	apply := func() error {
		for dst := lo; dst < hi; {
			src, n := g.next(hi - dst)
			if err := l.move(dst, src, n); err != nil {
				return err
			}
			dst += n
		}
		return nil
	}
	if l.tooMuch(l.end.Load()-lo) || !l.dense(lo, l.end.Load()) {
		w, err := l.rewrite(lo, hi, func(w *rewriting, dst, n uint64) error {
			for n > 0 {
				src, m := g.next(n)
				if err := w.copy(dst, src, m); err != nil {
					return err
				}
				dst, n = dst+m, n-m
			}
			return nil
		})
		if err != nil {
			return err
		}
		apply = w.adopt
	}
	return l.reshape(func() error {
		damage := l.freeSelected(s)
		if err := apply(); err != nil {
			return err
		}
		if err := l.setBounds(l.first.Load(), hi); err != nil {
			return err
		}
		return damage
	})
}

// freeSelected frees the records of marked elements.
func (l *list) freeSelected(s *selection) (first error) {
	if !l.refs {
		return nil
	}
	base := l.first.Load() + uint64(s.base)
	for i := s.next(0, true); i < s.n; {
		j := s.next(i, false)
		if err := l.freeRecords(base+uint64(i), base+uint64(j)); err != nil && first == nil {
			first = err
		}
		i = s.next(j, true)
	}
	return first
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
func (l *list) turnAway()     { l.shape.begin() }
func (l *list) readmit()      { l.shape.end() }

// flush writes the bounds to the header page.
func (l *list) flush() {
	if l.hdr == 0 {
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
	return p, l.load(p)
}

// largest returns log2 of the slots of the largest extents of a new list: an
// eighth of the limit, so that a rewriting can hold some at once.
func (l *list) largest() uint8 {
	size := min(maxExtentSize, l.a.limit/8, int64(l.a.alloc.maxRun())<<pageShift)
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
	t.mem = t.newMem()
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
	l.a.alloc.free(l.hdr, 1)
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
