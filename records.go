package emd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// Records are the variable-size things of one container: long keys and
// values, elements of lists, directories. Up to 3 KiB they lie in slabs (Bonwick,
// The Slab Allocator, 1994): a page, or four, cut into slots of one size
// class. Larger ones take runs of pages; those that no run can hold are cut
// into pieces, which an index record names.
//
// A slab begins with a line:
//
//	0       1       2       4      8      12     16     20     24     32         64
//	+-------+-------+-------+------+------+------+------+------+------+----------+------
//	| class | pages | magic | used | next | prev | next | prev | zero | slots    | slot...
//	+-------+-------+-------+------+------+------+------+------+------+----------+------
//	                               | in partial  | in all      |      | bitmap   |
//
// partial links the slabs of a class with free slots, all links all slabs of
// the container; both by page number, 0 ends them. The heads of the lists are
// the container's state, kept in its header page:
//
//	0              104   108
//	+--------------+-----+-------+
//	| partial[26]  | all | large |
//	+--------------+-----+-------+
//
// large counts the records that are not in slabs. The index of a record in
// pieces: its length u64, the pages of a piece u32, the number of pieces u32,
// then the page number of each.
const (
	slabClassOff    = 0
	slabPagesOff    = slabClassOff + 1
	slabMagicOff    = slabPagesOff + 1
	slabUsedOff     = slabMagicOff + 2
	slabPartialOff  = slabUsedOff + 4
	slabAllOff      = slabPartialOff + 8
	slabBitmapOff   = 32
	slabHeader      = 64
	slabMagic       = 0x6c53
	slabBitmapWords = (slabHeader - slabBitmapOff) / 8

	recordsPartialOff = 0
	recordsAllOff     = recordsPartialOff + 4*slabClasses
	recordsLargeOff   = recordsAllOff + 4
	recordsSize       = recordsLargeOff + 4

	indexLenOff   = 0
	indexSizeOff  = indexLenOff + 8
	indexCountOff = indexSizeOff + 4
	indexHeader   = indexCountOff + 4

	slabClasses = 26
	smallSlab   = 512     // largest size class in slabs of one page
	maxSlab     = 3 << 10 // largest size class
	maxPiece    = 4 << 20 // bytes
	maxRecord   = maxValueSize
)

const _ = uint(-((pageSize - slabHeader) / 16 / (64*slabBitmapWords + 1))) // the bitmap has a bit for each slot
const _ = uint(-(recordsSize % 8))

// slabSizes are the size classes: steps of a quarter of a power of two at
// most, so that at most a fifth of a slot is wasted from 80 bytes on.
var slabSizes = [slabClasses]int{
	16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512,
	640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072,
}

// classOf[(n+15)/16] is the size class of n bytes.
var classOf = func() (c [maxSlab/16 + 1]uint8) {
	class := 0
	for i := range c {
		if i*16 > slabSizes[class] {
			class++
		}
		c[i] = uint8(class)
	}
	return c
}()

// A ref leads to a record: its place / 16 in the upper 40 bits, its length in
// the lower 24. The length refPieces means that the place holds an index of
// pieces, the length 0 that it holds a growing record, see dictappend.go. 0 is
// no record; an empty record is refEmpty.
type ref uint64

const (
	refLenBits = 24
	refPieces  = 1<<refLenBits - 1
	refEmpty   = ref(1 << refLenBits) // a place inside a header slot
)

func makeRef(off uint64, n int) ref { return ref(off/16<<refLenBits | uint64(n)) }
func (x ref) off() uint64           { return uint64(x) >> refLenBits * 16 }
func (x ref) len() int              { return int(x & refPieces) }
func (x ref) inPieces() bool        { return x&refPieces == refPieces }

type records struct {
	a   *Arena
	mu  mutex
	off uint64 // of the state, guarded by the container's writer lock

	// fresh, if not nil, is where pages come from, for a container that is
	// written in one go: pages of free space would go through the log.
	fresh *freshPages
}

// init says where the state of the container lies. Zeros are an empty state.
func (r *records) init(a *Arena, off uint64) { r.a, r.off = a, off }

func (r *records) head(off int) uint32 {
	return binary.LittleEndian.Uint32(r.a.space.view(r.off, recordsSize)[off:])
}

func (r *records) setHead(off int, v uint32) {
	r.a.space.mark(r.off+uint64(off), 4)
	binary.LittleEndian.PutUint32(r.a.space.view(r.off, recordsSize)[off:], v)
}

// put stores data as a new record.
func (r *records) put(data []byte) (ref, error) {
	n := len(data)
	if n == 0 {
		return refEmpty, nil
	}
	if r.needsPieces(n) {
		return r.putPieces(data)
	}
	off, err := r.space(n)
	if err != nil {
		return 0, err
	}
	r.write(off, data)
	return makeRef(off, n), nil
}

func (r *records) write(off uint64, data []byte) {
	r.a.space.mark(off, len(data))
	copy(r.a.space.view(off, len(data)), data)
}

// pages returns a run of n pages.
func (r *records) pages(n uint32) (pageNo, error) {
	if r.fresh != nil {
		return r.fresh.take(n)
	}
	return r.a.alloc.alloc(n)
}

// replace stores data in the place of a record: where that lies if it has
// the room, and no more room than data needs. On error the record is as it was.
func (r *records) replace(old ref, data []byte) (ref, error) {
	n := len(data)
	if old.off() > uint64(refEmpty.off()) && n > 0 && !old.inPieces() && !old.grows() && !r.needsPieces(n) && roomFor(n) == roomFor(old.len()) &&
		r.a.space.view(old.off(), n) != nil {
		r.write(old.off(), data)
		return makeRef(old.off(), n), nil
	}
	x, err := r.put(data)
	if err != nil {
		return 0, err
	}
	return x, r.free(old)
}

// free gives the space of a record back.
func (r *records) free(x ref) error {
	switch {
	case x == 0 || x == refEmpty:
		return nil
	case x.inPieces():
		return r.freePieces(x)
	case x.grows():
		return r.freeGrowing(x)
	default:
		return r.release(x.off(), x.len())
	}
}

// get appends the bytes of a record to dst. It is safe for any x, also while
// the record changes: the result is then an error or bytes that the caller's
// validation refuses.
func (r *records) get(dst []byte, x ref) ([]byte, error) {
	switch {
	case x.inPieces():
		return r.getPieces(dst, x, 0, maxRecord)
	case x.grows():
		return r.getGrowing(dst, x)
	}
	b, err := r.bytes(x)
	return append(dst, b...), err
}

// bytes returns the memory of a record that is in one piece and does not grow.
func (r *records) bytes(x ref) ([]byte, error) {
	if x == refEmpty || x == 0 {
		return nil, nil
	}
	b := r.a.space.view(x.off(), x.len())
	if b == nil || x.inPieces() || x.grows() || uint64(x.off()) < slotPages<<pageShift {
		return nil, corruptAt(x.off(), "record of %d bytes outside the file", x.len())
	}
	return b, nil
}

// roomFor returns the bytes that a record of n bytes takes.
func roomFor(n int) int {
	if n <= maxSlab {
		return slabSizes[classOf[(n+15)/16]]
	}
	return (n + pageSize - 1) &^ (pageSize - 1)
}

func pagesFor(n int) uint32 { return uint32((n + pageSize - 1) >> pageShift) }

// space returns room for n bytes, without clearing it, in one run.
func (r *records) space(n int) (off uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n <= maxSlab {
		return r.takeSlot(int(classOf[(n+15)/16]))
	}
	p, err := r.pages(pagesFor(n))
	if err != nil {
		return 0, err
	}
	r.setHead(recordsLargeOff, r.head(recordsLargeOff)+1)
	return uint64(p) << pageShift, nil
}

// alloc returns size bytes of zeroed space, at most a run of the allocator,
// aligned to 16 bytes, for a structure of the container's own.
func (r *records) alloc(size int) (off uint64, err error) {
	if off, err = r.space(size); err != nil || size > maxSlab {
		return off, err
	}
	r.a.space.mark(off, size)
	clear(r.a.space.view(off, size))
	return off, nil
}

// release gives back the size bytes at off that alloc handed out.
func (r *records) release(off uint64, size int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if size <= maxSlab {
		return r.giveSlot(off, int(classOf[(size+15)/16]))
	}
	if off%pageSize != 0 || r.a.space.view(off, size) == nil {
		return corruptAt(off, "record of %d bytes outside the file", size)
	}
	if err := r.a.alloc.free(pageNo(off>>pageShift), pagesFor(size)); err != nil {
		return err
	}
	r.setHead(recordsLargeOff, r.head(recordsLargeOff)-1)
	return nil
}

// anyLarge says whether a record lies outside the slabs, so that freeAll
// alone would miss it.
func (r *records) anyLarge() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head(recordsLargeOff) != 0
}

// freeLarge is free for records outside the slabs, and nothing for others.
func (r *records) freeLarge(x ref) error {
	if x.grows() {
		if g, err := r.growing(x); err != nil || g.largest == 0 {
			return err
		}
		return r.free(x)
	}
	if x.inPieces() || x.len() > maxSlab {
		return r.free(x)
	}
	return nil
}

// freeAll gives back all slabs. The container has freed what is large.
func (r *records) freeAll() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.eachSlab(func(p pageNo, h []byte) error {
		return r.a.alloc.free(p, uint32(h[slabPagesOff]))
	})
	b := r.a.space.view(r.off, recordsSize)
	r.a.space.mark(r.off, recordsSize)
	clear(b)
	return err
}

// eachSlab calls fn with the header of each slab of the container. It checks
// what it follows; a list longer than the file has pages is a loop.
func (r *records) eachSlab(fn func(p pageNo, h []byte) error) error {
	end, _ := r.a.alloc.usage()
	p := r.head(recordsAllOff)
	for n := uint64(0); p != 0; n++ {
		h, err := r.slab(p)
		if err != nil {
			return err
		}
		if n > end {
			return corruptAt(uint64(p)<<pageShift, "list of slabs is a loop")
		}
		next := binary.LittleEndian.Uint32(h[slabAllOff:])
		if err := fn(p, h); err != nil {
			return err
		}
		p = next
	}
	return nil
}

func slabPages(class int) uint32 {
	if slabSizes[class] <= smallSlab {
		return 1
	}
	return 4
}

func slabSlots(class int) int {
	return (int(slabPages(class))*pageSize - slabHeader) / slabSizes[class]
}

// slab returns the header of the slab at page p, checked.
func (r *records) slab(p pageNo) ([]byte, error) {
	h := r.a.space.view(uint64(p)<<pageShift, slabHeader)
	if h == nil || p < slotPages || binary.LittleEndian.Uint16(h[slabMagicOff:]) != slabMagic || h[slabClassOff] >= slabClasses ||
		uint32(h[slabPagesOff]) != slabPages(int(h[slabClassOff])) || p%uint32(h[slabPagesOff]) != 0 {
		return nil, corruptAt(uint64(p)<<pageShift, "no slab at page %d", p)
	}
	return h, nil
}

// takeSlot returns the place of a free slot of a class.
func (r *records) takeSlot(class int) (off uint64, err error) {
	headOff := recordsPartialOff + 4*class
	p := r.head(headOff)
	if p == 0 {
		if p, err = r.newSlab(class); err != nil {
			return 0, err
		}
	}
	h, err := r.slab(p)
	if err != nil {
		return 0, err
	}
	i, ok := freeSlot(h, slabSlots(class))
	if int(h[slabClassOff]) != class || !ok {
		return 0, corruptAt(uint64(p)<<pageShift, "slab has no free slot of %d bytes", slabSizes[class])
	}
	le := binary.LittleEndian
	r.a.space.touch(p, 1)
	word := h[slabBitmapOff+i/64*8:]
	le.PutUint64(word, le.Uint64(word)|1<<(i%64))
	used := le.Uint32(h[slabUsedOff:]) + 1
	le.PutUint32(h[slabUsedOff:], used)
	if int(used) == slabSlots(class) {
		if err := r.unlink(headOff, slabPartialOff, h); err != nil {
			return 0, err
		}
	}
	return uint64(p)<<pageShift + slabHeader + uint64(i*slabSizes[class]), nil
}

// freeSlot returns the first of n slots that the bitmap of slab h has free.
func freeSlot(h []byte, n int) (i int, ok bool) {
	for w := range slabBitmapWords {
		if free := ^binary.LittleEndian.Uint64(h[slabBitmapOff+8*w:]); free != 0 {
			i = 64*w + bits.TrailingZeros64(free)
			return i, i < n
		}
	}
	return 0, false
}

// giveSlot makes the slot at off free, and its slab if that was the last.
func (r *records) giveSlot(off uint64, class int) error {
	p := pageNo(off>>pageShift) &^ (slabPages(class) - 1)
	if off < uint64(p)<<pageShift+slabHeader {
		return corruptAt(off, "no record of %d bytes here", slabSizes[class])
	}
	h, err := r.slab(p)
	if err != nil {
		return err
	}
	in := int(off - uint64(p)<<pageShift - slabHeader)
	i, size := in/slabSizes[class], slabSizes[class]
	if int(h[slabClassOff]) != class || in%size != 0 || i >= slabSlots(class) {
		return corruptAt(off, "no record of %d bytes here", size)
	}
	le := binary.LittleEndian
	word := h[slabBitmapOff+i/64*8:]
	used := le.Uint32(h[slabUsedOff:])
	if le.Uint64(word)>>(i%64)&1 == 0 || used == 0 {
		return corruptAt(off, "record is free already")
	}
	r.a.space.touch(p, 1)
	le.PutUint64(word, le.Uint64(word)&^(1<<(i%64)))
	le.PutUint32(h[slabUsedOff:], used-1)
	headOff := recordsPartialOff + 4*class
	full := int(used) == slabSlots(class)
	switch {
	case used == 1:
		if !full {
			if err := r.unlink(headOff, slabPartialOff, h); err != nil {
				return err
			}
		}
		if err := r.unlink(recordsAllOff, slabAllOff, h); err != nil {
			return err
		}
		return r.a.alloc.free(p, slabPages(class))
	case full:
		return r.link(headOff, slabPartialOff, p, h)
	}
	return nil
}

func (r *records) newSlab(class int) (pageNo, error) {
	p, err := r.pages(slabPages(class))
	if err != nil {
		return 0, err
	}
	h := r.a.space.view(uint64(p)<<pageShift, slabHeader)
	r.a.space.touch(p, 1)
	h[slabClassOff] = byte(class)
	h[slabPagesOff] = byte(slabPages(class))
	binary.LittleEndian.PutUint16(h[slabMagicOff:], slabMagic)
	if err := r.link(recordsPartialOff+4*class, slabPartialOff, p, h); err != nil {
		return 0, err
	}
	return p, r.link(recordsAllOff, slabAllOff, p, h)
}

// link puts slab p first in a list.
func (r *records) link(headOff, linkOff int, p pageNo, h []byte) error {
	le := binary.LittleEndian
	next := r.head(headOff)
	if next != 0 {
		nh, err := r.slab(next)
		if err != nil {
			return err
		}
		r.a.space.touch(next, 1)
		le.PutUint32(nh[linkOff+4:], p)
	}
	r.a.space.touch(p, 1)
	le.PutUint32(h[linkOff:], next)
	le.PutUint32(h[linkOff+4:], 0)
	r.setHead(headOff, p)
	return nil
}

// unlink takes the slab with header h out of a list.
func (r *records) unlink(headOff, linkOff int, h []byte) error {
	le := binary.LittleEndian
	next, prev := le.Uint32(h[linkOff:]), le.Uint32(h[linkOff+4:])
	var nh, ph []byte
	var err error
	if next != 0 {
		if nh, err = r.slab(next); err != nil {
			return err
		}
	}
	if prev != 0 {
		if ph, err = r.slab(prev); err != nil {
			return err
		}
	}
	if nh != nil {
		r.a.space.touch(next, 1)
		le.PutUint32(nh[linkOff+4:], prev)
	}
	if ph != nil {
		r.a.space.touch(prev, 1)
		le.PutUint32(ph[linkOff:], next)
	} else {
		r.setHead(headOff, next)
	}
	return nil
}

// needsPieces says that no run holds n bytes, or no ref their length.
func (r *records) needsPieces(n int) bool {
	return n >= refPieces || pagesFor(n) > r.a.alloc.maxRun()
}

// costOf bounds the private memory that a record of n bytes needs at once.
func (a *Arena) costOf(n int) int64 {
	if a.spillsRecord(n) {
		return maxPiece
	}
	return int64(roomFor(n))
}

// spillsRecord says that a record of n bytes would take too much of the
// DirtyLimit and is written out piece by piece.
func (a *Arena) spillsRecord(n int) bool { return n > maxPiece && int64(n) > a.limit/4 }

// putPieces stores data as pieces and an index.
func (r *records) putPieces(data []byte) (ref, error) {
	if len(data) > maxRecord {
		return 0, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), maxRecord)
	}
	pages := min(r.a.alloc.maxRun(), maxPiece>>pageShift)
	size := int(pages) << pageShift
	count := (len(data) + size - 1) / size
	index := make([]byte, indexHeader, indexHeader+4*count)
	le := binary.LittleEndian
	le.PutUint64(index[indexLenOff:], uint64(len(data)))
	le.PutUint32(index[indexSizeOff:], pages)
	le.PutUint32(index[indexCountOff:], uint32(count))
	spill := r.a.spillsRecord(len(data))
	for rest := data; len(rest) > 0; {
		part := rest[:min(size, len(rest))]
		rest = rest[len(part):]
		p, err := r.putPiece(part, spill)
		if err != nil {
			_ = r.freePieceList(index, size, len(data)) // all made just now
			return 0, err
		}
		index = le.AppendUint32(index, p)
	}
	off, err := r.space(len(index))
	if err != nil {
		_ = r.freePieceList(index, size, len(data))
		return 0, err
	}
	r.write(off, index)
	r.countLarge(+1)
	return makeRef(off, refPieces), nil
}

func (r *records) putPiece(part []byte, spill bool) (p pageNo, err error) {
	n := pagesFor(len(part))
	if spill {
		p, err = r.a.alloc.allocFresh(n)
	} else {
		p, err = r.pages(n)
	}
	if err != nil {
		return 0, err
	}
	r.write(uint64(p)<<pageShift, part)
	if spill {
		if err := r.a.spill(p, n); err != nil {
			_ = r.a.alloc.free(p, n) // allocated just now
			return 0, err
		}
	}
	return p, nil
}

func (r *records) countLarge(d int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setHead(recordsLargeOff, r.head(recordsLargeOff)+uint32(d))
}

// freePieceList frees the pieces that an index names, of a record of total
// bytes. It goes on after a damaged one, and returns the first such finding.
func (r *records) freePieceList(index []byte, size, total int) (first error) {
	for b := index[indexHeader:]; len(b) >= 4; b = b[4:] {
		n := min(size, total)
		total -= n
		if err := r.a.alloc.free(binary.LittleEndian.Uint32(b), pagesFor(n)); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// pieces returns the index of a record in pieces, its length and the size of
// a piece, all checked: every piece lies in the file.
func (r *records) pieces(x ref) (index []byte, total, size int, err error) {
	le := binary.LittleEndian
	h := r.a.space.view(x.off(), indexHeader)
	if h == nil || x.off() < slotPages<<pageShift {
		return nil, 0, 0, corruptAt(x.off(), "record outside the file")
	}
	n, pages, count := le.Uint64(h[indexLenOff:]), le.Uint32(h[indexSizeOff:]), le.Uint32(h[indexCountOff:])
	end, _ := r.a.alloc.usage()
	if n == 0 || n > maxRecord || n > end<<pageShift || pages == 0 || pages > maxPiece>>pageShift {
		return nil, 0, 0, corruptAt(x.off(), "record of %d bytes in pieces of %d pages", n, pages)
	}
	size = int(pages) << pageShift
	if uint64(count) != (n+uint64(size)-1)/uint64(size) {
		return nil, 0, 0, corruptAt(x.off(), "record of %d bytes in %d pieces of %d pages", n, count, pages)
	}
	index = r.a.space.view(x.off(), indexHeader+4*int(count))
	if index == nil {
		return nil, 0, 0, corruptAt(x.off(), "index of %d pieces outside the file", count)
	}
	left := int(n)
	for b := index[indexHeader:]; len(b) > 0; b = b[4:] {
		part := min(size, left)
		left -= part
		if p := le.Uint32(b); p < slotPages || r.a.space.view(uint64(p)<<pageShift, part) == nil {
			return nil, 0, 0, corruptAt(x.off(), "piece at page %d outside the file", p)
		}
	}
	return index, int(n), size, nil
}

// getPieces appends the bytes from..to of a record in pieces to dst, as far as
// there are so many.
func (r *records) getPieces(dst []byte, x ref, from, to int) ([]byte, error) {
	index, total, size, err := r.pieces(x)
	if err != nil {
		return dst, err
	}
	for to = min(to, total); from < to; {
		i := from / size
		part := r.a.space.view(uint64(binary.LittleEndian.Uint32(index[indexHeader+4*i:]))<<pageShift, min(size, total-i*size))
		if part == nil { // changed meanwhile
			return dst, corruptAt(x.off(), "piece outside the file")
		}
		part = part[from-i*size : min(len(part), to-i*size)]
		dst = append(dst, part...)
		from += len(part)
	}
	return dst, nil
}

func (r *records) freePieces(x ref) error {
	index, total, size, err := r.pieces(x)
	if err != nil {
		return err
	}
	err = r.freePieceList(index, size, total)
	r.countLarge(-1)
	return errors.Join(err, r.release(x.off(), len(index)))
}

// A recordCheck compares the slots that the slabs of a container have in use
// with what its owner refers to.
type recordCheck struct {
	r          *records
	own        func(p pageNo, n uint32) error
	used, refs multiset // places of slots
	large      uint32
}

// verify walks the slabs, reports their pages to own, and returns a check to
// which the container tells every record it has: ref for records, space for
// what alloc returned; done then finds whether that was all, each once.
func (r *records) verify(own func(p pageNo, n uint32) error) (*recordCheck, error) {
	h := newHasher(rand64())
	c := &recordCheck{r: r, own: own, used: multiset{h: &h}, refs: multiset{h: &h}}
	listed, partial := multiset{h: &h}, multiset{h: &h}
	end, _ := r.a.alloc.usage()
	for class := range slabClasses {
		n := uint64(0)
		for p := r.head(recordsPartialOff + 4*class); p != 0; n++ {
			b, err := r.slab(p)
			if err != nil {
				return nil, err
			}
			if n > end || int(b[slabClassOff]) != class {
				return nil, corruptAt(uint64(p)<<pageShift, "bad list of slabs with free slots")
			}
			listed.add(uint64(p))
			p = binary.LittleEndian.Uint32(b[slabPartialOff:])
		}
	}
	err := r.eachSlab(func(p pageNo, b []byte) error {
		class := int(b[slabClassOff])
		used := 0
		for i := range 64 * slabBitmapWords {
			if !slotInUse(b, i) {
				continue
			}
			used++
			c.used.add(uint64(p)<<pageShift + slabHeader + uint64(i*slabSizes[class]))
			if i >= slabSlots(class) {
				return corruptAt(uint64(p)<<pageShift, "slot %d of %d in use", i, slabSlots(class))
			}
		}
		if uint32(used) != binary.LittleEndian.Uint32(b[slabUsedOff:]) || used == 0 {
			return corruptAt(uint64(p)<<pageShift, "slab uses %d slots", used)
		}
		if used < slabSlots(class) {
			partial.add(uint64(p))
		}
		return own(p, uint32(b[slabPagesOff]))
	})
	if err == nil && !listed.same(&partial) {
		err = corruptAt(r.off, "%d slabs are listed with free slots, %d have some", listed.n, partial.n)
	}
	return c, err
}

// slotInUse says whether slot i of the slab with header h is in use.
func slotInUse(h []byte, i int) bool {
	return binary.LittleEndian.Uint64(h[slabBitmapOff+i/64*8:])>>(i%64)&1 != 0
}

func (c *recordCheck) ref(x ref) error {
	if x == 0 || x == refEmpty {
		return nil
	}
	if !x.inPieces() {
		if x.len() == 0 {
			return corruptAt(x.off(), "empty record")
		}
		return c.space(x.off(), x.len())
	}
	index, total, size, err := c.r.pieces(x)
	if err != nil {
		return err
	}
	c.large++
	for b := index[indexHeader:]; len(b) > 0; b = b[4:] {
		n := min(size, total)
		total -= n
		if err := c.own(binary.LittleEndian.Uint32(b), pagesFor(n)); err != nil {
			return err
		}
	}
	return c.space(x.off(), len(index))
}

func (c *recordCheck) space(off uint64, size int) error {
	if size > maxSlab {
		c.large++
		return c.own(pageNo(off>>pageShift), pagesFor(size))
	}
	class := int(classOf[(size+15)/16])
	p := pageNo(off>>pageShift) &^ (slabPages(class) - 1)
	h, err := c.r.slab(p)
	if err != nil {
		return err
	}
	in := int(off - uint64(p)<<pageShift - slabHeader)
	i := in / slabSizes[class]
	if int(h[slabClassOff]) != class || in < 0 || in%slabSizes[class] != 0 || i >= slabSlots(class) || !slotInUse(h, i) {
		return corruptAt(off, "record of %d bytes was not allocated", size)
	}
	c.refs.add(off)
	return nil
}

func (c *recordCheck) done() error {
	if !c.used.same(&c.refs) {
		return corruptAt(c.r.off, "%d records are allocated, %d referred to, and not one to one", c.used.n, c.refs.n)
	}
	if n := c.r.head(recordsLargeOff); n != c.large {
		return corruptAt(c.r.off, "%d large records, found %d", n, c.large)
	}
	return nil
}
