package shadow

import (
	"bytes"
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/emd-go/emd"
)

var sections = []Section{{".data", 0x9000, 70_000}, {".text", 0x1000, 0x3000}, {".none", 0x4000, 0}, {".rodata", 0x4000, 100}, {"vsyscall", math.MaxUint64 - 16, 16}}

func open(t *testing.T, path string) *Memory {
	m, err := Open(path, sections)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// Random steps, the same on a map of addresses.
func TestModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			path := filepath.Join(t.TempDir(), "shadow.emd")
			m := open(t, path)
			want := map[uint64]Flags{}
			for range 120 {
				s := m.Sections()[r.IntN(len(sections)-1)] // one is empty
				from := s.Addr + r.Uint64N(s.Size+1)
				to := from + r.Uint64N(s.end()-from+1)
				if r.IntN(2) == 0 {
					to = from + min(to-from, 20)
				}
				flags := Flags(1 << r.IntN(3))
				switch r.IntN(8) {
				case 0, 1, 2:
					require.NoError(t, m.Mark(from, to, flags|1))
					for a := from; a < to; a++ {
						want[a] |= flags | 1
					}
				case 3:
					require.NoError(t, m.Unmark(from, to, flags))
					for a := from; a < to; a++ {
						want[a] &^= flags
					}
				case 4, 5:
					count := 0
					for a := from; a < to; a++ {
						if want[a]&flags == flags {
							count++
						}
					}
					n, err := m.Count(from, to, flags)
					require.NoError(t, err)
					require.Equal(t, count, n)
					all, err := m.All(from, to, flags)
					require.NoError(t, err)
					require.Equal(t, n == int(to-from), all)
					some, err := m.Any(from, to, flags)
					require.NoError(t, err)
					require.Equal(t, n > 0, some)
				case 6:
					checkRanges(t, m, want, flags|2, flags)
				case 7:
					require.NoError(t, m.Close())
					m = open(t, path)
				}
				if from < s.end() {
					f, err := m.At(from)
					require.NoError(t, err)
					require.Equal(t, want[from], f)
				}
			}
		})
	}
}

// checkRanges compares what Ranges yields with a look at each address.
func checkRanges(t *testing.T, m *Memory, want map[uint64]Flags, mask, wanted Flags) {
	var expected, have []string
	for _, s := range m.Sections() {
		from, in := uint64(0), false
		for a := s.Addr; ; a++ {
			is := a < s.end() && want[a]&mask == wanted
			if is && !in {
				from = a
			}
			if !is && in {
				expected = append(expected, fmt.Sprintf("%#x-%#x", from, a))
			}
			if in = is; a == s.end() {
				break
			}
		}
	}
	for from, to := range m.Ranges(mask, wanted) {
		have = append(have, fmt.Sprintf("%#x-%#x", from, to))
	}
	require.NoError(t, m.Err())
	require.Equal(t, expected, have)
}

func TestRangesBreak(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "shadow.emd"))
	require.NoError(t, m.Mark(0x1000, 0x1001, 1))
	require.NoError(t, m.Mark(0x9000+69_999, 0x9000+70_000, 1))
	for from, to := range m.Ranges(1, 1) {
		assert.EqualValues(t, []uint64{0x1000, 0x1001}, []uint64{from, to})
		break
	}
	for range m.Ranges(0, 0) {
		break
	}
}

func TestErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shadow.emd")
	m := open(t, path)
	for _, r := range [][2]uint64{{0, 1}, {0xfff, 0x1001}, {0x3fff, 0x4001}, {0x4064, 0x4065}, {0x8fff, 0x9001}, {0x9000 + 69_999, 0x9000 + 70_001}, {math.MaxUint64 - 17, math.MaxUint64 - 15}} {
		assert.ErrorIs(t, m.Mark(r[0], r[1], 1), ErrUnmapped, "%#x", r)
		assert.ErrorIs(t, m.Unmark(r[0], r[1], 1), ErrUnmapped)
		_, err := m.Any(r[0], r[1], 0)
		assert.ErrorIs(t, err, ErrUnmapped)
		_, err = m.All(r[0], r[1], 0)
		assert.ErrorIs(t, err, ErrUnmapped)
	}
	_, err := m.At(0x8fff)
	assert.ErrorIs(t, err, ErrUnmapped)
	assert.ErrorContains(t, m.Mark(2, 1, 1), "0x2 to 0x1 is no range")
	require.NoError(t, m.Mark(7, 7, 1), "an empty range is anywhere")
	for range m.Ranges(1, 1) {
		t.Error("something was marked")
	}
	require.NoError(t, m.Close())

	_, err = Open(path, sections[1:])
	assert.ErrorIs(t, err, ErrOtherBinary)
	_, err = Open(path, []Section{{"a", 1, 3}, {"b", 3, 1}})
	assert.ErrorContains(t, err, `sections "a" and "b" overlap at 0x3`)
	_, err = Open(path, []Section{{"a", math.MaxUint64, 2}})
	assert.ErrorContains(t, err, "goes round the end")
	_, err = Open(path, []Section{{"a", 0, 1 << 41}})
	assert.ErrorIs(t, err, emd.ErrTooLarge)
}

// Flags of huge sections take no space until they are marked.
func TestSparse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shadow.emd")
	m, err := Open(path, []Section{{"heap", 1 << 40, 1 << 31}})
	require.NoError(t, err)
	require.NoError(t, m.Mark(1<<40, 1<<40+10, 1))
	require.NoError(t, m.Close())
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Less(t, info.Size(), int64(1<<20))
}

// binaryFile returns a file of fixed-size parts, each at an offset.
func binaryFile(t *testing.T, parts map[int]any) *bytes.Reader {
	file := make([]byte, 2048)
	for off, part := range parts {
		b, err := binary.Append(nil, binary.LittleEndian, part)
		require.NoError(t, err)
		copy(file[off:], b)
	}
	return bytes.NewReader(file)
}

func name16(s string) (name [16]byte) {
	copy(name[:], s)
	return name
}

func TestSections(t *testing.T) {
	names := "\x00.text\x00.bss\x00.tbss\x00.comment\x00"
	elfFile := binaryFile(t, map[int]any{
		0: elf.Header64{Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
			Ehsize: 64, Shoff: 256, Shentsize: 64, Shnum: 6, Shstrndx: 5},
		128: []byte(names),
		256: []elf.Section64{
			{},
			{Name: 1, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_EXECINSTR), Addr: 0x401000, Size: 100},
			{Name: 7, Type: uint32(elf.SHT_NOBITS), Flags: uint64(elf.SHF_ALLOC), Addr: 0x404000, Size: 50},
			{Name: 12, Type: uint32(elf.SHT_NOBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_TLS), Addr: 0x404000, Size: 8},
			{Name: 18, Type: uint32(elf.SHT_PROGBITS), Size: 20},
			{Name: 0, Type: uint32(elf.SHT_STRTAB), Off: 128, Size: uint64(len(names))},
		},
	})
	peFile := binaryFile(t, map[int]any{
		0:    []byte("MZ"),
		0x3c: uint32(0x80),
		0x80: []byte("PE\x00\x00"),
		0x84: pe.FileHeader{Machine: pe.IMAGE_FILE_MACHINE_AMD64, NumberOfSections: 2, SizeOfOptionalHeader: 240},
		0x98: pe.OptionalHeader64{Magic: 0x20b, ImageBase: 0x140000000, NumberOfRvaAndSizes: 16},
		0x188: []pe.SectionHeader32{
			{Name: [8]uint8{'.', 't', 'e', 'x', 't'}, VirtualAddress: 0x1000, VirtualSize: 70},
			{Name: [8]uint8{'.', 'd', 'b', 'g'}, VirtualAddress: 0x2000, VirtualSize: 9, Characteristics: pe.IMAGE_SCN_MEM_DISCARDABLE},
		},
	})
	machoFile := binaryFile(t, map[int]any{
		0:  macho.FileHeader{Magic: macho.Magic64, Cpu: macho.CpuAmd64, Type: macho.TypeExec, Ncmd: 1, Cmdsz: 72 + 2*80},
		32: macho.Segment64{Cmd: macho.LoadCmdSegment64, Len: 72 + 2*80, Name: name16("__TEXT"), Nsect: 2},
		104: []macho.Section64{
			{Name: name16("__text"), Seg: name16("__TEXT"), Addr: 0x100001000, Size: 60},
			{Name: name16("__debug_info"), Seg: name16("__DWARF"), Addr: 0x100002000, Size: 5},
		},
	})
	for name, c := range map[string]struct {
		file *bytes.Reader
		want []Section
	}{
		"ELF":    {elfFile, []Section{{".text", 0x401000, 100}, {".bss", 0x404000, 50}}},
		"PE":     {peFile, []Section{{".text", 0x140001000, 70}}},
		"Mach-O": {machoFile, []Section{{"__TEXT,__text", 0x100001000, 60}}},
	} {
		found, err := Sections(c.file)
		require.NoError(t, err, name)
		assert.Equal(t, c.want, found, name)
	}
	for _, text := range []string{"", "#!/bin/sh\n"} {
		_, err := Sections(strings.NewReader(text))
		assert.ErrorIs(t, err, ErrFormat)
	}
}

// The program of this test is a binary of one of the formats.
func TestSectionsOfItself(t *testing.T) {
	path, err := os.Executable()
	require.NoError(t, err)
	f, err := os.Open(path)
	require.NoError(t, err)
	found, err := Sections(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	m, err := Open(filepath.Join(t.TempDir(), "shadow.emd"), found)
	require.NoError(t, err)
	size := 0
	for _, s := range m.Sections() {
		require.NoError(t, m.Mark(s.Addr, s.end(), 1), s.Name)
		n, err := m.Count(s.Addr, s.end(), 1)
		require.NoError(t, err)
		require.EqualValues(t, s.Size, n, s.Name)
		size += n
	}
	assert.Greater(t, size, 1_000_000)
	require.NoError(t, m.Close())
}
