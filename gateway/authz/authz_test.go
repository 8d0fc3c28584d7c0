package authz_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway/authz"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/inbound"
	"github.com/keyledger/keyledger/verify/verifytest"
)

const (
	secret = "bd_live_0123456789abcdefABCDEFxyzXYZ0000"
	token  = "klr_verifier"
)

// rig is forward-auth with one key that may read birds, and a verifier's root key.
type rig struct {
	*verifytest.World
	t       *testing.T
	handler *authz.Handler
	key     string
}

func newRig(t *testing.T, o authz.Options) *rig {
	t.Helper()
	g := &rig{World: verifytest.New(t, verify.Options{}), t: t}
	g.Configure(verifytest.Birds)
	g.key = g.World.Key("birds", "org_1", secret, events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"birds:read"}})
	g.root(token, domain.Verifier, nil)
	g.handler = authz.New(g.Verifier, o)
	return g
}

// root makes a root key.
func (g *rig) root(secret, role string, reach *events.Reach) string {
	id := events.NewID("key", time.Now())
	g.Append(events.RootKeyspace, "", id, events.KeyCreated{Name: role, Role: role, For: reach, Secret: verifytest.Secret(secret)})
	return id
}

// ask sends a request as it stands on the wire, with its lines joined by |.
func (g *rig) ask(lines string) *httptest.ResponseRecorder {
	g.t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(lines, "|", "\r\n") + "\r\n\r\n")))
	if err != nil {
		g.t.Fatalf("%s: %v", lines, err)
	}
	r.RemoteAddr = "192.0.2.7:4711"
	w := httptest.NewRecorder()
	g.handler.ServeHTTP(w, r.WithContext(g.t.Context()))
	return w
}

const (
	proof  = "|Host: keyledger|X-Authz-Token: " + token
	bearer = "|Authorization: Bearer " + secret
)

func code(w *httptest.ResponseRecorder) string {
	var problem struct{ Code string }
	_ = json.Unmarshal(w.Body.Bytes(), &problem)
	return problem.Code
}

// The requests are those that each proxy sends, by its documentation and source:
// Traefik 3 (pkg/middlewares/auth/forward.go) and Caddy 2.11 (reverseproxy/forwardauth)
// ask with GET and copy the client's headers; Envoy asks with the method and path of
// the client's request, with Host, Content-Length 0 and Authorization, what
// allowed_headers and headers_to_add name, and appends its own address to
// X-Forwarded-For.
func TestProxies(t *testing.T) {
	g := newRig(t, authz.Options{})
	for _, c := range []struct {
		proxy, asked string
		method, path string
		ip           string
	}{
		{"nginx", "GET /v1/authz/birds?for=nginx HTTP/1.1" + proof + bearer +
			"|X-Original-Method: GET|X-Original-URI: /v1/birds/7?x=1|X-Forwarded-For: 203.0.113.9|X-Forwarded-Proto: https|User-Agent: curl/8|Content-Type: application/json",
			"GET", "/v1/birds/7", "203.0.113.9"},
		{"nginx without for", "GET /v1/authz/birds HTTP/1.1" + proof + bearer + "|X-Original-Method: HEAD|X-Original-URI: /v1/birds", "HEAD", "/v1/birds", ""},
		{"Traefik", "GET /v1/authz/birds?for=traefik HTTP/1.1|Host: keyledger:7070|User-Agent: curl/8.5.0|Accept: */*" + bearer +
			"|X-Authz-Token: " + token + "|X-Forwarded-For: 203.0.113.9|X-Forwarded-Host: api.example.com|X-Forwarded-Method: GET|X-Forwarded-Proto: https" +
			"|X-Forwarded-Port: 443|X-Forwarded-Server: traefik-1|X-Forwarded-Uri: /v1/birds?page=2|X-Real-Ip: 203.0.113.9|Accept-Encoding: gzip", "GET", "/v1/birds", "203.0.113.9"},
		{"Traefik behind a balancer, trustForwardHeader", "GET /v1/authz/birds HTTP/1.1" + proof + bearer +
			"|X-Forwarded-For: 198.51.100.1, 203.0.113.9|X-Forwarded-Host: api.example.com|X-Forwarded-Method: GET|X-Forwarded-Proto: https|X-Forwarded-Uri: /v1/birds", "GET", "/v1/birds", "203.0.113.9"},
		{"Caddy", "GET /v1/authz/birds?for=caddy HTTP/1.1|Host: api.example.com|User-Agent: curl/8.5.0|Accept: */*" + bearer +
			"|X-Authz-Token: " + token + "|X-Forwarded-For: 203.0.113.9|X-Forwarded-Host: api.example.com|X-Forwarded-Method: GET|X-Forwarded-Proto: https" +
			"|X-Forwarded-Uri: /v1/birds/%41|Accept-Encoding: gzip|Via: 2.0 Caddy", "GET", "/v1/birds/%41", "203.0.113.9"},
		{"Envoy", "GET /v1/authz/birds/v1/birds/7?for=nginx&a=b HTTP/1.1|Host: api.example.com|Content-Length: 0|Authorization: Bearer " + secret +
			"|X-Authz-Token: " + token + "|X-Authz-Client-Ip: 203.0.113.9|X-Forwarded-For: 203.0.113.9,10.1.2.3|X-Forwarded-Proto: https|X-Envoy-Internal: true|X-Envoy-Expected-Rq-Timeout-Ms: 250" +
			"|X-Request-Id: 5b2a2a4e-9a1e-4c4b-8e0f-0b7b8f3b1c11", "GET", "/v1/birds/7", "203.0.113.9"},
		{"Envoy, of a request to the root", "GET /v1/authz/birds/ HTTP/1.1" + proof + bearer + "|Content-Length: 0|X-Forwarded-For: 10.1.2.3", "GET", "/", "10.1.2.3"},
	} {
		t.Run(c.proxy, func(t *testing.T) {
			before := len(g.Recorded())
			w := g.ask(c.asked)
			if w.Code != 200 || w.Body.Len() != 0 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			for name, want := range map[string]string{"X-Key-Id": g.key, "X-Key-Owner": "org_1", "X-Key-Scopes": "birds:read", "X-Key-Environment": "live"} {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			all := g.Recorded()
			if len(all) != before+1 {
				t.Fatalf("%d facts", len(all)-before)
			}
			e := all[before].Event
			u := e.Data.(events.KeyUsed)
			if e.Via != "authz" || e.RequestID != w.Header().Get("X-Request-Id") || u.Decision != w.Header().Get("X-Decision-Id") || u.Status != nil {
				t.Errorf("recorded as %+v, answered with %v", e, w.Header())
			}
			if u.Method != c.method || u.Endpoint != c.path {
				t.Errorf("judged %s %s", u.Method, u.Endpoint)
			}
			ip, err := g.Keys.Open(t.Context(), u.SourceIP)
			if ip != c.ip || err != nil {
				t.Errorf("source %q %v, want %q", ip, err, c.ip)
			}
		})
	}
}

// The method that is judged is the client's, not that of the question.
func TestMethod(t *testing.T) {
	g := newRig(t, authz.Options{})
	for asked, want := range map[string]int{
		"GET /v1/authz/birds HTTP/1.1" + proof + bearer + "|X-Forwarded-Method: DELETE|X-Forwarded-Uri: /v1/birds/7":        403,
		"GET /v1/authz/birds?for=caddy HTTP/1.1" + proof + bearer + "|X-Forwarded-Method: GET|X-Forwarded-Uri: /v1/birds/7": 200,
		"POST /v1/authz/birds HTTP/1.1" + proof + bearer + "|X-Original-Method: GET|X-Original-URI: /v1/birds":              200,
		"DELETE /v1/authz/birds/v1/birds/7 HTTP/1.1" + proof + bearer:                                                       403,
		"HEAD /v1/authz/birds/v1/birds/7 HTTP/1.1" + proof + bearer:                                                         200,
	} {
		if w := g.ask(asked); w.Code != want {
			t.Errorf("%s: %d %s", asked, w.Code, w.Body)
		}
	}
}

// Who has not proven to be a proxy learns nothing and records nothing; the proxy's
// credential and the client's are never confused.
func TestProof(t *testing.T) {
	g := newRig(t, authz.Options{})
	revoked := g.root("klr_revoked", domain.Verifier, nil)
	g.Append(events.RootKeyspace, "", revoked, events.KeyRevoked{Reason: "left"})
	g.root("klr_auditor", domain.Auditor, nil)
	g.root("klr_manager", domain.Manager, &events.Reach{Keyspace: "birds", Owner: "org_1"})
	g.root("klr_operator", domain.Operator, nil)
	const asked = "|X-Original-Method: GET|X-Original-URI: /v1/birds" + bearer
	for _, c := range []struct {
		name, lines string
		status      int
		code        string
	}{
		{"none", "", 401, "MISSING_CREDENTIAL"},
		{"empty", "|X-Authz-Token: ", 401, "MISSING_CREDENTIAL"},
		{"two", "|X-Authz-Token: " + token + "|X-Authz-Token: x", 401, "MALFORMED_CREDENTIAL"},
		{"unknown", "|X-Authz-Token: nonsense", 401, "MALFORMED_KEY"},
		{"revoked", "|X-Authz-Token: klr_revoked", 401, "REVOKED"},
		{"a customer's key", "|X-Authz-Token: " + secret, 401, "MALFORMED_KEY"},
		{"an auditor", "|X-Authz-Token: klr_auditor", 403, "FORBIDDEN"},
		{"a manager", "|X-Authz-Token: klr_manager", 403, "FORBIDDEN"},
		{"as the client's credential", "|Authorization: Bearer " + token, 401, "MISSING_CREDENTIAL"},
		{"an operator", "|X-Authz-Token: klr_operator", 200, ""},
	} {
		w := g.ask("GET /v1/authz/birds HTTP/1.1|Host: x" + c.lines + asked)
		if w.Code != c.status || code(w) != c.code {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		if c.status >= 400 && w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %v", c.name, w.Header())
		}
	}
	for _, path := range []string{authz.AnswersPath + "dec_x", "/v1/authz/none", "/v1/authz/birds/v1/birds"} {
		if w := g.ask("GET " + path + " HTTP/1.1|Host: x" + asked); w.Code != 401 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	// The root key in place of the client's credential is nobody's key.
	w := g.ask("GET /v1/authz/birds HTTP/1.1" + proof + "|Authorization: Bearer " + token + "|X-Original-Method: GET|X-Original-URI: /v1/birds")
	if w.Code != 401 || code(w) != "MALFORMED_KEY" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if n := len(verifytest.RecordedAs[events.KeyUsed](g.World)); n != 1 {
		t.Errorf("%d uses", n)
	}
}

// A keyspace may take its credential in any header, beside the proxy's token.
func TestCredentialHeader(t *testing.T) {
	g := newRig(t, authz.Options{})
	g.Configure(strings.NewReplacer(`"birds"`, `"nests"`, `{"header": "Authorization", "scheme": "Bearer"}`, `{"header": "X-API-Key", "scheme": ""}`).Replace(verifytest.Birds))
	g.World.Key("nests", "org_1", "bd_live_other", events.KeyCreated{Name: "n", Environment: "live"})
	const asked = "GET /v1/authz/nests HTTP/1.1" + proof + "|X-Original-Method: GET|X-Original-URI: /v1/nests"
	if w := g.ask(asked + "|X-Api-Key: bd_live_other|Authorization: Basic eDp5"); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := g.ask(asked + "|Authorization: Bearer bd_live_other"); w.Code != 401 || code(w) != "MISSING_CREDENTIAL" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// What the proxy does not say, or may not have said itself, is refused with what
// it must send.
func TestIncomplete(t *testing.T) {
	g := newRig(t, authz.Options{})
	for _, c := range []struct {
		name, path, lines string
		code              string
	}{
		{"nothing", "birds", "", "INCOMPLETE_FORWARDED_REQUEST"},
		{"no method", "birds", "|X-Original-URI: /v1/birds", "INCOMPLETE_FORWARDED_REQUEST"},
		{"no URI", "birds", "|X-Forwarded-Method: GET", "INCOMPLETE_FORWARDED_REQUEST"},
		{"empty URI", "birds", "|X-Forwarded-Method: GET|X-Forwarded-Uri: ", "INCOMPLETE_FORWARDED_REQUEST"},
		{"nginx, and the client sent the other family", "birds?for=nginx", "|X-Forwarded-Method: GET|X-Forwarded-Uri: /health", "INCOMPLETE_FORWARDED_REQUEST"},
		{"Caddy, and the client sent the other family", "birds?for=caddy", "|X-Original-Method: GET|X-Original-URI: /health", "INCOMPLETE_FORWARDED_REQUEST"},
		{"both families", "birds", "|X-Forwarded-Method: GET|X-Forwarded-Uri: /v1/birds|X-Original-Method: GET|X-Original-URI: /health", "AMBIGUOUS_FORWARDED_REQUEST"},
		{"a part of the other family", "birds", "|X-Forwarded-Method: GET|X-Forwarded-Uri: /v1/birds|X-Original-URI: /health", "AMBIGUOUS_FORWARDED_REQUEST"},
		{"doubled", "birds", "|X-Original-Method: GET|X-Original-URI: /v1/birds|X-Original-URI: /health", "AMBIGUOUS_FORWARDED_REQUEST"},
		{"doubled method", "birds?for=caddy", "|X-Forwarded-Method: GET|X-Forwarded-Method: HEAD|X-Forwarded-Uri: /health", "AMBIGUOUS_FORWARDED_REQUEST"},
		{"a slash too many", "birds/", "|X-Forwarded-Method: DELETE|X-Forwarded-Uri: /v1/birds", "AMBIGUOUS_FORWARDED_REQUEST"},
		{"Envoy lets too much through", "birds/health", "|X-Original-URI: /v1/birds", "AMBIGUOUS_FORWARDED_REQUEST"},
		{"an unknown proxy", "birds?for=ngnix", "|X-Original-Method: GET|X-Original-URI: /v1/birds", "BAD_QUERY"},
		{"an unknown parameter", "birds?fro=nginx", "|X-Original-Method: GET|X-Original-URI: /v1/birds", "BAD_QUERY"},
		{"twice", "birds?for=caddy&for=nginx", "|X-Original-Method: GET|X-Original-URI: /v1/birds", "BAD_QUERY"},
		{"a whole URL", "birds", "|X-Original-Method: GET|X-Original-URI: http://x/health", "BAD_PATH"},
		{"a fragment", "birds", "|X-Original-Method: GET|X-Original-URI: /health#/../v1/birds", "BAD_PATH"},
		{"a blank", "birds", "|X-Original-Method: GET|X-Original-URI: /health /v1/birds", "BAD_PATH"},
		{"above the root", "birds", "|X-Original-Method: GET|X-Original-URI: /health/%2e%2e/%2e%2e/v1", "BAD_PATH"},
		{"above the root, of Envoy", "birds/../../v1", "", "BAD_PATH"},
		{"no method at all", "birds", "|X-Original-Method: GE T|X-Original-URI: /health", "BAD_METHOD"},
	} {
		w := g.ask("GET /v1/authz/" + c.path + " HTTP/1.1" + proof + bearer + c.lines)
		if strings.HasPrefix(c.path, "birds?for=nginx") || strings.HasSuffix(c.path, "for=nginx") && w.Code == 403 {
			if w.Header().Get("X-Decision-Status") != "400" || w.Body.Len() != 0 {
				t.Errorf("%s: %d %v", c.name, w.Code, w.Header())
			}
			continue
		}
		if w.Code != 400 || code(w) != c.code {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
	}
	if w := g.ask("GET /v1/authz/none HTTP/1.1" + proof + bearer + "|X-Original-Method: GET|X-Original-URI: /v1/birds"); w.Code != 404 || code(w) != "NO_KEYSPACE" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := g.ask("GET /v1/authz/keyledger HTTP/1.1" + proof + "|Authorization: Bearer " + token + "|X-Original-Method: GET|X-Original-URI: /"); w.Code != 404 {
		t.Errorf("the root keys' own keyspace: %d %s", w.Code, w.Body)
	}
	if all := g.Recorded(); len(all) != 0 {
		t.Errorf("%+v", all)
	}
}

// No spelling of a path gets past the scope that the plain spelling needs.
func TestSpellings(t *testing.T) {
	g := newRig(t, authz.Options{})
	for _, path := range []string{
		"/v1/birds/7", "/v1//birds/7", "//v1/birds/7", "/v1/./birds/7", "/x/../v1/birds/7", "/v1/%62irds/7", "/v1%2Fbirds/7",
		"/x/%2e%2e/v1/birds/7", "/x/%252e%252e/v1/birds/7", `/v1\birds/7`, "/v1/birds;x=1/7", "/v1/birds/",
	} {
		if w := g.ask("GET /v1/authz/birds HTTP/1.1" + proof + bearer + "|X-Original-Method: DELETE|X-Original-URI: " + path); w.Code != 403 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		if w := g.ask("DELETE /v1/authz/birds" + path + " HTTP/1.1" + proof + bearer); w.Code != 403 {
			t.Errorf("of Envoy, %s: %d %s", path, w.Code, w.Body)
		}
	}
}

// A refusal is the document's answer; a browser may read it.
func TestRefused(t *testing.T) {
	g := newRig(t, authz.Options{})
	const asked = proof + bearer + "|Origin: https://page.example|X-Original-Method: POST|X-Original-URI: /v1/birds|X-Forwarded-For: 203.0.113.9"
	const body = `{"problem":"Scope missing","needs":["birds:write"]}`
	want := map[string]string{
		"X-Reason": "INSUFFICIENT_SCOPE", "Access-Control-Allow-Origin": "https://page.example", "Vary": "Origin",
		"Access-Control-Allow-Credentials": "true", "Content-Type": "application/json", "Content-Length": fmt.Sprint(len(body)),
	}
	same := func(w *httptest.ResponseRecorder, requestID string) {
		t.Helper()
		if w.Code != 403 || w.Body.String() != body {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		for name, value := range want {
			if got := w.Header()[name]; len(got) != 1 || got[0] != value {
				t.Errorf("%s: %q, want %q", name, got, value)
			}
		}
		if len(w.Header()) != len(want)+2 || w.Header().Get("X-Request-Id") != requestID || !strings.Contains(w.Header().Get("Access-Control-Expose-Headers"), "X-Reason") {
			t.Errorf("%v", w.Header())
		}
	}
	w := g.ask("GET /v1/authz/birds HTTP/1.1" + asked)
	same(w, w.Header().Get("X-Request-Id"))

	// nginx is told in headers, and gets the same when it asks for the answer.
	w = g.ask("GET /v1/authz/birds?for=nginx HTTP/1.1" + asked)
	h := w.Header()
	if w.Code != 403 || w.Body.Len() != 0 || h.Get("X-Decision-Status") != "403" || !strings.HasPrefix(h.Get("X-Decision-Id"), "dec_") || h.Get("X-Reason") != "INSUFFICIENT_SCOPE" {
		t.Fatalf("%d %v", w.Code, h)
	}
	for range 2 {
		same(g.ask("GET "+authz.AnswersPath+h.Get("X-Decision-Id")+" HTTP/1.1"+asked+"|X-Decision-Answer: "+h.Get("X-Decision-Answer")), h.Get("X-Request-Id"))
	}
	lost := g.ask("GET " + authz.AnswersPath + h.Get("X-Decision-Id") + " HTTP/1.1" + asked + "|X-Decision-Status: 429")
	if lost.Code != 429 || code(lost) != "REFUSED" {
		t.Errorf("%d %s", lost.Code, lost.Body)
	}
	for _, broken := range []string{"x", "NDAz", "OTk5CgpY", "MTAxCgpY"} {
		if w := g.ask("GET " + authz.AnswersPath + "- HTTP/1.1" + asked + "|X-Decision-Answer: " + broken); w.Code != 403 || code(w) != "REFUSED" {
			t.Errorf("%s: %d %s", broken, w.Code, w.Body)
		}
	}
	n := 0
	for _, d := range verifytest.RecordedAs[events.KeyDenied](g.World) {
		n += int(d.Count)
	}
	if n != 2 {
		t.Errorf("%d refusals are counted", n)
	}
}

// An answer that no header holds is kept, for a while.
func TestLongAnswer(t *testing.T) {
	g := newRig(t, authz.Options{})
	long := strings.Repeat("x", 20_000)
	g.Configure(strings.Replace(verifytest.Birds, "Scope missing", long, 1))
	const asked = "GET /v1/authz/birds?for=nginx HTTP/1.1" + proof + bearer + "|X-Original-Method: POST|X-Original-URI: /v1/birds"
	first := g.ask(asked).Header()
	if first.Get("X-Decision-Answer") != "" {
		t.Error("a header of 20,000 bytes")
	}
	fetch := func(h http.Header) *httptest.ResponseRecorder {
		return g.ask("GET " + authz.AnswersPath + h.Get("X-Decision-Id") + " HTTP/1.1" + proof + "|X-Decision-Status: " + h.Get("X-Decision-Status"))
	}
	if w := fetch(first); w.Code != 403 || w.Body.String() != `{"problem":"`+long+`","needs":["birds:write"]}` {
		t.Errorf("%d %d bytes", w.Code, w.Body.Len())
	}
	for range 512 {
		g.ask(asked)
	}
	if w := fetch(first); w.Code != 403 || code(w) != "REFUSED" {
		t.Errorf("%d %d bytes", w.Code, w.Body.Len())
	}
}

// A browser's question before the request, and a public route, need no credential;
// what is copied to the upstream has a value all the same.
func TestWithoutKey(t *testing.T) {
	g := newRig(t, authz.Options{})
	preflight := g.ask("GET /v1/authz/birds HTTP/1.1" + proof + "|X-Original-Method: OPTIONS|X-Original-URI: /v1/birds|Origin: https://page.example|Access-Control-Request-Method: POST")
	public := g.ask("GET /v1/authz/birds HTTP/1.1" + proof + "|X-Original-Method: GET|X-Original-URI: /health")
	envoy := g.ask("OPTIONS /v1/authz/birds/v1/birds HTTP/1.1" + proof + "|Origin: https://page.example|Access-Control-Request-Method: POST")
	for name, w := range map[string]*httptest.ResponseRecorder{"preflight": preflight, "public": public, "preflight of Envoy": envoy} {
		if w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("X-Key-Id") != "-" || w.Header().Get("X-Key-Owner") != "-" || w.Header().Get("X-Decision-Id") == "" {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
	}
	if w := g.ask("GET /v1/authz/birds HTTP/1.1" + proof + "|X-Original-Method: OPTIONS|X-Original-URI: /v1/birds|Origin: https://page.example"); w.Code != 401 {
		t.Errorf("an OPTIONS that is no preflight: %d", w.Code)
	}
	if w := g.ask("GET /v1/authz/birds HTTP/1.1" + proof + "|X-Original-Method: GET|X-Original-URI: /health|Authorization: Bearer nonsense"); w.Code != 401 {
		t.Errorf("a wrong credential on a public route: %d", w.Code)
	}
}

// A key that may be used from some addresses only is refused where the proxy does
// not say where the request came from, and TLS is what it says.
func TestClient(t *testing.T) {
	before, err := inbound.ParseProxies([]string{"10.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	g := newRig(t, authz.Options{Before: before})
	g.World.Key("birds", "org_1", "bd_live_bound", events.KeyCreated{Name: "b", Environment: "live", Scopes: []string{"birds:read"}, AllowedIPs: []string{"203.0.113.0/24"}})
	g.Configure(strings.NewReplacer(`"birds"`, `"secure"`, `"scheme": "Bearer"`, `"scheme": "Bearer", "require_tls": true`).Replace(verifytest.Birds))
	g.World.Key("secure", "org_1", "bd_live_secure", events.KeyCreated{Name: "s", Environment: "live", Scopes: []string{"birds:read"}})
	for _, c := range []struct {
		keyspace, lines string
		status          int
	}{
		{"birds", "|Authorization: Bearer bd_live_bound|X-Forwarded-For: 203.0.113.9", 200},
		{"birds", "|Authorization: Bearer bd_live_bound|X-Forwarded-For: 203.0.113.9, 10.0.0.7", 200},
		{"birds", "|Authorization: Bearer bd_live_bound|X-Forwarded-For: 203.0.113.9, 198.51.100.1", 401},
		{"birds", "|Authorization: Bearer bd_live_bound", 401},
		{"birds", "|Authorization: Bearer bd_live_bound|X-Authz-Client-IP: 203.0.113.9", 401}, // by the client
		{"birds", "|Authorization: Bearer bd_live_bound|X-Forwarded-For: unknown", 401},
		{"secure", "|Authorization: Bearer bd_live_secure|X-Forwarded-Proto: https", 200},
		{"secure", "|Authorization: Bearer bd_live_secure|X-Forwarded-Proto: https, http", 401},
		{"secure", "|Authorization: Bearer bd_live_secure", 401},
	} {
		if w := g.ask("GET /v1/authz/" + c.keyspace + " HTTP/1.1" + proof + "|X-Original-Method: GET|X-Original-URI: /v1/birds" + c.lines); w.Code != c.status {
			t.Errorf("%s: %d %s", c.lines, w.Code, w.Body)
		}
	}
	for query, want := range map[string]int{"environments=live,test": 200, "environments=test": 401, "for=caddy&environments=test": 401} {
		if w := g.ask("GET /v1/authz/birds?" + query + " HTTP/1.1" + proof + bearer + "|X-Forwarded-Method: GET|X-Forwarded-Uri: /v1/birds"); w.Code != want {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
}

// With strict audit, a use that cannot be made durable is not admitted.
func TestDurable(t *testing.T) {
	g := newRig(t, authz.Options{Durable: true, DurableTime: 100 * time.Millisecond})
	const asked = "GET /v1/authz/birds HTTP/1.1" + proof + bearer + "|X-Original-Method: GET|X-Original-URI: /v1/birds"
	if w := g.ask(asked); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	n := 0
	for _, err := range g.Ledger.Read(t.Context(), events.Usage, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d uses are on disk when the answer is", n)
	}
	g.NATS.Shutdown()
	if w := g.ask(asked); w.Code != 503 || !strings.Contains(w.Body.String(), "AUDIT_UNAVAILABLE") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Over a socket that only the proxy can open no token is needed, and the outcome of
// a use may be reported by the decision that was answered.
func TestSocket(t *testing.T) {
	g := newRig(t, authz.Options{})
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: g.handler.Proven()}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}}}
	t.Cleanup(client.CloseIdleConnections)
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://keyledger/v1/authz/birds", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Authorization": {"Bearer " + secret}, "X-Original-Method": {"GET"}, "X-Original-Uri": {"/v1/birds"}, "X-Authz-Token": {"nonsense"}}
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 || res.ContentLength != 0 {
		t.Fatalf("%d, %d bytes", res.StatusCode, res.ContentLength)
	}
	g.Recorded()
	if err := g.Verifier.Report(t.Context(), []verify.UseReport{{DecisionID: res.Header.Get("X-Decision-Id"), Status: 201}}, "api"); err != nil {
		t.Fatal(err)
	}
	if reports := verifytest.RecordedAs[events.KeyUseReported](g.World); len(reports) != 1 || reports[0].Status != 201 {
		t.Errorf("%+v", reports)
	}
}

// No input makes the reading of questions or answers fail.
func FuzzAsked(f *testing.F) {
	f.Add("/v1/authz/birds?for=nginx", "GET", "/v1/birds?x", "NDAz")
	f.Add("/v1/authz/birds/v1/../x", "", "/#", "")
	f.Add("/v1/authz-answers/dec_x", "PATCH", "//", "MTAxCgpY")
	v := verify.New(keyring.New(), nil, verify.Options{})
	f.Cleanup(v.Close)
	z := authz.New(v, authz.Options{}).Proven()
	f.Fuzz(func(t *testing.T, target, method, uri, answer string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RequestURI = target
		r.Header = http.Header{"X-Original-Method": {method}, "X-Original-Uri": {uri}, "X-Decision-Answer": {answer}}
		w := httptest.NewRecorder()
		z.ServeHTTP(w, r)
		if w.Code == 200 && !strings.Contains(target, "authz-answers") {
			t.Errorf("%q %q %q is admitted, and there is no keyspace", target, method, uri)
		}
	})
}
