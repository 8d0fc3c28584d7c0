// Package subscribers lets other services follow FEED over NATS, each its own part of it:
// one owner, one keyspace, or all.
//
// It promises that a subscriber's credentials reach three things and nothing else: the
// facts of its part as they are republished on live, the messages of one durable
// consumer on FEED that holds no others, and the acknowledgements of that consumer. The
// server keeps it to them by an account of its own that imports nothing more ([Config]):
// inside the account of the streams even who may only ask for its own messages may have
// the answer sent to any subject, and so written into any stream. Who subscribes is
// recorded on OPS; the consumers are made of that, whatever was lost.
//
// It can disappoint: the server's configuration is not this program's to change. A
// subscriber works when its block has been put there, and stops working when it has been
// taken out: until then a removed one still hears live, though its consumer is gone.
package subscribers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

// Subscriber is a service outside that follows FEED.
type Subscriber struct {
	Name      string       `json:"name" doc:"Also of its account and its consumer." example:"billing"`
	Keyspace  string       `json:"keyspace" doc:"The one whose facts it sees; empty: all." example:"parcelbird"`
	Owner     string       `json:"owner" doc:"The one whose facts it sees; empty: all of the keyspace." example:"org_1"`
	PublicKey string       `json:"public_key" doc:"Of the NATS user, an nkey." example:"UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"`
	Consumer  string       `json:"consumer" doc:"The durable consumer on FEED." example:"subscriber-billing"`
	Subject   string       `json:"subject" doc:"What it sees of FEED." example:"feed.*.*.parcelbird.org_1.*"`
	Live      string       `json:"live" doc:"The same as it happens, without a history." example:"live.*.*.parcelbird.org_1.*"`
	After     uint64       `json:"after" doc:"The sequence of FEED that its consumer began behind."`
	AddedAt   events.Time  `json:"added_at"`
	AddedBy   events.Actor `json:"added_by"`

	fact string // id of the event that added it
}

// By says who acts, and how.
type By struct {
	Actor     events.Actor
	Via       string
	RequestID string
}

// Subscribers are those that there are. Ledger and JetStream are required.
type Subscribers struct {
	Ledger    *ledger.Ledger
	JetStream jetstream.JetStream

	// Apply, if any, puts a configuration into the server at once.
	Apply func(config string) error

	// Every is how often Run looks after the consumers while nothing is recorded; 0: a
	// minute.
	Every time.Duration

	Log *slog.Logger     // nil: slog.Default()
	Now func() time.Time // nil: time.Now

	mu   sync.Mutex // guards what follows
	at   uint64     // sequence of OPS
	list []Subscriber

	applying sync.Mutex // consumers and configuration are put right by one at a time
	applied  *string    // the configuration that the server has; nil: not known
}

const (
	settleTime = 5 * time.Second

	prefix   = "subscriber-"
	metadata = "keyledger.subscriber" // of a consumer: the id of the event it was made for
)

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func (s *Subscribers) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Subscribers) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.Default()
}

// read folds OPS to its end.
func (s *Subscribers) read(ctx context.Context) (at uint64, list []Subscriber, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	head, err := s.Ledger.Head(ctx, events.Ops)
	if err != nil {
		return 0, nil, err
	}
	if head > s.at {
		// These acts are about no key.
		for r, err := range s.Ledger.Read(ctx, events.Ops, s.at+1, head, "ops.*.*._") {
			if err != nil {
				return 0, nil, fmt.Errorf("read the acts in %s: %w", events.Ops, err)
			}
			s.apply(&r)
		}
		s.at = head
	}
	return s.at, slices.Clone(s.list), nil
}

func (s *Subscribers) apply(r *events.Record) {
	e := &r.Event
	s.at = r.Sequence
	switch d := e.Data.(type) {
	case events.SubscriberAdded:
		x := Subscriber{Name: d.Name, Keyspace: e.Keyspace, Owner: e.Owner, PublicKey: d.PublicKey, Consumer: prefix + d.Name,
			After: d.After, AddedAt: e.Time, AddedBy: e.Actor, fact: e.ID}
		x.Subject = "feed.*.*." + x.scope()
		x.Live = "live.*.*." + x.scope()
		s.list = append(s.list, x)
	case events.SubscriberRemoved:
		s.list = slices.DeleteFunc(s.list, func(x Subscriber) bool { return x.Name == d.Name })
	}
}

// scope are the tokens of subjects behind the type.
func (x *Subscriber) scope() string {
	switch {
	case x.Keyspace == "":
		return ">"
	case x.Owner == "":
		return x.Keyspace + ".>"
	}
	return x.Keyspace + "." + x.Owner + ".*"
}

// List are those that there are, oldest first.
func (s *Subscribers) List(ctx context.Context) ([]Subscriber, error) {
	_, list, err := s.read(ctx)
	return list, err
}

func invalid(path, message, fix string) error {
	return &domain.Refusal{Kind: domain.Invalid, Code: "INVALID", Detail: "The input is not valid.", Problems: []domain.Problem{{Path: path, Message: message, Fix: fix}}}
}

// errAlready ends a decision: it is so, and nothing is recorded.
var errAlready = errors.New("it is so already")

// Add lets a service follow FEED from behind a sequence of it: 0 is from the beginning.
// It makes the consumer, and applied says whether the server lets the service in now.
// The same again changes nothing. An error of the consumer's making leaves the subscriber
// added: [Subscribers.Run] makes it up.
func (s *Subscribers) Add(ctx context.Context, by By, name, keyspace, owner, publicKey string, after uint64) (x Subscriber, applied bool, err error) {
	switch {
	case !nameForm.MatchString(name):
		return x, false, invalid("name", "is not a name", "1 to 32 of a-z, 0-9 and -, not beginning with -")
	case owner != "" && keyspace == "":
		return x, false, invalid("keyspace", "is missing", "the keyspace of the owner")
	case !nkeys.IsValidPublicUserKey(publicKey):
		return x, false, invalid("public_key", "is not the public key of a NATS user", "what `nk -pubout` prints: it begins with U; `keyledger subscribers add` makes one")
	}
	e, err := s.record(ctx, by, func(list []Subscriber) (events.Envelope, error) {
		for _, x := range list {
			if x.Name == name && x.PublicKey == publicKey && x.Keyspace == keyspace && x.Owner == owner {
				return events.Envelope{ID: x.fact}, errAlready
			}
			if x.Name == name || x.PublicKey == publicKey {
				return events.Envelope{}, &domain.Refusal{Kind: domain.Conflict, Code: "SUBSCRIBER_EXISTS",
					Detail: fmt.Sprintf("The subscriber %s has this name or this public key: remove it first, or choose others.", x.Name)}
			}
		}
		e := events.New(events.SubscriberAdded{Name: name, PublicKey: publicKey, After: after}, s.now())
		e.Keyspace, e.Owner = keyspace, owner
		return e, nil
	})
	if err != nil && !errors.Is(err, errAlready) {
		return x, false, err
	}
	_, list, err := s.read(ctx)
	if err != nil {
		return x, false, err
	}
	for _, x = range list {
		if x.fact == e.ID {
			return x, s.Apply != nil, s.settle(ctx)
		}
	}
	return Subscriber{}, false, errors.New("the subscriber was removed meanwhile")
}

// Remove ends a subscriber, and its consumer.
func (s *Subscribers) Remove(ctx context.Context, by By, name string) (x Subscriber, applied bool, err error) {
	_, err = s.record(ctx, by, func(list []Subscriber) (events.Envelope, error) {
		i := slices.IndexFunc(list, func(x Subscriber) bool { return x.Name == name })
		if i < 0 {
			return events.Envelope{}, &domain.Refusal{Kind: domain.NotFound, Code: "SUBSCRIBER_NOT_FOUND", Detail: "There is no subscriber of this name."}
		}
		x = list[i]
		e := events.New(events.SubscriberRemoved{Name: name}, s.now())
		e.Keyspace, e.Owner = x.Keyspace, x.Owner
		return e, nil
	})
	if err != nil {
		return x, false, err
	}
	return x, s.Apply != nil, s.settle(ctx)
}

// record appends the act that decide makes of the subscribers that there are, as the next
// thing in OPS; whatever else came first is decided with.
func (s *Subscribers) record(ctx context.Context, by By, decide func([]Subscriber) (events.Envelope, error)) (events.Envelope, error) {
	for {
		at, list, err := s.read(ctx)
		if err != nil {
			return events.Envelope{}, err
		}
		e, err := decide(list)
		if err != nil {
			return e, err
		}
		e.Actor, e.Via, e.RequestID = by.Actor, by.Via, by.RequestID
		_, err = s.Ledger.AppendOpsAfter(ctx, at, e)
		if errors.Is(err, ledger.ErrConflict) && ctx.Err() == nil {
			continue
		}
		return e, err
	}
}

// settle makes the consumers and the configuration what OPS says.
func (s *Subscribers) settle(ctx context.Context) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	// A cluster may leave the making of a consumer unanswered while one of its name is
	// being removed: whoever waits without an end waits for ever.
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	_, list, err := s.read(ctx)
	if err != nil {
		return err
	}
	feed, err := s.JetStream.Stream(ctx, events.Feed)
	if err != nil {
		return fmt.Errorf("stream %s: %w", events.Feed, err)
	}
	missing := slices.Clone(list)
	consumers := feed.ListConsumers(ctx)
	var gone []string
	for c := range consumers.Info() {
		if !strings.HasPrefix(c.Name, prefix) || c.Config.Metadata[metadata] == "" {
			continue
		}
		i := slices.IndexFunc(missing, func(x Subscriber) bool { return x.Consumer == c.Name && x.fact == c.Config.Metadata[metadata] })
		if i < 0 {
			gone = append(gone, c.Name)
		} else {
			missing = slices.Delete(missing, i, i+1)
		}
	}
	if err := consumers.Err(); err != nil {
		return fmt.Errorf("consumers of %s: %w", events.Feed, err)
	}
	// Several processes may be at it: what one has done is done.
	for _, name := range gone {
		if err := feed.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("remove consumer %s: %w", name, err)
		}
	}
	for _, x := range missing {
		if _, err := feed.CreateOrUpdateConsumer(ctx, x.consumer()); err != nil {
			return fmt.Errorf("make consumer %s: %w", x.Consumer, err)
		}
	}
	if config := Config(list); s.Apply != nil && (s.applied == nil || *s.applied != config) {
		if err := s.Apply(config); err != nil {
			return fmt.Errorf("configure the subscribers: %w", err)
		}
		s.applied = &config
	}
	return nil
}

func (x *Subscriber) consumer() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: x.Consumer, Description: "keyledger: of the subscriber " + x.Name,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: x.After + 1,
		AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: x.Subject, MaxWaiting: 64,
		Metadata: map[string]string{metadata: x.fact},
	}
}

// Run makes up what was left undone, by a process that died or in streams that were
// restored, and keeps on doing so, for what other processes record too, until ctx ends.
func (s *Subscribers) Run(ctx context.Context) {
	for pause := time.Second; ctx.Err() == nil; pause = min(2*pause, time.Minute) {
		began := s.now()
		err := s.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			pause = time.Second / 2
			continue
		}
		if s.now().Sub(began) > time.Minute {
			pause = time.Second
		}
		s.log().WarnContext(ctx, "the consumers of subscribers are not looked after, which is tried again", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// look puts everything right once, and again with each act that is recorded until it is
// time to look anew: a consumer may be lost at any time, and a list that was asked for
// while a node of the server was behind may still name one.
func (s *Subscribers) look(ctx context.Context) error {
	at, err := s.Ledger.Head(ctx, events.Ops)
	if err == nil {
		err = s.settle(ctx)
	}
	if err != nil {
		return err
	}
	round, cancel := context.WithTimeout(ctx, cmp.Or(s.Every, time.Minute))
	defer cancel()
	for r, err := range s.Ledger.Follow(round, events.Ops, at) {
		if err != nil {
			if round.Err() != nil {
				break
			}
			return err
		}
		switch r.Event.Data.(type) {
		case events.SubscriberAdded, events.SubscriberRemoved:
			if err := s.settle(ctx); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}
