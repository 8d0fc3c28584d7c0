package pubsub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/reactors/pubsub"
)

var ways = map[string]string{"group": "g", "alone": ""}

func publish(t *testing.T, nc *nats.Conn, subject string, n int) {
	t.Helper()
	p, err := pubsub.NewPublisher(nc, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := p.Publish(subject, message.NewMessage(fmt.Sprint(i), nil)); err != nil {
			t.Fatal(err)
		}
	}
}

func next(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, open := <-messages:
		if !open {
			t.Fatal("the channel is closed")
		}
		return m
	case <-time.After(20 * time.Second):
		t.Fatal("no message")
		return nil
	}
}

// A Nack brings the same message again before any other.
func TestOrderAfterNack(t *testing.T) {
	for name, group := range ways {
		t.Run(name, func(t *testing.T) {
			nc := stream(t)
			publish(t, nc, "t.a", 30)
			s := subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: group})
			defer s.Close()
			messages, err := s.Subscribe(t.Context(), "t.a")
			if err != nil {
				t.Fatal(err)
			}
			for i := range 30 {
				for try := range 4 {
					m := next(t, messages)
					if n, err := pubsub.Sequence(m); err != nil || n != uint64(i+1) || m.UUID != fmt.Sprint(i) {
						t.Fatalf("message %s at %d, %v, want %d in try %d", m.UUID, n, err, i, try)
					}
					if try < 3 {
						m.Nack()
					} else {
						m.Ack()
					}
				}
			}
		})
	}
}

// A server that restarts again and again while messages come and go loses
// none and changes no order; the suite's own TestReconnect wants a shell.
func TestServerRestart(t *testing.T) {
	for name, group := range ways {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			listen := testenv.FreeAddress(t)
			at := func(c *embedded.NATSConfig) { c.Listen = listen }
			server := testenv.NATS(t, testenv.InDir(dir), at)
			url := server.ClientURL()
			nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "T", Subjects: []string{"t.>"}}); err != nil {
				t.Fatal(err)
			}
			s := subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: group, AckWait: time.Second})
			defer s.Close()
			messages, err := s.Subscribe(t.Context(), "t.a")
			if err != nil {
				t.Fatal(err)
			}
			const total, every = 400, 100
			restart := make(chan struct{})
			var publishing sync.WaitGroup
			defer publishing.Wait()
			publishing.Go(func() {
				p, err := pubsub.NewPublisher(nc, time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range total {
					for p.Publish("t.a", message.NewMessage(fmt.Sprint(i), nil)) != nil {
						if t.Context().Err() != nil {
							return
						}
					}
					if i%every == every/2 {
						restart <- struct{}{}
					}
				}
			})
			publishing.Go(func() {
				for range total / every {
					<-restart
					server.Shutdown()
					server = testenv.NATS(t, testenv.InDir(dir), at)
				}
			})
			// At least once: a message may come again, none may be missing.
			for want := 0; want < total; {
				m := next(t, messages)
				switch m.UUID {
				case fmt.Sprint(want):
					want++
				case fmt.Sprint(want - 1):
				default:
					t.Fatalf("message %s came where %d was due", m.UUID, want)
				}
				m.Ack()
			}
		})
	}
}

// After its attempts a message goes to the dead letters with everything needed
// to understand it, for each reactor that could not deliver it, and what
// follows goes on.
func TestDeadLetter(t *testing.T) {
	nc := stream(t)
	m := nats.NewMsg("t.a")
	m.Header = nats.Header{"Ledger-Type": {"key.revoked"}, "Nats-Msg-Id": {"evt_1"}}
	m.Data = []byte("body")
	if err := nc.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
	publish(t, nc, "t.a", 1)
	letters, err := nc.SubscribeSync("dlq.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, reactor := range []string{"webhooks", "sinks"} {
		s := subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: reactor, DeadLetter: "dlq." + reactor, Attempts: 3})
		router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
		if err != nil {
			t.Fatal(err)
		}
		router.AddMiddleware(pubsub.KeepReason)
		tries, delivered := 0, make(chan string, 1)
		router.AddConsumerHandler(reactor, "t.a", s, func(m *message.Message) error {
			if m.UUID == "evt_1" {
				tries++
				return errors.New("the other side\nsaid no")
			}
			delivered <- m.UUID
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = router.Run(ctx) })
		select {
		case id := <-delivered:
			if id != "0" || tries != 3 {
				t.Errorf("%s: message %s delivered after %d tries of the first", reactor, id, tries)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("what follows a dead letter is not delivered")
		}
		cancel()
		running.Wait()
		letter, err := letters.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if letter.Subject != "dlq."+reactor || string(letter.Data) != "body" {
			t.Errorf("letter %s: %s", letter.Subject, letter.Data)
		}
		for name, want := range map[string]string{
			"Ledger-Type": "key.revoked", pubsub.HeaderReason: "the other side said no", pubsub.HeaderAttempts: "3",
			pubsub.HeaderStream: "T", pubsub.HeaderSubject: "t.a", pubsub.HeaderSequence: "1",
		} {
			if got := letter.Header.Get(name); got != want {
				t.Errorf("%s: header %s is %q, want %q", reactor, name, got, want)
			}
		}
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := js.Stream(t.Context(), "DLQ"); err != nil || s.CachedInfo().State.Msgs != 2 {
		t.Errorf("the dead letters of two reactors are not two: %v", err)
	}
}

// A handler may work for longer than AckWait; nobody else gets its message.
func TestInProgress(t *testing.T) {
	nc := stream(t)
	publish(t, nc, "t.a", 1)
	beats, err := nc.SubscribeSync("$JS.ACK.T.>")
	if err != nil {
		t.Fatal(err)
	}
	var both [2]<-chan *message.Message
	for i := range both {
		s := subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: "g", AckWait: 150 * time.Millisecond})
		defer s.Close()
		if both[i], err = s.Subscribe(t.Context(), "t.a"); err != nil {
			t.Fatal(err)
		}
	}
	var m *message.Message
	select {
	case m = <-both[0]:
	case m = <-both[1]:
	}
	for range 9 { // three times AckWait
		beat, err := beats.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if string(beat.Data) != "+WPI" {
			t.Errorf("the server was told %q", beat.Data)
		}
	}
	select {
	case again := <-both[0]:
		t.Errorf("%s came again", again.UUID)
	case again := <-both[1]:
		t.Errorf("%s came again", again.UUID)
	default:
	}
	m.Ack()
	if ack, err := beats.NextMsg(10 * time.Second); err != nil || string(ack.Data) != "+ACK" && string(ack.Data) != "+WPI" {
		t.Errorf("after the Ack the server was told %v, %v", ack, err)
	}
}

// Headers with several values, and orders to the server among them.
func TestHeaders(t *testing.T) {
	for name, group := range ways {
		t.Run(name, func(t *testing.T) {
			nc := stream(t)
			m := nats.NewMsg("t.a")
			m.Header = nats.Header{"X": {"one", "two"}, "Empty": {}, "Nats-Expected-Last-Sequence": {"0"}}
			if _, err := nc.RequestMsg(m, 5*time.Second); err != nil {
				t.Fatal(err)
			}
			s := subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: group})
			defer s.Close()
			messages, err := s.Subscribe(t.Context(), "t.*")
			if err != nil {
				t.Fatal(err)
			}
			got := next(t, messages)
			if got.Metadata.Get("X") != "one, two" || got.UUID != "T/1" || got.Metadata.Get(pubsub.MetaSubject) != "t.a" {
				t.Errorf("message %q with %v", got.UUID, got.Metadata)
			}
			// Passed on, the expectation that came with it is not repeated.
			p, err := pubsub.NewPublisher(nc, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Publish("t.b", got); err != nil {
				t.Fatal(err)
			}
			got.Ack()
			passed := next(t, messages)
			passed.Ack()
			if passed.Metadata.Get("X") != "one, two" || passed.Metadata.Get(pubsub.MetaSequence) != "2" || passed.UUID != "T/1" {
				t.Errorf("passed on: %q with %v", passed.UUID, passed.Metadata)
			}
		})
	}
}

// Subscribers that close while messages are sent, acknowledged and refused
// neither panic nor hang, and their channels close.
func TestCloseUnderLoad(t *testing.T) {
	for name, group := range ways {
		t.Run(name, func(t *testing.T) {
			nc := stream(t)
			publish(t, nc, "t.a", 100)
			var all sync.WaitGroup
			for range 20 {
				s := subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: group})
				for range 3 {
					messages, err := s.Subscribe(t.Context(), "t.a")
					if err != nil {
						t.Fatal(err)
					}
					all.Go(func() {
						for m := range messages {
							switch rand.IntN(3) {
							case 0:
								m.Ack()
							case 1:
								m.Nack()
							}
						}
					})
				}
				for range 2 {
					all.Go(func() {
						if err := s.Close(); err != nil {
							t.Error(err)
						}
					})
				}
			}
			all.Wait()
		})
	}
}

// Reading stops with a reason when what it stands on is gone.
func TestGone(t *testing.T) {
	t.Run("a group's place", func(t *testing.T) {
		nc := stream(t)
		s := subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: "g"})
		defer s.Close()
		publish(t, nc, "t.a", 1)
		messages, err := s.Subscribe(t.Context(), "t.a")
		if err != nil {
			t.Fatal(err)
		}
		next(t, messages).Ack()
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		for name := range names(t, js) {
			if err := js.DeleteConsumer(t.Context(), "T", name); err != nil {
				t.Fatal(err)
			}
		}
		if _, open := <-messages; open || s.Err() == nil {
			t.Errorf("open %v, Err = %v", open, s.Err())
		}
	})
	t.Run("the stream's end", func(t *testing.T) {
		nc := stream(t)
		publish(t, nc, "t.a", 3)
		s := subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", After: 4})
		defer s.Close()
		messages, err := s.Subscribe(t.Context(), "t.a")
		if err != nil {
			t.Fatal(err)
		}
		_, open := <-messages
		if gap, ok := errors.AsType[*pubsub.GapError](s.Err()); open || !ok || gap.Last != 3 || gap.After != 4 {
			t.Errorf("open %v, Err = %v", open, s.Err())
		}
	})
	t.Run("the stream", func(t *testing.T) {
		nc := stream(t)
		for _, err := range pubsub.Tail(t.Context(), nc, "NONE", pubsub.TailOptions{Log: slog.New(slog.DiscardHandler)}) {
			if !errors.Is(err, jetstream.ErrStreamNotFound) {
				t.Errorf("Tail = %v", err)
			}
		}
	})
}

func names(t *testing.T, js jetstream.JetStream) map[string]bool {
	t.Helper()
	s, err := js.Stream(t.Context(), "T")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for name := range s.ConsumerNames(t.Context()).Name() {
		all[name] = true
	}
	return all
}

func TestRefusals(t *testing.T) {
	nc := stream(t)
	if _, err := pubsub.NewSubscriber(pubsub.SubscriberOptions{Stream: "T"}); err == nil {
		t.Error("a subscriber without a connection")
	}
	if _, err := pubsub.NewSubscriber(pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: "a.b"}); err == nil {
		t.Error("a group that no consumer can be named after")
	}
	p, s := pubSub(t, nc, "g")
	if p.Close() != nil || s.Close() != nil {
		t.Error("Close failed")
	}
	if err := p.Publish("t.a", message.NewMessage("1", nil)); !errors.Is(err, pubsub.ErrClosed) {
		t.Errorf("Publish after Close = %v", err)
	}
	if _, err := s.Subscribe(t.Context(), "t.a"); !errors.Is(err, pubsub.ErrClosed) {
		t.Errorf("Subscribe after Close = %v", err)
	}
}
