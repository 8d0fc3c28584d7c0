package seal

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"github.com/keyledger/keyledger/events"
)

// Blind is a hash of a datum by which it can be looked for without being kept. It
// is keyed with what the master key and the keyspace give, so that nobody without
// the master key can try data against it, and the same datum has another hash in
// another keyspace and installation.
//
// Whoever sees hashes sees which of them are equal.
func (k *Keys) Blind(keyspace, plain string) uint64 {
	m := hmac.New(sha256.New, k.blinding(keyspace))
	m.Write([]byte(plain))
	return binary.BigEndian.Uint64(m.Sum(nil))
}

func (k *Keys) blinding(keyspace string) []byte {
	if b, ok := k.blind.Load(keyspace); ok {
		return b.([]byte)
	}
	b := derived(k.blindRoot[:], "of keyspace "+keyspace)
	k.blind.Store(keyspace, b)
	return b
}

// derived is a key that one secret gives for one purpose, and that tells nothing
// about the secret.
func derived(secret []byte, purpose string) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("keyledger " + purpose))
	return m.Sum(nil)
}

// OpenMarked is [Keys.Open], and answers the mark of the data key that opened the
// box: one that is made after another with the same id was destroyed has another
// mark. A mark tells nothing about the key.
func (k *Keys) OpenMarked(ctx context.Context, s *events.Sealed) (plain string, mark uint32, err error) {
	plain, key, err := k.open(ctx, s)
	if err != nil {
		return "", 0, err
	}
	return plain, key.mark, nil
}

// Mark is that of the data key which has an id now; false: there is none.
func (k *Keys) Mark(ctx context.Context, id string) (mark uint32, ok bool, err error) {
	key := k.cached(id)
	if key == nil {
		if key, err = k.load(ctx, id, time.Time{}); errors.Is(err, ErrErased) {
			return 0, false, nil
		}
		if err != nil {
			return 0, false, err
		}
	}
	return key.mark, true, nil
}
