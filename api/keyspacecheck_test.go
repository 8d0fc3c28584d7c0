package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/api"
)

// A document is checked without being recorded: every problem with its line, or
// what would change, for whom, and how refusals would look.
func TestKeyspaceCheck(t *testing.T) {
	s := start(t)
	doc := fmt.Sprintf(parcelbird, "pb", "pb", "pb")
	head := s.head()
	check := func(doc string) (out api.KeyspaceCheck) {
		t.Helper()
		a := s.must("POST", "/v1/keyspaces/validate", s.root, doc, "Content-Type", "application/yaml")
		if err := json.Unmarshal(a.body, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if c := check(doc); !c.Valid || !c.Changed || c.Version != 0 || len(c.Answers) != 19 || c.YAML == "" {
		t.Errorf("a new one: %+v", c)
	}
	if c := check(strings.Replace(doc, "about:", "abuot:", 1)); c.Valid || len(c.Problems) == 0 || c.Problems[0].Line != 3 || c.Problems[0].Fix == "" {
		t.Errorf("a bad one: %+v", c.Problems)
	}
	if c := check("keyspace: [unclosed"); c.Valid || len(c.Problems) == 0 {
		t.Errorf("no document: %+v", c)
	}
	if c := check("keyspace: keyledger\nformat: {prefixes: {live: x_}, length: 40}\n"); c.Valid || len(c.Problems) == 0 {
		t.Errorf("the built-in one: %+v", c)
	}
	if s.head() != head {
		t.Fatal("a check recorded something")
	}
	first := s.must("PUT", "/v1/keyspaces/pb", s.root, doc, "Content-Type", "application/yaml", "If-Match", `"0"`)
	if first.header.Get("ETag") != `"1"` {
		t.Errorf("ETag %q", first.header.Get("ETag"))
	}
	s.must("PUT", "/v1/keyspaces/pb/owners/org_1", s.root, `{"name":"Acme","plan":"basic"}`)
	s.must("POST", "/v1/keys", s.root, keyBody(map[string]any{"scopes": []string{"parcels:read"}}))
	if c := check(doc); !c.Valid || c.Changed || c.Version != 1 || len(c.Changes) != 0 || c.Before != c.YAML {
		t.Errorf("the same one: %+v", c)
	}
	smaller := strings.Replace(doc, "from: key", "from: plan", 1)
	if smaller == doc {
		t.Fatal("the document of the test has no such limit")
	}
	c := check(smaller)
	if !c.Changed || len(c.Changes) != 1 || len(c.Effects) == 0 || c.Effects[0].Kind != "narrows" || c.Effects[0].Keys != 1 {
		t.Errorf("a smaller limit: %+v %+v", c.Changes, c.Effects)
	}
	removed := check(strings.Replace(doc, "parcels:read", "parcels:look", -1))
	if removed.Valid || len(removed.Problems) == 0 || removed.Problems[0].Line == 0 {
		t.Errorf("a scope in use is taken away: %+v", removed.Problems)
	}

	// Two editors do not overwrite each other.
	s.refused(s.do("PUT", "/v1/keyspaces/pb", s.root, smaller, "Content-Type", "application/yaml", "If-Match", `"7"`), 412, "VERSION_MISMATCH")
	s.refused(s.do("PUT", "/v1/keyspaces/pb", s.root, smaller, "Content-Type", "application/yaml", "If-Match", `"0"`), 412, "VERSION_MISMATCH")
	s.must("PUT", "/v1/keyspaces/pb", s.root, smaller, "Content-Type", "application/yaml", "If-Match", `"1"`)
	s.refused(s.do("PUT", "/v1/keyspaces/pb", s.root, doc, "Content-Type", "application/yaml", "If-Match", `"1"`), 412, "VERSION_MISMATCH")

	var versions api.KeyspaceVersions
	if err := json.Unmarshal(s.must("GET", "/v1/keyspaces/pb/versions", s.root, "").body, &versions); err != nil {
		t.Fatal(err)
	}
	v := versions.Versions
	if len(v) != 2 || v[0].Version != 2 || v[0].Actor == nil || len(v[0].Changes) != 1 || v[0].Changes[0].Field != "limits.from" || len(v[1].Changes) != 0 {
		t.Errorf("versions: %+v", v)
	}
	past := s.must("GET", fmt.Sprintf("/v1/keyspaces/pb?as_of=%d", v[1].Sequence), s.root, "")
	if past.json["version"] != 1.0 {
		t.Errorf("version 1: %s", past.body)
	}
	list := s.must("GET", "/v1/keyspaces?count=true", s.root, "").json["keyspaces"].([]any)[0].(map[string]any)
	if list["owners"] != 1.0 || list["active_keys"] != 1.0 {
		t.Errorf("counts: %v", list)
	}

	// A manager reads the document and its refusals, not who wrote it, and checks
	// none; an auditor checks none either.
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	s.must("GET", "/v1/keyspaces/pb/answers", manager, "")
	if a := s.must("GET", "/v1/keyspaces/pb/versions", manager, ""); strings.Contains(string(a.body), "root_key") {
		t.Errorf("a manager sees who wrote it: %s", a.body)
	}
	s.refused(s.do("GET", "/v1/keyspaces/other/answers", manager, ""), 404, "KEYSPACE_NOT_FOUND")
	for _, secret := range []string{manager, s.must("POST", "/v1/root-keys", s.root, `{"name":"a","role":"auditor"}`).json["secret"].(string)} {
		s.refused(s.do("POST", "/v1/keyspaces/validate", secret, doc, "Content-Type", "application/yaml"), 403, "FORBIDDEN")
	}
}

// A keyspace may be called as the path of the check is.
func TestKeyspaceCalledValidate(t *testing.T) {
	s := start(t)
	s.must("PUT", "/v1/keyspaces/validate", s.root, fmt.Sprintf(parcelbird, "validate", "va", "va"), "Content-Type", "application/yaml")
	if a := s.must("GET", "/v1/keyspaces/validate", s.root, ""); a.json["keyspace"] != "validate" {
		t.Errorf("%s", a.body)
	}
}
