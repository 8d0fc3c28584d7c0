// Package claims hands a new secret to somebody without an account: whoever made it
// sends a link, and the one who opens it sees the secret, once.
//
// It promises that a secret waits sealed in the bucket [Bucket] with a key that is made
// of the link's code alone, under the SHA-256 of that code: whoever reads the bucket, or
// a copy of it, opens nothing. Opening takes the sealed secret out first, by its
// revision, so that of two at once one wins; it is on OPS as claim.opened before anybody
// sees it. A claim whose key was revoked, rotated again or given another claim opens
// nothing.
//
// How it can disappoint. Who has the link has the secret: that somebody else was first
// is seen by its being used up, and by the record. A process that dies between taking
// the secret out and answering has lost it, and then it is rotated once more. Claims are
// not in backups: what was opened after one must not open again.
package claims

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
	"github.com/keyledger/keyledger/events/ledger"
)

// Bucket is the NATS KV bucket of sealed secrets, and of what became of each key's
// latest claim.
const Bucket = "keyledger_claims"

// How long a claim can be opened.
const (
	DefaultTime  = 72 * time.Hour
	ShortestTime = 5 * time.Minute
	LongestTime  = 30 * 24 * time.Hour
)

// Prefix begins every code.
const Prefix = "claim_"

// Claims makes and opens them. Ledger, KV and Conn are needed; Seal keeps the address of who
// opened, and without it none is recorded. It is safe for concurrent use.
type Claims struct {
	Ledger *ledger.Ledger
	KV     jetstream.KeyValue
	Conn   *nats.Conn // that of KV
	Seal   Sealer
	Now    func() time.Time // nil: time.Now
}

// Sealer encrypts personal data of an owner; events/seal.Keys.
type Sealer interface {
	Seal(ctx context.Context, keyspace, owner string, at time.Time, plain string) (*events.Sealed, error)
}

// OpenBucket opens the bucket and makes it where it is missing.
func OpenBucket(ctx context.Context, js jetstream.JetStream, replicas int) (jetstream.KeyValue, error) {
	return cluster.OpenBucket(ctx, js, jetstream.KeyValueConfig{
		Bucket: Bucket, Description: "new secrets, sealed, until their customer opens the link", History: 1, MaxBytes: 256 << 20,
		LimitMarkerTTL: time.Minute, Replicas: max(replicas, 1),
	})
}

// By says who does something, and how.
type By struct {
	Actor     events.Actor
	Via       string
	RequestID string
}

// Claim is what is known of a key's latest claim. It has nothing that opens it.
type Claim struct {
	ID          string       `json:"id"`
	Key         string       `json:"key"`
	MadeAt      events.Time  `json:"made_at"`
	MadeBy      events.Actor `json:"made_by"`
	Until       events.Time  `json:"until"`
	OpenedAt    events.Time  `json:"opened_at"`
	WithdrawnAt events.Time  `json:"withdrawn_at"`
	Status      string       `json:"status"` // waiting, opened, withdrawn, expired, lost
}

// kept is a claim as the bucket has it, below the id of its key.
type kept struct {
	Claim
	Name string `json:"name"` // of the sealed secret
}

// sealed is a secret as the bucket has it.
type sealed struct {
	Claim string      `json:"claim"`
	Key   string      `json:"key"`
	Until events.Time `json:"until"`
	Box   []byte      `json:"box"` // AES-256-GCM; the additional data is Claim and Key
}

var (
	// ErrGone says that a code opens nothing: it is not known, was used, was withdrawn,
	// is too old, or its secret was replaced. Which of them is not told.
	ErrGone = errors.New("this claim opens nothing")
	// ErrNone says that a key has no claim.
	ErrNone = errors.New("this key has no claim")
)

func (c *Claims) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func newCode() string { return Prefix + strings.ToLower(rand.Text()+rand.Text()) }

// wellFormed keeps what cannot be a code from NATS.
func wellFormed(code string) bool {
	rest, ok := strings.CutPrefix(code, Prefix)
	return ok && len(rest) == 52 && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

func secretName(code string) string {
	sum := sha256.Sum256([]byte(code))
	return "secret." + hex.EncodeToString(sum[:])
}

func keyName(id string) string { return "key." + id }

// box is the cipher of a code.
func box(code string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(code), nil, "keyledger claim v1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Make seals a key's new secret for somebody, in place of the claim that the key had,
// and returns the code that opens it, which is kept nowhere.
func (c *Claims) Make(ctx context.Context, by By, key *domain.Key, secret string, lasts time.Duration) (code string, _ Claim, err error) {
	now := c.now()
	code = newCode()
	aead, err := box(code)
	if err != nil {
		return "", Claim{}, err
	}
	k := kept{Name: secretName(code), Claim: Claim{ID: events.NewID("clm", now), Key: key.ID, MadeAt: events.At(now), MadeBy: by.Actor, Until: events.At(now.Add(lasts))}}
	s := sealed{Claim: k.ID, Key: key.ID, Until: k.Until, Box: aead.Seal(nil, nil, []byte(secret), []byte(k.ID+key.ID))}
	value, err := json.Marshal(s)
	if err != nil {
		return "", Claim{}, err
	}
	before, _, err := c.find(ctx, key.ID)
	if err != nil && !errors.Is(err, ErrNone) {
		return "", Claim{}, err
	}
	if _, err := c.KV.Create(ctx, k.Name, value, jetstream.KeyTTL(lasts)); err != nil {
		return "", Claim{}, fmt.Errorf("write to the bucket %s: %w", Bucket, err)
	}
	if err := c.record(ctx, by, key.Keyspace, key.Owner, key.ID, events.ClaimMade{Claim: k.ID, Until: k.Until}); err != nil {
		_ = c.KV.Purge(ctx, k.Name)
		return "", Claim{}, err
	}
	if err := c.put(ctx, &k); err != nil {
		return "", Claim{}, err
	}
	if before.Name != "" {
		_ = c.KV.Purge(ctx, before.Name, jetstream.PurgeTTL(time.Minute)) // it would be refused anyway
	}
	k.Status = "waiting"
	return code, k.Claim, nil
}

func (c *Claims) record(ctx context.Context, by By, keyspace, owner, key string, what events.Payload) error {
	e := events.New(what, c.now())
	e.Keyspace, e.Owner, e.Key = keyspace, owner, key
	e.Actor, e.Via, e.RequestID = by.Actor, by.Via, by.RequestID
	_, err := c.Ledger.AppendOps(ctx, e)
	return err
}

func (c *Claims) put(ctx context.Context, k *kept) error {
	k.Status = ""
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if _, err := c.KV.Put(ctx, keyName(k.Key), b); err != nil {
		return fmt.Errorf("write to the bucket %s: %w", Bucket, err)
	}
	return nil
}

func (c *Claims) find(ctx context.Context, key string) (k kept, revision uint64, err error) {
	value, revision, err := cluster.Get(ctx, c.Conn, Bucket, keyName(key))
	if err != nil {
		return k, 0, err
	}
	if value == nil {
		return k, 0, ErrNone
	}
	if err := json.Unmarshal(value, &k); err != nil {
		return k, 0, fmt.Errorf("a claim in the bucket %s cannot be read: %w", Bucket, err)
	}
	return k, revision, nil
}

// Of is the latest claim of a key, or [ErrNone].
func (c *Claims) Of(ctx context.Context, key string) (Claim, error) {
	k, _, err := c.find(ctx, key)
	if err != nil {
		return Claim{}, err
	}
	switch {
	case k.OpenedAt != 0:
		k.Status = "opened"
	case k.WithdrawnAt != 0:
		k.Status = "withdrawn"
	case events.At(c.now()) >= k.Until:
		k.Status = "expired"
	default:
		k.Status = "waiting"
		if box, _, err := cluster.Get(ctx, c.Conn, Bucket, k.Name); err != nil {
			return Claim{}, err
		} else if box == nil {
			k.Status = "lost"
		}
	}
	return k.Claim, nil
}

// Withdraw makes the claim of a key open nothing any more. One that has ended some other
// way stays as it is.
func (c *Claims) Withdraw(ctx context.Context, by By, key *domain.Key) (Claim, error) {
	k, _, err := c.find(ctx, key.ID)
	if err != nil {
		return Claim{}, err
	}
	now, err := c.Of(ctx, key.ID)
	if err != nil || now.Status != "waiting" && now.Status != "lost" {
		return now, err
	}
	box, revision, err := cluster.Get(ctx, c.Conn, Bucket, k.Name)
	if err != nil {
		return Claim{}, err
	}
	if box == nil {
		return c.Of(ctx, key.ID) // opened this moment
	}
	if taken, err := c.take(ctx, k.Name, revision); err != nil || !taken {
		if err != nil {
			return Claim{}, err
		}
		return c.Of(ctx, key.ID)
	}
	if err := c.record(ctx, by, key.Keyspace, key.Owner, key.ID, events.ClaimWithdrawn{Claim: k.ID}); err != nil {
		return Claim{}, err
	}
	k.WithdrawnAt = events.At(c.now())
	err = c.put(ctx, &k)
	k.Status = "withdrawn"
	return k.Claim, err
}

// take takes a sealed secret out; false: somebody else did.
func (c *Claims) take(ctx context.Context, name string, revision uint64) (bool, error) {
	err := c.KV.Purge(ctx, name, jetstream.LastRevision(revision), jetstream.PurgeTTL(time.Hour))
	if cluster.Conflict(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write to the bucket %s: %w", Bucket, err)
	}
	return true, nil
}

// Opened is a secret that somebody opened.
type Opened struct {
	Claim  Claim
	Key    *domain.Key
	Secret string
}

// Open opens a code, once. key finds a key by its id, nil: there is none; ip is the
// address it was opened from, empty: not known. It fails with [ErrGone]; after any other
// error the code can be tried again.
func (c *Claims) Open(ctx context.Context, by By, code string, key func(id string) *domain.Key, ip string) (*Opened, error) {
	if !wellFormed(code) {
		return nil, ErrGone
	}
	name := secretName(code)
	value, revision, err := cluster.Get(ctx, c.Conn, Bucket, name)
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, ErrGone
	}
	var s sealed
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, fmt.Errorf("a claim in the bucket %s cannot be read: %w", Bucket, err)
	}
	aead, err := box(code)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, s.Box, []byte(s.Claim+s.Key))
	if err != nil {
		return nil, fmt.Errorf("the sealed secret of %s was changed in the bucket %s", s.Claim, Bucket)
	}
	k, _, err := c.find(ctx, s.Key)
	if err != nil && !errors.Is(err, ErrNone) {
		return nil, err
	}
	owned := key(s.Key)
	now := events.At(c.now())
	// A secret that was replaced, or ended, is of no use to anybody.
	if now >= s.Until || k.ID != s.Claim || owned == nil || owned.Revoked() || owned.Deleted() || owned.Hash != domain.HashSecret(string(plain)) {
		return nil, ErrGone
	}
	var from *events.Sealed
	if c.Seal != nil {
		if from, err = c.Seal.Seal(ctx, owned.Keyspace, owned.Owner, now.Time(), ip); err != nil {
			return nil, err
		}
	}
	if taken, err := c.take(ctx, name, revision); err != nil {
		return nil, err
	} else if !taken {
		return nil, ErrGone
	}
	by.Actor = events.Actor{Type: "claim", ID: s.Claim}
	if err := c.record(ctx, by, owned.Keyspace, owned.Owner, owned.ID, events.ClaimOpened{Claim: s.Claim, SourceIP: from}); err != nil {
		// Nobody sees what is not recorded: it waits on.
		_, _ = c.KV.Create(context.WithoutCancel(ctx), name, value, jetstream.KeyTTL(max(time.Until(s.Until.Time()), time.Minute)))
		return nil, err
	}
	k.OpenedAt = now
	_ = c.put(context.WithoutCancel(ctx), &k) // OPS has it; the page of the key says "lost" then
	k.Status = "opened"
	return &Opened{Claim: k.Claim, Key: owned, Secret: string(plain)}, nil
}
