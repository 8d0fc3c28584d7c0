package faults

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyledger/keyledger/internal/embedded"
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
