package emd

import (
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

// optimistic says that readers validate what they read by a version instead
// of locking. Under the race detector, which cannot know about validation,
// they lock.
const optimistic = !raceEnabled

// A version lets readers notice writers (sequence locks: Lameter, Effective
// Synchronization on Linux/NUMA Systems, 2005; Boehm, Can Seqlocks Get Along
// With Programming Language Memory Models?, 2012).
//
// It is odd while the writer, who holds the lock of what the version stands
// for, changes memory. A reader loads it, reads, and loads it again: what it
// read is consistent if both were the same even number. In between it may
// have read anything, so it follows no number before it has checked it, and
// reads mapped memory only, which stays readable for ever.
//
// Why this is right on a machine that reorders: the reader's first load is an
// acquire, so its reads come after it; readFence keeps them before the second
// load. The writer's begin is a sequentially consistent read-modify-write
// followed by writeFence, so a reader that sees any later store also sees the
// odd number; its end is a release. Reads are by plain loads of mapped
// memory, whose values are used only after validation.
type version struct{ n atomic.Uint64 }

// begin makes readers fail their validation until end. The caller holds the
// lock.
func (v *version) begin() {
	v.n.Add(1)
	writeFence()
}

func (v *version) end() { v.n.Add(1) }

// beginShort and endShort are begin and end for changes of less than a
// megabyte. amd64 keeps stores in order, so there a plain one does, which does
// not wait for those before it as an atomic instruction would; but the copying
// of more may stream past it.
func (v *version) beginShort() {
	if !wholeWords || raceEnabled {
		v.begin()
		return
	}
	storePlain(&v.n, v.n.Load()+1)
}

func (v *version) endShort() {
	if !wholeWords || raceEnabled {
		v.end()
		return
	}
	storePlain(&v.n, v.n.Load()+1)
}

// step makes loops notice what has changed at once, where readers need not.
func (v *version) step() {
	if !wholeWords || raceEnabled {
		v.n.Add(2)
		return
	}
	addPlain(&v.n, 2)
}

// storePlain is n.Store for the only goroutine that stores, who does not wait
// until others see it. That the compiler neither moves nor drops a store before
// or behind it, it is not inlined.
//
//go:noinline
func storePlain(n *atomic.Uint64, v uint64) { *(*uint64)(unsafe.Pointer(n)) = v }

// addPlain is n.Add for the only goroutine that stores, as storePlain is n.Store. It
// is inlined: the compiler keeps stores in order, and would drop only one that
// another to the same place follows.
func addPlain(n *atomic.Uint64, by uint64) { *(*uint64)(unsafe.Pointer(n)) += by }

// load is n.Load(), for which the compiler would leave a NOP: it wants an
// instruction for the place of each inlined call, and lookups are so short that
// each counts.
func (v *version) load() uint64 { return atomic.LoadUint64((*uint64)(unsafe.Pointer(&v.n))) }

// undisturbed says that what was read since the version was s, an even number,
// was not changing.
func (v *version) undisturbed(s uint64) bool {
	readFence()
	return v.load() == s
}

// changing says whether readers are turned away.
func (v *version) changing() bool { return v.n.Load()&1 != 0 }

// A writerLock orders the writers of a container or of a part of it. Whoever
// holds one whose container is active also keeps the gate open.
//
// Callbacks of the user run while a range of hashes (or indexes) is busy
// rather than while the lock is held, so that they may use other containers,
// in both directions, without a deadlock between unrelated keys. A writer
// that finds its key in a busy range waits.
type writerLock struct {
	mu   mutex
	busy []busyRange // guarded by mu; nearly always empty
	idle *sync.Cond  // signalled when a range leaves busy; nil until somebody waited for that
}

// A busyRange is the closed interval of hashes that a callback works on.
type busyRange struct {
	lo, hi uint64
	by     *claim // nil: a callback on a single element or bucket
}

// A claim keeps all writers away from a container while callbacks work on the
// whole of it, which may take hours and ends with waiting for the arena's turn.
// A writer inside an Update has that turn: so the claim yields to it, counts no
// more, and whoever has it must give up. The others wait.
type claim struct {
	a       *Arena
	yielded atomic.Bool
}

// lockRange takes the lock once nothing in [lo, hi] is busy.
func (l *writerLock) lockRange(lo, hi uint64) {
	l.mu.Lock()
	for l.isBusy(lo, hi) {
		l.wait()
	}
}

// lockKey takes the lock once h is not busy.
func (l *writerLock) lockKey(h uint64) {
	l.mu.Lock()
	if len(l.busy) != 0 {
		l.waitKey(h)
	}
}

func (l *writerLock) waitKey(h uint64) {
	for l.isBusy(h, h) {
		l.wait()
	}
}

// wait waits, if need be, for a range to leave busy. The caller holds the
// lock, and looks again.
func (l *writerLock) wait() {
	for _, b := range l.busy {
		if b.by != nil && !b.by.yielded.Load() && b.by.a.inUpdate() {
			b.by.yielded.Store(true)
			return // nothing else is busy where a claim was made
		}
	}
	if l.idle == nil {
		l.idle = sync.NewCond(&l.mu)
	}
	l.idle.Wait()
}

// setBusy makes [lo, hi] busy. The caller holds the lock, and nothing in the
// range is busy.
func (l *writerLock) setBusy(lo, hi uint64, by *claim) {
	l.busy = append(l.busy, busyRange{lo, hi, by})
}

// clearBusyKey is clearBusy of a callback's single hash, which nearly always is all
// that is busy.
func (l *writerLock) clearBusyKey(h uint64) {
	if len(l.busy) == 1 && l.idle == nil {
		l.busy = l.busy[:0]
	} else {
		l.clearBusy(h, h, nil)
	}
}

// clearBusy takes [lo, hi] out again, which may have come to be several ranges.
// The caller holds the lock.
func (l *writerLock) clearBusy(lo, hi uint64, by *claim) {
	l.busy = slices.DeleteFunc(l.busy, func(b busyRange) bool { return lo <= b.lo && b.hi <= hi && b.by == by })
	l.wake()
}

// wake has those who wait look again.
func (l *writerLock) wake() {
	if l.idle != nil {
		l.idle.Broadcast()
	}
}

func (l *writerLock) isBusy(lo, hi uint64) bool {
	for _, b := range l.busy {
		if b.lo <= hi && lo <= b.hi && (b.by == nil || !b.by.yielded.Load()) {
			return true
		}
	}
	return false
}

// A gate keeps changes of memory out while a commit captures what has
// changed.
//
// Changes of elements do not pass a lock of its own, which would cost them
// two more atomic instructions: the writer locks of their containers are the
// gate's. A container whose elements change is active, and close takes its
// writer locks. A writer that finds its container not active, as it is when a
// capture has found all its changes, lets go and enters first. So a commit
// takes the locks only of containers that have changed since the last.
//
// Rare changes (creating, dropping, fanning out) enter and exit around the
// locks they take.
type gate struct {
	mu       sync.RWMutex // shared by who has entered, exclusive while closed
	activeMu sync.Mutex
	active   []container // guarded by activeMu among those who have entered
}

// enter begins a rare change. The caller holds no writer lock.
func (g *gate) enter() { g.mu.RLock() }

func (g *gate) exit() { g.mu.RUnlock() }

// include makes c active. The caller holds no writer lock.
func (g *gate) include(c container) {
	g.enter()
	defer g.exit()
	g.activate(c)
}

// activate makes c active. The caller has entered.
func (g *gate) activate(c container) {
	g.activeMu.Lock()
	defer g.activeMu.Unlock()
	if h := c.base(); !h.active.Load() {
		g.active = append(g.active, c)
		h.active.Store(true)
	}
}

// close waits until nobody changes anything and keeps everybody out.
func (g *gate) close() {
	g.mu.Lock()
	for _, c := range g.active {
		c.lock()
	}
}

// closeAll is close with the writer locks of all the given containers.
func (g *gate) closeAll(all []container) {
	g.mu.Lock()
	for _, c := range all {
		g.activate(c)
	}
	for _, c := range g.active {
		c.lock()
	}
}

func (g *gate) open() {
	for _, c := range g.active {
		c.unlock()
	}
	g.mu.Unlock()
}

// openIdle opens a gate behind which no container has changes that a capture
// has not seen.
func (g *gate) openIdle() {
	for _, c := range g.active {
		c.base().active.Store(false)
		c.unlock()
	}
	clear(g.active)
	g.active = g.active[:0]
	g.mu.Unlock()
}
