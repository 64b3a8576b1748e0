package emd

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// A noticed is the panic of a test that has seen what a broken rule does.
type noticed string

// breaks runs a test of the simulator with a broken rule, and returns what it noticed.
func (r rule) breaks(run func(bad func(string))) (why string) {
	broken.Store(int32(r))
	defer broken.Store(int32(noRule))
	defer func() {
		if p := recover(); p != nil {
			why = fmt.Sprint(p) // noticed, or a panic of the library: memory and file differ
		}
	}()
	run(func(why string) { panic(noticed(why)) })
	return ""
}

// damage spoils each sector of log and header slots in turn, and removes the log. What is opened then must be refused, or
// hold the last commit, or the one before if the last record alone is hit, which may as well be torn.
func (w *crashWorld) damage() {
	w.disk.before = nil
	before := w.acked // the last commit that was another: one that changes nothing writes no record
	for before > 0 && w.history[before] == w.history[w.acked] {
		before--
	}
	open := func(what string, spoil func(d *simDisk)) {
		d := w.disk.kill()
		spoil(d)
		if state, err := w.visit(d, false); err == nil {
			w.verdict(state, nil, w.history[before:], "damaged: "+what)
		}
	}
	log := logPath(crashPath)
	if w.disk.names[log] == nil {
		return
	}
	open("no log", func(d *simDisk) { delete(d.names, log) })
	open("log of another file", func(d *simDisk) {
		d.names[log].cache.write([]byte("another file's id"), logIDOff)
	})
	for name, sectors := range map[string]int64{crashPath: slotPages * pageSize / simSectorSize, log: (w.a.log.tail + pageSize) / simSectorSize} {
		for s := range sectors {
			if old := w.disk.names[name].cache.sector(s); old != nil {
				open(fmt.Sprintf("sector %d of %s", s, name), func(d *simDisk) { d.names[name].cache.setSector(s, simNoise) })
			}
		}
	}
}

// shownRules are the rules of which it is shown what their breaking does, each with the test that notices it first.
var shownRules = map[rule]string{
	freshFirstRule: "deletes with reuse of space",
	recordWaitRule: "damage in appends",
	ownCellsRule:   "damage in appends",
	wholePageRule:  "damage in deletes with reuse of space",
	folderRule:     "appends",
	liveFirstRule:  "appends",
	cleanFirstRule: "appends",
	staysDirtyRule: "failing I/O",
	removeLogRule:  "failing I/O",
}

// TestCrashRules breaks rules of the protocol in turn and requires that the simulator notices.
func TestCrashRules(t *testing.T) {
	for i, script := range crashDirected { // damage alone is no reason to complain
		why := noRule.breaks(func(bad func(string)) { damageScript(bad, uint64(i), crashModes[0], script) })
		require.Empty(t, why, script.name)
	}
	for r, by := range shownRules {
		why := r.noticedBy(by)
		require.NotEmpty(t, why, "rule %d: %s", r, by)
		t.Logf("rule %d: %s: %.200s", r, by, why)
	}
}

// damageScript runs a script and spoils what is on disk after each operation.
func damageScript(bad func(string), seed uint64, mode crashMode, script crashScript) {
	w := newCrashWorld(seed, mode.opts, newCrashJudge(seed, 1, 1, bad))
	if err := w.reopen(); err != nil {
		bad(err.Error())
	}
	for _, op := range script.ops {
		if err := op(w); err != nil {
			bad(err.Error())
		}
		w.damage()
	}
}

// noticedBy breaks the rule in one test and returns what that says.
func (r rule) noticedBy(test string) (why string) {
	judge := func(bad func(string), seed uint64) *crashJudge {
		j := newCrashJudge(seed, 16, 2, bad)
		j.kills, j.care = 0.2, 0.05
		return j
	}
	mode := crashModes[0]
	for i, script := range crashDirected {
		switch test {
		case "damage in " + script.name:
			return r.breaks(func(bad func(string)) { damageScript(bad, uint64(i), mode, script) })
		case script.name:
			return r.breaks(func(bad func(string)) {
				if err := newCrashWorld(uint64(i), mode.opts, judge(bad, uint64(i))).run(script.ops); err != nil {
					bad(err.Error())
				}
			})
		}
	}
	for _, fault := range failingFaults {
		for n := 1; n < 200 && why == ""; n++ {
			why = r.breaks(func(bad func(string)) { newCrashWorld(5, mode.opts, judge(bad, 5)).failOnce(failingScript, n, fault) })
		}
	}
	return why
}
