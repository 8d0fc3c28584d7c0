package api_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
)

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
	s.flush()
	s.must("POST", "/v1/keys/"+id+"/rotate", s.root, `{"grace":"1h","reason":"quarterly"}`)
	s.ask(first, "/v1/parcels/2")
	s.flush()
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"leaked"}`)
	s.ask(first, "/v1/parcels/3")
	s.flush()

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

// Whatever is decided is explained as it was decided, also when document and key
// are others by now.
func TestExplainAgreesWithTheVerifier(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	rng := rand.New(rand.NewPCG(1, 2))
	type key struct{ id, secret, previous string }
	var keys []key
	for range 4 {
		id, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}, "resources": [][]string{nil, {"d1"}}[rng.IntN(2)],
			"allowed_ips": [][]string{nil, {"203.0.113.0/24"}}[rng.IntN(2)], "allowed_origins": [][]string{nil, {"https://a.example"}}[rng.IntN(2)]})
		keys = append(keys, key{id, secret, ""})
	}
	type decided struct {
		id, code, key string
		sequence      float64
	}
	var all []decided
	codes := map[string]int{}
	for range 120 {
		i := rng.IntN(len(keys))
		k := &keys[i]
		switch rng.IntN(16) {
		case 0:
			a := s.do("POST", "/v1/keys/"+k.id+"/rotate", s.root, []string{`{"grace":0,"end_grace":true}`, `{"grace":"1h","end_grace":true}`}[rng.IntN(2)])
			if secret, ok := a.json["secret"].(string); ok { // a plan without access makes none
				k.previous, k.secret = k.secret, secret
			}
		case 1:
			s.do("PATCH", "/v1/keys/"+k.id, s.root, []string{`{"scopes":[]}`, `{"scopes":["parcels:read"]}`, `{"plan":"free"}`, `{"plan":null}`, `{"limits":{"minute":3}}`}[rng.IntN(5)])
		case 2:
			if rng.IntN(3) == 0 {
				s.must("POST", "/v1/keys/"+k.id+"/revoke", s.root, "")
				s.must("PUT", "/v1/keyspaces/pb/owners/org_1", s.root, `{"plan":"large"}`)
				id, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}})
				*k = key{id, secret, ""}
			}
		case 3:
			s.must("PUT", "/v1/keyspaces/pb/owners/org_1", s.root, []string{`{"plan":"large"}`, `{"plan":"free"}`}[rng.IntN(2)])
		case 4:
			s.must("PUT", "/v1/keyspaces/pb", s.root, strings.ReplaceAll(fmt.Sprintf(parcelbird, "pb", "pb", "pb"), "GET /v1/parcels", []string{"GET /v1/parcels", "GET /v1/orders"}[rng.IntN(2)]), "Content-Type", "application/yaml")
		}
		ask := map[string]any{"key": k.secret, "method": "GET", "path": []string{"/v1/parcels/1", "/v1/depots/d1/x", "/v1/depots/d2/x", "/v1/orders/1"}[rng.IntN(4)],
			"ip": []string{"203.0.113.7", "198.51.100.1"}[rng.IntN(2)], "origin": []string{"https://a.example", "https://b.example"}[rng.IntN(2)]}
		if k.previous != "" && rng.IntN(3) == 0 {
			ask["key"] = k.previous
		}
		a := s.verify(s.root, ask)
		code := a.json["code"].(string)
		codes[code]++
		all = append(all, decided{a.json["decision_id"].(string), code, k.id, a.json["sequence"].(float64)})
		if code != "VALID" {
			s.flush() // a fold of its own, so that it is told apart from the others of its second
		}
	}
	s.flush()
	for _, d := range all {
		a := s.must("GET", "/v1/audit/decisions/"+d.id, s.root, "")
		found := false
		for _, j := range list(a, "judgements") {
			found = found || j["code"] == d.code
			if j["agrees"] != true {
				t.Errorf("%s was decided %s and is explained otherwise: %s", d.id, d.code, a.body)
			}
			failed := "VALID"
			for _, step := range j["steps"].([]any) {
				if step := step.(map[string]any); step["verdict"] == "failed" {
					failed = step["code"].(string)
				}
			}
			if d.code == "VALID" && failed != "VALID" {
				t.Errorf("a step of an admitted request failed: %s", a.body)
			}
			if (d.code == "REVOKED" || d.code == "RATE_LIMITED") && failed != d.code {
				t.Errorf("%s is explained as %s: %s", d.code, failed, a.body)
			}
		}
		if !found || a.json["key"].(map[string]any)["id"] != d.key {
			t.Errorf("%s, decided %s about %s: %s", d.id, d.code, d.key, a.body)
		}
		if d.code == "VALID" && a.json["at"].(map[string]any)["sequence"] != d.sequence {
			t.Errorf("judged with LEDGER %v, explained with %s", d.sequence, a.body)
		}
	}
	for _, code := range []string{"VALID", "SUPERSEDED", "PLAN_DENIED", "WRONG_RESOURCE", "INSUFFICIENT_SCOPE", "ORIGIN_DENIED", "IP_DENIED"} {
		if codes[code] == 0 {
			t.Errorf("no decision was %s: %v", code, codes)
		}
	}
}

// An id that nobody made, that is another's, or of which the log holds nothing.
func TestExplainUnknown(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	id, secret := s.create(nil)
	ok := s.verify(s.root, map[string]any{"key": secret, "method": "GET", "path": "/v1/depots/1", "ip": "203.0.113.7"}).json["decision_id"].(string)
	unknown := s.verify(s.root, map[string]any{"key": secret + "x", "ip": "203.0.113.9"}).json["decision_id"].(string)
	s.flush()
	a := s.must("GET", "/v1/audit/decisions/"+ok, s.root, "")
	if j := list(a, "judgements"); len(j) != 1 || j[0]["source_ip"] != "203.0.113.7" {
		t.Errorf("an operator sees the address: %s", a.body)
	}
	a = s.must("GET", "/v1/audit/decisions/"+unknown, s.root, "")
	if j := list(a, "judgements"); len(j) != 1 || j[0]["code"] != "MALFORMED_KEY" || j[0]["source_ip"] != "203.0.113.9" || a.json["key"] != nil {
		t.Errorf("a refusal without a key: %s", a.body)
	}
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	other := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_2"}`).json["secret"].(string)
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	if a := s.must("GET", "/v1/audit/decisions/"+ok, manager, ""); list(a, "judgements")[0]["source_ip"] != "" {
		t.Errorf("a manager sees an address: %s", a.body)
	}
	s.refused(s.do("GET", "/v1/audit/decisions/"+ok, other, ""), 404, "DECISION_NOT_FOUND")
	s.refused(s.do("GET", "/v1/audit/decisions/"+unknown, manager, ""), 404, "DECISION_NOT_FOUND")
	s.refused(s.do("GET", "/v1/audit/decisions/"+ok, verifier, ""), 403, "FORBIDDEN")
	for _, bad := range []string{"dec_1", "x", ok + "0", strings.ToUpper(ok), "evt_" + ok[4:], secret} {
		s.refused(s.do("GET", "/v1/audit/decisions/"+bad, s.root, ""), 422, "INVALID")
	}
	for _, made := range []string{verify.NewDecisionID(id, true, time.Now().Add(-time.Second)), verify.NewDecisionID(id, false, time.Now().Add(-time.Hour)),
		verify.NewDecisionID("", true, time.Now()), verify.NewDecisionID(id, true, time.Now().Add(time.Hour)), verify.NewDecisionID("key_01a201e4-0a5a-7fb8-8bf8-70f7a46da2a5", true, time.Now())} {
		s.refused(s.do("GET", "/v1/audit/decisions/"+made, s.root, ""), 404, "DECISION_NOT_FOUND")
	}
}

// A leaked secret tells its key, what was done with it and not with another of
// the same key, and the command to end it. It is in no log, body or row.
func TestLeaked(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	id, first := s.create(map[string]any{"name": "CI", "limits": map[string]any{"minute": 50}})
	use := func(secret, path, ip string) {
		s.verify(s.root, map[string]any{"key": secret, "method": "GET", "path": path, "ip": ip})
	}
	use(first, "/v1/depots/1", "203.0.113.7")
	use(first, "/v1/depots/1", "203.0.113.7")
	second := s.must("POST", "/v1/keys/"+id+"/rotate", s.root, `{"grace":"1h"}`).json["secret"].(string)
	use(first, "/v1/depots/2", "198.51.100.9")
	use(second, "/v1/depots/3", "203.0.113.7")
	s.must("POST", "/v1/keys/"+id+"/end-grace", s.root, "")
	use(first, "/v1/depots/1", "198.51.100.9")
	s.flush()

	ask := func(credential, secret, more string) answer {
		b, _ := json.Marshal(secret)
		return s.must("POST", "/v1/audit/leaked", credential, `{"secret":`+string(b)+more+`}`)
	}
	a := ask(s.root, first, "")
	if len(list(a, "leaks")) != 1 {
		t.Fatalf("leaked: %s", a.body)
	}
	l := list(a, "leaks")[0]
	uses, secret := l["uses"].(map[string]any), l["secret"].(map[string]any)
	if l["key"].(map[string]any)["id"] != id || l["owner_name"] != "org_1" || fmt.Sprint(l["limits"]) != "map[day:1000 minute:50]" || l["revoke"] != "keyledger keys revoke "+id+" --reason leaked" {
		t.Errorf("leaked: %s", a.body)
	}
	if secret["which"] != "superseded" || secret["works"] != false || secret["ends_at"] == nil {
		t.Errorf("the secret: %v", secret)
	}
	if uses["count"] != 3.0 || uses["possible"] != 0.0 || fmt.Sprint(uses["endpoints"]) != "[map[count:2 endpoint:/v1/depots/1 method:GET] map[count:1 endpoint:/v1/depots/2 method:GET]]" {
		t.Errorf("uses of the first secret: %v", uses)
	}
	ips := uses["ips"].([]any)
	if len(ips) != 2 || ips[0].(map[string]any)["ip"] != "203.0.113.7" || ips[0].(map[string]any)["count"] != 2.0 {
		t.Errorf("addresses: %v", ips)
	}
	if refused := fmt.Sprint(l["refused"]); !strings.Contains(refused, "code:SUPERSEDED count:1") {
		t.Errorf("refused: %s", refused)
	}
	now := list(ask(s.root, second, `,"keyspace":"pb"`), "leaks")[0]
	if now["uses"].(map[string]any)["count"] != 1.0 || now["secret"].(map[string]any)["which"] != "current" || now["secret"].(map[string]any)["works"] != true {
		t.Errorf("the current secret: %v", now)
	}
	// A deleted key's secret leaks as well.
	s.must("DELETE", "/v1/keys/"+id, s.root, "")
	if l := list(ask(s.root, second, ""), "leaks"); len(l) != 1 || l[0]["secret"].(map[string]any)["works"] != false {
		t.Errorf("of a deleted key: %v", l)
	}
	nobodys := func(credential, secret string) {
		s.refused(s.do("POST", "/v1/audit/leaked", credential, `{"secret":"`+secret+`"}`), 404, "SECRET_NOT_FOUND")
	}
	nobodys(s.root, "pb_live_nobody")
	if a := ask(s.root, s.root, ""); len(list(a, "leaks")) != 1 {
		t.Errorf("a root key: %s", a.body)
	}
	role := func(role, more string) string {
		return s.must("POST", "/v1/root-keys", s.root, `{"name":"r","role":"`+role+`"`+more+`}`).json["secret"].(string)
	}
	if l := list(ask(role("manager", `,"keyspace":"pb","owner":"org_1"`), first, ""), "leaks"); len(l) != 1 || len(l[0]["uses"].(map[string]any)["ips"].([]any)) != 0 {
		t.Errorf("a manager sees %v", l)
	}
	nobodys(role("manager", `,"keyspace":"pb","owner":"org_2"`), first)
	auditor := role("auditor", "")
	if l := list(ask(auditor, first, ""), "leaks"); len(l) != 1 || len(l[0]["uses"].(map[string]any)["ips"].([]any)) != 2 {
		t.Errorf("an auditor sees %v", l)
	}
	nobodys(auditor, s.root)
	s.refused(s.do("POST", "/v1/audit/leaked", role("verifier", ""), `{"secret":"x"}`), 403, "FORBIDDEN")
	for _, bad := range []string{`{}`, `{"secret":""}`, `{"secret":1}`, `{"secret":"x","first":"y"}`} {
		s.refused(s.do("POST", "/v1/audit/leaked", s.root, bad), 422, "INVALID")
	}
	s.refused(s.do("GET", "/v1/audit/leaked?secret=x", s.root, ""), 405, "METHOD_NOT_ALLOWED")
}
