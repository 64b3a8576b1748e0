package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/emd-go/emd"
)

// A tally is an open file of counts: two dicts that commit together, so that a
// file is known to be counted exactly when its words are.
type tally struct {
	arena *emd.Arena
	words *emd.EMDict[string, uint64] // how often each was seen
	files *emd.EMDict[string, stamp]  // by path: what has been counted
	kind  *kind
}

// A stamp tells one state of a file from another.
type stamp struct {
	Size    int64
	ModTime int64 // in nanoseconds since 1970
}

// kindKey is where a tally notes whether it counts words or identifiers.
const kindKey = "wordcount.kind"

var (
	errForeign = errors.New("it has no counts of words")
	errKind    = errors.New("it counts something else")
)

// openTally opens an existing tally for reading.
func openTally(path string) (*tally, error) {
	arena, err := emd.Open(path, &emd.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	t, err := newTally(arena, path)
	if err != nil {
		return nil, errors.Join(err, arena.Close())
	}
	return t, nil
}

// openTallyForCounting opens a tally for counting; it creates one if path does
// not exist.
func openTallyForCounting(path string, k *kind) (*tally, error) {
	// The order of commits is all that counting needs: when a power cut takes
	// the last of them away, their files are simply counted again. So no
	// commit has to wait for the disk.
	arena, err := emd.Open(path, &emd.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	t, err := prepare(arena, path, k)
	if err != nil {
		return nil, errors.Join(err, arena.Close())
	}
	return t, nil
}

// prepare makes an empty arena a tally of kind k, and checks that any other is one.
func prepare(arena *emd.Arena, path string, k *kind) (*tally, error) {
	if isEmpty(arena) {
		if err := arena.SetMeta(kindKey, []byte(k.name)); err != nil {
			return nil, err
		}
	}
	t, err := newTally(arena, path)
	if err != nil {
		return nil, err
	}
	if t.kind != k {
		return nil, fmt.Errorf("%s: %w: %ss, not %ss", path, errKind, t.kind.noun, k.noun)
	}
	return t, arena.Sync()
}

func isEmpty(arena *emd.Arena) bool {
	for range arena.Containers() {
		return false
	}
	return true
}

// newTally opens the dicts of a tally.
func newTally(arena *emd.Arena, path string) (*tally, error) {
	name, _ := arena.Meta(kindKey)
	t := &tally{arena: arena, kind: kindNamed(string(name))}
	if t.kind == nil {
		return nil, fmt.Errorf("%s: %w", path, errForeign)
	}
	var err error
	if t.words, err = emd.Dict[string, uint64](arena, "words", nil); err != nil {
		return nil, err
	}
	if t.files, err = emd.Dict[string, stamp](arena, "files", nil); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *tally) close() error { return t.arena.Close() }

// get returns how often a word was seen.
func (t *tally) get(word string) (uint64, error) {
	if t.kind == plainWords {
		word = strings.ToLower(word)
	}
	n, _, err := t.words.Get(word)
	return n, err
}

// A summary says what became of the files given.
type summary struct {
	files   int    // looked at
	counted int    // of these, counted now
	known   int    // counted by an earlier run
	binary  int    // left out
	words   uint64 // counted now
}

// countAll counts files one by one. A file that cannot be counted is a
// warning; it returns an error when ctx ends or the tally fails.
func (t *tally) countAll(ctx context.Context, paths []string, p *progress) (summary, error) {
	var s summary
	for _, path := range paths {
		p.show(s.files, s.words)
		if err := ctx.Err(); err != nil {
			return s, err
		}
		err := t.countFile(ctx, path, p, &s)
		switch {
		case isInputError(err):
			p.warn(fmt.Errorf("%s is left out: %w", path, err))
		case err != nil:
			return s, err
		}
		s.files++
	}
	return s, nil
}

// countFile counts the file at path, unless it is binary or was counted before,
// and adds to s what it did.
func (t *tally) countFile(ctx context.Context, path string, p *progress, s *summary) error {
	f, err := os.Open(path)
	if err != nil {
		return inputError{err}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return inputError{err}
	}
	now := stamp{info.Size(), info.ModTime().UnixNano()}
	then, ok, err := t.files.Get(path)
	if err != nil {
		return err
	}
	if ok && then == now {
		s.known++
		return nil
	}
	r := bufio.NewReaderSize(f, 64<<10)
	binary, err := isBinary(r)
	if err != nil {
		return inputError{err}
	}
	if binary {
		s.binary++
		return nil
	}
	n, err := t.count(ctx, path, now, r, func(n uint64) { p.show(s.files, s.words+n) })
	if err != nil {
		return err
	}
	s.counted++
	s.words += n
	return nil
}

// checkEvery is how many words are counted between two looks at the clock and
// at Ctrl-C: at a few million words a second, well below a millisecond.
const checkEvery = 1024

// count adds the words of r to the counts and notes that path was counted in
// the state now, both or, on any error, neither. It returns how many there were.
func (t *tally) count(ctx context.Context, path string, now stamp, r io.Reader, tick func(uint64)) (n uint64, err error) {
	err = t.arena.Update(func() error {
		for word, err := range t.kind.split(r) {
			if err != nil {
				return inputError{err}
			}
			if _, _, err := t.words.Compute(word, increment); err != nil {
				return err
			}
			if n++; n%checkEvery == 0 {
				tick(n)
				if err := ctx.Err(); err != nil {
					return err
				}
			}
		}
		return t.files.Set(path, now)
	})
	return n, err
}

func increment(n uint64, _ bool) (uint64, emd.Op) { return n + 1, emd.OpStore }

// isBinary reports whether the text that r is about to read has a NUL byte
// near its start.
func isBinary(r *bufio.Reader) (bool, error) {
	head, err := r.Peek(8 << 10)
	if err != nil && err != io.EOF {
		return false, err
	}
	return bytes.IndexByte(head, 0) >= 0, nil
}

// An inputError is the fault of a file to be counted, not of the tally.
type inputError struct{ err error }

func (e inputError) Error() string { return e.err.Error() }
func (e inputError) Unwrap() error { return e.err }

// isInputError reports whether the next file may fare better.
func isInputError(err error) bool {
	var in inputError
	return errors.As(err, &in) ||
		errors.Is(err, emd.ErrTooLarge) || // a word longer than a key may be
		errors.Is(err, emd.ErrUpdateTooLarge) // more new words than a transaction holds
}
