// Package domain holds the rules of keyledger, pure: what a key, an owner and
// a keyspace are, which commands change them, and how one request is judged.
//
// [Evolve] folds the facts of the ledger into a [State]; [Decide] asks a State
// whether a command may happen and answers with the facts that it causes;
// [Keyspace.Judge] decides one request in the order of section 3 of the
// contract. A command, a verification and a replay of the past all go through
// the same fold: there is no second way to know what a key is.
//
// Nothing here does I/O, reads a clock or draws a random number. Values of
// Key, Owner and Keyspace are immutable once they are in a State: Evolve
// copies what it changes, so that readers need no lock.
package domain

import "github.com/keyledger/keyledger/events"

// State is what the ledger says about one subject: a keyspace, perhaps an
// owner in it, perhaps a key of that owner. A nil pointer means that there is
// no such fact yet.
type State struct {
	Keyspace *Keyspace
	Owner    *Owner
	Key      *Key

	// Counts of other keys at the time of the command, by whoever holds them all.
	ActiveKeys int // the owner's keys that are neither revoked, deleted nor expired
	Operators  int // the root keys of role operator of which the same is true
}

// Grant is what a key may do. Keys that may do the same share one Grant, which
// is why it MUST NOT be changed in place.
type Grant struct {
	// What a verification reads stands together, first.
	Keyspace       string
	Owner          string
	Plan           string // empty: the owner's counts
	quota          Quota  // of Limits, where a fact made them
	Scopes         []string
	Resources      []string
	AllowedOrigins []string
	AllowedIPs     []string
	Environment    string
	Limits         events.Limits
	CreatedBy      events.Actor
	Role           string        // of a root key
	For            *events.Reach // of a manager's root key
}

// Key is a credential with a stable id. Times are zero when absent.
//
// There may be a million of these in memory: what few keys have is behind
// More, what many keys share is behind Grant.
type Key struct {
	// What a verification reads stands together, first.
	*Grant
	*More
	Hash      [32]byte // SHA-256 of the current secret
	ExpiresAt events.Time
	ID        string
	Name      string
	First     string // shown characters of the current secret
	Last      string
	CreatedAt events.Time
	Version   uint32 // of the last fact that held
	Sequence  uint64 // of the last fact on its subject in LEDGER, void ones included
}

// More is what few keys have. It is nil for a key that has none of it; the
// methods of Key read it safely.
type More struct {
	Meta         map[string]string
	Earlier      []Earlier // rotated-away secrets, newest last
	RotatedAt    events.Time
	RevokedAt    events.Time
	RevokeReason string
	DeletedAt    events.Time
	Imported     bool
}

// Earlier is a rotated-away secret. It works until Until, and is SUPERSEDED
// from then on.
type Earlier struct {
	Hash  [32]byte
	Until events.Time
	First string // shown characters
	Last  string
}

// Owner is the customer's organization or project that keys belong to.
type Owner struct {
	Keyspace  string
	ID        string
	Name      string
	Plan      string
	CreatedAt events.Time
	Version   uint32 // of the last fact that held
	Sequence  uint64 // of the last fact on its subject in LEDGER, void ones included
}

// Keyspace is one API product: its document in force, ready for use.
type Keyspace struct {
	*Document
	DocumentVersion int
	Version         uint32 // of the last fact that held
	Sequence        uint64 // of the last fact on its subject in LEDGER, void ones included
	ConfiguredAt    events.Time

	compiled // routes and answers, see compile
}
