package inspect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
)

// models compares every read model with what the stream gives.
func (r *run) models(ctx context.Context, js jetstream.JetStream) error {
	var more []projections.Projection
	var without error
	if r.Master != nil {
		_, without = js.KeyValue(ctx, seal.Bucket) // opening the keys would make it
	} else {
		without = errors.New("the master key is needed for that")
	}
	if without == nil {
		var keys *seal.Keys
		if keys, without = seal.Open(ctx, js, *r.Master, max(r.Replicas, 1)); without == nil {
			defer keys.Close()
			more = append(more, projections.Addresses{Keys: keys})
		}
	}
	all := append(projections.All(), more...)
	runner := projections.New(r.ledger, r.Pool, r.Log, more...)
	for _, p := range all {
		result, err := runner.Compare(ctx, p.Name(), func(done, total uint64) { r.Progress(p.Name(), int64(done), int64(total)) })
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && r.doubts[p.Stream()]:
			r.line(Unknown, p.Name(), "", nil, "not compared, because %s is in doubt: %v", p.Stream(), err)
		case err != nil:
			r.line(Fail, p.Name(), Row, nil, "it cannot be compared: %v", err)
		case result.Differences > 0:
			named := named(&result)
			if r.doubts[p.Stream()] {
				r.line(Unknown, p.Name(), "", nil, "%d rows are not what %s gives up to sequence %d; but %s is in doubt, so that the rows may be what is right. %s", result.Differences, p.Stream(), result.Sequence, p.Stream(), named)
			} else {
				r.line(Fail, p.Name(), Row, nil, "%d rows are not what %s gives up to sequence %d. %s. `keyledger projections rebuild %s` mends them", result.Differences, p.Stream(), result.Sequence, named, p.Name())
			}
		default:
			r.line(Pass, p.Name(), "", nil, "%d rows, as %s gives them up to sequence %d", result.Rows, p.Stream(), result.Sequence)
		}
	}
	if without != nil {
		r.line(Unknown, "addresses_v1", "", nil, "not compared: %v", without)
	}
	return r.schema(ctx)
}

// namedRows are shown in a line.
const namedRows = 5

// named are the first rows that differ.
func named(result *projections.RebuildResult) string {
	var rows []string
	for _, c := range result.Changed[:min(len(result.Changed), namedRows)] {
		rows = append(rows, c.String())
	}
	if n := result.Differences - int64(len(rows)); n > 0 {
		rows = append(rows, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(rows, "; ")
}

// definitions are what decides what a reader of the tables gets to see: views and
// functions of people and dashboards, and triggers, rules and policies on tables, of
// which there are none.
const definitions = `
	select 'view ' || quote_ident(schemaname) || '.' || quote_ident(viewname), definition from pg_views where schemaname in ('keyledger', 'analytics')
	union all select 'function ' || p.oid::regprocedure::text, pg_get_functiondef(p.oid) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'analytics' and p.prokind = 'f'
	union all select 'trigger ' || quote_ident(tgname) || ' on ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname), pg_get_triggerdef(t.oid) from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace where n.nspname in ('keyledger', 'analytics') and not tgisinternal
	union all select 'rule ' || quote_ident(rulename) || ' on ' || quote_ident(schemaname) || '.' || quote_ident(tablename), definition from pg_rules where schemaname in ('keyledger', 'analytics') and rulename <> '_RETURN'
	union all select 'policy ' || quote_ident(policyname) || ' on ' || quote_ident(schemaname) || '.' || quote_ident(tablename), coalesce(qual, '') from pg_policies where schemaname in ('keyledger', 'analytics')`

// schema looks whether views say what this program's say, by making them again in a
// transaction that is taken back.
func (r *run) schema(ctx context.Context) error {
	const subject = "views"
	tx, err := r.Pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtext('keyledger.migrations'))`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `set local lock_timeout = '10s'`); err != nil {
		return err
	}
	before, err := read(ctx, tx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, migrations.Views); err != nil {
		r.line(Fail, subject, Row, nil, "the views cannot be made again beside what is there, so they are not this program's: %v", err)
		return nil
	}
	after, err := read(ctx, tx)
	if err != nil {
		return err
	}
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		switch kind, _, _ := strings.Cut(name, " "); {
		case kind != "view" && kind != "function":
			wrong = append(wrong, name+" is not this program's")
		case before[name] != after[name]:
			wrong = append(wrong, name+" is defined otherwise than this program does")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if _, ok := before[name]; !ok {
			wrong = append(wrong, name+" is missing")
		}
	}
	if len(wrong) > 0 {
		r.line(Fail, subject, Row, nil, "%s. A start of the service makes views and functions anew; drop the rest", strings.Join(wrong, "; "))
		return nil
	}
	r.line(Pass, subject, "", nil, "%d views and functions of schema analytics, as this program defines them; no triggers, rules or policies", len(before))
	return nil
}

func read(ctx context.Context, tx pgx.Tx) (map[string]string, error) {
	rows, err := tx.Query(ctx, definitions)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	var name, definition string
	_, err = pgx.ForEachRow(rows, []any{&name, &definition}, func() error {
		all[name] = definition
		return nil
	})
	return all, err
}
