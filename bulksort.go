package emd

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"unsafe"
)

// A sorter brings any number of entries of a dict into the order of their
// hashes with bounded memory: it gathers them in a buffer, and writes the buffer as
// a sorted run to a scratch file when it is full. Merging the runs gives all
// of them in order; where there would be too many, some are merged to a longer
// one first. What fits in the buffer needs no file.
//
// An entry is a record: of a dict of fixed sizes key and value; of others
//
//	uvarint(size of key) uvarint(2*size of value + far) key value
//
// A far value, of farScratch bytes or more, went to the scratch file by itself:
// in its place is where, 8 bytes, so that no buffer must hold many of them.
type sorter struct {
	a       *Arena
	d       *dict
	limit   int // of memory, in bytes
	buf     []byte
	items   []sortItem   // records of buf, in the order of add
	spare   []sortItem   // for sort
	scratch *scratchFile // nil until it is needed
	runs    []sortedRun

	count int64 // entries added
	bytes int64 // that they take in buckets, about
}

type sortItem struct {
	hash      uint64
	off, size uint32 // of the record in buf
}

// A sortedRun is a part of the scratch file. Runs are in the order of their
// age, and levels do not rise.
type sortedRun struct {
	off, size int64
	level     int // how often its entries were merged
}

const (
	maxSortMemory = 64 << 20
	minSortMemory = 128 << 10
	sortItemSize  = 16
	farScratch    = 64 << 10 // bytes
	maxFanIn      = 256
	minFanIn      = 4
	fanInMemory   = 256 << 10 // for each run of a merge, in memory of maxSortMemory
	scratchBlock  = 1 << 20
)

func newSorter(d *dict) *sorter {
	limit := min(max(d.a.limit/4, minSortMemory), maxSortMemory)
	return &sorter{a: d.a, d: d, limit: int(limit)}
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
	if len(s.buf)+len(key)+min(len(val), farScratch)+2*binary.MaxVarintLen32+2*sortItemSize*(len(s.items)+1) > s.limit && len(s.items) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.count++
	start := len(s.buf)
	if l := s.d.layout; l.kind != layoutSlotted {
		s.bytes += int64(l.slot)
	} else {
		s.bytes += int64(l.form(len(key), len(val)).size) + 4
		far := uint64(0)
		var place [8]byte
		size := len(val)
		if size >= farScratch {
			off, err := s.addFar(val)
			if err != nil {
				return err
			}
			far = 1
			binary.LittleEndian.PutUint64(place[:], uint64(off))
			val = place[:]
		}
		s.buf = binary.AppendUvarint(s.buf, uint64(len(key)))
		s.buf = binary.AppendUvarint(s.buf, uint64(size)<<1|far)
	}
	s.buf = append(s.buf, key...)
	s.buf = append(s.buf, val...)
	s.items = append(s.items, sortItem{hash, uint32(start), uint32(len(s.buf) - start)})
	return nil
}

func (s *sorter) addFar(val []byte) (off int64, err error) {
	f, err := s.openScratch()
	if err != nil {
		return 0, err
	}
	off = f.size
	return off, f.append(val)
}

// sort puts the items in order, and leaves out those whose key comes again.
func (s *sorter) sort() {
	n := len(s.items)
	// Hashes are distributed evenly, so one pass over their upper bits leaves
	// a few items to a part.
	shift := 64 - max(1, bits.Len(uint(n/8)))
	starts := make([]uint32, 1<<(64-shift)+1)
	for i := range s.items {
		starts[s.items[i].hash>>shift+1]++
	}
	for i := 1; i < len(starts); i++ {
		starts[i] += starts[i-1]
	}
	s.spare = slices.Grow(s.spare[:0], n)[:n]
	for i := range s.items {
		at := &starts[s.items[i].hash>>shift]
		s.spare[*at] = s.items[i]
		*at++
	}
	for from := 0; from < n; {
		to := from + 1
		for to < n && s.spare[to].hash>>shift == s.spare[from].hash>>shift {
			to++
		}
		if to-from > 1 {
			slices.SortFunc(s.spare[from:to], func(x, y sortItem) int {
				return cmp.Or(cmp.Compare(x.hash, y.hash), cmp.Compare(x.off, y.off))
			})
		}
		from = to
	}
	last := s.items[:0]
next:
	for _, it := range s.spare {
		for i := len(last) - 1; i >= 0 && last[i].hash == it.hash; i-- {
			if string(s.keyOf(last[i])) == string(s.keyOf(it)) {
				last[i] = it
				continue next
			}
		}
		last = append(last, it)
	}
	s.items = last
}

// record returns the record of item i. They are asked for one by one in
// order, which is none in the buffer: so it asks for a later one.
func (s *sorter) record(i int) []byte {
	const ahead = 16
	if i+ahead < len(s.items) {
		prefetch(unsafe.Pointer(&s.buf[s.items[i+ahead].off]))
	}
	it := s.items[i]
	return s.buf[it.off : it.off+it.size]
}

func (s *sorter) keyOf(it sortItem) []byte {
	var e sortedEntry
	_, _ = e.parse(s.d, s.buf[it.off:it.off+it.size])
	return e.key
}

// spill writes the buffer as a run.
func (s *sorter) spill() error {
	f, err := s.openScratch()
	if err != nil {
		return err
	}
	s.sort()
	start := f.size
	for i := range s.items {
		if err := f.add(s.record(i)); err != nil {
			return err
		}
	}
	if err := f.flush(); err != nil {
		return err
	}
	s.buf, s.items = s.buf[:0], s.items[:0]
	s.runs = append(s.runs, sortedRun{off: start, size: f.size - start})
	return s.mergeRuns()
}

// fanIn is how many runs are merged at a time.
func (s *sorter) fanIn() int {
	return min(max(s.limit/fanInMemory, minFanIn), maxFanIn)
}

// mergeRuns merges the youngest runs as long as there are too many of a level.
func (s *sorter) mergeRuns() error {
	for {
		n, from := s.fanIn(), len(s.runs)
		last := s.runs[from-1].level
		for from > 0 && s.runs[from-1].level == last {
			from--
		}
		if len(s.runs)-from < n {
			return nil
		}
		old := s.runs[from:]
		m, err := s.merge(s.sources(old))
		if err != nil {
			return err
		}
		start := s.scratch.size
		for {
			e, err := m.next()
			if err != nil {
				return err
			}
			if e == nil {
				break
			}
			if err := s.scratch.add(e.record); err != nil {
				return err
			}
		}
		if err := s.scratch.flush(); err != nil {
			return err
		}
		for _, r := range old {
			_ = s.scratch.f.Punch(r.off, r.size) // a courtesy to the disk
		}
		s.runs = append(s.runs[:from], sortedRun{off: start, size: s.scratch.size - start, level: last + 1})
	}
}

// sources returns readers of runs.
func (s *sorter) sources(runs []sortedRun) (all []*source) {
	size := max(s.limit/2/max(1, len(runs)), pageSize)
	for _, r := range runs {
		in := &runReader{f: s.scratch.f, at: r.off, end: r.off + r.size, buf: make([]byte, 0, min(int64(size), r.size))}
		src := &source{}
		src.next = func() (bool, error) { return in.next(s.d, &src.sortedEntry) }
		all = append(all, src)
	}
	return all
}

// sorted returns all entries in order, behind those of the older sources.
func (s *sorter) sorted(older ...*source) (*merger, error) {
	all := append(older, s.sources(s.runs)...)
	if len(s.items) > 0 {
		s.sort()
		i := 0
		src := &source{}
		src.next = func() (bool, error) {
			if i == len(s.items) {
				return false, nil
			}
			src.hash = s.items[i].hash
			_, err := src.parse(s.d, s.record(i))
			i++
			return true, err
		}
		all = append(all, src)
	}
	s.spare = nil
	return s.merge(all)
}

// A sortedEntry is one of a sorter. Its memory is good until the next.
type sortedEntry struct {
	hash     uint64
	record   []byte
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

// parse takes the entry apart that b begins with, and returns the bytes of b
// that are wanted: more than there are, if the entry is longer. It leaves the hash alone.
func (e *sortedEntry) parse(d *dict, b []byte) (size int, err error) {
	l := d.layout
	if l.kind != layoutSlotted {
		if len(b) >= l.slot {
			e.record = b[:l.slot]
			e.key, e.val = b[:l.keySize:l.keySize], b[l.keySize:l.slot]
		}
		return l.slot, nil
	}
	keySize, n := binary.Uvarint(b)
	valSize, m := binary.Uvarint(b[max(0, n):])
	if n <= 0 || m <= 0 {
		return min(len(b)+1, 2*binary.MaxVarintLen64), nil
	}
	if keySize > maxKeySize || valSize>>1 > maxValueSize {
		return 0, errScratch
	}
	e.how, e.valSize = valHere, int(valSize>>1)
	stored := e.valSize
	if valSize&1 != 0 {
		e.how, stored = valScratch, 8
	}
	start := n + m
	size = start + int(keySize) + stored
	if size <= len(b) {
		e.record = b[:size]
		e.key, e.val = b[start:start+int(keySize):start+int(keySize)], b[start+int(keySize):size]
	}
	return size, nil
}

// A source yields entries in the order of their hashes; of equal ones, the
// older first.
type source struct {
	sortedEntry
	age  int
	next func() (bool, error)
}

// A merger yields the entries of several sources in the order of their hashes;
// of equal ones, those of the older source first.
type merger struct {
	heap sourceHeap
	last *source // whose entry next returned
}

func (s *sorter) merge(all []*source) (*merger, error) {
	m := &merger{}
	for age, src := range all {
		src.age = age
		ok, err := src.next()
		if err != nil {
			return nil, err
		}
		if ok {
			m.heap = append(m.heap, src)
		}
	}
	heap.Init(&m.heap)
	return m, nil
}

// next returns the next entry, nil at the end.
func (m *merger) next() (*sortedEntry, error) {
	if m.last != nil {
		ok, err := m.last.next()
		switch {
		case err != nil:
			return nil, err
		case ok:
			heap.Fix(&m.heap, 0)
		default:
			heap.Pop(&m.heap)
		}
		m.last = nil
	}
	if len(m.heap) == 0 {
		return nil, nil
	}
	m.last = m.heap[0]
	return &m.last.sortedEntry, nil
}

type sourceHeap []*source

func (h sourceHeap) Len() int { return len(h) }
func (h sourceHeap) Less(i, j int) bool {
	return h[i].hash < h[j].hash || h[i].hash == h[j].hash && h[i].age < h[j].age
}
func (h sourceHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *sourceHeap) Push(x any)   { *h = append(*h, x.(*source)) }
func (h *sourceHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// A runReader reads a run, buffered.
type runReader struct {
	f       file
	at, end int64 // of what is not in buf yet
	buf     []byte
	pos     int
}

func (r *runReader) next(d *dict, e *sortedEntry) (bool, error) {
	for {
		if r.pos == len(r.buf) && r.at == r.end {
			return false, nil
		}
		size, err := e.parse(d, r.buf[r.pos:])
		if err != nil {
			return false, err
		}
		if size <= len(r.buf)-r.pos {
			r.pos += size
			e.hash = d.hash(e.key)
			return true, nil
		}
		if err := r.fill(size); err != nil {
			return false, err
		}
	}
}

// fill reads on, so that at least size bytes are in the buffer.
func (r *runReader) fill(size int) error {
	rest := copy(r.buf[:cap(r.buf)], r.buf[r.pos:])
	if size > cap(r.buf) {
		bigger := make([]byte, size)
		copy(bigger, r.buf[:rest])
		r.buf = bigger
	}
	r.pos = 0
	n := min(int64(cap(r.buf)-rest), r.end-r.at)
	r.buf = r.buf[:rest+int(n)]
	if err := readWhole(r.f, r.buf[rest:], r.at); err != nil {
		return err
	}
	r.at += n
	if len(r.buf) < size {
		return errScratch
	}
	return nil
}

// A scratchFile takes what a bulk load, or the sorting of a list, has no memory for. Its name, the
// arena's with an ending and a number, is removed as soon as it is open, so that
// the file goes with the process, however that ends. Where an open file
// keeps its name (Windows), Open removes what a crash has left.
type scratchFile struct {
	a      *Arena
	f      file
	number int
	named  bool
	size   int64
	buf    []byte // to be written at the end
}

func scratchPath(path string, number int) string { return path + "-load" + strconv.Itoa(number) }

func (s *sorter) openScratch() (*scratchFile, error) {
	if s.scratch != nil {
		return s.scratch, nil
	}
	f, err := s.a.openScratch(min(scratchBlock, s.limit/4))
	s.scratch = f
	return f, err
}

// openScratch makes a scratch file that writes blocks of a size.
func (a *Arena) openScratch(block int) (*scratchFile, error) {
	a.openMu.Lock()
	defer a.openMu.Unlock()
	number := 0
	for slices.Contains(a.scratches, number) {
		number++
	}
	path := scratchPath(a.path, number)
	if err := a.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := a.fs.Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, a.opts.Mode)
	if err != nil {
		return nil, asFull(err)
	}
	a.scratches = append(a.scratches, number)
	return &scratchFile{a: a, f: f, number: number, named: a.fs.Remove(path) != nil, buf: make([]byte, 0, block)}, nil
}

func (f *scratchFile) close() error {
	err := f.f.Close()
	a := f.a
	a.openMu.Lock()
	defer a.openMu.Unlock()
	if f.named {
		err = errors.Join(err, a.fs.Remove(scratchPath(a.path, f.number)))
	}
	a.scratches = slices.DeleteFunc(a.scratches, func(n int) bool { return n == f.number })
	return err
}

// append writes b at the end.
func (f *scratchFile) append(b []byte) error {
	if _, err := f.f.WriteAt(b, f.size); err != nil {
		return asFull(err)
	}
	f.size += int64(len(b))
	return nil
}

// add is append, later: see flush.
func (f *scratchFile) add(b []byte) error {
	if len(f.buf)+len(b) > cap(f.buf) {
		if err := f.flush(); err != nil {
			return err
		}
		if len(b) > cap(f.buf) {
			return f.append(b)
		}
	}
	f.buf = append(f.buf, b...)
	return nil
}

func (f *scratchFile) flush() error {
	err := f.append(f.buf)
	f.buf = f.buf[:0]
	return err
}

// read returns the size bytes at off, in buf if that has the room.
func (f *scratchFile) read(buf []byte, off int64, size int) ([]byte, error) {
	buf = slices.Grow(buf[:0], size)[:size]
	err := readWhole(f.f, buf, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errScratch
	}
	return buf, err
}

// removeScratches removes what bulk loads had to leave at a crash. The caller has
// the file locked, so that none is at work.
func (a *Arena) removeScratches() {
	const most = 8 // of which some may be missing
	for i := 0; ; i++ {
		err := a.fs.Remove(scratchPath(a.path, i))
		switch {
		case errors.Is(err, fs.ErrNotExist) && i >= most:
			return
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			a.logger().Warn("left-over scratch file", "path", scratchPath(a.path, i), "err", err)
			return
		}
	}
}
