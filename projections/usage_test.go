package projections

import (
	"fmt"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
)

// simple is usage counted the slow way, one record after the other.
type simple struct {
	rows   map[string]int64 // minute, key, code, status, endpoint -> requests
	cost   int64
	uses   map[string]int64
	wins   map[string]int64
	used   map[string]events.KeyUsed
	at     map[string]events.Envelope
	report map[string]bool
	early  map[string]events.KeyUseReported
}

func (s *simple) row(at events.Time, key, code string, status int, endpoint string) string {
	return fmt.Sprint(minute(at), key, code, status, endpoint)
}

func (s *simple) apply(e events.Envelope) {
	switch d := e.Data.(type) {
	case events.KeyUsed:
		if d.Status != nil {
			s.rows[s.row(e.Time, e.Key, "VALID", *d.Status, d.Endpoint)]++
			if *d.Status < 400 {
				s.wins[e.Key]++
			}
		} else {
			if _, ok := s.used[d.Decision]; ok {
				return
			}
			s.used[d.Decision], s.at[d.Decision] = d, e
			s.rows[s.row(e.Time, e.Key, "VALID", 0, d.Endpoint)]++
			if r, ok := s.early[d.Decision]; ok {
				defer s.settle(r)
			}
		}
		s.uses[e.Key]++
		s.cost += d.CostMicros
	case events.KeyUseReported:
		if s.report[d.Decision] {
			return
		}
		s.report[d.Decision] = true
		s.early[d.Decision] = d
		if _, ok := s.used[d.Decision]; ok {
			s.settle(d)
		}
	case events.KeyDenied:
		s.rows[s.row(d.First, e.Key, d.Code, 0, d.Endpoint)] += d.Count
	case events.KeyRateLimited:
		s.rows[s.row(d.First, e.Key, "RATE_LIMITED", 0, "")] += d.Count
	case events.CredentialRejected:
		s.rows[s.row(d.First, "", d.Code, 0, "")] += d.Count
	}
}

func (s *simple) settle(d events.KeyUseReported) {
	e, u := s.at[d.Decision], s.used[d.Decision]
	s.rows[s.row(e.Time, e.Key, "VALID", 0, u.Endpoint)]--
	endpoint := u.Endpoint
	if d.Endpoint != "" {
		endpoint = d.Endpoint
	}
	s.rows[s.row(e.Time, e.Key, "VALID", d.Status, endpoint)]++
	if d.CostMicros != nil {
		s.cost += *d.CostMicros - u.CostMicros
	}
	if d.Status < 400 {
		s.wins[e.Key]++
	}
}

// However uses, outcomes (early, late, repeated) and refusals are mixed and cut
// into batches, each is counted once, and an outcome moves its use once.
func TestUsageCountsOnce(t *testing.T) {
	conn := connection(t, database(t))
	rapid.Check(t, func(rt *rapid.T) {
		ctx := t.Context()
		tx, err := conn.Begin(ctx)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = tx.Rollback(ctx) }()
		want := &simple{map[string]int64{}, 0, map[string]int64{}, map[string]int64{}, map[string]events.KeyUsed{}, map[string]events.Envelope{}, map[string]bool{}, map[string]events.KeyUseReported{}}
		n := uint64(0)
		for range rapid.IntRange(1, 6).Draw(rt, "batches") {
			var batch []events.Record
			for range rapid.IntRange(1, 10).Draw(rt, "records") {
				at := start.Add(time.Duration(rapid.IntRange(0, 180).Draw(rt, "second")) * time.Second)
				decision := events.FormatID("dec", [16]byte{15: byte(rapid.IntRange(1, 5).Draw(rt, "decision"))})
				endpoint := rapid.SampledFrom([]string{"/a", "/b"}).Draw(rt, "endpoint")
				fold := events.Fold{Count: rapid.Int64Range(1, 9).Draw(rt, "count"), First: events.At(at), Last: events.At(at)}
				var data events.Payload
				switch rapid.IntRange(0, 6).Draw(rt, "kind") {
				case 0:
					data = events.KeyUsed{Decision: decision, Endpoint: endpoint, Status: new(rapid.SampledFrom([]int{200, 404}).Draw(rt, "status")), LatencyMS: new(int64(7)), CostMicros: 5, Secret: "current"}
				case 1, 2:
					data = events.KeyUsed{Decision: decision, Endpoint: endpoint, CostMicros: 3, Secret: "previous"}
				case 3:
					r := events.KeyUseReported{Decision: decision, Status: rapid.SampledFrom([]int{200, 500}).Draw(rt, "status"), LatencyMS: 70_000}
					if rapid.Bool().Draw(rt, "more") {
						r.CostMicros, r.Endpoint = new(int64(11)), endpoint
					}
					data = r
				case 4:
					data = events.KeyDenied{Code: "EXPIRED", Endpoint: endpoint, Fold: fold}
				case 5:
					data = events.KeyRateLimited{Window: "minute", Fold: fold}
				case 6:
					data = events.CredentialRejected{Code: "UNKNOWN_KEY", Fold: fold}
				}
				e := events.New(data, at)
				e.Keyspace, e.Owner = "parcelbird", "o1"
				if _, ok := data.(events.CredentialRejected); ok {
					e.Owner = ""
				} else {
					e.Key = rapid.SampledFrom([]string{"key_a", "key_b"}).Draw(rt, "key")
				}
				n++
				want.apply(e)
				batch = append(batch, events.Record{Stream: events.Usage, Sequence: n, Event: e})
			}
			if err := (Usage{}).Apply(ctx, tx, batch); err != nil {
				rt.Fatal(err)
			}
		}
		got := map[string]int64{}
		var cost, classes, measured int64
		rows, err := tx.Query(ctx, `select minute, key, code, status, endpoint, requests, cost_micros, measured, `+strings.Join(classColumns, " + ")+` from usage_v2`)
		if err != nil {
			rt.Fatal(err)
		}
		var at time.Time
		var key, code, endpoint string
		var status int
		var requests, micros, m, c int64
		if _, err := pgx.ForEachRow(rows, []any{&at, &key, &code, &status, &endpoint, &requests, &micros, &m, &c}, func() error {
			got[want.row(events.At(at), key, code, status, endpoint)] += requests
			cost, measured, classes = cost+micros, measured+m, classes+c
			return nil
		}); err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(nonzero(want.rows), nonzero(got)); d != "" {
			rt.Fatalf("requests (-counted +rows):\n%s", d)
		}
		if cost != want.cost || classes != measured {
			rt.Fatalf("cost %d, want %d; %d measured, %d in classes", cost, want.cost, measured, classes)
		}
		type use struct {
			Key             string
			Uses, Successes int64
		}
		for _, u := range collect[use](rt, ctx, tx, `select key, uses, successes from last_used_v2`) {
			if u.Uses != want.uses[u.Key] || u.Successes != want.wins[u.Key] {
				rt.Fatalf("%+v, want %d uses, %d successes", u, want.uses[u.Key], want.wins[u.Key])
			}
		}
	})
}

func nonzero(m map[string]int64) []string {
	var list []string
	for k, v := range m {
		if v != 0 {
			list = append(list, fmt.Sprint(k, " = ", v))
		}
	}
	sort.Strings(list)
	return list
}

// What a caller writes into a request must not stop the projection: NUL, bytes
// that are no UTF-8, paths longer than an index takes, statuses of nonsense.
func TestUsageTakesAnything(t *testing.T) {
	conn := connection(t, database(t))
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	for i, d := range []events.KeyUsed{
		{Endpoint: "/\x00", Method: "G\x00T"}, {Endpoint: "/\xff\xfe"}, {Endpoint: strings.Repeat("/é", 100_000)}, {Method: strings.Repeat("M", 10_000)},
		{Status: new(1 << 40), LatencyMS: new(int64(-5))}, {Status: new(-7), LatencyMS: new(int64(1 << 60))}, {Decision: "not an id", Secret: "\x00"},
	} {
		e := events.New(d, start)
		e.Keyspace, e.Owner, e.Key = "parcelbird", "o1", "key_a"
		if err := (Usage{}).Apply(t.Context(), tx, []events.Record{{Stream: events.Usage, Sequence: uint64(i + 1), Event: e}}); err != nil {
			t.Errorf("%+.60v: %v", d, err)
		}
	}
}

// A report that comes more than a day after its use is left alone, and what can
// no longer be settled is not kept for ever.
func TestOutcomesEnd(t *testing.T) {
	conn := connection(t, database(t))
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	n := uint64(0)
	apply := func(at time.Time, data events.Payload) {
		n++
		e := events.New(data, at)
		e.Keyspace, e.Owner, e.Key = "parcelbird", "o1", "key_a"
		if err := (Usage{}).Apply(t.Context(), tx, []events.Record{{Stream: events.Usage, Sequence: n, Event: e}}); err != nil {
			t.Fatal(err)
		}
	}
	count := func(sql string) (n int64) {
		if err := tx.QueryRow(t.Context(), sql).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	apply(start, events.KeyUsed{Decision: "dec_1"})
	apply(start, events.KeyUsed{Decision: "dec_2"})
	apply(start.Add(OutcomeWindow), events.KeyUseReported{Decision: "dec_1", Status: 200})
	apply(start.Add(OutcomeWindow+time.Second), events.KeyUseReported{Decision: "dec_2", Status: 200})
	if n := count(`select sum(requests) from usage_v2 where status = 200`); n != 1 {
		t.Errorf("%d outcomes counted, want 1", n)
	}
	apply(start.Add(1000*time.Hour), events.KeyUsed{Decision: "dec_3"}) // one clock that is wrong
	if n := count(`select count(*) from outcomes_v2`); n != 3 {
		t.Errorf("%d outcomes kept, want 3", n)
	}
	for i := range 100 {
		apply(start.Add(OutcomeWindow+time.Duration(i)*time.Hour), events.KeyUsed{Decision: "dec_4"})
	}
	if n := count(`select count(*) from outcomes_v2`); n != 2 {
		t.Errorf("%d outcomes kept, want 2", n)
	}
}

// However a week of facts is cut into batches, all rows are the same: also of outcomes
// that were kept long enough, and of facts that come late or from a clock that is wrong.
func TestUsageWhateverBatches(t *testing.T) {
	conn := connection(t, database(t))
	rapid.Check(t, func(rt *rapid.T) {
		var all []events.Record
		step := rapid.IntRange(1, 200).Draw(rt, "minutes between")
		for i := range rapid.IntRange(1, 60).Draw(rt, "records") {
			at := start.Add(time.Duration(i*step) * time.Minute)
			if rapid.IntRange(0, 5).Draw(rt, "odd") == 0 {
				at = at.Add(time.Duration(rapid.IntRange(-100, 100).Draw(rt, "hours")) * time.Hour)
			}
			var data events.Payload = events.KeyUsed{Decision: fmt.Sprint("dec_", rapid.IntRange(1, 8).Draw(rt, "decision")), Endpoint: "/a", CostMicros: 3, Secret: "current"}
			switch d := data.(events.KeyUsed); rapid.IntRange(0, 3).Draw(rt, "kind") {
			case 0:
				data = events.KeyUseReported{Decision: d.Decision, Status: 200, LatencyMS: 5}
			case 1:
				d.Status = new(404)
				data = d
			}
			e := events.New(data, at)
			e.Keyspace, e.Owner, e.Key = "parcelbird", "o1", rapid.SampledFrom([]string{"key_a", "key_b"}).Draw(rt, "key")
			all = append(all, events.Record{Stream: events.Usage, Sequence: uint64(i + 1), Event: e})
		}
		rows := func(name string) (sums []string) {
			tx, err := conn.Begin(t.Context())
			if err != nil {
				rt.Fatal(err)
			}
			defer func() { _ = tx.Rollback(t.Context()) }()
			for left := all; len(left) > 0; {
				n := rapid.IntRange(1, len(left)).Draw(rt, name)
				if err := (Usage{}).Apply(t.Context(), tx, left[:n]); err != nil {
					rt.Fatal(err)
				}
				left = left[n:]
			}
			for _, table := range (Usage{}).Tables() {
				for _, row := range collect[struct{ T string }](rt, t.Context(), tx, `select t::text from `+table.Name+` t order by 1`) {
					sums = append(sums, table.Name+" "+row.T)
				}
			}
			// What is added up is what was added.
			for _, sql := range []string{
				`select (coalesce(sum(requests) filter (where minute < folded), 0) - (select coalesce(sum(requests), 0) from usage_hours_v2)) as n from usage_v2, usage_state_v2`,
				`select (coalesce(sum(requests) filter (where hour < days_folded), 0) - (select coalesce(sum(requests), 0) from usage_days_v2)) as n from usage_hours_v2, usage_state_v2`,
			} {
				if list := collect[struct{ N int64 }](rt, t.Context(), tx, strings.Replace(sql, " as n", "::bigint as n", 1)); len(list) != 1 || list[0].N != 0 {
					rt.Fatalf("%s: %v", sql, list)
				}
			}
			return sums
		}
		if d := cmp.Diff(rows("one"), rows("other")); d != "" {
			rt.Fatal(d)
		}
	})
}
