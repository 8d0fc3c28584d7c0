// Package delivery carries facts to places outside: the endpoints of webhooks, the
// publishers of sinks. It follows FEED (all facts of LEDGER that held, in their
// public form) and of OPS the alerts, and hands each fact to every [Target] that
// wants it.
//
// What it promises. Every fact that a target wants is delivered at least once, under
// the same id each time, whatever is killed in between; or it is in DLQ with the
// reason. What has the same keyspace, owner and key is delivered in order, one at a
// time, for each target: the next one waits until the one before is delivered or
// dead. A key that fails does not hold up the other keys of its target, and a target
// that fails holds up no other. What fails is tried again with exponential backoff
// and jitter for a day (a [Failure] may say how long to wait), then it becomes a dead
// letter, which can be listed, shown and replayed ([Store]). Memory is bounded: of
// what waits, the place is kept and not the fact. Of several processes one works on
// all targets of a reactor; see [github.com/keyledger/keyledger/reactors/lease].
//
// State is in the NATS KV bucket [Bucket]: for each target how far each stream was
// read, and for each key that is behind the place of its first fact. Whoever loses it
// has every target begin again where it was registered.
//
// How it can disappoint. State is written twice a second: after a kill what was
// delivered since then is delivered again. The order holds within FEED and within the
// alerts, not between the two, and not for dead letters that are replayed. A target
// with more than [MaxLanes] keys that fail is read no further until some of them are
// through or dead; its facts stay in the streams. What Deliver has done when the
// process is paused in the middle of it may be done again by another process.
package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/reactors/lease"
)

// Fact is what a target gets.
type Fact struct {
	ID, Type             string      // of the event
	Subject              string      // in Stream: feed.<type>.<keyspace>.<owner>.<key>, or ops.<keyspace>.<owner>.<key>
	Stream               string      // FEED or OPS
	Sequence             uint64      // in Stream
	Header               nats.Header // the CloudEvents attributes; MUST NOT be changed
	Body                 []byte      // the public envelope, as it is stored; MUST NOT be changed
	Keyspace, Owner, Key string      // empty where there is none
	Time                 events.Time // of the event
}

// Target is a place outside. Its methods are called by several goroutines, but by one
// at a time for facts of one key.
type Target interface {
	// Name is what its state is kept under: letters, digits, - and _, at most 64. A
	// target that has the name of one before it goes on where that one was.
	Name() string

	// Wants must always give the same answer for a fact, and be quick.
	Wants(Fact) bool

	// Deliver returns nil when the fact has arrived. An error is tried again unless it
	// is [Permanent], or a [*Failure] says otherwise. It MUST end with its context.
	Deliver(ctx context.Context, f Fact) error
}

// Failure is an error of Deliver that says more. Nothing in it may be a secret.
type Failure struct {
	Class      string        // such as timeout, refused, dns, tls, status; for the delivery log
	Permanent  bool          // no use to try it again: a dead letter at once
	Gone       bool          // nothing is to be sent to this target any more; see [Options.Gone]
	RetryAfter time.Duration // the least pause until the next attempt; at most [Options.GiveUp]
	Everything bool          // RetryAfter is about the target, not this key alone
	Err        error
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// Permanent marks an error of Deliver: no use to try it again.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &Failure{Class: "permanent", Permanent: true, Err: err}
}

// IsPermanent says whether an error was marked.
func IsPermanent(err error) bool {
	f, ok := errors.AsType[*Failure](err)
	return ok && f.Permanent
}

// Answered tells the delivery log what a target answered to the delivery that ctx is
// of: a status, and the beginning of a text of its own, of which at most 1 KiB is
// kept. It may be nobody's delivery.
func Answered(ctx context.Context, status int, text []byte) {
	if a, ok := ctx.Value(answer{}).(*answer); ok {
		a.status, a.text = status, printable(text)
	}
}

type answer struct {
	status int
	text   string
}

// WithAnswer returns a context under which [Answered] notes what read then answers.
func WithAnswer(ctx context.Context) (_ context.Context, read func() (status int, text string)) {
	a := new(answer)
	return context.WithValue(ctx, answer{}, a), func() (int, string) { return a.status, a.text }
}

// Registration is a target and where it begins.
type Registration struct {
	Target Target

	// After is where it begins when nothing is known of it yet: after these sequences
	// of FEED and OPS. nil: at the end of both as it is then.
	After *Place

	// Disabled is why nothing is delivered to it at present; empty: it is. What comes
	// meanwhile is delivered when it is enabled.
	Disabled string

	// Epoch is another one whenever it was enabled: after a Failure that was Gone nothing
	// is delivered until it changes.
	Epoch uint64
}

// Place is a place in both streams.
type Place struct {
	Feed uint64 `json:"FEED"`
	Ops  uint64 `json:"OPS"`
}

func (p *Place) of(stream string) *uint64 {
	if stream == events.Ops {
		return &p.Ops
	}
	return &p.Feed
}

// streams that are followed.
var streams = []string{events.Feed, events.Ops}

// Options of an [Engine]. Ledger, Store, Leases and Reactor are required.
type Options struct {
	Ledger  *ledger.Ledger
	Store   *Store
	Leases  jetstream.KeyValue // of [lease.Open]
	Reactor string             // webhooks, sinks: begins the name of whatever is kept
	Holder  string             // see [lease.Options]

	// Gone is told of a target whose Failure was Gone; nothing is delivered to it
	// until [Engine.Set] says otherwise. It is called again after an error.
	Gone func(ctx context.Context, target, why string) error

	Parallel   int           // deliveries at once for each target; zero: 16
	Timeout    time.Duration // of one delivery; zero: 30 s
	MinBackoff time.Duration // zero: 1 s
	MaxBackoff time.Duration // zero: 1 h
	GiveUp     time.Duration // after the first attempt; zero: 24 h
	SaveEvery  time.Duration // zero: 500 ms
	Log        *slog.Logger  // nil: slog.Default()
}

// MaxLanes is about how many keys of a target may be behind before it is read no further.
const MaxLanes = 512

// Engine delivers the facts of one reactor. [Engine.Run] runs once at a time.
type Engine struct {
	Options
	windows map[string]*window

	mu      sync.Mutex // guards what follows
	targets map[string]Registration
	set     bool          // targets were given
	changed chan struct{} // closed and replaced with targets
}

// New returns an engine; it delivers when [Engine.Set] was called, while Run runs.
func New(o Options) (*Engine, error) {
	if o.Ledger == nil || o.Store == nil || o.Leases == nil || !token.MatchString(o.Reactor) {
		return nil, errors.New("delivery: Ledger, Store, Leases and Reactor are required")
	}
	o.Parallel = cmp.Or(o.Parallel, 16)
	o.Timeout = cmp.Or(o.Timeout, 30*time.Second)
	o.MinBackoff = cmp.Or(o.MinBackoff, time.Second)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, time.Hour)
	o.GiveUp = cmp.Or(o.GiveUp, 24*time.Hour)
	o.SaveEvery = cmp.Or(o.SaveEvery, 500*time.Millisecond)
	o.Log = cmp.Or(o.Log, slog.Default())
	return &Engine{Options: o, targets: map[string]Registration{}, changed: make(chan struct{})}, nil
}

// IsName says whether a reactor or a target may have such a name.
func IsName(s string) bool { return token.MatchString(s) }

var token = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Set says what the targets are from now on. What is kept of one that is no longer
// among them stays; see [Store.Forget].
func (e *Engine) Set(all []Registration) error {
	targets := make(map[string]Registration, len(all))
	for _, r := range all {
		name := r.Target.Name()
		if _, twice := targets[name]; twice || !token.MatchString(name) {
			return fmt.Errorf("%q cannot be the name of a target: letters, digits, - and _, at most 64, and of one target alone", name)
		}
		targets[name] = r
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.targets, e.set = targets, true
	close(e.changed)
	e.changed = make(chan struct{})
	return nil
}

func (e *Engine) now() (targets map[string]Registration, set bool, changed <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.targets, e.set, e.changed
}

// Run delivers until ctx ends, whose error it then returns, whenever this process is
// the one that does. Another error says that nothing is delivered until somebody has
// acted: a stream in doubt ([*ledger.RefusalError]), a fact that this program does
// not know ([*events.UnknownError]).
func (e *Engine) Run(ctx context.Context) error {
	return lease.Options{Holder: e.Holder, Log: e.Log}.Run(ctx, e.Leases, "delivery."+e.Reactor, e.work)
}

// errStale says that another process has written a target's state.
var errStale = errors.New("another process delivers")

// work delivers while ctx, the lease's, lives.
func (e *Engine) work(ctx context.Context) error {
	for {
		err := e.deliverAll(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, errStale) {
			return err
		}
		e.Log.Warn("delivery: what is kept of a target was changed by somebody else, read again", "reactor", e.Reactor, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (e *Engine) deliverAll(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop(nil)
	e.windows = map[string]*window{}
	for _, stream := range streams {
		head, err := e.Ledger.Head(ctx, stream)
		if err != nil {
			return fmt.Errorf("delivery: %w", err)
		}
		w := &window{low: head, head: head, moved: make(chan struct{})}
		e.windows[stream] = w
		running.Go(func() {
			if err := e.follow(ctx, stream, head, w); err != nil && ctx.Err() == nil {
				stop(fmt.Errorf("delivery: %w", err))
			}
		})
	}
	log := e.Store.newLog(e.Reactor, e.Log)
	running.Go(func() { log.run(ctx) })
	replays := make(chan replay)
	running.Go(func() { e.Store.watchReplays(ctx, e.Reactor, replays, e.Log) })

	drivers := map[string]*driver{}
	var waiting []replay // of targets that are not known yet
	for {
		targets, set, changed := e.now()
		for name, d := range drivers {
			if _, stays := targets[name]; !stays {
				d.end()
				delete(drivers, name)
			}
		}
		for name, r := range targets {
			if d := drivers[name]; d != nil {
				d.update(r)
				continue
			}
			d := newDriver(ctx, e, r, log)
			drivers[name] = d
			running.Go(func() {
				if err := d.run(); err != nil && d.ctx.Err() == nil {
					stop(err)
				}
			})
		}
		if set {
			kept := waiting[:0]
			for _, r := range waiting {
				if d := drivers[r.target]; d != nil {
					d.again(r)
				} else if len(kept) < 1000 {
					kept = append(kept, r)
				}
			}
			waiting = kept
		}
		select {
		case <-changed:
		case r := <-replays:
			if d := drivers[r.target]; d != nil {
				d.again(r)
			} else {
				waiting = append(waiting, r)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
