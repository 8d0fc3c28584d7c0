package domain

import (
	"fmt"
	"strings"

	"github.com/keyledger/keyledger/events"
)

// Condition is what a request must also be like for a key to be admitted: Code is
// the refusal otherwise.
type Condition struct {
	Code Code   `json:"code"`
	Says string `json:"says"`
}

// Could says whether a key can make a request with its current secret: VALID, or
// the refusal. It is the verifier's own judgement, [Keyspace.JudgeKey]; what of req
// is nil or empty may be anything, and [Keyspace.WhyCould] says what it must be.
func (k *Keyspace) Could(req *Request, key *Key, owner *Owner, now events.Time) Code {
	return k.JudgeKey(req, "", key.Hash, key, owner, now)
}

// WhyCould says why [Keyspace.Could] answers as it does: the check that failed, or
// what of the key admits the request, and under which conditions.
func (k *Keyspace) WhyCould(req *Request, key *Key, owner *Owner, now events.Time) (why string, conditions []Condition) {
	steps := k.Explain(req, "current", key, owner, now)
	for _, s := range steps {
		if s.Verdict == Failed {
			return s.Why, nil
		}
	}
	conditions = []Condition{}
	add := func(code Code, format string, args ...any) {
		conditions = append(conditions, Condition{code, fmt.Sprintf(format, args...)})
	}
	for _, s := range steps {
		open := s.Verdict == NotRecorded
		switch {
		case s.Code == CodeInsufficientScope:
			why = s.Why
		case s.Code == CodeExpired && key.ExpiresAt != 0:
			add(s.Code, "until it expires at %s", key.ExpiresAt)
		case !open:
		case s.Code == CodeInsecureTransport:
			add(s.Code, "over TLS")
		case s.Code == CodeWrongContentType:
			add(s.Code, "with the content type %s, where it sends a body", k.Document.Credential.RequireContentType)
		case s.Code == CodeWrongEnvironment && len(k.Document.Format.Prefixes) > 1:
			add(s.Code, "where %s keys are admitted", key.Environment)
		case s.Code == CodeWrongOwner:
			add(s.Code, "on paths that name no owner but %s", key.Owner)
		case s.Code == CodeWrongResource:
			add(s.Code, "for %s alone", strings.Join(key.Resources, ", "))
		case s.Code == CodeOriginDenied:
			add(s.Code, "from the origins %s", strings.Join(key.AllowedOrigins, ", "))
		case s.Code == CodeIPDenied:
			add(s.Code, "from the addresses %s", strings.Join(key.AllowedIPs, ", "))
		case s.Code == CodeRateLimited:
			limits, _, _ := strings.Cut(s.Why, ";")
			add(s.Code, "at most %s", limits)
		}
	}
	return why, conditions
}

// UnknownScopes are those of a list that the document does not have.
func (k *Keyspace) UnknownScopes(scopes []string) (unknown []string) {
	for _, s := range scopes {
		if _, ok := k.Document.Scopes[s]; !ok {
			unknown = appendNew(unknown, s)
		}
	}
	return unknown
}
