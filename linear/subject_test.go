package linear

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/emd-go/emd"
)

// A subject is what is checked: a dict, with numbers for its keys and values.
type subject interface {
	get(key int) (value, error)
	getMany() ([keyCount]value, error)
	contains(key int) (bool, error)
	set(key int, v value) error
	remove(key int) (bool, error)
	getOrSet(key int, v value) (actual value, loaded bool, err error)
	swap(key int, v value) (value, error)
	compute(key int, fn func(v value) (value, emd.Op)) error

	sync() error
	rollback() error
	update(fn func() error) error

	churn(r *rand.Rand) error // changes keys that no client uses, among those that they do
	reopen(t *testing.T)
}

// A kind is a pair of key and value types. They choose the layout of the dict's pages.
type kind[K comparable, V any] struct {
	name   string
	key    func(i int) K
	encode func(v value) V
	decode func(v V) (value, error) // an error for what encode never returned
}

var (
	words = kind[uint64, uint64]{
		name:   "words",
		key:    func(i int) uint64 { return uint64(i) },
		encode: func(v value) uint64 { return uint64(v) },
		decode: func(v uint64) (value, error) { return value(v), nil },
	}
	wide  = kind[uint64, [9]uint32]{"wide", words.key, widen, narrow}
	texts = kind[string, string]{"texts", func(i int) string { return fmt.Sprintf("%0*d", 1+i%90, i) }, spell, read}
)

func widen(v value) (w [9]uint32) {
	for i := range w {
		w[i] = uint32(v)
	}
	return w
}

func narrow(w [9]uint32) (value, error) {
	v := value(w[0])
	if w != widen(v) {
		return absent, fmt.Errorf("a torn value: %v", w)
	}
	return v, nil
}

// spell returns a text of some length. Long ones lie outside the pages of the dict, in space that is freed and used again.
func spell(v value) string {
	times := [...]int{1, 3, 30, 100, 1000}
	return strings.Repeat(fmt.Sprint(v, ","), times[int(v)%len(times)])
}

func read(text string) (v value, err error) {
	if _, err = fmt.Sscan(text, &v); err != nil || text != spell(v) {
		return absent, fmt.Errorf("a torn value: %q", text)
	}
	return v, nil
}

// A dict is the subject that is right.
type dict[K comparable, V any] struct {
	kind[K, V]
	path  string
	opts  emd.Options
	d     *emd.EMDict[K, V]
	keys  [keyCount]K
	other []K
}

// newDict returns an empty dict. All keys lie together in the order of hashes, so those for churn divide and merge the
// pages of the others, and more than fill them.
func newDict[K comparable, V any](t *testing.T, kind kind[K, V], r *rand.Rand) *dict[K, V] {
	d := &dict[K, V]{kind: kind, path: filepath.Join(t.TempDir(), "linear.emd")}
	d.opts = emd.Options{
		HashSeed:  r.Uint64() | 1,
		NoSync:    r.IntN(8) > 0, // more commits in the same time
		FullPages: r.IntN(4) == 0,
		LogLimit:  1 << (14 + r.IntN(8)), // how often there are checkpoints
	}
	together := neighbours(t, kind.key, d.opts.HashSeed)
	at := r.IntN(len(together) - keyCount)
	copy(d.keys[:], together[at:])
	d.other = slices.Concat(together[:at], together[at+keyCount:])
	d.open(t)
	t.Cleanup(func() { require.NoError(t, d.d.Close()) })
	return d
}

// neighbours returns keys whose hashes have the same upper bits, some 700 of 100,000, in the order of their hashes.
func neighbours[K comparable](t *testing.T, key func(i int) K, seed uint64) (keys []K) {
	d, err := emd.OpenDict[K, bool](filepath.Join(t.TempDir(), "all.emd"), &emd.Options{HashSeed: seed, NoSync: true})
	require.NoError(t, err)
	for i := range 100_000 {
		require.NoError(t, d.Set(key(i), true))
	}
	keys = slices.AppendSeq(keys, func(yield func(K) bool) {
		d.Partition(97, 150)(func(k K, _ bool) bool { return yield(k) })
	})
	require.NoError(t, d.Close())
	return keys
}

func (d *dict[K, V]) open(t *testing.T) {
	var err error
	d.d, err = emd.OpenDict[K, V](d.path, &d.opts)
	require.NoError(t, err)
}

func (d *dict[K, V]) reopen(t *testing.T) {
	require.Zero(t, d.d.Arena().Stats().OwnCommits, "the model knows nothing of own commits")
	require.NoError(t, d.d.Close())
	d.open(t)
}

func (d *dict[K, V]) value(v V, ok bool, err error) (value, error) {
	if err != nil || !ok {
		return absent, err
	}
	return d.decode(v)
}

func (d *dict[K, V]) get(key int) (value, error)     { return d.value(d.d.Get(d.keys[key])) }
func (d *dict[K, V]) contains(key int) (bool, error) { return d.d.Contains(d.keys[key]) }
func (d *dict[K, V]) set(key int, v value) error     { return d.d.Set(d.keys[key], d.encode(v)) }
func (d *dict[K, V]) remove(key int) (bool, error)   { return d.d.Delete(d.keys[key]) }
func (d *dict[K, V]) sync() error                    { return d.d.Sync() }
func (d *dict[K, V]) rollback() error                { return d.d.Arena().Rollback() }
func (d *dict[K, V]) update(fn func() error) error   { return d.d.Arena().Update(fn) }

func (d *dict[K, V]) getMany() (found [keyCount]value, err error) {
	var vals [keyCount]V
	var ok [keyCount]bool
	_, err = d.d.GetMany(d.keys[:], vals[:], ok[:])
	for i := 0; i < keyCount && err == nil; i++ {
		found[i], err = d.value(vals[i], ok[i], nil)
	}
	return found, err
}

func (d *dict[K, V]) getOrSet(key int, v value) (actual value, loaded bool, err error) {
	a, loaded, err := d.d.GetOrSet(d.keys[key], d.encode(v))
	actual, err = d.value(a, true, err)
	return actual, loaded, err
}

func (d *dict[K, V]) swap(key int, v value) (value, error) {
	return d.value(d.d.Swap(d.keys[key], d.encode(v)))
}

func (d *dict[K, V]) compute(key int, fn func(v value) (value, emd.Op)) error {
	var torn error
	_, _, err := d.d.Compute(d.keys[key], func(v V, ok bool) (V, emd.Op) {
		old, err := d.value(v, ok, nil)
		if err != nil {
			torn = err
			return v, emd.OpKeep
		}
		new, do := fn(old)
		return d.encode(new), do
	})
	if torn != nil {
		return torn
	}
	return err
}

func (d *dict[K, V]) churn(r *rand.Rand) error {
	from := r.IntN(len(d.other))
	some := d.other[from:min(from+r.IntN(100), len(d.other))]
	switch r.IntN(6) {
	case 0:
		_, err := d.d.DeleteFunc(func(k K, _ V) bool { return !slices.Contains(d.keys[:], k) })
		return err
	case 1, 2:
		for _, k := range some {
			if _, err := d.d.Delete(k); err != nil {
				return err
			}
		}
	default:
		for _, k := range some {
			if err := d.d.Set(k, d.encode(value(r.IntN(100)))); err != nil {
				return err
			}
		}
	}
	return nil
}
