package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// An entry is a word and how often it was seen.
type entry struct {
	word string
	n    uint64
}

// byRank sorts the most frequent words first, equals by name.
func byRank(a, b entry) int {
	return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.word, b.word))
}

// top returns the k most frequent words. It reads all and holds k.
func (t *tally) top(k int) ([]entry, error) {
	var top []entry
	err := t.arena.View(func() error { // fails if the loop met damage and ended early
		for word, n := range t.words.All() {
			e := entry{word, n}
			i, _ := slices.BinarySearchFunc(top, e, byRank)
			if i < k {
				top = slices.Insert(top, i, e)
				top = top[:min(len(top), k)]
			}
		}
		return nil
	})
	return top, err
}

// printTop prints the k most frequent words.
func (t *tally) printTop(w io.Writer, k int) error {
	top, err := t.top(k)
	if err != nil {
		return err
	}
	width, ok := terminalWidth(w)
	if !ok {
		width = 80
	}
	for _, line := range chart(top, width) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// chart returns a line of less than width columns for each entry: its word, its
// count, and a bar in proportion to it. The first entry has the longest bar.
func chart(top []entry, width int) []string {
	var wordWidth, countWidth int
	for _, e := range top {
		wordWidth = max(wordWidth, utf8.RuneCountInString(e.word))
		countWidth = max(countWidth, len(grouped(e.n)))
	}
	wordWidth = min(wordWidth, max(width/3, 8))
	barWidth := max(width-1-wordWidth-countWidth-2*len("  "), 1)
	var lines []string
	for _, e := range top {
		// Printf pads by characters, which is what the columns show.
		lines = append(lines, fmt.Sprintf("%-*s  %*s  %s", wordWidth, clip(e.word, wordWidth),
			countWidth, grouped(e.n), bar(float64(e.n)/float64(top[0].n), barWidth)))
	}
	return lines
}

// bar returns a bar of share*width columns, to the nearest eighth of a column
// but never empty.
func bar(share float64, width int) string {
	eighths := max(int(share*float64(8*width)+0.5), 1)
	return strings.TrimRight(strings.Repeat("█", eighths/8)+string([]rune(" ▏▎▍▌▋▊▉")[eighths%8]), " ")
}
