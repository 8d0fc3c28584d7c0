package queries

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// MomentsFilter asks for places in LEDGER around one.
type MomentsFilter struct {
	Keyspace, Owner string    // empty: any
	From, To        time.Time // of the timeline
	Buckets         int       // of the timeline; 0: none
}

// Moments are places in LEDGER around one, and how many facts there are when. Of what
// facts say nothing is told.
type Moments struct {
	At       Moment        `json:"at"`
	Fact     *Moment       `json:"fact,omitempty"`    // the last one up to there, which made the state what it is
	Earlier  *Moment       `json:"earlier,omitempty"` // the one to go back to
	Later    *Moment       `json:"later,omitempty"`   // the next one
	First    *Moment       `json:"first,omitempty"`
	Timeline []FactsBucket `json:"timeline,omitempty"` // all buckets, in order
}

// FactsBucket is how many facts there are from one time on, up to the next bucket.
type FactsBucket struct {
	Time  events.Time `json:"time"`
	Count int64       `json:"count"`
}

// Moments finds the facts next to a moment. PostgreSQL MUST have copied LEDGER up to
// there.
func (p *Past) Moments(ctx context.Context, f MomentsFilter, at Moment) (*Moments, error) {
	var c conditions
	c.sql = append(c.sql, "not void", "type <> 'owner.key_admitted'")
	if f.Keyspace != "" {
		c.add("keyspace = ?", f.Keyspace)
	} else {
		c.add("keyspace <> ?", events.RootKeyspace)
	}
	if f.Owner != "" {
		c.add("owner = ?", f.Owner)
	}
	m := &Moments{At: at}
	find := func(more string, limit int, args ...any) (list []Moment, err error) {
		rows, err := p.q.pool.Query(ctx, `select sequence, time from keyledger.ledger_v1 where `+c.where()+fmt.Sprintf(" and "+more+" limit %d", limit), append(c.args, args...)...)
		if err != nil {
			return nil, fmt.Errorf("find facts: %w", err)
		}
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (m Moment, err error) {
			var sequence int64
			var t time.Time
			err = row.Scan(&sequence, &t)
			return Moment{uint64(sequence), events.At(t)}, err
		})
		if err != nil {
			return nil, fmt.Errorf("find facts: %w", err)
		}
		return list, nil
	}
	next := fmt.Sprintf("$%d", len(c.args)+1)
	up, err := find("sequence <= "+next+" order by sequence desc", 2, int64(at.Sequence))
	if err != nil {
		return nil, err
	}
	if len(up) > 0 {
		m.Fact = &up[0]
		if up[0].Sequence < at.Sequence || up[0].Time < at.Time {
			m.Earlier = &up[0]
		} else if len(up) > 1 {
			m.Earlier = &up[1]
		}
	}
	down, err := find("sequence > "+next+" order by sequence", 1, int64(at.Sequence))
	if err != nil {
		return nil, err
	}
	if len(down) > 0 {
		m.Later = &down[0]
	}
	first, err := find("true order by sequence", 1)
	if err != nil {
		return nil, err
	}
	if len(first) > 0 {
		m.First = &first[0]
	}
	if f.Buckets > 0 {
		return m, p.timeline(ctx, f, c, m)
	}
	return m, nil
}

func (p *Past) timeline(ctx context.Context, f MomentsFilter, c conditions, m *Moments) error {
	if f.From.IsZero() {
		if m.First == nil {
			return nil
		}
		f.From = m.First.Time.Time()
	}
	step := max(f.To.Sub(f.From)/time.Duration(f.Buckets), time.Millisecond).Truncate(time.Microsecond)
	for i := range f.Buckets {
		m.Timeline = append(m.Timeline, FactsBucket{Time: events.At(f.From.Add(time.Duration(i) * step))})
	}
	c.add("time >= ?", f.From)
	c.add("time < ?", f.To)
	c.args = append(c.args, f.From, step)
	n := len(c.args)
	rows, err := p.q.pool.Query(ctx, fmt.Sprintf(`select date_bin($%d::interval, time, $%d), count(*) from keyledger.ledger_v1 where `, n, n-1)+c.where()+" group by 1", c.args...)
	if err != nil {
		return fmt.Errorf("count facts: %w", err)
	}
	var at time.Time
	var count int64
	_, err = pgx.ForEachRow(rows, []any{&at, &count}, func() error {
		// A rest of the division belongs to the last one.
		m.Timeline[min(int(at.Sub(f.From)/step), f.Buckets-1)].Count += count
		return nil
	})
	if err != nil {
		return fmt.Errorf("count facts: %w", err)
	}
	return nil
}
