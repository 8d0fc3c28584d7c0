package domain

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/keyledger/keyledger/events"
)

// Command is what somebody asks to happen. Times that are relative to the
// moment of the decision are resolved by Decide.
type Command interface{ command() }

// ConfigureKeyspace gives a keyspace a document that ParseDocument accepted.
type ConfigureKeyspace struct {
	Document *Document
	Users    Users // of what the document in force has
}

// Users names, for each plan, scope and environment in use, who uses it.
type Users struct {
	Plans, Scopes, Environments map[string][]string
}

// SetOwner registers an owner, renames it or puts it on another plan. A nil
// field stays as it is; a new owner without a plan gets the default one.
type SetOwner struct {
	Name *string
	Plan *string
}

// CreateKey makes a key. Secret is what is kept of the secret that was drawn
// for it, or the hash it is imported with.
type CreateKey struct {
	ID             string
	Name           string
	Environment    string // empty: the default one
	Plan           string // empty: the owner's counts
	Scopes         *[]string
	Resources      []string
	Limits         map[string]*int64 // null: unlimited; a window not named takes the default
	AllowedOrigins []string
	AllowedIPs     []string
	ExpiresAt      *events.Time // zero: never
	ExpiresIn      *Duration
	Meta           map[string]string
	Role           string
	For            *events.Reach
	Imported       bool
	Secret         events.Secret
}

// UpdateKey changes the fields that are not nil.
type UpdateKey struct {
	Name           *string
	Plan           *string
	Scopes         *[]string
	Resources      *[]string
	Limits         *map[string]*int64
	AllowedOrigins *[]string
	AllowedIPs     *[]string
	ExpiresAt      *events.Time // zero: never
	Meta           *map[string]string
}

// RotateKey gives a key a new secret. The one it replaces works for Grace
// longer; nil: as long as the document's default says.
type RotateKey struct {
	Secret   events.Secret
	Grace    *Duration
	EndGrace bool // end the grace of the secrets before the current one
	Reason   string
}

// EndGrace ends every running grace now.
type EndGrace struct{ Reason string }

// RevokeKey refuses a key for ever.
type RevokeKey struct{ Reason string }

// DeleteKey takes a key off every list, revoking it first where it is not.
type DeleteKey struct{}

func (ConfigureKeyspace) command() {}
func (SetOwner) command()          {}
func (CreateKey) command()         {}
func (UpdateKey) command()         {}
func (RotateKey) command()         {}
func (EndGrace) command()          {}
func (RevokeKey) command()         {}
func (DeleteKey) command()         {}

// Kind sorts refusals by what the caller can do about them.
type Kind int

// The kinds of refusal, each with its HTTP status in the contract.
const (
	Invalid   Kind = iota + 1 // 422: the input is wrong
	Conflict                  // 409: the state does not allow it
	NotFound                  // 404: absent, or not the caller's to see
	Gone                      // 410: deleted
	Forbidden                 // 403: more than one's authority or plan
	Stale                     // 412: it moved since it was read
)

// Refusal is a command that may not happen, and why.
type Refusal struct {
	Kind     Kind
	Code     string // for programs, such as KEY_LIMIT_REACHED
	Detail   string // for people, one sentence
	Problems []Problem
	Count    *int // of a cap
	Limit    *int
}

func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString(r.Detail)
	for _, p := range r.Problems {
		b.WriteString("; ")
		b.WriteString(p.Path)
		b.WriteString(": ")
		b.WriteString(p.Message)
	}
	return b.String()
}

func refuse(kind Kind, code, detail string) *Refusal {
	return &Refusal{Kind: kind, Code: code, Detail: detail}
}

// KeyNotFound is the one answer for a key that is absent and for one that the
// caller may not see.
func KeyNotFound() *Refusal {
	return refuse(NotFound, "KEY_NOT_FOUND", "There is no key with this id.")
}

// KeyspaceNotFound likewise.
func KeyspaceNotFound() *Refusal {
	return refuse(NotFound, "KEYSPACE_NOT_FOUND", "There is no keyspace with this id.")
}

// OwnerNotFound likewise.
func OwnerNotFound() *Refusal {
	return refuse(NotFound, "OWNER_NOT_FOUND", "There is no owner with this id in the keyspace: register it first with PUT /v1/keyspaces/{keyspace}/owners/{owner}.")
}

// CommandID is the command field of the facts that one idempotent command
// causes: cmd_<who and which>_<what>. Two processes that get the same command
// make the same id.
func CommandID(actor events.Actor, idempotencyKey string, body []byte) string {
	return "cmd_" + digest(actor.Type, actor.ID, idempotencyKey)[:32] + "_" + digest(string(body))[:32]
}

// SplitCommandID returns the two parts of an idempotent command's id.
func SplitCommandID(id string) (which, what string, ok bool) {
	rest, ok := strings.CutPrefix(id, "cmd_")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "_")
}

// DerivedKeyID is a key's id that every process derives alike from the same
// parts, so that they meet on one subject.
func DerivedKeyID(parts ...string) string {
	h := sha256.Sum256([]byte(digest(parts...)))
	return events.FormatID("key", [16]byte(h[:16]))
}

// digest hashes parts so that no two lists of parts run into each other.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		s := sha256.Sum256([]byte(p))
		h.Write(s[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}
