// Package pubsub carries messages between JetStream and Watermill: a
// [Subscriber] and a [Publisher] for reactors, and [Tail], which both stand on.
//
// It promises: one goroutine sends on an output channel and closes it, so
// closing never races with sending. A message is sent, its Ack or Nack awaited,
// then the next one is sent; a Nack brings the same message again in its place,
// so order survives failures. While a handler works, the server is told so and
// does not deliver the message to anybody else. Headers with several values are
// joined with ", ", as HTTP does.
//
// It disappoints: a group has one message in hand at a time, whatever the
// number of its members, because order is worth more to reactors than speed.
// Delivery is at least once: a handler whose process dies, or whose Ack is lost
// with the connection, sees its message again. A handler that never answers
// stops its subscription for ever.
package pubsub

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Metadata that a [Subscriber] adds to say where a message stands. These are
// the names that the server itself uses. A [Publisher] sends no metadata whose
// name starts with "Nats-": such headers are orders to the server, and an order
// given with one message must not be repeated with another.
const (
	MetaStream   = "Nats-Stream"
	MetaSubject  = "Nats-Subject"
	MetaSequence = "Nats-Sequence"
)

const brokerPrefix = "Nats-"

// Sequence is the stream sequence of a message from a [Subscriber].
func Sequence(m *message.Message) (uint64, error) {
	n, err := strconv.ParseUint(m.Metadata.Get(MetaSequence), 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("message %s carries no stream sequence: it does not come from pubsub.Subscriber", m.UUID)
	}
	return n, nil
}

// fromNATS makes the Watermill form of a stored message. Its UUID is what the
// publisher gave, or <stream>/<sequence> where there was none.
func fromNATS(m jetstream.Msg, meta *jetstream.MsgMetadata) *message.Message {
	sequence := strconv.FormatUint(meta.Sequence.Stream, 10)
	id := strings.TrimSuffix(m.Headers().Get(jetstream.MsgIDHeader), "/"+m.Subject())
	if id == "" {
		id = meta.Stream + "/" + sequence
	}
	w := message.NewMessage(id, m.Data())
	for name, values := range m.Headers() {
		if !strings.HasPrefix(name, brokerPrefix) {
			w.Metadata.Set(name, strings.Join(values, ", "))
		}
	}
	w.Metadata.Set(MetaStream, meta.Stream)
	w.Metadata.Set(MetaSubject, m.Subject())
	w.Metadata.Set(MetaSequence, sequence)
	return w
}

// toNATS is the way back. The message id names the subject too: the server
// looks for duplicates in the whole stream, and one message may well be
// published on two of its subjects.
func toNATS(subject string, w *message.Message) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Data = w.Payload
	for name, value := range w.Metadata {
		if !strings.HasPrefix(name, brokerPrefix) {
			m.Header[name] = []string{value}
		}
	}
	if w.UUID != "" {
		m.Header.Set(jetstream.MsgIDHeader, w.UUID+"/"+subject)
	}
	return m
}
