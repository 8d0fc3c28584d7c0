package console

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/deploy"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/examples"
)

func (c *Console) gatewaysPages() {
	c.page("GET /gateways", (*visit).gateways)
	c.page("POST /gateways", (*visit).try)
}

// way is one of those by which an API can ask about its requests.
type way struct {
	Name, Word string
	About      string // what it is good for
	File       string // below deploy or examples
	Code       string // Go
	Path       string // where the snippet goes
	Token      string // where its root key goes
	Doc        string // that says more
	Here       bool
}

var ways = []way{
	{Name: "nginx", Word: "nginx", File: deploy.Nginx, Path: "/etc/nginx/conf.d/keyledger.conf", Doc: "docs/forward-auth.md",
		About: "nginx asks about each request before it sends it on.",
		Token: "/etc/nginx/keyledger-token.conf, one line that only nginx’s master can read: proxy_set_header X-Authz-Token klr_…;"},
	{Name: "traefik", Word: "Traefik", File: deploy.Traefik, Path: "a file of Traefik’s file provider", Doc: "docs/forward-auth.md",
		About: "Traefik asks about each request with its ForwardAuth middleware.",
		Token: "KEYLEDGER_AUTHZ_TOKEN in Traefik’s environment"},
	{Name: "caddy", Word: "Caddy", File: deploy.Caddy, Path: "the Caddyfile", Doc: "docs/forward-auth.md",
		About: "Caddy asks about each request before it sends it on.",
		Token: "KEYLEDGER_AUTHZ_TOKEN in Caddy’s environment"},
	{Name: "envoy", Word: "Envoy", File: deploy.Envoy, Path: "envoy.yaml", Doc: "docs/forward-auth.md",
		About: "Envoy asks about each request with its HTTP ext_authz filter, over keyledger’s Unix socket (authz_socket).",
		Token: "none: whoever may open the socket is believed"},
	{Name: "gateway", Word: "Built-in gateway", File: deploy.Gateway, Path: "gateway.yaml, for keyledger gateway --config gateway.yaml", Doc: "docs/operators.md",
		About: "keyledger’s own reverse proxy: it decides, records status and latency of each request, and sends it on.",
		Token: "none: it follows the ledger itself, as the NATS user in /run/secrets/nats_gateway"},
	{Name: "middleware", Word: "Go middleware", Code: examples.Middleware, Path: "main.go of your service", Doc: "docs/integrators.md",
		About: "A Go service decides in its own memory, in front of its handlers.",
		Token: "none: it follows the ledger itself; MASTER_KEY_FILE names a file with the service’s master key"},
	{Name: "inprocess", Word: "Go in process", Code: examples.Decide, Path: "your service, where requests do not come over HTTP", Doc: "docs/integrators.md",
		About: "A Go service asks for one decision in its own memory, and records the use.",
		Token: "none: it follows the ledger itself; MASTER_KEY_FILE names a file with the service’s master key"},
	{Name: "verify", Word: "Verify call", File: deploy.Verify, Path: "any service that can make an HTTP request", Doc: "docs/http-api.md",
		About: "One call for each request, from any language.",
		Token: "KEYLEDGER_TOKEN, in the service’s environment"},
}

type gatewaysData struct {
	Keyspaces []string
	Space     *space
	Ways      []way
	Way       way
	Snippet   string
	Routes    []string // some that the document names
	Try       tryForm
	Result    *tried
	Problem   *api.Problem
}

// tryForm is what is asked about. The credential is not in it: it is read where it
// is sent on, and written nowhere.
type tryForm struct {
	As                                     string // key, value, none
	Method, Path, Origin, IP, TLS, Content string
}

// tried is what came of it.
type tried struct {
	Valid      bool
	Code, When string
	Decision   string
	KeyID      string
	KeyName    string
	Limits     []triedLimit
	RetryAfter *int64
	Skipped    []string
	Sequence   uint64
	Took       string
	Wire       wire
}

type triedLimit struct {
	Window           string
	Limit, Remaining int64
	Reset            string
	Used             int // percent
}

func (v *visit) mayTry() error {
	if v.may(domain.Configure) && v.may(domain.Verify) {
		return nil
	}
	return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "Only operators put proxies in front of an API, and try requests."}
}

func (v *visit) gateways() error {
	d, err := v.gatewaysData()
	if err != nil {
		return err
	}
	return v.show("gateways", "Gateways", d)
}

func (v *visit) gatewaysData() (*gatewaysData, error) {
	if err := v.mayTry(); err != nil {
		return nil, err
	}
	all, ks, _, err := v.chosen()
	if err != nil {
		return nil, err
	}
	d := &gatewaysData{Ways: slices.Clone(ways)}
	if ks == nil {
		return d, nil
	}
	for _, k := range all {
		d.Keyspaces = append(d.Keyspaces, k.ID)
	}
	d.Space = &space{keyspace: *ks}
	at := max(0, slices.IndexFunc(ways, func(w way) bool { return w.Name == v.r.URL.Query().Get("for") }))
	d.Ways[at].Here = true
	d.Way = d.Ways[at]
	if d.Way.Code != "" {
		d.Snippet, err = examples.For(d.Way.Code, ks.ID)
	} else {
		d.Snippet, err = deploy.Snippet(d.Way.File, v.values(ks))
	}
	if err != nil {
		return nil, err
	}
	d.Routes = routesOf(&ks.Document)
	d.Try = tryForm{As: "key", Method: "GET", Path: "/", TLS: "yes", IP: v.address()}
	if len(d.Routes) > 0 {
		methods, path, _ := strings.Cut(d.Routes[0], " ")
		d.Try.Method, _, _ = strings.Cut(methods, ",")
		d.Try.Path = path
	}
	if d.Try.Method == "*" {
		d.Try.Method = "GET"
	}
	return d, nil
}

// values are what the snippets are filled in with. The service is where this page
// was asked for: what a proxy reaches may have another name.
func (v *visit) values(ks *keyspace) deploy.Values {
	scheme, port := "http", ":80"
	if v.r.TLS != nil || v.r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme, port = "https", ":443"
	}
	host := v.r.Host
	if at := strings.LastIndexByte(host, ':'); at < 0 || strings.HasSuffix(host, "]") {
		host += port
	}
	// A Host header is whatever its sender likes; a snippet is configuration.
	if strings.ContainsFunc(host, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(".-:[]", c))
	}) {
		host, scheme = "127.0.0.1:7070", "http"
	}
	return deploy.Values{Keyspace: ks.ID, Header: ks.Document.Credential.Header, Scheme: ks.Document.Credential.Scheme, Service: host, URL: scheme + "://" + host}
}

// address is that of whoever looks at the page, as an example.
func (v *visit) address() string {
	host := v.r.RemoteAddr
	if at := strings.LastIndexByte(host, ':'); at >= 0 {
		host = host[:at]
	}
	return strings.Trim(host, "[]")
}

// routesOf are paths that a document speaks of, with examples in place of what
// they leave open.
func routesOf(d *domain.Document) []string {
	fill := strings.NewReplacer("{owner}", "owner_1", "{resource}", "res_1", "/**", "/1", "*", "1")
	var list []string
	add := func(method, path string) {
		if route := method + " " + fill.Replace(path); !slices.Contains(list, route) {
			list = append(list, route)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.Scopes)) {
		for _, r := range d.Scopes[name].Routes {
			methods, path, _ := strings.Cut(r, " ")
			for m := range strings.SplitSeq(methods, ",") {
				if m == "*" {
					m = "GET"
				}
				add(m, path)
			}
		}
	}
	if d.Resource.Path != "" {
		add("GET", d.Resource.Path)
	}
	if d.Owner.Path != "" {
		add("GET", d.Owner.Path)
	}
	for _, r := range d.PublicRoutes {
		methods, path, _ := strings.Cut(r.Route, " ")
		method, _, _ := strings.Cut(methods, ",")
		add(method, path)
	}
	return list
}

// try sends a request to verification, as a gateway would ask about it. The
// credential goes from the body of the form to the API and nowhere else.
func (v *visit) try() error {
	d, err := v.gatewaysData()
	if err != nil {
		return err
	}
	if d.Space == nil {
		return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no keyspace to try."}
	}
	d.Try = tryForm{As: v.form("as"), Method: v.form("method"), Path: v.form("path"), Origin: v.form("origin"), IP: v.form("ip"), TLS: v.form("tls"), Content: v.form("content_type")}
	in := map[string]any{"keyspace": d.Space.ID, "method": d.Try.Method, "path": d.Try.Path, "origin": d.Try.Origin, "content_type": d.Try.Content}
	switch d.Try.As {
	case "value":
		in["authorization"] = v.r.PostFormValue("credential") // blanks count
	case "none":
	default:
		d.Try.As = "key"
		in["key"] = v.form("credential")
	}
	if d.Try.IP != "" {
		in["ip"] = d.Try.IP
	}
	switch d.Try.TLS {
	case "yes", "no":
		in["tls"] = d.Try.TLS == "yes"
	}
	var out struct {
		Valid      bool   `json:"valid"`
		Code       string `json:"code"`
		DecisionID string `json:"decision_id"`
		Key        *struct {
			ID   string `json:"id"`
			Name string `json:"name"`
		} `json:"key"`
		Limits []struct {
			Window    string    `json:"window"`
			Limit     int64     `json:"limit"`
			Remaining int64     `json:"remaining"`
			Reset     time.Time `json:"reset"`
		} `json:"limits"`
		RetryAfter *int64   `json:"retry_after"`
		Skipped    []string `json:"skipped"`
		Sequence   uint64   `json:"sequence"`
		Answer     struct {
			Status  int               `json:"status"`
			Headers map[string]string `json:"headers"`
			Body    json.RawMessage   `json:"body"`
		} `json:"answer"`
	}
	began := time.Now()
	_, err = v.call(http.MethodPost, "/v1/verify", nil, nil, in, &out)
	took := time.Since(began)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status != http.StatusUnauthorized {
		d.Problem = p
		v.w.WriteHeader(p.Status)
	} else if err != nil {
		return err
	} else {
		d.Result = &tried{Valid: out.Valid, Code: out.Code, When: domain.Code(out.Code).Message(), Decision: out.DecisionID, RetryAfter: out.RetryAfter, Skipped: out.Skipped,
			Sequence: out.Sequence, Took: fmt.Sprintf("%.2f ms", took.Seconds()*1000)}
		if out.Key != nil {
			d.Result.KeyID, d.Result.KeyName = out.Key.ID, cmp.Or(out.Key.Name, out.Key.ID)
		}
		for _, l := range out.Limits {
			used := 0
			if l.Limit > 0 {
				used = int((l.Limit - l.Remaining) * 100 / l.Limit)
			}
			d.Result.Limits = append(d.Result.Limits, triedLimit{l.Window, l.Limit, l.Remaining, l.Reset.UTC().Format("15:04:05 UTC"), used})
		}
		d.Result.Wire = wireOf(out.Answer.Status, out.Answer.Headers, out.Answer.Body)
	}
	if v.r.Header.Get("X-Part") != "" {
		return v.fragment("gateways", "tried", d)
	}
	return v.show("gateways", "Gateways", d)
}

func wireOf(status int, headers map[string]string, body json.RawMessage) wire {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\n", status, http.StatusText(status))
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		fmt.Fprintf(&b, "%s: %s\n", name, headers[name])
	}
	if len(body) > 0 && string(body) != "null" {
		var indented bytes.Buffer
		if json.Indent(&indented, body, "", "  ") != nil {
			indented.Reset()
			indented.Write(body)
		}
		b.WriteString("\n" + indented.String())
	}
	return wire{Status: status, Reason: http.StatusText(status), Text: b.String()}
}

// To is the page's address for another way.
func (d *gatewaysData) To(name string) string {
	return "/gateways?" + url.Values{"keyspace": {d.Space.ID}, "for": {name}}.Encode()
}
