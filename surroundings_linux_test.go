package emd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Where files may lie besides a large ext4: each place works, or fails with an
// error that says what to do.

var (
	_ = addChild("limited", childLimited)
	_ = addChild("charged", childCharged)
	_ = addChild("short", childShort)
)

// squareFile makes a file with n squares, and returns what it holds. With crash, only the log has the last of them.
func squareFile(t *testing.T, path string, n int, crash bool) []uint32 {
	t.Helper()
	building := path
	if crash {
		building += ".whole"
	}
	a, err := Open(building, nil)
	require.NoError(t, err)
	l, err := List[uint32](a, "squares", nil)
	require.NoError(t, err)
	want := squares(n)
	require.NoError(t, l.Append(want...))
	require.NoError(t, a.Sync())
	want[n/2] = 7
	require.NoError(t, l.Set(n/2, 7))
	require.NoError(t, a.Sync())
	if crash {
		copyFile(t, building, path)
		copyFile(t, logPath(building), logPath(path))
	}
	require.NoError(t, a.Close())
	if crash {
		require.NoError(t, os.Remove(building))
	}
	return want
}

// holds checks what a file of squareFile holds.
func holds(t *testing.T, path string, want []uint32, o Options) {
	t.Helper()
	a, err := Open(path, &o)
	require.NoError(t, err)
	l, err := List[uint32](a, "squares", nil)
	require.NoError(t, err)
	require.True(t, slices.Equal(want, slices.Collect(l.Values())))
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())
}

// use does in a folder what programs do.
func use(t *testing.T, dir string) {
	t.Helper()
	for _, crash := range []bool{false, true} {
		path := filepath.Join(dir, fmt.Sprint("crash=", crash))
		want := squareFile(t, path, 1_000_000, crash)
		holds(t, path, want, Options{ReadOnly: true})
		holds(t, path, want, Options{})
		assert.NoFileExists(t, logPath(path))
		reader, err := Open(path, &Options{ReadOnly: true})
		require.NoError(t, err)
		_, err = Open(path, nil)
		require.ErrorIs(t, err, ErrLocked)
		require.NoError(t, reader.Close())
	}
}

// memoryDisk mounts a tmpfs.
func memoryDisk(t *testing.T) string {
	privateMounts(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// overlay mounts an overlayfs, whose lower layer prepare fills.
func overlay(t *testing.T, prepare func(lower string)) string {
	memory := memoryDisk(t)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		require.NoError(t, os.Mkdir(filepath.Join(memory, name), 0o755))
	}
	prepare(filepath.Join(memory, "lower"))
	merged := filepath.Join(memory, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", memory)); err != nil {
		unavailable(t, "no overlayfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	return merged
}

func TestSurroundings(t *testing.T) {
	for name, test := range map[string]func(t *testing.T){
		"tmpfs": func(t *testing.T) { use(t, memoryDisk(t)) },
		"dev shm": func(t *testing.T) {
			dir, err := os.MkdirTemp("/dev/shm", "emd-test-")
			if err != nil {
				unavailable(t, "%v", err)
			}
			defer os.RemoveAll(dir)
			use(t, dir)
		},
		"no fallocate": func(t *testing.T) {
			d := newTestDisk(t, "ext2", 64<<20)
			f, err := os.Create(filepath.Join(d.dir, "probe"))
			require.NoError(t, err)
			defer f.Close()
			require.ErrorIs(t, unix.Fallocate(int(f.Fd()), 0, 0, 4096), errors.ErrUnsupported, "ext2 is here because it cannot do that")
			use(t, d.dir)
		},
		"overlay": func(t *testing.T) { use(t, overlay(t, func(string) {})) },
		"overlay from below": func(t *testing.T) {
			var want []uint32
			dir := overlay(t, func(lower string) {
				want = squareFile(t, filepath.Join(lower, "closed"), 300_000, false)
				squareFile(t, filepath.Join(lower, "crashed"), 300_000, true)
			})
			for _, name := range []string{"closed", "crashed"} {
				path := filepath.Join(dir, name)
				reader, err := Open(path, &Options{ReadOnly: true})
				require.NoError(t, err)
				_, err = Open(path, nil) // which copies the file up
				require.ErrorIs(t, err, ErrLocked, "by the reader of the file below")
				holds(t, path, want, Options{ReadOnly: true})
				require.NoError(t, reader.Close())
				holds(t, path, want, Options{})
				holds(t, path, want, Options{ReadOnly: true})
				assert.NoFileExists(t, logPath(path))
			}
		},
	} {
		t.Run(name, test)
	}
}

// TestFullWithoutFallocate fills a disk whose file system reserves nothing: what was acknowledged is kept.
func TestFullWithoutFallocate(t *testing.T) {
	d := newTestDisk(t, "ext2", 24<<20)
	ballast := filepath.Join(d.dir, "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 4<<20), 0o600))
	path := filepath.Join(d.dir, "full")
	a, err := openWith(path, nil, internalOptions{logLimit: 256 << 10})
	require.NoError(t, err)
	l, err := List[uint32](a, "squares", nil)
	require.NoError(t, err)
	acked := 0
	for err == nil {
		if err = l.Append(squares(10_000)...); err == nil {
			err = a.Sync()
		}
		if err == nil {
			acked = l.Len()
		}
	}
	require.ErrorIs(t, err, ErrFull)
	require.ErrorIs(t, err, unix.ENOSPC)
	t.Logf("full at %d elements: %v", acked, err)
	require.NoError(t, os.Remove(ballast))
	if a.Err() == nil {
		require.NoError(t, a.Sync(), "there is room again")
		acked = l.Len()
	}
	_ = a.Close() // fails if the arena stopped
	a, err = Open(path, nil)
	require.NoError(t, err)
	l, err = List[uint32](a, "squares", nil)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, l.Len(), acked)
	require.NoError(t, a.verify())
	require.NoError(t, a.Close())
}

// What may not be written to is an error that says what to do.
func isDenied(t *testing.T, err error, path, advice string, target error) {
	t.Helper()
	isError(t, err, path, target)
	require.ErrorContains(t, err, advice)
	require.ErrorContains(t, err, filepath.Dir(path))
}

func TestReadOnlyMount(t *testing.T) {
	dir := memoryDisk(t)
	closed, crashed := filepath.Join(dir, "closed"), filepath.Join(dir, "crashed")
	want := squareFile(t, closed, 100_000, false)
	squareFile(t, crashed, 100_000, true)
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	for range 2 {
		for _, path := range []string{closed, crashed} {
			holds(t, path, want, Options{ReadOnly: true})
			_, err := Open(path, nil)
			isDenied(t, err, path, "Options.ReadOnly", unix.EROFS)
		}
	}
	missing := filepath.Join(dir, "missing")
	_, err := Open(missing, nil)
	isDenied(t, err, missing, "folder must be writable", unix.EROFS)
	_, err = Open(missing, &Options{ReadOnly: true})
	isError(t, err, missing, fs.ErrNotExist)
}

// asNobody takes the power over files from the goroutine of the test, if it is root's.
func asNobody(t *testing.T) {
	if os.Getuid() != 0 {
		return
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	require.NoError(t, unix.Setfsuid(65534))
}

// forNobody makes files with given permissions in a folder with others.
func forNobody(t *testing.T, dir string, file, folder fs.FileMode) (closed, crashed string, want []uint32) {
	closed, crashed = filepath.Join(dir, "closed"), filepath.Join(dir, "crashed")
	want = squareFile(t, closed, 100_000, false)
	squareFile(t, crashed, 100_000, true)
	for _, path := range []string{closed, crashed, logPath(crashed)} {
		require.NoError(t, os.Chmod(path, file))
	}
	require.NoError(t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, folder)))
	return closed, crashed, want
}

func TestReadOnlyFile(t *testing.T) {
	dir := t.TempDir()
	closed, crashed, want := forNobody(t, dir, 0o444, 0o777)
	t.Run("", func(t *testing.T) {
		asNobody(t)
		for _, path := range []string{closed, crashed} {
			holds(t, path, want, Options{ReadOnly: true})
			_, err := Open(path, nil)
			isDenied(t, err, path, "Options.ReadOnly", fs.ErrPermission)
		}
	})
}

func TestReadOnlyFolder(t *testing.T) {
	dir := t.TempDir()
	closed, crashed, want := forNobody(t, dir, 0o666, 0o555)
	t.Cleanup(func() { _ = os.Chmod(dir, 0o755) })
	t.Run("", func(t *testing.T) {
		asNobody(t)
		const advice = "needs a writable folder"
		for _, path := range []string{closed, crashed} {
			holds(t, path, want, Options{ReadOnly: true})
		}
		holds(t, closed, want, Options{}) // changes nothing
		a, err := Open(closed, nil)
		require.NoError(t, err)
		l, err := List[uint32](a, "squares", nil)
		require.NoError(t, err)
		require.NoError(t, l.Append(1))
		isDenied(t, a.Sync(), closed, advice, fs.ErrPermission)
		isDenied(t, a.Err(), closed, advice, fs.ErrPermission)
		isDenied(t, a.Close(), closed, advice, fs.ErrPermission)
		holds(t, closed, want, Options{})

		_, err = Open(crashed, nil)
		isDenied(t, err, crashed, advice, fs.ErrPermission)
		holds(t, crashed, want, Options{ReadOnly: true})

		missing := filepath.Join(dir, "missing")
		_, err = Open(missing, nil)
		isDenied(t, err, missing, "folder must be writable", fs.ErrPermission)
	})
	for _, path := range []string{closed, crashed} {
		holds(t, path, want, Options{})
	}
}

// TestMemoryLimits runs a child under a limit of address space, and one under a limit of data, which is how strict overcommit counts.
func TestMemoryLimits(t *testing.T) {
	for name, c := range map[string]struct {
		child string
		args  []string
		want  []string
	}{
		"address space":           {"limited", nil, []string{"full", "rolled back", "closed", "opened"}},
		"data, less dirty":        {"charged", []string{strconv.Itoa(32 << 20)}, []string{"written", "changed", "rolled back", "opened"}},
		"data, more may be dirty": {"charged", []string{strconv.Itoa(1 << 30)}, []string{"written", "changed", "rolled back", "opened"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "limited.emd")
			p := child(t, c.child, append([]string{path}, c.args...)...)
			said, err := p.rest()
			require.NoError(t, err, "%q %s", said, p.errs)
			require.Equal(t, c.want, said)
			a, err := Open(path, nil)
			require.NoError(t, err)
			require.NoError(t, a.verify())
			require.NoError(t, a.Close())
		})
	}
}

// startThreads has the runtime start some threads, which it keeps: without memory for another one it gives up.
func startThreads(n int) {
	var started, done sync.WaitGroup
	end := make(chan struct{})
	for range n {
		started.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			started.Done()
			<-end
		})
	}
	started.Wait()
	close(end)
	done.Wait()
}

// warmHeap leaves the runtime so much memory: it must not be refused any.
func warmHeap(n int) {
	warm := make([]byte, n)
	clear(warm)
	runtime.KeepAlive(warm)
	warm = nil
	runtime.GC()
}

// setLimit allows so many bytes more than figure, a line of /proc/self/status, tells now.
func setLimit(which int, figure string, more uint64) {
	startThreads(16)
	warmHeap(64 << 20)
	used, err := statusBytes(figure)
	must(err)
	must(unix.Setrlimit(which, &unix.Rlimit{Cur: used + more, Max: used + more}))
}

// childCharged writes and changes more than its limit of data. What is not changing is no charge; and when memory gets short
// before the dirty limit is reached, the library commits.
func childCharged(args []string) {
	const n = 64 << 10 // pages
	dirty, err := strconv.ParseInt(args[1], 10, 64)
	must(err)
	setLimit(unix.RLIMIT_DATA, "VmData:", 96<<20)
	a, err := Open(args[0], &Options{DirtyLimit: dirty, NoSync: true})
	must(err)
	l, err := List[[pageSize]byte](a, "l", nil)
	must(err)
	want := func(i, round int) [pageSize]byte { return [pageSize]byte{byte(i), byte(i >> 8), byte(round)} }
	for i := range n {
		must(l.Append(want(i, 0)))
	}
	must(a.Sync())
	say("written")
	for i := range n / 2 {
		at := i * 7919 % n
		must(l.Set(at, want(at, 1)))
	}
	must(a.Sync())
	say("changed")
	no := errors.New("no")
	err = a.Update(func() error {
		for i := range n / 2 { // more than is allowed, of which most is spilled
			if err := l.Append(want(i, 2)); err != nil {
				return err
			}
		}
		return no
	})
	if !errors.Is(err, no) {
		must(err)
	}
	for i := range n / 4 {
		must(l.Append(want(i, 3)))
	}
	say("rolled back")
	must(a.Close())
	a, err = Open(args[0], nil)
	must(err)
	l, err = List[[pageSize]byte](a, "l", nil)
	must(err)
	changed := map[int]bool{}
	for i := range n / 2 {
		changed[i*7919%n] = true
	}
	for i := range l.Len() {
		e, err := l.Get(i)
		must(err)
		at, round := i, 0
		if changed[i] {
			round = 1
		}
		if i >= n {
			at, round = i-n, 3
		}
		if e != want(at, round) {
			must(fmt.Errorf("element %d is %v", i, e[:3]))
		}
	}
	if l.Len() != n+n/4 {
		must(fmt.Errorf("%d elements", l.Len()))
	}
	must(a.Close())
	say("opened")
}

// childLimited appends until the limit of 400 MiB more than it has now is reached, and rolls back. The runtime, which must not be refused memory,
// has some in reserve then.
func childLimited(args []string) {
	reserve, err := unix.Mmap(-1, 0, 64<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	must(err)
	setLimit(unix.RLIMIT_AS, "VmSize:", 336<<20)
	a, err := Open(args[0], &Options{DirtyLimit: 32 << 20, NoSync: true})
	must(err)
	l, err := List[[4096]byte](a, "l", nil)
	must(err)
	must(l.Append([4096]byte{1}))
	must(a.Sync())
	n := 0
	for err == nil {
		n = l.Len()
		err = a.Update(func() error {
			for range 1000 {
				if err := l.Append([4096]byte{2}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if !errors.Is(err, ErrFull) {
		must(err)
	}
	must(unix.Munmap(reserve))
	say("full")
	if l.Len() != n || a.Err() != nil {
		must(fmt.Errorf("%d elements, not %d: %w", l.Len(), n, a.Err()))
	}
	say("rolled back")
	must(a.Close())
	say("closed")
	a, err = Open(args[0], nil)
	must(err)
	l, err = List[[4096]byte](a, "l", nil)
	must(err)
	for i := range l.Len() {
		if _, err := l.Get(i); err != nil {
			must(err)
		}
	}
	must(a.Close())
	say("opened")
}

// TestShortOfMemory has the memory that the system promises run out where pages are promised one by one, see reserveSize: what has
// begun ends well, what follows is ErrFull, until there is memory again.
func TestShortOfMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the detector's own memory is beyond the limit")
	}
	path := filepath.Join(t.TempDir(), "short.emd")
	l, err := OpenList[[pageSize]byte](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.Resize(shortPages))
	require.NoError(t, l.Fill(0, shortPages, [pageSize]byte{1}))
	large, err := List[[]byte](l.Arena(), "large", nil)
	require.NoError(t, err)
	require.NoError(t, large.Append(bytes.Repeat([]byte{1}, shortLarge)))
	require.NoError(t, l.Close())

	c := child(t, "short", path)
	said, err := c.rest()
	require.NoError(t, err, "%q %s", said, c.errs)
	require.Len(t, said, 5)
	if os.Getenv("EMD_TEST_EMULATOR") == "" { // an emulator does not enforce the limit
		require.Equal(t, "too large", said[0])
	}
	set, err := strconv.Atoi(said[1])
	require.NoError(t, err)
	if os.Getenv("EMD_TEST_EMULATOR") == "" {
		require.Less(t, set, shortPages)
		require.Equal(t, "refused", said[3])
	}
	require.Equal(t, "again", said[2])
	l, err = OpenList[[pageSize]byte](path, nil)
	require.NoError(t, err)
	require.NoError(t, l.Arena().verify())
	changed := 0
	for i := range l.Len() {
		e, err := l.Get(i)
		require.NoError(t, err)
		if e[0] == 2 {
			changed++
		} else {
			require.EqualValues(t, 1, e[0])
		}
	}
	require.Equal(t, min(set+1, shortPages), changed)
	require.NoError(t, l.Close())
}

const (
	shortPages = 24 << 10
	shortLarge = reserveSize + 8<<20 // bytes
)

// childShort changes an element that takes more than the reserve, where there is not enough, and elements that lie far apart, from several
// goroutines, until there is no memory to promise.
func childShort(args []string) {
	startThreads(16)
	a, err := openWith(args[0], &Options{NoAutoCommit: true}, internalOptions{far: true})
	must(err)
	l, err := List[[pageSize]byte](a, mainName, nil)
	must(err)
	must(l.Set(0, [pageSize]byte{2}))
	large, err := List[[]byte](a, "large", nil)
	must(err)
	value := bytes.Repeat([]byte{2}, shortLarge)
	warmHeap(128 << 20)
	used, err := statusBytes("VmData:")
	must(err)
	var old unix.Rlimit
	must(unix.Getrlimit(unix.RLIMIT_DATA, &old))
	must(unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: used + 4<<20, Max: old.Max}))
	switch err := large.Set(0, value); {
	case err == nil:
		say("no limit")
	case errors.Is(err, ErrFull):
		say("too large")
	default:
		must(err)
	}
	if a.status.Load() != 0 {
		must(errors.New("what was too large has cost the reserve"))
	}
	must(unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: used + 40<<20, Max: old.Max}))
	const writers = 4
	var set atomic.Int64
	var errs [writers]error
	var done sync.WaitGroup
	for w := range writers {
		done.Go(func() {
			for i := 1 + w; i < shortPages && errs[w] == nil; i += writers {
				if errs[w] = l.Set(i*7%shortPages, [pageSize]byte{2}); errs[w] == nil { // 7: pages that are not neighbours
					set.Add(1)
				}
			}
		})
	}
	done.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, ErrFull) {
			must(err)
		}
	}
	if a.Err() != nil {
		must(a.Err())
	}
	must(a.Sync())
	say("%d", set.Load()+1)
	must(unix.Setrlimit(unix.RLIMIT_DATA, &old))
	for i, e := range l.All() {
		if e[0] == 1 {
			must(l.Set(i, [pageSize]byte{2}))
			break
		}
	}
	if a.status.Load() != 0 {
		must(errors.New("memory is still short"))
	}
	must(a.Close())
	say("again")

	a, err = openWith(args[0], nil, internalOptions{far: true})
	must(err)
	l, err = List[[pageSize]byte](a, mainName, nil)
	must(err)
	used, err = statusBytes("VmData:")
	must(err)
	a.space.mu.Lock()
	freeTable(a.space.reserve)
	a.space.reserve = nil
	a.space.onShort(true)
	a.space.mu.Unlock()
	must(unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: used - reserveSize/2, Max: old.Max})) // a commit does not help
	switch err := l.Set(0, [pageSize]byte{2}); {
	case err == nil:
		say("no limit")
	case errors.Is(err, ErrFull):
		say("refused")
	default:
		must(err)
	}
	must(unix.Setrlimit(unix.RLIMIT_DATA, &old))
	must(l.Set(0, [pageSize]byte{2}))
	must(a.Close())
	say("restored")
}
