package emd

import "golang.org/x/sys/unix"

// preallocate reserves n bytes past the end of the file, where nothing is
// mapped yet. The end stays; the caller moves it.
func preallocate(fd uintptr, _, n int64) error {
	return unix.FcntlFstore(fd, unix.F_PREALLOCATE, &unix.Fstore_t{
		Flags: unix.F_ALLOCATEALL, Posmode: unix.F_PEOFPOSMODE, Length: n,
	})
}
