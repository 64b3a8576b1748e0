package emd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// listOf opens a list in a test arena.
func listOf[T any](t testing.TB, a *Arena, opts *ListOptions[T]) *EMList[T] {
	t.Helper()
	e, err := List(a, "list", opts)
	require.NoError(t, err)
	return e
}

// contents reads a whole list through its iterator.
func contents[T any](t testing.TB, e *EMList[T]) []T {
	t.Helper()
	s := []T{}
	for i, v := range e.All() {
		require.Equal(t, len(s), i)
		s = append(s, v)
	}
	require.NoError(t, e.Err())
	return s
}

func requireSame[T any](t testing.TB, want []T, e *EMList[T]) {
	t.Helper()
	require.Equal(t, len(want), e.Len())
	have := contents(t, e)
	if len(want) == 0 && len(have) == 0 || reflect.DeepEqual(want, have) {
		return
	}
	for i := range want {
		require.Equal(t, want[i], have[i], "element %d of %d", i, len(want))
	}
}

type odd struct {
	A uint32
	B uint16
}

// reversed is a codec of the user's, which refuses some values.
type reversed struct{}

func (reversed) Name() string { return "reversed v1" }

func (reversed) Append(dst []byte, v string) ([]byte, error) {
	if v == "refused" {
		return nil, errRefused
	}
	b := []byte(v)
	slices.Reverse(b)
	return append(dst, b...), nil
}

func (reversed) Decode(src []byte) (string, error) {
	b := slices.Clone(src)
	slices.Reverse(b)
	if string(b) == "unreadable" {
		return "", errRefused
	}
	return string(b), nil
}

var errRefused = errors.New("refused")

func randomText(r *rand.Rand) string {
	n := r.IntN(40)
	switch r.IntN(40) {
	case 0:
		n = r.IntN(6000)
	case 1:
		n = 30000 + r.IntN(60000)
	}
	return strings.Repeat(string(rune('a'+r.IntN(26))), n) + fmt.Sprint(r.IntN(100))[:r.IntN(2)]
}

func TestEMListModel(t *testing.T) {
	testModel(t, "uint64", nil, func(r *rand.Rand) uint64 { return r.Uint64() })
	testModel(t, "uint8", nil, func(r *rand.Rand) uint8 { return uint8(r.Uint32()) })
	testModel(t, "[3]byte", nil, func(r *rand.Rand) [3]byte { return [3]byte{byte(r.Uint32()), 1, byte(r.Uint32())} })
	testModel(t, "[700]uint32", nil, func(r *rand.Rand) [700]uint32 { return [700]uint32{0: r.Uint32(), 699: r.Uint32()} })
	testModel(t, "struct", nil, func(r *rand.Rand) odd { return odd{r.Uint32(), uint16(r.Uint32())} })
	testModel(t, "bool", nil, func(r *rand.Rand) bool { return r.IntN(2) == 0 })
	testModel(t, "empty", nil, func(r *rand.Rand) struct{} { return struct{}{} })
	testModel(t, "string", nil, randomText)
	testModel(t, "bytes", nil, func(r *rand.Rand) []byte {
		switch r.IntN(3) {
		case 0:
			return nil
		case 1:
			return []byte{}
		}
		return []byte(randomText(r))
	})
	testModel(t, "large", nil, func(r *rand.Rand) [9000]uint64 { return [9000]uint64{5: r.Uint64(), 8999: r.Uint64()} })
	testModel(t, "codec", &ListOptions[string]{Codec: reversed{}}, randomText)
}

func testModel[T any](t *testing.T, name string, opts *ListOptions[T], random func(r *rand.Rand) T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprintf("%s/seed=%d", name, seed), func(t *testing.T) {
			t.Parallel()
			m := &listModel[T]{t: t, opts: opts, r: rand.New(rand.NewPCG(seed, 7)), random: random, path: filepath.Join(tempDir(t), "m.emd")}
			m.o = []testOptions{tiny(), {}, tiny(), {}, relaxed()}[seed]
			m.o.opts.HashSeed = seed + 1
			m.run()
		})
	}
}

// A listModel does the same to a list and to a slice.
type listModel[T any] struct {
	t         *testing.T
	r         *rand.Rand
	o         testOptions
	opts      *ListOptions[T]
	random    func(r *rand.Rand) T
	path      string
	a         *Arena
	e         *EMList[T]
	want      []T
	committed []T
	large     bool // elements
}

func (m *listModel[T]) run() {
	m.large = reflect.TypeFor[T]().Size() > 1000
	steps := 1200
	if testing.Short() || raceEnabled {
		steps = 150
	}
	if reflect.TypeFor[T]().Size() > 10000 {
		steps /= 6
	}
	m.open()
	for step := range steps {
		op := m.step()
		if step%16 == 0 {
			requireSame(m.t, m.want, m.e)
		}
		if step%64 == 0 || steps-step < 3 { // these read the whole file
			require.NoError(m.t, m.a.verify(), "after step %d, %s", step, op)
			require.NoError(m.t, m.a.verifyMemory(), "after step %d, %s", step, op)
		}
		require.Equal(m.t, len(m.want), m.e.Len(), "after step %d, %s", step, op)
	}
	require.NoError(m.t, m.a.Close())
	m.open()
	requireSame(m.t, m.want, m.e)
}

func (m *listModel[T]) open() {
	m.a = reopen(m.t, m.path, m.o)
	m.e = listOf(m.t, m.a, m.opts)
}

// some returns a few random elements, rarely many.
func (m *listModel[T]) some() []T {
	n := m.r.IntN(4)
	switch m.r.IntN(20) {
	case 0:
		n = m.r.IntN(2000)
	case 1:
		n = m.r.IntN(200)
	}
	if m.large {
		n = min(n, 20)
	}
	s := make([]T, n)
	for i := range s {
		s[i] = m.random(m.r)
	}
	return s
}

// stretch returns a random range of the list, mostly a short one.
func (m *listModel[T]) stretch() (i, j int) {
	i = m.r.IntN(len(m.want) + 1)
	j = i + m.r.IntN(len(m.want)-i+1)
	switch m.r.IntN(5) {
	case 0:
		return 0, min(j, 50)
	case 1:
		return max(i, len(m.want)-50), len(m.want)
	case 2:
		return i, j
	}
	return i, min(j, i+20)
}

// step does something, and returns what.
func (m *listModel[T]) step() string {
	t, e, r := m.t, m.e, m.r
	const limit = 20000
	switch n := len(m.want); r.IntN(24) {
	case 0, 1, 2:
		s := m.some()
		require.NoError(t, e.Append(s...))
		m.want = append(m.want, s...)
		return "append"
	case 3:
		s := m.some()
		require.NoError(t, e.AppendSeq(slices.Values(s)))
		m.want = append(m.want, s...)
		return "append seq"
	case 4, 5:
		if n == 0 {
			break
		}
		i, v := r.IntN(n), m.random(r)
		require.NoError(t, e.Set(i, v))
		m.want[i] = v
		return "set"
	case 6:
		v, ok, err := e.Pop()
		require.NoError(t, err)
		require.Equal(t, n > 0, ok)
		if ok {
			require.Equal(t, m.want[n-1], v)
			m.want = m.want[:n-1]
		}
		return "pop"
	case 7, 8:
		i, s := r.IntN(n+1), m.some()
		if r.IntN(4) == 0 {
			i = min(i, 3)
		}
		require.NoError(t, e.Insert(i, s...))
		m.want = slices.Insert(m.want, i, s...)
		return fmt.Sprintf("insert %d at %d of %d", len(s), i, n)
	case 9, 10:
		i, j := m.stretch()
		require.NoError(t, e.Delete(i, j))
		m.want = slices.Delete(m.want, i, j)
		return fmt.Sprintf("delete [%d:%d] of %d", i, j, n)
	case 11:
		if n == 0 {
			break
		}
		i, j := r.IntN(n), r.IntN(n)
		require.NoError(t, e.Swap(i, j))
		m.want[i], m.want[j] = m.want[j], m.want[i]
		return "swap"
	case 12:
		size := r.IntN(n + 1)
		if r.IntN(3) > 0 {
			size = n + r.IntN(500)
			if r.IntN(5) == 0 && !m.large {
				size = n + r.IntN(9000)
			}
		}
		require.NoError(t, e.Resize(size))
		m.want = append(m.want, make([]T, max(0, size-n))...)[:size]
		return fmt.Sprintf("resize %d to %d", n, size)
	case 13:
		i, j := m.stretch()
		v := m.random(r)
		if r.IntN(4) == 0 {
			v = *new(T)
		}
		if e.l.refs {
			j = min(j, i+100)
		}
		require.NoError(t, e.Fill(i, j, v))
		for ; i < j; i++ {
			m.want[i] = v
		}
		return "fill"
	case 14:
		if n < limit && r.IntN(20) != 0 {
			break
		}
		require.NoError(t, e.Clear())
		m.want = nil
		return "clear"
	case 15:
		mod, k := 1+r.IntN(5), 0
		if r.IntN(3) == 0 {
			mod = 1 + r.IntN(n+1)
		}
		keep := m.want[:0:0]
		for i, v := range m.want {
			if i%mod != mod-1 {
				keep = append(keep, v)
			}
		}
		deleted, err := e.DeleteFunc(func(v T) bool {
			assert.True(t, reflect.DeepEqual(m.want[k], v), "element %d", k)
			k++
			return (k-1)%mod == mod-1
		})
		require.NoError(t, err)
		require.Equal(t, n, k)
		require.Equal(t, n-len(keep), deleted)
		m.want = keep
		return "delete func"
	case 16:
		i, j := m.stretch()
		dst := make([]T, j-i)
		copied, err := e.CopyTo(dst, i)
		require.NoError(t, err)
		require.Equal(t, j-i, copied)
		require.True(t, reflect.DeepEqual(m.want[i:j:j], dst[:copied]) || i == j)
		return "copy"
	case 17:
		if n == 0 {
			break
		}
		index := make([]int, r.IntN(50))
		for k := range index {
			index[k] = r.IntN(n)
		}
		dst := make([]T, len(index))
		require.NoError(t, e.GetMany(dst, index))
		for k, i := range index {
			require.Equal(t, m.want[i], dst[k])
			v, err := e.Get(i)
			require.NoError(t, err)
			require.Equal(t, m.want[i], v)
		}
		return "get"
	case 18:
		i, j := m.stretch()
		k := i
		for at, v := range e.Range(i, j) {
			require.Equal(t, k, at)
			require.True(t, reflect.DeepEqual(m.want[k], v))
			k++
		}
		require.Equal(t, j, k)
		k = n
		for at, v := range e.Backward() {
			k--
			require.Equal(t, k, at)
			require.True(t, reflect.DeepEqual(m.want[k], v))
		}
		require.Zero(t, k)
		return "range"
	case 19:
		if r.IntN(3) == 0 {
			return m.commitOrNot()
		}
	case 20:
		if len(m.want) < limit {
			break
		}
		require.NoError(t, e.Delete(0, n-10))
		m.want = slices.Clone(m.want[n-10:])
		return "shrink"
	case 21:
		if r.IntN(4) != 0 {
			break
		}
		// By some of the bytes, so that many are equal.
		shift := r.IntN(3)
		key := func(v T) []byte {
			b, err := e.codec.encode(nil, &v)
			require.NoError(t, err)
			return b[min(shift, len(b)):min(len(b), shift+1)]
		}
		compare := func(a, b T) int { return bytes.Compare(key(a), key(b)) }
		require.NoError(t, e.SortFunc(compare))
		m.want = slices.Clone(m.want)
		slices.SortStableFunc(m.want, compare)
		m.search(key)
		return "sort"
	case 22:
		i, j := m.stretch()
		k := i
		for at, run := range e.Views(i, j) {
			require.Equal(t, k, at)
			require.NotEmpty(t, run)
			require.True(t, reflect.DeepEqual(m.want[k:k+len(run):k+len(run)], slices.Clip(run)))
			k += len(run)
		}
		require.Equal(t, j, k)
		return "views"
	case 23:
		i, j := m.stretch()
		k, stop := i, i+r.IntN(2*(j-i)+1)
		err := e.Mutate(i, j, func(at int, run []T) error {
			require.Equal(t, k, at)
			require.NotEmpty(t, run)
			require.True(t, reflect.DeepEqual(m.want[k:k+len(run):k+len(run)], slices.Clip(run)))
			refused := at > stop
			for range 1 + len(run)/16 {
				v, n := m.random(r), r.IntN(len(run))
				if run[n] = v; !refused {
					m.want[at+n] = v
				}
			}
			if refused {
				return errRefused
			}
			k += len(run)
			return nil
		})
		if k < j {
			require.ErrorIs(t, err, errRefused)
		} else {
			require.NoError(t, err)
		}
		return "mutate"
	}
	return "nothing"
}

// search looks for some elements, and for what is not there, in a list sorted by key.
func (m *listModel[T]) search(key func(T) []byte) {
	for range 5 {
		target := key(m.random(m.r))
		compare := func(v T) int { return bytes.Compare(key(v), target) }
		want, there := slices.BinarySearchFunc(m.want, target, func(v T, _ []byte) int { return compare(v) })
		i, found, err := m.e.BinarySearchFunc(compare)
		require.NoError(m.t, err)
		require.Equal(m.t, want, i)
		require.Equal(m.t, there, found)
	}
}

func (m *listModel[T]) commitOrNot() string {
	switch m.r.IntN(4) {
	case 0:
		require.NoError(m.t, m.a.Close())
		m.open()
		return "reopen"
	case 1:
		if m.o.opts.Relaxed {
			return "nothing"
		}
		err := m.a.Update(func() error {
			m.committed = slices.Clone(m.want)
			require.NoError(m.t, m.e.Append(m.some()[:0]...))
			require.NoError(m.t, m.e.Resize(len(m.want)/2))
			return errRefused
		})
		require.ErrorIs(m.t, err, errRefused)
		m.want = m.committed
		return "update rolled back"
	case 2:
		require.NoError(m.t, m.a.Sync())
		if m.o.opts.Relaxed {
			require.ErrorIs(m.t, m.a.Rollback(), ErrUnsupported)
			return "rollback refused"
		}
		require.NoError(m.t, m.a.Rollback())
		return "rollback of nothing"
	default:
		require.NoError(m.t, m.a.Sync())
		return "sync"
	}
}

// Appending and deleting from the front for ever must not make file nor table
// grow.
func TestEMListQueue(t *testing.T) {
	for _, keep := range []int{0, 1, 100, 20000} {
		t.Run(fmt.Sprintf("keep=%d", keep), func(t *testing.T) {
			t.Parallel()
			a := testArena(t, tiny())
			e := listOf[uint64](t, a, nil)
			rounds := 300
			if raceEnabled {
				rounds = 60
			}
			next, first, settled := uint64(0), uint64(0), int64(0)
			for round := range rounds {
				for range 2000 {
					require.NoError(t, e.Append(next))
					next++
					if e.Len() > keep {
						require.NoError(t, e.Delete(0, 1))
						first++
					}
				}
				require.Equal(t, int(next-first), e.Len())
				if e.Len() > 0 {
					v, err := e.Get(0)
					require.NoError(t, err)
					require.Equal(t, first, v)
				}
				if round == rounds/4 {
					require.NoError(t, a.Sync())
					settled = a.Stats().File
				}
			}
			require.NoError(t, a.Sync())
			assert.LessOrEqual(t, a.Stats().File, settled+1<<20)
			assert.LessOrEqual(t, len(e.l.table.Load().entries), inlineExtents)
		})
	}
}

func TestEMListQueueOfStrings(t *testing.T) {
	a := testArena(t, tiny())
	e := listOf[string](t, a, nil)
	r := rand.New(rand.NewPCG(1, 1))
	var want []string
	settled := int64(0)
	for round := range 3000 {
		s := randomText(r)
		require.NoError(t, e.Append(s))
		if want = append(want, s); len(want) > 50 {
			n := 1 + r.IntN(3)
			require.NoError(t, e.Delete(0, n))
			want = want[n:]
		}
		if round == 1500 {
			require.NoError(t, a.Sync())
			settled = a.Stats().File
		}
	}
	requireSame(t, want, e)
	require.NoError(t, a.Sync())
	assert.LessOrEqual(t, a.Stats().File, settled+settled/2)
}

func TestEMListSparse(t *testing.T) {
	n := 1 << 30
	if !bits32 {
		n *= 64
	}
	path := filepath.Join(tempDir(t), "sparse.emd")
	a := reopen(t, path, testOptions{})
	e := listOf[uint64](t, a, nil)
	get := func(i int) uint64 {
		v, err := e.Get(i)
		require.NoError(t, err)
		return v
	}
	require.NoError(t, e.Resize(n))
	require.NoError(t, a.Sync())
	assert.Less(t, a.Stats().File, int64(1<<20))
	assert.Zero(t, get(n-1))

	at := []int{n / 2, 5, n / 4, n - 1, n/4 - 1}
	for _, i := range at {
		require.NoError(t, e.Set(i, uint64(i)))
	}
	require.NoError(t, a.Close())
	a = reopen(t, path, testOptions{})
	e = listOf[uint64](t, a, nil)
	for _, i := range at {
		assert.Equal(t, uint64(i), get(i))
	}
	require.NoError(t, e.Delete(6, 8))
	require.NoError(t, e.Insert(n/8, 1, 2, 3))
	require.Equal(t, n+1, e.Len())
	for i, want := range map[int]int{5: 5, 6: 0, n / 8: 1, n/8 + 2: 3, n/4 + 1: n / 4, n/2 + 1: n / 2, n: n - 1} {
		assert.Equal(t, uint64(want), get(i), "element %d", i)
	}
	require.NoError(t, e.Fill(1<<20, n, 0))
	require.NoError(t, e.Fill(n/64, n/64+10, 9))
	require.NoError(t, e.Resize(n/64+5))
	require.NoError(t, e.Resize(n/64+20))
	assert.Zero(t, get(n/64+6), "what was cut off has not come back")
	require.NoError(t, a.Sync())
	assert.Less(t, a.Stats().File, int64(400<<20))
}

const bits32 = ^uint(0)>>32 == 0

func TestEMListZeroSize(t *testing.T) {
	a := testArena(t, testOptions{})
	e := listOf[struct{}](t, a, nil)
	n := min(1<<40, maxListLen)
	require.NoError(t, e.Resize(n-1))
	require.NoError(t, e.Append(struct{}{}))
	require.ErrorIs(t, e.Append(struct{}{}), ErrTooLarge)
	require.ErrorIs(t, e.Insert(7, struct{}{}), ErrTooLarge)
	require.Equal(t, n, e.Len())
	require.NoError(t, e.Delete(10, n-10))
	require.NoError(t, e.Set(19, struct{}{}))
	require.Len(t, contents(t, e), 20)
}

func TestEMListTooLarge(t *testing.T) {
	a := testArena(t, testOptions{})
	e := listOf[uint16](t, a, nil)
	if n := maxListLen; !bits32 {
		require.ErrorIs(t, e.Resize(n+1), ErrTooLarge)
		require.NoError(t, e.Resize(n))
		require.ErrorIs(t, e.Append(1), ErrTooLarge)
		require.ErrorIs(t, e.Insert(0, 1), ErrTooLarge)
		require.Equal(t, n, e.Len())
		require.NoError(t, e.Delete(0, 5))
		require.NoError(t, e.Resize(n-2))
		require.NoError(t, e.Append(1))
		require.NoError(t, e.Append(2))
		require.ErrorIs(t, e.Append(3), ErrTooLarge)
		require.ErrorIs(t, e.Append(3, 4), ErrTooLarge)
		require.Equal(t, n, e.Len())
	}
}

// Every length around the borders of extents, with the table inline and out
// of line.
func TestEMListExtentBorders(t *testing.T) {
	a := testArena(t, tiny())
	e := listOf[[64]byte](t, a, nil)
	value := func(i int) (v [64]byte) {
		binary.LittleEndian.PutUint64(v[:], uint64(i)+1)
		v[63] = byte(i)
		return v
	}
	table := e.l.table.Load()
	next := 0
	for k := uint64(1); k < 600; k++ {
		border := int(table.start(k))
		for next < border-1 {
			part := make([][64]byte, min(500, border-1-next))
			for i := range part {
				part[i] = value(next + i)
			}
			require.NoError(t, e.Append(part...))
			next += len(part)
		}
		for range 2 {
			require.NoError(t, e.Append(value(next)))
			next++
		}
		for range 2 {
			v, ok, err := e.Pop()
			require.NoError(t, err)
			require.True(t, ok)
			next--
			require.Equal(t, value(next), v)
		}
		if k < 12 || k%97 == 0 {
			require.NoError(t, e.Insert(border-1, value(7), value(8)))
			v, err := e.Get(border)
			require.NoError(t, err)
			require.Equal(t, value(8), v)
			require.NoError(t, e.Delete(border-1, border+1))
		}
		if raceEnabled && k > 60 {
			break
		}
	}
	for i, v := range e.All() {
		if v != value(i) {
			require.Equal(t, value(i), v, "element %d", i)
		}
	}
	if !raceEnabled {
		require.Greater(t, len(e.l.table.Load().entries), inlineExtents)
	}
	require.NoError(t, a.Sync())
	require.NoError(t, a.verify())
	require.NoError(t, e.Clear())
	require.Len(t, e.l.table.Load().entries, inlineExtents)
}

// Extent numbers, and what lies in them, follow each other without a gap.
func TestExtentTableLocate(t *testing.T) {
	for _, table := range []extentTable{{grain: 0, last: 0, width: 5}, {grain: 3, last: 3, width: 8}, {grain: 2, last: 7, width: 3}, {grain: 9, last: 10, width: 8}} {
		k, at := uint64(0), uint64(0)
		for p := range uint64(5000) {
			if at == table.slots(k) {
				k, at = k+1, 0
			}
			gotK, gotAt := table.locate(p)
			require.Equal(t, []uint64{k, at}, []uint64{gotK, gotAt}, "slot %d of %+v", p, table)
			require.Equal(t, p, table.start(k)+at)
			at++
		}
	}
}

// The short way to a slot leads where the long one does, if it is known there, and nowhere once that is forgotten.
func TestExtentTableMemory(t *testing.T) {
	for _, table := range []*extentTable{
		{grain: 0, last: 0, width: 5}, {grain: 3, last: 3, width: 8}, {grain: 2, last: 5, width: 3},
		{grain: 2, last: 5, width: 3, base: 2}, {grain: 2, last: 5, width: 3, base: 4}, {grain: 2, last: 5, width: 3, base: 17},
		{grain: 3, last: 3, width: 8, base: 1 << 62},
	} {
		table.entries = make([]uint32, 20)
		table.makeMem()
		r := rand.New(rand.NewPCG(uint64(table.last), table.base))
		known, found := make([]unsafe.Pointer, len(table.mem)), 0
		for range 100 {
			i := uint64(r.IntN(len(known)))
			known[i] = nil
			if r.IntN(3) != 0 {
				known[i] = unsafe.Pointer(unsafe.SliceData(make([]byte, table.width<<table.last)))
			}
			table = table.setMem(table.base+i, known[i])
			for p := range uint64(800) {
				k, at := table.locate(p)
				var want unsafe.Pointer
				if i := k - table.base; i < uint64(len(known)) && known[i] != nil {
					want = unsafe.Add(known[i], at*table.width)
					found++
				}
				if got := table.memory(p); got != want {
					require.Equal(t, want, got, "slot %d of extents from %d on", p, table.base)
				}
			}
		}
		require.Equal(t, table.base < 1<<62, found > 0)
	}
}

func TestEMListPanics(t *testing.T) {
	a := testArena(t, testOptions{})
	e := listOf[int32](t, a, nil)
	s := listOf2[string](t, a, "strings")
	require.NoError(t, e.Append(1, 2, 3))
	require.NoError(t, s.Append("1", "2", "3"))
	for _, c := range []struct {
		text string
		call func()
	}{
		{"index out of range [3] with length 3", func() { _, _ = e.Get(3) }},
		{"index out of range [3] with length 3", func() { _, _ = s.Get(3) }},
		{"index out of range [-1]", func() { _, _ = e.Get(-1) }},
		{"index out of range [5] with length 3", func() { _ = e.Set(5, 1) }},
		{"index out of range [5] with length 3", func() { _ = s.Set(5, "") }},
		{"index out of range [4] with length 3", func() { _ = e.Swap(1, 4) }},
		{"index out of range [-4]", func() { _ = e.Swap(-4, -4) }},
		{"slice bounds out of range [4:3]", func() { _ = e.Insert(4) }},
		{"slice bounds out of range [4:3]", func() { _ = s.Insert(4, "x") }},
		{"slice bounds out of range [-1:]", func() { _ = e.Insert(-1, 5) }},
		{"slice bounds out of range [:4] with length 3", func() { _ = e.Delete(4, 4) }},
		{"slice bounds out of range [2:1]", func() { _ = e.Delete(2, 1) }},
		{"slice bounds out of range [-2:]", func() { _ = e.Delete(-2, 1) }},
		{"slice bounds out of range [:9] with length 3", func() { _ = e.Fill(0, 9, 5) }},
		{"slice bounds out of range [:9] with length 3", func() { _ = e.Range(0, 9) }},
		{"slice bounds out of range [4:3]", func() { _, _ = e.CopyTo(nil, 4) }},
		{"list resized to -1 elements", func() { _ = e.Resize(-1) }},
		{"GetMany of 1 indexes into a slice of length 2", func() { _ = e.GetMany(make([]int32, 2), []int{0}) }},
		{"index out of range [3] with length 3", func() { _ = e.GetMany(make([]int32, 2), []int{0, 3}) }},
	} {
		func() {
			defer func() {
				err, ok := recover().(runtime.Error)
				require.True(t, ok, c.text)
				require.Equal(t, "emd: "+c.text, err.Error())
			}()
			c.call()
		}()
	}
	require.NoError(t, e.Append(4), "no lock is left behind")
	n, err := e.CopyTo(make([]int32, 2), 4)
	require.NoError(t, err)
	require.Zero(t, n, "copying from the end on")
}

func listOf2[T any](t testing.TB, a *Arena, name string) *EMList[T] {
	t.Helper()
	e, err := List[T](a, name, nil)
	require.NoError(t, err)
	return e
}

// everyCall makes each call on e with indexes that no list has, or that are
// no-ops, and returns the errors by name.
func everyCall[T any](e *EMList[T], v T) map[string]error {
	errs := map[string]error{}
	_, errs["get"] = e.Get(1 << 30)
	errs["set"] = e.Set(-1, v)
	errs["append"] = e.Append(v)
	errs["append nothing"] = e.Append()
	errs["append seq"] = e.AppendSeq(slices.Values([]T{}))
	_, _, errs["pop"] = e.Pop()
	errs["insert"] = e.Insert(1<<30, v)
	errs["delete"] = e.Delete(7, 7)
	errs["delete bad"] = e.Delete(7, 5)
	errs["swap"] = e.Swap(1<<30, 1<<30)
	errs["resize"] = e.Resize(-1)
	errs["fill"] = e.Fill(5, 5, v)
	errs["clear"] = e.Clear()
	_, errs["delete func"] = e.DeleteFunc(func(T) bool { return true })
	_, errs["copy"] = e.CopyTo(nil, 1<<30)
	errs["get many"] = e.GetMany(make([]T, 1), nil)
	errs["sync"] = e.Sync()
	return errs
}

func TestEMListClosed(t *testing.T) {
	gone := func(t *testing.T, e *EMList[uint64], s *EMList[string]) {
		for name, err := range everyCall(e, 1) {
			assert.ErrorIs(t, err, ErrClosed, name)
			assert.ErrorIs(t, err, fs.ErrClosed, name)
			var where *Error
			if assert.ErrorAs(t, err, &where, name) && name != "sync" {
				assert.Equal(t, "list", where.Container)
			}
		}
		for name, err := range everyCall(s, "x") {
			assert.ErrorIs(t, err, ErrClosed, name)
		}
		assert.Zero(t, e.Len())
		for range e.Range(4, 2) {
			assert.Fail(t, "closed list has an element")
		}
		for range s.Backward() {
			assert.Fail(t, "closed list has an element")
		}
		require.ErrorIs(t, e.Err(), ErrClosed)
		require.NoError(t, e.Close())
	}
	t.Run("close", func(t *testing.T) {
		a := testArena(t, testOptions{})
		e, s := listOf[uint64](t, a, nil), listOf2[string](t, a, "strings")
		require.NoError(t, e.Append(1, 2, 3))
		require.NoError(t, a.Close())
		gone(t, e, s)
	})
	t.Run("drop", func(t *testing.T) {
		a := testArena(t, testOptions{})
		e, s := listOf[uint64](t, a, nil), listOf2[string](t, a, "strings")
		require.NoError(t, e.Append(1, 2, 3))
		require.NoError(t, s.Append("a", strings.Repeat("b", 50000)))
		require.NoError(t, a.Drop("list"))
		require.NoError(t, a.Drop("strings"))
		require.NoError(t, a.verify())
		gone(t, e, s)
		_ = a.Err() // seen
		require.Zero(t, listOf[uint64](t, a, nil).Len())
	})
	t.Run("file of its own", func(t *testing.T) {
		path := filepath.Join(tempDir(t), "own.emd")
		e, err := OpenList[uint64](path, nil)
		require.NoError(t, err)
		require.NoError(t, e.Append(1, 2, 3))
		require.NoError(t, e.Close())
		require.NoError(t, e.Close())
		e, err = OpenList[uint64](path, &Options{ReadOnly: true})
		require.NoError(t, err)
		require.Equal(t, []uint64{1, 2, 3}, contents(t, e))
		require.ErrorIs(t, e.Append(4), ErrReadOnly)
		require.ErrorIs(t, e.Set(0, 4), ErrReadOnly)
		require.NoError(t, e.Append())
		require.NoError(t, e.Delete(1, 1))
		require.NoError(t, e.Close())
		_, err = OpenList[string](path, nil)
		require.ErrorIs(t, err, ErrTypeMismatch)
	})
}

// Get beside Close gives a value or ErrClosed; it never panics, and no
// iterator is stuck.
func TestEMListReadBesideClose(t *testing.T) {
	for range 20 {
		a := testArena(t, testOptions{})
		e, s := listOf[uint64](t, a, nil), listOf2[string](t, a, "strings")
		for i := range 1000 {
			require.NoError(t, e.Append(uint64(i)))
			require.NoError(t, s.Append(fmt.Sprint(i)))
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for i := 0; ; i = (i + 1) % 1000 {
					v, err := e.Get(i)
					if err != nil {
						assert.ErrorIs(t, err, ErrClosed)
						return
					}
					assert.Equal(t, uint64(i), v)
					if v, err := s.Get(i); err == nil {
						assert.Equal(t, fmt.Sprint(i), v)
					}
					for k, v := range e.Range(i, i) {
						assert.Equal(t, uint64(k), v)
					}
				}
			})
		}
		runtime.Gosched()
		require.NoError(t, errors.Join(a.Close(), a.Close()))
		wg.Wait()
	}
}

func TestEMListHandles(t *testing.T) {
	path := filepath.Join(tempDir(t), "handles.emd")
	a := reopen(t, path, testOptions{})
	_, err := List(a, "list", &ListOptions[uint64]{MustExist: true})
	require.ErrorIs(t, err, ErrNoContainer)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = List[uint64](a, "", nil)
	require.Error(t, err)
	_, err = List[chan int](a, "chan", nil)
	require.ErrorIs(t, err, ErrUnsupportedType)

	e, twin := listOf[uint64](t, a, nil), listOf[uint64](t, a, nil)
	require.NoError(t, e.Append(1, 2))
	require.NoError(t, twin.Append(3))
	require.Equal(t, []uint64{1, 2, 3}, contents(t, e))
	require.Same(t, a, e.Arena())
	require.NoError(t, e.Close(), "a list in an arena stays open")
	require.NoError(t, e.Sync())
	require.NoError(t, twin.Append(4))
	require.NoError(t, a.Rollback())
	require.Equal(t, []uint64{1, 2, 3}, contents(t, e))

	_, err = List[int64](a, "list", nil)
	require.ErrorIs(t, err, ErrTypeMismatch)
	require.ErrorContains(t, err, "list of uint64")
	require.NoError(t, a.Close())
	a = reopen(t, path, testOptions{})
	_, err = List(a, "list", &ListOptions[string]{Codec: reversed{}})
	require.ErrorIs(t, err, ErrTypeMismatch)
	require.ErrorContains(t, err, "reversed v1")
	require.Equal(t, []uint64{1, 2, 3}, contents(t, listOf[uint64](t, a, nil)))
}

func TestEMListRollbackPastCreation(t *testing.T) {
	a := testArena(t, testOptions{})
	require.NoError(t, a.Sync())
	e := listOf[string](t, a, nil)
	require.NoError(t, e.Append("a", "b"))
	for range 2 {
		require.NoError(t, a.Rollback())
		require.Zero(t, e.Len())
		require.Empty(t, contents(t, e))
		_, ok, err := e.Pop()
		require.NoError(t, err)
		require.False(t, ok)
		require.NoError(t, e.Append("c"))
		require.Equal(t, []string{"c"}, contents(t, e))
		require.NoError(t, a.verify())
	}
	require.NoError(t, a.Sync())
	require.NoError(t, a.Rollback())
	require.Equal(t, []string{"c"}, contents(t, e))
}

func TestEMListIterationWhileChanging(t *testing.T) {
	fresh := func(t *testing.T, n int) *EMList[int] {
		e := listOf[int](t, testArena(t, testOptions{}), nil)
		for i := range n {
			require.NoError(t, e.Append(i))
		}
		return e
	}
	t.Run("append", func(t *testing.T) {
		e, n := fresh(t, 700), 0
		for i, v := range e.All() {
			require.Equal(t, i, v)
			require.NoError(t, e.Append(-1))
			n++
		}
		require.Equal(t, 700, n)
		require.NoError(t, e.AppendSeq(e.Values()))
		require.Equal(t, 2800, e.Len())
	})
	t.Run("set ahead", func(t *testing.T) {
		e := fresh(t, 1500)
		for i, v := range e.All() {
			require.Equal(t, min(i, 1)*1000+i, v)
			if i+1 < e.Len() {
				require.NoError(t, e.Set(i+1, 1000+i+1))
			}
		}
	})
	t.Run("delete the front", func(t *testing.T) {
		e, seen := fresh(t, 1500), []int{}
		for i, v := range e.All() {
			require.Equal(t, 2*i, v)
			seen = append(seen, v)
			require.NoError(t, e.Delete(0, 1))
		}
		require.Len(t, seen, 750)
	})
	t.Run("pop", func(t *testing.T) {
		e, n := fresh(t, 1500), 0
		for i := range e.All() {
			require.Less(t, i, e.Len())
			_, _, err := e.Pop()
			require.NoError(t, err)
			n++
		}
		require.Equal(t, 750, n)
	})
	t.Run("backward", func(t *testing.T) {
		e, seen := fresh(t, 1500), []int{}
		for i, v := range e.Backward() {
			require.Equal(t, i, v)
			seen = append(seen, i)
			if e.Len() > 3 {
				require.NoError(t, e.Resize(e.Len()-3))
			}
		}
		require.Equal(t, 502, len(seen), "every third, and the last three")
	})
	t.Run("clear", func(t *testing.T) {
		e, n := fresh(t, 1500), 0
		for range e.Values() {
			require.NoError(t, e.Clear())
			n++
		}
		require.Equal(t, 1, n)
		require.NoError(t, e.Err())
	})
	t.Run("strings", func(t *testing.T) {
		e := listOf[string](t, testArena(t, testOptions{}), nil)
		require.NoError(t, e.Append("a", "b", "c", "d"))
		seen := ""
		for i, v := range e.All() {
			seen += v
			require.NoError(t, e.Set(3, "D"))
			if i == 1 {
				require.NoError(t, e.Insert(0, "x"))
			}
		}
		require.Equal(t, "abbD", seen)
	})
	t.Run("break", func(t *testing.T) {
		e := fresh(t, 10)
		n := 0
		for i := range e.All() {
			if n++; i == 3 {
				break
			}
		}
		require.Equal(t, 4, n)
	})
}

// A value that is its own checksum: torn, it does not fit.
func sealed(x uint64) [5]uint64 { return [5]uint64{x, x * 3, x * 5, x * 7, x * 9} }

func TestEMListConcurrent(t *testing.T) {
	o := tiny()
	a := testArena(t, o)
	words, wide, text := listOf2[uint64](t, a, "words"), listOf2[[5]uint64](t, a, "wide"), listOf2[string](t, a, "text")
	line := func(x uint64) string { return strings.Repeat(fmt.Sprintf("%d,", x%1000), int(x%60)+1) }
	const n = 3000
	for i := range uint64(n) {
		require.NoError(t, words.Append(i<<32|i))
		require.NoError(t, wide.Append(sealed(i)))
		require.NoError(t, text.Append(line(i)))
	}
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	rounds := 6000
	if raceEnabled || testing.Short() {
		rounds = 500
	}
	for w := range 2 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			for range rounds {
				x := r.Uint64() >> 33
				i := r.IntN(n / 2)
				switch r.IntN(8) {
				case 0:
					assert.NoError(t, errors.Join(wide.Insert(i, sealed(x)), text.Insert(i, line(x)), words.Insert(i, x<<32|x)))
					assert.NoError(t, errors.Join(wide.Delete(i, i+1), text.Delete(i, i+1), words.Delete(i, i+1)))
				case 1:
					assert.NoError(t, errors.Join(wide.Append(sealed(x)), text.Append(line(x)), words.Append(x<<32|x)))
					assert.NoError(t, errors.Join(wide.Delete(0, 1), text.Delete(0, 1), words.Delete(0, 1)))
				case 2:
					_, _, err := wide.Pop()
					_, _, err2 := text.Pop()
					assert.NoError(t, errors.Join(err, err2, wide.Append(sealed(x)), text.Append(line(x))))
				case 3:
					assert.NoError(t, errors.Join(wide.Swap(i, i+7), text.Swap(i, i+7), words.Swap(i, i+7)))
				default:
					assert.NoError(t, errors.Join(wide.Set(i, sealed(x)), text.Set(i, line(x)), words.Set(i, x<<32|x)))
				}
				if r.IntN(500) == 0 {
					assert.NoError(t, a.Sync())
				}
			}
		})
	}
	checkText := func(v string) {
		head, _, _ := strings.Cut(v, ",")
		assert.Equal(t, strings.Repeat(head+",", strings.Count(v, ",")), v)
	}
	for range 2 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(9, 9))
			for !stop.Load() && !t.Failed() {
				i := r.IntN(n / 2)
				v, err := wide.Get(i)
				assert.NoError(t, err)
				assert.Equal(t, sealed(v[0]), v)
				w, err := words.Get(i)
				assert.NoError(t, err)
				assert.Equal(t, w>>32, w&0xffffffff)
				s, err := text.Get(i)
				assert.NoError(t, err)
				checkText(s)
				if i%50 == 0 {
					for _, v := range wide.All() {
						if v != sealed(v[0]) {
							assert.Equal(t, sealed(v[0]), v)
						}
					}
					for s := range text.Values() {
						checkText(s)
					}
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()
	assert.GreaterOrEqual(t, words.Len(), n)
	require.NoError(t, a.verify())
}

// What Get and GetMany read at once belongs together, whatever moves meanwhile.
func TestEMListGetMeanwhile(t *testing.T) {
	a := testArena(t, testOptions{})
	e := listOf[uint64](t, a, nil)
	if !optimistic || !e.word {
		t.Skip("one is read at a time: under the race detector, and on big-endian processors")
	}
	// In round r the list is filled, with element i = r<<32 + i, and then loses some in front of the middle: those before them move, and those
	// behind get other indexes. A phase begins with each of the two.
	const n, at, cut = 100_000, 40_000, 10_000
	var phase atomic.Uint64
	check := func(before uint64, i int, v uint64) bool {
		from, to := v>>32*2, v>>32*2+2
		switch d := v&math.MaxUint32 - uint64(i); {
		case i < at && d == 0:
		case i >= at && d == 0:
			to--
		case i >= at && d == cut:
			from++
		default:
			return assert.Fail(t, "no such element", "%#x at %d", v, i)
		}
		after := phase.Load()
		return from <= after && to >= before || assert.Fail(t, "not at that time", "%#x at %d, in phases %d to %d", v, i, before, after)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	whole, disturbed := 0, 0
	wg.Go(func() {
		r := rand.New(rand.NewPCG(3, 3))
		index, dst := make([]int, getAtOnce), make([]uint64, getAtOnce)
		for !stop.Load() && !t.Failed() {
			for k := range index {
				index[k] = at + r.IntN(n-at)
				if k%2 == 1 {
					index[k] = r.IntN(at)
				}
			}
			before := phase.Load()
			m := e.tryGetMany(dst, index)
			for k := range m {
				if !check(before, index[k], dst[k]) {
					break
				}
				if d := dst[0] - uint64(index[0]); k%2 == 0 && d != dst[k]-uint64(index[k]) {
					assert.Equal(t, d, dst[k]-uint64(index[k]), "%d of %d elements", k, m)
					break
				}
			}
			if m == 0 {
				disturbed++
			} else {
				whole++
			}
		}
	})
	wg.Go(func() {
		get := func(i int) (v uint64, ok bool) {
			defer func() {
				if p := recover(); p != nil { // the list is short now and then
					assert.IsType(t, indexError{}, p)
				}
			}()
			v, err := e.Get(i)
			return v, assert.NoError(t, err)
		}
		for i := 0; !stop.Load() && !t.Failed(); i++ {
			i, before := i*7919%n, phase.Load()
			if v, ok := get(i); ok {
				check(before, i, v)
			}
		}
	})
	rounds := uint64(1000)
	if testing.Short() {
		rounds = 300
	}
	part := make([]uint64, n/10)
	for r := range rounds {
		phase.Store(2 * r)
		require.NoError(t, e.Clear())
		for i := 0; i < n; i += len(part) {
			for k := range part {
				part[k] = r<<32 + uint64(i+k)
			}
			require.NoError(t, e.Append(part...))
		}
		phase.Store(2*r + 1)
		require.NoError(t, e.Delete(at, at+cut))
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d read at once, %d disturbed", whole, disturbed)
	assert.NotZero(t, whole)
}

// Set has found its slot when the lock is free at last; the element may have
// another by then, or none.
func TestEMListSetLooksAgain(t *testing.T) {
	for name, meanwhile := range map[string]func(l *list){
		"moved": func(l *list) { l.first.Store(l.first.Load() + 1) },
		"gone":  func(l *list) { l.end.Store(l.first.Load() + 5) },
	} {
		t.Run(name, func(t *testing.T) {
			a := testArena(t, testOptions{})
			e := listOf[uint64](t, a, nil)
			require.NoError(t, e.Append(0, 1, 2, 3, 4, 5, 6, 7))
			l := e.l
			l.lock()
			waiting := make(chan any)
			go func() {
				defer func() { waiting <- recover() }()
				assert.NoError(t, e.Set(5, 99))
			}()
			time.Sleep(20 * time.Millisecond) // nothing to see if that was too short
			l.shape.begin()
			meanwhile(l)
			l.shape.end()
			l.unlock()
			if p := <-waiting; name == "gone" {
				assert.Error(t, p.(error))
				assert.Equal(t, []uint64{0, 1, 2, 3, 4}, contents(t, e))
				l.end.Store(l.end.Load() + 1)
				assert.Equal(t, []uint64{0, 1, 2, 3, 4, 5}, contents(t, e))
			} else {
				assert.Nil(t, p)
				assert.Equal(t, []uint64{1, 2, 3, 4, 5, 99, 7}, contents(t, e))
			}
		})
	}
}

// A list that becomes empty again and again, as its readers look.
func TestEMListReadBesideEmptying(t *testing.T) {
	a := testArena(t, testOptions{})
	e := listOf[uint64](t, a, nil)
	part := make([]uint64, 1500)
	for i := range part {
		part[i] = uint64(i)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				for i, v := range e.All() {
					if uint64(i) != v {
						assert.Equal(t, uint64(i), v)
						return
					}
				}
				dst := make([]uint64, 10)
				if n := e.Len(); n > 0 {
					for range e.Backward() {
						break
					}
				}
				_, err := e.CopyTo(dst, 0)
				assert.NoError(t, err)
			}
		})
	}
	rounds := 20000
	if raceEnabled || testing.Short() {
		rounds = 500
	}
	for i := range rounds {
		require.NoError(t, e.Append(part...))
		switch i % 4 {
		case 0:
			require.NoError(t, e.Clear())
		case 1:
			require.NoError(t, e.Resize(0))
		case 2:
			require.NoError(t, e.Delete(0, 1500))
		default:
			require.NoError(t, e.Delete(1000, 1500))
			require.NoError(t, e.Resize(1))
			require.NoError(t, e.Delete(0, 1))
		}
	}
	stop.Store(true)
	wg.Wait()
	require.NoError(t, e.Err())
}

func TestEMListDeleteFuncCallbacks(t *testing.T) {
	fresh := func(t *testing.T) (*Arena, *EMList[int]) {
		a := testArena(t, testOptions{})
		e := listOf[int](t, a, nil)
		require.NoError(t, e.Append(0, 1, 2, 3, 4, 5))
		require.NoError(t, a.Sync())
		return a, e
	}
	t.Run("panic", func(t *testing.T) {
		_, e := fresh(t)
		require.PanicsWithValue(t, "no", func() {
			_, _ = e.DeleteFunc(func(v int) bool {
				if v == 3 {
					panic("no")
				}
				return true
			})
		})
		require.Equal(t, []int{0, 1, 2, 3, 4, 5}, contents(t, e))
		require.NoError(t, e.Append(6), "the list is free again")
	})
	t.Run("another container", func(t *testing.T) {
		a, e := fresh(t)
		other := listOf2[int](t, a, "other")
		n, err := e.DeleteFunc(func(v int) bool {
			assert.NoError(t, other.Append(v))
			assert.NoError(t, a.Sync())
			return v%2 == 0
		})
		require.NoError(t, err)
		require.Equal(t, 3, n)
		require.Equal(t, []int{1, 3, 5}, contents(t, e))
		require.Equal(t, 6, other.Len())
	})
	t.Run("rollback", func(t *testing.T) {
		a, e := fresh(t)
		_, err := e.DeleteFunc(func(v int) bool {
			if v == 2 {
				assert.NoError(t, a.Rollback())
			}
			return true
		})
		require.ErrorIs(t, err, ErrRolledBack)
		require.Equal(t, 6, e.Len())
	})
	t.Run("close", func(t *testing.T) {
		a, e := fresh(t)
		_, err := e.DeleteFunc(func(int) bool {
			assert.NoError(t, a.Close())
			return true
		})
		require.ErrorIs(t, err, ErrClosed)
	})
	t.Run("other writers wait", func(t *testing.T) {
		_, e := fresh(t)
		done := make(chan error, 1)
		n, err := e.DeleteFunc(func(v int) bool {
			if v == 0 {
				go func() { done <- e.Append(7) }()
			}
			runtime.Gosched()
			return v < 3
		})
		require.NoError(t, err)
		require.Equal(t, 3, n)
		require.NoError(t, <-done)
		require.Equal(t, []int{3, 4, 5, 7}, contents(t, e))
	})
}

func TestEMListCodecErrors(t *testing.T) {
	a := testArena(t, testOptions{})
	opts := &ListOptions[string]{Codec: reversed{}}
	e := listOf(t, a, opts)
	many := slices.Repeat([]string{"x"}, 3000)
	require.NoError(t, e.Append("a", "unreadable", "c"))
	require.ErrorIs(t, e.Append("d", "refused"), errRefused)
	require.ErrorIs(t, e.Append(append(many, "refused")...), errRefused)
	require.ErrorIs(t, e.Insert(1, "d", "refused"), errRefused)
	require.ErrorIs(t, e.Set(1, "refused"), errRefused)
	require.ErrorIs(t, e.Fill(0, 2, "refused"), errRefused)
	require.Equal(t, 3, e.Len())
	_, err := e.Get(1)
	require.ErrorIs(t, err, errRefused)
	_, err = e.CopyTo(make([]string, 3), 0)
	require.ErrorIs(t, err, errRefused)
	_, err = e.DeleteFunc(func(string) bool { return true })
	require.ErrorIs(t, err, errRefused)
	require.Equal(t, 3, e.Len())

	require.NoError(t, e.Err())
	seen := 0
	for range e.All() {
		seen++
	}
	require.Equal(t, 1, seen)
	require.ErrorIs(t, e.Err(), errRefused)
	other := listOf2[string](t, a, "other")
	require.ErrorIs(t, other.AppendSeq(e.Values()), errRefused)
	require.ErrorIs(t, a.View(func() error {
		for range e.Backward() {
		}
		return nil
	}), errRefused)
	require.ErrorIs(t, a.Err(), errRefused)

	require.NoError(t, e.Delete(2, 3))
	_, ok, err := e.Pop()
	require.ErrorIs(t, err, errRefused)
	require.False(t, ok)
	require.Equal(t, 2, e.Len(), "what cannot be read is not thrown away")
	require.NoError(t, e.Set(1, "b"))
	require.Equal(t, []string{"a", "b"}, slices.Collect(e.Values()))
}

// smallSpace refuses memory when it is told to.
type smallSpace struct {
	fileSystem
	full atomic.Bool
}

type smallMapping struct {
	mapping
	fs *smallSpace
}

func (s *smallSpace) Map(f file, written bool) mapping {
	return &smallMapping{s.fileSystem.Map(f, written), s}
}

func (m *smallMapping) chunk(off, size, filed int64) (p unsafe.Pointer, guarded bool, err error) {
	if m.fs.full.Load() {
		return nil, false, ErrFull
	}
	return m.mapping.chunk(off, size, filed)
}

func TestEMListFull(t *testing.T) {
	testFull(t, "uint64", func(i int) uint64 { return uint64(i) })
	testFull(t, "string", func(i int) string { return strings.Repeat(fmt.Sprint(i), 20) })
}

// With every change refused at the first, second... chunk that it needs, the
// list stays as it was.
func testFull[T any](t *testing.T, name string, value func(i int) T) {
	t.Run(name, func(t *testing.T) {
		o := tiny()
		o.chunkSize = minChunkSize
		space := &smallSpace{fileSystem: newOSFS(raceEnabled, false)}
		o.fs = space
		a := testArena(t, o)
		e := listOf[T](t, a, nil)
		var want []T
		for i := range 3000 {
			want = append(want, value(i))
		}
		require.NoError(t, e.Append(want...))
		require.NoError(t, a.Sync())
		many := slices.Repeat([]T{value(5), value(6)}, 300000)
		space.full.Store(true)
		for i := range 4 {
			require.ErrorIs(t, e.Append(many...), ErrFull)
			requireSame(t, want, e)
			require.ErrorIs(t, e.AppendSeq(func(yield func(T) bool) {
				for _, v := range many {
					if !yield(v) {
						return
					}
				}
			}), ErrFull)
			require.NoError(t, e.Resize(len(want)))
			require.ErrorIs(t, e.Insert(i, many[:100000]...), ErrFull)
			requireSame(t, want, e)
			require.NoError(t, a.verify())
		}
		require.NoError(t, e.Resize(400000))
		require.ErrorIs(t, e.Fill(0, 400000, value(7)), ErrFull)
		require.NoError(t, e.Resize(len(want)))
		requireSame(t, want, e)
		require.NoError(t, a.verify())
		require.NoError(t, a.verifyMemory())
		space.full.Store(false)
		require.NoError(t, e.Append(many[:1000]...))
		requireSame(t, append(want, many[:1000]...), e)
	})
}

// In an Update that may not grow, large changes fail and are undone; those
// that are written out as they go do not count.
func TestEMListUpdate(t *testing.T) {
	a := testArena(t, tiny())
	e := listOf[uint64](t, a, nil)
	want := make([]uint64, 300000)
	for i := range want {
		want[i] = uint64(i) * 7
	}
	require.NoError(t, a.Update(func() error { return e.Append(want...) }))
	requireSame(t, want, e)
	require.NoError(t, a.Update(func() error { return e.Delete(100, 200) }))
	want = slices.Delete(want, 100, 200)
	requireSame(t, want, e)
	require.NoError(t, a.Update(func() error { return e.Fill(1000, 290000, 5) }))
	for i := 1000; i < 290000; i++ {
		want[i] = 5
	}
	requireSame(t, want, e)
	err := a.Update(func() error {
		for i := range want {
			if err := e.Set(i, 1); err != nil {
				return err
			}
		}
		return nil
	})
	require.ErrorIs(t, err, ErrUpdateTooLarge)
	requireSame(t, want, e)
	require.NoError(t, a.Update(func() error {
		_, err := e.DeleteFunc(func(v uint64) bool { return v != 5 })
		return err
	}))
	require.Equal(t, 289000, e.Len())
	require.NoError(t, a.verify())
}

// Whatever a header page says, opening and using the list gives an error or a
// value, but no panic and no fault.
func TestEMListCorruptHeader(t *testing.T) {
	dir := tempDir(t)
	path := filepath.Join(dir, "good.emd")
	a := reopen(t, path, tiny())
	e := listOf[string](t, a, nil)
	for i := range 500 {
		require.NoError(t, e.Append(fmt.Sprint(i, strings.Repeat("x", i))))
	}
	require.NoError(t, e.Delete(0, 10))
	at := int64(e.l.hdr) << pageShift
	require.NoError(t, a.Close())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	bad := filepath.Join(dir, "bad.emd")
	put := func(off int, v uint64) func(b []byte) {
		return func(b []byte) { binary.LittleEndian.PutUint64(b[off:], v) }
	}
	for name, spoil := range map[string]func(b []byte){
		"kind":           func(b []byte) { b[listKindOff] ^= 1 },
		"size":           func(b []byte) { b[listSizeOff] ^= 1 },
		"refs":           func(b []byte) { b[listRefsOff] ^= 1 },
		"last small":     func(b []byte) { b[listLastOff] = 0 },
		"last large":     func(b []byte) { b[listLastOff] = 255 },
		"first":          put(listFirstOff, 1<<63),
		"len":            put(listLenOff, 1<<41),
		"base":           put(listBaseOff, 1<<63),
		"table outside":  func(b []byte) { put(listTableOff, 1<<50)(b); b[listCapOff] = 4 },
		"table crooked":  func(b []byte) { put(listTableOff, 1<<14+3)(b); b[listCapOff] = 4 },
		"table too long": func(b []byte) { put(listTableOff, 1<<14)(b); b[listCapOff+3] = 255 },
	} {
		t.Run(name, func(t *testing.T) {
			b := slices.Clone(good)
			spoil(b[at:][:pageSize])
			require.NoError(t, os.WriteFile(bad, b, 0o600))
			a, err := openWith(bad, nil, tiny().internalOptions)
			require.NoError(t, err)
			_, err = List[string](a, "list", nil)
			require.ErrorIs(t, err, ErrCorrupt)
			var where *Error
			require.ErrorAs(t, err, &where)
			require.NotZero(t, where.Offset)
			require.NoError(t, a.Close())
		})
	}
	t.Run("any byte", func(t *testing.T) {
		r := rand.New(rand.NewPCG(4, 4))
		rounds := 400
		if raceEnabled {
			rounds = 40
		}
		for range rounds {
			b := slices.Clone(good)
			off := at + int64(r.IntN(128))
			if r.IntN(3) == 0 {
				off = at + listInlineOff + int64(r.IntN(64))
			}
			if r.IntN(3) == 0 {
				off = int64(slotPages*pageSize + r.IntN(len(good)-slotPages*pageSize))
			}
			b[off] ^= 1 << r.IntN(8)
			require.NoError(t, os.WriteFile(bad, b, 0o600))
			abuse(t, bad)
		}
	})
}

// abuse does everything to a damaged list.
func abuse(t *testing.T, path string) {
	a, err := openWith(path, nil, tiny().internalOptions)
	if err != nil {
		return
	}
	defer func() { _ = a.Close() }()
	e, err := List[string](a, "list", nil)
	if err != nil {
		return
	}
	if e.Len() > 1e6 {
		_ = e.Resize(1000)
	}
	for range e.All() {
	}
	for i := range min(e.Len(), 1000) {
		_, _ = e.Get(i)
	}
	for i := 0; i < e.Len() && i < 1000; i += 7 {
		_ = e.Set(i, "new")
	}
	_ = e.Insert(e.Len()/3, "a", "b")
	_ = e.Delete(e.Len()/2, e.Len()/2+e.Len()/9)
	_, _, _ = e.Pop()
	_, _ = e.DeleteFunc(func(s string) bool { return len(s)%2 == 0 })
	_ = e.Append("x", "y")
	_ = e.Fill(0, e.Len()/2, "z")
	_ = e.Clear()
}

func TestEMListNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	a := testArena(t, testOptions{})
	words, wide := listOf2[uint64](t, a, "words"), listOf2[[3]uint64](t, a, "wide")
	text, flags := listOf2[string](t, a, "text"), listOf2[bool](t, a, "flags")
	for i := range 5000 {
		require.NoError(t, errors.Join(words.Append(uint64(i)), wide.Append([3]uint64{1}), text.Append("x"), flags.Append(true)))
	}
	for name, c := range map[string]struct {
		most float64
		call func()
	}{
		"get":         {0, func() { _, _ = words.Get(7) }},
		"get wide":    {0, func() { _, _ = wide.Get(7) }},
		"get flag":    {0, func() { _, _ = flags.Get(7) }},
		"set":         {0, func() { _ = words.Set(7, 1) }},
		"set wide":    {0, func() { _ = wide.Set(7, [3]uint64{}) }},
		"set string":  {0, func() { _ = text.Set(7, "y") }},
		"set flag":    {0, func() { _ = flags.Set(7, false) }},
		"append":      {0, func() { _ = words.Append(1) }},
		"append many": {0, func() { _ = wide.Append([3]uint64{}, [3]uint64{1}) }},
		"append flag": {0, func() { _ = flags.Append(true) }},
		"pop":         {0, func() { _, _, _ = words.Pop() }},
		"len":         {0, func() { _ = words.Len() }},
		"all":         {4, func() { sum(words.Values()) }},
		"all flags":   {5, func() { sum(flags.Values()) }},
	} {
		assert.LessOrEqual(t, testing.AllocsPerRun(100, c.call), c.most, name)
	}
}

func sum[T any](seq iter.Seq[T]) (n int) {
	for range seq {
		n++
	}
	return n
}

func TestEMListEmptyBytes(t *testing.T) {
	a := testArena(t, testOptions{})
	e := listOf[[]byte](t, a, nil)
	require.NoError(t, e.Append(nil, []byte{}, []byte("x")))
	require.NoError(t, e.Resize(4))
	got := contents(t, e)
	require.Equal(t, [][]byte{nil, {}, []byte("x"), nil}, got)
	got[2][0] = 'y'
	v, err := e.Get(2)
	require.NoError(t, err)
	require.True(t, bytes.Equal([]byte("x"), v), "values are the caller's own")
}

// Each benchmark has the plain slice beside it.
func BenchmarkEMList(b *testing.B) {
	n := 1 << 24
	if testing.Short() {
		n = 1 << 16
	}
	a := testArena(b, testOptions{opts: Options{NoSync: true}})
	e, slice := listOf2[uint64](b, a, "words"), make([]uint64, n)
	wide := listOf2[[3]uint64](b, a, "wide")
	text := listOf2[string](b, a, "text")
	for i := range slice {
		slice[i] = uint64(i) * 3
	}
	require.NoError(b, e.Append(slice...))
	for range n / 16 {
		require.NoError(b, errors.Join(wide.Append([3]uint64{}), text.Append("a short string")))
	}
	require.NoError(b, a.Sync())
	mask := uint64(n - 1)
	var total uint64
	next := func(x uint64) uint64 { return x*6364136223846793005 + 1442695040888963407 }

	b.Run("Get/slice", func(b *testing.B) {
		x := uint64(1)
		for range b.N {
			x = next(x)
			total += slice[x>>32&mask]
		}
	})
	b.Run("Get/uint64", func(b *testing.B) {
		x := uint64(1)
		for range b.N {
			x = next(x)
			v, _ := e.Get(int(x >> 32 & mask))
			total += v
		}
	})
	b.Run("Get/[3]uint64", func(b *testing.B) {
		x := uint64(1)
		for range b.N {
			x = next(x)
			v, _ := wide.Get(int(x >> 32 & (mask / 16)))
			total += v[1]
		}
	})
	b.Run("Get/string", func(b *testing.B) {
		x := uint64(1)
		for range b.N {
			x = next(x)
			v, _ := text.Get(int(x >> 32 & (mask / 16)))
			total += uint64(len(v))
		}
	})
	b.Run("GetMany/uint64", func(b *testing.B) {
		x := uint64(1)
		index, dst := make([]int, 256), make([]uint64, 256)
		for range b.N / 256 {
			for i := range index {
				x = next(x)
				index[i] = int(x >> 32 & mask)
			}
			_ = e.GetMany(dst, index)
		}
	})
	b.Run("Set/slice", func(b *testing.B) {
		x := uint64(1)
		for range b.N {
			x = next(x)
			slice[x>>32&mask] = x
		}
	})
	b.Run("Set/uint64", func(b *testing.B) {
		x := uint64(1)
		for range b.N {
			x = next(x)
			_ = e.Set(int(x>>32&mask), x)
		}
	})
	b.Run("Set/[3]uint64", func(b *testing.B) {
		x := uint64(1)
		for range b.N {
			x = next(x)
			_ = wide.Set(int(x>>32&(mask/16)), [3]uint64{x})
		}
	})
	b.Run("All/slice", func(b *testing.B) {
		for done := 0; done < b.N; {
			for i, v := range slice[:min(n, b.N-done)] {
				total += v ^ uint64(i)
				done++
			}
		}
	})
	b.Run("All/uint64", func(b *testing.B) {
		for done := 0; done < b.N; {
			for i, v := range e.Range(0, min(n, b.N-done)) {
				total += v ^ uint64(i)
				done++
			}
		}
	})
	b.Run("All/string", func(b *testing.B) {
		for done := 0; done < b.N; {
			for _, v := range text.Range(0, min(n/16, b.N-done)) {
				total += uint64(len(v))
				done++
			}
		}
	})
	b.Run("CopyTo/uint64", func(b *testing.B) {
		b.SetBytes(8)
		dst := make([]uint64, min(n, 1<<20))
		for done := 0; done < b.N; done += len(dst) {
			_, _ = e.CopyTo(dst[:min(len(dst), b.N-done)], 0)
		}
	})
	b.Run("Append/slice", func(b *testing.B) {
		var s []uint64
		for i := range b.N {
			s = append(s, uint64(i))
		}
	})
	b.Run("Append/uint64", func(b *testing.B) {
		require.NoError(b, e.Clear())
		for i := range b.N {
			_ = e.Append(uint64(i))
		}
	})
	b.Run("Append/uint64/batch=1000", func(b *testing.B) {
		require.NoError(b, e.Clear())
		batch := make([]uint64, 1000)
		for range b.N / 1000 {
			_ = e.Append(batch...)
		}
	})
	b.Run("Append/string", func(b *testing.B) {
		require.NoError(b, text.Clear())
		for range b.N {
			_ = text.Append("a short string")
		}
	})
	b.Run("Queue/uint64", func(b *testing.B) {
		require.NoError(b, e.Clear())
		require.NoError(b, e.Append(make([]uint64, 5000)...))
		for i := range b.N {
			_ = e.Append(uint64(i))
			_ = e.Delete(0, 1)
		}
	})
	b.Run("Pop/uint64", func(b *testing.B) {
		require.NoError(b, e.Resize(b.N))
		for range b.N {
			_, _, _ = e.Pop()
		}
	})
	require.NotEqual(b, uint64(1), total)
}

// askedFS counts the bytes that loops wait for, and those that are asked for, these among them. Nothing is in memory while the count is not negative.
type askedFS struct {
	fileSystem
	awaited, asked *int64
}

type askedMapping struct {
	mapping
	awaited, asked *int64
}

func (f askedFS) Map(file file, written bool) mapping {
	return askedMapping{f.fileSystem.Map(file, written), f.awaited, f.asked}
}

func (m askedMapping) resident(unsafe.Pointer, int64) (is, known bool) { return *m.awaited < 0, true }

func (m askedMapping) prefetch(p unsafe.Pointer, n int64) {
	*m.asked += n
	m.mapping.prefetch(p, n)
}

func (m askedMapping) await(p unsafe.Pointer, n int64) {
	*m.awaited += n
	m.mapping.await(p, n)
}

// A long list takes little more of the file than its elements are, though extents have to lie inside regions, whose first pages
// are taken. (Elements whose size is no power of two waste more: extents are aligned.)
func TestEMListWastesLittle(t *testing.T) {
	t.Parallel()
	testWaste[uint64](t)
	testWaste[[2]uint64](t)
	testWaste[[3]uint64](t)
	testWaste[[100]byte](t)
}

func testWaste[T any](t *testing.T) {
	e := listOf[T](t, testArena(t, testOptions{}), nil)
	some := make([]T, 1<<16)
	for size := int64(0); size < 4<<(regionShift+pageShift); size += int64(len(bytesOf(some))) {
		require.NoError(t, e.Append(some...))
	}
	pages, _ := e.l.a.alloc.usage()
	require.Less(t, float64(pages<<pageShift), 1.04*float64(e.Len())*float64(e.l.width))
}

// streamFS is a file system whose system reads ahead of loops by itself. Nothing is in memory until it does.
type streamFS struct {
	fileSystem
	m **streamMapping
}

type streamMapping struct {
	mapping
	on                    map[unsafe.Pointer]int64 // bytes from there that are read ahead
	begun, asked, awaited int64
	slow                  bool // nothing is in memory before a loop waits for it
}

func (f streamFS) Map(file file, written bool) mapping {
	*f.m = &streamMapping{mapping: f.fileSystem.Map(file, written), on: map[unsafe.Pointer]int64{}}
	return *f.m
}

func (m *streamMapping) resident(unsafe.Pointer, int64) (is, known bool) {
	return m.begun != 0 && !m.slow, true
}
func (m *streamMapping) prefetch(_ unsafe.Pointer, n int64) { m.asked += n }
func (m *streamMapping) await(_ unsafe.Pointer, n int64)    { m.awaited += n }

func (m *streamMapping) stream(p unsafe.Pointer, n int64, on bool) bool {
	if on {
		m.on[p] += n
		m.begun += n
	} else if m.on[p] -= n; m.on[p] == 0 {
		delete(m.on, p)
	}
	return true
}

// ahead returns the bytes that are read ahead now.
func (m *streamMapping) ahead() (n int64) {
	for _, some := range m.on {
		n += some
	}
	return n
}

// Where the system reads ahead of a loop, it does so for all of it, some at a time, and no longer than the loop goes on.
func TestEMListStreams(t *testing.T) {
	var m *streamMapping
	a := testArena(t, testOptions{internalOptions: internalOptions{fs: streamFS{newOSFS(true, false), &m}}})
	const size = streamSize + streamSize/4
	l := listOf[uint64](t, a, nil)
	require.NoError(t, l.Append(make([]uint64, size/8)...))
	s, err := List[string](a, "s", nil)
	require.NoError(t, err)
	require.NoError(t, s.Resize(aheadSize))
	m.begun, m.asked = 0, 0

	turns := 0
	turn := func() {
		if turns++; turns%(1<<12) == 1 {
			require.NotZero(t, m.ahead())
			require.LessOrEqual(t, m.ahead(), int64(streamSize+aheadSize))
		}
	}
	check := func(least, most int64) {
		t.Helper()
		require.NotZero(t, turns)
		require.Zero(t, m.ahead())
		require.Zero(t, m.asked)
		require.Greater(t, m.begun, least-aheadSize)
		require.LessOrEqual(t, m.begun, most+aheadSize)
		turns, m.begun = 0, 0
	}
	for range l.All() {
		turn()
	}
	check(size, size)
	for range l.All() {
		turn()
		break
	}
	check(aheadSize, streamSize)
	for range l.Values() {
		turn()
	}
	check(size, size)
	m.awaited, m.slow = 0, true
	for range l.Views(0, l.Len()) {
		turn()
	}
	require.InDelta(t, size, m.awaited, 64*pageSize)
	m.slow = false
	check(size, size)
	require.Panics(t, func() {
		for range l.Views(0, l.Len()) {
			turn()
			panic("in the body")
		}
	})
	check(aheadSize, streamSize)
	turns = 1
	n, err := l.CopyTo(make([]uint64, l.Len()), 0)
	require.NoError(t, err)
	require.Equal(t, l.Len(), n)
	check(size, size)

	texts := int64(s.Len()) * int64(s.l.width)
	require.NoError(t, s.Set(0, "a"))
	require.NoError(t, s.Set(s.Len()-1, "z"))
	m.begun, m.asked, turns = 0, 0, 1
	for range s.Views(0, s.Len()) {
	}
	check(aheadSize, texts)
	turns = 1
	_, err = s.CopyTo(make([]string, s.Len()), 0)
	require.NoError(t, err)
	check(aheadSize, texts)
}

// A long loop waits for each page once and has asked for it before, a short one and one that runs backwards for none.
func TestEMListReadsAhead(t *testing.T) {
	awaited, asked := int64(0), int64(0)
	a := testArena(t, testOptions{internalOptions: internalOptions{fs: askedFS{newOSFS(true, false), &awaited, &asked}}})
	l, err := List[uint64](a, "l", nil)
	require.NoError(t, err)
	const n = 1 << 20 // 8 MiB
	require.NoError(t, l.Append(make([]uint64, n)...))
	for range l.Range(5, 1000) {
	}
	for range l.Backward() {
	}
	require.Zero(t, awaited+asked)
	for i := range l.All() { // a piece or two at first, and not only the next one later
		ahead := asked - awaited
		if i == 0 {
			require.InDelta(t, 2*aheadSize, ahead, aheadSize)
		} else if i == n/2 {
			require.InDelta(t, 8*n, ahead, aheadSize)
		}
	}
	require.InDelta(t, 8*n, awaited, 64*pageSize)
	awaited = 0
	_, err = l.CopyTo(make([]uint64, n), 0)
	require.NoError(t, err)
	require.InDelta(t, 8*n, awaited, 64*pageSize)

	awaited, asked = math.MinInt64, 0 // what is in memory is not asked for
	for range l.Views(0, n) {
	}
	require.Equal(t, int64(math.MinInt64), awaited)
	require.Zero(t, asked)
}
