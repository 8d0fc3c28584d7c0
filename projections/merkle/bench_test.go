package merkle_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
)

// BenchmarkProve measures a whole proof, from a place to what is answered: the event
// read from its page in the stream, tiles from PostgreSQL, both checked.
func BenchmarkProve(b *testing.B) {
	s := newStage(b)
	const pages, lines = 400, 250
	at := time.Now()
	for range pages {
		var bodies [][]byte
		for i := range lines {
			e := events.New(events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: "/v1/parcels/17", Status: new(200), SourceIP: &events.Sealed{Key: "parcelbird.org_1.2026-01", Box: "3q2+7w3q2+7w3q2+7w3q2+7w3q2+7w3q2+7w3q2+7w=="},
				LatencyMS: new(int64(12)), Environment: "live", Secret: "current", Node: "n1", LedgerSequence: 17, DocumentVersion: 1}, at)
			e.Keyspace, e.Owner, e.Key = "parcelbird", "org_1", fmt.Sprintf("key_01a201b4-19f8-7cb5-9bcc-ec83c23c4%03d", i)
			body, err := events.Encode(e)
			if err != nil {
				b.Fatal(err)
			}
			bodies = append(bodies, body)
		}
		sequence, err := s.ledger.AppendPage(b.Context(), "parcelbird", "n1", bodies)
		if err != nil {
			b.Fatal(err)
		}
		s.last = sequence
	}
	s.sealed(events.Usage, s.last)
	b.Run("bare", func(b *testing.B) { // what is asked of others, with nothing made of it
		for b.Loop() {
			if _, err := s.ledger.Line(b.Context(), events.Usage, 1+rand.Uint64N(pages), 0); err != nil {
				b.Fatal(err)
			}
			for range 2 {
				if _, err := s.pool.Exec(b.Context(), `select 1`); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("proof", func(b *testing.B) {
		for b.Loop() {
			place := audit.Place{Stream: events.Usage, Sequence: 1 + rand.Uint64N(pages), Line: rand.IntN(lines)}
			if _, err := s.log.Prove(b.Context(), place); err != nil {
				b.Fatal(err)
			}
		}
	})
}
