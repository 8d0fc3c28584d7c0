package merkle_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/merkle"
)

// BenchmarkProve measures a whole proof, from a place to what is answered: the event
// read from its page in the stream, tiles from PostgreSQL, both checked.
func BenchmarkProve(b *testing.B) {
	s := newStage(b)
	const pages, lines = 400, 250
	s.uses(pages, lines)
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

// BenchmarkScrub reads a stream again and compares it with the tree, as fast as it
// can, server and PostgreSQL included.
func BenchmarkScrub(b *testing.B) {
	s := newStage(b, func(o *merkle.Options) { o.ScrubRate = 1 << 40 })
	const pages, lines = 400, 250
	s.uses(pages, lines)
	for b.Loop() {
		n, err := s.log.ScrubOnce(b.Context(), events.Usage, "")
		if err != nil || s.log.Damage() != nil {
			b.Fatal(err, s.log.Damage())
		}
		b.SetBytes(n)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(pages*lines), "ns/event")
}

// uses records pages of uses of a common size.
func (s *stage) uses(pages, lines int) {
	s.t.Helper()
	at := time.Now()
	for range pages {
		var bodies [][]byte
		for i := range lines {
			e := events.New(events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: "/v1/parcels/17", Status: new(200), SourceIP: &events.Sealed{Key: "parcelbird.org_1.2026-01", Box: "3q2+7w3q2+7w3q2+7w3q2+7w3q2+7w3q2+7w3q2+7w=="},
				LatencyMS: new(int64(12)), Environment: "live", Secret: "current", Node: "n1", LedgerSequence: 17, DocumentVersion: 1}, at)
			e.Keyspace, e.Owner, e.Key = "parcelbird", "org_1", fmt.Sprintf("key_01a201b4-19f8-7cb5-9bcc-ec83c23c4%03d", i)
			body, err := events.Encode(e)
			if err != nil {
				s.t.Fatal(err)
			}
			bodies = append(bodies, body)
		}
		sequence, err := s.ledger.AppendPage(s.t.Context(), "parcelbird", "n1", bodies)
		if err != nil {
			s.t.Fatal(err)
		}
		s.last = sequence
	}
	s.sealed(events.Usage, s.last)
}
