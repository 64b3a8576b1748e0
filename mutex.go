package emd

import (
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"
)

// A mutex is a lock for what is nearly always free when somebody comes, and
// held for the time of a few loads and stores: that of a container's elements.
//
// Unlocking is a store, which on amd64 need not be atomic: stores become
// visible in order there, and the compiler keeps a function's stores in order. A
// sync.Mutex learns of those who wait by a second atomic instruction, which would
// be a fifth of a Set or Append. So nobody is woken: those who wait look again, at
// once, then when others have run, then after a sleep that grows to a
// millisecond. A capture may hold the lock so long.
type mutex struct{ held atomic.Uint64 }

func (m *mutex) Lock() {
	if !m.held.CompareAndSwap(0, 1) {
		m.await()
	}
}

func (m *mutex) TryLock() bool { return m.held.CompareAndSwap(0, 1) }

func (m *mutex) Unlock() {
	switch {
	case raceEnabled:
		if m.held.Swap(0) == 0 {
			panic("emd: unlock of unlocked mutex")
		}
	case wholeWords:
		*(*uint64)(unsafe.Pointer(&m.held)) = 0
	default:
		m.held.Store(0)
	}
}

const (
	lockSpins  = 100 // looks: about as long as a change of an element takes
	lockYields = 10
)

func (m *mutex) await() {
	spins := lockSpins
	if runtime.NumCPU() == 1 {
		spins = 1
	}
	pause := 10 * time.Microsecond
	for round := 0; ; round++ {
		for range spins {
			if m.held.Load() == 0 && m.held.CompareAndSwap(0, 1) {
				return
			}
		}
		if round < lockYields {
			runtime.Gosched()
			continue
		}
		time.Sleep(pause)
		pause = min(2*pause, time.Millisecond)
	}
}
