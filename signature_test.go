package emd

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// signatureTexts are signatures of types, of each form.
var signatureTexts = []string{
	"bool", "int", "int8", "int16", "int32", "int64", "uint", "uint8", "uint16", "uint32", "uint64", "uintptr",
	"float32", "float64", "complex64", "complex128", "string", "time.Time",
	"[]uint8", "[4]uint8", "[0]string", "[][3][]string", "map[string]int", "map[[2]uint8]map[string][]bool", "**int",
	"struct{}", "struct{A int}", "struct{Addr uint64; Name string; Succ []uint64}", "struct{a struct{b struct{}; c bool}; Größe_2 *int8}",
	"struct{Kids []^2}", "[]^1", "*^1", "map[string]^1", "struct{Next *^2; Sides [2]*^3; By map[string]struct{Of []^4}}",
	"*struct{A [2]^3}", "[3][]^1", "[3][]^2",
	"binary(net/netip.Addr)", "text(example.com/x.T)", "gob(math/big.Int)", "[]*gob(math/big.Rat)",
	"text(example.com/x.G[func(int) string,[]example.com/y.T])", "map[binary(net/url.URL)]text(a.b)",
	"[9223372036854775807]struct{}", "[9223372036854775807][9223372036854775807]int",
}

func TestParseSignature(t *testing.T) {
	for _, text := range signatureTexts {
		typ, err := parseSignature(text)
		if assert.NoError(t, err, text) {
			assert.Equal(t, text, typ.String())
		}
	}
}

func TestParseSignatureOfCodecs(t *testing.T) {
	for _, text := range []string{
		"", " ", "json", "gob", "flate(int)", "sealed(struct{})", "example.com/geo.Point v2", "int ", " int", "Int", "int128", "error",
		"[", "[]", "[]]", "[4]", "[4int", "[-1]int", "[04]int", "[+4]int", "[9223372036854775808]int", "[1e3]int", "[ 4]int",
		"map", "map[", "map[int", "map[int]", "map[]int", "*", "* int", "struct", "struct{", "struct {}", "struct{A}", "struct{A }",
		"struct{A int", "struct{A int;}", "struct{A int; }", "struct{A int;B int}", "struct{A int; B int;}", "struct{; }", "struct{A  int}",
		"struct{A-B int}", "struct{A int; A bool}", "struct{1 int}", "struct{_ int}", "struct{ int}", "struct{A int}}", "struct{\xff int}",
		"^", "^1", "[]^2", "[]^0", "[]^01", "[]^-1", "[]^99999999999999999999", "struct{A ^1}", "[2]^1", "[0]^1", "*struct{A ^1}",
		"[]struct{A [2]^2}", "binary", "binary()", "binary(", "binary(x)", "binary(a.b", "binary(a.b))", "hex(a.b)", "func()", "chan int", "interface{}", "any",
	} {
		_, err := parseSignature(text)
		assert.Error(t, err, text)
	}
}

// Signatures made to cost much are refused, or read at little cost.
func TestParseSignatureHostile(t *testing.T) {
	fields := func(n int, typ string) string { // all with other names
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "A%x %s; ", i, typ)
		}
		return b.String()
	}
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"deep":                {strings.Repeat("[]", maxSigDepth) + "int", true},
		"too deep":            {strings.Repeat("[]", maxSigDepth+1) + "int", false},
		"deep structs":        {strings.Repeat("struct{A ", maxSigDepth) + "int" + strings.Repeat("}", maxSigDepth), true},
		"deep keys":           {strings.Repeat("map[", maxSigDepth) + "int" + strings.Repeat("]int", maxSigDepth), true},
		"not closed":          {strings.Repeat("map[", maxSigDepth), false},
		"long":                {"struct{" + fields(80_000, "int") + "A int}", true},
		"too long":            {"struct{" + fields(200_000, "int") + "A int}", false},
		"huge":                {strings.Repeat("[9223372036854775807]", 5000) + "int", true},
		"parentheses":         {"text(" + strings.Repeat("(", 500_000), false},
		"back from far":       {"*" + strings.Repeat("struct{A ", 5000) + "struct{A ^2; B ^5001}" + strings.Repeat("}", 5000), false},
		"back references":     {"[]struct{" + fields(80_000, "*^2") + "A *^2}", true},
		"of many levels each": {strings.Repeat("*", 5000) + "struct{" + fields(50_000, "^5001") + "A ^5001}", true},
	} {
		t.Run(name, func(t *testing.T) {
			typ, err := parseSignature(c.text)
			if !c.ok {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.True(t, c.text == typ.String(), "canonical")
			assert.Less(t, typ.min, uint64(1)<<63)
		})
	}
}

func TestSignatureMin(t *testing.T) {
	for text, min := range map[string]uint64{
		"bool": 1, "int": 8, "uintptr": 8, "float32": 4, "complex64": 8, "complex128": 16, "time.Time": 16, "string": 1, "struct{}": 0,
		"[3]struct{A uint16; B string}": 9, "[0]int": 0, "[1000]struct{}": 0, "[]int": 1, "*int": 1, "map[int]int": 1,
		"gob(math/big.Int)": 1, "[9223372036854775807][9]int": minLimit, "struct{A [9223372036854775807]bool; B [9223372036854775807]bool}": minLimit,
	} {
		typ, err := parseSignature(text)
		require.NoError(t, err)
		assert.Equal(t, min, typ.min, text)
	}
}

func TestDifferences(t *testing.T) {
	const node = "struct{Name string; Age int; Succ []struct{To uint64; Weight float32}}"
	for _, c := range []struct {
		have, want string
		lines      []string
	}{
		{node, node, nil},
		{node, strings.Replace(node, "string", "[]uint8", 1), []string{"field Name: string in the file, []uint8 wanted"}},
		{node, strings.Replace(node, "float32", "float64", 1), []string{"field Succ[].Weight: float32 in the file, float64 wanted"}},
		{node, strings.Replace(node, "Age int; ", "", 1), []string{"field Age: only in the file"}},
		{strings.Replace(node, "Age int; ", "", 1), node, []string{"field Age: not in the file"}},
		{node, strings.Replace(node, "Age", "Years", 1), []string{`field 2: named "Age" in the file, "Years" wanted`}},
		{node, strings.Replace(node, "Weight", "Cost", 1), []string{`field 2 of Succ[]: named "Weight" in the file, "Cost" wanted`}},
		{node, strings.Replace(node, "Age int", "Years uint", 1), []string{"field Age: only in the file", "field Years: not in the file"}},
		{"struct{A int; B bool; C string; D int}", "struct{A int; C string; B bool; D int}", []string{"order of fields: B, C in the file; C, B wanted"}},
		{"struct{A int; B bool}", "struct{N string; A int; B bool}", []string{"field N: not in the file"}},
		{"struct{A int; B bool}", "struct{N string; A int; Bool bool}", []string{`field 2: named "B" in the file, "Bool" wanted`, "field N: not in the file"}},
		{"[]struct{A int}", "[]struct{A uint}", []string{"[].A: int in the file, uint wanted"}},
		{"map[int]string", "map[uint]string", []string{"map key: int in the file, uint wanted"}},
		{"struct{M map[struct{X int}][]bool}", "struct{M map[struct{X uint}][]int}", []string{
			"field M, map key.X: int in the file, uint wanted", "field M[][]: bool in the file, int wanted"}},
		{"*int", "*uint", []string{"*: int in the file, uint wanted"}},
		{"struct{P *int; Q *struct{R **[]int}}", "struct{P *uint; Q *struct{R **[]uint}}", []string{
			"field *P: int in the file, uint wanted", "field (**Q.R)[]: int in the file, uint wanted"}},
		{"struct{Sum [16]uint8}", "struct{Sum [20]uint8}", []string{"field Sum: [16]uint8 in the file, [20]uint8 wanted"}},
		{"struct{A binary(net/netip.Addr)}", "struct{A binary(net/netip.Prefix)}", []string{
			"field A: binary(net/netip.Addr) in the file, binary(net/netip.Prefix) wanted"}},
		{"struct{V int; Kids []^2}", "struct{V uint; Kids []^2}", []string{"field V: int in the file, uint wanted"}},
		{"struct{Kids []^2}", "struct{Kids []struct{Kids []^2}}", nil}, // the same, unrolled once
		{"struct{V int; Kids []^2}", "struct{V int; Kids []*^3}", []string{"field Kids[]: struct{V int; Kids []^2} in the file, *struct{V int; Kids []^3} wanted"}},
		{"struct{A " + node + "}", "struct{A string}", []string{"field A: struct{Name string; Age int; Succ []struct{To uint64; Weight... in the file, string wanted"}},
	} {
		lines, whole := differences(c.have, c.want)
		assert.Equal(t, c.lines, lines, "%s and %s", c.have, c.want)
		assert.False(t, whole)
	}
	for _, c := range [][2]string{{"int", "uint"}, {"json", "gob"}, {"int", "json"}, {"[]int", "map[int]int"}, {"[3]int", "[4]int"}} {
		lines, whole := differences(c[0], c[1])
		assert.Equal(t, []string{c[0] + " in the file, " + c[1] + " wanted"}, lines)
		assert.True(t, whole)
	}
}

// Differences are cut, and found at bounded cost.
func TestDifferencesMany(t *testing.T) {
	many := func(typ string, n int) string {
		var fields []string
		for i := range n {
			fields = append(fields, fmt.Sprintf("F%d %s", i, typ))
		}
		return "struct{" + strings.Join(fields, "; ") + "}"
	}
	lines, _ := differences(many("int", 15), many("uint", 15))
	assert.Len(t, lines, maxDifferences+1)
	assert.Equal(t, "and more", lines[maxDifferences])
	lines, _ = differences(many("int", 10), many("uint", 10))
	assert.Len(t, lines, 10)
	lines, _ = differences("struct{B int; "+many("int", 9000)[7:], many("int", 9000))
	assert.NotEmpty(t, lines)

	// Cycles whose lengths have no common divisor meet after long.
	p, q := strings.Repeat("*", 997)+"^997", strings.Repeat("*", 991)+"^991"
	lines, whole := differences(p, q)
	assert.Empty(t, lines)
	assert.False(t, whole)

	deep := strings.Repeat("struct{Abc []", 4000) + "%" + strings.Repeat("}", 4000)
	lines, _ = differences(strings.Replace(deep, "%", "int", 1), strings.Replace(deep, "%", "uint", 1))
	require.Len(t, lines, 1)
	assert.Less(t, len(lines[0]), 300)
	assert.Contains(t, lines[0], "Abc[].Abc[]: int in the file, uint wanted")

	// A part of a type that is all cycles unrolls to a long text.
	fields := func(n int, typ string) (s string) {
		for i := range n {
			s += fmt.Sprintf("A%d %s; ", i, typ)
		}
		return s
	}
	knot := strings.Repeat("struct{A *", 30) + "struct{" + fields(30, "*^3") + "B %}" + strings.Repeat("; C *^2}", 30)
	lines, _ = differences(strings.Replace(knot, "%", "[]^3", 1), strings.Replace(knot, "%", "bool", 1))
	require.NotEmpty(t, lines)
	for _, line := range lines {
		assert.Less(t, len(line), 500)
	}
}

func TestMismatchTellsDifferences(t *testing.T) {
	type saved struct {
		Addr uint64
		Size uint32
	}
	type wanted struct {
		Addr  uint64
		Size  uint64
		Flags uint8
	}
	a := testArena(t, testOptions{})
	_, err := List[saved](a, "list", nil)
	require.NoError(t, err)
	_, err = List[wanted](a, "list", nil)
	require.ErrorIs(t, err, ErrTypeMismatch)
	assert.ErrorContains(t, err, `the file has a list of struct{Addr uint64; Size uint32}, opened as a list of struct{Addr uint64; Size uint64; Flags uint8}
	field Size: uint32 in the file, uint64 wanted
	field Flags: not in the file`)

	_, err = Dict[uint32, saved](a, "dict", nil)
	require.NoError(t, err)
	_, err = Dict[string, wanted](a, "dict", nil)
	require.ErrorIs(t, err, ErrTypeMismatch)
	assert.ErrorContains(t, err, `
	key: uint32 in the file, string wanted
	value: field Size: uint32 in the file, uint64 wanted
	value: field Flags: not in the file`)

	_, err = Dict[string, saved](a, "dict", nil)
	var e *Error
	require.True(t, errors.As(err, &e))
	assert.NotContains(t, err.Error(), "\n", "the types say it all")
}

func FuzzSignature(f *testing.F) {
	for i, text := range signatureTexts {
		f.Add(text, signatureTexts[(i+1)%len(signatureTexts)])
	}
	f.Fuzz(func(t *testing.T, have, want string) {
		typ, err := parseSignature(have)
		if err == nil {
			require.Equal(t, have, typ.String())
		}
		lines, whole := differences(have, want)
		require.LessOrEqual(t, len(lines), maxDifferences+1)
		if whole {
			require.Len(t, lines, 1)
		}
		back, _ := differences(want, have)
		require.Equal(t, len(lines) == 0, len(back) == 0)
	})
}
