package linear

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/emd-go/emd"
)

var (
	runFor    = flag.Duration("linear.for", time.Second, "how long to check each kind of dict")
	firstSeed = flag.Uint64("linear.seed", rand.Uint64(), "seed of the first dict; where goroutines meet is left to chance")
)

const (
	clients = 3
	steps   = 200 // of a client in a history
	rounds  = 25  // histories of one dict
)

func TestLinearizable(t *testing.T) {
	t.Run(words.name, func(t *testing.T) { checkDicts(t, words) })
	t.Run(wide.name, func(t *testing.T) { checkDicts(t, wide) })
	t.Run(texts.name, func(t *testing.T) { checkDicts(t, texts) })
}

func checkDicts[K comparable, V any](t *testing.T, kind kind[K, V]) {
	histories := 0
	began := time.Now()
	ok := true
	for seed := *firstSeed; ok && time.Since(began) < *runFor; seed++ {
		ok = t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			run := &run{subject: newDict(t, kind, r), r: r}
			for i := 0; i < rounds && (i == 0 || time.Since(began) < *runFor); i++ {
				h := run.history(t)
				if res, info := porcupine.CheckOperationsVerbose(modelFrom(h.start), h.ops, 0); res != porcupine.Ok {
					h.explain(t, info)
				}
				histories++
			}
		})
	}
	t.Logf("%d histories", histories)
}

// A run makes histories of one subject, one after the other.
type run struct {
	subject
	r     *rand.Rand
	start [keyCount]value // of the next history
	last  atomic.Int32    // value written
}

// A history is what several clients did at once, with a look at all keys in the end.
type history struct {
	start [keyCount]value
	ops   []porcupine.Operation
}

func (r *run) history(t *testing.T) history {
	if r.r.IntN(8) == 0 {
		r.reopen(t)
	}
	require.NoError(t, r.sync()) // the model starts with everything committed
	began := time.Now()
	all := make([]*client, clients)
	for i := range all {
		all[i] = &client{run: r, id: i, r: rand.New(rand.NewPCG(r.r.Uint64(), 0)), began: began}
	}
	r.atOnce(t, all)

	h := history{start: r.start}
	end := &client{run: r, id: clients, began: began}
	require.NoError(t, end.getMany())
	for _, c := range append(all, end) {
		h.ops = append(h.ops, c.ops...)
	}
	for _, o := range end.ops {
		r.start[o.Input.(op).key] = o.Input.(op).seen
	}
	h.checkRolledBack(t)
	return h
}

// atOnce runs the clients, beside a goroutine that churns until they are done.
func (r *run) atOnce(t *testing.T, all []*client) {
	var waiting, working sync.WaitGroup
	var done atomic.Bool
	waiting.Add(len(all))
	errs := make([]error, len(all)+1)
	for i, c := range all {
		working.Go(func() {
			waiting.Done()
			waiting.Wait()
			for s := 0; s < steps && errs[i] == nil; s++ {
				errs[i] = c.step()
			}
		})
	}
	churner := rand.New(rand.NewPCG(r.r.Uint64(), 0))
	var churning sync.WaitGroup
	churning.Go(func() {
		for !done.Load() && errs[len(all)] == nil {
			if err := r.churn(churner); !errors.Is(err, emd.ErrRolledBack) {
				errs[len(all)] = err
			}
		}
	})
	working.Wait()
	done.Store(true)
	churning.Wait()
	require.NoError(t, errors.Join(errs...))
}

// checkRolledBack wants a reason for each operation that failed with ErrRolledBack.
func (h history) checkRolledBack(t *testing.T) {
	for _, o := range h.ops {
		if !o.Input.(op).rolledBack {
			continue
		}
		require.True(t, slices.ContainsFunc(h.ops, func(p porcupine.Operation) bool {
			e := p.Input.(op).effect
			return (e == undo || e == revert) && p.Call <= o.Return && o.Call <= p.Return
		}), "%v, without any rollback from %d to %d", o.Input, o.Call, o.Return)
	}
}

// explain fails the test, with all that is known.
func (h history) explain(t *testing.T, info porcupine.LinearizationInfo) {
	slices.SortFunc(h.ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for _, o := range h.ops {
		t.Logf("%9d to %9d: client %d %v", o.Call, o.Return, o.ClientId, o.Input)
	}
	picture := filepath.Join(t.ArtifactDir(), "history.html") // kept with -artifacts
	require.NoError(t, porcupine.VisualizePath(modelFrom(h.start), info, picture))
	t.Fatalf("no order explains this history, which began with %v: see %s", h.start, picture)
}

// A client is one goroutine of a history.
type client struct {
	*run
	id    int
	r     *rand.Rand
	began time.Time
	ops   []porcupine.Operation
}

func (c *client) now() int64 { return time.Since(c.began).Nanoseconds() }

func (c *client) record(o op, call, ret int64) {
	c.ops = append(c.ops, porcupine.Operation{ClientId: c.id, Input: o, Call: call, Return: ret})
}

// do runs an operation and records it. ErrRolledBack says that it has changed nothing.
func (c *client) do(name string, fn func(o *op) error) error {
	o := op{name: name}
	call := c.now()
	err := fn(&o)
	ret := c.now()
	if errors.Is(err, emd.ErrRolledBack) {
		o.rolledBack, o.write, o.effect, err = true, false, none, nil
	}
	c.record(o, call, ret)
	return err
}

func (c *client) step() error {
	switch p := c.r.IntN(100); {
	case p < 95:
		return c.stepOfKey()
	case p < 97:
		return c.do("Sync", func(o *op) error {
			o.effect = save
			return c.sync()
		})
	case p < 98:
		return c.do("Rollback", func(o *op) error {
			o.effect = undo
			return c.rollback()
		})
	default:
		return c.update()
	}
}

func (c *client) stepOfKey() error {
	key, v := c.r.IntN(keyCount), value(c.last.Add(1))
	switch c.r.IntN(10) {
	case 0, 1:
		return c.do("Get", func(o *op) (err error) {
			o.key, o.look = key, lookValue
			o.seen, err = c.get(key)
			return err
		})
	case 2:
		return c.getMany()
	case 3:
		return c.do("Contains", func(o *op) error {
			ok, err := c.contains(key)
			o.key, o.look, o.seen = key, lookPresence, presence(ok)
			return err
		})
	case 4:
		return c.do("Set", func(o *op) error {
			o.key, o.write, o.new = key, true, v
			return c.set(key, v)
		})
	case 5:
		return c.do("Delete", func(o *op) error {
			ok, err := c.remove(key)
			o.key, o.look, o.seen, o.write = key, lookPresence, presence(ok), true
			return err
		})
	case 6:
		return c.do("GetOrSet", func(o *op) error {
			actual, loaded, err := c.getOrSet(key, v)
			o.key, o.look = key, lookValue
			if loaded {
				o.seen = actual
			} else {
				o.write, o.new = true, actual
			}
			return err
		})
	case 7:
		return c.do("Swap", func(o *op) (err error) {
			o.key, o.look, o.write, o.new = key, lookValue, true, v
			o.seen, err = c.swap(key, v)
			return err
		})
	default:
		return c.compute(key, v)
	}
}

// presence returns a value for what says only whether there is one.
func presence(ok bool) value {
	if ok {
		return 1
	}
	return absent
}

// getMany looks at all keys, each at a moment of its own.
func (c *client) getMany() error {
	call := c.now()
	found, err := c.run.getMany()
	ret := c.now()
	for key, v := range found {
		c.record(op{name: "GetMany", key: key, look: lookValue, seen: v}, call, ret)
	}
	return err
}

func (c *client) compute(key int, v value) error {
	decision, yields := emd.Op(c.r.IntN(3)), c.r.IntN(2) == 0
	return c.do("Compute", func(o *op) error {
		o.key = key
		return c.run.compute(key, func(old value) (value, emd.Op) {
			o.look, o.seen = lookValue, old
			switch decision {
			case emd.OpStore:
				o.write, o.new = true, v
			case emd.OpRemove:
				o.write = true
			}
			if yields {
				runtime.Gosched()
			}
			return v, decision
		})
	})
}

var errPlanned = errors.New("planned")

// update records an Update as two operations, its begin and its end, with others between.
func (c *client) update() error {
	plan := c.r.IntN(6)
	call := c.now()
	var entered, left int64
	var inside error
	err := recovered(func() error {
		return c.run.update(func() error {
			entered = c.now()
			c.record(op{name: "Update", effect: begin}, call, entered)
			for n := c.r.IntN(4); n > 0 && inside == nil; n-- {
				inside = c.stepOfKey()
			}
			if plan == 0 {
				_ = c.rollback() // ErrInUpdate, and the Update has failed
			}
			left = c.now()
			switch plan {
			case 1:
				return errPlanned
			case 2:
				panic(errPlanned)
			}
			return inside
		})
	})
	o := op{name: "Update fails", effect: revert}
	switch {
	case inside != nil:
		return inside
	case plan > 2 && err == nil:
		o = op{name: "Update commits", effect: commit}
	case plan == 0 && errors.Is(err, emd.ErrInUpdate):
	case (plan == 1 || plan == 2) && errors.Is(err, errPlanned):
	case errors.Is(err, emd.ErrRolledBack): // an operation of another goroutine failed meanwhile
	default:
		return fmt.Errorf("Update planned as %d ended with %w", plan, err)
	}
	c.record(o, left, c.now())
	return nil
}

// recovered returns errPlanned when fn panics with it.
func recovered(fn func() error) (err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case errPlanned:
			err = errPlanned
		default:
			panic(p)
		}
	}()
	return fn()
}
