package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/reactors/pubsub"
)

// arrival is what a receiver outside got in one request or message.
type arrival struct {
	id   string // that the sender gave it
	body string // the public envelope
}

// arrivals are those at one receiver, in the order in which it has taken them.
type arrivals struct {
	mu   sync.Mutex // guards what follows
	list []arrival
	more chan struct{} // closed and replaced whenever one comes

	// The control: it answers before it has taken anything, and loses what it has not
	// taken when the sender is killed, as a sender does that moves its position first.
	early   bool
	lives   int
	pending sync.WaitGroup
}

func (a *arrivals) take(x arrival, life int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if life != a.lives {
		return
	}
	a.list = append(a.list, x)
	close(a.more)
	a.more = make(chan struct{})
}

// killed says that the senders were.
func (a *arrivals) killed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.early {
		a.lives++
	}
}

func (a *arrivals) taken() []arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.list)
}

func (a *arrivals) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.list)
}

// next waits until more than so many have come.
func (a *arrivals) next(t testing.TB, than int, limit time.Duration) (now int) {
	t.Helper()
	late := time.After(limit)
	for {
		a.mu.Lock()
		n, more := len(a.list), a.more
		a.mu.Unlock()
		if n > than {
			return n
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("nothing arrives any more, after %d", n)
		}
	}
}

// receiver is an HTTP server that takes what it is sent, under the id that a header
// holds. Now and then it refuses, and now and then it takes what it says it has not.
func receiver(t *testing.T, header string, early bool) (url string, a *arrivals) {
	a = &arrivals{more: make(chan struct{}), early: early}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil { // the sender was killed
			return
		}
		a.mu.Lock()
		life := a.lives
		a.mu.Unlock()
		x := arrival{r.Header.Get(header), string(b)}
		if early {
			// Longer than it takes to keep a position.
			a.pending.Add(1)
			time.AfterFunc(rand.N(2*time.Second), func() { a.take(x, life); a.pending.Done() })
			return
		}
		luck := rand.IntN(100)
		if luck > 0 {
			a.take(x, life)
		}
		if luck < 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, a
}

// outward is a fact that is delivered: of FEED, or an alert of OPS.
type outward struct {
	stream   string
	sequence uint64
	body     []byte
	events.Envelope
}

// outside are the facts of both streams behind two sequences.
func outside(t testing.TB, conn *nats.Conn, after place) (all []outward) {
	t.Helper()
	end := ends(t, conn)
	for _, x := range []struct {
		stream string
		from   uint64
		to     uint64
	}{{events.Feed, after.feed, end.feed}, {events.Ops, after.ops, end.ops}} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		at := x.from
		for m, err := range pubsub.Tail(ctx, conn, x.stream, pubsub.TailOptions{After: x.from}) {
			if err != nil {
				t.Fatal(err)
			}
			e, err := events.Decode(m.Data())
			if err != nil {
				t.Fatal(err)
			}
			if at++; x.stream == events.Feed || strings.HasPrefix(e.Type, "alert.") {
				all = append(all, outward{x.stream, at, m.Data(), e})
			}
			if at >= x.to {
				break
			}
		}
		if cancel(); at < x.to {
			t.Fatalf("%s was read up to %d of %d", x.stream, at, x.to)
		}
	}
	return all
}

// place is how far the streams are that deliveries come from.
type place struct{ feed, ops uint64 }

func ends(t testing.TB, conn *nats.Conn) (p place) {
	t.Helper()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]*uint64{events.Feed: &p.feed, events.Ops: &p.ops} {
		s, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		*to = s.CachedInfo().State.LastSeq
	}
	return p
}

// What judge says.
const (
	neverCame = "never came"
	cameAfter = "came first after"
)

// judge says what is wrong with how facts arrived: each is to come at least once, under
// an id of its own, as it is stored, and behind those before it of its key.
func judge(facts []outward, got []arrival) (wrong []string) {
	known := map[string]outward{} // by event id
	for _, f := range facts {
		known[f.ID] = f
	}
	ids, last := map[string]string{}, map[string]uint64{} // by event id; by stream and key
	for _, x := range got {
		var e struct{ ID string }
		_ = json.Unmarshal([]byte(x.body), &e)
		f, ok := known[e.ID]
		if !ok {
			continue // of before
		}
		key := f.stream + "." + f.Keyspace + "." + f.Owner + "." + f.Key
		id, again := ids[e.ID]
		switch {
		case x.id == "" || again && x.id != id:
			wrong = append(wrong, fmt.Sprintf("%s came under the id %q, and then under %q", e.ID, id, x.id))
		case x.body != string(f.body):
			wrong = append(wrong, fmt.Sprintf("%s is not what %s holds: %s", e.ID, f.stream, x.body))
		case !again && f.sequence < last[key]:
			wrong = append(wrong, fmt.Sprintf("%s at %d "+cameAfter+" %d of the same key", e.ID, f.sequence, last[key]))
		}
		ids[e.ID] = x.id
		last[key] = max(last[key], f.sequence)
	}
	for _, f := range facts {
		if _, came := ids[f.ID]; !came {
			wrong = append(wrong, fmt.Sprintf("%s, %s at %d of %s, "+neverCame, f.ID, f.Type, f.sequence, f.stream))
		}
	}
	return wrong
}

// alertsJudged says which alerts were raised or resolved twice, or out of turn. All of
// them are about keys that are revoked by now, so none is raised at the end.
func alertsJudged(facts []outward) (raised int, wrong []string) {
	state := map[string]string{}  // of an alert
	active := map[string]string{} // alert that is raised, by key and rule
	for _, f := range facts {
		switch d := f.Data.(type) {
		case events.AlertRaised:
			raised++
			about := f.Key + " " + d.Rule
			if state[d.Alert] != "" || active[about] != "" {
				wrong = append(wrong, fmt.Sprintf("%s (%s) is raised at %d, it was %s before, and %q is raised", d.Alert, about, f.sequence, state[d.Alert], active[about]))
			}
			state[d.Alert], active[about] = "raised", d.Alert
		case events.AlertResolved:
			about := f.Key + " " + d.Rule
			if state[d.Alert] != "raised" || active[about] != d.Alert {
				wrong = append(wrong, fmt.Sprintf("%s (%s) is resolved at %d, it was %q before", d.Alert, about, f.sequence, state[d.Alert]))
			}
			state[d.Alert] = "resolved"
			delete(active, about)
		}
	}
	for about, id := range active {
		wrong = append(wrong, fmt.Sprintf("%s (%s) is never resolved", id, about))
	}
	return raised, wrong
}

// appending appends facts of many keys until stop is called, while every service is
// being killed, at most thousands ahead of those who get them. Keys expire soon, and then late, and
// soon again, which is what alerts are about; in the end all are revoked.
func appending(t *testing.T, c *commands.Commands, got ...func() int) (stop func()) {
	end := make(chan struct{})
	var appended atomic.Int64
	ahead := func() bool {
		return slices.ContainsFunc(got, func(n func() int) bool { return int(appended.Load())-n() > 3000 })
	}
	var all sync.WaitGroup
	as := commands.Request{Authority: domain.System("test"), Via: "test"}
	soon, late := new(events.At(time.Now().Add(72*time.Hour))), new(events.At(time.Now().Add(9000*time.Hour)))
	for range 3 {
		all.Go(func() {
			var live []string
			var err error
			revoke := func() {
				if err == nil {
					_, err = c.RevokeKey(t.Context(), as, live[0], domain.RevokeKey{Reason: "over"})
				}
				live = live[1:]
			}
			for err == nil {
				select {
				case <-end:
				default:
					if len(live) >= 25 && ahead() {
						<-time.After(20 * time.Millisecond)
						continue
					}
				}
				appended.Add(6)
				var r commands.Result
				if r, err = c.CreateKey(t.Context(), as, "parcelbird", "birdwatch", domain.CreateKey{Name: "CI", ExpiresAt: soon}); err == nil {
					live = append(live, r.Key.ID)
				}
				if len(live) < 25 {
					continue // to begin with
				}
				for range 3 {
					if err == nil {
						_, err = c.RotateKey(t.Context(), as, r.Key.ID, domain.RotateKey{})
					}
				}
				for _, until := range []*events.Time{late, soon} {
					if err == nil {
						_, err = c.UpdateKey(t.Context(), as, live[rand.IntN(len(live))], domain.UpdateKey{ExpiresAt: until})
					}
				}
				if len(live) > 30 {
					revoke()
				}
				select {
				case <-end:
					for len(live) > 0 {
						revoke()
					}
					if err != nil {
						t.Errorf("append: %v", err)
					}
					return
				case <-time.After(rand.N(20 * time.Millisecond)):
				}
			}
			t.Errorf("append: %v", err)
		})
	}
	return sync.OnceFunc(func() {
		close(end)
		all.Wait()
	})
}

// configure appends to the settings that all services of a stage read.
func (s *stage) configure(text string) {
	s.t.Helper()
	b, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	writeFile(s.t, s.config, string(b)+text)
}

// sinks are what /v1/status says of them.
func (c *client) sinks() (all map[string]sinkStatus) {
	a := c.until(c.t.Context(), http.MethodGet, "/v1/status", "", nil)
	var s struct{ Sinks []sinkStatus }
	a.decode(c.t, &s)
	all = map[string]sinkStatus{}
	for _, x := range s.Sinks {
		all[x.Name] = x
	}
	return all
}

type sinkStatus struct {
	Name, Kind                   string
	Lag, Behind, Delivered, Dead uint64
}

// begun waits until a service knows where its sinks begin.
func (c *client) begun(names ...string) {
	c.t.Helper()
	for late := time.Now().Add(patience); ; <-time.After(50 * time.Millisecond) {
		all, done := c.sinks(), true
		for _, name := range names {
			x, there := all[name]
			done = done && there && x.Lag == 0
		}
		if done {
			return
		}
		if time.Now().After(late) {
			c.t.Fatalf("sinks do not begin: %+v", all)
		}
	}
}

// complete waits until all facts have arrived somewhere, and answers what is wrong with it
// then, or at last.
func complete(facts []outward, got func() []arrival, limit time.Duration) (arrived int, wrong []string) {
	for late := time.Now().Add(limit); ; <-time.After(200 * time.Millisecond) {
		all := got()
		if wrong = judge(facts, all); time.Now().After(late) || !slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, neverCame) }) {
			return len(all), wrong
		}
	}
}

func redisLength(t *testing.T, address, stream string) int {
	client := redis.NewClient(&redis.Options{Addr: address})
	defer client.Close()
	n, err := client.XLen(t.Context(), stream).Result()
	if err != nil {
		t.Error(err)
	}
	return int(n)
}

// redisArrivals reads a whole Redis stream.
func redisArrivals(t *testing.T, address, stream string) (all []arrival) {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: address})
	defer client.Close()
	entries, err := client.XRange(t.Context(), stream, "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range entries {
		m, err := redisstream.DefaultMarshallerUnmarshaller{}.Unmarshal(x.Values)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, arrival{m.UUID, string(m.Payload)})
	}
	return all
}

// Services that deliver to the outside are killed again and again in the middle of it,
// while facts are appended. FEED holds each once; everybody outside gets each at least
// once, under one id, in order per key.
func TestKillsOfReactors(t *testing.T) {
	t.Parallel()
	b := startBroker(t, t.TempDir(), true)
	s := newStage(t, b.url, testenv.Postgres(t), fmt.Sprintf("monitor: [%q]", b.monitor))
	url, over := receiver(t, "Message-Uuid", false)
	hook, hooked := receiver(t, "Webhook-Id", false)
	r := testenv.Redis(t, "")
	s.configure(fmt.Sprintf("alerts_hold: 100ms\nwebhooks: {allow_http: true, allow_private: [\"127.0.0.0/8\"]}\nsinks:\n- {name: over-http, kind: http, url: %q}\n- {name: in-redis, kind: redis_stream, address: %q, stream: facts}\n", url, r.Address))
	services := []*service{s.service(), s.service()}
	for i, x := range services {
		// Under its name it takes back at once what it held.
		x.args = append(x.args, "--node", fmt.Sprint("n", i))
		x.start()
	}
	c := s.client(services[0])
	c.prepare()
	c.begun("over-http", "in-redis")
	if a := c.until(t.Context(), http.MethodPost, "/v1/webhooks", "hook", map[string]string{"url": hook}); a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.body)
	}
	conn := b.connect(t)
	after := ends(t, conn)
	stop := appending(t, inside(t, conn), over.count, hooked.count, func() int { return redisLength(t, r.Address, "facts") })
	defer stop()
	n := times(6, 100)
	came := 0
	for i := range n {
		came = over.next(t, came, patience)
		x := services[i%len(services)]
		// Now and then before it works at all.
		if rand.IntN(4) > 0 {
			x.wait()
			<-time.After(rand.N(1500 * time.Millisecond))
		}
		x.process.Kill()
		x.launch()
		if i%10 == 9 {
			t.Logf("%d kills, %d arrivals", i+1, came)
		}
	}
	stop()
	for _, x := range services {
		x.wait()
	}
	fedUp(t, conn, c)
	invariants(t, b.url, s.postgres, 1, s.seen)

	facts := outside(t, conn, after)
	raised, wrong := alertsJudged(facts)
	t.Logf("%d alerts", raised)
	if raised == 0 || len(wrong) > 0 {
		t.Errorf("%d alerts, %d wrong, such as %s", raised, len(wrong), strings.Join(wrong[:min(3, len(wrong))], "\n  "))
	}
	// The control: an alert that is raised twice is found.
	for _, f := range facts {
		if _, ok := f.Data.(events.AlertRaised); ok {
			if _, wrong := alertsJudged(slices.Concat(facts, []outward{f})); len(wrong) == 0 {
				t.Error("An alert that is raised twice is not found.")
			}
			break
		}
	}
	for name, got := range map[string]func() []arrival{
		"of the HTTP sink": over.taken, "of the webhook": hooked.taken,
		"of the Redis sink": func() []arrival { return redisArrivals(t, r.Address, "facts") },
	} {
		arrived, wrong := complete(facts, got, 2*patience)
		t.Logf("%d kills, %d facts, %d arrivals %s", n, len(facts), arrived, name)
		if len(wrong) > 0 {
			t.Errorf("%s: %d wrong, such as %s", name, len(wrong), strings.Join(wrong[:min(3, len(wrong))], "\n  "))
		}
	}
	for name, x := range c.sinks() {
		if x.Dead > 0 || x.Kind == "" || x.Delivered == 0 {
			t.Errorf("%s: %+v", name, x)
		}
	}
}

// fedUp waits until FEED holds all that LEDGER does, and OPS all alerts about it.
func fedUp(t testing.TB, conn *nats.Conn, c *client) {
	t.Helper()
	// A fact behind all others is in FEED when they are.
	a := c.until(t.Context(), http.MethodPost, "/v1/keys", "last", map[string]string{"keyspace": "parcelbird", "owner": "birdwatch", "name": "last"})
	var m made
	a.decode(t, &m)
	fed := func(all []outward) bool {
		return slices.ContainsFunc(all, func(f outward) bool { return f.stream == events.Feed && f.Key == m.Key.ID })
	}
	for late := time.Now().Add(2 * patience); ; <-time.After(200 * time.Millisecond) {
		all := outside(t, conn, place{})
		_, wrong := alertsJudged(all)
		if fed(all) && len(wrong) == 0 {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("the last fact is in FEED: %t; of alerts: %v", fed(all), wrong[:min(3, len(wrong))])
		}
	}
}

// The control: a receiver that loses, when the sender is killed, what it was given and has
// not taken, is what a sender would do that moves its position before it delivers. The
// same run finds that facts never came, or came too late.
func TestKillsOfEarlyReactors(t *testing.T) {
	t.Parallel()
	b := startBroker(t, t.TempDir(), true)
	s := newStage(t, b.url, testenv.Postgres(t), fmt.Sprintf("monitor: [%q]", b.monitor))
	url, over := receiver(t, "Message-Uuid", true)
	s.configure(fmt.Sprintf("sinks:\n- {name: over-http, kind: http, url: %q}\n", url))
	one := s.service()
	one.start()
	c := s.client(one)
	c.prepare()
	c.begun("over-http")
	conn := b.connect(t)
	after := ends(t, conn)
	stop := appending(t, inside(t, conn), over.count)
	defer stop()
	came := 0
	for range 2 {
		came = over.next(t, came, patience)
		<-time.After(time.Second)
		one.process.Kill()
		over.killed()
		one.start()
	}
	stop()
	fedUp(t, conn, c)
	_, wrong := complete(outside(t, conn, after), over.taken, patience/6)
	t.Logf("%d wrong", len(wrong))
	if !slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, neverCame) }) || !slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, cameAfter) }) {
		t.Errorf("A sender that is done before it has delivered is not found: %v", wrong)
	}
}
