package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/front"
)

// raw is an upstream that speaks as it likes on each connection; it is closed
// when the function returns.
func raw(t testing.TB, serve func(conn net.Conn, in *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn, bufio.NewReader(conn))
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// rawRig is a gateway in front of a raw upstream.
func rawRig(t testing.TB, serve func(conn net.Conn, in *bufio.Reader), change ...func(*gateway.Config)) *rig {
	t.Helper()
	to := raw(t, serve)
	return newRig(t, http.NotFoundHandler(), append(change, func(c *gateway.Config) { c.Routes[0].Upstream = to })...)
}

// says is an upstream that reads one request, says its piece and hangs up.
func says(piece string) func(net.Conn, *bufio.Reader) {
	return func(conn net.Conn, in *bufio.Reader) {
		if _, err := http.ReadRequest(in); err == nil {
			_, _ = io.WriteString(conn, piece)
		}
	}
}

// What an upstream must not say is a 502, recorded as that, and none of it
// reaches the client.
func TestMalformedAnswers(t *testing.T) {
	for name, piece := range map[string]string{
		"nothing":                 "",
		"half a head":             "HTTP/1.1 200 OK\r\nX-Leak: 1\r\n",
		"not HTTP":                "SSH-2.0-OpenSSH_9.2\r\n\r\n",
		"two lengths":             "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
		"length and coding":       "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"another coding":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
		"a folded line":           "HTTP/1.1 200 OK\r\nX-Leak: 1\r\n X-Other: 2\r\n\r\n",
		"a control character":     "HTTP/1.1 200 OK\r\nX-Leak: a\x00b\r\n\r\n",
		"a blank before a colon":  "HTTP/1.1 200 OK\r\nX-Leak : 1\r\n\r\n",
		"a head without end":      "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Leak: 1\r\n", 1<<14),
		"endless patience":        strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1000),
		"a protocol nobody asked": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"a status out of range":   "HTTP/1.1 099 What\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := rawRig(t, says(piece))
			res, body := g.do("GET", "/birds/v1/birds", bearer...)
			if res.StatusCode != 502 || !strings.Contains(body, "UPSTREAM_FAILED") || res.Header.Get("X-Leak") != "" || res.Header.Get("X-Request-Id") == "" {
				t.Errorf("%d %s %v", res.StatusCode, body, res.Header)
			}
			if u := g.used(1); status(u[0]) != 502 {
				t.Errorf("%+v", u)
			}
		})
	}
}

// An answer that is cut off looks so to the client.
func TestCutOff(t *testing.T) {
	for name, piece := range map[string]string{
		"a length":          "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
		"chunks":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"within a chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
		"within trailers":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n",
		"a wrong chunk":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
		"a nonsense length": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nno\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := rawRig(t, says(piece))
			for _, http2 := range []bool{false, true} {
				client := g.server.Client()
				if http2 {
					client = overHTTP2(g)
				}
				res, err := client.Do(g.request("GET", "/birds/v1/birds", nil, bearer...))
				if err != nil {
					continue // over HTTP/2 the reset may come before the head was read
				}
				if body, err := io.ReadAll(res.Body); err == nil || res.StatusCode != 200 {
					t.Errorf("HTTP/2 %v: %d %q, %v", http2, res.StatusCode, body, err)
				}
				res.Body.Close()
			}
			for _, u := range g.used(2) {
				if status(u) != 200 { // the answer had begun
					t.Errorf("%+v", u)
				}
			}
		})
	}
}

// Every way in which an answer may end is understood, and what is not the
// client's to know is taken out of it.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		method, piece string
		status        int
		body          string
		header        map[string]string
	}{
		"a length":      {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello", 200, "hello", map[string]string{"X-A": "1|2", "Content-Length": "5"}},
		"chunks":        {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", 200, "hello!", nil},
		"its closing":   {"GET", "HTTP/1.1 200 OK\r\nContent-Type: text/x\r\n\r\nhello", 200, "hello", map[string]string{"Content-Type": "text/x"}},
		"HTTP/1.0":      {"GET", "HTTP/1.0 200 OK\r\n\r\nhello", 200, "hello", map[string]string{"Content-Type": ""}},
		"bare LF":       {"GET", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", 200, "hello", nil},
		"no body":       {"GET", "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", 204, "", map[string]string{"X-A": "1", "Content-Length": ""}},
		"not modified":  {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nEtag: \"a\"\r\n\r\n", 304, "", map[string]string{"Etag": `"a"`}},
		"HEAD":          {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, "", map[string]string{"Content-Length": "5"}},
		"HEAD, chunked": {"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, "", map[string]string{"Content-Length": ""}},
		"an odd status": {"GET", "HTTP/1.1 799\r\nContent-Length: 0\r\n\r\n", 799, "", nil},
		"hop by hop": {"GET", "HTTP/1.1 200 OK\r\nConnection: close, X-Hop, X-Request-Id\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\nX-Request-Id: theirs\r\nX-End: 1\r\n\r\n",
			200, "", map[string]string{"X-Hop": "", "Keep-Alive": "", "Proxy-Authenticate": "", "Upgrade": "", "X-End": "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := rawRig(t, says(c.piece))
			for _, client := range []*http.Client{g.server.Client(), overHTTP2(g)} {
				res, err := client.Do(g.request(c.method, "/birds/v1/birds", nil, bearer...))
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != c.status || string(body) != c.body || err != nil {
					t.Errorf("%s: %d %q, %v", res.Proto, res.StatusCode, body, err)
				}
				for name, want := range c.header {
					if got := strings.Join(res.Header.Values(name), "|"); got != want {
						t.Errorf("%s: %s: %q, want %q", res.Proto, name, got, want)
					}
				}
				if id := res.Header.Values("X-Request-Id"); len(id) != 1 || !strings.HasPrefix(id[0], "req_") {
					t.Errorf("request id %q", id)
				}
			}
		})
	}
}

// overHTTP2 is a client of the same gateway that speaks HTTP/2.
func overHTTP2(g *rig) *http.Client {
	s := httptest.NewUnstartedServer(g.gateway)
	s.EnableHTTP2 = true
	s.StartTLS()
	g.t.Cleanup(s.Close)
	client := s.Client()
	base := client.Transport
	client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host = "https", strings.TrimPrefix(s.URL, "https://")
		res, err := base.RoundTrip(r)
		if err == nil && res.ProtoMajor != 2 {
			return nil, errors.New("not HTTP/2")
		}
		return res, err
	})
	return client
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// keeping is an upstream that keeps its connections open and counts them; serve
// is asked for each request whether to go on.
func keeping(connections *atomic.Int64, serve func(conn net.Conn, r *http.Request, n int) bool) func(net.Conn, *bufio.Reader) {
	return func(conn net.Conn, in *bufio.Reader) {
		connections.Add(1)
		for n := 1; ; n++ {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if !serve(conn, r, n) {
				return
			}
		}
	}
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// A connection serves one request after the other, whatever their answers have
// for a body.
func TestReuse(t *testing.T) {
	var connections atomic.Int64
	g := rawRig(t, keeping(&connections, func(conn net.Conn, r *http.Request, n int) bool {
		answers := []string{ok, "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: 1\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n" + ok,
			"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000)}
		_, _ = io.WriteString(conn, answers[n%len(answers)])
		return true
	}))
	for i := range 30 {
		method := "GET"
		if i%7 == 3 {
			method = "POST"
		}
		r := g.request(method, "/birds/v1/eggs", strings.NewReader(strings.Repeat("y", i*1500)), bearer...)
		res, err := g.server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(res.Body); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// What an upstream says beyond its answer, at once or later, is nobody's answer.
func TestUnasked(t *testing.T) {
	stray := "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	t.Run("at once", func(t *testing.T) {
		var connections atomic.Int64
		g := rawRig(t, keeping(&connections, func(conn net.Conn, r *http.Request, n int) bool {
			_, _ = io.WriteString(conn, ok+stray)
			return true
		}))
		for range 3 {
			if _, body := g.do("GET", "/birds/v1/birds", bearer...); body != "ok" {
				t.Errorf("%q", body)
			}
		}
		if n := connections.Load(); n != 3 {
			t.Errorf("%d connections", n)
		}
	})
	t.Run("later", func(t *testing.T) {
		var connections atomic.Int64
		answered, said := make(chan bool), make(chan bool)
		g := rawRig(t, keeping(&connections, func(conn net.Conn, r *http.Request, n int) bool {
			_, _ = io.WriteString(conn, ok)
			<-answered
			_, _ = io.WriteString(conn, stray)
			said <- true
			return true
		}))
		for range 3 {
			if _, body := g.do("GET", "/birds/v1/birds", bearer...); body != "ok" {
				t.Errorf("%q", body)
			}
			answered <- true
			<-said
		}
	})
}

// A request is sent again only when its connection turned out to be closed
// before anything came back, and only when its method allows that.
func TestSentAgain(t *testing.T) {
	for _, c := range []struct {
		method, body string
		status       int
		asked        int64
	}{
		{"GET", "", 200, 2}, {"HEAD", "", 200, 2}, {"PUT", "whole", 200, 2}, {"DELETE", "", 200, 2}, {"OPTIONS", "", 200, 2},
		{"POST", "", 502, 1}, {"POST", "whole", 502, 1}, {"PATCH", "whole", 502, 1}, {"LOCK", "", 502, 1},
		{"PUT", strings.Repeat("streamed", 10000), 502, 1},
	} {
		t.Run(c.method, func(t *testing.T) {
			var connections, asked atomic.Int64
			g := rawRig(t, keeping(&connections, func(conn net.Conn, r *http.Request, n int) bool {
				if r.URL.Path == "/v1/eggs" {
					_, _ = io.WriteString(conn, ok)
					return true
				}
				asked.Add(1)
				if body, _ := io.ReadAll(r.Body); string(body) != c.body {
					t.Errorf("the body arrives as %q", body)
				}
				if n > 1 {
					return false // closed without a word, on a connection that was used before
				}
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				return true
			}))
			g.do("GET", "/birds/v1/eggs", bearer...)
			var body io.Reader
			if c.body != "" {
				body = strings.NewReader(c.body)
			}
			res, err := g.server.Client().Do(g.request(c.method, "/birds/v1/nests", body, bearer...))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != c.status || asked.Load() != c.asked {
				t.Errorf("%d, asked %d times, want %d, %d", res.StatusCode, asked.Load(), c.status, c.asked)
			}
			g.used(2)
		})
	}
	// On a new connection nothing is sent twice.
	var connections, asked atomic.Int64
	g := rawRig(t, keeping(&connections, func(net.Conn, *http.Request, int) bool { asked.Add(1); return false }))
	if res, _ := g.do("GET", "/birds/v1/birds", bearer...); res.StatusCode != 502 || asked.Load() != 1 {
		t.Errorf("%d, asked %d times", res.StatusCode, asked.Load())
	}
}

// A connection that the upstream closed while it was idle harms no request, POST
// included.
func TestClosedWhileIdle(t *testing.T) {
	var connections atomic.Int64
	closed := make(chan bool, 1)
	to := raw(t, func(conn net.Conn, in *bufio.Reader) {
		keeping(&connections, func(conn net.Conn, r *http.Request, n int) bool {
			_, _ = io.WriteString(conn, ok)
			return false
		})(conn, in)
		conn.Close()
		closed <- true
	})
	g := newRig(t, http.NotFoundHandler(), func(c *gateway.Config) { c.Routes[0].Upstream = to })
	for range 5 {
		if res, body := g.do("POST", "/birds/v1/eggs", bearer...); res.StatusCode != 200 || body != "ok" {
			t.Errorf("%d %s", res.StatusCode, body)
		}
		<-closed
	}
}

// Bodies of any length and kind arrive unchanged in both directions, over both
// versions of HTTP.
func TestBodies(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		if r.URL.RawQuery == "sized" {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		}
		for len(body) > 0 {
			n := min(len(body), 1+rand.IntN(50000))
			_, _ = w.Write(body[:n])
			body = body[n:]
		}
	}))
	for _, client := range []*http.Client{g.server.Client(), overHTTP2(g)} {
		for _, length := range []int{0, 1, 4095, 16 << 10, 16<<10 + 1, 32 << 10, 100_000, 3_000_000} {
			sent := make([]byte, length)
			for i := range sent {
				sent[i] = byte(rand.Uint32())
			}
			for _, kind := range []string{"sized", "chunked"} {
				var body io.Reader = bytes.NewReader(sent)
				if kind == "chunked" {
					body = struct{ io.Reader }{body}
				}
				res, err := client.Do(g.request("PUT", "/birds/v1/eggs?"+kind, body, bearer...))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || !bytes.Equal(got, sent) {
					t.Errorf("%s, %d bytes %s: %d %d bytes came back, %v", res.Proto, length, kind, res.StatusCode, len(got), err)
				}
				if want := fmt.Sprint(length); kind == "sized" && res.Header.Get("X-Length") != want {
					t.Errorf("%s, %s: announced as %s", res.Proto, want, res.Header.Get("X-Length"))
				}
			}
		}
	}
}

// Trailers pass both ways, also where the gateway's own names are tried there.
func TestTrailers(t *testing.T) {
	upstream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Te") != "trailers" {
			t.Errorf("TE: %q", r.Header["Te"])
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Echo, X-None")
		fmt.Fprint(w, "body")
		w.Header().Set("X-Echo", r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "1")
		if len(r.Trailer) != 1 {
			t.Errorf("%s: trailers %v", r.Proto, r.Trailer)
		}
	})
	plain := newRig(t, upstream)
	secure := newRig(t, http.NotFoundHandler(), secureUpstream(t, upstream, true))
	for name, client := range map[string]struct {
		g      *rig
		client *http.Client
	}{
		"1 to 1": {plain, plain.server.Client()}, "2 to 1": {plain, overHTTP2(plain)},
		"1 to 2": {secure, secure.server.Client()}, "2 to 2": {secure, overHTTP2(secure)},
	} {
		for range 2 {
			r := client.g.request("PUT", "/birds/v1/eggs", struct{ io.Reader }{strings.NewReader("some")}, append(bearer, "Te", "trailers")...)
			r.Trailer = http.Header{"X-Sum": {"42"}, "X-Key-Id": {"forged"}}
			if strings.HasPrefix(name, "1") { // net/http takes no such trailer over HTTP/2
				r.Trailer["Authorization"] = []string{"forged"}
			}
			res, err := client.client.Do(r)
			if err != nil {
				t.Fatal(name, err)
			}
			body, err := io.ReadAll(res.Body)
			if string(body) != "body" || err != nil {
				t.Errorf("%s: %d %q, %v", name, res.StatusCode, body, err)
			}
			res.Body.Close()
			if res.Trailer.Get("X-Echo") != "42" || res.Trailer.Get("X-Late") != "1" || len(res.Trailer["X-None"]) != 0 {
				t.Errorf("%s: trailers %v", name, res.Trailer)
			}
		}
	}
}

// secureUpstream puts an upstream behind TLS, and maybe HTTP/2.
func secureUpstream(t testing.TB, h http.Handler, http2 bool) func(*gateway.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = http2
	s.StartTLS()
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(c *gateway.Config) {
		c.Routes[0].Upstream, c.UpstreamCA = s.URL, file
	}
}

// An upstream behind TLS is asked over HTTP/2 where it offers that, else over
// HTTP/1.1 on connections that are kept, and only when its certificate is right.
func TestSecureUpstream(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		var peers atomic.Int64
		last := ""
		g := newRig(t, http.NotFoundHandler(), secureUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.RemoteAddr != last {
				last = r.RemoteAddr
				peers.Add(1)
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprint(w, r.Proto, " ", r.Header.Get("X-Key-Owner"), " ", string(body))
		}), http2))
		want := "HTTP/1.1 org_1 some"
		if http2 {
			want = "HTTP/2.0 org_1 some"
		}
		for range 5 {
			res, err := g.server.Client().Do(g.request("POST", "/birds/v1/eggs", strings.NewReader("some"), bearer...))
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(res.Body); string(body) != want || err != nil {
				t.Errorf("%d %s, %v, want %s", res.StatusCode, body, err, want)
			}
			res.Body.Close()
		}
		if n := peers.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	}
	g := newRig(t, http.NotFoundHandler(), secureUpstream(t, http.NotFoundHandler(), false), func(c *gateway.Config) { c.UpstreamCA = "" })
	if res, _ := g.do("GET", "/birds/v1/birds", bearer...); res.StatusCode != 502 {
		t.Errorf("without trust: %d", res.StatusCode)
	}
}

// What an upstream says before its answer reaches the client before it.
func TestEarlyHints(t *testing.T) {
	proceed := make(chan bool)
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(http.StatusEarlyHints)
		<-proceed
		w.Header().Set("Link", "</b.css>")
		fmt.Fprint(w, "ok")
	}))
	for _, client := range []*http.Client{g.server.Client(), overHTTP2(g)} {
		var hints []string
		r := g.request("GET", "/birds/v1/birds", nil, bearer...)
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, h))
			proceed <- true
			return nil
		}}))
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(body) != "ok" || !slices.Equal(hints, []string{"103 map[Link:[</a.css>]]"}) || !slices.Equal(res.Header["Link"], []string{"</b.css>"}) || res.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s %q, hints %q, %v", res.Proto, body, hints, res.Header)
		}
	}
}

// A client that asks whether to send its body gets the upstream's answer.
func TestAskedFirst(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Expect") != "100-continue" {
			t.Errorf("Expect: %q", r.Header["Expect"])
		}
		if r.URL.RawQuery == "no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, len(body))
	}))
	ask := func(query string) (*bufio.Reader, net.Conn) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(g.server.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "PUT /birds/v1/eggs?%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", query, secret)
		return bufio.NewReader(conn), conn
	}
	in, conn := ask("yes")
	if line, err := in.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, _ = in.ReadString('\n')
	fmt.Fprint(conn, "hello")
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(res.Body); string(body) != "5" || res.StatusCode != 200 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	in, _ = ask("no")
	if res, err = http.ReadResponse(in, nil); err != nil || res.StatusCode != http.StatusExpectationFailed {
		t.Errorf("%v, %v", res, err)
	}
	// An upstream that has never heard of asking gets the body after a second.
	old := rawRig(t, func(conn net.Conn, in *bufio.Reader) {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	r := old.request("PUT", "/birds/v1/eggs", strings.NewReader("hello"), append(bearer, "Expect", "100-continue")...)
	if res, err = old.server.Client().Do(r); err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(res.Body); string(body) != "hello" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	res.Body.Close()
}

// An upstream that answers neither soon nor later is a 504, whether or not it
// takes the body, and its connection is dropped.
func TestUpstreamTooSlow(t *testing.T) {
	for name, body := range map[string]int64{"no body": 0, "a short body": 100, "a long body": 64 << 20} {
		for _, reads := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", reading ", reads), func(t *testing.T) {
				dropped, stop := make(chan bool), make(chan bool)
				g := rawRig(t, func(conn net.Conn, in *bufio.Reader) {
					if !reads {
						<-stop // the system takes some of it
					}
					_, _ = io.Copy(io.Discard, in)
					close(dropped)
				}, func(c *gateway.Config) { c.UpstreamTimeout = 200 * time.Millisecond })
				var r io.Reader
				if body > 0 {
					r = io.LimitReader(zeros{}, body)
				}
				request := g.request("PUT", "/birds/v1/eggs", r, bearer...)
				request.ContentLength = body
				res, err := g.server.Client().Do(request)
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				close(stop)
				<-dropped
				if u := g.used(1); res.StatusCode != 504 || status(u[0]) != 504 || *u[0].LatencyMS < 200 {
					t.Errorf("%d, %+v", res.StatusCode, u)
				}
			})
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A client that leaves while an answer streams, or before its body is sent,
// takes the upstream with it.
func TestClientLeavesLater(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		reached, left := make(chan bool), make(chan bool)
		g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "GET" {
				_ = http.NewResponseController(w).Flush()
			} else {
				_, _ = io.ReadFull(r.Body, make([]byte, 4))
				reached <- true
			}
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				<-r.Context().Done()
			}
			left <- true
		}))
		client := g.server.Client()
		if http2 {
			client = overHTTP2(g)
		}
		ctx, leave := context.WithCancel(t.Context())
		res, err := client.Do(g.request("GET", "/birds/v1/birds", nil, bearer...).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		leave()
		<-left
		res.Body.Close()
		pr, pw := io.Pipe()
		ctx, leave = context.WithCancel(t.Context())
		go func() {
			fmt.Fprint(pw, "some")
			<-reached
			leave()
			pw.CloseWithError(context.Canceled) // the client waits until it has stopped reading
		}()
		if _, err := client.Do(g.request("PUT", "/birds/v1/eggs", pr, bearer...).WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		<-left
		if err := g.gateway.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if u := g.used(2); status(u[0]) != 200 || status(u[1]) != 499 {
			t.Errorf("HTTP/2 %v: %d, %d", http2, status(u[0]), status(u[1]))
		}
	}
}

// A body that is not what it was said to be is not sent on as if it were whole.
func TestBrokenBody(t *testing.T) {
	whole := make(chan bool, 10)
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		whole <- err == nil
	}))
	for head, want := range map[string]string{
		"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n": "HTTP/1.1 400 Bad Request\r\n",
		"Content-Length: 100\r\n\r\nshort":                             "",
		"Content-Length: 100000\r\n\r\nshort":                          "",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(g.server.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "PUT /birds/v1/eggs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s", secret, head)
		_ = conn.(*net.TCPConn).CloseWrite()
		if line, _ := bufio.NewReader(conn).ReadString('\n'); line != want {
			t.Errorf("%q: %q", head, line)
		}
		conn.Close()
	}
	g.upstream.Close() // waits for its handlers
	close(whole)
	for w := range whole {
		if w {
			t.Error("a part of a body is taken for the whole")
		}
	}
}

// Nobody gets a connection to the upstream's other protocols of requests.
func TestNoTunnel(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header["Upgrade"], r.Header["Connection"], r.Header["Http2-Settings"])
	}))
	for _, protocol := range []string{"h2c", "websocket, h2c", "HTTP/2.0", "TLS/1.0"} {
		if res, body := g.do("GET", "/birds/v1/birds", append(bearer, "Connection", "Upgrade, HTTP2-Settings", "Upgrade", protocol, "Http2-Settings", "AAMAAABkAAQAAP__")...); res.StatusCode != 200 || body != "[] [] []" {
			t.Errorf("%s: %d %s", protocol, res.StatusCode, body)
		}
	}
}

// A WebSocket as RFC 6455 has it: the handshake, and masked and plain frames.
func TestWebSocket(t *testing.T) {
	accept := func(key string) string {
		sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		return base64.StdEncoding.EncodeToString(sum[:])
	}
	read := func(in io.Reader) (string, error) {
		var head [2]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return "", err
		}
		length, mask := int(head[1]&0x7f), [4]byte{}
		if length == 126 {
			var long [2]byte
			if _, err := io.ReadFull(in, long[:]); err != nil {
				return "", err
			}
			length = int(binary.BigEndian.Uint16(long[:]))
		}
		if head[1]&0x80 != 0 {
			if _, err := io.ReadFull(in, mask[:]); err != nil {
				return "", err
			}
		}
		text := make([]byte, length)
		_, err := io.ReadFull(in, text)
		for i := range text {
			text[i] ^= mask[i%4]
		}
		return string(text), err
	}
	frame := func(text string, masked byte) []byte {
		b := binary.BigEndian.AppendUint16([]byte{0x81, 126 | masked}, uint16(len(text)))
		if masked == 0 {
			return append(b, text...)
		}
		b = append(b, 1, 2, 3, 4)
		for i := range len(text) {
			b = append(b, text[i]^byte(i%4+1))
		}
		return b
	}
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept(r.Header.Get("Sec-WebSocket-Key")))
		_, _ = rw.Write(frame("hello "+r.Header.Get("X-Key-Owner"), 0))
		rw.Flush()
		for {
			text, err := read(rw)
			if err != nil {
				return
			}
			_, _ = rw.Write(frame(strings.ToUpper(text), 0))
			rw.Flush()
		}
	}))
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /birds/v1/birds/live HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", secret)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatal(res, err)
	}
	if text, err := read(in); text != "hello org_1" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	for _, text := range []string{"short", strings.Repeat("long", 5000)} {
		if _, err := conn.Write(frame(text, 0x80)); err != nil {
			t.Fatal(err)
		}
		if back, err := read(in); back != strings.ToUpper(text) || err != nil {
			t.Errorf("%d bytes came back, %v", len(back), err)
		}
	}
	if u := g.used(1); status(u[0]) != 101 {
		t.Errorf("%+v", u)
	}
}

// After Shutdown, and when its route is gone, no connection to an upstream is
// left open.
func TestIdleClosed(t *testing.T) {
	for name, end := range map[string]func(*rig) error{
		"shutdown": func(g *rig) error { return g.gateway.Shutdown(g.t.Context()) },
		"no route": func(g *rig) error { return g.gateway.SetRoutes(nil) },
	} {
		closed := make(chan bool)
		var connections atomic.Int64
		g := rawRig(t, func(conn net.Conn, in *bufio.Reader) {
			keeping(&connections, func(conn net.Conn, r *http.Request, n int) bool {
				_, _ = io.WriteString(conn, ok)
				return true
			})(conn, in)
			closed <- true
		})
		g.do("GET", "/birds/v1/birds", bearer...)
		if err := end(g); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		<-closed
	}
}

// A query is one word on the upstream's request line, whatever HTTP/2 carried.
func TestOddQuery(t *testing.T) {
	var arrived atomic.Pointer[string]
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { arrived.Store(new(r.RequestURI)) }))
	r := g.request("GET", "/birds/v1/birds", nil, bearer...)
	r.URL.RawQuery = "a=1 HTTP/1.1"
	res, err := overHTTP2(g).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if uri := arrived.Load(); uri == nil || *uri != "/v1/birds?a=1%20HTTP/1.1" {
		t.Errorf("%d, %v", res.StatusCode, uri)
	}
}

// A client that stops in the middle of a body is told so, and the use is recorded
// with what it was told.
func TestStalledBody(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	server := front.New(front.Config{BodyTimeout: 100 * time.Millisecond}, g.gateway, nil, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer server.Drain(t.Context())
	for _, length := range []int{100, 100_000} { // read whole before the upstream is asked; streamed
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "PUT /birds/v1/eggs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\nshort", secret, length)
		if line, _ := bufio.NewReader(conn).ReadString('\n'); line != "HTTP/1.1 408 Request Timeout\r\n" {
			t.Errorf("after %d bytes: %q", length, line)
		}
		conn.Close()
	}
	for _, u := range g.used(2) {
		if status(u) != http.StatusRequestTimeout {
			t.Errorf("recorded as %d", status(u))
		}
	}
}
