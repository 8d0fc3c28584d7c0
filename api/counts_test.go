package api_test

import (
	"fmt"
	"testing"
)

// Keys are counted by status, of all whom the credential reaches and of nobody else, and
// owners are found by a part of their name.
func TestCounts(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.serve()
	s.configure("pb")
	make := func(owner string) string {
		return s.must("POST", "/v1/keys", s.root, `{"keyspace":"pb","owner":"`+owner+`","name":"n"}`).json["key"].(map[string]any)["id"].(string)
	}
	make("org_1")
	make("org_2")
	s.must("POST", "/v1/keys/"+make("org_1")+"/revoke", s.root, `{"reason":"r"}`)
	s.must("DELETE", "/v1/keys/"+make("org_1"), s.root, "")
	counts := func(credential, query string) string {
		list := s.must("GET", "/v1/analytics/keys"+query, credential, "").json["counts"].([]any)
		said := ""
		for _, x := range list {
			x := x.(map[string]any)
			said += fmt.Sprint(x["keyspace"], " owners ", x["owners"], " active ", x["active"], " revoked ", x["revoked"], " expired ", x["expired"])
		}
		return said
	}
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	for _, c := range []struct{ credential, query, want string }{
		{s.root, "", "pb owners 2 active 2 revoked 1 expired 0"},
		{s.root, "?keyspace=pb&owner=org_2", "pb owners 1 active 1 revoked 0 expired 0"},
		{manager, "", "pb owners 1 active 1 revoked 1 expired 0"},
	} {
		if got := counts(c.credential, c.query); got != c.want {
			t.Errorf("%s: %s, want %s", c.query, got, c.want)
		}
	}
	s.refused(s.do("GET", "/v1/analytics/keys?keyspace=pb&owner=org_2", manager, ""), 404, "OWNER_NOT_FOUND")
	s.refused(s.do("GET", "/v1/analytics/keys", verifier, ""), 403, "FORBIDDEN")

	renamed := s.must("PUT", "/v1/keyspaces/pb/owners/org_2", s.root, `{"name":"Acme Ltd"}`)
	for credential, want := range map[string][2]string{s.root: {"owner.registered", "org_2"}, manager: {"key.deleted", "org_1"}} {
		list := s.must("GET", "/v1/feeds/latest?limit=1&keyspace=pb&owner="+want[1], credential, "", "Min-Sequence", renamed.header.Get("Ledger-Sequence")).json["facts"].([]any)
		if len(list) != 1 || list[0].(map[string]any)["type"] != want[0] || list[0].(map[string]any)["owner"] != want[1] {
			t.Errorf("the newest fact is %v, want %v", list, want)
		}
	}
	for q, want := range map[string]int{"ACME": 1, "org_": 2, "nobody": 0} {
		if n := len(s.must("GET", "/v1/keyspaces/pb/owners?q="+q, s.root, "").json["owners"].([]any)); n != want {
			t.Errorf("%d owners for %s", n, q)
		}
	}
}
