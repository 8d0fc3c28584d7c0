package projections

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

// pruned records a pruning and purges, as the retention command does.
func pruned(t *testing.T, l *ledger.Ledger, through uint64) {
	t.Helper()
	if _, err := l.AppendOps(t.Context(), events.New(events.UsagePruned{Stream: events.Usage, Through: through}, time.Now())); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Prune(t.Context(), through); err != nil {
		t.Fatal(err)
	}
}

func rebuilt(t *testing.T, r *Runner) RebuildResult {
	t.Helper()
	result, err := r.Rebuild(t.Context(), "usage_v2", nil)
	if err != nil {
		t.Fatal(err)
	}
	if result.Differences != 0 || result.LiveHash != result.RebuiltHash || !result.Switched {
		t.Errorf("the rebuild differs: %+v", result)
	}
	return result
}

// After its beginning was pruned, a projection is rebuilt to the same rows: what is
// gone comes from the baseline, also an outcome whose use is gone.
func TestRebuildOfPruned(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	w.keys(3)
	waiting := use("key_0001", start, nil)
	w.page(waiting, use("key_0000", start, new(200)))
	for i := range 9 {
		w.page(use("key_0000", start.Add(time.Duration(i)*time.Hour), new(200)))
	}
	r, stop := running(t, l, pool)
	w.caughtUp(r)
	if err := r.Keep(t.Context(), events.Usage, 11, nil); err == nil {
		t.Error("a baseline is kept of what nobody has read")
	}
	for _, through := range []uint64{4, 7} {
		var done, total uint64
		if err := r.Keep(t.Context(), events.Usage, through, func(d, n uint64) { done, total = d, n }); err != nil {
			t.Fatal(err)
		}
		if done != through || total != through {
			t.Errorf("progress %d of %d", done, total)
		}
		if through == 4 { // ahead of the pruning: no harm
			rebuilt(t, r)
		}
		pruned(t, l, through)
		rebuilt(t, r)
	}
	w.page(events.Envelope(report(waiting, start.Add(time.Hour))))
	w.caughtUp(r)
	rebuilt(t, r)
	if n := scan[int64](t, pool, `select sum(requests)::bigint from keyledger.usage_v2 where key = 'key_0001' and status = 201`); n != 1 {
		t.Errorf("%d uses have the outcome that came after their pruning", n)
	}
	if n := scan[int64](t, pool, `select sum(uses)::bigint from keyledger.last_used_v2`); n != w.requests {
		t.Errorf("%d uses are counted of %d", n, w.requests)
	}

	// A database that was lost but for its baseline goes on from that.
	stop()
	for _, sql := range []string{`truncate keyledger.usage_v2, keyledger.usage_hours_v2, keyledger.usage_days_v2, keyledger.usage_state_v2, keyledger.last_used_v2, keyledger.outcomes_v2`, `delete from keyledger.positions where name = 'usage_v2'`} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	r, stop = running(t, l, pool)
	w.caughtUp(r)
	rebuilt(t, r)
	if n := scan[int64](t, pool, `select sum(uses)::bigint from keyledger.last_used_v2`); n != w.requests {
		t.Errorf("%d uses are counted of %d", n, w.requests)
	}
	stop()

	// One that was lost whole counts what is left, and its rebuild does, too. (A tree
	// without its beginning is none: it stops.)
	fresh := database(t)
	r, _ = running(t, l, fresh, Usage{})
	w.caughtUp(r)
	rebuilt(t, r)
	if n := scan[int64](t, fresh, `select sum(uses)::bigint from keyledger.last_used_v2`); n != 3 {
		t.Errorf("%d uses are counted of the 3 that are left", n)
	}

	// Without its baseline nothing is rebuilt, and nothing changed.
	if _, err := fresh.Exec(t.Context(), `delete from keyledger.baselines`); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Rebuild(t.Context(), "usage_v2", nil); err == nil || !strings.Contains(err.Error(), "no baseline") {
		t.Errorf("without a baseline: %v", err)
	}
}

func report(of events.Envelope, at time.Time) events.Envelope {
	e := events.New(events.KeyUseReported{Decision: of.Data.(events.KeyUsed).Decision, Status: 201, LatencyMS: 5}, at)
	e.Keyspace, e.Owner, e.Key = of.Keyspace, of.Owner, of.Key
	return e
}

// seen is a projection with a row per message and data key: it leads to messages,
// and is made of personal data.
type seen struct{}

func (seen) Name() string    { return "seen_v1" }
func (seen) Stream() string  { return events.Usage }
func (seen) Tables() []Table { return []Table{{"seen_v1", true}} }

func (seen) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	for _, r := range batch {
		if _, err := tx.Exec(ctx, `insert into seen_v1 values ($1, $2) on conflict do nothing`, int64(r.Sequence), r.Event.Keyspace+"."+r.Event.Owner+"."+r.Event.Time.Time().UTC().Format("2006-01")); err != nil {
			return err
		}
	}
	return nil
}

func (seen) Prune(ctx context.Context, tx pgx.Tx, through uint64) error {
	_, err := tx.Exec(ctx, `delete from seen_v1 where sequence <= $1`, int64(through))
	return err
}

func (seen) Erase(ctx context.Context, tx pgx.Tx, dataKeys []string) (int64, error) {
	tag, err := tx.Exec(ctx, `delete from seen_v1 where data_key = any($1)`, dataKeys)
	return tag.RowsAffected(), err
}

// Rows that lead to what was pruned go, and so do those made of what was erased,
// from the baseline too.
func TestPrunedAndErased(t *testing.T) {
	l, pool := openLedger(t), database(t)
	if _, err := pool.Exec(t.Context(), `create table keyledger.seen_v1 (sequence bigint, data_key text, primary key (sequence, data_key))`); err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, l)
	month := func(n int) time.Time { return time.Date(2026, time.Month(n), 15, 0, 0, 0, 0, time.UTC) }
	for i := range 12 {
		w.page(use("key_a", month(1+i%3), new(200)))
	}
	r, _ := running(t, l, pool, seen{})
	if err := r.Wait(t.Context(), "seen_v1", w.usage); err != nil {
		t.Fatal(err)
	}
	if err := r.Keep(t.Context(), events.Usage, 8, nil); err != nil {
		t.Fatal(err)
	}
	pruned(t, l, 5) // the baseline is ahead
	if err := r.Pruned(t.Context(), events.Usage, 5); err != nil {
		t.Fatal(err)
	}
	check := func(live, kept int64) {
		t.Helper()
		if n := scan[int64](t, pool, `select count(*) from keyledger.seen_v1`); n != live {
			t.Errorf("%d live rows, want %d", n, live)
		}
		if n := scan[int64](t, pool, `select count(*) from keyledger_baseline.seen_v1`); n != kept {
			t.Errorf("%d rows in the baseline, want %d", n, kept)
		}
		result, err := r.Compare(t.Context(), "seen_v1", nil)
		if err != nil || result.Differences != 0 && live == 7 {
			t.Errorf("compared: %+v, %v", result, err)
		}
	}
	check(7, 3)
	rows, err := r.Erase(t.Context(), []string{"parcelbird.o1.2026-02", "other.o1.2026-01"})
	if err != nil || rows != 3 { // 8 and 11, and 8 in the baseline
		t.Errorf("%d rows are erased, %v", rows, err)
	}
	check(5, 2)
}
