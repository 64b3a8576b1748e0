package shadow_test

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/emd-go/emd/examples/shadow"
)

// What an analysis knows about a byte of the program.
const (
	code shadow.Flags = 1 << iota
	data
	executed
)

// A disassembler marks what it has decoded, a tracer what has run; what has run
// without being decoded is where to look next.
func Example() {
	dir, err := os.MkdirTemp("", "shadow")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// Of a real binary: shadow.Sections(file).
	sections := []shadow.Section{{Name: ".text", Addr: 0x401000, Size: 0x1000}, {Name: ".data", Addr: 0x404000, Size: 0x200}}
	m, err := shadow.Open(filepath.Join(dir, "shadow.emd"), sections)
	if err != nil {
		log.Fatal(err)
	}
	err = errors.Join(
		m.Mark(0x401000, 0x401800, code),
		m.Mark(0x404000, 0x404200, data),
		m.Mark(0x4017f0, 0x401820, executed),
	)
	if err != nil {
		log.Fatal(err)
	}
	for from, to := range m.Ranges(code|executed, executed) {
		fmt.Printf("executed but not decoded: %#x to %#x\n", from, to)
	}
	n, err := m.Count(0x401000, 0x402000, code)
	if err := errors.Join(err, m.Err(), m.Close()); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("decoded: %d of %d bytes\n", n, sections[0].Size)
	// Output:
	// executed but not decoded: 0x401800 to 0x401820
	// decoded: 2048 of 4096 bytes
}
