package main

import (
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// A progress tells the user how far the count is: on a terminal in one line
// that is written over, elsewhere in a line every few seconds.
type progress struct {
	w        io.Writer
	noun     string // of one thing counted
	width    int    // of the terminal, in columns; 0 where there is none
	every    time.Duration
	total    int // files to look at
	warnings int

	start time.Time
	last  time.Time // when something was shown
	shown int       // columns of the line that stands on the terminal
}

func newProgress(w io.Writer, noun string) *progress {
	p := &progress{w: w, noun: noun, every: 3 * time.Second, start: time.Now()}
	if width, ok := terminalWidth(w); ok {
		p.width, p.every = width, 100*time.Millisecond
	}
	p.last = p.start
	return p
}

// show tells how many files are done and how many words were counted, unless
// it did so a moment ago.
func (p *progress) show(files int, words uint64) {
	now := time.Now()
	if now.Sub(p.last) < p.every {
		return
	}
	p.last = now
	elapsed := now.Sub(p.start)
	line := fmt.Sprintf("%s of %s (%d%%)  %s  %s/s  %v",
		grouped(uint64(files)), plural(uint64(p.total), "file"), 100*files/max(p.total, 1),
		plural(words, p.noun), perSecond(words, elapsed), elapsed.Round(time.Second))
	if p.width == 0 {
		fmt.Fprintln(p.w, line)
		return
	}
	p.replace(clip(line, p.width-1))
}

// finish tells what was done in all.
func (p *progress) finish(s summary) {
	elapsed := time.Since(p.start)
	line := fmt.Sprintf("counted %s, %s in %v (%s/s)",
		plural(uint64(s.counted), "file"), plural(s.words, p.noun), elapsed.Round(time.Millisecond), perSecond(s.words, elapsed))
	if s.known > 0 {
		line += "; counted before: " + plural(uint64(s.known), "file")
	}
	if s.binary > 0 {
		line += "; binary, left out: " + plural(uint64(s.binary), "file")
	}
	p.printf("%s", line)
}

// warn tells about a file that is left out.
func (p *progress) warn(err error) {
	p.warnings++
	p.printf("wordcount: %v", err)
}

// printf writes a line that stays, in place of the one that comes and goes.
func (p *progress) printf(format string, args ...any) {
	if p.shown > 0 {
		p.replace("")
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

// replace writes line over the one that stands on the terminal. It erases with
// blanks, which every terminal understands.
func (p *progress) replace(line string) {
	fmt.Fprintf(p.w, "\r%*s\r%s", p.shown, "", line)
	p.shown = utf8.RuneCountInString(line)
}

// terminalWidth returns the columns of the terminal that w is; ok is false if
// it is none.
func terminalWidth(w io.Writer) (columns int, ok bool) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil || columns <= 0 {
		columns = 80
	}
	return columns, true
}

// perSecond returns a rate for people.
func perSecond(n uint64, d time.Duration) string {
	return grouped(uint64(float64(n) / max(d.Seconds(), 1e-3)))
}

// plural returns n with the noun for it.
func plural(n uint64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return grouped(n) + " " + noun
}

// grouped returns n with a comma between groups of three digits.
func grouped(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// clip returns s cut to n characters, the last an ellipsis if any are missing.
func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:max(n-1, 0)]) + "…"
}
