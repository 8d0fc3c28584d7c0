// Package deploy holds the configurations that stand between an API and its
// clients: of proxies that ask keyledger about each request, of the built-in
// gateway, and a call by hand.
//
// The files are what the documentation links to and what the tests of this package
// start proxies with. [Snippet] fills one in for a keyspace, for the console. It
// fails where a file does not hold any more what is to be filled in, so that
// nobody is shown a snippet that asks about somebody else's keyspace.
package deploy

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed nginx/keyledger.conf caddy/Caddyfile traefik/keyledger.yaml envoy/envoy.yaml gateway.yaml verify/verify.sh
var files embed.FS

// Values are what a snippet is filled in with.
type Values struct {
	Keyspace string
	Header   string // the keyspace's credential header
	Scheme   string // its scheme; empty: the bare value
	Service  string // host:port at which the proxy reaches keyledger
	URL      string // of keyledger
	Upstream string // host:port of the API, of nginx, Caddy and Traefik; empty: as the file says
}

// The files, by their names below this directory.
const (
	Nginx   = "nginx/keyledger.conf"
	Caddy   = "caddy/Caddyfile"
	Traefik = "traefik/keyledger.yaml"
	Envoy   = "envoy/envoy.yaml"
	Gateway = "gateway.yaml"
	Verify  = "verify/verify.sh"
)

// Snippet is a file with the values in place of those that it is shipped with.
func Snippet(name string, v Values) (string, error) {
	b, err := files.ReadFile(name)
	if err != nil {
		return "", err
	}
	text, missing := string(b), ""
	put := func(old, replacement string) {
		if !strings.Contains(text, old) {
			missing = old
		}
		text = strings.ReplaceAll(text, old, replacement)
	}
	text = strings.ReplaceAll(text, ", and parcelbird to your keyspace", "")
	put("parcelbird", v.Keyspace)
	switch name {
	case Nginx:
		put("server 127.0.0.1:7070;", "server "+v.Service+";")
		put("proxy_set_header Authorization     \"\";", fmt.Sprintf("proxy_set_header %-17s \"\";", v.Header))
	case Caddy:
		put("reverse_proxy 127.0.0.1:7070 {", "reverse_proxy "+v.Service+" {")
		put("header_up -Authorization #", "header_up -"+v.Header+" #")
	case Traefik:
		put("http://keyledger:7070/", "http://"+v.Service+"/")
		put("          Authorization: \"\"", "          "+v.Header+": \"\"")
	case Envoy:
		header := strings.ToLower(v.Header)
		put("request_headers_to_remove: [authorization]", "request_headers_to_remove: ["+header+"]")
		const first = "                          - {exact: content-type, ignore_case: true}\n"
		if header == "authorization" { // Envoy sends it anyway
			put(first, first)
		} else {
			put(first, "                          - {exact: "+header+", ignore_case: true}\n"+first)
		}
	case Verify:
		put("http://127.0.0.1:7070", v.URL)
		put("Authorization: Bearer pb_live_", strings.TrimSuffix(v.Header+": "+v.Scheme, " ")+" …")
	}
	if v.Upstream != "" && (name == Nginx || name == Caddy || name == Traefik) {
		put("127.0.0.1:8080", v.Upstream)
	}
	if missing != "" {
		return "", fmt.Errorf("%s does not hold %q any more", name, missing)
	}
	return text, nil
}
