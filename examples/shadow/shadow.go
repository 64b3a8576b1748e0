// Package shadow is shadow memory for reverse engineers: a byte of flags for
// each address of a binary's sections, in a file of emd. Analyses mark ranges of
// addresses (decoded, executed, tainted), test them and scan for them, over days and several
// runs of the program; the binary may be larger than memory.
package shadow

import (
	"cmp"
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"github.com/emd-go/emd"
)

// Flags are what is known about one address: a bit for each thing, of the
// user's choice.
type Flags uint8

// A Section is a range of addresses that a binary takes in memory.
type Section struct {
	Name string
	Addr uint64
	Size uint64
}

// end returns the first address behind s.
func (s Section) end() uint64 { return s.Addr + s.Size }

// A Memory has flags for the addresses of some sections. Any number of
// goroutines may use it at once; of a range that one changes, others may see a part changed.
// Close commits.
type Memory struct {
	arena    *emd.Arena
	flags    *emd.EMList[Flags]
	sections []placed
	change   sync.Mutex // held while flags are read, changed and written
}

// A placed section has its flags in the list from index at on.
type placed struct {
	Section
	at int
}

var (
	// ErrUnmapped reports an address outside of all sections.
	ErrUnmapped = errors.New("no section has this address")
	// ErrOtherBinary reports a file made for other sections.
	ErrOtherBinary = errors.New("the file belongs to another binary")
)

// Open opens the shadow memory in the file at path. It creates it, with all
// flags 0, if it is absent: that takes no space, however large the sections are.
func Open(path string, sections []Section) (*Memory, error) {
	sections = slices.DeleteFunc(slices.Clone(sections), func(s Section) bool { return s.Size == 0 })
	slices.SortFunc(sections, func(a, b Section) int { return cmp.Compare(a.Addr, b.Addr) })
	m := &Memory{}
	size := 0
	for i, s := range sections {
		if s.end() < s.Addr {
			return nil, fmt.Errorf("section %q of %d bytes at %#x goes round the end of the address space", s.Name, s.Size, s.Addr)
		}
		if i > 0 && sections[i-1].end() > s.Addr {
			return nil, fmt.Errorf("sections %q and %q overlap at %#x", sections[i-1].Name, s.Name, s.Addr)
		}
		if s.Size > 1<<40-uint64(size) {
			return nil, fmt.Errorf("%w: sections of more than 2^40 bytes", emd.ErrTooLarge)
		}
		m.sections = append(m.sections, placed{s, size})
		size += int(s.Size)
	}
	var err error
	if m.arena, err = emd.Open(path, nil); err != nil {
		return nil, err
	}
	if err := m.open(sections, size); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), m.arena.Close())
	}
	return m, nil
}

// open makes the list of flags, unless it is there.
func (m *Memory) open(sections []Section, size int) error {
	known, err := emd.List[Section](m.arena, "sections", nil)
	if err != nil {
		return err
	}
	if m.flags, err = emd.List[Flags](m.arena, "flags", nil); err != nil {
		return err
	}
	if known.Len() == 0 && m.flags.Len() == 0 {
		return m.arena.Update(func() error {
			return errors.Join(known.Append(sections...), m.flags.Resize(size))
		})
	}
	same := slices.Equal(sections, slices.Collect(known.Values())) && m.flags.Len() == size
	if err := known.Err(); err != nil {
		return err
	}
	if !same {
		return ErrOtherBinary
	}
	return nil
}

// Sync makes all marks so far durable.
func (m *Memory) Sync() error { return m.arena.Sync() }

// Close makes all marks durable and closes the file.
func (m *Memory) Close() error { return m.arena.Close() }

// Sections returns the sections that are not empty, in the order of their addresses.
func (m *Memory) Sections() (all []Section) {
	for _, s := range m.sections {
		all = append(all, s.Section)
	}
	return all
}

// At returns the flags of an address.
func (m *Memory) At(addr uint64) (Flags, error) {
	i, _, err := m.index(addr, addr)
	if err != nil {
		return 0, err
	}
	return m.flags.Get(i)
}

// Mark sets flags of the addresses [from, to), which lie in one section, and
// leaves their other flags as they are.
func (m *Memory) Mark(from, to uint64, flags Flags) error {
	return m.update(from, to, func(old Flags) Flags { return old | flags })
}

// Unmark clears flags of the addresses [from, to), which lie in one section.
func (m *Memory) Unmark(from, to uint64, flags Flags) error {
	return m.update(from, to, func(old Flags) Flags { return old &^ flags })
}

// stride is how many flags are looked at in one step: they stay in the
// processor's cache.
const stride = 64 << 10

// update gives the addresses [from, to) new flags. Neighbours mostly have the same, so
// it writes by runs of equal ones, and only those that change.
func (m *Memory) update(from, to uint64, change func(Flags) Flags) error {
	i, j, err := m.span(from, to)
	if err != nil {
		return err
	}
	m.change.Lock()
	defer m.change.Unlock()
	old := make([]Flags, min(j-i, stride))
	for i < j {
		old = old[:min(len(old), j-i)]
		n, err := m.flags.CopyTo(old, i)
		if err != nil {
			return err
		}
		for k := 0; k < n; {
			next := k + run(old[k:n])
			if v := change(old[k]); v != old[k] {
				if err := m.flags.Fill(i+k, i+next, v); err != nil {
					return err
				}
			}
			k = next
		}
		i += n
	}
	return nil
}

// run returns how many flags at the start are equal.
func run(flags []Flags) int {
	n := 1
	for n < len(flags) && flags[n] == flags[0] {
		n++
	}
	return n
}

// All tells whether all addresses in [from, to), which lie in one section, have
// all the flags.
func (m *Memory) All(from, to uint64, flags Flags) (bool, error) {
	n, err := m.Count(from, to, flags)
	return err == nil && n == int(to-from), err
}

// Any tells whether an address in [from, to), which lie in one section, has all
// the flags.
func (m *Memory) Any(from, to uint64, flags Flags) (bool, error) {
	i, j, err := m.span(from, to)
	if err != nil {
		return false, err
	}
	for _, run := range m.flags.Views(i, j) {
		for _, f := range run {
			if f&flags == flags {
				return true, nil
			}
		}
	}
	return false, m.flags.Err()
}

// Count returns how many addresses in [from, to), which lie in one section,
// have all the flags.
func (m *Memory) Count(from, to uint64, flags Flags) (n int, err error) {
	i, j, err := m.span(from, to)
	if err != nil {
		return 0, err
	}
	for _, run := range m.flags.Views(i, j) {
		for _, f := range run {
			if f&flags == flags {
				n++
			}
		}
	}
	return n, m.flags.Err()
}

// Ranges returns a loop over the ranges of addresses whose flags, of those in
// mask, are as wanted: first address, and first behind. Ranges end with
// their section. A fault of the file ends the loop: see [Memory.Err].
func (m *Memory) Ranges(mask, wanted Flags) iter.Seq2[uint64, uint64] {
	return func(yield func(from, to uint64) bool) {
		for _, s := range m.sections {
			from, in := uint64(0), false
			for i, run := range m.flags.Views(s.at, s.at+int(s.Size)) {
				for k, f := range run {
					if (f&mask == wanted) == in {
						continue
					}
					addr := s.Addr + uint64(i+k-s.at)
					if in && !yield(from, addr) {
						return
					}
					from, in = addr, !in
				}
			}
			if in && !yield(from, s.end()) {
				return
			}
		}
	}
}

// Err returns the first fault that ended a loop early.
func (m *Memory) Err() error { return m.flags.Err() }

// span returns where the flags of [from, to) are.
func (m *Memory) span(from, to uint64) (i, j int, err error) {
	if to < from {
		return 0, 0, fmt.Errorf("%#x to %#x is no range of addresses", from, to)
	}
	if from == to {
		return 0, 0, nil
	}
	return m.index(from, to-1)
}

// index returns where the flags of the addresses from first to last are.
func (m *Memory) index(first, last uint64) (i, j int, err error) {
	k, found := slices.BinarySearchFunc(m.sections, first, func(s placed, addr uint64) int { return cmp.Compare(s.Addr, addr) })
	if !found {
		k--
	}
	if k < 0 || first >= m.sections[k].end() {
		return 0, 0, fmt.Errorf("%w: %#x", ErrUnmapped, first)
	}
	s := m.sections[k]
	if last >= s.end() {
		return 0, 0, fmt.Errorf("%w: %#x, behind section %q", ErrUnmapped, s.end(), s.Name)
	}
	i = s.at + int(first-s.Addr)
	return i, i + int(last-first) + 1, nil
}

// ErrFormat reports a file that is no binary of a known format.
var ErrFormat = errors.New("no ELF, PE or Mach-O binary")

// Sections returns the sections of a binary that are in memory when it runs:
// of ELF, PE or Mach-O.
func Sections(r io.ReaderAt) (sections []Section, err error) {
	add := func(name string, addr, size uint64) {
		if size > 0 {
			sections = append(sections, Section{name, addr, size})
		}
	}
	var head [4]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	switch {
	case string(head[:]) == elf.ELFMAG:
		f, err := elf.NewFile(r)
		if err != nil {
			return nil, err
		}
		for _, s := range f.Sections {
			// .tbss is a template, without memory of its own.
			if s.Flags&elf.SHF_ALLOC != 0 && (s.Flags&elf.SHF_TLS == 0 || s.Type != elf.SHT_NOBITS) {
				add(s.Name, s.Addr, s.Size)
			}
		}
	case string(head[:2]) == "MZ":
		f, err := pe.NewFile(r)
		if err != nil {
			return nil, err
		}
		base := uint64(0)
		switch h := f.OptionalHeader.(type) {
		case *pe.OptionalHeader32:
			base = uint64(h.ImageBase)
		case *pe.OptionalHeader64:
			base = h.ImageBase
		}
		for _, s := range f.Sections {
			if s.Characteristics&pe.IMAGE_SCN_MEM_DISCARDABLE == 0 { // such as what is for debuggers
				add(s.Name, base+uint64(s.VirtualAddress), uint64(s.VirtualSize))
			}
		}
	default:
		f, err := macho.NewFile(r)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		for _, s := range f.Sections {
			if s.Seg != "__DWARF" {
				add(s.Seg+","+s.Name, s.Addr, s.Size)
			}
		}
	}
	return sections, nil
}
