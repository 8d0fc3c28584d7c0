package verify

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/events/wal"
)

// A use comes back from the write-ahead log as the fact that it would have been
// without.
func TestKeptUse(t *testing.T) {
	text := rapid.String()
	rapid.Check(t, func(t *rapid.T) {
		p := use{
			document: rapid.Int().Draw(t, "document"), sequence: rapid.Uint64().Draw(t, "sequence"), time: rapid.Int64().Draw(t, "time"),
			previous: rapid.Bool().Draw(t, "previous"), status: rapid.IntRange(0, 999).Draw(t, "status"), latency: time.Duration(rapid.Int64Min(0).Draw(t, "latency")),
			cost: rapid.Int64().Draw(t, "cost"),
		}
		copy(p.stamp[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "stamp"))
		for i := range p.text {
			p.text[i] = text.Draw(t, "text")
		}
		b := p.append(nil)
		if rapid.Bool().Draw(t, "before the first release") {
			b = appendUse1(nil, &p)
		}
		got, err := unkeep(wal.Entry{Plain: b}, "n1")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(p.event("n1"), got); d != "" {
			t.Fatal(d)
		}
		// Cut short it is refused, not guessed.
		if cut := rapid.IntRange(1, len(b)-1).Draw(t, "cut"); cut < len(b) {
			if _, err := unkeep(wal.Entry{Plain: b[:cut]}, "n1"); err == nil {
				t.Fatal("a part of a use is read as one")
			}
		}
	})
}

// appendUse1 is how programs before the first release wrote a use: it is never
// edited, because their logs may still be there.
func appendUse1(b []byte, u *use) []byte {
	b = append(append(b, 'u'), u.stamp[:]...)
	b = binary.AppendVarint(b, u.time)
	b = binary.AppendVarint(b, int64(u.document))
	b = binary.AppendUvarint(b, u.sequence)
	b = binary.AppendVarint(b, int64(u.status))
	b = binary.AppendVarint(b, int64(u.latency))
	b = binary.AppendVarint(b, u.cost)
	b = append(b, 0)
	if u.previous {
		b[len(b)-1] = 1
	}
	for _, s := range u.text[:textRequestID] {
		b = appendText(b, s)
	}
	text := ""
	for _, s := range u.text[textRequestID:] {
		text += s
		b = binary.AppendUvarint(b, uint64(len(text)))
	}
	return append(b, text...)
}

// A count comes back with its numbers, a gap too.
func TestKeptCounts(t *testing.T) {
	entry := wal.Entry{Tally: true, Count: 7, First: 1771245001500, Last: 1771245001900, Value: 20}
	fold := events.Fold{Count: 7, First: 1771245001500, Last: 1771245001900}
	for _, c := range []struct{ begun, want events.Payload }{
		{events.KeyDenied{Code: "REVOKED", Endpoint: "/v1", Node: "n1"}, events.KeyDenied{Code: "REVOKED", Endpoint: "/v1", Node: "n1", Fold: fold}},
		{events.KeyRateLimited{Window: "minute", Node: "n1"}, events.KeyRateLimited{Window: "minute", Limit: 20, Node: "n1", Fold: fold}},
		{events.LimitTaken{Node: "n1"}, events.LimitTaken{Node: "n1", Fold: fold}},
		{seal.Rejected{CredentialRejected: events.CredentialRejected{Code: "UNKNOWN_KEY", Node: "n1"}, ClearIP: "203.0.113.9"},
			seal.Rejected{CredentialRejected: events.CredentialRejected{Code: "UNKNOWN_KEY", Node: "n1", Fold: fold}, ClearIP: "203.0.113.9"}},
		{events.UsageGap{Reason: "away", Node: "n1"}, events.UsageGap{Count: 7, Reason: "away", From: fold.First, To: fold.Last, Node: "n1"}},
	} {
		e := events.New(c.begun, time.Now())
		e.Keyspace = "birds"
		entry.Plain = keep(nil, e)
		got, err := unkeep(entry, "n1")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, got.Data); d != "" || got.ID != e.ID || got.Keyspace != "birds" || got.Actor.ID == "" {
			t.Errorf("%+v: %s", got, d)
		}
	}
}
