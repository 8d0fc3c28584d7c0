package queries

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
)

// BenchmarkSortedKeys lists pages of 50 out of 100,000 keys in each order, the first,
// one in the middle and one near the end, and prints their times in milliseconds. Half of
// the keys are used, or with KEYLEDGER_USED=all every one.
func BenchmarkSortedKeys(b *testing.B) {
	n := 100_000
	if testing.Short() {
		n = 5000
	}
	used := n / 2
	if os.Getenv("KEYLEDGER_USED") == "all" {
		used = n
	}
	p := newPasts(b)
	now := time.Now()
	begin := now.AddDate(0, 0, -400)
	random := rand.New(rand.NewPCG(1, 2))
	names := strings.Fields("Production staging Backend Billing nightly Deploy Mobile Partner Importer")
	e := events.New(events.KeyspaceConfigured{DocumentVersion: 1, Document: json.RawMessage(`{"keyspace":"pb","format":{"prefixes":{"live":"pb_live_"},"length":32},"last_used":"successful"}`)}, begin)
	e.Keyspace, e.KeyVersion = "pb", 1
	batch := []ledger.Expect{{Event: e}}
	for i := range n {
		at := begin.Add(time.Duration(i) * now.Sub(begin) / time.Duration(n))
		k := events.KeyCreated{Name: fmt.Sprintf("%s %d", names[random.IntN(len(names))], random.IntN(n)), Environment: []string{"live", "test"}[i%2], Scopes: []string{"parcels:read"},
			Secret: events.Secret{SHA256: fmt.Sprintf("%064x", i), First: "pb_live_abcd", Last: "wxyz"}}
		if i%20 == 0 {
			k.ExpiresAt = events.At(at.AddDate(0, 0, 30+random.IntN(300)))
		}
		e := events.New(k, at)
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "pb", fmt.Sprintf("o%d", i%1000*(i%2)), fmt.Sprintf("key_%08d-0000-7000-8000-000000000000", i), 1
		if batch = append(batch, ledger.Expect{Event: e}); len(batch) >= 500 || i == n-1 {
			if _, err := p.l.AppendBatch(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
			batch = nil
		}
	}
	if err := p.runner.Wait(b.Context(), projections.Keys{}.Name(), uint64(n+1)); err != nil {
		b.Fatal(err)
	}
	if err := p.ring.Wait(b.Context(), uint64(n+1)); err != nil {
		b.Fatal(err)
	}
	for _, sql := range []string{
		fmt.Sprintf(`insert into keyledger.last_used_v2 (key, keyspace, owner, uses, successes, last_used_at, last_success_at, last_secret)
			select id, keyspace, owner, u, u, at, case when u > 1 then at end, 'current' from (
				select id, keyspace, owner, (1 / (random() + 1e-6))::bigint as u, now() - random() * interval '30 days' as at from keyledger.keys_v1 order by random() limit %d) x`, used),
		`vacuum analyze`,
	} {
		if _, err := p.q.pool.Exec(b.Context(), sql); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		f    KeyFilter
	}{
		{"all", KeyFilter{}},
		{"active", KeyFilter{Status: "active"}},
		{"expired", KeyFilter{Status: "expired"}},
		{"owner of half", KeyFilter{Owner: "o0"}},
		{"owner of 100", KeyFilter{Owner: "o7"}},
		{"search", KeyFilter{Q: "nightly"}},
		{"none", KeyFilter{Q: "none of them"}},
		{"unused for 90 days", KeyFilter{UnusedSince: events.At(now.AddDate(0, 0, -90))}},
		{"used in the last week", KeyFilter{UnusedSince: events.At(now.AddDate(0, 0, -7)), Status: "active"}},
	} {
		for _, c.f.Sort = range Sorts {
			f := c.f
			f.Keyspace, f.Limit = "pb", 50
			for _, share := range []int{0, 50, 99} {
				if f.newestFirst() && share > 0 {
					break // it is there to be compared with
				}
				b.Run(fmt.Sprintf("%s/%s/%d%%", c.name, f.Sort, share), func(b *testing.B) {
					if f.Cursor = ""; share > 0 {
						l := &sortedList{q: p.q, ring: p.ring, f: &f, now: now}
						l.sorting, _ = f.sorting()
						if err := l.learn(b.Context()); err != nil {
							b.Fatal(err)
						}
						if all, _ := l.first(n); len(all) > 0 {
							f.Cursor = l.cursor(f.String(), all[len(all)*share/100])
						}
					}
					var times []time.Duration
					for b.Loop() {
						for range 5 {
							begin := time.Now()
							if _, _, err := p.q.FindKeys(b.Context(), p.ring, f, now); err != nil {
								b.Fatal(err)
							}
							times = append(times, time.Since(begin))
						}
					}
					slices.Sort(times)
					b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
					b.ReportMetric(float64(times[len(times)-1].Microseconds())/1000, "worst-ms")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}
