package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/events"
)

// until waits until USAGE holds so many messages that a reader sees.
func (s *service) until(path string, enough func(answer) bool) answer {
	s.t.Helper()
	for range 1000 {
		if a := s.must("GET", path, s.root, ""); enough(a) {
			return a
		}
	}
	s.t.Fatalf("%s never answers what it should", path)
	return answer{}
}

func (s *service) ask(secret, path string) (decision, code string) {
	s.t.Helper()
	body, _ := json.Marshal(map[string]any{"keyspace": "pb", "key": secret, "method": "GET", "path": path, "ip": "203.0.113.7"})
	a := s.must("POST", "/v1/verify", s.root, string(body))
	return a.json["decision_id"].(string), a.json["code"].(string)
}

func list(a answer, name string) (all []map[string]any) {
	members, _ := a.json[name].([]any)
	for _, m := range members {
		all = append(all, m.(map[string]any))
	}
	return all
}

// The life of a key reads like a story: what changed, by whom, and what it was
// used for in between.
func TestHistory(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	id, first := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	s.must("PATCH", "/v1/keys/"+id, s.root, `{"name":"renamed","limits":{"minute":7}}`)
	for range 3 {
		s.ask(first, "/v1/parcels/1")
	}
	s.until("/v1/audit/events?type=key.used&key="+id, func(a answer) bool { return len(list(a, "events")) == 3 })
	s.must("POST", "/v1/keys/"+id+"/rotate", s.root, `{"grace":"1h","reason":"quarterly"}`)
	s.ask(first, "/v1/parcels/2")
	s.until("/v1/audit/events?type=key.used&key="+id, func(a answer) bool { return len(list(a, "events")) == 4 })
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"leaked"}`)
	s.ask(first, "/v1/parcels/3")
	s.until("/v1/audit/events?type=key.denied&key="+id, func(a answer) bool { return len(list(a, "events")) == 1 })

	a := s.must("GET", "/v1/audit/keys/"+id+"/history", s.root, "")
	var told []string
	for _, e := range list(a, "entries") {
		line := fmt.Sprint(e["kind"], " ", e["what"])
		if n := e["count"].(float64); n > 0 {
			line += fmt.Sprint(" x", n)
		}
		if act, ok := e["act"].(map[string]any); ok {
			for _, c := range act["changes"].([]any) {
				c := c.(map[string]any)
				if f := c["field"]; f == "name" || f == "limits.minute" || f == "status" || f == "revoke_reason" {
					line += fmt.Sprintf(" %v %v->%v", f, c["before"], c["after"])
				}
			}
			if act["request_id"] == "" || act["actor"].(map[string]any)["type"] != "root_key" || act["via"] != "api" {
				t.Errorf("nobody did it: %v", e)
			}
		}
		told = append(told, line)
	}
	want := []string{
		"fact created limits.minute <nil>->100 name <nil>->a key status <nil>->active", "fact changed limits.minute 100->7 name a key->renamed",
		"uses VALID x3", "fact rotated", "uses VALID x1", "fact revoked revoke_reason -> leaked status active->revoked", "refused REVOKED x1",
	}
	want[5] = "fact revoked revoke_reason ->leaked status active->revoked"
	// That events were listed is in the log, too, and is about the key.
	told = without(told, "act audit.read")
	if strings.Join(told, "\n") != strings.Join(want, "\n") {
		t.Errorf("history:\n%s\nwant:\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
	if strings.Contains(string(a.body), "sha256") {
		t.Errorf("a hash is shown: %s", a.body)
	}
	if short := s.must("GET", "/v1/audit/keys/"+id+"/history?uses=false", s.root, ""); strings.Contains(string(short.body), `"uses"`) {
		t.Errorf("uses that were not asked for: %s", short.body)
	}
	s.refused(s.do("GET", "/v1/audit/keys/key_nobody/history", s.root, ""), 404, "KEY_NOT_FOUND")
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	s.refused(s.do("GET", "/v1/audit/keys/"+id+"/history", verifier, ""), 403, "FORBIDDEN")
	other := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_2"}`).json["secret"].(string)
	s.refused(s.do("GET", "/v1/audit/keys/"+id+"/history", other, ""), 404, "KEY_NOT_FOUND")
	s.refused(s.do("GET", "/v1/audit/diff?from=1&key="+id, other, ""), 404, "KEY_NOT_FOUND")
	auditor := s.must("POST", "/v1/root-keys", s.root, `{"name":"a","role":"auditor"}`).json["secret"].(string)
	s.must("GET", "/v1/audit/keys/"+id+"/history", auditor, "")
	read := s.must("GET", "/v1/audit/events?type=audit.read&key="+id, s.root, "")
	if !strings.Contains(string(read.body), `"what":"history"`) {
		t.Errorf("that the history was read is not recorded: %s", read.body)
	}
}

func without(list []string, what string) (rest []string) {
	for _, s := range list {
		if s != what {
			rest = append(rest, s)
		}
	}
	return rest
}

// What changed between two moments: each thing once, with every field before and
// after, and the events that did it.
func TestDiff(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	old, _ := s.create(map[string]any{"name": "old"})
	from := fmt.Sprint(s.head())
	s.must("PATCH", "/v1/keys/"+old, s.root, `{"name":"older"}`)
	made, _ := s.create(map[string]any{"name": "new"})
	s.must("PATCH", "/v1/keys/"+old, s.root, `{"name":"oldest","meta":{"team":"a"}}`)
	s.must("PUT", "/v1/keyspaces/pb/owners/org_1", s.root, `{"plan":"basic"}`)
	s.must("PUT", "/v1/keyspaces/pb", s.root, strings.ReplaceAll(fmt.Sprintf(parcelbird, "pb", "pb", "pb"), "minute: 20", "minute: 30"), "Content-Type", "application/yaml")
	s.must("DELETE", "/v1/keys/"+made, s.root, "")
	to := fmt.Sprint(s.head())
	s.must("PATCH", "/v1/keys/"+old, s.root, `{"name":"too late"}`)

	type difference struct {
		Kind, Keyspace, Owner, Key string
		What                       []string
		Changes                    []struct {
			Field         string
			Before, After any
		}
		Events []struct {
			Type     string
			Sequence uint64
			Actor    events.Actor
		}
	}
	var told []string
	query := "/v1/audit/diff?limit=2&from=" + from + "&to=" + to
	for path := query; path != ""; {
		a := s.must("GET", path, s.root, "")
		var page struct {
			Changed    []difference
			NextCursor *string `json:"next_cursor"`
		}
		if err := json.Unmarshal(a.body, &page); err != nil {
			t.Fatal(err)
		}
		for _, d := range page.Changed {
			line := fmt.Sprint(d.Kind, " ", d.Owner, " ", strings.Join(d.What, ","))
			for _, c := range d.Changes {
				if d.Key != made {
					line += fmt.Sprintf("; %s %v->%v", c.Field, c.Before, c.After)
				}
			}
			for _, e := range d.Events {
				line += "; " + e.Type
				if e.Actor.Type != "root_key" {
					t.Errorf("%s by %v", e.Type, e.Actor)
				}
			}
			told = append(told, line)
		}
		path = ""
		if page.NextCursor != nil {
			path = query + "&cursor=" + *page.NextCursor
		}
	}
	want := []string{
		"key org_1 changed; meta.team <nil>->a; name old->oldest; key.updated; key.updated",
		"key org_1 created,revoked,deleted; key.created; key.revoked; key.deleted",
		"owner org_1 plan changed; plan large->basic; owner.plan_changed",
		"keyspace  configured; document_version 1->2; plans.basic.limits.minute 20->30; keyspace.configured",
	}
	if strings.Join(told, "\n") != strings.Join(want, "\n") {
		t.Errorf("diff:\n%s\nwant:\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
	if a := s.must("GET", "/v1/audit/diff?from="+to+"&to="+to, s.root, ""); len(list(a, "changed")) != 0 {
		t.Errorf("nothing changed in no time: %s", a.body)
	}
	if a := s.must("GET", "/v1/audit/diff?from="+to, s.root, ""); len(list(a, "changed")) != 1 {
		t.Errorf("up to now: %s", a.body)
	}
	s.refused(s.do("GET", "/v1/audit/diff?from="+to+"&to="+from, s.root, ""), 422, "INVALID")
	s.refused(s.do("GET", "/v1/audit/diff?from=never", s.root, ""), 422, "INVALID")
	s.refused(s.do("GET", "/v1/audit/diff", s.root, ""), 422, "INVALID")
}
