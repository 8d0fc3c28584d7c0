package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/backup"
	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	invariant "github.com/keyledger/keyledger/internal/testenv/check"
	"github.com/keyledger/keyledger/verify"
)

// site is a NATS, a PostgreSQL and a state directory.
type site struct {
	conn *nats.Conn
	pool *pgxpool.Pool
	dir  string
}

func newSite(t *testing.T) *site {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &site{testenv.Conn(t, testenv.NATS(t)), pool, t.TempDir()}
}

func (s *site) start(t *testing.T) (*node, error) {
	t.Helper()
	return openNode(t.Context(), nodeConfig{
		Program: "serve", Name: verify.NodeName("serve"), Conn: s.conn, Pool: s.pool, Replicas: 1, Unverified: true, Master: seal.Master{7},
		HeadFile: filepath.Join(s.dir, "head.serve.json"), WAL: filepath.Join(s.dir, "wal"), Signs: true, LogDir: filepath.Join(s.dir, "log"),
		Log: slog.New(slog.DiscardHandler),
	})
}

func (s *site) started(t *testing.T) *node {
	t.Helper()
	n, err := s.start(t)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func ended(t *testing.T, n *node) {
	t.Helper()
	if err := n.close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// holds checks every invariant of a running site.
func (s *site) holds(t *testing.T) {
	t.Helper()
	invariant.Ledger(t, invariant.Subject{Conn: s.conn, Pool: s.pool, Feed: true})
}

var asTest = commands.Request{Authority: domain.System("test"), Via: "test"}

// customer makes an owner without limits in parcelbird.
func customer(t *testing.T, n *node) {
	t.Helper()
	if _, err := configureMissing(t.Context(), n.commands); err != nil {
		t.Fatal(err)
	}
	if _, err := n.commands.SetOwner(t.Context(), asTest, "parcelbird", "org_1", domain.SetOwner{Name: new("One"), Plan: new("large")}); err != nil {
		t.Fatal(err)
	}
}

func newKey(ctx context.Context, n *node) (commands.Result, error) {
	return n.commands.CreateKey(ctx, asTest, "parcelbird", "org_1", domain.CreateKey{Name: "k", Scopes: &[]string{"parcels:read"}})
}

func made(t *testing.T, n *node) commands.Result {
	t.Helper()
	r, err := newKey(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// use verifies a secret and records what comes of it.
func use(n *node, secret string) domain.Code {
	req := domain.Request{Keyspace: "parcelbird", Key: secret, Method: "GET", Path: "/v1/parcels/1", IP: "192.0.2.1"}
	d := n.verifier.Verify(req)
	n.verifier.Record(&d, &req, verify.Use{Via: "test", Status: 200})
	return d.Code
}

// load makes, uses and revokes keys until it is stopped.
func load(t *testing.T, n *node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for ctx.Err() == nil {
				r, err := newKey(ctx, n)
				if err == nil {
					use(n, r.Secret)
					_, err = n.commands.RevokeKey(ctx, asTest, r.Key.ID, domain.RevokeKey{Reason: "test"})
				}
				if err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return sync.OnceFunc(func() { cancel(); all.Wait() })
}

func saved(t *testing.T, s *site) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backup.zip")
	if _, err := backup.Write(t.Context(), path, backup.Options{Conn: s.conn, Pool: s.pool, Program: "test"}); err != nil {
		t.Fatal(err)
	}
	return path
}

// restoredTo puts a backup into an empty NATS, and what it has of PostgreSQL into a
// migrated database.
func restoredTo(t *testing.T, path string, pool *pgxpool.Pool) *nats.Conn {
	t.Helper()
	f, err := backup.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	conn := testenv.Conn(t, testenv.NATS(t))
	err = f.Restore(t.Context(), conn, backup.RestoreOptions{Replicas: 1, Buckets: true,
		Label: map[string]string{backup.MetaBackup: f.Manifest.Began.String(), backup.MetaRestored: events.At(time.Now()).String()}})
	if err == nil && pool != nil {
		err = f.RestorePostgres(t.Context(), pool)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// A backup made while keys are made, used and revoked starts again elsewhere, with
// everything that was acknowledged before it began, and every invariant holds.
func TestBackupBesideTheService(t *testing.T) {
	from := newSite(t)
	n := from.started(t)
	defer ended(t, n)
	customer(t, n)
	kept, revoked := made(t, n), made(t, n)
	if code := use(n, kept.Secret); code != domain.CodeValid {
		t.Fatal(code)
	}
	if _, err := n.commands.RevokeKey(t.Context(), asTest, revoked.Key.ID, domain.RevokeKey{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := n.recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := load(t, n)
	defer stop()
	path := saved(t, from)
	stop()

	// Everything was lost but the backup, the master key and an empty database.
	to := newSite(t)
	first := to.started(t) // migrates
	ended(t, first)
	fresh := &site{restoredTo(t, path, nil), newSite(t).pool, t.TempDir()}
	m := fresh.started(t)
	defer ended(t, m)
	if code := use(m, kept.Secret); code != domain.CodeValid {
		t.Errorf("a key that was made before: %s", code)
	}
	if code := use(m, revoked.Secret); code != domain.CodeRevoked {
		t.Errorf("a key that was revoked before: %s", code)
	}
	made(t, m)
	fresh.holds(t)
}

// Where others remember more than a restored backup, the service says which keys
// would come back to life and does not start, until somebody goes on; that is an event.
func TestAcceptLoss(t *testing.T) {
	s := newSite(t)
	n := s.started(t)
	customer(t, n)
	var secrets [6]string
	var ids [6]string
	for i := range ids {
		r := made(t, n)
		secrets[i], ids[i] = r.Secret, r.Key.ID
	}
	path := saved(t, s)
	ctx := t.Context()
	_, err1 := n.commands.RevokeKey(ctx, asTest, ids[1], domain.RevokeKey{Reason: "leaked"})
	_, err2 := n.commands.RevokeKey(ctx, asTest, ids[2], domain.RevokeKey{Reason: "leaked"})
	_, err3 := n.commands.DeleteKey(ctx, asTest, ids[2])
	_, err4 := n.commands.RotateKey(ctx, asTest, ids[3], domain.RotateKey{})
	soon := events.At(time.Now().Add(time.Hour))
	_, err5 := n.commands.UpdateKey(ctx, asTest, ids[4], domain.UpdateKey{ExpiresAt: &soon})
	_, err6 := n.commands.UpdateKey(ctx, asTest, ids[5], domain.UpdateKey{AllowedIPs: &[]string{"192.0.2.0/24"}})
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		t.Fatal(err)
	}
	later := made(t, n)
	s.holds(t) // waits for the read models
	if _, err := n.log.Sealed(ctx, events.Ledger, later.Sequence); err != nil {
		t.Fatal(err)
	}
	ended(t, n)

	s.conn = restoredTo(t, path, s.pool)
	_, err := s.start(t)
	lost, ok := errors.AsType[*lossError](err)
	if !ok {
		t.Fatalf("it started, or refused without saying what is missing: %v", err)
	}
	want := map[string][]string{ids[1]: {"revoked"}, ids[2]: {"deleted"}, ids[3]: {"rotated"}, ids[4]: {"expiry changed"}}
	for _, k := range lost.loss.Returned {
		if !slices.Equal(want[k.Key], k.Was) || k.At == 0 {
			t.Errorf("key %s would come back although it was %v at %s; want %v", k.Key, k.Was, k.At, want[k.Key])
		}
		if !strings.Contains(err.Error(), k.Key) {
			t.Errorf("the message does not name %s", k.Key)
		}
		delete(want, k.Key)
	}
	if len(want) > 0 {
		t.Errorf("these are not named: %v", want)
	}
	if l := lost.loss; len(l.Changed) != 1 || l.Changed[0].Key != ids[5] || !slices.Equal(l.Changed[0].Fields, []string{"allowed_ips"}) || !slices.Equal(l.Unknown, []string{later.Key.ID}) || !l.NewLog {
		t.Errorf("changed %v, unknown %v, new log %v", l.Changed, l.Unknown, l.NewLog)
	}

	// It says the same as a command, and goes on when it is told to; cut off in the
	// middle, that can be repeated.
	p := &place{name: "test", conn: s.conn, pool: s.pool, replicas: 1, heads: s.dir, published: filepath.Join(s.dir, "log"), unsynced: true}
	var out bytes.Buffer
	a := newApp(strings.NewReader(""), &out, io.Discard)
	for round := range 2 {
		heads, err := p.headFiles()
		if err != nil || len(heads) != 1 {
			t.Fatal(heads, err)
		}
		l, err := assess(ctx, p.conn, p.pool, 1, heads, p.published)
		if err != nil || l == nil {
			t.Fatal(l, err)
		}
		export := filepath.Join(t.TempDir(), "lost.ndjson")
		if round == 0 { // the power fails after the first revocation
			if _, err := l.export(ctx, p.pool, export); err != nil {
				t.Fatal(err)
			}
			led, err := ledger.Open(ctx, p.conn, ledger.Options{AllowUnverifiedSync: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := revokeAll(ctx, led, "ops-17", "disk lost", l.Returned[:1]); err != nil {
				t.Fatal(err)
			}
			led.Close()
			continue
		}
		if err := a.goOn(ctx, p, l, heads, "ops-17", "disk lost", export, true); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(export)
		if err != nil || strings.Count(string(b), `"subject":"ledger.`) != int(l.Facts) {
			t.Errorf("the exported file lacks facts: %v\n%.2000s", err, b)
		}
	}
	n = s.started(t)
	defer ended(t, n)
	for i, code := range []domain.Code{domain.CodeValid, domain.CodeRevoked, domain.CodeRevoked, domain.CodeRevoked, domain.CodeRevoked, domain.CodeValid} {
		if got := use(n, secrets[i]); got != code {
			t.Errorf("key %d is %s, want %s", i, got, code)
		}
	}
	if got := use(n, later.Secret); got != domain.CodeUnknownKey {
		t.Errorf("a key that was made later is %s", got)
	}
	head, err := n.ledger.Head(ctx, events.Ops)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for r, err := range n.ledger.Read(ctx, events.Ops, 1, head) {
		if err != nil {
			t.Fatal(err)
		}
		if act, ok := r.Event.Data.(events.LossAccepted); ok {
			found++
			if act.Count != 3 || act.Revoked != 3 || len(act.Returned) != 3 || act.Reason != "disk lost" || r.Event.Actor.ID != "ops-17" || act.Backup == 0 || len(act.Missing) == 0 || !act.NewLog {
				t.Errorf("the event says %+v of %+v", act, r.Event.Actor)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d events say that somebody went on", found)
	}
	if _, err := n.log.Sealed(ctx, events.Ledger, 1); err != nil {
		t.Errorf("the audit log: %v", err)
	}
	s.holds(t)
}
