package front_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyledger/keyledger/gateway/front"
	"github.com/keyledger/keyledger/internal/testenv"
)

// stage is a server with a plain and a TLS listener.
type stage struct {
	t            *testing.T
	server       *front.Server
	certificates *front.Certificates
	plain, tls   string // addresses
	roots        *x509.CertPool
	dir          string
}

func start(t *testing.T, c front.Config, h http.Handler) *stage {
	t.Helper()
	s := &stage{t: t, dir: t.TempDir(), roots: x509.NewCertPool()}
	for _, name := range []string{"a.example", "b.example"} {
		s.roots.AddCert(testenv.Certificate(t, s.file(name+".pem"), s.file(name+".key"), name))
		c.TLS.Certificates = append(c.TLS.Certificates, front.Pair{Cert: s.file(name + ".pem"), Key: s.file(name + ".key")})
	}
	var err error
	if s.certificates, err = front.LoadCertificates(c.TLS.Certificates, nil); err != nil {
		t.Fatal(err)
	}
	s.server = front.New(c, h, s.certificates, slog.New(slog.DiscardHandler))
	s.plain = s.listen(s.server.Serve)
	s.tls = s.listen(s.server.ServeTLS)
	t.Cleanup(func() {
		ctx, stop := context.WithCancel(context.Background())
		stop()
		s.server.Drain(ctx)
	})
	return s
}

func (s *stage) file(name string) string { return filepath.Join(s.dir, name) }

func (s *stage) listen(serve func(net.Listener) error) string {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serve(l) }()
	s.t.Cleanup(func() {
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	return l.Addr().String()
}

// client speaks to the TLS listener under any host name, or (where plain) to the
// other one, in the given versions of HTTP.
func (s *stage) client(versions ...func(*http.Protocols, bool)) *http.Client {
	p := new(http.Protocols)
	for _, v := range versions {
		v(p, true)
	}
	transport := &http.Transport{
		Protocols:       p,
		TLSClientConfig: &tls.Config{RootCAs: s.roots},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := s.tls
			if strings.HasSuffix(addr, ":80") {
				to = s.plain
			}
			return new(net.Dialer).DialContext(ctx, network, to)
		},
	}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

var (
	http1 = (*http.Protocols).SetHTTP1
	http2 = (*http.Protocols).SetHTTP2
	h2c   = (*http.Protocols).SetUnencryptedHTTP2
)

func (s *stage) get(c *http.Client, url string) (*http.Response, string) {
	s.t.Helper()
	res, err := c.Get(url)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res, string(b)
}

var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	fmt.Fprintf(w, "%s tls=%t body=%d err=%v", r.Proto, r.TLS != nil, n, err)
})

// Over TLS the client chooses the version of HTTP; without, HTTP/2 is spoken
// where it is asked for.
func TestVersions(t *testing.T) {
	s := start(t, front.Config{H2C: true}, echo)
	for _, c := range []struct {
		client *http.Client
		url    string
		want   string
	}{
		{s.client(http1), "https://a.example/", "HTTP/1.1 tls=true"},
		{s.client(http1, http2), "https://a.example/", "HTTP/2.0 tls=true"},
		{s.client(http1), "http://a.example/", "HTTP/1.1 tls=false"},
		{s.client(h2c), "http://a.example/", "HTTP/2.0 tls=false"},
	} {
		if _, body := s.get(c.client, c.url); !strings.HasPrefix(body, c.want) {
			t.Errorf("%s: %q, want %q", c.url, body, c.want)
		}
	}
	s = start(t, front.Config{}, echo)
	if res, err := s.client(h2c).Get("http://a.example/"); err == nil {
		res.Body.Close()
		t.Error("HTTP/2 without TLS was not asked for")
	}
}

// TLS 1.1 is not spoken; 1.3 alone where asked for.
func TestVersionsOfTLS(t *testing.T) {
	for _, c := range []struct {
		min   string
		most  uint16
		works bool
	}{{"", tls.VersionTLS11, false}, {"", tls.VersionTLS12, true}, {"1.3", tls.VersionTLS12, false}, {"1.3", tls.VersionTLS13, true}} {
		s := start(t, front.Config{TLS: front.TLS{MinVersion: c.min}}, echo)
		conn, err := tls.Dial("tcp", s.tls, &tls.Config{RootCAs: s.roots, ServerName: "a.example", MinVersion: tls.VersionTLS10, MaxVersion: c.most})
		if (err == nil) != c.works {
			t.Errorf("at least %q, client up to %x: %v", c.min, c.most, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

func (s *stage) shown(name string) *x509.Certificate {
	s.t.Helper()
	conn, err := tls.Dial("tcp", s.tls, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// Each name has its certificate; who asks for none, or for an unknown one, gets
// the first.
func TestSeveralCertificates(t *testing.T) {
	s := start(t, front.Config{}, echo)
	for asked, want := range map[string]string{"a.example": "a.example", "b.example": "b.example", "B.Example": "b.example", "": "a.example", "c.example": "a.example"} {
		if got := s.shown(asked).DNSNames[0]; got != want {
			t.Errorf("asked for %q: %s, want %s", asked, got, want)
		}
	}
}

// A changed certificate is used by the next connection, and those that are open go
// on. A broken one is not, and State says why, until the files are well again.
func TestReload(t *testing.T) {
	s := start(t, front.Config{}, echo)
	open := s.client(http1)
	s.get(open, "https://b.example/")
	first := s.shown("b.example")

	second := testenv.Certificate(t, s.file("b.example.pem"), s.file("b.example.key"), "b.example")
	s.certificates.Reload()
	if got := s.shown("b.example"); !got.Equal(second) {
		t.Errorf("after the change: serial %v, want %v", got.SerialNumber, second.SerialNumber)
	}
	if res, _ := s.get(open, "https://b.example/"); !res.TLS.PeerCertificates[0].Equal(first) {
		t.Error("an open connection was ended")
	}

	good, err := os.ReadFile(s.file("b.example.pem"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(s.file("a.example.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, broken := range map[string][]byte{"cut off": good[:len(good)/2], "no certificate": []byte("nonsense"), "of another key": other, "gone": nil} {
		if broken == nil {
			err = os.Remove(s.file("b.example.pem"))
		} else {
			err = os.WriteFile(s.file("b.example.pem"), broken, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			s.certificates.Reload()
			if state := s.certificates.State()[1]; state.Err == nil || !strings.Contains(state.Err.Error(), "b.example.pem") || !state.NotAfter.Equal(second.NotAfter) {
				t.Errorf("%s: state %+v", name, state)
			}
			if !s.shown("b.example").Equal(second) || s.certificates.State()[0].Err != nil {
				t.Errorf("%s: the one before is not in use any more", name)
			}
		}
		if err := os.WriteFile(s.file("b.example.pem"), good, 0o600); err != nil {
			t.Fatal(err)
		}
		s.certificates.Reload()
		if state := s.certificates.State()[1]; state.Err != nil {
			t.Errorf("well again after %s: %v", name, state.Err)
		}
	}

	if _, err := front.LoadCertificates([]front.Pair{{Cert: s.file("a.example.pem"), Key: s.file("b.example.key")}, {Cert: "none.pem", Key: "none.key"}}, nil); err == nil ||
		!strings.Contains(err.Error(), "tls.certificates[0]") || !strings.Contains(err.Error(), "tls.certificates[1]") {
		t.Errorf("broken at the start: %v", err)
	}
}

// A client that does not finish its header, or its handshake, is let go.
func TestSlowHeader(t *testing.T) {
	s := start(t, front.Config{HeaderTimeout: 50 * time.Millisecond, IdleTimeout: 50 * time.Millisecond}, echo)
	for name, c := range map[string]struct{ addr, sent string }{
		"half a header":        {s.plain, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow"},
		"half a handshake":     {s.tls, "\x16\x03\x01"},
		"nothing":              {s.plain, ""},
		"idle after a request": {s.plain, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
	} {
		conn, err := net.Dial("tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, c.sent); err != nil {
			t.Fatal(err)
		}
		// The server ends the connection; the test's own deadline would otherwise.
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
}

// A header that is too long is answered with 431, in both versions.
func TestLongHeader(t *testing.T) {
	s := start(t, front.Config{MaxHeaderBytes: 8 << 10}, echo)
	for _, client := range []*http.Client{s.client(http1), s.client(http1, http2)} {
		for _, size := range []int{4 << 10, 14 << 10} {
			want := 200
			if size > 8<<10 {
				want = 431
			}
			r, err := http.NewRequestWithContext(t.Context(), "GET", "https://a.example/", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", strings.Repeat("a", size))
			res, err := client.Do(r)
			if err != nil {
				// A client does not send what the server said it will not take, and
				// the server may end the connection of one that does.
				if want == 431 && (strings.Contains(err.Error(), "header list larger than") || strings.Contains(err.Error(), "GOAWAY")) {
					continue
				}
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%s with %d bytes: %d, want %d", res.Proto, size, res.StatusCode, want)
			}
		}
	}
}

// A client that pauses in a body is let go; one that is merely slow is not, and
// its connection serves the next request.
func TestSlowBody(t *testing.T) {
	s := start(t, front.Config{BodyTimeout: 200 * time.Millisecond}, echo)
	for _, client := range []*http.Client{s.client(http1), s.client(http1, http2)} {
		stalled, w := io.Pipe()
		go func() { fmt.Fprint(w, "abc") }()
		res, err := client.Post("https://a.example/", "text/plain", stalled)
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if !strings.Contains(string(body), "body=3 err="+front.ErrBodyStalled.Error()) {
			t.Errorf("%s, stalled: %s", res.Proto, body)
		}
		for range 2 {
			res, err = client.Post("https://a.example/", "text/plain", strings.NewReader("abcdef"))
			if err != nil {
				t.Fatal(err)
			}
			body, _ = io.ReadAll(res.Body)
			res.Body.Close()
			if !strings.Contains(string(body), "body=6 err=<nil>") {
				t.Errorf("%s: %s", res.Proto, body)
			}
		}
	}
}

// Draining takes no new connection, finishes what is under way in both versions,
// and ends when that has ended.
func TestDrain(t *testing.T) {
	arrived, proceed := make(chan struct{}), make(chan struct{})
	s := start(t, front.Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "begun")
		_ = http.NewResponseController(w).Flush()
		arrived <- struct{}{}
		<-proceed
		fmt.Fprint(w, " and ended")
	}))
	answers := make(chan string, 2)
	for i, client := range []*http.Client{s.client(http1), s.client(http1, http2)} {
		go func() {
			res, err := client.Get("https://a.example/")
			if err != nil {
				answers <- err.Error()
				return
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if res.ProtoMajor != i+1 {
				t.Error("spoken:", res.Proto)
			}
			answers <- fmt.Sprint(string(b), err)
		}()
	}
	<-arrived
	<-arrived
	drained := make(chan struct{})
	go func() {
		s.server.Drain(t.Context())
		close(drained)
	}()
	for { // nothing signals that the listener is closed
		conn, err := net.Dial("tcp", s.tls)
		if err != nil {
			break
		}
		conn.Close()
	}
	select {
	case <-drained:
		t.Fatal("it did not wait for what is under way")
	default:
	}
	close(proceed)
	for range 2 {
		if a := <-answers; a != "begun and ended<nil>" {
			t.Error(a)
		}
	}
	<-drained
}

// What is left when the drain's time is over is closed: requests that never end,
// and upgraded connections, in plain and over TLS.
func TestDrainLimit(t *testing.T) {
	begun, left := make(chan struct{}), atomic.Int64{}
	gone := make(chan struct{}, 3)
	s := start(t, front.Config{DrainTimeout: 50 * time.Millisecond}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { left.Add(1); gone <- struct{}{} }()
		if r.URL.Path == "/hangs" {
			begun <- struct{}{}
			<-r.Context().Done()
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		rw.Flush()
		begun <- struct{}{}
		_, _ = io.Copy(io.Discard, conn)
	}))
	plain, err := net.Dial("tcp", s.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	secure, err := tls.Dial("tcp", s.tls, &tls.Config{RootCAs: s.roots, ServerName: "a.example"})
	if err != nil {
		t.Fatal(err)
	}
	defer secure.Close()
	hanging, err := net.Dial("tcp", s.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	for _, conn := range []net.Conn{plain, secure} {
		fmt.Fprint(conn, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		<-begun
		if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(line, "101") {
			t.Fatal(line, err)
		}
	}
	fmt.Fprint(hanging, "GET /hangs HTTP/1.1\r\nHost: x\r\n\r\n")
	<-begun
	s.server.Drain(t.Context())
	for range 3 {
		<-gone
	}
	for name, conn := range map[string]net.Conn{"plain": plain, "TLS": secure, "hanging": hanging} {
		if b, err := io.ReadAll(conn); err == nil && len(b) > 0 {
			t.Errorf("%s: %q", name, b)
		}
	}
	if left.Load() != 3 {
		t.Errorf("%d handlers have ended, want 3", left.Load())
	}
}

// Everything that is wrong is said at once.
func TestValidate(t *testing.T) {
	c := front.Config{TLS: front.TLS{Listen: ":443", MinVersion: "1.0"}, HeaderTimeout: -1, MaxHeaderBytes: 100}
	err := c.Validate()
	for _, part := range []string{"tls.certificates", "tls.min_version", "header_timeout", "max_header_bytes"} {
		if err == nil || !strings.Contains(err.Error(), part+":") {
			t.Errorf("nothing about %s in %v", part, err)
		}
	}
	c = front.Config{TLS: front.TLS{Certificates: []front.Pair{{Cert: "a.pem"}}}}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "tls.listen:") || !strings.Contains(err.Error(), "tls.certificates[0]:") {
		t.Error(err)
	}
	if err := new(front.Config).Validate(); err != nil {
		t.Error(err)
	}
}
