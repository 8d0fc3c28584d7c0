package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/commands/claims"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// ClaimRequest asks that a new secret is handed over by a link.
type ClaimRequest struct {
	ExpiresIn string `json:"expires_in,omitempty" doc:"How long the link can be opened, 5m to 30d; absent: 72h." example:"72h"`
}

// ClaimLink is what whoever should have the secret is sent.
type ClaimLink struct {
	ID    string      `json:"id" example:"clm_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Path  string      `json:"path" doc:"To open in a browser, on this host. The code is behind the #, which browsers send to nobody, so that no proxy has it in its log." example:"/claim#claim_…"`
	Code  string      `json:"code" doc:"The code alone, for the page's form and for POST /v1/claims/open. It is kept nowhere."`
	Until events.Time `json:"until" doc:"It can be opened; null with none."`
}

// Claim is what became of a key's latest claim.
type Claim struct {
	ID          string       `json:"id"`
	Key         string       `json:"key"`
	Status      string       `json:"status" enum:"waiting,opened,withdrawn,expired,lost" doc:"lost: the sealed secret is not there any more, and it is not known that anybody saw it."`
	MadeAt      events.Time  `json:"made_at"`
	MadeBy      events.Actor `json:"made_by"`
	Until       events.Time  `json:"until"`
	OpenedAt    events.Time  `json:"opened_at"`
	WithdrawnAt events.Time  `json:"withdrawn_at"`
}

// ClaimedKey is a secret with what its user must know of it, and no more.
type ClaimedKey struct {
	ID          string      `json:"id" doc:"Of the key."`
	Keyspace    string      `json:"keyspace"`
	About       string      `json:"about" doc:"Of the keyspace."`
	Name        string      `json:"name"`
	Display     string      `json:"display" doc:"The characters of the secret that will be shown of it."`
	Environment string      `json:"environment"`
	Scopes      []string    `json:"scopes" nullable:"false"`
	Resources   []string    `json:"resources" nullable:"false"`
	ExpiresAt   events.Time `json:"expires_at"`
	Header      string      `json:"header" doc:"The header that the secret is sent in."`
	Scheme      string      `json:"scheme" doc:"The word before it; empty: none."`
	Secret      string      `json:"secret" doc:"The whole secret. It is kept nowhere and never answered again."`
}

type (
	claimOutput struct{ Body Claim }
	openOutput  struct {
		CacheControl string `header:"Cache-Control" doc:"no-store"`
		Body         ClaimedKey
	}
)

func (a *API) claims() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "open-claim", Method: http.MethodPost, Path: "/v1/claims/open", Tags: []string{"Claims"},
			Summary:     "Open a claim",
			Description: "Shows the secret that waits for whoever has the code that stands behind the # of a link, once. The code is the credential: Authorization: Bearer claim_… 410 where it was used, withdrawn, is too old or was never made: which of them is not told. Recorded as claim.opened on OPS, with the address it came from, sealed.",
			Security:    []map[string][]string{{secured: {}}},
		},
	}, a.openClaim)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "get-claim", Method: http.MethodGet, Path: "/v1/keys/{id}/claim", Tags: []string{"Claims"},
			Summary: "Show what became of a key's claim", Description: "Of the latest one: whether and when it was opened, or until when it waits.",
		},
		action: domain.KeysRead, absent: true,
	}, a.getClaim)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "withdraw-claim", Method: http.MethodDelete, Path: "/v1/keys/{id}/claim", Tags: []string{"Claims"},
			Summary:     "Withdraw a key's claim",
			Description: "Its link opens nothing any more. The key stays, with a secret that nobody has seen: rotate or revoke it. One that was opened stays opened. Recorded as claim.withdrawn on OPS.",
		},
		action: domain.KeysRotate, absent: true,
	}, a.withdrawClaim)
}

// claimFor is how long the claim that is asked for lasts; 0: none is.
func (a *API) claimFor(in *ClaimRequest) (time.Duration, error) {
	if in == nil {
		return 0, nil
	}
	if a.Claims == nil {
		return 0, errNoClaims()
	}
	if in.ExpiresIn == "" {
		return claims.DefaultTime, nil
	}
	d, err := domain.ParseDuration(in.ExpiresIn)
	if lasts := time.Duration(d); err == nil && lasts >= claims.ShortestTime && lasts <= claims.LongestTime {
		return lasts, nil
	}
	return 0, unprocessable(Detail{Path: "claim.expires_in", Message: "is not how long a link can be opened", Fix: "5m to 30d, such as 72h"})
}

func errNoClaims() *Problem {
	return unavailable("CLAIMS_UNAVAILABLE", "This program hands no secrets over by a link: ask one that runs `keyledger serve`.", 30)
}

// claim puts the secret of a command's answer behind a link.
func (a *API) claim(ctx context.Context, r commands.Result, lasts time.Duration, out *KeySecret) error {
	if lasts == 0 || r.Secret == "" {
		return nil
	}
	code, made, err := a.Claims.Make(ctx, a.claimBy(ctx), r.Key, r.Secret, lasts)
	if err != nil {
		return &readError{unavailable("CLAIM_NOT_MADE", fmt.Sprintf("The secret of %s was made, and its link was not: nobody knows that secret. Rotate the key with a claim, or revoke it.", r.Key.ID), 2), err}
	}
	out.Secret, out.Claim = nil, &ClaimLink{ID: made.ID, Path: "/claim#" + code, Code: code, Until: made.Until}
	return nil
}

func (a *API) claimBy(ctx context.Context) claims.By {
	c := callOf(ctx)
	return claims.By{Actor: c.authority.Actor, Via: c.via(), RequestID: c.requestID}
}

// claimError is what a caller is told.
func claimError(err error) error {
	switch {
	case errors.Is(err, claims.ErrNone):
		return problem(http.StatusNotFound, "CLAIM_NOT_FOUND", "The secret of this key was not handed over by a link.")
	case errors.Is(err, claims.ErrGone):
		return problem(http.StatusGone, "CLAIM_GONE", "This code was used already, was withdrawn, is too old, or misses a character. Ask whoever sent it for another one; if it was used, and not by you, tell them so.")
	}
	return &readError{unavailable("CLAIMS_UNAVAILABLE", "The event store cannot be reached: ask again.", 2), err}
}

func claimShape(c claims.Claim) Claim {
	return Claim{c.ID, c.Key, c.Status, c.MadeAt, c.MadeBy, c.Until, c.OpenedAt, c.WithdrawnAt}
}

func (a *API) getClaim(ctx context.Context, in *KeyPath) (*claimOutput, error) {
	k, err := a.key(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if a.Claims == nil {
		return nil, errNoClaims()
	}
	c, err := a.Claims.Of(ctx, k.ID)
	if err != nil {
		return nil, claimError(err)
	}
	return &claimOutput{claimShape(c)}, nil
}

func (a *API) withdrawClaim(ctx context.Context, in *KeyPath) (*claimOutput, error) {
	k, err := a.key(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if a.Claims == nil {
		return nil, errNoClaims()
	}
	c, err := a.Claims.Withdraw(ctx, a.claimBy(ctx), k)
	if err != nil {
		return nil, claimError(err)
	}
	return &claimOutput{claimShape(c)}, nil
}

func (a *API) openClaim(ctx context.Context, _ *struct{}) (*openOutput, error) {
	code, wrong := domain.RootKeyspace().Credential(callOf(ctx).header.Values("Authorization"))
	if wrong != "" {
		return nil, unauthorized(wrong)
	}
	if !strings.HasPrefix(code, claims.Prefix) {
		return nil, unauthorized(domain.CodeUnknownKey)
	}
	if a.Claims == nil {
		return nil, errNoClaims()
	}
	o, err := a.Claims.Open(ctx, a.claimBy(ctx), code, a.Ring.Key, callOf(ctx).ip())
	if err != nil {
		return nil, claimError(err)
	}
	k := o.Key
	out := ClaimedKey{ID: k.ID, Keyspace: k.Keyspace, Name: k.Name, Display: k.Display(), Environment: k.Environment,
		Scopes: append([]string{}, k.Scopes...), Resources: append([]string{}, k.Resources...), ExpiresAt: k.ExpiresAt, Secret: o.Secret, Header: "Authorization", Scheme: "Bearer"}
	if ks := a.Ring.Keyspace(k.Keyspace); ks != nil {
		d := ks.Document
		out.About, out.Header, out.Scheme = d.About, d.Credential.Header, d.Credential.Scheme
	}
	return &openOutput{CacheControl: "no-store", Body: out}, nil
}
