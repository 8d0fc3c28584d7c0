package api_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// Who could do something then is who the verifier would have admitted then: by the
// keys, owners and document of that moment.
func TestWhoCould(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	reads, _ := s.create(map[string]any{"name": "reads", "scopes": []string{"parcels:read"}, "allowed_ips": []string{"203.0.113.0/24"}})
	bound, _ := s.create(map[string]any{"name": "bound", "scopes": []string{"parcels:read"}, "resources": []string{"d1"}})
	none, _ := s.create(map[string]any{"name": "none"})
	gone, _ := s.create(map[string]any{"name": "gone", "scopes": []string{"parcels:read"}})
	then := fmt.Sprint(s.head())
	s.must("PATCH", "/v1/keys/"+none, s.root, `{"scopes":["parcels:read"]}`)
	s.must("POST", "/v1/keys/"+reads+"/revoke", s.root, "")
	s.must("DELETE", "/v1/keys/"+gone, s.root, "")
	s.must("PUT", "/v1/keyspaces/pb/owners/org_1", s.root, `{"plan":"free"}`)
	late, _ := s.create(map[string]any{"name": "late", "plan": "large", "scopes": []string{"parcels:read"}})

	ask := func(credential, query string) (map[string]string, answer) {
		t.Helper()
		a := s.must("GET", "/v1/audit/who-could?"+query, credential, "")
		told := map[string]string{}
		for _, k := range list(a, "keys") {
			told[k["key"].(map[string]any)["id"].(string)] = k["code"].(string)
			if (k["code"] == "VALID") != (k["could"] == true) || k["why"] == "" {
				t.Errorf("%v", k)
			}
		}
		return told, a
	}
	same := func(what string, got, want map[string]string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	read := "keyspace=pb&method=GET&path=%2Fv1%2Fparcels%2F1"
	got, a := ask(s.root, read+"&as_of="+then)
	same("then", got, map[string]string{reads: "VALID", gone: "VALID"})
	if fmt.Sprint(a.json["at"].(map[string]any)["sequence"]) != then || a.header.Get("Ledger-Sequence") != then || fmt.Sprint(a.json["needs"]) != "[parcels:read]" || a.json["count"] != nil {
		t.Errorf("then: %v %s", a.header, a.body)
	}
	if body := string(a.body); !strings.Contains(body, `{"code":"IP_DENIED","says":"from the addresses 203.0.113.0/24"}`) || !strings.Contains(body, `"RATE_LIMITED"`) {
		t.Errorf("conditions: %s", body)
	}
	got, a = ask(s.root, read+"&could=any&count=true&limit=1&as_of="+then)
	if len(got) != 1 || a.json["next_cursor"] == nil {
		t.Errorf("a page of one: %s", a.body)
	}
	if c := fmt.Sprint(a.json["count"]); c != "map[codes:map[INSUFFICIENT_SCOPE:1 WRONG_RESOURCE:1] could:2 not:2]" {
		t.Errorf("counted %s", c)
	}
	// Pages are of one moment, whatever comes between.
	s.create(map[string]any{"owner": "org_2", "scopes": []string{"parcels:read"}})
	pages := read + "&could=any&limit=1&as_of=" + then
	all := map[string]string{}
	for query := pages; query != ""; {
		got, a := ask(s.root, query)
		for k, v := range got {
			all[k] = v
		}
		if query = ""; a.json["next_cursor"] != nil {
			query = pages + "&cursor=" + url.QueryEscape(a.json["next_cursor"].(string))
		}
	}
	same("all of then", all, map[string]string{reads: "VALID", gone: "VALID", none: "INSUFFICIENT_SCOPE", bound: "WRONG_RESOURCE"})
	got, _ = ask(s.root, "keyspace=pb&scope=parcels:read&resource=d1&as_of="+then)
	same("by scope and resource", got, map[string]string{reads: "VALID", gone: "VALID", bound: "VALID"})
	got, _ = ask(s.root, read+"&ip=198.51.100.1&as_of="+then)
	same("from elsewhere", got, map[string]string{gone: "VALID"})
	got, _ = ask(s.root, read+"&owner=org_1&could=any")
	same("now", got, map[string]string{reads: "REVOKED", bound: "PLAN_DENIED", none: "PLAN_DENIED", late: "VALID"})
	got, _ = ask(s.root, read+"&key="+gone)
	same("a deleted one that is named", got, map[string]string{gone: "REVOKED"})

	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_2"}`).json["secret"].(string)
	if got, _ := ask(manager, "scope=parcels:read"); len(got) != 1 || got[reads] != "" {
		t.Errorf("a manager of org_2 sees %v", got)
	}
	s.refused(s.do("GET", "/v1/audit/who-could?"+read+"&key="+reads, manager, ""), 404, "KEY_NOT_FOUND")
	s.refused(s.do("GET", "/v1/audit/who-could?"+read+"&key="+late+"&as_of="+then, s.root, ""), 404, "KEY_NOT_FOUND")
	for _, bad := range []string{"scope=parcels:read", "keyspace=pb", "keyspace=pb&scope=nothing", "keyspace=pb&method=GET", "keyspace=pb&path=/x", "keyspace=pb&method=GET&path=x",
		"keyspace=pb&method=STEAL&path=/x", read + "&as_of=never", read + "&cursor=x", read + "&could=maybe"} {
		s.refused(s.do("GET", "/v1/audit/who-could?"+bad, s.root, ""), 422, "INVALID")
	}
	s.refused(s.do("GET", "/v1/audit/who-could?"+read+"&as_of=1", s.root, ""), 404, "KEYSPACE_NOT_FOUND")
	recorded := string(s.must("GET", "/v1/audit/events?type=audit.read&keyspace=pb", s.root, "").body)
	if !strings.Contains(recorded, `"what":"who-could"`) || strings.Contains(recorded, "198.51.100.1") || strings.Contains(recorded, "/v1/parcels/1") {
		t.Errorf("recorded: %s", recorded)
	}
}

// Around a moment are the facts of whom is asked about, and of nobody else.
func TestMoments(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	id, _ := s.create(nil)
	first := s.head()
	s.create(map[string]any{"owner": "org_2"})
	s.must("PATCH", "/v1/keys/"+id, s.root, `{"name":"a"}`)
	last := s.head()
	type moments struct {
		At, Fact, Earlier, Later, First struct{ Sequence uint64 }
		Timeline                        []struct{ Count int }
	}
	ask := func(credential, query string) (m moments) {
		t.Helper()
		a := s.must("GET", "/v1/audit/moments?"+query, credential, "")
		if err := json.Unmarshal(a.body, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := ask(s.root, fmt.Sprintf("at=%d&keyspace=pb&owner=org_1&buckets=10", first))
	sum := 0
	for _, b := range m.Timeline {
		sum += b.Count
	}
	if m.At.Sequence != first || m.Fact.Sequence != first || m.Earlier.Sequence >= first || m.Earlier.Sequence == 0 || m.Later.Sequence != last || len(m.Timeline) != 10 || sum < 3 {
		t.Errorf("around %d: %+v", first, m)
	}
	if m := ask(s.root, fmt.Sprintf("at=%d&owner=org_1&keyspace=pb", last-1)); m.Fact.Sequence != first || m.Earlier.Sequence != first || m.Later.Sequence != last || m.Timeline != nil {
		t.Errorf("at another's fact: %+v", m)
	}
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_2"}`).json["secret"].(string)
	if m := ask(manager, "at=now"); m.Fact.Sequence != last-1 || m.Later.Sequence != 0 {
		t.Errorf("a manager of org_2 finds %+v", m)
	}
	// An event's id is its place; one of another stream is its time.
	events := list(s.must("GET", "/v1/audit/events?key="+id, s.root, ""), "events")
	if at := s.must("GET", "/v1/keys/"+id+"?as_of="+events[0]["id"].(string), s.root, ""); at.header.Get("Ledger-Sequence") != fmt.Sprint(first) {
		t.Errorf("as of %v: %v", events[0]["id"], at.header)
	}
	read := list(s.must("GET", "/v1/audit/events?type=audit.read", s.root, ""), "events")
	if m := ask(s.root, "at="+read[0]["id"].(string)); m.At.Sequence < last {
		t.Errorf("at an event of OPS: %+v", m)
	}
	s.refused(s.do("GET", "/v1/audit/moments?at=never", s.root, ""), 422, "INVALID")
	s.refused(s.do("GET", "/v1/audit/moments?at=1&owner=org_1", manager, ""), 404, "OWNER_NOT_FOUND")
}
