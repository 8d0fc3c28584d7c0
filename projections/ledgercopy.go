package projections

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

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
func (LedgerCopy) Tables() []Table { return []Table{{"ledger_v1", false}} }

// Apply copies a batch.
func (LedgerCopy) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	void, err := voidOf(ctx, tx, batch)
	if err != nil {
		return err
	}
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"ledger_v1"}, ledgerColumns, pgx.CopyFromSlice(len(batch), func(i int) ([]any, error) {
		r, e := &batch[i], &batch[i].Event
		return []any{int64(r.Sequence), clean(e.ID), e.Type, int32(e.Version), e.Time.Time(), e.Keyspace, e.Owner, e.Key, int64(e.KeyVersion),
			clean(e.Actor.Type), clean(e.Actor.ID), r.Subject, void[i], r.Body}, nil
	}))
	return err
}

var ledgerColumns = strings.Fields("sequence event_id type version time keyspace owner key key_version actor_type actor_id subject void body")

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
	known, err := mayBeStored(ctx, tx, `select max(key) from ledger_v1 where key <> ''`, keys)
	if err != nil {
		return nil, err
	}
	var b pgx.Batch
	var id, keyspace, owner string
	var version int64
	b.Queue(`select w.id, l.keyspace, l.owner, l.key_version from unnest($1::text[]) w(id), lateral (
			select keyspace, owner, key_version from ledger_v1 where key = w.id and key <> '' and not void order by sequence desc limit 1) l`,
		known).Query(func(rows pgx.Rows) error {
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
