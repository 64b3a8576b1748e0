// Package linear checks that what goroutines see of an EMDict is what one order of their operations explains, in which
// each takes effect at one moment between its call and its return: linearizability. The search for such an order is
// porcupine's.
package linear

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// keyCount is how many keys the clients contend for.
const keyCount = 3

// A value is what a key has; each write of a history stores another one.
type value int32

const absent value = 0

// An op is one operation of a history, with what it returned. Those on one key are all of one form: look at the
// key, then write it.
type op struct {
	name  string
	key   int
	look  look
	seen  value // by lookPresence, absent or anything else
	write bool
	new   value // absent: removed

	effect     effect // of an operation on the arena
	rolledBack bool   // it returned ErrRolledBack
}

type look uint8

const (
	lookAway look = iota
	lookPresence
	lookValue
)

// An effect is what an operation does to all keys at once.
type effect uint8

const (
	none   effect = iota
	save          // commit: Sync
	undo          // back to the last commit: Rollback
	begin         // of an Update: commit; until its end nobody else does, nor goes back
	commit        // end of an Update
	revert        // end of an Update that failed
)

func (o op) String() string {
	text := o.name
	if o.effect == none {
		text += fmt.Sprintf(" key %d", o.key)
	}
	switch {
	case o.look == lookPresence:
		text += fmt.Sprintf(" there: %t", o.seen != absent)
	case o.look == lookValue:
		text += fmt.Sprintf(" saw %d", o.seen)
	}
	if o.write {
		text += fmt.Sprintf(" wrote %d", o.new)
	}
	if o.rolledBack {
		text += " rolled back"
	}
	return text
}

// A state is all that the operations of a history depend on.
//
// An Update is atomic but not isolated: its changes are in now at once, as are those that others make meanwhile, and
// if it fails they all go, to what was there when it began.
type state struct {
	now, saved [keyCount]value
	updating   bool
}

// after returns the state after an operation, and whether the operation can have gone so in s.
func (s state) after(o op) (state, bool) {
	if s.updating && (o.effect == save || o.effect == undo || o.effect == begin) {
		return s, false
	}
	switch o.effect {
	case save, commit, begin:
		s.saved = s.now
	case undo, revert:
		s.now = s.saved
	}
	switch o.effect {
	case begin:
		s.updating = true
	case commit, revert:
		s.updating = false
	}
	switch o.look {
	case lookPresence:
		if (s.now[o.key] != absent) != (o.seen != absent) {
			return s, false
		}
	case lookValue:
		if s.now[o.key] != o.seen {
			return s, false
		}
	}
	if o.write {
		s.now[o.key] = o.new
	}
	return s, true
}

// modelFrom returns the model that starts with the given values, committed.
func modelFrom(start [keyCount]value) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return state{now: start, saved: start} },
		Step: func(s, o, _ any) (bool, any) {
			next, ok := s.(state).after(o.(op))
			return ok, next
		},
		DescribeOperation: func(o, _ any) string { return o.(op).String() },
		DescribeState:     func(s any) string { return fmt.Sprintf("%+v", s) },
	}
}
