//go:build unix

package matrix

import (
	"io/fs"
	"syscall"
	"time"
)

// cpuTime returns what all threads of the process have used, in the kernel too.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// diskSize returns the space that a file takes, less than its length if it has holes.
func diskSize(info fs.FileInfo) int64 {
	return int64(info.Sys().(*syscall.Stat_t).Blocks) * 512
}
