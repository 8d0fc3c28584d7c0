package api

import (
	"github.com/keyledger/keyledger/events"
)

// Key is a key as it is answered everywhere: section 5 of the contract, Shapes.
type Key struct {
	ID             string            `json:"id" doc:"Stable; a rotation does not change it." example:"key_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Keyspace       string            `json:"keyspace" example:"parcelbird"`
	Owner          string            `json:"owner" doc:"Empty for a root key." example:"org_1"`
	Name           string            `json:"name" example:"CI"`
	Display        string            `json:"display" doc:"The characters of the current secret that the keyspace's document allows to be shown." example:"pb_live_3fA9...k2Qz"`
	Environment    string            `json:"environment" example:"live"`
	Status         string            `json:"status" enum:"active,expired,revoked,rate_limited"`
	Plan           string            `json:"plan" doc:"The key's own plan; empty: the owner's counts." example:""`
	Scopes         []string          `json:"scopes" nullable:"false"`
	Resources      []string          `json:"resources" nullable:"false" doc:"Empty: not bound."`
	Limits         events.Limits     `json:"limits" doc:"Requests per window; a window that is absent is unlimited."`
	AllowedOrigins []string          `json:"allowed_origins" nullable:"false" doc:"Empty: all."`
	AllowedIPs     []string          `json:"allowed_ips" nullable:"false" doc:"Addresses and networks; empty: all."`
	Meta           map[string]string `json:"meta"`
	CreatedAt      events.Time       `json:"created_at"`
	CreatedBy      events.Actor      `json:"created_by"`
	ExpiresAt      events.Time       `json:"expires_at"`
	RotatedAt      events.Time       `json:"rotated_at"`
	GraceUntil     events.Time       `json:"grace_until" doc:"Until when a previous secret still works."`
	RevokedAt      events.Time       `json:"revoked_at"`
	RevokeReason   string            `json:"revoke_reason"`
	LastUsedAt     events.Time       `json:"last_used_at"`
	UseCount       *int64            `json:"use_count" doc:"Admitted requests; null with as_of: LEDGER does not tell it."`
	Version        uint32            `json:"version" doc:"Counts the facts of this key; also its ETag." example:"1"`
	Role           string            `json:"role,omitempty" doc:"Of a root key." enum:"operator,verifier,auditor,manager"`
	For            *events.Reach     `json:"for,omitempty" doc:"What a manager's root key may touch."`
}
