package queries

import (
	"fmt"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
)

// Figures by address come from the stream: uses with their outcome, whenever it
// was reported, and refusals, whose address is not kept.
func TestUsageByIP(t *testing.T) {
	l := newLog(t)
	now := after(0)
	var bodies [][]byte
	put := func(data events.Payload) {
		e := events.New(data, now)
		e.Keyspace, e.Owner, e.Key = "parcelbird", "o1", "key_a"
		b, err := events.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, b)
	}
	used := func(ip, decision string, status *int) {
		sealed, err := l.keys.Seal(t.Context(), "parcelbird", "o1", now, ip)
		if err != nil {
			t.Fatal(err)
		}
		var latency *int64
		if status != nil {
			latency = new(int64(4))
		}
		put(events.KeyUsed{Decision: decision, Method: "GET", Endpoint: "/x", Status: status, SourceIP: sealed, LatencyMS: latency, CostMicros: 2, Secret: "current"})
	}
	used("203.0.113.7", "dec_1", new(200))
	used("203.0.113.7", "dec_2", nil)
	put(events.KeyUseReported{Decision: "dec_2", Status: 500, LatencyMS: 8, CostMicros: new(int64(5))})
	put(events.KeyUseReported{Decision: "dec_3", Status: 204, LatencyMS: 6})
	used("203.0.113.8", "dec_3", nil)
	used("203.0.113.8", "dec_4", nil)
	put(events.KeyDenied{Code: "EXPIRED", Fold: events.Fold{Count: 7, First: events.At(now), Last: events.At(now)}})
	if _, err := l.l.AppendPage(t.Context(), "parcelbird", "n1", bodies); err != nil {
		t.Fatal(err)
	}
	rows, err := l.Usage(t.Context(), UsageFilter{Keyspace: "parcelbird", From: events.At(now.Add(-time.Minute))}, "hour", []string{"ip"}, l.keys)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, r := range rows {
		got += fmt.Sprintf("%s: %d = %d + %d + %d + %d, %d micros\n", *r.IP, r.Requests, r.Successes, r.Errors, r.Unknown, r.Denied, r.CostMicros)
	}
	want := ": 7 = 0 + 0 + 0 + 7, 0 micros\n" +
		"203.0.113.7: 2 = 1 + 1 + 0 + 0, 7 micros\n" +
		"203.0.113.8: 2 = 1 + 0 + 1 + 0, 4 micros\n"
	if got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if rows[1].AverageMS == nil || *rows[1].AverageMS != 6 {
		t.Errorf("average %v", rows[1].AverageMS)
	}
	for _, by := range [][]string{{"ip", "agent"}} {
		if _, err := l.Usage(t.Context(), UsageFilter{}, "", by, l.keys); !refused(err, "INVALID") {
			t.Errorf("by %v: %v", by, err)
		}
	}
	if _, err := l.Usage(t.Context(), UsageFilter{}, "week", []string{"ip"}, l.keys); !refused(err, "INVALID") {
		t.Errorf("bucket week: %v", err)
	}
}
