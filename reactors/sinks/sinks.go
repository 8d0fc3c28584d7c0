// Package sinks publishes facts with Watermill publishers that the operator
// configures: to an HTTP server, to a Redis stream, and to whatever else gets a
// line in the table kinds.
//
// A message's payload is the fact's public envelope, byte for byte as it stands in
// FEED (alerts: in OPS); its UUID is the fact's id, the same in every attempt, so
// that whoever receives it can leave out what they have; its metadata are the
// CloudEvents attributes, under their names with ce-, and type, stream, sequence,
// keyspace, owner and key.
//
// A [Sink] delivers one fact and says whether the other side has taken it. That
// every fact is delivered at least once, in order per key, or goes to DLQ when the other
// side has not taken it for a day, is promised by
// [github.com/keyledger/keyledger/reactors/delivery], which calls it.
//
// It can disappoint: what the other side took without our hearing of it is sent
// again. A sink knows nothing of what its receiver does with a message it has taken.
package sinks

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/keyledger/keyledger/reactors/delivery"
)

// Sink is one configured publisher, a [delivery.Target]. It is safe for concurrent use.
type Sink struct {
	base
	topic     string
	publisher message.Publisher
}

// Name is what the operator calls it: its position is kept under that name.
func (s *Sink) Name() string { return s.base.Name }

// Kind is of its publisher, such as redis_stream.
func (s *Sink) Kind() string { return s.base.Kind }

// Wants says whether the sink was configured for such a fact.
func (s *Sink) Wants(f delivery.Fact) bool {
	if s.Keyspace != "" && s.Keyspace != f.Keyspace || s.Owner != "" && s.Owner != f.Owner {
		return false
	}
	return len(s.Types) == 0 || slices.ContainsFunc(s.Types, func(t string) bool { return matches(t, f.Type) })
}

// matches says whether a type is meant by a setting: key.revoked, or key.* for a family.
func matches(setting, t string) bool {
	family, all := strings.CutSuffix(setting, "*")
	return setting == t || all && strings.HasPrefix(t, family)
}

// Deliver returns nil when the other side has taken the fact. Any error is worth
// another attempt; it names the sink and no secret.
func (s *Sink) Deliver(ctx context.Context, f delivery.Fact) error {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	m := message.NewMessage(f.ID, f.Body)
	m.Metadata = metadata(f)
	m.SetContext(ctx)
	if err := s.publisher.Publish(s.topic, m); err != nil {
		return fmt.Errorf("sink %s: %w", s.Name(), err)
	}
	return nil
}

// attribute is what names of CloudEvents attributes begin with in headers.
const attribute = "ce-"

func metadata(f delivery.Fact) message.Metadata {
	m := message.Metadata{
		"type": f.Type, "stream": f.Stream, "sequence": strconv.FormatUint(f.Sequence, 10),
		"keyspace": f.Keyspace, "owner": f.Owner, "key": f.Key,
	}
	for name, values := range f.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, attribute) && len(values) > 0 {
			m[name] = values[0]
		}
	}
	return m
}

// Close ends the publisher. Deliver fails afterwards.
func (s *Sink) Close() error { return s.publisher.Close() }
