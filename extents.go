package emd

import (
	"encoding/binary"
	"math"
	"math/bits"
	"runtime"
	"sync/atomic"
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
// moves when the list grows, and at most half a small list, 2 MiB of a large
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
	maxExtents    = 1 << 23  // in a table
	maxExtentSize = 2 << 20  // bytes: maxExtents of them are 16 TiB
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

	// For run, which most lookups end with. large is the part of mem for extents
	// of the largest size, the first of them that of the slots from 2^last * whole
	// on. blocks has the smaller ones of mem by blocks of 2^grain slots; it is as
	// long as the largest that was looked up needs.
	large   []unsafe.Pointer
	whole   uint64
	inLarge uint64 // mask of a slot's index in such an extent
	blocks  []unsafe.Pointer
	inBlock uint64 // mask of a slot's index in a block
}

// cachedExtents bounds the memory of mem to 8 MiB. It is enough for a list of
// 1 TiB.
const cachedExtents = 1 << 20

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

// run returns the memory of slots in a row, and the index of slot p among them;
// nil says nothing.
func (t *extentTable) run(p uint64) (mem unsafe.Pointer, at uint64) {
	if i := p>>(t.last&63) - t.whole; i < uint64(len(t.large)) {
		return atomic.LoadPointer(&t.large[i]), p & t.inLarge
	}
	if i := p >> (t.grain & 63); i < uint64(len(t.blocks)) {
		return atomic.LoadPointer(&t.blocks[i]), p & t.inBlock
	}
	return nil, 0
}

// memory returns the memory of slot p, or nil if that takes a closer look.
func (t *extentTable) memory(p uint64) unsafe.Pointer {
	if m, at := t.run(p); m != nil {
		return unsafe.Add(m, at*t.width)
	}
	return nil
}

// setMem notes, for all tables that share mem, that extent k is at m; nil says
// nothing. The caller holds the lock, and takes the table returned.
func (t *extentTable) setMem(k uint64, m unsafe.Pointer) *extentTable {
	atomic.StorePointer(&t.mem[k-t.base], m)
	if k > uint64(t.last-t.grain) {
		return t
	}
	from, to := t.start(k)>>t.grain, t.start(k+1)>>t.grain
	if to > uint64(len(t.blocks)) {
		if m == nil {
			return t
		}
		more := *t
		more.blocks = make([]unsafe.Pointer, to)
		copy(more.blocks, t.blocks)
		t = &more
	}
	for i := range to - from {
		block := m
		if m != nil {
			block = unsafe.Add(m, i*t.width<<t.grain) // never behind the extent: see flatten
		}
		atomic.StorePointer(&t.blocks[from+i], block)
	}
	return t
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

// makeMem makes room for the memory of extents.
func (t *extentTable) makeMem() {
	t.mem = make([]unsafe.Pointer, min(len(t.entries), cachedExtents))
	doubling := uint64(t.last - t.grain)
	first := max(t.base, doubling+1)
	t.large = t.mem[min(first-t.base, uint64(len(t.mem))):]
	t.whole = first - doubling
	t.inLarge, t.inBlock = 1<<(t.last&63)-1, 1<<(t.grain&63)-1
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

// roomBefore returns how many slots of the extent of slot p-1 lie before p.
func (t *extentTable) roomBefore(p uint64) uint64 {
	_, at := t.locate(p - 1)
	return at + 1
}

// The methods below are for the writer, who holds the lock.

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

// drop frees extents that reserve has made.
func (l *list) drop(extents []uint64) {
	for _, k := range extents {
		_ = l.dropRange(k, k+1)
	}
}

// dropRange frees the extents [lo, hi). It goes on after a damaged one, which
// is out of use then, and returns the first such finding.
func (l *list) dropRange(lo, hi uint64) (first error) {
	t := l.table.Load()
	lo, hi = max(lo, t.base), min(hi, t.base+uint64(len(t.entries)))
	for k := lo; k < hi; k++ {
		if e := t.entry(k); e != 0 {
			l.setEntry(k, 0)
			if err := l.a.alloc.free(e, t.pages(k)); err != nil && first == nil {
				first = err
			}
		}
	}
	return first
}

// setEntry stores the first page of extent k, which the table covers.
func (l *list) setEntry(k uint64, e pageNo) {
	t := l.table.Load()
	i := k - t.base
	l.a.space.mark(t.off+4*i, 4)
	atomic.StoreUint32(&t.entries[i], fileUint32(e))
	if i < uint64(len(t.mem)) {
		t.setMem(k, nil)
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
	t.makeMem()
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
