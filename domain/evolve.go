package domain

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/keyledger/keyledger/events"
)

// Holds says whether a fact counts. The first fact in stream order at a
// (key, key_version) wins; every other one is void for every reader, as is a
// fact about a key that stands on another owner's subject.
func Holds(s State, e events.Envelope) bool {
	version := uint32(0)
	switch e.Data.(type) {
	case events.KeyspaceConfigured:
		if s.Keyspace != nil {
			version = s.Keyspace.Version
		}
	case events.OwnerRegistered:
		if s.Owner != nil {
			version = s.Owner.Version
		}
	case events.OwnerPlanChanged, events.OwnerKeyAdmitted:
		if s.Owner == nil {
			return false
		}
		version = s.Owner.Version
	case events.KeyCreated:
		if s.Key != nil {
			return false
		}
	case events.KeyUpdated, events.KeyRotated, events.KeyGraceEnded, events.KeyRevoked, events.KeyDeleted:
		if s.Key == nil || s.Key.Keyspace != e.Keyspace || s.Key.Owner != e.Owner {
			return false
		}
		version = s.Key.Version
	default:
		return false // an act or a use changes nobody's state
	}
	return e.KeyVersion == uint64(version)+1
}

// Evolve is the one fold of the ledger. It cannot fail: a void fact moves
// nothing but the sequence that the next append on its subject expects.
func Evolve(s State, r events.Record) State {
	e := r.Event
	if !Holds(s, e) {
		return moved(s, r)
	}
	switch d := e.Data.(type) {
	case events.KeyspaceConfigured:
		var doc Document
		// A document was valid when it was recorded; one that this program
		// cannot read keeps its name and admits nobody.
		if err := json.Unmarshal(d.Document, &doc); err != nil {
			doc = Document{}
		}
		doc.Keyspace = strings.Clone(e.Keyspace) // kept for long, see events.Decode
		k := Compile(&doc, d.DocumentVersion)
		k.Version, k.Sequence, k.ConfiguredAt = uint32(e.KeyVersion), r.Sequence, e.Time
		s.Keyspace = k
	case events.OwnerRegistered:
		o := Owner{Keyspace: e.Keyspace, ID: e.Owner, CreatedAt: e.Time}
		if s.Owner != nil {
			o.CreatedAt = s.Owner.CreatedAt
		}
		o.Name, o.Plan = d.Name, d.Plan
		o.Version, o.Sequence = uint32(e.KeyVersion), r.Sequence
		s.Owner = &o
	case events.OwnerPlanChanged:
		o := *s.Owner
		o.Plan = d.Plan
		o.Version, o.Sequence = uint32(e.KeyVersion), r.Sequence
		s.Owner = &o
	case events.OwnerKeyAdmitted:
		o := *s.Owner
		o.Version, o.Sequence = uint32(e.KeyVersion), r.Sequence
		s.Owner = &o
	case events.KeyCreated:
		s.Key = created(e, d)
		s.Key.Version, s.Key.Sequence = uint32(e.KeyVersion), r.Sequence
	default:
		k := *s.Key
		k.Version, k.Sequence = uint32(e.KeyVersion), r.Sequence
		changed(&k, e)
		s.Key = &k
	}
	return s
}

// moved advances the sequence of the subject that a void fact stands on.
func moved(s State, r events.Record) State {
	switch {
	case r.Event.Key != "":
		if s.Key != nil && s.Key.Keyspace == r.Event.Keyspace && s.Key.Owner == r.Event.Owner {
			k := *s.Key
			k.Sequence = r.Sequence
			s.Key = &k
		}
	case r.Event.Owner != "":
		if s.Owner != nil {
			o := *s.Owner
			o.Sequence = r.Sequence
			s.Owner = &o
		}
	case s.Keyspace != nil:
		k := *s.Keyspace
		k.Sequence = r.Sequence
		s.Keyspace = &k
	}
	return s
}

func created(e events.Envelope, d events.KeyCreated) *Key {
	k := &Key{
		ID:   e.Key,
		Name: d.Name,
		Grant: &Grant{
			Keyspace: e.Keyspace, Owner: e.Owner,
			Environment: d.Environment, Plan: d.Plan,
			Scopes: d.Scopes, Resources: d.Resources, Limits: d.Limits,
			AllowedOrigins: d.AllowedOrigins, AllowedIPs: d.AllowedIPs,
			CreatedBy: e.Actor, Role: d.Role, For: d.For, quota: QuotaOf(d.Limits),
		},
		Hash: parseHash(d.Secret.SHA256), First: d.Secret.First, Last: d.Secret.Last,
		CreatedAt: e.Time, ExpiresAt: d.ExpiresAt,
	}
	if len(d.Meta) > 0 || d.Imported {
		k.More = &More{Meta: d.Meta, Imported: d.Imported}
	}
	return k
}

// changed applies a fact that holds to a copy of a key.
func changed(k *Key, e events.Envelope) {
	more := More{}
	if k.More != nil {
		more = *k.More
	}
	switch d := e.Data.(type) {
	case events.KeyUpdated:
		g := *k.Grant
		set(&k.Name, d.Name)
		set(&g.Plan, d.Plan)
		set(&g.Scopes, d.Scopes)
		set(&g.Resources, d.Resources)
		set(&g.Limits, d.Limits)
		g.quota = QuotaOf(g.Limits)
		set(&g.AllowedOrigins, d.AllowedOrigins)
		set(&g.AllowedIPs, d.AllowedIPs)
		set(&more.Meta, d.Meta)
		if d.ExpiresAt != nil {
			k.ExpiresAt = d.ExpiresAt.At
		}
		k.Grant = &g
		if k.More == nil && len(more.Meta) == 0 {
			return
		}
	case events.KeyRotated:
		until := d.GraceUntil
		if until == 0 {
			until = e.Time
		}
		more.Earlier = slices.Clone(more.Earlier)
		if d.EndGrace {
			endGraces(more.Earlier, e.Time)
		}
		more.Earlier = append(more.Earlier, Earlier{k.Hash, until, k.First, k.Last})
		more.RotatedAt = e.Time
		k.Hash, k.First, k.Last = parseHash(d.Secret.SHA256), d.Secret.First, d.Secret.Last
	case events.KeyGraceEnded:
		more.Earlier = slices.Clone(more.Earlier)
		endGraces(more.Earlier, e.Time)
	case events.KeyRevoked:
		more.RevokedAt, more.RevokeReason = e.Time, d.Reason
	case events.KeyDeleted:
		more.DeletedAt = e.Time
	}
	k.More = &more
}

func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

func endGraces(earlier []Earlier, at events.Time) {
	for i := range earlier {
		earlier[i].Until = min(earlier[i].Until, at)
	}
}

// parseHash reads a hash as the ledger holds it. The hash of a fact in its
// public form is absent: it becomes the zero hash, which no secret has.
func parseHash(s string) [32]byte {
	h, _ := ParseHash(s)
	return h
}

// digit is the value of a hexadecimal digit in lower case, or 255. Reading a
// million hashes with encoding/hex would cost an allocation each.
func digit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// ParseHash reads a SHA-256 hash in lower-case hex.
func ParseHash(s string) (h [32]byte, ok bool) {
	if len(s) != 64 {
		return h, false
	}
	for i := range h {
		high, low := digit(s[2*i]), digit(s[2*i+1])
		if high|low > 15 {
			return [32]byte{}, false
		}
		h[i] = high<<4 | low
	}
	return h, true
}

// Revoked says whether a key is refused for ever; a deleted one is too.
func (k *Key) Revoked() bool { return k.More != nil && (k.RevokedAt != 0 || k.DeletedAt != 0) }

// Deleted says whether a key is gone from every list.
func (k *Key) Deleted() bool { return k.More != nil && k.DeletedAt != 0 }

// Expired says whether a key's time is over: it works before ExpiresAt, not at it.
func (k *Key) Expired(now events.Time) bool { return k.ExpiresAt != 0 && now >= k.ExpiresAt }

// Active says whether a key counts against a cap: neither revoked, deleted nor expired.
func (k *Key) Active(now events.Time) bool { return !k.Revoked() && !k.Expired(now) }

// GraceUntil is until when the last of the rotated-away secrets works; zero
// when none does.
func (k *Key) GraceUntil(now events.Time) events.Time {
	var until events.Time
	if k.More != nil {
		for _, e := range k.Earlier {
			if e.Until > now {
				until = max(until, e.Until)
			}
		}
	}
	return until
}

// SecretSince is when the current secret was made.
func (k *Key) SecretSince() events.Time {
	if k.More != nil && k.RotatedAt != 0 {
		return k.RotatedAt
	}
	return k.CreatedAt
}
