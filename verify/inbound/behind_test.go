package inbound

import (
	"net/http"
	"testing"
)

// A proven proxy's own entry counts, and nothing that stands left of it, unless it
// names a listed proxy.
func TestBehind(t *testing.T) {
	trusted, err := ParseProxies([]string{"10.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		forwarded []string
		proto     []string
		ip        string
		tls       bool
	}{
		{"one", []string{"203.0.113.9"}, []string{"https"}, "203.0.113.9", true},
		{"forged on the left", []string{"1.1.1.1, 203.0.113.9"}, []string{"http"}, "203.0.113.9", false},
		{"a listed proxy before", []string{"1.1.1.1, 203.0.113.9,10.0.0.4"}, nil, "203.0.113.9", false},
		{"several lines", []string{"1.1.1.1", "203.0.113.9", "10.0.0.4"}, nil, "203.0.113.9", false},
		{"ports", []string{"[2001:db8::7]:1234"}, []string{"HTTPS"}, "2001:db8::7", true},
		{"upgraded", []string{"203.0.113.9"}, []string{"wss"}, "203.0.113.9", true},
		{"nothing", nil, nil, "", false},
		{"nonsense", []string{"1.1.1.1, unknown"}, []string{"https, http"}, "", false},
		{"nonsense behind a listed proxy", []string{"unknown, 10.0.0.4"}, []string{""}, "10.0.0.4", false},
		{"empty", []string{""}, nil, "", false},
	} {
		r := &http.Request{Header: http.Header{"X-Forwarded-For": c.forwarded, "X-Forwarded-Proto": c.proto}, RemoteAddr: "192.0.2.1:1"}
		if got := trusted.Behind(r); got.IP != c.ip || got.TLS != c.tls {
			t.Errorf("%s: %q TLS %v, want %q TLS %v", c.name, got.IP, got.TLS, c.ip, c.tls)
		}
	}
}
