package queries

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
)

// Whatever is filtered by, and on every page, the keys that memory finds are those that
// PostgreSQL finds by itself.
func TestFindKeys(t *testing.T) {
	p := newPasts(t)
	const n = near + 1500
	begin := time.Now().Add(-time.Hour)
	var batch []ledger.Expect
	add := func(key string, version, expected uint64, at time.Time, data events.Payload) {
		e := events.New(data, at)
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "pb", "o"+key[len(key)-1:], key, version
		batch = append(batch, ledger.Expect{Expected: expected, Event: e})
	}
	for i := range n {
		k := events.KeyCreated{Name: fmt.Sprintf("Key %d", i), Environment: "live", Secret: events.Secret{SHA256: fmt.Sprintf("%064x", i), First: fmt.Sprintf("pb_live_%04d", i), Last: fmt.Sprintf("%04d", i)}}
		if i < 700 { // behind the newest
			k.Scopes = []string{"old"}
		}
		if i%500 == 0 {
			k.Resources = []string{"depot_1"}
		}
		if i%3 == 0 {
			k.Name, k.Environment = fmt.Sprintf("Nightly %d", i), "test"
		}
		if i%50 == 1 {
			k.ExpiresAt = events.At(begin.Add(time.Minute))
		}
		// Clocks differ: some keys are older than the ones before them, and many of one moment.
		at := begin.Add(time.Duration(i/5-i%7*3) * time.Millisecond)
		add(fmt.Sprintf("key_%08d", i), 1, 0, at, k)
	}
	for i := 5; i < n; i += 300 {
		add(fmt.Sprintf("key_%08d", i), 2, uint64(i+1), begin.Add(time.Minute), events.KeyRevoked{Reason: "r"})
	}
	for i := 10; i < n; i += 900 {
		add(fmt.Sprintf("key_%08d", i), 2, uint64(i+1), begin.Add(time.Minute), events.KeyRevoked{Reason: "r"})
	}
	last := uint64(len(batch))
	for len(batch) > 0 {
		m := min(500, len(batch))
		if _, err := p.l.AppendBatch(t.Context(), batch[:m]); err != nil {
			t.Fatal(err)
		}
		batch = batch[m:]
	}
	if err := p.runner.Wait(t.Context(), projections.Keys{}.Name(), last); err != nil {
		t.Fatal(err)
	}
	if err := p.ring.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, f := range []KeyFilter{
		{}, {Keyspace: "pb"}, {Keyspace: "none"}, {Keyspace: "pb", Owner: "o3"},
		{Keyspace: "pb", Status: "active"}, {Keyspace: "pb", Status: "expired"}, {Status: "revoked"}, {Keyspace: "pb", Status: "rate_limited", Limited: []string{"key_00000007"}},
		{Keyspace: "pb", Scope: "old"}, {Keyspace: "pb", Scope: "none"}, {Keyspace: "pb", Resource: "depot_1"}, {Keyspace: "pb", Environment: "test"},
		{Keyspace: "pb", Q: "NIGHTLY"}, {Keyspace: "pb", Q: "key 17"}, {Keyspace: "pb", Q: "0012"}, {Keyspace: "pb", Q: "12"}, {Keyspace: "pb", Q: "pb_live_00"}, {Keyspace: "pb", Q: "key_0000001"}, {Keyspace: "pb", Q: "zz%_"},
		{Keyspace: "pb", Owner: "o0", Resource: "depot_1"}, {Keyspace: "pb", Owner: "o5", Status: "revoked", Q: "key"},
		{Keyspace: "pb", ExpiresBefore: events.At(now)}, {Keyspace: "pb", UnusedSince: events.At(begin)}, {Keyspace: "pb", UnusedSince: events.At(begin), Scope: "old"},
	} {
		for _, f.Limit = range []int{50, 1000} {
			for pages := 0; ; pages++ {
				want, next, err := p.q.ListKeys(t.Context(), f, now)
				if err != nil {
					t.Fatal(err)
				}
				got, after, err := p.q.FindKeys(t.Context(), p.ring, f, now)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, got); d != "" || after != next {
					t.Fatalf("%v, page %d: cursor %q, want %q: %s", f, pages, after, next, d)
				}
				if f.Cursor = next; next == "" || pages == 20 {
					break
				}
			}
			f.Cursor = ""
		}
	}
	if _, _, err := p.q.FindKeys(t.Context(), p.ring, KeyFilter{Q: "k", Cursor: "forged"}, now); !refused(err, "INVALID") {
		t.Errorf("a forged cursor: %v", err)
	}
}
