package pubsub_test

import (
	"cmp"
	"log/slog"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/reactors/pubsub"
)

// suite is what tests.TestPubSub runs, function by function, so that each of
// our two ways to read runs all that applies to it and nothing is skipped.
// TestReconnect alone is missing: it restarts a broker by a shell command and
// reads a slice that another of its goroutines still appends to;
// TestServerRestart stands in for it.
var suite = []func(*testing.T, tests.TestContext, tests.PubSubConstructor){
	tests.TestPublishSubscribe,
	tests.TestConcurrentSubscribe,
	tests.TestConcurrentSubscribeMultipleTopics,
	tests.TestResendOnError,
	tests.TestNoAck,
	tests.TestContinueAfterSubscribeClose,
	tests.TestConcurrentClose,
	tests.TestContinueAfterErrors,
	tests.TestPublishSubscribeInOrder,
	tests.TestPublisherClose,
	tests.TestTopic,
	tests.TestMessageCtx,
	tests.TestSubscribeCtx,
}

var features = tests.Features{
	ConsumerGroups:      true,
	GuaranteedOrder:     true,
	Persistent:          true,
	ExactlyOnceDelivery: false, // at least once, see the package
	GenerateTopicFunc:   func(c tests.TestContext) string { return "t." + string(c.TestID) },
}

// Readers of a group share the messages, and a later one goes on where the
// group stands.
func TestConformanceGroup(t *testing.T) {
	nc := stream(t)
	run(t, features, suite, func(t *testing.T) (message.Publisher, message.Subscriber) {
		return pubSub(t, nc, "default")
	})
	t.Run("TestConsumerGroups", func(t *testing.T) {
		t.Parallel()
		tests.TestConsumerGroups(t, tests.TestContext{TestID: tests.NewTestID(), Features: features},
			func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
				return pubSub(t, nc, group)
			})
	})
}

// Readers without a group each see everything from the start.
func TestConformanceAlone(t *testing.T) {
	nc := stream(t)
	alone := features
	alone.ConsumerGroups = false
	alone.NewSubscriberReceivesOldMessages = true
	alone.ForceShort = true // fifty readers of 5,000 messages each prove no more than ten of a hundred
	run(t, alone, append(suite, tests.TestNewSubscriberReceivesOldMessages), func(t *testing.T) (message.Publisher, message.Subscriber) {
		return pubSub(t, nc, "")
	})
}

func run(t *testing.T, f tests.Features, suite []func(*testing.T, tests.TestContext, tests.PubSubConstructor), make tests.PubSubConstructor) {
	for _, test := range suite {
		name := runtime.FuncForPC(reflect.ValueOf(test).Pointer()).Name()
		t.Run(name[strings.LastIndexByte(name, '.')+1:], func(t *testing.T) {
			t.Parallel()
			test(t, tests.TestContext{TestID: tests.NewTestID(), Features: f}, make)
		})
	}
}

func stream(t *testing.T) *nats.Conn {
	t.Helper()
	nc := testenv.Conn(t, testenv.NATS(t))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []jetstream.StreamConfig{
		{Name: "T", Subjects: []string{"t.>"}},
		{Name: "DLQ", Subjects: []string{"dlq.*"}},
	} {
		if _, err := js.CreateStream(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return nc
}

func pubSub(t *testing.T, nc *nats.Conn, group string) (message.Publisher, message.Subscriber) {
	t.Helper()
	p, err := pubsub.NewPublisher(nc, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p, subscriber(t, pubsub.SubscriberOptions{Conn: nc, Stream: "T", Group: group})
}

// subscriber retries fast and gives handlers no time to finish: the suite
// leaves many messages unanswered, and closes readers while messages are on
// their way to them.
func subscriber(t *testing.T, o pubsub.SubscriberOptions) *pubsub.Subscriber {
	t.Helper()
	o.MinBackoff, o.MaxBackoff, o.CloseWait = time.Millisecond, time.Millisecond, -1
	o.AckWait = cmp.Or(o.AckWait, time.Second)
	o.Log = slog.New(slog.DiscardHandler)
	s, err := pubsub.NewSubscriber(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
