package emd

import (
	"io/fs"
	"log/slog"
	"time"
)

// Options say how [Open] opens a file. The zero value, or nil, means the
// defaults: create the file if it is absent, open it for writing, wait for
// the disk at each commit.
type Options struct {
	// ReadOnly opens the file for reading, beside any number of other readers.
	// Nothing on disk is changed, not even after a crash: the last commit is
	// then put together in memory. Where Linux reads at least 1 MiB ahead (the disk's
	// read_ahead_kb; 128 KiB is usual), loops over lists that are not in memory cost it less
	// than in a file that is open for writing, as it reads larger pieces.
	ReadOnly bool
	// MustExist makes a missing file an error that matches [fs.ErrNotExist].
	MustExist bool
	// Mode is the permission of a new file and of its log, before the
	// process's umask; 0 means 0o600.
	Mode fs.FileMode
	// DirtyLimit bounds the private memory, in bytes, that changed pages may
	// take: those not committed, those committed but not yet written to the
	// file by a checkpoint, and new space not yet written out. When it is
	// reached the library commits by itself between two operations, except
	// inside Update. 0 means a quarter of the machine's memory, or half of a
	// cgroup's limit, at most 1 GiB. Less than 1 MiB counts as 1 MiB. Pages of
	// the file, 4 KiB, are counted: where the machine's are larger, scattered
	// changes may take as many times more, and the default is as many times less.
	// Where the system charges a private map of a file in full (strict overcommit, a
	// limit of data), memory is taken for ranges of it before they change: a page,
	// and the more have been taken the larger ones, to 16 MiB. All of a range counts.
	DirtyLimit int64
	// NoAutoCommit makes a change that would pass DirtyLimit fail with
	// [ErrUpdateTooLarge] instead of committing what is pending.
	NoAutoCommit bool
	// CommitEvery commits this often while changes are pending, but not during
	// an Update. 0 means never.
	CommitEvery time.Duration
	// LogLimit is the size of the redo log, in bytes, at which a checkpoint
	// writes its content to the file. 0 means 64 MiB.
	LogLimit int64
	// LockTimeout is how long to wait for another process's lock. 0 means not
	// at all: [ErrLocked] at once. Negative means for ever.
	LockTimeout time.Duration
	// NoSync commits without waiting for the disk: a crash of the machine may
	// lose the last commits, but never tears one and never reorders them. A
	// crash of the program alone loses nothing that was committed.
	NoSync bool
	// FullPages logs whole pages of 4 KiB at their first change since a
	// checkpoint, instead of the lines of 64 bytes that changed. That survives
	// disks on which a power cut turns a sector to garbage, at the price of a
	// larger log.
	FullPages bool
	// Relaxed makes a new file a relaxed one, for scratch data of which more
	// changes than fits into memory: a shared mapping without a log. Sync writes all
	// that has changed to the disk, in place; nothing is committed as a whole.
	// Rollback is [ErrUnsupported], so what a failed Update has changed stays, and
	// Check finds less, for there are no checksums. A program or machine that ends
	// before Close leaves a mixture of old and new: the next Open is [ErrUnclean].
	// What an existing file is stays, whatever Relaxed says.
	Relaxed bool
	// AcceptUnclean opens a relaxed file after such an end, as it is: entries may be
	// missing, lengths wrong, and damage be found only as it is met. [Arena.Check]
	// tells, [Salvage] makes a sound copy. After Close the file counts as closed.
	// AcceptUnclean also allows relaxed files on file systems
	// where room for a page is not sure to be there when it changes (Btrfs, ZFS,
	// bcachefs, network file systems): a full disk may end the program there.
	AcceptUnclean bool
	// NetworkFS allows files on network file systems, whose locks and caches
	// may not keep the promises that this package builds on.
	NetworkFS bool
	// HashSeed is the seed of the hash function of a new file. 0 draws it, and
	// the file's identity, at random; otherwise both follow from it, so that
	// equal operations of one goroutine, with equal DirtyLimit and LogLimit, make
	// equal files on all machines; but for what is left in free space where the file
	// system cannot take it back, and where memory is taken for ranges. A seed that others know lets them choose keys that
	// collide.
	HashSeed uint64
	// Logger is told of recovery, checkpoints, the library's own commits and
	// failures. nil is silent.
	Logger *slog.Logger
}

// Info describes a container.
type Info struct {
	Name string
	Kind string // "list" or "dict"
	// Key and Value are the signatures of the types: canonical texts such as
	// struct{Addr uint64; Size uint32}, or the names of codecs. A list has no key.
	Key, Value string
	Len        int64 // elements or entries
	Bytes      int64 // space taken in the file
}

// Stats are figures of an open arena. Sizes are in bytes.
type Stats struct {
	File     int64 // length of the file, free space included
	Mapped   int64 // address space that shows it
	Resident int64 // of that, in memory now; 0 where the system does not tell
	Private  int64 // copies of pages changed since the last checkpoint
	Fresh    int64 // of Private, new space not yet written to the file
	Free     int64 // space in the file that new data will reuse
	Log      int64 // of records since the last checkpoint
	Heap     int64 // tables of the library outside the Go heap

	Commits     int64 // since open, own ones included
	OwnCommits  int64 // made by the library itself
	Checkpoints int64
	Spilled     int64 // bytes of new space written out before their commit
}

const (
	defaultMode     fs.FileMode = 0o600
	defaultLogLimit             = 64 << 20
	minDirtyLimit               = 1 << 20
)
