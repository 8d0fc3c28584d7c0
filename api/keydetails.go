package api

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// keyDetails are the calls about what one key has besides its own fields.
func (a *API) keyDetails() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "get-key-limits", Method: http.MethodGet, Path: "/v1/keys/{id}/limits", Tags: []string{"Keys"},
			Summary:     "How much of its limits a key has used",
			Description: "Every window that applies, as this node counts it now: what other nodes admitted is there as soon as they tell, within milliseconds. Asking counts nothing.",
		},
		action: domain.KeysRead, read: true,
	}, a.getKeyLimits)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-key-secrets", Method: http.MethodGet, Path: "/v1/keys/{id}/secrets", Tags: []string{"Keys"},
			Summary:     "The secrets of a key",
			Description: "The current one and those that were rotated away, newest first, as far as they may be shown, with the last use of each that works, as far as the read models can be reached.",
		},
		action: domain.KeysRead, read: true,
	}, a.listKeySecrets)
}

// KeyLimits are the limits of a key and what is used of them.
type KeyLimits struct {
	Shared bool            `json:"shared" doc:"All keys of the owner that are on its plan draw from the same pool."`
	Plan   string          `json:"plan" doc:"The plan in force, which is the key's own or its owner's; empty: there is none." example:"basic"`
	From   string          `json:"from" enum:"key,plan" doc:"Whether the limits are the key's own or those of the plan."`
	Limits []KeyLimitUsage `json:"limits" nullable:"false" doc:"A window that is absent is unlimited."`
}

// KeyLimitUsage is one window.
type KeyLimitUsage struct {
	Window    string      `json:"window" enum:"minute,hour,day"`
	Limit     int64       `json:"limit" example:"100"`
	Used      int64       `json:"used" example:"17"`
	Remaining int64       `json:"remaining" example:"83"`
	Reset     events.Time `json:"reset" doc:"When there is more room than now."`
}

type keyLimitsOutput struct{ Body KeyLimits }

func (a *API) getKeyLimits(ctx context.Context, in *KeyPath) (*keyLimitsOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	k, err := a.key(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if a.Verifier == nil {
		return nil, unavailable("LIMITS_UNAVAILABLE", "This node verifies nothing, and counts nothing.", 30)
	}
	out := &keyLimitsOutput{KeyLimits{From: "plan", Limits: []KeyLimitUsage{}}}
	if ks := a.Ring.Keyspace(k.Keyspace); ks != nil {
		out.Body.Plan, _, _ = ks.PlanInForce(k, a.Ring.Owner(k.Keyspace, k.Owner))
		if ks.Limits.From == "key" {
			out.Body.From = "key"
		}
	}
	limits, shared := a.Verifier.Standing(k)
	out.Body.Shared = shared
	for _, l := range limits {
		out.Body.Limits = append(out.Body.Limits, KeyLimitUsage{l.Window, l.Limit, l.Limit - l.Remaining, l.Remaining, l.Reset})
	}
	return out, nil
}

// KeySecrets are the secrets that a key has or had.
type KeySecrets struct {
	Secrets []KeySecretState `json:"secrets" nullable:"false"`
}

// KeySecretState is one of them, without the secret.
type KeySecretState struct {
	Display    string      `json:"display" doc:"The characters that the keyspace's document allows to be shown." example:"pb_live_3fA9...k2Qz"`
	State      string      `json:"state" enum:"current,grace,ended" doc:"grace: rotated away, and still working. ended: SUPERSEDED."`
	Since      events.Time `json:"since" doc:"When it was made; null: the facts of the key do not tell any more."`
	WorksUntil events.Time `json:"works_until" doc:"End of its grace, in the future or past; null of the current one, which works as long as the key."`
	LastUsedAt events.Time `json:"last_used_at" doc:"null: not known. Of several rotated-away secrets the last one has it. Where both secrets are in use, only the one that was used last may have it."`
}

type keySecretsOutput struct{ Body KeySecrets }

func (a *API) listKeySecrets(ctx context.Context, in *KeyPath) (*keySecretsOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	k, err := a.key(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	x, now := a.extra(ctx, k.ID), events.At(a.Now())
	current := KeySecretState{Display: k.Display(), State: "current", Since: k.CreatedAt}
	var earlier []domain.Earlier
	if k.More != nil {
		earlier = k.Earlier
		current.Since = max(current.Since, k.RotatedAt)
	}
	if len(earlier) == 0 || x.LastSecret == "current" && x.LastUsedAt >= current.Since {
		current.LastUsedAt = x.LastUsedAt
	}
	out := &keySecretsOutput{KeySecrets{[]KeySecretState{current}}}
	for i, e := range slices.Backward(earlier) {
		s := KeySecretState{Display: domain.ShowSecret(e.First, e.Last), State: "grace", WorksUntil: e.Until}
		if e.Until <= now {
			s.State = "ended"
		}
		if i == len(earlier)-1 {
			s.LastUsedAt = x.PreviousUsedAt
		}
		if i == 0 {
			s.Since = k.CreatedAt
		}
		out.Body.Secrets = append(out.Body.Secrets, s)
	}
	return out, nil
}
