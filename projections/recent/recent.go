// Package recent keeps the newest facts of FEED in memory, for those who follow it by
// way of this process: one reader for all of them.
//
// It promises that whoever asks for what is behind a sequence of FEED gets all of it, in
// order, or is told that it is older than what is kept here and stands in the stream.
//
// It can disappoint: it keeps no more than [Most] facts, and nothing of what was there
// before it began.
package recent

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/keyledger/keyledger/events"
)

// Most is how many facts are kept at least, once there were so many.
const Most = 4096

// Place is how far FEED was read.
type Place struct {
	Feed   uint64 // sequence of the last fact
	Ledger uint64 // its sequence in LEDGER
}

// Facts are what is kept. They are safe for concurrent use.
type Facts struct {
	mu    sync.RWMutex    // guards what follows
	list  []events.Record // their sequences follow each other, up to at
	at    Place
	moved chan struct{} // closed and replaced when at moves
	err   error         // why nothing more will come
}

// New returns what knows nothing behind a place; Run fills it.
func New(at Place) *Facts { return &Facts{at: at, moved: make(chan struct{})} }

// Run takes the facts of FEED behind the place, which go on for ever, until they end.
// Whoever waits afterwards is told why they ended. Run runs once.
func (f *Facts) Run(ctx context.Context, facts iter.Seq2[events.Record, error]) error {
	for r, err := range facts {
		if err == nil && r.Sequence != f.at.Feed+1 {
			err = fmt.Errorf("FEED continues with sequence %d after %d: facts are missing", r.Sequence, f.at.Feed)
		}
		if err != nil {
			return f.end(err)
		}
		f.add(r)
	}
	if err := ctx.Err(); err != nil {
		return f.end(err)
	}
	return f.end(fmt.Errorf("FEED is not followed any more"))
}

func (f *Facts) add(r events.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.list) >= 2*Most {
		f.list = slices.Clone(f.list[Most:])
	}
	f.list = append(f.list, r)
	f.at = Place{r.Sequence, r.Ledger}
	close(f.moved)
	f.moved = make(chan struct{})
}

func (f *Facts) end(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	close(f.moved)
	f.moved = make(chan struct{})
	return err
}

// Reach waits until a place will do.
func (f *Facts) Reach(ctx context.Context, enough func(Place) bool) (Place, error) {
	for {
		f.mu.RLock()
		at, moved, err := f.at, f.moved, f.err
		f.mu.RUnlock()
		switch {
		case enough(at):
			return at, nil
		case err != nil:
			return at, fmt.Errorf("newest facts: %w", err)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return at, fmt.Errorf("newest facts: FEED was read to %d: %w", at.Feed, ctx.Err())
		}
	}
}

// After are the facts behind a sequence, which MUST NOT be changed, and where they end.
// Where that sequence is before what is kept, kept is false, and to is the last sequence
// that is not kept here.
func (f *Facts) After(sequence uint64) (facts []events.Record, to Place, kept bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	before := f.at.Feed - uint64(len(f.list))
	if sequence < before {
		return nil, Place{Feed: before}, false
	}
	if sequence >= f.at.Feed {
		return nil, f.at, true
	}
	return slices.Clip(f.list[sequence-before:]), f.at, true
}
