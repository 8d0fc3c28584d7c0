package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/verify"
)

// What may be a secret in the wrong place is neither sent nor repeated.
func TestPastRefusesSecretsAsArguments(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 500, `{}`) })
	secret := "pb_live_secretsecretsecret"
	for _, args := range [][]string{{"history", secret}, {"as-of", "1", secret}, {"diff", "1", "--key", secret}, {"explain", secret}, {"leaked", secret}, {"as-of", secret}, {"diff", "1", secret}} {
		r := invoke(t, "", append([]string{"audit"}, args...)...).want(t, exitUsage)
		lacks(t, "stderr", r.stderr, secret)
	}
	if n := len(s.asked(t)); n != 0 {
		t.Errorf("the service was asked %d times", n)
	}
}

// A leaked secret goes into a body and nowhere else.
func TestAuditLeakedSendsABody(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); !strings.Contains(string(body), "pb_live_known") {
			answerJSON(w, 404, `{"status":404,"code":"SECRET_NOT_FOUND","detail":"No key has or had this secret."}`)
			return
		}
		answerJSON(w, 200, `{"leaks":[{"key":{"id":"key_1","name":"CI","keyspace":"parcelbird","owner":"org_1","status":"active","scopes":["parcels:read"]},"owner_name":"One",
			"plan":"basic","limits":{"minute":20},"secret":{"which":"previous","works":true,"made_at":"2026-01-01T00:00:00.000Z","ends_at":"2026-01-19T00:00:00.000Z"},
			"uses":{"count":3,"possible":0,"first":"2026-01-02T00:00:00.000Z","last":"2026-01-03T00:00:00.000Z","endpoints":[{"method":"GET","endpoint":"/v1/a","count":3}],"others":0,
			"ips":[{"ip":"203.0.113.7","count":3,"first":"2026-01-02T00:00:00.000Z","last":"2026-01-03T00:00:00.000Z"}],"other_ips":0,"unknown_ips":0},
			"refused":[{"code":"SUPERSEDED","count":2,"first":"2026-01-02T00:00:00.000Z","last":"2026-01-03T00:00:00.000Z"}],"revoke":"keyledger keys revoke key_1 --reason leaked"}]}`)
	})
	r := invoke(t, "pb_live_known\n", "audit", "leaked").want(t, 0)
	contains(t, "stdout", r.stdout, "key\tkey_1\n", "secret\tprevious\n", "it works\tyes\n", "uses\t3\n", "endpoint\tGET /v1/a\t3\t-\t-\n",
		"from\t203.0.113.7\t3\t2026-01-02T00:00:00.000Z\t2026-01-03T00:00:00.000Z\n", "refused (any secret)\tSUPERSEDED\t2\t", "revoke it\tkeyledger keys revoke key_1 --reason leaked\n")
	if q := s.only(t); q.method != "POST" || q.target != "/v1/audit/leaked" || q.body != `{"secret":"pb_live_known"}` {
		t.Errorf("asked %v", q)
	}
	r = invoke(t, "pb_live_nobody\n", "audit", "leaked").want(t, exitNotFound)
	contains(t, "stderr", r.stderr, "No key has or had this secret")
	lacks(t, "output", r.stdout+r.stderr, "pb_live_nobody")
	invoke(t, "", "audit", "leaked").want(t, exitUsage)
}

// A moment is sent as it is meant.
func TestPastMoments(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"from":{},"to":{},"changed":[{"kind":"key","keyspace":"pb","owner":"o","key":"key_1","what":["changed","rotated"],
			"changes":[{"field":"name","before":"CI","after":"Build"},{"field":"limits.minute","before":null,"after":7}],
			"events":[{"sequence":5,"actor":{"type":"root_key","id":"key_0"}},{"sequence":9,"actor":{"type":"root_key","id":"key_0"}}]}],"next_cursor":null}`)
	})
	r := invoke(t, "", "audit", "diff", "24h", "4711", "--keyspace", "pb").want(t, 0)
	if want := "key\tkey_1\tchanged, rotated\tname\tCI\tBuild\troot_key key_0\tLEDGER 5, 9\nkey\tkey_1\tchanged, rotated\tlimits.minute\t-\t7\troot_key key_0\tLEDGER 5, 9\n"; r.stdout != want {
		t.Errorf("stdout %q, want %q", r.stdout, want)
	}
	if got, want := s.only(t).target, "/v1/audit/diff?from=2026-01-17T12%3A00%3A00.000Z&keyspace=pb&to=4711"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
	invoke(t, "", "audit", "diff", "yesterday").want(t, exitUsage)
	invoke(t, "", "audit", "diff").want(t, exitUsage)
	invoke(t, "", "audit", "as-of", "1", "key_1", "--keyspace", "pb").want(t, exitUsage)
}

// An explanation is a table of checks on a terminal, and lines elsewhere.
func TestAuditExplain(t *testing.T) {
	id := verify.NewDecisionID("key_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d", true, time.Now())
	newService(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, id) {
			answerJSON(w, 404, `{"status":404,"code":"DECISION_NOT_FOUND","detail":"The log holds no use with this decision id."}`)
			return
		}
		answerJSON(w, 200, `{"decision_id":"`+id+`","time":"2026-01-18T11:00:00.000Z","admitted":true,"at":{"sequence":12,"time":"2026-01-18T11:00:00.000Z"},
			"key":{"id":"key_1","name":"CI","status":"active","keyspace":"pb"},"owner":"o","plan":"basic","document_version":2,
			"judgements":[{"code":"VALID","stream":"USAGE","sequence":3,"line":1,"count":1,"method":"GET","endpoint":"/v1/a","secret":"current","status":200,"node":"n1",
			"steps":[{"code":"REVOKED","verdict":"passed","why":"the key was not revoked"},{"code":"IP_DENIED","verdict":"not recorded","why":"the address is not known"}],"agrees":true}]}`)
	})
	r := invoke(t, "", "audit", "explain", id).want(t, 0)
	contains(t, "stdout", r.stdout, "decided\tadmitted\n", "document\tversion 2\n", "judged with\tLEDGER 12\n", "recorded\tVALID\n", "place\tUSAGE 3/1\n", "answered\t200\n",
		"judged again\tas recorded\n", "REVOKED\tpassed\tthe key was not revoked\n")
	r = invokeApp(t, "", func(a *app) { a.tty = true }, "audit", "explain", id).want(t, 0)
	contains(t, "terminal", r.stdout, "Check", "IP_DENIED", "not recorded")
	other := verify.NewDecisionID("", false, time.Now())
	contains(t, "stderr", invoke(t, "", "audit", "explain", other).want(t, exitNotFound).stderr, "DECISION_NOT_FOUND")
}
