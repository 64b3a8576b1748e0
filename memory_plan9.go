package emd

import (
	"os"
	"strconv"
	"strings"
)

// physicalMemory returns the bytes of memory of the machine, 0 if unknown: the
// first line of /dev/swap is "8589934592 memory".
func physicalMemory() int64 {
	text, _ := os.ReadFile("/dev/swap")
	n, after, _ := strings.Cut(string(text), " ")
	if !strings.HasPrefix(after, "memory\n") {
		return 0
	}
	bytes, _ := strconv.ParseInt(n, 10, 64)
	return bytes
}

// cgroupMemory returns 0: control groups are Linux's.
func cgroupMemory() int64 { return 0 }
