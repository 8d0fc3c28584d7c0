// Package faults kills, cuts off and damages what keyledger consists of, as
// processes of their own, and checks that nothing that was answered is lost,
// nothing happens twice and no doubt about history is passed over in silence.
//
// Every injector has a control: the same run without the protection, which must
// fail. KEYLEDGER_FAULTS=long (make faults) repeats each fault as often as a
// release should survive it.
//
// It can disappoint: moments are random, so that a run which passes proves
// little and a run which fails proves much.
package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/internal/testenv/check"
)

// times is how often a fault happens in a run.
func times(short, long int) int {
	if os.Getenv("KEYLEDGER_FAULTS") == "long" {
		return long
	}
	return short
}

// patience bounds everything that is waited for.
const patience = time.Minute

// broker is a nats-server in a process of its own, at one address over all its lives.
type broker struct {
	t                     testing.TB
	dir, config           string
	address, url, monitor string
	process               *testenv.Process
}

// startBroker starts a server on dir. Without synced it acknowledges before the
// disk has what was written, which is what nats-server does unless told.
func startBroker(t testing.TB, dir string, synced bool) *broker {
	t.Helper()
	b := &broker{t: t, dir: dir}
	b.configure(freePorts(t, 2), synced, "")
	b.start()
	return b
}

// startCluster starts servers that sync, as nodes of one cluster.
func startCluster(t testing.TB, nodes int) (all []*broker) {
	t.Helper()
	ports := freePorts(t, 3*nodes)
	var routes []string
	for i := range nodes {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[3*i+2]))
	}
	for i := range nodes {
		b := &broker{t: t, dir: t.TempDir()}
		b.configure(ports[3*i:], true, fmt.Sprintf("server_name: n%d\ncluster { name: faults, listen: \"127.0.0.1:%d\", routes: [%s] }\n", i, ports[3*i+2], strings.Join(routes, ", ")))
		b.launch()
		all = append(all, b)
	}
	for _, b := range all {
		b.wait()
	}
	return all
}

func (b *broker) configure(ports []int, synced bool, more string) {
	b.t.Helper()
	b.config = filepath.Join(b.t.TempDir(), "nats.conf")
	b.address = fmt.Sprintf("127.0.0.1:%d", ports[0])
	b.url, b.monitor = "nats://"+b.address, fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	sync := ""
	if synced {
		sync = "sync_interval: always"
	}
	writeFile(b.t, b.config, fmt.Sprintf("listen: %q\nhttp: \"127.0.0.1:%d\"\njetstream { store_dir: %q, max_file: 1TB, %s }\n%s", b.address, ports[1], b.dir, sync, more))
}

func (b *broker) launch() {
	b.t.Helper()
	b.process = testenv.Start(b.t, nil, testenv.BuildNATS(b.t), "-c", b.config)
}

func (b *broker) wait() {
	b.t.Helper()
	b.process.WaitOutput("Server is ready", patience)
}

func (b *broker) start() {
	b.t.Helper()
	b.launch()
	b.wait()
}

func (b *broker) connect(t testing.TB) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect(b.url, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// freePorts are this test's, and nobody else's.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		ports = append(ports, testenv.FreePort(t))
	}
	return ports
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// stage is what services of one ledger share.
type stage struct {
	t        testing.TB
	nats     string
	postgres string
	config   string // settings of serve
	root     string // secret of the first root key
	seen     *journal
}

// journal keeps what was answered and logged, to look for secrets in the latter.
type journal struct {
	mu      sync.Mutex // guards what follows
	secrets []string
	logs    []*testenv.Process

	master string // file of the master key
}

func (j *journal) secret(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.secrets = append(j.secrets, s)
}

func (j *journal) log(p *testenv.Process) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.logs = append(j.logs, p)
}

func (j *journal) all() (secrets []string, log string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for _, p := range j.logs {
		b.WriteString(p.Output())
	}
	return append([]string(nil), j.secrets...), b.String()
}

// newStage makes the settings, the master key and the first root key. settings
// are those of nats, in YAML.
func newStage(t testing.TB, natsURL, postgres string, settings ...string) *stage {
	t.Helper()
	dir := t.TempDir()
	s := &stage{t: t, nats: natsURL, postgres: postgres, config: filepath.Join(dir, "keyledger.yaml"), seen: &journal{master: filepath.Join(dir, "master.key")}}
	writeFile(t, s.config, fmt.Sprintf("master_key_file: %q\nstate_dir: %q\npostgres: {url: %q}\nnats: {%s}\n",
		filepath.Join(dir, "master.key"), filepath.Join(dir, "state"), postgres, strings.Join(append(settings, fmt.Sprintf("url: %q", natsURL)), ", ")))
	rootFile := filepath.Join(dir, "root.key")
	p := testenv.Start(t, nil, testenv.Build(t), "init", "--config", s.config, "--root-key-file", rootFile)
	if err := p.Wait(patience); err != nil {
		t.Fatalf("init: %v\n%s", err, p.Output())
	}
	s.seen.log(p)
	s.root = readSecret(t, rootFile)
	s.seen.secret(s.root)
	return s
}

func readSecret(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// service is one `keyledger serve` or `keyledger dev`, at one address over all
// its lives.
type service struct {
	t       testing.TB
	seen    *journal
	env     []string
	program string // empty: keyledger
	args    []string
	ready   string // what it writes when it serves
	url     string
	process *testenv.Process
}

// service prepares a process of serve; start starts it.
func (s *stage) service() *service {
	s.t.Helper()
	address := testenv.FreeAddress(s.t)
	return &service{t: s.t, seen: s.seen, url: "http://" + address, ready: "serving the API",
		args: []string{"serve", "--config", s.config, "--listen", address}}
}

// launch starts the process and does not wait until it serves.
func (s *service) launch() {
	s.t.Helper()
	program := s.program
	if program == "" {
		program = testenv.Build(s.t)
	}
	s.process = testenv.Start(s.t, s.env, program, s.args...)
	s.seen.log(s.process)
}

func (s *service) wait() {
	s.t.Helper()
	s.process.WaitOutput(s.ready, patience)
}

func (s *service) start() {
	s.t.Helper()
	s.launch()
	s.wait()
}

// killed kills s -9 at n random moments, now and then before it serves, and
// leaves it serving.
func (s *service) killed(n int) {
	s.t.Helper()
	for range n {
		if rand.IntN(4) > 0 {
			s.wait()
		}
		<-time.After(rand.N(250 * time.Millisecond))
		s.process.Kill()
		s.launch()
	}
	s.wait()
}

// client sends commands to one service.
type client struct {
	t    testing.TB
	s    *service
	root string
	seen *journal
	// forgets sends every repetition of a command under an Idempotency-Key of
	// its own, as a client does that knows nothing of them.
	forgets bool
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) decode(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Errorf("an answer that cannot be read: %v: %s", err, a.body)
	}
}

// code is of the problem that was answered.
func (a answer) code() string {
	var p struct{ Code string }
	_ = json.Unmarshal(a.body, &p)
	return p.Code
}

// A connection per request would use up the ports of the machine; one that broke
// with its server is not used again.
var transport = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}, Timeout: 30 * time.Second}

// once sends a command. An error says that its outcome is unknown.
func (c *client) once(ctx context.Context, method, path, idempotencyKey string, body any) (answer, error) {
	var b []byte
	switch body := body.(type) {
	case nil:
	case []byte:
		b = body
	default:
		var err error
		if b, err = json.Marshal(body); err != nil {
			return answer{}, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.s.url+path, bytes.NewReader(b))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+c.root)
	if b != nil {
		req.Header.Set("Content-Type", "application/json")
		if bytes.HasPrefix(b, []byte("keyspace:")) {
			req.Header.Set("Content-Type", "application/yaml")
		}
	}
	if idempotencyKey != "" {
		req.Header.Set("Idempotency-Key", idempotencyKey)
		// Without it the transport repeats a request by itself.
		req.GetBody = nil
	}
	resp, err := transport.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{resp.StatusCode, resp.Header, got}
	var made struct{ Secret string }
	if json.Unmarshal(got, &made) == nil && made.Secret != "" {
		c.seen.secret(made.Secret)
	}
	return a, nil
}

// until repeats a command until it is answered with something that repeating
// does not change.
func (c *client) until(ctx context.Context, method, path, idempotencyKey string, body any) answer {
	for try := 0; ; try++ {
		key := idempotencyKey
		if c.forgets {
			key = fmt.Sprintf("%s-%d", idempotencyKey, try)
		}
		a, err := c.once(ctx, method, path, key, body)
		if err == nil && a.status < 500 {
			return a
		}
		select {
		case <-ctx.Done():
			c.t.Errorf("%s %s was never answered; at last: %d %s, %v", method, path, a.status, a.body, err)
			return a
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// made is a key as commands answer it.
type made struct {
	Key struct {
		ID      string
		Version int
		Status  string
	}
	Secret   string
	Replayed bool
}

// prepare configures the keyspace parcelbird with owner acme, whose plan allows
// five keys, and owner birdwatch, whose plan has no cap.
func (c *client) prepare() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	doc, err := os.ReadFile(filepath.Join("testdata", "parcelbird.yaml"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, x := range []struct {
		path string
		body any
	}{
		{"/v1/keyspaces/parcelbird", doc},
		{"/v1/keyspaces/parcelbird/owners/acme", map[string]string{"name": "Acme"}},
		{"/v1/keyspaces/parcelbird/owners/birdwatch", map[string]string{"name": "Birdwatch", "plan": "large"}},
	} {
		if a := c.until(ctx, http.MethodPut, x.path, "", x.body); a.status != http.StatusOK {
			c.t.Fatalf("PUT %s: %d %s", x.path, a.status, a.body)
		}
	}
}

func (s *stage) client(at *service) *client {
	return &client{t: s.t, s: at, root: s.root, seen: s.seen}
}

// verify asks for the decision on a secret.
func (c *client) verify(ctx context.Context, secret string) (code string, err error) {
	a, err := c.once(ctx, http.MethodPost, "/v1/verify", "", map[string]string{"keyspace": "parcelbird", "key": secret})
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK {
		return "", fmt.Errorf("%d %s", a.status, a.body)
	}
	var d struct{ Code string }
	return d.Code, errors.Join(json.Unmarshal(a.body, &d))
}

// invariants checks all of them, while a service runs.
func invariants(t testing.TB, natsURL, postgres string, replicas int, seen *journal) {
	t.Helper()
	conn, err := nats.Connect(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pool, err := pgxpool.New(t.Context(), postgres)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	secrets, log := seen.all()
	if len(secrets) > 50 { // a table is searched for each of them
		rand.Shuffle(len(secrets), func(i, j int) { secrets[i], secrets[j] = secrets[j], secrets[i] })
		secrets = secrets[:50]
	}
	master, err := seal.LoadMaster(seen.master)
	if err != nil {
		t.Fatal(err)
	}
	check.Ledger(t, check.Subject{Conn: conn, Replicas: replicas, Pool: pool, Master: &master, Feed: true, Secrets: secrets, Log: log})
}
