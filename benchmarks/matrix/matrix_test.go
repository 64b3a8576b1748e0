package matrix

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A wrongMap is a store of words with one fault.
type wrongMap struct {
	wordMap
	fault string
}

func (m wrongMap) Get(keys, vals []uint64) (found int, err error) {
	found, err = m.wordMap.Get(keys, vals)
	switch m.fault {
	case "misses":
		found--
	case "finds too much":
		found = len(keys)
	case "wrong value":
		vals[len(vals)-1]++
	}
	return found, err
}

func (m wrongMap) Set(keys, vals []uint64) error {
	if m.fault == "keeps old values" {
		for i, k := range keys {
			if _, ok := m.goMap[k]; !ok {
				m.goMap[k] = vals[i]
			}
		}
		return nil
	}
	return m.wordMap.Set(keys, vals)
}

func (m wrongMap) Increment(keys []uint64) error {
	if m.fault == "does not count" {
		return nil
	}
	return m.wordMap.Increment(keys)
}

func (m wrongMap) Delete(keys []uint64) error {
	if m.fault == "deletes too little" {
		keys = keys[1:]
	}
	return m.wordMap.Delete(keys)
}

func TestFaultsAreFound(t *testing.T) {
	for fault, want := range map[string]string{
		"misses":             "keys found",
		"finds too much":     "absent keys found",
		"wrong value":        "instead of",
		"keeps old values":   "instead of",
		"does not count":     "instead of",
		"deletes too little": "entries instead of 0",
	} {
		m := Map
		m.Words = func(string) (Store[uint64, uint64], error) {
			return wrongMap{wordMap{goMap[uint64, uint64]{}}, fault}, nil
		}
		assert.ErrorContains(t, Smoke(t.TempDir(), m), want, fault)
	}
	assert.NoError(t, Smoke(t.TempDir(), Map))
}

func TestDistributions(t *testing.T) {
	const n = 100_000
	for name, key := range distributions {
		seen := map[uint64]bool{}
		for i := range uint64(n) {
			seen[key(i)] = true
		}
		assert.Len(t, seen, n, name)
	}
}

// The ratio is the median of the rounds' ratios, not that of the medians, and the map is the measure of a reopened file too.
func TestTable(t *testing.T) {
	r := results{}
	for _, round := range [][2]float64{{10, 5}, {20, 40}, {100, 300}} {
		r.add(cell{"map", rowHit, false}, twice(round[0]))
		r.add(cell{"emd", rowHit, false}, twice(round[1]))
		r.add(cell{"emd", rowHit, true}, figure{cpu: round[0] * 1.5, early: round[0] == 20})
	}
	var out strings.Builder
	r.printRows(&out, []Impl{Map, EMD}, timedRows, Map.Name, func(f figure) float64 { return f.cpu })
	require.Equal(t, strings.Join([]string{
		"| | map | emd |",
		"|---|---|---|",
		"| Get, hit | 20.0 | 40.0 (2.00) |",
		"| reopened: Get, hit |  | 30.0* (1.50) |",
		"",
	}, "\n"), out.String())
}
