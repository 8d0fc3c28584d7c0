package api_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/commands/alertrules"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/reactors/alerts"
)

// withAlerts evaluates rules until the test ends.
func (s *service) withAlerts() {
	s.t.Helper()
	s.withPostgres()
	s.deps.AlertRules = &alertrules.Rules{Ledger: s.ledger, Pool: s.pool, Models: s.deps.Runner}
	s.serve()
	engine := alerts.New(alerts.Options{Ledger: s.ledger, Ring: s.ring, Pool: s.pool, Runner: s.deps.Runner, Node: "test",
		Hold: 50 * time.Millisecond, Every: 10 * time.Millisecond, Sweep: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- engine.Run(ctx) }()
	s.t.Cleanup(func() {
		stop()
		<-done
	})
}

// alerts lists what a filter finds, newest first, as when and state.
func (s *service) alerts(query, credential string) (list []string) {
	s.t.Helper()
	for cursor := ""; ; {
		a := s.must("GET", "/v1/alerts?limit=2"+query+cursor, credential, "")
		for _, x := range a.json["alerts"].([]any) {
			x := x.(map[string]any)
			list = append(list, fmt.Sprint(x["when"], " ", x["state"]))
		}
		next, more := a.json["next_cursor"].(string)
		if !more {
			return list
		}
		cursor = "&cursor=" + next
	}
}

func (s *service) awaitAlert(want, query string) {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); !slices.Contains(s.alerts(query, s.root), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("no %s among %q", want, s.alerts(query, s.root))
		}
	}
}

// Rules are set for one key, checked like a document's, raised by real traffic, listed, and
// resolved when they are taken back.
func TestAlerts(t *testing.T) {
	s := start(t)
	s.configure("pb")
	s.withAlerts()
	id, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	other, _ := s.create(map[string]any{"owner": "org_2"})
	path := "/v1/alert-rules/keys/" + id
	if a := s.must("GET", path, s.root, ""); len(a.json["rules"].([]any)) != 0 || !strings.Contains(string(a.body), `"from":"built-in"`) {
		t.Errorf("before anything is set: %s", a.body)
	}
	bad := s.do("PUT", path, s.root, `{"rules":[{"when":"denied","above":3},{"when":"nothing"}]}`)
	s.refused(bad, 422, "INVALID")
	for _, want := range []string{`"path":"rules[0].over"`, `"fix":"one of cost, denied`} {
		if !strings.Contains(string(bad.body), want) {
			t.Errorf("no %s in %s", want, bad.body)
		}
	}
	s.refused(s.do("PUT", path, s.root, `{"rules":[{"when":"denied","above":3,"over":"10m","often":true}]}`), 422, "INVALID")
	rules := `{"rules":[{"when":"denied","above":3,"over":"10m"},{"when":"cost","above":50,"over":"24h"},{"when":"unused","off":true}]}`
	if a := s.must("PUT", path, s.root, rules); a.json["changed"] != true {
		t.Errorf("set: %s", a.body)
	}
	before, err := s.ledger.Head(t.Context(), events.Ops)
	if err != nil {
		t.Fatal(err)
	}
	if a := s.must("PUT", path, s.root, rules); a.json["changed"] != false {
		t.Errorf("set again: %s", a.body)
	}
	if after, err := s.ledger.Head(t.Context(), events.Ops); after != before || err != nil {
		t.Errorf("the same rules again recorded something: %d, %d, %v", before, after, err)
	}
	a := s.must("GET", path, s.root, "")
	if body := string(a.body); !strings.Contains(body, `"from":"key"`) || strings.Contains(body, `"when":"unused","for"`) {
		t.Errorf("in force: %s", a.body)
	}

	for range 4 {
		s.verify(s.root, map[string]any{"key": secret, "method": "POST", "path": "/v1/parcels", "scopes": []string{"parcels:write"}})
	}
	s.verify(s.root, map[string]any{"key": secret, "method": "GET", "path": "/v1/parcels", "cost": 51})
	s.flush()
	s.awaitAlert("denied raised", "&key="+id)
	s.awaitAlert("cost raised", "&keyspace=pb&owner=org_1&state=raised")
	metrics := s.do("GET", "/metrics", "", "")
	if !strings.Contains(string(metrics.body), `keyledger_alerts_raised{when="denied"} 1`) {
		t.Error("no gauge of raised alerts")
	}
	if list := s.alerts("&key="+other, s.root); len(list) != 0 {
		t.Errorf("of another key: %q", list)
	}

	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	foreign := s.must("POST", "/v1/root-keys", s.root, `{"name":"m2","role":"manager","keyspace":"pb","owner":"org_2"}`).json["secret"].(string)
	auditor := s.must("POST", "/v1/root-keys", s.root, `{"name":"a","role":"auditor"}`).json["secret"].(string)
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	if list := s.alerts("", manager); len(list) < 2 {
		t.Errorf("a manager sees %q", list)
	}
	if list := s.alerts("", foreign); len(list) != 0 {
		t.Errorf("another owner's manager sees %q", list)
	}
	counted := func(credential, query string) (n float64) {
		for _, x := range s.must("GET", "/v1/alerts/counts"+query, credential, "").json["raised"].([]any) {
			n += x.(map[string]any)["count"].(float64)
		}
		return n
	}
	if n := counted(manager, ""); n < 2 || n != counted(s.root, "?keyspace=pb&owner=org_1") {
		t.Errorf("a manager counts %g raised alerts", n)
	}
	if n := counted(foreign, ""); n != 0 {
		t.Errorf("another owner's manager counts %g", n)
	}
	s.must("GET", "/v1/alerts", auditor, "")
	s.must("GET", path, auditor, "")
	s.refused(s.do("PUT", path, auditor, rules), 403, "FORBIDDEN")
	s.refused(s.do("GET", "/v1/alerts", verifier, ""), 403, "FORBIDDEN")
	s.refused(s.do("GET", path, foreign, ""), 404, "KEY_NOT_FOUND")
	s.refused(s.do("GET", "/v1/alerts?key="+id, foreign, ""), 404, "KEY_NOT_FOUND")
	s.refused(s.do("PUT", "/v1/alert-rules/keyspaces/pb", manager, rules), 403, "FORBIDDEN")
	s.refused(s.do("GET", "/v1/alert-rules/keyspaces/none", manager, ""), 404, "KEYSPACE_NOT_FOUND")
	s.refused(s.do("GET", "/v1/alert-rules/keyspaces/pb/owners/org_2", manager, ""), 404, "OWNER_NOT_FOUND")
	s.refused(s.do("GET", "/v1/alerts?when=nothing", s.root, ""), 422, "INVALID")

	s.must("PUT", "/v1/alert-rules/keyspaces/pb/owners/org_1", manager, `{"rules":[{"when":"denied","above":1000,"over":"10m"}]}`)
	s.must("PUT", "/v1/alert-rules/keyspaces/pb/resources/depot_1", s.root, `{"rules":[{"when":"expired","off":true}]}`)
	if a := s.must("GET", "/v1/alert-rules?keyspace=pb", s.root, ""); len(a.json["settings"].([]any)) != 3 {
		t.Errorf("what is set: %s", a.body)
	}
	if a := s.must("DELETE", path, manager, ""); a.json["changed"] != true {
		t.Errorf("deleted: %s", a.body)
	}
	s.awaitAlert("denied resolved", "&key="+id)
	s.awaitAlert("cost resolved", "&key="+id+"&state=resolved")
	found := s.must("GET", "/v1/audit/events?type=alert_rules.set,alert.raised,alert.resolved&key="+id, s.root, "")
	if n := len(found.json["events"].([]any)); n < 6 {
		t.Errorf("%d facts in the audit log: %s", n, found.body)
	}
}
