package emd

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"slices"
	"unsafe"
)

// SortFunc sorts the list as [slices.SortStableFunc] does: equal elements stay
// in their order. It takes a quarter of Options.DirtyLimit of memory, 256 MiB at
// most; of a list that needs more, sorted parts go to a scratch file beside the
// arena's and are merged. Then the list is written anew, so readers see it before
// or after, and an error or a panic of cmp changes nothing. Other changes of the
// list wait. cmp must not call methods of it.
func (e *EMList[T]) SortFunc(cmp func(a, b T) int) error {
	return e.SortContext(context.Background(), cmp, nil)
}

// SortContext is [EMList.SortFunc] that ends with ctx's error when ctx does.
// progress, if it is not nil, is told how much of the work is done.
func (e *EMList[T]) SortContext(ctx context.Context, cmp func(a, b T) int, progress func(done, total int64)) error {
	return e.l.result("sort", e.sort(&sorting[T]{e: e, ctx: ctx, cmp: cmp, progress: progress}))
}

// SortKey is [EMList.SortContext] in the order of a number that key returns for
// each element, always the same for the same. It takes a fraction of the time: numbers
// are sorted digit by digit, without comparing. Of a signed v the number is
// uint64(v) ^ 1<<63.
func (e *EMList[T]) SortKey(ctx context.Context, key func(v T) uint64, progress func(done, total int64)) error {
	return e.l.result("sort", e.sort(&sorting[T]{e: e, ctx: ctx, key: key, progress: progress}))
}

func (e *EMList[T]) sort(s *sorting[T]) (err error) {
	if s.progress == nil {
		s.progress = func(int64, int64) {}
	}
	s.h = e.l.hold()
	defer e.l.release()
	if err := e.l.a.writable(); err != nil {
		return err
	}
	n, err := e.l.count()
	if err != nil || n < 2 || e.l.width == 0 {
		return err
	}
	defer func() {
		if s.scratch != nil {
			err = errors.Join(err, s.scratch.close())
		}
	}()
	return s.run(n)
}

// A sorting sorts a list that the caller holds, without a lock while cmp or key
// runs. It moves slots; records stay where they are.
type sorting[T any] struct {
	e           *EMList[T]
	ctx         context.Context
	cmp         func(a, b T) int
	key         func(v T) uint64 // or nil: by cmp
	progress    func(done, total int64)
	done, total int64 // elements sorted, and merged
	h           holding
	memory      int
	scratch     *scratchFile
	heads       []head[T] // of the parts that are being merged
	buf         []byte    // for records
}

const maxListSortMemory = 256 << 20

// run sorts a list of n elements.
func (s *sorting[T]) run(n int) error {
	s.memory = int(min(max(s.e.l.a.limit/4, minSortMemory), maxListSortMemory))
	s.total = 2 * int64(n)
	var parts []part
	var slots []byte
	for i := 0; i < n; {
		size, sorted, err := s.sortPart(i, n)
		if err != nil {
			return err
		}
		if size == n { // all of it fits into memory
			slots = sorted
			break
		}
		p, err := s.write(sorted)
		if err != nil {
			return err
		}
		parts = append(parts, p)
		i += size
	}
	for len(parts) > 1 {
		merged := parts[:0:0]
		for some := range slices.Chunk(parts, s.fanIn()) {
			p, err := s.merge(some)
			if err != nil {
				return err
			}
			merged = append(merged, p)
		}
		parts = merged
	}
	err := s.store(n, func(dst []byte, at int64) error {
		if len(parts) == 0 {
			copy(dst, slots[at:])
			return s.ctx.Err()
		}
		_, err := s.scratch.read(dst, parts[0].off+at, len(dst))
		return errors.Join(err, s.ctx.Err())
	})
	if err == nil {
		s.progress(s.total, s.total)
	}
	return err
}

// A part is sorted slots in the scratch file.
type part struct{ off, end int64 }

const (
	minFanIn    = 4
	maxFanIn    = 256
	fanInMemory = 64 << 10 // bytes of a part, if there are more than minFanIn
)

// fanIn is how many parts are merged at once.
func (s *sorting[T]) fanIn() int { return max(minFanIn, min(maxFanIn, s.memory/fanInMemory)) }

// step notes that n more elements are sorted or merged.
func (s *sorting[T]) step(n int) error {
	s.done = min(s.done+int64(n), s.total)
	s.progress(s.done, s.total)
	return s.ctx.Err()
}

// sortPart sorts elements from i on, as many as there is memory for, and returns
// their slots.
func (s *sorting[T]) sortPart(i, end int) (n int, slots []byte, err error) {
	if s.e.raw {
		run := make([]T, max(1, min(end-i, s.memory/2/int(s.e.l.width)))) // sorting takes as much again
		if n, err = s.e.copyTo(run, i); err == nil && n < len(run) {
			err = s.e.l.lostTo(s.h)
		}
		if err == nil {
			err = sortItems(run, s.cmp, s.key, s.step)
		}
		return n, bytesOf(run), err
	}
	keyed, slots, err := s.readKeyed(i, end)
	if err != nil {
		return 0, nil, err
	}
	byValue := func(a, b keyedSlot[T]) int { return s.cmp(a.value, b.value) }
	var byKey func(k keyedSlot[T]) uint64
	if s.key != nil {
		byKey = func(k keyedSlot[T]) uint64 { return s.key(k.value) }
	}
	if err := sortItems(keyed, byValue, byKey, s.step); err != nil {
		return 0, nil, err
	}
	width := int(s.e.l.width)
	sorted := make([]byte, 0, len(slots))
	for _, k := range keyed {
		sorted = append(sorted, slots[k.slot*width:][:width]...)
	}
	return len(keyed), sorted, nil
}

// A keyedSlot is an element that was decoded, and where its slot is.
type keyedSlot[T any] struct {
	value T
	slot  int
}

// readKeyed reads slots from i on with their elements.
func (s *sorting[T]) readKeyed(i, end int) (keyed []keyedSlot[T], slots []byte, err error) {
	width := int(s.e.l.width)
	some := make([]byte, width<<s.e.l.grain)
	// Two slots, the pair and as much again, and what a decoded value holds, at a guess.
	each := 2*width + 2*int(unsafe.Sizeof(keyedSlot[T]{}))
	for taken := 0; i < end && (taken == 0 || taken < s.memory); {
		n, _, err := s.e.l.run(some[:width*min(len(some)/width, end-i)], i, false)
		if err != nil {
			return nil, nil, err
		}
		if n == 0 {
			return nil, nil, s.e.l.lostTo(s.h)
		}
		for k := range n {
			v, size, err := s.decode(i+k, some[k*width:][:width])
			if err != nil {
				return nil, nil, err
			}
			keyed = append(keyed, keyedSlot[T]{v, len(keyed)})
			taken += each + 2*size
		}
		slots = append(slots, some[:n*width]...)
		i += n
	}
	return keyed, slots, nil
}

// decode returns the element in a slot, and the size of its record.
func (s *sorting[T]) decode(i int, slot []byte) (v T, size int, err error) {
	el := element{b: slot}
	if s.e.l.refs {
		x := ref(binary.LittleEndian.Uint64(slot))
		if x == 0 {
			return v, 0, nil
		}
		if s.buf, err = s.e.l.recs.get(s.buf[:0], x); err != nil {
			return v, 0, err
		}
		el.b, size = s.buf, len(s.buf)
	}
	v, err = s.e.decode(i, el)
	return v, size, err
}

// write puts slots into the scratch file.
func (s *sorting[T]) write(slots []byte) (part, error) {
	if s.scratch == nil {
		var err error
		if s.scratch, err = s.e.l.a.openScratch(); err != nil {
			return part{}, err
		}
	}
	from, err := s.scratch.append(slots)
	return part{from, s.scratch.size}, err
}

// merge makes one part of several.
func (s *sorting[T]) merge(parts []part) (part, error) {
	if len(parts) == 1 {
		return parts[0], nil
	}
	width := int(s.e.l.width)
	block := max(1, s.memory/(len(parts)+1)/width) * width
	s.heads = make([]head[T], len(parts))
	first := make([]contender, len(parts))
	for age, p := range parts {
		s.heads[age] = head[T]{part: p, buf: make([]byte, 0, min(int64(block), p.end-p.off))}
		var err error
		if first[age], err = s.next(age); err != nil {
			return part{}, err
		}
	}
	merged := part{off: s.scratch.size}
	out := make([]byte, 0, block)
	losers := s.play(first)
	for losers[0].age < len(parts) {
		age := losers[0].age
		out = out[:len(out)+width]
		if storeSlot(out[len(out)-width:], s.heads[age].slot); len(out)+width > cap(out) {
			if err := s.flush(&out); err != nil {
				return part{}, err
			}
		}
		c, err := s.next(age)
		if err != nil {
			return part{}, err
		}
		s.replay(losers, age, c)
	}
	err := s.flush(&out)
	merged.end = s.scratch.size
	return merged, err
}

// A contender stands for the next element of a part that is being merged. Of two
// the one with the lower key comes first, of equal ones the older, that
// is the one of the earlier part.
type contender struct {
	key uint64 // of the element, if that is what is sorted by
	age int    // number of the part; as many higher as there are parts at its end, with the highest key
}

// play finds the first of the contenders in a tree of losers (Knuth, The Art of
// Computer Programming 3, 5.4.1): node i > 0 holds the one that comes later of
// those who met there, nodes 2i and 2i+1 being below it and contender i at the leaf
// n+i; node 0 holds the first of all.
func (s *sorting[T]) play(all []contender) (losers []contender) {
	n := len(all)
	losers, winners := make([]contender, n), make([]contender, 2*n)
	copy(winners[n:], all)
	for i := n - 1; i > 0; i-- {
		winners[i], losers[i] = winners[2*i], winners[2*i+1]
		if s.before(losers[i], winners[i]) != 0 {
			winners[i], losers[i] = losers[i], winners[i]
		}
	}
	losers[0] = winners[1]
	return losers
}

// replay is play after the first, of part age, has moved on to c. It has no
// branches that depend on what comes first: half of them would be foreseen wrongly.
func (s *sorting[T]) replay(losers []contender, age int, c contender) {
	for i := (len(losers) + age) / 2; i > 0; i /= 2 {
		other := losers[i]
		swap := -s.before(other, c)
		key, age := (other.key^c.key)&swap, (other.age^c.age)&int(swap)
		losers[i] = contender{other.key ^ key, other.age ^ age}
		c = contender{c.key ^ key, c.age ^ age}
	}
	losers[0] = c
}

// before returns 1 if a comes before b, else 0.
func (s *sorting[T]) before(a, b contender) uint64 {
	if s.key == nil && a.key == b.key && a.age < len(s.heads) {
		if c := s.cmp(s.heads[a.age].value, s.heads[b.age].value); c != 0 {
			return uint64(oneIf(c < 0))
		}
	}
	_, less := bits.Sub64(uint64(a.age), uint64(b.age), 0)
	_, less = bits.Sub64(a.key, b.key, less)
	return less
}

func (s *sorting[T]) flush(out *[]byte) error {
	_, err := s.scratch.append(*out)
	if err == nil {
		err = s.step(len(*out) / int(s.e.l.width))
	}
	*out = (*out)[:0]
	return err
}

// A head is the next element of a part that is being merged.
type head[T any] struct {
	part  part // what is not in buf yet
	buf   []byte
	pos   int
	slot  []byte
	value T
}

// next moves on in a part.
func (s *sorting[T]) next(age int) (c contender, err error) {
	h := &s.heads[age]
	if h.pos == len(h.buf) {
		if h.part.off == h.part.end {
			return contender{math.MaxUint64, age + len(s.heads)}, nil
		}
		size := min(int64(cap(h.buf)), h.part.end-h.part.off)
		if h.buf, err = s.scratch.read(h.buf, h.part.off, int(size)); err != nil {
			return c, err
		}
		h.part.off += int64(len(h.buf))
		h.pos = 0
	}
	width := int(s.e.l.width)
	h.slot = h.buf[h.pos : h.pos+width]
	h.pos += width
	if s.e.raw {
		storeSlot(memoryOf(&h.value), h.slot)
	} else if h.value, _, err = s.decode(0, h.slot); err != nil {
		return c, err
	}
	c.age = age
	if s.key != nil {
		c.key = s.key(h.value)
	}
	return c, nil
}

// store makes the slots that read returns those of the list. It locks.
func (s *sorting[T]) store(n int, read func(dst []byte, at int64) error) error {
	l := s.e.l
	err := l.enterFor(true, func() (int64, error) { return l.rewriteCost(), l.overtaken(s.h) })
	if err != nil {
		return err
	}
	defer l.leave()
	first := l.first.Load()
	w, err := l.rewrite(first, first+uint64(n), func(w *rewriting, dst, n uint64) error {
		m, err := w.slots(dst, n)
		if err != nil {
			return err
		}
		return read(m, int64((dst-first)*l.width))
	})
	if err != nil {
		return err
	}
	return l.reshape(w.adopt)
}

// sortItems sorts by key, or by cmp if that is nil. It takes as much memory again.
func sortItems[S any](items []S, cmp func(a, b S) int, key func(v S) uint64, step func(n int) error) error {
	if key != nil {
		return radixSort(items, make([]S, len(items)), key, step)
	}
	return mergeSort(items, make([]S, len(items)/2), cmp, step)
}

// radixSort sorts items by their keys, equal ones in their order, with room for
// as many (Knuth, The Art of Computer Programming 3, 5.2.5). More than a cache
// holds are distributed by the highest bits in which keys differ, and then each
// part is sorted by itself.
func radixSort[S any](items, room []S, key func(v S) uint64, step func(n int) error) error {
	first, differing := key(items[0]), uint64(0)
	for _, v := range items {
		differing |= key(v) ^ first
	}
	if len(items)*int(unsafe.Sizeof(items[0])) <= radixCache || differing == 0 {
		if err := sortDigits(items, room, key, differing); err != nil {
			return err
		}
		return step(len(items))
	}
	var ends [1 << partBits]uint64
	shift := max(0, bits.Len64(differing)-partBits)
	for _, v := range items {
		ends[key(v)>>shift%(1<<partBits)]++
	}
	if err := distribute(items, room, key, shift, ends[:]); err != nil {
		return err
	}
	copy(items, room)
	start := uint64(0)
	for _, end := range ends {
		if end > start {
			if err := radixSort(items[start:end], room[start:end], key, step); err != nil {
				return err
			}
		}
		start = end
	}
	return nil
}

const (
	radixCache = 1 << 20 // bytes of items; as much again is room
	partBits   = 11      // as many parts as caches have lines for
	digitBits  = 8
)

// sortDigits is radixSort from the lowest digit on, of keys that differ in some
// bits only.
func sortDigits[S any](items, room []S, key func(v S) uint64, differing uint64) error {
	var shifts [64 / digitBits]int
	digits := 0
	for ; differing != 0; digits++ {
		shift := min(bits.TrailingZeros64(differing), 64-digitBits)
		differing &^= (1<<digitBits - 1) << shift
		shifts[digits] = shift
	}
	var ends [len(shifts)][1 << digitBits]uint64
	for _, v := range items {
		k := key(v)
		for i, shift := range shifts[:digits] {
			ends[i][k>>shift%(1<<digitBits)]++
		}
	}
	from, to := items, room
	for i, shift := range shifts[:digits] {
		if err := distribute(from, to, key, shift, ends[i][:]); err != nil {
			return err
		}
		from, to = to, from
	}
	if digits%2 != 0 {
		copy(items, from)
	}
	return nil
}

// distribute copies items to the order of a digit of their keys: that many bits
// from shift on as number[d] says how many items have which d. It makes these
// numbers the ends of where they come to be.
func distribute[S any](from, to []S, key func(v S) uint64, shift int, number []uint64) error {
	var starts [1 << partBits]uint64
	next, sum := starts[:len(number)], uint64(0)
	for d, n := range number {
		next[d] = sum
		sum += n
		number[d] = sum
	}
	mask := uint64(len(number) - 1)
	for _, v := range from {
		at := &next[key(v)>>shift&mask]
		if *at >= uint64(len(to)) {
			return errKeyDiffers
		}
		to[*at] = v
		*at++
	}
	if !slices.Equal(next, number) { // something would be there twice, and something lost
		return errKeyDiffers
	}
	return nil
}

var errKeyDiffers = errors.New("the key function returned different numbers for the same element")

// mergeSort sorts items, equal ones in their order, with room for half of them.
// step is told about parts of them that are sorted.
func mergeSort[S any](items, room []S, cmp func(a, b S) int, step func(n int) error) error {
	const stepLen = 1 << 16
	if len(items) <= stepLen {
		mergeSortShort(items, room, cmp)
		return step(len(items))
	}
	mid := len(items) / 2
	if err := mergeSort(items[:mid], room, cmp, step); err != nil {
		return err
	}
	if err := mergeSort(items[mid:], room, cmp, step); err != nil {
		return err
	}
	mergeHalves(items, mid, room, cmp)
	return nil
}

func mergeSortShort[S any](items, room []S, cmp func(a, b S) int) {
	const insertionLen = 12
	if len(items) > insertionLen {
		mid := len(items) / 2
		mergeSortShort(items[:mid], room, cmp)
		mergeSortShort(items[mid:], room, cmp)
		mergeHalves(items, mid, room, cmp)
		return
	}
	for i := 1; i < len(items); i++ {
		v, k := items[i], i
		for ; k > 0 && cmp(v, items[k-1]) < 0; k-- {
			items[k] = items[k-1]
		}
		items[k] = v
	}
}

// mergeHalves sorts items, whose halves are sorted. room holds half of them.
func mergeHalves[S any](items []S, mid int, room []S, cmp func(a, b S) int) {
	if cmp(items[mid-1], items[mid]) <= 0 {
		return
	}
	left, right := room[:copy(room, items[:mid])], items[mid:]
	out := items[:0]
	for len(left) > 0 && len(right) > 0 {
		if cmp(right[0], left[0]) < 0 {
			out = append(out, right[0])
			right = right[1:]
		} else {
			out = append(out, left[0])
			left = left[1:]
		}
	}
	copy(items[len(out):], left) // what remains of right is in its place
}

// BinarySearchFunc searches a sorted list. cmp returns a negative number for
// elements that come before what is sought, a positive one for those behind, and
// 0 for a match. i is the first match, or where one would be inserted.
func (e *EMList[T]) BinarySearchFunc(cmp func(v T) int) (i int, found bool, err error) {
	end, err := e.l.count()
	for i < end && err == nil {
		mid := int(uint(i+end) / 2)
		el, failed := e.l.lookup(nil, mid)
		if failed != nil || !el.ok { // or the list is shorter now
			end, err = mid, failed
			continue
		}
		v, failed := e.decode(mid, el)
		if err = failed; err != nil {
			break
		}
		if c := cmp(v); c < 0 {
			i = mid + 1
		} else {
			end, found = mid, c == 0
		}
	}
	return i, found && err == nil, e.l.result("binarysearch", err)
}
