package emd

import (
	"encoding/binary"
	"hash/crc32"
)

// The header of the file is kept three times, in a sector of its own at the
// start of pages 0, 1 and 2. A new state goes to the slot that holds the oldest
// one, so that a write that fails or is torn leaves the two newest alone; the
// valid slot of the highest epoch counts.
//
//	0       8         12      16      20      24   40     48      56
//	+-------+---------+-------+-------+-------+----+------+-------+------------+
//	| magic | version | needs | knows | state | id | seed | epoch | generation |
//	+-------+---------+-------+-------+-------+----+------+-------+------------+
//	64        72       80     88        92     96           508        512
//	+---------+--------+------+---------+------+------------+----------+
//	| needSeq | logOff | mark | catalog | meta | zero       | checksum |
//	+---------+--------+------+---------+------+------------+----------+
//
// needs are features without which the file must not be opened, knows those
// without which it must not be written; this version has none. state says
// whether the log is live, or that the file is a relaxed one, which has none. id
// ties file and log together. generation numbers the checkpoints; records of
// another generation are not of this state. needSeq is
// the last record that pages of the file may already be ahead for: a log that
// ends before it is damaged. logOff is where the records of the generation
// begin. mark is the number of committed pages. catalog and meta are the header
// pages of the arena's own two dicts. The zeros keep room for what readers
// beside a writer will need.
const (
	slotMagicOff      = 0
	slotVersionOff    = slotMagicOff + 8
	slotNeedsOff      = slotVersionOff + 4
	slotKnowsOff      = slotNeedsOff + 4
	slotStateOff      = slotKnowsOff + 4
	slotIDOff         = slotStateOff + 4
	slotSeedOff       = slotIDOff + fileIDSize
	slotEpochOff      = slotSeedOff + 8
	slotGenerationOff = slotEpochOff + 8
	slotNeedSeqOff    = slotGenerationOff + 8
	slotLogOff        = slotNeedSeqOff + 8
	slotMarkOff       = slotLogOff + 8
	slotCatalogOff    = slotMarkOff + 8
	slotMetaOff       = slotCatalogOff + 4
	slotUsed          = slotMetaOff + 4
	slotSumOff        = slotSize - 4
	slotSize          = 512

	fileIDSize    = 16
	fileMagic     = "EMDfile\n"
	formatVersion = 0

	headerClean = 0 // there is no log, or what is there is of the past
	headerLive  = 1 // the log belongs to the file

	// A relaxed file has no log, no checksums of pages, and after its last
	// opener's Close what memory had.
	headerRelaxed = 2 // closed
	headerUnclean = 3 // open, or what a crash has left
)

const _ = uint(slotSumOff - slotUsed)

type fileID [fileIDSize]byte

// A header is the content of a slot.
type header struct {
	id         fileID
	seed       uint64
	state      uint32
	epoch      uint64
	generation uint64
	needSeq    uint64
	logOff     int64
	mark       uint64
	catalog    pageNo
	meta       pageNo
}

// relaxed says whether the file is of that mode, as it was created.
func (h *header) relaxed() bool { return h.state == headerRelaxed || h.state == headerUnclean }

func (h *header) encode() []byte {
	b := make([]byte, slotSize)
	le := binary.LittleEndian
	copy(b[slotMagicOff:], fileMagic)
	le.PutUint32(b[slotVersionOff:], formatVersion)
	le.PutUint32(b[slotStateOff:], h.state)
	copy(b[slotIDOff:], h.id[:])
	le.PutUint64(b[slotSeedOff:], h.seed)
	le.PutUint64(b[slotEpochOff:], h.epoch)
	le.PutUint64(b[slotGenerationOff:], h.generation)
	le.PutUint64(b[slotNeedSeqOff:], h.needSeq)
	le.PutUint64(b[slotLogOff:], uint64(h.logOff))
	le.PutUint64(b[slotMarkOff:], h.mark)
	le.PutUint32(b[slotCatalogOff:], h.catalog)
	le.PutUint32(b[slotMetaOff:], h.meta)
	le.PutUint32(b[slotSumOff:], crc32.Checksum(b[:slotSumOff], castagnoli))
	return b
}

// decode reads a slot whose magic and checksum are right.
func (h *header) decode(b []byte) {
	le := binary.LittleEndian
	h.id = fileID(b[slotIDOff:])
	h.seed = le.Uint64(b[slotSeedOff:])
	h.state = le.Uint32(b[slotStateOff:])
	h.epoch = le.Uint64(b[slotEpochOff:])
	h.generation = le.Uint64(b[slotGenerationOff:])
	h.needSeq = le.Uint64(b[slotNeedSeqOff:])
	h.logOff = int64(le.Uint64(b[slotLogOff:]))
	h.mark = le.Uint64(b[slotMarkOff:])
	h.catalog = le.Uint32(b[slotCatalogOff:])
	h.meta = le.Uint32(b[slotMetaOff:])
}

// readHeader returns the newest valid header of a file of size bytes.
func readHeader(f file, size int64) (header, error) {
	var best header
	found, magic, version := false, false, uint32(formatVersion)
	le := binary.LittleEndian
	b := make([]byte, slotSize)
	for i := range int64(slotPages) {
		if n, err := f.ReadAt(b, i*pageSize); n < slotSize {
			if i*pageSize+slotSize <= size {
				return best, err
			}
			break
		}
		if string(b[slotMagicOff:slotVersionOff]) != fileMagic {
			continue
		}
		magic = true
		if le.Uint32(b[slotSumOff:]) != crc32.Checksum(b[:slotSumOff], castagnoli) && keeps(headerSumRule) {
			continue
		}
		if v := le.Uint32(b[slotVersionOff:]); v != formatVersion || le.Uint32(b[slotNeedsOff:])|le.Uint32(b[slotKnowsOff:]) != 0 {
			version = max(v, 1)
			continue
		}
		var h header
		h.decode(b)
		if !found || h.epoch > best.epoch {
			best, found = h, true
		}
	}
	switch {
	case version != formatVersion:
		return best, versionError(version)
	case found:
		return best, best.validate(size)
	case magic:
		return best, corrupt("no valid header")
	default:
		return best, corrupt("not an emd file (%d bytes)", size)
	}
}

func (h *header) validate(size int64) error {
	switch {
	case h.state > headerUnclean,
		h.state == headerLive && (h.logOff < logHeader || h.logOff%pageSize != 0),
		h.mark < unitPages, h.mark > maxPages, h.mark%unitPages != 0,
		h.catalog < slotPages, uint64(h.catalog) >= h.mark,
		h.meta < slotPages, uint64(h.meta) >= h.mark:
		return corrupt("impossible header %+v", *h)
	case size < int64(h.mark)<<pageShift:
		return corruptAt(uint64(size), "truncated: %d bytes, committed were %d", size, h.mark<<pageShift)
	}
	return nil
}

// write makes the next state of the header durable.
func (h *header) write(f file) error { return h.put(f, true) }

// put writes the next state of the header, and waits for the disk if told to.
func (h *header) put(f file, wait bool) error {
	slots := uint64(slotPages)
	if !keeps(slotsRule) {
		slots = 2
	}
	h.epoch++
	if _, err := f.WriteAt(h.encode(), int64(h.epoch%slots)*pageSize); err != nil || !wait {
		return err
	}
	return f.Sync()
}
