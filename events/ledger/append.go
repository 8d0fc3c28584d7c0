package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

const (
	sequenceHeader = "Ledger-Sequence" // on FEED: the fact's place in LEDGER

	expectSubject = "Nats-Expected-Last-Subject-Sequence"
	expectStream  = "Nats-Expected-Last-Sequence"
	batchID       = "Nats-Batch-Id"
	batchSequence = "Nats-Batch-Sequence"
	batchCommit   = "Nats-Batch-Commit"

	// MaxBatch is how many facts the server takes in one atomic batch.
	MaxBatch = 1000

	// answerWait is how long one attempt waits for its answer before it is
	// resolved by reading back. A disk may take this long to sync.
	answerWait = 2 * time.Second
)

// Expect is a fact and the sequence at which its subject must be: that of the
// last fact on it, 0 for none. In a batch only the first fact on a subject
// states it.
type Expect struct {
	Expected uint64
	Event    events.Envelope
}

type pubAck struct {
	Error     *jetstream.APIError `json:"error"`
	Stream    string              `json:"stream"`
	Sequence  uint64              `json:"seq"`
	Duplicate bool                `json:"duplicate"`
	Count     uint64              `json:"count"`
}

// Append stores a fact in LEDGER, on disk, when the last fact on its subject is
// at the expected sequence (0: none), and returns its own. Otherwise it fails
// with [ErrConflict], [ErrUnavailable] or [ErrTooLarge] and has stored nothing,
// or with [ErrUnknownOutcome].
func (l *Ledger) Append(ctx context.Context, expected uint64, e events.Envelope) (uint64, error) {
	if err := l.held(); err != nil {
		return 0, err
	}
	m, err := l.message(events.Subject(e.Keyspace, e.Owner, e.Key), e)
	if err != nil {
		return 0, err
	}
	m.Header[expectSubject] = []string{strconv.FormatUint(expected, 10)}
	return l.append(ctx, attempt{
		stream: events.Ledger, id: e.ID,
		publish: func(ctx context.Context) (uint64, error) {
			return l.group.store(ctx, l, []*nats.Msg{m})
		},
		stored: func(ctx context.Context) (*message, error) {
			return l.get(ctx, events.Ledger, getRequest{Seq: expected + 1, NextFor: m.Subject})
		},
	})
}

// AppendBatch stores facts in LEDGER, all or none, with nothing between them,
// and returns the sequence of the first. It fails as [Ledger.Append] does.
func (l *Ledger) AppendBatch(ctx context.Context, batch []Expect) (first uint64, err error) {
	switch len(batch) {
	case 0:
		return 0, errors.New("empty batch")
	case 1: // cheaper as a plain message
		return l.Append(ctx, batch[0].Expected, batch[0].Event)
	}
	if len(batch) > MaxBatch {
		return 0, fmt.Errorf("a batch of %d facts: %w (at most %d)", len(batch), ErrTooLarge, MaxBatch)
	}
	if err := l.held(); err != nil {
		return 0, err
	}
	messages := make([]*nats.Msg, len(batch))
	stated := map[string]bool{}
	for i, x := range batch {
		m, err := l.message(events.Subject(x.Event.Keyspace, x.Event.Owner, x.Event.Key), x.Event)
		if err != nil {
			return 0, err
		}
		if !stated[m.Subject] {
			m.Header[expectSubject] = []string{strconv.FormatUint(x.Expected, 10)}
			stated[m.Subject] = true
		}
		messages[i] = m
	}
	return l.append(ctx, attempt{
		stream: events.Ledger, id: batch[0].Event.ID,
		publish: func(ctx context.Context) (uint64, error) {
			last, err := l.group.store(ctx, l, messages)
			return last - uint64(len(messages)) + 1, err
		},
		stored: func(ctx context.Context) (*message, error) {
			return l.get(ctx, events.Ledger, getRequest{Seq: batch[0].Expected + 1, NextFor: messages[0].Subject})
		},
	})
}

// FeedEntry is a fact on its way to FEED.
type FeedEntry struct {
	Ledger uint64 // its sequence in LEDGER
	Event  events.Envelope
}

// AppendFeed stores the public form of a fact in FEED when FEED's last sequence
// is the expected one, with the CloudEvents attributes as headers, and returns
// its own. It fails as [Ledger.Append] does.
func (l *Ledger) AppendFeed(ctx context.Context, expectedLast uint64, x FeedEntry) (uint64, error) {
	m, err := l.feedMessage(x)
	if err != nil {
		return 0, err
	}
	m.Header[expectStream] = []string{strconv.FormatUint(expectedLast, 10)}
	return l.append(ctx, attempt{
		stream: events.Feed, id: x.Event.ID,
		publish: func(ctx context.Context) (uint64, error) {
			ack, err := l.publish(ctx, m)
			return ack.Sequence, err
		},
		stored: func(ctx context.Context) (*message, error) {
			return l.get(ctx, events.Feed, getRequest{Seq: expectedLast + 1})
		},
	})
}

// AppendFeedBatch is [Ledger.AppendFeed] for facts that follow each other: all
// or none, with nothing between them. It returns the sequence of the first, when
// another process wrote the same facts there too. A single server republishes
// the facts of a batch before they are on disk; after a power cut they are
// written and republished again, at the same sequences.
func (l *Ledger) AppendFeedBatch(ctx context.Context, expectedLast uint64, batch []FeedEntry) (first uint64, err error) {
	switch len(batch) {
	case 0:
		return 0, errors.New("empty batch")
	case 1: // cheaper as a plain message
		return l.AppendFeed(ctx, expectedLast, batch[0])
	}
	if len(batch) > MaxBatch {
		return 0, fmt.Errorf("a batch of %d facts: %w (at most %d)", len(batch), ErrTooLarge, MaxBatch)
	}
	messages := make([]*nats.Msg, len(batch))
	for i, x := range batch {
		if messages[i], err = l.feedMessage(x); err != nil {
			return 0, err
		}
	}
	// The server takes it on the first message alone and refuses it on others.
	messages[0].Header[expectStream] = []string{strconv.FormatUint(expectedLast, 10)}
	last, err := l.append(ctx, attempt{
		stream: events.Feed, id: batch[len(batch)-1].Event.ID,
		publish: func(ctx context.Context) (uint64, error) { return l.publishBatch(ctx, messages) },
		stored: func(ctx context.Context) (*message, error) {
			m, err := l.get(ctx, events.Feed, getRequest{Seq: expectedLast + uint64(len(batch))})
			if isNotFound(err) {
				// Every process writes the same facts, but maybe fewer at once:
				// what stands here then is not the last of the batch, a conflict.
				return l.get(ctx, events.Feed, getRequest{Seq: expectedLast + 1})
			}
			return m, err
		},
	})
	if err != nil {
		return 0, err
	}
	return last - uint64(len(batch)) + 1, nil
}

// feedMessage is a fact as subscribers get it.
func (l *Ledger) feedMessage(x FeedEntry) (*nats.Msg, error) {
	e := events.Public(x.Event)
	m, err := l.message(events.FeedSubject(e), e)
	if err != nil {
		return nil, err
	}
	m.Header[sequenceHeader] = []string{strconv.FormatUint(x.Ledger, 10)}
	for name, value := range events.CloudEvents(e) {
		m.Header[name] = []string{value}
	}
	return m, nil
}

// AppendOps stores an act in OPS. It expects nothing; a repeated attempt is
// recognised by the event's id while the server remembers it.
func (l *Ledger) AppendOps(ctx context.Context, e events.Envelope) (uint64, error) {
	m, err := l.message(events.OpsSubject(e), e)
	if err != nil {
		return 0, err
	}
	m.Header[nats.MsgIdHdr] = []string{e.ID}
	ctx, cancel := context.WithTimeout(ctx, duplicates/2)
	defer cancel()
	return l.append(ctx, attempt{
		stream: events.Ops, id: e.ID,
		publish: func(ctx context.Context) (uint64, error) {
			ack, err := l.publish(ctx, m)
			return ack.Sequence, err
		},
	})
}

// AppendOpsAfter stores an act in OPS when OPS's last sequence is the expected one:
// what was decided with everything in OPS up to there holds. It fails as
// [Ledger.Append] does.
func (l *Ledger) AppendOpsAfter(ctx context.Context, expectedLast uint64, e events.Envelope) (uint64, error) {
	if err := l.held(); err != nil {
		return 0, err
	}
	m, err := l.message(events.OpsSubject(e), e)
	if err != nil {
		return 0, err
	}
	m.Header[expectStream] = []string{strconv.FormatUint(expectedLast, 10)}
	return l.append(ctx, attempt{
		stream: events.Ops, id: e.ID,
		publish: func(ctx context.Context) (uint64, error) {
			ack, err := l.publish(ctx, m)
			return ack.Sequence, err
		},
		stored: func(ctx context.Context) (*message, error) {
			return l.get(ctx, events.Ops, getRequest{Seq: expectedLast + 1})
		},
	})
}

// AppendOpsOn stores an act in OPS when the last one on its own subject is at the
// expected sequence (0: there is none): what was decided with everything there holds.
// It fails as [Ledger.Append] does. What is held ([Ledger.Hold]) does not keep it: it
// decides nothing.
func (l *Ledger) AppendOpsOn(ctx context.Context, expected uint64, e events.Envelope) (uint64, error) {
	m, err := l.message(events.OpsSubject(e), e)
	if err != nil {
		return 0, err
	}
	m.Header[expectSubject] = []string{strconv.FormatUint(expected, 10)}
	return l.append(ctx, attempt{
		stream: events.Ops, id: e.ID,
		publish: func(ctx context.Context) (uint64, error) {
			ack, err := l.publish(ctx, m)
			return ack.Sequence, err
		},
		stored: func(ctx context.Context) (*message, error) {
			return l.get(ctx, events.Ops, getRequest{Seq: expected + 1, NextFor: m.Subject})
		},
	})
}

// AppendDLQ stores what a reactor could not deliver, with its headers (why,
// where from). The body is kept as it is.
func (l *Ledger) AppendDLQ(ctx context.Context, reactor, id string, header nats.Header, body []byte) (uint64, error) {
	m := &nats.Msg{Subject: "dlq." + reactor, Header: nats.Header{}, Data: body}
	for name, values := range header {
		m.Header[name] = values
	}
	m.Header[nats.MsgIdHdr] = []string{id}
	if err := l.fits(m); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, duplicates/2)
	defer cancel()
	return l.append(ctx, attempt{
		stream: events.DLQ,
		publish: func(ctx context.Context) (uint64, error) {
			ack, err := l.publish(ctx, m)
			return ack.Sequence, err
		},
	})
}

// pageHead is the last page of one subject of USAGE. Holding mu is the right to
// append the next one.
type pageHead struct {
	mu    sync.Mutex
	last  uint64
	known bool // last is what the server had, or answered, last
}

// AppendPage stores a page of uses, one body per line, on usage.<keyspace>.<node>.
// A node's pages follow each other: no other process may write under the same
// node name while this one does. [ErrConflict] says that one does.
//
// After any error the same page may be given again, however much later: each
// page expects the one before it, and the first event's id tells whether it is
// already there.
func (l *Ledger) AppendPage(ctx context.Context, keyspace, node string, bodies [][]byte) (uint64, error) {
	if len(bodies) == 0 {
		return 0, errors.New("empty page")
	}
	return l.appendPage(ctx, pageSubject(keyspace, node), events.Page(bodies), eventID(bodies[0]), eventID(bodies[len(bodies)-1]))
}

// appendPage stores a page whose first and last facts have the given ids.
func (l *Ledger) appendPage(ctx context.Context, subject string, page []byte, first, last string) (uint64, error) {
	m := &nats.Msg{Subject: subject, Header: nats.Header{}, Data: page}
	if err := l.fits(m); err != nil {
		return 0, err
	}
	v, _ := l.pages.LoadOrStore(m.Subject, &pageHead{})
	p := v.(*pageHead)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		switch previous, err := l.get(ctx, events.Usage, getRequest{LastFor: m.Subject}); {
		case isNotFound(err):
			p.last = 0
		case err != nil:
			return 0, fmt.Errorf("%w: read the last page of %s: %w", ErrUnavailable, m.Subject, err)
		default:
			p.last = previous.sequence
			if eventID(events.Lines(previous.body)[0]) == first {
				// The page of an earlier call whose outcome stayed unknown.
				p.known = true
				return p.last, nil
			}
		}
		p.known = true
	}
	store := func() (uint64, error) {
		m.Header[expectSubject] = []string{strconv.FormatUint(p.last, 10)}
		return l.append(ctx, attempt{
			stream: events.Usage, id: last,
			publish: func(ctx context.Context) (uint64, error) {
				ack, err := l.publish(ctx, m)
				return ack.Sequence, err
			},
			stored: func(ctx context.Context) (*message, error) {
				return l.get(ctx, events.Usage, getRequest{Seq: p.last + 1, NextFor: m.Subject})
			},
		})
	}
	sequence, err := store()
	if errors.Is(err, ErrConflict) && p.last > 0 {
		// The page before this one may have been pruned: then the subject has none.
		if first, unread := l.First(ctx, events.Usage); unread == nil && p.last < first {
			p.last = 0
			sequence, err = store()
		}
	}
	if err != nil {
		p.known = false
		return 0, err
	}
	p.last = sequence
	return sequence, nil
}

// message makes the message of one fact.
func (l *Ledger) message(subject string, e events.Envelope) (*nats.Msg, error) {
	body, err := events.Encode(e)
	if err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: subject, Header: nats.Header{typeHeader: []string{e.Type}}, Data: body}
	return m, l.fits(m)
}

// fits leaves room for the headers that an append adds.
func (l *Ledger) fits(m *nats.Msg) error {
	if n, most := int64(len(m.Data))+1024, l.nc.MaxPayload(); n > most {
		return fmt.Errorf("a message of %d bytes on %s: %w (%d bytes)", len(m.Data), m.Subject, ErrTooLarge, most)
	}
	return nil
}

// attempt is one thing to store, however often it must be tried.
type attempt struct {
	stream string
	id     string // of the last fact in the message that stored reads

	// publish tries once. It MUST be harmless to repeat: a second copy of what
	// was stored is a conflict or a duplicate.
	publish func(context.Context) (uint64, error)

	// stored reads what now stands where the fact must stand: not found while
	// nothing does. Nil where the server recognises the repetition itself.
	stored func(context.Context) (*message, error)
}

// append tries until the outcome is known or ctx ends. A conflict after a lost
// answer may be a conflict with our own fact.
func (l *Ledger) append(ctx context.Context, a attempt) (uint64, error) {
	unknown := false
	pause := 5 * time.Millisecond
	for {
		if err := l.Err(a.stream); err != nil {
			return 0, err
		}
		// What is asked without a connection waits in a buffer, and nobody
		// could say later whether it was stored. Not asking is certain.
		if !unknown && !l.connected(ctx) {
			return 0, fmt.Errorf("append to %s: %w (not connected)", a.stream, ErrUnavailable)
		}
		try, cancel := context.WithTimeout(ctx, answerWait)
		sequence, err := a.publish(try)
		if err == nil {
			cancel()
			l.seen(a.stream, sequence, a.id)
			return sequence, nil
		}
		if unknown && cluster.Conflict(err) && a.stored != nil {
			m, err := a.stored(try)
			switch {
			case err == nil && lastID(a.stream, m.body) == a.id:
				cancel()
				l.seen(a.stream, m.sequence, a.id)
				return m.sequence, nil
			case err == nil:
				cancel()
				return 0, ErrConflict
			}
			// Nothing stands there yet: what we conflict with is still on its way.
		} else if cluster.Conflict(err) {
			cancel()
			return 0, ErrConflict
		} else if !repeatable(err) {
			cancel()
			return 0, fmt.Errorf("append to %s: %w", a.stream, err)
		}
		cancel()
		unknown = unknown || lostAnswer(err)
		if !wait(ctx, pause) {
			if unknown {
				return 0, fmt.Errorf("append to %s: %w", a.stream, ErrUnknownOutcome)
			}
			return 0, fmt.Errorf("append to %s: %w (%w)", a.stream, ErrUnavailable, err)
		}
		pause = min(2*pause, 250*time.Millisecond)
	}
}

// connected waits a moment for a lost connection to come back.
func (l *Ledger) connected(ctx context.Context) bool {
	for until := time.Now().Add(answerWait); !l.nc.IsConnected(); {
		if time.Now().After(until) || !wait(ctx, 10*time.Millisecond) {
			return false
		}
	}
	return true
}

// lostAnswer is for errors after which the message may have been stored.
func lostAnswer(err error) bool {
	if e, ok := errors.AsType[*jetstream.APIError](err); ok {
		return e.Code >= 500 // such as a failed write: some replicas may have it
	}
	return !errors.Is(err, nats.ErrNoResponders) && repeatable(err)
}

func repeatable(err error) bool {
	if e, ok := errors.AsType[*jetstream.APIError](err); ok {
		// 10176 is an incomplete batch, 10210 too many batches in flight, 10158 a
		// duplicate still on its way.
		return e.Code == 503 || e.ErrorCode == 10176 || e.ErrorCode == 10210 || e.ErrorCode == 10158
	}
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrConnectionReconnecting) ||
		errors.Is(err, nats.ErrReconnectBufExceeded)
}

// publish sends one message and waits for the server's answer.
func (l *Ledger) publish(ctx context.Context, m *nats.Msg) (pubAck, error) {
	var ack pubAck
	ctx, cancel := l.linked(ctx)
	defer cancel()
	answer, err := l.nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return ack, err
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return ack, fmt.Errorf("unreadable answer of the server: %w", err)
	}
	if ack.Error != nil {
		return ack, ack.Error
	}
	if ack.Stream == "" || ack.Sequence == 0 {
		return ack, fmt.Errorf("the answer %q is none of a stream", answer.Data)
	}
	return ack, nil
}

// publishBatch sends messages as one atomic batch, waits for the server's answer
// and returns the sequence of the last.
func (l *Ledger) publishBatch(ctx context.Context, messages []*nats.Msg) (uint64, error) {
	id := []string{events.NewID("batch", time.Now())}
	for i, m := range messages {
		m.Header[batchID] = id
		m.Header[batchSequence] = []string{strconv.Itoa(i + 1)}
	}
	last := messages[len(messages)-1]
	last.Header[batchCommit] = []string{"1"}
	for _, m := range messages[:len(messages)-1] {
		if err := l.nc.PublishMsg(m); err != nil {
			return 0, err
		}
	}
	ack, err := l.publish(ctx, last)
	if err != nil {
		return 0, err
	}
	if ack.Count != uint64(len(messages)) {
		return 0, fmt.Errorf("the server stored %d of %d facts of an atomic batch", ack.Count, len(messages))
	}
	return ack.Sequence, nil
}

// pageSubject is where a node's pages of a keyspace stand.
func pageSubject(keyspace, node string) string {
	if keyspace == "" { // a credential presented to no keyspace
		keyspace = events.None
	}
	return "usage." + keyspace + "." + node
}
