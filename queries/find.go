package queries

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/keyring"
)

// To find keys that few rows are like, PostgreSQL would look at every row of a
// keyspace, or have an index for each filter and keep it with each fact. Memory holds
// what is filtered by: it says which keys a page may show, and PostgreSQL shows those.
const (
	// near is among how many of the newest keys a page is looked for first. Where it is
	// full with those, PostgreSQL finds it as soon.
	near = 2000
	// spare are keys that PostgreSQL is told of beyond a page: what it does not know yet
	// is missing from the page.
	spare = 200
)

// FindKeys is [Queries.ListKeys] in the order that the filter says, and does not look at
// every key's row where few match. The ring MUST have applied what the caller waits for.
func (q *Queries) FindKeys(ctx context.Context, ring *keyring.Ring, f KeyFilter, now time.Time) (keys []KeyView, next string, err error) {
	if !f.newestFirst() {
		return q.sortedKeys(ctx, ring, f, now)
	}
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	ids, all := f.among(ring, limit, events.At(now))
	if ids == nil {
		return q.ListKeys(ctx, f, now)
	}
	found := f
	found.ids = ids
	keys, next, err = q.ListKeys(ctx, found, now)
	if err == nil && next == "" && !all {
		return q.ListKeys(ctx, f, now) // PostgreSQL is behind by more than spare
	}
	return keys, next, err
}

// among are the ids of the keys that a page may show, nil where PostgreSQL finds them as
// soon by itself; all says that there are no more behind them.
func (f *KeyFilter) among(ring *keyring.Ring, limit int, now events.Time) (ids []string, all bool) {
	if f.UnusedSince != 0 || f.Status == "rate_limited" || f.Status+f.Scope+f.Resource+f.Environment+f.Q == "" && f.ExpiresBefore == 0 {
		return nil, false
	}
	var after keyPlace
	if f.Cursor != "" {
		b, err := openCursor("cursor", f.String(), f.Cursor)
		if err != nil {
			return nil, false // ListKeys says so
		}
		at, id, ok := bytesMoment(b)
		if !ok {
			return nil, false
		}
		after = keyPlace{events.At(at), id}
	}
	var found []*domain.Key
	looked := 0
	for k := range ring.Newest(f.Keyspace, f.Owner) {
		if k.Deleted() || after.passed(k) {
			continue
		}
		if looked++; looked == near && len(found) > limit {
			return nil, false
		}
		if f.matches(k, now) {
			found = append(found, k)
		}
	}
	// Newest first, as the list has them; the ring has them in the order of the stream,
	// which is nearly that.
	slices.SortFunc(found, func(a, b *domain.Key) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), strings.Compare(b.ID, a.ID))
	})
	all = len(found) <= limit+spare
	ids = []string{}
	for _, k := range found[:min(len(found), limit+spare)] {
		ids = append(ids, k.ID)
	}
	return ids, all
}
