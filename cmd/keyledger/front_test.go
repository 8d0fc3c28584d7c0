package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

const birdSecret = "bd_live_0123456789abcdefABCDEFxyzXYZ0000"

// realGateway is the program as `keyledger gateway`, in a process of its own,
// behind the ledger of a test.
type realGateway struct {
	*verifytest.World
	*testenv.Process
	t                     *testing.T
	plain, secure, health string // addresses
	certFile, keyFile     string
	roots                 *x509.CertPool
}

func startGateway(t *testing.T, upstream http.Handler, more string) *realGateway {
	t.Helper()
	g := &realGateway{World: verifytest.New(t, verify.Options{}, testenv.Listening()), t: t, roots: x509.NewCertPool()}
	g.Configure(verifytest.Birds)
	g.Key("birds", "org_1", birdSecret, events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"birds:read"}})
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	g.certFile, g.keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	g.renew()
	master := write(t, filepath.Join(dir, "master"), "01"+strings.Repeat("00", 31))
	g.plain, g.secure, g.health = testenv.FreeAddress(t), testenv.FreeAddress(t), testenv.FreeAddress(t)
	config := write(t, filepath.Join(dir, "gateway.yaml"), fmt.Sprintf(`
listen: %s
health_listen: %s
tls:
  listen: %s
  certificates: [{cert: %s, key: %s}]
node: front
state_dir: %s
master_key_file: %s
nats: {url: "%s", allow_unverified_sync: true}
routes: [{keyspace: birds, upstream: "%s"}]
%s
`, g.plain, g.health, g.secure, g.certFile, g.keyFile, filepath.Join(dir, "state"), master, g.NATS.ClientURL(), server.URL, more))
	g.Process = testenv.Start(t, nil, testenv.Build(t), "gateway", "--config", config)
	g.WaitOutput("serving the gateway", 30*time.Second)
	return g
}

// renew writes another certificate.
func (g *realGateway) renew() *x509.Certificate {
	g.t.Helper()
	c := testenv.Certificate(g.t, g.certFile, g.keyFile, "api.example")
	g.roots.AddCert(c)
	return c
}

// client speaks HTTP/1.1 or, where two, HTTP/2 over TLS.
func (g *realGateway) client(two bool) *http.Client {
	versions := new(http.Protocols)
	versions.SetHTTP1(true)
	versions.SetHTTP2(two)
	transport := &http.Transport{
		Protocols: versions, TLSClientConfig: &tls.Config{RootCAs: g.roots},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := g.secure
			if strings.HasSuffix(addr, ":80") {
				to = g.plain
			}
			return new(net.Dialer).DialContext(ctx, network, to)
		},
	}
	g.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (g *realGateway) request(url string) *http.Request {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), "GET", url, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+birdSecret)
	return r
}

// asked is what the gateway's health listener answers.
func (g *realGateway) asked(path string) (int, string) {
	g.t.Helper()
	res, err := http.Get("http://" + g.health + path)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func (g *realGateway) shown() *x509.Certificate {
	g.t.Helper()
	conn, err := tls.Dial("tcp", g.secure, &tls.Config{RootCAs: g.roots, ServerName: "api.example"})
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// A new certificate is used after SIGHUP, or a few seconds later without; a broken
// one is said where operators look, and the one before it stays.
func TestGatewayReloadsCertificates(t *testing.T) {
	g := startGateway(t, http.NotFoundHandler(), "")
	second := g.renew()
	g.Signal(syscall.SIGHUP)
	g.WaitOutput("a certificate was read again", 20*time.Second)
	if !g.shown().Equal(second) {
		t.Error("the certificate from before is still shown after SIGHUP")
	}
	if status, body := g.asked("/readyz"); status != 200 || !strings.Contains(body, `"certificates":{"ok":true}`) {
		t.Errorf("%d %s", status, body)
	}

	write(t, g.certFile, "nonsense")
	g.WaitOutput("the new certificate cannot be used", 20*time.Second) // without a signal
	if !g.shown().Equal(second) {
		t.Error("the certificate from before is not shown any more")
	}
	if status, body := g.asked("/readyz"); status != 200 || !strings.Contains(body, `"certificates":{"ok":true,"detail":"what is in the files now is not in use`) {
		t.Errorf("%d %s", status, body)
	}
	if _, body := g.asked("/metrics"); !strings.Contains(body, fmt.Sprintf("keyledger_tls_certificate_refused{cert=%q} 1", g.certFile)) ||
		!strings.Contains(body, fmt.Sprintf("keyledger_tls_certificate_not_after_seconds{cert=%q} %v", g.certFile, float64(second.NotAfter.Unix()))) {
		t.Errorf("no word about the certificate in\n%s", body)
	}

	third := g.renew()
	g.Signal(syscall.SIGHUP)
	for deadline := time.Now().Add(20 * time.Second); !g.shown().Equal(third); { // the line it logs is there already, from before
		if time.Now().After(deadline) {
			t.Fatal("the third certificate is not shown")
		}
	}
	if err := g.Interrupt(30 * time.Second); err != nil {
		t.Error(err)
	}
}

// SIGTERM in the middle: what is under way is answered, in every version of HTTP;
// nothing more is taken; readyz says so; a WebSocket is closed when the drain's
// time is over; and every request that was answered is recorded.
func TestGatewayDrains(t *testing.T) {
	arrived, proceed := make(chan struct{}), make(chan struct{})
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/birds/stream":
			fmt.Fprint(w, "begun")
			_ = http.NewResponseController(w).Flush()
			arrived <- struct{}{}
			<-proceed
			fmt.Fprint(w, " and ended")
		case "/v1/birds/slow":
			arrived <- struct{}{}
			<-proceed
			fmt.Fprint(w, "slow")
		case "/v1/birds/live":
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			rw.Flush()
			_, _ = io.Copy(io.Discard, conn)
		}
	}), "drain_timeout: 3s")

	type answer struct {
		what, body string
		err        error
	}
	answers := make(chan answer, 4)
	for _, two := range []bool{false, true} {
		client := g.client(two)
		res, err := client.Do(g.request("https://api.example/v1/birds/warm")) // so that a connection is open
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		for _, path := range []string{"stream", "slow"} {
			go func() {
				res, err := client.Do(g.request("https://api.example/v1/birds/" + path))
				if err != nil {
					answers <- answer{path, "", err}
					return
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				answers <- answer{fmt.Sprint(path, " over ", res.Proto), string(body), err}
			}()
			<-arrived
		}
	}
	socket, err := net.Dial("tcp", g.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	fmt.Fprintf(socket, "GET /v1/birds/live HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", birdSecret)
	in := bufio.NewReader(socket)
	if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}

	g.Signal(syscall.SIGTERM)
	for { // nothing signals that the listeners are closed
		conn, err := net.Dial("tcp", g.secure)
		if err != nil {
			break
		}
		conn.Close()
	}
	if status, body := g.asked("/readyz"); status != 503 || !strings.Contains(body, `"serving":{"ok":false`) || !strings.Contains(body, `"ready":false`) {
		t.Errorf("while draining: %d %s", status, body)
	}
	close(proceed)
	for range 4 {
		a := <-answers
		if want := map[bool]string{true: "begun and ended", false: "slow"}[strings.HasPrefix(a.what, "stream")]; a.body != want || a.err != nil {
			t.Errorf("%s: %q, %v", a.what, a.body, a.err)
		}
	}
	if rest, _ := io.ReadAll(in); len(rest) > 0 {
		t.Errorf("the WebSocket got %q", rest)
	}
	if err := g.Wait(40 * time.Second); err != nil {
		t.Error(err)
	}
	if !strings.Contains(g.Output(), "upgraded connections are closed") {
		t.Error("nothing is said of the WebSocket that was cut")
	}
	got := map[string]int{}
	for _, u := range verifytest.RecordedAs[events.KeyUsed](g.World) {
		if u.Status == nil || u.Node != "front" {
			t.Errorf("%+v", u)
			continue
		}
		got[fmt.Sprint(u.Endpoint, *u.Status)]++
	}
	for what, n := range map[string]int{"/v1/birds/warm200": 2, "/v1/birds/stream200": 2, "/v1/birds/slow200": 2, "/v1/birds/live101": 1} {
		if got[what] != n {
			t.Errorf("%s is recorded %d times, want %d: %v", what, got[what], n, got)
		}
	}
}

// Under load from several clients, SIGTERM loses nothing: as many uses are
// recorded as requests were answered.
func TestGatewayRecordsAllItAnswered(t *testing.T) {
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}), "")
	enough := make(chan struct{})
	var mu sync.Mutex
	answered, unanswered := 0, 0
	var wg sync.WaitGroup
	for i := range 8 {
		client := g.client(i%2 == 0)
		url := []string{"https", "http"}[i/4] + "://api.example/v1/birds"
		wg.Go(func() {
			for {
				res, err := client.Do(g.request(url))
				mu.Lock()
				if err != nil {
					unanswered++
					mu.Unlock()
					return
				}
				if answered++; answered == 500 {
					close(enough)
				}
				mu.Unlock()
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
	<-enough
	g.Signal(syscall.SIGTERM)
	wg.Wait()
	if err := g.Wait(40 * time.Second); err != nil {
		t.Error(err)
	}
	recorded := len(verifytest.RecordedAs[events.KeyUsed](g.World))
	// What was recorded and not answered is a connection that was cut in between.
	if recorded < answered || recorded > answered+unanswered {
		t.Errorf("%d uses are recorded of %d answered requests (%d were not)", recorded, answered, unanswered)
	}
}

// Broken certificates are said before anything is started.
func TestBrokenCertificateAtStart(t *testing.T) {
	dir := t.TempDir()
	cert := write(t, filepath.Join(dir, "cert.pem"), "nonsense")
	master := write(t, filepath.Join(dir, "master"), "01"+strings.Repeat("00", 31))
	config := write(t, filepath.Join(dir, "gateway.yaml"), fmt.Sprintf(`
tls: {listen: "127.0.0.1:0", certificates: [{cert: %s, key: %s}]}
state_dir: %s
master_key_file: %s
nats: {url: "%s"}
routes: [{keyspace: birds, upstream: "http://127.0.0.1:1"}]
`, cert, filepath.Join(dir, "none.pem"), filepath.Join(dir, "state"), master, testenv.NATS(t, testenv.Listening()).ClientURL()))
	contains(t, "stderr", invoke(t, "", "gateway", "--config", config).want(t, exitFailed).stderr, "tls.certificates[0]")
	if err := os.WriteFile(config, []byte("tls: {listen: \":443\"}\nmaster_key_file: m\nnats: {url: nats://n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, "stderr", invoke(t, "", "gateway", "--config", config).want(t, exitFailed).stderr, "tls.certificates: there is none")
}
