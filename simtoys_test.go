package emd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The simulator and its judge are only worth something if they can fail. This file gives them stores of a few lines that
// make one mistake each, the well-known ones, which must be found, and the same stores without the mistake, which must pass.

// A toyStore keeps one text. open returns it, "" at first; commit replaces it.
type toyStore struct {
	name    string
	open    func(d toyDisk) (state string, err error)
	commit  func(d toyDisk, state string) error
	garbage bool   // on a disk where a torn sector is noise
	sync    int    // this one fails
	found   string // what the judge must say; "" for a store without a mistake
}

// A toyDisk is what a toy uses of the file system.
type toyDisk struct{ *simDisk }

func (d toyDisk) file(name string) file {
	f, err := d.Open(name, os.O_RDWR|os.O_CREATE, 0)
	if err != nil {
		panic(err)
	}
	return f
}

func (d toyDisk) has(name string) bool {
	_, err := d.Open(name, os.O_RDONLY, 0)
	return err == nil
}

func (d toyDisk) write(name string, b []byte, off int64) {
	if _, err := d.file(name).WriteAt(b, off); err != nil {
		panic(err)
	}
}

func (d toyDisk) sync(name string) error { return d.file(name).Sync() }

func (d toyDisk) read(name string, off, n int64) []byte {
	b := make([]byte, n)
	got, _ := d.file(name).ReadAt(b, off)
	return b[:got]
}

func (d toyDisk) size(name string) int64 {
	n, _ := d.file(name).Size()
	return n
}

// toyState is a state of a few sectors, which tell from which commit they are.
func toyState(k int) string { return strings.Repeat(fmt.Sprintf("%-16d", k), 3*simSectorSize/16) }

const toySize = 3 * simSectorSize

// toyRecord is a state in the log: its sum and number in a sector of their own, then the state. The first in the log is 1.
func toyRecord(n int, state string) []byte {
	b := make([]byte, simSectorSize, simSectorSize+toySize)
	binary.LittleEndian.PutUint32(b[4:], uint32(n))
	b = append(b, state...)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

const toyRecordSize = simSectorSize + toySize

// toyLog returns the states in the log: all records that have their number, and with checked their sum, too.
func toyLog(d toyDisk, checked bool) (states []string) {
	for {
		b := d.read("log", int64(len(states))*toyRecordSize, toyRecordSize)
		if len(b) < toyRecordSize || binary.LittleEndian.Uint32(b[4:]) != uint32(len(states)+1) ||
			checked && binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
			return states
		}
		states = append(states, string(b[simSectorSize:]))
	}
}

func toyLast(states []string) string {
	if len(states) == 0 {
		return ""
	}
	return states[len(states)-1]
}

// toyAppender is a log of states. checked: records are believed by their sum. waits: a commit waits for the disk.
func toyAppender(checked, waits bool) toyStore {
	return toyStore{
		open: func(d toyDisk) (string, error) {
			states := toyLog(d, checked)
			// What is torn must not be taken for the rest of a later record.
			if err := d.file("log").Truncate(int64(len(states)) * toyRecordSize); err != nil {
				return "", err
			}
			return toyLast(states), d.sync("log")
		},
		commit: func(d toyDisk, state string) error {
			n := len(toyLog(d, checked))
			d.write("log", toyRecord(n+1, state), int64(n)*toyRecordSize)
			if !waits {
				return nil
			}
			return d.sync("log")
		},
	}
}

// toyRedo is a main file behind a log of one record, which the next open or commit applies.
func toyRedo(applyWaits bool) toyStore {
	apply := func(d toyDisk) error {
		states := toyLog(d, true)
		if len(states) == 0 {
			return nil
		}
		d.write("main", []byte(states[0]), 0)
		if applyWaits {
			if err := d.sync("main"); err != nil {
				return err
			}
		}
		return errors.Join(d.file("log").Truncate(0), d.sync("log"))
	}
	return toyStore{
		open: func(d toyDisk) (string, error) {
			err := errors.Join(d.sync("log"), apply(d)) // what it reads may be in the page cache only
			return string(d.read("main", 0, toySize)), err
		},
		commit: func(d toyDisk, state string) error {
			if err := apply(d); err != nil {
				return err
			}
			d.write("log", toyRecord(1, state), 0)
			return d.sync("log")
		},
	}
}

// toyVersions keeps each state in a file with the number of the commit for a name, and removes the one before.
func toyVersions(fileWaits, folderWaits, removeLast bool) toyStore {
	name := func(k int) string { return fmt.Sprint("version", k) }
	latest := func(d toyDisk) int {
		for k := 9; k > 0; k-- {
			if d.has(name(k)) {
				return k
			}
		}
		return 0
	}
	return toyStore{
		open: func(d toyDisk) (string, error) {
			k := latest(d)
			if k == 0 {
				return "", nil
			}
			b := d.read(name(k), 0, toySize)
			if len(b) < toySize {
				return "", errors.New("too short")
			}
			return string(b), errors.Join(d.sync(name(k)), d.SyncDir("/")) // somebody will have seen it
		},
		commit: func(d toyDisk, state string) error {
			k := latest(d)
			if k > 0 && !removeLast {
				if err := d.Remove(name(k)); err != nil {
					return err
				}
			}
			d.write("new", []byte(state), 0)
			if fileWaits {
				if err := d.sync("new"); err != nil {
					return err
				}
			}
			if err := errors.Join(d.Link("new", name(k+1)), d.Remove("new")); err != nil {
				return err
			}
			if folderWaits {
				if err := d.SyncDir("/"); err != nil {
					return err
				}
			}
			if k > 0 && removeLast {
				return d.Remove(name(k))
			}
			return nil
		},
	}
}

// toySlots is two places for the state and a header that says which one counts, in sectors of its own.
func toySlots(dataFirst bool, header func(d toyDisk, slot byte), read func(d toyDisk) (slot byte, err error)) toyStore {
	return toyStore{
		open: func(d toyDisk) (string, error) {
			slot, err := read(d)
			if err != nil || slot == 0 {
				return "", err
			}
			return string(d.read("data", int64(slot)*pageSize, toySize)), d.sync("data")
		},
		commit: func(d toyDisk, state string) error {
			slot, err := read(d)
			if err != nil {
				return err
			}
			slot = 1 + slot%2
			d.write("data", []byte(state), int64(slot)*pageSize)
			if dataFirst {
				if err := d.sync("data"); err != nil {
					return err
				}
			}
			header(d, slot)
			return d.sync("data")
		},
	}
}

func toyHeader(d toyDisk, slot byte) { d.write("data", []byte{slot}, 0) }

func readToyHeader(d toyDisk) (slot byte, err error) {
	b := d.read("data", 0, 1)
	if len(b) == 0 {
		return 0, nil // new
	}
	if b[0] > 2 {
		return 0, errors.New("no header")
	}
	return b[0], nil
}

var toyStores = []toyStore{
	{name: "written in place", found: "no whole commit", open: func(d toyDisk) (string, error) {
		return string(d.read("data", 0, toySize)), nil
	}, commit: func(d toyDisk, state string) error {
		d.write("data", []byte(state), 0)
		return d.sync("data")
	}},
	{name: "written in place with a checksum", found: "refused", open: func(d toyDisk) (string, error) {
		if states := toyLog(d, true); len(states) > 0 || d.size("log") == 0 {
			return toyLast(states), nil
		}
		return "", errors.New("bad checksum")
	}, commit: func(d toyDisk, state string) error {
		d.write("log", toyRecord(1, state), 0)
		return d.sync("log")
	}},

	toyAppender(true, true).called("log", ""),
	toyAppender(true, true).called("log", "").torn(),
	toyAppender(false, true).called("log without checksums", "no whole commit"),
	toyAppender(true, false).called("log that nobody waits for", "lost commit"),
	{name: "log that trusts the length of its file", found: "no whole commit", open: func(d toyDisk) (string, error) {
		n := d.size("log") / toySize
		return string(d.read("log", max(0, n-1)*toySize, min(1, n)*toySize)), nil
	}, commit: func(d toyDisk, state string) error {
		d.write("log", []byte(state), d.size("log")/toySize*toySize)
		return d.sync("log")
	}},

	toyRedo(true).called("redo log", ""),
	toyRedo(true).called("redo log", "").torn(),
	toyRedo(false).called("redo log that is emptied before the main file is durable", "no whole commit"),

	toyVersions(true, true, true).called("versions", ""),
	toyVersions(true, true, true).called("versions", "").torn(),
	toyVersions(false, true, true).called("versions renamed before they are durable", "refused"),
	toyVersions(true, false, true).called("versions without a sync of the folder", "lost commit"),
	toyVersions(true, true, false).called("versions removed too early", "lost commit"),

	toySlots(true, toyHeader, readToyHeader).called("slots", ""),
	toySlots(true, toyHeader, readToyHeader).called("slots whose header is torn", "refused").torn(),
	toySlots(false, toyHeader, readToyHeader).called("slots with one sync for data and header", "no whole commit"),
	toySlots(true, func(d toyDisk, slot byte) {
		d.write("data", []byte{7}, 0) // a mistake, put right at once
		d.write("data", []byte{slot}, 0)
	}, readToyHeader).called("slots whose header says something else for a moment", "refused"),
	toySlots(true, func(d toyDisk, slot byte) {
		d.write("data", []byte{slot}, 0)
		d.write("data", []byte{slot}, simSectorSize)
	}, func(d toyDisk) (byte, error) {
		slot, err := readToyHeader(d)
		if twin := d.read("data", simSectorSize, 1); err == nil && len(twin) > 0 && twin[0] != slot {
			err = errors.New("the headers differ")
		}
		return slot, err
	}).called("slots with a header of two sectors", "refused"),

	toyAppender(true, true).called("log that repeats a failed sync", "lost commit").failing(2, func(d toyDisk, err error) error {
		return d.sync("log")
	}),
	toyAppender(true, true).called("log that stops at a failed sync", "").failing(2, func(_ toyDisk, err error) error { return err }),
}

func (s toyStore) called(name, found string) toyStore {
	s.name, s.found = name, found
	return s
}

func (s toyStore) torn() toyStore {
	s.name += ", torn sectors are noise"
	s.garbage = true
	return s
}

// failing lets one sync fail; after says what the store does then.
func (s toyStore) failing(n int, after func(d toyDisk, err error) error) toyStore {
	commit := s.commit
	s.sync = n
	s.commit = func(d toyDisk, state string) error {
		err := commit(d, state)
		if err != nil {
			err = after(d, err)
		}
		return err
	}
	return s
}

// TestSimulator lets the judge find the mistakes, and none where there is none.
func TestSimulator(t *testing.T) {
	for _, store := range toyStores {
		t.Run(store.name, func(t *testing.T) {
			said := map[string]int{}
			first := ""
			j := newCrashJudge(1, 256, 16, func(why string) {
				for _, kind := range []string{"refused", "no whole commit", "lost commit"} {
					if strings.HasPrefix(why, kind) {
						said[kind]++
					}
				}
				if first == "" {
					first = why
				}
			})
			j.deep, j.kills = [2]float64{1, 0.1}, [2]float64{0.2}
			j.open = func(d *simDisk, _ bool) (string, error) { return store.open(toyDisk{d}) }
			disk := newSimDisk()
			disk.garbage = store.garbage
			j.begin("")
			for _, name := range []string{"main", "log", "data"} { // that these are there is not what the toys are about
				toyDisk{disk}.file(name)
			}
			if strings.HasPrefix(store.name, "slots") {
				toyDisk{disk}.write("data", make([]byte, pageSize), 0)
				require.NoError(t, toyDisk{disk}.sync("data"))
			}
			require.NoError(t, disk.SyncDir("/"))
			disk.before = func(n int, op string) error {
				j.crash(disk, op, fmt.Sprintf("before change %d (%s)", n, op))
				if strings.HasPrefix(op, "sync ") {
					if store.sync--; store.sync == 0 {
						return errors.New("input/output error")
					}
				}
				return nil
			}
			for k := 1; k <= 4; k++ {
				j.begin(toyState(k))
				if store.commit(toyDisk{disk}, toyState(k)) != nil {
					break
				}
				j.acknowledge()
				j.crash(disk, "", fmt.Sprint("after commit ", k))
			}
			t.Log(j, said)
			if store.found == "" {
				assert.Empty(t, said, first)
			} else {
				assert.Positive(t, said[store.found], "%v: %s", said, first)
			}
		})
	}
}

// TestSimDiskImages counts what a power cut may leave.
func TestSimDiskImages(t *testing.T) {
	b := func(c byte, n int) []byte { return []byte(strings.Repeat(string(rune(c)), n)) }
	synced := func(d *simDisk, n int) file {
		f := toyDisk{d}.file("f")
		_, err := f.WriteAt(b('-', n), 0)
		require.NoError(t, errors.Join(err, f.Sync(), d.SyncDir("/")))
		return f
	}
	for name, c := range map[string]struct {
		garbage bool
		do      func(d *simDisk)
		want    int
	}{
		"nothing":            {do: func(d *simDisk) { synced(d, 5*512) }, want: 1},
		"a sector":           {do: func(d *simDisk) { _, _ = synced(d, 5*512).WriteAt(b('a', 10), 600) }, want: 2},
		"a sector, torn":     {do: func(d *simDisk) { _, _ = synced(d, 5*512).WriteAt(b('a', 10), 600) }, garbage: true, want: 3},
		"the same again":     {do: func(d *simDisk) { _, _ = synced(d, 5*512).WriteAt(b('-', 10), 600) }, want: 1},
		"across two sectors": {do: func(d *simDisk) { _, _ = synced(d, 5*512).WriteAt(b('a', 10), 1020) }, want: 4},
		"three sectors":      {do: func(d *simDisk) { _, _ = synced(d, 5*512).WriteAt(b('a', 3*512), 512) }, want: 8},
		"two writes of a sector": {do: func(d *simDisk) {
			f := synced(d, 5*512)
			_, _ = f.WriteAt(b('a', 9), 0)
			_, _ = f.WriteAt(b('b', 9), 99)
		}, want: 3},
		"written and written off": {do: func(d *simDisk) {
			f := synced(d, 5*512)
			_, _ = f.WriteAt(b('a', 9), 0)
			_, _ = f.WriteAt(b('-', 9), 0)
		}, want: 2},
		"longer":             {do: func(d *simDisk) { _ = synced(d, 512).Truncate(1024) }, want: 3},               // short; long with zeros, with noise
		"shorter":            {do: func(d *simDisk) { _ = synced(d, 1024).Truncate(512) }, want: 3},               // and long with zeros
		"appended":           {do: func(d *simDisk) { _, _ = synced(d, 512).WriteAt(b('a', 512), 512) }, want: 4}, // short; long with it, zeros, noise
		"punched":            {do: func(d *simDisk) { _ = synced(d, 5*512).Punch(512, 1024) }, want: 4},
		"a new name":         {do: func(d *simDisk) { _ = synced(d, 512); _ = d.Link("f", "g") }, want: 2},
		"a moved name":       {do: func(d *simDisk) { _ = synced(d, 512); _ = d.Link("f", "g"); _ = d.Remove("f") }, want: 4},
		"a new file":         {do: func(d *simDisk) { _, _ = toyDisk{d}.file("f").WriteAt(b('a', 512), 0) }, want: 5},
		"an unsynced remove": {do: func(d *simDisk) { _, _ = synced(d, 512).WriteAt(b('a', 512), 0); _ = d.Remove("f") }, want: 3},
	} {
		t.Run(name, func(t *testing.T) {
			d := newSimDisk()
			d.garbage = c.garbage
			c.do(d)
			distinct := map[uint64]bool{}
			assert.True(t, d.images(100, 10, nil, func(img *simDisk) { distinct[img.sum()] = true }))
			assert.Len(t, distinct, c.want)
			// Without leave to look at all, no image is one that cannot be.
			if c.want > 1 {
				assert.False(t, d.images(1, 50, newRand(1), func(img *simDisk) { assert.True(t, distinct[img.sum()], img.list()) }))
			}
		})
	}
}

// TestSimDiskFailedSync: what a failed sync lost, no later one writes.
func TestSimDiskFailedSync(t *testing.T) {
	for name, c := range map[string]struct {
		loss        simLoss
		cache, disk string
	}{
		"lost":                {simLoss{}, "bb", "aa"},
		"lost and forgotten":  {simLoss{forgets: true}, "aa", "aa"},
		"reached":             {simLoss{reached: true}, "bb", "bb"},
		"mixed":               {simLoss{mixed: true}, "bb", "ba"},
		"mixed and forgotten": {simLoss{mixed: true, forgets: true}, "ba", "ba"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newSimDisk()
			f := toyDisk{d}.file("f")
			write := func(c string) {
				_, err := f.WriteAt([]byte(strings.Repeat(c, 1024)), 0)
				require.NoError(t, err)
			}
			write("a")
			require.NoError(t, errors.Join(f.Sync(), d.SyncDir("/")))
			write("b")
			d.loss = c.loss
			d.before = func(int, string) error { return errors.New("input/output error") }
			require.Error(t, f.Sync())
			d.before = nil
			require.NoError(t, f.Sync())
			two := func(d toyDisk) string { return string(d.read("f", 511, 2)) }
			assert.Equal(t, c.cache, two(toyDisk{d}))
			assert.True(t, d.images(1, 1, nil, func(img *simDisk) { assert.Equal(t, c.disk, two(toyDisk{img})) }))
		})
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }
