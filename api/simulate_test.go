package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/api"
)

func (s *service) simulate(credential, body string) (out api.Simulation) {
	s.t.Helper()
	if err := json.Unmarshal(s.must("POST", "/v1/limits/simulate", credential, body).body, &out); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// Recorded traffic is refused again by the limits in force as it was then, by smaller
// ones more, by those of another document as that says, and by none not at all.
func TestSimulate(t *testing.T) {
	s := start(t)
	s.limited() // minute 3, day 50, an owner's keys together
	s.must("PUT", "/v1/keyspaces/lim/owners/org_2", s.root, `{"name":"Two"}`)
	ask := func(secret string, n int) {
		for range n {
			s.verify(s.root, map[string]any{"keyspace": "lim", "key": secret})
		}
	}
	key, secret := s.create(map[string]any{"keyspace": "lim", "environment": "live", "scopes": nil, "name": "Production server"})
	_, other := s.create(map[string]any{"keyspace": "lim", "environment": "live", "scopes": nil, "owner": "org_2"})
	ask(secret, 5) // two are refused
	ask(other, 2)
	s.must("POST", "/v1/limits/take", s.root, `{"keyspace":"lim","owner":"org_2"}`)
	s.flush()

	same := s.simulate(s.root, `{"keyspace":"lim"}`)
	if same.Total != (api.SimulatedFigures{Requests: 8, RefusedThen: 2, Refused: 2}) || len(same.Keys) != 1 || same.KeysHit != 1 || same.Seen != 2 || same.Bucket != "hour" {
		t.Errorf("the limits in force: %+v", same)
	}
	if k := same.Keys[0]; k.Key != key || k.Name != "Production server" || k.Windows["minute"] != 2 || k.First == 0 || k.WorstCount != 2 || k.Share != 0.4 {
		t.Errorf("%+v", k)
	}
	smaller := s.simulate(s.root, `{"keyspace":"lim","limits":{"day":1}}`)
	if smaller.Total != (api.SimulatedFigures{Requests: 8, RefusedThen: 2, Refused: 6, NewlyRefused: 4}) || len(smaller.Owners) != 2 || smaller.Owners[0].Windows["day"] == 0 {
		t.Errorf("one a day: %+v", smaller)
	}
	if one := s.simulate(s.root, `{"keyspace":"lim","owner":"org_2","limits":{"minute":1}}`); one.Total != (api.SimulatedFigures{Requests: 3, Refused: 2, NewlyRefused: 2}) {
		t.Errorf("one owner: %+v", one)
	}
	if one := s.simulate(s.root, `{"key":"`+key+`","limits":{"minute":4}}`); one.Total != (api.SimulatedFigures{Requests: 5, RefusedThen: 2, Refused: 1, NoLongerRefused: 1}) || one.Keyspace != "lim" {
		t.Errorf("one key: %+v", one)
	}
	if none := s.simulate(s.root, `{"keyspace":"lim","plan":"small","limits":{}}`); none.Total.Refused != 0 || none.Total.NoLongerRefused != 2 {
		t.Errorf("no limits: %+v", none)
	}
	document, err := json.Marshal(map[string]string{"keyspace": "lim", "document": `{"keyspace":"lim","format":{"prefixes":{"live":"lim_"},"length":40},
		"plans":{"small":{"limits":{"minute":2}}},"default_plan":"small","limits":{"from":"plan","count_by":"key"}}`})
	if err != nil {
		t.Fatal(err)
	}
	if d := s.simulate(s.root, string(document)); d.Total.Refused != 3 || d.Total.NewlyRefused != 1 {
		t.Errorf("another document: %+v", d)
	}
	lines := s.do("POST", "/v1/limits/simulate", s.root, `{"keyspace":"lim"}`, "Accept", "application/x-ndjson")
	if last := string(lines.body)[strings.LastIndex(strings.TrimSpace(string(lines.body)), "\n")+1:]; lines.status != 200 || !strings.HasPrefix(last, `{"result":{"keyspace":"lim"`) {
		t.Errorf("%d %s", lines.status, lines.body)
	}
}

// An auditor simulates everything, a manager its own keyspace and owner alone, others
// nothing; what makes no sense is refused with what to write.
func TestWhoMaySimulate(t *testing.T) {
	s := start(t)
	s.limited()
	s.must("PUT", "/v1/keyspaces/lim/owners/org_2", s.root, `{"name":"Two"}`)
	_, secret := s.create(map[string]any{"keyspace": "lim", "environment": "live", "scopes": nil, "owner": "org_2"})
	s.verify(s.root, map[string]any{"keyspace": "lim", "key": secret})
	s.flush()
	role := func(body string) string {
		return s.must("POST", "/v1/root-keys", s.root, body).json["secret"].(string)
	}
	auditor, verifier := role(`{"name":"a","role":"auditor"}`), role(`{"name":"v","role":"verifier"}`)
	manager := role(`{"name":"m","role":"manager","keyspace":"lim","owner":"org_1"}`)
	if all := s.simulate(auditor, `{"keyspace":"lim"}`); all.Total.Requests != 1 {
		t.Errorf("an auditor: %+v", all)
	}
	if own := s.simulate(manager, `{}`); own.Total.Requests != 0 || own.Keyspace != "lim" {
		t.Errorf("a manager of another owner: %+v", own)
	}
	s.refused(s.do("POST", "/v1/limits/simulate", manager, `{"keyspace":"lim","owner":"org_2"}`), 404, "OWNER_NOT_FOUND")
	s.refused(s.do("POST", "/v1/limits/simulate", verifier, `{"keyspace":"lim"}`), 403, "FORBIDDEN")
	s.refused(s.do("POST", "/v1/limits/simulate", secret, `{"keyspace":"lim"}`), 403, "FORBIDDEN")
	s.refused(s.do("POST", "/v1/limits/simulate", s.root, `{"keyspace":"other"}`), 404, "KEYSPACE_NOT_FOUND")
	for _, body := range []string{
		`{}`, `{"keyspace":"lim","limits":{"week":3}}`, `{"keyspace":"lim","limits":{"minute":0}}`, `{"keyspace":"lim","plan":"gold"}`,
		`{"keyspace":"lim","from":"2026-01-02T00:00:00Z","to":"2026-01-01T00:00:00Z"}`, `{"keyspace":"lim","from":"2020-01-02T00:00:00Z"}`,
		`{"keyspace":"lim","document":"keyspace: other\nformat: {prefixes: {live: o_}, length: 40}"}`, `{"keyspace":"lim","document":"nonsense"}`, `{"keyspace":"lim","limit":{"minute":3}}`,
	} {
		if a := s.do("POST", "/v1/limits/simulate", s.root, body); a.status != 422 {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
}
