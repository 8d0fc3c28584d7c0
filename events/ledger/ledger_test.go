package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

func open(t testing.TB, nc *nats.Conn, o ledger.Options) *ledger.Ledger {
	t.Helper()
	o.AllowUnverifiedSync = true
	l, err := ledger.Open(t.Context(), nc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func created(owner, key string, version uint64) events.Envelope {
	e := events.New(events.KeyCreated{Name: "a key", Environment: "live", Scopes: []string{}, Secret: events.Secret{SHA256: "00", First: "a", Last: "b"}}, time.Now())
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = "ks", owner, key, version
	return e
}

func revoked(owner, key string, version uint64) events.Envelope {
	e := events.New(events.KeyRevoked{Reason: "test"}, time.Now())
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = "ks", owner, key, version
	return e
}

func used(key string) events.Envelope {
	e := events.New(events.KeyUsed{Decision: "dec_1", Method: "GET", Endpoint: "/v1/parcels/17", Status: new(200), LatencyMS: new(int64(12)), Environment: "live", Secret: "current", Node: "n", LedgerSequence: 1, DocumentVersion: 1}, time.Now())
	e.Keyspace, e.Owner, e.Key = "ks", "org_1", key
	return e
}

// take reads n records and stops.
func take(t testing.TB, l *ledger.Ledger, stream string, after uint64, n int) []events.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []events.Record
	if n == 0 {
		return nil
	}
	for r, err := range l.Follow(ctx, stream, after) {
		if err != nil {
			t.Fatalf("after %d of %d records: %v", len(got), n, err)
		}
		if got = append(got, r); len(got) == n {
			break
		}
	}
	return got
}

// A fact is read back as it was written, in its place.
func TestAppendAndFollow(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	first := created("org_1", "key_1", 1)
	sequence, err := l.Append(t.Context(), 0, first)
	if err != nil || sequence != 1 {
		t.Fatal(sequence, err)
	}
	second := revoked("org_1", "key_1", 2)
	if _, err := l.Append(t.Context(), 0, second); !errors.Is(err, ledger.ErrConflict) {
		t.Fatalf("an append behind another one: %v", err)
	}
	if sequence, err = l.Append(t.Context(), 1, second); err != nil || sequence != 2 {
		t.Fatal(sequence, err)
	}
	got := take(t, l, events.Ledger, 0, 2)
	for i, want := range []events.Envelope{first, second} {
		if got[i].Event.ID != want.ID || got[i].Sequence != uint64(i+1) || got[i].Subject != "ledger.ks.org_1.key_1" {
			t.Errorf("record %d is %+v", i, got[i])
		}
	}
	last, ok, err := l.Last(t.Context(), "ledger.ks.org_1.key_1")
	if err != nil || !ok || last.Event.ID != second.ID {
		t.Errorf("last fact: %+v %v %v", last, ok, err)
	}
	if _, ok, err := l.Last(t.Context(), "ledger.ks.org_1.key_2"); ok || err != nil {
		t.Errorf("last fact on an empty subject: %v %v", ok, err)
	}
	at, err := l.At(t.Context(), events.Ledger, 1)
	if err != nil || len(at) != 1 || at[0].Event.ID != first.ID {
		t.Errorf("at 1: %+v %v", at, err)
	}
	if _, err := l.At(t.Context(), events.Ledger, 3); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("at 3: %v", err)
	}
}

// The facts of a batch stand together or not at all.
func TestAppendBatch(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	admitted := events.New(events.OwnerKeyAdmitted{Key: "key_1", ActiveKeys: 1, MaxKeys: 2}, time.Now())
	admitted.Keyspace, admitted.Owner, admitted.KeyVersion = "ks", "org_1", 1
	batch := []ledger.Expect{{0, admitted}, {0, created("org_1", "key_1", 1)}, {0, revoked("org_1", "key_1", 2)}}
	first, err := l.AppendBatch(t.Context(), batch)
	if err != nil || first != 1 {
		t.Fatal(first, err)
	}
	if _, err := l.AppendBatch(t.Context(), []ledger.Expect{{0, created("org_1", "key_2", 1)}, {0, admitted}}); !errors.Is(err, ledger.ErrConflict) {
		t.Fatalf("a batch with a failing expectation: %v", err)
	}
	if head, err := l.Head(t.Context(), events.Ledger); err != nil || head != 3 {
		t.Errorf("head %d %v", head, err)
	}
}

// Of many that expect the same, one wins.
func TestOneWins(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	oneWins(t, []*ledger.Ledger{l}, 20)
}

func oneWins(t *testing.T, ledgers []*ledger.Ledger, rounds int) {
	for round := range rounds {
		var won atomic.Int32
		var wg sync.WaitGroup
		owner := fmt.Sprintf("org_%d", round)
		for i := range 8 {
			l := ledgers[i%len(ledgers)]
			wg.Go(func() {
				var err error
				if i%4 == 3 {
					_, err = l.AppendBatch(t.Context(), []ledger.Expect{{0, created(owner, "key_1", 1)}, {0, revoked(owner, "key_1", 2)}})
				} else {
					_, err = l.Append(t.Context(), 0, created(owner, "key_1", 1))
				}
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, ledger.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() > 1 {
			t.Fatalf("%d of 8 appends with one expectation were accepted", won.Load())
		}
		if won.Load() == 0 && len(ledgers) == 1 {
			t.Fatal("nobody won")
		}
	}
}

// Uses come back in the order recorded, in few messages.
func TestPages(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	p := ledger.NewPages(l, "node1", ledger.PagesOptions{})
	const n = 5000
	for i := range n {
		if !p.Record(used(fmt.Sprintf("key_%d", i))) {
			t.Fatal("dropped")
		}
	}
	if err := p.RecordDurable(t.Context(), used("key_durable")); err != nil {
		t.Fatal(err)
	}
	if head, _ := l.Head(t.Context(), events.Usage); head == 0 || head > n/50 {
		t.Errorf("%d uses are in %d messages", n, head)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := take(t, l, events.Usage, 0, n+1)
	for i, r := range got[:n] {
		if r.Event.Key != fmt.Sprintf("key_%d", i) {
			t.Fatalf("record %d is about %s", i, r.Event.Key)
		}
	}
}
