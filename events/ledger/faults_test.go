package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
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
	r := &restartable{t: t, dir: t.TempDir()}
	r.n = testenv.NATS(t, testenv.InDir(r.dir), testenv.Listening())
	u, err := url.Parse(r.n.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	r.addr = u.Host
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
