package emd

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// This file is a model of the commit protocol, and explores its crashes. It uses no other code of the package: it says
// in the fewest words what the protocol is, so that commit, checkpoint and recovery have something to follow.
//
// # Terms
//
// The main file has three header slots, a few pages of two units each, and a checksum of each page. The log file has two areas of records. What
// the disk writes whole or not at all is a cell: a slot, a unit, a part of a record, the name of the log in its folder.
// With "garbage" a power cut may also spoil a cell that was being written (Options.FullPages is for such disks).
//
// A commit captures the dirty units of memory: those below the border go into a log record, those above it (fresh
// space) straight into the main file. A lazy commit is one with Options.NoSync, which waits for nothing; the model lets
// both kinds follow each other in one session, which is more than the library offers. A checkpoint seals the log with a record
// of the checksums that the pages will have, moves the units of the log to the main file and starts the next generation of the log. The mark is the number of pages in use. The root
// is the number of the commit; it stands for all else that a header and a record say.
//
// # What is checked
//
// A script of operations runs. After every single write the power is cut in every way: each cell that was written since
// its last sync holds its synced content or anything written later, in all combinations (up to a bound; beyond it a
// sample). What recovery would read then must be one whole commit, not older than the last acknowledged one, and never
// an error; and unless units are being moved, each page must have its checksum. Faults (a killed process, a power cut, a failed sync, a full disk) strike inside of operations, recovery
// among them; the script goes on after them. Memory is compared after each operation. Whenever a commit is
// acknowledged, and while units are being moved, each cell in turn is spoiled: damage must be an error or a whole
// commit, which is older only if nothing that is left says that more was durable.
//
// TestProtocolRules switches each rule off in turn and wants to see what it is for.
//
// Not modelled: creation of the main file (R16), addresses and memory (R1, R11, R15), truncation of the main file, and
// several mutators (all that matters of them here is what they do while a commit waits: see busy).

const (
	protoSlots    = 3 // header slots, the first cells of the main file
	protoPages    = 4 // at most this many pages
	protoPerPage  = 2 // units in a page
	protoUnits    = protoPages * protoPerPage
	protoSums     = protoUnits // where the checksums begin, counted as units are
	protoAll      = protoSums + protoPages
	protoArea     = 14 // cells of one log area
	protoMainSize = protoSlots + protoAll
	protoLogSize  = 2 * protoArea
)

// A protoRule is a rule of the protocol that can be switched off, to see what it is for.
type protoRule int

const (
	protoNoRule protoRule = iota

	ruleFreshFirst
	ruleSpillIsFresh
	ruleSpillAgain
	ruleRecordWait
	ruleCapture
	ruleLoggedAtCapture
	ruleOwnCells
	ruleStaysDirty
	ruleSamePlace
	ruleBorder
	ruleBorderRollback
	ruleWholePage
	ruleZeros

	ruleFolder
	ruleLiveFirst
	ruleCleanFirst
	ruleLeftover
	ruleNewLog

	ruleLazyMain
	ruleLazyLog
	ruleSeal
	ruleSealFresh
	ruleSealCommitted
	ruleSealWait
	ruleNeed
	ruleNeedWait
	ruleFromLog
	ruleUnitsWait
	ruleNextWait

	ruleRollback
	ruleUpdate

	ruleSlots
	ruleFailStop
	ruleFailStopFull

	ruleSealCopy
	ruleCopy
	ruleOtherArea
	ruleCopyWait
	ruleFreshAgain
	ruleFreshAgainLast
	ruleFreshAgainWait
	ruleConfirmSync
	ruleConfirm
	ruleNextGeneration

	ruleGeneration
	ruleFreshSum
	ruleFreshSumNeed
	ruleExactlyNeed
	ruleNeedCheck
	ruleDurable
	ruleNewerLog
	ruleMissingLog

	protoRuleEnd
)

var protoRuleNames = [protoRuleEnd]string{
	protoNoRule: "none",

	ruleFreshFirst:      "R4 fresh bytes are durable before the record is written",
	ruleSpillIsFresh:    "R11 spilled bytes count as fresh bytes of the next commit",
	ruleSpillAgain:      "R11 a unit changed after its spill is written again",
	ruleRecordWait:      "R4 the record is durable before the commit is acknowledged",
	ruleCapture:         "R4 a record holds what was captured, not what memory holds later",
	ruleLoggedAtCapture: "R4 fresh pages become logged at the capture",
	ruleOwnCells:        "R5 a record shares no sector with the one before",
	ruleStaysDirty:      "R8 after a commit that met a full disk everything is dirty again",
	ruleSamePlace:       "R8 the next record takes the place of one that met a full disk",
	ruleBorder:          "R3 the border is the highest mark of the generation, not the last",
	ruleBorderRollback:  "R3 a rollback leaves the border where the records left it",
	ruleWholePage:       "R3 a page allocated in logged space is logged whole",
	ruleZeros:           "R10 space above the mark is not taken for zeros",

	ruleFolder:     "R12 the folder is synced before the header says that the log is live",
	ruleLiveFirst:  "R12 the header that says so is durable before the first record",
	ruleCleanFirst: "R12 the clean header is durable before the log is removed",
	ruleLeftover:   "R12 a clean header that was read is written again before a leftover log is removed",
	ruleNewLog:     "R12 a leftover log is removed, not used again",

	ruleLazyMain:      "R6 a checkpoint first syncs the fresh bytes of lazy commits",
	ruleLazyLog:       "R6 a checkpoint first syncs the records of lazy commits",
	ruleSeal:          "R6 a checkpoint seals what the log changes",
	ruleSealFresh:     "R6 and the fresh pages of the generation",
	ruleSealCommitted: "R6 checksums are those of committed bytes, not of memory",
	ruleSealWait:      "R6 the seal is durable before a header needs it",

	ruleNeed:      "R6 a header says that the log is needed before units are written",
	ruleNeedWait:  "R6 that header is durable before units are written",
	ruleFromLog:   "R6 a checkpoint writes what the log holds, not what memory holds",
	ruleUnitsWait: "R6 the units are durable before the header of the next generation is written",
	ruleNextWait:  "R6 the header of the next generation is durable before its first record",

	ruleRollback: "R17 a rollback reads the main file and then the log",
	ruleUpdate:   "R17 an update first commits what is pending",

	ruleSlots:        "R2 three header slots, not two",
	ruleFailStop:     "R8 a failed sync stops the arena and is not repeated",
	ruleFailStopFull: "R8 a checkpoint that meets a full disk stops the arena",

	ruleSealCopy:       "R7 recovery seals its copy of the records",
	ruleCopy:           "R7 recovery copies the records",
	ruleOtherArea:      "R7 it copies them to the other area",
	ruleCopyWait:       "R7 the copy is durable before a header names it",
	ruleFreshAgain:     "R7 recovery writes fresh bytes of lazy records again",
	ruleFreshAgainLast: "R7 but not those before a record that waited",
	ruleFreshAgainWait: "R7 they are durable before a header says that the log is needed",
	ruleConfirmSync:    "R7 recovery syncs the main file before its first header",
	ruleConfirm:        "R7 recovery writes the header that it read again, before it overwrites anything",
	ruleNextGeneration: "R7 recovery starts a new generation, it does not append to the old log",

	ruleGeneration:   "R2 a record of another generation does not count",
	ruleFreshSum:     "R9 a record with other fresh bytes than it was written with does not count",
	ruleFreshSumNeed: "R9 unless the header says that the log is needed",
	ruleExactlyNeed:  "R9 if it does, records after those that it needs do not count",
	ruleNeedCheck:    "R9 refuse: fewer records than the header needs",
	ruleDurable:      "R9 refuse: a later record says that this one was durable",
	ruleNewerLog:     "R9 refuse: a record newer than the header",
	ruleMissingLog:   "R9 refuse: the log that the header needs is missing",
}

func (r protoRule) String() string { return protoRuleNames[r] }

// # The disk

// A protoCell is what the disk writes whole: a sector, or a name in the folder. What it holds is nil (zeros, no
// file), a byte (a unit), a protoHeader, a protoPart (of a record), a protoFile (the name's), or protoGarbage.
type protoCell struct {
	cached any   // what processes see, until a power cut
	maybe  []any // what a power cut may leave: the synced content, then each content written since
	dirty  bool  // the next sync writes cached to the disk
}

type protoGarbage struct{}

func (c *protoCell) write(v any) {
	c.cached, c.dirty = v, true
	c.maybe = append(c.maybe, v)
}

// settle makes v what the disk holds.
func (c *protoCell) settle(v any) { *c = protoCell{cached: v, maybe: []any{v}} }

// A protoFile is a file of cells, or the folder with its one name.
type protoFile []*protoCell

func newProtoFile(n int) protoFile {
	f := make(protoFile, n)
	for i := range f {
		f[i] = &protoCell{maybe: []any{nil}}
	}
	return f
}

func (f protoFile) sync() {
	for _, c := range f {
		if c.dirty {
			c.settle(c.cached)
		}
	}
}

// failSync is a sync that fails as on Linux: some cells reached the disk and some did not, no later sync writes them,
// and the cache shows all of them as new until it happens to forget some and reads them from the disk again.
func (f protoFile) failSync(random *rand.Rand) {
	forgets := random.IntN(2) == 0
	for _, c := range f {
		if c.dirty && forgets && random.IntN(2) == 0 {
			c.settle(c.maybe[random.IntN(len(c.maybe))])
		}
		c.dirty = false
	}
}

// A protoDisk is the machine's disk and page cache.
type protoDisk struct {
	main   protoFile
	folder protoFile // one cell: the name of the log
}

// log returns the log as processes see it, nil if there is none.
func (d *protoDisk) log() protoFile {
	f, _ := d.folder[0].cached.(protoFile)
	return f
}

// cut cuts the power; random chooses what is left.
func (d *protoDisk) cut(random *rand.Rand, garbage bool) {
	settle := func(f protoFile, garbage bool) {
		bias := random.IntN(3) // mostly lost, mostly kept, or anything
		for _, c := range f {
			left := c.maybe[random.IntN(len(c.maybe))]
			switch {
			case len(c.maybe) == 1:
			case garbage && random.IntN(8) == 0:
				left = protoGarbage{}
			case random.IntN(4) == 0:
			case bias == 0:
				left = c.maybe[0]
			case bias == 1:
				left = c.maybe[len(c.maybe)-1]
			}
			c.settle(left)
		}
	}
	settle(d.folder, false)
	settle(d.main, garbage)
	settle(d.log(), garbage)
}

// A protoImage is the content of all cells, as recovery reads it.
type protoImage struct {
	main   [protoMainSize]any
	log    [protoLogSize]any
	hasLog bool
}

// image returns what processes see.
func (d *protoDisk) image() *protoImage {
	img := &protoImage{hasLog: d.log() != nil}
	for i, c := range d.main {
		img.main[i] = c.cached
	}
	for i, c := range d.log() {
		img.log[i] = c.cached
	}
	return img
}

// cuts calls visit with what a power cut may leave, every possibility if there are at most limit, else so many at
// random. With newest not nil the last write to it is not lost (what is left without it has been visited before).
func (d *protoDisk) cuts(newest *protoCell, garbage bool, limit int, random *rand.Rand, visit func(*protoImage)) {
	type choice struct {
		at *any
		of []any
	}
	var img protoImage
	var choices []choice
	found := false
	add := func(c *protoCell, at *any) {
		*at = c.maybe[0]
		switch {
		case c == newest:
			found = true
			*at = c.maybe[len(c.maybe)-1]
			if garbage {
				choices = append(choices, choice{at, []any{*at, protoGarbage{}}})
			}
		case len(c.maybe) > 1 && garbage:
			choices = append(choices, choice{at, append(slices.Clip(c.maybe), protoGarbage{})})
		case len(c.maybe) > 1:
			choices = append(choices, choice{at, c.maybe})
		}
	}
	var all func(of []choice)
	all = func(of []choice) {
		if len(of) == 0 {
			visit(&img)
			return
		}
		for _, v := range of[0].of {
			*of[0].at = v
			all(of[1:])
		}
	}
	names := d.folder[0].maybe
	if newest == d.folder[0] {
		names = names[len(names)-1:]
	}
	for _, name := range names {
		img, choices, found = protoImage{}, choices[:0], newest == nil || newest == d.folder[0]
		for i, c := range d.main {
			add(c, &img.main[i])
		}
		if log, ok := name.(protoFile); ok {
			img.hasLog = true
			for i, c := range log {
				add(c, &img.log[i])
			}
		}
		if !found {
			continue
		}
		total := 1
		for _, c := range choices {
			total = min(total*len(c.of), limit+1)
		}
		if total <= limit {
			all(choices)
			continue
		}
		for range limit {
			for _, c := range choices {
				*c.at = c.of[random.IntN(len(c.of))]
			}
			visit(&img)
		}
	}
}

// # What the files hold

// A protoHeader is the content of a header slot. The valid one with the highest epoch counts.
type protoHeader struct {
	epoch int
	gen   int  // generation
	live  bool // the log holds records of gen in area; if not, it holds nothing that counts
	area  int
	need  int // not 0: units are being moved to the main file, and the log is exactly this many records
	root  int // of the main file, without the log
	mark  int
}

// A protoRecord is a commit in the log. It takes several cells; it is valid if they all hold its parts (its checksum).
type protoRecord struct {
	gen, seq   int
	root, mark int
	durable    int    // the last record known to be on disk when this one was written
	lazy       bool   // written without waiting for its fresh bytes
	freshFrom  int    // its fresh pages: from here up to mark
	freshSum   string // their checksum; here, their bytes
	units      []protoUnit
}

type protoUnit struct {
	at    int
	value byte
}

type protoPart struct {
	rec *protoRecord
	i   int
}

func (r *protoRecord) size() int { return protoRecordSize(len(r.units)) }

func protoRecordSize(units int) int { return 1 + (units+2)/3 }

// A protoState is what a commit captured. Units above the mark are 0.
type protoState struct {
	root, mark int
	units      [protoUnits]byte
}

// record returns the valid record that starts at cell i, or nil.
func (img *protoImage) record(i int) *protoRecord {
	first, ok := img.log[i].(protoPart)
	if !ok || first.i != 0 || i%protoArea+first.rec.size() > protoArea {
		return nil
	}
	for k := range first.rec.size() {
		if p, ok := img.log[i+k].(protoPart); !ok || p.rec != first.rec || p.i != k {
			return nil
		}
	}
	return first.rec
}

// unit returns unit u of the main file.
func (img *protoImage) unit(u int) byte {
	switch v := img.main[protoSlots+u].(type) {
	case nil:
		return 0
	case byte:
		return v
	}
	return 0xFF // garbage
}

// disagrees reports a page below mark without its checksum.
func (img *protoImage) disagrees(mark int) bool {
	for p := range mark {
		if img.unit(protoSums+p) != protoSum(img.unit(p*protoPerPage), img.unit(p*protoPerPage+1)) {
			return true
		}
	}
	return false
}

// protoSum is the checksum of a page: 0 for zeros.
func protoSum(a, b byte) byte { return a*7 ^ b*31 }

// freshSum returns the checksum of the bytes that lie where r has its fresh pages.
func (img *protoImage) freshSum(r *protoRecord) string {
	var b []byte
	for u := r.freshFrom * protoPerPage; u < r.mark*protoPerPage; u++ {
		b = append(b, img.unit(u))
	}
	return string(b)
}

// # Reading the files after a crash

// protoFound is what the files say.
type protoFound struct {
	header  protoHeader
	slot    int
	records []*protoRecord
	state   protoState
}

// read returns the commit that img holds. An error means damage: no crash leads to it.
func (img *protoImage) read(broken protoRule) (f protoFound, err error) {
	f.slot = -1
	for i := range protoSlots {
		if h, ok := img.main[i].(protoHeader); ok && (f.slot < 0 || h.epoch > f.header.epoch) {
			f.slot, f.header = i, h
		}
	}
	if f.slot < 0 {
		return f, fmt.Errorf("no valid header")
	}
	if f.header.live && !img.hasLog && broken != ruleMissingLog {
		return f, fmt.Errorf("the log is missing")
	}
	for i := range img.log {
		if r := img.record(i); r != nil && r.gen > f.header.gen && broken != ruleNewerLog {
			return f, fmt.Errorf("the log is newer than the header")
		}
	}
	if f.header.live {
		if f.records, err = img.readLog(f.header, broken); err != nil {
			return f, err
		}
	}
	f.state.root, f.state.mark = f.header.root, f.header.mark
	if n := len(f.records); n > 0 {
		f.state.root, f.state.mark = f.records[n-1].root, f.records[n-1].mark
	}
	for u := range f.state.mark * protoPerPage {
		f.state.units[u] = img.unit(u)
	}
	for _, u := range protoContent(f.records, f.state.mark) {
		if u.at < protoUnits {
			f.state.units[u.at] = u.value
		}
	}
	if f.header.need == 0 && img.disagrees(f.header.mark) {
		return f, fmt.Errorf("a page does not have its checksum")
	}
	return f, nil
}

// readLog returns the records of header h.
func (img *protoImage) readLog(h protoHeader, broken protoRule) (records []*protoRecord, err error) {
	i, end := h.area*protoArea, (h.area+1)*protoArea
	for i < end && (h.need == 0 || len(records) < h.need || broken == ruleExactlyNeed) {
		r := img.record(i)
		if r == nil || r.seq != len(records)+1 || (r.gen != h.gen && broken != ruleGeneration) {
			break
		}
		// Once units are being moved, the main file holds newer bytes than a record's fresh ones, and rightly so.
		check := h.need == 0 || broken == ruleFreshSumNeed
		if check && broken != ruleFreshSum && img.freshSum(r) != r.freshSum {
			break
		}
		records = append(records, r)
		i += r.size()
	}
	if len(records) < h.need && broken != ruleNeedCheck {
		return nil, fmt.Errorf("record %d is invalid, the header needs %d", len(records)+1, h.need)
	}
	// A tail that a power cut has torn is no damage: nothing says that it had been on disk.
	for ; i < end; i++ {
		if r := img.record(i); r != nil && r.gen == h.gen && r.durable > len(records) && broken != ruleDurable {
			return nil, fmt.Errorf("record %d is invalid, record %d says that it was durable", len(records)+1, r.seq)
		}
	}
	return records, nil
}

// protoContent returns the units and checksums that records hold of pages below mark, each once, with its last value.
func protoContent(records []*protoRecord, mark int) (units []protoUnit) {
	var last [protoAll]*protoUnit
	for _, r := range records {
		for i := range r.units {
			last[r.units[i].at] = &r.units[i]
		}
	}
	for at, u := range last {
		if u != nil && (at < mark*protoPerPage || at >= protoSums && at < protoSums+mark) {
			units = append(units, *u)
		}
	}
	return units
}

// # The system

// A protoSystem is a machine with one process on it that has the file open.
type protoSystem struct {
	protoProcess
	disk    protoDisk
	broken  protoRule
	garbage bool
	faults  []protoFault
	random  *rand.Rand
	watch   *protoWatch

	// What the promise is about.
	history  []protoState // the commits that have begun, by root
	acked    int          // the last one that is promised to survive a power cut
	returned int          // the last one that is promised to survive a kill
	values   byte         // of the next store
	want     protoState   // what memory must hold
}

// A protoProcess is what a killed process loses.
type protoProcess struct {
	state    protoState // memory: the last commit and all changes since (root: of the last commit)
	dirty    [protoUnits]bool
	spilled  [protoUnits]bool
	border   int  // pages from here on are fresh
	unsynced bool // fresh bytes were written to the main file since its last sync

	log     protoFile   // nil: none yet
	header  protoHeader // the newest
	slot    int
	records []*protoRecord // of the live log
	tail    int            // cells used of its area
	durable int            // the last of them known to be on disk
	mark    int            // of the last commit
}

func (y *protoSystem) keeps(r protoRule) bool { return y.broken != r }

// newProtoSystem returns a system whose file has just been created (R16: whole, or not at all), with one page in use.
func newProtoSystem(w *protoWatch, broken protoRule, garbage bool, faults []protoFault, seed uint64) *protoSystem {
	y := &protoSystem{watch: w, broken: broken, garbage: garbage}
	y.faults, y.random = slices.Clone(faults), rand.New(rand.NewPCG(seed, 1))
	y.disk = protoDisk{newProtoFile(protoMainSize), newProtoFile(1)}
	y.disk.main[0].write(protoHeader{epoch: 1, gen: 1, mark: 1})
	y.disk.main.sync()
	y.history = []protoState{{mark: 1}}
	return y
}

// Each change of the disk passes through write, sync or the name's two operations below, where faults strike and
// the power is cut.

// write writes a cell. It fails when the disk is full.
func (y *protoSystem) write(c *protoCell, v any) bool {
	if y.strikes(protoKill, protoCut, protoFull) == protoFull {
		return false
	}
	c.write(v)
	y.watch.cut(y, c)
	return true
}

// mustWrite is write where a full disk stops the arena (R8).
func (y *protoSystem) mustWrite(c *protoCell, v any) {
	if !y.write(c, v) && y.keeps(ruleFailStopFull) {
		panic(protoKill)
	}
}

// sync waits until f is on disk.
func (y *protoSystem) sync(f protoFile) {
	if y.strikes(protoKill, protoCut, protoFail) == protoFail {
		f.failSync(y.random)
		y.returned = y.acked // the cache may forget what lazy commits left there
		if y.keeps(ruleFailStop) {
			panic(protoKill) // to the disk a stopped arena is a killed process
		}
	}
	f.sync()
}

func (y *protoSystem) syncMain() {
	y.sync(y.disk.main)
	y.unsynced = false
}

// putHeader writes h to the next slot.
func (y *protoSystem) putHeader(h protoHeader, wait bool) {
	slots := protoSlots
	if !y.keeps(ruleSlots) {
		slots = 2
	}
	h.epoch = y.header.epoch + 1
	y.header, y.slot = h, (y.slot+1)%slots
	y.mustWrite(y.disk.main[y.slot], h)
	if wait {
		y.syncMain()
	}
}

// ## Changes of memory

func (y *protoSystem) store(u int) {
	u %= y.state.mark * protoPerPage
	y.values = y.values%200 + 1
	y.state.units[u], y.want.units[u] = y.values, y.values
	if y.keeps(ruleSpillAgain) || !y.spilled[u] {
		y.dirty[u] = true
	}
}

// alloc takes the page at the mark.
func (y *protoSystem) alloc() {
	if y.state.mark == protoPages {
		return
	}
	rule := ruleWholePage
	if y.state.mark >= y.border {
		rule = ruleZeros
	}
	for u := y.state.mark * protoPerPage; u < (y.state.mark+1)*protoPerPage; u++ {
		y.dirty[u], y.spilled[u] = y.keeps(rule), false
	}
	y.state.mark++
	y.want.mark++
}

// shrink gives the last page back.
func (y *protoSystem) shrink() {
	if y.state.mark == 1 {
		return
	}
	y.state.mark--
	y.want.mark--
	for u := y.state.mark * protoPerPage; u < (y.state.mark+1)*protoPerPage; u++ {
		y.state.units[u], y.want.units[u], y.dirty[u] = 0, 0, false
	}
}

// spill writes fresh pages early, to have their memory back.
func (y *protoSystem) spill() {
	for u := y.border * protoPerPage; u < y.state.mark*protoPerPage; u++ {
		if y.dirty[u] {
			if y.keeps(ruleSpillIsFresh) {
				y.unsynced = true
			}
			if !y.write(y.disk.main[protoSlots+u], y.state.units[u]) {
				return
			}
			y.dirty[u], y.spilled[u] = false, true
		}
	}
}

// rollback gives memory the last commit back: the main file's bytes, then the log's.
func (y *protoSystem) rollback() {
	img := y.disk.image()
	y.state.mark = y.mark
	y.state.units = [protoUnits]byte{}
	for u := range y.mark * protoPerPage {
		y.state.units[u] = img.unit(u)
	}
	if y.keeps(ruleRollback) {
		for _, u := range protoContent(y.records, y.mark) {
			if u.at < protoUnits {
				y.state.units[u.at] = u.value
			}
		}
	}
	if !y.keeps(ruleBorderRollback) {
		y.border = y.header.mark
	}
	y.dirty, y.spilled = [protoUnits]bool{}, [protoUnits]bool{}
	y.want = y.history[len(y.history)-1]
}

// update commits what is pending, then changes, then commits them or, if it fails, rolls them back.
func (y *protoSystem) update(fails bool) {
	if y.keeps(ruleUpdate) && !y.commit(true, nil) {
		return
	}
	start := y.want
	y.alloc()
	y.store(int(y.values) * 3)
	y.spill()
	y.store(int(y.values) * 5)
	if fails || !y.commit(true, nil) {
		y.rollback()
		y.want = start
	}
}

// ## Commit

// commit makes the state of memory the next commit. It reports false when the disk is full: then nothing has happened.
// Mutators go on while it waits for the disk: busy, called twice, is what they do then.
func (y *protoSystem) commit(wait bool, busy func()) bool {
	if !y.startLog() {
		return false
	}
	// There must be room for two seals: one may be left from a crash between it and the header.
	if y.tail+protoRecordSize(y.loggedUnits()) > protoArea-2*protoRecordSize(protoPages) {
		y.checkpoint()
	}

	// Mutators wait: take what is dirty, and write what is fresh.
	was := y.protoProcess
	captured := y.state
	captured.root++
	fresh := captured.units[min(y.border, captured.mark)*protoPerPage : captured.mark*protoPerPage]
	rec := &protoRecord{
		gen: y.header.gen, seq: len(y.records) + 1,
		root: captured.root, mark: captured.mark,
		durable: y.durable, lazy: !wait,
		freshFrom: y.border, freshSum: string(fresh),
	}
	y.begin(captured)
	y.dirty, y.spilled = [protoUnits]bool{}, [protoUnits]bool{}
	for u, dirty := range was.dirty {
		switch {
		case !dirty:
		case u < y.border*protoPerPage:
			rec.units = append(rec.units, protoUnit{u, captured.units[u]})
		default:
			y.unsynced = true
			if !y.write(y.disk.main[protoSlots+u], captured.units[u]) {
				return y.failed(was)
			}
		}
	}
	if y.keeps(ruleLoggedAtCapture) {
		y.raiseBorder(captured.mark)
	}

	// Mutators go on.
	if busy != nil {
		busy()
	}
	if wait && y.unsynced && y.keeps(ruleFreshFirst) {
		y.syncMain()
	}
	if busy != nil {
		busy()
	}
	if !y.keeps(ruleCapture) {
		for i := range rec.units {
			rec.units[i].value = y.state.units[rec.units[i].at]
		}
	}
	if !y.append(rec) {
		return y.failed(was)
	}
	y.raiseBorder(captured.mark)
	y.state.root, y.mark = captured.root, captured.mark
	if wait {
		if y.keeps(ruleRecordWait) {
			y.sync(y.log)
		}
		y.durable = rec.seq
		y.acknowledge()
	}
	y.returned = captured.root
	return true
}

// loggedUnits counts the units that a commit would log now.
func (y *protoSystem) loggedUnits() (n int) {
	for _, dirty := range y.dirty[:y.border*protoPerPage] {
		if dirty {
			n++
		}
	}
	return n
}

func (y *protoSystem) raiseBorder(mark int) {
	y.border = max(y.border, mark)
	if !y.keeps(ruleBorder) {
		y.border = mark
	}
}

// append writes a record to the log.
func (y *protoSystem) append(rec *protoRecord) bool {
	log, at := y.log, y.header.area*protoArea+y.tail
	if !y.keeps(ruleOwnCells) && y.tail > 0 {
		y.write(log[at-1], log[at-1].cached)
	}
	for i := range rec.size() {
		if !y.write(log[at+i], protoPart{rec, i}) {
			if !y.keeps(ruleSamePlace) {
				y.tail += i
			}
			return false
		}
	}
	y.tail += rec.size()
	y.records = append(y.records, rec)
	return true
}

// failed undoes a commit that met a full disk, but not what mutators have done since its capture.
func (y *protoSystem) failed(was protoProcess) bool {
	y.abandon()
	y.border = was.border
	if y.keeps(ruleStaysDirty) {
		for u := range y.state.mark * protoPerPage {
			y.dirty[u] = y.dirty[u] || was.dirty[u]
		}
	}
	return false
}

// startLog makes the log live, at the first commit of a session. (The library syncs the new log too, to meet a full disk
// early. For the protocol a log that has lost its size is an empty one.)
func (y *protoSystem) startLog() bool {
	if y.header.live {
		return true
	}
	if y.log == nil {
		log := newProtoFile(protoLogSize)
		if !y.write(y.disk.folder[0], log) {
			return false
		}
		y.log = log
	}
	if y.keeps(ruleFolder) {
		y.sync(y.disk.folder)
	}
	y.putHeader(protoHeader{gen: y.header.gen + 1, live: true, root: y.state.root, mark: y.mark}, y.keeps(ruleLiveFirst))
	return true
}

// ## Checkpoint and close

// checkpoint moves the units of the log to the main file and starts the next generation.
func (y *protoSystem) checkpoint() {
	if len(y.records) == 0 {
		return
	}
	y.syncLazy()
	y.sealLog()
	y.fold(y.records, y.header.area, true)
	y.acknowledge()
}

// sealLog appends the checksums to the live log.
func (y *protoSystem) sealLog() {
	seal := y.seal(y.disk.image(), y.records)
	if seal == nil {
		return
	}
	at := y.header.area*protoArea + y.tail
	for i := range seal.size() {
		y.mustWrite(y.log[at+i], protoPart{seal, i})
	}
	y.tail += seal.size()
	y.records = append(y.records, seal)
	if y.keeps(ruleSealWait) {
		y.sync(y.log)
	}
}

// seal returns a record of the checksums of the pages that records have changed, nil if there are none. img is the main
// file before any unit is moved.
func (y *protoSystem) seal(img *protoImage, records []*protoRecord) *protoRecord {
	last := *records[len(records)-1]
	var changed [protoPages]bool
	units := y.state.units
	if y.keeps(ruleSealCommitted) {
		for u := range units {
			units[u] = img.unit(u)
		}
		for _, u := range protoContent(records, last.mark) {
			if u.at < protoUnits {
				units[u.at] = u.value
			}
		}
	}
	for _, r := range records {
		for _, u := range r.units {
			if u.at < protoUnits {
				changed[u.at/protoPerPage] = true
			}
		}
	}
	seal := &protoRecord{
		gen: last.gen, seq: last.seq + 1, root: last.root, mark: last.mark,
		durable: y.durable, freshFrom: last.mark,
	}
	for p := range last.mark {
		fresh := p >= y.header.mark && y.keeps(ruleSealFresh)
		if fresh || changed[p] && y.keeps(ruleSeal) {
			seal.units = append(seal.units, protoUnit{protoSums + p, protoSum(units[p*protoPerPage], units[p*protoPerPage+1])})
		}
	}
	if len(seal.units) == 0 {
		return nil
	}
	return seal
}

// syncLazy waits for what lazy commits have not waited for.
func (y *protoSystem) syncLazy() {
	if y.durable == len(y.records) {
		return
	}
	if y.keeps(ruleLazyMain) {
		y.syncMain()
	}
	if y.keeps(ruleLazyLog) {
		y.sync(y.log)
	}
	y.durable = len(y.records)
}

// fold moves records, which lie in area, to the main file: the common end of checkpoint, close and recovery.
func (y *protoSystem) fold(records []*protoRecord, area int, live bool) {
	last := records[len(records)-1]
	h := y.header
	h.area, h.need = area, last.seq
	if y.keeps(ruleNeed) {
		y.putHeader(h, y.keeps(ruleNeedWait))
	}
	for _, u := range protoContent(records, last.mark) {
		if !y.keeps(ruleFromLog) && u.at < protoUnits {
			u.value = y.state.units[u.at]
		}
		y.mustWrite(y.disk.main[protoSlots+u.at], u.value)
	}
	y.watch.damage(y)
	if y.keeps(ruleUnitsWait) {
		y.syncMain()
	}
	y.nextGeneration(protoHeader{live: live, area: 1 - area, root: last.root, mark: last.mark})
}

// nextGeneration starts the generation after y's with header h.
func (y *protoSystem) nextGeneration(h protoHeader) {
	h.gen = y.header.gen + 1
	rule := ruleNextWait
	if !h.live {
		rule = ruleCleanFirst
	}
	y.putHeader(h, y.keeps(rule))
	y.records, y.tail, y.durable = nil, 0, 0
	y.border = h.mark
}

// close commits, makes the main file complete, and removes the log.
func (y *protoSystem) close() {
	if !y.commit(true, nil) {
		return
	}
	y.sealLog()
	y.fold(y.records, y.header.area, false)
	y.mustWrite(y.disk.folder[0], nil)
	y.open()
}

// ## Open and recovery

// open starts a process: it reads the files as the page cache shows them, and finishes what a crash has left.
func (y *protoSystem) open() {
	img := y.disk.image()
	f := y.opening(img)
	y.protoProcess = protoProcess{
		log: y.disk.log(), header: f.header, slot: f.slot,
		state: f.state, mark: f.state.mark, border: f.state.mark,
	}
	if f.header.live {
		y.recover(img, f)
	} else if y.log != nil && y.keeps(ruleNewLog) {
		// Read from the cache, the clean header may not be on disk, and the log still needed there.
		if y.keeps(ruleLeftover) {
			y.syncMain()
			y.putHeader(y.header, true)
		}
		y.mustWrite(y.disk.folder[0], nil)
		y.log = nil
	}
	y.opened()
}

// recover makes the main file complete. What it has read may be in the page cache alone: after a kill until somebody
// syncs it, after a failed sync for ever. So nothing that the disk may need is overwritten before a copy is durable.
func (y *protoSystem) recover(img *protoImage, f protoFound) {
	if y.keeps(ruleFreshAgain) && y.keeps(ruleFreshAgainWait) {
		y.freshAgain(img, f)
	}
	if y.keeps(ruleConfirmSync) {
		y.syncMain()
	}
	if y.keeps(ruleConfirm) {
		y.putHeader(y.header, true)
	}
	if len(f.records) == 0 {
		y.nextGeneration(protoHeader{live: true, area: 1 - f.header.area, root: f.state.root, mark: f.state.mark})
		return
	}
	area := f.header.area
	if y.keeps(ruleCopy) {
		area, f.records = y.copyLog(img, f)
	}
	if !y.keeps(ruleFreshAgainWait) {
		y.freshAgain(img, f)
	}
	if !y.keeps(ruleNextGeneration) {
		y.header.area, y.records, y.durable = area, f.records, len(f.records)
		for _, r := range f.records {
			y.tail += r.size()
			y.border = max(y.border, r.mark)
		}
		return
	}
	y.fold(f.records, area, true)
}

// freshAgain writes the fresh bytes that no commit has waited for again: those of the lazy records at the end.
func (y *protoSystem) freshAgain(img *protoImage, f protoFound) {
	if f.header.need > 0 {
		return // the main file was synced before that header was written
	}
	for i, r := range f.records {
		waited := slices.ContainsFunc(f.records[i:], func(r *protoRecord) bool { return !r.lazy })
		if waited && y.keeps(ruleFreshAgainLast) {
			continue
		}
		for u := r.freshFrom * protoPerPage; u < r.mark*protoPerPage; u++ {
			y.mustWrite(y.disk.main[protoSlots+u], img.unit(u))
		}
	}
}

// copyLog copies the records to the other area, seals them there, and returns both.
func (y *protoSystem) copyLog(img *protoImage, f protoFound) (area int, records []*protoRecord) {
	area = 1 - f.header.area
	if !y.keeps(ruleOtherArea) {
		area = f.header.area
	}
	records = f.records
	if f.header.need == 0 && y.keeps(ruleSealCopy) {
		if seal := y.seal(img, records); seal != nil {
			records = append(slices.Clip(records), seal)
		}
	}
	i := area * protoArea
	for _, r := range records {
		for k := range r.size() {
			y.mustWrite(y.log[i], protoPart{r, k})
			i++
		}
	}
	if y.keeps(ruleCopyWait) {
		y.sync(y.log)
	}
	return area, records
}

// # Faults

// A protoFault strikes at the given occasion after the one before it has struck (0: the first).
type protoFault struct {
	kind  protoFaultKind
	after int
}

type protoFaultKind int

const (
	protoNoFault protoFaultKind = iota
	protoKill                   // the process dies, the page cache lives
	protoCut                    // the power fails
	protoFail                   // a sync fails
	protoFull                   // a write meets a full disk
)

func (f protoFault) String() string {
	return fmt.Sprintf("%s@%d", [...]string{"none", "kill", "cut", "fail", "full"}[f.kind], f.after)
}

// strikes reports which of the given faults, if any, strikes now. After a kill or a cut it does not return.
func (y *protoSystem) strikes(kinds ...protoFaultKind) protoFaultKind {
	if len(y.faults) == 0 || !slices.Contains(kinds, y.faults[0].kind) {
		return protoNoFault
	}
	if y.faults[0].after > 0 {
		y.faults[0].after--
		return protoNoFault
	}
	kind := y.faults[0].kind
	y.faults = y.faults[1:]
	switch kind {
	case protoCut:
		y.disk.cut(y.random, y.garbage)
		y.promise(y.watch.judge(y, y.disk.image(), y.acked))
		panic(kind)
	case protoKill:
		panic(kind)
	}
	return kind
}

// # The promise

// begin notes that s may be found after a crash from now on.
func (y *protoSystem) begin(s protoState) { y.history = append(y.history, s) }

// abandon notes that the last commit must not be found any more.
func (y *protoSystem) abandon() {
	y.history = y.history[:len(y.history)-1]
	y.watch.cut(y, nil)
}

// acknowledge promises that the last commit survives.
func (y *protoSystem) acknowledge() {
	y.acked = y.state.root
	y.watch.cut(y, nil)
	y.watch.damage(y)
}

// promise promises that f, read after a power cut, is still found when recovery is cut as well: somebody may have seen
// it. With garbage this ends at the last commit that was waited for: recovery writes fresh bytes of lazy ones again.
func (y *protoSystem) promise(f protoFound) {
	n := len(f.records)
	for y.garbage && f.header.need == 0 && n > 0 && f.records[n-1].lazy {
		n--
	}
	root := f.header.root
	if n > 0 {
		root = f.records[n-1].root
	}
	y.acked = max(y.acked, root)
	y.returned = y.acked
}

// opening checks what a process finds when it opens the file.
func (y *protoSystem) opening(img *protoImage) protoFound {
	return y.watch.judge(y, img, y.returned)
}

// opened promises that what the process has found survives.
func (y *protoSystem) opened() {
	y.history = y.history[:y.state.root+1]
	y.returned, y.want = y.state.root, y.state
	y.acknowledge()
}

// A protoWatch looks at what crashes leave, and counts.
type protoWatch struct {
	limit   int // of the cuts after one write
	random  *rand.Rand
	running string // script and faults

	runs   int
	states int
	bad    int
	why    map[string]int
	sample string
}

func newProtoWatch(limit int) *protoWatch {
	return &protoWatch{limit: limit, random: rand.New(rand.NewPCG(1, 2)), why: map[string]int{}}
}

// protoGivenUp ends a script that cannot go on, after complain.
type protoGivenUp struct{}

func (w *protoWatch) complain(format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	w.bad++
	w.why[why]++
	if w.sample == "" {
		w.sample = why + ": " + w.running
	}
}

// cut checks every power cut of this moment.
func (w *protoWatch) cut(y *protoSystem, newest *protoCell) {
	if len(y.faults) > 0 {
		return // the script without the faults still to come has seen it
	}
	y.disk.cuts(newest, y.garbage, w.limit, w.random, func(img *protoImage) {
		w.verdict(y, img, y.acked)
	})
}

// judge returns what is found in img. If that is wrong, the script ends.
func (w *protoWatch) judge(y *protoSystem, img *protoImage, from int) protoFound {
	f, ok := w.verdict(y, img, from)
	if !ok {
		panic(protoGivenUp{})
	}
	return f
}

// verdict reports whether img holds a whole commit, from the given one on.
func (w *protoWatch) verdict(y *protoSystem, img *protoImage, from int) (f protoFound, ok bool) {
	w.states++
	f, err := img.read(y.broken)
	switch root := f.state.root; {
	case err != nil:
		w.complain("refused (%v)", err)
	case root >= len(y.history) || f.state != y.history[root]:
		w.complain("no whole commit")
	case root < from:
		w.complain("lost commit")
	default:
		return f, true
	}
	return f, false
}

// damage spoils each cell in turn, at a moment when all is durable, and removes the log.
func (w *protoWatch) damage(y *protoSystem) {
	if len(y.faults) > 0 {
		return
	}
	img := y.disk.image()
	whole, err := img.read(y.broken)
	if err != nil {
		return // a crash that leads here has been complained about
	}
	// The last record, or the header, says what was durable. The last record itself may be taken for a torn tail.
	proven := whole.header.root
	if n := len(whole.records); whole.header.need > 0 {
		proven = whole.records[n-1].root
	} else if n > 0 && whole.records[n-1].durable > 0 {
		proven = whole.records[whole.records[n-1].durable-1].root
	}
	try := func(what string) {
		w.states++
		f, err := img.read(y.broken)
		switch {
		case err != nil:
		case f.state.root >= len(y.history) || f.state != y.history[f.state.root]:
			w.complain("damage of %s: no whole commit", what)
		case f.state.root < proven:
			w.complain("damage of %s: lost commit", what)
		}
	}
	spoil := func(c *any, what string) {
		was := *c
		*c = protoGarbage{}
		try(what)
		*c = was
	}
	for i := range img.log {
		spoil(&img.log[i], "the log")
	}
	lazy := slices.ContainsFunc(whole.records, func(r *protoRecord) bool { return r.lazy })
	for i := range protoSlots {
		// Nothing but this header says that lazy records were on disk when units began to move. Without it they look torn.
		if i != whole.slot || whole.header.need == 0 || !lazy {
			spoil(&img.main[i], "a header")
		}
	}
	if whole.header.need == 0 {
		for _, r := range whole.records {
			for u := r.freshFrom * protoPerPage; u < r.mark*protoPerPage; u++ {
				spoil(&img.main[protoSlots+u], "fresh bytes")
			}
		}
	}
	img.hasLog, img.log = false, [protoLogSize]any{}
	try("the folder")
}

// # Scripts

// protoWords are the operations of a script. A digit after a word is its argument.
var protoWords = map[string]func(y *protoSystem, n int){
	"store":    func(y *protoSystem, n int) { y.store(n) },
	"alloc":    func(y *protoSystem, _ int) { y.alloc() },
	"shrink":   func(y *protoSystem, _ int) { y.shrink() },
	"spill":    func(y *protoSystem, _ int) { y.spill() },
	"commit":   func(y *protoSystem, _ int) { y.commit(true, nil) },
	"lazy":     func(y *protoSystem, _ int) { y.commit(false, nil) },
	"busy":     func(y *protoSystem, n int) { y.commit(true, y.busy(n)) },
	"lazybusy": func(y *protoSystem, n int) { y.commit(false, y.busy(n)) },
	"rollback": func(y *protoSystem, _ int) { y.rollback() },
	"update":   func(y *protoSystem, _ int) { y.update(false) },
	"abort":    func(y *protoSystem, _ int) { y.update(true) },
	"ckpt":     func(y *protoSystem, _ int) { y.checkpoint() },
	"close":    func(y *protoSystem, _ int) { y.close() },
	"kill":     func(*protoSystem, int) { panic(protoKill) },
}

// busy returns what mutators do while a commit waits.
func (y *protoSystem) busy(n int) func() {
	return func() {
		y.store(n)
		switch n % 4 {
		case 1:
			y.alloc()
		case 2:
			y.shrink()
		case 3:
			y.alloc()
			y.store(n + 4)
		}
		y.spill()
		n += 5
	}
}

// protoDirected are scripts that meet the cases which random ones seldom meet.
var protoDirected = []string{
	// The plain case.
	"store0 commit store1 commit store0 commit",
	// Fresh pages, then logged; spilled and changed.
	"alloc store2 commit store3 commit alloc store4 spill store4 commit",
	// Logged space below a lowered mark.
	"alloc alloc store5 commit shrink commit alloc store4 commit store4 commit",
	// The same space, fresh after a checkpoint.
	"alloc commit shrink commit ckpt alloc store3 commit store2 commit",
	// Checkpoints beside changes.
	"store0 commit store1 ckpt store0 commit ckpt store1 commit",
	// Stale bytes above the mark.
	"alloc store2 store3 spill rollback alloc store2 commit store0 commit",
	// Rollback past nothing that is committed.
	"alloc commit store2 rollback store3 commit alloc store4 rollback commit",
	// The border after a rollback.
	"alloc store2 commit alloc rollback store2 alloc store4 spill commit",
	// Updates.
	"store0 abort store1 update abort store0 commit",
	// Lazy commits, then one that waits.
	"alloc store2 lazy alloc store4 lazy store3 lazy store4 commit store0 lazy",
	// Lazy commits and checkpoints.
	"alloc store2 lazy store3 lazy ckpt alloc store4 lazy store2 lazy ckpt",
	// Lazy commits and kills.
	"alloc lazy store2 lazy kill store0 lazy kill alloc lazy close",
	// Changes while a commit waits.
	"alloc store2 busy1 store0 busy3 busy2 busy3 commit",
	// The same, lazily.
	"alloc busy3 lazybusy3 store1 busy2 lazybusy1 rollback store1 commit",
	// Sessions.
	"store0 commit close store1 commit close store0 close store1 commit",
	// Sessions that are killed.
	"store0 commit kill store1 commit kill store0 commit kill store1 commit",
	// Fresh bytes that a later commit has waited for.
	"alloc store2 lazy alloc store4 commit kill store2 commit",
	// A full area.
	"store0 store1 alloc commit store0 store1 commit store2 commit store1 commit store0 " +
		"commit store1 store2 commit store0 commit",
}

// protoGenerated returns a random script.
func protoGenerated(random *rand.Rand) string {
	words := strings.Fields("store store store store store alloc alloc shrink spill spill rollback update abort ckpt close kill")
	commits := [][]string{
		{"commit", "commit", "busy"},
		{"lazy", "lazy", "lazybusy"},
		{"commit", "lazy", "busy", "lazybusy"},
	}[random.IntN(3)]
	script := make([]string, 4+random.IntN(8))
	for i := range script {
		from := words
		if random.IntN(5) < 2 {
			from = commits
		}
		script[i] = from[random.IntN(len(from))]
		if slices.Contains([]string{"store", "busy", "lazybusy"}, script[i]) {
			script[i] += fmt.Sprint(random.IntN(protoUnits))
		}
	}
	return strings.Join(script, " ")
}

// protoGeneratedFaults returns up to three random faults. With garbage there is at most one failed sync: each that
// strikes a header costs a slot of the three.
func protoGeneratedFaults(random *rand.Rand, garbage bool) (faults []protoFault) {
	failed := false
	for range random.IntN(4) {
		kind := protoKill + protoFaultKind(random.IntN(4))
		if kind == protoFail && failed && garbage {
			continue
		}
		failed = failed || kind == protoFail
		faults = append(faults, protoFault{kind, random.IntN(24)})
	}
	return faults
}

// run runs a script on a new system. It reports whether all faults struck.
func (w *protoWatch) run(script string, broken protoRule, garbage bool, seed uint64, faults ...protoFault) (struck bool) {
	w.runs++
	w.running = fmt.Sprintf("%s (garbage %v, faults %v, seed %d)", script, garbage, faults, seed)
	y := newProtoSystem(w, broken, garbage, faults, seed)
	defer func() {
		struck = len(y.faults) == 0
		switch e := recover().(type) {
		case nil, protoGivenUp:
		default:
			panic(e)
		}
	}()
	stopped := !y.survives(y.open)
	for _, word := range strings.Fields(script) {
		for stopped {
			stopped = !y.survives(y.open)
		}
		name, n := word, 0
		if last := word[len(word)-1]; last >= '0' && last <= '9' {
			name, n = word[:len(word)-1], int(last-'0')
		}
		stopped = !y.survives(func() { protoWords[name](y, n) })
		if !stopped && (y.state.mark != y.want.mark || y.state.units != y.want.units) {
			w.complain("wrong memory after %s", name)
			return
		}
	}
	for stopped {
		stopped = !y.survives(y.open)
	}
	return
}

// survives reports whether the process lives after step.
func (y *protoSystem) survives(step func()) (alive bool) {
	defer func() {
		if e := recover(); e != nil {
			if _, stop := e.(protoFaultKind); !stop {
				panic(e)
			}
		}
	}()
	step()
	return true
}

// # Tests

var protoScripts = flag.Int("emd.protocol.scripts", 0,
	"soak: so many generated scripts, and the directed ones with more pairs of faults")

// everyFault runs script without a fault, with each fault at each occasion, and with pairs set also with each pair of
// which the second strikes within the next occasions, that is in recovery. It stops early when enough says so.
func (w *protoWatch) everyFault(script string, broken protoRule, garbage, pairs bool, enough func() bool) {
	w.run(script, broken, garbage, 0)
	for kind := protoKill; kind <= protoFull; kind++ {
		for n := 0; !enough() && w.run(script, broken, garbage, uint64(n), protoFault{kind, n}); n++ {
			if !pairs || kind == protoFull {
				continue
			}
			for again := protoKill; again <= protoFail; again++ {
				if garbage && kind == protoFail && again == protoFail {
					continue // see protoGeneratedFaults
				}
				for m := 0; m < 20 && w.run(script, broken, garbage, uint64(m), protoFault{kind, n}, protoFault{again, m}); m++ {
				}
			}
		}
	}
}

// generated runs the generated script of seed with its faults.
func (w *protoWatch) generated(seed uint64, broken protoRule) {
	random := rand.New(rand.NewPCG(seed, 3))
	script, garbage := protoGenerated(random), random.IntN(3) == 0
	w.run(script, broken, garbage, seed, protoGeneratedFaults(random, garbage)...)
}

func TestProtocol(t *testing.T) {
	t.Parallel()
	scripts, soak := 10_000, *protoScripts > 0
	if soak {
		scripts = *protoScripts
	}
	runs, states := 0, 0
	check := func(t *testing.T, w *protoWatch) {
		runs += w.runs
		states += w.states
		if w.bad > 0 {
			t.Errorf("%d of %d states are bad: %v\nfirst: %s", w.bad, w.states, w.why, w.sample)
		}
	}
	never := func() bool { return false }
	for _, script := range protoDirected {
		t.Run(script, func(t *testing.T) {
			w := newProtoWatch(1 << 6)
			w.everyFault(script, protoNoRule, false, true, never)
			w.everyFault(script, protoNoRule, true, soak, never)
			check(t, w)
		})
	}
	const each = 1000
	for first := 0; first < scripts; first += each {
		t.Run(fmt.Sprintf("seeds=%d..%d", first, min(first+each, scripts)-1), func(t *testing.T) {
			w := newProtoWatch(1 << 8)
			for seed := first; seed < min(first+each, scripts); seed++ {
				w.generated(uint64(seed), protoNoRule)
			}
			check(t, w)
		})
	}
	t.Logf("%d runs, %d states after a crash or damage", runs, states)
}

// TestProtocolRules switches each rule off: the model must see what it is for.
func TestProtocolRules(t *testing.T) {
	t.Parallel()
	for rule := protoNoRule + 1; rule < protoRuleEnd; rule++ {
		t.Run(rule.String(), func(t *testing.T) {
			w := newProtoWatch(1 << 6)
			found := func() bool { return w.bad > 0 }
			for _, garbage := range []bool{false, true} {
				for _, script := range protoDirected {
					if !found() {
						w.everyFault(script, rule, garbage, false, found)
					}
				}
			}
			for seed := uint64(0); seed < 50_000 && !found(); seed++ {
				w.generated(seed, rule)
			}
			if !found() {
				t.Fatalf("none of %d states is bad", w.states)
			}
			t.Logf("%d of %d states are bad: %v\nfirst: %s", w.bad, w.states, w.why, w.sample)
		})
	}
}
