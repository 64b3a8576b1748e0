//go:build lmdb && cgo

package main

/*
#cgo LDFLAGS: -llmdb
#include <lmdb.h>
#include <stdlib.h>

// A Go program must not keep pointers to its memory in C memory, so keys and values are passed as arguments.

static int bench_get(MDB_txn *tx, MDB_dbi db, void *k, size_t nk, MDB_val *v) {
	MDB_val key = {nk, k};
	return mdb_get(tx, db, &key, v);
}

static int bench_put(MDB_txn *tx, MDB_dbi db, void *k, size_t nk, void *v, size_t nv) {
	MDB_val key = {nk, k}, val = {nv, v};
	return mdb_put(tx, db, &key, &val, 0);
}

static int bench_del(MDB_txn *tx, MDB_dbi db, void *k, size_t nk) {
	MDB_val key = {nk, k};
	return mdb_del(tx, db, &key, NULL);
}

static int bench_next(MDB_cursor *c, MDB_val *k, MDB_val *v) { return mdb_cursor_get(c, k, v, MDB_NEXT); }
*/
import "C"

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/emd-go/emd/benchmarks/matrix"
)

func init() {
	impls = append(impls, matrix.Impl{
		Name:  "LMDB",
		Note:  C.GoString(C.mdb_version(nil, nil, nil)) + " by cgo; NOSYNC until a Sync",
		Bytes: openLMDB,
	})
}

type lmdbStore struct {
	env *C.MDB_env
	dbi C.MDB_dbi
}

func lmdbError(code C.int) error {
	if code == C.MDB_SUCCESS {
		return nil
	}
	return errors.New("lmdb: " + C.GoString(C.mdb_strerror(code)))
}

const lmdbMapSize = 64 << 30 // of address space

func openLMDB(dir string) (matrix.Store[[]byte, []byte], error) {
	s := &lmdbStore{}
	if code := C.mdb_env_create(&s.env); code != 0 {
		return nil, lmdbError(code)
	}
	path := C.CString(filepath.Join(dir, "lmdb"))
	defer C.free(unsafe.Pointer(path))
	code := C.mdb_env_set_mapsize(s.env, lmdbMapSize)
	if code == 0 {
		code = C.mdb_env_open(s.env, path, C.MDB_NOSUBDIR|C.MDB_NOSYNC|C.MDB_NOTLS, 0o600)
	}
	err := lmdbError(code)
	if err == nil {
		err = s.update(func(tx *C.MDB_txn) error { return lmdbError(C.mdb_dbi_open(tx, nil, 0, &s.dbi)) })
	}
	if err != nil {
		C.mdb_env_close(s.env)
		return nil, err
	}
	return s, nil
}

// transaction runs fn in one; it commits unless fn fails.
func (s *lmdbStore) transaction(flags C.uint, fn func(tx *C.MDB_txn) error) error {
	var tx *C.MDB_txn
	if err := lmdbError(C.mdb_txn_begin(s.env, nil, flags, &tx)); err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		C.mdb_txn_abort(tx)
		return err
	}
	return lmdbError(C.mdb_txn_commit(tx))
}

// update keeps its thread: the lock of a writing transaction belongs to the thread that began it.
func (s *lmdbStore) update(fn func(tx *C.MDB_txn) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return s.transaction(0, fn)
}

func (s *lmdbStore) view(fn func(tx *C.MDB_txn) error) error {
	return s.transaction(C.MDB_RDONLY, fn)
}

func start(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

// bytesOf shows memory of the database, valid until the next change or the end of the transaction.
func bytesOf(v C.MDB_val) []byte { return unsafe.Slice((*byte)(v.mv_data), int(v.mv_size)) }

func (s *lmdbStore) get(tx *C.MDB_txn, k []byte) (v []byte, err error) {
	var found C.MDB_val
	if code := C.bench_get(tx, s.dbi, start(k), C.size_t(len(k)), &found); code != 0 {
		if code == C.MDB_NOTFOUND {
			return nil, nil
		}
		return nil, lmdbError(code)
	}
	return bytesOf(found), nil
}

func (s *lmdbStore) put(tx *C.MDB_txn, k, v []byte) error {
	return lmdbError(C.bench_put(tx, s.dbi, start(k), C.size_t(len(k)), start(v), C.size_t(len(v))))
}

func (s *lmdbStore) Set(keys, vals [][]byte) error {
	return s.update(func(tx *C.MDB_txn) error {
		for i, k := range keys {
			if err := s.put(tx, k, vals[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *lmdbStore) Delete(keys [][]byte) error {
	return s.update(func(tx *C.MDB_txn) error {
		for _, k := range keys {
			if err := lmdbError(C.bench_del(tx, s.dbi, start(k), C.size_t(len(k)))); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *lmdbStore) Increment(keys [][]byte) error {
	return s.update(func(tx *C.MDB_txn) error {
		for _, k := range keys {
			v, err := s.get(tx, k)
			if err != nil {
				return err
			}
			var next [8]byte
			binary.BigEndian.PutUint64(next[:], binary.BigEndian.Uint64(v)+1)
			if err := s.put(tx, k, next[:]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *lmdbStore) Get(keys, vals [][]byte) (found int, err error) {
	err = s.view(func(tx *C.MDB_txn) error {
		for i, k := range keys {
			v, err := s.get(tx, k)
			if err != nil {
				return err
			}
			if v != nil {
				vals[i] = append(vals[i][:0], v...)
				found++
			}
		}
		return nil
	})
	return found, err
}

func (s *lmdbStore) GetMany(keys, vals [][]byte) (found int, err error) { return s.Get(keys, vals) }

func (s *lmdbStore) All() (n int, err error) {
	err = s.view(func(tx *C.MDB_txn) error {
		var c *C.MDB_cursor
		if err := lmdbError(C.mdb_cursor_open(tx, s.dbi, &c)); err != nil {
			return err
		}
		defer C.mdb_cursor_close(c)
		for {
			var k, v C.MDB_val
			switch code := C.bench_next(c, &k, &v); code {
			case 0:
				n++
			case C.MDB_NOTFOUND:
				return nil
			default:
				return lmdbError(code)
			}
		}
	})
	return n, err
}

func (s *lmdbStore) Sync() error { return lmdbError(C.mdb_env_sync(s.env, 1)) }

func (s *lmdbStore) SetDurable(key, val []byte) error {
	if err := lmdbError(C.mdb_env_set_flags(s.env, C.MDB_NOSYNC, 0)); err != nil {
		return err
	}
	err := s.Set([][]byte{key}, [][]byte{val})
	return errors.Join(err, lmdbError(C.mdb_env_set_flags(s.env, C.MDB_NOSYNC, 1)))
}

func (s *lmdbStore) Close() error {
	err := s.Sync()
	C.mdb_env_close(s.env)
	return err
}
