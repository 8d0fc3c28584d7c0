package domain

import (
	"net/url"
	"slices"
	"strings"
	"testing"
)

// matchSlowly compares a pattern with one reading of a path segment by segment:
// what a pattern means, in the fewest words.
func matchSlowly(pattern, path, name string) (captured string, ok bool) {
	split := func(s string) []string {
		parts := strings.Split(s, "/")[1:]
		if parts[len(parts)-1] == "" { // a slash at the end
			parts = parts[:len(parts)-1]
		}
		return parts
	}
	want, have := split(pattern), split(path)
	for i, segment := range want {
		if segment == "**" {
			return captured, true
		}
		switch {
		case i >= len(have):
			return "", false
		case name != "" && segment == "{"+name+"}":
			captured = have[i]
		case segment != "*" && segment != have[i]:
			return "", false
		}
	}
	return captured, len(have) == len(want)
}

// Whatever a pattern and a path look like: a pattern that is taken matches what
// its segments say; reading a path ends; every reading is a path; and no spelling
// of a path needs less than the one that the standard library makes of it.
func FuzzRoute(f *testing.F) {
	patterns := []string{"/v1/parcels/**", "/a/*/b", "/", "/**", "/*", "/v1/*", "/v1/depots/{id}/**", "/{id}", "/a/{id}/b/", "/v1//a", "/v1/../a", "/v1/**/a", "/v1/a*", "/{id}/{id}", "/ä", "v1"}
	for i, path := range slices.Concat(spellings, badTexts) {
		f.Add(patterns[i%len(patterns)], "GET", path)
		f.Add(path, "POST", "/v1/parcels/"+path)
		f.Add("/v1/parcels/**", path, "/v1/parcels"+path)
		f.Add("/v1/depots/{id}/**", "HEAD", "/v1/depots/"+path+"/x")
	}
	for _, pattern := range patterns {
		for _, path := range []string{"/v1/parcels", "/v1/parcels/", "/v1/parcels//", "/a//b", "/a/x/b", "/", "//", "/v1/depots/d1/x", "http://h/v1/parcels", "*"} {
			f.Add(pattern, "GET", path)
		}
	}
	f.Add("/**", "HEAD", strings.Repeat("/..;%2f", 100))
	f.Add("/**", "GET", "/"+strings.Repeat("%2e%2e%2f", 2000))
	f.Fuzz(func(t *testing.T, text, method, path string) {
		at := readPath(path)
		if at.len() > 64 {
			t.Fatalf("%q has %d readings", path, at.len())
		}
		for i := range at.len() {
			if !strings.HasPrefix(at.at(i), "/") {
				t.Fatalf("%q is read as %q", path, at.at(i))
			}
		}
		if at.len() == 1 && !at.unclear {
			for _, change := range []func(string) string{unescape, backslashes, parameters, collapse, resolve} {
				if other := change(at.first); other != at.first {
					t.Fatalf("%q is read as %q alone, and some server reads %q", path, at.first, other)
				}
			}
		}
		k := Compile(&Document{Scopes: map[string]ScopeRules{
			"fuzzed": {Routes: []string{"GET " + text}}, "fixed": {Routes: []string{"GET /v1/parcels/**", "* /a/*/b"}}, "other": {Routes: []string{"POST,PUT /v1/*"}},
		}, PublicRoutes: []PublicRoute{{Route: "GET " + text}}, Resource: ResourceRules{Mode: "optional", Path: text}}, 1)
		needs := k.ScopesFor(method, path)
		r, err := parseRoute("GET " + text)
		get := strings.EqualFold(method, "GET") || strings.EqualFold(method, "HEAD")
		public := err == nil && get && !at.unclear && method != "" && path != ""
		matched := at.unclear
		for i := range at.len() {
			reading := at.at(i)
			if err == nil {
				_, want := matchSlowly(text, reading, "")
				if got := r.matches(method, reading); got != (want && get) {
					t.Fatalf("%q for %s %q: %v, want %v", text, method, reading, got, want && get)
				}
				public, matched = public && want, matched || want && get
			}
			if p, err := parsePattern(text, "id"); err == nil {
				captured, ok := p.match(reading)
				if want, wantOK := matchSlowly(text, reading, "id"); captured != want || ok != wantOK {
					t.Fatalf("%q takes %q from %q (%v), want %q (%v)", text, captured, reading, ok, want, wantOK)
				}
			}
		}
		if got := k.PublicRoute(method, path) != nil; got != public {
			t.Fatalf("%s %q is public: %v, want %v by %q", method, path, got, public, text)
		}
		if got := slices.Contains(needs, "fuzzed"); err == nil && got != matched {
			t.Fatalf("%s %q needs the scope: %v, want %v by %q", method, path, got, matched, text)
		} else if err != nil && !got {
			t.Fatalf("a route that cannot be read, %q, guards not every path: %q", text, path)
		}
		// What the standard library makes of the path is one of its readings.
		u, err := url.ParseRequestURI(path)
		if err != nil || u.Opaque != "" || u.Host != "" || !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "?#") {
			return
		}
		clean := u.JoinPath().Path
		for j := range k.scopes {
			if s := &k.scopes[j]; s.matches(method, clean) && !slices.Contains(needs, s.scope) {
				t.Fatalf("%s %q is served as %q and needs no %s", method, path, clean, s.scope)
			}
		}
	})
}
