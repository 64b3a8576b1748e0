package emd

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLayoutFor(t *testing.T) {
	for _, c := range []struct {
		key, val int
		kind     layoutKind
		slots    int
	}{
		{8, 8, layoutLines, 252},
		{4, 4, layoutLines, 504},
		{8, 0, layoutLines, 504},
		{4, 28, layoutLines, 126},
		{8, 24, layoutLines, 126},
		{16, 16, layoutControl, 123},
		{8, 9, layoutControl, 225},
		{1, 0, layoutControl, 2032},
		{256, 256, layoutControl, 7},
		{256, 257, layoutSlotted, 0},
		{0, 0, layoutSlotted, 0},
		{0, 8, layoutControl, 452},
		{-1, 8, layoutSlotted, 0},
		{8, -1, layoutSlotted, 0},
		{-1, -1, layoutSlotted, 0},
	} {
		name := fmt.Sprintf("%d to %d", c.key, c.val)
		l := layoutFor(c.key, c.val)
		assert.Equal(t, c.kind, l.kind, name)
		assert.Equal(t, c.slots, l.slots, name)
		if l.kind == layoutControl {
			assert.LessOrEqual(t, bucketHeader+ctrlGroup*l.groups, l.slotsOff, name)
			assert.Equal(t, pageSize, l.slotOff(l.slots), name)
		}
	}
}

func TestControlWords(t *testing.T) {
	var b [8]byte
	for i, c := range []byte{0x80, 0x00, 0xff, 0x01, 0x9c, 0x00, 0x81, 0x01} {
		b[i] = c
	}
	w := binary.LittleEndian.Uint64(b[:])
	assert.EqualValues(t, uint64(0x0000_8000_0000_8000), empties(w))
	assert.EqualValues(t, uint64(0x80<<32), matches(w, 0x9c))
	assert.EqualValues(t, 0x80, matches(w, 0x80)&-matches(w, 0x80), "the lowest match is right")
	assert.Zero(t, matches(w, 0xaa))
}

// Every entry of a slotted bucket, whatever its parts' sizes, is small enough,
// and is read as it was written.
func TestSlottedEntry(t *testing.T) {
	sizes := []int{0, 1, 7, 8, 63, 64, 100, 255, 256, 400, 479, 480, 481, 500, 512, 513, 4000, maxKeySize}
	for _, fixedKey := range []bool{false, true} {
		for _, fixedVal := range []bool{false, true} {
			for _, k := range sizes {
				for _, v := range sizes {
					key, val := -1, -1
					if fixedKey {
						key = k
					}
					if fixedVal {
						val = v
					}
					l := layoutFor(key, val)
					if l.kind != layoutSlotted {
						continue
					}
					name := fmt.Sprintf("key %d (%v) value %d (%v)", k, fixedKey, v, fixedVal)
					f := l.form(k, v)
					assert.LessOrEqual(t, f.size, maxSlotted, name)
					entry := l.appendEntry(nil, f, make([]byte, k), make([]byte, v), 0x1111, 0x2222)
					assert.Len(t, entry, f.size, name)
					var b bucket
					off := pageSize - len(entry)
					copy(b[off:], entry)
					e, ok := l.entry(&b, off)
					assert.True(t, ok, name)
					assert.Equal(t, pageSize, e.end, name)
					assert.Equal(t, f.keyFar, e.keyFar, name)
					assert.Equal(t, f.valFar, e.valFar, name)
					if f.keyFar {
						assert.EqualValues(t, 0x1111, b.refAt(e.key), name)
					} else {
						assert.Equal(t, k, e.keyLen, name)
					}
					if f.valFar {
						assert.EqualValues(t, 0x2222, b.refAt(e.val), name)
					} else {
						assert.Equal(t, v, e.valLen, name)
					}
				}
			}
		}
	}
}

func TestSlottedEntryOutside(t *testing.T) {
	l := layoutFor(-1, -1)
	var b bucket
	for i := range b {
		b[i] = 0xff
	}
	for off := range pageSize + 1 {
		e, ok := l.entry(&b, off)
		if ok {
			assert.LessOrEqual(t, e.end, pageSize)
		}
	}
}

// A lookup of the layout of lines touches the line of the entry and no other;
// a new value dirties one line.
func TestEMDictDirtyLines(t *testing.T) {
	d := newDictFor[uint64, uint64](t, testOptions{opts: Options{HashSeed: 1}}) // which pages divide depends on it
	for i := range uint64(100_000) {
		require.NoError(t, d.Set(i, i))
	}
	require.NoError(t, d.Sync())
	lines := func() (n int) {
		end, _ := d.d.a.alloc.usage()
		require.NoError(t, d.d.space.eachDirty(0, end, func(p dirtyPage) error {
			for w := *p.word; w != 0; w &= w - 1 {
				n++
			}
			return nil
		}))
		return n
	}
	before := lines()
	for i := range uint64(1000) {
		require.NoError(t, d.Set(i*97, 7))
	}
	require.LessOrEqual(t, lines()-before, 1000)
	for i := range uint64(1000) {
		require.NoError(t, d.Set(1e6+i, 7))
	}
	require.LessOrEqual(t, lines()-before, 2000+100*64, "a page divides now and then")
}

// Damage of any kind is an error, a wrong answer at worst: no panic, no
// endless loop, no access outside the file.
func TestEMDictDamage(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 0))
		rounds := 60
		if testing.Short() {
			rounds = 10
		}
		for range rounds {
			testDamage(t, r, uint64(r.Uint32()), func(i int) uint64 { return uint64(i) })
			testDamage(t, r, [3]uint64{1, 2, 3}, func(i int) uint64 { return uint64(i) })
			testDamage(t, r, "value", func(i int) string { return strings.Repeat("k", i%700) + fmt.Sprint(i) })
			testDamage(t, r, strings.Repeat("v", 600), func(i int) string { return fmt.Sprint(i) })
		}
	})
}

func testDamage[K comparable, V any](t *testing.T, r *rand.Rand, v V, key func(i int) K) {
	o := testOptions{}
	o.heap = true
	a, err := openWith(tempDir(t)+"/damage.emd", &o.opts, o.internalOptions)
	require.NoError(t, err)
	d, err := Dict[K, V](a, "d", nil)
	require.NoError(t, err)
	if r.IntN(3) == 0 {
		d.d.hashMask = hashMasks["few"]
	}
	n := r.IntN(4000)
	for i := range n {
		require.NoError(t, d.Set(key(i), v))
	}
	// Spoil pages of the dict: the header page, buckets, records.
	var pages []pageNo
	require.NoError(t, d.d.verify(func(p pageNo, n uint32) error {
		for i := range n {
			pages = append(pages, p+i)
		}
		return nil
	}))
	for range 1 + r.IntN(20) {
		p := pages[r.IntN(len(pages))]
		if p == d.d.hdr {
			continue
		}
		b := d.d.space.page(p)
		d.d.space.touch(p, allLines)
		at := r.IntN(pageSize)
		if r.IntN(2) == 0 {
			at = r.IntN(64)
		}
		switch r.IntN(3) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = uint8(r.Uint32())
		default:
			for i := range r.IntN(64) {
				b[(at+i)%pageSize] = uint8(r.Uint32())
			}
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = d.d.verify(func(pageNo, uint32) error { return nil })
		for i := range n + 100 {
			_, _, _ = d.Get(key(i))
		}
		for range d.All() {
		}
		// Only what reads: writes into pages that damage names could hit the
		// structures of others, which is theirs to survive.
		for i := range n / 10 {
			_, _, _ = d.Compute(key(i), func(v V, _ bool) (V, Op) { return v, OpKeep })
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("endless loop")
	}
	_ = a.Err()
	_ = a.Close()
}

// Header pages of every kind of damage load with an error or not at all.
func TestEMDictDamagedHeader(t *testing.T) {
	for _, n := range []int{0, 1000, 150_000} {
		d := newDictFor[uint64, uint64](t, testOptions{internalOptions: internalOptions{heap: true}})
		for i := range n {
			require.NoError(t, d.Set(uint64(i), 1))
		}
		d.d.flush()
		hdr := d.d.header()
		good := *hdr
		root := good
		table := binary.LittleEndian.Uint32(hdr[dictRootOff:])
		if table != 0 {
			root = *d.d.space.page(table)
		}
		r := rand.New(rand.NewPCG(1, 1))
		for at := range dictRecordsOff {
			for range 20 {
				hdr[at] ^= 1 << r.IntN(8)
				c := newDict(d.d.a, 8, 8)
				if err := c.load(d.d.hdr); err == nil {
					_, _, _ = c.getWord(r.Uint64())
				} else {
					assert.ErrorIs(t, err, ErrCorrupt)
				}
				*hdr = good
			}
		}
		if table != 0 {
			for range 2000 {
				page := d.d.space.page(table)
				page[r.IntN(pageSize)] ^= 1 << r.IntN(8)
				c := newDict(d.d.a, 8, 8)
				if err := c.load(d.d.hdr); err == nil {
					for range 20 {
						_, _, _ = c.getWord(r.Uint64())
					}
				}
				*page = root
			}
		}
	}
}

// A page whose header and entries do not agree is not written anew: what moves would lose some of them.
func TestEMDictUnsoundPage(t *testing.T) {
	d := newDictFor[string, string](t, testOptions{})
	entries := map[string]string{"long": strings.Repeat("l", 400), "": "", "a": "1", "b": "2", "c": "3"}
	for k, v := range entries {
		require.NoError(t, d.Set(k, v))
	}
	page := func(key string) *bucket {
		h := d.d.hash([]byte(key))
		b, err := d.d.page(d.d.table.Load().segment(h).bucket(h), 0)
		require.NoError(t, err)
		return b
	}
	var moves []moving
	good := page("a")
	require.NoError(t, d.d.moves(&moves, good))
	require.Len(t, moves, len(entries))
	long := 0
	for _, m := range moves {
		key, err := d.d.keyAt(good, int(m.slot))
		require.NoError(t, err)
		require.Equal(t, d.d.hash(key), m.h)
		entry := string(good[m.from:m.end])
		require.True(t, strings.HasSuffix(entry, string(key)+entries[string(key)]), "%q of %q", entry, key)
		if string(key) == "long" {
			long = int(m.from)
		}
	}
	for name, harm := range map[string]func(b *bucket){
		"count":    func(b *bucket) { b.setCount(len(entries) - 1) },
		"groups":   func(b *bucket) { b.setGroups(0) },
		"heap":     func(b *bucket) { b.setHeap(b.heap() + 1) },
		"below":    func(b *bucket) { setEntryOffs(b, moves[:1], b.heap()-8) },
		"low heap": func(b *bucket) { b.setHeap(bucketHeader) },
		"overlaps": func(b *bucket) { setEntryOffs(b, moves, long) },
		"end":      func(b *bucket) { setEntryOffs(b, moves[:1], pageSize-1) },
	} {
		bad := *good
		harm(&bad)
		require.ErrorIs(t, d.d.moves(new([]moving), &bad), ErrCorrupt, name)
	}

	good.setCount(len(entries) + 1)
	var before bucket
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		before = *good
		err = d.Set(fmt.Sprint("more ", i), strings.Repeat("x", 100))
	}
	require.ErrorIs(t, err, ErrCorrupt)
	require.True(t, before == *good, "the page stays as it was")
	for k, v := range entries {
		got, ok, err := d.Get(k)
		require.NoError(t, err)
		require.True(t, ok && got == v, k)
	}
	good.setCount(good.count() - 1) // the arena is checked in the end

	fixed := newDictFor[[16]byte, uint32](t, testOptions{})
	require.NoError(t, fixed.Set([16]byte{1}, 1))
	h := fixed.d.hash(make([]byte, 16))
	b, err := fixed.d.page(fixed.d.table.Load().segment(h).bucket(h), 0)
	require.NoError(t, err)
	require.NoError(t, fixed.d.moves(&moves, b))
	b.setCount(2)
	require.ErrorIs(t, fixed.d.moves(&moves, b), ErrCorrupt)
	b.setCount(1)
}

// setEntryOffs has slots begin at off.
func setEntryOffs(b *bucket, slots []moving, off int) {
	for _, m := range slots {
		binary.LittleEndian.PutUint16(b[entryOffOff(int(m.slot)):], uint16(off))
	}
}

// An entry is read as it was written, and one that does not lie in its page is
// refused, wherever it begins and whatever its bytes.
func TestEntryParts(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var b bucket
	for range 200_000 {
		sizes := [2]int{r.IntN(70), r.IntN(300)}
		l := layoutFor([]int{-1, sizes[0]}[r.IntN(2)], []int{-1, sizes[1]}[r.IntN(2)])
		if l.kind != layoutSlotted {
			continue
		}
		key, val := make([]byte, sizes[0]), make([]byte, sizes[1])
		f := l.form(len(key), len(val))
		entry := l.appendEntry(nil, f, key, val, 1<<24, 2<<24)
		for i := range b {
			b[i] = 0xff // what lies behind is no part of it
		}
		off := pageSize - len(entry) - r.IntN(2)*r.IntN(9)
		copy(b[off:], entry)
		e, ok := l.entry(&b, off)
		require.True(t, ok, "seed %d", seed)
		require.Equal(t, off+len(entry), e.end, "seed %d", seed)
		require.Equal(t, [2]bool{f.keyFar, f.valFar}, [2]bool{e.keyFar, e.valFar}, "seed %d", seed)
		require.Equal(t, off+f.size, e.end, "seed %d", seed)
		if !f.valFar {
			require.Equal(t, len(val), e.valLen, "seed %d", seed)
		}
		if !f.keyFar {
			require.Equal(t, len(key), e.keyLen, "seed %d", seed)
		}
		at := r.IntN(1 << 16)
		if r.IntN(2) == 0 {
			at = pageSize - r.IntN(8)
		}
		b[r.IntN(pageSize)] = byte(r.Uint32())
		if e, ok := l.entry(&b, at); ok {
			_, _ = b[e.key:e.val], b[e.val:e.end] // which panics outside
			require.GreaterOrEqual(t, at, bucketHeader, "seed %d", seed)
		}
	}
}

// A line of words takes an entry in any slot, and the others stay as they are.
func TestWordLine(t *testing.T) {
	for i := 1; i <= lineSize/wordSlot; i++ {
		old := wordLine{11, 12, 21, 22, 31, 32, 41, 42}
		want := old
		want[2*i-1] = 7
		line := old
		line.vals().put(i, 7)
		assert.Equal(t, want, line)
		want[2*i-2] = 6
		line = old
		line.put(i, 6, 7)
		assert.Equal(t, want, line)
		key, val := line.at(i)
		assert.Equal(t, []uint64{6, 7}, []uint64{key, val})
		for last := i; last <= lineSize/wordSlot; last++ {
			line, want = old, old
			clear(line[2*last:])
			assert.Equal(t, last, line.used())
			clear(want[2*last-2:])
			if i != last {
				copy(want[2*i-2:2*i], old[2*last-2:])
			}
			line.cut(i, last)
			assert.Equal(t, want, line)
			assert.Equal(t, last-1, line.used())
		}
	}
	// Of damage, or while a writer moves it, a line may have a key several times.
	for dup := range 16 {
		var b bucket
		for i := range 4 {
			key := 1 + uint64(i)
			if dup>>i&1 != 0 {
				key = 9
			}
			b.setWord(pageSize-lineSize+i*wordSlot, key)
		}
		line, i, ended := b.findWord(1<<32-1, 9)
		assert.True(t, ended)
		if dup == 0 {
			assert.EqualValues(t, lineSize, line) // the next, which is empty
			assert.Zero(t, i)
		} else {
			assert.EqualValues(t, pageSize-lineSize, line)
			assert.Contains(t, []int{1, 2, 3, 4}, i)
		}
	}
}

// Words whose homes are a few neighbouring lines, at the end of the page too, lie
// far behind them; whatever is deleted, the others are found where a search
// ends at the first empty slot.
func TestEMDictCrowdedLines(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for _, homes := range []uint64{0, 1 << 26, 3 << 26, 1<<26 | 1<<31, 31 << 26, 63 << 26} { // bits of a hash that choose the line
		d := newDictFor[uint64, uint64](t, testOptions{})
		d.d.hashMask = 0xffffffff<<32 | homes
		model := map[uint64]uint64{}
		var keys []uint64
		for range 3000 {
			if n := len(keys); n > 0 && r.IntN(n+100) > 100 {
				at := r.IntN(n)
				k := keys[at]
				keys[at] = keys[n-1]
				keys = keys[:n-1]
				delete(model, k)
				ok, err := d.Delete(k)
				require.NoError(t, err)
				require.True(t, ok, "seed %d", seed)
			} else {
				k := r.Uint64() | 1
				keys = append(keys, k)
				model[k] = r.Uint64()
				require.NoError(t, d.Set(k, model[k]))
			}
			for k, want := range model {
				v, ok, err := d.Get(k)
				require.NoError(t, err)
				require.True(t, ok && v == want, "seed %d: key %d", seed, k)
			}
		}
		require.Equal(t, len(model), d.Len())
		require.NoError(t, d.Arena().Check(t.Context(), nil))
	}
}
