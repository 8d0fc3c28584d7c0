package authz

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/keyledger/keyledger/verify/inbound"
)

// asked is the request that a proxy asks about.
type asked struct {
	keyspace     string
	method       string
	path         string   // as on the request line, without its query
	environments []string // of keys that are admitted; empty: all
	nginx        bool     // which knows no statuses but 2xx, 401 and 403
	envoy        bool     // which sends no header of its client's that it was not told to
}

// target is the path and the query of r as they are on its request line: of Envoy,
// the client's path is a part of it, and must not be read twice.
func target(r *http.Request) (path, query string) {
	t := r.RequestURI
	if !strings.HasPrefix(t, "/") { // the absolute form
		t = r.URL.RequestURI()
	}
	path, query, _ = strings.Cut(t, "?")
	return path, query
}

// read finds the request that is asked about. asked.nginx is known also where a
// fault is answered.
//
// Proxies pass on the headers of their client, so the two families of headers are
// never mixed: which of them the proxy wrote is told by ?for=, or there is only
// one, or both say the same.
func read(r *http.Request, path, query string) (asked, *fault) {
	rest, ok := strings.CutPrefix(path, Path)
	if !ok {
		return asked{}, &fault{http.StatusNotFound, "NOT_FOUND", "Forward-auth is asked at " + Path + "{keyspace}."}
	}
	keyspace, below, hasBelow := strings.Cut(rest, "/")
	a := asked{keyspace: keyspace}
	h := r.Header
	original := len(h["X-Original-Method"])+len(h["X-Original-Uri"]) > 0
	forwarded := len(h["X-Forwarded-Method"])+len(h["X-Forwarded-Uri"]) > 0
	if hasBelow {
		// Envoy: path_prefix stands before the request's own path, and the query
		// is the request's too.
		if original || forwarded {
			return a, ambiguous
		}
		a.envoy = true
		return a, a.set(r.Method, "/"+below)
	}
	proxy, f := a.options(query)
	if f != nil {
		return a, f
	}
	switch proxy {
	case "nginx":
		a.nginx = true
		return a, a.from(h, "X-Original-Method", "X-Original-Uri")
	case "traefik", "caddy":
		return a, a.from(h, "X-Forwarded-Method", "X-Forwarded-Uri")
	}
	switch {
	case original && forwarded:
		if !slices.Equal(h["X-Original-Method"], h["X-Forwarded-Method"]) || !slices.Equal(h["X-Original-Uri"], h["X-Forwarded-Uri"]) {
			return a, ambiguous
		}
		return a, a.from(h, "X-Original-Method", "X-Original-Uri")
	case original:
		return a, a.from(h, "X-Original-Method", "X-Original-Uri")
	}
	return a, a.from(h, "X-Forwarded-Method", "X-Forwarded-Uri")
}

// options reads the query of forward-auth's own path.
func (a *asked) options(query string) (proxy string, _ *fault) {
	switch query { // those that are asked thousands of times in a second
	case "":
		return "", nil
	case "for=nginx":
		return "nginx", nil
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", unreadableQuery
	}
	proxy = values.Get("for")
	a.nginx = proxy == "nginx"
	for name, v := range values {
		switch {
		case len(v) != 1:
			return proxy, unreadableQuery
		case name == "for":
			if proxy != "nginx" && proxy != "traefik" && proxy != "caddy" {
				return proxy, unreadableQuery
			}
		case name == "environments":
			a.environments = strings.Split(v[0], ",")
		default:
			return proxy, unreadableQuery
		}
	}
	return proxy, nil
}

// from takes the request from two headers of the proxy.
func (a *asked) from(h http.Header, method, uri string) *fault {
	m, u := h[method], h[uri]
	if len(m) == 0 || len(u) == 0 || m[0] == "" || u[0] == "" {
		return &fault{http.StatusBadRequest, "INCOMPLETE_FORWARDED_REQUEST", "The proxy does not say which request it asks about. nginx must send X-Original-Method and X-Original-URI; Traefik and Caddy send X-Forwarded-Method and X-Forwarded-Uri; of Envoy, the path stands after " + Path + "{keyspace}."}
	}
	if len(m) > 1 || len(u) > 1 {
		return ambiguous
	}
	return a.set(m[0], u[0])
}

// set takes a method and a URI in origin form (RFC 9112 section 3.2.1), strictly:
// what servers read differently is no request to judge.
func (a *asked) set(method, uri string) *fault {
	for i := range len(method) {
		if !isToken(method[i]) {
			return &fault{http.StatusBadRequest, "BAD_METHOD", "The method that the proxy forwards is none."}
		}
	}
	path, _, _ := strings.Cut(uri, "?")
	if !strings.HasPrefix(path, "/") {
		return &fault{http.StatusBadRequest, "BAD_PATH", "The URI that the proxy forwards must be a path and a query, as on the request line."}
	}
	for i := range len(uri) {
		// Some servers end a path at a # that others keep; no client sends one.
		if c := uri[i]; c <= ' ' || c == 0x7f || c == '#' {
			return &fault{http.StatusBadRequest, "BAD_PATH", "The path has a character that no path has."}
		}
	}
	if inbound.Climbs(path) {
		return &fault{http.StatusBadRequest, "BAD_PATH", "The path leads above its root."}
	}
	a.method, a.path = method, path
	return nil
}

// isToken says whether a character may stand in a method or a header's name
// (RFC 9110 section 5.6.2).
func isToken(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || strings.IndexByte("!#$%&'*+-.^_`|~0123456789", c) >= 0
}

var ambiguous = &fault{http.StatusBadRequest, "AMBIGUOUS_FORWARDED_REQUEST", "Headers say in two ways which request is asked about, and a client may have sent one of them. Say which proxy asks with ?for=nginx, traefik or caddy; for Envoy, let neither X-Original-* nor X-Forwarded-Method and -Uri through."}

var unreadableQuery = &fault{http.StatusBadRequest, "BAD_QUERY", "Forward-auth takes ?for=nginx, traefik or caddy, and environments=, a list with commas, each at most once."}

// client is where the request came from. Envoy appends its own address to
// X-Forwarded-For when it asks (async_client_impl.cc, send_xff), so that what it
// was told to put into X-Authz-Client-IP counts before that. Of all others, the
// client may have sent that header.
func (a *asked) client(r *http.Request, before inbound.Proxies) inbound.Client {
	c := before.Behind(r)
	if own := r.Header["X-Authz-Client-Ip"]; a.envoy && len(own) == 1 {
		c.IP = ""
		if ip, err := netip.ParseAddr(own[0]); err == nil {
			c.IP = ip.Unmap().WithZone("").String()
		}
	}
	if c.IP == "" {
		c.IP = unknownIP
	}
	return c
}
