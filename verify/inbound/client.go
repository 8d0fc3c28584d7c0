package inbound

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// Proxies are the networks whose forwarding headers are believed.
type Proxies []netip.Prefix

// ParseProxies reads addresses and networks, as in the setting trusted_proxies. It
// fails with every entry that is neither.
func ParseProxies(list []string) (Proxies, error) {
	var networks Proxies
	var problems []error
	for i, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			a = a.Unmap().WithZone("")
			networks = append(networks, netip.PrefixFrom(a, a.BitLen()))
		} else if p, err := netip.ParsePrefix(s); err == nil {
			if p.Addr().Is4In6() && p.Bits() >= 96 {
				p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
			}
			networks = append(networks, p.Masked())
		} else {
			problems = append(problems, fmt.Errorf("trusted_proxies[%d]: %q is neither an address nor a network: write 10.0.0.7 or 10.0.0.0/8", i, s))
		}
	}
	return networks, errors.Join(problems...)
}

func (t Proxies) has(a netip.Addr) bool {
	for _, n := range t {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// Client is where a request comes from.
type Client struct {
	IP    string // without port; empty where the connection has no address
	TLS   bool
	Chain string // X-Forwarded-For for an upstream
}

// Scheme is https or http.
func (c *Client) Scheme() string {
	if c.TLS {
		return "https"
	}
	return "http"
}

// Client finds the client behind trusted proxies: X-Forwarded-For is read from
// the right, where the nearest proxy wrote, and the first address that is not a
// trusted proxy's is the client. What stands left of it anybody may have written.
// An entry that is no address ends the reading at the proxy that passed it on.
//
// TLS counts when every value of X-Forwarded-Proto says https: a forged value
// can then take it away and never give it. No other header is believed, Forwarded
// (RFC 7239) neither: a proxy that does not know it passes on what the client wrote.
func (t Proxies) Client(r *http.Request) Client {
	c := Client{TLS: r.TLS != nil, Chain: "unknown"}
	peer := address(r.RemoteAddr)
	if !peer.IsValid() {
		return c
	}
	c.IP, c.Chain = peer.String(), peer.String()
	if !t.has(peer) {
		return c
	}
	if proto := r.Header.Values("X-Forwarded-Proto"); len(proto) > 0 {
		c.TLS = true
		for _, p := range strings.Split(strings.Join(proto, ","), ",") {
			c.TLS = c.TLS && strings.EqualFold(strings.TrimSpace(p), "https")
		}
	}
	forwarded := strings.Join(r.Header.Values("X-Forwarded-For"), ", ")
	if forwarded == "" {
		return c
	}
	c.Chain = forwarded + ", " + c.IP
	hops := strings.Split(forwarded, ",")
	for i := len(hops) - 1; i >= 0; i-- {
		a := address(strings.TrimSpace(hops[i]))
		if !a.IsValid() {
			return c
		}
		c.IP = a.String()
		if !t.has(a) {
			return c
		}
	}
	return c
}

// address reads an IP address with or without port or brackets; zones are
// dropped, an IPv4 address written as IPv6 is IPv4.
func address(s string) netip.Addr {
	if p, err := netip.ParseAddrPort(s); err == nil {
		return p.Addr().Unmap().WithZone("")
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}
