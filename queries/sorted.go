package queries

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/keyring"
)

// Sorts are the orders that a list of keys can be had in; a minus before one turns it
// round. Names are compared without regard to capitals, by code point. Keys of one value
// stand by id, turned round likewise; keys without a value (never used, never expires, no
// name) come last in either direction.
//
// Uses go on while somebody pages by them: a key that is used then may be met twice, or
// not at all.
var Sorts = []string{"-created_at", "created_at", "name", "-name", "expires_at", "-expires_at", "last_used_at", "-last_used_at", "use_count", "-use_count"}

func (f *KeyFilter) newestFirst() bool { return f.Sort == "" || f.Sort == Sorts[0] }

// few are so many keys that their uses are fetched rather than guessed. Tests have fewer.
var few = 6000

// wide is how many more keys than a page has a guess looks at, so that it finds the page
// among them: few of them may match, or be without uses.
const wide = 16

// sorting is an order.
type sorting struct {
	by   string
	down bool
}

func (f *KeyFilter) sorting() (sorting, error) {
	if !slices.Contains(Sorts, f.Sort) {
		return sorting{}, invalid("sort", fmt.Sprintf("%q is not an order of keys", f.Sort), "one of "+strings.Join(Sorts, ", "))
	}
	by, down := strings.CutPrefix(f.Sort, "-")
	return sorting{by, down}, nil
}

func (s sorting) byUse() bool { return s.by == "last_used_at" || s.by == "use_count" }

// standing is where a key stands in an order.
type standing struct {
	none bool // it has no value
	n    int64
	text string
	id   string
}

// keyUse is what PostgreSQL alone knows of a key.
type keyUse struct {
	count int64
	last  events.Time // zero: never, by the keyspace's rule
}

func (s sorting) of(k *domain.Key, u keyUse) standing {
	at := standing{id: k.ID}
	switch s.by {
	case "name":
		at.text, at.none = k.Name, k.Name == ""
	case "created_at":
		at.n = int64(k.CreatedAt)
	case "expires_at":
		at.n, at.none = int64(k.ExpiresAt), k.ExpiresAt == 0
	case "last_used_at":
		at.n, at.none = int64(u.last), u.last == 0
	case "use_count":
		at.n = u.count
	}
	return at
}

func (s sorting) compare(a, b standing) int {
	if a.none != b.none {
		if a.none {
			return 1
		}
		return -1
	}
	c := cmp.Compare(a.n, b.n)
	if c == 0 {
		c = compareFolded(a.text, b.text)
	}
	if c == 0 {
		c = strings.Compare(a.id, b.id)
	}
	if s.down {
		return -c
	}
	return c
}

// compareFolded compares what strings.ToLower would make of both, and makes nothing.
func compareFolded(a, b string) int {
	for a != "" && b != "" {
		x, n := rune(a[0]), 1
		y, m := rune(b[0]), 1
		if x >= utf8.RuneSelf {
			x, n = utf8.DecodeRuneInString(a)
		}
		if y >= utf8.RuneSelf {
			y, m = utf8.DecodeRuneInString(b)
		}
		if x != y {
			if c := cmp.Compare(unicode.ToLower(x), unicode.ToLower(y)); c != 0 {
				return c
			}
		}
		a, b = a[n:], b[m:]
	}
	return cmp.Compare(len(a), len(b))
}

// cursor and opened write and read a standing.
func (s sorting) cursor(filter string, at standing) string {
	b := binary.AppendVarint(nil, at.n)
	b = binary.AppendUvarint(b, uint64(len(at.text)))
	b = append(append(b, at.text...), at.id...)
	if at.none {
		return cursor(filter, append(b, 1))
	}
	return cursor(filter, append(b, 0))
}

func (s sorting) opened(filter, text string) (*standing, error) {
	b, err := openCursor("cursor", filter, text)
	if err != nil {
		return nil, err
	}
	value, n := binary.Varint(b)
	b = b[max(n, 0):]
	length, m := binary.Uvarint(b)
	b = b[max(m, 0):]
	// A forged one is no error of PostgreSQL's, which is asked for what is behind it.
	if n <= 0 || m <= 0 || len(b) < 2 || length > uint64(len(b)-2) || value < -1<<45 || value > 1<<52 || !utf8.Valid(b[length:]) || slices.Contains(b[length:len(b)-1], 0) {
		return nil, invalid("cursor", "is not a cursor of this list", "leave it out")
	}
	last := len(b) - 1
	return &standing{none: b[last] == 1, n: value, text: string(b[:length]), id: string(b[length:last])}, nil
}

// sortedList is a page in the making.
type sortedList struct {
	sorting
	q     *Queries
	ring  *keyring.Ring
	f     *KeyFilter
	now   time.Time
	where conditions
	after *standing // nil: the first page

	few  []*domain.Key     // all that match, where those are few
	uses map[string]keyUse // of all keys that were used and may be in the list; nil: not known
}

// sortedKeys is FindKeys in any other order than newest first: which keys come next is
// said by memory, and by what PostgreSQL knows of their uses; PostgreSQL shows them.
//
// There is no index by last use or by count, which each flush of uses would pay. Nearly
// always a guess is enough, which reads the uses of a keyspace through and keeps only so
// many as are asked for. Where it leaves the page short, all of them are fetched.
func (q *Queries) sortedKeys(ctx context.Context, ring *keyring.Ring, f KeyFilter, now time.Time) (keys []KeyView, next string, err error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	l := &sortedList{q: q, ring: ring, f: &f, now: now}
	if l.sorting, err = f.sorting(); err != nil {
		return nil, "", err
	}
	if l.where, err = f.conditions(now); err != nil {
		return nil, "", err
	}
	if f.Cursor != "" {
		if l.after, err = l.opened(f.String(), f.Cursor); err != nil {
			return nil, "", err
		}
	}
	guess := l.byUse() || f.UnusedSince != 0
	for n := limit + spare; ; {
		var next []standing
		var only string
		all := false
		switch {
		case guess && l.byUse():
			next, only, all, err = l.guess(ctx, wide*n)
		case guess:
			next, all = l.first(wide * n)
		default:
			if err = l.learn(ctx); err == nil {
				next, all = l.first(n)
			}
		}
		if err != nil {
			return nil, "", err
		}
		if keys, err = l.show(ctx, next, only, limit+1); err != nil {
			return nil, "", err
		}
		if len(keys) > limit {
			keys = keys[:limit]
			i := slices.IndexFunc(next, func(at standing) bool { return at.id == keys[limit-1].ID })
			return keys, l.cursor(f.String(), next[i]), nil
		}
		if all {
			return keys, "", nil
		}
		if !guess {
			n *= 8 // PostgreSQL is behind by more than spare
		}
		guess = false
	}
}

// found are the keys that match as memory knows them.
func (l *sortedList) found() iter.Seq[*domain.Key] {
	if l.few != nil {
		return slices.Values(l.few)
	}
	f, at := l.f, events.At(l.now)
	among := l.ring.All(f.Keyspace, f.Owner)
	if f.Status == "rate_limited" {
		among = func(yield func(*domain.Key) bool) {
			for _, id := range f.Limited {
				k := l.ring.Key(id)
				if k != nil && (f.Keyspace == "" || k.Keyspace == f.Keyspace) && (f.Owner == "" || k.Owner == f.Owner) && !yield(k) {
					return
				}
			}
		}
	}
	return func(yield func(*domain.Key) bool) {
		for k := range among {
			if k.Deleted() || f.UnusedSince != 0 && k.CreatedAt >= f.UnusedSince || !f.matches(k, at) {
				continue
			}
			if !yield(k) {
				return
			}
		}
	}
}

// first are the first n that come next, and whether those are all.
func (l *sortedList) first(n int) (next []standing, all bool) {
	all = true
	cut := func() {
		slices.SortFunc(next, l.compare)
		if len(next) > n {
			next, all = next[:n], false
		}
	}
	for k := range l.found() {
		u := l.uses[k.ID]
		if l.f.UnusedSince != 0 && u.last >= l.f.UnusedSince {
			continue
		}
		at := l.of(k, u)
		if l.after != nil && l.compare(at, *l.after) <= 0 {
			continue
		}
		if !all && l.compare(at, next[n-1]) > 0 {
			continue
		}
		if next = append(next, at); len(next) == 2*n {
			cut()
		}
	}
	cut()
	return next, all
}

// value is what an order by use sorts rows of last_used by, null where there is none.
func (l *sortedList) value() string {
	if l.by == "use_count" {
		return "nullif(l.uses, 0)"
	}
	return "(" + lastUsed + ")"
}

const useTables = ` from keyledger.last_used l left join keyledger.keyspaces_v1 s on s.id = l.keyspace`

// usesOf are the conditions on rows of last_used.
func (l *sortedList) usesOf() (c conditions) {
	if l.f.Keyspace != "" {
		c.add("l.keyspace = ?", l.f.Keyspace)
	}
	if l.f.Owner != "" {
		c.add("l.owner = ?", l.f.Owner)
	}
	return c
}

// guess are about n keys that come next, by their uses; only is what is to be shown of
// them.
func (l *sortedList) guess(ctx context.Context, n int) (next []standing, only string, all bool, err error) {
	if l.few == nil {
		found := []*domain.Key{}
		for k := range l.found() {
			if found = append(found, k); len(found) > few {
				break
			}
		}
		if len(found) <= few {
			l.few = found
		}
	}
	if l.few != nil {
		if err := l.learn(ctx); err != nil {
			return nil, "", false, err
		}
		next, all = l.first(n)
		return next, "", all, nil
	}
	// Keys without uses come last, but for the one order in which they come first.
	unused := l.by == "use_count" && !l.down
	if l.after != nil {
		unused = l.after.none || l.by == "use_count" && l.after.n == 0
	}
	if unused {
		next, _ = l.first(n)
		return next, l.value() + " is null", false, nil
	}
	c := l.usesOf()
	c.sql = append(c.sql, l.value()+" is not null")
	if l.f.UnusedSince != 0 {
		c.add("coalesce("+lastUsed+", '-infinity') < ?", l.f.UnusedSince.Time())
	}
	order, behind := "", ">"
	if l.down {
		order, behind = " desc", "<"
	}
	if l.after != nil {
		var value any = l.after.n
		if l.by == "last_used_at" {
			value = events.Time(l.after.n).Time()
		}
		c.args = append(c.args, value, l.after.id)
		c.sql = append(c.sql, fmt.Sprintf("(%s, l.key) %s ($%d, $%d)", l.value(), behind, len(c.args)-1, len(c.args)))
	}
	at := events.At(l.now)
	err = l.eachUse(ctx, c, fmt.Sprintf(" order by %s%s, l.key%[2]s limit %d", l.value(), order, n), func(id string, u keyUse) {
		if k := l.ring.Key(id); k != nil && !k.Deleted() && l.f.matches(k, at) {
			next = append(next, l.of(k, u))
		}
	})
	return next, "", false, err
}

// learn fetches the uses of all keys that may be in the list, where they count.
func (l *sortedList) learn(ctx context.Context) error {
	if l.uses != nil || !l.byUse() && l.f.UnusedSince == 0 {
		return nil
	}
	c := l.usesOf()
	if l.few != nil {
		var ids []string
		for _, k := range l.few {
			ids = append(ids, k.ID)
		}
		c = conditions{}
		c.add("l.key in (select unnest(?::text[]))", ids) // an array of thousands would be planned for long
	}
	l.uses = map[string]keyUse{}
	return l.eachUse(ctx, c, "", func(id string, u keyUse) { l.uses[id] = u })
}

func (l *sortedList) eachUse(ctx context.Context, c conditions, order string, emit func(string, keyUse)) error {
	rows, err := l.q.pool.Query(ctx, `select l.key, l.uses, `+lastUsed+useTables+` where `+c.where()+order, c.args...)
	if err != nil {
		return fmt.Errorf("read the last uses of keys: %w", err)
	}
	var id string
	var count int64
	var last *time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &count, &last}, func() error {
		emit(id, keyUse{count, moment(last)})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the last uses of keys: %w", err)
	}
	return nil
}

// show answers the first n of some keys that PostgreSQL knows and that match there too,
// in their order. It looks at one row after the other, and at no more than it takes.
func (l *sortedList) show(ctx context.Context, next []standing, only string, n int) ([]KeyView, error) {
	ids := make([]string, len(next))
	for i, at := range next {
		ids[i] = at.id
	}
	c := conditions{slices.Clone(l.where.sql), append(slices.Clone(l.where.args), ids)}
	if only != "" {
		c.sql = append(c.sql, only)
	}
	return l.q.keys(ctx, l.now, fmt.Sprintf(`select `+keyColumns+` from unnest($%d::text[]) with ordinality w(id, place)
		cross join lateral (select * from keyledger.keys_v1 where id = w.id offset 0) k
		left join lateral (select * from keyledger.last_used where key = w.id offset 0) l on true
		left join keyledger.keyspaces_v1 s on s.id = k.keyspace where %s order by w.place limit %d`, len(c.args), c.where(), n), c.args...)
}
