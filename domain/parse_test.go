package domain

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
)

var updateGolden = flag.Bool("update", false, "write golden files")

func mustParse(t testing.TB, source string) *Document {
	t.Helper()
	doc, err := ParseDocument([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The contract's own example is read as its author means it, also where a
// comma ends a text that is not in quotes.
func TestContractExample(t *testing.T) {
	d := mustParse(t, string(file(t, "contract.yaml")))
	if got := d.Scopes["keys:manage"].About; got != "Create, rotate and delete keys" {
		t.Errorf("about of keys:manage is %q", got)
	}
	if d.Display != (Display{12, 4}) || d.Limits.CountBy != "owner" || len(d.Alerts) != 9 || *d.Plans["free"].Access || d.Plans["large"].Scopes != nil {
		t.Errorf("read as %s", d.JSON())
	}
	if got, want := string(d.Answers["RATE_LIMITED"].Body), `{"problem":"${message}","wait":"${retry_after}","max":{"m":"${limit.minute}","d":"${limit.day}"}}`; got != want {
		t.Errorf("body %s, want the author's order %s", got, want)
	}
}

// What keyspace.configured records for the example is written alike for ever,
// and what was recorded is read alike for ever.
func TestDocumentGolden(t *testing.T) {
	want := bytes.TrimSpace(file(t, "contract.json"))
	if got := mustParse(t, example).JSON(); !bytes.Equal(got, want) {
		t.Errorf("written as\n%s\nwant\n%s", got, want)
	}
	var recorded Document
	if err := json.Unmarshal(want, &recorded); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(mustParse(t, example), &recorded); diff != "" {
		t.Errorf("(-parsed +recorded):\n%s", diff)
	}
}

// Everything that is wrong is told at once, with its line and what to write.
func TestProblemsGolden(t *testing.T) {
	_, err := ParseDocument(file(t, "bad.yaml"))
	bad, ok := errors.AsType[*DocumentError](err)
	if !ok {
		t.Fatalf("error is %v", err)
	}
	var b strings.Builder
	for _, p := range bad.Problems {
		b.WriteString(p.String() + "\n")
	}
	if *updateGolden {
		if err := os.WriteFile("testdata/bad.problems", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(file(t, "bad.problems")), b.String()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	for _, p := range bad.Problems {
		if p.Path == "" || p.Line == 0 || p.Message == "" || p.Fix == "" {
			t.Errorf("a problem lacks its place or its fix: %+v", p)
		}
	}
}

const small = "keyspace: small\nformat: {prefixes: {live: sm_}, length: 24}\n"

// What is absent gets the careful default.
func TestDefaults(t *testing.T) {
	want := &Document{
		Keyspace:    "small",
		Credential:  CredentialRules{Header: "Authorization", Scheme: "Bearer"},
		Format:      Format{Prefixes: map[string]string{"live": "sm_"}, DefaultEnvironment: "live", Alphabet: "base62", Length: 24, Checksum: "none"},
		Resource:    ResourceRules{Mode: "none"},
		Limits:      LimitRules{From: "key", CountBy: "key"},
		Lifecycle:   Lifecycle{Expiry: Expiry{Default: "never"}, Rotation: Rotation{Enabled: true, GraceMax: Duration(48 * time.Hour)}},
		LastUsed:    "any",
		RateHeaders: []string{"retry-after"},
	}
	if diff := cmp.Diff(want, mustParse(t, small)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if d := mustParse(t, small+"credential: {header: X-API-Key, scheme: \"\"}\nrate_headers: []\n"); d.Credential.Scheme != "" || len(d.RateHeaders) != 0 {
		t.Errorf("an explicit empty value was replaced: %s", d.JSON())
	}
	if d := mustParse(t, small+"plans: {a: {scopes: []}}\ndefault_plan: a\n"); d.Limits.From != "plan" || d.Plans["a"].Scopes == nil {
		t.Errorf("with plans: %s", d.JSON())
	}
}

func TestRefusedDocuments(t *testing.T) {
	deep := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	for _, test := range []struct{ name, source, path, says string }{
		{"nothing", "", "", "empty"},
		{"only a comment", "# nothing\n", "", "empty"},
		{"a list", "[]", "", "is a list"},
		{"broken YAML", "keyspace: [", "", "neither YAML nor JSON"},
		{"bytes that are no text", "keyspace: \xff\xfe", "", "not UTF-8"},
		{"more than a megabyte", small + "about: " + strings.Repeat("x", MaxDocument), "", "bytes"},
		{"two documents", small + "---\n" + small, "", "goes on after its end"},
		{"JSON with something after it", `{"keyspace":"a"} {}`, "", "goes on after its end"},
		{"deep YAML", small + "answers: {default: {body: " + deep[:50] + deep[len(deep)-50:] + "}}", "answers.default.body" + strings.Repeat("[0]", 30), "nested deeper"},
		{"deeper JSON", `{"keyspace":"a","answers":` + deep[:9_000] + deep[len(deep)-9_000:] + `}`, "answers" + strings.Repeat("[0]", 32), "nested deeper"},
		{"too many values", `{"keyspace":"a","rate_headers":[` + strings.Repeat(`"ietf",`, 60_000) + `"ietf"]}`, "rate_headers[49997]", "beyond the 50000 values"},
		{"an alias", small + "scopes: {a: &x {about: A}, b: *x}\n", "scopes.a", "anchor"},
		{"a merge", small + "scopes: {a: {<<: {about: A}}}\n", "scopes.a", "merge"},
		{"a bomb of aliases", "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n", "a", "anchor"},
		{"a tag", small + "about: !!binary aGk=\n", "about", "tag"},
		{"a tag of its own", small + "scopes: !scopes {}\n", "scopes", "tag"},
		{"a name that is no text", small + "scopes: {8: {}}\n", "scopes", "quotes"},
		{"the same name twice", small + "keyspace: other\n", "keyspace", "twice"},
		{"the same name twice in JSON", `{"keyspace":"a","keyspace":"b"}`, "keyspace", "twice"},
		{"a line without a value", small + "about:\n", "about", "no value"},
		{"null in JSON", `{"keyspace":"a","about":null}`, "about", "no value"},
		{"the name of the root keyspace", strings.Replace(small, "small", "keyledger", 1), "keyspace", "built-in"},
		{"a prefix like that of root keys", strings.Replace(small, "sm_", "klr_x_", 1), "format.prefixes.live", "root key"},
		{"a prefix that belongs to two environments", strings.Replace(small, "{live: sm_}", "{live: sm_, test: sm_}, default_environment: live", 1), "format.prefixes.test", "also the prefix of live"},
		{"a prefix that another secret may start with", strings.Replace(small, "{live: sm_}", "{live: sm, test: smt}, default_environment: live", 1), "format.prefixes.test", "by chance"},
		{"no default among environments", strings.Replace(small, "{live: sm_}", "{live: sm_, test: st_}", 1), "format", "no default_environment"},
		{"125 bits", strings.Replace(small, "24", "21", 1), "format", "leaves 125 bits"},
		{"a checksum that leaves too little", strings.Replace(small, "24}", "27, checksum: crc32}", 1), "format", "leaves 125 bits"},
		{"showing too much in front", small + "display: {first: 6}\n", "format", "leaves 125 bits"},
		{"showing too much behind", small + "display: {last: 3}\n", "format", "leaves 125 bits"},
		{"a default plan that is not there", small + "default_plan: gold\n", "default_plan", "not a plan"},
		{"plans without a default", small + "plans: {gold: {}}\n", "plans", "without a default_plan"},
		{"limits from plans that are not there", small + "limits: {from: plan}\n", "limits.from", "no plans"},
		{"a pool of keys with their own limits", small + "limits: {from: key, count_by: owner}\n", "limits.count_by", "cannot share"},
		{"a path where nothing is bound", small + "resource: {path: \"/v1/{resource}\"}\n", "resource.path", "mode is none"},
		{"a template without its name", small + "owner: {path: /v1/**}\n", "owner.path", "lacks {owner}"},
		{"a default that is no preset", small + "lifecycle: {expiry: {presets: [30d], default: never}}\n", "lifecycle.expiry.default", "not among the presets"},
		{"presets that leave no default", small + "lifecycle: {expiry: {presets: [30d]}}\n", "lifecycle.expiry.presets", "no default"},
		{"custom as a default", small + "lifecycle: {expiry: {presets: [custom], default: custom}}\n", "lifecycle.expiry.default", "not an expiry"},
		{"an alert that never comes", small + "alerts: [{when: rotation_overdue}]\n", "alerts[0]", "max_age"},
		{"an alert without its number", small + "alerts: [{when: denied, over: 1m}]\n", "alerts[0].above", "missing"},
		{"a refusal that looks like success", small + "answers: {default: {status: 200}}\n", "answers.default.status", "out of range"},
		{"text that turns around", small + "about: \"a\\u202Eb\"\n", "about", "direction"},
		{"a header that ends the headers", small + "answers: {default: {headers: {X-A: \"a\\nb\"}}}\n", "answers.default.headers.X-A", "control"},
		{"a plain yes", small + "allowed_origins: yes\n", "allowed_origins", "a string"},
		{"infinity", small + "alerts: [{when: denied, above: .inf, over: 1m}]\n", "alerts[0].above", "JSON can hold"},
		{"half a text", small + "about: 3\n", "about", "a number"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseDocument([]byte(test.source))
			bad, ok := errors.AsType[*DocumentError](err)
			if !ok {
				t.Fatalf("accepted, error %v", err)
			}
			for _, p := range bad.Problems {
				if p.Path == test.path && strings.Contains(p.Message+p.Fix, test.says) {
					return
				}
			}
			t.Errorf("no problem at %q says %q:\n%v", test.path, test.says, err)
		})
	}
}

// The bounds themselves are allowed.
func TestAcceptedDocuments(t *testing.T) {
	for _, source := range []string{
		strings.Replace(small, "24", "22", 1),                     // 130 bits
		strings.Replace(small, "24}", "28, checksum: crc32}", 1),  // likewise
		small + "display: {first: 5}\n",                           // two of 24 are shown
		small + "display: {last: 2}\n",                            // likewise
		strings.Replace(small, "sm_", "\"\"", 1),                  // no prefix at all
		strings.Replace(small, "24}", "25, alphabet: base36}", 1), // 129 bits
		"\ufeff" + small,                        // as some editors save it
		strings.ReplaceAll(small, "\n", "\r\n"), // likewise
		small + "about: |\n  A text\n",          // ends with a line break
		small + "answers: {default: {body: {a: [0x10, 1_000, +1, .5, 1e3, ~]}}}\n",
	} {
		if _, err := ParseDocument([]byte(source)); err != nil {
			t.Errorf("%q: %v", source, err)
		}
	}
	d := mustParse(t, small+"answers: {default: {body: {a: [0x10, 1_000, +1, .5, 1e3, ~, 2026-01-18]}}}\n")
	if got, want := string(d.Answers["default"].Body), `{"a":[16,1000,1,0.5,1e3,null,"2026-01-18"]}`; got != want {
		t.Errorf("body %s, want %s", got, want)
	}
}

// JSON is read as JSON: escapes that YAML does not know, tabs, any layout.
func TestJSONDocument(t *testing.T) {
	d := mustParse(t, "{\n\t\"keyspace\": \"small\",\n\t\"about\": \"\\ud83d\\udd11 \\/\",\n\t\"format\": {\"prefixes\": {\"live\": \"sm_\"}, \"length\": 24}\n}")
	if d.About != "🔑 /" {
		t.Errorf("about is %q", d.About)
	}
	_, err := ParseDocument([]byte("{\n\"keyspace\": \"small\",\n\n\"format\": {\"prefixes\": {\"live\": \"sm_\"},\n\"length\": \"24\"}}"))
	bad, ok := errors.AsType[*DocumentError](err)
	if !ok || len(bad.Problems) != 1 || bad.Problems[0].Line != 5 || bad.Problems[0].Fix != "write 24 without quotes" {
		t.Errorf("error is %v", err)
	}
}

// A source that is no document at all is told from a document that is wrong.
func TestUnreadableDocument(t *testing.T) {
	for source, unreadable := range map[string]bool{
		"": true, "a: b: c": true, "{\"keyspace\":": true, "keyspace: [\n": true, "keyspace: \xff": true,
		"[]": false, "null": false, "keyspace: 3": false, "colour: red": false, "a: 1\na: 2": false,
	} {
		_, err := ParseDocument([]byte(source))
		if bad, ok := errors.AsType[*DocumentError](err); !ok || bad.Unreadable != unreadable {
			t.Errorf("%q: %v, want unreadable %v", source, err, unreadable)
		}
	}
}

// Writing a document and reading it again changes nothing, and the bytes are
// always the same.
func TestDocumentRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDocument(t)
		again, err := ParseDocument(d.JSON())
		if err != nil {
			t.Fatalf("%s: %v", d.JSON(), err)
		}
		if diff := cmp.Diff(d, again); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if !bytes.Equal(d.JSON(), again.JSON()) {
			t.Fatalf("%s became %s", d.JSON(), again.JSON())
		}
		// A fold reads a recorded document with encoding/json alone.
		var recorded Document
		if err := json.Unmarshal(d.JSON(), &recorded); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(d.JSON(), recorded.JSON()) {
			t.Fatalf("%s was recorded as %s", d.JSON(), recorded.JSON())
		}
	})
}

// drawDocument draws a valid document: the example with parts of it changed or
// left out.
func drawDocument(t *rapid.T) *Document {
	d, err := ParseDocument([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	chance := func(what string) bool { return rapid.Bool().Draw(t, what) }
	text := rapid.StringOfN(rapid.RuneFrom([]rune("aZ09 äß€🔑\"\\<>&'{}#:,-_/")), 0, 40, -1)
	limits := func(what string) events.Limits {
		var l events.Limits
		for _, w := range Windows {
			if chance(what + w) {
				if l == nil {
					l = events.Limits{}
				}
				l[w] = rapid.Int64Range(1, maxLimit).Draw(t, what+w)
			}
		}
		return l
	}
	d.About = strings.TrimRight(text.Draw(t, "about"), "\n")
	d.Credential.RequireTLS = chance("tls")
	if chance("bare") {
		d.Credential.Scheme, d.Credential.Header = "", "X-API-Key"
	}
	d.Format.Length = rapid.IntRange(40, 200).Draw(t, "length")
	d.Lifecycle.Rotation.GraceMax = Duration(rapid.Int64Range(0, int64(100_000*time.Hour)).Draw(t, "grace max"))
	d.Lifecycle.Rotation.GraceDefault = Duration(rapid.Int64Range(0, int64(d.Lifecycle.Rotation.GraceMax)).Draw(t, "grace"))
	d.Limits.Default = limits("default")
	for _, name := range []string{"a", "b"} {
		p := d.Plans["basic"]
		p.Limits = limits(name)
		p.Scopes = nil
		if chance(name + " scopes") {
			p.Scopes = []string{}
		}
		if chance(name + " cap") {
			p.MaxKeys = new(rapid.IntRange(0, 1000).Draw(t, name+" keys"))
		}
		p.Details = map[string]json.RawMessage{"x": quote(text.Draw(t, name+" detail")), "y": json.RawMessage(`{"b":1.50,"a":[null,true,-0.1e9]}`)}
		d.Plans[name] = p
	}
	if chance("no answers") {
		d.Answers = nil
	} else {
		message := strings.ReplaceAll(text.Draw(t, "message"), "${", "")
		body := string(quote(message + "${code}"))
		d.Answers["REVOKED"] = Answer{Message: message, Body: json.RawMessage(`[` + body + `,{"z":` + body + `,"a":"${limit.day}"}]`)}
	}
	if chance("no alerts") {
		d.Alerts = nil
	} else {
		d.Alerts = append(d.Alerts, AlertRule{When: "denied", Above: new(rapid.Float64Range(0, 1e12).Draw(t, "above")), Over: Duration(rapid.Int64Range(1, 1e18).Draw(t, "over"))})
	}
	if chance("no headers") {
		d.RateHeaders = []string{}
	}
	if chance("public") {
		d.PublicRoutes = append(d.PublicRoutes, PublicRoute{Route: "* /open/**"})
	}
	return d
}

func quote(s string) json.RawMessage {
	return append(appendEscaped([]byte{0x22}, s), 0x22)
}

// A duration is read back from how it is written.
func TestDurationRoundTrip(t *testing.T) {
	for want, in := range map[string]string{"24h": "1d", "48h": "48h", "3d": "72h", "36h": "1d12h", "0s": "0", "1m": "60s", "1h30m": "90m", "10s": "10s", "1h0m1s": "3601s", "100ms": "0.1s"} {
		d, err := ParseDuration(in)
		if err != nil || d.String() != want {
			t.Errorf("%s is written %s, want %s (%v)", in, d, want, err)
		}
	}
	for _, bad := range []string{"", "d", "-1d", "1", "1 day", "1d-1h", "-5s", "1h1d", "99999999d", "65535d2562047h", "1.5d", "+1d", "∞"} {
		if d, err := ParseDuration(bad); err == nil {
			t.Errorf("%q is read as %s", bad, d)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		d := Duration(rapid.Int64Range(0, 1<<62).Draw(t, "d"))
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Fatalf("%d ns is written %s, read %d (%v)", d, d, again, err)
		}
	})
}

func Example_problem() {
	_, err := ParseDocument([]byte("keyspace: small\nformat: {prefixes: {live: sm_}, lenght: 24}\n"))
	fmt.Println(err)
	// Output:
	// keyspace document: 2 problems
	//   line 2: format.length is missing: add it
	//   line 2: format.lenght is not a known field: did you mean length?
}
