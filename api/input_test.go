package api_test

import (
	"net/http"
	"testing"
)

// Input that cannot be read is 400, whatever it was to be; what can be read and
// is wrong is 422.
func TestUnreadableDocument(t *testing.T) {
	s := start(t)
	head := s.head()
	for _, source := range []string{"", "a: b: c", "keyspace: [\n", "\tkeyspace: pb"} {
		s.refused(s.do("PUT", "/v1/keyspaces/pb", s.root, source, "Content-Type", "application/yaml"), 400, "UNREADABLE")
	}
	s.refused(s.do("PUT", "/v1/keyspaces/pb", s.root, "keyspace: 3", "Content-Type", "application/yaml"), 422, "INVALID_DOCUMENT")
	if s.head() != head {
		t.Error("something was recorded")
	}
}

// What is missing is named by its path, like everything else that is wrong.
func TestMissingField(t *testing.T) {
	s := start(t)
	a := s.do("POST", "/v1/keys", s.root, `{"keyspace":"pb","owner":"org_1"}`)
	s.refused(a, 422, "INVALID")
	problem := a.json["errors"].([]any)[0].(map[string]any)
	if problem["path"] != "name" || problem["message"] != "is missing" {
		t.Errorf("%s", a.body)
	}
}

// A key that is bound to origins manages nothing from anywhere else, nor from
// nowhere.
func TestOriginOfACommand(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(map[string]any{"scopes": []string{"keys:manage"}, "allowed_origins": []string{"https://a.example"}})
	s.refused(s.do(http.MethodPost, "/v1/keys/lookup", secret, `{"keyspace":"pb","first":"pb_"}`), 403, "ORIGIN_DENIED")
	s.refused(s.do(http.MethodPost, "/v1/keys/lookup", secret, `{"keyspace":"pb","first":"pb_"}`, "Origin", "https://b.example"), 403, "ORIGIN_DENIED")
	s.must(http.MethodPost, "/v1/keys/lookup", secret, `{"keyspace":"pb","first":"pb_"}`, "Origin", "https://a.example")
}

// How fast a revocation takes effect is measured, not assumed.
func TestRevocationLatency(t *testing.T) {
	s := start(t)
	s.configure("pb")
	id, _ := s.create(nil)
	if got := s.must("GET", "/v1/status", s.root, "").json["revocation_latency_ms"]; got != nil {
		t.Errorf("nothing was revoked, and it took %v ms", got)
	}
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"lost"}`)
	if ms, ok := s.must("GET", "/v1/status", s.root, "").json["revocation_latency_ms"].(float64); !ok || ms <= 0 || ms > 60_000 {
		t.Errorf("the revocation took %v ms", ms)
	}
}

// Who called is shown by address to those who may see it, and that is recorded.
func TestUsageByIP(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(nil)
	s.verify(s.root, map[string]any{"key": secret, "ip": "203.0.113.7"})
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	s.refused(s.do("GET", "/v1/analytics/usage?by=ip", manager, ""), 403, "FORBIDDEN")
	s.flush()
	rows := s.must("GET", "/v1/analytics/usage?keyspace=pb&by=ip,key", s.root, "").json["usage"].([]any)
	if len(rows) != 1 {
		t.Fatalf("%v", rows)
	}
	if row := rows[0].(map[string]any); row["ip"] != "203.0.113.7" || row["requests"] != 1.0 {
		t.Errorf("%v", row)
	}
	if read := s.must("GET", "/v1/audit/events?type=audit.read", s.root, "").json["events"].([]any); len(read) == 0 {
		t.Error("nobody is recorded to have read addresses")
	}
}
