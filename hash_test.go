package emd

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The secrets that wyhash publishes.
var wySecret = [4]uint64{0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3}

func wyHash(seed uint64, b []byte) uint64 {
	h := wyHasher(seed, wySecret)
	return h.bytes(b)
}

// The vectors of wyhash's test_vector.cpp, final version 4; the seed is the
// number of the line.
func TestHashVectors(t *testing.T) {
	for seed, test := range []struct {
		in   string
		want uint64
	}{
		{"", 0x0409638EE2BDE459},
		{"a", 0xA8412D091B5FE0A9},
		{"abc", 0x32DD92E4B2915153},
		{"message digest", 0x8619124089A3A16B},
		{"abcdefghijklmnopqrstuvwxyz", 0x7A43AFB61D7F5F40},
		{"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 0xFF42329B90E50D58},
		{"12345678901234567890123456789012345678901234567890123456789012345678901234567890", 0xC39CAB13B115AAD3},
	} {
		assert.Equal(t, test.want, wyHash(uint64(seed), []byte(test.in)), test.in)
	}
}

// The code by which SMHasher knows a function covers all lengths from 0 to 255
// bytes, and one of 2048.
func TestHashSMHasher(t *testing.T) {
	var key, hashes []byte
	for n := range 256 {
		hashes = binary.LittleEndian.AppendUint64(hashes, wyHash(uint64(256-n), key))
		key = append(key, byte(n))
	}
	assert.Equal(t, uint32(0xBD5E840C), uint32(wyHash(0, hashes)))
}

// Files live on: what a seed makes of a key never changes.
func TestHashStable(t *testing.T) {
	h := newHasher(1)
	assert.Equal(t, hasher{
		secret: [4]uint64{0x910A2DEC89025CC1, 0xBEEB8DA1658EEC67, 0xF893A2EEFB32555E, 0x71C18690EE42C90B},
		start:  0x1E326D0488BE02F5,
	}, h)
	assert.Equal(t, uint64(0xF5E00BF9CBF27A9D), h.word(0))
	assert.Equal(t, uint64(0x00BB147AFB268365), h.word(12345))
	assert.Equal(t, uint64(0xEA441442065AF285), h.bytes(nil))
	assert.Equal(t, uint64(0x28544A41671FEB2E), h.bytes([]byte("key")))
	assert.Equal(t, uint64(0x23B858B92A0EC54B), h.bytes([]byte("a key that is longer than forty-eight bytes, to take all paths")))
}

// Whoever knows the secrets knows keys that collide under every seed, for a
// word equal to a secret makes a product zero. Hence secrets that depend on it.
func TestHashSecrets(t *testing.T) {
	evil := func(n uint64) []byte {
		b := binary.LittleEndian.AppendUint64(nil, wySecret[1])
		b = binary.LittleEndian.AppendUint64(b, n)
		return append(b, "the same for all"...)
	}
	for seed := range uint64(100) {
		require.Equal(t, wyHash(seed, evil(1)), wyHash(seed, evil(2)), "seed %d", seed)
		h := newHasher(seed)
		require.NotEqual(t, h.bytes(evil(1)), h.bytes(evil(2)), "seed %d", seed)
	}
}

// Seeds, also neighbouring ones, give unrelated orders of the same keys.
func TestHashSeeds(t *testing.T) {
	order := func(hash func(k int) uint64) []int {
		keys := make([]int, 1000)
		for i := range keys {
			keys[i] = i
		}
		slices.SortFunc(keys, func(a, b int) int {
			if hash(a) < hash(b) {
				return -1
			}
			return 1
		})
		return keys
	}
	key := func(k int) []byte { return fmt.Appendf(nil, "key %d", k) }
	seeds := []uint64{0, 1, 2, 3, 1 << 32, 1 << 63, math.MaxUint64}
	for i, a := range seeds {
		for _, b := range seeds[:i] {
			ha, hb := newHasher(a), newHasher(b)
			assert.Less(t, samePlaces(
				order(func(k int) uint64 { return ha.word(uint64(k)) }),
				order(func(k int) uint64 { return hb.word(uint64(k)) })), 10, "words, seeds %d and %d", a, b)
			assert.Less(t, samePlaces(
				order(func(k int) uint64 { return ha.bytes(key(k)) }),
				order(func(k int) uint64 { return hb.bytes(key(k)) })), 10, "bytes, seeds %d and %d", a, b)
		}
	}
}

// samePlaces counts the indexes where a and b agree: about one for two
// permutations at random.
func samePlaces(a, b []int) (n int) {
	for i := range a {
		if a[i] == b[i] {
			n++
		}
	}
	return n
}

// A change of any bit of the key changes each bit of the hash with probability
// one half, whatever else is in the key.
func TestHashAvalanche(t *testing.T) {
	const keys = 256
	rng := rand.New(rand.NewPCG(1, 2))
	h := newHasher(3)
	check := func(name string, size int, key func(b []byte, i int), hash func(b []byte) uint64) {
		b := make([]byte, size)
		for in := range 8 * size {
			var flips [64]int
			for i := range keys {
				key(b, i)
				x := hash(b)
				b[in/8] ^= 1 << (in % 8)
				for d := x ^ hash(b); d != 0; d &= d - 1 {
					flips[bits.TrailingZeros64(d)]++
				}
			}
			// Each flips for half of the keys, within six standard deviations,
			// which are sqrt(keys)/2.
			name := fmt.Sprintf("%s, %d bytes: bit %d of the key", name, size, in)
			assert.GreaterOrEqual(t, slices.Min(flips[:]), keys/2-6*8, name)
			assert.LessOrEqual(t, slices.Max(flips[:]), keys/2+6*8, name)
		}
	}
	random := func(b []byte, i int) {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
	}
	sequential := func(b []byte, i int) {
		clear(b)
		b[0] = byte(i)
		if len(b) > 1 {
			b[1] = byte(i >> 8)
		}
	}
	word := func(b []byte) uint64 { return h.word(binary.LittleEndian.Uint64(b)) }
	check("random words", 8, random, word)
	check("sequential words", 8, sequential, word)
	for _, size := range []int{3, 4, 7, 8, 16, 17, 33, 100} {
		check("random bytes", size, random, h.bytes)
		check("sequential bytes", size, sequential, h.bytes)
	}
}

// Keys as they come fill buckets (by the top bits) and groups (by the low 32
// bits) as evenly as random numbers do.
func TestHashSpread(t *testing.T) {
	const keys = 1 << 14
	rng := rand.New(rand.NewPCG(1, 2))
	words := map[string]func(i uint64) uint64{
		"sequential":       func(i uint64) uint64 { return i },
		"descending":       func(i uint64) uint64 { return -i },
		"pages":            func(i uint64) uint64 { return i << 12 },
		"high half":        func(i uint64) uint64 { return i << 32 },
		"top":              func(i uint64) uint64 { return i << 48 },
		"reversed":         func(i uint64) uint64 { return bits.Reverse64(i) },
		"multiples of 10":  func(i uint64) uint64 { return i * 1e10 },
		"pairs":            func(i uint64) uint64 { return i>>8<<32 | i&0xFF },
		"clusters":         func(i uint64) uint64 { return (i>>6)*0x9E3779B97F4A7C15&^0xFFFF | i&63 },
		"addresses":        func(i uint64) uint64 { return 0x00007F3A00000000 + i*48 },
		"small floats":     func(i uint64) uint64 { return math.Float64bits(float64(i)) },
		"two bits or less": twoBits(),
		"random":           func(uint64) uint64 { return rng.Uint64() },
	}
	for _, seed := range []uint64{0, 1, 0xDEADBEEF, math.MaxUint64} {
		h := newHasher(seed)
		for name, key := range words {
			n := keys
			if name == "two bits or less" {
				n = 64*63/2 + 64 + 1
			}
			spreads(t, fmt.Sprintf("seed %d, words, %s", seed, name), n, func(i uint64) uint64 { return h.word(key(i)) })
			spreads(t, fmt.Sprintf("seed %d, bytes, %s", seed, name), n, func(i uint64) uint64 {
				return h.bytes(binary.LittleEndian.AppendUint64(nil, key(i)))
			})
		}
		for _, format := range []string{"%d", "%08x", "https://example.com/%d/index.html", "%0100d", "%d" + string(make([]byte, 48))} {
			spreads(t, fmt.Sprintf("seed %d, %q", seed, format), keys, func(i uint64) uint64 {
				return h.bytes(fmt.Appendf(nil, format, i))
			})
		}
		// Zeros that differ in their number alone.
		zeros := make([]byte, 4096)
		spreads(t, fmt.Sprintf("seed %d, zeros", seed), len(zeros), func(i uint64) uint64 { return h.bytes(zeros[:i]) })
	}
}

// twoBits returns a function that lists the words with at most two bits set.
func twoBits() func(i uint64) uint64 {
	list := []uint64{0}
	for a := range 64 {
		list = append(list, 1<<a)
		for b := range a {
			list = append(list, 1<<a|1<<b)
		}
	}
	return func(i uint64) uint64 { return list[i] }
}

// spreads checks the hashes of n different keys: no two alike, and each view of
// them that a dict takes fills its places evenly.
func spreads(t *testing.T, name string, n int, hash func(i uint64) uint64) {
	t.Helper()
	hashes := make([]uint64, n)
	for i := range hashes {
		hashes[i] = hash(uint64(i))
	}
	for view, place := range map[string]func(x uint64) int{
		"top 8 bits":                func(x uint64) int { return int(x >> 56) },
		"next 8 bits":               func(x uint64) int { return int(x >> 48 & 0xFF) },
		"low 8 bits":                func(x uint64) int { return int(x & 0xFF) },
		"low half, 63 groups":       func(x uint64) int { return int(uint64(uint32(x)) * 63 >> 32) },
		"bits 32 to 38":             func(x uint64) int { return int(x >> 32 & 0x7F) },
		"top 4 bits and low 4 bits": func(x uint64) int { return int(x>>60<<4 | x&15) },
		"top 4 bits and low half's": func(x uint64) int { return int(x>>60<<4 | x>>28&15) },
	} {
		var counts [256]int
		top := 0
		for _, x := range hashes {
			p := place(x)
			counts[p]++
			top = max(top, p)
		}
		assert.Less(t, unevenness(counts[:top+1], n), 6.0, "%s: %s", name, view)
	}
	slices.Sort(hashes)
	assert.Len(t, slices.Compact(hashes), n, "%s: hashes collide", name)
}

// unevenness is by how many of its standard deviations the chi-squared
// statistic of n things in places lies above what chance gives. It is bounded
// below too: counts far too even would be as little random.
func unevenness(counts []int, n int) float64 {
	mean := float64(n) / float64(len(counts))
	var chi2 float64
	for _, c := range counts {
		chi2 += (float64(c) - mean) * (float64(c) - mean) / mean
	}
	free := float64(len(counts) - 1)
	return math.Abs(chi2-free) / math.Sqrt(2*free)
}

// The low 32 bits of many keys collide no more often than random ones do.
func TestHashLowHalf(t *testing.T) {
	const keys = 1 << 18
	h := newHasher(5)
	low := make([]uint32, keys)
	for i := range low {
		low[i] = uint32(h.word(uint64(i)))
	}
	slices.Sort(low)
	// Pairs among 2^18 in 2^32 places: 8 expected.
	assert.Less(t, keys-len(slices.Compact(low)), 8+6*3)
}

var hashSink uint64

func BenchmarkHash(b *testing.B) {
	h := newHasher(1)
	b.Run("word", func(b *testing.B) {
		b.SetBytes(8)
		var k uint64
		for b.Loop() {
			k = h.word(k)
		}
		hashSink = k
	})
	for _, n := range []int{3, 8, 16, 24, 32, 64, 100, 300, 4096} {
		b.Run(fmt.Sprintf("bytes/len=%d", n), func(b *testing.B) {
			key := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				hashSink = h.bytes(key)
			}
		})
	}
}
