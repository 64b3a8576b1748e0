package emd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
)

// The catalogue is a dict of the arena's own, from the names of containers to
// entries. A second one holds what SetMeta keeps.
//
//	0      1      4        8
//	+------+------+--------+------------+-----+--------------+-------+
//	| kind | zero | header | key length | key | value length | value |
//	+------+------+--------+------------+-----+--------------+-------+
//
// kind is 'l' or 'd', header the container's header page; the signatures of
// key and value are texts, their lengths uvarints.
//
// The header page of a container repeats its name and signatures, with their
// lengths, as a label at labelOff, unless they are too long: Salvage goes by it
// where the catalogue is damaged. Nothing else reads it.
//
// hiddenPrefix and a number are the name of a container which a migration
// builds, or has left unfinished. Programs neither see nor open it.
const (
	entryKindOff   = 0
	entryHeaderOff = 4
	entrySigsOff   = entryHeaderOff + 4

	labelOff = 256 // in the header pages of both kinds
	labelEnd = 2048

	kindList = "list"
	kindDict = "dict"

	hiddenPrefix = "\x00migrating\x00"
)

const (
	_ = uint(labelOff - dictRecordsOff - recordsSize)
	_ = uint(labelOff - listRecordsOff - recordsSize)
	_ = uint(dictDirOff - labelEnd)
	_ = uint(listInlineOff - labelEnd)
)

// A container is what an arena holds under a name. Its methods are called
// with the locks that they name; the lock order is catMu, then the gate, then
// the writer locks of containers.
type container interface {
	base() *handle
	lock() // all writer locks
	unlock()
	turnAway() // readers fail their validation until readmit; twice is once
	readmit()
	claim(by *claim) // keep all writers away until disclaim, once callbacks at work have ended
	disclaim(by *claim)
	flush()                  // gate closed: write cached counters to the header page
	create() (pageNo, error) // locked, the gate open: build an empty structure
	load(h pageNo) error     // locked: forget caches, read header page h; 0: not in the file
	free() error             // locked, the gate open: give all space back
	length() int64
	size() int64 // bytes of the file that it takes
}

// A handle is what every container has.
type handle struct {
	a          *Arena
	name, kind string
	key, value string // signatures
	hdr        pageNo // 0: not in the file; guarded by the writer lock
	absent     atomic.Bool
	active     atomic.Bool // the gate closes its writer locks; see gate
	state      atomic.Uint32
	epoch      atomic.Uint64 // advanced by Rollback, Drop and Close
	err        atomic.Pointer[error]
}

// States of a handle.
const (
	stateOpen = iota
	stateDropped
	stateClosed
)

// catalogEntry is the decoded entry of a container.
type catalogEntry struct {
	kind       string
	hdr        pageNo
	key, value string
}

func (e *catalogEntry) encode() []byte {
	b := make([]byte, entrySigsOff)
	b[entryKindOff] = e.kind[0]
	binary.LittleEndian.PutUint32(b[entryHeaderOff:], e.hdr)
	for _, sig := range []string{e.key, e.value} {
		b = binary.AppendUvarint(b, uint64(len(sig)))
		b = append(b, sig...)
	}
	return b
}

func decodeEntry(b []byte) (e catalogEntry, err error) {
	bad := corrupt("impossible entry of the catalogue: %x", b)
	if len(b) < entrySigsOff {
		return e, bad
	}
	switch b[entryKindOff] {
	case kindList[0]:
		e.kind = kindList
	case kindDict[0]:
		e.kind = kindDict
	default:
		return e, bad
	}
	e.hdr = binary.LittleEndian.Uint32(b[entryHeaderOff:])
	rest := b[entrySigsOff:]
	for _, sig := range []*string{&e.key, &e.value} {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return e, bad
		}
		*sig = string(rest[w : w+int(n)])
		rest = rest[w+int(n):]
	}
	return e, nil
}

// writeLabel writes the label of a container into its header page, which the
// caller has touched.
func (h *handle) writeLabel(hdr *page) {
	label := hdr[labelOff:labelEnd]
	clear(label)
	if h.kind != kindList && h.kind != kindDict || len(h.name)+len(h.key)+len(h.value)+3*binary.MaxVarintLen32 > len(label) {
		return
	}
	label = label[:0]
	for _, text := range []string{h.name, h.key, h.value} {
		label = binary.AppendUvarint(label, uint64(len(text)))
		label = append(label, text...)
	}
}

// readLabel returns what writeLabel wrote.
func readLabel(hdr *page) (name, key, value string, ok bool) {
	rest := hdr[labelOff:labelEnd]
	for _, text := range []*string{&name, &key, &value} {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return "", "", "", false
		}
		*text = string(rest[w : w+int(n)])
		rest = rest[w+int(n):]
	}
	return name, key, value, name != ""
}

func (h *handle) entry() catalogEntry {
	return catalogEntry{kind: h.kind, hdr: h.hdr, key: h.key, value: h.value}
}

func (e *catalogEntry) describe() string {
	if e.kind == kindList {
		return fmt.Sprintf("list of %s", e.value)
	}
	return fmt.Sprintf("dict of %s to %s", e.key, e.value)
}

func (e *catalogEntry) sameType(f *catalogEntry) bool {
	return e.kind == f.kind && e.key == f.key && e.value == f.value
}

// openContainer returns the container of c's name: the one behind earlier
// handles if there is one, else c, loaded or created.
func (a *Arena) openContainer(c container, mustExist bool) (container, error) {
	h := c.base()
	if h.name == "" {
		return nil, errors.New("a container needs a name")
	}
	if strings.HasPrefix(h.name, hiddenPrefix) {
		return nil, fmt.Errorf("names that begin with %q are reserved", hiddenPrefix)
	}
	if len(h.name) > maxKeySize {
		return nil, fmt.Errorf("%w: name of %d bytes, at most %d", ErrTooLarge, len(h.name), maxKeySize)
	}
	if a.closed() {
		return nil, ErrClosed
	}
	if a.opened(h.name) == nil && a.writable() == nil && !mustExist {
		if err := a.admit(createCost); err != nil {
			return nil, err
		}
	}
	a.catMu.Lock()
	defer a.catMu.Unlock()
	if a.closed() {
		return nil, ErrClosed
	}
	want := h.entry()
	if known := a.opened(h.name); known != nil {
		have := known.base().entry()
		if !have.sameType(&want) {
			return nil, mismatch(&have, &want)
		}
		if known.base().absent.Load() {
			if mustExist {
				return nil, ErrNoContainer
			}
			return known, a.createContainer(known)
		}
		return known, nil
	}
	b, ok, err := a.catalog.getBytes([]byte(h.name))
	if err != nil {
		return nil, err
	}
	switch {
	case ok:
		have, err := decodeEntry(b)
		if err != nil {
			return nil, err
		}
		if !have.sameType(&want) {
			return nil, mismatch(&have, &want)
		}
		if err := a.loadContainer(c, have.hdr); err != nil {
			return nil, err
		}
	case mustExist || a.opts.ReadOnly:
		return nil, ErrNoContainer
	default:
		if err := a.createContainer(c); err != nil {
			return nil, err
		}
	}
	a.register(c)
	return c, nil
}

// createCost bounds the pages that creating a container changes.
const createCost = 64 * pageSize

// mismatch names both types and, where they have something in common, in lines
// of their own what differs.
func mismatch(have, want *catalogEntry) error {
	return fmt.Errorf("%w: the file has a %s, opened as a %s%s", ErrTypeMismatch, have.describe(), want.describe(), have.differences(want))
}

func (e *catalogEntry) differences(want *catalogEntry) string {
	if e.kind != want.kind {
		return ""
	}
	keyLines, keyWhole := differences(e.key, want.key)
	lines, whole := differences(e.value, want.value)
	if (len(keyLines) == 0 || keyWhole) && (len(lines) == 0 || whole) {
		return "" // the types say it all
	}
	if e.kind == kindDict {
		for i := range keyLines {
			keyLines[i] = "key: " + keyLines[i]
		}
		for i := range lines {
			lines[i] = "value: " + lines[i]
		}
	}
	var b strings.Builder
	for _, line := range append(keyLines, lines...) {
		b.WriteString("\n\t" + line)
	}
	return b.String()
}

// loadContainer has a container read its header page. The caller holds catMu.
func (a *Arena) loadContainer(c container, hdr pageNo) error {
	if hdr < slotPages || a.space.peek(hdr) == nil {
		return corrupt("header page %d outside the file", hdr)
	}
	c.lock()
	defer c.unlock()
	if err := c.load(hdr); err != nil {
		return err
	}
	c.base().hdr = hdr
	return nil
}

// createContainer builds an empty container and enters its name; both or
// neither. The caller holds catMu and has admitted createCost.
func (a *Arena) createContainer(c container) error {
	h := c.base()
	a.gate.enter()
	defer a.gate.exit()
	c.lock()
	defer c.unlock()
	if err := a.writable(); err != nil {
		return err
	}
	hdr, err := c.create()
	if err != nil {
		return err
	}
	h.hdr = hdr
	entry := h.entry()
	if err = a.catalog.putBytes([]byte(h.name), entry.encode()); err == nil {
		if err = c.load(hdr); err == nil {
			h.absent.Store(false)
			return nil
		}
		_, undo := a.catalog.deleteBytes([]byte(h.name))
		err = errors.Join(err, undo)
	}
	err = errors.Join(err, c.free())
	h.hdr = 0
	return err
}

// ensure creates a container again that a Rollback has undone. It is called
// before a change, without locks.
func (a *Arena) ensure(c container) error {
	if !c.base().absent.Load() {
		return nil
	}
	if err := a.admit(createCost); err != nil {
		return err
	}
	a.catMu.Lock()
	defer a.catMu.Unlock()
	if err := a.check(c.base()); err != nil {
		return err
	}
	if !c.base().absent.Load() {
		return nil
	}
	return a.createContainer(c)
}

// registered returns the open containers, sorted by name.
func (a *Arena) registered() []container {
	a.openMu.Lock()
	defer a.openMu.Unlock()
	all := make([]container, 0, len(a.open))
	for _, c := range a.open {
		all = append(all, c)
	}
	slices.SortFunc(all, func(x, y container) int { return strings.Compare(x.base().name, y.base().name) })
	return all
}

func (a *Arena) opened(name string) container {
	a.openMu.Lock()
	defer a.openMu.Unlock()
	return a.open[name]
}

func (a *Arena) register(c container) {
	a.openMu.Lock()
	defer a.openMu.Unlock()
	a.open[c.base().name] = c
}

func (a *Arena) unregister(name string) {
	a.openMu.Lock()
	defer a.openMu.Unlock()
	delete(a.open, name)
}

// reload has all containers forget what they cached, after a rollback, and
// lets readers in again. The caller has the gate closed for all of them, and
// the catalogue in order.
func (a *Arena) reload(all []container) error {
	var failed error
	for _, c := range all {
		err := a.reloadOne(c)
		if errors.Is(err, ErrTypeMismatch) {
			// Made since the last commit, in the place of one that was dropped
			// and is there again: now this one is gone.
			h := c.base()
			h.state.Store(stateDropped)
			h.epoch.Add(1)
			a.unregister(h.name)
			continue
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		c.base().epoch.Add(1)
		c.readmit()
	}
	return failed
}

func (a *Arena) reloadOne(c container) error {
	if c == container(a.meta) {
		return a.meta.load(a.header.meta)
	}
	h := c.base()
	hdr, err := a.findHeader(h)
	if err != nil {
		return err
	}
	h.hdr = hdr
	h.absent.Store(hdr == 0)
	return c.load(hdr)
}

// findHeader looks a container up after a rollback. ErrTypeMismatch: the name
// has another, of another type.
func (a *Arena) findHeader(h *handle) (pageNo, error) {
	b, ok, err := a.catalog.getBytes([]byte(h.name))
	if err != nil || !ok {
		return 0, err
	}
	have, err := decodeEntry(b)
	if err != nil {
		return 0, err
	}
	if want := h.entry(); !have.sameType(&want) {
		return 0, mismatch(&have, &want)
	}
	return have.hdr, nil
}

// Containers yields the containers of the arena, sorted by name, without
// opening them. A fault ends the loop; see [Arena.View].
func (a *Arena) Containers() iter.Seq[Info] {
	return func(yield func(Info) bool) {
		if a.closed() {
			return
		}
		infos, err := a.infos()
		if err != nil {
			a.fault(&a.catalog.handle, "containers", 0, err)
			return
		}
		for _, info := range infos {
			if !yield(info) {
				return
			}
		}
	}
}

func (a *Arena) infos() (infos []Info, err error) {
	a.catMu.Lock()
	defer a.catMu.Unlock()
	var failed error
	err = a.catalog.eachBytes(func(key, val []byte) bool {
		if strings.HasPrefix(string(key), hiddenPrefix) {
			return true
		}
		var info Info
		if info, failed = a.info(string(key), val); failed == nil {
			infos = append(infos, info)
		}
		return failed == nil
	})
	slices.SortFunc(infos, func(x, y Info) int { return strings.Compare(x.Name, y.Name) })
	return infos, errors.Join(err, failed)
}

func (a *Arena) info(name string, entry []byte) (Info, error) {
	e, err := decodeEntry(entry)
	if err != nil {
		return Info{}, err
	}
	c := a.opened(name)
	if c == nil {
		if c, err = a.byEntry(name, &e); err != nil {
			return Info{}, err
		}
	}
	return Info{Name: name, Kind: e.kind, Key: e.key, Value: e.value, Len: c.length(), Bytes: c.size()}, nil
}

// byEntry loads a container that need not be open, knowing its types by
// their signatures only. The caller holds catMu.
func (a *Arena) byEntry(name string, e *catalogEntry) (container, error) {
	h := handle{a: a, name: name, kind: e.kind, key: e.key, value: e.value}
	var c container
	if e.kind == kindList {
		c = newListFromFile(&h)
	} else {
		c = newDictFromFile(&h)
	}
	return c, a.loadContainer(c, e.hdr)
}

// Drop deletes a container and gives back its space. Its handles are
// [ErrClosed] from then on. A name that no container has is [ErrNoContainer];
// inside Update it is [ErrInUpdate].
func (a *Arena) Drop(name string) error {
	if a.inUpdate() {
		return a.opError("drop", nil, 0, ErrInUpdate)
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	if a.lent.Load() != 0 {
		return a.opError("drop", &handle{name: name}, 0, ErrLent)
	}
	return a.opError("drop", &handle{name: name}, 0, a.dropNamed(name))
}

func (a *Arena) dropNamed(name string) error {
	if strings.HasPrefix(name, hiddenPrefix) {
		return ErrNoContainer
	}
	if err := a.writable(); err != nil {
		return err
	}
	// Freeing changes the bitmaps of the allocator, not what is freed.
	if err := a.makeRoom(); err != nil {
		return err
	}
	return a.drop(name)
}

// makeRoom makes room for a change of the catalogue, where admit would wait for
// the turn, which the caller holds.
func (a *Arena) makeRoom() error {
	if a.space.private.Load()+createCost <= a.limit || a.opts.NoAutoCommit {
		return nil
	}
	return a.ownCommit()
}

// drop is Drop for whoever holds the turn and has made room.
func (a *Arena) drop(name string) error {
	a.catMu.Lock()
	defer a.catMu.Unlock()
	b, ok, err := a.catalog.getBytes([]byte(name))
	if err != nil {
		return err
	}
	if !ok {
		return ErrNoContainer
	}
	e, err := decodeEntry(b)
	if err != nil {
		return err
	}
	c := a.opened(name)
	if c == nil {
		if c, err = a.byEntry(name, &e); err != nil {
			return err
		}
	}
	a.gate.enter()
	defer a.gate.exit()
	c.lock()
	defer c.unlock()
	h := c.base()
	h.state.Store(stateDropped)
	h.epoch.Add(1)
	c.turnAway() // for ever
	a.unregister(name)
	if _, err := a.catalog.deleteBytes([]byte(name)); err != nil {
		return err
	}
	return c.free()
}

// Meta returns a copy of the value that SetMeta stored under key.
func (a *Arena) Meta(key string) ([]byte, bool) {
	if a.closed() {
		return nil, false
	}
	b, ok, err := a.meta.getBytes([]byte(key))
	if err != nil {
		a.fault(&a.meta.handle, "meta", 0, err)
		return nil, false
	}
	if ok && b == nil {
		b = []byte{}
	}
	return b, ok
}

// SetMeta stores a small value of the program's own with the data, such as
// the version of a schema or the last message applied; it commits with
// everything else. nil deletes; an empty value is kept. A key of more than 64 KiB or
// a value of more than 1 GiB is [ErrTooLarge].
func (a *Arena) SetMeta(key string, value []byte) error {
	return a.opError("setmeta", nil, 0, a.setMeta(key, value))
}

func (a *Arena) setMeta(key string, value []byte) error {
	if err := a.writable(); err != nil {
		return err
	}
	if len(key) > maxKeySize || len(value) > maxValueSize {
		return fmt.Errorf("%w: key of %d bytes, value of %d", ErrTooLarge, len(key), len(value))
	}
	if err := a.admit(createCost + a.costOf(len(value)) + a.costOf(len(key))); err != nil {
		return err
	}
	a.catMu.Lock()
	defer a.catMu.Unlock()
	a.gate.enter()
	defer a.gate.exit()
	if err := a.writable(); err != nil {
		return err
	}
	if value == nil {
		_, err := a.meta.deleteBytes([]byte(key))
		return err
	}
	return a.meta.putBytes([]byte(key), value)
}
