package queries

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// RevocationFilter says which measurements; empty fields do not filter.
type RevocationFilter struct {
	Keyspace string
	Owner    string
	From     events.Time // of the fact that ended something, inclusive
	To       events.Time // exclusive
}

func (f *RevocationFilter) conditions(table, at string) (c conditions) {
	if f.Keyspace != "" {
		c.add(table+".keyspace = ?", f.Keyspace)
	}
	if f.Owner != "" {
		c.add(table+".owner = ?", f.Owner)
	}
	if f.From != 0 {
		c.add(table+"."+at+" >= ?", f.From.Time())
	}
	if f.To != 0 {
		c.add(table+"."+at+" < ?", f.To.Time())
	}
	return c
}

// Measured is what was measured of one fact.
type Measured struct {
	events.RevocationMeasured
	Keyspace, Owner, Key string
	CertainUS            *int64 // after it every verifier refused or answered STATE_TOO_STALE; nil: not known
}

// Revocation is the measurement of the fact at a sequence of LEDGER; nil: there is none.
func (q *Queries) Revocation(ctx context.Context, sequence uint64) (*Measured, error) {
	list, err := q.measured(ctx, `r.sequence = $1`, 1, int64(sequence))
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}

// Revocations are a page of measurements in LEDGER's order, and the cursor of the next
// one (empty: this is the last).
func (q *Queries) Revocations(ctx context.Context, f RevocationFilter, limit int, after string) (list []Measured, next string, err error) {
	if limit, err = pageSize(limit); err != nil {
		return nil, "", err
	}
	c := f.conditions("r", "decided_at")
	filter := fmt.Sprintf("revocations %q %q %d %d", f.Keyspace, f.Owner, f.From, f.To)
	if after != "" {
		place, err := openCursor("cursor", filter, after)
		if err != nil {
			return nil, "", err
		}
		if len(place) != 8 {
			return nil, "", invalid("cursor", "is not a cursor of this list", "send next_cursor of the page before")
		}
		c.add("r.sequence > ?", int64(binary.BigEndian.Uint64(place)))
	}
	list, err = q.measured(ctx, c.where(), limit+1, c.args...)
	if err != nil || len(list) <= limit {
		return list, "", err
	}
	list = list[:limit]
	return list, cursor(filter, binary.BigEndian.AppendUint64(nil, list[limit-1].Sequence)), nil
}

func (q *Queries) measured(ctx context.Context, where string, limit int, args ...any) ([]Measured, error) {
	rows, err := q.pool.Query(ctx, `select r.sequence, r.measured, r.fact, r.decided_at, r.keyspace, r.owner, r.key, r.node, r.basis, r.append_us, r.certain_us
		from keyledger.revocations_v1 r where `+where+fmt.Sprintf(` order by r.sequence limit %d`, limit), args...)
	if err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	var list []Measured
	var places []int64
	var place, sequence int64
	var decided time.Time
	var m Measured
	_, err = pgx.ForEachRow(rows, []any{&sequence, &place, &m.Fact, &decided, &m.Keyspace, &m.Owner, &m.Key, &m.Node, &m.Basis, &m.AppendUS, &m.CertainUS}, func() error {
		m.Sequence, m.Decided = uint64(sequence), events.At(decided)
		list, places = append(list, m), append(places, place)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	rows, err = q.pool.Query(ctx, `select measured, node, delay_us, clock_us, coalesce(stale_ms, 0) from keyledger.revocation_nodes_v1 where measured = any($1) order by measured, node`, places)
	if err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	at := make(map[int64]int, len(places))
	for i, p := range places {
		at[p] = i
	}
	var node string
	var delay, clock *int64
	var stale int64
	_, err = pgx.ForEachRow(rows, []any{&place, &node, &delay, &clock, &stale}, func() error {
		m := &list[at[place]]
		if delay == nil {
			m.Unconfirmed = append(m.Unconfirmed, events.VerifierUnconfirmed{Node: node, StaleMS: stale})
		} else {
			m.Stopped = append(m.Stopped, events.VerifierStopped{Node: node, DelayUS: *delay, ClockUS: clock})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	return list, nil
}

// RevocationFigures add measurements up. Delays are those measured by one clock, upper
// bounds, of what every verifier confirmed; nil: there are none.
type RevocationFigures struct {
	Measured    int64  `json:"measured"`
	Everywhere  int64  `json:"everywhere"`  // every verifier confirmed, by one clock: what the delays are made of
	Unconfirmed int64  `json:"unconfirmed"` // some verifier did not confirm in time
	ByClocks    int64  `json:"by_clocks"`   // measured with the clocks of two machines
	P50US       *int64 `json:"p50_us"`
	P99US       *int64 `json:"p99_us"`
	MaxUS       *int64 `json:"max_us"`

	// Met is how many were refused everywhere within the target: confirmed, or, for a
	// verifier that did not confirm, because it answered STATE_TOO_STALE by then if it
	// ran; Missed those that were not, or that nobody knows of.
	Met    int64 `json:"met"`
	Missed int64 `json:"missed"`
}

// RevocationGroup are the figures of one group. What is not grouped by is nil.
type RevocationGroup struct {
	Day      *time.Time
	Keyspace *string
	Owner    *string
	RevocationFigures
}

// RevocationNode are those of one verifier.
type RevocationNode struct {
	Node        string
	Confirmed   int64
	Unconfirmed int64
	P50US       *int64
	P99US       *int64
	MaxUS       *int64
}

// RevocationReport is about a period.
type RevocationReport struct {
	Total RevocationFigures

	// Unmeasured are revocations (key.revoked) in LEDGER without a measurement, older
	// than what a measurement may take.
	Unmeasured int64

	Classes []int64 // of what Total's delays are made of, by RevocationBounds; the last holds what is above
	Groups  []RevocationGroup
	Nodes   []RevocationNode
}

// RevocationBounds are the upper bounds of a report's classes, in microseconds.
var RevocationBounds = [...]int64{250, 500, 1000, 2000, 3000, 5000, 7500, 10_000, 15_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000, 10_000_000, 60_000_000, 300_000_000}

// measuringTime is how long after a fact its measurement stands in the read model at
// the latest, while all is well.
const measuringTime = 2 * time.Minute

// RevocationReport adds up. By is any of keyspace, owner and day.
func (q *Queries) RevocationReport(ctx context.Context, f RevocationFilter, by []string, target time.Duration, now time.Time) (*RevocationReport, error) {
	columns := map[string]string{"keyspace": "keyspace", "owner": "owner", "day": "date_trunc('day', decided_at, 'UTC') as day"}
	var selected, grouped []string
	for _, name := range by {
		column, ok := columns[name]
		if !ok || slices.Contains(grouped, name) {
			return nil, invalid("by", fmt.Sprintf("%q is nothing to group by, or was named before", name), "any of keyspace, owner and day, separated by commas")
		}
		selected, grouped = append(selected, column), append(grouped, name)
	}
	c := f.conditions("r", "decided_at")
	where := c.where()
	var figures strings.Builder
	fmt.Fprintf(&figures, `count(*) as measured, count(*) filter (where whole) as everywhere,
		count(*) filter (where unconfirmed > 0) as unconfirmed, count(*) filter (where basis <> 'acknowledged') as by_clocks,
		percentile_disc(0.5) within group (order by slowest_us) filter (where whole) as p50_us,
		percentile_disc(0.99) within group (order by slowest_us) filter (where whole) as p99_us,
		max(slowest_us) filter (where whole) as max_us,
		count(*) filter (where certain_us <= %d) as met, count(*) filter (where certain_us > %[1]d or certain_us is null) as missed`, target.Microseconds())
	from := ` from (select r.*, r.unconfirmed = 0 and r.basis = 'acknowledged' and r.slowest_us is not null as whole from keyledger.revocations_v1 r where ` + where + `) r`
	out := &RevocationReport{}
	tx, err := q.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("report revocations: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	one := func() error {
		rows, err := tx.Query(ctx, `select `+figures.String()+from, c.args...)
		if err != nil {
			return err
		}
		out.Total, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[RevocationFigures])
		if err != nil {
			return err
		}
		if rows, err = tx.Query(ctx, `select width_bucket(slowest_us - 1, $`+fmt.Sprint(len(c.args)+1)+`::bigint[]) as class, count(*)`+from+` where whole group by 1`,
			append(slices.Clip(c.args), RevocationBounds[:])...); err != nil {
			return err
		}
		out.Classes = make([]int64, len(RevocationBounds)+1)
		var class int
		var n int64
		if _, err = pgx.ForEachRow(rows, []any{&class, &n}, func() error { out.Classes[class] = n; return nil }); err != nil {
			return err
		}
		if rows, err = tx.Query(ctx, `select n.node, count(n.delay_us) as confirmed, count(*) - count(n.delay_us) as unconfirmed,
				percentile_disc(0.5) within group (order by n.delay_us) filter (where r.basis = 'acknowledged') as p50_us,
				percentile_disc(0.99) within group (order by n.delay_us) filter (where r.basis = 'acknowledged') as p99_us,
				max(n.delay_us) filter (where r.basis = 'acknowledged') as max_us
			from keyledger.revocations_v1 r join keyledger.revocation_nodes_v1 n on n.measured = r.measured where `+where+` group by n.node order by n.node`, c.args...); err != nil {
			return err
		}
		if out.Nodes, err = pgx.CollectRows(rows, pgx.RowToStructByName[RevocationNode]); err != nil {
			return err
		}
		if len(grouped) > 0 {
			if rows, err = tx.Query(ctx, `select `+strings.Join(selected, ", ")+`, `+figures.String()+from+` group by `+strings.Join(grouped, ", ")+
				` order by `+strings.Join(grouped, ", ")+fmt.Sprintf(` limit %d`, maxUsageRows+1), c.args...); err != nil {
				return err
			}
			if out.Groups, err = pgx.CollectRows(rows, pgx.RowToStructByNameLax[RevocationGroup]); err != nil {
				return err
			}
		}
		l := f.conditions("l", "time")
		l.add("l.time < ?", now.Add(-measuringTime))
		l.add("l.keyspace <> ?", events.RootKeyspace)
		return tx.QueryRow(ctx, `select count(*) from keyledger.ledger_v1 l where l.type = 'key.revoked' and not l.void and `+l.where()+`
			and not exists (select from keyledger.revocations_v1 r where r.sequence = l.sequence)`, l.args...).Scan(&out.Unmeasured)
	}
	if err := one(); err != nil {
		return nil, fmt.Errorf("report revocations: %w", err)
	}
	if len(out.Groups) > maxUsageRows {
		return nil, invalid("by", fmt.Sprintf("this would answer more than %d rows", maxUsageRows), "ask for a shorter time or fewer groups")
	}
	return out, nil
}
