package emd

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// physicalMemory returns the bytes of memory of the machine, 0 if unknown.
func physicalMemory() int64 { return memTotal(os.DirFS("/")) }

// cgroupMemory returns the memory limit of the process's control group, of
// version 1 or 2, in bytes; 0 if there is none.
func cgroupMemory() int64 { return cgroupLimit(os.DirFS("/")) }

// memTotal reads "MemTotal:  16384 kB" of meminfo.
func memTotal(root fs.FS) int64 {
	text, _ := fs.ReadFile(root, "proc/meminfo")
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			kib, _ := strconv.ParseInt(f[1], 10, 53)
			return kib << 10
		}
	}
	return 0
}

// cgroupLimit returns the least limit of the groups of the process. A line of
// proc/self/cgroup is hierarchy:controllers:path, with nothing between the
// colons in version 2.
func cgroupLimit(root fs.FS) int64 {
	text, _ := fs.ReadFile(root, "proc/self/cgroup")
	var limit int64
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		f := strings.SplitN(s.Text(), ":", 3)
		switch {
		case len(f) != 3:
		case f[1] == "":
			limit = leastLimit(root, limit, "sys/fs/cgroup", f[2], "memory.max")
		case strings.Contains(","+f[1]+",", ",memory,"):
			limit = leastLimit(root, limit, "sys/fs/cgroup/memory", f[2], "memory.limit_in_bytes")
		}
	}
	return limit
}

// leastLimit returns the least of limit and the limits in file name of the
// group and of those around it, which bind too. In a container the mount often
// begins at the group itself, and only the topmost path exists. A file that
// does not hold a number ("max") sets no limit; version 1 has a huge number
// there.
func leastLimit(root fs.FS, limit int64, mount, group, name string) int64 {
	for group = path.Clean("/" + group); ; group = path.Dir(group) {
		text, _ := fs.ReadFile(root, path.Join(mount, group, name))
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && n > 0 && (limit == 0 || n < limit) {
			limit = n
		}
		if group == "/" {
			return limit
		}
	}
}
