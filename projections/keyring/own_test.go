package keyring

import (
	"fmt"
	"reflect"
	"testing"
	"time"
	"unsafe"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// The strings of a decoded fact are parts of its body. A ring that kept one of
// them would keep the body, and a million keys would weigh several times more.
func TestNoBodyIsKept(t *testing.T) {
	r := New()
	now := time.Now()
	type span struct{ from, to uintptr }
	var bodies []span
	var kept []events.Record // so that no address is used twice
	sequence, versions := uint64(0), map[string]uint64{}
	apply := func(owner, key string, data events.Payload) {
		e := events.New(data, now)
		e.Keyspace, e.Owner, e.Key = "parcelbird", owner, key
		versions[owner+key]++
		e.KeyVersion = versions[owner+key]
		e.Actor, e.Via, e.RequestID, e.Command = events.Actor{Type: "root_key", ID: "key_1"}, "api", events.NewID("req", now), "cmd_which_what"
		body, err := events.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		if e, err = events.Decode(body); err != nil {
			t.Fatal(err)
		}
		begin := uintptr(unsafe.Pointer(unsafe.StringData(e.ID))) - uintptr(len(`{"id":"`))
		bodies = append(bodies, span{begin, begin + uintptr(len(body))})
		sequence++
		rec := events.Record{Stream: events.Ledger, Sequence: sequence, Event: e}
		kept = append(kept, rec)
		r.Apply(rec)
	}
	first, _ := secret("first")
	second, _ := secret("second")
	first.First, first.Last, second.First, second.Last = "pb_live_a1b2", "wxyz", "pb_live_c3d4", "stuv"
	apply("", "", events.KeyspaceConfigured{Document: []byte(`{"keyspace":"parcelbird"}`), DocumentVersion: 1})
	apply("org_1", "", events.OwnerRegistered{Name: "Org One", Plan: "starter"})
	apply("org_1", "", events.OwnerKeyAdmitted{Key: "key_2", ActiveKeys: 1, MaxKeys: 5})
	apply("org_1", "key_2", events.KeyCreated{
		Name: "Production server", Environment: "staging", Plan: "starter", Scopes: []string{"parcels:read"}, Resources: []string{"parcel_1"},
		Limits: events.Limits{"minute": 100, "fortnight": 5}, AllowedOrigins: []string{"https://a.example"}, AllowedIPs: []string{"192.0.2.0/24"},
		Meta: map[string]string{"team": "blue"}, Role: "viewer", For: &events.Reach{Keyspace: "parcelbird", Owner: "org_1"}, Secret: first,
	})
	apply("org_1", "key_2", events.KeyUpdated{Name: new("Production server"), Meta: new(map[string]string{"team": "red"})})
	apply("org_1", "key_2", events.KeyRotated{Secret: second})
	apply("org_1", "key_2", events.KeyRevoked{Reason: "leaked in a repository"})
	apply("org_2", "key_3", events.KeyCreated{Name: "Another", Environment: "live", Secret: events.Secret{First: "pb_live_e5f6", Last: "qrst"}})

	k := r.Key("key_2")
	if k == nil || k.Version != 4 || k.RevokeReason != "leaked in a repository" || k.Meta["team"] != "red" || len(r.void) > 0 {
		t.Fatalf("%+v, void %v", k, r.void)
	}
	check := func(v any) {
		eachString(reflect.ValueOf(v), fmt.Sprintf("%T", v), func(at, s string) {
			p := uintptr(unsafe.Pointer(unsafe.StringData(s)))
			for _, b := range bodies {
				if s != "" && p >= b.from && p < b.to {
					t.Errorf("%s = %q is a part of a body.", at, s)
				}
			}
		})
	}
	for _, v := range []any{k, r.Key("key_3"), r.Keyspace("parcelbird"), *r.spaces.Load(), r.commands, r.recent, r.shared} {
		check(v)
	}
	for i := range r.shards {
		for id, o := range r.shards[i].owners {
			check([]any{id, o.owner.Load(), o.admitted})
		}
	}
	if len(kept) != 8 || r.Owner("parcelbird", "org_1").Plan != "starter" {
		t.Error(len(kept), r.Owner("parcelbird", "org_1"))
	}
}

// eachString calls a function with every string in v.
func eachString(v reflect.Value, at string, do func(at, s string)) {
	switch v.Kind() {
	case reflect.String:
		do(at, v.String())
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() && v.Type() != reflect.TypeFor[*domain.Document]() {
			eachString(v.Elem(), at, do)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			eachString(v.Field(i), at+"."+v.Type().Field(i).Name, do)
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			eachString(v.Index(i), fmt.Sprintf("%s[%d]", at, i), do)
		}
	case reflect.Map:
		for _, name := range v.MapKeys() {
			eachString(name, at+" name", do)
			eachString(v.MapIndex(name), at+" value", do)
		}
	}
}
