package main

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

const reported = `{"from":"2026-01-01T00:00:00.000Z","to":"2026-02-01T00:00:00.000Z","target_ms":300000,"unmeasured":1,
	"measured":2001,"everywhere":2000,"unconfirmed":1,"by_clocks":0,"p50_ms":1.2,"p99_ms":4,"max_ms":812.5,"met":2000,"missed":1,
	"classes":[{"up_to_ms":0.5,"count":0},{"up_to_ms":2,"count":1999},{"up_to_ms":1000,"count":1},{"up_to_ms":null,"count":0}],
	"nodes":[{"node":"gateway-a","confirmed":2000,"unconfirmed":1,"p50_ms":1.2,"p99_ms":4,"max_ms":812.5}],
	"groups":[{"owner":"org_1","measured":2001,"p50_ms":1.2,"p99_ms":4,"max_ms":812.5,"met":2000,"unconfirmed":1}]}`

// The report says how many met the target and how many nobody knows of, and never
// rounds up to all of them.
func TestReportRevocations(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/reports/revocations" {
			answerJSON(w, 200, reported)
			return
		}
		next := `"p2"`
		if r.URL.Query().Get("cursor") == "p2" {
			next = "null"
		}
		answerJSON(w, 200, `{"revocations":[{"sequence":17,"fact":"key.revoked","keyspace":"parcelbird","owner":"org_1","key":"key_1","decided_at":"2026-01-18T12:00:00.000Z",
			"basis":"acknowledged","by":"serve-1","slowest_ms":1.25,"verifiers":[{"node":"serve-1","state":"stopped"},{"node":"gone\u001b[2J","state":"stale"}]}],"next_cursor":`+next+`}`)
	})
	r := invoke(t, "", "report", "revocations", "--from", "2026-01-01", "--owner", "org_1", "--keyspace", "parcelbird", "--target", "5m", "--by", "owner").want(t, 0)
	contains(t, "stdout", r.stdout, "within 5m\t2000 of 2001 (>99.9 %)\n", "p99\t4 ms\n", "longest\t812.5 ms\n", "unconfirmed\t1\n", "unmeasured\t1\n",
		"gateway-a\t2000\t1\t1.2 ms\t4 ms\t812.5 ms\n", "-\t-\torg_1\t2001\t")
	asked, err := url.ParseQuery(strings.TrimPrefix(s.only(t).target, "/v1/reports/revocations?"))
	if err != nil || asked.Get("from") != "2026-01-01T00:00:00.000Z" || asked.Get("by") != "owner" || asked.Get("target") != "5m" || asked.Get("owner") != "org_1" {
		t.Errorf("asked %v, %v", asked, err)
	}
	r = invoke(t, "", "report", "revocations", "--csv").want(t, 0)
	if lines := strings.Split(r.stdout, "\n"); len(lines) != 4 || !strings.HasPrefix(lines[1], "17,2026-01-18T12:00:00.000Z,key.revoked,parcelbird,org_1,key_1,acknowledged,,1.25,1,1,") || strings.Contains(r.stdout, "\x1b") {
		t.Errorf("%q", r.stdout)
	}
	invoke(t, "", "report", "revocations", "--csv", "--json").want(t, exitUsage)
	invoke(t, "", "report", "revocations", "--json").want(t, 0)
}

// On a terminal there is a picture, and no class that has one is without a bar.
func TestReportPicture(t *testing.T) {
	var out bytes.Buffer
	a := &app{stdout: &out, width: 60}
	v := &reportView{Classes: []classView{{new(0.5), 0}, {new(2.0), 1999}, {new(5.0), 0}, {new(1000.0), 1}, {nil, 0}}}
	want := strings.Join([]string{
		"      ≤ 2 ms │" + strings.Repeat("█", 36) + " 1999",
		"      ≤ 5 ms │ 0",
		"   ≤ 1000 ms │█ 1"}, "\n")
	if got := a.classes(v); got != want {
		t.Errorf("\n%s\ninstead of\n%s", got, want)
	}
}

// A verifier that has not confirmed is named, with what is known of it, and the exit
// code says so; what the command answered is printed all the same.
func TestWaitUnconfirmed(t *testing.T) {
	newService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.Header().Set("Ledger-Sequence", "17")
			answerJSON(w, 200, `{"key":{"id":"key_1","status":"revoked"}}`)
			return
		}
		answerJSON(w, 200, `{"sequence":17,"everywhere":false,"verifiers":[{"node":"a","state":"stopped","delay_ms":1.25},{"node":"b","state":"unconfirmed","stale_ms":300000},{"node":"c","state":"stale","stale_ms":1}]}`)
	})
	r := invoke(t, "", "keys", "revoke", "key_1", "--wait", "--wait-timeout", "1ms").want(t, exitUnreachable)
	contains(t, "stdout", r.stdout, "status\trevoked\n", "a\tstopped\t1.250 ms\n", "b\tunconfirmed\t-\n")
	contains(t, "stderr", r.stderr, "b (if it runs, it answers STATE_TOO_STALE from 5m0s after the revocation on)", "c (if it runs, it answers STATE_TOO_STALE by now)")
	r = invoke(t, "", "keys", "revoke", "key_1", "--wait", "--wait-timeout", "1ms", "--json").want(t, exitUnreachable)
	contains(t, "stdout", r.stdout, `"revocation":{"sequence":17,"everywhere":false`, `"id":"key_1"`)
	contains(t, "stderr", r.stderr, `"code":"UNCONFIRMED"`)
}

// The picture of the verifiers is drawn over the one before it.
func TestWaitPicture(t *testing.T) {
	var out bytes.Buffer
	a := &app{stdout: &out, tty: true}
	v := &stoppedView{}
	if err := (&answer{body: []byte(`{"verifiers":[{"node":"a","state":"unconfirmed"}]}`)}).decode(v); err != nil {
		t.Fatal(err)
	}
	lines, err := a.drawStopped(v, 0)
	if err != nil || lines != strings.Count(out.String(), "\n") {
		t.Fatalf("%d lines of\n%s%v", lines, out.String(), err)
	}
	out.Reset()
	if _, err := a.drawStopped(v, lines); err != nil || !strings.HasPrefix(out.String(), "\x1b[5A\x1b[J") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
