package emd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// Salvage writes what can be read of the damaged file src to a new file dst,
// and reports what was lost and where. It opens files that [Open] refuses too:
// with damaged or missing header slots, cut short, or without their log. Of src
// and its log no byte changes.
//
// Of each container every entry is copied, as bytes and with the signatures of
// its types, that can be reached and lies in readable pages. What cannot is left
// out of a dict. A list keeps its length and the index of each element: a lost
// one is the zero value, as indexes may be kept elsewhere. Containers whose
// name is lost are found by their own first page; they are called lost-1,
// lost-2... if that name is damaged or taken. Containers that a migration had not
// finished are left out.
//
// Nothing is made up but from pages whose checksum is wrong: entries read from
// such a page, or found by way of one, are copied and counted as
// [Salvaged].Suspect. What was committed last but lies in a part of the log that
// is damaged is lost: the report says so, and the rest is then older, in parts
// if a checkpoint was under way.
//
// src is locked as for reading: [ErrLocked] if it is open for writing. dst must
// not exist ([fs.ErrExist]); it gets its name when it is whole. A src in which
// nothing can be recognised is [ErrCorrupt], one of another version of the format
// [ErrVersion]. If ctx ends or dst cannot be written, there is no dst. Memory is
// bounded as for any other arena.
//
// progress may be nil. It is called now and then, by the caller's goroutine, with
// the bytes of src looked at so far, roughly, and their total, and at the end
// with done equal to total.
func Salvage(ctx context.Context, dst, src string, progress func(done, total int64)) (Report, error) {
	return salvageWith(ctx, dst, src, progress, internalOptions{})
}

// A Report says what [Salvage] found.
type Report struct {
	Containers []Salvaged // of the new file, in the order of their names
	Meta       int64      // values of SetMeta that were copied
	// Damages are the findings in the order of their discovery, at most 1000.
	Damages []Damage
	// More is how many findings there were beyond those.
	More int64
}

// Salvaged describes a container that [Salvage] has copied.
type Salvaged struct {
	Name       string // in the new file
	Kind       string // "list" or "dict"
	Key, Value string // type signatures, as in [Info]
	// Entries is how many entries or elements were copied, suspect ones included,
	// lost elements of lists not.
	Entries int64
	// Lost is how many are known to be lost: at least so many, for where the
	// length is damaged too the rest cannot be known.
	Lost int64
	// Suspect is how many were copied from pages whose checksum is wrong, or
	// found by way of one. They may be wrong, or belong elsewhere.
	Suspect int64
}

// Damage is a finding of [Salvage].
type Damage struct {
	Container string // "" where none is concerned
	Offset    int64  // in bytes from the start of the file; 0 where unknown
	Err       error  // mostly matches [ErrCorrupt]
}

// Whole says that nothing was found to be damaged.
func (r *Report) Whole() bool { return len(r.Damages) == 0 }

// String returns the report as text of several lines.
func (r Report) String() string {
	var b strings.Builder
	for _, c := range r.Containers {
		fmt.Fprintf(&b, "%s %q: %d copied", c.Kind, c.Name, c.Entries)
		if c.Suspect != 0 {
			fmt.Fprintf(&b, ", %d of them suspect", c.Suspect)
		}
		if c.Lost != 0 {
			fmt.Fprintf(&b, ", %d lost", c.Lost)
		}
		b.WriteByte('\n')
	}
	if r.Meta != 0 {
		fmt.Fprintf(&b, "meta: %d copied\n", r.Meta)
	}
	if r.Whole() {
		b.WriteString("no damage found\n")
	}
	for _, d := range r.Damages {
		b.WriteString("damage")
		if d.Container != "" {
			fmt.Fprintf(&b, " in %q", d.Container)
		}
		if d.Offset != 0 {
			fmt.Fprintf(&b, " at %#x", d.Offset)
		}
		fmt.Fprintf(&b, ": %v\n", d.Err)
	}
	if r.More != 0 {
		fmt.Fprintf(&b, "and %d more findings\n", r.More)
	}
	return b.String()
}

const (
	maxDamages   = 1000
	progressStep = 1 << 20
)

// A salvager copies the containers of a damaged file.
type salvager struct {
	ctx      context.Context
	progress func(done, total int64)
	in       internalOptions
	report   Report

	a     *Arena // the damaged file, as far as it can be opened
	limit uint64 // pages that the file has
	seed  bool   // the hash seed is known
	dst   *Arena

	logWhole bool   // the log is as it should be, or there need be none
	name     string // of the container at work
	sums     *sumTable
	sumsOf   int     // the region
	summed   pageSet // pages whose checksum was looked at
	bad      pageSet // those that do not agree with it

	referred    pageSet // header pages of the containers that the catalogue names
	seen        pageSet // pages of buckets that were visited
	incomplete  bool    // the catalogue: not all containers may be known
	done, total int64   // bytes
	reported    int64
	madeUp      int // names
}

func salvageWith(ctx context.Context, dst, src string, progress func(done, total int64), in internalOptions) (Report, error) {
	if in.chunkSize == 0 {
		in.chunkSize = defaultChunkSize
	}
	if in.fs == nil {
		in.fs = newOSFS(in.heap, in.far)
	}
	s := &salvager{ctx: ctx, progress: progress, in: in}
	s.a = &Arena{path: src, fs: in.fs, open: map[string]container{}, quit: make(chan struct{}), opts: Options{ReadOnly: true, NetworkFS: true}}
	err := s.run(dst)
	if err != nil {
		err = s.a.placed("salvage", nil, 0, err)
	}
	return s.report, err
}

func (s *salvager) run(dst string) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	dst, err := s.in.fs.Resolve(dst)
	if err != nil {
		return err
	}
	if f, err := s.in.fs.Open(dst, os.O_RDONLY, 0); err == nil {
		return errors.Join(&fs.PathError{Op: "salvage", Path: dst, Err: fs.ErrExist}, f.Close())
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.open(); err != nil {
		return err
	}
	defer s.close()
	return s.build(dst)
}

// build fills a file of a temporary name, and names it when it is whole.
func (s *salvager) build(dst string) (err error) {
	temp := dst + ".new-" + strconv.FormatUint(rand64(), 36)
	opts := &Options{NetworkFS: true}
	if s.seed {
		opts.HashSeed = s.a.seed
	}
	if s.dst, err = openWith(temp, opts, s.in); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.remove(temp), s.remove(logPath(temp)))
		}
	}()
	err = s.copyAll()
	if err != nil {
		_ = s.dst.Rollback()
	}
	if err = errors.Join(err, s.dst.Close()); err != nil {
		return err
	}
	if len(s.report.Containers) == 0 && s.report.Meta == 0 && !s.recognised() {
		return corrupt("nothing in it can be recognised (%d bytes)", s.a.space.fileSize)
	}
	if err := s.in.fs.Link(temp, dst); err != nil {
		return err
	}
	// It has its name: that the other cannot be removed is no reason to take it back.
	_ = s.remove(temp)
	s.step(s.total)
	return s.in.fs.SyncDir(dst)
}

func (s *salvager) remove(path string) error {
	err := s.in.fs.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// recognised says whether the file was of this kind at all.
func (s *salvager) recognised() bool {
	return s.a.header.epoch != 0 || s.seen.n != 0
}

// damaged notes a finding.
func (s *salvager) damaged(container string, off uint64, err error) {
	if at := offsetOf(err); at != 0 {
		off = uint64(at)
	}
	if len(s.report.Damages) >= maxDamages {
		s.report.More++
		return
	}
	s.report.Damages = append(s.report.Damages, Damage{container, int64(off), err})
}

// step tells how far it has come. It returns why not to go on.
func (s *salvager) step(n int64) error {
	s.done = min(s.done+n, s.total)
	if s.progress != nil && (s.done-s.reported >= progressStep || s.done == s.total && s.reported != s.total) {
		s.reported = s.done
		s.progress(s.done, s.total)
	}
	return s.ctx.Err()
}

// ---- opening what cannot be opened

// open locks and maps the file, and lays over it what its log holds.
func (s *salvager) open() (err error) {
	a := s.a
	path, err := a.fs.Resolve(a.path)
	if err != nil {
		return err
	}
	a.path = path
	a.setLimits(s.in)
	a.status.Store(statusReadOnly)
	if err := a.openLocked(s.in.chunkSize); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.file.Close())
		}
	}()
	size, err := a.file.Size()
	if err != nil {
		return err
	}
	if err := s.readHeader(size); err != nil {
		return err
	}
	a.log = &redoLog{fs: a.fs, path: logPath(a.path), id: a.header.id}
	log, recs, err := s.readLog()
	if err != nil {
		return err
	}
	if log != nil {
		defer func() { err = errors.Join(err, log.Close()) }()
	}
	mark := a.header.mark
	if len(recs) > 0 {
		mark = recs[len(recs)-1].mark
	}
	// What lies past the mark belongs to nothing; but the mark may be of an older header.
	s.limit = min(maxPages, uint64(size)>>pageShift)
	if size < int64(mark)<<pageShift {
		s.damaged("", uint64(size), corrupt("cut short: %d bytes, committed were %d", size, mark<<pageShift))
	}
	s.total = int64(s.limit) << pageShift
	return s.show(size, log, recs)
}

// readHeader finds the newest valid header slot. Without one, the file's size
// and the fixed places of the catalogue must do.
func (s *salvager) readHeader(size int64) error {
	h, err := readHeader(s.a.file, size)
	if errors.Is(err, ErrVersion) {
		return err
	}
	// What is only cut short has a header too.
	if err == nil || h.epoch != 0 && h.validate(int64(maxPages)<<pageShift) == nil {
		s.a.header, s.seed = h, true
		s.checkSlots()
		return nil
	}
	pages := uint64(size) >> pageShift
	if pages == 0 {
		return corrupt("%d bytes", size)
	}
	s.damaged("", 0, corrupt("no valid header"))
	s.incomplete = true
	first := (&space{}).region(0).firstData()
	s.a.header = header{mark: min(pages, maxPages), catalog: first, meta: first + 1}
	return nil
}

// checkSlots reports slots that have not the state before the newest, or the
// one before that. The newest may then be lost.
func (s *salvager) checkSlots() {
	newest := s.a.header.epoch
	b := make([]byte, slotSize)
	for age := uint64(1); age < min(newest, slotPages); age++ {
		off := int64((newest-age)%slotPages) * pageSize
		if err := readWhole(s.a.file, b, off); err != nil {
			s.damaged("", uint64(off), fmt.Errorf("header slot: %w", err))
			continue
		}
		var h header
		h.decode(b)
		sum := binary.LittleEndian.Uint32(b[slotSumOff:])
		if string(b[:slotVersionOff]) != fileMagic || sum != crc32.Checksum(b[:slotSumOff], castagnoli) || h.epoch != newest-age {
			s.damaged("", uint64(off), corrupt("bad header slot: the newest may be lost"))
		}
	}
}

// readLog returns the records of a live log that can be used: if it is
// damaged, those before the damage.
func (s *salvager) readLog() (log file, recs []record, err error) {
	a := s.a
	if a.header.relaxed() {
		s.logWhole = true
		if a.header.state == headerUnclean {
			s.damaged("", 0, fmt.Errorf("%w: a relaxed file, whose changes may be there in parts", ErrUnclean))
		}
		return nil, nil, nil
	}
	if s.seed {
		if log, recs, err = a.readOldLog(); err == nil {
			s.logWhole = true
			return log, recs, nil
		}
		s.damaged("", 0, err)
	}
	log, err = a.fs.Open(a.log.path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	size, err := log.Size()
	if err != nil {
		return nil, nil, errors.Join(err, log.Close())
	}
	recs = s.usable(log, size)
	s.damaged("", 0, corrupt("of the log %d commits could be used", len(recs)))
	return log, recs, nil
}

// usable returns the records of a damaged log up to the damage. If the log is
// newer than the file's header, that of the header's own generation was lost
// with it: then the log says itself which generation it holds. (Applying that twice
// does no harm, should the file have it already.)
func (s *salvager) usable(log file, size int64) (recs []record) {
	h := s.a.header
	b := make([]byte, logSumOff+4)
	if readWhole(log, b, 0) != nil {
		return nil
	}
	le := binary.LittleEndian
	off := h.logOff
	if string(b[:logVersionOff]) == logMagic && le.Uint32(b[logSumOff:]) == crc32.Checksum(b[:logSumOff], castagnoli) {
		id, generation := fileID(b[logIDOff:]), le.Uint64(b[logGenerationOff:])
		if !s.seed || id == h.id && generation > h.generation {
			h.id, h.generation, off = id, generation, 0
		}
	}
	if h.generation == 0 || s.seed && h.state != headerLive && off != 0 {
		return nil
	}
	next := func(off int64, seq uint64) (record, bool) {
		r, ok, err := readRecord(log, h.id, off, size)
		if err != nil || !ok || r.generation != h.generation || r.seq != seq {
			return r, false
		}
		ok, err = r.whole(log)
		return r, ok && err == nil
	}
	if off == 0 {
		for off = logHeader; off < size; off += pageSize {
			if _, ok := next(off, 1); ok {
				break
			}
		}
	}
	for {
		r, ok := next(off, uint64(len(recs))+1)
		if !ok {
			return recs
		}
		recs = append(recs, r)
		off += (r.length + pageSize - 1) &^ (pageSize - 1)
	}
}

// show maps the file, and makes up for what Arena.show requires of it.
func (s *salvager) show(size int64, log file, recs []record) (err error) {
	a := s.a
	defer catchFault(&err, debug.SetPanicOnFault(true))
	a.seed = a.header.seed
	border := s.limit &^ (unitPages - 1) // what lies behind is read into memory
	a.space, err = newSpace(a.file, a.fs.Map(a.file, true), s.in.chunkSize, border, size, true)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.space.close())
		}
	}()
	if err := a.space.ensure(s.limit); err != nil {
		return err
	}
	for p := border; p < s.limit; p++ {
		dst, err := a.space.writablePage(pageNo(p))
		if err == nil {
			err = readWhole(a.file, dst[:], int64(p)<<pageShift)
		}
		if err != nil {
			return err
		}
	}
	for i := range recs {
		err := recs[i].eachEntry(log, func(e entry) error {
			if uint64(e.page) >= s.limit {
				return nil
			}
			dst, err := a.space.writablePage(e.page)
			if err == nil {
				e.overlay(dst)
			}
			return err
		})
		if errors.Is(err, ErrFull) { // of memory: that is no damage
			return err
		}
		if err != nil {
			s.damaged("", 0, err)
			break
		}
	}
	a.alloc = newAllocator(a.space, s.limit)
	return nil
}

func (s *salvager) close() { _ = errors.Join(s.a.space.close(), s.a.file.Close()) } // nothing was written

// page returns a page of the file that may belong to a container, or nil.
func (s *salvager) page(p pageNo) *page {
	if p < slotPages || uint64(p) >= s.limit {
		return nil
	}
	return s.a.space.peek(p)
}

// intact says whether a page agrees with its checksum. It reports each that
// does not, once. The table of checksums may be what is damaged: then intact pages
// are suspect, never the other way round.
func (s *salvager) intact(p pageNo) bool {
	if p < slotPages || uint64(p) >= s.limit {
		return false
	}
	if !s.summed.add(p) {
		return !s.bad.has(p)
	}
	ok, err := s.agrees(p)
	if ok && err == nil {
		return true
	}
	s.bad.add(p)
	if err == nil {
		err = corrupt("page %d does not have its checksum", p)
	}
	s.damaged(s.name, uint64(p)<<pageShift, err)
	return false
}

// agrees compares a page with its checksum. Checksums are those of the file
// as the last checkpoint left it; of a checkpoint that a crash interrupted, those
// in memory, over which the log lies.
func (s *salvager) agrees(p pageNo) (ok bool, err error) {
	h := &s.a.header
	if h.relaxed() {
		return true, nil // there are none
	}
	if s.logWhole && h.needSeq == 0 && uint64(p) >= h.mark {
		return true, nil // written since: the log has had checksums of such pages
	}
	replayed := s.logWhole && h.needSeq != 0
	if r := int(p >> regionShift); s.sums == nil || s.sumsOf != r {
		if s.sums == nil {
			s.sums = new(sumTable)
		}
		s.sumsOf = r
		for i := range s.sums {
			if err := s.read(&s.sums[i], sumsAt(r)+pageNo(i), replayed); err != nil {
				s.sums[i] = page{}
			}
		}
	}
	var b page
	if err := s.read(&b, p, replayed); err != nil {
		return false, err
	}
	return sumOf(&b) == s.sums.get(p), nil
}

// read copies a page of the file, or of what lies in memory.
func (s *salvager) read(b *page, p pageNo, memory bool) error {
	if !memory {
		return readWhole(s.a.file, b[:], int64(p)<<pageShift)
	}
	return s.guard(func() error {
		src := s.page(p)
		if src == nil {
			return corruptAt(uint64(p)<<pageShift, "page outside the file")
		}
		*b = *src
		return nil
	})
}

// guard turns faults of the device inside fn into an error.
func (s *salvager) guard(fn func() error) (err error) {
	defer catchFault(&err, debug.SetPanicOnFault(true))
	return fn()
}

// ---- containers

// copyAll copies meta values and all containers.
func (s *salvager) copyAll() error {
	meta := newDictFromFile(&handle{a: s.a, name: "meta", kind: "catalog"})
	err := s.eachEntry(meta, s.a.header.meta, nil, func(key, val []byte, _ bool) error {
		s.report.Meta++
		return s.dst.SetMeta(string(key), val)
	})
	if err != nil {
		return err
	}
	catalog := newDictFromFile(&handle{a: s.a, name: "catalog", kind: "catalog"})
	names := Salvaged{Name: "catalog"}
	found := map[string]catalogEntry{}
	findings := len(s.report.Damages)
	err = s.eachEntry(catalog, s.a.header.catalog, &names, func(key, val []byte, suspect bool) error {
		e, err := decodeEntry(val)
		if err != nil {
			s.damaged("", 0, fmt.Errorf("container %q: %w", key, err))
			s.incomplete = true
			return nil
		}
		s.incomplete = s.incomplete || suspect
		if suspect && !s.isHeaderOf(string(key), e) {
			s.damaged(string(key), uint64(e.hdr)<<pageShift, corrupt("the catalogue has page %d for its header, which it is not", e.hdr))
			return nil
		}
		s.referred.add(e.hdr)
		if !strings.HasPrefix(string(key), hiddenPrefix) {
			found[string(key)] = e
		}
		return nil
	})
	if err != nil {
		return err
	}
	if s.incomplete || names.Lost != 0 || len(s.report.Damages) != findings || s.report.More != 0 {
		if err := s.findOrphans(found); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if err := s.copyContainer(name, found[name]); err != nil {
			return err
		}
	}
	return nil
}

// isHeaderOf says whether the page that a suspect entry of the catalogue leads
// to is the header of that container. A page that is intact itself knows
// better than the entry whose header it is.
func (s *salvager) isHeaderOf(name string, e catalogEntry) (yes bool) {
	err := s.guard(func() error {
		pg := s.page(e.hdr)
		if pg == nil || headerKind(pg) != e.kind || e.hdr == s.a.header.catalog || e.hdr == s.a.header.meta {
			return nil
		}
		label, key, value, ok := readLabel(pg)
		yes = !ok || label == name && key == e.key && value == e.value || !s.intact(e.hdr)
		return nil
	})
	return err == nil && yes
}

// headerKind returns the kind of container whose header a page is, or "".
func headerKind(pg *page) string {
	switch string(pg[:8]) {
	case listKind:
		return kindList
	case dictKind:
		return kindDict
	}
	return ""
}

// findOrphans looks for containers that the catalogue does not name, or no
// more, by their header pages.
func (s *salvager) findOrphans(found map[string]catalogEntry) error {
	for p := pageNo(slotPages); uint64(p) < s.limit; p++ {
		if p == s.a.header.catalog || p == s.a.header.meta || s.referred.has(p) {
			continue
		}
		if p%1024 == 0 && s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		err := s.guard(func() error {
			if pg := s.page(p); pg != nil {
				s.orphan(p, pg, found)
			}
			return nil
		})
		if err != nil {
			s.damaged("", uint64(p)<<pageShift, err)
		}
	}
	return nil
}

// orphan adds the container whose header page p is, if it is one.
func (s *salvager) orphan(p pageNo, pg *page, found map[string]catalogEntry) {
	e := catalogEntry{hdr: p, kind: headerKind(pg)}
	if e.kind == "" || s.isFree(p) { // or it was dropped
		return
	}
	name, key, value, ok := readLabel(pg)
	if !ok {
		s.damaged("", uint64(p)<<pageShift, corrupt("a %s without a name", e.kind))
		return
	}
	if strings.HasPrefix(name, hiddenPrefix) {
		return
	}
	if _, taken := found[name]; taken || name == "" {
		for taken {
			s.madeUp++
			name = fmt.Sprintf("lost-%d", s.madeUp)
			_, taken = found[name]
		}
	}
	e.key, e.value = key, value
	s.damaged(name, uint64(p)<<pageShift, corrupt("a %s that the catalogue does not name", e.kind))
	found[name] = e
}

// isFree says whether the allocator has a page for free, as far as it can tell.
func (s *salvager) isFree(p pageNo) bool {
	g := s.a.space.region(int(p >> regionShift))
	if !s.intact(g.header) || !s.intact(g.bitmap) || g.valid() != nil {
		return false
	}
	_, free := s.a.alloc.freeBlockAt(p)
	return free
}

func (s *salvager) copyContainer(name string, e catalogEntry) error {
	h := handle{a: s.a, name: name, kind: e.kind, key: e.key, value: e.value}
	s.name = name
	out := Salvaged{Name: name, Kind: e.kind, Key: e.key, Value: e.value}
	var ok bool
	var err error
	if e.kind == kindList {
		ok, err = s.copyList(&h, e.hdr, &out)
	} else {
		ok, err = s.copyDict(&h, e.hdr, &out)
	}
	if ok {
		s.report.Containers = append(s.report.Containers, out)
	}
	return err
}

// enter makes an empty container in the new file. It is false where the new
// file cannot have it.
func (s *salvager) enter(c container, h *handle) bool {
	b := c.base()
	b.name, b.kind, b.key, b.value = h.name, h.kind, h.key, h.value
	if _, err := s.dst.openContainer(c, false); err != nil {
		s.damaged(h.name, 0, err)
		return false
	}
	return true
}

// record appends a record to dst.
func (s *salvager) record(recs *records, dst []byte, x ref) (b []byte, suspect bool, err error) {
	switch {
	case x == 0 || x == refEmpty:
		return dst, false, nil
	case x.grows():
		g, err := recs.growing(x)
		if err != nil {
			return dst, false, err
		}
		if suspect, err = s.span(x.off(), growHeader+g.inHead()); err != nil {
			return dst, false, err
		}
		err = g.eachExtent(func(p pageNo, _ uint32, used int) error {
			bad, err := s.span(uint64(p)<<pageShift, used)
			suspect = suspect || bad
			return err
		})
		if err != nil {
			return dst, false, err
		}
	case !x.inPieces():
		if suspect, err = s.span(x.off(), x.len()); err != nil {
			return dst, false, err
		}
	default:
		index, total, size, err := recs.pieces(x)
		if err != nil {
			return dst, false, err
		}
		if suspect, err = s.span(x.off(), len(index)); err != nil {
			return dst, false, err
		}
		for i := indexHeader; total > 0 && i+4 <= len(index); i += 4 {
			bad, err := s.span(uint64(binary.LittleEndian.Uint32(index[i:]))<<pageShift, min(size, total))
			if err != nil {
				return dst, false, err
			}
			suspect = suspect || bad
			total -= size
		}
	}
	b, err = recs.get(dst, x)
	return b, suspect, err
}

// span checks that the file has n bytes at off, and says whether they are suspect.
func (s *salvager) span(off uint64, n int) (suspect bool, err error) {
	if n <= 0 || off>>pageShift < slotPages || (off+uint64(n)-1)>>pageShift >= s.limit || s.a.space.view(off, n) == nil {
		return false, corruptAt(off, "%d bytes outside the file", n)
	}
	for p := off >> pageShift; p <= (off+uint64(n)-1)>>pageShift; p++ {
		suspect = suspect || !s.intact(pageNo(p))
	}
	return suspect, nil
}

// ---- dicts

func (s *salvager) copyDict(h *handle, hdr pageNo, out *Salvaged) (ok bool, err error) {
	src := newDictFromFile(h)
	if err := s.dictHeader(src, hdr); err != nil {
		s.damaged(h.name, uint64(hdr)<<pageShift, err)
		return false, nil
	}
	dst := newDict(s.dst, src.layout.keySize, src.layout.valSize)
	if !s.enter(dst, h) {
		return false, nil
	}
	return true, s.eachEntry(src, hdr, out, func(key, val []byte, _ bool) error {
		_, _, err := dst.change(changeSet, dst.hash(key), key, val, nil, nil)
		return err
	})
}

// dictHeader takes from a header page what reading needs.
func (s *salvager) dictHeader(d *dict, h pageNo) error {
	return s.guard(func() error {
		hdr := s.page(h)
		if hdr == nil || string(hdr[dictKindOff:dictLayoutOff]) != dictKind {
			return corruptAt(uint64(h)<<pageShift, "page %d is not the header of a dict", h)
		}
		le := binary.LittleEndian
		keySize, valSize := int(int32(le.Uint32(hdr[dictKeySizeOff:]))), int(int32(le.Uint32(hdr[dictValSizeOff:])))
		if keySize < -1 || valSize < -1 || keySize > maxKeySize || valSize > maxValueSize {
			return corruptAt(uint64(h)<<pageShift, "dict with keys of %d and values of %d bytes", keySize, valSize)
		}
		d.layout = layoutFor(keySize, valSize)
		if hdr[dictLayoutOff] != uint8(d.layout.kind) {
			return corruptAt(uint64(h)<<pageShift, "dict in layout %d", hdr[dictLayoutOff])
		}
		d.recs.init(s.a, uint64(h)<<pageShift+dictRecordsOff)
		return nil
	})
}

// A dictWalk visits all entries of a damaged dict.
type dictWalk struct {
	s       *salvager
	d       *dict
	out     *Salvaged
	fn      func(key, val []byte, suspect bool) error
	hdr     *page
	intact  bool // the header page is
	keyBuf  []byte
	valBuf  []byte
	entries int64
	suspect int64
	stop    error // what fn returned
}

// eachEntry calls fn with each entry of a dict. It counts in out, which may be
// nil.
func (s *salvager) eachEntry(d *dict, h pageNo, out *Salvaged, fn func(key, val []byte, suspect bool) error) error {
	if err := s.dictHeader(d, h); err != nil {
		s.damaged(d.name, uint64(h)<<pageShift, err)
		if d.kind == "catalog" {
			s.incomplete = true
		}
		return nil
	}
	w := &dictWalk{s: s, d: d, out: out, fn: fn, hdr: s.page(h), intact: s.intact(h)}
	w.directories(h)
	if w.stop != nil {
		return w.stop
	}
	// The length is right at a commit, which is what the file holds.
	n := int64(min(binary.LittleEndian.Uint64(w.hdr[dictLenOff:]), maxEntries))
	if n != w.entries && w.intact {
		s.damaged(d.name, uint64(h)<<pageShift, corrupt("%d entries were found of %d", w.entries, n))
	}
	if out != nil {
		out.Entries, out.Suspect = w.entries, w.suspect
		if w.intact {
			out.Lost = max(0, n-w.entries)
		}
	}
	return nil
}

// directories visits the directories of all segments.
func (w *dictWalk) directories(h pageNo) {
	s, hdr := w.s, w.hdr
	tableBits, depth := hdr[dictRootBitsOff], uint32(hdr[dictDepthOff])
	at := uint64(h) << pageShift
	if tableBits == 0 {
		if depth > inlineDepth {
			s.damaged(w.d.name, at, corrupt("directory of depth %d", depth))
			depth = inlineDepth
		}
		w.directory(&dirSource{entries: hdr[dictDirOff:][:4<<depth], depth: depth, intact: w.intact, at: at + dictDirOff})
		return
	}
	no := binary.LittleEndian.Uint32(hdr[dictRootOff:])
	root := s.page(no)
	if tableBits != rootBits || root == nil {
		s.damaged(w.d.name, at, corrupt("root table of %d bits at page %d", tableBits, no))
		return
	}
	rootIntact := s.intact(no)
	for i := range uint64(segmentCount) {
		v := binary.LittleEndian.Uint64(root[8*i:])
		if v == 0 {
			continue
		}
		off, depth := v&(1<<rootDepthBit-1), uint32(v>>rootDepthBit)
		dir := &dirSource{first: i << (64 - rootBits), bits: rootBits, depth: depth, intact: w.intact && rootIntact, at: uint64(no)<<pageShift + 8*i}
		var only [4]byte
		switch {
		case depth == 0:
			binary.LittleEndian.PutUint32(only[:], pageNo(min(off>>pageShift, maxPages-1)))
			dir.entries = only[:]
		case depth > maxDepth || off%16 != 0:
			s.damaged(w.d.name, dir.at, corrupt("impossible root entry %#x", v))
			continue
		default:
			suspect, err := s.span(off, 4<<depth)
			if err != nil {
				s.damaged(w.d.name, dir.at, fmt.Errorf("directory of a segment: %w", err))
				continue
			}
			dir.intact = dir.intact && !suspect
			dir.at, dir.entries = off, s.a.space.view(off, 4<<depth)
		}
		if w.directory(dir); w.stop != nil {
			return
		}
	}
}

// A dirSource is a directory: page numbers of buckets for the hashes that
// agree with first in bits bits, by the next depth bits.
type dirSource struct {
	first   uint64
	bits    int
	depth   uint32
	entries []byte
	intact  bool
	at      uint64 // where it lies
}

func (d *dirSource) entry(i uint64) pageNo { return binary.LittleEndian.Uint32(d.entries[4*i:]) }

// leadsTo says whether a search for h goes to page no.
func (d *dirSource) leadsTo(h uint64, no pageNo) bool {
	if prefixOf(h, d.bits) != d.first {
		return false
	}
	return d.entry(h<<d.bits>>1>>(63-d.depth)) == no
}

func (w *dictWalk) directory(dir *dirSource) {
	last := pageNo(0)
	for i := range uint64(1) << dir.depth {
		no := dir.entry(i)
		if no == last {
			continue
		}
		last = no
		if no == 0 {
			if dir.depth != 0 {
				w.s.damaged(w.d.name, dir.at+4*i, corrupt("directory without a bucket"))
			}
			continue
		}
		w.bucket(dir, dir.first|i<<(63-dir.depth)<<1>>dir.bits, no)
		if w.stop != nil {
			return
		}
	}
}

// bucket visits the pages of the bucket that begins with page head, and that
// the directory has for the hash h.
func (w *dictWalk) bucket(dir *dirSource, h uint64, head pageNo) {
	s := w.s
	link := uint32(0)
	for no := head; no != 0; {
		b := (*bucket)(s.page(no))
		at := uint64(no) << pageShift
		if b == nil {
			s.damaged(w.d.name, at, corrupt("bucket outside the file"))
			return
		}
		if !s.seen.add(no) {
			if no != head || link != 0 {
				s.damaged(w.d.name, at, corrupt("bucket is used twice"))
			} else if !dir.intact || !s.intact(no) || b.depth() >= int(dir.depth)+dir.bits {
				s.damaged(w.d.name, at, corrupt("bucket is used twice"))
			}
			return
		}
		next := pageNo(0)
		err := s.guard(func() error {
			n := b.depth()
			placed := n >= dir.bits && n <= dir.bits+int(dir.depth) && b.prefix() == prefixOf(h, n) && b.link() >= link
			intact := s.intact(no)
			if !placed {
				s.damaged(w.d.name, at, corrupt("bucket of prefix %#x/%d stands for hash %#x", b.prefix(), n, h))
			}
			if placed || s.seed {
				w.page(dir, head, b, placed, intact && dir.intact)
			}
			next, link = b.next(), b.link()+1
			return nil
		})
		if err != nil {
			s.damaged(w.d.name, at, err)
			return
		}
		if err := s.step(pageSize); err != nil && w.stop == nil {
			w.stop = err
		}
		if w.stop != nil {
			return
		}
		no = next
	}
}

// page visits the entries of a page. Where the hash seed is known, an entry
// counts only if a search for its key comes here: so bytes that are no
// entries, or another dict's, are not taken for some.
func (w *dictWalk) page(dir *dirSource, head pageNo, b *bucket, placed, intact bool) {
	s, d, l := w.s, w.d, w.d.layout
	at := uint64(0)
	refused := 0
	for i := l.next(b, 0); i >= 0 && w.stop == nil; i = l.next(b, i+1) {
		key, val, suspect, err := w.entryAt(b, i)
		if err != nil {
			s.damaged(d.name, uint64(head)<<pageShift, err)
			continue
		}
		suspect = suspect || !intact || !placed
		if s.seed {
			h := d.hash(key)
			leads := dir.leadsTo(h, head)
			if !leads && (!placed || prefixOf(h, b.depth()) != b.prefix()) || !l.plausible(b, i, h, suspect || !leads) {
				refused++
				continue
			}
			suspect = suspect || !leads
		}
		w.entries++
		if suspect {
			w.suspect++
		}
		w.stop = w.fn(key, val, suspect)
	}
	if refused > 0 {
		s.damaged(d.name, uint64(head)<<pageShift+at, corrupt("%d entries whose keys do not belong here", refused))
	}
}

// plausible says that a key of hash h may lie in slot i; of a suspect page,
// also that it is not far from where it should.
func (l *layout) plausible(b *bucket, i int, h uint64, suspect bool) bool {
	if l.kind != layoutLines {
		return b[l.ctrlOff(i)] == fingerprint(h)
	}
	return !suspect || i == l.slots || (i/l.perGroup-home(h, lineCount)+lineCount)%lineCount <= 2*maxDistance
}

// entryAt returns the entry of a slot. Both parts are valid until the next call.
func (w *dictWalk) entryAt(b *bucket, i int) (key, val []byte, suspect bool, err error) {
	l, d := w.d.layout, w.d
	if l.kind != layoutSlotted {
		if key, err = d.keyAt(b, i); err != nil {
			return nil, nil, false, err
		}
		w.valBuf, err = d.valueAt(w.valBuf[:0], b, i)
		return key, w.valBuf, false, err
	}
	e, ok := l.entry(b, entryOff(b, i))
	if !ok {
		return nil, nil, false, corrupt("entry passes the end of its bucket")
	}
	key, val = b[e.key:e.key+e.keyLen], b[e.val:e.end]
	if e.keyFar {
		x := b.refAt(e.key)
		if x.inPieces() || x.grows() || x.len() > maxKeySize || l.keySize >= 0 && x.len() != l.keySize {
			return nil, nil, false, corruptAt(x.off(), "key of %d bytes", x.len())
		}
		var bad bool
		if w.keyBuf, bad, err = w.s.record(&d.recs, w.keyBuf[:0], x); err != nil {
			return nil, nil, false, fmt.Errorf("a key is lost: %w", err)
		}
		key, suspect = w.keyBuf, bad
	}
	if e.valFar {
		var bad bool
		if w.valBuf, bad, err = w.s.record(&d.recs, w.valBuf[:0], b.refAt(e.val)); err != nil {
			return nil, nil, false, fmt.Errorf("the value of key %s is lost: %w", cut(strconv.QuoteToASCII(string(key)), 60), err)
		}
		if l.valSize >= 0 && len(w.valBuf) != l.valSize {
			return nil, nil, false, corrupt("value of %d bytes", len(w.valBuf))
		}
		val, suspect = w.valBuf, suspect || bad
	}
	return key, val, suspect, nil
}

// ---- lists

func (s *salvager) copyList(h *handle, hdr pageNo, out *Salvaged) (ok bool, err error) {
	src := newListFromFile(h).(*list)
	err = s.guard(func() error {
		if s.page(hdr) == nil {
			return corruptAt(uint64(hdr)<<pageShift, "list at page %d", hdr)
		}
		return src.load(hdr)
	})
	if err != nil {
		s.damaged(h.name, uint64(hdr)<<pageShift, err)
		return false, nil
	}
	size := int(src.width)
	if src.refs {
		size = -1
	}
	dst := newList(s.dst, h.name, h.value, size)
	if !s.enter(dst, h) {
		return false, nil
	}
	w := &listWalk{s: s, src: src, dst: dst, out: out, t: src.table.Load(), intact: s.intact(hdr)}
	if len(w.t.entries) > 0 {
		suspect, err := s.span(w.t.off, 4*len(w.t.entries))
		w.tableIntact = w.intact && !suspect && err == nil
	}
	return true, w.run()
}

// A listWalk copies the elements of a damaged list.
type listWalk struct {
	s        *salvager
	src, dst *list
	out      *Salvaged
	t        *extentTable
	intact   bool // the header page is

	tableIntact bool // that, and the whole table of extents

	batch   batch // elements to be appended, of a list of records
	pending int64 // zeros to be appended after it
}

func (w *listWalk) run() error {
	first, end := w.src.first.Load(), w.src.end.Load()
	lo, hi := w.t.span(first, end)
	if !w.intact { // do not believe in a length that nothing backs
		_, top := w.t.window()
		if end > w.t.start(top) {
			end = max(first, min(end, w.t.start(top)))
			hi = min(hi, top)
		}
	}
	p := first
	for k := lo; k < hi; k++ {
		from, to := max(first, w.t.start(k)), min(end, w.t.start(k+1))
		if w.t.entry(k) == 0 || from >= to {
			continue
		}
		if err := w.zeros(from-p, 0); err != nil {
			return err
		}
		p = to
		if err := w.extent(k, from, to); err != nil {
			return err
		}
	}
	if err := w.zeros(end-p, 0); err != nil {
		return err
	}
	return w.flush()
}

// zeros appends n zero elements; lost of them were something else.
func (w *listWalk) zeros(n, lost uint64) error {
	w.out.Entries += int64(n - lost)
	w.out.Lost += int64(lost)
	w.pending += int64(n)
	if !w.tableIntact {
		w.out.Suspect += int64(n - lost)
	}
	return nil
}

// flush appends what is pending.
func (w *listWalk) flush() error {
	if n := len(w.batch.ends); n > 0 {
		if err := w.dst.appendRecords(&w.batch, false); err != nil {
			return err
		}
		w.batch.b, w.batch.ends = w.batch.b[:0], w.batch.ends[:0]
	}
	if w.pending > 0 {
		if err := w.dst.resize(int(w.dst.len()) + int(w.pending)); err != nil {
			return err
		}
		w.pending = 0
	}
	return nil
}

// extent copies the slots [from, to) of extent k, block by block.
func (w *listWalk) extent(k, from, to uint64) error {
	s, t := w.s, w.t
	suspect := !w.intact
	if entryAt := t.off + 4*(k-t.base); !s.intact(pageNo(entryAt >> pageShift)) {
		suspect = true
	}
	base := uint64(t.entry(k))<<pageShift + (from-t.start(k))*t.width
	for from < to {
		n := min(to-from, max(1, (64<<10)/max(1, t.width)))
		bad := false
		err := s.guard(func() (err error) {
			bad, err = s.span(base, int(n*t.width))
			if err == nil && !w.src.refs && !bad {
				return nil
			}
			return err
		})
		if err != nil && n > 1 && t.width < pageSize {
			// Page by page: what lies before the end of the file is still there.
			n = max(1, (pageSize-base%pageSize)/t.width)
			n = min(n, to-from)
			err = s.guard(func() (err error) { bad, err = s.span(base, int(n*t.width)); return err })
		}
		if err != nil {
			s.damaged(w.src.name, base, fmt.Errorf("elements %d to %d are lost: %w", from-w.src.first.Load(), from+n-1-w.src.first.Load(), err))
			if err := w.zeros(n, n); err != nil {
				return err
			}
		} else if err := w.block(from, base, n, suspect, bad); err != nil {
			return err
		}
		if err := s.step(int64(n * t.width)); err != nil {
			return err
		}
		from, base = from+n, base+n*t.width
	}
	return nil
}

// block copies n slots at off; bad says that not all their pages are intact.
func (w *listWalk) block(p, off, n uint64, suspect, bad bool) error {
	s := w.s
	isSuspect := func(i uint64) bool {
		if suspect || !bad {
			return suspect
		}
		wrong, _ := s.span(off+i*w.t.width, int(w.t.width))
		return wrong
	}
	if w.src.refs {
		return w.refs(p, off, n, isSuspect)
	}
	if err := w.flush(); err != nil {
		return err
	}
	buf := make([]byte, n*w.t.width)
	if err := s.guard(func() error { copy(buf, s.a.space.view(off, len(buf))); return nil }); err != nil {
		s.damaged(w.src.name, off, fmt.Errorf("elements %d to %d are lost: %w", p-w.src.first.Load(), p+n-1-w.src.first.Load(), err))
		return w.zeros(n, n)
	}
	for i := range n {
		w.out.Entries++
		if (suspect || bad) && isSuspect(i) {
			w.out.Suspect++
		}
	}
	return w.dst.appendSlots(buf, n, false)
}

// refs copies n slots that lead to records.
func (w *listWalk) refs(p, off, n uint64, isSuspect func(i uint64) bool) error {
	s := w.s
	for i := range n {
		lost := false
		var wrong bool
		err := s.guard(func() (err error) {
			x := ref(binary.LittleEndian.Uint64(s.a.space.view(off+8*i, 8)))
			if lost = x == 0; lost {
				return nil
			}
			if w.pending > 0 || len(w.batch.ends) >= maxEncoded || len(w.batch.b) >= maxScratch {
				if err := w.flush(); err != nil {
					return &writeError{err}
				}
			}
			was := len(w.batch.b)
			b, bad, err := s.record(&w.src.recs, w.batch.b, x)
			if err != nil {
				w.batch.b = w.batch.b[:was]
				return err
			}
			w.batch.b, wrong = b, bad
			w.batch.ends = append(w.batch.ends, len(b))
			return nil
		})
		var failed *writeError
		switch {
		case errors.As(err, &failed):
			return failed.error
		case err != nil:
			s.damaged(w.src.name, off+8*i, fmt.Errorf("element %d is lost: %w", p+i-w.src.first.Load(), err))
			if err := w.zeros(1, 1); err != nil {
				return err
			}
		case lost: // never written
			if err := w.zeros(1, 0); err != nil {
				return err
			}
			if w.tableIntact && isSuspect(i) {
				w.out.Suspect++
			}
		default:
			w.out.Entries++
			if wrong || isSuspect(i) {
				w.out.Suspect++
			}
		}
	}
	return nil
}

// A writeError is one of the new file.
type writeError struct{ error }

// ---- sets of pages

// A pageSet is a set of page numbers. Memory is in proportion to the stretches
// of the file in which it has some.
type pageSet struct {
	words map[uint32]*[64]uint64
	n     int
}

// add says whether p is new.
func (s *pageSet) add(p pageNo) bool {
	if s.words == nil {
		s.words = map[uint32]*[64]uint64{}
	}
	w := s.words[p>>12]
	if w == nil {
		w = new([64]uint64)
		s.words[p>>12] = w
	}
	bit := uint64(1) << (p & 63)
	if w[p>>6&63]&bit != 0 {
		return false
	}
	w[p>>6&63] |= bit
	s.n++
	return true
}

func (s *pageSet) has(p pageNo) bool {
	w := s.words[p>>12]
	return w != nil && w[p>>6&63]>>(p&63)&1 != 0
}
