package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
)

// VerifyRequest is what is known about one request to an API. What is left out
// is not checked, and listed under skipped.
type VerifyRequest struct {
	Keyspace      string   `json:"keyspace" example:"parcelbird"`
	Authorization *string  `json:"authorization,omitempty" doc:"The whole value of the keyspace's credential header, as it was sent." writeOnly:"true"`
	Key           *string  `json:"key,omitempty" doc:"The secret itself, instead of authorization. Neither: the request had no credential." writeOnly:"true"`
	Method        string   `json:"method,omitempty" example:"GET"`
	Path          string   `json:"path,omitempty" doc:"As on the request line." example:"/v1/parcels/17"`
	Origin        *string  `json:"origin,omitempty" doc:"The Origin header; empty: there was none."`
	IP            string   `json:"ip,omitempty" doc:"Of the client." example:"203.0.113.7"`
	TLS           *bool    `json:"tls,omitempty" doc:"Whether the request arrived over TLS."`
	ContentType   *string  `json:"content_type,omitempty" doc:"The Content-Type header; empty: there was none."`
	UserAgent     string   `json:"user_agent,omitempty" doc:"Recorded, sealed."`
	Scopes        []string `json:"scopes,omitempty" doc:"That the request needs, each of them."`
	Resource      *string  `json:"resource,omitempty" doc:"That the request is about."`
	Cost          *int64   `json:"cost,omitempty" minimum:"0" doc:"Of the call, in micros; absent: the document's."`
	Report        bool     `json:"report,omitempty" doc:"true: the outcome follows in POST /v1/uses."`
}

// Decision is the outcome of verifying one request, as it is documented;
// appendDecision writes it.
type Decision struct {
	Valid      bool           `json:"valid"`
	Code       string         `json:"code" doc:"One code of the decision order." example:"VALID"`
	DecisionID string         `json:"decision_id" doc:"For POST /v1/uses." example:"dec_0pg3n0fl01r5tg00000000000000000000000000000000000000"`
	Key        *KeyOrNull     `json:"key" doc:"The known key, valid or not; null: none is known. last_used_at and use_count are not filled in here."`
	Limits     []verify.Limit `json:"limits" nullable:"false" doc:"Every window that applies."`
	RetryAfter *int64         `json:"retry_after" doc:"Seconds; null: waiting does not help."`
	Skipped    []string       `json:"skipped" nullable:"false" doc:"What the keyspace would check and the request did not tell."`
	Sequence   uint64         `json:"sequence" doc:"Every fact of LEDGER up to it was taken into account."`
	Answer     WireAnswer     `json:"answer" doc:"What a gateway may relay."`
}

// WireAnswer is an answer that may be relayed byte for byte.
type WireAnswer struct {
	Status  int               `json:"status" example:"200"`
	Headers map[string]string `json:"headers"`
	Body    any               `json:"body" doc:"JSON; null where the request is admitted."`
}

// KeyOrNull is a key, or null where none is known.
type KeyOrNull struct{}

// Schema is that of a key or null.
func (KeyOrNull) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{AnyOf: []*huma.Schema{{Ref: "#/components/schemas/Key"}, {Type: "null"}}}
}

// UseReport is the outcome of a use.
type UseReport struct {
	DecisionID string  `json:"decision_id"`
	Status     int     `json:"status" minimum:"100" maximum:"599" doc:"That the caller was answered with." example:"200"`
	LatencyMS  float64 `json:"latency_ms" minimum:"0" maximum:"86400000" example:"42"`
	CostMicros *int64  `json:"cost_micros,omitempty" minimum:"0" doc:"Absent: as recorded with the use."`
	Endpoint   string  `json:"endpoint,omitempty" doc:"Absent: as recorded with the use." example:"/v1/parcels/{id}"`
}

// UsesReported says which reports were taken.
type UsesReported struct {
	Accepted int          `json:"accepted" doc:"Recorded, now or before: a repeated report changes nothing."`
	Errors   []UseProblem `json:"errors" nullable:"false"`
}

// UseProblem says why a report was not taken.
type UseProblem struct {
	Index      int    `json:"index" doc:"Place in the list, from 0."`
	DecisionID string `json:"decision_id"`
	Code       string `json:"code" example:"DECISION_NOT_FOUND"`
	Message    string `json:"message"`
}

const (
	maxUses     = 1000
	maxUseBytes = 1 << 20
)

func (a *API) verification() {
	if a.Verifier == nil && a.Ring != nil {
		return
	}
	body := func(v any) *huma.RequestBody {
		return &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: a.schema(v)}}}
	}
	a.schema(Key{})
	verified := a.answer("The decision, whatever it is.", a.schema(Decision{}))
	reported := a.answer("What was taken.", a.schema(UsesReported{}))
	verifyBody := body(VerifyRequest{})
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "verify", Method: http.MethodPost, Path: "/v1/verify", Tags: []string{"Verification"},
			Summary:     "Verify a request",
			Description: "Decides one request from memory and records the use. The answer is always 200; valid says whether the request may pass, and answer is what the caller is to be told otherwise. Root keys never verify as customers' keys.",
			RequestBody: verifyBody, Responses: map[string]*huma.Response{"200": verified},
		},
		action: domain.Verify,
	}, a.verify(a.decoder(verifyBody)))
	takeBody := body(TakeRequest{})
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "take-limits", Method: http.MethodPost, Path: "/v1/limits/take", Tags: []string{"Verification"},
			Summary:     "Draw from an owner's pool",
			Description: "Counts requests of other traffic, such as user sessions, against the limits of an owner: the pool that its keys share where the keyspace counts by owner, else one of its own. All of n are admitted, or none. Answers as verification does, without a key.",
			RequestBody: takeBody, Responses: map[string]*huma.Response{"200": verified},
		},
		action: domain.Verify, absent: true,
	}, a.take(a.decoder(takeBody)))
	usesBody := body(UseReports{})
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "report-uses", Method: http.MethodPost, Path: "/v1/uses", Tags: []string{"Verification"},
			Summary:     "Report the outcomes of uses",
			Description: "At most 1,000 in a call. Idempotent by decision id. Those that can be taken are; the others are listed under errors.",
			RequestBody: usesBody, Responses: map[string]*huma.Response{"200": reported},
		},
		action: domain.Verify, body: maxUseBytes,
	}, a.uses(a.decoder(usesBody)))
}

// TakeRequest draws from an owner's pool.
type TakeRequest struct {
	Keyspace string `json:"keyspace" example:"parcelbird"`
	Owner    string `json:"owner" example:"org_1"`
	N        *int64 `json:"n,omitempty" minimum:"1" maximum:"1000000000" doc:"How many requests; absent: 1."`
}

func (a *API) take(decode func([]byte, any) error) func(http.ResponseWriter, *http.Request, *call) error {
	return func(w http.ResponseWriter, _ *http.Request, c *call) error {
		var in TakeRequest
		if err := decode(c.body, &in); err != nil {
			return err
		}
		if in.N == nil {
			in.N = new(int64(1))
		}
		if in.Keyspace != events.RootKeyspace && a.Ring.Keyspace(in.Keyspace) != nil && !c.authority.Reaches(in.Keyspace, in.Owner) {
			return domain.OwnerNotFound()
		}
		d, err := a.Verifier.Take(in.Keyspace, in.Owner, *in.N)
		switch {
		case errors.Is(err, verify.ErrNoSuchKeyspace):
			return domain.KeyspaceNotFound()
		case errors.Is(err, verify.ErrNoSuchOwner):
			return domain.OwnerNotFound()
		}
		writeDecision(w, &d, &domain.Request{Keyspace: in.Keyspace}, c.requestID, nil)
		return nil
	}
}

// UseReports are some outcomes.
type UseReports []UseReport

// decoder reads a body by its schema, all problems at once.
func (a *API) decoder(b *huma.RequestBody) func(body []byte, v any) error {
	return a.decode(b.Content["application/json"].Schema)
}

func (a *API) verify(decode func([]byte, any) error) func(http.ResponseWriter, *http.Request, *call) error {
	return func(w http.ResponseWriter, r *http.Request, c *call) error {
		var in VerifyRequest
		if err := decode(c.body, &in); err != nil {
			return err
		}
		if in.Authorization != nil && in.Key != nil {
			return unprocessable(Detail{Path: "key", Message: "is given together with authorization", Fix: "send one of them"})
		}
		a.answerDecision(w, &in, c.requestID, nil)
		return nil
	}
}

// answerDecision decides, records and answers, writing into buffer.
func (a *API) answerDecision(w http.ResponseWriter, in *VerifyRequest, requestID string, buffer []byte) []byte {
	req := domain.Request{
		Keyspace: in.Keyspace, Method: in.Method, Path: in.Path, TLS: in.TLS, ContentType: in.ContentType, Origin: in.Origin,
		IP: in.IP, Scopes: in.Scopes, Resource: in.Resource,
	}
	if in.Authorization != nil {
		req.Credential = []string{*in.Authorization}
	}
	if in.Key != nil {
		req.Key = *in.Key
	}
	d := a.Verifier.Verify(req)
	if d.Valid && d.Key != nil {
		use := verify.Use{Via: "api", RequestID: requestID, UserAgent: in.UserAgent, CostMicros: verify.CostOf(d.Keyspace, "")}
		if in.Cost != nil {
			use.CostMicros = *in.Cost
		}
		if a.DurableTime == 0 {
			a.Verifier.Record(&d, &req, use)
		} else if a.Verifier.RecordDurably(a.durableBy(), &d, &req, use) != nil {
			d.Valid, d.Code = false, domain.CodeAuditUnavailable
		}
	}
	return writeDecision(w, &d, &req, requestID, buffer)
}

// deadline is a context that several requests wait by.
type deadline struct {
	context.Context
	since time.Time
}

// durableBy ends when the time is over that a use may take until it is durable. A
// timer for each request costs as much as a tenth of what it waits for, so that
// those of a tenth of that time share one, and wait so much longer at most.
func (a *API) durableBy() context.Context {
	now := time.Now()
	if d := a.deadline.Load(); d != nil && now.Sub(d.since) < a.DurableTime/10 {
		return d
	}
	ctx, stop := context.WithTimeout(context.Background(), a.DurableTime+a.DurableTime/10)
	context.AfterFunc(ctx, stop)
	d := &deadline{ctx, now}
	a.deadline.Store(d)
	return d
}

func writeDecision(w http.ResponseWriter, d *verify.Decision, req *domain.Request, requestID string, buffer []byte) []byte {
	b := appendDecision(buffer[:0], d, req, requestID)
	h := w.Header()
	h["Content-Type"], h["Cache-Control"] = jsonType, noStore
	if len(b) > 2000 { // net/http counts shorter ones itself, which is cheaper
		h["Content-Length"] = []string{strconv.Itoa(len(b))}
	}
	_, _ = w.Write(b)
	return b
}

var jsonType, noStore = []string{"application/json"}, []string{"no-store"}

func (a *API) uses(decode func([]byte, any) error) func(http.ResponseWriter, *http.Request, *call) error {
	return func(w http.ResponseWriter, r *http.Request, c *call) error {
		var in UseReports
		if err := decode(c.body, &in); err != nil {
			return err
		}
		if len(in) > maxUses {
			return unprocessable(Detail{Message: fmt.Sprintf("has %d reports", len(in)), Fix: fmt.Sprintf("send at most %d in a call", maxUses)})
		}
		out := UsesReported{Errors: []UseProblem{}}
		reports := make([]verify.UseReport, 0, len(in))
		for i, u := range in {
			key, err := a.Verifier.Reportable(u.DecisionID)
			if err == nil && !c.authority.Reaches(key.Keyspace, key.Owner) {
				err = verify.ErrNoSuchKey
			}
			if err != nil {
				out.Errors = append(out.Errors, UseProblem{i, shown(u.DecisionID), useCode(err), err.Error()})
				continue
			}
			reports = append(reports, verify.UseReport{DecisionID: u.DecisionID, Status: u.Status, LatencyMS: int64(u.LatencyMS + 0.5), CostMicros: u.CostMicros, Endpoint: u.Endpoint})
		}
		if len(reports) > 0 {
			if err := a.Verifier.Report(r.Context(), reports, "api"); err != nil {
				if errors.Is(err, verify.ErrAuditUnavailable) {
					return &readError{unavailable("AUDIT_UNAVAILABLE", "The outcomes could not be recorded: send them again.", 1), err}
				}
				return err
			}
		}
		out.Accepted = len(reports)
		writeJSON(w, http.StatusOK, "application/json", out)
		return nil
	}
}

func useCode(err error) string {
	switch {
	case errors.Is(err, verify.ErrNotAdmitted):
		return "NOT_ADMITTED"
	case errors.Is(err, verify.ErrNoSuchKey):
		return "KEY_NOT_FOUND"
	}
	return "INVALID_DECISION_ID"
}
