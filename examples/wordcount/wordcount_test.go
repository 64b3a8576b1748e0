package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/emd-go/emd"
)

func TestSplit(t *testing.T) {
	for name, c := range map[string]struct {
		kind *kind
		text string
		want []string
	}{
		"empty":             {plainWords, "", nil},
		"no words":          {plainWords, " .,-\n\t(!) ", nil},
		"lower case":        {plainWords, "Never odd, or EVEN", []string{"never", "odd", "or", "even"}},
		"digits":            {plainWords, "route 66a", []string{"route", "66a"}},
		"one word":          {plainWords, "word", []string{"word"}},
		"other alphabets":   {plainWords, "Ärger: ΣΊΣΥΦΟΣ, 東京…٣", []string{"ärger", "σίσυφοσ", "東京", "٣"}},
		"not UTF-8":         {plainWords, "a\xffb \xe6\x9d", []string{"a", "b"}},
		"identifiers":       {goIdentifiers, "package p // not this\nvar Err, x1 = \"nor this\", y.Z", []string{"p", "Err", "x1", "y", "Z"}},
		"no Go":             {goIdentifiers, "ok }{ '' \x01 more", []string{"ok", "more"}},
		"longest word":      {plainWords, "a " + strings.Repeat("é", maxWord/2) + " z", []string{"a", strings.Repeat("é", maxWord/2), "z"}},
		"a run of no words": {plainWords, strings.Repeat("x", 2*maxWord+1), []string{strings.Repeat("x", maxWord), strings.Repeat("x", maxWord), "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, collect(t, c.kind.split(strings.NewReader(c.text))))
			assert.Equal(t, c.want, collect(t, c.kind.split(iotest.OneByteReader(strings.NewReader(c.text)))), "byte by byte")
		})
	}
}

func TestSplitReadError(t *testing.T) {
	for _, k := range []*kind{plainWords, goIdentifiers} {
		var last error
		for _, err := range k.split(io.MultiReader(strings.NewReader("some text "), iotest.ErrReader(errDevice))) {
			last = err
		}
		assert.ErrorIs(t, last, errDevice, k.name)
	}
}

func TestCount(t *testing.T) {
	db, dir := newFolder(t, map[string]string{
		"a.txt":         "to be or not to be",
		"deep/er/b.txt": "To sleep",
		"picture":       "to\x00to to to",
		"late-nul":      strings.Repeat("y ", 4<<10) + "\x00",
	})
	stdout, stderr, err := wordcount(t, "-db", db, "-top", "3", dir, filepath.Join(dir, "a.txt"))
	require.NoError(t, err)
	assert.Regexp(t, `^y   +4,096  █+\nto +3  ▏\nbe +2  ▏\n$`, stdout)
	assert.Contains(t, stderr, "counted 3 files, 4,104 words in ")
	assert.Contains(t, stderr, "binary, left out: 1 file")

	again, _, err := wordcount(t, "-db", db, "-top", "3")
	require.NoError(t, err)
	assert.Equal(t, stdout, again, "without paths")
}

func TestCountIdentifiers(t *testing.T) {
	db, dir := newFolder(t, map[string]string{"p.go": "package p; func F(err error) error { return err }", "p.txt": "err"})
	_, _, err := wordcount(t, "-db", db, "-idents", dir)
	require.NoError(t, err)
	for word, n := range map[string]string{"err": "2", "error": "2", "F": "1", "f": "0", "func": "0"} {
		stdout, _, err := wordcount(t, "-db", db, "-get", word)
		require.NoError(t, err)
		assert.Regexp(t, `^`+word+`  `+n+`  \(opened the file in .*s, looked the word up in .*s\)\n$`, stdout)
	}
}

func TestCountAgain(t *testing.T) {
	db, dir := newFolder(t, map[string]string{"a": "one two", "b": "two"})
	touch := func() { require.NoError(t, os.Chtimes(filepath.Join(dir, "a"), time.Time{}, time.Unix(1e9, 0))) }
	steps := []struct {
		name   string
		change func()
		says   string
		want   map[string]uint64
	}{
		{"first", func() {}, "counted 2 files, 3 words in ", map[string]uint64{"one": 1, "two": 2}},
		{"nothing new", func() {}, "; counted before: 2 files", map[string]uint64{"one": 1, "two": 2}},
		{"new file", func() { write(t, dir, "c", "three") }, "counted 1 file, 1 word in ", map[string]uint64{"one": 1, "two": 2, "three": 1}},
		{"other time", touch, "counted 1 file, 2 words in ", map[string]uint64{"one": 2, "two": 3, "three": 1}},
		{"other size", func() { write(t, dir, "a", "one two three"); touch() }, "; counted before: 2 files", map[string]uint64{"one": 3, "two": 4, "three": 2}},
	}
	for _, step := range steps {
		step.change()
		_, stderr, err := wordcount(t, "-db", db, dir)
		require.NoError(t, err, step.name)
		assert.Contains(t, stderr, step.says, step.name)
		assert.Equal(t, step.want, counts(t, db), step.name)
	}
}

// The file that keeps the counts may lie among the files to count.
func TestCountOwnFolder(t *testing.T) {
	_, dir := newFolder(t, map[string]string{"a": "word"})
	for range 2 {
		_, stderr, err := wordcount(t, "-db", filepath.Join(dir, "db"), dir)
		require.NoError(t, err)
		assert.NotContains(t, stderr, "binary")
	}
}

var errDevice = errors.New("device fell off the table")

func TestFailingFileIsRolledBack(t *testing.T) {
	db, _ := newFolder(t, nil)
	text := strings.Repeat("old new ", checkEvery)
	withTally(t, db, func(tl *tally) {
		_, err := tl.count(t.Context(), "good", stamp{1, 1}, strings.NewReader("old"), func(uint64) {})
		require.NoError(t, err)
		_, err = tl.count(t.Context(), "bad", stamp{1, 1}, io.MultiReader(strings.NewReader(text), iotest.ErrReader(errDevice)), func(uint64) {})
		require.ErrorIs(t, err, errDevice)
		assert.True(t, isInputError(err))
		known, err := tl.files.Contains("bad")
		require.NoError(t, err)
		assert.False(t, known, "must be counted by the next run")
		_, err = tl.count(t.Context(), "next", stamp{1, 1}, strings.NewReader("next"), func(uint64) {})
		require.NoError(t, err)
	})
	assert.Equal(t, map[string]uint64{"old": 1, "next": 1}, counts(t, db))
}

func TestFailingFileIsReported(t *testing.T) {
	db, dir := newFolder(t, map[string]string{"a": "word", "b": "word"})
	withTally(t, db, func(tl *tally) {
		var out bytes.Buffer
		p := newProgress(&out, "word")
		s, err := tl.countAll(t.Context(), []string{filepath.Join(dir, "a"), filepath.Join(dir, "gone"), filepath.Join(dir, "b")}, p)
		require.NoError(t, err)
		assert.Equal(t, summary{files: 3, counted: 2, words: 2}, s)
		assert.Contains(t, out.String(), filepath.Join(dir, "gone")+" is left out: ")
		assert.Equal(t, 1, p.warnings)
	})

	_, stderr, err := wordcount(t, "-db", db, dir, filepath.Join(dir, "gone"))
	assert.ErrorIs(t, err, errFailed)
	assert.Contains(t, stderr, "gone")
}

// cancelAfter ends a context when it has been read to its end, and goes on.
type cancelAfter struct {
	io.Reader
	cancel context.CancelFunc
}

func (r cancelAfter) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err == io.EOF {
		r.cancel()
	}
	return n, err
}

func TestInterruptedInsideFile(t *testing.T) {
	db, _ := newFolder(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	text := strings.Repeat("word ", 100*checkEvery)
	withTally(t, db, func(tl *tally) {
		_, err := tl.count(ctx, "good", stamp{}, strings.NewReader("before"), func(uint64) {})
		require.NoError(t, err)
		r := io.MultiReader(cancelAfter{strings.NewReader(text), cancel}, strings.NewReader(text))
		n, err := tl.count(ctx, "long", stamp{}, r, func(uint64) {})
		require.ErrorIs(t, err, context.Canceled)
		assert.Less(t, n, uint64(150*checkEvery), "goes on after Ctrl-C")
		assert.False(t, isInputError(err))
	})
	assert.Equal(t, map[string]uint64{"before": 1}, counts(t, db))
}

// writerFunc is an [io.Writer] made of its Write method.
type writerFunc func(p []byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

func TestInterruptedRunGoesOn(t *testing.T) {
	db, dir := newFolder(t, map[string]string{"a": "one", "b": "two", "c": "three"})
	ctx, cancel := context.WithCancel(t.Context())
	withTally(t, db, func(tl *tally) {
		p := newProgress(writerFunc(func(line []byte) (int, error) {
			if bytes.HasPrefix(line, []byte("1 of 3 ")) {
				cancel()
			}
			return len(line), nil
		}), "word")
		p.total, p.every = 3, 0
		paths, err := find(ctx, []string{dir}, plainWords, p.warn)
		require.NoError(t, err)
		s, err := tl.countAll(ctx, paths, p)
		require.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, summary{files: 1, counted: 1, words: 1}, s)
	})

	var stdout, stderr bytes.Buffer
	err := run(ctx, []string{"-db", db, dir}, &stdout, &stderr)
	assert.ErrorIs(t, err, context.Canceled)
	assert.Contains(t, stderr.String(), "run the same command to go on")
	assert.Equal(t, 130, exitCode(err, &stderr))
	assert.Equal(t, map[string]uint64{"one": 1}, counts(t, db))

	_, says, err := wordcount(t, "-db", db, dir)
	require.NoError(t, err)
	assert.Contains(t, says, "counted 2 files, 2 words in ")
	assert.Contains(t, says, "; counted before: 1 file")
	assert.Equal(t, map[string]uint64{"one": 1, "two": 1, "three": 1}, counts(t, db))
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, db string)
		args    []string
		says    string
	}{
		"nothing counted yet": {func(*testing.T, string) {}, []string{"-get", "x"}, "nothing was counted into it yet: run wordcount -db "},
		"another format": {func(t *testing.T, db string) {
			write(t, filepath.Dir(db), filepath.Base(db), strings.Repeat("text ", 10_000))
		}, []string{"-get", "x"}, "choose another file with -db"},
		"another program": {func(t *testing.T, db string) {
			d, err := emd.OpenDict[string, string](db, nil)
			require.NoError(t, err)
			require.NoError(t, d.Close())
		}, []string{"."}, "belongs to another program: choose another file with -db"},
		"identifiers": {func(t *testing.T, db string) {
			tl, err := openTallyForCounting(db, goIdentifiers)
			require.NoError(t, err)
			require.NoError(t, tl.close())
		}, []string{"."}, "it counts something else: identifiers, not words\n"},
		"in use": {func(t *testing.T, db string) {
			tl, err := openTallyForCounting(db, plainWords)
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, tl.close()) })
		}, []string{"."}, "wait until that has finished"},
	} {
		t.Run(name, func(t *testing.T) {
			db, _ := newFolder(t, nil)
			c.prepare(t, db)
			_, _, err := wordcount(t, append([]string{"-db", db}, c.args...)...)
			require.ErrorContains(t, err, c.says)
			var stderr bytes.Buffer
			assert.Equal(t, 1, exitCode(err, &stderr))
			assert.Contains(t, stderr.String(), c.says)
		})
	}
}

func TestUsage(t *testing.T) {
	for name, args := range map[string][]string{
		"flag":      {"-frequency"},
		"top":       {"-top", "-1"},
		"get paths": {"-get", "x", "."},
	} {
		_, stderr, err := wordcount(t, args...)
		assert.ErrorIs(t, err, errUsage, name)
		assert.Equal(t, 2, exitCode(err, io.Discard), name)
		assert.Contains(t, stderr, "usage: wordcount", name)
	}
	_, _, err := wordcount(t, "-h")
	assert.ErrorIs(t, err, flag.ErrHelp)
	assert.Zero(t, exitCode(err, io.Discard))
}

func TestTop(t *testing.T) {
	db, dir := newFolder(t, map[string]string{"a": "b b a a c c c d"})
	_, _, err := wordcount(t, "-db", db, dir)
	require.NoError(t, err)
	all := []entry{{"c", 3}, {"a", 2}, {"b", 2}, {"d", 1}}
	withTally(t, db, func(tl *tally) {
		for k := range 6 {
			top, err := tl.top(k)
			require.NoError(t, err)
			assert.ElementsMatch(t, all[:min(k, 4)], top, "top %d", k)
		}
	})
}

func TestChart(t *testing.T) {
	top := []entry{{"the", 1_000_000}, {strings.Repeat("long", 20), 500_000}, {"東京", 1}}
	for _, width := range []int{1, 20, 40, 80, 200} {
		lines := chart(top, width)
		require.Len(t, lines, 3)
		for _, line := range lines {
			assert.LessOrEqual(t, utf8.RuneCountInString(line), max(width-1, 22), "%q", line)
		}
	}
	assert.Equal(t, []string{
		"the            1,000,000  █████████████",
		"longlonglong…    500,000  ██████▌",
		"東京                     1  ▏",
	}, chart(top, 40))
	assert.Empty(t, chart(nil, 80))
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out, "word")
	p.total = 2000
	p.show(1, 10)
	assert.Empty(t, out.String(), "too early")
	p.every = 0
	p.start = p.start.Add(-10 * time.Second)
	p.show(1000, 123_456_789)
	assert.Regexp(t, `^1,000 of 2,000 files \(50%\)  123,456,789 words  12,3\d\d,\d\d\d/s  10s\n$`, out.String())

	out.Reset()
	p.width = 40
	p.show(1000, 123_456_789)
	p.show(1, 1)
	p.warn(errDevice)
	assert.Equal(t, "wordcount: device fell off the table", onScreen(t, out.String(), 40))
}

// onScreen returns the last line of a terminal after out was written to it.
func onScreen(t *testing.T, out string, width int) string {
	var line []rune
	column := 0
	for _, r := range strings.TrimSuffix(out, "\n") {
		switch r {
		case '\r':
			column = 0
		default:
			line = append(line[:column], append([]rune{r}, line[min(column+1, len(line)):]...)...)
			column++
		}
		require.Less(t, column, width, "the line wraps: %q", out)
	}
	return strings.TrimRight(string(line), " ")
}

func TestGrouped(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		assert.Equal(t, want, grouped(n))
	}
}

// wordcount runs the command line args.
func wordcount(t *testing.T, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	err = run(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), err
}

// newFolder makes a folder with these files, and a name for a tally outside of it.
func newFolder(t *testing.T, files map[string]string) (db, dir string) {
	dir = t.TempDir()
	for name, text := range files {
		write(t, dir, name, text)
	}
	return filepath.Join(t.TempDir(), "words.emd"), dir
}

func write(t *testing.T, dir, name, text string) {
	path := filepath.Join(dir, filepath.FromSlash(name))
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

// withTally runs fn with the tally of words in db, and closes it.
func withTally(t *testing.T, db string, fn func(*tally)) {
	tl, err := openTallyForCounting(db, plainWords)
	require.NoError(t, err)
	defer func() { assert.NoError(t, tl.close()) }()
	fn(tl)
}

// counts returns what db holds.
func counts(t *testing.T, db string) map[string]uint64 {
	tl, err := openTally(db)
	require.NoError(t, err)
	defer tl.close()
	m := map[string]uint64{}
	for word, n := range tl.words.All() {
		m[word] = n
	}
	require.NoError(t, tl.arena.Err())
	return m
}

func collect(t *testing.T, seq iter.Seq2[string, error]) []string {
	var words []string
	for word, err := range seq {
		require.NoError(t, err)
		words = append(words, word)
	}
	return words
}
