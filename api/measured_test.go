package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify/applied"
)

// withVerifiers adds what listens to the verifiers, and serves anew.
func (s *service) withVerifiers() {
	s.t.Helper()
	teller := s.deps.Verifier.Tell(s.conn, "test", "serve")
	w := applied.NewWatcher(applied.WatchOptions{Teller: teller, Record: applied.Once(s.ledger), Log: slog.New(slog.NewTextHandler(s.log, nil))})
	ctx, stop := context.WithCancel(context.Background())
	listens, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = w.Run(ctx, s.conn, func() { close(listens) })
	}()
	s.t.Cleanup(func() { stop(); <-ended })
	<-listens
	s.deps.Verifiers, s.deps.Commands.Appended = w, w.Appended
	s.serve()
}

// Whoever revokes is told when each verifier stopped, whoever may see the key may
// ask, and for everybody else it is not there. A deletion is asked about like the
// revocation in it; what ended nothing is not there either.
func TestRevocationMeasured(t *testing.T) {
	s := start(t)
	s.withVerifiers()
	s.configure("pb")
	made := s.must("POST", "/v1/keys", s.root, `{"keyspace":"pb","owner":"org_1","name":"CI"}`)
	id := made.key()["id"].(string)
	sequence := func(a answer) string { return a.header.Get("Ledger-Sequence") }
	deleted := s.must("DELETE", "/v1/keys/"+id, s.root, "")
	at := sequence(deleted)
	a := s.must("GET", "/v1/revocations/"+at+"?wait=20s", s.root, "")
	if a.json["everywhere"] != true || a.json["fact"] != "key.revoked" || a.json["key"] != id || fmt.Sprint(a.json["sequence"]) == at || a.json["basis"] != "acknowledged" {
		t.Errorf("%s", a.body)
	}
	list := a.json["verifiers"].([]any)
	if v := list[0].(map[string]any); len(list) != 1 || v["node"] != "test" || v["state"] != "stopped" || v["delay_ms"] == nil || v["clock_ms"] == nil {
		t.Errorf("%s", a.body)
	}
	root := func(body string) string {
		made := s.must("POST", "/v1/root-keys", s.root, body)
		secret := made.json["secret"].(string)
		*s.secrets = append(*s.secrets, secret)
		return secret
	}
	for name, c := range map[string]struct {
		credential string
		status     int
	}{
		"own manager":   {root(`{"name":"m1","role":"manager","keyspace":"pb","owner":"org_1"}`), 200},
		"other manager": {root(`{"name":"m2","role":"manager","keyspace":"pb","owner":"org_2"}`), 404},
		"auditor":       {root(`{"name":"a","role":"auditor"}`), 200},
		"verifier":      {root(`{"name":"v","role":"verifier"}`), 403},
		"nobody":        {"", 401},
	} {
		if a := s.do("GET", "/v1/revocations/"+at, c.credential, ""); a.status != c.status {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	for _, none := range []string{sequence(made), "1", "0", "999999"} {
		if a := s.do("GET", "/v1/revocations/"+none, s.root, ""); a.status != 404 || a.code() != "REVOCATION_NOT_FOUND" {
			t.Errorf("at %s: %d %s", none, a.status, a.body)
		}
	}
	for _, bad := range []string{"?wait=1h", "?wait=x", "?other=1"} {
		if a := s.do("GET", "/v1/revocations/"+at+bad, s.root, ""); a.status != 422 {
			t.Errorf("%s: %d %s", bad, a.status, a.body)
		}
	}
	st := s.must("GET", "/v1/status", s.root, "")
	v := st.json["verifiers"].([]any)[0].(map[string]any)
	if v["state"] != "current" || v["program"] != "serve" || v["seen_at"] == nil || st.json["revocations"] == nil {
		t.Errorf("%s", st.body)
	}
	if m := s.must("GET", "/metrics", "", ""); !strings.Contains(string(m.body), `keyledger_verifier_sequence{node="test"}`) {
		t.Error("no gauge of the verifier")
	}
}

// A report adds up what was measured, for those who may see the keys: percentiles of
// what every verifier confirmed by one clock, and how many were refused everywhere
// within a target, stale ones as late as they answer STATE_TOO_STALE.
func TestRevocationReport(t *testing.T) {
	s := start(t)
	s.configure("pb")
	s.withPostgres()
	record := applied.Once(s.ledger)
	begin := time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC)
	at := func(i int) events.Time { return events.At(begin.Add(time.Duration(i) * time.Hour)) }
	var measured uint64
	tell := func(i int, owner string, m events.RevocationMeasured) {
		m.Sequence, m.Fact, m.Decided, m.Node = uint64(100_000+i), "key.revoked", at(i), "n1"
		e := events.New(m, time.Now())
		e.Keyspace, e.Owner, e.Key = "pb", owner, fmt.Sprintf("key_%d", i)
		if err := record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		measured++
	}
	stopped := func(us ...int64) (list []events.VerifierStopped) {
		for i, us := range us {
			list = append(list, events.VerifierStopped{Node: fmt.Sprintf("n%d", i+1), DelayUS: us})
		}
		return list
	}
	for i := range 100 { // 1 to 100 ms at n2, half of that at n1
		tell(i, "org_1", events.RevocationMeasured{Basis: "acknowledged", Stopped: stopped(int64(i+1)*500, int64(i+1)*1000)})
	}
	tell(100, "org_2", events.RevocationMeasured{Basis: "acknowledged", Stopped: stopped(700), Unconfirmed: []events.VerifierUnconfirmed{{Node: "n2", StaleMS: 300_000}}})
	tell(101, "org_2", events.RevocationMeasured{Basis: "acknowledged", Stopped: stopped(700), Unconfirmed: []events.VerifierUnconfirmed{{Node: "n2"}}})
	tell(102, "org_2", events.RevocationMeasured{Basis: "clocks", Stopped: stopped(900)})
	head, err := s.ledger.Head(t.Context(), events.Ops)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.deps.Runner.Wait(t.Context(), "revocations_v1", head); err != nil {
		t.Fatal(err)
	}
	const period = "from=2026-01-18T00:00:00Z&to=2026-02-01T00:00:00Z"
	one := func(credential, query string) api.RevocationReport {
		t.Helper()
		var r api.RevocationReport
		if err := json.Unmarshal(s.must("GET", "/v1/reports/revocations?"+period+query, credential, "").body, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := one(s.root, "&target=50ms&by=owner")
	if r.Measured != 103 || r.Everywhere != 100 || r.Unconfirmed != 2 || r.ByClocks != 1 || *r.P50MS != 50 || *r.P99MS != 99 || *r.MaxMS != 100 || r.Met != 51 || r.Missed != 52 || r.Unmeasured != 0 {
		t.Errorf("%+v", r)
	}
	if len(r.Groups) != 2 || *r.Groups[1].Owner != "org_2" || r.Groups[1].Measured != 3 || r.Groups[1].P50MS != nil {
		t.Errorf("%+v", r.Groups)
	}
	if len(r.Nodes) != 2 || r.Nodes[1].Node != "n2" || r.Nodes[1].Confirmed != 100 || r.Nodes[1].Unconfirmed != 2 || *r.Nodes[1].P50MS != 50 || r.Nodes[0].Confirmed != 103 || *r.Nodes[0].MaxMS != 50 {
		t.Errorf("%+v", r.Nodes)
	}
	sum := int64(0)
	for _, c := range r.Classes {
		if sum += c.Count; c.UpToMS != nil && *c.UpToMS == 5 && sum != 5 {
			t.Errorf("%d up to 5 ms", sum)
		}
	}
	if sum != 100 {
		t.Errorf("%d in classes", sum)
	}
	if r := one(s.root, "&target=5m"); r.Met != 102 || r.Missed != 1 {
		t.Errorf("within five minutes: %d and %d", r.Met, r.Missed)
	}
	if r := one(s.root, "&by=day&owner=org_1&keyspace=pb"); len(r.Groups) != 5 || r.Groups[0].Day.String() != "2026-01-18T00:00:00.000Z" || r.Groups[0].Measured != 12 {
		t.Errorf("%+v", r.Groups)
	}
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_2"}`).json["secret"].(string)
	*s.secrets = append(*s.secrets, manager)
	if r := one(manager, "&by=owner"); r.Measured != 3 || len(r.Groups) != 1 {
		t.Errorf("what another owner's manager sees: %+v", r)
	}
	s.refused(s.do("GET", "/v1/reports/revocations?owner=org_1&keyspace=pb", manager, ""), 404, "OWNER_NOT_FOUND")
	for _, bad := range []string{"&by=node", "&by=owner,owner", "&target=0s", "&target=x"} {
		s.refused(s.do("GET", "/v1/reports/revocations?"+period+bad, s.root, ""), 422, "INVALID")
	}
	// The list has each, page by page, and a fact that LEDGER does not hold is nobody's.
	var keys []string
	for cursor := ""; ; {
		page := s.must("GET", "/v1/revocations?limit=40&"+period+"&cursor="+cursor, s.root, "")
		for _, x := range page.json["revocations"].([]any) {
			keys = append(keys, x.(map[string]any)["key"].(string))
		}
		next, more := page.json["next_cursor"].(string)
		if !more {
			break
		}
		cursor = next
	}
	if len(keys) != 103 || keys[0] != "key_0" || keys[102] != "key_102" {
		t.Errorf("%d in the list, %v", len(keys), keys)
	}
	if n := len(s.must("GET", "/v1/revocations?"+period, manager, "").json["revocations"].([]any)); n != 3 {
		t.Errorf("another owner's manager sees %d", n)
	}
	if same, err := s.deps.Runner.Compare(t.Context(), "revocations_v1", nil); err != nil || same.LiveHash != same.RebuiltHash {
		t.Errorf("a rebuild: %+v, %v", same, err)
	}
}
