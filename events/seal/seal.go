// Package seal encrypts the personal data of uses, source IP and user agent,
// from the first event on, so that it can be erased from streams that are never
// changed: erasing destroys the data key and leaves every stored byte and every
// hash as it was.
//
// There is one data key per owner and month, and one per keyspace and month
// where there is no owner; [KeyID] names it. A datum is sealed with AES-256-GCM
// under a random 96-bit nonce, the id of the data key being the additional data,
// so that a box moved to another owner does not open. Data keys are 32 random
// bytes, wrapped the same way by the [Master] key, and live in the NATS KV bucket
// [Bucket]. The master key never goes to NATS.
//
// What it promises: all processes agree on a data key, because it is created by
// compare-and-swap and the loser reads the winner's; after [Keys.Destroy] no
// process that reaches NATS opens or seals with the destroyed key, what happened
// before it and is sealed later is sealed with a key that nobody keeps, and the
// files of the bucket hold the wrapped key no more; a wrong master key is refused
// by [Open] before anything is sealed with it; no error contains what was sealed,
// nor a key.
//
// How it can disappoint. The first use of an owner in a month needs NATS; without
// it, [Keys.Seal] fails and the caller has to hold the use back. A process cut off
// from NATS goes on sealing with the keys that it has, and forgets them when it
// is connected again. Copies of the bucket made before an erasure still hold the
// wrapped data key: erase them too. Whoever loses the master key has erased all
// personal data. A nonce is random, so one data key should seal no more than 2^32
// data; an owner with more uses than that in a month needs another scheme.
package seal

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// Bucket is the NATS KV bucket of the wrapped data keys.
const Bucket = "keyledger_data_keys"

// ErrErased says that the data key of a box was destroyed: what it held is gone
// for ever.
var ErrErased = errors.New("erased: the data key was destroyed")

// ErrTampered says that a box does not open with the data key it names.
var ErrTampered = errors.New("sealed datum is damaged: it does not open with the data key it names")

// ErrWrongMaster says that the bucket was made with another master key.
var ErrWrongMaster = errors.New("the master key is not the one that the data keys in the bucket " + Bucket +
	" are wrapped with: start with the original master key, personal data cannot be opened with another")

// KeyID is the id of the data key for uses of an owner at a moment:
// <keyspace>.<owner or _>.<yyyy-mm>, the month in UTC.
func KeyID(keyspace, owner string, at time.Time) string {
	at = at.UTC()
	b := make([]byte, 0, len(keyspace)+len(owner)+10)
	b = append(b, orNone(keyspace)...)
	b = append(b, '.')
	b = append(b, orNone(owner)...)
	b = append(b, '.')
	return string(at.AppendFormat(b, "2006-01"))
}

func orNone(s string) string {
	if s == "" {
		return events.None
	}
	return s
}

// maxCached bounds the unwrapped data keys in memory, about 1 KiB each.
const maxCached = 32768

// Keys seals and opens. It is safe for concurrent use; [Keys.Close] ends its
// watch of the bucket.
type Keys struct {
	kv         jetstream.KeyValue
	replicated bool // kv may be answered by a replica that is behind
	conn       *nats.Conn
	js         jetstream.JetStream
	master     cipher.AEAD
	stop       context.CancelFunc
	done       sync.WaitGroup

	// mu guards the cache and what is known to be destroyed. destroyed holds the
	// revision of the last purge of an id, so that a value read from a replica
	// that has not applied the purge yet is not taken for alive.
	mu        sync.Mutex
	cache     map[string]*dataKey
	destroyed map[string]uint64

	forgotten atomic.Uint64 // grows with everything that leaves the cache because it may be destroyed

	blindRoot [32]byte // see [Keys.Blind]
	blind     sync.Map // keyspace -> []byte
}

type dataKey struct {
	cipher.AEAD // nil: there is none, what came before the erasure is all that can be sealed
	revision    uint64
	again       bool   // made after an earlier key of the same id was destroyed
	mark        uint32 // see [Keys.OpenMarked]

	// What happened before erased is sealed with lost, a random key that is kept
	// nowhere: it came too late to be read.
	erased time.Time
	lost   cipher.AEAD
}

// sealing is what seals a datum of a moment; nil: a key has to be made first.
func (k *dataKey) sealing(at time.Time) cipher.AEAD {
	if k.lost != nil && at.Before(k.erased) {
		return k.lost
	}
	return k.AEAD
}

// stored is the value of a data key in the bucket.
type stored struct {
	Wrapped  []byte `json:"wrapped,omitempty"`   // nonce and AES-256-GCM ciphertext; the additional data is the id. None: destroyed
	Again    bool   `json:"again"`               // an earlier key of this id was destroyed
	ErasedAt int64  `json:"erased_at,omitempty"` // when, milliseconds since 1970
}

// checkID is the place of the value that tells a wrong master key. A data key's
// id has two dots, so that it cannot be one.
const checkID = "master.check"

// Open makes the bucket where there is none (replicas: 1 or 3, of the bucket),
// checks the master key against it and watches it for erasures. It fails with
// [ErrWrongMaster], and for a bucket that would forget keys by itself.
func Open(ctx context.Context, js jetstream.JetStream, master Master, replicas int) (*Keys, error) {
	kv, replicated, err := openBucket(ctx, js, replicas)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(master[:])
	if err != nil {
		return nil, err
	}
	own, stop := context.WithCancel(context.Background())
	k := &Keys{
		kv: kv, replicated: replicated, conn: js.Conn(), js: js, master: aead, stop: stop,
		cache: make(map[string]*dataKey), destroyed: make(map[string]uint64),
		blindRoot: [32]byte(derived(master[:], "blind index")),
	}
	if err := cluster.AskToStart(ctx, k.check); err != nil {
		stop()
		return nil, err
	}
	reconnected := k.conn.StatusChanged(nats.CONNECTED)
	var watch jetstream.KeyWatcher
	err = cluster.AskToStart(ctx, func(context.Context) (err error) {
		watch, err = k.kv.WatchAll(own, jetstream.UpdatesOnly()) // which waits for an answer by itself
		return err
	})
	if err != nil {
		stop()
		k.conn.RemoveStatusListener(reconnected)
		return nil, fmt.Errorf("watch the bucket %s: %w", Bucket, err)
	}
	k.done.Go(func() { k.follow(own, watch, reconnected) })
	return k, nil
}

func openBucket(ctx context.Context, js jetstream.JetStream, replicas int) (kv jetstream.KeyValue, replicated bool, err error) {
	kv, err = cluster.OpenBucketMadeBy(ctx, js, Bucket, func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, bucketConfig(max(replicas, 1)))
		return err
	})
	if err != nil {
		return nil, false, err
	}
	var status jetstream.KeyValueStatus
	err = cluster.AskToStart(ctx, func(ctx context.Context) (err error) {
		status, err = kv.Status(ctx)
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("read the configuration of the bucket %s: %w", Bucket, err)
	}
	info := status.(*jetstream.KeyValueBucketStatus).StreamInfo().Config
	if status.TTL() != 0 || status.History() != 1 || info.Storage != jetstream.FileStorage || info.MaxBytes > 0 || info.MaxMsgs > 0 {
		return nil, false, fmt.Errorf("the bucket %s would lose data keys by itself, or keep destroyed ones: it must have file storage, history 1, no TTL and no limits; found %v storage, history %d, TTL %v, at most %d bytes and %d messages (below 1: no limit)",
			Bucket, info.Storage, status.History(), status.TTL(), info.MaxBytes, info.MaxMsgs)
	}
	return kv, info.Replicas > 1, nil
}

// streamName is the stream under the bucket.
const streamName = "KV_" + Bucket

// bucketConfig is what CreateKeyValue would make, but for DenyDelete: a message
// that is deleted is overwritten in the stream's files, one that a later value
// replaces stays in them for as long as its block does.
func bucketConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              streamName,
		Description:       "data keys of sealed personal data, wrapped by the master key",
		Subjects:          []string{"$KV." + Bucket + ".>"},
		MaxMsgsPerSubject: 1,
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Discard:           jetstream.DiscardNew,
		Duplicates:        2 * time.Minute,
		AllowRollup:       true,
		AllowDirect:       true,
	}
}

// check compares the master key with the check value, and writes that where the
// bucket is new.
func (k *Keys) check(ctx context.Context) error {
	for try := range attempts {
		if try > 0 && !settle(ctx, try) {
			return ctx.Err()
		}
		e, err := k.kv.Get(ctx, checkID)
		switch {
		case err == nil:
			if _, err := unseal(k.master, e.Value(), checkID); err != nil {
				return ErrWrongMaster
			}
			return nil
		case !errors.Is(err, jetstream.ErrKeyNotFound):
			return fmt.Errorf("read the check value of the bucket %s: %w", Bucket, err)
		}
		if _, err := k.kv.Update(ctx, checkID, sealBytes(k.master, []byte(checkID), checkID), 0); err == nil {
			return nil
		} else if !cluster.Conflict(err) {
			return fmt.Errorf("write the check value of the bucket %s: %w", Bucket, err)
		}
	}
	return fmt.Errorf("the check value of the bucket %s exists and cannot be read: its replicas disagree, try again", Bucket)
}

// attempts covers a replica that has not applied a write yet which another
// process was told of.
const attempts = 20

// there reads a data key that this process's server does not have: a replica may be
// behind what another process made a moment ago. It fails with [ErrErased] where the
// bucket's leader does not have it either.
func (k *Keys) there(ctx context.Context, id string) (*dataKey, error) {
	if !k.replicated {
		return nil, ErrErased
	}
	value, revision, err := cluster.Get(ctx, k.conn, Bucket, id)
	if err != nil {
		return nil, err
	}
	if value == nil || k.isDestroyed(id, revision) {
		return nil, ErrErased
	}
	key, err := k.unwrap(id, value, revision)
	if err == nil && key.AEAD == nil {
		err = ErrErased
	}
	return key, err
}

// settle waits before another try, a second in all; false: ctx ended.
func settle(ctx context.Context, try int) bool {
	select {
	case <-time.After(time.Duration(try) * 5 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

// follow drops destroyed keys from the cache. A purge that happened while the
// connection was down may not be delivered, so everything is forgotten after it.
func (k *Keys) follow(ctx context.Context, watch jetstream.KeyWatcher, reconnected chan nats.Status) {
	defer k.conn.RemoveStatusListener(reconnected)
	for {
		select {
		case <-ctx.Done():
			_ = watch.Stop()
			return
		case e, ok := <-watch.Updates():
			if ok {
				if e != nil && destroyed(e) {
					k.forget(e.Key(), e.Revision())
				}
				continue
			}
		case <-reconnected:
			_ = watch.Stop()
		}
		for {
			k.forgetAll()
			next, err := k.kv.WatchAll(ctx, jetstream.UpdatesOnly())
			if err == nil {
				watch = next
				k.forgetAll() // what was loaded before the new watch began
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// destroyed says whether an entry is the mark of a destroyed key.
func destroyed(e jetstream.KeyValueEntry) bool {
	var s stored
	return e.Operation() != jetstream.KeyValuePut || json.Unmarshal(e.Value(), &s) == nil && s.Again && len(s.Wrapped) == 0
}

func (k *Keys) forget(id string, revision uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgotten.Add(1)
	k.destroyed[id] = max(k.destroyed[id], revision)
	if c := k.cache[id]; c != nil && c.revision < revision {
		delete(k.cache, id)
	}
}

func (k *Keys) forgetAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgotten.Add(1)
	clear(k.cache)
}

// Close ends the watch of the bucket. The connection stays the caller's.
func (k *Keys) Close() {
	k.stop()
	k.done.Wait()
}

// Seal encrypts a datum of a use at a moment. An empty datum is no datum: nil.
func (k *Keys) Seal(ctx context.Context, keyspace, owner string, at time.Time, plain string) (*events.Sealed, error) {
	if plain == "" {
		return nil, nil
	}
	id := KeyID(keyspace, owner, at)
	key, err := k.cached(id), error(nil)
	if key == nil {
		if key, err = k.load(ctx, id, at); err != nil {
			return nil, err
		}
	}
	return &events.Sealed{Key: id, Box: base64.StdEncoding.EncodeToString(sealBytes(key.sealing(at), []byte(plain), id))}, nil
}

// Open decrypts a datum; nil is the empty string. It fails with [ErrErased] when
// the data key is gone, and with [ErrTampered] when the box does not belong to it.
func (k *Keys) Open(ctx context.Context, s *events.Sealed) (string, error) {
	if s == nil {
		return "", nil
	}
	plain, _, err := k.open(ctx, s)
	return plain, err
}

func (k *Keys) open(ctx context.Context, s *events.Sealed) (string, *dataKey, error) {
	key, err := k.cached(s.Key), error(nil)
	if key == nil {
		if key, err = k.load(ctx, s.Key, time.Time{}); err != nil {
			return "", nil, err
		}
	}
	box, err := base64.StdEncoding.DecodeString(s.Box)
	if err != nil {
		return "", nil, ErrTampered
	}
	plain, err := unseal(key.AEAD, box, s.Key)
	if err != nil && key.again {
		return "", nil, ErrErased // sealed with the key before this one
	}
	return string(plain), key, err
}

// Prime makes the data keys with these ids ready in memory, several at a time,
// so that the first uses of a month do not wait for NATS one after the other.
func (k *Keys) Prime(ctx context.Context, ids ...string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, id := range ids {
		if k.cached(id) == nil {
			g.Go(func() error {
				_, err := k.load(ctx, id, time.Unix(1<<40, 0)) // later than any erasure: it has to be in memory
				return err
			})
		}
	}
	return g.Wait()
}

func (k *Keys) cached(id string) *dataKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cache[id]
}

// load reads a data key from the bucket for a datum of a moment; where there is
// none, it makes one. For the zero moment it answers [ErrErased] instead: nothing
// is to be sealed.
func (k *Keys) load(ctx context.Context, id string, at time.Time) (*dataKey, error) {
	var failed error
	for try := range attempts {
		if failed != nil && !settle(ctx, try) {
			return nil, fmt.Errorf("make the data key %s: %w", id, ctx.Err())
		}
		e, err := k.kv.Get(ctx, id)
		if errors.Is(err, jetstream.ErrInvalidKey) {
			return nil, fmt.Errorf("%q is not the id of a data key", id)
		}
		if err == nil && k.isDestroyed(id, e.Revision()) {
			err = jetstream.ErrKeyNotFound
		}
		mark := stored{}
		if err == nil {
			key, err := k.unwrap(id, e.Value(), e.Revision())
			if err != nil {
				return nil, err
			}
			if key.AEAD != nil || !at.IsZero() && key.sealing(at) != nil {
				return key, nil
			}
			mark = stored{Again: true, ErasedAt: key.erased.UnixMilli()}
		} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil, fmt.Errorf("read the data key %s: %w", id, err)
		}
		if at.IsZero() {
			return k.there(ctx, id)
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("make the data key %s: %w", id, err)
		}
		if mark.Again {
			_, failed = k.kv.Update(ctx, id, k.fresh(id, mark), e.Revision())
		} else if _, failed = k.kv.Update(ctx, id, k.fresh(id, mark), 0); cluster.Conflict(failed) {
			// It may be one whose mark is no value, or that is not seen here yet.
			mark.Again = true
			_, failed = k.kv.Create(ctx, id, k.fresh(id, mark))
		}
		if failed != nil && !cluster.Conflict(failed) {
			return nil, fmt.Errorf("make the data key %s: %w", id, failed)
		}
	}
	return nil, fmt.Errorf("make the data key %s: it exists and cannot be read, the replicas of the bucket %s disagree", id, Bucket)
}

func (k *Keys) isDestroyed(id string, revision uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.destroyed[id] > revision
}

// fresh is a new key behind what a mark says.
func (k *Keys) fresh(id string, mark stored) []byte {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	mark.Wrapped = sealBytes(k.master, raw[:], id)
	return mark.value()
}

func (s stored) value() []byte {
	value, err := json.Marshal(s)
	if err != nil {
		panic(err) // plain fields
	}
	return value
}

func (k *Keys) unwrap(id string, value []byte, revision uint64) (_ *dataKey, err error) {
	var s stored
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, fmt.Errorf("the data key %s in the bucket %s is not as written: restore the bucket", id, Bucket)
	}
	key := &dataKey{revision: revision, again: s.Again}
	if s.ErasedAt != 0 {
		var none [32]byte
		_, _ = rand.Read(none[:]) // never fails
		key.erased = time.UnixMilli(s.ErasedAt)
		if key.lost, err = newAEAD(none[:]); err != nil {
			return nil, err
		}
	}
	if len(s.Wrapped) == 0 {
		return key, nil // the next moment somebody may make one, so it is not kept
	}
	raw, err := unseal(k.master, s.Wrapped, id)
	if err != nil {
		return nil, fmt.Errorf("the data key %s in the bucket %s does not open with the master key: it was changed, or wrapped by another; restore the bucket", id, Bucket)
	}
	if key.AEAD, err = newAEAD(raw); err != nil {
		return nil, fmt.Errorf("the data key %s in the bucket %s has the wrong length: restore the bucket", id, Bucket)
	}
	key.mark = binary.BigEndian.Uint32(derived(raw, "mark"))
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.destroyed[id] > key.revision {
		return nil, ErrErased
	}
	if len(k.cache) >= maxCached {
		for id := range k.cache { // any one; the order of a map is random
			delete(k.cache, id)
			break
		}
	}
	k.cache[id] = key
	return key, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != 32 {
		return nil, errors.New("a key has 32 bytes")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

const nonceSize = 12

func sealBytes(aead cipher.AEAD, plain []byte, id string) []byte {
	box := make([]byte, nonceSize, nonceSize+len(plain)+aead.Overhead())
	_, _ = rand.Read(box) // never fails
	return aead.Seal(box, box, plain, []byte(id))
}

func unseal(aead cipher.AEAD, box []byte, id string) ([]byte, error) {
	if len(box) < nonceSize {
		return nil, ErrTampered
	}
	plain, err := aead.Open(nil, box[:nonceSize], box[nonceSize:], []byte(id))
	if err != nil {
		return nil, ErrTampered
	}
	return plain, nil
}
