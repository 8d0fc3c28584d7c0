package projections

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// Uses says which messages of USAGE speak of a key, an owner or an endpoint, or hold
// a usage.gap; [Index] reads it. It holds hashes: a message that it names may turn out to hold
// nothing of the kind, one that it does not name holds nothing.
type Uses struct{}

// Name is uses_v1.
func (Uses) Name() string { return "uses_v1" }

// Stream is USAGE.
func (Uses) Stream() string { return events.Usage }

// Tables are uses_v1 and those of its blocks and keyspaces.
func (Uses) Tables() []Table { return usesIndex.tables() }

var usesIndex = postings{name: "uses"}

// What a hash is of.
const (
	ofKey      = 'k'
	ofOwner    = 'o'
	ofEndpoint = 'e'
	ofGap      = 'g' // of which there are few
)

// Apply adds a batch.
func (Uses) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	return usesIndex.apply(ctx, tx, batch, func(dst []entry, e *events.Envelope) ([]entry, error) {
		if e.Key != "" {
			dst = append(dst, entry{at: hashed(ofKey, e.Keyspace, e.Key) << 16})
		}
		if e.Owner != "" {
			dst = append(dst, entry{at: hashed(ofOwner, e.Keyspace, e.Owner) << 16})
		}
		if endpoint := EndpointOf(e.Data); endpoint != "" {
			dst = append(dst, entry{at: hashed(ofEndpoint, e.Keyspace, endpoint) << 16})
		}
		if _, gap := e.Data.(events.UsageGap); gap {
			dst = append(dst, entry{at: hashed(ofGap, e.Keyspace, "") << 16})
		}
		return dst, nil
	})
}

// EndpointOf is the endpoint that a fact of USAGE names; empty: none.
func EndpointOf(data events.Payload) string {
	switch d := data.(type) {
	case events.KeyUsed:
		return d.Endpoint
	case events.KeyUseReported:
		return d.Endpoint
	case events.KeyDenied:
		return d.Endpoint
	}
	return ""
}

// AddressOf is the sealed source of a fact of USAGE; nil: none.
func AddressOf(data events.Payload) *events.Sealed {
	switch d := data.(type) {
	case events.KeyUsed:
		return d.SourceIP
	case events.CredentialRejected:
		return d.SourceIP
	}
	return nil
}

// hashed is FNV-1a of what is looked for, its bits mixed once more.
func hashed(of byte, keyspace, value string) uint64 {
	const prime = 1099511628211
	h := (uint64(14695981039346656037) ^ uint64(of)) * prime
	for i := range len(keyspace) {
		h = (h ^ uint64(keyspace[i])) * prime
	}
	h = (h ^ 0xff) * prime
	for i := range len(value) {
		h = (h ^ uint64(value[i])) * prime
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return (h ^ h>>33) >> (64 - hashBits)
}

// Addresses says which messages of USAGE hold a source address, as far as the data
// keys are there to open it: rows depend on them too. Keys is required.
//
// An address is kept as [seal.Keys.Blind] of it, beside the data key that it is
// sealed with, so that [Addresses.Erase] can take out what an erasure is about.
type Addresses struct{ Keys *seal.Keys }

// Name is addresses_v1.
func (Addresses) Name() string { return "addresses_v1" }

// Stream is USAGE.
func (Addresses) Stream() string { return events.Usage }

// Tables are addresses_v1 and those of its blocks and keyspaces.
func (Addresses) Tables() []Table { return addressesIndex.tables() }

var addressesIndex = postings{name: "addresses", tags: true}

// awayError says that what an index needs besides its records cannot be had now.
type awayError struct{ error }

// Apply adds a batch.
func (a Addresses) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	type datum struct{ keyspace, address string }
	blind := map[datum]uint64{}
	erased := map[string]bool{}
	return addressesIndex.apply(ctx, tx, batch, func(dst []entry, e *events.Envelope) ([]entry, error) {
		s := AddressOf(e.Data)
		if s == nil || erased[s.Key] {
			return dst, nil
		}
		plain, mark, err := a.Keys.OpenMarked(ctx, s)
		switch {
		case errors.Is(err, seal.ErrErased):
			// Nothing is in the cache for it: ask once, not for each of its uses.
			if _, ok, err := a.Keys.Mark(ctx, s.Key); err == nil && !ok {
				erased[s.Key] = true
			}
			return dst, nil
		case errors.Is(err, seal.ErrTampered):
			return dst, nil // nobody can open it, so nobody can look for it
		case err != nil:
			return dst, awayError{err}
		}
		d := datum{e.Keyspace, Address(plain)}
		h, ok := blind[d]
		if !ok {
			h = a.Keys.Blind(d.keyspace, d.address) >> (64 - hashBits)
			blind[d] = h
		}
		return append(dst, entry{h << 16, tagOf(s.Key, mark)}), nil
	})
}

// tagOf names a data key: 40 bits of the hash of its id, 24 of its mark.
func tagOf(id string, mark uint32) uint64 {
	h := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(h[:])&^0xffffff | uint64(mark>>8)
}

// Address is the form in which addresses are compared: IPv4 without the prefix of
// IPv6, no zone, networks by their first address. What is neither is as it is.
func Address(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().WithZone("").String()
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked().String()
	}
	return s
}

// Erase takes out the addresses that were sealed with destroyed data keys of these
// ids, and says how many places in messages that were; what a living data key opens
// stays. The cost is that of reading the index through. Of a projector in another
// process, what it opens before it has heard that the keys are gone goes with the
// next call.
func (a Addresses) Erase(ctx context.Context, tx pgx.Tx, dataKeys []string) (places int64, err error) {
	living := map[uint64]uint64{} // 40 bits of a tag -> tag of the living key, or 0
	for _, id := range dataKeys {
		mark, ok, err := a.Keys.Mark(ctx, id)
		if err != nil {
			return 0, err
		}
		tag := tagOf(id, mark)
		living[tag>>24] = 0
		if ok {
			living[tag>>24] = tag
		}
	}
	gone := func(e entry) bool {
		now, named := living[e.tag>>24]
		return named && e.tag != now
	}
	for next := uint64(0); ; {
		b, err := addressesIndex.block(ctx, tx, next)
		if b == nil || err != nil {
			return places, err
		}
		n := len(b.entries)
		b.entries = slices.DeleteFunc(b.entries, gone)
		if len(b.entries) < n {
			places += int64(n - len(b.entries))
			if err := addressesIndex.replace(ctx, tx, b.starts, b); err != nil {
				return places, err
			}
		}
		next = b.starts + 1
	}
}

// Prune removes what leads to messages that are gone.
func (Addresses) Prune(ctx context.Context, tx pgx.Tx, through uint64) error {
	return addressesIndex.prune(ctx, tx, through)
}

// Prune removes what leads to messages that are gone.
func (Uses) Prune(ctx context.Context, tx pgx.Tx, through uint64) error {
	return usesIndex.prune(ctx, tx, through)
}
