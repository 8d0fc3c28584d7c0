package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/demo"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

const secret = "bd_live_0123456789abcdefABCDEFxyzXYZ0000"

// rig is a gateway in front of an upstream, with one key that may read birds.
type rig struct {
	*verifytest.World
	t        testing.TB
	gateway  *gateway.Gateway
	server   *httptest.Server
	upstream *httptest.Server
	key      string
}

func newRig(t testing.TB, upstream http.Handler, change ...func(*gateway.Config)) *rig {
	t.Helper()
	g := &rig{World: verifytest.New(t, verify.Options{}), t: t}
	g.Configure(verifytest.Birds)
	g.key = g.World.Key("birds", "org_1", secret, events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"birds:read"}})
	g.upstream = httptest.NewServer(upstream)
	t.Cleanup(g.upstream.Close)
	c := gateway.Config{Routes: []gateway.Route{{PathPrefix: "/birds", StripPrefix: gateway.StripAll, Keyspace: "birds", Upstream: g.upstream.URL}}}
	for _, f := range change {
		f(&c)
	}
	var err error
	if g.gateway, err = gateway.New(c, g.Verifier, g.Recorder, nil); err != nil {
		t.Fatal(err)
	}
	g.server = httptest.NewServer(g.gateway)
	t.Cleanup(g.server.Close)
	return g
}

func (g *rig) request(method, path string, body io.Reader, headers ...string) *http.Request {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), method, g.server.URL+path, body)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	return r
}

func (g *rig) do(method, path string, headers ...string) (*http.Response, string) {
	g.t.Helper()
	res, err := g.server.Client().Do(g.request(method, path, nil, headers...))
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

func (g *rig) used(n int) []events.KeyUsed {
	g.t.Helper()
	all := verifytest.RecordedAs[events.KeyUsed](g.World)
	if len(all) != n {
		g.t.Fatalf("%d uses are recorded, want %d", len(all), n)
	}
	return all
}

func status(u events.KeyUsed) int {
	if u.Status == nil {
		return 0
	}
	return *u.Status
}

var bearer = []string{"Authorization", "Bearer " + secret}

// An admitted request arrives without its credential and with the gateway's
// headers, whatever the client tried to say there, and is one use.
func TestAdmitted(t *testing.T) {
	g := newRig(t, demo.Handler())
	res, body := g.do("GET", "/birds/v1/birds/7?a=1;b&c=%zz", append(bearer, "X-Key-Id", "key_forged", "X_Key_Owner", "forged", "x-key-admin", "1",
		"X-Request-Id", "forged", "X-Forwarded-For", "198.51.100.1", "X-Forwarded-Proto", "https", "X-Forwarded-Prefix", "/forged",
		"Connection", "X-Key-Owner, X-Kept", "Accept", "text/html", "User-Agent", "curl/8")...)
	if res.StatusCode != 200 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	var echo demo.Echo
	if err := json.Unmarshal([]byte(body), &echo); err != nil {
		t.Fatal(err)
	}
	requestID := res.Header.Get("X-Request-Id")
	want := map[string]string{
		"X-Key-Id": g.key, "X-Key-Owner": "org_1", "X-Key-Scopes": "birds:read", "X-Key-Environment": "live", "X-Request-Id": requestID,
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "Accept": "text/html", "User-Agent": "curl/8",
		"X-Forwarded-Host": strings.TrimPrefix(g.server.URL, "http://"),
	}
	for name, value := range want {
		if got := echo.Headers[name]; len(got) != 1 || got[0] != value {
			t.Errorf("the upstream got %s: %q, want %q", name, got, value)
		}
	}
	for name := range echo.Headers {
		if _, ok := want[name]; !ok && name != "Accept-Encoding" {
			t.Errorf("the upstream got %s", name)
		}
	}
	if echo.Path != "/v1/birds/7" || echo.Query != "a=1;b&c=%zz" || !strings.HasPrefix(requestID, "req_") {
		t.Errorf("%s ? %s, %s", echo.Path, echo.Query, requestID)
	}
	if strings.Contains(body, secret) {
		t.Error("the secret reached the upstream")
	}
	all := g.Recorded()
	if len(all) != 1 || all[0].Event.RequestID != requestID || all[0].Event.Key != g.key || all[0].Event.Via != "gateway" {
		t.Fatalf("%+v", all)
	}
	u := all[0].Event.Data.(events.KeyUsed)
	if status(u) != 200 || u.Method != "GET" || u.Endpoint != "/v1/birds/7" || u.LatencyMS == nil || u.CostMicros != 7 {
		t.Errorf("%+v", u)
	}
	if ip, err := g.Keys.Open(t.Context(), u.SourceIP); ip != "127.0.0.1" || err != nil {
		t.Errorf("source %q, %v", ip, err)
	}
}

// As many uses are recorded as requests were answered, each with its status and
// cost.
func TestCount(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Usage-Cost-Micros", r.URL.Query().Get("cost"))
		w.WriteHeader(http.StatusTeapot)
	}))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 25 {
				g.do("GET", fmt.Sprintf("/birds/v1/birds/%d/%d?cost=%d", i, j, i*25+j), bearer...)
			}
		})
	}
	wg.Wait()
	var total int64
	for _, u := range g.used(200) {
		total += u.CostMicros
		if status(u) != http.StatusTeapot {
			t.Errorf("%+v", u)
		}
	}
	if total != 199*100 {
		t.Errorf("total cost %d", total)
	}
}

// A refusal is the document's answer, byte for byte; a browser may read it; the
// upstream is not asked.
func TestRefused(t *testing.T) {
	var asked atomic.Int64
	g := newRig(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	res, body := g.do("POST", "/birds/v1/birds", append(bearer, "Origin", "https://page.example")...)
	if res.StatusCode != 403 || body != `{"problem":"Scope missing","needs":["birds:write"]}` {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	for name, value := range map[string]string{
		"X-Reason": "INSUFFICIENT_SCOPE", "Access-Control-Allow-Origin": "https://page.example", "Vary": "Origin",
		"Access-Control-Allow-Credentials": "true", "Content-Type": "application/json",
	} {
		if got := res.Header.Get(name); got != value {
			t.Errorf("%s: %q, want %q", name, got, value)
		}
	}
	if exposed := res.Header.Get("Access-Control-Expose-Headers"); !strings.Contains(exposed, "X-Reason") || !strings.Contains(exposed, "X-Request-Id") {
		t.Errorf("a page may read %q", exposed)
	}
	res, body = g.do("GET", "/birds/v1/birds")
	if want := fmt.Sprintf(`{"problem":"Invalid key","code":"MISSING_CREDENTIAL","request":"%s"}`, res.Header.Get("X-Request-Id")); res.StatusCode != 401 || body != want {
		t.Errorf("%d %s, want %s", res.StatusCode, body, want)
	}
	if res.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("a request without Origin gets CORS headers")
	}
	for name, headers := range map[string][]string{
		"two headers":  {"Authorization", "Bearer " + secret, "Authorization", "Bearer " + secret},
		"other scheme": {"Authorization", "Basic " + secret},
		"empty":        {"Authorization", ""},
	} {
		if res, body := g.do("GET", "/birds/v1/birds", headers...); res.StatusCode != 401 || !strings.Contains(body, "MALFORMED_CREDENTIAL") {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
	}
	if asked.Load() != 0 {
		t.Error("the upstream was asked")
	}
	denied, rejected := verifytest.RecordedAs[events.KeyDenied](g.World), verifytest.RecordedAs[events.CredentialRejected](g.World)
	if len(denied) != 1 || denied[0].Code != "INSUFFICIENT_SCOPE" || denied[0].Endpoint != "/v1/birds" || len(rejected) < 2 {
		t.Errorf("denied %+v, rejected %+v", denied, rejected)
	}
}

// No spelling of a path gets past the scope that the plain spelling needs, and
// what arrives at the upstream is what was judged.
func TestAmbiguousPaths(t *testing.T) {
	var arrived atomic.Pointer[string]
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { arrived.Store(new(r.RequestURI)) }))
	raw := func(path string) string {
		conn, err := net.Dial("tcp", strings.TrimPrefix(g.server.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "DELETE %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", path, secret)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(line)[1]
	}
	for _, path := range []string{
		"/birds/v1/birds/7", "/birds/v1//birds/7", "/birds//v1/birds/7", "/birds/v1/./birds/7", "/birds/x/../v1/birds/7", "/birds/v1/%62irds/7",
		"/birds/v1%2Fbirds/7", "/birds/x/%2e%2e/v1/birds/7", "/birds/x/%252e%252e/v1/birds/7", `/birds/v1\birds/7`, "/birds/v1/birds;x=1/7", "/birds/v1/birds/",
		"http://other/birds/v1/birds/7",
	} {
		if got := raw(path); got != "403" {
			t.Errorf("%s: %s, want 403", path, got)
		}
	}
	for _, path := range []string{"/birds/../other", "/birds/%2e%2e/other", "/birds/%252e%252e/other", "/birds/a/../../other", `/birds/..\other`} {
		if got := raw(path); got != "400" {
			t.Errorf("%s: %s, want 400", path, got)
		}
	}
	if p := arrived.Load(); p != nil {
		t.Errorf("%s arrived", *p)
	}
	if got := raw("/birds/v1/eggs%2F7/%41?x=1"); got != "200" || *arrived.Load() != "/v1/eggs%2F7/%41?x=1" {
		t.Errorf("%s arrived as %s", got, *arrived.Load())
	}
}

// A browser's question before the request passes without a credential, and
// brings none.
func TestPreflight(t *testing.T) {
	g := newRig(t, demo.Handler())
	res, body := g.do("OPTIONS", "/birds/v1/birds", append(bearer, "Origin", "https://page.example", "Access-Control-Request-Method", "POST", "X-Key-Id", "forged")...)
	if res.StatusCode != 200 || strings.Contains(body, secret) || strings.Contains(body, "forged") || !strings.Contains(body, `"X-Key-Id": [`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, _ := g.do("OPTIONS", "/birds/v1/birds", "Origin", "https://page.example"); res.StatusCode != 401 {
		t.Errorf("an OPTIONS that is no preflight: %d", res.StatusCode)
	}
	g.used(0)
}

// A public route needs no credential; one that is presented is judged.
func TestPublicRoute(t *testing.T) {
	g := newRig(t, demo.Handler())
	if res, body := g.do("GET", "/birds/health"); res.StatusCode != 200 || body != `{"service":"Birds"}` || res.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	g.used(0)
	if res, _ := g.do("GET", "/birds/health", "Authorization", "Bearer nonsense"); res.StatusCode != 401 {
		t.Errorf("with a wrong credential: %d", res.StatusCode)
	}
	if res, body := g.do("GET", "/birds/health", bearer...); res.StatusCode != 200 || body != `{"service":"Birds"}` {
		t.Errorf("with a key: %d %s", res.StatusCode, body)
	}
	g.used(1)
}

// A revoked key is refused by the next request.
func TestRevoked(t *testing.T) {
	g := newRig(t, demo.Handler())
	if res, _ := g.do("GET", "/birds/v1/birds", bearer...); res.StatusCode != 200 {
		t.Fatal(res.StatusCode)
	}
	g.Append("birds", "org_1", g.key, events.KeyRevoked{Reason: "leaked"})
	if res, body := g.do("GET", "/birds/v1/birds", bearer...); res.StatusCode != 401 || !strings.Contains(body, "REVOKED") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// What the upstream has written is at the client before the upstream goes on,
// and the other way round; trailers arrive.
func TestStreaming(t *testing.T) {
	proceed := make(chan struct{})
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		in := bufio.NewReader(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		for range 3 {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(w, "got ", line)
			_ = http.NewResponseController(w).Flush()
			<-proceed
		}
		_, _ = io.Copy(io.Discard, in)
		w.Header().Set("X-Sum", "42")
	}))
	pr, pw := io.Pipe()
	go func() { fmt.Fprintln(pw, 0) }()
	res, err := g.server.Client().Do(g.request("GET", "/birds/v1/birds", pr, bearer...))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out := bufio.NewReader(res.Body)
	for i := range 3 {
		if line, err := out.ReadString('\n'); line != fmt.Sprintf("got %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
		if i == 0 {
			g.used(1) // recorded when the answer began, not when it ended
		}
		proceed <- struct{}{}
		if i < 2 {
			fmt.Fprintln(pw, i+1)
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(out); len(rest) != 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	if res.Trailer.Get("X-Sum") != "42" {
		t.Errorf("trailer %v", res.Trailer)
	}
}

// An upgraded connection carries bytes both ways.
func TestUpgrade(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-WebSocket-Key") != "abc" || r.Header.Get("Authorization") != "" {
			t.Errorf("the upstream got %v", r.Header)
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		fmt.Fprint(rw, strings.ToUpper(line))
		rw.Flush()
	}))
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /birds/v1/birds/live HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n", secret)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	fmt.Fprintln(conn, "hello")
	if line, err := in.ReadString('\n'); line != "HELLO\n" {
		t.Errorf("%q, %v", line, err)
	}
	if u := g.used(1); status(u[0]) != 101 {
		t.Errorf("%+v", u)
	}
}

// An upstream that fails is a use too.
func TestUpstreamFails(t *testing.T) {
	hang := make(chan struct{})
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "slow") {
			<-hang
			return
		}
		panic(http.ErrAbortHandler)
	}), func(c *gateway.Config) { c.UpstreamTimeout = 50 * time.Millisecond })
	t.Cleanup(func() { close(hang) })
	for _, c := range []struct {
		path string
		want int
	}{{"/birds/v1/birds/abort", 502}, {"/birds/v1/birds/slow", 504}} {
		res, body := g.do("GET", c.path, append(bearer, "Origin", "https://page.example")...)
		if res.StatusCode != c.want || res.Header.Get("Content-Type") != "application/problem+json" || res.Header.Get("Access-Control-Allow-Origin") == "" {
			t.Errorf("%s: %d %s", c.path, res.StatusCode, body)
		}
	}
	if u := g.used(2); status(u[0]) != 502 || status(u[1]) != 504 || *u[1].LatencyMS < 50 {
		t.Errorf("%+v", u)
	}
}

// A client that leaves before the answer is a use with status 499.
func TestClientLeaves(t *testing.T) {
	reached, left := make(chan struct{}), make(chan struct{})
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(reached)
		<-r.Context().Done()
		close(left)
	}))
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-reached
		leave()
	}()
	if _, err := g.server.Client().Do(g.request("GET", "/birds/v1/birds", nil, bearer...).WithContext(ctx)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-left
	if err := g.gateway.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if u := g.used(1); status(u[0]) != 499 {
		t.Errorf("%+v", u[0])
	}
}

// In strict mode the use is on disk before the upstream is asked, its outcome
// follows, and without the ledger nothing passes.
func TestStrict(t *testing.T) {
	var asked atomic.Int64
	var g *rig
	g = newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		head, err := g.Ledger.Head(r.Context(), events.Usage)
		if head != 1 || err != nil {
			t.Errorf("the upstream is asked with USAGE at %d, %v", head, err)
		}
		w.WriteHeader(201)
	}), func(c *gateway.Config) { c.Audit, c.AuditTimeout = gateway.AuditStrict, 100*time.Millisecond })
	if res, _ := g.do("GET", "/birds/v1/birds", bearer...); res.StatusCode != 201 {
		t.Fatal(res.StatusCode)
	}
	used, reported := g.used(1)[0], verifytest.RecordedAs[events.KeyUseReported](g.World)
	if used.Status != nil || len(reported) != 1 || reported[0].Decision != used.Decision || reported[0].Status != 201 {
		t.Errorf("used %+v, reported %+v", used, reported)
	}
	g.NATS.Shutdown()
	res, body := g.do("GET", "/birds/v1/birds", bearer...)
	if res.StatusCode != 503 || !strings.Contains(body, "AUDIT_UNAVAILABLE") || asked.Load() != 1 {
		t.Errorf("%d %s, asked %d times", res.StatusCode, body, asked.Load())
	}
}

// Only a route's environments are admitted.
func TestEnvironments(t *testing.T) {
	g := newRig(t, demo.Handler(), func(c *gateway.Config) { c.Routes[0].Environments = []string{"test"} })
	if res, body := g.do("GET", "/birds/v1/birds", bearer...); res.StatusCode != 401 || !strings.Contains(body, "WRONG_ENVIRONMENT") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// A client behind a trusted proxy is told apart; TLS counts as the proxy says.
func TestBehindProxy(t *testing.T) {
	g := newRig(t, demo.Handler(), func(c *gateway.Config) { c.TrustedProxies = []string{"127.0.0.1", "10.0.0.0/8"} })
	_, body := g.do("GET", "/birds/v1/birds", append(bearer, "X-Forwarded-For", "6.6.6.6, 203.0.113.9", "X-Forwarded-For", "10.1.2.3", "X-Forwarded-Proto", "https")...)
	var echo demo.Echo
	if err := json.Unmarshal([]byte(body), &echo); err != nil {
		t.Fatal(err)
	}
	if got := echo.Headers["X-Forwarded-For"]; !slices.Equal(got, []string{"6.6.6.6, 203.0.113.9, 10.1.2.3, 127.0.0.1"}) || echo.Headers["X-Forwarded-Proto"][0] != "https" {
		t.Errorf("%v", echo.Headers)
	}
	if ip, err := g.Keys.Open(t.Context(), g.used(1)[0].SourceIP); ip != "203.0.113.9" || err != nil {
		t.Errorf("source %q, %v", ip, err)
	}
}

// Routes are found by host and whole segments, the more specific first, and can
// be replaced while serving.
func TestRoutes(t *testing.T) {
	g := newRig(t, demo.Handler())
	if err := g.gateway.SetRoutes([]gateway.Route{
		{Keyspace: "birds", Upstream: g.upstream.URL + "/all"},
		{PathPrefix: "/v1", Keyspace: "birds", Upstream: g.upstream.URL + "/v1only/"},
		{PathPrefix: "/v1/birds/", StripPrefix: "/v1", Keyspace: "birds", Upstream: g.upstream.URL},
		{Host: "Named.example", Keyspace: "birds", Upstream: g.upstream.URL + "/named"},
		{PathPrefix: "/new", Keyspace: "not-yet", Upstream: g.upstream.URL},
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ host, path, want string }{
		{"", "/v10", "/all/v10"},
		{"", "/", "/all/"},
		{"", "/v1", "/v1only/v1"},
		{"", "/v1/x%2Fy", "/v1only/v1/x%2Fy"},
		{"", "/v1/birds", "/birds"},
		{"", "/v1/birds/7", "/birds/7"},
		{"named.example:8080", "/v1/birds/7", "/named/v1/birds/7"},
	} {
		r := g.request("GET", c.path, nil, bearer...)
		if c.host != "" {
			r.Host = c.host
		}
		res, err := g.server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var echo demo.Echo
		if err := json.NewDecoder(res.Body).Decode(&echo); err != nil || echo.Path != c.want {
			t.Errorf("%s%s arrived as %s, %v, want %s", c.host, c.path, echo.Path, err, c.want)
		}
		res.Body.Close()
	}
	if res, body := g.do("GET", "/new/x", bearer...); res.StatusCode != 404 || !strings.Contains(body, "not configured") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if err := g.gateway.SetRoutes(nil); err != nil {
		t.Fatal(err)
	}
	if res, _ := g.do("GET", "/v1/birds", bearer...); res.StatusCode != 404 {
		t.Errorf("without routes: %d", res.StatusCode)
	}
}

func TestParseConfig(t *testing.T) {
	c, err := gateway.ParseConfig([]byte(`
routes:
  - {path_prefix: /birds, strip_prefix: true, keyspace: birds, upstream: "http://127.0.0.1:9000"}
  - {host: api.example, strip_prefix: "", keyspace: birds, upstream: "https://up.example/base", environments: [live]}
  - {path_prefix: /a/b, strip_prefix: /a, keyspace: birds, upstream: "http://127.0.0.1:9000"}
trusted_proxies: [10.0.0.0/8, "::1"]
audit: strict
audit_timeout: 500ms
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Routes[0].StripPrefix != gateway.StripAll || c.Routes[2].StripPrefix != "/a" || c.AuditTimeout != 500*time.Millisecond {
		t.Errorf("%+v", c)
	}
	// Everything that is wrong is said at once, with its place.
	_, err = gateway.ParseConfig([]byte(`
routes:
  - {path_prefix: birds, keyspace: Birds, upstream: "127.0.0.1:9000"}
  - {path_prefix: /a, strip_prefix: /b, keyspace: keyledger, upstream: "http://user:hunter2@x"}
  - {host: "http://x", keyspace: birds, upstream: "http://x"}
  - {path_prefix: /a/, keyspace: birds, upstream: "http://x"}
trusted_proxies: [proxy.example]
audit: always
`))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{
		"routes[0].path_prefix", "routes[0].keyspace", "routes[0].upstream", "routes[1].strip_prefix", "routes[1].keyspace", "routes[1].upstream",
		"routes[2].host", "routes[3].path_prefix", "trusted_proxies[0]", "audit",
	} {
		if !strings.Contains(err.Error(), part+":") {
			t.Errorf("nothing about %s in:\n%v", part, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("a password is repeated")
	}
	if _, err := gateway.ParseConfig([]byte("rutes: []")); err == nil || !strings.Contains(err.Error(), "rutes") {
		t.Errorf("an unknown field: %v", err)
	}
}

// The gateway with everything on, beside a bare httputil.ReverseProxy.
func BenchmarkGateway(b *testing.B) {
	g := newRig(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("ok")) }))
	to, err := url.Parse(g.upstream.URL)
	if err != nil {
		b.Fatal(err)
	}
	bare := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(p *httputil.ProxyRequest) { p.SetURL(to) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
	})
	b.Cleanup(bare.Close)
	for _, c := range []struct{ name, url string }{{"bare", bare.URL}, {"gateway", g.server.URL}} {
		b.Run(c.name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}}
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					r := g.request("GET", "/birds/v1/birds/7", nil, bearer...)
					r.URL.Host = strings.TrimPrefix(c.url, "http://")
					res, err := client.Do(r)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
			})
		})
	}
}

// An upstream that answers before it has read the body ends the connection
// cleanly: what is left of the body is never taken for a request.
func TestEarlyAnswer(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		fmt.Fprint(w, "too much")
	}))
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	smuggled := "GET /birds/health HTTP/1.1\r\nHost: x\r\n\r\n"
	fmt.Fprintf(conn, "GET /birds/v1/birds HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000000\r\n\r\n", secret)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); res.StatusCode != 413 || string(body) != "too much" || err != nil {
		t.Errorf("%d %s %v", res.StatusCode, body, err)
	}
	_, _ = io.WriteString(conn, smuggled)
	if rest, _ := io.ReadAll(in); len(rest) != 0 {
		t.Errorf("answered more than once: %s", rest)
	}
	g.used(1)
}

// A keyspace that wants TLS refuses what came without it, public routes
// included, and believes a trusted proxy that it was there.
func TestRequireTLS(t *testing.T) {
	for _, trusted := range [][]string{nil, {"127.0.0.1"}} {
		g := newRig(t, demo.Handler(), func(c *gateway.Config) { c.TrustedProxies = trusted })
		g.Configure(strings.Replace(verifytest.Birds, `"scheme": "Bearer"`, `"scheme": "Bearer", "require_tls": true`, 1))
		want := 401 // the document's default entry names the status
		if trusted != nil {
			want = 200
		}
		for _, path := range []string{"/birds/health", "/birds/v1/birds"} {
			if res, body := g.do("GET", path, append(bearer, "X-Forwarded-Proto", "https")...); res.StatusCode != want || want != 200 && !strings.Contains(body, "INSECURE_TRANSPORT") {
				t.Errorf("%s with %v trusted: %d %s", path, trusted, res.StatusCode, body)
			}
			if res, body := g.do("GET", path, append(bearer, "X-Forwarded-Proto", "http")...); !strings.Contains(body, "INSECURE_TRANSPORT") {
				t.Errorf("%s without TLS: %d %s", path, res.StatusCode, body)
			}
		}
	}
}
