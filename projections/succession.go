package projections

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyledger/keyledger/migrations"
)

// When the tables of a projection have to change, the new ones get a new name and the
// projection too. In an installation that has the one before, that goes on following
// and serving while the new one reads the stream; then, in one transaction, the views
// are made of the new tables and the old ones are dropped. What was pruned of the
// stream comes from the baseline of the one before.

// successor is a projection that replaces another. What is read of either MUST be read
// through views of migrations.Views, which prefer the tables of the one before where
// they are there.
type successor interface {
	Projection
	predecessor() Projection
	// adopt fills the empty tables of the baseline with what the predecessor's
	// tables in the same schema hold. It names no schema.
	adopt(ctx context.Context, tx pgx.Tx) error
}

const succeedPause = time.Second // before it is looked again whether the new one has caught up

// succeed keeps the one before following until f has read as far, in whichever process
// that is, and then switches.
func (f *follower) succeed(ctx context.Context) {
	following, stop := context.WithCancel(ctx)
	var before sync.WaitGroup
	defer before.Wait()
	defer stop()
	for begun := false; ctx.Err() == nil; wait(ctx, succeedPause) {
		there, err := f.isPreceded(ctx)
		switch {
		case err == nil && !there:
			f.before.serves.Store(false)
			stop()
			before.Wait()
			// Whoever took it for a moment's absence has left a row.
			_, _ = f.pool.Exec(ctx, `delete from keyledger.positions where name = $1`, f.before.p.Name())
			return
		case err == nil && !begun:
			begun = true
			f.before.serves.Store(true)
			before.Go(func() { f.before.run(following) })
		case err == nil:
			if err = f.supersede(ctx); err == nil {
				continue
			}
		}
		if err != nil && !errors.Is(err, errBehind) && ctx.Err() == nil {
			f.log.Warn("a projection cannot take over from the one before; it is tried again", "projection", f.p.Name(), "before", f.before.p.Name(), "error", err)
		}
	}
}

// isPreceded says whether the tables of the one before are there.
func (f *follower) isPreceded(ctx context.Context) (there bool, err error) {
	err = f.pool.QueryRow(ctx, `select to_regclass('keyledger.' || $1) is not null`, lastTable(f.before.p)).Scan(&there)
	return there, err
}

// lastTable is the one that says whether a projection is there.
func lastTable(p Projection) string { return p.Tables()[len(p.Tables())-1].Name }

var errBehind = errors.New("it has not read as far as the one before")

// supersede switches, when f has read as far as the one before.
func (f *follower) supersede(ctx context.Context) error {
	old := f.before.p
	tx, err := f.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	// Like a switch of rebuilt tables: the position first, then one at a time.
	served, err := livePosition(ctx, tx, old.Name(), "for update")
	if err != nil {
		return err
	}
	reached, err := livePosition(ctx, tx, f.p.Name(), "")
	if err != nil {
		return err
	}
	if reached.sequence < served.sequence || reached.sequence == 0 {
		return errBehind
	}
	if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtext('keyledger.migrations'))`); err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `select 'alter view ' || quote_ident(schemaname) || '.' || quote_ident(viewname) || ' reset (security_barrier)'
		from pg_views where schemaname in ('analytics', 'keyledger') order by schemaname, viewname`)
	if err != nil {
		return err
	}
	// Locks in the order of a query, see exchange: views, and then tables.
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	statements = append(statements, `create schema if not exists keyledger_old`)
	for _, t := range old.Tables() {
		statements = append(statements, `alter table if exists keyledger.`+t.Name+` set schema keyledger_old`)
	}
	statements = append(statements, migrations.Views)
	for _, t := range old.Tables() {
		statements = append(statements, `drop table if exists keyledger_old.`+t.Name, `drop table if exists keyledger_baseline.`+t.Name)
	}
	if err := within(ctx, tx, exchangeWithin, statements); err != nil {
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "55P03" || pg.Code == "40P01") {
			return fmt.Errorf("somebody's query holds the tables: %w", err)
		}
		return err
	}
	for _, sql := range []string{`delete from keyledger.baselines where name = $1`, `delete from keyledger.positions where name = $1`} {
		if _, err := tx.Exec(ctx, sql, old.Name()); err != nil {
			return err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	f.log.Info("a projection has taken over from the one before", "projection", f.p.Name(), "before", old.Name(), "sequence", reached.sequence)
	return nil
}

// adoptBaseline makes a baseline of that of the one before, where that has one.
func adoptBaseline(ctx context.Context, conn *pgx.Conn, s successor) (at place, found bool, err error) {
	at, found, err = baseline(ctx, conn, s.predecessor().Name())
	if err != nil || !found {
		return at, false, err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return at, false, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := makeBaseline(ctx, tx, s, at); err != nil {
		return at, false, err
	}
	if _, err := tx.Exec(ctx, `set local search_path = keyledger_baseline`); err != nil {
		return at, false, err
	}
	if err := s.adopt(ctx, tx); err != nil {
		return at, false, err
	}
	return at, true, tx.Commit(ctx)
}

func (Usage) predecessor() Projection { return usageV1{} }

// adopt adds the minutes up: usage_v1 has nothing else.
func (Usage) adopt(ctx context.Context, tx pgx.Tx) error {
	for _, pair := range [][2]string{{"usage_v1", "usage_v2"}, {"last_used_v1", "last_used_v2"}, {"outcomes_v1", "outcomes_v2"}} {
		var columns string
		if err := tx.QueryRow(ctx, `select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute where attrelid = $1::regclass and attnum > 0 and not attisdropped`, pair[0]).Scan(&columns); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, fmt.Sprintf(`insert into %[2]s (%[3]s) select %[3]s from %[1]s`, pair[0], pair[1], columns)); err != nil {
			return err
		}
	}
	var clock *time.Time
	if err := tx.QueryRow(ctx, `select coalesce((select max(at) from outcomes_v1), (select max(minute) from usage_v1))`).Scan(&clock); err != nil || clock == nil {
		return err
	}
	f := usageFold{now: usageState{clock: moment(clock)}}
	f.now.fold()
	var b pgx.Batch
	f.queueFold(&b)
	return tx.SendBatch(ctx, &b).Close()
}
