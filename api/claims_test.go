package api_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/commands/claims"
)

// withClaims adds the bucket of claims and serves anew.
func (s *service) withClaims() *claims.Claims {
	s.t.Helper()
	js, err := jetstream.New(s.conn)
	if err != nil {
		s.t.Fatal(err)
	}
	kv, err := claims.OpenBucket(s.t.Context(), js, 1)
	if err != nil {
		s.t.Fatal(err)
	}
	s.deps.Claims = &claims.Claims{Ledger: s.ledger, KV: kv, Conn: s.conn, Seal: s.deps.Seal}
	s.serve()
	return s.deps.Claims
}

// The operator makes a key and never sees its secret; the customer sees it, once.
func TestClaims(t *testing.T) {
	s := start(t)
	s.refused(s.do("POST", "/v1/claims/open", "claim_x", ""), 503, "CLAIMS_UNAVAILABLE")
	c := s.withClaims()
	s.configure("pb")
	made := s.must("POST", "/v1/keys", s.root, `{"keyspace":"pb","owner":"org_1","name":"CI","claim":{"expires_in":"24h"}}`, "Idempotency-Key", "once")
	id := made.key()["id"].(string)
	link, _ := made.json["claim"].(map[string]any)
	if made.json["secret"] != nil || link == nil {
		t.Fatalf("created: %s", made.body)
	}
	code := link["code"].(string)
	if link["path"] != "/claim#"+code {
		t.Errorf("the link is %v", link)
	}
	// The same command again answers neither the secret nor the code.
	again := s.must("POST", "/v1/keys", s.root, `{"keyspace":"pb","owner":"org_1","name":"CI","claim":{"expires_in":"24h"}}`, "Idempotency-Key", "once")
	if again.json["replayed"] != true || strings.Contains(string(again.body), "claim_") {
		t.Errorf("again: %s", again.body)
	}
	if a := s.must("GET", "/v1/keys/"+id+"/claim", s.root, ""); a.json["status"] != "waiting" || a.json["opened_at"] != nil {
		t.Errorf("unopened: %s", a.body)
	}
	stranger := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_2"}`).json["secret"].(string)
	for _, method := range []string{"GET", "DELETE"} {
		s.refused(s.do(method, "/v1/keys/"+id+"/claim", stranger, ""), 404, "KEY_NOT_FOUND")
	}
	// Eight open it at once; one sees it.
	var mu sync.Mutex
	var seen []string
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			a := s.do("POST", "/v1/claims/open", code, "")
			mu.Lock()
			defer mu.Unlock()
			if secret, ok := a.json["secret"].(string); a.status == 200 && ok {
				seen = append(seen, secret)
				if a.json["id"] != id || a.json["header"] != "Authorization" || a.json["scheme"] != "Bearer" || strings.Contains(string(a.body), "created_by") {
					t.Errorf("opened: %s", a.body)
				}
			} else if a.status != 410 || a.code() != "CLAIM_GONE" {
				t.Errorf("opened at once: %d %s", a.status, a.body)
			}
		})
	}
	all.Wait()
	if len(seen) != 1 {
		t.Fatalf("%d of eight saw the secret", len(seen))
	}
	*s.secrets = append(*s.secrets, seen[0], code)
	if d := s.verify(s.root, map[string]any{"key": seen[0], "method": "GET", "path": "/"}); d.json["valid"] != true {
		t.Errorf("the secret that was seen: %s", d.body)
	}
	if a := s.must("GET", "/v1/keys/"+id+"/claim", s.root, ""); a.json["status"] != "opened" || a.json["opened_at"] == nil {
		t.Errorf("opened: %s", a.body)
	}
	if a := s.must("DELETE", "/v1/keys/"+id+"/claim", s.root, ""); a.json["status"] != "opened" {
		t.Errorf("withdrawn when it had been opened: %s", a.body)
	}
	page := s.must("GET", "/v1/audit/events?key="+id+"&type=claim.made,claim.opened", s.root, "")
	list := page.json["events"].([]any)
	if len(list) != 2 || !strings.Contains(string(page.body), `"source_ip":"127.0.0.1"`) || list[1].(map[string]any)["actor"].(map[string]any)["type"] != "claim" {
		t.Errorf("recorded: %s", page.body)
	}

	claim := func(path, body string) (id, code string) {
		t.Helper()
		a := s.must("POST", path, s.root, body)
		return a.key()["id"].(string), a.json["claim"].(map[string]any)["code"].(string)
	}
	gone := func(code string) {
		t.Helper()
		s.refused(s.do("POST", "/v1/claims/open", code, ""), 410, "CLAIM_GONE")
	}
	const body = `{"keyspace":"pb","owner":"org_1","name":"CI","claim":{}}`
	// Withdrawn, revoked, replaced by another rotation: the link opens nothing.
	id, code = claim("/v1/keys", body)
	if a := s.must("DELETE", "/v1/keys/"+id+"/claim", s.root, ""); a.json["status"] != "withdrawn" {
		t.Errorf("withdrawn: %s", a.body)
	}
	gone(code)
	id, code = claim("/v1/keys/"+id+"/rotate", `{"claim":{"expires_in":"5m"}}`)
	_, second := claim("/v1/keys/"+id+"/rotate", `{"claim":{"expires_in":"30d"}}`)
	gone(code)
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"lost"}`)
	gone(second)
	// Too old.
	id, code = claim("/v1/keys", body)
	c.Now = func() time.Time { return time.Now().Add(73 * time.Hour) }
	gone(code)
	if a := s.must("GET", "/v1/keys/"+id+"/claim", s.root, ""); a.json["status"] != "expired" {
		t.Errorf("too old: %s", a.body)
	}
	c.Now = nil
	for _, never := range []string{"claim_", "claim_" + strings.Repeat("a", 52)} {
		gone(never)
	}
	s.refused(s.do("POST", "/v1/claims/open", "", ""), 401, "MISSING_CREDENTIAL")
	for _, other := range []string{"once_" + strings.Repeat("a", 52), strings.Repeat("b", 200), s.root} {
		s.refused(s.do("POST", "/v1/claims/open", other, ""), 401, "UNKNOWN_KEY")
	}
	for _, bad := range []string{"4m", "31d", "soon", "0s", "-5m"} {
		s.refused(s.do("POST", "/v1/keys", s.root, `{"keyspace":"pb","owner":"org_1","name":"CI","claim":{"expires_in":"`+bad+`"}}`), 422, "INVALID")
	}
	other, _ := s.create(nil)
	s.refused(s.do("GET", "/v1/keys/"+other+"/claim", s.root, ""), 404, "CLAIM_NOT_FOUND")

	// Nothing in the bucket has what was opened, or a code.
	keys, err := c.KV.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name := range keys.Keys() {
		entry, err := c.KV.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range append(*s.secrets, code, second) {
			if strings.Contains(name+string(entry.Value()), secret) {
				t.Errorf("%s has a secret", name)
			}
		}
	}
}
