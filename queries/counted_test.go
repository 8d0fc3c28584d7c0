package queries

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
)

// request is one line of the slow count: n requests that are alike.
type request struct {
	at                                              time.Time
	keyspace, owner, key                            string
	environment, method, endpoint, code, ip, secret string
	status                                          int
	n, cost                                         int64
	latency                                         *int64
}

// slowly makes requests of facts in the order of the stream, as section 4 of the
// contract and docs/analytics.md tell it, with nothing of the read models.
func slowly(facts []fact) (all []request) {
	first := map[string]int{}                  // decision -> its use in all
	told := map[string]events.KeyUseReported{} // decision -> what was reported first
	toldAt := map[string]time.Time{}
	for _, f := range facts {
		e := f.e
		r := request{at: e.Time.Time(), keyspace: e.Keyspace, owner: e.Owner, key: e.Key, ip: f.ip, n: 1}
		switch d := e.Data.(type) {
		case seal.Use:
			r.environment, r.method, r.endpoint, r.code, r.secret, r.cost = d.Environment, d.Method, d.Endpoint, "VALID", d.Secret, d.CostMicros
			if d.Status != nil {
				r.status, r.latency = *d.Status, d.LatencyMS
			} else {
				if _, again := first[d.Decision]; again {
					continue
				}
				first[d.Decision] = len(all)
			}
			all = append(all, r)
		case events.KeyUseReported:
			if _, again := told[d.Decision]; !again {
				told[d.Decision], toldAt[d.Decision] = d, e.Time.Time()
			}
		case events.KeyDenied:
			r.at, r.n, r.code, r.endpoint, r.ip = d.First.Time(), d.Count, d.Code, d.Endpoint, ""
			all = append(all, r)
		case events.KeyRateLimited:
			r.at, r.n, r.code, r.ip = d.First.Time(), d.Count, "RATE_LIMITED", ""
			all = append(all, r)
		case seal.Rejected:
			r.at, r.n, r.code = d.First.Time(), d.Count, d.Code
			all = append(all, r)
		}
	}
	for decision, i := range first {
		d, ok := told[decision]
		if !ok || toldAt[decision].After(all[i].at.Add(24*time.Hour)) {
			continue
		}
		r := &all[i]
		r.status, r.latency = d.Status, &d.LatencyMS
		if d.CostMicros != nil {
			r.cost = *d.CostMicros
		}
		if d.Endpoint != "" {
			r.endpoint = d.Endpoint
		}
	}
	return all
}

// counted are the figures of a group.
type counted struct {
	Requests, Successes, Errors, Unknown, Denied, RateLimited, Cost int64
	latencies                                                       []int64
}

func count(all []request, group func(request) (string, bool)) map[string]*counted {
	groups := map[string]*counted{}
	for _, r := range all {
		name, ok := group(r)
		if !ok {
			continue
		}
		c := groups[name]
		if c == nil {
			c = &counted{}
			groups[name] = c
		}
		c.Requests += r.n
		c.Cost += r.cost
		switch {
		case r.code == "RATE_LIMITED":
			c.RateLimited += r.n
		case r.code != "VALID":
			c.Denied += r.n
		case r.status == 0:
			c.Unknown += r.n
		case r.status < 400:
			c.Successes += r.n
		default:
			c.Errors += r.n
		}
		if r.latency != nil {
			c.latencies = append(c.latencies, *r.latency)
		}
	}
	return groups
}

// agrees says what is wrong with an average (exact) and percentiles (within the class
// of the true one).
func (c *counted) agrees(average, p50, p95, p99 *float64) string {
	if len(c.latencies) == 0 {
		if average != nil || p50 != nil || p95 != nil || p99 != nil {
			return "a latency of nothing"
		}
		return ""
	}
	if average == nil || p50 == nil || p95 == nil || p99 == nil {
		return "no latency"
	}
	slices.Sort(c.latencies)
	sum := int64(0)
	for _, ms := range c.latencies {
		sum += ms
	}
	if mean := float64(sum) / float64(len(c.latencies)); math.Abs(mean-*average) > 1e-9*mean {
		return fmt.Sprintf("average %g, not %g", *average, mean)
	}
	bounds := []float64{0, 1, 2, 3, 5, 7, 10, 15, 25, 40, 65, 100, 150, 250, 400, 650, 1000, 1500, 2500, 4000, 6500, 10000, 30000}
	for p, got := range map[float64]float64{0.50: *p50, 0.95: *p95, 0.99: *p99} {
		truth := float64(c.latencies[int(math.Ceil(p*float64(len(c.latencies))))-1])
		low, high := 30000.0, 30000.0
		if i, _ := slices.BinarySearch(bounds, truth); i < len(bounds) {
			low, high = bounds[max(i, 1)-1], bounds[max(i, 1)]
		}
		if got < low-1e-9 || got > high+1e-9 {
			return fmt.Sprintf("p%g is %g, %g is between %g and %g", 100*p, got, truth, low, high)
		}
	}
	return ""
}

// fact is an event before it was sealed, with its address.
type fact struct {
	e  events.Envelope
	ip string
}

// analytics are streams, a database and a runner that is killed and begun again.
type analytics struct {
	*indexed
	*Queries
	r    *projections.Runner
	kill func()
	head uint64
	base time.Time // before what comes next
	runs int
	kept Kept // by what was removed
}

func (a *analytics) begin() {
	a.r = projections.New(a.l, a.indexed.pool, slog.New(slog.DiscardHandler), projections.Addresses{Keys: a.log.keys})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.r.Run(ctx) })
	a.kill = func() { cancel(); running.Wait() }
}

func (a *analytics) append(t *rapid.T, facts []fact, sizes []int) {
	for i := 0; len(facts) > 0; i++ {
		n := 1 // a page is of one keyspace
		for n < len(facts) && n < sizes[i%len(sizes)] && facts[n].e.Keyspace == facts[0].e.Keyspace {
			n++
		}
		var sealed []events.Envelope
		for _, f := range facts[:n] {
			sealed = append(sealed, f.e)
		}
		if err := a.log.keys.Prepare(context.Background(), sealed); err != nil {
			t.Fatal(err)
		}
		var bodies [][]byte
		for _, e := range sealed {
			b, err := events.Encode(e)
			if err != nil {
				t.Fatal(err)
			}
			bodies = append(bodies, b)
		}
		sequence, err := a.l.AppendPage(context.Background(), sealed[0].Keyspace, []string{"n1", "n2", "n3"}[i%3], bodies)
		if err != nil {
			t.Fatal(err)
		}
		a.head = sequence
		facts = facts[n:]
	}
}

func (a *analytics) caughtUp(t *rapid.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, name := range a.r.Names() {
		if strings.HasPrefix(name, "usage_") || strings.HasPrefix(name, "uses_") || strings.HasPrefix(name, "addresses_") {
			if err := a.r.Wait(ctx, name, a.head); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// traffic draws facts of a day or two, in the order in which they will be in the
// stream: mostly that of their times.
func traffic(t *rapid.T, run int, base time.Time) []fact {
	keyspaces := []string{fmt.Sprintf("wood-%d", run), fmt.Sprintf("wind-%d", run)}
	minutes := rapid.IntRange(60, 40*60).Draw(t, "minutes")
	n := rapid.IntRange(20, 250).Draw(t, "facts")
	var all []fact
	var uses []events.Envelope // whose outcome may be reported
	add := func(at time.Time, keyspace, owner, key, ip string, data events.Payload) events.Envelope {
		e := events.New(data, at)
		e.Keyspace, e.Owner, e.Key, e.Actor = keyspace, owner, key, events.Actor{Type: "key", ID: "key"}
		all = append(all, fact{e, ip})
		return e
	}
	rejected := map[string]bool{}
	for i := range n {
		at := base.Add(time.Duration(i*minutes*60/n) * time.Second)
		if rapid.IntRange(0, 4).Draw(t, "late") == 0 {
			at = at.Add(-time.Duration(rapid.IntRange(0, 3*3600).Draw(t, "by")) * time.Second)
		}
		keyspace := rapid.SampledFrom(keyspaces).Draw(t, "keyspace")
		owner := rapid.SampledFrom([]string{"o1", "o2"}).Draw(t, "owner")
		key := "key_" + keyspace + "_" + owner + rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key")
		endpoint := rapid.SampledFrom([]string{"/v1/a", "/v1/b", "/v1/ü"}).Draw(t, "endpoint")
		ip := rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}).Draw(t, "ip")
		latency := rapid.SampledFrom([]int64{0, 1, 2, 7, 8, 39, 40, 41, 120, 999, 29_000, 70_000}).Draw(t, "latency")
		fold := events.Fold{Count: rapid.Int64Range(1, 40).Draw(t, "count"), First: events.At(at), Last: events.At(at)}
		use := seal.Use{KeyUsed: events.KeyUsed{Decision: events.NewID("dec", at), Method: rapid.SampledFrom([]string{"GET", "POST"}).Draw(t, "method"), Endpoint: endpoint,
			CostMicros: rapid.Int64Range(0, 9).Draw(t, "cost"), Environment: "live", Secret: rapid.SampledFrom([]string{"current", "previous"}).Draw(t, "secret")}, ClearIP: ip}
		outcome := func(decision string) events.KeyUseReported {
			r := events.KeyUseReported{Decision: decision, Status: rapid.SampledFrom([]int{200, 302, 404, 500}).Draw(t, "outcome"), LatencyMS: latency}
			if rapid.Bool().Draw(t, "more") {
				r.CostMicros, r.Endpoint = new(rapid.Int64Range(0, 99).Draw(t, "reported cost")), endpoint
			}
			return r
		}
		switch rapid.IntRange(0, 11).Draw(t, "kind") {
		case 0, 1, 2:
			use.Status, use.LatencyMS = new(rapid.SampledFrom([]int{200, 204, 401, 503}).Draw(t, "status")), &latency
			add(at, keyspace, owner, key, ip, use)
		case 3:
			uses = append(uses, add(at, keyspace, owner, key, ip, use))
		case 4: // the outcome comes first
			add(at.Add(time.Second), keyspace, owner, key, "", outcome(use.Decision))
			uses = append(uses, add(at, keyspace, owner, key, ip, use))
		case 5, 6: // an outcome, of one that may have had its own
			if len(uses) > 0 {
				of := rapid.SampledFrom(uses).Draw(t, "of")
				if used := of.Time.Time(); at.Before(used) { // it may be late, and is not reported before it was
					at = used
				}
				add(at, of.Keyspace, of.Owner, of.Key, "", outcome(of.Data.(seal.Use).Decision))
			}
		case 7: // a repetition, as after an answer that was lost
			if len(uses) > 0 {
				of := rapid.SampledFrom(uses).Draw(t, "again")
				all = append(all, fact{of, ""})
			}
		case 8:
			add(at.Add(time.Second), keyspace, owner, key, "", events.KeyRateLimited{Window: "minute", Limit: 3, Fold: fold})
		case 9:
			add(at.Add(time.Second), keyspace, owner, key, "", events.KeyDenied{Code: rapid.SampledFrom([]string{"EXPIRED", "REVOKED"}).Draw(t, "code"), Endpoint: endpoint, Fold: fold})
		case 10:
			add(at.Add(time.Second), keyspace, "", "", ip, seal.Rejected{CredentialRejected: events.CredentialRejected{Code: "UNKNOWN_KEY", Fold: fold}, ClearIP: ip})
			rejected[keyspace] = true
		case 11:
			if rapid.Bool().Draw(t, "gap") {
				add(at, keyspace, "", "", "", events.UsageGap{Count: 3, Reason: "away", From: events.At(at), To: events.At(at)})
			} else {
				add(at, keyspace, owner, "", "", events.LimitTaken{Fold: fold})
			}
		}
	}
	return all
}

// Whatever traffic is recorded, every figure of every view and of GET
// /v1/analytics/usage is what counting the stream slowly gives: after projectors were
// killed, after rebuilds, after the stream was pruned and rows were removed by age.
// Percentiles are within the class of the true one, all else is exact.
func TestAnalyticsAreTheCount(t *testing.T) {
	checks := 8
	if testing.Short() {
		checks = 2
	}
	if was := flag.Lookup("rapid.checks"); was.Value.String() == was.DefValue {
		_ = flag.Set("rapid.checks", fmt.Sprint(checks))
		t.Cleanup(func() { _ = flag.Set("rapid.checks", was.DefValue) })
	}
	x := newIndexed(t)
	a := &analytics{indexed: x, Queries: New(x.pool), base: time.Date(2026, 3, 1, 21, 17, 0, 0, time.UTC)}
	a.begin()
	defer func() { a.kill() }()
	rapid.Check(t, func(rt *rapid.T) {
		a.runs++
		facts := traffic(rt, a.runs, a.base)
		newest := a.base
		for _, f := range facts {
			if at := f.e.Time.Time(); at.After(newest) {
				newest = at
			}
		}
		begin := a.base
		a.base = newest.Add(6 * time.Hour).Truncate(time.Minute)
		sizes := rapid.SliceOfN(rapid.IntRange(1, 60), 1, 5).Draw(rt, "pages")
		cut := rapid.IntRange(0, len(facts)).Draw(rt, "first part")
		for _, part := range [][]fact{facts[:cut/2], facts[cut/2 : cut]} {
			a.append(rt, part, sizes)
			if rapid.Bool().Draw(rt, "kill") {
				a.kill()
				a.begin()
			}
		}
		a.append(rt, facts[cut:], sizes)
		a.caughtUp(rt)
		all := slowly(facts)
		kept := a.kept
		a.check(rt, "at first", all, kept, true)
		a.rebuild(rt)
		a.check(rt, "rebuilt", all, kept, true)

		// Part of USAGE goes; what is told of it later still counts.
		through := a.head - uint64(rapid.IntRange(0, min(int(a.head)-1, 20)).Draw(rt, "left"))
		if err := a.r.Keep(t.Context(), events.Usage, through, nil); err != nil {
			rt.Fatal(err)
		}
		x.act(time.Now(), events.UsagePruned{Stream: events.Usage, Through: through})
		if _, err := a.l.Prune(t.Context(), through); err != nil {
			rt.Fatal(err)
		}
		if err := a.r.Pruned(t.Context(), events.Usage, through); err != nil {
			rt.Fatal(err)
		}
		more := afterwards(rt, facts)
		a.append(rt, more, sizes)
		all = slowly(slices.Concat(facts, more))
		a.caughtUp(rt)
		a.check(rt, "pruned", all, kept, false)
		a.rebuild(rt)
		a.check(rt, "pruned and rebuilt", all, kept, false)

		// Old minutes go, older hours, still older days.
		span := int(newest.Sub(begin) / time.Minute)
		days := rapid.IntRange(0, span/3).Draw(rt, "days until")
		hours := rapid.IntRange(days, span/2).Draw(rt, "hours until")
		minutes := rapid.IntRange(hours, span).Draw(rt, "minutes until")
		until := projections.Until{
			Minutes: begin.Add(time.Duration(minutes) * time.Minute), Hours: begin.Add(time.Duration(hours) * time.Minute).Truncate(time.Hour), Days: begin.Add(time.Duration(days) * time.Minute).Truncate(24 * time.Hour)}
		if _, err := a.r.Forget(t.Context(), until); err != nil {
			rt.Fatal(err)
		}
		later := func(a *time.Time, b time.Time) *time.Time { // what is gone stays gone
			if a != nil && a.After(b) {
				return a
			}
			return &b
		}
		kept = Kept{Minute: later(kept.Minute, until.Minutes), Hour: later(kept.Hour, until.Hours), Day: later(kept.Day, until.Days)}
		a.kept = kept
		a.check(rt, "aged", all, kept, false)
		again := afterwards(rt, facts)
		a.append(rt, again, sizes)
		all = slowly(slices.Concat(facts, more, again))
		a.caughtUp(rt)
		a.check(rt, "aged, and more came", all, kept, false)
		a.rebuild(rt)
		a.check(rt, "aged and rebuilt", all, kept, false)
	})
}

// afterwards are a few more facts of the time of others: late ones.
func afterwards(t *rapid.T, facts []fact) (list []fact) {
	for range rapid.IntRange(0, 10).Draw(t, "afterwards") {
		if len(facts) == 0 {
			return nil
		}
		of := rapid.SampledFrom(facts).Draw(t, "of")
		u, ok := of.e.Data.(seal.Use)
		if !ok {
			continue
		}
		if u.Status != nil || rapid.Bool().Draw(t, "new") {
			u.Decision = events.NewID("dec", of.e.Time.Time())
			e := events.New(u, of.e.Time.Time())
			e.Keyspace, e.Owner, e.Key = of.e.Keyspace, of.e.Owner, of.e.Key
			list = append(list, fact{e, of.ip})
			continue
		}
		e := events.New(events.KeyUseReported{Decision: u.Decision, Status: 201, LatencyMS: 17, CostMicros: new(int64(5))}, of.e.Time.Time().Add(time.Minute))
		e.Keyspace, e.Owner, e.Key = of.e.Keyspace, of.e.Owner, of.e.Key
		list = append(list, fact{e, ""})
	}
	return list
}

func (a *analytics) rebuild(t *rapid.T) {
	result, err := a.r.Rebuild(context.Background(), projections.Usage{}.Name(), nil)
	if err != nil || result.Differences != 0 || result.LiveHash != result.RebuiltHash {
		t.Fatalf("%+v, %v", result, err)
	}
}

// check compares everything that can be asked with the count.
func (a *analytics) check(t *rapid.T, when string, all []request, kept Kept, whole bool) {
	for bucket, since := range map[string]*time.Time{"minute": kept.Minute, "hour": kept.Hour, "day": kept.Day} {
		var says *time.Time
		if err := a.indexed.pool.QueryRow(context.Background(), `select since from analytics.usage_kept where resolution = $1`, bucket).Scan(&says); err != nil || (says == nil) != (since == nil) || says != nil && !says.Equal(*since) {
			t.Fatalf("%s: analytics.usage_kept says %v of %s, not %v; %v", when, says, bucket, since, err)
		}
		a.checkView(t, when, bucket, since, all)
	}
	a.checkLastUsed(t, when, all)
	for range 12 {
		a.checkUsage(t, when, all, kept, whole)
	}
}

func widthOf(bucket string) time.Duration {
	return map[string]time.Duration{"minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour}[bucket]
}

func (a *analytics) checkView(t *rapid.T, when, bucket string, since *time.Time, all []request) {
	want := count(all, func(r request) (string, bool) {
		at := r.at.Truncate(widthOf(bucket))
		return fmt.Sprint(at.UTC().Format(time.RFC3339), "|", r.keyspace, "|", r.owner, "|", r.key, "|", r.environment, "|", r.method, "|", r.endpoint, "|", r.status, "|", r.code), since == nil || !at.Before(*since)
	})
	rows, err := a.indexed.pool.Query(context.Background(), fmt.Sprintf(`select %[1]s at time zone 'UTC', keyspace, owner, key, environment, method, endpoint, status, code,
			requests, successes, errors, unknown, denied, rate_limited, cost_micros, latency_ms::float8 / nullif(measured, 0),
			analytics.percentile(0.50, histogram), analytics.percentile(0.95, histogram), analytics.percentile(0.99, histogram)
		from analytics.usage_%[1]s where keyspace like '%%-' || $1`, bucket), fmt.Sprint(a.runs))
	if err != nil {
		t.Fatal(err)
	}
	var at time.Time
	var keyspace, owner, key, environment, method, endpoint, code string
	var status int
	var c counted
	var average, p50, p95, p99 *float64
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&at, &keyspace, &owner, &key, &environment, &method, &endpoint, &status, &code,
		&c.Requests, &c.Successes, &c.Errors, &c.Unknown, &c.Denied, &c.RateLimited, &c.Cost, &average, &p50, &p95, &p99}, func() error {
		n++
		name := fmt.Sprint(at.UTC().Format(time.RFC3339), "|", keyspace, "|", owner, "|", key, "|", environment, "|", method, "|", endpoint, "|", status, "|", code)
		return same(when+": analytics.usage_"+bucket+": "+name, want[name], &c, average, p50, p95, p99)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n != len(want) {
		t.Fatalf("%s: analytics.usage_%s: %d rows, want %d", when, bucket, n, len(want))
	}
}

func same(what string, want, got *counted, average, p50, p95, p99 *float64) error {
	if want == nil {
		return fmt.Errorf("%s: %+v of nothing", what, got)
	}
	if d := cmp.Diff(want, got, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".latencies" }, cmp.Ignore())); d != "" {
		return fmt.Errorf("%s (-counted +answered):\n%s", what, d)
	}
	if wrong := want.agrees(average, p50, p95, p99); wrong != "" {
		return fmt.Errorf("%s: %s", what, wrong)
	}
	return nil
}

func (a *analytics) checkLastUsed(t *rapid.T, when string, all []request) {
	type last struct {
		Uses, Successes   int64
		Any               time.Time
		Success, Previous time.Time
		Secret            string
	}
	want := map[string]*last{}
	for _, r := range all {
		if r.code != "VALID" {
			continue
		}
		l := want[r.key]
		if l == nil {
			l = &last{}
			want[r.key] = l
		}
		l.Uses++
		if !r.at.Before(l.Any) {
			l.Any, l.Secret = r.at, r.secret
		}
		if r.status > 0 && r.status < 400 {
			l.Successes++
			if r.at.After(l.Success) {
				l.Success = r.at
			}
		}
		if r.secret == "previous" && r.at.After(l.Previous) {
			l.Previous = r.at
		}
	}
	rows, err := a.indexed.pool.Query(context.Background(), `select key, uses, successes, last_any_at, coalesce(last_success_at, '0001-01-01Z'), coalesce(previous_used_at, '0001-01-01Z'), last_secret
		from analytics.last_used where keyspace like '%-' || $1`, fmt.Sprint(a.runs))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*last{}
	var key string
	var l last
	if _, err := pgx.ForEachRow(rows, []any{&key, &l.Uses, &l.Successes, &l.Any, &l.Success, &l.Previous, &l.Secret}, func() error {
		got[key] = &last{l.Uses, l.Successes, l.Any.UTC(), l.Success.UTC(), l.Previous.UTC(), l.Secret}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s: analytics.last_used (-counted +answered):\n%s", when, d)
	}
}

// checkUsage asks for a random time, bucket and grouping.
func (a *analytics) checkUsage(t *rapid.T, when string, all []request, kept Kept, whole bool) {
	bucket := rapid.SampledFrom([]string{"", "minute", "hour", "day"}).Draw(t, "bucket")
	by := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"keyspace", "owner", "key", "endpoint", "status", "code"}), 0, 4, rapid.ID[string]).Draw(t, "by")
	keyspace := rapid.SampledFrom([]string{fmt.Sprintf("wood-%d", a.runs), fmt.Sprintf("wind-%d", a.runs)}).Draw(t, "of keyspace")
	f := UsageFilter{Keyspace: keyspace}
	if rapid.Bool().Draw(t, "of an owner") {
		f.Owner = "o1"
	}
	if rapid.Bool().Draw(t, "of a key") {
		f.Key = "key_" + keyspace + "_o1a"
	}
	edge := func(name string) events.Time {
		if len(all) == 0 || rapid.IntRange(0, 3).Draw(t, name+" absent") == 0 {
			return 0
		}
		at := rapid.SampledFrom(all).Draw(t, name).at.Add(time.Duration(rapid.IntRange(-90, 90).Draw(t, name+" by")) * time.Second)
		if rapid.IntRange(0, 3).Draw(t, name+" whole") == 0 {
			at = at.Truncate(time.Hour)
		}
		return events.At(at)
	}
	f.From, f.To = edge("from"), edge("to")
	if f.To != 0 && f.To < f.From {
		f.From, f.To = f.To, f.From
	}
	from, to := time.Time{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	if f.From != 0 {
		from = f.From.Time().Truncate(time.Minute)
	}
	if f.To != 0 {
		if to = f.To.Time().Truncate(time.Minute); to.Before(f.To.Time()) {
			to = to.Add(time.Minute)
		}
	}
	exact := whole && f.To == 0 && rapid.IntRange(0, 2).Draw(t, "by ip") == 0
	if !exact { // ends where minutes are gone move outward
		for _, gone := range []struct {
			before *time.Time
			step   time.Duration
			of     []string
		}{{kept.Minute, time.Hour, []string{"", "hour", "day"}}, {kept.Hour, 24 * time.Hour, []string{"", "day"}}} {
			if gone.before == nil || !slices.Contains(gone.of, bucket) {
				continue
			}
			if !from.Before(*gone.before) {
				continue
			}
			from = from.Truncate(gone.step)
			if last := to.Truncate(gone.step); last.Before(*gone.before) && last.Before(to) {
				to = last.Add(gone.step)
			}
		}
	}
	since := map[string]*time.Time{"": kept.Day, "day": kept.Day, "hour": kept.Hour, "minute": kept.Minute}[bucket]
	if exact {
		by = append(by, "ip")
	}
	want := count(all, func(r request) (string, bool) {
		if r.keyspace != keyspace || f.Owner != "" && r.owner != f.Owner || f.Key != "" && r.key != f.Key || r.at.Before(from) || !r.at.Before(to) {
			return "", false
		}
		if since != nil && r.at.Before(*since) {
			return "", false
		}
		name := ""
		if bucket != "" {
			name = r.at.Truncate(widthOf(bucket)).UTC().Format(time.RFC3339)
		}
		for _, d := range by {
			name += "|" + map[string]string{"keyspace": r.keyspace, "owner": r.owner, "key": r.key, "endpoint": r.method + " " + r.endpoint, "status": fmt.Sprint(r.status), "code": r.code, "ip": r.ip}[d]
		}
		return name, true
	})
	ctx := context.Background()
	var rows []UsageRow
	var err error
	if exact {
		through := a.log.Indexed(projections.NewIndex(a.indexed.pool, a.log.keys))
		rows, err = through.Usage(ctx, f, bucket, by, a.log.keys)
	} else {
		rows, err = a.Queries.Usage(ctx, f, bucket, by)
	}
	if err != nil {
		t.Fatal(err)
	}
	what := fmt.Sprintf("%s: usage of %+v in buckets of %q by %v", when, f, bucket, by)
	if len(rows) != len(want) {
		t.Fatalf("%s: %d rows, want %d", what, len(rows), len(want))
	}
	for _, r := range rows {
		name := ""
		if bucket != "" {
			name = r.Time.Time().UTC().Format(time.RFC3339)
		}
		for _, d := range by {
			switch d {
			case "keyspace":
				name += "|" + *r.Keyspace
			case "owner":
				name += "|" + *r.Owner
			case "key":
				name += "|" + *r.Key
			case "endpoint":
				name += "|" + *r.Method + " " + *r.Endpoint
			case "status":
				name += "|" + fmt.Sprint(*r.Status)
			case "code":
				name += "|" + *r.Code
			case "ip":
				name += "|" + *r.IP
			}
		}
		if err := same(what+": "+name, want[name], &counted{r.Requests, r.Successes, r.Errors, r.Unknown, r.Denied, r.RateLimited, r.CostMicros, nil}, r.AverageMS, r.P50MS, r.P95MS, r.P99MS); err != nil {
			t.Fatal(err)
		}
	}
}
