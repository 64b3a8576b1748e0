package emd

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// An Arena is one open file, holding any number of named containers that
// commit together. Its methods may be called from any number of goroutines.
type Arena struct {
	path   string // through symbolic links
	opts   Options
	fs     fileSystem
	file   file
	seed   uint64
	limit  int64 // private memory
	space  *space
	alloc  *allocator
	gate   gate
	status atomic.Uint32
	failed atomic.Pointer[error] // why the arena stopped

	// turn is held by whoever commits, rolls back or closes; by Update from
	// beginning to end. io orders the commits, checkpoints and rollbacks
	// themselves: inside an Update, an operation of any goroutine may need a
	// checkpoint.
	turn       sync.Mutex
	io         sync.Mutex
	header     header   // guarded by io
	log        *redoLog // guarded by io
	logLimit   int64
	recBuffer  int64         // see bufferedRecord
	crashed    bool          // read-only, and the file was not closed
	captures   atomic.Uint64 // captures begun
	rollbacks  atomic.Uint64
	lastCommit error // of the last capture; guarded by turn

	lent      atomic.Int64 // loops that lend memory
	updater   atomic.Int64 // the goroutine whose Update runs, or 0
	updateErr atomic.Pointer[error]

	catMu   sync.Mutex // guards changes of the catalogue
	catalog *dict      // names to containers
	meta    *dict
	openMu  sync.Mutex
	open    map[string]container // guarded by openMu

	scratches []int // numbers of scratch files in use; guarded by openMu

	hiddenNames int // used so far, see hiddenPrefix; guarded by catMu

	faultMu    sync.Mutex
	faultCount uint64
	firstFault error
	lastFault  error
	faultSeen  bool

	stats struct{ commits, ownCommits, checkpoints atomic.Int64 }
	quit  chan struct{} // closed by Close: stops the committer
}

// Bits of Arena.status.
const (
	statusClosed = 1 << iota
	statusReadOnly
	statusFailed
	statusBroken // a failed Rollback: not even readable
	statusShort  // the space has given up its reserve
)

// internalOptions are what tests may choose beside Options.
type internalOptions struct {
	fs         fileSystem // nil: the operating system's
	heap       bool       // memory on the Go heap, which the race detector sees
	chunkSize  int64
	far        bool  // place chunks far apart
	dirtyLimit int64 // may be less than the public minimum
	logLimit   int64
	recBuffer  int64
	inline     bool // no goroutines of the arena's own: runs can be repeated
}

// Open opens the file at path, or creates it if it is absent. opts may be
// nil. One process may have a file open for writing, or any number for
// reading; otherwise it is [ErrLocked] (see [Options].LockTimeout).
//
// What a crash left is put in order first: the time that takes depends on the
// size of the log, not of the file. A missing file with MustExist or ReadOnly
// matches [fs.ErrNotExist]; damage is [ErrCorrupt], a file of a later version of this
// package [ErrVersion].
func Open(path string, opts *Options) (*Arena, error) {
	return openWith(path, opts, internalOptions{})
}

func openWith(path string, opts *Options, in internalOptions) (*Arena, error) {
	a := &Arena{path: path, open: map[string]container{}, quit: make(chan struct{})}
	if opts != nil {
		a.opts = *opts
	}
	if a.fs = in.fs; a.fs == nil {
		a.fs = newOSFS(in.heap, in.far)
	}
	a.setLimits(in)
	if in.chunkSize == 0 {
		in.chunkSize = defaultChunkSize
	}
	if err := a.openFile(&in); err != nil {
		return nil, a.opError("open", nil, 0, err)
	}
	if a.opts.CommitEvery > 0 && !a.opts.ReadOnly {
		go a.commitRegularly()
	}
	return a, nil
}

func (a *Arena) setLimits(in internalOptions) {
	if a.opts.Mode == 0 {
		a.opts.Mode = defaultMode
	}
	a.limit = a.opts.DirtyLimit
	if a.limit == 0 {
		a.limit = defaultDirtyLimit()
	}
	a.limit = max(a.limit, minDirtyLimit)
	if in.dirtyLimit != 0 {
		a.limit = in.dirtyLimit
	}
	a.logLimit = a.opts.LogLimit
	if a.logLimit <= 0 {
		a.logLimit = defaultLogLimit
	}
	if in.logLimit != 0 {
		a.logLimit = in.logLimit
	}
	a.recBuffer = cmp.Or(in.recBuffer, bufferedRecord)
}

// openFile opens, locks and, after a crash, recovers the file. On error it
// leaves nothing open.
func (a *Arena) openFile(in *internalOptions) (err error) {
	path, err := a.fs.Resolve(a.path)
	if err != nil {
		return err
	}
	a.path = path
	if err := a.openLocked(in.chunkSize); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.file.Close())
		}
	}()
	if name, network := a.fs.Network(a.file); network && !a.opts.NetworkFS {
		return fmt.Errorf("%w: %s is a network file system; Options.NetworkFS allows it", ErrUnsupported, name)
	}
	size, err := a.file.Size()
	if err != nil {
		return err
	}
	if a.header, err = readHeader(a.file, size); err != nil {
		return err
	}
	a.log = &redoLog{fs: a.fs, path: logPath(a.path), mode: a.opts.Mode, id: a.header.id, inline: in.inline}
	if a.header.relaxed() {
		return a.openRelaxed(in.chunkSize, size)
	}
	log, recs, err := a.readOldLog()
	if err != nil {
		return err
	}
	mark := a.header.mark
	if len(recs) > 0 {
		mark = recs[len(recs)-1].mark
	}
	if size < int64(mark)<<pageShift {
		return errors.Join(corruptAt(uint64(size), "truncated: %d bytes, committed were %d", size, mark<<pageShift), log.Close())
	}
	if a.opts.ReadOnly {
		a.status.Store(statusReadOnly)
		a.crashed = log != nil
		err := a.show(in.chunkSize, mark, size, log, recs)
		if log != nil {
			err = errors.Join(err, log.Close())
		}
		return err
	}
	if err := a.tidy(log, recs, size); err != nil {
		return err
	}
	a.removeScratches()
	if err := a.show(in.chunkSize, mark, int64(mark)<<pageShift, nil, nil); err != nil {
		return err
	}
	if log != nil { // there was a crash
		if err := a.dropUnfinished(); err != nil { // the next migration tries again
			a.logger().Warn("unfinished migration or bulk load", "path", a.path, "err", err)
		}
	}
	return nil
}

// show maps the file and loads what is always there. Records that may not be
// applied to the file are applied to memory.
func (a *Arena) show(chunkSize int64, mark uint64, size int64, log file, recs []record) (err error) {
	a.seed = a.header.seed
	if a.header.relaxed() && !a.opts.ReadOnly {
		a.space, err = newSharedSpace(a.file, a.fs.MapShared(a.file), chunkSize, mark, size)
	} else {
		private := !a.opts.ReadOnly || len(recs) > 0
		a.space, err = newSpace(a.file, a.fs.Map(a.file, private), chunkSize, mark, size, private)
	}
	if err != nil {
		return err
	}
	a.space.whole = a.opts.FullPages
	a.space.onShort = func(short bool) {
		if short {
			a.status.Or(statusShort)
		} else {
			a.status.And(^uint32(statusShort))
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.space.close())
		}
	}()
	if err := a.replay(log, recs); err != nil {
		return err
	}
	a.alloc = newAllocator(a.space, mark)
	if err := a.alloc.load(); err != nil {
		return err
	}
	a.catalog, a.meta = newBytesDict(a, "catalog"), newBytesDict(a, "meta")
	return errors.Join(a.catalog.load(a.header.catalog), a.meta.load(a.header.meta))
}

// openLocked opens the file, creates it if need be, and locks it. A file that
// another opener replaced or removed meanwhile is opened anew.
func (a *Arena) openLocked(chunkSize int64) error {
	flag := os.O_RDWR
	if a.opts.ReadOnly {
		flag = os.O_RDONLY
	}
	deadline := time.Now().Add(a.opts.LockTimeout)
	for {
		f, err := a.openShared(flag, deadline)
		if errors.Is(err, fs.ErrNotExist) && !a.opts.MustExist && !a.opts.ReadOnly {
			if err := a.create(chunkSize); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			continue
		}
		if err != nil && !a.opts.ReadOnly {
			err = denied(err, "Options.ReadOnly opens what may only be read")
		}
		if err != nil {
			return err
		}
		same := false
		if err = a.lockFile(f, deadline); err == nil {
			same, err = a.fs.SameFile(f, a.path)
		}
		if same {
			a.file = f
			return nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// openShared opens the file. While another program does not share it, it waits
// as for a lock.
func (a *Arena) openShared(flag int, deadline time.Time) (f file, err error) {
	if !a.patiently(deadline, func() bool {
		f, err = a.fs.Open(a.path, flag, 0)
		return !heldBack(err)
	}) {
		err = fmt.Errorf("%w by a program that does not share it; Options.LockTimeout waits for it: %w", ErrLocked, err)
	}
	return f, err
}

// lockFile waits for the lock as long as LockTimeout says.
func (a *Arena) lockFile(f file, deadline time.Time) (err error) {
	if !a.patiently(deadline, func() (ok bool) {
		ok, err = a.fs.Lock(f, !a.opts.ReadOnly, a.opts.LockTimeout < 0)
		return ok || err != nil
	}) {
		return fmt.Errorf("%w by another opener; Options.LockTimeout waits for it", ErrLocked)
	}
	return err
}

// patiently calls try until it returns true, and tells whether it did before the
// deadline that follows from LockTimeout.
func (a *Arena) patiently(deadline time.Time, try func() bool) bool {
	for wait := time.Millisecond; !try(); wait = min(2*wait, 50*time.Millisecond) {
		if left := time.Until(deadline); a.opts.LockTimeout >= 0 {
			if left <= 0 {
				return false
			}
			wait = min(wait, left)
		}
		time.Sleep(wait)
	}
	return true
}

// create builds a new file under a temporary name and gives it its own when
// it is whole and durable (R16). It matches [fs.ErrExist] if somebody else was faster.
func (a *Arena) create(chunkSize int64) (err error) {
	id, seed := newIdentity(a.opts.HashSeed)
	temp := a.path + ".new-" + strconv.FormatUint(rand64(), 36)
	f, err := a.fs.Open(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, a.opts.Mode)
	if err != nil {
		return denied(err, "a new file is made under a temporary name: its folder must be writable")
	}
	defer func() {
		if left := a.fs.Remove(temp); err == nil && !errors.Is(left, fs.ErrNotExist) {
			err = left
		}
	}()
	if a.opts.Relaxed {
		err = a.allowRelaxed(f)
	}
	if err == nil {
		err = a.buildFile(f, id, seed, chunkSize)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := a.fs.Link(temp, a.path); err != nil {
		return err
	}
	if !keeps(nameWaitRule) {
		return nil
	}
	return a.fs.SyncDir(a.path)
}

// buildFile writes an empty arena.
func (a *Arena) buildFile(f file, id fileID, seed uint64, chunkSize int64) (err error) {
	b := &Arena{path: a.path, fs: a.fs, file: f, seed: seed, limit: a.limit}
	b.space, err = newSpace(f, a.fs.Map(f, true), chunkSize, 0, 0, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.space.close()) }()
	b.alloc = newAllocator(b.space, 0)
	if err := b.alloc.format(); err != nil {
		return err
	}
	h := header{id: id, seed: seed, generation: 1}
	if a.opts.Relaxed {
		h.state = headerRelaxed
	}
	b.catalog, b.meta = newBytesDict(b, "catalog"), newBytesDict(b, "meta")
	if h.catalog, err = b.catalog.create(); err != nil {
		return err
	}
	if h.meta, err = b.meta.create(); err != nil {
		return err
	}
	b.catalog.flush()
	b.meta.flush()
	b.alloc.roundUp()
	b.alloc.flush()
	h.mark, _ = b.alloc.usage()
	if err := b.space.writeFresh(0, h.mark); err != nil {
		return asFull(err)
	}
	sums := sealer{main: f, end: h.mark, fresh: b.space.freshSum, emit: func(e entry) error {
		_, err := f.WriteAt(e.lines, int64(e.page)<<pageShift)
		return err
	}, whole: true}
	if err := sums.seal(&changes{}); err != nil {
		return asFull(err)
	}
	return asFull(h.put(f, keeps(buildWaitRule)))
}

// newIdentity returns id and hash seed of a new file: random, or as they
// follow from a seed.
func newIdentity(seed uint64) (id fileID, hashSeed uint64) {
	hashSeed = seed
	if seed == 0 {
		_, _ = rand.Read(id[:]) // never fails
		return id, rand64()
	}
	h := newHasher(seed)
	binary.LittleEndian.PutUint64(id[:], h.word(0))
	binary.LittleEndian.PutUint64(id[8:], h.word(1))
	return id, seed
}

func rand64() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// readOldLog opens the log that a crash may have left and reads its records.
// A log that the header needs and that is missing is damage.
func (a *Arena) readOldLog() (log file, recs []record, err error) {
	flag := os.O_RDWR
	if a.opts.ReadOnly {
		flag = os.O_RDONLY
	}
	log, err = a.fs.Open(a.log.path, flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if a.header.state == headerLive && keeps(missingLogRule) {
			return nil, nil, corrupt("the log %s is missing; without it commits are lost", a.log.path)
		}
		return nil, nil, nil
	}
	if err != nil {
		if !a.opts.ReadOnly {
			err = denied(err, "Options.ReadOnly opens what may only be read")
		}
		return nil, nil, fmt.Errorf("log: %w", err)
	}
	if recs, err = readLog(log, a.file, &a.header); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", a.log.path, err), log.Close())
	}
	return log, recs, nil
}

// tidy leaves a clean file of one piece after a crash: the log applied and
// removed, nothing past the mark. log may be nil.
func (a *Arena) tidy(log file, recs []record, size int64) error {
	if log != nil {
		began := time.Now()
		// A crash may tear what is written now: then the next opener must find the log, too.
		if keeps(leftoverRule) {
			if err := a.fs.SyncDir(a.log.path); err != nil {
				return errors.Join(err, log.Close())
			}
		}
		err := errors.Join(recoverLog(log, a.file, &a.header, recs, a.opts.FullPages), log.Close())
		if err != nil {
			return asFull(err)
		}
		if err := a.fs.Remove(a.log.path); err != nil {
			return denied(err, logAdvice)
		}
		a.logger().Info("recovered after a crash", "path", a.path, "commits", len(recs), "took", time.Since(began))
	}
	// Space past the mark is never relied on to be zero, so cut it off (R10).
	if end := int64(a.header.mark) << pageShift; size > end && keeps(zerosRule) {
		return a.file.Truncate(end)
	}
	return nil
}

// Sync makes all changes so far durable, all or none: the commit point. Calls
// at once from several goroutines share one write to the disk. It costs one
// wait for the disk, two if the file has grown; nothing if nothing has changed.
// In a relaxed arena (Options.Relaxed) it writes what has changed, and may do so in part.
//
// When the disk is full it is [ErrFull]: nothing is lost, nothing is
// committed, and another Sync after making room, or [Arena.Rollback], works.
// Any other failure stops the arena (see [Arena.Err]). It is [ErrInUpdate]
// inside Update, and [ErrRolledBack] if it waited for an Update that failed.
func (a *Arena) Sync() error {
	return a.opError("sync", nil, 0, a.sync())
}

func (a *Arena) sync() error {
	if a.inUpdate() {
		return ErrInUpdate
	}
	captures, rollbacks := a.captures.Load(), a.rollbacks.Load()
	a.turn.Lock()
	defer a.turn.Unlock()
	switch {
	case a.closed():
		return ErrClosed
	case a.opts.ReadOnly:
		return nil
	case a.rollbacks.Load() != rollbacks:
		return ErrRolledBack
	case a.captures.Load() != captures:
		return a.lastCommit // it began after this call, so it carries its changes
	}
	return a.commit(false)
}

// Rollback brings everything back to the last commit: all containers, their
// names, and Meta. Handles stay valid; a container that did not exist then is
// empty, and its next change creates it again. The cost is in proportion to
// what had changed and to the log since the last checkpoint. It is
// [ErrUnsupported] if the arena is a relaxed one.
func (a *Arena) Rollback() error {
	if a.inUpdate() {
		return a.opError("rollback", nil, 0, ErrInUpdate)
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	if a.lent.Load() != 0 {
		return a.opError("rollback", nil, 0, ErrLent)
	}
	return a.opError("rollback", nil, 0, a.rollbackNow())
}

func (a *Arena) rollbackNow() error {
	if err := a.writable(); err != nil {
		return err
	}
	if a.space.shared {
		return fmt.Errorf("%w: the arena is relaxed, changes stay", ErrUnsupported)
	}
	a.rollbacks.Add(1)
	a.catMu.Lock()
	defer a.catMu.Unlock()
	return a.rollback()
}

// Update runs fn as a transaction: it commits what is pending, runs fn, and
// commits if fn returns nil. On an error of fn, on an error of any operation
// of this arena meanwhile, even one that fn dropped, and on a panic, which goes
// on, everything is as it was when fn began; but in a relaxed arena what was
// changed stays, and the error matches [ErrUnsupported] too.
//
// One Update runs at a time; Update, Sync, Rollback, Close and Drop of other
// goroutines wait for it, and called from fn they are [ErrInUpdate]. Nothing is
// committed before fn returns, so its changes must fit into Options.DirtyLimit
// (new space, written out early, does not count): otherwise [ErrUpdateTooLarge].
// Update is atomic, not isolated: readers see its changes at once, and what other
// goroutines change meanwhile shares its fate.
func (a *Arena) Update(fn func() error) error {
	if a.inUpdate() {
		return a.opError("update", nil, 0, ErrInUpdate)
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	if err := a.beginUpdate(); err != nil {
		return a.opError("update", nil, 0, err)
	}
	finished := false
	defer func() {
		a.updater.Store(0)
		if !finished { // fn panicked or left its goroutine
			_ = a.rollbackNow() // a failure stops the arena
		}
	}()
	faults := a.faults()
	err := fn()
	finished = true
	a.updater.Store(0)
	if failed := a.updateErr.Load(); err == nil && failed != nil {
		err = *failed
	}
	if err == nil {
		err = a.faultSince(faults)
	}
	if err == nil {
		err = a.opError("update", nil, 0, a.commit(false))
	}
	if err != nil {
		if undo := a.rollbackNow(); undo != nil {
			err = errors.Join(err, a.opError("update", nil, 0, undo))
		}
	}
	return err
}

// beginUpdate commits what is pending and leaves fn most of the DirtyLimit.
func (a *Arena) beginUpdate() error {
	if err := a.writable(); err != nil {
		return err
	}
	if keeps(updateRule) {
		if err := a.commit(false); err != nil {
			return err
		}
	}
	if a.space.private.Load() > a.limit/4 {
		if err := a.checkpoint(); err != nil {
			return err
		}
	}
	a.updateErr.Store(nil)
	a.updater.Store(goroutineID())
	return nil
}

// View runs fn and returns its error, or else the first fault that an
// iterator of the arena met meanwhile. Iterators end early on a fault, so
// without View or Err a loop cannot tell damage from the end of the data.
func (a *Arena) View(fn func() error) error {
	if a.closed() {
		return a.opError("view", nil, 0, ErrClosed)
	}
	faults := a.faults()
	err := fn()
	if err == nil {
		err = a.faultSince(faults)
	}
	return err
}

// Close commits, writes the log to the file, removes the log, unlocks and
// closes the file. To discard changes, Rollback first. Closing twice is nil.
// If the commit fails the file is closed all the same and holds the commit
// before; the error says so. A fault of an iterator that no Err call has
// returned is returned here.
func (a *Arena) Close() error {
	if a.inUpdate() {
		return a.opError("close", nil, 0, ErrInUpdate)
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	if a.closed() {
		return nil
	}
	if a.lent.Load() != 0 {
		return a.opError("close", nil, 0, ErrLent)
	}
	err := errors.Join(a.dropHidden(), a.finish())
	close(a.quit)
	a.catMu.Lock()
	defer a.catMu.Unlock()
	all := append(a.registered(), a.catalog, a.meta)
	a.gate.closeAll(all)
	if a.space.shared {
		err = errors.Join(err, a.closeShared())
	}
	a.status.Or(statusClosed)
	for _, c := range all {
		if h := c.base(); h.state.CompareAndSwap(stateOpen, stateClosed) {
			h.epoch.Add(1)
		}
		if a.status.Load()&statusBroken == 0 {
			c.turnAway()
		}
	}
	err = errors.Join(err, a.release())
	a.gate.open()
	return a.opError("close", nil, 0, errors.Join(err, a.unseenFault()))
}

// finish brings the file into the clean state, if it can.
func (a *Arena) finish() error {
	if a.opts.ReadOnly || a.space.shared {
		return nil
	}
	if err := a.commit(false); err != nil {
		return fmt.Errorf("changes since the last commit are lost: %w", err)
	}
	a.io.Lock()
	defer a.io.Unlock()
	if err := a.failure(); err != nil {
		return err // of the commit's checkpoint; with NoSync the commit may be lost too
	}
	if a.header.state != headerLive {
		return nil
	}
	a.log.ahead.Wait()
	a.gate.close()
	defer a.gate.open()
	if a.log.seq > 0 {
		if err := a.applyOwnLog(); err != nil {
			return err
		}
	}
	if err := a.nextGeneration(headerClean, 0, cleanFirstRule); err != nil {
		return err
	}
	return a.afterCheckpoint()
}

// release gives memory, log and file back. The log goes only when the header
// no longer names it (R12).
func (a *Arena) release() error {
	a.io.Lock()
	defer a.io.Unlock()
	clean := (a.header.state == headerClean || a.header.state == headerRelaxed) && !a.opts.ReadOnly && a.failure() == nil
	mark := int64(a.header.mark) << pageShift
	size := a.space.fileSize
	err := a.space.close()
	if a.log != nil {
		err = errors.Join(err, a.log.close(clean || !keeps(removeLogRule)))
	}
	if clean && size > mark {
		err = errors.Join(err, a.file.Truncate(mark)) // rolled back or spilled in vain
	}
	return errors.Join(err, a.file.Close())
}

// Err returns the failure that stopped the arena, or else the first fault
// that an iterator of the arena met; nil if there was none.
func (a *Arena) Err() error {
	a.faultMu.Lock()
	defer a.faultMu.Unlock()
	a.faultSeen = true
	if err := a.failure(); err != nil {
		return &Error{Op: "err", Path: a.path, Err: err}
	}
	return a.firstFault
}

// Stats returns figures of the open arena. The cost is in proportion to the
// chunks of 64 MiB in use.
func (a *Arena) Stats() Stats {
	a.io.Lock()
	defer a.io.Unlock()
	if a.closed() {
		return Stats{}
	}
	_, free := a.alloc.usage()
	s := Stats{
		Mapped: a.space.mapped(), Private: a.space.private.Load(), Fresh: max(0, a.space.fresh.Load()),
		Free: free << pageShift, Heap: a.space.heap(), Spilled: a.space.spilled.Load(),
		Commits: a.stats.commits.Load(), OwnCommits: a.stats.ownCommits.Load(), Checkpoints: a.stats.checkpoints.Load(),
		Resident: a.space.resident(),
	}
	a.space.mu.Lock()
	s.File = a.space.fileSize
	a.space.mu.Unlock()
	if a.header.state == headerLive {
		s.Log = a.log.size()
	}
	return s
}

// admit lets a change begin that may add cost bytes of private memory, and
// makes room for it if need be (R11). The caller holds no lock.
func (a *Arena) admit(cost int64) error {
	if a.admits(cost) {
		return nil
	}
	return a.admitSlow(cost)
}

// admits says that admit would let the change begin at once.
func (a *Arena) admits(cost int64) bool {
	return a.status.Load() == 0 && a.space.private.Load()+cost <= a.limit && cost <= reserveSize
}

func (a *Arena) admitSlow(cost int64) error {
	if err := a.writable(); err != nil {
		return err
	}
	room := a.room(cost)
	if fresh := a.space.fresh.Load(); room != nil && (fresh > a.limit/4 || fresh > 0 && errors.Is(room, ErrFull)) {
		if err := a.spillFresh(); err != nil {
			return err
		}
		room = a.room(cost)
	}
	for ; room != nil; room = a.room(cost) {
		if a.opts.NoAutoCommit || a.updater.Load() != 0 {
			if err := a.checkpoint(); err != nil {
				return err
			}
			return a.room(cost)
		}
		if a.turn.TryLock() {
			err := a.ownCommit()
			a.turn.Unlock()
			if err != nil {
				return err
			}
			if room = a.room(cost); errors.Is(room, ErrUpdateTooLarge) {
				return nil // by this change alone
			}
			return room
		}
		// Somebody commits, or an Update has begun: look again.
		time.Sleep(50 * time.Microsecond)
	}
	return nil
}

// room says whether a change may add cost bytes of private memory: ErrUpdateTooLarge,
// unless a commit or checkpoint comes first, or ErrFull.
func (a *Arena) room(cost int64) error {
	if a.status.Load()&statusShort != 0 {
		if err := a.space.renewReserve(); err != nil {
			return err
		}
	}
	if cost > reserveSize {
		if err := a.space.spare(cost); err != nil {
			return err
		}
	}
	if private := a.space.private.Load(); private+cost > a.limit {
		return fmt.Errorf("%w: %d bytes are private, the change may need %d, the limit is %d",
			ErrUpdateTooLarge, private, cost, a.limit)
	}
	return nil
}

// ownCommit commits and checkpoints because memory is short. The caller holds turn.
func (a *Arena) ownCommit() error {
	if err := a.writable(); err != nil {
		return err
	}
	if err := a.commit(true); err != nil {
		return err
	}
	return a.checkpoint()
}

// spillFresh writes half of the limit of fresh pages to the file.
func (a *Arena) spillFresh() error {
	a.gate.close()
	defer a.gate.open()
	end, _ := a.alloc.usage()
	return a.spillError(a.space.spillSome(end, a.limit/2))
}

// spill writes the pages of a run of fresh space, which only the caller uses,
// to the file and gives their memory back. The caller has the gate open.
func (a *Arena) spill(p pageNo, n uint32) error {
	return a.spillError(a.space.spillRange(uint64(p), uint64(n)))
}

// writeThrough is spill for pages that are written nowhere but in the file, with
// the bytes b. The caller has the gate open.
func (a *Arena) writeThrough(p pageNo, b []byte) error {
	return a.spillError(a.space.writeThrough(p, b))
}

func (a *Arena) spillError(err error) error {
	if err == nil || isFull(err) {
		return asFull(err)
	}
	return a.fail(err)
}

// commitRegularly is the goroutine behind Options.CommitEvery.
func (a *Arena) commitRegularly() {
	tick := time.NewTicker(a.opts.CommitEvery)
	defer tick.Stop()
	for {
		select {
		case <-a.quit:
			return
		case <-tick.C:
		}
		if !a.turn.TryLock() {
			continue // an Update, or a commit anyway
		}
		if !a.closed() {
			if err := a.commit(true); err != nil {
				a.logger().Warn("own commit failed", "path", a.path, "err", err)
			}
		}
		a.turn.Unlock()
	}
}

func (a *Arena) closed() bool { return a.status.Load()&statusClosed != 0 }

// writable returns why nothing may be changed, if so.
func (a *Arena) writable() error {
	switch s := a.status.Load(); {
	case s&statusClosed != 0:
		return ErrClosed
	case s&statusReadOnly != 0:
		return ErrReadOnly
	case s&statusFailed != 0:
		return a.failure()
	}
	return nil
}

// inUpdate says whether the caller is the goroutine whose Update runs.
func (a *Arena) inUpdate() bool {
	id := a.updater.Load()
	return id != 0 && id == goroutineID()
}

// goroutineID returns the number that panics print for this goroutine. There
// is no cheaper way; it costs about a microsecond, where a commit follows anyway.
func goroutineID() int64 {
	var b [64]byte
	text := string(b[:runtime.Stack(b[:], false)])
	text = strings.TrimPrefix(text, "goroutine ")
	id, err := strconv.ParseInt(text[:strings.IndexByte(text, ' ')], 10, 64)
	if err != nil {
		panic("emd: no goroutine number in " + text)
	}
	return id
}

// opError gives an error its place, and lets a running Update know.
func (a *Arena) opError(op string, h *handle, off int64, err error) error {
	if err == nil {
		return nil
	}
	err = a.placed(op, h, off, err)
	// Another goroutine that uses what is dropped or closed changes nothing, nor does one that a Rollback before the Update
	// has overtaken.
	harmless := errors.Is(err, ErrClosed) || errors.Is(err, ErrRolledBack)
	if a.updater.Load() != 0 && (!harmless || a.inUpdate()) {
		a.updateErr.CompareAndSwap(nil, &err)
	}
	return err
}

// placed gives an error its place. One that has a place already keeps it.
func (a *Arena) placed(op string, h *handle, off int64, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	if off == 0 {
		off = offsetOf(err)
	}
	e = &Error{Op: op, Path: a.path, Offset: off, Err: err}
	if h != nil {
		e.Container = h.name
	}
	return e
}

// fault keeps what ended an iterator early: in its container, in the arena,
// and for the calls that enclose it.
func (a *Arena) fault(h *handle, op string, off int64, err error) {
	err = a.opError(op, h, off, err)
	h.err.CompareAndSwap(nil, &err)
	if errors.Is(err, ErrClosed) {
		return // the end of the container is no fault of the data
	}
	a.faultMu.Lock()
	defer a.faultMu.Unlock()
	a.faultCount++
	a.lastFault = err
	if a.firstFault == nil {
		a.firstFault = err
	}
}

// faults numbers the faults so far, for faultSince.
func (a *Arena) faults() uint64 {
	a.faultMu.Lock()
	defer a.faultMu.Unlock()
	return a.faultCount
}

// faultSince returns a fault met after faults returned n.
func (a *Arena) faultSince(n uint64) error {
	a.faultMu.Lock()
	defer a.faultMu.Unlock()
	if a.faultCount == n {
		return nil
	}
	return a.lastFault
}

func (a *Arena) unseenFault() error {
	a.faultMu.Lock()
	defer a.faultMu.Unlock()
	if a.faultSeen {
		return nil
	}
	a.faultSeen = true
	return a.firstFault
}

// check returns why a container cannot be read, if so.
func (a *Arena) check(h *handle) error {
	switch {
	case h.state.Load() != stateOpen || a.closed():
		return ErrClosed
	case a.status.Load()&statusBroken != 0:
		return a.failure()
	}
	return nil
}

func (a *Arena) logger() *slog.Logger {
	if a.opts.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return a.opts.Logger
}
