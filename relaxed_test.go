package emd

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func openRelaxed(t *testing.T, path string, opts Options) (*Arena, *EMDict[uint64, string], *EMList[uint64]) {
	t.Helper()
	opts.Relaxed = true
	a := reopen(t, path, testOptions{opts: opts})
	d, err := Dict[uint64, string](a, "dict", nil)
	require.NoError(t, err)
	l, err := List[uint64](a, "list", nil)
	require.NoError(t, err)
	return a, d, l
}

// copyOpen copies a file as it is while it is open, which is what a crash of the
// program leaves of a relaxed one.
func copyOpen(t *testing.T, a *Arena) string {
	t.Helper()
	if raceEnabled { // memory is not the file
		require.NoError(t, a.space.mapping.sync())
	}
	b, err := os.ReadFile(a.path)
	require.NoError(t, err)
	path := filepath.Join(tempDir(t), "crashed.emd")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return path
}

func TestRelaxed(t *testing.T) {
	path := filepath.Join(tempDir(t), "r.emd")
	a, d, l := openRelaxed(t, path, Options{DirtyLimit: minDirtyLimit})
	for i := range uint64(100_000) {
		require.NoError(t, d.Set(i, fmt.Sprint(i)))
		require.NoError(t, l.Append(i))
	}
	s := a.Stats()
	require.Zero(t, s.Private+s.Fresh+s.Log)
	require.Zero(t, s.Commits, "DirtyLimit is none")
	_, err := os.Stat(logPath(path))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, a.Sync())
	require.NoError(t, a.Check(t.Context(), nil))
	require.EqualValues(t, 1, a.Stats().Commits)
	require.NoError(t, a.Close())
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Zero(t, info.Size()%unitSize)

	// The file decides, not the options.
	for _, opts := range []Options{{}, {ReadOnly: true}} {
		a = reopen(t, path, testOptions{opts: opts})
		require.Equal(t, !opts.ReadOnly, a.space.shared)
		require.NoError(t, a.Check(t.Context(), nil))
		d, err = Dict[uint64, string](a, "dict", nil)
		require.NoError(t, err)
		require.Equal(t, 100_000, d.Len())
		v, ok, err := d.Get(99_999)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, "99999", v)
		require.NoError(t, a.Close())
	}
	other := filepath.Join(tempDir(t), "committed.emd")
	require.NoError(t, reopen(t, other, testOptions{}).Close())
	a = reopen(t, other, testOptions{opts: Options{Relaxed: true}})
	require.False(t, a.space.shared)
}

func TestRelaxedUnclean(t *testing.T) {
	a, d, l := openRelaxed(t, filepath.Join(tempDir(t), "r.emd"), Options{})
	want := map[uint64]string{}
	for i := range uint64(50_000) {
		want[i] = fmt.Sprint(i)
	}
	_, err := d.SetAll(maps.All(want))
	require.NoError(t, err)
	require.NoError(t, l.Resize(1000))
	require.NoError(t, a.Sync())
	path := copyOpen(t, a)

	for _, opts := range []Options{{}, {ReadOnly: true}} {
		_, err := Open(path, &opts)
		require.ErrorIs(t, err, ErrUnclean)
		require.ErrorContains(t, err, path)
		require.ErrorContains(t, err, "AcceptUnclean")
	}
	saved := filepath.Join(tempDir(t), "saved.emd")
	report, err := Salvage(t.Context(), saved, path, nil)
	require.NoError(t, err)
	require.Len(t, report.Damages, 1)
	require.ErrorIs(t, report.Damages[0].Err, ErrUnclean)
	requireDict(t, reopen(t, saved, testOptions{}), want)

	ro := reopen(t, path, testOptions{opts: Options{ReadOnly: true, AcceptUnclean: true}})
	require.NoError(t, ro.Check(t.Context(), nil))
	requireDict(t, ro, want)
	require.NoError(t, ro.Close())
	rw := reopen(t, path, testOptions{opts: Options{AcceptUnclean: true}})
	require.NoError(t, rw.Check(t.Context(), nil), "nothing had changed since Sync")
	requireDict(t, rw, want)
	require.NoError(t, rw.Close())
	requireDict(t, reopen(t, path, testOptions{}), want)
}

func requireDict(t *testing.T, a *Arena, want map[uint64]string) {
	t.Helper()
	d, err := Dict[uint64, string](a, "dict", nil)
	require.NoError(t, err)
	require.Equal(t, want, maps.Collect(d.All()))
	require.NoError(t, d.Err())
}

// TestRelaxedTorn ends at a moment between two Syncs: whatever the file has then is opened, copied,
// or refused with an error, and a space that was handed out is not handed out again.
func TestRelaxedTorn(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range pick(2, 10, 3) {
		a, d, l := openRelaxed(t, filepath.Join(tempDir(t), "r.emd"), Options{})
		for range 1 + r.IntN(4) {
			for range r.IntN(30_000) {
				switch k := r.Uint64N(20_000); r.IntN(8) {
				case 0:
					_, err := d.Delete(k)
					require.NoError(t, err)
				case 1:
					require.NoError(t, l.Append(k))
				default:
					require.NoError(t, d.Set(k, text(0, 600)(r)))
				}
			}
			if r.IntN(2) == 0 {
				require.NoError(t, a.Sync())
			}
		}
		want := maps.Collect(d.All())
		path := copyOpen(t, a)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		require.NoError(t, err)
		end, _ := a.alloc.usage()
		_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, 4<<20), int64(end)<<pageShift) // as a power cut may leave what was never written
		require.NoError(t, errors.Join(err, f.Close()))
		report, err := Salvage(t.Context(), filepath.Join(tempDir(t), "saved.emd"), path, nil)
		require.NoError(t, err)
		require.NotEmpty(t, report.Containers)

		b, err := openWith(path, &Options{AcceptUnclean: true}, internalOptions{heap: raceEnabled})
		require.NoError(t, err)
		p, err := b.alloc.allocFresh(unitPages)
		require.NoError(t, err)
		require.True(t, allZero(bytesAt(unsafe.Pointer(b.space.page(p)), unitSize)))
		require.NoError(t, b.alloc.free(p, unitPages))
		e, err := Dict[uint64, string](b, "dict", nil)
		require.NoError(t, err)
		// All stores of the program are in the file: only what it keeps in memory, as numbers of entries, is lost.
		require.Equal(t, want, maps.Collect(e.All()))
		require.NoError(t, e.Err())
		for i := range uint64(30_000) {
			require.NoError(t, e.Set(i, fmt.Sprint(i)))
			want[i] = fmt.Sprint(i)
		}
		require.Equal(t, want, maps.Collect(e.All()))
		require.NoError(t, b.Close())
		require.NoError(t, a.Close())
	}
}

func TestRelaxedHasNoRollback(t *testing.T) {
	a, d, _ := openRelaxed(t, filepath.Join(tempDir(t), "r.emd"), Options{})
	require.NoError(t, d.Set(1, "before"))
	require.ErrorIs(t, a.Rollback(), ErrUnsupported)
	require.NoError(t, a.Update(func() error { return d.Set(1, "updated") }))
	require.EqualValues(t, 2, a.Stats().Commits)
	err := a.Update(func() error { return errors.Join(d.Set(2, "stays"), errRefused) })
	require.ErrorIs(t, err, errRefused)
	require.ErrorIs(t, err, ErrUnsupported)
	require.ErrorContains(t, err, "changes stay")
	assert.Panics(t, func() {
		_ = a.Update(func() error { require.NoError(t, d.Set(3, "stays, too")); panic("enough") })
	})
	require.NoError(t, a.Err())
	require.NoError(t, a.Sync())
	require.Equal(t, map[uint64]string{1: "updated", 2: "stays", 3: "stays, too"}, maps.Collect(d.All()))

	// What a migration cannot take back in part stops the arena, and is found at the next Open.
	a.turn.Lock()
	d.d.lock()
	d.d.turnAway()
	d.d.unlock()
	err = a.rollback()
	a.turn.Unlock()
	require.ErrorIs(t, err, ErrUnsupported)
	require.ErrorIs(t, a.Err(), ErrUnsupported)
	_, _, err = d.Get(1)
	require.ErrorIs(t, err, ErrUnsupported)
	require.ErrorIs(t, a.Close(), ErrUnsupported)
	_, err = Open(a.path, nil)
	require.ErrorIs(t, err, ErrUnclean)
}

// otherFS is a file system that gives no room, or one of another machine.
type otherFS struct {
	osFS
	copies, network bool
}

func (o otherFS) CopyOnWrite(file) (string, bool) { return "zfs", o.copies }
func (o otherFS) Network(file) (string, bool)     { return "nfs", o.network }

func TestRelaxedRefused(t *testing.T) {
	for name, o := range map[string]otherFS{"zfs": {copies: true}, "nfs": {network: true}} {
		o.heap = raceEnabled
		in := internalOptions{fs: o}
		dir := tempDir(t)
		path := filepath.Join(dir, "r.emd")
		_, err := openWith(path, &Options{Relaxed: true, NetworkFS: true}, in)
		isError(t, err, path, ErrUnsupported)
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, "AcceptUnclean")
		require.Empty(t, dirNames(t, dir), "nothing was made")

		a, err := openWith(path, &Options{Relaxed: true, NetworkFS: true, AcceptUnclean: true}, in)
		require.NoError(t, err)
		require.NoError(t, a.Close())
		_, err = openWith(path, &Options{NetworkFS: true}, in)
		isError(t, err, path, ErrUnsupported)
		a, err = openWith(path, &Options{NetworkFS: true, ReadOnly: true}, in)
		require.NoError(t, err)
		require.NoError(t, a.Close())
	}
}

// TestRelaxedPowerCut cuts the power ahead of every change of the disk: what it leaves was closed, and is whole, or is unclean.
func TestRelaxedPowerCut(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	o := relaxed()
	o.opts.NoSync = seed%2 == 0 // which says nothing of open and closed
	o.inline = true
	open := func(d *simDisk) (*Arena, *EMDict[uint64, uint64], error) {
		in := o
		in.fs = d
		a, err := openWith("r.emd", &in.opts, in.internalOptions)
		if err != nil {
			return nil, nil, err
		}
		dict, err := Dict[uint64, uint64](a, "d", nil)
		return a, dict, err
	}
	contents := func(d *simDisk) (map[uint64]uint64, error) {
		a, dict, err := open(d)
		if err != nil {
			return nil, err
		}
		require.NoError(t, a.verify())
		m := maps.Collect(dict.All())
		return m, errors.Join(dict.Err(), a.Close())
	}
	disk := newSimDisk()
	closed := []map[uint64]uint64{{}} // the last that was closed, and the one being closed
	states := map[string]int{}
	disk.before = func(n int, op string) error {
		for range pick(0, 30, 5) {
			found, err := contents(disk.cut(r))
			if errors.Is(err, ErrUnclean) {
				states["unclean"]++
				continue
			}
			require.NoError(t, err, "before change %d (%s)", n, op)
			require.Contains(t, closed, found, "before change %d (%s)", n, op)
			states["closed"]++
		}
		return nil
	}
	want := map[uint64]uint64{}
	for range 4 {
		a, dict, err := open(disk)
		require.NoError(t, err)
		require.Equal(t, want, maps.Collect(dict.All()))
		for range 5 {
			for range r.IntN(3000) {
				k, v := r.Uint64N(3000), r.Uint64()
				want[k] = v
				require.NoError(t, dict.Set(k, v))
			}
			if r.IntN(2) == 0 {
				require.NoError(t, a.space.mapping.sync()) // as the system does when it likes
			}
			if r.IntN(3) == 0 {
				require.NoError(t, a.Sync())
			}
		}
		closed = append(closed, maps.Clone(want))
		require.NoError(t, a.Close())
		closed = closed[len(closed)-1:]
	}
	t.Log(states)
	require.NotZero(t, states["unclean"])
	require.NotZero(t, states["closed"])
}

// TestRelaxedFails has each change of the disk fail: what cannot be made durable is not said to be.
func TestRelaxedFails(t *testing.T) {
	t.Parallel()
	failed := errors.New("the disk is broken")
	for n := 1; ; n++ {
		disk := newSimDisk()
		disk.plain = true
		o := relaxed()
		o.fs, o.inline = disk, true
		at := 0
		disk.before = func(int, string) error {
			if at++; at == n {
				return failed
			}
			return nil
		}
		err := func() error {
			a, err := openWith("r.emd", &o.opts, o.internalOptions)
			if err != nil {
				return err
			}
			l, err := List[uint64](a, "l", nil)
			for i := range uint64(200_000) {
				if err == nil {
					err = l.Append(i)
				}
			}
			if err == nil {
				if err = a.Sync(); err != nil {
					// The system may have dropped what it could not write.
					require.ErrorIs(t, a.Sync(), failed, "change %d", n)
					require.ErrorIs(t, a.Err(), failed, "change %d", n)
				}
			}
			return errors.Join(err, a.Close())
		}()
		disk.before = nil
		if at < n { // it did not come so far
			require.NoError(t, err)
			require.Greater(t, n, 10)
			return
		}
		require.ErrorIs(t, err, failed, "change %d", n)
		o.opts.AcceptUnclean = true
		a, err := openWith("r.emd", &o.opts, o.internalOptions)
		require.NoError(t, err)
		require.NoError(t, a.Close())
	}
}

// TestRelaxedFullDisk fills a small file system: an error, no SIGBUS, and what fits is kept.
func TestRelaxedFullDisk(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"tmpfs", "ext4", "ext2"} { // the last has no fallocate
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			dir := smallDisk(t, kind)
			if dir == "" {
				return
			}
			path := filepath.Join(dir, "full.emd")
			a := reopen(t, path, testOptions{opts: Options{Relaxed: true}, internalOptions: internalOptions{chunkSize: 1 << 20}})
			l, err := List[[512]byte](a, "list", nil)
			require.NoError(t, err)
			n := 0
			for ; err == nil; n++ {
				require.Less(t, n, 64<<11)
				err = l.Append([512]byte{0: byte(n), 511: byte(n >> 8)})
			}
			n--
			require.ErrorIs(t, err, ErrFull)
			require.Greater(t, n, 40<<11)
			require.Equal(t, a.space.fileSize, fileSize(t, path), "what could not be had in full is given back")
			require.NoError(t, a.Err(), "it goes on")
			require.NoError(t, l.Set(0, [512]byte{0: 1}))
			require.NoError(t, a.Sync())
			require.NoError(t, l.Set(0, [512]byte{}))
			require.NoError(t, a.Close())
			a = reopen(t, path, testOptions{})
			l, err = List[[512]byte](a, "list", nil)
			require.NoError(t, err)
			require.Equal(t, n, l.Len())
			for i, v := range l.All() {
				require.Equal(t, [512]byte{0: byte(i), 511: byte(i >> 8)}, v)
			}
			require.NoError(t, a.Check(t.Context(), nil))
		})
	}
}
