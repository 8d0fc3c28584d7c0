package middleware_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/middleware"
	"github.com/keyledger/keyledger/verify/verifytest"
)

const secret = "bd_live_0123456789abcdefABCDEFxyzXYZ0000"

// rig is a chi service that a middleware guards, with one key that may read birds.
type rig struct {
	*verifytest.World
	t      *testing.T
	server *httptest.Server
	key    string
}

func newRig(t *testing.T, o middleware.Options, handler http.Handler) *rig {
	t.Helper()
	g := &rig{World: verifytest.New(t, verify.Options{}), t: t}
	g.Configure(verifytest.Birds)
	g.key = g.World.Key("birds", "org_1", secret, events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"birds:read"}})
	o.Keyspace = "birds"
	guard, err := middleware.New(g.Verifier, o)
	if err != nil {
		t.Fatal(err)
	}
	router := chi.NewRouter()
	router.Use(guard)
	router.Handle("/*", handler)
	g.server = httptest.NewServer(router)
	g.server.Config.ErrorLog = nil
	t.Cleanup(g.server.Close)
	return g
}

func (g *rig) do(url, method, path string, headers ...string) (*http.Response, string) {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), method, url+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return res, string(b)
}

func (g *rig) get(path string, headers ...string) (*http.Response, string) {
	return g.do(g.server.URL, "GET", path, append([]string{"Authorization", "Bearer " + secret}, headers...)...)
}

func (g *rig) only() events.KeyUsed {
	g.t.Helper()
	all := verifytest.RecordedAs[events.KeyUsed](g.World)
	if len(all) != 1 {
		g.t.Fatalf("%d uses are recorded, want one: %+v", len(all), all)
	}
	return all[0]
}

func status(u events.KeyUsed) int {
	if u.Status == nil {
		return 0
	}
	return *u.Status
}

// A handler knows whose key it was, and gets nothing that a client says of itself
// in the middleware's headers.
func TestAdmitted(t *testing.T) {
	var got *http.Request
	g := newRig(t, middleware.Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		key := middleware.KeyOf(r.Context())
		fmt.Fprint(w, key.ID, " ", middleware.DecisionOf(r.Context()).Owner.ID)
	}))
	res, body := g.get("/v1/birds/7?x=1", "X-Key-Id", "forged", "X_Key_Owner", "forged", "X-Request-Id", "forged", "X-Forwarded-For", "198.51.100.1", "Accept", "text/html")
	if res.StatusCode != 200 || body != g.key+" org_1" {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	id := res.Header.Get("X-Request-Id")
	for name, want := range map[string]string{
		"X-Key-Id": g.key, "X-Key-Owner": "org_1", "X-Key-Scopes": "birds:read", "X-Key-Environment": "live", "X-Request-Id": id,
		"Authorization": "", "X_Key_Owner": "", "X-Forwarded-For": "198.51.100.1", "Accept": "text/html",
	} {
		if have := strings.Join(got.Header[name], ", "); have != want {
			t.Errorf("the handler got %s: %q, want %q", name, have, want)
		}
	}
	all := g.Recorded()
	if len(all) != 1 || all[0].Event.RequestID != id || all[0].Event.Via != "middleware" {
		t.Fatalf("%+v", all)
	}
	u := all[0].Event.Data.(events.KeyUsed)
	if status(u) != 200 || u.Method != "GET" || u.Endpoint != "/v1/birds/7" || u.LatencyMS == nil || u.CostMicros != 7 {
		t.Errorf("%+v", u)
	}
	if middleware.KeyOf(t.Context()) != nil || middleware.DecisionOf(t.Context()) != nil {
		t.Error("a context without a request has a key")
	}
}

// What a gateway in front of a service answers, the middleware in the service
// answers too, to the last byte, apart from the request's id.
func TestAsTheGateway(t *testing.T) {
	service := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("X-Ratelimit-Limit", "the service's own")
		fmt.Fprint(w, "served ", r.Header.Get("X-Key-Id"), r.Header.Get("X-Key-Scopes"))
	})
	const free = `"limits": {"from": "plan", "count_by": "key"}, "plans": {"free": {"limits": {"minute": 5}}}, "default_plan": "free", "rate_headers": ["x-ratelimit", "retry-after", "ietf"],`
	g := newRig(t, middleware.Options{TrustedProxies: []string{"127.0.0.1"}}, service)
	g.Configure(strings.NewReplacer(`"limits": {"from": "plan", "count_by": "key"},`, free,
		`"scheme": "Bearer"`, `"scheme": "Bearer", "require_tls": true, "require_content_type": "application/json"`).Replace(verifytest.Birds))
	bound := "bd_live_0123456789abcdefABCDEFxyzXYZ0001"
	g.World.Key("birds", "org_1", bound, events.KeyCreated{
		Name: "b", Environment: "live", Scopes: []string{"birds:read"}, Resources: []string{"n1"}, AllowedOrigins: []string{"https://page.example"}, AllowedIPs: []string{"203.0.113.0/24"},
	})
	revoked := "bd_live_0123456789abcdefABCDEFxyzXYZ0002"
	id := g.World.Key("birds", "org_1", revoked, events.KeyCreated{Name: "c", Environment: "live"})
	g.Append("birds", "org_1", id, events.KeyRevoked{Reason: "leaked"})
	upstream := httptest.NewServer(service)
	t.Cleanup(upstream.Close)
	gw, err := gateway.New(gateway.Config{Routes: []gateway.Route{{Keyspace: "birds", Upstream: upstream.URL}}, TrustedProxies: []string{"127.0.0.1"}}, g.Verifier, g.Recorder, nil)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(gw)
	t.Cleanup(front.Close)

	volatile := regexp.MustCompile(`req_[0-9a-f-]+|t=\d+`)
	told := func(res *http.Response, body string) string {
		h := res.Header.Clone()
		for _, name := range []string{"Date", "X-Ratelimit-Reset", "X-Ratelimit-Remaining", "Ratelimit"} { // the two draw from one pool
			h.Del(name)
		}
		var b strings.Builder
		_ = h.Write(&b)
		return volatile.ReplaceAllString(fmt.Sprintf("%d\n%s%s", res.StatusCode, b.String(), body), "…")
	}
	auth := func(secret string, more ...string) []string {
		return append([]string{"Authorization", "Bearer " + secret, "X-Forwarded-Proto", "https"}, more...)
	}
	page := []string{"Origin", "https://page.example"}
	for _, c := range []struct {
		name, method, path string
		headers            []string
		want               string // of the answer
	}{
		{"admitted", "GET", "/v1/birds", auth(secret), "served key_"},
		{"a browser", "GET", "/v1/birds", auth(secret, page...), "served key_"},
		{"without TLS", "GET", "/v1/birds", []string{"Authorization", "Bearer " + secret}, "INSECURE_TRANSPORT"},
		{"another content type", "POST", "/v1/birds", auth(secret, "Content-Type", "text/plain"), "WRONG_CONTENT_TYPE"},
		{"no credential", "GET", "/v1/birds", []string{"X-Forwarded-Proto", "https"}, "MISSING_CREDENTIAL"},
		{"no credential, from a page", "GET", "/v1/birds", append([]string{"X-Forwarded-Proto", "https"}, page...), "MISSING_CREDENTIAL"},
		{"two credentials", "GET", "/v1/birds", auth(secret, "Authorization", "Bearer "+secret), "MALFORMED_CREDENTIAL"},
		{"no key", "GET", "/v1/birds", auth("nonsense"), "MALFORMED_KEY"},
		{"an unknown key", "GET", "/v1/birds", auth("bd_live_0123456789abcdefABCDEFxyzXYZ9999"), "UNKNOWN_KEY"},
		{"a revoked key", "GET", "/v1/birds", auth(revoked), "REVOKED"},
		{"a missing scope", "POST", "/v1/birds", auth(secret, "Content-Type", "application/json"), "Scope missing"},
		{"another resource", "GET", "/v1/nests/n2/x", auth(bound, page...), "WRONG_RESOURCE"},
		{"another origin", "GET", "/v1/nests/n1/x", auth(bound, "Origin", "https://page.example.evil.example"), "ORIGIN_DENIED"},
		{"another address", "GET", "/v1/nests/n1/x", auth(bound, page...), "IP_DENIED"},
		{"an address behind a proxy", "GET", "/v1/nests/n1/x", auth(bound, "Origin", "https://page.example", "X-Forwarded-For", "6.6.6.6, 203.0.113.9"), "served key_"},
		{"a public route", "GET", "/health", []string{"X-Forwarded-Proto", "https"}, `{"service":"Birds"}`},
		{"a public route with a wrong key", "GET", "/health", auth("nonsense"), "MALFORMED_KEY"},
		{"a preflight", "OPTIONS", "/v1/birds", append([]string{"Access-Control-Request-Method", "POST"}, page...), "served --"},
		{"an escaped path", "DELETE", "/v1/%62irds/7", auth(secret), "Scope missing"},
		{"a doubled slash", "DELETE", "//v1//birds/7", auth(secret), "Scope missing"},
		{"above the root", "GET", "/v1/..%2f../x", auth(secret), "BAD_PATH"},
		{"used up", "GET", "/v1/birds", auth(secret), "RATE_LIMITED"},
	} {
		inProcess, byGateway := told(g.do(g.server.URL, c.method, c.path, c.headers...)), told(g.do(front.URL, c.method, c.path, c.headers...))
		if c.name == "used up" { // the first of the two was the last that was admitted
			inProcess = told(g.do(g.server.URL, c.method, c.path, c.headers...))
		}
		if inProcess != byGateway || !strings.Contains(inProcess, c.want) {
			t.Errorf("%s: in process\n%s\nby the gateway\n%s", c.name, inProcess, byGateway)
		}
	}
}

// The cost is what the handler says, in a header or to the middleware, else the
// document's.
func TestCost(t *testing.T) {
	var handler func(http.ResponseWriter, *http.Request)
	for name, c := range map[string]struct {
		strict   bool
		handler  http.HandlerFunc
		used     int64
		reported int64 // -1: nothing is
	}{
		"nothing said": {false, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x") }, 7, -1},
		"a header": {false, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Usage-Cost-Micros", "42")
			fmt.Fprint(w, "x")
		}, 42, -1},
		"told": {false, func(w http.ResponseWriter, r *http.Request) {
			middleware.SetCost(r.Context(), 1)
			middleware.SetCost(r.Context(), 43)
			w.Header().Set("X-Usage-Cost-Micros", "42")
		}, 43, -1},
		"told too late": {false, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x"); middleware.SetCost(r.Context(), 43) }, 7, -1},
		"told at the end": {false, func(w http.ResponseWriter, r *http.Request) {
			middleware.CostFollows(r.Context())
			fmt.Fprint(w, "x")
			middleware.SetCost(r.Context(), 44)
		}, 7, 44},
		"strict":                      {true, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x") }, 7, 7},
		"strict, told at the end":     {true, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x"); middleware.SetCost(r.Context(), 45) }, 7, 45},
		"strict, and it is a refusal": {true, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }, 7, 7},
	} {
		g := newRig(t, middleware.Options{Strict: c.strict}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler(w, r) }))
		handler = c.handler
		res, _ := g.get("/v1/birds")
		u, reports := g.only(), verifytest.RecordedAs[events.KeyUseReported](g.World)
		if u.CostMicros != c.used {
			t.Errorf("%s: recorded with %d", name, u.CostMicros)
		}
		if c.reported < 0 {
			if len(reports) != 0 || status(u) != res.StatusCode {
				t.Errorf("%s: %+v, reported %+v", name, u, reports)
			}
			continue
		}
		if len(reports) != 1 || *reports[0].CostMicros != c.reported || reports[0].Status != res.StatusCode || reports[0].Decision != u.Decision || status(u) != 0 {
			t.Errorf("%s: %+v, reported %+v", name, u, reports)
		}
	}
}

// However a handler ends, the request is one use with the status that it had.
func TestHowHandlersEnd(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    int
	}{
		"nothing written":          {func(http.ResponseWriter, *http.Request) {}, 200},
		"a status":                 {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); w.WriteHeader(500) }, 404},
		"early hints":              {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(201) }, 201},
		"copied":                   {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, strings.NewReader("abc")) }, 200},
		"a panic":                  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 500},
		"a panic after the header": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(202); panic(http.ErrAbortHandler) }, 202},
	} {
		g := newRig(t, middleware.Options{}, c.handler)
		r, err := http.NewRequestWithContext(t.Context(), "GET", g.server.URL+"/v1/birds", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+secret)
		res, err := http.DefaultTransport.RoundTrip(r)
		if strings.HasPrefix(name, "a panic") != (err != nil) {
			t.Fatalf("%s: %v", name, err)
		}
		if err == nil {
			res.Body.Close()
			if res.StatusCode != c.want {
				t.Errorf("%s: answered %d", name, res.StatusCode)
			}
		}
		if u := g.only(); status(u) != c.want {
			t.Errorf("%s: recorded %d, want %d", name, status(u), c.want)
		}
	}
}

// A stream is recorded when it begins, and what is written is at the client before
// the handler goes on.
func TestStreaming(t *testing.T) {
	proceed := make(chan struct{})
	g := newRig(t, middleware.Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintln(w, i)
			if i == 0 {
				w.(http.Flusher).Flush()
			} else if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			<-proceed
		}
	}))
	r, err := http.NewRequestWithContext(t.Context(), "GET", g.server.URL+"/v1/birds", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for i := range 3 {
		if line, err := lines.ReadString('\n'); line != fmt.Sprintln(i) {
			t.Fatal(line, err)
		}
		if i == 0 {
			if u := g.only(); status(u) != 200 {
				t.Errorf("%+v", u)
			}
		}
		proceed <- struct{}{}
	}
}

// A handler may take the connection over, by the interface or by the controller.
func TestUpgrade(t *testing.T) {
	for _, hijack := range []func(http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error){
		func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) { return w.(http.Hijacker).Hijack() },
		func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
			return http.NewResponseController(w).Hijack()
		},
	} {
		g := newRig(t, middleware.Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := hijack(w)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			rw.Flush()
			line, _ := rw.ReadString('\n')
			fmt.Fprint(rw, strings.ToUpper(line))
			rw.Flush()
		}))
		conn, err := net.Dial("tcp", g.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /v1/birds HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello\n", secret)
		all, err := io.ReadAll(conn)
		conn.Close()
		if !strings.HasPrefix(string(all), "HTTP/1.1 101 ") || !strings.HasSuffix(string(all), "HELLO\n") {
			t.Errorf("%q %v", all, err)
		}
		if u := g.only(); status(u) != 101 {
			t.Errorf("%+v", u)
		}
	}
}

// A service whose routes stand below a prefix says which path is the document's.
func TestPath(t *testing.T) {
	g := newRig(t, middleware.Options{Path: func(r *http.Request) string { return strings.TrimPrefix(r.URL.EscapedPath(), "/api") }},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	if res, body := g.get("/api/v1/birds"); body != "/api/v1/birds" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if u := g.only(); u.Endpoint != "/v1/birds" {
		t.Errorf("%+v", u)
	}
	if res, _ := g.do(g.server.URL, "DELETE", "/api/v1/birds/7", "Authorization", "Bearer "+secret); res.StatusCode != 403 {
		t.Errorf("a missing scope below the prefix: %d", res.StatusCode)
	}
}

// In strict mode nothing is served that cannot be recorded.
func TestStrict(t *testing.T) {
	served := 0
	g := newRig(t, middleware.Options{Strict: true, StrictTimeout: 1e8}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }))
	if res, _ := g.get("/v1/birds"); res.StatusCode != 200 {
		t.Error(res.StatusCode)
	}
	g.NATS.Shutdown()
	if res, body := g.get("/v1/birds"); res.StatusCode != 503 || !strings.Contains(body, "AUDIT_UNAVAILABLE") || served != 1 {
		t.Errorf("%d %s, served %d", res.StatusCode, body, served)
	}
}

// Options that would guard nothing are refused.
func TestOptions(t *testing.T) {
	for _, o := range []middleware.Options{{}, {Keyspace: "keyledger"}, {Keyspace: "birds", TrustedProxies: []string{"proxy.example"}}} {
		if _, err := middleware.New(nil, o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
