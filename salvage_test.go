package emd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const salvagedPath = "/salvaged.emd"

// salvageImage salvages files in memory, and requires that they stay as they are and that nothing but dst is left.
func salvageImage(t testing.TB, what string, data, log []byte) (disk *memFS, report Report, err error) {
	disk = newMemFS(data, log)
	for _, f := range disk.files {
		f.readOnly = true
	}
	done, total := int64(-1), int64(-1)
	report, err = salvageWith(t.Context(), salvagedPath, hostilePath, func(d, n int64) {
		require.Greater(t, d, done, what)
		require.LessOrEqual(t, d, n, what)
		done, total = d, n
	}, hostileOptions(disk))
	if err == nil {
		require.Equal(t, total, done, what)
	}
	for path, f := range disk.files {
		switch path {
		case hostilePath:
			require.True(t, bytes.Equal(data, f.b), what)
			require.Zero(t, f.readers, what)
		case logPath(hostilePath):
			require.True(t, bytes.Equal(log, f.b), what)
		case salvagedPath:
			require.NoError(t, err, what)
		default:
			require.Fail(t, "left behind", "%s: %s", what, path)
		}
	}
	return disk, report, err
}

func openSalvaged(t testing.TB, what string, disk *memFS) *Arena {
	a, err := openWith(salvagedPath, &Options{ReadOnly: true}, hostileOptions(disk))
	require.NoError(t, err, what)
	require.NoError(t, a.verify(), what)
	return a
}

// A heldEntry is an entry of a file, as bytes, and the pages that it lies in.
type heldEntry struct {
	key, val []byte
	pages    []pageNo
	zero     bool
}

// A heldContainer is the content of a container, and the pages without which it cannot be found.
type heldContainer struct {
	info    Info
	entries []heldEntry // of a list, by index
	byKey   map[string]int
	way     map[pageNo]bool
}

func refPages(recs *records, x ref) (pages []pageNo) {
	if x == 0 || x == refEmpty {
		return nil
	}
	add := func(off uint64, n int) {
		for p := off >> pageShift; p <= (off+uint64(n)-1)>>pageShift; p++ {
			pages = append(pages, pageNo(p))
		}
	}
	if x.grows() {
		g, err := recs.growing(x)
		if err != nil {
			panic(err)
		}
		add(x.off(), growHeader+g.inHead())
		_ = g.eachExtent(func(p pageNo, _ uint32, used int) error { add(uint64(p)<<pageShift, used); return nil })
		return pages
	}
	if !x.inPieces() {
		add(x.off(), x.len())
		return pages
	}
	index, total, size, err := recs.pieces(x)
	if err != nil {
		panic(err)
	}
	add(x.off(), len(index))
	for i := indexHeader; i < len(index); i += 4 {
		add(uint64(fileWord(index[i:]))<<pageShift, min(size, total))
		total -= size
	}
	return pages
}

func fileWord(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// contentOnPages reads all containers of an arena, and with places on which pages each entry depends. Its loops call require where something
// is wrong, because require takes longer than what they do.
func contentOnPages(t testing.TB, a *Arena, places bool) map[string]*heldContainer {
	all := map[string]*heldContainer{}
	for info := range a.Containers() {
		c, err := a.openUntyped(info.Name)
		require.NoError(t, err)
		h := &heldContainer{info: info, byKey: map[string]int{}, way: map[pageNo]bool{c.base().hdr: true}}
		all[info.Name] = h
		if l, ok := c.(*list); ok {
			tab := l.table.Load()
			for off := tab.off; off < tab.off+4*uint64(len(tab.entries)); off += 4 {
				h.way[pageNo(off>>pageShift)] = true
			}
			for i := range int(l.len()) {
				el, err := l.lookup(nil, i)
				if err != nil {
					require.NoError(t, err)
				}
				e := heldEntry{val: el.b, zero: el.zero}
				k, at := tab.locate(l.first.Load() + uint64(i))
				if p := tab.entry(k); places && p != 0 && l.width > 0 {
					off := uint64(p)<<pageShift + at*l.width
					for q := off >> pageShift; q <= (off+l.width-1)>>pageShift; q++ {
						e.pages = append(e.pages, pageNo(q))
					}
					if l.refs {
						x, err := l.loadRef(l.first.Load() + uint64(i))
						require.NoError(t, err)
						e.pages = append(e.pages, refPages(&l.recs, x)...)
					}
				}
				h.entries = append(h.entries, e)
			}
			continue
		}
		d := c.(*dict)
		if d.table.Load().bits != 0 {
			h.way[fileWord(d.header()[dictRootOff:])] = true
		}
		cur := cursor{d: d, last: ^uint64(0)}
		for cur.next() {
			val, ok, err := d.farValue(&cur)
			if err != nil || !ok {
				require.Fail(t, "value not read", "%v, %v", ok, err)
			}
			e := heldEntry{key: slices.Clone(cur.key), val: slices.Clone(val)}
			if places {
				e.pages = entryPages(t, d, e.key)
			}
			h.byKey[string(e.key)] = len(h.entries)
			h.entries = append(h.entries, e)
		}
		require.NoError(t, cur.err)
	}
	return all
}

// entryPages returns the pages that a lookup of a key reads, but for those that all keys need.
func entryPages(t testing.TB, d *dict, key []byte) (pages []pageNo) {
	tab, hash := d.table.Load(), d.hash(key)
	seg := tab.segment(hash)
	if seg.off != 0 {
		pages = append(pages, pageNo((seg.off+4*tab.index(hash, seg.depth()))>>pageShift))
	}
	for no := seg.bucket(hash); no != 0; no = (*bucket)(d.a.space.page(no)).next() {
		pages = append(pages, no)
	}
	p, found, err := d.locate(seg.bucket(hash), hash, key, 0)
	require.NoError(t, err)
	require.True(t, found)
	if d.layout.kind == layoutSlotted {
		se, _ := d.layout.entry(p.b, entryOff(p.b, p.i))
		if se.keyFar {
			pages = append(pages, refPages(&d.recs, p.b.refAt(se.key))...)
		}
		if se.valFar {
			pages = append(pages, refPages(&d.recs, p.b.refAt(se.val))...)
		}
	}
	return pages
}

// salvageModel is an image and what it holds.
type salvageModel struct {
	img     fileImage
	content map[string]*heldContainer
	meta    map[string][]byte
	metaHdr pageNo
	pages   int
}

func newSalvageModel(t testing.TB, img fileImage) *salvageModel {
	a, err := openWith(hostilePath, &Options{ReadOnly: true}, hostileOptions(newMemFS(img.data, img.log)))
	require.NoError(t, err)
	defer a.Close()
	m := &salvageModel{img: img, content: contentOnPages(t, a, true), meta: map[string][]byte{}, metaHdr: a.header.meta, pages: len(img.data) / pageSize}
	require.NoError(t, a.meta.eachBytes(func(k, v []byte) bool { m.meta[string(k)] = slices.Clone(v); return true }))
	return m
}

// salvageImages are the real files of the hostile tests, without keys that collide: only a test can write those.
func salvageImages(t testing.TB) []*salvageModel {
	h := &hostile{t: t, what: "building"}
	var names []string
	for _, r := range residents {
		if r.name != "chains" {
			names = append(names, r.name)
		}
	}
	images := hostileImages(t)
	models := []*salvageModel{newSalvageModel(t, h.image("all", true, func(a *Arena) { h.populate(a, 1, names...) }))}
	for _, img := range images[len(images)-2:] {
		models = append(models, newSalvageModel(t, img))
	}
	return models
}

// compare requires of a salvaged file all entries of which no page is bad, and of the report that it tells of what is missing. It returns
// the number of entries that had to be there and of those that are missing.
func (m *salvageModel) compare(t testing.TB, what string, disk *memFS, report Report, bad map[pageNo]bool) (had, missing int) {
	a := openSalvaged(t, what, disk)
	defer a.Close()
	got := contentOnPages(t, a, false)
	told := map[string]Salvaged{}
	badSums := false // then no length can be trusted
	for p := range bad {
		badSums = badSums || isSums(p)
	}
	for _, c := range report.Containers {
		told[c.Name] = c
	}
	for name, want := range m.content {
		lostWay := false
		for p := range want.way {
			lostWay = lostWay || bad[p]
		}
		have := got[name]
		if have == nil {
			require.True(t, lostWay, "%s: container %q is lost", what, name)
			require.False(t, report.Whole(), what)
			missing += len(want.entries)
			continue
		}
		require.Equal(t, want.info.Key, have.info.Key, what)
		require.Equal(t, want.info.Value, have.info.Value, what)
		wrong, lost := 0, 0
		for i, e := range want.entries {
			intact := !lostWay && !slices.ContainsFunc(e.pages, func(p pageNo) bool { return bad[p] })
			var val []byte
			ok, zero := false, false
			if want.info.Kind == kindList {
				if ok = i < len(have.entries); ok {
					val, zero = have.entries[i].val, have.entries[i].zero
				}
			} else if j, found := have.byKey[string(e.key)]; found {
				val, ok = have.entries[j].val, true
			}
			same := ok && (bytes.Equal(val, e.val) || zero && zeroBytes(e.val) || e.zero && zeroBytes(val))
			if intact {
				if had++; !same {
					require.Fail(t, "lost", "%s: entry %d of %q is intact and does not come out: %v\n%s", what, i, name, ok, report)
				}
				continue
			}
			switch {
			case !ok || !same && (zero || want.info.Kind == kindList && zeroBytes(val)):
				lost++
			case !same:
				wrong++
			}
		}
		missing += lost
		invented := 0
		if want.info.Kind == kindList {
			invented = max(0, len(have.entries)-len(want.entries))
		} else {
			for key := range have.byKey {
				if _, known := want.byKey[key]; !known {
					invented++
				}
			}
		}
		if lost > 0 {
			require.False(t, report.Whole(), "%s: %q lacks %d entries", what, name, lost)
			if !lostWay && !badSums {
				require.GreaterOrEqual(t, told[name].Lost+told[name].Suspect, int64(lost), "%s: %q", what, name)
			}
		}
		require.GreaterOrEqual(t, told[name].Suspect, int64(wrong+invented), "%s: %q: %d wrong, %d invented\n%s", what, name, wrong, invented, report)
	}
	return had, missing
}

// TestSalvageWhole salvages files without damage, closed and crashed.
func TestSalvageWhole(t *testing.T) {
	for _, m := range salvageImages(t) {
		disk, report, err := salvageImage(t, m.img.name, m.img.data, m.img.log)
		require.NoError(t, err)
		require.True(t, report.Whole(), "%s: %v", m.img.name, report)
		had, missing := m.compare(t, m.img.name, disk, report, nil)
		require.Zero(t, missing)
		a := openSalvaged(t, m.img.name, disk)
		require.Equal(t, uint64(7), a.header.seed)
		for k, v := range m.meta {
			got, ok := a.Meta(k)
			require.True(t, ok)
			require.Equal(t, v, got)
		}
		require.NoError(t, a.Close())
		for _, c := range report.Containers {
			require.Zero(t, c.Lost+c.Suspect, c.Name)
			require.Equal(t, int64(len(m.content[c.Name].entries)), c.Entries, c.Name)
		}
		require.Equal(t, int64(len(m.meta)), report.Meta)
		t.Logf("%s: %d entries\n%s", m.img.name, had, report)
	}
}

// TestSalvagePages damages each page in turn.
func TestSalvagePages(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 3))
	for _, m := range salvageImages(t) {
		runs, had, missing := 0, 0, 0
		for p := range m.pages {
			spoils := map[string]func(b []byte){
				"random": func(b []byte) {
					for i := range b {
						b[i] = byte(r.Uint32())
					}
				},
				"zeros": func(b []byte) { clear(b) },
				"a bit": func(b []byte) { b[r.IntN(len(b))] ^= 1 << r.IntN(8) },
				"some":  func(b []byte) { copy(b[r.IntN(len(b)):], "damage damage damage") },
			}
			if m.pages > 200 {
				if p > 40 && r.IntN(m.pages) > 40 {
					continue
				}
				spoils = map[string]func(b []byte){"random": spoils["random"]}
			}
			ways := slices.Sorted(maps.Keys(spoils))
			if p > 40 { // all depends on the first ones
				r.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
				ways = ways[:(len(ways)+1)/2]
			}
			for _, how := range ways {
				spoil := spoils[how]
				what := fmt.Sprintf("seed %d: %s, page %d, %s", seed, m.img.name, p, how)
				data := slices.Clone(m.img.data)
				spoil(data[p*pageSize:][:pageSize])
				bad := map[pageNo]bool{pageNo(p): !bytes.Equal(data, m.img.data)}
				disk, report, err := salvageImage(t, what, data, m.img.log)
				require.NoError(t, err, what)
				h, l := m.compare(t, what, disk, report, bad)
				runs, had, missing = runs+1, had+h, missing+l
			}
		}
		require.NotZero(t, missing)
		t.Logf("seed %d: %s: %d damaged files, %d entries had to come out and did, %d lost", seed, m.img.name, runs, had, missing)
	}
}

// TestSalvageCatalogue flips a bit of each byte of the catalogue's buckets: the containers are whole, and come out under their names,
// whatever the entry says then, also that the header is the catalogue's own. Where the entry is right and the label is not, the
// name is the entry's.
func TestSalvageCatalogue(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 5))
	for _, m := range salvageImages(t)[:2] {
		a, err := openWith(hostilePath, &Options{ReadOnly: true}, hostileOptions(newMemFS(m.img.data, m.img.log)))
		require.NoError(t, err)
		runs := 0
		salvage := func(what string, spoilt map[int]byte) {
			what = fmt.Sprintf("seed %d: %s, %s, %v", seed, m.img.name, what, spoilt)
			data, bad := slices.Clone(m.img.data), map[pageNo]bool{}
			for at, b := range spoilt {
				data[at] = b
				bad[pageNo(at>>pageShift)] = true
			}
			disk, report, err := salvageImage(t, what, data, m.img.log)
			require.NoError(t, err, what)
			require.Len(t, report.Containers, len(m.content), what)
			if len(bad) == 1 {
				_, missing := m.compare(t, what, disk, report, bad)
				require.Zero(t, missing, what)
			}
			for i, name := range slices.Sorted(maps.Keys(m.content)) {
				require.Equal(t, name, report.Containers[i].Name, what)
			}
			runs++
		}
		buckets := map[pageNo]bool{}
		for cur := (cursor{d: a.catalog, last: ^uint64(0)}); cur.next(); {
			h := a.catalog.hash(cur.key)
			no := a.catalog.table.Load().segment(h).bucket(h)
			buckets[no] = true
			c := m.content[string(cur.key)]
			if c == nil {
				continue
			}
			e, err := decodeEntry(cur.val)
			require.NoError(t, err)
			page, label := int(no)<<pageShift, int(e.hdr)<<pageShift+labelOff+1
			unused := page + (*bucket)(a.space.page(no)).heap() - 1
			salvage("label of "+string(cur.key), map[int]byte{unused: 1, label: m.img.data[label] ^ 1})
			if e.kind == kindDict {
				hdr := page + bytes.Index(a.space.page(no)[:], cur.val) + entryHeaderOff
				salvage("catalogue for "+string(cur.key), map[int]byte{hdr: byte(a.header.catalog), hdr + 1: byte(a.header.catalog >> 8)})
			}
		}
		for _, no := range slices.Sorted(maps.Keys(buckets)) { // so that the seed says all
			for i, b := range a.space.page(no) {
				if b != 0 {
					salvage("entry", map[int]byte{int(no)<<pageShift + i: b ^ 1<<r.IntN(8)})
				}
			}
		}
		require.NoError(t, a.Close())
		t.Logf("%s: %d damaged files", m.img.name, runs)
	}
}

// TestSalvageTwins has the entry of a list lead to another one of the same type; a third's name is too long for a label.
func TestSalvageTwins(t *testing.T) {
	h := &hostile{t: t, what: "building"}
	want := map[string]uint64{"one": 1, "two": 2, strings.Repeat("three", 400): 3}
	img := h.image("twins", true, func(a *Arena) {
		for name, v := range want {
			l, err := List[uint64](a, name, nil)
			h.must(err)
			h.must(l.Append(v))
		}
	})
	a, err := openWith(hostilePath, &Options{ReadOnly: true}, hostileOptions(newMemFS(img.data, nil)))
	require.NoError(t, err)
	entries := map[string][]byte{}
	require.NoError(t, a.catalog.eachBytes(func(k, v []byte) bool { entries[string(k)] = slices.Clone(v); return true }))
	require.NoError(t, a.Close())
	data := slices.Clone(img.data)
	copy(data[bytes.Index(data, entries["one"]):], entries["two"])
	disk, report, err := salvageImage(t, "twins", data, nil)
	require.NoError(t, err)
	require.Len(t, report.Containers, len(want), report.String())
	b := openSalvaged(t, "twins", disk)
	for name, v := range want {
		l, err := List[uint64](b, name, &ListOptions[uint64]{MustExist: true})
		require.NoError(t, err)
		require.Equal(t, []uint64{v}, slices.Collect(l.Values()), name)
	}
	require.NoError(t, b.Close())
}

// TestSalvageManyPages damages several pages at once.
func TestSalvageManyPages(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 4))
	m := salvageImages(t)[0]
	had, missing := 0, 0
	for run := range 200 {
		data := slices.Clone(m.img.data)
		bad := map[pageNo]bool{}
		for range 1 + r.IntN(12) {
			p := r.IntN(m.pages)
			bad[pageNo(p)] = true
			for i := range pageSize {
				data[p*pageSize+i] ^= byte(r.Uint32())
			}
		}
		what := fmt.Sprintf("seed %d, run %d", seed, run)
		disk, report, err := salvageImage(t, what, data, nil)
		require.NoError(t, err, what)
		h, l := m.compare(t, what, disk, report, bad)
		had, missing = had+h, missing+l
	}
	t.Logf("seed %d: %d entries had to come out and did, %d lost", seed, had, missing)
}

// TestSalvageHeader takes header slots away: all of them too.
func TestSalvageHeader(t *testing.T) {
	m := salvageImages(t)[0]
	for slots := 1; slots < 8; slots++ {
		data := slices.Clone(m.img.data)
		for i := range slotPages {
			if slots>>i&1 != 0 {
				clear(data[i*pageSize:][:slotSize])
			}
		}
		disk, report, err := salvageImage(t, fmt.Sprint(slots), data, nil)
		require.NoError(t, err)
		_, missing := m.compare(t, fmt.Sprint(slots), disk, report, nil)
		require.Zero(t, missing)
		if slots == 7 {
			require.False(t, report.Whole())
			require.Contains(t, report.String(), "no valid header")
		}
	}
}

// TestSalvageCut cuts a file at each sector, and beside.
func TestSalvageCut(t *testing.T) {
	m := salvageImages(t)[0]
	runs, had, refused := 0, 0, 0
	for size := 0; size < len(m.img.data); size += 512 {
		for _, n := range []int{size, size + 1 + size/512%500} {
			if n/pageSize > 40 && size%pageSize != 512*(size/pageSize%8) {
				continue
			}
			what := fmt.Sprintf("cut to %d", n)
			disk, report, err := salvageImage(t, what, m.img.data[:min(n, len(m.img.data))], nil)
			runs++
			if err != nil {
				require.ErrorIs(t, err, ErrCorrupt, what)
				refused++
				require.Less(t, n, 8*pageSize, what)
				continue
			}
			bad := map[pageNo]bool{}
			for p := n / pageSize; p < m.pages; p++ {
				bad[pageNo(p)] = true
			}
			h, _ := m.compare(t, what, disk, report, bad)
			had += h
			require.False(t, report.Whole(), what)
		}
	}
	t.Logf("%d cut files, %d of them without anything in them; %d entries came out", runs, refused, had)
}

// TestSalvageLog damages the log of a crashed file.
func TestSalvageLog(t *testing.T) {
	m := salvageImages(t)[1]
	require.NotEmpty(t, m.img.log)
	old := newSalvageModel(t, m.img)
	t.Run("missing", func(t *testing.T) {
		disk, report, err := salvageImage(t, "missing", m.img.data, nil)
		require.NoError(t, err)
		require.Contains(t, report.String(), "is missing")
		openSalvaged(t, "missing", disk).Close()
	})
	t.Run("cut", func(t *testing.T) {
		last := -1
		for n := 0; n < len(trimZeros(m.img.log)); n += 2 * pageSize {
			log := slices.Clone(m.img.log)
			clear(log[logHeader+n : min(len(log), logHeader+n+pageSize)])
			what := fmt.Sprint("a page at ", n)
			disk, report, err := salvageImage(t, what, m.img.data, log)
			require.NoError(t, err, what)
			a := openSalvaged(t, what, disk)
			entries := 0
			for _, c := range report.Containers {
				entries += int(c.Entries)
			}
			require.GreaterOrEqual(t, entries, last, "%s: a later damage costs no more\n%s", what, report)
			last = entries
			require.NoError(t, a.Close())
		}
		require.Positive(t, last)
	})
	t.Run("other", func(t *testing.T) {
		log := slices.Clone(m.img.log)
		for i := range log {
			log[i] = byte(i * 7)
		}
		disk, report, err := salvageImage(t, "other", m.img.data, log)
		require.NoError(t, err)
		openSalvaged(t, "other", disk).Close()
		_ = report
	})
	require.NotEmpty(t, old.content)
}

// TestSalvageRefuses: what cannot be salvaged is an error, and leaves nothing.
func TestSalvageRefuses(t *testing.T) {
	m := salvageImages(t)[0]
	for name, data := range map[string][]byte{
		"empty": {},
		"short": []byte("EMDfile\n"),
		"text":  []byte(strings.Repeat("This is not a file of this package.\n", 3000)),
		"zeros": make([]byte, 1<<20),
		"garbage": func() []byte {
			r := rand.New(rand.NewPCG(1, 1))
			b := make([]byte, 300<<10)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			return b
		}(),
	} {
		_, report, err := salvageImage(t, name, data, nil)
		require.ErrorIs(t, err, ErrCorrupt, name)
		isError(t, err, hostilePath, ErrCorrupt)
		assert.Empty(t, report.Containers, name)
	}
	t.Run("version", func(t *testing.T) {
		data := slices.Clone(m.img.data)
		for i := range slotPages {
			data[i*pageSize+slotVersionOff] = 9
		}
		fixSums(data, nil)
		_, _, err := salvageImage(t, "version", data, nil)
		require.ErrorIs(t, err, ErrVersion)
	})
	t.Run("exists", func(t *testing.T) {
		disk := newMemFS(m.img.data, nil)
		disk.files[salvagedPath] = &memFile{fs: disk, b: []byte("mine")}
		_, err := salvageWith(t.Context(), salvagedPath, hostilePath, nil, hostileOptions(disk))
		require.ErrorIs(t, err, fs.ErrExist)
		require.Equal(t, "mine", string(disk.files[salvagedPath].b))
	})
	t.Run("missing", func(t *testing.T) {
		_, err := salvageWith(t.Context(), salvagedPath, hostilePath, nil, hostileOptions(newMemFS(nil, nil)))
		require.ErrorIs(t, err, fs.ErrNotExist)
	})
	t.Run("locked", func(t *testing.T) {
		disk := newMemFS(m.img.data, nil)
		a, err := openWith(hostilePath, nil, hostileOptions(disk))
		require.NoError(t, err)
		_, err = salvageWith(t.Context(), salvagedPath, hostilePath, nil, hostileOptions(disk))
		require.ErrorIs(t, err, ErrLocked)
		require.NoError(t, a.Close())
	})
	t.Run("cancelled", func(t *testing.T) {
		large := salvageImages(t)[2]
		disk := newMemFS(large.img.data, nil)
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		_, err := salvageWith(ctx, salvagedPath, hostilePath, func(int64, int64) { calls++; cancel() }, hostileOptions(disk))
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, calls)
		require.Len(t, disk.files, 1, "src alone")
		_, err = salvageWith(ctx, salvagedPath, hostilePath, nil, hostileOptions(disk))
		require.ErrorIs(t, err, context.Canceled)
	})
}

// TestSalvageLabels: after renaming by a migration, and without a catalogue, containers come back under their names; dropped ones do not.
func TestSalvageLabels(t *testing.T) {
	h := &hostile{t: t, what: "building"}
	img := h.image("labels", true, func(a *Arena) {
		l, err := List[uint64](a, "numbers", nil)
		h.must(err)
		h.must(l.Append(1, 2, 3))
		h.must(MigrateList(t.Context(), a, "numbers", nil, nil, func(v uint64) (string, error) { return fmt.Sprint(v), nil }, nil))
		d, err := Dict[string, int32](a, "dropped", nil)
		h.must(err)
		h.must(d.Set("a", 1))
		h.must(a.Sync())
		h.must(a.Drop("dropped"))
		_, err = List[byte](a, strings.Repeat("long name ", 300), nil)
		h.must(err)
	})
	a, err := openWith(hostilePath, &Options{ReadOnly: true}, hostileOptions(newMemFS(img.data, nil)))
	require.NoError(t, err)
	data := slices.Clone(img.data)
	clear(data[int(a.header.catalog)*pageSize:][:pageSize])
	require.NoError(t, a.Close())
	disk, report, err := salvageImage(t, "labels", data, nil)
	require.NoError(t, err)
	require.Len(t, report.Containers, 1, report.String())
	require.Contains(t, report.String(), "a list without a name")
	b := openSalvaged(t, "labels", disk)
	l, err := List[string](b, "numbers", &ListOptions[string]{MustExist: true})
	require.NoError(t, err)
	require.Equal(t, []string{"1", "2", "3"}, slices.Collect(l.Values()))
	require.NoError(t, b.Close())
}

// TestSalvageFile salvages a real file that may only be read, in a folder of its own.
func TestSalvageFile(t *testing.T) {
	dir := tempDir(t)
	src, dst := filepath.Join(dir, "src.emd"), filepath.Join(dir, "dst.emd")
	d, err := OpenDict[uint64, string](src, nil)
	require.NoError(t, err)
	want := map[uint64]string{}
	for i := range uint64(20_000) {
		want[i] = longText(int(i))
		require.NoError(t, d.Set(i, want[i]))
	}
	require.NoError(t, d.Close())
	b, err := os.ReadFile(src)
	require.NoError(t, err)
	clear(b[:slotSize])
	b[pageSize], b[2*pageSize] = 0, 0
	b = b[:len(b)-100]
	require.NoError(t, os.WriteFile(src, b, 0o600))
	require.NoError(t, os.Chmod(src, 0o400))
	_, err = OpenDict[uint64, string](src, nil)
	require.Error(t, err)

	report, err := Salvage(t.Context(), dst, src, nil)
	require.NoError(t, err)
	require.False(t, report.Whole())
	after, err := os.ReadFile(src)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(b), sha256.Sum256(after))
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 2)

	d, err = OpenDict[uint64, string](dst, nil)
	require.NoError(t, err)
	require.NoError(t, d.Arena().verify())
	n := 0
	for k, v := range d.All() {
		require.Equal(t, want[k], v)
		n++
	}
	require.Greater(t, n, 19_000, report.String())
	require.NoError(t, d.Close())
	_, err = Salvage(t.Context(), dst, src, nil)
	require.ErrorIs(t, err, fs.ErrExist)
	require.True(t, errors.Is(err, fs.ErrExist))
}
