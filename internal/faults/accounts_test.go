package faults

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// books are what clients were answered, to be compared with what USAGE says.
type books struct {
	mu sync.Mutex // guards what follows
	// used are the admitted requests, by their ids.
	used map[string]use
	// refused counts refusals by code.
	refused map[string]int64
	// taken counts what other traffic was let draw from a pool.
	taken int64
	// nothing counts answers that leave no fact, by design.
	nothing int64
	// open are the endpoints of requests that were sent and not answered: they
	// may have been recorded, or not.
	open map[string]int
}

// use is an admitted request: its endpoint, and when its answer was read.
type use struct {
	endpoint string
	at       time.Time
}

func newBooks() *books {
	return &books{used: map[string]use{}, refused: map[string]int64{}, open: map[string]int{}}
}

func (b *books) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	refused := ""
	for _, code := range slices.Sorted(maps.Keys(b.refused)) {
		refused += fmt.Sprintf(", %s %d", code, b.refused[code])
	}
	return fmt.Sprintf("answered: %d admitted%s, %d drawn, %d without a fact; %d not answered", len(b.used), refused, b.taken, b.nothing, len(b.open))
}

// question is one kind of request that clients send.
type question struct {
	name string
	// wire makes the n-th request of a client. endpoint is unlike any other's
	// where the kind is admitted, so that a use without an answer is recognised.
	wire func(client string, n int) (req *http.Request, endpoint string)
	// enter writes what was answered into the books.
	enter func(b *books, a answer, endpoint string) error
}

// judged enters an answer of a gateway.
func judged(b *books, a answer, endpoint string) error {
	if code := a.code(); code != "" && code != "UPSTREAM_FAILED" && code != "UPSTREAM_TIMEOUT" {
		b.refused[code]++
		return nil
	}
	return b.admit(a.header.Get("X-Request-Id"), endpoint)
}

func (b *books) admit(id, endpoint string) error {
	if !strings.HasPrefix(id, "req_") {
		return fmt.Errorf("an answer without X-Request-Id: %q", id)
	}
	if _, ok := b.used[id]; ok {
		return fmt.Errorf("%s is the id of two answers", id)
	}
	b.used[id] = use{endpoint, time.Now()}
	return nil
}

// unrecorded enters an answer that leaves no fact.
func unrecorded(status int) func(*books, answer, string) error {
	return func(b *books, a answer, _ string) error {
		if a.status != status {
			return fmt.Errorf("answered %d %s, want %d", a.status, a.body, status)
		}
		b.nothing++
		return nil
	}
}

// decided enters an answer of /v1/verify or /v1/limits/take.
func decided(b *books, a answer, endpoint string) error {
	var d struct {
		Valid bool
		Code  string
		Key   *struct{ ID string }
	}
	if err := json.Unmarshal(a.body, &d); err != nil || a.status != http.StatusOK || d.Valid != (d.Code == "VALID") {
		return fmt.Errorf("answered %d %s (%v)", a.status, a.body, err)
	}
	switch {
	case !d.Valid:
		b.refused[d.Code]++
	case d.Key == nil:
		b.nothing++
	default:
		return b.admit(a.header.Get("X-Request-Id"), endpoint)
	}
	return nil
}

// line is a connection of a client that knows which of its requests were sent:
// unlike the transport of net/http, which repeats some by itself.
type line struct {
	address string
	conn    net.Conn
	in      *bufio.Reader
}

// ask sends a request and reads the answer. sent is false where nothing of it
// can have arrived.
func (l *line) ask(req *http.Request, keep bool) (a answer, sent bool, err error) {
	if l.conn != nil && l.ended() {
		l.close()
	}
	if l.conn == nil {
		if l.conn, err = net.DialTimeout("tcp", l.address, 5*time.Second); err != nil {
			return a, false, err
		}
		l.in = bufio.NewReader(l.conn)
	}
	defer func() {
		if err != nil || !keep {
			l.close()
		}
	}()
	if err := l.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return a, false, err
	}
	req.Host, req.Close = l.address, !keep
	if err := req.Write(l.conn); err != nil {
		return a, true, err
	}
	resp, err := http.ReadResponse(l.in, req)
	if err != nil {
		return a, true, err
	}
	a = answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return a, true, err
	}
	if resp.Close {
		l.close()
	}
	return a, true, nil
}

// ended says whether the server closed the connection while it was idle.
func (l *line) ended() bool {
	_ = l.conn.SetReadDeadline(time.Now().Add(50 * time.Microsecond))
	_, err := l.in.Peek(1)
	timeout, ok := err.(net.Error)
	return !(ok && timeout.Timeout())
}

func (l *line) close() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// clients ask until end is closed, each one question after the other, and every
// answer goes into the books.
func (b *books) clients(t *testing.T, n int, address string, questions []question, end <-chan struct{}) (done func()) {
	var wg sync.WaitGroup
	var answered atomic.Int64
	for i := range n {
		wg.Go(func() {
			l := &line{address: address}
			defer l.close()
			// Every other client opens a connection for each request, as many do.
			keep, name := i%2 == 0, fmt.Sprintf("c%d", i)
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				q := questions[mathrand.IntN(len(questions))]
				req, endpoint := q.wire(name, n)
				a, sent, err := l.ask(req, keep)
				if err != nil {
					if sent {
						endpoint, _, _ = strings.Cut(endpoint, "?") // as it is recorded
						b.mu.Lock()
						b.open[endpoint]++
						b.mu.Unlock()
					} else {
						<-time.After(5 * time.Millisecond) // nobody listens: it is being started
					}
					continue
				}
				answered.Add(1)
				b.mu.Lock()
				err = q.enter(b, a, endpoint)
				b.mu.Unlock()
				if err != nil {
					t.Errorf("%s: %v", q.name, err)
					return
				}
			}
		})
	}
	return func() {
		wg.Wait()
		if answered.Load() == 0 {
			t.Error("nobody was answered")
		}
	}
}

// written is what USAGE holds of a keyspace.
type written struct {
	used      map[string]int    // by request id
	endpoints map[string]string // request id → endpoint
	refused   map[string]int64  // by code
	taken     int64
	gaps      []events.UsageGap
}

// readUsage reads all of USAGE. Whoever wrote it has ended, or waits for nothing.
func readUsage(t testing.TB, natsURL string) written {
	t.Helper()
	conn, err := nats.Connect(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l, err := ledger.Open(t.Context(), conn, ledger.Options{ReadOnly: true, AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	head, err := l.Head(t.Context(), events.Usage)
	if err != nil {
		t.Fatal(err)
	}
	w := written{used: map[string]int{}, endpoints: map[string]string{}, refused: map[string]int64{}}
	if head == 0 {
		return w
	}
	for r, err := range l.Read(t.Context(), events.Usage, 1, head) {
		if err != nil {
			t.Fatal(err)
		}
		switch d := r.Event.Data.(type) {
		case events.KeyUsed:
			w.used[r.Event.RequestID]++
			w.endpoints[r.Event.RequestID] = d.Endpoint
		case events.KeyRateLimited:
			w.refused["RATE_LIMITED"] += d.Count
		case events.KeyDenied:
			w.refused[d.Code] += d.Count
		case events.CredentialRejected:
			w.refused[d.Code] += d.Count
		case events.LimitTaken:
			w.taken += d.Count
		case events.UsageGap:
			w.gaps = append(w.gaps, d)
		}
	}
	return w
}

// difference is where the books and USAGE differ: what was answered and is not
// recorded, and what is recorded and was neither answered nor sent.
type difference struct {
	missing []string // ids of admitted requests
	refused int64    // refusals that are missing
	extra   []string // what is too much
	unclear int64    // recorded, of what was sent and not answered
}

func (b *books) compare(w written) (d difference) {
	b.mu.Lock()
	defer b.mu.Unlock()
	extra := func(format string, a ...any) { d.extra = append(d.extra, fmt.Sprintf(format, a...)) }
	for id := range b.used {
		if w.used[id] == 0 {
			d.missing = append(d.missing, id)
		}
	}
	open := maps.Clone(b.open)
	var slack int64 // of refusals: they are counted and have no ids
	for id, n := range w.used {
		if n > 1 {
			extra("%s is recorded %d times", id, n)
		}
		if _, ok := b.used[id]; !ok {
			if at := w.endpoints[id]; open[at] > 0 {
				open[at]--
				d.unclear++
			} else {
				extra("%s (%s) is recorded and was not asked", id, at)
			}
		}
	}
	for _, n := range open {
		slack += int64(n)
	}
	for _, code := range slices.Sorted(maps.Keys(w.refused)) {
		if over := w.refused[code] - b.refused[code]; over > 0 {
			d.unclear += over
			if slack -= over; slack < 0 {
				extra("%s is recorded %d times, answered %d times", code, w.refused[code], b.refused[code])
			}
		}
	}
	for code, n := range b.refused {
		d.refused += max(0, n-w.refused[code])
	}
	if w.taken < b.taken || w.taken > b.taken+takes*int64(b.open[""]) {
		extra("%d requests of other traffic are recorded, %d were answered", w.taken, b.taken)
	}
	return d
}

// takes is how much other traffic draws from a pool at once.
const takes = 3

// scene is a service with keys of every kind, and what can be asked with them.
type scene struct {
	*stage
	b      *broker
	one    *service
	client *client

	upstream *httptest.Server
	secrets  map[string]string // of keys, by what they are for
	unknown  string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	return newSceneAt(t, startBroker(t, t.TempDir(), true))
}

func newSceneAt(t *testing.T, b *broker) *scene {
	t.Helper()
	s := &scene{b: b, secrets: map[string]string{}}
	s.stage = newStage(t, s.b.url, testenv.Postgres(t), fmt.Sprintf("monitor: [%q]", s.b.monitor))
	s.one = s.stage.service()
	s.one.start()
	s.client = s.stage.client(s.one)
	s.configure(t)
	s.upstream = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "slow"): // still under way when the end is asked for
			<-time.After(50 * time.Millisecond)
		case strings.Contains(r.URL.Path, "fails"):
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintln(w, "{}")
	}))
	t.Cleanup(s.upstream.Close)
	return s
}

// configure makes the keyspace and its keys.
func (s *scene) configure(t *testing.T) {
	t.Helper()
	source, err := os.ReadFile(filepath.Join("testdata", "accounts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := bytes.Cut(source, []byte("\n")) // the first line is a comment
	doc, err := domain.ParseDocument(source)
	if err != nil {
		t.Fatal(err)
	}
	if s.unknown, _, err = domain.Compile(doc, 1).NewSecret(rand.Reader, "live"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	did := 0
	do := func(method, path string, body any) answer {
		t.Helper()
		did++
		a := s.client.until(ctx, method, path, fmt.Sprintf("scene-%d", did), body)
		if a.status/100 != 2 {
			t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
		}
		return a
	}
	do(http.MethodPut, "/v1/keyspaces/accounts", body)
	for _, owner := range []string{"acme", "small", "closed"} {
		plan := "large"
		if owner == "small" {
			plan = owner
		}
		do(http.MethodPut, "/v1/keyspaces/accounts/owners/"+owner, map[string]string{"name": owner, "plan": plan})
	}
	both := []string{"parcels:read", "parcels:write"}
	ids := map[string]string{}
	for name, more := range map[string]map[string]any{
		"open":       {"scopes": both},
		"other":      {"scopes": both},
		"limited":    {"owner": "small", "scopes": both},
		"limited2":   {"owner": "small", "scopes": both},
		"reader":     {"scopes": both[:1]},
		"revoked":    {"scopes": both},
		"superseded": {"scopes": both},
		"expiring":   {"scopes": both, "expires_in": "3s"},
		"bound":      {"scopes": both, "resources": []string{"d1"}},
		"origin":     {"scopes": both, "allowed_origins": []string{"https://a.example"}},
		"ip":         {"scopes": both, "allowed_ips": []string{"192.0.2.0/24"}},
		"test":       {"scopes": both, "environment": "test"},
		"closed":     {"scopes": both, "owner": "closed"},
	} {
		request := map[string]any{"keyspace": "accounts", "owner": "acme", "name": name}
		maps.Copy(request, more)
		var m made
		do(http.MethodPost, "/v1/keys", request).decode(t, &m)
		s.secrets[name], ids[name] = m.Secret, m.Key.ID
	}
	do(http.MethodPost, "/v1/keys/"+ids["revoked"]+"/revoke", map[string]string{"reason": "over"})
	do(http.MethodPost, "/v1/keys/"+ids["superseded"]+"/rotate", map[string]string{"grace": "0s"})
	do(http.MethodPut, "/v1/keyspaces/accounts/owners/closed", map[string]string{"name": "closed", "plan": "closed"})
}

// source is the n-th address that a client claims to come from: more of them in a
// second than rejections are told apart by.
func source(n int) string {
	if n%3 == 0 {
		return fmt.Sprintf("2001:db8:%x::%x", n%5000, n)
	}
	return fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255)
}

// proxied are questions to a gateway.
func (s *scene) proxied() []question {
	ask := func(name, method, path, authorization string, enter func(*books, answer, string) error, more ...string) question {
		return question{name, func(client string, n int) (*http.Request, string) {
			endpoint := strings.ReplaceAll(path, "#", fmt.Sprintf("%s-%d", client, n))
			req, err := http.NewRequest(method, endpoint, nil)
			if err != nil {
				panic(err) // of a path that stands below
			}
			if authorization != "" {
				req.Header.Set("Authorization", authorization)
			}
			req.Header.Set("X-Forwarded-For", source(n))
			for i := 0; i+1 < len(more); i += 2 {
				req.Header.Add(more[i], more[i+1])
			}
			return req, endpoint
		}, enter}
	}
	key := func(name string) string { return "Bearer " + s.secrets[name] }
	return []question{
		ask("admitted", "GET", "/v1/parcels/#", key("open"), judged),
		ask("admitted", "POST", "/v1/parcels/#", key("other"), judged),
		ask("admitted, slow", "GET", "/v1/parcels/slow-#", key("open"), judged),
		ask("admitted, failing", "GET", "/v1/parcels/fails-#", key("open"), judged),
		ask("admitted, no upstream", "GET", "/broken/#", key("open"), judged),
		ask("admitted, with a query", "GET", "/v1/parcels/#?q=1", key("other"), func(b *books, a answer, at string) error {
			at, _, _ = strings.Cut(at, "?")
			return judged(b, a, at)
		}),
		ask("limited", "GET", "/v1/parcels/#", key("limited"), judged),
		ask("limited", "GET", "/v1/parcels/#", key("limited2"), judged),
		ask("wrong scope", "POST", "/v1/parcels/1", key("reader"), judged),
		ask("wrong scope, many endpoints", "POST", "/v1/parcels/#", key("reader"), judged),
		ask("revoked", "GET", "/v1/parcels/1", key("revoked"), judged),
		ask("superseded", "GET", "/v1/parcels/1", key("superseded"), judged),
		ask("expiring", "GET", "/v1/parcels/#", key("expiring"), judged),
		ask("wrong resource", "GET", "/v1/depots/d2/x", key("bound"), judged),
		ask("right resource", "GET", "/v1/depots/d1/#", key("bound"), judged),
		ask("wrong origin", "GET", "/v1/parcels/1", key("origin"), judged, "Origin", "https://b.example"),
		ask("right origin", "GET", "/v1/parcels/#", key("origin"), judged, "Origin", "https://a.example"),
		ask("wrong address", "GET", "/v1/parcels/1", key("ip"), judged),
		ask("wrong environment", "GET", "/live/v1/parcels/1", key("test"), judged),
		ask("closed plan", "GET", "/v1/parcels/1", key("closed"), judged),
		ask("unknown", "GET", "/v1/parcels/1", "Bearer "+s.unknown, judged),
		ask("malformed key", "GET", "/v1/parcels/1", "Bearer ac_live_short", judged),
		ask("malformed credential", "GET", "/v1/parcels/1", "Basic YTpi", judged),
		ask("two credentials", "GET", "/v1/parcels/1", key("open"), judged, "Authorization", key("open")),
		ask("missing", "GET", "/v1/parcels/1", "", judged),
		ask("public", "GET", "/health", "", unrecorded(http.StatusOK)),
		ask("preflight", "OPTIONS", "/v1/parcels/1", "", unrecorded(http.StatusOK), "Origin", "https://a.example", "Access-Control-Request-Method", "GET"),
		ask("above the root", "GET", "/live/v1/..%2f..%2fx", key("open"), unrecorded(http.StatusBadRequest)),
	}
}

// verified are questions to /v1/verify and /v1/limits/take.
func (s *scene) verified() []question {
	post := func(name, path string, body func(client string, n int) (fields map[string]any, endpoint string), enter func(*books, answer, string) error) question {
		return question{name, func(client string, n int) (*http.Request, string) {
			fields, endpoint := body(client, n)
			b, err := json.Marshal(fields)
			if err != nil {
				panic(err) // of texts and numbers
			}
			req, err := http.NewRequest(http.MethodPost, path, bytes.NewReader(b))
			if err != nil {
				panic(err)
			}
			req.Header.Set("Authorization", "Bearer "+s.root)
			req.Header.Set("Content-Type", "application/json")
			return req, endpoint
		}, enter}
	}
	ask := func(name, method, path string, more ...any) question {
		return post(name, "/v1/verify", func(client string, n int) (map[string]any, string) {
			endpoint := strings.ReplaceAll(path, "#", fmt.Sprintf("%s-%d", client, n))
			fields := map[string]any{"keyspace": "accounts", "method": method, "path": endpoint, "ip": source(n)}
			for i := 0; i+1 < len(more); i += 2 {
				fields[more[i].(string)] = more[i+1]
			}
			return fields, endpoint
		}, decided)
	}
	key := func(name string) string { return "Bearer " + s.secrets[name] }
	return []question{
		ask("admitted", "GET", "/v1/parcels/#", "authorization", key("open")),
		ask("admitted, by the key alone", "POST", "/v1/parcels/#", "key", s.secrets["other"]),
		ask("admitted, the long way", "GET", "/v1/parcels/ä-#", "authorization", key("open")),
		ask("limited", "GET", "/v1/parcels/#", "authorization", key("limited")),
		ask("limited", "GET", "/v1/parcels/#", "authorization", key("limited2")),
		ask("wrong scope", "POST", "/v1/parcels/1", "authorization", key("reader")),
		ask("wrong scope, many endpoints", "POST", "/v1/parcels/#", "authorization", key("reader")),
		ask("revoked", "GET", "/v1/parcels/1", "authorization", key("revoked")),
		ask("superseded", "GET", "/v1/parcels/1", "authorization", key("superseded")),
		ask("expiring", "GET", "/v1/parcels/#", "authorization", key("expiring")),
		ask("wrong resource", "GET", "/v1/depots/d2/x", "authorization", key("bound")),
		ask("wrong origin", "GET", "/v1/parcels/1", "authorization", key("origin"), "origin", "https://b.example"),
		ask("wrong address", "GET", "/v1/parcels/1", "authorization", key("ip")),
		ask("closed plan", "GET", "/v1/parcels/1", "authorization", key("closed")),
		ask("unknown", "GET", "/v1/parcels/1", "authorization", "Bearer "+s.unknown),
		ask("malformed key", "GET", "/v1/parcels/1", "key", "ac_live_short"),
		ask("malformed credential", "GET", "/v1/parcels/1", "authorization", "Basic YTpi"),
		ask("missing", "GET", "/v1/parcels/1"),
		ask("public", "GET", "/health"),
		post("other traffic", "/v1/limits/take", func(string, int) (map[string]any, string) {
			return map[string]any{"keyspace": "accounts", "owner": "acme", "n": takes}, ""
		}, func(b *books, a answer, _ string) error {
			if a.status != http.StatusOK || !bytes.Contains(a.body, []byte(`"code":"VALID"`)) {
				return fmt.Errorf("answered %d %s", a.status, a.body)
			}
			b.taken += takes
			return nil
		}),
	}
}

// gateway prepares a process of `keyledger gateway`, at one address over all its
// lives, with a directory for what it keeps; empty: it keeps nothing, and has no
// write-ahead log.
func (s *scene) gateway(audit, dir string) *service {
	s.t.Helper()
	closed := testenv.FreePort(s.t)
	address := testenv.FreeAddress(s.t)
	config := filepath.Join(s.t.TempDir(), "gateway.yaml")
	writeFile(s.t, config, fmt.Sprintf(`
listen: %q
node: accounts
state_dir: %q
master_key_file: %q
nats: {url: %q, monitor: [%q]}
audit: %s
audit_timeout: 30s
trusted_proxies: [127.0.0.1]
routes:
  - {keyspace: accounts, upstream: %q}
  - {path_prefix: /live, strip_prefix: true, keyspace: accounts, upstream: %q, environments: [live]}
  - {path_prefix: /broken, keyspace: accounts, upstream: "http://127.0.0.1:%d"}
`, address, dir, filepath.Join(filepath.Dir(s.config), "master.key"), s.nats, s.b.monitor, audit, s.upstream.URL, s.upstream.URL, closed))
	return &service{t: s.t, seen: s.seen, url: "http://" + address, ready: "serving the gateway", args: []string{"gateway", "--config", config}}
}

// terminate asks the process to end, as an init system does, and waits until it has.
func (s *service) terminate() {
	s.t.Helper()
	s.process.Signal(syscall.SIGTERM)
	if err := s.process.Wait(patience); err != nil {
		s.t.Errorf("after SIGTERM the process ends with %v:\n%s", err, s.process.Output())
	}
}

// load is how long clients ask before and after a fault, together.
func load() time.Duration { return time.Duration(times(4, 60)) * time.Second }

// asked lets clients ask a process over a fault in the middle, and ends it.
func asked(t *testing.T, p *service, questions []question, fault func()) *books {
	t.Helper()
	return askedOver(t, p, questions, 1, fault)
}

// askedOver is the same over several faults, evenly in between.
func askedOver(t *testing.T, p *service, questions []question, faults int, fault func()) *books {
	t.Helper()
	b, end := newBooks(), make(chan struct{})
	done := b.clients(t, 12, strings.TrimPrefix(p.url, "http://"), questions, end)
	part := load() / time.Duration(faults+1)
	for range faults {
		<-time.After(part)
		fault()
	}
	<-time.After(part)
	close(end)
	done()
	p.terminate()
	t.Log(b)
	return b
}

// exact fails the test unless everything that was answered is recorded, once, and
// nothing else is.
func (b *books) exact(t *testing.T, w written) {
	t.Helper()
	d := b.compare(w)
	if len(d.missing) > 0 || d.refused > 0 {
		t.Errorf("%d admitted requests and %d refusals were answered and are not recorded: %v", len(d.missing), d.refused, some(d.missing))
	}
	if len(d.extra) > 0 {
		t.Errorf("%d differences: %v", len(d.extra), some(d.extra))
	}
	if len(w.gaps) > 0 {
		t.Errorf("a gap is declared: %+v", w.gaps)
	}
	t.Logf("recorded: %d uses; %d facts of requests that were not answered", len(w.used), d.unclear)
}

func some(list []string) []string { return list[:min(len(list), 5)] }

// every fails the test unless each of these codes was answered.
func (b *books) every(t *testing.T, codes ...string) {
	t.Helper()
	for _, code := range codes {
		if b.refused[code] == 0 {
			t.Errorf("Nobody was refused with %s.", code)
		}
	}
	if len(b.used) == 0 || b.nothing == 0 {
		t.Errorf("too little was asked: %s", b)
	}
}

// inEveryWay are codes that each way in can answer.
var inEveryWay = []string{
	"MISSING_CREDENTIAL", "MALFORMED_CREDENTIAL", "MALFORMED_KEY", "UNKNOWN_KEY", "REVOKED", "SUPERSEDED", "EXPIRED", "PLAN_DENIED",
	"WRONG_RESOURCE", "INSUFFICIENT_SCOPE", "ORIGIN_DENIED", "IP_DENIED", "RATE_LIMITED",
}

// The program is asked to end in the middle of mixed load and started again. What
// was answered and what is recorded are equal to the last request, and so are the
// read models.
func TestAccountsOverTermination(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			before := readUsage(t, s.b.url)
			p, questions, codes := s.open(t, way, t.TempDir())
			b := asked(t, p, questions, func() {
				p.terminate()
				p.start()
			})
			b.every(t, codes...)
			b.exact(t, readUsage(t, s.b.url).since(before))
		})
	}
	s.one.start()
	invariants(t, s.b.url, s.postgres, 1, s.seen)
}

// way is a way in that records.
type way struct {
	name  string
	audit string // empty: the API
}

var ways = []way{{"gateway", "async"}, {"strict gateway", "strict"}, {"verify", ""}}

// open starts a process that keeps what it must in dir, and says what can be asked
// of it and which codes that leads to.
func (s *scene) open(t *testing.T, w way, dir string) (p *service, questions []question, codes []string) {
	t.Helper()
	if w.audit == "" {
		s.one.process.Kill()
		p, questions, codes = s.stage.service(), s.verified(), inEveryWay
		if dir != "" {
			p.args = append(p.args, "--state-dir", dir)
		}
	} else {
		p, questions, codes = s.gateway(w.audit, dir), s.proxied(), append([]string{"WRONG_ENVIRONMENT"}, inEveryWay...)
	}
	p.t = t
	p.start()
	return p, questions, codes
}

// since is what was written after an earlier reading.
func (w written) since(before written) written {
	later := written{used: maps.Clone(w.used), endpoints: w.endpoints, refused: maps.Clone(w.refused), taken: w.taken - before.taken}
	for id, n := range before.used {
		if later.used[id] -= n; later.used[id] == 0 {
			delete(later.used, id)
		}
	}
	for code, n := range before.refused {
		later.refused[code] -= n
	}
	later.gaps = w.gaps[len(before.gaps):]
	slices.SortFunc(later.gaps, func(a, b events.UsageGap) int { return cmp.Compare(a.From, b.From) })
	return later
}
