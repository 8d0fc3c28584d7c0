package alerts

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// sweep judges what passing time makes true of all keys, and forgets what is too old to
// count.
func (e *Engine) sweep(ctx context.Context) {
	e.mu.Lock()
	asks := e.sweeps%unusedEvery == 0
	e.sweeps++
	e.mu.Unlock()
	var unused map[string]int64
	if asks {
		var err error
		if unused, err = e.unused(ctx); err != nil && ctx.Err() == nil {
			e.Log.Warn("alerts of unused keys wait", "error", err)
		}
	}
	n := 0
	now := e.now()
	e.mu.Lock()
	for k := range e.Ring.All("", "") {
		e.judgeTime(k, unused, now)
		if n++; n%1000 == 0 { // uses are waiting to be counted
			e.mu.Unlock()
			e.mu.Lock()
		}
	}
	for _, s := range slices.Collect(maps.Keys(e.book.open)) {
		if when, _, _ := strings.Cut(s.rule, " "); !byTime(when) || when == "previous_secret" || when == "unused" && unused == nil {
			continue
		}
		if k, r := e.still(s); r != nil {
			e.found(s, r, timed(k, e.spaces[s.keyspace].keyspace, r, unused[k.ID], 0, now), now)
		}
	}
	for id, p := range e.pools {
		if !p.dirty && now-p.last > 24*time.Hour.Milliseconds() {
			delete(e.pools, id)
		}
	}
	for id, t := range e.keys {
		k := e.Ring.Key(id)
		if !t.dirty && (now-t.last > t.rules.longest() || k == nil || e.spaces[t.keyspace].of(t.owner, k) != t.rules) {
			delete(e.keys, id)
		} else if k != nil {
			t.pool = e.poolOf(k, t.rules)
		}
	}
	for id := range e.previous {
		if k := e.Ring.Key(id); k == nil || k.GraceUntil(events.Time(now)) == 0 {
			delete(e.previous, id)
		}
	}
	for s, ep := range e.book.rest {
		if now-ep.since > e.hold+time.Hour.Milliseconds() {
			delete(e.book.rest, s)
		}
	}
	e.mu.Unlock()
}

func (e *Engine) judgeTime(k *domain.Key, unused map[string]int64, now int64) {
	s := e.spaces[k.Keyspace]
	if s == nil || k.Revoked() {
		return
	}
	rules := s.of(k.Owner, k).byTime
	for i := range rules {
		r := &rules[i]
		last := int64(0)
		if r.When == "unused" {
			if unused == nil {
				continue // not asked now
			}
			last = unused[k.ID]
		}
		if c := timed(k, s.keyspace, r, last, e.previous[k.ID], now); c.holds {
			e.found(subject{k.Keyspace, k.Owner, k.ID, r.name}, r, c, now)
		}
	}
}

// unused asks for the keys that nobody has used for as long as the shortest rule says,
// and since when. A key that was never used counts from when it was made.
func (e *Engine) unused(ctx context.Context) (map[string]int64, error) {
	e.mu.Lock()
	least := int64(-1)
	for _, s := range e.spaces {
		for _, rs := range append(slices.Collect(maps.Values(s.special)), s.common) {
			for _, r := range rs.byTime {
				if r.When == "unused" && (least < 0 || milliseconds(r.For) < least) {
					least = milliseconds(r.For)
				}
			}
		}
	}
	e.mu.Unlock()
	found := map[string]int64{}
	if least < 0 {
		return found, nil
	}
	rows, err := e.Pool.Query(ctx, `select k.id, greatest(k.created_at, case when s.last_used = 'successful' then l.last_success_at else l.last_used_at end)
		from keyledger.keys_v1 k
		left join keyledger.keyspaces_v1 s on s.id = k.keyspace
		left join keyledger.last_used l on l.key = k.id
		where k.revoked_at is null and k.deleted_at is null and k.keyspace <> 'keyledger' and (k.expires_at is null or k.expires_at > now()) and k.created_at < $1
			and coalesce(case when s.last_used = 'successful' then l.last_success_at else l.last_used_at end, k.created_at) < $1`,
		e.Now().Add(-time.Duration(least)*time.Millisecond))
	if err != nil {
		return nil, err
	}
	var id string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &at}, func() error {
		found[id] = at.UnixMilli()
		return nil
	})
	return found, err
}
