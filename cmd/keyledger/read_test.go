package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const revoked = `{"id":"evt_2","type":"key.revoked","version":1,"time":"2026-01-18T11:57:00.000Z","keyspace":"parcelbird","owner":"org_1",` +
	`"key":"key_1","key_version":2,"actor":{"type":"root_key","id":"key_0"},"via":"cli","request_id":"req_1","command":"","data":{"reason":"leaked"},` +
	`"stream":"LEDGER","sequence":12,"line":0}`

func TestAuditList(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Accept") {
		case "text/csv":
			io.WriteString(w, "id,type\nevt_2,key.revoked\n")
		case "application/x-ndjson":
			io.WriteString(w, revoked+"\n")
		default:
			answerJSON(w, 200, `{"events":[`+revoked+`],"next_cursor":"p2"}`)
		}
	})
	r := invoke(t, "", "audit", "list", "--keyspace", "parcelbird", "--type", "key.revoked", "--from", "24h", "--limit", "1").want(t, 0)
	if want := "2026-01-18T11:57:00.000Z\tkey.revoked\tparcelbird\torg_1\tkey_1\tLEDGER 12\tkey_0\n"; r.stdout != want {
		t.Errorf("stdout %q, want %q", r.stdout, want)
	}
	contains(t, "stderr", r.stderr, "--after p2")
	if got, want := s.only(t).target, "/v1/audit/events?from=2026-01-17T12%3A00%3A00.000Z&keyspace=parcelbird&limit=1&type=key.revoked"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
	if r := invoke(t, "", "audit", "list", "--format", "csv").want(t, 0); r.stdout != "id,type\nevt_2,key.revoked\n" {
		t.Errorf("csv %q", r.stdout)
	}
	if r := invoke(t, "", "audit", "list", "--format", "ndjson").want(t, 0); r.stdout != revoked+"\n" {
		t.Errorf("ndjson %q", r.stdout)
	}
}

// A tail goes on after the last event that was printed, over a lost connection.
func TestAuditTail(t *testing.T) {
	n := 0
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		n++
		fmt.Fprintf(w, ": hello\n\nid: p%d\nevent: key.revoked\ndata: %s\n\n", n, revoked)
		if n == 1 {
			// Half an event is not one.
			fmt.Fprintf(w, "id: lost\ndata: {\"id\":")
		}
	})
	r := invoke(t, "", "audit", "tail", "--after", "p0", "--count", "2", "--json").want(t, 0)
	if r.stdout != revoked+"\n"+revoked+"\n" {
		t.Errorf("stdout %s", r.stdout)
	}
	all := s.asked(t)
	if len(all) != 2 || all[0].header.Get("Last-Event-ID") != "p0" || all[1].header.Get("Last-Event-ID") != "p1" {
		t.Errorf("asked %v", all)
	}
}

func TestReadEvents(t *testing.T) {
	var got []string
	last, enough, err := readEvents(strings.NewReader("data: a\r\nid: 1\r\n\r\ndata:b\ndata: c\n\nid: 2\n\ndata\n\ndata: d"), "0", func(data []byte) (bool, error) {
		got = append(got, string(data))
		return false, nil
	})
	if want := "a|b\nc|"; strings.Join(got, "|") != want || last != "2" || enough || !errors.Is(err, errStreamEnded) {
		t.Errorf("got %q, last %q, %v, %v", strings.Join(got, "|"), last, enough, err)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("id: 1\ndata: a\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, err := readEvents(bytes.NewReader(b), "", func([]byte) (bool, error) { return false, nil })
		if !errors.Is(err, errStreamEnded) {
			t.Errorf("error %v", err)
		}
	})
}

// A rebuild shows how far it is, and says whether the two were equal.
func TestProjectionsRebuild(t *testing.T) {
	var answer string
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) })
	answer = "{\"done\":0,\"total\":20}\n{\"done\":1,\"total\":20}\n{\"done\":20,\"total\":20}\n{\"result\":{\"name\":\"keys_v1\",\"sequence\":20,\"rows\":7,\"live_hash\":\"aa\",\"rebuilt_hash\":\"aa\",\"differences\":0,\"switched\":true}}\n"
	r := invoke(t, "", "projections", "rebuild", "keys_v1").want(t, 0)
	if r.stdout != "projection\tkeys_v1\nsequence\t20\nrows\t7\nlive hash\taa\nrebuilt hash\taa\ndifferences\t0\nswitched\ttrue\n" || r.stderr != "keys_v1: 0 of 20\nkeys_v1: 20 of 20\n" {
		t.Errorf("stdout %q stderr %q", r.stdout, r.stderr)
	}
	if q := s.only(t); q.method != "POST" || q.target != "/v1/projections/keys_v1/rebuild" {
		t.Errorf("asked %s %s", q.method, q.target)
	}
	answer = "{\"result\":{\"differences\":2,\"switched\":false}}\n"
	invoke(t, "", "projections", "compare", "keys_v1", "--json").want(t, exitFailed)
	answer = "{\"done\":1,\"total\":20}\n{\"error\":{\"status\":409,\"code\":\"REBUILDING\",\"detail\":\"Another rebuild is running.\"}}\n"
	contains(t, "stderr", invoke(t, "", "projections", "rebuild", "keys_v1").want(t, exitConflict).stderr, "Another rebuild is running.")
	// A stream that ends without a result is no success.
	answer = "{\"done\":1,\"total\":20}\n"
	invoke(t, "", "projections", "rebuild", "keys_v1").want(t, exitUnreachable)
}

// What a sink has taken, and why it takes nothing more.
func TestSinksStatus(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"sinks":[{"name":"billing","kind":"http","delivered":7,"lag":2,"behind":1,"dead":3,"replayed":1,"failing_since":"2026-01-18T11:59:59.000Z","last_error":"sink billing: billing.internal answered 503 Service Unavailable"},{"name":"bus","kind":"","delivered":1,"failing_since":null,"last_error":"old"}]}`)
	})
	r := invoke(t, "", "sinks", "status").want(t, 0)
	if r.stdout != "billing\thttp\t7\t2\t1\t2\t2026-01-18T11:59:59.000Z\tsink billing: billing.internal answered 503 Service Unavailable\nbus\tnot configured\t1\t0\t0\t0\t-\t-\n" {
		t.Errorf("%q", r.stdout)
	}
	if q := s.only(t); q.target != "/v1/sinks" {
		t.Errorf("asked %s", q.target)
	}
}

// The bar of a terminal ends whole.
func TestProgressBar(t *testing.T) {
	newService(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "{\"done\":10,\"total\":20}\n{\"result\":{\"switched\":true}}\n")
	})
	r := invokeApp(t, "", func(a *app) { a.errTTY = true }, "projections", "rebuild", "keys_v1").want(t, 0)
	contains(t, "stderr", r.stderr, "keys_v1", "done!")
}

func TestProjectionsStatus(t *testing.T) {
	newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"projections":[{"name":"keys_v1","stream":"LEDGER","state":"live","position":12,"head":13,"lag":1,"error":"","moved_at":"2026-01-18T11:59:59.000Z","rebuilds":0}]}`)
	})
	if r := invoke(t, "", "projections", "status").want(t, 0); r.stdout != "keys_v1\tLEDGER\tlive\t12\t13\t1\t2026-01-18T11:59:59.000Z\t0\t-\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	r := invokeApp(t, "", func(a *app) { a.tty = true }, "projections", "status").want(t, 0)
	contains(t, "stdout", r.stdout, "│ Projection ", "1s ago")
}

// Colour is for terminals that want it.
func TestColour(t *testing.T) {
	newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"keys":[`+oneKey+`]}`) })
	for _, color := range []bool{false, true} {
		r := invokeApp(t, "", func(a *app) { a.tty, a.color = true, color }, "keys", "list", "--keyspace", "parcelbird").want(t, 0)
		if got := strings.Contains(r.stdout, "\x1b[32mactive\x1b[0m"); got != color {
			t.Errorf("colour %v, want %v:\n%s", got, color, r.stdout)
		}
		lacks(t, "stdout", r.stdout, "Keyspace", "parcelbird")
		t.Log("\n" + r.stdout)
	}
}

// A narrow terminal keeps the columns that matter most, and the program says
// which are left out.
func TestNarrowTerminal(t *testing.T) {
	newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"keys":[`+oneKey+`]}`) })
	r := invokeApp(t, "", func(a *app) { a.tty, a.width = true, 40 }, "keys", "list").want(t, 0)
	contains(t, "stdout", r.stdout, "│ Key   │ Name │ Status │ Uses │\n")
	contains(t, "stderr", r.stderr, "too narrow for: Keyspace, Owner, Env, Display, Expires, Created")
	for line := range strings.Lines(r.stdout) {
		if n := len([]rune(line)) - 1; n > 40 {
			t.Errorf("a line of %d columns", n)
		}
	}
}

// The secret is the whole of stdin but its last line ending; it is never an
// argument, and a refusal is exit code 6.
func TestVerify(t *testing.T) {
	valid := `{"valid":true,"code":"VALID","decision_id":"dec_1","key":` + oneKey + `,"limits":[{"window":"minute","limit":20,"remaining":19,"reset":"2026-01-18T12:01:00.000Z"}],` +
		`"retry_after":null,"skipped":["origin"],"sequence":42,"answer":{"status":200,"headers":{},"body":null}}`
	refused := `{"valid":false,"code":"REVOKED","decision_id":"dec_2","key":"key_1","limits":[],"retry_after":null,"sequence":43,"answer":{"status":401,"headers":{},"body":{"problem":"No"}}}`
	answer := valid
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, answer) })
	r := invoke(t, "pb_live_thesecret \r\n", "verify", "--keyspace", "parcelbird", "--method", "GET", "--path", "/v1/parcels", "--scope", "parcels:read", "--tls=false").want(t, 0)
	contains(t, "stdout", r.stdout, "code\tVALID\n", "key\tkey_1\n", "limit minute\t19 of 20 left, until 2026-01-18T12:01:00.000Z\n", "skipped\torigin\n")
	if got, want := s.only(t).body, `{"key":"pb_live_thesecret ","keyspace":"parcelbird","method":"GET","path":"/v1/parcels","scopes":["parcels:read"],"tls":false}`; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
	answer = refused
	r = invoke(t, "Bearer x", "verify", "--keyspace", "parcelbird", "--authorization").want(t, exitRefused)
	contains(t, "stdout", r.stdout, "code\tREVOKED\n", "answer\t401 {\"problem\":\"No\"}\n")
	if r = invoke(t, "x", "verify", "--keyspace", "parcelbird", "--json").want(t, exitRefused); r.stdout != refused+"\n" || r.stderr != "" {
		t.Errorf("stdout %s stderr %s", r.stdout, r.stderr)
	}
	lacks(t, "output", r.stdout+r.stderr, "pb_live_thesecret")
	invoke(t, "", "verify", "--keyspace", "parcelbird").want(t, exitUsage)
}

func TestKeyspacesApply(t *testing.T) {
	const source = "# a comment\nkeyspace: parcelbird\nabout: Parcels\n"
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Ledger-Sequence", "3")
		if r.URL.Query().Get("dry_run") == "true" {
			answerJSON(w, 200, `{"dry_run":true,"events":[{"type":"keyspace.configured","data":{"document_version":2}}]}`)
			return
		}
		answerJSON(w, 200, `{"keyspace":"parcelbird","version":2,"document":{"about":"Parcels"},"changed":true}`)
	})
	file := write(t, t.TempDir()+"/parcelbird.yaml", source)
	r := invoke(t, "", "keyspaces", "apply", "-f", file).want(t, 0)
	if r.stdout != "keyspace parcelbird: version 2 configured\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	// The document is sent as it was written: its author reads line numbers.
	if q := s.only(t); q.body != source || q.method+" "+q.target != "PUT /v1/keyspaces/parcelbird" || q.header.Get("Content-Type") != "application/yaml" {
		t.Errorf("asked %s %s %s %q", q.method, q.target, q.header.Get("Content-Type"), q.body)
	}
	s.seen = nil
	r = invoke(t, `{"keyspace":"parcelbird"}`, "keyspaces", "apply", "-f", "-", "--dry-run").want(t, 0)
	if r.stdout != `{"type":"keyspace.configured","data":{"document_version":2}}`+"\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	if q := s.only(t); q.header.Get("Content-Type") != "application/json" || q.header.Get("Idempotency-Key") != "" {
		t.Errorf("headers %v", q.header)
	}
}

// Of several documents none is applied when one is refused.
func TestKeyspacesApplyAllOrNone(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/two") {
			answerJSON(w, 422, `{"status":422,"code":"INVALID","detail":"The input is not valid.","errors":[{"path":"format.length","line":3,"message":"is too short","fix":"at least 22"}]}`)
			return
		}
		answerJSON(w, 200, `{"dry_run":true,"events":[]}`)
	})
	dir := t.TempDir()
	write(t, dir+"/one.yaml", "keyspace: one\n")
	write(t, dir+"/two.yaml", "keyspace: two\n")
	r := invoke(t, "", "keyspaces", "apply", "-f", dir).want(t, exitFailed)
	contains(t, "stderr", r.stderr, "nothing was applied", "two.yaml: The input is not valid. (422 INVALID)\n  line 3: format.length is too short: at least 22\n")
	for _, q := range s.asked(t) {
		if !strings.HasSuffix(q.target, "?dry_run=true") {
			t.Errorf("asked %s %s", q.method, q.target)
		}
	}
}

// A service that does not know dry runs has applied the document: that is said.
func TestDryRunThatWasNone(t *testing.T) {
	newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"keyspace":"parcelbird","version":2,"document":{}}`)
	})
	contains(t, "stderr", invoke(t, "keyspace: parcelbird", "keyspaces", "apply", "-f", "-", "--dry-run").want(t, exitFailed).stderr, "has applied the document")
}

// The document keeps the order of its fields.
func TestKeyspacesGet(t *testing.T) {
	newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"keyspace":"parcelbird","version":2,"document":{"keyspace":"parcelbird","format":{"prefixes":{"live":"pb_"},"length":40},"about":"123","tls":true}}`)
	})
	want := "keyspace: parcelbird\nformat:\n    prefixes:\n        live: pb_\n    length: 40\nabout: \"123\"\ntls: true\n"
	if r := invoke(t, "", "keyspaces", "get", "parcelbird").want(t, 0); r.stdout != want {
		t.Errorf("stdout %q, want %q", r.stdout, want)
	}
}

func TestOwners(t *testing.T) {
	const owner = `{"keyspace":"parcelbird","owner":"org_1","name":"One","plan":"basic","active_keys":1,"max_keys":2}`
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/owners") {
			answerJSON(w, 200, `{"owners":[`+owner+`,{"owner":"org_2","max_keys":null}],"next_cursor":null}`)
			return
		}
		answerJSON(w, 200, owner)
	})
	r := invoke(t, "", "owners", "set", "org_1", "--keyspace", "parcelbird", "--name", "One").want(t, 0)
	contains(t, "stdout", r.stdout, "owner\torg_1\n", "active keys\t1\n", "max keys\t2\n")
	if q := s.only(t); q.method+" "+q.target+" "+q.body != `PUT /v1/keyspaces/parcelbird/owners/org_1 {"name":"One"}` || q.header.Get("Idempotency-Key") == "" {
		t.Errorf("asked %v", q)
	}
	r = invoke(t, "", "owners", "list", "--keyspace", "parcelbird").want(t, 0)
	if r.stdout != "org_1\tOne\tbasic\t1\t2\norg_2\t-\t-\t0\tno cap\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	invoke(t, "", "owners", "get", "org_1", "--keyspace", "parcelbird").want(t, 0)
}

func TestUsage(t *testing.T) {
	newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"usage":[{"time":"2026-01-18T11:00:00.000Z","requests":3,"p50_ms":1.25,"cost_micros":null}]}`)
	})
	if r := invoke(t, "", "usage", "--keyspace", "parcelbird", "--bucket", "hour").want(t, 0); r.stdout != "time\trequests\tp50_ms\tcost_micros\n2026-01-18T11:00:00.000Z\t3\t1.2\t-\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	if r := invoke(t, "", "usage", "--bucket", "hour", "--csv").want(t, 0); r.stdout != "time,requests,p50_ms,cost_micros\n2026-01-18T11:00:00.000Z,3,1.25,\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	invoke(t, "", "usage", "--csv", "--json").want(t, exitUsage)
	invoke(t, "", "usage", "--follow").want(t, exitUsage)
}

// Plots are drawn where there is no terminal too when they are asked for, without
// colours, and a name of a key moves no cursor.
func TestUsagePlots(t *testing.T) {
	const now = "2026-01-18T10:00:00.000Z"
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/keys/"):
			answerJSON(w, 200, `{"name":"CI \u001b[2J","status":"active"}`)
		case r.URL.Query().Get("bucket") != "":
			answerJSON(w, 200, `{"usage":[{"time":"`+now+`","requests":30,"successes":20,"rate_limited":10,"p50_ms":1,"p95_ms":2,"p99_ms":3}]}`)
		case r.URL.Query().Get("by") == "key":
			answerJSON(w, 200, `{"usage":[{"key":"key_1","requests":30,"successes":20,"rate_limited":10}]}`)
		default:
			answerJSON(w, 200, `{"usage":[{"requests":30,"successes":20,"rate_limited":10}]}`)
		}
	})
	t.Setenv("COLUMNS", "70")
	r := invoke(t, "", "usage", "--keyspace", "parcelbird", "--since", "24h", "--by", "key", "--plot").want(t, 0)
	contains(t, "stdout", r.stdout, "parcelbird, ", "33.3 % limited", "Requests, per hour", "= limited 10", "Latency", "By key", `CI \x1b[2J key_1`)
	if strings.Contains(r.stdout, "\x1b") {
		t.Errorf("stdout %q", r.stdout)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) != 4 || !strings.Contains(s.seen[1].target, "bucket=hour") {
		t.Errorf("asked %v", s.seen)
	}
}

func TestDoctor(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Date(2026, 1, 18, 11, 58, 0, 0, time.UTC).Format(http.TimeFormat))
		switch r.URL.Path {
		case "/healthz":
			io.WriteString(w, "ok")
		case "/readyz":
			answerJSON(w, 503, `{"ready":false,"checks":{"keyring":{"ok":false,"detail":"the ledger is still being read"},"postgres":{"ok":true}}}`)
		default:
			answerJSON(w, 200, `{"streams":[{"stream":"LEDGER","head":9},{"stream":"USAGE","head":3,"doubt":"sequence 2 is missing"}],
				"projections":[{"name":"keys_v1","state":"stopped","position":3,"head":9,"error":"the type is not known"},{"name":"usage_v2"}],
				"verifiers":[{"node":"n1","sequence":9,"lag":0,"lost_ms":900},{"node":"n2","lost_ms":61000}]}`)
		}
	})
	t.Setenv("KEYLEDGER_NATS_URL", "nats://127.0.0.1:1")
	r := invoke(t, "", "doctor").want(t, exitFailed)
	contains(t, "stdout", r.stdout,
		"ok\troot key\tfrom KEYLEDGER_TOKEN\n", "ok\tapi\t"+s.URL, "warn\tclock\tthis machine is 2m0s off",
		"fail\tready\tkeyring: the ledger is still being read\t", "ok\tstatus\tthe root key is accepted\n",
		"fail\tstreams\tLEDGER 9, USAGE 3 in doubt: sequence 2 is missing\t", "ok\tverifier\tn1 has applied everything\n",
		"warn\tverifier\tn2 has had no news of the ledger for 61 s\t", "fail\tprojection\tkeys_v1 is stopped at 3 of 9: the type is not known\t", "fail\tnats\t")
}

// NATS is known by its greeting.
func TestDoctorGreetsNATS(t *testing.T) {
	for greeting, want := range map[string]string{"INFO {}\r\n": "ok", "SSH-2.0-": "fail"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if conn, err := l.Accept(); err == nil {
				io.WriteString(conn, greeting)
				conn.Close()
			}
		}()
		a := newApp(strings.NewReader(""), io.Discard, io.Discard)
		if got := a.checkNATS(t.Context(), "nats://"+l.Addr().String(), ""); got.Status != want {
			t.Errorf("%q: %+v, want %s", greeting, got, want)
		}
	}
}

func TestRootKeys(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			answerJSON(w, 200, `{"keys":[{"id":"key_0","name":"first","role":"manager","for":{"keyspace":"k","owner":"o"},"status":"active"}],"next_cursor":null}`)
			return
		}
		answerJSON(w, 201, `{"key":{"id":"key_0","role":"manager"},"secret":"klr_other"}`)
	})
	r := invoke(t, "", "root-key", "create", "--name", "m", "--role", "manager", "--keyspace", "k", "--owner", "o").want(t, 0)
	contains(t, "stdout", r.stdout, "role\tmanager\n", "secret\tklr_other\n")
	if q := s.only(t); q.target+" "+q.body != `/v1/root-keys {"keyspace":"k","name":"m","owner":"o","role":"manager"}` {
		t.Errorf("asked %s %s", q.target, q.body)
	}
	s.seen = nil
	if r := invoke(t, "", "root-key", "list").want(t, 0); r.stdout != "key_0\tfirst\tmanager\tactive\tk/o\t-\t-\t-\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	if q := s.only(t); q.target != "/v1/keys?keyspace=keyledger" {
		t.Errorf("asked %s", q.target)
	}
}

func TestRelative(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "now", 999 * time.Millisecond: "now", -time.Second: "1s ago", 59 * time.Second: "in 59s", -3 * time.Minute: "3m ago",
		47 * time.Hour: "in 47h", -48 * time.Hour: "2d ago", 400 * 24 * time.Hour: "in 400d",
		30*24*time.Hour - time.Millisecond: "in 30d",
	} {
		if got := relative(d); got != want {
			t.Errorf("relative(%v) = %q, want %q", d, got, want)
		}
	}
}
