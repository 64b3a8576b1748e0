package emd

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"unsafe"
)

// The allocator hands out runs of pages: a buddy system (Knuth, The Art of
// Computer Programming, vol. 1, 2.5) whose state is bitmaps in the file, so
// that it obeys Sync and Rollback like everything else. Freeing writes nothing
// into the freed pages, which may be cold.
//
// The file is divided into regions of 64 MiB, and a region into 64 segments
// of 1 MiB. A free block of order k is 2^k pages, aligned to its size; a bit
// says that it is free and not part of a larger free block. The first pages of
// a region hold its state:
//
//	summary  only in regions 0, 4096, 8192...: a byte for each of the 4096
//	         regions from here, 1 + the order of its largest free block
//	header   see below
//	bitmap   a line of 64 bytes for each segment: its blocks of orders 0 to 7
//	sums     the checksums of its pages, see sums.go
//
// (Region 0 begins with the three header slots of the file.) The header page:
//
//	0       4        8      16     24      64               128           176
//	+-------+--------+------+------+-------+----------------+-------------+-----
//	| magic | region | free | last | zero  | segments[8]u64 | large[6]u64 | zero
//	+-------+--------+------+------+-------+----------------+-------------+-----
//
// segments[k] has a bit for each segment with a free block of order k < 8;
// large[k-8] has a bit for each block of order k >= 8. In region 0 only, free is
// the number of free pages of the whole file at the last commit and last, if the
// file is a relaxed one, the end.
//
// Space never handed out lies from end on; it is in no bitmap. No run crosses
// a chunk, nor a region.
const (
	regionShift  = 14 // log2 of its pages
	regionPages  = 1 << regionShift
	segmentShift = 8
	segmentPages = 1 << segmentShift
	maxOrder     = 13 // 32 MiB: a region's first pages are never free
	summarySpan  = pageSize

	regionMagicOff  = 0
	regionNumberOff = regionMagicOff + 4
	regionFreeOff   = regionNumberOff + 4
	regionLastOff   = regionFreeOff + 8
	regionSegsOff   = 64
	regionLargeOff  = regionSegsOff + 8*segmentShift
	regionEnd       = regionLargeOff + 8*(maxOrder-segmentShift+1)

	regionMagic = 0x53646d65 // "emdS"
	slotPages   = 3          // header slots at the start of region 0
)

const _ = uint(-(regionPages / segmentPages % 64)) // segments fit a word
const _ = uint(-(regionEnd / (pageSize + 1)))      // and the header a page

// orderBit is where the bits of an order start in the line of a segment.
var orderBit = [segmentShift]uint{0, 256, 384, 448, 480, 496, 504, 508}

type allocator struct {
	s     *space
	order int // of the largest run: a chunk may be smaller than maxOrder

	mu        sync.Mutex
	refuse    func() bool // set by tests: makes a request find no space
	end       uint64      // first page never handed out
	stale     uint64      // what extend hands out from here on is zero
	freePages int64
	hint      [maxOrder + 1]int // no region before it has a free block of the order

	// Runs freed since the last commit, and between the last checkpoint and
	// the last commit: the next checkpoint gives them back to the disk.
	freed, freedCommitted []pageRun
}

type pageRun struct {
	p pageNo
	n uint32
}

// A region is the state of one region, seen through its pages.
type region struct {
	s              *space
	first          pageNo
	summary        pageNo // page and index of its byte
	summaryAt      int
	header, bitmap pageNo
}

func (s *space) region(r int) region {
	base := pageNo(r/summarySpan*summarySpan) << regionShift
	if base == 0 {
		base = slotPages
	}
	return region{
		s: s, first: pageNo(r) << regionShift,
		summary: base, summaryAt: r % summarySpan,
		header: sumsAt(r) - 2, bitmap: sumsAt(r) - 1,
	}
}

// sumsAt returns the first page of the checksums of region r.
func sumsAt(r int) pageNo {
	p := pageNo(r)<<regionShift + 2
	if r == 0 {
		p += slotPages
	}
	if r%summarySpan == 0 {
		p++
	}
	return p
}

// firstData is the first page that the allocator may hand out.
func (g region) firstData() pageNo { return g.bitmap + 1 + sumPages }

func (g region) valid() error {
	h := g.s.peek(g.header)
	if h == nil || g.s.peek(g.bitmap) == nil || g.s.peek(g.summary) == nil {
		return corruptAt(uint64(g.header)<<pageShift, "region %d lies outside the file", g.first>>regionShift)
	}
	le := binary.LittleEndian
	if le.Uint32(h[regionMagicOff:]) != regionMagic || le.Uint32(h[regionNumberOff:]) != g.first>>regionShift {
		return corruptAt(uint64(g.header)<<pageShift, "region %d has no header", g.first>>regionShift)
	}
	return nil
}

func (g region) word(off int) uint64 {
	return binary.LittleEndian.Uint64(g.s.page(g.header)[off:])
}

func (g region) setWord(off int, v uint64) {
	g.s.touch(g.header, lineMask(off, 8))
	binary.LittleEndian.PutUint64(g.s.page(g.header)[off:], v)
}

// bit returns where the state of block i of an order is kept in the bitmap
// page; the order is below segmentShift.
func bitOf(order int, i uint32) (off int, bit uint64) {
	seg := i >> (segmentShift - order)
	b := orderBit[order] + uint(i&(1<<(segmentShift-order)-1))
	return int(seg)*lineSize + int(b>>6)*8, 1 << (b & 63)
}

func (g region) isFree(order int, i uint32) bool {
	if order >= segmentShift {
		return g.word(regionLargeOff+8*(order-segmentShift))>>i&1 != 0
	}
	off, bit := bitOf(order, i)
	return binary.LittleEndian.Uint64(g.s.page(g.bitmap)[off:])&bit != 0
}

func (g region) setFree(order int, i uint32, free bool) {
	if order >= segmentShift {
		off := regionLargeOff + 8*(order-segmentShift)
		g.setWord(off, withBit(g.word(off), 1<<i, free))
		return
	}
	off, bit := bitOf(order, i)
	b := g.s.page(g.bitmap)
	g.s.touch(g.bitmap, lineMask(off, 8))
	binary.LittleEndian.PutUint64(b[off:], withBit(binary.LittleEndian.Uint64(b[off:]), bit, free))

	seg := i >> (segmentShift - order)
	_, found := g.firstInSegment(order, seg)
	if at := regionSegsOff + 8*order; g.word(at)>>seg&1 != 0 != found {
		g.setWord(at, withBit(g.word(at), 1<<seg, found))
	}
}

func withBit(w, bit uint64, on bool) uint64 {
	if on {
		return w | bit
	}
	return w &^ bit
}

// firstInSegment returns the first free block of an order below segmentShift.
func (g region) firstInSegment(order int, seg uint32) (i uint32, ok bool) {
	line := g.s.page(g.bitmap)[seg*lineSize:][:lineSize]
	n := uint(segmentPages >> order)
	for at := uint(0); at < n; {
		b := orderBit[order] + at
		w := binary.LittleEndian.Uint64(line[b>>6*8:]) >> (b & 63)
		span := min(64-b&63, n-at)
		w &= allLines >> (64 - span)
		if w != 0 {
			return seg<<(segmentShift-order) + uint32(at) + uint32(bits.TrailingZeros64(w)), true
		}
		at += span
	}
	return 0, false
}

// first returns the first free block of exactly that order.
func (g region) firstOf(order int) (i uint32, ok bool) {
	if order >= segmentShift {
		w := g.word(regionLargeOff + 8*(order-segmentShift))
		return uint32(bits.TrailingZeros64(w)), w != 0
	}
	w := g.word(regionSegsOff + 8*order)
	if w == 0 {
		return 0, false
	}
	return g.firstInSegment(order, uint32(bits.TrailingZeros64(w)))
}

// summarise brings the region's byte of the summary up to date.
func (g region) summarise() {
	largest := byte(0)
	for order := maxOrder; order >= 0; order-- {
		off := regionSegsOff + 8*order
		if order >= segmentShift {
			off = regionLargeOff + 8*(order-segmentShift)
		}
		if g.word(off) != 0 {
			largest = byte(order + 1)
			break
		}
	}
	if b := g.s.page(g.summary); b[g.summaryAt] != largest {
		g.s.touch(g.summary, lineMask(g.summaryAt, 1))
		b[g.summaryAt] = largest
	}
}

// newAllocator works on a file of which the pages below end are in use.
func newAllocator(s *space, end uint64) *allocator {
	order := min(maxOrder, int(s.shift+s.grow))
	return &allocator{s: s, order: order, end: end, stale: end}
}

// format lays out the first region of a new file.
func (al *allocator) format() error {
	al.end, al.stale = slotPages, 0
	if err := al.s.ensure(unitPages); err != nil {
		return err
	}
	al.layOut(0)
	return nil
}

// load reads what is kept in memory. It checks the first and the last region;
// the others are checked as they are used.
func (al *allocator) load() error {
	al.mu.Lock()
	defer al.mu.Unlock()
	al.hint = [maxOrder + 1]int{}
	for _, r := range []int{0, int((al.end - 1) >> regionShift)} {
		if err := al.s.region(r).valid(); err != nil {
			return err
		}
	}
	g := al.s.region(0)
	al.freePages = int64(g.word(regionFreeOff))
	if al.freePages < 0 || uint64(al.freePages) > al.end {
		return corruptAt(uint64(g.header)<<pageShift, "%d free pages of %d", al.freePages, al.end)
	}
	return nil
}

// flush writes what is kept in memory, before a capture.
func (al *allocator) flush() {
	al.mu.Lock()
	defer al.mu.Unlock()
	if g := al.s.region(0); g.word(regionFreeOff) != uint64(al.freePages) {
		g.setWord(regionFreeOff, uint64(al.freePages))
	}
}

// maxRun is the largest run, in pages.
func (al *allocator) maxRun() uint32 { return 1 << al.order }

func orderFor(n uint32) int { return bits.Len32(n - 1) }

// alloc returns a run of n pages, at most maxRun, zeroed, and marked as
// changed where that matters; aligned to the largest power of two that divides n.
// It is ErrFull when the file or the address space cannot grow.
func (al *allocator) alloc(n uint32) (pageNo, error) {
	al.mu.Lock()
	p, dirty, err := al.request(n, true)
	al.mu.Unlock()
	al.zero(p, dirty)
	return p, err
}

// allocFresh is alloc for bulk work that is to be spilled: it leaves free
// space below the border alone.
func (al *allocator) allocFresh(n uint32) (pageNo, error) {
	al.mu.Lock()
	p, dirty, err := al.request(n, false)
	al.mu.Unlock()
	al.zero(p, dirty)
	return p, err
}

// request finds a run of n pages, of which the first dirty ones may not be
// zero. The caller holds mu.
func (al *allocator) request(n uint32, reuse bool) (p pageNo, dirty uint32, err error) {
	if al.refuse != nil && al.refuse() {
		return 0, 0, ErrFull
	}
	if reuse {
		if p, ok, err := al.take(n); err != nil {
			return 0, 0, err
		} else if ok {
			return p, n, nil
		}
	}
	if p, err = al.extend(n); err != nil {
		return 0, 0, err
	}
	// From stale on nothing was ever written.
	if uint64(p) < al.stale {
		dirty = uint32(min(uint64(n), al.stale-uint64(p)))
	}
	return p, dirty, nil
}

// zero clears pages of a new run. A logged page is thereby logged whole: the
// file's bytes there are never relied on.
func (al *allocator) zero(p pageNo, n uint32) {
	for ; n > 0; p, n = p+1, n-1 {
		if keeps(wholePageRule) {
			al.s.touch(p, allLines)
		}
		clear(al.s.page(p)[:])
	}
}

// take finds a run in free space.
func (al *allocator) take(n uint32) (p pageNo, ok bool, err error) {
	want := orderFor(n)
	regions := int((al.end + regionPages - 1) >> regionShift)
	r := al.hint[want]
	for ; r < regions; r++ {
		if r%summarySpan == 0 || r == al.hint[want] {
			if err := al.s.region(r).valid(); err != nil {
				return 0, false, err
			}
		}
		if g := al.s.region(r); int(al.s.page(g.summary)[g.summaryAt]) > want {
			break
		}
	}
	al.hint[want] = r
	if r == regions {
		return 0, false, nil
	}
	g := al.s.region(r)
	if err := g.valid(); err != nil {
		return 0, false, err
	}
	for order := want; order <= maxOrder; order++ {
		i, ok := g.firstOf(order)
		if !ok {
			continue
		}
		p = g.first + i<<order
		if p < g.firstData() || uint64(p)+1<<order > al.end {
			return 0, false, corruptAt(uint64(g.bitmap)<<pageShift, "free block %d+%d outside the file", p, 1<<order)
		}
		g.setFree(order, i, false)
		al.freePages -= 1 << order
		// What is not needed goes back: the upper halves, then the tail.
		al.putBack(p+pageNo(n), 1<<order-n)
		g.summarise()
		return p, true, nil
	}
	return 0, false, corruptAt(uint64(g.summary)<<pageShift, "region %d has no block of order %d", r, want)
}

// extend hands out space that was never used.
func (al *allocator) extend(n uint32) (pageNo, error) {
	// Where it will lie; nothing changes before there is memory for it.
	start := al.place(al.end, uint64(n))
	if start+uint64(n) > maxPages {
		return 0, fmt.Errorf("%w: a file has %d pages at most", ErrFull, uint64(maxPages))
	}
	if err := al.s.ensure(start + uint64(n)); err != nil {
		return 0, err
	}
	for al.end < start {
		r := int(al.end >> regionShift)
		if al.end&(regionPages-1) == 0 {
			al.layOut(r)
		}
		next := min(start, uint64(r+1)<<regionShift)
		gap := al.end
		al.end = next
		al.putBack(pageNo(gap), uint32(next-gap))
	}
	al.end = start + uint64(n)
	al.noteEnd()
	return pageNo(start), nil
}

// place returns where a run of n pages begins, from end on. Runs of one size that
// is no power of two lie without gaps, too. No run crosses a region or a chunk:
// chunks may begin at powers of two in the first region, see space.slots.
func (al *allocator) place(end, n uint64) uint64 {
	align := n & -n
	unit := uint64(1) << min(max(int(al.s.shift+al.s.grow), al.order), regionShift)
	for {
		r := int(end >> regionShift)
		from := max(end, uint64(al.s.region(r).firstData()))
		next := from&^(unit-1) + unit
		if next == unit {
			next = 1 << bits.Len64(from)
		}
		start := (from + align - 1) &^ (align - 1)
		if start+n <= next {
			return start
		}
		end = next
	}
}

// layOut writes the first pages of a region that begins at al.end.
func (al *allocator) layOut(r int) {
	g := al.s.region(r)
	al.end = uint64(g.firstData())
	for p := g.header; p < g.firstData(); p++ {
		al.s.touch(p, allLines)
		clear(al.s.page(p)[:])
	}
	if r%summarySpan == 0 {
		al.s.touch(g.summary, allLines)
		clear(al.s.page(g.summary)[:])
	}
	h := al.s.page(g.header)
	binary.LittleEndian.PutUint32(h[regionMagicOff:], regionMagic)
	binary.LittleEndian.PutUint32(h[regionNumberOff:], uint32(r))
}

// free gives back pages of an allocated run, or all of it. ErrCorrupt: they
// cannot be such pages, so what led to them is damaged; they stay as they are.
func (al *allocator) free(p pageNo, n uint32) error {
	al.mu.Lock()
	defer al.mu.Unlock()
	if err := al.checkUsed(p, n); err != nil {
		return err
	}
	al.putBack(p, n)
	al.noteFreed(p, n)
	return nil
}

// checkUsed says whether the pages [p, p+n) may be in use. Freeing others would
// hand them out twice, and spread the damage to what owns them.
func (al *allocator) checkUsed(p pageNo, n uint32) error {
	last := uint64(p) + uint64(n) - 1
	if n == 0 || last >= al.end || last>>regionShift != uint64(p>>regionShift) {
		return corruptAt(uint64(p)<<pageShift, "%d pages to be freed at page %d of %d", n, p, al.end)
	}
	g := al.s.region(int(p >> regionShift))
	if err := g.valid(); err != nil {
		return err
	}
	if p < g.firstData() || g.anyFree(p-g.first, n) {
		return corruptAt(uint64(p)<<pageShift, "%d pages at page %d are to be freed, which are not in use", n, p)
	}
	return nil
}

// anyFree says whether one of n pages of the region is free, segment by
// segment where it can.
func (g region) anyFree(in pageNo, n uint32) bool {
	for end := in + n; in < end; {
		if seg := in >> segmentShift; in&(segmentPages-1) == 0 && end-in >= segmentPages {
			line := g.s.page(g.bitmap)[seg*lineSize:][:lineSize]
			if !zeroBytes(line) || g.inLarge(in) {
				return true
			}
			in += segmentPages
			continue
		}
		for order := range segmentShift {
			if g.isFree(order, in>>order) {
				return true
			}
		}
		if g.inLarge(in) {
			return true
		}
		in++
	}
	return false
}

// inLarge says whether a page of the region lies in a free block of a segment or more.
func (g region) inLarge(in pageNo) bool {
	for order := segmentShift; order <= maxOrder; order++ {
		if g.isFree(order, in>>order) {
			return true
		}
	}
	return false
}

// roundUp moves end to a multiple of a unit, before a commit. The pages
// between become free.
func (al *allocator) roundUp() {
	al.mu.Lock()
	defer al.mu.Unlock()
	end := (al.end + unitPages - 1) &^ (unitPages - 1)
	gap := al.end
	if end == gap {
		return
	}
	al.end = end
	al.noteEnd()
	al.putBack(pageNo(gap), uint32(end-gap))
}

// putBack makes the pages [p, p+n) free: the largest aligned blocks, each
// merged with its buddy as long as that is free too.
func (al *allocator) putBack(p pageNo, n uint32) {
	for n > 0 {
		r := int(p >> regionShift)
		g := al.s.region(r)
		in := p & (regionPages - 1)
		order := min(bits.TrailingZeros32(in), bits.Len32(n)-1, al.order)
		step := uint32(1) << order
		al.freePages += int64(step)
		i := in >> order
		for order < al.order && g.isFree(order, i^1) {
			g.setFree(order, i^1, false)
			i >>= 1
			order++
		}
		g.setFree(order, i, true)
		g.summarise()
		for k := range order + 1 {
			al.hint[k] = min(al.hint[k], r)
		}
		p += step
		n -= step
	}
}

// noteFreed remembers a run for the next checkpoint. Small or very many runs
// are not worth it: giving back is a courtesy to the disk.
func (al *allocator) noteFreed(p pageNo, n uint32) {
	if last := len(al.freed) - 1; last >= 0 && al.freed[last].p+al.freed[last].n == p {
		al.freed[last].n += n
		return
	}
	if len(al.freed) < maxFreedRuns {
		al.freed = append(al.freed, pageRun{p, n})
	}
}

const (
	maxFreedRuns = 4096
	minPunch     = unitPages
)

// committed and rolledBack tell what became of the changes since the last commit.
func (al *allocator) committed() {
	al.mu.Lock()
	defer al.mu.Unlock()
	if len(al.freedCommitted) < maxFreedRuns {
		al.freedCommitted = append(al.freedCommitted, al.freed...)
	}
	al.freed = al.freed[:0]
}

// rolledBack also learns from where on new space is zero.
func (al *allocator) rolledBack(end, zeros uint64) error {
	al.mu.Lock()
	al.end = end
	al.stale = max(al.stale, zeros)
	al.freed = al.freed[:0]
	al.mu.Unlock()
	return al.load()
}

// punch gives the freed runs that are still free back to the disk. The caller
// has the gate closed, nothing uncommitted, and has dropped private copies.
func (al *allocator) punch() {
	al.mu.Lock()
	defer al.mu.Unlock()
	for _, run := range al.freedCommitted {
		for p, end := run.p, run.p+run.n; p < end; {
			n := al.freeRun(p, end-p)
			if n >= minPunch {
				al.punchRun(p, n)
			}
			p += max(n, 1)
		}
	}
	al.freedCommitted = al.freedCommitted[:0]
}

// punchRun punches the units in a run, whatever the machine's page size: files
// are the same everywhere.
func (al *allocator) punchRun(p pageNo, n uint32) {
	from, to := (p+unitPages-1)&^(unitPages-1), (p+n)&^(unitPages-1)
	for from < to {
		step := min(to-from, al.s.mask+1-from&al.s.mask)
		off, size := int64(from)<<pageShift, int64(step)<<pageShift
		if al.s.file.Punch(off, size) != nil {
			return // a hint
		}
		if al.s.mapping.refresh(unsafe.Pointer(al.s.page(from)), size, off) != nil {
			return
		}
		from += step
	}
}

// freeRun returns how many of the n pages from p on are free.
func (al *allocator) freeRun(p pageNo, n uint32) (count uint32) {
	for count < n && uint64(p) < al.end {
		size, ok := al.freeBlockAt(p)
		if !ok {
			break
		}
		count += size
		p += size
	}
	return min(count, n)
}

// freeBlockAt returns how many pages from p on lie in its free block.
func (al *allocator) freeBlockAt(p pageNo) (n uint32, ok bool) {
	g := al.s.region(int(p >> regionShift))
	in := p & (regionPages - 1)
	for order := 0; order <= maxOrder; order++ {
		if g.isFree(order, in>>order) {
			return (in>>order+1)<<order - in, true
		}
	}
	return 0, false
}

// usage returns the figures of Stats.
func (al *allocator) usage() (end uint64, free int64) {
	al.mu.Lock()
	defer al.mu.Unlock()
	return al.end, al.freePages
}

// verify checks that the bitmaps and their summaries hold, and takes the
// pages of regions and free blocks for its own: with complete set, each page
// must then have an owner.
func (al *allocator) verify(used *ownership, complete bool) error {
	al.mu.Lock()
	defer al.mu.Unlock()
	if err := used.claim(0, slotPages, "header"); err != nil {
		return err
	}
	free := int64(0)
	for r := 0; uint64(r)<<regionShift < al.end; r++ {
		n, err := al.verifyRegion(r, used)
		if err != nil {
			return err
		}
		free += n
	}
	if free != al.freePages {
		return corrupt("%d free pages, counted %d", al.freePages, free)
	}
	if p := used.missing(); complete && p < al.end {
		return corruptAt(p<<pageShift, "page %d is neither free nor used", p)
	}
	return nil
}

// verifyRegion returns the free pages of a region.
func (al *allocator) verifyRegion(r int, used *ownership) (free int64, err error) {
	g := al.s.region(r)
	if err := g.valid(); err != nil {
		return 0, err
	}
	from := g.header
	if r%summarySpan == 0 {
		from = g.summary
	}
	if err := used.claim(from, g.firstData()-from, "region"); err != nil {
		return 0, err
	}
	largest := byte(0)
	for order := 0; order <= maxOrder; order++ {
		for i := range uint32(regionPages >> order) {
			if !g.isFree(order, i) {
				continue
			}
			largest = byte(order + 1)
			free += 1 << order
			if err := used.claim(g.first+i<<order, 1<<order, "free"); err != nil {
				return 0, err
			}
			if order < al.order && g.isFree(order, i^1) {
				return 0, corruptAt(uint64(g.bitmap)<<pageShift, "free buddies %d and %d of order %d", i, i^1, order)
			}
		}
		if order < segmentShift {
			for seg := range uint32(64) {
				if _, ok := g.firstInSegment(order, seg); ok != (g.word(regionSegsOff+8*order)>>seg&1 != 0) {
					return 0, corruptAt(uint64(g.header)<<pageShift, "segment %d, order %d: wrong summary", seg, order)
				}
			}
		}
	}
	if got := al.s.page(g.summary)[g.summaryAt]; got != largest {
		return 0, corruptAt(uint64(g.summary)<<pageShift, "region %d: summary %d, largest block %d", r, got, largest)
	}
	return free, nil
}
