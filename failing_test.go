package emd

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A simFault is how one operation fails.
type simFault struct {
	name string
	err  error
	loss simLoss // if it is a sync
}

// failingFaults are looked at for each operation. For those that are no sync the losses are all the same.
var failingFaults = []simFault{
	{"EIO", syscall.EIO, simLoss{}},
	{"EIO, short", &simShort{syscall.EIO, 0.6}, simLoss{forgets: true}},
	{"EIO, reached", syscall.EIO, simLoss{reached: true}},
	{"EIO, mixed", syscall.EIO, simLoss{mixed: true, forgets: true}},
	{"ENOSPC", fullErrors[0], simLoss{forgets: true}},
	{"ENOSPC, short", &simShort{fullErrors[0], 0.3}, simLoss{mixed: true}},
}

// failingScript does everything that has to do with the disk.
var failingScript = crashScript{ops: []crashOp{
	add("l", 50), put("d", 0, 6, 9000), syncAll, set("l", 10), syncAll, put("d", 6, 10, 9000), spill, put("d", 7, 8, 9000), syncAll,
	set("l", 5), checkpointNow, del("d", 0, 5), syncAll, put("d", 10, 24, 9000), spill, rollback, set("l", 3), rollback,
	update("succeeds", add("l", 5), put("d", 1, 2, 500)), update("fails", add("l", 5)), syncAll, set("l", 2), syncAll, checkpointNow, set("l", 3), syncAll,
	closeAndReopen, put("d", 20, 22, 130_000), put("d", 22, 27, 30000), syncAll, drop("d"), syncAll, checkpointNow, set("l", 9), syncAll, set("l", 4), syncAll,
}}

// failOnce runs the script, of which the n-th operation fails, and says which one that was; "" if the run has fewer.
// What must not be is told to bad.
func (w *crashWorld) failOnce(script crashScript, n int, fault simFault) (failed string) {
	if err := w.prepare(script); err != nil {
		w.bad(err.Error())
	}
	d := w.disk
	d.loss = fault.loss
	count := 0
	hook := func(op string) error {
		if count++; count != n {
			return nil
		}
		failed = op
		return fault.err
	}
	d.before = func(_ int, op string) error { return hook(op) }
	d.access = hook
	what := func() string { return fmt.Sprintf("operation %d (%s) failed with %s", n, failed, fault.name) }
	if w.a == nil {
		if err := w.reopen(); err != nil {
			w.isNamed(err, fault.err, what())
			if err := w.reopen(); err != nil { // the fault is gone
				w.bad(fmt.Sprintf("%s: cannot be opened any more: %v", what(), err))
				return failed
			}
		}
	}
	for _, op := range script.ops {
		before := len(w.history)
		err := op(w)
		if err == nil {
			continue
		}
		w.isNamed(err, fault.err, what())
		if w.a.closed() || w.a.failure() != nil {
			break
		}
		if strings.HasPrefix(failed, "sync") {
			w.bad(what() + ": the arena goes on")
		}
		if !errors.Is(err, ErrFull) && !errors.Is(fault.err, syscall.EIO) {
			w.bad(fmt.Sprintf("%s: not ErrFull: %v", what(), err))
		}
		if len(w.history) > before && w.r.IntN(2) == 0 { // a commit: there is room again
			err = syncAll(w)
		} else {
			err = rollback(w)
		}
		if err != nil {
			w.bad(fmt.Sprintf("%s: when there was room again: %v", what(), err))
			return failed
		}
	}
	if w.a.failure() != nil && !w.a.closed() {
		w.stopped(fault.err, what())
	}
	w.crash(d, "", what())
	if w.a.closed() {
		// It failed in Close, or could not be opened after it.
	} else if err := w.commit(true, w.a.Close); err != nil {
		w.isNamed(err, fault.err, what()+", close")
	}
	w.crash(d, "", what()+", closed")
	d.before, d.access = nil, nil
	state, err := w.visit(d, false)
	w.verdict(state, err, w.history[w.acked:], what()+", opened again")
	return failed
}

// isNamed complains about an error that does not say what and where.
func (w *crashWorld) isNamed(err, cause error, what string) {
	var e *Error
	if !errors.As(err, &e) || e.Path != crashPath || !strings.Contains(err.Error(), crashPath) {
		w.bad(fmt.Sprintf("%s: the error does not name the file: %v", what, err))
	}
	if !errors.Is(err, cause) && !errors.Is(err, errors.Unwrap(cause)) {
		w.bad(fmt.Sprintf("%s: another error: %v", what, err))
	}
}

// stopped complains about an arena that goes on after a failure, or that cannot be read.
func (w *crashWorld) stopped(cause error, what string) {
	for name, change := range map[string]func() error{
		"SetMeta": func() error { return w.a.SetMeta("m", []byte("x")) }, "Sync": w.a.Sync, "Rollback": w.a.Rollback,
		"Update": func() error { return w.a.Update(func() error { return nil }) },
	} {
		if err := change(); err == nil {
			w.bad(what + ": the arena has stopped, and " + name + " works")
		} else {
			w.isNamed(err, cause, what+", "+name)
		}
	}
	if w.a.status.Load()&statusBroken != 0 {
		return // in the middle of a rollback
	}
	if _, err := contentOf(w.a); err != nil {
		w.bad(fmt.Sprintf("%s: the arena has stopped, and cannot be read: %v", what, err))
	}
}

// TestFailingIO lets every operation of a run fail, in turn and in every way, and cuts the power after it.
func TestFailingIO(t *testing.T) {
	for _, mode := range []crashMode{crashModes[0], crashModes[len(crashModes)-1]} {
		for _, fault := range failingFaults {
			t.Run(mode.name+"/"+fault.name, func(t *testing.T) {
				t.Parallel()
				kinds := map[string]int{}
				states, n := 0, 1
				for ; ; n++ {
					j := newCrashJudge(5, 8, 2, func(why string) { require.Fail(t, why) })
					failed := newCrashWorld(5, mode, j).failOnce(failingScript, n, fault)
					states += j.states
					if failed == "" {
						break
					}
					kinds[strings.TrimSpace(strings.Split(failed, "new-")[0])]++ // without a random name
				}
				for _, kind := range strings.Split("create .emd-log,write .emd,write .emd-log,sync .emd,sync .emd-log,syncdir,link,remove,truncate .emd,"+
					"lock .emd,open .emd,allocate .emd,punch,chunk .mapping,adopt .mapping,drop .mapping,zero .mapping,refresh .mapping", ",") {
					require.Contains(t, kinds, strings.TrimSuffix(kind, " .mapping"), "the script never does it")
				}
				t.Logf("TestFailingIO: %d operations failed in turn, %d crash states: %v", n-1, states, kinds)
			})
		}
	}
}
