package queries

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
)

var start = time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC)

// filled is a database whose read models hold what is given to it.
type filled struct {
	*Queries
	t    testing.TB
	conn *pgx.Conn
	keys map[string]*domain.Key
	seq  uint64
	page uint64
}

func fill(t testing.TB) *filled {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	c := pool.Config().ConnConfig.Copy()
	c.RuntimeParams["search_path"] = "keyledger"
	conn, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return &filled{New(pool), t, conn, map[string]*domain.Key{}, 0, 0}
}

func (f *filled) apply(p projections.Projection, batch ...events.Record) {
	f.t.Helper()
	tx, err := f.conn.Begin(f.t.Context())
	if err == nil {
		if err = p.Apply(f.t.Context(), tx, batch); err == nil {
			err = tx.Commit(f.t.Context())
		}
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// fact appends to the read model of keys, n seconds after the start.
func (f *filled) fact(n int, keyspace, owner, key string, version uint64, data events.Payload) {
	f.t.Helper()
	f.seq++
	e := events.New(data, start.Add(time.Duration(n)*time.Second))
	e.Keyspace, e.Owner, e.Key, e.KeyVersion, e.Actor = keyspace, owner, key, version, events.Actor{Type: "root_key", ID: "key_root"}
	r := events.Record{Stream: events.Ledger, Sequence: f.seq, Subject: events.Subject(keyspace, owner, key), Event: e}
	if key != "" {
		f.keys[key] = domain.Evolve(domain.State{Key: f.keys[key]}, r).Key
	}
	f.apply(projections.Keys{}, r)
}

func (f *filled) use(key string, at time.Time, status *int, latency int64, secret string) {
	f.t.Helper()
	f.page++
	e := events.New(events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: "/v1/parcels", Status: status, LatencyMS: &latency, CostMicros: 2, Secret: secret, Environment: "live"}, at)
	e.Keyspace, e.Owner, e.Key = "parcelbird", "o1", key
	f.apply(projections.Usage{}, events.Record{Stream: events.Usage, Sequence: f.page, Event: e})
}

func (f *filled) list(filter KeyFilter, now time.Time) []string {
	f.t.Helper()
	var ids []string
	for {
		keys, next, err := f.ListKeys(f.t.Context(), filter, now)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, k := range keys {
			ids = append(ids, k.ID)
		}
		if next == "" {
			return ids
		}
		filter.Cursor = next
	}
}

func secret(first, last string) events.Secret { return events.Secret{First: first, Last: last} }

func sample(t testing.TB) *filled {
	f := fill(t)
	f.fact(0, "parcelbird", "", "", 1, events.KeyspaceConfigured{DocumentVersion: 1, Document: json.RawMessage(`{"keyspace":"parcelbird","last_used":"successful","plans":{"basic":{"max_keys":2}}}`)})
	f.fact(0, "parcelbird", "o1", "", 1, events.OwnerRegistered{Name: "One", Plan: "basic"})
	f.fact(0, "parcelbird", "o2", "", 1, events.OwnerRegistered{Name: "Two", Plan: "large"})
	f.fact(1, "parcelbird", "o1", "key_a", 1, events.KeyCreated{Name: "CI Pipeline", Environment: "live", Scopes: []string{"parcels:read"}, Secret: secret("pb_live_aaaa", "a111"), Meta: map[string]string{"team": "x"}})
	f.fact(2, "parcelbird", "o1", "key_b", 1, events.KeyCreated{Name: "old", Environment: "test", ExpiresAt: events.At(start.Add(time.Hour)), Limits: events.Limits{"minute": 5}, Secret: secret("pb_test_bbbb", "b222")})
	f.fact(3, "parcelbird", "o2", "key_c", 1, events.KeyCreated{Name: "leaked", Environment: "live", Resources: []string{"depot_1"}, Secret: secret("pb_live_cccc", "c333")})
	f.fact(4, "parcelbird", "o2", "key_c", 2, events.KeyRevoked{Reason: "leaked"})
	f.fact(5, "parcelbird", "o1", "key_d", 1, events.KeyCreated{Name: "gone", Environment: "live", Secret: secret("pb_live_dddd", "d444")})
	f.fact(6, "parcelbird", "o1", "key_d", 2, events.KeyRevoked{})
	f.fact(7, "parcelbird", "o1", "key_d", 3, events.KeyDeleted{})
	f.fact(8, "wind", "o1", "key_e", 1, events.KeyCreated{Name: "other product", Environment: "live", Secret: secret("wd_eeee", "")})
	f.fact(9, "keyledger", "", "key_root", 1, events.KeyCreated{Name: "root", Role: "operator", Secret: secret("klr_1234", "")})
	return f
}

// Each filter answers the keys it names, newest first; deleted keys never, root
// keys only where their keyspace is asked for.
func TestListKeys(t *testing.T) {
	f := sample(t)
	f.use("key_a", start.Add(10*time.Minute), new(200), 5, "current")
	f.use("key_b", start.Add(10*time.Minute), new(500), 5, "current") // does not count as a use where only successful ones do
	now := start.Add(2 * time.Hour)
	for _, c := range []struct {
		filter KeyFilter
		want   string
	}{
		{KeyFilter{}, "key_e key_c key_b key_a"},
		{KeyFilter{Keyspace: "parcelbird"}, "key_c key_b key_a"},
		{KeyFilter{Keyspace: "keyledger"}, "key_root"},
		{KeyFilter{Owner: "o1"}, "key_e key_b key_a"},
		{KeyFilter{Status: "active"}, "key_e key_a"},
		{KeyFilter{Status: "expired"}, "key_b"},
		{KeyFilter{Status: "revoked"}, "key_c"},
		{KeyFilter{Status: "rate_limited", Limited: []string{"key_a", "key_b", "key_c"}}, "key_a"},
		{KeyFilter{Status: "rate_limited"}, ""},
		{KeyFilter{Scope: "parcels:read"}, "key_a"},
		{KeyFilter{Resource: "depot_1"}, "key_c"},
		{KeyFilter{Environment: "test"}, "key_b"},
		{KeyFilter{Q: "pipe"}, "key_a"},
		{KeyFilter{Q: "pb_live"}, "key_c key_a"},
		{KeyFilter{Q: "222"}, "key_b"},
		{KeyFilter{Q: "%"}, ""},
		{KeyFilter{ExpiresBefore: events.At(now)}, "key_b"},
		{KeyFilter{UnusedSince: events.At(start.Add(5 * time.Minute))}, "key_e key_c key_b"},
		{KeyFilter{UnusedSince: events.At(start.Add(3 * time.Second))}, "key_b"},
		{KeyFilter{Limit: 1}, "key_e key_c key_b key_a"},
	} {
		if got := strings.Join(f.list(c.filter, now), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.filter, got, c.want)
		}
	}
	if got := f.list(KeyFilter{Status: "active", Owner: "o1", Keyspace: "parcelbird"}, start.Add(time.Minute)); len(got) != 2 {
		t.Errorf("before its expiry a key is active: %v", got)
	}
}

// A key from PostgreSQL reads exactly as one from memory, but for its uses.
func TestViewsAgree(t *testing.T) {
	f := sample(t)
	f.fact(20, "parcelbird", "o1", "key_a", 2, events.KeyRotated{Secret: secret("pb_live_new", "n999"), GraceUntil: events.At(start.Add(3 * time.Hour))})
	for _, now := range []time.Time{start.Add(time.Minute), start.Add(24 * time.Hour)} {
		for id, k := range f.keys {
			got, err := f.Key(t.Context(), id, now)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(ViewOf(k, now), got); d != "" {
				t.Errorf("%s (-memory +PostgreSQL):\n%s", id, d)
			}
		}
	}
	if _, err := f.Key(t.Context(), "key_unknown", start); !refused(err, "KEY_NOT_FOUND") {
		t.Errorf("an unknown key: %v", err)
	}
	v, err := f.Key(t.Context(), "key_root", start)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"key_root","keyspace":"keyledger","owner":"","name":"root","display":"klr_1234...","environment":"","status":"active","plan":"","scopes":[],"resources":[],"limits":{},"allowed_origins":[],"allowed_ips":[],"meta":{},"created_at":"2026-01-18T12:00:09.000Z","created_by":{"type":"root_key","id":"key_root"},"expires_at":null,"rotated_at":null,"grace_until":null,"revoked_at":null,"revoke_reason":"","last_used_at":null,"use_count":0,"version":1,"role":"operator"}`
	if string(b) != want {
		t.Errorf("a key is\n%s\nwant\n%s", b, want)
	}
}

func refused(err error, code string) bool {
	r, ok := errors.AsType[*domain.Refusal](err)
	return ok && r.Code == code
}

// Pages neither repeat nor leave out a key, although many were created in the
// same millisecond and new ones come while paging.
func TestPaging(t *testing.T) {
	f := fill(t)
	var batch []events.Record
	for i := range 100 {
		e := events.New(events.KeyCreated{Name: fmt.Sprint(i)}, start.Add(time.Duration(i/20)*time.Second))
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "o1", events.NewID("key", start), 1
		batch = append(batch, events.Record{Stream: events.Ledger, Sequence: uint64(i + 1), Event: e})
	}
	f.apply(projections.Keys{}, batch...)
	first, next, err := f.ListKeys(t.Context(), KeyFilter{Keyspace: "parcelbird", Limit: 30}, start)
	if err != nil {
		t.Fatal(err)
	}
	f.fact(1000, "parcelbird", "o1", "key_later", 1, events.KeyCreated{Name: "later"})
	ids := map[string]bool{}
	for _, k := range first {
		ids[k.ID] = true
	}
	for _, id := range f.list(KeyFilter{Keyspace: "parcelbird", Limit: 7, Cursor: next}, start) {
		if ids[id] {
			t.Errorf("%s came twice", id)
		}
		ids[id] = true
	}
	if len(ids) != 100 || ids["key_later"] {
		t.Errorf("%d keys in all pages, want 100", len(ids))
	}
}

// What makes no sense is refused, and no cursor but one's own is taken.
func TestRefusals(t *testing.T) {
	f := sample(t)
	_, next, err := f.ListKeys(t.Context(), KeyFilter{Limit: 1}, start)
	if err != nil || next == "" {
		t.Fatal(next, err)
	}
	for name, filter := range map[string]KeyFilter{
		"status": {Status: "sleeping"}, "limit": {Limit: -1}, "large limit": {Limit: 1001}, "NUL": {Q: "a\x00"},
		"cursor of another filter": {Limit: 1, Owner: "o1", Cursor: next},
		"cut cursor":               {Limit: 1, Cursor: next[:len(next)-1]},
		"no cursor":                {Cursor: "AAAA"}, "text": {Cursor: "' or 1=1"}, "long": {Cursor: strings.Repeat("A", 1<<20)},
	} {
		if _, _, err := f.ListKeys(t.Context(), filter, start); !refused(err, "INVALID") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range len(next) {
		forged := []byte(next)
		forged[i] ^= byte(1 + rand.IntN(3))
		if _, _, err := f.ListKeys(t.Context(), KeyFilter{Limit: 1, Cursor: string(forged)}, start); !refused(err, "INVALID") {
			t.Errorf("a cursor changed at %d: %v", i, err)
		}
	}
	if _, err := f.Usage(t.Context(), UsageFilter{}, "week", nil); !refused(err, "INVALID") {
		t.Errorf("bucket week: %v", err)
	}
	if _, err := f.Usage(t.Context(), UsageFilter{}, "", []string{"1; drop table x"}); !refused(err, "INVALID") {
		t.Errorf("group by SQL: %v", err)
	}
}

// A key is found by what somebody saw of its secret, be it shorter or longer
// than what was kept.
func TestLookup(t *testing.T) {
	f := sample(t)
	for _, c := range []struct{ first, last, want string }{
		{"pb_live_aaaa", "", "key_a"},
		{"pb_live_", "", "key_c key_a"},
		{"pb_live_aaaaZZZZZ", "", "key_a"},
		{"", "111", "key_a"},
		{"", "zzza111", "key_a"},
		{"pb_live_", "c333", "key_c"},
		{"pb_live_aaaa", "c333", ""},
		{"pb_live_dddd", "", ""}, // deleted
		{"wd_", "", ""},          // another keyspace
		{"nul\x00", "", ""},
	} {
		keys, err := f.Lookup(t.Context(), "parcelbird", c.first, c.last, start)
		var ids []string
		for _, k := range keys {
			ids = append(ids, k.ID)
		}
		if err != nil || strings.Join(ids, " ") != c.want {
			t.Errorf("Lookup(%q, %q) = %v, %v, want %q", c.first, c.last, ids, err, c.want)
		}
	}
	if _, err := f.Lookup(t.Context(), "parcelbird", "", "", start); !refused(err, "INVALID") {
		t.Errorf("lookup by nothing: %v", err)
	}
}

// The last use follows the keyspace's rule; uses of a rotated-away secret are
// told apart, and forgotten at the next rotation.
func TestExtras(t *testing.T) {
	f := sample(t)
	f.fact(20, "parcelbird", "o1", "key_a", 2, events.KeyRotated{Secret: secret("x", "y"), GraceUntil: events.At(start.Add(3 * time.Hour))})
	f.use("key_a", start.Add(time.Minute), new(200), 5, "previous")
	f.use("key_a", start.Add(2*time.Minute), new(404), 5, "current")
	f.use("key_a", start.Add(3*time.Minute), nil, 5, "current")
	x, err := f.Extras(t.Context(), "key_a", "key_b", "key_zzz")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Extra{"key_a": {events.At(start.Add(time.Minute)), 3, "current", events.At(start.Add(time.Minute))}}
	if d := cmp.Diff(want, x); d != "" {
		t.Error(d)
	}
	f.fact(600, "parcelbird", "o1", "key_a", 3, events.KeyRotated{Secret: secret("x", "y")})
	if x, err = f.Extras(t.Context(), "key_a"); err != nil || x["key_a"].PreviousUsedAt != 0 {
		t.Errorf("after another rotation: %+v, %v", x, err)
	}
}

// The cap of the owner's plan and its active keys stand beside it.
func TestOwners(t *testing.T) {
	f := sample(t)
	owners, next, err := f.ListOwners(t.Context(), "parcelbird", 1, "", start.Add(time.Minute))
	if err != nil || len(owners) != 1 || owners[0].ID != "o1" || owners[0].ActiveKeys != 2 || *owners[0].MaxKeys != 2 {
		t.Fatalf("%+v, %v", owners, err)
	}
	owners, next, err = f.ListOwners(t.Context(), "parcelbird", 1, next, start)
	if err != nil || len(owners) != 1 || owners[0].ID != "o2" || owners[0].MaxKeys != nil || owners[0].ActiveKeys != 0 || next != "" {
		t.Fatalf("%+v, %q, %v", owners, next, err)
	}
	if _, err := f.Owner(t.Context(), "wind", "o2", start); !refused(err, "OWNER_NOT_FOUND") {
		t.Errorf("an owner of another keyspace: %v", err)
	}
}

// Figures add up over every grouping, and the percentiles of Go, of SQL and of
// the sample agree as far as classes can tell.
func TestUsage(t *testing.T) {
	f := sample(t)
	for i := range int64(100) {
		f.use("key_a", start.Add(time.Duration(i)*time.Second), new(200+int(i%2)*300), i+1, "current")
	}
	f.use("key_b", start.Add(time.Hour), nil, 5, "current")
	denied := events.New(events.KeyDenied{Code: "EXPIRED", Endpoint: "/v1/parcels", Fold: events.Fold{Count: 7, First: events.At(start), Last: events.At(start)}}, start)
	denied.Keyspace, denied.Owner, denied.Key = "parcelbird", "o1", "key_b"
	limited := events.New(events.KeyRateLimited{Window: "minute", Fold: events.Fold{Count: 5, First: events.At(start), Last: events.At(start)}}, start)
	limited.Keyspace, limited.Owner, limited.Key = "parcelbird", "o1", "key_a"
	f.apply(projections.Usage{}, events.Record{Stream: events.Usage, Sequence: 1000, Event: denied}, events.Record{Stream: events.Usage, Sequence: 1000, Line: 1, Event: limited})

	total, err := f.Usage(t.Context(), UsageFilter{Keyspace: "parcelbird"}, "", nil)
	if err != nil || len(total) != 1 {
		t.Fatal(total, err)
	}
	r := total[0]
	if r.Requests != 113 || r.Successes != 50 || r.Errors != 50 || r.Unknown != 1 || r.Denied != 7 || r.RateLimited != 5 || r.CostMicros != 202 || *r.AverageMS != 50.5 {
		t.Errorf("total %+v", r)
	}
	for p, got := range map[float64]*float64{50: r.P50MS, 95: r.P95MS, 99: r.P99MS} {
		if *got < p-15 || *got > p+15 {
			t.Errorf("p%g = %g", p, *got)
		}
	}
	var p95 float64
	if err := f.conn.QueryRow(t.Context(), `select analytics.percentile(0.95, analytics.add_up(histogram)) from analytics.usage_minute`).Scan(&p95); err != nil || p95 != *r.P95MS {
		t.Errorf("p95 is %g in SQL, %g in Go, %v", p95, *r.P95MS, err)
	}
	for _, c := range []struct {
		bucket string
		by     []string
		rows   int
	}{
		{"minute", nil, 3}, {"hour", nil, 2}, {"day", nil, 1},
		{"", []string{"key"}, 2}, {"", []string{"status"}, 3}, {"", []string{"code"}, 3}, {"", []string{"endpoint"}, 3}, {"day", []string{"owner", "code", "status"}, 5},
	} {
		rows, err := f.Usage(t.Context(), UsageFilter{From: events.At(start), To: events.At(start.Add(2 * time.Hour))}, c.bucket, c.by)
		sum := int64(0)
		for _, r := range rows {
			sum += r.Requests
		}
		if err != nil || len(rows) != c.rows || sum != 113 {
			t.Errorf("bucket %q by %v: %d rows, %d requests, %v", c.bucket, c.by, len(rows), sum, err)
		}
	}
	if rows, err := f.Usage(t.Context(), UsageFilter{Owner: "o2"}, "hour", nil); err != nil || len(rows) != 0 {
		t.Errorf("usage of another owner: %v, %v", rows, err)
	}
}
