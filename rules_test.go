package emd

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
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

// damage spoils, one after the other, each sector of the log and of the header slots, and removes or replaces files. What is
// opened then must be refused, or hold the last commit; or the one before if the last record alone is hit, which may as well
// be torn, and the header does not say that it is needed.
func (w *crashWorld) damage() {
	hook := w.disk.before
	w.disk.before = nil
	defer func() { w.disk.before = hook }()
	before := w.acked // the last commit that was another: one that changes nothing writes no record
	for before > 0 && w.history[before] == w.history[w.acked] && w.a.header.needSeq == 0 {
		before--
	}
	open := func(what string, spoil func(d *simDisk)) {
		d := w.disk.kill()
		spoil(d)
		d.plain = true
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
		delete(d.names, log)
		another := redoLog{fs: d, path: log, id: fileID{1}}
		if err := another.create(w.a.header.generation); err != nil {
			w.bad(err.Error())
		}
	})
	for i := range int64(slotPages) {
		open(fmt.Sprintf("a bit of header slot %d, which says that it needs no log", i), func(d *simDisk) {
			d.names[crashPath].cache.write([]byte{headerClean}, i*pageSize+slotStateOff)
		})
	}
	for name, sectors := range map[string]int64{crashPath: slotPages * pageSize / simSectorSize, log: (w.a.log.tail + pageSize) / simSectorSize} {
		for s := range sectors {
			if old := w.disk.names[name].cache.sector(s); old != nil {
				open(fmt.Sprintf("sector %d of %s", s, name), func(d *simDisk) { d.names[name].cache.setSector(s, simNoise) })
			}
		}
	}
}

// damageScript runs a script and spoils what is on disk after each operation, and when a checkpoint has written its pages.
func damageScript(bad func(string), seed uint64, mode crashMode, script crashScript) {
	w := newCrashWorld(seed, mode, newCrashJudge(seed, 1, 1, bad))
	w.disk.before = func(_ int, op string) error {
		if w.a != nil && w.a.header.needSeq != 0 && op == "sync .emd" {
			w.damage()
		}
		return nil
	}
	if err := w.reopen(); err != nil {
		bad(err.Error())
	}
	for _, op := range slices.Concat(script.calm, script.ops) {
		if err := op(w); err != nil {
			bad(err.Error())
		}
		w.damage()
	}
}

// A shownRule is a rule and the test that notices when it is broken.
type shownRule struct {
	rule   rule
	mode   string // of crashModes
	script string // of crashDirected or ruleScripts
	how    string // what happens to it: "" for cuts, "damage", or the name of a fault
}

// ruleScripts are small and meet, looked at hard, what is seldom met elsewhere.
var ruleScripts = []crashScript{
	{name: "first commit", calm: []crashOp{nothing}, ops: []crashOp{add("l", 5), syncAll}, judge: func(j *crashJudge) {
		j.kills[0], j.limit, j.care = 1, 64, always
	}},
	{name: "one overwrite", calm: []crashOp{add("l", 20), syncAll}, ops: []crashOp{set("l", 2), syncAll}},
	{name: "fresh space", calm: []crashOp{add("l", 20), syncAll}, ops: []crashOp{put("d", 0, 8, 9000), syncAll}, judge: func(j *crashJudge) {
		j.kills[0], j.sample = 1, 32
	}},
	{name: "reuse of space", calm: []crashOp{put("d", 0, 12, 3000), syncAll, del("d", 0, 8), syncAll}, ops: []crashOp{put("d", 20, 28, 3000), syncAll}},
	{name: "bytes above the mark", calm: []crashOp{add("l", 10), syncAll, put("d", 0, 40, 9000), spill, killAndReopen}, ops: []crashOp{
		add("l", 16500), syncAll, // its largest extent is of two units, of which the second is never written
	}},
	{name: "fresh space, changed", calm: []crashOp{add("l", 9000), syncAll}, ops: []crashOp{set("l", 500), syncAll, checkpointNow}},
	{name: "one checkpoint", calm: []crashOp{add("l", 20), syncAll, set("l", 3), syncAll}, ops: []crashOp{
		set("l", 2), syncAll, checkpointNow, set("l", 3), syncAll,
	}, judge: func(j *crashJudge) { j.care = always }},
	{name: "records of the past", calm: []crashOp{ // of the same size, and the third generation of the log lies where the first one was
		add("l", 20), closeAndReopen, set("l", 2), syncAll, set("l", 2), syncAll, checkpointNow, set("l", 2), syncAll, checkpointNow,
	}, ops: []crashOp{set("l", 2), syncAll}},
	{name: "failed sync", calm: []crashOp{add("l", 20), syncAll}, ops: []crashOp{
		set("l", 2), syncAll, put("d", 0, 8, 9000), syncAll, checkpointNow,
	}, judge: func(j *crashJudge) { j.fails[0], j.losses, j.sample, j.care = 1, []simLoss{{}}, 16, 0 }},
	{name: "failed sync, checked", calm: []crashOp{add("l", 20), syncAll}, ops: []crashOp{checkpointNow}, judge: func(j *crashJudge) {
		j.fails[0], j.losses, j.care = 1, []simLoss{{}}, always
	}},
	{name: "failed sync in recovery", calm: []crashOp{add("l", 20), syncAll, die}, ops: []crashOp{restart}, judge: func(j *crashJudge) {
		j.fails[0], j.losses = 1, []simLoss{{}}
	}},
	{name: "killed in recovery", calm: []crashOp{add("l", 20), syncAll, dies("sync .emd", checkpointNow)}, ops: []crashOp{restart}, judge: func(j *crashJudge) {
		j.kills[0], j.limit = 1, 128
	}},
	{name: "cut in recovery", calm: []crashOp{add("l", 20), syncAll, set("l", 2), dies("sync .emd-log", syncAll)}, ops: []crashOp{restart}, judge: func(j *crashJudge) {
		j.deep[0], j.limit, j.sample, j.care = 1, 16, 8, always
	}},
}

func nothing(*crashWorld) error { return nil }

func die(w *crashWorld) error {
	w.disk = w.disk.kill()
	return nil
}

// dies runs an operation in a process that is killed ahead of the given change of the disk.
func dies(ahead string, op crashOp) crashOp {
	return func(w *crashWorld) error {
		var left *simDisk
		w.disk.before = func(_ int, change string) error {
			if change == ahead && left == nil {
				left = w.disk.kill()
			}
			if left != nil {
				return errCrashScript
			}
			return nil
		}
		if err := op(w); !errors.Is(err, errCrashScript) {
			return fmt.Errorf("it goes on: %v", err)
		}
		w.disk = left
		return nil
	}
}

const always = 100 // for crashJudge.care, also deep in recoveries

var findRules = flag.String("emd.rules", "", "for the rules first-last, by number, look for a test that notices when they are broken")

// TestCrashRules breaks each rule of the protocol in turn and requires that the simulator notices.
func TestCrashRules(t *testing.T) {
	if *findRules != "" {
		findShownRules(t)
		return
	}
	for i, script := range crashDirected { // damage alone is no reason to complain
		why := noRule.breaks(func(bad func(string)) { damageScript(bad, uint64(i), crashModes[0], script) })
		require.Empty(t, why, script.name)
	}
	shown := map[rule]bool{}
	for _, s := range shownRules {
		shown[s.rule] = true
		if testing.Short() && s.rule%5 != 0 {
			continue // the full run breaks them all
		}
		why := s.noticed(s.rule)
		assert.NotEmpty(t, why, "rule %d: %s", s.rule, s)
		t.Logf("rule %d is noticed in %s: %.200s", s.rule, s, why)
	}
	for r := noRule + 1; r < ruleEnd; r++ {
		require.True(t, shown[r], "rule %d", r)
	}
	t.Logf("TestCrashRules: %d rules broken in turn, each noticed", len(shown))
}

func (s shownRule) String() string { return strings.Join([]string{s.mode, s.script, s.how}, "/") }

// noticed breaks a rule in the test of s and returns what that says.
func (s shownRule) noticed(r rule) (why string) {
	mode := crashModes[slices.IndexFunc(crashModes, func(m crashMode) bool { return m.name == s.mode })]
	scripts := append(crashDirected, ruleScripts...)
	i := slices.IndexFunc(scripts, func(script crashScript) bool { return script.name == s.script })
	script, seed := scripts[i], uint64(i)
	world := func(bad func(string)) *crashWorld {
		j := newCrashJudge(seed, 16, 2, bad)
		j.kills[0], j.care = 0.2, 0.05
		if script.judge != nil {
			script.judge(j)
		}
		return newCrashWorld(seed, mode, j)
	}
	switch s.how {
	case "":
		return r.breaks(func(bad func(string)) {
			if err := world(bad).run(script); err != nil {
				bad(err.Error())
			}
		})
	case "damage":
		return r.breaks(func(bad func(string)) { damageScript(bad, seed, mode, script) })
	}
	fault := failingFaults[slices.IndexFunc(failingFaults, func(f simFault) bool { return f.name == s.how })]
	for n, more := 1, true; more && why == ""; n++ {
		why = r.breaks(func(bad func(string)) { more = world(bad).failOnce(script, n, fault) != "" })
	}
	return why
}

// findShownRules prints what shownRules could be: the first test that notices.
func findShownRules(t *testing.T) {
	var first, last rule
	_, err := fmt.Sscanf(*findRules, "%d-%d", &first, &last)
	require.NoError(t, err)
	for r := first; r <= last && r < ruleEnd; r++ {
		if s, why := r.find(); why != "" {
			fmt.Printf("{%d, %q, %q, %q}, // %.150q\n", r, s.mode, s.script, s.how, why)
		} else {
			fmt.Printf("%d: nothing notices\n", r)
		}
	}
}

func (r rule) find() (s shownRule, why string) {
	for _, how := range []string{"", "damage", "ENOSPC", "EIO"} {
		for _, mode := range crashModes {
			for _, script := range slices.Concat(ruleScripts, crashDirected) {
				s = shownRule{r, mode.name, script.name, how}
				if why = s.noticed(r); why != "" {
					return s, why
				}
			}
		}
	}
	return s, ""
}

var shownRules = []shownRule{
	{freshFirstRule, "default", "fresh space", ""},
	{recordWaitRule, "default", "appends", ""},
	{ownCellsRule, "fullpages", "one overwrite", ""},
	{staysDirtyRule, "default", "one overwrite", "ENOSPC"},
	{fullPagesRule, "fullpages", "first commit", ""},
	{wholePageRule, "default", "reuse of space", ""},
	{zerosRule, "default", "bytes above the mark", ""},
	{folderRule, "default", "appends", ""},
	{liveFirstRule, "default", "appends", ""},
	{cleanFirstRule, "default", "appends", ""},
	{removeLogRule, "default", "one overwrite", "EIO"},
	{leftoverRule, "fullpages", "first commit", ""},
	{lazyMainRule, "nosync", "with and without fresh space", ""},
	{logWaitRule, "default", "appends", ""},
	{sealRule, "default", "appends", ""},
	{needRule, "default", "first commit", ""},
	{needWaitRule, "default", "one checkpoint", ""},
	{unitsWaitRule, "default", "appends", ""},
	{nextWaitRule, "default", "one checkpoint", ""},
	{elsewhereRule, "fullpages", "overwrites", ""},
	{rollbackRule, "default", "rollback then sync", ""},
	{updateRule, "default", "update fails", ""},
	{slotsRule, "fullpages", "failed sync", ""},
	{failStopRule, "default", "one overwrite", "EIO"},
	{failStopFullRule, "default", "one checkpoint", "ENOSPC"},
	{confirmSyncRule, "fullpages", "killed in recovery", ""},
	{confirmRule, "fullpages", "failed sync in recovery", ""},
	{copyRule, "default", "failed sync", ""},
	{copyWaitRule, "default", "appends", ""},
	{freshAgainRule, "nosync", "failed sync", ""},
	{freshAgainWaitRule, "nosync", "failed sync", ""},
	{allSlotsRule, "default", "failed sync, checked", ""},
	{generationRule, "default", "records of the past", ""},
	{recordSumRule, "default", "appends", ""},
	{headerSumRule, "default", "appends", "damage"},
	{freshSumRule, "nosync", "fresh space", ""},
	{freshSumNeedRule, "default", "fresh space, changed", ""},
	{exactlyNeedRule, "default", "cut in recovery", ""},
	{needCheckRule, "default", "one checkpoint", "damage"},
	{durableRule, "default", "appends", "damage"},
	{newerLogRule, "default", "appends", "damage"},
	{otherLogRule, "default", "appends", "damage"},
	{missingLogRule, "default", "appends", "damage"},
	{buildWaitRule, "default", "appends", ""},
	{nameWaitRule, "default", "appends", ""},
}
