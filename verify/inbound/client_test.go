package inbound

import (
	"net/http/httptest"
	"testing"
)

// X-Forwarded-For is read from the right and only as far as trusted proxies
// wrote it.
func TestClient(t *testing.T) {
	trusted, err := ParseProxies([]string{"10.0.0.0/8", "2001:db8:1::/48", "127.0.0.1", "::ffff:172.16.0.0/108"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, peer string
		forwarded  []string
		proto      []string
		ip         string
		tls        bool
	}{
		{"nobody is trusted by default", "203.0.113.9:1", []string{"1.1.1.1"}, []string{"https"}, "203.0.113.9", false},
		{"one proxy", "10.0.0.1:1", []string{"203.0.113.9"}, []string{"https"}, "203.0.113.9", true},
		{"forged on the left", "10.0.0.1:1", []string{"1.1.1.1, 203.0.113.9"}, nil, "203.0.113.9", false},
		{"two proxies", "10.0.0.1:1", []string{"1.1.1.1, 203.0.113.9, 10.9.9.9"}, nil, "203.0.113.9", false},
		{"several lines", "10.0.0.1:1", []string{"1.1.1.1", "203.0.113.9", "10.9.9.9"}, nil, "203.0.113.9", false},
		{"ports and brackets", "10.0.0.1:1", []string{"203.0.113.9:443, [2001:db8:1::7]:80"}, nil, "203.0.113.9", false},
		{"mapped", "[::ffff:10.0.0.1]:1", []string{"::ffff:203.0.113.9"}, nil, "203.0.113.9", false},
		{"zone", "[2001:db8:1::1%eth0]:1", []string{"203.0.113.9"}, nil, "203.0.113.9", false},
		{"only proxies", "127.0.0.1:1", []string{"10.1.1.1, 10.2.2.2"}, nil, "10.1.1.1", false},
		{"nonsense ends it", "10.0.0.1:1", []string{"1.1.1.1, unknown, 10.2.2.2"}, nil, "10.2.2.2", false},
		{"empty", "10.0.0.1:1", []string{""}, nil, "10.0.0.1", false},
		{"one hop without TLS", "10.0.0.1:1", nil, []string{"https, http"}, "10.0.0.1", false},
		{"a forged line", "10.0.0.1:1", nil, []string{"https", "http"}, "10.0.0.1", false},
		{"IPv6", "[2001:db8:1::1]:1", []string{"2001:db8:2::9, 2001:db8:1::2"}, []string{"https"}, "2001:db8:2::9", true},
		{"IPv6 with brackets and port", "[2001:db8:1::1]:1", []string{"1.1.1.1, [2001:DB8:2::9]:4711"}, nil, "2001:db8:2::9", false},
		{"IPv6 beside the network", "[2001:db8:2::1]:1", []string{"1.1.1.1"}, []string{"https"}, "2001:db8:2::1", false},
		{"a mapped network", "172.17.0.1:1", []string{"203.0.113.9"}, nil, "203.0.113.9", false},
		{"a zone from outside", "10.0.0.1:1", []string{"fe80::1%eth0"}, nil, "fe80::1", false},
		{"an octal address is none", "10.0.0.1:1", []string{"1.1.1.1, 010.1.1.1"}, nil, "10.0.0.1", false},
		{"a port without brackets", "10.0.0.1:1", []string{"1.1.1.1, 2001:db8:2::9:70000"}, nil, "10.0.0.1", false},
		{"an empty hop", "10.0.0.1:1", []string{"1.1.1.1, , 10.2.2.2"}, nil, "10.2.2.2", false},
		{"https by another name", "10.0.0.1:1", nil, []string{"HTTPS"}, "10.0.0.1", true},
		{"neither http nor https", "10.0.0.1:1", nil, []string{"wss"}, "10.0.0.1", false},
		{"an empty X-Forwarded-Proto", "10.0.0.1:1", nil, []string{""}, "10.0.0.1", false},
		{"a socket without address", "@", []string{"1.1.1.1"}, []string{"https"}, "", false},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		r.Header.Set("Forwarded", "for=6.6.6.6;proto=https") // believed from nobody
		r.Header["X-Forwarded-For"], r.Header["X-Forwarded-Proto"] = c.forwarded, c.proto
		if got := trusted.Client(r); got.IP != c.ip || got.TLS != c.tls {
			t.Errorf("%s: %q TLS %v, want %q TLS %v", c.name, got.IP, got.TLS, c.ip, c.tls)
		}
	}
}
