package reactors

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/reactors/pubsub"
)

// world is a server with a ledger, the ring that knows what is void, and a
// writer of facts that remembers which of them held.
type world struct {
	t      testing.TB
	server *embedded.NATS
	nc     *nats.Conn
	ledger *ledger.Ledger
	ring   *keyring.Ring

	versions map[string]uint64 // of each key
	last     map[string]uint64 // sequence of each key's last fact, void or not
	held     []fed
}

// fed is what FEED must hold of a fact.
type fed struct {
	sequence uint64 // in LEDGER
	id       string
}

func newWorld(t testing.TB, opts ...testenv.Option) *world {
	t.Helper()
	w := &world{t: t, server: testenv.NATS(t, opts...), ring: keyring.New(), versions: map[string]uint64{}, last: map[string]uint64{}}
	w.nc = testenv.Conn(t, w.server)
	w.ledger = openLedger(t, w.nc)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { _ = w.ring.Run(ctx, w.ledger) }) // its end would show as a feed that waits
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

func openLedger(t testing.TB, nc *nats.Conn) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (w *world) write(key string, version uint64, data events.Payload) fed {
	w.t.Helper()
	e := events.New(data, time.Now())
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = "promptick", "proj_1", key, version
	sequence, err := w.ledger.Append(w.t.Context(), w.last[key], e)
	if err != nil {
		w.t.Fatal(err)
	}
	w.last[key] = sequence
	return fed{sequence, e.ID}
}

// fact writes the next fact of a key; it holds.
func (w *world) fact(key string) fed {
	w.t.Helper()
	w.versions[key]++
	var data events.Payload = events.KeyUpdated{Name: new("n")}
	if w.versions[key] == 1 {
		data = events.KeyCreated{Name: key, Environment: "live", Secret: events.Secret{SHA256: hash(key), First: "sk_", Last: "abcd"}}
	}
	f := w.write(key, w.versions[key], data)
	w.held = append(w.held, f)
	return f
}

// void writes a fact whose version is taken.
func (w *world) void(key string) fed {
	w.t.Helper()
	return w.write(key, w.versions[key], events.KeyRevoked{Reason: "void"})
}

func (w *world) revoke(key string) fed {
	w.t.Helper()
	w.versions[key]++
	f := w.write(key, w.versions[key], events.KeyRevoked{Reason: "test"})
	w.held = append(w.held, f)
	return f
}

func hash(key string) string { return fmt.Sprintf("%064x", []byte(key)) }

// process is one service process that runs a feed: a connection and a ledger of
// its own.
type process struct {
	feed   *Feed
	nc     *nats.Conn
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // once ended is closed
}

func (w *world) start(change ...func(*Feed)) *process {
	w.t.Helper()
	nc, err := w.server.Conn()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	f, err := NewFeed(FeedOptions{
		Ledger: openLedger(w.t, nc), Conn: nc, Void: w.ring.Void,
		Takeover: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range change {
		c(f)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{feed: f, nc: nc, cancel: cancel, ended: make(chan struct{})}
	go func() {
		p.err = f.Run(ctx)
		close(p.ended)
	}()
	w.t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	p.cancel()
	<-p.ended
}

// cut loses the connection with whatever is under way, then kills.
func (p *process) cut() {
	p.nc.Close()
	p.kill()
}

// feedHolds reads FEED until it holds the last of want and says how it differs.
func (w *world) feedHolds(want []fed) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	var got []fed
	for f, err := range Watch(ctx, w.nc, WatchFilter{After: new(uint64(0))}) {
		if err != nil {
			return err
		}
		i := len(got)
		got = append(got, fed{f.LedgerSequence, f.Event.ID})
		if i >= len(want) || got[i] != want[i] {
			return fmt.Errorf("FEED at %d holds LEDGER's %v, want %v", f.Sequence, got[i], want[min(i, len(want)-1):min(i+1, len(want))])
		}
		if len(got) == len(want) {
			head, err := w.ledger.Head(ctx, events.Feed)
			if err == nil && head != uint64(len(want)) {
				err = fmt.Errorf("FEED holds %d facts, want %d", head, len(want))
			}
			return err
		}
	}
	return fmt.Errorf("FEED holds %d facts, want %d", len(got), len(want))
}

// A hundred deaths of the writer, by cancellation and by loss of the
// connection, with a second process that competes all the time, lose no fact,
// repeat none and change no order.
func TestFeedSurvivesItsWriters(t *testing.T) {
	if err := deaths(t, 100); err != nil {
		t.Error(err)
	}
}

// The positive control: the same run with writes that expect nothing of FEED
// goes wrong, so the test above can fail.
func TestFeedNeedsItsExpectation(t *testing.T) {
	err := deaths(t, 20, func(f *Feed) {
		js, err := jetstream.New(f.Conn)
		if err != nil {
			t.Fatal(err)
		}
		f.append = func(ctx context.Context, _ uint64, batch []ledger.FeedEntry) (first uint64, err error) {
			for i, x := range batch {
				body, err := events.Encode(events.Public(x.Event))
				if err != nil {
					return 0, err
				}
				m := nats.NewMsg(events.FeedSubject(x.Event))
				m.Data = body
				m.Header.Set(HeaderLedgerSequence, strconv.FormatUint(x.Ledger, 10))
				ack, err := js.PublishMsg(ctx, m)
				if err != nil {
					return 0, err
				}
				if i == 0 {
					first = ack.Sequence
				}
			}
			return first, nil
		}
	})
	if err == nil {
		t.Error("FEED is right although nothing protects it: the test proves nothing")
	}
}

func deaths(t *testing.T, kills int, change ...func(*Feed)) error {
	w := newWorld(t)
	running := []*process{w.start(change...), w.start(change...)}
	for range kills {
		for range 1 + rand.IntN(8) {
			key := fmt.Sprintf("key_%d", rand.IntN(5))
			if w.versions[key] > 0 && rand.IntN(6) == 0 {
				w.void(key)
			} else {
				w.fact(key)
			}
		}
		i := rand.IntN(2)
		if rand.IntN(2) == 0 {
			running[i].kill()
		} else {
			running[i].cut()
		}
		running[i] = w.start(change...)
	}
	w.void("key_0")
	w.fact("key_0")
	err := w.feedHolds(w.held)
	for _, p := range running {
		select {
		case <-p.ended:
			err = errors.Join(err, fmt.Errorf("a feed ended by itself: %w", p.err))
		default:
		}
	}
	return err
}

// While two stand by, the death of the writer costs no fact: one of them goes on.
func TestFeedTakeover(t *testing.T) {
	w := newWorld(t)
	all := []*process{w.start(), w.start(), w.start()}
	for len(all) > 0 {
		for range 20 {
			w.fact("key_1")
		}
		if err := w.feedHolds(w.held); err != nil {
			t.Fatal(err)
		}
		writer := -1
		for i, p := range all {
			if s := p.feed.Status(); s.Writing && s.Feed == uint64(len(w.held)) {
				writer = i
			}
		}
		if writer < 0 {
			// Its own knowledge may be an instant behind FEED's.
			continue
		}
		all[writer].kill()
		all = append(all[:writer], all[writer+1:]...)
	}
}

// When a batch is cut off in its middle, FEED has all of it or none.
func TestFeedBatchIsWhole(t *testing.T) {
	inside, err := cuts(t, nil)
	if err != nil {
		t.Error(err)
	}
	if inside > 0 {
		t.Errorf("FEED ended inside a batch %d times", inside)
	}
}

// The positive control: the same facts published one by one end in the middle.
func TestFeedBatchCutsHit(t *testing.T) {
	inside, err := cuts(t, func(f *Feed) {
		whole := f.append
		f.append = func(ctx context.Context, last uint64, batch []ledger.FeedEntry) (uint64, error) {
			for i := range batch {
				if _, err := whole(ctx, last+uint64(i), batch[i:i+1]); err != nil {
					return 0, err
				}
			}
			return last + 1, nil
		}
	})
	if err != nil {
		t.Error(err)
	}
	if inside == 0 {
		t.Error("no cut fell inside a batch: the test above proves nothing")
	}
}

// cuts gives a long history to one process after another, whose connection ends
// somewhere in its first batch, and says how often FEED then ended inside it.
func cuts(t *testing.T, change func(*Feed)) (inside int, err error) {
	w := newWorld(t, testenv.Listening())
	for i := range 4 * mostFacts {
		w.fact(fmt.Sprintf("key_%d", i%7))
		if i%50 == 0 {
			w.void("key_0")
		}
	}
	head := uint64(0)
	for try := 0; try < 10 && head+mostFacts < uint64(len(w.held)); try++ {
		var cut cutter
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		nc, err := nats.Connect(w.server.ClientURL(), nats.SetCustomDialer(&cut), nats.NoReconnect(),
			nats.ClosedHandler(func(*nats.Conn) { cancel() }), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			return 0, err
		}
		f, err := NewFeed(FeedOptions{Ledger: openLedger(t, nc), Conn: nc, Void: w.ring.Void, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return 0, err
		}
		if change != nil {
			change(f)
		}
		whole := f.append
		var from, to uint64
		f.append = func(ctx context.Context, last uint64, batch []ledger.FeedEntry) (uint64, error) {
			if len(batch) >= batchFrom && to == 0 {
				from, to = last, last+uint64(len(batch))
				cut.after(rand.Int64N(int64(len(batch)) * 500)) // a fact takes more bytes
			}
			return whole(ctx, last, batch)
		}
		if err := f.Run(ctx); !errors.Is(err, context.Canceled) {
			return 0, err
		}
		nc.Close()
		if head, err = w.ledger.Head(t.Context(), events.Feed); err != nil {
			return 0, err
		}
		if from < head && head < to {
			inside++
		}
	}
	w.start()
	return inside, w.feedHolds(w.held)
}

// cutter dials connections that end when a number of bytes was sent.
type cutter struct {
	net.Conn
	armed atomic.Bool
	left  atomic.Int64
}

func (c *cutter) Dial(network, address string) (_ net.Conn, err error) {
	c.Conn, err = net.Dial(network, address)
	return c, err
}

func (c *cutter) after(bytes int64) {
	c.left.Store(bytes)
	c.armed.Store(true)
}

func (c *cutter) Write(b []byte) (int, error) {
	if !c.armed.Load() {
		return c.Conn.Write(b)
	}
	left := c.left.Add(-int64(len(b)))
	if left >= 0 {
		return c.Conn.Write(b)
	}
	n, _ := c.Conn.Write(b[:max(0, left+int64(len(b)))])
	c.Conn.Close()
	return n, net.ErrClosed
}

// FEED never shows the hash of a secret, and says what CloudEvents say.
func TestFeedIsPublic(t *testing.T) {
	w := newWorld(t)
	created := w.fact("key_1")
	w.start()
	if err := w.feedHolds(w.held); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(w.nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), events.Feed)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(m.Data, []byte(hash("key_1"))) || bytes.Contains(m.Data, []byte("sha256")) {
		t.Errorf("FEED holds the hash of a secret: %s", m.Data)
	}
	if m.Subject != "feed.key.created.promptick.proj_1.key_1" {
		t.Errorf("subject %s", m.Subject)
	}
	if m.Header.Get("ce-id") != created.id || m.Header.Get(HeaderLedgerSequence) != "1" {
		t.Errorf("headers %v", m.Header)
	}
}

// A subscriber of plain NATS, without JetStream, is told of a revocation.
func TestFeedLive(t *testing.T) {
	w := newWorld(t)
	live, err := w.nc.SubscribeSync("live.key.revoked.>")
	if err != nil {
		t.Fatal(err)
	}
	w.start()
	w.fact("key_1")
	w.revoke("key_1")
	m, err := live.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "live.key.revoked.promptick.proj_1.key_1" || m.Header.Get(HeaderLedgerSequence) != "2" {
		t.Errorf("%s %v", m.Subject, m.Header)
	}
	if e, err := events.Decode(m.Data); err != nil || e.Type != "key.revoked" {
		t.Errorf("%s: %v", m.Data, err)
	}
}

// What the program does not know stops FEED and is not skipped, after a restart too.
func TestFeedStopsLoudly(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{"a fact from the future", `{"id":"evt_1","type":"key.frozen","version":1,"keyspace":"promptick","owner":"proj_1","key":"key_2","key_version":1,"data":{}}`, `"key.frozen" version 1 is not known`},
		{"no fact at all", `oops`, "not an event"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.fact("key_1")
			if _, err := w.nc.Request("ledger.promptick.proj_1.key_2", []byte(c.body), 5*time.Second); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				p := w.start()
				select {
				case <-p.ended:
				case <-time.After(10 * time.Second):
					t.Fatal("the feed goes on")
				}
				if p.err == nil || !strings.Contains(p.err.Error(), c.want) || !strings.Contains(p.err.Error(), "sequence 2") {
					t.Errorf("Run = %v", p.err)
				}
			}
			if err := w.feedHolds(w.held); err != nil {
				t.Error(err)
			}
		})
	}
}

// A LEDGER that ends before what FEED already holds is a gap, not a silence.
func TestFeedRefusesAShorterLedger(t *testing.T) {
	w := newWorld(t)
	w.fact("key_1")
	e := events.New(events.KeyRevoked{}, time.Now())
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = "promptick", "proj_1", "key_9", 1
	if _, err := w.ledger.AppendFeed(t.Context(), 0, ledger.FeedEntry{Ledger: 17, Event: e}); err != nil {
		t.Fatal(err)
	}
	// With the ledger that is open: a new one would refuse to open.
	f, err := NewFeed(FeedOptions{Ledger: w.ledger, Conn: w.nc, Void: w.ring.Void, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = f.Run(ctx)
	if _, ok := errors.AsType[*pubsub.GapError](err); !ok {
		t.Errorf("Run = %v", err)
	}
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.fact("key_1")
	w.fact("key_2")
	w.revoke("key_1")
	w.fact("key_2")
	w.revoke("key_2")
	if err := w.feedHolds(w.held); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		filter WatchFilter
		want   []uint64 // LEDGER sequences
	}{
		{"everything", WatchFilter{}, []uint64{1, 2, 3, 4, 5}},
		{"a type", WatchFilter{Types: []string{"key.revoked"}}, []uint64{3, 5}},
		{"types", WatchFilter{Types: []string{"key.revoked", "key.created"}}, []uint64{1, 2, 3, 5}},
		{"a family", WatchFilter{Types: []string{"key.*"}, Key: "key_2"}, []uint64{2, 4, 5}},
		{"a key of an owner of a keyspace", WatchFilter{Keyspace: "promptick", Owner: "proj_1", Key: "key_1"}, []uint64{1, 3}},
		{"a type after a place", WatchFilter{Types: []string{"key.revoked"}, After: new(uint64(3))}, []uint64{5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if c.filter.After == nil {
				c.filter.After = new(uint64(0))
			}
			var got []uint64
			for f, err := range Watch(ctx, w.nc, c.filter) {
				if err != nil {
					t.Fatal(err)
				}
				if got = append(got, f.LedgerSequence); len(got) == len(c.want) {
					break
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestWatchRefuses(t *testing.T) {
	w := newWorld(t)
	for _, f := range []WatchFilter{
		{Types: []string{"key.frozen"}}, {Types: []string{"key.>"}}, {Types: []string{""}},
		{Keyspace: "a.b"}, {Owner: "*"}, {Key: "key 1"},
		{Types: []string{"key.*", "key.revoked"}}, // the server takes no overlapping filters
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		var err error
		for _, err = range Watch(ctx, w.nc, f) {
			break
		}
		if err == nil {
			t.Errorf("Watch(%+v) did not refuse", f)
		}
		cancel()
	}
}

// From an append to a plain subscriber, with every write on disk: b.N facts one
// after another, and the time of each.
func BenchmarkFeedLatency(b *testing.B) {
	w := newWorld(b, testenv.Synced())
	live, err := w.nc.SubscribeSync("live.>")
	if err != nil {
		b.Fatal(err)
	}
	w.start()
	w.fact("key_1")
	if _, err := live.NextMsg(10 * time.Second); err != nil {
		b.Fatal(err)
	}
	var after time.Duration
	for b.Loop() {
		w.fact("key_1")
		appended := time.Now()
		if _, err := live.NextMsg(10 * time.Second); err != nil {
			b.Fatal(err)
		}
		after += time.Since(appended)
	}
	b.ReportMetric(float64(after.Microseconds())/float64(b.N), "µs-after-append")
}

// A history that waits in LEDGER. Beside it the same without syncing, which
// shows what is the disk's.
func BenchmarkFeedCatchUp(b *testing.B) {
	for _, c := range []struct {
		name string
		opts []testenv.Option
	}{{"synced", []testenv.Option{testenv.Synced()}}, {"unsynced", nil}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, c.opts...)
			for i := range b.N {
				w.fact(fmt.Sprintf("key_%d", i))
			}
			b.ResetTimer()
			w.start()
			if err := w.feedHolds(w.held); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "facts/s")
		})
	}
}
