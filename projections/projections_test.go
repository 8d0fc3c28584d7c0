package projections

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
)

// database is a migrated database of the test's own.
func database(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return pool
}

// connection is one as a projection has it, with a runner that has no ledger.
func connection(t testing.TB, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	conn, err := newRunner(nil, pool, slog.Default(), nil).connect(t.Context(), "keyledger")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeConn(conn) })
	return conn
}

var start = time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC)

// world draws facts, most of which hold, and folds them as everybody does.
type world struct {
	t      *rapid.T
	n      uint64
	spaces map[string]*domain.Keyspace
	owners map[ownerID]*domain.Owner
	keys   map[string]*domain.Key
	void   map[uint64]bool
}

func (w *world) next() events.Record {
	ks := rapid.SampledFrom([]string{"parcelbird", "wind"}).Draw(w.t, "keyspace")
	owner := rapid.SampledFrom([]string{"o1", "o2"}).Draw(w.t, "owner")
	key := fmt.Sprintf("key_%s", rapid.SampledFrom([]string{"a", "b", "c"}).Draw(w.t, "key"))
	w.n++
	now := start.Add(time.Duration(w.n) * time.Second)
	s := domain.State{Keyspace: w.spaces[ks], Owner: w.owners[ownerID{ks, owner}], Key: w.keys[key]}
	var e events.Envelope
	version := uint64(0)
	text := rapid.SampledFrom([]string{"", "a", `quote " backslash \ brace {},`, "NULL", "nul \x00", "\u00e9\u202e", `\u0000`})
	list := rapid.SliceOfN(text, 0, 3)
	limits := rapid.MapOfN(rapid.SampledFrom([]string{"minute", "hour", "day"}), rapid.Int64Range(0, 1<<53), 0, 3)
	switch kind := rapid.IntRange(0, 11).Draw(w.t, "kind"); kind {
	case 0:
		e = events.New(events.KeyspaceConfigured{DocumentVersion: int(w.n), Document: json.RawMessage(`{"keyspace":"` + ks + `","last_used":"successful","about":"\u0000"}`)}, now)
		owner, key = "", ""
		if s.Keyspace != nil {
			version = uint64(s.Keyspace.Version)
		}
	case 1, 2, 3:
		key = ""
		if s.Owner != nil {
			version = uint64(s.Owner.Version)
		}
		e = []events.Envelope{
			events.New(events.OwnerRegistered{Name: text.Draw(w.t, "name"), Plan: "basic"}, now),
			events.New(events.OwnerPlanChanged{Plan: "large", Previous: "basic"}, now),
			events.New(events.OwnerKeyAdmitted{Key: "key_a", ActiveKeys: 1, MaxKeys: 2}, now),
		}[kind-1]
	default:
		if s.Key != nil {
			version = uint64(s.Key.Version)
		}
		secret := events.Secret{First: "pb_live_1234", Last: text.Draw(w.t, "last")}
		created := events.KeyCreated{Name: text.Draw(w.t, "name"), Environment: "live", Plan: text.Draw(w.t, "plan"),
			Scopes: list.Draw(w.t, "scopes"), Resources: list.Draw(w.t, "resources"), Limits: limits.Draw(w.t, "limits"),
			AllowedOrigins: list.Draw(w.t, "origins"), AllowedIPs: list.Draw(w.t, "ips"),
			ExpiresAt: events.Time(rapid.SampledFrom([]int64{0, 1_800_000_000_123}).Draw(w.t, "expires")),
			Meta:      rapid.MapOfN(text, text, 0, 2).Draw(w.t, "meta"), Secret: secret}
		if rapid.Bool().Draw(w.t, "manager") {
			created.Role, created.For = "manager", &events.Reach{Keyspace: ks, Owner: owner}
		}
		switch kind {
		case 4, 5, 6:
			e = events.New(created, now)
		case 7:
			e = events.New(events.KeyUpdated{Name: &created.Name, Scopes: &created.Scopes, Limits: &created.Limits, Meta: &created.Meta, ExpiresAt: &events.Expiry{At: created.ExpiresAt}}, now)
		case 8:
			e = events.New(events.KeyRotated{Secret: secret, GraceUntil: events.At(now.Add(time.Hour)), EndGrace: rapid.Bool().Draw(w.t, "end")}, now)
		case 9:
			e = events.New(events.KeyGraceEnded{}, now)
		case 10:
			e = events.New(events.KeyRevoked{Reason: text.Draw(w.t, "reason")}, now)
		case 11:
			e = events.New(events.KeyDeleted{}, now)
		}
	}
	e.Keyspace, e.Owner, e.Key = ks, owner, key
	e.KeyVersion = version + rapid.SampledFrom([]uint64{1, 1, 1, 1, 0, 2}).Draw(w.t, "version")
	e.Actor = events.Actor{Type: "root_key", ID: "key_root"}
	body, err := events.Encode(e)
	if err != nil {
		w.t.Fatal(err)
	}
	r := events.Record{Stream: events.Ledger, Sequence: w.n, Subject: events.Subject(ks, owner, key), Body: body, Event: e}
	w.void[w.n] = !domain.Holds(s, e)
	s = domain.Evolve(s, r)
	switch {
	case key != "" && s.Key != nil:
		w.keys[key] = s.Key
	case key == "" && owner != "" && s.Owner != nil:
		w.owners[ownerID{ks, owner}] = s.Owner
	case owner == "" && s.Keyspace != nil:
		w.spaces[ks] = s.Keyspace
	}
	return r
}

// However the stream is cut into batches, the rows are what the fold of the
// same records in memory says, and the copy knows which facts are void.
func TestRowsAreTheFold(t *testing.T) {
	conn := connection(t, database(t))
	rapid.Check(t, func(rt *rapid.T) {
		ctx := t.Context()
		tx, err := conn.Begin(ctx)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = tx.Rollback(ctx) }()
		w := &world{rt, 0, map[string]*domain.Keyspace{}, map[ownerID]*domain.Owner{}, map[string]*domain.Key{}, map[uint64]bool{}}
		for range rapid.IntRange(1, 8).Draw(rt, "batches") {
			var batch []events.Record
			for range rapid.IntRange(1, 8).Draw(rt, "records") {
				batch = append(batch, w.next())
			}
			for _, p := range []Projection{Keys{}, LedgerCopy{}} {
				if err := p.Apply(ctx, tx, batch); err != nil {
					rt.Fatalf("%s: %v", p.Name(), err)
				}
			}
		}
		want := map[string]keyRow{}
		for id, k := range w.keys {
			r := rowOf(k)
			r.Scopes, r.Resources, r.AllowedOrigins, r.AllowedIPs = cleaned(r.Scopes), cleaned(r.Resources), cleaned(r.AllowedOrigins), cleaned(r.AllowedIPs)
			meta := map[string]string{}
			for k, v := range r.Meta {
				meta[clean(k)] = clean(v)
			}
			r.Meta = meta
			want[id] = r
		}
		got := map[string]keyRow{}
		for _, r := range collect[keyRow](rt, ctx, tx, `select * from keys_v1`) {
			got[r.ID] = r
		}
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateApproxTime(0)); d != "" {
			rt.Fatalf("keys (-fold +rows):\n%s", d)
		}
		wantOwners, gotOwners := map[ownerID]string{}, map[ownerID]string{}
		for id, o := range w.owners {
			wantOwners[id] = fmt.Sprint(clean(o.Name), o.Plan, o.CreatedAt, o.Version)
		}
		for _, o := range collect[ownerRow](rt, ctx, tx, `select * from owners_v1`) {
			gotOwners[ownerID{o.Keyspace, o.ID}] = fmt.Sprint(o.Name, o.Plan, events.At(o.CreatedAt), o.Version)
		}
		if d := cmp.Diff(wantOwners, gotOwners); d != "" {
			rt.Fatalf("owners (-fold +rows):\n%s", d)
		}
		type space struct {
			ID              string
			Version         int64
			DocumentVersion int32
		}
		wantSpaces := map[string]space{}
		for id, s := range w.spaces {
			wantSpaces[id] = space{id, int64(s.Version), int32(s.DocumentVersion)}
		}
		gotSpaces := map[string]space{}
		for _, s := range collect[space](rt, ctx, tx, `select id, version, document_version from keyspaces_v1`) {
			gotSpaces[s.ID] = s
		}
		if d := cmp.Diff(wantSpaces, gotSpaces); d != "" {
			rt.Fatalf("keyspaces (-fold +rows):\n%s", d)
		}
		type copied struct {
			Sequence int64
			Void     bool
		}
		for _, c := range collect[copied](rt, ctx, tx, `select sequence, void from ledger_v1`) {
			if c.Void != w.void[uint64(c.Sequence)] {
				rt.Fatalf("sequence %d: void = %v in the copy", c.Sequence, c.Void)
			}
			delete(w.void, uint64(c.Sequence))
		}
		if len(w.void) > 0 {
			rt.Fatalf("not copied: %v", w.void)
		}
	})
}

func cleaned(list []string) (out []string) {
	for _, s := range list {
		out = append(out, clean(s))
	}
	return out
}

func collect[T any](t interface{ Fatal(...any) }, ctx context.Context, tx pgx.Tx, sql string) []T {
	rows, err := tx.Query(ctx, sql)
	if err == nil {
		var list []T
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByName[T]); err == nil {
			return list
		}
	}
	t.Fatal(err)
	return nil
}

// Many rows go another way into the table than few; both leave the same rows.
func TestManyRowsAsFew(t *testing.T) {
	conn := connection(t, database(t))
	var facts []events.Record
	add := func(i int, version uint64, data events.Payload) {
		e := events.New(data, start.Add(time.Duration(len(facts))*time.Millisecond))
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "o1", fmt.Sprintf("key_%04d", i), version
		facts = append(facts, events.Record{Stream: events.Ledger, Sequence: uint64(len(facts) + 1), Event: e})
	}
	const keys = 2 * worthCopying
	odd := []string{`quote " backslash \ brace {},`, "NULL", "nul \x00", ""}
	for i := range keys {
		created := events.KeyCreated{Name: odd[i%4], Scopes: odd[:i%4], Resources: odd[i%4:], AllowedOrigins: odd, Limits: events.Limits{"minute": int64(i)}, Meta: map[string]string{odd[i%4]: odd[(i+1)%4]},
			ExpiresAt: events.Time(i%2) * events.At(start), Secret: events.Secret{First: "a", Last: "\x00"}}
		if i%3 == 0 {
			created.For = &events.Reach{Keyspace: "parcelbird", Owner: "o1"}
		}
		add(i, 1, created)
	}
	for i := range keys {
		add(i, 2, events.KeyRotated{GraceUntil: events.At(start.Add(time.Hour))})
		if i%2 == 0 {
			add(i, 3, events.KeyRevoked{Reason: odd[i%4]})
		}
	}
	rows := func(size int) (hash string) {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		for batch := range slices.Chunk(facts, size) {
			if err := (Keys{}).Apply(t.Context(), tx, batch); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.QueryRow(t.Context(), `select count(*) || ' ' || md5(string_agg(k::text, ',' order by id)) from keys_v1 k`).Scan(&hash); err != nil {
			t.Fatal(err)
		}
		return hash
	}
	want := rows(7)
	for _, size := range []int{worthCopying + 1, keys, 3 * keys} {
		if got := rows(size); got != want {
			t.Errorf("in batches of %d the rows are %s, want %s", size, got, want)
		}
	}
}
