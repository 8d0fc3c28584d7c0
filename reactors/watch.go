package reactors

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/reactors/pubsub"
)

// WatchFilter says which facts of FEED to watch. The zero value is all of them
// from now on.
type WatchFilter struct {
	Types    []string // such as key.revoked, or key.* for all about keys; none: all
	Keyspace string   // empty: all
	Owner    string   // empty: all
	Key      string   // empty: all
	After    *uint64  // FEED sequence after which to begin; nil: from now
}

// Fed is a fact as it stands in FEED.
type Fed struct {
	events.Record         // Stream is FEED, Sequence FEED's
	LedgerSequence uint64 // where the fact stands in LEDGER
}

// Watch yields the facts of FEED that match, as they arrive, until ctx ends,
// over reconnects and restarts of the server. It ends with an error for an
// unknown type or a malformed id in the filter, a FEED that is not there or no
// longer holds what was read, and a fact from the future ([*events.UnknownError]).
//
// The beginning is fixed when the iteration starts, before anything is waited
// for: a fact recorded afterwards is seen.
func Watch(ctx context.Context, nc *nats.Conn, filter WatchFilter) iter.Seq2[Fed, error] {
	return func(yield func(Fed, error) bool) {
		subjects, err := filter.subjects()
		if err != nil {
			yield(Fed{}, err)
			return
		}
		o := pubsub.TailOptions{Filter: subjects}
		if filter.After != nil {
			o.After = *filter.After
		} else if o.After, err = head(ctx, nc); err != nil {
			yield(Fed{}, fmt.Errorf("watch: %w", err))
			return
		}
		for m, err := range pubsub.Tail(ctx, nc, events.Feed, o) {
			if err != nil {
				yield(Fed{}, fmt.Errorf("watch: %w", err))
				return
			}
			at, err := placeOf(m)
			if err != nil {
				yield(Fed{}, err)
				return
			}
			e, err := events.Decode(m.Data())
			if err != nil {
				yield(Fed{}, fmt.Errorf("FEED at sequence %d: %w", at.feed, err))
				return
			}
			if !yield(Fed{events.Record{Stream: events.Feed, Sequence: at.feed, Subject: m.Subject(), Body: m.Data(), Event: e}, at.ledger}, nil) {
				return
			}
		}
	}
}

func head(ctx context.Context, nc *nats.Conn) (uint64, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	s, err := js.Stream(ctx, events.Feed)
	if err != nil {
		return 0, fmt.Errorf("stream %s: %w", events.Feed, err)
	}
	return s.CachedInfo().State.LastSeq, nil
}

func (f WatchFilter) subjects() ([]string, error) {
	tail := ""
	for name, token := range map[string]string{"keyspace": f.Keyspace, "owner": f.Owner, "key": f.Key} {
		if strings.ContainsAny(token, ".*> \t\r\n") {
			return nil, fmt.Errorf("watch: %q is no %s: give its id", token, name)
		}
	}
	for _, token := range []string{f.Keyspace, f.Owner, f.Key} {
		if token == "" {
			token = "*"
		}
		tail += "." + token
	}
	types := f.Types
	if len(types) == 0 {
		types = []string{"*.*"}
	}
	var subjects []string
	for _, t := range types {
		if _, known := events.Types()[t]; !known && t != "*.*" && !slices.Contains(families(), t) {
			return nil, fmt.Errorf("watch: %q is no type of fact: use one of %s, or all of a family such as key.*",
				t, strings.Join(slices.Sorted(maps.Keys(events.Types())), ", "))
		}
		subjects = append(subjects, "feed."+t+tail)
	}
	return subjects, nil
}

func families() (all []string) {
	for t := range events.Types() {
		family, _, _ := strings.Cut(t, ".")
		all = append(all, family+".*")
	}
	return all
}

// placeOf is where a message of FEED stands, there and in LEDGER.
func placeOf(m jetstream.Msg) (place, error) {
	meta, err := m.Metadata()
	if err != nil {
		return place{}, fmt.Errorf("message of FEED: %w", err)
	}
	sequence, err := strconv.ParseUint(m.Headers().Get(HeaderLedgerSequence), 10, 64)
	if err != nil {
		return place{}, fmt.Errorf("the message of FEED at %d does not say where in LEDGER its fact stands: something else than keyledger wrote it", meta.Sequence.Stream)
	}
	return place{meta.Sequence.Stream, sequence}, nil
}
