package emd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A dictModel runs the same random steps on an EMDict and on a map.
type dictModel[K, V comparable] struct {
	t       *testing.T
	r       *rand.Rand
	path    string
	opts    testOptions
	mask    uint64 // of the hash
	d       *EMDict[K, V]
	want    map[K]V
	key     func(r *rand.Rand) K
	val     func(r *rand.Rand) V
	options *DictOptions[K, V]
}

func (m *dictModel[K, V]) open() {
	a := reopen(m.t, m.path, m.opts)
	d, err := Dict(a, "d", m.options)
	require.NoError(m.t, err)
	d.d.hashMask = m.mask
	m.d = d
}

// run makes steps in three phases: the dict grows, stays, and shrinks to nothing.
func (m *dictModel[K, V]) run(steps int) {
	m.path = filepath.Join(tempDir(m.t), "model.emd")
	m.want = map[K]V{}
	m.open()
	for i := range steps {
		m.step([]int{20, 50, 80}[i*3/steps])
		switch {
		case m.r.IntN(steps/4+1) == 0:
			m.check()
			require.NoError(m.t, m.d.Arena().Close())
			m.open()
			m.check()
		case m.r.IntN(steps/4+1) == 0:
			m.check()
		}
	}
	m.check()
	for k := range m.want {
		ok, err := m.d.Delete(k)
		require.NoError(m.t, err)
		require.True(m.t, ok)
		delete(m.want, k)
		if m.r.IntN(1+steps/8) == 0 {
			m.check()
		}
	}
	m.check()
	require.True(m.t, m.d.d.bare(), "an empty dict keeps no space")
	require.NoError(m.t, m.d.Arena().Close())
}

// step does one thing to one key; of a hundred, remove deletions.
func (m *dictModel[K, V]) step(remove int) {
	t, d := m.t, m.d
	k := m.key(m.r)
	v := m.val(m.r)
	old, had := m.want[k]
	if n := m.r.IntN(100); n < remove {
		for other := range m.want { // most random keys are not there
			if m.r.IntN(4) != 0 {
				k = other
			}
			break
		}
		old, had = m.want[k]
		if n%4 == 0 {
			actual, ok, err := d.Compute(k, func(v V, ok bool) (V, Op) {
				assert.Equal(t, had, ok)
				assert.Equal(t, old, v)
				return v, OpRemove
			})
			var zero V
			require.NoError(t, err)
			require.False(t, ok)
			require.Equal(t, zero, actual)
		} else {
			ok, err := d.Delete(k)
			require.NoError(t, err)
			require.Equal(t, had, ok, "delete %v", k)
		}
		delete(m.want, k)
		return
	}
	switch m.r.IntN(6) {
	case 0:
		actual, loaded, err := d.GetOrSet(k, v)
		require.NoError(t, err)
		require.Equal(t, had, loaded)
		if had {
			require.Equal(t, old, actual)
			return
		}
		require.Equal(t, v, actual)
	case 1:
		got, ok, err := d.Swap(k, v)
		require.NoError(t, err)
		require.Equal(t, had, ok)
		require.Equal(t, old, got)
	case 2:
		actual, ok, err := d.Compute(k, func(got V, ok bool) (V, Op) {
			assert.Equal(t, had, ok)
			assert.Equal(t, old, got)
			return v, OpStore
		})
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, v, actual)
	default:
		require.NoError(t, d.Set(k, v))
	}
	m.want[k] = v
	got, ok, err := d.Get(k)
	require.NoError(t, err)
	require.True(t, ok, "%v", k)
	require.Equal(t, v, got)
}

// check compares all. Its loops call require where something is wrong, because require takes longer than what they do.
func (m *dictModel[K, V]) check() {
	t, d := m.t, m.d
	require.NoError(t, d.Arena().verify())
	require.Equal(t, len(m.want), d.Len())
	seen := map[K]bool{}
	for k, v := range d.All() {
		if w, ok := m.want[k]; seen[k] || !ok || v != w {
			require.Fail(t, "wrong entry", "%v: %v, wanted %v (%v); twice: %v", k, v, w, ok, seen[k])
		}
		seen[k] = true
	}
	require.NoError(t, d.Err())
	require.Len(t, seen, len(m.want))
	for k, v := range m.want {
		if got, ok, err := d.Get(k); err != nil || !ok || got != v {
			require.Fail(t, "wrong value", "%v: %v, %v, %v, wanted %v", k, got, ok, err, v)
		}
	}
	for range 100 {
		k := m.key(m.r)
		_, had := m.want[k]
		ok, err := d.Contains(k)
		require.NoError(t, err)
		require.Equal(t, had, ok)
	}
	m.checkBatches()
	m.checkPartitions()
}

// checkBatches looks up all keys, and others, with GetMany.
func (m *dictModel[K, V]) checkBatches() {
	t, d := m.t, m.d
	var keys []K
	for k := range m.want {
		keys = append(keys, k)
	}
	for range 1 + len(keys)/4 {
		keys = append(keys, m.key(m.r))
	}
	m.r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	for len(keys) > 0 {
		n := min(len(keys), 1+m.r.IntN(3*batchSize))
		vals, oks := make([]V, n), make([]bool, n)
		for i := range n {
			vals[i], oks[i] = m.val(m.r), m.r.IntN(2) == 0 // to be overwritten
		}
		d.d.warm.Store(m.r.IntN(2) == 0)
		found, err := d.GetMany(keys[:n], vals, oks)
		require.NoError(t, err)
		for i, k := range keys[:n] {
			v, had := m.want[k] // zero if it is absent
			if oks[i] != had || vals[i] != v {
				require.Fail(t, "wrong value", "%v: %v, %v, wanted %v, %v", k, vals[i], oks[i], v, had)
			}
			if had {
				found--
			}
		}
		require.Zero(t, found)
		keys = keys[n:]
	}
}

func (m *dictModel[K, V]) checkPartitions() {
	t, d := m.t, m.d
	n := []int{1, 2, 3, 7, 64, 1000, math.MaxInt}[m.r.IntN(7)]
	seen := map[K]bool{}
	for i := range min(n, 1000) {
		if n > 1000 {
			i *= n / 1000 // of the many, a few
		}
		for k, v := range d.Partition(i, n) {
			if seen[k] || v != m.want[k] {
				require.Fail(t, "wrong entry", "%v: %v, wanted %v; twice: %v", k, v, m.want[k], seen[k])
			}
			seen[k] = true
		}
	}
	require.NoError(t, d.Err())
	if n <= 1000 {
		require.Len(t, seen, len(m.want))
	}
}

// hashMasks are the hash functions of tests: the real one, few bits at both
// ends, few bits at the top only, and a constant.
var hashMasks = map[string]uint64{
	"all":      ^uint64(0),
	"few":      0xfe00_0000_c000_0003,
	"top":      0xff00_0000_0000_0000,
	"low":      0xffff_ffff,
	"constant": 0,
}

func testDictModel[K, V comparable](t *testing.T, keys int, key func(r *rand.Rand) K, val func(r *rand.Rand) V) {
	seed := rand.Uint64()
	kind := int(seed % 3)
	for name, mask := range hashMasks {
		kind++
		t.Run(fmt.Sprintf("hash=%s/seed=%d", name, seed), func(t *testing.T) {
			t.Parallel()
			steps := keys * 3
			if mask != ^uint64(0) {
				steps /= 8
			}
			if testing.Short() || raceEnabled {
				steps /= 8
			}
			m := dictModel[K, V]{t: t, r: rand.New(rand.NewPCG(seed, 0)), mask: mask, key: key, val: val}
			m.opts = []testOptions{{}, tiny(), relaxed()}[kind%3]
			m.run(steps)
		})
	}
}

func word(r *rand.Rand) uint64 { return r.Uint64N(30000) }

func anyWord(r *rand.Rand) uint64 { return r.Uint64() }

func text(least, most int) func(r *rand.Rand) string {
	return func(r *rand.Rand) string {
		n := r.IntN(30000)
		size := least + int(uint64(n)*0x9E3779B97F4A7C15>>32%uint64(most-least+1))
		s := fmt.Sprint(n, "-")
		return s + strings.Repeat("x", max(0, size-len(s)))
	}
}

func TestEMDictModel(t *testing.T) {
	type pair struct {
		A, B uint64
		C    uint16
	}
	t.Run("uint64 to uint64", func(t *testing.T) { testDictModel(t, 30000, word, anyWord) })
	t.Run("uint32 to uint32", func(t *testing.T) {
		testDictModel(t, 30000, func(r *rand.Rand) uint32 { return r.Uint32N(30000) }, func(r *rand.Rand) uint32 { return r.Uint32() })
	})
	t.Run("uint64 to struct{}", func(t *testing.T) {
		testDictModel(t, 30000, word, func(*rand.Rand) struct{} { return struct{}{} })
	})
	t.Run("uint32 to [28]byte", func(t *testing.T) {
		testDictModel(t, 10000, func(r *rand.Rand) uint32 { return r.Uint32N(20000) }, func(r *rand.Rand) [28]byte { return [28]byte{1, uint8(r.Uint32()), 27: 9} })
	})
	t.Run("[16]byte to uint64", func(t *testing.T) {
		testDictModel(t, 20000, func(r *rand.Rand) [16]byte {
			return [16]byte{uint8(r.Uint32()), uint8(r.Uint32()), 15: uint8(r.Uint32N(4))}
		}, anyWord)
	})
	t.Run("uint8 to struct{}", func(t *testing.T) {
		testDictModel(t, 2000, func(r *rand.Rand) uint8 { return uint8(r.Uint32()) }, func(*rand.Rand) struct{} { return struct{}{} })
	})
	t.Run("struct{} to uint64", func(t *testing.T) {
		testDictModel(t, 500, func(*rand.Rand) struct{} { return struct{}{} }, anyWord)
	})
	t.Run("struct{} to struct{}", func(t *testing.T) {
		testDictModel(t, 500, func(*rand.Rand) struct{} { return struct{}{} }, func(*rand.Rand) struct{} { return struct{}{} })
	})
	t.Run("string to uint64", func(t *testing.T) { testDictModel(t, 20000, text(0, 20), anyWord) })
	t.Run("uint64 to string", func(t *testing.T) { testDictModel(t, 8000, word, text(0, 200)) })
	t.Run("string to string, long", func(t *testing.T) { testDictModel(t, 4000, text(0, 700), text(0, 4000)) })
	t.Run("struct to struct", func(t *testing.T) {
		testDictModel(t, 8000, func(r *rand.Rand) pair { return pair{r.Uint64N(100), r.Uint64N(100), 7} }, func(r *rand.Rand) pair { return pair{r.Uint64(), 1, 2} })
	})
	t.Run("[500]byte to [500]byte", func(t *testing.T) {
		testDictModel(t, 1000, func(r *rand.Rand) [500]byte { return [500]byte{uint8(r.Uint32()), 499: uint8(r.Uint32N(4))} }, func(r *rand.Rand) [500]byte { return [500]byte{uint8(r.Uint32())} })
	})
	t.Run("[300]byte to [300]byte", func(t *testing.T) {
		testDictModel(t, 1000, func(r *rand.Rand) [300]byte { return [300]byte{uint8(r.Uint32()), 299: uint8(r.Uint32N(4))} }, func(r *rand.Rand) [300]byte { return [300]byte{uint8(r.Uint32())} })
	})
	t.Run("string to [600]byte", func(t *testing.T) {
		testDictModel(t, 1000, text(0, 700), func(r *rand.Rand) [600]byte { return [600]byte{uint8(r.Uint32())} })
	})
	t.Run("string to [400]byte", func(t *testing.T) {
		testDictModel(t, 1000, text(0, 700), func(r *rand.Rand) [400]byte { return [400]byte{uint8(r.Uint32())} })
	})
}

// newDictFor returns an empty dict in an arena of its own.
func newDictFor[K comparable, V any](t testing.TB, o testOptions) *EMDict[K, V] {
	d, err := Dict[K, V](testArena(t, o), "d", nil)
	require.NoError(t, err)
	return d
}

func TestEMDictFloatKeys(t *testing.T) {
	d := newDictFor[float64, string](t, testOptions{})
	require.NoError(t, d.Set(math.NaN(), "nan"))
	require.NoError(t, d.Set(math.Copysign(0, -1), "zero"))
	require.NoError(t, d.Set(math.Inf(1), "inf"))
	for k, want := range map[float64]string{math.Float64frombits(0x7ff8000000000123): "nan", 0: "zero", math.Inf(1): "inf"} {
		v, ok, err := d.Get(k)
		require.NoError(t, err)
		assert.True(t, ok, "%v", k)
		assert.Equal(t, want, v)
	}
	require.Equal(t, 3, d.Len())
	ok, err := d.Delete(math.NaN())
	require.NoError(t, err)
	require.True(t, ok)
	for k := range d.Keys() {
		assert.False(t, math.Signbit(k), "%v", k)
	}

	f := newDictFor[float32, uint32](t, testOptions{})
	require.NoError(t, f.Set(0, 1))
	require.NoError(t, f.Set(float32(math.Copysign(0, -1)), 2))
	require.Equal(t, 1, f.Len())
}

func TestEMDictBytes(t *testing.T) {
	d := newDictFor[string, []byte](t, testOptions{})
	want := map[string][]byte{
		"": {}, "nil": nil, "empty": {}, "one": {1}, "zeros": make([]byte, 100),
		"page": bytes.Repeat([]byte{7}, 5000), "large": bytes.Repeat([]byte{8}, 300<<10),
		strings.Repeat("k", maxKeySize): {9},
	}
	for k, v := range want {
		require.NoError(t, d.Set(k, v))
	}
	check := func() {
		for k, v := range want {
			got, ok, err := d.Get(k)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, v, got, "%.10q", k)
		}
		n := 0
		for k, v := range d.All() {
			require.Equal(t, want[k], v, "%.10q", k)
			n++
		}
		require.Equal(t, len(want), n)
	}
	check()
	// A value that Get returned is the caller's own.
	v, _, err := d.Get("one")
	require.NoError(t, err)
	v[0] = 77
	check()
	// Values that change their size class, in both directions.
	for _, size := range []int{0, 1, 500, 600, 5000, 70000, 200 << 10, 5000, 3, 0} {
		want["large"] = bytes.Repeat([]byte{byte(size)}, size)
		require.NoError(t, d.Set("large", want["large"]))
		check()
		require.NoError(t, d.Arena().verify())
	}
}

func TestEMDictHugeValue(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("moves 200 MiB")
	}
	o := testOptions{}
	o.dirtyLimit = 8 << 20
	d := newDictFor[string, []byte](t, o)
	huge := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
	require.NoError(t, d.Set("huge", huge))
	got, ok, err := d.Get("huge")
	require.NoError(t, err)
	require.True(t, ok)
	require.True(t, bytes.Equal(huge, got))
	require.NoError(t, d.Set("huge", huge[:len(huge)/2+1]))
	got, _, err = d.Get("huge")
	require.NoError(t, err)
	require.True(t, bytes.Equal(huge[:len(huge)/2+1], got))
	ok, err = d.Delete("huge")
	require.NoError(t, err)
	require.True(t, ok)
}

// A value may be larger than the DirtyLimit: what is over it is this change alone.
func TestEMDictOverTheLimit(t *testing.T) {
	d := newDictFor[uint64, []byte](t, tiny())
	v := make([]byte, 720<<10)
	require.Greater(t, int64(len(v)), d.Arena().limit)
	for range 3 {
		require.NoError(t, d.Set(1, v))
		require.NoError(t, d.Set(2, v[:9]))
	}
	got, _, err := d.Get(1)
	require.NoError(t, err)
	require.Len(t, got, len(v))
}

func TestEMDictTooLarge(t *testing.T) {
	d := newDictFor[string, string](t, testOptions{})
	long := strings.Repeat("k", maxKeySize+1)
	require.ErrorIs(t, d.Set(long, ""), ErrTooLarge)
	_, _, err := d.Swap(long, "")
	require.ErrorIs(t, err, ErrTooLarge)
	_, _, err = d.GetOrSet(long, "")
	require.ErrorIs(t, err, ErrTooLarge)
	_, _, err = d.Compute(long, func(string, bool) (string, Op) { t.Error("called"); return "", OpKeep })
	require.ErrorIs(t, err, ErrTooLarge)
	// It cannot be there, so asking for it is no error.
	_, ok, err := d.Get(long)
	require.NoError(t, err)
	require.False(t, ok)
	ok, err = d.Delete(long)
	require.NoError(t, err)
	require.False(t, ok)
}

func TestEMDictClear(t *testing.T) {
	for name, n := range map[string]int{"none": 0, "one": 1, "some": 3000, "fanned out": 150_000} {
		t.Run(name, func(t *testing.T) {
			d := newDictFor[uint64, string](t, testOptions{})
			for i := range n / 5 {
				require.NoError(t, d.Set(uint64(i), strings.Repeat("v", i%300*(i%31))))
			}
			require.NoError(t, d.Clear())
			require.Equal(t, 0, d.Len())
			require.True(t, d.d.bare())
			require.NoError(t, d.Arena().verify())
			require.NoError(t, d.Set(1, "a"))
			require.Equal(t, 1, d.Len())

			w := newDictFor[uint64, uint64](t, testOptions{})
			for i := range n {
				require.NoError(t, w.Set(uint64(i), 1))
			}
			require.NoError(t, w.Clear())
			require.Equal(t, 0, w.Len())
			require.True(t, w.d.bare())
			require.NoError(t, w.Arena().verify())
		})
	}
}

func TestEMDictGrow(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	require.Panics(t, func() { _ = d.Grow(-1) })
	require.NoError(t, d.Grow(0))
	require.True(t, d.d.bare())
	require.NoError(t, d.Set(1, 2))
	require.NoError(t, d.Grow(300_000))
	require.NoError(t, d.Arena().verify())
	before := d.d.size()
	for i := range 300_000 {
		require.NoError(t, d.Set(uint64(i), uint64(i)))
	}
	require.Equal(t, 300_000, d.Len())
	require.InDelta(t, before, d.d.size(), float64(before)/10, "pages divided in spite of Grow")
	require.NoError(t, d.Arena().verify())

	s := newDictFor[string, uint64](t, testOptions{})
	require.NoError(t, s.Grow(1000))
}

// TestEMDictMerges deletes fifteen of sixteen entries, of any bucket: buckets join before they are empty.
func TestEMDictMerges(t *testing.T) {
	t.Run("lines", func(t *testing.T) { testMerges(t, func(i uint64) uint64 { return i }) })
	t.Run("control bytes", func(t *testing.T) {
		testMerges(t, func(i uint64) [16]byte { return [16]byte(binary.LittleEndian.AppendUint64(make([]byte, 8), i)) })
	})
	t.Run("slotted", func(t *testing.T) { testMerges(t, func(i uint64) string { return fmt.Sprint(i) }) })
}

func testMerges[K comparable](t *testing.T, key func(uint64) K) {
	t.Parallel()
	d := newDictFor[K, uint64](t, testOptions{})
	for i := range uint64(20_000) {
		require.NoError(t, d.Set(key(i), i))
	}
	before := d.d.size()
	for i := range uint64(20_000) {
		if i%16 != 0 {
			ok, err := d.Delete(key(i))
			require.True(t, ok)
			require.NoError(t, err)
		}
	}
	require.Less(t, d.d.size(), before/3)
	require.NoError(t, d.Arena().verify())
}

func TestEMDictSetAll(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	n, err := d.SetAll(func(yield func(uint64, uint64) bool) {})
	require.NoError(t, err)
	require.Zero(t, n)
	n, err = d.SetAll(func(yield func(uint64, uint64) bool) {
		for i := range uint64(1000) {
			if !yield(i%500, i) {
				return
			}
		}
	})
	require.NoError(t, err)
	require.Equal(t, 1000, n)
	require.Equal(t, 500, d.Len())

	s := newDictFor[string, uint64](t, testOptions{})
	n, err = s.SetAll(func(yield func(string, uint64) bool) {
		_ = yield("a", 1) && yield(strings.Repeat("k", maxKeySize+1), 2) && yield("b", 3)
	})
	require.ErrorIs(t, err, ErrTooLarge)
	require.Equal(t, 2, n)
}

// stringCodec is a codec that fails where it is told to.
type stringCodec struct{ encode, decode func(string) error }

func (stringCodec) Name() string { return "test string" }
func (c stringCodec) Append(dst []byte, v string) ([]byte, error) {
	if c.encode != nil {
		if err := c.encode(v); err != nil {
			return nil, err
		}
	}
	return append(dst, v...), nil
}
func (c stringCodec) Decode(src []byte) (string, error) {
	if c.decode != nil {
		if err := c.decode(string(src)); err != nil {
			return "", err
		}
	}
	return string(src), nil
}

func TestEMDictCodecErrors(t *testing.T) {
	bad := errors.New("bad")
	refuse := func(what string) func(string) error {
		return func(s string) error {
			if s == what {
				return bad
			}
			return nil
		}
	}
	a := testArena(t, testOptions{})
	d, err := Dict(a, "d", &DictOptions[string, string]{
		KeyCodec:   stringCodec{encode: refuse("bad key")},
		ValueCodec: stringCodec{encode: refuse("bad value"), decode: refuse("damaged")},
	})
	require.NoError(t, err)
	require.NoError(t, d.Set("a", "1"))
	require.ErrorIs(t, d.Set("bad key", ""), bad)
	require.ErrorIs(t, d.Set("a", "bad value"), bad)
	_, _, err = d.Compute("a", func(string, bool) (string, Op) { return "bad value", OpStore })
	require.ErrorIs(t, err, bad)
	v, ok, err := d.Get("a")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "1", v)

	require.NoError(t, d.Set("b", "damaged"))
	_, ok, err = d.Get("b")
	require.ErrorIs(t, err, bad)
	require.False(t, ok)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "d", e.Container)
	_, ok, err = d.GetOrSet("b", "2")
	require.ErrorIs(t, err, bad)
	require.False(t, ok)
	_, ok, err = d.Swap("b", "damaged")
	require.ErrorIs(t, err, bad)
	require.False(t, ok)
	require.NoError(t, d.Err())
	for range d.Keys() {
	}
	require.NoError(t, d.Err(), "Keys does not look at values")
	require.ErrorIs(t, a.View(func() error {
		for range d.All() {
		}
		return nil
	}), bad)
	require.ErrorIs(t, d.Err(), bad)
	require.ErrorIs(t, a.Err(), bad)
	_, err = d.SetAll(func(yield func(string, string) bool) {
		for range d.Values() {
		}
	})
	require.ErrorIs(t, err, bad)
	_, err = d.DeleteFunc(func(string, string) bool { return false })
	require.ErrorIs(t, err, bad)
}

func TestEMDictClosed(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	s, err := Dict[string, string](d.Arena(), "s", nil)
	require.NoError(t, err)
	require.NoError(t, d.Set(1, 2))
	require.NoError(t, s.Set("a", "b"))
	require.NoError(t, d.Close(), "not the owner")
	require.Equal(t, 1, d.Len())
	check := func() {
		_, _, err := d.Get(1)
		require.ErrorIs(t, err, ErrClosed)
		_, _, err = s.Get(strings.Repeat("k", maxKeySize+1))
		require.ErrorIs(t, err, ErrClosed)
		_, err = s.Contains("a")
		require.ErrorIs(t, err, ErrClosed)
		_, err = d.GetMany(make([]uint64, 1), nil, nil)
		require.ErrorIs(t, err, ErrClosed, "before the lengths")
		_, err = s.GetMany(nil, nil, nil)
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorIs(t, d.Set(1, 2), ErrClosed)
		_, err = d.Delete(1)
		require.ErrorIs(t, err, ErrClosed)
		_, err = d.DeleteFunc(func(uint64, uint64) bool { return true })
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorIs(t, d.Clear(), ErrClosed)
		require.ErrorIs(t, d.Grow(1), ErrClosed)
		_, _, err = s.Swap("a", "b")
		require.ErrorIs(t, err, ErrClosed)
		_, _, err = s.GetOrSet("a", "b")
		require.ErrorIs(t, err, ErrClosed)
		_, _, err = s.Compute("a", func(string, bool) (string, Op) { t.Error("called"); return "", OpKeep })
		require.ErrorIs(t, err, ErrClosed)
		_, err = s.SetAll(func(func(string, string) bool) { t.Error("called") })
		require.ErrorIs(t, err, ErrClosed)
		require.Zero(t, d.Len())
		for range d.All() {
			t.Error("an entry")
		}
		for range d.Partition(3, 2) { // before the index
			t.Error("an entry")
		}
		require.ErrorIs(t, d.Err(), ErrClosed)
	}
	require.NoError(t, d.Arena().Sync())
	_ = d.Arena().Err()
	require.NoError(t, d.Arena().Close())
	check()
}

func TestEMDictDropped(t *testing.T) {
	a := testArena(t, testOptions{})
	d, err := Dict[uint64, uint64](a, "d", nil)
	require.NoError(t, err)
	for i := range uint64(200_000) {
		require.NoError(t, d.Set(i, i))
	}
	require.NoError(t, a.Drop("d"))
	_, _, err = d.Get(1)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, d.Set(1, 2), ErrClosed)
	require.Zero(t, d.Len())
	require.NoError(t, a.verify())
	e, err := Dict[uint64, uint64](a, "d", nil)
	require.NoError(t, err)
	require.Zero(t, e.Len())
}

func TestEMDictRollback(t *testing.T) {
	a := testArena(t, testOptions{})
	d, err := Dict[uint64, string](a, "d", nil)
	require.NoError(t, err)
	require.NoError(t, d.Set(1, "one"))
	require.NoError(t, a.Rollback())
	require.Zero(t, d.Len(), "past its creation")
	_, ok, err := d.Get(1)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, d.Clear())
	ok, err = d.Delete(1)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, d.Set(2, "two"))
	require.NoError(t, a.Sync())
	for i := range uint64(50_000) {
		require.NoError(t, d.Set(i, fmt.Sprint(i)))
	}
	require.NoError(t, a.Rollback())
	require.Equal(t, 1, d.Len())
	v, ok, err := d.Get(2)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "two", v)
	require.NoError(t, a.verify())

	// A callback that a Rollback overtakes decides nothing.
	_, _, err = d.Compute(2, func(string, bool) (string, Op) {
		require.NoError(t, a.Rollback())
		return "late", OpStore
	})
	require.ErrorIs(t, err, ErrRolledBack)
	_, err = d.DeleteFunc(func(uint64, string) bool {
		require.NoError(t, a.Rollback())
		return true
	})
	require.ErrorIs(t, err, ErrRolledBack)
	require.Equal(t, 1, d.Len())
	require.NoError(t, d.Set(2, "free again"))
}

func TestEMDictReadOnly(t *testing.T) {
	path := filepath.Join(tempDir(t), "d.emd")
	d, err := OpenDict[uint64, uint64](path, nil)
	require.NoError(t, err)
	require.NoError(t, d.Set(1, 2))
	require.NoError(t, d.Close())
	d, err = OpenDict[uint64, uint64](path, &Options{ReadOnly: true})
	require.NoError(t, err)
	v, ok, err := d.Get(1)
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, 2, v)
	require.ErrorIs(t, d.Set(1, 3), ErrReadOnly)
	_, err = d.Delete(7)
	require.ErrorIs(t, err, ErrReadOnly)
	require.ErrorIs(t, d.Clear(), ErrReadOnly)
	_, _, err = d.Compute(1, func(uint64, bool) (uint64, Op) { t.Error("called"); return 0, OpKeep })
	require.ErrorIs(t, err, ErrReadOnly)
	_, err = d.DeleteFunc(func(uint64, uint64) bool { t.Error("called"); return false })
	require.ErrorIs(t, err, ErrReadOnly)
	require.NoError(t, d.Close())
	_, err = OpenDict[string, uint64](path, nil)
	require.ErrorIs(t, err, ErrTypeMismatch)
}

func TestEMDictDeleteFunc(t *testing.T) {
	for name, mask := range hashMasks {
		t.Run(name, func(t *testing.T) {
			n := 20_000
			if mask == 0 || raceEnabled {
				n = 2000
			}
			d := newDictFor[uint64, string](t, testOptions{})
			d.d.hashMask = mask
			for i := range uint64(n) {
				require.NoError(t, d.Set(i, strings.Repeat("v", int(i)%600)))
			}
			seen := map[uint64]int{}
			gone, err := d.DeleteFunc(func(k uint64, v string) bool {
				seen[k]++
				assert.Len(t, v, int(k)%600)
				return k%3 == 0
			})
			require.NoError(t, err)
			require.Equal(t, (n+2)/3, gone)
			require.Len(t, seen, n)
			for k, times := range seen {
				require.Equal(t, 1, times, "%d", k)
			}
			require.Equal(t, n-gone, d.Len())
			require.NoError(t, d.Arena().verify())
			require.Panics(t, func() {
				_, _ = d.DeleteFunc(func(k uint64, v string) bool { panic("out") })
			})
			require.Equal(t, n-gone, d.Len())
			rest, err := d.DeleteFunc(func(uint64, string) bool { return true })
			require.NoError(t, err)
			require.Equal(t, n-gone, rest)
			require.True(t, d.d.bare())
		})
	}
}

func TestEMDictComputePanics(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	require.NoError(t, d.Set(1, 1))
	for range 2 {
		require.PanicsWithValue(t, "out", func() {
			_, _, _ = d.Compute(1, func(uint64, bool) (uint64, Op) { panic("out") })
		})
		v, ok, err := d.Get(1)
		require.NoError(t, err)
		require.True(t, ok)
		require.EqualValues(t, 1, v)
	}
	require.Panics(t, func() { _, _, _ = d.Compute(1, func(uint64, bool) (uint64, Op) { return 0, 77 }) })
	v, ok, err := d.Compute(1, func(v uint64, ok bool) (uint64, Op) { return 5, OpKeep })
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, 1, v)
	require.NoError(t, d.Set(1, 2))
}

// While a loop runs, keys beside those it is asked about come and go, and the
// dict grows and shrinks by much.
func TestEMDictIterationWhileChanging(t *testing.T) {
	for name, mask := range hashMasks {
		t.Run(name, func(t *testing.T) {
			stay, come := uint64(3000), uint64(60_000)
			if mask != ^uint64(0) || raceEnabled || testing.Short() {
				stay, come = 500, 2500
			}
			d := newDictFor[uint64, uint64](t, testOptions{})
			d.d.hashMask = mask
			for i := range stay {
				require.NoError(t, d.Set(i, i*7))
			}
			for round := range 4 {
				seen := map[uint64]int{}
				next := uint64(0)
				for k, v := range d.All() {
					if k < stay {
						seen[k]++
						require.Equal(t, k*7, v)
					}
					for range 1 + come/stay {
						if next == come {
							break
						}
						var err error
						if round%2 == 0 {
							err = d.Set(stay+next, 1)
						} else {
							_, err = d.Delete(stay + next)
						}
						require.NoError(t, err)
						next++
					}
				}
				require.NoError(t, d.Err())
				require.Len(t, seen, int(stay))
				for k, times := range seen {
					require.Equal(t, 1, times, "%d", k)
				}
				require.NoError(t, d.Arena().verify())
			}
		})
	}
}

// TestEMDictDeleteLast deletes the only entry where there is room for that, but not to give back the dict's space besides: as the entry is
// gone, that is no error.
func TestEMDictDeleteLast(t *testing.T) {
	const limit = 2 * createCost
	for name, remove := range map[string]func(d *EMDict[string, string]) error{
		"Delete": func(d *EMDict[string, string]) error { _, err := d.Delete("k"); return err },
		"Compute": func(d *EMDict[string, string]) error {
			_, _, err := d.Compute("k", func(string, bool) (string, Op) { return "", OpRemove })
			return err
		},
		"DeleteFunc": func(d *EMDict[string, string]) error {
			_, err := d.DeleteFunc(func(string, string) bool { return true })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := testArena(t, testOptions{opts: Options{NoAutoCommit: true, NoSync: true}, internalOptions: internalOptions{dirtyLimit: limit}})
			d, err := Dict[string, string](a, "d", nil)
			require.NoError(t, err)
			require.NoError(t, d.Set("k", "v"))
			list := listOf[uint64](t, a, nil)
			require.NoError(t, list.AppendSeq(count(limit/8)))
			require.NoError(t, a.Sync())
			for i := 0; a.space.private.Load() <= limit-createCost*3/4; i += pageSize / 8 { // some of it a checkpoint can drop
				require.NoError(t, list.Set(i, 1))
			}
			require.ErrorIs(t, d.Clear(), ErrUpdateTooLarge)
			require.Equal(t, 1, d.Len())
			require.NoError(t, remove(d))
			require.Zero(t, d.Len())
			require.NoError(t, a.Sync())
			require.NoError(t, d.Set("k", "again"))
			v, ok, err := d.Get("k")
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, "again", v)
			require.NoError(t, a.verify())
		})
	}
}

func TestEMDictIterationStops(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	for i := range uint64(1000) {
		require.NoError(t, d.Set(i, i))
	}
	n := 0
	for range d.All() {
		if n++; n == 10 {
			break
		}
	}
	require.Equal(t, 10, n)
	keys, vals := 0, 0
	for range d.Keys() {
		keys++
	}
	for range d.Values() {
		vals++
	}
	require.Equal(t, 1000, keys)
	require.Equal(t, 1000, vals)
}

// Readers beside writers never see a value that nobody wrote.
func TestEMDictConcurrent(t *testing.T) {
	for name, mask := range hashMasks {
		t.Run(name, func(t *testing.T) {
			keys := 20_000
			if mask != ^uint64(0) || raceEnabled {
				keys = 600
			}
			t.Run("words", func(t *testing.T) {
				testConcurrent(t, mask, keys, func(k, n uint64) uint64 { return k<<32 | n }, func(k uint64, v uint64) bool { return v>>32 == k })
			})
			t.Run("wide", func(t *testing.T) {
				type wide [12]uint64
				testConcurrent(t, mask, keys/4, func(k, n uint64) (w wide) {
					for i := range w {
						w[i] = k<<32 | n
					}
					return w
				}, func(k uint64, w wide) bool {
					for _, x := range w {
						if x != w[0] || x>>32 != k {
							return false
						}
					}
					return true
				})
			})
			t.Run("strings", func(t *testing.T) {
				testConcurrent(t, mask, keys/8, func(k, n uint64) string {
					return strings.Repeat(fmt.Sprintf("%d,%d;", k, n%10), 1+int(k*n)%120)
				}, func(k uint64, s string) bool {
					unit, _, _ := strings.Cut(s, ";")
					key, _, _ := strings.Cut(unit, ",")
					return key == fmt.Sprint(k) && s == strings.Repeat(unit+";", len(s)/(len(unit)+1))
				})
			})
		})
	}
}

func testConcurrent[V any](t *testing.T, mask uint64, keys int, val func(k, n uint64) V, good func(k uint64, v V) bool) {
	d := newDictFor[uint64, V](t, testOptions{})
	d.d.hashMask = mask
	const writers, readers = 3, 3
	rounds := 4
	var writing, reading sync.WaitGroup
	var stop atomic.Bool
	for w := range writers {
		writing.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range rounds * keys {
				k := r.Uint64N(uint64(keys))
				var err error
				// Phases of growing and of shrinking.
				if r.IntN(10) < 2+6*(i/keys%2) {
					_, err = d.Delete(k)
				} else {
					err = d.Set(k, val(k, uint64(i)))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range readers {
		reading.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			for !stop.Load() {
				k := r.Uint64N(uint64(keys))
				v, ok, err := d.Get(k)
				if err != nil || ok && !good(k, v) {
					t.Errorf("key %d: %v, %v", k, v, err)
					return
				}
				if r.IntN(1000) == 0 {
					for k, v := range d.All() {
						if !good(k, v) {
							t.Errorf("key %d: %v", k, v)
							return
						}
					}
				}
				runtime.Gosched()
			}
		})
	}
	writing.Wait()
	stop.Store(true)
	reading.Wait()
	require.NoError(t, d.Err())
	require.NoError(t, d.Arena().verify())
}

func TestEMDictComputeAtomic(t *testing.T) {
	for name, mask := range hashMasks {
		t.Run(name, func(t *testing.T) {
			d := newDictFor[uint64, uint64](t, testOptions{})
			d.d.hashMask = mask
			const goroutines, rounds, keys = 4, 4000, 50
			var wg sync.WaitGroup
			var calls atomic.Int64
			for g := range goroutines {
				wg.Go(func() {
					for i := range rounds {
						_, _, err := d.Compute(uint64(i%keys), func(v uint64, ok bool) (uint64, Op) {
							calls.Add(1)
							return v + 1, OpStore
						})
						if err != nil {
							t.Error(err)
						}
						// The dict grows meanwhile, and fans out.
						if err := d.Set(uint64(1000+(g*rounds+i)*7), 1); err != nil && mask == ^uint64(0) {
							t.Error(err)
						}
					}
				})
				if mask == 0 {
					break // chains make it slow
				}
			}
			wg.Wait()
			sum := uint64(0)
			for k, v := range d.All() {
				if k < keys {
					sum += v
				}
			}
			require.EqualValues(t, calls.Load(), sum)
			require.NoError(t, d.Arena().verify())
		})
	}
}

// Callbacks use other dicts, in both directions at once.
func TestEMDictCallbacksMeet(t *testing.T) {
	arena := testArena(t, testOptions{})
	x, err := Dict[uint64, uint64](arena, "x", nil)
	require.NoError(t, err)
	y, err := Dict[uint64, uint64](arena, "y", nil)
	require.NoError(t, err)
	var wg sync.WaitGroup
	meet := func(from, to *EMDict[uint64, uint64], own, other uint64) {
		wg.Go(func() {
			for i := range uint64(3000) {
				_, _, err := from.Compute(own+i%10, func(v uint64, _ bool) (uint64, Op) {
					if err := to.Set(other+i, i); err != nil {
						t.Error(err)
					}
					if _, err := to.Delete(other + i); err != nil {
						t.Error(err)
					}
					return v + 1, OpStore
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	meet(x, y, 0, 1000)
	meet(y, x, 0, 100_000)
	meet(x, y, 20, 200_000)
	meet(y, x, 20, 300_000)
	wg.Wait()
	sum := uint64(0)
	for _, v := range x.All() {
		sum += v
	}
	for _, v := range y.All() {
		sum += v
	}
	require.EqualValues(t, 12000, sum)
}

// TestEMDictComputeMoved has fn divide and join buckets, and make a table of the directory, so that its key is elsewhere when fn
// returns; also where only the slot is another, and after a Rollback. Other goroutines may do all that; here fn does, as it must not
// elsewhere, so that it happens at that moment.
func TestEMDictComputeMoved(t *testing.T) {
	for name, o := range map[string]testOptions{"defaults": {}, "tiny": tiny()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDictFor[uint64, uint64](t, o)
			others := uint64(60_000)
			add := func(k, n uint64) {
				v, ok, err := d.Compute(k, func(v uint64, ok bool) (uint64, Op) {
					require.Equal(t, k != 0, ok)
					for other := k + 1; other < k+n; other++ {
						require.NoError(t, d.Set(other, other))
					}
					return v + 1, OpStore
				})
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, k+1, v)
			}
			remove := func(k, n uint64) {
				_, _, err := d.Compute(k, func(v uint64, ok bool) (uint64, Op) {
					for other := uint64(0); other < n; other++ {
						if other != k {
							_, err := d.Delete(other)
							require.NoError(t, err)
						}
					}
					return v + 1, OpStore
				})
				require.NoError(t, err)
			}
			add(0, others)
			for k := uint64(1); k < others-2; k = 2*k + 1 {
				add(k, 3) // which there are
			}
			require.NoError(t, d.Arena().verify())
			kept := others - 1
			remove(kept, others)
			require.NoError(t, d.Arena().verify())
			require.Equal(t, map[uint64]uint64{kept: kept + 1}, maps.Collect(d.All()))

			require.NoError(t, d.Clear())
			for k := range uint64(60) { // one page
				for other := range uint64(60) {
					require.NoError(t, d.Set(other, other))
				}
				remove(k, 60)
				require.NoError(t, d.Arena().verify())
				require.Equal(t, map[uint64]uint64{k: k + 1}, maps.Collect(d.All()))
			}

			require.NoError(t, d.Sync())
			_, _, err := d.Compute(59, func(uint64, bool) (uint64, Op) {
				require.NoError(t, d.Arena().Rollback())
				require.NoError(t, d.Set(1, 1))
				return 0, OpStore
			})
			require.ErrorIs(t, err, ErrRolledBack)
			require.Equal(t, map[uint64]uint64{1: 1, 59: 60}, maps.Collect(d.All()))
		})
	}
}

// Changes of a key wait for the callback that decides about it, those of
// others do not.
func TestEMDictBusyKeyWaits(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	done := make(chan struct{})
	_, _, err := d.Compute(1, func(uint64, bool) (uint64, Op) {
		go func() {
			defer close(done)
			assert.NoError(t, d.Set(1, 100))
		}()
		other := make(chan struct{})
		go func() {
			defer close(other)
			// Enough to fan out while the key is busy.
			for i := range uint64(150_000) {
				if err := d.Set(10+i, i); err != nil {
					t.Error(err)
				}
			}
		}()
		<-other
		select {
		case <-done:
			t.Error("Set did not wait")
		default:
		}
		return 1, OpStore
	})
	require.NoError(t, err)
	<-done
	v, _, err := d.Get(1)
	require.NoError(t, err)
	require.EqualValues(t, 100, v)
}

// A range that is busy while the dict fans out is in the hands of many locks;
// when the dict has emptied, of one again.
func TestEMDictBusyRangeFansOut(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	key := uint64(0)
	next := func(wanted func(h uint64) bool) uint64 {
		for key++; !wanted(d.d.hashWord(key)); key++ {
		}
		return key
	}
	fill := func(wanted func(h uint64) bool, until func() bool) {
		for !until() {
			require.NoError(t, d.Set(next(wanted), key))
		}
	}
	all := func(uint64) bool { return true }
	fill(all, func() bool { return d.d.table.Load().segs[0].depth() >= 3 })
	by, err := d.d.holdBucket(0)
	require.NoError(t, err)
	within := func(h uint64) bool { return h <= by.hi }
	require.True(t, by.hi > 1<<57 && by.hi < 1<<63, "one of a few buckets")
	fill(func(h uint64) bool { return !within(h) }, func() bool { return d.d.table.Load().bits != 0 })
	for k := uint64(1); k <= key; k++ {
		_, _, err := d.d.change(changeRemove, d.d.hashWord(k), binary.LittleEndian.AppendUint64(nil, k), nil, nil, &by)
		require.NoError(t, err)
	}
	require.Zero(t, d.Len())
	require.Zero(t, d.d.table.Load().bits, "all space has gone back")
	d.d.release(&by)
	require.Empty(t, d.d.table.Load().stripes[0].busy)
	require.NoError(t, d.Set(next(within), 1))
}

func TestEMDictAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	words := newDictFor[uint64, uint64](t, testOptions{})
	type rec struct{ A, B, C uint64 }
	wide := newDictFor[[16]byte, rec](t, testOptions{})
	texts := newDictFor[string, uint64](t, testOptions{})
	key := "a key of some length"
	someTexts, someVals, someOK := []string{key, "", key + key}, make([]uint64, 3), make([]bool, 3)
	add := func(v uint64, _ bool) (uint64, Op) { return v + 1, OpStore }
	for name, fn := range map[string]func(){
		"words set": func() { _ = words.Set(7, 8) },
		"words get": func() { _, _, _ = words.Get(7) },
		"words many": func() {
			var keys, vals [3 * batchSize]uint64
			var ok [3 * batchSize]bool
			_, _ = words.GetMany(keys[:], vals[:], ok[:])
		},
		"text many": func() { _, _ = texts.GetMany(someTexts, someVals, someOK) },
		"wide set":  func() { _ = wide.Set([16]byte{1}, rec{1, 2, 3}) },
		"wide get":  func() { _, _, _ = wide.Get([16]byte{1}) },
		"text set":  func() { _ = texts.Set(key, 5) },
		"text get":  func() { _, _, _ = texts.Get(key) },
		"has":       func() { _, _ = words.Contains(7) },
		"text has":  func() { _, _ = texts.Contains(key) },
		"delete":    func() { _, _ = words.Delete(9) },
		"compute":   func() { _, _, _ = words.Compute(7, add) },
	} {
		fn()
		assert.Zero(t, testing.AllocsPerRun(100, fn), name)
	}
}

// TestUpdateAfterRollback lets a Rollback overtake a Compute, whose function then ends inside somebody else's Update: that is
// no fault of the Update.
func TestUpdateAfterRollback(t *testing.T) {
	d, err := OpenDict[uint64, uint64](filepath.Join(tempDir(t), "a.emd"), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	require.NoError(t, d.Set(1, 1))
	require.NoError(t, d.Sync())
	started, proceed, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		_, _, err := d.Compute(1, func(v uint64, ok bool) (uint64, Op) {
			close(started)
			<-proceed
			return 2, OpStore
		})
		done <- err
	}()
	<-started
	require.NoError(t, d.Arena().Rollback())
	require.NoError(t, d.Arena().Update(func() error {
		close(proceed)
		require.ErrorIs(t, <-done, ErrRolledBack)
		return d.Set(3, 3)
	}))
	v, ok, err := d.Get(3)
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, 3, v)
}

// However much is changed, no more memory is private than DirtyLimit says: the
// library commits before. Changes of words that go the short way do not count on
// others to see to it.
func TestEMDictBounded(t *testing.T) {
	t.Parallel()
	o := tiny()
	o.far = false // which sends most changes the long way
	d := newDictFor[uint64, uint64](t, o)
	a := d.Arena()
	var short []uint64
	for k := range uint64(50_000) {
		require.NoError(t, d.Set(k, k))
		if !d.words { // a big-endian machine, which has no short way
			short = append(short, k)
			continue
		}
		h := d.d.hashWord(k)
		if seg, no, b := d.d.lockWord(h); seg != nil {
			if k != 0 && d.d.storeWord(seg, no, b, h, k, k) {
				short = append(short, k)
			}
			seg.mu.Unlock()
		}
	}
	require.Greater(t, len(short), 10_000) // more, where chunks lie side by side
	add := func(v uint64, _ bool) (uint64, Op) { return v + 1, OpStore }
	for _, change := range []func(k uint64) error{
		func(k uint64) error { return d.Set(k, k+1) },
		func(k uint64) error { _, _, err := d.Compute(k, add); return err },
		func(k uint64) error { _, err := d.Delete(k); return err },
	} {
		for _, k := range short[:10_000] {
			require.NoError(t, change(k))
			require.LessOrEqual(t, a.space.private.Load(), a.limit+d.d.cost.Load())
		}
	}
}

// TestEMDictReadersSeeMoves adds and removes words that share a line, or two, so that others move between slots: a reader of one
// that the writer is not at finds it, with its value, if and only if it is there.
func TestEMDictReadersSeeMoves(t *testing.T) {
	lookups := 1_000_000
	if !optimistic {
		lookups = 30_000 // they take the lock
	}
	for _, n := range []uint64{4, 7} {
		d := newDictFor[uint64, uint64](t, testOptions{opts: Options{NoSync: true}})
		d.d.hashMask = 0xffffffff << 32 // one home
		value := func(k uint64) uint64 { return k * 0x9e3779b97f4a7c15 }
		var state atomic.Uint64 // which are there | the one that may be changing << 16 | how many changes there were << 24
		var done atomic.Bool
		var wg sync.WaitGroup
		seed := rand.Uint64()
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 0))
			there := uint64(0)
			for seq := uint64(0); !done.Load(); seq++ {
				k := 1 + r.Uint64N(n)
				state.Store(there | k<<16 | seq<<24)
				var err error
				if there>>k&1 == 0 {
					err = d.Set(k, value(k))
				} else {
					_, err = d.Delete(k)
				}
				if !assert.NoError(t, err) {
					return
				}
				there ^= 1 << k
			}
		})
		r := rand.New(rand.NewPCG(seed, 1))
		for range lookups {
			k := 1 + r.Uint64N(n)
			before := state.Load()
			v, ok, err := d.Get(k)
			if !assert.NoError(t, err) || ok && !assert.Equal(t, value(k), v, "seed %d", seed) {
				break
			}
			if state.Load() == before && before>>16&0xff != k && !assert.Equal(t, before>>k&1 != 0, ok, "seed %d: key %d of %b", seed, k, before) {
				break
			}
		}
		done.Store(true)
		wg.Wait()
	}
}

// TestEMDictComputeMeanwhile does nothing, commits, and stops the arena between a callback's beginning and its end.
func TestEMDictComputeMeanwhile(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	a := d.Arena()
	compute := func(meanwhile func()) error {
		require.NoError(t, d.Set(2, 2)) // the dict has changes, so the callback's begins the short way
		_, _, err := d.Compute(1, func(v uint64, _ bool) (uint64, Op) {
			meanwhile()
			return v + 1, OpStore
		})
		return err
	}
	want := uint64(0)
	for _, meanwhile := range []func(){func() {}, func() { require.NoError(t, a.Sync()) }} {
		for range 3 { // absent, then present
			require.NoError(t, compute(meanwhile))
			require.True(t, d.d.active.Load(), "the next commit waits for changes of this dict")
			require.NoError(t, a.Sync())
			require.NoError(t, a.verifyMemory())
			require.NoError(t, a.Rollback())
			v, _, err := d.Get(1)
			require.NoError(t, err)
			want++
			require.Equal(t, want, v, "what the callback decided is in the next commit")
		}
	}
	boom := errors.New("boom")
	require.ErrorIs(t, compute(func() { _ = a.fail(boom) }), boom)
	require.ErrorIs(t, a.Close(), boom)
}

// A directory that names a page of the header is damage: nothing is stored there.
func TestEMDictDamagedDirectory(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{})
	require.NoError(t, d.Set(1, 1))
	require.Zero(t, d.d.table.Load().segs[0].depth())
	dir := d.d.header()[dictDirOff:]
	bucket := binary.LittleEndian.Uint32(dir)
	for no := pageNo(1); no < slotPages; no++ {
		binary.LittleEndian.PutUint32(dir, no)
		before := *d.d.space.page(no)
		require.ErrorIs(t, d.Set(1, 2), ErrCorrupt)
		_, err := d.Delete(1)
		require.ErrorIs(t, err, ErrCorrupt)
		require.Equal(t, before, *d.d.space.page(no))
	}
	binary.LittleEndian.PutUint32(dir, bucket)
}

// TestEMDictReadersSeeWholeWords stores words of which all bytes are alike: readers never see one with bytes of two. With
// AddressSanitizer (make sanitize), as without optimization, nothing but the source keeps them whole.
func TestEMDictReadersSeeWholeWords(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{opts: Options{NoSync: true}})
	const alike = 0x0101010101010101
	whole := func(what string, words ...uint64) bool {
		for _, w := range words {
			if w != w&0xff*alike {
				return assert.Failf(t, "torn word", "%s: %#x", what, w)
			}
		}
		return true
	}
	var done atomic.Bool
	var wg sync.WaitGroup
	for w := range uint64(2) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(w, 0))
			for !done.Load() {
				k, v := (r.Uint64N(127)*2+1+w)*alike, r.Uint64N(256)*alike
				var err error
				switch r.IntN(4) {
				case 0:
					_, err = d.Delete(k)
				case 1:
					_, _, err = d.Compute(k, func(uint64, bool) (uint64, Op) { return v, OpStore })
				default:
					err = d.Set(k, v)
				}
				if !assert.NoError(t, err) {
					return
				}
			}
		})
	}
	wg.Go(func() {
		keys, vals, found := make([]uint64, 255), make([]uint64, 255), make([]bool, 255)
		for i := range keys {
			keys[i] = uint64(i+1) * alike
		}
		for range pick(0, 2000, 500) {
			for _, k := range keys {
				v, _, err := d.Get(k)
				if !assert.NoError(t, err) || !whole("Get", v) {
					break
				}
			}
			_, err := d.GetMany(keys, vals, found)
			assert.NoError(t, err)
			whole("GetMany", vals...)
			for k, v := range d.All() {
				if !whole("All", k, v) {
					break
				}
			}
			if t.Failed() {
				break
			}
		}
		done.Store(true)
	})
	wg.Wait()
	require.NoError(t, d.Arena().verify())
}

// TestEMDictReadersSeeWholeValues stores values of which all bytes are alike and tell the length: readers never see
// one with bytes of two, or another length, whatever way values of their type are read, and always find those that are
// never deleted.
func TestEMDictReadersSeeWholeValues(t *testing.T) {
	fill := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, n) }
	t.Run("bytes", func(t *testing.T) {
		readersSeeWholeValues(t, fill, func(v []byte) bool { return bytes.Equal(v, fill(len(v))) })
	})
	t.Run("string", func(t *testing.T) {
		readersSeeWholeValues(t, func(n int) string { return string(fill(n)) }, func(v string) bool { return v == string(fill(len(v))) })
	})
	type raw [40]byte
	t.Run("raw", func(t *testing.T) {
		readersSeeWholeValues(t, func(n int) raw { return raw(bytes.Repeat([]byte{byte(n)}, 40)) },
			func(v raw) bool { return v == raw(bytes.Repeat(v[:1], 40)) })
	})
	type varied struct {
		N int64
		S string
	}
	t.Run("varied", func(t *testing.T) {
		readersSeeWholeValues(t, func(n int) varied { return varied{int64(n), string(fill(n))} },
			func(v varied) bool { return v.S == string(fill(int(v.N))) })
	})
}

func readersSeeWholeValues[V any](t *testing.T, value func(n int) V, whole func(V) bool) {
	d := newDictFor[string, V](t, testOptions{opts: Options{NoSync: true}})
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = fmt.Sprint("key ", i)
		require.NoError(t, d.Set(keys[i], value(i)))
	}
	stays := func(i int) bool { return i%4 < 2 }
	var done atomic.Bool
	var wg sync.WaitGroup
	for w := range uint64(2) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(w, 0))
			for !done.Load() {
				i := r.IntN(len(keys)/2)*2 + int(w)
				var err error
				if !stays(i) && r.IntN(2) == 0 {
					_, err = d.Delete(keys[i])
				} else {
					err = d.Set(keys[i], value(r.IntN(600)))
				}
				if !assert.NoError(t, err) {
					return
				}
			}
		})
	}
	wg.Go(func() {
		defer done.Store(true)
		vals, found := make([]V, len(keys)), make([]bool, len(keys))
		for range pick(0, 1000, 200) {
			fine := func(what string, i int, v V, ok bool) bool {
				return assert.True(t, ok || !stays(i), "%s: %s is not there", what, keys[i]) &&
					(!ok || assert.True(t, whole(v), "%s: %v", what, v))
			}
			for i, k := range keys {
				v, ok, err := d.Get(k)
				if !assert.NoError(t, err) || !fine("Get", i, v, ok) {
					return
				}
				ok, err = d.Contains(k)
				if !assert.NoError(t, err) || !fine("Contains", i, v, ok) {
					return
				}
			}
			_, err := d.GetMany(keys, vals, found)
			assert.NoError(t, err)
			for i, v := range vals {
				if !fine("GetMany", i, v, found[i]) {
					return
				}
			}
		}
	})
	wg.Wait()
	require.NoError(t, d.Arena().verify())
}

// A reusing value decodes into the memory that it has.
type reusing struct{ b []byte }

func (r reusing) MarshalBinary() ([]byte, error) { return r.b, nil }

func (r *reusing) UnmarshalBinary(b []byte) error {
	r.b = append(r.b[:0], b...)
	return nil
}

// TestLoopsYieldNewValues keeps what loops have yielded, of a type that would decode into the value before.
func TestLoopsYieldNewValues(t *testing.T) {
	a := testArena(t, testOptions{})
	d, err := Dict[string, reusing](a, "d", nil)
	require.NoError(t, err)
	l, err := List[reusing](a, "l", nil)
	require.NoError(t, err)
	for i := range 100 {
		v := reusing{[]byte(strconv.Itoa(i + 100))}
		require.NoError(t, d.Set(string(v.b), v))
		require.NoError(t, l.Append(v))
	}
	entries := maps.Collect(d.All())
	require.Len(t, entries, 100)
	for k, v := range entries {
		require.Equal(t, k, string(v.b))
	}
	for i, v := range slices.Collect(l.Values()) {
		require.Equal(t, strconv.Itoa(i+100), string(v.b))
	}
}

// TestLoopKeepsLongKeys changes a dict inside a loop over it: keys that lie in records are the loop's own.
func TestLoopKeepsLongKeys(t *testing.T) {
	d, err := Dict[string, uint32](testArena(t, testOptions{}), "d", nil)
	require.NoError(t, err)
	key := func(c rune, i int) string { return strings.Repeat(string(c), 1000) + strconv.Itoa(i) }
	const n = 20 // of one bucket
	for i := range n {
		require.NoError(t, d.Set(key('a', i), 1))
	}
	seen := 0
	for k := range d.Keys() {
		require.Equal(t, strings.Repeat("a", 1000), k[:1000], "what was copied with the first")
		if seen++; seen == 1 { // their records go, and others take the place
			for i := range n {
				_, err := d.Delete(key('a', i))
				require.NoError(t, err)
			}
			for i := range n {
				require.NoError(t, d.Set(key('b', i), 2))
			}
		}
		if seen == n {
			break
		}
	}
	require.Equal(t, n, seen)
}
