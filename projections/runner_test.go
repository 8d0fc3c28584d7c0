package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// openLedger opens the streams of a server of the test's own.
func openLedger(t testing.TB) *ledger.Ledger {
	t.Helper()
	return openOn(t, testenv.Conn(t, testenv.NATS(t)))
}

func openOn(t testing.TB, nc *nats.Conn) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// writer appends facts and uses of a few keys, and counts what it appended.
type writer struct {
	t        testing.TB
	l        *ledger.Ledger
	expected map[string]uint64
	versions map[string]uint64
	ledger   uint64 // head of each stream, as far as this writer goes
	usage    uint64
	uses     map[string]int64 // by key
	requests int64
}

func newWriter(t testing.TB, l *ledger.Ledger) *writer {
	return &writer{t: t, l: l, expected: map[string]uint64{}, versions: map[string]uint64{}, uses: map[string]int64{}}
}

func (w *writer) fact(owner, key string, data events.Payload) {
	w.t.Helper()
	e := events.New(data, start.Add(time.Duration(w.ledger)*time.Second))
	e.Keyspace, e.Owner, e.Key = "parcelbird", owner, key
	subject := events.Subject(e.Keyspace, e.Owner, e.Key)
	w.versions[subject]++
	e.KeyVersion = w.versions[subject]
	e.Actor = events.Actor{Type: "root_key", ID: "key_root"}
	seq, err := w.l.Append(w.t.Context(), w.expected[subject], e)
	if err != nil {
		w.t.Fatal(err)
	}
	w.expected[subject], w.ledger = seq, seq
}

func (w *writer) keys(n int) {
	w.fact("o1", "", events.OwnerRegistered{Name: "One", Plan: "basic"})
	for i := range n {
		w.fact("o1", fmt.Sprintf("key_%04d", i), events.KeyCreated{Name: fmt.Sprint("key ", i), Environment: "live", Secret: events.Secret{First: "pb_live_", Last: "wxyz"}})
	}
}

func use(key string, at time.Time, status *int) events.Envelope {
	e := events.New(events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: "/v1/parcels", Status: status,
		LatencyMS: new(rand.Int64N(100)), CostMicros: 3, Environment: "live", Secret: "current", Node: "n1"}, at)
	e.Keyspace, e.Owner, e.Key = "parcelbird", "o1", key
	return e
}

func (w *writer) page(list ...events.Envelope) {
	w.t.Helper()
	var bodies [][]byte
	for _, e := range list {
		b, err := events.Encode(e)
		if err != nil {
			w.t.Fatal(err)
		}
		bodies = append(bodies, b)
		if _, ok := e.Data.(events.KeyUsed); ok {
			w.uses[e.Key]++
			w.requests++
		}
	}
	seq, err := w.l.AppendPage(w.t.Context(), "parcelbird", "n1", bodies)
	if err != nil {
		w.t.Fatal(err)
	}
	w.usage = seq
}

// running runs a runner until the test ends or stop is called.
func running(t testing.TB, l *ledger.Ledger, pool *pgxpool.Pool, all ...Projection) (r *Runner, stop func()) {
	if len(all) == 0 {
		all = All()
	}
	r = newRunner(l, pool, slog.New(slog.DiscardHandler), all)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	stop = func() { cancel(); done.Wait() }
	t.Cleanup(stop)
	return r, stop
}

func (w *writer) caughtUp(r *Runner) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	heads := map[string]uint64{events.Ledger: w.ledger, events.Usage: w.usage}
	for _, f := range r.followers {
		if err := r.Wait(ctx, f.p.Name(), heads[f.p.Stream()]); err != nil {
			w.t.Fatalf("wait for %s to reach %d: %v", f.p.Name(), heads[f.p.Stream()], err)
		}
	}
}

func scan[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// Whoever waits for a sequence sees the rows of every record up to it.
func TestFollow(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	r, _ := running(t, l, pool)
	w.keys(20)
	w.fact("o1", "key_0003", events.KeyRevoked{Reason: "leaked"})
	w.page(use("key_0001", start, new(200)), use("key_0001", start, new(404)), use("key_0002", start.Add(time.Hour), nil))
	w.caughtUp(r)
	if n := scan[int64](t, pool, `select count(*) from analytics.keys where status = 'active'`); n != 19 {
		t.Errorf("%d active keys, want 19", n)
	}
	if s := scan[string](t, pool, `select status || ' ' || revoke_reason from analytics.keys where id = 'key_0003'`); s != "revoked leaked" {
		t.Errorf("key_0003 is %q", s)
	}
	if s := scan[string](t, pool, `select sum(requests) || ' ' || sum(successes) || ' ' || sum(errors) || ' ' || sum(unknown) || ' ' || sum(cost_micros) from analytics.usage_minute`); s != "3 1 1 1 9" {
		t.Errorf("usage is %q", s)
	}
	status, err := r.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range status {
		if s.Lag != 0 || s.State != Running || s.Error != "" {
			t.Errorf("status %+v", s)
		}
	}
	positions, err := Positions(t.Context(), pool)
	moved := 0
	for _, p := range All() {
		if p.Stream() == events.Ledger || p.Stream() == events.Usage {
			moved++
		}
	}
	if err != nil || len(positions) != moved {
		t.Fatalf("Positions = %v, %v", positions, err)
	}
	for _, p := range positions {
		records, err := l.At(t.Context(), p.Stream, p.Sequence)
		if err != nil || records[len(records)-1].Event.ID != p.EventID {
			t.Errorf("%+v: the stream has %v there, %v", p, records, err)
		}
	}
}

// A database that was never migrated has no positions, which is no error.
func TestPositionsOfNothing(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if p, err := Positions(t.Context(), pool); err != nil || len(p) != 0 {
		t.Errorf("Positions = %v, %v", p, err)
	}
}

// Runners are cut off at random moments, their connections to PostgreSQL are cut
// under them, and two run at once: in the end the totals are exact, because a
// position never moves without its rows.
func TestExactAfterInterruptions(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	w.keys(30)
	var done sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 2 {
		done.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for ctx.Err() == nil {
				once, stop := context.WithTimeout(ctx, time.Duration(5+random.IntN(60))*time.Millisecond)
				newRunner(l, pool, slog.New(slog.DiscardHandler), All()).Run(once)
				stop()
			}
		})
	}
	done.Go(func() {
		for wait(ctx, 30*time.Millisecond) {
			_, _ = pool.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'keyledger projections' and datname = current_database()`)
		}
	})
	for i := range 300 {
		var list []events.Envelope
		for j := range 1 + i%20 {
			list = append(list, use(fmt.Sprintf("key_%04d", (i+j)%30), start.Add(time.Duration(i)*time.Second), new(200+j%3*100)))
		}
		if i%10 == 0 {
			gap := events.New(events.UsageGap{Node: "n1", Count: 1, Reason: "NATS was away"}, start.Add(time.Duration(i)*time.Second))
			gap.Keyspace = "parcelbird"
			list = append(list, gap)
		}
		w.page(list...)
		if i%3 == 0 {
			w.fact("o1", fmt.Sprintf("key_%04d", i%30), events.KeyUpdated{Name: new(fmt.Sprint("name ", i))})
		}
	}
	cancel()
	done.Wait()
	r, _ := running(t, l, pool)
	w.caughtUp(r)
	if n := scan[int64](t, pool, `select sum(requests)::bigint from analytics.usage_day`); n != w.requests {
		t.Errorf("%d requests in the rows, %d were recorded", n, w.requests)
	}
	for key, n := range w.uses {
		if got := scan[int64](t, pool, `select uses from analytics.last_used where key = $1`, key); got != n {
			t.Errorf("%s: %d uses in the rows, %d were recorded", key, got, n)
		}
	}
	for _, name := range r.Names() {
		result, err := r.Compare(t.Context(), name, nil)
		if err != nil || result.Differences != 0 || result.LiveHash != result.RebuiltHash || result.Rows == 0 && result.Sequence > 0 {
			t.Errorf("compare %s: %+v, %v", name, result, err)
		}
	}
}

// Of two runners on one database one writes; the other takes over when it ends.
func TestStandby(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	w.keys(3)
	first, stop := running(t, l, pool, LedgerCopy{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := first.Wait(ctx, "ledger_v1", w.ledger); err != nil {
		t.Fatal(err)
	}
	second, _ := running(t, l, pool, LedgerCopy{})
	until(t, second.followers[0], func(f *follower) bool { return f.state == Standby })
	w.fact("o1", "key_0001", events.KeyRevoked{})
	if err := second.Wait(ctx, "ledger_v1", w.ledger); err != nil {
		t.Fatalf("a standby does not see what the other wrote: %v", err)
	}
	stop()
	w.fact("o1", "key_0002", events.KeyRevoked{})
	if err := second.Wait(ctx, "ledger_v1", w.ledger); err != nil {
		t.Fatalf("the standby did not take over: %v", err)
	}
}

// Even without the lock, a runner whose position was moved by another writes nothing.
func TestLostPosition(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	w.keys(3)
	r, stop := running(t, l, pool, LedgerCopy{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.Wait(ctx, "ledger_v1", w.ledger); err != nil {
		t.Fatal(err)
	}
	stop()
	conn := connection(t, pool)
	rec, err := l.At(ctx, events.Ledger, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.followers[0].step(ctx, conn, 1, rec); !errors.Is(err, errStandby) {
		t.Errorf("step from a position that was left = %v", err)
	}
}

// until waits for a change of a follower.
func until(t testing.TB, f *follower, holds func(*follower) bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		ok, moved := holds(f), f.moved
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-late:
			t.Fatalf("it did not happen; the state is %s, %v", f.state, f.err)
		}
	}
}

// allergic cannot apply one key's revocation.
type allergic struct{ LedgerCopy }

func (allergic) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	for _, r := range batch {
		if r.Event.Type == "key.revoked" {
			if _, err := tx.Exec(ctx, `select 1/0`); err != nil {
				return err
			}
		}
	}
	return LedgerCopy{}.Apply(ctx, tx, batch)
}

// A record that cannot be applied stops its projection in front of it, says so,
// and stops no other.
func TestPoison(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	w.keys(5)
	before := w.ledger
	w.fact("o1", "key_0001", events.KeyRevoked{})
	w.fact("o1", "key_0002", events.KeyUpdated{Name: new("later")})
	r, stop := running(t, l, pool, Keys{}, allergic{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.Wait(ctx, "keys_v1", w.ledger); err != nil {
		t.Fatal(err)
	}
	err := r.Wait(ctx, "ledger_v1", w.ledger)
	stopped, ok := errors.AsType[*StoppedError](err)
	if !ok || stopped.Sequence != before+1 || stopped.EventID == "" {
		t.Fatalf("wait for a stopped projection = %v", err)
	}
	if n := scan[int64](t, pool, `select sequence from keyledger.positions where name = 'ledger_v1'`); uint64(n) != before {
		t.Errorf("it stands at %d, want just before the poison: %d", n, before)
	}
	until(t, r.followers[1], func(f *follower) bool { return f.state == Stopped })
	for deadline := time.Now().Add(10 * time.Second); ; {
		s, err := r.Status(ctx)
		if err == nil && s[1].State == Stopped && s[1].FailedSequence == before+1 && strings.Contains(s[1].Error, "projections rebuild ledger_v1") && strings.Contains(s[1].Error, "division by zero") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("status %+v, %v", s, err)
		}
	}

	// The way out that it names: a program that can apply the record goes on behind it.
	stop()
	r, _ = running(t, l, pool, Keys{}, LedgerCopy{})
	if err := r.Wait(ctx, "ledger_v1", w.ledger); err != nil {
		t.Error(err)
	}
	if result, err := r.Compare(ctx, "ledger_v1", nil); err != nil || result.Differences != 0 || result.Rows != int64(w.ledger) {
		t.Errorf("%+v, %v", result, err)
	}
	if s, err := r.Status(ctx); err != nil || s[1].State != Running || s[1].Error != "" || s[1].FailedSequence != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A fact from a newer program is never passed over: the projection stops in front
// of it and names the way out.
func TestUnknownVersion(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l, pool := openOn(t, nc), database(t)
	w := newWriter(t, l)
	w.keys(2)
	e, err := events.Encode(events.New(events.KeyDeleted{}, start))
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Replace(string(e), `"version":1`, `"version":2`, 1)
	if _, err := nc.Request("ledger._._._", []byte(body), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r, _ := running(t, l, pool)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, name := range []string{"keys_v1", "ledger_v1"} {
		err := r.Wait(ctx, name, w.ledger+1)
		stopped, ok := errors.AsType[*StoppedError](err)
		if !ok || stopped.Sequence != w.ledger+1 || !strings.Contains(err.Error(), "newer") {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.page(use("key_0001", start, new(200)))
	if err := r.Wait(ctx, "usage_v2", w.usage); err != nil {
		t.Errorf("uses stopped too: %v", err)
	}
}

// A projection that stopped over a row that somebody else put there goes on by
// itself once it was rebuilt, here by the runner of another process.
func TestStoppedGoesOnAfterRebuild(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	r, _ := running(t, l, pool)
	w.keys(3)
	w.caughtUp(r)
	if _, err := pool.Exec(t.Context(), `insert into keyledger.ledger_v1 select 1 + sequence, event_id, type, version, time, keyspace, owner, key, key_version, actor_type, actor_id, subject, void, body
		from keyledger.ledger_v1 order by sequence desc limit 1`); err != nil {
		t.Fatal(err)
	}
	w.fact("o1", "key_0001", events.KeyRevoked{})
	until(t, r.followers[1], func(f *follower) bool { return f.state == Stopped })
	result, err := New(l, pool, nil).Rebuild(t.Context(), "ledger_v1", nil)
	if err != nil || result.Differences != 1 {
		t.Fatalf("%+v, %v", result, err)
	}
	until(t, r.followers[1], func(f *follower) bool { return f.at == w.ledger })
}

// A row edited by hand is counted and replaced, and everything goes on.
func TestRebuild(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	w.keys(50)
	for i := range 30 {
		w.page(use(fmt.Sprintf("key_%04d", i), start, nil), use("key_0000", start, new(200)))
	}
	r, _ := running(t, l, pool)
	w.caughtUp(r)
	for sql, name := range map[string]string{
		`update keyledger.keys_v1 set name = 'mine' where id in ('key_0001', 'key_0002')`: "keys_v1",
		`update keyledger.keys_v1 set reach = '{}' where id = 'key_0003'`:                 "keys_v1", // was null
		`update keyledger.keys_v1 set scopes = resources, resources = scopes || '{x}'`:    "keys_v1",
		`delete from keyledger.ledger_v1 where sequence = 7`:                              "ledger_v1",
		`update keyledger.ledger_v1 set body = body || '\x00' where sequence = 8`:         "ledger_v1",
		`update keyledger.usage_v2 set requests = 99 where key = 'key_0000'`:              "usage_v2",
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		var done, total uint64
		result, err := r.Rebuild(t.Context(), name, func(d, n uint64) { done, total = d, n })
		if err != nil {
			t.Fatal(err)
		}
		if result.Differences == 0 || result.LiveHash == result.RebuiltHash || !result.Switched || done == 0 || done != total {
			t.Errorf("rebuild of a damaged %s: %+v, progress %d of %d", name, result, done, total)
		}
		again, err := r.Compare(t.Context(), name, nil)
		if err != nil || again.Differences != 0 || again.LiveHash != result.RebuiltHash || again.Switched {
			t.Errorf("compare %s after its rebuild: %+v, %v", name, again, err)
		}
	}
	// The live projections go on with the new tables, and the views show them.
	w.fact("o1", "key_0001", events.KeyUpdated{Name: new("yours")})
	w.page(use("key_0000", start, new(200)))
	w.caughtUp(r)
	if s := scan[string](t, pool, `select name from analytics.keys where id = 'key_0001'`); s != "yours" {
		t.Errorf("the view shows %q", s)
	}
	if n := scan[int64](t, pool, `select count(*) from analytics.lifecycle_events`); uint64(n) != w.ledger {
		t.Errorf("the view shows %d facts of %d", n, w.ledger)
	}
	if n := scan[int64](t, pool, `select count(*) from pg_class where relnamespace in (select oid from pg_namespace where nspname in ('keyledger_old', 'keyledger_rebuild'))`); n != 0 {
		t.Errorf("%d relations are left over", n)
	}
	if s := scan[string](t, pool, `select array_to_string(reloptions, ',') from pg_class where oid = 'keyledger.usage_v2'::regclass`); s != "fillfactor=80" {
		t.Errorf("the rebuilt table has options %q", s)
	}
}

// Rebuilding while uses pour in loses none.
func TestRebuildWhileServing(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	w.keys(5)
	r, _ := running(t, l, pool)
	var done sync.WaitGroup
	results := make(chan error, 8)
	for _, name := range []string{"usage_v2", "keys_v1"} {
		done.Go(func() {
			for range 4 {
				result, err := r.Rebuild(t.Context(), name, nil)
				if err == nil && result.Differences != 0 {
					err = fmt.Errorf("%+v", result)
				}
				results <- err
			}
		})
	}
	for i := range 300 {
		w.page(use("key_0001", start.Add(time.Duration(i)*time.Second), new(200)), use("key_0002", start, nil))
		w.fact("o1", "key_0003", events.KeyUpdated{Name: new(fmt.Sprint(i))})
	}
	done.Wait()
	close(results)
	for err := range results {
		if err != nil {
			t.Error(err)
		}
	}
	w.caughtUp(r)
	if n := scan[int64](t, pool, `select sum(requests)::bigint from analytics.usage_hour`); n != w.requests {
		t.Errorf("%d requests in the rows, %d were recorded", n, w.requests)
	}
}

// PostgreSQL crashes, takes back what was written last, and nothing new comes: the
// follower notices and reads it again.
func TestIdleOverACrash(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	w.keys(3)
	r, _ := running(t, l, pool, LedgerCopy{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.Wait(ctx, "ledger_v1", w.ledger); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `with taken as (delete from keyledger.ledger_v1 returning 1)
		update keyledger.positions set sequence = 0, event_id = '' where name = 'ledger_v1'`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'keyledger projections' and datname = current_database()`); err != nil {
		t.Fatal(err)
	}
	for scan[int64](t, pool, `select count(*) from keyledger.ledger_v1`) != int64(w.ledger) {
		if !wait(ctx, 10*time.Millisecond) {
			t.Fatal("what the crash took back is not read again")
		}
	}
}
