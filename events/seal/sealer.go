package seal

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"time"
)

// Sealer seals the data of a page, without a look into the cache of all, a nonce
// drawn or a box made for each of them. It is of one goroutine. [Sealer.Begin] MUST
// be called for each page: a data key that was destroyed is found no more then.
type Sealer struct {
	keys     *Keys
	known    map[sealedFor]*DataKey
	as       uint64 // Keys.forgotten when known was begun
	from, to int64  // of month, in Unix seconds
	month    int
	last     *DataKey // the one found last
	nonces   []byte   // drawn and not used yet
	box      []byte
}

// DataKey is one that was found.
type DataKey struct {
	ID         string
	of         sealedFor
	additional []byte // ID
	*dataKey
}

type sealedFor struct {
	keyspace, owner string
	month           int
}

// Sealer is one that knows no data key yet.
func (k *Keys) Sealer() *Sealer { return &Sealer{keys: k, known: make(map[sealedFor]*DataKey)} }

// maxKnown bounds what a sealer takes from page to page.
const maxKnown = 4096

// Begin is for a new page.
func (s *Sealer) Begin() {
	if as := s.keys.forgotten.Load(); as != s.as || len(s.known) > maxKnown {
		clear(s.known)
		s.as, s.last = as, nil
	}
}

// Find is the data key of an owner and a moment, or nil where it is not in memory:
// see [Keys.Prime].
func (s *Sealer) Find(keyspace, owner string, at time.Time) *DataKey {
	if t := at.Unix(); t < s.from || t >= s.to {
		year, month, _ := at.UTC().Date()
		s.from, s.to = time.Date(year, month, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(year, month+1, 1, 0, 0, 0, 0, time.UTC).Unix()
		s.month = 12*year + int(month)
	}
	of := sealedFor{keyspace, owner, s.month}
	if s.last != nil && s.last.of == of {
		return s.last
	}
	key := s.known[of]
	if key == nil {
		id := KeyID(keyspace, owner, at)
		cached := s.keys.cached(id)
		if cached == nil {
			return nil
		}
		of.keyspace, of.owner = strings.Clone(keyspace), strings.Clone(owner) // of a use that does not stay
		key = &DataKey{ID: id, of: of, additional: []byte(id), dataKey: cached}
		s.known[of] = key
	}
	s.last = key
	return key
}

// AppendBox appends the box of a datum of a moment in the key's month, as
// events.Sealed holds it.
func (s *Sealer) AppendBox(dst []byte, key *DataKey, at time.Time, plain string) []byte {
	if len(s.nonces) < nonceSize {
		s.nonces = make([]byte, 64*nonceSize)
		_, _ = rand.Read(s.nonces) // never fails
	}
	s.box = append(s.box[:0], s.nonces[:nonceSize]...)
	s.nonces = s.nonces[nonceSize:]
	s.box = append(s.box, plain...)
	s.box = key.sealing(at).Seal(s.box[:nonceSize], s.box[:nonceSize], s.box[nonceSize:], key.additional)
	return base64.StdEncoding.AppendEncode(dst, s.box)
}
