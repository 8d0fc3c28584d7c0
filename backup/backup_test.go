package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/backup"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
)

// installation is a ledger with streams, data keys and somebody who writes.
type installation struct {
	conn *nats.Conn
	l    *ledger.Ledger
	js   jetstream.JetStream
	keys atomic.Int64 // facts acknowledged
	used atomic.Int64 // pages acknowledged
}

func install(t *testing.T) *installation {
	t.Helper()
	return installOn(t, testenv.Conn(t, testenv.NATS(t)), 1)
}

func installOn(t *testing.T, conn *nats.Conn, replicas int) *installation {
	t.Helper()
	l, err := ledger.Open(t.Context(), conn, ledger.Options{AllowUnverifiedSync: true, Replicas: replicas})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := seal.Open(t.Context(), js, seal.Master{1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sealer.Close)
	if _, err := sealer.Seal(t.Context(), "parcelbird", "org_1", time.Now(), "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	return &installation{conn: conn, l: l, js: js}
}

// act records one fact of a key, carries it to FEED, and uses the key.
func (i *installation) act(ctx context.Context) error {
	n := i.keys.Load() + 1
	e := events.New(events.KeyRevoked{Reason: strings.Repeat("because ", 40)}, time.Now())
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "org_1", fmt.Sprintf("key_%d", n), 1
	sequence, err := i.l.Append(ctx, 0, e)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: "feed.key.revoked.parcelbird.org_1." + e.Key, Data: fmt.Appendf(nil, `{"id":%q,"type":"key.revoked","version":1,"data":{}}`, e.ID),
		Header: nats.Header{"Ledger-Sequence": {fmt.Sprint(sequence)}, "Ledger-Type": {"key.revoked"}}}
	if _, err := i.js.PublishMsg(ctx, m); err != nil {
		return err
	}
	u := events.New(events.KeyUsed{Decision: "dec_1", Node: "node_1", LedgerSequence: sequence}, time.Now())
	u.Keyspace, u.Owner, u.Key = e.Keyspace, e.Owner, e.Key
	body, err := events.Encode(u)
	if err != nil {
		return err
	}
	if _, err := i.l.AppendPage(ctx, "parcelbird", "node_1", [][]byte{body, body}); err != nil {
		return err
	}
	i.used.Add(1)
	i.keys.Store(n)
	return nil
}

func (i *installation) load(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			if err := i.act(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

func (i *installation) do(t *testing.T, n int) {
	t.Helper()
	for range n {
		if err := i.act(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func opened(t *testing.T, path string) *backup.File {
	t.Helper()
	f, err := backup.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// A backup that is made while others write holds all that was acknowledged before it
// began, is consistent in itself, and comes back exactly: sequences, times, headers.
func TestBackupUnderLoad(t *testing.T) {
	i := install(t)
	i.do(t, 200)
	// A subscriber's place in FEED is part of it, also when it is further than the copy.
	consumer, err := i.js.CreateConsumer(t.Context(), events.Feed, jetstream.ConsumerConfig{Durable: "subscriber", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	reading, err := consumer.Consume(func(m jetstream.Msg) { _ = m.Ack() })
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Stop()
	stop := i.load(t)
	defer stop()
	for round := range 3 {
		before, used := i.keys.Load(), i.used.Load()
		path := filepath.Join(t.TempDir(), "backup.zip")
		m, err := backup.Write(t.Context(), path, backup.Options{Conn: i.conn, Program: "test"})
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file has mode %v, %v", info.Mode(), err)
		}
		left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
		if err != nil || len(left) > 0 {
			t.Errorf("it leaves %v behind, %v", left, err)
		}
		if last := m.Stream(events.Ledger).Last; last < uint64(before) {
			t.Errorf("LEDGER ends at %d in the backup, %d was acknowledged before it began", last, before)
		}
		if last := m.Stream(events.Usage).Last; last < uint64(used) {
			t.Errorf("USAGE ends at %d in the backup, %d was acknowledged before it began", last, used)
		}
		if feed, all := m.Stream(events.Feed).Last, m.Stream(events.Ledger).Last; feed > all {
			t.Errorf("FEED has %d facts, LEDGER %d", feed, all)
		}

		to := testenv.Conn(t, testenv.NATS(t))
		f := opened(t, path)
		if err := f.Restore(t.Context(), to, backup.RestoreOptions{Replicas: 1, Buckets: true}); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		l, err := ledger.Open(t.Context(), to, ledger.Options{AllowUnverifiedSync: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Check(t.Context()); err != nil {
			t.Error(err)
		}
		js, err := jetstream.New(to)
		if err != nil {
			t.Fatal(err)
		}
		c, err := js.Consumer(t.Context(), events.Feed, "subscriber")
		if err != nil {
			t.Fatalf("the subscriber's consumer: %v", err)
		}
		if at := c.CachedInfo().Delivered.Stream; at > m.Stream(events.Feed).Last {
			t.Errorf("the subscriber's consumer stands at %d, FEED ends at %d", at, m.Stream(events.Feed).Last)
		}
		sealer, err := seal.Open(t.Context(), js, seal.Master{1}, 1)
		if err != nil {
			t.Fatal(err)
		}
		sealer.Close()
		l.Close()
	}
}

// Readers that come and go while a cluster is copied do not fail the backup: its
// servers give up a copy when they cannot hear of one of the consumers.
func TestReadersComeAndGo(t *testing.T) {
	nodes := testenv.Cluster(t, 3)
	i := installOn(t, nodes.Conn(0), 3)
	i.do(t, 5)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	var read atomic.Int64
	busy := make(chan struct{})
	for n := range 6 {
		js, err := jetstream.New(nodes.Conn(n % 3))
		if err != nil {
			t.Fatal(err)
		}
		readers.Go(func() {
			for ctx.Err() == nil {
				c, err := js.CreateConsumer(ctx, events.Ledger, jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy})
				if err != nil {
					continue // the servers are busy
				}
				if read.Add(1) == 5 {
					close(busy)
				}
				_ = js.DeleteConsumer(ctx, events.Ledger, c.CachedInfo().Name)
			}
		})
	}
	<-busy
	path := filepath.Join(t.TempDir(), "backup.zip")
	m, err := backup.Write(t.Context(), path, backup.Options{Conn: nodes.Conn(1), Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if last := m.Stream(events.Ledger).Last; last < uint64(i.keys.Load()) {
		t.Errorf("LEDGER ends at %d in the backup, %d was acknowledged before it began", last, i.keys.Load())
	}
}

// A file that is not as it was written is refused, whatever was changed in it.
func TestDamage(t *testing.T) {
	i := install(t)
	i.do(t, 20)
	path := filepath.Join(t.TempDir(), "backup.zip")
	if _, err := backup.Write(t.Context(), path, backup.Options{Conn: i.conn, Program: "test"}); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, b []byte) {
		t.Helper()
		bad := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(bad, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := backup.Open(bad)
		if err == nil {
			f.Close()
			t.Fatalf("%s was accepted", what)
		}
		if d, ok := errors.AsType[*backup.DamagedError](err); !ok || d.Reason == "" {
			t.Fatalf("%s: no reason: %v", what, err)
		}
		os.Remove(bad)
	}
	places := []int{0, len(whole) - 1, len(whole) - 64, len(whole) - 65, len(whole) - 71, len(whole) - 72}
	for range 400 {
		places = append(places, rand.IntN(len(whole)))
	}
	for _, at := range places {
		b := bytes.Clone(whole)
		b[at] ^= 1 << rand.IntN(8)
		refused(fmt.Sprintf("a file with byte %d of %d changed", at, len(whole)), b)
	}
	for _, n := range []int{0, 1, 70, 71, len(whole) / 2, len(whole) - 1} {
		refused(fmt.Sprintf("a file cut off after %d bytes", n), whole[:n])
	}
	refused("a longer file", append(bytes.Clone(whole), '0'))
	// Whoever makes the outer hash right again has the manifest against them.
	for _, member := range []string{"streams/USAGE.snapshot", "manifest.json"} {
		refused("a file without "+member, backup.Repacked(t, path, member, nil))
	}
	refused("a file with another snapshot", backup.Repacked(t, path, "streams/FEED.snapshot", []byte("something else")))
	refused("a file with one more member", backup.Repacked(t, path, "../escape", []byte("something else")))
}

// What PostgreSQL alone has comes back, and is not put over what goes further.
func TestPostgres(t *testing.T) {
	i := install(t)
	i.do(t, 20)
	database := func() *pgxpool.Pool {
		pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		if _, err := migrations.Up(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		return pool
	}
	from, to := database(), database()
	exec := func(pool *pgxpool.Pool, sql string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(from, `create table keyledger_baseline.last_used_v2 (like keyledger.last_used_v2 including all)`)
	exec(from, `insert into keyledger_baseline.last_used_v2 (key, keyspace, owner, uses, successes, last_used_at, last_secret) values ('key_1', 'parcelbird', E'a\tb\\', 7, 7, now(), 'current')`)
	exec(from, `insert into keyledger.baselines (name, stream, sequence, event_id) values ('usage_v2', 'USAGE', 5, 'evt_5')`)
	// Of an earlier program, whose baseline a projection begins with.
	exec(from, `create table keyledger_baseline.outcomes_v1 (like keyledger.outcomes_v2 including all)`)
	path := filepath.Join(t.TempDir(), "backup.zip")
	if _, err := backup.Write(t.Context(), path, backup.Options{Conn: i.conn, Pool: from, Program: "test"}); err != nil {
		t.Fatal(err)
	}
	f := opened(t, path)
	holds := func(pool *pgxpool.Pool, want string) {
		t.Helper()
		var got string
		if err := pool.QueryRow(t.Context(), `select b.sequence || ' ' || r.uses || ' ' || r.owner from keyledger.baselines b, keyledger_baseline.last_used_v2 r`).Scan(&got); err != nil || got != want {
			t.Errorf("the database holds %q, %v; want %q", got, err, want)
		}
	}
	for range 2 { // the second time it is there
		if err := f.RestorePostgres(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		holds(to, "5 7 a\tb\\")
	}
	exec(to, `select from keyledger_baseline.outcomes_v1`)
	exec(to, `update keyledger.baselines set sequence = 9; update keyledger_baseline.last_used_v2 set uses = 9`)
	if err := f.RestorePostgres(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	holds(to, "9 9 a\tb\\")
	exec(to, `update keyledger.baselines set sequence = 10000`) // of messages that are gone
	if err := f.RestorePostgres(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	holds(to, "5 7 a\tb\\")
}

// What was pruned from USAGE stays pruned, and is no doubt about what comes back.
func TestPruned(t *testing.T) {
	i := install(t)
	i.do(t, 30)
	act := events.New(events.UsagePruned{Stream: events.Usage, Through: 12, Frontier: []string{}, Reason: "test"}, time.Now())
	if _, err := i.l.AppendOps(t.Context(), act); err != nil {
		t.Fatal(err)
	}
	if _, err := i.l.Prune(t.Context(), 12); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup.zip")
	m, err := backup.Write(t.Context(), path, backup.Options{Conn: i.conn, Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Stream(events.Usage); s.First != 13 || s.Last != 30 || s.Messages != 18 {
		t.Errorf("USAGE from %d to %d with %d messages", s.First, s.Last, s.Messages)
	}
	to := testenv.Conn(t, testenv.NATS(t))
	if err := opened(t, path).Restore(t.Context(), to, backup.RestoreOptions{Replicas: 1, Buckets: true}); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), to, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
