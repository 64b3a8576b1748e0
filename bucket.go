package emd

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"runtime"
	"sync"
	"unsafe"
)

// A bucket is one page of a dict. It begins with a header:
//
//	0        8       9       10      12     16     20     22       23   24
//	+--------+-------+-------+-------+------+------+------+--------+----+----
//	| prefix | depth | flags | count | next | link | heap | groups | 0  | ...
//	+--------+-------+-------+-------+------+------+------+--------+----+----
//
// The hashes of all its entries agree with prefix in their upper depth bits.
// next is the overflow page that continues the bucket, and link numbers the
// pages of such a chain, rising. count (of entries; not kept by lines), heap
// and groups are explained below.
//
// A bucket has slots in groups. An entry's home is the group that the low bits
// of its hash choose; it lies there or, when that was full, in one of the
// groups that follow, all full up to the entry's. So a search goes from the
// home on and ends at a group with an empty slot. Deleting keeps that true by
// moving entries back: there are no tombstones. There are three layouts of
// the rest of the page, chosen once for a dict from the sizes of its types.
//
// Lines, for keys of 4 or 8 bytes whose entries have 8, 16 or 32: a group is
// a line of 64 bytes full of slots, key first, and keys are compared directly:
// a search waits for one cache line. The key 0 means an empty slot, and slots
// of a line fill from the left. The value of the real key 0 lies in the header:
//
//	0        24  32           60    64     128                  4096
//	+--------+---+------------+-----+------+------+---- ... ----+
//	| header | 0 | value of 0 |  0  | line | line |             |
//	+--------+---+------------+-----+------+------+---- ... ----+
//
// The header does not change when an entry comes or goes, so a Set writes one
// line. A bucket splits when an entry would lie further than maxDistance lines
// from home.
//
// Control, for other entries of fixed size up to 512 bytes: a group is a word
// of eight control bytes, compared all at once (Abseil's Swiss tables); each
// is 0x80 | 7 bits of the entry's hash, 0 for an empty slot, 1 where the page
// has no slot left for the byte. The slots follow the words:
//
//	0        24                    slotsOff                     4096
//	+--------+-----+-----+-- ... --+------+------+---- ... -----+
//	| header | g 0 | g 1 |         | slot | slot |              |
//	+--------+-----+-----+-- ... --+------+------+---- ... -----+
//
// Slotted, for everything else: groups of eight control bytes and eight
// offsets of 2 bytes; the entries lie in a heap that grows down from the end of
// the page to the offset heap. Groups are added and removed by rebuilding the
// page, which also squeezes out the entries that were replaced.
//
//	0        24            48                     heap          4096
//	+--------+-------------+-------------+-- ... --+-----+------+
//	| header | 8 ctl 8 off | 8 ctl 8 off |  free   | entry ...  |
//	+--------+-------------+-------------+-- ... --+-----+------+
//
// An entry there is: if keys vary in size, uvarint(2*size + far); the same for
// the value; then key and value, or in place of a far one its ref (8 bytes):
// a record of the container. See slottedForm for what is far.
const (
	bucketPrefixOff = 0
	bucketDepthOff  = bucketPrefixOff + 8
	bucketFlagsOff  = bucketDepthOff + 1
	bucketCountOff  = bucketFlagsOff + 1
	bucketNextOff   = bucketCountOff + 2
	bucketLinkOff   = bucketNextOff + 4
	bucketHeapOff   = bucketLinkOff + 4
	bucketGroupsOff = bucketHeapOff + 2
	bucketHeader    = bucketGroupsOff + 2

	zeroValueOff = 32 // value of key 0 in lines
	zeroValueMax = 28

	flagZero = 1 << 0 // the key 0 is present

	lineCount   = pageSize/lineSize - 1 // groups of lines
	maxDistance = 6                     // an entry of 16 bytes then takes 27 to 35

	maxGroups = 128 // of a slotted bucket: leaves room for the largest entry

	ctrlEmpty  = 0x00
	ctrlNone   = 0x01
	ctrlGroup  = 8
	slotGroup  = ctrlGroup + 2*ctrlGroup
	maxSlotted = 512 // bytes of an entry in a page
	farSize    = 8   // a ref
	maxNearKey = 480 // longer keys are far
)

const (
	_ = uint(-(bucketHeader % 8))
	_ = uint(zeroValueOff - bucketHeader)
	_ = uint(lineSize - zeroValueOff - zeroValueMax)
)

// bucket is a page seen as one of the pages of a bucket.
type bucket page

func (b *bucket) prefix() uint64     { return binary.LittleEndian.Uint64(b[bucketPrefixOff:]) }
func (b *bucket) setPrefix(v uint64) { binary.LittleEndian.PutUint64(b[bucketPrefixOff:], v) }
func (b *bucket) depth() int         { return int(b[bucketDepthOff]) }
func (b *bucket) setDepth(v int)     { b[bucketDepthOff] = uint8(v) }
func (b *bucket) hasZero() bool      { return b[bucketFlagsOff]&flagZero != 0 }
func (b *bucket) count() int         { return int(binary.LittleEndian.Uint16(b[bucketCountOff:])) }
func (b *bucket) setCount(v int)     { binary.LittleEndian.PutUint16(b[bucketCountOff:], uint16(v)) }
func (b *bucket) next() pageNo       { return binary.LittleEndian.Uint32(b[bucketNextOff:]) }
func (b *bucket) setNext(v pageNo)   { binary.LittleEndian.PutUint32(b[bucketNextOff:], v) }
func (b *bucket) link() uint32       { return binary.LittleEndian.Uint32(b[bucketLinkOff:]) }
func (b *bucket) setLink(v uint32)   { binary.LittleEndian.PutUint32(b[bucketLinkOff:], v) }
func (b *bucket) heap() int          { return int(binary.LittleEndian.Uint16(b[bucketHeapOff:])) }
func (b *bucket) setHeap(v int)      { binary.LittleEndian.PutUint16(b[bucketHeapOff:], uint16(v)) }
func (b *bucket) groups() int        { return int(b[bucketGroupsOff]) }
func (b *bucket) setGroups(v int)    { b[bucketGroupsOff] = uint8(v) }

// word returns the 8 bytes at off, which lie in the page. A plain index would
// check that; it costs a fifth of a lookup.
//
// Where wholeWords wants one load, it is not left to the compiler to make it of
// eight: it does not with -asan, nor without optimization.
func (b *bucket) word(off int) uint64 {
	p := (*[8]byte)(unsafe.Add(unsafe.Pointer(b), off))
	if wholeWords {
		return *(*uint64)(unsafe.Pointer(p))
	}
	return binary.LittleEndian.Uint64(p[:])
}

func (b *bucket) setWord(off int, v uint64) {
	p := (*[8]byte)(unsafe.Add(unsafe.Pointer(b), off))
	if wholeWords {
		*(*uint64)(unsafe.Pointer(p)) = v
		return
	}
	binary.LittleEndian.PutUint64(p[:], v)
}

type layoutKind uint8

const (
	layoutLines layoutKind = 1 + iota
	layoutControl
	layoutSlotted
)

// A layout says how the entries of one dict lie in its buckets. Slots are
// numbered by an index; lines number the key 0 last.
type layout struct {
	kind     layoutKind
	keySize  int // -1: varies
	valSize  int // -1: varies
	slot     int // bytes of a slot; slotted: 0
	perGroup int
	groups   int  // slotted: see bucket.groups
	slots    int  // that exist; slotted: 0
	slotsOff int  // of slot 0
	limit    int  // control: entries at which a bucket splits
	farKey   bool // keys of fixed size that lie in records
	farVal   bool // of fixed size, likewise
}

// layoutFor chooses the layout for keys and values of these sizes, -1 for
// those that vary.
func layoutFor(keySize, valSize int) *layout {
	l := &layout{keySize: keySize, valSize: valSize, perGroup: ctrlGroup}
	size := keySize + valSize
	switch fixed := keySize >= 0 && valSize >= 0; {
	case fixed && (keySize == 4 || keySize == 8) && (size == 8 || size == 16 || size == 32):
		l.kind, l.slot, l.perGroup, l.groups = layoutLines, size, lineSize/size, lineCount
		l.slots, l.slotsOff = l.perGroup*l.groups, lineSize
	case fixed && size <= maxSlotted && size > 0:
		n := (pageSize - bucketHeader) / (1 + size)
		for bucketHeader+groupsFor(n)*ctrlGroup+n*size > pageSize {
			n--
		}
		l.kind, l.slot, l.slots, l.groups = layoutControl, size, n, groupsFor(n)
		l.slotsOff, l.limit = pageSize-n*size, max(1, n*7/8)
	default:
		l.kind = layoutSlotted
		l.farKey = keySize > maxNearKey
		near := 2
		if keySize >= 0 && !l.farKey {
			near += keySize
		} else {
			near += farSize
		}
		l.farVal = valSize > maxSlotted-near
	}
	return l
}

func groupsFor(slots int) int { return (slots + ctrlGroup - 1) / ctrlGroup }

// format makes a zeroed page an empty bucket. groups is for slotted ones.
func (l *layout) format(b *bucket, prefix uint64, depth, groups int) {
	b.setPrefix(prefix)
	b.setDepth(depth)
	switch l.kind {
	case layoutControl:
		for i := l.slots; i < l.groups*ctrlGroup; i++ {
			b[bucketHeader+i] = ctrlNone
		}
	case layoutSlotted:
		b.setHeap(pageSize)
		b.setGroups(groups)
	}
}

// clear empties a bucket, but for its place in the directory and the chain.
func (l *layout) clear(b *bucket, groups int) {
	clear(b[bucketHeader:])
	b[bucketFlagsOff] = 0
	b.setCount(0)
	l.format(b, b.prefix(), b.depth(), groups)
}

// groupsOf returns the number of groups, at least 1 and no more than the page
// can hold, whatever its bytes.
func (l *layout) groupsOf(b *bucket) int {
	if l.kind != layoutSlotted {
		return l.groups
	}
	return min(max(b.groups(), 1), (pageSize-bucketHeader)/slotGroup)
}

// slotsOf returns the number of slots.
func (l *layout) slotsOf(b *bucket) int {
	if l.kind == layoutSlotted {
		return l.groupsOf(b) * ctrlGroup
	}
	return l.slots
}

// home returns the group at which the search for a hash begins.
func home(h uint64, groups int) int { return int(uint64(uint32(h)) * uint64(groups) >> 32) }

func fingerprint(h uint64) uint8 { return 0x80 | uint8(h) }

// slotOff returns where slot i lies; in lines also the one of key 0, as if its
// key lay before its value.
func (l *layout) slotOff(i int) int {
	if i == l.slots && l.kind == layoutLines {
		return zeroValueOff - l.keySize
	}
	return l.slotsOff + i*l.slot
}

// ctrlOff returns where the control byte of slot i lies.
func (l *layout) ctrlOff(i int) int {
	if l.kind == layoutSlotted {
		return bucketHeader + i/ctrlGroup*slotGroup + i%ctrlGroup
	}
	return bucketHeader + i
}

// entryOff returns where the entry of a slotted bucket's slot lies.
func entryOff(b *bucket, i int) int {
	return int(binary.LittleEndian.Uint16(b[entryOffOff(i):]))
}

// prefetchBehind asks for the lines behind that of the entry at off: key and
// value take some.
func (b *bucket) prefetchBehind(off int) {
	prefetch(unsafe.Pointer(&b[(off+lineSize)%pageSize]))
	prefetch(unsafe.Pointer(&b[(off+2*lineSize)%pageSize]))
}

func entryOffOff(i int) int {
	return bucketHeader + i/ctrlGroup*slotGroup + ctrlGroup + i%ctrlGroup*2
}

// ctrlWord returns the control bytes of a group.
func (l *layout) ctrlWord(b *bucket, g int) uint64 {
	stride := ctrlGroup
	if l.kind == layoutSlotted {
		stride = slotGroup
	}
	return b.word(bucketHeader + g*stride)
}

const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// matches returns a bit in each byte of w that may equal c: the lowest is
// right, those above may be one off.
func matches(w uint64, c uint8) uint64 {
	x := w ^ lowBits*uint64(c)
	return (x - lowBits) &^ x & highBits
}

// empties returns a bit in each byte of w that is ctrlEmpty.
func empties(w uint64) uint64 { return ^(w | w<<7) & highBits }

// lineKey returns the key in the line slot at off.
func (l *layout) lineKey(b *bucket, off int) uint64 {
	w := b.word(off)
	if l.keySize == 4 {
		return uint64(uint32(w))
	}
	return w
}

// find returns the slot that holds key; or, with found false, the first empty
// slot of its search, -1 if there is none. distance is how far from home that
// empty slot is.
func (d *dict) find(b *bucket, h uint64, key []byte) (i, distance int, found bool) {
	l := d.layout
	if l.kind == layoutLines {
		return l.findLine(b, h, keyWord(key))
	}
	groups := l.groupsOf(b)
	g := home(h, groups)
	for distance = range groups {
		w := l.ctrlWord(b, g)
		for m := matches(w, fingerprint(h)); m != 0; m &= m - 1 {
			i := g*ctrlGroup + bits.TrailingZeros64(m)/8
			if i < l.slotsOf(b) && d.equal(b, i, key) {
				return i, distance, true
			}
		}
		if m := empties(w); m != 0 {
			i := g*ctrlGroup + bits.TrailingZeros64(m)/8
			if i >= l.slotsOf(b) { // damaged: no such slot
				i = -1
			}
			return i, distance, false
		}
		if g++; g == groups {
			g = 0
		}
	}
	return -1, groups, false
}

func (l *layout) findLine(b *bucket, h, key uint64) (i, distance int, found bool) {
	if key == 0 {
		return l.slots, 0, b.hasZero()
	}
	if l.words() {
		if line, i, _ := b.findWord(h, key); i != 0 {
			return slotOfWord(line, i), 0, true
		}
	}
	line := 1 + home(h, lineCount)
	for distance = range lineCount {
		for off := line * lineSize; off < (line+1)*lineSize; off += l.slot {
			switch l.lineKey(b, off) {
			case key:
				return (off - lineSize) / l.slot, distance, true
			case 0:
				return (off - lineSize) / l.slot, distance, false
			}
		}
		if line++; line > lineCount {
			line = 1
		}
	}
	return -1, lineCount, false
}

// keyWord returns a key of lines as a number.
func keyWord(key []byte) uint64 {
	if len(key) == 8 {
		return binary.LittleEndian.Uint64(key)
	}
	return uint64(binary.LittleEndian.Uint32(key))
}

// equal says whether slot i holds key. What cannot be read does not.
func (d *dict) equal(b *bucket, i int, key []byte) bool {
	l := d.layout
	if l.kind == layoutControl {
		off := l.slotsOff + i*l.slot
		return bytes.Equal(b[off:off+l.keySize], key)
	}
	off := entryOff(b, i)
	b.prefetchBehind(off)
	at, val, end, far := l.parts(b, off)
	if end > pageSize {
		return false
	}
	if far&keyIsFar == 0 {
		return string(b[at:val]) == string(key)
	}
	x := b.refAt(at)
	if x.len() != len(key) {
		return false
	}
	record, err := d.recs.bytes(x)
	return err == nil && bytes.Equal(record, key)
}

// A slottedEntry is an entry of a slotted bucket: where key and value, or
// their refs, lie in the page.
type slottedEntry struct {
	key, keyLen int
	val, valLen int
	end         int
	keyFar      bool
	valFar      bool
}

// entry reads the entry at off, and says whether it lies in the page.
func (l *layout) entry(b *bucket, off int) (e slottedEntry, ok bool) {
	var far uint32
	e.key, e.val, e.end, far = l.parts(b, off)
	e.keyLen, e.valLen = e.val-e.key, e.end-e.val
	e.keyFar, e.valFar = far&keyIsFar != 0, far&valIsFar != 0
	return e, e.end <= pageSize
}

const (
	keyIsFar = 1 << iota
	valIsFar
)

// parts returns where key and value of the entry at off begin, where it ends,
// behind the page if it does not lie there, and what of it is far. The sizes
// are read once, for they may be changing.
func (l *layout) parts(b *bucket, off int) (key, val, end int, far uint32) {
	if off < bucketHeader {
		return 0, 0, pageSize + 1, 0
	}
	at := min(off, pageSize-4)
	sizes := binary.LittleEndian.Uint32((*[4]byte)(unsafe.Add(unsafe.Pointer(b), at))[:]) >> (8 * uint(off-at)) // zeros behind the page
	keySize, valSize := l.keySize, l.valSize
	if keySize < 0 {
		n := sizes & 0x7f
		if sizes&0x80 != 0 {
			n |= sizes >> 8 & 0xff << 7
			sizes >>= 8
			off++
		}
		sizes >>= 8
		off++
		keySize = int(n >> 1)
		if n&1 != 0 {
			keySize, far = farSize, keyIsFar
		}
	} else if l.farKey {
		keySize, far = farSize, keyIsFar
	}
	if valSize < 0 {
		n := sizes & 0x7f
		if sizes&0x80 != 0 {
			n |= sizes >> 8 & 0xff << 7
			off++
		}
		off++
		valSize = int(n >> 1)
		if n&1 != 0 {
			valSize, far = farSize, far|valIsFar
		}
	} else if l.farVal {
		valSize, far = farSize, far|valIsFar
	}
	return off, off + keySize, off + keySize + valSize, far
}

func (b *bucket) refAt(off int) ref { return ref(binary.LittleEndian.Uint64(b[off:])) }

// A slottedForm says how a key and a value of some sizes are stored in a
// slotted bucket. A key is far from maxNearKey bytes on, or where only the key
// can make room for a value of fixed size; a value, where the entry would
// pass maxSlotted. So the form of a key depends on its size alone.
type slottedForm struct {
	keyFar, valFar bool
	size           int // of the entry
}

func (l *layout) form(keyLen, valLen int) slottedForm {
	f := slottedForm{keyFar: l.farKey, valFar: l.farVal}
	part := func(n, fixed int, far bool) int {
		size := n
		if far {
			size = farSize
		}
		if fixed < 0 {
			size += sizeLen(n, far)
		}
		return size
	}
	value := 0
	if l.valSize >= 0 {
		value = part(valLen, l.valSize, f.valFar)
	}
	if l.keySize < 0 {
		f.keyFar = keyLen > maxNearKey || part(keyLen, -1, false)+value > maxSlotted
	}
	key := part(keyLen, l.keySize, f.keyFar)
	if l.valSize < 0 {
		f.valFar = key+part(valLen, -1, false) > maxSlotted
	}
	f.size = key + part(valLen, l.valSize, f.valFar)
	return f
}

// sizeLen returns the bytes that the size of a part takes.
func sizeLen(n int, far bool) int {
	if far || n < 64 {
		return 1
	}
	return 2
}

// appendSize appends a size as layout.parts reads it.
func appendSize(dst []byte, n int, far bool) []byte {
	if far {
		return append(dst, 1)
	}
	return binary.AppendUvarint(dst, uint64(n)<<1)
}

// appendEntry appends an entry of the given form; refs stand in for far parts.
func (l *layout) appendEntry(dst []byte, f slottedForm, key, val []byte, keyRef, valRef ref) []byte {
	if l.keySize < 0 {
		dst = appendSize(dst, len(key), f.keyFar)
	}
	if l.valSize < 0 {
		dst = appendSize(dst, len(val), f.valFar)
	}
	if f.keyFar {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(keyRef))
	} else {
		dst = append(dst, key...)
	}
	if f.valFar {
		return binary.LittleEndian.AppendUint64(dst, uint64(valRef))
	}
	return append(dst, val...)
}

// used says whether slot i holds an entry.
func (l *layout) used(b *bucket, i int) bool {
	if l.kind != layoutLines {
		return b[l.ctrlOff(i)] >= 0x80
	}
	if i == l.slots {
		return b.hasZero()
	}
	return l.lineKey(b, l.slotOff(i)) != 0
}

// next returns the first used slot from i on, -1 if there is none.
func (l *layout) next(b *bucket, i int) int {
	if l.kind == layoutLines {
		for ; i < l.slots; i = (i | (l.perGroup - 1)) + 1 { // behind an empty slot its line is empty
			if l.lineKey(b, l.slotOff(i)) != 0 {
				return i
			}
		}
		if i == l.slots && b.hasZero() {
			return i
		}
		return -1
	}
	for n := l.slotsOf(b); i < n; i = (i | (ctrlGroup - 1)) + 1 {
		if used := l.ctrlWord(b, i/ctrlGroup) & highBits >> (i % ctrlGroup * 8); used != 0 {
			if i += bits.TrailingZeros64(used) / 8; i < n {
				return i
			}
		}
	}
	return -1
}

// free says whether a group has an empty slot.
func (l *layout) free(b *bucket, g int) bool {
	if l.kind == layoutLines {
		return l.lineKey(b, (g+2)*lineSize-l.slot) == 0
	}
	return empties(l.ctrlWord(b, g)) != 0
}

// countAtLeast counts the entries of a page, stopping at n.
func (l *layout) countAtLeast(b *bucket, n int) (c int) {
	if l.kind != layoutLines {
		return b.count()
	}
	if b.hasZero() {
		c++
	}
	for line := lineSize; line < pageSize && c < n; line += lineSize {
		for off := line; off < line+lineSize && l.lineKey(b, off) != 0; off += l.slot {
			c++
		}
	}
	return c
}

// keyAt returns the key of slot i: memory of the page or of a record, or for
// the key 0, zeros.
func (d *dict) keyAt(b *bucket, i int) ([]byte, error) {
	l := d.layout
	if l.kind != layoutSlotted {
		if i == l.slots {
			return make([]byte, l.keySize), nil
		}
		off := l.slotOff(i)
		return b[off : off+l.keySize : off+l.keySize], nil
	}
	e, ok := l.entry(b, entryOff(b, i))
	if !ok {
		return nil, corrupt("entry passes the end of its bucket")
	}
	return d.keyOf(b, e)
}

// keyOf is keyAt of an entry of a slotted page.
func (d *dict) keyOf(b *bucket, e slottedEntry) ([]byte, error) {
	if e.keyFar {
		return d.farKeyAt(b.refAt(e.key))
	}
	return b[e.key : e.key+e.keyLen : e.key+e.keyLen], nil
}

func (d *dict) farKeyAt(x ref) ([]byte, error) {
	if x.inPieces() || x.len() > maxKeySize {
		return nil, corruptAt(x.off(), "key of %d bytes", x.len())
	}
	return d.recs.bytes(x)
}

// hashAt returns the hash of the key in slot i.
func (d *dict) hashAt(b *bucket, i int) (uint64, error) {
	if l := d.layout; l.kind == layoutLines {
		if i == l.slots {
			return d.hashWord(0), nil
		}
		return d.hashWord(l.lineKey(b, l.slotOff(i))), nil
	}
	key, err := d.keyAt(b, i)
	return d.hash(key), err
}

// valueAt appends the value of slot i to dst.
func (d *dict) valueAt(dst []byte, b *bucket, i int) ([]byte, error) {
	l := d.layout
	if l.kind != layoutSlotted {
		off := l.slotOff(i)
		return append(dst, b[off+l.keySize:off+l.slot]...), nil
	}
	e, ok := l.entry(b, entryOff(b, i))
	switch {
	case !ok:
		return dst, corrupt("entry passes the end of its bucket")
	case e.valFar:
		return d.recs.get(dst, b.refAt(e.val))
	}
	return append(dst, b[e.val:e.end]...), nil
}

// A moving entry goes to another page: its hash, its slot, and in a slotted page
// where it is.
type moving struct {
	h         uint64
	slot      uint16
	from, end uint16
}

// movingEntries keeps room for those of a page.
var movingEntries = sync.Pool{New: func() any { return new([]moving) }}

// copyEntry puts what m moves from src into b, where it is not yet, and says
// whether there was room. The caller has touched b.
func (l *layout) copyEntry(b *bucket, m moving, src *bucket) bool {
	if l.kind == layoutSlotted {
		return l.addSlotted(b, m.h, src[m.from:m.end])
	}
	if int(m.slot) == l.slots { // of lines
		b[bucketFlagsOff] |= flagZero
		copy(b[zeroValueOff:zeroValueOff+zeroValueMax], src[zeroValueOff:])
		return true
	}
	from := l.slotOff(int(m.slot))
	return l.addFixed(b, m.h, src[from:from+l.slot])
}

// addFixed puts a slot, not of the key 0 of lines, into a bucket where its key
// is not yet, and says whether there was room. The caller has touched b.
func (l *layout) addFixed(b *bucket, h uint64, slot []byte) bool {
	if l.kind == layoutControl {
		to := l.emptySlot(b, h)
		if to < 0 {
			return false
		}
		copy(b[l.slotOff(to):], slot)
		b[l.ctrlOff(to)] = fingerprint(h)
		b.setCount(b.count() + 1)
		return true
	}
	line := 1 + home(h, lineCount)
	for range lineCount {
		for off := line * lineSize; off < (line+1)*lineSize; off += l.slot {
			if l.lineKey(b, off) == 0 {
				copy(b[off:off+l.slot], slot)
				return true
			}
		}
		if line++; line > lineCount {
			line = 1
		}
	}
	return false
}

// emptySlot returns the first empty slot on the way of h, -1 if there is none.
func (l *layout) emptySlot(b *bucket, h uint64) int {
	groups := l.groupsOf(b)
	g := home(h, groups)
	for range groups {
		if m := empties(l.ctrlWord(b, g)); m != 0 {
			return g*ctrlGroup + bits.TrailingZeros64(m)/8
		}
		if g++; g == groups {
			g = 0
		}
	}
	return -1
}

// hasRoom says whether a slotted bucket has a slot, and size bytes of heap.
func (b *bucket) hasRoom(size int) bool {
	return b.count() < b.groups()*(ctrlGroup-1) && b.hasHeap(size)
}

// hasHeap says whether a slotted bucket has size bytes of heap. One with a
// damaged header has none; whoever makes room then finds that out.
func (b *bucket) hasHeap(size int) bool {
	heap, g := b.heap(), b.groups()
	return heap-size >= bucketHeader+g*slotGroup && heap <= pageSize && g > 0
}

// addSlotted puts an entry into a slotted bucket, and says whether there was
// room for it.
func (l *layout) addSlotted(b *bucket, h uint64, entry []byte) bool {
	i := l.emptySlot(b, h)
	if i < 0 || !b.hasRoom(len(entry)) {
		return false
	}
	off := b.heap() - len(entry)
	copy(b[off:], entry)
	b.setHeap(off)
	b[l.ctrlOff(i)] = fingerprint(h)
	binary.LittleEndian.PutUint16(b[entryOffOff(i):], uint16(off))
	b.setCount(b.count() + 1)
	return true
}

// liveBytes returns the bytes of heap that the entries of a slotted bucket
// need, the rest being garbage.
func (l *layout) liveBytes(b *bucket) (n int) {
	for g := range l.groupsOf(b) {
		for used := b.word(bucketHeader+g*slotGroup) & highBits; used != 0; used &= used - 1 {
			off := entryOff(b, g*ctrlGroup+bits.TrailingZeros64(used)/8)
			if _, _, end, _ := l.parts(b, off); end <= pageSize {
				n += end - off
			}
		}
	}
	return n
}

// groupsWanted returns the number of groups for a bucket that is to hold count
// entries of size bytes in all: as many as it would need if it filled up with
// entries like these. 0 if they do not fit.
func groupsWanted(count, size int) int {
	room := pageSize - bucketHeader
	least := (count + ctrlGroup - 2) / (ctrlGroup - 1)
	if least*slotGroup+size > room {
		return 0
	}
	perEntry := float64(size)/float64(count) + float64(slotGroup)/(ctrlGroup-1)
	g := int(float64(room)/perEntry+ctrlGroup-2) / (ctrlGroup - 1)
	return min(max(g, least, 1), (room-size)/slotGroup, maxGroups)
}

// removeSlot empties slot i of a page. The entries that had to pass its group
// stay findable: see displaced.
func (d *dict) removeSlot(no pageNo, b *bucket, i int) error {
	l := d.layout
	if l.kind == layoutLines && i == l.slots {
		d.a.space.touch(no, 1)
		b[bucketFlagsOff] &^= flagZero
		clear(b[zeroValueOff : zeroValueOff+zeroValueMax])
		return nil
	}
	for !l.free(b, i/l.perGroup) {
		j, err := d.displaced(b, i/l.perGroup)
		if err != nil {
			return err
		}
		if j < 0 {
			break
		}
		d.moveSlot(no, b, i, j)
		i = j
	}
	d.clearSlot(no, b, i)
	if l.kind != layoutLines {
		d.a.space.touch(no, 1)
		b.setCount(b.count() - 1)
	}
	return nil
}

// displaced returns the slot of an entry that lies behind group g because g
// was full, the nearest first, or -1.
func (d *dict) displaced(b *bucket, g int) (int, error) {
	l := d.layout
	groups := l.groupsOf(b)
	at := g
	for passed := 1; passed < groups; passed++ {
		if at++; at == groups {
			at = 0
		}
		for i := at * l.perGroup; i < min((at+1)*l.perGroup, l.slotsOf(b)); i++ {
			if !l.used(b, i) {
				continue
			}
			h, err := d.hashAt(b, i)
			if err != nil {
				return -1, err
			}
			if (at-home(h, groups)+groups)%groups >= passed {
				return i, nil
			}
		}
		if l.free(b, at) {
			break
		}
	}
	return -1, nil
}

// moveSlot puts the entry of slot from in the place of slot to.
func (d *dict) moveSlot(no pageNo, b *bucket, to, from int) {
	l := d.layout
	if l.kind != layoutLines {
		d.a.space.touch(no, lineMask(l.ctrlOff(to), 1))
		b[l.ctrlOff(to)] = b[l.ctrlOff(from)]
	}
	if l.kind == layoutSlotted {
		d.a.space.touch(no, lineMask(entryOffOff(to), 2))
		copy(b[entryOffOff(to):entryOffOff(to)+2], b[entryOffOff(from):])
		return
	}
	off, src := l.slotOff(to), l.slotOff(from)
	d.a.space.touch(no, lineMask(off, l.slot))
	copy(b[off:off+l.slot], b[src:src+l.slot])
}

// clearSlot marks slot i empty; in lines, the last entry of the line takes its
// place.
func (d *dict) clearSlot(no pageNo, b *bucket, i int) {
	l := d.layout
	if l.kind != layoutLines {
		d.a.space.touch(no, lineMask(l.ctrlOff(i), 1))
		b[l.ctrlOff(i)] = ctrlEmpty
		return
	}
	off := l.slotOff(i)
	last := off
	for end := off&^(lineSize-1) + lineSize; last+l.slot < end && l.lineKey(b, last+l.slot) != 0; {
		last += l.slot
	}
	d.a.space.touch(no, lineMask(off, l.slot))
	copy(b[off:off+l.slot], b[last:last+l.slot])
	clear(b[last : last+l.slot])
}

// What a look without a lock, or a second attempt, has found.
type peeked uint8

const (
	peekedAbsent peeked = iota
	peekedPresent
	peekedNothing // something was in the way: look again with read
)

// peek finds the value of key where nothing is in the way: no writer, and key
// and value lie in the first page of their bucket. Nearly every lookup is one
// of these. The value is lent, memory of the page: what is made of it, and
// that the key is absent, counts only if seg.undisturbed(s) then says so.
func (d *dict) peek(h uint64, key []byte) (val []byte, seg *segment, s uint64, is peeked) {
	if !optimistic {
		return nil, nil, 0, peekedNothing
	}
	seg = d.table.Load().segment(h)
	s = seg.load()
	no, same := seg.bucketAt(h, s)
	if !same || no < slotPages {
		return nil, seg, s, peekedNothing
	}
	b := (*bucket)(d.space.near(no))
	if b == nil {
		return nil, seg, s, peekedNothing
	}
	if d.layout.kind == layoutSlotted {
		val, is = d.layout.peekSlotted(b, h, key)
		return val, seg, s, is
	}
	l := d.layout
	i, _, found := d.find(b, h, key)
	switch {
	case found:
		at := l.slotOff(i)
		return b[at+l.keySize : at+l.slot : at+l.slot], seg, s, peekedPresent
	case i >= 0:
		return nil, seg, s, peekedAbsent
	}
	return nil, seg, s, peekedNothing
}

// peekSlotted is find and valueAt in one, for the page of a slotted bucket
// where key should be.
func (l *layout) peekSlotted(b *bucket, h uint64, key []byte) (val []byte, is peeked) {
	prefetch(unsafe.Pointer(&b[lineSize])) // the groups take some, too
	prefetch(unsafe.Pointer(&b[2*lineSize]))
	groups := l.groupsOf(b)
	g := home(h, groups)
	for range groups {
		at := bucketHeader + g*slotGroup
		w := b.word(at)
		for m := matches(w, fingerprint(h)); m != 0; m &= m - 1 {
			off := entryOff(b, g*ctrlGroup+bits.TrailingZeros64(m)/8)
			b.prefetchBehind(off)
			k, v, end, far := l.parts(b, off)
			switch {
			case far&keyIsFar != 0:
				return nil, peekedNothing
			case end > pageSize || string(b[k:v]) != string(key):
			case far != 0:
				return nil, peekedNothing
			default:
				return b[v:end:end], peekedPresent
			}
		}
		if empties(w) != 0 {
			break
		}
		if g++; g == groups {
			g = 0
		}
	}
	if b.next() != 0 {
		return nil, peekedNothing
	}
	return nil, peekedAbsent
}

// Words: keys and values of 8 bytes each are the commonest and get code of
// their own for the layout of lines, four slots to a line, unrolled.

// words says that keys and values are words.
func (l *layout) words() bool { return l.kind == layoutLines && l.keySize == 8 && l.slot == wordSlot }

// wordSlot is the bytes of a slot of words.
const wordSlot = 16

// wholeWords says that a store of 8 bytes is one for readers, and that stores
// and loads keep their order. Then changing a slot needs no counter: value first,
// key second, or the value alone, are consistent at each moment.
const wholeWords = runtime.GOARCH == "amd64"

// A wordLine is a line of a bucket of words: four slots, key first. Only where
// numbers lie in memory as in the file.
//
// Who changes one stores to all its slots, three times what they hold. A store to
// the one slot would have an address that waits for the line; until it is known
// processors hold back the atomic instruction of the next lock, and with it
// the next change's wait for memory.
type wordLine [lineSize / 8]uint64

// wordLine returns the line that has the byte off of a bucket of words.
func (b *bucket) wordLine(off uintptr) *wordLine {
	return (*wordLine)(unsafe.Add(unsafe.Pointer(b), off&^(lineSize-1)))
}

// slotOfWord returns the page's number of slot i of a line, counted from 1.
func slotOfWord(line uintptr, i int) int { return int(line-lineSize)/wordSlot + i - 1 }

// at returns what is in slot i, counted from 1.
func (l *wordLine) at(i int) (key, val uint64) {
	return l[uint(2*i-2)%uint(len(l))], l[uint(2*i-1)%uint(len(l))]
}

// put stores val, then key, in slot i, counted from 1. Readers find the entry that
// was there or this one.
func (l *wordLine) put(i int, key, val uint64) {
	l.vals().put(i, val)
	l.keys().put(i, key)
}

// A wordColumn is the keys or the values of a line: every second word.
type wordColumn [lineSize/8 - 1]uint64

func (l *wordLine) keys() *wordColumn { return (*wordColumn)(l[:len(l)-1]) }
func (l *wordLine) vals() *wordColumn { return (*wordColumn)(l[1:]) }

// put stores x as the i-th, counted from 1, and the others as they are. It has no
// branches.
func (c *wordColumn) put(i int, x uint64) {
	x1, x2, x3, x4 := c[0], c[2], c[4], c[6]
	if i == 1 {
		x1 = x
	}
	if i == 2 {
		x2 = x
	}
	if i == 3 {
		x3 = x
	}
	if i == 4 {
		x4 = x
	}
	c[0], c[2], c[4], c[6] = x1, x2, x3, x4
}

// cut takes slot i out, counted from 1: the last that is used, of that number, moves there.
func (l *wordLine) cut(i, last int) {
	key, val := l.at(last)
	l.put(i, key, val)
	l.put(last, 0, 0)
}

// used counts the slots with an entry: they are the first.
func (l *wordLine) used() int { return usedOf(l[0], l[2], l[4]) + oneIf(l[6] != 0) }

// homeOff returns where the home of a hash lies in a bucket of lines.
func homeOff(h uint64) uintptr {
	return lineSize + uintptr(uint64(uint32(h))*lineCount>>(32-lineShift)&^(lineSize-1))
}

// getWord is get for words.
func (d *dict) getWord(key uint64) (val uint64, ok bool, err error) {
	if !optimistic || key == 0 {
		return d.getWordSlow(key)
	}
	h := d.hashWord(key)
	seg := d.table.Load().segment(h)
	s := seg.load()
	if no, same := seg.bucketAt(h, s); same {
		if b := (*bucket)(d.space.near(no)); b != nil {
			line, i, ended := b.findWord(h, key)
			if i != 0 {
				_, val = b.wordLine(line).at(i)
			}
			if seg.undisturbed(s) && ended {
				return val, i != 0, nil
			}
		}
	}
	return d.getWordSlow(key)
}

func (d *dict) getWordSlow(key uint64) (val uint64, ok bool, err error) {
	var k, v [8]byte
	binary.LittleEndian.PutUint64(k[:], key)
	if _, ok, err = d.get(v[:0], d.hashWord(key), k[:]); !ok {
		return 0, false, err // v may hold what a torn attempt has read
	}
	return binary.LittleEndian.Uint64(v[:]), true, err
}

// prefetch asks for the line where a search for h in lines begins. What it
// goes by may be changing: then it asks for another line.
func (d *dict) prefetch(h uint64) {
	if !optimistic {
		return
	}
	t := d.table.Load()
	seg := t.segment(h)
	if no, same := seg.bucketAt(h, seg.load()); same {
		if b := (*bucket)(d.space.near(no)); b != nil {
			prefetch(unsafe.Add(unsafe.Pointer(b), homeOff(h)))
		}
	}
}

// findWord returns in which line the search for key ends, which is not 0, and which
// of the line's slots has it, counted from 1; 0 if it is absent. The search has not
// ended if all lines are full: the bucket may have more pages.
//
// Line and slot are apart because the line is known before memory answers.
func (b *bucket) findWord(h, key uint64) (line uintptr, i int, ended bool) {
	line = homeOff(h)
	for range lineCount {
		off := int(line)
		last := b.word(off + 3*wordSlot)
		if i = whichIs(key, b.word(off), b.word(off+wordSlot), b.word(off+2*wordSlot), last); i != 0 {
			return line, (i-1)&3 + 1, true // in the line, if damaged or torn it has the key twice
		}
		if last == 0 {
			return line, 0, true
		}
		if line += lineSize; line == pageSize {
			line = lineSize
		}
	}
	return line, 0, false
}

// whichIs returns which of four slots has the key, counted from 1; 0 if none
// has, and the sum if several have. It has no branch for each slot: one that is
// mispredicted would wait for the line, and the lookups after this one with it.
// Small enough to be inlined.
func whichIs(key, k1, k2, k3, k4 uint64) (i int) {
	return oneIf(k1 == key) + 2*oneIf(k2 == key) + 3*oneIf(k3 == key) + 4*oneIf(k4 == key)
}

// usedOf returns how many of a line's slots are used, of which the last is not:
// they are the first ones. It has no branches either.
func usedOf(k1, k2, k3 uint64) int { return 3 - oneIf(k1 == 0) - oneIf(k2 == 0) - oneIf(k3 == 0) }

func oneIf(c bool) (n int) {
	if c {
		n = 1
	}
	return n
}

// copy copies a page that writers may be changing. Of words that are stored
// without a counter, key before value, as the copy must not miss the
// value of a key that it has.
func (b *bucket) copy(src *bucket, l *layout) {
	if !wholeWords || !l.words() {
		*b = *src
		return
	}
	for off := 0; off < pageSize; off += 8 {
		b.setWord(off, src.word(off))
	}
}

// lockWord takes the lock under which the key of words with hash h is changed,
// and returns the first page of its bucket. It does so where nothing is in the
// way, as nearly always; otherwise seg is nil and nothing is locked.
//
// The bucket is looked for before, so that its line comes while the lock is
// taken. It still is the right one if the segment's version is the same: that
// is even, so the container is open, and the table is the present one.
func (d *dict) lockWord(h uint64) (seg *segment, no pageNo, b *bucket) {
	seg = d.table.Load().segment(h)
	if !optimistic {
		seg.mu.Lock()
	}
	s := seg.load() &^ 1
	no = seg.look(h, s)
	if !optimistic {
		seg.mu.Unlock()
	}
	b = (*bucket)(d.space.flatPage(no))
	if b == nil || no < slotPages {
		return nil, 0, nil
	}
	prefetch(unsafe.Add(unsafe.Pointer(b), homeOff(h)))
	if !d.a.admits(d.cost.Load()) {
		return nil, 0, nil
	}
	seg.mu.Lock()
	if seg.load() == s && len(seg.busy) == 0 && d.active.Load() {
		return seg, no, b
	}
	seg.mu.Unlock()
	return nil, 0, nil
}

// setWord is a changeSet of words. A value that replaces another has a way of its
// own, of few instructions: as in Get, the processor then comes to the next
// call's line, and asks for it, while it waits for this one's.
func (d *dict) setWord(key, val uint64) error {
	h := d.hashWord(key)
	if seg, no, b := d.lockWord(h); seg != nil {
		off := homeOff(h)
		if wholeWords && key != 0 {
			line := b.wordLine(off)
			if i := whichIs(key, line[0], line[2], line[4], line[6]); i != 0 {
				d.space.touchAlone(no, d.space.dirtyLines(no), off)
				line.vals().put(i, val)
				seg.mu.Unlock()
				return nil
			}
		}
		stored := d.storeWord(seg, no, b, h, key, val)
		seg.mu.Unlock()
		if stored {
			return nil
		}
	}
	return d.setWordSlow(h, key, val, nil)
}

// A wordHold is the hold of a callback on a word, and the first page of its
// bucket when it began; seg is nil if that did not come by lockWord.
type wordHold struct {
	hold
	seg  *segment
	seen uint64 // its version then
	no   pageNo
	b    *bucket
	line uintptr // where the word's search ended, or its slot is
	i    int     // the slot in the line, counted from 1; 0 if the word is absent

	dirty *uint64 // the page's dirty lines
}

// storeHeld is setWord of a key whose hash is h, for the callback whose hold is
// by. Its bucket nearly always is where it was.
func (d *dict) storeHeld(h, key, val uint64, by *wordHold) error {
	if seg := by.seg; seg != nil && d.a.admits(d.cost.Load()) {
		seg.mu.Lock()
		if seg.load() == by.seen && d.active.Load() && (d.storeFound(by, val) || d.storeWord(seg, by.no, by.b, h, key, val)) {
			seg.clearBusyKey(h)
			seg.mu.Unlock()
			by.released = true
			return nil
		}
		seg.mu.Unlock()
	}
	return d.setWordSlow(h, key, val, &by.hold)
}

// storeFound is storeWord over the word that the callback was given, which nothing
// has moved since.
func (d *dict) storeFound(by *wordHold, val uint64) bool {
	if !wholeWords || by.i == 0 {
		return false
	}
	d.space.touchAlone(by.no, by.dirty, by.line)
	by.b.wordLine(by.line).vals().put(by.i, val)
	return true
}

func (d *dict) setWordSlow(h, key, val uint64, by *hold) error {
	var k, v [8]byte
	binary.LittleEndian.PutUint64(k[:], key)
	binary.LittleEndian.PutUint64(v[:], val)
	_, _, err := d.change(changeSet, h, k[:], v[:], nil, by)
	return err
}

// holdWord is holdKey for words; the hold is left in by.
func (d *dict) holdWord(by *wordHold, h, key uint64) (val uint64, ok bool, err error) {
	if seg, no, b := d.lockWord(h); seg != nil {
		by.dirty = d.space.dirtyLines(no)
		prefetch(unsafe.Pointer(by.dirty)) // with the line
		if line, i, ended := b.findWord(h, key); ended && key != 0 {
			if i != 0 {
				_, val = b.wordLine(line).at(i)
			}
			seg.setBusy(h, h, nil)
			by.lo, by.hi, by.epoch = h, h, d.epoch.Load()
			by.seg, by.seen, by.no, by.b, by.line, by.i = seg, seg.load(), no, b, line, i
			seg.mu.Unlock()
			return val, i != 0, nil
		}
		seg.mu.Unlock()
	}
	if err = d.writable(); err != nil {
		return 0, false, err
	}
	var k, v [8]byte
	binary.LittleEndian.PutUint64(k[:], key)
	by.hold, _, ok, err = d.holdKey(h, k[:], v[:0])
	return binary.LittleEndian.Uint64(v[:]), ok, err
}

// deleteWord is a changeRemove of words.
func (d *dict) deleteWord(key uint64) (ok bool, err error) {
	h := d.hashWord(key)
	if seg, no, b := d.lockWord(h); seg != nil {
		dirty := d.space.dirtyLines(no)
		prefetch(unsafe.Pointer(dirty)) // with the line
		line, i, ended := b.findWord(h, key)
		switch {
		case key == 0:
		case i != 0:
			return true, d.leave(seg, d.removeWord(seg, h, no, b, dirty, line, i), nil)
		case ended:
			seg.mu.Unlock()
			return false, nil
		}
		seg.mu.Unlock()
	}
	var k [8]byte
	binary.LittleEndian.PutUint64(k[:], key)
	_, ok, err = d.change(changeRemove, h, k[:], nil, nil, nil)
	return ok, err
}

// removeWord is remove of the word in slot i of a line of page no, b, the first of
// its bucket.
func (d *dict) removeWord(seg *segment, h uint64, no pageNo, b *bucket, dirty *uint64, line uintptr, i int) error {
	slot := slotOfWord(line, i)
	from, j, ended := d.displacedWord(b, line)
	if !ended || j != 0 && b.next() != 0 { // all lines are full: the bucket may have more pages
		return d.remove(d.table.Load(), seg, h, no, place{no: no, b: b, i: slot})
	}
	seg.beginShort()
	for j != 0 {
		key, val := b.wordLine(from).at(j)
		d.space.touchAlone(no, dirty, line)
		b.wordLine(line).put(i, key, val)
		line, i = from, j
		from, j, _ = d.displacedWord(b, line)
	}
	last := b.wordLine(line).used()
	d.space.touchAlone(no, dirty, line)
	b.wordLine(line).cut(i, last)
	seg.endShort()
	seg.count(-1)
	if last == 1 && d.layout.worthMerging(seg, b, slot) {
		return d.merge(d.table.Load(), seg, h, no)
	}
	return nil
}

// displacedWord is displaced for a line: where a word is that lies further on as the
// line was full, slot i of from, counted from 1; 0 if there is none. The search ends
// there or at an empty slot, which not every page has.
func (d *dict) displacedWord(b *bucket, line uintptr) (from uintptr, i int, ended bool) {
	const all = lineCount * lineSize
	if b.wordLine(line)[6] == 0 {
		return 0, 0, true
	}
	at := line
	for passed := uintptr(lineSize); passed < all; passed += lineSize {
		if at += lineSize; at == pageSize {
			at = lineSize
		}
		for i := 1; i <= lineSize/wordSlot; i++ {
			key, _ := b.wordLine(at).at(i)
			if key == 0 {
				return 0, 0, true
			}
			if (at+all-homeOff(d.hashWord(key)))%all >= passed {
				return at, i, true
			}
		}
	}
	return 0, 0, false
}

// storeWord stores a word where that is simple: over another, or in an empty
// slot near home. The key 0 is not.
func (d *dict) storeWord(seg *segment, no pageNo, b *bucket, h, key, val uint64) bool {
	off := homeOff(h)
	for range maxDistance + 1 {
		line := b.wordLine(off)
		last := line[6]
		i := whichIs(key, line[0], line[2], line[4], last)
		if i == 0 && last != 0 {
			if off += lineSize; off == pageSize {
				off = lineSize
			}
			continue
		}
		if key == 0 {
			return false
		}
		d.space.touchAlone(no, d.space.dirtyLines(no), off)
		if !wholeWords {
			seg.begin()
		}
		if i != 0 {
			line.vals().put(i, val)
		} else {
			line.put(1+usedOf(line[0], line[2], line[4]), key, val)
			seg.count(+1)
		}
		if !wholeWords {
			seg.end()
		}
		return true
	}
	return false
}
