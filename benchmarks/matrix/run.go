package matrix

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// A clock sums the time of pieces.
type clock struct{ cpu, wall time.Duration }

func (c *clock) run(fn func() error) error {
	wall, cpu := time.Now(), cpuTime()
	err := fn()
	c.cpu += cpuTime() - cpu
	c.wall += time.Since(wall)
	return err
}

func (c *clock) per(n int) figure {
	return figure{cpu: float64(c.cpu.Nanoseconds()) / float64(n), wall: float64(c.wall.Nanoseconds()) / float64(n)}
}

// A bench measures one implementation with one kind of entries, once.
type bench[K, V any] struct {
	*Options
	form[K, V]
	open     func(dir string) (Store[K, V], error)
	report   func(row string, reopened bool, f figure)
	volatile bool
	counts   bool // its values are numbers

	dir      string
	store    Store[K, V]
	reopened bool
	order    []uint32 // all entries, shuffled
	absent   []uint32 // numbers that no entry has
	version  []uint32 // of each entry's value

	// The batch that is being done.
	index []uint32
	keys  []K
	vals  []V
	got   []V // by Get
	found int
}

// run measures everything, with two stores, one after the other. The first is opened again.
func (b *bench[K, V]) run(o *Options, kind string, m Impl, report func(row string, reopened bool, f figure)) error {
	b.Options, b.report, b.volatile, b.counts = o, report, m.Volatile, kind == "words"
	b.order, b.absent = numbers(0, b.N), numbers(b.N, b.N)
	rand.New(rand.NewPCG(1, uint64(b.N))).Shuffle(b.N, func(i, j int) { b.order[i], b.order[j] = b.order[j], b.order[i] })
	err := inOrder(
		b.create, b.fill, b.use, b.reopen, b.remove,
		b.create, b.fillSlowly, b.durable, b.delete, b.remove,
	)
	if b.store != nil {
		err = errors.Join(err, b.remove())
	}
	return err
}

func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func numbers(from, n int) []uint32 {
	all := make([]uint32, n)
	for i := range all {
		all[i] = uint32(from + i)
	}
	return all
}

func (b *bench[K, V]) create() (err error) {
	b.reopened = false
	b.version = make([]uint32, b.N)
	if b.dir, err = os.MkdirTemp(b.Dir, "matrix-"); err != nil {
		return err
	}
	return b.openStore()
}

func (b *bench[K, V]) openStore() error {
	s, err := b.open(b.dir)
	if err != nil {
		return errors.Join(err, os.RemoveAll(b.dir))
	}
	b.store = s
	return nil
}

func (b *bench[K, V]) remove() error {
	s := b.store
	b.store = nil
	return errors.Join(s.Close(), os.RemoveAll(b.dir))
}

// A task is what is done with many entries, batch after batch.
type task struct {
	name    string
	entries []uint32
	size    int           // of a batch
	budget  time.Duration // 0: all entries
	advance uint32        // of the versions of their values, before
	do      func() error  // on the clock
	check   func() error  // off it
}

// figure is what a task took for each of the n entries that it has done.
func (t task) figure(c clock, n int) figure {
	f := c.per(n)
	f.early = n < len(t.entries)
	return f
}

// each carries out a task and returns what it took, and for how many entries.
func (b *bench[K, V]) each(t task) (c clock, n int, err error) {
	runtime.GC()
	for n < len(t.entries) && (t.budget == 0 || c.wall < t.budget) && err == nil {
		b.prepare(t.entries[n:min(n+t.size, len(t.entries))], t.advance)
		n += len(b.index)
		if err = c.run(t.do); err == nil && t.check != nil {
			err = t.check()
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", t.name, err)
	}
	return c, n, err
}

// prepare makes the keys and values of a batch.
func (b *bench[K, V]) prepare(index []uint32, advance uint32) {
	b.index = index
	b.keys, b.vals, b.got = sized(b.keys, len(index)), sized(b.vals, len(index)), sized(b.got, len(index))
	for i, at := range index {
		b.keys[i] = b.key(uint64(at), b.keys[i])
		if int(at) < b.N {
			b.version[at] += advance
			b.vals[i] = b.val(uint64(at), b.version[at], b.vals[i])
		}
	}
}

// sized keeps what is there, for its memory.
func sized[T any](s []T, n int) []T {
	return slices.Grow(s, max(0, n-len(s)))[:n]
}

func (b *bench[K, V]) tell(name string, f figure) { b.report(name, b.reopened, f) }

// read measures a task that changes nothing.
func (b *bench[K, V]) read(t task) error {
	c, n, err := b.each(t)
	if err == nil {
		b.tell(t.name, t.figure(c, n))
	}
	return err
}

// change measures a task without and with a Sync at its end.
func (b *bench[K, V]) change(t task) error {
	c, n, err := b.each(t)
	if err != nil {
		return err
	}
	b.tell(t.name, t.figure(c, n))
	if err := c.run(b.store.Sync); err != nil {
		return fmt.Errorf("%s: %w", t.name+andSync, err)
	}
	b.tell(t.name+andSync, t.figure(c, n))
	return nil
}

func (b *bench[K, V]) get() (err error) {
	b.found, err = b.store.Get(b.keys, b.got)
	return err
}

func (b *bench[K, V]) getMany() (err error) {
	b.found, err = b.store.GetMany(b.keys, b.got)
	return err
}

func (b *bench[K, V]) set() error   { return b.store.Set(b.keys, b.vals) }
func (b *bench[K, V]) unset() error { return b.store.Delete(b.keys) }

func (b *bench[K, V]) checkHits() error {
	if b.found != len(b.index) {
		return fmt.Errorf("%d of %d keys found", b.found, len(b.index))
	}
	for i := range b.index {
		if !b.same(b.got[i], b.vals[i]) {
			return fmt.Errorf("key %v: value %v instead of %v", b.keys[i], b.got[i], b.vals[i])
		}
	}
	return nil
}

func (b *bench[K, V]) checkMisses() error {
	if b.found != 0 {
		return fmt.Errorf("%d of %d absent keys found", b.found, len(b.index))
	}
	return nil
}

func (b *bench[K, V]) fill() error {
	return b.change(task{name: rowFill, entries: numbers(0, b.N), size: b.Batch, do: b.set})
}

// readBatch is as large as the cost of the clock wants it, and no larger.
const readBatch = 4096

// use measures all that leaves the number of entries as it is.
func (b *bench[K, V]) use() error {
	read := func(name string, entries []uint32, do, check func() error) func() error {
		return func() error {
			return b.read(task{name: name, entries: entries, size: readBatch, budget: b.Budget, do: do, check: check})
		}
	}
	return inOrder(
		read(rowHit, b.order, b.get, b.checkHits),
		read(rowMiss, b.absent, b.get, b.checkMisses),
		read(rowMany, b.order, b.getMany, b.checkHits),
		b.all, b.overwrite, b.increment,
		func() error { // what the last two wrote, without a row of its own
			_, _, err := b.each(task{name: "reading what was changed", entries: b.order[:min(b.N, readBatch)], size: readBatch, do: b.get, check: b.checkHits})
			return err
		},
	)
}

// all goes through the store again and again for a while.
func (b *bench[K, V]) all() error {
	runtime.GC()
	c, passes := clock{}, 0
	for ; passes == 0 || c.wall < time.Second/20; passes++ {
		if err := b.count(b.N, &c); err != nil {
			return err
		}
	}
	b.tell(rowAll, c.per(passes*b.N))
	return nil
}

// count wants the store to yield that many entries.
func (b *bench[K, V]) count(want int, c *clock) error {
	n := 0
	err := c.run(func() (err error) { n, err = b.store.All(); return err })
	if err == nil && n != want {
		err = fmt.Errorf("%d entries instead of %d", n, want)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", rowAll, err)
	}
	return nil
}

func (b *bench[K, V]) overwrite() error {
	return b.change(task{name: rowExisting, entries: b.order, size: b.Batch, budget: b.Budget, advance: 1 << 16, do: b.set})
}

func (b *bench[K, V]) increment() error {
	counter, ok := b.store.(Counter[K])
	if !ok || !b.counts {
		return nil
	}
	do := func() error { return counter.Increment(b.keys) }
	return b.change(task{name: rowCompute, entries: b.order, size: b.Batch, budget: b.Budget, advance: 1, do: do})
}

// reopen measures the closed file, and everything once more.
func (b *bench[K, V]) reopen() error {
	if b.volatile {
		return nil
	}
	if err := b.store.Close(); err != nil {
		return err
	}
	b.store = nil
	size, err := folderSize(b.dir)
	if err != nil {
		return err
	}
	b.tell(rowSize, twice(float64(size)/float64(b.N)))
	b.prepare(b.order[:1], 0)
	var c clock
	if err := c.run(func() error { return inOrder(b.openStore, b.get) }); err != nil {
		return err
	}
	b.tell(rowOpen, c.per(1000))
	b.reopened = true
	return inOrder(b.checkHits, b.use, b.delete)
}

func folderSize(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += diskSize(info)
		}
		return err
	})
	return size, err
}

func (b *bench[K, V]) delete() error {
	deleted := 0
	t := task{name: rowDelete, entries: b.order, size: b.Batch, budget: b.Budget, do: b.unset, check: func() error {
		deleted += len(b.index)
		return nil
	}}
	return inOrder(
		func() error { return b.change(t) },
		func() error { return b.count(b.N-deleted, new(clock)) },
	)
}

// fillSlowly stores entries one by one while the budget lasts, for the longest of these Sets; then the rest.
func (b *bench[K, V]) fillSlowly() error {
	longest := time.Duration(0)
	one := func() error {
		for i := range b.keys {
			start := time.Now()
			if err := b.store.Set(b.keys[i:i+1], b.vals[i:i+1]); err != nil {
				return err
			}
			longest = max(longest, time.Since(start))
		}
		return nil
	}
	all := numbers(0, b.N)
	_, n, err := b.each(task{name: rowLongest, entries: all, size: readBatch, budget: b.Budget, do: one})
	if err != nil {
		return err
	}
	b.tell(rowLongest, twice(float64(longest.Microseconds())))
	_, _, err = b.each(task{name: rowFill, entries: all[n:], size: b.Batch, do: b.set})
	return errors.Join(err, b.store.Sync())
}

// durableSets is how many are measured.
const durableSets = 200

func (b *bench[K, V]) durable() error {
	if b.volatile {
		return nil
	}
	times := make([]float64, min(durableSets, (b.N+49)/50))
	for i := range times {
		b.prepare(b.order[i:i+1], 1<<16)
		start := time.Now()
		if err := b.store.SetDurable(b.keys[0], b.vals[0]); err != nil {
			return fmt.Errorf("%s: %w", rowDurable, err)
		}
		times[i] = float64(time.Since(start).Nanoseconds()) / 1000
	}
	b.tell(rowDurable, twice(median(times)))
	return nil
}

// rawWrite measures what rowDurable takes without a store: a write of 4 KiB over written ones, and a wait for the disk.
func rawWrite(o *Options) (f figure, err error) {
	file, err := os.CreateTemp(o.Dir, "matrix-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	block := make([]byte, 4096)
	for range durableSets {
		if _, err := file.Write(block); err != nil {
			return f, err
		}
	}
	if err := file.Sync(); err != nil {
		return f, err
	}
	times := make([]float64, durableSets)
	for i := range times {
		start := time.Now()
		if _, err := file.WriteAt(block, int64(i)*int64(len(block))); err != nil {
			return f, err
		}
		if err := syncData(file); err != nil {
			return f, err
		}
		times[i] = float64(time.Since(start).Nanoseconds()) / 1000
	}
	return twice(median(times)), nil
}
