package applied

import (
	"context"
	"errors"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

// Once returns what records measurements on OPS, each once: an append expects the last
// act on its key's subject, and among those before it there is none of the same fact.
func Once(l *ledger.Ledger) func(context.Context, events.Envelope) error {
	return func(ctx context.Context, e events.Envelope) error {
		m := e.Data.(events.RevocationMeasured)
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		subject := events.OpsSubject(e)
		for {
			last, err := l.LastOn(ctx, events.Ops, subject)
			if err != nil {
				return err
			}
			if last > 0 {
				// By the server's own clock, which may differ from that of who decided.
				from, err := l.SequenceAt(ctx, events.Ops, m.Decided.Time().Add(-time.Hour))
				if err != nil {
					return err
				}
				for r, err := range l.Read(ctx, events.Ops, from, last, subject) {
					if err != nil {
						return err
					}
					if other, ok := r.Event.Data.(events.RevocationMeasured); ok && other.Sequence == m.Sequence {
						return nil
					}
				}
			}
			if _, err = l.AppendOpsOn(ctx, last, e); !errors.Is(err, ledger.ErrConflict) {
				return err
			}
		}
	}
}
