// Package authz is forward-auth: it decides requests for the proxies that people
// already run, by the second half of section 6 of the contract. nginx
// (auth_request), Traefik (ForwardAuth), Caddy (forward_auth) and Envoy (HTTP
// ext_authz) describe a request that they hold, and learn whether it may pass.
//
// What it promises. Only a proxy that proved itself is answered, by a root key in
// X-Authz-Token or by a Unix socket, and nothing that its client sends can stand in
// for what the proxy should have said: what is missing, doubled or contradicts is
// refused with what the proxy must send. An admitted request is 200 without a body,
// with headers to copy to the upstream, and is one key.used. A refusal is the
// keyspace's answer byte for byte, as package inbound writes it.
//
// How it can disappoint. What the upstream answers is not known here: a use has no
// status until somebody reports it by its decision id, and a route that the
// document answers itself is admitted, because an admission has no body that a
// proxy would show. What is judged is what the proxy says that it will send; a
// proxy that rewrites the path afterwards sends something else. An answer too long
// for a header ([maxCarried]) can be fetched for nginx only from the node that gave
// it, and for half a minute or so under load.
package authz

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/inbound"
)

// Where it answers; a keyspace's id, and a decision's, follow.
const (
	Path        = "/v1/authz/"
	AnswersPath = "/v1/authz-answers/"
)

// via is how the ledger calls this way in.
const via = "authz"

// Options of a [Handler].
type Options struct {
	// Durable makes a use durable before it is admitted; where that fails within
	// DurableTime (zero: 2s), the request is refused with AUDIT_UNAVAILABLE.
	Durable     bool
	DurableTime time.Duration

	// Before are the proxies before the one that asks: an entry of theirs in
	// X-Forwarded-For is not the client.
	Before inbound.Proxies
}

// Handler answers everything below [Path] and [AnswersPath], to a proxy that sends
// X-Authz-Token. It is safe for concurrent use.
type Handler struct {
	verifier *verify.Verifier
	options  Options
	kept     kept
}

// New makes a handler. The verifier records.
func New(v *verify.Verifier, o Options) *Handler {
	if o.DurableTime == 0 {
		o.DurableTime = 2 * time.Second
	}
	return &Handler{verifier: v, options: o}
}

// ServeHTTP answers a proxy that sends X-Authz-Token.
func (z *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { z.serve(w, r, false) }

// ServeShort answers everything: nothing here needs more than a plain request
// (package front).
func (z *Handler) ServeShort(w http.ResponseWriter, r *http.Request) bool {
	z.serve(w, r, false)
	return true
}

// Proven is the handler for a listener that only the proxy can reach, such as a
// Unix socket: it asks for no token.
func (z *Handler) Proven() http.Handler { return proven{z} }

type proven struct{ z *Handler }

func (p proven) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.z.serve(w, r, true) }

func (p proven) ServeShort(w http.ResponseWriter, r *http.Request) bool {
	p.z.serve(w, r, true)
	return true
}

func (z *Handler) serve(w http.ResponseWriter, r *http.Request, proven bool) {
	requestID := events.NewID("req", time.Now())
	w.Header()["X-Request-Id"] = []string{requestID}
	if !proven {
		if f := z.prove(r); f != nil {
			w.Header()["Www-Authenticate"] = challenge
			inbound.Problem(w, r, requestID, f.status, f.code, f.detail)
			return
		}
	}
	path, query := target(r)
	if decision, ok := strings.CutPrefix(path, AnswersPath); ok {
		z.answer(w, r, decision, requestID)
		return
	}
	asked, f := read(r, path, query)
	if f != nil {
		z.told(w, &asked, "-", func(w http.ResponseWriter) { inbound.Problem(w, r, requestID, f.status, f.code, f.detail) })
		return
	}
	z.decide(w, r, &asked, requestID)
}

func (z *Handler) decide(w http.ResponseWriter, r *http.Request, asked *asked, requestID string) {
	keyspace := z.verifier.Keyspace(asked.keyspace)
	if keyspace == nil {
		z.told(w, asked, "-", func(w http.ResponseWriter) {
			inbound.Problem(w, r, requestID, http.StatusNotFound, "NO_KEYSPACE", "The proxy asks about a keyspace that is not configured.")
		})
		return
	}
	if asked.method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" {
		admit(w, &verify.Decision{}, "-")
		return
	}
	client := asked.client(r, z.options.Before)
	req := inbound.Request(r, keyspace, &client, asked.path)
	req.Method, req.Environments = asked.method, asked.environments
	d := z.verifier.Verify(req)
	if req.IP == unknownIP {
		req.IP = ""
	}
	if !d.Valid {
		z.told(w, asked, d.ID(), func(w http.ResponseWriter) { inbound.Refuse(w, r, d.Answer(&req, requestID)) })
		return
	}
	use := verify.Use{Via: via, RequestID: requestID, UserAgent: r.UserAgent(), CostMicros: d.Keyspace.Cost.PerRequest}
	if !z.options.Durable {
		z.verifier.Record(&d, &req, use)
	} else {
		ctx, stop := context.WithTimeout(r.Context(), z.options.DurableTime)
		err := z.verifier.RecordDurably(ctx, &d, &req, use)
		stop()
		if err != nil {
			z.told(w, asked, d.ID(), func(w http.ResponseWriter) {
				inbound.Refuse(w, r, d.AnswerAs(domain.CodeAuditUnavailable, &req, requestID))
			})
			return
		}
	}
	admit(w, &d, d.ID())
}

// unknownIP is in no list of addresses: a key that may be used from some only is
// refused where the proxy does not say where the request came from.
const unknownIP = "unknown"

// admit answers 200 without a body: nginx closes a connection whose answer has one.
// Every header has a value, because a proxy that copies only what is there would
// pass on what its client wrote.
func admit(w http.ResponseWriter, d *verify.Decision, decision string) {
	id, owner, scopes, environment := inbound.Identity(d)
	h := w.Header()
	values := [...]string{id, owner, scopes, environment, decision}
	h["X-Key-Id"], h["X-Key-Owner"], h["X-Key-Scopes"], h["X-Key-Environment"], h["X-Decision-Id"] =
		values[0:1:1], values[1:2:2], values[2:3:3], values[3:4:4], values[4:5:5]
	h["Content-Length"], h["Cache-Control"] = zero, noStore
	inbound.TellRoom(h, d)
	w.WriteHeader(http.StatusOK)
}

var zero, noStore, challenge = []string{"0"}, []string{"no-store"}, []string{`X-Authz-Token realm="keyledger"`}

// fault is a mistake of the proxy's, or of who configured it.
type fault struct {
	status       int
	code, detail string
}

// prove judges the proxy's own credential, which is never the client's.
func (z *Handler) prove(r *http.Request) *fault {
	values := r.Header["X-Authz-Token"]
	if len(values) == 0 || values[0] == "" {
		return &fault{http.StatusUnauthorized, string(domain.CodeMissingCredential), "The proxy has not proven itself: it must send X-Authz-Token with a root key of role verifier, or use the Unix socket."}
	}
	if len(values) > 1 {
		return &fault{http.StatusUnauthorized, string(domain.CodeMalformedCredential), "There are several X-Authz-Token headers: the proxy must set it, in place of what its client sent."}
	}
	switch code := z.verifier.MayVerify(values[0], remoteIP(r)); code {
	case domain.CodeValid:
		return nil
	case domain.CodeInsufficientScope:
		return &fault{http.StatusForbidden, "FORBIDDEN", "The root key in X-Authz-Token may not verify: its role must be verifier or operator."}
	default:
		return &fault{http.StatusUnauthorized, string(code), "X-Authz-Token is not a root key that works (" + string(code) + ")."}
	}
}

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return unknownIP
	}
	return host
}
