package api_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// The newest events come first, without those that are left out, and go on in pages;
// what an export or a forged cursor cannot have is refused.
func TestAuditNewestFirst(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	id, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	s.ask(secret, "/v1/parcels/1")
	s.flush()
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"leaked"}`)
	s.ask(secret, "/v1/parcels/2")
	s.flush()
	kinds := func(query string) string {
		t.Helper()
		var told []string
		for query := "?order=desc&except=audit.read&" + query; ; {
			a := s.must("GET", "/v1/audit/events"+query, s.root, "")
			for _, e := range list(a, "events") {
				told = append(told, fmt.Sprint(e["type"]))
			}
			next, more := a.json["next_cursor"].(string)
			if !more {
				return strings.Join(told, " ")
			}
			at, _, _ := strings.Cut(query, "&after=")
			query = at + "&after=" + url.QueryEscape(next)
		}
	}
	for query, want := range map[string]string{
		"key=" + id:              "key.denied key.revoked key.used key.created",
		"key=" + id + "&limit=1": "key.denied key.revoked key.used key.created",
		"code=REVOKED":           "key.denied",
		"code=VALID":             "key.used",
		"stream=ledger&type=key.created,key.revoked&keyspace=pb": "key.revoked key.created",
		"stream=usage,ops": "key.denied key.used",
	} {
		if got := kinds(query); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	for _, query := range []string{"?order=backward", "?code=NEVER", "?except=key.exploded", "?stream=FEED", "?order=desc&after=x"} {
		s.refused(s.do("GET", "/v1/audit/events"+query, s.root, ""), 422, "INVALID")
	}
	s.refused(s.do("GET", "/v1/audit/events?order=desc", s.root, "", "Accept", "text/csv"), 422, "INVALID")
}

// An event by its place: what it changed and what stands around it, and nothing of
// another owner's.
func TestAuditEvent(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	id, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	s.must("PATCH", "/v1/keys/"+id, s.root, `{"name":"renamed"}`)
	s.ask(secret, "/v1/parcels/1")
	s.flush()
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"leaked"}`)
	places := map[string]string{}
	for _, e := range list(s.must("GET", "/v1/audit/events?key="+id, s.root, ""), "events") {
		places[fmt.Sprint(e["type"])] = fmt.Sprintf("/v1/audit/events/%s/%v?line=%v", e["stream"], e["sequence"], e["line"])
	}
	a := s.must("GET", places["key.updated"], s.root, "")
	change := a.json["changes"].([]any)[0].(map[string]any)
	before, behind := a.json["previous"].(map[string]any), a.json["next"].(map[string]any)
	if change["field"] != "name" || change["after"] != "renamed" || before["type"] != "key.created" || behind["type"] != "key.revoked" || a.json["void"] != false {
		t.Errorf("the event is %s", a.body)
	}
	if a := s.must("GET", places["key.created"], s.root, ""); a.json["previous"] != nil || len(a.json["changes"].([]any)) == 0 {
		t.Errorf("the first event is %s", a.body)
	}
	if a := s.must("GET", places["key.used"], s.root, ""); a.json["event"].(map[string]any)["data"].(map[string]any)["source_ip"] != "203.0.113.7" || a.json["next"] != nil {
		t.Errorf("the use is %s", a.body)
	}
	for path, want := range map[string]int{"/v1/audit/events/LEDGER/9999": 404, "/v1/audit/events/FEED/1": 404, "/v1/audit/events/x/1": 404,
		"/v1/audit/events/ledger/0": 404, "/v1/audit/events/ledger/-1": 404, "/v1/audit/events/usage/1?line=7": 404, "/v1/audit/events/ledger/1?line=x": 422} {
		if a := s.do("GET", path, s.root, ""); a.status != want {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	s.must("PUT", "/v1/keyspaces/pb/owners/other", s.root, `{"name":"Other","plan":"basic"}`)
	stranger := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"other"}`).json["secret"].(string)
	for _, place := range places {
		s.refused(s.do("GET", place, stranger, ""), 404, "EVENT_NOT_FOUND")
	}
}
