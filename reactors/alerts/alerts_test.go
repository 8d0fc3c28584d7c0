package alerts

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/internal/testenv/check"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/reactors/lease"
	"github.com/keyledger/keyledger/verify"
)

// world is a service as one process has it, but for alerts.
type world struct {
	*testing.T
	*commands.Commands
	conn     *nats.Conn
	seal     *seal.Keys
	kv       jetstream.KeyValue
	pool     *pgxpool.Pool
	runner   *projections.Runner
	recorder *verify.Recorder
	verifier *verify.Verifier
	secrets  map[string]string // by key
}

var by = commands.Request{Authority: domain.System("test"), Via: "test"}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, conn: testenv.Conn(t, testenv.NATS(t)), secrets: map[string]string{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	t.Cleanup(func() {
		for _, s := range w.secrets {
			all = append(all, s)
		}
		check.Ledger(t, check.Subject{Conn: w.conn, Secrets: all})
	})
	l, err := ledger.Open(t.Context(), w.conn, ledger.Options{AllowUnverifiedSync: true})
	must(err)
	ring := keyring.New()
	w.Commands = &commands.Commands{Ledger: l, Ring: ring}
	js, err := jetstream.New(w.conn)
	must(err)
	w.seal, err = seal.Open(t.Context(), js, seal.Master{1}, 1)
	must(err)
	w.kv, err = lease.Open(t.Context(), js, 1)
	must(err)
	w.pool, err = pgxpool.New(t.Context(), testenv.Postgres(t))
	must(err)
	t.Cleanup(w.pool.Close)
	_, err = migrations.Up(t.Context(), w.pool)
	must(err)
	w.runner = projections.New(l, w.pool, slog.New(slog.DiscardHandler), projections.Addresses{Keys: w.seal})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = ring.Run(ctx, l) })
	running.Go(func() { w.runner.Run(ctx) })
	<-ring.Ready()
	w.recorder = verify.NewRecorder(l, w.seal, "n1", verify.RecorderOptions{})
	w.verifier = verify.New(ring, w.recorder, verify.Options{})
	t.Cleanup(func() {
		w.verifier.Close()
		end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = w.recorder.Close(end)
		stop()
		running.Wait()
		w.seal.Close()
		_ = l.Close()
	})
	return w
}

// configure makes a keyspace p with these alerts and limits, and owner o.
func (w *world) configure(more string) {
	w.Helper()
	doc, err := domain.ParseDocument([]byte(`
keyspace: p
format: {prefixes: {live: pb_}, length: 40}
display: {first: 7}
scopes: {admin: {routes: ["GET /admin/**"]}}
` + more))
	if err == nil {
		_, err = w.ConfigureKeyspace(w.Context(), by, doc, false)
	}
	if err == nil {
		_, err = w.SetOwner(w.Context(), by, "p", "o", domain.SetOwner{Name: new("O")})
	}
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) create(c domain.CreateKey) string {
	w.Helper()
	c.Name = "k"
	r, err := w.CreateKey(w.Context(), by, "p", "o", c)
	if err != nil {
		w.Fatal(err)
	}
	w.secrets[r.Key.ID] = r.Secret
	return r.Key.ID
}

// use has a request decided and recorded, and says how.
func (w *world) use(key, path, ip string, status int, cost int64) domain.Code {
	w.Helper()
	req := domain.Request{Keyspace: "p", Key: w.secrets[key], Method: "GET", Path: path, IP: ip}
	d := w.verifier.Verify(req)
	w.verifier.Record(&d, &req, verify.Use{Status: status, Latency: time.Millisecond, CostMicros: cost, Via: "test"})
	return d.Code
}

func (w *world) flush() {
	w.Helper()
	if err := w.recorder.Flush(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// engine runs until the test ends or the function is called.
func (w *world) engine(change func(*Options)) (stop func()) {
	o := Options{Ledger: w.Ledger, Ring: w.Ring, Pool: w.pool, Runner: w.runner, Node: "n1", Seal: w.seal, Keep: w.kv,
		Hold: 50 * time.Millisecond, Every: 5 * time.Millisecond, Sweep: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(o).Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	w.Cleanup(stop)
	return stop
}

// told are the facts of alerts in OPS so far, as +when or -when and the key's place in keys.
func (w *world) told(keys ...string) []string {
	w.Helper()
	var list []string
	for r, err := range w.Ledger.Read(w.Context(), events.Ops, 1, 0) {
		if err != nil {
			w.Fatal(err)
		}
		sign, when, why := "", "", ""
		switch d := r.Event.Data.(type) {
		case events.AlertRaised:
			sign, when = "+", d.When
		case events.AlertResolved:
			sign, when, why = "-", d.When, " "+d.Reason
		default:
			continue
		}
		who := "pool"
		if i := slices.Index(keys, r.Event.Key); i >= 0 {
			who = fmt.Sprint(i)
		}
		list = append(list, sign+when+" "+who+why)
	}
	return list
}

// await waits until OPS tells of something.
func (w *world) await(what string, keys ...string) {
	w.Helper()
	for end := time.Now().Add(20 * time.Second); !slices.Contains(w.told(keys...), what); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("nobody tells of %s, but of %q", what, w.told(keys...))
		}
	}
}

// Each rule is raised by what clients and passing time really do, and resolved when that
// is over.
func TestEveryRule(t *testing.T) {
	w := newWorld(t)
	w.configure(`
limits: {from: key, default: {minute: 20}}
lifecycle: {rotation: {max_age: 1s, grace_max: 1h}}
alerts:
  - {when: limit_used, above: 0.8}
  - {when: error_rate, above: 0.5, over: 4s, min_requests: 4}
  - {when: unusual_volume, above: 4, over: 100ms, min_requests: 5}
  - {when: denied, above: 3, over: 4s}
  - {when: cost, above: 1000, over: 4s}
  - {when: expiring, within: 30d}
  - {when: unused, for: 2s}
  - {when: rotation_overdue}
  - {when: previous_secret, within: 1h}
`)
	stop := w.engine(nil)
	at := func(d time.Duration) *events.Time { return new(events.At(time.Now().Add(d))) }
	limited, failing, refused, costly, ending, idle := w.create(domain.CreateKey{}), w.create(domain.CreateKey{}), w.create(domain.CreateKey{}), w.create(domain.CreateKey{}),
		w.create(domain.CreateKey{ExpiresAt: at(4 * time.Second)}), w.create(domain.CreateKey{})
	keys := []string{limited, failing, refused, costly, ending, idle}
	w.await("+rotation_overdue 5", keys...) // it is at work
	for range 21 {
		w.use(limited, "/", "", 200, 0)
	}
	for range 5 {
		w.use(failing, "/", "", 500, 0)
		if code := w.use(refused, "/admin/x", "", 0, 0); code != domain.CodeInsufficientScope {
			t.Fatal(code)
		}
		w.use(costly, "/", "", 200, 300)
	}
	w.flush()
	for _, what := range []string{"+limit_used 0", "+error_rate 1", "+denied 2", "+cost 3", "+expiring 4", "+unused 5", "+rotation_overdue 5", "+expired 4",
		"-error_rate 1 quiet", "-denied 2 quiet", "-cost 3 quiet", "-expiring 4 over"} {
		w.await(what, keys...)
	}
	grace := domain.Duration(1500 * time.Millisecond)
	old := w.secrets[idle]
	r, err := w.RotateKey(t.Context(), by, idle, domain.RotateKey{Grace: &grace})
	if err != nil {
		t.Fatal(err)
	}
	w.await("-rotation_overdue 5 over", keys...)
	for end := time.Now().Add(20 * time.Second); !slices.Contains(w.told(keys...), "+previous_secret 5"); time.Sleep(100 * time.Millisecond) {
		w.use(idle, "/", "", 200, 0)
		w.flush()
		if time.Now().After(end) {
			t.Fatalf("%q", w.told(keys...))
		}
	}
	w.await("-unused 5 over", keys...)
	w.await("-previous_secret 5 over", keys...)
	w.secrets["old"], w.secrets[idle] = old, r.Secret
	for range 10 { // its past are tenths of a second in which nothing happened
		w.use(costly, "/", "", 200, 0)
	}
	w.flush()
	w.await("+unusual_volume 3", keys...)
	if _, err := w.RevokeKey(t.Context(), by, limited, domain.RevokeKey{}); err != nil {
		t.Fatal(err)
	}
	w.await("-limit_used 0 key_ended", keys...)
	stop()
	w.alternate()
	open := 0
	for _, what := range w.told() {
		if strings.HasPrefix(what, "+") {
			open++
		} else {
			open--
		}
	}
	head, err := w.Ledger.Head(t.Context(), events.Ops)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.runner.Wait(t.Context(), "alerts_v1", head); err != nil {
		t.Fatal(err)
	}
	var rows int
	if err := w.pool.QueryRow(t.Context(), `select count(*) from analytics.alerts where state = 'raised'`).Scan(&rows); err != nil || rows != open {
		t.Errorf("%d rows are raised and %d alerts, %v", rows, open, err)
	}
}

// alternate checks that what OPS tells of each rule and subject is raised and resolved in
// turn, each with the id of the other and with ids of its own for each time.
func (w *world) alternate() {
	w.Helper()
	raised, ids := map[string]string{}, map[string]bool{}
	for r, err := range w.Ledger.Read(w.Context(), events.Ops, 1, 0) {
		if err != nil {
			w.Fatal(err)
		}
		who := r.Event.Owner + "/" + r.Event.Key + "/"
		switch d := r.Event.Data.(type) {
		case events.AlertRaised:
			if raised[who+d.Rule] != "" || ids[d.Alert] {
				w.Errorf("%s is raised again: %+v", who, d)
			}
			raised[who+d.Rule], ids[d.Alert] = d.Alert, true
		case events.AlertResolved:
			if raised[who+d.Rule] != d.Alert {
				w.Errorf("%s was not raised: %+v", who, d)
			}
			delete(raised, who+d.Rule)
		}
	}
}

// What was counted before a restart counts after it, and what happened meanwhile.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.configure(`alerts: [{when: denied, above: 5, over: 10m}, {when: cost, above: 50, over: 24h}]`)
	key := w.create(domain.CreateKey{})
	denied := func(n int) {
		for range n {
			w.use(key, "/admin", "", 0, 0)
			w.use(key, "/", "", 200, 10)
		}
		w.flush()
	}
	stop := w.engine(nil)
	denied(2)
	stop()
	denied(2)
	stop = w.engine(nil)
	denied(2)
	w.await("+denied 0", key)
	w.await("+cost 0", key)
	stop()
	w.engine(nil)()
	w.engine(nil)
	denied(1)
	other := w.create(domain.CreateKey{})
	for range 6 {
		w.use(other, "/admin", "", 0, 0)
	}
	w.flush()
	w.await("+denied 1", key, other)
	w.alternate()
	if told := w.told(key, other); len(told) != 3 {
		t.Errorf("%q", told)
	}
}

// Two at once, each stopped and started again and again in the middle of what it does,
// tell each thing once.
func TestTwoAtOnce(t *testing.T) {
	w := newWorld(t)
	w.configure(`alerts: [{when: denied, above: 2, over: 300ms}, {when: error_rate, above: 0.5, over: 200ms}, {when: cost, above: 50, over: 300ms}]`)
	var keys []string
	for range 5 {
		keys = append(keys, w.create(domain.CreateKey{}))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for n := range 2 {
		running.Go(func() {
			for ctx.Err() == nil {
				one, stop := context.WithTimeout(ctx, rand.N(700*time.Millisecond))
				_ = New(Options{Ledger: w.Ledger, Ring: w.Ring, Pool: w.pool, Runner: w.runner, Node: fmt.Sprint("n", n),
					Hold: 20 * time.Millisecond, Every: 5 * time.Millisecond, Sweep: time.Second, Log: slog.New(slog.DiscardHandler)}).Run(one)
				stop()
			}
		})
	}
	for range 40 {
		for range rand.IntN(20) {
			key := keys[rand.IntN(len(keys))]
			w.use(key, []string{"/", "/admin/x"}[rand.IntN(2)], "", []int{200, 500}[rand.IntN(2)], 20)
		}
		w.flush()
		time.Sleep(rand.N(200 * time.Millisecond)) // traffic comes and goes
	}
	cancel()
	running.Wait()
	w.alternate()
	if n := len(w.told()); n < 10 {
		t.Errorf("only %d facts", n)
	}
}

// The first address of a key is no alert, another one is, and so is one that came while
// nobody looked. It stays sealed.
func TestNewAddress(t *testing.T) {
	w := newWorld(t)
	w.configure(`alerts: [{when: new_source_ip}, {when: denied, above: 0, over: 10m}]`)
	one, two, probe := w.create(domain.CreateKey{}), w.create(domain.CreateKey{}), w.create(domain.CreateKey{})
	stop := w.engine(nil)
	w.use(probe, "/admin/x", "", 0, 0)
	w.flush()
	w.await("+denied 2", one, two, probe) // it is at work
	from := func(key, ip string) {
		w.use(key, "/", ip, 200, 0)
		w.flush()
	}
	from(one, "198.51.100.1")
	from(one, "198.51.100.1")
	from(two, "198.51.100.2")
	from(one, "198.51.100.2") // known, though not of this key
	w.await("+new_source_ip 0", one, two)
	stop()
	// Nobody remembers anything but what is recorded.
	from(two, "198.51.100.2")
	from(two, "198.51.100.3")
	w.engine(nil)
	w.await("+new_source_ip 1", one, two)
	from(one, "198.51.100.1")
	w.use(one, "/admin/x", "198.51.100.1", 0, 0)
	w.flush()
	w.await("+denied 0", one, two) // so all before was looked at
	if told := w.told(one, two); len(told) != 4 {
		t.Errorf("%q", told)
	}
	w.alternate()
	for r, err := range w.Ledger.Read(t.Context(), events.Ops, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		d, ok := r.Event.Data.(events.AlertRaised)
		if !ok || d.When != "new_source_ip" {
			continue
		}
		if strings.Contains(string(r.Body), "198.51") {
			t.Errorf("an address is in clear: %s", r.Body)
		}
		if ip, err := w.seal.Open(t.Context(), d.SourceIP); err != nil || !strings.HasPrefix(ip, "198.51.100.") {
			t.Errorf("opened: %q, %v", ip, err)
		}
	}
}
