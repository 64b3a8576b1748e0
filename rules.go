package emd

import "sync/atomic"

// A rule is a step of the commit protocol that can be left out: an fsync, an order, a check. The code asks [keeps] at the
// line that keeps it. Tests break one rule at a time and require that the simulated power cuts notice, so that no line here
// is there for nothing, and no loss goes unnoticed. R1 to R17 are the rules of the design's CRASH.md. Rules of the model
// in protocol_test.go have the same names there, but for the order of the words.
type rule int32

const (
	noRule rule = iota

	// Commit.

	freshFirstRule // R4: fresh bytes are durable before the record that refers to them. Otherwise the record is there, its data not.
	recordWaitRule // R4: the record is durable before the commit is acknowledged. Otherwise it is lost.
	ownCellsRule   // R5: a record shares no sector with the one before. Otherwise a torn write takes an acknowledged commit along.
	staysDirtyRule // R8: what a commit captured is dirty again when its record found no room. Otherwise the next commit misses it.
	fullPagesRule  // R5: with FullPages the log holds whole pages. Otherwise noise in a torn sector stays.
	wholePageRule  // R3: a page allocated in logged space is logged whole. Otherwise bytes of its past come back.
	zerosRule      // R10: space above the mark is cut off when the file is opened. Otherwise bytes of its past count as zeros.

	// Life of the log.

	folderRule     // R12: the name of the log is durable before the header says that it is needed. Otherwise it is missing.
	liveFirstRule  // R12: the header that says so is durable before a record is acknowledged. Otherwise nobody reads the log.
	cleanFirstRule // R12: the header that needs no log is durable before the log is removed. Otherwise it is missing.
	removeLogRule  // R12: the log stays when its records may not be in the file. Otherwise it is missing.
	leftoverRule   // R12: the name of a log that is left over is durable before recovery writes a header. Otherwise nobody mends a torn one.

	// Checkpoint.

	lazyMainRule  // R6: fresh bytes of commits that did not wait are durable before the header says that the log is needed.
	logWaitRule   // R6: so are the records, and the checksums behind them. Otherwise the header needs what is not there.
	sealRule      // R6: a checkpoint seals the pages that it changes. Otherwise they look damaged.
	needRule      // R6: that header comes before pages change. Otherwise fresh bytes that changed look torn.
	needWaitRule  // R6: it is durable before they do.
	unitsWaitRule // R6: pages are durable before the header of the next generation is written. Otherwise they are old, and the log forgotten.
	nextWaitRule  // R6: that header is durable before a record of the next generation is acknowledged.
	elsewhereRule // R6, R7: the next generation, and the copy of recovery, lie elsewhere in the log. Otherwise they overwrite what is needed.

	// Rollback.

	rollbackRule // R17: a rollback reads the file and then the live log. Otherwise it goes back past the last commit.
	updateRule   // R17: an Update first commits what is pending. Otherwise its rollback takes that along.

	// Failures.

	slotsRule        // R2: three header slots. With two, a failed fsync and then a torn write spoil both.
	failStopRule     // R8: a failed fsync stops the arena. Otherwise the next one succeeds, and the data is gone.
	failStopFullRule // R8: so does a checkpoint that meets a full disk. Otherwise commits follow that the header cuts off.

	// Recovery.

	confirmSyncRule    // R7: the file is synced before its first header is written: a kill leaves fresh bytes in the page cache.
	confirmRule        // R7: the header that was read is written again: it may be in the page cache only.
	copyRule           // R7: the records are copied: they may be in the page cache only, where no fsync writes them any more.
	copyWaitRule       // R7: the copy is durable before a header names it.
	freshAgainRule     // R7: fresh bytes of commits that did not wait are written again: as copyRule.
	freshAgainWaitRule // R7: they are durable before a header says that the log is needed.
	allSlotsRule       // R7: after recovery all three header slots are newer than the one that it read. Otherwise Check finds one that is too old.

	// Reading.

	generationRule   // R2: a record of another generation does not count.
	recordSumRule    // R2: nor does one whose checksum is wrong.
	headerSumRule    // R2: nor a header whose checksum is wrong.
	freshSumRule     // R9: nor a record with other fresh bytes than it was written with,
	freshSumNeedRule // R9: unless the header says that the log is needed: then the file rightly has newer bytes.
	exactlyNeedRule  // R9: in that case records after those needed do not count: they may be left from an unfinished copy.
	needCheckRule    // R9: refuse fewer records than the header needs.
	durableRule      // R9: refuse a broken record that a later one says was durable.
	newerLogRule     // R9: refuse a log newer than the header: the file is an older copy.
	otherLogRule     // R9: refuse the log of another file.
	missingLogRule   // R9: refuse a missing log that the header needs.

	// Creation.

	buildWaitRule // R16: a new file is durable before it gets its name. Otherwise it is a file of noise.
	nameWaitRule  // R16: the name is durable before the file is used. Otherwise it is gone, commits and all.

	ruleEnd
)

// broken is the rule that a test has broken.
var broken atomic.Int32

// keeps says whether the rule holds: always, but in tests.
func keeps(r rule) bool { return rule(broken.Load()) != r }
