package emd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A slicesModel runs the same random steps on an EMDict of slices and on a map.
type slicesModel[K comparable, E any] struct {
	t       *testing.T
	r       *rand.Rand
	path    string
	opts    testOptions
	mask    uint64 // of the hash
	options *DictOptions[K, []E]
	d       *EMDict[K, []E]
	want    map[K][]E
	synced  map[K][]E
	key     func(r *rand.Rand) K
	elem    func(r *rand.Rand) E
}

func (m *slicesModel[K, E]) open() {
	a := reopen(m.t, m.path, m.opts)
	d, err := Dict(a, "d", m.options)
	require.NoError(m.t, err)
	d.d.hashMask = m.mask
	m.d = d
}

// some returns up to a number of elements that is mostly small.
func (m *slicesModel[K, E]) some() []E {
	most := []int{1, 1, 1, 8, 60, 700, 5000}[m.r.IntN(7)]
	if most == 5000 && m.r.IntN(5) != 0 {
		most = 2
	}
	e := make([]E, 1+m.r.IntN(most))
	for i := range e {
		e[i] = m.elem(m.r)
	}
	return e
}

func (m *slicesModel[K, E]) run(steps int) {
	m.path = filepath.Join(tempDir(m.t), "model.emd")
	m.want, m.synced = map[K][]E{}, map[K][]E{}
	m.open()
	for range steps {
		m.step()
		if m.r.IntN(steps/5+1) == 0 {
			m.check()
		}
	}
	m.check()
	for k := range m.want {
		ok, err := m.d.Delete(k)
		require.NoError(m.t, err)
		require.True(m.t, ok)
	}
	require.True(m.t, m.d.d.bare(), "an empty dict keeps no space")
	require.NoError(m.t, m.d.Arena().verify())
	require.NoError(m.t, m.d.Arena().Close())
}

func (m *slicesModel[K, E]) step() {
	t, d, r := m.t, m.d, m.r
	k := m.key(r)
	old, had := m.want[k]
	switch n := r.IntN(100); {
	case n < 60:
		e := m.some()
		given := slices.Clone(e)
		require.NoError(t, AppendTo(d, k, given...))
		if !slices.ContainsFunc(given, func(e E) bool { return reflect.ValueOf(&e).Elem().Kind() == reflect.Struct }) {
			clear(given) // it was copied
		}
		m.want[k] = append(slices.Clip(old), e...)
	case n < 62:
		require.NoError(t, AppendTo(d, k))
	case n < 72:
		v := [][]E{nil, {}, m.some()}[r.IntN(3)]
		require.NoError(t, d.Set(k, v))
		m.want[k] = v
	case n < 80:
		ok, err := d.Delete(k)
		require.NoError(t, err)
		require.Equal(t, had, ok)
		delete(m.want, k)
	case n < 84:
		v := m.some()
		got, ok, err := d.Swap(k, v)
		require.NoError(t, err)
		require.Equal(t, had, ok)
		m.same(old, got)
		m.want[k] = v
	case n < 88:
		add := m.some()
		_, _, err := d.Compute(k, func(v []E, ok bool) ([]E, Op) {
			assert.Equal(t, had, ok)
			m.same(old, v)
			return append(v, add...), OpStore
		})
		require.NoError(t, err)
		m.want[k] = append(slices.Clip(old), add...)
	case n < 90:
		require.NoError(t, d.Sync())
		m.synced = maps.Clone(m.want)
	case n < 92:
		if m.opts.dirtyLimit == 0 { // nobody else commits
			require.NoError(t, d.Arena().Rollback())
			m.want = maps.Clone(m.synced)
		}
	case n == 92:
		require.NoError(t, d.Arena().Close())
		m.open()
		m.synced = maps.Clone(m.want)
	case n == 93:
		pairs := map[K][]E{m.key(r): m.some(), m.key(r): nil}
		_, err := d.BulkLoad(context.Background(), maps.All(pairs))
		require.NoError(t, err)
		maps.Copy(m.want, pairs)
		m.synced = maps.Clone(m.want)
	case n == 94 && r.IntN(8) == 0:
		require.NoError(t, d.Clear())
		clear(m.want)
	case n == 95:
		n, err := d.DeleteFunc(func(k K, v []E) bool {
			m.same(m.want[k], v)
			return len(v)%5 == 1
		})
		require.NoError(t, err)
		before := len(m.want)
		maps.DeleteFunc(m.want, func(_ K, v []E) bool { return len(v)%5 == 1 })
		require.Equal(t, before-len(m.want), n)
	}
	got, ok, err := m.d.Get(k) // it may have been opened anew
	require.NoError(t, err)
	want, has := m.want[k]
	require.Equal(t, has, ok)
	m.same(want, got)
	m.loop(k, len(want)+1)
	m.loop(k, r.IntN(len(want)+1))
}

// loop compares the first n elements of a value.
func (m *slicesModel[K, E]) loop(k K, n int) {
	var got []E
	for i, e := range Elems(m.d, k) {
		if i == n {
			break
		}
		if i != len(got) {
			require.Equal(m.t, len(got), i)
		}
		got = append(got, e)
	}
	require.NoError(m.t, m.d.Err())
	want := m.want[k][:min(n, len(m.want[k]))]
	require.Len(m.t, got, len(want))
	if len(want) > 0 {
		m.same(want, got)
	}
}

func (m *slicesModel[K, E]) sameAll(got map[K][]E) {
	require.Len(m.t, got, len(m.want))
	for k, want := range m.want {
		v, ok := got[k]
		require.True(m.t, ok)
		m.same(want, v)
	}
}

// same is require.Equal, which looks at each element by reflection, where the elements are of another type than these.
func (m *slicesModel[K, E]) same(want, got []E) {
	if (want == nil) != (got == nil) || len(want) != len(got) {
		require.Equal(m.t, want, got)
	}
	switch want := any(want).(type) {
	case []uint64:
		sameComparable(m.t, want, any(got).([]uint64))
	case []byte:
		sameComparable(m.t, want, any(got).([]byte))
	case []string:
		sameComparable(m.t, want, any(got).([]string))
	case []edge:
		sameComparable(m.t, want, any(got).([]edge))
	case [][700]byte:
		sameComparable(m.t, want, any(got).([][700]byte))
	default:
		require.Equal(m.t, want, got)
	}
}

func sameComparable[E comparable](t *testing.T, want, got []E) {
	if !slices.Equal(want, got) {
		require.Equal(t, want, got)
	}
}

func (m *slicesModel[K, E]) check() {
	t, d := m.t, m.d
	require.NoError(t, d.Arena().verify())
	require.NoError(t, d.Arena().verifyMemory())
	require.Equal(t, len(m.want), d.Len())
	m.sameAll(maps.Collect(d.All()))
	keys := slices.Collect(d.Keys())
	vals, ok := make([][]E, len(keys)), make([]bool, len(keys))
	n, err := d.GetMany(keys, vals, ok)
	require.NoError(t, err)
	require.Equal(t, len(m.want), n)
	for i, k := range keys {
		m.same(m.want[k], vals[i])
	}
	got := map[K][]E{}
	for i := range 3 {
		maps.Insert(got, d.Partition(i, 3))
	}
	m.sameAll(got)
	require.NoError(t, d.Err())
	if d.val.form != userForm && m.r.IntN(4) == 0 { // whoever knows only the file sees the same; that is slow
		require.NoError(t, d.Sync())
		m.synced = maps.Clone(m.want)
		n := 0
		for range d.Arena().Entries("d") {
			n++
		}
		require.Equal(t, len(m.want), n)
		require.NoError(t, d.Arena().Err())
	}
}

func testSlices[K comparable, E any](t *testing.T, steps int, key func(r *rand.Rand) K, elem func(r *rand.Rand) E, options *DictOptions[K, []E]) {
	for name, opts := range map[string]testOptions{"defaults": {}, "tiny": tiny(), "relaxed": relaxed()} {
		opts.opts.NoSync = true
		for seed := range uint64(pick(0, 2, 1)) {
			for _, mask := range []uint64{^uint64(0), 0} {
				t.Run(fmt.Sprintf("%s/mask=%x/seed=%d", name, mask, seed), func(t *testing.T) {
					t.Parallel()
					m := &slicesModel[K, E]{t: t, r: rand.New(rand.NewPCG(seed, mask)), opts: opts, mask: mask, key: key, elem: elem, options: options}
					m.run(steps)
				})
			}
		}
	}
}

type edge struct {
	To   uint32
	Kind uint8
}

type block struct {
	Name string
	Succ []uint16
	Next *uint8
}

func TestAppendToModel(t *testing.T) {
	t.Parallel()
	few := func(r *rand.Rand) uint64 { return r.Uint64N(12) }
	many := func(r *rand.Rand) uint64 { return r.Uint64N(400) }
	long := func(r *rand.Rand) string { // also keys that leave little room, or lie in records
		n := r.IntN(8)
		return strings.Repeat(string(rune('a'+n)), []int{0, 1, 9, 300, 470, 480, 500, 5000}[n])
	}
	number := func(r *rand.Rand) uint64 { return r.Uint64() }
	text := func(r *rand.Rand) string { return strings.Repeat("text", r.IntN(1+r.IntN(1+r.IntN(40)))) }
	const steps = 500
	t.Run("uint64", func(t *testing.T) { testSlices(t, steps, few, number, nil) })
	t.Run("uint64, many keys", func(t *testing.T) { testSlices(t, 4*steps, many, number, nil) })
	t.Run("byte, long keys", func(t *testing.T) {
		testSlices(t, steps, long, func(r *rand.Rand) byte { return byte(r.Uint32()) }, nil)
	})
	t.Run("uint64, long keys", func(t *testing.T) { testSlices(t, steps, long, number, nil) })
	t.Run("string", func(t *testing.T) { testSlices(t, steps, few, text, nil) })
	t.Run("string, long keys", func(t *testing.T) { testSlices(t, steps, long, text, nil) })
	t.Run("padded struct", func(t *testing.T) {
		testSlices(t, steps, few, func(r *rand.Rand) edge { return edge{r.Uint32(), uint8(r.Uint32())} }, nil)
	})
	t.Run("[700]byte", func(t *testing.T) {
		testSlices(t, steps/4, few, func(r *rand.Rand) [700]byte { return [700]byte{byte(r.Uint32()), 699: 1} }, nil)
	})
	t.Run("bool", func(t *testing.T) {
		testSlices(t, steps, few, func(r *rand.Rand) bool { return r.IntN(2) == 0 }, nil)
	})
	t.Run("struct of varying size", func(t *testing.T) {
		testSlices(t, steps/2, few, func(r *rand.Rand) block {
			n := uint8(r.Uint32())
			return block{Name: text(r), Succ: make([]uint16, r.IntN(5)), Next: &n}
		}, nil)
	})
	t.Run("slice", func(t *testing.T) {
		testSlices(t, steps/2, few, func(r *rand.Rand) []string { return [][]string{nil, {}, {text(r), text(r)}}[r.IntN(3)] }, nil)
	})
	t.Run("struct{}", func(t *testing.T) {
		testSlices(t, steps, long, func(r *rand.Rand) struct{} { return struct{}{} }, nil)
	})
	t.Run("codec", func(t *testing.T) {
		testSlices(t, steps/4, few, text, &DictOptions[uint64, []string]{ValueCodec: JSON[[]string]()})
	})
}

// TestAppendToPieces appends to values that Set has stored in pieces, over the limits of extents and heads.
func TestAppendToPieces(t *testing.T) {
	t.Parallel()
	o := tiny()
	o.opts.NoSync = true
	d := newDictFor[string, []uint64](t, o)
	want := make([]uint64, 300<<10>>3)
	for i := range want {
		want[i] = uint64(i) * 7
	}
	require.NoError(t, d.Set("k", want))
	same := func() {
		got, ok, err := d.Get("k")
		require.NoError(t, err)
		require.True(t, ok)
		require.True(t, slices.Equal(want, got))
		n := 0
		for i, e := range Elems(d, "k") {
			if e != want[i] {
				require.Equal(t, want[i], e, "element %d", i)
			}
			n++
		}
		require.Equal(t, len(want), n)
		require.NoError(t, d.Err())
		require.NoError(t, d.Arena().verify())
	}
	same()
	for _, n := range []int{1, 1, 3000, 100_000, 1, 400_000, 5} { // a chunk of 256 KiB makes for many extents
		more := make([]uint64, n)
		for i := range more {
			more[i] = uint64(len(want)+i) * 11
		}
		want = append(want, more...)
		require.NoError(t, AppendTo(d, "k", more...))
		same()
	}
	require.NoError(t, d.Sync())
	require.NoError(t, d.Arena().Check(t.Context(), nil))
	ok, err := d.Delete("k")
	require.NoError(t, err)
	require.True(t, ok)
	require.True(t, d.d.bare())
}

func TestAppendToNothing(t *testing.T) {
	d := newDictFor[string, []uint64](t, testOptions{})
	require.NoError(t, AppendTo(d, "a"))
	require.Zero(t, d.Len(), "no elements make no entry")
	require.NoError(t, d.Set("nil", nil))
	require.NoError(t, d.Set("empty", []uint64{}))
	require.NoError(t, AppendTo(d, "nil"))
	require.NoError(t, AppendTo(d, "empty"))
	v, ok, err := d.Get("nil")
	require.NoError(t, err)
	require.True(t, ok)
	require.Nil(t, v)
	v, _, err = d.Get("empty")
	require.NoError(t, err)
	require.NotNil(t, v)
	require.Empty(t, v)
	require.NoError(t, AppendTo(d, "a", 1, 2))
	require.NoError(t, AppendTo(d, "nil", 3))
	require.Equal(t, map[string][]uint64{"a": {1, 2}, "nil": {3}, "empty": {}}, maps.Collect(d.All()))
	got, _, err := d.Get("a")
	require.NoError(t, err)
	got[0] = 99 // the caller's own
	require.NoError(t, AppendTo(d, "a", 5))
	got, _, err = d.Get("a")
	require.NoError(t, err)
	require.Equal(t, []uint64{1, 2, 5}, got)
	for range Elems(d, "none") {
		t.Error("an element of nothing")
	}
	for range Elems(d, strings.Repeat("k", maxKeySize+1)) {
		t.Error("an element of nothing")
	}
	require.NoError(t, d.Err())
}

func TestAppendToTooLarge(t *testing.T) {
	a := testArena(t, testOptions{})
	d, err := Dict[string, []struct{}](a, "d", nil)
	require.NoError(t, err)
	long := strings.Repeat("k", maxKeySize+1)
	require.ErrorIs(t, AppendTo(d, long, struct{}{}), ErrTooLarge)
	require.NoError(t, AppendTo(d, long), "nothing to add")
	most := make([]struct{}, maxEmptyValues-1)
	isError(t, AppendTo(d, "a", make([]struct{}, maxEmptyValues)...), a.path, ErrTooLarge)
	require.Zero(t, d.Len())
	for _, k := range []string{"a", strings.Repeat("k", 505)} { // whose value lies in the bucket, and does not
		require.NoError(t, AppendTo(d, k, most[1:]...))
		require.NoError(t, AppendTo(d, k, struct{}{}))
		isError(t, AppendTo(d, k, struct{}{}), a.path, ErrTooLarge)
		v, _, err := d.Get(k)
		require.NoError(t, err)
		require.Len(t, v, len(most))
	}

	bytes, err := Dict[uint64, []byte](a, "bytes", nil)
	require.NoError(t, err)
	gib := make([]byte, maxValueSize) // of which nobody reads a byte
	isError(t, AppendTo(bytes, 1, gib...), a.path, ErrTooLarge)
	for _, n := range []int{10, 400, 10_000} { // in the bucket, in a head, in extents
		for range 2 {
			require.NoError(t, AppendTo(bytes, uint64(n), gib[:n]...))
		}
		isError(t, AppendTo(bytes, uint64(n), gib[2*n:]...), a.path, ErrTooLarge)
		v, _, err := bytes.Get(uint64(n))
		require.NoError(t, err)
		require.Len(t, v, 2*n)
	}

	for _, c := range []struct {
		form        uint8
		count, size int64
		fits        bool
	}{
		{formBytes, 0, maxValueSize - 1, true},
		{formBytes, 0, maxValueSize, false},
		{formCounted, 126, maxValueSize - 1, true},
		{formCounted, 127, maxValueSize - 1, false},
		{formCounted, 127, maxValueSize - 2, true},
		{formCounted, 1 << 27, maxValueSize - 4, true},
		{formCounted, 1 << 28, maxValueSize - 4, false},
		{formCounted, 1, 1 << 31, false},
	} {
		n, err := joined(c.form, c.count, c.size)
		if c.fits {
			require.NoError(t, err, "%+v", c)
			require.EqualValues(t, len(join(nil, c.form, int(c.count), nil, nil)), int64(n)-c.size, "%+v", c)
		} else {
			require.ErrorIs(t, err, ErrTooLarge, "%+v", c)
		}
	}
}

// growingOf returns the growing record that is the value of a key.
func growingOf(t testing.TB, d *dict, k uint64) growing {
	var key [8]byte
	for i := range key {
		key[i] = byte(k >> (8 * i))
	}
	h := d.hash(key[:])
	p, found, err := d.locate(d.table.Load().segment(h).bucket(h), h, key[:], 0)
	require.NoError(t, err)
	require.True(t, found)
	e, ok := d.layout.entry(p.b, entryOff(p.b, p.i))
	require.True(t, ok && e.valFar)
	g, err := d.recs.growing(p.b.refAt(e.val))
	require.NoError(t, err)
	return g
}

// TestAppendToRoom looks at how much room values have, and that adding to one moves nothing as long as there is some.
func TestAppendToRoom(t *testing.T) {
	d := newDictFor[uint64, []uint64](t, testOptions{})
	var before growing
	moves := 0
	for i := range uint64(300_000) {
		require.NoError(t, AppendTo(d, 1, i))
		if i < growFrom/8 {
			continue
		}
		g := growingOf(t, d.d, 1)
		if g.x != before.x {
			moves++
		}
		before = g
		if n := d.d.size(); i%1000 == 0 {
			require.Equal(t, int(i+1), g.count)
			require.LessOrEqual(t, g.extents(), 12, "of %d bytes, %d", g.size, n)
		}
	}
	// In the head of 272, 544, ... bytes, then with heads for 12 extents, and twice as many.
	require.LessOrEqual(t, moves, 8)
	pages := 0
	require.NoError(t, before.eachExtent(func(_ pageNo, n uint32, used int) error {
		pages += int(n)
		return nil
	}))
	require.LessOrEqual(t, pages<<pageShift, 2*before.size)
	require.GreaterOrEqual(t, pages<<pageShift, before.size)
}

func TestAppendToRefused(t *testing.T) {
	a := testArena(t, testOptions{})
	d, err := Dict[uint64, []string](a, "d", nil)
	require.NoError(t, err)
	e, err := Dict[uint64, []string](a, "e", &DictOptions[uint64, []string]{ValueCodec: JSON[[]string]()})
	require.NoError(t, err)
	for _, d := range []*EMDict[uint64, []string]{d, e} {
		require.NoError(t, AppendTo(d, 1, "a"))
	}
	refused := func(target error) {
		for _, d := range []*EMDict[uint64, []string]{d, e} {
			err := isError(t, AppendTo(d, 1, "b"), a.path, target)
			require.Equal(t, "appendto", err.Op)
			require.Equal(t, d.d.name, err.Container)
		}
	}
	require.NoError(t, a.Sync())
	require.ErrorIs(t, a.Update(func() error {
		_ = AppendTo(d, 1, strings.Repeat("x", 1000))
		return AppendTo(d, 2<<63-1, make([]string, 1)...)
	}), nil)
	errUpdate := errors.New("no")
	require.ErrorIs(t, a.Update(func() error {
		require.NoError(t, AppendTo(d, 1, "undone"))
		require.NoError(t, AppendTo(d, 5, "undone"))
		return errUpdate
	}), errUpdate)
	v, _, err := d.Get(1)
	require.NoError(t, err)
	require.Equal(t, []string{"a", strings.Repeat("x", 1000)}, v)
	require.Equal(t, 2, d.Len())
	require.NoError(t, a.Drop("e"))
	require.ErrorIs(t, AppendTo(e, 1, "b"), ErrClosed)
	require.ErrorIs(t, AppendTo(e, 1), ErrClosed)
	require.NoError(t, a.Sync())
	a.fail(errUpdate)
	isError(t, AppendTo(d, 1, "b"), a.path, errUpdate)
	n := 0
	for range Elems(d, 1) {
		n++
	}
	require.Equal(t, 2, n, "reading goes on")
	require.ErrorIs(t, a.Close(), errUpdate)
	e = d
	refused(ErrClosed)
	require.ErrorIs(t, AppendTo(d, 1), ErrClosed)
	for range Elems(d, 1) {
		t.Error("an element")
	}
	require.ErrorIs(t, d.Err(), ErrClosed)

	b, err := Open(a.path, &Options{ReadOnly: true})
	require.NoError(t, err)
	a = b
	d, err = Dict[uint64, []string](a, "d", &DictOptions[uint64, []string]{MustExist: true})
	require.NoError(t, err)
	e = d
	refused(ErrReadOnly)
	require.NoError(t, AppendTo(d, 1), "nothing to add")
	n = 0
	for range Elems(d, 1) {
		n++
	}
	require.Equal(t, 2, n)
	_, err = Dict[uint64, []uint64](a, "d", nil)
	require.ErrorIs(t, err, ErrTypeMismatch)
	require.NoError(t, a.Close())
}

// TestAppendToNoSpace refuses the allocator's requests from each one on: either all is added or nothing.
func TestAppendToNoSpace(t *testing.T) {
	for name, sizes := range map[string][]int{
		"from a bucket": {5, 100}, "from a record": {300, 100}, "from pieces": {40_000, 1}, "in the head": {5, 20, 60}, "to extents": {5, 20, 1000},
		"by many extents": {5, 20, 500, 90_000}, "new": {900}, "another head": {5, 20, 196_000, 2000},
	} {
		t.Run(name, func(t *testing.T) {
			refused := 0
			for granted := 0; ; granted++ {
				o := tiny()
				o.opts.NoSync = true
				a := testArena(t, o)
				d, err := Dict[uint64, []uint64](a, "d", nil)
				require.NoError(t, err)
				require.NoError(t, d.Set(0, []uint64{1}))
				add := func(n int) error {
					v := make([]uint64, n)
					for i := range v {
						v[i] = uint64(i)
					}
					return AppendTo(d, 1, v...)
				}
				count := 0
				for _, n := range sizes[:len(sizes)-1] {
					require.NoError(t, add(n))
					count += n
				}
				left := granted
				a.alloc.mu.Lock()
				a.alloc.refuse = func() bool { left--; return left < 0 }
				a.alloc.mu.Unlock()
				err = add(sizes[len(sizes)-1])
				a.alloc.mu.Lock()
				a.alloc.refuse = nil
				a.alloc.mu.Unlock()
				if err == nil {
					count += sizes[len(sizes)-1]
				} else {
					isError(t, err, a.path, ErrFull)
					refused++
				}
				v, _, err2 := d.Get(1)
				require.NoError(t, err2)
				require.Len(t, v, count)
				require.NoError(t, a.verify())
				require.NoError(t, a.Close())
				if err == nil {
					break
				}
			}
			if name != "in the head" {
				require.NotZero(t, refused)
			}
		})
	}
}

// TestAppendToFullDisk has the disk refuse to be written while extents are written out early.
func TestAppendToFullDisk(t *testing.T) {
	disk := newMemFS(nil, nil)
	full := false
	a, err := openWith(hostilePath, &Options{}, internalOptions{fs: fullFS{disk, &full}, heap: true, chunkSize: minChunkSize, dirtyLimit: 512 << 10, inline: true})
	require.NoError(t, err)
	d, err := Dict[uint64, []uint64](a, "d", nil)
	require.NoError(t, err)
	require.NoError(t, AppendTo(d, 1, make([]uint64, 30)...))
	require.NoError(t, AppendTo(d, 1, make([]uint64, 3000)...))
	require.NoError(t, a.Sync())
	full = true
	isError(t, AppendTo(d, 1, make([]uint64, 800_000)...), hostilePath, ErrFull, fullErrors[0])
	v, _, err := d.Get(1)
	require.NoError(t, err)
	require.Len(t, v, 3030)
	require.NoError(t, a.verify())
	full = false
	require.NoError(t, AppendTo(d, 1, make([]uint64, 800_000)...))
	require.NoError(t, a.Sync())
	require.NoError(t, a.Check(t.Context(), nil))
	require.NoError(t, a.Close())
}

// A fullFS has no room for new bytes while full is set.
type fullFS struct {
	*memFS
	full *bool
}

type fullFile struct {
	file
	full *bool
}

func (f fullFS) Open(path string, flag int, mode fs.FileMode) (file, error) {
	of, err := f.memFS.Open(path, flag, mode)
	return fullFile{of, f.full}, err
}

func (f fullFS) Lock(of file, exclusive, wait bool) (bool, error) {
	return f.memFS.Lock(of.(fullFile).file, exclusive, wait)
}

func (f fullFS) SameFile(of file, path string) (bool, error) {
	return f.memFS.SameFile(of.(fullFile).file, path)
}

func (f fullFile) WriteAt(b []byte, off int64) (int, error) {
	if size, _ := f.Size(); *f.full && off+int64(len(b)) > size {
		return 0, fullErrors[0]
	}
	return f.file.WriteAt(b, off)
}

// TestGrowingDamage writes every kind of wrong number into the heads of growing records: reading, changing and checking say what is wrong and
// where, and Salvage gets the other values.
func TestGrowingDamage(t *testing.T) {
	t.Parallel()
	const small, large = 1, 2 // keys whose elements lie in the head, and in extents
	add := map[uint64]int{small: 20, large: 1500}
	both := []uint64{small, large}
	for name, c := range map[string]struct {
		off    int
		bytes  []byte
		keys   []uint64
		unseen string // what cannot notice it
	}{
		"no size":               {growSizeOff, []byte{0, 0, 0, 0}, []uint64{large}, ""},
		"no size in the head":   {growSizeOff, []byte{0, 0, 0, 0}, []uint64{small}, "check append delete"},
		"size past the head":    {growSizeOff + 1, []byte{9}, []uint64{small}, ""},
		"size past the extents": {growSizeOff + 2, []byte{1}, []uint64{large}, ""},
		"size of 4 GiB":         {growSizeOff, []byte{255, 255, 255, 255}, both, ""},
		"size of 1 GiB":         {growSizeOff, []byte{0, 0, 0, 64}, both, ""},
		"count 0":               {growCountOff, []byte{0, 0, 0, 0}, both, "check append delete"}, // only the type tells
		"count too high":        {growCountOff + 1, []byte{77}, both, "check append delete"},
		"count of 2^31":         {growCountOff, []byte{0, 0, 0, 128}, both, ""},
		"room 0":                {growRoomOff, []byte{0, 0, 0, 0}, both, ""},
		"room of 4 GiB":         {growRoomOff, []byte{255, 255, 255, 255}, both, ""},
		"room of 1 GiB":         {growRoomOff, []byte{0, 0, 0, 64}, both, ""},
		"room of no class":      {growRoomOff, []byte{1}, both, ""},
		"room of another class": {growRoomOff, []byte{0, 12, 0, 0}, both, "get append"},
		"form":                  {growFormOff, []byte{9}, both, ""},
		"form of bytes":         {growFormOff, []byte{formBytes}, both, ""},
		"largest":               {growLargestOff, []byte{12}, both, ""},
		"no extents":            {growLargestOff, []byte{0}, []uint64{large}, ""},
		"magic":                 {growMagicOff, []byte{0}, both, ""},
		"extent 0":              {growHeader, []byte{0, 0, 0, 0}, []uint64{large}, "append"},
		"extent in the header":  {growHeader, []byte{1, 0, 0, 0}, []uint64{large}, "append"},
		"extent outside":        {growHeader + 3, []byte{3}, []uint64{large}, "append"},
		"extent twice":          {growHeader + 4, nil, []uint64{large}, "get append"},
	} {
		for _, k := range c.keys {
			t.Run(fmt.Sprintf("%s/%d", name, k), func(t *testing.T) {
				path := filepath.Join(tempDir(t), "damaged.emd")
				in := internalOptions{heap: true, chunkSize: minChunkSize}
				a, err := openWith(path, &Options{NoSync: true}, in)
				require.NoError(t, err)
				defer func() { _ = a.Close() }() // a fault that was seen
				d, err := Dict[uint64, []uint64](a, "d", nil)
				require.NoError(t, err)
				for k, n := range add {
					for i := range uint64(n) {
						require.NoError(t, AppendTo(d, k, i+1))
					}
				}
				require.NoError(t, d.Set(3, []uint64{3}))
				require.NoError(t, a.Sync())
				g := growingOf(t, d.d, k)
				require.Equal(t, k == large, g.largest != 0)
				spoilt := c.bytes
				if spoilt == nil { // the page of the extent before
					spoilt = slices.Clone(g.head[c.off-4 : c.off])
				}
				d.d.a.space.mark(g.x.off(), g.room)
				copy(g.head[c.off:], spoilt)
				require.NoError(t, a.Sync())

				wrong := func(what string, err error) {
					if strings.Contains(c.unseen, what) {
						return
					}
					require.ErrorIs(t, err, ErrCorrupt, what)
					var e *Error
					require.ErrorAs(t, err, &e, what)
					require.Equal(t, "d", e.Container, what)
					if !strings.Contains(c.unseen, "check") { // else the bytes that decode wrongly lie anywhere
						require.NotZero(t, e.Offset, what)
					}
				}
				copied := crashImage(t, path)
				wrong("check", a.Check(t.Context(), nil))
				_, _, err = d.Get(k)
				wrong("get", err)
				n := 0
				for range Elems(d, k) {
					n++
				}
				require.LessOrEqual(t, n, add[k])
				wrong("get", d.Err())
				wrong("append", AppendTo(d, k, 1))
				_, err = d.Delete(k)
				wrong("delete", err)
				dst := filepath.Join(tempDir(t), "salvaged.emd")
				report, err := salvageWith(t.Context(), dst, copied, nil, in)
				require.NoError(t, err)
				s, err := openWith(dst, nil, in)
				require.NoError(t, err)
				defer func() { require.NoError(t, s.Close()) }()
				sd, err := Dict[uint64, []uint64](s, "d", nil)
				require.NoError(t, err)
				for k2, n := range map[uint64]int{small: add[small], large: add[large], 3: 1} {
					v, ok, err := sd.Get(k2)
					if k2 == k {
						continue // lost, or as damaged as it was
					}
					require.NoError(t, err)
					require.True(t, ok, "key %d; %+v", k2, report)
					require.Len(t, v, n)
				}
				require.NoError(t, s.Check(t.Context(), nil))
			})
		}
	}
}

// TestElemsWhileChanging changes a value in the body of the loop over it.
func TestElemsWhileChanging(t *testing.T) {
	t.Run("uint64", func(t *testing.T) { testElemsWhileChanging(t, func(i int) uint64 { return uint64(i) }) })
	t.Run("string", func(t *testing.T) {
		testElemsWhileChanging(t, func(i int) string { return fmt.Sprint(i) + strings.Repeat("-", i%13) })
	})
	t.Run("large", func(t *testing.T) { // elements that no batch holds
		testElemsWhileChanging(t, func(i int) [3]string { return [3]string{fmt.Sprint(i), strings.Repeat("-", i%7*20_000)} })
	})
}

func testElemsWhileChanging[E any](t *testing.T, elem func(i int) E) {
	number := func(from, to int) (v []E) {
		for i := from; i < to; i++ {
			v = append(v, elem(i))
		}
		return v
	}
	count := 30_000
	if testing.Short() {
		count = 9_000
	}
	if reflect.TypeFor[E]().Kind() == reflect.Array {
		count = 60
	}
	a := testArena(t, testOptions{opts: Options{NoSync: true}})
	for _, grown := range []bool{true, false} {
		for name, c := range map[string]struct {
			change func(d *EMDict[uint64, []E]) error
			want   func() []E // what a loop yields that made the change after a third of the value
		}{
			"append": {
				func(d *EMDict[uint64, []E]) error { return AppendTo(d, 1, number(0, count)...) },
				func() []E { return number(0, count) },
			},
			"set longer": {
				func(d *EMDict[uint64, []E]) error { return d.Set(1, number(1, 3*count)) },
				func() []E { return nil }, // either, see below
			},
			"set shorter": {
				func(d *EMDict[uint64, []E]) error { return d.Set(1, number(1, count/2)) },
				func() []E { return nil },
			},
			"delete": {
				func(d *EMDict[uint64, []E]) error { _, err := d.Delete(1); return err },
				func() []E { return nil },
			},
			"swap and append": {
				func(d *EMDict[uint64, []E]) error {
					_, _, err := d.Swap(1, number(1, 40))
					return errors.Join(err, AppendTo(d, 1, number(41, 3*count)...))
				},
				func() []E { return nil },
			},
			"clear":    {func(d *EMDict[uint64, []E]) error { return d.Clear() }, func() []E { return nil }},
			"rollback": {func(d *EMDict[uint64, []E]) error { return d.Arena().Rollback() }, func() []E { return number(0, count) }},
		} {
			t.Run(fmt.Sprintf("%s/grown=%t", name, grown), func(t *testing.T) {
				d, err := Dict[uint64, []E](a, fmt.Sprint(name, grown), nil)
				require.NoError(t, err)
				if grown {
					for i := 0; i < count; i += 10 {
						require.NoError(t, AppendTo(d, 1, number(i, i+10)...))
					}
				} else {
					require.NoError(t, d.Set(1, number(0, count)))
				}
				require.NoError(t, d.Sync())
				var got []E
				at := 0
				for i, e := range Elems(d, 1) {
					require.Equal(t, len(got), i, "indexes rise by one")
					got = append(got, e)
					if i == count/3 {
						at = len(got)
						require.NoError(t, c.change(d))
					}
				}
				require.NoError(t, d.Err())
				require.Equal(t, number(0, at), got[:at])
				if want := c.want(); want != nil {
					require.Equal(t, want, got)
					return
				}
				// Each element is the old one of its index, up to somewhere, then the new one.
				now, _, err := d.Get(1)
				require.NoError(t, err)
				require.LessOrEqual(t, len(got), count)
				turn := at
				for ; turn < len(got) && reflect.DeepEqual(got[turn], elem(turn)); turn++ {
				}
				require.Less(t, turn, count, "what was read ahead is not all")
				if len(now) >= turn {
					require.Equal(t, now[turn:min(count, len(now))], got[turn:len(got):len(got)][:len(got)-turn])
				} else {
					require.Len(t, got, turn)
				}
			})
		}
	}
}

// TestElemsConcurrent reads values beside writers that append to them, replace and delete them. Each element tells which key it is of and
// where it stands, and of which of the successive values it is.
func TestElemsConcurrent(t *testing.T) {
	type mark struct {
		Key, Index, Life uint32
		Text             string
	}
	markOf := func(k, i, life uint32) mark {
		return mark{k, i, life, strings.Repeat(string(rune('a'+(k+i+life)%26)), int(k+7*i+3*life)%50)}
	}
	o := testOptions{opts: Options{NoSync: true}}
	o.logLimit = 1 << 20
	a := testArena(t, o)
	d, err := Dict[uint64, []mark](a, "d", nil)
	require.NoError(t, err)
	n, err := Dict[uint64, []uint64](a, "n", nil)
	require.NoError(t, err)
	const keys = 6
	var wg sync.WaitGroup
	var stop atomic.Bool
	loops, elems := atomic.Int64{}, atomic.Int64{}
	for w := range uint32(2) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			var length, life [keys]uint32
			for !stop.Load() {
				k := r.Uint32N(keys/2)*2 + w // a writer has keys of its own
				switch i := r.IntN(200); {
				case i == 0:
					_, err := d.Delete(uint64(k))
					assert.NoError(t, err)
					_, err = n.Delete(uint64(k))
					assert.NoError(t, err)
					length[k], life[k] = 0, life[k]+1
				case i == 1:
					life[k]++
					v, u := make([]mark, r.IntN(3000)), []uint64{}
					for i := range v {
						v[i] = markOf(k, uint32(i), life[k])
						u = append(u, uint64(k)<<32|uint64(i))
					}
					length[k] = uint32(len(v))
					assert.NoError(t, d.Set(uint64(k), v))
					assert.NoError(t, n.Set(uint64(k), u))
				case i == 2 && k == 0:
					assert.NoError(t, a.Sync())
				default:
					for range 1 + r.IntN(20) {
						assert.NoError(t, AppendTo(d, uint64(k), markOf(k, length[k], life[k]), markOf(k, length[k]+1, life[k])))
						assert.NoError(t, AppendTo(n, uint64(k), uint64(k)<<32|uint64(length[k]), uint64(k)<<32|uint64(length[k]+1)))
						length[k] += 2
					}
				}
			}
		})
	}
	for reader := range uint64(2) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(reader, 4))
			for !stop.Load() {
				k := r.Uint32N(keys)
				last, life := -1, uint32(0)
				for i, e := range Elems(d, uint64(k)) {
					if i != last+1 || e.Life < life || e != markOf(k, uint32(i), e.Life) {
						t.Errorf("key %d: element %d after %d is %+v", k, i, last, e)
						stop.Store(true)
						break
					}
					last, life = i, e.Life
					elems.Add(1)
				}
				for i, e := range Elems(n, uint64(k)) {
					if e != uint64(k)<<32|uint64(i) {
						t.Errorf("key %d: element %d is %#x", k, i, e)
						stop.Store(true)
						break
					}
				}
				v, _, err := d.Get(uint64(k))
				assert.NoError(t, err)
				for i, e := range v {
					if e != markOf(k, uint32(i), v[0].Life) {
						t.Errorf("key %d: got %+v at %d", k, e, i)
						stop.Store(true)
					}
				}
				loops.Add(1)
			}
		})
	}
	for range pick(0, 150, 40) {
		time.Sleep(10 * time.Millisecond)
		if stop.Load() {
			break
		}
	}
	stop.Store(true)
	wg.Wait()
	require.NoError(t, d.Err())
	require.NoError(t, n.Err())
	require.NoError(t, a.verify())
	require.NotZero(t, elems.Load())
	t.Logf("%d loops, %d elements", loops.Load(), elems.Load())
}

// TestAppendToTogether appends to the same keys from several goroutines: all is there, and what one has added is in its order.
func TestAppendToTogether(t *testing.T) {
	d := newDictFor[uint64, []uint64](t, testOptions{opts: Options{NoSync: true}})
	const writers, each, keys = 4, 3000, 5
	var wg sync.WaitGroup
	for w := range uint64(writers) {
		wg.Go(func() {
			for i := range uint64(each) {
				assert.NoError(t, AppendTo(d, i%keys, w<<32|i))
			}
		})
	}
	wg.Wait()
	total := 0
	for k := range uint64(keys) {
		next := [writers]uint64{}
		for _, e := range Elems(d, k) {
			w := e >> 32
			require.GreaterOrEqual(t, e&0xffffffff, next[w])
			next[w] = e&0xffffffff + 1
			total++
		}
	}
	require.Equal(t, writers*each, total)
}

func TestAppendToAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	numbers := newDictFor[uint64, []uint64](t, testOptions{})
	texts := newDictFor[string, []string](t, testOptions{})
	key := "a key of some length"
	for name, fn := range map[string]func(){
		"number": func() { _ = AppendTo(numbers, 1, 2) },
		"text":   func() { _ = AppendTo(texts, key, key) },
	} {
		for range 1000 {
			fn()
		}
		assert.Zero(t, testing.AllocsPerRun(100, fn), name) // rounded down: now and then there is an extent to add
	}
}

// A countingFS counts the bytes that are written, and notes whether files can be allocated.
type countingFS struct {
	fileSystem
	n       *atomic.Int64
	refused *atomic.Bool
}

type countingFile struct {
	file
	countingFS
}

func (c countingFS) Open(path string, flag int, mode fs.FileMode) (file, error) {
	f, err := c.fileSystem.Open(path, flag, mode)
	return countingFile{f, c}, err
}

func (c countingFS) Lock(f file, exclusive, wait bool) (bool, error) {
	return c.fileSystem.Lock(f.(countingFile).file, exclusive, wait)
}

func (c countingFS) SameFile(f file, path string) (bool, error) {
	return c.fileSystem.SameFile(f.(countingFile).file, path)
}

func (c countingFS) Network(f file) (string, bool) {
	return c.fileSystem.Network(f.(countingFile).file)
}
func (c countingFS) Map(f file, written bool) mapping {
	return c.fileSystem.Map(f.(countingFile).file, written)
}

func (c countingFile) WriteAt(b []byte, off int64) (int, error) {
	c.n.Add(int64(len(b)))
	return c.file.WriteAt(b, off)
}

func (c countingFile) Allocate(off, n int64) error {
	err := c.file.Allocate(off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		c.refused.Store(true)
	}
	return err
}

// TestAppendToWrites counts what a million appends to one key write, Close included: to the file, to the log, and the zeros ahead of that.
// A record of the log takes whole pages, so the fewer bytes are added between two commits, the more are written for each.
func TestAppendToWrites(t *testing.T) {
	for _, every := range []int{10_000, 50_000, 1_000_000} {
		t.Run(fmt.Sprint("sync every ", every), func(t *testing.T) {
			var written atomic.Int64
			var refused atomic.Bool
			disk := countingFS{newOSFS(raceEnabled, false), &written, &refused}
			a, err := openWith(filepath.Join(tempDir(t), "w.emd"), &Options{NoSync: true}, internalOptions{fs: disk, inline: true})
			require.NoError(t, err)
			d, err := Dict[uint64, []uint64](a, "d", nil)
			require.NoError(t, err)
			require.NoError(t, a.Sync())
			before := written.Load()
			const n = 1_000_000
			for i := range n {
				require.NoError(t, AppendTo(d, 1, uint64(i)))
				if i%every == every-1 {
					require.NoError(t, a.Sync())
				}
			}
			require.NoError(t, a.Close())
			ratio := float64(written.Load()-before) / (8 * n)
			t.Logf("%.2f bytes for each that was added", ratio)
			limit := 3.0
			if refused.Load() {
				limit++ // zeros are written where room cannot be allocated
			}
			require.LessOrEqual(t, ratio, limit)
		})
	}
}
