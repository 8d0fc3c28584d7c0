package inbound

import (
	"net/http"
	"strings"
)

// Behind is [Proxies.Client] where the program that asks has proven itself: what
// it forwards is believed, whatever address it asks from. Its nearest entry in
// X-Forwarded-For is the client, unless that is a listed proxy before it. IP is
// empty where the header names no address, and TLS is what X-Forwarded-Proto says:
// not told is not TLS.
func (t Proxies) Behind(r *http.Request) Client {
	var c Client
	lines := r.Header["X-Forwarded-Proto"]
	c.TLS = len(lines) > 0
	for _, line := range lines {
		for p := range strings.SplitSeq(line, ",") {
			p = strings.TrimSpace(p)
			c.TLS = c.TLS && (strings.EqualFold(p, "https") || strings.EqualFold(p, "wss"))
		}
	}
	lines = r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			var hop string
			at := strings.LastIndexByte(rest, ',')
			if more = at >= 0; more {
				rest, hop = rest[:at], rest[at+1:]
			} else {
				hop = rest
			}
			a := address(strings.TrimSpace(hop))
			if !a.IsValid() {
				return c
			}
			c.IP = a.String()
			if !t.has(a) {
				return c
			}
		}
	}
	return c
}
