package projections

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// Revocations folds the measurements on OPS into a row for each revocation, and the
// like, and one for each verifier of it, so that a report about last year reads no
// stream.
type Revocations struct{}

// Name is revocations_v1.
func (Revocations) Name() string { return "revocations_v1" }

// Stream is OPS.
func (Revocations) Stream() string { return events.Ops }

// Tables are revocations_v1 and revocation_nodes_v1.
func (Revocations) Tables() []Table {
	return []Table{{"revocations_v1", true}, {"revocation_nodes_v1", true}}
}

// Apply adds what a batch tells. Of two measurements of one fact, which nobody makes,
// the first counts.
func (Revocations) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	var b pgx.Batch
	for i := range batch {
		e := &batch[i].Event
		m, ok := e.Data.(events.RevocationMeasured)
		if !ok {
			continue
		}
		slowest, certain := bounds(&m)
		b.Queue(`insert into revocations_v1 (sequence, measured, fact, decided_at, keyspace, owner, key, node, basis, append_us, confirmed, unconfirmed, slowest_us, certain_us)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) on conflict (sequence) do nothing`,
			int64(m.Sequence), int64(batch[i].Sequence), clean(m.Fact), m.Decided.Time(), e.Keyspace, e.Owner, e.Key, clean(m.Node), clean(m.Basis), m.AppendUS,
			int32(len(m.Stopped)), int32(len(m.Unconfirmed)), slowest, certain)
		for _, s := range m.Stopped {
			b.Queue(`insert into revocation_nodes_v1 (measured, node, delay_us, clock_us) values ($1, $2, $3, $4) on conflict (measured, node) do nothing`,
				int64(batch[i].Sequence), clean(s.Node), s.DelayUS, s.ClockUS)
		}
		for _, u := range m.Unconfirmed {
			b.Queue(`insert into revocation_nodes_v1 (measured, node, stale_ms) values ($1, $2, $3) on conflict (measured, node) do nothing`,
				int64(batch[i].Sequence), clean(u.Node), u.StaleMS)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, &b).Close()
}

// bounds are when the slowest verifier that confirmed had stopped, and after how long
// it is certain that every one had, or answered STATE_TOO_STALE; nil: not known.
func bounds(m *events.RevocationMeasured) (slowest, certain *int64) {
	for _, s := range m.Stopped {
		if slowest == nil || s.DelayUS > *slowest {
			slowest = new(s.DelayUS)
		}
	}
	most := int64(0)
	if slowest != nil {
		most = *slowest
	}
	for _, u := range m.Unconfirmed {
		if u.StaleMS <= 0 {
			return slowest, nil
		}
		most = max(most, u.StaleMS*1000)
	}
	if len(m.Stopped)+len(m.Unconfirmed) == 0 {
		return nil, nil
	}
	return slowest, &most
}
