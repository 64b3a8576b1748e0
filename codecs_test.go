package emd

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// wrapped is a type with everything that needs a codec.
type wrapped struct {
	URL   string
	Links []string
	Score map[string]float64
	Next  *wrapped
}

func newWrapped(r *rand.Rand) wrapped {
	w := wrapped{URL: fmt.Sprintf("https://example.com/%d", r.IntN(1000))}
	for range r.IntN(20) {
		w.Links = append(w.Links, strings.Repeat("link ", r.IntN(10)))
	}
	if n := r.IntN(4); n > 0 {
		w.Score = map[string]float64{}
		for range n {
			w.Score[fmt.Sprint(r.IntN(9))] = r.Float64()
		}
	}
	if r.IntN(3) == 0 {
		next := newWrapped(r)
		w.Next = &next
	}
	return w
}

var sealKey = bytes.Repeat([]byte{7}, 32)

func sealedBy[T any](t testing.TB, inner Codec[T]) Codec[T] {
	c, err := Sealed(inner, sealKey)
	require.NoError(t, err)
	return c
}

// bytesCodec writes a byte slice as it is.
type bytesCodec struct{}

func (bytesCodec) Name() string                                { return "bytes" }
func (bytesCodec) Append(dst []byte, v []byte) ([]byte, error) { return append(dst, v...), nil }
func (bytesCodec) Decode(src []byte) ([]byte, error)           { return bytes.Clone(src), nil }

func readyCodecs[T any](t testing.TB) map[string]Codec[T] {
	return map[string]Codec[T]{
		"json":                     JSON[T](),
		"gob":                      Gob[T](),
		"flate(json)":              Flate(JSON[T]()),
		"flate(gob)":               Flate(Gob[T]()),
		"sealed(gob)":              sealedBy(t, Gob[T]()),
		"sealed(flate(json))":      sealedBy(t, Flate(JSON[T]())),
		"flate(sealed(json))":      Flate(sealedBy(t, JSON[T]())),
		"sealed(sealed(gob))":      sealedBy(t, sealedBy(t, Gob[T]())),
		"flate(flate(flate(gob)))": Flate(Flate(Flate(Gob[T]()))),
	}
}

func TestReadyCodecs(t *testing.T) {
	for name, c := range readyCodecs[wrapped](t) {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, name, c.Name())
			r := rand.New(rand.NewPCG(1, 2))
			for range 200 {
				want := newWrapped(r)
				prefix := []byte("prefix")
				b, err := c.Append(prefix[:len(prefix):len(prefix)], want)
				require.NoError(t, err)
				require.Equal(t, "prefix", string(b[:6]), "what is in dst stays")
				src := b[6:]
				kept := bytes.Clone(src)
				got, err := c.Decode(src)
				require.NoError(t, err)
				require.Equal(t, kept, src, "Decode changes nothing")
				clear(src)
				require.Equal(t, want, got, "Decode keeps nothing")
			}
		})
	}
}

// TestReadyCodecsConcurrent uses each codec from several goroutines.
func TestReadyCodecsConcurrent(t *testing.T) {
	for name, c := range readyCodecs[wrapped](t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var wg sync.WaitGroup
			for g := range uint64(4) {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(g, 3))
					for range 50 {
						want := newWrapped(r)
						b, err := c.Append(nil, want)
						assert.NoError(t, err)
						got, err := c.Decode(b)
						assert.NoError(t, err)
						assert.Equal(t, want, got)
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestReadyCodecsInContainers stores values of a codec, reopens, and opens as others.
func TestReadyCodecsInContainers(t *testing.T) {
	for name, c := range readyCodecs[wrapped](t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := testArena(t, testOptions{})
			l, err := List(a, "l", &ListOptions[wrapped]{Codec: c})
			require.NoError(t, err)
			d, err := Dict(a, "d", &DictOptions[string, wrapped]{KeyCodec: JSON[string](), ValueCodec: c})
			require.NoError(t, err)
			r := rand.New(rand.NewPCG(4, 5))
			var want []wrapped
			for i := range 50 {
				want = append(want, newWrapped(r))
				require.NoError(t, l.Append(want[i]))
				require.NoError(t, d.Set(fmt.Sprint(i), want[i]))
			}
			for i := range want {
				v, err := l.Get(i)
				require.NoError(t, err)
				require.Equal(t, want[i], v)
				v, ok, err := d.Get(fmt.Sprint(i))
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, want[i], v)
			}
			_, err = List(a, "l", &ListOptions[wrapped]{Codec: Flate(c)})
			require.ErrorIs(t, err, ErrTypeMismatch)
		})
	}
}

// TestKeyCodecs checks which codecs are refused for keys.
func TestKeyCodecs(t *testing.T) {
	a := testArena(t, testOptions{})
	for name, c := range readyCodecs[string](t) {
		_, err := Dict(a, name, &DictOptions[string, int]{KeyCodec: c})
		if name == "json" {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, ErrUnsupportedType, name)
		require.ErrorContains(t, err, name)
	}
	for info := range a.Containers() {
		assert.Equal(t, "json", info.Name, "a refused dict is not created")
	}
}

func TestGobNil(t *testing.T) {
	_, err := Gob[*int]().Append(nil, nil)
	require.ErrorContains(t, err, "nil *int")
	_, err = Gob[**int]().Append(nil, new(*int))
	require.ErrorContains(t, err, "nil *int")
	v, err := Gob[any]().Append(nil, "registered by gob itself")
	require.NoError(t, err)
	got, err := Gob[any]().Decode(v)
	require.NoError(t, err)
	assert.Equal(t, "registered by gob itself", got)
}

// TestAnotherType checks that a value of another type is no damage.
func TestAnotherType(t *testing.T) {
	b, err := Gob[wrapped]().Append(nil, wrapped{URL: "x"})
	require.NoError(t, err)
	_, err = Gob[int]().Decode(b)
	require.Error(t, err)
	assert.NotErrorIs(t, err, ErrCorrupt)
	_, err = JSON[int]().Decode([]byte(`"text"`))
	var mismatch *json.UnmarshalTypeError
	require.ErrorAs(t, err, &mismatch)
	assert.NotErrorIs(t, err, ErrCorrupt)
	_, err = JSON[int]().Append(nil, 1)
	require.NoError(t, err)
	_, err = JSON[func()]().Append(nil, nil)
	require.Error(t, err)
}

// TestDamagedCodecs cuts and lengthens encodings of each codec, which must say so.
func TestDamagedCodecs(t *testing.T) {
	for name, c := range readyCodecs[wrapped](t) {
		t.Run(name, func(t *testing.T) {
			b, err := c.Append(nil, newWrapped(rand.New(rand.NewPCG(6, 7))))
			require.NoError(t, err)
			for n := range b {
				_, err := c.Decode(b[:n:n])
				require.ErrorIs(t, err, ErrCorrupt, "the first %d bytes of %d", n, len(b))
			}
			_, err = c.Decode(append(bytes.Clone(b), 0))
			require.ErrorIs(t, err, ErrCorrupt, "with a byte more")
			_, err = c.Decode(append(bytes.Clone(b), b...))
			require.ErrorIs(t, err, ErrCorrupt, "twice")
			for i := range 8 * len(b) {
				bad := bytes.Clone(b)
				bad[i/8] ^= 1 << (i % 8)
				v, err := c.Decode(bad) // without a seal it may be another value
				if strings.HasPrefix(name, "sealed") {
					require.ErrorIs(t, err, ErrCorrupt, "bit %d: %v", i, v)
				}
			}
		})
	}
}

func TestSealed(t *testing.T) {
	for _, n := range []int{0, 16, 24, 31, 33, 64} {
		_, err := Sealed(JSON[int](), make([]byte, n))
		require.ErrorContains(t, err, "32 bytes", "key of %d bytes", n)
	}
	key := bytes.Clone(sealKey)
	c, err := Sealed(JSON[string](), key)
	require.NoError(t, err)
	clear(key)
	b, err := c.Append(nil, "secret")
	require.NoError(t, err)
	assert.Len(t, b, 12+len(`"secret"`)+16)
	assert.NotContains(t, string(b), "secret")
	again, err := c.Append(nil, "secret")
	require.NoError(t, err)
	assert.NotEqual(t, b, again, "another nonce")
	v, err := sealedBy(t, JSON[string]()).Decode(b)
	require.NoError(t, err, "the key was copied")
	assert.Equal(t, "secret", v)

	other, err := Sealed(JSON[string](), bytes.Repeat([]byte{8}, 32))
	require.NoError(t, err)
	_, err = other.Decode(b)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "wrong key or changed bytes")
	_, err = sealedBy(t, Codec[[]byte](bytesCodec{})).Decode(b)
	require.ErrorIs(t, err, ErrCorrupt, "sealed by a codec of another name")
}

// TestSealedWrongKey opens a file with a wrong key: what it says, and that it names the place.
func TestSealedWrongKey(t *testing.T) {
	a := testArena(t, testOptions{})
	d, err := Dict(a, "d", &DictOptions[int, string]{ValueCodec: sealedBy(t, JSON[string]())})
	require.NoError(t, err)
	require.NoError(t, d.Set(1, "x"))
	wrong, err := Sealed(JSON[string](), make([]byte, 32))
	require.NoError(t, err)
	d, err = Dict(a, "d", &DictOptions[int, string]{ValueCodec: wrong})
	require.NoError(t, err)
	_, _, err = d.Get(1)
	e := isError(t, err, a.path, ErrCorrupt)
	assert.Equal(t, "d", e.Container)
	require.ErrorContains(t, err, "wrong key or changed bytes")
}

// TestFlateBomb states lengths that the stream does not have.
func TestFlateBomb(t *testing.T) {
	c := Flate(Codec[[]byte](bytesCodec{}))
	const size = 64 << 20
	bomb, err := c.Append(nil, make([]byte, size))
	require.NoError(t, err)
	stream := bomb[len(binary.AppendUvarint(nil, size)):]
	with := func(n uint64) []byte { return append(binary.AppendUvarint(nil, n), stream...) }
	spent := func(b []byte) (n uint64, err error) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = c.Decode(b)
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc, err
	}
	for _, n := range []uint64{0, 1, 1000} {
		got, err := spent(with(n))
		require.ErrorIs(t, err, ErrCorrupt, "%d bytes stated", n)
		assert.Less(t, got, uint64(1<<20))
	}
	for _, n := range []uint64{size - 1, size + 1, maxValueSize} {
		_, err := spent(with(n))
		require.ErrorIs(t, err, ErrCorrupt, "%d bytes stated", n)
	}
	for _, n := range []uint64{maxValueSize, maxValueSize + 1, 1 << 40, 1<<64 - 1} {
		small, err := c.Append(nil, []byte("small"))
		require.NoError(t, err)
		got, err := spent(append(binary.AppendUvarint(nil, n), small[1:]...))
		require.ErrorIs(t, err, ErrCorrupt, "%d bytes stated", n)
		assert.Less(t, got, uint64(1<<20))
	}
	v, err := c.Decode(bomb)
	require.NoError(t, err)
	assert.Len(t, v, size)
}

// A failingCodec fails on demand.
type failingCodec struct{ err error }

func (failingCodec) Name() string                               { return "failing" }
func (c failingCodec) Append(dst []byte, v int) ([]byte, error) { return append(dst, 1), c.err }
func (c failingCodec) Decode(src []byte) (int, error)           { return 0, c.err }

// TestInnerErrors checks that errors of a wrapped codec come through.
func TestInnerErrors(t *testing.T) {
	for name, wrap := range map[string]func(Codec[int]) Codec[int]{
		"flate": Flate[int], "sealed": func(c Codec[int]) Codec[int] { return sealedBy(t, c) },
	} {
		good, bad := wrap(failingCodec{}), wrap(failingCodec{io.ErrNoProgress})
		_, err := bad.Append(nil, 1)
		require.ErrorIs(t, err, io.ErrNoProgress, name)
		b, err := good.Append(nil, 1)
		require.NoError(t, err)
		_, err = bad.Decode(b)
		require.ErrorIs(t, err, io.ErrNoProgress, name)
		assert.False(t, errors.Is(err, ErrCorrupt))
	}
}

// TestReadyCodecsAllocate checks that wrapping costs no memory of its own.
func TestReadyCodecsAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("pools forget at random under the race detector")
	}
	v := bytes.Repeat([]byte("some text "), 50)
	for name, c := range map[string]Codec[[]byte]{
		"flate": Flate[[]byte](bytesCodec{}), "sealed": sealedBy[[]byte](t, bytesCodec{}), "both": sealedBy(t, Flate[[]byte](bytesCodec{})),
	} {
		dst := make([]byte, 0, 4096)
		b, err := c.Append(nil, v)
		require.NoError(t, err)
		appended := testing.AllocsPerRun(200, func() { c.Append(dst, v) })
		decoded := testing.AllocsPerRun(200, func() { c.Decode(b) })
		t.Logf("%s: Append %v, Decode %v", name, appended, decoded)
		assert.LessOrEqual(t, appended, 2.0, name)
		assert.LessOrEqual(t, decoded, 4.0, name) // the value among them
	}
}

// fuzzCodec feeds a decoder hostile bytes. What it accepts must come back.
func fuzzCodec[T any](f *testing.F, c Codec[T], seeds ...T) {
	for _, v := range seeds {
		b, err := c.Append(nil, v)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := c.Decode(b)
		if err != nil {
			return
		}
		again, err := c.Append(nil, v)
		if err != nil {
			return // gob decodes nil pointers in arrays that it does not encode
		}
		got, err := c.Decode(again)
		require.NoError(t, err)
		want, err := json.Marshal(v)
		if err != nil {
			return // a NaN
		}
		have, err := json.Marshal(got)
		require.NoError(t, err)
		require.Equal(t, string(want), string(have))
	})
}

func FuzzFlate(f *testing.F) {
	fuzzCodec(f, Flate[[]byte](bytesCodec{}), []byte{}, []byte("abc"), bytes.Repeat([]byte("abc"), 1000))
}

func FuzzSealed(f *testing.F) {
	fuzzCodec(f, sealedBy[[]byte](f, bytesCodec{}), []byte{}, []byte("abc"))
}

func FuzzGob(f *testing.F) {
	r := rand.New(rand.NewPCG(8, 9))
	fuzzCodec(f, Gob[wrapped](), newWrapped(r), newWrapped(r), wrapped{})
}
