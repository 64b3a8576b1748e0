package emd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"sync"
	"unsafe"
)

// DictOptions say how [Dict] opens a dict. The zero value, or nil, creates it
// when it is absent and takes the codecs that follow from the types.
type DictOptions[K comparable, V any] struct {
	// MustExist makes a missing dict [ErrNoContainer].
	MustExist bool
	// KeyCodec writes the keys, if not nil. It must be deterministic: keys are
	// equal when their encodings are.
	KeyCodec Codec[K]
	// ValueCodec writes the values, if not nil.
	ValueCodec Codec[V]
}

// An EMDict is a map in a file: it maps keys of type K to values of type V.
// [Dict] and [OpenDict] return one.
//
// Its methods may be called by any number of goroutines at once. Readers wait
// for nobody; changes of keys whose hashes differ in the upper bits run side
// by side. A change is committed by the next Sync, Update or Close of the
// arena, together with all others, or earlier by the library itself.
//
// Values, and keys of iterations, are the caller's own. Keys are equal when
// their encodings are: for the derived codecs that is Go's ==, except that a
// NaN equals every NaN. A Set costs one lookup and now and then the division of a
// page; no operation ever moves the whole dict.
//
// The functions given to [EMDict.Compute] and [EMDict.DeleteFunc] run without
// a lock, once for each element. They must not call methods of the same dict;
// other containers are fine.
type EMDict[K comparable, V any] struct {
	d     *dict
	key   *typeCodec[K]
	val   *typeCodec[V]
	words bool // both are 8 raw bytes: see dict.getWord
	owner bool // Close closes the arena
	pool  sync.Pool
}

// Op is what the function given to [EMDict.Compute] decides.
type Op uint8

const (
	OpKeep   Op = iota // leave the entry, or its absence, as it is
	OpStore            // store the returned value
	OpRemove           // remove the entry, if there is one
)

// Dict opens the dict called name, or creates it, empty, if there is none.
// opts may be nil.
//
// K and V are kept in the file as type signatures; a name that holds another
// kind or other types is [ErrTypeMismatch], naming both. A type that needs a
// codec of the caller's is [ErrUnsupportedType]. Opening a name again gives
// another handle to the same dict. The cost does not depend on its size.
func Dict[K comparable, V any](a *Arena, name string, opts *DictOptions[K, V]) (*EMDict[K, V], error) {
	if opts == nil {
		opts = &DictOptions[K, V]{}
	}
	d, err := openDict(a, name, opts)
	if err != nil {
		return nil, a.opError("open", &handle{name: name}, 0, err)
	}
	return d, nil
}

func openDict[K comparable, V any](a *Arena, name string, opts *DictOptions[K, V]) (*EMDict[K, V], error) {
	d, err := newEMDict(a, name, opts)
	if err != nil {
		return nil, err
	}
	c, err := a.openContainer(d.d, opts.MustExist)
	if err != nil {
		return nil, err
	}
	core := c.(*dict)
	if *core.layout != *d.d.layout {
		return nil, fmt.Errorf("%w: codec %s or %s has the name of another encoding", ErrTypeMismatch, d.key.sig, d.val.sig)
	}
	d.d = core
	return d, nil
}

// newEMDict returns a handle to a dict that is not open yet.
func newEMDict[K comparable, V any](a *Arena, name string, opts *DictOptions[K, V]) (*EMDict[K, V], error) {
	if err := checkKeyCodec(opts.KeyCodec); err != nil {
		return nil, err
	}
	key, err := keyCodecFor(opts.KeyCodec)
	if err != nil {
		return nil, err
	}
	val, err := codecFor(opts.ValueCodec)
	if err != nil {
		return nil, err
	}
	core := newDict(a, key.size, val.size)
	core.name, core.kind, core.key, core.value = name, kindDict, key.sig, val.sig
	d := &EMDict[K, V]{d: core, key: key, val: val}
	d.words = key.raw && key.size == 8 && val.raw && val.size == 8
	return d, nil
}

// OpenDict opens a file that holds one dict: [Open] plus [Dict] of the name
// "main". Its Close closes the file.
func OpenDict[K comparable, V any](path string, opts *Options) (*EMDict[K, V], error) {
	_, kerr := keyCodecFor[K](nil)
	_, verr := codecFor[V](nil)
	if err := errors.Join(kerr, verr); err != nil { // before a file is created for it
		return nil, &Error{Op: "open", Path: path, Container: mainName, Err: err}
	}
	a, err := Open(path, opts)
	if err != nil {
		return nil, err
	}
	d, err := Dict[K, V](a, mainName, nil)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	d.owner = true
	return d, nil
}

// Len returns the number of entries, 0 after Close. It costs the same for
// any number of entries.
func (d *EMDict[K, V]) Len() int { return int(d.d.length()) }

// Get returns the value of k, and whether there is one. The value is the
// caller's own.
func (d *EMDict[K, V]) Get(k K) (v V, ok bool, err error) {
	// Nearly every lookup of words ends here, in its home line. It calls nothing and is
	// short: fewer instructions are not only less time, the processor also sees
	// more lookups at once, and waits for the memory of all of them together.
	if d.words && optimistic {
		c, key := d.d, *(*uint64)(unsafe.Pointer(&k))
		h := c.hashWord(key)
		seg := c.table.Load().segment(h)
		s := seg.load() &^ 1
		if b := c.space.flatPage(seg.look(h, s)); b != nil && key != 0 {
			line := (*wordLine)(unsafe.Add(b, homeOff(h)))
			last := line[6]
			if i := whichIs(key, line[0], line[2], line[4], last); i != 0 {
				val := line[uint(2*i-1)%uint(len(line))] // torn, it may be found in several slots
				if seg.undisturbed(s) {
					return *(*V)(unsafe.Pointer(&val)), true, nil
				}
			} else if last == 0 && seg.undisturbed(s) {
				return v, false, nil
			}
		}
	}
	return d.getAny(k)
}

// getAny is Get of any types. Inlined, it would move the results of Get from
// registers to the stack.
//
//go:noinline
func (d *EMDict[K, V]) getAny(k K) (v V, ok bool, err error) {
	if err = d.get(&k, &v, &ok); err != nil {
		err = d.error("get", err)
	}
	return v, ok, err
}

func (d *EMDict[K, V]) get(k *K, v *V, ok *bool) (err error) {
	if d.words {
		word := (*uint64)(unsafe.Pointer(v))
		*word, *ok, err = d.d.getWord(*(*uint64)(unsafe.Pointer(k)))
		return err
	}
	if key, is := d.key.memory(k); is && d.val.copied() {
		h := d.d.hash(key)
		if d.peek(h, key, v, ok) {
			return nil
		}
		return d.getEncoded(nil, h, key, v, ok)
	}
	b := d.buffers()
	key, err := d.encodeKey(b, k)
	if err == nil {
		err = d.getEncoded(b, d.d.hash(key), key, v, ok)
	}
	d.pool.Put(b) // not deferred: if a codec panics, there is one less
	return err
}

// peek is get where nothing is in the way, of values that are copied. Otherwise
// it says no, and leaves *v and *ok zero.
func (d *EMDict[K, V]) peek(h uint64, key []byte, v *V, ok *bool) bool {
	val, seg, s, is := d.d.peek(h, key)
	switch {
	case is == peekedAbsent:
		return seg.undisturbed(s)
	case is == peekedPresent && d.val.copy(v, val) && seg.undisturbed(s):
		*ok = true
		return true
	}
	var none V
	*v = none
	return false
}

// getEncoded is get for the hash and the encoding of a key. *v and *ok are
// zero. b may be nil for values that are copied.
func (d *EMDict[K, V]) getEncoded(b *dictBuffers, h uint64, key []byte, v *V, ok *bool) (err error) {
	if len(key) > maxKeySize {
		return d.d.a.check(&d.d.handle)
	}
	if d.val.raw {
		return d.getRaw(h, key, v, ok)
	}
	var val []byte
	var found bool
	if d.val.copied() {
		val, found, err = d.d.get(nil, h, key)
	} else {
		b.val, found, err = d.d.get(b.val[:0], h, key)
		val = b.val
	}
	if err != nil || !found {
		return err
	}
	if !d.val.keep(v, val) {
		err = d.decodeValue(v, key, val)
	}
	*ok = err == nil
	return err
}

// getRaw is getEncoded where values are as in memory.
func (d *EMDict[K, V]) getRaw(h uint64, key []byte, v *V, ok *bool) (err error) {
	_, *ok, err = d.d.get(memoryOf(v)[:0], h, key)
	if !*ok {
		var none V
		*v = none // an attempt that was disturbed may have found one
	}
	return err
}

// Contains says whether k has a value, without decoding it.
func (d *EMDict[K, V]) Contains(k K) (bool, error) {
	if d.words {
		_, ok, err := d.d.getWord(*(*uint64)(unsafe.Pointer(&k)))
		return ok, d.error("contains", err)
	}
	ok := false
	b := d.keyBuffers()
	key, err := d.encodeKey(b, &k)
	if err == nil && len(key) > maxKeySize {
		err = d.d.a.check(&d.d.handle)
	} else if err == nil {
		ok, err = d.d.contains(d.d.hash(key), key)
	}
	d.giveBack(b)
	return ok, d.error("contains", err)
}

// Set stores v as the value of k. A key of more than 64 KiB or a value of more
// than 1 GiB, encoded, is [ErrTooLarge].
func (d *EMDict[K, V]) Set(k K, v V) error {
	if d.words {
		return d.error("set", d.d.setWord(*(*uint64)(unsafe.Pointer(&k)), *(*uint64)(unsafe.Pointer(&v))))
	}
	return d.error("set", d.set(&k, &v))
}

func (d *EMDict[K, V]) set(k *K, v *V) error {
	if key, is := d.key.memory(k); is {
		if val, is := d.val.memory(v); is {
			err := checkSizes(key, val)
			if err == nil {
				_, _, err = d.d.change(changeSet, d.d.hash(key), key, val, nil, nil)
			}
			return err
		}
	}
	_, _, err := d.change(changeSet, k, v)
	return err
}

// Delete removes k and says whether it was there.
func (d *EMDict[K, V]) Delete(k K) (ok bool, err error) {
	if d.words {
		ok, err = d.d.deleteWord(*(*uint64)(unsafe.Pointer(&k)))
		return ok, d.error("delete", err)
	}
	b := d.keyBuffers()
	key, err := d.encodeKey(b, &k)
	if err == nil && len(key) > maxKeySize {
		err = d.d.writable()
	} else if err == nil {
		_, ok, err = d.d.change(changeRemove, d.d.hash(key), key, nil, nil, nil)
	}
	d.giveBack(b)
	return ok, d.error("delete", err)
}

// DeleteFunc removes the entries for which del returns true, and returns how
// many. del runs without a lock, exactly once for each entry that is there from
// beginning to end; while it runs, changes of its key and of those near it in
// the order of hashes wait. If it panics, its entry stays; so does what was not visited.
// A Rollback meanwhile is [ErrRolledBack].
func (d *EMDict[K, V]) DeleteFunc(del func(K, V) bool) (n int, err error) {
	err = d.deleteFunc(del, &n)
	return n, d.error("deletefunc", err)
}

func (d *EMDict[K, V]) deleteFunc(del func(K, V) bool, n *int) error {
	if err := d.d.writable(); err != nil {
		return err
	}
	epoch := d.d.epoch.Load()
	for h := uint64(0); ; {
		held, err := d.d.holdBucket(h)
		if err != nil {
			return err
		}
		if held.epoch != epoch {
			held.epoch = epoch
			err = d.d.overtaken(&held)
		}
		if err == nil {
			err = d.deleteHeld(&held, del, n)
		} else {
			d.d.release(&held)
		}
		if err != nil || held.hi == ^uint64(0) {
			return err
		}
		h = held.hi + 1
	}
}

// deleteHeld is deleteFunc for the hashes of a hold, which it releases.
func (d *EMDict[K, V]) deleteHeld(held *hold, del func(K, V) bool, n *int) error {
	defer d.d.release(held)
	c := cursor{d: d.d, pos: held.lo, last: held.hi}
	for c.next() {
		var e keyVal[K, V]
		ok, err := d.entry(&c, &e, true, true)
		if err != nil {
			return err
		}
		if !ok || !del(e.key, e.val) {
			continue
		}
		_, was, err := d.d.change(changeRemove, d.d.hash(c.key), c.key, nil, nil, held)
		if err != nil {
			return err
		}
		if was {
			*n++
		}
	}
	return c.err
}

// Clear removes all entries and gives their space back. It waits for functions
// given to Compute and DeleteFunc that are running. The cost is in proportion to the
// number of pages, which are not read unless keys or values are long.
func (d *EMDict[K, V]) Clear() error { return d.error("clear", d.d.clearAll()) }

// GetOrSet returns the value of k, with loaded true, if there is one. Otherwise
// it stores v and returns that.
func (d *EMDict[K, V]) GetOrSet(k K, v V) (actual V, loaded bool, err error) {
	if actual, loaded, err = d.Get(k); err != nil || loaded {
		return actual, loaded, err
	}
	old, loaded, err := d.change(changeAdd, &k, &v)
	if err != nil {
		return actual, false, d.error("getorset", err)
	}
	if loaded {
		return old, true, nil
	}
	return v, false, nil
}

// Swap stores v as the value of k and returns the one before, with ok false
// if there was none.
func (d *EMDict[K, V]) Swap(k K, v V) (old V, ok bool, err error) {
	old, ok, err = d.change(changeSwap, &k, &v)
	return old, ok, d.error("swap", err)
}

// change makes one change of one key.
func (d *EMDict[K, V]) change(kind changeKind, k *K, v *V) (old V, was bool, err error) {
	b := d.buffers()
	key, val, err := d.encodeEntry(b, k, v)
	if err == nil {
		b.old, was, err = d.d.change(kind, d.d.hash(key), key, val, b.old[:0], nil)
	}
	if err == nil && was && kind != changeSet {
		err = d.decodeValue(&old, key, b.old)
	}
	d.pool.Put(b)
	return old, was && err == nil, err
}

// Compute changes the value of k as fn decides. fn gets the present value,
// with ok false if there is none, and returns a value and whether to store it,
// keep things as they are, or remove the entry. Compute returns what then is
// the value of k.
//
// It is atomic: other changes of k wait until fn has returned. fn runs exactly
// once, without a lock. If it panics, nothing changes. If a Rollback overtakes it,
// its decision is dropped and Compute returns [ErrRolledBack].
func (d *EMDict[K, V]) Compute(k K, fn func(v V, ok bool) (V, Op)) (actual V, ok bool, err error) {
	if d.words {
		actual, ok, err = d.computeWord(*(*uint64)(unsafe.Pointer(&k)), fn)
	} else {
		actual, ok, err = d.compute(&k, fn)
	}
	return actual, ok, d.error("compute", err)
}

func (d *EMDict[K, V]) compute(k *K, fn func(v V, ok bool) (V, Op)) (actual V, ok bool, err error) {
	var none V
	b := d.buffers()
	defer d.pool.Put(b)
	key, err := d.encodeKey(b, k)
	if err == nil {
		err = checkSizes(key, nil)
	}
	if err == nil {
		err = d.d.writable()
	}
	if err != nil {
		return none, false, err
	}
	h := d.d.hash(key)
	held, old, ok, err := d.d.holdKey(h, key, b.old[:0])
	if err != nil {
		return none, false, err
	}
	defer d.d.release(&held)
	b.old = old
	if ok {
		if err = d.decodeValue(&actual, key, b.old); err != nil {
			return none, false, err
		}
	}
	v, op := fn(actual, ok)
	switch op {
	case OpKeep:
		return actual, ok, d.d.overtaken(&held)
	case OpStore:
		var val []byte
		if val, err = d.encodeValue(b, &v); err == nil {
			_, _, err = d.d.change(changeSet, h, key, val, nil, &held)
		}
		if err != nil {
			return none, false, err
		}
		return v, true, nil
	case OpRemove:
		_, _, err = d.d.change(changeRemove, h, key, nil, nil, &held)
		return none, false, err
	default:
		panic(fmt.Sprintf("emd: Compute with the operation %d", op))
	}
}

// computeWord is compute for words.
func (d *EMDict[K, V]) computeWord(key uint64, fn func(v V, ok bool) (V, Op)) (actual V, ok bool, err error) {
	var none V
	h := d.d.hashWord(key)
	var held wordHold
	word, ok, err := d.d.holdWord(&held, h, key)
	if err != nil {
		return none, false, err
	}
	defer d.d.release(&held.hold)
	v, op := fn(*(*V)(unsafe.Pointer(&word)), ok)
	switch op {
	case OpKeep:
		return *(*V)(unsafe.Pointer(&word)), ok, d.d.overtaken(&held.hold)
	case OpStore:
		if err = d.d.storeHeld(h, key, *(*uint64)(unsafe.Pointer(&v)), &held); err != nil {
			return none, false, err
		}
		return v, true, nil
	case OpRemove:
		_, _, err = d.d.change(changeRemove, h, binary.LittleEndian.AppendUint64(nil, key), nil, nil, &held.hold)
		return none, false, err
	default:
		panic(fmt.Sprintf("emd: Compute with the operation %d", op))
	}
}

// SetAll stores the pairs of seq, each as by Set, and returns how many it has
// read. It stops at the first error; a fault that an iterator of the arena
// meets meanwhile, such as seq itself, is one.
func (d *EMDict[K, V]) SetAll(seq iter.Seq2[K, V]) (n int, err error) {
	if err := d.d.writable(); err != nil {
		return 0, d.error("setall", err)
	}
	faults := d.d.a.faults()
	for k, v := range seq {
		n++
		if err := d.Set(k, v); err != nil {
			return n, err
		}
	}
	return n, d.error("setall", d.d.a.faultSince(faults))
}

// Grow makes room for n more entries, so that storing them divides few pages.
// It does nothing where their size varies. A negative n panics.
func (d *EMDict[K, V]) Grow(n int) error { return d.error("grow", d.d.grow(n)) }

// All returns an iterator over the entries, in the order of their hashes. The
// dict may be changed meanwhile, also by the loop: an entry that is there from
// beginning to end comes exactly once, one that comes or goes may or may not.
//
// Damage ends the loop; [EMDict.Err] tells.
func (d *EMDict[K, V]) All() iter.Seq2[K, V] { return d.loop("all", 0, ^uint64(0)) }

// loop is a loop over the entries of the hashes from first to last.
func (d *EMDict[K, V]) loop(op string, first, last uint64) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		s := d.scan(op, first, last, true, true)
		for s.next() {
			for _, e := range s.entries {
				if !yield(e.key, e.val) {
					return
				}
			}
		}
	}
}

// Keys is All for the keys alone; values are not read.
func (d *EMDict[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		s := d.scan("keys", 0, ^uint64(0), true, false)
		for s.next() {
			for _, e := range s.entries {
				if !yield(e.key) {
					return
				}
			}
		}
	}
}

// Values is All for the values alone.
func (d *EMDict[K, V]) Values() iter.Seq[V] {
	return func(yield func(V) bool) {
		s := d.scan("values", 0, ^uint64(0), false, true)
		for s.next() {
			for _, e := range s.entries {
				if !yield(e.val) {
					return
				}
			}
		}
	}
}

// A scan reads the entries of a range of hashes, some at a time, for a loop over
// each of them. That loop is the caller's, so that the compiler can put it, and
// the body of the range statement that it serves, where it is used: a call for
// each entry would take longer than the entry does.
type scan[K comparable, V any] struct {
	d          *EMDict[K, V]
	op         string
	keys, vals bool // what is wanted of an entry
	c          cursor
	entries    []keyVal[K, V] // after next: the copies to look at
	one        [1]keyVal[K, V]
}

// A keyVal is an entry; of words, in the layout of a wordEntry.
type keyVal[K comparable, V any] struct {
	key K
	val V
}

// scan returns one of the hashes from first to last.
func (d *EMDict[K, V]) scan(op string, first, last uint64, keys, vals bool) *scan[K, V] {
	c := cursor{d: d.d, pos: first, last: last, gathers: d.words}
	return &scan[K, V]{d: d, op: op, keys: keys, vals: vals, c: c}
}

// next reads more entries, and says whether there are any. Damage ends the
// loop: it is a fault.
func (s *scan[K, V]) next() bool {
	more := s.read()
	if s.c.err != nil {
		s.d.d.a.fault(&s.d.d.handle, s.op, 0, s.c.err)
	}
	return more
}

// read is next for whoever looks at the cursor's error.
func (s *scan[K, V]) read() bool {
	if s.d.words {
		for s.c.fill() {
			if n := len(s.c.words); n > 0 {
				s.entries = unsafe.Slice((*keyVal[K, V])(unsafe.Pointer(unsafe.SliceData(s.c.words))), n)
				return true
			}
		}
		return false
	}
	s.entries = s.one[:]
	for s.c.next() {
		var ok bool
		if ok, s.c.err = s.d.entry(&s.c, &s.one[0], s.keys, s.vals); ok || s.c.err != nil {
			return ok
		}
	}
	return false
}

// entry decodes the wanted parts of a cursor's entry; ok is false if it has
// gone meanwhile.
func (d *EMDict[K, V]) entry(c *cursor, e *keyVal[K, V], keys, vals bool) (ok bool, err error) {
	if keys {
		if err = d.key.decode(&e.key, c.key); err != nil {
			return false, fmt.Errorf("key %#x: %w", c.key[:min(len(c.key), maxNamed)], err)
		}
	}
	if !vals {
		return true, nil
	}
	val := c.val
	if c.valFar {
		if val, ok, err = d.d.get(nil, d.d.hash(c.key), c.key); err != nil || !ok {
			return false, err
		}
	}
	err = d.decodeValue(&e.val, c.key, val)
	return err == nil, err
}

// decodeValue sets *v to the value whose encoding is val. Its errors name the
// key, of which key is the encoding.
func (d *EMDict[K, V]) decodeValue(v *V, key, val []byte) error {
	err := d.val.decode(v, val)
	if err == nil {
		return nil
	}
	var k K
	if d.key.decode(&k, bytes.Clone(key)) != nil { // a clone, so that no caller's key moves to the heap
		return err
	}
	name := fmt.Sprint(k)
	if d.key.form == stringForm {
		name = strconv.Quote(*asString(&k))
	}
	if len(name) > maxNamed {
		name = name[:maxNamed] + "..."
	}
	return fmt.Errorf("value of key %s: %w", name, err)
}

// maxNamed is how much of a key an error shows, in bytes.
const maxNamed = 64

// Arena returns the arena that the dict is in.
func (d *EMDict[K, V]) Arena() *Arena { return d.d.a }

// Sync commits all changes of the arena; see [Arena.Sync].
func (d *EMDict[K, V]) Sync() error { return d.d.a.Sync() }

// Err returns the first fault that an iterator of the dict met since it was
// opened: what ended its loop early. See [Arena.View].
func (d *EMDict[K, V]) Err() error {
	if err := d.d.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Close closes the file if the dict was opened by [OpenDict]; see
// [Arena.Close]. Otherwise it does nothing, for the arena stays open.
func (d *EMDict[K, V]) Close() error {
	if d.owner {
		return d.d.a.Close()
	}
	return nil
}

func (d *EMDict[K, V]) error(op string, err error) error {
	if err == nil {
		return nil
	}
	return d.d.a.opError(op, &d.d.handle, 0, err)
}

// dictBuffers are what an operation encodes into and decodes from, reused.
type dictBuffers struct{ key, val, old []byte }

func (d *EMDict[K, V]) buffers() *dictBuffers {
	if b, ok := d.pool.Get().(*dictBuffers); ok {
		b.trim()
		return b
	}
	return new(dictBuffers)
}

// trim forgets buffers that one huge value left.
func (b *dictBuffers) trim() {
	const most = 1 << 20
	if cap(b.key) > most || cap(b.val) > most || cap(b.old) > most {
		*b = dictBuffers{}
	}
}

// keyBuffers is buffers for a key alone: nil where keys are encoded as they lie
// in memory.
func (d *EMDict[K, V]) keyBuffers() *dictBuffers {
	if d.key.inMemory() {
		return nil
	}
	return d.buffers()
}

func (d *EMDict[K, V]) giveBack(b *dictBuffers) {
	if b != nil {
		d.pool.Put(b)
	}
}

// encodeKey returns the encoding of k, in b or where k's bytes lie.
func (d *EMDict[K, V]) encodeKey(b *dictBuffers, k *K) ([]byte, error) {
	if b != nil {
		b.key = b.key[:0]
	}
	return d.appendKey(b, k)
}

// appendKey is encodeKey that leaves the keys in b as they are.
func (d *EMDict[K, V]) appendKey(b *dictBuffers, k *K) ([]byte, error) {
	if key, is := d.key.memory(k); is {
		return key, nil
	}
	start := len(b.key)
	var err error
	b.key, err = d.key.encode(b.key, k)
	return b.key[min(start, len(b.key)):], err
}

// encodeValue returns the encoding of v, in b or where v's bytes lie.
func (d *EMDict[K, V]) encodeValue(b *dictBuffers, v *V) ([]byte, error) {
	if val, is := d.val.memory(v); is {
		return val, checkSizes(nil, val)
	}
	var err error
	if b.val, err = d.val.encode(b.val[:0], v); err != nil {
		return nil, err
	}
	return b.val, checkSizes(nil, b.val)
}

func (d *EMDict[K, V]) encodeEntry(b *dictBuffers, k *K, v *V) (key, val []byte, err error) {
	if key, err = d.encodeKey(b, k); err == nil {
		err = checkSizes(key, nil)
	}
	if err == nil {
		val, err = d.encodeValue(b, v)
	}
	return key, val, err
}

// checkSizes says whether a key and a value may be stored.
func checkSizes(key, val []byte) error {
	if len(key) > maxKeySize {
		return fmt.Errorf("%w: key of %d bytes, at most %d", ErrTooLarge, len(key), maxKeySize)
	}
	if len(val) > maxValueSize {
		return fmt.Errorf("%w: value of %d bytes, at most %d", ErrTooLarge, len(val), maxValueSize)
	}
	return nil
}
