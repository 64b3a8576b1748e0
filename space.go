package emd

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// The space is the file as memory: chunks of address space that stay where
// they are, a table that finds them, and a note of every line that changed.
//
// A page is logged or fresh. Below the border, the high-water mark of the
// last commit, pages are logged: the file holds what was committed, memory
// shows it privately, and what changes goes through the redo log. From the
// border up, pages are fresh: nothing committed refers to them, they live in
// memory of the process and are written to the file once, directly.
//
// The invariant that commit, checkpoint, spill and rollback keep: a page
// without a dirty line has in memory the bytes that the file holds (zeros
// past its end) with the units of the live log laid over them. Pages of
// checksums are the exception: only the file counts.
const (
	pageShift = 12
	pageSize  = 1 << pageShift // of the file, whatever the machine's page size
	lineShift = 6
	lineSize  = 1 << lineShift // unit of the dirty map and of the log
	allLines  = ^uint64(0)     // of a page
	maxPages  = 1 << 32        // 16 TiB

	// The border moves by units, so that no page of the machine (4, 16 or
	// 64 KiB) holds logged and fresh bytes. Fresh bytes have a checksum a unit.
	unitPages = 16
	unitSize  = unitPages * pageSize

	defaultChunkSize = 64 << 20
	minChunkSize     = 256 << 10
	eagerChunks      = 64 // files of up to so many chunks are mapped at open
)

const _ = uint(-(pageSize / lineSize % 64)) // a word has a bit for each line of a page

// pageNo numbers the pages of the file. Page 0 holds a header slot, so 0 can
// mean none.
type pageNo = uint32

type page [pageSize]byte

type space struct {
	file    file
	mapping mapping
	table   atomic.Pointer[chunkTable]
	page1   unsafe.Pointer // page 1, set before flat
	flat    atomic.Uint32  // pages, from 1 on, that lie one after the other in memory
	shift   uint8          // log2 of the pages of a slot of the table
	grow    uint8          // log2 of the slots of a large chunk, see slots
	mask    pageNo         // pages of a slot - 1
	osShift uint8          // log2 of the file pages in a page of the machine
	whole   bool           // Options.FullPages: mark whole pages
	tables  bool           // keep dirty lines: the mapping is private
	shared  bool           // see relaxed.go
	marked  []uint64       // if shared, the dirty map of every chunk: all is marked

	manyOwned int // see width

	// border is the first fresh page. It moves inside the closed gate only.
	border atomic.Uint64

	// Counted are pages of the file, so that with equal limits equal operations
	// commit alike everywhere; a machine of larger pages may hold more.
	private atomic.Int64 // bytes of private copies and fresh pages in memory
	fresh   atomic.Int64 // of these, fresh ones
	spilled atomic.Int64 // bytes written before their commit, since open

	mu       sync.Mutex
	dirty    []*chunk // chunks with dirty lines, in the order of their first
	fileSize int64
	ensured  int              // chunks that are mapped, or will be at their first use
	mapErr   error            // why a chunk could not be mapped
	owning   int              // ranges of guarded pages that became writable since a checkpoint, or that it left so
	reserve  []byte           // see reserveSize
	onShort  func(short bool) // called when it is given up, and when there is one again
}

// A chunkTable finds the memory of a page with one load. It is replaced, not
// changed, when the file grows past it; its slots are filled when a chunk is
// first used.
type chunkTable struct {
	mem    []unsafe.Pointer // start of each slot, nil before its first use
	lines  []unsafe.Pointer // its dirty map: a word for each page
	chunks []*chunk         // a chunk may take several slots
}

// all yields the chunks in use.
func (t *chunkTable) all(yield func(*chunk) bool) {
	var last *chunk
	for _, c := range t.chunks {
		if c != nil && c != last && !yield(c) {
			return
		}
		last = c
	}
}

// A chunk is a stretch of the file, mapped. Its tables lie outside the Go
// heap and take memory when they are first written.
type chunk struct {
	first  pageNo
	pages  pageNo
	mem    unsafe.Pointer
	table  []byte
	lines  []uint64    // a word for each page, a bit for each changed line
	groups []uint64    // a bit for each 64 pages: one of them has changed lines
	owned  []uint64    // a bit for each page: memory has a copy of its own
	guards []uint64    // a bit for each page that is read-only until it is owned
	sums   []uint32    // of each fresh page: the checksum of what the file has there
	listed atomic.Bool // in space.dirty
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// newSpace shows file, of which border pages are committed. Unless private, nothing
// is stored to its memory.
func newSpace(f file, m mapping, chunkSize int64, border uint64, fileSize int64, private bool) (*space, error) {
	s := makeSpace(f, m, chunkSize, fileSize)
	s.tables = private
	s.border.Store(border)
	return s, s.open(border)
}

func makeSpace(f file, m mapping, chunkSize, fileSize int64) *space {
	slot := chunkSize
	if _, heap := m.(*heapMapping); heap {
		slot = min(chunkSize, firstHeapChunk)
	}
	s := &space{
		file: f, mapping: m, fileSize: fileSize,
		shift:     uint8(bits.TrailingZeros64(uint64(slot)) - pageShift),
		grow:      uint8(bits.TrailingZeros64(uint64(chunkSize / slot))),
		osShift:   uint8(max(0, bits.TrailingZeros(uint(osPageSize()))-pageShift)),
		manyOwned: manyOwned,
		onShort:   func(bool) {},
	}
	s.mask = 1<<s.shift - 1
	s.table.Store(&chunkTable{})
	return s
}

// open makes room for the chunks of the pages below end, and maps them unless they are very many.
func (s *space) open(end uint64) error {
	_, heap := s.mapping.(*heapMapping)
	n := s.slotCount(end)
	s.ensured = n
	s.resize(n)
	if n <= eagerChunks || bits.UintSize == 32 || heap { // the heap shall be too small now, not in the middle of a read
		for i := range n {
			if err := s.mapChunk(i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *space) slotCount(pages uint64) int { return int((pages + uint64(s.mask)) >> s.shift) }

// slots returns the slots [first, first+n) of the chunk that slot i is part of.
// Most chunks have one. On the Go heap a small file must take little memory, so
// there the first chunks are small, each as large as all before it. No run of
// pages crosses where they end, wherever the file is made (see allocator.place),
// so that files are the same.
func (s *space) slots(i int) (first, n int) {
	if i == 0 {
		return 0, 1
	}
	n = 1 << min(bits.Len(uint(i))-1, int(s.grow))
	return i &^ (n - 1), n
}

// close takes the memory away; late readers see zeros.
func (s *space) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.table.Load()
	err := s.mapping.close()
	s.table.Store(&chunkTable{mem: t.mem}) // what a late reader may still look at
	for c := range t.all {
		freeTable(c.table)
	}
	freeTable(s.reserve)
	s.dirty, s.reserve = nil, nil
	return err
}

// page returns a page that the caller knows to be part of the file.
func (s *space) page(p pageNo) *page {
	m := s.peek(p)
	if m == nil {
		panic(fmt.Sprintf("emd: page %d is not mapped: %v", p, s.mapError()))
	}
	return m
}

// peek returns a page, or nil if there is none of that number: for numbers
// that a racing reader or untrusted bytes supply.
func (s *space) peek(p pageNo) *page {
	t := s.table.Load()
	i := p >> s.shift
	if uint(i) >= uint(len(t.mem)) {
		return nil
	}
	m := atomic.LoadPointer(&t.mem[i])
	if m == nil {
		m = s.firstUse(int(i))
		if m == nil {
			return nil
		}
	}
	return (*page)(unsafe.Add(m, uintptr(p&s.mask)<<pageShift))
}

// view returns the n bytes at off, or nil unless they lie in the file and in
// one chunk.
func (s *space) view(off uint64, n int) []byte {
	if n < 0 || off>>pageShift >= maxPages {
		return nil
	}
	slotSize := uint64(1) << (s.shift + pageShift)
	in := off & (slotSize - 1)
	if uint64(n) > slotSize-in && uint64(n) > s.chunkEnd(off)-off {
		return nil
	}
	m := s.peek(pageNo(off >> pageShift))
	if m == nil {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(m), off&(pageSize-1))), n)
}

// chunkEnd returns where the chunk ends in which off lies.
func (s *space) chunkEnd(off uint64) uint64 {
	first, n := s.slots(int(off >> (s.shift + pageShift)))
	return uint64(first+n) << (s.shift + pageShift)
}

// prefetch is prefetchRange of a page.
func (s *space) prefetch(p pageNo) { s.prefetchRange(uint64(p)<<pageShift, pageSize) }

// prefetchRange is [mapping.prefetch] of the n bytes at off. Pages are mapped for
// random reads, so nothing else reads ahead of a loop.
func (s *space) prefetchRange(off uint64, n int) {
	if b := s.osPages(off, n); b != nil {
		s.mapping.prefetch(unsafe.Pointer(unsafe.SliceData(b)), int64(len(b)))
	}
}

// await is [mapping.await] of the n bytes at off.
func (s *space) await(off uint64, n int) {
	if b := s.osPages(off, n); b != nil {
		s.mapping.await(unsafe.Pointer(unsafe.SliceData(b)), int64(len(b)))
	}
}

// stream is [mapping.stream] of the n bytes at off.
func (s *space) stream(off uint64, n int, on bool) bool {
	b := s.osPages(off, n)
	return b != nil && s.mapping.stream(unsafe.Pointer(unsafe.SliceData(b)), int64(len(b)), on)
}

// inMemory says whether the n bytes at off can be read without the disk, and
// whether that is known.
func (s *space) inMemory(off uint64, n int) (is, known bool) {
	b := s.osPages(off, n)
	if n == 0 || b == nil {
		return true, true
	}
	return s.mapping.resident(unsafe.Pointer(unsafe.SliceData(b)), int64(len(b)))
}

// osPages is view from the start of the operating system's page.
func (s *space) osPages(off uint64, n int) []byte {
	from := off &^ (pageSize<<s.osShift - 1)
	return s.view(from, n+int(off-from))
}

// catchFault is deferred around reads of mapped memory that loops make, with
// what SetPanicOnFault(true) returned: a bad sector, or a file that another
// program has cut, becomes an error instead of the end of the program.
func catchFault(err *error, before bool) {
	debug.SetPanicOnFault(before)
	switch fault := recover().(type) {
	case nil:
	case interface{ Addr() uintptr }:
		*err = fmt.Errorf("%w: the file cannot be read here: a bad disk, or another program has cut it", syscall.EIO)
	default:
		panic(fault)
	}
}

// firstUse maps chunk i. A failure is kept for mapError.
func (s *space) firstUse(i int) unsafe.Pointer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mapChunk(i); err != nil {
		s.mapErr = err
		return nil
	}
	return s.table.Load().mem[i]
}

func (s *space) mapError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mapErr
}

// mapChunk fills slot i of the table, and those of the same chunk. The caller holds mu, or is alone.
func (s *space) mapChunk(i int) error {
	t := s.table.Load()
	if i >= len(t.mem) || t.mem[i] != nil || i >= len(t.chunks) {
		return nil
	}
	first, n := s.slots(i)
	off, size := int64(first)<<(s.shift+pageShift), int64(n)<<(s.shift+pageShift)
	filed := min(max(int64(s.border.Load())<<pageShift-off, 0), size)
	mem, guarded, err := s.mapping.chunk(off, size, filed)
	if err != nil {
		return err
	}
	c := &chunk{first: pageNo(first) << s.shift, pages: pageNo(n) << s.shift, mem: mem}
	if guarded {
		if err := s.keepReserve(); err != nil {
			return err
		}
	}
	if s.tables {
		if err := c.makeTables(int(c.pages)); err != nil {
			return err
		}
	}
	if guarded {
		c.guard(0, c.pages)
	}
	for k := range n {
		if s.tables {
			atomic.StorePointer(&t.lines[first+k], unsafe.Pointer(&c.lines[k<<s.shift]))
		}
		if s.shared {
			atomic.StorePointer(&t.lines[first+k], unsafe.Pointer(&s.marked[0]))
		}
		t.chunks[first+k] = c
		atomic.StorePointer(&t.mem[first+k], unsafe.Add(mem, k<<(s.shift+pageShift)))
	}
	s.flatten(t)
	return nil
}

// flatten finds how many chunks follow each other in memory as they do in the
// file. On the Go heap neighbours are chance, and no pointer may go from one to
// the other. The caller holds mu, or is alone.
func (s *space) flatten(t *chunkTable) {
	if t.mem[0] == nil {
		return
	}
	if s.flat.Load() == 0 {
		s.page1 = unsafe.Add(t.mem[0], pageSize)
	}
	_, heap := s.mapping.(*heapMapping)
	n := max(1, int((uint64(s.flat.Load())+1)>>s.shift))
	for !heap && n < len(t.mem) && uintptr(t.mem[n]) == uintptr(t.mem[0])+uintptr(n)<<(s.shift+pageShift) {
		n++
	}
	s.flat.Store(uint32(min(uint64(n)<<s.shift, maxPages) - 1))
}

// near is peek for a page of a chunk that is in use already, but page 0, else nil.
// Most pages are found without the chunk table, which saves a lookup two loads
// that wait for each other. Small enough to be inlined.
func (s *space) near(p pageNo) *page {
	if i := p - 1; i < s.flat.Load() {
		return (*page)(unsafe.Add(s.page1, uintptr(i)<<pageShift))
	}
	return s.inTable(p)
}

// pageOf returns the page that m is in, and where, if near finds that page
// without the table; otherwise 0.
func (s *space) pageOf(m unsafe.Pointer) (no pageNo, in uintptr) {
	flat := uintptr(s.flat.Load())
	off := uintptr(m) - uintptr(s.page1)
	if i := off >> pageShift; i < flat {
		return pageNo(i) + 1, off & (pageSize - 1)
	}
	return 0, 0
}

// flatPage is near for who goes another way where it returns nil, as for page 0.
func (s *space) flatPage(p pageNo) unsafe.Pointer {
	if i := p - 1; i < s.flat.Load() {
		return unsafe.Add(s.page1, uintptr(i)<<pageShift)
	}
	return nil
}

func (s *space) inTable(p pageNo) *page {
	mem := s.table.Load().mem
	if i := p >> s.shift; p != 0 && uint(i) < uint(len(mem)) {
		if m := atomic.LoadPointer(&mem[i]); m != nil {
			return (*page)(unsafe.Add(m, uintptr(p&s.mask)<<pageShift))
		}
	}
	return nil
}

func (c *chunk) makeTables(pages int) error {
	words := func(bits int) int { return (bits + 63) / 64 }
	groups, owned := words(words(pages)), words(pages)
	table, err := allocTable((pages+groups+2*owned)*8 + pages*4)
	if err != nil {
		return err
	}
	c.table = table
	all := unsafe.Slice((*uint64)(unsafe.Pointer(&table[0])), pages+groups+2*owned)
	c.sums = unsafe.Slice((*uint32)(unsafe.Pointer(&table[len(all)*8])), pages)
	cut := func(n int) (words []uint64) {
		words, all = all[:n:n], all[n:]
		return words
	}
	c.lines, c.groups, c.owned, c.guards = cut(pages), cut(groups), cut(owned), cut(owned)
	return nil
}

// resize gives the table n slots, and the others of the last chunk. The caller
// holds mu, or is alone.
func (s *space) resize(n int) {
	t := s.table.Load()
	if n <= len(t.mem) {
		return
	}
	first, slots := s.slots(n - 1)
	n = first + slots
	// Within its capacity a slice grows in place: readers of the old table
	// see its length only.
	extra := n - len(t.mem)
	s.table.Store(&chunkTable{
		mem:    append(t.mem, make([]unsafe.Pointer, extra)...),
		lines:  append(t.lines, make([]unsafe.Pointer, extra)...),
		chunks: append(t.chunks, make([]*chunk, extra)...),
	})
}

// ensure makes memory for the pages below end.
func (s *space) ensure(end uint64) error {
	n := s.slotCount(end)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared {
		if err := s.extendFile(end); err != nil {
			return err
		}
	}
	s.resize(n)
	for ; s.ensured < n; s.ensured++ {
		if err := s.mapChunk(s.ensured); err != nil {
			return err
		}
	}
	return nil
}

// lineMask returns the lines of a page that [off, off+n) lies in.
func lineMask(off, n int) uint64 {
	if n <= 0 {
		return 0
	}
	first, last := uint(off)>>lineShift, uint(off+n-1)>>lineShift
	return allLines << first & (allLines >> (63 - last))
}

// touch marks lines of a page as changed. Call it before the bytes change;
// what is not marked does not become durable.
func (s *space) touch(p pageNo, lines uint64) {
	w := s.dirtyLines(p)
	switch {
	case w == nil || atomic.LoadUint64(w) == 0:
		s.touchSlow(p, lines)
	case atomic.LoadUint64(w)&lines != lines:
		atomic.OrUint64(w, lines) // all else was done for the first line
	}
}

// touchAlone is touch of the line at off, for whoever keeps all others from marking
// lines of the page, as the lock of a bucket or a list does. dirty has its dirty lines.
func (s *space) touchAlone(p pageNo, dirty *uint64, off uintptr) {
	bit := uint64(1) << (off >> lineShift & 63)
	switch {
	case raceEnabled || dirty == nil || *dirty == 0:
		s.touch(p, bit)
	case *dirty&bit == 0: // pages of a relaxed arena share theirs, in which all are
		*dirty |= bit
	}
}

// dirtyLines returns the dirty lines of a page, nil if its chunk has not been
// used.
func (s *space) dirtyLines(p pageNo) *uint64 {
	t := s.table.Load()
	if i := p >> (s.shift & 31); uint(i) < uint(len(t.lines)) {
		if l := atomic.LoadPointer(&t.lines[i]); l != nil {
			return (*uint64)(unsafe.Add(l, uintptr(p&s.mask)*8))
		}
	}
	return nil
}

// markAlone is mark for whoever keeps all others from marking lines of the same
// pages. Nearly always it is one line.
func (s *space) markAlone(off, n uint64) {
	if (off^(off+n-1))>>lineShift == 0 {
		no := pageNo(off >> pageShift)
		s.touchAlone(no, s.dirtyLines(no), uintptr(off&(pageSize-1)))
	} else {
		s.mark(off, int(n))
	}
}

// mark is touch for any range inside a chunk.
func (s *space) mark(off uint64, n int) {
	for n > 0 {
		in := int(off & (pageSize - 1))
		step := min(n, pageSize-in)
		s.touch(pageNo(off>>pageShift), lineMask(in, step))
		off += uint64(step)
		n -= step
	}
}

func (s *space) touchSlow(p pageNo, lines uint64) {
	s.page(p) // maps the chunk
	if s.shared {
		return // as what is marked
	}
	c := s.table.Load().chunks[p>>s.shift]
	in := p - c.first
	// First: who finds a line marked stores there at once.
	if err := s.unguard(c, in); err != nil {
		panic(fmt.Sprintf("emd: page %d cannot be changed: %v", p, err)) // as the Go runtime does without memory
	}
	isFresh := uint64(p) >= s.border.Load()
	if isFresh || s.whole && keeps(fullPagesRule) {
		lines = allLines
	}
	if atomic.OrUint64(&c.lines[in], lines) == 0 {
		atomic.OrUint64(&c.groups[in>>12], 1<<(in>>6&63))
		if !c.listed.Swap(true) {
			s.mu.Lock()
			s.dirty = append(s.dirty, c)
			s.mu.Unlock()
		}
	}
	s.own(c, in>>6, 1<<(in&63))
}

// own counts pages as private: those of a word of c.owned that are set in pages.
func (s *space) own(c *chunk, word pageNo, pages uint64) {
	owned := &c.owned[word]
	if atomic.LoadUint64(owned)&pages == pages {
		return
	}
	pages &^= atomic.OrUint64(owned, pages)
	s.private.Add(int64(bits.OnesCount64(pages)) * pageSize)
	logged := int64(s.border.Load()) - int64(c.first) - int64(word)*64
	if fresh := pages & (allLines << max(0, logged)); fresh != 0 {
		s.fresh.Add(int64(bits.OnesCount64(fresh)) * pageSize)
	}
}

// Where a system charges private memory in full against what it can promise, when that
// is mapped, chunks are guarded: mapped read-only, and pages become writable
// before they are first stored to. Then memory can run out in the middle of a
// change. So the space keeps a reserve of promised memory, which it gives up for
// the changes that have begun; others are not admitted until it has one again,
// nor is one that may need more than the reserve, unless so much can be had.
const reserveSize = 16 << 20

// guard marks the pages [in, in+n) of c as read-only.
func (c *chunk) guard(in, n pageNo) {
	eachWord(in, in+n, func(word pageNo, pages uint64) { atomic.OrUint64(&c.guards[word], pages) })
}

// eachWord calls fn for the words of a map of pages that [from, to) lies in, with
// the bits of these pages.
func eachWord(from, to pageNo, fn func(word pageNo, pages uint64)) {
	for i := from; i < to; {
		count := min(64-i&63, to-i)
		fn(i>>6, allLines>>(64-count)<<(i&63))
		i += count
	}
}

// unguard lets page in of c be stored to. ErrFull: there is no memory for it, not
// even the reserve's.
func (s *space) unguard(c *chunk, in pageNo) error {
	if atomic.LoadUint64(&c.guards[in>>6])>>(in&63)&1 == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.guards[in>>6]>>(in&63)&1 == 0 {
		return nil
	}
	least := pageNo(1) << s.osShift
	err := s.unguardRange(c, in, max(least, s.width()))
	if err == nil {
		return nil
	}
	if s.reserve != nil { // at once: the runtime, too, may want memory now, and would end the program
		freeTable(s.reserve)
		s.reserve = nil
		s.onShort(true)
	}
	return s.unguardRange(c, in, least)
}

// width returns how many pages become writable at once: the more, the more ranges
// are, as each may take two kernel mappings more, of which there is a limit. Those
// that are have a private page each, at least; others were spilled or committed.
func (s *space) width() pageNo {
	const most = 16 << 20 >> pageShift
	w := pageNo(1)
	for n := min(s.owning, int(s.private.Load()>>pageShift)); n >= s.manyOwned && w < most; n -= s.manyOwned {
		w *= 16
	}
	return w
}

// unguardRange lets the n pages around page in of c be stored to. All of them are
// private then, as the system counts.
func (s *space) unguardRange(c *chunk, in, n pageNo) error {
	in &^= n - 1
	n = min(n, c.pages-in)
	if err := s.mapping.own(unsafe.Add(c.mem, uintptr(in)<<pageShift), int64(n)<<pageShift); err != nil {
		return err
	}
	s.owning++
	eachWord(in, in+n, func(word pageNo, pages uint64) {
		s.own(c, word, pages&atomic.LoadUint64(&c.guards[word]))
		atomic.AndUint64(&c.guards[word], ^pages)
	})
	return nil
}

// remap has fn map the pages [in, in+n) of c anew, which may be guarded then.
func (s *space) remap(c *chunk, in, n pageNo, fn func(p unsafe.Pointer, n, off int64) (guarded bool, err error)) error {
	at := int64(in) << pageShift
	s.mu.Lock() // against unguard, whose range may reach into this one
	defer s.mu.Unlock()
	guarded, err := fn(unsafe.Add(c.mem, at), int64(n)<<pageShift, int64(c.first)<<pageShift+at)
	if guarded {
		c.guard(in, n)
	}
	return err
}

// writablePage returns a page for a store of which the dirty map is not told.
func (s *space) writablePage(p pageNo) (*page, error) {
	c, in := s.chunkOf(uint64(p))
	return s.page(p), s.unguard(c, in)
}

// keepReserve takes a reserve, if there is none. The caller holds mu, or is alone.
func (s *space) keepReserve() (err error) {
	if s.reserve == nil {
		s.reserve, err = allocTable(reserveSize)
	}
	return err
}

// renewReserve takes a new one, if it was given up.
func (s *space) renewReserve() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.keepReserve()
	if err == nil {
		s.onShort(false)
	}
	return err
}

// spare says whether guarded pages of n bytes could become writable now: ErrFull if not.
func (s *space) spare(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserve == nil {
		return nil // nothing is guarded
	}
	b, err := allocTable(int(n))
	freeTable(b)
	return err
}

// A dirtyPage is a page with changed lines; word is its entry of the map.
type dirtyPage struct {
	no   pageNo
	word *uint64
}

// eachDirty calls fn for the pages of [from, to) with changed lines, in
// ascending order. The caller has the gate closed.
func (s *space) eachDirty(from, to uint64, fn func(dirtyPage) error) error {
	s.mu.Lock()
	chunks := slices.Clone(s.dirty)
	s.mu.Unlock()
	slices.SortFunc(chunks, func(x, y *chunk) int { return int(int64(x.first) - int64(y.first)) })
	for _, c := range chunks {
		for i := range c.groups {
			for g := c.groups[i]; g != 0; g &= g - 1 {
				base := (i*64 + bits.TrailingZeros64(g)) * 64
				for j := base; j < min(base+64, len(c.lines)); j++ {
					p := uint64(c.first) + uint64(j)
					if c.lines[j] == 0 || p < from || p >= to {
						continue
					}
					if err := fn(dirtyPage{pageNo(p), &c.lines[j]}); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// sweep forgets the groups and chunks that have no changed lines left. The
// caller has the gate closed.
func (s *space) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = slices.DeleteFunc(s.dirty, func(c *chunk) bool {
		left := false
		for i := range c.groups {
			for g := c.groups[i]; g != 0; g &= g - 1 {
				b := bits.TrailingZeros64(g)
				base := (i*64 + b) * 64
				if isZero(c.lines[base:min(base+64, len(c.lines))]) {
					c.groups[i] &^= 1 << b
				} else {
					left = true
				}
			}
		}
		if !left {
			c.listed.Store(false)
		}
		return !left
	})
}

func isZero(words []uint64) bool {
	for _, w := range words {
		if w != 0 {
			return false
		}
	}
	return true
}

// anyDirty says whether a line has changed since the last commit.
func (s *space) anyDirty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.dirty) != 0
}

// writeFresh writes the changed fresh pages of [from, to), whole units, to
// the file, notes their checksums and lets the file's pages take the place of
// the memory. Nobody else changes these pages meanwhile.
// After an error everything is as dirty as before.
func (s *space) writeFresh(from, to uint64) error {
	return s.eachRange(from, to, s.writeFreshChunk)
}

func (s *space) chunkOf(p uint64) (c *chunk, in pageNo) {
	s.page(pageNo(p))
	c = s.table.Load().chunks[p>>s.shift]
	return c, pageNo(p) - c.first
}

// writeFreshChunk does that for the pages [in, in+n) of chunk c, one run of
// changed units after the other.
func (s *space) writeFreshChunk(c *chunk, in, n pageNo) error {
	unitDirty := func(u pageNo) bool { return !isZero(c.lines[u*unitPages : (u+1)*unitPages]) }
	for u, end := in/unitPages, (in+n)/unitPages; u < end; u++ {
		if !unitDirty(u) {
			continue
		}
		run := u
		for run < end && unitDirty(run) {
			run++
		}
		if err := s.writeUnits(c, u, run); err != nil {
			return err
		}
		u = run
	}
	return nil
}

// writeUnits writes the units [u, end) of c. Pages of them that did not
// change are written too: they hold what the file holds.
func (s *space) writeUnits(c *chunk, u, end pageNo) error {
	in, n := u*unitPages, (end-u)*unitPages
	if err := s.writeFile(c, in, bytesAt(unsafe.Add(c.mem, uintptr(in)<<pageShift), int64(n)<<pageShift)); err != nil {
		return err
	}
	if err := s.remap(c, in, n, s.mapping.adopt); err != nil {
		return err
	}
	clear(c.lines[in : in+n])
	s.disown(c, in, n)
	return nil
}

// freshStep is the most that one call writes of fresh pages, in bytes. In a folio
// of that size Linux maps them as one huge page, and finding an address in
// many pages takes a tenth to a quarter of a lookup, from 270 MB on.
const freshStep = 2 << 20

// writeFile writes the bytes of fresh pages of c, from in on, and notes their
// checksums.
func (s *space) writeFile(c *chunk, in pageNo, b []byte) error {
	off := int64(c.first+in) << pageShift
	if err := writeInSteps(s.file, b, off, freshStep); err != nil {
		return err
	}
	s.mu.Lock()
	s.fileSize = max(s.fileSize, off+int64(len(b)))
	s.mu.Unlock()
	for ; len(b) > 0; in, b = in+1, b[pageSize:] {
		c.sums[in] = sumOf((*page)(b))
	}
	return nil
}

// writeThrough gives whole units of fresh pages, from p on and all of one chunk,
// the bytes b: in the file, and from there in memory. Nobody else uses them meanwhile.
func (s *space) writeThrough(p pageNo, b []byte) error {
	c, in := s.chunkOf(uint64(p))
	n := pageNo(len(b) >> pageShift)
	err := s.writeFile(c, in, b)
	if err == nil {
		err = s.remap(c, in, n, func(p unsafe.Pointer, _, off int64) (bool, error) { return s.mapping.show(p, b, off) })
	}
	if err != nil {
		s.mark(uint64(p)<<pageShift, len(b)) // the file is to have what memory has
		return err
	}
	clear(c.lines[in : in+n])
	s.disown(c, in, n)
	s.spilled.Add(int64(len(b)))
	return nil
}

// disown counts the fresh pages [in, in+n) of c no longer as memory of ours.
func (s *space) disown(c *chunk, in, n pageNo) {
	freed := c.disown(in, in+n) * pageSize
	s.private.Add(-freed)
	s.fresh.Add(-freed)
}

// disown forgets the private copies of the pages [from, to) of the chunk and
// returns how many there were. Other pages of the same word may become private
// meanwhile.
func (c *chunk) disown(from, to pageNo) (n int64) {
	eachWord(from, to, func(word pageNo, pages uint64) {
		n += int64(bits.OnesCount64(atomic.AndUint64(&c.owned[word], ^pages) & pages))
	})
	return n
}

// freshUnitSum returns the checksum of the fresh unit at page p, as it is in
// the file.
func (s *space) freshUnitSum(p uint64) uint32 {
	c, in := s.chunkOf(p)
	return sumOfSums(c.sums[in : in+unitPages])
}

// freshSum returns that of a page that was fresh in this generation.
func (s *space) freshSum(p pageNo) (uint32, error) {
	c, in := s.chunkOf(uint64(p))
	return c.sums[in], nil
}

// settle makes the pages of [from, to), fresh until now, logged ones: they
// show the file from here on. Their changes have been written; the rest gets
// its room on the disk now, because a checkpoint that finds the disk full
// would stop the arena.
func (s *space) settle(from, to uint64) error {
	if from == to {
		return nil
	}
	off, size := int64(from)<<pageShift, int64(to)<<pageShift
	if err := s.allocate(off, size); err != nil {
		return err
	}
	return s.eachRange(from, to, func(c *chunk, in, n pageNo) error {
		if err := s.remap(c, in, n, s.mapping.adopt); err != nil {
			return hard(err)
		}
		s.disown(c, in, n)
		return nil
	})
}

// allocate makes room on the disk for the bytes [off, end), and the file that
// long. Where the file system has no call for that, holes stay, and what is new
// is zeros that are written. After an error nothing has changed.
func (s *space) allocate(off, end int64) error {
	err := s.file.Allocate(off, end-off)
	if errors.Is(err, errors.ErrUnsupported) {
		err = s.writeZeros(end)
	}
	if err == nil && s.fileSize < end {
		err = hard(s.file.Truncate(end))
	}
	if err != nil {
		return errors.Join(err, hard(s.cutBack()))
	}
	s.fileSize = max(s.fileSize, end)
	return nil
}

const zerosStep = 1 << 20 // bytes

// writeZeros writes zeros from the end of the file up to end.
func (s *space) writeZeros(end int64) error {
	zeros := make([]byte, max(0, min(end-s.fileSize, zerosStep)))
	for off := s.fileSize; off < end; off += int64(len(zeros)) {
		if _, err := s.file.WriteAt(zeros[:min(end-off, zerosStep)], off); err != nil {
			return err
		}
	}
	return nil
}

// cutBack takes back what a failed allocate may have added. Where a file cannot
// be cut while it is mapped, it stays longer.
func (s *space) cutBack() error {
	err := s.file.Truncate(s.fileSize)
	if errors.Is(err, errors.ErrUnsupported) {
		s.fileSize, err = s.file.Size()
	}
	return err
}

// discardFresh makes the pages from the border to end zeros again, in memory
// and file, for a rollback. It returns the page from which on new space is
// known to be zero: end, where a file cannot be cut while it is mapped. The caller has
// the gate closed.
func (s *space) discardFresh(end uint64) (zeros uint64, err error) {
	from := s.border.Load()
	end = (end + unitPages - 1) &^ (unitPages - 1)
	// Memory first: a late reader must not meet a map past the end of the file.
	err = s.eachRange(from, end, func(c *chunk, in, n pageNo) error {
		zero := func(p unsafe.Pointer, n, _ int64) (bool, error) { return s.mapping.zero(p, n) }
		if err := s.remap(c, in, n, zero); err != nil {
			return err
		}
		clear(c.lines[in : in+n])
		s.disown(c, in, n)
		return nil
	})
	if err != nil {
		return 0, err
	}
	s.sweep()
	size := int64(from) << pageShift
	if s.fileSize <= size {
		return from, nil
	}
	if err := s.file.Truncate(size); err != nil {
		if errors.Is(err, errors.ErrUnsupported) {
			return end, nil
		}
		return 0, err
	}
	s.fileSize = size
	return from, s.eachRange(from, end, func(c *chunk, in, n pageNo) error {
		clear(c.sums[in : in+n])
		return nil
	})
}

// eachRange calls fn for the pages [from, to) of the file, chunk by chunk:
// the pages [in, in+n) of c.
func (s *space) eachRange(from, to uint64, fn func(c *chunk, in, n pageNo) error) error {
	for from < to {
		c, in := s.chunkOf(from)
		n := min(to-from, uint64(c.pages-in))
		if err := fn(c, in, pageNo(n)); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// dropClean gives back the private copies that hold nothing newer than the
// file: pages below the border without a changed line. The caller has the gate
// closed and the file up to date.
//
// Pages between two copies that are near each other are dropped with them: they
// show the file before and after, and a call costs more than the faults that map
// them again. Where all of a huge page goes it comes back as one.
//
// A machine with larger pages keeps the copy as long as a neighbour in the same
// page of its own has changed lines. That neighbour is private, so the copy is
// found when it may go.
func (s *space) dropClean() error {
	border := s.border.Load()
	perOS := pageNo(1) << s.osShift
	kept, last := 0, pageNo(0) // runs of pages, and the last of them
	for c := range s.table.Load().all {
		if uint64(c.first) >= border {
			continue
		}
		limit := pageNo(min(uint64(c.pages), border-uint64(c.first)))
		clean := func(p pageNo) bool { return isZero(c.lines[p : p+perOS]) }
		for p := pageNo(0); p < limit; p += perOS {
			if p&63 == 0 && c.owned[p>>6] == 0 {
				p += 64 - perOS
				continue
			}
			if !c.anyOwned(p, perOS) {
				continue
			}
			if !clean(p) {
				if perOS > 1 {
					s.disownClean(c, p, perOS)
				}
				if c.first+p != last+perOS {
					kept++
				}
				last = c.first + p
				continue
			}
			end := p + perOS
			for next := end; next < limit && c.owned[next>>6] != 0 && clean(next); {
				owned := c.anyOwned(next, perOS)
				if next += perOS; owned {
					end = next
				}
			}
			if err := s.remap(c, p, end-p, s.mapping.drop); err != nil {
				return err
			}
			s.private.Add(-c.disown(p, end) * pageSize)
			p = end - perOS
		}
	}
	s.mu.Lock()
	s.owning = kept
	s.mu.Unlock()
	return nil
}

// anyOwned says whether one of the n pages from p on, a page of the machine, is
// private.
func (c *chunk) anyOwned(p, n pageNo) bool {
	return c.owned[p>>6]>>(p&63)&(allLines>>(64-n)) != 0
}

// disownClean counts those of the n pages from p on that have no changed line
// no longer as private.
func (s *space) disownClean(c *chunk, p, n pageNo) {
	for i := p; i < p+n; i++ {
		if c.lines[i] == 0 {
			s.private.Add(-c.disown(i, i+1) * pageSize)
		}
	}
}

// spillSome writes about want bytes of fresh pages to the file before their
// commit, to make room. Nothing committed refers to them; one that changes
// again is written again. The caller has the gate closed.
func (s *space) spillSome(end uint64, want int64) error {
	before := s.fresh.Load()
	for p := s.border.Load(); p < end && before-s.fresh.Load() < want; {
		n := min(end-p, spillStep)
		if err := s.spillRange(p, n); err != nil {
			return err
		}
		p += n
	}
	return nil
}

const spillStep = 1 << 20 >> pageShift

// spillRange spills the units inside the pages [p, p+n), which nobody else
// changes meanwhile.
func (s *space) spillRange(p, n uint64) error {
	from := (max(p, s.border.Load()) + unitPages - 1) &^ (unitPages - 1)
	to := (p + n) &^ (unitPages - 1)
	if from >= to {
		return nil
	}
	before := s.fresh.Load()
	err := s.writeFresh(from, to)
	s.spilled.Add(max(0, before-s.fresh.Load()))
	return err
}

// heap returns the size of the tables outside the Go heap.
func (s *space) heap() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.table.Load().all {
		n += int64(len(c.table))
	}
	return n
}

// mapped returns the address space in use.
func (s *space) mapped() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.table.Load().all {
		n += int64(c.pages) << pageShift
	}
	return n
}
