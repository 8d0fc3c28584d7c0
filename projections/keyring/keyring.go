// Package keyring holds the state of all keys, owners and keyspaces in memory
// by following LEDGER. It is what commands are decided with and requests are
// verified with.
//
// It promises that what it answers is the fold of domain.Evolve over every
// fact up to [Ring.Sequence], in stream order, and that values it hands out
// never change. It can be behind the stream; [Ring.Wait] waits for a sequence.
// A stream that cannot be read to the next fact ends [Ring.Run] with an error:
// the ring then still answers, with the last state that it had.
package keyring

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

const shards = 64

// Ring is the state of everything. Readers may be many; records are applied
// by one goroutine, in order.
type Ring struct {
	// OnKeyspace, when set before Run, is called with every keyspace that was
	// configured, in order, by the goroutine that applies records.
	OnKeyspace func(*domain.Keyspace)

	seed    maphash.Seed
	entries entries
	ids     index // of keys
	secrets index // the ones that a key had before too
	shards  [shards]shard
	spaces  atomic.Pointer[map[string]*domain.Keyspace] // replaced whole: there are few

	sequence   atomic.Uint64 // of the last record applied, as announced to those who wait
	revocation atomic.Int64  // nanoseconds that the last revocation took to get here; 0: none yet
	stopped    atomic.Pointer[func(Stopped)]

	// deciding is held for writing while one record is applied, and for reading
	// while a State is put together, so that its parts are of one moment.
	// Verification does not take it: it reads one key.
	deciding sync.RWMutex
	applied  uint64 // of the last record applied
	rootLast uint64 // of the last record in the keyspace of root keys
	times    times  // of all records applied

	ready   chan struct{}
	isReady bool // owned by the applying goroutine

	mu       sync.Mutex // guards what follows
	waiters  []waiter
	void     map[uint64]struct{}
	commands map[string]Done
	recent   []Done // in stream order, so that the old ones are at the front

	shared shared // owned by the applying goroutine
}

// shard is a part of the owners; mu guards the map. What an entry points to is
// replaced atomically, so a reader holds mu only to find it.
type shard struct {
	mu     sync.RWMutex
	owners map[ownerID]*ownerEntry
}

type ownerEntry struct {
	owner  atomic.Pointer[domain.Owner] // nil for the owner of root keys, who is nobody
	beside atomic.Value                 // see Found
	mu     sync.Mutex
	keys   []*entry // in order of creation; append only

	// Counting the active keys must not cost the keys that there are: live
	// are those not revoked, expiring are those of them that have a last day.
	live     int
	expiring map[*entry]events.Time

	// The last admission under the owner's cap. Its key follows in the same
	// atomic batch; until it has been applied the admission stands for it.
	admitted   string
	admittedAt uint64
}

type ownerID struct{ keyspace, id string }

type waiter struct {
	sequence uint64
	reached  chan struct{}
}

// Done is a command with an idempotency key that has taken effect.
type Done struct {
	Which, What string // see domain.SplitCommandID
	Keyspace    string
	Owner       string
	Key         string
	Sequence    uint64 // of its last fact
	Time        events.Time
}

// Remembered is how long an idempotency key is known.
const Remembered = 24 * time.Hour

// New returns a ring that knows the built-in keyspace and nothing else.
func New() *Ring {
	r := &Ring{
		seed:     maphash.MakeSeed(),
		ready:    make(chan struct{}),
		void:     map[uint64]struct{}{},
		commands: map[string]Done{},
	}
	r.ids.entries, r.secrets.entries = &r.entries, &r.entries
	for i := range r.shards {
		r.shards[i] = shard{owners: map[ownerID]*ownerEntry{}}
	}
	r.spaces.Store(&map[string]*domain.Keyspace{events.RootKeyspace: domain.RootKeyspace()})
	return r
}

// Run applies LEDGER from where the ring is until ctx ends, and returns why it
// ended: an error of ctx, or what is wrong with the stream.
func (r *Ring) Run(ctx context.Context, l *ledger.Ledger) error {
	head, err := l.Head(ctx, events.Ledger)
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	r.settle(head)
	for batch, err := range l.FollowBatches(ctx, events.Ledger, r.Sequence(), 4096, 0) {
		if err != nil {
			return fmt.Errorf("keyring: %w", err)
		}
		for i := range batch {
			if r.apply(batch[i]) {
				r.measure(&batch[i])
			}
		}
		r.reach(batch[len(batch)-1].Sequence)
		r.settle(head)
	}
	return ctx.Err()
}

func (r *Ring) settle(head uint64) {
	if !r.isReady && r.Sequence() >= head {
		r.isReady = true
		close(r.ready)
	}
}

// measure takes the time of a fact that held. What was in the stream when the ring
// began says nothing about how long it took.
func (r *Ring) measure(rec *events.Record) {
	if !r.isReady {
		return
	}
	e := &rec.Event
	if tell := r.stopped.Load(); tell != nil && Stops(e) {
		(*tell)(Stopped{rec.Sequence, time.Now(), *e})
	}
	if _, ok := e.Data.(events.KeyRevoked); ok {
		r.revocation.Store(max(int64(time.Since(e.Time.Time())), 1))
	}
}

// Stopped is a fact after which a key, or a secret of it, is refused, and since when
// it is so here: who asks the ring after At does not find it any more. The event's
// strings may be parts of a larger text.
type Stopped struct {
	Sequence uint64
	At       time.Time
	Event    events.Envelope
}

// OnStopped has f called with every such fact that is applied from now on, by the
// goroutine that applies records: f MUST NOT block. Nil ends that.
func (r *Ring) OnStopped(f func(Stopped)) {
	if f == nil {
		r.stopped.Store(nil)
		return
	}
	r.stopped.Store(&f)
}

// Stops says whether a fact ends a customer's key, or a secret of it, with itself:
// a revocation, a rotation without grace or the early end of one, an expiry that lies
// in the past. A deletion does not: a live key is revoked by the fact before it. What
// ends later by each node's clock does not either.
func Stops(e *events.Envelope) bool {
	if e.Keyspace == events.RootKeyspace {
		return false
	}
	switch d := e.Data.(type) {
	case events.KeyRevoked, events.KeyGraceEnded:
		return true
	case events.KeyRotated:
		return d.GraceUntil <= e.Time || d.EndGrace
	case events.KeyUpdated:
		return d.ExpiresAt != nil && d.ExpiresAt.At != 0 && d.ExpiresAt.At <= e.Time
	}
	return false
}

// RevocationLatency is how long after it was decided the last revocation took
// effect here, by the clock of the process that decided, which writes whole
// milliseconds. It is not ok before the first one.
func (r *Ring) RevocationLatency() (latency time.Duration, ok bool) {
	n := r.revocation.Load()
	return time.Duration(n), n > 0
}

// Ready is closed once the ring has applied all that was in the stream when
// Run began.
func (r *Ring) Ready() <-chan struct{} { return r.ready }

// Sequence is the last record applied.
func (r *Ring) Sequence() uint64 { return r.sequence.Load() }

// Wait waits until the record at sequence has been applied.
func (r *Ring) Wait(ctx context.Context, sequence uint64) error {
	if r.Sequence() >= sequence {
		return nil
	}
	r.mu.Lock()
	if r.Sequence() >= sequence {
		r.mu.Unlock()
		return nil
	}
	w := waiter{sequence, make(chan struct{})}
	r.waiters = append(r.waiters, w)
	r.mu.Unlock()
	select {
	case <-w.reached:
		return nil
	case <-ctx.Done():
		r.mu.Lock()
		r.waiters = slices.DeleteFunc(r.waiters, func(o waiter) bool { return o.reached == w.reached })
		r.mu.Unlock()
		return fmt.Errorf("keyring is at sequence %d and did not reach %d: %w", r.Sequence(), sequence, ctx.Err())
	}
}

func (r *Ring) reach(sequence uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sequence.Store(sequence)
	r.waiters = slices.DeleteFunc(r.waiters, func(w waiter) bool {
		if w.sequence > sequence {
			return false
		}
		close(w.reached)
		return true
	})
}

// Apply applies one record. Records MUST come in stream order, from one
// goroutine, and not while Run runs.
func (r *Ring) Apply(rec events.Record) {
	r.apply(rec)
	r.reach(rec.Sequence)
}

// apply says whether the record held.
func (r *Ring) apply(rec events.Record) (held bool) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	r.applied = rec.Sequence
	e := &rec.Event
	r.times.add(rec.Sequence, e.Time)
	if e.Keyspace == events.RootKeyspace {
		r.rootLast = rec.Sequence
	}
	before := domain.State{Keyspace: r.Keyspace(e.Keyspace)}
	var o *ownerEntry
	if e.Owner != "" {
		if o = r.findOwner(e.Keyspace, e.Owner); o != nil {
			before.Owner = o.owner.Load()
		}
	}
	var at *entry
	var number uint32
	if e.Key != "" {
		if at, number = r.entry(e.Key); at != nil {
			before.Key = at.key.Load()
		}
	}
	if held = domain.Holds(before, *e); !held {
		r.mu.Lock()
		r.void[rec.Sequence] = struct{}{}
		r.mu.Unlock()
	} else {
		r.remember(rec)
	}
	after := domain.Evolve(before, rec)
	if after.Keyspace != before.Keyspace {
		r.storeKeyspace(after.Keyspace)
	}
	if after.Owner != before.Owner {
		if before.Owner == nil || before.Owner.Version != after.Owner.Version {
			pack(&after.Owner.Keyspace, &after.Owner.ID, &after.Owner.Name, &after.Owner.Plan)
		}
		if o == nil {
			o = r.ownerEntry(after.Owner.Keyspace, after.Owner.ID)
		}
		o.owner.Store(after.Owner)
		if d, ok := e.Data.(events.OwnerKeyAdmitted); ok {
			o.admitted, o.admittedAt = strings.Clone(d.Key), rec.Sequence
		}
	}
	if after.Key != before.Key {
		r.storeKey(at, number, o, before.Key, after.Key)
	}
	return held
}

func (r *Ring) storeKeyspace(k *domain.Keyspace) {
	spaces := maps.Clone(*r.spaces.Load())
	spaces[k.Document.Keyspace] = k
	r.spaces.Store(&spaces)
	if r.OnKeyspace != nil {
		r.OnKeyspace(k)
	}
}

// storeKey takes the entries of the key and its owner where there are any.
func (r *Ring) storeKey(at *entry, number uint32, o *ownerEntry, before, after *domain.Key) {
	if before == nil || before.Grant != after.Grant {
		after.Grant = r.shared.grant(after.Grant)
	}
	if before == nil || before.Name != after.Name || before.First != after.First || before.Last != after.Last {
		pack(&after.ID, &after.Name, &after.First, &after.Last)
	} else {
		after.Name, after.First, after.Last = before.Name, before.First, before.Last
	}
	if after.More != nil && (before == nil || before.More != after.More) {
		own(after.More)
	}
	if o == nil {
		o = r.ownerEntry(after.Keyspace, after.Owner)
	}
	if at != nil {
		// The state first: whoever finds the new secret must find the key that has it.
		at.key.Store(after)
	} else {
		number, at = r.entries.add(o, after)
		r.ids.add(maphash.String(r.seed, after.ID), number)
	}
	o.count(at, before, after)
	if before == nil || before.Hash != after.Hash {
		if other, _ := r.bySecret(after.Keyspace, &after.Hash); other == nil { // else the first key with a secret keeps it
			r.secrets.add(r.hash(&after.Hash), number)
		}
	}
}

func (o *ownerEntry) count(at *entry, before, after *domain.Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if before == nil {
		o.keys = append(o.keys, at)
	} else if !before.Revoked() {
		o.live--
		delete(o.expiring, at)
	}
	if after.Revoked() {
		return
	}
	o.live++
	if after.ExpiresAt != 0 {
		if o.expiring == nil {
			o.expiring = map[*entry]events.Time{}
		}
		o.expiring[at] = after.ExpiresAt
	}
}

// hash is what a secret is looked for by. Those who import hashes choose them, so
// it is hashed again with a seed that nobody knows: else they could make many alike.
func (r *Ring) hash(secret *[32]byte) uint64 { return maphash.Bytes(r.seed, secret[:]) }

// has looks at the hash first: the keyspace is on another cache line.
func has(k *domain.Key, keyspace string, secret *[32]byte) bool {
	if !domain.SameHash(&k.Hash, secret) &&
		(k.More == nil || !slices.ContainsFunc(k.Earlier, func(e domain.Earlier) bool { return e.Hash == *secret })) {
		return false
	}
	return k.Keyspace == keyspace
}

func (r *Ring) remember(rec events.Record) {
	which, what, ok := domain.SplitCommandID(rec.Event.Command)
	if !ok {
		return
	}
	oldest := events.At(time.Now().Add(-Remembered))
	if rec.Event.Time < oldest {
		return
	}
	d := Done{which, what, rec.Event.Keyspace, rec.Event.Owner, rec.Event.Key, rec.Sequence, rec.Event.Time}
	pack(&d.Which, &d.What, &d.Keyspace, &d.Owner, &d.Key)
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.recent) > 0 && r.recent[0].Time < oldest {
		if old := r.recent[0]; r.commands[old.Which].Sequence == old.Sequence {
			delete(r.commands, old.Which)
		}
		r.recent = r.recent[1:]
	}
	r.commands[d.Which] = d
	r.recent = append(r.recent, d)
}

// Done says whether a command with this idempotency key took effect in the
// last 24 hours.
func (r *Ring) Done(which string, now time.Time) (Done, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.commands[which]
	return d, ok && d.Time >= events.At(now.Add(-Remembered))
}

// Void waits until the record at sequence has been applied and says whether
// it was void.
func (r *Ring) Void(ctx context.Context, sequence uint64) (bool, error) {
	if err := r.Wait(ctx, sequence); err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, void := r.void[sequence]
	return void, nil
}

func (r *Ring) ownerShard(id string) *shard {
	return &r.shards[maphash.String(r.seed, id)%shards]
}

func (r *Ring) entry(id string) (*entry, uint32) {
	hash := maphash.String(r.seed, id)
	for table, i := r.ids.table(hash), uint32(hash); ; {
		at, number, after := r.ids.next(table, hash, i)
		if at == nil || at.key.Load().ID == id {
			return at, number
		}
		i = after
	}
}

func (r *Ring) bySecret(keyspace string, secret *[32]byte) (*entry, uint32) {
	hash := r.hash(secret)
	for table, i := r.secrets.table(hash), uint32(hash); ; {
		at, number, after := r.secrets.next(table, hash, i)
		if at == nil || has(at.key.Load(), keyspace, secret) {
			return at, number
		}
		i = after
	}
}

func (r *Ring) findOwner(keyspace, id string) *ownerEntry {
	s := r.ownerShard(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.owners[ownerID{keyspace, id}]
}

func (r *Ring) ownerEntry(keyspace, id string) *ownerEntry {
	s := r.ownerShard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.owners[ownerID{keyspace, id}]
	if o == nil {
		o = &ownerEntry{}
		s.owners[ownerID{keyspace, id}] = o
	}
	return o
}

// Keyspace is a keyspace by its id, or nil.
func (r *Ring) Keyspace(id string) *domain.Keyspace { return (*r.spaces.Load())[id] }

// Keyspaces are all configured keyspaces by id, without the built-in one.
func (r *Ring) Keyspaces() []*domain.Keyspace {
	spaces := *r.spaces.Load()
	var list []*domain.Keyspace
	for _, id := range slices.Sorted(maps.Keys(spaces)) {
		if id != events.RootKeyspace {
			list = append(list, spaces[id])
		}
	}
	return list
}

// Owner is an owner of a keyspace, or nil.
func (r *Ring) Owner(keyspace, id string) *domain.Owner {
	if o := r.findOwner(keyspace, id); o != nil {
		return o.owner.Load()
	}
	return nil
}

// Key is a key by its id, deleted ones included, or nil.
func (r *Ring) Key(id string) *domain.Key {
	if at, _ := r.entry(id); at != nil {
		return at.key.Load()
	}
	return nil
}

// BySecret is the key of a keyspace that has or had the secret with this
// SHA-256 hash, or nil.
func (r *Ring) BySecret(keyspace string, hash [32]byte) *domain.Key {
	return r.Find(keyspace, &hash).Key
}

// Found is a key that was found by one of its secrets; the zero value is none.
type Found struct {
	Key   *domain.Key
	Owner *domain.Owner // nil where nobody owns the key

	// BesideKey and BesideOwner are room for what whoever decides requests keeps
	// of the key and of its owner, so that it need not search again. They stay the
	// same for as long as the ring is there, which never looks at them.
	BesideKey, BesideOwner *atomic.Value
}

// Find is [Ring.BySecret] with all that belongs to the key.
func (r *Ring) Find(keyspace string, hash *[32]byte) Found {
	at, _ := r.bySecret(keyspace, hash)
	if at == nil {
		return Found{}
	}
	return Found{at.key.Load(), at.owner.owner.Load(), &at.beside, &at.owner.beside}
}

// Keys are the keys of one owner in order of creation, deleted ones included.
// The owner of root keys is the empty one.
func (r *Ring) Keys(keyspace, owner string) iter.Seq[*domain.Key] {
	return func(yield func(*domain.Key) bool) {
		o := r.findOwner(keyspace, owner)
		if o == nil {
			return
		}
		o.mu.Lock()
		keys := o.keys[:len(o.keys):len(o.keys)]
		o.mu.Unlock()
		for _, e := range keys {
			if !yield(e.key.Load()) {
				return
			}
		}
	}
}

// Owners are the owners of a keyspace, in no order.
func (r *Ring) Owners(keyspace string) []*domain.Owner {
	var list []*domain.Owner
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.RLock()
		for id, o := range s.owners {
			if owner := o.owner.Load(); id.keyspace == keyspace && owner != nil {
				list = append(list, owner)
			}
		}
		s.mu.RUnlock()
	}
	return list
}

// ActiveKeys counts an owner's keys that are neither revoked, deleted nor expired.
func (r *Ring) ActiveKeys(keyspace, owner string, now time.Time) int {
	o := r.findOwner(keyspace, owner)
	if o == nil {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.live
	for _, until := range o.expiring {
		if until <= events.At(now) {
			n--
		}
	}
	return n
}

// State is what a command about a key (or an owner, or a keyspace, with the
// rest empty) is decided with, and the last sequence of each subject that it
// may append to: what an append there expects.
func (r *Ring) State(keyspace, owner, key string, now time.Time) (s domain.State, expect Expect) {
	r.deciding.RLock()
	defer r.deciding.RUnlock()
	s.Keyspace = r.Keyspace(keyspace)
	if s.Keyspace != nil {
		expect.Keyspace = s.Keyspace.Sequence
	}
	if owner != "" {
		if s.Owner = r.Owner(keyspace, owner); s.Owner != nil {
			expect.Owner = s.Owner.Sequence
		}
		// Only a plan with a cap asks, and counting costs the owner's keys.
		if s.Keyspace != nil && capped(s.Keyspace) {
			s.ActiveKeys = r.ActiveKeys(keyspace, owner, now)
			if o := r.findOwner(keyspace, owner); o != nil && o.admittedAt == r.applied && r.applied > 0 {
				if k := r.Key(o.admitted); k == nil || !k.Active(events.At(now)) {
					s.ActiveKeys++
				}
			}
		}
	}
	if k := r.Key(key); k != nil && k.Keyspace == keyspace && k.Owner == owner {
		s.Key, expect.Key = k, k.Sequence
	}
	if keyspace == events.RootKeyspace {
		for k := range r.Keys(keyspace, "") {
			if k.Role == domain.Operator && k.Active(events.At(now)) {
				s.Operators++
			}
		}
		last := r.rootLast
		expect = Expect{last, last, last}
	}
	return s, expect
}

func capped(k *domain.Keyspace) bool {
	for _, p := range k.Plans {
		if p.MaxKeys != nil {
			return true
		}
	}
	return false
}

// Expect are the last sequences of the subjects of a state; 0 for a subject
// that is not known to have facts.
type Expect struct{ Keyspace, Owner, Key uint64 }

// Users says who uses each plan, scope and environment of a keyspace. Revoked
// and deleted keys use nothing.
func (r *Ring) Users(keyspace string) domain.Users {
	u := domain.Users{Plans: map[string][]string{}, Scopes: map[string][]string{}, Environments: map[string][]string{}}
	for _, o := range r.Owners(keyspace) {
		if o.Plan != "" {
			u.Plans[o.Plan] = append(u.Plans[o.Plan], o.ID)
		}
		for k := range r.Keys(keyspace, o.ID) {
			if k.Revoked() {
				continue
			}
			u.Environments[k.Environment] = append(u.Environments[k.Environment], k.ID)
			if k.Plan != "" {
				u.Plans[k.Plan] = append(u.Plans[k.Plan], k.ID)
			}
			for _, s := range k.Scopes {
				u.Scopes[s] = append(u.Scopes[s], k.ID)
			}
		}
	}
	for _, m := range []map[string][]string{u.Plans, u.Scopes, u.Environments} {
		for _, users := range m {
			slices.Sort(users)
		}
	}
	return u
}
