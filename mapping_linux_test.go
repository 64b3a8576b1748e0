package emd

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A refused chunk is ErrFull, and the mapping goes on when there is room again.
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
	var err error
	for i := 0; i < 6 && err == nil; i++ {
		_, err = writableChunk(m, 0, size, size)
	}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_DATA, &old))

	if err != nil { // qemu-user does not enforce the limit
		assert.ErrorIs(t, err, ErrFull)
		assert.ErrorIs(t, err, unix.ENOMEM)
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
