package emd

import (
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestViews(t *testing.T) {
	t.Parallel()
	e := listOf[uint64](t, testArena(t, tiny()), nil)
	want := make([]uint64, 100_000)
	for i := range want {
		want[i] = uint64(i) * 3
	}
	require.NoError(t, e.Append(want...))
	require.NoError(t, e.Delete(0, 1000))
	require.NoError(t, e.Resize(120_000))
	want = append(want[1000:], make([]uint64, 21_000)...)
	runs := 0
	next := 5
	for i, run := range e.Views(5, len(want)-5) {
		require.Equal(t, next, i)
		require.Equal(t, want[i:i+len(run)], run)
		next += len(run)
		runs++
	}
	require.NoError(t, e.Err())
	require.Equal(t, len(want)-5, next)
	for range e.Views(7, 7) {
		t.Error("an empty range has a run")
	}
	if e.raw {
		require.Less(t, runs, 200, "runs are long")
		for _, run := range e.Views(0, 2000) {
			for _, again := range e.Views(0, 2000) {
				require.Same(t, unsafe.SliceData(run), unsafe.SliceData(again), "memory of the file, not a copy")
				break
			}
			break
		}
	} else {
		require.Less(t, runs, 2*len(want)/maxDecoded, "elements are decoded for long runs")
	}
	for _, r := range [][2]int{{-1, 3}, {3, 2}, {0, 120_001}} {
		assert.Panics(t, func() { e.Views(r[0], r[1]) }, r)
	}
}

// A loop whose list becomes shorter stops.
func TestViewsOfShrinkingList(t *testing.T) {
	t.Parallel()
	testViewsShrinking(t, func(i int) uint64 { return uint64(i) })
	testViewsShrinking(t, func(i int) string { return string(rune('a' + i%20)) })
}

func testViewsShrinking[T any](t *testing.T, element func(i int) T) {
	e := listOf[T](t, testArena(t, tiny()), nil)
	var want []T
	for i := range 20_000 {
		want = append(want, element(i))
	}
	require.NoError(t, e.Append(want...))
	seen := 0
	for i, run := range e.Views(0, e.Len()) {
		if i == 0 {
			require.NoError(t, e.Resize(10_000))
		}
		seen = i + len(run)
	}
	require.NoError(t, e.Err())
	require.Equal(t, 10_000, seen)
	loop := e.Views(0, e.Len())
	require.NoError(t, e.Clear())
	for range loop {
		t.Error("runs of an empty list")
	}
	require.NoError(t, e.Arena().Close())
	for range loop {
		t.Error("runs of a closed list")
	}
	require.ErrorIs(t, e.Err(), ErrClosed)
}

func TestViewsLend(t *testing.T) {
	t.Parallel()
	a := testArena(t, testOptions{})
	e := listOf[uint64](t, a, nil)
	require.NoError(t, e.Append(1, 2, 3))
	for name, call := range map[string]func() error{
		"close": a.Close, "rollback": a.Rollback, "drop": func() error { return a.Drop("list") },
	} {
		for range e.Views(0, 3) {
			isError(t, call(), a.path, ErrLent)
		}
		func() {
			defer func() { require.Equal(t, errRefused, recover(), name) }()
			for range e.Views(0, 3) {
				panic(errRefused)
			}
		}()
	}
	requireSame(t, []uint64{1, 2, 3}, e)
	for range e.Views(0, 3) {
		require.NoError(t, e.Set(0, 7))
		require.NoError(t, a.Sync())
		require.NoError(t, a.Update(func() error { return e.Append(4) }))
	}
	requireSame(t, []uint64{7, 2, 3, 4}, e)
	require.NoError(t, a.Rollback(), "lent no more")
	require.NoError(t, a.Drop("list"))
	require.NoError(t, a.Close())
}

func TestViewsNoAllocation(t *testing.T) {
	e := listOf[numbered](t, testArena(t, testOptions{}), nil)
	require.NoError(t, e.Append(make([]numbered, 1000)...))
	var sum uint32
	allocs := testing.AllocsPerRun(100, func() {
		for _, run := range e.Views(10, 20) {
			for _, v := range run {
				sum += v.Key
			}
		}
	})
	if e.raw {
		assert.Zero(t, allocs)
	} else {
		assert.LessOrEqual(t, allocs, 3.0, "for the loop, not for its elements")
	}
}

// What fn panics about, or returns an error for, stays as it was; what it has
// finished is stored.
func TestMutate(t *testing.T) {
	t.Parallel()
	testMutate(t, func(i int) uint64 { return uint64(i) + 1 })
	testMutate(t, func(i int) numbered { return numbered{Key: uint32(i) + 1} })
	testMutate(t, func(i int) padded { return padded{A: i%2 == 0, B: uint64(i) + 1} })
	testMutate(t, func(i int) string { return strings.Repeat("x", i%50+1) })
}

func testMutate[T comparable](t *testing.T, element func(i int) T) {
	a := testArena(t, tiny())
	e := listOf[T](t, a, nil)
	var want []T
	for i := range 30_000 {
		want = append(want, element(i))
	}
	require.NoError(t, e.Append(want...))
	var none T
	change := func(i int, run []T) {
		for k := 0; k < len(run); k += 7 {
			run[k], want[i+k] = none, none
		}
	}
	runs := 0
	err := e.Mutate(3, 27_000, func(i int, run []T) error {
		if runs++; runs == 3 {
			clear(run)
			return errRefused
		}
		change(i, run)
		return nil
	})
	require.ErrorIs(t, err, errRefused)
	requireSame(t, want, e)
	require.PanicsWithValue(t, errRefused, func() {
		_ = e.Mutate(0, e.Len(), func(i int, run []T) error {
			if i > 0 {
				clear(run)
				panic(errRefused)
			}
			change(i, run)
			return nil
		})
	})
	requireSame(t, want, e)
	require.NoError(t, a.Sync())
	require.NoError(t, e.Mutate(0, e.Len(), func(i int, run []T) error {
		clear(run)
		require.Zero(t, want[0])
		v, err := e.Get(i + 1)
		require.NoError(t, err)
		require.Equal(t, want[i+1], v, "the run is a copy")
		return nil
	}))
	requireSame(t, make([]T, len(want)), e)
	for _, r := range [][2]int{{-1, 3}, {3, 2}, {0, len(want) + 1}} {
		require.Panics(t, func() { _ = e.Mutate(r[0], r[1], nil) })
	}
	require.NoError(t, e.Mutate(5, 5, nil))
	require.NoError(t, e.Clear())
	require.NoError(t, e.Resize(200_000))
	size := a.space.private.Load()
	require.NoError(t, e.Mutate(0, e.Len(), func(int, []T) error { return nil }))
	require.LessOrEqual(t, a.space.private.Load(), size+4*pageSize, "zeros take no space")
	require.NoError(t, a.Close())
	isError(t, e.Mutate(0, 1, nil), a.path, ErrClosed)
}

// Only lines that change are written.
func TestMutateMarksLines(t *testing.T) {
	t.Parallel()
	a := testArena(t, testOptions{})
	e := listOf[uint64](t, a, nil)
	require.NoError(t, e.Append(make([]uint64, 100_000)...))
	require.NoError(t, a.Sync())
	a.turn.Lock()
	require.NoError(t, a.checkpoint())
	a.turn.Unlock()
	before := a.space.private.Load()
	require.NoError(t, e.Mutate(0, e.Len(), func(i int, run []uint64) error {
		for k := range run {
			run[k] = 0
		}
		if i == 0 {
			run[100] = 1
		}
		return nil
	}))
	require.EqualValues(t, pageSize, a.space.private.Load()-before)
	v, err := e.Get(100)
	require.NoError(t, err)
	require.EqualValues(t, 1, v)
}

func TestMutateLends(t *testing.T) {
	t.Parallel()
	a := testArena(t, testOptions{})
	e := listOf[uint64](t, a, nil)
	other := listOf2[uint64](t, a, "other")
	require.NoError(t, e.Append(1, 2, 3))
	set := make(chan error)
	require.NoError(t, e.Mutate(0, 3, func(_ int, run []uint64) error {
		for _, err := range []error{a.Close(), a.Rollback(), a.Drop("list")} {
			isError(t, err, a.path, ErrLent)
		}
		run[0] = 7
		go func() { set <- e.Set(0, 9) }()
		select {
		case <-set:
			t.Error("a Set did not wait")
		case <-time.After(10 * time.Millisecond):
		}
		require.NoError(t, other.Append(run...))
		return a.Sync()
	}))
	require.NoError(t, <-set)
	requireSame(t, []uint64{9, 2, 3}, e)
	requireSame(t, []uint64{7, 2, 3}, other)
}

// A failed Update takes back what it finds, so the run that fn had then is
// dropped.
func TestMutateOvertaken(t *testing.T) {
	t.Parallel()
	testMutateOvertaken(t, func(i int) uint64 { return uint64(i) + 1 })
	testMutateOvertaken(t, func(i int) padded { return padded{B: uint64(i) + 1} })
	testMutateOvertaken(t, func(i int) string { return strings.Repeat("x", i+1) })
}

func testMutateOvertaken[T any](t *testing.T, element func(i int) T) {
	a := testArena(t, testOptions{})
	e := listOf[T](t, a, nil)
	want := []T{element(0), element(1), element(2)}
	require.NoError(t, e.Append(want...))
	require.NoError(t, a.Sync())
	isError(t, e.Mutate(0, 3, func(_ int, run []T) error {
		clear(run)
		require.ErrorIs(t, a.Update(func() error { return errRefused }), errRefused)
		return nil
	}), a.path, ErrRolledBack)
	requireSame(t, want, e)
}
