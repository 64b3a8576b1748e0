package emd

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// This file cuts the power of real arenas on a simulated disk: at every change of the disk, in all ways that simDisk knows.
// What is left is opened by the library and must hold exactly the state after one commit, not older than the last that
// was acknowledged, and must go on working. The recovery is cut too, and the recovery after that.

var (
	crashScripts = flag.Int("emd.crash.scripts", 0, "soak: so many random scripts of TestCrash in each mode, with more crash states at each step")
	crashSeed    = flag.Uint64("emd.crash.seed", 0, "seed of TestCrash and of the kill and power cut tests; 0 draws one. With processes it fixes what is drawn, not the moments")
)

func drawCrashSeed() uint64 {
	if *crashSeed != 0 {
		return *crashSeed
	}
	return uint64(time.Now().UnixNano())
}

// A crashJudge looks at what crashes leave, compares it with what was committed, and counts. It knows nothing of
// arenas: its own tests use it on protocols that are wrong, and it must say so.
type crashJudge struct {
	// open is what is tested: it makes a disk usable again after a crash and returns the state that it finds. With care it
	// also tries what else can be done with the disk, which nobody uses any more.
	open func(d *simDisk, care bool) (state string, err error)
	// bad is told of what must not be. It need not return.
	bad func(why string)

	history  []string // the state after each commit that has begun
	acked    int      // the last one that must survive a power cut
	returned int      // the last one that must survive the end of the process
	lazy     bool     // commits do not wait for the disk

	r             *rand.Rand
	limit, sample int        // see simDisk.images
	deep          [2]float64 // how much of what a crash leaves is cut again in its recovery, and of that again
	kills         [2]float64 // how many crash points, and those in recoveries, also kill the process alone: another one recovers, and is cut
	fails         [2]float64 // how many syncs, and those in recoveries, also fail, which ends the process: as with kills
	losses        []simLoss  // what then becomes of the file
	care          float64    // how much of what a crash leaves is opened with care

	seen     map[uint64]string // what images hold
	points   int
	complete int // points of which all that could be left was seen
	states   int
	distinct int
}

func newCrashJudge(seed uint64, limit, sample int, bad func(why string)) *crashJudge {
	return &crashJudge{bad: bad, r: rand.New(rand.NewPCG(seed, 1)), limit: limit, sample: sample, losses: simLosses, seen: map[uint64]string{}}
}

// begin notes that state may be found from now on; it is the one of a commit that begins.
func (j *crashJudge) begin(state string) { j.history = append(j.history, state) }

// acknowledge notes that the last commit must be found from now on.
func (j *crashJudge) acknowledge() { j.returned, j.acked = len(j.history)-1, len(j.history)-1 }

// watch looks at every crash from now on.
func (j *crashJudge) watch(d *simDisk) {
	d.before = func(n int, op string) error {
		j.crash(d, op, fmt.Sprintf("before change %d (%s)", n, op))
		return nil
	}
}

// crash looks at what a crash at this moment leaves, ahead of operation op.
func (j *crashJudge) crash(d *simDisk, op, what string) {
	j.points++
	if j.explore(d, 0, j.history[j.acked:], what) {
		j.complete++
	}
	j.ends(d, 0, op, j.history[j.returned:], j.history[j.acked:], what)
}

// ends looks at other ends of the process, ahead of operation op. Another one must find a state that had returned, and
// must itself survive power cuts.
func (j *crashJudge) ends(d *simDisk, depth int, op string, returned, acked []string, what string) {
	if j.r.Float64() < j.kills[depth] {
		j.restart(d.kill(), depth, returned, acked, what+", killed")
	}
	// With garbage, three header slots survive one failed write, not two in a row.
	if strings.HasPrefix(op, "sync ") && j.r.Float64() < j.fails[depth] && !(d.garbage && d.hasLost()) {
		failed := d.kill()
		loss := j.losses[j.r.IntN(len(j.losses))]
		failed.failSync(op, loss)
		j.restart(failed, depth, acked, acked, fmt.Sprintf("%s, which failed: %+v", what, loss))
	}
}

func (j *crashJudge) restart(d *simDisk, depth int, returned, acked []string, what string) {
	state, err := j.open(d.kill(), depth == 0 && j.care > 0)
	j.verdict(state, err, returned, what)
	j.recovery(d, depth+1, acked, what)
}

// explore judges what a power cut leaves now. depth counts the cuts before it.
func (j *crashJudge) explore(d *simDisk, depth int, allowed []string, what string) (complete bool) {
	limit, sample := j.limit>>(2*depth), j.sample>>(2*depth)
	return d.images(max(4, limit), max(2, sample), j.r, func(img *simDisk) { j.judge(img, depth, allowed, what) })
}

func (j *crashJudge) judge(img *simDisk, depth int, allowed []string, what string) {
	j.states++
	sum := img.sum()
	state, known := j.seen[sum]
	if known { // opening it again would find the same
		j.verdict(state, nil, allowed, what)
		return
	}
	j.distinct++
	var again *simDisk
	if depth < len(j.deep) && j.r.Float64() < j.deep[depth] {
		again = img.kill()
	}
	files := img.list()
	img.plain = true
	state, err := j.open(img, j.r.Float64() < j.care/float64(1+9*depth))
	j.verdict(state, err, allowed, what+"; "+files)
	if err != nil {
		return
	}
	if k := slices.Index(j.history, state); k >= 0 {
		state = j.history[k] // not a copy for each image: they took gigabytes
	}
	j.seen[sum] = state
	if again != nil {
		// Somebody may have seen that state, so it stays. But in the recovery of commits that nobody waited for, a torn
		// write of fresh bytes costs the commit: see secureFresh.
		still := []string{state}
		if j.lazy && img.garbage {
			still = allowed
		}
		j.recovery(again, depth+1, still, what)
	}
}

// recovery cuts the power at every change that recovery makes.
func (j *crashJudge) recovery(d *simDisk, depth int, allowed []string, what string) {
	d.before = func(n int, op string) error {
		here := fmt.Sprintf("%s, before change %d (%s) of the recovery", what, n, op)
		j.explore(d, depth, allowed, here)
		if depth < len(j.kills) {
			j.ends(d, depth, op, allowed, allowed, here)
		}
		return nil
	}
	state, err := j.open(d, false)
	d.before = nil
	j.verdict(state, err, allowed, what+", recovered")
	if err == nil {
		j.explore(d, depth, []string{state}, what+", after recovery")
	}
}

func (j *crashJudge) verdict(state string, err error, allowed []string, what string) {
	switch {
	case err != nil:
		j.bad(fmt.Sprintf("refused %s: %v", what, err))
	case slices.Contains(allowed, state):
	case slices.Contains(j.history, state):
		k := len(j.history) - 1
		for j.history[k] != state {
			k--
		}
		j.bad(fmt.Sprintf("lost commit %s: it is commit %d, acknowledged were %d, begun %d", what, k, j.acked, len(j.history)-1))
	default:
		j.bad(fmt.Sprintf("no whole commit %s: %s; acknowledged %d: %s; begun %d: %s", what, brief(state),
			j.acked, brief(j.history[j.acked]), len(j.history)-1, brief(j.history[len(j.history)-1])))
	}
}

func brief(state string) string {
	if len(state) > 100 {
		return fmt.Sprintf("%q... (%d bytes)", state[:100], len(state))
	}
	return fmt.Sprintf("%q", state)
}

func (j *crashJudge) String() string {
	return fmt.Sprintf("%d crash states, %d of them distinct; %d crash points, %d of them exhausted", j.states, j.distinct, j.points, j.complete)
}

// A crashContent is what all containers and the metadata hold.
type crashContent struct {
	lists map[string][]uint64
	dicts map[string]map[string]string // of slices, the values are numbers as text
	meta  string
}

func (c *crashContent) clone() crashContent {
	n := crashContent{lists: map[string][]uint64{}, dicts: map[string]map[string]string{}, meta: c.meta}
	for name, l := range c.lists {
		n.lists[name] = slices.Clone(l)
	}
	for name, d := range c.dicts {
		n.dicts[name] = maps.Clone(d)
	}
	return n
}

// encode returns a text that is equal for equal contents: names, lengths, and sums of what is in them, so that a hundred
// thousand of them fit into memory.
func (c *crashContent) encode() string {
	var b strings.Builder
	fmt.Fprintf(&b, "meta %.20q of %d, sum %x", c.meta, len(c.meta), maphash.String(simSeed, c.meta))
	for _, name := range slices.Sorted(maps.Keys(c.lists)) {
		l := c.lists[name]
		sum := uint64(0)
		for _, v := range l {
			sum = maphash.Comparable(simSeed, [2]uint64{sum, v})
		}
		fmt.Fprintf(&b, "; list %s of %d, sum %x", name, len(l), sum)
	}
	for _, name := range slices.Sorted(maps.Keys(c.dicts)) {
		d := c.dicts[name]
		sum := uint64(0)
		for k, v := range d { // in any order
			sum += maphash.Comparable(simSeed, [2]string{k, v})
		}
		fmt.Fprintf(&b, "; dict %s of %d, sum %x", name, len(d), sum)
	}
	return b.String()
}

func contentOf(a *Arena) (c crashContent, err error) {
	c = crashContent{lists: map[string][]uint64{}, dicts: map[string]map[string]string{}}
	meta, _ := a.Meta("m")
	c.meta = string(meta)
	err = a.View(func() error {
		for info := range a.Containers() {
			if info.Kind == kindList {
				l, err := List[uint64](a, info.Name, &ListOptions[uint64]{MustExist: true})
				if err != nil {
					return err
				}
				values := make([]uint64, 0, l.Len())
				for v := range l.Values() {
					values = append(values, v)
				}
				c.lists[info.Name] = values
				continue
			}
			if info.Value == "[]uint32" {
				d, err := Dict[string, []uint32](a, info.Name, &DictOptions[string, []uint32]{MustExist: true})
				if err != nil {
					return err
				}
				c.dicts[info.Name] = map[string]string{}
				for k, v := range d.All() {
					c.dicts[info.Name][k] = numbersAsText(v)
				}
				continue
			}
			d, err := Dict[string, string](a, info.Name, &DictOptions[string, string]{MustExist: true})
			if err != nil {
				return err
			}
			c.dicts[info.Name] = maps.Collect(d.All())
		}
		return nil
	})
	return c, err
}

func numbersAsText(v []uint32) string {
	text := make([]byte, 0, 4*len(v))
	for _, x := range v {
		text = binary.LittleEndian.AppendUint32(text, x)
	}
	return string(text)
}

// A crashWorld runs operations on an arena on a simulated disk and tells its judge of each commit.
type crashWorld struct {
	*crashJudge
	r    *rand.Rand
	disk *simDisk
	a    *Arena
	crashMode

	created bool // the file was there once
	now     crashContent
	last    crashContent // committed
}

const crashPath = "/crash.emd"

func crashOptions(disk *simDisk) internalOptions {
	return internalOptions{fs: disk, heap: true, chunkSize: minChunkSize, dirtyLimit: 64 << 20, logLimit: 32 << 10, inline: true}
}

// internal returns the options of the world's arenas.
func (w *crashWorld) internal(disk *simDisk) internalOptions {
	in := crashOptions(disk)
	in.recBuffer = w.recBuffer
	return in
}

func newCrashWorld(seed uint64, mode crashMode, j *crashJudge) *crashWorld {
	w := &crashWorld{crashJudge: j, r: rand.New(rand.NewPCG(seed, 1)), disk: newSimDisk(), crashMode: mode}
	w.disk.garbage = mode.opts.FullPages
	w.opts.HashSeed, w.opts.DirtyLimit = seed+1, 1<<30 // given, so that nobody asks how much memory there is
	w.now = crashContent{lists: map[string][]uint64{}, dicts: map[string]map[string]string{}}
	w.last = w.now.clone()
	j.open, j.lazy = w.visit, mode.opts.NoSync
	j.begin(w.now.encode())
	return w
}

// visit opens what a crash left.
func (w *crashWorld) visit(d *simDisk, care bool) (state string, err error) {
	opts := w.opts
	opts.MustExist = w.created
	readOnly := ""
	if care {
		if readOnly, err = w.visitReadOnly(d); err != nil {
			return "", fmt.Errorf("read-only: %w", err)
		}
	}
	a, err := openWith(crashPath, &opts, w.internal(d))
	if err != nil {
		return "", err
	}
	c, err := contentOf(a)
	if err != nil {
		return "", err
	}
	state = c.encode()
	switch {
	case !care:
		return state, a.Close()
	case readOnly != "" && readOnly != state:
		return "", fmt.Errorf("read-only it shows %s, then %s", brief(readOnly), brief(state))
	}
	return state, w.goOn(a, d, c)
}

// visitReadOnly reads what a crash left without leave to change it.
func (w *crashWorld) visitReadOnly(d *simDisk) (state string, err error) {
	defer func() { d.before = nil }()
	d.before = func(_ int, op string) error { return errors.New("a read-only arena wants to " + op) }
	opts := w.opts
	opts.ReadOnly = true
	a, err := openWith(crashPath, &opts, w.internal(d))
	if errors.Is(err, fs.ErrNotExist) && !w.created {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	c, err := contentOf(a)
	return c.encode(), errors.Join(err, a.Close())
}

// goOn checks an arena that was opened after a crash, and whether it goes on working.
func (w *crashWorld) goOn(a *Arena, d *simDisk, c crashContent) error {
	if err := a.Check(context.Background(), nil); err != nil {
		return err
	}
	c.meta = "after"
	if err := errors.Join(a.SetMeta("m", []byte(c.meta)), a.Sync(), a.Close()); err != nil {
		return fmt.Errorf("working on: %w", err)
	}
	a, err := openWith(crashPath, &w.opts, w.internal(d))
	if err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	again, err := contentOf(a)
	if err == nil && again.encode() != c.encode() {
		err = errors.New("other content when opened again")
	}
	return errors.Join(err, a.Check(context.Background(), nil), a.Close())
}

// reopen opens the arena of the script itself.
func (w *crashWorld) reopen() error {
	a, err := openWith(crashPath, &w.opts, w.internal(w.disk))
	if err == nil {
		w.a, w.created = a, true
	}
	return err
}

// commit runs fn, which commits what now holds. waits says that the disk is waited for in any case.
func (w *crashWorld) commit(waits bool, fn func() error) error {
	content := w.now.clone()
	w.begin(content.encode())
	if err := fn(); err != nil {
		return err
	}
	w.committed(content, waits)
	return nil
}

func (w *crashWorld) committed(content crashContent, waits bool) {
	w.last = content
	acked := w.acked
	if w.acknowledge(); w.opts.NoSync && !waits {
		w.acked = acked
	}
}

// # Operations of scripts

// A crashOp does something to the arena and to the content that is expected of it.
type crashOp func(w *crashWorld) error

func (w *crashWorld) list(name string) (*EMList[uint64], error) {
	l, err := List[uint64](w.a, name, nil)
	if err == nil && w.now.lists[name] == nil {
		w.now.lists[name] = []uint64{}
	}
	return l, err
}

func (w *crashWorld) dict(name string) (*EMDict[string, string], error) {
	d, err := Dict[string, string](w.a, name, nil)
	if err == nil && w.now.dicts[name] == nil {
		w.now.dicts[name] = map[string]string{}
	}
	return d, err
}

// add appends n numbers to a list.
func add(name string, n int) crashOp {
	return func(w *crashWorld) error {
		l, err := w.list(name)
		if err != nil {
			return err
		}
		v := make([]uint64, n)
		for i := range v {
			v[i] = w.r.Uint64()
		}
		w.now.lists[name] = append(w.now.lists[name], v...)
		return l.Append(v...)
	}
}

// set overwrites every step-th number of a list.
func set(name string, step int) crashOp {
	return func(w *crashWorld) error {
		l, err := w.list(name)
		for i := 0; err == nil && i < len(w.now.lists[name]); i += step {
			v := w.r.Uint64()
			w.now.lists[name][i] = v
			err = l.Set(i, v)
		}
		return err
	}
}

// mutate is set by Mutate.
func mutate(name string, step int) crashOp {
	return func(w *crashWorld) error {
		l, err := w.list(name)
		if err != nil {
			return err
		}
		now := w.now.lists[name]
		return l.Mutate(0, len(now), func(at int, run []uint64) error {
			for i := range run {
				if (at+i)%step == 0 {
					run[i] = w.r.Uint64()
					now[at+i] = run[i]
				}
			}
			return nil
		})
	}
}

func sorted(name string) crashOp {
	return func(w *crashWorld) error {
		l, err := w.list(name)
		if err != nil {
			return err
		}
		slices.Sort(w.now.lists[name])
		return l.SortFunc(cmp.Compare[uint64])
	}
}

// cutOut deletes a range of a list, in fractions of its length.
func cutOut(name string, from, to float64) crashOp {
	return func(w *crashWorld) error {
		l, err := w.list(name)
		if err != nil {
			return err
		}
		n := float64(len(w.now.lists[name]))
		i, j := int(n*from), int(n*to)
		w.now.lists[name] = slices.Delete(w.now.lists[name], i, j)
		return l.Delete(i, j)
	}
}

// put stores values of about size bytes under the keys from..to.
func put(name string, from, to, size int) crashOp {
	return func(w *crashWorld) error {
		d, err := w.dict(name)
		for k := from; err == nil && k < to; k++ {
			key, v := fmt.Sprint("key", k), strings.Repeat(string(rune('a'+w.r.IntN(26))), size+w.r.IntN(8))
			w.now.dicts[name][key] = v
			err = d.Set(key, v)
		}
		return err
	}
}

// del deletes the keys from..to.
func del(name string, from, to int) crashOp {
	return func(w *crashWorld) error {
		d, err := w.dict(name)
		for k := from; err == nil && k < to; k++ {
			key := fmt.Sprint("key", k)
			delete(w.now.dicts[name], key)
			_, err = d.Delete(key)
		}
		return err
	}
}

func empty(name string) crashOp {
	return func(w *crashWorld) error {
		d, err := w.dict(name)
		if err != nil {
			return err
		}
		w.now.dicts[name] = map[string]string{}
		return d.Clear()
	}
}

func (w *crashWorld) slices(name string) (*EMDict[string, []uint32], error) {
	d, err := Dict[string, []uint32](w.a, name, nil)
	if err == nil && w.now.dicts[name] == nil {
		w.now.dicts[name] = map[string]string{}
	}
	return d, err
}

// grow adds n numbers to the slices of the keys from..to.
func grow(name string, from, to, n int) crashOp {
	return func(w *crashWorld) error {
		d, err := w.slices(name)
		for k := from; err == nil && k < to; k++ {
			v := make([]uint32, n)
			for i := range v {
				v[i] = w.r.Uint32()
			}
			key := fmt.Sprint("key", k)
			w.now.dicts[name][key] += numbersAsText(v)
			err = AppendTo(d, key, v...)
		}
		return err
	}
}

// renew sets the slices of the keys from..to, and prune deletes them.
func renew(name string, from, to, n int) crashOp {
	return func(w *crashWorld) error {
		d, err := w.slices(name)
		for k := from; err == nil && k < to; k++ {
			v := make([]uint32, n)
			key := fmt.Sprint("key", k)
			w.now.dicts[name][key] = numbersAsText(v)
			err = d.Set(key, v)
		}
		return err
	}
}

func prune(name string, from, to int) crashOp {
	return func(w *crashWorld) error {
		d, err := w.slices(name)
		for k := from; err == nil && k < to; k++ {
			key := fmt.Sprint("key", k)
			delete(w.now.dicts[name], key)
			_, err = d.Delete(key)
		}
		return err
	}
}

func meta(value string) crashOp {
	return func(w *crashWorld) error {
		w.now.meta = value
		return w.a.SetMeta("m", []byte(value))
	}
}

func drop(name string) crashOp {
	return func(w *crashWorld) error {
		delete(w.now.lists, name)
		delete(w.now.dicts, name)
		return w.a.Drop(name)
	}
}

func syncAll(w *crashWorld) error { return w.commit(false, w.a.Sync) }

func rollback(w *crashWorld) error {
	w.now = w.last.clone()
	return w.a.Rollback()
}

// spill writes fresh space early, as the DirtyLimit does.
func spill(w *crashWorld) error { return w.a.opError("spill", nil, 0, w.a.spillFresh()) }

// checkpointNow does what LogLimit and DirtyLimit do.
func checkpointNow(w *crashWorld) error {
	w.a.turn.Lock()
	defer w.a.turn.Unlock()
	return w.a.opError("checkpoint", nil, 0, w.a.checkpoint())
}

func closeAndReopen(w *crashWorld) error {
	if err := w.commit(true, w.a.Close); err != nil {
		return err
	}
	return w.reopen()
}

// killAndReopen ends the process, and starts another one.
func killAndReopen(w *crashWorld) error {
	before := w.disk.before
	w.disk.before = nil
	w.disk = w.disk.kill()
	w.watchAs(before)
	return restart(w)
}

// restart opens the file after the process was killed.
func restart(w *crashWorld) error {
	if err := w.reopen(); err != nil {
		return err
	}
	c, err := contentOf(w.a)
	w.verdict(c.encode(), err, w.history[w.returned:], "killed")
	w.now = c
	w.begin(c.encode())
	w.committed(c.clone(), true)
	return err
}

// watchAs watches the disk, which is another one now, if one before was watched.
func (w *crashWorld) watchAs(before func(int, string) error) {
	if before != nil {
		w.watch(w.disk)
	}
}

var errCrashScript = errors.New("the script says so")

// update runs ops in an Update that ends in the given way.
func update(ending string, ops ...crashOp) crashOp {
	return func(w *crashWorld) (err error) {
		before := w.now.clone()
		defer func() {
			p := recover()
			if p != nil && p != errCrashScript {
				panic(p)
			}
			if p != nil || err != nil { // all is as it was, also when its commit found no room
				w.now = before.clone() // before is w.last
			}
			if p != nil || errors.Is(err, errCrashScript) {
				err = nil
			}
		}()
		w.begin(before.encode())
		err = w.a.Update(func() error {
			w.committed(before, false) // Update commits what is pending
			for _, op := range ops {
				if err := op(w); err != nil {
					return err
				}
			}
			switch ending {
			case "fails":
				return errCrashScript
			case "panics":
				panic(errCrashScript)
			}
			w.begin(w.now.encode())
			return nil
		})
		if err == nil {
			w.committed(w.now.clone(), false)
		}
		return err
	}
}

// randomly does one random thing.
func randomly(w *crashWorld) error {
	r := w.r
	l, d := fmt.Sprint("list", r.IntN(2)), fmt.Sprint("dict", r.IntN(2))
	some := func() (from, to int) {
		from = r.IntN(300)
		return from, from + r.IntN(30)
	}
	change := func() crashOp {
		from, to := some()
		switch n := r.IntN(100); {
		case n < 30:
			return add(l, 1+r.IntN(200))
		case n < 36:
			return set(l, 1+r.IntN(300))
		case n < 38:
			return mutate(l, 1+r.IntN(300))
		case n < 40:
			return sorted(l)
		case n < 47:
			x, y := r.Float64(), r.Float64()
			return cutOut(l, min(x, y), max(x, y))
		case n < 68:
			return put(d, from, to, r.IntN(1500))
		case n < 76:
			return grow("slices", from%8, from%8+1+r.IntN(4), 1+r.IntN(1+r.IntN(1500)))
		case n < 78:
			return prune("slices", from%8, from%8+1+r.IntN(4))
		case n < 92:
			return del(d, from, to)
		case n < 95:
			return empty(d)
		default:
			return meta(fmt.Sprint(r.Uint32()))
		}
	}
	switch n := r.IntN(100); {
	case n < 65:
		return change()(w)
	case n < 82:
		return syncAll(w)
	case n < 86:
		return rollback(w)
	case n < 88:
		return closeAndReopen(w)
	case n < 90:
		return killAndReopen(w)
	case n < 92:
		return checkpointNow(w)
	case n < 94:
		return spill(w)
	case n < 96:
		for _, name := range []string{l, d} {
			if w.now.lists[name] != nil || w.now.dicts[name] != nil {
				return drop(name)(w)
			}
		}
		return nil
	default:
		return update([]string{"succeeds", "fails", "panics"}[r.IntN(3)], change(), change())(w)
	}
}

// # Scripts

// A crashScript is a run of operations, small so that its crashes can be exhausted.
type crashScript struct {
	name  string
	calm  []crashOp // come first, and nobody cuts the power
	ops   []crashOp
	judge func(j *crashJudge) // says how hard to look, if that is not the usual
}

var crashDirected = []crashScript{
	{name: "first creation", ops: []crashOp{}},
	{name: "appends", ops: []crashOp{add("l", 20), syncAll, add("l", 30), syncAll, add("l", 700), syncAll}},
	{name: "overwrites", ops: []crashOp{add("l", 600), syncAll, set("l", 40), syncAll, set("l", 200), syncAll, set("l", 1), syncAll}},
	{name: "mutate and sort", ops: []crashOp{
		add("l", 600), syncAll, mutate("l", 130), syncAll, sorted("l"), syncAll, mutate("l", 1), sorted("l"), syncAll, add("l", 9), sorted("l"), syncAll,
	}},
	{name: "splits", ops: []crashOp{put("d", 0, 30, 20), syncAll, put("d", 30, 120, 20), syncAll, put("d", 120, 300, 20), syncAll}},
	{name: "merges", ops: []crashOp{put("d", 0, 200, 20), syncAll, del("d", 0, 120), syncAll, del("d", 120, 199), syncAll}},
	{name: "deletes with reuse of space", ops: []crashOp{
		put("d", 0, 12, 3000), syncAll, del("d", 0, 8), syncAll, put("d", 20, 28, 3000), add("l", 50), syncAll,
		cutOut("l", 0.2, 0.8), empty("d"), syncAll, put("d", 40, 50, 3000), syncAll,
	}},
	{name: "reuse in one commit", ops: []crashOp{
		put("d", 0, 12, 3000), syncAll, del("d", 0, 8), put("d", 20, 28, 3000), syncAll, set("l", 1), empty("d"), add("l", 400), syncAll,
	}},
	{name: "growth by a chunk", ops: []crashOp{put("d", 0, 5, 30000), syncAll, put("d", 5, 12, 30000), syncAll, put("d", 3, 6, 100), syncAll}},
	{name: "with and without fresh space", ops: []crashOp{
		add("l", 100), syncAll, set("l", 60), syncAll, put("d", 0, 8, 9000), syncAll, set("l", 60), syncAll, syncAll,
	}},
	{name: "checkpoint", ops: []crashOp{
		add("l", 600), syncAll, checkpointNow, set("l", 130), syncAll, set("l", 400), syncAll, checkpointNow, set("l", 500), checkpointNow, syncAll,
	}},
	{name: "checkpoint beside changes", ops: []crashOp{
		add("l", 600), syncAll, set("l", 130), checkpointNow, set("l", 400), syncAll, set("l", 200), checkpointNow, rollback, set("l", 500), syncAll,
	}},
	{name: "log reset", ops: []crashOp{
		add("l", 60), syncAll, set("l", 30), syncAll, checkpointNow, set("l", 20), syncAll, checkpointNow, set("l", 10), syncAll, checkpointNow,
		set("l", 30), syncAll, set("l", 40), syncAll,
	}},
	{name: "log limit", ops: []crashOp{add("l", 2000), syncAll, set("l", 1), syncAll, set("l", 1), syncAll, set("l", 1), syncAll}},
	{name: "spill", ops: []crashOp{
		add("l", 10), syncAll, put("d", 0, 8, 9000), spill, put("d", 4, 6, 9000), add("l", 3), syncAll, put("d", 8, 16, 9000), spill, rollback,
		put("d", 8, 12, 9000), syncAll,
	}},
	{name: "rollback then sync", ops: []crashOp{
		add("l", 50), syncAll, set("l", 10), add("l", 20), rollback, set("l", 20), syncAll, put("d", 0, 8, 9000), rollback, add("l", 1), syncAll,
	}},
	{name: "rollback after checkpoint", ops: []crashOp{
		add("l", 50), syncAll, set("l", 10), syncAll, checkpointNow, set("l", 7), rollback, add("l", 5), syncAll, set("l", 9), rollback, checkpointNow, set("l", 3), syncAll,
	}},
	{name: "update succeeds", ops: []crashOp{
		add("l", 20), update("succeeds", set("l", 3), put("d", 0, 3, 500)), set("l", 7), update("succeeds", add("l", 2)),
	}},
	{name: "update fails", ops: []crashOp{
		add("l", 20), update("fails", set("l", 3), put("d", 0, 8, 9000)), set("l", 7), update("fails", add("l", 2)), add("l", 1), syncAll,
	}},
	{name: "update panics", ops: []crashOp{
		add("l", 20), update("panics", set("l", 3), spill, put("d", 0, 8, 9000), spill), add("l", 1), syncAll, update("panics"), syncAll,
	}},
	{name: "creation and drop", ops: []crashOp{
		add("l", 5), syncAll, put("d", 0, 3, 10), syncAll, drop("l"), syncAll, put("e", 0, 3, 10), drop("d"), syncAll, add("l", 7), drop("e"), syncAll,
	}},
	{name: "drop undone", ops: []crashOp{add("l", 5), put("d", 0, 3, 2000), syncAll, drop("l"), drop("d"), rollback, add("l", 2), syncAll}},
	{name: "several containers", ops: []crashOp{
		add("l", 5), add("k", 6), put("d", 0, 3, 10), put("e", 0, 3, 10), meta("one"), syncAll,
		set("l", 2), set("k", 2), put("d", 1, 4, 10), put("e", 1, 4, 10), meta("two"), syncAll,
		cutOut("l", 0, 1), cutOut("k", 0.5, 1), del("d", 0, 4), put("e", 0, 6, 10), meta("three"), syncAll,
	}},
	{name: "slices that grow", ops: []crashOp{
		grow("g", 0, 3, 5), syncAll, grow("g", 0, 2, 40), syncAll, grow("g", 0, 1, 1), syncAll, grow("g", 0, 3, 300), grow("g", 0, 3, 300), syncAll,
		grow("g", 0, 1, 9), grow("g", 1, 2, 1100), syncAll, grow("g", 1, 2, 5), syncAll, prune("g", 0, 1), renew("g", 1, 2, 700), grow("g", 2, 3, 7), syncAll,
		grow("g", 1, 2, 1), syncAll, grow("g", 1, 2, 8000), rollback, grow("g", 1, 2, 7), grow("g", 3, 4, 2000), syncAll, checkpointNow, grow("g", 3, 4, 2000), syncAll,
	}},
	{name: "meta", ops: []crashOp{meta("a"), syncAll, meta(strings.Repeat("b", 700)), syncAll, meta(""), syncAll}},
	{name: "close and reopen", ops: []crashOp{
		add("l", 5), closeAndReopen, closeAndReopen, set("l", 2), syncAll, closeAndReopen, put("d", 0, 8, 9000), closeAndReopen, empty("d"), closeAndReopen,
	}},
	{name: "space given back", ops: []crashOp{put("d", 0, 10, 9000), syncAll, empty("d"), syncAll, checkpointNow, put("d", 0, 3, 9000), syncAll, checkpointNow, closeAndReopen}},
	{name: "killed", ops: []crashOp{
		add("l", 50), syncAll, set("l", 10), syncAll, killAndReopen, set("l", 5), syncAll, put("d", 0, 8, 9000), killAndReopen, add("l", 3), syncAll, killAndReopen, killAndReopen,
	}},
	{name: "crashes in recovery", ops: []crashOp{
		add("l", 10), syncAll, set("l", 5), syncAll, put("d", 0, 4, 3000), syncAll, checkpointNow, set("l", 9), syncAll, closeAndReopen,
	}, judge: func(j *crashJudge) {
		j.deep, j.kills, j.fails = [2]float64{0.1, 0.03}, [2]float64{0.2, 0.05}, [2]float64{0.2, 0.05}
	}},
}

// A crashMode is a way to use the library and the disk that goes with it.
type crashMode struct {
	name      string
	opts      Options
	recBuffer int64 // of internalOptions
}

var crashModes = []crashMode{
	{"default", Options{}, 0},
	{"fullpages", Options{FullPages: true}, 0},
	{"nosync", Options{NoSync: true}, 0},
	{"fullpages nosync", Options{FullPages: true, NoSync: true}, 0},
	{"fullpages, large records", Options{FullPages: true}, 1 << 10},
}

// prepare runs the calm part of a script, if it has one.
func (w *crashWorld) prepare(script crashScript) error {
	if len(script.calm) == 0 {
		return nil
	}
	if err := w.reopen(); err != nil {
		return err
	}
	for _, op := range script.calm {
		if err := op(w); err != nil {
			return err
		}
	}
	return nil
}

// run runs a script while the judge watches. It stops at the first error.
func (w *crashWorld) run(script crashScript) error {
	if err := w.prepare(script); err != nil {
		return err
	}
	w.watch(w.disk)
	if w.a == nil {
		if err := w.reopen(); err != nil {
			return err
		}
	}
	for i, op := range script.ops {
		if err := op(w); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	if err := w.commit(true, w.a.Close); err != nil {
		return err
	}
	w.crash(w.disk, "", "closed")
	w.disk.before = nil
	return nil
}

// TestCrash cuts the power at every change of the disk, of directed scripts and of random ones.
func TestCrash(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // little is kept, much is thrown away
	total := newCrashJudge(0, 0, 0, nil)
	var mu sync.Mutex
	base := drawCrashSeed()
	one := func(t *testing.T, seed uint64, mode crashMode, script crashScript) {
		t.Parallel()
		j := newCrashJudge(seed, 8, 2, func(why string) { t.Fatalf("-emd.crash.seed %d: %s", base, why) })
		j.deep, j.kills, j.fails, j.care = [2]float64{0.001, 0.01}, [2]float64{0.05, 0.005}, [2]float64{0.05, 0.005}, 0.2
		if script.judge != nil {
			script.judge(j)
		}
		switch {
		case *crashScripts > 0:
			j.limit, j.sample = 512, 32
			for i := range 2 {
				j.deep[i], j.kills[i], j.fails[i] = 2*j.deep[i], 2*j.kills[i], 2*j.fails[i]
			}
		case raceEnabled: // many times slower, and races do not depend on where the power is cut
			j.limit, j.sample, j.deep, j.kills, j.fails = 2, 1, [2]float64{}, [2]float64{0.02}, [2]float64{0.02}
		case mode.name != crashModes[0].name || script.name == "":
			j.limit, j.sample = 2, 1
		}
		require.NoError(t, newCrashWorld(seed, mode, j).run(script))
		t.Log(t.Name(), j)
		mu.Lock()
		defer mu.Unlock()
		total.add(j)
	}
	t.Run("scripts", func(t *testing.T) {
		for _, mode := range crashModes {
			for i, script := range crashDirected {
				t.Run(mode.name+"/"+script.name, func(t *testing.T) { one(t, base+uint64(i), mode, script) })
			}
			for seed := range uint64(pick(*crashScripts, 2, 1)) {
				script := crashScript{ops: slices.Repeat([]crashOp{randomly}, 60)}
				t.Run(fmt.Sprintf("%s/seed=%d", mode.name, seed), func(t *testing.T) { one(t, base+seed, mode, script) })
			}
		}
	})
	t.Logf("TestCrash: seed %d, %v", base, total)
}

func (j *crashJudge) add(k *crashJudge) {
	j.states += k.states
	j.distinct += k.distinct
	j.points += k.points
	j.complete += k.complete
}

// TestCloseTellsOfFailures lets the disk die at each operation of a Close, whose commit is followed by a checkpoint, for good. A Close that returns nil has
// left everything on the disk, with NoSync too.
func TestCloseTellsOfFailures(t *testing.T) {
	errDead := errors.New("input/output error")
	r := rand.New(rand.NewPCG(1, 2))
	for _, opts := range []Options{{}, {NoSync: true}} {
		closed, failed := false, 0
		for n := 1; !closed; n++ {
			disk := newSimDisk()
			a, err := openWith(crashPath, &opts, crashOptions(disk))
			require.NoError(t, err)
			l, err := List[uint64](a, "list", nil)
			require.NoError(t, err)
			require.NoError(t, l.Append(make([]uint64, 1<<14)...))
			require.NoError(t, a.Sync())
			for i := range l.Len() { // more than the log may hold
				require.NoError(t, l.Set(i, 7))
			}
			start := disk.ops
			disk.before = func(i int, _ string) error {
				if i-start >= n {
					return errDead
				}
				return nil
			}
			err = a.Close()
			closed = disk.ops-start < n
			disk.before = nil
			if closed {
				require.NoError(t, err)
				continue
			}
			if err != nil {
				require.ErrorIs(t, err, errDead)
				failed++
				continue
			}
			b, err := openWith(crashPath, &opts, crashOptions(disk.cut(r)))
			require.NoError(t, err)
			got, err := contentOf(b)
			require.NoError(t, errors.Join(err, b.Close()))
			require.Equal(t, 1<<14, len(got.lists["list"]), "Close returned nil although operation %d and all after it had failed (NoSync %t)", n, opts.NoSync)
			require.EqualValues(t, 7, got.lists["list"][0], "Close returned nil although operation %d and all after it had failed (NoSync %t)", n, opts.NoSync)
		}
		require.Greater(t, failed, 5)
	}
}
