package projections

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections/merkle"
)

// BenchmarkProjections prints events per second from JetStream to committed
// rows: following from zero, and rebuilding beside with the comparison included; and
// the processor time of each in this process, NATS included and PostgreSQL not.
//
//	go test -run '^$' -bench Projections -benchtime 1x ./projections
func BenchmarkProjections(b *testing.B) {
	l, pool := openLedger(b), database(b)
	facts := lifecycle(b, l, 60_000)
	uses := pages(b, l, 4_000, 256)
	for _, c := range []struct {
		p Projection
		n int
	}{{Keys{}, facts}, {LedgerCopy{}, facts}, {Usage{}, uses}, {Uses{}, uses},
		{tree{merkle.Tree{Stream: events.Usage}}, uses}, {parts{merkle.Parts{Stream: events.Usage}}, uses}} {
		b.Run(c.p.Name(), func(b *testing.B) {
			for b.Loop() {
				measure(b, l, pool, c.p, c.n)
			}
		})
	}
}

func measure(b *testing.B, l *ledger.Ledger, pool *pgxpool.Pool, p Projection, n int) {
	for _, t := range append(p.Tables(), Table{Name: "positions where name = '" + p.Name() + "'"}) {
		if _, err := pool.Exec(b.Context(), "delete from keyledger."+t.Name); err != nil {
			b.Fatal(err)
		}
	}
	head, err := l.Head(b.Context(), p.Stream())
	if err != nil {
		b.Fatal(err)
	}
	begin, used := time.Now(), processorTime()
	r, stop := running(b, l, pool, p)
	if err := r.Wait(b.Context(), p.Name(), head); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n)/time.Since(begin).Seconds(), "followed/s")
	b.ReportMetric(float64((processorTime()-used).Nanoseconds())/1000/float64(n), "own-µs/followed")
	stop()
	begin, used = time.Now(), processorTime()
	result, err := r.Rebuild(b.Context(), p.Name(), nil)
	if err != nil || result.Differences > 0 {
		b.Fatalf("%+v, %v", result, err)
	}
	b.ReportMetric(float64(n)/time.Since(begin).Seconds(), "rebuilt/s")
	b.ReportMetric(float64((processorTime()-used).Nanoseconds())/1000/float64(n), "own-µs/rebuilt")
}

// lifecycle appends facts about keys: two thirds are created, of which some are
// changed, rotated and revoked.
func lifecycle(b *testing.B, l *ledger.Ledger, keys int) (facts int) {
	var batch []ledger.Expect
	last := map[string]uint64{}
	next := uint64(1)
	flush := func() {
		if len(batch) == 0 {
			return
		}
		if _, err := l.AppendBatch(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		batch = batch[:0]
	}
	add := func(id string, version uint64, data events.Payload) {
		e := events.New(data, start.Add(time.Duration(next)*time.Millisecond))
		e.Keyspace, e.Owner, e.Key, e.KeyVersion, e.Actor = "parcelbird", "o"+id[len(id)-2:], id, version, events.Actor{Type: "root_key", ID: "key_root"}
		batch = append(batch, ledger.Expect{Expected: last[id], Event: e})
		last[id] = next
		next++
		facts++
		if len(batch) == 500 {
			flush()
		}
	}
	ids := make([]string, keys)
	for i := range ids {
		ids[i] = events.NewID("key", start.Add(time.Duration(i)*time.Millisecond))
		add(ids[i], 1, events.KeyCreated{Name: fmt.Sprint("key ", i), Environment: "live", Scopes: []string{"parcels:read", "parcels:write"}, Limits: events.Limits{"minute": 100, "day": 1000},
			Meta: map[string]string{"team": "x"}, Secret: events.Secret{SHA256: fmt.Sprintf("%064x", i), First: "pb_live_abcd", Last: "wxyz"}})
	}
	flush()
	for i, id := range ids {
		switch i % 6 {
		case 0:
			add(id, 2, events.KeyUpdated{Name: new("renamed")})
		case 1:
			add(id, 2, events.KeyRotated{Secret: events.Secret{SHA256: fmt.Sprintf("%064x", -i), First: "pb_live_efgh", Last: "1234"}, GraceUntil: events.At(start.Add(time.Hour))})
		case 2:
			add(id, 2, events.KeyRevoked{Reason: "leaked"})
		}
	}
	flush()
	return facts
}

// pages appends uses of 1,000 keys, three endpoints and a few statuses, 2,000 a second.
func pages(b *testing.B, l *ledger.Ledger, n, size int) (uses int) {
	for i := range n {
		var bodies [][]byte
		for j := range size {
			at := start.Add(time.Duration(uses) * 500 * time.Microsecond)
			status := 200
			if j%50 == 0 {
				status = 404
			}
			e := events.New(events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: fmt.Sprint("/v1/parcels/", j%3), Status: &status,
				LatencyMS: new(int64((i * j) % 300)), CostMicros: 7, Environment: "live", Secret: "current", Node: "n1", LedgerSequence: 7, DocumentVersion: 1,
				SourceIP: &events.Sealed{Key: "parcelbird.o1.2026-01", Box: "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVm"}}, at)
			e.Keyspace, e.Owner, e.Key = "parcelbird", "o1", fmt.Sprintf("key_%08d-0000-7000-8000-000000000000", (i*31+j*7)%1000)
			body, err := events.Encode(e)
			if err != nil {
				b.Fatal(err)
			}
			bodies = append(bodies, body)
			uses++
		}
		if _, err := l.AppendPage(b.Context(), "parcelbird", "n1", bodies); err != nil {
			b.Fatal(err)
		}
	}
	return uses
}
