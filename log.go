package emd

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"slices"
	"sync"
)

// The redo log is a second file, <path>-log, which exists while changes are
// made or after a crash. It begins with a page of its own:
//
//	0       8         12     16   32           40         44
//	+-------+---------+------+----+------------+----------+------
//	| magic | version | zero | id | generation | checksum | zero
//	+-------+---------+------+----+------------+----------+------
//
// whose generation is never above that of the file's header, unless the file
// is an older copy. Then come the records of one generation, from header.logOff
// on, each starting on a page; what else is in the file is of the past. The next
// generation starts elsewhere, so that the one before stays whole until
// the header names the next (rules R5 to R7 of the design's CRASH.md).
//
// A record is one commit:
//
//	0       4       8    24           32    40       48     56
//	+-------+-------+----+------------+-----+--------+------+---------+
//	| magic | flags | id | generation | seq | length | mark | durable |
//	+-------+-------+----+------------+-----+--------+------+---------+
//	64          72            76      80
//	+-----------+-------------+-------+-------------+--------------+---------+----------+
//	| freshFrom | fresh units | pages | unit sums   | page entries | padding | checksum |
//	+-----------+-------------+-------+-------------+--------------+---------+----------+
//
// length is that of the whole record, checksum included. durable is the last
// record known to be on disk when this one was written. The fresh units, of
// 64 KiB from page freshFrom on, were written to the file before; a checksum each
// follows. A page entry is its number u32, zero u32, a word with a bit for each
// line of 64 bytes that changed, and these lines. Replaying the entries of all
// records in order over the file gives the last commit.
const (
	logMagicOff      = 0
	logVersionOff    = logMagicOff + 8
	logIDOff         = logVersionOff + 8
	logGenerationOff = logIDOff + fileIDSize
	logSumOff        = logGenerationOff + 8
	logHeader        = pageSize

	recMagicOff      = 0
	recFlagsOff      = recMagicOff + 4
	recIDOff         = recFlagsOff + 4
	recGenerationOff = recIDOff + fileIDSize
	recSeqOff        = recGenerationOff + 8
	recLengthOff     = recSeqOff + 8
	recMarkOff       = recLengthOff + 8
	recDurableOff    = recMarkOff + 8
	recFreshFromOff  = recDurableOff + 8
	recFreshCountOff = recFreshFromOff + 8
	recPagesOff      = recFreshCountOff + 4
	recHeader        = recPagesOff + 4
	recSum           = 4
	entryHeader      = 16

	logMagic    = "EMDlog\r\n"
	recMagic    = 0x6c646d65 // "emdl"
	flagUnsure  = 1          // with NoSync: written before its fresh bytes were known to be on disk
	copyBuffer  = 1 << 20
	zeroStep    = 1 << 20 // how far zeros are written ahead of the records
	minAreaSize = 256 << 10
	logStep     = 16 << 10 // the most that one call writes to the log, see writeInSteps
	applyPages  = 64       // that a checkpoint writes at once
)

// A redoLog is the open log of an arena. Its methods are called by one
// goroutine at a time, apart from the writer of zeros.
type redoLog struct {
	fs   fileSystem
	path string
	mode fs.FileMode
	id   fileID

	mu     sync.Mutex // orders writes of records and of zeros
	f      file       // nil until it is needed
	zeroed int64      // written at least once below here

	generation uint64
	start      int64  // of the generation's records
	tail       int64  // where the next one goes
	seq        uint64 // of the last one
	durable    uint64 // the last one known to be on disk
	inline     bool   // write zeros before the commit returns, for tests
	ahead      sync.WaitGroup
	aheadErr   error // guarded by mu: the writer of zeros failed

	// The kernel tells an open file once that bytes were lost. So one at a
	// time asks, and the first failure is everybody's, for good (R8).
	syncMu  sync.Mutex
	syncErr error
}

const logAdvice = "the log lies beside the file: whoever writes needs a writable folder"

func logPath(path string) string { return path + "-log" }

// create makes the log file durable, name included, before the header of the
// data file may speak of it.
func (l *redoLog) create(generation uint64) error {
	if l.f == nil {
		f, err := l.fs.Open(l.path, os.O_RDWR|os.O_CREATE, l.mode)
		if err != nil {
			return denied(err, logAdvice)
		}
		l.f = f
	}
	if err := l.f.Truncate(0); err != nil {
		return hard(err)
	}
	if err := l.writeHeader(generation); err != nil {
		return err
	}
	if err := writeInSteps(l.f, make([]byte, minAreaSize), logHeader, logStep); err != nil {
		return err
	}
	l.zeroed = logHeader + minAreaSize
	if err := l.f.Sync(); err != nil {
		return hard(err)
	}
	if !keeps(folderRule) {
		return nil
	}
	return hard(l.fs.SyncDir(l.path))
}

func (l *redoLog) writeHeader(generation uint64) error {
	b := make([]byte, pageSize)
	le := binary.LittleEndian
	copy(b[logMagicOff:], logMagic)
	le.PutUint32(b[logVersionOff:], formatVersion)
	copy(b[logIDOff:], l.id[:])
	le.PutUint64(b[logGenerationOff:], generation)
	le.PutUint32(b[logSumOff:], crc32.Checksum(b[:logSumOff], castagnoli))
	_, err := l.f.WriteAt(b, 0)
	return err
}

// begin starts a generation at off; the file's header names it already.
func (l *redoLog) begin(generation uint64, off int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation, l.start, l.tail = generation, off, off
	l.seq, l.durable = 0, 0
	return l.writeHeader(generation)
}

// nextStart returns where the next generation, or a copy of n bytes of this
// one, may begin without touching the records from start to tail.
func nextStart(start, tail, n int64) int64 {
	if !keeps(elsewhereRule) {
		return start
	}
	if start-logHeader >= n {
		return logHeader
	}
	return max(tail, logHeader+minAreaSize)
}

// size returns the bytes of records in this generation.
func (l *redoLog) size() int64 { return l.tail - l.start }

// write puts bytes of the record that begins at the tail in place.
func (l *redoLog) write(b []byte, at int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.aheadErr != nil {
		return l.aheadErr
	}
	if err := writeInSteps(l.f, b, l.tail+at, logStep); err != nil {
		return err
	}
	l.zeroed = max(l.zeroed, l.tail+at+int64(len(b)))
	return nil
}

// sync waits until the records written so far are on disk.
func (l *redoLog) sync() error {
	if err := l.fsync(); err != nil {
		return err
	}
	l.durable = l.seq
	return nil
}

func (l *redoLog) fsync() error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if l.syncErr == nil {
		l.syncErr = hard(l.f.Sync())
	}
	return l.syncErr
}

// accept makes the record of n bytes at the tail part of the log.
func (l *redoLog) accept(n int64) {
	l.seq++
	l.tail = recordEnd(l.tail + n)
}

// writeAhead has zeros written where the next records will go, off the path
// of the commits: a sync inside written blocks is twice as fast as an append.
func (l *redoLog) writeAhead() {
	l.mu.Lock()
	low := l.tail+zeroStep/2 > l.zeroed
	l.mu.Unlock()
	if !low {
		return
	}
	l.ahead.Wait()
	write := func() {
		if err := l.zeroAhead(); err != nil && !onlyFull(err) {
			l.mu.Lock()
			l.aheadErr = err
			l.mu.Unlock()
		}
	}
	if l.inline {
		write()
		return
	}
	l.ahead.Go(write)
}

func (l *redoLog) zeroAhead() error {
	zeros := make([]byte, logStep)
	for n := 0; n < zeroStep; n += len(zeros) {
		l.mu.Lock()
		_, err := l.f.WriteAt(zeros, l.zeroed)
		if err == nil {
			l.zeroed += int64(len(zeros))
		}
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return l.fsync()
}

// close closes the log; remove also takes its name away.
func (l *redoLog) close(remove bool) error {
	l.ahead.Wait()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	if remove {
		err = errors.Join(err, l.fs.Remove(l.path))
	}
	return err
}

// A record is the header of a record in the log.
type record struct {
	off        int64
	flags      uint32
	generation uint64
	seq        uint64
	length     int64
	mark       uint64
	durable    uint64
	freshFrom  uint64
	freshCount uint32
	pages      uint32
}

// end is where the next record may begin.
func (r *record) end() int64 { return recordEnd(r.off + r.length) }

// recordEnd returns where a record may begin after one that ends at off: on a
// page of its own (R5).
func recordEnd(off int64) int64 {
	if !keeps(ownCellsRule) {
		return (off + lineSize - 1) &^ (lineSize - 1)
	}
	return (off + pageSize - 1) &^ (pageSize - 1)
}

func (r *record) encode(id fileID) []byte {
	b := make([]byte, recHeader)
	le := binary.LittleEndian
	le.PutUint32(b[recMagicOff:], recMagic)
	le.PutUint32(b[recFlagsOff:], r.flags)
	copy(b[recIDOff:], id[:])
	le.PutUint64(b[recGenerationOff:], r.generation)
	le.PutUint64(b[recSeqOff:], r.seq)
	le.PutUint64(b[recLengthOff:], uint64(r.length))
	le.PutUint64(b[recMarkOff:], r.mark)
	le.PutUint64(b[recDurableOff:], r.durable)
	le.PutUint64(b[recFreshFromOff:], r.freshFrom)
	le.PutUint32(b[recFreshCountOff:], r.freshCount)
	le.PutUint32(b[recPagesOff:], r.pages)
	return b
}

// readRecord reads the record header at off of a log of size bytes. ok says
// that it is one of this file and that its sizes are possible, not yet that the
// rest of it is whole.
func readRecord(f file, id fileID, off, size int64) (r record, ok bool, err error) {
	if off+recHeader+recSum > size {
		return r, false, nil
	}
	b := make([]byte, recHeader)
	if _, err := f.ReadAt(b, off); err != nil {
		return r, false, err
	}
	le := binary.LittleEndian
	if le.Uint32(b[recMagicOff:]) != recMagic || fileID(b[recIDOff:]) != id {
		return r, false, nil
	}
	r = record{
		off:        off,
		flags:      le.Uint32(b[recFlagsOff:]),
		generation: le.Uint64(b[recGenerationOff:]),
		seq:        le.Uint64(b[recSeqOff:]),
		length:     int64(le.Uint64(b[recLengthOff:])),
		mark:       le.Uint64(b[recMarkOff:]),
		durable:    le.Uint64(b[recDurableOff:]),
		freshFrom:  le.Uint64(b[recFreshFromOff:]),
		freshCount: le.Uint32(b[recFreshCountOff:]),
		pages:      le.Uint32(b[recPagesOff:]),
	}
	least := int64(recHeader) + 4*int64(r.freshCount) + entryHeader*int64(r.pages) + recSum
	possible := r.length >= least && r.length <= size-off && r.seq > 0 &&
		r.mark <= maxPages && r.mark%unitPages == 0 && r.freshFrom == r.mark-uint64(r.freshCount)*unitPages
	return r, possible, nil
}

// whole says whether the checksum of a record is right.
func (r *record) whole(f file) (bool, error) {
	sum := crc32.New(castagnoli)
	in := io.NewSectionReader(f, r.off, r.length-recSum)
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{in}, make([]byte, min(copyBuffer, r.length))); err != nil {
		return false, err
	}
	var b [recSum]byte
	if _, err := f.ReadAt(b[:], r.off+r.length-recSum); err != nil {
		return false, err
	}
	return binary.LittleEndian.Uint32(b[:]) == sum.Sum32() || !keeps(recordSumRule), nil
}

// body returns a reader of what follows the header.
func (r *record) body(f file) *bufio.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(f, r.off+recHeader, r.length-recHeader-recSum), int(min(copyBuffer, r.length)))
}

// freshWhole says whether the file holds the fresh bytes that the record
// speaks of. With rewrite it writes them again: they may be in the page cache
// only, where a failed fsync can leave bytes that no later fsync will write.
func (r *record) freshWhole(log, main file, rewrite bool) (bool, error) {
	in := r.body(log)
	unit := make([]byte, unitSize)
	var sum [4]byte
	for i := range int64(r.freshCount) {
		if _, err := io.ReadFull(in, sum[:]); err != nil {
			return false, err
		}
		off := int64(r.freshFrom)<<pageShift + i*unitSize
		if n, err := main.ReadAt(unit, off); n < unitSize {
			if err == io.EOF {
				return false, nil
			}
			return false, err
		}
		if unitSum(unit) != binary.LittleEndian.Uint32(sum[:]) {
			return false, nil
		}
		if rewrite {
			if _, err := main.WriteAt(unit, off); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// An entry is a page in a record: its changed lines, one after the other.
type entry struct {
	page  pageNo
	mask  uint64
	at    int64  // of its lines in the log
	lines []byte // lent until the next entry
}

// entryOf returns an entry with lines of a page.
func entryOf(p pageNo, mask uint64, b *page) entry {
	e := entry{page: p, mask: mask, lines: make([]byte, 0, bits.OnesCount64(mask)*lineSize)}
	for m := mask; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m) * lineSize
		e.lines = append(e.lines, b[i:i+lineSize]...)
	}
	return e
}

// encode appends the entry as it lies in the log.
func (e *entry) encode(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.page))
	dst = binary.LittleEndian.AppendUint64(dst, e.mask)
	return append(dst, e.lines...)
}

// eachEntry calls fn for the entries of a record that is whole.
func (r *record) eachEntry(f file, fn func(entry) error) error {
	in := r.body(f)
	if _, err := in.Discard(4 * int(r.freshCount)); err != nil {
		return err
	}
	var head [entryHeader]byte
	lines := make([]byte, pageSize)
	at := r.off + recHeader + 4*int64(r.freshCount)
	for range r.pages {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		e := entry{page: binary.LittleEndian.Uint32(head[:]), mask: binary.LittleEndian.Uint64(head[8:])}
		if e.page < slotPages || uint64(e.page) >= r.mark {
			return corrupt("record %d of the log changes page %d of %d", r.seq, e.page, r.mark)
		}
		e.at = at + entryHeader
		e.lines = lines[:bits.OnesCount64(e.mask)*lineSize]
		if _, err := io.ReadFull(in, e.lines); err != nil {
			return err
		}
		at = e.at + int64(len(e.lines))
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// overlay copies the lines of the entry to where they belong in their page.
func (e *entry) overlay(dst *page) {
	src := e.lines
	for m := e.mask; m != 0; m &= m - 1 {
		copy(dst[bits.TrailingZeros64(m)*lineSize:][:lineSize], src)
		src = src[lineSize:]
	}
}

// A changes is what records change, put in the order of the pages.
type changes struct {
	log  file
	list []change

	window []byte // of the log, read ahead
	at     int64
}

// A change is an entry of a record without its lines.
type change struct {
	mask uint64
	at   int64 // of its lines in the log
	page pageNo
}

const changesWindow = 16 << 10

// gather puts the changes of records in order, those of a page as they follow
// each other in the log. It takes 24 bytes of memory for each entry.
func gather(log file, recs []record) (*changes, error) {
	c := &changes{log: log}
	for i := range recs {
		err := recs[i].eachEntry(log, func(e entry) error {
			c.list = append(c.list, change{e.mask, e.at, e.page})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(c.list, func(x, y change) int { return cmp.Or(cmp.Compare(x.page, y.page), cmp.Compare(x.at, y.at)) })
	return c, nil
}

// each calls fn for each changed page, in ascending order, with what its lines
// are after all records. It lends them until fn returns.
func (c *changes) each(fn func(p pageNo, mask uint64, lines *page) error) error {
	var lines page
	for i := 0; i < len(c.list); {
		p, mask := c.list[i].page, uint64(0)
		for ; i < len(c.list) && c.list[i].page == p; i++ {
			e := entry{page: p, mask: c.list[i].mask}
			var err error
			if e.lines, err = c.read(c.list[i].at, bits.OnesCount64(e.mask)*lineSize); err != nil {
				return err
			}
			e.overlay(&lines)
			mask |= e.mask
		}
		if err := fn(p, mask, &lines); err != nil {
			return err
		}
	}
	return nil
}

// read returns n bytes of the log, at most a page, until the next call. It reads
// ahead where changes follow each other, as those of one record do; those of
// many records lie anywhere.
func (c *changes) read(at int64, n int) ([]byte, error) {
	if c.window == nil {
		c.window = make([]byte, 0, changesWindow)
	}
	end := c.at + int64(len(c.window))
	if at < c.at || at+int64(n) > end {
		size := n
		if at >= c.at && at <= end+pageSize {
			size = changesWindow
		}
		got, err := c.log.ReadAt(c.window[:size], at)
		if got < n {
			return nil, cmp.Or(err, io.ErrUnexpectedEOF)
		}
		c.window, c.at = c.window[:got], at
	}
	return c.window[at-c.at:][:n], nil
}

// apply writes the changed pages to the file, neighbours at once. What it
// changes there is exactly what the log holds: the rest of a page is written as
// it was read. A file system that looks at more than a page for each write, as
// ext4 does in the large folios that a bulk of fresh pages leaves, is asked less
// often than by lines.
func (c *changes) apply(main file) error {
	run := make([]byte, 0, min(len(c.list), applyPages)*pageSize)
	var first pageNo
	flush := func() error {
		_, err := main.WriteAt(run, int64(first)<<pageShift)
		run = run[:0]
		return err
	}
	err := c.each(func(p pageNo, mask uint64, lines *page) error {
		n := len(run)
		if n == cap(run) || n > 0 && p != first+pageNo(n>>pageShift) {
			if err := flush(); err != nil {
				return err
			}
			n = 0
		}
		if n == 0 {
			first = p
		}
		run = run[:n+pageSize]
		if mask != allLines {
			if err := readWhole(main, run[n:], int64(p)<<pageShift); err != nil {
				return err
			}
		}
		copyLines((*page)(run[n:]), lines, mask)
		return nil
	})
	if err != nil || len(run) == 0 {
		return err
	}
	return flush()
}

// readLog returns the records that a crash left for the state that h names:
// all that are whole and follow each other. What comes after is a torn tail,
// or damage if it is known to have been on disk (rule R9).
func readLog(log, main file, h *header) ([]record, error) {
	size, err := log.Size()
	if err != nil {
		return nil, err
	}
	if err := checkLogHeader(log, size, h); err != nil {
		return nil, err
	}
	if h.state != headerLive {
		return nil, nil
	}
	if size < logHeader+minAreaSize { // it had that size before the header named it
		return nil, corrupt("the log was cut to %d bytes", size)
	}
	var recs []record
	off, mark, seq := h.logOff, h.mark, uint64(0)
	// A header that needs records needs just these: what follows them may be
	// left from a copy that an earlier recovery did not finish.
	for h.needSeq == 0 || seq < h.needSeq || !keeps(exactlyNeedRule) {
		r, ok, err := readRecord(log, h.id, off, size)
		if err != nil {
			return nil, err
		}
		if ok && r.generation > h.generation && keeps(newerLogRule) {
			if ok, err = r.whole(log); err != nil {
				return nil, err
			} else if ok {
				return nil, corrupt("the log is newer than the file: generation %d, the file has %d", r.generation, h.generation)
			}
		}
		if ok = ok && (r.generation == h.generation || !keeps(generationRule)) && r.seq == seq+1 && r.mark >= mark; ok {
			if ok, err = r.whole(log); err != nil {
				return nil, err
			}
		}
		// Once pages may have been written (needSeq), the file rightly holds
		// newer lines than the fresh bytes that the checksums are of.
		if ok && (h.needSeq == 0 || !keeps(freshSumNeedRule)) && keeps(freshSumRule) {
			if ok, err = r.freshWhole(log, main, false); err != nil {
				return nil, err
			}
		}
		if !ok {
			break
		}
		recs = append(recs, r)
		off = r.end()
		mark, seq = r.mark, r.seq
	}
	if seq < h.needSeq && keeps(needCheckRule) {
		return nil, corrupt("the log ends after record %d, the file needs %d", seq, h.needSeq)
	}
	if h.needSeq != 0 {
		return recs, nil
	}
	return recs, checkTail(log, h, off, size, seq+1)
}

// checkLogHeader refuses the log of another file, or of a later state.
func checkLogHeader(log file, size int64, h *header) error {
	b := make([]byte, logSumOff+4)
	if size < int64(len(b)) {
		return nil // torn when it was created
	}
	if _, err := log.ReadAt(b, 0); err != nil {
		return err
	}
	le := binary.LittleEndian
	if le.Uint32(b[logSumOff:]) != crc32.Checksum(b[:logSumOff], castagnoli) {
		return nil // torn while a generation began; the records count
	}
	switch g := le.Uint64(b[logGenerationOff:]); {
	case string(b[:logVersionOff]) != logMagic:
		return corrupt("the log is not one of this package")
	case le.Uint32(b[logVersionOff:]) != formatVersion:
		return versionError(le.Uint32(b[logVersionOff:]))
	case fileID(b[logIDOff:]) != h.id && keeps(otherLogRule):
		return corrupt("the log belongs to another file")
	case g > h.generation && keeps(newerLogRule):
		return corrupt("the log is newer than the file: generation %d, the file has %d", g, h.generation)
	}
	return nil
}

// checkTail looks for a whole record of the generation past the end of the
// log that says that record seq, which is not whole, was on disk.
func checkTail(log file, h *header, off, size int64, seq uint64) error {
	// Garbage cannot make this quadratic: what may be summed is bounded.
	for budget := 4 * size; off < size && budget > 0; off += pageSize {
		r, ok, err := readRecord(log, h.id, off, size)
		if err != nil {
			return err
		}
		if !ok || r.generation != h.generation || r.durable < seq || !keeps(durableRule) {
			continue
		}
		budget -= r.length
		if ok, err = r.whole(log); err != nil {
			return err
		} else if ok {
			return corrupt("record %d of the log is damaged: record %d says that it was on disk", seq, r.seq)
		}
	}
	return nil
}

// secureFresh makes the fresh bytes durable of records that were written
// before these were known to be. Until then the header must not say that the records are needed: with
// that the checksums of fresh bytes lose their force.
func secureFresh(log, main file, recs []record) error {
	unsure := false
	for i := range recs {
		if recs[i].flags&flagUnsure == 0 || recs[i].freshCount == 0 {
			continue
		}
		unsure = true
		if _, err := recs[i].freshWhole(log, main, true); err != nil {
			return err
		}
	}
	if !unsure || !keeps(freshAgainWaitRule) {
		return nil
	}
	return main.Sync()
}

// copyRecords copies n bytes of the log to another place in it.
func copyRecords(log file, from, to, n int64) error {
	b := make([]byte, min(n, copyBuffer))
	for done := int64(0); done < n; {
		part := b[:min(int64(len(b)), n-done)]
		if _, err := log.ReadAt(part, from+done); err != nil && err != io.EOF {
			return err
		}
		if _, err := log.WriteAt(part, to+done); err != nil {
			return err
		}
		done += int64(len(part))
	}
	return nil
}

func versionError(v uint32) error {
	return fmt.Errorf("%w: version %d, this package reads %d", ErrVersion, v, formatVersion)
}
