package pubsub

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publisher publishes to JetStream: the topic is the subject, metadata become
// headers, and the message's UUID with the subject becomes Nats-Msg-Id, so that
// publishing again within the stream's duplicate window stores nothing twice.
type Publisher struct {
	js      jetstream.JetStream
	timeout time.Duration

	// mu guards closed; publishing holds it for reading, so that Close returns
	// after the last publish under way.
	mu     sync.RWMutex
	closed bool
}

// NewPublisher returns a publisher on nc, which stays the caller's. A publish
// that was not acknowledged after timeout (zero: 5 s) has an unknown outcome.
func NewPublisher(nc *nats.Conn, timeout time.Duration) (*Publisher, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("publisher: %w", err)
	}
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	return &Publisher{js: js, timeout: timeout}, nil
}

// Publish stores the messages in their order and returns when each is
// acknowledged. At the first error it stops: what follows was not published,
// and the one named in the error may have been.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return fmt.Errorf("publish on %s: %w", topic, ErrClosed)
	}
	for _, w := range messages {
		ctx, cancel := context.WithTimeout(w.Context(), p.timeout)
		_, err := p.js.PublishMsg(ctx, toNATS(topic, w))
		cancel()
		if err != nil {
			return fmt.Errorf("publish message %s on %s: %w", w.UUID, topic, err)
		}
	}
	return nil
}

// Close waits for the publishes under way and refuses later ones.
func (p *Publisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

// ErrClosed says that a publisher or subscriber was used after Close.
var ErrClosed = errors.New("closed")
