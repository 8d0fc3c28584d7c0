package queries

import (
	"context"
	"iter"
	"slices"

	"github.com/keyledger/keyledger/events"
)

// Traffic yields the facts of USAGE that match, in the order of the stream, nothing
// opened. It reads as much of the stream as may hold facts of the time, from a little
// before it to [lateness] after; done and total are messages of that. progress may be
// nil. It refuses what makes no sense with a [*domain.Refusal].
func (a *Audit) Traffic(ctx context.Context, f AuditFilter, progress func(done, total uint64)) iter.Seq2[*events.Envelope, error] {
	return func(yield func(*events.Envelope, error) bool) {
		q, err := a.query(f, nil, -1)
		if err != nil {
			yield(nil, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := q.source(ctx, slices.Index(auditStreams[:], events.Usage), new(spot))
		if err != nil || s == nil {
			if err != nil {
				yield(nil, err)
			}
			return
		}
		defer s.stop()
		var first, told uint64
		for {
			if _, err := q.advance(ctx, s, new(-1)); err != nil {
				yield(nil, err)
				return
			}
			at := s.at.sequence
			if s.found {
				at = s.pending.Sequence
			}
			if first == 0 {
				first = at
			}
			if progress != nil && (at >= told+1000 || !s.found) {
				told = at
				progress(at-min(first, at), s.end-min(first, s.end))
			}
			if !s.found || !yield(&s.pending.Event, nil) {
				return
			}
			s.at = spotOf(s.pending)
		}
	}
}
