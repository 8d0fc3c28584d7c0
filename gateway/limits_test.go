package gateway_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/keyspaces"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// ticks is a gateway in front of the agents API whose page documents limits,
// with a key of the page's own limits on a clock that stands still.
func ticks(t *testing.T, upstream http.Handler) (*rig, *time.Time) {
	t.Helper()
	at := new(time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC))
	g := &rig{World: verifytest.New(t, verify.Options{Now: func() time.Time { return *at }}), t: t}
	for _, doc := range keyspaces.All() {
		if doc.Name == "promptick" {
			d, err := domain.ParseDocument(doc.Source)
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			g.Configure(string(b))
		}
	}
	g.key = g.World.Key("promptick", "proj_1", tickSecret, events.KeyCreated{
		Environment: "live", Resources: []string{"agt_1"}, Limits: events.Limits{"minute": 100, "hour": 5000, "day": 100000},
	})
	g.upstream = httptest.NewServer(upstream)
	t.Cleanup(g.upstream.Close)
	var err error
	g.gateway, err = gateway.New(gateway.Config{Routes: []gateway.Route{{PathPrefix: "/", Keyspace: "promptick", Upstream: g.upstream.URL}}}, g.Verifier, g.Recorder, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.server = httptest.NewServer(g.gateway)
	t.Cleanup(g.server.Close)
	return g, at
}

const tickSecret = "pk_live_abc123def456ghi789jkl012mno345pqr678stu901vwx234yz"

// What the page of the agents API says of limits, as a client sees it: three
// counters for each key, headers on every response, and 429 with this body when
// any is exceeded.
func TestLimitsAsThePageShowsThem(t *testing.T) {
	g, at := ticks(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-RateLimit-Limit", "7") // of the upstream's own
		if r.URL.Path == "/api/v1/agents/agt_1/fail" {
			panic(http.ErrAbortHandler)
		}
	}))
	call := func(path string) (*http.Response, string) {
		return g.do("POST", "/api/v1/agents/agt_1/"+path, "Authorization", "Bearer "+tickSecret)
	}
	expect := func(res *http.Response, status int, headers map[string]string) {
		t.Helper()
		if res.StatusCode != status {
			t.Fatalf("%d, want %d", res.StatusCode, status)
		}
		for name, want := range headers {
			if got := res.Header.Values(name); strings.Join(got, "|") != want {
				t.Errorf("%d with %s: %q, want %q", status, name, got, want)
			}
		}
	}
	// "X-RateLimit-Limit: 100, X-RateLimit-Remaining: 47, X-RateLimit-Reset: 1638360000"
	res, _ := call("run")
	expect(res, 200, map[string]string{"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "99", "X-RateLimit-Reset": fmt.Sprint(at.Add(time.Minute).Unix()), "Retry-After": "", "RateLimit": ""})
	*at = at.Add(15 * time.Second)
	for range 51 {
		call("run")
	}
	res, _ = call("fail")
	expect(res, 502, map[string]string{"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "47", "Retry-After": ""})
	for range 47 {
		call("run")
	}
	// "When any limit is exceeded, the API returns: … HTTP Status: 429"
	res, body := call("run")
	expect(res, 429, map[string]string{
		"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": fmt.Sprint(at.Add(45 * time.Second).Unix()),
		"Retry-After": "45", "Content-Type": "application/json",
	})
	if want := `{"error":"Rate limit exceeded","message":"Too many requests. Please try again later.","retryAfter":45,` +
		`"rateLimits":{"requestsPerMinute":100,"requestsPerHour":5000,"requestsPerDay":100000}}`; body != want {
		t.Errorf("%s\nwant %s", body, want)
	}
	// "Per Minute: Rolling 60-second window"
	*at = at.Add(44 * time.Second)
	res, _ = call("run")
	expect(res, 429, map[string]string{"Retry-After": "1"})
	*at = at.Add(time.Second)
	res, _ = call("run")
	expect(res, 200, map[string]string{"X-RateLimit-Remaining": "0"})
	// A page that asks from a browser may read all of it.
	res, _ = g.do("POST", "/api/v1/agents/agt_1/run", "Authorization", "Bearer "+tickSecret, "Origin", "https://page.example")
	if exposed := res.Header.Get("Access-Control-Expose-Headers"); res.StatusCode != 429 || !strings.Contains(exposed, "Retry-After") || !strings.Contains(strings.ToLower(exposed), "x-ratelimit-reset") {
		t.Errorf("%d, exposed are %s", res.StatusCode, exposed)
	}
	used, limited := 0, int64(0)
	for _, r := range g.Recorded() {
		switch d := r.Event.Data.(type) {
		case events.KeyUsed:
			used++
		case events.KeyRateLimited:
			limited += d.Count
			if d.Window != "minute" || d.Limit != 100 || r.Event.Key != g.key {
				t.Errorf("%+v", d)
			}
		}
	}
	if used != 101 || limited != 3 {
		t.Errorf("%d uses and %d refusals are recorded, want 101 and 3", used, limited)
	}
}
