package main

import (
	"encoding/binary"
	"errors"

	"github.com/dgraph-io/badger/v4"

	"github.com/emd-go/emd/benchmarks/matrix"
)

var badgerImpl = matrix.Impl{
	Name:   "Badger",
	Module: "github.com/dgraph-io/badger/v4",
	Note:   "the recommended options, without metrics and the detection of conflicts; WriteBatch; no sync until a Sync",
	Bytes: func(dir string) (matrix.Store[[]byte, []byte], error) {
		db, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil).WithMetricsEnabled(false).WithDetectConflicts(false))
		return badgerStore{db}, err
	},
}

type badgerStore struct{ *badger.DB }

func (s badgerStore) Set(keys, vals [][]byte) error {
	b := s.NewWriteBatch()
	defer b.Cancel()
	for i, k := range keys {
		if err := b.Set(k, vals[i]); err != nil {
			return err
		}
	}
	return b.Flush()
}

func (s badgerStore) Delete(keys [][]byte) error {
	b := s.NewWriteBatch()
	defer b.Cancel()
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return b.Flush()
}

func (s badgerStore) Increment(keys [][]byte) error {
	return s.Update(func(tx *badger.Txn) error {
		for _, k := range keys {
			item, err := tx.Get(k)
			if err != nil {
				return err
			}
			next := make([]byte, 0, 8)
			err = item.Value(func(v []byte) error {
				next = binary.BigEndian.AppendUint64(next, binary.BigEndian.Uint64(v)+1)
				return nil
			})
			if err != nil {
				return err
			}
			if err := tx.Set(k, next); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s badgerStore) Get(keys, vals [][]byte) (found int, err error) {
	err = s.View(func(tx *badger.Txn) error {
		for i, k := range keys {
			item, err := tx.Get(k)
			if errors.Is(err, badger.ErrKeyNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if vals[i], err = item.ValueCopy(vals[i]); err != nil {
				return err
			}
			found++
		}
		return nil
	})
	return found, err
}

func (s badgerStore) GetMany(keys, vals [][]byte) (found int, err error) { return s.Get(keys, vals) }

func (s badgerStore) All() (n int, err error) {
	err = s.View(func(tx *badger.Txn) error {
		it := tx.NewIterator(badger.DefaultIteratorOptions)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if err := it.Item().Value(func([]byte) error { return nil }); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}

func (s badgerStore) SetDurable(key, val []byte) error {
	err := s.Update(func(tx *badger.Txn) error { return tx.Set(key, val) })
	return errors.Join(err, s.Sync())
}
