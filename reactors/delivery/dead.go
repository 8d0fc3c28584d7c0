package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
	"github.com/keyledger/keyledger/events/ledger"
)

// DeadLetter is a fact that was not delivered. It stands in DLQ on
// dlq.<reactor>.<target>, its body verbatim, what follows as headers Dlq-…
type DeadLetter struct {
	Sequence uint64          `json:"sequence"` // in DLQ
	Reactor  string          `json:"reactor"`
	Target   string          `json:"target"`
	ID       string          `json:"id"`       // of the event
	Type     string          `json:"type"`     // of the event
	Keyspace string          `json:"keyspace"` // of the event
	Owner    string          `json:"owner"`    // of the event
	Key      string          `json:"key"`      // of the event
	Stream   string          `json:"stream"`   // where the fact stands
	Place    uint64          `json:"place"`    // its sequence there
	Reason   string          `json:"reason"`   // why it was given up
	Class    string          `json:"class"`    // of the last error
	Attempts int             `json:"attempts"`
	Since    events.Time     `json:"since"` // of the first attempt
	DeadAt   events.Time     `json:"dead_at"`
	State    string          `json:"state"`           // dead; replaying; replayed: delivered later
	StateAt  events.Time     `json:"state_at"`        // since when
	StateBy  string          `json:"state_by"`        // who had it replayed
	Body     json.RawMessage `json:"event,omitempty"` // where one is shown
}

// States of a dead letter.
const (
	Dead      = "dead"
	Replaying = "replaying"
	Replayed  = "replayed"
)

// The headers of a dead letter.
const (
	headerTarget   = "Dlq-Target"
	headerReactor  = "Dlq-Reactor"
	headerStream   = "Dlq-Stream"
	headerSequence = "Dlq-Sequence"
	headerSubject  = "Dlq-Subject"
	headerReason   = "Dlq-Reason"
	headerClass    = "Dlq-Class"
	headerAttempts = "Dlq-Attempts"
	headerSince    = "Dlq-Since"
)

// bury stores a fact in DLQ. Done again for the same fact and first attempt within the
// minutes in which the server knows a message by its id, it is stored once.
func (s *Store) bury(ctx context.Context, reactor, target string, f *Fact, class, reason string, attempts int, since time.Time) error {
	header := nats.Header{
		headerReactor: {reactor}, headerTarget: {target}, headerStream: {f.Stream},
		headerSequence: {strconv.FormatUint(f.Sequence, 10)}, headerSubject: {f.Subject},
		headerReason: {printable([]byte(reason))}, headerClass: {class}, headerAttempts: {strconv.Itoa(attempts)},
		headerSince: {events.At(since).String()},
	}
	for name, values := range f.Header {
		header[name] = values
	}
	id := fmt.Sprintf("%s/%s/%s/%d", reactor, target, f.ID, since.UnixMilli())
	_, err := s.ledger.AppendDLQ(ctx, reactor+"."+target, id, header, f.Body)
	return err
}

// replayState is the value of a dead letter that somebody had replayed, at
// replay.<reactor>.<target>.<sequence in DLQ>.
type replayState struct {
	State string      `json:"state"`
	At    events.Time `json:"at"`
	By    string      `json:"by"`
}

type replay struct {
	target   string
	sequence uint64
}

func replayKey(reactor, target string, sequence uint64) string {
	return "replay." + reactor + "." + target + "." + strconv.FormatUint(sequence, 10)
}

// letter reads one message of DLQ.
func (s *Store) letter(ctx context.Context, sequence uint64) (DeadLetter, *Fact, error) {
	stream, err := s.js.Stream(ctx, events.DLQ)
	if err != nil {
		return DeadLetter{}, nil, fmt.Errorf("read %s: %w", events.DLQ, err)
	}
	m, err := stream.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return DeadLetter{}, nil, fmt.Errorf("%s at sequence %d: %w", events.DLQ, sequence, ledger.ErrNotFound)
	}
	if err != nil {
		return DeadLetter{}, nil, fmt.Errorf("read %s at sequence %d: %w", events.DLQ, sequence, err)
	}
	return letterOf(sequence, m.Header, m.Data, m.Time)
}

func letterOf(sequence uint64, h nats.Header, body []byte, at time.Time) (d DeadLetter, f *Fact, err error) {
	e, err := events.Decode(body)
	if err != nil {
		return d, nil, fmt.Errorf("%s at sequence %d: %w", events.DLQ, sequence, err)
	}
	d = DeadLetter{
		Sequence: sequence, Reactor: h.Get(headerReactor), Target: h.Get(headerTarget),
		ID: e.ID, Type: e.Type, Keyspace: e.Keyspace, Owner: e.Owner, Key: e.Key,
		Stream: h.Get(headerStream), Reason: h.Get(headerReason), Class: h.Get(headerClass),
		DeadAt: events.At(at), State: Dead, StateAt: events.At(at), Body: body,
	}
	d.Place, _ = strconv.ParseUint(h.Get(headerSequence), 10, 64)
	d.Attempts, _ = strconv.Atoi(h.Get(headerAttempts))
	if since, err := time.Parse(time.RFC3339Nano, h.Get(headerSince)); err == nil {
		d.Since = events.At(since)
	}
	if d.Target == "" || d.Stream == "" {
		return d, nil, fmt.Errorf("%s at sequence %d does not say where it was to be delivered: something else than keyledger wrote it", events.DLQ, sequence)
	}
	r := events.Record{Stream: d.Stream, Sequence: d.Place, Subject: h.Get(headerSubject), Body: body, Event: e}
	fact := factOf(&r)
	return d, &fact, nil
}

// DeadLetter shows one, with the fact. It fails with [ledger.ErrNotFound].
func (s *Store) DeadLetter(ctx context.Context, sequence uint64) (DeadLetter, error) {
	d, _, _, err := s.judged(ctx, sequence)
	return d, err
}

// judged reads a dead letter with what became of it, and the revision of that.
func (s *Store) judged(ctx context.Context, sequence uint64) (d DeadLetter, f *Fact, revision uint64, err error) {
	if d, f, err = s.letter(ctx, sequence); err != nil {
		return d, nil, 0, err
	}
	value, revision, err := cluster.Get(ctx, s.js.Conn(), Bucket, replayKey(d.Reactor, d.Target, sequence))
	if err == nil && value != nil {
		err = d.became(value)
	}
	return d, f, revision, err
}

func (d *DeadLetter) became(value []byte) error {
	var r replayState
	if err := json.Unmarshal(value, &r); err != nil {
		return fmt.Errorf("read what became of %s %d: %w", events.DLQ, d.Sequence, err)
	}
	d.State, d.StateAt, d.StateBy = r.State, r.At, r.By
	return nil
}

// DeadLetters lists those of a reactor, and of one target where it is not empty,
// oldest first, after a sequence of DLQ, at most most of them, without the facts.
// state chooses those in a state; empty: all.
func (s *Store) DeadLetters(ctx context.Context, reactor, target, state string, after uint64, most int) ([]DeadLetter, error) {
	place := "*"
	if target != "" {
		place = target
	}
	became := map[uint64][]byte{}
	err := s.each(ctx, "replay."+reactor+"."+place+".*", func(e jetstream.KeyValueEntry) error {
		if n, err := strconv.ParseUint(e.Key()[strings.LastIndexByte(e.Key(), '.')+1:], 10, 64); err == nil {
			became[n] = e.Value()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	all := []DeadLetter{}
	err = s.scan(ctx, events.DLQ, "dlq."+reactor+"."+place, after+1, time.Time{}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) (bool, error) {
		d, _, err := letterOf(meta.Sequence.Stream, m.Headers(), m.Data(), meta.Timestamp)
		if err != nil {
			return false, err
		}
		if v := became[d.Sequence]; v != nil {
			if err := d.became(v); err != nil {
				return false, err
			}
		}
		if state == "" || d.State == state {
			d.Body = nil
			all = append(all, d)
		}
		return len(all) < most, nil
	})
	return all, err
}

// scan reads messages of a subject, from a sequence or a time, until more says no.
func (s *Store) scan(ctx context.Context, stream, subject string, from uint64, since time.Time, more func(jetstream.Msg, *jetstream.MsgMetadata) (bool, error)) error {
	config := jetstream.ConsumerConfig{
		FilterSubject: subject, AckPolicy: jetstream.AckNonePolicy, MaxDeliver: 1,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from, 1),
		MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute,
	}
	if !since.IsZero() {
		config.DeliverPolicy, config.OptStartSeq, config.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &since
	}
	c, err := s.js.CreateConsumer(ctx, stream, config)
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.js.DeleteConsumer(ctx, stream, c.CachedInfo().Name)
	}()
	for pending := c.CachedInfo().NumPending; pending > 0; {
		batch, err := c.Fetch(256, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			return fmt.Errorf("read %s: %w", stream, err)
		}
		came := false
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return fmt.Errorf("read %s: %w", stream, err)
			}
			came, pending = true, meta.NumPending
			if goesOn, err := more(m, meta); err != nil || !goesOn {
				return err
			}
			if pending == 0 {
				break
			}
		}
		if !came {
			return fmt.Errorf("read %s: the server does not answer: %w", stream, nats.ErrTimeout)
		}
	}
	return nil
}

// ErrNotDead says that a dead letter is not to be replayed: it is being, or was.
var ErrNotDead = errors.New("it is not dead: it is being replayed, or was")

// Replay has a dead letter delivered again, by whoever delivers; by says who asked, an
// opaque id. It stays in DLQ. It fails with [ledger.ErrNotFound] and [ErrNotDead].
// When that fails for as long as a fact does, it is dead again.
func (s *Store) Replay(ctx context.Context, sequence uint64, by string) error {
	d, _, revision, err := s.judged(ctx, sequence)
	if err != nil {
		return err
	}
	if d.State != Dead {
		return ErrNotDead
	}
	body, err := json.Marshal(replayState{Replaying, events.At(time.Now()), by})
	if err != nil {
		return err
	}
	_, err = s.kv.Update(ctx, replayKey(d.Reactor, d.Target, sequence), body, revision)
	if cluster.Conflict(err) {
		return ErrNotDead
	}
	if err != nil {
		return fmt.Errorf("replay %s %d: %w", events.DLQ, sequence, err)
	}
	return nil
}

// replayed notes what became of a replay that was read at a revision.
func (s *Store) replayed(ctx context.Context, d *DeadLetter, revision uint64, state string) error {
	body, err := json.Marshal(replayState{state, events.At(time.Now()), d.StateBy})
	if err == nil {
		_, err = s.kv.Update(ctx, replayKey(d.Reactor, d.Target, d.Sequence), body, revision)
	}
	return err
}

// watchReplays tells of the dead letters that are to be replayed.
func (s *Store) watchReplays(ctx context.Context, reactor string, tell chan<- replay, log *slog.Logger) {
	for ctx.Err() == nil {
		if err := s.watchOnce(ctx, reactor, tell); err != nil && ctx.Err() == nil {
			log.Warn("delivery: dead letters that are to be replayed cannot be read, tried again", "reactor", reactor, "error", err)
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
	}
}

func (s *Store) watchOnce(ctx context.Context, reactor string, tell chan<- replay) error {
	reconnected := s.js.Conn().StatusChanged(nats.CONNECTED)
	defer s.js.Conn().RemoveStatusListener(reconnected)
	w, err := s.kv.Watch(ctx, "replay."+reactor+".*.*", jetstream.IgnoreDeletes())
	if err != nil {
		return err
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return errors.New("the watch ended")
			}
			if e == nil {
				continue
			}
			var r replayState
			parts := strings.Split(e.Key(), ".")
			n, err := strconv.ParseUint(parts[len(parts)-1], 10, 64)
			if err = errors.Join(err, json.Unmarshal(e.Value(), &r)); err != nil {
				return fmt.Errorf("%s in the bucket %s: %w", e.Key(), Bucket, err)
			}
			if r.State != Replaying {
				continue
			}
			select {
			case tell <- replay{parts[2], n}:
			case <-ctx.Done():
				return nil
			}
		case <-reconnected:
			return nil // what came meanwhile may not have been told
		case <-ctx.Done():
			return nil
		}
	}
}

// buried counts the dead letters of each target of a reactor.
func (s *Store) buried(ctx context.Context, reactor, target string) (uint64, error) {
	stream, err := s.js.Stream(ctx, events.DLQ)
	if err != nil {
		return 0, err
	}
	subject := "dlq." + reactor + "." + target
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return 0, err
	}
	return info.State.Subjects[subject], nil
}

// letterStates are the states in which a dead letter may be chosen.
var letterStates = []string{Dead, Replaying, Replayed}

// IsLetterState says whether a word is a state of dead letters.
func IsLetterState(s string) bool { return slices.Contains(letterStates, s) }
