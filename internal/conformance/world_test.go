package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/demo"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/internal/testenv/check"
	"github.com/keyledger/keyledger/keyspaces"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/queries"
	"github.com/keyledger/keyledger/verify"
)

// What a node is like that a request is sent to. Most are well; the two others
// show the two codes that are not about the key.
const (
	well  = ""
	stale = "lost the stream"
	mute  = "cannot record"
)

// world is the whole product: NATS, PostgreSQL, the API, and a gateway that
// listens with and without TLS in front of the demo upstream.
type world struct {
	t        testing.TB
	clock    atomic.Int64 // Unix milliseconds; it moves when a test says so
	root     string
	ledger   *ledger.Ledger
	recorder *verify.Recorder
	api      map[string]http.Handler // by what the node is like
	plain    map[string]string       // addresses of the gateway's listeners, likewise
	secure   map[string]string
	clients  map[string]*http.Client

	runs     int                // of scripts, which gives each an owner of its own
	imported map[string]*script // the pages' example keys, which can be imported once only

	mu      sync.Mutex // guards secrets and log
	secrets []string
	log     bytes.Buffer
}

func (w *world) now() time.Time { return time.UnixMilli(w.clock.Load()).UTC() }

func (w *world) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

// answered remembers a secret, so that it is looked for where it may not be.
func (w *world) answered(secret string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.secrets = append(w.secrets, secret)
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// newWorld starts everything once. The clock of commands, verification and reads
// stands at noon of a day long ago until a script moves it.
func newWorld(t testing.TB, routes []gateway.Route) *world {
	w := &world{t: t, api: map[string]http.Handler{}, plain: map[string]string{}, secure: map[string]string{}, clients: map[string]*http.Client{}, imported: map[string]*script{}}
	w.clock.Store(time.Date(2001, 1, 8, 12, 0, 0, 0, time.UTC).UnixMilli())
	log := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))

	nc := testenv.Conn(t, testenv.NATS(t))
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true, Log: log})
	w.ok(err)
	w.ledger = l
	t.Cleanup(func() { _ = l.Close() })
	js, err := jetstream.New(nc)
	w.ok(err)
	sealed, err := seal.Open(t.Context(), js, seal.Master{1}, 1)
	w.ok(err)
	t.Cleanup(sealed.Close)
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	w.ok(err)
	t.Cleanup(pool.Close)
	_, err = migrations.Up(t.Context(), pool)
	w.ok(err)
	ring, runner := keyring.New(), projections.New(l, pool, log, projections.Addresses{Keys: sealed})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := ring.Run(ctx, l); err != nil && !errors.Is(err, context.Canceled) {
			t.Error("keyring:", err)
		}
	})
	running.Go(func() { runner.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	<-ring.Ready()

	newRecorder := func(node string) *verify.Recorder {
		r := verify.NewRecorder(l, sealed, node, verify.RecorderOptions{Log: log})
		t.Cleanup(func() {
			ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
			defer stop()
			_ = r.Close(ctx)
		})
		return r
	}
	newVerifier := func(r *verify.Recorder, o verify.Options) *verify.Verifier {
		o.Now = w.now
		v := verify.New(ring, r, o)
		t.Cleanup(v.Close)
		return v
	}
	w.recorder = newRecorder("test")
	closed := newRecorder("closed")
	w.ok(closed.Close(t.Context()))
	head := func(ctx context.Context) (uint64, error) { return l.Head(ctx, events.Ledger) }
	nodes := map[string]struct {
		verifier *verify.Verifier
		recorder *verify.Recorder
	}{
		well:  {newVerifier(w.recorder, verify.Options{Head: head}), w.recorder},
		stale: {newVerifier(w.recorder, verify.Options{StaleWindow: time.Nanosecond, Head: func(context.Context) (uint64, error) { return 0, errors.New("not reachable") }}), w.recorder},
		mute:  {newVerifier(closed, verify.Options{Head: head}), closed},
	}

	// The upstream answers as the request asks, for what depends on its answer.
	echo := demo.Handler()
	upstream := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if cost := r.Header.Get("X-Upstream-Cost"); cost != "" {
			rw.Header().Set("X-Usage-Cost-Micros", cost)
		}
		if status, err := strconv.Atoi(r.Header.Get("X-Upstream-Status")); err == nil {
			rw.WriteHeader(status)
		}
		echo.ServeHTTP(rw, r)
	}))
	t.Cleanup(upstream.Close)
	for i := range routes {
		routes[i].Upstream = upstream.URL
	}
	cmds := &commands.Commands{Ledger: l, Ring: ring, Now: w.now}
	for name, node := range nodes {
		config := gateway.Config{Routes: routes, TrustedProxies: []string{"127.0.0.1"}}
		if name == mute {
			config.Audit, config.AuditTimeout = gateway.AuditStrict, 50*time.Millisecond
		}
		durable, err := config.DurableTime()
		w.ok(err)
		g, err := gateway.New(config, node.verifier, node.recorder, log)
		w.ok(err)
		plain, secure := httptest.NewServer(g), httptest.NewTLSServer(g)
		t.Cleanup(plain.Close)
		t.Cleanup(secure.Close)
		w.plain[name], w.secure[name] = plain.Listener.Addr().String(), secure.Listener.Addr().String()
		w.clients[name] = newClient(w.plain[name], w.secure[name])
		t.Cleanup(w.clients[name].CloseIdleConnections)
		w.api[name] = api.New(api.Deps{
			Commands: cmds, Ring: ring, Ledger: l, Verifier: node.verifier, Recorder: node.recorder, DurableTime: durable,
			Seal: sealed, Queries: queries.New(pool), Runner: runner, Version: "test", Log: log, Now: w.now,
		})
	}
	// Registered last, so that it comes first: it needs everything.
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if err := w.recorder.Flush(ctx); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		log := w.log.String()
		w.mu.Unlock()
		check.Ledger(t, check.Subject{Conn: nc, Pool: pool, Master: &seal.Master{1}, Secrets: w.secrets, Log: log})
	})

	made, err := cmds.CreateRootKey(t.Context(), commands.Request{Authority: domain.System("test"), Via: "test"}, domain.CreateKey{Name: "first", Role: domain.Operator})
	w.ok(err)
	w.root = made.Secret
	w.answered(w.root)
	for _, doc := range keyspaces.All() {
		if a := w.call(http.MethodPut, "/v1/keyspaces/"+doc.Name, w.root, string(doc.Source), "Content-Type", "application/yaml"); a.status != 200 {
			t.Fatalf("keyspace %s: %d %s", doc.Name, a.status, a.body)
		}
	}
	return w
}

// anyCertificate believes the listeners of this process.
var anyCertificate = &tls.Config{InsecureSkipVerify: true}

// newClient goes to these listeners, whatever host a request names.
func newClient(plain, secure string) *http.Client {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasSuffix(address, ":443") {
			return new(net.Dialer).DialContext(ctx, network, secure)
		}
		return new(net.Dialer).DialContext(ctx, network, plain)
	}
	return &http.Client{
		Transport:     &http.Transport{DialContext: dial, TLSClientConfig: anyCertificate, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// answer is what came back from the API or the gateway.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// call asks the management API. header is name, value, name, value, …
func (w *world) call(method, path, credential, body string, header ...string) answer {
	w.t.Helper()
	return w.callAt(well, method, path, credential, body, header...)
}

func (w *world) callAt(node, method, path, credential, body string, header ...string) answer {
	w.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body)).WithContext(w.t.Context())
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if credential != "" {
		r.Header.Set("Authorization", "Bearer "+credential)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.api[node].ServeHTTP(rec, r)
	return answer{rec.Code, rec.Header(), rec.Body.Bytes()}
}

// settle waits until what was done is on disk and in the read models, and
// answers the heads of LEDGER and USAGE.
func (w *world) settle() (facts, uses string) {
	w.t.Helper()
	w.ok(w.recorder.Flush(w.t.Context()))
	heads := [2]uint64{}
	for i, stream := range []string{events.Ledger, events.Usage} {
		n, err := w.ledger.Head(w.t.Context(), stream)
		w.ok(err)
		heads[i] = n
	}
	facts, uses = fmt.Sprint(heads[0]), fmt.Sprint(heads[1])
	for path, head := range map[string]string{"/v1/keys?limit=1": facts, "/v1/analytics/usage?bucket=day": uses} {
		if a := w.call(http.MethodGet, path, w.root, "", "Min-Sequence", head); a.status != 200 {
			w.t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
	}
	return facts, uses
}

// send sends a request through the gateway. A credential of more than one line
// is written as it is, folded (RFC 9112 section 5.2), which no client does that
// checks what it sends.
func (w *world) send(node string, r *http.Request) answer {
	w.t.Helper()
	r = r.WithContext(w.t.Context())
	for name, values := range r.Header {
		for _, v := range values {
			if strings.Contains(v, "\n") {
				return w.sendFolded(node, r, name, v)
			}
		}
	}
	res, err := w.clients[node].Do(r)
	w.ok(err)
	return w.read(res)
}

func (w *world) read(res *http.Response) answer {
	w.t.Helper()
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	w.ok(err)
	return answer{res.StatusCode, res.Header, body}
}
