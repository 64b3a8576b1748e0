package emd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"runtime/debug"
	"strings"
)

// Check verifies everything that the file holds: header slots, the checksum of
// every page, the allocator (each page is free or has exactly one owner),
// catalogue, and of each container every bucket, extent, entry, record and
// count. In a file that was closed, any single bit that has changed is found.
//
// Findings are [ErrCorrupt], as one or more [*Error] joined (at most 100; a
// damaged file may have more), each with the offset and, where one is
// concerned, the container. [Salvage] gets what is left out of such a file.
//
// A relaxed file (Options.Relaxed) has no checksums: what contradicts itself is found.
//
// Check reads the whole file, and takes a bit of memory for each page of 4 KiB.
// Before, it writes the log to the file, as a checkpoint does. Writers wait while
// it runs, readers do not. A file that was not closed and is open read-only has
// no checksums yet for what the log changes, so there fewer flipped bits are
// found.
//
// progress may be nil. It is called now and then, by the caller's goroutine,
// with the bytes examined and their total; it must not use the arena. When ctx
// ends, Check returns its error. Inside Update it is [ErrInUpdate].
func (a *Arena) Check(ctx context.Context, progress func(done, total int64)) error {
	if a.inUpdate() {
		return a.opError("check", nil, 0, ErrInUpdate)
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	return a.opError("check", nil, 0, a.checkAll(ctx, progress))
}

func (a *Arena) checkAll(ctx context.Context, progress func(done, total int64)) error {
	switch {
	case a.closed():
		return ErrClosed
	case a.failed.Load() != nil:
		return a.failure()
	case !a.opts.ReadOnly:
		if err := a.checkpoint(); err != nil {
			return err
		}
	}
	a.catMu.Lock()
	defer a.catMu.Unlock()
	a.io.Lock()
	defer a.io.Unlock()
	a.gate.close()
	defer a.gate.open()
	a.flush()
	c, err := newChecker(a, ctx, progress)
	if err != nil {
		return err
	}
	defer c.used.release()
	if err := c.slots(); err != nil {
		return err
	}
	if err := c.pages(); err != nil {
		return err
	}
	if err := c.structures(); err != nil {
		return err
	}
	c.report(c.total)
	return errors.Join(c.findings...)
}

// verify is Check without the checksums, for tests. The caller sees to it that
// nothing changes.
func (a *Arena) verify() error {
	a.catMu.Lock()
	defer a.catMu.Unlock()
	c, err := newChecker(a, context.Background(), nil)
	if err != nil {
		return err
	}
	defer c.used.release()
	return errors.Join(c.structures(), errors.Join(c.findings...))
}

// A checker is the state of Check.
type checker struct {
	a           *Arena
	ctx         context.Context
	progress    func(done, total int64)
	done, total int64
	used        *ownership
	findings    []error
	damaged     []*Error // findings about pages, whose owners are not known yet
	buf         []byte
}

const (
	maxFindings = 100
	checkStep   = 1 << 20
)

func newChecker(a *Arena, ctx context.Context, progress func(done, total int64)) (*checker, error) {
	end, _ := a.alloc.usage()
	used, err := newOwnership(end)
	if err != nil {
		return nil, err
	}
	// Each page is read twice: as bytes and as what it is.
	return &checker{
		a: a, ctx: ctx, progress: progress, used: used,
		total: 2 * int64(end) << pageShift,
		buf:   make([]byte, min(checkStep, end<<pageShift)),
	}, nil
}

// step counts n bytes as examined.
func (c *checker) step(n int64) error {
	before := c.done
	c.done = min(c.done+n, c.total)
	if before/checkStep == c.done/checkStep {
		return nil
	}
	c.report(c.done)
	return c.ctx.Err()
}

func (c *checker) report(done int64) {
	if c.progress != nil {
		c.progress(done, c.total)
	}
}

// found notes a finding about a container ("": none) and says whether to go on.
func (c *checker) found(container string, err error) (*Error, bool) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Op: "check", Path: c.a.path, Container: container, Offset: offsetOf(err), Err: err}
		err = e
	}
	if len(c.findings) < maxFindings {
		c.findings = append(c.findings, err)
	}
	return e, len(c.findings) < maxFindings
}

// slots checks the header slots: after the last write of a header each of the
// three is that of its epoch, or was never written, and the rest of its page is
// zero. A crash may have torn one; recovery mends that.
func (c *checker) slots() error {
	a := c.a
	b := make([]byte, pageSize)
	for i := range uint64(slotPages) {
		if err := readWhole(a.file, b, int64(i)<<pageShift); err != nil {
			return err
		}
		at := i << pageShift
		if !zeroBytes(b[slotSize:]) {
			c.found("", corruptAt(at+slotSize, "bytes after the header are not zero"))
		}
		epoch := a.header.epoch - (a.header.epoch+slotPages-i)%slotPages
		slot := b[:slotSize]
		var h header
		h.decode(slot)
		switch {
		case a.crashed:
		case int64(epoch) <= 0:
			if !zeroBytes(slot) {
				c.found("", corruptAt(at, "unused header slot is not zero"))
			}
		case binary.LittleEndian.Uint32(slot[slotSumOff:]) != crc32.Checksum(slot[:slotSumOff], castagnoli):
			c.found("", corruptAt(at, "header slot does not have its checksum"))
		case string(slot[slotMagicOff:slotVersionOff]) != fileMagic || h.id != a.header.id || h.epoch != epoch:
			c.found("", corruptAt(at, "header slot of epoch %d of file %x, should be %d of %x", h.epoch, h.id, epoch, a.header.id))
		}
	}
	return nil
}

// pages compares the bytes in the file with their checksums, as far as the
// last checkpoint has brought them.
func (c *checker) pages() error {
	end := c.a.header.mark
	if c.a.header.relaxed() {
		end = 0
	}
	if c.a.header.needSeq != 0 {
		end = 0 // read-only, and a checkpoint was not finished
	}
	var table sumTable
	for r := 0; uint64(r)<<regionShift < end; r++ {
		if err := table.read(c.a.file, r); err != nil {
			return err
		}
		from, to := uint64(r)<<regionShift, min(uint64(r+1)<<regionShift, end)
		for ; from < to; from += uint64(len(c.buf)) >> pageShift {
			b := c.buf[:min(len(c.buf), int(to-from)<<pageShift)]
			if err := c.read(b, from); err != nil {
				return err
			}
			for i := 0; i < len(b); i += pageSize {
				if !c.page(&table, r, pageNo(from)+pageNo(i>>pageShift), (*page)(b[i:])) {
					return nil
				}
			}
			if err := c.step(int64(len(b))); err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads pages of the file. Those that the disk does not give become zeros
// and findings.
func (c *checker) read(b []byte, from uint64) error {
	if readWhole(c.a.file, b, int64(from)<<pageShift) == nil {
		return nil
	}
	for i := 0; i < len(b); i += pageSize {
		at := int64(from)<<pageShift + int64(i)
		if err := readWhole(c.a.file, b[i:i+pageSize], at); err != nil {
			c.found("", &Error{Op: "check", Path: c.a.path, Offset: at, Err: fmt.Errorf("%w: %w", ErrCorrupt, err)})
			clear(b[i : i+pageSize])
		}
	}
	return nil
}

// page checks the checksum of a page and says whether to go on.
func (c *checker) page(table *sumTable, r int, p pageNo, b *page) bool {
	switch {
	case p < slotPages:
		return true
	case isSums(p):
		if table.agrees(r, int(p-sumsAt(r))) {
			return true
		}
	case sumOf(b) == table.get(p):
		return true
	case *b == page{}:
		// Free pages may have been punched. In a file that a crash left they
		// may not be free any more.
		if _, free := c.a.alloc.freeBlockAt(p); free || c.a.crashed {
			return true
		}
	}
	e, more := c.found("", corruptAt(uint64(p)<<pageShift, "page %d does not have its checksum", p))
	c.damaged = append(c.damaged, e)
	return more
}

// structures checks what the pages hold.
func (c *checker) structures() (err error) {
	defer catchFault(&err, debug.SetPanicOnFault(true))
	a := c.a
	whole := true // every owner has told all its pages
	check := func(name string, v verifier) error {
		err := v.verify(func(p pageNo, n uint32) error { return c.own(name, p, n) })
		if ctxErr := c.ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		if err != nil {
			whole = false
			c.found(name, err)
		}
		return nil
	}
	for _, d := range []*dict{a.catalog, a.meta} {
		if err := check("", d); err != nil {
			return err
		}
	}
	err = a.catalog.eachBytes(func(key, val []byte) bool {
		name := string(key)
		v, err := c.container(name, val)
		if err == nil {
			err = check(strings.TrimPrefix(name, hiddenPrefix), v)
		} else {
			whole = false
			c.found(name, err)
		}
		return c.ctx.Err() == nil && len(c.findings) < maxFindings
	})
	if ctxErr := c.ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	if err != nil {
		whole = false
		c.found("", err)
	}
	if err := a.alloc.verify(c.used, whole); err != nil {
		c.found("", err)
	}
	return nil
}

// A verifier reports each run of pages that it has to own, and what is wrong.
type verifier interface {
	verify(own func(p pageNo, n uint32) error) error
}

func (c *checker) container(name string, entry []byte) (verifier, error) {
	e, err := decodeEntry(entry)
	if err != nil {
		return nil, err
	}
	v := c.a.opened(name)
	if v == nil {
		if v, err = c.a.byEntry(name, &e); err != nil {
			return nil, err
		}
	}
	return v.(verifier), nil
}

// own gives pages to a container, whose they must be alone.
func (c *checker) own(container string, p pageNo, n uint32) error {
	for _, e := range c.damaged {
		if at := uint64(e.Offset) >> pageShift; uint64(p) <= at && at < uint64(p)+uint64(n) {
			e.Container = container
		}
	}
	if err := c.used.claim(p, n, "owned"); err != nil {
		return err
	}
	return c.step(int64(n) << pageShift)
}

// An ownership has a bit for each page of the file, outside the Go heap.
type ownership struct {
	end   uint64
	table []byte
}

func newOwnership(end uint64) (*ownership, error) {
	table, err := allocTable(int(end/64+1) * 8)
	return &ownership{end, table}, err
}

func (o *ownership) release() { freeTable(o.table) }

// claim takes pages that nobody has.
func (o *ownership) claim(p pageNo, n uint32, what string) error {
	for ; n > 0; p, n = p+1, n-1 {
		if uint64(p) >= o.end {
			return corruptAt(uint64(p)<<pageShift, "%s page %d past the end %d", what, p, o.end)
		}
		if o.has(uint64(p)) {
			return corruptAt(uint64(p)<<pageShift, "%s page %d is used twice", what, p)
		}
		o.table[p>>3] |= 1 << (p & 7)
	}
	return nil
}

func (o *ownership) has(p uint64) bool { return o.table[p>>3]>>(p&7)&1 != 0 }

// missing returns the first page that nobody has, or end.
func (o *ownership) missing() uint64 {
	for p := uint64(0); p < o.end; p += 8 {
		if b := o.table[p>>3]; b != 0xff {
			return min(o.end, p+uint64(bits.TrailingZeros8(^b)))
		}
	}
	return o.end
}

// A multiset tells whether two sequences hold the same numbers equally often,
// whatever their order, in two words of memory: by the sums of hashes that an
// adversary cannot know (Clarke et al., Incremental Multiset Hash Functions,
// 2003).
type multiset struct {
	h   *hasher
	sum uint64
	n   int64
}

func (m *multiset) add(x uint64) {
	m.sum += m.h.word(x)
	m.n++
}

func (m *multiset) same(o *multiset) bool { return m.sum == o.sum && m.n == o.n }
