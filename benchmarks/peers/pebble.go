package main

import (
	"encoding/binary"
	"errors"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"github.com/emd-go/emd/benchmarks/matrix"
)

var pebbleImpl = matrix.Impl{
	Name:   "Pebble",
	Module: "github.com/cockroachdb/pebble/v2",
	Note:   "a cache of 256 MiB, memtables of 64 MiB, Bloom filters of 10 bits a key; batches; NoSync until a Sync",
	Bytes: func(dir string) (matrix.Store[[]byte, []byte], error) {
		o := &pebble.Options{
			CacheSize: 256 << 20, MemTableSize: 64 << 20, FormatMajorVersion: pebble.FormatNewest, Logger: silent{},
		}
		for i := range o.Levels {
			o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		}
		db, err := pebble.Open(dir, o)
		return pebbleStore{db}, err
	},
}

// silent drops what is no error.
type silent struct{}

func (silent) Infof(string, ...any)           {}
func (silent) Errorf(format string, v ...any) { pebble.DefaultLogger.Errorf(format, v...) }
func (silent) Fatalf(format string, v ...any) { pebble.DefaultLogger.Fatalf(format, v...) }

type pebbleStore struct{ *pebble.DB }

func (s pebbleStore) Set(keys, vals [][]byte) error {
	b := s.NewBatch()
	for i, k := range keys {
		if err := b.Set(k, vals[i], nil); err != nil {
			return err
		}
	}
	return b.Commit(pebble.NoSync)
}

func (s pebbleStore) Delete(keys [][]byte) error {
	b := s.NewBatch()
	for _, k := range keys {
		if err := b.Delete(k, nil); err != nil {
			return err
		}
	}
	return b.Commit(pebble.NoSync)
}

func (s pebbleStore) Increment(keys [][]byte) error {
	b := s.NewBatch()
	for _, k := range keys {
		v, closer, err := s.DB.Get(k)
		if err != nil {
			return err
		}
		var next [8]byte
		binary.BigEndian.PutUint64(next[:], binary.BigEndian.Uint64(v)+1)
		if err := errors.Join(closer.Close(), b.Set(k, next[:], nil)); err != nil {
			return err
		}
	}
	return b.Commit(pebble.NoSync)
}

func (s pebbleStore) Get(keys, vals [][]byte) (found int, err error) {
	for i, k := range keys {
		v, closer, err := s.DB.Get(k)
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return found, err
		}
		vals[i] = append(vals[i][:0], v...)
		if err := closer.Close(); err != nil {
			return found, err
		}
		found++
	}
	return found, nil
}

func (s pebbleStore) GetMany(keys, vals [][]byte) (found int, err error) { return s.Get(keys, vals) }

func (s pebbleStore) All() (n int, err error) {
	it, err := s.NewIter(nil)
	if err != nil {
		return 0, err
	}
	for it.First(); it.Valid(); it.Next() {
		if _, err := it.ValueAndErr(); err != nil {
			return n, errors.Join(err, it.Close())
		}
		n++
	}
	return n, errors.Join(it.Error(), it.Close())
}

func (s pebbleStore) SetDurable(key, val []byte) error { return s.DB.Set(key, val, pebble.Sync) }

// Sync waits for the disk with a record that says nothing, behind all others.
func (s pebbleStore) Sync() error { return s.LogData(nil, pebble.Sync) }
