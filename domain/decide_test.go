package domain

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// product is a keyspace with a plan that caps keys, one without access, keys
// with limits, resources, scopes and rotation with grace.
func product(t testing.TB, change ...func(*Document)) *Keyspace {
	t.Helper()
	doc, err := ParseDocument([]byte(`
keyspace: parcelbird
format: {prefixes: {live: pb_live_, test: pb_test_}, default_environment: live, alphabet: base62, length: 40, checksum: crc32}
display: {first: 12, last: 4}
resource: {kind: depot, mode: optional}
scopes:
  parcels:read: {routes: ["GET /v1/parcels/**"]}
  parcels:write: {routes: ["POST /v1/parcels/**"], available: false}
  keys:manage: {grants: [keys.create, keys.rotate, keys.revoke]}
plans:
  free: {access: false}
  basic: {max_keys: 2}
  large: {}
default_plan: basic
limits: {from: key, count_by: key, default: {minute: 100, day: 1000}}
lifecycle:
  expiry: {presets: [never, 30d], default: never}
  rotation: {enabled: true, grace_default: 0s, grace_max: 48h}
allowed_origins: true
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(doc)
	}
	return Compile(doc, 1)
}

func hashOf(s string) events.Secret {
	return events.Secret{SHA256: digest(s), First: "pb_live_abcd", Last: "wxyz"}
}

// fold applies facts to a state as the ledger would record them.
func fold(s State, key string, now time.Time, facts ...events.Payload) State {
	for _, f := range facts {
		e := events.New(f, now)
		e.Keyspace, e.Owner = "parcelbird", "acme"
		switch f.(type) {
		case events.OwnerRegistered, events.OwnerPlanChanged, events.OwnerKeyAdmitted:
			e.KeyVersion = 1
			if s.Owner != nil {
				e.KeyVersion = uint64(s.Owner.Version) + 1
			}
		default:
			e.Key, e.KeyVersion = key, 1
			if s.Key != nil {
				e.KeyVersion = uint64(s.Key.Version) + 1
			}
		}
		s = Evolve(s, events.Record{Sequence: 1, Event: e})
	}
	return s
}

func given(t testing.TB, facts ...events.Payload) State {
	s := State{Keyspace: product(t)}
	return fold(s, "key_1", noon, facts...)
}

var (
	registered = events.OwnerRegistered{Name: "Acme", Plan: "basic"}
	made       = events.KeyCreated{Name: "CI", Environment: "live", Secret: hashOf("one")}
)

func TestDecide(t *testing.T) {
	later := events.At(noon.Add(time.Hour))
	hour := Duration(time.Hour)
	week := Duration(7 * 24 * time.Hour)
	cases := []struct {
		why   string
		given State
		when  Command
		then  []events.Payload
		code  string // of the refusal
		at    string // path of its first problem
	}{
		{why: "An owner is registered with the default plan.",
			given: given(t), when: SetOwner{Name: new("Acme")},
			then: []events.Payload{events.OwnerRegistered{Name: "Acme", Plan: "basic"}}},
		{why: "The same owner again is no event.",
			given: given(t, registered), when: SetOwner{Name: new("Acme"), Plan: new("basic")}},
		{why: "Another plan and another name are two facts.",
			given: given(t, registered), when: SetOwner{Name: new("Acme Ltd"), Plan: new("large")},
			then: []events.Payload{events.OwnerPlanChanged{Plan: "large", Previous: "basic"}, events.OwnerRegistered{Name: "Acme Ltd", Plan: "large"}}},
		{why: "A plan nobody has heard of is refused.",
			given: given(t), when: SetOwner{Plan: new("gold")}, code: "INVALID", at: "plan"},

		{why: "A key under a cap takes its place with the same breath.",
			given: given(t, registered), when: CreateKey{ID: "key_1", Name: "CI", Secret: hashOf("one")},
			then: []events.Payload{
				events.OwnerKeyAdmitted{Key: "key_1", ActiveKeys: 1, MaxKeys: 2},
				events.KeyCreated{Name: "CI", Environment: "live", Limits: events.Limits{"minute": 100, "day": 1000}, Secret: hashOf("one")},
			}},
		{why: "The owner must be registered.",
			given: given(t), when: CreateKey{Name: "CI", Secret: hashOf("one")}, code: "OWNER_NOT_FOUND"},
		{why: "At the cap no key is made.",
			given: capped(given(t, registered), 2), when: CreateKey{Name: "CI", Secret: hashOf("one")}, code: "KEY_LIMIT_REACHED"},
		{why: "A key that names its own plan is counted against that plan's cap.",
			given: capped(given(t, registered), 2), when: CreateKey{ID: "key_1", Name: "CI", Plan: "large", Secret: hashOf("one")},
			then: []events.Payload{events.KeyCreated{Name: "CI", Environment: "live", Plan: "large", Limits: events.Limits{"minute": 100, "day": 1000}, Secret: hashOf("one")}}},
		{why: "A plan without access makes no key.",
			given: given(t, events.OwnerRegistered{Plan: "free"}), when: CreateKey{Name: "CI", Secret: hashOf("one")}, code: "PLAN_DENIED"},
		{why: "A scope that is not there yet cannot be granted.",
			given: given(t, registered), when: CreateKey{Name: "CI", Scopes: &[]string{"parcels:read", "parcels:write"}, Secret: hashOf("one")},
			code: "INVALID", at: "scopes[1]"},
		{why: "A scope twice is a mistake.",
			given: given(t, registered), when: CreateKey{Name: "CI", Scopes: &[]string{"parcels:read", "parcels:read"}, Secret: hashOf("one")},
			code: "INVALID", at: "scopes[1]"},
		{why: "A limit of nothing is no limit but a mistake.",
			given: given(t, registered), when: CreateKey{Name: "CI", Limits: map[string]*int64{"minute": new(int64(0))}, Secret: hashOf("one")},
			code: "INVALID", at: "limits.minute"},
		{why: "An expiry in the past is refused.",
			given: given(t, registered), when: CreateKey{Name: "CI", ExpiresAt: new(events.At(noon)), Secret: hashOf("one")},
			code: "INVALID", at: "expires_at"},
		{why: "A name that turns the text around it is refused.",
			given: given(t, registered), when: CreateKey{Name: "safe\u202egpj.exe", Secret: hashOf("one")}, code: "INVALID", at: "name"},
		{why: "An origin with a path could never match.",
			given: given(t, registered), when: CreateKey{Name: "CI", AllowedOrigins: []string{"https://app.example.com/"}, Secret: hashOf("one")},
			code: "INVALID", at: "allowed_origins[0]"},
		{why: "A secret that is known already makes no second key.",
			given: given(t, registered, made), when: CreateKey{Name: "CI", Imported: true, Secret: hashOf("one")}, code: "KEY_EXISTS"},

		{why: "What is so already is no event.",
			given: given(t, registered, made), when: UpdateKey{Name: new("CI")}},
		{why: "Only what changed is recorded.",
			given: given(t, registered, made), when: UpdateKey{Name: new("Deploy"), Plan: new("")},
			then: []events.Payload{events.KeyUpdated{Name: new("Deploy")}}},
		{why: "An expired key that comes back takes a place under the cap.",
			given: at(given(t, registered, events.KeyCreated{Name: "CI", ExpiresAt: events.At(noon.Add(-time.Hour)), Secret: hashOf("one")}), 1),
			when:  UpdateKey{ExpiresAt: &later},
			then: []events.Payload{
				events.OwnerKeyAdmitted{Key: "key_1", ActiveKeys: 2, MaxKeys: 2},
				events.KeyUpdated{ExpiresAt: &events.Expiry{At: later}},
			}},
		{why: "It may not come back past the cap.",
			given: at(given(t, registered, events.KeyCreated{Name: "CI", ExpiresAt: events.At(noon.Add(-time.Hour)), Secret: hashOf("one")}), 2),
			when:  UpdateKey{ExpiresAt: &later}, code: "KEY_LIMIT_REACHED"},

		{why: "Rotation without a grace ends the old secret at once.",
			given: given(t, registered, made), when: RotateKey{Secret: hashOf("two")},
			then: []events.Payload{events.KeyRotated{Secret: hashOf("two")}}},
		{why: "Rotation with a grace says until when.",
			given: given(t, registered, made), when: RotateKey{Secret: hashOf("two"), Grace: &hour, Reason: "yearly"},
			then: []events.Payload{events.KeyRotated{Secret: hashOf("two"), GraceUntil: later, Reason: "yearly"}}},
		{why: "A grace beyond the document's is refused.",
			given: given(t, registered, made), when: RotateKey{Secret: hashOf("two"), Grace: &week}, code: "INVALID", at: "grace"},
		{why: "Ending a grace that is not there is no event.",
			given: given(t, registered, made), when: EndGrace{}},
		{why: "A running grace ends.",
			given: given(t, registered, made, events.KeyRotated{Secret: hashOf("two"), GraceUntil: later}), when: EndGrace{Reason: "moved"},
			then: []events.Payload{events.KeyGraceEnded{Reason: "moved"}}},

		{why: "A key is revoked.",
			given: given(t, registered, made), when: RevokeKey{Reason: "leaked"},
			then: []events.Payload{events.KeyRevoked{Reason: "leaked"}}},
		{why: "Revoking a revoked key is no event.",
			given: given(t, registered, made, events.KeyRevoked{}), when: RevokeKey{}},
		{why: "A revoked key does not rotate.",
			given: given(t, registered, made, events.KeyRevoked{}), when: RotateKey{Secret: hashOf("two")}, code: "KEY_REVOKED"},
		{why: "A revoked key does not change.",
			given: given(t, registered, made, events.KeyRevoked{}), when: UpdateKey{Name: new("x")}, code: "KEY_REVOKED"},
		{why: "Deleting a live key revokes it first, in one batch.",
			given: given(t, registered, made), when: DeleteKey{},
			then: []events.Payload{events.KeyRevoked{Reason: "deleted"}, events.KeyDeleted{}}},
		{why: "Deleting a revoked key is one fact.",
			given: given(t, registered, made, events.KeyRevoked{}), when: DeleteKey{}, then: []events.Payload{events.KeyDeleted{}}},
		{why: "A deleted key is gone.",
			given: given(t, registered, made, events.KeyRevoked{}, events.KeyDeleted{}), when: RevokeKey{}, code: "KEY_DELETED"},
		{why: "A key that never was is not found.",
			given: given(t, registered), when: RevokeKey{}, code: "KEY_NOT_FOUND"},
	}
	for _, c := range cases {
		t.Run(c.why, func(t *testing.T) {
			got, err := Decide(c.given, c.when, noon)
			refusal, _ := errors.AsType[*Refusal](err)
			switch {
			case c.code == "" && err != nil:
				t.Fatalf("refused: %v", err)
			case c.code != "" && refusal == nil:
				t.Fatalf("got %v and error %v, want the refusal %s", got, err, c.code)
			case c.code != "" && refusal.Code != c.code:
				t.Fatalf("refused with %s (%v), want %s", refusal.Code, err, c.code)
			case c.at != "" && (len(refusal.Problems) == 0 || refusal.Problems[0].Path != c.at || refusal.Problems[0].Fix == ""):
				t.Fatalf("problems %+v, want one at %s that says what to write instead", refusal.Problems, c.at)
			}
			if d := cmp.Diff(c.then, got); d != "" {
				t.Errorf("facts (-want +got):\n%s", d)
			}
		})
	}
}

func capped(s State, active int) State { s.ActiveKeys = active; return s }
func at(s State, active int) State     { return capped(s, active) }

func TestRemovingWhatIsInUseIsRefusedWithItsUsers(t *testing.T) {
	s := given(t)
	doc := *product(t).Document
	doc.Plans = map[string]Plan{"basic": doc.Plans["basic"]}
	_, err := Decide(s, ConfigureKeyspace{Document: &doc, Users: Users{Plans: map[string][]string{"large": {"acme", "key_7"}}}}, noon)
	if err == nil || !strings.Contains(err.Error(), "acme, key_7") {
		t.Fatalf("got %v, want a refusal that names acme and key_7", err)
	}
}

func TestTheLastOperatorStays(t *testing.T) {
	s := State{Keyspace: RootKeyspace(), Key: &Key{ID: "key_1", Grant: &Grant{Keyspace: events.RootKeyspace, Role: Operator}}, Operators: 1}
	for _, c := range []Command{RevokeKey{}, DeleteKey{}, UpdateKey{ExpiresAt: new(events.At(noon.Add(time.Hour)))}} {
		if _, err := Decide(s, c, noon); err == nil || err.(*Refusal).Code != "LAST_OPERATOR" {
			t.Errorf("%T of the last operator: got %v, want LAST_OPERATOR", c, err)
		}
	}
	s.Operators = 2
	if _, err := Decide(s, RevokeKey{}, noon); err != nil {
		t.Errorf("with another operator left: %v", err)
	}
}

// Whatever commands come in whatever order, what Decide allows Evolve takes,
// and nothing leaves a terminal state.
func TestEveryDecidedFactHolds(t *testing.T) {
	ks := product(t)
	rapid.Check(t, func(t *rapid.T) {
		s, now := State{Keyspace: ks}, noon
		s = fold(s, "", now, registered)
		revoked := false
		for i := range rapid.IntRange(1, 30).Draw(t, "commands") {
			now = now.Add(time.Duration(rapid.IntRange(0, 7200).Draw(t, "seconds")) * time.Second)
			secret := hashOf(string(rune('a' + i)))
			c := rapid.SampledFrom([]Command{
				CreateKey{ID: "key_1", Name: "k", Secret: secret},
				CreateKey{ID: "key_1", Name: "k", ExpiresIn: new(Duration(time.Hour)), Secret: secret},
				UpdateKey{Name: new("n")}, UpdateKey{ExpiresAt: new(events.At(now.Add(time.Hour)))}, UpdateKey{Plan: new("large")},
				RotateKey{Secret: secret}, RotateKey{Secret: secret, Grace: new(Duration(time.Hour)), EndGrace: i%2 == 0},
				EndGrace{}, RevokeKey{}, DeleteKey{},
			}).Draw(t, "command")
			facts, err := Decide(s, c, now)
			if err != nil {
				if _, ok := errors.AsType[*Refusal](err); !ok {
					t.Fatalf("%T: %v is no refusal", c, err)
				}
				continue
			}
			for _, f := range facts {
				before := s
				s = fold(s, "key_1", now, f)
				if before.Key == s.Key && before.Owner == s.Owner {
					t.Fatalf("%T caused %T, which did not hold", c, f)
				}
			}
			if revoked && !s.Key.Revoked() {
				t.Fatalf("%T brought a revoked key back", c)
			}
			revoked = s.Key != nil && s.Key.Revoked()
		}
	})
}

func TestTheFirstFactAtAVersionWins(t *testing.T) {
	s := given(t, registered, made)
	second := events.New(events.KeyRevoked{}, noon)
	second.Keyspace, second.Owner, second.Key, second.KeyVersion = "parcelbird", "acme", "key_1", 1
	after := Evolve(s, events.Record{Sequence: 9, Event: second})
	if after.Key.Revoked() || after.Key.Version != 1 {
		t.Error("A second fact at version 1 changed the key.")
	}
	if after.Key.Sequence != 9 {
		t.Errorf("The next append would expect sequence %d and conflict for ever: the void fact stands at 9.", after.Key.Sequence)
	}
	foreign := second
	foreign.Owner, foreign.KeyVersion = "other", 2
	if Evolve(s, events.Record{Sequence: 10, Event: foreign}).Key != s.Key {
		t.Error("A fact on another owner's subject touched the key.")
	}
}

func TestGraces(t *testing.T) {
	until := func(h int) events.Time { return events.At(noon.Add(time.Duration(h) * time.Hour)) }
	s := given(t, registered, made,
		events.KeyRotated{Secret: hashOf("two"), GraceUntil: until(5)},
		events.KeyRotated{Secret: hashOf("three"), GraceUntil: until(2)})
	if got := s.Key.GraceUntil(until(1)); got != until(5) {
		t.Errorf("Rotating during a grace shortened it to %v.", got)
	}
	s = fold(s, "key_1", noon.Add(time.Hour), events.KeyRotated{Secret: hashOf("four"), GraceUntil: until(3), EndGrace: true})
	if got := s.Key.GraceUntil(until(1)); got != until(3) {
		t.Errorf("With end_grace the earlier graces end; the key works with old secrets until %v.", got)
	}
	s = fold(s, "key_1", noon.Add(2*time.Hour), events.KeyGraceEnded{})
	if got := s.Key.GraceUntil(until(2)); got != 0 {
		t.Errorf("After the grace was ended an old secret still works until %v.", got)
	}
	if n := len(s.Key.Earlier); n != 3 {
		t.Errorf("%d earlier secrets are known, want all 3: each must be SUPERSEDED, not unknown.", n)
	}
}

func TestACustomersKeyMakesNothingBeyondItself(t *testing.T) {
	ks := product(t)
	own := &Key{ID: "key_0", ExpiresAt: events.At(noon.Add(time.Hour)), Grant: &Grant{
		Keyspace: "parcelbird", Owner: "acme", Environment: "live", Scopes: []string{"parcels:read", "keys:manage"},
		Resources: []string{"d1"}, Limits: events.Limits{"minute": 10}, AllowedOrigins: []string{"https://a.example"}}}
	a := AuthorityOf(own, ks)
	if !a.May(KeysCreate) || a.May(KeysDelete) || a.May(KeysUpdate) || a.May(Configure) {
		t.Error("It may do what its scopes grant and nothing else.")
	}
	if a.Reaches("parcelbird", "other") || a.Reaches("other", "acme") || !a.Reaches("parcelbird", "acme") {
		t.Error("It reaches its own keyspace and owner alone.")
	}
	fits := events.KeyCreated{Environment: "live", Scopes: []string{"parcels:read"}, Resources: []string{"d1"},
		Limits: events.Limits{"minute": 10}, AllowedOrigins: []string{"https://a.example"}, ExpiresAt: own.ExpiresAt}
	if err := a.Covers(nil, []events.Payload{fits}); err != nil {
		t.Errorf("A key like itself: %v", err)
	}
	for what, change := range map[string]func(*events.KeyCreated){
		"scopes":      func(c *events.KeyCreated) { c.Scopes = []string{"parcels:write"} },
		"resources":   func(c *events.KeyCreated) { c.Resources = nil },
		"limits":      func(c *events.KeyCreated) { c.Limits = nil },
		"more limits": func(c *events.KeyCreated) { c.Limits = events.Limits{"minute": 11} },
		"origins":     func(c *events.KeyCreated) { c.AllowedOrigins = nil },
		"expiry":      func(c *events.KeyCreated) { c.ExpiresAt = 0 },
		"environment": func(c *events.KeyCreated) { c.Environment = "test" },
		"plan":        func(c *events.KeyCreated) { c.Plan = "large" },
	} {
		c := fits
		change(&c)
		if a.Covers(nil, []events.Payload{c}) == nil {
			t.Errorf("It made a key that exceeds its own %s.", what)
		}
	}
}
