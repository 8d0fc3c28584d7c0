// Package check holds the one function that checks every invariant of a
// ledger. Every test that drives the whole ends with it.
package check

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
)

// Subject is what is checked. Somebody else, the service or the test, MUST be
// running the projections and the feed, since both are waited for.
type Subject struct {
	Conn     *nats.Conn
	Replicas int
	Pool     *pgxpool.Pool // nil: no read models
	Master   *seal.Master  // with Pool: what is made of personal data is compared too; nil: it is not
	Feed     bool          // FEED must hold every fact that held
	Secrets  []string      // that were answered in this test
	Log      string        // all that was logged
}

const patience = 30 * time.Second

// Ledger fails the test for every invariant that does not hold: streams have no
// gap and every body decodes and is what its JSON Schema says; an id is there once; at each key version one
// fact holds; FEED holds each such fact once, in order, in its public form; the
// rows of every projection equal a rebuild from the first record; and no secret
// stands in a body, a row or a line of the log; every checkpoint that was signed has
// the root that the stream gives at its size.
func Ledger(t testing.TB, s Subject) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*patience)
	defer cancel()
	l, err := ledger.Open(ctx, s.Conn, ledger.Options{Replicas: s.Replicas, ReadOnly: true, AllowUnverifiedSync: true})
	if err != nil {
		t.Fatalf("the ledger does not open: %v", err)
	}
	defer l.Close()
	held := s.streams(ctx, t, l)
	if s.Feed {
		s.feed(ctx, t, l, held)
	}
	if s.Pool != nil {
		s.projections(ctx, t, l)
		s.rows(ctx, t)
		wrong, err := Signed(ctx, l, s.Pool)
		if err != nil {
			t.Error(err)
		}
		for _, w := range wrong {
			t.Error(w)
		}
	}
	for _, secret := range s.Secrets {
		if strings.Contains(s.Log, secret) {
			t.Error("a secret stands in the log")
		}
	}
}

// streams reads every stream through and returns LEDGER's facts that held.
func (s Subject) streams(ctx context.Context, t testing.TB, l *ledger.Ledger) (held []events.Record) {
	t.Helper()
	ring := keyring.New()
	ids, seen := map[string]string{}, map[string]int{}
	for _, stream := range []string{events.Ledger, events.Usage, events.Ops} {
		head, err := l.Head(ctx, stream)
		if err != nil {
			t.Fatal(err)
		}
		if head == 0 {
			continue
		}
		for r, err := range l.Read(ctx, stream, 1, head) {
			if err != nil {
				t.Fatalf("%s: %v", stream, err)
			}
			at := fmt.Sprintf("%s %d line %d", stream, r.Sequence, r.Line)
			// A report has the id that its decision gives it, so that two of
			// one decision are recognised; every other fact is there once.
			if _, reported := r.Event.Data.(events.KeyUseReported); !reported && ids[r.Event.ID] != "" {
				t.Errorf("%s repeats the event of %s", at, ids[r.Event.ID])
			}
			ids[r.Event.ID] = at
			s.secretIn(t, at, r.Body)
			if err := ofSchema(r, seen); err != nil {
				t.Errorf("%s: %v", at, err)
			}
			if stream == events.Ledger {
				ring.Apply(r)
				if void, _ := ring.Void(ctx, r.Sequence); !void {
					held = append(held, r)
				}
			}
		}
	}
	versions := map[string]uint64{}
	for _, r := range held {
		subject := r.Event.Owner + "/" + r.Event.Key
		if r.Event.KeyVersion != versions[r.Event.Keyspace+"/"+subject]+1 {
			t.Errorf("LEDGER %d: version %d of %s follows %d", r.Sequence, r.Event.KeyVersion, subject, versions[r.Event.Keyspace+"/"+subject])
		}
		versions[r.Event.Keyspace+"/"+subject] = r.Event.KeyVersion
	}
	return held
}

func (s Subject) secretIn(t testing.TB, where string, b []byte) {
	t.Helper()
	for _, secret := range s.Secrets {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s holds a secret", where)
		}
	}
}

func (s Subject) feed(ctx context.Context, t testing.TB, l *ledger.Ledger, held []events.Record) {
	t.Helper()
	if len(held) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	i, seen := 0, map[string]int{}
	for r, err := range l.Follow(ctx, events.Feed, 0) {
		if err != nil {
			t.Fatalf("FEED holds %d of %d facts: %v", i, len(held), err)
		}
		want, err := events.Encode(events.Public(held[i].Event))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(r.Body)); d != "" {
			t.Fatalf("FEED %d is not LEDGER %d in its public form (-want +got):\n%s", r.Sequence, held[i].Sequence, d)
		}
		s.secretIn(t, fmt.Sprintf("FEED %d", r.Sequence), r.Body)
		if err := ofSchema(r, seen); err != nil {
			t.Errorf("FEED %d: %v", r.Sequence, err)
		}
		if i++; i == len(held) {
			break
		}
	}
	if head, err := l.Head(ctx, events.Feed); err != nil || head != uint64(len(held)) {
		t.Errorf("FEED holds %d facts (%v), %d held", head, err, len(held))
	}
}

func (s Subject) projections(ctx context.Context, t testing.TB, l *ledger.Ledger) {
	t.Helper()
	all, more := projections.All(), []projections.Projection(nil)
	if s.Master != nil {
		js, err := jetstream.New(s.Conn)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := seal.Open(ctx, js, *s.Master, max(s.Replicas, 1))
		if err != nil {
			t.Fatal(err)
		}
		defer keys.Close()
		more = append(more, projections.Addresses{Keys: keys})
	}
	runner := projections.New(l, s.Pool, nil, more...)
	for _, p := range append(all, more...) {
		head, err := l.Head(ctx, p.Stream())
		if err != nil {
			t.Fatal(err)
		}
		wait, cancel := context.WithTimeout(ctx, patience)
		err = runner.Wait(wait, p.Name(), head)
		cancel()
		if err != nil {
			t.Errorf("projection %s does not reach %d: %v", p.Name(), head, err)
			continue
		}
		r, err := runner.Compare(ctx, p.Name(), nil)
		if err != nil {
			t.Errorf("compare %s: %v", p.Name(), err)
		} else if r.Differences != 0 {
			t.Errorf("%d rows of %s are not what the stream says", r.Differences, p.Name())
		}
	}
}

// rows looks for secrets in every row of every table.
func (s Subject) rows(ctx context.Context, t testing.TB) {
	t.Helper()
	rows, err := s.Pool.Query(ctx, `select schemaname || '.' || quote_ident(tablename) from pg_tables where schemaname in ('keyledger', 'analytics')`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var looked []string
	for _, secret := range s.Secrets {
		looked = append(looked, secret, hex.EncodeToString([]byte(secret)))
	}
	for _, table := range tables {
		rows, err := s.Pool.Query(ctx, `select t::text from `+table+` t`)
		if err != nil {
			t.Fatal(err)
		}
		var text string
		if _, err := pgx.ForEachRow(rows, []any{&text}, func() error {
			for _, secret := range looked {
				if strings.Contains(text, secret) {
					t.Errorf("a row of %s holds a secret", table)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
