package main

import (
	"errors"
	"path/filepath"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/emd-go/emd/benchmarks/matrix"
)

var sqliteImpl = matrix.Impl{
	Name:   "SQLite",
	Module: "modernc.org/sqlite",
	Note: "in pure Go; words as INTEGER PRIMARY KEY, texts in a table WITHOUT ROWID; prepared statements; a write-ahead log, " +
		"synchronous OFF until a Sync; a cache of 256 MiB",
	Words: func(dir string) (matrix.Store[uint64, uint64], error) {
		return openSQLite(dir, "INTEGER PRIMARY KEY, v INTEGER NOT NULL)", sqliteStore[uint64, uint64]{
			bindKey:   func(st *sqlite.Stmt, i int, k uint64) { st.BindInt64(i, int64(k)) },
			bindValue: func(st *sqlite.Stmt, i int, v uint64) { st.BindInt64(i, int64(v)) },
			value:     func(st *sqlite.Stmt, _ uint64) uint64 { return uint64(st.ColumnInt64(0)) },
		})
	},
	Bytes: func(dir string) (matrix.Store[[]byte, []byte], error) {
		return openSQLite(dir, "BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID", sqliteStore[[]byte, []byte]{
			bindKey:   (*sqlite.Stmt).BindBytes,
			bindValue: (*sqlite.Stmt).BindBytes,
			value: func(st *sqlite.Stmt, old []byte) []byte {
				n := st.ColumnLen(0)
				if cap(old) < n {
					old = make([]byte, n)
				}
				return old[:st.ColumnBytes(0, old[:n])]
			},
		})
	},
}

type sqliteStore[K, V any] struct {
	conn      *sqlite.Conn
	bindKey   func(st *sqlite.Stmt, i int, k K)
	bindValue func(st *sqlite.Stmt, i int, v V)
	value     func(st *sqlite.Stmt, old V) V // of column 0
}

func openSQLite[K, V any](dir, columns string, s sqliteStore[K, V]) (matrix.Store[K, V], error) {
	var err error
	if s.conn, err = sqlite.OpenConn(filepath.Join(dir, "bench.sqlite")); err != nil {
		return nil, err
	}
	return s, s.execute("PRAGMA synchronous = OFF", "PRAGMA cache_size = -262144", "CREATE TABLE IF NOT EXISTS kv (k "+columns)
}

func (s sqliteStore[K, V]) execute(queries ...string) error {
	for _, q := range queries {
		if err := sqlitex.ExecuteTransient(s.conn, q, nil); err != nil {
			return err
		}
	}
	return nil
}

// each runs a statement for each key, in one transaction. row, if not nil, is called where it returns one.
func (s sqliteStore[K, V]) each(query string, keys []K, vals []V, row func(st *sqlite.Stmt, i int)) (err error) {
	defer sqlitex.Transaction(s.conn)(&err)
	st, err := s.conn.Prepare(query)
	for i := 0; i < len(keys) && err == nil; i++ {
		s.bindKey(st, 1, keys[i])
		if vals != nil {
			s.bindValue(st, 2, vals[i])
		}
		var is bool
		if is, err = st.Step(); is {
			row(st, i)
		}
		err = errors.Join(err, st.Reset())
	}
	return err
}

func (s sqliteStore[K, V]) Set(keys []K, vals []V) error {
	return s.each("INSERT INTO kv (k, v) VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v", keys, vals, nil)
}

func (s sqliteStore[K, V]) Delete(keys []K) error {
	return s.each("DELETE FROM kv WHERE k = ?", keys, nil, nil)
}

func (s sqliteStore[K, V]) Increment(keys []K) error {
	return s.each("UPDATE kv SET v = v + 1 WHERE k = ?", keys, nil, nil)
}

func (s sqliteStore[K, V]) Get(keys []K, vals []V) (found int, err error) {
	err = s.each("SELECT v FROM kv WHERE k = ?", keys, nil, func(st *sqlite.Stmt, i int) {
		vals[i] = s.value(st, vals[i])
		found++
	})
	return found, err
}

func (s sqliteStore[K, V]) GetMany(keys []K, vals []V) (found int, err error) {
	return s.Get(keys, vals)
}

func (s sqliteStore[K, V]) All() (n int, err error) {
	st, err := s.conn.Prepare("SELECT v, k FROM kv")
	var last V
	for err == nil {
		var is bool
		if is, err = st.Step(); !is {
			break
		}
		last = s.value(st, last)
		n++
	}
	return n, errors.Join(err, st.Reset())
}

// Sync brings the log into the file, durably: what was written to it with synchronous OFF nobody has waited for.
func (s sqliteStore[K, V]) Sync() error {
	return s.execute("PRAGMA synchronous = FULL", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA synchronous = OFF")
}

func (s sqliteStore[K, V]) SetDurable(key K, val V) error {
	if err := s.execute("PRAGMA synchronous = FULL"); err != nil {
		return err
	}
	return errors.Join(s.Set([]K{key}, []V{val}), s.execute("PRAGMA synchronous = OFF"))
}

func (s sqliteStore[K, V]) Close() error { return s.conn.Close() }
