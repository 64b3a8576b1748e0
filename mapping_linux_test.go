package emd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Where a chunk is refused as all of it would be charged, it and those after it are guarded. To own one is refused, until there is room again.
// RLIMIT_DATA counts private writable maps as strict overcommit does.
func TestChunkRefused(t *testing.T) {
	const size = 128 << 20
	f, _ := patternFile(t, testChunk)
	require.NoError(t, f.Truncate(size))
	m := osFS{}.Map(f, true)
	defer m.close()

	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_DATA, &old))
	lower := old
	lower.Cur = min(old.Max, dataBytes(t)+2*size)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_DATA, &lower))
	var p unsafe.Pointer
	var guarded bool
	var err, refused error
	for i := 0; i < 6 && err == nil; i++ {
		p, guarded, err = m.chunk(0, size, size)
		if guarded && refused == nil {
			refused = m.own(p, size)
		}
	}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_DATA, &old))

	require.NoError(t, err)
	if os.Getenv("EMD_TEST_EMULATOR") == "" { // an emulator does not enforce the limit
		require.True(t, guarded)
		require.ErrorIs(t, refused, ErrFull)
		require.NoError(t, m.own(p, size))
	}
	_, err = writableChunk(m, 0, testChunk, testChunk)
	assert.NoError(t, err)
}

// What of a file is in memory the kernel tells only those who own it or may write it; others hear that all is.
func TestMappingTells(t *testing.T) {
	path := filepath.Join(tempDir(t), "f")
	f, _ := patternFileAt(t, path, testChunk)
	known := func(writable bool) bool {
		m := osFS{}.Map(f, writable)
		defer m.close()
		p, _, err := m.chunk(0, testChunk, testChunk)
		require.NoError(t, err)
		is, known := m.resident(p, testChunk)
		assert.Equal(t, known, is, "of a file that was just written")
		return known
	}
	assert.True(t, known(false))
	assert.True(t, known(true))
	if err := os.Chown(path, os.Geteuid()+1, -1); err != nil {
		unavailable(t, "only root can give a file away: %v", err)
	}
	assert.False(t, known(false))
	assert.True(t, known(true))
}

// The advice for a loop is that of the range alone, ends with the loop, and is not given where pages are written or the system
// reads ahead too little.
func TestMappingStreams(t *testing.T) {
	f, _ := patternFile(t, 3*testChunk)
	read, written := osFS{}.Map(f, false).(*unixMapping), osFS{}.Map(f, true).(*unixMapping)
	defer read.close()
	defer written.close()
	p, _, err := read.chunk(0, 3*testChunk, 3*testChunk)
	require.NoError(t, err)
	part := unsafe.Add(p, testChunk)

	read.deep = func() bool { return false }
	require.False(t, read.stream(part, testChunk, true))
	require.Equal(t, "random random random", adviceAt(t, p, part, unsafe.Add(part, testChunk)))
	read.deep = func() bool { return true }
	require.True(t, read.stream(part, testChunk, true))
	require.Equal(t, "random usual random", adviceAt(t, p, part, unsafe.Add(part, testChunk)))
	require.True(t, read.stream(part, testChunk, false))
	require.Equal(t, "random random random", adviceAt(t, p, part, unsafe.Add(part, testChunk)))

	written.deep = read.deep
	p, err = writableChunk(written, 0, testChunk, testChunk)
	require.NoError(t, err)
	require.False(t, written.stream(p, testChunk, true))
	require.Equal(t, "random", adviceAt(t, p))
}

// adviceAt names the advice for the pages at p, as the kernel tells it.
func adviceAt(t *testing.T, p ...unsafe.Pointer) string {
	if os.Getenv("EMD_TEST_EMULATOR") != "" {
		t.Skip("the emulator makes up what the kernel would tell")
	}
	text, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	found := make([]string, len(p))
	var from, to uintptr
	for line := range strings.Lines(string(text)) {
		var f, u uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &f, &u); n == 2 {
			from, to = f, u
		}
		flags, ok := strings.CutPrefix(line, "VmFlags:")
		for i, p := range p {
			if ok && from <= uintptr(p) && uintptr(p) < to {
				found[i] = "usual"
				if slices.Contains(strings.Fields(flags), "rr") {
					found[i] = "random"
				}
			}
		}
	}
	return strings.Join(found, " ")
}

// How far the system reads ahead is told of whole disks, and of parts of them by the disk.
func TestReadAhead(t *testing.T) {
	names, err := filepath.Glob("/sys/class/block/*/dev")
	require.NoError(t, err)
	tested := 0
	for _, name := range names {
		number, err := os.ReadFile(name)
		if err != nil {
			continue // a device that was taken away meanwhile
		}
		var major, minor uint32
		_, err = fmt.Sscanf(string(number), "%d:%d", &major, &minor)
		require.NoError(t, err)
		disk := filepath.Dir(name)
		if _, err := os.Stat(filepath.Join(disk, "partition")); err == nil {
			disk, err = filepath.EvalSymlinks(disk)
			require.NoError(t, err)
			disk = filepath.Dir(disk)
		}
		text, err := os.ReadFile(filepath.Join(disk, "queue/read_ahead_kb"))
		if err != nil {
			continue
		}
		want, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		require.NoError(t, err)
		assert.Equal(t, want<<10, readAheadOf(unix.Mkdev(major, minor)), disk)
		tested++
	}
	if tested == 0 {
		unavailable(t, "no block device in sight")
	}
	assert.Zero(t, readAheadOf(unix.Mkdev(4000, 4000)))
}

// dataBytes returns what the kernel counts against RLIMIT_DATA now.
func dataBytes(t *testing.T) uint64 {
	n, err := statusBytes("VmData:")
	require.NoError(t, err)
	return n
}

// statusBytes returns a figure of /proc/self/status.
func statusBytes(name string) (uint64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), name)
	kib, err := strconv.ParseUint(strings.Fields(rest + " 0")[0], 10, 64)
	return kib << 10, err
}

func TestMemTotal(t *testing.T) {
	for text, want := range map[string]int64{
		"MemTotal:       16384 kB\nMemFree: 1 kB\n": 16 << 20,
		"MemTotal: many kB\n":                       0,
		"":                                          0,
	} {
		assert.Equal(t, want, memTotal(fstest.MapFS{"proc/meminfo": {Data: []byte(text)}}), text)
	}
}

func TestCgroupLimit(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"none":    {nil, 0},
		"garbage": {map[string]string{"proc/self/cgroup": "x\n::\n0::\n"}, 0},
		"version 2, the outer group binds": {map[string]string{
			"proc/self/cgroup":             "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n",
			"sys/fs/cgroup/a/memory.max":   "1048576\n",
		}, 1 << 20},
		"version 2, container": {map[string]string{
			"proc/self/cgroup":         "0::/\n",
			"sys/fs/cgroup/memory.max": "2097152\n",
		}, 2 << 20},
		"version 2, outside of its namespace": {map[string]string{
			"proc/self/cgroup":         "0::/../../x\n",
			"sys/fs/cgroup/memory.max": "2097152\n",
		}, 2 << 20},
		"version 1": {map[string]string{
			"proc/self/cgroup": "5:cpu,cpuacct:/d\n4:hugetlb,memory:/docker/d\n0::/d\n",
			"sys/fs/cgroup/memory/docker/d/memory.limit_in_bytes": "4194304\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":          "9223372036854771712\n",
		}, 4 << 20},
	} {
		root := fstest.MapFS{}
		for path, text := range c.files {
			root[path] = &fstest.MapFile{Data: []byte(text)}
		}
		assert.Equal(t, c.want, cgroupLimit(root), name)
	}
}
