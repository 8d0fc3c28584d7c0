package pubsub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// SubscriberOptions says what to read and what to do when handlers fail. Conn
// and Stream are required; the zero value of the rest works.
type SubscriberOptions struct {
	Conn   *nats.Conn // stays the caller's
	Stream string     // the stream that holds the topics

	// Group names the readers that share the work: each message goes to one of
	// them, and the server keeps their place. Empty: every subscription reads
	// for itself from After on, and no place is kept; Nack and order work alike.
	Group string
	// After is the stream sequence after which reading begins: for a group,
	// when it reads for the first time.
	After uint64

	// AckWait is after how long the server takes the reader of a group for dead
	// and gives its message to another member. Zero: 10 s.
	AckWait time.Duration
	// MinBackoff and MaxBackoff are between the attempts at one message,
	// doubling. Zero: 50 ms and 30 s.
	MinBackoff, MaxBackoff time.Duration
	// CloseWait is how long a handler at work may take to finish after Close or
	// the end of the subscription's context. Zero: 5 s. Negative: not at all.
	CloseWait time.Duration

	// DeadLetter is the subject, dlq.<reactor>, to which a message goes after
	// Attempts Nacks in a row. Empty: a message is tried for ever, and what
	// follows waits.
	DeadLetter string
	Attempts   int // zero: 10

	Log *slog.Logger // nil: slog.Default()
}

// Subscriber is a message.Subscriber over JetStream; a topic is a subject,
// wildcards allowed. See the package for what it promises.
type Subscriber struct {
	SubscriberOptions
	js jetstream.JetStream

	stopping context.Context // ends at Close
	stop     context.CancelFunc
	senders  sync.WaitGroup

	// mu guards the two below. Subscribe adds to senders only while it holds mu
	// and closed is false, so that Close waits for all of them.
	mu     sync.Mutex
	closed bool
	err    error
}

// NewSubscriber returns a subscriber; it talks to the server in Subscribe.
func NewSubscriber(o SubscriberOptions) (*Subscriber, error) {
	if o.Conn == nil || o.Stream == "" {
		return nil, errors.New("subscriber: Conn and Stream are required")
	}
	if strings.ContainsAny(o.Group, ".*>/\\ \t\r\n") {
		return nil, fmt.Errorf("subscriber: group %q: a group's name has no dots, wildcards, slashes or blanks", o.Group)
	}
	o.AckWait = cmp.Or(o.AckWait, 10*time.Second)
	o.MinBackoff = cmp.Or(o.MinBackoff, 50*time.Millisecond)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, 30*time.Second)
	o.CloseWait = cmp.Or(o.CloseWait, 5*time.Second)
	o.Attempts = cmp.Or(o.Attempts, 10)
	o.Log = cmp.Or(o.Log, slog.Default())
	js, err := jetstream.New(o.Conn)
	if err != nil {
		return nil, fmt.Errorf("subscriber: %w", err)
	}
	s := &Subscriber{SubscriberOptions: o, js: js}
	s.stopping, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Subscribe delivers the messages of topic on the returned channel until ctx
// ends or Close is called. The channel also closes when the stream can no
// longer be trusted or the group's place was deleted; Err then says why.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if err := s.SubscribeInitialize(topic); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, ErrClosed)
	}
	run, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.stopping, cancel)
	sub := &subscription{Subscriber: s, topic: topic, ctx: ctx, run: run, out: make(chan *message.Message)}
	s.senders.Go(func() {
		defer cancel()
		defer unhook()
		defer close(sub.out)
		if err := sub.read(); err != nil {
			s.Log.ErrorContext(ctx, "subscription ended", "stream", s.Stream, "topic", topic, "group", s.Group, "error", err)
			s.mu.Lock()
			s.err = errors.Join(s.err, err)
			s.mu.Unlock()
		}
	})
	return sub.out, nil
}

// SubscribeInitialize makes the group's place on the server where there is
// none, so that what is published from now on is kept for it.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return fmt.Errorf("subscribe to %s: %w", topic, ErrClosed)
	}
	ctx, cancel := context.WithTimeout(s.stopping, 10*time.Second)
	defer cancel()
	if s.Group == "" {
		if _, err := s.js.Stream(ctx, s.Stream); err != nil {
			return fmt.Errorf("subscribe to %s: stream %s: %w", topic, s.Stream, err)
		}
		return nil
	}
	config := jetstream.ConsumerConfig{
		Durable:        s.durable(topic),
		Description:    "reactor " + s.Group + " on " + topic,
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    s.After + 1,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        s.AckWait,
		MaxDeliver:     -1,
		MaxAckPending:  1, // the next message waits for the answer to this one: order survives failures and deaths
		FilterSubjects: []string{topic},
	}
	// After is for the first time only, and the server lets nobody change it.
	if c, err := s.js.Consumer(ctx, s.Stream, config.Durable); err == nil {
		config.DeliverPolicy, config.OptStartSeq = c.CachedInfo().Config.DeliverPolicy, c.CachedInfo().Config.OptStartSeq
	}
	if _, err := s.js.CreateOrUpdateConsumer(ctx, s.Stream, config); err != nil {
		return fmt.Errorf("subscribe to %s: consumer of group %s on stream %s: %w", topic, s.Group, s.Stream, err)
	}
	return nil
}

// durable is the consumer's name: one group reads each of its topics at a place
// of its own.
func (s *Subscriber) durable(topic string) string {
	return fmt.Sprintf("%s-%08x", s.Group, crc32.ChecksumIEEE([]byte(topic)))
}

// Err says why subscriptions ended by themselves; nil if none did.
func (s *Subscriber) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends all subscriptions, gives handlers at work CloseWait to finish, and
// returns when every channel is closed. It MUST NOT be called from a handler.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.senders.Wait()
	return nil
}

// subscription is owned by the one goroutine that sends on out.
type subscription struct {
	*Subscriber
	topic string
	ctx   context.Context // the subscriber's caller's: parent of every message's context
	run   context.Context // ends with ctx or at Close
	out   chan *message.Message
}

func (s *subscription) read() error {
	if s.Group == "" {
		o := TailOptions{After: s.After, Filter: []string{s.topic}, Log: s.Log}
		for m, err := range Tail(s.run, s.Conn, s.Stream, o) {
			if err != nil {
				return err
			}
			if !s.deliver(m, nil) {
				return nil
			}
		}
		return nil
	}
	for retry := (backoff{min: 10 * time.Millisecond, max: 2 * time.Second}); ; {
		delivered, err := s.readGroup()
		if s.run.Err() != nil {
			return nil
		}
		// Making the consumer again would deliver everything again from the
		// start; whoever deleted it has to say whether that is wanted.
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("place of group %s in stream %s is gone (subscribing anew starts after %d): %w", s.Group, s.Stream, s.After, err)
		}
		if delivered {
			retry.reset()
		}
		s.Log.WarnContext(s.ctx, "reading for a group was interrupted and goes on", "stream", s.Stream, "group", s.Group, "error", err)
		if !retry.wait(s.run, nil) {
			return nil
		}
	}
}

func (s *subscription) readGroup() (delivered bool, err error) {
	// A restarted server has forgotten the pull; without this it would be
	// missed only when its heartbeats are.
	ctx, cancel := context.WithCancel(s.run)
	defer cancel()
	defer onReconnect(s.Conn, cancel)()
	c, err := s.js.Consumer(ctx, s.Stream, s.durable(s.topic))
	if err != nil {
		return false, err
	}
	for {
		// One pull per message. An iterator drops messages when notices of the
		// server fill its buffer, and was seen to wait ten seconds for a
		// heartbeat to fail with a message there for it.
		batch, err := c.Fetch(1, jetstream.FetchContext(noDeadline{ctx}), jetstream.FetchHeartbeat(5*time.Second))
		if err != nil {
			return delivered, err
		}
		for m := range batch.Messages() {
			if !s.deliver(m, m) {
				return true, nil
			}
			delivered = true
		}
		if err := batch.Error(); err != nil {
			return delivered, err
		}
	}
}

// deliver sends m until it is acknowledged, dead-lettered, or the subscription
// ends, which it reports. server is nil where the server keeps no place.
func (s *subscription) deliver(m, server jetstream.Msg) (goOn bool) {
	meta, err := m.Metadata()
	if err != nil {
		s.Log.ErrorContext(s.ctx, "message without a place in its stream", "stream", s.Stream, "error", err)
		return false
	}
	alive := newHeartbeat(server, s.AckWait/3)
	defer alive.stop()
	retry := backoff{min: s.MinBackoff, max: s.MaxBackoff}
	for attempt := 1; ; attempt++ {
		reason, answer := s.attempt(fromNATS(m, meta), alive)
		switch {
		case answer == acked:
			alive.ack()
			return s.run.Err() == nil
		case answer == nacked && s.DeadLetter != "" && attempt >= s.Attempts:
			if err := s.bury(m, meta, attempt, reason); err == nil {
				alive.ack()
				return s.run.Err() == nil
			} else {
				s.Log.ErrorContext(s.ctx, "a message could not be dead-lettered and is tried again",
					"stream", s.Stream, "sequence", meta.Sequence.Stream, "subject", s.DeadLetter, "error", err)
			}
		}
		if s.run.Err() != nil || !retry.wait(s.run, alive) {
			alive.nak()
			return false
		}
	}
}

type answer int

const (
	unanswered answer = iota
	acked
	nacked
)

// attempt sends w once and waits for its answer.
func (s *subscription) attempt(w *message.Message, alive *heartbeat) (reason string, a answer) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	w.SetContext(ctx)
	for sent := false; !sent; {
		select {
		case s.out <- w:
			sent = true
		case <-alive.tick():
			alive.beat()
		case <-s.run.Done():
			return "", unanswered
		}
	}
	ending := s.run.Done()
	var late <-chan time.Time
	for {
		select {
		case <-w.Acked():
			return "", acked
		case <-w.Nacked():
			return w.Metadata.Get(metaReason), nacked
		case <-alive.tick():
			alive.beat()
		case <-ending:
			ending = nil
			timer := time.NewTimer(s.CloseWait)
			defer timer.Stop()
			late = timer.C
		case <-late:
			return "", unanswered
		}
	}
}

// Headers of a dead letter, beside those of the message itself.
const (
	HeaderReason   = "Dlq-Reason"
	HeaderStream   = "Dlq-Stream"
	HeaderSubject  = "Dlq-Subject"
	HeaderSequence = "Dlq-Sequence"
	HeaderAttempts = "Dlq-Attempts"
)

func (s *subscription) bury(m jetstream.Msg, meta *jetstream.MsgMetadata, attempts int, reason string) error {
	sequence := strconv.FormatUint(meta.Sequence.Stream, 10)
	letter := nats.NewMsg(s.DeadLetter)
	letter.Data = m.Data()
	for name, values := range m.Headers() {
		if !strings.HasPrefix(name, brokerPrefix) {
			letter.Header[name] = values
		}
	}
	letter.Header.Set(HeaderReason, cmp.Or(reason, "the handler gave no reason"))
	letter.Header.Set(HeaderStream, meta.Stream)
	letter.Header.Set(HeaderSubject, m.Subject())
	letter.Header.Set(HeaderSequence, sequence)
	letter.Header.Set(HeaderAttempts, strconv.Itoa(attempts))
	letter.Header.Set(jetstream.MsgIDHeader, s.DeadLetter+"/"+meta.Stream+"/"+sequence)
	// Not s.run: a letter that is being written when the subscription ends is
	// worth a moment.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 5*time.Second)
	defer cancel()
	if _, err := s.js.PublishMsg(ctx, letter); err != nil {
		return err
	}
	s.Log.ErrorContext(s.ctx, "message dead-lettered", "stream", meta.Stream, "sequence", meta.Sequence.Stream,
		"subject", s.DeadLetter, "attempts", attempts, "reason", reason)
	return nil
}

const metaReason = brokerPrefix + "Reason" // the prefix keeps it off the wire

// KeepReason is a router middleware that leaves a handler's error on the
// message, so that a dead letter can say why.
func KeepReason(h message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		out, err := h(m)
		if err != nil {
			reason := strings.Join(strings.Fields(err.Error()), " ") // one line: it becomes a header
			m.Metadata.Set(metaReason, strings.ToValidUTF8(reason[:min(len(reason), 1024)], ""))
		}
		return out, err
	}
}

// heartbeat tells the server that a message is being worked on. It is nil
// where the server keeps no place.
type heartbeat struct {
	m      jetstream.Msg
	ticker *time.Ticker
}

func newHeartbeat(m jetstream.Msg, every time.Duration) *heartbeat {
	if m == nil {
		return nil
	}
	return &heartbeat{m, time.NewTicker(every)}
}

func (h *heartbeat) tick() <-chan time.Time {
	if h == nil {
		return nil
	}
	return h.ticker.C
}

// An answer that is lost brings the message again after AckWait; there is
// nothing better to do about it.
func (h *heartbeat) beat() { _ = h.m.InProgress() }

func (h *heartbeat) ack() {
	if h != nil {
		_ = h.m.Ack()
	}
}

// nak gives the message back at once, so that the group's next reader need not
// wait AckWait for it. One that was under way when the pull was given up is not
// seen here and does wait.
func (h *heartbeat) nak() {
	if h != nil {
		_ = h.m.Nak()
	}
}

func (h *heartbeat) stop() {
	if h != nil {
		h.ticker.Stop()
	}
}
