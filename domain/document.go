package domain

import (
	"bytes"
	"encoding/json"

	"github.com/keyledger/keyledger/events"
)

// Document is a keyspace document, section 2 of the contract. Its JSON is what
// keyspace.configured records; an absent section is absent there too.
type Document struct {
	Keyspace       string                `json:"keyspace"`
	About          string                `json:"about,omitempty"`
	Credential     CredentialRules       `json:"credential"`
	Format         Format                `json:"format"`
	Display        Display               `json:"display"`
	Owner          OwnerRules            `json:"owner"`
	Resource       ResourceRules         `json:"resource"`
	Scopes         map[string]ScopeRules `json:"scopes,omitempty"`
	FixedScopes    []string              `json:"fixed_scopes,omitempty"`
	Plans          map[string]Plan       `json:"plans,omitempty"`
	DefaultPlan    string                `json:"default_plan,omitempty"`
	Limits         LimitRules            `json:"limits"`
	Lifecycle      Lifecycle             `json:"lifecycle"`
	LastUsed       string                `json:"last_used"` // any | successful
	AllowedOrigins bool                  `json:"allowed_origins"`
	Cost           CostRules             `json:"cost"`
	RateHeaders    []string              `json:"rate_headers,omitzero"` // x-ratelimit, retry-after, ietf; empty: none
	Answers        map[string]Answer     `json:"answers,omitempty"`     // by code, or default
	PublicRoutes   []PublicRoute         `json:"public_routes,omitempty"`
	Console        Console               `json:"console"`
	Alerts         []AlertRule           `json:"alerts,omitempty"`
}

// JSON is the one way to write the document: defaults filled in, names sorted,
// bodies of answers in the order of their author. The same document gives the
// same bytes, and ParseDocument reads them back to an equal document.
func (d *Document) JSON() []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(d); err != nil {
		// Only a raw body that is no JSON can fail, and ParseDocument makes none.
		panic("keyspace document " + d.Keyspace + ": " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// CredentialRules say where the secret stands in a request.
type CredentialRules struct {
	Header             string `json:"header"`
	Scheme             string `json:"scheme"` // empty: the bare header value
	RequireTLS         bool   `json:"require_tls"`
	RequireContentType string `json:"require_content_type,omitempty"`
}

// Format is how secrets of a keyspace look.
type Format struct {
	Prefixes           map[string]string `json:"prefixes"` // environment: literal prefix
	DefaultEnvironment string            `json:"default_environment"`
	Alphabet           string            `json:"alphabet"` // base36 | base62
	Length             int               `json:"length"`   // characters after the prefix, checksum included
	Checksum           string            `json:"checksum"` // none | crc32
}

// Display counts the characters of a secret that are kept and shown.
type Display struct {
	First int `json:"first"`
	Last  int `json:"last"`
}

// OwnerRules say what an owner is called and where it stands in a path.
type OwnerRules struct {
	Kind string `json:"kind,omitempty"`
	Path string `json:"path,omitempty"` // with {owner}; empty: not in the path
}

// ResourceRules say what keys may be bound to.
type ResourceRules struct {
	Kind string `json:"kind,omitempty"`
	Mode string `json:"mode"`           // none | optional | required
	Path string `json:"path,omitempty"` // with {resource}
}

// ScopeRules describe one scope.
type ScopeRules struct {
	About     string   `json:"about,omitempty"`
	Routes    []string `json:"routes,omitempty"`
	Grants    []string `json:"grants,omitempty"`    // keys.create, keys.rotate, keys.revoke, keys.delete, keys.read
	Available *bool    `json:"available,omitempty"` // false: known, cannot be granted yet
}

// Plan is limits, entitlement and key cap of an owner.
type Plan struct {
	Access  *bool                      `json:"access,omitempty"` // nil: true
	Limits  events.Limits              `json:"limits,omitempty"` // no entry: unlimited
	MaxKeys *int                       `json:"max_keys,omitempty"`
	Scopes  []string                   `json:"scopes,omitzero"` // nil: all; empty: none
	Details map[string]json.RawMessage `json:"details,omitempty"`
}

// LimitRules say which limits count for a key, and who shares them.
type LimitRules struct {
	From    string                   `json:"from"`     // key | plan
	CountBy string                   `json:"count_by"` // key | owner
	Default events.Limits            `json:"default,omitempty"`
	Presets map[string]events.Limits `json:"presets,omitempty"`
}

// Lifecycle says how keys expire and rotate.
type Lifecycle struct {
	Expiry   Expiry   `json:"expiry"`
	Rotation Rotation `json:"rotation"`
}

// Expiry guides whoever creates a key; any future time is taken.
type Expiry struct {
	Presets []string `json:"presets,omitempty"`
	Default string   `json:"default,omitempty"`
}

// Rotation says whether and how keys rotate.
type Rotation struct {
	Enabled      bool     `json:"enabled"`
	GraceDefault Duration `json:"grace_default"`
	GraceMax     Duration `json:"grace_max"`
	MaxAge       Duration `json:"max_age"` // zero: no secret is overdue
}

// CostRules say what a call costs.
type CostRules struct {
	Header     string `json:"header,omitempty"`
	PerRequest int64  `json:"per_request"` // micros
}

// Answer is how a refusal looks on the wire, a template.
type Answer struct {
	Status           int               `json:"status,omitempty"` // 0: the code's own
	Message          string            `json:"message,omitempty"`
	DocumentationURL string            `json:"documentation_url,omitempty"`
	Headers          map[string]string `json:"headers,omitempty"`
	Body             json.RawMessage   `json:"body,omitempty"` // any JSON with placeholders; its order is kept
}

// PublicRoute needs no credential.
type PublicRoute struct {
	Route  string          `json:"route"`
	Status int             `json:"status,omitempty"` // 0: the upstream answers
	Body   json.RawMessage `json:"body,omitempty"`
}

// Console is what the people of a product see and how they call it.
type Console struct {
	Columns  []string          `json:"columns,omitempty"`
	Statuses map[string]string `json:"statuses,omitempty"`
}

// AlertRule is one condition that its people want to hear of.
type AlertRule struct {
	When        string   `json:"when"`
	Above       *float64 `json:"above,omitempty"`
	Over        Duration `json:"over,omitzero"`
	Within      Duration `json:"within,omitzero"`
	For         Duration `json:"for,omitzero"`
	MinRequests int64    `json:"min_requests,omitempty"`
	Off         bool     `json:"off,omitempty"` // nobody wants to hear of it
}
