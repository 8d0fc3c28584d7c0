package queries

import (
	"context"
	"fmt"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// One reads the event at a place. It fails with [ledger.ErrNotFound]. Its Cursor is
// none.
func (a *Audit) One(ctx context.Context, stream string, sequence uint64, line int, o Opener) (AuditEvent, error) {
	r, err := a.ledger.Line(ctx, stream, sequence, line)
	if err != nil {
		return AuditEvent{}, fmt.Errorf("read an event: %w", err)
	}
	q := query{Audit: a, open: o}
	return q.show(ctx, r, spots{})
}

// Around is what stands before and behind a record in its stream about the same key;
// nil: nothing does, it is about no key, or it is further away than the work of a page.
func (a *Audit) Around(ctx context.Context, r *events.Record) (before, behind *events.Record, err error) {
	e := &r.Event
	if e.Key == "" {
		return nil, nil, nil
	}
	f := AuditFilter{Keyspace: e.Keyspace, Owner: e.Owner, Key: e.Key, Streams: []string{r.Stream}, Except: []string{"audit.read"}, Limit: 1}
	// What is behind it begins behind its place, in every stream alike: but one is read.
	var at spots
	for i := range at {
		at[i] = spotOf(*r)
	}
	f.After = at.cursor()
	page, err := a.Events(ctx, f, nil)
	if err != nil {
		return nil, nil, err
	}
	if len(page.Events) > 0 {
		behind = &page.Events[0].Record
	}
	places := newestPlaces{}
	for i := range places.at {
		places.heads[i], places.at[i] = r.Sequence, spot{r.Sequence, r.Line}
	}
	f.After = places.cursor()
	if page, err = a.Newest(ctx, f, nil); err != nil {
		return nil, nil, err
	}
	if len(page.Events) > 0 {
		before = &page.Events[0].Record
	}
	return before, behind, nil
}

// Changed is what a fact of LEDGER changed of the one thing that it is about, and
// whether it is void. It reads the facts about that up to there.
func (p *Past) Changed(ctx context.Context, r *events.Record) (list []Change, void bool, err error) {
	e := &r.Event
	was, err := p.fold(ctx, r.Subject, Moment{Sequence: r.Sequence}, func(other *events.Envelope) bool {
		return other.Key == e.Key && other.ID != e.ID
	})
	if err != nil {
		return nil, false, err
	}
	if !domain.Holds(was, *e) {
		return []Change{}, true, nil
	}
	return changes(was, domain.Evolve(was, *r), e.Time, e.Time), false, nil
}
