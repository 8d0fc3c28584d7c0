package faults

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
)

// asking verifies a secret over and over until stop is called, which answers how
// often it was accepted. Anything but an acceptance fails the test.
func asking(t *testing.T, c *client, secret string) (accepted *atomic.Int64, stop func()) {
	t.Helper()
	accepted = &atomic.Int64{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				code, err := c.verify(ctx, secret)
				if ctx.Err() != nil {
					return
				}
				if err != nil || code != "VALID" {
					t.Errorf("verification: %s %v", code, err)
					return
				}
				accepted.Add(1)
				// The machine is the commands' too.
				<-time.After(time.Millisecond)
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return accepted, stop
}

// more waits until n more verifications have been answered.
func more(t *testing.T, accepted *atomic.Int64, n int64) {
	t.Helper()
	from := accepted.Load()
	for end := time.Now().Add(patience); accepted.Load() < from+n; time.Sleep(time.Millisecond) {
		if t.Failed() || time.Now().After(end) {
			t.Fatalf("verification stopped after %d answers", accepted.Load())
		}
	}
}

// known makes a key that is there before anything goes wrong.
func known(t *testing.T, c *client) made {
	t.Helper()
	a := c.until(t.Context(), http.MethodPost, "/v1/keys", "known", map[string]string{"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI"})
	var m made
	a.decode(t, &m)
	if m.Secret == "" {
		t.Fatalf("no key: %d %s", a.status, a.body)
	}
	return m
}

// PostgreSQL is killed and started again while the service works: keys are
// verified and changed as ever, lists say when to ask again, and the read models
// catch up exactly.
func TestPostgresAway(t *testing.T) {
	t.Parallel()
	b := startBroker(t, t.TempDir(), true)
	config := embedded.PostgresConfig{Dir: t.TempDir()}
	start := func() *embedded.Postgres {
		p, err := embedded.StartPostgres(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := start()
	defer func() { p.Stop() }()
	s := newStage(t, b.url, p.URL(), fmt.Sprintf("monitor: [%q]", b.monitor))
	one := s.service()
	one.start()
	c := s.client(one)
	c.prepare()
	first := known(t, c)
	accepted, stop := asking(t, c, first.Secret)

	n := times(2, 20)
	w := under(t, func() *client { return s.client(one) }, func() {
		for range n {
			more(t, accepted, 20)
			if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-p.Done()
			p.Stop()
			more(t, accepted, 20)
			a, err := c.once(t.Context(), http.MethodPost, "/v1/keys", "", map[string]string{"keyspace": "parcelbird", "owner": "acme", "name": ""})
			if err != nil || a.status != http.StatusUnprocessableEntity {
				t.Errorf("a command without PostgreSQL: %d %s, %v", a.status, a.body, err)
			}
			a, err = c.once(t.Context(), http.MethodGet, "/v1/keys?keyspace=parcelbird", "", nil)
			if err != nil || a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
				t.Errorf("a list without PostgreSQL: %d %s, %v", a.status, a.body, err)
			}
			p = start()
		}
		more(t, accepted, 20)
	})
	stop()
	t.Logf("PostgreSQL killed %d times: %d commands answered, %d verifications", n, w.commands.Load(), accepted.Load())
	w.did[first.Key.ID] = []string{"key.created"}
	w.exact(t, facts(t, b.url, 1))
	invariants(t, b.url, p.URL(), 1, s.seen)
}

// NATS is killed and started again while the service works: known keys are
// verified all the time, commands say when to ask again, and in the end each
// took effect once.
func TestNATSAway(t *testing.T) {
	t.Parallel()
	s, b, one := serving(t)
	c := s.client(one)
	first := known(t, c)
	accepted, stop := asking(t, c, first.Secret)
	did := map[string][]string{first.Key.ID: {"key.created"}}
	n := times(3, 100)
	w := under(t, func() *client { return s.client(one) }, func() {
		for i := range n {
			more(t, accepted, 20)
			b.process.Kill()
			create := func() (answer, error) {
				return c.once(t.Context(), http.MethodPost, "/v1/keys", fmt.Sprint("away-", i), map[string]string{"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI"})
			}
			var a answer
			var err error
			// A command is answered when the service has given up waiting for
			// NATS; once is enough to see that.
			if i == 0 {
				a, err = create()
				if err != nil || a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
					t.Errorf("a command without NATS: %d %s, %v", a.status, a.body, err)
				}
			}
			more(t, accepted, 50)
			b.start()
			for end := time.Now().Add(patience); a.status != http.StatusCreated; {
				if a, err = create(); err != nil || a.status >= 400 && a.status != http.StatusServiceUnavailable || time.Now().After(end) {
					t.Errorf("a command after NATS has come back: %d %s, %v", a.status, a.body, err)
					return
				}
			}
			var m made
			a.decode(t, &m)
			did[m.Key.ID] = []string{"key.created"}
		}
	})
	stop()
	t.Logf("NATS killed %d times: %d commands answered, %d verifications", n, w.commands.Load(), accepted.Load())
	maps.Copy(w.did, did)
	w.exact(t, facts(t, b.url, 1))
	invariants(t, b.url, s.postgres, 1, s.seen)
}

// Nodes of a cluster are killed, one at a time and all at once. What was
// answered is there, once, and equal on all of them.
func TestKillsOfNATSNodes(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3)
	var urls, monitors []string
	for _, b := range nodes {
		urls, monitors = append(urls, b.url), append(monitors, fmt.Sprintf("%q", b.monitor))
	}
	s := newStage(t, strings.Join(urls, ","), testenv.Postgres(t), "replicas: 3", "monitor: ["+strings.Join(monitors, ", ")+"]")
	one := s.service()
	one.start()
	c := s.client(one)
	c.prepare()
	single, all := times(1, 100), times(1, 20)
	w := under(t, func() *client { return s.client(one) }, func() {
		for i := range single + all {
			killed := nodes
			if i < single {
				n := rand.IntN(len(nodes))
				killed = nodes[n : n+1]
			}
			for _, b := range killed {
				b.process.Kill()
			}
			<-time.After(rand.N(500 * time.Millisecond))
			for _, b := range killed {
				b.launch()
			}
			for _, b := range killed {
				b.wait()
			}
			// One that is answered says that the cluster has a leader again.
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			c.until(ctx, http.MethodPut, "/v1/keyspaces/parcelbird/owners/birdwatch", "", map[string]string{"name": fmt.Sprint("Birdwatch ", i), "plan": "large"})
			cancel()
		}
	})
	t.Logf("one node killed %d times, all three %d times: %d commands answered", single, all, w.commands.Load())
	w.exact(t, facts(t, s.nats, 3))
	invariants(t, s.nats, s.postgres, 3, s.seen)
	equal(t, nodes)
}

// equal compares what every node holds of LEDGER, each of them leading in turn,
// since only a leader answers from its own files.
func equal(t *testing.T, nodes []*broker) {
	t.Helper()
	conn := nodes[0].connect(t)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for i := range nodes {
		name := fmt.Sprint("n", i)
		end := time.Now().Add(patience)
		for {
			s, err := js.Stream(t.Context(), events.Ledger)
			if err == nil && s.CachedInfo().Cluster.Leader == name {
				held = append(held, messages(t, conn, s.CachedInfo().State.LastSeq))
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s does not become the leader of LEDGER: %v", name, err)
			}
			_, _ = conn.Request("$JS.API.STREAM.LEADER.STEPDOWN."+events.Ledger, fmt.Appendf(nil, `{"placement":{"preferred":%q}}`, name), time.Second)
			// Nothing signals an election.
			time.Sleep(50 * time.Millisecond)
		}
		if held[i] != held[0] {
			t.Errorf("LEDGER of node %d is not that of node 0", i)
		}
	}
}

// messages is a hash of all that a stream's leader holds.
func messages(t *testing.T, conn *nats.Conn, last uint64) string {
	t.Helper()
	h := sha256.New()
	for sequence := uint64(1); sequence <= last; sequence++ {
		m, err := conn.Request("$JS.API.STREAM.MSG.GET."+events.Ledger, fmt.Appendf(nil, `{"seq":%d}`, sequence), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct {
			Message json.RawMessage
			Error   json.RawMessage
		}
		if err := json.Unmarshal(m.Data, &answer); err != nil || answer.Error != nil {
			t.Fatalf("LEDGER %d: %s %v", sequence, answer.Error, err)
		}
		h.Write(answer.Message)
	}
	return fmt.Sprintf("%d messages, %x", last, h.Sum(nil))
}
