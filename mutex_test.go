package emd

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMutex has goroutines change what a mutex guards, in plain memory.
func TestMutex(t *testing.T) {
	const goroutines = 8
	rounds := pick(0, 300_000, 100_000) // enough that they meet
	var (
		m      mutex
		wg     sync.WaitGroup
		n, two uint64
		tried  [goroutines]uint64
	)
	for g := range goroutines {
		wg.Go(func() {
			for i := range rounds {
				if i%4 == g%4 {
					if !m.TryLock() {
						continue
					}
				} else {
					m.Lock()
				}
				n = next(n)
				if i%256 == 0 { // others run while it is held
					runtime.Gosched()
				}
				for range 20 { // and come meanwhile
					two = next(two)
				}
				tried[g]++
				m.Unlock()
			}
		})
	}
	wg.Wait()
	sum := uint64(0)
	for _, x := range tried {
		sum += x
	}
	require.Equal(t, sum, n)
	require.Equal(t, 20*sum, two)
	require.GreaterOrEqual(t, n, uint64(goroutines*rounds*3/4))
	require.True(t, m.TryLock())
	require.False(t, m.TryLock())
	m.Unlock()
}

// next returns n+1, and is not inlined: so its caller loads, waits a little, and stores.
//
//go:noinline
func next(n uint64) uint64 { return n + 1 }

// TestMutexWaits holds a mutex for as long as others have time to look, yield and sleep.
func TestMutexWaits(t *testing.T) {
	var (
		m       mutex
		wg      sync.WaitGroup
		entered int
	)
	m.Lock()
	for range 4 {
		wg.Go(func() {
			m.Lock()
			defer m.Unlock()
			entered++
		})
	}
	time.Sleep(20 * time.Millisecond)
	require.Zero(t, entered)
	m.Unlock()
	wg.Wait()
	require.Equal(t, 4, entered)
}
