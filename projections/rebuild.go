package projections

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyledger/keyledger/events"
)

const (
	rebuildRecords = 100_000 // per transaction: what a key went through soon after it was made is folded before it is written
	nearEnough     = 2_000   // messages behind, before the live projection is held
)

// RebuildResult is how a projection compares with its rebuild at the same
// position. Hashes do not depend on the order of rows; equal hashes mean equal
// rows.
type RebuildResult struct {
	Name        string       `json:"name"`
	Sequence    uint64       `json:"sequence"` // of both
	Rows        int64        `json:"rows"`     // of the rebuilt one, all tables
	LiveHash    string       `json:"live_hash"`
	RebuiltHash string       `json:"rebuilt_hash"`
	Differences int64        `json:"differences"`       // rows that are missing, too many or not the same
	Switched    bool         `json:"switched"`          // the rebuilt tables are live now
	Changed     []ChangedRow `json:"changed,omitempty"` // the first of those rows, by table and key
}

// ChangedRow is a row that is not what the stream says.
type ChangedRow struct {
	Table string `json:"table"`
	Key   string `json:"key"`  // primary key: column=value, with commas between
	What  string `json:"what"` // changed; missing: the stream has it; extra: the stream has not
	// Columns that are not the same, as "column: what it holds, not what the stream
	// gives"; of long or binary values the name alone.
	Columns []string `json:"columns,omitempty"`
}

func (c ChangedRow) String() string {
	switch c.What {
	case rowMissing:
		return fmt.Sprintf("%s: the row %s is missing", c.Table, c.Key)
	case rowExtra:
		return fmt.Sprintf("%s: the row %s is one that the stream does not give", c.Table, c.Key)
	}
	return fmt.Sprintf("%s: the row %s was changed (%s)", c.Table, c.Key, strings.Join(c.Columns, "; "))
}

const (
	rowChanged = "changed"
	rowMissing = "missing"
	rowExtra   = "extra"

	changedRows = 20 // of them are named
	shownValue  = 64 // bytes of a value at most
)

// Rebuild builds a projection from the first record of its stream, or from the
// baseline that was kept when its beginning was pruned, in tables beside the live ones, compares both at the live one's position, and switches.
// Everything is served meanwhile; the live projection is held for the comparison
// alone. progress gets messages read and to be read; it may be nil.
//
// It may run in another process than the one that follows. It fails, and
// changes nothing, when another rebuild of the same projection is running, when
// there is no baseline of what was pruned, or at a record that cannot be applied.
func (r *Runner) Rebuild(ctx context.Context, name string, progress func(done, total uint64)) (RebuildResult, error) {
	return r.rebuild(ctx, name, progress, true)
}

// Compare is [Runner.Rebuild] without the switch.
func (r *Runner) Compare(ctx context.Context, name string, progress func(done, total uint64)) (RebuildResult, error) {
	return r.rebuild(ctx, name, progress, false)
}

// rebuilding is one rebuild on its own connection, where unqualified names are
// the tables beside the live ones.
type rebuilding struct {
	*follower
	conn     *pgx.Conn
	at       place
	later    []string // indexes to make when the tables are full
	progress func(done, total uint64)
}

func (r *Runner) rebuild(ctx context.Context, name string, progress func(done, total uint64), change bool) (RebuildResult, error) {
	f, err := r.follower(name)
	if err != nil {
		return RebuildResult{}, err
	}
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	conn, err := r.connect(ctx, "keyledger_rebuild")
	if err != nil {
		return RebuildResult{}, fmt.Errorf("rebuild %s: %w", name, err)
	}
	defer closeConn(conn)
	b := &rebuilding{follower: f, conn: conn, progress: progress}
	result, err := b.run(ctx, change)
	if err != nil {
		return RebuildResult{}, fmt.Errorf("rebuild %s: %w; the live tables were not changed", name, err)
	}
	return result, nil
}

func (b *rebuilding) run(ctx context.Context, change bool) (result RebuildResult, err error) {
	var free bool
	if err := b.conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtext('keyledger.rebuild'), hashtext($1))`, b.p.Name()).Scan(&free); err != nil {
		return result, err
	}
	if !free {
		return result, errors.New("somebody else is rebuilding it: wait until they are done")
	}
	first, err := b.ledger.First(ctx, b.p.Stream())
	if err != nil {
		return result, err
	}
	if err := b.makeTables(ctx); err != nil {
		return result, err
	}
	defer func() {
		if dropErr := b.dropTables(context.WithoutCancel(ctx)); err == nil {
			err = dropErr
		}
	}()
	if first > 1 {
		if err := b.restoreBaseline(ctx, first); err != nil {
			return result, err
		}
	}
	if err := b.inherit(ctx, b.conn); err != nil {
		return result, err
	}
	if err := b.fill(ctx); err != nil {
		return result, err
	}
	if _, err := b.conn.Exec(ctx, `set maintenance_work_mem = '256MB'`); err != nil {
		return result, err
	}
	for _, index := range b.later {
		if _, err := b.conn.Exec(ctx, index); err != nil {
			return result, err
		}
	}
	// The comparison must not plan with the statistics of empty tables. A small
	// sample does for that; autovacuum takes a larger one after the switch.
	if _, err := b.conn.Exec(ctx, `set default_statistics_target = 10`); err != nil {
		return result, err
	}
	for _, t := range b.p.Tables() {
		if _, err := b.conn.Exec(ctx, `analyze keyledger_rebuild.`+t.Name); err != nil {
			return result, err
		}
	}
	return b.finish(ctx, change)
}

func (b *rebuilding) makeTables(ctx context.Context) error {
	for _, schema := range []string{"keyledger_rebuild", "keyledger_old"} {
		if _, err := b.conn.Exec(ctx, `create schema if not exists `+schema); err != nil && !isUnique(err) {
			return err
		}
	}
	if err := b.dropTables(ctx); err != nil {
		return err
	}
	for _, t := range b.p.Tables() {
		if err := b.makeTable(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// makeTable makes a table like the live one and puts off the indexes that filling
// it does not need.
func (b *rebuilding) makeTable(ctx context.Context, t Table) error {
	statements, later, err := likeLive(ctx, b.conn, "keyledger_rebuild", t)
	if err != nil {
		return err
	}
	b.later = append(b.later, later...)
	for _, s := range statements {
		if _, err := b.conn.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func isUnique(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "23505"
}

func (b *rebuilding) dropTables(ctx context.Context) error {
	for _, t := range b.p.Tables() {
		if _, err := b.conn.Exec(ctx, `drop table if exists keyledger_rebuild.`+t.Name); err != nil {
			return err
		}
	}
	return nil
}

// fill reads up to near the live projection's position, which moves meanwhile.
// It never passes it, so that both can be compared.
func (b *rebuilding) fill(ctx context.Context) error {
	for {
		live, err := livePosition(ctx, b.conn, b.p.Name(), "")
		if err != nil {
			return err
		}
		if live.sequence < b.at.sequence {
			return fmt.Errorf("the projection stands at sequence %d, before its baseline at %d: wait until it has read what is left of %s", live.sequence, b.at.sequence, b.p.Stream())
		}
		if live.sequence <= b.at.sequence+nearEnough && (b.at.sequence > 0 || live.sequence == 0) {
			return nil
		}
		err = b.read(ctx, live.sequence, func(batch []events.Record) error {
			tx, err := b.conn.Begin(ctx)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
			if err := b.p.Apply(ctx, tx, batch); err != nil {
				return err
			}
			return tx.Commit(ctx)
		})
		if err != nil {
			return err
		}
	}
}

// read applies the records after at, up to and with a sequence. While one batch
// is applied the next is read.
func (b *rebuilding) read(ctx context.Context, to uint64, apply func([]events.Record) error) error {
	if to <= b.at.sequence {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	batches := make(chan []events.Record)
	var failed error // set before batches is closed
	reader.Go(func() {
		defer close(batches)
		failed = b.cut(ctx, b.at.sequence+1, to, batches)
	})
	for batch := range batches {
		if err := apply(batch); err != nil {
			return err
		}
		b.at = placeOf(batch[len(batch)-1])
		b.progress(b.at.sequence, to)
	}
	if failed != nil {
		return failed
	}
	if b.at.sequence != to {
		return fmt.Errorf("%s ends at sequence %d, but the projection stands at %d", b.p.Stream(), b.at.sequence, to)
	}
	return nil
}

// cut reads batches of whole messages.
func (b *rebuilding) cut(ctx context.Context, from, to uint64, batches chan<- []events.Record) error {
	batch := make([]events.Record, 0, rebuildRecords)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		select {
		case batches <- batch:
			batch = make([]events.Record, 0, cap(batch))
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for r, err := range b.ledger.Read(ctx, b.p.Stream(), from, to) {
		if err != nil {
			return err
		}
		if len(batch) >= rebuildRecords && r.Sequence != batch[len(batch)-1].Sequence {
			if err := flush(); err != nil {
				return err
			}
		}
		batch = append(batch, r)
	}
	return flush()
}

func livePosition(ctx context.Context, q interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, name, lock string) (place, error) {
	var sequence int64
	var id string
	err := q.QueryRow(ctx, `select sequence, event_id from keyledger.positions where name = $1 `+lock, name).Scan(&sequence, &id)
	if errors.Is(err, pgx.ErrNoRows) {
		return place{}, nil
	}
	return place{uint64(sequence), id}, err
}

// finish holds the live projection at its position, catches up with it, compares
// and switches, in one transaction.
func (b *rebuilding) finish(ctx context.Context, change bool) (result RebuildResult, err error) {
	tx, err := b.conn.Begin(ctx)
	if err != nil {
		return result, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	live, err := livePosition(ctx, tx, b.p.Name(), "for update")
	if err != nil {
		return result, err
	}
	if err := b.read(ctx, live.sequence, func(batch []events.Record) error { return b.p.Apply(ctx, tx, batch) }); err != nil {
		return result, err
	}
	if b.at != live {
		return result, fmt.Errorf("the projection says it has read event %s at sequence %d, but %s has %s there: this database belongs to another ledger, restore the one that goes with it",
			live.eventID, live.sequence, b.p.Stream(), b.at.eventID)
	}
	result = RebuildResult{Name: b.p.Name(), Sequence: live.sequence}
	if err := b.compare(ctx, tx, &result); err != nil {
		return result, err
	}
	if change {
		if err := b.exchange(ctx, tx); err != nil {
			return result, err
		}
		if err := tx.Commit(ctx); err != nil {
			return result, err
		}
		result.Switched = true
	}
	return result, nil
}

func (b *rebuilding) compare(ctx context.Context, tx pgx.Tx, result *RebuildResult) error {
	// A pair of 64-bit hashes per row, added up, does not depend on the order.
	// They are of the values as they are stored: making text of them takes
	// several times as long.
	const hash = `select count(*), coalesce(sum(hash_record_extended(t, 1)), 0)::text, coalesce(sum(hash_record_extended(t, 2)), 0)::text from %s.%s t`
	both := map[string][]string{}
	for _, t := range b.p.Tables() {
		for _, schema := range []string{"keyledger", "keyledger_rebuild"} {
			var rows int64
			var one, two string
			if err := tx.QueryRow(ctx, fmt.Sprintf(hash, schema, t.Name)).Scan(&rows, &one, &two); err != nil {
				return err
			}
			both[schema] = append(both[schema], fmt.Sprintf("%s %d %s %s", t.Name, rows, one, two))
			if schema == "keyledger_rebuild" {
				result.Rows += rows
			}
		}
	}
	result.LiveHash, result.RebuiltHash = digest(both["keyledger"]), digest(both["keyledger_rebuild"])
	for i, t := range b.p.Tables() {
		if both["keyledger"][i] == both["keyledger_rebuild"][i] {
			continue
		}
		var key []string
		if err := tx.QueryRow(ctx, `select array_agg(quote_ident(a.attname)) from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
			where i.indisprimary and i.indrelid = ('keyledger.' || $1)::regclass`, t.Name).Scan(&key); err != nil {
			return err
		}
		var differ int64
		if err := tx.QueryRow(ctx, fmt.Sprintf(`select count(*) from keyledger.%[1]s a full join keyledger_rebuild.%[1]s b using (%[2]s) where a is distinct from b`,
			t.Name, strings.Join(key, ", "))).Scan(&differ); err != nil {
			return err
		}
		result.Differences += differ
		changed, err := changedIn(ctx, tx, t.Name, key, changedRows-len(result.Changed))
		if err != nil {
			return err
		}
		result.Changed = append(result.Changed, changed...)
	}
	return nil
}

// changedIn names the first rows of a table that differ from the rebuilt ones.
func changedIn(ctx context.Context, tx pgx.Tx, table string, key []string, most int) (list []ChangedRow, err error) {
	using := strings.Join(key, ", ")
	rows, err := tx.Query(ctx, fmt.Sprintf(`select concat_ws(', ', %[3]s), to_jsonb(a), to_jsonb(b)
		from keyledger.%[1]s a full join keyledger_rebuild.%[1]s b using (%[2]s) where a is distinct from b order by %[2]s limit %[4]d`,
		table, using, keyText(key), most))
	if err != nil {
		return nil, err
	}
	var name string
	var live, rebuilt map[string]any
	_, err = pgx.ForEachRow(rows, []any{&name, &live, &rebuilt}, func() error {
		c := ChangedRow{Table: table, Key: name, What: rowChanged}
		switch {
		case live == nil:
			c.What = rowMissing
		case rebuilt == nil:
			c.What = rowExtra
		default:
			for _, column := range slices.Sorted(maps.Keys(live)) {
				if !reflect.DeepEqual(live[column], rebuilt[column]) {
					c.Columns = append(c.Columns, differing(column, live[column], rebuilt[column]))
				}
			}
		}
		list = append(list, c)
		live, rebuilt = nil, nil
		return nil
	})
	return list, err
}

// keyText is the SQL of a primary key's columns as column=value, quoted names as they are.
func keyText(key []string) string {
	parts := make([]string, len(key))
	for i, column := range key {
		parts[i] = fmt.Sprintf(`'%s=' || %s::text`, strings.ReplaceAll(column, "'", "''"), column)
	}
	return strings.Join(parts, ", ")
}

func differing(column string, live, rebuilt any) string {
	one, err1 := json.Marshal(live)
	two, err2 := json.Marshal(rebuilt)
	if err1 != nil || err2 != nil || len(one) > shownValue || len(two) > shownValue || bytes.HasPrefix(one, binaryText) || bytes.HasPrefix(two, binaryText) {
		return column
	}
	return fmt.Sprintf("%s: %s, not %s", column, one, two)
}

// binaryText begins a bytea in JSON.
var binaryText = []byte(`"\\x`)

func digest(lines []string) string {
	h := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return hex.EncodeToString(h[:])
}

// How the tables are exchanged under those who read. All locks are taken within
// exchangeWithin, far less than the deadlock_timeout after which PostgreSQL would end
// somebody's query, or given back and tried again after a pause.
const (
	exchangeWithin = 200 * time.Millisecond
	exchangeTries  = 30 * time.Second // altogether
)

// exchange puts the rebuilt tables in the place of the live ones. Whoever reads waits
// for a moment and then reads the rebuilt ones.
func (b *rebuilding) exchange(ctx context.Context, tx pgx.Tx) error {
	// One switch or migration at a time: each replaces views.
	if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtext('keyledger.migrations'))`); err != nil {
		return err
	}
	views, err := b.views(ctx, tx)
	if err != nil {
		return err
	}
	statements := exchanging(b.p.Tables(), views)
	pause := 50 * time.Millisecond
	for until := time.Now().Add(exchangeTries); ; pause = min(2*pause, time.Second) {
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return within(ctx, tx, exchangeWithin, statements) })
		if err == nil {
			break
		}
		pg, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pg.Code != "55P03" && pg.Code != "40P01" {
			return err
		}
		if time.Now().After(until) {
			return fmt.Errorf("somebody's query has held the tables for %s, try again: %w", exchangeTries, err)
		}
		wait(ctx, pause/2+rand.N(pause))
	}
	_, err = tx.Exec(ctx, `update keyledger.positions set rebuilds = rebuilds + 1, state = 'starting', error = '', failed_at = null where name = $1`, b.p.Name())
	return err
}

// view is one that reads a table that is to be exchanged.
type view struct{ Name, Definition string }

// views are bound to tables, not to the names of tables: those that read ours have to
// be bound again. Their definitions name every table with its schema, before the
// exchange, and so mean the rebuilt ones after it.
func (b *rebuilding) views(ctx context.Context, tx pgx.Tx) ([]view, error) {
	var names []string
	for _, t := range b.p.Tables() {
		names = append(names, t.Name)
	}
	rows, err := tx.Query(ctx, `select distinct quote_ident(n.nspname) || '.' || quote_ident(c.relname) as name, pg_get_viewdef(c.oid) as definition
		from pg_depend d join pg_rewrite w on w.oid = d.objid join pg_class c on c.oid = w.ev_class join pg_namespace n on n.oid = c.relnamespace
		where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and c.relkind = 'v'
			and d.refobjid in (select t.oid from pg_class t where t.relnamespace = 'keyledger'::regnamespace and t.relname = any($1))
		order by name`, names)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[view])
}

// exchanging takes locks in the order in which a query over a view does, the view
// before its tables: queries of one view never stand in a circle with it.
func exchanging(tables []Table, views []view) (statements []string) {
	for _, v := range views {
		statements = append(statements, `alter view `+v.Name+` reset (security_barrier)`) // nothing but its lock
	}
	for _, t := range tables {
		statements = append(statements,
			fmt.Sprintf(`alter table keyledger.%s set schema keyledger_old`, t.Name),
			fmt.Sprintf(`alter table keyledger_rebuild.%s set schema keyledger`, t.Name))
	}
	for _, v := range views {
		statements = append(statements, `create or replace view `+v.Name+` as `+v.Definition)
	}
	for _, t := range slices.Backward(tables) {
		statements = append(statements, `drop table keyledger_old.`+t.Name)
	}
	return statements
}

// within runs statements that together wait no longer than d for locks.
func within(ctx context.Context, tx pgx.Tx, d time.Duration, statements []string) error {
	for end := time.Now().Add(d); len(statements) > 0; statements = statements[1:] {
		left := max(time.Until(end).Milliseconds(), 1)
		if _, err := tx.Exec(ctx, fmt.Sprintf(`set local lock_timeout = %d`, left)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, statements[0]); err != nil {
			return err
		}
	}
	return nil
}
