package emd

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// How a container gets another type. A new one is filled beside the old,
// under a hidden name; the library commits meanwhile as memory asks for it. Then
// one commit gives the new one the name and frees the old. A crash before
// that commit leaves the old one, and what there is of the new, which the next
// Open drops, or if that is rolled back the next migration.
//
// While it is read the old container is claimed: writers wait, readers do not.

// MigrateList makes the list called name, with elements of type Old, one of
// type New: element i becomes what fn returns for it. from and to are how the
// list opens before and after; both may be nil.
//
// It is atomic: after a crash at any moment the file holds the old list whole
// or the new one whole. It ends with a commit of the arena. If fn fails, ctx ends,
// or the disk is full, the list is as it was; what the file had grown by comes
// back with a Rollback, or after the next commit. Memory is bounded as for any
// other change, new space not counted: with Options.NoAutoCommit it may end
// with [ErrUpdateTooLarge]. The file holds both lists until the end.
//
// fn runs without locks, once for each element, in order. It may use other
// containers but must not call methods of this list. Readers of the list go on.
// Changes of it by other goroutines wait, and are then [ErrClosed], as all use
// of handles from before, like after [Arena.Drop].
//
// What overtakes a migration ends it, and the list stays as that leaves it: a
// Rollback, also that of an Update that fails ([ErrRolledBack]), a Drop or
// Close ([ErrClosed]), and an Update that changes the list, for that must not wait.
// If the last commit finds no room, changes that others made during it are
// rolled back with it.
//
// progress, if not nil, is called now and then, and at the end with done equal
// to total.
//
// If the list has the type New already, and not Old, nothing is done: so a
// program may call MigrateList whenever it starts. With Old and New stored
// alike, fn runs each time. Another type is [ErrTypeMismatch], a missing list
// [ErrNoContainer]. Inside Update it is [ErrInUpdate].
func MigrateList[Old, New any](ctx context.Context, a *Arena, name string, from *ListOptions[Old], to *ListOptions[New],
	fn func(Old) (New, error), progress func(done, total int64)) error {
	return a.migrate(name, func() error {
		src, dst := ListOptions[Old]{MustExist: true}, ListOptions[New]{MustExist: true}
		if from != nil {
			src.Codec = from.Codec
		}
		if to != nil {
			dst.Codec = to.Codec
		}
		made, err := newEMList(a, "", &dst)
		if err != nil {
			return err
		}
		old, err := openList(a, name, &src)
		if errors.Is(err, ErrTypeMismatch) {
			if _, other := openList(a, name, &dst); other == nil {
				return nil
			}
		}
		if err != nil {
			return err
		}
		m := &migration{a: a, ctx: ctx, old: old.l, made: made.l, progress: progress}
		return m.run(func() error { return convertList(m, old, made, fn) })
	})
}

// MigrateDict is [MigrateList] for dicts: each entry becomes what fn returns
// for it, in no order. It is an error, which names the key, if fn returns a key twice.
func MigrateDict[K1 comparable, V1 any, K2 comparable, V2 any](ctx context.Context, a *Arena, name string,
	from *DictOptions[K1, V1], to *DictOptions[K2, V2], fn func(K1, V1) (K2, V2, error), progress func(done, total int64)) error {
	return a.migrate(name, func() error {
		src, dst := DictOptions[K1, V1]{MustExist: true}, DictOptions[K2, V2]{MustExist: true}
		if from != nil {
			src.KeyCodec, src.ValueCodec = from.KeyCodec, from.ValueCodec
		}
		if to != nil {
			dst.KeyCodec, dst.ValueCodec = to.KeyCodec, to.ValueCodec
		}
		made, err := newEMDict(a, "", &dst)
		if err != nil {
			return err
		}
		old, err := openDict(a, name, &src)
		if errors.Is(err, ErrTypeMismatch) {
			if _, other := openDict(a, name, &dst); other == nil {
				return nil
			}
		}
		if err != nil {
			return err
		}
		m := &migration{a: a, ctx: ctx, old: old.d, made: made.d, progress: progress}
		return m.run(func() error { return convertDict(m, old, made, fn) })
	})
}

// errReplaced says that a container was dropped, or migrated, before it was
// claimed: its name may lead to another now.
var errReplaced = errors.New("container was replaced")

// migrate is what both kinds of migration have around them.
func (a *Arena) migrate(name string, try func() error) error {
	h := &handle{name: name}
	if a.inUpdate() {
		return a.opError("migrate", h, 0, ErrInUpdate)
	}
	err := a.dropUnfinished()
	if err == nil {
		for err = errReplaced; err == errReplaced; {
			err = try()
		}
	}
	if err == nil {
		return nil
	}
	// Not opError: an Update of another goroutine has no part in this.
	return a.placed("migrate", h, 0, err)
}

// dropHidden drops what running migrations have built: they cannot end well,
// for the arena is being closed. The caller holds the turn.
func (a *Arena) dropHidden() error {
	if a.writable() != nil {
		return nil
	}
	for _, c := range a.registered() {
		if name := c.base().name; strings.HasPrefix(name, hiddenPrefix) {
			if err := a.drop(name); err != nil && !errors.Is(err, ErrNoContainer) {
				return err
			}
		}
	}
	return nil
}

// dropUnfinished drops what is left of migrations that a crash ended.
func (a *Arena) dropUnfinished() error {
	a.turn.Lock()
	defer a.turn.Unlock()
	if err := a.writable(); err != nil {
		return err
	}
	names, err := a.unfinished()
	for _, name := range names {
		if err == nil {
			err = a.makeRoom()
		}
		if err == nil {
			err = a.drop(name)
		}
	}
	return err
}

// unfinished returns the hidden names that no running migration uses. None
// is added while the caller has the turn. Numbers that were used are not used
// again: a Rollback may bring back what was dropped under them.
func (a *Arena) unfinished() (names []string, err error) {
	a.catMu.Lock()
	defer a.catMu.Unlock()
	err = a.catalog.eachBytes(func(key, _ []byte) bool {
		number, ok := strings.CutPrefix(string(key), hiddenPrefix)
		if ok && a.opened(string(key)) == nil {
			n, _ := strconv.Atoi(number)
			a.hiddenNames = max(a.hiddenNames, n)
			names = append(names, string(key))
		}
		return true
	})
	return names, err
}

// A migration fills made with what old has, converted, and puts it in old's
// place.
type migration struct {
	a         *Arena
	ctx       context.Context
	old, made container
	inPlace   bool  // old, a dict, takes over what is in made and lives on: see BulkLoad
	claim     claim // of old
	// The epochs with which it began. Others mean that a Rollback, Drop or Close
	// has changed one of the two behind its back.
	oldEpoch, madeEpoch uint64
	done, total         int64 // elements
	progress            func(done, total int64)
}

// run does it; convert fills made.
func (m *migration) run(convert func() error) (err error) {
	a, old := m.a, m.old.base()
	m.claim.a = a
	m.old.claim(&m.claim)
	defer m.old.disclaim(&m.claim)
	m.oldEpoch = old.epoch.Load()
	switch {
	case old.state.Load() == stateDropped:
		return errReplaced
	case old.absent.Load(): // a Rollback undid its creation
		return ErrNoContainer
	}
	m.total = m.old.length()
	if err := m.begin(); err != nil {
		return err
	}
	finished := false
	defer func() { // also after a panic of fn
		if !finished {
			err = errors.Join(err, m.discard())
		}
	}()
	if err = convert(); err == nil {
		err = m.check()
	}
	if err == nil && m.done != m.total {
		err = corrupt("%d elements were read, the length says %d", m.done, m.total)
	}
	if err == nil {
		err = m.finish()
	}
	if err != nil {
		return err
	}
	finished = true
	if m.progress != nil {
		m.progress(m.total, m.total)
	}
	return nil
}

// begin enters made, empty, under a hidden name. As nothing does while an
// Update runs, it is not part of one.
func (m *migration) begin() error {
	a, made := m.a, m.made.base()
	a.turn.Lock()
	defer a.turn.Unlock()
	if err := a.writable(); err != nil {
		return err
	}
	if err := a.makeRoom(); err != nil {
		return err
	}
	a.catMu.Lock()
	defer a.catMu.Unlock()
	a.hiddenNames++
	made.name = hiddenPrefix + strconv.Itoa(a.hiddenNames)
	if err := a.createContainer(m.made); err != nil {
		return err
	}
	a.register(m.made)
	m.madeEpoch = made.epoch.Load()
	return nil
}

// discard drops made. What cannot be dropped now, because the arena is closed
// or has failed, the next migration drops.
func (m *migration) discard() error {
	a, made := m.a, m.made.base()
	a.turn.Lock()
	defer a.turn.Unlock()
	if a.writable() != nil {
		return nil
	}
	err := a.drop(made.name)
	if errors.Is(err, ErrNoContainer) { // a Rollback undid its creation
		a.unregister(made.name)
		return nil
	}
	return err
}

// migrateStride is how many elements lie between two calls of progress.
const migrateStride = 1 << 10

// next is called before each element is converted. It returns why it should
// not be.
func (m *migration) next() error {
	if m.done%migrateStride == 0 {
		if m.done != 0 && m.progress != nil {
			m.progress(m.done, m.total)
		}
		m.waitForUpdate()
	}
	if err := m.ctx.Err(); err != nil {
		return err
	}
	m.done++
	return m.check()
}

// waitForUpdate waits for an Update that runs. Otherwise what is written here
// would take the memory that it needs, and share its fate.
func (m *migration) waitForUpdate() {
	if m.a.updater.Load() != 0 {
		m.a.turn.Lock()
		defer m.a.turn.Unlock()
	}
}

// check returns why the migration cannot go on.
func (m *migration) check() error {
	old, made := m.old.base(), m.made.base()
	if m.claim.yielded.Load() {
		return errors.New("an Update of another goroutine changes the container meanwhile")
	}
	if old.epoch.Load() == m.oldEpoch && made.epoch.Load() == m.madeEpoch {
		return nil
	}
	if err := errors.Join(m.a.check(old), m.a.writable()); err != nil {
		return err
	}
	return ErrRolledBack
}

// convertList appends to made what fn makes of the elements of old.
func convertList[Old, New any](m *migration, old *EMList[Old], made *EMList[New], fn func(Old) (New, error)) error {
	s := newScratch()
	defer s.done()
	waiting := 0 // elements in s
	flush := func() error {
		err := made.l.appendPiece(s.piece(made.l, waiting), false)
		s.reset()
		waiting = 0
		return err
	}
	convert := func(i int, v Old) error {
		if err := m.next(); err != nil {
			return err
		}
		w, err := fn(v)
		if err == nil {
			err = made.encode(s, &w)
		}
		if err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
		if waiting++; waiting < maxEncoded && len(s.b) < maxScratch {
			return nil
		}
		return flush()
	}
	w := old.walk("migrate", 0, int(m.total), false)
	for w.read() {
		for k, v := range w.run {
			if err := convert(w.at+k, v); err != nil {
				return err
			}
		}
	}
	if w.err != nil || waiting == 0 {
		return w.err
	}
	return flush()
}

// convertDict stores in made what fn makes of the entries of old.
func convertDict[K1 comparable, V1 any, K2 comparable, V2 any](m *migration, old *EMDict[K1, V1], made *EMDict[K2, V2],
	fn func(K1, V1) (K2, V2, error)) error {
	convert := func(k K1, v V1) error {
		if err := m.next(); err != nil {
			return err
		}
		l, w, err := fn(k, v)
		if err != nil {
			return fmt.Errorf("key %s: %w", keyText(k), err)
		}
		_, twice, err := made.change(changeAdd, &l, &w)
		if err != nil {
			return fmt.Errorf("key %s: %w", keyText(l), err)
		}
		if twice {
			return fmt.Errorf("key %s results twice", keyText(l))
		}
		return nil
	}
	s := old.scan("migrate", 0, ^uint64(0), true, true)
	for s.read() {
		for _, e := range s.entries {
			if err := convert(e.key, e.val); err != nil {
				return err
			}
		}
	}
	return s.c.err
}

// keyText returns a key as errors show it.
func keyText[K any](k K) string {
	text := fmt.Sprint(k)
	if reflect.TypeFor[K]().Kind() == reflect.String {
		text = strconv.Quote(text)
	}
	if len(text) > maxNamed {
		text = text[:maxNamed] + "..."
	}
	return text
}

// finish puts made in the place of old, with one commit. What was pending is
// committed first, as by Update: a Rollback then undoes nothing else.
func (m *migration) finish() error {
	a := m.a
	a.turn.Lock()
	defer a.turn.Unlock()
	if err := a.writable(); err != nil {
		return err
	}
	if err := errors.Join(m.ctx.Err(), m.check()); err != nil {
		return err
	}
	if err := a.commit(false); err != nil {
		return err
	}
	if a.space.private.Load()+createCost > a.limit {
		if err := a.checkpoint(); err != nil {
			return err
		}
	}
	// From here until old is closed, or restored, its readers wait; so nobody
	// else may hold catMu, inside which Containers reads.
	a.catMu.Lock()
	defer a.catMu.Unlock()
	err := m.exchange()
	if err == nil {
		err = a.commit(false)
	}
	if err != nil && a.writable() == nil {
		a.rollbacks.Add(1)
		return errors.Join(err, a.rollback())
	}
	if m.inPlace {
		return err
	}
	m.retire() // also when the arena stopped: then only the next Open can tell which of the two the file has
	return err
}

// exchange frees old and enters made under its name, in memory. The caller
// holds turn and catMu.
func (m *migration) exchange() error {
	a, old, made := m.a, m.old.base(), m.made.base()
	a.gate.enter()
	defer a.gate.exit()
	m.old.lock()
	defer m.old.unlock()
	m.old.turnAway()
	entry := made.entry()
	if _, err := a.catalog.deleteBytes([]byte(made.name)); err != nil {
		return err
	}
	if err := a.catalog.putBytes([]byte(old.name), entry.encode()); err != nil {
		return err
	}
	named := handle{name: old.name, kind: made.kind, key: made.key, value: made.value}
	a.space.touch(made.hdr, lineMask(labelOff, labelEnd-labelOff))
	named.writeLabel(a.space.page(made.hdr))
	if d, ok := m.old.(*dict); ok && m.inPlace {
		return m.takeOver(d)
	}
	if err := m.old.free(); err != nil {
		return err
	}
	old.hdr = 0 // so that flush leaves the page alone: it may be another's by now
	return nil
}

// takeOver is the end of exchange for a dict that lives on: readers get what
// made has before the old pages are freed, which takes its time.
func (m *migration) takeOver(old *dict) error {
	made := m.made.base()
	old.flush()
	gone := old.like()
	if err := gone.load(old.hdr); err != nil {
		return err
	}
	if err := old.load(made.hdr); err != nil {
		return err
	}
	m.a.unregister(made.name)
	old.readmit()
	return gone.free()
}

// retire closes old for good, and has the next who opens its name find made.
// The caller holds turn and catMu.
func (m *migration) retire() {
	a, old, made := m.a, m.old.base(), m.made.base()
	a.gate.enter()
	defer a.gate.exit()
	m.old.lock()
	defer m.old.unlock()
	old.state.Store(stateDropped)
	old.epoch.Add(1)
	a.unregister(made.name)
	made.name = old.name
	a.register(m.made)
}
