package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyledger/keyledger/events"
)

// Until says how much of usage is removed by age: minutes, hours and days before those
// times. Zero: nothing. What is removed of a resolution is still in the coarser ones;
// so finer ones are removed at least as far.
type Until struct{ Minutes, Hours, Days time.Time }

// forgetRows is how many rows one transaction removes, or those of one minute, hour or
// day where they are more.
const forgetRows = 20_000

// Forget removes usage by age, from the live tables and from the baseline, in
// transactions of some 20,000 rows each, so that the projection is never held for long.
// The rebuild of what is left gives the same rows: how far was removed is a row too. It
// does nothing while a rebuild is under way, and may be interrupted and repeated. What
// was removed does not come back when more is to be kept later, but by a rebuild from a
// stream that still has it.
func (r *Runner) Forget(ctx context.Context, until Until) (rows int64, err error) {
	for _, f := range r.followers {
		u, ok := f.p.(Usage)
		if !ok {
			continue
		}
		n, err := f.forget(ctx, u, until)
		rows += n
		if err != nil {
			return rows, fmt.Errorf("remove old rows of %s: %w", u.Name(), err)
		}
	}
	return rows, nil
}

func (f *follower) forget(ctx context.Context, u Usage, until Until) (rows int64, err error) {
	conn, err := f.connect(ctx, "keyledger")
	if err != nil {
		return 0, err
	}
	defer closeConn(conn)
	var free bool
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtext('keyledger.rebuild'), hashtext($1))`, u.Name()).Scan(&free); err != nil || !free {
		return 0, err
	}
	var kept bool
	if err := conn.QueryRow(ctx, `select exists (select from keyledger.baselines where name = $1)`, u.Name()).Scan(&kept); err != nil {
		return 0, err
	}
	rows, err = f.forgetIn(ctx, conn, u, until)
	if err != nil || !kept {
		return rows, err
	}
	if _, err := conn.Exec(ctx, `set search_path = keyledger_baseline`); err != nil {
		return rows, err
	}
	n, err := f.forgetIn(ctx, conn, u, until)
	return rows + n, err
}

// forgetIn removes rows of the tables that conn names, step by step.
func (f *follower) forgetIn(ctx context.Context, conn *pgx.Conn, u Usage, until Until) (rows int64, err error) {
	for done := false; !done; {
		err := func() error {
			tx, err := conn.Begin(ctx)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
			if _, err := livePosition(ctx, tx, u.Name(), "for update"); err != nil {
				return err
			}
			var n int64
			if n, done, err = u.forget(ctx, tx, until); err != nil {
				return err
			}
			rows += n
			return tx.Commit(ctx)
		}()
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// inherit removes from the tables that conn names what was removed from the live ones.
func (f *follower) inherit(ctx context.Context, conn *pgx.Conn) error {
	u, ok := f.p.(Usage)
	if !ok {
		return nil
	}
	var minutes, hours, days *time.Time
	err := conn.QueryRow(ctx, `select minutes_from, hours_from, days_from from keyledger.usage_state_v2`).Scan(&minutes, &hours, &days)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.forgetIn(ctx, conn, u, Until{moment(minutes).Time(), moment(hours).Time(), moment(days).Time()})
	return err
}

// forget takes one step, and says whether it was the last.
func (Usage) forget(ctx context.Context, tx pgx.Tx, until Until) (rows int64, done bool, err error) {
	until.Hours, until.Days = until.Hours.Truncate(time.Hour), until.Days.Truncate(24*time.Hour)
	if until.Hours.Before(until.Days) {
		until.Hours = until.Days
	}
	if until.Minutes.Before(until.Hours) {
		until.Minutes = until.Hours
	}
	var f usageFold
	found, err := tx.Query(ctx, `select clock, folded, days_folded, minutes_from, hours_from, days_from from usage_state_v2`)
	if err != nil {
		return 0, false, err
	}
	if err := f.was.scan(found); err != nil {
		return 0, false, err
	}
	for _, t := range []struct {
		table, at string
		unit      time.Duration
		until     time.Time
		from      func(*usageState) *events.Time
	}{
		{"usage_v2", "minute", time.Minute, until.Minutes, func(s *usageState) *events.Time { return &s.minutesFrom }},
		{"usage_hours_v2", "hour", time.Hour, until.Hours, func(s *usageState) *events.Time { return &s.hoursFrom }},
		{"usage_days_v2", "day", 24 * time.Hour, until.Days, func(s *usageState) *events.Time { return &s.daysFrom }},
	} {
		to := events.At(t.until.Truncate(t.unit))
		f.now = f.was
		from := t.from(&f.now)
		if to <= *from {
			continue
		}
		// As many rows as one step takes, in whole units.
		var first, last *time.Time
		err := tx.QueryRow(ctx, fmt.Sprintf(`select (select min(%[1]s) from %[2]s where %[1]s < $1), (select %[1]s from %[2]s where %[1]s < $1 order by %[1]s offset %[3]d limit 1)`,
			t.at, t.table, forgetRows), to.Time()).Scan(&first, &last)
		if err != nil {
			return 0, false, err
		}
		if last != nil {
			if to = events.At(*last); !last.After(*first) {
				to = events.At(last.Add(t.unit))
			}
		}
		*from = to
		f.now.fold()
		var b pgx.Batch
		f.queueFold(&b)
		b.Queue(fmt.Sprintf(`delete from %[2]s where %[1]s < $1`, t.at, t.table), to.Time()).Exec(func(tag pgconn.CommandTag) error {
			rows = tag.RowsAffected()
			return nil
		})
		err = tx.SendBatch(ctx, &b).Close()
		return rows, false, err
	}
	return 0, true, nil
}
