package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections/keyring"
)

// work is what clients did and were answered.
type work struct {
	commands atomic.Int64

	mu sync.Mutex // guards what follows
	// did are the types of the facts that the answered commands of each key
	// must have left, in order.
	did map[string][]string
	// secrets are the current secrets of live keys, where they were answered.
	secrets map[string]string
}

// lives runs the lives of keys, one after the other, until end is closed. Every
// command is repeated until it is answered.
func (w *work) lives(ctx context.Context, c *client, worker int, end <-chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-end:
			return
		default:
		}
		if !w.life(ctx, c, fmt.Sprintf("w%d-n%d", worker, n)) {
			return
		}
	}
}

func (w *work) life(ctx context.Context, c *client, name string) bool {
	step := func(method, path, what string, body any) (m made, ok bool) {
		a := c.until(ctx, method, path, name+"-"+what, body)
		if a.status/100 != 2 {
			c.t.Errorf("%s of %s: %d %s", what, name, a.status, a.body)
			return m, false
		}
		a.decode(c.t, &m)
		w.commands.Add(1)
		return m, true
	}
	created, ok := step(http.MethodPost, "/v1/keys", "create", map[string]string{"keyspace": "parcelbird", "owner": "birdwatch", "name": name})
	if !ok {
		return false
	}
	key := "/v1/keys/" + created.Key.ID
	if _, ok = step(http.MethodPost, key+"/rotate", "rotate", map[string]string{"grace": "0s"}); !ok {
		return false
	}
	if _, ok = step(http.MethodPatch, key, "update", map[string]string{"name": name + " renamed"}); !ok {
		return false
	}
	rotated, ok := step(http.MethodPost, key+"/rotate", "rotate again", map[string]string{"grace": "1h"})
	if !ok {
		return false
	}
	did := []string{"key.created", "key.rotated", "key.updated", "key.rotated"}
	if len(name)%2 == 0 {
		if _, ok = step(http.MethodPost, key+"/revoke", "revoke", map[string]string{"reason": "over"}); !ok {
			return false
		}
		did = append(did, "key.revoked")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.did[created.Key.ID] = did
	if rotated.Secret != "" && did[len(did)-1] != "key.revoked" {
		w.secrets[created.Key.ID] = rotated.Secret
	}
	return true
}

// under lets clients work while fault runs, and returns when all their commands
// were answered.
func under(t *testing.T, c func() *client, fault func()) *work {
	t.Helper()
	w := &work{did: map[string][]string{}, secrets: map[string]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	end := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() { w.lives(ctx, c(), i, end) })
	}
	fault()
	close(end)
	late, stop := context.WithTimeout(ctx, patience)
	defer stop()
	context.AfterFunc(late, cancel)
	wg.Wait()
	return w
}

// facts reads the facts of keys that held, by key, in order.
func facts(t testing.TB, natsURL string, replicas int) map[string][]events.Record {
	t.Helper()
	conn, err := nats.Connect(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l, err := ledger.Open(t.Context(), conn, ledger.Options{Replicas: replicas, ReadOnly: true, AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	head, err := l.Head(t.Context(), events.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	held, ring := map[string][]events.Record{}, keyring.New()
	for r, err := range l.Read(t.Context(), events.Ledger, 1, head) {
		if err != nil {
			t.Fatal(err)
		}
		ring.Apply(r)
		if void, _ := ring.Void(t.Context(), r.Sequence); !void && r.Event.Key != "" && r.Event.Keyspace != events.RootKeyspace {
			held[r.Event.Key] = append(held[r.Event.Key], r)
		}
	}
	return held
}

// compare says in which keys the ledger differs from what clients were
// answered: commands that are lost, and such as were applied twice.
func (w *work) compare(held map[string][]events.Record) (lost, twice []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, did := range w.did {
		var found []string
		for _, r := range held[id] {
			found = append(found, r.Event.Type)
		}
		switch {
		case slices.Equal(found, did):
		case len(found) > len(did):
			twice = append(twice, fmt.Sprintf("%s: %v instead of %v", id, found, did))
		default:
			lost = append(lost, fmt.Sprintf("%s: %v instead of %v", id, found, did))
		}
	}
	for id, records := range held {
		if _, ok := w.did[id]; !ok {
			twice = append(twice, fmt.Sprintf("%s: made with %d facts, and nobody was answered its id", id, len(records)))
		}
	}
	return lost, twice
}

// exact fails the test when the ledger is not what clients were answered.
func (w *work) exact(t testing.TB, held map[string][]events.Record) {
	t.Helper()
	lost, twice := w.compare(held)
	if len(lost)+len(twice) > 0 {
		t.Errorf("lost: %s\napplied twice: %s", strings.Join(lost, "\n  "), strings.Join(twice, "\n  "))
	}
	if w.commands.Load() == 0 {
		t.Error("no command was answered")
	}
}

// valid fails the test when a secret that was answered last is not accepted.
func (w *work) valid(t testing.TB, c *client) {
	t.Helper()
	n := 0
	for id, secret := range w.secrets {
		if code, err := c.verify(t.Context(), secret); err != nil || code != "VALID" {
			t.Errorf("the last secret of %s: %s %v", id, code, err)
		}
		if n++; n == 100 {
			return
		}
	}
}

// serving is one service with its NATS and PostgreSQL, prepared for work.
func serving(t *testing.T) (*stage, *broker, *service) {
	t.Helper()
	b := startBroker(t, t.TempDir(), true)
	s := newStage(t, b.url, testenv.Postgres(t), fmt.Sprintf("monitor: [%q]", b.monitor))
	one := s.service()
	one.start()
	s.client(one).prepare()
	return s, b, one
}

// The service is killed at random moments. No command that was answered is
// lost, none took effect twice.
func TestKillsOfServe(t *testing.T) {
	t.Parallel()
	s, b, one := serving(t)
	n := times(8, 200)
	w := under(t, func() *client { return s.client(one) }, func() { one.killed(n) })
	t.Logf("%d commands answered over %d kills", w.commands.Load(), n)
	w.exact(t, facts(t, b.url, 1))
	w.valid(t, s.client(one))
	invariants(t, b.url, s.postgres, 1, s.seen)
}

// The control: a client that gives every repetition an Idempotency-Key of its
// own has something done twice, and the test above would see it.
func TestKillsWithoutIdempotency(t *testing.T) {
	t.Parallel()
	s, b, one := serving(t)
	all := &work{did: map[string][]string{}}
	for round := range 20 {
		w := &work{did: map[string][]string{}, secrets: map[string]string{}}
		w.forgetful(t, s, one, round)
		for id, did := range w.did {
			all.did[id] = did
		}
		if _, twice := all.compare(facts(t, b.url, 1)); len(twice) > 0 {
			t.Logf("round %d: applied twice: %s", round, strings.Join(twice, "\n  "))
			return
		}
	}
	t.Error("Nothing was applied twice without idempotency: kills would not show that it is broken.")
}

func (w *work) forgetful(t *testing.T, s *stage, one *service, round int) {
	end := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			c := s.client(one)
			c.forgets = true
			// A repetition of what took effect may also be refused: that is no
			// failure of a client that asks for it.
			c.t = quiet{t}
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
					w.life(t.Context(), c, fmt.Sprintf("r%d-w%d-n%d", round, i, n))
				}
			}
		})
	}
	one.killed(2)
	close(end)
	wg.Wait()
}

// quiet takes failures of an injected fault for what they are.
type quiet struct{ testing.TB }

func (quiet) Errorf(string, ...any) {}

// Everything in one process is killed, NATS and PostgreSQL with it.
func TestKillsOfDev(t *testing.T) {
	t.Parallel()
	d := newDev(t, t.TempDir())
	d.start()
	c := d.client()
	c.prepare()
	n := times(3, 200)
	w := under(t, d.client, func() { d.killed(n) })
	t.Logf("%d commands answered over %d kills", w.commands.Load(), n)
	places := d.places()
	w.exact(t, facts(t, places.NATSURL, 1))
	w.valid(t, c)
	invariants(t, places.NATSURL, places.PostgresURL, 1, d.seen)
}

// dev is a `keyledger dev` on a state directory.
type dev struct {
	*service
	state, context string
}

// newDev prepares one with a PostgreSQL of its own, or with the one that env
// names in KEYLEDGER_POSTGRES_URL.
func newDev(t testing.TB, state string, env ...string) *dev {
	t.Helper()
	ports := freePorts(t, 3)
	d := &dev{state: state, context: filepath.Join(t.TempDir(), "context.json")}
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	d.service = &service{t: t, seen: &journal{master: filepath.Join(state, "master.key")}, url: "http://" + at(0), ready: "Ctrl-C stops it.",
		env:  append(env, "KEYLEDGER_CONTEXT="+d.context),
		args: []string{"dev", "--no-sample", "--state-dir", state, "--listen", at(0), "--gateway-listen", at(1), "--nats-listen", at(2)}}
	return d
}

func (d *dev) client() *client {
	root := readSecret(d.t, filepath.Join(d.state, "root.key"))
	d.seen.secret(root)
	return &client{t: d.t, s: d.service, root: root, seen: d.seen}
}

// places is where dev says that everything is.
func (d *dev) places() (p struct {
	NATSURL     string `json:"nats_url"`
	PostgresURL string `json:"postgres_url"`
}) {
	b, err := os.ReadFile(d.context)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}
