package webhooks

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/keyledger/keyledger/domain"
)

// Policy says which addresses facts may be sent to. The zero value allows https to
// public addresses and nothing else.
type Policy struct {
	AllowHTTP bool
	Networks  []netip.Prefix // that are allowed although they are not public
	Hosts     []string       // whose addresses are allowed whatever they are
}

// ParsePolicy reads what an operator allows: networks (10.1.0.0/16), addresses and
// names of hosts.
func ParsePolicy(allowHTTP bool, allowPrivate []string) (Policy, error) {
	p := Policy{AllowHTTP: allowHTTP}
	for _, s := range allowPrivate {
		if n, err := netip.ParsePrefix(s); err == nil {
			p.Networks = append(p.Networks, n.Masked())
		} else if a, err := netip.ParseAddr(s); err == nil {
			a = a.Unmap()
			p.Networks = append(p.Networks, netip.PrefixFrom(a, a.BitLen()))
		} else if s == "" || strings.ContainsAny(s, "/:@ *") {
			return p, fmt.Errorf("%q is no network, address or host: such as 10.1.0.0/16, 10.1.2.3 or hooks.internal.example", s)
		} else {
			p.Hosts = append(p.Hosts, strings.ToLower(strings.TrimSuffix(s, ".")))
		}
	}
	return p, nil
}

const maxURL = 2048

// Check says what is wrong with an address that facts are to be sent to; nil: nothing
// that can be seen without asking for the addresses of a name.
func (p Policy) Check(address string) *domain.Problem {
	bad := func(message, fix string) *domain.Problem {
		return &domain.Problem{Path: "url", Message: message, Fix: fix}
	}
	if len(address) > maxURL {
		return bad("is too long", fmt.Sprintf("at most %d characters", maxURL))
	}
	u, err := url.Parse(address)
	switch {
	case address == "":
		return bad("is missing", "where facts are sent to: https://…")
	case err != nil || u.Opaque != "" || u.Host == "" || strings.ContainsFunc(address, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }):
		return bad("is no address", "such as https://example.com/hooks, in ASCII")
	case u.User != nil:
		return bad("holds a user or password", "what is sent is signed: check the signature instead")
	case u.Fragment != "" || strings.HasSuffix(address, "#"):
		return bad("has a fragment, which is sent to nobody", "leave out # and what follows")
	case u.Scheme != "https" && !(u.Scheme == "http" && p.AllowHTTP):
		return bad("is not https", "https://…; the operator may allow http (webhooks.allow_http)")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return bad("has a port that there is not", "1 to 65535")
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return bad("has no port behind its colon", "leave out the colon")
	}
	host := u.Hostname()
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" || !p.Allows(host, a) {
			return bad("is no public address", "a public one; the operator may allow others (webhooks.allow_private)")
		}
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	last := name[strings.LastIndexByte(name, '.')+1:]
	if name == "" || last == "" || strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return bad("has a host that is neither a name nor an address as it is usually written", "such as example.com")
	}
	if (name == "localhost" || strings.HasSuffix(name, ".localhost")) && !p.allowsHost(name) && !p.allowsLoopback() {
		return bad("is this machine", "a public host; the operator may allow others (webhooks.allow_private)")
	}
	return nil
}

func (p Policy) allowsHost(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, h := range p.Hosts {
		if h == host {
			return true
		}
	}
	return false
}

func (p Policy) allowsLoopback() bool {
	for _, n := range p.Networks {
		if n.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1})) || n.Contains(netip.IPv6Loopback()) {
			return true
		}
	}
	return false
}

// Allows says whether facts may be sent to an address, which was found for a host.
func (p Policy) Allows(host string, a netip.Addr) bool {
	if p.allowsHost(host) {
		return true
	}
	a = a.Unmap().WithZone("")
	for _, n := range p.Networks {
		if n.Contains(a) {
			return true
		}
	}
	return public(a)
}

// notPublic are the networks of IPv4 that are not for everybody (the registry of
// special-purpose addresses, RFC 6890, as of 2025), with the address at which a cloud
// answers for its machines that is not in one of them.
var notPublic = networks(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
)

// Of IPv6 one network is public, less these: documentation, protocols, and those in
// which an address of IPv4 hides.
var (
	global      = netip.MustParsePrefix("2000::/3")
	notPublicV6 = networks("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)

func networks(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func public(a netip.Addr) bool {
	not := notPublic
	if a.Is6() {
		if !global.Contains(a) {
			return false
		}
		not = notPublicV6
	}
	for _, n := range not {
		if n.Contains(a) {
			return false
		}
	}
	return a.IsValid()
}
