package queries

import (
	"fmt"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
)

// BenchmarkAsOf asks for the state as of three moments of a ledger of 100,000
// keys: all of it, and the first page. At the last moment but a few every key is
// as it is now; at the middle one, every key has changed since.
func BenchmarkAsOf(b *testing.B) {
	n := 100_000
	if testing.Short() {
		n = 1000
	}
	p := newPasts(b)
	begin := time.Now().Add(-time.Hour)
	for version := range uint64(2) {
		var batch []ledger.Expect
		for i := range n {
			at := begin.Add(time.Duration(i) * time.Millisecond)
			e := events.New(events.KeyCreated{Name: fmt.Sprintf("key %d", i), Environment: "live", Scopes: []string{"parcels:read"}, Limits: events.Limits{"minute": 100, "day": 1000},
				Secret: events.Secret{SHA256: fmt.Sprintf("%064x", i), First: "pb_live_abcd", Last: "wxyz"}}, at)
			expected := uint64(0)
			if version > 0 {
				e, expected = events.New(events.KeyUpdated{Name: new("another name")}, at.Add(time.Hour)), uint64(i+1)
			}
			e.Keyspace, e.Owner, e.Key, e.KeyVersion = "pb", fmt.Sprintf("o%d", i%100), fmt.Sprintf("key_%08d", i), version+1
			if batch = append(batch, ledger.Expect{Expected: expected, Event: e}); len(batch) == 500 {
				if _, err := p.l.AppendBatch(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
				batch = nil
			}
		}
	}
	if err := p.runner.Wait(b.Context(), projections.LedgerCopy{}.Name(), uint64(2*n)); err != nil {
		b.Fatal(err)
	}
	for _, where := range []struct {
		name string
		at   uint64
	}{{"created", uint64(n)}, {"half changed", uint64(n + n/2)}, {"now", uint64(2 * n)}} {
		b.Run(where.name+"/all", func(b *testing.B) {
			for b.Loop() {
				m, err := p.At(b.Context(), "as_of", fmt.Sprint(where.at), time.Now())
				if err != nil {
					b.Fatal(err)
				}
				found := 0
				err = p.each(b.Context(), m, "pb", "", keyPlace{}, func(*domain.Key) bool { found++; return true })
				if err != nil || found != n {
					b.Fatal(found, err)
				}
			}
		})
		// What folding the stream itself takes, for comparison.
		b.Run(where.name+"/all of the stream", func(b *testing.B) {
			for b.Loop() {
				states := map[string]*domain.Key{}
				for r, err := range p.l.Read(b.Context(), events.Ledger, 1, where.at) {
					if err != nil {
						b.Fatal(err)
					}
					states[r.Event.Key] = domain.Evolve(domain.State{Key: states[r.Event.Key]}, r).Key
				}
			}
		})
		b.Run(where.name+"/page", func(b *testing.B) {
			for b.Loop() {
				m, err := p.At(b.Context(), "as_of", fmt.Sprint(where.at), time.Now())
				if err != nil {
					b.Fatal(err)
				}
				if keys, _, err := p.ListKeys(b.Context(), KeyFilter{Keyspace: "pb"}, m); err != nil || len(keys) != 100 {
					b.Fatal(len(keys), err)
				}
			}
		})
	}
}
