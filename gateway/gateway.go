// Package gateway is a reverse proxy that admits requests by their API key and
// records each one: section 6 of the contract.
//
// What it promises. A request reaches its upstream only after it was verified,
// without its credential, and with headers that say whose key it was; nothing
// that a client sends can set those. Each admitted request is one key.used, also
// when the upstream fails or the client leaves. A refusal looks as the keyspace's
// document says, byte for byte, and a browser may read it. Bodies stream both
// ways, upgrades pass. The path that is judged is the path that is sent on.
//
// How it can disappoint. The use is recorded when the upstream's response header
// has arrived: latency is the time until then, and what happens to the body later
// is not in it. A path that different servers read differently is judged by its
// strictest reading, so an odd one may be refused although its upstream would
// have read it harmlessly. Trailers of a request are not sent on. Whether a
// resource belongs to the owner in X-Key-Owner is the upstream's to check where
// no path says it.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/inbound"
)

// via is how the ledger calls this way in.
const via = "gateway"

// Gateway is an http.Handler. It is safe for concurrent use; its routes may be
// replaced while it serves.
type Gateway struct {
	verifier  *verify.Verifier
	recorder  *verify.Recorder
	trusted   inbound.Proxies
	strict    bool
	auditTime time.Duration
	log       *slog.Logger
	proxy     *httputil.ReverseProxy
	transport *http.Transport
	routes    atomic.Pointer[[]*route]
	inFlight  sync.WaitGroup
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
		strict: c.Audit == AuditStrict, auditTime: c.AuditTimeout,
	}
	if g.auditTime == 0 {
		g.auditTime = 2 * time.Second
	}
	upstreamTime := c.UpstreamTimeout
	if upstreamTime == 0 {
		upstreamTime = time.Minute
	}
	g.transport = &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: upstreamTime,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   256,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // what client and upstream agree on is theirs
	}
	g.proxy = &httputil.ReverseProxy{
		Rewrite:        g.rewrite,
		Transport:      g.transport,
		FlushInterval:  -1,
		BufferPool:     &buffers{},
		ModifyResponse: g.answered,
		ErrorHandler:   g.failed,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug), // aborted bodies; the client sees them itself
	}
	return g, g.SetRoutes(c.Routes)
}

// SetRoutes replaces the routes. Requests under way keep theirs. It fails with
// everything that is wrong, and then changes nothing.
func (g *Gateway) SetRoutes(routes []Route) error {
	compiled, err := compileRoutes(routes)
	if err != nil {
		return err
	}
	g.routes.Store(&compiled)
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
	body      *duplex // nil where there is none, or no need
	request   domain.Request
	decision  verify.Decision
	use       verify.Use
	recorded  bool // the key.used is made
	known     bool // and its outcome too
}

type exchangeKey struct{}

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

// forward sends a request to its upstream and the response back.
func (g *Gateway) forward(w http.ResponseWriter, r *http.Request, x *exchange) {
	// Whatever ends the exchange without a response, a panic included.
	defer g.finish(x, http.StatusBadGateway, "")
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	if r.ProtoMajor == 1 && r.Body != http.NoBody && r.ContentLength != 0 {
		x.body = &duplex{ReadCloser: r.Body, w: w}
		r.Body = x.body
		defer x.body.end()
	}
	g.proxy.ServeHTTP(w, r)
}

func of(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

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

// rewrite makes the upstream's request.
func (g *Gateway) rewrite(p *httputil.ProxyRequest) {
	x := of(p.In)
	p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = x.route.upstream.Scheme, x.route.upstream.Host, ""
	p.Out.URL.RawPath = x.route.upstream.EscapedPath() + x.path
	p.Out.URL.Path = inbound.Unescape(p.Out.URL.RawPath)
	p.Out.URL.RawQuery = p.In.URL.RawQuery // whole, also what Go would not parse
	p.Out.Trailer = nil

	h := p.Out.Header
	for name := range h {
		if isOurs(name, x.keyspace.Document.Credential.Header) {
			delete(h, name)
		}
	}
	id, owner, scopes, environment := "-", "-", "-", "-"
	if key := x.decision.Key; key != nil {
		id, owner, environment = key.ID, key.Owner, orDash(key.Environment)
		scopes = orDash(strings.Join(scopesOf(&x.decision), ","))
	}
	h["X-Key-Id"], h["X-Key-Owner"], h["X-Key-Scopes"], h["X-Key-Environment"] = []string{id}, []string{owner}, []string{scopes}, []string{environment}
	h["X-Request-Id"] = []string{x.requestID}
	h["X-Forwarded-For"] = []string{x.client.Chain}
	h["X-Forwarded-Host"] = []string{p.In.Host}
	h["X-Forwarded-Proto"] = []string{x.client.Scheme()}
}

// isOurs says whether a header may come from nobody but the gateway. An
// underscore counts as a hyphen, because CGI and its heirs read both alike.
func isOurs(name, credential string) bool {
	if strings.Contains(name, "_") {
		name = strings.ReplaceAll(name, "_", "-")
	}
	has := func(prefix string) bool {
		return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
	}
	return has("X-Key-") || has("X-Forwarded-") || strings.EqualFold(name, "X-Request-Id") || strings.EqualFold(name, credential)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// scopesOf are the key's scopes that its plan supports.
func scopesOf(d *verify.Decision) []string {
	scopes := d.Keyspace.ScopesOf(d.Key)
	_, plan, _ := d.Keyspace.PlanInForce(d.Key, d.Owner)
	if plan.Scopes == nil {
		return scopes
	}
	return slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return !slices.Contains(plan.Scopes, s) })
}

// answered is called with the upstream's response header, before it is sent on.
func (g *Gateway) answered(res *http.Response) error {
	x := of(res.Request)
	cost := ""
	if name := x.keyspace.Cost.Header; name != "" {
		cost = res.Header.Get(name)
	}
	g.finish(x, res.StatusCode, cost)
	inbound.TellRoom(res.Header, &x.decision)
	if res.StatusCode != http.StatusSwitchingProtocols {
		x.body.begin()
	}
	res.Header.Del("X-Request-Id") // ours is set, and is the one in the ledger
	return nil
}

// statusClientGone is what is recorded when the client left before the upstream
// answered; nginx made the number known.
const statusClientGone = 499

// failed is called when there is no response of the upstream.
func (g *Gateway) failed(w http.ResponseWriter, r *http.Request, err error) {
	x := of(r)
	status, code, message := http.StatusBadGateway, "UPSTREAM_FAILED", "The API behind this gateway cannot be reached."
	if timeout := net.Error(nil); errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		status, code, message = http.StatusGatewayTimeout, "UPSTREAM_TIMEOUT", "The API behind this gateway did not answer in time."
	}
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		g.finish(x, statusClientGone, "")
		return
	}
	g.log.Warn("upstream failed", "keyspace", x.route.Keyspace, "upstream", x.route.upstream.Redacted(), "request_id", x.requestID, "status", status, "error", err)
	g.finish(x, status, "")
	inbound.TellRoom(w.Header(), &x.decision)
	inbound.Problem(w, r, x.requestID, status, code, message)
}

// buffers are what bodies are copied through.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
