// Package api is the HTTP API of section 5 of the contract: chi routes whose
// handlers decode, call and encode, and the OpenAPI 3.1 document that is made
// from the same Go types.
//
// It promises that every error is a problem document (RFC 9457) that says what
// is wrong, where, and what to do; that who asks is known from the credential
// alone; that what a credential may not see looks exactly like what is not
// there; and that no answer but the one of a creation or rotation, and no log
// line, holds a secret. Input is read strictly: what is not understood is
// refused, never ignored.
//
// How it can disappoint. Single keys, verification and commands need memory and
// NATS; lists and figures come from PostgreSQL and answer 503 while that is
// away. Lists are behind the ledger by milliseconds: Min-Sequence waits. A
// command whose answer was lost may have happened: the same Idempotency-Key
// finds out.
package api

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/commands/alertrules"
	"github.com/keyledger/keyledger/commands/claims"
	"github.com/keyledger/keyledger/commands/retention"
	"github.com/keyledger/keyledger/commands/subscribers"
	"github.com/keyledger/keyledger/commands/webhooks"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/endings"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/projections/merkle"
	"github.com/keyledger/keyledger/projections/recent"
	"github.com/keyledger/keyledger/queries"
	"github.com/keyledger/keyledger/reactors/delivery"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/applied"
)

// Deps are what the API calls. Ring, Commands and Ledger are always needed.
type Deps struct {
	Commands *commands.Commands
	Ring     *keyring.Ring
	Ledger   *ledger.Ledger
	Verifier *verify.Verifier
	Recorder *verify.Recorder    // of the verifier; for /v1/status
	Seal     *seal.Keys          // opens personal data for operators and auditors; nil: it stays sealed
	Queries  *queries.Queries    // nil: there are no read models, and lists answer 503
	Runner   *projections.Runner // likewise
	AuditLog *merkle.Log         // proves; nil: nobody signs here
	Index    *projections.Index  // of uses; nil: they are found by reading

	// Endings are who no longer verifies; nil: nobody follows FEED here.
	Endings *endings.Index

	// Recent are the newest facts of FEED; nil: nobody follows FEED here.
	Recent *recent.Facts

	// Verifiers are those that tell how far they are; nil: nobody listens here.
	Verifiers *applied.Watcher
	// Subscribers are the services outside that follow FEED over NATS; nil: those calls
	// answer 503.
	Subscribers *subscribers.Subscribers

	// Sinks are the systems that the settings name; nil: this program delivers nothing.
	Sinks *Sinks

	// Webhooks are the endpoints that facts are sent to, Deliveries how that goes (of
	// sinks as well), and TestWebhook tries one; nil: those calls answer 503.
	Webhooks    *webhooks.Registry
	Deliveries  *delivery.Store
	TestWebhook func(context.Context, *webhooks.Webhook) (delivery.Attempt, error)

	// Retention erases, prunes and holds; nil: those calls answer 503.
	Retention *retention.Retention

	// Claims hand new secrets over by a link; nil: those calls answer 503.
	Claims *claims.Claims

	// AlertRules sets which alert rules count; nil: those calls answer 503.
	AlertRules *alertrules.Rules

	// DurableTime is how long POST /v1/verify waits until a use is on disk, to answer
	// AUDIT_UNAVAILABLE where it is not by then; zero: it does not wait.
	DurableTime time.Duration

	// Authz answers forward-auth, below /v1/authz/ and /v1/authz-answers/; nil:
	// nobody does. It asks for the proxy's credential itself.
	Authz http.Handler

	Version string // of the program

	// ClientIP is the address that a request came from, where allowed_ips of a
	// key counts; nil: the one of the connection.
	ClientIP func(*http.Request) string

	// Ready says, by name, what is not ready yet and why; nil errors are well, a
	// [Note] is well and says something.
	// It MUST answer within a second. The keyring is checked anyway.
	Ready func(context.Context) map[string]error

	// Draining is done when the program is about to end: open tails end with
	// it, so that nobody waits for them. nil: never.
	Draining context.Context

	Metrics *prometheus.Registry // nil: a registry of its own
	Log     *slog.Logger         // nil: slog.Default()
	Now     func() time.Time     // nil: time.Now
}

// API is the handler of everything under /v1, and of /openapi.json, /healthz,
// /readyz and /metrics.
type API struct {
	Deps
	router *chi.Mux
	huma   huma.API
	meter  *meter
	spec   []byte
	steady atomic.Pointer[domain.Key] // of whoever verified last; see mayVerify

	deadline atomic.Pointer[deadline] // see durableBy

	simulating sync.Mutex // held by whoever simulates: one at a time, since each takes a whole core
}

// New returns the API. It starts nothing and keeps nothing running.
func New(d Deps) http.Handler {
	a := build(d)
	spec, err := a.openAPI()
	if err != nil {
		panic("openapi: " + err.Error()) // only a type that cannot be a schema fails, in every run
	}
	a.spec = spec
	return a
}

// ServeHTTP answers a request. The calls that there are thousands of in a second
// go a short way where that knows the answer.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !a.ServeShort(w, r) {
		a.router.ServeHTTP(w, r)
	}
}

// ServeShort is the short way alone. It is false, and has written nothing, where
// that is not for the request. It needs of r what package front reads of a plain
// request.
func (a *API) ServeShort(w http.ResponseWriter, r *http.Request) bool {
	path, query := r.RequestURI, ""
	if r.URL != nil {
		path, query = r.URL.Path, r.URL.RawQuery
	}
	return path == "/v1/verify" && query == "" && a.hotVerify(w, r) || a.hotAuthz(w, r, path)
}

func build(d Deps) *API {
	if d.Log == nil {
		d.Log = slog.Default()
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Metrics == nil {
		d.Metrics = prometheus.NewRegistry()
		d.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	if d.ClientIP == nil {
		d.ClientIP = remoteIP
	}
	a := &API{Deps: d, router: chi.NewMux()}
	a.meter = newMeter(a)
	a.router.Use(a.observe)
	a.router.NotFound(func(w http.ResponseWriter, r *http.Request) {
		a.fail(w, r, problem(http.StatusNotFound, "NOT_FOUND", "There is nothing at this path: see /openapi.json."))
	})
	a.router.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			if a.router.Match(chi.NewRouteContext(), method, r.URL.Path) {
				w.Header().Add("Allow", method)
			}
		}
		a.fail(w, r, problem(http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED", "This path does not take this method: see /openapi.json."))
	})
	a.huma = humachi.New(a.router, a.config())
	a.operational()
	a.keyspaces()
	a.keyspaceChecks()
	a.owners()
	a.keys()
	a.keyDetails()
	a.keyList()
	a.claims()
	a.previousUses()
	a.imports()
	a.rootKeys()
	a.verification()
	a.forwardAuth()
	a.audit()
	a.auditLog()
	a.scrub()
	a.auditPast()
	a.auditCould()
	a.retention()
	a.auditExport()
	a.revocations()
	a.alerts()
	a.counts()
	a.feed()
	a.subscribers()
	a.webhooks()
	a.usage()
	a.simulations()
	a.status()
	a.sinkRoutes()
	a.measured()
	a.me()
	return a
}

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// call is what is known about one request. It travels in the context.
type call struct {
	requestID    string
	console      bool // it comes from the console of this program
	authority    domain.Authority
	body         []byte // whole, read and checked before the handler runs
	mediaType    string // of the body
	method, path string
	header       http.Header // of the request
	ip           func() string
	answerHeader http.Header // where receipts are asked for: of the answer
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		c = &call{}
	}
	return c
}

// fail answers with an error, and logs it where the caller cannot know more.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	c := callOf(r.Context())
	a.logFailure(r.Context(), c, p, err)
	p.write(w, c.requestID)
}

// logFailure logs what the caller is not told. What passes by itself is a
// warning: somebody waited for something that is away or behind.
func (a *API) logFailure(ctx context.Context, c *call, p *Problem, err error) {
	if p.Status < 500 {
		return
	}
	level := slog.LevelError
	if p.Status == http.StatusServiceUnavailable {
		level = slog.LevelWarn
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		level = slog.LevelDebug // whoever asked is gone
	}
	a.Log.LogAttrs(ctx, level, "request failed",
		slog.String("request_id", c.requestID), slog.String("code", p.Code), slog.Any("error", err))
}

// Limits of bodies, in bytes.
const (
	maxBody   = 1 << 20
	maxImport = 16 << 20
)

// route is one call of the API.
type route struct {
	huma.Operation
	pattern      string        // of the router, where it is not the documented path
	action       domain.Action // that the credential must allow; empty: no credential is needed
	known        bool          // a credential is needed, whatever it allows
	command      bool          // it takes an Idempotency-Key, and If-Match where it is about a key
	read         bool          // it takes Min-Sequence
	body         int64         // the most bytes of its body; 0: maxBody
	accepts      []string      // media types of its body; nil: application/json
	bodyOptional bool
	absent       bool // what it asks for may not be there
	status       int  // of success; 0: 200
}

func (rt *route) operation(a *API) huma.Operation {
	op := rt.Operation
	op.DefaultStatus = rt.status
	if op.DefaultStatus == 0 {
		op.DefaultStatus = http.StatusOK
	}
	// The body is read, with limits, before huma sees it. Its own deadline would
	// go on after that, and end a command that takes long.
	op.BodyReadTimeout, op.MaxBodyBytes = -1, -1
	a.document(&op, rt)
	return op
}

// serve registers a call whose input and output are Go types.
func serve[I, O any](a *API, rt route, handle func(context.Context, *I) (*O, error)) {
	op := rt.operation(a)
	op.Middlewares = huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		r, w := humachi.Unwrap(ctx)
		if err := a.admit(w, r, &rt, op.RequestBody != nil); err != nil {
			a.fail(w, r, err)
			return
		}
		next(ctx)
	}}
	if hasBody[I]() {
		op.RequestBody = &huma.RequestBody{Required: !rt.bodyOptional}
	}
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, a.answered(ctx, err)
		}
		a.giveReceipts(ctx, out)
		return out, nil
	})
}

// answered logs what the caller is not told, and gives the problem the id of
// the request, which huma does not know of.
func (a *API) answered(ctx context.Context, err error) error {
	p := *problemOf(err)
	c := callOf(ctx)
	p.RequestID = c.requestID
	a.logFailure(ctx, c, &p, err)
	return &p
}

// stream registers a call that reads and writes by itself. The operation
// documents it; errors before the first byte are answered as problems.
func (a *API) stream(rt route, handle func(http.ResponseWriter, *http.Request, *call) error) {
	op := rt.operation(a)
	if rt.command {
		op.Responses["200"].Headers["Ledger-Sequence"] = &huma.Param{Description: "What a reader must have reached to see this.",
			Schema: &huma.Schema{Type: "integer", Format: "int64", Minimum: new(0.0)}}
	}
	a.huma.OpenAPI().AddOperation(&op)
	takesBody := op.RequestBody != nil
	var params []string
	for _, p := range op.Parameters {
		if p.In == "query" {
			params = append(params, p.Name)
		}
	}
	a.router.MethodFunc(op.Method, cmp.Or(rt.pattern, op.Path), func(w http.ResponseWriter, r *http.Request) {
		err := a.admit(w, r, &rt, takesBody)
		if err == nil {
			err = checkQuery(r, params)
		}
		if err != nil {
			a.fail(w, r, err)
			return
		}
		if err := handle(w, r, callOf(r.Context())); err != nil {
			a.fail(w, r, err)
		}
	})
}
