package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
)

// restartable is a server that can be stopped and started at one address.
type restartable struct {
	t    *testing.T
	dir  string
	addr string
	n    *embedded.NATS
}

func startRestartable(t *testing.T) *restartable {
	r := &restartable{t: t, dir: t.TempDir(), addr: testenv.FreeAddress(t)}
	r.start()
	return r
}

func (r *restartable) start() {
	r.n = testenv.NATS(r.t, testenv.InDir(r.dir), func(c *embedded.NATSConfig) { c.Listen = r.addr })
}

func connect(t *testing.T, addr string) *nats.Conn {
	nc, err := nats.Connect("nats://"+addr, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// A follower goes on over restarts of the server, and every append is stored
// exactly once, whatever became of its first answer.
func TestRestarts(t *testing.T) {
	server := startRestartable(t)
	l := open(t, connect(t, server.addr), ledger.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const n, restarts = 600, 3

	progress := make(chan int, n)
	var written []string
	var wg sync.WaitGroup
	wg.Go(func() {
		var at uint64
		for i := range n {
			e := revoked("org_1", "key_1", uint64(i)+1)
			sequence, err := l.Append(ctx, at, e)
			if err != nil {
				t.Errorf("append %d: %v", i, err)
				cancel()
				return
			}
			if sequence != at+1 {
				t.Errorf("append %d stands at %d", i, sequence)
			}
			at = sequence
			written = append(written, e.ID)
			progress <- i
		}
	})
	var read []string
	wg.Go(func() {
		for r, err := range l.Follow(ctx, events.Ledger, 0) {
			if err != nil {
				t.Errorf("follow: %v", err)
				return
			}
			if read = append(read, r.Event.ID); len(read) == n {
				return
			}
		}
	})
	for i := range restarts {
		for {
			select {
			case p := <-progress:
				if p < (i+1)*n/(restarts+1) {
					continue
				}
			case <-ctx.Done():
				t.Fatal("no progress")
			}
			break
		}
		server.n.Shutdown()
		server.start()
	}
	wg.Wait()
	if strings.Join(read, " ") != strings.Join(written, " ") {
		t.Errorf("%d facts were written, %d read, and not the same", len(written), len(read))
	}
	if err := l.Check(ctx); err != nil {
		t.Error(err)
	}
}

// Uses wait in memory while the server is away; those beyond the bound are
// declared, and the counts add up.
func TestPagesWhileAway(t *testing.T) {
	server := startRestartable(t)
	l := open(t, connect(t, server.addr), ledger.Options{})
	p := ledger.NewPages(l, "node1", ledger.PagesOptions{Memory: 1000 * 768})
	if err := p.RecordDurable(t.Context(), used("key_1")); err != nil {
		t.Fatal(err)
	}
	server.n.Shutdown()
	const n = 3000
	kept := 0
	for range n {
		if p.Record(used("key_1")) {
			kept++
		}
	}
	if kept == n || kept < 900 {
		t.Fatalf("%d of %d were kept", kept, n)
	}
	if err := p.RecordDurable(t.Context(), used("key_1")); !errors.Is(err, ledger.ErrFull) {
		t.Fatalf("a durable use beyond the bound: %v", err)
	}
	server.start()
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.Held() != 0 {
		t.Errorf("%d uses are still held", p.Held())
	}
	var recorded, declared int64
	ids := map[string]bool{}
	for r, err := range l.Read(t.Context(), events.Usage, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if ids[r.Event.ID] {
			t.Errorf("%s is there twice", r.Event.ID)
		}
		ids[r.Event.ID] = true
		if g, ok := r.Event.Data.(events.UsageGap); ok {
			declared += g.Count
			if g.From == 0 || g.To < g.From || g.Reason == "" || g.Node != "node1" || r.Event.Keyspace != "ks" {
				t.Errorf("gap: %+v", g)
			}
		} else {
			recorded++
		}
	}
	if recorded != int64(kept)+1 || recorded+declared != n+1 {
		t.Errorf("%d recorded and %d declared of %d", recorded, declared, n+1)
	}
}

// Facts are prepared before they are encoded; while that fails they wait.
func TestPagesPrepare(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	tries := 0
	p := ledger.NewPages(l, "node1", ledger.PagesOptions{Prepare: func(_ context.Context, facts []events.Envelope) error {
		if tries++; tries < 3 {
			return errors.New("the keys are away")
		}
		for i := range facts {
			u := facts[i].Data.(events.KeyUsed)
			u.SourceIP = &events.Sealed{Key: "k", Box: "b"}
			facts[i].Data = u
		}
		return nil
	}})
	if err := p.RecordDurable(t.Context(), used("key_1")); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.RecordDurable(t.Context(), used("key_1")); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("recorded after Close: %v", err)
	}
	if got := take(t, l, events.Usage, 0, 1); got[0].Event.Data.(events.KeyUsed).SourceIP == nil {
		t.Errorf("not prepared: %+v", got[0])
	}
}

// gate is a TCP proxy that can hold back what the server says.
type gate struct {
	net.Listener
	mu sync.RWMutex // held for writing: the server is not heard
}

func newGate(t *testing.T, server string) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			go func() { io.Copy(up, client); up.Close() }()
			go func() { io.Copy(heard{client, g}, up); client.Close() }()
		}
	}()
	return g
}

type heard struct {
	io.Writer
	g *gate
}

func (h heard) Write(b []byte) (int, error) {
	h.g.mu.RLock()
	defer h.g.mu.RUnlock()
	return h.Writer.Write(b)
}

// A lost answer is resolved by reading back: what was stored is success, what
// somebody else stored is a conflict, and nothing is stored twice.
func TestLostAnswer(t *testing.T) {
	server := startRestartable(t)
	l := open(t, connect(t, server.addr), ledger.Options{})
	g := newGate(t, server.addr)
	far := open(t, connect(t, g.Addr().String()), ledger.Options{})

	mine := created("org_1", "key_1", 1)
	batch := []ledger.Expect{{0, created("org_1", "key_2", 1)}, {0, revoked("org_1", "key_2", 2)}}
	feed := []ledger.FeedEntry{{Ledger: 1, Event: mine}, {Ledger: 2, Event: revoked("org_1", "key_1", 2)}}
	body, _ := events.Encode(used("key_1"))
	var wg sync.WaitGroup
	g.mu.Lock()
	wg.Go(func() {
		if sequence, err := far.Append(t.Context(), 0, mine); err != nil || sequence == 0 {
			t.Errorf("append: %d %v", sequence, err)
		}
	})
	wg.Go(func() {
		if first, err := far.AppendBatch(t.Context(), batch); err != nil || first == 0 {
			t.Errorf("batch: %d %v", first, err)
		}
	})
	wg.Go(func() {
		if first, err := far.AppendFeedBatch(t.Context(), 0, feed); err != nil || first != 1 {
			t.Errorf("batch for FEED: %d %v", first, err)
		}
	})
	wg.Go(func() {
		if sequence, err := far.AppendPage(t.Context(), "ks", "n", [][]byte{body}); err != nil || sequence != 1 {
			t.Errorf("page: %d %v", sequence, err)
		}
	})
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := far.Append(ctx, 0, created("org_1", "key_3", 1)); !errors.Is(err, ledger.ErrUnknownOutcome) {
			t.Errorf("without any answer: %v", err)
		}
	})
	// All four facts are stored before anybody hears of it.
	for r, err := range l.Follow(t.Context(), events.Ledger, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Sequence == 4 {
			break
		}
	}
	// The first attempts have been given up when the server is heard again.
	time.AfterFunc(2500*time.Millisecond, g.mu.Unlock)
	wg.Wait()
	if head, err := l.Head(t.Context(), events.Ledger); err != nil || head != 4 {
		t.Errorf("LEDGER has %d facts instead of 4: %v", head, err)
	}
	if head, err := l.Head(t.Context(), events.Feed); err != nil || head != 2 {
		t.Errorf("FEED has %d facts instead of 2: %v", head, err)
	}
	if head, err := l.Head(t.Context(), events.Usage); err != nil || head > 1 {
		t.Errorf("USAGE has %d pages: %v", head, err)
	}
}

// On three nodes one of many wins too, batches or not, from whichever node; and
// a stopped leader costs nothing that was acknowledged.
func TestCluster(t *testing.T) {
	c := testenv.Cluster(t, 3)
	var ledgers []*ledger.Ledger
	for i := range 3 {
		ledgers = append(ledgers, open(t, c.Conn(i), ledger.Options{Replicas: 3}))
	}
	oneWins(t, ledgers, 10)

	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	l := ledgers[0]
	var acknowledged []string
	for i := range 60 {
		if i == 20 {
			c.Stop(1)
		}
		if i == 40 {
			c.Restart(1)
			c.Stop(2)
		}
		e := created("org_x", fmt.Sprintf("key_%d", i), 1)
		if _, err := l.Append(ctx, 0, e); err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		acknowledged = append(acknowledged, e.ID)
	}
	var read []string
	for r, err := range l.Read(ctx, events.Ledger, 1, 0, "ledger.ks.org_x.*") {
		if err != nil {
			t.Fatal(err)
		}
		read = append(read, r.Event.ID)
	}
	if strings.Join(read, " ") != strings.Join(acknowledged, " ") {
		t.Errorf("acknowledged %d, read %d", len(acknowledged), len(read))
	}
	if err := l.Check(ctx); err != nil {
		t.Error(err)
	}
}

// What cannot be written in time is counted when the writer is closed, and who
// waits is told.
func TestPagesCloseWhileAway(t *testing.T) {
	server := startRestartable(t)
	l := open(t, connect(t, server.addr), ledger.Options{})
	p := ledger.NewPages(l, "node1", ledger.PagesOptions{})
	server.n.Shutdown()
	told := make(chan error)
	go func() { told <- p.RecordDurable(context.Background(), used("key_1")) }()
	for p.Held() == 0 {
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); err == nil || !strings.Contains(err.Error(), "1 uses") {
		t.Errorf("closed: %v", err)
	}
	if err := <-told; !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("a durable use at the end: %v", err)
	}
}

// Many goroutines record at once; each use is there once, and pages keep to
// their size.
func TestPagesConcurrently(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	pages := map[uint64]int{}
	p := ledger.NewPages(l, "node1", ledger.PagesOptions{MaxBytes: 16 << 10, Written: func(_ string, sequence uint64, facts int) { pages[sequence] = facts }})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				e := used(fmt.Sprintf("key_%d", g))
				if i%10 == 0 {
					if err := p.RecordDurable(t.Context(), e); err != nil {
						t.Error(err)
					}
				} else if !p.Record(e) {
					t.Error("dropped")
				}
			}
		})
	}
	wg.Wait()
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	lines := map[uint64]int{}
	size := map[uint64]int{}
	for r, err := range l.Read(t.Context(), events.Usage, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		ids[r.Event.ID] = true
		lines[r.Sequence]++
		if size[r.Sequence] += len(r.Body) + 1; size[r.Sequence] > 16<<10+1 {
			t.Errorf("page %d has %d bytes", r.Sequence, size[r.Sequence])
		}
	}
	if len(ids) != 1600 || !maps.Equal(lines, pages) {
		t.Errorf("%d uses; pages %v, told %v", len(ids), lines, pages)
	}
}

// A batch never splits a page, and a page beyond the bound is one of its own.
func TestFollowBatches(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	for n := range 20 {
		var bodies [][]byte
		for range n + 1 {
			body, _ := events.Encode(used("key_1"))
			bodies = append(bodies, body)
		}
		if _, err := l.AppendPage(t.Context(), "ks", "n", bodies); err != nil {
			t.Fatal(err)
		}
	}
	const most = 12
	page, line, total := uint64(1), 0, 0
	for batch, err := range l.FollowBatches(t.Context(), events.Usage, 0, most, 20*time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
		if line != 0 {
			t.Fatalf("page %d was split after line %d", page, line)
		}
		for _, r := range batch {
			if r.Sequence != page || r.Line != line {
				t.Fatalf("record %d/%d instead of %d/%d", r.Sequence, r.Line, page, line)
			}
			if line++; line == int(page) {
				page, line = page+1, 0
			}
		}
		if len(batch) > most && batch[0].Sequence != batch[len(batch)-1].Sequence {
			t.Errorf("a batch of %d records of several pages", len(batch))
		}
		if total += len(batch); total == 20*21/2 {
			break
		}
	}
}

// A fact beyond the server's bound is refused before it is sent.
func TestTooLarge(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	if _, err := l.Append(t.Context(), 0, func() events.Envelope {
		e := revoked("org_1", "key_1", 1)
		e.Data = events.KeyRevoked{Reason: strings.Repeat("x", int(nc.MaxPayload()))}
		return e
	}()); !errors.Is(err, ledger.ErrTooLarge) {
		t.Errorf("too large a fact: %v", err)
	}
	p := ledger.NewPages(l, "node1", ledger.PagesOptions{})
	big := used("key_1")
	u := big.Data.(events.KeyUsed)
	u.Endpoint = strings.Repeat("x", int(nc.MaxPayload()))
	big.Data = u
	p.Record(big)
	p.Record(used("key_2"))
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := take(t, l, events.Usage, 0, 2)
	if g, ok := got[1].Event.Data.(events.UsageGap); !ok || g.Count != 1 || got[0].Event.Key != "key_2" {
		t.Errorf("recorded %+v", got)
	}
}

// A reader ends with its context, and with a fact from the future.
func TestFollowEnds(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	if _, err := l.Append(t.Context(), 0, revoked("org_1", "key_1", 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, err := range l.Follow(ctx, events.Ledger, 0) {
		last = err
		cancel()
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("cancelled: %v", last)
	}
	if _, err := nc.Request("ledger.ks.org_1.key_1", []byte(`{"id":"evt_1","type":"key.forgotten","version":1,"keyspace":"ks","owner":"org_1","key":"key_1","data":{}}`), time.Second); err != nil {
		t.Fatal(err)
	}
	for r, err := range l.Follow(t.Context(), events.Ledger, 0) {
		last = err
		if err == nil && r.Sequence > 1 {
			t.Fatalf("read on: %+v", r)
		}
	}
	if _, ok := errors.AsType[*events.UnknownError](last); !ok || !strings.Contains(last.Error(), "LEDGER at sequence 2") {
		t.Errorf("a fact from the future: %v", last)
	}
	for _, err := range l.Follow(t.Context(), events.Ledger, 3) {
		if _, ok := errors.AsType[*ledger.RefusalError](err); !ok {
			t.Errorf("beyond the end: %v", err)
		}
	}
}

// FEED carries the public form with its place in LEDGER, in order, and is
// republished.
func TestFeed(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	live, err := nc.SubscribeSync("live.key.created.>")
	if err != nil {
		t.Fatal(err)
	}
	e := created("org_1", "key_1", 1)
	if sequence, err := l.AppendFeed(t.Context(), 0, ledger.FeedEntry{Ledger: 7, Event: e}); err != nil || sequence != 1 {
		t.Fatal(sequence, err)
	}
	if _, err := l.AppendFeed(t.Context(), 0, ledger.FeedEntry{Ledger: 8, Event: e}); !errors.Is(err, ledger.ErrConflict) {
		t.Errorf("a second writer: %v", err)
	}
	if feed, at, err := l.LastFed(t.Context()); err != nil || feed != 1 || at != 7 {
		t.Errorf("fed %d, %d: %v", feed, at, err)
	}
	m, err := live.NextMsg(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "live.key.created.ks.org_1.key_1" || m.Header.Get("ce-id") != e.ID || m.Header.Get("ce-type") != "key.created" || strings.Contains(string(m.Data), "sha256") {
		t.Errorf("republished %s %v %s", m.Subject, m.Header, m.Data)
	}
}

// The facts of a batch stand in FEED together or not at all, and are
// republished one by one, with their headers.
func TestFeedBatch(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	live, err := nc.SubscribeSync("live.>")
	if err != nil {
		t.Fatal(err)
	}
	all := []ledger.FeedEntry{
		{Ledger: 7, Event: created("org_1", "key_1", 1)}, {Ledger: 9, Event: revoked("org_1", "key_1", 2)},
		{Ledger: 10, Event: created("org_1", "key_2", 1)}, {Ledger: 11, Event: revoked("org_1", "key_2", 2)},
	}
	for _, b := range []struct {
		expected uint64
		batch    []ledger.FeedEntry
		first    uint64 // 0: a conflict
	}{
		{1, all[:2], 0},
		{0, all[:2], 1},
		{0, all[:2], 0},
		{1, all[1:], 0},
		{2, all[2:3], 3},
		{2, all[2:], 0},
		{3, all[3:], 4},
	} {
		first, err := l.AppendFeedBatch(t.Context(), b.expected, b.batch)
		if first != b.first || (b.first == 0) != errors.Is(err, ledger.ErrConflict) {
			t.Fatalf("%d facts after %d: %d, %v", len(b.batch), b.expected, first, err)
		}
	}
	if feed, at, err := l.LastFed(t.Context()); err != nil || feed != 4 || at != 11 {
		t.Errorf("fed %d, %d: %v", feed, at, err)
	}
	for i, x := range all {
		m, err := live.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != "live."+strings.TrimPrefix(events.FeedSubject(x.Event), "feed.") || m.Header.Get("Ledger-Sequence") != fmt.Sprint(x.Ledger) ||
			m.Header.Get("Nats-Sequence") != fmt.Sprint(i+1) || m.Header.Get("ce-id") != x.Event.ID || strings.Contains(string(m.Data), "sha256") {
			t.Errorf("republished %s %v %s", m.Subject, m.Header, m.Data)
		}
	}
}

// A reader that is given its last batch because it is ended may leave with it.
func TestLeavingWithTheLastBatch(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	if _, err := l.Append(t.Context(), 0, created("org_1", "key_1", 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	for batch, err := range l.FollowBatches(ctx, events.Ledger, 0, 10, time.Hour) {
		if err != nil || len(batch) != 1 {
			t.Errorf("%d records, %v", len(batch), err)
		}
		break
	}
}

// What was acknowledged is read, whichever replica is asked for it: one that is behind
// says that there is no more.
func TestClusterReadsItsWrites(t *testing.T) {
	c := testenv.Cluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var clients sync.WaitGroup
	for i := range 6 { // so that replicas have something to do
		l := open(t, c.Conn(i%3), ledger.Options{Replicas: 3})
		clients.Go(func() {
			owner := fmt.Sprintf("org_%d", i)
			for n := range 40 {
				at, err := l.Append(ctx, 0, created(owner, fmt.Sprintf("key_%d", n), 1))
				if err != nil {
					t.Error(err)
					return
				}
				for _, subjects := range [][]string{{"ledger.ks." + owner + ".*"}, nil} {
					last := uint64(0)
					for r, err := range l.Read(ctx, events.Ledger, at, at, subjects...) {
						if err != nil {
							t.Error(err)
							return
						}
						last = r.Sequence
					}
					if last != at {
						t.Errorf("%s: %q to %d ended at %d", owner, subjects, at, last)
					}
				}
			}
		})
	}
	clients.Wait()
}
