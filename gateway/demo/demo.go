// Package demo is an upstream for trying things out: it answers 200 to anything
// and echoes the request as it arrived, so that one sees what a gateway made of it.
package demo

import (
	"encoding/json"
	"io"
	"net/http"
)

// MaxBody is how much of a body is echoed, in bytes.
const MaxBody = 64 << 10

// Echo is the answer.
type Echo struct {
	Method        string              `json:"method"`
	Path          string              `json:"path"` // escaped, as it arrived
	Query         string              `json:"query"`
	Host          string              `json:"host"`
	Headers       map[string][]string `json:"headers"`
	Body          string              `json:"body"`
	BodyBytes     int64               `json:"body_bytes"` // of all of it
	BodyTruncated bool                `json:"body_truncated,omitempty"`
}

// Handler is the upstream.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody))
		rest := int64(0)
		if err == nil {
			rest, _ = io.Copy(io.Discard, r.Body)
		}
		if origin := r.Header.Get("Origin"); origin != "" { // a page may try it too
			h := w.Header()
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Vary", "Origin")
			h.Set("Access-Control-Expose-Headers", "*")
			if method := r.Header.Get("Access-Control-Request-Method"); method != "" {
				h.Set("Access-Control-Allow-Methods", method)
				h.Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
			}
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		_ = enc.Encode(Echo{ // whoever asked has left
			Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Host: r.Host, Headers: r.Header,
			Body: string(body), BodyBytes: int64(len(body)) + rest, BodyTruncated: rest > 0,
		})
	})
}
