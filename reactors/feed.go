// Package reactors does what must happen because of facts: it carries them to
// subscribers outside. Watermill's router runs each reactor over the messages of
// [github.com/keyledger/keyledger/reactors/pubsub].
//
// [Feed] promises that FEED holds every LEDGER fact that held, in LEDGER's
// order, once, without secret hashes, whatever dies in between and however many
// processes run it. [Watch] reads FEED for people.
//
// It can disappoint: facts reach FEED one by one, each waiting for the disk, so
// a long history takes its time. After the death of the writer the next fact
// waits for [FeedOptions.Takeover] before another process writes it. A fact that
// this program does not know stops FEED, and everything behind it, until a
// program runs that does.
package reactors

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/reactors/pubsub"
)

// HeaderLedgerSequence is the header of a FEED message that says where in
// LEDGER the fact stands.
const HeaderLedgerSequence = "Ledger-Sequence"

// FeedOptions is what a [Feed] works with. All but Takeover and Log are required.
type FeedOptions struct {
	Ledger *ledger.Ledger
	Conn   *nats.Conn // may be the one that Ledger uses

	// Void says whether the fact at a LEDGER sequence is void, once that is
	// known: it waits until the fold has applied it. See keyring.Ring.Void.
	Void func(ctx context.Context, sequence uint64) (bool, error)

	// Takeover is how long a process that stands by lets a fact wait before it
	// takes the writer for dead and writes itself. Too short costs a refused
	// write, never a fact. Zero: 500 ms.
	Takeover time.Duration

	Log *slog.Logger // nil: slog.Default()
}

// Feed carries the facts of LEDGER that held to FEED. Its position is FEED
// itself: the Ledger-Sequence of FEED's last message. Every write states FEED's
// expected last sequence, so of several processes one writes, and the others
// follow FEED until it stops moving.
type Feed struct {
	FeedOptions
	stop   context.CancelCauseFunc // of the run under way
	append func(ctx context.Context, expectedLast, ledgerSequence uint64, e events.Envelope) (uint64, error)

	// The handler owns what follows; the router calls it for one message at a
	// time.
	seen    uint64   // last LEDGER sequence dealt with
	doubt   bool     // a write had an unknown outcome: at may be old
	standby *standby // nil while this process writes

	mu     sync.Mutex // guards what follows, for Status
	at     place
	writes bool
}

// place is how far FEED is: its own last sequence, and LEDGER's of the fact there.
type place struct{ feed, ledger uint64 }

// FeedStatus is how far a [Feed] is.
type FeedStatus struct {
	Feed    uint64 // last sequence of FEED that this process knows of
	Ledger  uint64 // the LEDGER sequence of the fact there
	Writing bool   // this process wrote last; otherwise it stands by, or had nothing to write yet
}

// NewFeed returns a feed that [Feed.Run] starts.
func NewFeed(o FeedOptions) (*Feed, error) {
	if o.Ledger == nil || o.Conn == nil || o.Void == nil {
		return nil, errors.New("feed: Ledger, Conn and Void are required")
	}
	o.Takeover = cmp.Or(o.Takeover, 500*time.Millisecond)
	o.Log = cmp.Or(o.Log, slog.Default())
	return &Feed{FeedOptions: o, append: o.Ledger.AppendFeed}, nil
}

// Status says how far the feed is; safe at any time.
func (f *Feed) Status() FeedStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return FeedStatus{f.at.feed, f.at.ledger, f.writes}
}

// Run carries facts until ctx ends, whose error it then returns. Failures of
// the server are retried for ever. Any other error means that FEED stands still
// until somebody acts: a fact this program does not know or cannot read
// ([*events.UnknownError] among others), a gap in LEDGER ([*pubsub.GapError]), a
// stream in doubt ([*ledger.RefusalError]), a FEED message without a place.
//
// A Feed runs once at a time.
func (f *Feed) Run(ctx context.Context) error {
	ctx, f.stop = context.WithCancelCause(ctx)
	defer f.stop(nil)
	if err := f.resume(ctx); err != nil {
		return err
	}
	defer f.endStandby()

	subscriber, err := pubsub.NewSubscriber(pubsub.SubscriberOptions{
		Conn: f.Conn, Stream: events.Ledger, After: f.at.ledger,
		MinBackoff: 20 * time.Millisecond, MaxBackoff: 5 * time.Second,
		Log: f.Log,
	})
	if err != nil {
		return fmt.Errorf("feed: %w", err)
	}
	defer subscriber.Close()
	// The router tells at level info what is of interest to its authors.
	quiet := watermill.NewSlogLoggerWithLevelMapping(f.Log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug})
	router, err := message.NewRouter(message.RouterConfig{}, quiet)
	if err != nil {
		return fmt.Errorf("feed: %w", err)
	}
	// A consumer handler: what a publisher of the router publishes comes back
	// without its sequence, and the next write has to state it.
	router.AddConsumerHandler("feed", "ledger.>", subscriber, f.carry)
	if err := router.Run(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("feed: %w", err)
	}
	if err := subscriber.Err(); err != nil {
		return fmt.Errorf("feed: %w", err)
	}
	return context.Cause(ctx)
}

// resume finds the place to go on from.
func (f *Feed) resume(ctx context.Context) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := f.reread(ctx)
		if err == nil {
			f.seen = f.at.ledger
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f.Log.WarnContext(ctx, "feed: its place is not known yet", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// reread asks the server how far FEED is.
func (f *Feed) reread(ctx context.Context) error {
	feed, sequence, err := f.Ledger.LastFed(ctx)
	if err != nil {
		return err
	}
	if feed > 0 && sequence == 0 {
		return f.fail(fmt.Errorf("the last message of FEED, at %d, does not say where in LEDGER its fact stands: something else than keyledger wrote it", feed))
	}
	if feed < f.at.feed {
		// A leader just elected may be behind for a moment; a stream that lost
		// messages is found by the ledger's own regular look.
		if err := f.Ledger.Err(events.Feed); err != nil {
			return f.fail(err)
		}
		return fmt.Errorf("FEED ends at %d now, this process has seen %d", feed, f.at.feed)
	}
	f.doubt = false
	f.moved(place{feed, sequence})
	return nil
}

func (f *Feed) moved(at place) {
	f.mu.Lock()
	if at.feed > f.at.feed {
		f.at = at
	}
	f.mu.Unlock()
}

func (f *Feed) setWrites(writes bool) {
	f.mu.Lock()
	f.writes = writes
	f.mu.Unlock()
}

// fail ends Run with err.
func (f *Feed) fail(err error) error {
	err = fmt.Errorf("feed stopped: %w", err)
	f.Log.Error("FEED receives nothing more until somebody acts", "error", err)
	f.stop(err)
	return err
}

// carry deals with one LEDGER message. An error brings the same message again.
func (f *Feed) carry(m *message.Message) error {
	sequence, err := pubsub.Sequence(m)
	if err != nil {
		return f.fail(err)
	}
	if sequence != f.seen+1 {
		return f.fail(fmt.Errorf("LEDGER continues with sequence %d after %d: messages are missing; compare it with a backup before going on", sequence, f.seen))
	}
	if sequence > f.at.ledger {
		e, err := events.Decode(m.Payload)
		if err != nil {
			return f.fail(fmt.Errorf("LEDGER at sequence %d: %w", sequence, err))
		}
		void, err := f.Void(m.Context(), sequence)
		if err != nil {
			return fmt.Errorf("whether the fact at LEDGER sequence %d held: %w", sequence, err)
		}
		if !void {
			if err := f.put(m.Context(), sequence, e); err != nil {
				return err
			}
		}
	}
	f.seen = sequence
	return nil
}

// put returns once the fact stands in FEED, whoever wrote it there.
func (f *Feed) put(ctx context.Context, sequence uint64, e events.Envelope) error {
	for {
		if f.standby != nil {
			at, err := f.standby.wait(ctx, sequence, f.Takeover)
			if err != nil {
				return err
			}
			f.moved(at)
		}
		if f.doubt {
			if err := f.reread(ctx); err != nil {
				return err
			}
		}
		if f.at.ledger >= sequence {
			return nil
		}
		feed, err := f.append(ctx, f.at.feed, sequence, e)
		if err == nil {
			f.endStandby()
			f.moved(place{feed, sequence})
			f.setWrites(true)
			return nil
		}
		if refusal, ok := errors.AsType[*ledger.RefusalError](err); ok {
			return f.fail(refusal)
		}
		f.doubt = true
		if !errors.Is(err, ledger.ErrConflict) {
			return fmt.Errorf("carry the fact at LEDGER sequence %d: %w", sequence, err)
		}
		if err := f.reread(ctx); err != nil {
			return err
		}
		f.beginStandby(ctx)
	}
}

func (f *Feed) beginStandby(ctx context.Context) {
	if f.standby != nil {
		return
	}
	// Not the message's context: standing by outlives the message.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f.standby = &standby{cancel: cancel, at: f.at, moved: make(chan struct{})}
	f.standby.running.Go(func() {
		if err := f.standby.follow(ctx, f.Conn, f.Log); err != nil {
			f.fail(err)
		}
	})
	f.setWrites(false)
	f.Log.InfoContext(ctx, "feed: another process writes, standing by", "feed", f.at.feed)
}

func (f *Feed) endStandby() {
	if f.standby == nil {
		return
	}
	f.standby.cancel()
	f.standby.running.Wait()
	f.standby = nil
	f.Log.Info("feed: no longer standing by", "feed", f.at.feed)
}

// standby follows FEED while another process writes it.
type standby struct {
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex // guards what follows
	at    place
	moved chan struct{} // closed and replaced when at moves
}

func (s *standby) follow(ctx context.Context, nc *nats.Conn, log *slog.Logger) error {
	for m, err := range pubsub.Tail(ctx, nc, events.Feed, pubsub.TailOptions{After: s.at.feed, HeadersOnly: true, Log: log}) {
		if err != nil {
			return err
		}
		at, err := placeOf(m)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.at = at
		close(s.moved)
		s.moved = make(chan struct{})
		s.mu.Unlock()
	}
	return nil
}

// wait returns when FEED has reached a LEDGER sequence, or has not moved for
// the time after which its writer is taken for dead.
func (s *standby) wait(ctx context.Context, sequence uint64, patience time.Duration) (place, error) {
	// Several that stand by should not all try at the same moment.
	patience += rand.N(patience/4 + 1)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		s.mu.Lock()
		at, moved := s.at, s.moved
		s.mu.Unlock()
		if at.ledger >= sequence {
			return at, nil
		}
		select {
		case <-moved:
			timer.Reset(patience)
		case <-timer.C:
			return at, nil
		case <-ctx.Done():
			return at, ctx.Err()
		}
	}
}
