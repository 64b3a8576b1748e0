package emd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The memory tests: a child in a control group of 64 MiB writes ten times as much, with the default Options. It may meet errors, never the OOM killer.

const (
	groupMemory  = 64 << 20
	memoryBlocks = 10 * groupMemory / (8 * len(memoryBlock{}))
)

type memoryBlock [1024]uint64

var _ = addChild("memory", childMemory)

// addChild adds a program that only some systems have to children, before init looks there.
func addChild(name string, program func(args []string)) bool {
	children[name] = program
	return true
}

// TestMemoryLimit runs childMemory in a control group.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	for _, work := range []string{"fresh", "scattered", "update", "long"} {
		t.Run(work, func(t *testing.T) {
			group := memoryGroup(t)
			path := filepath.Join(tempDir(t), "memory.emd")
			c := child(t, "memory", path, work)
			t.Cleanup(func() { c.cmd.Process.Kill() })
			require.NoError(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(c.cmd.Process.Pid)), 0))
			_, err := c.in.Write([]byte("go\n"))
			require.NoError(t, err)
			said, err := c.rest()
			require.NoError(t, err, "%q %s", said, c.errs)
			require.NotEmpty(t, said)
			t.Log(said)
			assert.Contains(t, said, fmt.Sprint("limit ", groupMemory/2), "the default DirtyLimit follows the group")
			assert.Equal(t, "closed", said[len(said)-1])

			a, err := Open(path, nil)
			require.NoError(t, err)
			require.NoError(t, a.verify())
			checkMemory(t, a, work)
			require.NoError(t, a.Close())
		})
	}
}

// memoryGroup makes a control group with groupMemory bytes and no swap.
func memoryGroup(t *testing.T) string {
	if os.Getuid() != 0 {
		unavailable(t, "it takes root to make a control group")
	}
	root, limit := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		root, limit = "/sys/fs/cgroup", "memory.max"
	}
	group, err := os.MkdirTemp(root, "emd-test-")
	if err != nil {
		unavailable(t, "no control group: %v", err)
	}
	t.Cleanup(func() {
		for err = os.Remove(group); errors.Is(err, os.ErrExist); err = os.Remove(group) {
			time.Sleep(time.Millisecond) // the dead leave it a little later
		}
		for try := 0; err != nil && try < 1000; try++ {
			time.Sleep(time.Millisecond)
			err = os.Remove(group)
		}
		assert.NoError(t, err)
	})
	if err := os.WriteFile(filepath.Join(group, limit), []byte(fmt.Sprint(groupMemory)), 0); err != nil {
		unavailable(t, "no memory controller: %v", err)
	}
	_ = os.WriteFile(filepath.Join(group, "memory.swap.max"), []byte("0"), 0)
	return group
}

// childMemory writes memoryBlocks blocks when its parent has put it into the group.
func childMemory(args []string) {
	var b [1]byte
	_, err := os.Stdin.Read(b[:])
	must(err)
	a, err := Open(args[0], nil)
	must(err)
	say("limit %d", a.limit)
	l, err := List[memoryBlock](a, "blocks", nil)
	must(err)
	d, err := Dict[uint64, []byte](a, "long", nil)
	must(err)
	fill := func(n int) {
		for i := range n {
			must(l.Append(memoryBlock{uint64(i), 1023: uint64(i)}))
		}
	}
	switch args[1] {
	case "fresh":
		fill(memoryBlocks)
	case "scattered":
		fill(memoryBlocks / 4)
		must(a.Sync())
		r := rand.New(rand.NewPCG(1, 2))
		for range memoryBlocks * 3 / 4 {
			i := r.IntN(l.Len())
			must(l.Set(i, memoryBlock{uint64(i), 1: 7, 1023: uint64(i)}))
		}
		must(a.Sync())
	case "update":
		fill(memoryBlocks)
		must(a.Sync())
		err := a.Update(func() error {
			for i := range l.Len() {
				if err := l.Set(i, memoryBlock{1 << 40}); err != nil {
					return err
				}
			}
			return nil
		})
		if !errors.Is(err, ErrUpdateTooLarge) {
			must(fmt.Errorf("an Update of everything: %w", err))
		}
		say("too large")
	case "long":
		// Values of this size are garbage of the Go heap, which the group limits too: the collector must know.
		debug.SetMemoryLimit(16 << 20)
		for i := range uint64(640) {
			must(d.Set(i%160, longRecord(i)))
		}
		must(a.Sync())
	}
	s := a.Stats()
	say("private %d own commits %d checkpoints %d spilled %d", s.Private, s.OwnCommits, s.Checkpoints, s.Spilled)
	must(a.Close())
	say("closed")
}

func longRecord(i uint64) []byte { return []byte(strings.Repeat(fmt.Sprintf("%8d", i), 128<<10)) }

// checkMemory checks what childMemory wrote.
func checkMemory(t *testing.T, a *Arena, work string) {
	l, err := List[memoryBlock](a, "blocks", nil)
	require.NoError(t, err)
	d, err := Dict[uint64, []byte](a, "long", nil)
	require.NoError(t, err)
	for i, v := range l.All() {
		if v[0] != uint64(i) || v[1023] != uint64(i) || v[1] != 0 && work != "scattered" {
			require.Fail(t, "a wrong block", "%d holds %d, %d, %d", i, v[0], v[1], v[1023])
		}
	}
	for k, v := range d.All() {
		require.True(t, string(v) == string(longRecord(k+480)), "record %d", k)
	}
	require.NoError(t, a.Err())
	switch work {
	case "fresh", "update":
		assert.Equal(t, memoryBlocks, l.Len())
	case "scattered":
		assert.Equal(t, memoryBlocks/4, l.Len())
	case "long":
		assert.Equal(t, 160, d.Len())
	}
}
