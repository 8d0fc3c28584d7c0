// Package verify is the hot path: it decides requests from memory, in the order
// of section 3 of the contract, and records what was decided. Other Go services
// may import it and decide in process.
//
// What it promises. [Verifier.Verify] does no I/O and cannot fail: what it needs
// is in the ring, and where the ring can no longer be trusted the decision is
// STATE_TOO_STALE. Every refusal it answers is counted, exactly; every admitted
// request is recorded once by [Verifier.Record], which the caller MUST call for
// it. A process that was paused folds what it missed before it answers. No
// secret is kept, logged or recorded.
//
// How it can disappoint. A revocation takes effect here when the ring has folded
// it: milliseconds while NATS is reachable, up to the stale window while it is
// not. A decision looks at one key, one owner and one keyspace, each of which is
// consistent, but not at one instant of all three. Recording without waiting
// keeps uses in bounded memory: what does not fit while NATS is away is declared
// as a gap. What a killed process had not written yet is in its write-ahead log,
// where it has one ([OpenRecorder]), and else lost; [Verifier.RecordDurably] waits
// for the server's disk.
// Limits are those of one process (package limit), which counts what others tell
// after [Verifier.Share] (package peers); a process that begins calls
// [Verifier.Recount]. What is asked of a
// keyspace that does not exist is refused and not counted: there is no subject it
// could stand on. Where memory is full, the count of a second's refusals that is
// dropped is declared as one lost fact.
package verify

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/verify/limit"
	"github.com/keyledger/keyledger/verify/peers"
)

// DefaultStaleWindow is how long a verifier that lost the stream goes on.
const DefaultStaleWindow = 5 * time.Minute

// Options of a [Verifier]. The zero value is for a ring that is filled by hand.
type Options struct {
	// Head is the last sequence of LEDGER, from the server. It tells how far
	// behind the ring is; nil: the ring is taken to be complete.
	Head func(context.Context) (uint64, error)

	// StaleWindow is how long requests are still decided after the stream was
	// lost; zero is [DefaultStaleWindow].
	StaleWindow time.Duration

	// Now is the clock by which keys expire and graces end; nil is the system's.
	Now func() time.Time
}

// Verifier decides requests. It is safe for concurrent use.
type Verifier struct {
	ring     *keyring.Ring
	recorder *Recorder        // nil: nothing is recorded
	clock    func() time.Time // nil: the system's
	fresh    *freshness
	limits   *limit.Limiter
	peers    *peers.Peers    // nil: nobody is told what is admitted here
	life     context.Context // ends with Close
	stop     context.CancelFunc
	running  sync.WaitGroup
	reported recentReports
}

// New starts a verifier over a ring that somebody else runs. A nil recorder
// records nothing, which is for trying things out. [Verifier.Close] MUST be called.
func New(ring *keyring.Ring, recorder *Recorder, o Options) *Verifier {
	if o.StaleWindow == 0 {
		o.StaleWindow = DefaultStaleWindow
	}
	ctx, stop := context.WithCancel(context.Background())
	v := &Verifier{
		ring: ring, recorder: recorder, clock: o.Now, life: ctx, stop: stop,
		fresh: newFreshness(o.Head, ring.Wait, o.StaleWindow),
	}
	v.limits = limit.New(v.now())
	v.running.Go(func() { v.fresh.run(ctx) })
	v.running.Go(func() { every(ctx, sweepEvery, func() { v.limits.Sweep(v.now()) }) })
	return v
}

// Close ends the verifier's own clock. The recorder stays the caller's.
func (v *Verifier) Close() {
	v.stop()
	v.running.Wait()
}

// Lost is how long ago the state in memory was last known to be complete: about
// a second while all is well, and refused beyond the stale window.
func (v *Verifier) Lost() time.Duration { return v.fresh.lost(time.Now()) }

// Decision is the outcome of one request.
type Decision struct {
	Valid bool
	Code  domain.Code

	Keyspace *domain.Keyspace // as it was in force; nil where there is none of this name
	Key      *domain.Key      // nil where none is known, or none was needed (a public route)
	Owner    *domain.Owner    // the key's, or nil
	Secret   string           // which of the key's secrets: current or previous; empty without a key

	RetryAfter int64 // seconds; 0 where waiting would not help

	Sequence uint64 // of LEDGER: every fact up to it was taken into account
	Time     time.Time

	stamp [16]byte
	taken limit.Taken
}

// Limits are every window that applies, as it is after the request. The list is
// a part of the decision.
func (d *Decision) Limits() []Limit { return d.taken.Limits[:d.taken.N] }

// Verify decides one request. It does not block, except for a moment after the
// process was paused.
func (v *Verifier) Verify(req domain.Request) (d Decision) {
	now := time.Now()
	d.Time, d.Sequence, d.Keyspace = now, v.ring.Sequence(), v.keyspace(req.Keyspace)
	if v.clock != nil {
		d.Time = v.clock()
	}
	d.Code = v.decide(&req, &d, now)
	d.Valid = d.Code == domain.CodeValid
	stampDecision(&d.stamp, d.Time, d.Valid)
	if !d.Valid && v.recorder != nil {
		v.recorder.refused(&d, &req)
	}
	return d
}

func (v *Verifier) now() time.Time {
	if v.clock != nil {
		return v.clock()
	}
	return time.Now()
}

// keyspace hides the built-in one: a root key is a type of its own and never
// verifies as a customer's key.
func (v *Verifier) keyspace(id string) *domain.Keyspace {
	if id == events.RootKeyspace {
		return nil
	}
	return v.ring.Keyspace(id)
}

func (v *Verifier) decide(req *domain.Request, d *Decision, now time.Time) domain.Code {
	if !v.fresh.ok(now) {
		if !v.fresh.okSlow() {
			return domain.CodeStateTooStale
		}
		d.Sequence, d.Keyspace = v.ring.Sequence(), v.keyspace(req.Keyspace)
	}
	if d.Keyspace == nil {
		return domain.CodeUnknownKey
	}
	secret, code := d.Keyspace.JudgeCredential(req)
	if code != "" {
		return code
	}
	at := events.At(d.Time)
	hash := domain.HashSecret(secret)
	found := v.ring.Find(req.Keyspace, &hash)
	if d.Key, d.Owner = found.Key, found.Owner; d.Key != nil {
		limit.Ahead(found.BesideKey)
		d.Secret, _ = d.Key.SecretState(hash, at)
	}
	if code := d.Keyspace.JudgeKey(req, secret, hash, d.Key, d.Owner, at); code != domain.CodeValid {
		return code
	}
	// Last of all, because what is refused for any other reason consumes nothing.
	return v.draw(d, &found, 1)
}

// ID is the decision's id, dec_….
func (d *Decision) ID() string {
	if d.Key == nil {
		return formatDecisionID(d.stamp, "")
	}
	return formatDecisionID(d.stamp, d.Key.ID)
}

// AppendID appends [Decision.ID].
func (d *Decision) AppendID(b []byte) []byte {
	if d.Key == nil {
		return appendDecisionID(b, d.stamp, "")
	}
	return appendDecisionID(b, d.stamp, d.Key.ID)
}

// Skipped lists what the keyspace would have checked and the request did not
// tell.
func (d *Decision) Skipped(req *domain.Request) []string {
	if d.Keyspace == nil || d.Key == nil && d.Owner != nil { // the latter is Take, which judges no request
		return []string{}
	}
	return req.Skipped(d.Keyspace)
}

// Answer renders a refusal as a gateway may relay it, byte for byte, by the
// document that was in force.
func (d *Decision) Answer(req *domain.Request, requestID string) domain.Rendered {
	return d.AnswerAs(d.Code, req, requestID)
}

// AnswerAs renders the refusal of an admitted request for a reason that was
// found later, such as AUDIT_UNAVAILABLE.
func (d *Decision) AnswerAs(code domain.Code, req *domain.Request, requestID string) domain.Rendered {
	k := d.Keyspace
	if k == nil {
		k = noKeyspace
	}
	ctx := domain.AnswerContext{RequestID: requestID, Time: events.At(d.Time), RetryAfter: d.RetryAfter}
	ctx.ScopesRequired = req.Scopes
	if req.Method != "" && req.Path != "" {
		for _, scope := range k.ScopesFor(req.Method, req.Path) {
			if !slices.Contains(ctx.ScopesRequired, scope) {
				ctx.ScopesRequired = append(slices.Clip(ctx.ScopesRequired), scope)
			}
		}
	}
	if req.Path != "" {
		ctx.Resource, _ = k.ResourceIn(req.Path)
		ctx.Owner, _ = k.OwnerIn(req.Path)
	}
	if req.Resource != nil {
		ctx.Resource = *req.Resource
	}
	if d.Key != nil {
		ctx.KeyID, ctx.Owner = d.Key.ID, d.Key.Owner
	} else if d.Owner != nil {
		ctx.Owner = d.Owner.ID
	}
	if d.Key != nil || d.Owner != nil {
		ctx.Plan, _, _ = k.PlanInForce(d.Key, d.Owner)
		ctx.Limits, _ = k.LimitsFor(d.Key, d.Owner)
	}
	if limits := d.Limits(); len(limits) > 0 {
		ctx.Remaining = make(events.Limits, len(limits))
		for _, l := range limits {
			ctx.Remaining[l.Window] = l.Remaining
		}
	}
	a := k.Answer(code, ctx)
	if code != domain.CodeRateLimited {
		return a
	}
	var room [5]domain.Header
	for _, h := range d.RateHeaders(room[:0]) {
		if !slices.ContainsFunc(a.Headers, func(own domain.Header) bool { return strings.EqualFold(own.Name, h.Name) }) {
			a.Headers = append(a.Headers, h)
		}
	}
	return a
}

// noKeyspace renders refusals where no keyspace is configured: problem documents.
var noKeyspace = domain.Compile(&domain.Document{}, 0)

// CostOf is what a call costs, in micros: the value of the upstream's cost
// header where that is a number, else the document's constant.
func CostOf(k *domain.Keyspace, header string) int64 {
	if n, err := strconv.ParseInt(header, 10, 64); err == nil && n >= 0 {
		return n
	}
	return k.Cost.PerRequest
}

// source is the client's address, or the zero value.
func source(ip string) netip.Addr {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// Keyspace is a keyspace as it is in force, or nil where requests to it are
// refused: there is none, or it is that of root keys.
func (v *Verifier) Keyspace(id string) *domain.Keyspace { return v.keyspace(id) }
