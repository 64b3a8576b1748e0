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
// which no reading is faster than: use it inside the loop body, do not keep it,
// and do not write to it. Otherwise it is decoded elements, in a slice that is
// used again. What a run shows while its elements are changed is not specified,
// and races with the change. In the body the list may be changed; the loop stops
// early if it becomes shorter. Meanwhile [Arena.Close], [Arena.Rollback] and
// [Arena.Drop] are [ErrLent]. A fault ends the loop: see [EMList.Err].
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
	defer ahead.done()
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
	w := e.walk("views", i, j, false)
	defer w.ahead.done()
	if w.want = maxDecoded; len(w.slots) == 0 {
		w.room = make([]T, min(j-i, maxDecoded))
	}
	for w.read() && yield(w.at, w.run) {
	}
	return w.err
}

// Mutate calls fn with the elements [i, j) in runs, each with the index of its
// first, and stores what fn makes of them. It panics unless 0 <= i <= j <= Len.
//
// A run is a copy of its elements, in a slice that is used again: so readers
// and commits see it before or after fn, and only the lines of 64 bytes that fn
// has changed are written. The error of fn ends the loop and is returned; the
// run that it had, or in which it has panicked, stays as it was, those before
// are stored. Other changes of the list wait; fn must not call methods of it.
// Meanwhile [Arena.Close], [Arena.Rollback] and [Arena.Drop] are [ErrLent].
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
