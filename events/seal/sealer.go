package seal

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"time"
)

// Sealer seals the data of one page, one after the other: it looks a data key up
// once for those that follow each other with the same, and makes nonces and
// boxes without a copy of each. It is of one goroutine, and for one page: a data
// key that is destroyed meanwhile MUST be asked for again.
type Sealer struct {
	keys            *Keys
	keyspace, owner string
	month           int
	id              string
	additional      []byte // id
	key             *dataKey
	nonces          []byte // drawn and not used yet
	box             []byte
}

// Sealer is one for a page.
func (k *Keys) Sealer() *Sealer { return &Sealer{keys: k} }

// Has says whether the data key of an owner and a moment is in memory, and keeps
// it at hand for what follows.
func (s *Sealer) Has(keyspace, owner string, at time.Time) bool {
	year, month, _ := at.UTC().Date()
	this := 12*year + int(month)
	if s.key != nil && s.keyspace == keyspace && s.owner == owner && s.month == this {
		return true
	}
	id := KeyID(keyspace, owner, at)
	key := s.keys.cached(id)
	if key != nil {
		s.keyspace, s.owner, s.month, s.id, s.additional, s.key = keyspace, owner, this, id, []byte(id), key
	}
	return key != nil
}

// Find gets the data key of an owner and a moment ready, as [Keys.Seal] does, and
// answers its id. It fails where the key can neither be read nor made.
func (s *Sealer) Find(ctx context.Context, keyspace, owner string, at time.Time) (id string, err error) {
	if s.Has(keyspace, owner, at) {
		return s.id, nil
	}
	if _, err := s.keys.load(ctx, KeyID(keyspace, owner, at), true); err != nil {
		return "", err
	}
	if !s.Has(keyspace, owner, at) { // forgotten again, because it was destroyed
		return "", ErrErased
	}
	return s.id, nil
}

// AppendBox appends the box of a datum, sealed with the key that was found last,
// as events.Sealed holds it.
func (s *Sealer) AppendBox(dst []byte, plain string) []byte {
	if len(s.nonces) < nonceSize {
		s.nonces = make([]byte, 64*nonceSize)
		_, _ = rand.Read(s.nonces) // never fails
	}
	s.box = append(s.box[:0], s.nonces[:nonceSize]...)
	s.nonces = s.nonces[nonceSize:]
	s.box = append(s.box, plain...)
	s.box = s.key.Seal(s.box[:nonceSize], s.box[:nonceSize], s.box[nonceSize:], s.additional)
	return base64.StdEncoding.AppendEncode(dst, s.box)
}
