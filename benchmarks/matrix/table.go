package matrix

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

const (
	rowFill     = "Set, new keys"
	rowHit      = "Get, hit"
	rowMiss     = "Get, miss"
	rowMany     = "GetMany by 64, hit"
	rowAll      = "All"
	rowExisting = "Set, existing keys"
	rowCompute  = "Compute, m[k]++"
	rowDelete   = "Delete"
	andSync     = ", and Sync" // the row before, with a Sync at its end
	rowLongest  = "longest single Set while filling, µs"
	rowDurable  = "one durable Set, median, µs"
	rowSize     = "bytes on disk an entry"
	rowOpen     = "open and first Get, µs"
)

// rawImpl is what the disk takes for rowDurable: a write of 4 KiB over written ones, and a wait.
const rawImpl = "write 4 KiB"

var (
	timedRows = []string{
		rowFill, rowFill + andSync, rowHit, rowMiss, rowMany, rowExisting, rowExisting + andSync,
		rowCompute, rowCompute + andSync, rowDelete, rowDelete + andSync, rowAll,
	}
	otherRows = []string{rowLongest, rowDurable, rowSize, rowOpen}
)

func printMachine(w io.Writer, impls []Impl) {
	fmt.Fprintf(w, "    %s %s\n\n", filepath.Base(os.Args[0]), strings.Join(os.Args[1:], " "))
	fmt.Fprintf(w, "%s, %s/%s, %s, GOMAXPROCS=%d of %d\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, processor(), runtime.GOMAXPROCS(0), runtime.NumCPU())
	fmt.Fprintf(w, "first use of a page of memory: %v\n", pageFault())
	printLoad(w)
	fmt.Fprintln(w)
	for _, m := range impls {
		fmt.Fprintf(w, "- %s%s: %s\n", m.Name, version(m.Module), m.Note)
	}
}

// processor returns the name of this one, where the system tells it.
func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "model name"); ok {
			return strings.TrimLeft(name, "\t: ")
		}
	}
	return "unknown processor"
}

// pageFault returns what the first use of a page costs: a microsecond or less, or many times that in some virtual machines, where
// it is most of the cost of what grows.
func pageFault() time.Duration {
	const pages = 1 << 14
	fresh := make([]byte, pages*4096)
	start := time.Now()
	for i := 0; i < len(fresh); i += 4096 {
		fresh[i] = 1
	}
	return time.Since(start) / pages
}

// printLoad tells how busy the machine is, where the system does.
func printLoad(w io.Writer) {
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Fprintf(w, "load: %s", load)
	}
}

func version(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok || module == "" {
		return ""
	}
	for _, d := range info.Deps {
		if d.Path == module {
			return " " + d.Version
		}
	}
	return ""
}

func (o *Options) print(w io.Writer, kind string, impls []Impl, r results) {
	fmt.Fprintf(w, "\n## %s: %d entries, %s keys, medians of %d rounds\n", kind, o.N, o.Keys, o.Rounds)
	cpu := func(f figure) float64 { return f.cpu }
	wall := func(f figure) float64 { return f.wall }
	if o.hasBase(impls) {
		fmt.Fprintf(w, "\nIn brackets: the median of the ratios to the %s in the same round.\n", Map.Name)
	}
	if o.Budget > 0 {
		fmt.Fprintf(w, "\nWith *: ended after %v, before all entries had their turn. What a store does once for each page then weighs too much.\n", o.Budget)
	}
	fmt.Fprintf(w, "\nProcessor time, ns an operation:\n\n")
	r.printRows(w, impls, timedRows, Map.Name, cpu)
	fmt.Fprintf(w, "\nWall time, ns an operation:\n\n")
	r.printRows(w, impls, timedRows, Map.Name, wall)
	fmt.Fprintf(w, "\nIn brackets: ratios to a write of 4 KiB over written ones and a wait for the disk, %s µs.\n\n",
		short(median(r.figures(cell{rawImpl, rowDurable, false}, wall))))
	r.printRows(w, impls, otherRows, rawImpl, wall)
}

func (o *Options) hasBase(impls []Impl) bool {
	return slices.ContainsFunc(impls, func(m Impl) bool { return m.Name == Map.Name })
}

func (r results) printRows(w io.Writer, impls []Impl, rows []string, base string, of func(figure) float64) {
	fmt.Fprint(w, "| |")
	for _, m := range impls {
		fmt.Fprintf(w, " %s |", m.Name)
	}
	fmt.Fprint(w, "\n|---|"+strings.Repeat("---|", len(impls))+"\n")
	for _, reopened := range []bool{false, true} {
		for _, row := range rows {
			cells := r.cells(impls, row, reopened, base, of)
			if slices.ContainsFunc(cells, func(c string) bool { return c != "" }) {
				if reopened {
					row = "reopened: " + row
				}
				fmt.Fprintf(w, "| %s | %s |\n", row, strings.Join(cells, " | "))
			}
		}
	}
}

func (r results) cells(impls []Impl, row string, reopened bool, base string, of func(figure) float64) (cells []string) {
	against := r.figures(cell{base, row, false}, of) // a map is never reopened
	for _, m := range impls {
		text := ""
		if got := r.figures(cell{m.Name, row, reopened}, of); len(got) > 0 {
			text = short(median(got))
			if slices.ContainsFunc(r[cell{m.Name, row, reopened}], func(f figure) bool { return f.early }) {
				text += "*"
			}
			if len(against) == len(got) && m.Name != base {
				ratios := make([]float64, len(got))
				for i := range got {
					ratios[i] = got[i] / against[i]
				}
				text += fmt.Sprintf(" (%.2f)", median(ratios))
			}
		}
		cells = append(cells, text)
	}
	return cells
}

func (r results) figures(c cell, of func(figure) float64) (all []float64) {
	for _, f := range r[c] {
		all = append(all, of(f))
	}
	return all
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// short prints three digits or, of a large number, all before the point.
func short(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}
