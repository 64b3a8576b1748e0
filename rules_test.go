package emd

import (
	"flag"
	"fmt"
	"slices"
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

// A shownRule is a rule and the test that notices when it is broken.
type shownRule struct {
	rule rule
	mode string // of crashModes
	test string // a script of crashDirected, "damage in" one, or "failing I/O"
}

var findAllRules = flag.Bool("emd.rules.all", false, "look in all tests, not in the likely ones only")

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
		why := s.rule.noticedBy(s.mode, s.test)
		require.NotEmpty(t, why, "rule %d: %s/%s", s.rule, s.mode, s.test)
		t.Logf("rule %d is noticed in %s/%s: %.200s", s.rule, s.mode, s.test, why)
	}
	for r := noRule + 1; r < ruleEnd; r++ {
		require.True(t, shown[r] != slices.Contains(unshownRules, r), "rule %d", r)
	}
	t.Logf("TestCrashRules: %d rules broken in turn, each noticed; %d not shown yet", len(shown), len(unshownRules))
}

// findShownRules prints what shownRules could be: the first of the likely tests that notices, else any.
func findShownRules(t *testing.T) {
	scripts := func(mode, kind string, names ...string) (tests []shownRule) {
		for _, name := range names {
			tests = append(tests, shownRule{mode: mode, test: kind + name})
		}
		return tests
	}
	var all []string
	for _, script := range crashDirected {
		all = append(all, script.name)
	}
	likely := slices.Concat(
		scripts("default", "", "appends", "deletes with reuse of space", "log reset", "killed", "crashes in recovery", "rollback then sync", "update fails"),
		scripts("default", "damage in ", "appends", "log reset", "killed", "with and without fresh space"),
		scripts("nosync", "", "with and without fresh space", "killed", "crashes in recovery", "log reset"),
		scripts("fullpages", "", "overwrites", "killed", "crashes in recovery"),
		scripts("fullpages nosync", "", "killed", "crashes in recovery"),
		scripts("fullpages", "damage in ", "checkpoint"),
	)
	if *findAllRules {
		likely = append(likely, scripts("default", "", "failing I/O")...)
	}
	if *findAllRules {
		for _, mode := range crashModes {
			likely = slices.Concat(likely, scripts(mode.name, "", all...), scripts(mode.name, "damage in ", all...))
		}
	}
	var first, last int
	_, err := fmt.Sscanf(*findRules, "%d-%d", &first, &last)
	require.NoError(t, err)
	for r := rule(first); r <= rule(last) && r < ruleEnd; r++ {
		i := slices.IndexFunc(likely, func(s shownRule) bool {
			why := r.noticedBy(s.mode, s.test)
			if why != "" {
				fmt.Printf("{%d, %q, %q}, // %.150q\n", r, s.mode, s.test, why)
			}
			return why != ""
		})
		if i < 0 {
			fmt.Printf("%d: nothing notices\n", r)
		}
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
func (r rule) noticedBy(modeName, test string) (why string) {
	judge := func(bad func(string), seed uint64) *crashJudge {
		j := newCrashJudge(seed, 16, 2, bad)
		j.kills, j.care = 0.2, 0.05
		return j
	}
	mode := crashModes[slices.IndexFunc(crashModes, func(m crashMode) bool { return m.name == modeName })]
	for i, script := range crashDirected {
		switch test {
		case "damage in " + script.name:
			return r.breaks(func(bad func(string)) { damageScript(bad, uint64(i), mode, script) })
		case script.name:
			return r.breaks(func(bad func(string)) {
				j := judge(bad, uint64(i))
				if script.deep[0] != 0 {
					j.deep, j.kills = script.deep, 0.5
				}
				if err := newCrashWorld(uint64(i), mode.opts, j).run(script.ops); err != nil {
					bad(err.Error())
				}
			})
		}
	}
	for _, fault := range failingFaults {
		for n := 1; n < 300 && why == "" && test == "failing I/O"; n++ {
			why = r.breaks(func(bad func(string)) { newCrashWorld(5, mode.opts, judge(bad, 5)).failOnce(failingScript, n, fault) })
		}
	}
	return why
}

var shownRules = []shownRule{
	{freshFirstRule, "default", "deletes with reuse of space"},
	{recordWaitRule, "default", "appends"},
	{ownCellsRule, "default", "deletes with reuse of space"},
	{staysDirtyRule, "default", "failing I/O"},
	{fullPagesRule, "fullpages", "overwrites"},
	{wholePageRule, "default", "deletes with reuse of space"},
	{folderRule, "default", "appends"},
	{liveFirstRule, "default", "appends"},
	{cleanFirstRule, "default", "appends"},
	{removeLogRule, "default", "failing I/O"},
	{lazyMainRule, "nosync", "with and without fresh space"},
	{logWaitRule, "default", "appends"},
	{sealRule, "default", "appends"},
	{needRule, "default", "appends"},
	{needWaitRule, "default", "appends"},
	{unitsWaitRule, "default", "appends"},
	{nextWaitRule, "default", "deletes with reuse of space"},
	{elsewhereRule, "fullpages", "overwrites"},
	{rollbackRule, "default", "rollback then sync"},
	{updateRule, "default", "update fails"},
	{slotsRule, "default", "appends"},
	{failStopRule, "default", "failing I/O"},
	{failStopFullRule, "default", "failing I/O"},
	{copyWaitRule, "default", "appends"},
	{freshAgainWaitRule, "fullpages nosync", "crashes in recovery"},
	{generationRule, "default", "deletes with reuse of space"},
	{recordSumRule, "default", "appends"},
	{freshSumNeedRule, "default", "deletes with reuse of space"},
	{durableRule, "default", "damage in appends"},
	{newerLogRule, "default", "damage in appends"},
	{missingLogRule, "default", "damage in appends"},
	{buildWaitRule, "default", "appends"},
	{nameWaitRule, "default", "appends"},
}

// unshownRules are those that no test has been found for yet: the model in protocol_test.go alone shows what they are for.
var unshownRules = []rule{
	zerosRule,
	confirmSyncRule,
	confirmRule,
	copyRule,
	freshAgainRule,
	freshAgainLastRule,
	nextGenerationRule,
	headerSumRule,
	freshSumRule,
	exactlyNeedRule,
	needCheckRule,
	otherLogRule,
}
