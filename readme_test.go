package emd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The Go code of README.md is copied from the examples, which run with the
// tests, or from examples/graph. Of a whole program, main is.
func TestREADMESnippets(t *testing.T) {
	examples := flatten(read(t, "example_test.go"))
	for _, name := range []string{"pagerank", "components", "bfs"} {
		algorithm := flatten(read(t, "examples/graph/emgraph/"+name+".go"))
		assert.Equal(t, 1, strings.Count(flatten(read(t, "README.md")), firstFunc(t, algorithm)), "README.md shows %s", name)
		examples += algorithm
	}
	snippets := goSnippets(read(t, "README.md"))
	require.NotEmpty(t, snippets)
	for _, snippet := range snippets {
		if strings.HasPrefix(snippet, "package main\n") {
			snippet = mainBody(t, snippet)
		}
		assert.Contains(t, examples, flatten(snippet), "neither in example_test.go nor in examples/graph")
	}
}

// The package comment shows the program of the README.
func TestPackageCommentProgram(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	require.NoError(t, err)
	assert.Contains(t, flatten(file.Doc.Text()), flatten(goSnippets(read(t, "README.md"))[0]))
}

// firstFunc returns the first function of a flattened source, which a reader can follow in 25 lines.
func firstFunc(t *testing.T, source string) string {
	_, rest, found := strings.Cut(source, "\nfunc ")
	require.True(t, found)
	body, _, found := strings.Cut(rest, "\n}\n\n")
	if !found {
		body = strings.TrimSuffix(rest, "\n}\n")
	}
	body = "func " + body + "\n}\n"
	assert.LessOrEqual(t, strings.Count(body, "\n"), 25, "lines of %s", body)
	return body
}

// mainBody returns the statements of main in a program, after a look whether
// its imports are those that it uses.
func mainBody(t *testing.T, program string) string {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "", program, 0)
	require.NoError(t, err, "%s", program)
	var imported, used []string
	for _, spec := range file.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		require.NoError(t, err)
		imported = append(imported, path.Base(name))
	}
	var body string
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			body = program[files.Position(n.Body.Lbrace).Offset+1 : files.Position(n.Body.Rbrace).Offset]
		case *ast.SelectorExpr:
			if pkg, ok := n.X.(*ast.Ident); ok && slices.Contains(file.Unresolved, pkg) {
				used = append(used, pkg.Name)
			}
		}
		return true
	})
	slices.Sort(used)
	assert.ElementsMatch(t, imported, slices.Compact(used), "imports of %s", program)
	return body
}

// goSnippets returns the blocks of Go code in a text of Markdown.
func goSnippets(text string) (snippets []string) {
	for _, rest := range strings.Split(text, "\n```go\n")[1:] {
		snippet, _, _ := strings.Cut(rest, "\n```")
		snippets = append(snippets, snippet)
	}
	return snippets
}

// flatten returns the lines of text without what is left of them, and without
// blank lines at either end.
func flatten(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text)) {
		b.WriteString("\n" + strings.TrimSpace(line))
	}
	return b.String() + "\n"
}

func read(t *testing.T, name string) string {
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return strings.ReplaceAll(string(b), "\r\n", "\n") // as some checkouts have it
}
