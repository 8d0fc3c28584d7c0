package api

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events/ledger"
)

// Problem is an error on the wire: RFC 9457, section 5 of the contract. It is
// the only form in which this package answers that something went wrong.
type Problem struct {
	Type      string   `json:"type" doc:"Always about:blank: the code tells problems apart." example:"about:blank"`
	Title     string   `json:"title" doc:"The status in words." example:"Unprocessable Entity"`
	Status    int      `json:"status" doc:"The HTTP status." example:"422"`
	Detail    string   `json:"detail" doc:"What is wrong and what to do, for people." example:"The input is not valid."`
	Code      string   `json:"code" doc:"What is wrong, for programs." example:"INVALID"`
	RequestID string   `json:"request_id" doc:"Names this request in the service's log." example:"req_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Errors    []Detail `json:"errors,omitempty" nullable:"false" doc:"Everything that is wrong with the input, with its place."`
	Count     *int     `json:"count,omitempty" doc:"With KEY_LIMIT_REACHED: the owner's active keys." example:"2"`
	Limit     *int     `json:"limit,omitempty" doc:"With KEY_LIMIT_REACHED: the most active keys of the plan." example:"2"`

	retryAfter int // seconds; 0: not said
}

// Detail is one thing that is wrong with an input.
type Detail struct {
	Path    string `json:"path" doc:"Where it is: a field of the body or a parameter; header. and a name; empty for the whole input." example:"limits.minute"`
	Line    int    `json:"line,omitempty" doc:"Line of a keyspace document, from 1." example:"12"`
	Message string `json:"message" doc:"What is wrong." example:"is not a number of requests"`
	Fix     string `json:"fix" doc:"What to write instead." example:"a whole number from 1 to 9007199254740992, or null for no limit"`
}

// Error is the detail: a Problem travels through handlers as an error.
func (p *Problem) Error() string { return p.Detail }

// GetStatus is what huma answers with.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is that of a problem document.
func (p *Problem) ContentType(string) string { return problemType }

const problemType = "application/problem+json"

// statuses is the one table from kinds of refusal to HTTP statuses, section 5
// of the contract.
var statuses = map[domain.Kind]int{
	domain.Invalid:   http.StatusUnprocessableEntity,
	domain.Conflict:  http.StatusConflict,
	domain.NotFound:  http.StatusNotFound,
	domain.Gone:      http.StatusGone,
	domain.Forbidden: http.StatusForbidden,
	domain.Stale:     http.StatusPreconditionFailed,
}

func problem(status int, code, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

func unprocessable(details ...Detail) *Problem {
	p := problem(http.StatusUnprocessableEntity, "INVALID", "The input is not valid.")
	p.Errors = details
	return p
}

// problemOf is how an error looks on the wire. What is not a refusal tells
// nothing of the inside: it is the caller's to repeat and the log's to explain.
func problemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if r, ok := errors.AsType[*domain.Refusal](err); ok {
		p := problem(statuses[r.Kind], r.Code, r.Detail)
		p.Errors, p.Count, p.Limit = details(r.Problems), r.Count, r.Limit
		return p
	}
	if d, ok := errors.AsType[*domain.DocumentError](err); ok {
		p := problem(http.StatusUnprocessableEntity, "INVALID_DOCUMENT", "The keyspace document is not valid; nothing was recorded.")
		if d.Unreadable {
			p = problem(http.StatusBadRequest, "UNREADABLE", "The keyspace document cannot be read; nothing was recorded.")
		}
		p.Errors = details(d.Problems)
		return p
	}
	if held, ok := errors.AsType[*ledger.HeldError](err); ok {
		return heldProblem(held)
	}
	if refused, ok := errors.AsType[*ledger.RefusalError](err); ok {
		p := unavailable("LEDGER_REFUSED", "The event store is in doubt and takes no facts until an operator has looked at it. Keys are verified as ever. What was found is under errors.", 30)
		for _, f := range refused.Findings {
			p.Errors = append(p.Errors, Detail{Path: f.Stream, Message: f.Problem + ". " + f.Means, Fix: f.Fix})
		}
		return p
	}
	switch {
	case errors.Is(err, ledger.ErrUnavailable):
		return unavailable("LEDGER_UNAVAILABLE", "The event store cannot be reached; nothing was recorded. Repeat the request with the same Idempotency-Key.", 1)
	case errors.Is(err, ledger.ErrPruned):
		return unavailable("PRUNED", "A part of the log was pruned while it was read: ask again, what is left is answered.", 1)
	case errors.Is(err, ledger.ErrTooLarge):
		return problem(http.StatusRequestEntityTooLarge, "TOO_LARGE", "This is larger than the event store takes in one fact; nothing was recorded.")
	case errors.Is(err, ledger.ErrUnknownOutcome), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, ledger.ErrConflict):
		return unavailable("OUTCOME_UNKNOWN", "No answer came in time: it is not known whether this was recorded. Repeat the request with the same Idempotency-Key.", 1)
	}
	return problem(http.StatusInternalServerError, "INTERNAL", "Something went wrong inside; the log has more under this request id. A command may be repeated with the same Idempotency-Key.")
}

func unavailable(code, detail string, after int) *Problem {
	p := problem(http.StatusServiceUnavailable, code, detail)
	p.retryAfter = after
	return p
}

func details(problems []domain.Problem) []Detail {
	var list []Detail
	for _, p := range problems {
		list = append(list, Detail{p.Path, p.Line, p.Message, p.Fix})
	}
	return list
}

// GetHeaders are the headers that go with the problem.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="keyledger"`)
	}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	return h
}

// write answers with the problem.
func (p *Problem) write(w http.ResponseWriter, requestID string) {
	maps.Copy(w.Header(), p.GetHeaders())
	answered := *p
	answered.RequestID = requestID
	writeJSON(w, p.Status, problemType, answered)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the client is gone; there is nobody to tell
}

// huma knows no other way than package variables.
func init() {
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, detail string, errs ...error) huma.StatusError {
		return humaProblem(status, detail, errs)
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, detail string, errs ...error) huma.StatusError {
		p := humaProblem(status, detail, errs)
		p.RequestID = callOf(ctx.Context()).requestID
		return p
	}
}

// humaProblem words what huma's own validation found. The values that huma adds
// are left out: one of them may be a secret in the wrong place.
func humaProblem(status int, detail string, errs []error) *Problem {
	switch status {
	case http.StatusUnprocessableEntity, http.StatusBadRequest:
	case http.StatusUnsupportedMediaType:
		return problem(status, "UNSUPPORTED_MEDIA_TYPE", "The Content-Type of this body is not one that this call takes.")
	case http.StatusNotAcceptable:
		return problem(status, "NOT_ACCEPTABLE", "This call answers application/json.")
	case http.StatusInternalServerError:
		for _, err := range errs {
			return problemOf(err)
		}
		return problemOf(errors.New(detail))
	default:
		return problem(status, strings.ToUpper(strings.ReplaceAll(http.StatusText(status), " ", "_")), detail)
	}
	p := unprocessable()
	if status == http.StatusBadRequest {
		p = problem(status, "UNREADABLE", "The input cannot be read: "+detail+".")
	}
	for _, err := range errs {
		d, ok := errors.AsType[*huma.ErrorDetail](err)
		if !ok {
			continue
		}
		path, said := place(d.Location), d.Message
		if m := required.FindStringSubmatch(said); m != nil {
			// Huma says which object lacks it; people look for the field.
			path, said = strings.TrimPrefix(path+"."+m[1], "."), "required"
		}
		message, fix := word(said, path)
		p.Errors = append(p.Errors, Detail{Path: path, Message: message, Fix: fix})
	}
	return p
}

// place is where huma says that something is, as in the contract's examples.
func place(location string) string {
	for _, in := range []string{"body.", "query.", "path."} {
		if path, ok := strings.CutPrefix(location, in); ok {
			return path
		}
	}
	return strings.TrimPrefix(location, "body")
}

var required = regexp.MustCompile(`^expected required property (.+) to be present$`)

// word says in the contract's words what huma says in those of JSON Schema.
func word(message, path string) (what, fix string) {
	switch message {
	case "unexpected property":
		return "is not a field of this call", "leave it out, or correct its name"
	case "unknown query parameter":
		return "is not a parameter of this call", "leave it out, or correct its name"
	case "expected string to be RFC 3339 date-time":
		return "is not a time", "RFC 3339, such as 2026-01-18T12:00:00.000Z"
	case "expected integer", "invalid integer":
		return "is not a whole number", "a number without quotes, such as 100"
	case "expected number", "invalid float":
		return "is not a number", "a number without quotes"
	case "expected string":
		return "is not a string", "text in double quotes"
	case "expected boolean", "invalid boolean":
		return "is not true or false", "true or false, without quotes"
	case "expected array":
		return "is not a list", "a list in square brackets"
	case "expected object":
		return "is not an object", "an object in braces"
	}
	if rest, ok := strings.CutPrefix(message, "expected "); ok {
		return "is not as it should be", rest
	}
	if strings.HasPrefix(message, "required") {
		return "is missing", "send it"
	}
	if strings.HasPrefix(message, "invalid date/time") {
		return word("expected string to be RFC 3339 date-time", path)
	}
	return message, "see /openapi.json"
}
