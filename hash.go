package emd

import (
	"encoding/binary"
	"math/bits"
)

// A hasher computes the hashes of one file's keys. All 64 bits of a hash are
// good: the top ones choose the bucket, the low ones the place inside it.
//
// A hash decides where its key lies, so every step here, the derivation of the
// secrets included, is part of the file format: it is the same on all machines,
// and a change to any of it changes the version of the format.
//
// The function for byte strings is wyhash, final version 4, by Wang Yi
// (github.com/wangyi-fudan/wyhash, public domain), and the one for words follows
// its wyhash64. Both fold the 128-bit product of two words that hold input XORed
// with a constant, a secret. wyhash publishes default secrets and mixes a seed
// into one factor only, which would not do here: input that equals a secret
// makes a factor zero, and then the product is zero whatever the other factor
// and the seed are. Whoever knows the secrets can thus write any number of
// keys that collide in every file. So each file has secrets of its own,
// derived from its random seed.
//
// The zero hasher hashes badly; newHasher makes one.
type hasher struct {
	secret [4]uint64
	start  uint64 // the state before the first byte: what wyhash makes of its seed
}

// newHasher returns the hasher of files with this seed. Any seed will do, 0
// and small numbers too.
func newHasher(seed uint64) hasher {
	var secret [4]uint64
	for i := range secret {
		secret[i] = splitmix64(&seed)
	}
	// word multiplies by this one. Odd, it leaves the low half of the product
	// different for all keys; with the top bit set, at most two keys share a
	// high half.
	secret[1] |= 1<<63 | 1
	return wyHasher(splitmix64(&seed), secret)
}

// wyHasher returns the hasher that wyhash describes for this seed and these
// secrets.
func wyHasher(seed uint64, secret [4]uint64) hasher {
	return hasher{secret: secret, start: seed ^ foldMul(seed^secret[0], secret[1])}
}

// word returns the hash of an 8-byte key, read as a little-endian number; a
// shorter key is extended with zeros. It differs from bytes of the same key.
// Small enough to be inlined.
func (h *hasher) word(k uint64) uint64 {
	hi, lo := bits.Mul64(k^h.secret[0], h.secret[1])
	return foldMul(lo^h.secret[2], hi^h.secret[3])
}

// bytes returns the hash of a key of any length.
func (h *hasher) bytes(b []byte) uint64 {
	// The last 16 bytes are mixed in last and may overlap what precedes them. A
	// shorter key is spread over the same two words.
	var lo, hi uint64
	state := h.start
	switch n := len(b); {
	case n > 16:
		lo, hi = wyRead8(b[n-16:]), wyRead8(b[n-8:])
		state = h.blocks(state, b)
	case n >= 4:
		mid := n >> 3 << 2 // 0 below 8 bytes, 4 below 16, 8 at 16
		lo = wyRead4(b)<<32 | wyRead4(b[mid:])
		hi = wyRead4(b[n-4:])<<32 | wyRead4(b[n-4-mid:])
	case n > 0:
		lo = uint64(b[0])<<16 | uint64(b[n>>1])<<8 | uint64(b[n-1])
	}
	hi, lo = bits.Mul64(lo^h.secret[1], hi^state)
	return foldMul(lo^h.secret[0]^uint64(len(b)), hi^h.secret[1])
}

// blocks mixes into state all of b but its last bytes, at least 1 and at most
// 16: 48 bytes at a time in three chains that the processor runs side by side,
// then 16 at a time. b is longer than 16 bytes.
func (h *hasher) blocks(state uint64, b []byte) uint64 {
	if len(b) > 48 {
		state1, state2 := state, state
		for len(b) > 48 {
			state = foldMul(wyRead8(b)^h.secret[1], wyRead8(b[8:])^state)
			state1 = foldMul(wyRead8(b[16:])^h.secret[2], wyRead8(b[24:])^state1)
			state2 = foldMul(wyRead8(b[32:])^h.secret[3], wyRead8(b[40:])^state2)
			b = b[48:]
		}
		state ^= state1 ^ state2
	}
	for len(b) > 16 {
		state = foldMul(wyRead8(b)^h.secret[1], wyRead8(b[8:])^state)
		b = b[16:]
	}
	return state
}

// foldMul multiplies a and b to 128 bits and XORs the halves.
func foldMul(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// wyRead4 returns the first 4 bytes of b as a little-endian number, wyRead8 the
// first 8.
func wyRead4(b []byte) uint64 { return uint64(binary.LittleEndian.Uint32(b)) }
func wyRead8(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// splitmix64 advances state and returns the next number of the generator of
// Steele, Lea and Flood (Fast Splittable Pseudorandom Number Generators, OOPSLA
// 2014), whose outputs for neighbouring seeds have nothing in common.
func splitmix64(state *uint64) uint64 {
	*state += 0x9E3779B97F4A7C15
	z := *state
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}
