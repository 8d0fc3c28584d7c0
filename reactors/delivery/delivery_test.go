package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
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
	"github.com/keyledger/keyledger/reactors/lease"
)

// world is a server, and a ledger that facts are written with.
type world struct {
	t      testing.TB
	server *embedded.NATS
	ledger *ledger.Ledger
	store  *Store
	fed    uint64              // end of FEED
	last   map[string]uint64   // of each key in LEDGER
	made   map[string][]string // ids of each key's facts
	runs   *Engine             // the one that was started last
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, server: testenv.NATS(t), last: map[string]uint64{}, made: map[string][]string{}}
	var nc *nats.Conn
	w.ledger, w.store, nc = w.open()
	t.Cleanup(func() {
		w.ledger.Close()
		nc.Close()
	})
	return w
}

func (w *world) open() (*ledger.Ledger, *Store, *nats.Conn) {
	w.t.Helper()
	nc, err := w.server.Conn()
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := ledger.Open(w.t.Context(), nc, ledger.Options{AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := Open(w.t.Context(), l, js, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	return l, s, nc
}

// fact puts the next fact of a key into FEED.
func (w *world) fact(key string) string {
	w.t.Helper()
	e := events.New(events.KeyUpdated{Name: new("n")}, time.Now())
	e.Keyspace, e.Owner, e.Key = "parcelbird", "org_1", key
	sequence, err := w.ledger.Append(w.t.Context(), w.last[key], e)
	if err != nil {
		w.t.Fatal(err)
	}
	w.last[key] = sequence
	if w.fed, err = w.ledger.AppendFeed(w.t.Context(), w.fed, ledger.FeedEntry{Ledger: sequence, Event: e}); err != nil {
		w.t.Fatal(err)
	}
	w.made[key] = append(w.made[key], e.ID)
	return e.ID
}

// act puts an act into OPS.
func (w *world) act(key string, data events.Payload) string {
	w.t.Helper()
	e := events.New(data, time.Now())
	e.Keyspace, e.Owner, e.Key = "parcelbird", "org_1", key
	if _, err := w.ledger.AppendOps(w.t.Context(), e); err != nil {
		w.t.Fatal(err)
	}
	return e.ID
}

// engine runs until the returned function is called; crash: as if it was killed.
func (w *world) engine(o Options, all ...Registration) (stop func(crash bool)) {
	w.t.Helper()
	l, s, nc := w.open()
	js, err := jetstream.New(nc)
	if err != nil {
		w.t.Fatal(err)
	}
	o.Ledger, o.Store, o.Reactor, o.Holder = l, s, "webhooks", "node-1"
	o.Log = slog.New(slog.DiscardHandler)
	if o.SaveEvery == 0 {
		o.SaveEvery = 20 * time.Millisecond
	}
	if o.Leases, err = lease.Open(w.t.Context(), js, 1); err != nil {
		w.t.Fatal(err)
	}
	e, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.runs = e
	if err := e.Set(all); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var crashed atomic.Bool
	running.Go(func() {
		if err := e.Run(ctx); ctx.Err() == nil && !crashed.Load() {
			w.t.Errorf("Run ended: %v", err)
		}
	})
	var once sync.Once
	stop = func(crash bool) {
		once.Do(func() {
			if crash {
				crashed.Store(true)
				nc.Close()
			}
			cancel()
			running.Wait()
			l.Close()
			nc.Close()
		})
	}
	w.t.Cleanup(func() { stop(false) })
	return stop
}

// place is a target that keeps what arrives.
type place struct {
	name    string
	wants   func(Fact) bool
	refuses func(Fact) error // nil: nothing

	mu    sync.Mutex
	got   map[string][]string // ids by stream and key
	all   []Fact
	tries int
	moved chan struct{}
}

func newPlace(name string) *place {
	return &place{name: name, got: map[string][]string{}, moved: make(chan struct{})}
}

func (p *place) Name() string { return p.name }

func (p *place) Wants(f Fact) bool { return p.wants == nil || p.wants(f) }

func (p *place) Deliver(ctx context.Context, f Fact) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tries++
	defer func() {
		close(p.moved)
		p.moved = make(chan struct{})
	}()
	if p.refuses != nil {
		if err := p.refuses(f); err != nil {
			Answered(ctx, 500, []byte("no\x00body"))
			return err
		}
	}
	Answered(ctx, 200, nil)
	p.got[f.Key] = append(p.got[f.Key], f.ID)
	p.all = append(p.all, f)
	return nil
}

// await waits until what p got satisfies enough.
func (p *place) await(t testing.TB, what string, enough func() bool) {
	t.Helper()
	patience := time.After(30 * time.Second)
	for {
		p.mu.Lock()
		ok, moved := enough(), p.moved
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-patience:
			t.Fatalf("%s: %s", p.name, what)
		}
	}
}

// firsts are the ids without repetitions, in the order of their first arrival.
func firsts(ids []string) (all []string) {
	for _, id := range ids {
		if !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	return all
}

func (w *world) complete(p *place) func() bool {
	return func() bool {
		for key, made := range w.made {
			if len(firsts(p.got[key])) < len(made) {
				return false
			}
		}
		return true
	}
}

func (w *world) inOrder(p *place) {
	w.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, made := range w.made {
		if got := firsts(p.got[key]); !slices.Equal(got, made) {
			w.t.Errorf("%s: of %s came %d facts in the order %v, made were %v", p.name, key, len(got), got, made)
		}
	}
}

// start is where a stream begins.
var start = &Place{}

// A target that is away holds up no other, a key that fails no other key of its
// target, however many facts it has; each key's facts come in order.
func TestFailuresHoldUpNothingElse(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	heal := false
	healthy, poisoned, dead := newPlace("healthy"), newPlace("poisoned"), newPlace("dead")
	poisoned.refuses = func(f Fact) error {
		mu.Lock()
		defer mu.Unlock()
		if f.Key == "key_0" && !heal {
			return errors.New("not this one")
		}
		return nil
	}
	dead.refuses = func(Fact) error {
		mu.Lock()
		defer mu.Unlock()
		if !heal {
			return errors.New("away")
		}
		return nil
	}
	for range 50 { // what was there before is read from the stream, not from memory
		w.fact("key_0")
		w.fact(fmt.Sprintf("key_%d", rand.N(10)))
	}
	w.engine(Options{MinBackoff: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond},
		Registration{Target: healthy, After: start}, Registration{Target: poisoned, After: start}, Registration{Target: dead, After: start})
	for range 150 {
		w.fact("key_0")
		w.fact(fmt.Sprintf("key_%d", rand.N(10)))
	}
	healthy.await(t, "does not get everything", w.complete(healthy))
	w.inOrder(healthy)
	poisoned.await(t, "does not get the other keys", func() bool {
		for key, made := range w.made {
			if key != "key_0" && len(poisoned.got[key]) < len(made) {
				return false
			}
		}
		return true
	})
	if got := poisoned.got["key_0"]; len(got) > 0 {
		t.Errorf("of what fails came %v", got)
	}
	if len(healthy.all) != 400 {
		t.Errorf("%d deliveries of 400 facts without a crash", len(healthy.all))
	}
	mu.Lock()
	heal = true
	mu.Unlock()
	for _, p := range []*place{poisoned, dead} {
		p.await(t, "does not get the rest", w.complete(p))
		w.inOrder(p)
	}
}

// Whatever is killed in between, each fact comes at least once, in order by key; what
// failed before goes on failing from where it was.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	p := newPlace("place")
	p.refuses = func(Fact) error {
		if rand.N(5) == 0 {
			return errors.New("not now")
		}
		return nil
	}
	for i := range 25 {
		stop := w.engine(Options{MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, Parallel: 4}, Registration{Target: p, After: start})
		for range 40 {
			w.fact(fmt.Sprintf("key_%d", rand.N(6)))
		}
		p.mu.Lock()
		some := len(p.all) + rand.N(40)
		p.mu.Unlock()
		p.await(t, "gets nothing more", func() bool { return len(p.all) >= some || w.complete(p)() })
		stop(i%4 != 0)
	}
	w.engine(Options{MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond}, Registration{Target: p, After: start})
	p.await(t, "does not get everything", w.complete(p))
	w.inOrder(p)
}

// A target without a beginning gets what comes after it was first seen, also when
// nothing ran then; one whose state is lost begins again where it was registered.
func TestBeginning(t *testing.T) {
	w := newWorld(t)
	before := w.fact("key_0")
	p := newPlace("place")
	stop := w.engine(Options{}, Registration{Target: p})
	for {
		if _, known, err := w.store.State(t.Context(), "webhooks", "place"); err != nil {
			t.Fatal(err)
		} else if known {
			break
		}
	}
	stop(true)
	after := w.fact("key_0")
	stop = w.engine(Options{}, Registration{Target: p})
	p.await(t, "gets nothing", func() bool { return len(p.all) > 0 })
	if got := p.got["key_0"]; !slices.Equal(got, []string{after}) {
		t.Errorf("got %v; %s came before it, %s after", got, before, after)
	}
	stop(false)
	if err := w.store.Forget(t.Context(), "webhooks", "place"); err != nil {
		t.Fatal(err)
	}
	w.engine(Options{}, Registration{Target: p, After: &Place{}})
	p.await(t, "does not begin again", func() bool { return len(p.all) == 3 })
	if got := p.got["key_0"]; !slices.Equal(got, []string{after, before, after}) {
		t.Errorf("got %v", got)
	}
}

// A target that is registered at the end of a stream begins there, also where the engine
// has not read so far yet.
func TestBeginsAtTheEnd(t *testing.T) {
	w := newWorld(t)
	w.engine(Options{})
	for i := range 10 {
		for range 20 {
			w.fact("key_0")
		}
		p := newPlace(fmt.Sprintf("place_%d", i))
		if err := w.runs.Set([]Registration{{Target: p, After: &Place{Feed: w.fed}}}); err != nil {
			t.Fatal(err)
		}
		want := w.fact("key_0")
		p.await(t, "gets nothing", func() bool { return len(p.all) > 0 })
		if got := p.got["key_0"]; got[0] != want {
			t.Errorf("%s gets %v, what came next was %s", p.name, got, want)
		}
	}
}

// Of OPS the alerts are delivered, and nothing else, with the headers of CloudEvents
// and the body as it is stored.
func TestAlerts(t *testing.T) {
	w := newWorld(t)
	p := newPlace("place")
	raise := func() string { return w.act("key_1", events.AlertRaised{Alert: "alr_1", When: "cost"}) }
	var want []string
	for range 3 {
		w.act("key_1", events.AuditRead{What: "events", Filter: map[string]string{}})
		want = append(want, raise())
	}
	w.engine(Options{}, Registration{Target: p, After: start})
	want = append(want, w.act("key_1", events.AlertResolved{Alert: "alr_1", When: "cost"}))
	p.await(t, "does not get the alerts", func() bool { return len(p.all) >= len(want) })
	if got := p.got["key_1"]; !slices.Equal(got, want) {
		t.Errorf("got %v instead of %v", got, want)
	}
	f := p.all[0]
	at, err := w.ledger.At(t.Context(), events.Ops, f.Sequence)
	if err != nil || string(at[0].Body) != string(f.Body) || f.Stream != events.Ops || f.Type != "alert.raised" || f.Owner != "org_1" {
		t.Errorf("got %+v, %v", f, err)
	}
	if f.Header.Get("ce-id") != f.ID || f.Header.Get("ce-type") != "alert.raised" {
		t.Errorf("headers %v", f.Header)
	}
}

// What fails for long enough, or for good, is a dead letter with the reason; the next
// facts of the key come. Replayed, it is delivered and stays in DLQ; nobody else's
// letters are touched.
func TestDeadLetters(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	broken := true
	p := newPlace("place")
	bad := w.fact("key_1")
	worse := w.fact("key_2")
	p.refuses = func(f Fact) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case broken && f.ID == bad:
			return errors.New("out of order")
		case broken && f.ID == worse:
			return Permanent(errors.New("no such place"))
		}
		return nil
	}
	w.fact("key_1")
	w.fact("key_2")
	w.engine(Options{MinBackoff: time.Millisecond, GiveUp: 2 * time.Second}, Registration{Target: p, After: start})
	p.await(t, "does not get what comes after", func() bool { return len(p.all) == 2 })
	var letters []DeadLetter
	list := func(state string) []DeadLetter {
		t.Helper()
		l, err := w.store.DeadLetters(t.Context(), "webhooks", "", state, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	letters = list("")
	if len(letters) != 2 {
		t.Fatalf("dead letters %+v", letters)
	}
	slices.SortFunc(letters, func(a, b DeadLetter) int { return strings.Compare(a.Key, b.Key) })
	if l := letters[0]; l.ID != bad || l.Target != "place" || l.Stream != events.Feed || l.Place != 1 || l.Attempts < 2 || l.State != Dead ||
		!strings.Contains(l.Reason, "out of order") || !strings.Contains(l.Reason, "since") {
		t.Errorf("%+v", l)
	}
	if l := letters[1]; l.ID != worse || l.Attempts != 1 || l.Reason != "no such place" || l.Class != "permanent" {
		t.Errorf("%+v", l)
	}
	shown, err := w.store.DeadLetter(t.Context(), letters[0].Sequence)
	if err != nil || !strings.Contains(string(shown.Body), bad) {
		t.Errorf("%+v, %v", shown, err)
	}
	if _, err := w.store.DeadLetter(t.Context(), 99); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("%v", err)
	}

	// While it still fails it is dead again, each time, and there is no second letter.
	const replays = 8 // with all else fewer than what is logged of a second
	for i := range replays {
		if err := w.store.Replay(t.Context(), letters[1].Sequence, "root_1"); err != nil {
			t.Fatal(err)
		}
		within(t, fmt.Sprintf("what still fails at replay %d is not dead again", i+1), func() bool {
			d, err := w.store.DeadLetter(t.Context(), letters[1].Sequence)
			if err != nil {
				t.Fatal(err)
			}
			return d.StateBy == "root_1" && d.State == Dead
		})
	}
	mu.Lock()
	broken = false
	mu.Unlock()
	for _, l := range letters {
		if err := w.store.Replay(t.Context(), l.Sequence, "root_1"); err != nil {
			t.Fatal(err)
		}
	}
	p.await(t, "does not get what is replayed", func() bool { return len(p.all) == 4 })
	within(t, "what was replayed is not listed as such", func() bool { return len(list(Replayed)) == 2 })
	if err := w.store.Replay(t.Context(), letters[0].Sequence, "root_1"); !errors.Is(err, ErrNotDead) {
		t.Errorf("%v", err)
	}
	if l := list(Dead); len(l) != 0 {
		t.Errorf("dead are %+v", l)
	}
	within(t, "the state does not tell of it", func() bool {
		s, _, err := w.store.State(t.Context(), "webhooks", "place")
		if err != nil {
			t.Fatal(err)
		}
		return s.Dead == 2 && s.Replayed == 2 && s.Delivered == 4 && len(s.Behind) == 0 && s.FailingSince == 0
	})
	if s, err := w.store.States(t.Context(), ""); err != nil || len(s) != 1 || s[0].Target != "place" {
		t.Errorf("%+v, %v", s, err)
	}

	// Of each fact the newest is first, however many attempts began in a millisecond.
	outcomes := func(log []Attempt, id string) (all []string) {
		for _, a := range log {
			if a.ID == id {
				all = append(all, a.Outcome)
			}
		}
		return all
	}
	ofBad := append([]string{Delivered, GivenUp}, slices.Repeat([]string{Failed}, letters[0].Attempts-1)...)
	ofWorse := append([]string{Delivered}, slices.Repeat([]string{GivenUp}, 1+replays)...)
	var log []Attempt
	within(t, "the log does not tell of it", func() bool {
		var err error
		if log, err = w.store.Attempts(t.Context(), "webhooks", "place", time.Time{}, 100); err != nil {
			t.Fatal(err)
		}
		return len(log) == len(ofBad)+len(ofWorse)+2
	})
	if got := outcomes(log, bad); !slices.Equal(got, ofBad) {
		t.Errorf("the log tells of %v", got)
	}
	if got := outcomes(log, worse); !slices.Equal(got, ofWorse) {
		t.Errorf("the log tells of %v", got)
	}
	a := log[slices.IndexFunc(log, func(a Attempt) bool { return a.Outcome == GivenUp && a.ID == bad })]
	if a.Attempt < 2 || a.Class != "error" || a.Error != "out of order" || a.Status != 500 || a.Response != "no body" || a.Stream != events.Feed {
		t.Errorf("%+v", a)
	}
}

// A page of the log ends behind a millisecond, so that the next begins with what is left.
func TestLogPages(t *testing.T) {
	w := newWorld(t)
	begin := time.Now().Add(-time.Minute)
	var page []Attempt
	for i := range 60 {
		page = append(page, Attempt{Time: events.At(begin.Add(time.Duration(i/7) * time.Millisecond)), Target: "place", Attempt: i + 1})
	}
	for lines := range slices.Chunk(page, 20) {
		if err := w.store.Log(t.Context(), "webhooks", lines...); err != nil {
			t.Fatal(err)
		}
	}
	var before time.Time
	for i := len(page); i > 0; {
		log, err := w.store.Attempts(t.Context(), "webhooks", "place", before, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(log) < min(i, 10) || len(log) > 16 {
			t.Fatalf("a page of 10 has %d lines, %d are left", len(log), i)
		}
		for _, a := range log {
			if a.Attempt != i {
				t.Fatalf("the log goes on with attempt %d, of %d", a.Attempt, i)
			}
			i--
		}
		before = log[len(log)-1].Time.Time()
	}
}

// within asks until enough says yes.
func within(t *testing.T, what string, enough func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !enough(); {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// A target that is gone gets nothing more, and somebody is told, until it is enabled:
// then it gets what it has missed.
func TestGone(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	gone := true
	p := newPlace("place")
	p.refuses = func(Fact) error {
		mu.Lock()
		defer mu.Unlock()
		if gone {
			return &Failure{Class: "status", Gone: true, Err: errors.New("410 Gone")}
		}
		return nil
	}
	w.fact("key_1")
	told := make(chan string, 10)
	stop := w.engine(Options{Gone: func(_ context.Context, target, why string) error {
		told <- target + ": " + why
		return nil
	}}, Registration{Target: p, After: start})
	if got := <-told; got != "place: 410 Gone" {
		t.Errorf("told %q", got)
	}
	stop(false)
	mu.Lock()
	gone = false
	mu.Unlock()
	stop = w.engine(Options{}, Registration{Target: p, After: start, Disabled: "410 Gone"})
	w.fact("key_1")
	stop(false)
	if p.tries != 1 {
		t.Errorf("%d attempts", p.tries)
	}
	w.engine(Options{}, Registration{Target: p, After: start})
	p.await(t, "does not get what it has missed", w.complete(p))
	w.inOrder(p)
}

// A target that asks to be left alone for a while is, for as long as it said.
func TestRetryAfter(t *testing.T) {
	w := newWorld(t)
	const pause = 300 * time.Millisecond
	p := newPlace("place")
	var asked, again time.Time
	p.refuses = func(f Fact) error {
		if asked.IsZero() {
			asked = time.Now()
			return &Failure{Class: "status", RetryAfter: pause, Everything: true, Err: errors.New("503")}
		}
		if again.IsZero() {
			again = time.Now()
		}
		return nil
	}
	w.engine(Options{Parallel: 1, MinBackoff: time.Millisecond}, Registration{Target: p, After: start})
	for i := range 10 {
		w.fact(fmt.Sprintf("key_%d", i))
	}
	p.await(t, "does not get everything", w.complete(p))
	if again.Sub(asked) < pause {
		t.Errorf("the next attempt came after %v, although %v were asked for", again.Sub(asked), pause)
	}
}

// Names become subjects.
func TestNames(t *testing.T) {
	e := &Engine{changed: make(chan struct{})}
	for _, name := range []string{"", "a.b", "a b", "*", strings.Repeat("a", 65)} {
		if err := e.Set([]Registration{{Target: newPlace(name)}}); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
	if err := e.Set([]Registration{{Target: newPlace("a")}, {Target: newPlace("a")}}); err == nil {
		t.Error("two of one name are taken")
	}
}

// What is shown of an answer is text, cut between characters.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                          "plain",
		"a\r\nb\x1b[31m":                 "a  b [31m",
		"\xff":                           "\uFFFD",
		strings.Repeat("ü", 1000):        strings.Repeat("ü", 512),
		"x" + strings.Repeat("€", 1000):  "x" + strings.Repeat("€", 341),
		"xx" + strings.Repeat("€", 1000): "xx" + strings.Repeat("€", 340),
	} {
		if got := printable([]byte(in)); got != want {
			t.Errorf("%.20q becomes %q", in, got)
		}
	}
}
