package emd

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unsafe"
)

// A simDisk is a file system in memory that knows what a power cut may leave. It can also fail any operation.
//
// # What a power cut leaves
//
// All that was synced; of everything since, independently:
//
//   - each sector of 512 bytes holds what was synced, or what it held after any one of the writes, truncations and
//     punches since (a page cache writes whole sectors, and whenever it likes), or noise: always if it lies past the
//     synced end of its file, where nothing was ever synced, and everywhere on a disk with garbage set;
//     (a hole that is punched takes or leaves pages of 4 KiB)
//   - each file has its synced length, or any that it has had since; what was never written reads as zeros or noise;
//   - each name leads to the synced file, or to any that it has led to since, or nowhere.
//
// This is more than real disks do (a journal keeps the order of names and lengths), so what survives here survives there.
//
// # Which of it is looked at
//
// The possibilities of one moment multiply: a commit of 64 KiB into new space leaves 2^128. See [simDisk.images] for how they are
// chosen when there are too many.
type simDisk struct {
	mu     sync.Mutex
	names  map[string]*simInode   // as programs see them
	folder map[string][]*simInode // of each name: the synced file, then those since; nil is none
	inodes int                    // made so far
	ops    int                    // changes of the disk so far

	garbage bool // a write that the power cut meets may leave noise where something was synced before
	plain   bool // nobody will cut the power: what a cut may leave need not be known

	// before is called ahead of each change of the disk and may fail it: with a *simShort, a write does its part first.
	before func(n int, op string) error
	// access is called ahead of everything else that can fail: opens, locks, mappings.
	access func(op string) error
	// loss says what a failed sync does.
	loss simLoss
}

// A simLoss is what becomes of the unsynced writes of a file whose sync fails. Later syncs do not write them, as on Linux.
type simLoss struct {
	reached bool // they are on the disk all the same; otherwise they never were
	mixed   bool // some are and some are not, every other sector
	forgets bool // the page cache forgets them, and shows what the disk has; otherwise it shows them as if they were there
}

var simLosses = []simLoss{{}, {reached: true}, {mixed: true}, {forgets: true}, {mixed: true, forgets: true}}

// A simShort is a write that ends early.
type simShort struct {
	error
	part float64 // of its bytes were written
}

func (e *simShort) Unwrap() error { return e.error }

// A simInode is a file.
type simInode struct {
	id      int
	cache   simContent             // as programs see it
	disk    simContent             // what was synced
	sizes   []int64                // since then
	sectors map[int64][]simVersion // what the sectors written since then held, in order
	calls   int                    // writes and the like since then
	punches map[int]bool           // which of them were punches: these zero pages whole, as file systems give back blocks
	lost    bool                   // a sync has failed: the cache may show what the disk will never hold
	locks   int                    // -1 exclusive
}

// A simVersion is what a sector held after a call.
type simVersion struct {
	call int
	data *simSector // nil: zeros
}

const simSectorSize = 512

type simSector [simSectorSize]byte

// simNoise is what is read where a write was torn.
var simNoise = func() *simSector {
	s := new(simSector)
	r := rand.New(rand.NewPCG(512, 512))
	for i := range s {
		s[i] = byte(r.Uint32())
	}
	return s
}()

func newSimDisk() *simDisk {
	return &simDisk{names: map[string]*simInode{}, folder: map[string][]*simInode{}}
}

// put makes a file of these bytes, synced.
func (d *simDisk) put(name string, b []byte) {
	d.inodes++
	i := &simInode{id: d.inodes, cache: simContent{owner: new(simOwner)}}
	i.cache.write(b, 0)
	i.disk = i.cache.share()
	d.names[name], d.folder[name] = i, []*simInode{i}
}

// bytes returns what a file holds, as programs see it.
func (d *simDisk) bytes(name string) []byte {
	c := &d.names[name].cache
	b := make([]byte, c.size)
	c.read(b, 0)
	return b
}

// ## Content

// A simContent is the bytes of a file: pages, which contents share until one of them writes.
type simContent struct {
	size  int64
	pages []*simPage // nil, or past the end: zeros
	owner *simOwner  // whose pages may be written in place
}

type simOwner struct{ _ byte }

type simPage struct {
	owner *simOwner
	sum   uint64 // of data, or 0: not known
	data  [pageSize]byte
}

// share returns a content that begins as c.
func (c *simContent) share() simContent {
	c.owner = new(simOwner)
	return simContent{c.size, slices.Clone(c.pages), new(simOwner)}
}

// writable returns page i to be written.
func (c *simContent) writable(i int) *simPage {
	for len(c.pages) <= i {
		c.pages = append(c.pages, nil)
	}
	p := c.pages[i]
	switch {
	case p == nil:
		p = &simPage{owner: c.owner}
	case p.owner != c.owner:
		p = &simPage{owner: c.owner, data: p.data}
	}
	p.sum = 0
	c.pages[i] = p
	return p
}

func (c *simContent) write(b []byte, off int64) {
	c.size = max(c.size, off+int64(len(b)))
	for len(b) > 0 {
		i, at := int(off/pageSize), int(off%pageSize)
		n := min(len(b), pageSize-at)
		if i < len(c.pages) && c.pages[i] != nil || !onlyZeros(b[:n]) {
			copy(c.writable(i).data[at:], b[:n])
		}
		b, off = b[n:], off+int64(n)
	}
}

func (c *simContent) read(b []byte, off int64) (n int) {
	b = b[:max(0, min(int64(len(b)), c.size-off))]
	for n < len(b) {
		i, at := int(off/pageSize), int(off%pageSize)
		step := min(len(b)-n, pageSize-at)
		if i < len(c.pages) && c.pages[i] != nil {
			copy(b[n:n+step], c.pages[i].data[at:])
		} else {
			clear(b[n : n+step])
		}
		n, off = n+step, off+int64(step)
	}
	return n
}

func (c *simContent) resize(n int64) {
	if n < c.size {
		c.pages = c.pages[:min(len(c.pages), int((n+pageSize-1)/pageSize))]
		if i, at := int(n/pageSize), n%pageSize; i < len(c.pages) && c.pages[i] != nil {
			clear(c.writable(i).data[at:])
		}
	}
	c.size = n
}

// sector returns sector s; nil are zeros.
func (c *simContent) sector(s int64) *simSector {
	const perPage = pageSize / simSectorSize
	i := int(s / perPage)
	if i >= len(c.pages) || c.pages[i] == nil {
		return nil
	}
	b := (*simSector)(c.pages[i].data[s%perPage*simSectorSize:])
	if onlyZeros(b[:]) {
		return nil
	}
	return b
}

// setSector replaces what of sector s lies before the end.
func (c *simContent) setSector(s int64, data *simSector) {
	if data == nil {
		data = new(simSector)
	}
	if off := s * simSectorSize; off < c.size {
		c.write(data[:min(simSectorSize, c.size-off)], off)
	}
}

var simSeed = maphash.MakeSeed()

// sum is equal for equal contents.
func (c *simContent) sum() uint64 {
	sum := uint64(c.size) * 0x9E3779B97F4A7C15
	for i, p := range c.pages {
		if p == nil || onlyZeros(p.data[:]) {
			continue
		}
		if p.sum == 0 {
			p.sum = maphash.Bytes(simSeed, p.data[:]) | 1
		}
		h := (p.sum + uint64(i)) * 0x9E3779B97F4A7C15
		sum += h ^ h>>29
	}
	return sum
}

func onlyZeros(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if *(*[8]byte)(b) != [8]byte{} {
			return false
		}
	}
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// ## Changes

// note remembers what the sectors of [off, end) hold after a call.
func (i *simInode) note(off, end int64) {
	if i.sectors == nil {
		i.sectors = map[int64][]simVersion{}
	}
	for s := off / simSectorSize; s*simSectorSize < end; s++ {
		var data *simSector
		if b := i.cache.sector(s); b != nil {
			data = new(simSector)
			*data = *b
		}
		i.sectors[s] = append(i.sectors[s], simVersion{i.calls, data})
	}
}

func (d *simDisk) write(i *simInode, b []byte, off int64) {
	size := i.cache.size
	i.cache.write(b, off)
	if d.plain {
		return
	}
	i.calls++
	i.note(off, off+int64(len(b)))
	if i.cache.size != size {
		i.sizes = append(i.sizes, i.cache.size)
	}
}

func (d *simDisk) resize(i *simInode, size int64) {
	before := i.cache.size
	i.cache.resize(size)
	if d.plain || size == before {
		return
	}
	i.calls++
	i.sizes = append(i.sizes, size)
	if size < before {
		i.note(size, before)
	}
}

// settle is a sync: what changed since the last one is on the disk now.
func (i *simInode) settle() {
	if i.lost {
		if len(i.sizes) > 0 {
			i.disk.resize(i.cache.size)
		}
		for s := range i.sectors {
			if end := min((s+1)*simSectorSize, i.cache.size); end > i.disk.size { // what is synced can be read
				i.disk.resize(end)
			}
			i.disk.setSector(s, i.cache.sector(s))
		}
	} else {
		i.disk = i.cache.share()
	}
	i.sizes, i.sectors, i.calls, i.punches = nil, nil, 0, nil
}

// failSync fails a sync: of the files that have the ending which the operation names.
func (d *simDisk) failSync(op string, loss simLoss) {
	for name, i := range d.names {
		if op == "sync "+filepath.Ext(name) {
			i.lose(loss)
		}
	}
}

// hasLost says whether a sync of a file has failed.
func (d *simDisk) hasLost() bool {
	for _, i := range d.names {
		if i.lost {
			return true
		}
	}
	return false
}

// lose is a sync that fails.
func (i *simInode) lose(loss simLoss) {
	cache := i.cache
	switch {
	case loss.mixed:
		mixed := i.disk.share()
		mixed.resize(cache.size)
		for s := range i.sectors {
			if s%2 == 0 {
				mixed.setSector(s, cache.sector(s))
			}
		}
		i.disk = mixed
	case loss.reached:
		i.disk = cache.share()
	}
	i.sizes, i.sectors, i.calls, i.lost = nil, nil, 0, true
	if loss.forgets {
		i.cache = i.disk.share()
	}
}

func (d *simDisk) setName(name string, i *simInode) {
	if d.folder[name] == nil {
		d.folder[name] = []*simInode{nil}
	}
	if d.plain {
		d.folder[name] = d.folder[name][:0]
	}
	d.folder[name] = append(d.folder[name], i)
	if d.names[name] = i; i == nil {
		delete(d.names, name)
	}
}

func (d *simDisk) settleNames() {
	for name, versions := range d.folder {
		if last := versions[len(versions)-1]; last == nil {
			delete(d.folder, name)
		} else {
			d.folder[name] = []*simInode{last}
		}
	}
}

// ## Crashes

// kill returns the disk as another program finds it after this one was killed: nothing is lost yet, but nothing more is
// durable either.
func (d *simDisk) kill() *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newSimDisk()
	c.inodes, c.garbage = d.inodes, d.garbage
	inodes := map[*simInode]*simInode{nil: nil}
	copied := func(i *simInode) *simInode {
		if _, ok := inodes[i]; !ok {
			n := &simInode{id: i.id, cache: i.cache.share(), disk: i.disk.share(), sizes: slices.Clone(i.sizes), sectors: maps.Clone(i.sectors), calls: i.calls, punches: maps.Clone(i.punches), lost: i.lost}
			for s, v := range n.sectors {
				n.sectors[s] = slices.Clip(v)
			}
			inodes[i] = n
		}
		return inodes[i]
	}
	for name, i := range d.names {
		c.names[name] = copied(i)
	}
	for name, versions := range d.folder {
		for _, i := range versions {
			c.folder[name] = append(c.folder[name], copied(i))
		}
	}
	return c
}

// A simChoice is something of which a power cut leaves one of several possibilities. Option 0 is what was synced.
type simChoice struct {
	inode  *simInode
	name   string       // which file the name leads to, or
	files  []*simInode  //   (these)
	sizes  []int64      // how long the file is, or
	hole   [2]int64     // whether these bytes, never written, are zeros or noise, or
	sector int64        // what the sector holds
	data   []*simSector //   (these)
	calls  []int        //   (each since this call)
	write  [2]int       // the file and the call that wrote the sector last
}

// A simPageOf is a page of a file.
type simPageOf struct {
	inode *simInode
	page  int64
}

func (c *simChoice) page() simPageOf { return simPageOf{c.inode, c.sector * simSectorSize / pageSize} }

func (c *simChoice) options() int {
	switch {
	case c.files != nil:
		return len(c.files)
	case c.sizes != nil:
		return len(c.sizes)
	case c.hole[1] != 0:
		return 2
	}
	return len(c.data)
}

// choices returns all that a power cut may leave this way or that, in a fixed order.
func (d *simDisk) choices() (all []simChoice) {
	inodes := map[*simInode]bool{}
	var files []*simInode
	for _, name := range slices.Sorted(maps.Keys(d.folder)) {
		distinct := unique(d.folder[name])
		for _, i := range distinct {
			if i != nil && !inodes[i] {
				inodes[i] = true
				files = append(files, i)
			}
		}
		if len(distinct) > 1 {
			all = append(all, simChoice{name: name, files: distinct})
		}
	}
	slices.SortStableFunc(all, func(x, y simChoice) int { return cmp.Compare(oldest(x.files), oldest(y.files)) }) // names may be random
	slices.SortFunc(files, func(x, y *simInode) int { return x.id - y.id })
	for _, i := range files {
		all = append(all, i.choices(d.garbage)...)
	}
	return all
}

func oldest(files []*simInode) int {
	id := 0
	for _, i := range files {
		if i != nil && (id == 0 || i.id < id) {
			id = i.id
		}
	}
	return id
}

func (i *simInode) choices(garbage bool) (all []simChoice) {
	if sizes := unique(append([]int64{i.disk.size}, i.sizes...)); len(sizes) > 1 {
		all = append(all, simChoice{inode: i, sizes: sizes})
		if longest := slices.Max(sizes); longest > i.disk.size {
			all = append(all, simChoice{inode: i, hole: [2]int64{i.disk.size, longest}})
		}
	}
	for _, s := range slices.Sorted(maps.Keys(i.sectors)) {
		c := simChoice{inode: i, sector: s, data: []*simSector{i.disk.sector(s)}, calls: []int{0}}
		for _, v := range i.sectors[s] {
			if !slices.ContainsFunc(c.data, func(have *simSector) bool { return sameSector(have, v.data) }) {
				c.data, c.calls = append(c.data, v.data), append(c.calls, v.call)
			}
			c.write = [2]int{i.id, v.call}
		}
		written := slices.ContainsFunc(i.sectors[s], func(v simVersion) bool { return !i.punches[v.call] })
		if garbage && written || s*simSectorSize >= i.disk.size {
			c.data, c.calls = append(c.data, simNoise), append(c.calls, -1)
		}
		if len(c.data) > 1 {
			all = append(all, c)
		}
	}
	return all
}

func sameSector(a, b *simSector) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func unique[T comparable](list []T) (distinct []T) {
	for _, v := range list {
		if !slices.Contains(distinct, v) {
			distinct = append(distinct, v)
		}
	}
	return distinct
}

// image returns the disk that a power cut leaves; picks has an option for each choice.
func (d *simDisk) image(choices []simChoice, picks []int) *simDisk {
	img := newSimDisk()
	img.inodes, img.garbage = d.inodes, d.garbage
	inodes := map[*simInode]*simInode{}
	lead := func(name string, i *simInode) {
		if i == nil {
			return
		}
		n := inodes[i]
		if n == nil {
			n = &simInode{id: i.id, cache: i.disk.share()}
			inodes[i] = n
		}
		img.names[name] = n
	}
	for name, versions := range d.folder {
		if len(versions) == 1 {
			lead(name, versions[0])
		}
	}
	for k, c := range choices {
		if c.files != nil {
			lead(c.name, c.files[picks[k]])
		}
	}
	for name, versions := range d.folder { // a name that came back to where it was is no choice
		if img.names[name] == nil && len(versions) > 1 && len(unique(versions)) == 1 {
			lead(name, versions[0])
		}
	}
	punched := map[simPageOf]int{}
	for k, c := range choices {
		if c.data != nil && c.inode.punches[c.calls[picks[k]]] {
			punched[c.page()] = c.calls[picks[k]]
		}
	}
	for k, c := range choices {
		i := inodes[c.inode]
		switch {
		case i == nil:
		case c.sizes != nil:
			i.cache.resize(c.sizes[picks[k]])
		case c.hole[1] != 0:
			if picks[k] == 1 {
				for s := (c.hole[0] + simSectorSize - 1) / simSectorSize; s*simSectorSize < min(c.hole[1], i.cache.size); s++ {
					i.cache.setSector(s, simNoise)
				}
				for s := range c.inode.sectors { // these have choices of their own
					if s*simSectorSize >= c.hole[0] {
						i.cache.setSector(s, nil)
					}
				}
			}
		case c.calls[picks[k]] >= 0 && c.calls[picks[k]] < punched[c.page()]:
			i.cache.setSector(c.sector, nil)
		case picks[k] != 0:
			i.cache.setSector(c.sector, c.data[picks[k]])
		}
	}
	for name, i := range img.names {
		img.folder[name] = []*simInode{i}
	}
	for _, i := range inodes {
		i.disk = i.cache.share()
	}
	return img
}

// images calls visit with what a power cut at this moment may leave. Up to limit possibilities, that is all of them, and it
// returns true. Beyond, it visits some, so many of each kind as sample says:
//
//  1. Every subset of whole write calls: each call reached the disk or did not, its sectors together; all combinations of
//     these with all lengths and names, as long as they are no more than sample; else sample of them at random.
//  2. The sectors of the latest call, which is the one that the crash points before have not seen, with all before it lost and
//     with all before it kept: torn after each of its sectors, and each of them alone lost, alone kept, alone noise.
//  3. Sectors, lengths and names at random, each for itself, mostly lost, mostly kept or anything.
//
// The protocol's own cells, header slots, record headers and small records, are writes of one to a few sectors: where
// they are pending alone or with each other they are always exhausted.
func (d *simDisk) images(limit, sample int, r *rand.Rand, visit func(*simDisk)) (complete bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	choices := d.choices()
	picks := make([]int, len(choices))
	show := func() {
		img := d.image(choices, picks)
		d.mu.Unlock()
		defer d.mu.Lock()
		visit(img)
	}
	total := 1
	for i := range choices {
		total = min(total*choices[i].options(), limit+1)
	}
	if total <= limit {
		everyPick(picks, func(k int) int { return choices[k].options() }, show)
		return true
	}

	units := unitsOf(choices)
	coarse := make([]int, len(units))
	apply := func() {
		for u, unit := range units {
			unit.pick(choices, picks, coarse[u])
		}
	}
	total = 1
	for _, u := range units {
		total = min(total*u.options, sample+1)
	}
	if total <= sample {
		everyPick(coarse, func(k int) int { return units[k].options }, func() { apply(); show() })
	} else {
		for range sample {
			for u, unit := range units {
				coarse[u] = r.IntN(unit.options)
			}
			apply()
			show()
		}
	}

	last := units[len(units)-1]
	torn := last.members
	for _, kept := range []bool{false, true} {
		for u, unit := range units {
			if coarse[u] = 0; kept {
				coarse[u] = unit.newest
			}
		}
		tear := func(old, new func(k int) bool) {
			apply()
			for k, c := range torn {
				if newest := choices[c].newest(); new(k) {
					picks[c] = newest
				} else if old(k) {
					picks[c] = 0
				} else {
					picks[c] = choices[c].options() - 1
				}
			}
			show()
		}
		// Of a very long write not each place, but places all over it.
		step := max(1, len(torn)*8/sample)
		for cut := r.IntN(step); cut < len(torn); cut += step {
			before, here := func(k int) bool { return k < cut }, func(k int) bool { return k == cut }
			not := func(is func(int) bool) func(int) bool { return func(k int) bool { return !is(k) } }
			tear(not(before), before)
			tear(here, not(here))
			tear(not(here), here)
			tear(func(int) bool { return false }, not(here))
		}
	}

	for range sample {
		keep := []int{2, 10, 50, 90, 98}[r.IntN(5)] // per cent
		for c := range choices {
			switch picks[c] = 0; {
			case r.IntN(20) == 0:
				picks[c] = r.IntN(choices[c].options())
			case r.IntN(100) < keep:
				picks[c] = choices[c].newest()
			}
		}
		show()
	}
	return false
}

// newest returns the option of what was there last: not the noise.
func (c *simChoice) newest() int {
	n := c.options() - 1
	if c.hole[1] != 0 || c.data != nil && n > 0 && c.calls[n] < 0 {
		n--
	}
	return n
}

// everyPick counts picks through all combinations.
func everyPick(picks []int, options func(k int) int, visit func()) {
	clear(picks)
	for {
		visit()
		k := 0
		for ; k < len(picks); k++ {
			if picks[k]++; picks[k] < options(k) {
				break
			}
			picks[k] = 0
		}
		if k == len(picks) {
			return
		}
	}
}

// A simUnit are choices that are made together: a name, a length, or all sectors that the same call wrote last.
type simUnit struct {
	members         []int
	options, newest int
}

// unitsOf gathers choices into units; the one of the latest call is the last.
func unitsOf(choices []simChoice) (units []simUnit) {
	byCall := map[[2]int]int{}
	for k := range choices {
		c := &choices[k]
		if c.data == nil {
			units = append(units, simUnit{members: []int{k}, options: c.options(), newest: c.newest()})
			continue
		}
		u, ok := byCall[c.write]
		if !ok {
			u = len(units)
			byCall[c.write] = u
			units = append(units, simUnit{})
		}
		units[u].members = append(units[u].members, k)
		units[u].options = max(units[u].options, c.options())
		units[u].newest = max(units[u].newest, c.newest())
	}
	call := func(u simUnit) [2]int { return choices[u.members[0]].write }
	slices.SortStableFunc(units, func(x, y simUnit) int { return cmp.Or(call(x)[1]-call(y)[1], call(x)[0]-call(y)[0]) })
	return units
}

// pick makes the choices of a unit: option o, or as far as a member has options.
func (u *simUnit) pick(choices []simChoice, picks []int, o int) {
	for _, k := range u.members {
		picks[k] = min(o, choices[k].options()-1)
		if o == u.newest {
			picks[k] = choices[k].newest()
		}
	}
}

// cut returns one disk that a power cut may leave; r chooses.
func (d *simDisk) cut(r *rand.Rand) *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	choices := d.choices()
	picks := make([]int, len(choices))
	keep := []int{0, 100, 50, 10, 90}[r.IntN(5)] // per cent of what was not synced
	for k := range choices {
		if r.IntN(100) < keep {
			picks[k] = 1 + r.IntN(choices[k].options()-1)
		}
	}
	return d.image(choices, picks)
}

// sum is equal for disks that hold the same files, as programs see them.
func (d *simDisk) sum() (sum uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, i := range d.names {
		if strings.Contains(name, ".new-") {
			continue // left from a creation; nobody looks at it
		}
		sum += (maphash.String(simSeed, name) ^ i.cache.sum()) * 0x9E3779B97F4A7C15
	}
	return sum
}

// list names the files, for messages.
func (d *simDisk) list() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		fmt.Fprintf(&b, "%s:%d ", name, d.names[name].cache.size)
	}
	return b.String()
}

// ## The file system

// do counts a change of the disk and asks whether it fails.
func (d *simDisk) do(op string) error {
	d.ops++
	if d.before == nil {
		return nil
	}
	n := d.ops
	d.mu.Unlock()
	defer d.mu.Lock()
	return d.before(n, op)
}

// ask asks whether an operation fails that changes nothing.
func (d *simDisk) ask(op, path string) error {
	if d.access == nil {
		return nil
	}
	d.mu.Unlock()
	defer d.mu.Lock()
	return d.access(op + " " + filepath.Ext(path))
}

func (d *simDisk) Open(path string, flag int, _ fs.FileMode) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.names[path]
	switch {
	case i == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	case i != nil && flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrExist}
	case i == nil:
		if err := d.do("create " + filepath.Ext(path)); err != nil {
			return nil, err
		}
		d.inodes++
		i = &simInode{id: d.inodes, cache: simContent{owner: new(simOwner)}, disk: simContent{owner: new(simOwner)}}
		d.setName(path, i)
	default:
		if err := d.ask("open", path); err != nil {
			return nil, err
		}
	}
	return &simFile{d: d, i: i, path: path, readOnly: flag&os.O_RDWR == 0}, nil
}

func (d *simDisk) Lock(f file, exclusive, _ bool) (bool, error) {
	sf := f.(*simFile)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.ask("lock", sf.path); err != nil {
		return false, err
	}
	switch {
	case sf.i.locks < 0 || exclusive && sf.i.locks > 0:
		return false, nil
	case exclusive:
		sf.i.locks = -1
	default:
		sf.i.locks++
	}
	sf.locked = true
	return true, nil
}

func (d *simDisk) Link(old, new string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[new] != nil {
		return fs.ErrExist
	}
	if err := d.do("link"); err != nil {
		return err
	}
	d.setName(new, d.names[old])
	return nil
}

func (d *simDisk) Remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[path] == nil {
		return fs.ErrNotExist
	}
	if err := d.do("remove"); err != nil {
		return err
	}
	d.setName(path, nil)
	return nil
}

func (d *simDisk) SyncDir(string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.do("syncdir"); err != nil {
		// Names go through a journal: a file system that cannot write it stops, so there is no later sync that succeeds
		// without them.
		return err
	}
	d.settleNames()
	return nil
}

func (d *simDisk) SameFile(f file, path string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.names[path] == f.(*simFile).i, nil
}

func (d *simDisk) Resolve(path string) (string, error) { return path, nil }
func (d *simDisk) Network(file) (string, bool)         { return "", false }
func (d *simDisk) CopyOnWrite(file) (string, bool)     { return "", false }
func (d *simDisk) Map(f file, _ bool) mapping          { return &simMapping{newHeapMapping(f), d} }
func (d *simDisk) MapShared(f file) mapping            { return newSharedHeapMapping(f) }

type simFile struct {
	d        *simDisk
	i        *simInode
	path     string
	readOnly bool
	locked   bool
}

var errSimReadOnly = errors.New("opened for reading")

func (f *simFile) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	n := f.i.cache.read(b, off)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *simFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.readOnly {
		return 0, errSimReadOnly
	}
	if err := f.d.do("write " + filepath.Ext(f.path)); err != nil {
		n := 0
		if short, ok := err.(*simShort); ok {
			n = int(float64(len(b)) * short.part)
			f.d.write(f.i, b[:n], off)
		}
		return n, err
	}
	f.d.write(f.i, b, off)
	return len(b), nil
}

func (f *simFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.readOnly {
		return errSimReadOnly
	}
	if err := f.d.do("truncate " + filepath.Ext(f.path)); err != nil {
		return err
	}
	f.d.resize(f.i, size)
	return nil
}

func (f *simFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.do("sync " + filepath.Ext(f.path)); err != nil {
		f.i.lose(f.d.loss)
		return err
	}
	if !f.d.plain {
		f.i.settle()
	}
	return nil
}

func (f *simFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.i.cache.size, nil
}

func (f *simFile) Allocate(off, n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.d.ask("allocate", f.path)
	if _, short := err.(*simShort); short { // part of the way, and the file has grown
		f.d.resize(f.i, max(f.i.cache.size, off+n/2))
	}
	return err
}

// WriteOut changes nothing: a power cut may keep any write, told to or not.
func (f *simFile) WriteOut(int64, int64) {}

func (f *simFile) Punch(off, n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.do("punch"); err != nil {
		return err
	}
	if n = min(n, f.i.cache.size-off); n > 0 {
		f.d.write(f.i, make([]byte, n), off)
		if off%pageSize == 0 && !f.d.plain {
			if f.i.punches == nil {
				f.i.punches = map[int]bool{}
			}
			f.i.punches[f.i.calls] = true
		}
	}
	return nil
}

func (f *simFile) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.locked {
		f.locked = false
		if f.i.locks < 0 {
			f.i.locks = 0
		} else {
			f.i.locks--
		}
	}
	return nil
}

// A simMapping is a heapMapping that can fail. As real ones do, it fails before it has changed anything.
type simMapping struct {
	*heapMapping
	d *simDisk
}

func (m *simMapping) ask(op string) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	return m.d.ask(op, "")
}

func (m *simMapping) chunk(off, size, filed int64) (p unsafe.Pointer, guarded bool, err error) {
	if err := m.ask("chunk"); err != nil {
		return nil, false, asFull(err) // as the contract says
	}
	return m.memory(off, size, filed)
}

// simChunks are chunks of memory that were given back.
var simChunks sync.Pool

func (m *simMapping) memory(off, size, filed int64) (p unsafe.Pointer, guarded bool, err error) {
	b, _ := simChunks.Get().([]byte)
	if int64(len(b)) != size {
		return m.heapMapping.chunk(off, size, filed)
	}
	clear(b[filed:])
	m.chunks = append(m.chunks, b)
	return unsafe.Pointer(unsafe.SliceData(b)), false, readWhole(m.f, b[:filed], off)
}

// close lets the memory be used again where nobody can be reading it late.
func (m *simMapping) close() error {
	if m.d.plain && !raceEnabled {
		for _, b := range m.chunks {
			simChunks.Put(b)
		}
		m.chunks = nil
	}
	return m.heapMapping.close()
}

func (m *simMapping) adopt(p unsafe.Pointer, n, off int64) (guarded bool, err error) {
	if err := m.ask("adopt"); err != nil {
		return false, err
	}
	return m.heapMapping.adopt(p, n, off)
}

func (m *simMapping) show(p unsafe.Pointer, b []byte, off int64) (guarded bool, err error) {
	if err := m.ask("show"); err != nil {
		return false, err
	}
	return m.heapMapping.show(p, b, off)
}

func (m *simMapping) drop(p unsafe.Pointer, n, off int64) (guarded bool, err error) {
	if err := m.ask("drop"); err != nil {
		return false, err
	}
	return m.heapMapping.drop(p, n, off)
}

func (m *simMapping) zero(p unsafe.Pointer, n int64) (guarded bool, err error) {
	if err := m.ask("zero"); err != nil {
		return false, err
	}
	return m.heapMapping.zero(p, n)
}

func (m *simMapping) refresh(p unsafe.Pointer, n, off int64) error {
	if err := m.ask("refresh"); err != nil {
		return err
	}
	return m.heapMapping.refresh(p, n, off)
}
