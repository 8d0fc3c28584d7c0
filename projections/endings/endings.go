// Package endings keeps in memory who no longer verifies, and since when, as FEED
// tells it: what GET /v1/feeds/revocations answers. Package keyring judges requests;
// this one is for telling others.
//
// It promises that a reader that asks again and again for what is behind the place
// it was told learns of every ending exactly once, in FEED's order, on whatever node
// it asks: the place is a sequence of FEED. Only the newest word about a key (about
// one secret of it, or its expiry) stands here, behind all older ones, so that reading
// from 0 is the state as it is now, and never more than that.
//
// It can disappoint: nothing is read before somebody asks for the first time, and
// whoever asks then waits until all of FEED has been. Between two readings a key may
// be revoked and deleted: a reader then hears of the deletion alone. An expiry or the
// end of a grace is told when it is set, not when it comes.
package endings

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/keyledger/keyledger/events"
)

// Fact is a fact of FEED with its places. Event is not kept.
type Fact struct {
	Sequence uint64 // in FEED
	Ledger   uint64 // in LEDGER
	Event    events.Envelope
}

// What ended.
const (
	Revoked    = "revoked"
	Deleted    = "deleted"
	Superseded = "superseded" // a secret that was rotated away
	Expired    = "expired"
)

// Ending says that a key, or one secret of it, does not verify from a moment on. It
// MUST NOT be changed.
type Ending struct {
	Key      string
	Keyspace string
	Owner    string
	Why      string
	Secret   int         // which secret of the key, from 1 in the order of its making; 0: all
	Since    events.Time // may lie ahead; 0: what was said of the expiry holds no more
	Reason   string      // as it was given, may be empty

	Sequence uint64 // of the fact in FEED
	Ledger   uint64 // of the fact in LEDGER

	atOnce   bool // since the fact itself, whatever this node's clock says
	replaced bool
}

// In says whether the ending is in force at a moment.
func (e *Ending) In(at events.Time) bool { return e.atOnce || e.Since != 0 && e.Since <= at }

// Place is how far FEED was read.
type Place struct {
	Feed   uint64 // sequence of the last fact
	Ledger uint64 // its sequence in LEDGER
}

// Index is what is known. It is safe for concurrent use.
type Index struct {
	asked chan struct{} // closed by the first who asks
	once  sync.Once

	mu       sync.RWMutex // guards what follows
	list     []*Ending    // by Sequence, with what was replaced
	replaced int          // in list
	keys     map[string]*key
	at       Place
	moved    chan struct{} // closed and replaced when at moves
	err      error         // why nothing more will come
}

// key is one of which something was said.
type key struct {
	secrets int // 0: only the first one
	current []*Ending
}

// New returns an index that knows nothing; Run fills it.
func New() *Index {
	return &Index{asked: make(chan struct{}), keys: map[string]*key{}, moved: make(chan struct{})}
}

// Run waits until somebody asks, then reads facts, which begin with FEED's first and
// go on for ever, until they end. Whoever asks afterwards is told why they ended.
// Run runs once.
func (x *Index) Run(ctx context.Context, facts iter.Seq2[Fact, error]) error {
	select {
	case <-x.asked:
	case <-ctx.Done():
		return ctx.Err()
	}
	for f, err := range facts {
		if err == nil {
			err = x.apply(f)
		}
		if err != nil {
			return x.end(err)
		}
	}
	if err := ctx.Err(); err != nil {
		return x.end(err)
	}
	return x.end(fmt.Errorf("FEED is not followed any more"))
}

func (x *Index) end(err error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.err = err
	close(x.moved)
	x.moved = make(chan struct{})
	return err
}

// Reach waits until enough says that a place will do.
func (x *Index) Reach(ctx context.Context, enough func(Place) bool) (Place, error) {
	x.once.Do(func() { close(x.asked) })
	for {
		x.mu.RLock()
		at, moved, err := x.at, x.moved, x.err
		x.mu.RUnlock()
		switch {
		case err != nil:
			return at, fmt.Errorf("endings: %w", err)
		case enough(at):
			return at, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return at, fmt.Errorf("endings: FEED was read to %d: %w", at.Feed, ctx.Err())
		}
	}
}

// After are the endings behind a sequence of FEED that match, oldest word first, at
// most about so many: those of one fact stand together. to is where to go on; whole
// says that nothing more is known.
func (x *Index) After(sequence uint64, most int, match func(*Ending) bool) (list []*Ending, to Place, whole bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	first := sort.Search(len(x.list), func(i int) bool { return x.list[i].Sequence > sequence })
	for _, e := range x.list[first:] {
		if e.replaced || !match(e) {
			continue
		}
		if len(list) >= most && e.Sequence != list[len(list)-1].Sequence {
			last := list[len(list)-1]
			return list, Place{last.Sequence, last.Ledger}, false
		}
		list = append(list, e)
	}
	return list, x.at, true
}

func (x *Index) apply(f Fact) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if f.Sequence != x.at.Feed+1 || f.Ledger <= x.at.Ledger {
		return fmt.Errorf("FEED continues with sequence %d (LEDGER %d) after %d (LEDGER %d): facts are missing, or it was not read from its beginning; compare it with a backup before going on",
			f.Sequence, f.Ledger, x.at.Feed, x.at.Ledger)
	}
	switch d := f.Event.Data.(type) {
	case events.KeyCreated:
		if d.ExpiresAt != 0 {
			x.say(f, Expired, 0, d.ExpiresAt, "")
		}
	case events.KeyUpdated:
		if d.ExpiresAt != nil && (d.ExpiresAt.At != 0 || x.said(f, Expired) != nil) {
			x.say(f, Expired, 0, d.ExpiresAt.At, "")
		}
	case events.KeyRotated:
		if d.EndGrace {
			x.endGraces(f, d.Reason)
		}
		k := x.of(f)
		k.secrets = max(k.secrets, 1) + 1
		until := d.GraceUntil
		if until == 0 {
			until = f.Event.Time
		}
		x.say(f, Superseded, k.secrets-1, until, d.Reason)
	case events.KeyGraceEnded:
		x.endGraces(f, d.Reason)
	case events.KeyRevoked:
		x.say(f, Revoked, 0, f.Event.Time, d.Reason)
	case events.KeyDeleted:
		since, reason := f.Event.Time, ""
		if before := x.said(f, Revoked); before != nil {
			since, reason = before.Since, before.Reason
		}
		x.say(f, Deleted, 0, since, reason)
	}
	x.at = Place{f.Sequence, f.Ledger}
	close(x.moved)
	x.moved = make(chan struct{})
	return nil
}

func (x *Index) of(f Fact) *key {
	k := x.keys[f.Event.Key]
	if k == nil {
		k = &key{}
		x.keys[strings.Clone(f.Event.Key)] = k
	}
	return k
}

func (x *Index) said(f Fact, why string) *Ending {
	k := x.keys[f.Event.Key]
	if k == nil {
		return nil
	}
	if i := slices.IndexFunc(k.current, func(e *Ending) bool { return e.Why == why }); i >= 0 {
		return k.current[i]
	}
	return nil
}

func (x *Index) endGraces(f Fact, reason string) {
	if k := x.keys[f.Event.Key]; k != nil {
		for _, e := range slices.Clone(k.current) {
			if e.Why == Superseded && e.Since > f.Event.Time {
				x.say(f, Superseded, e.Secret, f.Event.Time, reason)
			}
		}
	}
}

// say puts the newest word behind all others, in the place of what it replaces: the
// same said before, and for a key that is gone all that was.
func (x *Index) say(f Fact, why string, secret int, since events.Time, reason string) {
	k := x.of(f)
	e := &Ending{Key: strings.Clone(f.Event.Key), Keyspace: strings.Clone(f.Event.Keyspace), Owner: strings.Clone(f.Event.Owner),
		Why: why, Secret: secret, Since: since, Reason: strings.Clone(reason), Sequence: f.Sequence, Ledger: f.Ledger,
		atOnce: since != 0 && since <= f.Event.Time}
	k.current = append(slices.DeleteFunc(k.current, func(o *Ending) bool {
		gone := why == Revoked || why == Deleted || o.Why == why && o.Secret == secret
		if gone {
			o.replaced = true
			x.replaced++
		}
		return gone
	}), e)
	x.list = append(x.list, e)
	if x.replaced > 1024 && x.replaced > len(x.list)/2 {
		x.list = slices.DeleteFunc(x.list, func(o *Ending) bool { return o.replaced })
		x.replaced = 0
	}
}
