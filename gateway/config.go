package gateway

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway/upstream"
	"github.com/keyledger/keyledger/verify/inbound"
)

// Config is a gateway's file, in YAML or JSON. Only routes are needed.
type Config struct {
	// Routes say which keyspace guards which requests, and where they go. A route
	// with a host counts before one without, a longer path_prefix before a
	// shorter; their order does not matter.
	Routes []Route `yaml:"routes" json:"routes" koanf:"routes"`

	// TrustedProxies are addresses and networks (10.0.0.0/8) whose
	// X-Forwarded-For and X-Forwarded-Proto are believed. Default: nobody's.
	TrustedProxies []string `yaml:"trusted_proxies,omitempty" json:"trusted_proxies,omitempty" koanf:"trusted_proxies"`

	// Audit is async (default): a use is recorded within milliseconds of the
	// answer; or strict: it is durable before the upstream is called, and where
	// that fails the request is refused with AUDIT_UNAVAILABLE.
	Audit string `yaml:"audit,omitempty" json:"audit,omitempty" koanf:"audit"`

	// AuditTimeout is how long strict waits for that. Default 2s.
	AuditTimeout time.Duration `yaml:"audit_timeout,omitempty" json:"audit_timeout,omitzero" koanf:"audit_timeout"`

	// UpstreamTimeout is how long an upstream may take until its response
	// header; later it is 504. Bodies may take as long as they like. Default 60s.
	UpstreamTimeout time.Duration `yaml:"upstream_timeout,omitempty" json:"upstream_timeout,omitzero" koanf:"upstream_timeout"`

	// UpstreamCA is a file of certificates in PEM that https upstreams may be
	// signed with, beside those that the system trusts.
	UpstreamCA string `yaml:"upstream_ca,omitempty" json:"upstream_ca,omitempty" koanf:"upstream_ca"`
}

// The values of Config.Audit.
const (
	AuditAsync  = "async"
	AuditStrict = "strict"
)

// Route sends requests for a host (empty: any; without port) and below a path
// prefix (empty: all) to an upstream, guarded by a keyspace.
type Route struct {
	Host         string   `yaml:"host,omitempty" json:"host,omitempty" koanf:"host"`
	PathPrefix   string   `yaml:"path_prefix,omitempty" json:"path_prefix,omitempty" koanf:"path_prefix"`    // whole segments: /v1 is no prefix of /v10
	StripPrefix  Strip    `yaml:"strip_prefix,omitempty" json:"strip_prefix,omitempty" koanf:"strip_prefix"` // taken off before the path is judged and sent on
	Keyspace     string   `yaml:"keyspace" json:"keyspace" koanf:"keyspace"`
	Upstream     string   `yaml:"upstream" json:"upstream" koanf:"upstream"`                                 // http(s)://host:port[/base]
	Environments []string `yaml:"environments,omitempty" json:"environments,omitempty" koanf:"environments"` // of keys that are admitted; empty: all
}

// Strip is the prefix to take off a path. In a file, true stands for the
// route's path_prefix.
type Strip string

// StripAll stands for the route's whole path_prefix.
const StripAll Strip = "true"

// UnmarshalYAML reads a prefix or a truth value.
func (s *Strip) UnmarshalYAML(n *yaml.Node) error {
	var all bool
	if n.Decode(&all) == nil {
		*s = ""
		if all {
			*s = StripAll
		}
		return nil
	}
	return n.Decode((*string)(s))
}

// ParseConfig reads a gateway's file and validates it. Fields that it does not
// know are refused.
func ParseConfig(b []byte) (Config, error) {
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("gateway configuration: %w", err)
	}
	return c, c.Validate()
}

// DurableTime is how long a request may wait until its use is durable; zero where
// that is not waited for. It fails where Audit is neither async nor strict.
func (c *Config) DurableTime() (time.Duration, error) {
	switch c.Audit {
	case "", AuditAsync:
		return 0, nil
	case AuditStrict:
		return cmp.Or(c.AuditTimeout, 2*time.Second), nil
	}
	return 0, fmt.Errorf("audit: %q is not known: write async or strict", c.Audit)
}

// Validate reports everything that is wrong, with its path.
func (c *Config) Validate() error {
	_, err := compileRoutes(c.Routes)
	problems := []error{err}
	_, err = c.DurableTime()
	problems = append(problems, err)
	_, err = inbound.ParseProxies(c.TrustedProxies)
	return errors.Join(append(problems, err)...)
}

// route is a Route ready for use.
type route struct {
	Route
	host     string // lower-case
	prefix   string // escaped as it stands on the request line; no slash at the end
	strip    string // likewise
	upstream *url.URL
	pool     *upstream.Pool // of that upstream; set when the routes are put to use
}

var (
	keyspaceID  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	plainPrefix = regexp.MustCompile(`^(/[A-Za-z0-9._~!$&'()*+,=:@-]+)*$`)
)

// compileRoutes puts the routes in the order in which they are tried.
func compileRoutes(routes []Route) ([]*route, error) {
	compiled := make([]*route, 0, len(routes))
	var problems []error
	taken := map[[2]string]int{}
	for i, in := range routes {
		r := &route{Route: in, host: strings.ToLower(in.Host), prefix: strings.TrimRight(in.PathPrefix, "/")}
		bad := func(field, format string, a ...any) {
			problems = append(problems, fmt.Errorf("routes[%d].%s: %s", i, field, fmt.Sprintf(format, a...)))
		}
		if strings.ContainsAny(r.host, "/ ") || hostOnly(r.host) != r.host {
			bad("host", "%q is not a host name: leave out scheme, port and path", in.Host)
		}
		if !isPrefix(r.prefix) {
			bad("path_prefix", "%q is not a path of plain segments: write it like /birds", in.PathPrefix)
		}
		r.strip = strings.TrimRight(string(in.StripPrefix), "/")
		if in.StripPrefix == StripAll {
			r.strip = r.prefix
		}
		if !isPrefix(r.strip) {
			bad("strip_prefix", "%q is not a path of plain segments: write true, or a path like /birds", in.StripPrefix)
		} else if _, ok := below(r.prefix, r.strip); !ok {
			bad("strip_prefix", "%q is not at the start of path_prefix %q, so some paths would not have it", in.StripPrefix, in.PathPrefix)
		}
		switch {
		case in.Keyspace == events.RootKeyspace:
			bad("keyspace", "%q is the keyspace of root keys, which open no API but keyledger's own", in.Keyspace)
		case !keyspaceID.MatchString(in.Keyspace):
			bad("keyspace", "%q is not a keyspace id: lower-case letters, digits and hyphens", in.Keyspace)
		}
		u, err := url.Parse(in.Upstream)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			bad("upstream", "is not a URL of the form http://host:port/base") // it may hold a password: not repeated
		} else {
			u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
			r.upstream = u
		}
		id := [2]string{r.host, r.prefix}
		if first, ok := taken[id]; ok {
			bad("path_prefix", "the same host and prefix as routes[%d]: which one counts would be chance", first)
		}
		taken[id] = i
		compiled = append(compiled, r)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	slices.SortStableFunc(compiled, func(a, b *route) int {
		if (a.host == "") != (b.host == "") {
			if a.host == "" {
				return 1
			}
			return -1
		}
		return len(b.prefix) - len(a.prefix)
	})
	return compiled, nil
}

func isPrefix(s string) bool {
	return plainPrefix.MatchString(s) && !slices.ContainsFunc(strings.Split(s, "/"), func(segment string) bool { return segment == "." || segment == ".." })
}

// below cuts a prefix of whole segments off a path.
func below(path, prefix string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(path, prefix)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// find is the route of a request, and the path below its stripped prefix: as it
// is escaped on the request line.
func (g *Gateway) find(r *http.Request) (*route, string, bool) {
	path := r.URL.EscapedPath()
	if path == "" && r.Method != http.MethodConnect {
		path = "/" // the absolute form http://host
	}
	if !strings.HasPrefix(path, "/") {
		return nil, "", false
	}
	host := strings.ToLower(hostOnly(r.Host))
	for _, route := range *g.routes.Load() {
		if route.host != "" && route.host != host {
			continue
		}
		if _, ok := below(path, route.prefix); !ok {
			continue
		}
		if path = path[len(route.strip):]; path == "" {
			path = "/"
		}
		return route, path, true
	}
	return nil, "", false
}

func hostOnly(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}
