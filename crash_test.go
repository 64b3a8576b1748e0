package emd

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var crashScripts = flag.Int("emd.crash.scripts", 6, "random scripts of TestCrash; each explores a few thousand crash states")

// A crashWorld runs random operations on an arena on a simulated disk and
// remembers the content at each commit.
type crashWorld struct {
	t    *testing.T
	r    *rand.Rand
	disk *simDisk
	a    *Arena
	opts Options

	now          crashContent
	snaps        []crashContent // snaps[k] is the content after commit k
	acked, begun int

	states int
}

// A crashContent is what two containers and the metadata hold.
type crashContent struct {
	list []uint64
	dict map[string]string
	meta string
}

func (c crashContent) clone() crashContent {
	return crashContent{slices.Clone(c.list), maps.Clone(c.dict), c.meta}
}

func (c crashContent) equal(d crashContent) bool {
	return slices.Equal(c.list, d.list) && maps.Equal(c.dict, d.dict) && c.meta == d.meta
}

func (c crashContent) String() string {
	return fmt.Sprintf("list of %d, dict of %d, meta %q", len(c.list), len(c.dict), c.meta)
}

const crashPath = "/crash.emd"

func crashOptions(disk *simDisk) internalOptions {
	return internalOptions{fs: disk, heap: true, chunkSize: minChunkSize, dirtyLimit: 64 << 20, logLimit: 32 << 10, inline: true}
}

func newCrashWorld(t *testing.T, seed uint64, opts Options) *crashWorld {
	w := &crashWorld{t: t, r: rand.New(rand.NewPCG(seed, 1)), disk: newSimDisk(), opts: opts}
	w.opts.HashSeed = seed + 1
	w.now.dict = map[string]string{}
	w.snaps = []crashContent{w.now.clone()}
	w.reopen()
	return w
}

func (w *crashWorld) reopen() {
	a, err := openWith(crashPath, &w.opts, crashOptions(w.disk))
	require.NoError(w.t, err)
	w.a = a
}

func (w *crashWorld) containers() (*EMList[uint64], *EMDict[string, string]) {
	l, err := List[uint64](w.a, "list", nil)
	require.NoError(w.t, err)
	d, err := Dict[string, string](w.a, "dict", nil)
	require.NoError(w.t, err)
	return l, d
}

// commit runs fn, which commits what now holds.
func (w *crashWorld) commit(fn func() error) error {
	w.begun++
	w.snaps = append(w.snaps, w.now.clone())
	err := fn()
	if err == nil {
		w.acked = w.begun
	}
	return err
}

// step does one random thing to the arena and to the content.
func (w *crashWorld) step() error {
	l, d := w.containers()
	r := w.r
	key := func() string { return fmt.Sprint("key", r.IntN(300)) }
	switch n := r.IntN(100); {
	case n < 25:
		var v []uint64
		for range 1 + r.IntN(200) {
			v = append(v, r.Uint64())
		}
		w.now.list = append(w.now.list, v...)
		return l.Append(v...)
	case n < 35 && len(w.now.list) > 0:
		i, v := r.IntN(len(w.now.list)), r.Uint64()
		w.now.list[i] = v
		return l.Set(i, v)
	case n < 40 && len(w.now.list) > 0:
		i := r.IntN(len(w.now.list))
		j := min(len(w.now.list), i+r.IntN(600))
		w.now.list = slices.Delete(w.now.list, i, j)
		return l.Delete(i, j)
	case n < 65:
		for range 1 + r.IntN(20) {
			k, v := key(), strings.Repeat("v", r.IntN(1500))
			w.now.dict[k] = v
			if err := d.Set(k, v); err != nil {
				return err
			}
		}
	case n < 73:
		for range 1 + r.IntN(40) {
			k := key()
			delete(w.now.dict, k)
			if _, err := d.Delete(k); err != nil {
				return err
			}
		}
	case n < 75:
		w.now.dict = map[string]string{}
		return d.Clear()
	case n < 78:
		w.now.meta = fmt.Sprint(r.Uint32())
		return w.a.SetMeta("m", []byte(w.now.meta))
	case n < 92:
		return w.commit(w.a.Sync)
	case n < 96:
		w.now = w.snaps[w.begun].clone()
		return w.a.Rollback()
	case n < 98:
		return w.commit(func() error {
			if err := w.a.Close(); err != nil {
				return err
			}
			w.reopen()
			return nil
		})
	default:
		before := w.now.clone()
		errNo := errors.New("no")
		if err := w.commit(w.a.Sync); err != nil { // what Update does first
			return err
		}
		err := w.a.Update(func() error {
			if err := l.Append(1, 2, 3); err != nil {
				return err
			}
			if err := d.Set(key(), "lost"); err != nil {
				return err
			}
			return errNo
		})
		w.now = before
		if !errors.Is(err, errNo) {
			return fmt.Errorf("update: %w", err)
		}
	}
	return nil
}

// check opens what a crash left, and requires a commit between least and begun.
func (w *crashWorld) check(disk *simDisk, least int, what string) {
	w.states++
	opts := w.opts
	a, err := openWith(crashPath, &opts, crashOptions(disk))
	require.NoError(w.t, err, "%s; %s", what, disk.list())
	if w.states%4 == 0 {
		require.NoError(w.t, a.verify(), what)
	}
	got := contentOf(w.t, a)
	found := -1
	for k := w.begun; k >= least && found < 0; k-- {
		if w.snaps[k].equal(got) {
			found = k
		}
	}
	if found < 0 {
		for k := range w.snaps {
			if w.snaps[k].equal(got) {
				w.t.Logf("it is commit %d", k)
			}
		}
		require.Fail(w.t, "not a whole commit", "%s: got %v; acknowledged %d: %v, begun %d: %v", what, got,
			w.acked, w.snaps[w.acked], w.begun, w.snaps[w.begun])
	}
	if w.states%8 == 0 { // and it goes on working
		require.NoError(w.t, a.SetMeta("m", []byte("after")), what)
		require.NoError(w.t, a.Sync(), what)
		require.NoError(w.t, a.verify(), what)
	}
	require.NoError(w.t, a.Close(), what)
}

func contentOf(t *testing.T, a *Arena) crashContent {
	c := crashContent{dict: map[string]string{}}
	meta, _ := a.Meta("m")
	c.meta = string(meta)
	require.NoError(t, a.View(func() error {
		if l, err := List[uint64](a, "list", &ListOptions[uint64]{MustExist: true}); err == nil {
			for _, v := range l.All() {
				c.list = append(c.list, v)
			}
		} else if !errors.Is(err, ErrNoContainer) {
			return err
		}
		d, err := Dict[string, string](a, "dict", &DictOptions[string, string]{MustExist: true})
		if errors.Is(err, ErrNoContainer) {
			return nil
		}
		if err != nil {
			return err
		}
		for k, v := range d.All() {
			c.dict[k] = v
		}
		return nil
	}))
	return c
}

// crash explores what a power cut at this moment may leave, with another cut
// inside the recovery of some.
func (w *crashWorld) crash(what string) {
	for range 2 {
		cut := w.disk.cut(w.r)
		if w.r.IntN(6) == 0 {
			w.crashInRecovery(cut, what)
		}
		w.check(cut, w.acked, what)
	}
	if w.r.IntN(5) == 0 { // killed, then recovered from the page cache, then cut
		killed := w.disk.kill()
		w.crashInRecovery(killed, what+", killed")
	}
}

func (w *crashWorld) crashInRecovery(disk *simDisk, what string) {
	disk = disk.kill()
	stop := 1 + w.r.IntN(12)
	disk.before = func(n int, op string) error {
		if n == stop {
			w.check(disk.cut(w.r), w.acked, fmt.Sprintf("%s, cut again at step %d (%s) of recovery", what, n, op))
		}
		return nil
	}
	opts := w.opts
	a, err := openWith(crashPath, &opts, crashOptions(disk))
	require.NoError(w.t, err, what)
	require.NoError(w.t, a.Close(), what)
}

// TestCrash cuts the power at every write, sync and change of names of random
// runs, in ways chosen at random, and opens what is left.
func TestCrash(t *testing.T) {
	scripts := *crashScripts
	if testing.Short() {
		scripts = min(scripts, 3)
	}
	for _, mode := range []struct {
		name string
		opts Options
	}{{"default", Options{}}, {"fullpages", Options{FullPages: true}}, {"nosync", Options{NoSync: true}}} {
		for seed := range uint64(scripts) {
			t.Run(fmt.Sprintf("%s/seed=%d", mode.name, seed), func(t *testing.T) {
				t.Parallel()
				runCrashScript(t, seed, mode.opts)
			})
		}
	}
}

func runCrashScript(t *testing.T, seed uint64, opts Options) {
	w := newCrashWorld(t, seed, opts)
	w.disk.before = func(n int, op string) error {
		if raceEnabled && n%25 != 0 {
			return nil // many times slower, and races do not depend on where the power is cut
		}
		if opts.NoSync {
			// A machine's crash may lose commits that were not waited for, but
			// must leave a whole one.
			acked := w.acked
			w.acked = 0
			defer func() { w.acked = acked }()
		}
		w.crash(fmt.Sprintf("step %d (%s)", n, op))
		return nil
	}
	for range 60 {
		require.NoError(t, w.step())
	}
	w.disk.before = nil
	require.NoError(t, w.a.Close())
	w.begun++
	w.snaps = append(w.snaps, w.now.clone())
	w.check(w.disk.kill(), w.begun, "closed")
	t.Logf("%d crash states", w.states)
}

// TestFailingIO lets every operation of a run fail once, in turn.
func TestFailingIO(t *testing.T) {
	errBroken := errors.New("input/output error")
	for _, fail := range []struct {
		name string
		err  error
	}{{"EIO", errBroken}, {"ENOSPC", fullErrors[0]}} {
		t.Run(fail.name, func(t *testing.T) {
			for n := 1; ; n++ {
				if !failOnce(t, n, fail.err) {
					t.Logf("%d operations failed in turn", n-1)
					return
				}
			}
		})
	}
}

// failOnce runs a script whose n-th operation fails, and says whether it has
// that many.
func failOnce(t *testing.T, n int, cause error) (failed bool) {
	w := newCrashWorld(t, 5, Options{})
	start := w.disk.ops
	w.disk.before = func(i int, op string) error {
		if i-start == n {
			failed = true
			return cause
		}
		return nil
	}
	for range 40 {
		err := w.step()
		if err == nil {
			continue
		}
		require.ErrorIs(t, err, cause, "operation %d", n)
		require.Contains(t, err.Error(), crashPath)
		break
	}
	_ = w.a.Close() // may report the failure again
	w.disk.before = nil
	w.begun++
	w.snaps = append(w.snaps, w.now.clone())
	killed := w.disk.kill()
	w.check(killed, w.acked, fmt.Sprintf("operation %d failed", n))
	return failed
}

// TestCloseTellsOfFailures lets the disk die at each operation of a Close, whose commit is followed by a checkpoint, for good. A Close that returns nil has
// left everything on the disk, with NoSync too.
func TestCloseTellsOfFailures(t *testing.T) {
	errDead := errors.New("input/output error")
	r := rand.New(rand.NewPCG(1, 2))
	for _, opts := range []Options{{}, {NoSync: true}} {
		closed, failed := false, 0
		for n := 1; !closed; n++ {
			disk := newSimDisk()
			a, err := openWith(crashPath, &opts, crashOptions(disk))
			require.NoError(t, err)
			l, err := List[uint64](a, "list", nil)
			require.NoError(t, err)
			require.NoError(t, l.Append(make([]uint64, 1<<14)...))
			require.NoError(t, a.Sync())
			for i := range l.Len() { // more than the log may hold
				require.NoError(t, l.Set(i, 7))
			}
			start := disk.ops
			disk.before = func(i int, _ string) error {
				if i-start >= n {
					return errDead
				}
				return nil
			}
			err = a.Close()
			closed = disk.ops-start < n
			disk.before = nil
			if closed {
				require.NoError(t, err)
				continue
			}
			if err != nil {
				require.ErrorIs(t, err, errDead)
				failed++
				continue
			}
			b, err := openWith(crashPath, &opts, crashOptions(disk.cut(r)))
			require.NoError(t, err)
			got := contentOf(t, b)
			require.NoError(t, b.Close())
			require.Equal(t, 1<<14, len(got.list), "Close returned nil although operation %d and all after it had failed (NoSync %t)", n, opts.NoSync)
			require.EqualValues(t, 7, got.list[0], "Close returned nil although operation %d and all after it had failed (NoSync %t)", n, opts.NoSync)
		}
		require.Greater(t, failed, 5)
	}
}
