// Graph computes over directed graphs that may be larger than memory: it makes
// or imports one into a file of emd, and then asks that file.
//
//	graph generate
//	graph pagerank
//	graph plot
//
// graph help lists all commands. The algorithms are in the package emgraph.
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
	"strings"
	"syscall"

	"github.com/emd-go/emd"
	"github.com/emd-go/emd/examples/graph/emgraph"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	os.Exit(exitCode(err, os.Stderr))
}

// errUsage reports a command line that is wrong. The user knows already.
var errUsage = errors.New("usage")

// exitCode tells the user about err, as far as nobody has, and returns the
// status for the shell.
func exitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		return 2
	}
	fmt.Fprintln(stderr, "graph:", err)
	if errors.Is(err, context.Canceled) {
		return 130 // as a shell says it of a program that SIGINT ended
	}
	return 1
}

// A command is one of the words that may follow graph.
type command struct {
	name, args, does string
	more             string // a longer explanation
	min, max         int    // number of args
	setUp            func(*flag.FlagSet) action
}

// An action is what a command does, once its flags are known. Its flags that
// make no sense are a usageError.
type action func(c *call) error

type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// A call is what an action works with.
type call struct {
	ctx            context.Context
	stdout, stderr io.Writer
	db             string
	args           []string
}

const anyNumber = 1 << 30

// commands are in the order of the help.
var commands = []command{
	{"generate", "", "make a random graph whose degrees are as unequal as those of real ones (R-MAT)", "", 0, 0, generate},
	{"import", "file...", "read lists of edges: text, compressed with gzip or not", importMore, 1, anyNumber, importFiles},
	{"sort", "", "sort edges that generate or import has left unsorted, and index them", "", 0, 0, sortEdges},
	{"info", "", "print the size of the graph", "", 0, 0, info},
	{"degrees", "", "print how many nodes have how many edges", "", 0, 0, degrees},
	{"pagerank", "", "print the nodes of highest rank", "", 0, 0, pageRank},
	{"components", "", "print the parts that are not connected with each other", "", 0, 0, components},
	{"bfs", "[node]", "print how many nodes are how far from one", fromMore, 0, 1, bfs},
	{"neighbours", "[node]", "print the nodes one or more edges away", fromMore, 0, 1, neighbours},
	{"dominators", "[entry]", "print what lies on all paths from the entry of a flow graph", dominatorsMore, 0, 1, dominators},
	{"plot", "", "draw the distributions of degrees and of PageRank, as PNG or SVG", "", 0, 0, drawPlot},
}

// fromMore is about the default of a node.
const fromMore = "Without a node it begins at the one that has most edges."

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		printHelp(stderr)
		return errUsage
	}
	name, args := args[0], args[1:]
	if name == "help" || name == "-h" || name == "-help" || name == "--help" {
		if len(args) == 0 {
			printHelp(stdout)
			return nil
		}
		name, args = args[0], []string{"-help"}
	}
	for _, cmd := range commands {
		if cmd.name == name {
			return cmd.run(&call{ctx: ctx, stdout: stdout, stderr: stderr}, args)
		}
	}
	fmt.Fprintf(stderr, "graph: there is no command %q: graph help lists those there are\n", name)
	return errUsage
}

func printHelp(w io.Writer) {
	fmt.Fprint(w, "usage: graph command [flags] [arguments]\n\n")
	for _, cmd := range commands {
		fmt.Fprintf(w, "  %-20s %s\n", strings.TrimSpace(cmd.name+" "+cmd.args), cmd.does)
	}
	fmt.Fprint(w, `
The graph is in the file graph.emd, or another that -db names. For a start:

  graph generate
  graph pagerank
  graph plot

graph help COMMAND explains one of them.
`)
}

// run runs cmd with the arguments that follow its name.
func (cmd command) run(c *call, args []string) error {
	flags := flag.NewFlagSet(cmd.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are told below
	flags.StringVar(&c.db, "db", "graph.emd", "the `file` that holds the graph")
	do := cmd.setUp(flags)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		cmd.printHelp(c.stdout, flags)
		return nil
	}
	c.args = flags.Args()
	switch {
	case err != nil:
		err = usageError{err.Error()}
	case len(c.args) < cmd.min:
		err = usageError{"it needs " + cmd.args}
	case len(c.args) > cmd.max:
		err = usageError{fmt.Sprintf("it does not take %q; flags come first", c.args[cmd.max])}
	default:
		err = do(c)
	}
	var wrong usageError
	if errors.As(err, &wrong) {
		fmt.Fprintf(c.stderr, "graph %s: %v\nSee graph help %s.\n", cmd.name, err, cmd.name)
		return errUsage
	}
	return explain(err, c.db)
}

func (cmd command) printHelp(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprintf(w, "usage: graph %s\n\n%s: %s.\n", strings.TrimSpace(cmd.name+" [flags] "+cmd.args), cmd.name, cmd.does)
	if cmd.more != "" {
		fmt.Fprintf(w, "%s\n", cmd.more)
	}
	fmt.Fprintln(w)
	flags.SetOutput(w)
	flags.PrintDefaults()
}

// explain adds to an error what the user can do about it.
func explain(err error, db string) error {
	var advice string
	switch {
	case errors.Is(err, emd.ErrLocked):
		advice = "another program uses it: wait until that has finished, or choose another file with -db"
	case errors.Is(err, emd.ErrFull):
		advice = "make room and run the same command again: the file is as it was before"
	case errors.Is(err, emd.ErrVersion):
		advice = "another version of emd made it: make the graph again, in another file with -db"
	case errors.Is(err, emd.ErrTypeMismatch), errors.Is(err, emgraph.ErrForeign):
		advice = "choose the file of a graph with -db, or make one with graph generate or graph import"
	case errors.Is(err, emd.ErrCorrupt):
		advice = "it is damaged, or not a file of graph: choose another with -db, or make the graph again"
	case errors.Is(err, emgraph.ErrExists):
		advice = "choose another file with -db, or remove this one first"
	case errors.Is(err, emgraph.ErrUnsorted):
		advice = fmt.Sprintf("sort them: graph sort -db %s", db)
	case errors.Is(err, fs.ErrNotExist) && strings.Contains(err.Error(), db):
		advice = "make a graph with graph generate or graph import, or choose a file with -db"
	default:
		return err
	}
	return fmt.Errorf("%w\n       %s", err, advice)
}
