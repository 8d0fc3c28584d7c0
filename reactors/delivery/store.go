package delivery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
	"github.com/keyledger/keyledger/events/ledger"
)

const (
	// Bucket is the NATS KV bucket of how far each target is, and of dead letters
	// that were replayed.
	Bucket = "keyledger_delivery"
	// LogBucket is the one of the delivery log, which forgets after LogKept.
	LogBucket = "keyledger_deliveries"
	LogKept   = 30 * 24 * time.Hour
)

// Store is what is kept of deliveries, for whoever delivers and whoever asks. It is
// safe for concurrent use, in any number of processes.
type Store struct {
	ledger *ledger.Ledger
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	log    jetstream.KeyValue
}

// Open opens the buckets, and makes them (replicas: 1 or 3) where there are none.
func Open(ctx context.Context, l *ledger.Ledger, js jetstream.JetStream, replicas int) (*Store, error) {
	s := &Store{ledger: l, js: js}
	for _, b := range []struct {
		to     *jetstream.KeyValue
		config jetstream.KeyValueConfig
	}{
		{&s.kv, jetstream.KeyValueConfig{Bucket: Bucket, Description: "how far deliveries to the outside are"}},
		{&s.log, jetstream.KeyValueConfig{Bucket: LogBucket, Description: "attempts of deliveries to the outside", TTL: LogKept}},
	} {
		b.config.History, b.config.Storage, b.config.Replicas = 1, jetstream.FileStorage, max(replicas, 1)
		kv, err := cluster.OpenBucket(ctx, js, b.config)
		if err != nil {
			return nil, err
		}
		*b.to = kv
	}
	return s, nil
}

// State is how far the deliveries to a target are.
type State struct {
	Reactor string   `json:"reactor"`
	Target  string   `json:"target"`
	Read    Place    `json:"read"`   // all that it wants up to there is delivered, dead, or behind
	Behind  []Behind `json:"behind"` // keys whose next fact waits
	Token   uint64   `json:"token"`  // see [lease.Token]

	Delivered    uint64      `json:"delivered"`     // facts
	Dead         uint64      `json:"dead"`          // dead letters
	Replayed     uint64      `json:"replayed"`      // of them, delivered later
	FailingSince events.Time `json:"failing_since"` // of the first failure since anything arrived; null: the last attempt succeeded
	LastSuccess  events.Time `json:"last_success"`
	LastFailure  events.Time `json:"last_failure"`
	LastError    string      `json:"last_error"` // of it
}

// Behind is a key of which a fact waits to be delivered.
type Behind struct {
	Stream   string      `json:"stream"`
	Key      string      `json:"key"`      // <keyspace>.<owner>.<key>
	Sequence uint64      `json:"sequence"` // of the first fact that waits
	Attempts int         `json:"attempts,omitempty"`
	Since    events.Time `json:"since,omitzero"` // of the first attempt that failed
	Next     events.Time `json:"next,omitzero"`  // attempt
}

func stateKey(reactor, target string) string { return "state." + reactor + "." + target }

// State reads the state of a target; false: there is none yet.
func (s *Store) State(ctx context.Context, reactor, target string) (State, bool, error) {
	st, _, ok, err := s.state(ctx, reactor, target)
	return st, ok, err
}

func (s *Store) state(ctx context.Context, reactor, target string) (st State, revision uint64, ok bool, err error) {
	st.Reactor, st.Target = reactor, target
	value, revision, err := cluster.Get(ctx, s.js.Conn(), Bucket, stateKey(reactor, target))
	if err == nil && value == nil {
		return st, 0, false, nil
	}
	if err == nil {
		err = json.Unmarshal(value, &st)
	}
	if err != nil {
		return st, 0, false, fmt.Errorf("read the state of the deliveries to %s: %w", target, err)
	}
	return st, revision, true, nil
}

func (s *Store) save(ctx context.Context, st *State, behind uint64) (uint64, error) {
	body, err := json.Marshal(st)
	if err != nil {
		return 0, err
	}
	if behind == 0 { // also where there was one that was forgotten
		return s.kv.Create(ctx, stateKey(st.Reactor, st.Target), body)
	}
	return s.kv.Update(ctx, stateKey(st.Reactor, st.Target), body, behind)
}

// States are those of all targets of a reactor, by name; of all reactors where it is
// empty.
func (s *Store) States(ctx context.Context, reactor string) ([]State, error) {
	all := []State{}
	err := s.each(ctx, "state."+cmp.Or(reactor, "*")+".*", func(e jetstream.KeyValueEntry) error {
		var st State
		if err := json.Unmarshal(e.Value(), &st); err != nil {
			return fmt.Errorf("read the state of deliveries at %s: %w", e.Key(), err)
		}
		all = append(all, st)
		return nil
	})
	slices.SortFunc(all, func(a, b State) int {
		return cmp.Or(strings.Compare(a.Reactor, b.Reactor), strings.Compare(a.Target, b.Target))
	})
	return all, err
}

// each yields the values there are of some places.
func (s *Store) each(ctx context.Context, places string, yield func(jetstream.KeyValueEntry) error) error {
	w, err := s.kv.Watch(ctx, places, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("read the bucket %s: %w", Bucket, err)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("read the bucket %s: the connection was closed", Bucket)
			}
			if e == nil {
				return nil
			}
			if err := yield(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Forget drops what is kept of a target that will not come back. Its dead letters and
// its log stay.
func (s *Store) Forget(ctx context.Context, reactor, target string) error {
	if err := s.kv.Purge(ctx, stateKey(reactor, target)); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return fmt.Errorf("forget the state of the deliveries to %s: %w", target, err)
	}
	return nil
}
