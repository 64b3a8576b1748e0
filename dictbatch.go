package emd

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
	"time"
	"unsafe"
)

// A lookup in a large dict waits for memory most of its time, and Gets one
// after the other each wait anew. A batch takes the same steps for all its
// keys together: all hashes, all places in directories, all buckets, all
// records. What a step is going to read was asked for at the end of the one
// before, so the waits overlap.

const (
	// batchSize is how many lookups go together: more than a processor has
	// misses under way at once, few enough for the first-level cache to keep
	// what they have asked for.
	batchSize = 64

	// A batch that took longer than slowBatch, and slowLookup for each key,
	// has waited for a disk.
	slowBatch  = 20 * time.Microsecond
	slowLookup = 3 * time.Microsecond
)

// GetMany looks many keys up at once: it sets vals[i] to the value of keys[i],
// and ok[i] to whether there is one, and returns how many have been found.
// vals[i] is zero where there is none. Slices of unequal length panic.
//
// It is faster than as many calls of Get, two or three times if the dict is larger than
// the processor's caches: it waits for the memory of 64 keys together, and
// for their disk reads if the data is not in memory. Each value is one that
// its key had during the call; changes meanwhile may be seen for some keys and not
// for others. The first error ends it: vals and ok then mean nothing.
func (d *EMDict[K, V]) GetMany(keys []K, vals []V, ok []bool) (found int, err error) {
	if err := d.d.a.check(&d.d.handle); err != nil {
		return 0, d.error("getmany", err)
	}
	if len(keys) != len(vals) || len(keys) != len(ok) {
		panic(indexError{fmt.Sprintf("GetMany of %d keys into %d values and %d bools", len(keys), len(vals), len(ok))})
	}
	if d.words {
		found, err = d.d.getWords(wordsOf(keys), wordsOf(vals), ok)
	} else {
		found, err = d.getMany(keys, vals, ok)
	}
	return found, d.error("getmany", err)
}

// wordsOf returns the memory of values of 8 raw bytes.
func wordsOf[T any](s []T) [][8]byte {
	return unsafe.Slice((*[8]byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s))
}

func (d *EMDict[K, V]) getMany(keys []K, vals []V, ok []bool) (found int, err error) {
	b := d.buffers()
	defer d.pool.Put(b)
	var encoded [batchSize][]byte
	var hashes [batchSize]uint64
	for len(keys) > 0 && err == nil {
		n := min(batchSize, len(keys))
		b.key = b.key[:0]
		for i := range n {
			if encoded[i], err = d.appendKey(b, &keys[i]); err != nil {
				return found, err
			}
			hashes[i] = d.d.hash(encoded[i])
		}
		start := time.Now()
		missing := d.d.prefetchBatch(hashes[:n])
		for i := 0; i < n && err == nil; i++ {
			ok[i] = false
			clear(vals[i : i+1])
			if err = d.getEncoded(b, hashes[i], encoded[i], &vals[i], &ok[i]); ok[i] {
				found++
			}
		}
		d.d.noteBatch(n, missing, start)
		keys, vals, ok = keys[n:], vals[n:], ok[n:]
	}
	return found, err
}

// Partition returns a loop over the i-th of n parts of the dict, like
// [EMDict.All]: together the parts 0 to n-1 have each entry once. So n
// goroutines can share a scan. The parts are ranges of hashes, alike in size
// unless they are very few entries each. It panics unless 0 <= i < n.
func (d *EMDict[K, V]) Partition(i, n int) iter.Seq2[K, V] {
	if (i < 0 || i >= n) && d.d.a.check(&d.d.handle) == nil {
		panic(indexError{fmt.Sprintf("partition %d of %d", i, n)})
	}
	first, last := partition(i, n)
	return d.loop("partition", first, last)
}

// partition returns the first and the last hash of part i of n. For a bad i
// they mean nothing.
func partition(i, n int) (first, last uint64) {
	start := func(i uint64) uint64 { // i << 64 / n
		q, _ := bits.Div64(i, 0, uint64(n))
		return q
	}
	if i < 0 || i >= n {
		return 0, ^uint64(0)
	}
	first, last = start(uint64(i)), ^uint64(0)
	if i+1 < n {
		last = start(uint64(i)+1) - 1
	}
	return first, last
}

// A lookup is one of a batch of words, between its steps.
type lookup struct {
	hash  uint64
	seg   *segment
	seen  uint64 // the segment's version when the lookup began
	b     *bucket
	no    pageNo
	ended bool // it has found what there is to find, if nothing has changed
}

// getWords is getWord for many keys.
func (d *dict) getWords(keys, vals [][8]byte, ok []bool) (found int, err error) {
	for len(keys) > 0 && err == nil {
		n := min(batchSize, len(keys))
		found1 := 0
		start := time.Now()
		found1, err = d.getWordBatch(keys[:n], vals[:n], ok[:n], start)
		found += found1
		keys, vals, ok = keys[n:], vals[n:], ok[n:]
	}
	return found, err
}

func (d *dict) getWordBatch(keys, vals [][8]byte, ok []bool, start time.Time) (found int, err error) {
	le := binary.LittleEndian
	var looks [batchSize]lookup
	missing := 0
	if optimistic {
		// Directories, as one loop of independent loads: the processor
		// overlaps these by itself.
		t := d.table.Load()
		for i := range keys {
			l := &looks[i]
			l.hash = d.hashWord(le.Uint64(keys[i][:]))
			l.seg = t.segment(l.hash)
			l.seen = l.seg.load()
			if no, same := l.seg.bucketAt(l.hash, l.seen); same {
				l.no = no
			}
		}
		// Buckets.
		if !d.warm.Load() {
			var pages [batchSize]pageNo
			for i := range keys {
				pages[i] = looks[i].no
			}
			missing = d.space.fetch(pages[:len(keys)])
		}
		var lines [batchSize]unsafe.Pointer
		for i := range keys {
			l := &looks[i]
			if l.no != 0 {
				l.b = (*bucket)(d.space.near(l.no))
			}
			if l.b != nil {
				lines[i] = unsafe.Add(unsafe.Pointer(l.b), homeOff(l.hash))
			}
		}
		prefetchEach(&lines[0], len(keys))
		for i := range keys {
			l := &looks[i]
			key := le.Uint64(keys[i][:])
			if l.b == nil || key == 0 {
				continue
			}
			line, at, ended := l.b.findWord(l.hash, key)
			val := uint64(0)
			if at != 0 {
				_, val = l.b.wordLine(line).at(at)
			}
			le.PutUint64(vals[i][:], val)
			ok[i], l.ended = at != 0, ended
		}
		readFence()
	}
	for i := range keys {
		if l := &looks[i]; !l.ended || l.seg.load() != l.seen {
			val := uint64(0)
			if val, ok[i], err = d.getWord(le.Uint64(keys[i][:])); err != nil {
				return found, err
			}
			le.PutUint64(vals[i][:], val)
		}
		if ok[i] {
			found++
		}
	}
	d.noteBatch(len(keys), missing, start)
	return found, nil
}

// noteBatch learns from a batch of n whether the data is in memory: only then
// are batches spared the system calls that ask whether it is.
func (d *dict) noteBatch(n, missing int, start time.Time) {
	slow := time.Since(start) > slowBatch+time.Duration(n)*slowLookup
	if warm := !slow && missing == 0; warm != d.warm.Load() {
		d.warm.Store(warm)
	}
}

// fetch reads those of the given pages that are not in memory, all together,
// and returns of how many that was known. 0 is no page.
func (s *space) fetch(pages []pageNo) (missing int) {
	var wanted [batchSize]bool
	for i, p := range pages {
		if p == 0 {
			continue
		}
		if is, known := s.inMemory(uint64(p)<<pageShift, pageSize); !is {
			s.prefetch(p)
			wanted[i] = true
			if known {
				missing++
			}
		}
	}
	for i, p := range pages {
		if wanted[i] {
			s.await(uint64(p)<<pageShift, pageSize) // here, and not in a page fault
		}
	}
	return missing
}

// prefetchBatch asks for all memory that lookups of these hashes, a batch at
// most, are going to read, and returns how much of it was not in memory, in
// pages. It validates nothing: where something changes meanwhile, it asks for
// other memory of the file.
func (d *dict) prefetchBatch(hashes []uint64) (missing int) {
	if !optimistic {
		return 0
	}
	l := d.layout
	t := d.table.Load()
	var pages [batchSize]pageNo
	for i, h := range hashes {
		seg := t.segment(h)
		if no, same := seg.bucketAt(h, seg.load()); same {
			pages[i] = no
		}
	}
	cold := !d.warm.Load()
	if cold {
		missing = d.space.fetch(pages[:len(hashes)])
	}
	var buckets [batchSize]*bucket
	var ahead lineList
	for i, h := range hashes {
		if pages[i] == 0 {
			continue
		}
		b := (*bucket)(d.space.near(pages[i]))
		buckets[i] = b
		switch {
		case b == nil:
		case l.kind == layoutLines:
			ahead.add(unsafe.Add(unsafe.Pointer(b), homeOff(h)), lineSize)
		case l.kind == layoutControl:
			ahead.add(unsafe.Add(unsafe.Pointer(b), bucketHeader+home(h, l.groups)*ctrlGroup), ctrlGroup)
		default:
			ahead.add(unsafe.Pointer(b), bucketHeader)
		}
	}
	ahead.ask()
	if l.kind == layoutLines {
		return missing
	}
	if l.kind == layoutSlotted {
		for i, b := range buckets[:len(hashes)] {
			if b != nil {
				ahead.add(unsafe.Add(unsafe.Pointer(b), bucketHeader+home(hashes[i], l.groupsOf(b))*slotGroup), slotGroup)
			}
		}
		ahead.ask()
	}
	var entries [batchSize]int // of slotted buckets; 0: none
	for i, b := range buckets[:len(hashes)] {
		if b == nil {
			continue
		}
		g := home(hashes[i], l.groupsOf(b))
		m := matches(l.ctrlWord(b, g), fingerprint(hashes[i]))
		slot := g*ctrlGroup + bits.TrailingZeros64(m)/8
		switch {
		case m == 0 || slot >= l.slotsOf(b): // it may lie in the next group
		case l.kind == layoutControl:
			ahead.add(unsafe.Add(unsafe.Pointer(b), l.slotOff(slot)), l.slot)
		default:
			if off := entryOff(b, slot); off >= bucketHeader && off < pageSize {
				entries[i] = off
				ahead.add(unsafe.Add(unsafe.Pointer(b), off), min(maxSlotted, pageSize-off)/4)
			}
		}
	}
	ahead.ask()
	if l.kind == layoutSlotted {
		missing += d.prefetchRecords(&ahead, buckets[:len(hashes)], entries[:len(hashes)], cold)
	}
	return missing
}

// prefetchRecords is the last step of prefetchBatch: what the entries at the
// given places have outside their buckets.
func (d *dict) prefetchRecords(ahead *lineList, buckets []*bucket, entries []int, cold bool) (missing int) {
	var pages [batchSize]pageNo
	var refs [batchSize]ref
	any := false
	for i, b := range buckets {
		if entries[i] == 0 {
			continue
		}
		e, ok := d.layout.entry(b, entries[i])
		switch {
		case !ok:
		case e.valFar:
			refs[i] = b.refAt(e.val)
		case e.keyFar:
			refs[i] = b.refAt(e.key)
		}
		if off := refs[i].off(); off > refEmpty.off() && off>>pageShift < maxPages {
			pages[i] = pageNo(off >> pageShift)
			any = true
		}
	}
	if !any {
		return 0
	}
	if cold {
		missing = d.space.fetch(pages[:len(buckets)])
	}
	for i, x := range refs[:len(buckets)] {
		if pages[i] == 0 {
			continue
		}
		n := x.len()
		if x.grows() {
			n = lineSize
		}
		if b := d.space.view(x.off(), min(n, maxAhead*lineSize)); len(b) > 0 {
			ahead.add(unsafe.Pointer(unsafe.SliceData(b)), len(b))
		}
	}
	ahead.ask()
	return missing
}

// maxAhead is how many lines of one thing are asked for: what follows them, the
// processor foresees.
const maxAhead = 4

// A lineList gathers cache lines to ask for.
type lineList struct {
	at [maxAhead * batchSize]unsafe.Pointer
	n  int
}

// add adds the lines of the n bytes at p, maxAhead at most.
func (l *lineList) add(p unsafe.Pointer, n int) {
	first := int(uintptr(p) & (lineSize - 1))
	for off := 0; off < first+n && l.n < len(l.at) && off < maxAhead*lineSize; off += lineSize {
		l.at[l.n] = unsafe.Add(p, off-first)
		l.n++
	}
}

func (l *lineList) ask() {
	prefetchEach(&l.at[0], l.n)
	l.n = 0
}
