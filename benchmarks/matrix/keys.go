package matrix

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"slices"
)

// distributions are the ways in which keys follow from their numbers 0, 1, 2 and so on.
var distributions = map[string]func(i uint64) uint64{
	"uniform":    mix,
	"sequential": func(i uint64) uint64 { return i },
	// Runs of 64 keys that follow each other. The factor is odd, so no two runs are the same.
	"clustered": func(i uint64) uint64 { return i/64*0x9e3779b97f4a7c15<<6 | i%64 },
	// Only a few of the upper bits differ.
	"low": bits.Reverse64,
	// The upper half is the same. A text has 44 more characters before it.
	"prefix": func(i uint64) uint64 { return 0xfeedface<<32 | uint64(uint32(i)*0x9e3779b1) },
}

func distributionNames() []string { return slices.Sorted(maps.Keys(distributions)) }

const commonPrefix = "https://example.org/archive/2026/documents/?"

// A form is how the keys and values of a kind look.
type form[K, V any] struct {
	key  func(i uint64, old K) K                 // may use the memory of old
	val  func(i uint64, version uint32, old V) V // each version differs
	same func(a, b V) bool
}

// wordOf is the number of a value. Adding 1 to it makes the next version.
func wordOf(i uint64, version uint32) uint64 { return mix(i) + uint64(version) }

// textOf fills a value that no store can compress.
func textOf(i uint64, version uint32) (t Text) {
	for at := 0; at < len(t); at += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], mix(wordOf(i, version)+uint64(at)<<40))
		copy(t[at:], word[:])
	}
	return t
}

func textKey(dst []byte, i uint64, dist string) []byte {
	if dist == "prefix" {
		dst = append(dst, commonPrefix...)
	}
	return fmt.Appendf(dst, "%016x", distributions[dist](i))
}

func words(dist string) form[uint64, uint64] {
	word := distributions[dist]
	return form[uint64, uint64]{
		key:  func(i uint64, _ uint64) uint64 { return word(i) },
		val:  func(i uint64, version uint32, _ uint64) uint64 { return wordOf(i, version) },
		same: func(a, b uint64) bool { return a == b },
	}
}

func texts(dist string) form[string, Text] {
	return form[string, Text]{
		key:  func(i uint64, _ string) string { return string(textKey(nil, i, dist)) },
		val:  func(i uint64, version uint32, _ Text) Text { return textOf(i, version) },
		same: func(a, b Text) bool { return a == b },
	}
}

func wordBytes(dist string) form[[]byte, []byte] {
	word := distributions[dist]
	return form[[]byte, []byte]{
		key: func(i uint64, old []byte) []byte { return binary.BigEndian.AppendUint64(old[:0], word(i)) },
		val: func(i uint64, version uint32, old []byte) []byte {
			return binary.BigEndian.AppendUint64(old[:0], wordOf(i, version))
		},
		same: bytes.Equal,
	}
}

func textBytes(dist string) form[[]byte, []byte] {
	return form[[]byte, []byte]{
		key: func(i uint64, old []byte) []byte { return textKey(old[:0], i, dist) },
		val: func(i uint64, version uint32, old []byte) []byte {
			t := textOf(i, version)
			return append(old[:0], t[:]...)
		},
		same: bytes.Equal,
	}
}

// mix is the last step of splitmix64, by Sebastiano Vigna. It maps no two numbers to one.
func mix(i uint64) uint64 {
	i += 0x9e3779b97f4a7c15
	i = (i ^ i>>30) * 0xbf58476d1ce4e5b9
	i = (i ^ i>>27) * 0x94d049bb133111eb
	return i ^ i>>31
}
