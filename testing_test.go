package emd

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMain switches memory profiles off unless one is asked for: values nested
// in random ways allocate from so many different stacks that the collector,
// which looks at each of them, would take most of the time.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.memprofile").Value.String() == "" {
		runtime.MemProfileRate = 0
	}
	os.Exit(m.Run())
}

// tempDir is t.TempDir where that can clean up after itself, and does the same
// where it cannot: os.RemoveAll fails under Wine 8, which lacks a way to delete
// that Go takes for granted, os.Remove does not.
func tempDir(t testing.TB) string {
	if removesAll() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("", "emd")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, removeAll(dir)) })
	return dir
}

var removesAll = sync.OnceValue(func() bool {
	if runtime.GOOS != "windows" {
		return true
	}
	dir, err := os.MkdirTemp("", "emd")
	if err != nil || os.WriteFile(filepath.Join(dir, "probe"), nil, 0o600) != nil {
		return true // t.TempDir will tell what is wrong
	}
	return os.RemoveAll(dir) == nil || removeAll(dir) != nil
})

// removeAll removes dir and what is in it, the folders last.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = errors.Join(err, removeAll(name))
		} else {
			err = errors.Join(err, os.Remove(name))
		}
	}
	return errors.Join(err, os.Remove(dir))
}

// testOptions choose how a test arena is made. The zero value is mapped
// memory with the default limits; under the race detector it is heap memory,
// which the detector sees.
type testOptions struct {
	internalOptions
	opts Options
}

// tiny are limits that make every path run: checkpoints, own commits, spills,
// chunks that end.
func tiny() testOptions {
	return testOptions{internalOptions: internalOptions{
		chunkSize: minChunkSize, far: true, dirtyLimit: 512 << 10, logLimit: 64 << 10,
	}}
}

// relaxed makes a relaxed arena of chunks that are soon full.
func relaxed() testOptions {
	o := tiny()
	o.opts.Relaxed = true
	return o
}

// testArena returns an arena in a file of its own, which is closed, and must
// be consistent, when the test ends.
func testArena(t testing.TB, o testOptions) *Arena {
	t.Helper()
	return reopen(t, filepath.Join(tempDir(t), "test.emd"), o)
}

// reopen is testArena for a file of the test's own.
func reopen(t testing.TB, path string, o testOptions) *Arena {
	t.Helper()
	o.heap = o.heap || raceEnabled
	a, err := openWith(path, &o.opts, o.internalOptions)
	require.NoError(t, err)
	t.Cleanup(func() {
		if !a.closed() {
			require.NoError(t, a.verify())
		}
		require.NoError(t, a.Close())
	})
	return a
}

// verifyMemory compares every page that has no changed line with the file and
// the log: a difference is a store that nobody marked.
func (a *Arena) verifyMemory() error {
	if a.space.shared {
		return nil // memory is the file
	}
	a.io.Lock()
	defer a.io.Unlock()
	a.gate.close()
	defer a.gate.open()
	lines := map[pageNo]*page{}
	if a.header.state == headerLive && a.log.f != nil {
		recs, err := a.log.records(a.header.id)
		if err != nil {
			return err
		}
		for i := range recs {
			err := recs[i].eachEntry(a.log.f, func(e entry) error {
				b, err := a.filePage(lines[e.page], e.page)
				if err != nil {
					return err
				}
				lines[e.page] = b
				e.overlay(b)
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	end, _ := a.alloc.usage()
	for p := pageNo(slotPages); uint64(p) < end; p++ {
		if isSums(p) {
			continue
		}
		want, err := a.filePage(lines[p], p)
		if err != nil {
			return err
		}
		word := *a.space.dirtyWord(p)
		have := a.space.page(p)
		for l := 0; l < 64; l++ {
			if word>>l&1 == 0 && !bytes.Equal(have[l*lineSize:][:lineSize], want[l*lineSize:][:lineSize]) {
				return corruptAt(uint64(p)<<pageShift+uint64(l*lineSize), "page %d line %d changed without a mark", p, l)
			}
		}
	}
	return nil
}

func (a *Arena) filePage(have *page, p pageNo) (*page, error) {
	if have != nil {
		return have, nil
	}
	b := new(page)
	if _, err := a.file.ReadAt(b[:], int64(p)<<pageShift); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}
