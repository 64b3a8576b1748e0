package emd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"
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

	dictKind     = "EMDdict1"
	rootBits     = 9
	segmentCount = 1 << rootBits
	inlineDepth  = 9  // of the directory in the header page, at most
	maxDepth     = 22 // of a segment's directory: 16 MiB
	spareDepth   = 4  // bits that a directory may have beyond log2 of its buckets
	rootDepthBit = 56

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
	_ = uint(segmentCount - 1<<inlineDepth) // each inline bucket becomes a segment
)

// A dict is the core of an [EMDict], of keys and values that are bytes
// already.
type dict struct {
	handle
	layout   *layout
	hasher   hasher
	hashMask uint64 // of the hash bits in use: all, but in tests that want collisions
	recs     records
	table    atomic.Pointer[segmentTable]
	cost     atomic.Int64  // bytes that a change may add to private memory, but for records
	overflow atomic.Int64  // overflow pages
	away     bool          // between turnAway and readmit, guarded by all locks
	held     *segmentTable // what lock has locked, guarded by its locks
}

// A segmentTable is the root of a dict on the Go heap. When the number of
// segments changes, and after a Rollback, another takes its place; the
// counters of the old one then stay odd, so that readers look again.
type segmentTable struct {
	bits uint8 // 0 or rootBits
	base int64 // entries when the table was made
	segs []segment
}

// A segment is the state of a directory on the Go heap. A lookup needs its
// first cache line only.
type segment struct {
	seqlock
	dir   atomic.Pointer[uint32] // 1<<depth page numbers
	depth atomic.Uint32
	only  uint32 // the directory, where it has one entry outside the file

	// The rest is for writers.
	added   atomic.Int64 // entries since the table was made
	off     uint64       // of the directory in the file; 0: only
	buckets int          // in the directory; 0: not counted yet
	deepest int          // buckets that need the directory's last bit; counted with buckets
	emptied bool         // a page lost its last entry, until somebody has looked whether the dict did
	_       [24]byte
}

// errRetry makes a reader look again: what it read has changed meanwhile.
var errRetry = errors.New("changed meanwhile")

// errFanOut says that a dict must fan out before it can split a bucket.
var errFanOut = errors.New("directory is full")

// newDict returns the core of a dict with keys and values of these sizes, -1
// for those that vary. It is empty until create or load.
func newDict(a *Arena, keySize, valSize int) *dict {
	d := &dict{layout: layoutFor(keySize, valSize), hasher: newHasher(a.seed), hashMask: ^uint64(0)}
	d.a = a
	d.setTable(d.emptyTable(0))
	return d
}

// newBytesDict returns the core of a dict of bytes that the arena keeps for
// itself, and whose methods it calls inside the gate: see getBytes.
func newBytesDict(a *Arena, name string) *dict {
	d := newDict(a, -1, -1)
	d.name, d.kind = name, "catalog"
	return d
}

// emptyTable returns a table without buckets.
func (d *dict) emptyTable(tableBits uint8) *segmentTable {
	t := &segmentTable{bits: tableBits, segs: make([]segment, 1<<tableBits)}
	for i := range t.segs {
		t.segs[i].setOnly(0)
		if d.away {
			t.segs[i].seq.Store(1)
		}
	}
	return t
}

// setTable replaces the table. Callbacks that hold hashes busy go on holding
// them in the new one, and who waits for an old lock looks again.
func (d *dict) setTable(t *segmentTable) {
	old := d.table.Load()
	if old != nil {
		for i := range old.segs {
			for _, b := range old.segs[i].busy {
				t.eachSegment(b.lo, b.hi, func(seg *segment, lo, hi uint64) { seg.setBusy(lo, hi) })
			}
		}
	}
	d.cost.Store(t.cost())
	d.table.Store(t)
	if old != nil {
		for i := range old.segs {
			seg := &old.segs[i]
			if seg.seq.Load()&1 == 0 {
				seg.seq.Add(1)
			}
			seg.busy = nil
			if seg.idle != nil {
				seg.idle.Broadcast()
			}
		}
	}
}

// cost bounds what a change may add to private memory: a split and what leads
// to it, and twice the largest directory.
func (t *segmentTable) cost() int64 {
	depth := uint32(0)
	for i := range t.segs {
		depth = max(depth, t.segs[i].depth.Load())
	}
	return changeCost(depth)
}

func changeCost(depth uint32) int64 { return 8*pageSize + 12<<depth }

// segment returns the segment of a hash.
func (t *segmentTable) segment(h uint64) *segment {
	return &t.segs[h>>1>>((63-t.bits)&63)]
}

// eachSegment calls fn with each segment that hashes in [lo, hi] belong to,
// and with its part of them.
func (t *segmentTable) eachSegment(lo, hi uint64, fn func(seg *segment, lo, hi uint64)) {
	for {
		end := lo | ^uint64(0)>>t.bits
		fn(t.segment(lo), lo, min(end, hi))
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
func (seg *segment) bucket(t *segmentTable, h uint64) pageNo {
	return seg.entry(t.index(h, seg.depth.Load()))
}

// entry returns entry i of the directory, which has it.
func (seg *segment) entry(i uint64) pageNo { return dirEntry(seg.dir.Load(), i) }

// dirEntry returns entry i of a directory, which has it. The memory is mapped
// for ever; it may show other bytes once the directory has moved.
func dirEntry(dir *uint32, i uint64) pageNo {
	return binary.LittleEndian.Uint32((*[4]byte)(unsafe.Add(unsafe.Pointer(dir), i*4))[:])
}

// bucketAt is bucket for readers who saw the counter at s: false if it is not
// any more, for directory and depth must belong together.
func (seg *segment) bucketAt(t *segmentTable, h, s uint64) (pageNo, bool) {
	depth, dir := seg.depth.Load(), seg.dir.Load()
	if seg.seq.Load() != s {
		return 0, false
	}
	return dirEntry(dir, t.index(h, depth)), true
}

// setOnly makes the directory one entry outside the file.
func (seg *segment) setOnly(p pageNo) {
	binary.LittleEndian.PutUint32((*[4]byte)(unsafe.Pointer(&seg.only))[:], p)
	seg.setDir(&seg.only, 0, 0)
}

func (seg *segment) setDir(dir *uint32, off uint64, depth uint32) {
	seg.dir.Store(dir)
	seg.depth.Store(depth)
	seg.off = off
}

// get appends the value of key to dst.
func (d *dict) get(dst []byte, h uint64, key []byte) (val []byte, ok bool, err error) {
	err = d.read(h, func(t *segmentTable, seg *segment, s uint64) error {
		b, i, err := d.search(t, seg, s, h, key)
		val, ok = dst, b != nil
		if ok {
			val, err = d.valueAt(dst, b, i)
		}
		return err
	})
	return val, ok && err == nil, err
}

// contains says whether key is present.
func (d *dict) contains(h uint64, key []byte) (ok bool, err error) {
	err = d.read(h, func(t *segmentTable, seg *segment, s uint64) error {
		b, _, err := d.search(t, seg, s, h, key)
		ok = b != nil
		return err
	})
	return ok && err == nil, err
}

// getBytes returns a copy of the value of key.
func (d *dict) getBytes(key []byte) (val []byte, ok bool, err error) {
	return d.get(nil, d.hash(key), key)
}

const (
	readSpins = 16  // attempts before the processor is given up
	readTries = 256 // and before sleeping: the dict is turned away by a Rollback, say
)

// read calls fn, with the segment of h and its counter, until it has run
// undisturbed by writers. What fn returns while disturbed means nothing.
func (d *dict) read(h uint64, fn func(t *segmentTable, seg *segment, s uint64) error) error {
	for try := 0; ; try++ {
		t := d.table.Load()
		seg := t.segment(h)
		locked := false
		if !optimistic {
			seg.mu.Lock()
			locked = true
		} else if try >= readSpins {
			// Keeps writers out. Blocking would not do: a writer may hold the
			// lock while it waits for a checkpoint.
			locked = seg.mu.TryLock()
		}
		s := seg.seq.Load()
		err := errRetry
		if s&1 == 0 {
			err = fn(t, seg, s)
			readFence()
			if seg.seq.Load() != s {
				err = errRetry
			}
		}
		if locked {
			seg.mu.Unlock()
		}
		if err != errRetry {
			return err
		}
		if err := d.a.check(&d.handle); err != nil {
			return err
		}
		switch {
		case try >= readTries:
			time.Sleep(20 * time.Microsecond)
		case try >= readSpins:
			runtime.Gosched()
		}
	}
}

// search finds key for a reader: its page and slot; nil if there is none.
func (d *dict) search(t *segmentTable, seg *segment, s, h uint64, key []byte) (*bucket, int, error) {
	no, ok := seg.bucketAt(t, h, s)
	if !ok {
		return nil, 0, errRetry
	}
	for link := uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return nil, 0, err
		}
		i, _, found := d.find(b, h, key)
		if found {
			return b, i, nil
		}
		if i >= 0 && d.layout.kind != layoutSlotted {
			return nil, 0, nil
		}
		no, link = b.next(), b.link()+1
	}
	return nil, 0, nil
}

// page returns page no of a bucket, whose link must be at least the given one:
// then no chain is endless.
func (d *dict) page(no pageNo, link uint32) (*bucket, error) {
	b := (*bucket)(d.a.space.peek(no))
	if b == nil {
		return nil, corruptAt(uint64(no)<<pageShift, "bucket outside the file")
	}
	if b.link() < link {
		return nil, corruptAt(uint64(no)<<pageShift, "overflow page %d after %d", b.link(), link)
	}
	return b, nil
}

// A changeKind says what change does with the key.
type changeKind uint8

const (
	changeSet    changeKind = iota // store the value
	changeAdd                      // store the value unless the key is present, and give what is
	changeSwap                     // store the value and give what was there
	changeRemove                   // remove the key
)

// A hold keeps the range [lo, hi] of hashes busy while a callback runs.
type hold struct {
	lo, hi uint64
	epoch  uint64 // the handle's when the hold began
}

// change does one change of one key. It appends the present value to dst
// where the kind gives it, and says whether there was one. by is the hold in
// which a callback decided, nil if none.
func (d *dict) change(kind changeKind, h uint64, key, val, dst []byte, by *hold) (old []byte, was bool, err error) {
	for {
		t, seg, err := d.enter(h, len(key)+len(val), by)
		if err != nil {
			return dst, false, err
		}
		old, was, err = d.changeInside(t, seg, kind, h, key, val, dst)
		emptied := seg.emptied
		seg.emptied = false
		d.leave(seg, h)
		switch {
		case err == errFanOut:
			if err := d.fanOut(); err != nil {
				return dst, false, err
			}
			continue
		case err == nil && emptied:
			err = d.tidy()
		}
		return old, was, err
	}
}

// enter admits a change of the hash h, takes the lock of its segment and
// passes the gate.
func (d *dict) enter(h uint64, size int, by *hold) (t *segmentTable, seg *segment, err error) {
	cost := d.cost.Load()
	if size > maxSlotted/4 {
		cost += d.a.costOf(size)
	}
	for {
		if err := d.a.admit(cost); err != nil {
			return nil, nil, err
		}
		t, seg = d.lockSegment(h, by != nil)
		d.a.gate.enter(uint(h >> (64 - rootBits)))
		if d.state.Load() == stateOpen && (by == nil || by.epoch == d.epoch.Load()) && d.hdr != 0 {
			return t, seg, nil
		}
		d.leave(seg, h)
		if err := d.a.check(&d.handle); err != nil {
			return nil, nil, err
		}
		if by != nil && by.epoch != d.epoch.Load() {
			return nil, nil, ErrRolledBack
		}
		if err := d.a.ensure(d); err != nil {
			return nil, nil, err
		}
	}
}

func (d *dict) leave(seg *segment, h uint64) {
	d.a.gate.exit(uint(h >> (64 - rootBits)))
	seg.unlock()
}

// lockSegment takes the lock of a hash's segment; unless the caller is the one
// who works on it, once the hash is not busy.
func (d *dict) lockSegment(h uint64, mine bool) (*segmentTable, *segment) {
	for {
		t := d.table.Load()
		seg := t.segment(h)
		if mine {
			seg.mu.Lock()
		} else {
			seg.lockKey(h)
		}
		if d.table.Load() == t {
			return t, seg
		}
		seg.unlock()
	}
}

// putBytes stores a value. The caller is inside the gate, and there is no
// other writer.
func (d *dict) putBytes(key, val []byte) error {
	h := d.hash(key)
	for {
		t, seg := d.lockSegment(h, true)
		_, _, err := d.changeInside(t, seg, changeSet, h, key, val, nil)
		if err == errFanOut {
			err = d.fanOutInside()
			if err == nil {
				err = errFanOut
			}
		}
		seg.unlock()
		if err != errFanOut {
			return err
		}
	}
}

// deleteBytes removes a key and says whether it was there; otherwise like
// putBytes.
func (d *dict) deleteBytes(key []byte) (bool, error) {
	h := d.hash(key)
	t, seg := d.lockSegment(h, true)
	defer seg.unlock()
	_, was, err := d.changeInside(t, seg, changeRemove, h, key, nil, nil)
	return was, err
}

// eachBytes calls fn with copies of all entries until it returns false.
func (d *dict) eachBytes(fn func(key, val []byte) bool) error {
	c := cursor{d: d, last: ^uint64(0)}
	for c.next() {
		val := c.val
		if c.valFar {
			var ok bool
			var err error
			if val, ok, err = d.getBytes(c.key); err != nil {
				return err
			} else if !ok {
				continue
			}
		}
		if !fn(c.key, val) {
			return nil
		}
	}
	return c.err
}

// changeInside is change with the lock held, inside the gate. On error
// nothing has changed; errFanOut asks to fan out and try again.
func (d *dict) changeInside(t *segmentTable, seg *segment, kind changeKind, h uint64, key, val, dst []byte) (old []byte, was bool, err error) {
	head := seg.bucket(t, h)
	if kind != changeSet {
		p, found, err := d.locate(head, h, key, 0)
		if err != nil {
			return dst, false, err
		}
		if found && kind != changeRemove {
			dst, err = d.valueAt(dst, p.b, p.i)
		}
		switch {
		case err != nil:
			return dst, false, err
		case kind == changeRemove && !found, kind == changeAdd && found:
			return dst, found, nil
		case kind == changeRemove:
			return dst, true, d.remove(t, seg, h, head, p)
		}
		was = found
	}
	if d.layout.kind == layoutSlotted {
		return dst, was, d.storeSlotted(t, seg, h, key, val)
	}
	return dst, was, d.storeFixed(t, seg, h, key, val)
}

// A place is where an entry lies or may be added: slot i of page no. i is -1
// where the page has no room.
type place struct {
	no       pageNo
	b        *bucket
	i        int
	distance int // groups from home
}

// locate finds key in the bucket that begins with page no; or, with found
// false, a place for an entry of size bytes, or else the last page.
func (d *dict) locate(no pageNo, h uint64, key []byte, size int) (p place, found bool, err error) {
	room := false
	for link := uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return p, false, err
		}
		i, distance, found := d.find(b, h, key)
		if found {
			return place{no, b, i, distance}, true, nil
		}
		if d.layout.kind == layoutSlotted && !b.hasRoom(size) {
			i = -1
		}
		if !room {
			p = place{no, b, i, distance}
			room = i >= 0
		}
		if room && d.layout.kind != layoutSlotted {
			break
		}
		no, link = b.next(), b.link()+1
	}
	return p, false, nil
}

// storeFixed stores an entry of fixed size.
func (d *dict) storeFixed(t *segmentTable, seg *segment, h uint64, key, val []byte) error {
	l := d.layout
	for {
		head, err := d.headOf(t, seg, h)
		if err != nil {
			return err
		}
		p, found, err := d.locate(head, h, key, 0)
		if err != nil {
			return err
		}
		if found {
			off := l.slotOff(p.i) + l.keySize
			d.a.space.touch(p.no, lineMask(off, l.valSize))
			seg.begin()
			copy(p.b[off:off+l.valSize], val)
			seg.end()
			return nil
		}
		if p.i < 0 || l.crowded(p) {
			split, err := d.split(t, seg, h, head)
			if err != nil {
				return err
			}
			if split {
				continue
			}
			if p.i < 0 {
				if p, err = d.extend(seg, p); err != nil {
					return err
				}
				p.i, _, _ = d.find(p.b, h, key)
			}
		}
		d.addFixed(seg, p, h, key, val)
		return nil
	}
}

// crowded says that a bucket should rather split than take an entry there.
func (l *layout) crowded(p place) bool {
	if l.kind == layoutLines {
		return p.distance > maxDistance
	}
	return p.b.count() >= l.limit
}

// addFixed puts an entry in an empty slot.
func (d *dict) addFixed(seg *segment, p place, h uint64, key, val []byte) {
	l := d.layout
	off := l.slotOff(p.i)
	if l.kind == layoutLines && p.i == l.slots {
		d.a.space.touch(p.no, 1)
		seg.begin()
		p.b[bucketFlagsOff] |= flagZero
		copy(p.b[zeroValueOff:zeroValueOff+zeroValueMax], val)
	} else {
		lines := lineMask(off, l.slot)
		if l.kind == layoutControl {
			lines |= 1 | lineMask(l.ctrlOff(p.i), 1)
		}
		d.a.space.touch(p.no, lines)
		seg.begin()
		copy(p.b[off:off+l.keySize], key)
		copy(p.b[off+l.keySize:off+l.slot], val)
		if l.kind == layoutControl {
			p.b[l.ctrlOff(p.i)] = fingerprint(h)
			p.b.setCount(p.b.count() + 1)
		}
	}
	seg.end()
	seg.count(+1)
}

// count adds to the segment's number of entries. The caller holds the lock.
func (seg *segment) count(n int64) { seg.added.Store(seg.added.Load() + n) }

// storeSlotted stores an entry of a slotted bucket.
func (d *dict) storeSlotted(t *segmentTable, seg *segment, h uint64, key, val []byte) (err error) {
	l := d.layout
	f := l.form(len(key), len(val))
	var keyRef, valRef, oldRef ref // oldRef: a far value that this one replaces
	var made [2]ref                // to be freed on error
	defer func() {
		if err != nil {
			err = errors.Join(err, d.recs.free(made[0]), d.recs.free(made[1]))
			if errors.Is(err, errFanOut) {
				err = errFanOut
			}
		}
	}()
	var buf [maxSlotted]byte
	var entry []byte
	for {
		head, err := d.headOf(t, seg, h)
		if err != nil {
			return err
		}
		p, found, err := d.locate(head, h, key, f.size)
		if err != nil {
			return err
		}
		if entry == nil {
			if found {
				old, _ := l.entry(p.b, entryOff(p.b, p.i))
				if old.keyFar {
					keyRef = p.b.refAt(old.key)
				}
				if old.valFar {
					oldRef = p.b.refAt(old.val)
				}
				if old.valFar && f.valFar && len(val) <= maxInPlace {
					return d.replaceFar(seg, p, old.val, oldRef, val)
				}
			} else if f.keyFar {
				if keyRef, err = d.recs.put(key); err != nil {
					return err
				}
				made[0] = keyRef
			}
			if f.valFar {
				if valRef, err = d.recs.put(val); err != nil {
					return err
				}
				made[1] = valRef
			}
			entry = l.appendEntry(buf[:0], f, key, val, keyRef, valRef)
		}
		done, err := d.placeSlotted(t, seg, h, head, p, found, entry)
		if err != nil {
			return err
		}
		if done {
			made = [2]ref{}
			if !found {
				seg.count(+1)
			}
			return d.recs.free(oldRef)
		}
	}
}

// replaceFar changes a far value of slot p to another, where its record lies
// if there is room.
func (d *dict) replaceFar(seg *segment, p place, off int, old ref, val []byte) error {
	seg.begin()
	defer seg.end()
	x, err := d.recs.replace(old, val)
	if err != nil || x == old {
		return err
	}
	d.a.space.touch(p.no, lineMask(off, farSize))
	binary.LittleEndian.PutUint64(p.b[off:], uint64(x))
	return nil
}

// placeSlotted puts an entry in place p, where the key was found or has its
// room. It is not done when the bucket was split instead.
func (d *dict) placeSlotted(t *segmentTable, seg *segment, h uint64, head pageNo, p place, found bool, entry []byte) (done bool, err error) {
	l := d.layout
	if found {
		off := entryOff(p.b, p.i)
		old, _ := l.entry(p.b, off)
		if len(entry) <= old.end-off {
			d.a.space.touch(p.no, lineMask(off, len(entry)))
			seg.begin()
			copy(p.b[off:], entry)
			seg.end()
			return true, nil
		}
		if to := p.b.heap() - len(entry); to >= bucketHeader+p.b.groups()*slotGroup {
			d.a.space.touch(p.no, 1|lineMask(to, len(entry))|lineMask(entryOffOff(p.i), 2))
			seg.begin()
			copy(p.b[to:], entry)
			p.b.setHeap(to)
			binary.LittleEndian.PutUint16(p.b[entryOffOff(p.i):], uint16(to))
			seg.end()
			return true, nil
		}
	} else if p.i >= 0 {
		d.addSlottedAt(seg, p, h, entry)
		return true, nil
	}
	skip := -1
	if found {
		skip = p.i
	}
	groups, squeeze := d.replan(p.b, skip, len(entry))
	if squeeze {
		return true, d.rebuild(seg, p, skip, groups, h, entry)
	}
	if split, err := d.split(t, seg, h, head); err != nil || split {
		return false, err
	}
	if groups != 0 {
		return true, d.rebuild(seg, p, skip, groups, h, entry)
	}
	// The bucket cannot split and the page is full: another page of the chain.
	to, err := d.roomIn(seg, head, len(entry))
	if err != nil {
		return false, err
	}
	seg.begin()
	defer seg.end()
	d.touchSlotted(to, len(entry))
	l.addSlotted(to.b, h, entry)
	if found {
		return true, d.removeSlot(p.no, p.b, p.i)
	}
	return true, nil
}

func (d *dict) addSlottedAt(seg *segment, p place, h uint64, entry []byte) {
	d.touchSlotted(p, len(entry))
	seg.begin()
	d.layout.addSlotted(p.b, h, entry)
	seg.end()
}

// touchSlotted marks what adding an entry of size bytes to a slotted page
// changes: one of its groups, which all lie in front, and the new heap.
func (d *dict) touchSlotted(p place, size int) {
	d.a.space.touch(p.no, lineMask(0, bucketHeader+p.b.groups()*slotGroup)|lineMask(p.b.heap()-size, size))
}

// replan looks what rebuilding a slotted page, without slot skip, would do for
// a new entry of size bytes: the groups it would get, 0 if there would be no
// room; and whether that is better than a split, for it would last.
func (d *dict) replan(b *bucket, skip, size int) (groups int, better bool) {
	l := d.layout
	live, n := l.liveBytes(b), b.count()
	if skip >= 0 {
		off := entryOff(b, skip)
		e, _ := l.entry(b, off)
		live -= e.end - off
		n--
	}
	groups = groupsWanted(n+1, live+size)
	room := pageSize - bucketHeader - groups*slotGroup - live - size
	return groups, groups != 0 && room >= pageSize/8
}

// rebuild writes a slotted page anew, without slot skip and garbage, and adds
// an entry to it.
func (d *dict) rebuild(seg *segment, p place, skip, groups int, h uint64, entry []byte) error {
	l := d.layout
	old := *p.b
	hashes, err := d.hashes(&old)
	if err != nil {
		return err
	}
	d.a.space.touch(p.no, allLines)
	seg.begin()
	defer seg.end()
	l.clear(p.b, groups)
	for i := l.next(&old, 0); i >= 0; i = l.next(&old, i+1) {
		if i != skip {
			l.copyEntry(p.b, hashes[i], &old, i)
		}
	}
	l.addSlotted(p.b, h, entry)
	return nil
}

// hashes returns the hashes of a page's entries, by slot. It fails on entries
// that cannot be read, so that whoever moves entries fails before the first.
func (d *dict) hashes(b *bucket) ([]uint64, error) {
	l := d.layout
	hs := make([]uint64, l.slotsOf(b)+1)
	for i := l.next(b, 0); i >= 0; i = l.next(b, i+1) {
		h, err := d.hashAt(b, i)
		if err == nil && l.kind == layoutSlotted {
			if _, ok := l.entry(b, entryOff(b, i)); !ok {
				err = corrupt("entry passes the end of its bucket")
			}
		}
		if err != nil {
			return nil, err
		}
		hs[i] = h
	}
	return hs, nil
}

// roomIn returns a page of a bucket with room for size bytes, if need be a new
// one.
func (d *dict) roomIn(seg *segment, no pageNo, size int) (p place, err error) {
	for link := uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return p, err
		}
		if p = (place{no: no, b: b}); b.hasRoom(size) {
			return p, nil
		}
		no, link = b.next(), b.link()+1
	}
	return d.extend(seg, p)
}

// extend adds an overflow page behind p, the last of its bucket.
func (d *dict) extend(seg *segment, p place) (place, error) {
	no, err := d.a.alloc.alloc(1)
	if err != nil {
		return p, err
	}
	d.a.space.touch(no, allLines)
	b := (*bucket)(d.a.space.page(no))
	d.layout.format(b, p.b.prefix(), p.b.depth(), max(p.b.groups(), 1))
	b.setLink(p.b.link() + 1)
	d.a.space.touch(p.no, 1)
	seg.begin()
	p.b.setNext(no)
	seg.end()
	d.overflow.Add(1)
	return place{no: no, b: b}, nil
}

// firstGroups is what a slotted bucket begins with.
const firstGroups = 4

// headOf returns the bucket of a hash, and makes it if it is absent.
func (d *dict) headOf(t *segmentTable, seg *segment, h uint64) (pageNo, error) {
	if no := seg.bucket(t, h); no != 0 {
		return no, nil
	}
	depth := seg.depth.Load()
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
	all := seg.depth.Load()
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
	return d.a.space.view(seg.off, 4<<seg.depth.Load())
}

// setRoot writes the root entry of the segment of h.
func (d *dict) setRoot(h uint64, v uint64) {
	i := int(h >> (64 - rootBits))
	root := binary.LittleEndian.Uint32(d.header()[dictRootOff:])
	d.a.space.touch(root, lineMask(8*i, 8))
	binary.LittleEndian.PutUint64(d.a.space.page(root)[8*i:], v)
}

func (d *dict) header() *page { return d.a.space.page(d.hdr) }

// split divides the bucket of h, which begins with page head, by the next bit
// of the hash, if its directory may be that deep. On error nothing has changed.
func (d *dict) split(t *segmentTable, seg *segment, h uint64, head pageNo) (done bool, err error) {
	b, err := d.owned(t, seg, h, head)
	if err != nil {
		return false, err
	}
	depth := b.depth()
	local, all := uint32(depth)-uint32(t.bits), seg.depth.Load()
	d.countBuckets(seg)
	if local == all && !mayDeepen(seg) {
		return false, nil
	}
	if local == all && t.bits == 0 && all == inlineDepth {
		return false, errFanOut
	}

	// All that can fail comes first: the new pages, the new directory.
	chained := b.next() != 0
	low, high, hashes, err := d.halves(head, b)
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
		d.divide(head, high, hashes)
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
	if local+1 == seg.depth.Load() {
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
	if n < int(t.bits) || n > int(t.bits)+int(seg.depth.Load()) || b.prefix() != prefixOf(h, n) {
		return nil, corruptAt(uint64(head)<<pageShift, "bucket of prefix %#x/%d stands for hash %#x", b.prefix(), n, h)
	}
	return b, nil
}

// mayDeepen says whether a directory, whose buckets are counted, has so many
// that it may double.
func mayDeepen(seg *segment) bool {
	n := seg.depth.Load() + 1
	return n <= maxDepth && n <= uint32(bits.Len(uint(seg.buckets))-1+spareDepth)
}

// countBuckets counts the buckets of a segment unless that is done.
func (d *dict) countBuckets(seg *segment) {
	if seg.buckets != 0 {
		return
	}
	seg.deepest = 0
	last := pageNo(0)
	for i := range uint64(1) << seg.depth.Load() {
		no := seg.entry(i)
		if i == 0 || no != last {
			seg.buckets++
		}
		if seg.depth.Load() == 0 || no != seg.entry(i^1) {
			seg.deepest++
		}
		last = no
	}
}

// halves makes what the bucket b, which begins with page head, is to be split
// into: a new page beside it, for divide; or if it is a chain, two new ones.
func (d *dict) halves(head pageNo, b *bucket) (low, high pageNo, hashes []uint64, err error) {
	if b.next() != 0 {
		parts, err := d.spread(head, b.depth(), 1, false)
		if err != nil {
			return 0, 0, nil, err
		}
		return parts[0], parts[1], nil, nil
	}
	if d.layout.kind == layoutSlotted {
		if hashes, err = d.hashes(b); err != nil {
			return 0, 0, nil, err
		}
	}
	high, err = d.a.alloc.alloc(1)
	return head, high, hashes, err
}

// divide moves the entries of a page whose next bit is 1 to a new page. hashes
// are those of the entries where they are costly; else they are made here.
func (d *dict) divide(no, high pageNo, hashes []uint64) {
	l := d.layout
	d.a.space.touch(no, allLines)
	d.a.space.touch(high, allLines)
	b, other := (*bucket)(d.a.space.page(no)), (*bucket)(d.a.space.page(high))
	old, depth, groups := *b, b.depth(), b.groups()
	l.format(other, b.prefix()|1<<(63-depth), depth+1, groups)
	b.setDepth(depth + 1)
	l.clear(b, groups)
	to := [2]*bucket{b, other}
	for i := l.next(&old, 0); i >= 0; i = l.next(&old, i+1) {
		var h uint64
		if hashes != nil {
			h = hashes[i]
		} else {
			h, _ = d.hashAt(&old, i)
		}
		l.copyEntry(to[h>>(63-depth)&1], h, &old, i)
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
	for no, link := head, uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return parts, err
		}
		hashes, err := d.hashes(b)
		if err != nil {
			return parts, err
		}
		for i := l.next(b, 0); i >= 0; i = l.next(b, i+1) {
			part := int(hashes[i] << depth >> (64 - n))
			for tails[part].b == nil || !l.copyEntry(tails[part].b, hashes[i], b, i) {
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
		d.a.alloc.free(no, 1)
		no = next
	}
	return nil
}

// deepen doubles the directory of h's segment: in the header page, or from the
// old place to dir.
func (d *dict) deepen(t *segmentTable, seg *segment, h uint64, dir uint64) {
	depth := seg.depth.Load()
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
		seg.depth.Store(depth + 1)
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

// remove takes the entry in place p out of the bucket that begins with page
// head, and gives back what is not needed any more.
func (d *dict) remove(t *segmentTable, seg *segment, h uint64, head pageNo, p place) error {
	l := d.layout
	var far [2]ref
	if l.kind == layoutSlotted {
		e, _ := l.entry(p.b, entryOff(p.b, p.i))
		if e.keyFar {
			far[0] = p.b.refAt(e.key)
		}
		if e.valFar {
			far[1] = p.b.refAt(e.val)
		}
	}
	b, err := d.page(head, 0)
	if err != nil {
		return err
	}
	seg.begin()
	if b.next() == 0 {
		err = d.removeSlot(p.no, p.b, p.i)
	} else {
		err = d.removeFromChain(head, p)
	}
	seg.end()
	if err != nil {
		return err
	}
	seg.count(-1)
	if err := errors.Join(d.recs.free(far[0]), d.recs.free(far[1])); err != nil {
		return err
	}
	if b.next() == 0 && l.worthMerging(b, p.i) {
		return d.merge(t, seg, h, head)
	}
	return nil
}

// removeFromChain takes an entry out of a chain. In layouts of fixed size the
// pages but the last stay full: an entry of the last takes the place.
func (d *dict) removeFromChain(head pageNo, p place) error {
	l := d.layout
	last, before, err := d.chainEnd(head)
	if err != nil {
		return err
	}
	emptied := p
	if l.kind == layoutSlotted || p.no == last.no || l.kind == layoutLines && p.i == l.slots {
		if err := d.removeSlot(p.no, p.b, p.i); err != nil {
			return err
		}
	} else {
		emptied = last
		j := l.next(last.b, 0)
		if j < 0 {
			return corruptAt(uint64(last.no)<<pageShift, "overflow page without entries")
		}
		h, err := d.hashAt(last.b, j)
		if err != nil {
			return err
		}
		off, from := l.slotOff(p.i), l.slotOff(j)
		d.a.space.touch(p.no, lineMask(off, l.slot))
		copy(p.b[off:off+l.slot], last.b[from:from+l.slot])
		if l.kind == layoutControl {
			d.a.space.touch(p.no, lineMask(l.ctrlOff(p.i), 1))
			p.b[l.ctrlOff(p.i)] = fingerprint(h)
		}
		if err := d.removeSlot(last.no, last.b, j); err != nil {
			return err
		}
	}
	if emptied.no == head || l.next(emptied.b, 0) >= 0 {
		return nil
	}
	if emptied.no != last.no {
		if before, err = d.pageBefore(head, emptied.no); err != nil {
			return err
		}
	}
	d.a.space.touch(before.no, 1)
	before.b.setNext(emptied.b.next())
	d.a.alloc.free(emptied.no, 1)
	d.overflow.Add(-1)
	return nil
}

// chainEnd returns the last page of a chain and the one before it.
func (d *dict) chainEnd(head pageNo) (last, before place, err error) {
	for no, link := head, uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return last, before, err
		}
		last, before = place{no: no, b: b}, last
		no, link = b.next(), b.link()+1
	}
	return last, before, nil
}

// pageBefore returns the page of a chain that is followed by the given one.
func (d *dict) pageBefore(head, next pageNo) (place, error) {
	for no, link := head, uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return place{}, err
		}
		if b.next() == next {
			return place{no: no, b: b}, nil
		}
		no, link = b.next(), b.link()+1
	}
	return place{}, corruptAt(uint64(next)<<pageShift, "overflow page not in its chain")
}

// worthMerging says whether to look for a merge after slot i was emptied. The
// layouts that count entries look now and then below the threshold. Lines
// look when the slot's line and its neighbours are empty: rare above the
// threshold, frequent below, certain for the last entry.
func (l *layout) worthMerging(b *bucket, i int) bool {
	switch l.kind {
	case layoutLines:
		if i != l.slots {
			line := i/l.perGroup + 1
			before, after := (line+lineCount-2)%lineCount+1, line%lineCount+1
			if l.lineKey(b, line*lineSize)|l.lineKey(b, before*lineSize)|l.lineKey(b, after*lineSize) != 0 {
				return false
			}
		}
		n := l.slots / mergeFrom
		return l.countAtLeast(b, n) < n
	case layoutControl:
		n := b.count()
		return n == 0 || n&3 == 0 && n < l.slots/mergeFrom
	default:
		n := b.count()
		return n == 0 || n&3 == 0 && l.load(b) < pageSize/mergeFrom
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
	for seg.deepest == 0 && seg.depth.Load() > 0 {
		if halved, err := d.halve(t, seg, h); err != nil || !halved {
			return err
		}
	}
	if b.depth() == int(t.bits) && d.layout.next(b, 0) < 0 {
		seg.begin()
		d.setEntries(t, seg, h, 0, 0)
		seg.end()
		seg.buckets, seg.deepest = 0, 0
		d.a.alloc.free(head, 1)
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
	no := seg.bucket(t, buddyHash)
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
	old := [2]bucket{*b, *c}
	var hashes [2][]uint64
	for i := range old {
		if hashes[i], err = d.hashes(&old[i]); err != nil {
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
	for k := range old {
		for i := l.next(&old[k], 0); i >= 0; i = l.next(&old[k], i+1) {
			l.copyEntry(b, hashes[k][i], &old[k], i)
		}
	}
	d.setEntries(t, seg, h, local-1, head)
	seg.end()
	seg.buckets--
	if local == seg.depth.Load() {
		seg.deepest -= 2
	}
	d.a.alloc.free(no, 1)
	return true, nil
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
	depth := seg.depth.Load() - 1
	n := uint64(1) << depth
	old := d.dirBytes(seg)
	if t.bits == 0 {
		seg.begin()
		d.setHeaderDepth(depth)
		d.a.space.touch(d.hdr, lineMask(dictDirOff, int(4*n)))
		for i := range n {
			copy(old[4*i:4*i+4], old[8*i:])
		}
		seg.depth.Store(depth)
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
	d.lock()
	defer d.unlock()
	d.a.gate.enter(0)
	defer d.a.gate.exit(0)
	if d.state.Load() != stateOpen || d.hdr == 0 {
		return nil // the change that needs it will see
	}
	return d.fanOutInside()
}

// fanOutInside is fanOut for who holds the lock and is inside the gate. On
// error nothing has changed.
func (d *dict) fanOutInside() (err error) {
	t := d.table.Load()
	seg := &t.segs[0]
	if t.bits != 0 || seg.depth.Load() != inlineDepth {
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
			d.a.alloc.free(root, 1)
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

// count returns the number of entries.
func (d *dict) count() int64 {
	t := d.table.Load()
	n := t.base
	for i := range t.segs {
		n += t.segs[i].added.Load()
	}
	return n
}

// length returns the number of entries, 0 once the dict is closed or dropped.
func (d *dict) length() int64 {
	if d.a.check(&d.handle) != nil {
		return 0
	}
	return d.count()
}

// size returns the bytes of the file that header, directories and buckets take.
func (d *dict) size() int64 {
	if d.hdr == 0 {
		return 0
	}
	t := d.table.Load()
	pages := 1 + d.overflow.Load()
	if t.bits != 0 {
		pages++
	}
	n := int64(0)
	for i := range t.segs {
		seg := &t.segs[i]
		seg.mu.Lock()
		if seg.entry(0) != 0 {
			d.countBuckets(seg)
			pages += int64(seg.buckets)
		}
		if t.bits != 0 && seg.off != 0 {
			n += 4 << seg.depth.Load()
		}
		seg.mu.Unlock()
	}
	return n + pages<<pageShift
}

// newDictFromFile returns the core of a dict whose types only the file knows,
// for load.
func newDictFromFile(h *handle) *dict {
	d := newDict(h.a, -1, -1)
	d.name, d.kind, d.key, d.value = h.name, h.kind, h.key, h.value
	d.layout = nil
	return d
}

func (d *dict) base() *handle { return &d.handle }

// lock takes the writer locks of all segments, whatever is busy.
func (d *dict) lock() {
	for {
		t := d.table.Load()
		t.lock()
		if d.table.Load() == t {
			d.held = t
			return
		}
		t.unlock()
	}
}

func (d *dict) unlock() {
	t := d.held
	d.held = nil
	t.unlock()
}

func (t *segmentTable) lock() {
	for i := range t.segs {
		t.segs[i].mu.Lock()
	}
}

func (t *segmentTable) unlock() {
	for i := range t.segs {
		t.segs[i].mu.Unlock()
	}
}

// lockIdle is lock at a moment when nothing is busy.
func (d *dict) lockIdle() {
	for {
		d.lock()
		t := d.held
		wait := -1
		for i := range t.segs {
			if len(t.segs[i].busy) != 0 {
				wait = i
			}
		}
		if wait < 0 {
			return
		}
		d.unlock()
		t.segs[wait].lockRange(0, ^uint64(0))
		t.segs[wait].unlock()
	}
}

// turnAway makes readers fail until readmit. The caller holds all locks.
func (d *dict) turnAway() {
	d.away = true
	t := d.table.Load()
	for i := range t.segs {
		if seg := &t.segs[i]; seg.seq.Load()&1 == 0 {
			seg.seq.Add(1)
		}
	}
}

func (d *dict) readmit() {
	d.away = false
	t := d.table.Load()
	for i := range t.segs {
		if seg := &t.segs[i]; seg.seq.Load()&1 != 0 {
			seg.seq.Add(1)
		}
	}
}

// flush writes the counters to the header page. The gate is closed.
func (d *dict) flush() {
	if d.hdr == 0 || d.state.Load() != stateOpen {
		return
	}
	le := binary.LittleEndian
	hdr := d.header()
	n, overflow := uint64(d.count()), uint64(d.overflow.Load())
	if le.Uint64(hdr[dictLenOff:]) == n && le.Uint64(hdr[dictOverflowOff:]) == overflow {
		return
	}
	d.a.space.touch(d.hdr, 1)
	le.PutUint64(hdr[dictLenOff:], n)
	le.PutUint64(hdr[dictOverflowOff:], overflow)
}

// create makes the header page of an empty dict.
func (d *dict) create() (pageNo, error) {
	no, err := d.a.alloc.alloc(1)
	if err != nil {
		return 0, err
	}
	d.a.space.touch(no, allLines)
	hdr := d.a.space.page(no)
	copy(hdr[dictKindOff:], dictKind)
	hdr[dictLayoutOff] = uint8(d.layout.kind)
	binary.LittleEndian.PutUint32(hdr[dictKeySizeOff:], uint32(d.layout.keySize))
	binary.LittleEndian.PutUint32(hdr[dictValSizeOff:], uint32(d.layout.valSize))
	return no, d.load(no)
}

// load takes up the dict that header page h describes, or with h 0 becomes an
// empty one that is not in the file.
func (d *dict) load(h pageNo) error {
	if h == 0 {
		d.hdr = 0
		d.overflow.Store(0)
		d.setTable(d.emptyTable(0))
		return nil
	}
	le := binary.LittleEndian
	hdr := d.a.space.peek(h)
	if hdr == nil || string(hdr[dictKindOff:dictLayoutOff]) != dictKind {
		return corruptAt(uint64(h)<<pageShift, "page %d is not the header of a dict", h)
	}
	l := layoutFor(int(int32(le.Uint32(hdr[dictKeySizeOff:]))), int(int32(le.Uint32(hdr[dictValSizeOff:]))))
	if d.layout == nil && l.keySize >= -1 && l.valSize >= -1 {
		d.layout = l
	}
	if d.layout == nil || *l != *d.layout || hdr[dictLayoutOff] != uint8(l.kind) {
		return corruptAt(uint64(h)<<pageShift, "dict with keys of %d and values of %d bytes in layout %d", l.keySize, l.valSize, hdr[dictLayoutOff])
	}
	t, err := d.loadTable(h, hdr)
	if err != nil {
		return err
	}
	n := le.Uint64(hdr[dictLenOff:])
	if n > maxEntries || le.Uint64(hdr[dictOverflowOff:]) > maxPages {
		return corruptAt(uint64(h)<<pageShift, "dict of %d entries", n)
	}
	t.base = int64(n)
	d.hdr = h
	d.overflow.Store(int64(le.Uint64(hdr[dictOverflowOff:])))
	d.recs.init(d.a, uint64(h)<<pageShift+dictRecordsOff)
	d.setTable(t)
	return nil
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

// free gives all space back, the header page included.
func (d *dict) free() error {
	if err := d.reset(); err != nil {
		return err
	}
	d.a.alloc.free(d.hdr, 1)
	return nil
}

// reset gives back all space but the header page, and leaves the dict empty.
// The caller holds all locks and is inside the gate.
func (d *dict) reset() error {
	t := d.table.Load()
	// Pages need not be looked at unless they lead to more of what is to be freed.
	follow := d.overflow.Load() != 0 || d.layout.kind == layoutSlotted && d.recs.anyLarge()
	for i := range t.segs {
		seg := &t.segs[i]
		if err := d.freeBuckets(seg, follow); err != nil {
			return err
		}
		if t.bits != 0 && seg.off != 0 {
			if err := d.recs.release(seg.off, 4<<seg.depth.Load()); err != nil {
				return err
			}
		}
	}
	if err := d.recs.freeAll(); err != nil {
		return err
	}
	le := binary.LittleEndian
	d.a.space.touch(d.hdr, 1|lineMask(dictDirOff, pageSize-dictDirOff))
	hdr := d.header()
	if t.bits != 0 {
		d.a.alloc.free(le.Uint32(hdr[dictRootOff:]), 1)
	}
	for i := range t.segs {
		if seg := &t.segs[i]; seg.seq.Load()&1 == 0 {
			seg.begin() // setTable leaves it so
		}
	}
	hdr[dictRootBitsOff], hdr[dictDepthOff] = 0, 0
	le.PutUint32(hdr[dictRootOff:], 0)
	le.PutUint64(hdr[dictLenOff:], 0)
	le.PutUint64(hdr[dictOverflowOff:], 0)
	clear(hdr[dictDirOff:])
	return d.load(d.hdr)
}

// freeBuckets gives back the buckets of a segment, with their chains and large
// records only if follow says that there may be any.
func (d *dict) freeBuckets(seg *segment, follow bool) error {
	last := pageNo(0)
	for i := range uint64(1) << seg.depth.Load() {
		no := seg.entry(i)
		if no == 0 || no == last {
			continue
		}
		last = no
		if d.a.space.peek(no) == nil {
			return corruptAt(uint64(no)<<pageShift, "bucket outside the file")
		}
		if !follow {
			d.a.alloc.free(no, 1)
			continue
		}
		if err := d.freeLarge(no); err != nil {
			return err
		}
		if err := d.freeChain(no); err != nil {
			return err
		}
	}
	return nil
}

// freeLarge gives back the records of a bucket that freeAll would leave.
func (d *dict) freeLarge(no pageNo) error {
	l := d.layout
	if l.kind != layoutSlotted {
		return nil
	}
	for link := uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return err
		}
		for i := l.next(b, 0); i >= 0; i = l.next(b, i+1) {
			e, ok := l.entry(b, entryOff(b, i))
			if !ok {
				return corruptAt(uint64(no)<<pageShift, "entry passes the end of its bucket")
			}
			if e.keyFar {
				err = d.recs.freeLarge(b.refAt(e.key))
			}
			if e.valFar {
				err = errors.Join(err, d.recs.freeLarge(b.refAt(e.val)))
			}
			if err != nil {
				return err
			}
		}
		no, link = b.next(), b.link()+1
	}
	return nil
}

// clearAll removes all entries.
func (d *dict) clearAll() error {
	return d.alone(d.lockIdle, func() error {
		if d.hdr == 0 || d.bare() {
			return nil
		}
		return d.reset()
	})
}

// bare says whether the dict takes no space but its header page.
func (d *dict) bare() bool {
	t := d.table.Load()
	return t.bits == 0 && t.segs[0].depth.Load() == 0 && t.segs[0].entry(0) == 0
}

// tidy gives all space back if the dict is empty. It need not wait for
// callbacks: it changes nothing that they could have decided about.
func (d *dict) tidy() error {
	if d.count() != 0 {
		return nil
	}
	return d.alone(d.lock, func() error {
		if d.hdr == 0 || d.count() != 0 || d.bare() {
			return nil
		}
		return d.reset()
	})
}

// alone runs fn with all locks, which lock takes, inside the gate.
func (d *dict) alone(lock func(), fn func() error) error {
	if err := d.a.admit(createCost); err != nil {
		return err
	}
	lock()
	defer d.unlock()
	d.a.gate.enter(0)
	defer d.a.gate.exit(0)
	if err := d.a.check(&d.handle); err != nil {
		return err
	}
	return fn()
}

// hold keeps the hash h busy for a callback.
func (d *dict) hold(h uint64) hold {
	_, seg := d.lockSegment(h, false)
	defer seg.unlock()
	seg.setBusy(h, h)
	return hold{h, h, d.epoch.Load()}
}

// holdBucket keeps the hashes from h on, to the end of h's bucket, busy.
func (d *dict) holdBucket(h uint64) (hold, error) {
	for {
		t, seg := d.lockSegment(h, true)
		hi := h | ^uint64(0)>>t.bits
		if no := seg.bucket(t, h); no != 0 {
			b, err := d.owned(t, seg, h, no)
			if err != nil {
				seg.unlock()
				return hold{}, err
			}
			hi = h | ^uint64(0)>>b.depth()
		}
		if seg.isBusy(h, hi) {
			seg.idle.Wait()
			seg.unlock()
			continue
		}
		seg.setBusy(h, hi)
		held := hold{h, hi, d.epoch.Load()}
		seg.unlock()
		return held, nil
	}
}

// release ends a hold.
func (d *dict) release(by hold) {
	for {
		t := d.table.Load()
		t.eachSegment(by.lo, by.hi, func(seg *segment, lo, hi uint64) {
			seg.mu.Lock()
			if seg.isBusy(lo, hi) {
				seg.clearBusy(lo, hi)
			}
			seg.mu.Unlock()
		})
		// A table that took the place of t meanwhile has the range from it.
		if d.table.Load() == t {
			return
		}
	}
}

// overtaken returns why a callback's decision counts no more, if so.
func (d *dict) overtaken(by hold) error {
	if d.epoch.Load() == by.epoch {
		return nil
	}
	if err := d.a.check(&d.handle); err != nil {
		return err
	}
	return ErrRolledBack
}

// A cursor yields copies of the entries with hashes in [pos, last], bucket by
// bucket in the order of the hash. It holds no lock between two of them, and
// yields each entry that is there throughout exactly once: a bucket is copied at
// one moment, and after it come the hashes behind its last. Splits and
// merges do not matter to that.
type cursor struct {
	d         *dict
	pos, last uint64
	done      bool

	// The copy: pages of one bucket, and the keys that lay in records. from
	// and to bound the hashes wanted of it.
	from, to uint64
	whole    bool // all are
	pages    []bucket
	far      [][]byte
	page     int
	slot     int

	key    []byte
	val    []byte // nil if valFar
	valFar bool   // the value lies in a record: look it up
	err    error  // why next returned false, nil at the end
}

// next moves to the next entry.
func (c *cursor) next() bool {
	for {
		for c.page < len(c.pages) {
			if i := c.d.layout.next(&c.pages[c.page], c.slot); i >= 0 {
				c.slot = i + 1
				if c.take(&c.pages[c.page], i) {
					return true
				}
				if c.err != nil {
					return false
				}
				continue
			}
			c.page, c.slot = c.page+1, 0
		}
		if !c.fill() {
			return false
		}
	}
}

// take sets key and value from slot i, and says whether it is wanted.
func (c *cursor) take(b *bucket, i int) bool {
	l := c.d.layout
	if l.kind != layoutSlotted {
		off := l.slotOff(i)
		c.key, c.val = b[max(0, off):off+l.keySize:off+l.keySize], b[off+l.keySize:off+l.slot:off+l.slot]
		if l.kind == layoutLines && i == l.slots {
			c.key = zeroKey[:l.keySize]
		}
	} else {
		e, _ := l.entry(b, entryOff(b, i)) // fill has checked it
		c.key, c.val, c.valFar = b[e.key:e.key+e.keyLen:e.key+e.keyLen], b[e.val:e.end:e.end], e.valFar
		if e.keyFar {
			c.key = c.far[0]
			c.far = c.far[1:]
		}
		if e.valFar {
			c.val = nil
		}
	}
	if c.whole {
		return true
	}
	h := c.d.hash(c.key)
	return h >= c.from && h <= c.to
}

var zeroKey [8]byte

// fill copies the bucket of pos and moves pos behind it.
func (c *cursor) fill() bool {
	d := c.d
	if c.done || c.err != nil {
		return false
	}
	var lo, hi uint64
	c.err = d.read(c.pos, func(t *segmentTable, seg *segment, s uint64) (err error) {
		c.pages, c.far = c.pages[:0], c.far[:0:0]
		lo, hi, err = c.copyBucket(t, seg, s)
		return err
	})
	if c.err != nil {
		return false
	}
	c.from, c.to = c.pos, min(hi, c.last)
	c.whole = c.from == lo && c.to == hi
	c.page, c.slot = 0, 0
	c.done = hi >= c.last
	c.pos = hi + 1
	return true
}

// copyBucket copies the bucket of pos and returns the hashes that belong there.
func (c *cursor) copyBucket(t *segmentTable, seg *segment, s uint64) (lo, hi uint64, err error) {
	d := c.d
	no, ok := seg.bucketAt(t, c.pos, s)
	if !ok {
		return 0, 0, errRetry
	}
	depth := int(t.bits)
	for link := uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return 0, 0, err
		}
		c.pages = append(c.pages, *b)
		b = &c.pages[len(c.pages)-1]
		if link == 0 {
			depth = b.depth()
			if depth < int(t.bits) || depth > int(t.bits)+maxDepth || b.prefix() != prefixOf(c.pos, depth) {
				return 0, 0, corruptAt(uint64(no)<<pageShift, "bucket of prefix %#x/%d stands for hash %#x", b.prefix(), depth, c.pos)
			}
		}
		if err := c.copyFarKeys(b); err != nil {
			return 0, 0, err
		}
		no, link = b.next(), b.link()+1
	}
	lo = prefixOf(c.pos, depth)
	return lo, lo | ^uint64(0)>>depth, nil
}

// copyFarKeys checks the entries of a copied slotted page, and copies the keys
// that lie elsewhere.
func (c *cursor) copyFarKeys(b *bucket) error {
	l := c.d.layout
	if l.kind != layoutSlotted {
		return nil
	}
	for i := l.next(b, 0); i >= 0; i = l.next(b, i+1) {
		e, ok := l.entry(b, entryOff(b, i))
		if !ok {
			return corrupt("entry passes the end of its bucket")
		}
		if e.keyFar {
			key, err := c.d.farKeyAt(b.refAt(e.key))
			if err != nil {
				return err
			}
			c.far = append(c.far, bytes.Clone(key))
		}
	}
	return nil
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
		d.leave(seg, h)
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

// writable returns why the dict cannot be changed, if so.
func (d *dict) writable() error {
	if err := d.a.check(&d.handle); err != nil {
		return err
	}
	return d.a.writable()
}

// hash returns the hash of a key.
func (d *dict) hash(key []byte) uint64 {
	switch len(key) {
	case 8:
		return d.hashWord(binary.LittleEndian.Uint64(key))
	case 4:
		if d.layout.keySize == 4 {
			return d.hashWord(uint64(binary.LittleEndian.Uint32(key)))
		}
	}
	return d.hasher.bytes(key) & d.hashMask
}

// hashWord is hash of a key of lines.
func (d *dict) hashWord(key uint64) uint64 { return d.hasher.word(key) & d.hashMask }

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
	depth := seg.depth.Load()
	if v.t.bits != 0 && seg.off != 0 {
		if err := v.recs.space(seg.off, 4<<depth); err != nil {
			return err
		}
	}
	first := i << 1 << (63 - v.t.bits)
	step := ^uint64(0)>>v.t.bits>>depth + 1 // 0: one bucket for all hashes
	buckets, deepest := 0, 0
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
