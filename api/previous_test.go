package api_test

import (
	"testing"
)

// During a grace the service says who still uses the previous secret.
func TestPreviousUses(t *testing.T) {
	s := start(t)
	s.configure("pb")
	id, old := s.create(nil)
	s.verify(s.root, map[string]any{"key": old, "method": "GET", "path": "/v1/before", "ip": "203.0.113.1"})
	if a := s.must("GET", "/v1/keys/"+id+"/previous-uses", s.root, ""); len(a.json["uses"].([]any)) != 0 || a.json["grace_until"] != nil {
		t.Errorf("never rotated: %s", a.body)
	}
	now := s.must("POST", "/v1/keys/"+id+"/rotate", s.root, `{"grace":"1h"}`).json["secret"].(string)
	s.verify(s.root, map[string]any{"key": now, "method": "GET", "path": "/v1/new", "ip": "203.0.113.2"})
	for range 2 {
		s.verify(s.root, map[string]any{"key": old, "method": "GET", "path": "/v1/old", "ip": "203.0.113.3"})
	}
	s.flush()
	a := s.must("GET", "/v1/keys/"+id+"/previous-uses", s.root, "")
	uses := a.json["uses"].([]any)
	if len(uses) != 1 || a.json["complete"] != true || a.json["grace_until"] == nil || a.json["last_used_at"] == nil {
		t.Fatalf("%s", a.body)
	}
	if u := uses[0].(map[string]any); u["ip"] != "203.0.113.3" || u["endpoint"] != "/v1/old" || u["count"] != 2.0 {
		t.Errorf("%v", u)
	}
	// A manager sees how often and where, not from which address.
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	if u := s.must("GET", "/v1/keys/"+id+"/previous-uses", manager, "").json["uses"].([]any)[0].(map[string]any); u["ip"] != "" || u["count"] != 2.0 {
		t.Errorf("a manager sees %v", u)
	}
	if read := s.must("GET", "/v1/audit/events?type=audit.read&key="+id, s.root, "").json["events"].([]any); len(read) != 1 {
		t.Errorf("%d readings are recorded, want the operator's", len(read))
	}
}
