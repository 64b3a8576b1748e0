package emd

import (
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestLogLostOnce lets the sync of the writer of zeros fail, as it does when
// the kernel could not write what a commit had put into the log: the kernel tells
// the open file once, so the commit must hear of it from us, and go on hearing of it.
func TestLogLostOnce(t *testing.T) {
	for name, cause := range map[string]error{"EIO": syscall.EIO, "ENOSPC": fullErrors[0]} {
		t.Run(name, func(t *testing.T) {
			disk := newSimDisk()
			l := &redoLog{fs: disk, path: "/log", inline: true}
			require.NoError(t, l.create(1))
			require.NoError(t, l.begin(1, logHeader))
			require.NoError(t, l.write(make([]byte, pageSize), 0))
			l.accept(pageSize)
			var once sync.Once
			disk.before = func(_ int, op string) (err error) {
				if strings.HasPrefix(op, "sync") {
					once.Do(func() { err = cause })
				}
				return err
			}
			require.ErrorIs(t, l.zeroAhead(), cause)
			require.ErrorIs(t, l.sync(), cause)
			require.ErrorIs(t, l.sync(), cause)
			require.Zero(t, l.durable)
			l.accept(zeroStep) // so that zeros are to be written again
			l.writeAhead()     // meets it too
			err := l.write(make([]byte, pageSize), 0)
			require.ErrorIs(t, err, cause)
			require.False(t, onlyFull(err), "a lost sync is not a full disk")
		})
	}
}

// TestWriteSizes looks at the calls that write fresh pages, a record of many changes, and a checkpoint of these: none
// is so large that later ones in the same place would be slow, and a checkpoint writes neighbours at once.
func TestWriteSizes(t *testing.T) {
	spy := newSpyFS()
	calls, largest := map[string]int{}, map[string]int64{}
	spy.wrote = func(path string, off, n int64) {
		kind, step := "data", int64(freshStep)
		if strings.HasSuffix(path, "-log") {
			kind, step = "log", logStep
		}
		calls[kind]++
		largest[kind] = max(largest[kind], n)
		assert.LessOrEqual(t, n, step, "at %d of the %s", off, kind)
	}
	path := filepath.Join(tempDir(t), "w.emd")
	a, err := openWith(path, &Options{HashSeed: 1}, internalOptions{fs: spy, inline: true})
	require.NoError(t, err)
	d, err := Dict[uint64, uint64](a, "d", nil)
	require.NoError(t, err)
	set := func(n, every int, add uint64) {
		for i := 0; i < n; i += every {
			k, v := uint64Pair(i)
			require.NoError(t, d.Set(k, v+add))
		}
		require.NoError(t, a.Sync())
	}
	const n = 300_000 // in 2,000 pages
	set(n, 1, 0)
	assert.EqualValues(t, freshStep, largest["data"])
	clear(largest)
	set(n, 2, 1)
	assert.EqualValues(t, logStep, largest["log"])
	clear(calls)
	require.NoError(t, a.Close())
	assert.Less(t, calls["data"], 200, "writes of a checkpoint")

	a, err = Open(path, &Options{ReadOnly: true})
	require.NoError(t, err)
	d, err = Dict[uint64, uint64](a, "d", nil)
	require.NoError(t, err)
	for i := range n {
		k, v := uint64Pair(i)
		got, ok, err := d.Get(k)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, v+uint64(1-i%2), got)
	}
	require.NoError(t, a.Check(t.Context(), nil))
	require.NoError(t, a.Close())
}
