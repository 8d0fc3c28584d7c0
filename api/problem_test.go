package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events/ledger"
)

// Every error has its status, and what is not the caller's business stays inside.
func TestProblemOf(t *testing.T) {
	inside := errors.New("dial tcp 10.0.0.7:4222: secret detail")
	for _, c := range []struct {
		err    error
		status int
		code   string
		after  bool
	}{
		{&domain.Refusal{Kind: domain.Invalid, Code: "X", Detail: "d"}, 422, "X", false},
		{&domain.Refusal{Kind: domain.Conflict, Code: "X", Detail: "d"}, 409, "X", false},
		{&domain.Refusal{Kind: domain.NotFound, Code: "X", Detail: "d"}, 404, "X", false},
		{&domain.Refusal{Kind: domain.Gone, Code: "X", Detail: "d"}, 410, "X", false},
		{&domain.Refusal{Kind: domain.Forbidden, Code: "X", Detail: "d"}, 403, "X", false},
		{&domain.Refusal{Kind: domain.Stale, Code: "X", Detail: "d"}, 412, "X", false},
		{fmt.Errorf("wrapped: %w", &domain.Refusal{Kind: domain.Stale, Code: "X", Detail: "d"}), 412, "X", false},
		{&domain.DocumentError{Problems: []domain.Problem{{Path: "a", Line: 3, Message: "m", Fix: "f"}}}, 422, "INVALID_DOCUMENT", false},
		{fmt.Errorf("%w (%w)", ledger.ErrUnavailable, inside), 503, "LEDGER_UNAVAILABLE", true},
		{fmt.Errorf("append: %w", ledger.ErrUnknownOutcome), 503, "OUTCOME_UNKNOWN", true},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), 503, "OUTCOME_UNKNOWN", true},
		{&ledger.RefusalError{}, 503, "LEDGER_REFUSED", true},
		{inside, 500, "INTERNAL", false},
	} {
		p := problemOf(c.err)
		if p.Status != c.status || p.Code != c.code || (p.GetHeaders().Get("Retry-After") != "") != c.after {
			t.Errorf("%v is answered %d %s, Retry-After %q", c.err, p.Status, p.Code, p.GetHeaders().Get("Retry-After"))
		}
		if strings.Contains(p.Detail, "10.0.0.7") {
			t.Errorf("the inside shows: %s", p.Detail)
		}
		if c.status == 503 && !strings.Contains(p.Detail, "Idempotency-Key") && c.code != "LEDGER_REFUSED" {
			t.Errorf("%s does not say what to do: %s", c.code, p.Detail)
		}
	}
}
