package emd

import (
	"bytes"
	"iter"
	"unsafe"
)

// Views returns a loop over the elements [i, j) in runs: the index of the
// first of each, and a slice of them. It panics unless 0 <= i <= j <= Len.
//
// Where a T lies in the file as it does in memory, a run is memory of the file,
// which no reading is faster than: use it inside the loop body, do not keep it, and do
// not write to it. Otherwise it is decoded elements, in a slice that is used
// again. What a run shows while its elements are changed is not specified, and
// races with the change. In the body the list may be changed; the loop stops early if it
// becomes shorter. Meanwhile [Arena.Close], [Arena.Rollback] and [Arena.Drop]
// are [ErrLent]. A fault ends the loop: see [EMList.Err].
func (e *EMList[T]) Views(i, j int) iter.Seq2[int, []T] {
	e.l.checkRange(i, j)
	return func(yield func(int, []T) bool) { e.views(i, j, yield) }
}

// views is the loop of Views, which is inlined, so that a short run costs no
// allocation.
func (e *EMList[T]) views(i, j int, yield func(int, []T) bool) {
	e.l.a.lent.Add(1)
	defer e.l.a.lent.Add(-1)
	if i < j && e.raw {
		if p := e.l.tryRun(i, j); p != nil {
			yield(i, unsafe.Slice((*T)(p), j-i))
			return
		}
	}
	var err error
	if e.raw && e.l.width != 0 {
		err = e.lend(i, j, yield)
	} else {
		err = e.lendDecoded(i, j, yield)
	}
	if err != nil {
		e.l.fault("views", err)
	}
}

// lend yields memory of the file.
func (e *EMList[T]) lend(i, j int, yield func(int, []T) bool) error {
	var zeros []T
	ahead := e.l.lookAhead(i, j)
	for i < j {
		ahead.reach(i)
		p, n, err := e.l.runAt(i, min(j-i, aheadSize/int(e.l.width)+1))
		if n == 0 || err != nil {
			return err
		}
		run := zeros
		if p != nil {
			run = unsafe.Slice((*T)(p), n)
		} else if len(run) == 0 { // of an absent extent
			zeros = make([]T, 1<<e.l.grain)
			run = zeros
		}
		run = run[:min(n, len(run))]
		if !yield(i, run) {
			return nil
		}
		i += len(run)
	}
	return nil
}

// lendDecoded yields elements in a slice that is used again.
func (e *EMList[T]) lendDecoded(i, j int, yield func(int, []T) bool) error {
	n, err := e.l.count()
	if err != nil {
		return err
	}
	run, more := make([]T, 0, min(j-i, maxDecoded)), true
	err = e.visit(i, min(j, n), 1, func(_ int, v T) bool {
		if run = append(run, v); len(run) == cap(run) {
			more = yield(i, run)
			i += len(run)
			run = run[:0]
		}
		return more
	})
	if len(run) > 0 && more {
		yield(i, run)
	}
	return err
}

// maxDecoded is how many elements are decoded for one run.
const maxDecoded = 256

// Mutate calls fn with the elements [i, j) in runs, each with the index of its
// first, and stores what fn makes of them. It panics unless 0 <= i <= j <= Len.
//
// A run is a copy of its elements, in a slice that is used again: so readers and
// commits see it before or after fn, and only the lines of 64 bytes that fn
// has changed are written. The error of fn ends the loop and is returned; the
// run that it had, or in which it has panicked, stays as it was, those before
// are stored. Other changes of the list wait; fn must not call methods of it. Meanwhile
// [Arena.Close], [Arena.Rollback] and [Arena.Drop] are [ErrLent].
func (e *EMList[T]) Mutate(i, j int, fn func(i int, run []T) error) error {
	return e.l.result("mutate", e.mutate(i, j, fn))
}

func (e *EMList[T]) mutate(i, j int, fn func(i int, run []T) error) error {
	if err := e.l.a.check(&e.l.handle); err != nil {
		return err
	}
	e.l.a.lent.Add(1)
	defer e.l.a.lent.Add(-1)
	h := e.l.hold()
	defer e.l.release()
	if err := e.l.a.writable(); err != nil {
		return err
	}
	n, err := e.l.count()
	if err == nil {
		err = checkRange(i, j, n)
	}
	if err != nil || i == j {
		return err
	}
	var v T
	run := make([]T, min(j-i, max(1, mutateRun/max(1, int(unsafe.Sizeof(v))))))
	s := newScratch()
	defer s.done()
	for i < j {
		run = run[:min(len(run), j-i)]
		if n, err := e.copyTo(run, i); err != nil {
			return err
		} else if n < len(run) {
			return e.l.lostTo(h)
		}
		if err := fn(i, run); err != nil {
			return err
		}
		if err := e.replace(s, i, run, h); err != nil {
			return err
		}
		i += len(run)
	}
	return nil
}

// mutateRun is how many bytes of elements Mutate takes at once: they stay in
// the cache until they are stored.
const mutateRun = 64 << 10

// replace stores a run of elements of a list that is held, where they differ.
func (e *EMList[T]) replace(s *scratch, i int, run []T, h holding) error {
	if e.raw {
		return e.l.replaceSlots(i, bytesOf(run), uint64(len(run)), h)
	}
	s.b, s.ends = s.b[:0], s.ends[:0]
	if !e.l.refs {
		if err := e.encodeAll(s, run); err != nil {
			return err
		}
		return e.l.replaceSlots(i, s.b, uint64(len(run)), h)
	}
	var never T
	for k := range run {
		s.b, s.ends = s.b[:0], s.ends[:0]
		if err := e.encode(s, &run[k]); err != nil {
			return err
		}
		n := len(s.b)
		el, err := e.l.get(s.b, i+k) // behind the new one
		if err == nil && el.zero {
			el.b, err = e.codec.encode(s.b, &never)
		}
		if err == nil {
			if s.b = el.b[:n]; bytes.Equal(s.b, el.b[n:]) {
				continue
			}
			err = e.l.setRecord(i+k, s.b, &h)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replaceSlots stores n slots from element i on. Lines that stay as they are
// are not marked. It locks.
func (l *list) replaceSlots(i int, b []byte, n uint64, h holding) error {
	if l.width == 0 {
		return nil
	}
	p := h.first + uint64(i)
	err := l.enterFor(true, func() (int64, error) {
		return l.growth(p, p+n) + l.smallCost() + int64(len(b)), l.overtaken(h)
	})
	if err != nil {
		return err
	}
	defer l.leave()
	if l.present(p, p+n) < int64(len(b)) && !zeroBytes(b) {
		if err := l.reserve(p, p+n); err != nil {
			return err
		}
	}
	return l.reshape(func() error {
		return l.eachExtent(p, p+n, func(q uint64, m []byte) error {
			t := l.table.Load()
			k, at := t.locate(q)
			off := uint64(t.entry(k))<<pageShift + at*t.width
			for from, b := 0, b[(q-p)*l.width:]; from < len(m); {
				to := min(len(m), from+lineSize-int(off+uint64(from))%lineSize)
				if !bytes.Equal(m[from:to], b[from:to]) {
					l.a.space.mark(off+uint64(from), to-from)
					copy(m[from:to], b[from:to])
				}
				from = to
			}
			return nil
		})
	})
}

// lostTo returns why a list that is held has become shorter.
func (l *list) lostTo(h holding) error {
	if err := l.overtaken(h); err != nil {
		return err
	}
	return corrupt("list became shorter while it was held")
}

// checkRange panics about a bad range of an open list.
func (l *list) checkRange(i, j int) {
	if uint(i) <= uint(j) && uint64(j) <= l.end.Load()-l.first.Load() && l.shape.n.Load()&1 == 0 {
		return
	}
	if n, err := l.count(); err == nil {
		if err := checkRange(i, j, n); err != nil {
			panic(err)
		}
	}
}

// tryRun returns the memory of the elements [i, j), which are some, if they lie in a row and are no more
// than a loop is to read at once; nil says that this takes a closer look. Most runs are a few
// elements of a large list, for which that look would take longer than the loop.
func (l *list) tryRun(i, j int) unsafe.Pointer {
	shape := l.shape.n.Load()
	first := l.first.Load()
	if n := uint64(j - i); uint64(j) > l.end.Load()-first || shape&1 != 0 || n*l.width >= aheadSize {
		return nil
	}
	p := l.memoryAt(first + uint64(i))
	if p == nil || l.table.Load().room(first+uint64(i)) < uint64(j-i) || l.shape.n.Load() != shape {
		return nil
	}
	return p
}

// runAt returns the memory of up to most elements from i on, as many as lie
// in a row, and how many these are: none if the list has no element i. nil is absent ones.
func (l *list) runAt(i, most int) (mem unsafe.Pointer, n int, err error) {
	r := listReader{l: l}
	for {
		if err := r.begin(); err != nil {
			return nil, 0, err
		}
		mem, n, err = nil, 0, nil
		first, end := l.first.Load(), l.end.Load()
		if first <= end && uint64(i) < end-first { // end may be newer than first
			t, p := l.table.Load(), first+uint64(i)
			n = int(min(uint64(most), end-p, t.room(p)))
			b, ok := l.slotsAt(t, p, uint64(n))
			if !ok {
				n, err = 0, l.damaged(t, p)
			}
			mem = unsafe.Pointer(unsafe.SliceData(b))
		}
		if r.done() {
			return mem, n, err
		}
	}
}
