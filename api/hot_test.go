package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

// The short way writes a key as every other answer does.
func TestAppendKey(t *testing.T) {
	now := time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC)
	at := events.At(now)
	by := events.Actor{Type: "root_key", ID: "key_1"}
	for what, k := range map[string]*domain.Key{
		"the least": {ID: "key_1", Grant: &domain.Grant{}},
		"the most": {ID: "key_2", Name: "a \"name\" \u2028 \\ \u00fc <b>", First: "pb_", Last: "x", CreatedAt: at, ExpiresAt: at + 1, Version: 7,
			Grant: &domain.Grant{Keyspace: "pb", Owner: "o", Environment: "live", Plan: "p", Scopes: []string{"a", "b"}, Resources: []string{"r"},
				Limits: events.Limits{"minute": 1, "hour": 2, "day": 3}, AllowedOrigins: []string{"https://a"}, AllowedIPs: []string{"::1"}, CreatedBy: by},
			More: &domain.More{Meta: map[string]string{"b": "<", "a": "1"}, RotatedAt: at, RevokedAt: at, RevokeReason: "r",
				Earlier: []domain.Earlier{{Until: at + 1000}}}},
		"a root key": {ID: "key_3", Grant: &domain.Grant{Keyspace: "keyledger", Role: "manager", For: &events.Reach{Keyspace: "pb", Owner: "o"}, CreatedBy: by}},
	} {
		want, err := marshal(Key(queries.ViewOf(k, now)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(appendKey(nil, k, now, false))); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
}

// What the short way reads, the long way reads too, and reads the same.
func FuzzReadVerify(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"keyspace":"pb"}`, ` { "keyspace" : "pb" , "tls" : true } `, `{"keyspace":"pb","scopes":["a","b"],"report":false}`,
		`{"keyspace":"pb","scopes":[]}`, `{"keyspace":"pb","keyspace":"x"}`, `{"keyspace":"p\u0062"}`, `{"keyspace":"pb",}`, `{"keyspace":"pb"}}`,
		`{"keyspace":null}`, `{"tls":truefalse}`, `{"scopes":["a",]}`, `{"scopes":[,]}`, `{,}`, `{"a":1}`, "{\"key\":\"\x00\"}", `{"key":"\"}`,
		`{"keyspace":"pb","key":"k","authorization":"a","method":"GET","path":"/","origin":"","ip":"::1","resource":"r","content_type":"","user_agent":"u"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var short hotRequest
		var long VerifyRequest
		if !readVerify(s, &short) {
			return
		}
		if p := readable([]byte(s)); p != nil {
			t.Fatalf("%q is read, but not readable: %v", s, p)
		}
		d := json.NewDecoder(strings.NewReader(s))
		d.DisallowUnknownFields()
		if err := d.Decode(&long); err != nil {
			t.Fatalf("%q is read, but is not the call's: %v", s, err)
		}
		if diff := cmp.Diff(long, short.VerifyRequest); diff != "" {
			t.Fatalf("%q: %s", s, diff)
		}
	})
}
