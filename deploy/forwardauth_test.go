package deploy

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway/authz"
	"github.com/keyledger/keyledger/gateway/demo"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/keyspaces"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

const authzToken = "klr_proxy"

// stage is keyledger with the keyspaces of this repository, an upstream that echoes,
// and keys of every kind.
type stage struct {
	*verifytest.World
	t        *testing.T
	handler  atomic.Pointer[authz.Handler] // that answers the proxies
	direct   http.Handler                  // the same, without a proxy
	server   *httptest.Server
	upstream *httptest.Server
	asked    int // requests that were decided, by either way
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{World: verifytest.New(t, verify.Options{}), t: t}
	s.decideWith(authz.New(s.Verifier, authz.Options{}))
	s.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.handler.Load().ServeHTTP(w, r) }))
	t.Cleanup(s.server.Close)
	s.upstream = httptest.NewServer(demo.Handler())
	t.Cleanup(s.upstream.Close)
	s.Append(events.RootKeyspace, "", events.NewID("key", time.Now()), events.KeyCreated{Name: "proxy", Role: domain.Verifier, Secret: verifytest.Secret(authzToken)})
	for _, source := range keyspaces.All() {
		doc, err := domain.ParseDocument(source.Source)
		if err != nil {
			t.Fatal(err)
		}
		s.Configure(string(doc.JSON()))
	}
	return s
}

func (s *stage) decideWith(z *authz.Handler) {
	s.handler.Store(z)
	s.direct = z.Proven()
}

// key makes a key and answers its secret.
func (s *stage) key(keyspace, owner string, created events.KeyCreated) string {
	s.t.Helper()
	secret := s.unknown(keyspace)
	s.World.Key(keyspace, owner, secret, created)
	return secret
}

// unknown is a well-formed secret of no key.
func (s *stage) unknown(keyspace string) string {
	s.t.Helper()
	k := s.Verifier.Keyspace(keyspace)
	secret, _, err := k.NewSecret(rand.Reader, k.Document.Format.DefaultEnvironment)
	if err != nil {
		s.t.Fatal(err)
	}
	return secret
}

// proxy is a running proxy in front of the upstream, for one keyspace.
type proxy struct {
	name, keyspace, url string
}

// snippet is a configuration of this directory as the console shows it for a
// keyspace, with the test's values in place of what it leaves as it is shipped, all
// of which must be there.
func snippet(t *testing.T, path string, v Values, values map[string]string) string {
	t.Helper()
	text, err := Snippet(path, v)
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range slices.Sorted(maps.Keys(values)) {
		if !strings.Contains(text, old) {
			t.Fatalf("%s does not hold %q any more", path, old)
		}
		text = strings.ReplaceAll(text, old, values[old])
	}
	return text
}

// values are those of a keyspace of this stage.
func (s *stage) values(keyspace string) Values {
	c := s.Verifier.Keyspace(keyspace).Document.Credential
	return Values{Keyspace: keyspace, Header: c.Header, Scheme: c.Scheme, Service: host(s.server), URL: s.server.URL, Upstream: host(s.upstream)}
}

func host(server *httptest.Server) string { return strings.TrimPrefix(server.URL, "http://") }

func (s *stage) nginx(keyspace string) proxy {
	s.t.Helper()
	binary, env := testenv.Nginx(s.t)
	dir, err := os.MkdirTemp("", "keyledger-nginx-")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { os.RemoveAll(dir) })
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
		return path
	}
	address := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(s.t))
	token := file("token.conf", "proxy_set_header X-Authz-Token "+authzToken+";\n")
	conf := file("keyledger.conf", snippet(s.t, Nginx, s.values(keyspace), map[string]string{
		"listen 8000;": "listen " + address + ";", "/etc/nginx/keyledger-token.conf": token,
	}))
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n" // its workers write below dir
	}
	temp := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += kind + "_temp_path " + filepath.Join(dir, kind) + ";\n"
	}
	// One process: workers live on when their master is killed.
	main := file("nginx.conf", user+"daemon off; master_process off; pid "+filepath.Join(dir, "pid")+"; error_log stderr notice;\n"+
		"events { worker_connections 1024; }\nhttp {\naccess_log off;\n"+temp+"include "+conf+";\n}\n")
	p := testenv.Start(s.t, env, binary, "-e", "stderr", "-p", dir, "-c", main)
	p.WaitOutput("event method", 30*time.Second)
	return proxy{"nginx", keyspace, "http://" + address}
}

func (s *stage) caddy(keyspace string) proxy {
	s.t.Helper()
	binary := testenv.Caddy(s.t)
	address := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(s.t))
	conf := filepath.Join(s.t.TempDir(), "Caddyfile")
	text := "{\n\tadmin off\n\tpersist_config off\n}\n" + snippet(s.t, Caddy, s.values(keyspace), map[string]string{":8000 {": "http://" + address + " {\n\tbind 127.0.0.1"})
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	home := s.t.TempDir()
	p := testenv.Start(s.t, []string{"KEYLEDGER_AUTHZ_TOKEN=" + authzToken, "HOME=" + home, "XDG_DATA_HOME=" + home, "XDG_CONFIG_HOME=" + home},
		binary, "run", "--config", conf, "--adapter", "caddyfile")
	p.WaitOutput("serving initial configuration", 60*time.Second)
	return proxy{"Caddy", keyspace, "http://" + address}
}

// came is an answer as it reached somebody.
type came struct {
	status int
	header http.Header
	body   string
}

var client = &http.Client{Transport: &http.Transport{DisableCompression: true}, Timeout: 30 * time.Second}

type request struct {
	method, path string
	header       http.Header
	body         int // bytes
}

func (s *stage) through(p proxy, q request) came {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), q.method, p.url+q.path, bytes.NewReader(make([]byte, q.body)))
	if err != nil {
		s.t.Fatal(err)
	}
	maps.Copy(r.Header, q.header)
	res, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.asked++
	return came{res.StatusCode, res.Header, string(b)}
}

// ask decides the same request without a proxy: what it answers is what the client
// is to get.
func (s *stage) ask(keyspace string, q request) came {
	s.t.Helper()
	r := httptest.NewRequestWithContext(s.t.Context(), "GET", "/v1/authz/"+keyspace, nil)
	maps.Copy(r.Header, q.header)
	r.Header.Set("X-Original-Method", q.method)
	r.Header.Set("X-Original-Uri", q.path)
	r.Header.Set("X-Forwarded-For", "127.0.0.1")
	r.Header.Set("X-Forwarded-Proto", "http")
	w := httptest.NewRecorder()
	s.direct.ServeHTTP(w, r)
	s.asked++
	return came{w.Code, w.Header(), w.Body.String()}
}

var changing = regexp.MustCompile(`req_[0-9a-f-]+|\d{4}-\d\d-\d\dT[0-9:.]+Z`)

// told is what two answers to the same request have in common. Proxies add headers
// of the connection.
func (c came) told(head bool) string {
	h := c.header.Clone()
	for _, name := range []string{"Date", "Server", "Connection", "Via", "Keep-Alive"} {
		h.Del(name)
	}
	body := c.body
	if head {
		body = "" // Content-Length is still that of the body
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h)) {
		fmt.Fprintf(&b, "%s: %q\n", name, h[name])
	}
	return changing.ReplaceAllString(fmt.Sprintf("%d\n%s\n%s", c.status, b.String(), body), "<new>")
}

// counted are the uses and refusals in the log.
func (s *stage) counted() int {
	s.t.Helper()
	n := 0
	for _, r := range s.Recorded() {
		switch d := r.Event.Data.(type) {
		case events.KeyUsed:
			n++
		case events.KeyDenied:
			n += int(d.Count)
		case events.KeyRateLimited:
			n += int(d.Count)
		case events.CredentialRejected:
			n += int(d.Count)
		}
	}
	return n
}

func bearer(secret string, more ...string) http.Header {
	h := http.Header{"Authorization": {"Bearer " + secret}}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = append(h[more[i]], more[i+1])
	}
	return h
}

type line struct {
	name   string
	q      request
	status int
	code   string // of the decision; empty: what the status says is enough
}

// The lines of one keyspace. What is refused is compared, whole, with what the
// endpoint answers without a proxy.
func (s *stage) lines(keyspace string) []line {
	s.t.Helper()
	read, write := "/v1/parcels/7?a=1;b", "/v1/parcels"
	switch keyspace {
	case "parcelbird":
		s.Append(keyspace, "org_free", "", events.OwnerRegistered{Name: "free", Plan: "free"})
		valid := s.key(keyspace, "org_1", events.KeyCreated{Name: "a", Environment: "live", Plan: "large", Scopes: []string{"parcels:read"}})
		bare := s.key(keyspace, "org_1", events.KeyCreated{Name: "b", Environment: "live", Plan: "large"})
		bound := s.key(keyspace, "org_1", events.KeyCreated{Name: "c", Environment: "live", Plan: "large", Scopes: []string{"parcels:read"}, Resources: []string{"d1"}})
		free := s.key(keyspace, "org_free", events.KeyCreated{Name: "d", Environment: "live", Scopes: []string{"parcels:read"}})
		limited := s.key(keyspace, "org_limited", events.KeyCreated{Name: "e", Environment: "live", Plan: "basic", Scopes: []string{"parcels:read"}})
		old, revoked := s.unknown(keyspace), s.unknown(keyspace)
		rotated := s.World.Key(keyspace, "org_1", old, events.KeyCreated{Name: "f", Environment: "live", Plan: "large", Scopes: []string{"parcels:read"}})
		current := s.unknown(keyspace)
		s.Append(keyspace, "org_1", rotated, events.KeyRotated{Secret: verifytest.Secret(current)})
		s.Append(keyspace, "org_1", s.World.Key(keyspace, "org_1", revoked, events.KeyCreated{Name: "g", Environment: "live"}), events.KeyRevoked{Reason: "leaked"})
		page := s.key(keyspace, "org_1", events.KeyCreated{Name: "h", Environment: "live", Plan: "large", Scopes: []string{"parcels:read"}, AllowedOrigins: []string{"https://page.example"}, AllowedIPs: []string{"127.0.0.1"}})
		const origin = "https://page.example"
		for range 20 { // what the plan has for a minute
			if c := s.ask(keyspace, request{"GET", read, bearer(limited), 0}); c.status != 200 {
				s.t.Fatalf("%+v", c)
			}
		}
		return []line{
			{"valid", request{"GET", read, bearer(valid), 0}, 200, ""},
			{"valid HEAD", request{"HEAD", read, bearer(valid), 0}, 200, ""},
			{"with room left", request{"GET", read, bearer(s.key(keyspace, "org_2", events.KeyCreated{Name: "r", Environment: "live", Plan: "basic", Scopes: []string{"parcels:read"}})), 0}, 200, ""},
			{"POST with a body of 1 MB", request{"POST", "/v1/other", bearer(valid, "Content-Type", "text/plain"), 1 << 20}, 200, ""},
			{"missing", request{"GET", read, http.Header{}, 0}, 401, "MISSING_CREDENTIAL"},
			{"another scheme", request{"GET", read, http.Header{"Authorization": {"Basic eDp5"}}, 0}, 401, "MALFORMED_CREDENTIAL"},
			{"two blanks", request{"GET", read, http.Header{"Authorization": {"Bearer  " + valid}}, 0}, 401, "MALFORMED_CREDENTIAL"},
			{"not a key", request{"GET", read, bearer("pb_live_x"), 0}, 401, "MALFORMED_KEY"},
			{"unknown", request{"GET", read, bearer(s.unknown(keyspace)), 0}, 401, "UNKNOWN_KEY"},
			{"the proxy's own token", request{"GET", read, bearer(authzToken), 0}, 401, "MALFORMED_KEY"},
			{"revoked", request{"GET", read, bearer(revoked), 0}, 401, "REVOKED"},
			{"rotated", request{"GET", read, bearer(current), 0}, 200, ""},
			{"rotated away", request{"GET", read, bearer(old), 0}, 401, "SUPERSEDED"},
			{"another depot", request{"GET", "/v1/depots/d2/parcels/x", bearer(bound), 0}, 403, ""},
			{"its own depot", request{"GET", "/v1/depots/d1/parcels/x", bearer(bound), 0}, 200, ""},
			{"scope", request{"GET", read, bearer(bare), 0}, 403, ""},
			{"scope, HEAD", request{"HEAD", read, bearer(bare), 0}, 403, ""},
			{"scope, with a body of 1 MB", request{"POST", write, bearer(valid), 1 << 20}, 403, ""},
			{"a spelling of the path", request{"GET", "/v1//parcels/%37", bearer(bare), 0}, 403, ""},
			{"plan", request{"GET", read, bearer(free), 0}, 402, ""},
			{"limited", request{"GET", read, bearer(limited), 0}, 429, ""},
			{"limited, to a page", request{"POST", "/v1/other", bearer(limited, "Origin", origin), 10}, 429, ""},
			{"limited HEAD", request{"HEAD", read, bearer(limited), 0}, 429, ""},
			{"a page", request{"GET", read, bearer(page, "Origin", origin), 0}, 200, ""},
			{"another page", request{"GET", read, bearer(page, "Origin", "https://page.example.evil"), 0}, 401, "ORIGIN_DENIED"},
			{"missing, to a page", request{"GET", read, http.Header{"Origin": {origin}}, 0}, 401, "MISSING_CREDENTIAL"},
			{"large headers", request{"GET", read, bearer(s.unknown(keyspace), "X-Large", strings.Repeat("x", 6000)), 0}, 401, "UNKNOWN_KEY"},
		}
	case "promptick":
		valid := s.key(keyspace, "proj_1", events.KeyCreated{Name: "a", Environment: "live", Resources: []string{"agent_1"}})
		limited := s.key(keyspace, "proj_1", events.KeyCreated{Name: "b", Environment: "live", Resources: []string{"agent_1"}, Limits: events.Limits{"minute": 1, "hour": 5000, "day": 100000}})
		path := "/api/v1/agents/agent_1/run"
		s.ask(keyspace, request{"POST", path, bearer(limited), 0})
		return []line{
			{"valid", request{"POST", path, bearer(valid), 100}, 200, ""},
			{"missing", request{"POST", path, http.Header{}, 100}, 401, "Missing or invalid"},
			{"another agent", request{"POST", "/api/v1/agents/agent_2/run", bearer(valid), 100}, 401, "not valid for this agent"},
			{"limited", request{"POST", path, bearer(limited), 100}, 429, "retryAfter"},
		}
	case "logtalk":
		s.Append(keyspace, "org_growth", "", events.OwnerRegistered{Name: "growth", Plan: "growth"})
		valid := s.key(keyspace, "org_growth", events.KeyCreated{Name: "a", Environment: "live"})
		starter := s.key(keyspace, "org_starter", events.KeyCreated{Name: "b", Environment: "live"})
		return []line{
			{"valid", request{"POST", "/v1/convert", bearer(valid, "Content-Type", "application/json"), 100}, 200, ""},
			{"content type", request{"POST", "/v1/convert", bearer(valid, "Content-Type", "text/plain"), 1 << 20}, 415, "UNSUPPORTED_MEDIA_TYPE"},
			{"plan", request{"POST", "/v1/convert", bearer(starter, "Content-Type", "application/json"), 100}, 403, "API_ACCESS_DENIED"},
			{"missing", request{"GET", "/v1/convert", http.Header{}, 0}, 401, "MISSING_API_KEY"},
		}
	}
	return nil
}

// Behind nginx and Caddy, with the configurations of this directory, the client gets
// what the document says: status, headers and body. As many uses and refusals are
// recorded as there were requests.
func TestForwardAuth(t *testing.T) {
	s := newStage(t)
	proxies := map[string][]proxy{}
	for _, keyspace := range []string{"parcelbird", "promptick", "logtalk"} {
		proxies[keyspace] = []proxy{s.nginx(keyspace), s.caddy(keyspace)}
	}
	for _, keyspace := range slices.Sorted(maps.Keys(proxies)) {
		lines := s.lines(keyspace)
		for _, p := range proxies[keyspace] {
			for _, l := range lines {
				s.check(p, l)
			}
			s.withoutKey(p)
		}
	}
	if n := s.counted(); n != s.asked {
		t.Errorf("%d requests, %d uses and refusals", s.asked, n)
	}

	// The two that are not about the key.
	stale := verify.New(s.Ring, nil, verify.Options{Head: func(context.Context) (uint64, error) { return 0, errors.New("away") }, StaleWindow: 1})
	t.Cleanup(stale.Close)
	s.decideWith(authz.New(stale, authz.Options{}))
	for _, p := range proxies["promptick"] {
		s.check(p, line{"stale", request{"POST", "/api/v1/agents/agent_1/run", bearer("pk_live_x"), 10}, 503, "Service unavailable"})
	}
	valid := s.key("promptick", "proj_2", events.KeyCreated{Name: "z", Environment: "live", Resources: []string{"agent_1"}})
	s.decideWith(authz.New(s.Verifier, authz.Options{Durable: true, DurableTime: 50 * time.Millisecond}))
	s.NATS.Shutdown()
	for _, p := range proxies["promptick"] {
		s.check(p, line{"strict audit", request{"POST", "/api/v1/agents/agent_1/run", bearer(valid), 10}, 503, "Service unavailable"})
	}
}

func (s *stage) check(p proxy, l line) {
	s.t.Helper()
	// A second may begin between the two: then the one after it tells the same.
	before := s.ask(p.keyspace, l.q)
	got := s.through(p, l.q)
	after := s.ask(p.keyspace, l.q)
	at := p.name + " " + p.keyspace + " " + l.name
	if got.status != l.status || !strings.Contains(got.body, l.code) && l.q.method != "HEAD" {
		s.t.Errorf("%s: %d %s, want %d %s", at, got.status, got.body, l.status, l.code)
		return
	}
	if l.status != 200 {
		head := l.q.method == "HEAD"
		if told := got.told(head); told != before.told(head) && told != after.told(head) {
			s.t.Errorf("%s: the client got\n%s\n\nand not\n%s", at, told, before.told(head))
		}
		if l.status == 429 && got.header.Get("Retry-After") == "" {
			s.t.Errorf("%s: no Retry-After", at)
		}
		return
	}
	if id := got.header.Get("X-Request-Id"); !strings.HasPrefix(id, "req_") {
		s.t.Errorf("%s: X-Request-Id is %q", at, id)
	}
	for name := range before.header {
		if strings.HasPrefix(name, "X-Ratelimit-") || strings.HasPrefix(name, "Ratelimit") {
			if v := got.header[name]; len(v) != 1 || v[0] == "" {
				s.t.Errorf("%s: %s is %q", at, name, v)
			}
		}
	}
	if l.q.method == "HEAD" {
		return
	}
	var echo demo.Echo
	if err := json.Unmarshal([]byte(got.body), &echo); err != nil {
		s.t.Errorf("%s: %v: %s", at, err, got.body)
		return
	}
	path, query, _ := strings.Cut(l.q.path, "?")
	if echo.Method != l.q.method || echo.Path != path || echo.Query != query || echo.BodyBytes != int64(l.q.body) {
		s.t.Errorf("%s: the upstream got %s %s?%s with %d bytes", at, echo.Method, echo.Path, echo.Query, echo.BodyBytes)
	}
	for _, name := range []string{"X-Key-Id", "X-Key-Owner", "X-Key-Scopes", "X-Key-Environment", "X-Request-Id", "X-Decision-Id"} {
		if v := echo.Headers[name]; len(v) != 1 || v[0] == "" || name != "X-Request-Id" && name != "X-Decision-Id" && v[0] != before.header.Get(name) {
			s.t.Errorf("%s: the upstream got %s: %q", at, name, v)
		}
	}
	if id := echo.Headers["X-Request-Id"]; len(id) != 1 || id[0] != got.header.Get("X-Request-Id") {
		s.t.Errorf("%s: the upstream got request id %q, the client %q", at, id, got.header["X-Request-Id"])
	}
	for _, name := range []string{"Authorization", "X-Authz-Token"} {
		if len(echo.Headers[name]) > 0 {
			s.t.Errorf("%s: the upstream got %s", at, name)
		}
	}
}

// What needs no key is recorded as nobody's use, and what a client says of keys, or
// in place of its proxy, does not arrive.
func (s *stage) withoutKey(p proxy) {
	s.t.Helper()
	at := p.name + " " + p.keyspace
	asked := s.asked
	c := s.through(p, request{"OPTIONS", "/v1/x", http.Header{
		"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"POST"}, "X-Key-Id": {"forged"}, "X-Key-Scopes": {"forged"}, "X-Authz-Token": {"x"},
	}, 0})
	if c.status != 200 || strings.Contains(c.body, "forged") || c.header.Get("Access-Control-Allow-Methods") != "POST" {
		s.t.Errorf("%s: preflight: %d %v %s", at, c.status, c.header, c.body)
	}
	if p.keyspace == "parcelbird" {
		if c := s.through(p, request{"GET", "/health", http.Header{}, 0}); c.status != 200 || !strings.Contains(c.body, `"path": "/health"`) {
			s.t.Errorf("%s: public: %d %s", at, c.status, c.body)
		}
	}
	s.asked = asked
	// A client that answers the question in its proxy's place.
	for _, forged := range []http.Header{
		{"X-Original-Uri": {"/health"}, "X-Original-Method": {"GET"}},
		{"X-Forwarded-Uri": {"/health"}, "X-Forwarded-Method": {"GET"}},
		{"X-Original-Uri": {"/v1/x"}, "X-Original-Method": {"OPTIONS"}, "Origin": {"x"}, "Access-Control-Request-Method": {"GET"}},
		{"X-Decision-Answer": {"NDE4Cgo"}, "X-Decision-Status": {"200"}, "X-Decision-Id": {"dec_x"}},
	} {
		if c := s.through(p, request{"GET", "/v1/parcels/7", forged, 0}); c.status != 401 {
			s.t.Errorf("%s: %v: %d %s", at, forged, c.status, c.body)
		}
	}
	if c := s.through(p, request{"GET", "/_keyledger/authz", http.Header{}, 0}); c.status == 200 {
		s.t.Errorf("%s: the proxy's own place is open: %s", at, c.body)
	} else if c.status == 404 {
		s.asked-- // nginx asked nobody
	}
}

// A proxy that keyledger does not believe tells its clients nothing about their
// keys, and lets nobody through; neither does one without keyledger.
func TestForwardAuthClosed(t *testing.T) {
	s := newStage(t)
	valid := s.key("parcelbird", "org_1", events.KeyCreated{Name: "a", Environment: "live", Plan: "large", Scopes: []string{"parcels:read"}})
	n, c := s.nginx("parcelbird"), s.caddy("parcelbird")
	q := request{"GET", "/v1/parcels/7", bearer(valid), 0}
	for _, p := range []proxy{n, c} {
		if got := s.through(p, q); got.status != 200 {
			t.Fatalf("%s: %d %s", p.name, got.status, got.body)
		}
	}
	s.decideWith(authz.New(verify.New(s.Ring, nil, verify.Options{}), authz.Options{}))
	for k := range s.Ring.Keys(events.RootKeyspace, "") {
		s.Append(events.RootKeyspace, "", k.ID, events.KeyRevoked{Reason: "left"})
	}
	if got := s.through(n, q); got.status != 503 {
		t.Errorf("nginx, not believed: %d %s", got.status, got.body)
	}
	if got := s.through(c, q); got.status != 401 {
		t.Errorf("Caddy, not believed: %d %s", got.status, got.body)
	}
	s.server.Close()
	if got := s.through(n, q); got.status != 500 {
		t.Errorf("nginx alone: %d %s", got.status, got.body)
	}
	if got := s.through(c, q); got.status != 502 {
		t.Errorf("Caddy alone: %d %s", got.status, got.body)
	}
}

// Traefik's configuration asks, as its documentation says that it does, a question
// that is understood, and copies headers that are answered.
func TestTraefik(t *testing.T) {
	var conf struct {
		HTTP struct {
			Routers     map[string]struct{ Middlewares []string }
			Middlewares map[string]struct {
				Chain   struct{ Middlewares []string }
				Headers struct {
					CustomRequestHeaders map[string]string `yaml:"customRequestHeaders"`
				}
				ForwardAuth struct {
					Address             string
					TrustForwardHeader  *bool    `yaml:"trustForwardHeader"`
					AuthResponseHeaders []string `yaml:"authResponseHeaders"`
				} `yaml:"forwardAuth"`
			}
		}
	}
	d := yaml.NewDecoder(strings.NewReader(read(t, "traefik/keyledger.yaml")))
	if err := d.Decode(&conf); err != nil {
		t.Fatal(err)
	}
	m := conf.HTTP.Middlewares
	chain := m[conf.HTTP.Routers["api"].Middlewares[0]].Chain.Middlewares
	if len(chain) != 3 {
		t.Fatalf("%v", chain)
	}
	proof, ask, strip := m[chain[0]].Headers.CustomRequestHeaders, m[chain[1]].ForwardAuth, m[chain[2]].Headers.CustomRequestHeaders
	if _, ok := proof["X-Authz-Token"]; !ok || strip["X-Authz-Token"] != "" || strip["Authorization"] != "" || len(strip) != 2 || ask.TrustForwardHeader == nil {
		t.Errorf("proof %v, strip %v, %+v", proof, strip, ask)
	}
	s := newStage(t)
	valid := s.key("parcelbird", "org_1", events.KeyCreated{Name: "a", Environment: "live", Plan: "large", Scopes: []string{"parcels:read"}})
	q := func(method, uri string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", strings.TrimPrefix(ask.Address, "http://keyledger:7070"), nil)
		r.Header = http.Header{
			"Authorization": {"Bearer " + valid}, "X-Authz-Token": {authzToken}, "X-Forwarded-For": {"203.0.113.9"}, "X-Forwarded-Host": {"api.example.com"},
			"X-Forwarded-Method": {method}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Uri": {uri}, "X-Original-Uri": {"/health"},
		}
		w := httptest.NewRecorder()
		s.handler.Load().ServeHTTP(w, r)
		return w
	}
	w := q("GET", "/v1/parcels/7?x")
	for _, name := range ask.AuthResponseHeaders {
		if w.Header().Get(name) == "" {
			t.Errorf("%s is not answered: %d %v", name, w.Code, w.Header())
		}
	}
	if w := q("DELETE", "/v1/parcels/7"); w.Code != 403 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Envoy's likewise. It sends of the client's headers those that are always sent and
// those that it is told to.
func TestEnvoy(t *testing.T) {
	type patterns struct {
		Patterns []struct {
			Exact, Prefix string
		}
	}
	type filter struct {
		Name  string
		Typed struct {
			Type             string   `yaml:"@type"`
			UseRemoteAddress bool     `yaml:"use_remote_address"`
			FailureModeAllow *bool    `yaml:"failure_mode_allow"`
			AllowedHeaders   patterns `yaml:"allowed_headers"`
			HTTPService      struct {
				PathPrefix string                   `yaml:"path_prefix"`
				ServerURI  struct{ Cluster string } `yaml:"server_uri"`
				Request    struct {
					HeadersToAdd []struct{ Key, Value string } `yaml:"headers_to_add"`
				} `yaml:"authorization_request"`
				Response struct {
					Upstream patterns `yaml:"allowed_upstream_headers"`
					Client   patterns `yaml:"allowed_client_headers_on_success"`
				} `yaml:"authorization_response"`
			} `yaml:"http_service"`
			Filters []yaml.Node `yaml:"http_filters"`
		} `yaml:"typed_config"`
	}
	var conf struct {
		Static struct {
			Listeners []struct {
				Chains []struct{ Filters []filter } `yaml:"filter_chains"`
			}
			Clusters []struct{ Name string }
		} `yaml:"static_resources"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "envoy/envoy.yaml")), &conf); err != nil {
		t.Fatal(err)
	}
	manager := conf.Static.Listeners[0].Chains[0].Filters[0].Typed
	var first filter
	if err := manager.Filters[0].Decode(&first); err != nil {
		t.Fatal(err)
	}
	f := first.Typed
	if !manager.UseRemoteAddress || first.Name != "envoy.filters.http.ext_authz" || f.FailureModeAllow == nil || *f.FailureModeAllow ||
		!slices.ContainsFunc(conf.Static.Clusters, func(c struct{ Name string }) bool { return c.Name == f.HTTPService.ServerURI.Cluster }) {
		t.Errorf("%+v", f)
	}
	s := newStage(t)
	valid := s.key("parcelbird", "org_1", events.KeyCreated{Name: "a", Environment: "live", Plan: "basic", Scopes: []string{"parcels:read"}, AllowedIPs: []string{"203.0.113.9"}, AllowedOrigins: []string{"https://page.example"}})
	q := func(method, uri string, h http.Header) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, f.HTTPService.PathPrefix+uri, nil)
		r.Header = http.Header{"Content-Length": {"0"}}
		for name, values := range h {
			if name == "Authorization" || slices.ContainsFunc(f.AllowedHeaders.Patterns, func(p struct{ Exact, Prefix string }) bool { return strings.EqualFold(p.Exact, name) }) {
				r.Header[name] = values
			}
		}
		for _, add := range f.HTTPService.Request.HeadersToAdd {
			if add.Value != "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" {
				t.Errorf("%+v", add)
			}
			r.Header.Set(add.Key, "203.0.113.9")
		}
		r.Header["X-Forwarded-For"], r.Header["X-Envoy-Internal"] = []string{"10.0.0.3"}, []string{"true"} // Envoy's own address
		w := httptest.NewRecorder()
		s.handler.Load().Proven().ServeHTTP(w, r)
		return w
	}
	from := http.Header{"Authorization": {"Bearer " + valid}, "Origin": {"https://page.example"}, "X-Forwarded-Uri": {"/health"}, "X-Original-Uri": {"/health"}, "X-Forwarded-Proto": {"https"}}
	w := q("GET", "/v1/parcels/7?for=nginx", from)
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for _, p := range f.HTTPService.Response.Upstream.Patterns {
		if w.Header().Get(p.Exact) == "" {
			t.Errorf("%s is not answered", p.Exact)
		}
	}
	for _, p := range f.HTTPService.Response.Client.Patterns {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(w.Header())), func(name string) bool {
			name = strings.ToLower(name)
			return name == p.Exact || p.Prefix != "" && strings.HasPrefix(name, p.Prefix)
		}) {
			t.Errorf("%+v is not answered: %v", p, w.Header())
		}
	}
	if w := q("DELETE", "/v1/parcels/7", from); w.Code != 402 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := q("OPTIONS", "/v1/parcels", http.Header{"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"DELETE"}}); w.Code != 200 {
		t.Errorf("preflight: %d %s", w.Code, w.Body)
	}
}
