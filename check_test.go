package emd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// check is Check without progress.
func check(a *Arena) error { return a.Check(context.Background(), nil) }

// checkedFile fills a file with something of everything and closes it.
func checkedFile(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(tempDir(t), "checked.emd")
	a, err := openWith(path, &Options{HashSeed: 3, NoSync: true}, internalOptions{chunkSize: minChunkSize})
	require.NoError(t, err)
	fillChecked(t, a, n)
	require.NoError(t, a.Close())
	return path
}

func fillChecked(t *testing.T, a *Arena, n int) {
	t.Helper()
	words, err := Dict[uint64, uint64](a, "words", nil)
	require.NoError(t, err)
	texts, err := Dict[string, string](a, "texts", nil)
	require.NoError(t, err)
	numbers, err := List[uint32](a, "numbers", nil)
	require.NoError(t, err)
	names, err := List[string](a, "names", nil)
	require.NoError(t, err)
	for i := range n {
		require.NoError(t, words.Set(uint64(i), uint64(i)))
		require.NoError(t, texts.Set(fmt.Sprint(i), strings.Repeat("x", i%300)))
		require.NoError(t, numbers.Append(uint32(i)))
		require.NoError(t, names.Append(strings.Repeat("y", i%100)))
		if i%10 == 0 {
			require.NoError(t, a.SetMeta(fmt.Sprint(i), make([]byte, i)))
			_, err := words.Delete(uint64(i) / 2)
			require.NoError(t, err)
		}
		if n > 500 && i%(n/5) == 0 {
			require.NoError(t, a.Sync())
		}
	}
}

// TestCheckEveryBit flips each bit of a small closed file. What Check does with
// the page finds each; header bits, and a sample of the others, are also met by whoever
// opens the file and checks it.
func TestCheckEveryBit(t *testing.T) {
	whole, err := os.ReadFile(checkedFile(t, 10))
	require.NoError(t, err)
	disk := newSimDisk()
	disk.put(crashPath, whole)
	a, err := openWith(crashPath, &Options{ReadOnly: true}, crashOptions(disk))
	require.NoError(t, err)
	require.NoError(t, check(a))
	c, err := newChecker(a, context.Background(), nil)
	require.NoError(t, err)
	var table sumTable
	findings := func(p pageNo) int {
		c.findings, c.damaged = c.findings[:0], c.damaged[:0]
		b := (*page)(whole[int(p)<<pageShift:])
		switch {
		case p < slotPages:
			require.NoError(t, c.slots())
		case isSums(p):
			table[p-sumsAt(0)] = *b
		}
		c.page(&table, 0, p, b)
		return len(c.findings)
	}
	require.NoError(t, table.read(a.file, 0))
	flip := func(bit int) {
		whole[bit/8] ^= 1 << (bit % 8)
		disk.names[crashPath].cache.write(whole[bit/8:][:1], int64(bit/8))
	}
	refused, opened := 0, 0
	for bit := 0; bit < len(whole)*8; bit++ {
		flip(bit)
		p := pageNo(bit / 8 >> pageShift)
		if findings(p) == 0 {
			require.Fail(t, "not found", "bit %d of byte %#x", bit%8, bit/8)
		}
		if header := p < slotPages && bit/8%pageSize < slotSize; header && bit%7 == 0 || bit%10007 == 0 {
			ok, err := openFlipped(disk)
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				require.Fail(t, "not found", "bit %d of byte %#x: %v", bit%8, bit/8, err)
			}
			if ok {
				opened++
			} else {
				refused++
			}
		}
		flip(bit)
		if bit%(pageSize*8) == pageSize*8-1 {
			require.Zero(t, findings(p), "page %d, whole again", p)
		}
	}
	require.NoError(t, a.Close())
	t.Logf("%d bits, all found; of %d files opened with one %d were refused, the others found by Check", len(whole)*8, opened+refused, refused)
}

func openFlipped(disk *simDisk) (opened bool, err error) {
	a, err := openWith(crashPath, &Options{ReadOnly: true}, crashOptions(disk))
	if err != nil {
		return false, err
	}
	return true, errors.Join(check(a), a.Close())
}

// TestCheckStates compares checksums at every stage of a file's life.
func TestCheckStates(t *testing.T) {
	for _, whole := range []bool{false, true} {
		t.Run(fmt.Sprintf("whole=%v", whole), func(t *testing.T) {
			o := tiny()
			o.opts.FullPages = whole
			o.opts.NoSync = true
			path := filepath.Join(tempDir(t), "states.emd")
			a := reopen(t, path, o)
			require.NoError(t, check(a))
			r := rand.New(rand.NewPCG(1, 1))
			for round := range 12 {
				fillChecked(t, a, 1000+r.IntN(2000))
				require.NoError(t, check(a), "round %d, uncommitted", round)
				switch round % 4 {
				case 0:
					require.NoError(t, a.Rollback())
				case 1:
					require.NoError(t, a.Drop("texts"))
					require.NoError(t, a.Sync())
				case 2:
					require.NoError(t, a.Close())
					a = reopen(t, path, o)
				case 3:
					require.NoError(t, a.Sync())
				}
				require.NoError(t, check(a), "round %d", round)
			}
		})
	}
}

func TestCheckProgress(t *testing.T) {
	a := testArena(t, testOptions{})
	fillChecked(t, a, 20000)
	last, calls := int64(0), 0
	require.NoError(t, a.Check(context.Background(), func(done, total int64) {
		assert.LessOrEqual(t, last, done)
		assert.LessOrEqual(t, done, total)
		last = done
		calls++
		if done == total {
			calls += 1000
		}
	}))
	assert.Greater(t, calls, 1001)
	ctx, cancel := context.WithCancel(context.Background())
	err := a.Check(ctx, func(int64, int64) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, check(a))
	require.ErrorIs(t, a.Update(func() error {
		_ = check(a)
		return nil
	}), ErrInUpdate)
}

// TestCheckDamageStays spoils a page in the file, changes a part of it through
// the library and checkpoints: the damage must not get a good checksum by that,
// neither in a checkpoint nor in a recovery.
func TestCheckDamageStays(t *testing.T) {
	for name, spoil := range map[string]func(a *Arena, d *EMDict[uint64, uint64]) pageNo{
		"page":  func(_ *Arena, d *EMDict[uint64, uint64]) pageNo { return d.d.hdr },
		"table": func(*Arena, *EMDict[uint64, uint64]) pageNo { return sumsAt(0) },
	} {
		t.Run(name, func(t *testing.T) {
			disk := newSimDisk()
			open := func() (*Arena, *EMDict[uint64, uint64]) {
				a, err := openWith(crashPath, &Options{HashSeed: 1}, crashOptions(disk))
				require.NoError(t, err)
				d, err := Dict[uint64, uint64](a, "d", nil)
				require.NoError(t, err)
				return a, d
			}
			a, d := open()
			require.NoError(t, d.Set(1, 1))
			p := spoil(a, d)
			require.NoError(t, a.Close())
			at := int(p)<<pageShift + pageSize - 1
			disk.names[crashPath].cache.write([]byte{disk.bytes(crashPath)[at] ^ 1}, int64(at))
			for round := range uint64(3) {
				a, d = open()
				require.NoError(t, d.Set(round+2, 1)) // changes the count in the header page
				require.NoError(t, a.Sync())
				if round == 1 { // recovery seals too
					disk = disk.kill()
					a, _ = open()
				}
				err := check(a)
				require.ErrorIs(t, err, ErrCorrupt, "round %d", round)
				require.ErrorContains(t, err, fmt.Sprintf("page %d does not have its checksum", p))
				require.NoError(t, a.Close())
			}
		})
	}
}

// TestCheckNames requires that a finding about a page names the container it
// belongs to.
func TestCheckNames(t *testing.T) {
	path := checkedFile(t, 2000)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	a, err := Open(path, nil)
	require.NoError(t, err)
	d, err := Dict[uint64, uint64](a, "words", nil)
	require.NoError(t, err)
	pages := map[pageNo]bool{}
	require.NoError(t, d.d.verify(func(p pageNo, n uint32) error {
		pages[p] = true
		return nil
	}))
	require.NoError(t, a.Close())
	for p := range pages {
		b[int(p)<<pageShift+100] ^= 0x10
	}
	require.NoError(t, os.WriteFile(path, b, 0o600))
	a, err = Open(path, &Options{ReadOnly: true})
	require.NoError(t, err)
	err = check(a)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "words", e.Container)
	require.True(t, pages[pageNo(e.Offset>>pageShift)], "offset %#x", e.Offset)
	require.NoError(t, a.Close())
}
