package queries

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/projections"
)

// Kept says from when on usage is kept in each resolution; null: nothing was removed.
// What is older was removed by age, and is still in the coarser ones.
type Kept struct {
	Minute *time.Time `json:"minute"`
	Hour   *time.Time `json:"hour"`
	Day    *time.Time `json:"day"`
}

// rollups is how far minutes are added up into hours and hours into days: what is
// before folded is in the hours, what is before daysFolded in the days. Zero: nothing.
type rollups struct {
	folded, daysFolded time.Time
	kept               Kept
}

// span is what is read of one table: from, inclusive, until to.
type span struct {
	table, at string
	from, to  time.Time
}

const (
	hour = time.Hour
	day  = 24 * time.Hour
)

// beginning and end stand for a time that is not limited.
var (
	beginning = time.Time{}
	end       = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
)

func readRollups(ctx context.Context, tx pgx.Tx) (r rollups, err error) {
	rows, err := tx.Query(ctx, `select nullif(folded, '-infinity'), nullif(days_folded, '-infinity'), minutes_from, hours_from, days_from from keyledger.usage_state`)
	if err != nil {
		return r, err
	}
	var folded, days *time.Time
	_, err = pgx.ForEachRow(rows, []any{&folded, &days, &r.kept.Minute, &r.kept.Hour, &r.kept.Day}, func() error {
		if folded != nil && days != nil {
			r.folded, r.daysFolded = folded.UTC(), days.UTC()
		}
		return nil
	})
	return r, err
}

// spans cuts a time into what days, hours and minutes answer, each part of it once and
// with as few rows as the bucket allows. Both ends are whole minutes. Where the minutes
// at an end were removed, it moves outward to the whole hour, and further to the day.
func (r *rollups) spans(bucket string, from, to time.Time) []span {
	if bucket == "" || bucket == "day" || bucket == "hour" {
		from, to = outward(from, to, r.kept.Minute, hour)
	}
	if bucket == "" || bucket == "day" {
		from, to = outward(from, to, r.kept.Hour, day)
	}
	switch {
	case !from.Before(to):
		return nil
	case bucket == "minute" || r.folded.IsZero():
		return minutes(from, to)
	case bucket == "hour":
		return r.byHours(from, to)
	}
	return r.byDays(from, to)
}

// outward moves ends to whole steps where a part of the step was removed that would be
// needed.
func outward(from, to time.Time, kept *time.Time, step time.Duration) (time.Time, time.Time) {
	if kept == nil || !from.Before(*kept) {
		return from, to
	}
	if to.Truncate(step).Before(*kept) {
		to = ceil(to, step)
	}
	return from.Truncate(step), to
}

func ceil(t time.Time, step time.Duration) time.Time {
	if f := t.Truncate(step); !f.Equal(t) {
		return f.Add(step)
	}
	return t
}

func minutes(from, to time.Time) []span {
	if !from.Before(to) {
		return nil
	}
	return []span{{"keyledger.usage_minutes", "minute", from, to}}
}

// byHours reads the hour that is not whole yet from both tables, if it reaches as far.
func (r *rollups) byHours(from, to time.Time) []span {
	if !from.Before(to) {
		return nil
	}
	first, last := ceil(from, hour), to.Truncate(hour)
	rest := last
	if !to.Before(r.folded) {
		last, rest = ceil(r.folded, hour), r.folded
	}
	if !first.Before(last) || rest.Before(first) {
		return minutes(from, to)
	}
	return append(append(minutes(from, first), span{"keyledger.usage_hours", "hour", first, last}), minutes(rest, to)...)
}

func (r *rollups) byDays(from, to time.Time) []span {
	first, last := ceil(from, day), to.Truncate(day)
	rest := last
	if !to.Before(r.daysFolded) {
		last, rest = ceil(r.daysFolded, day), r.daysFolded
	}
	if !first.Before(last) || rest.Before(first) {
		return r.byHours(from, to)
	}
	return append(append(r.byHours(from, first), span{"keyledger.usage_days", "day", first, last}), r.byHours(rest, to)...)
}

// usageColumns are what is added up, in the tables and here.
var usageColumns = "requests, measured, latency_ms, cost_micros, " + strings.Join(projections.ClassColumns(), ", ")

// sql selects the rows of a span; its times are added to the conditions' arguments.
func (s *span) sql(c *conditions) string {
	c.args = append(c.args, s.from, s.to)
	return fmt.Sprintf(`select %[1]s as at, keyspace, owner, key, method, endpoint, status, code, %[2]s from %[3]s
		where %[1]s >= $%[4]d and %[1]s < $%[5]d and %[6]s`, s.at, usageColumns, s.table, len(c.args)-1, len(c.args), c.where())
}
