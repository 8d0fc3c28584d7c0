package api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/internal/testenv/check"
)

// verify asks for a decision.
func (s *service) verify(credential string, more map[string]any) answer {
	s.t.Helper()
	m := map[string]any{"keyspace": "pb"}
	for k, v := range more {
		m[k] = v
	}
	b, err := json.Marshal(m)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.must("POST", "/v1/verify", credential, string(b))
}

// flush returns when all uses are in USAGE, and USAGE's last sequence.
func (s *service) flush() uint64 {
	s.t.Helper()
	if err := s.recorder.Flush(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	n, err := s.ledger.Head(s.t.Context(), events.Usage)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// A decision is answered whole: the key, what was not checked, and the answer
// that a gateway relays.
func TestVerify(t *testing.T) {
	s := start(t)
	s.configure("pb")
	id, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	ok := s.verify(s.root, map[string]any{"key": secret, "method": "GET", "path": "/v1/parcels/17", "ip": "203.0.113.7"})
	if ok.json["valid"] != true || ok.json["code"] != "VALID" || ok.key()["id"] != id || ok.key()["status"] != "active" {
		t.Errorf("valid: %s", ok.body)
	}
	for _, field := range []string{"valid", "code", "decision_id", "key", "limits", "retry_after", "sequence", "answer", "skipped"} {
		if _, has := ok.json[field]; !has {
			t.Errorf("a decision has no %s", field)
		}
	}
	if a := ok.json["answer"].(map[string]any); a["status"] != 200.0 {
		t.Errorf("answer: %v", a)
	}
	with := s.verify(s.root, map[string]any{"authorization": "Bearer " + secret})
	if with.json["valid"] != true {
		t.Errorf("by header: %s", with.body)
	}
	for what, c := range map[string]struct {
		ask  map[string]any
		code domain.Code
	}{
		"nothing":                {map[string]any{}, domain.CodeMissingCredential},
		"another scheme":         {map[string]any{"authorization": "Basic " + secret}, domain.CodeMalformedCredential},
		"two blanks":             {map[string]any{"authorization": "Bearer  " + secret}, domain.CodeMalformedCredential},
		"a character more":       {map[string]any{"key": secret + "x"}, domain.CodeMalformedKey},
		"a root key":             {map[string]any{"key": s.root}, domain.CodeMalformedKey},
		"a scope that it lacks":  {map[string]any{"key": secret, "scopes": []string{"keys:manage"}}, domain.CodeInsufficientScope},
		"a root key, at its own": {map[string]any{"keyspace": "keyledger", "key": s.root}, domain.CodeUnknownKey},
	} {
		a := s.verify(s.root, c.ask)
		if a.json["valid"] != false || a.json["code"] != string(c.code) {
			t.Errorf("%s: %s", what, a.body)
		}
		wire := a.json["answer"].(map[string]any)
		if wire["status"].(float64) < 400 || wire["body"] == nil || wire["headers"].(map[string]any)["Content-Type"] == nil {
			t.Errorf("%s is answered %v", what, wire)
		}
		if strings.Contains(string(a.body), secret) {
			t.Errorf("%s: the secret is in the answer", what)
		}
	}
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	s.verify(verifier, map[string]any{"key": secret})
	s.refused(s.do("GET", "/v1/keys/"+id, verifier, ""), 403, "FORBIDDEN")
	s.refused(s.do("POST", "/v1/verify", secret, `{"keyspace":"pb"}`), 403, "FORBIDDEN")
	s.refused(s.do("POST", "/v1/verify", s.root, `{"keyspace":"pb","key":"a","authorization":"b"}`), 422, "INVALID")
	s.refused(s.do("POST", "/v1/verify", s.root, `{}`), 422, "INVALID")
}

// Outcomes are taken by decision; what cannot be taken is listed.
func TestUses(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(nil)
	ok := s.verify(s.root, map[string]any{"key": secret, "report": true})
	denied := s.verify(s.root, map[string]any{"key": secret, "scopes": []string{"parcels:read"}})
	body := fmt.Sprintf(`[{"decision_id":%q,"status":200,"latency_ms":12.4},{"decision_id":%q,"status":200,"latency_ms":1},{"decision_id":"dec_nonsense","status":200,"latency_ms":1}]`,
		ok.json["decision_id"], denied.json["decision_id"])
	a := s.must("POST", "/v1/uses", s.root, body)
	if a.json["accepted"] != 1.0 || len(a.json["errors"].([]any)) != 2 {
		t.Errorf("taken: %s", a.body)
	}
	again := s.must("POST", "/v1/uses", s.root, fmt.Sprintf(`[{"decision_id":%q,"status":200,"latency_ms":12}]`, ok.json["decision_id"]))
	if again.json["accepted"] != 1.0 {
		t.Errorf("again: %s", again.body)
	}
	s.flush()
	reported := s.must("GET", "/v1/audit/events?type=key.use_reported", s.root, "")
	if n := len(reported.json["events"].([]any)); n != 1 {
		t.Errorf("%d outcomes are recorded: %s", n, reported.body)
	}
	s.refused(s.do("POST", "/v1/uses", s.root, `[{"decision_id":"x","status":9,"latency_ms":-1}]`), 422, "INVALID")
}

func hashOf(secret string) string {
	h := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(h[:])
}

// The good lines of an import stand, the others come back with their problem,
// and the same call again changes nothing.
func TestImport(t *testing.T) {
	s := start(t)
	s.configure("pb")
	line := func(owner, secret string) string {
		return fmt.Sprintf(`{"keyspace":"pb","owner":%q,"name":"old","sha256":%q,"first":%q}`, owner, hashOf(secret), secret[:4])
	}
	body := strings.Join([]string{line("org_1", "old_1"), line("org_9", "old_2"), "", line("org_1", "old_1"), `{"keyspace":"pb"`, `{"keyspace":"pb","owner":"org_1","name":"x","sha256":"zz","colour":1}`, line("org_2", "old_3")}, "\n")
	a := s.must("POST", "/v1/keys/import", s.root, body, "Content-Type", "application/x-ndjson", "Idempotency-Key", "move")
	if a.json["created"] != 2.0 || a.json["failed"] != 4.0 {
		t.Fatalf("imported: %s", a.body)
	}
	codes := map[float64]string{}
	for _, r := range a.json["results"].([]any) {
		m := r.(map[string]any)
		if p, ok := m["problem"].(map[string]any); ok {
			codes[m["line"].(float64)] = p["code"].(string)
		}
	}
	if codes[2] != "OWNER_NOT_FOUND" || codes[5] != "UNREADABLE" || codes[6] != "INVALID" || codes[1]+codes[4] != "KEY_EXISTS" {
		t.Errorf("problems: %v", codes)
	}
	if d := s.verify(s.root, map[string]any{"key": "old_3"}); d.json["valid"] != true {
		t.Errorf("an imported key: %s", d.body)
	}
	head := s.head()
	s.must("POST", "/v1/keys/import", s.root, body, "Content-Type", "application/x-ndjson", "Idempotency-Key", "move")
	s.refused(s.do("POST", "/v1/keys/import", s.root, strings.Repeat("{}\n", 10_001), "Content-Type", "application/x-ndjson"), 413, "TOO_MANY_LINES")
	s.refused(s.do("POST", "/v1/keys/import", s.root, body), 415, "UNSUPPORTED_MEDIA_TYPE")
	if s.head() != head {
		t.Error("something was recorded")
	}
}

// What was done is read back from the streams, by whoever may, with personal
// data only for those who may open it.
func TestAudit(t *testing.T) {
	s := start(t)
	s.configure("pb")
	id, secret := s.create(map[string]any{"name": "=cmd()"})
	other, _ := s.create(map[string]any{"owner": "org_2"})
	s.verify(s.root, map[string]any{"key": secret, "ip": "203.0.113.7", "method": "GET", "path": "/v1/x"})
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"leaked"}`)
	s.flush()
	types := func(a answer) (list []string) {
		for _, e := range a.json["events"].([]any) {
			m := e.(map[string]any)
			if m["stream"] == nil || m["sequence"] == nil || m["line"] == nil {
				t.Errorf("an event without its place: %v", m)
			}
			list = append(list, m["type"].(string))
		}
		return list
	}
	a := s.must("GET", "/v1/audit/events?key="+id, s.root, "")
	// Within one millisecond streams have no order between them.
	if got := fmt.Sprint(slices.Sorted(slices.Values(types(a)))); got != "[key.created key.revoked key.used]" || a.json["next_cursor"] != nil {
		t.Errorf("events of the key: %s", a.body)
	}
	if !strings.Contains(string(a.body), `"source_ip":"203.0.113.7"`) {
		t.Errorf("an operator does not see the source: %s", a.body)
	}
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	mine := s.must("GET", "/v1/audit/events", manager, "")
	if strings.Contains(string(mine.body), "203.0.113.7") || strings.Contains(string(mine.body), "org_2") || strings.Contains(string(mine.body), "sha256") {
		t.Errorf("a manager sees %s", mine.body)
	}
	s.refused(s.do("GET", "/v1/audit/events?key="+other, manager, ""), 404, "KEY_NOT_FOUND")
	s.refused(s.do("GET", "/v1/audit/events?owner=org_2", manager, ""), 404, "OWNER_NOT_FOUND")

	first := s.must("GET", "/v1/audit/events?limit=2&keyspace=pb", s.root, "")
	second := s.must("GET", "/v1/audit/events?limit=2&keyspace=pb&after="+first.json["next_cursor"].(string), s.root, "")
	if first.json["events"].([]any)[1].(map[string]any)["id"] == second.json["events"].([]any)[0].(map[string]any)["id"] {
		t.Error("pages overlap")
	}
	if reads := types(s.must("GET", "/v1/audit/events?type=audit.read", s.root, "")); len(reads) != 4 {
		t.Errorf("that the log was read is recorded %d times", len(reads))
	}
	for _, bad := range []string{"after=xyz", "limit=0", "from=yesterday", "type=key.eaten", "colour=red", "key=a&key=b", "as_of=1"} {
		a := s.do("GET", "/v1/audit/events?"+bad, s.root, "")
		if a.status != 422 && a.status != 404 {
			t.Errorf("%s is answered %d", bad, a.status)
		}
		s.refused(a, a.status, "")
	}

	lines := s.must("GET", "/v1/audit/events?keyspace=pb", s.root, "", "Accept", "application/x-ndjson")
	n := 0
	for line := range bytes.Lines(lines.body) {
		var e map[string]any
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		n++
	}
	table, err := csv.NewReader(bytes.NewReader(s.must("GET", "/v1/audit/events?keyspace=pb", s.root, "", "Accept", "text/csv").body)).ReadAll()
	if err != nil || n < 6 || len(table) < n {
		t.Errorf("%d lines, %d rows, %v", n, len(table), err)
	}
	for _, row := range table[1:] {
		for _, cell := range row {
			if strings.HasPrefix(cell, "=") {
				t.Errorf("a cell begins a formula: %s", cell)
			}
		}
	}
}

// The log as CloudEvents is a batch to their SDK: each event once, with its attributes, its
// place and, as its data, what the other exports say of it. One that was cut off is not, and
// a line of it is an event. That it was read is recorded before and after it.
func TestAuditAsCloudEvents(t *testing.T) {
	sdk := testenv.CloudEvents(t)
	s := start(t)
	s.configure("pb")
	id, secret := s.create(nil)
	s.verify(s.root, map[string]any{"key": secret, "ip": "203.0.113.7", "method": "GET", "path": "/v1/x"})
	s.verify(s.root, map[string]any{"key": "pb_live_unknown", "ip": "203.0.113.7"})
	s.flush()
	const kind = "application/cloudevents-batch+json"
	read := func(mode string, in []byte) (string, error) {
		cmd := exec.CommandContext(t.Context(), sdk, mode)
		var told bytes.Buffer
		cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &told
		out, err := cmd.Output()
		return string(out) + told.String(), err
	}
	for _, q := range []string{"?to=" + url.QueryEscape(time.Now().UTC().Add(time.Minute).Format(time.RFC3339)) + "&except=audit.read", "?key=" + id + "&type=key.used", "?keyspace=pb&type=key.deleted"} {
		a := s.must("GET", "/v1/audit/events"+q, s.root, "", "Accept", kind)
		if got := a.header.Get("Content-Type"); got != kind {
			t.Errorf("%s is %s", q, got)
		}
		if wrong := api.Conforms("GET", "/v1/audit/events", 200, a.header, a.body); len(wrong) > 0 {
			t.Errorf("%s: %v", q, wrong)
		}
		var want []map[string]any
		for line := range bytes.Lines(s.must("GET", "/v1/audit/events"+q, s.root, "", "Accept", "application/x-ndjson").body) {
			var e map[string]any
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatal(err)
			}
			want = append(want, e)
		}
		out, err := read("batch", a.body)
		if err != nil {
			t.Fatalf("%s: %v: %s", q, err, out)
		}
		n := 0
		for line := range strings.Lines(out) {
			var e map[string]any
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			w := want[n]
			n++
			subject := strings.Trim(w["owner"].(string)+"/"+w["key"].(string), "/")
			if subject == "" {
				subject = w["keyspace"].(string)
			}
			if got, _ := e["subject"].(string); e["specversion"] != "1.0" || e["id"] != w["id"] || e["type"] != w["type"] || e["time"] == "" || got != subject ||
				e["source"] != "/keyledger/"+w["keyspace"].(string) || e["stream"] != w["stream"] || e["sequence"] != fmt.Sprint(w["sequence"]) ||
				fmt.Sprint(e["line"]) != fmt.Sprint(w["line"]) || !reflect.DeepEqual(e["data"], any(w)) {
				t.Errorf("%v is to the SDK %s", w, line)
			}
		}
		if n != len(want) || strings.Contains(q, "deleted") != (n == 0) {
			t.Errorf("%s: %d events of %d", q, n, len(want))
		}
		lines := bytes.Split(bytes.TrimSuffix(a.body, []byte("\n")), []byte("\n"))
		if len(lines) != n+2 || string(lines[0]) != "[" || string(lines[len(lines)-1]) != "]" {
			t.Errorf("%s: %d lines for %d events", q, len(lines), n)
		}
		if out, err := read("batch", a.body[:len(a.body)-2]); err == nil {
			t.Errorf("%s: without its end it is whole: %s", q, out)
		}
		if n > 0 {
			if out, err := read("lines", bytes.TrimSuffix(lines[n], []byte(","))); err != nil {
				t.Errorf("its line is no event: %v: %s", err, out)
			}
		}
	}
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	if a := s.must("GET", "/v1/audit/events", manager, "", "Accept", kind); bytes.Contains(a.body, []byte("203.0.113.7")) || !bytes.Contains(a.body, []byte(`"key.used"`)) {
		t.Errorf("a manager gets %s", a.body)
	}
	whole := 0
	for _, e := range s.must("GET", "/v1/audit/events?type=audit.read&limit=100", s.root, "").json["events"].([]any) {
		if filter := e.(map[string]any)["data"].(map[string]any)["filter"].(map[string]any); filter["outcome"] == "whole" {
			whole++
		}
	}
	if whole != 7 {
		t.Errorf("that exports ended is recorded %d times", whole)
	}
}

// Uses are found by address and by endpoint, through the index and without it, by
// whoever may see addresses. That somebody looked is recorded, not for which address
// or for what else they typed.
func TestAuditByAddressAndEndpoint(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(nil)
	for _, ip := range []string{"203.0.113.7", "203.0.113.8", "2001:db8::1"} {
		s.verify(s.root, map[string]any{"key": secret, "ip": ip, "method": "GET", "path": "/v1/x?y"})
	}
	s.verify(s.root, map[string]any{"key": "pb_live_unknown", "ip": "2001:db8::2"})
	s.verify(s.root, map[string]any{"key": secret, "ip": "203.0.113.7", "method": "GET", "path": "/v1/z"})
	s.flush()
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	for _, indexed := range []bool{false, true} {
		if indexed {
			s.withPostgres()
			head, err := s.ledger.Head(t.Context(), events.Usage)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"uses_v1", "addresses_v1"} {
				if err := s.deps.Runner.Wait(t.Context(), name, head); err != nil {
					t.Fatal(err)
				}
			}
		}
		for query, want := range map[string]int{
			"ip=203.0.113.7": 2, "ip=203.0.113.7&endpoint=/v1/z": 1, "ip=::ffff:203.0.113.8": 1, "ip=198.51.100.1": 0,
			"ip=2001:db8::1": 2, // and the refusal of its network
			"ip=2001:db8::3": 1, "endpoint=/v1/x": 3, "endpoint=/v1/x&keyspace=pb&owner=org_1": 3, "endpoint=/v1/y": 0,
		} {
			if a := s.must("GET", "/v1/audit/events?"+query, s.root, ""); len(a.json["events"].([]any)) != want {
				t.Errorf("%s (index: %v) answers %s, not %d events", query, indexed, a.body, want)
			}
		}
		s.refused(s.do("GET", "/v1/audit/events?ip=203.0.113.7", manager, ""), 403, "FORBIDDEN")
		s.refused(s.do("GET", "/v1/audit/tail?ip=203.0.113.7", manager, ""), 403, "FORBIDDEN")
		s.refused(s.do("GET", "/v1/audit/events?ip=localhost", s.root, ""), 422, "INVALID")
		s.must("GET", "/v1/audit/events?endpoint=/v1/x", manager, "")
	}
	s.must("GET", "/v1/audit/events?owner="+secret, s.root, "")
	s.must("GET", "/v1/audit/events?endpoint="+secret, s.root, "")
	reads := string(s.must("GET", "/v1/audit/events?type=audit.read", s.root, "").body)
	if !strings.Contains(reads, `"ip":"…"`) || !strings.Contains(reads, `"endpoint":"/v1/x"`) || !strings.Contains(reads, `"owner":"…"`) {
		t.Errorf("what was asked is recorded as %s", reads)
	}
	for _, hidden := range []string{"203.0.113.7", "2001:db8", secret} {
		if strings.Contains(reads, hidden) {
			t.Errorf("%s is recorded", hidden)
		}
	}
}

// A tail goes on behind the last event that was seen.
func TestTail(t *testing.T) {
	s := start(t)
	s.configure("pb")
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	follow := func(last string) (<-chan [2]string, context.CancelFunc) {
		t.Helper()
		ctx, stop := context.WithCancel(ctx)
		req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/v1/audit/tail?type=key.created", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.root)
		if last != "" {
			req.Header.Set("Last-Event-ID", last)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatal(resp, err)
		}
		events := make(chan [2]string)
		go func() {
			defer resp.Body.Close()
			defer close(events)
			var id string
			for in := bufio.NewScanner(resp.Body); in.Scan(); {
				if v, ok := strings.CutPrefix(in.Text(), "id: "); ok {
					id = v
				} else if v, ok := strings.CutPrefix(in.Text(), "data: "); ok {
					select {
					case events <- [2]string{id, v}:
					case <-ctx.Done():
						return
					}
				}
			}
		}()
		return events, stop
	}
	tail, end := follow("")
	first, _ := s.create(nil)
	e := <-tail
	if !strings.Contains(e[1], first) {
		t.Fatalf("the tail begins with %v", e)
	}
	end()
	second, _ := s.create(nil)
	tail, end = follow(e[0])
	defer end()
	if e := <-tail; !strings.Contains(e[1], second) {
		t.Errorf("the tail goes on with %v", e)
	}
	s.refused(s.do("GET", "/v1/audit/tail", s.root, "", "Last-Event-ID", "forged"), 422, "INVALID")
}

// Lists and figures come from the read models, and see own writes when they are
// asked to.
func TestReadModels(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	for range 3 {
		s.create(nil)
	}
	for made := time.Now().UnixMilli(); time.Now().UnixMilli() == made; { // of one millisecond either may be the newer
	}
	other, secret := s.create(map[string]any{"owner": "org_2", "scopes": []string{"parcels:read"}})
	after := strconv.FormatUint(s.head(), 10)
	page := s.must("GET", "/v1/keys?keyspace=pb&owner=org_1&limit=2", s.root, "", "Min-Sequence", after)
	keys := page.json["keys"].([]any)
	if len(keys) != 2 || page.json["next_cursor"] == nil {
		t.Fatalf("first page: %s", page.body)
	}
	rest := s.must("GET", "/v1/keys?keyspace=pb&owner=org_1&limit=2&cursor="+page.json["next_cursor"].(string), s.root, "")
	if len(rest.json["keys"].([]any)) != 1 || rest.json["next_cursor"] != nil {
		t.Errorf("second page: %s", rest.body)
	}
	if a := s.must("GET", "/v1/keys?scope=parcels:read", s.root, ""); len(a.json["keys"].([]any)) != 1 {
		t.Errorf("by scope: %s", a.body)
	}
	if a := s.must("GET", "/v1/keys?keyspace=keyledger", s.root, ""); len(a.json["keys"].([]any)) != 1 {
		t.Errorf("root keys: %s", a.body)
	}
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	if a := s.must("GET", "/v1/keys", manager, ""); len(a.json["keys"].([]any)) != 3 || strings.Contains(string(a.body), other) {
		t.Errorf("a manager's list: %s", a.body)
	}
	s.refused(s.do("GET", "/v1/keys?owner=org_2", manager, ""), 404, "OWNER_NOT_FOUND")
	s.refused(s.do("GET", "/v1/keys?keyspace=keyledger", manager, ""), 404, "KEYSPACE_NOT_FOUND")
	for _, bad := range []string{"cursor=AAAA", "limit=0", "limit=x", "status=eaten", "as_of=then", "unused_since=yesterday", "sort=colour", "sort=--name", "sort=name,created_at",
		"sort=name&cursor=" + page.json["next_cursor"].(string), "keyspace=pb&owner=org_1&sort=name&cursor=" + page.json["next_cursor"].(string)} {
		s.refused(s.do("GET", "/v1/keys?"+bad, s.root, ""), 422, "INVALID")
	}
	s.refused(s.do("GET", "/v1/keys", s.root, "", "Min-Sequence", "soon"), 400, "")

	s.verify(s.root, map[string]any{"key": secret, "method": "GET", "path": "/v1/parcels/1"})
	used := strconv.FormatUint(s.flush(), 10)
	u := s.must("GET", "/v1/analytics/usage?keyspace=pb&by=key,code&bucket=hour", s.root, "", "Min-Sequence", used)
	for sort, want := range map[string]int{"-use_count": 0, "use_count": 3, "-last_used_at": 0, "last_used_at": 0, "-created_at": 0, "created_at": 3, "": 0} {
		a := s.must("GET", "/v1/keys?keyspace=pb&sort="+sort, s.root, "")
		if all := a.json["keys"].([]any); len(all) != 4 || all[want].(map[string]any)["id"] != other {
			t.Errorf("sorted by %q, %s is not at %d: %s", sort, other, want, a.body)
		}
	}
	one := s.must("GET", "/v1/keys?keyspace=pb&sort=use_count&limit=1", s.root, "")
	if two := s.must("GET", "/v1/keys?keyspace=pb&sort=use_count&cursor="+one.json["next_cursor"].(string), s.root, ""); len(two.json["keys"].([]any)) != 3 || two.json["next_cursor"] != nil {
		t.Errorf("the second page by use: %s", two.body)
	}
	if a := s.must("GET", "/v1/keys?keyspace=keyledger&sort=name", s.root, ""); len(a.json["keys"].([]any)) != 2 {
		t.Errorf("root keys by name: %s", a.body)
	}
	if a := s.must("GET", "/v1/keys?sort=-name", manager, ""); len(a.json["keys"].([]any)) != 3 || strings.Contains(string(a.body), other) {
		t.Errorf("a manager's list by name: %s", a.body)
	}
	rows := u.json["usage"].([]any)
	if len(rows) != 1 || rows[0].(map[string]any)["requests"] != 1.0 || rows[0].(map[string]any)["key"] != other {
		t.Errorf("usage: %s", u.body)
	}
	if kept := u.json["kept"].(map[string]any); len(kept) != 3 || kept["minute"] != nil {
		t.Errorf("what is kept: %s", u.body)
	}
	first := keys[0].(map[string]any)["id"].(string)
	for list, want := range map[string]int{other: 1, first: 0, first + "," + other: 1} {
		if a := s.must("GET", "/v1/analytics/usage?by=key&bucket=hour&keys="+list, s.root, "").json["usage"].([]any); len(a) != want {
			t.Errorf("usage of %s: %v", list, a)
		}
	}
	s.refused(s.do("GET", "/v1/analytics/usage?by=key&keys="+first+","+other, manager, ""), 404, "KEY_NOT_FOUND")
	s.refused(s.do("GET", "/v1/analytics/usage?by=ip&keys="+other, s.root, ""), 422, "INVALID")
	table, err := csv.NewReader(bytes.NewReader(s.must("GET", "/v1/analytics/usage?keyspace=pb&by=endpoint,status,owner&bucket=day", s.root, "", "Accept", "text/csv").body)).ReadAll()
	if err != nil || len(table) != 2 || strings.Join(table[0], ",") != "time,owner,method,endpoint,status,requests,successes,errors,unknown,denied,rate_limited,average_ms,p50_ms,p95_ms,p99_ms,cost_micros" ||
		strings.Join(table[1][1:7], ",") != "org_2,GET,/v1/parcels/1,0,1,0" {
		t.Errorf("as CSV: %v, %v", table, err)
	}
	for _, bad := range []string{"bucket=week", "by=colour", "by=key,,code", "from=yesterday", "to=2026-13-01T00:00:00Z", "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "by=ip,colour", "by=ip&bucket=year"} {
		s.refused(s.do("GET", "/v1/analytics/usage?"+bad, s.root, ""), 422, "INVALID")
	}
	if k := s.must("GET", "/v1/keys/"+other, s.root, ""); k.json["use_count"] != 1.0 || k.json["last_used_at"] == nil {
		t.Errorf("the key does not show its use: %s", k.body)
	}
	st := s.must("GET", "/v1/status", s.root, "")
	if len(st.json["streams"].([]any)) == 0 || len(st.json["projections"].([]any)) == 0 || len(st.json["verifiers"].([]any)) != 1 {
		t.Errorf("status: %s", st.body)
	}
	p := s.must("GET", "/v1/projections", s.root, "")
	name := p.json["projections"].([]any)[0].(map[string]any)["name"].(string)
	for _, path := range []string{"/rebuild", "/compare", "/rebuild?compare_only=true"} {
		built := s.must("POST", "/v1/projections/"+name+path, s.root, "")
		lines := bytes.Split(bytes.TrimSpace(built.body), []byte("\n"))
		var last struct {
			Result struct {
				Equal    bool
				Switched bool
			}
		}
		if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil || !last.Result.Equal || last.Result.Switched != (path == "/rebuild") {
			t.Errorf("%s: %s", path, built.body)
		}
	}
	s.refused(s.do("POST", "/v1/projections/none/rebuild", s.root, ""), 404, "PROJECTION_NOT_FOUND")
	check.Ledger(t, check.Subject{Conn: s.conn, Pool: s.pool, Master: &seal.Master{1}, Secrets: *s.secrets, Log: s.log.String()})
}

// Without PostgreSQL lists say when to ask again, and everything else goes on.
func TestWithoutPostgres(t *testing.T) {
	s := start(t)
	s.configure("pb")
	id, secret := s.create(nil)
	for _, path := range []string{"/v1/keys", "/v1/analytics/usage", "/v1/projections"} {
		a := s.do("GET", path, s.root, "")
		s.refused(a, 503, "READ_MODELS_UNAVAILABLE")
		if a.header.Get("Retry-After") == "" {
			t.Errorf("%s does not say when to ask again", path)
		}
	}
	s.must("GET", "/v1/keys/"+id, s.root, "")
	s.must("GET", "/v1/status", s.root, "")
	if a := s.verify(s.root, map[string]any{"key": secret}); a.json["valid"] != true {
		t.Errorf("verify: %s", a.body)
	}
}
