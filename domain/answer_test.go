package domain

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyledger/keyledger/events"
)

var full = AnswerContext{
	RequestID: "req_1", Time: events.At(noon), RetryAfter: 45,
	Limits: events.Limits{"minute": 20, "day": 1000}, Remaining: events.Limits{"minute": 0, "day": 12},
	Plan: "free", ScopesRequired: []string{"parcels:read", "parcels:write"}, KeyID: "key_1", Owner: "acme", Resource: "d1",
}

func answering(t testing.TB, entry string) *Keyspace {
	t.Helper()
	return Compile(mustParse(t, example[:strings.Index(example, "answers:")]+"answers:\n"+entry), 1)
}

// A placeholder alone keeps its type; inside a string it is text. What is not
// known is null alone and nothing inside.
func TestPlaceholders(t *testing.T) {
	for _, test := range []struct{ in, full, empty string }{
		{`"${code}"`, `"REVOKED"`, `"REVOKED"`},
		{`"${message}"`, `"No: \"REVOKED\" of acme"`, `"No: \"REVOKED\" of "`},
		{`"${documentation_url}"`, `"https://docs.example.com/free"`, `"https://docs.example.com/"`},
		{`"${request_id}"`, `"req_1"`, `null`},
		{`"${timestamp}"`, `"2026-03-01T12:00:00.000Z"`, `null`},
		{`"${retry_after}"`, `45`, `null`},
		{`"in ${retry_after} s"`, `"in 45 s"`, `"in  s"`},
		{`"${limit.minute}"`, `20`, `null`},
		{`"${limit.hour}"`, `null`, `null`},
		{`"${remaining.minute}"`, `0`, `null`},
		{`"${remaining.minute}/${limit.minute}"`, `"0/20"`, `"/"`},
		{`"${plan}"`, `"free"`, `null`},
		{`"${plan.details.upgrade_url}"`, `"https://…"`, `null`},
		{`"see ${plan.details.upgrade_url}"`, `"see https://…"`, `"see "`},
		{`"${plan.details.nothing}"`, `null`, `null`},
		{`"${scopes_required}"`, `["parcels:read","parcels:write"]`, `null`},
		{`"needs ${scopes_required}"`, `"needs parcels:read, parcels:write"`, `"needs "`},
		{`"${key_id} ${owner} ${resource}"`, `"key_1 acme d1"`, `"  "`},
		{`[1.50, {"b": "${code}", "a": true, "c": null}]`, `[1.50,{"b":"REVOKED","a":true,"c":null}]`, `[1.50,{"b":"REVOKED","a":true,"c":null}]`},
		{`"$ {code} $code }"`, `"$ {code} $code }"`, `"$ {code} $code }"`},
	} {
		k := answering(t, `  REVOKED: {message: 'No: "${code}" of ${owner}', documentation_url: "https://docs.example.com/${plan}", body: `+test.in+"}\n")
		if got := string(k.Answer(CodeRevoked, full).Body); got != test.full {
			t.Errorf("%s becomes %s, want %s", test.in, got, test.full)
		}
		if got := string(k.Answer(CodeRevoked, AnswerContext{}).Body); got != test.empty {
			t.Errorf("%s of nothing becomes %s, want %s", test.in, got, test.empty)
		}
	}
}

// Without an entry and without a default, section 3 says the status, and the
// body is a problem document.
func TestAnswersWithoutEntries(t *testing.T) {
	k := Compile(mustParse(t, small), 1)
	statuses := map[Code]int{
		CodeInsecureTransport: 403, CodeWrongContentType: 415, CodeMissingCredential: 401, CodeMalformedCredential: 401,
		CodeMalformedKey: 401, CodeUnknownKey: 401, CodeRevoked: 401, CodeSuperseded: 401, CodeExpired: 401, CodeWrongEnvironment: 403,
		CodePlanDenied: 403, CodeWrongOwner: 403, CodeWrongResource: 403, CodeInsufficientScope: 403, CodeOriginDenied: 403,
		CodeIPDenied: 403, CodeRateLimited: 429, CodeStateTooStale: 503, CodeAuditUnavailable: 503,
	}
	for _, code := range Codes() {
		if code == CodeValid {
			continue
		}
		a := k.Answer(code, full)
		var body struct {
			Type, Title, Detail, Code string
			Status                    int
			RequestID                 string `json:"request_id"`
		}
		if err := json.Unmarshal(a.Body, &body); err != nil {
			t.Fatal(err)
		}
		if a.Status != statuses[code] || body.Status != a.Status || body.Code != string(code) || body.RequestID != "req_1" || body.Type != "about:blank" || body.Title == "" || body.Detail != code.Message() {
			t.Errorf("%s: %d %s", code, a.Status, a.Body)
		}
		if a.Headers[0] != (Header{"Content-Type", "application/problem+json"}) {
			t.Errorf("%s: headers %v", code, a.Headers)
		}
		if challenged := has(a, "WWW-Authenticate", `Bearer realm="small"`); challenged != (a.Status == 401) {
			t.Errorf("%s: headers %v", code, a.Headers)
		}
		if has(a, "Retry-After", "45") != (code == CodeRateLimited) {
			t.Errorf("%s: headers %v", code, a.Headers)
		}
	}
}

func has(a Rendered, name, value string) bool {
	for _, h := range a.Headers {
		if h.Name == name && h.Value == value {
			return true
		}
	}
	return false
}

// A default speaks about keys: limits and our own trouble keep their status
// and their sentence, so that nobody throws a good key away.
func TestDefaultAnswer(t *testing.T) {
	k := answering(t, `  default: {status: 401, message: Invalid key, documentation_url: "https://docs.example.com", headers: {X-Reason: "${code}"}, body: {problem: "${message}", see: "${documentation_url}"}}`)
	for code, want := range map[Code]Rendered{
		CodeInsufficientScope: {401, []Header{{"Content-Type", "application/json"}, {"X-Reason", "INSUFFICIENT_SCOPE"}, {"WWW-Authenticate", `Bearer realm="parcelbird"`}}, []byte(`{"problem":"Invalid key","see":"https://docs.example.com"}`)},
		CodeRateLimited:       {429, []Header{{"Content-Type", "application/json"}, {"X-Reason", "RATE_LIMITED"}, {"Retry-After", "45"}}, []byte(`{"problem":"Too many requests.","see":null}`)},
		CodeAuditUnavailable:  {503, []Header{{"Content-Type", "application/json"}, {"X-Reason", "AUDIT_UNAVAILABLE"}}, []byte(`{"problem":"This request could not be recorded, so it was not admitted.","see":null}`)},
	} {
		if diff := cmp.Diff(want, k.Answer(code, full)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", code, diff)
		}
	}
}

// An entry without a body is a problem document with the entry's words.
func TestEntryWithoutBody(t *testing.T) {
	k := answering(t, `  EXPIRED: {status: 403, message: "Plan ${plan} is over", documentation_url: "https://docs.example.com/expired", headers: {Content-Type: application/vnd.acme+json, WWW-Authenticate: none}}`)
	a := k.Answer(CodeExpired, full)
	if got, want := string(a.Body), `{"type":"https://docs.example.com/expired","title":"Forbidden","status":403,"detail":"Plan free is over","code":"EXPIRED","request_id":"req_1"}`; got != want {
		t.Errorf("body %s, want %s", got, want)
	}
	if diff := cmp.Diff([]Header{{"Content-Type", "application/vnd.acme+json"}, {"WWW-Authenticate", "none"}}, a.Headers); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

// What a placeholder stands for never leaves its string or its line.
func TestAnswersAreEscaped(t *testing.T) {
	k := answering(t, `  REVOKED: {message: "${owner}", headers: {X-Owner: "for ${owner}"}, body: {a: "${owner}", b: "<${owner}>", c: "${message}", d: "${plan.details.odd}", e: "is ${plan.details.odd}"}}`)
	k.Plans["odd"] = Plan{Details: map[string]json.RawMessage{"odd": json.RawMessage(`{"x":["\"",1]}`)}}
	nasty := "\"}\r\nX-Evil: 1\x00\u2028</script>${code}\xff"
	a := k.Answer(CodeRevoked, AnswerContext{Owner: nasty, Plan: "odd"})
	var body map[string]any
	if err := json.Unmarshal(a.Body, &body); err != nil {
		t.Fatalf("%v: %s", err, a.Body)
	}
	want := strings.ToValidUTF8(nasty, "\ufffd")
	if diff := cmp.Diff(map[string]any{"a": want, "b": "<" + want + ">", "c": want, "d": map[string]any{"x": []any{"\"", 1.0}}, "e": `is {"x":["\"",1]}`}, body); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, h := range a.Headers {
		if strings.ContainsAny(h.Value, "\r\n\x00") {
			t.Errorf("header %s breaks its line: %q", h.Name, h.Value)
		}
	}
}
