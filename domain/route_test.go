package domain

import (
	"slices"
	"strings"
	"testing"
)

func TestRouteMatches(t *testing.T) {
	for _, test := range []struct {
		route, method, path string
		want                bool
	}{
		{"GET /v1/parcels", "GET", "/v1/parcels", true},
		{"GET /v1/parcels", "GET", "/v1/parcels/", true},
		{"GET /v1/parcels/", "GET", "/v1/parcels", true},
		{"GET /v1/parcels", "GET", "/v1/parcels?x=/v1/other", true},
		{"GET /v1/parcels", "GET", "/v1/parcels/1", false},
		{"GET /v1/parcels", "GET", "/v1", false},
		{"GET /v1/parcels", "GET", "/V1/parcels", false},
		{"GET /v1/parcels", "POST", "/v1/parcels", false},
		{"GET /v1/parcels", "HEAD", "/v1/parcels", true},
		{"GET /v1/parcels", "get", "/v1/parcels", true},
		{"POST /v1/parcels", "HEAD", "/v1/parcels", false},
		{"GET,POST /v1/parcels", "POST", "/v1/parcels", true},
		{"* /v1/parcels", "BREW", "/v1/parcels", true},
		{"GET /v1/parcels/**", "GET", "/v1/parcels", true},
		{"GET /v1/parcels/**", "GET", "/v1/parcels/", true},
		{"GET /v1/parcels/**", "GET", "/v1/parcels/1/2/3", true},
		{"GET /v1/parcels/**", "GET", "/v1/parcelsx", false},
		{"GET /v1/*/parcels", "GET", "/v1/a/parcels", true},
		{"GET /v1/*/parcels", "GET", "/v1/a/b/parcels", false},
		{"GET /v1/*/parcels", "GET", "/v1/parcels", false},
		{"GET /*", "GET", "/", false},
		{"GET /*", "GET", "/a", true},
		{"GET /", "GET", "/", true},
		{"GET /", "GET", "", true},
		{"GET /", "GET", "/a", false},
		{"* /**", "GET", "/", true},
		{"* /**", "OPTIONS", "*", true},
		{"GET /v1/parcels", "GET", "http://example.com/v1/parcels", true},
		{"GET /.well-known/keys", "GET", "/.well-known/keys", true},
		{"POST /v1/parcels/1:cancel", "POST", "/v1/parcels/1:cancel", true},
	} {
		r, err := parseRoute(test.route)
		if err != nil {
			t.Fatal(err)
		}
		if at := readPath(test.path); at.len() != 1 || r.matches(test.method, at.first) != test.want {
			t.Errorf("%s for %s %s: want %v, with %d readings", test.route, test.method, test.path, test.want, at.len())
		}
	}
}

func TestRoutesRefused(t *testing.T) {
	for _, s := range []string{
		"", "GET", "GET/", "/v1", "GET  /v1", "GET v1", "get /v1", "GET, POST /v1", "GET,GET /v1", "GET,* /v1", ",GET /v1",
		"GET /v1//a", "GET /v1/../a", "GET /v1/./a", "GET /v1/**/a", "GET /v1/a*", "GET /v1/a%20b", "GET /v1?a", "GET /v1#a",
		"GET /v1/{id}", "GET /v1;a", `GET /v1\a`, "GET /v1 ", "GET //", "GET /ä",
	} {
		if _, err := parseRoute(s); err == nil {
			t.Errorf("%q is accepted as a route", s)
		}
	}
}

// spellings are ways to write /v1/parcels/7 that some server reads so.
var spellings = []string{
	"/v1/parcels/7/", "//v1/parcels/7", "/v1//parcels/7", "/v1/parcels//7//", "/./v1/parcels/7", "/v1/./parcels/7", "/v1/x/../parcels/7",
	"/x/../v1/parcels/7", "/../v1/parcels/7", "/v1/parcels/7/.", "/v1/parcels/7/x/..", "/%76%31/parcels/7", "/v1/%70arcels/7", "/v1%2fparcels%2F7",
	"/v1%2Fparcels/7", "/v1/x/%2e%2e/parcels/7", "/v1/x/.%2E/parcels/7", "/v1/x%2f..%2fparcels/7", "/v1%252fparcels/7", "/v1/%2570arcels/7",
	`/v1\parcels\7`, "/v1%5cparcels/7", `/v1/x\..\parcels/7`, "/v1;a=b/parcels/7", "/v1/;/parcels/7", "/v1/parcels;jsessionid=1/7", "/v1/x/..;/parcels/7",
	"v1/parcels/7", "http://host/v1/parcels/7", "/v1/parcels/7?a=../../x", "/v1/parcels/7#x", "/v1/x/%252e%252e/parcels/7", "/v1/parcels%2f7;x",
}

// No spelling of a path gets past the scope that its plain spelling needs, and
// none makes a path public that is not.
func TestSpellings(t *testing.T) {
	k := Compile(&Document{
		Scopes:       map[string]ScopeRules{"parcels:read": {Routes: []string{"GET /v1/parcels/**"}}},
		PublicRoutes: []PublicRoute{{Route: "GET /health/**"}},
	}, 1)
	for _, path := range spellings {
		if got := k.ScopesFor("GET", path); !slices.Equal(got, []string{"parcels:read"}) {
			t.Errorf("%s needs %v", path, got)
		}
	}
	for _, path := range []string{"/health/../v1/parcels/7", "/health/%2e%2e/v1/parcels/7", "/health/..%2fv1/parcels/7", `/health/..\v1/parcels/7`, "/health/..;/v1/parcels/7", "/v1/parcels/../../health", "/health/%252e%252e/v1/parcels/7"} {
		if k.PublicRoute("GET", path) != nil {
			t.Errorf("%s is public", path)
		}
		if got := k.ScopesFor("GET", path); !slices.Equal(got, []string{"parcels:read"}) {
			t.Errorf("%s needs %v", path, got)
		}
	}
	for _, path := range []string{"/health", "/health/", "/health/a%20b", "/health/."} {
		if k.PublicRoute("GET", path) == nil {
			t.Errorf("%s is not public", path)
		}
	}
}

// A path that is too long to look into needs every scope, is not public and
// names nothing; a plain one of any length is read as ever.
func TestUnclearPath(t *testing.T) {
	s := newScene(t)
	long := strings.Repeat("/x/..", maxUnclear)
	if got := s.k.ScopesFor("GET", "/v1"+long); !slices.Equal(got, []string{"admin", "read", "write"}) {
		t.Errorf("needs %v", got)
	}
	if s.k.PublicRoute("GET", "/health"+long) != nil {
		t.Error("is public")
	}
	if got, ok := s.k.ResourceIn("/v1/orgs/acme/depots/d1" + long); ok {
		t.Errorf("names %s", got)
	}
	s.req.Path = "/v1/orgs/acme/depots/d1" + long
	if code := s.judge(); code != CodeWrongOwner {
		t.Errorf("with an owner's path: %s", code)
	}
	s.k.ownerPath = nil
	if code := s.judge(); code != CodeWrongResource {
		t.Errorf("with a resource's path: %s", code)
	}
	s.k.resourcePath = nil
	if code := s.judge(); code != CodeInsufficientScope {
		t.Errorf("with scopes: %s", code)
	}
	s.key.Scopes = []string{"read", "write", "admin"}
	if code := s.judge(); code != CodeValid {
		t.Errorf("with every scope: %s", code)
	}
	s = newScene(t)
	s.req.Path = "/v1/orgs/acme/depots/d1/parcels" + strings.Repeat("/x", maxUnclear)
	if code := s.judge(); code != CodeValid {
		t.Errorf("a long plain path: %s", code)
	}
}

// A path names a resource only where every server would find the same one.
func TestResourceIn(t *testing.T) {
	k := Compile(&Document{
		Owner:    OwnerRules{Path: "/v1/orgs/{owner}/**"},
		Resource: ResourceRules{Mode: "optional", Path: "/v1/depots/{resource}/**"},
	}, 1)
	for path, want := range map[string]string{
		"/v1/depots/d1": "d1", "/v1/depots/d1/": "d1", "/v1/depots/d1/a/b": "d1", "/v1/depots/d1/a%20b": "d1", "/v1/depots/d1/a;b": "d1",
		"/v1/depots": "", "/v1/depots/": "", "/v1/depot/d1": "", "/v1/depots/d1/../d2": "", "/v1/depots/d1%2f..%2fd2": "", "/v1/depots//d1": "", "/v1/depots/%641": "",
	} {
		if got, ok := k.ResourceIn(path); got != want || ok != (want != "") {
			t.Errorf("%s names %q, %v; want %q", path, got, ok, want)
		}
	}
	if got, ok := k.OwnerIn("/v1/orgs/acme/parcels"); got != "acme" || !ok {
		t.Errorf("the owner is %q", got)
	}
}
