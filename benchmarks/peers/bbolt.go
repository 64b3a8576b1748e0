package main

import (
	"encoding/binary"
	"path/filepath"

	"go.etcd.io/bbolt"

	"github.com/emd-go/emd/benchmarks/matrix"
)

var bboltImpl = matrix.Impl{
	Name:   "bbolt",
	Module: "go.etcd.io/bbolt",
	Note:   "NoSync until a Sync; the free list as a map, and not in the file",
	Bytes: func(dir string) (matrix.Store[[]byte, []byte], error) {
		db, err := bbolt.Open(filepath.Join(dir, "bbolt.db"), 0o600, &bbolt.Options{
			NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
		})
		if err != nil {
			return nil, err
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucketIfNotExists(bucketName)
			return err
		})
		return boltStore{db}, err
	},
}

var bucketName = []byte("bench")

type boltStore struct{ *bbolt.DB }

// each calls fn for each key, in one transaction.
func (s boltStore) each(keys [][]byte, fn func(b *bbolt.Bucket, i int, k []byte) error) error {
	return s.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketName)
		for i, k := range keys {
			if err := fn(b, i, k); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s boltStore) Set(keys, vals [][]byte) error {
	return s.each(keys, func(b *bbolt.Bucket, i int, k []byte) error { return b.Put(k, vals[i]) })
}

func (s boltStore) Delete(keys [][]byte) error {
	return s.each(keys, func(b *bbolt.Bucket, i int, k []byte) error { return b.Delete(k) })
}

func (s boltStore) Increment(keys [][]byte) error {
	return s.each(keys, func(b *bbolt.Bucket, i int, k []byte) error {
		return b.Put(k, binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(b.Get(k))+1))
	})
}

func (s boltStore) Get(keys, vals [][]byte) (found int, err error) {
	err = s.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketName)
		for i, k := range keys {
			if v := b.Get(k); v != nil {
				vals[i] = append(vals[i][:0], v...)
				found++
			}
		}
		return nil
	})
	return found, err
}

func (s boltStore) GetMany(keys, vals [][]byte) (found int, err error) { return s.Get(keys, vals) }

func (s boltStore) All() (n int, err error) {
	err = s.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketName).ForEach(func(_, _ []byte) error {
			n++
			return nil
		})
	})
	return n, err
}

func (s boltStore) SetDurable(key, val []byte) error {
	s.NoSync = false
	defer func() { s.NoSync = true }()
	return s.Set([][]byte{key}, [][]byte{val})
}
