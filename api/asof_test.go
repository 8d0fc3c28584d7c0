package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
)

// A key, an owner and a document are answered as they were, by sequence and by
// time, and the answer says which sequence that is.
func TestAsOf(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	a := s.must("POST", "/v1/keys", s.root, keyBody(map[string]any{"name": "before", "scopes": []string{"parcels:read"}}))
	id, made := a.key()["id"].(string), a.header.Get("Ledger-Sequence")
	up := s.must("PATCH", "/v1/keys/"+id, s.root, `{"name":"after"}`).header.Get("Ledger-Sequence")
	s.must("PUT", "/v1/keyspaces/pb/owners/org_1", s.root, `{"plan":"basic"}`)
	s.must("PUT", "/v1/keyspaces/pb", s.root, strings.ReplaceAll(fmt.Sprintf(parcelbird, "pb", "pb", "pb"), "about: Parcelbird", "about: New"), "Content-Type", "application/yaml")
	s.must("DELETE", "/v1/keys/"+id, s.root, "")

	then := s.must("GET", "/v1/keys/"+id+"?as_of="+made, s.root, "")
	if then.json["name"] != "before" || then.json["status"] != "active" || then.header.Get("Ledger-Sequence") != made || then.header.Get("ETag") != `"1"` {
		t.Errorf("as of %s: %v %s", made, then.header, then.body)
	}
	if uses, ok := then.json["use_count"]; !ok || uses != nil || then.json["last_used_at"] != nil {
		t.Errorf("LEDGER tells nothing of uses: %s", then.body)
	}
	// The time of a fact is the place of that fact.
	at := then.json["created_at"].(string)
	if again := s.must("GET", "/v1/keys/"+id+"?as_of="+at, s.root, ""); again.header.Get("Ledger-Sequence") != made && again.json["name"] != "after" {
		t.Errorf("as of %s: %v %s", at, again.header, again.body)
	}
	if then := s.must("GET", "/v1/keys/"+id+"?as_of="+up, s.root, ""); then.json["name"] != "after" {
		t.Errorf("as of %s: %s", up, then.body)
	}
	s.refused(s.do("GET", "/v1/keys/"+id+"?as_of="+fmt.Sprint(s.head()), s.root, ""), 410, "KEY_DELETED")
	s.refused(s.do("GET", "/v1/keys/"+id+"?as_of=1", s.root, ""), 404, "KEY_NOT_FOUND")

	list := s.must("GET", "/v1/keys?keyspace=pb&as_of="+made, s.root, "")
	keys := list.json["keys"].([]any)
	if len(keys) != 1 || keys[0].(map[string]any)["name"] != "before" || list.header.Get("Ledger-Sequence") != made {
		t.Errorf("the list as of %s: %v %s", made, list.header, list.body)
	}
	if owner := s.must("GET", "/v1/keyspaces/pb/owners/org_1?as_of="+made, s.root, ""); owner.json["plan"] != "large" || owner.json["active_keys"] != 1.0 || owner.json["max_keys"] != nil {
		t.Errorf("the owner as of %s: %s", made, owner.body)
	}
	doc := s.must("GET", "/v1/keyspaces/pb?as_of="+made, s.root, "")
	if doc.json["version"] != 1.0 || doc.json["document"].(map[string]any)["about"] != "Parcelbird tracking API" {
		t.Errorf("the document as of %s: %s", made, doc.body)
	}
	s.refused(s.do("GET", "/v1/keyspaces/pb?as_of=1", s.root, ""), 404, "KEYSPACE_NOT_FOUND")

	// Pages are of one moment, whatever comes between.
	for range 2 {
		s.create(map[string]any{"owner": "org_2"})
	}
	two := fmt.Sprint(s.head())
	page := s.must("GET", "/v1/keys?keyspace=pb&limit=1&as_of="+two, s.root, "")
	s.create(map[string]any{"owner": "org_2"})
	next := s.must("GET", "/v1/keys?keyspace=pb&limit=1&as_of="+two+"&cursor="+page.json["next_cursor"].(string), s.root, "")
	if len(next.json["keys"].([]any)) != 1 || next.json["next_cursor"] != nil || next.header.Get("Ledger-Sequence") != two {
		t.Errorf("the second page: %v %s", next.header, next.body)
	}
	s.refused(s.do("GET", "/v1/keys?keyspace=pb&limit=1&as_of="+made+"&cursor="+page.json["next_cursor"].(string), s.root, ""), 422, "")
	s.refused(s.do("GET", "/v1/keys?keyspace=pb&status=rate_limited&as_of="+two, s.root, ""), 422, "")
	s.refused(s.do("GET", "/v1/keys?keyspace=pb&unused_since=2026-01-01T00:00:00Z&as_of="+two, s.root, ""), 422, "")
	for _, more := range []string{"", "&cursor=" + page.json["next_cursor"].(string)} {
		a := s.do("GET", "/v1/keys?keyspace=pb&limit=1&sort=name&as_of="+two+more, s.root, "")
		if s.refused(a, 422, "INVALID"); !strings.Contains(string(a.body), `"path":"sort"`) {
			t.Errorf("the past by name: %s", a.body)
		}
		s.must("GET", "/v1/keys?keyspace=pb&limit=1&sort=-created_at&as_of="+two+more, s.root, "")
	}
}

// What is no moment of the past is refused, with what to write instead.
func TestAsOfBadInput(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	id, _ := s.create(nil)
	future := events.At(time.Now().Add(time.Hour)).String()
	for _, path := range []string{"/v1/keys/" + id + "?as_of=", "/v1/keys?as_of=", "/v1/keyspaces/pb?as_of=", "/v1/keyspaces/pb/owners/org_1?as_of="} {
		for _, bad := range []string{"0", "-1", "1e3", "99999", "9223372036854775808", "99999999999999999999999", "Now", "yesterday", "2026", "2026-01-18", "2026-13-01T00:00:00Z",
			"2026-01-18T12:00:00", "2026-01-18T12:00:00+01:00", "0x10", "%00", "1;drop", "%EF%BC%91", future, "9999-12-31T23:59:59Z"} {
			s.refused(s.do("GET", path+bad, s.root, ""), 422, "INVALID")
		}
		if a := s.must("GET", path+"now", s.root, ""); a.header.Get("Ledger-Sequence") != fmt.Sprint(s.head()) {
			t.Errorf("%snow is of sequence %s", path, a.header.Get("Ledger-Sequence"))
		}
		for _, before := range []string{"1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "2001-01-18T12:00:00%2B01:00"} {
			s.refused(s.do("GET", path+before, s.root, ""), 404, "BEFORE_LEDGER")
		}
	}
}

// The past of another owner's key is as absent as its present.
func TestAsOfIsWithinReach(t *testing.T) {
	s := start(t)
	s.withPostgres()
	s.configure("pb")
	id, _ := s.create(nil)
	other, _ := s.create(map[string]any{"owner": "org_2"})
	manager := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`).json["secret"].(string)
	head := fmt.Sprint(s.head())
	s.must("GET", "/v1/keys/"+id+"?as_of="+head, manager, "")
	s.refused(s.do("GET", "/v1/keys/"+other+"?as_of="+head, manager, ""), 404, "KEY_NOT_FOUND")
	s.refused(s.do("GET", "/v1/keys/"+other+"?as_of=1", manager, ""), 404, "KEY_NOT_FOUND")
	if list := s.must("GET", "/v1/keys?as_of="+head, manager, ""); len(list.json["keys"].([]any)) != 1 {
		t.Errorf("a manager lists %s", list.body)
	}
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	s.refused(s.do("GET", "/v1/keys/"+id+"?as_of="+head, verifier, ""), 403, "FORBIDDEN")
}
