// Package events holds the facts of keyledger: what was done to keys and with
// keys, as they are written to the streams and kept for ever.
//
// A fact is an [Envelope] around one payload struct per type. [Encode] makes
// the bytes that are stored, hashed, exported and compared; they are never
// serialized a second time. [Decode] reads every version ever released and
// raises it to the newest one. A type or version it does not know is an
// [UnknownError]: a reader stops there, because skipping a fact would make every
// later answer wrong.
//
// The package knows no rules and does no I/O; it depends on the standard
// library alone. The types are those of section 4 of the contract.
package events

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// None is the subject token that stands where there is no owner or no key.
const None = "_"

// The streams, by the names that they have on JetStream.
const (
	Ledger = "LEDGER" // facts about keys, owners and keyspaces
	Usage  = "USAGE"  // what was done with keys, in pages
	Feed   = "FEED"   // LEDGER's facts in their public form, for subscribers
	Ops    = "OPS"    // acts around the ledger
	DLQ    = "DLQ"    // what a reactor could not deliver
)

// Envelope is one fact. Every field is always written; an absent owner or key
// is the empty string.
type Envelope struct {
	ID         string `json:"id"`      // evt_<uuidv7>
	Type       string `json:"type"`    // a literal, see [Payload]
	Version    int    `json:"version"` // of the payload's meaning, from 1
	Time       Time   `json:"time"`    // when it was decided, by the clock of the process that decided
	Keyspace   string `json:"keyspace"`
	Owner      string `json:"owner"`
	Key        string `json:"key"`
	KeyVersion uint64 `json:"key_version"` // counts the facts of one key (or owner, or keyspace) from 1; 0 for acts and uses
	Actor      Actor  `json:"actor"`
	Via        string `json:"via"`        // api, cli, console, gateway, authz, dev, …
	RequestID  string `json:"request_id"` // req_…
	Command    string `json:"command"`    // cmd_…, see domain.CommandID
	Data       Payload
}

// Actor is who caused a fact: an opaque id, never a person's name.
type Actor struct {
	Type string `json:"type"` // root_key, key, claim, system
	ID   string `json:"id"`
}

// Record is a fact with its place, and the bytes as they are stored.
type Record struct {
	Stream   string
	Sequence uint64
	Line     int // from 0; only pages of USAGE have more than one
	Subject  string
	Body     []byte // exactly as stored; MUST NOT be changed
	Event    Envelope
	Ledger   uint64 // of a fact read from FEED: its sequence in LEDGER; else 0
}

// Payload is the data of one type of fact, in its newest version.
type Payload interface {
	// Kind is the type on the wire and its newest version, both literals.
	Kind() (name string, version int)
}

// New returns the envelope of a payload, with a fresh id, at time now. The
// caller fills in whom it is about and who caused it.
func New(data Payload, now time.Time) Envelope {
	name, version := data.Kind()
	return Envelope{ID: NewID("evt", now), Type: name, Version: version, Time: At(now), Data: data}
}

// Subject is the one LEDGER subject of a key, an owner (key empty) or a
// keyspace (both empty): ledger.<keyspace>.<owner>.<key>.
//
// All facts of root keys share the subject of their keyspace, so that they
// expect one sequence and no race can revoke the last operator key.
func Subject(keyspace, owner, key string) string {
	if keyspace == RootKeyspace {
		return "ledger." + RootKeyspace + "._._"
	}
	return "ledger." + keyspace + "." + token(owner) + "." + token(key)
}

// RootKeyspace is the built-in keyspace of root keys.
const RootKeyspace = "keyledger"

// FeedSubject is the FEED subject of a fact:
// feed.<type>.<keyspace>.<owner>.<key>.
func FeedSubject(e Envelope) string {
	return "feed." + e.Type + "." + e.Keyspace + "." + token(e.Owner) + "." + token(e.Key)
}

// OpsSubject is the OPS subject of an act: ops.<keyspace>.<owner>.<key>.
func OpsSubject(e Envelope) string {
	return "ops." + token(e.Keyspace) + "." + token(e.Owner) + "." + token(e.Key)
}

func token(s string) string {
	if s == "" {
		return None
	}
	return s
}

// NewID returns prefix_<uuidv7> for the given time: sortable by time, 74 bits of
// it random.
func NewID(prefix string, now time.Time) string {
	var u [16]byte
	if _, err := rand.Read(u[:]); err != nil {
		panic(err) // crypto/rand never fails on a supported system
	}
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(u[:6], ms[2:])
	return FormatID(prefix, u)
}

// FormatID writes 16 bytes as prefix_<uuid>, with the bits of version 7 set.
func FormatID(prefix string, u [16]byte) string {
	return string(AppendID(make([]byte, 0, len(prefix)+37), prefix, u))
}

// ParseID returns the 16 bytes of prefix_<uuid>.
func ParseID(prefix, id string) (u [16]byte, err error) {
	u, ok := parseID(prefix, id)
	switch {
	case ok:
		return u, nil
	case id != strings.ToLower(id):
		return u, fmt.Errorf("ids are lower-case")
	}
	return u, fmt.Errorf("not an id of the form %s_<uuid>", prefix)
}

// Time is a moment in milliseconds since 1970, UTC; zero means absent. On the
// wire it is RFC 3339 with exactly three decimals, or null.
type Time int64

// At is t cut to the millisecond.
func At(t time.Time) Time {
	if t.IsZero() {
		return 0
	}
	return Time(t.UnixMilli())
}

// Time is the moment as a time.Time in UTC; the zero Time is the zero time.Time.
func (t Time) Time() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(t)).UTC()
}

const timeFormat = "2006-01-02T15:04:05.000Z"

func (t Time) String() string {
	if t == 0 {
		return ""
	}
	return string(t.append(make([]byte, 0, len(timeFormat))))
}

// MarshalJSON writes the moment in RFC 3339, or null.
func (t Time) MarshalJSON() ([]byte, error) {
	return t.AppendJSON(make([]byte, 0, len(timeFormat)+2)), nil
}

// UnmarshalJSON reads RFC 3339 in any zone, or null.
func (t *Time) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*t = 0
		return nil
	}
	if len(b) < 2 || b[0] != '"' || b[len(b)-1] != '"' {
		return fmt.Errorf("a time is a string in RFC 3339, such as \"2026-01-18T12:00:00.000Z\"")
	}
	p, err := time.Parse(time.RFC3339Nano, string(b[1:len(b)-1]))
	if err != nil {
		return fmt.Errorf("a time is a string in RFC 3339, such as \"2026-01-18T12:00:00.000Z\"")
	}
	*t = At(p)
	return nil
}
