// Wordcount counts words in files, or identifiers in Go source, into a file
// that it can be asked about later:
//
//	wordcount [-db file] [-idents] [-top n] path...
//	wordcount [-db file] [-top n]
//	wordcount [-db file] -get word
//
// The first form counts the files and folders given, adds the counts to those
// in the file, and prints the most frequent words. A file counted before, with
// the same path, size and time of change, is not counted again; one that has
// changed since is counted again, on top of what it gave before. Words are
// runs of letters and digits, in lower case. With -idents they are the
// identifiers of Go files, as written. Binary files are left out. The second
// form prints what is there, the third looks one word up.
//
// Each file is one transaction: a file that cannot be read to its end, Ctrl-C,
// or a crash leaves all of its words in the counts or none.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/emd-go/emd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	os.Exit(exitCode(err, os.Stderr))
}

var (
	errUsage  = errors.New("usage")             // already explained
	errFailed = errors.New("some files failed") // already reported, file by file
)

// exitCode tells the user about err, as far as nobody has, and returns the
// status for the shell.
func exitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	case errors.Is(err, errFailed):
		return 1
	case errors.Is(err, context.Canceled):
		return 130 // as a shell says it of a program that SIGINT ended
	}
	fmt.Fprintln(stderr, "wordcount:", err)
	return 1
}

// A command is the command line, understood.
type command struct {
	db    string
	kind  *kind
	top   int
	get   string // a word to look up; or
	paths []string
}

func parse(args []string, stderr io.Writer) (command, error) {
	flags := flag.NewFlagSet("wordcount", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "usage: wordcount [-db file] [-idents] [-top n] path...   count files and folders\n"+
			"       wordcount [-db file] [-top n]                     print what was counted\n"+
			"       wordcount [-db file] -get word                    look one word up\n")
		flags.PrintDefaults()
	}
	cmd := command{kind: plainWords}
	flags.StringVar(&cmd.db, "db", "words.emd", "`file` that keeps the counts")
	flags.IntVar(&cmd.top, "top", 20, "print the `n` most frequent words")
	flags.StringVar(&cmd.get, "get", "", "print the count of one `word`")
	idents := flags.Bool("idents", false, "count the identifiers of Go files instead of words")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return cmd, err
	} else if err != nil {
		return cmd, errUsage // flags has told the user
	}
	if *idents {
		cmd.kind = goIdentifiers
	}
	cmd.paths = flags.Args()
	problem := ""
	switch {
	case cmd.get != "" && len(cmd.paths) > 0:
		problem = "-get looks a word up and counts nothing: give it no paths"
	case cmd.top < 0:
		problem = "-top must not be negative"
	}
	if problem != "" {
		fmt.Fprintln(stderr, "wordcount:", problem)
		flags.Usage()
		return cmd, errUsage
	}
	return cmd, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cmd, err := parse(args, stderr)
	if err != nil {
		return err
	}
	switch {
	case cmd.get != "":
		err = look(cmd, stdout)
	case len(cmd.paths) == 0:
		err = show(cmd, stdout)
	default:
		err = count(ctx, cmd, stdout, stderr)
	}
	return explain(err, cmd)
}

// look prints the count of one word, and how long the answer took.
func look(cmd command, stdout io.Writer) error {
	start := time.Now()
	t, err := openTally(cmd.db)
	if err != nil {
		return err
	}
	defer t.close()
	opened := time.Since(start)

	start = time.Now()
	n, err := t.get(cmd.get)
	if err != nil {
		return err
	}
	found := time.Since(start)
	fmt.Fprintf(stdout, "%s  %s  (opened the file in %v, looked the word up in %v)\n",
		cmd.get, grouped(n), opened.Round(time.Microsecond), found.Round(100*time.Nanosecond))
	return nil
}

// show prints the most frequent words of a file that is there already.
func show(cmd command, stdout io.Writer) error {
	t, err := openTally(cmd.db)
	if err != nil {
		return err
	}
	defer t.close()
	return t.printTop(stdout, cmd.top)
}

// count adds the words of files to the tally, then prints the most frequent.
func count(ctx context.Context, cmd command, stdout, stderr io.Writer) (err error) {
	t, err := openTallyForCounting(cmd.db, cmd.kind)
	if err != nil {
		return err
	}
	defer func() {
		if failed := t.close(); failed != nil {
			err = failed // outweighs err: changes may not have reached the file
		}
	}()
	own, err := resolve(cmd.db)
	if err != nil {
		return err
	}

	p := newProgress(stderr, cmd.kind.noun)
	var done summary
	paths, err := find(ctx, cmd.paths, cmd.kind, p.warn)
	if err == nil {
		paths = slices.DeleteFunc(paths, func(path string) bool { return path == own || path == own+"-log" })
		p.total = len(paths)
		done, err = t.countAll(ctx, paths, p)
	}
	p.finish(done)
	switch {
	case errors.Is(err, context.Canceled):
		p.printf("interrupted: the files counted so far are kept; run the same command to go on")
		return err
	case err != nil:
		return err
	}
	if err := t.printTop(stdout, cmd.top); err != nil {
		return err
	}
	if p.warnings > 0 {
		return errFailed
	}
	return nil
}

// explain adds to an error what the user can do about it.
func explain(err error, cmd command) error {
	var advice string
	switch {
	case errors.Is(err, emd.ErrLocked):
		advice = "another program uses it: wait until that has finished, or choose another file with -db"
	case errors.Is(err, emd.ErrFull):
		advice = "make room and run the same command again: the files counted so far are kept"
	case errors.Is(err, emd.ErrVersion):
		advice = "another version of emd made it: count again into another file with -db"
	case errors.Is(err, emd.ErrCorrupt):
		advice = "it is damaged, or not a file of wordcount: choose another file with -db, or move this one away and count again"
	case errors.Is(err, emd.ErrTypeMismatch), errors.Is(err, emd.ErrNoContainer), errors.Is(err, errForeign):
		advice = "it belongs to another program: choose another file with -db"
	case errors.Is(err, errKind):
		advice = "choose another file with -db"
	case errors.Is(err, fs.ErrNotExist) && len(cmd.paths) == 0:
		advice = fmt.Sprintf("nothing was counted into it yet: run wordcount -db %s path...", cmd.db)
	case errors.Is(err, fs.ErrNotExist):
		advice = "create its folder first, or choose another file with -db"
	case errors.Is(err, fs.ErrPermission):
		advice = "ask for permission, or choose another file with -db"
	default:
		return err
	}
	return fmt.Errorf("%w\n%s%s", err, strings.Repeat(" ", len("wordcount: ")), advice)
}
