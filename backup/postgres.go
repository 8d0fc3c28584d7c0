package backup

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What of PostgreSQL is not built again from the streams: the baselines of what was
// pruned from USAGE, and the checkpoints that were signed.
const (
	ours      = "keyledger"
	baselines = "keyledger_baseline"
)

var name = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

func (t *Table) valid() error {
	known := t.Schema == baselines || t.Schema == ours && (t.Name == "baselines" || t.Name == "log_checkpoints")
	if !known || !name.MatchString(t.Name) || len(t.Columns) == 0 || slices.ContainsFunc(t.Columns, func(c string) bool { return !name.MatchString(c) }) {
		return damaged("its manifest names a table %q.%q that no backup holds", t.Schema, t.Name)
	}
	return nil
}

func (t *Table) ident() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

func (t *Table) columns() string {
	quoted := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		quoted[i] = pgx.Identifier{c}.Sanitize()
	}
	return strings.Join(quoted, ", ")
}

// dump copies the tables as they are at one moment, and says up to which sequence of
// USAGE the least baseline goes; 0: there is none.
func dump(ctx context.Context, pool *pgxpool.Pool, a *archive) ([]Table, uint64, error) {
	tables := []Table{}
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, 0, fmt.Errorf("PostgreSQL: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	rows, err := tx.Query(ctx, `select n.nspname, c.relname, array(
			select attname::text from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped and attgenerated = '' order by attnum)
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.relkind = 'r' and (n.nspname = $1 or n.nspname = $2 and c.relname in ('baselines', 'log_checkpoints'))
		order by 1, 2`, baselines, ours)
	if err != nil {
		return nil, 0, fmt.Errorf("PostgreSQL: %w", err)
	}
	var t Table
	if _, err := pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &t.Columns}, func() error {
		tables = append(tables, Table{Schema: t.Schema, Name: t.Name, Columns: slices.Clone(t.Columns)})
		return nil
	}); err != nil {
		return nil, 0, fmt.Errorf("PostgreSQL: %w", err)
	}
	var least uint64
	for i := range tables {
		t := &tables[i]
		t.Member = "postgres/" + t.Schema + "." + t.Name + ".copy"
		if t.Schema == ours && t.Name == "baselines" {
			var n int64
			if err := tx.QueryRow(ctx, `select coalesce(min(sequence), 0) from keyledger.baselines where stream = 'USAGE'`).Scan(&n); err != nil {
				return nil, 0, fmt.Errorf("PostgreSQL: %w", err)
			}
			least = uint64(n)
		}
		t.Bytes, t.SHA256, err = a.add(t.Member, func(w io.Writer) error {
			tag, err := tx.Conn().PgConn().CopyTo(ctx, w, fmt.Sprintf(`copy %s (%s) to stdout`, t.ident(), t.columns()))
			t.Rows = tag.RowsAffected()
			return err
		})
		if err != nil {
			return nil, 0, fmt.Errorf("PostgreSQL: copy %s: %w", t.ident(), err)
		}
	}
	return tables, least, nil
}

// RestorePostgres puts back what a database, whose schema is that of this program,
// lacks: the baselines where it has none, or one that goes beyond the restored USAGE,
// and the checkpoints that it does not remember. It never takes a checkpoint away.
func (b *File) RestorePostgres(ctx context.Context, pool *pgxpool.Pool) error {
	usage := b.Manifest.Stream("USAGE").Last
	tx, err := pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	for _, schema := range []string{baselines, ours} {
		for i := range b.Manifest.Postgres {
			if t := &b.Manifest.Postgres[i]; t.Schema == schema {
				if err := b.restoreTable(ctx, tx, t, usage); err != nil {
					return fmt.Errorf("PostgreSQL: restore %s: %w", t.ident(), err)
				}
			}
		}
	}
	return tx.Commit(ctx)
}

// adopted are tables of earlier programs, with those that have their columns now: a
// projection that begins makes its baseline of them.
var adopted = map[string]string{"usage_v1": "usage_v2", "last_used_v1": "last_used_v2", "outcomes_v1": "outcomes_v2"}

func (b *File) restoreTable(ctx context.Context, tx pgx.Tx, t *Table, usage uint64) error {
	if t.Schema == baselines {
		var live, keep bool
		if err := tx.QueryRow(ctx, `select to_regclass('keyledger.' || $1) is not null,
				exists (select from keyledger.baselines where sequence > 0 and sequence <= $2) and to_regclass('keyledger_baseline.' || $1) is not null`,
			t.Name, int64(usage)).Scan(&live, &keep); err != nil {
			return err
		}
		like := t.Name
		if now, ok := adopted[t.Name]; ok && !live {
			live, like = true, now
		}
		if !live || keep { // of a projection that this program does not have; or there is one that fits
			return nil
		}
		if _, err := tx.Exec(ctx, fmt.Sprintf(`drop table if exists %[1]s; create table %[1]s (like keyledger.%[2]s including all)`,
			t.ident(), pgx.Identifier{like}.Sanitize())); err != nil {
			return err
		}
		return b.copyIn(ctx, tx, t, t.ident())
	}
	var there bool
	if err := tx.QueryRow(ctx, `select to_regclass('keyledger.' || $1) is not null`, t.Name).Scan(&there); err != nil || !there {
		return err
	}
	if t.Name == "baselines" {
		if _, err := tx.Exec(ctx, `delete from keyledger.baselines where sequence = 0 or sequence > $1`, int64(usage)); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`create temporary table restored on commit drop as select * from %s with no data`, t.ident())); err != nil {
		return err
	}
	if err := b.copyIn(ctx, tx, t, "restored"); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`insert into %[1]s (%[2]s) select %[2]s from restored on conflict do nothing`, t.ident(), t.columns())); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `drop table restored`)
	return err
}

func (b *File) copyIn(ctx context.Context, tx pgx.Tx, t *Table, into string) error {
	r, err := b.open(t.Member)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = tx.Conn().PgConn().CopyFrom(ctx, r, fmt.Sprintf(`copy %s (%s) from stdin`, into, t.columns()))
	return err
}
