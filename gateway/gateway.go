// Package gateway is a reverse proxy that admits requests by their API key and
// records each one: section 6 of the contract.
//
// What it promises. A request reaches its upstream only after it was verified,
// without its credential, and with headers that say whose key it was; nothing
// that a client sends can set those. Each admitted request is one key.used, also
// when the upstream fails or the client leaves. A refusal looks as the keyspace's
// document says, byte for byte, and a browser may read it. Bodies and trailers
// pass both ways as they come, informational responses and upgrades too. The path
// that is judged is the path that is sent on. A request is sent to an upstream
// once; again only when the connection turned out to be closed and its method
// allows that (RFC 9110, 9.2.2). An answer that breaks off looks so to the client.
//
// How it forwards. Upstreams of HTTP/1.1, with TLS and without, are asked by
// package upstream on the goroutine of the request. Upgrades, and upstreams that
// choose HTTP/2 when TLS is agreed on, go through httputil.ReverseProxy, which
// costs several times as much. HTTP/2 without TLS is not spoken to upstreams.
//
// How it can disappoint. The use is recorded when the upstream's response header
// has arrived: latency is the time until then, and what happens to the body later
// is not in it. A body of at most 16 KiB whose length is known is read before the
// upstream is asked. That a client has left is noticed after 50 ms. A path that
// different servers read differently is judged by its strictest reading, so an
// odd one may be refused although its upstream would have read it harmlessly; an
// upstream whose answer could be read in two ways is a 502. Whether a resource
// belongs to the owner in X-Key-Owner is the upstream's to check where no path
// says it.
package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway/upstream"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/inbound"
)

// via is how the ledger calls this way in.
const via = "gateway"

// Gateway is an http.Handler. It is safe for concurrent use; its routes may be
// replaced while it serves.
type Gateway struct {
	verifier     *verify.Verifier
	recorder     *verify.Recorder
	trusted      inbound.Proxies
	strict       bool
	auditTime    time.Duration
	log          *slog.Logger
	upstreamTime time.Duration // until the response header
	upstreamTLS  *tls.Config   // nil: what the system trusts
	proxy        *httputil.ReverseProxy
	transport    *http.Transport
	routes       atomic.Pointer[[]*route]
	inFlight     sync.WaitGroup

	mu    sync.Mutex                // held while routes are replaced
	pools map[string]*upstream.Pool // by scheme and host; guarded by mu
}

// New makes a gateway. It fails with everything that is wrong with the
// configuration. A nil log is slog.Default(); the recorder is the verifier's.
func New(c Config, verifier *verify.Verifier, recorder *verify.Recorder, log *slog.Logger) (*Gateway, error) {
	if log == nil {
		log = slog.Default()
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	trusted, err := inbound.ParseProxies(c.TrustedProxies)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		verifier: verifier, recorder: recorder, trusted: trusted, log: log,
		strict: c.Audit == AuditStrict, auditTime: c.AuditTimeout, upstreamTime: c.UpstreamTimeout,
	}
	if g.auditTime == 0 {
		g.auditTime = 2 * time.Second
	}
	if g.upstreamTime == 0 {
		g.upstreamTime = time.Minute
	}
	if c.UpstreamCA != "" {
		if g.upstreamTLS, err = trustAlso(c.UpstreamCA); err != nil {
			return nil, err
		}
	}
	g.proxy, g.transport = g.newProxy()
	return g, g.SetRoutes(c.Routes)
}

// trustAlso trusts the certificates of a file beside those of the system.
func trustAlso(file string) (*tls.Config, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("upstream_ca: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // there are none here
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("upstream_ca: %s holds no certificate in PEM", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// SetRoutes replaces the routes. Requests under way keep theirs. It fails with
// everything that is wrong, and then changes nothing.
func (g *Gateway) SetRoutes(routes []Route) error {
	compiled, err := compileRoutes(routes)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	used := map[string]*upstream.Pool{}
	for _, r := range compiled {
		id := r.upstream.Scheme + "://" + r.upstream.Host
		if used[id] == nil {
			if used[id] = g.pools[id]; used[id] == nil {
				used[id] = upstream.New(r.upstream, g.poolOptions())
			}
		}
		r.pool = used[id]
	}
	g.routes.Store(&compiled)
	for id, p := range g.pools {
		if used[id] == nil {
			p.Close()
		}
	}
	g.pools = used
	return nil
}

// Shutdown waits for the requests under way and until what was recorded of them
// is on the server's disk. The caller stops the listener first. The error is that
// of ctx.
func (g *Gateway) Shutdown(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		g.inFlight.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("requests are still under way: %w", ctx.Err())
	}
	g.transport.CloseIdleConnections()
	g.mu.Lock()
	for _, p := range g.pools {
		p.Close()
	}
	g.mu.Unlock()
	if g.recorder == nil {
		return nil
	}
	return g.recorder.Flush(ctx)
}

// exchange is one request on its way through.
type exchange struct {
	begun     time.Time
	route     *route
	path      string // escaped, after the prefix was stripped: what is judged, recorded and sent on
	client    inbound.Client
	requestID string
	keyspace  *domain.Keyspace
	body      *duplex             // nil where there is none, or no need
	w         http.ResponseWriter // of relay
	http1     bool                // likewise: the client speaks it
	trailer   http.Header         // of relay's request: the names that may be sent on
	request   domain.Request
	decision  verify.Decision
	use       verify.Use
	recorded  bool // the key.used is made
	known     bool // and its outcome too
}

func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.inFlight.Add(1)
	defer g.inFlight.Done()
	now := time.Now()
	x := &exchange{begun: now, requestID: events.NewID("req", now)}
	w.Header().Set("X-Request-Id", x.requestID)
	var ok bool
	if x.route, x.path, ok = g.find(r); !ok {
		inbound.Problem(w, r, x.requestID, http.StatusNotFound, "NO_ROUTE", "No API answers here.")
		return
	}
	if inbound.Climbs(x.path) {
		inbound.Problem(w, r, x.requestID, http.StatusBadRequest, "BAD_PATH", "The path leads above its root.")
		return
	}
	if x.keyspace = g.verifier.Keyspace(x.route.Keyspace); x.keyspace == nil {
		inbound.Problem(w, r, x.requestID, http.StatusNotFound, "NO_KEYSPACE", "The API that answers here is not configured yet.")
		return
	}
	x.client = g.trusted.Client(r)
	if inbound.IsPreflight(r) {
		g.forward(w, r, x)
		return
	}
	x.request = inbound.Request(r, x.keyspace, &x.client, x.path)
	x.request.Environments = x.route.Environments
	x.decision = g.verifier.Verify(x.request)
	if k := x.decision.Keyspace; k != nil {
		x.keyspace = k
	}
	x.use = verify.Use{Via: via, RequestID: x.requestID, UserAgent: r.UserAgent(), CostMicros: x.keyspace.Cost.PerRequest}
	if !x.decision.Valid {
		inbound.Refuse(w, r, x.decision.Answer(&x.request, x.requestID))
		return
	}
	if g.strict {
		ctx, stop := context.WithTimeout(r.Context(), g.auditTime)
		err := g.verifier.RecordDurably(ctx, &x.decision, &x.request, x.use)
		stop()
		if err != nil {
			inbound.Refuse(w, r, x.decision.AnswerAs(domain.CodeAuditUnavailable, &x.request, x.requestID))
			return
		}
		x.recorded = true
	}
	if p := x.keyspace.PublicRoute(r.Method, x.path); p != nil && p.Status != 0 {
		g.finish(x, p.Status, "")
		inbound.AllowOrigin(w.Header(), r)
		if len(p.Body) > 0 {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(p.Status)
		_, _ = w.Write(p.Body)
		return
	}
	g.forward(w, r, x)
}

// finish records the outcome, the first time that it is called.
func (g *Gateway) finish(x *exchange, status int, cost string) {
	if x.known || !x.decision.Valid {
		return
	}
	x.known = true
	x.use.Status, x.use.Latency, x.use.CostMicros = status, time.Since(x.begun), verify.CostOf(x.keyspace, cost)
	if !x.recorded {
		x.recorded = true
		g.verifier.Record(&x.decision, &x.request, x.use)
		return
	}
	g.verifier.ReportLater(&x.decision, verify.UseReport{
		Status: status, LatencyMS: x.use.Latency.Round(time.Millisecond).Milliseconds(), CostMicros: &x.use.CostMicros,
	}, via)
}

// isOurs says whether a header may come from nobody but the gateway. An
// underscore counts as a hyphen, because CGI and its heirs read both alike.
func (x *exchange) isOurs(name string) bool {
	credential := x.keyspace.Document.Credential.Header
	if c := name[0] | 0x20; c != 'x' && len(name) != len(credential) {
		return false
	}
	if strings.IndexByte(name, '_') >= 0 {
		name = strings.ReplaceAll(name, "_", "-")
	}
	has := func(prefix string) bool {
		return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
	}
	return has("X-Key-") || has("X-Forwarded-") || strings.EqualFold(name, "X-Request-Id") || strings.EqualFold(name, credential)
}
