package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/verify"
)

// Bad input is answered with a clear problem each, and nothing is recorded.
func TestBadInput(t *testing.T) {
	s := start(t)
	s.configure("pb")
	id, _ := s.create(nil)
	deep := strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000)
	valid := func(field string, v any) string { return keyBody(map[string]any{field: v}) }
	raw := func(field, v string) string {
		return fmt.Sprintf(`{"keyspace":"pb","owner":"org_1","name":"a key",%q:%s}`, field, v)
	}
	cases := []struct {
		what   string
		body   string
		status int
		path   string // of the first detail
	}{
		{"nothing", " ", 400, ""},
		{"no JSON", "keyspace: pb", 400, ""},
		{"an end in the middle", `{"keyspace":"pb"`, 400, ""},
		{"data behind the end", keyBody(nil) + "{}", 400, ""},
		{"a name twice", `{"keyspace":"pb","keyspace":"pb","owner":"org_1","name":"x"}`, 400, "keyspace"},
		{"a name twice, inside", raw("meta", `{"a":"1","a":"2"}`), 400, "meta.a"},
		{"a name twice, escaped", `{"keyspace":"pb","owner":"org_1","name":"x","n\u0061me":"y"}`, 400, "name"},
		{"a name in other letters", `{"keyspace":"pb","owner":"org_1","name":"x","Name":"y"}`, 422, "Name"},
		{"depth 10,000", deep, 400, ""},
		{"an unknown field", valid("colour", "red"), 422, "colour"},
		{"not UTF-8", raw("name2", "\"\xff\""), 400, ""},
		{"a list instead of an object", "[]", 422, ""},
		{"a string instead of an object", `"x"`, 422, ""},
		{"null", "null", 422, ""},
		{"no name", `{"keyspace":"pb","owner":"org_1"}`, 422, ""},
		{"a name of blanks", valid("name", "  "), 422, "name"},
		{"a name of 10 kB", valid("name", strings.Repeat("x", 10_000)), 422, "name"},
		{"a name with a right-to-left mark", valid("name", "a\u202eb"), 422, "name"},
		{"a name with NUL", valid("name", "a\x00b"), 422, "name"},
		{"a name with a line break", valid("name", "a\r\nb"), 422, "name"},
		{"a number as name", raw("environment", "7"), 422, "environment"},
		{"limit 0", valid("limits", map[string]any{"minute": 0}), 422, "limits.minute"},
		{"limit -1", valid("limits", map[string]any{"minute": -1}), 422, "limits.minute"},
		{"limit 2^63", raw("limits", `{"minute":9223372036854775808}`), 422, ""},
		{"limit 1.5", raw("limits", `{"minute":1.5}`), 422, "limits.minute"},
		{"limit \"100\"", valid("limits", map[string]any{"minute": "100"}), 422, "limits.minute"},
		{"a window that is none", valid("limits", map[string]any{"week": 1}), 422, "limits.week"},
		{"limits as a list", raw("limits", "[1]"), 422, "limits"},
		{"a scope twice", valid("scopes", []string{"parcels:read", "parcels:read"}), 422, "scopes[1]"},
		{"an unknown scope", valid("scopes", []string{"all"}), 422, "scopes[0]"},
		{"a scope that is not available", valid("scopes", []string{"parcels:write"}), 422, "scopes[0]"},
		{"a scope that is a number", raw("scopes", "[1]"), 422, "scopes[0]"},
		{"an unknown environment", valid("environment", "prod"), 422, "environment"},
		{"an unknown plan", valid("plan", "gold"), 422, "plan"},
		{"a resource that is no id", valid("resources", []string{"../x"}), 422, "resources[0]"},
		{"the origin null", valid("allowed_origins", []string{"null"}), 422, "allowed_origins[0]"},
		{"an origin with a path", valid("allowed_origins", []string{"https://a.example/"}), 422, "allowed_origins[0]"},
		{"an origin with a usual port", valid("allowed_origins", []string{"https://a.example:443"}), 422, "allowed_origins[0]"},
		{"an origin in Unicode", valid("allowed_origins", []string{"https://b\u00fccher.example"}), 422, "allowed_origins[0]"},
		{"a mapped IP", valid("allowed_ips", []string{"::ffff:1.2.3.4"}), 422, "allowed_ips[0]"},
		{"an IP with a zone", valid("allowed_ips", []string{"fe80::1%eth0"}), 422, "allowed_ips[0]"},
		{"an IP with a port", valid("allowed_ips", []string{"1.2.3.4:80"}), 422, "allowed_ips[0]"},
		{"a time in the past", valid("expires_at", "2020-01-01T00:00:00Z"), 422, "expires_at"},
		{"a time without a zone", valid("expires_at", "2099-01-01T00:00:00"), 422, "expires_at"},
		{"a time that is a number", raw("expires_at", "4070908800"), 422, "expires_at"},
		{"a duration without a unit", valid("expires_in", "30"), 422, "expires_in"},
		{"both expiries", keyBody(map[string]any{"expires_in": "30d", "expires_at": "2099-01-01T00:00:00Z"}), 422, "expires_in"},
		{"meta that is no text", raw("meta", `{"a":1}`), 422, "meta.a"},
		{"a body of 2 MB", valid("name", strings.Repeat("x", 2<<20)), 413, ""},
	}
	head := s.head()
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			s := *s
			s.t = t
			a := s.do("POST", "/v1/keys", s.root, c.body)
			s.refused(a, c.status, "")
			errs, _ := a.json["errors"].([]any)
			if c.path != "" && (len(errs) == 0 || errs[0].(map[string]any)["path"] != c.path) {
				t.Errorf("the place is not said: %s", a.body)
			}
			if bytes.Contains(a.body, []byte("Go struct")) || bytes.Contains(a.body, []byte("json:")) {
				t.Errorf("the inside shows: %s", a.body)
			}
		})
	}
	for what, c := range map[string]struct {
		method, path, body string
		status             int
		header             []string
	}{
		"a form":                     {"POST", "/v1/keys", "a=b", 415, []string{"Content-Type", "application/x-www-form-urlencoded"}},
		"XML":                        {"POST", "/v1/keys", "<a/>", 415, []string{"Content-Type", "application/xml"}},
		"a compressed body":          {"POST", "/v1/keys", keyBody(nil), 415, []string{"Content-Encoding", "gzip"}},
		"null for a name":            {"PATCH", "/v1/keys/" + id, `{"name":null}`, 422, nil},
		"null for scopes":            {"PATCH", "/v1/keys/" + id, `{"scopes":null}`, 422, nil},
		"a body for a patch":         {"PATCH", "/v1/keys/" + id, "", 400, nil},
		"an If-Match that is none":   {"PATCH", "/v1/keys/" + id, `{"name":"x"}`, 400, []string{"If-Match", `"abc"`}},
		"grace as a number":          {"POST", "/v1/keys/" + id + "/rotate", `{"grace":24}`, 422, nil},
		"a negative grace":           {"POST", "/v1/keys/" + id + "/rotate", `{"grace":"-1h"}`, 422, nil},
		"a reason of 10 kB":          {"POST", "/v1/keys/" + id + "/revoke", `{"reason":"` + strings.Repeat("x", 10_000) + `"}`, 422, nil},
		"an id with a slash":         {"GET", "/v1/keys/..%2f..%2fetc", "", 404, nil},
		"an id of 10 kB":             {"GET", "/v1/keys/" + strings.Repeat("k", 10_000), "", 404, nil},
		"an id with NUL":             {"GET", "/v1/keys/a%00b", "", 404, nil},
		"an owner that is no id":     {"PUT", "/v1/keyspaces/pb/owners/a.b", `{"name":"x"}`, 422, nil},
		"an owner with a star":       {"PUT", "/v1/keyspaces/pb/owners/%2A", `{"name":"x"}`, 422, nil},
		"an unknown parameter":       {"GET", "/v1/keyspaces?colour=red", "", 422, nil},
		"a sequence that is none":    {"GET", "/v1/keyspaces", "", 400, []string{"Min-Sequence", "-1"}},
		"a keyspace of root keys":    {"PUT", "/v1/keyspaces/keyledger/owners/x", `{"name":"x"}`, 404, nil},
		"a key for root keys' space": {"POST", "/v1/keys", keyBody(map[string]any{"keyspace": "keyledger"}), 404, nil},
	} {
		a := s.do(c.method, c.path, s.root, c.body, c.header...)
		if a.status != c.status {
			t.Errorf("%s is answered %d: %s", what, a.status, a.body)
		}
		s.refused(a, a.status, "")
	}
	if s.head() != head {
		t.Errorf("something was recorded: head %d after %d", s.head(), head)
	}
}

// What is sent as a credential and is none is told apart, and never repeated.
func TestBadCredentials(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(nil)
	expired, expiredSecret := s.create(map[string]any{"scopes": []string{"keys:manage"}})
	s.must("POST", "/v1/keys/"+expired+"/revoke", s.root, "")
	send := func(values ...string) answer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/v1/keyspaces", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header["Authorization"] = values
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		a := answer{status: resp.StatusCode, header: resp.Header}
		b := new(bytes.Buffer)
		_, _ = b.ReadFrom(resp.Body)
		a.body = b.Bytes()
		_ = json.Unmarshal(a.body, &a.json)
		return a
	}
	for what, c := range map[string]struct {
		values []string
		code   string
	}{
		"none":                       {nil, "MISSING_CREDENTIAL"},
		"an empty one":               {[]string{""}, "MALFORMED_CREDENTIAL"},
		"the scheme alone":           {[]string{"Bearer"}, "MALFORMED_CREDENTIAL"},
		"another scheme":             {[]string{"Basic " + s.root}, "MALFORMED_CREDENTIAL"},
		"no scheme":                  {[]string{s.root}, "MALFORMED_CREDENTIAL"},
		"two headers":                {[]string{"Bearer " + s.root, "Bearer " + s.root}, "MALFORMED_CREDENTIAL"},
		"two, joined by a comma":     {[]string{"Bearer " + s.root + ", Bearer " + s.root}, "MALFORMED_CREDENTIAL"},
		"two blanks":                 {[]string{"Bearer  " + s.root}, "MALFORMED_CREDENTIAL"},
		"a tab":                      {[]string{"Bearer\t" + s.root}, "MALFORMED_CREDENTIAL"},
		"look-alikes":                {[]string{"Bearer klr_\u0430\u0435"}, "MALFORMED_CREDENTIAL"},
		"100 kB":                     {[]string{"Bearer " + strings.Repeat("x", 100_000)}, "MALFORMED_CREDENTIAL"},
		"a root key in upper case":   {[]string{"Bearer " + strings.ToUpper(s.root)}, "UNKNOWN_KEY"},
		"a root key and a character": {[]string{"Bearer " + s.root + "x"}, "UNKNOWN_KEY"},
		"a revoked customer's key":   {[]string{"Bearer " + expiredSecret}, "REVOKED"},
	} {
		a := send(c.values...)
		if a.status != 401 || a.code() != c.code {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
		s.refused(a, 401, c.code)
		if a.header.Get("WWW-Authenticate") == "" || bytes.Contains(a.body, []byte(s.root)) {
			t.Errorf("%s: %v %s", what, a.header, a.body)
		}
	}
	s.refused(send("Bearer "+secret), 403, "FORBIDDEN")
	if a := send("bearer " + s.root); a.status != 200 {
		t.Errorf("a scheme may be in any case: %s", a.body)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/keyspaces HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\x00\r\n\r\n", s.root)
	b := make([]byte, 64)
	if n, _ := conn.Read(b); !bytes.Contains(b[:n], []byte("400")) {
		t.Errorf("NUL in a header is answered %q", b[:n])
	}
	if strings.Contains(s.log.String(), s.root) {
		t.Error("the log holds a secret")
	}
}

// Every call of the document refuses a stranger, a customer's key in place of a
// root key, and whoever asks for what another owner has.
func TestEveryRoute(t *testing.T) {
	s := start(t)
	s.configure("pb")
	s.withPostgres()
	s.withWebhooks()
	theirs, theirSecret := s.create(map[string]any{"owner": "org_2"})
	_, customer := s.create(nil)
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	spec, err := api.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
			Parameters  []struct {
				Name, In string
			}
			RequestBody *struct {
				Content map[string]any
			}
			Security []any
		}
	}
	if err := json.Unmarshal(spec, &doc); err != nil {
		t.Fatal(err)
	}
	bodies := map[string]string{
		"create-key":          keyBody(map[string]any{"owner": "org_2"}),
		"lookup-keys":         `{"keyspace":"other","first":"pb_live_"}`,
		"import-keys":         `{"keyspace":"pb","owner":"org_2","name":"x","sha256":"` + hashOf("x") + `"}`,
		"create-root-key":     `{"name":"x","role":"operator"}`,
		"configure-keyspace":  fmt.Sprintf(parcelbird, "pb", "zz", "zz"),
		"update-key":          `{"name":"x"}`,
		"verify":              `{"keyspace":"pb"}`,
		"report-uses":         `[]`,
		"audit-leaked":        `{"secret":"` + theirSecret + `"}`,
		"register-webhook":    `{"url":"https://example.com","keyspace":"pb","owner":"org_2"}`,
		"replay-dead-letters": `{"reactor":"sinks","target":"x"}`,
		"simulate-limits":     `{"keyspace":"pb","owner":"org_2"}`,
	}
	head, n := s.head(), 0
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		for method, op := range doc.Paths[path] {
			n++
			if len(op.Security) == 0 {
				t.Errorf("%s asks for no credential", op.OperationID)
			}
			if strings.HasPrefix(path, "/v1/authz") { // its credential is another; see TestForwardAuth
				continue
			}
			at := strings.NewReplacer("{ks}", "pb", "{owner}", "org_2", "{id}", theirs, "{name}", "keys_v1", "{sequence}", "1", "{resource}", "depot_1", "{decision_id}", verify.NewDecisionID(theirs, true, time.Now())).Replace(path)
			query := url.Values{}
			for _, p := range op.Parameters {
				if p.In == "query" && p.Name == "owner" {
					query.Set("owner", "org_2")
				}
			}
			if op.OperationID == "audit-diff" {
				query.Set("from", "1")
			}
			if op.OperationID == "audit-who-could" {
				query.Set("scope", "parcels:read")
			}
			if len(query) > 0 {
				at += "?" + query.Encode()
			}
			body, header := bodies[op.OperationID], []string{}
			if strings.HasSuffix(op.OperationID, "-alert-rules") {
				body = `{"rules":[{"when":"cost","above":1,"over":"1h"}]}`
			}
			if op.RequestBody != nil {
				header = []string{"Content-Type", slices.Sorted(maps.Keys(op.RequestBody.Content))[0]}
				if op.OperationID == "configure-keyspace" {
					header[1] = "application/yaml"
				}
			}
			if op.OperationID == "me" { // of oneself everybody may know
				s.refused(s.do("GET", at, "", ""), 401, "MISSING_CREDENTIAL")
				s.refused(s.do("GET", at, "klr_"+strings.Repeat("x", 43), ""), 401, "UNKNOWN_KEY")
				if a := s.do("GET", at, customer, ""); a.status != 200 || bytes.Contains(a.body, []byte("org_2")) {
					t.Errorf("%s: %d %s", op.OperationID, a.status, a.body)
				}
				continue
			}
			if op.OperationID == "open-claim" { // its credential is the code of a link
				for _, credential := range []string{"", "klr_" + strings.Repeat("x", 43), customer, manager} {
					if a := s.do("POST", at, credential, ""); a.status != 401 {
						t.Errorf("a claim with another credential: %d %s", a.status, a.body)
					}
				}
				continue
			}
			ask := func(credential string) answer { return s.do(strings.ToUpper(method), at, credential, body, header...) }
			s.refused(ask(""), 401, "MISSING_CREDENTIAL")
			s.refused(ask("klr_"+strings.Repeat("x", 43)), 401, "UNKNOWN_KEY")
			s.refused(ask(customer), 403, "FORBIDDEN")
			a := ask(manager)
			if op.OperationID == "import-keys" { // its lines are refused one by one
				if a.json["created"] != 0.0 || !bytes.Contains(a.body, []byte("OWNER_NOT_FOUND")) {
					t.Errorf("%s: %s", op.OperationID, a.body)
				}
				continue
			}
			if op.OperationID == "list-owners" { // of its own keyspace it sees itself
				if bytes.Contains(a.body, []byte("org_2")) {
					t.Errorf("%s: %s", op.OperationID, a.body)
				}
				continue
			}
			switch op.OperationID {
			case "list-keyspaces", "get-keyspace", "keyspace-answers", "keyspace-versions": // the document of its own keyspace, which names nobody
				if a.status != 200 || bytes.Contains(a.body, []byte("org_")) || bytes.Contains(a.body, []byte(`"keyspace":"other"`)) {
					t.Errorf("%s: %d %s", op.OperationID, a.status, a.body)
				}
				continue
			case "get-keyspace-alert-rules", "get-resource-alert-rules": // of its own keyspace; nobody keeps them here
				s.refused(a, 503, "READ_MODELS_UNAVAILABLE")
				continue
			}
			if a.status != 403 && a.status != 404 {
				t.Errorf("%s with another owner's id: %d %s", op.OperationID, a.status, a.body)
			}
			s.refused(a, a.status, "")
		}
	}
	s.refused(s.do("GET", "/v1/keyspaces/other", manager, ""), 404, "")
	if s.head() != head {
		t.Error("something was recorded")
	}
	if n < 20 {
		t.Errorf("the document has %d calls", n)
	}
}
