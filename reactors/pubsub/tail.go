package pubsub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TailOptions says what of a stream to read. The zero value reads all of it.
type TailOptions struct {
	After       uint64   // stream sequence after which to begin; 0: from the first message
	Filter      []string // subjects; none: all
	HeadersOnly bool     // leave the bodies out
	Log         *slog.Logger
}

// GapError says that a stream no longer holds what a reader stands on: it was
// recreated, restored or trimmed. The reader MUST stop.
type GapError struct {
	Stream      string
	After       uint64 // where the reader stands
	First, Last uint64 // what the stream holds
}

func (e *GapError) Error() string {
	return fmt.Sprintf("stream %s holds sequences %d to %d, but this reader stands at %d: the stream was recreated, restored or trimmed; compare it with a backup before going on",
		e.Stream, e.First, e.Last, e.After)
}

// Tail reads a stream from a place for as long as ctx lives: in order, without
// gaps, waking when a message is stored. No position is kept on the server.
//
// A lost connection, a restarted server or a lost message is made good by
// reading on from the last message delivered. Only a [*GapError] and a stream or
// filter that the server refuses end it with an error; the end of ctx ends it
// without one.
func Tail(ctx context.Context, nc *nats.Conn, stream string, o TailOptions) iter.Seq2[jetstream.Msg, error] {
	return func(yield func(jetstream.Msg, error) bool) {
		js, err := jetstream.New(nc)
		if err != nil {
			yield(nil, fmt.Errorf("tail %s: %w", stream, err))
			return
		}
		t := tail{js: js, stream: stream, last: o.After, TailOptions: o}
		for retry := (backoff{min: 10 * time.Millisecond, max: 2 * time.Second}); ; {
			before := t.last
			done, err := t.read(ctx, func(m jetstream.Msg) bool { return yield(m, nil) })
			if done || ctx.Err() != nil {
				return
			}
			if fatal(err) {
				yield(nil, err)
				return
			}
			if t.last != before {
				retry.reset()
			}
			if o.Log != nil {
				o.Log.WarnContext(ctx, "reading a stream was interrupted and goes on", "stream", stream, "after", t.last, "error", err)
			}
			if !retry.wait(ctx, nil) {
				return
			}
		}
	}
}

// fatal is for what reading again cannot mend: a gap, or a request the server
// will never grant, such as of a stream that is not there.
func fatal(err error) bool {
	if _, gap := errors.AsType[*GapError](err); gap {
		return true
	}
	refused, ok := errors.AsType[jetstream.JetStreamError](err)
	return ok && refused.APIError() != nil && refused.APIError().Code < 500
}

type tail struct {
	TailOptions
	js     jetstream.JetStream
	stream string
	last   uint64 // last sequence handed out
}

var errInterrupted = errors.New("messages may have been lost with the connection")

// read hands out messages after t.last until yield says stop (done) or the
// consumer can no longer be trusted.
func (t *tail) read(ctx context.Context, yield func(jetstream.Msg) bool) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer onReconnect(t.js.Conn(), cancel)()

	s, err := t.js.Stream(ctx, t.stream)
	if err != nil {
		return false, fmt.Errorf("tail %s: %w", t.stream, err)
	}
	if state := s.CachedInfo().State; t.last > state.LastSeq || t.last > 0 && state.FirstSeq > t.last+1 {
		return false, &GapError{t.stream, t.last, state.FirstSeq, state.LastSeq}
	}
	c, err := s.CreateConsumer(ctx, jetstream.ConsumerConfig{
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       t.last + 1,
		AckPolicy:         jetstream.AckNonePolicy,
		FilterSubjects:    t.Filter,
		HeadersOnly:       t.HeadersOnly,
		MaxDeliver:        1,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return false, fmt.Errorf("tail %s: create consumer: %w", t.stream, err)
	}
	defer t.remove(ctx, s, c.CachedInfo().Name)
	// Fetch rather than Messages: the iterator drops what exceeds its buffer,
	// and a notice of the server in it can push out the last message.
	for want := uint64(1); ; {
		batch, err := c.Fetch(fetchMessages, jetstream.FetchContext(noDeadline{ctx}), jetstream.FetchHeartbeat(5*time.Second))
		if err != nil {
			return false, fmt.Errorf("tail %s after %d: %w", t.stream, t.last, err)
		}
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return false, fmt.Errorf("tail %s after %d: %w", t.stream, t.last, err)
			}
			if meta.Sequence.Consumer != want {
				return false, fmt.Errorf("tail %s after %d: %w", t.stream, t.last, errInterrupted)
			}
			want++
			t.last = meta.Sequence.Stream
			if !yield(m) {
				return true, nil
			}
		}
		if err := cmp.Or(batch.Error(), ctx.Err()); err != nil {
			return false, fmt.Errorf("tail %s after %d: %w", t.stream, t.last, err)
		}
	}
}

// noDeadline hides the deadline of a context, which Fetch would send to the
// server and shorten its pulls by.
type noDeadline struct{ context.Context }

func (noDeadline) Deadline() (t time.Time, ok bool) { return t, false }

// fetchMessages of LEDGER or FEED are far below the bytes at which the server
// cuts a slow consumer off.
const fetchMessages = 256

// remove spares the server an unused consumer for the next minute; without a
// connection the minute has to do.
func (t *tail) remove(ctx context.Context, s jetstream.Stream, consumer string) {
	if !t.js.Conn().IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = s.DeleteConsumer(ctx, consumer)
}

// onReconnect calls f once nc is connected anew, until the returned function is
// called. What the server sent into the old connection is lost without a trace
// for a consumer that acknowledges nothing.
func onReconnect(nc *nats.Conn, f func()) (stop func()) {
	changed := nc.StatusChanged(nats.CONNECTED)
	go func() {
		if _, ok := <-changed; ok {
			f()
		}
	}()
	return func() { nc.RemoveStatusListener(changed) }
}

// backoff doubles the time between tries from min to max.
type backoff struct{ min, max, next time.Duration }

func (b *backoff) reset() { b.next = 0 }

// wait pauses and reports whether ctx still lives. While it waits it calls
// alive, if any, as often as tick fires.
func (b *backoff) wait(ctx context.Context, alive *heartbeat) bool {
	b.next = min(max(2*b.next, b.min), b.max)
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case <-alive.tick():
			alive.beat()
		case <-ctx.Done():
			return false
		}
	}
}
