package ledger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

const (
	// A reader asks for so much at once. The server cuts a connection off at 64
	// MB pending, and several readers share one.
	pullMessages = 4096
	pullBytes    = 4 << 20

	pullExpires   = 30 * time.Second
	pullHeartbeat = time.Second
	silence       = 2500 * time.Millisecond // without even a heartbeat: the consumer is gone

	chunkMessages = 128       // decoded by one worker at a time
	chunkBytes    = 512 << 10 // of pages, so that memory stays bounded

	// After so long without a message the reader asks whether there should have
	// been one.
	idleCheck = 3 * time.Second
)

// Follow yields every record of a stream after a sequence, in order, then waits
// for more, over reconnects and restarts of the server. It ends with the error
// of ctx; with a [*RefusalError] when something is missing, damaged or out of
// place; or with a wrapped [*events.UnknownError] at a fact from the future.
//
// A stream that ends before the sequence is refused. USAGE that was pruned is
// followed from where it begins now, but only from sequence 0.
func (l *Ledger) Follow(ctx context.Context, stream string, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for records, err := range l.FollowBatches(ctx, stream, after, 1024, 0) {
			for _, r := range records {
				if !yield(r, nil) {
					return
				}
			}
			if err != nil {
				yield(events.Record{}, err)
				return
			}
		}
	}
}

// FollowBatches is [Ledger.Follow] for readers that work in batches: up to most
// records, or what arrived within the given time after the first (0: what is
// there). The lines of a page never stand in two batches, so a page of more
// lines than most is a batch of its own. A batch is the caller's to keep.
func (l *Ledger) FollowBatches(ctx context.Context, stream string, after uint64, most int, within time.Duration) iter.Seq2[[]events.Record, error] {
	return func(yield func([]events.Record, error) bool) {
		next, err := l.start(ctx, stream, after)
		if err != nil {
			yield(nil, err)
			return
		}
		r := &reader{l: l, stream: stream, next: next}
		for records, err := range r.batches(ctx, most, within) {
			if !yield(records, err) {
				return
			}
		}
	}
}

// Check reads LEDGER through to its present end, as a start of the service does.
func (l *Ledger) Check(ctx context.Context) error {
	for _, err := range l.Read(ctx, events.Ledger, 1, 0) {
		if err != nil {
			return err
		}
	}
	return l.Err(events.Ledger)
}

// start is the first sequence to read after a position.
func (l *Ledger) start(ctx context.Context, stream string, after uint64) (uint64, error) {
	if err := l.Err(stream); err != nil {
		return 0, err
	}
	var info *streamInfo
	err := cluster.Ask(ctx, func(ctx context.Context) (err error) { info, err = l.timelyInfo(ctx, stream); return err })
	if err != nil {
		return 0, err
	}
	if after > info.State.LastSeq && !(l.o.Replicas > 1 && l.catchUp(ctx, stream, after)) {
		return 0, &RefusalError{[]Finding{behindFinding(stream, info.State.LastSeq, Position{"this reader", stream, after, ""})}}
	}
	first := max(info.State.FirstSeq, 1)
	if after == 0 {
		return first, nil
	}
	if after+1 < first {
		return 0, &RefusalError{[]Finding{{stream, fmt.Sprintf("it begins at sequence %d, but a reader stands at %d", first, after),
			"It was pruned before this reader had read it.", "Rebuild what this reader keeps; what it missed is in the exports made before pruning."}}}
	}
	return after + 1, nil
}

// reader reads a stream through ephemeral pull consumers of its own, one after
// another: whatever happens to one, the next begins where the last record was
// handed on.
type reader struct {
	l        *Ledger
	stream   string
	next     uint64   // the sequence wanted next
	onDisk   uint64   // up to here messages are known to be on disk
	to       uint64   // ends after it; 0: never
	subjects []string // of these only; then sequences have gaps
}

// chunk is what one worker decodes. Chunks are handed on in the order in which
// they were read.
type chunk struct {
	messages []*nats.Msg
	ends     []int // of each message, in records
	records  []events.Record
	err      error         // after records
	ready    chan struct{} // closed when decoded
}

func (c *chunk) decode(stream string) {
	defer close(c.ready)
	c.records = make([]events.Record, 0, len(c.messages))
	c.ends = make([]int, 0, len(c.messages))
	for _, m := range c.messages {
		at, err := placeOf(m.Reply)
		if err == nil {
			c.records, err = decode(c.records, stream, at.sequence, m.Subject, m.Data)
		}
		if err == nil && stream == events.Feed {
			fact := &c.records[len(c.records)-1]
			if fact.Ledger, err = strconv.ParseUint(m.Header.Get(sequenceHeader), 10, 64); err != nil {
				err = &RefusalError{[]Finding{{stream, fmt.Sprintf("the message at sequence %d does not say where in LEDGER its fact stands", at.sequence),
					"Something else than keyledger wrote to the stream.", restore}}}
			}
		}
		if err != nil {
			c.err = err
			break
		}
		c.ends = append(c.ends, len(c.records))
	}
	c.messages = nil
}

func (r *reader) batches(ctx context.Context, most int, within time.Duration) iter.Seq2[[]events.Record, error] {
	return func(yield func([]events.Record, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		workers := max(2, runtime.GOMAXPROCS(0))
		ordered := make(chan *chunk, 2*workers)
		work := make(chan *chunk, 2*workers)
		done := make(chan struct{})
		for range workers {
			go func() {
				for c := range work {
					c.decode(r.stream)
				}
			}()
		}
		go func() {
			defer close(done)
			defer close(work)
			defer close(ordered)
			err := r.run(ctx, func(messages []*nats.Msg) bool {
				c := &chunk{messages: messages, ready: make(chan struct{})}
				if len(messages) < 4 {
					c.decode(r.stream) // not worth waking a worker
				} else {
					work <- c
				}
				select {
				case ordered <- c:
					return true
				case <-ctx.Done():
					return false
				}
			})
			if err != nil {
				c := &chunk{err: err, ready: make(chan struct{})}
				close(c.ready)
				select {
				case ordered <- c:
				case <-ctx.Done():
				}
			}
		}()
		defer func() {
			cancel()
			<-done
		}()

		var batch []events.Record
		var timer *time.Timer
		var due <-chan time.Time // set while batch waits for more
		flush := func() bool {
			if due != nil {
				timer.Stop()
				due = nil
			}
			if len(batch) == 0 {
				return true
			}
			last := batch[len(batch)-1]
			if len(r.subjects) == 0 {
				r.l.seen(r.stream, last.Sequence, last.Event.ID)
			}
			full := batch
			batch = nil
			return yield(full, nil)
		}
		for {
			var c *chunk
			var ok bool
			switch {
			case len(batch) == 0:
				select {
				case c, ok = <-ordered:
				case <-ctx.Done():
				}
			case within > 0:
				select {
				case c, ok = <-ordered:
				case <-due:
					due = nil
					if !flush() {
						return
					}
					continue
				}
			default:
				select {
				case c, ok = <-ordered:
				default:
					if !flush() {
						return
					}
					continue
				}
			}
			if !ok {
				if !flush() {
					return
				}
				if err := context.Cause(ctx); err != nil {
					yield(nil, err)
				}
				return
			}
			<-c.ready
			begin := 0
			for begin < len(c.records) {
				end := begin
				for _, e := range c.ends {
					if e <= begin {
						continue
					}
					if len(batch)+e-begin > most && len(batch)+end-begin > 0 {
						break
					}
					end = e
				}
				if batch == nil && end == len(c.records) && begin == 0 {
					batch = c.records
				} else {
					batch = append(batch, c.records[begin:end]...)
				}
				begin = end
				if len(batch) >= most || begin < len(c.records) {
					if !flush() {
						return
					}
				}
			}
			if len(batch) > 0 && within > 0 && due == nil {
				timer = time.NewTimer(within)
				due = timer.C
			}
			if c.err != nil {
				if !flush() {
					return
				}
				if refusal, ok := errors.AsType[*RefusalError](c.err); ok {
					c.err = r.l.refuse(r.stream, refusal)
				}
				yield(nil, c.err)
				return
			}
		}
	}
}

// run hands on messages until ctx ends, emit says no, or the end is reached. Its
// error is for the caller; whatever a new consumer can mend is not.
func (r *reader) run(ctx context.Context, emit func([]*nats.Msg) bool) error {
	pause := 10 * time.Millisecond
	for {
		from := r.next
		end, err := r.session(ctx, emit)
		if end || ctx.Err() != nil {
			return err
		}
		if refusal, ok := errors.AsType[*RefusalError](err); ok {
			return refusal
		}
		if errors.Is(err, ErrPruned) {
			return err
		}
		if errors.Is(err, nats.ErrConnectionClosed) {
			return fmt.Errorf("follow %s: %w", r.stream, err)
		}
		if r.next > from {
			pause = 10 * time.Millisecond
		}
		r.l.log.Debug("reading is resumed", "stream", r.stream, "next", r.next, "after", err)
		if !wait(ctx, pause) {
			return nil
		}
		pause = min(2*pause, time.Second)
	}
}

var errSilent = errors.New("the server went silent")

// session reads through one consumer. It ends with true when nothing more is to
// be read; otherwise with the reason why another session must go on.
func (r *reader) session(ctx context.Context, emit func([]*nats.Msg) bool) (end bool, err error) {
	l := r.l
	config := jetstream.ConsumerConfig{
		Name:              "keyledger-" + nats.NewInbox()[len("_INBOX."):],
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       r.next,
		AckPolicy:         jetstream.AckNonePolicy,
		InactiveThreshold: time.Minute,
		MemoryStorage:     true,
		Replicas:          1,
	}
	if len(r.subjects) == 1 {
		config.FilterSubject = r.subjects[0]
	} else {
		config.FilterSubjects = r.subjects
	}
	status := l.nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer l.nc.RemoveStatusListener(status)
	doubted := l.doubted()
	if err := l.Err(r.stream); err != nil {
		return false, err
	}

	setup, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// A consumer that starts beyond the end waits in silence.
	info, err := l.info(setup, r.stream)
	if err != nil {
		return false, err
	}
	if info.State.LastSeq+1 < r.next && !(l.o.Replicas > 1 && l.catchUp(ctx, r.stream, r.next-1)) {
		return false, &RefusalError{[]Finding{behindFinding(r.stream, info.State.LastSeq, Position{"this reader", r.stream, r.next - 1, ""})}}
	}
	r.onDisk = 0
	if r.shownEarly() && info.State.LastSeq >= r.next {
		if _, err := l.get(setup, r.stream, getRequest{Seq: info.State.LastSeq}); err == nil {
			r.onDisk = info.State.LastSeq
		}
	}
	last := uint64(0) // before it no replica's word is taken that there is no more
	if r.to > 0 && info.replicated() && r.mayAsk() {
		if last, err = r.last(setup); err != nil {
			return false, err
		}
		if last < r.next {
			return true, nil
		}
	}
	linked, unlink := l.linked(setup)
	defer unlink()
	consumer, err := l.js.CreateConsumer(linked, r.stream, config)
	if err != nil {
		return false, err
	}
	defer func() {
		if l.nc.IsConnected() { // else the server forgets it when it has been idle
			_ = l.nc.Publish("$JS.API.CONSUMER.DELETE."+r.stream+"."+config.Name, nil)
		}
	}()
	if r.to > 0 && last == 0 && consumer.CachedInfo().NumPending == 0 {
		return true, nil
	}

	inbox := l.nc.NewInbox() // with the prefix that the connection may use
	arrived := make(chan *nats.Msg, pullMessages+1024)
	sub, err := l.nc.ChanSubscribe(inbox, arrived)
	if err != nil {
		return false, err
	}
	defer sub.Unsubscribe()
	pulls := "$JS.API.CONSUMER.MSG.NEXT." + r.stream + "." + config.Name
	asked := 0 // messages that the server may still send
	ask := func() error {
		n := pullMessages - asked
		b, _ := json.Marshal(map[string]any{
			"batch": n, "max_bytes": max(pullBytes, 2*l.nc.MaxPayload()),
			"expires": pullExpires, "idle_heartbeat": pullHeartbeat,
		})
		asked += n
		return l.nc.PublishRequest(pulls, inbox, b)
	}

	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	var delivered uint64 // consumer's own sequence
	idleSince := time.Now()
	var stalledAt uint64 // next, when the stream was last seen to have more
	for {
		if asked <= pullMessages/2 {
			if err := ask(); err != nil {
				return false, err
			}
		}
		var m *nats.Msg
		select {
		case m = <-arrived:
		default:
			quiet.Reset(silence)
			select {
			case m = <-arrived:
			case <-quiet.C:
				return false, errSilent
			case s := <-status:
				if s == nats.CLOSED {
					return false, nats.ErrConnectionClosed
				}
				return false, errors.New("the connection was made anew")
			case <-doubted:
				if err := l.Err(r.stream); err != nil {
					return false, err
				}
				doubted = l.doubted()
				continue
			case <-ctx.Done():
				return true, nil
			}
		}

		var messages []*nats.Msg
		size := 0
		for m != nil {
			if code := m.Header.Get("Status"); code != "" && m.Reply == "" || code == "100" {
				left, err := pullEnded(m)
				if err != nil {
					_, unsettled := r.hand(ctx, messages, emit)
					return false, cmp.Or(unsettled, err)
				}
				asked -= left
			} else {
				at, err := placeOf(m.Reply)
				if err != nil {
					return false, err
				}
				if at.delivered != delivered+1 {
					if goesOn, err := r.hand(ctx, messages, emit); !goesOn {
						return err == nil, err
					}
					return false, fmt.Errorf("delivery %d came after %d", at.delivered, delivered)
				}
				if len(r.subjects) == 0 && at.sequence != r.next {
					if goesOn, err := r.hand(ctx, messages, emit); !goesOn {
						return err == nil, err
					}
					return false, r.missing(ctx, at.sequence)
				}
				delivered = at.delivered
				asked--
				if r.to > 0 && at.sequence > r.to {
					_, err := r.hand(ctx, messages, emit)
					return err == nil, err
				}
				r.next = at.sequence + 1
				if messages == nil {
					messages = make([]*nats.Msg, 0, min(chunkMessages, 1+len(arrived)))
				}
				messages = append(messages, m)
				size += len(m.Data)
				if r.to > 0 && (at.sequence == r.to || at.pending == 0 && at.sequence >= last) {
					_, err := r.hand(ctx, messages, emit)
					return err == nil, err
				}
			}
			m = nil
			if len(messages) < chunkMessages && size < chunkBytes {
				select {
				case m = <-arrived:
				default:
				}
			}
		}
		if len(messages) > 0 {
			if goesOn, err := r.hand(ctx, messages, emit); !goesOn {
				return err == nil, err
			}
			idleSince = time.Now()
			continue
		}
		if time.Since(idleSince) < idleCheck || len(r.subjects) > 0 && (r.to == 0 || !r.mayAsk()) {
			continue
		}
		idleSince = time.Now()
		if len(r.subjects) > 0 { // what was left may have been pruned
			if last, err = r.last(ctx); err != nil {
				return false, err
			}
			if last < r.next {
				return true, nil
			}
			continue
		}
		info, err := l.timelyInfo(ctx, r.stream)
		if err != nil {
			return false, err
		}
		switch {
		case info.State.LastSeq < r.next:
			stalledAt = 0
		case stalledAt != r.next:
			stalledAt = r.next // it may just have been written
		default:
			return false, r.missing(ctx, info.State.LastSeq)
		}
	}
}

// mayAsk says whether this user may ask the leader for single messages. A verifier may
// not, of OPS: it sees there how far USAGE was pruned and nothing else.
func (r *reader) mayAsk() bool { return !r.l.o.ReadOnly || r.stream != events.Ops }

// last is where the last message stands that may have to be read, as the stream's leader
// knows it; 0: there is none. It may be behind r.to. A consumer reads from one replica,
// which may be behind the leader and then tells of no message that it does not have.
func (r *reader) last(ctx context.Context) (last uint64, err error) {
	if len(r.subjects) == 0 {
		return r.to, nil
	}
	for _, subject := range r.subjects {
		m, err := r.l.get(ctx, r.stream, getRequest{LastFor: subject})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		last = max(last, m.sequence)
	}
	return last, nil
}

// hand gives messages on when they are on disk; it answers whether reading goes
// on. After an error they are read again.
//
// A single server shows the messages of an atomic batch one by one while it writes
// them, and syncs them when it has the last. Whoever acts on them sooner knows
// facts that a power cut takes back.
func (r *reader) hand(ctx context.Context, messages []*nats.Msg, emit func([]*nats.Msg) bool) (goesOn bool, err error) {
	if len(messages) == 0 {
		return true, nil
	}
	if err := r.settled(ctx, messages); err != nil {
		at, _ := placeOf(messages[0].Reply)
		r.next = at.sequence
		return false, err
	}
	return emit(messages), nil
}

// shownEarly says whether messages are shown before they are on disk: those of
// batches, where no majority of replicas has to have them first.
func (r *reader) shownEarly() bool {
	return r.l.o.Replicas == 1 && (r.stream == events.Ledger || r.stream == events.Feed)
}

// settled waits until the last message of a batch is on disk, and with it those
// before it: the server answers a question for it when the batch is whole.
func (r *reader) settled(ctx context.Context, messages []*nats.Msg) error {
	if !r.shownEarly() {
		return nil
	}
	for _, m := range slices.Backward(messages) {
		if m.Header.Get(batchSequence) == "" {
			continue
		}
		at, err := placeOf(m.Reply)
		if err != nil {
			return err
		}
		if at.sequence <= r.onDisk {
			return nil
		}
		stored, err := r.l.get(ctx, r.stream, getRequest{Seq: at.sequence})
		if err != nil {
			return fmt.Errorf("is message %d on disk: %w", at.sequence, err)
		}
		if !bytes.Equal(stored.body, m.Data) {
			return fmt.Errorf("message %d was shown and is another one now", at.sequence)
		}
		r.onDisk = at.sequence
		return nil
	}
	return nil
}

// missing tells a message that cannot be read from one that was only not
// delivered: nil for the latter.
func (r *reader) missing(ctx context.Context, later uint64) error {
	_, err := r.l.get(ctx, r.stream, getRequest{Seq: r.next})
	if err == nil {
		return fmt.Errorf("message %d was not delivered", r.next)
	}
	if e, ok := errors.AsType[*jetstream.APIError](err); !ok || e.Code == 503 {
		return err
	}
	if isNotFound(err) && r.stream == events.Usage {
		first, err := r.l.mayBegin(ctx, r.stream, r.next+1)
		if err != nil {
			return err
		}
		if r.next < first {
			return fmt.Errorf("read %s from sequence %d: %w", r.stream, r.next, ErrPruned)
		}
	}
	return &RefusalError{[]Finding{{r.stream, fmt.Sprintf("the message at sequence %d is missing or cannot be read (%v), although there is one at %d", r.next, err, later),
		"A data file is damaged, or messages were deleted. Everything that would be computed from here on would be wrong.", restore}}}
}

// place is what the reply subject of a delivered message says.
type place struct {
	sequence  uint64 // in the stream
	delivered uint64 // counts the consumer's deliveries
	pending   uint64 // how many more there are for the consumer
}

// placeOf reads $JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<delivered>.<time>.<pending>,
// or the form with domain and account in front and a token behind.
func placeOf(reply string) (p place, err error) {
	rest, ok := strings.CutPrefix(reply, "$JS.ACK.")
	if !ok {
		return p, fmt.Errorf("a message without a place: reply %q", reply)
	}
	skip := 3
	if n := strings.Count(rest, "."); n >= 8 {
		skip = 5
	} else if n != 6 {
		return p, fmt.Errorf("a message without a place: reply %q", reply)
	}
	for range skip {
		_, rest, _ = strings.Cut(rest, ".")
	}
	for _, n := range []*uint64{&p.sequence, &p.delivered, nil, &p.pending} {
		var token string
		token, rest, _ = strings.Cut(rest, ".")
		if n == nil {
			continue
		}
		if *n, err = strconv.ParseUint(token, 10, 64); err != nil {
			return p, fmt.Errorf("a message without a place: reply %q", reply)
		}
	}
	return p, nil
}

// pullEnded reads a status message: how many messages of a pull will not come.
// An error ends the consumer.
func pullEnded(m *nats.Msg) (left int, err error) {
	code, text := m.Header.Get("Status"), m.Header.Get("Description")
	switch {
	case code == "100":
		return 0, nil
	case code == "404", code == "408",
		code == "409" && (strings.Contains(text, "Batch Completed") || strings.Contains(text, "MaxBytes")):
		left, _ = strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
		return left, nil
	}
	return 0, fmt.Errorf("the consumer ended: %s %s", code, text)
}
