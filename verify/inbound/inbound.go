// Package inbound reads HTTP requests the way a verifier judges them, and writes
// the answers that are not an upstream's or a handler's. The gateway, forward-auth
// and the middleware for Go services share it, so that a request is decided and
// refused alike wherever it arrives.
//
// What it promises. Nothing that a client sends can say where the request came
// from, unless a listed proxy passed it on. A refusal is the keyspace's answer byte
// for byte, and a browser may read it.
//
// How it can disappoint. Who lists a network as trusted believes every program in
// it.
package inbound

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/verify"
)

// Request is what a keyspace judges of an HTTP request. path is the one to judge,
// as it is escaped on the request line.
func Request(r *http.Request, k *domain.Keyspace, c *Client, path string) domain.Request {
	return domain.Request{
		Keyspace:    k.Document.Keyspace,
		Credential:  r.Header.Values(k.Document.Credential.Header),
		Method:      r.Method,
		Path:        path,
		TLS:         &c.TLS,
		ContentType: new(r.Header.Get("Content-Type")),
		Origin:      new(strings.Join(r.Header.Values("Origin"), ", ")),
		IP:          c.IP,
	}
}

// IsPreflight says whether a browser asks if a page may send a request (Fetch
// standard, CORS-preflight request). It never carries a credential, so it is not
// judged.
func IsPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != ""
}

// Climbs says whether some server would read the path as one above its root,
// which is outside the prefix that was stripped or the base of the upstream.
func Climbs(path string) bool {
	if !strings.Contains(path, "..") && !strings.Contains(path, "%2e") && !strings.Contains(path, "%2E") && !strings.Contains(path, "%25") {
		return false
	}
	for range 3 {
		if above(path, "/") || above(path, `/\`) {
			return true
		}
		path = decode(path)
	}
	return false
}

// above says whether a path leads above its root where these separate segments.
// A path parameter counts as none: with it a path is never deeper.
func above(path, separators string) bool {
	depth := 0
	for _, segment := range strings.FieldsFunc(path, func(c rune) bool { return strings.ContainsRune(separators, c) }) {
		segment, _, _ = strings.Cut(segment, ";")
		switch segment {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// decode decodes what is well escaped and leaves the rest as it is: there are
// servers that do, so that one bad escape hides no other.
func decode(path string) string {
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			if c, err := strconv.ParseUint(path[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(c))
				i += 2
				continue
			}
		}
		b = append(b, path[i])
	}
	return string(b)
}

// Unescape decodes a path; one that cannot be is left as it is.
func Unescape(path string) string {
	if decoded, err := url.PathUnescape(path); err == nil {
		return decoded
	}
	return path
}

// TellRoom says on the answer to an admitted request how much room its limits
// leave, in place of what the upstream may have said of its own.
func TellRoom(h http.Header, d *verify.Decision) {
	var room [5]domain.Header
	for _, line := range d.RateHeaders(room[:0]) {
		if name := roomHeaders[line.Name]; name != "" {
			h[name] = []string{line.Value}
		} else {
			h.Set(line.Name, line.Value)
		}
	}
}

// roomHeaders are the names that [verify.Decision.RateHeaders] has, as net/http
// writes them, which takes it an allocation for each.
var roomHeaders = map[string]string{
	"X-RateLimit-Limit":     "X-Ratelimit-Limit",
	"X-RateLimit-Remaining": "X-Ratelimit-Remaining",
	"X-RateLimit-Reset":     "X-Ratelimit-Reset",
	"RateLimit-Policy":      "Ratelimit-Policy",
	"RateLimit":             "Ratelimit",
}

// restOfBody is how long a refusal waits for a body that nobody will read.
const restOfBody = 2 * time.Second

// Refuse sends a rendered refusal.
func Refuse(w http.ResponseWriter, r *http.Request, a domain.Rendered) {
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		// net/http reads what is left of a short body before it answers, for as long
		// as the client takes; anybody could hold a connection so, without a key.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(restOfBody))
	}
	h := w.Header()
	for _, line := range a.Headers {
		h.Add(line.Name, line.Value)
	}
	h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	AllowOrigin(h, r)
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body)
}

// Problem answers what no keyspace has an answer for (RFC 9457).
func Problem(w http.ResponseWriter, r *http.Request, requestID string, status int, code, detail string) {
	body, err := json.Marshal(map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail, "code": code, "request_id": requestID,
	})
	if err != nil {
		panic(err) // strings and a number
	}
	Refuse(w, r, domain.Rendered{Status: status, Headers: []domain.Header{{Name: "Content-Type", Value: "application/problem+json"}}, Body: body})
}

// AllowOrigin lets the page that asked read an answer that is not an upstream's,
// whatever the upstream would allow: it says no more than that this request was
// refused.
func AllowOrigin(h http.Header, r *http.Request) {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return
	}
	h.Add("Vary", "Origin")
	if h.Get("Access-Control-Allow-Origin") != "" {
		return
	}
	exposed := slices.DeleteFunc(slices.Sorted(maps.Keys(h)), func(name string) bool { return name == "Vary" })
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Allow-Credentials", "true")
	h.Set("Access-Control-Expose-Headers", strings.Join(exposed, ", "))
}
