package emd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noReserve keeps private maps out of the kernel's commit accounting, except
// where strict overcommit ignores it.
const noReserve = unix.MAP_NORESERVE

// hugePage is the size from which asking for huge pages makes sense. Where they
// are larger the advice does no harm.
const hugePage = 2 << 20

// chargesMaps says whether private writable maps of files count in full against
// a limit: the kernel's under strict overcommit, where MAP_NORESERVE is ignored, or the process's.
func chargesMaps() bool {
	mode, _ := os.ReadFile("/proc/sys/vm/overcommit_memory")
	if strings.TrimSpace(string(mode)) == "2" {
		return true
	}
	var data unix.Rlimit
	return unix.Getrlimit(unix.RLIMIT_DATA, &data) == nil && data.Cur != unix.RLIM_INFINITY
}

// networkMagics names the network file systems by the number that statfs tells.
// GlusterFS and sshfs are FUSE, which counts as local.
var networkMagics = map[uint32]string{
	unix.NFS_SUPER_MAGIC:  "nfs",
	unix.SMB_SUPER_MAGIC:  "smb",
	unix.CIFS_SUPER_MAGIC: "cifs",
	unix.SMB2_SUPER_MAGIC: "smb2",
	unix.NCP_SUPER_MAGIC:  "ncp",
	unix.V9FS_MAGIC:       "9p",
	unix.AFS_SUPER_MAGIC:  "afs", // OpenAFS
	unix.AFS_FS_MAGIC:     "afs", // the kernel's own
	unix.CODA_SUPER_MAGIC: "coda",
	unix.CEPH_SUPER_MAGIC: "ceph",
	0x0BD00BD0:            "lustre",
	0x47504653:            "gpfs",
}

// adviseFresh asks for huge pages, which make the first touch of fresh memory
// several times cheaper. Not for files: there a dirty line would copy 2 MiB.
func adviseFresh(p unsafe.Pointer, n int64) {
	if n >= hugePage && hugePagesFit() {
		_ = madvise(p, n, unix.MADV_HUGEPAGE)
	}
}

// hugePagesFit says whether a control group leaves room for huge pages. Private memory is counted by pages of the file: a huge page
// of which half is used takes twice what was counted, and the group's limit kills.
var hugePagesFit = sync.OnceValue(func() bool {
	limit := cgroupMemory()
	return limit == 0 || limit >= 4*maxDirtyLimit
})

// invalidate has nothing to do: mappings and write calls share the page cache.
func invalidate(unsafe.Pointer, int64) error { return nil }

// dropCopies drops private copies at once; the next read sees the file. It
// fails where memory is locked (mlockall).
func dropCopies(p unsafe.Pointer, n int64) error {
	return madvise(p, n, unix.MADV_DONTNEED)
}

// populate enters the pages into the page table once they have been read. In a range
// that is mapped MADV_RANDOM it would read them one by one: prefetch comes first. Before
// Linux 5.14 it fails.
func populate(p unsafe.Pointer, n int64) { _ = madvise(p, n, unix.MADV_POPULATE_READ) }

// readAhead returns how many bytes the system reads ahead of a loop over f, or 0
// where it does not tell.
func readAhead(f *os.File) int64 {
	var st unix.Stat_t
	if withFD(f, func(fd uintptr) error { return unix.Fstat(int(fd), &st) }) != nil {
		return 0
	}
	return readAheadOf(uint64(st.Dev))
}

// readAheadOf is readAhead of a device. For a part of a disk the disk is asked.
func readAheadOf(dev uint64) int64 {
	for _, name := range []string{"/sys/class/bdi/%d:%d/read_ahead_kb", "/sys/dev/block/%d:%d/../queue/read_ahead_kb"} {
		if text, err := os.ReadFile(fmt.Sprintf(name, unix.Major(dev), unix.Minor(dev))); err == nil {
			kib, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// writeShared has nothing to do: what a shared mapping changes is changed in the
// page cache, from which fdatasync writes.
func writeShared(unsafe.Pointer, int64) error { return nil }

// syncFile leaves out the timestamps: one write less, sometimes a journal
// commit less.
func syncFile(f *os.File) error {
	return pathError("fdatasync", f, withFD(f, func(fd uintptr) error {
		return uninterrupted(func() error { return unix.Fdatasync(int(fd)) })
	}))
}

// writeOut may wait for a place in the disk's queue, not for the disk. Nothing
// depends on it: where it is refused, fdatasync writes all.
func writeOut(f *os.File, off, n int64) {
	_ = withFD(f, func(fd uintptr) error { return unix.SyncFileRange(int(fd), off, n, unix.SYNC_FILE_RANGE_WRITE) })
}

func allocateFD(fd uintptr, off, n int64) error {
	return uninterrupted(func() error { return unix.Fallocate(int(fd), 0, off, n) })
}

func punchFD(fd uintptr, off, n int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(fd), &st); err != nil || uint32(st.Type) == unix.TMPFS_MAGIC {
		return errors.ErrUnsupported // see file.Allocate
	}
	return uninterrupted(func() error {
		return unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// copyOnWriteMagics names the file systems that write changed blocks elsewhere,
// for which they may find no room.
var copyOnWriteMagics = map[uint32]string{
	unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.NILFS_SUPER_MAGIC: "nilfs",
	0x2FC12FC1:             "zfs",
	0xCA451A4E:             "bcachefs",
}

func copyOnWriteFS(fd uintptr) string { return fsName(fd, copyOnWriteMagics) }

// networkFS returns the name of the network file system on which the file lies,
// or "".
func networkFS(fd uintptr) string { return fsName(fd, networkMagics) }

func fsName(fd uintptr, magics map[uint32]string) string {
	var st unix.Statfs_t
	if err := uninterrupted(func() error { return unix.Fstatfs(int(fd), &st) }); err != nil {
		return ""
	}
	return magics[uint32(st.Type)]
}
