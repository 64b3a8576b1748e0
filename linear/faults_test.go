package linear

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/emd-go/emd"
)

// TestFaultsAreFound gives the check subjects that are wrong, each in one way.
func TestFaultsAreFound(t *testing.T) {
	for name, plant := range map[string]func(subject) subject{
		"stale reads":                    func(s subject) subject { return &staleReads{subject: s} },
		"Compute in two steps":           func(s subject) subject { return twoSteps{s} },
		"Sync does nothing":              func(s subject) subject { return lostSync{s} },
		"a change outlives Rollback":     func(s subject) subject { return survivor{s} },
		"a failed Update leaves changes": func(s subject) subject { return noUndo{s} },
	} {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%s/seed=%d", name, seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			run := &run{subject: plant(newDict(t, words, r)), r: r}
			for i := range 200 {
				h := run.history(t)
				if !porcupine.CheckOperations(modelFrom(h.start), h.ops) {
					t.Logf("found in history %d", i)
					return
				}
			}
			require.Fail(t, "not found")
		})
	}
}

// staleReads answers now and then with what the key had at another Get.
type staleReads struct {
	subject
	calls atomic.Int32
	old   [keyCount]atomic.Int32
}

func (s *staleReads) get(key int) (value, error) {
	if s.calls.Add(1)%8 == 0 {
		return value(s.old[key].Load()), nil
	}
	v, err := s.subject.get(key)
	s.old[key].Store(int32(v))
	return v, err
}

type twoSteps struct{ subject }

func (s twoSteps) compute(key int, fn func(v value) (value, emd.Op)) error {
	v, err := s.get(key)
	if err != nil {
		return err
	}
	v, do := fn(v)
	runtime.Gosched()
	switch do {
	case emd.OpStore:
		err = s.set(key, v)
	case emd.OpRemove:
		_, err = s.remove(key)
	}
	return err
}

type lostSync struct{ subject }

func (s lostSync) sync() error { return nil }

type survivor struct{ subject }

func (s survivor) rollback() error {
	v, err := s.get(0)
	if err == nil {
		err = s.subject.rollback()
	}
	if err == nil && v != absent {
		err = s.set(0, v)
	}
	return err
}

type noUndo struct{ subject }

func (s noUndo) update(fn func() error) (err error) {
	undone := s.subject.update(func() error {
		err = fn()
		return nil
	})
	return errors.Join(err, undone)
}
