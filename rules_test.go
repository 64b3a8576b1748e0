package emd

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
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
	open := func(what string, spoil func(d *simDisk)) {
		d := w.disk.kill()
		spoil(d)
		if state, err := w.visit(d, false); err == nil {
			w.verdict(state, nil, w.history[max(0, w.acked-1):], "damaged: "+what)
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

// TestCrashRules breaks each rule of the protocol in turn and requires that somebody notices.
func TestCrashRules(t *testing.T) {
	source, err := os.ReadFile("rules.go")
	require.NoError(t, err)
	names := regexp.MustCompile(`(?m)^\t(\w+Rule)\b`).FindAllStringSubmatch(string(source), -1)
	require.Len(t, names, int(ruleEnd)-1)
	unnoticed := []string{}
	for r := noRule + 1; r < ruleEnd; r++ {
		why, by := r.noticedBy()
		if testing.Verbose() {
			fmt.Println(names[r-1][1], by)
		}
		if why == "" {
			unnoticed = append(unnoticed, names[r-1][1])
			continue
		}
		t.Logf("%s: %s: %.200s", names[r-1][1], by, why)
	}
	require.Empty(t, unnoticed)
}

func (r rule) noticedBy() (why, by string) {
	judge := func(bad func(string), seed uint64) *crashJudge {
		j := newCrashJudge(seed, 16, 3, bad)
		j.kills, j.care, j.deep = 0.3, 0.1, [2]float64{0.02, 0}
		return j
	}
	for _, mode := range crashModes {
		for i, script := range crashDirected {
			if why := r.breaks(func(bad func(string)) {
				w := newCrashWorld(uint64(i), mode.opts, judge(bad, uint64(i)))
				if err := w.reopen(); err != nil {
					bad(err.Error())
				}
				for _, op := range script.ops {
					if err := op(w); err != nil {
						bad(err.Error())
					}
					w.damage()
				}
			}); why != "" {
				return why, mode.name + ", damage in " + script.name
			}
			if why := r.breaks(func(bad func(string)) {
				if err := newCrashWorld(uint64(i), mode.opts, judge(bad, uint64(i))).run(script.ops); err != nil {
					bad(err.Error())
				}
			}); why != "" {
				return why, mode.name + ", " + script.name
			}
		}
		random := rand.New(rand.NewPCG(1, 1))
		for range 60 {
			fault := failingFaults[random.IntN(len(failingFaults))]
			if why := r.breaks(func(bad func(string)) {
				newCrashWorld(5, mode.opts, judge(bad, 5)).failOnce(failingScript, 1+random.IntN(200), fault)
			}); why != "" {
				return why, mode.name + ", failing I/O"
			}
		}
	}
	return "", ""
}
