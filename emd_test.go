package emd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The model test: random steps on several containers of one file and on Go slices and maps beside them. The steps are operations, Sync,
// Rollback, Update (that succeeds, fails or panics), Drop, Close and reopening, and copies of the two files taken as a crash would leave them.
//
// What the file must hold after a Rollback or a crash is known exactly as long as only the test commits. The library's own commits
// are noticed by Stats.OwnCommits: then the commit lies just before the operation, just after it, or inside one that works element by element.

var (
	seedsFlag = flag.Int("emd.seeds", 0, "seeds of each model test; 0 means 12, or 4 with -short")
	stepsFlag = flag.Int("emd.steps", 0, "steps of each seed of a model test; 0 means 3000, or 600 with -short")
	firstFlag = flag.Uint64("emd.seed", 1, "first seed of each model test")
)

// modelSeeds returns the seeds that a model test runs with.
func modelSeeds() iter.Seq[uint64] {
	n := uint64(pick(*seedsFlag, 12, 4))
	return func(yield func(uint64) bool) {
		for seed := *firstFlag; seed < *firstFlag+n && yield(seed); seed++ {
		}
	}
}

// pick returns a number given as a flag, or else the one for a full or a short run.
func pick(given, full, short int) int {
	switch {
	case given != 0:
		return given
	case testing.Short():
		return short
	}
	return full
}

func TestModel(t *testing.T) {
	for seed := range modelSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			newWorld(t, seed).run(0)
		})
	}
}

// TestModelReaders runs the same steps while other goroutines read. Each value describes itself, so that a torn or misplaced one is noticed.
func TestModelReaders(t *testing.T) {
	for seed := range modelSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			newWorld(t, seed+1<<32).run(3)
		})
	}
}

// A world is one file, the models of its containers, and what is known of its last commit.
type world struct {
	t    *testing.T
	r    *rand.Rand
	path string
	opts Options
	in   internalOptions
	a    *Arena
	objs []object

	base  []modelState // of each object at the last commit
	maybe *ownCommit   // the last commit is one of the library's own, and this object was being changed
	inUpd bool         // inside Update
	short int          // operations to come that find the file as large as it may be
	opErr error        // first error of an operation inside Update
	trace []string
}

// A modelState is what one object holds. Data is a []T, a map[K]V or a map of metas; it is never changed in place.
type modelState struct {
	exists bool
	data   any
}

// ownCommit is a commit that the library made by itself during an operation on object i.
type ownCommit struct {
	i       int
	after   modelState
	between func(before, after, got any) bool // nil when the operation is atomic
}

// An object is a container, or the metas, and its model.
type object interface {
	label() string
	state() modelState
	restore(s modelState)
	attached() bool
	// attach opens the object in w.a, creating it when absent.
	attach(w *world) error
	// detach forgets the handle, which was closed or dropped.
	detach()
	// step does one random operation on the container and the model.
	step(w *world)
	// between returns the rule for intermediate states of the last step, nil when it was atomic.
	between() func(before, after, got any) bool
	// read returns what the container holds in a, which may be another arena than the handle's.
	read(w *world, a *Arena) modelState
	// check compares the container with the model by every reading method.
	check(w *world)
	// probe returns the error of a read.
	probe() error
	// observe reads at random beside writers, which may also close or drop the container, and returns what is wrong.
	observe(r *rand.Rand) error
}

func newWorld(t *testing.T, seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 17))
	choose := func(v ...int64) int64 { return v[r.IntN(len(v))] }
	w := &world{t: t, r: r, path: filepath.Join(tempDir(t), "model.emd")}
	w.opts = Options{NoSync: r.IntN(4) > 0, FullPages: r.IntN(4) == 0, HashSeed: seed + 1}
	w.in = internalOptions{
		heap:       r.IntN(2) == 0 || raceEnabled,
		far:        r.IntN(2) == 0,
		chunkSize:  choose(0, 256<<10, 1<<20),
		dirtyLimit: choose(0, 512<<10, 1<<20, 4<<20),
		logLimit:   choose(0, 64<<10, 256<<10, 1<<20),
	}
	w.opts.NoAutoCommit = w.in.dirtyLimit != 0 && r.IntN(3) == 0
	w.objs = []object{
		&metaObject{want: map[string]string{}},
		worldList("list uint64", u64s),
		worldList("list [3]byte", b3s),
		worldList("list tuple", tuples),
		worldList("list string", strs),
		worldList("list []byte", blobs),
		worldList("list moody", moodies).with(moodyCodec{}),
		worldDict("dict uint64 uint64", u64Keys, u64s),
		worldDict("dict uint32 uint32", u32Keys, u32s),
		worldDict("dict [16]byte [100]byte", b16Keys, b100s),
		worldDict("dict string uint64", strKeys, u64s),
		worldDict("dict string []byte", strKeys, blobs),
		worldDict("dict uint64 string", u64Keys, strs),
		worldDict("dict string struct{}", strKeys, nothings),
		worldDict("dict point tuple", pointKeys, tuples),
		worldDict("dict string moody", strKeys, moodies).with(moodyCodec{}),
		worldSlices("dict uint64 []uint64", u64Keys, slicesOf(u64s)),
		worldSlices("dict string []string", strKeys, slicesOf(shortStrs)),
		worldSlices("dict string []tuple", strKeys, slicesOf(tuples)),
	}
	// A seed works on a few of them, so that each gets many steps.
	r.Shuffle(len(w.objs)-1, func(i, j int) { w.objs[i+1], w.objs[j+1] = w.objs[j+1], w.objs[i+1] })
	w.objs = w.objs[:2+r.IntN(6)]
	for _, o := range w.objs {
		w.base = append(w.base, o.state())
	}
	return w
}

func (w *world) run(readers int) {
	w.open()
	defer func() {
		if w.t.Failed() {
			w.t.Logf("options %+v\ninternal %+v\nlast steps:\n%s", w.opts, w.in, strings.Join(w.trace, "\n"))
		}
	}()
	stop := w.observe(readers)
	defer stop()
	for step := range pick(*stepsFlag, 3000, 600) {
		if step%40 == 0 {
			w.noError(w.a.verifyMemory(), "step %d: a store that nobody marked", step)
		}
		n := w.r.IntN(1000)
		if n >= 880 {
			w.shortage(0)
		}
		switch {
		case n < 880:
			w.operate()
		case n < 905:
			w.sync()
		case n < 925:
			w.rollback()
		case n < 955:
			w.update()
		case n < 965:
			w.drop()
		case n < 975:
			w.crash()
		case n < 985:
			w.reopen()
		default:
			w.check()
		}
	}
	w.shortage(0)
	w.check()
	w.reopen()
	w.check()
	stop()
	w.logf("close")
	require.NoError(w.t, w.a.Close())
}

// observe starts goroutines that read until the returned function is called.
func (w *world) observe(readers int) (stop func()) {
	var done atomic.Bool
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 23))
			for !done.Load() {
				o := w.objs[r.IntN(len(w.objs))]
				if err := o.observe(r); err != nil {
					assert.NoError(w.t, err, "reading %q beside writers", o.label())
					return
				}
				time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond) // leaves processors to the writer
			}
		})
	}
	return func() { done.Store(true); wg.Wait() }
}

func (w *world) logf(format string, args ...any) {
	if len(w.trace) > 60 {
		w.trace = slices.Clone(w.trace[30:])
	}
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

// same fails the test when got differs from want.
func (w *world) same(want, got any, format string, args ...any) {
	if !equalStates(want, got) {
		w.t.Helper()
		require.Fail(w.t, "differs", "%s:\nwant %s\ngot  %s", fmt.Sprintf(format, args...), clip(want), clip(got))
	}
}

func (w *world) noError(err error, format string, args ...any) {
	if err != nil {
		w.t.Helper()
		require.NoError(w.t, err, fmt.Sprintf(format, args...))
	}
}

// equalStates is reflect.DeepEqual, but takes no slice and an empty one for equal at the top.
func equalStates(a, b any) bool {
	if a, b := reflect.ValueOf(a), reflect.ValueOf(b); a.Kind() == reflect.Slice && b.Kind() == reflect.Slice && a.Len() == 0 && b.Len() == 0 {
		return a.Type() == b.Type() && (a.Type() != reflect.TypeFor[[]byte]() || a.IsNil() == b.IsNil())
	}
	return reflect.DeepEqual(a, b)
}

func clip(v any) string {
	s := fmt.Sprintf("%#v", v)
	if len(s) > 600 {
		return fmt.Sprintf("%s... (%d bytes)", s[:600], len(s))
	}
	return s
}

func (w *world) open() {
	a, err := openWith(w.path, &w.opts, w.in)
	require.NoError(w.t, err)
	w.a = a
	for _, o := range w.objs {
		if o.state().exists || o == w.objs[0] {
			w.noError(o.attach(w), "opening %q", o.label())
		}
	}
	require.NoError(w.t, a.verify())
}

// shortage lets some requests for pages find no space during the next n operations.
func (w *world) shortage(n int) {
	if n == 0 && w.short == 0 {
		return
	}
	al := w.a.alloc
	al.mu.Lock()
	defer al.mu.Unlock()
	w.short, al.refuse = n, nil
	if n > 0 {
		granted := w.r.IntN(8)
		al.refuse = func() bool { granted--; return granted < 0 }
		w.logf("shortage: after %d requests no space", granted)
	}
}

// operate does one operation, and finds out whether the library committed meanwhile.
func (w *world) operate() {
	if w.short > 0 {
		w.shortage(w.short - 1)
	} else if w.r.IntN(40) == 0 {
		w.shortage(1 + w.r.IntN(8))
	}
	i := w.r.IntN(len(w.objs))
	o := w.objs[i]
	before, commits := o.state(), w.a.Stats().OwnCommits
	if !o.attached() {
		err := o.attach(w)
		w.logf("open %q: %v", o.label(), err)
		if w.tolerates(err) {
			w.opErr = cmpOr(w.opErr, err)
			return
		}
		w.noError(err, "opening %q", o.label())
		o.restore(modelState{true, o.state().data})
	} else {
		o.step(w)
		if !before.exists {
			// The next write creates a container that a Rollback took away; whether a write that changes nothing does is left open.
			listed := w.listed()[o.label()]
			require.True(w.t, listed || isEmpty(o.state().data), "%q has elements but is not listed", o.label())
			o.restore(modelState{listed, o.state().data})
		}
	}
	if w.a.Stats().OwnCommits == commits {
		return
	}
	require.False(w.t, w.inUpd, "own commit inside Update")
	require.False(w.t, w.opts.NoAutoCommit, "own commit despite NoAutoCommit")
	w.logf("own commit")
	w.committed()
	w.base[i] = before
	w.maybe = &ownCommit{i, o.state(), o.between()}
}

func isEmpty(data any) bool { return reflect.ValueOf(data).Len() == 0 }

// listed returns the names of the containers, and the metas as one that always exists.
func (w *world) listed() map[string]bool {
	names := map[string]bool{w.objs[0].label(): true}
	for info := range w.a.Containers() {
		names[info.Name] = true
	}
	return names
}

// committed notes that the present state is the last commit.
func (w *world) committed() {
	w.maybe = nil
	for i, o := range w.objs {
		w.base[i] = o.state()
	}
}

// tolerates reports whether an operation may fail with err: because there is no space, or because the limit is tiny and the library may not
// commit.
func (w *world) tolerates(err error) bool {
	return w.short > 0 && errors.Is(err, ErrFull) ||
		errors.Is(err, ErrUpdateTooLarge) && w.in.dirtyLimit != 0 && (w.inUpd || w.opts.NoAutoCommit)
}

func (w *world) sync() {
	w.logf("sync")
	w.noError(w.a.Sync(), "Sync")
	w.committed()
	w.noError(w.a.verify(), "verify after Sync")
}

func (w *world) rollback() {
	w.logf("rollback")
	w.noError(w.a.Rollback(), "Rollback")
	w.noError(w.a.verify(), "verify after Rollback")
	for i, o := range w.objs {
		got := o.read(w, w.a)
		w.isCommitted(i, got, "after Rollback")
		o.restore(got)
	}
	w.committed()
}

// isCommitted checks that object i with state got is as it was at the last commit.
func (w *world) isCommitted(i int, got modelState, when string) {
	want := w.base[i]
	if m := w.maybe; m != nil && m.i == i {
		if got.exists == m.after.exists && equalStates(m.after.data, got.data) ||
			got.exists && m.between != nil && m.between(want.data, m.after.data, got.data) {
			return
		}
	}
	w.same(want.data, got.data, "%q %s", w.objs[i].label(), when)
	require.Equal(w.t, want.exists, got.exists, "%q exists %s", w.objs[i].label(), when)
}

var errOfFn = errors.New("error of fn")

// causes are the errors that an Update of the model may meet.
var causes = []error{errOfFn, errMoody, ErrTooLarge, ErrUpdateTooLarge, ErrInUpdate, ErrFull}

// update runs a few operations inside Update, which then succeeds or fails in one of many ways.
func (w *world) update() {
	before := make([]modelState, len(w.objs))
	for i, o := range w.objs {
		before[i] = o.state()
	}
	var end error // what fn returns
	how := w.r.IntN(8)
	fn := func() error {
		w.inUpd, w.opErr = true, nil
		for range w.r.IntN(20) {
			w.operate()
			if w.opErr != nil && w.r.IntN(2) == 0 {
				return w.opErr
			}
		}
		switch how {
		case 0:
			end = errOfFn
		case 1:
			panic(errOfFn)
		case 2:
			end = w.a.Sync()
			require.ErrorIs(w.t, end, ErrInUpdate)
		case 3: // an error that fn drops
			require.ErrorIs(w.t, w.a.Rollback(), ErrInUpdate)
			w.opErr = cmpOr(w.opErr, ErrInUpdate)
		}
		return end
	}
	w.logf("update %d", how)
	var panicked any
	err := func() error {
		defer func() { panicked = recover() }()
		return w.a.Update(fn)
	}()
	w.inUpd = false
	want := cmpOr(w.opErr, end)
	switch {
	case panicked != nil:
		require.Equal(w.t, errOfFn, panicked)
	case want != nil:
		require.Error(w.t, err, "Update forgot %v", want)
		same := func(cause error) bool {
			return errors.Is(err, cause) && (errors.Is(want, cause) || errors.Is(end, cause))
		}
		require.True(w.t, slices.ContainsFunc(causes, same), "Update returned %v, not %v", err, want)
	case w.in.dirtyLimit != 0 && errors.Is(err, ErrUpdateTooLarge):
	default:
		w.noError(err, "Update")
		w.committed()
		w.logf("update committed")
		return
	}
	w.logf("update undone")
	for i, o := range w.objs {
		o.restore(before[i])
	}
	w.committed()
	for i, o := range w.objs {
		w.isCommitted(i, o.read(w, w.a), "after a failed Update")
	}
	w.noError(w.a.verify(), "verify after a failed Update")
}

// cmpOr returns the first error that is not nil.
func cmpOr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// drop drops a container. It is opened again by a later operation, unless a Rollback comes first.
func (w *world) drop() {
	i := 1 + w.r.IntN(len(w.objs)-1)
	o := w.objs[i]
	w.logf("drop %q", o.label())
	before, commits := o.state(), w.a.Stats().OwnCommits
	err := w.a.Drop(o.label())
	switch {
	case w.tolerates(err):
		w.same(before.data, o.read(w, w.a).data, "%q after a failed Drop", o.label())
		return
	case !before.exists:
		if err != nil { // a handle that a Rollback left empty may be dropped or not
			require.ErrorIs(w.t, err, ErrNoContainer)
			return
		}
	default:
		w.noError(err, "Drop(%q)", o.label())
	}
	o.restore(modelState{false, o.state().data})
	if o.attached() {
		require.ErrorIs(w.t, o.probe(), ErrClosed, "handle of a dropped container")
	}
	o.detach()
	if w.a.Stats().OwnCommits != commits {
		w.committed()
		w.base[i] = before
		w.maybe = &ownCommit{i, o.state(), nil}
	}
}

// crash opens a copy of the two files, which must hold the last commit.
func (w *world) crash() {
	w.logf("crash image")
	path := crashImage(w.t, w.path)
	opts, in := w.opts, w.in
	opts.ReadOnly = w.r.IntN(2) == 0
	a, err := openWith(path, &opts, in)
	require.NoError(w.t, err, "opening what a crash leaves")
	w.noError(a.verify(), "verify after a crash")
	for i, o := range w.objs {
		w.isCommitted(i, o.read(w, a), "after a crash")
	}
	w.noError(a.Close(), "Close after a crash")
	removeImage(path)
}

// crashImage copies the file and its log as a crash would leave them, and returns the path of the copy.
func crashImage(t testing.TB, path string, in ...string) string {
	dir, err := os.MkdirTemp(append(in, filepath.Dir(path))[0], "crash")
	require.NoError(t, err)
	to := filepath.Join(dir, "crashed.emd")
	copyFile(t, path, to)
	if _, err := os.Stat(path + "-log"); !errors.Is(err, fs.ErrNotExist) {
		copyFile(t, path+"-log", to+"-log")
	}
	return to
}

func removeImage(path string) { _ = removeAll(filepath.Dir(path)) }

func copyFile(t testing.TB, from, to string) {
	b, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, b, 0o600))
}

func (w *world) reopen() {
	w.logf("reopen")
	w.noError(w.a.Close(), "Close")
	for _, o := range w.objs {
		o.detach()
	}
	w.open()
	w.committed()
	w.check()
}

func (w *world) check() {
	w.logf("check")
	listed := w.listed()
	require.NoError(w.t, w.a.View(func() error {
		for _, o := range w.objs {
			require.Equal(w.t, o.state().exists, listed[o.label()], "%q is listed", o.label())
			if o.attached() {
				o.check(w)
			}
		}
		return nil
	}))
	for info := range w.a.Containers() {
		for _, o := range w.objs {
			if o.label() == info.Name {
				assert.EqualValues(w.t, reflect.ValueOf(o.state().data).Len(), info.Len, "Info.Len of %q", info.Name)
			}
		}
	}
	require.NoError(w.t, w.a.Err())
}

// model is what the models of lists and dicts share.
type objectBase struct {
	name   string
	exists bool
	rule   func(before, after, got any) bool
}

func (m *objectBase) label() string                              { return m.name }
func (m *objectBase) between() func(before, after, got any) bool { return m.rule }

// settle takes an operation's outcome into the model: next when it succeeded. When it failed as it may (expected is the error it was provoked to
// give, or nil), the container must be unchanged, or by rule for operations that work element by element. It returns the new state.
func (m *objectBase) settle(w *world, o object, op string, before, next any, err, expected error) any {
	w.logf("%q %s: %v", m.name, op, err)
	switch {
	case err == nil:
		require.NoError(w.t, expected, "%q %s should have failed", m.name, op)
		return next
	case expected != nil && errors.Is(err, expected), w.tolerates(err):
		w.opErr = cmpOr(w.opErr, err)
		var e *Error
		require.ErrorAs(w.t, err, &e, "%q %s", m.name, op)
		got := o.read(w, w.a).data
		if m.rule == nil || !m.rule(before, next, got) {
			w.same(before, got, "%q after a failed %s", m.name, op)
		}
		return got
	}
	require.NoError(w.t, err, "%q %s", m.name, op)
	return nil
}

// metaObject is the model of the metas.
type metaObject struct {
	objectBase
	want map[string]string
	a    atomic.Pointer[Arena]
}

func (m *metaObject) label() string         { return "the metas" }
func (m *metaObject) state() modelState     { return modelState{true, m.want} }
func (m *metaObject) attached() bool        { return true }
func (m *metaObject) attach(w *world) error { m.a.Store(w.a); return nil }
func (m *metaObject) detach()               { m.a.Store(nil) }
func (m *metaObject) restore(s modelState)  { m.want = s.data.(map[string]string) }

func (m *metaObject) step(w *world) {
	m.name = m.label()
	next := maps.Clone(m.want)
	k := metaKey(w.r.IntN(20))
	v := bytes.Repeat([]byte{byte(w.r.IntN(256))}, w.r.IntN(60))
	if w.r.IntN(3) == 0 {
		v = nil
		delete(next, k)
	} else {
		next[k] = string(v)
	}
	m.want = m.settle(w, m, fmt.Sprintf("Set %s, %d bytes", k, len(v)), m.want, next, w.a.SetMeta(k, v), nil).(map[string]string)
}

func metaKey(i int) string { return fmt.Sprintf("meta %d", i) }

func (m *metaObject) read(w *world, a *Arena) modelState {
	got := map[string]string{}
	for i := range 20 {
		if v, ok := a.Meta(metaKey(i)); ok {
			require.NotNil(w.t, v, "an empty meta is kept")
			got[metaKey(i)] = string(v)
		}
	}
	return modelState{true, got}
}

func (m *metaObject) check(w *world) { w.same(m.want, m.read(w, w.a).data, "metas") }

func (m *metaObject) probe() error { return nil }

func (m *metaObject) observe(r *rand.Rand) error {
	if a := m.a.Load(); a != nil {
		if v, ok := a.Meta(metaKey(r.IntN(20))); ok && len(bytes.TrimLeft(v, string(v[:min(1, len(v))]))) != 0 {
			return fmt.Errorf("torn meta %q", v)
		}
	}
	return nil
}

// listObject is an EMList and the slice that it must equal.
type listObject[T any] struct {
	objectBase
	sp   species[T]
	opts *ListOptions[T]
	want []T
	h    atomic.Pointer[EMList[T]]
}

func worldList[T any](name string, sp species[T]) *listObject[T] {
	return &listObject[T]{objectBase: objectBase{name: name}, sp: sp}
}

func (m *listObject[T]) with(c Codec[T]) *listObject[T] {
	m.opts = &ListOptions[T]{Codec: c}
	return m
}

func (m *listObject[T]) state() modelState { return modelState{m.exists, m.want} }
func (m *listObject[T]) attached() bool    { return m.h.Load() != nil }
func (m *listObject[T]) detach()           { m.h.Store(nil) }

func (m *listObject[T]) restore(s modelState) {
	m.exists, m.want = s.exists, s.data.([]T)
	if !m.exists {
		m.want = nil
	}
}

func (m *listObject[T]) attach(w *world) error {
	l, err := List(w.a, m.name, m.opts)
	if err != nil {
		return err
	}
	w.same(len(m.want), l.Len(), "Len of %q when opened", m.name)
	m.h.Store(l)
	return nil
}

func (m *listObject[T]) read(w *world, a *Arena) modelState {
	opts := ListOptions[T]{MustExist: true}
	if m.opts != nil {
		opts.Codec = m.opts.Codec
	}
	l, err := List(a, m.name, &opts)
	if errors.Is(err, ErrNoContainer) {
		if h := m.h.Load(); h != nil && a == w.a {
			require.Zero(w.t, h.Len(), "Len of %q, rolled back past its creation", m.name)
		}
		return modelState{false, []T(nil)}
	}
	w.noError(err, "List(%q)", m.name)
	got := make([]T, 0, l.Len())
	for i, v := range l.All() {
		require.Equal(w.t, len(got), i, "index in All of %q", m.name)
		got = append(got, v)
	}
	w.noError(l.Err(), "Err of %q", m.name)
	if h := m.h.Load(); h != nil && a == w.a {
		require.Equal(w.t, l.Len(), h.Len(), "two handles of %q", m.name)
	}
	return modelState{true, got}
}

func (m *listObject[T]) check(w *world) {
	l := m.h.Load()
	n := len(m.want)
	require.Equal(w.t, n, l.Len(), "Len of %q", m.name)
	dst := make([]T, n+3)
	k, err := l.CopyTo(dst, 0)
	w.noError(err, "CopyTo")
	w.same(m.want, dst[:k], "CopyTo of %q", m.name)
	back := make([]T, 0, n)
	for i, v := range l.Backward() {
		require.Equal(w.t, n-1-len(back), i, "index in Backward of %q", m.name)
		back = append(back, v)
	}
	slices.Reverse(back)
	w.same(m.want, back, "Backward of %q", m.name)
	w.same(m.want, slices.Collect(l.Values()), "Values of %q", m.name)
	i := w.r.IntN(n + 1)
	j := i + w.r.IntN(n+1-i)
	at := i
	for x, v := range l.Range(i, j) {
		require.Equal(w.t, at, x, "index in Range of %q", m.name)
		w.same(m.want[at], v, "Range of %q at %d", m.name, x)
		at++
	}
	require.Equal(w.t, j, at, "end of Range(%d, %d) of %q", i, j, m.name)
	if n == 0 {
		return
	}
	index := make([]int, w.r.IntN(50))
	for k := range index {
		index[k] = w.r.IntN(n)
	}
	many := make([]T, len(index))
	w.noError(l.GetMany(many, index), "GetMany")
	for k, i := range index {
		w.same(m.want[i], many[k], "GetMany of %q at %d", m.name, i)
		v, err := l.Get(i)
		w.noError(err, "Get(%d) of %q", i, m.name)
		w.same(m.want[i], v, "Get(%d) of %q", i, m.name)
	}
}

func (m *listObject[T]) step(w *world) {
	r, l, n := w.r, m.h.Load(), len(m.want)
	m.rule = nil
	values := func(most int) []T {
		v := make([]T, r.IntN(most))
		for i := range v {
			v[i] = m.sp.make(r, 0)
		}
		return v
	}
	most := min(m.sp.most, 1+r.IntN(m.sp.most))
	grow := n < m.sp.most*8
	op := r.IntN(24)
	if !grow && op < 10 {
		op = 10 + op%6
	}
	i, j := 0, 0
	if n > 0 {
		i = r.IntN(n)
		j = i + r.IntN(min(n+1-i, 1+most))
	}
	before := m.want
	done := func(op string, next []T, err, expected error) {
		m.want = m.settle(w, m, op, before, next, err, expected).([]T)
	}
	switch op {
	case 0, 1:
		v := values(4)
		m.rule = prefixRule[T]
		done("Append", concat(before, v), l.Append(v...), nil)
	case 2:
		v := values(most)
		m.rule = prefixRule[T]
		done("Append many", concat(before, v), l.Append(v...), nil)
	case 3:
		v := values(most)
		m.rule = prefixRule[T]
		done("AppendSeq", concat(before, v), l.AppendSeq(slices.Values(v)), nil)
	case 4:
		v := values(1 + r.IntN(most))
		done(fmt.Sprintf("Insert %d at %d", len(v), i), slices.Insert(slices.Clone(before), i, v...), l.Insert(i, v...), nil)
	case 5:
		to := n + r.IntN(most)
		done(fmt.Sprintf("Resize to %d", to), concat(before, make([]T, to-n)), l.Resize(to), nil)
	case 6, 7:
		if m.sp.bad == nil {
			break
		}
		// A value whose encoding fails, alone and in the middle of good ones.
		v := values(5)
		good := len(v)
		v = append(v, m.sp.bad(r))
		v = append(v, values(3)...)
		m.rule = prefixRule[T]
		switch r.IntN(4) {
		case 0:
			done("Append of a bad value", concat(before, v[:good]), l.Append(v...), errMoody)
		case 1:
			done("AppendSeq of a bad value", concat(before, v[:good]), l.AppendSeq(slices.Values(v)), errMoody)
		case 2:
			m.rule = nil
			done("Insert of a bad value", before, l.Insert(i, v...), errMoody)
		case 3:
			m.rule = nil
			if n > 0 {
				done("Set of a bad value", before, l.Set(i, m.sp.bad(r)), errMoody)
			}
		}
	case 10:
		done(fmt.Sprintf("Delete %d to %d", i, j), slices.Delete(slices.Clone(before), i, j), l.Delete(i, j), nil)
	case 11:
		j := r.IntN(n + 1)
		done(fmt.Sprintf("Delete front to %d", j), slices.Clone(before[j:]), l.Delete(0, j), nil)
	case 12:
		to := r.IntN(n + 1)
		done(fmt.Sprintf("Resize to %d", to), slices.Clone(before[:to]), l.Resize(to), nil)
	case 13:
		if r.IntN(4) == 0 {
			done("Clear", nil, l.Clear(), nil)
		}
	case 14:
		m.deleteFunc(w, l, done)
	case 15:
		v, ok, err := l.Pop()
		require.True(w.t, err != nil || ok == (n > 0), "Pop of %q", m.name)
		if ok {
			w.same(before[n-1], v, "Pop of %q", m.name)
		}
		done("Pop", slices.Clone(before[:max(0, n-1)]), err, nil)
	case 16:
		v := m.sp.make(r, 0)
		next := slices.Clone(before)
		for k := range next[i:j] {
			next[i+k] = v
		}
		done(fmt.Sprintf("Fill %d to %d", i, j), next, l.Fill(i, j, v), nil)
	default:
		if n == 0 {
			break
		}
		next := slices.Clone(before)
		if k := r.IntN(n); op == 17 {
			next[i], next[k] = next[k], next[i]
			done(fmt.Sprintf("Swap %d, %d", i, k), next, l.Swap(i, k), nil)
			break
		}
		next[i] = m.sp.make(r, 0)
		done(fmt.Sprintf("Set %d", i), next, l.Set(i, next[i]), nil)
		v, err := l.Get(i)
		w.noError(err, "Get(%d) of %q", i, m.name)
		w.same(m.want[i], v, "Get(%d) of %q after Set", i, m.name)
	}
	require.Equal(w.t, len(m.want), l.Len(), "Len of %q", m.name)
}

// deleteFunc deletes at random, sometimes with a callback that panics in the middle.
func (m *listObject[T]) deleteFunc(w *world, l *EMList[T], done func(string, []T, error, error)) {
	before := m.want
	mod, panicAt := 2+w.r.IntN(20), -1
	if w.r.IntN(4) == 0 {
		panicAt = w.r.IntN(len(before) + 1)
	}
	calls, deleted := 0, 0
	del := func(v T) bool {
		w.same(before[calls], v, "element %d given to DeleteFunc of %q", calls, m.name)
		if calls == panicAt {
			panic(errOfFn)
		}
		calls++
		if calls%mod == 0 {
			deleted++
			return true
		}
		return false
	}
	var next []T
	for i, v := range before {
		if (i+1)%mod != 0 {
			next = append(next, v)
		}
	}
	m.rule = func(before, _, got any) bool {
		b, g := before.([]T), got.([]T)
		for k := range len(b) + 1 { // the first k are done with
			var kept []T
			for i, v := range b[:k] {
				if (i+1)%mod != 0 {
					kept = append(kept, v)
				}
			}
			if len(kept)+len(b)-k == len(g) && equalStates(concat(kept, b[k:]), g) {
				return true
			}
		}
		return false
	}
	var panicked any
	n, err := func() (int, error) {
		defer func() { panicked = recover() }()
		return l.DeleteFunc(del)
	}()
	if panicked != nil {
		require.Equal(w.t, errOfFn, panicked)
		got := m.read(w, w.a).data
		require.True(w.t, m.rule(before, next, got), "%q after a panic in DeleteFunc", m.name)
		done("DeleteFunc panics", got.([]T), nil, nil)
		return
	}
	if err == nil {
		require.Equal(w.t, deleted, n, "number deleted from %q", m.name)
		require.Equal(w.t, len(before), calls, "calls of DeleteFunc's callback")
	}
	done("DeleteFunc", next, err, nil)
}

func (m *listObject[T]) observe(r *rand.Rand) error {
	l := m.h.Load()
	if l == nil {
		return nil
	}
	bad := func(i int, v T) error { return fmt.Errorf("element %d is torn: %s", i, clip(v)) }
	switch r.IntN(4) {
	case 0:
		last := -1
		for i, v := range l.All() {
			if i != last+1 {
				return fmt.Errorf("All yields index %d after %d", i, last)
			}
			if last = i; !m.sp.ok(v, 0) {
				return bad(i, v)
			}
		}
	case 1:
		for i, v := range l.Backward() {
			if !m.sp.ok(v, 0) {
				return bad(i, v)
			}
		}
	default:
		n := l.Len()
		for range 20 {
			i := r.IntN(n + 1)
			v, inside, err := getRacing(l, i)
			if errors.Is(err, ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			if inside && !m.sp.ok(v, 0) {
				return bad(i, v)
			}
		}
	}
	return nil
}

func (m *listObject[T]) probe() error {
	_, _, err := getRacing(m.h.Load(), 0)
	return err
}

// getRacing is l.Get beside writers that may shrink the list: inside tells that the index was still good.
func getRacing[T any](l *EMList[T], i int) (v T, inside bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			if !strings.Contains(fmt.Sprint(p), "out of range") {
				panic(p)
			}
			inside = false
		}
	}()
	v, err = l.Get(i)
	return v, err == nil, err
}

// prefixRule allows a list that has got some of the appended elements, from the first.
func prefixRule[T any](before, after, got any) bool {
	b, a, g := before.([]T), after.([]T), got.([]T)
	return len(g) >= len(b) && len(g) <= len(a) && equalStates(a[:len(g)], g)
}

func concat[T any](a, b []T) []T { return slices.Concat(a, b) }

// dictObject is an EMDict and the map that it must equal.
type dictObject[K comparable, V any] struct {
	objectBase
	keys keySpecies[K]
	sp   species[V]
	opts *DictOptions[K, V]
	want map[K]V
	h    atomic.Pointer[EMDict[K, V]]

	// Of slices: adds some of another value's elements to a value, and returns what it then is; and checks a loop over a value's elements.
	add   func(d *EMDict[K, V], k K, old, more V) (V, error)
	elems func(d *EMDict[K, V], k K) (got V, err error)
}

// worldSlices is worldDict of slices, to which AppendTo adds.
func worldSlices[K comparable, E any](name string, keys keySpecies[K], sp species[[]E]) *dictObject[K, []E] {
	m := worldDict(name, keys, sp)
	m.add = func(d *EMDict[K, []E], k K, old, more []E) ([]E, error) {
		v := append(slices.Clip(old), more...)
		if len(more) == 0 {
			v = old
		}
		return v, AppendTo(d, k, more...)
	}
	m.elems = func(d *EMDict[K, []E], k K) (got []E, err error) {
		for i, e := range Elems(d, k) {
			if i != len(got) {
				return nil, fmt.Errorf("element %d after %d", i, len(got))
			}
			got = append(got, e)
		}
		return got, d.Err()
	}
	return m
}

func worldDict[K comparable, V any](name string, keys keySpecies[K], sp species[V]) *dictObject[K, V] {
	return &dictObject[K, V]{objectBase: objectBase{name: name}, keys: keys, sp: sp, want: map[K]V{}}
}

func (m *dictObject[K, V]) with(c Codec[V]) *dictObject[K, V] {
	m.opts = &DictOptions[K, V]{ValueCodec: c}
	return m
}

func (m *dictObject[K, V]) state() modelState { return modelState{m.exists, m.want} }
func (m *dictObject[K, V]) attached() bool    { return m.h.Load() != nil }
func (m *dictObject[K, V]) detach()           { m.h.Store(nil) }

func (m *dictObject[K, V]) restore(s modelState) {
	m.exists, m.want = s.exists, s.data.(map[K]V)
	if !m.exists {
		m.want = map[K]V{}
	}
}

func (m *dictObject[K, V]) attach(w *world) error {
	d, err := Dict(w.a, m.name, m.opts)
	if err != nil {
		return err
	}
	w.same(len(m.want), d.Len(), "Len of %q when opened", m.name)
	m.h.Store(d)
	return nil
}

func (m *dictObject[K, V]) read(w *world, a *Arena) modelState {
	opts := DictOptions[K, V]{MustExist: true}
	if m.opts != nil {
		opts.ValueCodec = m.opts.ValueCodec
	}
	d, err := Dict(a, m.name, &opts)
	if errors.Is(err, ErrNoContainer) {
		if h := m.h.Load(); h != nil && a == w.a {
			require.Zero(w.t, h.Len(), "Len of %q, rolled back past its creation", m.name)
		}
		return modelState{false, map[K]V{}}
	}
	w.noError(err, "Dict(%q)", m.name)
	got := make(map[K]V, d.Len())
	for k, v := range d.All() {
		_, twice := got[k]
		require.False(w.t, twice, "All of %q yields %s twice", m.name, clip(k))
		got[k] = v
	}
	w.noError(d.Err(), "Err of %q", m.name)
	require.Equal(w.t, len(got), d.Len(), "Len of %q beside its elements", m.name)
	if h := m.h.Load(); h != nil && a == w.a {
		require.Equal(w.t, d.Len(), h.Len(), "two handles of %q", m.name)
	}
	return modelState{true, got}
}

func (m *dictObject[K, V]) check(w *world) {
	d := m.h.Load()
	got := maps.Collect(d.All())
	w.same(m.want, got, "All of %q", m.name)
	require.Equal(w.t, len(m.want), d.Len(), "Len of %q", m.name)
	for k, want := range m.want {
		v, ok, err := d.Get(k)
		w.noError(err, "Get(%s) of %q", clip(k), m.name)
		require.True(w.t, ok, "Get(%s) of %q", clip(k), m.name)
		w.same(want, v, "Get(%s) of %q", clip(k), m.name)
		if m.elems != nil {
			got, err := m.elems(d, k)
			w.noError(err, "Elems(%s) of %q", clip(k), m.name)
			if reflect.ValueOf(want).Len() > 0 {
				w.same(want, got, "Elems(%s) of %q", clip(k), m.name)
			} else {
				require.Zero(w.t, reflect.ValueOf(got).Len(), "Elems(%s) of %q", clip(k), m.name)
			}
		}
	}
	n := 0
	for k := range d.Keys() {
		_, ok := m.want[k]
		require.True(w.t, ok, "Keys of %q yields %s", m.name, clip(k))
		n++
	}
	require.Equal(w.t, len(m.want), n, "number of Keys of %q", m.name)
	n = 0
	for range d.Values() {
		n++
	}
	require.Equal(w.t, len(m.want), n, "number of Values of %q", m.name)
}

func (m *dictObject[K, V]) step(w *world) {
	r, d := w.r, m.h.Load()
	m.rule = nil
	before := m.want
	universe := m.sp.most * 4
	k := m.keys.key(r.IntN(universe))
	old, present := before[k]
	value := func(k K) V { return m.sp.make(r, m.keys.hash(k)) }
	put := func(v V) map[K]V {
		next := maps.Clone(before)
		next[k] = v
		return next
	}
	drop := func() map[K]V {
		next := maps.Clone(before)
		delete(next, k)
		return next
	}
	done := func(op string, next map[K]V, err, expected error) {
		m.want = m.settle(w, m, op, before, next, err, expected).(map[K]V)
	}
	// had checks what an operation says about the key before it.
	had := func(op string, v V, ok bool, err error) {
		if err != nil {
			return
		}
		require.Equal(w.t, present, ok, "%s of %q finds %s", op, m.name, clip(k))
		w.same(old, v, "%s of %q, %s", op, m.name, clip(k))
	}
	if m.add != nil && r.IntN(3) == 0 {
		for other := range before { // mostly to what is there
			if r.IntN(8) > 0 {
				k = other
			}
			break
		}
		old, present = before[k]
		more := value(k)
		v, err := m.add(d, k, old, more)
		next := put(v)
		if reflect.ValueOf(more).Len() == 0 {
			next = before
		}
		done("AppendTo "+clip(k), next, err, nil)
		return
	}
	switch op := r.IntN(26); op {
	case 0, 1, 2, 3, 4, 5:
		v := value(k)
		done("Set "+clip(k), put(v), d.Set(k, v), nil)
	case 6, 7, 8:
		ok, err := d.Delete(k)
		if err == nil {
			require.Equal(w.t, present, ok, "Delete of %q finds %s", m.name, clip(k))
		}
		done("Delete "+clip(k), drop(), err, nil)
	case 9, 10:
		v, ok, err := d.Get(k)
		had("Get", v, ok, err)
		in, err2 := d.Contains(k)
		require.Equal(w.t, present, in, "Contains of %q, %s", m.name, clip(k))
		done("Get", before, cmpOr(err, err2), nil)
	case 11:
		v := value(k)
		got, loaded, err := d.GetOrSet(k, v)
		want := v
		if present {
			want = old
		}
		if err == nil {
			require.Equal(w.t, present, loaded, "GetOrSet of %q", m.name)
			w.same(want, got, "GetOrSet of %q", m.name)
		}
		done("GetOrSet "+clip(k), put(want), err, nil)
	case 12:
		v := value(k)
		got, ok, err := d.Swap(k, v)
		had("Swap", got, ok, err)
		done("Swap "+clip(k), put(v), err, nil)
	case 13, 14, 15:
		m.compute(w, d, k, done)
	case 16:
		m.deleteFunc(w, d, done)
	case 17, 18:
		next := maps.Clone(before)
		seq := func(yield func(K, V) bool) {
			for range r.IntN(m.sp.most) {
				k := m.keys.key(r.IntN(universe))
				if _, again := next[k]; again && r.IntN(2) == 0 {
					continue
				}
				next[k] = value(k)
				if !yield(k, next[k]) {
					return
				}
			}
		}
		// Drawn first: a key that comes twice takes its last value.
		var pairs []K
		var vals []V
		for k, v := range seq {
			pairs, vals = append(pairs, k), append(vals, v)
		}
		m.rule = pairsRule(pairs, vals)
		n, err := d.SetAll(func(yield func(K, V) bool) {
			for i := range pairs {
				if !yield(pairs[i], vals[i]) {
					return
				}
			}
		})
		if err == nil {
			require.Equal(w.t, len(pairs), n, "SetAll of %q", m.name)
		}
		done(fmt.Sprintf("SetAll of %d", len(pairs)), next, err, nil)
	case 19:
		if r.IntN(5) == 0 {
			done("Clear", map[K]V{}, d.Clear(), nil)
		}
	case 20:
		done("Grow", before, d.Grow(r.IntN(m.sp.most)), nil)
	case 21:
		m.changeInLoop(w, d, done)
	case 22:
		if long, ok := any(strings.Repeat("k", 64<<10+1)).(K); ok {
			done("Set of a long key", before, d.Set(long, value(long)), ErrTooLarge)
		}
	case 23, 24:
		if m.sp.bad == nil {
			break
		}
		v := m.sp.bad(r)
		switch r.IntN(3) {
		case 0:
			done("Set of a bad value", before, d.Set(k, v), errMoody)
		case 1:
			_, _, err := d.Swap(k, v)
			done("Swap of a bad value", before, err, errMoody)
		case 2:
			_, _, err := d.Compute(k, func(V, bool) (V, Op) { return v, OpStore })
			done("Compute of a bad value", before, err, errMoody)
		}
	case 25: // delete a run of keys, so that buckets merge
		next, n := maps.Clone(before), 0
		m.rule = betweenRule[K, V]
		var err error
		for k := range before {
			if n++; n > len(before)/2 {
				break
			}
			if _, err = d.Delete(k); err != nil {
				break
			}
			delete(next, k)
		}
		done("Delete half", next, err, nil)
	}
	require.Equal(w.t, len(m.want), d.Len(), "Len of %q", m.name)
}

func (m *dictObject[K, V]) compute(w *world, d *EMDict[K, V], k K, done func(string, map[K]V, error, error)) {
	before := m.want
	old, present := before[k]
	v, op := m.sp.make(w.r, m.keys.hash(k)), []Op{OpKeep, OpStore, OpStore, OpRemove}[w.r.IntN(4)]
	next := maps.Clone(before)
	want, stays := old, present
	switch op {
	case OpStore:
		next[k], want, stays = v, v, true
	case OpRemove:
		delete(next, k)
		want, stays = *new(V), false
	}
	panics, calls := w.r.IntN(8) == 0, 0
	var panicked any
	actual, ok, err := func() (V, bool, error) {
		defer func() { panicked = recover() }()
		return d.Compute(k, func(got V, found bool) (V, Op) {
			calls++
			require.Equal(w.t, present, found, "Compute of %q finds %s", m.name, clip(k))
			w.same(old, got, "value given to Compute of %q", m.name)
			if panics {
				panic(errOfFn)
			}
			return v, op
		})
	}()
	if panicked != nil {
		require.Equal(w.t, errOfFn, panicked)
		done("Compute panics", before, nil, nil)
		got, _, err := d.Get(k)
		w.noError(err, "Get after a panic in Compute of %q", m.name)
		w.same(old, got, "%q after a panic in Compute", m.name)
		return
	}
	if err == nil {
		require.Equal(w.t, 1, calls, "calls of Compute's callback")
		require.Equal(w.t, stays, ok, "Compute %d of %q, %s", op, m.name, clip(k))
		if op != OpRemove {
			w.same(want, actual, "Compute %d of %q, %s", op, m.name, clip(k))
		}
	}
	done(fmt.Sprintf("Compute %d %s", op, clip(k)), next, err, nil)
}

// deleteFunc deletes at random, sometimes with a callback that panics in the middle.
func (m *dictObject[K, V]) deleteFunc(w *world, d *EMDict[K, V], done func(string, map[K]V, error, error)) {
	before := m.want
	mod, panicAt := 1+w.r.Uint64N(6), -1
	if w.r.IntN(4) == 0 {
		panicAt = w.r.IntN(len(before) + 1)
	}
	gone := func(k K) bool { return m.keys.hash(k)%7 < mod }
	seen, n := map[K]bool{}, 0
	del := func(k K, v V) bool {
		require.False(w.t, seen[k], "DeleteFunc of %q calls twice for %s", m.name, clip(k))
		w.same(before[k], v, "value given to DeleteFunc of %q", m.name)
		if len(seen) == panicAt {
			panic(errOfFn)
		}
		if seen[k] = true; gone(k) {
			n++
		}
		return gone(k)
	}
	next := maps.Clone(before)
	maps.DeleteFunc(next, func(k K, _ V) bool { return gone(k) })
	m.rule = betweenRule[K, V]
	var panicked any
	deleted, err := func() (int, error) {
		defer func() { panicked = recover() }()
		return d.DeleteFunc(del)
	}()
	if panicked != nil {
		require.Equal(w.t, errOfFn, panicked)
		got := m.read(w, w.a).data
		require.True(w.t, m.rule(before, next, got), "%q after a panic in DeleteFunc", m.name)
		done("DeleteFunc panics", got.(map[K]V), nil, nil)
		return
	}
	if err == nil {
		require.Equal(w.t, n, deleted, "number deleted from %q", m.name)
		require.Equal(w.t, len(before), len(seen), "calls of DeleteFunc's callback for %q", m.name)
	}
	done("DeleteFunc", next, err, nil)
}

// changeInLoop deletes, overwrites and adds from the body of a loop over All: what is there from start to end comes exactly once.
func (m *dictObject[K, V]) changeInLoop(w *world, d *EMDict[K, V], done func(string, map[K]V, error, error)) {
	before, next := m.want, maps.Clone(m.want)
	m.rule = betweenRule[K, V]
	seen, deleted, held := map[K]bool{}, map[K]bool{}, map[K][]V{}
	var err error
	for k, v := range d.All() {
		require.False(w.t, seen[k], "All of %q yields %s twice", m.name, clip(k))
		seen[k] = true
		was := held[k] // during the loop; which of them it yields is left open
		if old, ok := before[k]; ok {
			was = append(was, old)
		}
		require.True(w.t, slices.ContainsFunc(was, func(old V) bool { return equalStates(old, v) }), "All of %q while changing: %s has never been %s", m.name, clip(k), clip(v))
		if len(seen) > 200 && w.r.IntN(4) > 0 {
			continue
		}
		other := m.keys.key(w.r.IntN(m.sp.most * 4))
		if w.r.IntN(2) == 0 {
			other = k
		}
		if w.r.IntN(2) == 0 {
			_, err = d.Delete(other)
			if err == nil {
				delete(next, other)
				deleted[other] = true
			}
		} else {
			v := m.sp.make(w.r, m.keys.hash(other))
			if err = d.Set(other, v); err == nil {
				next[other] = v
				held[other] = append(held[other], v)
			}
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		for k := range before {
			require.True(w.t, seen[k] || deleted[k], "All of %q misses %s while others change", m.name, clip(k))
		}
	}
	m.rule = func(before, _, got any) bool { return betweenRule[K, V](before, next, got) || len(deleted) > 0 }
	done("change in a loop", next, err, nil)
}

func (m *dictObject[K, V]) probe() error {
	_, err := m.h.Load().Contains(m.keys.key(0))
	return err
}

func (m *dictObject[K, V]) observe(r *rand.Rand) error {
	d := m.h.Load()
	if d == nil {
		return nil
	}
	torn := func(k K, v V) error {
		return fmt.Errorf("the value of %s is torn or another's: %s", clip(k), clip(v))
	}
	if r.IntN(3) == 0 {
		for k, v := range d.All() {
			if !m.sp.ok(v, m.keys.hash(k)) {
				return torn(k, v)
			}
		}
		return nil
	}
	for range 20 {
		k := m.keys.key(r.IntN(m.sp.most * 4))
		if m.elems != nil && r.IntN(3) == 0 {
			v, err := m.elems(d, k)
			if err != nil && !errors.Is(err, ErrClosed) {
				return err
			}
			if !m.sp.ok(v, m.keys.hash(k)) {
				return torn(k, v)
			}
			continue
		}
		v, ok, err := d.Get(k)
		if errors.Is(err, ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if ok && !m.sp.ok(v, m.keys.hash(k)) {
			return torn(k, v)
		}
	}
	return nil
}

// betweenRule allows a dict in which some keys are as before and the others as after.
func betweenRule[K comparable, V any](before, after, got any) bool {
	b, a, g := before.(map[K]V), after.(map[K]V), got.(map[K]V)
	for k, v := range g {
		bv, inB := b[k]
		av, inA := a[k]
		if !(inB && equalStates(bv, v) || inA && equalStates(av, v)) {
			return false
		}
	}
	for k := range b {
		_, inA := a[k]
		if _, inG := g[k]; inA && !inG {
			return false
		}
	}
	return true
}

// pairsRule allows a dict into which some of the pairs were set, from the first.
func pairsRule[K comparable, V any](keys []K, vals []V) func(before, after, got any) bool {
	return func(before, _, got any) bool {
		m := maps.Clone(before.(map[K]V))
		for i, k := range keys {
			if equalStates(m, got) {
				return true
			}
			m[k] = vals[i]
		}
		return equalStates(m, got)
	}
}

// A species makes and recognises the values of one type. A value belongs to an owner: the hash of its key in a dict, 0 in a list.
type species[T any] struct {
	most int // how many to put into a container at once
	make func(r *rand.Rand, owner uint64) T
	ok   func(v T, owner uint64) bool
	bad  func(r *rand.Rand) T // a value that cannot be encoded; may be nil
}

// A keySpecies makes the keys of one type; numbers and keys correspond one to one.
type keySpecies[K comparable] struct {
	key  func(n int) K
	hash func(k K) uint64
}

func mixUp(x, y uint64) uint64 {
	x = (x ^ y) * 0x9E3779B97F4A7C15
	return x ^ x>>29 ^ x>>51
}

// body fills b with bytes that follow from seed and owner.
func fillBody(b []byte, seed uint32, owner uint64) {
	for i := range b {
		b[i] = byte(mixUp(uint64(seed)+uint64(i/8)<<32, owner) >> (i % 8 * 8))
	}
}

// text makes n bytes: length and seed, then a body that follows from them. Less than 8 bytes are all zero.
func textOf(n int, seed uint32, owner uint64) []byte {
	b := make([]byte, n)
	if n >= 8 {
		binary.LittleEndian.PutUint32(b, uint32(n))
		binary.LittleEndian.PutUint32(b[4:], seed)
		fillBody(b[8:], seed, owner)
	}
	return b
}

func isText(b []byte, owner uint64) bool {
	if len(b) < 8 {
		return len(bytes.Trim(b, "\x00")) == 0
	}
	return bytes.Equal(b, textOf(len(b), binary.LittleEndian.Uint32(b[4:]), owner))
}

// textLen draws mostly short lengths, some of whole pages, and a few of many pages.
func textLen(r *rand.Rand) int {
	switch n := r.IntN(1000); {
	case n < 700:
		return r.IntN(60)
	case n < 930:
		return r.IntN(700)
	case n < 990:
		return r.IntN(9000)
	}
	return r.IntN(120_000)
}

type tuple struct {
	A uint8
	B uint64
	C uint16
	D [3]byte
	E bool
	F float32
}

type point struct{ X, Y int32 }

func tupleOf(b, owner uint64) tuple {
	h := mixUp(b, owner)
	return tuple{A: uint8(h), B: b, C: uint16(h >> 8), D: [3]byte{byte(h >> 24), byte(h >> 32), 7}, E: h>>40&1 == 1, F: float32(h >> 44)}
}

func b3Of(x uint16, owner uint64) [3]byte {
	return [3]byte{byte(x), byte(x >> 8), byte(mixUp(uint64(x), owner))}
}

var (
	u64s = species[uint64]{
		most: 700,
		make: func(r *rand.Rand, owner uint64) uint64 { x := r.Uint64() << 16; return x | mixUp(x, owner)&0xFFFF },
		ok:   func(v, owner uint64) bool { return v == 0 && owner == 0 || mixUp(v&^0xFFFF, owner)&0xFFFF == v&0xFFFF },
	}
	u32s = species[uint32]{
		most: 700,
		make: func(r *rand.Rand, owner uint64) uint32 {
			x := r.Uint32() << 16
			return x | uint32(mixUp(uint64(x), owner)&0xFFFF)
		},
		ok: func(v uint32, owner uint64) bool {
			return v == 0 && owner == 0 || uint32(mixUp(uint64(v&^0xFFFF), owner)&0xFFFF) == v&0xFFFF
		},
	}
	b3s = species[[3]byte]{
		most: 1500,
		make: func(r *rand.Rand, owner uint64) [3]byte { return b3Of(uint16(r.Uint32()), owner) },
		ok: func(v [3]byte, owner uint64) bool {
			return v == [3]byte{} && owner == 0 || v == b3Of(uint16(v[0])|uint16(v[1])<<8, owner)
		},
	}
	b100s = species[[100]byte]{
		most: 200,
		make: func(r *rand.Rand, owner uint64) [100]byte { return [100]byte(textOf(100, r.Uint32(), owner)) },
		ok:   func(v [100]byte, owner uint64) bool { return v == [100]byte{} && owner == 0 || isText(v[:], owner) },
	}
	tuples = species[tuple]{
		most: 400,
		make: func(r *rand.Rand, owner uint64) tuple { return tupleOf(r.Uint64(), owner) },
		ok:   func(v tuple, owner uint64) bool { return v == (tuple{}) && owner == 0 || v == tupleOf(v.B, owner) },
	}
	strs = species[string]{
		most: 80,
		make: func(r *rand.Rand, owner uint64) string { return string(textOf(textLen(r), r.Uint32(), owner)) },
		ok:   func(v string, owner uint64) bool { return isText([]byte(v), owner) },
	}
	blobs = species[[]byte]{
		most: 80,
		make: func(r *rand.Rand, owner uint64) []byte {
			if r.IntN(8) == 0 {
				return nil
			}
			return textOf(textLen(r), r.Uint32(), owner)
		},
		ok: isText,
	}
	shortStrs = species[string]{
		most: 80,
		make: func(r *rand.Rand, owner uint64) string { return string(textOf(r.IntN(40), r.Uint32(), owner)) },
		ok:   strs.ok,
	}
	nothings = species[struct{}]{
		most: 300,
		make: func(*rand.Rand, uint64) struct{} { return struct{}{} },
		ok:   func(struct{}, uint64) bool { return true },
	}
	moodies = species[moody]{
		most: 80,
		make: func(r *rand.Rand, owner uint64) moody { return moody(textOf(textLen(r), r.Uint32(), owner)) },
		ok:   func(v moody, owner uint64) bool { return isText([]byte(v), owner) },
		bad:  func(r *rand.Rand) moody { return moody("bad" + strings.Repeat("!", r.IntN(500))) },
	}

	u64Keys = keySpecies[uint64]{
		key:  func(n int) uint64 { return uint64(n) * 0x9E3779B97F4A7C15 },
		hash: func(k uint64) uint64 { return mixUp(k, 3) | 1 },
	}
	u32Keys = keySpecies[uint32]{
		key:  func(n int) uint32 { return uint32(n) },
		hash: func(k uint32) uint64 { return mixUp(uint64(k), 5) | 1 },
	}
	b16Keys = keySpecies[[16]byte]{
		key: func(n int) (k [16]byte) {
			binary.LittleEndian.PutUint32(k[n%3*4:], uint32(n))
			k[15] = byte(n % 3)
			return k
		},
		hash: func(k [16]byte) uint64 { return hashText(string(k[:])) },
	}
	pointKeys = keySpecies[point]{
		key:  func(n int) point { return point{int32(n % 10), -int32(n / 10)} },
		hash: func(k point) uint64 { return mixUp(uint64(uint32(k.X)), uint64(uint32(k.Y))) | 1 },
	}
	// Of keys as strings some are short, some do not fit a slot, and one in a thousand is as long as allowed.
	strKeys = keySpecies[string]{
		key: func(n int) string {
			k := fmt.Sprint(n)
			switch {
			case n == 0:
				return ""
			case n%1000 == 999:
				return k + strings.Repeat("x", 64<<10-len(k))
			case n%50 == 49:
				return k + strings.Repeat("y", n*7)
			case n%3 == 0:
				return k + strings.Repeat("z", n%40)
			}
			return k
		},
		hash: hashText,
	}
)

// slicesOf makes slices of a species, mostly short.
func slicesOf[E any](sp species[E]) species[[]E] {
	return species[[]E]{
		most: 60,
		make: func(r *rand.Rand, owner uint64) []E {
			n := r.IntN([]int{1, 2, 3, 4, 20, 20, 200, 2000}[r.IntN(8)])
			v := make([]E, n)
			for i := range v {
				v[i] = sp.make(r, owner)
			}
			return v
		},
		ok: func(v []E, owner uint64) bool {
			return !slices.ContainsFunc(v, func(e E) bool { return !sp.ok(e, owner) })
		},
	}
}

func hashText(s string) uint64 {
	h := uint64(len(s))
	for i := range min(len(s), 64) {
		h = mixUp(h, uint64(s[i]))
	}
	return h | 1
}

// moody is a string whose codec refuses some values.
type moody string

var errMoody = errors.New("not in the mood")

type moodyCodec struct{}

func (moodyCodec) Name() string { return "moody" }

// Append leaves half of a bad value behind, as careless codecs do.
func (moodyCodec) Append(dst []byte, v moody) ([]byte, error) {
	if strings.HasPrefix(string(v), "bad") {
		return append(dst, v[:len(v)/2]...), errMoody
	}
	return append(dst, v...), nil
}

func (moodyCodec) Decode(src []byte) (moody, error) {
	if bytes.HasPrefix(src, []byte("bad")) {
		return "", errMoody
	}
	return moody(src), nil
}

// TestWriters changes two dicts and lists from several goroutines, each with keys of its own and counters shared by all, beside commits.
func TestWriters(t *testing.T) {
	for seed := range modelSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(tempDir(t), "writers.emd")
			in := internalOptions{heap: seed%2 == 0 || raceEnabled, far: seed%3 == 0, chunkSize: 256 << 10, dirtyLimit: 1 << 20, logLimit: 128 << 10}
			opts := &Options{NoSync: true, HashSeed: seed}
			a, err := openWith(path, opts, in)
			require.NoError(t, err)
			writeTogether(t, a, seed)
			require.NoError(t, a.verify())
			require.NoError(t, a.Close())
			a, err = openWith(path, opts, in)
			require.NoError(t, err)
			require.NoError(t, a.verify())
			writeTogether(t, a, seed+1000)
			require.NoError(t, a.Close())
		})
	}
}

// writers is how many goroutines writeTogether runs.
const writers = 4

func writeTogether(t *testing.T, a *Arena, seed uint64) {
	numbers, err := Dict[uint64, uint64](a, "numbers", nil)
	require.NoError(t, err)
	names, err := Dict[string, string](a, "names", nil)
	require.NoError(t, err)
	shared, err := List[uint64](a, "shared", nil)
	require.NoError(t, err)
	require.NoError(t, cmpOr(numbers.Clear(), names.Clear(), shared.Clear()))
	var (
		models  [writers]map[uint64]uint64
		added   atomic.Uint64
		counted [8]atomic.Uint64
		wg      sync.WaitGroup
		done    = make(chan struct{})
	)
	steps := pick(*stepsFlag, 4000, 800)
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			m := map[uint64]uint64{}
			models[w] = m
			for range steps {
				// A key tells its writer; counters lie above all keys.
				k := uint64(r.IntN(3000)*writers + w)
				v := u64s.make(r, k)
				var err error
				switch r.IntN(10) {
				case 0, 1, 2, 3:
					err = cmpOr(numbers.Set(k, v), names.Set(fmt.Sprint("name ", k), fmt.Sprint(v)))
					m[k] = v
				case 4, 5:
					var ok, ok2 bool
					ok, err = numbers.Delete(k)
					if err == nil {
						ok2, err = names.Delete(fmt.Sprint("name ", k))
					}
					_, had := m[k]
					assert.Equal(t, had, ok && ok2 || err != nil, "Delete(%d)", k)
					delete(m, k)
				case 6:
					c := r.Uint64N(8)
					counted[c].Add(1)
					_, _, err = numbers.Compute(1<<40+c, func(v uint64, ok bool) (uint64, Op) { return v + 1, OpStore })
				case 7:
					added.Add(1)
					err = shared.Append(u64s.make(r, 0))
				default:
					var got uint64
					var ok bool
					got, ok, err = numbers.Get(k)
					want, had := m[k]
					assert.Equal(t, had, ok, "Get(%d)", k)
					assert.Equal(t, want, got, "Get(%d)", k)
				}
				if !assert.NoError(t, err) || t.Failed() {
					return
				}
			}
		})
	}
	var sync sync.WaitGroup
	sync.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			default:
				assert.NoError(t, a.Sync())
				for _, v := range shared.All() {
					assert.True(t, u64s.ok(v, 0), "torn element %#x", v)
				}
				for k, v := range numbers.All() {
					assert.True(t, k >= 1<<40 || u64s.ok(v, k), "torn value %#x of %d", v, k)
				}
			}
		}
	})
	wg.Wait()
	close(done)
	sync.Wait()
	want := map[uint64]uint64{}
	for _, m := range models {
		maps.Copy(want, m)
	}
	wantNames := map[string]string{}
	for k, v := range want {
		wantNames[fmt.Sprint("name ", k)] = fmt.Sprint(v)
	}
	for c := range counted {
		if n := counted[c].Load(); n > 0 {
			want[1<<40+uint64(c)] = n
		}
	}
	require.Equal(t, want, maps.Collect(numbers.All()))
	require.Equal(t, wantNames, maps.Collect(names.All()))
	require.EqualValues(t, added.Load(), shared.Len())
}
