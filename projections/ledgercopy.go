package projections

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// LedgerCopy holds LEDGER byte for byte, void facts marked.
type LedgerCopy struct{}

// Name is ledger_v1.
func (LedgerCopy) Name() string { return "ledger_v1" }

// Stream is LEDGER.
func (LedgerCopy) Stream() string { return events.Ledger }

// Tables is ledger_v1.
func (LedgerCopy) Tables() []string { return []string{"ledger_v1"} }

// Apply copies a batch.
func (LedgerCopy) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	void, err := voidOf(ctx, tx, batch)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into ledger_v1 (sequence, event_id, type, version, time, keyspace, owner, key, key_version,
			actor_type, actor_id, subject, void, body)
		select * from unnest($1::bigint[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
			$9::bigint[], $10::text[], $11::text[], $12::text[], $13::boolean[], $14::bytea[])`,
		column(batch, func(r *events.Record) int64 { return int64(r.Sequence) }),
		column(batch, func(r *events.Record) string { return clean(r.Event.ID) }),
		column(batch, func(r *events.Record) string { return r.Event.Type }),
		column(batch, func(r *events.Record) int32 { return int32(r.Event.Version) }),
		column(batch, func(r *events.Record) time.Time { return r.Event.Time.Time() }),
		column(batch, func(r *events.Record) string { return r.Event.Keyspace }),
		column(batch, func(r *events.Record) string { return r.Event.Owner }),
		column(batch, func(r *events.Record) string { return r.Event.Key }),
		column(batch, func(r *events.Record) int64 { return int64(r.Event.KeyVersion) }),
		column(batch, func(r *events.Record) string { return clean(r.Event.Actor.Type) }),
		column(batch, func(r *events.Record) string { return clean(r.Event.Actor.ID) }),
		column(batch, func(r *events.Record) string { return r.Subject }),
		void,
		column(batch, func(r *events.Record) []byte { return r.Body }))
	return err
}

// voidOf asks the domain about each fact. It needs no more of a key, owner or
// keyspace than who it is and its version, which is that of the last of its
// facts that held.
func voidOf(ctx context.Context, tx pgx.Tx, batch []events.Record) ([]bool, error) {
	keys := map[string]*domain.Key{}
	others := map[ownerID]uint32{} // owners; with an empty id keyspaces
	for _, r := range batch {
		switch e := r.Event; e.Data.(type) {
		case events.KeyspaceConfigured:
			others[ownerID{e.Keyspace, ""}] = 0
		case events.OwnerRegistered, events.OwnerPlanChanged, events.OwnerKeyAdmitted:
			others[ownerID{e.Keyspace, e.Owner}] = 0
		case events.KeyCreated, events.KeyUpdated, events.KeyRotated, events.KeyGraceEnded, events.KeyRevoked, events.KeyDeleted:
			keys[e.Key] = nil
		default:
			return nil, fmt.Errorf("%s does not belong in %s", e.Type, r.Stream)
		}
	}
	var b pgx.Batch
	var id, keyspace, owner string
	var version int64
	b.Queue(`select w.id, l.keyspace, l.owner, l.key_version from unnest($1::text[]) w(id), lateral (
			select keyspace, owner, key_version from ledger_v1 where key = w.id and key <> '' and not void order by key_version desc limit 1) l`,
		slices.Sorted(maps.Keys(keys))).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&id, &keyspace, &owner, &version}, func() error {
			keys[id] = &domain.Key{ID: id, Grant: &domain.Grant{Keyspace: keyspace, Owner: owner}, Version: uint32(version)}
			return nil
		})
		return err
	})
	ids := slices.Collect(maps.Keys(others))
	b.Queue(`select w.keyspace, w.owner, l.key_version from unnest($1::text[], $2::text[]) w(keyspace, owner), lateral (
			select key_version from ledger_v1 where keyspace = w.keyspace and owner = w.owner and key = '' and not void order by sequence desc limit 1) l`,
		column(ids, func(o *ownerID) string { return o.Keyspace }),
		column(ids, func(o *ownerID) string { return o.ID })).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&keyspace, &owner, &version}, func() error {
			others[ownerID{keyspace, owner}] = uint32(version)
			return nil
		})
		return err
	})
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return nil, err
	}
	void := make([]bool, len(batch))
	for i, r := range batch {
		var s domain.State
		e := r.Event
		id := ownerID{e.Keyspace, e.Owner}
		switch e.Data.(type) {
		case events.KeyspaceConfigured:
			id = ownerID{e.Keyspace, ""}
			if v := others[id]; v > 0 {
				s.Keyspace = &domain.Keyspace{Version: v}
			}
		case events.OwnerRegistered, events.OwnerPlanChanged, events.OwnerKeyAdmitted:
			if v := others[id]; v > 0 {
				s.Owner = &domain.Owner{Version: v}
			}
		default:
			s.Key = keys[e.Key]
		}
		if void[i] = !domain.Holds(s, e); void[i] {
			continue
		}
		if e.Key == "" {
			others[id] = uint32(e.KeyVersion)
		} else {
			keys[e.Key] = &domain.Key{ID: e.Key, Grant: &domain.Grant{Keyspace: e.Keyspace, Owner: e.Owner}, Version: uint32(e.KeyVersion)}
		}
	}
	return void, nil
}
