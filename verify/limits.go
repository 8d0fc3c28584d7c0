package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/verify/applied"
	"github.com/keyledger/keyledger/verify/limit"
	"github.com/keyledger/keyledger/verify/peers"
)

// Limit is where a key stands in one window.
type Limit = limit.Limit

// sweepEvery is how often pools that nobody draws from any more are dropped.
const sweepEvery = time.Minute

// draw takes n requests from the pool that the decision's key or owner draws
// from: VALID or RATE_LIMITED. What a key was found with says where the pool is.
func (v *Verifier) draw(d *Decision, found *keyring.Found, n int64) domain.Code {
	place := found.BesideKey
	if d.Keyspace.OwnersPool(d.Key) {
		place = found.BesideOwner
	}
	pool := func() domain.Pool { return d.Keyspace.PoolFor(d.Key, d.Owner) }
	v.limits.TakeAt(place, pool, d.Keyspace.Quota(d.Key, d.Owner), n, d.Time, &d.taken)
	if d.taken.Later != 0 {
		d.Time = d.Time.Add(d.taken.Later)
	}
	if !d.taken.OK {
		d.RetryAfter = d.taken.RetryAfter
		return domain.CodeRateLimited
	}
	return domain.CodeValid
}

// giveBack is for an admitted request that was refused in the end.
func (v *Verifier) giveBack(d *Decision) {
	if d.taken.N > 0 {
		quota, pool := d.Keyspace.QuotaFor(d.Key, d.Owner)
		v.limits.GiveBack(&pool, quota, 1, d.Time)
	}
}

// Limited says whether a limit of the key is used up, so that its next request
// would be refused.
func (v *Verifier) Limited(key *domain.Key) bool {
	k := v.keyspace(key.Keyspace)
	if k == nil {
		return false
	}
	quota, pool := k.QuotaFor(key, v.ring.Owner(key.Keyspace, key.Owner))
	return v.limits.UsedUp(&pool, quota, v.now())
}

// Standing is where a key stands in every window that has a limit, shortest first, and
// whether its owner's other keys draw from the same pool. Nothing is taken.
func (v *Verifier) Standing(key *domain.Key) (limits []Limit, shared bool) {
	k := v.keyspace(key.Keyspace)
	if k == nil {
		return nil, false
	}
	quota, pool := k.QuotaFor(key, v.ring.Owner(key.Keyspace, key.Owner))
	var t limit.Taken
	v.limits.Stand(&pool, quota, v.now(), &t)
	return t.Limits[:t.N], pool.Key == ""
}

// LimitedKeys are the ids of the keys of which [Verifier.Limited] is true, some
// perhaps twice; of one keyspace and one owner where these are named.
func (v *Verifier) LimitedKeys(keyspace, owner string) []string {
	ids := []string{}
	add := func(key *domain.Key) {
		if key != nil && v.Limited(key) {
			ids = append(ids, key.ID)
		}
	}
	for _, pool := range v.limits.Pools() {
		switch {
		case keyspace != "" && keyspace != pool.Keyspace || owner != "" && owner != pool.Owner:
		case pool.Key != "":
			add(v.ring.Key(pool.Key))
		default:
			for key := range v.ring.Keys(pool.Keyspace, pool.Owner) {
				add(key)
			}
		}
	}
	return ids
}

// Errors of [Verifier.Take].
var (
	ErrNoSuchKeyspace = errors.New("there is no keyspace of this name")
	ErrNoSuchOwner    = errors.New("there is no owner of this id in the keyspace")
)

// Take draws n requests, at least 1, of other traffic from an owner's pool: the
// one that its keys share where the keyspace counts by owner. The decision is
// VALID, RATE_LIMITED (then nothing was drawn) or STATE_TOO_STALE. What was
// drawn is recorded, folded by second. It fails with [ErrNoSuchKeyspace] or
// [ErrNoSuchOwner].
func (v *Verifier) Take(keyspace, owner string, n int64) (Decision, error) {
	d := Decision{Code: domain.CodeStateTooStale, Time: v.now(), Sequence: v.ring.Sequence(), Keyspace: v.keyspace(keyspace)}
	if v.fresh.ok(time.Now()) || v.fresh.okSlow() {
		d.Sequence, d.Keyspace = v.ring.Sequence(), v.keyspace(keyspace)
		if d.Keyspace == nil {
			return d, ErrNoSuchKeyspace
		}
		if d.Owner = v.ring.Owner(keyspace, owner); d.Owner == nil {
			return d, ErrNoSuchOwner
		}
		d.Code = v.draw(&d, &keyring.Found{}, n)
	}
	d.Valid = d.Code == domain.CodeValid
	stampDecision(&d.stamp, d.Time, d.Valid)
	if d.Valid && v.recorder != nil {
		v.recorder.folds.take(d.Owner, n, d.Time)
	}
	return d, nil
}

// RateHeaders appends to dst the headers that say how much room is left, of the
// families that the document asks for: X-RateLimit-Limit, -Remaining and -Reset
// (Unix seconds), and RateLimit with RateLimit-Policy as in
// draft-ietf-httpapi-ratelimit-headers-11, for the window with the least room.
// Retry-After belongs to refusals: [Decision.Answer] has it.
func (d *Decision) RateHeaders(dst []domain.Header) []domain.Header {
	limits := d.Limits()
	if len(limits) == 0 {
		return dst
	}
	least := &limits[0]
	for i := range limits {
		l := &limits[i]
		if l.Remaining < least.Remaining || l.Remaining == least.Remaining && l.Reset > least.Reset {
			least = l
		}
	}
	reset := (int64(least.Reset) + 999) / 1000
	if slices.Contains(d.Keyspace.Document.RateHeaders, "x-ratelimit") {
		dst = append(dst,
			domain.Header{Name: "X-RateLimit-Limit", Value: strconv.FormatInt(least.Limit, 10)},
			domain.Header{Name: "X-RateLimit-Remaining", Value: strconv.FormatInt(least.Remaining, 10)},
			domain.Header{Name: "X-RateLimit-Reset", Value: strconv.FormatInt(reset, 10)})
	}
	if slices.Contains(d.Keyspace.Document.RateHeaders, "ietf") {
		dst = append(dst,
			domain.Header{Name: "RateLimit-Policy", Value: d.policies()},
			domain.Header{Name: "RateLimit", Value: string(d.serviceLimit(least))})
	}
	return dst
}

// maxInteger is the largest Integer of RFC 9651.
const maxInteger = 999_999_999_999_999

func (d *Decision) policies() string {
	b := make([]byte, 0, 96)
	limits := d.Limits()
	for i := range limits {
		l := &limits[i]
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(append(append(b, '"'), l.Window...), `";q=`...)
		b = strconv.AppendInt(b, min(l.Limit, maxInteger), 10)
		b = strconv.AppendInt(append(b, ";w="...), l.Seconds(), 10)
	}
	return string(b)
}

// serviceLimit is a window with the time until there is more room. Of a refusal
// that is never later than Retry-After, as section 6 of the draft asks.
func (d *Decision) serviceLimit(l *Limit) []byte {
	wait := max(int64(time.Duration(l.Reset)*time.Millisecond-time.Duration(d.Time.UnixNano())), 0)
	seconds := (wait + int64(time.Second-time.Millisecond)) / int64(time.Second) // Reset was rounded up to the millisecond
	if d.RetryAfter > 0 {
		seconds = min(seconds, d.RetryAfter)
	}
	b := append(append(make([]byte, 0, 48), '"'), l.Window...)
	b = strconv.AppendInt(append(b, `";r=`...), min(l.Remaining, maxInteger), 10)
	return strconv.AppendInt(append(b, ";t="...), seconds, 10)
}

// Share makes one limit of those of all verifiers that are reached over conn and
// share as well: they tell each other what they admit. node is the name under
// which this process records. It MUST be called before the first request is
// decided and before [Verifier.Recount], and returns when this process listens and
// has asked the others, or with the error of ctx.
func (v *Verifier) Share(ctx context.Context, conn *nats.Conn, node string, log *slog.Logger) error {
	v.peers = peers.New(v.limits, peers.Options{Node: node, Start: time.Now(), Quota: v.quotaOf, Log: log})
	listens, ended := make(chan struct{}), make(chan error, 1)
	v.running.Go(func() { ended <- v.peers.Run(v.life, conn, func() { close(listens) }) })
	select {
	case <-listens:
		return nil
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Tell has this process tell over conn how far it has applied LEDGER, and when it
// stopped accepting what was revoked, until the verifier is closed (package applied).
// node is the name under which it records; program says what it is. The ring MUST be
// ready.
func (v *Verifier) Tell(conn *nats.Conn, node, program string) *applied.Teller {
	o := applied.Options{Node: node, Program: program, Ring: v.ring, Lost: v.Lost, Window: v.fresh.window}
	if v.recorder != nil {
		o.Held = v.recorder.Held
	}
	t := applied.NewTeller(o)
	v.running.Go(func() { t.Run(v.life, conn) })
	return t
}

// Peers is what other verifiers tell and are told; nil before [Verifier.Share].
func (v *Verifier) Peers() *peers.Peers { return v.peers }

func (v *Verifier) quotaOf(pool domain.Pool) (*domain.Quota, domain.Pool) {
	k, owner := v.keyspace(pool.Keyspace), v.ring.Owner(pool.Keyspace, pool.Owner)
	if k == nil || owner == nil {
		return nil, pool
	}
	var key *domain.Key
	if pool.Key != "" {
		if key = v.ring.Key(pool.Key); key == nil || key.Keyspace != pool.Keyspace {
			return nil, pool
		}
	}
	quota, own := k.QuotaFor(key, owner)
	if own != pool { // of a key that draws from another one by now
		return nil, pool
	}
	return quota, own
}

// Recount counts what USAGE says was admitted in the windows that are not over,
// by every node, so that a restart opens no limit. It MUST be called before the
// first request is decided, and returns when all is counted; or after atMost,
// and then goes on, newest first, while requests are decided: until it is done a
// window knows what was read so far.
func (v *Verifier) Recount(ctx context.Context, l *ledger.Ledger, atMost time.Duration, log *slog.Logger) error {
	if !slices.ContainsFunc(v.ring.Keyspaces(), limits) {
		return nil
	}
	began := time.Now()
	head, err := l.Head(ctx, events.Usage)
	if err != nil {
		return fmt.Errorf("recount the limits: %w", err)
	}
	done := make(chan error, 1)
	v.running.Go(func() {
		n, err := v.recount(v.life, l, head)
		if took := time.Since(began); took > time.Second || err != nil {
			log.Info("limits are recounted from the uses in the log", "uses", n, "took", took.Round(time.Millisecond).String(), "error", err)
		}
		done <- err
	})
	enough := time.NewTimer(atMost)
	defer enough.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-enough.C:
		log.Warn("limits are still being recounted from the uses in the log: until that is done, hour and day windows know only the newest of them")
		return nil
	}
}

// limits says whether requests to a keyspace may be limited at all.
func limits(k *domain.Keyspace) bool {
	if k.Limits.From == "key" {
		return true
	}
	for _, p := range k.Plans {
		if len(p.Limits) > 0 {
			return true
		}
	}
	return false
}

func (v *Verifier) recount(ctx context.Context, l *ledger.Ledger, head uint64) (n int, err error) {
	now := v.now()
	midnight := now.UTC().Truncate(24 * time.Hour)
	oldest := now.Add(-time.Hour)
	if midnight.Before(oldest) {
		oldest = midnight
	}
	// Windows of the minute are whole after a moment, those of the hour next.
	for to, from := head, now; to > 0 && from.After(oldest); {
		switch age := now.Sub(from); {
		case age < time.Minute:
			from = now.Add(-time.Minute)
		case age < 10*time.Minute:
			from = now.Add(-10 * time.Minute)
		case age < time.Hour:
			from = now.Add(-time.Hour)
		default:
			from = from.Add(-time.Hour)
		}
		if from.Before(oldest) {
			from = oldest
		}
		first, err := l.SequenceAt(ctx, events.Usage, from)
		if err != nil {
			return n, fmt.Errorf("recount the limits: %w", err)
		}
		if first > to {
			continue
		}
		for r, err := range l.Read(ctx, events.Usage, first, to) {
			if err != nil {
				return n, fmt.Errorf("recount the limits: %w", err)
			}
			v.recall(&r.Event, now)
			n++
		}
		to = first - 1
	}
	return n, nil
}

// recall counts what one fact says was admitted.
func (v *Verifier) recall(e *events.Envelope, now time.Time) {
	k := v.keyspace(e.Keyspace)
	if k == nil {
		return
	}
	var key *domain.Key
	n, at, node := int64(1), e.Time, ""
	switch d := e.Data.(type) {
	case events.KeyUsed:
		node = d.Node
		if key = v.ring.Key(e.Key); key == nil {
			return
		}
	case events.LimitTaken:
		n, at, node = d.Count, d.Last, d.Node
	default:
		return
	}
	quota, pool := k.QuotaFor(key, v.ring.Owner(e.Keyspace, e.Owner))
	when := at.Time()
	if when.After(now) { // of a node whose clock is ahead
		when = now
	}
	by := limit.Node{Name: node}
	if v.peers != nil {
		by = v.peers.Node(node)
	}
	v.limits.Recall(by, &pool, quota, n, when, now)
}
