// Package middleware guards handlers of a Go service with a keyspace, in process:
// net/http, and every router that takes func(http.Handler) http.Handler, such as
// chi. It judges and records requests as the gateway does, without a proxy and
// without a call over the network.
//
//	node, err := verify.Connect(ctx, verify.Config{…})
//	guard, err := middleware.New(node.Verifier, middleware.Options{Keyspace: "parcelbird"})
//	router.Use(guard)
//
// What it promises. A handler is called only for an admitted request, without its
// credential; the headers X-Key-Id, X-Key-Owner, X-Key-Scopes, X-Key-Environment
// and X-Request-Id are the middleware's own, always with a value. A refusal is the
// keyspace's answer, byte for byte, and a browser may read it. A CORS preflight
// passes; a public route of the document that has an answer is answered. Each
// admitted request is one key.used, with the status, also when the handler
// panics, which is a 500 and goes on as a panic.
//
// How it can disappoint. The use is recorded when the handler writes its header:
// latency is the time until then, and what happens to the body later is not in it.
// Without a write-ahead log (StateDir of verify.Config) a killed process loses what
// it recorded in its last milliseconds.
package middleware

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/inbound"
)

// via is how the ledger calls this way in.
const via = "middleware"

// Options of [New]. Keyspace is required.
type Options struct {
	Keyspace string

	// Environments of keys that are admitted; empty: all.
	Environments []string

	// TrustedProxies are addresses and networks (10.0.0.0/8) whose X-Forwarded-For
	// and X-Forwarded-Proto are believed. Default: nobody's.
	TrustedProxies []string

	// Path is what is judged of a request, with its escapes; nil: the whole path as
	// the handler gets it. For a service whose routes stand below a prefix that the
	// document does not have.
	Path func(*http.Request) string

	// Strict makes a use durable before the handler is called, within StrictTimeout
	// (default 2s), else the request is refused with AUDIT_UNAVAILABLE. Default: it
	// is recorded within milliseconds of the answer.
	Strict        bool
	StrictTimeout time.Duration
}

type guard struct {
	Options
	verifier *verify.Verifier
	proxies  inbound.Proxies
}

// New makes a middleware of a verifier ([verify.Connect] has one). It fails with
// everything that is wrong with the options. A keyspace that does not exist yet is
// no error: its requests are answered with 404 until it does.
func New(v *verify.Verifier, o Options) (func(http.Handler) http.Handler, error) {
	proxies, err := inbound.ParseProxies(o.TrustedProxies)
	if o.Keyspace == "" || o.Keyspace == events.RootKeyspace {
		err = errors.Join(errors.New("the middleware needs the keyspace that guards its handlers"), err)
	}
	if err != nil {
		return nil, err
	}
	if o.StrictTimeout == 0 {
		o.StrictTimeout = 2 * time.Second
	}
	g := &guard{Options: o, verifier: v, proxies: proxies}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.serve(w, r, next) })
	}, nil
}

// exchange is one admitted request, or one that needs no key. The handler's
// goroutine owns it.
type exchange struct {
	guard     *guard
	begun     time.Time
	requestID string
	keyspace  *domain.Keyspace
	request   domain.Request
	decision  verify.Decision
	use       verify.Use

	cost        *int64 // that was told
	costFollows bool
	recorded    bool // the key.used is made, without its outcome
	known       bool // the outcome is
	owed        bool // the outcome is to be reported
}

type exchangeKey struct{}

func of(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// KeyOf is the key of the request that a handler serves: nil on a public route
// that was asked for without one, and where no middleware of this package is. It
// MUST NOT be changed.
func KeyOf(ctx context.Context) *domain.Key {
	if x := of(ctx); x != nil {
		return x.decision.Key
	}
	return nil
}

// DecisionOf is the decision by which the request was admitted, with its owner and
// its limits; nil where no middleware of this package is. It MUST NOT be changed.
func DecisionOf(ctx context.Context) *verify.Decision {
	if x := of(ctx); x != nil {
		return &x.decision
	}
	return nil
}

// SetCost says what the request costs, in micros, in place of the response's cost
// header and of the document's constant. The last call before the response's header
// is written counts; or the last before the handler returns, where [CostFollows] was
// called. It is the handler's: MUST NOT be called from several goroutines at once.
func SetCost(ctx context.Context, micros int64) {
	if x := of(ctx); x != nil && micros >= 0 {
		x.cost = &micros
	}
}

// CostFollows says, before the response's header is written, that its cost is known
// only when the handler returns: for streams. The use is recorded with the header,
// without its status, and the outcome (key.use_reported) when the handler returns.
func CostFollows(ctx context.Context) {
	if x := of(ctx); x != nil {
		x.costFollows = true
	}
}

func (g *guard) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	x := &exchange{guard: g, begun: time.Now()}
	x.requestID = events.NewID("req", x.begun)
	w.Header().Set("X-Request-Id", x.requestID)
	path := r.URL.EscapedPath()
	if g.Path != nil {
		path = g.Path(r)
	}
	if inbound.Climbs(path) {
		inbound.Problem(w, r, x.requestID, http.StatusBadRequest, "BAD_PATH", "The path leads above its root.")
		return
	}
	if x.keyspace = g.verifier.Keyspace(g.Keyspace); x.keyspace == nil {
		inbound.Problem(w, r, x.requestID, http.StatusNotFound, "NO_KEYSPACE", "The API that answers here is not configured yet.")
		return
	}
	if inbound.IsPreflight(r) {
		next.ServeHTTP(w, x.told(r))
		return
	}
	client := g.proxies.Client(r)
	x.request = inbound.Request(r, x.keyspace, &client, path)
	x.request.Environments = g.Environments
	x.decision = g.verifier.Verify(x.request)
	if k := x.decision.Keyspace; k != nil {
		x.keyspace = k
	}
	x.use = verify.Use{Via: via, RequestID: x.requestID, UserAgent: r.UserAgent(), CostMicros: x.keyspace.Cost.PerRequest}
	if !x.decision.Valid {
		inbound.Refuse(w, r, x.decision.Answer(&x.request, x.requestID))
		return
	}
	if g.Strict {
		ctx, stop := context.WithTimeout(r.Context(), g.StrictTimeout)
		err := g.verifier.RecordDurably(ctx, &x.decision, &x.request, x.use)
		stop()
		if err != nil {
			inbound.Refuse(w, r, x.decision.AnswerAs(domain.CodeAuditUnavailable, &x.request, x.requestID))
			return
		}
		x.recorded = true
	}
	if p := x.keyspace.PublicRoute(r.Method, path); p != nil && p.Status != 0 {
		x.finish(p.Status, "")
		x.report()
		inbound.AllowOrigin(w.Header(), r)
		if len(p.Body) > 0 {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(p.Status)
		_, _ = w.Write(p.Body)
		return
	}
	to, returned := &writer{ResponseWriter: w, x: x}, false
	defer func() {
		switch {
		case returned && !to.begun:
			to.begin(http.StatusOK) // as net/http will
		case !returned:
			// A panic goes on. Where nothing was written yet, it is the service's failure.
			x.finish(http.StatusInternalServerError, "")
		}
		x.report()
	}()
	next.ServeHTTP(to, x.told(r))
	returned = true
}

// told is the request as the handler gets it.
func (x *exchange) told(r *http.Request) *http.Request {
	to := r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	h := make(http.Header, len(r.Header)+5)
	for name, values := range r.Header {
		if !isOurs(name, x.keyspace.Document.Credential.Header) {
			h[name] = values
		}
	}
	id, owner, scopes, environment := inbound.Identity(&x.decision)
	h["X-Key-Id"], h["X-Key-Owner"], h["X-Key-Scopes"], h["X-Key-Environment"] = []string{id}, []string{owner}, []string{scopes}, []string{environment}
	h["X-Request-Id"] = []string{x.requestID}
	to.Header = h
	return to
}

// isOurs says whether a header may come from nobody but the middleware. An
// underscore counts as a hyphen, because some servers read both alike.
func isOurs(name, credential string) bool {
	if strings.Contains(name, "_") {
		name = strings.ReplaceAll(name, "_", "-")
	}
	return len(name) >= 6 && strings.EqualFold(name[:6], "X-Key-") || strings.EqualFold(name, "X-Request-Id") || strings.EqualFold(name, credential)
}

// finish notes the outcome, the first time that it is called, and records the use
// unless that was done before.
func (x *exchange) finish(status int, cost string) {
	if x.known || !x.decision.Valid {
		return
	}
	x.known = true
	if x.costFollows && !x.recorded {
		x.recorded = true
		x.guard.verifier.Record(&x.decision, &x.request, x.use)
	}
	x.use.Status, x.use.Latency = status, time.Since(x.begun)
	x.use.CostMicros = verify.CostOf(x.keyspace, cost)
	if !x.recorded {
		if x.cost != nil {
			x.use.CostMicros = *x.cost
		}
		x.guard.verifier.Record(&x.decision, &x.request, x.use)
		return
	}
	x.owed = true
}

// report says the outcome of a use that was recorded before it was known.
func (x *exchange) report() {
	if !x.owed {
		return
	}
	if x.cost != nil {
		x.use.CostMicros = *x.cost
	}
	x.guard.verifier.ReportLater(&x.decision, verify.UseReport{
		Status: x.use.Status, LatencyMS: x.use.Latency.Round(time.Millisecond).Milliseconds(), CostMicros: &x.use.CostMicros,
	}, via)
}
