package emd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"unsafe"
)

// A bulk load has two parts. First the pairs are sorted by their hashes, which
// leaves the arena alone: see sorter. Then a new dict is written beside the old,
// under a hidden name and in fresh space: bucket after bucket in the order of
// the hash, each page once, in large writes. In the end one commit gives
// the old dict the pages of the new one. All but the writing is as in a migration.
//
// What is written belongs to the hidden dict, so that it can be found and
// freed whatever happens. Buckets come to belong to it when the directory of
// their segment is written; until then nobody may commit, nor roll back: so
// the loader has the arena's turn from one such moment to the next, a few MiB.

// BulkLoad stores the pairs of seq, all or none of them, and returns how many
// it has read. Of equal keys the last pair counts; the entries that the dict
// has stay unless they are replaced. It is for much data: the dict is
// written anew, in order, at the speed of the disk, where a Set would read and
// write a page at random. For a few pairs in a large dict use
// [EMDict.SetAll].
//
// Memory is bounded: what it does not hold goes to a scratch file beside the
// arena's, of about the size of the pairs (some times that where files have no
// holes), which goes away in every outcome. The arena's file holds the old entries
// and the new dict until the end.
//
// It ends with a commit of the arena, which carries all that is pending. A
// crash before that leaves the dict as it was. So do an error, a panic of seq, a full
// disk ([ErrFull]), a fault that an iterator of the arena meets while seq is
// read, and the end of ctx; space that the file had grown by is then used again,
// and comes back with a Rollback or after the next commit.
//
// While seq is read, nothing is locked: it may use the dict, and changes made meanwhile come
// before the load. Then, while the dict is written, readers go on and see it as it
// was; changes of it wait, and commits of others a moment. As
// with [MigrateDict], an Update that changes the dict meanwhile
// ends the load, and so does a Rollback, also that of an Update that fails
// ([ErrRolledBack]). If the last commit finds no room, changes that others made
// just before it are rolled back with it. Inside Update it is [ErrInUpdate].
func (d *EMDict[K, V]) BulkLoad(ctx context.Context, seq iter.Seq2[K, V]) (n int, err error) {
	a, h := d.d.a, &d.d.handle
	if a.inUpdate() {
		return 0, a.opError("bulkload", h, 0, ErrInUpdate)
	}
	if n, err = d.bulkLoad(ctx, seq); err == nil {
		return n, nil
	}
	// Not opError: an Update of another goroutine has no part in this.
	return n, a.placed("bulkload", h, 0, err)
}

func (d *EMDict[K, V]) bulkLoad(ctx context.Context, seq iter.Seq2[K, V]) (n int, err error) {
	if err := errors.Join(d.d.writable(), ctx.Err()); err != nil {
		return 0, err
	}
	s := newSorter(ctx, d.d)
	defer func() { err = errors.Join(err, s.close()) }() // also after a panic of seq
	if err := d.sortAll(ctx, seq, s, &n); err != nil || n == 0 {
		return n, err
	}
	a := d.d.a
	if err := errors.Join(a.dropUnfinished(), a.ensure(d.d)); err != nil {
		return n, err
	}
	l := &loader{s: s, old: d.d, made: d.d.like()}
	l.m = &migration{a: a, ctx: ctx, old: l.old, made: l.made, inPlace: true}
	if err = l.m.run(l.load); err == errReplaced {
		err = ErrClosed
	}
	return n, err
}

// sortAll gives the pairs of seq to s.
func (d *EMDict[K, V]) sortAll(ctx context.Context, seq iter.Seq2[K, V], s *sorter, n *int) (err error) {
	b := d.buffers()
	defer d.pool.Put(b)
	faults := d.d.a.faults()
	var pair struct { // in the heap, once
		k K
		v V
	}
	for k, v := range seq {
		*n++
		pair.k, pair.v = k, v
		key, val := memoryOf(&pair.k), memoryOf(&pair.v) // of words: their encodings
		if err = ctx.Err(); err == nil && !d.words {
			key, val, err = d.encodeEntry(b, &pair.k, &pair.v)
		}
		if err == nil {
			err = s.add(d.d.hash(key), key, val)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(d.d.a.faultSince(faults), ctx.Err())
}

// like returns the core of a dict with the types of d, to be created.
func (d *dict) like() *dict {
	made := newDict(d.a, d.layout.keySize, d.layout.valSize)
	made.kind, made.key, made.value = d.kind, d.key, d.value
	made.hashMask = d.hashMask
	return made
}

// A loader writes a dict, made, from the entries of old and those of a sorter.
type loader struct {
	m         *migration
	s         *sorter
	old, made *dict
	in        *merger
	fresh     *freshPages
	runPages  int    // of a large write
	maxLocal  uint32 // depth that a directory may have

	// The window: the next entries in order, no more than a page can hold,
	// or those of a chain. Keys are distinct.
	items []loadItem
	data  []byte
	ended bool // there are no entries behind the window

	wrote byteRange // of the file by large writes, since the disk was told

	// The batch: what no directory leads to yet.
	leaves []leaf
	pages  []bucket // images of pages that have no place yet; next is an index behind them, + 1
	nos    []pageNo // of those that have, before them
	count  int64    // entries
	chains int64    // overflow pages

	slots []uint16 // of the items of a bucket of lines
	val   []byte   // of fetch
	entry []byte
}

// A loadItem is an entry of the window.
type loadItem struct {
	hash    uint64
	off     int // of key and value in data
	keySize int
	valSize int // in data
	how     valPlace
	real    int // size of the value
}

// A leaf is a bucket of the batch.
type leaf struct {
	prefix uint64
	depth  int // root bits included
	page   int // index of its first page in the batch
}

const (
	inlineBuckets = 300       // a dict of more is fanned out
	batchBytes    = 8 << 20   // that are written before the batch ends with its segment
	maxRunBytes   = 256 << 10 // of a write
	anyFarSize    = maxSlab   // of a far value whose size does not matter
	chunkOfWindow = 256 << 10 // by which it grows for a chain
)

func (l *loader) load() error {
	made := l.made
	a := l.m.a
	l.fresh = &freshPages{al: a.alloc}
	made.recs.fresh = l.fresh
	perPage := max(1, int64(made.layout.slots)*5/8*int64(made.layout.slot))
	if made.layout.kind == layoutSlotted {
		perPage = pageSize * 5 / 8
	}
	buckets := l.s.bytes/perPage + l.old.size()>>pageShift
	if buckets > inlineBuckets {
		if err := l.fanOut(); err != nil {
			return err
		}
	}
	t := made.table.Load()
	l.maxLocal = min(uint32(bits.Len64(uint64(buckets)>>t.bits)+spareDepth), maxDepth, uint32(bits.Len32(a.alloc.maxRun())-1)+pageShift-2)
	if t.bits == 0 {
		l.maxLocal = min(l.maxLocal, inlineDepth)
	}
	l.runPages = unitPages
	for most := min(maxRunBytes, a.limit/8); int64(l.runPages)*2*pageSize <= most && l.runPages*2 <= int(a.alloc.maxRun()); {
		l.runPages *= 2
	}
	var old *oldEntries
	if l.m.total > 0 {
		old = l.oldEntries()
	}
	var err error
	if l.in, err = l.s.sorted(old); err != nil {
		return err
	}
	defer l.in.close()
	for seg := 0; seg < len(t.segs); {
		if err := l.in.prepare(); err != nil {
			return err
		}
		if seg, err = l.batch(t, seg); err != nil {
			return err
		}
		if n := l.wrote.end - l.wrote.off; n > 0 {
			a.file.WriteOut(l.wrote.off, n) // the commit in the end would wait for all of it
			l.wrote = byteRange{}
		}
	}
	return nil
}

// A byteRange is [off, end) of a file.
type byteRange struct{ off, end int64 }

// include makes the range larger, if need be.
func (r *byteRange) include(off, end int64) {
	if r.end == 0 {
		r.off = off
	}
	r.off, r.end = min(r.off, off), max(r.end, end)
}

// oldEntries yields those of the dict that is being loaded in the order of
// their hashes.
type oldEntries struct {
	sortedEntry
	next func() (bool, error)
}

// oldEntries returns the entries of the old dict, which is claimed.
func (l *loader) oldEntries() *oldEntries {
	c := cursor{d: l.old, last: ^uint64(0)}
	var some []sortedEntry // of one bucket
	src := &oldEntries{}
	src.next = func() (bool, error) {
		for len(some) == 0 {
			if !c.fill() {
				return false, c.err
			}
			some = some[:0]
			for _, copied := range c.entries {
				e := sortedEntry{hash: l.old.hash(copied.key), key: copied.key, val: copied.val}
				if copied.valFar {
					e.how = valOld
				}
				some = append(some, e)
			}
			slices.SortFunc(some, func(x, y sortedEntry) int {
				switch {
				case x.hash < y.hash:
					return -1
				case x.hash > y.hash:
					return 1
				}
				return 0
			})
			l.m.done += int64(len(some))
		}
		src.sortedEntry = some[0]
		some = some[1:]
		return true, nil
	}
	return src
}

// fanOut makes the root table of made, which is empty.
func (l *loader) fanOut() error {
	a, made := l.m.a, l.made
	a.turn.Lock()
	defer a.turn.Unlock()
	if err := l.room(createCost); err != nil {
		return err
	}
	a.gate.enter()
	defer a.gate.exit()
	made.lock()
	defer made.unlock()
	root, err := a.alloc.alloc(1)
	if err != nil {
		return err
	}
	a.space.touch(made.hdr, 1)
	hdr := made.header()
	hdr[dictRootBitsOff] = rootBits
	binary.LittleEndian.PutUint32(hdr[dictRootOff:], root)
	made.setTable(made.emptyTable(rootBits))
	return nil
}

// room makes room for cost bytes of private memory; or it returns why nothing
// more may be written. The caller holds the turn, and the batch is empty.
func (l *loader) room(cost int64) error {
	a := l.m.a
	if err := a.writable(); err != nil {
		return err
	}
	if err := errors.Join(l.m.ctx.Err(), l.m.check()); err != nil {
		return err
	}
	over := func() bool { return a.space.private.Load()+cost > a.limit }
	if over() && a.space.fresh.Load() > a.limit/4 {
		if err := a.spillFresh(); err != nil {
			return err
		}
	}
	if !over() {
		return nil
	}
	if !a.opts.NoAutoCommit {
		return a.ownCommit()
	}
	if err := a.checkpoint(); err != nil {
		return err
	}
	if over() {
		return fmt.Errorf("%w: %d bytes are private, the load needs %d, the limit is %d", ErrUpdateTooLarge, a.space.private.Load(), cost, a.limit)
	}
	return nil
}

// batch writes the segments from seg on until it has written enough, or has come
// to the last part that the sorter has in memory, and returns the next one. It has
// the turn, and others wait for that.
func (l *loader) batch(t *segmentTable, seg int) (next int, err error) {
	a := l.m.a
	a.turn.Lock()
	defer a.turn.Unlock()
	if err := l.room(createCost + int64(l.runPages)*pageSize + 4<<l.maxLocal); err != nil {
		return seg, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.undo())
		}
	}()
	enough := min(batchBytes, a.limit/2) >> pageShift
	var ends []int // of the leaves of each segment
	for next = seg; next < len(t.segs) && int64(len(l.nos)+len(l.pages)) < enough && (next == seg || l.in.prepared()); next++ {
		if err := l.segment(t, uint64(next)); err != nil {
			return seg, err
		}
		ends = append(ends, len(l.leaves))
	}
	if err := l.place(); err != nil {
		return seg, err
	}
	return next, l.link(t, seg, ends)
}

// segment makes the buckets of a segment: from its first hash on, always the
// largest range of hashes whose entries one bucket holds.
func (l *loader) segment(t *segmentTable, seg uint64) error {
	first := seg << 1 << (63 - t.bits)
	last := first | ^uint64(0)>>t.bits
	if err := l.fillWindow(last); err != nil {
		return err
	}
	if l.upTo(last) == 0 {
		return nil // an absent bucket
	}
	for pos := first; ; {
		depth := int(t.bits)
		if pos != first {
			depth = max(depth, 64-bits.TrailingZeros64(pos))
		}
		end, err := l.bucket(pos, depth, int(t.bits)+int(l.maxLocal))
		if err != nil {
			return err
		}
		if end == last {
			return nil
		}
		pos = end + 1
	}
}

// bucket makes the bucket that begins at pos, of at least depth bits, and
// returns its last hash.
func (l *loader) bucket(pos uint64, depth, most int) (end uint64, err error) {
	if err := l.m.ctx.Err(); err != nil {
		return 0, err
	}
	if l.m.claim.yielded.Load() {
		return 0, l.m.check()
	}
	for ; ; depth++ {
		end = pos | ^uint64(0)>>depth
		if err := l.fillWindow(end); err != nil {
			return 0, err
		}
		n := l.upTo(end)
		if n < len(l.items) || l.ended {
			if l.fits(l.items[:n]) {
				return end, l.emit(pos, depth, n)
			}
		}
		if depth == most {
			break
		}
	}
	// Keys that collide in all these bits.
	for !l.ended && l.upTo(end) == len(l.items) {
		if err := l.pull(len(l.items) + chunkOfWindow/pageSize); err != nil {
			return 0, err
		}
	}
	return end, l.emit(pos, depth, l.upTo(end))
}

// upTo returns how many entries of the window have hashes to end.
func (l *loader) upTo(end uint64) int {
	lo, hi := 0, len(l.items)
	for lo < hi {
		if mid := (lo + hi) / 2; l.items[mid].hash <= end {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// fillWindow reads entries until there is one behind end, or too many for a page.
func (l *loader) fillWindow(end uint64) error {
	for !l.ended && (len(l.items) == 0 || l.items[len(l.items)-1].hash <= end) && !l.overfull() {
		if err := l.pull(len(l.items) + 1); err != nil {
			return err
		}
	}
	return nil
}

// overfull says that the window is more than any bucket can hold.
func (l *loader) overfull() bool {
	if y := l.made.layout; y.kind != layoutSlotted {
		return len(l.items) > y.slots+1
	}
	return len(l.items) > maxGroups*ctrlGroup
}

// pull reads until the window has n entries.
func (l *loader) pull(n int) error {
	for len(l.items) < n && !l.ended {
		e, err := l.in.pull()
		if err != nil {
			return err
		}
		if e == nil {
			l.ended = true
			return nil
		}
		it := loadItem{hash: e.hash, off: len(l.data), keySize: len(e.key), valSize: len(e.val), how: e.how, real: len(e.val)}
		switch {
		case e.how == valScratch:
			it.real = e.valSize
		case e.how == valOld && l.made.layout.valSize >= 0:
			it.real = l.made.layout.valSize
		case e.how == valOld:
			it.real = anyFarSize
		}
		l.data = append(append(l.data, e.key...), e.val...)
		at := len(l.items)
		for i := at - 1; i >= 0 && l.items[i].hash == it.hash; i-- {
			if string(l.key(&l.items[i])) == string(e.key) {
				at = i // the later one counts
				break
			}
		}
		if at < len(l.items) {
			l.items[at] = it
		} else {
			l.items = append(l.items, it)
		}
	}
	return nil
}

func (l *loader) key(it *loadItem) []byte { return l.data[it.off : it.off+it.keySize] }
func (l *loader) stored(it *loadItem) []byte {
	return l.data[it.off+it.keySize : it.off+it.keySize+it.valSize]
}

// advance leaves the first n entries of the window behind.
func (l *loader) advance(n int) {
	rest := l.items[n:]
	if len(rest) == 0 {
		l.items, l.data = l.items[:0], l.data[:0]
		return
	}
	from := rest[0].off
	for i := range rest {
		from = min(from, rest[i].off)
	}
	l.data = l.data[:copy(l.data, l.data[from:])]
	l.items = l.items[:copy(l.items, rest)]
	for i := range l.items {
		l.items[i].off -= from
	}
}

// fits says whether a bucket holds the entries, and would not rather split; in
// lines, it also chooses their slots.
func (l *loader) fits(items []loadItem) bool {
	y := l.made.layout
	switch y.kind {
	case layoutControl:
		return len(items) <= y.limit
	case layoutSlotted:
		return l.fitting(items) == len(items)
	}
	if len(items) > y.slots+1 {
		return false
	}
	var used [lineCount]int
	l.slots = l.slots[:0]
	for i := range items {
		if keyWord(l.key(&items[i])) == 0 {
			l.slots = append(l.slots, uint16(y.slots))
			continue
		}
		line, distance := home(items[i].hash, lineCount), 0
		for used[line] == y.perGroup {
			if line++; line == lineCount {
				line = 0
			}
			if distance++; distance > maxDistance {
				return false
			}
		}
		l.slots = append(l.slots, uint16(line*y.perGroup+used[line]))
		used[line]++
	}
	return true
}

// fitting returns how many of the entries, from the first on, fit a slotted page.
func (l *loader) fitting(items []loadItem) int {
	size := 0
	for i := range items {
		more := l.made.layout.form(items[i].keySize, items[i].real).size
		if i == maxGroups*(ctrlGroup-1) || groupsWanted(i+1, size+more) == 0 {
			return i
		}
		size += more
	}
	return len(items)
}

// emit makes a bucket of the first n entries of the window.
func (l *loader) emit(prefix uint64, depth, n int) error {
	y := l.made.layout
	items := l.items[:n]
	l.leaves = append(l.leaves, leaf{prefix, depth, len(l.nos) + len(l.pages)})
	l.count += int64(n)
	var err error
	switch {
	case y.kind == layoutSlotted:
		err = l.emitSlotted(prefix, depth, items)
	case l.fits(items):
		b := l.newPage(prefix, depth, 0, 0)
		for i := range items {
			it := &items[i]
			slot := l.data[it.off : it.off+y.slot]
			switch {
			case y.kind == layoutControl:
				y.addFixed(b, it.hash, slot)
			case int(l.slots[i]) == y.slots:
				l.addZero(b, slot)
			default:
				copy(b[y.slotOff(int(l.slots[i])):], slot)
			}
		}
	default:
		l.emitChain(prefix, depth, items)
	}
	l.advance(n)
	if err == nil && len(l.pages) >= l.runPages {
		err = l.place()
	}
	return err
}

func (l *loader) addZero(b *bucket, slot []byte) {
	b[bucketFlagsOff] |= flagZero
	copy(b[zeroValueOff:zeroValueOff+zeroValueMax], slot[l.made.layout.keySize:])
}

// newPage returns the image of a page that continues the one before, if link
// is not 0.
func (l *loader) newPage(prefix uint64, depth, groups int, link uint32) *bucket {
	if link != 0 {
		l.pages[len(l.pages)-1].setNext(pageNo(len(l.pages) + 1))
		l.chains++
	}
	l.pages = append(l.pages, bucket{})
	b := &l.pages[len(l.pages)-1]
	l.made.layout.format(b, prefix, depth, groups)
	b.setLink(link)
	return b
}

// emitChain makes a chain of fixed slots, full but for the last page.
func (l *loader) emitChain(prefix uint64, depth int, items []loadItem) {
	y := l.made.layout
	head := len(l.pages)
	b := l.newPage(prefix, depth, 0, 0)
	for i := range items {
		slot := l.data[items[i].off : items[i].off+y.slot]
		if y.kind == layoutLines && keyWord(slot[:y.keySize]) == 0 {
			l.addZero(&l.pages[head], slot)
			continue
		}
		if !y.addFixed(b, items[i].hash, slot) {
			b = l.newPage(prefix, depth, 0, b.link()+1)
			y.addFixed(b, items[i].hash, slot)
		}
	}
}

// emitSlotted makes a slotted bucket of as many pages as it needs, and the
// records that it leads to.
func (l *loader) emitSlotted(prefix uint64, depth int, items []loadItem) error {
	y := l.made.layout
	for link := uint32(0); link == 0 || len(items) > 0; link++ {
		n := l.fitting(items)
		size := 0
		for i := range items[:n] {
			size += y.form(items[i].keySize, items[i].real).size
		}
		groups := firstGroups
		if n > 0 {
			groups = groupsWanted(n, size)
		}
		b := l.newPage(prefix, depth, groups, link)
		for i := range items[:n] {
			if err := l.addSlotted(b, &items[i]); err != nil {
				return err
			}
		}
		items = items[n:]
	}
	return nil
}

func (l *loader) addSlotted(b *bucket, it *loadItem) error {
	y, r := l.made.layout, &l.made.recs
	key := l.key(it)
	val, err := l.fetch(it)
	if err != nil {
		return err
	}
	f := y.form(len(key), it.real) // as its place was planned: a value that grows may be short
	var keyRef, valRef ref
	if f.keyFar || f.valFar {
		if err := l.relieve(); err != nil {
			return err
		}
		a := l.m.a
		a.gate.enter()
		defer a.gate.exit()
		if f.keyFar {
			if keyRef, err = r.put(key); err != nil {
				return err
			}
		}
		if f.valFar {
			if valRef, err = r.put(val); err != nil {
				return errors.Join(err, r.free(keyRef))
			}
		}
	}
	l.entry = y.appendEntry(l.entry[:0], f, key, val, keyRef, valRef)
	if !y.addSlotted(b, it.hash, l.entry) {
		return errors.Join(corrupt("value of %d bytes where one of %d was", len(val), it.real), r.free(keyRef), r.free(valRef))
	}
	return nil
}

// fetch returns the value of an entry.
func (l *loader) fetch(it *loadItem) (val []byte, err error) {
	switch it.how {
	case valScratch:
		off := binary.LittleEndian.Uint64(l.stored(it))
		l.val, err = l.s.scratch.read(l.val, int64(off), it.real)
		return l.val, err
	case valOld:
		ok := false
		l.val, ok, err = l.old.get(l.val[:0], it.hash, l.key(it))
		if err == nil && !ok {
			err = corrupt("entry of hash %#x has gone", it.hash)
		}
		return l.val, err
	}
	return l.stored(it), nil
}

// relieve writes new space out if it takes much memory. The gate is not entered.
func (l *loader) relieve() error {
	a := l.m.a
	if a.space.fresh.Load() > a.limit/8 && a.space.private.Load() > a.limit/2 {
		return a.spillFresh()
	}
	return nil
}

// place gives the images of pages their places in fresh space and writes
// them.
func (l *loader) place() (err error) {
	if err := l.relieve(); err != nil {
		return err
	}
	a := l.m.a
	a.gate.enter()
	defer a.gate.exit()
	before := len(l.nos)
	var runs []pageRun
	defer func() {
		if err != nil {
			l.nos = l.nos[:before]
			for _, r := range runs {
				err = errors.Join(err, a.alloc.free(r.p, r.n))
			}
		}
	}()
	for left := len(l.pages); left > 0; {
		// Whole units can be written early; powers of two leave no gaps.
		n := min(1<<(bits.Len(uint(left))-1), l.runPages)
		var p pageNo
		if n >= unitPages {
			p, err = a.alloc.allocFresh(uint32(n))
		} else {
			n = 1
			p, err = l.fresh.take(1)
		}
		if err != nil {
			return err
		}
		runs = append(runs, pageRun{p, uint32(n)})
		for i := range n {
			l.nos = append(l.nos, p+pageNo(i))
		}
		left -= n
	}
	for i := range l.pages {
		if next := l.pages[i].next(); next != 0 {
			l.pages[i].setNext(l.nos[before+int(next)-1])
		}
	}
	images := l.pages
	for _, r := range runs {
		if err := l.write(r, images[:r.n]); err != nil {
			return err
		}
		images = images[r.n:]
	}
	l.pages = l.pages[:0]
	return nil
}

// write gives a run of fresh pages what they shall hold.
func (l *loader) write(r pageRun, images []bucket) error {
	a := l.m.a
	if r.n%unitPages == 0 && !a.space.shared {
		b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(images))), len(images)*pageSize)
		l.wrote.include(int64(r.p)<<pageShift, int64(r.p)<<pageShift+int64(len(b)))
		return a.writeThrough(r.p, b)
	}
	for i := range images {
		no := r.p + pageNo(i)
		a.space.touch(no, allLines)
		*a.space.page(no) = page(images[i])
	}
	return nil
}

// link writes the directories of the batch, whose first segment is seg, and
// ends it.
func (l *loader) link(t *segmentTable, seg int, ends []int) (err error) {
	a, made := l.m.a, l.made
	a.gate.enter()
	defer a.gate.exit()
	depths := make([]uint32, len(ends))
	dirs := make([]uint64, len(ends))
	defer func() {
		if err != nil {
			for i, off := range dirs {
				if off != 0 {
					err = errors.Join(err, made.recs.release(off, 4<<depths[i]))
				}
			}
		}
	}()
	from := 0
	for i, end := range ends { // all that can fail
		for _, f := range l.leaves[from:end] {
			depths[i] = max(depths[i], uint32(f.depth)-uint32(t.bits))
		}
		if t.bits != 0 && depths[i] > 0 {
			off, err := made.recs.alloc(4 << depths[i])
			if err != nil {
				return err
			}
			dirs[i] = off
		}
		from = end
	}
	if err := l.fresh.giveBack(); err != nil {
		return err
	}
	from = 0
	for i, end := range ends {
		l.linkSegment(t, uint64(seg+i), depths[i], dirs[i], l.leaves[from:end])
		from = end
	}
	t.base += l.count
	made.overflow.Add(l.chains)
	made.flush()
	l.leaves, l.nos, l.count, l.chains = l.leaves[:0], l.nos[:0], 0, 0
	return nil
}

func (l *loader) linkSegment(t *segmentTable, i uint64, depth uint32, dir uint64, leaves []leaf) {
	made := l.made
	if len(leaves) == 0 {
		return
	}
	seg := &t.segs[i]
	switch {
	case t.bits == 0:
		made.setHeaderDepth(depth)
		seg.setDepth(depth)
	case depth > 0:
		made.a.space.mark(dir, 4<<depth)
		made.setRoot(leaves[0].prefix, dir|uint64(depth)<<rootDepthBit)
		all := made.a.space.view(dir, 4<<depth)
		seg.setDir((*uint32)(unsafe.Pointer(&all[0])), dir, depth)
	}
	for _, f := range leaves {
		made.setEntries(t, seg, f.prefix, uint32(f.depth)-uint32(t.bits), l.nos[f.page])
	}
}

// undo gives back what the batch has taken, but for small records, which go
// with the dict.
func (l *loader) undo() (err error) {
	made := l.made
	l.m.a.gate.enter()
	defer l.m.a.gate.exit()
	if made.layout.kind == layoutSlotted {
		for i := range l.pages {
			err = errors.Join(err, made.freeLargeOf(0, &l.pages[i]))
		}
		for _, no := range l.nos {
			err = errors.Join(err, made.freeLargeOf(no, (*bucket)(made.a.space.page(no))))
		}
	}
	for _, no := range l.nos {
		err = errors.Join(err, made.a.alloc.free(no, 1))
	}
	l.leaves, l.nos, l.pages = nil, nil, nil
	return errors.Join(err, l.fresh.giveBack())
}

// freshPages hands out runs of a few pages, cut from larger ones in fresh
// space, whose alignment leaves gaps.
type freshPages struct {
	al    *allocator
	cut   pageRun // the rest of a large run
	quads pageRun // likewise, for runs of 4 pages, aligned to that
}

func (f *freshPages) take(n uint32) (pageNo, error) {
	if n > unitPages {
		return f.al.allocFresh(n)
	}
	rest := &f.cut
	if n == 4 {
		rest = &f.quads
	}
	if rest.n < n {
		if err := f.giveBackRun(rest); err != nil {
			return 0, err
		}
		p, err := f.al.allocFresh(4 * unitPages)
		if err != nil {
			return 0, err
		}
		*rest = pageRun{p, 4 * unitPages}
	}
	p := rest.p
	rest.p, rest.n = rest.p+n, rest.n-n
	return p, nil
}

// giveBack frees what was not handed out.
func (f *freshPages) giveBack() error {
	return errors.Join(f.giveBackRun(&f.cut), f.giveBackRun(&f.quads))
}

func (f *freshPages) giveBackRun(r *pageRun) error {
	run := *r
	*r = pageRun{}
	if run.n == 0 {
		return nil
	}
	return f.al.free(run.p, run.n)
}
