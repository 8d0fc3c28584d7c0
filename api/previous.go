package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

// PreviousUses say who used a secret that was rotated away, since then.
type PreviousUses struct {
	GraceUntil events.Time   `json:"grace_until" doc:"Until when it works; null: it does not any more."`
	LastUsedAt events.Time   `json:"last_used_at" doc:"null: no use of it is known."`
	Uses       []PreviousUse `json:"uses" nullable:"false" doc:"Added up by address and endpoint, the latest first."`
	Complete   bool          `json:"complete" doc:"false: there are more than could be read in the time of an answer."`
}

// PreviousUse are the uses of one address and endpoint.
type PreviousUse struct {
	IP       string      `json:"ip" doc:"Empty: not known, erased, or not the caller's to see."`
	Method   string      `json:"method"`
	Endpoint string      `json:"endpoint"`
	Count    int64       `json:"count"`
	LastAt   events.Time `json:"last_at"`
}

const (
	previousTime = 2 * time.Second
	mostPrevious = 20_000
)

func (a *API) previousUses() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "previous-uses", Method: http.MethodGet, Path: "/v1/keys/{id}/previous-uses", Tags: []string{"Keys"},
			Summary:     "Show who still uses the previous secret",
			Description: "Uses of rotated-away secrets since the last rotation, from the streams. Addresses are shown to operators and auditors, and that is recorded.",
		},
		action: domain.UsageRead, absent: true,
	}, a.getPreviousUses)
}

type previousOutput struct{ Body PreviousUses }

func (a *API) getPreviousUses(ctx context.Context, in *KeyPath) (*previousOutput, error) {
	k, err := a.key(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &previousOutput{PreviousUses{GraceUntil: k.GraceUntil(events.At(a.Now())), LastUsedAt: a.extra(ctx, k.ID).PreviousUsedAt, Uses: []PreviousUse{}, Complete: true}}
	if k.More == nil || k.RotatedAt == 0 {
		return out, nil
	}
	open := a.opener(callOf(ctx))
	reading, cancel := context.WithTimeout(ctx, previousTime)
	defer cancel()
	sums, n := map[PreviousUse]PreviousUse{}, 0
	// A verifier may have judged a use a little before it knew of the rotation: that one
	// is of the secret that was current.
	f := queries.AuditFilter{Keyspace: k.Keyspace, Owner: k.Owner, Key: k.ID, Types: []string{"key.used"}, From: k.RotatedAt}
	for e, err := range a.streams().All(reading, f, open) {
		if err != nil && errors.Is(reading.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
			out.Body.Complete = false
			break
		}
		if err != nil {
			return nil, unread(err)
		}
		if n++; n > mostPrevious {
			out.Body.Complete = false
			break
		}
		d, ok := e.Event.Data.(events.KeyUsed)
		if !ok || d.Secret != "previous" {
			continue
		}
		at := PreviousUse{IP: e.SourceIP, Method: d.Method, Endpoint: d.Endpoint}
		sum, known := sums[at]
		if !known {
			sum = at
		}
		sum.Count++
		sum.LastAt = max(sum.LastAt, e.Event.Time)
		sums[at] = sum
		out.Body.LastUsedAt = max(out.Body.LastUsedAt, e.Event.Time)
	}
	for _, s := range sums {
		out.Body.Uses = append(out.Body.Uses, s)
	}
	slices.SortFunc(out.Body.Uses, func(x, y PreviousUse) int {
		return cmp.Or(cmp.Compare(y.LastAt, x.LastAt), cmp.Compare(x.IP, y.IP), cmp.Compare(x.Endpoint, y.Endpoint), cmp.Compare(x.Method, y.Method))
	})
	out.Body.Uses = out.Body.Uses[:min(len(out.Body.Uses), 100)]
	if open == nil {
		return out, nil
	}
	return out, a.read(ctx, "previous uses", map[string]string{"key": k.ID}, len(out.Body.Uses))
}
