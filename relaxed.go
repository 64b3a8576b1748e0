package emd

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// A relaxed arena (Options.Relaxed) is the other bargain: its memory is the
// file, through a shared mapping, so that changes may be larger than memory and
// are written once, when the system likes. There is no log, no commit, and no
// checksum; after a crash the file holds any mixture of old and new pages.
//
// All containers work on it as they are, because three things look to them as ever:
// every page is a logged one, every line is marked as changed already,
// so that marking ends at its first look, and no page is private.
//
// The header says headerUnclean before the first page can change, and
// headerRelaxed after the last one has reached the disk.

const sharedStep = 1 << 20 // by which the file of a shared mapping grows, and by an eighth of its size

// openRelaxed is the rest of openFile for a relaxed file of size bytes.
func (a *Arena) openRelaxed(chunkSize, size int64) error {
	unclean := a.header.state == headerUnclean
	if unclean && !a.opts.AcceptUnclean {
		return fmt.Errorf("%w: a relaxed file, so what was changed before that end may be there in parts; "+
			"Salvage copies what can be read, Options.AcceptUnclean opens it as it is", ErrUnclean)
	}
	end := a.header.mark
	if unclean {
		var err error
		if end, err = a.uncleanEnd(size); err != nil {
			return err
		}
	}
	mark := (end + unitPages - 1) &^ (unitPages - 1)
	if size < int64(mark)<<pageShift {
		return corruptAt(uint64(size), "truncated: %d bytes, used were %d", size, mark<<pageShift)
	}
	if a.opts.ReadOnly {
		a.status.Store(statusReadOnly)
		a.crashed = unclean
		err := a.show(chunkSize, mark, size, nil, nil)
		if err == nil && unclean {
			a.alloc.recount(end)
		}
		return err
	}
	if err := a.allowRelaxed(a.file); err != nil {
		return err
	}
	a.removeScratches()
	if size > int64(mark)<<pageShift { // new space must be zero
		if err := a.file.Truncate(int64(mark) << pageShift); err != nil {
			return err
		}
	}
	// Each slot once, should a crash have torn one.
	a.header.state = headerUnclean
	for found := a.header.epoch; a.header.epoch < found+slotPages; {
		if err := a.header.put(a.file, false); err != nil {
			return asFull(err)
		}
	}
	if err := a.file.Sync(); err != nil {
		return err
	}
	if err := a.show(chunkSize, mark, int64(mark)<<pageShift, nil, nil); err != nil {
		return err
	}
	if !unclean {
		return nil
	}
	a.alloc.recount(end)
	a.alloc.roundUp()
	if err := a.dropUnfinished(); err != nil {
		a.logger().Warn("unfinished migration or bulk load", "path", a.path, "err", err)
	}
	return nil
}

// uncleanEnd returns how many pages the allocator had handed out: it notes that in
// the file of a relaxed arena.
func (a *Arena) uncleanEnd(size int64) (end uint64, err error) {
	var p page
	off := int64((&space{}).region(0).header) << pageShift
	if err := readWhole(a.file, p[:], off); err != nil {
		return 0, err
	}
	end = max(a.header.mark, binary.LittleEndian.Uint64(p[regionLastOff:]))
	if end > uint64(size)>>pageShift {
		return 0, corruptAt(uint64(off+regionLastOff), "%d pages in use, and the file has %d", end, size>>pageShift)
	}
	return end, nil
}

// allowRelaxed refuses file systems on which room that was allocated may be
// missing all the same when a page is written: a full disk would then be a SIGBUS.
func (a *Arena) allowRelaxed(f file) error {
	name, bad := a.fs.CopyOnWrite(f)
	if !bad {
		name, bad = a.fs.Network(f)
	}
	if bad && !a.opts.AcceptUnclean {
		return fmt.Errorf("%w: on %s a full disk would end the program that has a relaxed file open; Options.AcceptUnclean allows it",
			ErrUnsupported, name)
	}
	return nil
}

// newSharedSpace shows file, of which the pages below end are in use.
func newSharedSpace(f file, m mapping, chunkSize int64, end uint64, fileSize int64) (*space, error) {
	s := makeSpace(f, m, chunkSize, fileSize)
	s.shared = true
	s.border.Store(maxPages)
	s.marked = slices.Repeat([]uint64{allLines}, int(s.mask)+1)
	if err := s.extendFile(end); err != nil { // to whole chunks, where that is needed
		return nil, err
	}
	return s, s.open(end)
}

// extendFile makes room on the disk for the pages below end, before a page without
// room could be stored to. The caller holds mu, or is alone.
func (s *space) extendFile(end uint64) error {
	round := func(n, to int64) int64 { return (n + to - 1) / to * to }
	need := round(int64(end)<<pageShift, unitSize)
	if wholeChunks {
		need = round(need, int64(1)<<(s.shift+s.grow+pageShift))
	}
	if need <= s.fileSize {
		return nil
	}
	sizes := []int64{round(need+s.fileSize/8, sharedStep), need}
	if wholeChunks {
		sizes = sizes[1:]
	}
	var err error
	for _, size := range sizes {
		if err = s.allocate(s.fileSize, size); !onlyFull(err) {
			break
		}
	}
	return asFull(err)
}

// syncShared is the commit of a relaxed arena: it waits until all that was
// changed before is on the disk. The caller holds io.
func (a *Arena) syncShared(own bool) error {
	a.captures.Add(1)
	a.gate.close()
	a.flush()
	a.gate.openIdle()
	if err := a.writeShared(!a.opts.NoSync); err != nil {
		return err
	}
	a.stats.commits.Add(1)
	if own {
		a.stats.ownCommits.Add(1)
	}
	return nil
}

func (a *Arena) writeShared(wait bool) error {
	err := a.space.mapping.sync()
	if err == nil && wait {
		err = a.file.Sync()
	}
	return a.fail(err)
}

// closeShared makes the file one that was closed. Nobody changes anything any more.
func (a *Arena) closeShared() error {
	a.io.Lock()
	defer a.io.Unlock()
	if err := a.failure(); err != nil {
		return err
	}
	a.alloc.roundUp()
	a.flush()
	if err := a.writeShared(true); err != nil {
		return err
	}
	h := a.header
	h.state = headerRelaxed
	h.mark, _ = a.alloc.usage()
	if err := h.write(a.file); err != nil {
		return a.fail(err)
	}
	a.header = h
	return nil
}

// recount counts the free pages of a file of which those below end are in use
// or free: its own count may be older than its bitmaps.
func (al *allocator) recount(end uint64) {
	al.mu.Lock()
	defer al.mu.Unlock()
	al.end, al.freePages = end, 0
	for r := 0; uint64(r)<<regionShift < al.end; r++ {
		g := al.s.region(r)
		if g.valid() != nil {
			continue // who uses it finds out
		}
		for order := 0; order <= maxOrder; order++ {
			for i := range uint32(regionPages >> order) {
				if g.isFree(order, i) {
					al.freePages += 1 << order
				}
			}
		}
	}
}

// noteEnd keeps end in the file of a relaxed arena, for an opener after a
// crash. The caller holds mu.
func (al *allocator) noteEnd() {
	if al.s.shared {
		al.s.region(0).setWord(regionLastOff, al.end)
	}
}
