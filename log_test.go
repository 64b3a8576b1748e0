package emd

import (
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLogLostOnce lets the sync of the writer of zeros fail, as it does when
// the kernel could not write what a commit had put into the log: the kernel tells
// the open file once, so the commit must hear of it from us, and go on hearing of it.
func TestLogLostOnce(t *testing.T) {
	for name, cause := range map[string]error{"EIO": syscall.EIO, "ENOSPC": fullErrors[0]} {
		t.Run(name, func(t *testing.T) {
			disk := newSimDisk()
			l := &redoLog{fs: disk, path: "/log", inline: true}
			require.NoError(t, l.create(1))
			require.NoError(t, l.begin(1, logHeader))
			require.NoError(t, l.write(make([]byte, pageSize), 0))
			l.accept(pageSize)
			var once sync.Once
			disk.before = func(_ int, op string) (err error) {
				if strings.HasPrefix(op, "sync") {
					once.Do(func() { err = cause })
				}
				return err
			}
			require.ErrorIs(t, l.zeroAhead(), cause)
			require.ErrorIs(t, l.sync(), cause)
			require.ErrorIs(t, l.sync(), cause)
			require.Zero(t, l.durable)
			l.accept(zeroStep) // so that zeros are to be written again
			l.writeAhead()     // meets it too
			err := l.write(make([]byte, pageSize), 0)
			require.ErrorIs(t, err, cause)
			require.False(t, onlyFull(err), "a lost sync is not a full disk")
		})
	}
}
