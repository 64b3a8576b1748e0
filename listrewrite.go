package emd

import (
	"math/bits"
)

// ---- rewriting

// A rewriting makes new extents for a range of slots, in fresh space that is
// written out as it fills, while the old ones stay as they are; adopt
// switches. So its size is bounded by the disk, not by memory, and an error on
// the way changes nothing. An extent into which nothing is written is absent.
type rewriting struct {
	l    *list
	t    *extentTable
	k    uint64 // the extent at work
	page pageNo // 0 while nothing was written to it
	mem  []byte
	done []extent
}

type extent struct {
	k    uint64
	page pageNo // 0: absent
}

// rewrite makes new content for the slots [lo, hi). fill is called for ranges
// of them in ascending order.
func (l *list) rewrite(lo, hi uint64, fill func(w *rewriting, dst, n uint64) error) (*rewriting, error) {
	w := &rewriting{l: l, t: l.table.Load()}
	if lo >= hi || l.width == 0 {
		return w, nil
	}
	k, _ := w.t.locate(lo)
	last, _ := w.t.locate(hi - 1)
	for ; k <= last; k++ {
		w.k, w.page, w.mem = k, 0, nil
		if err := w.fillExtent(lo, hi, fill); err != nil {
			w.abandon()
			return nil, err
		}
		if w.page != 0 || w.t.entry(k) != 0 {
			w.done = append(w.done, extent{k, w.page})
		}
	}
	w.page = 0
	if err := w.coverDone(); err != nil {
		w.abandon()
		return nil, err
	}
	return w, nil
}

// fillExtent makes one extent: what lies outside [lo, hi) is copied.
func (w *rewriting) fillExtent(lo, hi uint64, fill func(w *rewriting, dst, n uint64) error) error {
	from, to := w.t.start(w.k), w.t.start(w.k+1)
	if first := w.l.first.Load(); from < lo && first < lo {
		from := max(from, first)
		if err := w.copy(from, from, lo-from); err != nil {
			return err
		}
	}
	from, to = max(from, lo), min(to, hi)
	if err := fill(w, from, to-from); err != nil {
		return err
	}
	if end := min(w.t.start(w.k+1), w.l.end.Load()); to < end {
		if err := w.copy(to, to, end-to); err != nil {
			return err
		}
	}
	if w.page == 0 {
		return nil
	}
	return w.l.a.spill(w.page, w.t.pages(w.k))
}

// slots returns the memory of the new slots [p, p+n), of the extent at work.
func (w *rewriting) slots(p, n uint64) ([]byte, error) {
	if w.page == 0 {
		e, err := w.l.a.alloc.allocFresh(w.t.pages(w.k))
		if err != nil {
			return nil, err
		}
		w.page = e
		w.mem = w.l.a.space.view(uint64(e)<<pageShift, int(w.t.pages(w.k))<<pageShift)
	}
	off, size := (p-w.t.start(w.k))*w.t.width, n*w.t.width
	w.l.a.space.mark(uint64(w.page)<<pageShift+off, int(size))
	return w.mem[off : off+size : off+size], nil
}

// copy copies n old slots from src on to the new ones from dst on. Absent
// ones stay absent.
func (w *rewriting) copy(dst, src, n uint64) error {
	return w.l.eachExtent(src, src+n, func(at uint64, b []byte) error {
		m, err := w.slots(dst+at-src, uint64(len(b))/w.t.width)
		copy(m, b)
		return err
	})
}

// splice makes the new slots [dst, dst+n): of the inserted ones, b, and of
// those that move.
func (w *rewriting) splice(dst, n uint64, g *gap, b []byte) error {
	if from, to := max(dst, g.p), min(dst+n, g.p+g.n); from < to {
		m, err := w.slots(from, to-from)
		if err != nil {
			return err
		}
		copy(m, b[(from-g.p)*w.t.width:])
	}
	if from, to := max(dst, g.lo), min(dst+n, g.lo+g.moved); from < to {
		return w.copy(from, from-g.lo+g.src, to-from)
	}
	return nil
}

// coverDone makes the table cover the new extents.
func (w *rewriting) coverDone() error {
	for _, e := range w.done {
		if e.page != 0 {
			if err := w.l.cover(e.k, e.k+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// abandon frees what was made.
func (w *rewriting) abandon() {
	for _, e := range append(w.done, extent{w.k, w.page}) {
		if e.page != 0 {
			_ = w.l.a.alloc.free(e.page, w.t.pages(e.k)) // allocated just now
		}
	}
}

// adopt puts the new extents in the place of the old. Readers are turned away.
func (w *rewriting) adopt() (damage error) {
	for _, e := range w.done {
		if err := w.l.dropRange(e.k, e.k+1); err != nil && damage == nil {
			damage = err
		}
		if e.page != 0 {
			w.l.setEntry(e.k, e.page)
		}
	}
	w.l.tail = slotRoom{}
	return damage
}

// ---- deleting by choice

// A selection marks elements of a list: bit i stands for element base+i.
type selection struct {
	base  int
	n     int // elements looked at
	count int // of these, marked
	bits  []uint64
}

// maxSelection bounds the memory of a selection: 32 MiB.
const maxSelection = 1 << 28

func (s *selection) add(marked bool) {
	if s.n%64 == 0 {
		s.bits = append(s.bits, 0)
	}
	if marked {
		s.bits[s.n/64] |= 1 << (s.n % 64)
		s.count++
	}
	s.n++
}

// next returns the first index from i on that is marked, or that is not; n if
// there is none.
func (s *selection) next(i int, marked bool) int {
	for i < s.n {
		w := s.bits[i/64]
		if !marked {
			w = ^w
		}
		if w >>= i % 64; w != 0 {
			return min(s.n, i+bits.TrailingZeros64(w))
		}
		i += 64 - i%64
	}
	return s.n
}

// A gathering goes over the slots that stay when the elements of a selection
// go, from the first that goes to the end of the list, in runs.
type gathering struct {
	s    *selection
	base uint64 // slot of bit 0
	end  uint64 // of the list
	at   uint64 // slots [at, stop) are the rest of the run
	stop uint64
}

// next returns the first slot of the rest of the run, and how many follow, at
// most n.
func (g *gathering) next(n uint64) (src, m uint64) {
	if g.at == g.stop && g.at < g.base+uint64(g.s.n) {
		from := g.s.next(int(g.at-g.base), false)
		to := g.s.next(from, true)
		g.at, g.stop = g.base+uint64(from), g.base+uint64(to)
	}
	if g.stop == g.base+uint64(g.s.n) {
		g.stop = g.end // what was not looked at follows
	}
	src, m = g.at, min(n, g.stop-g.at)
	g.at += m
	return src, m
}

// removeSelected deletes the elements of s from a list that the caller
// holds. It locks.
func (l *list) removeSelected(s *selection, h holding) error {
	if s.count == 0 {
		return nil
	}
	var lo, hi uint64 // what is written
	var g gathering
	err := l.enterFor(true, func() (int64, error) {
		if err := l.overtaken(h); err != nil {
			return 0, err
		}
		base := l.first.Load() + uint64(s.base)
		lo = base + uint64(s.next(0, true))
		hi = l.end.Load() - uint64(s.count)
		g = gathering{s: s, base: base, end: l.end.Load(), at: lo, stop: lo}
		return l.moveCost(lo, l.end.Load()-lo) + l.freeCost(uint64(s.count)), nil
	})
	if err != nil {
		return err
	}
	defer l.leave()
	apply := func() error {
		for dst := lo; dst < hi; {
			src, n := g.next(hi - dst)
			if err := l.move(dst, src, n); err != nil {
				return err
			}
			dst += n
		}
		return nil
	}
	if l.tooMuch(l.end.Load()-lo) || !l.dense(lo, l.end.Load()) {
		w, err := l.rewrite(lo, hi, func(w *rewriting, dst, n uint64) error {
			for n > 0 {
				src, m := g.next(n)
				if err := w.copy(dst, src, m); err != nil {
					return err
				}
				dst, n = dst+m, n-m
			}
			return nil
		})
		if err != nil {
			return err
		}
		apply = w.adopt
	}
	return l.reshape(func() error {
		damage := l.freeSelected(s)
		if err := apply(); err != nil {
			return err
		}
		if err := l.setBounds(l.first.Load(), hi); err != nil {
			return err
		}
		return damage
	})
}

// freeSelected frees the records of marked elements.
func (l *list) freeSelected(s *selection) (first error) {
	if !l.refs {
		return nil
	}
	base := l.first.Load() + uint64(s.base)
	for i := s.next(0, true); i < s.n; {
		j := s.next(i, false)
		if err := l.freeRecords(base+uint64(i), base+uint64(j)); err != nil && first == nil {
			first = err
		}
		i = s.next(j, true)
	}
	return first
}
