package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections/merkle"
)

// ScrubAsked is when a pass was asked for.
type ScrubAsked struct {
	Asked events.Time `json:"asked" doc:"Passes that began at this time or later are the ones that were asked for."`
}

func (a *API) scrub() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "get-scrub", Method: http.MethodGet, Path: "/v1/audit/scrub", Tags: []string{"Audit"},
			Summary:     "How the streams compare with what was signed",
			Description: "Progress, last whole pass and findings of the scrub, which reads the streams again and again, every server's copy in turn. The same is in GET /v1/status.",
		},
		action: domain.LogRead,
	}, a.getScrub)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "scrub-now", Method: http.MethodPost, Path: "/v1/audit/scrub", Tags: []string{"Audit"},
			Summary:     "Read all streams again at once",
			Description: "Asks whichever process scrubs for a pass over every stream, after the one on its way. GET /v1/audit/scrub says how far it is.",
		},
		action: domain.Operate,
	}, a.scrubNow)
}

type scrubOutput struct{ Body merkle.ScrubState }

func (a *API) getScrub(context.Context, *struct{}) (*scrubOutput, error) {
	if a.AuditLog == nil {
		return nil, errNoLog()
	}
	return &scrubOutput{a.AuditLog.ScrubState()}, nil
}

type scrubAskedOutput struct{ Body ScrubAsked }

func (a *API) scrubNow(ctx context.Context, _ *struct{}) (*scrubAskedOutput, error) {
	if a.AuditLog == nil {
		return nil, errNoLog()
	}
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	asked := events.At(time.Now())
	if err := a.AuditLog.ScrubNow(ctx); err != nil {
		return nil, &readError{unavailable("LEDGER_UNAVAILABLE", "NATS did not answer: ask again.", 1), err}
	}
	return &scrubAskedOutput{ScrubAsked{asked}}, nil
}

func errNoLog() error {
	return unavailable("AUDIT_LOG_UNAVAILABLE", "This program does not keep the tree over the log: ask one that runs `keyledger serve`.", 30)
}

// heldProblem says what keeps commands from being recorded: what was found, where, and
// what to do.
func heldProblem(held *ledger.HeldError) *Problem {
	p := unavailable("LOG_DAMAGED", "The log is not as it was signed: nothing is recorded until an operator has repaired it. Keys are verified as ever. What was found is under errors and in GET /v1/status.", 30)
	if damage, ok := errors.AsType[*merkle.DamageError](held); ok {
		for _, f := range damage.Findings {
			at := f.Stream
			if f.Sequence > 0 {
				at += " " + strconv.FormatUint(f.Sequence, 10) + " " + strconv.Itoa(f.Line)
			}
			p.Errors = append(p.Errors, Detail{Path: at, Message: f.Problem, Fix: f.Fix + " (docs/runbooks/" + f.Runbook + ")"})
		}
	}
	return p
}
