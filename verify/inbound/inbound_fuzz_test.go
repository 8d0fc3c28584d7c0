package inbound

import (
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// unescaped decodes what is well escaped and leaves the rest, as lenient servers do.
func unescaped(s string) string {
	const digits = "0123456789abcdef"
	out := ""
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			hi, lo := strings.IndexByte(digits, s[i+1]|0x20), strings.IndexByte(digits, s[i+2]|0x20)
			if hi >= 0 && lo >= 0 && s[i+1] > ' ' && s[i+2] > ' ' {
				out += string([]byte{byte(hi<<4 | lo)})
				i += 2
				continue
			}
		}
		out += s[i : i+1]
	}
	return out
}

// A path that some server reads as one above its root is found out, whether that
// server decodes it once or twice, and knows backslashes and path parameters or not.
func FuzzClimbs(f *testing.F) {
	for _, s := range []string{
		"/", "/a/../b", "/a/../../b", "/..", "/%2e%2e/a", "/%2E./a", "/%252e%252e/a", "/a%2f..%2f..%2fb", `/..\a`, "/..%5ca", "/..;x/a", "/a/..;/..;/b", "//..", "/./..", "/;x/..", "/%3bx/..", "/%+1/..", "/%2/..",
		"/%2e%2e/%zz", "/%252e%252e/%25zz", "/%25%32%65%25%32%65/a", "/a%00/../..", "/\u2025/a", "/..%c0%af", "/..\x00/..", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if strings.Count(path, "%") > 200 {
			return
		}
		climbs := func(path string) bool {
			depth := 0
			for _, segment := range strings.Split(path, "/") {
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
		parameters := func(s string) string {
			segments := strings.Split(s, "/")
			for i := range segments {
				segments[i], _, _ = strings.Cut(segments[i], ";")
			}
			return strings.Join(segments, "/")
		}
		backslashes := func(s string) string { return strings.ReplaceAll(s, `\`, "/") }
		for _, reading := range []string{path, unescaped(path), unescaped(unescaped(path))} {
			for _, s := range []string{reading, backslashes(reading), parameters(reading), parameters(backslashes(reading))} {
				if climbs(s) && !Climbs(path) {
					t.Fatalf("%q may be read as %q, which is above the root", path, s)
				}
			}
		}
	})
}

// What stands left of the address that a trusted proxy wrote changes nothing, and
// who is no trusted proxy is the client whatever it says.
func FuzzClient(f *testing.F) {
	for _, s := range []string{
		"", ",", "1.1.1.1", "10.0.0.1", "1.1.1.1, 10.0.0.1", "unknown", "[::1]:80", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.1:99999", "for=1.1.1.1", "\x00", "\u0661.1.1.1", "01.1.1.1", "127.1",
		strings.Repeat("10.0.0.1,", 1000),
	} {
		f.Add(s, "https", "203.0.113.9:4711")
		f.Add(s, s, "10.0.0.1:1")
	}
	trusted, err := ParseProxies([]string{"10.0.0.0/8", "2001:db8:1::/48"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, written, proto, peer string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["X-Forwarded-For"], r.Header["X-Forwarded-Proto"] = []string{written}, []string{proto}
		r.RemoteAddr = peer
		got := trusted.Client(r)
		from, err := netip.ParseAddrPort(peer)
		if believed := err == nil && trusted.has(from.Addr().Unmap().WithZone("")); err == nil && !believed && (got.IP != from.Addr().Unmap().WithZone("").String() || got.TLS) {
			t.Fatalf("%s says of itself that it is %+v", peer, got)
		} else if believed && got.TLS && strings.Trim(strings.ToLower(strings.ReplaceAll(proto, ",", " ")), " \t\r\n\v\fhtps\u0085\u00a0") != "" {
			t.Fatalf("%q is taken for https", proto)
		}
		if got.IP != "" {
			if a, err := netip.ParseAddr(got.IP); err != nil || a.Zone() != "" || a.Is4In6() {
				t.Fatalf("the client is %q", got.IP)
			}
		}
		for _, header := range [][]string{{written, "203.0.113.9"}, {written + ", 203.0.113.9"}, {written + ",203.0.113.9, 10.1.1.1", "10.2.2.2"}} {
			r.Header["X-Forwarded-For"], r.RemoteAddr = header, "10.0.0.1:1"
			if got := trusted.Client(r); got.IP != "203.0.113.9" {
				t.Fatalf("%q is taken for %s", header, got.IP)
			}
		}
	})
}
