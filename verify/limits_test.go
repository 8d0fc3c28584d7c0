package verify_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// owls is a keyspace whose keys share their owner's pool.
var owls = strings.NewReplacer(
	`"birds"`, `"owls"`,
	`"limits": {"from": "plan", "count_by": "key"}`, `"limits": {"from": "plan", "count_by": "owner"}, "default_plan": "small",
		"plans": {"small": {"limits": {"minute": 3, "day": 100}}, "own": {"limits": {"hour": 2}}, "large": {}},
		"rate_headers": ["x-ratelimit", "retry-after", "ietf"]`,
	`"answers": {`, `"answers": {"RATE_LIMITED": {"status": 429, "body": {"wait": "${retry_after}", "most": "${limit.minute}", "left": "${remaining.day}", "of": "${owner}"}},`,
).Replace(verifytest.Birds)

// clock is a virtual one, and its own zero is at 22:30 of a day.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()).UTC() }
func (c *clock) forward(d time.Duration) { c.at.Add(int64(d)) }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Now().UTC().Truncate(24 * time.Hour).Add(24*time.Hour + 22*time.Hour + 30*time.Minute).UnixNano())
	return c
}

func owlWorld(t testing.TB) (*verifytest.World, *clock) {
	c := newClock()
	w := verifytest.New(t, verify.Options{Now: c.now})
	w.Configure(owls)
	return w, c
}

func owl(secret string) domain.Request {
	req := request(secret)
	req.Keyspace = "owls"
	return req
}

// All keys on an owner's plan and other traffic draw from one pool; a key with a
// plan of its own has its own. What is refused consumes nothing, and what needs
// no key neither.
func TestLimits(t *testing.T) {
	w, c := owlWorld(t)
	scopes := []string{"birds:read"}
	first, second, own := secret, "bd_live_ffffffffffffffffffffffffffffffff", "bd_live_gggggggggggggggggggggggggggggggg"
	key := w.Key("owls", "org_1", first, events.KeyCreated{Environment: "live", Scopes: scopes})
	w.Key("owls", "org_1", second, events.KeyCreated{Environment: "live"})
	w.Key("owls", "org_1", own, events.KeyCreated{Environment: "live", Scopes: scopes, Plan: "own"})
	verify := func(secret string, code domain.Code, want ...string) verify.Decision {
		t.Helper()
		d := w.Verifier.Verify(owl(secret))
		if got := fmt.Sprint(room(d)); d.Code != code || got != fmt.Sprint(want) {
			t.Errorf("%s %s, want %s %s", d.Code, got, code, want)
		}
		return d
	}
	verify(first, domain.CodeValid, "minute 2/3 60s", "day 99/100 5400s")
	verify(second, domain.CodeInsufficientScope)
	c.forward(10 * time.Second)
	taken, err := w.Verifier.Take("owls", "org_1", 2)
	if err != nil || !taken.Valid || fmt.Sprint(room(taken)) != "[minute 0/3 50s day 97/100 5390s]" {
		t.Errorf("%+v, %v", taken, err)
	}
	if !w.Verifier.Limited(w.Ring.Key(key)) {
		t.Error("the key is not shown as limited")
	}
	d := verify(first, domain.CodeRateLimited, "minute 0/3 50s", "day 97/100 5390s")
	if d.RetryAfter != 50 || d.Key.ID != key {
		t.Errorf("%+v", d)
	}
	req := owl(first)
	a := d.Answer(&req, "req_1")
	if a.Status != 429 || string(a.Body) != `{"wait":50,"most":3,"left":97,"of":"org_1"}` {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	reset := fmt.Sprint(c.now().Add(50 * time.Second).Unix())
	if got, want := fmt.Sprint(a.Headers[1:]), "[{Retry-After 50} {X-RateLimit-Limit 3} {X-RateLimit-Remaining 0} {X-RateLimit-Reset "+reset+
		`} {RateLimit-Policy "minute";q=3;w=60, "day";q=100;w=86400} {RateLimit "minute";r=0;t=50}]`; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if refused, err := w.Verifier.Take("owls", "org_1", 1); err != nil || refused.Code != domain.CodeRateLimited || refused.RetryAfter != 50 {
		t.Errorf("%+v, %v", refused, err)
	}
	verify(own, domain.CodeValid, "hour 1/2 3600s")
	// A public route needs no credential; one that is presented is judged, limits
	// included.
	health := owl(first)
	health.Path = "/health"
	if d := w.Verifier.Verify(health); d.Code != domain.CodeRateLimited {
		t.Errorf("a public route with a key that is limited: %s %v", d.Code, d.Limits())
	}
	health.Credential = nil
	for range 5 {
		if d := w.Verifier.Verify(health); d.Code != domain.CodeValid || len(d.Limits()) > 0 {
			t.Errorf("a public route: %s %v", d.Code, d.Limits())
		}
	}
	c.forward(49 * time.Second)
	verify(first, domain.CodeRateLimited, "minute 0/3 1s", "day 97/100 5341s")
	c.forward(time.Second)
	verify(first, domain.CodeValid, "minute 0/3 10s", "day 96/100 5340s")

	// A larger limit holds at once, and so does a smaller one.
	w.Append("owls", "org_1", "", events.OwnerPlanChanged{Plan: "large"})
	verify(first, domain.CodeValid)
	w.Append("owls", "org_1", "", events.OwnerPlanChanged{Plan: "small"})
	verify(first, domain.CodeRateLimited, "minute 0/3 10s", "day 96/100 5340s")
	c.forward(2 * time.Hour)
	verify(first, domain.CodeValid, "minute 2/3 60s", "day 99/100 84540s")

	for name, c := range map[string]struct{ keyspace, owner string }{"keyspace": {"fish", "org_1"}, "owner": {"owls", "org_2"}, "root": {"keyledger", ""}} {
		if d, err := w.Verifier.Take(c.keyspace, c.owner, 1); err == nil || d.Valid {
			t.Errorf("of no %s: %+v", name, d)
		}
	}
	var limited, drawn int64
	for _, r := range w.Recorded() {
		switch d := r.Event.Data.(type) {
		case events.KeyRateLimited:
			limited += d.Count
			if r.Event.Key != key || d.Window != "minute" || d.Limit != 3 || d.First != d.Last {
				t.Errorf("%+v", r.Event)
			}
		case events.LimitTaken:
			drawn += d.Count
			if r.Event.Owner != "org_1" || r.Event.Key != "" || r.Event.Keyspace != "owls" {
				t.Errorf("%+v", r.Event)
			}
		}
	}
	if limited != 4 || drawn != 2 {
		t.Errorf("%d refusals and %d drawn are recorded", limited, drawn)
	}
}

// What changes in a key, its owner or the document holds for the next request,
// against what was counted before.
func TestLimitsChangedInUse(t *testing.T) {
	c := newClock()
	w := verifytest.New(t, verify.Options{Now: c.now})
	document := strings.NewReplacer(`"birds"`, `"owls"`, `"from": "plan"`, `"from": "key"`).Replace(verifytest.Birds)
	w.Configure(document)
	key := w.Key("owls", "org_1", secret, events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}, Limits: events.Limits{"minute": 2, "hour": 10}})
	check := func(code domain.Code, want ...string) {
		t.Helper()
		if d := w.Verifier.Verify(owl(secret)); d.Code != code || fmt.Sprint(room(d)) != fmt.Sprint(want) {
			t.Errorf("%s %s, want %s %s", d.Code, room(d), code, want)
		}
	}
	patch := func(limits events.Limits) {
		w.Append("owls", "org_1", key, events.KeyUpdated{Limits: &limits})
	}
	check(domain.CodeValid, "minute 1/2 60s", "hour 9/10 3600s")
	check(domain.CodeValid, "minute 0/2 60s", "hour 8/10 3600s")
	check(domain.CodeRateLimited, "minute 0/2 60s", "hour 8/10 3600s")
	patch(events.Limits{"minute": 3, "hour": 10})
	check(domain.CodeValid, "minute 0/3 60s", "hour 7/10 3600s")
	patch(events.Limits{"minute": 1, "hour": 3})
	check(domain.CodeRateLimited, "minute 0/1 60s", "hour 0/3 3600s")
	patch(events.Limits{"day": 1}) // which was not counted
	check(domain.CodeValid, "day 0/1 5400s")
	check(domain.CodeRateLimited, "day 0/1 5400s")
	patch(events.Limits{})
	check(domain.CodeValid)

	// The same key on plans of the document, which changes as well.
	plans := func(limits string) {
		w.Configure(strings.Replace(document, `"limits": {"from": "key", "count_by": "key"}`,
			`"limits": {"from": "plan", "count_by": "key"}, "default_plan": "a", "plans": {"a": {"limits": `+limits+`}, "b": {"limits": {"hour": 9}}}`, 1))
	}
	plans(`{"hour": 4}`)
	check(domain.CodeValid, "hour 0/4 3600s") // three were counted while the hour had a limit
	check(domain.CodeRateLimited, "hour 0/4 3600s")
	plans(`{"hour": 5}`)
	check(domain.CodeValid, "hour 0/5 3600s")
	w.Append("owls", "org_1", "", events.OwnerPlanChanged{Plan: "b"})
	check(domain.CodeValid, "hour 3/9 3600s")
	w.Append("owls", "org_1", key, events.KeyUpdated{Plan: new("a")})
	check(domain.CodeRateLimited, "hour 0/5 3600s")
}

// room is what a decision says of its windows: what remains and when they reset.
func room(d verify.Decision) (all []string) {
	for _, l := range d.Limits() {
		all = append(all, fmt.Sprintf("%s %d/%d %s", l.Window, l.Remaining, l.Limit, fmt.Sprintf("%.0fs", l.Reset.Time().Sub(d.Time).Seconds())))
	}
	return all
}

// However many were refused in a second, by however many at once: one fact for
// each key and window, with the exact count; and as many are admitted as the
// limit says.
func TestLimitedTogether(t *testing.T) {
	w, _ := owlWorld(t)
	w.Key("owls", "org_1", secret, events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}})
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if w.Verifier.Verify(owl(secret)).Valid {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	all := verifytest.RecordedAs[events.KeyRateLimited](w)
	if admitted.Load() != 3 || len(all) != 1 || all[0].Count != 397 {
		t.Errorf("%d are admitted, refused are %+v", admitted.Load(), all)
	}
}

// A request that was refused because it could not be recorded consumed nothing.
func TestLimitGivenBack(t *testing.T) {
	w, _ := owlWorld(t)
	w.Key("owls", "org_1", secret, events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}})
	req := owl(secret)
	for range 3 {
		d := w.Verifier.Verify(req)
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if err := w.Verifier.RecordDurably(ctx, &d, &req, verify.Use{}); err == nil {
			t.Fatal("recorded although nobody waits")
		}
	}
	if d := w.Verifier.Verify(req); !d.Valid || d.Limits()[0].Remaining != 2 {
		t.Errorf("%s, %v", d.Code, room(d))
	}
}

// A verifier that starts knows what was admitted before, by whatever node, in
// every window that is not over.
func TestRecount(t *testing.T) {
	c := newClock()
	c.forward(-72 * time.Hour) // the server does not store what is yet to come
	w := verifytest.New(t, verify.Options{Now: c.now})
	w.Configure(strings.Replace(owls, `{"minute": 3, "day": 100}`, `{"minute": 10, "hour": 100, "day": 1000}`, 1))
	w.Key("owls", "org_1", secret, events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}})
	req := owl(secret)
	use := func(n int) {
		for range n {
			d := w.Verifier.Verify(req)
			if !w.Verifier.Record(&d, &req, verify.Use{}) || !d.Valid {
				t.Fatal(d.Code)
			}
		}
	}
	use(5)
	c.forward(95 * time.Minute) // the next day
	use(4)
	if _, err := w.Verifier.Take("owls", "org_1", 2); err != nil {
		t.Fatal(err)
	}
	c.forward(5 * time.Minute)
	use(3)
	c.forward(20 * time.Second)
	w.Recorded()
	before := room(w.Verifier.Verify(req))
	again := verify.New(w.Ring, w.Recorder, verify.Options{Now: c.now})
	t.Cleanup(again.Close)
	if err := again.Recount(t.Context(), w.Ledger, time.Minute, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if after := room(again.Verify(req)); fmt.Sprint(before) != fmt.Sprint(after) || after[0] != "minute 6/10 40s" {
		t.Errorf("%s before, %s after", before, after)
	}
}

// manyKeys is a verifier of n keys with limits in all windows, that nobody runs
// a ledger for.
func manyKeys(b *testing.B, n int) (*keyring.Ring, []string) {
	ring := keyring.New()
	var sequence uint64
	apply := func(owner, key string, data events.Payload) {
		sequence++
		e := events.New(data, time.Now())
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "birds", owner, key, 1
		ring.Apply(events.Record{Stream: events.Ledger, Sequence: sequence, Subject: events.Subject("birds", owner, key), Event: e})
	}
	document := strings.Replace(verifytest.Birds, `"from": "plan"`, `"from": "key"`, 1)
	apply("", "", events.KeyspaceConfigured{DocumentVersion: 1, Document: json.RawMessage(document)})
	secrets := make([]string, n)
	limits := events.Limits{"minute": 1 << 40, "hour": 1 << 40, "day": 1 << 40}
	owners := min(n/10, 1000)
	for i := range secrets {
		owner := fmt.Sprintf("org_%d", i%owners)
		if i < owners {
			apply(owner, "", events.OwnerRegistered{Name: owner})
		}
		secrets[i] = fmt.Sprintf("bd_live_%032d", i)
		apply(owner, events.NewID("key", time.Now()), events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}, Limits: limits, Secret: verifytest.Secret(secrets[i])})
	}
	return ring, secrets
}

// Three windows of keys that are drawn at random, all of them in use.
func BenchmarkLimits(b *testing.B) {
	for _, n := range []int{1000, 1_000_000} {
		if testing.Short() && n > 1000 {
			continue
		}
		ring, secrets := manyKeys(b, n)
		v := verify.New(ring, nil, verify.Options{})
		decide := func(req *domain.Request, i int) {
			req.Key = secrets[i]
			if d := v.Verify(*req); !d.Valid {
				b.Error(d.Code)
			}
		}
		req := request("")
		for i := range n {
			decide(&req, i)
		}
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				r, req := rand.New(rand.NewPCG(rand.Uint64(), 1)), request("")
				for p.Next() {
					decide(&req, r.IntN(n))
				}
			})
		})
		v.Close()
	}
}

// The same with the use recorded, of one key: beside BenchmarkVerify/record it
// shows what limits cost.
func BenchmarkLimitsRecorded(b *testing.B) {
	w := verifytest.New(b, verify.Options{})
	w.Configure(strings.Replace(verifytest.Birds, `"from": "plan"`, `"from": "key"`, 1))
	w.Key("birds", "org_1", secret, events.KeyCreated{
		Environment: "live", Scopes: []string{"birds:read"}, Limits: events.Limits{"minute": 1 << 40, "hour": 1 << 40, "day": 1 << 40},
	})
	req := request(secret)
	b.ReportAllocs()
	for b.Loop() {
		d := w.Verifier.Verify(req)
		w.Verifier.Record(&d, &req, verify.Use{Via: "api", RequestID: "req_1", UserAgent: "curl/8", Status: 200, Latency: time.Millisecond})
	}
}
