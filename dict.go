package emd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"
)

// A dict is the core of an [EMDict], of keys and values that are bytes
// already.
type dict struct {
	handle
	layout   *layout
	space    *space // of the arena
	hasher   hasher
	hashMask uint64 // of the hash bits in use: all, but in tests that want collisions
	recs     records
	table    atomic.Pointer[segmentTable]
	cost     atomic.Int64  // bytes that a change may add to private memory, but for records
	overflow atomic.Int64  // overflow pages
	warm     atomic.Bool   // the last batch of lookups found all in memory
	away     bool          // between turnAway and readmit, guarded by all locks
	held     *segmentTable // what lock has locked, guarded by its locks
}

// newDict returns the core of a dict with keys and values of these sizes, -1
// for those that vary. It is empty until create or load.
func newDict(a *Arena, keySize, valSize int) *dict {
	d := &dict{layout: layoutFor(keySize, valSize), space: a.space, hasher: newHasher(a.seed), hashMask: ^uint64(0)}
	d.a = a
	d.setTable(d.emptyTable(0))
	return d
}

// newBytesDict returns the core of a dict of bytes that the arena keeps for
// itself, and whose methods it calls with the gate open: see getBytes.
func newBytesDict(a *Arena, name string) *dict {
	d := newDict(a, -1, -1)
	d.name, d.kind = name, "catalog"
	return d
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

// busyStripe returns a stripe in which something is busy, nil if there is
// none. The caller holds all locks.
func (d *dict) busyStripe() *stripe {
	for i := range d.held.stripes {
		if l := &d.held.stripes[i]; l.isBusy(0, ^uint64(0)) {
			return l
		}
	}
	return nil
}

// turnAway makes readers fail until readmit. The caller holds all locks.
func (d *dict) turnAway() {
	d.away = true
	d.table.Load().turnAway()
}

func (d *dict) readmit() {
	d.away = false
	d.table.Load().readmit()
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
	d.writeLabel(hdr)
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
	end, _ := d.a.alloc.usage()    // pages
	perPage := uint64(l.slots) + 1 // lines have one entry more
	if l.kind == layoutSlotted {
		perPage = pageSize // an entry takes a byte at least
	}
	if n > min(maxEntries, end*perPage) || le.Uint64(hdr[dictOverflowOff:]) > end {
		return corruptAt(uint64(h)<<pageShift, "dict of %d entries", n)
	}
	t.base = int64(n)
	d.hdr = h
	d.overflow.Store(int64(le.Uint64(hdr[dictOverflowOff:])))
	d.recs.init(d.a, uint64(h)<<pageShift+dictRecordsOff)
	d.setTable(t)
	return nil
}

func (d *dict) header() *page { return d.a.space.page(d.hdr) }

// free gives all space back, the header page included.
func (d *dict) free() error {
	if err := d.reset(); err != nil {
		return err
	}
	return d.a.alloc.free(d.hdr, 1)
}

// reset gives back all space but the header page, and leaves the dict empty.
// The caller holds all locks and has the gate open.
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
			if err := d.recs.release(seg.off, 4<<seg.depth()); err != nil {
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
		if err := d.a.alloc.free(le.Uint32(hdr[dictRootOff:]), 1); err != nil {
			return err
		}
	}
	t.turnAway() // setTable leaves it so
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
	for i := range uint64(1) << seg.depth() {
		no := seg.entry(i)
		if no == 0 || no == last {
			continue
		}
		last = no
		if d.a.space.peek(no) == nil {
			return corruptAt(uint64(no)<<pageShift, "bucket outside the file")
		}
		if !follow {
			if err := d.a.alloc.free(no, 1); err != nil {
				return err
			}
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
	if d.layout.kind != layoutSlotted {
		return nil
	}
	for link := uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err == nil {
			err = d.freeLargeOf(no, b)
		}
		if err != nil {
			return err
		}
		no, link = b.next(), b.link()+1
	}
	return nil
}

// freeLargeOf is freeLarge for one slotted page, b, of number no.
func (d *dict) freeLargeOf(no pageNo, b *bucket) error {
	l := d.layout
	for i := l.next(b, 0); i >= 0; i = l.next(b, i+1) {
		e, ok := l.entry(b, entryOff(b, i))
		if !ok {
			return corruptAt(uint64(no)<<pageShift, "entry passes the end of its bucket")
		}
		var err error
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
	return nil
}

// bare says whether the dict takes no space but its header page.
func (d *dict) bare() bool {
	t := d.table.Load()
	return t.bits == 0 && t.segs[0].depth() == 0 && t.segs[0].entry(0) == 0
}

// count returns the number of entries.
func (d *dict) count() int64 {
	t := d.table.Load()
	n := t.base
	for i := range t.stripes {
		n += t.stripes[i].added.Load()
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
			n += 4 << seg.depth()
		}
		seg.mu.Unlock()
	}
	return n + pages<<pageShift
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

// get appends the value of key to dst.
func (d *dict) get(dst []byte, h uint64, key []byte) (val []byte, ok bool, err error) {
	if lent, seg, s, is := d.peek(h, key); is != peekedNothing {
		val = append(dst, lent...)
		if seg.undisturbed(s) {
			return val, is == peekedPresent, nil
		}
	}
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
	if _, seg, s, is := d.peek(h, key); is != peekedNothing && seg.undisturbed(s) {
		return is == peekedPresent, nil
	}
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

// errRetry makes a reader look again: what it read has changed meanwhile.
var errRetry = errors.New("changed meanwhile")

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
		s := seg.load()
		err := errRetry
		if s&1 == 0 {
			err = fn(t, seg, s)
			if !seg.undisturbed(s) {
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
	no, ok := seg.bucketAt(h, s)
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
	if b == nil || no < slotPages {
		return nil, corruptAt(uint64(no)<<pageShift, "bucket outside the file")
	}
	if link != 0 && b.link() < link { // without link, the header need not be in the cache
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

// errFanOut says that a dict must fan out before it can split a bucket.
var errFanOut = errors.New("directory is full")

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
		if err != errFanOut {
			return old, was, d.leave(seg, err, by)
		}
		seg.mu.Unlock()
		if err := d.fanOut(); err != nil {
			return dst, false, err
		}
	}
}

// leave lets go of a segment after a change that had the given result. If that
// took the last entry, all space goes back.
func (d *dict) leave(seg *segment, err error, by *hold) error {
	emptied := seg.emptied
	seg.emptied = false
	if by != nil && by.lo == by.hi {
		seg.clearBusyKey(by.lo)
		by.released = true
	}
	seg.mu.Unlock()
	if emptied && err == nil {
		return d.tidy()
	}
	return err
}

// enter admits a change of the hash h and takes the lock of its segment, with
// the dict active: so the gate stays open.
func (d *dict) enter(h uint64, size int, by *hold) (t *segmentTable, seg *segment, err error) {
	cost := d.cost.Load()
	if size > maxSlotted/4 {
		cost += d.a.costOf(size)
	}
	for {
		if err := d.a.admit(cost); err != nil {
			return nil, nil, err
		}
		cost = 0 // more than the limit would be a commit each time, after which no dict is active
		t, seg = d.lockSegment(h, by != nil)
		active := d.active.Load()
		if active && d.state.Load() == stateOpen && (by == nil || by.epoch == d.epoch.Load()) && d.hdr != 0 {
			return t, seg, nil
		}
		seg.mu.Unlock()
		if err := d.a.check(&d.handle); err != nil {
			return nil, nil, err
		}
		if by != nil && by.epoch != d.epoch.Load() {
			return nil, nil, ErrRolledBack
		}
		if err := d.a.ensure(d); err != nil {
			return nil, nil, err
		}
		if !active {
			d.a.gate.include(d)
		}
	}
}

// lockSegment takes the lock of a hash's segment; unless the caller is the one
// who works on it, once the hash is not busy.
func (d *dict) lockSegment(h uint64, mine bool) (*segmentTable, *segment) {
	for {
		t := d.table.Load()
		seg := t.segment(h)
		if optimistic { // it comes while the lock is taken
			d.prefetchPage(seg, h)
		}
		if mine {
			seg.mu.Lock()
		} else {
			seg.lockKey(h)
		}
		if d.table.Load() == t {
			return t, seg
		}
		seg.mu.Unlock()
	}
}

// prefetchPage asks for the lines that a search for h begins with, and for what
// says whether they are marked.
func (d *dict) prefetchPage(seg *segment, h uint64) {
	no, same := seg.bucketAt(h, seg.load())
	if !same || no < slotPages {
		return
	}
	b := d.space.near(no)
	if b == nil {
		return
	}
	if d.layout.kind == layoutLines {
		prefetch(unsafe.Pointer(&b[homeOff(h)]))
	} else {
		for line := range 3 { // those with the control bytes, nearly always
			prefetch(unsafe.Pointer(&b[line*lineSize]))
		}
	}
	prefetch(unsafe.Pointer(d.space.dirtyLines(no)))
}

// putBytes stores a value. The caller has entered the gate, and there is no
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
		seg.mu.Unlock()
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
	defer seg.mu.Unlock()
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

// changeInside is change with the lock held and the gate open. On error
// nothing has changed; errFanOut asks to fan out and try again.
func (d *dict) changeInside(t *segmentTable, seg *segment, kind changeKind, h uint64, key, val, dst []byte) (old []byte, was bool, err error) {
	head := seg.bucket(h)
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
			seg.beginShort()
			copy(p.b[off:off+l.valSize], val)
			seg.endShort()
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
		seg.beginShort()
		p.b[bucketFlagsOff] |= flagZero
		copy(p.b[zeroValueOff:zeroValueOff+zeroValueMax], val)
	} else {
		lines := lineMask(off, l.slot)
		if l.kind == layoutControl {
			lines |= 1 | lineMask(l.ctrlOff(p.i), 1)
		}
		d.a.space.touch(p.no, lines)
		seg.beginShort()
		copy(p.b[off:off+l.keySize], key)
		copy(p.b[off+l.keySize:off+l.slot], val)
		if l.kind == layoutControl {
			p.b[l.ctrlOff(p.i)] = fingerprint(h)
			p.b.setCount(p.b.count() + 1)
		}
	}
	seg.endShort()
	seg.count(+1)
}

// storeSlotted stores an entry of a slotted bucket.
func (d *dict) storeSlotted(t *segmentTable, seg *segment, h uint64, key, val []byte) error {
	f := d.layout.form(len(key), len(val))
	head, err := d.headOf(t, seg, h)
	if err != nil {
		return err
	}
	p, found, err := d.locate(head, h, key, f.size)
	if err != nil {
		return err
	}
	if found {
		// A value of the same size takes the place of the old one.
		if _, at, end, far := d.layout.parts(p.b, entryOff(p.b, p.i)); far == 0 && end <= pageSize && end-at == len(val) {
			d.space.touch(p.no, lineMask(at, len(val)))
			seg.beginShort()
			copy(p.b[at:end], val)
			seg.endShort()
			return nil
		}
	}
	return d.storeEntry(t, seg, h, key, val, f, head, p, found)
}

// storeEntry is storeSlotted for an entry of form f, after locate has given p
// and found for the bucket that begins with page head.
func (d *dict) storeEntry(t *segmentTable, seg *segment, h uint64, key, val []byte, f slottedForm, head pageNo, p place, found bool) (err error) {
	l := d.layout
	var keyRef, valRef, oldRef ref // oldRef: a far value that this one replaces
	var made [2]ref                // to be freed on error
	defer func() {
		if oldRef != 0 {
			seg.replaced.Add(1)
		}
		if err != nil {
			err = errors.Join(err, d.recs.free(made[0]), d.recs.free(made[1]))
			if errors.Is(err, errFanOut) {
				err = errFanOut
			}
		}
	}()
	if found {
		old, _ := l.entry(p.b, entryOff(p.b, p.i))
		if old.keyFar {
			keyRef = p.b.refAt(old.key)
		}
		if old.valFar {
			oldRef = p.b.refAt(old.val)
			seg.replaced.Add(1)
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
	var buf [maxSlotted]byte
	entry := l.appendEntry(buf[:0], f, key, val, keyRef, valRef)
	for {
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
		if head, err = d.headOf(t, seg, h); err != nil {
			return err
		}
		if p, found, err = d.locate(head, h, key, f.size); err != nil {
			return err
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
			seg.beginShort()
			copy(p.b[off:], entry)
			seg.endShort()
			return true, nil
		}
		if p.b.hasHeap(len(entry)) {
			to := p.b.heap() - len(entry)
			d.a.space.touch(p.no, 1|lineMask(to, len(entry))|lineMask(entryOffOff(p.i), 2))
			seg.beginShort()
			copy(p.b[to:], entry)
			p.b.setHeap(to)
			binary.LittleEndian.PutUint16(p.b[entryOffOff(p.i):], uint16(to))
			seg.endShort()
			return true, nil
		}
	} else if p.i >= 0 {
		return true, d.addSlottedAt(seg, p, h, entry)
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
	if !l.addSlotted(to.b, h, entry) {
		return false, d.noRoom(to.no)
	}
	if found {
		return true, d.removeSlot(p.no, p.b, p.i)
	}
	return true, nil
}

func (d *dict) addSlottedAt(seg *segment, p place, h uint64, entry []byte) error {
	d.touchSlotted(p, len(entry))
	seg.beginShort()
	defer seg.endShort()
	if !d.layout.addSlotted(p.b, h, entry) {
		return d.noRoom(p.no)
	}
	return nil
}

// noRoom is the finding that a page has not the room that its header, or
// another look at it, promised.
func (d *dict) noRoom(no pageNo) error {
	return corruptAt(uint64(no)<<pageShift, "bucket has no room where it should")
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
	moves := movingEntries.Get().(*[]moving)
	defer movingEntries.Put(moves)
	if err := d.moves(moves, &old); err != nil {
		return err
	}
	d.a.space.touch(p.no, allLines)
	seg.begin()
	defer seg.end()
	l.clear(p.b, groups)
	for _, m := range *moves {
		if int(m.slot) != skip {
			l.copyEntry(p.b, m, &old)
		}
	}
	if !l.addSlotted(p.b, h, entry) {
		return d.noRoom(p.no)
	}
	return nil
}

// moves sets list to a page's entries, by slot. It fails on a damaged page, so
// that whoever moves entries fails before the first: there must be as many, and
// they must need as much room, as the header says.
func (d *dict) moves(list *[]moving, b *bucket) error {
	l := d.layout
	ms, size := (*list)[:0], 0
	for i := l.next(b, 0); i >= 0; i = l.next(b, i+1) {
		m := moving{slot: uint16(i)}
		var err error
		if l.kind == layoutSlotted {
			off := entryOff(b, i)
			e, ok := l.entry(b, off)
			if !ok || off < b.heap() {
				return errUnsound
			}
			m.from, m.end = uint16(off), uint16(e.end)
			size += e.end - off
			var key []byte
			key, err = d.keyOf(b, e)
			m.h = d.hash(key)
		} else {
			m.h, err = d.hashAt(b, i)
		}
		if err != nil {
			return err
		}
		ms = append(ms, m)
	}
	*list = ms
	if l.kind == layoutSlotted && (!b.hasHeap(0) || size > pageSize-b.heap()) ||
		l.kind != layoutLines && len(ms) != b.count() {
		return errUnsound
	}
	return nil
}

var errUnsound = corrupt("the header of a bucket and its entries do not agree")

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

// remove takes the entry in place p out of the bucket that begins with page
// head, and gives back what is not needed any more.
func (d *dict) remove(t *segmentTable, seg *segment, h uint64, head pageNo, p place) (err error) {
	l := d.layout
	var far [2]ref
	if l.kind == layoutSlotted {
		e, _ := l.entry(p.b, entryOff(p.b, p.i))
		if e.keyFar {
			far[0] = p.b.refAt(e.key)
		}
		if e.valFar {
			far[1] = p.b.refAt(e.val)
			seg.replaced.Add(1)
		}
	}
	// A page that is not full ends its chain; if it is also the first, the
	// header need not be in the cache.
	chained := p.no != head || (l.kind != layoutLines || p.i == l.slots || !l.free(p.b, p.i/l.perGroup)) && p.b.next() != 0
	seg.beginShort()
	if chained {
		err = d.removeFromChain(head, p)
	} else {
		err = d.removeSlot(p.no, p.b, p.i)
	}
	seg.endShort()
	if far[1] != 0 {
		seg.replaced.Add(1)
	}
	if err != nil {
		return err
	}
	seg.count(-1)
	if far != [2]ref{} {
		if err := errors.Join(d.recs.free(far[0]), d.recs.free(far[1])); err != nil {
			return err
		}
	}
	if chained {
		// The last overflow page of a slotted bucket may outlive the entries
		// of the first.
		b := (*bucket)(d.a.space.page(head))
		if b.next() == 0 && l.next(b, 0) < 0 {
			return d.merge(t, seg, h, head)
		}
		return nil
	}
	if l.worthMerging(seg, p.b, p.i) {
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
	d.overflow.Add(-1)
	return d.a.alloc.free(emptied.no, 1)
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

// clearAll removes all entries. It waits for callbacks: they may have decided
// by what is there.
func (d *dict) clearAll() error {
	for {
		if err := d.a.admit(createCost); err != nil {
			return err
		}
		busy, err := d.resetAlone(func() (bool, *stripe, error) { return true, d.busyStripe(), d.a.check(&d.handle) })
		if busy == nil {
			return err
		}
		busy.lockRange(0, ^uint64(0)) // outside the gate: callbacks may need it
		busy.mu.Unlock()
	}
}

// tidy gives all space back if the dict is empty. It need not wait for
// callbacks: it changes nothing that they could have decided about. The change
// that has emptied the dict stays where that is refused.
func (d *dict) tidy() error {
	if d.count() != 0 || d.a.admit(createCost) != nil {
		return nil
	}
	_, err := d.resetAlone(func() (bool, *stripe, error) { return d.count() == 0 && d.a.check(&d.handle) == nil, nil, nil })
	return err
}

// resetAlone resets the dict with all locks, if ready says so and names neither
// a stripe to wait for, which it returns, nor an error. The caller has admitted
// createCost.
func (d *dict) resetAlone(ready func() (bool, *stripe, error)) (*stripe, error) {
	d.a.gate.enter()
	defer d.a.gate.exit()
	d.a.gate.activate(d)
	d.lock()
	defer d.unlock()
	ok, busy, err := ready()
	if err != nil || !ok || busy != nil || d.hdr == 0 || d.bare() {
		return busy, err
	}
	return nil, d.reset()
}

// A hold keeps the range [lo, hi] of hashes busy while a callback runs. One of
// a single hash ends with the change that the callback decides on.
type hold struct {
	lo, hi   uint64
	epoch    uint64 // the handle's when the hold began
	released bool
}

// holdKey keeps the hash h busy for a callback, and appends the value of key,
// whose hash it is, to dst.
func (d *dict) holdKey(h uint64, key, dst []byte) (by hold, val []byte, ok bool, err error) {
	if d.layout.kind == layoutLines {
		d.prefetch(h)
	}
	_, seg := d.lockSegment(h, false)
	defer seg.mu.Unlock()
	by = hold{lo: h, hi: h, epoch: d.epoch.Load()}
	if d.state.Load() == stateOpen && d.hdr != 0 {
		var p place
		if p, ok, err = d.locate(seg.bucket(h), h, key, 0); ok && err == nil {
			dst, err = d.valueAt(dst, p.b, p.i)
		}
	}
	if err != nil {
		return by, dst, false, err
	}
	seg.setBusy(h, h, nil)
	return by, dst, ok, nil
}

// holdBucket keeps the hashes from h on, to the end of h's bucket, busy.
func (d *dict) holdBucket(h uint64) (hold, error) {
	for {
		t, seg := d.lockSegment(h, true)
		hi := h | ^uint64(0)>>t.bits
		if no := seg.bucket(h); no != 0 {
			b, err := d.owned(t, seg, h, no)
			if err != nil {
				seg.mu.Unlock()
				return hold{}, err
			}
			hi = h | ^uint64(0)>>b.depth()
		}
		if seg.isBusy(h, hi) {
			seg.wait()
			seg.mu.Unlock()
			continue
		}
		seg.setBusy(h, hi, nil)
		by := hold{lo: h, hi: hi, epoch: d.epoch.Load()}
		seg.mu.Unlock()
		return by, nil
	}
}

// release ends a hold, unless that is done.
func (d *dict) release(by *hold) {
	if !by.released {
		d.releaseRange(by)
	}
}

// releaseRange is release of what is still busy.
func (d *dict) releaseRange(by *hold) {
	for !by.released {
		t := d.table.Load()
		t.eachStripe(by.lo, by.hi, func(l *stripe, lo, hi uint64) {
			l.mu.Lock()
			if l.isBusy(lo, hi) {
				l.clearBusy(lo, hi, nil)
			}
			l.mu.Unlock()
		})
		// A table that took the place of t meanwhile has the range from it.
		by.released = d.table.Load() == t
	}
}

// claim makes stripe after stripe busy. Nobody who waits for a later one keeps
// an earlier one busy, but for other claims, which go the same way.
func (d *dict) claim(by *claim) {
	for lo := uint64(0); ; {
		t, seg := d.lockSegment(lo, true)
		hi := lo | ^uint64(0)>>min(t.bits, maxStripeBits)
		if seg.isBusy(lo, hi) {
			seg.wait()
			seg.mu.Unlock()
			continue
		}
		seg.setBusy(lo, hi, by)
		seg.mu.Unlock()
		if hi == ^uint64(0) {
			return
		}
		lo = hi + 1
	}
}

func (d *dict) disclaim(by *claim) {
	for {
		t := d.table.Load()
		t.eachStripe(0, ^uint64(0), func(l *stripe, lo, hi uint64) {
			l.mu.Lock()
			if len(l.busy) != 0 {
				l.clearBusy(lo, hi, by)
			}
			l.mu.Unlock()
		})
		if d.table.Load() == t { // another that took its place has the ranges from it
			return
		}
	}
}

// overtaken returns why a callback's decision counts no more, if so.
func (d *dict) overtaken(by *hold) error {
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

	// The copy: the wanted entries of one bucket, and its pages, in which they
	// lie but for keys that lay in records.
	entries []copiedEntry
	pages   []bucket
	gathers bool        // of words: copies entries, not pages
	words   []wordEntry // the copy then
	ahead   uint64      // buckets below this hash have been asked for

	copiedEntry       // of entries, the last that next moved to
	at          int   // the next
	err         error // why next returned false, nil at the end
}

// A copiedEntry is an entry of a cursor's copy.
type copiedEntry struct {
	key    []byte
	val    []byte // nil if valFar
	valFar bool   // the value lies in a record: look it up
}

// next moves to the next entry.
func (c *cursor) next() bool {
	for c.at == len(c.entries) {
		if !c.fill() {
			return false
		}
	}
	c.copiedEntry = c.entries[c.at]
	c.at++
	return true
}

// fill copies the bucket of pos and moves pos behind it.
func (c *cursor) fill() bool {
	d := c.d
	if c.done || c.err != nil {
		return false
	}
	var lo, hi uint64
	start := time.Now()
	c.err = d.read(c.pos, func(t *segmentTable, seg *segment, s uint64) (err error) {
		c.pages, c.entries, c.words = c.pages[:0], c.entries[:0], c.words[:0]
		lo, hi, err = c.copyBucket(t, seg, s)
		return err
	})
	if c.err != nil {
		c.entries, c.at = nil, 0
		return false
	}
	if hi >= c.ahead && time.Since(start) > coldRead {
		c.ahead = d.prefetchBuckets(hi + 1)
	}
	if lo < c.pos || hi > c.last { // else all are wanted
		unwanted := func(h uint64) bool { return h < c.pos || h > c.last }
		c.entries = slices.DeleteFunc(c.entries, func(e copiedEntry) bool { return unwanted(d.hash(e.key)) })
		c.words = slices.DeleteFunc(c.words, func(e wordEntry) bool { return unwanted(d.hashWord(e.key)) })
	}
	c.at = 0
	c.done = hi >= c.last
	c.pos = hi + 1
	return true
}

const (
	coldRead     = 20 * time.Microsecond // of a bucket: more than memory needs, less than a disk
	aheadBuckets = 128
)

// prefetchBuckets asks for the next buckets from hash h on, and returns the
// hash behind the last. Buckets lie all over the file, and a loop that waited for
// one would wait for each.
func (d *dict) prefetchBuckets(h uint64) uint64 {
	t := d.table.Load()
	seg := t.segment(h)
	s := seg.load()
	depth, dir := seg.depth(), seg.dir.Load()
	if !optimistic || h == 0 || s&1 != 0 || seg.load() != s {
		return h
	}
	last := pageNo(0)
	i, end := t.index(h, depth), uint64(1)<<depth
	for n := 0; i < end && n < aheadBuckets; i++ {
		if no := dirEntry(dir, i); no != last {
			d.space.prefetch(no)
			last = no
			n++
		}
	}
	if i == end {
		return h | ^uint64(0)>>t.bits
	}
	return prefixOf(h, int(t.bits)) | i<<(64-depth)>>t.bits
}

// copyBucket copies the bucket of pos and returns the hashes that belong there.
func (c *cursor) copyBucket(t *segmentTable, seg *segment, s uint64) (lo, hi uint64, err error) {
	defer catchFault(&err, debug.SetPanicOnFault(true))
	d := c.d
	no, ok := seg.bucketAt(c.pos, s)
	if !ok {
		return 0, 0, errRetry
	}
	depth := int(t.bits)
	for link := uint32(0); no != 0; {
		b, err := d.page(no, link)
		if err != nil {
			return 0, 0, err
		}
		if !c.gathers {
			c.pages = append(c.pages, bucket{})
			page := &c.pages[len(c.pages)-1]
			page.copy(b, d.layout)
			b = page
		}
		if link == 0 {
			depth = b.depth()
			if depth < int(t.bits) || depth > int(t.bits)+maxDepth || b.prefix() != prefixOf(c.pos, depth) {
				return 0, 0, corruptAt(uint64(no)<<pageShift, "bucket of prefix %#x/%d stands for hash %#x", b.prefix(), depth, c.pos)
			}
		}
		if c.gathers {
			c.gather(b)
		} else if err := c.copyEntries(b); err != nil {
			return 0, 0, err
		}
		no, link = b.next(), b.link()+1
	}
	lo = prefixOf(c.pos, depth)
	return lo, lo | ^uint64(0)>>depth, nil
}

// copyEntries adds the entries of a copied page, and copies the keys that lie
// elsewhere.
func (c *cursor) copyEntries(b *bucket) error {
	l := c.d.layout
	for i := l.next(b, 0); i >= 0; i = l.next(b, i+1) {
		if l.kind != layoutSlotted {
			off := l.slotOff(i)
			e := copiedEntry{key: b[max(0, off) : off+l.keySize : off+l.keySize], val: b[off+l.keySize : off+l.slot : off+l.slot]}
			if l.kind == layoutLines && i == l.slots {
				e.key = zeroKey[:l.keySize]
			}
			c.entries = append(c.entries, e)
			continue
		}
		k, v, end, far := l.parts(b, entryOff(b, i))
		if end > pageSize {
			return corrupt("entry passes the end of its bucket")
		}
		e := copiedEntry{key: b[k:v:v], val: b[v:end:end]}
		if far&keyIsFar != 0 {
			key, err := c.d.farKeyAt(b.refAt(k))
			if err != nil {
				return err
			}
			e.key = bytes.Clone(key)
		}
		if far&valIsFar != 0 {
			e.val, e.valFar = nil, true
		}
		c.entries = append(c.entries, e)
	}
	return nil
}

var zeroKey [8]byte

// A wordEntry is an entry of words.
type wordEntry struct{ key, val uint64 }

// gather copies the entries of a page of words, each key before its value: see
// wholeWords.
func (c *cursor) gather(b *bucket) {
	if b.hasZero() {
		c.words = append(c.words, wordEntry{0, b.word(zeroValueOff)})
	}
	n := len(c.words)
	c.words = slices.Grow(c.words, lineCount*lineSize/wordSlot)
	words := c.words[:cap(c.words)]
	for off := lineSize; off < pageSize; off += wordSlot {
		e := &words[n]
		if e.key = b.word(off); e.key == 0 {
			off |= lineSize - wordSlot // the rest of the line is empty too
			continue
		}
		e.val = b.word(off + 8)
		n++
	}
	c.words = words[:n]
}
