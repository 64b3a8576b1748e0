package emd

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Power cuts: FS_IOC_SHUTDOWN stops a file system as a power cut does. What it had given to its disk stays, what lay in memory is gone, and the
// next mount replays its journal. The disk is a loop device on a file, which keeps all that it was given; so these tests see every sync
// that is missing, but no disk that loses or tears what was not flushed: that is the simulated disk's part.
//
// All mounts are made in a mount namespace of the test's own thread, and the loop devices are released by their last user. So the
// kernel takes everything away when the test ends, however it ends.

var cutsFlag = flag.Int("emd.cuts", 0, "power cuts of each file system; 0 means 60, or 18 with -short")

// unavailable skips a test that this machine cannot run. With EMD_TEST_ROOT, which CI sets where it has all that such tests need, it fails.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("EMD_TEST_ROOT") != "" {
		t.Fatalf("EMD_TEST_ROOT is set, but "+format, args...)
	}
	t.Skipf("not tested here: "+format, args...)
}

// A testDisk is a file system on a loop device.
type testDisk struct {
	kind  string // ext4 or xfs
	dir   string // where it is mounted
	image string // the file that holds it
}

// newTestDisk makes a file system of size bytes. The goroutine of the test is bound to its thread from here on, as it alone sees the mount; programs
// that it starts see it too.
func newTestDisk(t *testing.T, kind string, size int64) *testDisk {
	t.Helper()
	privateMounts(t)
	memory := tempDir(t)
	require.NoError(t, unix.Mount("tmpfs", memory, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(memory, unix.MNT_DETACH) })
	d := &testDisk{kind: kind, dir: filepath.Join(memory, "disk")}
	require.NoError(t, os.Mkdir(d.dir, 0o700))
	d.image = d.dir + ".image"
	require.NoError(t, os.WriteFile(d.image, nil, 0o600))
	require.NoError(t, os.Truncate(d.image, size))
	if out, err := exec.Command("mkfs."+kind, "-q", d.image).CombinedOutput(); err != nil {
		unavailable(t, "mkfs.%s: %v %s", kind, err, out)
	}
	if err := d.mount(""); err != nil {
		unavailable(t, "mount %s: %v", kind, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(d.dir, unix.MNT_DETACH) })
	return d
}

// mount brings the file system up, on a loop device that it alone uses: nothing of the disk stays in a cache when it goes down.
func (d *testDisk) mount(options string) error {
	loop, err := attach(d.image)
	if err != nil {
		return err
	}
	return errors.Join(unix.Mount(loop.Name(), d.dir, d.kind, 0, options), loop.Close())
}

// privateMounts gives the goroutine a mount namespace of its own.
func privateMounts(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		unavailable(t, "it takes root to mount file systems")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		unavailable(t, "no mount namespace: %v", err)
	}
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// attach returns a loop device that shows a file and is free again when it is neither open nor mounted.
func attach(path string) (*os.File, error) {
	image, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprint("/dev/loop", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return loop, nil
		}
		if err = errors.Join(err, loop.Close()); !errors.Is(err, unix.EBUSY) || try == 20 {
			return nil, err
		}
		time.Sleep(time.Millisecond) // somebody else was faster
	}
}

// How a file system goes down, the same numbers for ext4 and XFS.
const (
	ioctlShutdown = 0x8004587d // FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
	cutSynced     = 0          // after it has written everything
	cutJournalled = 1          // after it has written its journal, but no data
	cutNow        = 2          // as it is
)

// shutdown cuts the power.
func (d *testDisk) shutdown(t *testing.T, how uint32) {
	dir, err := os.Open(d.dir)
	require.NoError(t, err)
	defer dir.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), ioctlShutdown, uintptr(unsafe.Pointer(&how)))
	if errno == unix.ENOTTY || errno == unix.EOPNOTSUPP {
		unavailable(t, "%s cannot be shut down: %v", d.kind, errno)
	}
	require.Zero(t, errno, "FS_IOC_SHUTDOWN: %v", errno)
}

// remount brings the file system up again.
func (d *testDisk) remount(t *testing.T, options string) {
	err := unix.Unmount(d.dir, 0)
	for try := 0; err == unix.EBUSY && try < 1000; try++ {
		time.Sleep(time.Millisecond) // the dead let go of their files a little later
		err = unix.Unmount(d.dir, 0)
	}
	require.NoError(t, err, "unmount")
	require.NoError(t, d.mount(options), "mount")
}

// writeBack has the kernel write some of what was written to the files of the disk, as it may at any moment; it does not wait for that.
func (d *testDisk) writeBack(t *testing.T, r *rand.Rand) {
	for range r.IntN(5) {
		time.Sleep(time.Duration(r.IntN(500)) * time.Microsecond)
		files, err := filepath.Glob(filepath.Join(d.dir, "*.emd*"))
		require.NoError(t, err)
		if len(files) == 0 {
			continue
		}
		f, err := os.Open(files[r.IntN(len(files))])
		if errors.Is(err, os.ErrNotExist) {
			continue // the log of a child that closes
		}
		require.NoError(t, err)
		info, err := f.Stat()
		require.NoError(t, err)
		from := r.Int64N(info.Size() + 1)
		require.NoError(t, unix.SyncFileRange(int(f.Fd()), from, 1+r.Int64N(1+info.Size()-from), unix.SYNC_FILE_RANGE_WRITE))
		require.NoError(t, f.Close())
	}
}

// TestPowerCut cuts the power of ext4 and XFS under the children of the kill tests.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ext4", "xfs"} {
		for name, check := range killChecks {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				d := newTestDisk(t, kind, 320<<20)
				k := newKillRun(t, name)
				k.dir, k.lossy, k.start, k.end = d.dir, true, orphanless, d.end
				k.rounds = (pick(*cutsFlag, 60, 18) + len(killChecks) - 1) / len(killChecks)
				k.pause = 30 * time.Millisecond
				k.run(t, check(k))
			})
		}
	}
}

// orphanless starts a child that dies with the thread of the test.
func orphanless(t testing.TB, name string, args ...string) *childProcess {
	line := childLine(t, args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return startChild(t, cmd, name)
}

// end cuts the power under a child, which may live on for a moment, and brings the disk up again.
func (d *testDisk) end(t *testing.T, r *rand.Rand, c *childProcess) []string {
	d.writeBack(t, r)
	how := []uint32{cutNow, cutNow, cutNow, cutNow, cutJournalled, cutSynced}[r.IntN(6)]
	said := c.listen(nil, 100*time.Microsecond)
	d.shutdown(t, how)
	if r.IntN(2) == 0 {
		time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
	}
	// What is acknowledged from here on does not count. An fdatasync that waits while the file system goes down may return 0 for bytes that are lost: a few
	// lines of pwrite and fdatasync on a growing file see that in every third cut of ext4 and every eighth of XFS. A power cut lets nobody hear of it.
	late := func(l string) bool { return strings.HasPrefix(l, "acked ") || l == "closed" }
	said = append(append(said, fmt.Sprint("cut ", how)), slices.DeleteFunc(c.kill(), late)...)
	options := ""
	if d.kind == "ext4" && r.IntN(3) == 0 {
		options = "data=writeback" // its journal may be ahead of the data: files hold what the disk held before
	}
	d.remount(t, options)
	return said
}
