package alerts

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
)

// loadAll counts what the read model of uses holds, and says up to where that is.
func (e *Engine) loadAll(ctx context.Context) (at uint64, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	err = e.reading(ctx, func(tx pgx.Tx, position uint64) error {
		at = position
		for _, k := range e.Ring.Keyspaces() {
			if err := e.load(ctx, tx, k); err != nil {
				return err
			}
		}
		return nil
	})
	e.loaded, e.at = at, at
	return at, err
}

// refresh loads the keyspaces whose document or rules have changed.
func (e *Engine) refresh(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, k := range e.Ring.Keyspaces() {
		s := e.spaces[k.Document.Keyspace]
		if s != nil && s.keyspace.Version == k.Version && s.turn == e.book.turn {
			continue
		}
		if s != nil && s.keyspace.Version == k.Version && sameRules(s, e.book.rules) {
			s.turn = e.book.turn
			continue
		}
		// No later than what was counted: else something would be missing.
		if err := e.Runner.Wait(ctx, projections.Usage{}.Name(), max(e.at, e.loaded)); err != nil {
			return err
		}
		err := e.reading(ctx, func(tx pgx.Tx, position uint64) error {
			e.skip[k.Document.Keyspace] = position
			return e.load(ctx, tx, k)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func sameRules(s *space, all map[place]json.RawMessage) bool {
	n := 0
	for at, text := range all {
		if at.keyspace != s.keyspace.Document.Keyspace {
			continue
		}
		if n++; string(s.texts[at]) != string(text) {
			return false
		}
	}
	return n == len(s.texts)
}

func (e *Engine) reading(ctx context.Context, read func(tx pgx.Tx, position uint64) error) error {
	err := pgx.BeginTxFunc(ctx, e.Pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var at int64
		if err := tx.QueryRow(ctx, `select coalesce(max(sequence), 0) from keyledger.positions
			where name = case when to_regclass('keyledger.last_used_v1') is null then $1 else 'usage_v1' end`, projections.Usage{}.Name()).Scan(&at); err != nil {
			return err
		}
		return read(tx, uint64(at))
	})
	if err != nil {
		return fmt.Errorf("read what was used: %w", err)
	}
	return nil
}

// load replaces what is counted of a keyspace. e.mu is held.
func (e *Engine) load(ctx context.Context, tx pgx.Tx, k *domain.Keyspace) error {
	id := k.Document.Keyspace
	s := newSpace(k, e.book.rules)
	s.turn = e.book.turn
	e.spaces[id] = s
	for key, t := range e.keys {
		if t.keyspace == id {
			delete(e.keys, key)
		}
	}
	for key, p := range e.pools {
		if p.keyspace == id {
			delete(e.pools, key)
		}
	}
	sets := []*ruleset{s.common}
	limits := len(s.common.limits) > 0
	if len(s.set) > 0 {
		for key := range e.Ring.All(id, "") {
			s.of(key.Owner, key)
			s.of(key.Owner, nil)
		}
		for _, rs := range s.special {
			sets = append(sets, rs)
			limits = limits || len(rs.limits) > 0
		}
	}
	specs := sortedSpecs(sets...)
	if limits {
		specs = append(specs, poolSpecs[:]...)
	}
	for i, sp := range specs {
		if err := e.loadWindow(ctx, tx, id, sp, i >= len(specs)-len(poolSpecs) && limits); err != nil {
			return err
		}
	}
	rows, err := tx.Query(ctx, `select key, previous_used_at from keyledger.last_used where keyspace = $1 and previous_used_at is not null`, id)
	if err != nil {
		return err
	}
	var key string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&key, &at}, func() error {
		if ring := e.Ring.Key(key); ring != nil && ring.GraceUntil(events.Time(e.now())) != 0 {
			e.previous[ring.ID] = at.UnixMilli()
		}
		return nil
	})
	return err
}

// loadWindow counts one width of buckets, of keys or of pools. What happened in a minute
// is taken as having happened in the middle of it.
func (e *Engine) loadWindow(ctx context.Context, tx pgx.Tx, keyspace string, sp spec, pools bool) error {
	now := e.now()
	from := (now/sp.width - sp.keep + 1) * sp.width
	figures := `select owner, key, code, status, requests, cost_micros, minute as at, 30000 as half from keyledger.usage_minutes
		where keyspace = $1 and key <> '' and minute >= $4 and minute < 'infinity'`
	if sp.width%time.Hour.Milliseconds() == 0 { // minutes may be gone, and there are many
		figures += ` and minute >= (select folded from keyledger.usage_state)
			union all select owner, key, code, status, requests, cost_micros, hour, 0 from keyledger.usage_hours
			where keyspace = $1 and key <> '' and hour >= $4 and hour < 'infinity'`
	}
	rows, err := tx.Query(ctx, `select owner, key, least((extract(epoch from at) * 1000)::bigint + half, $3) / $2 as bucket,
			coalesce(sum(requests) filter (where code = 'VALID'), 0)::bigint,
			coalesce(sum(requests) filter (where code = 'VALID' and status > 0), 0)::bigint,
			coalesce(sum(requests) filter (where code = 'VALID' and status >= 400), 0)::bigint,
			coalesce(sum(requests) filter (where code not in ('VALID', 'RATE_LIMITED')), 0)::bigint,
			sum(cost_micros)::bigint
		from (`+figures+`) figures group by owner, key, bucket order by bucket`, keyspace, sp.width, now, time.UnixMilli(from).Truncate(time.Minute))
	if err != nil {
		return err
	}
	var owner, key string
	var index int64
	var n [5]int64 // in the order of kinds
	_, err = pgx.ForEachRow(rows, []any{&owner, &key, &index, &n[used], &n[known], &n[failed], &n[denied], &n[cost]}, func() error {
		t := e.keys[key]
		if t == nil {
			if t = e.begin(keyspace, owner, key); t == nil {
				return nil
			}
		}
		at := index * sp.width
		t.last = max(t.last, at)
		if pools {
			if p := t.pool; p != nil && n[used] > 0 {
				i := 0
				for poolSpecs[i] != sp {
					i++
				}
				p.counts[i].add(sp, at, n[used])
				e.touchPool(p, at)
			}
			return nil
		}
		for i, own := range t.rules.specs {
			if own.width == sp.width && own.keep == sp.keep && n[own.kind] != 0 {
				t.series[i].add(own, at, n[own.kind])
			}
		}
		e.touch(t, at)
		return nil
	})
	return err
}
