// Package reactors does what must happen because of facts: it carries them to
// subscribers outside. Watermill's router runs each reactor over the messages of
// [github.com/keyledger/keyledger/reactors/pubsub].
//
// [Feed] promises that FEED holds every LEDGER fact that held, in LEDGER's
// order, once, without secret hashes, whatever dies in between and however many
// processes run it. [Watch] reads FEED for people.
//
// It can disappoint: there is one writer, so a fact waits for the write under
// way, and behind a long history for its end; many that wait are written together.
// After the death of the writer the next fact waits for [FeedOptions.Takeover]
// before another process writes it. A fact that this program does not know stops
// FEED, and everything behind it, until a program runs that does.
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
	stop    context.CancelCauseFunc // of the run under way
	waiting chan waiting            // from the handler to the writer
	append  func(ctx context.Context, expectedLast uint64, batch []ledger.FeedEntry) (first uint64, err error)

	seen uint64 // last LEDGER sequence dealt with; the handler's, which the router calls for one message at a time

	// The writer owns what follows.
	doubt   bool     // a write had an unknown outcome: at may be old
	standby *standby // nil while this process writes

	mu     sync.Mutex // guards what follows, for the handler and Status
	at     place
	writes bool
}

// place is how far FEED is: its own last sequence, and LEDGER's of the fact there.
type place struct{ feed, ledger uint64 }

// waiting is a fact for FEED, or why nothing can follow what was put before it.
type waiting struct {
	ledger.FeedEntry
	size int // bytes in LEDGER
	err  error
}

// A single server keeps an atomic batch in files of its own before it commits
// it, which was measured to take as long as twenty facts written one by one, and
// little longer for hundreds. mostFacts bounds how long a fact waits behind a
// batch.
const (
	batchFrom = 24
	mostFacts = 512
	mostBytes = 1 << 20
)

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
	return &Feed{FeedOptions: o, append: o.Ledger.AppendFeedBatch}, nil
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
	f.waiting = make(chan waiting, mostFacts)
	var writing sync.WaitGroup
	writing.Go(func() { f.write(ctx) })
	defer func() {
		f.stop(nil)
		writing.Wait()
		f.endStandby()
	}()

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
		_ = f.enqueue(ctx, waiting{err: err}) // fails when ctx has ended
		writing.Wait()
	}
	return context.Cause(ctx)
}

// resume finds the place to go on from.
func (f *Feed) resume(ctx context.Context) error {
	if !f.untilDone(ctx, "its place is not known yet", func() error { return f.reread(ctx) }) {
		return context.Cause(ctx)
	}
	f.seen = f.at.ledger
	return nil
}

// untilDone repeats do until it succeeds; false says that ctx ended first.
func (f *Feed) untilDone(ctx context.Context, trouble string, do func() error) bool {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := do()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		f.Log.WarnContext(ctx, "feed: "+trouble, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false
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

func (f *Feed) place() place {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
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
// What it cannot deal with stops FEED once all that came before has been written.
func (f *Feed) carry(m *message.Message) error {
	sequence, err := pubsub.Sequence(m)
	if err != nil {
		return f.enqueue(m.Context(), waiting{err: err})
	}
	if sequence != f.seen+1 {
		return f.enqueue(m.Context(), waiting{err: fmt.Errorf("LEDGER continues with sequence %d after %d: messages are missing; compare it with a backup before going on", sequence, f.seen)})
	}
	if sequence > f.place().ledger {
		e, err := events.Decode(m.Payload)
		if err != nil {
			return f.enqueue(m.Context(), waiting{err: fmt.Errorf("LEDGER at sequence %d: %w", sequence, err)})
		}
		void, err := f.Void(m.Context(), sequence)
		if err != nil {
			return fmt.Errorf("whether the fact at LEDGER sequence %d held: %w", sequence, err)
		}
		if !void {
			if err := f.enqueue(m.Context(), waiting{ledger.FeedEntry{Ledger: sequence, Event: e}, len(m.Payload), nil}); err != nil {
				return err
			}
		}
	}
	f.seen = sequence
	return nil
}

// enqueue waits while as much waits as one batch takes: more would only cost memory.
func (f *Feed) enqueue(ctx context.Context, w waiting) error {
	select {
	case f.waiting <- w:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write puts into FEED what waits until ctx ends.
func (f *Feed) write(ctx context.Context) {
	for {
		batch, err := f.next(ctx)
		if len(batch) > 0 && !f.untilDone(ctx, "facts wait", func() error { return f.put(ctx, batch) }) {
			return
		}
		if err != nil {
			f.fail(err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// next waits for a fact and takes what waits behind it. An error comes after the facts.
func (f *Feed) next(ctx context.Context) (batch []ledger.FeedEntry, err error) {
	var w waiting
	select {
	case w = <-f.waiting:
	case <-ctx.Done():
		return nil, nil
	}
	for size := w.size; w.err == nil; size += w.size {
		batch = append(batch, w.FeedEntry)
		if len(batch) == mostFacts || size >= mostBytes {
			return batch, nil
		}
		select {
		case w = <-f.waiting:
		default:
			return batch, nil
		}
	}
	return batch, w.err
}

// put returns once the facts stand in FEED, whoever wrote them there.
func (f *Feed) put(ctx context.Context, batch []ledger.FeedEntry) error {
	for {
		if f.standby != nil {
			at, err := f.standby.wait(ctx, batch[len(batch)-1].Ledger, f.Takeover)
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
		at := f.place()
		for len(batch) > 0 && batch[0].Ledger <= at.ledger {
			batch = batch[1:]
		}
		if len(batch) == 0 {
			return nil
		}
		now := batch
		if len(now) < batchFrom {
			now = now[:1]
		}
		last := now[len(now)-1].Ledger
		first, err := f.append(ctx, at.feed, now)
		if err == nil {
			f.endStandby()
			f.moved(place{first + uint64(len(now)) - 1, last})
			f.setWrites(true)
			continue
		}
		if refusal, ok := errors.AsType[*ledger.RefusalError](err); ok {
			return f.fail(refusal)
		}
		f.doubt = true
		if !errors.Is(err, ledger.ErrConflict) {
			return fmt.Errorf("carry the facts at LEDGER sequences %d to %d: %w", now[0].Ledger, last, err)
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
	ctx, cancel := context.WithCancel(ctx)
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
