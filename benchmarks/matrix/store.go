package matrix

import (
	"path/filepath"
	"runtime"

	"github.com/emd-go/emd"
)

// An Impl is an implementation to be measured.
type Impl struct {
	Name   string
	Module string // to print its version
	Note   string // options that it runs with
	// Volatile means that there is no file.
	Volatile bool

	// These open a store in a folder, empty if there is none yet. Bytes stands in for those that are nil: for stores of byte
	// strings, which get words in big-endian order.
	Words func(dir string) (Store[uint64, uint64], error)
	Texts func(dir string) (Store[string, Text], error)
	Bytes func(dir string) (Store[[]byte, []byte], error)
}

// Text is the value of a text key.
type Text = [100]byte

// A Store is a store of one implementation, used by one goroutine. Slices are the caller's: valid during the call only,
// as are the bytes in them.
type Store[K, V any] interface {
	// Set stores the values of keys, new or existing, as one batch or transaction where there is such a thing. It need not wait
	// for the disk.
	Set(keys []K, vals []V) error
	// Get looks keys up one after the other, in one transaction where there are any, and copies their values to vals.
	Get(keys []K, vals []V) (found int, err error)
	// GetMany is Get by the store's way to look up many keys together, 64 at most. Without one it is Get.
	GetMany(keys []K, vals []V) (found int, err error)
	// Delete is like Set.
	Delete(keys []K) error
	// All visits all keys and values.
	All() (n int, err error)
	// Sync makes all changes durable.
	Sync() error
	// SetDurable is the store's ordinary durable commit of one key, after a Sync.
	SetDurable(key K, val V) error
	Close() error
}

// A Counter is a store of words that can do m[k]++ by its own means, as one batch where there is such a thing.
type Counter[K any] interface {
	Increment(keys []K) error
}

// Map is Go's map.
var Map = Impl{
	Name:     "map",
	Note:     "Go's map, not sized in advance",
	Volatile: true,
	Words: func(string) (Store[uint64, uint64], error) {
		return wordMap{goMap[uint64, uint64]{}}, nil
	},
	Texts: func(string) (Store[string, Text], error) { return goMap[string, Text]{}, nil },
}

type goMap[K comparable, V any] map[K]V

func (m goMap[K, V]) Set(keys []K, vals []V) error {
	for i, k := range keys {
		m[k] = vals[i]
	}
	return nil
}

func (m goMap[K, V]) Get(keys []K, vals []V) (found int, err error) {
	for i, k := range keys {
		v, ok := m[k]
		if ok {
			found++
		}
		vals[i] = v
	}
	return found, nil
}

func (m goMap[K, V]) GetMany(keys []K, vals []V) (found int, err error) { return m.Get(keys, vals) }

func (m goMap[K, V]) Delete(keys []K) error {
	for _, k := range keys {
		delete(m, k)
	}
	return nil
}

func (m goMap[K, V]) All() (n int, err error) {
	var last V
	for _, v := range m {
		last = v
		n++
	}
	runtime.KeepAlive(&last)
	return n, nil
}

func (m goMap[K, V]) Sync() error                   { return nil }
func (m goMap[K, V]) SetDurable(key K, val V) error { return nil }
func (m goMap[K, V]) Close() error                  { return nil }

type wordMap struct{ goMap[uint64, uint64] }

func (m wordMap) Increment(keys []uint64) error {
	for _, k := range keys {
		m.goMap[k]++
	}
	return nil
}

// EMD is this module's dict.
var EMD = Impl{
	Name: "emd",
	Note: "the default options",
	Words: func(dir string) (Store[uint64, uint64], error) {
		s, err := openEMD[uint64, uint64](dir)
		return wordDict{s}, err
	},
	Texts: func(dir string) (Store[string, Text], error) { return openEMD[string, Text](dir) },
}

type dict[K comparable, V any] struct {
	*emd.EMDict[K, V]
}

func openEMD[K comparable, V any](dir string) (dict[K, V], error) {
	d, err := emd.OpenDict[K, V](filepath.Join(dir, "bench.emd"), nil)
	return dict[K, V]{d}, err
}

func (d dict[K, V]) Set(keys []K, vals []V) error {
	for i, k := range keys {
		if err := d.EMDict.Set(k, vals[i]); err != nil {
			return err
		}
	}
	return nil
}

func (d dict[K, V]) Get(keys []K, vals []V) (found int, err error) {
	for i, k := range keys {
		v, ok, err := d.EMDict.Get(k)
		if err != nil {
			return found, err
		}
		if ok {
			found++
		}
		vals[i] = v
	}
	return found, nil
}

func (d dict[K, V]) GetMany(keys []K, vals []V) (found int, err error) {
	var ok [64]bool
	for err == nil && len(keys) > 0 {
		n := min(len(keys), len(ok))
		var more int
		more, err = d.EMDict.GetMany(keys[:n], vals[:n], ok[:n])
		found += more
		keys, vals = keys[n:], vals[n:]
	}
	return found, err
}

func (d dict[K, V]) Delete(keys []K) error {
	for _, k := range keys {
		if _, err := d.EMDict.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

func (d dict[K, V]) All() (n int, err error) {
	var last V
	for _, v := range d.EMDict.All() {
		last = v
		n++
	}
	runtime.KeepAlive(&last)
	return n, d.Err()
}

func (d dict[K, V]) SetDurable(key K, val V) error {
	if err := d.EMDict.Set(key, val); err != nil {
		return err
	}
	return d.Sync()
}

type wordDict struct{ dict[uint64, uint64] }

func (d wordDict) Increment(keys []uint64) error {
	increment := func(v uint64, _ bool) (uint64, emd.Op) { return v + 1, emd.OpStore }
	for _, k := range keys {
		if _, _, err := d.Compute(k, increment); err != nil {
			return err
		}
	}
	return nil
}
