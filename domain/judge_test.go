package domain

import (
	_ "embed"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
)

// example is the document that shows everything, with the places that tests
// need.
//
//go:embed testdata/contract.yaml
var example string

// strict is a product that checks everything there is to check.
const strict = `
keyspace: strict
credential: {require_tls: true, require_content_type: application/json}
format: {prefixes: {live: st_live_, test: st_test_}, default_environment: live, length: 32, checksum: crc32}
display: {first: 10}
owner: {kind: organization, path: "/v1/orgs/{owner}/**"}
resource: {kind: depot, mode: optional, path: "/v1/orgs/*/depots/{resource}/**"}
scopes:
  read: {routes: ["GET /v1/orgs/*/depots/*/parcels/**"]}
  write: {routes: ["POST,PUT,DELETE /v1/orgs/*/depots/*/parcels/**"]}
  admin: {routes: ["* /v1/orgs/*/depots/**"]}
plans:
  free: {access: false}
  basic: {scopes: [read], limits: {minute: 20}}
  large: {}
default_plan: large
limits: {count_by: owner}
allowed_origins: true
public_routes: [{route: "GET /health"}]
`

// scene is one request that is admitted until something in it is changed.
type scene struct {
	k      *Keyspace
	req    Request
	key    *Key
	owner  *Owner
	secret string
}

func newScene(t testing.TB) *scene {
	t.Helper()
	s := &scene{k: Compile(mustParse(t, strict), 1), owner: &Owner{Keyspace: "strict", ID: "acme", Plan: "large"}}
	s.secret = secretOf(t, s.k)
	s.key = &Key{
		ID: "key_1", Name: "CI", Hash: HashSecret(s.secret), Version: 1,
		Grant: &Grant{
			Keyspace: "strict", Owner: "acme", Environment: "live", Scopes: []string{"write"}, Resources: []string{"d1"},
			AllowedOrigins: []string{"https://app.example.com"}, AllowedIPs: []string{"203.0.113.0/24", "2001:db8::1"},
		},
		More: &More{},
	}
	s.req = Request{
		Keyspace: "strict", Credential: []string{"Bearer " + s.secret}, Method: "POST", Path: "/v1/orgs/acme/depots/d1/parcels",
		TLS: new(true), ContentType: new("application/json; charset=utf-8"), Origin: new("https://app.example.com"), IP: "203.0.113.7",
		Environments: []string{"live"},
	}
	return s
}

// secretOf makes a secret that is the same in every run.
func secretOf(t testing.TB, k *Keyspace) string {
	t.Helper()
	plain, _, err := k.NewSecret(strings.NewReader(strings.Repeat("any bytes will do for a test ", 10)), "live")
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func (s *scene) judge() Code { return s.k.Judge(s.req, s.key, s.owner, noon) }

// faults are what makes each code, in the order of section 3.
var faults = []struct {
	code  Code
	apply func(*scene)
}{
	{CodeInsecureTransport, func(s *scene) { s.req.TLS = new(false) }},
	{CodeWrongContentType, func(s *scene) { s.req.ContentType = new("text/plain") }},
	{CodeMissingCredential, func(s *scene) { s.req.Credential = nil }},
	{CodeMalformedCredential, func(s *scene) { s.req.Credential = []string{"Bearer  " + s.secret} }},
	{CodeMalformedKey, func(s *scene) { s.key, s.req.Credential = nil, []string{"Bearer " + s.secret + "x"} }},
	{CodeUnknownKey, func(s *scene) { s.key = nil }},
	{CodeRevoked, func(s *scene) { s.key.RevokedAt = events.At(noon) }},
	{CodeSuperseded, func(s *scene) {
		s.key.Earlier = []Earlier{{Hash: s.key.Hash, Until: events.At(noon)}}
		s.key.Hash = HashSecret("another")
	}},
	{CodeExpired, func(s *scene) { s.key.ExpiresAt = events.At(noon) }},
	{CodeWrongEnvironment, func(s *scene) { s.req.Environments = []string{"test"} }},
	{CodePlanDenied, func(s *scene) { s.key.Plan = "basic" }},
	{CodeWrongOwner, func(s *scene) { s.req.Path = strings.Replace(s.req.Path, "acme", "rival", 1) }},
	{CodeWrongResource, func(s *scene) { s.req.Path = strings.Replace(s.req.Path, "d1", "d2", 1) }},
	{CodeInsufficientScope, func(s *scene) { s.key.Scopes = []string{"read"} }},
	{CodeOriginDenied, func(s *scene) { s.req.Origin = new("https://evil.example") }},
	{CodeIPDenied, func(s *scene) { s.req.IP = "198.51.100.1" }},
}

// Of any two things that are wrong, the earlier in section 3 is the decision;
// alone, each is; with nothing wrong the request is admitted.
func TestJudgeOrder(t *testing.T) {
	if code := newScene(t).judge(); code != CodeValid {
		t.Fatalf("with nothing wrong: %s", code)
	}
	for i, earlier := range faults {
		for j, later := range faults[i:] {
			s := newScene(t)
			if j > 0 {
				later.apply(s)
			}
			if s.key == nil && earlier.code != CodeMalformedKey {
				// What is wrong with a key cannot be seen once there is none.
				s.key = newScene(t).key
				earlier.apply(s)
				if later.code == CodeMalformedKey || later.code == CodeUnknownKey {
					s.key = nil
				}
			} else {
				earlier.apply(s)
			}
			if got := s.judge(); got != earlier.code {
				t.Errorf("%s and %s: decided %s", earlier.code, later.code, got)
			}
		}
	}
	order := Codes()
	for i, f := range faults {
		if order[i] != f.code {
			t.Errorf("code %d is %s, want %s", i, order[i], f.code)
		}
	}
}

func TestJudge(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*scene)
		want   Code
	}{
		{"TLS that was not told is not checked", func(s *scene) { s.req.TLS = nil }, CodeValid},
		{"a content type that was not told is not checked", func(s *scene) { s.req.ContentType = nil }, CodeValid},
		{"no content type is another one", func(s *scene) { s.req.ContentType = new("") }, CodeWrongContentType},
		{"the content type in capitals", func(s *scene) { s.req.ContentType = new("Application/JSON") }, CodeValid},
		{"a type that only begins like it", func(s *scene) { s.req.ContentType = new("application/json-seq") }, CodeWrongContentType},
		{"a GET needs no content type", func(s *scene) {
			s.req.Method, s.req.ContentType, s.key.Scopes = "GET", new(""), []string{"read"}
		}, CodeValid},
		{"the secret instead of a header", func(s *scene) { s.req.Credential, s.req.Key = nil, s.secret }, CodeValid},
		{"a known key is never malformed", func(s *scene) {
			s.req.Key = "imported from elsewhere"
			s.key.Hash = HashSecret(s.req.Key)
		}, CodeValid},
		{"right checksum of an unknown key", func(s *scene) { s.key = nil }, CodeUnknownKey},
		{"a key of another keyspace", func(s *scene) { s.key.Keyspace = "keyledger" }, CodeUnknownKey},
		{"a secret of another key", func(s *scene) { s.req.Key = "st_live_other" }, CodeUnknownKey},
		{"a deleted key was revoked", func(s *scene) { s.key.DeletedAt = 1 }, CodeRevoked},
		{"the previous secret in its grace", func(s *scene) {
			s.key.Earlier = []Earlier{{Hash: s.key.Hash, Until: events.At(noon) + 1}}
			s.key.Hash = HashSecret("another")
		}, CodeValid},
		{"the last millisecond before expiry", func(s *scene) { s.key.ExpiresAt = events.At(noon) + 1 }, CodeValid},
		{"a gateway that names no environment", func(s *scene) { s.req.Environments = nil }, CodeValid},
		{"a plan without access", func(s *scene) { s.owner.Plan = "free" }, CodePlanDenied},
		{"a key's own plan counts instead of its owner's", func(s *scene) { s.owner.Plan, s.key.Plan = "free", "large" }, CodeValid},
		{"an owner without a plan is on the default one", func(s *scene) { s.owner.Plan = "" }, CodeValid},
		{"a plan that is nowhere grants nothing", func(s *scene) { s.owner.Plan = "gone" }, CodePlanDenied},
		{"a plan that supports the scope", func(s *scene) {
			s.key.Plan, s.req.Method, s.key.Scopes = "basic", "GET", []string{"read"}
		}, CodeValid},
		{"any one of several scopes", func(s *scene) { s.key.Scopes = []string{"admin"} }, CodeValid},
		{"a scope that the plan does not support, where it supports another that is needed", func(s *scene) {
			s.key.Plan, s.req.Method, s.key.Scopes = "basic", "GET", []string{"admin"}
		}, CodeInsufficientScope},
		{"a path that no route matches needs no scope", func(s *scene) {
			s.key.Scopes, s.key.Resources, s.req.Path = nil, nil, "/v1/open"
		}, CodeValid},
		{"scopes that the caller names are all needed", func(s *scene) { s.req.Scopes = []string{"write", "read"} }, CodeInsufficientScope},
		{"and the plan must support them", func(s *scene) {
			s.key.Plan, s.req.Path, s.req.Scopes = "basic", "", []string{"admin"}
		}, CodePlanDenied},
		{"a scope that nobody knows", func(s *scene) { s.req.Scopes = []string{"unknown"} }, CodeInsufficientScope},
		{"fixed scopes count, whatever the key has", func(s *scene) { s.k.FixedScopes, s.key.Scopes = []string{"write"}, nil }, CodeValid},
		{"a bound key outside the resource's path", func(s *scene) { s.req.Path = "/v1/orgs/acme" }, CodeWrongResource},
		{"an unbound key anywhere", func(s *scene) { s.key.Resources, s.req.Path = nil, "/v1/orgs/acme/depots/d9/parcels" }, CodeValid},
		{"an unbound key where binding is required", func(s *scene) { s.key.Resources, s.k.Resource.Mode = nil, "required" }, CodeWrongResource},
		{"the resource that the caller names", func(s *scene) { s.req.Resource = new("d2") }, CodeWrongResource},
		{"and the path too", func(s *scene) { s.req.Resource = new("d1") }, CodeValid},
		{"one of several resources", func(s *scene) { s.key.Resources = []string{"d0", "d1"} }, CodeValid},
		{"a path that some servers read as another resource", func(s *scene) { s.req.Path = "/v1/orgs/acme/depots/d1/..%2fd2/parcels" }, CodeWrongResource},
		{"a path that some servers read as another owner", func(s *scene) { s.req.Path = "/v1/orgs/acme/../rival/depots/d1/parcels" }, CodeWrongOwner},
		{"no path, no check of it", func(s *scene) { s.req.Path, s.key.Scopes = "", nil }, CodeValid},
		{"no origin where there is a list", func(s *scene) { s.req.Origin = new("") }, CodeOriginDenied},
		{"the origin null", func(s *scene) { s.req.Origin = new("null") }, CodeOriginDenied},
		{"an origin with a suffix", func(s *scene) { s.req.Origin = new("https://app.example.com.evil.example") }, CodeOriginDenied},
		{"an origin with a port", func(s *scene) { s.req.Origin = new("https://app.example.com:8443") }, CodeOriginDenied},
		{"an origin over http", func(s *scene) { s.req.Origin = new("http://app.example.com") }, CodeOriginDenied},
		{"an origin that was not told is not checked", func(s *scene) { s.req.Origin = nil }, CodeValid},
		{"no list is any origin", func(s *scene) { s.key.AllowedOrigins, s.req.Origin = nil, new("null") }, CodeValid},
		{"an address written as IPv6", func(s *scene) { s.req.IP = "::ffff:203.0.113.7" }, CodeValid},
		{"another one written so", func(s *scene) { s.req.IP = "::ffff:198.51.100.1" }, CodeIPDenied},
		{"an address in the list", func(s *scene) { s.req.IP = "2001:db8:0:0::1" }, CodeValid},
		{"with a zone", func(s *scene) { s.req.IP = "2001:db8::1%eth0" }, CodeIPDenied},
		{"with a port", func(s *scene) { s.req.IP = "203.0.113.7:80" }, CodeIPDenied},
		{"no address at all", func(s *scene) { s.req.IP = "unknown" }, CodeIPDenied},
		{"an address that was not told is not checked", func(s *scene) { s.req.IP = "" }, CodeValid},
		{"no list is any address", func(s *scene) { s.key.AllowedIPs, s.req.IP = nil, "unknown" }, CodeValid},
		{"a public route without a credential", func(s *scene) { s.req = Request{Method: "GET", Path: "/health", TLS: new(true)}; s.key = nil }, CodeValid},
		{"a public route without TLS", func(s *scene) { s.req = Request{Method: "GET", Path: "/health", TLS: new(false)} }, CodeInsecureTransport},
		{"a credential on a public route is judged", func(s *scene) {
			s.req.Method, s.req.Path, s.key.RevokedAt = "GET", "/health", 1
		}, CodeRevoked},
		{"an empty header on a public route is judged", func(s *scene) {
			s.req = Request{Method: "GET", Path: "/health", Credential: []string{""}}
		}, CodeMalformedCredential},
		{"a document that cannot be read admits nobody", func(s *scene) { s.k = Compile(&Document{Keyspace: "strict"}, 7) }, CodeStateTooStale},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t)
			test.change(s)
			if got := s.judge(); got != test.want {
				t.Errorf("decided %s, want %s", got, test.want)
			}
		})
	}
}

// What was not told is listed, where the keyspace would have checked it.
func TestSkipped(t *testing.T) {
	s := newScene(t)
	if got := s.req.Skipped(s.k); len(got) != 0 {
		t.Errorf("a request that tells everything skips %v", got)
	}
	if got, want := (&Request{Key: "x"}).Skipped(s.k), []string{"tls", "content_type", "owner", "resource", "scopes", "origin", "ip"}; !slices.Equal(got, want) {
		t.Errorf("a bare key skips %v, want %v", got, want)
	}
	if got, want := (&Request{Key: "x", Method: "GET", Scopes: []string{"read"}, Resource: new("d1"), IP: "1.2.3.4"}).Skipped(s.k), []string{"tls", "owner", "origin"}; !slices.Equal(got, want) {
		t.Errorf("skips %v, want %v", got, want)
	}
	if got, want := (&Request{}).Skipped(Compile(mustParse(t, small), 1)), []string{"ip"}; !slices.Equal(got, want) {
		t.Errorf("a small keyspace skips %v, want %v", got, want)
	}
}

func TestSecretState(t *testing.T) {
	now := events.At(noon)
	k := &Key{Hash: HashSecret("now"), More: &More{Earlier: []Earlier{{Hash: HashSecret("long ago"), Until: now - 1}, {Hash: HashSecret("before"), Until: now + 1}}}}
	for secret, want := range map[string][2]string{"now": {"current", ""}, "before": {"previous", ""}, "long ago": {"previous", "SUPERSEDED"}, "never": {"", "UNKNOWN_KEY"}} {
		if which, code := k.SecretState(HashSecret(secret), now); which != want[0] || string(code) != want[1] {
			t.Errorf("%s is %s, %s; want %v", secret, which, code, want)
		}
	}
	if which, code := k.SecretState(HashSecret("before"), now+1); which != "previous" || code != CodeSuperseded {
		t.Errorf("at the end of its grace: %s, %s", which, code)
	}
	if _, code := (&Key{}).SecretState(HashSecret("x"), now); code != CodeUnknownKey {
		t.Errorf("a key with one secret: %s", code)
	}
}

func TestStatus(t *testing.T) {
	now := events.At(noon)
	for want, k := range map[string]*Key{
		"active":  {ExpiresAt: now + 1},
		"expired": {ExpiresAt: now},
		"revoked": {ExpiresAt: now, More: &More{RevokedAt: now}},
	} {
		if got := k.Status(now); got != want {
			t.Errorf("status %s, want %s", got, want)
		}
	}
}

func TestLimitsFor(t *testing.T) {
	key := &Key{ID: "key_1", Grant: &Grant{Owner: "acme", Limits: events.Limits{"minute": 7}}}
	rich := &Key{ID: "key_2", Grant: &Grant{Owner: "acme", Plan: "large"}}
	owner := &Owner{ID: "acme", Plan: "basic"}
	base := small + "plans: {basic: {limits: {minute: 20}}, large: {limits: {day: 9}}}\ndefault_plan: basic\nlimits: "
	for _, test := range []struct {
		name, limits string
		key          *Key
		want         events.Limits
		pool         Pool
	}{
		{"from the key", "{from: key, default: {minute: 5}}", key, events.Limits{"minute": 7}, Pool{"small", "acme", "key_1"}},
		{"from a key without limits", "{from: key, default: {minute: 5}}", rich, nil, Pool{"small", "acme", "key_2"}},
		{"from the plan, each key for itself", "{from: plan}", key, events.Limits{"minute": 20}, Pool{"small", "acme", "key_1"}},
		{"from the plan, one pool", "{from: plan, count_by: owner}", key, events.Limits{"minute": 20}, Pool{"small", "acme", ""}},
		{"a key with its own plan has its own pool", "{from: plan, count_by: owner}", rich, events.Limits{"day": 9}, Pool{"small", "acme", "key_2"}},
		{"other traffic draws from the owner's pool", "{from: plan, count_by: owner}", nil, events.Limits{"minute": 20}, Pool{"small", "acme", ""}},
	} {
		limits, pool := Compile(mustParse(t, base+test.limits), 1).LimitsFor(test.key, owner)
		if pool != test.pool || len(limits) != len(test.want) || limits["minute"] != test.want["minute"] || limits["day"] != test.want["day"] {
			t.Errorf("%s: %v of %v, want %v of %v", test.name, limits, pool, test.want, test.pool)
		}
	}
}

// A document of the past that this program would refuse still refuses.
func TestCompileNeverOpens(t *testing.T) {
	d := mustParse(t, strict)
	d.Scopes["read"] = ScopeRules{Routes: []string{"GET broken"}}
	d.Owner.Path, d.Resource.Path = "broken", "broken"
	d.PublicRoutes = []PublicRoute{{Route: "broken"}}
	s := newScene(t)
	s.k = Compile(d, 1)
	if code := s.judge(); code != CodeWrongOwner {
		t.Errorf("a broken owner's path: %s", code)
	}
	d.Owner.Path = ""
	s.k = Compile(d, 1)
	if code := s.judge(); code != CodeWrongResource {
		t.Errorf("a broken resource's path: %s", code)
	}
	if got := s.k.ScopesFor("BREW", "/anything"); !slices.Equal(got, []string{"read"}) {
		t.Errorf("a broken route guards %v", got)
	}
	if s.k.PublicRoute("GET", "/health") != nil {
		t.Error("a broken route is public")
	}
}

// Judging reads memory only and makes no garbage.
func TestJudgeAllocates(t *testing.T) {
	s := newScene(t)
	now := events.At(noon)
	if n := testing.AllocsPerRun(100, func() {
		secret, _ := s.k.JudgeCredential(&s.req)
		if code := s.k.JudgeKey(&s.req, secret, s.key.Hash, s.key, s.owner, now); code != CodeValid {
			t.Error(code)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkJudge(b *testing.B) {
	s := newScene(b)
	now := events.At(noon)
	for b.Loop() {
		secret, _ := s.k.JudgeCredential(&s.req)
		s.k.JudgeKey(&s.req, secret, s.key.Hash, s.key, s.owner, now)
	}
}

func BenchmarkAnswer(b *testing.B) {
	k := Compile(mustParse(b, example), 1)
	ctx := AnswerContext{RequestID: "req_1", Time: events.At(time.Unix(1, 0)), RetryAfter: 45, Limits: events.Limits{"minute": 20, "day": 1000}}
	for b.Loop() {
		k.Answer(CodeRateLimited, ctx)
	}
}
