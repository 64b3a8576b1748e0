package emd

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"unsafe"
)

// A sorter brings any number of entries of a dict into the order of their
// hashes with bounded memory: it deals them out to parts by the upper bits of their
// hashes (a distribution sort: Knuth, The Art of Computer Programming 3, 5.2.5).
// What a part has no room for goes to a scratch file, a block at a time. In the
// end one part after the other is read and sorted in memory; one that does not
// fit is dealt out again, by the bits that follow. What fits in memory needs no
// file.
//
// An entry is a record: of a dict of fixed sizes key and value; of others
//
//	uvarint(size of key) uvarint(2*size of value + far) key value
//
// A far value, of farScratch bytes or more, went to the scratch file by itself:
// in its place is where, 8 bytes, so that no buffer must hold many of them.
type sorter struct {
	ctx     context.Context
	d       *dict
	all     *dealing
	scratch *scratchFile // nil until it is needed
	block   []byte       // of the scratch file, while it is dealt out again
	parts   [2]sortedPart
	last    int // the one of parts that was yielded last

	count int64 // entries added
	bytes int64 // that they take in buckets, about
}

// A dealing has entries whose hashes begin with the same skip bits in parts that
// the next bits tell.
type dealing struct {
	s     *sorter
	skip  int
	shift int
	parts []sortPart

	memory  int  // bytes
	room    int  // of that each part may take; a longer record is there alone
	spilled bool // some is in the scratch file
}

// A sortPart has the records of some hashes, in the order in which they were
// added: those in blocks of the scratch file, then those in buf.
type sortPart struct {
	buf    []byte
	blocks []sortBlock
	size   int64 // of all
	count  int64
	hash   uint64 // of one of them
	differ uint64 // the bits in which others are different
}

type sortBlock struct {
	off  int64
	size int
}

// A sortedPart has the entries of a part in order: of equal hashes the ones
// that were added first come first, of equal keys there is only the last.
type sortedPart struct {
	buf    []byte
	items  []sortItem
	loaded []byte     // the memory of buf, if it was in blocks
	spare  []sortItem // for sort
}

type sortItem struct {
	hash uint64
	off  int // of the record in buf
}

const (
	maxSortMemory = 64 << 20
	minSortMemory = 128 << 10
	sortItemSize  = 16
	farScratch    = 64 << 10 // bytes
	minParts      = 4
	maxParts      = 256
	minPartRoom   = 64 << 10 // if there are more than minParts
	quickPart     = 4 << 20  // bytes of a part in the scratch file that is there in a few milliseconds
)

func newSorter(ctx context.Context, d *dict) *sorter {
	s := &sorter{ctx: ctx, d: d}
	s.all = s.deal(int(min(max(d.a.limit/4, minSortMemory), maxSortMemory)), 0)
	return s
}

// deal begins a dealing that takes about that much memory.
func (s *sorter) deal(memory, skip int) *dealing {
	parts := minParts
	for parts < maxParts && memory/(2*parts) >= minPartRoom {
		parts *= 2
	}
	return &dealing{s: s, skip: skip, shift: 65 - bits.Len(uint(parts)), memory: memory, room: memory / parts, parts: make([]sortPart, parts)}
}

func (s *sorter) close() error {
	if s.scratch == nil {
		return nil
	}
	err := s.scratch.close()
	s.scratch = nil
	return err
}

// add adds an entry, which it copies. Of equal keys the one added last counts.
func (s *sorter) add(hash uint64, key, val []byte) error {
	s.count++
	l := s.d.layout
	if l.kind != layoutSlotted {
		s.bytes += int64(l.slot)
		p, err := s.all.part(hash, l.slot)
		if err == nil {
			p.buf = append(append(p.buf, key...), val...)
		}
		return err
	}
	s.bytes += int64(l.form(len(key), len(val)).size) + 4
	size := uint64(len(val)) << 1
	if len(val) >= farScratch {
		f, err := s.openScratch()
		if err != nil {
			return err
		}
		off, err := f.append(val)
		if err != nil {
			return err
		}
		size |= 1
		val = binary.LittleEndian.AppendUint64(nil, uint64(off))
	}
	p, err := s.all.part(hash, uvarintLen(uint64(len(key)))+uvarintLen(size)+len(key)+len(val))
	if err == nil {
		p.buf = binary.AppendUvarint(p.buf, uint64(len(key)))
		p.buf = binary.AppendUvarint(p.buf, size)
		p.buf = append(append(p.buf, key...), val...)
	}
	return err
}

func uvarintLen(x uint64) int { return (bits.Len64(x|1) + 6) / 7 }

// part returns the part for a hash, with room for a record of n bytes, which the
// caller appends to its buf.
func (v *dealing) part(hash uint64, n int) (*sortPart, error) {
	p := &v.parts[hash<<(v.skip&63)>>(v.shift&63)]
	if len(p.buf)+n > cap(p.buf) {
		if err := v.makeRoom(p, n); err != nil {
			return nil, err
		}
	}
	if p.count == 0 {
		p.hash = hash
	}
	p.differ |= hash ^ p.hash
	p.count++
	p.size += int64(n)
	return p, nil
}

func (v *dealing) makeRoom(p *sortPart, n int) error {
	if len(p.buf)+n > v.room {
		if err := v.spill(p); err != nil {
			return err
		}
	}
	if need := len(p.buf) + n; need > cap(p.buf) {
		p.buf = append(make([]byte, 0, max(need, min(4*need, v.room))), p.buf...)
	}
	return nil
}

func (v *dealing) spill(p *sortPart) error {
	if len(p.buf) == 0 {
		return nil
	}
	f, err := v.s.openScratch()
	if err != nil {
		return err
	}
	off, err := f.append(p.buf)
	if err != nil {
		return err
	}
	p.blocks = append(p.blocks, sortBlock{off, len(p.buf)})
	p.buf = p.buf[:0]
	v.spilled = true
	return nil
}

// spillAll leaves no records in memory, if some are in the scratch file anyway.
func (v *dealing) spillAll() error {
	if !v.spilled {
		return nil
	}
	for i := range v.parts {
		if err := v.spill(&v.parts[i]); err != nil {
			return err
		}
		v.parts[i].buf = nil
	}
	return nil
}

// A sortStep is what a dealing yields: a part, an error, or neither to announce
// the next part, which it is about to bring into memory.
type sortStep struct {
	part *sortedPart
	err  error
	slow bool // that takes a while
}

// sorted yields all entries, a part at a time, whose memory is good until the one
// after the next. What was added is gone then.
func (v *dealing) sorted(yield func(sortStep) bool) bool {
	if err := v.spillAll(); err != nil {
		return yield(sortStep{err: err})
	}
	for i := range v.parts {
		p := v.parts[i]
		if v.parts[i] = (sortPart{}); p.count == 0 {
			continue
		}
		fits := p.differ == 0 || p.size+2*sortItemSize*p.count <= int64(v.memory/2)
		if !yield(sortStep{slow: !fits || len(p.blocks) > 0 && p.size > quickPart}) {
			return false
		}
		if fits {
			part, err := v.s.sort(&p)
			if !yield(sortStep{part: part, err: err}) {
				return false
			}
			continue
		}
		again := v.s.deal(v.memory, bits.LeadingZeros64(p.differ))
		if err := again.dealOut(&p); err != nil {
			return yield(sortStep{err: err})
		}
		if !again.sorted(yield) {
			return false
		}
	}
	return true
}

// dealOut adds the records of a part of another dealing.
func (v *dealing) dealOut(p *sortPart) (err error) {
	s := v.s
	for _, b := range p.blocks {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if s.block, err = s.scratch.read(s.block, b.off, b.size); err != nil {
			return err
		}
		if err := v.dealOutBlock(s.block); err != nil {
			return err
		}
		_ = s.scratch.f.Punch(b.off, int64(b.size)) // a courtesy to the disk
	}
	return v.dealOutBlock(p.buf)
}

func (v *dealing) dealOutBlock(b []byte) error {
	var e sortedEntry
	for len(b) > 0 {
		n, err := e.parse(v.s.d, b)
		if err != nil {
			return err
		}
		to, err := v.part(v.s.d.hash(e.key), n)
		if err != nil {
			return err
		}
		to.buf = append(to.buf, b[:n]...)
		b = b[n:]
	}
	return nil
}

// sort brings a part into memory and into order.
func (s *sorter) sort(p *sortPart) (*sortedPart, error) {
	s.last = 1 - s.last
	t := &s.parts[s.last]
	if t.buf = p.buf; len(p.blocks) > 0 {
		t.loaded = slices.Grow(t.loaded[:0], int(p.size))
		for _, b := range p.blocks {
			n := len(t.loaded)
			t.loaded = t.loaded[:n+b.size]
			if err := readScratch(s.scratch.f, t.loaded[n:], b.off); err != nil {
				return nil, err
			}
		}
		t.buf = t.loaded
	}
	t.items = slices.Grow(t.items[:0], int(p.count))[:p.count]
	var e sortedEntry
	off := 0
	for i := range t.items {
		n, err := e.parse(s.d, t.buf[off:])
		if err != nil {
			return nil, err
		}
		t.items[i] = sortItem{s.d.hash(e.key), off}
		off += n
	}
	if p.differ != 0 {
		t.sort(bits.LeadingZeros64(p.differ))
	}
	t.leaveLast(s.d)
	return t, nil
}

// sort puts items, whose hashes begin with the same skip bits, in order.
func (t *sortedPart) sort(skip int) {
	n := len(t.items)
	// Hashes are distributed evenly, so one pass over their next bits leaves
	// a few items to a group.
	shift := 64 - max(1, bits.Len(uint(n/4)))
	group := func(it sortItem) uint64 { return it.hash << (skip & 63) >> (shift & 63) }
	ends := make([]uint32, 1<<(64-shift)+1)
	for _, it := range t.items {
		ends[group(it)+1]++
	}
	for i := 1; i < len(ends); i++ {
		ends[i] += ends[i-1]
	}
	t.spare = slices.Grow(t.spare[:0], n)[:n]
	for _, it := range t.items { // turns starts into ends
		at := &ends[group(it)]
		t.spare[*at] = it
		*at++
	}
	t.items, t.spare = t.spare, t.items
	from := uint32(0)
	for _, to := range ends[:len(ends)-1] {
		sortByHash(t.items[from:to])
		from = to
	}
}

// sortByHash sorts what nearly always is a few items. It is stable.
func sortByHash(items []sortItem) {
	if len(items) > 16 {
		slices.SortStableFunc(items, func(x, y sortItem) int { return cmp.Compare(x.hash, y.hash) })
		return
	}
	for i := 1; i < len(items); i++ {
		it := items[i]
		j := i
		for ; j > 0 && items[j-1].hash > it.hash; j-- {
			items[j] = items[j-1]
		}
		items[j] = it
	}
}

// leaveLast leaves of equal keys the last item only.
func (t *sortedPart) leaveLast(d *dict) {
	last := t.items[:0]
next:
	for _, it := range t.items {
		for i := len(last) - 1; i >= 0 && last[i].hash == it.hash; i-- {
			if string(t.key(d, last[i])) == string(t.key(d, it)) {
				last[i] = it
				continue next
			}
		}
		last = append(last, it)
	}
	t.items = last
}

func (t *sortedPart) key(d *dict, it sortItem) []byte {
	var e sortedEntry
	_, _ = e.parse(d, t.buf[it.off:]) // which was sound
	return e.key
}

// entry returns entry i. They are asked for one by one in order, which is none
// in the buffer: so it asks for a later one.
func (t *sortedPart) entry(d *dict, i int, e *sortedEntry) {
	const ahead = 16
	if i+ahead < len(t.items) {
		prefetch(unsafe.Pointer(&t.buf[t.items[i+ahead].off]))
	}
	it := t.items[i]
	e.hash = it.hash
	_, _ = e.parse(d, t.buf[it.off:]) // which was sound
}

func (s *sorter) openScratch() (f *scratchFile, err error) {
	if s.scratch == nil {
		s.scratch, err = s.d.a.openScratch()
	}
	return s.scratch, err
}

// A sortedEntry is one of a sorter. Its memory is good until the next.
type sortedEntry struct {
	hash     uint64
	key, val []byte
	how      valPlace
	valSize  int // where val is not the value
}

// A valPlace says where a value is.
type valPlace uint8

const (
	valHere    valPlace = iota
	valScratch          // in the scratch file, at the place that val has
	valOld              // in a record of the dict that is being loaded
)

var errScratch = errors.New("scratch file was changed by somebody else")

// parse takes the entry apart that b begins with, and returns its size. It
// leaves the hash alone.
func (e *sortedEntry) parse(d *dict, b []byte) (size int, err error) {
	if l := d.layout; l.kind != layoutSlotted {
		if len(b) < l.slot {
			return 0, errScratch
		}
		e.key, e.val = b[:l.keySize:l.keySize], b[l.keySize:l.slot]
		return l.slot, nil
	}
	keySize, n := binary.Uvarint(b)
	valSize, m := binary.Uvarint(b[max(0, n):])
	if n <= 0 || m <= 0 || keySize > maxKeySize || valSize>>1 > maxValueSize {
		return 0, errScratch
	}
	e.how, e.valSize = valHere, int(valSize>>1)
	stored := e.valSize
	if valSize&1 != 0 {
		e.how, stored = valScratch, 8
	}
	start := n + m
	if size = start + int(keySize) + stored; size > len(b) {
		return 0, errScratch
	}
	e.key, e.val = b[start:start+int(keySize):start+int(keySize)], b[start+int(keySize):size]
	return size, nil
}

// A merger yields the entries of a load in the order of their hashes; of equal
// ones, those of the old dict first. A goroutine brings one part into memory
// while the part before is read.
type merger struct {
	d      *dict
	old    *oldEntries // nil if there are none, or no more
	inline bool        // ask for a part only when it is needed, so that runs can be repeated
	want   chan struct{}
	got    chan sortStep // an announcement is followed by a part when it is wanted; closed in the end

	part  *sortedPart // nil if there are no more
	at    int         // the next in part
	asked bool        // the part after it is wanted
	slow  bool        // it takes a while
	ahead *sortedPart // it, if it is in memory
	ended bool        // there is none behind part and ahead
	err   error       // why there is none
	entry sortedEntry
	last  *sortedEntry // that pull returned
}

// sorted returns all entries in order, together with those of an old dict,
// unless that is nil. The caller ends with close.
func (s *sorter) sorted(old *oldEntries) (*merger, error) {
	m := &merger{d: s.d, old: old, inline: s.d.a.log.inline, want: make(chan struct{}, 1), got: make(chan sortStep)}
	go func() {
		defer close(m.got)
		s.all.sorted(func(step sortStep) bool {
			m.got <- step
			if step.part != nil {
				return true // the announcement of the next one may follow
			}
			_, ok := <-m.want
			return ok
		})
	}()
	m.receive()
	err := m.step()
	if err == nil && old != nil {
		err = m.stepOld()
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// close ends the goroutine.
func (m *merger) close() {
	close(m.want)
	for range m.got {
	}
}

// lookAhead asks for the part that was announced. It gets the memory of the one before part.
func (m *merger) lookAhead() {
	m.asked = true
	m.want <- struct{}{}
}

// receive waits for the next step.
func (m *merger) receive() {
	step, ok := <-m.got
	m.take(step, ok)
}

// take notes a step; ok is false if there was none any more.
func (m *merger) take(step sortStep, ok bool) {
	switch {
	case !ok:
		m.ended, m.asked = true, false
	case step.err != nil:
		m.err, m.asked = step.err, false
	case step.part != nil:
		m.ahead, m.asked = step.part, false
		m.receive() // what comes next is known at once
	default:
		m.slow = step.slow
		if m.asked { // this is a piece of the part that was asked for
			m.lookAhead()
		}
	}
}

// prepare waits until the part after this one is in memory, however long that takes.
func (m *merger) prepare() error {
	for m.ahead == nil && m.err == nil && !m.ended {
		if !m.asked {
			m.lookAhead()
		}
		m.receive()
	}
	return m.err
}

// prepared says that prepare would not take long.
func (m *merger) prepared() bool {
	if m.asked {
		select {
		case step, ok := <-m.got:
			m.take(step, ok)
		default:
		}
	}
	return m.ahead != nil || m.err != nil || m.ended || !m.slow
}

// step goes to the next entry that was added.
func (m *merger) step() error {
	if m.part == nil || m.at == len(m.part.items) {
		if err := m.prepare(); err != nil {
			return err
		}
		m.part, m.at, m.ahead = m.ahead, 0, nil
		if m.part == nil {
			return nil
		}
		if !m.ended && !m.inline {
			m.lookAhead()
		}
	}
	m.part.entry(m.d, m.at, &m.entry)
	m.at++
	return nil
}

func (m *merger) stepOld() error {
	ok, err := m.old.next()
	if !ok {
		m.old = nil
	}
	return err
}

// pull returns the next entry, nil at the end. Its memory is good until the next.
func (m *merger) pull() (e *sortedEntry, err error) {
	switch {
	case m.last == nil:
	case m.last == &m.entry:
		err = m.step()
	default:
		err = m.stepOld()
	}
	switch {
	case err != nil:
		return nil, err
	case m.old != nil && (m.part == nil || m.old.hash <= m.entry.hash):
		m.last = &m.old.sortedEntry
	case m.part != nil:
		m.last = &m.entry
	default:
		m.last = nil
	}
	return m.last, nil
}
