package emd

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
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

// TestChangesRead reads a log as checkpoints do: changes of one record as they lie there, those of many in any order. The
// bytes are right, and few more are read than needed, in few calls where they follow each other.
func TestChangesRead(t *testing.T) {
	const size = 1 << 20
	r := rand.New(rand.NewPCG(1, 1))
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(r.Uint32())
	}
	spy := newSpyFS()
	f, err := spy.Open(filepath.Join(tempDir(t), "log"), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(content, 0)
	require.NoError(t, err)

	var offs []int64
	for at := int64(entryHeader); at+lineSize <= size; at += lineSize + entryHeader {
		offs = append(offs, at)
	}
	needed := int64(len(offs) * lineSize)
	read := func() (calls, n int64) {
		calls, n = spy.reads.Load(), spy.readBytes.Load()
		c := &changes{log: f}
		for _, at := range offs {
			b, err := c.read(at, lineSize)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content[at:][:lineSize], b), "at %d", at)
		}
		return spy.reads.Load() - calls, spy.readBytes.Load() - n
	}
	calls, n := read()
	assert.Less(t, calls, int64(2*size/changesWindow))
	assert.Less(t, n, needed*3/2)
	r.Shuffle(len(offs), func(i, j int) { offs[i], offs[j] = offs[j], offs[i] })
	_, n = read()
	assert.Less(t, n, needed*3)

	c := &changes{log: f}
	for range 10_000 { // in every other order, of every size, up to the end
		n := 1 + r.IntN(pageSize)
		at := int64(r.IntN(size - n + 1))
		if r.IntN(2) == 0 {
			at = min(c.at+int64(r.IntN(2*changesWindow)), size-int64(n))
		}
		b, err := c.read(at, n)
		require.NoError(t, err)
		require.True(t, bytes.Equal(content[at:][:n], b), "%d bytes at %d", n, at)
	}
	_, err = c.read(size-1, 2)
	assert.ErrorIs(t, err, io.EOF)
}
