// Mkshim writes the one library that Go programs need under Wine 8 and Wine 8
// lacks.
//
// Since Go 1.22 every program for Windows loads bcryptprimitives.dll for its
// one function ProcessPrng, and dies without it. Wine has that library from
// version 9 on. The file written here has no code: Windows lets a library name
// a function of another one in its place, and advapi32's SystemFunction036
// (RtlGenRandom) fills a buffer with random bytes as ProcessPrng does.
//
//	go run ./internal/mkshim "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll"
package main

import (
	"encoding/binary"
	"fmt"
	"os"
)

const (
	library   = "bcryptprimitives.dll"
	function  = "ProcessPrng"
	forwarder = "advapi32.SystemFunction036"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: mkshim "+library)
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], shim(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "mkshim:", err)
		os.Exit(1)
	}
}

// The file is one page of headers and one section, each of which takes one
// block of the file.
//
//	0     64           68            88                328       368
//	+-----+------------+-------------+-----------------+---------+------
//	| DOS | "PE\0\0"   | file header | optional header | section | zeros
//	+-----+------------+-------------+-----------------+---------+------
//	512         552       556     560        564
//	+-----------+---------+-------+----------+---------+--------
//	| directory | address | name  | ordinal  | strings | zeros
//	+-----------+---------+-------+----------+---------+--------
//
// The loader puts the section sectionAt bytes past the start of the image.
const (
	block     = 0x200
	sectionAt = 0x1000

	dosSize       = 64
	optionalSize  = 240
	directories   = 16 // of which the first is the exports'
	exportsSize   = 40
	addressOff    = exportsSize
	nameOff       = addressOff + 4
	ordinalOff    = nameOff + 4
	stringsOff    = ordinalOff + 4 // one ordinal of 2 bytes, and 2 of padding
	machineAMD64  = 0x8664
	magicPE32Plus = 0x20b

	executableDLL = 0x2022     // EXECUTABLE_IMAGE, LARGE_ADDRESS_AWARE, DLL
	relocatable   = 0x140      // DYNAMIC_BASE, NX_COMPAT
	readOnlyData  = 0x40000040 // INITIALIZED_DATA, MEM_READ
)

var le = binary.LittleEndian

// shim returns the library, for amd64.
func shim() []byte {
	exports := exportSection()
	b := make([]byte, dosSize, 2*block)
	copy(b, "MZ")
	le.PutUint32(b[dosSize-4:], dosSize) // where the next header is
	b = append(b, "PE\x00\x00"...)
	b = appendFields(b,
		uint16(machineAMD64), uint16(1), uint32(0), uint32(0), uint32(0), uint16(optionalSize), uint16(executableDLL),

		uint16(magicPE32Plus), uint16(0), uint32(0), uint32(block), uint32(0), uint32(0), uint32(sectionAt),
		uint64(0x180000000), uint32(sectionAt), uint32(block), // preferred address, alignment in memory and in the file
		uint16(6), uint16(0), uint16(0), uint16(0), uint16(6), uint16(0), uint32(0), // for Windows 6 and later
		uint32(sectionAt+0x1000), uint32(block), uint32(0), // size of image and of headers
		uint16(3), uint16(relocatable), // a console program, as far as it matters
		uint64(0x1000), uint64(0x1000), uint64(0x1000), uint64(0x1000), uint32(0), // stack and heap
		uint32(directories), uint32(sectionAt), uint32(len(exports)),
	)
	b = append(b, make([]byte, (directories-1)*8)...)
	b = append(b, ".edata\x00\x00"...)
	b = appendFields(b,
		uint32(block), uint32(sectionAt), uint32(block), uint32(block), uint32(0), uint32(0), uint32(0), uint32(readOnlyData),
	)
	b = append(b, make([]byte, block-len(b))...)
	b = append(b, exports...)
	return append(b, make([]byte, 2*block-len(b))...)
}

// exportSection returns the table that says where the function is. An address
// inside the section itself is that of the name of another library's function.
func exportSection() []byte {
	libraryOff := uint32(stringsOff)
	functionOff := libraryOff + uint32(len(library)) + 1
	forwarderOff := functionOff + uint32(len(function)) + 1
	b := appendFields(nil,
		uint32(0), uint32(0), uint32(0), sectionAt+libraryOff,
		uint32(1), uint32(1), uint32(1), // the first ordinal, one function, one name
		uint32(sectionAt+addressOff), uint32(sectionAt+nameOff), uint32(sectionAt+ordinalOff),
		sectionAt+forwarderOff, sectionAt+functionOff, uint16(0), uint16(0),
	)
	return append(b, library+"\x00"+function+"\x00"+forwarder+"\x00"...)
}

// appendFields appends unsigned integers of their own widths.
func appendFields(b []byte, fields ...any) []byte {
	for _, f := range fields {
		switch f := f.(type) {
		case uint16:
			b = le.AppendUint16(b, f)
		case uint32:
			b = le.AppendUint32(b, f)
		case uint64:
			b = le.AppendUint64(b, f)
		}
	}
	return b
}
