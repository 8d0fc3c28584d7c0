package domain

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyledger/keyledger/events"
)

var onePlaceholder = regexp.MustCompile(`\$\{([^}]*)\}`)

// filled replaces the placeholders in a template that was read as JSON: what an
// answer means, without any of the work done beforehand.
func filled(template any, values map[string]any) any {
	switch v := template.(type) {
	case map[string]any:
		for name := range v {
			v[name] = filled(v[name], values)
		}
	case []any:
		for i := range v {
			v[i] = filled(v[i], values)
		}
	case string:
		if m := onePlaceholder.FindStringSubmatch(v); m != nil && m[0] == v {
			if list, ok := values[m[1]].([]string); ok {
				return []any{list[0], list[1]}
			}
			return values[m[1]]
		}
		return inText(v, values)
	}
	return template
}

func inText(s string, values map[string]any) string {
	return onePlaceholder.ReplaceAllStringFunc(s, func(p string) string {
		switch v := values[p[2:len(p)-1]].(type) {
		case nil:
			return ""
		case string:
			return v
		case json.Number:
			return v.String()
		case []string:
			return strings.Join(v, ", ")
		default:
			b, err := json.Marshal(v)
			if err != nil {
				panic(err) // it was read from JSON
			}
			return string(b)
		}
	})
}

// toldOf is a text as an answer has it: null where it is empty, and text whatever
// bytes it was.
func toldOf(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// An answer is what its template says with the values put in, as JSON of the same
// types; what stands in a value is never taken for a placeholder; no header leaves
// its line.
func FuzzAnswer(f *testing.F) {
	f.Add("a ${owner} ${scopes_required} b", `{"a":"${owner}","b":["${scopes_required}",1,null],"c":"<${retry_after}>"}`, "\"\\\x00", "\r\n", int64(-1))
	f.Add("${plan} ${plan.details.list}", `"${plan.details.list}"`, "acme", "p", int64(3))
	f.Add("${limit.day}/${remaining.day}", `{"x":"${limit.day}","y":"${remaining.day}","z":"${limit.hour}","${code}":1}`, "acme", "none", int64(0))
	f.Add("é${code}", `{"\u0024{code}":"\u0024{code}","n":1e400,"big":9223372036854775808,"d":0.1}`, "\u2028", "p", int64(1)<<62)
	for i, s := range badTexts {
		q := string(quote(s))
		f.Add(s, q, s, s, int64(i))
		f.Add("x"+s+"${owner}", `{"a":`+q+`,"b":[`+q+`]}`, s, "p", int64(i))
		f.Add("${resource}", `["${owner}","<${message}>","${plan.details.text}","${plan.details.`+"none"+`}"]`, s, s, -int64(i))
	}
	for _, p := range placeholders {
		f.Add("${"+p+"}", `{"alone":"${`+p+`}","inside":"<${`+p+`}>","twice":"${`+p+`}${`+p+`}"}`, "acme", "p", int64(7))
	}
	f.Fuzz(func(t *testing.T, text, body, owner, other string, n int64) {
		if !json.Valid([]byte(body)) || len(body) > 1<<16 {
			return
		}
		source := small + "plans: {p: {details: {text: " + string(quote(owner)) + ", list: [1, {a: x}], none: false}}}\ndefault_plan: p\n" +
			"answers: {REVOKED: {status: 418, message: " + string(quote(text)) + ", documentation_url: " + string(quote("https://a.example/"+other)) +
			", headers: {X-A: " + string(quote(text)) + ", X-B: \"${owner}\"}, body: " + body + "}}"
		d, err := ParseDocument([]byte(source))
		if err != nil {
			return // also where JSON stands in YAML and means something else there
		}
		k := Compile(d, 1)
		ctx := AnswerContext{
			Owner: owner, RequestID: other, Resource: other, KeyID: "key_1", RetryAfter: n, Plan: "p", Time: 1771245001500,
			Limits: events.Limits{"day": n}, Remaining: events.Limits{"day": -n}, ScopesRequired: []string{owner, other},
		}
		valid := func(s string) string { return string([]rune(s)) }
		read := func(b []byte) (v any) {
			d := json.NewDecoder(bytes.NewReader(b))
			d.UseNumber()
			if err := d.Decode(&v); err != nil {
				t.Fatalf("%v: %s", err, b)
			}
			return v
		}
		values := map[string]any{
			"code": "REVOKED", "request_id": toldOf(other), "timestamp": ctx.Time.String(), "owner": toldOf(owner), "resource": toldOf(other), "key_id": "key_1",
			"plan": "p", "limit.day": json.Number(strconv.FormatInt(n, 10)), "remaining.day": json.Number(strconv.FormatInt(-n, 10)),
			"scopes_required": []string{owner, other}, "plan.details.none": false, "plan.details.text": read(d.Plans["p"].Details["text"]), "plan.details.list": read(d.Plans["p"].Details["list"]),
		}
		if n > 0 {
			values["retry_after"] = json.Number(strconv.FormatInt(n, 10))
		}
		entry := d.Answers["REVOKED"]
		if entry.DocumentationURL != "" {
			values["documentation_url"] = toldOf(inText(entry.DocumentationURL, values))
		}
		message := entry.Message
		if message == "" {
			message = CodeRevoked.Message()
		}
		values["message"] = toldOf(inText(message, values))
		a := k.Answer(CodeRevoked, ctx)
		if !json.Valid(a.Body) || a.Status != 418 {
			t.Fatalf("%d, no JSON: %s", a.Status, a.Body)
		}
		if entry.Body == nil {
			return
		}
		want, got := filled(read(entry.Body), values), read(a.Body)
		texts := cmp.Transformer("text", func(s string) []byte { return []byte(valid(s)) })
		if diff := cmp.Diff(want, got, texts); diff != "" {
			t.Fatalf("%s with %+v (-want +got):\n%s", entry.Body, ctx, diff)
		}
		onOneLine := func(s string) string {
			return strings.TrimSpace(strings.Map(func(c rune) rune {
				if c < ' ' || c == 0x7f {
					return ' '
				}
				return c
			}, s))
		}
		for name, want := range map[string]string{"X-A": inText(entry.Headers["X-A"], values), "X-B": owner} {
			i := slices.IndexFunc(a.Headers, func(h Header) bool { return h.Name == name })
			if i < 0 || a.Headers[i].Value != onOneLine(want) {
				t.Fatalf("%s: want %q in %q", name, want, a.Headers)
			}
		}
		for _, h := range a.Headers {
			if strings.ContainsFunc(h.Value, func(c rune) bool { return c < ' ' || c == 0x7f }) {
				t.Fatalf("header %q", h)
			}
		}
	})
}
