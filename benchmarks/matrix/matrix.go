// Package matrix measures dicts beside each other: the same operations on the same entries, in one run of one process,
// round after round, each implementation once a round, in another order each time. Ratios are between figures of one
// round. Everything that a store returns is compared with what it must be, off the clock.
package matrix

import (
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Options say what to measure.
type Options struct {
	N      int           // entries
	Rounds int           // each measures all implementations
	Batch  int           // entries that one Set, Delete or Increment of a Store gets
	Budget time.Duration // after which a row, except filling, does no more batches; 0: it does all
	Keys   string        // distribution
	Types  []string      // of typeNames
	Dir    string        // where files are made; "" is the system's place for temporary ones
}

var typeNames = []string{"words", "texts"}

// Main is the main function of a program that measures impls and prints tables.
func Main(impls ...Impl) {
	log.SetFlags(0)
	o := Options{}
	flag.IntVar(&o.N, "n", 1_000_000, "number of entries")
	flag.IntVar(&o.Rounds, "rounds", 6, "how often everything is measured; figures are medians")
	flag.IntVar(&o.Batch, "batch", 10_000, "entries of a batch or transaction, for stores that have these")
	flag.DurationVar(&o.Budget, "budget", 0, "after which a row, except filling, does no more batches; 0: it does all")
	flag.StringVar(&o.Keys, "keys", "uniform", "distribution of keys: "+strings.Join(distributionNames(), ", "))
	flag.StringVar(&o.Dir, "dir", "", "folder for the files")
	types := flag.String("types", strings.Join(typeNames, ","), "words are uint64 to uint64, texts string to 100 bytes")
	only := flag.String("impls", "", "names of the implementations to measure, with commas between; all if empty")
	processors := flag.Int("procs", 1, "GOMAXPROCS, background work of the stores included")
	flag.Parse()
	o.Types = strings.Split(*types, ",")
	if *only != "" {
		impls = slices.DeleteFunc(impls, func(m Impl) bool { return !slices.Contains(strings.Split(*only, ","), m.Name) })
	}
	if err := o.check(len(impls)); err != nil {
		log.Fatal(err)
	}
	runtime.GOMAXPROCS(*processors)
	printMachine(os.Stdout, impls)
	for _, kind := range o.Types {
		results, err := o.measure(kind, impls)
		if err != nil {
			log.Fatal(err)
		}
		o.print(os.Stdout, kind, impls, results)
	}
	printLoad(os.Stdout)
}

func (o *Options) check(impls int) error {
	switch {
	case o.N < 1 || o.N > 1<<31-1 || o.Rounds < 1 || o.Batch < 1 || impls == 0 || flag.NArg() > 0:
		return fmt.Errorf("nothing to measure: see -help")
	case distributions[o.Keys] == nil:
		return fmt.Errorf("keys are one of %v", distributionNames())
	}
	for _, t := range o.Types {
		if !slices.Contains(typeNames, t) {
			return fmt.Errorf("types are of %v", typeNames)
		}
	}
	return nil
}

// A cell is a place in the table. Rows of a reopened file are apart.
type cell struct {
	impl     string
	row      string
	reopened bool
}

// A figure is nanoseconds an operation, of the processor and of the wall clock; or what the row says, twice.
type figure struct {
	cpu, wall float64
	early     bool // the budget was used up before the row was done
}

func twice(v float64) figure { return figure{cpu: v, wall: v} }

// results has the figures of each cell, one for each round.
type results map[cell][]figure

func (o *Options) measure(kind string, impls []Impl) (results, error) {
	all := results{}
	for round := range o.Rounds {
		raw, err := rawWrite(o)
		if err != nil {
			return nil, err
		}
		all.add(cell{rawImpl, rowDurable, false}, raw)
		for i := range impls {
			m := impls[(i+round)%len(impls)]
			report := func(row string, reopened bool, f figure) { all.add(cell{m.Name, row, reopened}, f) }
			start := time.Now()
			if err := o.measureOne(kind, m, report); err != nil {
				return nil, fmt.Errorf("%s: %w", m.Name, err)
			}
			log.Printf("%s, round %d of %d: %s took %v", kind, round+1, o.Rounds, m.Name, time.Since(start).Round(time.Second/10))
		}
	}
	return all, nil
}

func (r results) add(c cell, f figure) { r[c] = append(r[c], f) }

// measureOne measures an implementation once.
func (o *Options) measureOne(kind string, m Impl, report func(row string, reopened bool, f figure)) error {
	switch {
	case kind == "words" && m.Words != nil:
		b := bench[uint64, uint64]{form: words(o.Keys), open: m.Words}
		return b.run(o, kind, m, report)
	case kind == "texts" && m.Texts != nil:
		b := bench[string, Text]{form: texts(o.Keys), open: m.Texts}
		return b.run(o, kind, m, report)
	case kind == "words":
		b := bench[[]byte, []byte]{form: wordBytes(o.Keys), open: m.Bytes}
		return b.run(o, kind, m, report)
	default:
		b := bench[[]byte, []byte]{form: textBytes(o.Keys), open: m.Bytes}
		return b.run(o, kind, m, report)
	}
}

// Smoke carries out every row once with few entries of each kind. As always, all that the store returns is checked.
func Smoke(dir string, m Impl) error {
	for _, kind := range typeNames {
		o := Options{N: 1000, Rounds: 1, Batch: 300, Keys: "uniform", Dir: dir}
		seen := results{}
		err := o.measureOne(kind, m, func(row string, reopened bool, f figure) { seen.add(cell{m.Name, row, reopened}, f) })
		if err == nil {
			err = m.missing(kind, seen)
		}
		if err != nil {
			return fmt.Errorf("%s, %s: %w", m.Name, kind, err)
		}
	}
	return nil
}

// missing says which row has no figure.
func (m Impl) missing(kind string, seen results) error {
	for _, row := range slices.Concat(timedRows, otherRows) {
		fill := strings.HasPrefix(row, rowFill)
		compute := strings.HasPrefix(row, rowCompute)
		disk := row == rowDurable || row == rowSize || row == rowOpen
		for _, reopened := range []bool{false, true} {
			wanted := !(compute && kind != "words") && !(m.Volatile && (disk || reopened)) &&
				!(reopened && (fill || disk || row == rowLongest))
			if got := len(seen[cell{m.Name, row, reopened}]) > 0; got != wanted {
				return fmt.Errorf("row %q, reopened %t: measured %t, should be %t", row, reopened, got, wanted)
			}
		}
	}
	return nil
}
