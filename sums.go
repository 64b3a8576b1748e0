package emd

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// Page checksums find what a disk, a cable or another program has changed.
// Each region keeps those of its pages in a table of 16 pages behind its
// bitmap:
//
//	0        4        8               4096
//	+--------+--------+---- ... ----+
//	| page 0 | page 1 |   page 1023 |   of the region; the next table page goes on
//	+--------+--------+---- ... ----+
//
// A checksum is the CRC-32C of the page XOR that of a page of zeros, so a table
// of zeros describes pages of zeros. The table's own pages have their checksums
// in its first page; for that of the first page itself its place counts as 0.
// The header slots have checksums of their own, and zeros in the table.
//
// Tables change at checkpoints only, through the log: a checkpoint begins with
// records that seal the generation, with the checksums of all pages that it has
// changed, as computed from committed bytes. What follows is like any other
// page of the log. So while the header needs no record of the log, each page
// below its mark agrees with the table in the file; but for free pages, which
// may have been punched and are zeros then. Memory does not follow: nobody reads
// a table there.
//
// A page that does not agree when a checkpoint changes a part of it gets a
// checksum that is wrong on purpose: damage is never sealed in.
const (
	sumSize     = 4
	sumsPerPage = pageSize / sumSize
	sumPages    = regionPages / sumsPerPage
	wrongSum    = 1 // XORed into the checksum of a page that was found damaged
)

var zeroPageSum = crc32.Checksum(make([]byte, pageSize), castagnoli)

func sumOf(p *page) uint32 { return crc32.Checksum(p[:], castagnoli) ^ zeroPageSum }

// unitSum is the checksum of fresh unit b in a record: that of its pages'.
func unitSum(b []byte) uint32 {
	sums := make([]uint32, 0, unitPages)
	for ; len(b) > 0; b = b[pageSize:] {
		sums = append(sums, sumOf((*page)(b)))
	}
	return sumOfSums(sums)
}

func sumOfSums(sums []uint32) uint32 {
	var b [unitPages * sumSize]byte
	for i, sum := range sums {
		binary.LittleEndian.PutUint32(b[i*sumSize:], sum)
	}
	return crc32.Checksum(b[:], castagnoli)
}

// A sumTable is the table of one region.
type sumTable [sumPages]page

func (t *sumTable) place(p pageNo) []byte {
	in := p & (regionPages - 1)
	return t[in/sumsPerPage][in%sumsPerPage*sumSize:][:sumSize]
}

func (t *sumTable) get(p pageNo) uint32      { return binary.LittleEndian.Uint32(t.place(p)) }
func (t *sumTable) set(p pageNo, sum uint32) { binary.LittleEndian.PutUint32(t.place(p), sum) }

// read reads the table of region r.
func (t *sumTable) read(f file, r int) error {
	for i := range t {
		if err := readWhole(f, t[i][:], int64(sumsAt(r)+pageNo(i))<<pageShift); err != nil {
			return err
		}
	}
	return nil
}

// ownSum computes the checksum of page i of the table.
func (t *sumTable) ownSum(r, i int) uint32 {
	if i > 0 {
		return sumOf(&t[i])
	}
	first := t[0]
	binary.LittleEndian.PutUint32(first[sumsAt(r)&(regionPages-1)*sumSize:], 0)
	return sumOf(&first)
}

// agrees says whether page i of the table has the checksum that the table has of it.
func (t *sumTable) agrees(r, i int) bool { return t.get(sumsAt(r)+pageNo(i)) == t.ownSum(r, i) }

// isSums says whether a page belongs to a table.
func isSums(p pageNo) bool { return p-sumsAt(int(p>>regionShift)) < sumPages }

// A sealer computes what a checkpoint writes into the tables.
type sealer struct {
	main  file
	mark  uint64                         // pages below it agree with the tables
	end   uint64                         // of the committed pages
	fresh func(p pageNo) (uint32, error) // the checksum of a page from mark on, as it is in main
	emit  func(e entry) error            // takes the changed lines of a page of a table
	whole bool                           // Options.FullPages

	region  int // whose tables these are; -1: none yet
	old     sumTable
	relog   [sumPages]uint64 // lines that the log holds from a checkpoint that came to nothing
	new     sumTable         // not right behind old: s390x code of Go 1.26 would copy old to new without an end
	covered uint64           // pages from mark on below here are done
}

// seal passes the changed pages of the tables to emit, in ascending order.
func (s *sealer) seal(all *changes) error {
	s.region, s.covered = -1, s.mark
	err := all.each(func(p pageNo, mask uint64, lines *page) error {
		if err := s.freshTo(uint64(p)); err != nil {
			return err
		}
		s.covered = max(s.covered, uint64(p)+1)
		if err := s.enter(p); err != nil {
			return err
		}
		if isSums(p) {
			s.relog[p-sumsAt(s.region)] = mask
			return nil
		}
		return s.changed(p, mask, lines)
	})
	if err == nil {
		err = s.freshTo(s.end)
	}
	if err == nil {
		err = s.leave()
	}
	return err
}

// enter makes the region of page p the current one.
func (s *sealer) enter(p pageNo) error {
	r := int(p >> regionShift)
	if r == s.region {
		return nil
	}
	if err := s.leave(); err != nil {
		return err
	}
	s.region = r
	s.relog = [sumPages]uint64{}
	err := s.old.read(s.main, r)
	s.new = s.old
	return err
}

// freshTo enters the checksums of fresh pages up to a page.
func (s *sealer) freshTo(end uint64) error {
	for ; s.covered < end; s.covered++ {
		p := pageNo(s.covered)
		if err := s.enter(p); err != nil {
			return err
		}
		if p < slotPages || isSums(p) {
			continue
		}
		sum, err := s.fresh(p)
		if err != nil {
			return err
		}
		s.new.set(p, sum)
	}
	return nil
}

// changed enters the checksum of a page of which the log holds the given lines.
func (s *sealer) changed(p pageNo, mask uint64, lines *page) error {
	wrong := uint32(0)
	if mask != allLines {
		var b page
		if err := readWhole(s.main, b[:], int64(p)<<pageShift); err != nil {
			return err
		}
		if uint64(p) < s.mark && sumOf(&b) != s.old.get(p) {
			wrong = wrongSum
		}
		copyLines(&b, lines, mask)
		lines = &b
	}
	if keeps(sealRule) {
		s.new.set(p, sumOf(lines)^wrong)
	}
	return nil
}

// leave finishes the table of the current region.
func (s *sealer) leave() error {
	if s.region < 0 {
		return nil
	}
	first := sumsAt(s.region)
	for i := sumPages - 1; i >= 0; i-- { // the first one last: it has the checksums of the others
		if s.new[i] == s.old[i] {
			continue
		}
		wrong := uint32(0)
		if uint64(first) < s.mark && !s.old.agrees(s.region, i) {
			wrong = wrongSum
		}
		s.new.set(first+pageNo(i), s.new.ownSum(s.region, i)^wrong)
	}
	for i := range s.new {
		mask := s.relog[i] | differingLines(&s.old[i], &s.new[i])
		if s.whole && mask != 0 {
			mask = allLines
		}
		if mask == 0 {
			continue
		}
		if err := s.emit(entryOf(first+pageNo(i), mask, &s.new[i])); err != nil {
			return err
		}
	}
	return nil
}

func differingLines(x, y *page) (mask uint64) {
	for i := range pageSize / lineSize {
		if [lineSize]byte(x[i*lineSize:]) != [lineSize]byte(y[i*lineSize:]) {
			mask |= 1 << i
		}
	}
	return mask
}

// copyLines copies the lines of mask.
func copyLines(dst, src *page, mask uint64) {
	for m := mask; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m) * lineSize
		copy(dst[i:i+lineSize], src[i:])
	}
}
