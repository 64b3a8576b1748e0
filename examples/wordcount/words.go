package main

import (
	"bufio"
	"context"
	"errors"
	"go/scanner"
	"go/token"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A kind is a way to see files as words.
type kind struct {
	name  string // kept in the tally
	noun  string // of one, for messages
	wants func(path string) bool
	split func(r io.Reader) iter.Seq2[string, error] // an error ends it
}

var (
	plainWords = &kind{"words", "word", func(string) bool { return true }, words}

	goIdentifiers = &kind{"idents", "identifier", func(path string) bool { return filepath.Ext(path) == ".go" }, identifiers}
)

// kindNamed returns the kind of that name, nil if there is none.
func kindNamed(name string) *kind {
	for _, k := range []*kind{plainWords, goIdentifiers} {
		if k.name == name {
			return k
		}
	}
	return nil
}

// words yields the runs of letters and digits of a text, in lower case.
func words(r io.Reader) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		s := bufio.NewScanner(r)
		s.Split(splitWord)
		for s.Scan() {
			if !yield(strings.ToLower(s.Text()), nil) {
				return
			}
		}
		if err := s.Err(); err != nil {
			yield("", err)
		}
	}
}

// maxWord is where a run of letters and digits is cut, in bytes: a longer one
// is data in some encoding, which need not fit into memory.
const maxWord = 1 << 10

// splitWord is a [bufio.SplitFunc] that finds the next word.
func splitWord(data []byte, atEOF bool) (advance int, word []byte, err error) {
	start := len(data)
	for i := 0; i < len(data); {
		r, size := rune(data[i]), 1
		if r >= utf8.RuneSelf {
			if !atEOF && !utf8.FullRune(data[i:]) {
				return min(start, i), nil, nil // the rest of the rune comes with more data
			}
			r, size = utf8.DecodeRune(data[i:])
		}
		switch inWord := isWordRune(r); {
		case inWord && start == len(data):
			start = i
		case !inWord && start < len(data), start+maxWord <= i:
			return i, data[start:i], nil
		}
		i += size
	}
	if atEOF && start < len(data) {
		return len(data), data[start:], nil
	}
	return start, nil, nil // what lies before start is no word
}

func isWordRune(r rune) bool {
	if r < utf8.RuneSelf {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
	}
	return unicode.IsLetter(r) || unicode.IsDigit(r)
}

// identifiers yields the identifiers of a Go file, keywords left out, as far
// as it can be read as Go.
func identifiers(r io.Reader) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		src, err := io.ReadAll(r)
		if err != nil {
			yield("", err)
			return
		}
		var s scanner.Scanner
		s.Init(token.NewFileSet().AddFile("", -1, len(src)), src, nil, 0)
		for {
			_, tok, text := s.Scan()
			if tok == token.EOF || tok == token.IDENT && !yield(text, nil) {
				return
			}
		}
	}
}

// find returns the files to count: those named, and the regular files that k
// wants in the folders named, by absolute paths without symbolic links, each
// once. What it cannot read is a warning; the error is that of ctx.
func find(ctx context.Context, roots []string, k *kind, warn func(error)) ([]string, error) {
	var paths []string
	for _, root := range roots {
		root, err := resolve(root)
		if err != nil {
			warn(err)
			continue
		}
		// No error but SkipAll is returned, so WalkDir returns none.
		_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return fs.SkipAll
			case err != nil:
				warn(err)
			case entry.IsDir():
			case path == root && !entry.Type().IsRegular():
				warn(&fs.PathError{Op: "count", Path: path, Err: errors.New("it is neither a file nor a folder")})
			case path == root, entry.Type().IsRegular() && k.wants(path):
				paths = append(paths, path)
			}
			return nil
		})
	}
	slices.Sort(paths)
	return slices.Compact(paths), ctx.Err()
}

// resolve returns the one name of the file or folder at path.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}
