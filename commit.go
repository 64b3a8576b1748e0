package emd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/bits"
	"sync/atomic"
)

// How a commit, a checkpoint, a rollback and a recovery go. The rules they
// keep, R1 to R17, are those of the design's CRASH.md; each step names its own.

const (
	bufferedRecord  = 4 << 20  // of a larger record all but the end goes to the log while mutators wait
	checkpointFresh = 64 << 20 // a commit with more fresh bytes is followed by a checkpoint
)

// commit makes what has changed durable. The caller holds turn. own says that
// nobody asked for it.
func (a *Arena) commit(own bool) error {
	a.io.Lock()
	defer a.io.Unlock()
	if err := a.failure(); err != nil {
		return err
	}
	commit := a.commitNow
	if a.space.shared {
		commit = a.syncShared
	}
	err := commit(own)
	a.lastCommit = err
	return err
}

func (a *Arena) commitNow(own bool) error {
	if a.header.state != headerLive {
		changed, err := a.hasChanges()
		if err != nil || !changed {
			return err
		}
		if err := a.goLive(); err != nil {
			return a.commitError(err)
		}
	}
	c, err := a.capture()
	if err != nil || c == nil {
		return a.commitError(err)
	}
	if err := a.persist(c); err != nil {
		return err
	}
	a.stats.commits.Add(1)
	if own {
		a.stats.ownCommits.Add(1)
		a.logger().Debug("own commit", "path", a.path, "private", a.space.private.Load())
	}
	a.log.writeAhead()
	if a.log.size() > a.logLimit || c.freshBytes() > checkpointFresh {
		// This commit is durable whatever happens: a failure stops the arena
		// and is told by the next change.
		_ = a.checkpointNow()
	}
	return nil
}

// commitError sorts a failure of a commit before its record: a full disk is
// ordinary, everything stays as dirty as it was; anything else stops the arena.
func (a *Arena) commitError(err error) error {
	if err == nil || onlyFull(err) {
		return asFull(err)
	}
	return a.fail(err)
}

// onlyFull says that a write found no room, and nothing else is amiss.
func onlyFull(err error) bool {
	var hard *hardError
	return isFull(err) && !errors.As(err, &hard)
}

// A hardError is a failed fsync or truncation: what the file holds is in doubt
// even if the reason was a full disk.
type hardError struct{ error }

func (e *hardError) Unwrap() error { return e.error }

func hard(err error) error {
	if err == nil {
		return nil
	}
	return &hardError{err}
}

// hasChanges says whether there is anything to commit.
func (a *Arena) hasChanges() (bool, error) {
	a.gate.close()
	defer a.gate.openIdle()
	a.flush()
	a.space.sweep()
	end, _ := a.alloc.usage()
	return a.space.anyDirty() || end != a.space.border.Load(), nil
}

// flush has whatever may have changed write what it keeps in memory. The gate
// is closed.
func (a *Arena) flush() {
	for _, c := range a.gate.active {
		c.flush()
	}
	a.catalog.flush()
	a.meta.flush()
	a.alloc.flush()
}

// goLive begins the first generation with a log since the file was opened. The log is
// durable, name included, before the header names it, and the header before
// a record counts: so a live header without a log is always damage.
func (a *Arena) goLive() error {
	if err := a.log.create(a.header.generation); err != nil {
		return err
	}
	return a.nextGeneration(headerLive, logHeader, liveFirstRule)
}

// nextGeneration writes the header of a new generation, whose log is empty. It
// is durable when nextGeneration returns, as the given rule wants it.
func (a *Arena) nextGeneration(state uint32, logOff int64, durable rule) error {
	h := a.header
	h.generation++
	h.needSeq = 0
	h.state = state
	h.logOff = logOff
	h.mark = a.space.border.Load()
	if err := h.put(a.file, keeps(durable)); err != nil {
		return a.fail(err)
	}
	a.header = h
	if state != headerLive {
		return nil
	}
	if err := a.log.begin(h.generation, logOff); err != nil {
		return a.fail(err)
	}
	return nil
}

// A captured commit: what the closed gate saw, to be made durable after it
// has opened again.
type captured struct {
	rec       record
	buf       []byte // the record; of a large one the end, without which it does not count
	at        int64  // what is in the log before that
	words     []capturedWord
	oldBorder uint64
}

type capturedWord struct {
	page pageNo
	mask uint64
}

func (c *captured) freshBytes() int64 { return int64(c.rec.freshCount) * unitSize }

// capture takes what has changed since the last commit (R4): with the gate
// closed, fresh bytes are written and become logged pages, and the changed
// lines are copied. It returns nil when nothing has changed. On error
// everything is as dirty as before.
func (a *Arena) capture() (*captured, error) {
	a.captures.Add(1)
	a.gate.close()
	defer a.gate.openIdle()
	a.flush()
	a.space.sweep()
	from := a.space.border.Load()
	if end, _ := a.alloc.usage(); end == from && !a.space.anyDirty() {
		return nil, nil
	}
	a.alloc.roundUp()
	a.alloc.flush()
	to, _ := a.alloc.usage()
	if err := a.space.writeFresh(from, to); err != nil {
		return nil, err
	}
	if err := a.space.settle(from, to); err != nil {
		return nil, err
	}
	c := &captured{oldBorder: from}
	length := int64(recHeader) + int64(to-from)/unitPages*4 + recSum
	err := a.space.eachDirty(0, from, func(d dirtyPage) error {
		mask := *d.word
		c.words = append(c.words, capturedWord{d.no, mask})
		length += entryHeader + int64(bits.OnesCount64(mask))*lineSize
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.rec = record{
		generation: a.header.generation, seq: a.log.seq + 1, length: length, mark: to,
		durable: a.log.durable, freshFrom: from, freshCount: uint32((to - from) / unitPages), pages: uint32(len(c.words)),
	}
	if a.opts.NoSync {
		c.rec.flags |= flagUnsure
	}
	if err := a.writeRecord(c); err != nil {
		return nil, err
	}
	for _, w := range c.words {
		*a.space.dirtyWord(w.page) = 0
	}
	a.space.border.Store(to)
	a.space.sweep()
	a.alloc.committed()
	return c, nil
}

// writeRecord puts the record together: in memory, a large one in the log, but
// for its end.
func (a *Arena) writeRecord(c *captured) error {
	out := &recordWriter{log: a.log, buf: make([]byte, 0, min(c.rec.length, a.recBuffer)), sum: crc32.New(castagnoli)}
	le := binary.LittleEndian
	if err := out.write(c.rec.encode(a.header.id)); err != nil {
		return err
	}
	var word [entryHeader]byte
	for p := c.rec.freshFrom; p < c.rec.mark; p += unitPages {
		le.PutUint32(word[:], a.space.freshUnitSum(p))
		if err := out.write(word[:4]); err != nil {
			return err
		}
	}
	for _, w := range c.words {
		le.PutUint32(word[:], w.page)
		le.PutUint32(word[4:], 0)
		le.PutUint64(word[8:], w.mask)
		if err := out.write(word[:]); err != nil {
			return err
		}
		p := a.space.page(w.page)
		for m := w.mask; m != 0; {
			first := bits.TrailingZeros64(m)
			n := bits.TrailingZeros64(^(m >> first))
			if err := out.write(p[first*lineSize : (first+n)*lineSize]); err != nil {
				return err
			}
			m &^= allLines >> (64 - n) << first
		}
	}
	if err := out.add(le.AppendUint32(nil, out.sum.Sum32())); err != nil {
		return err
	}
	c.at = out.at
	// Whole pages: the kernel need not read any first.
	c.buf = append(out.buf, make([]byte, -(c.at+int64(len(out.buf)))&(pageSize-1))...)
	return nil
}

// A recordWriter sums a record and gathers it. What has no room in buf goes to
// the log.
type recordWriter struct {
	log *redoLog
	buf []byte
	at  int64 // bytes written to the log already
	sum interface {
		io.Writer
		Sum32() uint32
	}
}

func (w *recordWriter) write(b []byte) error {
	w.sum.Write(b)
	return w.add(b)
}

func (w *recordWriter) add(b []byte) error {
	if len(w.buf)+len(b) > cap(w.buf) {
		if err := w.log.write(w.buf, w.at); err != nil {
			return err
		}
		w.at += int64(len(w.buf))
		w.buf = w.buf[:0]
	}
	w.buf = append(w.buf, b...)
	return nil
}

// persist makes a captured commit durable: fresh bytes first, then the record
// that refers to them.
func (a *Arena) persist(c *captured) error {
	if c.rec.freshCount > 0 && !a.opts.NoSync && keeps(freshFirstRule) {
		if err := a.file.Sync(); err != nil {
			return a.fail(err)
		}
	}
	if err := a.log.write(c.buf, c.at); err != nil {
		if !onlyFull(err) {
			return a.fail(err)
		}
		a.uncapture(c)
		return asFull(err)
	}
	a.log.accept(c.rec.length)
	if a.opts.NoSync || !keeps(recordWaitRule) {
		return nil
	}
	if err := a.log.sync(); err != nil {
		return a.fail(err)
	}
	return nil
}

// uncapture makes what was captured dirty again: its record found no room.
func (a *Arena) uncapture(c *captured) {
	a.gate.close()
	defer a.gate.open()
	a.space.border.Store(c.oldBorder)
	for _, w := range c.words {
		if keeps(staysDirtyRule) {
			a.space.touch(w.page, w.mask)
		}
	}
	end, _ := a.alloc.usage()
	a.space.recountFresh(end)
}

// dirtyWord returns the entry of a page in the dirty map.
func (s *space) dirtyWord(p pageNo) *uint64 {
	c, in := s.chunkOf(uint64(p))
	return &c.lines[in]
}

// recountFresh counts the private pages from the border on, which has moved
// down, anew.
func (s *space) recountFresh(end uint64) {
	fresh := int64(0)
	_ = s.eachRange(s.border.Load(), end, func(c *chunk, in, n pageNo) error {
		for p := in; p < in+n; p++ {
			fresh += int64(atomic.LoadUint64(&c.owned[p>>6]) >> (p & 63) & 1)
		}
		return nil
	})
	s.fresh.Store(fresh * pageSize)
}

// checkpoint writes what the log holds to the file and starts the next
// generation of the log.
func (a *Arena) checkpoint() error {
	a.io.Lock()
	defer a.io.Unlock()
	if err := a.failure(); err != nil || a.space.shared {
		return err
	}
	return a.checkpointNow()
}

func (a *Arena) checkpointNow() error {
	a.gate.close()
	defer a.gate.open()
	if a.header.state == headerLive && a.log.seq > 0 {
		if err := a.applyOwnLog(); err != nil {
			return err
		}
		size := a.log.size()
		if err := a.nextGeneration(headerLive, nextStart(a.log.start, a.log.tail, minAreaSize), nextWaitRule); err != nil {
			return err
		}
		a.stats.checkpoints.Add(1)
		a.logger().Debug("checkpoint", "path", a.path, "log", size)
	}
	return a.afterCheckpoint() // a Rollback too leaves private copies behind
}

// applyOwnLog brings the file up to the last commit (R6, steps 1 and 2), page
// checksums included. The gate is closed; only committed bytes are written,
// those of the log.
func (a *Arena) applyOwnLog() error {
	if a.opts.NoSync && keeps(lazyMainRule) {
		if err := a.file.Sync(); err != nil {
			return a.fail(err)
		}
	}
	all, sums, err := a.sealOwnLog()
	if err != nil {
		return a.commitError(err) // a full disk: the log stays
	}
	h := a.header
	h.needSeq = a.log.seq
	if keeps(needRule) {
		if err := h.put(a.file, keeps(needWaitRule)); err != nil {
			return a.fail(err)
		}
		a.header = h
	}
	for _, c := range []*changes{all, sums} {
		if err := c.apply(a.file); err != nil {
			if !keeps(failStopFullRule) {
				return a.commitError(err)
			}
			return a.fail(err)
		}
	}
	if !keeps(unitsWaitRule) {
		return nil
	}
	if err := a.file.Sync(); err != nil {
		return a.fail(err)
	}
	return nil
}

// sealOwnLog appends the checksums of all that the log changes to it.
func (a *Arena) sealOwnLog() (all, sums *changes, err error) {
	recs, err := a.log.records(a.header.id)
	if err != nil {
		return nil, nil, err
	}
	if all, err = gather(a.log.f, recs); err != nil {
		return nil, nil, err
	}
	w := sumsWriter{id: a.header.id, last: recs[len(recs)-1], put: func(b []byte) (int64, error) {
		off := a.log.tail
		if err := a.log.write(b, 0); err != nil {
			return 0, err
		}
		a.log.accept(int64(len(b)))
		return off, nil
	}}
	w.last.durable = a.log.durable
	s := sealer{main: a.file, mark: a.header.mark, end: w.last.mark, fresh: a.space.freshSum, whole: a.space.whole, emit: w.add}
	if err := errors.Join(s.seal(all), w.flush()); err != nil {
		return nil, nil, err
	}
	if keeps(logWaitRule) {
		if err := a.log.sync(); err != nil { // the records of commits that did not wait, too
			return nil, nil, hard(err)
		}
	}
	sums, err = gather(a.log.f, w.recs)
	return all, sums, err
}

// A sumsWriter puts changed lines of checksum tables into records behind the
// last one.
type sumsWriter struct {
	id      fileID
	last    record
	put     func(b []byte) (off int64, err error) // appends a record, filled up with zeros to whole pages
	recs    []record                              // those written
	entries []byte
	pages   uint32
}

func (w *sumsWriter) add(e entry) error {
	w.entries = e.encode(w.entries)
	w.pages++
	if len(w.entries) < bufferedRecord {
		return nil
	}
	return w.flush()
}

func (w *sumsWriter) flush() error {
	if w.pages == 0 {
		return nil
	}
	r := record{
		generation: w.last.generation, seq: w.last.seq + 1, mark: w.last.mark, durable: w.last.durable, freshFrom: w.last.mark,
		length: int64(recHeader + len(w.entries) + recSum), pages: w.pages,
	}
	b := append(r.encode(w.id), w.entries...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	b = append(b, make([]byte, -len(b)&(pageSize-1))...)
	off, err := w.put(b)
	if err != nil {
		return err
	}
	r.off = off
	w.last = r
	w.recs = append(w.recs, r)
	w.entries, w.pages = w.entries[:0], 0
	return nil
}

// afterCheckpoint gives back what the file now holds: private memory, and
// disk space freed for good.
func (a *Arena) afterCheckpoint() error {
	if err := a.space.dropClean(); err != nil {
		return a.fail(err)
	}
	if end, _ := a.alloc.usage(); !a.space.anyDirty() && end == a.space.border.Load() {
		a.alloc.punch()
	}
	return nil
}

// records returns the headers of the records that this log has accepted.
func (l *redoLog) records(id fileID) ([]record, error) {
	var recs []record
	for off := l.start; off < l.tail; {
		r, ok, err := readRecord(l.f, id, off, l.tail)
		if err != nil {
			return nil, err
		}
		if ok = ok && r.generation == l.generation && r.seq == uint64(len(recs))+1; ok {
			if ok, err = r.whole(l.f); err != nil {
				return nil, err
			}
		}
		if !ok {
			return nil, corrupt("record %d of the log has changed on disk", len(recs)+1)
		}
		recs = append(recs, r)
		off = r.end()
	}
	return recs, nil
}

// rollback brings memory back to the last commit (R17): each changed page gets
// the bytes of the file, then those of the live log. The caller holds turn and
// catMu.
func (a *Arena) rollback() error {
	a.io.Lock()
	defer a.io.Unlock()
	if a.space.shared {
		a.status.Or(statusBroken)
		return a.fail(fmt.Errorf("%w: the arena is relaxed, what was done in part stays", ErrUnsupported))
	}
	all := append(a.registered(), a.meta)
	a.gate.closeAll(all)
	defer a.gate.open()
	for _, c := range all {
		c.turnAway()
	}
	a.catalog.lock()
	a.catalog.turnAway()
	err := a.restore()
	if err == nil {
		a.catalog.readmit() // to find the others
	}
	a.catalog.unlock()
	if err == nil {
		err = a.reload(all)
	}
	if err != nil {
		// Readers stay turned away: memory is neither old nor new.
		a.status.Or(statusBroken)
		return a.fail(err)
	}
	return nil
}

func (a *Arena) restore() error {
	if err := a.restorePages(); err != nil {
		return err
	}
	end, _ := a.alloc.usage()
	zeros, err := a.space.discardFresh(end)
	if err != nil {
		return err
	}
	if err := a.alloc.rolledBack(a.space.border.Load(), zeros); err != nil {
		return err
	}
	return a.catalog.load(a.header.catalog)
}

// restorePages gives the changed logged pages their committed bytes.
func (a *Arena) restorePages() error {
	border := a.space.border.Load()
	err := a.space.eachDirty(0, border, func(d dirtyPage) error {
		return readWhole(a.file, a.space.page(d.no)[:], int64(d.no)<<pageShift)
	})
	if err != nil {
		return err
	}
	if a.header.state == headerLive && keeps(rollbackRule) {
		recs, err := a.log.records(a.header.id)
		if err != nil {
			return err
		}
		for i := range recs {
			err := recs[i].eachEntry(a.log.f, func(e entry) error {
				if *a.space.dirtyWord(e.page) != 0 {
					e.overlay(a.space.page(e.page))
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return a.space.eachDirty(0, border, func(d dirtyPage) error { *d.word = 0; return nil })
}

// recoverLog applies what a crash left in the log to the file (R7) and leaves
// a clean state. What it reads may be in the page cache only, after a kill or
// a failed fsync. So it first makes the file and its header durable, the latter by
// writing it again; then it copies the records to another place of the log and
// makes them durable there, before a page of the file changes.
func recoverLog(log, main file, h *header, recs []record, whole bool) error {
	found := h.epoch
	if keeps(confirmSyncRule) {
		if err := main.Sync(); err != nil {
			return err
		}
	}
	if keeps(confirmRule) {
		if err := h.write(main); err != nil {
			return err
		}
	}
	if h.state == headerLive {
		if len(recs) > 0 {
			if err := applyOldLog(log, main, h, recs, whole); err != nil {
				return err
			}
		}
		// The next session begins another generation in any case, and a clean
		// header has no records: but so each generation is of one session.
		h.generation++
		h.state, h.needSeq, h.logOff = headerClean, 0, 0
		if err := h.put(main, keeps(cleanFirstRule)); err != nil {
			return err
		}
	}
	// The slot of the header that was found may be older on the disk. Now that
	// others are newer, it is written too: Check compares it.
	for h.epoch < found+slotPages && keeps(allSlotsRule) {
		if err := h.write(main); err != nil {
			return err
		}
	}
	return nil
}

// applyOldLog is the checkpoint of a recovery.
func applyOldLog(log, main file, h *header, recs []record, whole bool) error {
	last := recs[len(recs)-1]
	start, tail := h.logOff, last.end()
	room := tail - start
	if h.needSeq == 0 {
		room = math.MaxInt64 // the checksums follow
	}
	to := nextStart(start, tail, room)
	if !keeps(copyRule) {
		to = start
	} else if err := copyRecords(log, start, to, tail-start); err != nil {
		return err
	}
	for i := range recs {
		recs[i].off += to - start
	}
	if h.needSeq == 0 {
		sums, err := sealCopy(log, main, h, recs, whole)
		if err != nil {
			return err
		}
		recs = append(recs, sums...)
	}
	if keeps(copyWaitRule) {
		if err := log.Sync(); err != nil {
			return err
		}
	}
	if h.needSeq == 0 && keeps(freshAgainRule) {
		if err := secureFresh(log, main, recs); err != nil {
			return err
		}
	}
	h.logOff, h.needSeq = to, recs[len(recs)-1].seq
	if err := h.put(main, keeps(needWaitRule)); err != nil {
		return err
	}
	all, err := gather(log, recs)
	if err != nil {
		return err
	}
	if err := all.apply(main); err != nil {
		return err
	}
	h.mark = last.mark
	if !keeps(unitsWaitRule) {
		return nil
	}
	return main.Sync()
}

// sealCopy appends the checksums of all that the records change to their copy.
// The file is as the last checkpoint left it, and has their fresh bytes.
func sealCopy(log, main file, h *header, recs []record, whole bool) ([]record, error) {
	all, err := gather(log, recs)
	if err != nil {
		return nil, err
	}
	last := recs[len(recs)-1]
	tail := last.end()
	w := sumsWriter{id: h.id, last: last, put: func(b []byte) (int64, error) {
		off := tail
		_, err := log.WriteAt(b, off)
		tail += int64(len(b))
		return off, err
	}}
	fresh := func(p pageNo) (uint32, error) {
		var b page
		err := readWhole(main, b[:], int64(p)<<pageShift)
		return sumOf(&b), err
	}
	s := sealer{main: main, mark: h.mark, end: last.mark, fresh: fresh, whole: whole, emit: w.add}
	err = errors.Join(s.seal(all), w.flush())
	return w.recs, err
}

// replay lays the records over private memory, for an arena that may write
// nothing.
func (a *Arena) replay(log file, recs []record) error {
	for i := range recs {
		err := recs[i].eachEntry(log, func(e entry) error {
			dst, err := a.space.writablePage(e.page)
			if err == nil {
				e.overlay(dst)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// fail stops the arena (R8): reads go on, every change and commit returns err
// from now on. No failed fsync is tried again: the second one would succeed
// although the data is gone.
func (a *Arena) fail(err error) error {
	if err == nil {
		return nil
	}
	err = asFull(err)
	if !keeps(failStopRule) {
		return err
	}
	if a.failed.CompareAndSwap(nil, &err) {
		a.status.Or(statusFailed)
		a.logger().Error("arena stopped; open it again", "path", a.path, "err", err)
	}
	return *a.failed.Load()
}

func (a *Arena) failure() error {
	if err := a.failed.Load(); err != nil {
		return fmt.Errorf("stopped by an earlier failure, open the file again: %w", *err)
	}
	return nil
}

// isFull says that a disk or quota is used up, or the file as long as it may be.
func isFull(err error) bool {
	if errors.Is(err, ErrFull) {
		return true
	}
	for _, full := range fullErrors {
		if errors.Is(err, full) {
			return true
		}
	}
	return false
}

// asFull makes such an error match ErrFull too.
func asFull(err error) error {
	if err == nil || errors.Is(err, ErrFull) || !isFull(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrFull, err)
}
