package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// A task tells the user how far something is that may take long: on a terminal
// in one line that is written over, elsewhere in a line every few seconds.
type task struct {
	w        io.Writer
	name     string // "sorting"
	terminal bool
	every    time.Duration

	start, last time.Time
	shown       int // columns of the line that stands on the terminal
}

func newTask(w io.Writer, name string) *task {
	t := &task{w: w, name: name, every: 3 * time.Second, start: time.Now()}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		t.terminal, t.every = true, 100*time.Millisecond
	}
	t.last = t.start
	return t
}

// show tells how much is done, unless it did so a moment ago. It is an
// emgraph.Progress.
func (t *task) show(done, total int64) {
	now := time.Now()
	if now.Sub(t.last) < t.every {
		return
	}
	t.last = now
	elapsed := now.Sub(t.start)
	line := fmt.Sprintf("%s: %s", t.name, grouped(int(done)))
	if total > 0 {
		line = fmt.Sprintf("%s: %d%%", t.name, 100*done/total)
	}
	if done > 0 && total > 0 {
		line += fmt.Sprintf(", %v left", (time.Duration(float64(elapsed) * float64(total-done) / float64(done))).Round(time.Second))
	}
	if t.terminal {
		t.replace(line)
	} else {
		fmt.Fprintln(t.w, line)
	}
}

// replace writes line over the one that stands on the terminal, with blanks,
// which every terminal understands.
func (t *task) replace(line string) {
	fmt.Fprintf(t.w, "\r%*s\r%s", t.shown, "", line)
	t.shown = len(line)
}

// end takes away the line that comes and goes.
func (t *task) end() {
	if t.shown > 0 {
		t.replace("")
	}
}

// finish tells what was done.
func (t *task) finish(what string) {
	t.end()
	fmt.Fprintf(t.w, "%s in %v\n", what, time.Since(t.start).Round(time.Millisecond))
}

// failed tells, if the user interrupted the task, how things are now.
func (t *task) failed(err error, state string) error {
	t.end()
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted: %s%w", state, silent{err})
	}
	return err
}

// A silent error is told apart but says nothing.
type silent struct{ err error }

func (s silent) Error() string { return "" }
func (s silent) Unwrap() error { return s.err }

// plural returns n with the noun for it.
func plural(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return grouped(n) + " " + noun
}

// grouped returns n with a comma between groups of three digits.
func grouped(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// sizeOf returns a size for people.
func sizeOf(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f kB", float64(n)/1e3)
}
