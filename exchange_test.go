package emd

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestExchange leaves two files for other systems in the folder that
// EMD_TEST_EXCHANGE names: one that was closed, and one as a crash leaves it, with
// a log that changes it. Then it opens all files there, whoever left them. See
// make wasm.
func TestExchange(t *testing.T) {
	dir := os.Getenv("EMD_TEST_EXCHANGE")
	if dir == "" {
		dir = tempDir(t)
	}
	name := filepath.Join(dir, runtime.GOOS+"-"+runtime.GOARCH)
	path := filepath.Join(tempDir(t), "here.emd")
	a, err := Open(path, nil)
	require.NoError(t, err)
	for _, s := range samples {
		s.write(t, a)
	}
	numbers, err := List[uint32](a, "exchanged", nil)
	require.NoError(t, err)
	require.NoError(t, numbers.Append(squares(300_000)...)) // runs of more than a MiB
	require.NoError(t, a.Sync())
	for i := range numbers.Len() {
		if i%1000 == 0 {
			require.NoError(t, numbers.Set(i, 7))
		}
	}
	require.NoError(t, a.Sync(), "into the log")
	copyFile(t, path, name+"-crashed.emd")
	copyFile(t, logPath(path), logPath(name+"-crashed.emd"))
	require.NoError(t, a.Close())
	copyFile(t, path, name+"-closed.emd")

	left, err := filepath.Glob(filepath.Join(dir, "*.emd"))
	require.NoError(t, err)
	require.NotEmpty(t, left)
	for _, other := range left {
		t.Run(filepath.Base(other), func(t *testing.T) {
			path := filepath.Join(tempDir(t), "copy.emd")
			copyFile(t, other, path)
			crashed := strings.HasSuffix(other, "-crashed.emd")
			if crashed {
				copyFile(t, logPath(other), logPath(path))
			}
			for _, o := range []Options{{ReadOnly: true}, {}, {}} {
				a, err := Open(path, &o)
				require.NoError(t, err)
				require.NoError(t, a.verify())
				for _, s := range samples {
					s.check(t, a)
				}
				want := squares(300_000)
				for i := range want {
					if i%1000 == 0 {
						want[i] = 7
					}
				}
				numbers, err := List[uint32](a, "exchanged", nil)
				require.NoError(t, err)
				assert.Equal(t, want, slices.Collect(numbers.Values()))
				require.NoError(t, a.Close())
			}
			assert.NoFileExists(t, logPath(path))
		})
	}
}
