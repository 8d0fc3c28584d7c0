package projections

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Keys folds LEDGER into one row per key, owner and keyspace, with the fold of
// the domain: it loads whoever a batch is about, evolves them and writes them
// back.
type Keys struct{}

// Name is keys_v1.
func (Keys) Name() string { return "keys_v1" }

// Stream is LEDGER.
func (Keys) Stream() string { return events.Ledger }

// Tables are keyspaces_v1, owners_v1 and keys_v1.
func (Keys) Tables() []Table {
	return []Table{{"keyspaces_v1", true}, {"owners_v1", true}, {"keys_v1", true}}
}

type ownerID struct{ Keyspace, ID string }

// Apply folds a batch.
func (Keys) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	keys := map[string]*domain.Key{}
	owners := map[ownerID]*domain.Owner{}
	spaces := map[string]*domain.Keyspace{}
	for _, r := range batch {
		switch e := r.Event; e.Data.(type) {
		case events.KeyspaceConfigured:
			spaces[e.Keyspace] = nil
		case events.OwnerRegistered, events.OwnerPlanChanged, events.OwnerKeyAdmitted:
			owners[ownerID{e.Keyspace, e.Owner}] = nil
		case events.KeyCreated, events.KeyUpdated, events.KeyRotated, events.KeyGraceEnded, events.KeyRevoked, events.KeyDeleted:
			keys[e.Key] = nil
		default:
			return fmt.Errorf("%s does not belong in %s", e.Type, r.Stream)
		}
	}
	if err := load(ctx, tx, keys, owners, spaces); err != nil {
		return err
	}
	stored := map[string]bool{}
	for id, k := range keys {
		stored[id] = k != nil
	}
	documents := map[string]json.RawMessage{}
	for _, r := range batch {
		switch e := r.Event; d := e.Data.(type) {
		case events.KeyspaceConfigured:
			before := spaces[e.Keyspace]
			after := domain.Evolve(domain.State{Keyspace: before}, r).Keyspace
			if after != before && (before == nil || after.Version != before.Version) {
				documents[e.Keyspace] = d.Document
			}
			spaces[e.Keyspace] = after
		case events.OwnerRegistered, events.OwnerPlanChanged, events.OwnerKeyAdmitted:
			id := ownerID{e.Keyspace, e.Owner}
			owners[id] = domain.Evolve(domain.State{Owner: owners[id]}, r).Owner
		default:
			keys[e.Key] = domain.Evolve(domain.State{Key: keys[e.Key]}, r).Key
		}
	}
	return store(ctx, tx, keys, stored, owners, spaces, documents)
}

// load fills in those that have rows.
func load(ctx context.Context, tx pgx.Tx, keys map[string]*domain.Key, owners map[ownerID]*domain.Owner, spaces map[string]*domain.Keyspace) error {
	ids, err := mayBeStored(ctx, tx, `select max(id) from keys_v1`, keys)
	if err != nil {
		return err
	}
	var b pgx.Batch
	if len(ids) > 0 {
		b.Queue(`select * from keys_v1 where id = any($1)`, ids).Query(func(rows pgx.Rows) error {
			found, err := pgx.CollectRows(rows, pgx.RowToStructByName[keyRow])
			for i := range found {
				k := found[i].key()
				keys[k.ID] = k
			}
			return err
		})
	}
	if len(owners) > 0 {
		ids := sortedOwners(owners)
		b.Queue(`select o.* from owners_v1 o join unnest($1::text[], $2::text[]) as w(keyspace, id) using (keyspace, id)`,
			column(ids, func(o *ownerID) string { return o.Keyspace }),
			column(ids, func(o *ownerID) string { return o.ID })).Query(func(rows pgx.Rows) error {
			found, err := pgx.CollectRows(rows, pgx.RowToStructByName[ownerRow])
			for _, o := range found {
				owners[ownerID{o.Keyspace, o.ID}] = &domain.Owner{Keyspace: o.Keyspace, ID: o.ID, Name: o.Name, Plan: o.Plan,
					CreatedAt: events.At(o.CreatedAt), Version: uint32(o.Version)}
			}
			return err
		})
	}
	if len(spaces) > 0 {
		b.Queue(`select id, version from keyspaces_v1 where id = any($1)`, slices.Sorted(maps.Keys(spaces))).Query(func(rows pgx.Rows) error {
			var id string
			var version int64
			_, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error {
				spaces[id] = &domain.Keyspace{Document: &domain.Document{Keyspace: id}, Version: uint32(version)}
				return nil
			})
			return err
		})
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, &b).Close()
}

// mayBeStored are the ids, in order, of those keys that are worth a look: ids
// begin with the time they were made, so most new ones are above the greatest
// that has a row. A few are looked up in less time than it takes to ask for that.
func mayBeStored(ctx context.Context, tx pgx.Tx, greatest string, keys map[string]*domain.Key) ([]string, error) {
	ids := slices.Sorted(maps.Keys(keys))
	if len(ids) < worthCopying {
		return ids, nil
	}
	var last *string
	if err := tx.QueryRow(ctx, greatest).Scan(&last); err != nil {
		return nil, err
	}
	if last == nil {
		return nil, nil
	}
	n, _ := slices.BinarySearch(ids, *last+"\x00")
	return ids[:n], nil
}

func store(ctx context.Context, tx pgx.Tx, keys map[string]*domain.Key, stored map[string]bool, owners map[ownerID]*domain.Owner, spaces map[string]*domain.Keyspace, documents map[string]json.RawMessage) error {
	var b pgx.Batch
	if ids := slices.Sorted(maps.Keys(documents)); len(ids) > 0 {
		b.Queue(`insert into keyspaces_v1 (id, document, document_version, configured_at, version)
			select * from unnest($1::text[], $2::jsonb[], $3::int[], $4::timestamptz[], $5::bigint[])
			on conflict (id) do update set document = excluded.document, document_version = excluded.document_version,
				configured_at = excluded.configured_at, version = excluded.version`,
			ids,
			column(ids, func(id *string) string { return withoutNUL(documents[*id]) }),
			column(ids, func(id *string) int32 { return int32(spaces[*id].DocumentVersion) }),
			column(ids, func(id *string) time.Time { return spaces[*id].ConfiguredAt.Time() }),
			column(ids, func(id *string) int64 { return int64(spaces[*id].Version) }))
	}
	maps.DeleteFunc(owners, func(_ ownerID, o *domain.Owner) bool { return o == nil }) // every fact about it was void
	if ids := sortedOwners(owners); len(ids) > 0 {
		b.Queue(`insert into owners_v1 (keyspace, id, name, plan, created_at, version)
			select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::bigint[])
			on conflict (keyspace, id) do update set name = excluded.name, plan = excluded.plan, version = excluded.version`,
			column(ids, func(o *ownerID) string { return o.Keyspace }),
			column(ids, func(o *ownerID) string { return o.ID }),
			column(ids, func(o *ownerID) string { return clean(owners[*o].Name) }),
			column(ids, func(o *ownerID) string { return clean(owners[*o].Plan) }),
			column(ids, func(o *ownerID) time.Time { return owners[*o].CreatedAt.Time() }),
			column(ids, func(o *ownerID) int64 { return int64(owners[*o].Version) }))
	}
	rows := make([]keyRow, 0, len(keys))
	var old []string
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		if keys[id] == nil {
			continue // every fact about it was void
		}
		rows = append(rows, rowOf(keys[id]))
		if stored[id] {
			old = append(old, id)
		}
	}
	copying := len(rows) >= worthCopying
	switch {
	case copying && len(old) > 0:
		b.Queue(`delete from keys_v1 where id = any($1)`, old)
	case !copying && len(rows) > 0:
		queueKeys(&b, rows)
	}
	if b.Len() > 0 {
		if err := tx.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
	}
	if !copying {
		return nil
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"keys_v1"}, keyColumns, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
		r := &rows[i]
		return []any{r.ID, r.Keyspace, r.Owner, r.Name, r.Environment, r.Plan, texts(r.Scopes), texts(r.Resources), object(r.Limits),
			texts(r.AllowedOrigins), texts(r.AllowedIPs), object(r.Meta), r.Role, reach(r.Reach), r.First, r.Last,
			r.CreatedAt, r.CreatedByType, r.CreatedByID, r.ExpiresAt, r.RotatedAt, append([]time.Time{}, r.EarlierUntil...),
			r.RevokedAt, r.RevokeReason, r.DeletedAt, r.Imported, r.Version}, nil
	}))
	return err
}

// From so many rows on, deleting the old ones and copying all takes less than
// half of the time of an upsert, although it takes more round trips.
const worthCopying = 200

var keyColumns = strings.Fields(`id keyspace owner name environment plan scopes resources limits allowed_origins allowed_ips
	meta role reach first last created_at created_by_type created_by_id expires_at rotated_at earlier_until
	revoked_at revoke_reason deleted_at imported version`)

// texts is a list that PostgreSQL can hold, never nil.
func texts(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = clean(s)
	}
	return out
}

func sortedOwners(owners map[ownerID]*domain.Owner) []ownerID {
	return slices.SortedFunc(maps.Keys(owners), func(a, b ownerID) int {
		if c := strings.Compare(a.Keyspace, b.Keyspace); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
}

type ownerRow struct {
	Keyspace  string
	ID        string
	Name      string
	Plan      string
	CreatedAt time.Time
	Version   int64
}

// keyRow is a row of keys_v1.
type keyRow struct {
	ID             string
	Keyspace       string
	Owner          string
	Name           string
	Environment    string
	Plan           string
	Scopes         []string
	Resources      []string
	Limits         events.Limits
	AllowedOrigins []string
	AllowedIPs     []string `db:"allowed_ips"`
	Meta           map[string]string
	Role           string
	Reach          *events.Reach
	First          string
	Last           string
	CreatedAt      time.Time
	CreatedByType  string
	CreatedByID    string `db:"created_by_id"`
	ExpiresAt      *time.Time
	RotatedAt      *time.Time
	EarlierUntil   []time.Time
	RevokedAt      *time.Time
	RevokeReason   string
	DeletedAt      *time.Time
	Imported       bool
	Version        int64
}

// key is the state that the row holds; of secrets it knows no hash.
func (r *keyRow) key() *domain.Key {
	k := &domain.Key{
		ID: r.ID, Name: r.Name,
		Grant: &domain.Grant{
			Keyspace: r.Keyspace, Owner: r.Owner, Environment: r.Environment, Plan: r.Plan,
			Scopes: r.Scopes, Resources: r.Resources, Limits: r.Limits,
			AllowedOrigins: r.AllowedOrigins, AllowedIPs: r.AllowedIPs,
			CreatedBy: events.Actor{Type: r.CreatedByType, ID: r.CreatedByID},
			Role:      r.Role, For: r.Reach,
		},
		First: r.First, Last: r.Last,
		CreatedAt: events.At(r.CreatedAt), ExpiresAt: moment(r.ExpiresAt), Version: uint32(r.Version),
		More: &domain.More{
			Meta: r.Meta, RotatedAt: moment(r.RotatedAt), RevokedAt: moment(r.RevokedAt), RevokeReason: r.RevokeReason,
			DeletedAt: moment(r.DeletedAt), Imported: r.Imported,
		},
	}
	for _, until := range r.EarlierUntil {
		k.Earlier = append(k.Earlier, domain.Earlier{Until: events.At(until)})
	}
	return k
}

func rowOf(k *domain.Key) keyRow {
	r := keyRow{
		ID: k.ID, Keyspace: k.Keyspace, Owner: k.Owner, Name: clean(k.Name), Environment: clean(k.Environment), Plan: clean(k.Plan),
		Scopes: k.Scopes, Resources: k.Resources, Limits: k.Limits, AllowedOrigins: k.AllowedOrigins, AllowedIPs: k.AllowedIPs,
		Role: k.Role, Reach: k.For, First: short(k.First, 256), Last: short(k.Last, 256),
		CreatedAt: k.CreatedAt.Time(), CreatedByType: clean(k.CreatedBy.Type), CreatedByID: clean(k.CreatedBy.ID),
		ExpiresAt: nullable(k.ExpiresAt), Version: int64(k.Version),
	}
	if m := k.More; m != nil {
		r.Meta, r.Imported, r.RevokeReason = m.Meta, m.Imported, clean(m.RevokeReason)
		r.RotatedAt, r.RevokedAt, r.DeletedAt = nullable(m.RotatedAt), nullable(m.RevokedAt), nullable(m.DeletedAt)
		for _, e := range m.Earlier {
			r.EarlierUntil = append(r.EarlierUntil, e.Until.Time())
		}
	}
	return r
}

// queueKeys sends lists as array literals: unnest would flatten arrays of arrays.
func queueKeys(b *pgx.Batch, rows []keyRow) {
	b.Queue(`insert into keys_v1 (`+strings.Join(keyColumns, ", ")+`)
		select id, keyspace, owner, name, environment, plan, scopes::text[], resources::text[], limits, origins::text[], ips::text[],
			meta, role, reach, first, last, created_at, created_by_type, created_by_id, expires_at, rotated_at, earlier::timestamptz[],
			revoked_at, revoke_reason, deleted_at, imported, version
		from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::jsonb[], $10::text[],
			$11::text[], $12::jsonb[], $13::text[], $14::jsonb[], $15::text[], $16::text[], $17::timestamptz[], $18::text[], $19::text[],
			$20::timestamptz[], $21::timestamptz[], $22::text[], $23::timestamptz[], $24::text[], $25::timestamptz[], $26::boolean[], $27::bigint[])
			as k(id, keyspace, owner, name, environment, plan, scopes, resources, limits, origins, ips, meta, role, reach, first, last,
			created_at, created_by_type, created_by_id, expires_at, rotated_at, earlier, revoked_at, revoke_reason, deleted_at, imported, version)
		on conflict (id) do update set name = excluded.name, plan = excluded.plan, scopes = excluded.scopes, resources = excluded.resources,
			limits = excluded.limits, allowed_origins = excluded.allowed_origins, allowed_ips = excluded.allowed_ips, meta = excluded.meta,
			first = excluded.first, last = excluded.last, expires_at = excluded.expires_at, rotated_at = excluded.rotated_at,
			earlier_until = excluded.earlier_until, revoked_at = excluded.revoked_at, revoke_reason = excluded.revoke_reason,
			deleted_at = excluded.deleted_at, version = excluded.version`,
		column(rows, func(r *keyRow) string { return r.ID }),
		column(rows, func(r *keyRow) string { return r.Keyspace }),
		column(rows, func(r *keyRow) string { return r.Owner }),
		column(rows, func(r *keyRow) string { return r.Name }),
		column(rows, func(r *keyRow) string { return r.Environment }),
		column(rows, func(r *keyRow) string { return r.Plan }),
		column(rows, func(r *keyRow) string { return array(r.Scopes) }),
		column(rows, func(r *keyRow) string { return array(r.Resources) }),
		column(rows, func(r *keyRow) string { return object(r.Limits) }),
		column(rows, func(r *keyRow) string { return array(r.AllowedOrigins) }),
		column(rows, func(r *keyRow) string { return array(r.AllowedIPs) }),
		column(rows, func(r *keyRow) string { return object(r.Meta) }),
		column(rows, func(r *keyRow) string { return r.Role }),
		column(rows, func(r *keyRow) *string { return reach(r.Reach) }),
		column(rows, func(r *keyRow) string { return r.First }),
		column(rows, func(r *keyRow) string { return r.Last }),
		column(rows, func(r *keyRow) time.Time { return r.CreatedAt }),
		column(rows, func(r *keyRow) string { return r.CreatedByType }),
		column(rows, func(r *keyRow) string { return r.CreatedByID }),
		column(rows, func(r *keyRow) *time.Time { return r.ExpiresAt }),
		column(rows, func(r *keyRow) *time.Time { return r.RotatedAt }),
		column(rows, func(r *keyRow) string { return times(r.EarlierUntil) }),
		column(rows, func(r *keyRow) *time.Time { return r.RevokedAt }),
		column(rows, func(r *keyRow) string { return r.RevokeReason }),
		column(rows, func(r *keyRow) *time.Time { return r.DeletedAt }),
		column(rows, func(r *keyRow) bool { return r.Imported }),
		column(rows, func(r *keyRow) int64 { return r.Version }))
}

// array writes an array literal of texts.
func array(list []string) string {
	if len(list) == 0 {
		return "{}"
	}
	var b strings.Builder
	for i, s := range list {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteByte('"')
		for _, c := range []byte(clean(s)) {
			if c == '"' || c == '\\' {
				b.WriteByte('\\')
			}
			b.WriteByte(c)
		}
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

func times(list []time.Time) string {
	if len(list) == 0 {
		return "{}"
	}
	var b strings.Builder
	for i, t := range list {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(t.Format(`"2006-01-02T15:04:05.999Z"`))
	}
	b.WriteByte('}')
	return b.String()
}

// object writes a map as JSON that jsonb takes; an absent map is an empty one.
func object[V any, M ~map[string]V](m M) string {
	if len(m) == 0 {
		return "{}"
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // maps of strings and numbers always encode
	}
	return withoutNUL(b)
}

// withoutNUL replaces the one escape that is JSON but not jsonb. A backslash
// before it that is itself escaped makes it the plain text \u0000, which stays.
func withoutNUL(b []byte) string {
	s := string(b)
	if !strings.Contains(s, `\u0000`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case strings.HasPrefix(s[i:], `\u0000`):
			out.WriteString("\uFFFD")
			i += 5
		case s[i] == '\\' && i+1 < len(s):
			out.WriteString(s[i : i+2])
			i++
		default:
			out.WriteByte(s[i])
		}
	}
	return out.String()
}

func reach(r *events.Reach) *string {
	if r == nil {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // two strings always encode
	}
	return new(string(b))
}

func moment(t *time.Time) events.Time {
	if t == nil {
		return 0
	}
	return events.At(*t)
}

func nullable(t events.Time) *time.Time {
	if t == 0 {
		return nil
	}
	return new(t.Time())
}
