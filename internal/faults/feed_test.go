package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/internal/testenv/check"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/reactors"
)

// inside opens the ledger in this process, with a fold and commands, so that
// facts are appended while every service is being killed.
func inside(t *testing.T, conn *nats.Conn) *commands.Commands {
	t.Helper()
	l, err := ledger.Open(t.Context(), conn, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	ring := keyring.New()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- ring.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the keyring ended with %v", err)
		}
		l.Close()
	})
	<-ring.Ready()
	return &commands.Commands{Ledger: l, Ring: ring}
}

// FEED's writer is killed again and again, with another process standing by,
// while facts are appended, some of them void. FEED holds each that held, once,
// in order.
func TestKillsOfFeedWriters(t *testing.T) {
	t.Parallel()
	b := startBroker(t, t.TempDir(), true)
	s := newStage(t, b.url, testenv.Postgres(t), fmt.Sprintf("monitor: [%q]", b.monitor))
	services := []*service{s.service(), s.service()}
	for _, x := range services {
		x.start()
	}
	s.client(services[0]).prepare()
	conn := b.connect(t)
	c := inside(t, conn)
	end := make(chan struct{})
	var appended sync.WaitGroup
	stop := sync.OnceFunc(func() {
		close(end)
		appended.Wait()
	})
	defer stop()
	facts := 0 // of keys that held
	appended.Go(func() {
		as := commands.Request{Authority: domain.System("test"), Via: "test"}
		for {
			r, err := c.CreateKey(t.Context(), as, "parcelbird", "birdwatch", domain.CreateKey{Name: "CI"})
			for range 5 {
				if err == nil {
					_, err = c.RotateKey(t.Context(), as, r.Key.ID, domain.RotateKey{})
				}
			}
			if err == nil {
				err = void(t.Context(), c, r.Key)
			}
			if err != nil {
				t.Errorf("append: %v", err)
				return
			}
			facts += 6
			select {
			case <-end:
				return
			// Not faster than one writer carries them.
			case <-time.After(rand.N(5 * time.Millisecond)):
			}
		}
	})
	n := times(8, 100)
	writes := 0
	feed := heads(t, conn)
	last := feed()
	for i := range n {
		x := services[i%len(services)]
		if rand.IntN(4) > 0 {
			x.wait()
		}
		<-time.After(rand.N(300 * time.Millisecond))
		x.process.Kill()
		if now := feed(); now > last {
			writes, last = writes+1, now
		}
		x.launch()
	}
	stop()
	for _, x := range services {
		x.wait()
	}
	t.Logf("%d kills, FEED moved between %d of them; %d facts", n, writes, facts)
	if writes == 0 {
		t.Error("FEED never moved between two kills: they proved nothing.")
	}
	invariants(t, b.url, s.postgres, 1, s.seen)

	// The control: one fact carried twice is found.
	for _, x := range services {
		x.process.Kill()
	}
	again(t, conn)
	if said := failing(t, func(t testing.TB) { check.Ledger(t, check.Subject{Conn: conn, Feed: true}) }); !strings.Contains(said, "FEED") {
		t.Errorf("A fact that is in FEED twice is not found: %q", said)
	}
}

// void appends a fact that came too late: another one has its key version. It
// must never reach FEED.
func void(ctx context.Context, c *commands.Commands, k *domain.Key) error {
	e := events.New(events.KeyRevoked{Reason: "too late"}, time.Now())
	e.Keyspace, e.Owner, e.Key, e.KeyVersion, e.Actor = k.Keyspace, k.Owner, k.ID, 1, events.Actor{Type: "system", ID: "test"}
	last, _, err := c.Ledger.Last(ctx, events.Subject(k.Keyspace, k.Owner, k.ID))
	if err == nil {
		_, err = c.Ledger.Append(ctx, last.Sequence, e)
	}
	return err
}

// heads answers how long FEED is.
func heads(t testing.TB, conn *nats.Conn) func() uint64 {
	t.Helper()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return func() uint64 {
		s, err := js.Stream(t.Context(), events.Feed)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().State.LastSeq
	}
}

// again publishes the last message of FEED once more.
func again(t *testing.T, conn *nats.Conn) {
	t.Helper()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), events.Feed)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetMsg(t.Context(), s.CachedInfo().State.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	header := nats.Header{reactors.HeaderLedgerSequence: m.Header[reactors.HeaderLedgerSequence]}
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: m.Subject, Header: header, Data: m.Data}); err != nil {
		t.Fatal(err)
	}
}

// failing runs f, which is to fail, and answers what it said.
func failing(t testing.TB, f func(testing.TB)) string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r.said.String()
}

// recorder is a test that may fail without failing the one it is part of. Its
// methods are for one goroutine.
type recorder struct {
	testing.TB
	said strings.Builder
}

func (r *recorder) Errorf(format string, args ...any) { fmt.Fprintf(&r.said, format+"\n", args...) }
func (r *recorder) Error(args ...any)                 { fmt.Fprintln(&r.said, args...) }
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }
func (r *recorder) Fatal(args ...any)                 { r.Error(args...); runtime.Goexit() }
