// Package lease lets one process of several do something at a time: whoever holds
// the lease of that name in the NATS KV bucket [Bucket]. A lease is one value, taken
// and renewed by compare-and-swap of its revision.
//
// What it promises: no two hold a lease of one name at the same moment, without
// their clocks having to agree on the time of day. The holder counts from before it
// asked for a renewal; whoever wants the lease counts from when it first saw that
// renewal, and waits a quarter longer. Both count with their own clock, and the
// shorter of what it says of elapsed time and of the time of day: a process that was
// paused, or a machine that slept, finds on waking that it holds nothing. [Options.Run]
// ends the context of what it runs then, and waits until that has returned before it
// asks again. After an orderly end the next one may begin at once.
//
// How it can disappoint. Between the moment at which a process looks whether it
// holds the lease ([Check]) and the moment at which what it does takes effect
// elsewhere, it may be paused: what must never happen twice states an expectation
// that the server checks (a revision, a stream's last sequence), or carries [Token].
// A clock that runs more than a fifth slower than another one breaks the promise.
// After a kill -9 nobody works for up to TTL and a quarter, unless a process with the
// same [Options.Holder] comes back. Without NATS nobody works.
package lease

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// Bucket is the NATS KV bucket of all leases. Losing it loses nothing.
const Bucket = "keyledger_leases"

// DefaultTTL is how long a lease lasts without being renewed.
const DefaultTTL = 3 * time.Second

// ErrLost is the cause of a context that ended because its lease did.
var ErrLost = errors.New("the lease was lost: another process may go on with this")

// Open opens the bucket, and makes it (replicas: 1 or 3) where there is none.
func Open(ctx context.Context, js jetstream.JetStream, replicas int) (jetstream.KeyValue, error) {
	return cluster.OpenBucket(ctx, js, jetstream.KeyValueConfig{
		Bucket:      Bucket,
		Description: "which process does what only one may do at a time",
		History:     1,
		Storage:     jetstream.FileStorage,
		Replicas:    max(replicas, 1),
	})
}

// Options of a lease; the zero value works.
type Options struct {
	// Holder is who asks. Where it is not empty, a process takes back at once what
	// was held under the same name before: it MUST be of this process alone, such as
	// the name of a node whose state directory it has locked.
	Holder string

	TTL time.Duration // zero: DefaultTTL. The same for all who want one lease
	Log *slog.Logger  // nil: slog.Default()
}

// Run is [Options.Run] of the zero Options.
func Run(ctx context.Context, kv jetstream.KeyValue, name string, fn func(context.Context) error) error {
	return Options{}.Run(ctx, kv, name, fn)
}

// Run waits for the lease of a name (letters, digits, - _ = . /), runs fn while it is
// held, and gives it up when fn returns, with whose error it then returns. When the
// lease is lost, fn's context ends with the cause [ErrLost]; when fn has returned,
// Run waits for the lease again. It returns the error of ctx when that has ended and
// fn has returned. Failures of the server are retried until then.
//
// Before each thing that must not be done by two, fn MUST ask [Check], which looks at
// the clock: the end of a context reaches a process that was paused a moment after it
// goes on.
func (o Options) Run(ctx context.Context, kv jetstream.KeyValue, name string, fn func(context.Context) error) error {
	o.TTL, o.Log = cmp.Or(o.TTL, DefaultTTL), cmp.Or(o.Log, slog.Default())
	l := &lease{Options: o, kv: kv, name: name, run: rand.Text()}
	if l.Holder == "" {
		l.Holder = l.run
	}
	for {
		if err := l.acquire(ctx); err != nil {
			return err
		}
		l.Log.Debug("lease: held", "lease", name, "holder", l.Holder, "token", l.token)
		err, lost := l.hold(ctx, fn)
		if !lost {
			l.release()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !lost {
			return err
		}
		l.Log.Warn("lease: lost, and asked for again", "lease", name, "error", err)
	}
}

// value is what the bucket holds of a lease.
type value struct {
	Holder string      `json:"holder"` // empty: it was given up
	Run    string      `json:"run"`    // of one call of Run
	Beat   uint64      `json:"beat"`   // counts the writes of a run
	Since  events.Time `json:"since"`  // by the holder's clock, for people
	TTL    int64       `json:"ttl_ms"`
}

type lease struct {
	Options
	kv        jetstream.KeyValue
	name, run string
	beat      uint64
	since     events.Time
	revision  uint64 // of the last value of this run
	token     uint64 // revision with which it was taken

	mu    sync.Mutex // guards what follows
	until moment
}

// moment is by both clocks: elapsed time goes on in a paused process, the time of day
// on a sleeping machine as well.
type moment struct{ elapsed, day time.Time }

func now() moment {
	t := time.Now()
	return moment{t, t.Round(0)}
}

func (m moment) add(d time.Duration) moment { return moment{m.elapsed.Add(d), m.day.Add(d)} }

// left is the shorter of what the clocks say.
func (m moment) left() time.Duration {
	n := now()
	return min(m.elapsed.Sub(n.elapsed), m.day.Sub(n.day))
}

func (l *lease) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until.left()
}

// put writes the next value behind a revision, and counts from before it asked.
func (l *lease) put(ctx context.Context, behind uint64) error {
	ctx, cancel := context.WithTimeout(ctx, l.TTL)
	defer cancel()
	l.beat++
	body, err := json.Marshal(value{l.Holder, l.run, l.beat, l.since, l.TTL.Milliseconds()})
	if err != nil {
		return err
	}
	asked := now()
	revision, err := l.kv.Update(ctx, l.name, body, behind)
	if err != nil {
		return err
	}
	l.revision = revision
	l.mu.Lock()
	l.until = asked.add(l.TTL)
	l.mu.Unlock()
	return nil
}

// look reads who holds the lease; the zero value says nobody. A replica may answer
// with an older value: what is written behind that is refused.
func (l *lease) look(ctx context.Context) (v value, revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.TTL)
	defer cancel()
	e, err := l.kv.Get(ctx, l.name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return v, 0, nil
	}
	if err != nil {
		return v, 0, err
	}
	_ = json.Unmarshal(e.Value(), &v) // what is no value of ours is waited for, and replaced
	if len(e.Value()) > 0 && v.Run == "" {
		v.Holder, v.Run = "unknown", "unknown"
	}
	return v, e.Revision(), nil
}

// acquire returns when the lease is held.
func (l *lease) acquire(ctx context.Context) error {
	var seen uint64     // revision that was seen last
	var patience moment // when its holder has had its time
	for failures := 0; ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v, revision, err := l.look(ctx)
		if err == nil {
			failures = 0
			if revision != seen {
				ttl := max(l.TTL, time.Duration(v.TTL)*time.Millisecond)
				seen, patience = revision, now().add(ttl+ttl/4)
			}
			if v.Holder == "" || v.Holder == l.Holder || patience.left() <= 0 {
				l.since = events.At(time.Now())
				if err = l.put(ctx, revision); err == nil {
					l.token = l.revision
					return nil
				}
				if cluster.Conflict(err) {
					err, seen = nil, 0
				}
			}
		}
		if err != nil {
			if errors.Is(err, jetstream.ErrInvalidKey) {
				return fmt.Errorf("%q is no name of a lease: use letters, digits, - _ = . and /", l.name)
			}
			if failures++; failures%20 == 1 && ctx.Err() == nil {
				l.Log.Warn("lease: the bucket cannot be reached", "lease", l.name, "error", err)
			}
		}
		pause := l.TTL / 8
		pause = pause/2 + mathrand.N(pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// hold runs fn and renews the lease beside it.
func (l *lease) hold(ctx context.Context, fn func(context.Context) error) (err error, lost bool) {
	held, end := context.WithCancelCause(context.WithValue(ctx, held{}, l))
	defer end(nil)
	done := make(chan error, 1)
	go func() { done <- fn(held) }()

	var why error // of the last renewal that failed
	pause := time.NewTimer(l.TTL / 3)
	defer pause.Stop()
	for {
		select {
		case err := <-done:
			return err, errors.Is(context.Cause(held), ErrLost)
		case <-pause.C:
		}
		if l.left() <= 0 {
			end(errors.Join(ErrLost, why))
			return errors.Join(why, <-done), true
		}
		// A renewal that takes too long must not delay the end of the context.
		bounded, cancel := context.WithTimeoutCause(held, l.left(), ErrLost)
		renewed := make(chan error, 1)
		go func() { renewed <- l.renew(bounded) }()
		select {
		case why = <-renewed:
		case <-bounded.Done():
			if held.Err() == nil {
				end(fmt.Errorf("%w: the server did not answer in time", ErrLost))
			}
			why = <-renewed
		}
		cancel()
		switch {
		case why == nil:
			pause.Reset(l.TTL / 3)
		case errors.Is(why, ErrLost):
			end(why)
			return errors.Join(why, <-done), true
		default:
			pause.Reset(max(0, min(l.TTL/10, l.left())))
		}
	}
}

// renew writes the next beat. After a write with an unknown outcome the value there
// may be this run's own.
func (l *lease) renew(ctx context.Context) error {
	err := l.put(ctx, l.revision)
	if !cluster.Conflict(err) {
		return err
	}
	v, revision, err := l.look(ctx)
	if err != nil {
		return err
	}
	switch {
	case v.Run == l.run && revision > l.revision:
		l.revision = revision
		return errors.New("the value is this process's own, written by a request that was not answered")
	case v.Run == l.run: // a refusal or a replica that was late
		return errors.New("the server refused a renewal behind the last one")
	}
	return fmt.Errorf("%w: %s holds it", ErrLost, cmp.Or(v.Holder, "nobody"))
}

// release lets others begin at once.
func (l *lease) release() {
	if l.left() <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.left())
	defer cancel()
	body, err := json.Marshal(value{Run: l.run, Since: events.At(time.Now())})
	if err == nil {
		_, err = l.kv.Update(ctx, l.name, body, l.revision)
	}
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		l.Log.Debug("lease: others have to wait until it has run out", "lease", l.name, "error", err)
	}
}

type held struct{}

// Check fails with [ErrLost] when the lease that ctx was made under is no longer held
// by the clock, and with the error of ctx when that has ended.
func Check(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if l, ok := ctx.Value(held{}).(*lease); ok && l.left() <= 0 {
		return ErrLost
	}
	return nil
}

// Token grows with every time that a lease of this name is taken: of two writes, the
// one with the smaller token is of a holder that was. Zero: ctx is of no lease.
func Token(ctx context.Context) uint64 {
	if l, ok := ctx.Value(held{}).(*lease); ok {
		return l.token
	}
	return 0
}

// Holding is who holds a lease, as the bucket says. A holder that was killed is named
// until another has taken it.
type Holding struct {
	Holder string      // empty: nobody
	Since  events.Time // by its clock
}

// Holder reads who holds a lease.
func Holder(ctx context.Context, kv jetstream.KeyValue, name string) (Holding, error) {
	l := lease{Options: Options{TTL: DefaultTTL}, kv: kv, name: name}
	v, _, err := l.look(ctx)
	if err != nil {
		return Holding{}, fmt.Errorf("read the lease %s: %w", name, err)
	}
	if v.Holder == "" {
		return Holding{}, nil
	}
	return Holding{v.Holder, v.Since}, nil
}
