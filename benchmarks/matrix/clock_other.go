//go:build !unix

package matrix

import (
	"io/fs"
	"time"
)

var started = time.Now()

// cpuTime is wall time, where there is no other.
func cpuTime() time.Duration { return time.Since(started) }

func diskSize(info fs.FileInfo) int64 { return info.Size() }
