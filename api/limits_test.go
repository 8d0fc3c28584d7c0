package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// limited configures a keyspace whose keys have limits by their plan, shared by
// their owner.
func (s *service) limited() {
	s.t.Helper()
	s.must("PUT", "/v1/keyspaces/lim", s.root, `{"keyspace":"lim","credential":{"header":"Authorization","scheme":"Bearer"},
		"format":{"prefixes":{"live":"lim_"},"length":40},
		"plans":{"small":{"limits":{"minute":3,"day":50}}},"default_plan":"small",
		"limits":{"from":"plan","count_by":"owner"},"rate_headers":["x-ratelimit","retry-after"]}`)
	s.must("PUT", "/v1/keyspaces/lim/owners/org_1", s.root, `{"name":"One"}`)
}

// A decision says where the key stands in every window; other traffic draws
// from the same pool, and a key whose limit is used up says so.
func TestLimits(t *testing.T) {
	s := start(t)
	s.limited()
	id, secret := s.create(map[string]any{"keyspace": "lim", "environment": "live", "scopes": nil})
	windows := func(a answer) string {
		t.Helper()
		all := []string{}
		for _, l := range a.json["limits"].([]any) {
			m := l.(map[string]any)
			reset, err := time.Parse(time.RFC3339, m["reset"].(string))
			if left := time.Until(reset); err != nil || left < 0 || left > 24*time.Hour {
				t.Errorf("the %v ends %v", m["window"], m["reset"])
			}
			all = append(all, fmt.Sprintf("%v %v/%v", m["window"], m["remaining"], m["limit"]))
		}
		return strings.Join(all, ", ")
	}
	ask := map[string]any{"keyspace": "lim", "key": secret}
	ok := s.verify(s.root, ask)
	if windows(ok) != "minute 2/3, day 49/50" || ok.json["retry_after"] != nil || ok.key()["status"] != "active" {
		t.Errorf("%s", ok.body)
	}
	wire := ok.json["answer"].(map[string]any)
	if h := wire["headers"].(map[string]any); wire["status"] != 200.0 || h["X-RateLimit-Limit"] != "3" || h["X-RateLimit-Remaining"] != "2" || h["X-RateLimit-Reset"] == "" || wire["body"] != nil {
		t.Errorf("%v", wire)
	}
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	taken := s.must("POST", "/v1/limits/take", verifier, `{"keyspace":"lim","owner":"org_1","n":2}`)
	if taken.json["valid"] != true || taken.json["key"] != nil || windows(taken) != "minute 0/3, day 47/50" {
		t.Errorf("%s", taken.body)
	}
	if k := s.must("GET", "/v1/keys/"+id, s.root, "").json; k["status"] != "rate_limited" {
		t.Errorf("a key whose limit is used up is %v", k["status"])
	}
	for what, a := range map[string]answer{"a key": s.verify(s.root, ask), "others": s.must("POST", "/v1/limits/take", s.root, `{"keyspace":"lim","owner":"org_1"}`)} {
		wait, _ := a.json["retry_after"].(float64)
		wire := a.json["answer"].(map[string]any)
		h := wire["headers"].(map[string]any)
		if a.json["code"] != "RATE_LIMITED" || wait < 1 || wait > 60 || wire["status"] != 429.0 || h["Retry-After"] != fmt.Sprint(wait) || h["X-RateLimit-Remaining"] != "0" || windows(a) != "minute 0/3, day 47/50" {
			t.Errorf("%s: %s", what, a.body)
		}
		if what == "a key" && a.key()["status"] != "rate_limited" {
			t.Errorf("its status is %v", a.key()["status"])
		}
	}
	if a := s.must("POST", "/v1/limits/take", s.root, `{"keyspace":"lim","owner":"org_1","n":1000}`); a.json["code"] != "RATE_LIMITED" || a.json["retry_after"] != nil {
		t.Errorf("more than the limit: %s", a.body)
	}
	auditor := s.must("POST", "/v1/root-keys", s.root, `{"name":"a","role":"auditor"}`).json["secret"].(string)
	s.refused(s.do("POST", "/v1/limits/take", auditor, `{"keyspace":"lim","owner":"org_1"}`), http.StatusForbidden, "FORBIDDEN")
	s.refused(s.do("POST", "/v1/limits/take", secret, `{"keyspace":"lim","owner":"org_1"}`), http.StatusForbidden, "FORBIDDEN")
	s.refused(s.do("POST", "/v1/limits/take", s.root, `{"keyspace":"lim","owner":"org_9"}`), http.StatusNotFound, domain.OwnerNotFound().Code)
	for _, keyspace := range []string{"none", "keyledger"} {
		s.refused(s.do("POST", "/v1/limits/take", s.root, `{"keyspace":"`+keyspace+`","owner":"org_1"}`), http.StatusNotFound, domain.KeyspaceNotFound().Code)
	}
	for _, body := range []string{`{}`, `{"keyspace":"lim"}`, `{"keyspace":"lim","owner":"org_1","n":0}`, `{"keyspace":"lim","owner":"org_1","n":-1}`,
		`{"keyspace":"lim","owner":"org_1","n":"2"}`, `{"keyspace":"lim","owner":"org_1","n":9223372036854775808}`, `{"keyspace":"lim","owner":"org_1","m":1}`} {
		s.refused(s.do("POST", "/v1/limits/take", s.root, body), http.StatusUnprocessableEntity, "INVALID")
	}
	s.flush()
	counts := map[string]int64{}
	for r, err := range s.ledger.Read(t.Context(), events.Usage, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		switch d := r.Event.Data.(type) {
		case events.LimitTaken:
			counts["taken"] += d.Count
		case events.KeyRateLimited:
			counts["limited"] += d.Count
		}
	}
	if counts["taken"] != 2 || counts["limited"] != 1 {
		t.Errorf("recorded are %v", counts)
	}
}

// Lists show and find keys whose limits are used up.
func TestLimitedKeysAreListed(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.limited()
	s.configure("pb")
	s.create(nil)
	shared, secret := s.create(map[string]any{"keyspace": "lim", "environment": "live", "scopes": nil})
	also, _ := s.create(map[string]any{"keyspace": "lim", "environment": "live", "scopes": nil})
	for range 3 {
		s.verify(s.root, map[string]any{"keyspace": "lim", "key": secret})
	}
	after := fmt.Sprint(s.head())
	for query, want := range map[string]int{"keyspace=lim": 2, "status=rate_limited": 2, "status=rate_limited&keyspace=pb": 0, "status=rate_limited&owner=org_1": 2} {
		a := s.must("GET", "/v1/keys?"+query, s.root, "", "Min-Sequence", after)
		keys := a.json["keys"].([]any)
		if len(keys) != want {
			t.Errorf("%s: %s", query, a.body)
		}
		for _, k := range keys {
			if k := k.(map[string]any); k["status"] != "rate_limited" || k["id"] != shared && k["id"] != also {
				t.Errorf("%s lists %v", query, k)
			}
		}
	}
}

// A key tells how much of its limits is used, and of whose, and what became of its
// secrets. Another owner's manager is told nothing.
func TestLimitsAndSecretsOfAKey(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.limited()
	s.configure("pb")
	id, secret := s.create(map[string]any{"keyspace": "lim", "environment": "live", "scopes": nil})
	used := func() (all string) {
		a := s.must("GET", "/v1/keys/"+id+"/limits", s.root, "")
		all = fmt.Sprint(a.json["from"], " ", a.json["plan"], " ", a.json["shared"])
		for _, l := range a.json["limits"].([]any) {
			m := l.(map[string]any)
			all += fmt.Sprintf(", %v %v+%v=%v", m["window"], m["used"], m["remaining"], m["limit"])
			if at, err := time.Parse(time.RFC3339, m["reset"].(string)); err != nil || time.Until(at) > 24*time.Hour || time.Until(at) < -time.Minute {
				t.Errorf("the %v ends %v", m["window"], m["reset"])
			}
		}
		return all
	}
	for _, want := range []string{"plan small true, minute 0+3=3, day 0+50=50", "plan small true, minute 0+3=3, day 0+50=50"} { // looking counts nothing
		if got := used(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for range 4 { // one too many
		s.verify(s.root, map[string]any{"keyspace": "lim", "key": secret})
	}
	if got := used(); got != "plan small true, minute 3+0=3, day 3+47=50" {
		t.Error(got)
	}

	key, first := s.create(nil)
	s.verify(s.root, map[string]any{"keyspace": "pb", "key": first})
	secrets := func() (all []map[string]any) {
		for _, x := range s.must("GET", "/v1/keys/"+key+"/secrets", s.root, "", "Min-Sequence", fmt.Sprint(s.head())).json["secrets"].([]any) {
			all = append(all, x.(map[string]any))
		}
		return all
	}
	if list := secrets(); len(list) != 1 || list[0]["state"] != "current" || list[0]["works_until"] != nil || !strings.HasPrefix(first, strings.Split(list[0]["display"].(string), "...")[0]) {
		t.Errorf("before a rotation there are %v", list)
	}
	second := s.must("POST", "/v1/keys/"+key+"/rotate", s.root, `{"grace":"1h"}`).json["secret"].(string)
	list := secrets()
	if len(list) != 2 || list[0]["state"] != "current" || list[1]["state"] != "grace" || list[1]["works_until"] == nil || list[1]["since"] == nil ||
		!strings.HasPrefix(second, strings.Split(list[0]["display"].(string), "...")[0]) {
		t.Errorf("in a grace there are %v", list)
	}
	s.must("POST", "/v1/keys/"+key+"/end-grace", s.root, "")
	if list := secrets(); len(list) != 2 || list[1]["state"] != "ended" {
		t.Errorf("after it there are %v", list)
	}
	for _, path := range []string{"/v1/keys/" + id, "/v1/keys/" + key} {
		foreign := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_2"}`).json["secret"].(string)
		s.refused(s.do("GET", path+"/limits", foreign, ""), http.StatusNotFound, domain.KeyNotFound().Code)
		s.refused(s.do("GET", path+"/secrets", foreign, ""), http.StatusNotFound, domain.KeyNotFound().Code)
	}
}
