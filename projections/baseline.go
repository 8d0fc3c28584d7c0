package projections

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// Before the front of a stream is pruned, each projection of it keeps a baseline:
// its own fold of what goes, in tables of the same names in schema
// keyledger_baseline. A rebuild begins with a copy of it and reads what is left, so
// that it gives the rows of the days that are gone too. What is folded is what is
// pruned, each message once.

// Pruner is a projection with rows that only lead to messages. Prune removes those
// that lead to nothing once the stream begins behind a sequence, from its live tables
// and from its baseline. Like Apply it names no schema, and MUST leave the rows that
// it would leave if it had been called before the later messages were applied.
type Pruner interface {
	Prune(ctx context.Context, tx pgx.Tx, through uint64) error
}

// Eraser is a projection with rows that are made of personal data. Erase removes
// those that were made of what was sealed with any of the data keys, whose ids are
// those of [events.Sealed], and says how many. The keys are destroyed by then.
type Eraser interface {
	Erase(ctx context.Context, tx pgx.Tx, dataKeys []string) (rows int64, err error)
}

// Keep takes the baselines of a stream's projections up to a sequence, so that it
// may be pruned through there. It fails where a projection has not read as far. It
// may be interrupted and repeated: a baseline is never behind what it was, and one
// that is ahead of the pruning harms nothing. progress gets messages read and to be
// read, one projection after the other; it may be nil.
func (r *Runner) Keep(ctx context.Context, stream string, through uint64, progress func(done, total uint64)) error {
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	for _, f := range r.followers {
		if f.p.Stream() != stream {
			continue
		}
		if err := f.keep(ctx, through, progress); err != nil {
			return fmt.Errorf("keep a baseline of %s: %w", f.p.Name(), err)
		}
	}
	return nil
}

func (f *follower) keep(ctx context.Context, through uint64, progress func(done, total uint64)) error {
	conn, err := f.connect(ctx, "keyledger_baseline")
	if err != nil {
		return err
	}
	defer closeConn(conn)
	// What is pruned next rests on it: a crash of PostgreSQL must not take it back.
	if _, err := conn.Exec(ctx, `set synchronous_commit = on`); err != nil {
		return err
	}
	b := &rebuilding{follower: f, conn: conn, progress: progress}
	if err := b.exclude(ctx); err != nil {
		return err
	}
	live, err := livePosition(ctx, conn, f.p.Name(), "")
	if err != nil {
		return err
	}
	if live.sequence < through {
		return fmt.Errorf("the projection has read %s up to sequence %d, and %d was to be pruned: `keyledger projections status` says what holds it up", f.p.Stream(), live.sequence, through)
	}
	at, found, err := baseline(ctx, conn, f.p.Name())
	if err != nil {
		return err
	}
	if !found {
		first, err := f.ledger.First(ctx, f.p.Stream())
		if err != nil {
			return err
		}
		if at, err = beginBaseline(ctx, conn, f.p, first-1); err != nil {
			return err
		}
	}
	if err := f.inherit(ctx, conn); err != nil {
		return err
	}
	b.at = at
	return b.read(ctx, through, func(batch []events.Record) error {
		to := placeOf(batch[len(batch)-1])
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
		tag, err := tx.Exec(ctx, `update keyledger.baselines set sequence = $3, event_id = $4, kept_at = now() where name = $1 and sequence = $2`,
			f.p.Name(), int64(b.at.sequence), int64(to.sequence), to.eventID)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errors.New("somebody else has moved it")
		}
		if err := f.p.Apply(ctx, tx, batch); err != nil {
			return err
		}
		return tx.Commit(ctx)
	})
}

// baseline is where a projection's baseline stands.
func baseline(ctx context.Context, q interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, name string) (at place, found bool, err error) {
	var sequence int64
	err = q.QueryRow(ctx, `select sequence, event_id from keyledger.baselines where name = $1`, name).Scan(&sequence, &at.eventID)
	if errors.Is(err, pgx.ErrNoRows) {
		return at, false, nil
	}
	at.sequence = uint64(sequence)
	return at, err == nil, err
}

// beginBaseline makes a baseline without rows. With a sequence above 0 it says that
// what the stream held before is known to nobody here.
func beginBaseline(ctx context.Context, conn *pgx.Conn, p Projection, sequence uint64) (place, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return place{}, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	at := place{sequence: sequence}
	if err := makeBaseline(ctx, tx, p, at); err != nil {
		return place{}, err
	}
	return at, tx.Commit(ctx)
}

// makeBaseline makes empty tables for what a projection has read up to a place.
func makeBaseline(ctx context.Context, tx pgx.Tx, p Projection, at place) error {
	for _, t := range p.Tables() {
		statements, _, err := likeLive(ctx, tx, "keyledger_baseline", t)
		if err != nil {
			return err
		}
		for _, s := range append([]string{`drop table if exists keyledger_baseline.` + t.Name}, statements...) {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
	}
	_, err := tx.Exec(ctx, `insert into keyledger.baselines (name, stream, sequence, event_id) values ($1, $2, $3, $4)`, p.Name(), p.Stream(), int64(at.sequence), at.eventID)
	return err
}

// restoreBaseline fills the empty tables beside the live ones with the baseline, of
// a stream that begins at first.
func (b *rebuilding) restoreBaseline(ctx context.Context, first uint64) error {
	at, found, err := baseline(ctx, b.conn, b.p.Name())
	if err != nil {
		return err
	}
	if !found || at.sequence+1 < first {
		return fmt.Errorf("%s begins at sequence %d, and there is no baseline of what was pruned before: its rows cannot be built again", b.p.Stream(), first)
	}
	for _, t := range b.p.Tables() {
		if _, err := b.conn.Exec(ctx, fmt.Sprintf(`insert into keyledger_rebuild.%[1]s select * from keyledger_baseline.%[1]s`, t.Name)); err != nil {
			return err
		}
	}
	b.at = at
	return nil
}

// Pruned removes the rows that lead to what was pruned through a sequence.
func (r *Runner) Pruned(ctx context.Context, stream string, through uint64) error {
	for _, f := range r.followers {
		p, ok := f.p.(Pruner)
		if !ok || f.p.Stream() != stream {
			continue
		}
		err := f.everywhere(ctx, func(tx pgx.Tx) error { return p.Prune(ctx, tx, through) })
		if err != nil {
			return fmt.Errorf("remove the rows of %s that lead to what was pruned: %w", f.p.Name(), err)
		}
	}
	return nil
}

// Erase removes what was sealed with data keys, which are destroyed by now, from
// all tables that hold anything of it, and says how many rows that were. A rebuild
// under way is waited for: it may have read more.
func (r *Runner) Erase(ctx context.Context, dataKeys []string) (rows int64, err error) {
	for _, f := range r.followers {
		p, ok := f.p.(Eraser)
		if !ok {
			continue
		}
		err := f.everywhere(ctx, func(tx pgx.Tx) error {
			n, err := p.Erase(ctx, tx, dataKeys)
			rows += n
			return err
		})
		if err != nil {
			return rows, fmt.Errorf("remove what was erased from %s: %w", f.p.Name(), err)
		}
	}
	return rows, nil
}

// everywhere runs do with the live tables, while nothing is applied to them, and
// with the baseline.
func (f *follower) everywhere(ctx context.Context, do func(pgx.Tx) error) error {
	for _, schema := range []string{"keyledger", "keyledger_baseline"} {
		if err := f.within(ctx, schema, do); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) within(ctx context.Context, schema string, do func(pgx.Tx) error) error {
	conn, err := f.connect(ctx, schema)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	if _, err := conn.Exec(ctx, `set synchronous_commit = on`); err != nil {
		return err
	}
	b := &rebuilding{follower: f, conn: conn}
	if err := b.exclude(ctx); err != nil {
		return err
	}
	if schema == "keyledger_baseline" {
		if _, found, err := baseline(ctx, conn, f.p.Name()); err != nil || !found {
			return err
		}
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := livePosition(ctx, tx, f.p.Name(), "for update"); err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// exclude waits until no rebuild of the projection is under way, and keeps others
// from beginning one until the connection is closed.
func (b *rebuilding) exclude(ctx context.Context) error {
	_, err := b.conn.Exec(ctx, `select pg_advisory_lock(hashtext('keyledger.rebuild'), hashtext($1))`, b.p.Name())
	return err
}

// likeLive are the statements that make a table like the live one in another schema,
// with what LIKE leaves out; later are those of indexes that only readers need.
func likeLive(ctx context.Context, q interface {
	QueryRow(context.Context, string, ...any) pgx.Row
	Query(context.Context, string, ...any) (pgx.Rows, error)
}, schema string, t Table) (statements, later []string, err error) {
	var options []string
	var comment *string
	if err := q.QueryRow(ctx, `select coalesce(reloptions, '{}'), obj_description(oid, 'pg_class') from pg_class where oid = ('keyledger.' || $1)::regclass`, t.Name).Scan(&options, &comment); err != nil {
		return nil, nil, err
	}
	statements = []string{fmt.Sprintf(`create table %[2]s.%[1]s (like keyledger.%[1]s including all excluding indexes)`, t.Name, schema)}
	if len(options) > 0 {
		statements = append(statements, fmt.Sprintf(`alter table %s.%s set (%s)`, schema, t.Name, strings.Join(options, ", ")))
	}
	if comment != nil {
		statements = append(statements, fmt.Sprintf(`comment on table %s.%s is '%s'`, schema, t.Name, strings.ReplaceAll(*comment, "'", "''")))
	}
	rows, err := q.Query(ctx, `select i.indisprimary, case when i.indisprimary
			then 'alter table ' || $2 || '.' || $1 || ' add constraint ' || quote_ident(c.conname) || ' ' || pg_get_constraintdef(c.oid)
			else replace(pg_get_indexdef(i.indexrelid), ' ON keyledger.', ' ON ' || $2 || '.') end
		from pg_index i left join pg_constraint c on c.conindid = i.indexrelid where i.indrelid = ('keyledger.' || $1)::regclass`, t.Name, schema)
	if err != nil {
		return nil, nil, err
	}
	var primary bool
	var definition string
	_, err = pgx.ForEachRow(rows, []any{&primary, &definition}, func() error {
		if primary || !t.ByKeyAlone {
			statements = append(statements, definition)
		} else {
			later = append(later, definition)
		}
		return nil
	})
	return statements, later, err
}
