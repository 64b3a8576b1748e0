package emd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// longer is what the tests make of a number: texts of all sizes.
func longer(v uint64) string {
	text := fmt.Sprint(v, " ")
	return strings.Repeat(text, 1+int(v%23)*int(v%19)/4)
}

// fillOld makes the containers that the tests migrate: a list of n numbers and
// a dict of n entries.
func fillOld(t testing.TB, a *Arena, n int) (*EMList[uint64], *EMDict[uint64, uint64]) {
	l, err := List[uint64](a, "list", nil)
	require.NoError(t, err)
	d, err := Dict[uint64, uint64](a, "dict", nil)
	require.NoError(t, err)
	for i := range uint64(n) {
		require.NoError(t, l.Append(i*i))
		require.NoError(t, d.Set(i, i*i))
	}
	return l, d
}

func toText(v uint64) (string, error) { return longer(v), nil }

func toTexts(k, v uint64) (string, string, error) { return fmt.Sprint("key ", k), longer(v), nil }

func requireOld(t testing.TB, a *Arena, n int) {
	t.Helper()
	require.NoError(t, a.View(func() error {
		l, err := List(a, "list", &ListOptions[uint64]{MustExist: true})
		require.NoError(t, err)
		require.Equal(t, n, l.Len())
		for i, v := range l.All() {
			require.EqualValues(t, i*i, v)
		}
		d, err := Dict(a, "dict", &DictOptions[uint64, uint64]{MustExist: true})
		require.NoError(t, err)
		got := maps.Collect(d.All())
		require.Len(t, got, n)
		for k, v := range got {
			require.Equal(t, k*k, v)
		}
		return nil
	}))
	requireTidy(t, a)
}

func requireNew(t testing.TB, a *Arena, n int) {
	t.Helper()
	require.NoError(t, a.View(func() error {
		l, err := List(a, "list", &ListOptions[string]{MustExist: true})
		require.NoError(t, err)
		require.Equal(t, n, l.Len())
		for i, v := range l.All() {
			require.Equal(t, longer(uint64(i*i)), v)
		}
		d, err := Dict(a, "dict", &DictOptions[string, string]{MustExist: true})
		require.NoError(t, err)
		got := maps.Collect(d.All())
		require.Len(t, got, n)
		for i := range uint64(n) {
			require.Equal(t, longer(i*i), got[fmt.Sprint("key ", i)])
		}
		return nil
	}))
	requireTidy(t, a)
}

// hidden returns how many containers the catalogue has under hidden names.
func hidden(t testing.TB, a *Arena) (n int) {
	a.catMu.Lock()
	defer a.catMu.Unlock()
	require.NoError(t, a.catalog.eachBytes(func(key, _ []byte) bool {
		if strings.HasPrefix(string(key), hiddenPrefix) {
			n++
		}
		return true
	}))
	return n
}

// requireTidy requires an arena of the two containers and nothing else.
func requireTidy(t testing.TB, a *Arena) {
	t.Helper()
	var names []string
	for info := range a.Containers() {
		names = append(names, info.Name)
	}
	require.Equal(t, []string{"dict", "list"}, names)
	require.Zero(t, hidden(t, a))
	for name := range a.open {
		require.False(t, strings.HasPrefix(name, hiddenPrefix), "still registered")
	}
	if !a.closed() {
		require.NoError(t, a.verify())
	}
}

func migrateBoth(a *Arena) error {
	ctx := context.Background()
	return errors.Join(
		MigrateList(ctx, a, "list", nil, nil, toText, nil),
		MigrateDict(ctx, a, "dict", nil, nil, toTexts, nil))
}

func TestMigrate(t *testing.T) {
	for name, o := range map[string]testOptions{"default": {}, "tiny": tiny()} {
		for _, n := range []int{0, 1, 100, 20000} {
			t.Run(fmt.Sprintf("%s/n=%d", name, n), func(t *testing.T) {
				t.Parallel()
				n, o := n, o
				if raceEnabled {
					n = min(n, 2000)
				}
				o.opts.NoSync = true
				a := testArena(t, o)
				l, d := fillOld(t, a, n)
				var calls []int64
				count := func(done, total int64) {
					assert.EqualValues(t, n, total)
					calls = append(calls, done)
				}
				require.NoError(t, MigrateList(context.Background(), a, "list", nil, nil, toText, count))
				assert.True(t, slices.IsSorted(calls))
				assert.EqualValues(t, n, calls[len(calls)-1])
				assert.LessOrEqual(t, len(calls), 1+n/500)
				calls = nil
				require.NoError(t, MigrateDict(context.Background(), a, "dict", nil, nil, toTexts, count))
				assert.EqualValues(t, n, calls[len(calls)-1])
				requireNew(t, a, n)
				require.ErrorIs(t, l.Append(1), ErrClosed)
				require.ErrorIs(t, d.Set(1, 1), ErrClosed)
				_, _, err := d.Get(1)
				require.ErrorIs(t, err, ErrClosed)
				assert.Zero(t, l.Len()+d.Len())

				crashed := reopen(t, crashImage(t, a.path), o)
				requireNew(t, crashed, n)
				require.NoError(t, a.Rollback(), "it was a commit")
				requireNew(t, a, n)

				none := func(v uint64) (string, error) { panic("called again") }
				require.NoError(t, MigrateList(context.Background(), a, "list", nil, nil, none, nil))
				require.NoError(t, migrateBoth(a))
				requireNew(t, a, n)
				require.NoError(t, a.Drop("list"))
				require.NoError(t, a.Drop("dict"))
			})
		}
	}
}

// TestMigrateSameType runs fn again where old and new look alike.
func TestMigrateSameType(t *testing.T) {
	a := testArena(t, testOptions{})
	fillOld(t, a, 100)
	for range 3 {
		require.NoError(t, MigrateList(context.Background(), a, "list", nil, nil, func(v uint64) (uint64, error) { return v + 1, nil }, nil))
	}
	l, err := List[uint64](a, "list", nil)
	require.NoError(t, err)
	for i, v := range l.All() {
		require.EqualValues(t, i*i+3, v)
	}
}

// TestMigrateCodecs changes nothing but the codecs.
func TestMigrateCodecs(t *testing.T) {
	a := testArena(t, testOptions{})
	from := &DictOptions[string, wrapped]{ValueCodec: JSON[wrapped]()}
	d, err := Dict(a, "d", from)
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(1, 1))
	want := map[string]wrapped{}
	for i := range 300 {
		want[fmt.Sprint(i)] = newWrapped(r)
	}
	_, err = d.SetAll(maps.All(want))
	require.NoError(t, err)
	to := &DictOptions[string, wrapped]{ValueCodec: sealedBy(t, Flate(JSON[wrapped]()))}
	same := func(k string, v wrapped) (string, wrapped, error) { return k, v, nil }
	require.NoError(t, MigrateDict(context.Background(), a, "d", from, to, same, nil))
	d, err = Dict(a, "d", to)
	require.NoError(t, err)
	assert.Equal(t, want, maps.Collect(d.All()))
	err = MigrateDict(context.Background(), a, "d", to, &DictOptions[string, wrapped]{KeyCodec: Gob[string](), ValueCodec: from.ValueCodec}, same, nil)
	require.ErrorIs(t, err, ErrUnsupportedType)
}

// TestMigrateRefused checks what is refused at once, and changes nothing.
func TestMigrateRefused(t *testing.T) {
	ctx := context.Background()
	a := testArena(t, testOptions{})
	fillOld(t, a, 10)
	require.NoError(t, a.Sync())
	isError(t, MigrateList(ctx, a, "none", nil, nil, toText, nil), a.path, ErrNoContainer)
	isError(t, MigrateDict(ctx, a, "none", nil, nil, toTexts, nil), a.path, ErrNoContainer)
	isError(t, MigrateList(ctx, a, "", nil, nil, toText, nil), a.path)
	isError(t, MigrateList(ctx, a, "dict", nil, nil, toText, nil), a.path, ErrTypeMismatch)
	isError(t, MigrateDict(ctx, a, "list", nil, nil, toTexts, nil), a.path, ErrTypeMismatch)
	err := MigrateList(ctx, a, "list", nil, nil, func(int8) (string, error) { panic("called") }, nil)
	e := isError(t, err, a.path, ErrTypeMismatch)
	assert.Equal(t, "list", e.Container)
	require.ErrorContains(t, err, "int8")
	require.ErrorContains(t, err, "uint64")
	err = MigrateList(ctx, a, "list", nil, nil, func(uint64) (chan int, error) { panic("called") }, nil)
	isError(t, err, a.path, ErrUnsupportedType)

	err = a.Update(func() error {
		isError(t, MigrateList(ctx, a, "list", nil, nil, toText, nil), a.path, ErrInUpdate)
		isError(t, MigrateDict(ctx, a, "dict", nil, nil, toTexts, nil), a.path, ErrInUpdate)
		return nil
	})
	require.ErrorIs(t, err, ErrInUpdate, "an error inside, even a dropped one")
	requireOld(t, a, 10)

	for _, name := range []string{hiddenPrefix, hiddenPrefix + "0"} {
		_, err := List[int](a, name, nil)
		isError(t, err, a.path)
		require.ErrorIs(t, a.Drop(name), ErrNoContainer)
	}
	require.NoError(t, a.Close())
	isError(t, MigrateList(ctx, a, "list", nil, nil, toText, nil), a.path, ErrClosed)
	ro, err := Open(a.path, &Options{ReadOnly: true})
	require.NoError(t, err)
	isError(t, MigrateList(ctx, ro, "list", nil, nil, toText, nil), ro.path, ErrReadOnly)
	require.NoError(t, ro.Close())
}

// TestMigrateFails lets fn and others end a migration at any element: nothing has changed.
func TestMigrateFails(t *testing.T) {
	const n = 3000
	for name, o := range map[string]testOptions{"default": {}, "tiny": tiny()} {
		for _, stop := range []int{0, 1, 1023, 1024, 2999} {
			t.Run(fmt.Sprintf("%s/stop=%d", name, stop), func(t *testing.T) {
				t.Parallel()
				o := o
				o.opts.NoSync = true
				a := testArena(t, o)
				l, d := fillOld(t, a, n)
				require.NoError(t, a.Sync())
				for reason, fails := range map[string]func(cancel func()) error{
					"error":  func(func()) error { return errOfFn },
					"cancel": func(cancel func()) error { cancel(); return nil },
					"panic":  func(func()) error { panic(errOfFn) },
				} {
					ctx, cancel := context.WithCancel(context.Background())
					left := 0
					fn := func() (err error) {
						if left == 0 {
							err = fails(cancel)
						}
						left--
						return err
					}
					outcome := func(migrate func() error) {
						left = stop
						if reason == "panic" {
							assert.PanicsWithValue(t, errOfFn, func() { migrate() })
							return
						}
						err := migrate()
						isError(t, err, a.path)
						require.True(t, errors.Is(err, errOfFn) || errors.Is(err, context.Canceled), err)
					}
					outcome(func() error {
						return MigrateList(ctx, a, "list", nil, nil, func(v uint64) (string, error) { return longer(v), fn() }, nil)
					})
					outcome(func() error {
						return MigrateDict(ctx, a, "dict", nil, nil, func(k, v uint64) (string, uint64, error) { return fmt.Sprint(k), v, fn() }, nil)
					})
					cancel()
					requireOld(t, a, n)
					require.NoError(t, l.Set(0, 0), "handles stay good")
					require.NoError(t, d.Set(0, 0))
				}
				crashed := reopen(t, crashImage(t, a.path), o)
				require.NoError(t, crashed.Rollback())
				require.NoError(t, migrateBoth(crashed))
				requireNew(t, crashed, n)
			})
		}
	}
}

func TestMigrateTwiceTheKey(t *testing.T) {
	a := testArena(t, testOptions{})
	fillOld(t, a, 100)
	err := MigrateDict(context.Background(), a, "dict", nil, nil, func(k, v uint64) (string, uint64, error) {
		return "key " + fmt.Sprint(k/2*2) + strings.Repeat("!", 300), v, nil
	}, nil)
	isError(t, err, a.path)
	require.ErrorContains(t, err, `"key `)
	require.ErrorContains(t, err, "twice")
	assert.Less(t, len(err.Error()), 300)
	requireOld(t, a, 100)
}

// TestMigrateNilKey has keys of an interface type, nil among them.
func TestMigrateNilKey(t *testing.T) {
	a := testArena(t, testOptions{})
	from := &DictOptions[any, int]{KeyCodec: JSON[any]()}
	d, err := Dict(a, "d", from)
	require.NoError(t, err)
	require.NoError(t, d.Set(nil, 1))
	err = MigrateDict(context.Background(), a, "d", from, nil, func(any, int) (string, int, error) { return "", 0, errOfFn }, nil)
	isError(t, err, a.path, errOfFn)
	require.ErrorContains(t, err, "<nil>")
}

// TestMigrateNoAutoCommit checks that the limit holds, and that new space does not count.
func TestMigrateNoAutoCommit(t *testing.T) {
	o := tiny()
	o.opts = Options{NoAutoCommit: true, NoSync: true}
	a := testArena(t, o)
	fillOld(t, a, 3000)
	require.NoError(t, a.Sync())
	commits := a.Stats().OwnCommits
	d, err := Dict[uint64, uint64](a, "dict", nil)
	require.NoError(t, err)
	// The list goes to new space, the dict too; what other containers have
	// pending is in the way.
	for name, fill := range map[string]bool{"room": false, "none": true} {
		if fill {
			l, err := List[[4096]byte](a, "other", nil)
			require.NoError(t, err)
			require.NoError(t, l.Resize(400))
			for i := range l.Len() {
				if err = l.Set(i, [4096]byte{1}); err != nil {
					break
				}
			}
			_ = err
		}
		err := MigrateDict(context.Background(), a, "dict", nil, nil, func(k, v uint64) (uint64, uint64, error) { return k, v, nil }, nil)
		if err != nil {
			require.ErrorIs(t, err, ErrUpdateTooLarge, name)
		} else {
			d, err = Dict[uint64, uint64](a, "dict", nil)
			require.NoError(t, err)
		}
		require.Equal(t, 3000, d.Len(), name)
		require.Zero(t, hidden(t, a))
	}
	assert.Equal(t, commits, a.Stats().OwnCommits)
}

// A gateway stops a migration at an element, while a test does something else.
type gateway struct{ reached, passed chan struct{} }

func newGateway() gateway { return gateway{make(chan struct{}), make(chan struct{})} }

func (g gateway) text(stop uint64) func(uint64) (string, error) {
	n := uint64(0)
	return func(v uint64) (string, error) {
		if n++; n == stop {
			close(g.reached)
			<-g.passed
		}
		return longer(v), nil
	}
}

func (g gateway) texts(stop uint64) func(k, v uint64) (string, string, error) {
	text := g.text(stop)
	return func(k, v uint64) (string, string, error) {
		t, err := text(v)
		return fmt.Sprint("key ", k), t, err
	}
}

// start runs a migration of one of the two until its stop-th element.
func (g gateway) start(a *Arena, kind string, stop uint64) chan error {
	done := make(chan error, 1)
	go func() {
		if kind == "list" {
			done <- MigrateList(context.Background(), a, "list", nil, nil, g.text(stop), nil)
		} else {
			done <- MigrateDict(context.Background(), a, "dict", nil, nil, g.texts(stop), nil)
		}
	}()
	<-g.reached
	return done
}

// TestMigrateMeanwhile does things to the arena in the middle of a migration.
func TestMigrateMeanwhile(t *testing.T) {
	const n = 2500
	change := func(a *Arena, kind string) error { // of the container that migrates
		l, err := List[uint64](a, "list", nil)
		if kind == "list" && err == nil {
			return l.Set(0, 12345)
		}
		d, err := Dict[uint64, uint64](a, "dict", nil)
		if err != nil {
			return err
		}
		return d.Set(5, 25)
	}
	other := func(a *Arena) error {
		m, err := Dict[string, int](a, "other", nil)
		if err != nil {
			return err
		}
		defer func() { _ = a.Drop("other") }()
		return errors.Join(m.Set("x", 1), a.Sync())
	}
	for name, c := range map[string]struct {
		act  func(a *Arena, kind string) error
		want error // of the migration; nil: it succeeds
		then string
	}{
		"sync":     {func(a *Arena, _ string) error { return a.Sync() }, nil, "new"},
		"rollback": {func(a *Arena, _ string) error { return a.Rollback() }, ErrRolledBack, "old"},
		"failed update": {func(a *Arena, _ string) error {
			if err := a.Update(func() error { return errOfFn }); !errors.Is(err, errOfFn) {
				return fmt.Errorf("update: %w", err)
			}
			return nil
		}, ErrRolledBack, "old"},
		"update elsewhere": {func(a *Arena, _ string) error {
			return a.Update(func() error { return a.SetMeta("m", []byte{1}) })
		}, nil, "new"},
		"update of it": {func(a *Arena, kind string) error {
			return a.Update(func() error { return change(a, kind) })
		}, errors.New("an Update of another goroutine changes the container"), "changed"},
		"clear in update": {func(a *Arena, kind string) error {
			err := a.Update(func() (err error) {
				if l, lerr := List[uint64](a, "list", nil); kind == "list" && lerr == nil {
					err = l.Clear()
				} else if d, derr := Dict[uint64, uint64](a, "dict", nil); derr == nil {
					err = d.Clear()
				}
				return errors.Join(err, errOfFn)
			})
			if !errors.Is(err, errOfFn) {
				return fmt.Errorf("update: %w", err)
			}
			return nil
		}, errors.New("an Update of another goroutine changes the container"), "old"},
		"drop":             {func(a *Arena, kind string) error { return a.Drop(kind) }, ErrClosed, ""},
		"another":          {func(a *Arena, _ string) error { return other(a) }, nil, "new"},
		"close":            {func(a *Arena, _ string) error { return a.Close() }, ErrClosed, ""},
		"catalogue":        {func(a *Arena, _ string) error { requireBoth(t, a, n); return a.verify() }, nil, "new"},
		"readers of it":    {func(a *Arena, kind string) error { return readOld(a, kind, n) }, nil, "new"},
		"an own iteration": {func(a *Arena, _ string) error { return a.View(func() error { return readOld(a, "dict", n) }) }, nil, "new"},
	} {
		for _, kind := range []string{"list", "dict"} {
			for _, stop := range []uint64{1, 1025, n} {
				t.Run(fmt.Sprintf("%s/%s/stop=%d", name, kind, stop), func(t *testing.T) {
					t.Parallel()
					o := tiny()
					o.opts.NoSync = true
					a := testArena(t, o)
					fillOld(t, a, n)
					require.NoError(t, a.Sync())
					g := newGateway()
					done := g.start(a, kind, stop)
					require.NoError(t, c.act(a, kind))
					close(g.passed)
					err := <-done
					switch {
					case c.want == nil:
						require.NoError(t, err)
					case errors.Is(err, c.want):
					default:
						require.ErrorContains(t, err, c.want.Error())
					}
					if a.closed() {
						a = reopen(t, a.path, o)
						assert.Zero(t, hidden(t, a), "left by Close")
						require.NoError(t, migrateBoth(a))
						requireNew(t, a, n)
						return
					}
					switch c.then {
					case "old":
						requireOld(t, a, n)
					case "changed":
						requireTidy(t, a)
						require.NoError(t, change(a, kind))
					case "new":
						other := map[string]string{"list": "dict", "dict": "list"}[kind]
						requireTidy(t, a)
						require.NoError(t, readOld(a, other, n))
					}
					require.Zero(t, hidden(t, a))
					require.NoError(t, a.verify())
				})
			}
		}
	}
}

func requireBoth(t testing.TB, a *Arena, n int64) {
	var names []string
	for info := range a.Containers() {
		names = append(names, info.Name)
		assert.Equal(t, n, info.Len)
	}
	assert.Equal(t, []string{"dict", "list"}, names)
}

func readOld(a *Arena, kind string, n int) error {
	count := 0
	if kind == "list" {
		l, err := List(a, "list", &ListOptions[uint64]{MustExist: true})
		if err != nil {
			return err
		}
		for range l.All() {
			count++
		}
	} else {
		d, err := Dict(a, "dict", &DictOptions[uint64, uint64]{MustExist: true})
		if err != nil {
			return err
		}
		for range d.All() {
			count++
		}
	}
	if count != n {
		return fmt.Errorf("%d elements of %s, not %d", count, kind, n)
	}
	return nil
}

// TestMigrateWaiters has writers, and another migration, wait: what returned nil before is in the new container, what waited fails.
func TestMigrateWaiters(t *testing.T) {
	const n = 2500
	for _, fails := range []bool{false, true} {
		for _, kind := range []string{"list", "dict"} {
			t.Run(fmt.Sprintf("%s/fails=%t", kind, fails), func(t *testing.T) {
				t.Parallel()
				a := testArena(t, testOptions{opts: Options{NoSync: true}})
				l, d := fillOld(t, a, n)
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				g := newGateway()
				first := make(chan error, 1)
				migrate := func(g gateway) error {
					if kind == "list" {
						return MigrateList(ctx, a, "list", nil, nil, g.text(1000), nil)
					}
					return MigrateDict(ctx, a, "dict", nil, nil, g.texts(1000), nil)
				}
				go func() { first <- migrate(g) }()
				<-g.reached
				var writers []func() error
				if kind == "list" {
					writers = []func() error{
						func() error { return l.Append(1) }, func() error { return l.Set(1, 1) }, func() error { _, _, err := l.Pop(); return err },
						func() error { return l.Insert(3, 3) }, func() error { return l.Swap(0, 1) },
						func() error { _, err := l.DeleteFunc(func(uint64) bool { return false }); return err },
					}
				} else {
					writers = []func() error{
						func() error { return d.Set(1, 1) }, func() error { _, err := d.Delete(1); return err }, d.Clear,
						func() error {
							_, _, err := d.Compute(9, func(v uint64, _ bool) (uint64, Op) { return v, OpStore })
							return err
						},
						func() error { _, err := d.DeleteFunc(func(_, _ uint64) bool { return false }); return err },
					}
				}
				if kind == "list" && !fails { // the others would find no elements
					writers = append(writers, l.Clear)
				}
				results := make(chan error, len(writers))
				for _, w := range writers {
					go func() { results <- w() }()
				}
				second := make(chan error, 1)
				if !fails {
					other := newGateway()
					close(other.passed)
					go func() { second <- migrate(other) }()
				}
				select {
				case err := <-results:
					require.Fail(t, "a writer did not wait", "%v", err)
				case err := <-second:
					require.Fail(t, "a second migration did not wait", "%v", err)
				case <-time.After(50 * time.Millisecond):
				}
				if fails {
					cancel()
				}
				close(g.passed)
				if fails {
					require.ErrorIs(t, <-first, context.Canceled)
					for range writers {
						require.NoError(t, <-results)
					}
					requireTidy(t, a)
					return
				}
				require.NoError(t, <-first)
				require.NoError(t, <-second, "it finds the new type")
				for range writers {
					require.ErrorIs(t, <-results, ErrClosed)
				}
				requireTidy(t, a)
			})
		}
	}
}

// TestMigrateBusyArena migrates back and forth beside goroutines that read and write whatever they can, commit and roll back.
func TestMigrateBusyArena(t *testing.T) {
	const n = 1500
	o := tiny()
	o.opts.NoSync = true
	a := testArena(t, o)
	fillOld(t, a, n)
	require.NoError(t, a.Sync())
	var stop atomic.Bool
	var wg sync.WaitGroup
	other, err := Dict[int, string](a, "other", nil)
	require.NoError(t, err)
	require.NoError(t, a.Sync())
	for g := range 3 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for !stop.Load() {
				var err error
				switch k := r.IntN(60); {
				case k < 30:
					err = other.Set(r.IntN(1000), strings.Repeat("x", r.IntN(3000)))
				case k < 35:
					err = a.Sync()
				case k < 38:
					err = a.Update(func() error { return other.Set(r.IntN(1000), "updated") })
				case k == 38 && r.IntN(5) == 0:
					err = a.Rollback()
				case k < 45:
					for info := range a.Containers() {
						if info.Name != "other" {
							assert.EqualValues(t, n, info.Len, info.Name)
						}
					}
				case k < 47:
					if l, lerr := List(a, "list", &ListOptions[uint64]{MustExist: true}); lerr == nil {
						err = a.Update(func() error { return l.Set(2, 4) }) // what it is already
						if errors.Is(err, ErrClosed) {
							err = nil
						}
					}
				default:
					if l, lerr := List(a, "list", &ListOptions[uint64]{MustExist: true}); lerr == nil {
						seen := 0
						for i, v := range l.All() {
							assert.EqualValues(t, i*i, v)
							seen++
						}
						if l.Err() == nil && l.Len() != 0 {
							assert.Equal(t, n, seen)
						}
					}
				}
				// Errors of other goroutines during an Update are its own, too.
				if err != nil && !errors.Is(err, ErrRolledBack) && !errors.Is(err, ErrUpdateTooLarge) && !errors.Is(err, ErrTypeMismatch) {
					assert.NoError(t, err)
					return
				}
				time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
			}
		})
	}
	ctx := context.Background()
	roots := map[string]uint64{}
	for i := range uint64(n) {
		roots[longer(i*i)] = i * i
	}
	back := func(s string) (uint64, error) { return roots[s], nil }
	backs := func(k, s string) (i, v uint64, err error) {
		_, err = fmt.Sscanf(k, "key %d", &i)
		return i, roots[s], err
	}
	done, failed := 0, 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) || done < 4; {
		for _, err := range []error{
			MigrateList(ctx, a, "list", nil, nil, toText, nil), MigrateDict(ctx, a, "dict", nil, nil, toTexts, nil),
			MigrateList(ctx, a, "list", nil, nil, back, nil), MigrateDict(ctx, a, "dict", nil, nil, backs, nil),
		} {
			switch {
			case err == nil:
				done++
			case errors.Is(err, ErrRolledBack), strings.Contains(err.Error(), "an Update of another goroutine"):
				failed++
			case errors.Is(err, ErrUpdateTooLarge):
				failed++
			default:
				require.NoError(t, err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d migrations, %d overtaken", done, failed)
	require.NoError(t, a.verify())
	require.NoError(t, a.verifyMemory())
	for {
		err := errors.Join(MigrateList(ctx, a, "list", nil, nil, back, nil), MigrateDict(ctx, a, "dict", nil, nil, backs, nil))
		if err == nil {
			break
		}
		require.NoError(t, err)
	}
	require.NoError(t, a.Drop("other"))
	requireOld(t, a, n)
}

// TestMigrateKilled takes crash images in the middle of a migration that has committed already: the old container is whole, the rest is
// invisible and goes when the file is opened; or if that is rolled back, with the next migration, of whatever container.
func TestMigrateKilled(t *testing.T) {
	const n = 6000
	o := tiny()
	o.opts.NoSync = true
	for _, kind := range []string{"list", "dict"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a := testArena(t, o)
			fillOld(t, a, n)
			require.NoError(t, a.Sync())
			g := newGateway()
			done := g.start(a, kind, n)
			require.NoError(t, a.Sync())
			image := crashImage(t, a.path)
			another := crashImage(t, a.path)
			close(g.passed)
			require.NoError(t, <-done)

			crashed := reopen(t, image, o)
			require.Zero(t, hidden(t, crashed))
			require.NoError(t, crashed.verify())
			require.NoError(t, crashed.Rollback())
			require.Equal(t, 1, hidden(t, crashed))
			requireBoth(t, crashed, n)
			require.NoError(t, crashed.verify())
			require.NoError(t, readOld(crashed, "list", n))
			require.NoError(t, readOld(crashed, "dict", n))
			require.ErrorIs(t, crashed.View(func() error {
				for range crashed.Entries(hiddenPrefix + "1") {
					require.Fail(t, "entries of what is hidden")
				}
				return nil
			}), ErrNoContainer)
			_ = crashed.Err()
			// A Rollback brings back what the next migration, of the other kind, has dropped.
			roll := func() error { return crashed.Rollback() }
			err := errors.Join(
				MigrateDict(context.Background(), crashed, "dict", nil, nil, func(k, v uint64) (int64, int64, error) { return int64(k), 0, roll() }, nil),
				MigrateList(context.Background(), crashed, "list", nil, nil, func(v uint64) (int64, error) { return 0, roll() }, nil))
			require.ErrorIs(t, err, ErrRolledBack)
			require.Equal(t, 1, hidden(t, crashed))
			size := crashed.Stats().File - crashed.Stats().Free
			require.ErrorIs(t, MigrateList(context.Background(), crashed, "none", nil, nil, toText, nil), ErrNoContainer)
			require.Zero(t, hidden(t, crashed))
			require.Less(t, crashed.Stats().File-crashed.Stats().Free, size)
			requireOld(t, crashed, n)
			require.NoError(t, migrateBoth(crashed))
			requireNew(t, crashed, n)

			ro, err := openWith(another, &Options{ReadOnly: true}, o.internalOptions)
			require.NoError(t, err)
			requireBoth(t, ro, n)
			require.NoError(t, ro.Close())
		})
	}
}

// A migrateWorld migrates on a simulated disk.
type migrateWorld struct {
	t    *testing.T
	r    *rand.Rand
	disk *simDisk
	a    *Arena
	in   internalOptions
	n    int

	stage, states int // containers migrated for certain
}

func newMigrateWorld(t *testing.T, seed uint64, limit int64, n int) *migrateWorld {
	w := &migrateWorld{t: t, r: rand.New(rand.NewPCG(seed, 3)), disk: newSimDisk(), n: n}
	w.in = crashOptions(w.disk)
	w.in.dirtyLimit = limit
	a, err := openWith(crashPath, &Options{HashSeed: seed + 1}, w.in)
	require.NoError(t, err)
	w.a = a
	fillOld(t, a, n)
	require.NoError(t, a.Sync())
	return w
}

// check opens what a crash left: each container must be whole, and of the new type if its migration had returned.
func (w *migrateWorld) check(disk *simDisk, what string) {
	w.states++
	in := w.in
	in.fs = disk
	a, err := openWith(crashPath, nil, in)
	require.NoError(w.t, err, what)
	require.NoError(w.t, a.verify(), what)
	requireBoth(w.t, a, int64(w.n))
	newList, newDict := wholeList(w.t, a, w.n), wholeDict(w.t, a, w.n)
	if w.stage > 0 {
		require.True(w.t, newList, what)
	}
	if w.stage > 1 {
		require.True(w.t, newDict, what)
	}
	if w.states%4 == 0 {
		require.NoError(w.t, migrateBoth(a), what)
		requireNew(w.t, a, w.n)
	}
	require.NoError(w.t, a.Close(), what)
}

// wholeList requires the old list or the new one, and says which.
func wholeList(t testing.TB, a *Arena, n int) (isNew bool) {
	if err := readOld(a, "list", n); !errors.Is(err, ErrTypeMismatch) {
		require.NoError(t, err)
		return false
	}
	l, err := List(a, "list", &ListOptions[string]{MustExist: true})
	require.NoError(t, err)
	for i, v := range l.All() {
		require.Equal(t, longer(uint64(i*i)), v)
	}
	require.NoError(t, l.Err())
	return true
}

func wholeDict(t testing.TB, a *Arena, n int) (isNew bool) {
	if err := readOld(a, "dict", n); !errors.Is(err, ErrTypeMismatch) {
		require.NoError(t, err)
		return false
	}
	d, err := Dict(a, "dict", &DictOptions[string, string]{MustExist: true})
	require.NoError(t, err)
	require.Len(t, maps.Collect(d.All()), n)
	require.NoError(t, d.Err())
	return true
}

// TestMigrateCrash cuts the power at every write, sync and change of names of a migration.
func TestMigrateCrash(t *testing.T) {
	for seed := range uint64(pick(0, 4, 2)) {
		for _, limit := range []int64{512 << 10, 64 << 20} {
			t.Run(fmt.Sprintf("seed=%d/limit=%d", seed, limit), func(t *testing.T) {
				t.Parallel()
				n := pick(0, 1500, 700)
				w := newMigrateWorld(t, seed, limit, n)
				w.disk.before = func(i int, op string) error {
					if raceEnabled && i%25 != 0 {
						return nil
					}
					w.check(w.disk.cut(w.r), fmt.Sprintf("step %d (%s)", i, op))
					return nil
				}
				require.NoError(t, MigrateList(context.Background(), w.a, "list", nil, nil, toText, nil))
				w.stage++
				require.NoError(t, MigrateDict(context.Background(), w.a, "dict", nil, nil, toTexts, nil))
				w.stage++
				w.check(w.disk.cut(w.r), "at the end")
				w.disk.before = nil
				requireNew(t, w.a, n)
				require.NoError(t, w.a.Close())
				w.check(w.disk.kill(), "closed")
				t.Logf("%d crash states", w.states)
			})
		}
	}
}

// TestMigrateFailingIO lets every operation of the disk during a migration fail, in turn. On a full disk nothing changes, and there is
// nothing left; after other failures reads go on, and the file has the old container or the new one.
func TestMigrateFailingIO(t *testing.T) {
	for _, fail := range []struct {
		name string
		err  error
	}{{"EIO", errors.New("input/output error")}, {"ENOSPC", fullErrors[0]}} {
		for _, kind := range []string{"list", "dict"} {
			for _, limit := range []int64{512 << 10, 64 << 20} {
				t.Run(fmt.Sprintf("%s/%s/limit=%d", fail.name, kind, limit), func(t *testing.T) {
					t.Parallel()
					for k := 1; migrateFailing(t, k, kind, limit, fail.err); k++ {
					}
				})
			}
		}
	}
}

// migrateFailing lets operation k and those after it fail. It says whether the migration has that many.
func migrateFailing(t *testing.T, k int, kind string, limit int64, cause error) (failed bool) {
	n := pick(0, 1200, 600)
	w := newMigrateWorld(t, 7, limit, n)
	l, err := List[uint64](w.a, "list", nil)
	require.NoError(t, err)
	d, err := Dict[uint64, uint64](w.a, "dict", nil)
	require.NoError(t, err)
	start := w.disk.ops
	w.disk.before = func(i int, op string) error {
		if i-start >= k {
			failed = true
			return cause
		}
		return nil
	}
	if kind == "list" {
		err = MigrateList(context.Background(), w.a, "list", nil, nil, toText, nil)
	} else {
		err = MigrateDict(context.Background(), w.a, "dict", nil, nil, toTexts, nil)
	}
	if !failed {
		require.NoError(t, err)
	}
	what := fmt.Sprintf("operation %d", k)
	w.disk.before = nil
	if err != nil {
		isError(t, err, w.a.path, cause)
	}
	switch {
	case err == nil: // what failed came after the commit
	case w.a.failure() == nil:
		requireOld(t, w.a, n)
		require.Equal(t, n, l.Len(), what)
		require.Equal(t, n, d.Len(), what)
		require.NoError(t, l.Set(0, 0), what)
		require.NoError(t, d.Set(0, 0), what)
		require.NoError(t, w.a.Sync(), what)
		require.NoError(t, w.a.verifyMemory())
	default:
		wholeList(t, w.a, n)
		wholeDict(t, w.a, n)
	}
	_ = w.a.Close() // may report the failure again
	w.check(w.disk.kill(), what)
	return failed
}

// TestMigrateModel migrates random containers to random types and back into a model, with everything that may go wrong.
func TestMigrateModel(t *testing.T) {
	for seed := range modelSeeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 29))
			o := testOptions{opts: Options{NoSync: true, FullPages: r.IntN(3) == 0, HashSeed: seed + 1}}
			o.chunkSize = []int64{0, minChunkSize, 1 << 20}[r.IntN(3)]
			o.dirtyLimit = []int64{0, 512 << 10, 2 << 20}[r.IntN(3)]
			o.logLimit = []int64{0, 64 << 10}[r.IntN(2)]
			o.far = r.IntN(2) == 0
			m := &migrateModel{t: t, r: r, o: o, a: testArena(t, o), form: map[string]int{}, want: map[string]map[uint64]uint64{}}
			for range pick(*stepsFlag/20, 60, 25) {
				m.step()
			}
		})
	}
}

// A migrateModel has dicts and lists of pairs of numbers, stored in one of several forms each.
type migrateModel struct {
	t    *testing.T
	r    *rand.Rand
	o    testOptions
	a    *Arena
	form map[string]int
	want map[string]map[uint64]uint64 // of a list: index to value
	flaw func() error
}

func (m *migrateModel) step() {
	names := []string{"dict 0", "dict 1", "dict 2", "list 0", "list 1"}
	name := names[m.r.IntN(len(names))]
	switch k := m.r.IntN(10); {
	case k < 3:
		m.change(name)
	case k < 4:
		require.NoError(m.t, m.a.Sync())
	case k < 5:
		image := crashImage(m.t, m.a.path)
		a, err := openWith(image, &m.o.opts, m.o.internalOptions)
		require.NoError(m.t, err)
		require.NoError(m.t, a.verify())
		require.Zero(m.t, hidden(m.t, a), "in a crash image between migrations that succeeded")
		require.NoError(m.t, a.Close())
		removeImage(image)
	case k < 6:
		require.NoError(m.t, m.a.Close())
		m.a = reopen(m.t, m.a.path, m.o)
	default:
		m.migrate(name)
	}
	require.NoError(m.t, m.a.verify())
	require.NoError(m.t, m.a.verifyMemory())
	for _, name := range names {
		if m.want[name] != nil {
			require.Equal(m.t, m.want[name], m.read(name), name)
		}
	}
}

// The forms in which a model's containers are stored.
const migrateForms = 4

func numberText(v uint64) string { return fmt.Sprintf("%d%s", v, strings.Repeat(".", int(v%700))) }

func textNumber(s string) (v uint64) {
	fmt.Sscan(strings.TrimRight(s, "."), &v)
	return v
}

type pairKey struct{ Hi, Lo uint32 }

func splitKey(k uint64) pairKey { return pairKey{uint32(k >> 32), uint32(k)} }
func (p pairKey) join() uint64  { return uint64(p.Hi)<<32 | uint64(p.Lo) }

var compressed = &DictOptions[string, string]{KeyCodec: JSON[string](), ValueCodec: Flate(JSON[string]())}
var compressedList = &ListOptions[string]{Codec: Flate(JSON[string]())}

func (m *migrateModel) dictMap(name string) (all func(func(k, v uint64) bool), set func(k, v uint64) error) {
	open := func(err error) { require.NoError(m.t, err, name) }
	switch m.form[name] {
	case 0:
		d, err := Dict[uint64, uint64](m.a, name, nil)
		open(err)
		return d.All(), d.Set
	case 1:
		d, err := Dict[pairKey, string](m.a, name, nil)
		open(err)
		return func(yield func(k, v uint64) bool) {
			for k, v := range d.All() {
				if !yield(k.join(), textNumber(v)) {
					return
				}
			}
		}, func(k, v uint64) error { return d.Set(splitKey(k), numberText(v)) }
	case 2:
		d, err := Dict[string, [9]uint64](m.a, name, nil)
		open(err)
		return func(yield func(k, v uint64) bool) {
			for k, v := range d.All() {
				if !yield(textNumber(k), v[8]) {
					return
				}
			}
		}, func(k, v uint64) error { return d.Set(numberText(k), [9]uint64{8: v}) }
	default:
		d, err := Dict(m.a, name, compressed)
		open(err)
		return func(yield func(k, v uint64) bool) {
			for k, v := range d.All() {
				if !yield(textNumber(k), textNumber(v)) {
					return
				}
			}
		}, func(k, v uint64) error { return d.Set(numberText(k), numberText(v)) }
	}
}

func (m *migrateModel) listOf(name string) (all func(func(i int, v uint64) bool), add func(v uint64) error) {
	open := func(err error) { require.NoError(m.t, err, name) }
	texts := func(l *EMList[string]) (func(func(i int, v uint64) bool), func(v uint64) error) {
		return func(yield func(i int, v uint64) bool) {
			for i, s := range l.All() {
				if !yield(i, textNumber(s)) {
					return
				}
			}
		}, func(v uint64) error { return l.Append(numberText(v)) }
	}
	switch m.form[name] {
	case 0:
		l, err := List[uint64](m.a, name, nil)
		open(err)
		return l.All(), func(v uint64) error { return l.Append(v) }
	case 1:
		l, err := List[string](m.a, name, nil)
		open(err)
		return texts(l)
	case 2:
		l, err := List[[9]uint64](m.a, name, nil)
		open(err)
		return func(yield func(i int, v uint64) bool) {
			for i, s := range l.All() {
				if !yield(i, s[8]) {
					return
				}
			}
		}, func(v uint64) error { return l.Append([9]uint64{8: v}) }
	default:
		l, err := List(m.a, name, compressedList)
		open(err)
		return texts(l)
	}
}

func (m *migrateModel) change(name string) {
	if m.want[name] == nil {
		m.want[name] = map[uint64]uint64{}
	}
	n := m.r.IntN(800)
	if strings.HasPrefix(name, "dict") {
		_, set := m.dictMap(name)
		for range n {
			k, v := m.r.Uint64N(3000)<<m.r.IntN(3), m.r.Uint64()
			m.want[name][k] = v
			require.NoError(m.t, set(k, v))
		}
		return
	}
	_, add := m.listOf(name)
	for range n {
		v := m.r.Uint64()
		m.want[name][uint64(len(m.want[name]))] = v
		require.NoError(m.t, add(v))
	}
}

func (m *migrateModel) read(name string) map[uint64]uint64 {
	got := map[uint64]uint64{}
	require.NoError(m.t, m.a.View(func() error {
		if strings.HasPrefix(name, "dict") {
			all, _ := m.dictMap(name)
			maps.Insert(got, all)
			return nil
		}
		all, _ := m.listOf(name)
		for i, v := range all {
			got[uint64(i)] = v
		}
		return nil
	}))
	return got
}

// migrate takes a container to another form, or fails to.
func (m *migrateModel) migrate(name string) {
	if m.want[name] == nil {
		m.change(name)
	}
	to := m.r.IntN(migrateForms)
	var expected error
	left := -1
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if m.r.IntN(3) == 0 && len(m.want[name]) > 0 && to != m.form[name] {
		left = m.r.IntN(len(m.want[name]))
		expected = []error{errOfFn, context.Canceled, ErrRolledBack}[m.r.IntN(3)]
		if expected == ErrRolledBack {
			require.NoError(m.t, m.a.Sync()) // so that the model knows what comes back
		}
	}
	flaw := func() error {
		left--
		if left != -1 {
			return nil
		}
		switch expected {
		case context.Canceled:
			cancel()
		case ErrRolledBack:
			return m.a.Rollback()
		}
		return map[bool]error{true: errOfFn}[expected == errOfFn]
	}
	err := m.convert(ctx, name, m.form[name], to, flaw)
	if expected != nil && (left < 0 && err != nil) {
		isError(m.t, err, m.a.path, expected)
		require.Zero(m.t, hidden(m.t, m.a))
		require.NoError(m.t, m.a.Sync(), "so that the leftovers are gone from the file too")
		return
	}
	require.NoError(m.t, err)
	m.form[name] = to
}

// convert calls the migration between two forms.
func (m *migrateModel) convert(ctx context.Context, name string, from, to int, flaw func() error) error {
	if !strings.HasPrefix(name, "dict") {
		switch from {
		case 0:
			return convertModelList(ctx, m.a, name, to, nil, func(v uint64) uint64 { return v }, flaw)
		case 1:
			return convertModelList(ctx, m.a, name, to, nil, textNumber, flaw)
		case 2:
			return convertModelList(ctx, m.a, name, to, nil, func(v [9]uint64) uint64 { return v[8] }, flaw)
		default:
			return convertModelList(ctx, m.a, name, to, compressedList, textNumber, flaw)
		}
	}
	switch from {
	case 0:
		return convertModelDict(ctx, m.a, name, to, nil, func(k, v uint64) (uint64, uint64) { return k, v }, flaw)
	case 1:
		return convertModelDict(ctx, m.a, name, to, nil, func(k pairKey, v string) (uint64, uint64) { return k.join(), textNumber(v) }, flaw)
	case 2:
		return convertModelDict(ctx, m.a, name, to, nil, func(k string, v [9]uint64) (uint64, uint64) { return textNumber(k), v[8] }, flaw)
	default:
		return convertModelDict(ctx, m.a, name, to, compressed, func(k, v string) (uint64, uint64) { return textNumber(k), textNumber(v) }, flaw)
	}
}

func convertModelList[T any](ctx context.Context, a *Arena, name string, to int, from *ListOptions[T], number func(T) uint64, flaw func() error) error {
	text := func(v T) (string, error) { return numberText(number(v)), flaw() }
	switch to {
	case 0:
		return MigrateList(ctx, a, name, from, nil, func(v T) (uint64, error) { return number(v), flaw() }, nil)
	case 1:
		return MigrateList(ctx, a, name, from, nil, text, nil)
	case 2:
		return MigrateList(ctx, a, name, from, nil, func(v T) ([9]uint64, error) { return [9]uint64{8: number(v)}, flaw() }, nil)
	default:
		return MigrateList(ctx, a, name, from, compressedList, text, nil)
	}
}

func convertModelDict[K comparable, V any](ctx context.Context, a *Arena, name string, to int, from *DictOptions[K, V],
	numbers func(K, V) (uint64, uint64), flaw func() error) error {
	texts := func(k K, v V) (string, string, error) {
		x, y := numbers(k, v)
		return numberText(x), numberText(y), flaw()
	}
	switch to {
	case 0:
		return MigrateDict(ctx, a, name, from, nil, func(k K, v V) (uint64, uint64, error) {
			x, y := numbers(k, v)
			return x, y, flaw()
		}, nil)
	case 1:
		return MigrateDict(ctx, a, name, from, nil, func(k K, v V) (pairKey, string, error) {
			x, y := numbers(k, v)
			return splitKey(x), numberText(y), flaw()
		}, nil)
	case 2:
		return MigrateDict(ctx, a, name, from, nil, func(k K, v V) (string, [9]uint64, error) {
			x, y := numbers(k, v)
			return numberText(x), [9]uint64{8: y}, flaw()
		}, nil)
	default:
		return MigrateDict(ctx, a, name, from, compressed, texts, nil)
	}
}

// TestMigrateFull gives a migration no space: see also TestMigrateFailingIO.
func TestMigrateFull(t *testing.T) {
	for granted := 0; granted < 40; granted++ {
		a := testArena(t, testOptions{opts: Options{NoSync: true}, internalOptions: internalOptions{chunkSize: minChunkSize}})
		fillOld(t, a, 500)
		left := granted
		a.alloc.mu.Lock()
		a.alloc.refuse = func() bool { left--; return left < 0 }
		a.alloc.mu.Unlock()
		err := MigrateList(context.Background(), a, "list", nil, nil, toText, nil)
		if err == nil {
			err = MigrateDict(context.Background(), a, "dict", nil, nil, toTexts, nil)
		}
		a.alloc.mu.Lock()
		a.alloc.refuse = nil
		a.alloc.mu.Unlock()
		if err != nil {
			isError(t, err, a.path, ErrFull)
		}
		require.NoError(t, a.verify())
		require.Zero(t, hidden(t, a))
		require.NoError(t, migrateBoth(a))
		requireNew(t, a, 500)
		require.NoError(t, a.Close())
	}
}

func TestMigrateFullDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "tmpfs")
	if dir == "" {
		return
	}
	a, err := openWith(filepath.Join(dir, "full.emd"), nil, internalOptions{dirtyLimit: 1 << 20, logLimit: 256 << 10})
	require.NoError(t, err)
	const n = 5000
	fillOld(t, a, n)
	require.NoError(t, a.Sync())
	huge := strings.Repeat("x", 64<<10)
	err = MigrateList(context.Background(), a, "list", nil, nil, func(uint64) (string, error) { return huge, nil }, nil)
	isError(t, err, a.path, ErrFull)
	requireOld(t, a, n)
	require.NoError(t, a.Rollback())
	require.NoError(t, migrateBoth(a))
	requireNew(t, a, n)
	require.NoError(t, a.Close())
}
