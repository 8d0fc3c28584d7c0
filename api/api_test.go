package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/api"
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
	"github.com/keyledger/keyledger/queries"
	"github.com/keyledger/keyledger/verify"
)

// service is an API over a real ledger, with an operator's key.
type service struct {
	t      testing.TB
	url    string
	root   string
	deps   api.Deps
	ledger *ledger.Ledger
	ring   *keyring.Ring
	log    *journal
	conn   *nats.Conn
	pool   *pgxpool.Pool // nil: withPostgres was not asked for

	secrets  *[]string // that were answered
	recorder *verify.Recorder
}

// journal is a log that several goroutines write.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// withPostgres adds the read models and serves anew.
func (s *service) withPostgres() {
	s.t.Helper()
	pool, err := pgxpool.New(s.t.Context(), testenv.Postgres(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(pool.Close)
	if _, err := migrations.Up(s.t.Context(), pool); err != nil {
		s.t.Fatal(err)
	}
	s.pool, s.deps.Queries = pool, queries.New(pool)
	s.deps.Runner = projections.New(s.ledger, pool, slog.New(slog.DiscardHandler), projections.Addresses{Keys: s.deps.Seal})
	s.deps.Index = projections.NewIndex(pool, s.deps.Seal)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.deps.Runner.Run(ctx) })
	s.t.Cleanup(func() {
		stop()
		running.Wait()
	})
	s.serve()
}

func start(t testing.TB) *service {
	t.Helper()
	return startOn(t, testenv.Conn(t, testenv.NATS(t)))
}

func startOn(t testing.TB, nc *nats.Conn) *service {
	t.Helper()
	log, secrets := &journal{}, &[]string{}
	t.Cleanup(func() { // when everything else has ended and been written
		check.Ledger(t, check.Subject{Conn: nc, Secrets: *secrets, Log: log.String()})
	})
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	ring := keyring.New()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ring.Run(ctx, l) }()
	t.Cleanup(func() {
		stop()
		<-ended
		_ = l.Close()
	})
	<-ring.Ready()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := seal.Open(t.Context(), js, seal.Master{1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sealed.Close)
	recorder := verify.NewRecorder(l, sealed, "test", verify.RecorderOptions{})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := recorder.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	verifier := verify.New(ring, recorder, verify.Options{})
	t.Cleanup(verifier.Close)
	s := &service{t: t, conn: nc, ledger: l, ring: ring, log: log, secrets: secrets, recorder: recorder}
	s.deps = api.Deps{
		Commands: &commands.Commands{Ledger: l, Ring: ring}, Ring: ring, Ledger: l, Version: "test",
		Verifier: verifier, Recorder: recorder, Seal: sealed,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	r, err := s.deps.Commands.CreateRootKey(t.Context(), commands.Request{Authority: domain.System("test"), Via: "test"},
		domain.CreateKey{Name: "first", Role: domain.Operator})
	if err != nil {
		t.Fatal(err)
	}
	s.root = r.Secret
	*secrets = append(*secrets, r.Secret)
	s.serve()
	return s
}

// serve answers with what the service has by now.
func (s *service) serve() {
	s.t.Helper()
	server := httptest.NewServer(api.New(s.deps))
	s.t.Cleanup(server.Close)
	s.url = server.URL
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
	json   map[string]any
}

func (a answer) code() string {
	code, _ := a.json["code"].(string)
	return code
}

func (a answer) key() map[string]any {
	k, _ := a.json["key"].(map[string]any)
	return k
}

// header is name, value, name, value, …
func (s *service) do(method, path, credential, body string, header ...string) answer {
	s.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, in)
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if credential != "" {
		req.Header.Set("Authorization", "Bearer "+credential)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		s.t.Fatal(err)
	}
	_ = json.Unmarshal(a.body, &a.json)
	if secret, ok := a.json["secret"].(string); ok {
		*s.secrets = append(*s.secrets, secret)
	}
	for _, wrong := range api.Conforms(method, path, a.status, a.header, a.body) {
		s.t.Errorf("%s: %s", wrong, a.body)
	}
	return a
}

// must is do for what has to succeed.
func (s *service) must(method, path, credential, body string, header ...string) answer {
	s.t.Helper()
	a := s.do(method, path, credential, body, header...)
	if a.status >= 300 {
		s.t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
	}
	return a
}

// refused checks that an answer is a whole problem document.
func (s *service) refused(a answer, status int, code string) {
	s.t.Helper()
	if a.status != status || code != "" && a.code() != code {
		s.t.Errorf("answered %d %s, want %d %s: %s", a.status, a.code(), status, code, a.body)
	}
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		s.t.Errorf("Content-Type of a problem is %q: %s", ct, a.body)
	}
	for _, field := range []string{"type", "title", "status", "detail", "code", "request_id"} {
		if v := a.json[field]; v == nil || v == "" {
			s.t.Errorf("problem without %s: %s", field, a.body)
		}
	}
	if a.json["request_id"] != a.header.Get("X-Request-Id") {
		s.t.Errorf("request_id %v, X-Request-Id %q", a.json["request_id"], a.header.Get("X-Request-Id"))
	}
	errs, _ := a.json["errors"].([]any)
	for _, e := range errs {
		d := e.(map[string]any)
		if d["message"] == "" || d["fix"] == "" {
			s.t.Errorf("a detail says too little: %v", d)
		}
	}
}

func (s *service) head() uint64 {
	s.t.Helper()
	n, err := s.ledger.Head(s.t.Context(), events.Ledger)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

const parcelbird = `
keyspace: %s
about: Parcelbird tracking API
credential: {header: Authorization, scheme: Bearer}
format:
  prefixes: {live: %s_live_, test: %s_test_}
  default_environment: live
  alphabet: base62
  length: 40
  checksum: crc32
display: {first: 12, last: 4}
resource: {kind: depot, mode: optional, path: "/v1/depots/{resource}/**"}
scopes:
  parcels:read: {about: Read, routes: ["GET /v1/parcels/**"]}
  parcels:write: {about: Write, routes: ["POST /v1/parcels/**"], available: false}
  keys:manage: {about: Manage keys, grants: [keys.create, keys.rotate, keys.revoke, keys.delete, keys.read]}
plans:
  free: {access: false}
  basic: {max_keys: 2, limits: {minute: 20}}
  large: {limits: {}}
default_plan: basic
limits: {from: key, count_by: key, default: {minute: 100, day: 1000}}
lifecycle:
  rotation: {enabled: true, grace_default: 0s, grace_max: 48h}
allowed_origins: true
`

// configure makes a keyspace with two owners on plan large.
func (s *service) configure(keyspace string) {
	s.t.Helper()
	doc := fmt.Sprintf(parcelbird, keyspace, keyspace, keyspace)
	s.must("PUT", "/v1/keyspaces/"+keyspace, s.root, doc, "Content-Type", "application/yaml")
	for _, owner := range []string{"org_1", "org_2"} {
		s.must("PUT", "/v1/keyspaces/"+keyspace+"/owners/"+owner, s.root, `{"name":"`+owner+`","plan":"large"}`)
	}
}

func keyBody(more map[string]any) string {
	m := map[string]any{"keyspace": "pb", "owner": "org_1", "name": "a key"}
	maps.Copy(m, more)
	b, _ := json.Marshal(m)
	return string(b)
}

// create makes a key and returns its id and secret.
func (s *service) create(more map[string]any) (id, secret string) {
	s.t.Helper()
	a := s.must("POST", "/v1/keys", s.root, keyBody(more))
	return a.key()["id"].(string), a.json["secret"].(string)
}

// A key is created, read, changed, rotated, revoked and deleted.
func TestLifecycle(t *testing.T) {
	s := start(t)
	s.configure("pb")
	a := s.must("POST", "/v1/keys", s.root, keyBody(map[string]any{"scopes": []string{"parcels:read"}, "meta": map[string]string{"team": "a"}, "limits": map[string]any{"day": nil}}))
	if a.status != 201 || a.header.Get("Cache-Control") != "no-store" || a.header.Get("ETag") != `"1"` || a.header.Get("Ledger-Sequence") == "" {
		t.Errorf("created: %d %v", a.status, a.header)
	}
	id, secret := a.key()["id"].(string), a.json["secret"].(string)
	if a.header.Get("Location") != "/v1/keys/"+id || !strings.HasPrefix(secret, "pb_live_") {
		t.Errorf("created %s at %s", secret, a.header.Get("Location"))
	}
	got := s.must("GET", "/v1/keys/"+id, s.root, "", "Min-Sequence", a.header.Get("Ledger-Sequence"))
	if got.json["display"] != secret[:12]+"..."+secret[len(secret)-4:] || got.json["status"] != "active" || got.json["expires_at"] != nil {
		t.Errorf("read: %s", got.body)
	}
	if fmt.Sprint(got.json["limits"]) != "map[minute:100]" {
		t.Errorf("limits %v: a null window is unlimited, one that is not named takes the default", got.json["limits"])
	}
	shape := []string{"id", "keyspace", "owner", "name", "display", "environment", "status", "plan", "scopes", "resources", "limits",
		"allowed_origins", "allowed_ips", "meta", "created_at", "created_by", "expires_at", "rotated_at", "grace_until", "revoked_at",
		"revoke_reason", "last_used_at", "use_count", "version"}
	for _, field := range shape {
		if _, ok := got.json[field]; !ok {
			t.Errorf("a key has no %s", field)
		}
	}
	if len(got.json) != len(shape) {
		t.Errorf("a key has %d fields: %s", len(got.json), got.body)
	}

	up := s.must("PATCH", "/v1/keys/"+id, s.root, `{"name":"renamed","expires_at":"2099-01-01T00:00:00Z","limits":{"minute":null,"hour":5}}`, "If-Match", got.header.Get("ETag"))
	if up.key()["name"] != "renamed" || up.key()["expires_at"] != "2099-01-01T00:00:00.000Z" || fmt.Sprint(up.key()["limits"]) != "map[hour:5]" || up.header.Get("ETag") != `"2"` {
		t.Errorf("changed: %s", up.body)
	}
	s.refused(s.do("PATCH", "/v1/keys/"+id, s.root, `{"name":"again"}`, "If-Match", got.header.Get("ETag")), 412, "")
	for _, tag := range []string{"2", `W/"2"`, "*"} {
		s.must("PATCH", "/v1/keys/"+id, s.root, `{"name":"renamed"}`, "If-Match", tag)
	}
	never := s.must("PATCH", "/v1/keys/"+id, s.root, `{"expires_at":null}`)
	if never.key()["expires_at"] != nil {
		t.Errorf("null did not take the expiry away: %s", never.body)
	}

	rot := s.must("POST", "/v1/keys/"+id+"/rotate", s.root, `{"grace":"24h","reason":"drill"}`)
	if rot.json["secret"] == secret || rot.key()["id"] != id || rot.key()["grace_until"] == nil {
		t.Errorf("rotated: %s", rot.body)
	}
	s.refused(s.do("POST", "/v1/keys/"+id+"/rotate", s.root, `{"grace":"49h"}`), 422, "")
	ended := s.must("POST", "/v1/keys/"+id+"/end-grace", s.root, "")
	if _, ok := ended.json["previous_secret_last_used_at"]; !ok || ended.key()["grace_until"] != nil {
		t.Errorf("grace ended: %s", ended.body)
	}
	s.must("POST", "/v1/keys/"+id+"/rotate", s.root, `{"grace":0}`)
	s.must("POST", "/v1/keys/"+id+"/rotate", s.root, "")

	rev := s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"leaked"}`)
	if rev.key()["status"] != "revoked" || rev.key()["revoke_reason"] != "leaked" {
		t.Errorf("revoked: %s", rev.body)
	}
	head := s.head()
	if again := s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"again"}`); again.status != 200 || s.head() != head {
		t.Errorf("revoking a revoked key: %d, head %d after %d", again.status, s.head(), head)
	}
	s.refused(s.do("PATCH", "/v1/keys/"+id, s.root, `{"name":"x"}`), 409, "KEY_REVOKED")
	s.must("DELETE", "/v1/keys/"+id, s.root, "")
	s.refused(s.do("GET", "/v1/keys/"+id, s.root, ""), 410, "KEY_DELETED")
	s.refused(s.do("DELETE", "/v1/keys/"+id, s.root, ""), 410, "KEY_DELETED")
}

// The same command again has no second effect and never answers the secret
// again; another command under the same key is refused.
func TestIdempotency(t *testing.T) {
	s := start(t)
	s.configure("pb")
	body := keyBody(nil)
	first := s.must("POST", "/v1/keys", s.root, body, "Idempotency-Key", "one")
	head := s.head()
	again := s.must("POST", "/v1/keys", s.root, body, "Idempotency-Key", "one")
	if again.status != 201 || again.key()["id"] != first.key()["id"] || again.json["secret"] != nil || again.json["replayed"] != true {
		t.Errorf("again: %d %s", again.status, again.body)
	}
	if _, ok := again.json["secret"]; !ok {
		t.Error("a replayed answer says secret: null")
	}
	s.refused(s.do("POST", "/v1/keys", s.root, keyBody(map[string]any{"name": "other"}), "Idempotency-Key", "one"), 409, "IDEMPOTENCY_KEY_REUSED")
	s.refused(s.do("POST", "/v1/keys/"+first.key()["id"].(string)+"/rotate", s.root, "", "Idempotency-Key", "one"), 409, "IDEMPOTENCY_KEY_REUSED")
	for _, key := range []string{strings.Repeat("x", 256), "caf\u00e9", "a\tb"} {
		s.refused(s.do("POST", "/v1/keys", s.root, body, "Idempotency-Key", key), 400, "INVALID_IDEMPOTENCY_KEY")
	}
	if s.head() != head {
		t.Error("something was recorded")
	}
}

// The cap of a plan is answered with its numbers.
func TestCap(t *testing.T) {
	s := start(t)
	s.configure("pb")
	s.must("PUT", "/v1/keyspaces/pb/owners/org_1", s.root, `{"plan":"basic"}`)
	s.create(nil)
	s.create(nil)
	a := s.do("POST", "/v1/keys", s.root, keyBody(nil))
	s.refused(a, 409, "KEY_LIMIT_REACHED")
	if a.json["count"] != 2.0 || a.json["limit"] != 2.0 {
		t.Errorf("count and limit: %s", a.body)
	}
	o := s.must("GET", "/v1/keyspaces/pb/owners/org_1", s.root, "")
	if o.json["active_keys"] != 2.0 || o.json["max_keys"] != 2.0 {
		t.Errorf("owner: %s", o.body)
	}
	s.must("PUT", "/v1/keyspaces/pb/owners/org_1", s.root, `{"plan":"free"}`)
	s.refused(s.do("POST", "/v1/keys", s.root, keyBody(nil)), 403, "PLAN_DENIED")
}

// A keyspace is configured once however often its document comes, and a dry
// run records nothing.
func TestKeyspaces(t *testing.T) {
	s := start(t)
	doc := fmt.Sprintf(parcelbird, "pb", "pb", "pb")
	head := s.head()
	dry := s.must("PUT", "/v1/keyspaces/pb?dry_run=true", s.root, doc, "Content-Type", "text/yaml")
	if events := dry.json["events"].([]any); len(events) != 1 || dry.json["dry_run"] != true || s.head() != head {
		t.Errorf("dry run: %s", dry.body)
	}
	first := s.must("PUT", "/v1/keyspaces/pb", s.root, doc, "Content-Type", "application/yaml; charset=utf-8")
	if first.json["version"] != 1.0 || first.json["changed"] != true || first.json["keyspace"] != "pb" {
		t.Errorf("configured: %s", first.body)
	}
	head = s.head()
	var asJSON json.RawMessage
	got := s.must("GET", "/v1/keyspaces/pb", s.root, "")
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(got.body, &whole); err != nil {
		t.Fatal(err)
	}
	asJSON = whole["document"]
	again := s.must("PUT", "/v1/keyspaces/pb", s.root, string(asJSON))
	if again.json["changed"] != false || again.json["version"] != 1.0 || s.head() != head {
		t.Errorf("the same document as JSON: %s", again.body)
	}
	bad := s.do("PUT", "/v1/keyspaces/pb", s.root, strings.Replace(doc, "about:", "abuot:", 1), "Content-Type", "application/yaml")
	s.refused(bad, 422, "INVALID_DOCUMENT")
	if d := bad.json["errors"].([]any)[0].(map[string]any); d["line"] != 3.0 {
		t.Errorf("no line: %v", d)
	}
	s.refused(s.do("PUT", "/v1/keyspaces/other", s.root, doc, "Content-Type", "application/yaml"), 422, "INVALID")
	s.refused(s.do("PUT", "/v1/keyspaces/pb", s.root, doc, "Content-Type", "text/plain"), 415, "UNSUPPORTED_MEDIA_TYPE")
	if s.head() != head {
		t.Error("something was recorded")
	}
	if all := s.must("GET", "/v1/keyspaces", s.root, ""); len(all.json["keyspaces"].([]any)) != 1 {
		t.Errorf("list: %s", all.body)
	}
}

// Keys are found by what is known of their secret.
func TestLookup(t *testing.T) {
	s := start(t)
	s.configure("pb")
	id, secret := s.create(nil)
	s.create(nil)
	rot := s.must("POST", "/v1/keys/"+id+"/rotate", s.root, `{"grace":"1h"}`)
	now := rot.json["secret"].(string)
	for what, q := range map[string]map[string]string{
		"the leaked secret":         {"secret": now},
		"a rotated-away secret":     {"secret": secret},
		"its first characters":      {"first": now[:12]},
		"more of them than is kept": {"first": now[:20], "last": now[len(now)-10:]},
		"its last characters":       {"last": now[len(now)-4:]},
		"those of one in its grace": {"last": secret[len(secret)-4:]},
	} {
		q["keyspace"] = "pb"
		b, _ := json.Marshal(q)
		a := s.must("POST", "/v1/keys/lookup", s.root, string(b))
		keys := a.json["keys"].([]any)
		if len(keys) != 1 || keys[0].(map[string]any)["id"] != id {
			t.Errorf("by %s: %s", what, a.body)
		}
	}
	if a := s.must("POST", "/v1/keys/lookup", s.root, `{"keyspace":"pb","secret":"pb_live_nothing"}`); len(a.json["keys"].([]any)) != 0 {
		t.Errorf("found %s", a.body)
	}
	s.refused(s.do("POST", "/v1/keys/lookup", s.root, `{"keyspace":"pb"}`), 422, "INVALID")
}

// Owners are listed by id in pages.
func TestOwners(t *testing.T) {
	s := start(t)
	s.configure("pb")
	first := s.must("GET", "/v1/keyspaces/pb/owners?limit=1", s.root, "")
	if first.json["owners"].([]any)[0].(map[string]any)["id"] != "org_1" || first.json["next_cursor"] == nil {
		t.Fatalf("first page: %s", first.body)
	}
	second := s.must("GET", "/v1/keyspaces/pb/owners?limit=1&cursor="+first.json["next_cursor"].(string), s.root, "")
	if second.json["owners"].([]any)[0].(map[string]any)["id"] != "org_2" || second.json["next_cursor"] != nil {
		t.Fatalf("second page: %s", second.body)
	}
	s.refused(s.do("GET", "/v1/keyspaces/pb/owners?cursor=AAAA", s.root, ""), 422, "INVALID")
}

// Root keys have roles, and the last operator stays.
func TestRootKeys(t *testing.T) {
	s := start(t)
	s.configure("pb")
	auditor := s.must("POST", "/v1/root-keys", s.root, `{"name":"reader","role":"auditor"}`)
	secret := auditor.json["secret"].(string)
	if auditor.status != 201 || !strings.HasPrefix(secret, "klr_") || auditor.key()["role"] != "auditor" {
		t.Fatalf("created: %s", auditor.body)
	}
	s.must("GET", "/v1/keyspaces", secret, "")
	s.refused(s.do("POST", "/v1/keys", secret, keyBody(nil)), 403, "FORBIDDEN")
	s.refused(s.do("POST", "/v1/root-keys", s.root, `{"name":"x","role":"manager"}`), 422, "INVALID")
	s.refused(s.do("POST", "/v1/root-keys", s.root, `{"name":"x","role":"king"}`), 422, "INVALID")
	if all := s.must("GET", "/v1/root-keys", s.root, ""); len(all.json["keys"].([]any)) != 2 {
		t.Errorf("list: %s", all.body)
	}
	s.refused(s.do("GET", "/v1/root-keys", secret, ""), 403, "FORBIDDEN")
	id := auditor.key()["id"].(string)
	rot := s.must("POST", "/v1/keys/"+id+"/rotate", s.root, "")
	a := s.do("GET", "/v1/keyspaces", secret, "")
	s.refused(a, 401, "SUPERSEDED")
	if a.header.Get("WWW-Authenticate") == "" {
		t.Error("no WWW-Authenticate")
	}
	s.must("GET", "/v1/keyspaces", rot.json["secret"].(string), "")
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, "")
	s.refused(s.do("GET", "/v1/keyspaces", rot.json["secret"].(string), ""), 401, "REVOKED")
	for k := range s.ring.Keys(events.RootKeyspace, "") {
		if k.Role == domain.Operator {
			s.refused(s.do("POST", "/v1/keys/"+k.ID+"/revoke", s.root, ""), 409, "LAST_OPERATOR")
		}
	}
}

// What a credential does not reach looks exactly like what is not there.
func TestForeign(t *testing.T) {
	s := start(t)
	s.configure("pb")
	mine, _ := s.create(nil)
	theirs, _ := s.create(map[string]any{"owner": "org_2"})
	m := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`)
	manager := m.json["secret"].(string)
	s.must("GET", "/v1/keys/"+mine, manager, "")
	absent := "key_00000000-0000-7000-8000-000000000000"
	same := func(method, path, body string) {
		t.Helper()
		a := s.do(method, fmt.Sprintf(path, theirs), manager, body)
		b := s.do(method, fmt.Sprintf(path, absent), manager, body)
		s.refused(a, 404, "KEY_NOT_FOUND")
		strip := func(x answer) string { return strings.ReplaceAll(string(x.body), x.json["request_id"].(string), "") }
		if strip(a) != strip(b) {
			t.Errorf("%s %s: foreign %s, absent %s", method, path, a.body, b.body)
		}
	}
	same("GET", "/v1/keys/%s", "")
	same("PATCH", "/v1/keys/%s", `{"name":"x"}`)
	same("POST", "/v1/keys/%s/rotate", "")
	same("POST", "/v1/keys/%s/end-grace", "")
	same("POST", "/v1/keys/%s/revoke", "")
	same("DELETE", "/v1/keys/%s", "")
	s.refused(s.do("POST", "/v1/keys", manager, keyBody(map[string]any{"owner": "org_2"})), 404, "OWNER_NOT_FOUND")
	s.refused(s.do("POST", "/v1/keys", manager, keyBody(map[string]any{"keyspace": "other"})), 404, "KEYSPACE_NOT_FOUND")
}

// A customer's key manages keys where its scope grants it, within its own reach.
func TestCustomerKeyManages(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(map[string]any{"scopes": []string{"keys:manage", "parcels:read"}})
	_, plain := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	s.refused(s.do("POST", "/v1/keys", plain, keyBody(nil)), 403, "FORBIDDEN")
	a := s.must("POST", "/v1/keys", secret, keyBody(map[string]any{"scopes": []string{"parcels:read"}}))
	if by := fmt.Sprint(a.key()["created_by"]); !strings.Contains(by, "key_") {
		t.Errorf("created by %s", by)
	}
	s.refused(s.do("POST", "/v1/keys", secret, keyBody(map[string]any{"owner": "org_2"})), 404, "OWNER_NOT_FOUND")
	s.refused(s.do("POST", "/v1/keys", plain, keyBody(map[string]any{"scopes": []string{"keys:manage"}})), 403, "")
	s.refused(s.do("POST", "/v1/keys", secret, keyBody(map[string]any{"limits": map[string]any{"minute": nil}})), 403, "EXCEEDS_AUTHORITY")
}

// Nothing that is logged holds a secret, a path or a query.
func TestLog(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(nil)
	s.do("GET", "/v1/keys/"+secret+"?q="+secret, s.root, "")
	s.do("GET", "/v1/keys", secret+"x", "")
	for _, line := range []string{secret, s.root} {
		if strings.Contains(s.log.String(), line) {
			t.Error("the log holds a secret")
		}
	}
	if !strings.Contains(s.log.String(), "route=/v1/keys/{id}") {
		t.Errorf("the log has no routes:\n%s", s.log)
	}
}

// What is asked by machines needs no credential.
func TestOperational(t *testing.T) {
	s := start(t)
	if a := s.must("GET", "/readyz", "", ""); a.json["ready"] != true {
		t.Errorf("ready: %s", a.body)
	}
	s.must("GET", "/healthz", "", "")
	figures := string(s.must("GET", "/metrics", "", "").body)
	for _, name := range []string{"keyledger_http_requests_total", "keyledger_keyring_sequence", `keyledger_stream_head{stream="LEDGER"}`, "keyledger_verifier_lost_seconds", "go_goroutines"} {
		if !strings.Contains(figures, name) {
			t.Errorf("no figure %s", name)
		}
	}
	a := s.must("GET", "/openapi.json", "", "")
	if a.json["openapi"] != "3.1.0" {
		t.Errorf("openapi %v", a.json["openapi"])
	}
	spec, err := api.OpenAPI()
	if err != nil || len(spec) == 0 {
		t.Error(err)
	}
	id := "req_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"
	if got := s.do("GET", "/v1/keys/x", "", "", "X-Request-Id", id); got.json["request_id"] != id {
		t.Errorf("request id %v", got.json["request_id"])
	}
	if got := s.do("GET", "/v1/keys/x", "", "", "X-Request-Id", "evil"); !strings.HasPrefix(got.header.Get("X-Request-Id"), "req_") {
		t.Errorf("request id %v", got.header)
	}
	s.refused(s.do("GET", "/nothing", "", ""), 404, "NOT_FOUND")
	not := s.do("PATCH", "/v1/keyspaces", s.root, "")
	s.refused(not, 405, "METHOD_NOT_ALLOWED")
	if not.header.Get("Allow") != "GET" {
		t.Errorf("Allow: %q", not.header.Get("Allow"))
	}
}
