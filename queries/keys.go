package queries

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// KeyView is a key as it is answered everywhere: section 5 of the contract,
// Shapes. Absent times are null; lists and maps are never null.
type KeyView struct {
	ID             string            `json:"id"`
	Keyspace       string            `json:"keyspace"`
	Owner          string            `json:"owner"`
	Name           string            `json:"name"`
	Display        string            `json:"display"`
	Environment    string            `json:"environment"`
	Status         string            `json:"status"` // active, expired, revoked
	Plan           string            `json:"plan"`   // empty: the owner's counts
	Scopes         []string          `json:"scopes"`
	Resources      []string          `json:"resources"`
	Limits         events.Limits     `json:"limits"`
	AllowedOrigins []string          `json:"allowed_origins"`
	AllowedIPs     []string          `json:"allowed_ips"`
	Meta           map[string]string `json:"meta"`
	CreatedAt      events.Time       `json:"created_at"`
	CreatedBy      events.Actor      `json:"created_by"`
	ExpiresAt      events.Time       `json:"expires_at"`
	RotatedAt      events.Time       `json:"rotated_at"`
	GraceUntil     events.Time       `json:"grace_until"`
	RevokedAt      events.Time       `json:"revoked_at"`
	RevokeReason   string            `json:"revoke_reason"`
	LastUsedAt     events.Time       `json:"last_used_at"`
	UseCount       *int64            `json:"use_count"` // null: of a past moment, which LEDGER does not tell
	Version        uint32            `json:"version"`
	Role           string            `json:"role,omitempty"` // of a root key
	For            *events.Reach     `json:"for,omitempty"`  // of a manager's root key
}

// ViewOf is a key from memory. What only PostgreSQL knows is absent; see
// [Queries.Extras].
func ViewOf(k *domain.Key, now time.Time) KeyView {
	at := events.At(now)
	v := KeyView{
		ID: k.ID, Keyspace: k.Keyspace, Owner: k.Owner, Name: k.Name, Display: k.Display(), Environment: k.Environment,
		Status: k.Status(at), Plan: k.Plan, Scopes: k.Scopes, Resources: k.Resources, Limits: k.Limits,
		AllowedOrigins: k.AllowedOrigins, AllowedIPs: k.AllowedIPs,
		CreatedAt: k.CreatedAt, CreatedBy: k.CreatedBy, ExpiresAt: k.ExpiresAt,
		GraceUntil: k.GraceUntil(at), Version: k.Version, Role: k.Role, For: k.For,
		UseCount: new(int64(0)),
	}
	if m := k.More; m != nil {
		v.Meta, v.RotatedAt, v.RevokedAt, v.RevokeReason = m.Meta, m.RotatedAt, m.RevokedAt, m.RevokeReason
	}
	return v.filled()
}

// filled makes absent lists and maps empty ones.
func (v KeyView) filled() KeyView {
	for _, list := range []*[]string{&v.Scopes, &v.Resources, &v.AllowedOrigins, &v.AllowedIPs} {
		if *list == nil {
			*list = []string{}
		}
	}
	if v.Limits == nil {
		v.Limits = events.Limits{}
	}
	if v.Meta == nil {
		v.Meta = map[string]string{}
	}
	return v
}

// Extra is what PostgreSQL knows of a key besides its facts.
type Extra struct {
	LastUsedAt     events.Time // by the keyspace's last_used rule
	UseCount       int64
	LastSecret     string      // of the last use: current or previous, as it was then
	PreviousUsedAt events.Time // last use of a rotated-away secret since the last rotation; zero: none
}

// Extras answers for the keys that were ever used.
func (q *Queries) Extras(ctx context.Context, ids ...string) (map[string]Extra, error) {
	rows, err := q.pool.Query(ctx, `select l.key, `+lastUsed+`, l.uses, l.last_secret,
			case when l.previous_used_at >= k.rotated_at then l.previous_used_at end
		from keyledger.last_used l
		left join keyledger.keys_v1 k on k.id = l.key
		left join keyledger.keyspaces_v1 s on s.id = l.keyspace
		where l.key = any($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("read the last uses of keys: %w", err)
	}
	found := make(map[string]Extra, len(ids))
	var id, secret string
	var last, previous *time.Time
	var uses int64
	_, err = pgx.ForEachRow(rows, []any{&id, &last, &uses, &secret, &previous}, func() error {
		found[id] = Extra{moment(last), uses, secret, moment(previous)}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the last uses of keys: %w", err)
	}
	return found, nil
}

// lastUsed is the last use by the rule of the keyspace s.
const lastUsed = `case when s.last_used = 'successful' then l.last_success_at else l.last_used_at end`

// KeyFilter says which keys; empty fields do not filter. Root keys are only
// listed where Keyspace asks for theirs; deleted keys never are.
type KeyFilter struct {
	Keyspace      string
	Owner         string
	Status        string   // active, expired, revoked, or rate_limited: active and one of Limited
	Limited       []string // ids of the keys whose limits are used up, which only memory knows
	Scope         string
	Resource      string
	Environment   string
	Q             string      // in the name, or at the start of the id or of the shown characters, or at their end
	UnusedSince   events.Time // not used since then, and older than that
	ExpiresBefore events.Time
	AsOf          string // as it was asked for; of a list of the past alone
	Sort          string // one of Sorts; empty: newest first. For FindKeys alone
	Limit         int    // 0: DefaultLimit
	Cursor        string

	ids []string // unless nil: one of these; see FindKeys
}

func (f KeyFilter) String() string {
	s := fmt.Sprintf("keys %q %q %q %q %q %q %q %d %d", f.Keyspace, f.Owner, f.Status, f.Scope, f.Resource, f.Environment, f.Q, f.UnusedSince, f.ExpiresBefore)
	if !f.newestFirst() {
		s += fmt.Sprintf(" by %q", f.Sort)
	}
	return s
}

// conditions collects SQL conditions and their arguments.
type conditions struct {
	sql  []string
	args []any
}

// add appends a condition in which ? stands for the argument, wherever it occurs.
func (c *conditions) add(sql string, arg any) {
	c.args = append(c.args, arg)
	c.sql = append(c.sql, strings.ReplaceAll(sql, "?", fmt.Sprintf("$%d", len(c.args))))
}

func (c *conditions) where() string {
	if len(c.sql) == 0 {
		return "true"
	}
	return strings.Join(c.sql, " and ")
}

const keyColumns = `k.id, k.keyspace, k.owner, k.name, k.first, k.last, k.environment, k.plan, k.scopes, k.resources, k.limits,
	k.allowed_origins, k.allowed_ips, k.meta, k.role, k.reach, k.created_at, k.created_by_type, k.created_by_id, k.expires_at, k.rotated_at,
	k.earlier_until, k.revoked_at, k.revoke_reason, k.version, coalesce(l.uses, 0) as uses, ` + lastUsed + ` as last_used_at`

const keyTables = ` from keyledger.keys_v1 k
	left join keyledger.last_used l on l.key = k.id
	left join keyledger.keyspaces_v1 s on s.id = k.keyspace`

// conditions are those of the filter on the row of a key, at a moment.
func (f *KeyFilter) conditions(now time.Time) (c conditions, err error) {
	c.sql = append(c.sql, "k.deleted_at is null")
	if f.Keyspace != "" {
		c.add("k.keyspace = ?", f.Keyspace)
	} else {
		c.add("k.keyspace <> ?", events.RootKeyspace)
	}
	if f.Owner != "" {
		c.add("k.owner = ?", f.Owner)
	}
	switch f.Status {
	case "":
	case "active":
		c.add("k.revoked_at is null and (k.expires_at is null or k.expires_at > ?)", now)
	case "rate_limited":
		c.add("k.revoked_at is null and (k.expires_at is null or k.expires_at > ?)", now)
		c.add("k.id = any(?)", f.Limited)
	case "expired":
		c.add("k.revoked_at is null and k.expires_at <= ?", now)
	case "revoked":
		c.sql = append(c.sql, "k.revoked_at is not null")
	default:
		return c, invalid("status", fmt.Sprintf("%q is not a status that can be asked for", f.Status), "one of active, expired, revoked, rate_limited")
	}
	if f.Scope != "" {
		c.add("? = any(k.scopes)", f.Scope)
	}
	if f.Resource != "" {
		c.add("? = any(k.resources)", f.Resource)
	}
	if f.Environment != "" {
		c.add("k.environment = ?", f.Environment)
	}
	if f.Q != "" {
		if strings.ContainsRune(f.Q, 0) {
			return c, invalid("q", "has a control character", "remove it")
		}
		c.add("(strpos(lower(k.name), lower(?)) > 0 or starts_with(k.id, ?) or starts_with(k.first, ?) or right(k.last, length(?)) = ?)", f.Q)
	}
	if f.UnusedSince != 0 {
		c.add("k.created_at < ? and coalesce("+lastUsed+", k.created_at) < ?", f.UnusedSince.Time())
	}
	if f.ExpiresBefore != 0 {
		c.add("k.expires_at < ?", f.ExpiresBefore.Time())
	}
	return c, nil
}

// ListKeys answers a page of keys, newest first, and the cursor of the next one
// (empty: this is the last). Statuses are as of now. It refuses a filter that
// makes no sense and a forged cursor with a [*domain.Refusal].
func (q *Queries) ListKeys(ctx context.Context, f KeyFilter, now time.Time) (keys []KeyView, next string, err error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	c, err := f.conditions(now)
	if err != nil {
		return nil, "", err
	}
	if f.ids != nil {
		c.add("k.id = any(?)", f.ids)
	}
	if f.Cursor != "" {
		b, err := openCursor("cursor", f.String(), f.Cursor)
		if err != nil {
			return nil, "", err
		}
		at, id, ok := bytesMoment(b)
		if !ok {
			return nil, "", invalid("cursor", "is not a cursor of this list", "leave it out")
		}
		c.args = append(c.args, at, id)
		c.sql = append(c.sql, fmt.Sprintf("(k.created_at, k.id) < ($%d, $%d)", len(c.args)-1, len(c.args)))
	}
	keys, err = q.keys(ctx, now, `select `+keyColumns+keyTables+` where `+c.where()+fmt.Sprintf(` order by k.created_at desc, k.id desc limit %d`, limit+1), c.args...)
	if err != nil {
		return nil, "", err
	}
	if len(keys) > limit {
		keys = keys[:limit]
		last := keys[limit-1]
		next = cursor(f.String(), momentBytes(last.CreatedAt.Time(), last.ID))
	}
	return keys, next, nil
}

// Lookup finds keys of a keyspace by the first or last characters of the whole
// secret, as many as the caller has: all of them must agree with all that was
// kept. At most MaxLimit are answered, newest first.
func (q *Queries) Lookup(ctx context.Context, keyspace, first, last string, now time.Time) ([]KeyView, error) {
	if first == "" && last == "" {
		return nil, invalid("first", "is missing, and so is last", "send the first or the last characters of the secret")
	}
	if strings.ContainsRune(first+last, 0) || len(first) > 1024 || len(last) > 1024 {
		return []KeyView{}, nil // no secret looks like that
	}
	var c conditions
	c.sql = append(c.sql, "k.deleted_at is null")
	c.add("k.keyspace = ?", keyspace)
	if first != "" {
		// What was kept is at least as long as what is asked for, or a part of it.
		c.add("k.first <> '' and (starts_with(k.first, ?) or starts_with(?, k.first))", first)
	}
	if last != "" {
		c.add("k.last <> '' and (right(k.last, length(?)) = ? or right(?, length(k.last)) = k.last)", last)
	}
	return q.keys(ctx, now, `select `+keyColumns+keyTables+` where `+c.where()+fmt.Sprintf(` order by k.created_at desc, k.id desc limit %d`, MaxLimit), c.args...)
}

// Key is one key as its projection knows it, deleted ones too. It refuses with
// [domain.KeyNotFound].
func (q *Queries) Key(ctx context.Context, id string, now time.Time) (KeyView, error) {
	keys, err := q.keys(ctx, now, `select `+keyColumns+keyTables+` where k.id = $1`, id)
	if err != nil {
		return KeyView{}, err
	}
	if len(keys) == 0 {
		return KeyView{}, domain.KeyNotFound()
	}
	return keys[0], nil
}

func (q *Queries) keys(ctx context.Context, now time.Time, sql string, args ...any) ([]KeyView, error) {
	rows, err := q.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v KeyView, err error) {
		var first, last string
		var created time.Time
		var expires, rotated, revoked, used *time.Time
		var earlier []time.Time
		var version int64
		err = row.Scan(&v.ID, &v.Keyspace, &v.Owner, &v.Name, &first, &last, &v.Environment, &v.Plan, &v.Scopes, &v.Resources, &v.Limits,
			&v.AllowedOrigins, &v.AllowedIPs, &v.Meta, &v.Role, &v.For, &created, &v.CreatedBy.Type, &v.CreatedBy.ID, &expires, &rotated,
			&earlier, &revoked, &v.RevokeReason, &version, &v.UseCount, &used)
		if err != nil {
			return v, err
		}
		at := events.At(now)
		k := domain.Key{First: first, Last: last, ExpiresAt: moment(expires), More: &domain.More{RevokedAt: moment(revoked)}}
		for _, until := range earlier {
			k.Earlier = append(k.Earlier, domain.Earlier{Until: events.At(until)})
		}
		v.Display, v.Status, v.GraceUntil = k.Display(), k.Status(at), k.GraceUntil(at)
		v.CreatedAt, v.ExpiresAt, v.RotatedAt, v.RevokedAt, v.LastUsedAt = events.At(created), moment(expires), moment(rotated), moment(revoked), moment(used)
		v.Version = uint32(version)
		return v.filled(), nil
	})
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if keys == nil {
		keys = []KeyView{}
	}
	return keys, nil
}

// OwnerView is an owner as its projection knows it.
type OwnerView struct {
	Keyspace   string      `json:"keyspace"`
	ID         string      `json:"id"`
	Name       string      `json:"name"`
	Plan       string      `json:"plan"`
	CreatedAt  events.Time `json:"created_at"`
	Version    uint32      `json:"version"`
	ActiveKeys int         `json:"active_keys"` // neither revoked, deleted nor expired
	MaxKeys    *int        `json:"max_keys"`    // of the plan; null: any number
}

// ListOwners answers a page of a keyspace's owners by id, and the cursor of the
// next one (empty: this is the last).
func (q *Queries) ListOwners(ctx context.Context, keyspace string, limit int, after string, now time.Time) (owners []OwnerView, next string, err error) {
	if limit, err = pageSize(limit); err != nil {
		return nil, "", err
	}
	filter, from := fmt.Sprintf("owners %q", keyspace), ""
	if after != "" {
		b, err := openCursor("cursor", filter, after)
		if err != nil {
			return nil, "", err
		}
		from = string(b)
	}
	owners, err = q.owners(ctx, `o.keyspace = $2 and o.id > $3 order by o.id limit $4`, now, keyspace, from, limit+1)
	if err != nil {
		return nil, "", err
	}
	if len(owners) > limit {
		owners = owners[:limit]
		next = cursor(filter, []byte(owners[limit-1].ID))
	}
	return owners, next, nil
}

// Owner is one owner. It refuses with [domain.OwnerNotFound].
func (q *Queries) Owner(ctx context.Context, keyspace, id string, now time.Time) (OwnerView, error) {
	owners, err := q.owners(ctx, `o.keyspace = $2 and o.id = $3`, now, keyspace, id)
	if err == nil && len(owners) == 0 {
		return OwnerView{}, domain.OwnerNotFound()
	}
	if err != nil {
		return OwnerView{}, err
	}
	return owners[0], nil
}

func (q *Queries) owners(ctx context.Context, where string, args ...any) ([]OwnerView, error) {
	rows, err := q.pool.Query(ctx, `select o.keyspace, o.id, o.name, o.plan, o.created_at, o.version,
			(select count(*) from keyledger.keys_v1 k where k.keyspace = o.keyspace and k.owner = o.id and k.deleted_at is null
				and k.revoked_at is null and (k.expires_at is null or k.expires_at > $1)),
			(s.document#>>array['plans', o.plan, 'max_keys'])::int
		from keyledger.owners_v1 o left join keyledger.keyspaces_v1 s on s.id = o.keyspace where `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read owners: %w", err)
	}
	owners, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o OwnerView, err error) {
		var created time.Time
		var version int64
		err = row.Scan(&o.Keyspace, &o.ID, &o.Name, &o.Plan, &created, &version, &o.ActiveKeys, &o.MaxKeys)
		o.CreatedAt, o.Version = events.At(created), uint32(version)
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("read owners: %w", err)
	}
	return slices.Clip(append([]OwnerView{}, owners...)), nil
}
