package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// Replica is one server's copy of a stream.
type Replica struct {
	Server  string // its name; empty where it is not one of a cluster
	Leader  bool
	Current bool   // it has what the leader has
	Offline bool   // the leader has not heard of it for a while
	Lag     uint64 // what it lacks of the leader's log
}

// Replicas are the copies of a stream as its leader knows them, the leader's first.
func (l *Ledger) Replicas(ctx context.Context, stream string) ([]Replica, error) {
	var info struct {
		Cluster *struct {
			Name     string `json:"name"`
			Leader   string `json:"leader"`
			Replicas []struct {
				Name    string `json:"name"`
				Current bool   `json:"current"`
				Offline bool   `json:"offline"`
				Lag     uint64 `json:"lag"`
			} `json:"replicas"`
		} `json:"cluster"`
	}
	ctx, cancel := context.WithTimeout(ctx, cluster.AskTime)
	defer cancel()
	if err := l.api(ctx, "STREAM.INFO."+stream, nil, &info); err != nil {
		return nil, fmt.Errorf("ask the server about the replicas of stream %s: %w", stream, err)
	}
	if info.Cluster == nil || info.Cluster.Name == "" {
		return []Replica{{Leader: true, Current: true}}, nil
	}
	if info.Cluster.Leader == "" {
		return nil, fmt.Errorf("stream %s has no leader at present", stream)
	}
	all := []Replica{{Server: info.Cluster.Leader, Leader: true, Current: true}}
	for _, r := range info.Cluster.Replicas {
		all = append(all, Replica{Server: r.Name, Current: r.Current, Offline: r.Offline, Lag: r.Lag})
	}
	return all, nil
}

// DamageError says that a server's copy of a stream is damaged at a place.
type DamageError struct {
	Stream   string
	Server   string
	Kind     string // missing, unreadable or short
	Sequence uint64 // first that is damaged
	Line     int
	Problem  string
}

func (e *DamageError) Error() string { return e.Stream + ": " + e.Problem }

// The kinds of damage.
const (
	DamageMissing    = "missing"    // a message is not there, although later ones are
	DamageUnreadable = "unreadable" // a message is no fact
	DamageShort      = "short"      // the copy ends before what was asked for
)

// ErrNotThere says that a server cannot be read from now: it is away, or behind, so
// that the cluster does not choose it.
var ErrNotThere = errors.New("this server's copy cannot be read now")

const (
	scanPull    = 256 // messages asked for at a time
	scanBytes   = 1 << 20
	scanWait    = 3 * time.Second // for the first of them
	scanRepeats = 4               // sessions without a message, before it is given up
	scanPlaces  = 80              // consumers made until one is where it is wanted: two of three miss
)

// Scan reads the messages from one sequence to another, both included, as one server
// of a cluster has them; an empty name is whichever leads. It hands on the records
// of each message, of types that this program does not know as well. pace is called
// with what was read, now and then, and may wait.
//
// It fails with a [*DamageError] that a second reading confirmed, with [ErrNotThere],
// with [ErrPruned], or with what yield or pace answered. It goes on where the stream
// is in doubt, and brings none into doubt.
func (l *Ledger) Scan(ctx context.Context, stream, server string, from, to uint64, pace func(context.Context, int) error, yield func(sequence uint64, records []events.Record) error) error {
	s := scan{l: l, stream: stream, server: server, next: from, to: to, pace: pace, yield: yield}
	pause := 50 * time.Millisecond
	for repeats := 0; s.next <= to; {
		at := s.next
		err := s.session(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if stop, ok := errors.AsType[*stopped](err); ok {
			return stop.error
		}
		if errors.Is(err, ErrNotThere) || errors.Is(err, ErrPruned) {
			return err
		}
		if s.next > at {
			repeats, pause = 0, 50*time.Millisecond
		}
		repeats++
		if damage, ok := errors.AsType[*DamageError](err); ok && repeats >= 2 {
			return s.settle(ctx, damage)
		}
		if repeats >= scanRepeats {
			return err
		}
		if !wait(ctx, pause) {
			return ctx.Err()
		}
		pause = min(2*pause, time.Second)
	}
	return nil
}

// stopped is an error that was not the scan's.
type stopped struct{ error }

type scan struct {
	l              *Ledger
	stream, server string
	next, to       uint64
	pace           func(context.Context, int) error
	yield          func(uint64, []events.Record) error
}

// settle tells damage from what was pruned meanwhile and from a copy that is behind.
func (s *scan) settle(ctx context.Context, d *DamageError) error {
	if s.stream == events.Usage && d.Kind == DamageMissing {
		if begins, err := s.l.mayBegin(ctx, s.stream, d.Sequence+1); err == nil && d.Sequence < begins {
			return fmt.Errorf("read %s from sequence %d: %w", s.stream, d.Sequence, ErrPruned)
		}
	}
	if d.Kind != DamageShort {
		return d
	}
	replicas, err := s.l.Replicas(ctx, s.stream)
	if err != nil {
		return err
	}
	for _, r := range replicas {
		if r.Server == s.server && (r.Offline || !r.Current || r.Lag > 0) {
			return fmt.Errorf("%s on %s: it ends at sequence %d and is catching up: %w", s.stream, s.server, s.next-1, ErrNotThere)
		}
	}
	return d
}

// where names a copy in a message.
func (s *scan) where() string {
	if s.server == "" {
		return ""
	}
	return " on server " + s.server
}

// place makes a consumer that reads the wanted server's copy. One with a single
// replica lives on one server, and reads what that has; which one is drawn by lot,
// among those that are not behind.
func (s *scan) place(ctx context.Context) (name string, err error) {
	for range scanPlaces {
		name = "keyledger-" + nats.NewInbox()[len("_INBOX."):]
		setup, cancel := context.WithTimeout(ctx, cluster.AskTime)
		linked, unlink := s.l.linked(setup)
		consumer, err := s.l.js.CreateConsumer(linked, s.stream, jetstream.ConsumerConfig{
			Name:              name,
			DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
			OptStartSeq:       s.next,
			AckPolicy:         jetstream.AckNonePolicy,
			InactiveThreshold: 30 * time.Second,
			MemoryStorage:     true,
			Replicas:          1,
		})
		unlink()
		cancel()
		if err != nil {
			return "", err
		}
		in := consumer.CachedInfo().Cluster
		if s.server == "" || in != nil && in.Leader == s.server {
			return name, nil
		}
		s.drop(name)
	}
	return "", fmt.Errorf("%s on %s: no consumer came to be there: %w", s.stream, s.server, ErrNotThere)
}

func (s *scan) drop(consumer string) {
	if s.l.nc.IsConnected() {
		_ = s.l.nc.Publish("$JS.API.CONSUMER.DELETE."+s.stream+"."+consumer, nil)
	}
}

// session reads through one consumer.
func (s *scan) session(ctx context.Context) error {
	consumer, err := s.place(ctx)
	if err != nil {
		return err
	}
	defer s.drop(consumer)
	inbox := s.l.nc.NewInbox()
	sub, err := s.l.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	request, _ := json.Marshal(map[string]any{"batch": scanPull, "max_bytes": max(scanBytes, 2*s.l.nc.MaxPayload()),
		"expires": scanWait, "idle_heartbeat": scanWait / 3})
	var delivered uint64
	for empty := 0; ; {
		if err := s.l.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+s.stream+"."+consumer, inbox, request); err != nil {
			return err
		}
		got, size := 0, 0
		for got < scanPull {
			m, err := s.message(ctx, sub)
			if err != nil {
				return err
			}
			if code := m.Header.Get("Status"); code != "" && m.Reply == "" || code == "100" {
				if _, err := pullEnded(m); err != nil {
					return err
				}
				if code == "100" {
					continue
				}
				break
			}
			at, err := placeOf(m.Reply)
			if err != nil {
				return err
			}
			if delivered++; at.delivered != delivered {
				return fmt.Errorf("delivery %d came after %d", at.delivered, delivered-1)
			}
			if at.sequence > s.to && s.next > s.to {
				return nil
			}
			if at.sequence != s.next {
				return &DamageError{s.stream, s.server, DamageMissing, s.next, 0, fmt.Sprintf("the message at sequence %d is missing or cannot be read%s, although there is one at %d", s.next, s.where(), at.sequence)}
			}
			records, err := s.records(at.sequence, m)
			if err != nil {
				return err
			}
			if err := s.yield(at.sequence, records); err != nil {
				return &stopped{err}
			}
			got, size, s.next = got+1, size+len(m.Data)+len(m.Subject), s.next+1
			if at.sequence == s.to {
				return nil
			}
		}
		if err := s.pace(ctx, size); err != nil {
			return &stopped{err}
		}
		if got > 0 {
			empty = 0
		} else if empty++; empty >= 2 {
			return &DamageError{s.stream, s.server, DamageShort, s.next, 0, fmt.Sprintf("it ends at sequence %d%s, but %d was signed", s.next-1, s.where(), s.to)}
		}
	}
}

// message waits for one; a consumer that is gone is silent, without even a heartbeat.
func (s *scan) message(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, scanWait, errSilent)
	defer cancel()
	linked, unlink := s.l.linked(ctx)
	defer unlink()
	m, err := sub.NextMsgWithContext(linked)
	if err != nil && context.Cause(ctx) == errSilent {
		err = errSilent
	}
	return m, err
}

func (s *scan) records(sequence uint64, m *nats.Msg) ([]events.Record, error) {
	lines := [][]byte{m.Data}
	if s.stream == events.Usage {
		lines = events.Lines(m.Data)
	}
	records := make([]events.Record, len(lines))
	for i, line := range lines {
		e, err := events.Decode(line)
		if _, newer := errors.AsType[*events.UnknownError](err); err != nil && !newer {
			return nil, &DamageError{s.stream, s.server, DamageUnreadable, sequence, i, fmt.Sprintf("the message at sequence %d, line %d,%s is not a fact: %v", sequence, i, s.where(), err)}
		}
		records[i] = events.Record{Stream: s.stream, Sequence: sequence, Line: i, Subject: m.Subject, Body: line, Event: e}
	}
	return records, nil
}
