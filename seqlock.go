package emd

import (
	"sync"
	"sync/atomic"
)

// optimistic says that readers validate what they read by a sequence counter
// instead of locking. Under the race detector, which cannot know about
// validation, they lock.
const optimistic = !raceEnabled

// A seqlock orders the writers of one stripe of a container and lets readers
// notice them (Lameter, Effective Synchronization on Linux/NUMA Systems, 2005;
// Boehm, Can Seqlocks Get Along With Programming Language Memory Models?, 2012).
//
// Writers hold the lock and make the counter odd while they change memory.
// A reader loads the counter, reads, and loads the counter again: what it
// read is consistent if both were the same even number. In between it may
// have read anything, so it follows no number before it has checked it, and
// reads mapped memory only, which stays readable for ever.
//
// Why this is right on a machine that reorders: the reader's first load is an
// acquire, so its reads come after it; readFence keeps them before the second
// load. The writer's begin is a sequentially consistent read-modify-write
// followed by writeFence, so a reader that sees any later store also sees the
// odd counter; its end is a release. Reads are by plain loads of mapped
// memory, whose values are used only after validation.
//
// Callbacks of the user run while a range of hashes (or indexes) is busy
// rather than while the lock is held, so that they may use other containers,
// in both directions, without a deadlock between unrelated keys. A writer
// that finds its key in a busy range waits.
type seqlock struct {
	seq  atomic.Uint64
	mu   sync.Mutex
	busy []busyRange // guarded by mu; nearly always empty
	idle *sync.Cond  // signalled when a range leaves busy; made at first use
}

// A busyRange is the closed interval of hashes that a callback works on.
type busyRange struct{ lo, hi uint64 }

// lockRange takes the writer lock once nothing in [lo, hi] is busy.
func (l *seqlock) lockRange(lo, hi uint64) {
	l.mu.Lock()
	for l.isBusy(lo, hi) {
		l.idle.Wait()
	}
}

// lockKey takes the writer lock once h is not busy.
func (l *seqlock) lockKey(h uint64) {
	l.mu.Lock()
	if len(l.busy) != 0 {
		l.waitKey(h)
	}
}

func (l *seqlock) waitKey(h uint64) {
	for l.isBusy(h, h) {
		l.idle.Wait()
	}
}

func (l *seqlock) unlock() { l.mu.Unlock() }

// setBusy makes [lo, hi] busy. The caller holds the lock, and nothing in the
// range is busy.
func (l *seqlock) setBusy(lo, hi uint64) {
	if l.idle == nil {
		l.idle = sync.NewCond(&l.mu)
	}
	l.busy = append(l.busy, busyRange{lo, hi})
}

// clearBusy takes [lo, hi] out again. The caller holds the lock.
func (l *seqlock) clearBusy(lo, hi uint64) {
	for i, b := range l.busy {
		if b == (busyRange{lo, hi}) {
			last := len(l.busy) - 1
			l.busy[i] = l.busy[last]
			l.busy = l.busy[:last]
			break
		}
	}
	l.idle.Broadcast()
}

func (l *seqlock) isBusy(lo, hi uint64) bool {
	for _, b := range l.busy {
		if b.lo <= hi && lo <= b.hi {
			return true
		}
	}
	return false
}

// begin makes readers fail their validation until end. The caller holds the
// lock and is inside the gate.
func (l *seqlock) begin() {
	l.seq.Add(1)
	writeFence()
}

func (l *seqlock) end() { l.seq.Add(1) }

// A gate lets operations through while no commit captures, and nobody else
// while one does. It is a readers-writer lock split into shards, so that
// operations on different processors do not meet in one cache line.
type gate struct {
	shards [gateShards]struct {
		sync.RWMutex
		_ [64 - 24]byte // a cache line each (an RWMutex has 24 bytes)
	}
}

const gateShards = 8

// enter begins a change of memory. Any number will do as the shard, as long
// as exit gets the same.
func (g *gate) enter(shard uint) { g.shards[shard%gateShards].RLock() }

func (g *gate) exit(shard uint) { g.shards[shard%gateShards].RUnlock() }

// close waits until nobody is inside and keeps everybody out.
func (g *gate) close() {
	for i := range g.shards {
		g.shards[i].Lock()
	}
}

func (g *gate) open() {
	for i := range g.shards {
		g.shards[i].Unlock()
	}
}
