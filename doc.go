// Package emd (external memory data structures) is a slice and a map that live
// in a file: an [EMList] is used as a []T is and an [EMDict] as a map[K]V, with
// no server, no loading, no load on the garbage collector, and a file that holds
// a whole commit whenever the program or the machine stops.
//
//	package main
//
//	import (
//		"errors"
//		"fmt"
//		"log"
//
//		"github.com/emd-go/emd"
//	)
//
//	func main() {
//		runs, err := emd.OpenDict[string, int]("runs.emd", nil) // a file, created if absent
//		if err != nil {
//			log.Fatal(err)
//		}
//		next := func(n int, ok bool) (int, emd.Op) { return n + 1, emd.OpStore }
//		n, _, err := runs.Compute("total", next)
//		if err := errors.Join(err, runs.Close()); err != nil { // Close commits
//			log.Fatal(err)
//		}
//		fmt.Println("run", n)
//	}
//
// [OpenList] and [OpenDict] open a container that has a file to itself. [Open]
// opens an [Arena], a file with any number of containers, each opened by name with
// [List] or [Dict].
//
// # Durability
//
// After any crash, of the program or of the machine, the file holds a whole
// commit: the last one that was acknowledged, or a later one that had begun;
// never a mixture. A commit is a successful [Arena.Sync] or [Arena.Update],
// [Arena.Close], or one of the library's own. It covers all containers of the
// arena and [Arena.SetMeta].
//
// What was not committed is gone when the program ends without Close: after
// [os.Exit], [log.Fatal], an unhandled Ctrl-C, a panic, or kill -9.
// Options.CommitEvery bounds how much that can be. The library commits by
// itself, between two operations, when changed pages reach Options.DirtyLimit,
// unless Options.NoAutoCommit forbids it; so without Update a crash leaves what
// some first part of the operations made, at least up to the last Sync.
//
// Committed data is mapped private, so the operating system never writes a
// half-made change back. A commit appends the changed lines of 64 bytes to a
// log beside the file, named like it with "-log" at the end, and waits once for
// the disk, twice if the file has grown. A checkpoint, at 64 MiB of log and at Close, brings the log
// into the file. Opening after a crash does that first. The log belongs to the
// file as long as it exists: copy, move and delete both, or copy a file only
// after Close.
//
// That much holds on disks that write a sector whole or not at all, and that
// have stored what they say they have stored. Options.FullPages does without the
// first condition; nothing helps without the second. Options.NoSync gives up
// waiting for the disk: a crash of the machine may then take the last commits,
// but neither tears one nor changes their order.
//
// # Damage
//
// What a disk has changed by itself is not the fault of a crash, and no log
// mends it. Reads check every number that they follow, so damage is a wrong value or
// [ErrCorrupt], never a fault. Each page has a checksum, which [Arena.Check]
// compares; it also verifies everything that the pages hold, and finds any single
// flipped bit of a file that was closed. [Salvage] gets what it can out of a damaged file.
//
// # Transactions
//
// [Arena.Update] runs a function and commits what it changed. If the function
// returns an error or panics, or if any operation in it fails, even one whose
// error it dropped, everything is as before. [Arena.Rollback] goes back to the last commit
// without a function. Nothing is committed inside an Update, so what
// it changes must fit into Options.DirtyLimit; otherwise it fails with
// [ErrUpdateTooLarge] and is rolled back. Newly used space does not count, so an
// Update may add far more than it may change.
//
// An Update is atomic, not isolated. Readers see its changes at once. What other
// goroutines write meanwhile, outside of any Update, is committed or rolled back
// with it; a program with several writers makes all changes that must survive
// inside Update. One Update runs at a time: [Arena.Update], [Arena.Sync],
// [Arena.Rollback], [Arena.Close] and [Arena.Drop] of other goroutines wait for
// it, and called inside its function they are [ErrInUpdate].
//
// # Concurrency
//
// Any number of goroutines may use the same arenas and containers at once.
// Readers take no locks: they wait neither for each other nor for the disk writes
// of a commit or checkpoint. Each operation on one element is atomic; of
// [EMList.Append] and others that take many elements, readers see one element
// after the other. [EMDict.Compute] is how to change a value that depends on the
// old one, and [AppendTo] adds to one that is a slice.
//
// Functions given to the library, such as those of [EMDict.Compute] and
// [EMDict.DeleteFunc], run exactly once for each element. They may use other
// containers but not the one that called them, and after a panic the element
// is unchanged.
//
// # Values and types
//
// Everything is copied, but for what [EMList.Views] lends: a value that was returned
// belongs to the caller and stays valid after Close, and changing it changes
// nothing in the file until it is stored again.
//
// Any type made of data needs no code. Booleans, numbers, times, and arrays and
// structs of these have a fixed size in the file. Strings, slices, maps and pointers,
// and what holds them, vary; so do types with AppendBinary or MarshalBinary and
// UnmarshalBinary, whose methods are used, those of math/big, and, where a type could not be
// stored otherwise, MarshalText and UnmarshalText. All fields of a struct are stored, also
// unexported ones, as assignment copies them; blank ones are not. nil and empty slices
// and maps stay distinct. A [time.Time] keeps its instant and zone offset, not the
// name of its zone. A value in which one pointer occurs twice, or which contains itself, is
// an error when it is stored.
//
// Channels, functions and interfaces need a [Codec] in [ListOptions] or
// [DictOptions]; without one, opening is [ErrUnsupportedType], naming the field. A container
// keeps the signature of its types, such as
// struct{Addr uint64; Name string; Succ []uint64}, or the name of the codec; opening it
// with others is [ErrTypeMismatch], which tells what differs. Renaming a type is no
// change; renaming, moving or changing a field is. So a file describes itself:
// [Arena.Entries] reads any container without the types of the program that wrote it, and
// [AppendJSON] prints what it yields. [MigrateList] and [MigrateDict] give a container
// another type.
//
// Ready-made codecs are [JSON] and [Gob], and, around other codecs, [Flate],
// which compresses, and [Sealed], which encrypts.
//
// Two keys are equal when their encodings are. For floating point that
// means: -0 equals +0, and all NaNs are one key; for times, that instant and zone offset
// agree. Keys hold no pointers.
//
// An index out of range panics, as with a slice.
//
// # Iteration
//
// Loops yield clean elements only. When one meets damage, or a codec
// fails, it ends early, and the error is kept: run the loop inside [Arena.View],
// which then fails, or look at the Err method of the container or arena
// afterwards. Inside [Arena.Update] such a loop makes the Update fail.
//
// A dict is read in the order of its hashes, which is no order of the keys; a
// list up to the length that it had when the loop began. Changes during a loop,
// also by its body, are allowed: an entry of a dict that is there all the time is
// yielded once, one that comes or goes meanwhile, once or not at all. [Elems] reads a
// value that is a slice as a list is read.
//
// # Processes
//
// One process may have a file open for writing, or any number for reading with
// Options.ReadOnly; Options.LockTimeout says how long to wait for the other kind.
// The lock is the kernel's and goes with the process, so a crash leaves none
// behind. Files on network file systems are refused unless Options.NetworkFS
// allows them.
//
// Another program must not write to or truncate an open file: reading what was
// cut off is a memory fault, as with any mapped file.
//
// # Portability
//
// Where the system maps no files, on WebAssembly (js and wasip1) and Plan 9, the whole
// file lies in memory of the Go heap, and [ErrFull] says that it may grow no more. The
// lock there is the process's own: nothing keeps a second process out. On Plan 9 a file
// created with [io/fs.ModeExclusive] in Options.Mode is open once at a time. Waiting for
// the disk is left to the runtime or file server below. All else is as everywhere.
//
// A file is the same on every operating system, word size and byte order; int
// and uint are 64 bits in it, and on 32-bit systems a value that does not fit is an error.
// The library is pure Go, without cgo. The format has version 0: until it is
// declared version 1, a later version of the library may refuse older files
// with [ErrVersion].
//
// # Limits
//
// A file has at most 16 TiB, a list 2^40 elements, a dict 2^40 entries, a key 64 KiB, a
// value 1 GiB. Beyond that is [ErrTooLarge] or [ErrFull]. Programs of 32 bits are bound by
// their address space: the whole file is mapped. Changed pages take memory until a
// checkpoint, up to Options.DirtyLimit; everything else is page cache, which the system takes
// back as it likes. On Windows what has been changed or added since Open, and the last 64 MiB of
// the file, are charged against the commit limit (memory and page file) until Close: where that has no
// room, a change is ErrFull. Relaxed arenas are not charged.
//
// # Errors
//
// Errors of a file are an [*Error], which says where, around a cause to test
// for with [errors.Is]: [ErrLocked], [ErrCorrupt], [ErrFull] and so on. A full disk
// is an error of a commit and loses nothing: make room and Sync again, or Rollback. After any
// other failure to write, the arena stops: reads go on, and every change and
// commit returns the first error, which is also that of [Arena.Err], until
// the file is opened again, with the last commit in it. A sector that the disk
// cannot read ends a loop with an error; elsewhere, in [EMList.Get] say, it is Go's
// panic for a memory fault.
package emd
