package applied_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/applied"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// TestMain is also the verifier in a process of its own.
func TestMain(m *testing.M) {
	if url := os.Getenv("KEYLEDGER_TEST_VERIFIER"); url != "" {
		if err := child(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// childWindow is the stale window of that process.
const childWindow = 2 * time.Second

// child answers every line on its input, a secret, with the decision's code.
func child(url string) error {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		return err
	}
	l, err := ledger.Open(context.Background(), nc, ledger.Options{AllowUnverifiedSync: true, ReadOnly: true})
	if err != nil {
		return err
	}
	ring := keyring.New()
	go ring.Run(context.Background(), l)
	<-ring.Ready()
	v := verify.New(ring, nil, verify.Options{Head: func(ctx context.Context) (uint64, error) { return l.Head(ctx, events.Ledger) }, StaleWindow: childWindow})
	v.Tell(nc, os.Getenv("KEYLEDGER_TEST_NODE"), "verifier")
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(v.Verify(bird(lines.Text())).Code)
	}
	v.Close()
	return nil
}

func bird(secret string) domain.Request {
	return domain.Request{Keyspace: "birds", Key: secret}
}

// world is a ledger with birds, a node that takes commands and watches, and others.
type world struct {
	*verifytest.World
	t        *testing.T
	commands *commands.Commands
	watcher  *applied.Watcher
	made     int
}

func begin(t *testing.T, bound time.Duration) *world {
	w := &world{World: verifytest.New(t, verify.Options{}, testenv.Listening()), t: t}
	w.Configure(verifytest.Birds)
	w.Append("birds", "org_1", "", events.OwnerRegistered{Name: "One"})
	w.watcher = w.watch(w.Verifier, "first", bound)
	w.commands = &commands.Commands{Ledger: w.Ledger, Ring: w.Ring, Appended: w.watcher.Appended}
	return w
}

func (w *world) watch(v *verify.Verifier, name string, bound time.Duration) *applied.Watcher {
	return w.watcherOf(v.Tell(w.Conn, name, "serve"), bound)
}

func (w *world) watcherOf(teller *applied.Teller, bound time.Duration) *applied.Watcher {
	watcher := applied.NewWatcher(applied.WatchOptions{Teller: teller, Record: applied.Once(w.Ledger), Bound: bound, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil))})
	ctx, stop := context.WithCancel(context.Background())
	listens, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = watcher.Run(ctx, w.Conn, func() { close(listens) })
	}()
	w.t.Cleanup(func() { stop(); <-ended })
	<-listens
	return watcher
}

// node is another verifier in this process, with a ring and a connection of its own.
func (w *world) node(name string) (*verify.Verifier, *keyring.Ring) {
	nc := testenv.Conn(w.t, w.NATS)
	l, err := ledger.Open(w.t.Context(), nc, ledger.Options{AllowUnverifiedSync: true, ReadOnly: true})
	if err != nil {
		w.t.Fatal(err)
	}
	ring := keyring.New()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = ring.Run(ctx, l) }()
	w.t.Cleanup(func() { stop(); <-ended; _ = l.Close() })
	<-ring.Ready()
	v := verify.New(ring, nil, verify.Options{})
	w.t.Cleanup(v.Close)
	v.Tell(nc, name, "gateway")
	return v, ring
}

// key makes one by a command, and waits until a ring knows it.
func (w *world) key(rings ...*keyring.Ring) (id, secret string) {
	w.t.Helper()
	w.made++
	r, err := w.commands.CreateKey(w.t.Context(), as, "birds", "org_1", domain.CreateKey{Name: fmt.Sprint("bird ", w.made), Scopes: new([]string{"birds:read"})})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, ring := range rings {
		if err := ring.Wait(w.t.Context(), r.Sequence); err != nil {
			w.t.Fatal(err)
		}
	}
	return r.Key.ID, r.Secret
}

var as = commands.Request{Authority: domain.System("test"), Via: "test"}

// heard waits until the watcher has heard these nodes.
func (w *world) heard(names ...string) {
	w.t.Helper()
	w.until("all are heard", func() bool {
		var list []string
		for _, v := range w.watcher.Verifiers(time.Now()) {
			list = append(list, v.Node)
		}
		return !slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(list, name) })
	})
}

// until polls: nobody signals what is asked.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// recorded are the measurements on OPS of one fact.
func (w *world) recorded(sequence uint64) (list []events.RevocationMeasured) {
	w.t.Helper()
	for r, err := range w.Ledger.Read(w.t.Context(), events.Ops, 1, 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		if m, ok := r.Event.Data.(events.RevocationMeasured); ok && m.Sequence == sequence {
			list = append(list, m)
		}
	}
	return list
}

func wait(t *testing.T, w *applied.Watcher, sequence uint64, within time.Duration) applied.Revocation {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), within)
	defer stop()
	r, ok := w.Wait(ctx, sequence)
	if !ok {
		t.Fatalf("the fact at %d is not known", sequence)
	}
	return r
}

// What every kind of ending is measured, and nothing else; the measurement is recorded
// once, with every verifier, and a node that ends is not waited for any more.
func TestMeasured(t *testing.T) {
	w := begin(t, 0)
	v, ring := w.node("second")
	_, third := w.node("third")
	w.heard("first", "second", "third")
	id, secret := w.key(ring, third)
	if code := v.Verify(bird(secret)).Code; code != domain.CodeValid {
		t.Fatal(code)
	}
	rotated, err := w.commands.RotateKey(t.Context(), as, id, domain.RotateKey{})
	if err != nil {
		t.Fatal(err)
	}
	graceful, err := w.commands.RotateKey(t.Context(), as, id, domain.RotateKey{Grace: new(domain.Duration(time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	ended, err := w.commands.EndGrace(t.Context(), as, id, domain.EndGrace{})
	if err != nil {
		t.Fatal(err)
	}
	deleted, err := w.commands.DeleteKey(t.Context(), as, id)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := w.watcher.Revocation(graceful.Sequence, time.Now()); ok {
		t.Error("a rotation whose grace runs has ended nothing yet")
	}
	if _, ok := w.watcher.Revocation(deleted.Sequence, time.Now()); ok {
		t.Error("a deletion is measured beside the revocation before it")
	}
	for sequence, kind := range map[uint64]string{rotated.Sequence: "key.rotated", ended.Sequence: "key.grace_ended", deleted.Sequence - 1: "key.revoked"} {
		r := wait(t, w.watcher, sequence, 20*time.Second)
		if r.Fact != kind || r.Basis != applied.Acknowledged || r.AppendUS <= 0 || len(r.Stopped) != 3 || len(r.Unconfirmed) != 0 || r.Key != id || r.Owner != "org_1" {
			t.Errorf("%s at %d: %+v", kind, sequence, r)
		}
		for _, s := range r.Stopped {
			// One machine has one clock: by it the verifier stopped before its word came. The
			// fact's time is cut to the millisecond.
			if s.ClockUS == nil || *s.ClockUS < 0 || *s.ClockUS > r.AppendUS+s.DelayUS+1000+time.Since(r.Since).Microseconds() {
				t.Errorf("%s: %+v", s.Node, s)
			}
		}
		w.until("it is recorded", func() bool { return len(w.recorded(sequence)) > 0 })
	}
	for sequence := range map[uint64]bool{rotated.Sequence: true, ended.Sequence: true, deleted.Sequence - 1: true} {
		if list := w.recorded(sequence); len(list) != 1 || len(list[0].Stopped) != 3 || list[0].Node != "first" {
			t.Errorf("recorded of %d: %+v", sequence, list)
		}
	}
	if s := w.watcher.Summary(); s.Measured != 3 || s.Max < s.P50 || s.P50 <= 0 || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
	v.Close()
	w.until("the one that ended is gone", func() bool { return len(w.watcher.Verifiers(time.Now())) == 2 })
	id, _ = w.key()
	r, err := w.commands.RevokeKey(t.Context(), as, id, domain.RevokeKey{})
	if err != nil {
		t.Fatal(err)
	}
	if got := wait(t, w.watcher, r.Sequence, 20*time.Second); len(got.Stopped) != 2 || len(got.Unconfirmed) != 0 {
		t.Errorf("%+v", got)
	}
}

// Nobody outside is ever accepted after the moment that is reported: not by the delay,
// and not by the verifier's own clock, which is this machine's.
func TestNoAcceptAfterReported(t *testing.T) {
	w := begin(t, 0)
	v, ring := w.node("second")
	w.heard("first", "second")
	var acknowledged time.Time
	w.commands.Appended = func(first uint64, batch []ledger.Expect, began, at time.Time) {
		acknowledged = at
		w.watcher.Appended(first, batch, began, at)
	}
	for range 50 {
		id, secret := w.key(ring)
		var last time.Time // the begin of the last request that was admitted
		var asking sync.WaitGroup
		working := make(chan struct{})
		asking.Go(func() {
			for n := 0; ; n++ {
				began := time.Now()
				if !v.Verify(bird(secret)).Valid {
					return
				}
				if last = began; n == 100 {
					close(working)
				}
			}
		})
		<-working
		r, err := w.commands.RevokeKey(t.Context(), as, id, domain.RevokeKey{})
		if err != nil {
			t.Fatal(err)
		}
		asking.Wait()
		got := wait(t, w.watcher, r.Sequence, 20*time.Second)
		i := slices.IndexFunc(got.Stopped, func(s events.VerifierStopped) bool { return s.Node == "second" })
		if i < 0 {
			t.Fatalf("%+v", got)
		}
		s := got.Stopped[i]
		if late := last.Sub(acknowledged); late > time.Duration(s.DelayUS)*time.Microsecond {
			t.Errorf("a request that began %s after the acknowledgement was admitted, the report says %d µs", late, s.DelayUS)
		}
		if by := got.Decided.Time().Add(time.Duration(*s.ClockUS) * time.Microsecond); last.Sub(by) > time.Microsecond {
			t.Errorf("a request that began %s after the verifier says it stopped was admitted", last.Sub(by))
		}
	}
}

// Of several that record the same measurement one does, whatever else is recorded on
// its subject at the same time.
func TestRecordedOnce(t *testing.T) {
	w := begin(t, 0)
	id, _ := w.key()
	about := func(data events.Payload) events.Envelope {
		e := events.New(data, time.Now())
		e.Keyspace, e.Owner, e.Key = "birds", "org_1", id
		return e
	}
	const facts, nodes = 10, 5
	var all sync.WaitGroup
	for n := range nodes {
		all.Go(func() {
			record := applied.Once(w.Ledger)
			for i := range facts {
				if err := record(t.Context(), about(events.RevocationMeasured{Sequence: uint64(1000 + i), Decided: events.At(time.Now()), Node: fmt.Sprint(n)})); err != nil {
					t.Error(err)
				}
				if _, err := w.Ledger.AppendOps(t.Context(), about(events.AuditRead{What: "test"})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for i := range facts {
		if list := w.recorded(uint64(1000 + i)); len(list) != 1 {
			t.Errorf("fact %d was recorded %d times", i, len(list))
		}
	}
}

// process is a verifier of its own.
type process struct {
	*exec.Cmd
	in      *os.File
	answers *bufio.Reader
}

func (w *world) process(name string) *process { return w.processAt(name, w.NATS.ClientURL()) }

func (w *world) processAt(name, url string) *process {
	w.t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "KEYLEDGER_TEST_VERIFIER="+url, "KEYLEDGER_TEST_NODE="+name)
	c.Stderr = w.t.Output()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	read, write, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	c.Stdin = read
	out, err := c.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	read.Close()
	p := &process{c, write, bufio.NewReader(out)}
	w.t.Cleanup(func() {
		write.Close()
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	if line := p.line(w.t); line != "ready" {
		w.t.Fatal(line)
	}
	return p
}

func (p *process) line(t *testing.T) string {
	t.Helper()
	line, err := p.answers.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func (p *process) verify(t *testing.T, secret string) domain.Code {
	t.Helper()
	fmt.Fprintln(p.in, secret)
	return domain.Code(p.line(t))
}

// A process that is stopped during a revocation is unconfirmed, then known to answer
// STATE_TOO_STALE; when it goes on it refuses and confirms. One that is killed stays
// unconfirmed, and is recorded so.
func TestStoppedAndKilled(t *testing.T) {
	w := begin(t, 4*time.Second)
	paused, killed := w.process("paused"), w.process("killed")
	w.heard("first", "paused", "killed")
	id, secret := w.key()
	for _, p := range []*process{paused, killed} {
		w.until("the key is known", func() bool { return p.verify(t, secret) == domain.CodeValid })
	}
	if err := paused.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var state syscall.WaitStatus // the signal was only sent so far
	if _, err := syscall.Wait4(paused.Process.Pid, &state, syscall.WUNTRACED, nil); err != nil || !state.Stopped() {
		t.Fatal(state, err)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r, err := w.commands.RevokeKey(t.Context(), as, id, domain.RevokeKey{})
	if err != nil {
		t.Fatal(err)
	}
	got := wait(t, w.watcher, r.Sequence, time.Second)
	if len(got.Stopped) != 1 || len(got.Unconfirmed) != 2 || got.Unconfirmed[1].Node != "paused" || got.Unconfirmed[1].StaleMS != childWindow.Milliseconds() {
		t.Fatalf("%+v", got)
	}
	if time.Since(got.Since) > childWindow {
		t.Error("it is said to be stale before anything was waited for")
	}
	w.until("both are silent", func() bool {
		n := 0
		for _, v := range w.watcher.Verifiers(time.Now()) {
			if v.Silent && v.Lost > v.Window {
				n++
			}
		}
		return n == 2
	})
	if err := paused.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if code := paused.verify(t, secret); code != domain.CodeRevoked && code != domain.CodeStateTooStale {
		t.Errorf("the one that was stopped answers %s", code)
	}
	w.until("it confirms", func() bool {
		got, _ = w.watcher.Revocation(r.Sequence, time.Now())
		return len(got.Stopped) == 2
	})
	i := slices.IndexFunc(got.Stopped, func(s events.VerifierStopped) bool { return s.Node == "paused" })
	if i < 0 || time.Duration(got.Stopped[i].DelayUS)*time.Microsecond < childWindow || len(got.Unconfirmed) != 1 || got.Unconfirmed[0].Node != "killed" {
		t.Errorf("%+v", got)
	}
	w.until("it is recorded", func() bool { return len(w.recorded(r.Sequence)) == 1 })
	if m := w.recorded(r.Sequence)[0]; len(m.Unconfirmed) != 1 || m.Unconfirmed[0].Node != "killed" || m.WaitedMS < 4000 || len(m.Stopped) != 2 {
		t.Errorf("%+v", m)
	}
	for _, v := range w.watcher.Verifiers(time.Now()) {
		if want := uint64(0); v.Node == "killed" && v.Unconfirmed != 1 || v.Node != "killed" && v.Unconfirmed != want {
			t.Errorf("%s: %d unconfirmed", v.Node, v.Unconfirmed)
		}
	}
}

// A process that loses NATS accepts until its stale window ends and no longer: what is
// said of it meanwhile holds. When it is back it confirms.
func TestPartitioned(t *testing.T) {
	w := begin(t, 0)
	r := newRelay(t, strings.TrimPrefix(w.NATS.ClientURL(), "nats://"))
	p := w.processAt("partitioned", "nats://"+r.Addr().String())
	w.heard("first", "partitioned")
	id, secret := w.key()
	w.until("the key is known", func() bool { return p.verify(t, secret) == domain.CodeValid })
	r.cut(true)
	revoked, err := w.commands.RevokeKey(t.Context(), as, id, domain.RevokeKey{})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := w.watcher.Revocation(revoked.Sequence, time.Now())
	for accepted := true; accepted; {
		asked := time.Now()
		switch code := p.verify(t, secret); {
		case code == domain.CodeStateTooStale:
			accepted = false
		case code != domain.CodeValid:
			t.Fatal(code)
		case asked.Sub(got.Since) > childWindow:
			t.Fatalf("it accepts %s after the revocation, its stale window is %s", asked.Sub(got.Since), childWindow)
		}
	}
	if got, _ = w.watcher.Revocation(revoked.Sequence, time.Now()); len(got.Unconfirmed) != 1 || got.Unconfirmed[0].Node != "partitioned" {
		t.Errorf("%+v", got)
	}
	r.cut(false)
	if got := wait(t, w.watcher, revoked.Sequence, 30*time.Second); len(got.Unconfirmed) != 0 || len(got.Stopped) != 2 {
		t.Errorf("%+v", got)
	}
	w.until("it refuses", func() bool { return p.verify(t, secret) == domain.CodeRevoked })
}

// relay is a way to a server that can be cut.
type relay struct {
	net.Listener
	mu    sync.Mutex // guards what follows
	off   bool
	conns []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l}
	var copying sync.WaitGroup
	copying.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			r.mu.Lock()
			if err != nil || r.off {
				r.mu.Unlock()
				in.Close()
				if err == nil {
					out.Close()
				}
				continue
			}
			r.conns = append(r.conns, in, out)
			r.mu.Unlock()
			for a, b := range map[net.Conn]net.Conn{in: out, out: in} {
				copying.Go(func() {
					_, _ = io.Copy(a, b)
					a.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.cut(true)
		copying.Wait()
	})
	return r
}

func (r *relay) cut(off bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.off = off; off {
		for _, c := range r.conns {
			c.Close()
		}
		r.conns = nil
	}
}

// Where the node that appended a fact records nothing, the others do, once, and say
// that it is by the clocks of two machines.
func TestTakeover(t *testing.T) {
	w := begin(t, 2*time.Second)
	v, ring := w.node("second")
	other := w.watcherOf(v.Tell(w.Conn, "third", "serve"), 2*time.Second)
	w.heard("first", "third")
	id, _ := w.key(ring)
	w.commands.Appended = nil
	r, err := w.commands.RevokeKey(t.Context(), as, id, domain.RevokeKey{})
	if err != nil {
		t.Fatal(err)
	}
	recorded := func(watcher *applied.Watcher) bool {
		got, _ := watcher.Revocation(r.Sequence, time.Now())
		return got.Recorded
	}
	w.until("both know that it is recorded", func() bool { return recorded(w.watcher) && recorded(other) })
	if list := w.recorded(r.Sequence); len(list) != 1 || list[0].Basis != applied.Clocks || list[0].AppendUS != 0 || len(list[0].Stopped) < 2 {
		t.Errorf("%+v", list)
	}
}

// What is malformed, of another node than its subject says or of a process that
// another has followed changes nothing; a word that was lost is made good by the next.
func TestHear(t *testing.T) {
	w := begin(t, 0)
	id, _ := w.key()
	tell := func(subject string, m map[string]any) {
		for name, value := range map[string]any{"v": 1, "node": "other", "start": 100, "sent": 200, "window_ms": 60000} {
			if _, ok := m[name]; !ok {
				m[name] = value
			}
		}
		b, _ := json.Marshal(m)
		w.watcher.Hear(subject, b, time.Now())
	}
	const subject = "keyledger.verifiers.other"
	tell(subject, map[string]any{"v": 2})
	tell(subject, map[string]any{"node": "another"})
	tell(subject, map[string]any{"start": 0})
	tell(subject, map[string]any{"ends": true})
	w.watcher.Hear(subject, []byte("{"), time.Now())
	if list := w.watcher.Verifiers(time.Now()); slices.ContainsFunc(list, func(v applied.Verifier) bool { return v.Node != "first" }) {
		t.Errorf("%+v", list)
	}
	head := w.Ring.Sequence()
	tell(subject, map[string]any{"sequence": head})
	r, err := w.commands.RevokeKey(t.Context(), as, id, domain.RevokeKey{})
	if err != nil {
		t.Fatal(err)
	}
	other := func() (stopped []events.VerifierStopped) {
		got, _ := w.watcher.Revocation(r.Sequence, time.Now())
		return slices.DeleteFunc(got.Stopped, func(s events.VerifierStopped) bool { return s.Node != "other" })
	}
	tell(subject, map[string]any{"sequence": head + 5, "start": 99})
	if s := other(); len(s) != 0 {
		t.Errorf("of a process that is gone: %+v", s)
	}
	tell(subject, map[string]any{"sequence": r.Sequence})
	if s := other(); len(s) != 1 || s[0].ClockUS != nil {
		t.Errorf("by its sequence alone: %+v", s)
	}
	before := other()[0].DelayUS
	tell(subject, map[string]any{"sequence": r.Sequence, "stopped": []any{map[string]any{"sequence": r.Sequence, "at": time.Now().UnixNano()}}})
	if s := other(); len(s) != 1 || s[0].ClockUS == nil || s[0].DelayUS != before {
		t.Errorf("the moment came later: %+v", s)
	}
	// One that began after the revocation knew of it from its first request on.
	tell("keyledger.verifiers.young", map[string]any{"node": "young", "from": r.Sequence, "sequence": r.Sequence})
	if got, _ := w.watcher.Revocation(r.Sequence, time.Now()); len(got.Unconfirmed) != 0 || len(got.Stopped) != 2 {
		t.Errorf("%+v", got)
	}
}
