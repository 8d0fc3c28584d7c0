package alerts

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/keyring"
)

// BenchmarkCount counts uses of random keys for all rules about requests, as while USAGE is
// followed, and judges them once for every 40,000 uses, as every second at that rate. What
// a tracked key takes in memory is reported too. KEYLEDGER_KEYS is how many keys there
// are, 10,000.
func BenchmarkCount(b *testing.B) {
	keys := 10_000
	if n, err := strconv.Atoi(os.Getenv("KEYLEDGER_KEYS")); err == nil {
		keys = n
	}
	for name, alerts := range map[string]string{
		"built in": ``,
		"all": `alerts: [{when: limit_used, above: 0.8}, {when: error_rate, above: 0.05, over: 5m, min_requests: 20}, {when: unusual_volume, above: 4, over: 1h},
  {when: denied, above: 10, over: 10m}, {when: cost, above: 20000000, over: 24h}]`,
	} {
		b.Run(name, func(b *testing.B) {
			doc, err := domain.ParseDocument([]byte("keyspace: p\nformat: {prefixes: {live: pb_}, length: 40}\nlimits: {from: key, default: {minute: 100000000}}\n" + alerts))
			if err != nil {
				b.Fatal(err)
			}
			ring := keyring.New()
			now := time.Now()
			sequence := uint64(0)
			fact := func(owner, key string, data events.Payload) {
				sequence++
				e := events.New(data, now)
				e.Keyspace, e.Owner, e.Key, e.KeyVersion = "p", owner, key, 1
				ring.Apply(events.Record{Stream: events.Ledger, Sequence: sequence, Subject: events.Subject("p", owner, key), Event: e})
			}
			fact("", "", events.KeyspaceConfigured{DocumentVersion: 1, Document: json.RawMessage(doc.JSON())})
			fact("o", "", events.OwnerRegistered{Name: "o"})
			ids := make([]string, keys)
			for i := range ids {
				ids[i] = events.NewID("key", now)
				fact("o", ids[i], events.KeyCreated{Name: "k", Limits: events.Limits{"minute": 100_000_000}, Secret: events.Secret{SHA256: fmt.Sprintf("%064x", i+1)}})
			}
			e := New(Options{Ring: ring, Now: func() time.Time { return now }})
			e.book, e.pending, e.work = newBook(), map[subject]bool{}, make(chan struct{}, 1)
			e.spaces, e.keys, e.pools, e.skip, e.previous = map[string]*space{}, map[string]*tracked{}, map[poolID]*pool{}, map[string]uint64{}, map[string]int64{}
			e.spaces["p"] = newSpace(ring.Keyspace("p"), nil)
			status := 200
			batch := make([]events.Record, 4000)
			fill := func(next func(i int) string) {
				for i := range batch {
					ev := events.New(events.KeyUsed{Status: &status, CostMicros: 7, Secret: "current"}, now)
					ev.Keyspace, ev.Owner, ev.Key = "p", "o", next(i)
					batch[i] = events.Record{Sequence: 1, Event: ev}
				}
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for i := 0; i < len(ids); i += len(batch) {
				fill(func(n int) string { return ids[min(i+n, len(ids)-1)] })
				e.apply(batch)
			}
			e.look()
			runtime.GC()
			runtime.ReadMemStats(&after)
			fill(func(int) string { return ids[rand.IntN(len(ids))] })
			b.ResetTimer()
			uses := 0
			processor := processorTime()
			for b.Loop() {
				e.apply(batch)
				if uses += len(batch); uses%40_000 == 0 {
					now = now.Add(time.Second)
					e.look()
				}
			}
			b.ReportMetric(float64(processorTime()-processor)/float64(uses), "cpu-ns/use")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(keys), "B/key")
		})
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
