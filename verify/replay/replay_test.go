package replay_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/limit"
	"github.com/keyledger/keyledger/verify/replay"
	"github.com/keyledger/keyledger/verify/verifytest"
)

var evening = time.Date(2026, 1, 18, 22, 30, 0, 0, time.UTC) // so that traffic crosses midnight

// steps lead to the edges of windows as often as between them.
func step(t *rapid.T) time.Duration {
	edge := rapid.SampledFrom([]time.Duration{0, 0, time.Millisecond, 300 * time.Millisecond, 999 * time.Millisecond, time.Second, 7 * time.Second,
		59 * time.Second, time.Minute - time.Millisecond, time.Minute, 20 * time.Minute, time.Hour - time.Millisecond, time.Hour}).Draw(t, "step")
	return edge + time.Duration(rapid.Int64Range(0, 1500).Draw(t, "more"))*time.Millisecond
}

// traffic is what one node would record: uses at once, refusals as counts per key,
// window and second when the second is over.
type traffic struct {
	limits  *limit.Limiter
	rules   map[string]replay.Rule // by key
	stream  []events.Envelope
	folds   map[string]*events.Envelope
	refused map[string]int64 // by key
}

func (x *traffic) request(key string, now time.Time) {
	x.flush(now.Truncate(time.Second))
	rule := x.rules[key]
	var got limit.Taken
	x.limits.Take(&rule.Pool, &rule.Quota, 1, now, &got)
	e := events.Envelope{Time: events.At(now), Keyspace: "k", Owner: "o", Key: key}
	if got.OK {
		e.Data = events.KeyUsed{}
		x.stream = append(x.stream, e)
		return
	}
	x.refused[key]++
	window := got.Limits[got.Refused].Window
	id := fmt.Sprint(now.Unix(), key, window)
	if x.folds[id] == nil {
		e.Data = events.KeyRateLimited{Window: window, Fold: events.Fold{First: e.Time}}
		x.folds[id] = &e
	}
	d := x.folds[id].Data.(events.KeyRateLimited)
	d.Count, d.Last = d.Count+1, e.Time
	x.folds[id].Data = d
}

// flush writes the counts of the seconds that are over, in any order.
func (x *traffic) flush(before time.Time) {
	for id, e := range x.folds {
		if e.Data.(events.KeyRateLimited).First.Time().Before(before) {
			e.Time = events.At(e.Data.(events.KeyRateLimited).First.Time().Truncate(time.Second).Add(time.Second))
			x.stream = append(x.stream, *e)
			delete(x.folds, id)
		}
	}
}

// The limits that were in force, replayed over what was recorded, refuse exactly what
// was refused, of every key and in every count; whatever the traffic.
func TestSameLimitsRefuseTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) domain.Quota {
			var q domain.Quota
			for i := range q {
				if n := rapid.Int64Range(0, 6).Draw(t, name); n > 0 {
					q[i] = n * int64(i+1)
				}
			}
			return q
		}
		shared, own := draw("shared"), draw("own")
		x := &traffic{limits: limit.New(evening), folds: map[string]*events.Envelope{}, refused: map[string]int64{}, rules: map[string]replay.Rule{
			"a": {Pool: domain.Pool{Keyspace: "k", Owner: "o"}, Quota: shared, Known: true, Count: true},
			"b": {Pool: domain.Pool{Keyspace: "k", Owner: "o"}, Quota: shared, Known: true, Count: true},
			"c": {Pool: domain.Pool{Keyspace: "k", Owner: "o", Key: "c"}, Quota: own, Known: true, Count: true},
		}}
		now := evening
		n := int64(rapid.IntRange(1, 120).Draw(t, "requests"))
		for range n {
			now = now.Add(step(t))
			x.request(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key"), now)
		}
		x.flush(now.Add(time.Minute))
		r := replay.New(replay.Options{From: events.At(evening), To: events.At(now) + 1, Bucket: time.Hour, Rule: func(key, _ string) replay.Rule { return x.rules[key] }})
		for i := range x.stream {
			if err := r.Add(&x.stream[i]); err != nil {
				t.Fatal(err)
			}
		}
		got := r.End()
		var refused int64
		for _, n := range x.refused {
			refused += n
		}
		want := replay.Figures{Requests: n, RefusedThen: refused, Refused: refused}
		if got.Total != want || got.Late != 0 || got.Unknown != 0 {
			t.Fatalf("total %+v, want %+v, %+v", got.Total, want, got)
		}
		for _, k := range got.Keys {
			if k.NewlyRefused != 0 || k.Refused != x.refused[k.Key] || k.First == 0 || k.WorstCount < 1 {
				t.Errorf("%+v, want %d", k, x.refused[k.Key])
			}
		}
		var line replay.Figures
		for _, b := range got.Timeline {
			line.Requests += b.Requests
			line.Refused += b.Refused
			line.RefusedThen += b.RefusedThen
		}
		if line != want {
			t.Errorf("the timeline adds up to %+v, want %+v", line, want)
		}
	})
}

// The same through a real verifier, its recorder and the stream: random traffic of
// three keys, two of which share a pool. Smaller limits refuse more, larger ones fewer
// (though some that were admitted, because others are admitted before), none nothing.
func TestRecordedTraffic(t *testing.T) {
	var clock atomic.Int64
	clock.Store(time.Now().UTC().Truncate(24 * time.Hour).Add(46*time.Hour + 30*time.Minute).UnixNano())
	now := func() time.Time { return time.Unix(0, clock.Load()).UTC() }
	w := verifytest.New(t, verify.Options{Now: now})
	w.Configure(strings.Replace(verifytest.Birds, `"limits": {"from": "plan", "count_by": "key"}`,
		`"limits": {"from": "plan", "count_by": "owner"}, "default_plan": "small", "plans": {"small": {"limits": {"minute": 5, "hour": 40}}, "own": {"limits": {"minute": 3}}}`, 1))
	secrets := []string{"bd_live_" + strings.Repeat("a", 32), "bd_live_" + strings.Repeat("b", 32), "bd_live_" + strings.Repeat("c", 32)}
	for i, s := range secrets {
		w.Key("birds", "org_1", s, events.KeyCreated{Environment: "live", Plan: []string{"", "", "own"}[i]})
	}
	from := now()
	random := rand.New(rand.NewPCG(3, 4))
	var requests, refused int64
	for range 3000 {
		clock.Add(int64(time.Duration(random.IntN(4000)) * time.Millisecond))
		req := domain.Request{Keyspace: "birds", Key: secrets[random.IntN(3)], Method: "GET", Path: "/"}
		d := w.Verifier.Verify(req)
		requests++
		switch d.Code {
		case domain.CodeRateLimited:
			refused++
		case domain.CodeValid:
		default:
			t.Fatal(d.Code)
		}
		w.Verifier.Record(&d, &req, verify.Use{Via: "test", Status: 200})
	}
	records := w.Recorded()
	// The counts were written when the test asked for them, hours after their seconds by
	// the clock of the test.
	when := func(e *events.Envelope) events.Time {
		if d, ok := e.Data.(events.KeyRateLimited); ok {
			return d.Last + 1000
		}
		return e.Time
	}
	for i := range records {
		records[i].Event.Time = when(&records[i].Event)
	}
	slices.SortStableFunc(records, func(a, b events.Record) int { return cmp.Compare(a.Event.Time, b.Event.Time) })
	run := func(from time.Time, change func(*domain.Quota)) replay.Result {
		t.Helper()
		r := replay.New(replay.Options{From: events.At(from), To: events.At(now()) + 1, Bucket: time.Minute, Rule: func(key, owner string) replay.Rule {
			quota, pool := w.Ring.Keyspace("birds").QuotaFor(w.Ring.Key(key), w.Ring.Owner("birds", owner))
			q := *quota
			if change != nil {
				change(&q)
			}
			return replay.Rule{Pool: pool, Quota: q, Known: true, Count: true}
		}})
		for i := range records {
			if err := r.Add(&records[i].Event); err != nil {
				t.Fatal(err)
			}
		}
		return r.End()
	}
	same := run(from, nil)
	if want := (replay.Figures{Requests: requests, RefusedThen: refused, Refused: refused}); same.Total != want || refused == 0 || same.Seen != 3 {
		t.Errorf("the limits that were in force: %+v, want %+v", same, want)
	}
	// A part of the time, with what was before it.
	if part := run(from.Add(time.Hour), nil).Total; part.Refused != part.RefusedThen || part.NewlyRefused != 0 || part.Requests == 0 || part.Requests == requests {
		t.Errorf("a part: %+v", part)
	}
	if none := run(from, func(q *domain.Quota) { *q = domain.Quota{} }).Total; none.Refused != 0 || none.NoLongerRefused != refused {
		t.Errorf("no limits: %+v", none)
	}
	if larger := run(from, func(q *domain.Quota) { q[0], q[1] = 2*q[0], 2*q[1] }).Total; larger.Refused >= refused {
		t.Errorf("larger limits: %+v", larger)
	}
	smaller := run(from, func(q *domain.Quota) { q[0] = 2 })
	if smaller.Total.NewlyRefused == 0 || smaller.Total.Refused <= refused || len(smaller.Keys) != 3 || len(smaller.Owners) != 1 {
		t.Errorf("smaller limits: %+v", smaller)
	}
	if k := smaller.Keys[0]; k.Windows["minute"] != k.Refused || k.Last <= k.First || k.WorstMinute < k.First-60_000 || slices.Max(slices.Collect(maps.Values(k.Windows))) != k.Refused {
		t.Errorf("%+v", k)
	}
}

// Other traffic of an owner draws from its pool and belongs to no key; what a rule
// does not count draws in silence; keys that nobody knows are left out and said.
func TestWhoCounts(t *testing.T) {
	pool := domain.Pool{Keyspace: "k", Owner: "o"}
	r := replay.New(replay.Options{From: events.At(evening), To: events.At(evening.Add(time.Hour)), Bucket: time.Hour, Rule: func(key, _ string) replay.Rule {
		return replay.Rule{Pool: pool, Quota: domain.Quota{4}, Known: key != "gone", Count: key != "silent"}
	}})
	at := events.At(evening)
	for _, e := range []events.Envelope{
		{Time: at, Key: "silent", Owner: "o", Data: events.KeyUsed{}},
		{Time: at + 1, Key: "gone", Owner: "o", Data: events.KeyUsed{}},
		{Time: at + 5000, Owner: "o", Data: events.LimitTaken{Fold: events.Fold{Count: 5, First: at + 2000, Last: at + 2003}}},
		{Time: at + 6000, Key: "a", Owner: "o", Data: events.KeyUsed{}},
		{Time: at + 7000, Key: "a", Owner: "o", Data: events.KeyDenied{Fold: events.Fold{Count: 9}}},
	} {
		if err := r.Add(&e); err != nil {
			t.Fatal(err)
		}
	}
	got := r.End()
	if want := (replay.Figures{Requests: 6, Refused: 3, NewlyRefused: 3}); got.Total != want || got.Unknown != 1 || len(got.Keys) != 1 || got.Owners[0].Refused != 3 {
		t.Errorf("%+v", got)
	}
	if q := replay.Before(at, domain.Quota{0, 0, 9}); q != events.At(evening.Truncate(24*time.Hour)) {
		t.Errorf("a day is filled from %s", q)
	}
	if q := replay.Before(at, domain.Quota{9}); q != at-60_000 {
		t.Errorf("a minute is filled from %s", q)
	}
}

// BenchmarkReplay decides recorded requests of 10,000 keys again, in three windows.
func BenchmarkReplay(b *testing.B) {
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = events.NewID("key", evening)
	}
	rule := func(key, owner string) replay.Rule {
		return replay.Rule{Pool: domain.Pool{Keyspace: "k", Owner: owner, Key: key}, Quota: domain.Quota{100, 5000, 100_000}, Known: true, Count: true}
	}
	r := replay.New(replay.Options{From: events.At(evening), To: events.At(evening.Add(1000 * time.Hour)), Bucket: time.Hour, Rule: rule})
	at, n := events.At(evening), 0
	for b.Loop() {
		if n++; n%40 == 0 { // 40,000 a second
			at++
		}
		if err := r.Add(&events.Envelope{Time: at, Key: keys[n%len(keys)], Owner: "o", Data: events.KeyUsed{}}); err != nil {
			b.Fatal(err)
		}
	}
	r.End()
}
