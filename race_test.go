//go:build race

package emd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRacePlanted requires that the race detector sees the memory of an arena on the heap: a child races there, and must be told.
func TestRacePlanted(t *testing.T) {
	t.Parallel()
	c := child(t, "race", tempDir(t)+"/race.emd")
	_, err := c.rest()
	require.Error(t, err, "a process with a data race must end with an error")
	require.Contains(t, c.errs.String(), "WARNING: DATA RACE")
	require.Contains(t, c.errs.String(), "heap_test.go")
}
