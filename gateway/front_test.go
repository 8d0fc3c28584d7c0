package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/demo"
	"github.com/keyledger/keyledger/gateway/front"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// fronted serves a rig's gateway without TLS and with it, at once.
type fronted struct {
	*rig
	plain, tls string
	roots      *x509.CertPool
}

func newFronted(t *testing.T, upstream http.Handler, change ...func(*gateway.Config)) *fronted {
	t.Helper()
	f := &fronted{rig: newRig(t, upstream, change...), roots: x509.NewCertPool()}
	dir := t.TempDir()
	pair := front.Pair{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	f.roots.AddCert(testenv.Certificate(t, pair.Cert, pair.Key, "api.example"))
	certificates, err := front.LoadCertificates([]front.Pair{pair}, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := front.New(front.Config{H2C: true}, f.gateway, certificates, slog.New(slog.DiscardHandler))
	open := func(serve func(net.Listener) error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go serve(l)
		return l.Addr().String()
	}
	f.plain, f.tls = open(server.Serve), open(server.ServeTLS)
	t.Cleanup(func() { server.Drain(context.Background()) })
	return f
}

// ask sends one request in a version of HTTP, over TLS or without.
func (f *fronted) ask(scheme, proto, method, path string, headers ...string) (*http.Response, string) {
	f.t.Helper()
	versions, to := new(http.Protocols), f.plain
	switch {
	case proto == "HTTP/1.1":
		versions.SetHTTP1(true)
	case scheme == "http":
		versions.SetUnencryptedHTTP2(true)
	default:
		versions.SetHTTP1(true)
		versions.SetHTTP2(true)
	}
	if scheme == "https" {
		to = f.tls
	}
	transport := &http.Transport{
		Protocols: versions, TLSClientConfig: &tls.Config{RootCAs: f.roots}, DisableKeepAlives: proto == "HTTP/1.1",
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, to)
		},
	}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(f.t.Context(), method, scheme+"://api.example"+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	res, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.Proto != proto {
		f.t.Fatal(res.Proto, err)
	}
	return res, string(body)
}

// In every version of HTTP and with or without TLS: nothing that a client says of
// itself arrives, what the gateway says does, and each request is one use.
func TestVersionsOfHTTP(t *testing.T) {
	f := newFronted(t, demo.Handler())
	n := 0
	for _, scheme := range []string{"http", "https"} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			res, body := f.ask(scheme, proto, "GET", "/birds/v1/birds/7?x=1", append(bearer, "X-Key-Id", "key_forged", "X_Key_Owner", "forged", "x-key-admin", "1",
				"X-Request-Id", "forged", "X-Forwarded-For", "198.51.100.1", "X-Forwarded-Proto", "gopher", "X-Forwarded-Host", "forged", "Forwarded", "for=198.51.100.1")...)
			n++
			var echo demo.Echo
			if err := json.Unmarshal([]byte(body), &echo); res.StatusCode != 200 || err != nil {
				t.Fatalf("%s %s: %d %s", scheme, proto, res.StatusCode, body)
			}
			for name, want := range map[string]string{
				"X-Key-Id": f.key, "X-Key-Owner": "org_1", "X-Request-Id": res.Header.Get("X-Request-Id"),
				"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": scheme, "X-Forwarded-Host": "api.example",
			} {
				if got := echo.Headers[name]; len(got) != 1 || got[0] != want {
					t.Errorf("%s %s: the upstream got %s: %q, want %q", scheme, proto, name, got, want)
				}
			}
			for name, values := range echo.Headers {
				canonical := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
				if strings.HasPrefix(canonical, "x-key-") && len(values) == 1 && (values[0] == "forged" || values[0] == "1") || canonical == "authorization" {
					t.Errorf("%s %s: the upstream got %s: %q", scheme, proto, name, values)
				}
			}
			if res, body := f.ask(scheme, proto, "POST", "/birds/v1/birds", append(bearer, "Origin", "https://page.example")...); res.StatusCode != 403 ||
				body != `{"problem":"Scope missing","needs":["birds:write"]}` || res.Header.Get("Access-Control-Allow-Origin") != "https://page.example" {
				t.Errorf("%s %s: %d %s", scheme, proto, res.StatusCode, body)
			}
		}
	}
	for _, u := range f.used(n) {
		if status(u) != 200 || u.Endpoint != "/v1/birds/7" {
			t.Errorf("%+v", u)
		}
	}
}

// require_tls is judged by the connection, or by what a trusted proxy says of the
// one that it took; the client's own word counts for nothing.
func TestRequireTLSOnBothListeners(t *testing.T) {
	for _, c := range []struct {
		trusted, scheme, says string
		admitted              bool
	}{
		{"", "http", "", false},
		{"", "http", "https", false},
		{"", "https", "", true},
		{"", "https", "http", true},
		{"127.0.0.1", "http", "", false},
		{"127.0.0.1", "http", "https", true},
		{"127.0.0.1", "http", "http, https", false},
		{"127.0.0.1", "https", "", true},
		{"127.0.0.1", "https", "https", true},
		{"127.0.0.1", "https", "http", false}, // the proxy speaks TLS to us, and took the request without
		{"10.0.0.0/8", "http", "https", false},
	} {
		f := newFronted(t, demo.Handler(), func(g *gateway.Config) {
			if c.trusted != "" {
				g.TrustedProxies = []string{c.trusted}
			}
		})
		f.Configure(strings.Replace(verifytest.Birds, `"scheme": "Bearer"`, `"scheme": "Bearer", "require_tls": true`, 1))
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			headers := bearer
			if c.says != "" {
				headers = append(headers[:2:2], "X-Forwarded-Proto", c.says)
			}
			for _, path := range []string{"/birds/v1/birds", "/birds/health"} {
				if res, body := f.ask(c.scheme, proto, "GET", path, headers...); (res.StatusCode == 200) != c.admitted || !c.admitted && !strings.Contains(body, "INSECURE_TRANSPORT") {
					t.Errorf("%s over %s, %q trusted, X-Forwarded-Proto %q: %d %s", path, c.scheme, c.trusted, c.says, res.StatusCode, body)
				}
			}
		}
	}
}

// An origin is on a key's list or it is not: nothing like it counts.
func TestOriginsExactly(t *testing.T) {
	g := newRig(t, demo.Handler())
	const page, odd = "https://app.example.com", "http://xn--bcher-kva.example:8080"
	bound := "bd_live_0123456789abcdefABCDEFxyzXYZ0001"
	g.World.Key("birds", "org_1", bound, events.KeyCreated{Name: "b", Environment: "live", Scopes: []string{"birds:read"}, AllowedOrigins: []string{page, odd}})
	auth := []string{"Authorization", "Bearer " + bound}
	for _, origin := range []string{page, odd} {
		if res, body := g.do("GET", "/birds/v1/birds", append(auth, "Origin", origin)...); res.StatusCode != 200 {
			t.Errorf("%s: %d %s", origin, res.StatusCode, body)
		}
	}
	for _, origin := range []string{
		"null", "", "https://app.example.com.evil.example", "https://evil-app.example.com", "https://evil.example/https://app.example.com", "https://app.example.com/",
		"https://app.example.com:443", "https://app.example.com:8443", "http://app.example.com", "https://APP.example.com", "HTTPS://app.example.com",
		"https://app.example.com.", "https://user@app.example.com", "https://sub.app.example.com", "app.example.com", "*",
		"http://bücher.example:8080", "http://xn--bcher-kva.example", "http://xn--bcher-kva.example:80808", "http://XN--BCHER-KVA.example:8080",
		"https://app.example.com, https://app.example.com", "https://app.example.com https://evil.example",
	} {
		if res, body := g.do("GET", "/birds/v1/birds", append(auth, "Origin", origin)...); !strings.Contains(body, "ORIGIN_DENIED") {
			t.Errorf("%s: %d %s", origin, res.StatusCode, body)
		}
	}
	for name, headers := range map[string][]string{"none": nil, "two": {"Origin", page, "Origin", page}, "one that is and one that is not": {"Origin", page, "Origin", "https://evil.example"}} {
		if res, body := g.do("GET", "/birds/v1/birds", append(auth, headers...)...); !strings.Contains(body, "ORIGIN_DENIED") {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
	}
}

// A refusal does not wait for a body that the client never sends.
func TestRefusedWithoutBody(t *testing.T) {
	f := newFronted(t, demo.Handler())
	conn, err := net.Dial("tcp", f.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /birds/v1/birds HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); res.StatusCode != 401 || !strings.Contains(string(body), "MISSING_CREDENTIAL") || err != nil {
		t.Errorf("%d %s %v", res.StatusCode, body, err)
	}
}
