package emd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// A dict is extendible hashing (Fagin, Nievergelt, Pippenger, Strong, TODS
// 1979): a directory of buckets, indexed by the upper bits of the hash. A full
// bucket splits in two by the next bit; a directory whose entries do not have
// that bit doubles first. So that no Set doubles more than a part of it, and
// so that writers do not meet, a dict of more than a few hundred buckets fans
// out to 512 directories, chosen by the uppermost 9 bits: its segments.
//
// The header page of a dict:
//
//	0      8        9          10      11  12        16        20     24
//	+------+--------+----------+-------+---+---------+---------+------+
//	| kind | layout | rootBits | depth | 0 | keySize | valSize | root |
//	+------+--------+----------+-------+---+---------+---------+------+
//
//	24    32         40  64                  2048            4096
//	+-----+----------+---+---------+---------+---------------+
//	| len | overflow | 0 | records |    0    | directory     |
//	+-----+----------+---+---------+---------+---------------+
//
// While rootBits is 0 there is one segment: its directory of 2^depth page
// numbers lies in the header page. When rootBits is 9, root is the page of the
// root table: for each segment, offset of its directory | depth << 56, or for
// depth 0 the offset of its only bucket. An absent bucket, whose number or
// offset is 0, is empty; only a directory of depth 0 has one.
//
// A bucket of depth b, root bits included, stands in all entries of its
// directory that agree in the first b bits. If splitting would take a
// directory deeper than its number of buckets warrants, keys collide in many
// bits, and the bucket grows a chain of overflow pages instead. In the layouts
// of fixed size the pages of a chain are full but for the last, so a search
// that meets an empty slot ends there.
//
// len is the number of entries, overflow of overflow pages, at the last commit.
const (
	dictKindOff     = 0
	dictLayoutOff   = dictKindOff + 8
	dictRootBitsOff = dictLayoutOff + 1
	dictDepthOff    = dictRootBitsOff + 1
	dictKeySizeOff  = dictDepthOff + 2
	dictValSizeOff  = dictKeySizeOff + 4
	dictRootOff     = dictValSizeOff + 4
	dictLenOff      = dictRootOff + 4
	dictOverflowOff = dictLenOff + 8
	dictRecordsOff  = 64
	dictDirOff      = 2048

	dictKind      = "EMDdict1"
	rootBits      = 9
	segmentCount  = 1 << rootBits
	maxStripeBits = 7
	inlineDepth   = 9  // of the directory in the header page, at most
	maxDepth      = 22 // of a segment's directory: 16 MiB
	spareDepth    = 4  // bits that a directory may have beyond log2 of its buckets
	rootDepthBit  = 56

	maxKeySize   = 64 << 10 // bytes
	maxValueSize = 1 << 30
	maxEntries   = 1 << 40

	// A page with a quarter of its room used looks whether its buddy may join;
	// together they must fill at most half a page, so that a bucket just merged
	// does not split again soon.
	mergeFrom = 4
	mergeInto = 2

	// Values in records to this size are overwritten in place while readers
	// wait; longer ones move.
	maxInPlace = 64 << 10
)

const (
	_ = uint(-(dictDirOff + 4<<inlineDepth - pageSize))
	_ = uint(dictDirOff - dictRecordsOff - recordsSize)
	_ = uint(dictRecordsOff - dictOverflowOff - 8)
	_ = uint(pageSize - 8*segmentCount)
	_ = tableStep - unsafe.Sizeof(segment{})
	_ = unsafe.Sizeof(segment{}) - tableStep
	_ = uint(segmentCount - 1<<inlineDepth) // each inline bucket becomes a segment
)

// A segmentTable is the root of a dict on the Go heap. When the number of
// segments changes, and after a Rollback, another takes its place; the
// versions of the old one then stay odd, so that readers look again.
type segmentTable struct {
	bits    uint8 // 0 or rootBits
	shift   uint8 // with mask: see segment
	mask    uint64
	first   unsafe.Pointer // of segs
	base    int64          // entries when the table was made
	segs    []segment
	stripes []stripe
}

const (
	tableShift = 6 // log2 of the bytes of a segment
	tableStep  = 1 << tableShift
)

// A segment is the state of a directory on the Go heap: one cache line, which
// readers share.
type segment struct {
	version
	dir   atomic.Pointer[uint32] // 1<<depth page numbers
	shift atomic.Uint32          // of a hash, to have its place in the low bits
	mask  atomic.Uint32          // 1<<depth - 1
	only  uint32                 // the directory, where it has one entry outside the file
	bits  uint32                 // of the table

	// The rest is for writers.
	*stripe
	off     uint64 // of the directory in the file; 0: only
	buckets uint32 // in the directory; 0: not counted yet
	deepest uint32 // buckets that need the directory's last bit; counted with buckets
	_       [tableStep - 40 - 2*unsafe.Sizeof(uintptr(0))]byte
}

// A stripe has what the writers of a few neighbouring segments share, in a
// cache line of its own. Fewer locks than segments fit the first-level cache,
// and are sooner taken by a commit.
type stripe struct {
	stripeState
	_ [64 - unsafe.Sizeof(stripeState{})]byte
}

type stripeState struct {
	writerLock
	emptied  bool          // a page lost its last entry, until somebody has looked whether the dict did
	replaced atomic.Uint32 // counts values in records that another takes the place of, and that go; odd meanwhile
	added    atomic.Int64  // entries since the table was made; see count
}

// emptyTable returns a table without buckets.
func (d *dict) emptyTable(tableBits uint8) *segmentTable {
	stripeBits := min(tableBits, maxStripeBits)
	t := &segmentTable{bits: tableBits, segs: make([]segment, 1<<tableBits), stripes: make([]stripe, 1<<stripeBits)}
	t.first = unsafe.Pointer(&t.segs[0])
	t.shift, t.mask = 64-tableShift-tableBits, (1<<tableBits-1)<<tableShift
	for i := range t.segs {
		seg := &t.segs[i]
		seg.bits = uint32(tableBits)
		seg.stripe = &t.stripes[i>>(tableBits-stripeBits)]
		seg.setOnly(0)
		if d.away {
			seg.begin()
		}
	}
	return t
}

// setTable replaces the table. Callbacks that hold hashes busy go on holding
// them in the new one, and who waits for an old lock looks again.
func (d *dict) setTable(t *segmentTable) {
	old := d.table.Load()
	if old != nil {
		for i := range old.stripes {
			for _, b := range old.stripes[i].busy {
				t.eachStripe(b.lo, b.hi, func(l *stripe, lo, hi uint64) { l.setBusy(lo, hi, b.by) })
			}
		}
	}
	d.cost.Store(t.cost())
	d.table.Store(t)
	if old != nil {
		old.turnAway()
		for i := range old.stripes {
			l := &old.stripes[i]
			l.busy = nil
			l.wake()
		}
	}
}

// cost bounds what a change may add to private memory: a split and what leads
// to it, and twice the largest directory.
func (t *segmentTable) cost() int64 {
	depth := uint32(0)
	for i := range t.segs {
		depth = max(depth, t.segs[i].depth())
	}
	return changeCost(depth)
}

func changeCost(depth uint32) int64 { return 8*pageSize + 12<<depth }

func (t *segmentTable) lock() {
	for i := range t.stripes {
		t.stripes[i].mu.Lock()
	}
}

func (t *segmentTable) unlock() {
	for i := range t.stripes {
		t.stripes[i].mu.Unlock()
	}
}

func (t *segmentTable) turnAway() {
	for i := range t.segs {
		if seg := &t.segs[i]; !seg.changing() {
			seg.begin()
		}
	}
}

func (t *segmentTable) readmit() {
	for i := range t.segs {
		if seg := &t.segs[i]; seg.changing() {
			seg.end()
		}
	}
}

// segment returns the segment of a hash: the one that its upper bits number. Few
// instructions, as each lookup takes them.
func (t *segmentTable) segment(h uint64) *segment {
	return (*segment)(unsafe.Add(t.first, h>>(t.shift&63)&t.mask))
}

// eachStripe calls fn with each stripe that hashes in [lo, hi] belong to, and
// with its part of them.
func (t *segmentTable) eachStripe(lo, hi uint64, fn func(l *stripe, lo, hi uint64)) {
	for {
		end := lo | ^uint64(0)>>min(t.bits, maxStripeBits)
		fn(t.segment(lo).stripe, lo, min(end, hi))
		if end >= hi {
			return
		}
		lo = end + 1
	}
}

// index returns the place of a hash in a directory of the given depth.
func (t *segmentTable) index(h uint64, depth uint32) uint64 {
	return h << (t.bits & 63) >> 1 >> ((63 - depth) & 63)
}

// bucket returns the page number of a hash's bucket, 0 if it is absent.
// For writers.
func (seg *segment) bucket(h uint64) pageNo {
	return seg.entry(h >> (seg.shift.Load() & 63) & uint64(seg.mask.Load()))
}

// entry returns entry i of the directory, which has it.
func (seg *segment) entry(i uint64) pageNo { return dirEntry(seg.dir.Load(), i) }

// bucketAt is bucket for readers who saw the counter at s: false if it is not
// any more, for directory, shift and mask must belong together, or if a writer
// was there. Who is turned away does not look at the directory, which a closed
// arena may not have.
func (seg *segment) bucketAt(h, s uint64) (pageNo, bool) {
	shift, mask, dir := seg.shift.Load(), seg.mask.Load(), seg.dir.Load()
	if s&1 != 0 || seg.load() != s {
		return 0, false
	}
	return dirEntry(dir, h>>(shift&63)&uint64(mask)), true
}

// look is bucketAt in fewer instructions, for readers who look again with
// more care where it returns 0: the bucket is absent, or a writer was there. s is
// even. The methods of the atomic types would leave a NOP each, as in version.load.
func (seg *segment) look(h, s uint64) pageNo {
	shift := atomic.LoadUint32((*uint32)(unsafe.Pointer(&seg.shift)))
	mask := atomic.LoadUint32((*uint32)(unsafe.Pointer(&seg.mask)))
	dir := atomic.LoadPointer((*unsafe.Pointer)(unsafe.Pointer(&seg.dir)))
	if seg.load() != s {
		return 0
	}
	return binary.LittleEndian.Uint32((*[4]byte)(unsafe.Add(dir, h>>(shift&63)&uint64(mask)*4))[:])
}

// dirEntry returns entry i of a directory, which has it. The memory is mapped
// for ever; it may show other bytes once the directory has moved.
func dirEntry(dir *uint32, i uint64) pageNo {
	return binary.LittleEndian.Uint32((*[4]byte)(unsafe.Add(unsafe.Pointer(dir), i*4))[:])
}

// setOnly makes the directory one entry outside the file.
func (seg *segment) setOnly(p pageNo) {
	binary.LittleEndian.PutUint32((*[4]byte)(unsafe.Pointer(&seg.only))[:], p)
	seg.setDir(&seg.only, 0, 0)
}

func (seg *segment) depth() uint32 { return uint32(bits.Len32(seg.mask.Load())) }

func (seg *segment) setDepth(n uint32) {
	seg.shift.Store(min(63, 64-seg.bits-n))
	seg.mask.Store(1<<n - 1)
}

func (seg *segment) setDir(dir *uint32, off uint64, depth uint32) {
	seg.dir.Store(dir)
	seg.setDepth(depth)
	seg.off = off
}

// count adds to the number of entries. The caller holds the lock, so only
// readers of the count meet it. On 64-bit machines a plain store is whole, and
// saves a change the 20 cycles of an atomic one.
func (l *stripeState) count(n int64) {
	if optimistic && bits.UintSize == 64 {
		*(*int64)(unsafe.Pointer(&l.added)) += n
	} else {
		l.added.Add(n)
	}
}

// loadTable reads the root of a dict: it checks that the directories lie in
// the file. Buckets are checked when they are used.
func (d *dict) loadTable(h pageNo, hdr *page) (*segmentTable, error) {
	tableBits, depth := hdr[dictRootBitsOff], uint32(hdr[dictDepthOff])
	if tableBits != 0 && tableBits != rootBits || depth > inlineDepth || tableBits != 0 && depth != 0 {
		return nil, corruptAt(uint64(h)<<pageShift, "dict with %d root bits and a directory of %d", tableBits, depth)
	}
	t := d.emptyTable(tableBits)
	if tableBits == 0 {
		off := uint64(h)<<pageShift + dictDirOff
		dir := d.a.space.view(off, 4<<depth)
		t.segs[0].setDir((*uint32)(unsafe.Pointer(&dir[0])), off, depth)
		return t, nil
	}
	no := binary.LittleEndian.Uint32(hdr[dictRootOff:])
	root := d.a.space.peek(no)
	if root == nil {
		return nil, corruptAt(uint64(h)<<pageShift, "root table outside the file")
	}
	for i := range t.segs {
		v := binary.LittleEndian.Uint64(root[8*i:])
		off, depth := v&(1<<rootDepthBit-1), uint32(v>>rootDepthBit)
		bad := corruptAt(uint64(no)<<pageShift+uint64(8*i), "impossible root entry %#x", v)
		if depth == 0 {
			if off%pageSize != 0 || off>>pageShift >= maxPages {
				return nil, bad
			}
			t.segs[i].setOnly(pageNo(off >> pageShift))
			continue
		}
		if depth > maxDepth || off%16 != 0 {
			return nil, bad
		}
		dir := d.a.space.view(off, 4<<depth)
		if dir == nil {
			return nil, bad
		}
		t.segs[i].setDir((*uint32)(unsafe.Pointer(&dir[0])), off, depth)
	}
	return t, nil
}

// firstGroups is what a slotted bucket begins with.
const firstGroups = 4

// headOf returns the bucket of a hash, and makes it if it is absent.
func (d *dict) headOf(t *segmentTable, seg *segment, h uint64) (pageNo, error) {
	if no := seg.bucket(h); no != 0 {
		return no, nil
	}
	depth := seg.depth()
	if depth != 0 {
		return 0, corrupt("directory without a bucket for %#x", h)
	}
	no, err := d.a.alloc.alloc(1)
	if err != nil {
		return 0, err
	}
	d.a.space.touch(no, allLines)
	d.layout.format((*bucket)(d.a.space.page(no)), prefixOf(h, int(t.bits)), int(t.bits), firstGroups)
	seg.begin()
	d.setEntries(t, seg, h, 0, no)
	seg.end()
	seg.buckets, seg.deepest = 1, 1
	return no, nil
}

// prefixOf returns the upper n bits of a hash, the others 0.
func prefixOf(h uint64, n int) uint64 { return h &^ (^uint64(0) >> n) }

// setEntries lets the entries of a directory that agree with h in depth bits,
// root bits not included, name page no.
func (d *dict) setEntries(t *segmentTable, seg *segment, h uint64, depth uint32, no pageNo) {
	all := seg.depth()
	n := uint64(1) << (all - depth)
	first := t.index(h, all) &^ (n - 1)
	if seg.off == 0 {
		d.setRoot(h, uint64(no)<<pageShift)
		seg.setOnly(no)
		return
	}
	d.a.space.mark(seg.off+4*first, int(4*n))
	dir := d.dirBytes(seg)[4*first : 4*(first+n)]
	for ; len(dir) > 0; dir = dir[4:] {
		binary.LittleEndian.PutUint32(dir, no)
	}
}

// dirBytes returns the memory of a directory in the file.
func (d *dict) dirBytes(seg *segment) []byte {
	return d.a.space.view(seg.off, 4<<seg.depth())
}

// setRoot writes the root entry of the segment of h.
func (d *dict) setRoot(h uint64, v uint64) {
	i := int(h >> (64 - rootBits))
	root := binary.LittleEndian.Uint32(d.header()[dictRootOff:])
	d.a.space.touch(root, lineMask(8*i, 8))
	binary.LittleEndian.PutUint64(d.a.space.page(root)[8*i:], v)
}

// split divides the bucket of h, which begins with page head, by the next bit
// of the hash, if its directory may be that deep. On error nothing has changed.
func (d *dict) split(t *segmentTable, seg *segment, h uint64, head pageNo) (done bool, err error) {
	b, err := d.owned(t, seg, h, head)
	if err != nil {
		return false, err
	}
	depth := b.depth()
	local, all := uint32(depth)-uint32(t.bits), seg.depth()
	d.countBuckets(seg)
	if local == all && !mayDeepen(seg) {
		return false, nil
	}
	if local == all && t.bits == 0 && all == inlineDepth {
		return false, errFanOut
	}

	// All that can fail comes first: the new pages, the new directory.
	chained := b.next() != 0
	moves := movingEntries.Get().(*[]moving)
	defer movingEntries.Put(moves)
	low, high, err := d.halves(head, b, moves)
	if err != nil {
		return false, err
	}
	var dir uint64
	if local == all && t.bits != 0 {
		if dir, err = d.recs.alloc(8 << all); err != nil {
			if chained {
				err = errors.Join(err, d.freeChain(low))
			}
			return false, errors.Join(err, d.freeChain(high))
		}
	}

	seg.begin()
	if !chained {
		d.divide(head, high, *moves)
	}
	oldDir := seg.off
	if local == all {
		d.deepen(t, seg, h, dir)
	}
	first := prefixOf(h, depth)
	if low != head {
		d.setEntries(t, seg, first, local+1, low)
	}
	d.setEntries(t, seg, first|1<<(63-depth), local+1, high)
	seg.end()

	seg.buckets++
	if local+1 == seg.depth() {
		seg.deepest += 2
	}
	if chained {
		err = d.freeChain(head)
	}
	if dir != 0 && oldDir != 0 {
		err = errors.Join(err, d.recs.release(oldDir, 4<<all))
	}
	return true, err
}

// owned returns the first page of the bucket of h after a look at its header,
// which says that it stands where the directory has it.
func (d *dict) owned(t *segmentTable, seg *segment, h uint64, head pageNo) (*bucket, error) {
	b, err := d.page(head, 0)
	if err != nil {
		return nil, err
	}
	n := b.depth()
	if n < int(t.bits) || n > int(t.bits)+int(seg.depth()) || b.prefix() != prefixOf(h, n) {
		return nil, corruptAt(uint64(head)<<pageShift, "bucket of prefix %#x/%d stands for hash %#x", b.prefix(), n, h)
	}
	return b, nil
}

// mayDeepen says whether a directory, whose buckets are counted, has so many
// that it may double.
func mayDeepen(seg *segment) bool {
	n := seg.depth() + 1
	return n <= maxDepth && n <= uint32(bits.Len(uint(seg.buckets))-1+spareDepth)
}

// countBuckets counts the buckets of a segment unless that is done.
func (d *dict) countBuckets(seg *segment) {
	if seg.buckets != 0 {
		return
	}
	seg.deepest = 0
	last := pageNo(0)
	for i := range uint64(1) << seg.depth() {
		no := seg.entry(i)
		if i == 0 || no != last {
			seg.buckets++
		}
		if seg.depth() == 0 || no != seg.entry(i^1) {
			seg.deepest++
		}
		last = no
	}
}

// halves makes what the bucket b, which begins with page head, is to be split
// into: a new page beside it, for divide; or if it is a chain, two new ones.
func (d *dict) halves(head pageNo, b *bucket, moves *[]moving) (low, high pageNo, err error) {
	if b.next() != 0 {
		parts, err := d.spread(head, b.depth(), 1, false)
		if err != nil {
			return 0, 0, err
		}
		return parts[0], parts[1], nil
	}
	if !d.layout.words() {
		if err := d.moves(moves, b); err != nil {
			return 0, 0, err
		}
	}
	high, err = d.a.alloc.alloc(1)
	return head, high, err
}

// divide moves the entries of a page whose next bit is 1 to a new page. Those of
// words it finds itself.
func (d *dict) divide(no, high pageNo, moves []moving) {
	l := d.layout
	d.a.space.touch(no, allLines)
	d.a.space.touch(high, allLines)
	b, other := (*bucket)(d.a.space.page(no)), (*bucket)(d.a.space.page(high))
	old, depth, groups := *b, b.depth(), b.groups()
	l.format(other, b.prefix()|1<<(63-depth), depth+1, groups)
	b.setDepth(depth + 1)
	l.clear(b, groups)
	if l.words() {
		d.spreadWords([]wordFiller{{b: b}, {b: other}}, &old, depth)
		return
	}
	to := [2]*bucket{b, other}
	for _, m := range moves {
		l.copyEntry(to[m.h>>(63-depth)&1], m, &old)
	}
}

// A wordFiller writes the lines of an empty page of words. It counts what they
// hold rather than look for their empty slots, which a processor cannot
// foretell.
type wordFiller struct {
	b    *bucket
	used [lineCount]uint8
}

// spreadWords writes the words of an old page to new ones, by the n-th bit of
// their hashes, for which to has 2; or all to one.
func (d *dict) spreadWords(to []wordFiller, old *bucket, n int) {
	const perLine = lineSize / wordSlot
	mask := uint64(len(to) - 1)
	if old.hasZero() {
		b := to[d.hashWord(0)>>(63-n)&mask].b
		b[bucketFlagsOff] |= flagZero
		b.setWord(zeroValueOff, old.word(zeroValueOff))
	}
	for off := lineSize; off < pageSize; off += wordSlot {
		key := old.word(off)
		if key == 0 {
			off |= lineSize - wordSlot // the rest of the line is empty too
			continue
		}
		h := d.hashWord(key)
		f := &to[h>>(63-n)&mask]
		line := home(h, lineCount)
		for f.used[line] == perLine {
			if line++; line == lineCount {
				line = 0
			}
		}
		at := lineSize + line*lineSize + int(f.used[line])*wordSlot
		f.used[line]++
		f.b.setWord(at, key)
		f.b.setWord(at+8, old.word(off+8))
	}
}

// spread writes the entries of a bucket anew: to 1<<n buckets, by the n bits
// of the hash behind the first depth. Parts without an entry are 0 if absent.
func (d *dict) spread(head pageNo, depth, n int, absent bool) (parts []pageNo, err error) {
	l := d.layout
	parts = make([]pageNo, 1<<n)
	tails := make([]place, 1<<n)
	defer func() {
		if err != nil {
			for _, p := range parts {
				err = errors.Join(err, d.freeChain(p))
			}
		}
	}()
	first, err := d.page(head, 0)
	if err != nil {
		return parts, err
	}
	// grow adds a page to a part.
	grow := func(part int) error {
		no, err := d.a.alloc.alloc(1)
		if err != nil {
			return err
		}
		d.a.space.touch(no, allLines)
		b := (*bucket)(d.a.space.page(no))
		l.format(b, first.prefix()|uint64(part)<<(64-depth-n), depth+n, first.groups())
		if tail := tails[part]; tail.b != nil {
			b.setLink(tail.b.link() + 1)
			tail.b.setNext(no)
			d.overflow.Add(1)
		} else {
			parts[part] = no
		}
		tails[part] = place{no: no, b: b}
		return nil
	}
	if !absent {
		for part := range parts {
			if err := grow(part); err != nil {
				return parts, err
			}
		}
	}
	moves := movingEntries.Get().(*[]moving)
	defer movingEntries.Put(moves)
	for no, link := head, uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return parts, err
		}
		if err := d.moves(moves, b); err != nil {
			return parts, err
		}
		for _, m := range *moves {
			part := int(m.h << depth >> (64 - n))
			for tails[part].b == nil || !l.copyEntry(tails[part].b, m, b) {
				if err := grow(part); err != nil {
					return parts, err
				}
			}
		}
		no, link = b.next(), b.link()+1
	}
	return parts, nil
}

// freeChain gives the pages of a bucket back.
func (d *dict) freeChain(no pageNo) error {
	for link := uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return err
		}
		if link = b.link() + 1; link > 1 {
			d.overflow.Add(-1)
		}
		next := b.next()
		if err := d.a.alloc.free(no, 1); err != nil {
			return err
		}
		no = next
	}
	return nil
}

// deepen doubles the directory of h's segment: in the header page, or from the
// old place to dir.
func (d *dict) deepen(t *segmentTable, seg *segment, h uint64, dir uint64) {
	depth := seg.depth()
	defer func() {
		seg.deepest = 0
		for cost := changeCost(depth + 1); ; {
			if old := d.cost.Load(); old >= cost || d.cost.CompareAndSwap(old, cost) {
				break
			}
		}
	}()
	n := uint64(1) << depth
	if t.bits == 0 {
		d.setHeaderDepth(depth + 1)
		d.a.space.touch(d.hdr, lineMask(dictDirOff, int(8*n)))
		all := d.a.space.view(seg.off, int(8*n))
		for i := n; i > 0; i-- {
			no := seg.entry(i - 1)
			binary.LittleEndian.PutUint32(all[8*i-8:], no)
			binary.LittleEndian.PutUint32(all[8*i-4:], no)
		}
		seg.setDepth(depth + 1)
		return
	}
	d.a.space.mark(dir, int(8*n))
	all := d.a.space.view(dir, int(8*n))
	for i := range n {
		binary.LittleEndian.PutUint32(all[8*i:], seg.entry(i))
		binary.LittleEndian.PutUint32(all[8*i+4:], seg.entry(i))
	}
	d.setRoot(h, dir|uint64(depth+1)<<rootDepthBit)
	seg.setDir((*uint32)(unsafe.Pointer(&all[0])), dir, depth+1)
}

func (d *dict) setHeaderDepth(depth uint32) {
	d.a.space.touch(d.hdr, 1)
	d.header()[dictDepthOff] = uint8(depth)
}

// worthMerging says whether to look for a merge after slot i was emptied. The only
// bucket of a segment has none to merge with, but goes when it is empty. The
// layouts that count entries look now and then below the threshold: slotted
// pages, of which that takes a look at each entry, at powers of two. Lines
// look when the slot's line and its neighbours are empty: rare above the
// threshold, frequent below, certain for the last entry.
func (l *layout) worthMerging(seg *segment, b *bucket, i int) bool {
	only := seg.depth() == 0
	switch l.kind {
	case layoutLines:
		if i != l.slots {
			line := i/l.perGroup + 1
			near, far := (line+lineCount-2)%lineCount+1, line%lineCount+1
			if line&1 == 0 {
				near, far = far, near // many processors fetch lines in pairs
			}
			if l.lineKey(b, line*lineSize) != 0 || l.lineKey(b, near*lineSize) != 0 || l.lineKey(b, far*lineSize) != 0 {
				return false // without a look at the neighbours, if possible: they may not be in the cache
			}
		}
		if only {
			return l.next(b, 0) < 0 // counting would read the whole page
		}
		n := l.slots / mergeFrom
		return l.countAtLeast(b, n) < n
	case layoutControl:
		n := b.count()
		return n == 0 || !only && n&3 == 0 && n < l.slots/mergeFrom
	default:
		n := b.count()
		return n == 0 || !only && n&(n-1) == 0 && l.load(b) < pageSize/mergeFrom
	}
}

// load returns the bytes that the entries of a slotted bucket need.
func (l *layout) load(b *bucket) int {
	return l.liveBytes(b) + b.count()*slotGroup/(ctrlGroup-1)
}

// merge joins the bucket of h with its buddy, the one that differs in the last
// bit of the prefix, if they are small enough; and again, as long as it can.
// Then it halves the directory as often as no bucket needs its last bit. A
// segment's only bucket goes when it is empty.
func (d *dict) merge(t *segmentTable, seg *segment, h uint64, head pageNo) error {
	b, err := d.owned(t, seg, h, head)
	if err != nil {
		return err
	}
	seg.emptied = seg.emptied || d.layout.next(b, 0) < 0
	for {
		merged, err := d.mergeOnce(t, seg, h, head, b)
		if err != nil {
			return err
		}
		if !merged {
			break
		}
	}
	d.countBuckets(seg)
	for seg.deepest == 0 && seg.depth() > 0 {
		if halved, err := d.halve(t, seg, h); err != nil || !halved {
			return err
		}
	}
	if b.depth() == int(t.bits) && d.layout.next(b, 0) < 0 {
		seg.begin()
		d.setEntries(t, seg, h, 0, 0)
		seg.end()
		seg.buckets, seg.deepest = 0, 0
		return d.a.alloc.free(head, 1)
	}
	return nil
}

func (d *dict) mergeOnce(t *segmentTable, seg *segment, h uint64, head pageNo, b *bucket) (bool, error) {
	l := d.layout
	depth := b.depth()
	if depth == int(t.bits) {
		return false, nil
	}
	buddyHash := prefixOf(h, depth) ^ 1<<(64-depth)
	no := seg.bucket(buddyHash)
	c, err := d.page(no, 0)
	if err != nil {
		return false, err
	}
	if c.depth() != depth || c.next() != 0 || !l.fitTogether(b, c) {
		return false, nil
	}
	if _, err := d.owned(t, seg, buddyHash, no); err != nil {
		return false, err
	}
	was := *b
	from := [2]*bucket{&was, c} // c is another page, with a prefix of its own
	var moves [2]*[]moving
	for i := range from {
		if l.words() {
			break // spreadWords needs none
		}
		moves[i] = movingEntries.Get().(*[]moving)
		defer movingEntries.Put(moves[i])
		if err := d.moves(moves[i], from[i]); err != nil {
			return false, err
		}
	}
	groups := 0
	if l.kind == layoutSlotted {
		groups = groupsWanted(max(1, b.count()+c.count()), l.liveBytes(b)+l.liveBytes(c))
	}
	local := uint32(depth) - uint32(t.bits)
	d.countBuckets(seg)
	d.a.space.touch(head, allLines)
	seg.begin()
	b.setDepth(depth - 1)
	b.setPrefix(prefixOf(h, depth-1))
	l.clear(b, groups)
	filler := [1]wordFiller{{b: b}}
	for k, old := range from {
		if l.words() {
			d.spreadWords(filler[:], old, 0)
			continue
		}
		for _, m := range *moves[k] {
			l.copyEntry(b, m, old)
		}
	}
	d.setEntries(t, seg, h, local-1, head)
	seg.end()
	seg.buckets--
	if local == seg.depth() {
		seg.deepest -= 2
	}
	return true, d.a.alloc.free(no, 1)
}

// fitTogether says whether two pages may merge.
func (l *layout) fitTogether(b, c *bucket) bool {
	if l.kind == layoutSlotted {
		return l.load(b)+l.load(c) <= pageSize/mergeInto
	}
	n := l.slots / mergeInto
	return l.countAtLeast(b, n+1)+l.countAtLeast(c, n+1) <= n
}

// halve leaves the last bit of a directory out. It does not where that takes
// space that there is not.
func (d *dict) halve(t *segmentTable, seg *segment, h uint64) (bool, error) {
	depth := seg.depth() - 1
	n := uint64(1) << depth
	old := d.dirBytes(seg)
	if t.bits == 0 {
		seg.begin()
		d.setHeaderDepth(depth)
		d.a.space.touch(d.hdr, lineMask(dictDirOff, int(4*n)))
		for i := range n {
			copy(old[4*i:4*i+4], old[8*i:])
		}
		seg.setDepth(depth)
		seg.end()
	} else {
		oldOff := seg.off
		if depth == 0 {
			no := seg.entry(0)
			seg.begin()
			d.setRoot(h, uint64(no)<<pageShift)
			seg.setOnly(no)
			seg.end()
		} else {
			dir, err := d.recs.alloc(int(4 * n))
			if err != nil {
				return false, nil
			}
			d.a.space.mark(dir, int(4*n))
			half := d.a.space.view(dir, int(4*n))
			for i := range n {
				copy(half[4*i:4*i+4], old[8*i:])
			}
			seg.begin()
			d.setRoot(h, dir|uint64(depth)<<rootDepthBit)
			seg.setDir((*uint32)(unsafe.Pointer(&half[0])), dir, depth)
			seg.end()
		}
		if err := d.recs.release(oldOff, int(8*n)); err != nil {
			return false, err
		}
	}
	seg.buckets = 0
	d.countBuckets(seg)
	return true, nil
}

// fanOut divides the only segment into 512. It is an operation of its own: for
// it needs more memory than others.
func (d *dict) fanOut() error {
	if err := d.a.admit(min(segmentCount*pageSize, d.a.limit/2)); err != nil {
		return err
	}
	d.a.gate.enter()
	defer d.a.gate.exit()
	d.a.gate.activate(d)
	d.lock()
	defer d.unlock()
	if d.state.Load() != stateOpen || d.hdr == 0 {
		return nil // the change that needs it will see
	}
	return d.fanOutInside()
}

// fanOutInside is fanOut for who holds all locks. On error nothing has changed.
func (d *dict) fanOutInside() (err error) {
	t := d.table.Load()
	seg := &t.segs[0]
	if t.bits != 0 || seg.depth() != inlineDepth {
		return nil
	}
	var made []pageNo // buckets of fewer bits than the root, written anew
	root, err := d.a.alloc.alloc(1)
	if err != nil {
		return err
	}
	defer func() {
		if root != 0 {
			for _, no := range made {
				err = errors.Join(err, d.freeChain(no))
			}
			err = errors.Join(err, d.a.alloc.free(root, 1))
		}
	}()
	var heads [segmentCount]pageNo
	var old []pageNo
	for i := 0; i < segmentCount; {
		no := seg.entry(uint64(i))
		b, err := d.owned(t, seg, uint64(i)<<(64-rootBits), no)
		if err != nil {
			return err
		}
		parts := []pageNo{no}
		if n := rootBits - b.depth(); n > 0 {
			if parts, err = d.spread(no, b.depth(), n, true); err != nil {
				return err
			}
			old = append(old, no)
			made = append(made, parts...)
		}
		i += copy(heads[i:], parts)
	}

	d.a.space.touch(root, allLines)
	table := d.a.space.page(root)
	next := d.emptyTable(rootBits)
	next.base = d.count()
	for i, no := range heads {
		binary.LittleEndian.PutUint64(table[8*i:], uint64(no)<<pageShift)
		next.segs[i].setOnly(no)
	}
	d.a.space.touch(d.hdr, 1|lineMask(dictDirOff, 4<<inlineDepth))
	hdr := d.header()
	seg.begin()
	hdr[dictRootBitsOff], hdr[dictDepthOff] = rootBits, 0
	binary.LittleEndian.PutUint32(hdr[dictRootOff:], root)
	clear(hdr[dictDirOff:])
	d.setTable(next)
	root = 0 // it is not ours any more
	for _, no := range old {
		err = errors.Join(err, d.freeChain(no))
	}
	return err
}

// grow splits buckets until n more entries of fixed size find room.
func (d *dict) grow(n int) error {
	if n < 0 {
		panic(indexError{"negative Grow"})
	}
	if err := d.writable(); err != nil {
		return err
	}
	total := d.count() + int64(n)
	if total > maxEntries {
		return fmt.Errorf("%w: %d entries", ErrTooLarge, total)
	}
	perPage := int64(d.layout.slots) * 5 / 8
	if perPage == 0 || n == 0 {
		return nil
	}
	// Level by level, or the directory would seem too deep for its buckets.
	for depth := 1; int64(1)<<(depth-1)*perPage < total; depth++ {
		if err := d.splitAll(depth); err != nil {
			return err
		}
	}
	return nil
}

// splitAll splits all buckets of less than the given depth.
func (d *dict) splitAll(depth int) error {
	for h := uint64(0); ; {
		t, seg, err := d.enter(h, 0, nil)
		if err != nil {
			return err
		}
		hi, split, err := d.splitTo(t, seg, h, depth)
		seg.mu.Unlock()
		switch {
		case err == errFanOut:
			if err := d.fanOut(); err != nil {
				return err
			}
		case err != nil:
			return err
		case split:
		case hi == ^uint64(0):
			return nil
		default:
			h = hi + 1
		}
	}
}

func (d *dict) splitTo(t *segmentTable, seg *segment, h uint64, depth int) (hi uint64, split bool, err error) {
	head, err := d.headOf(t, seg, h)
	if err != nil {
		return 0, false, err
	}
	b, err := d.owned(t, seg, h, head)
	if err != nil {
		return 0, false, err
	}
	hi = h | ^uint64(0)>>b.depth()
	if b.depth() >= depth {
		return hi, false, nil
	}
	split, err = d.split(t, seg, h, head)
	return hi, split, err
}

// verify checks the whole dict: the directories, that each entry lies where a
// search finds it, counts and records. It reports each run of pages to own.
func (d *dict) verify(own func(p pageNo, n uint32) error) error {
	if d.hdr == 0 {
		return nil
	}
	v := &dictCheck{d: d, t: d.table.Load(), own: own}
	if err := own(d.hdr, 1); err != nil {
		return err
	}
	if v.t.bits != 0 {
		if err := own(binary.LittleEndian.Uint32(d.header()[dictRootOff:]), 1); err != nil {
			return err
		}
	}
	var err error
	if v.recs, err = d.recs.verify(own); err != nil {
		return err
	}
	for i := range v.t.segs {
		if err := v.segment(uint64(i), &v.t.segs[i]); err != nil {
			return err
		}
	}
	if n := d.count(); n != v.entries {
		return corrupt("length %d, but %d entries", n, v.entries)
	}
	if n := d.overflow.Load(); n != v.overflow {
		return corrupt("%d overflow pages, but %d found", n, v.overflow)
	}
	return v.recs.done()
}

// A dictCheck is the state of verify.
type dictCheck struct {
	d                 *dict
	t                 *segmentTable
	own               func(p pageNo, n uint32) error
	recs              *recordCheck
	entries, overflow int64
}

// segment checks segment i.
func (v *dictCheck) segment(i uint64, seg *segment) error {
	depth := seg.depth()
	if v.t.bits != 0 && seg.off != 0 {
		if err := v.recs.space(seg.off, 4<<depth); err != nil {
			return err
		}
	}
	first := i << 1 << (63 - v.t.bits)
	step := ^uint64(0)>>v.t.bits>>depth + 1 // 0: one bucket for all hashes
	buckets, deepest := uint32(0), uint32(0)
	for k := uint64(0); k < 1<<depth; {
		h := first + k*step
		no := seg.entry(k)
		if no == 0 {
			if depth != 0 {
				return corrupt("directory of depth %d without a bucket for hash %#x", depth, h)
			}
			break
		}
		b, err := v.d.owned(v.t, seg, h, no)
		if err != nil {
			return err
		}
		if prefixOf(h, b.depth()) != h {
			return corruptAt(uint64(no)<<pageShift, "bucket of %d bits in the middle of its range at %#x", b.depth(), h)
		}
		buckets++
		local := uint32(b.depth() - int(v.t.bits))
		if local == depth {
			deepest++
		}
		end := k + 1<<(depth-local)
		for ; k < end; k++ {
			if seg.entry(k) != no {
				return corrupt("directory entry %d is %d, not %d", k, seg.entry(k), no)
			}
		}
		if err := v.bucket(h, no, b.depth()); err != nil {
			return err
		}
	}
	if seg.buckets != 0 && (seg.buckets != buckets || depth != 0 && seg.deepest != deepest) {
		return fmt.Errorf("segment %d counted %d buckets, %d of them deepest; found %d, %d", i, seg.buckets, seg.deepest, buckets, deepest)
	}
	return nil
}

// bucket checks the pages of one bucket.
func (v *dictCheck) bucket(h uint64, no pageNo, depth int) error {
	d, l := v.d, v.d.layout
	seen := map[string]bool{}
	for link := uint32(0); no != 0; {
		at := uint64(no) << pageShift
		b, err := d.page(no, link)
		if err != nil {
			return err
		}
		if err := v.own(no, 1); err != nil {
			return err
		}
		if b.depth() != depth || b.prefix() != h || b.link() != 0 && link == 0 {
			return corruptAt(at, "page of prefix %#x/%d, link %d, in a bucket of %#x/%d", b.prefix(), b.depth(), b.link(), h, depth)
		}
		n, err := v.page(no, b, seen)
		if err != nil {
			return err
		}
		v.entries += int64(n)
		if l.kind != layoutLines && n != b.count() {
			return corruptAt(at, "bucket counts %d entries, has %d", b.count(), n)
		}
		if b.hasZero() {
			n--
		}
		if b.next() != 0 && l.kind != layoutSlotted && n != l.slots {
			return corruptAt(at, "page with %d of %d entries is not the last of its chain", n, l.slots)
		}
		if link > 0 {
			v.overflow++
			if n == 0 {
				return corruptAt(at, "empty overflow page")
			}
		}
		no, link = b.next(), b.link()+1
	}
	return nil
}

// page checks the entries of a page and counts them.
func (v *dictCheck) page(no pageNo, b *bucket, seen map[string]bool) (n int, err error) {
	d, l := v.d, v.d.layout
	at := uint64(no) << pageShift
	if l.kind == layoutSlotted && (b.groups() != l.groupsOf(b) || b.heap() < bucketHeader+b.groups()*slotGroup || b.heap() > pageSize) {
		return 0, corruptAt(at, "slotted bucket of %d groups, heap at %d", b.groups(), b.heap())
	}
	for i := l.next(b, 0); i >= 0; i = l.next(b, i+1) {
		n++
		key, err := d.keyAt(b, i)
		if err != nil {
			return n, err
		}
		h := d.hash(key)
		if prefixOf(h, b.depth()) != b.prefix() {
			return n, corruptAt(at, "key of hash %#x in the bucket of %#x/%d", h, b.prefix(), b.depth())
		}
		if l.kind != layoutLines && b[l.ctrlOff(i)] != fingerprint(h) {
			return n, corruptAt(at, "slot %d: control byte %#x for hash %#x", i, b[l.ctrlOff(i)], h)
		}
		if j, _, found := d.find(b, h, key); !found || j != i {
			return n, corruptAt(at, "key of slot %d is found at %d, %v", i, j, found)
		}
		if seen[string(key)] {
			return n, corruptAt(at, "key of slot %d is there twice", i)
		}
		seen[string(key)] = true
		if err := v.refs(b, i); err != nil {
			return n, err
		}
	}
	return n, v.marks(no, b)
}

// refs reports the records of slot i.
func (v *dictCheck) refs(b *bucket, i int) error {
	l := v.d.layout
	if l.kind != layoutSlotted {
		return nil
	}
	off := entryOff(b, i)
	e, ok := l.entry(b, off)
	if !ok || off < b.heap() {
		return corrupt("entry of slot %d at %d, heap at %d", i, off, b.heap())
	}
	if e.keyFar {
		if err := v.recs.ref(b.refAt(e.key)); err != nil {
			return err
		}
	}
	if e.valFar {
		if x := b.refAt(e.val); x.grows() {
			return v.recs.growing(x, v.d.value)
		}
		return v.recs.ref(b.refAt(e.val))
	}
	return nil
}

// marks checks what the empty slots of a page look like.
func (v *dictCheck) marks(no pageNo, b *bucket) error {
	l := v.d.layout
	at := uint64(no) << pageShift
	if l.kind != layoutLines {
		for g := range l.groupsOf(b) {
			for k := range ctrlGroup {
				i := g*ctrlGroup + k
				want := uint8(ctrlEmpty)
				if i >= l.slotsOf(b) {
					want = ctrlNone
				}
				if c := b[l.ctrlOff(i)]; c < 0x80 && c != want {
					return corruptAt(at, "slot %d: control byte %#x", i, c)
				}
			}
		}
		return nil
	}
	for i := 1; i < l.slots; i++ {
		if i%l.perGroup != 0 && l.used(b, i) && !l.used(b, i-1) {
			return corruptAt(at, "line with a gap before slot %d", i)
		}
	}
	return nil
}
