package emgraph

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"

	"github.com/emd-go/emd"
)

// A TextFormat says how to read lists of edges: text with an edge on each line,
// as the names of its two nodes, between blanks, tabs, commas or semicolons. Empty lines and
// those that begin with # or % are left out, further columns ignored.
type TextFormat struct {
	// Numbered says that the nodes are called 0, 1, 2 and so on and keep these
	// numbers. Otherwise names may be any words; nodes are numbered as they come.
	Numbered bool
	// Undirected adds each edge in both directions.
	Undirected bool
	// Kinds, if there are any, are those edges that are wanted: the third column has one of them.
	Kinds []string
}

// ErrFormat reports text that is no list of edges.
var ErrFormat = errors.New("not a list of edges")

// Import adds the edges of text files, compressed with gzip or not, to a graph
// that has none. progress counts bytes as they lie on the disk.
func (g *Graph) Import(ctx context.Context, format TextFormat, paths []string, progress Progress) error {
	in := importing{g: g, format: format, ctx: ctx, progress: progress}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		in.total += info.Size()
	}
	return g.fill(func() (int, error) {
		for _, path := range paths {
			if err := in.file(path); err != nil {
				return 0, err
			}
		}
		return in.nodes, in.flush()
	})
}

// An importing is an import under way.
type importing struct {
	g           *Graph
	format      TextFormat
	ctx         context.Context
	progress    Progress
	done, total int64 // bytes
	nodes       int
	batch       []Edge
}

// file reads one file.
func (in *importing) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(&countingReader{f, &in.done}, 1<<20)
	text := io.Reader(r)
	if head, _ := r.Peek(2); string(head) == "\x1f\x8b" {
		if text, err = gzip.NewReader(r); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	lines := bufio.NewScanner(text)
	number := 0
	for lines.Scan() && lines.Err() == nil { // before an error it may be half a line
		number++
		if err := in.line(lines.Bytes()); err != nil {
			return fmt.Errorf("%s:%d: %w", path, number, err)
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("%s:%d: %w: a line of more than %d bytes", path, number+1, ErrFormat, bufio.MaxScanTokenSize)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: %w: the compressed file ends too early", path, err)
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// A countingReader notes how much was read.
type countingReader struct {
	r io.Reader
	n *int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	*c.n += int64(n)
	return n, err
}

// line adds the edge that a line stands for, if any.
func (in *importing) line(line []byte) error {
	source, rest := field(line)
	if len(source) == 0 || source[0] == '#' || source[0] == '%' {
		return nil
	}
	target, rest := field(rest)
	if len(target) == 0 {
		return fmt.Errorf("%w: %q is one word, where an edge has two", ErrFormat, clip(source))
	}
	if len(in.format.Kinds) > 0 {
		kind, _ := field(rest)
		if !slices.Contains(in.format.Kinds, string(kind)) {
			return nil
		}
	}
	s, err := in.node(source)
	if err != nil {
		return err
	}
	t, err := in.node(target)
	if err != nil {
		return err
	}
	in.batch = append(in.batch, Edge{s, t})
	if in.format.Undirected && s != t {
		in.batch = append(in.batch, Edge{t, s})
	}
	if len(in.batch) >= 1<<12 {
		return in.flush()
	}
	return nil
}

// field returns the first word of a line and what follows it.
func field(line []byte) (word, rest []byte) {
	isSpace := func(c byte) bool { return c == ' ' || c == '\t' || c == ',' || c == ';' || c == '\r' }
	start := 0
	for start < len(line) && isSpace(line[start]) {
		start++
	}
	end := start
	for end < len(line) && !isSpace(line[end]) {
		end++
	}
	return line[start:end], line[end:]
}

// clip returns the start of a text for a message.
func clip(text []byte) []byte { return bytes.ToValidUTF8(text[:min(len(text), 40)], nil) }

// node returns the node of a name.
func (in *importing) node(name []byte) (uint32, error) {
	if in.format.Numbered {
		v, err := strconv.ParseUint(string(name), 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%w: %q is no number from 0 to %d", ErrFormat, clip(name), uint32(math.MaxUint32))
		}
		in.nodes = max(in.nodes, int(v)+1)
		return uint32(v), nil
	}
	if in.nodes == MaxNodes {
		return 0, fmt.Errorf("%w: more than %d nodes", emd.ErrTooLarge, MaxNodes)
	}
	s := string(name)
	v, known, err := in.g.numbers.GetOrSet(s, uint32(in.nodes))
	if err == nil && !known {
		in.nodes++
		err = in.g.names.Append(s)
	}
	return v, err
}

// flush adds the edges of the batch to the graph.
func (in *importing) flush() error {
	if err := in.ctx.Err(); err != nil {
		return err
	}
	in.progress(in.done, in.total)
	err := in.g.Edges.Append(in.batch...)
	in.batch = in.batch[:0]
	return err
}
