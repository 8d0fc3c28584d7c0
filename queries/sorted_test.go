package queries

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
)

// sortable are keys in memory and in PostgreSQL, and what is known of their uses.
type sortable struct {
	*filled
	ring    *keyring.Ring
	records []events.Record
	last    map[string]events.Time // by the rule of their keyspace
	count   map[string]int64
}

func newSortable(t testing.TB) *sortable {
	s := &sortable{fill(t), keyring.New(), nil, map[string]events.Time{}, map[string]int64{}}
	s.fact("pb", "", "", 1, start, events.KeyspaceConfigured{DocumentVersion: 1, Document: json.RawMessage(`{"keyspace":"pb","format":{"prefixes":{"live":"pb_live_"},"length":32},"last_used":"successful"}`)})
	return s
}

// fact is known to memory at once, and to PostgreSQL with the next flush.
func (s *sortable) fact(keyspace, owner, key string, version uint64, at time.Time, data events.Payload) {
	s.seq++
	e := events.New(data, at)
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = keyspace, owner, key, version
	r := events.Record{Stream: events.Ledger, Sequence: s.seq, Subject: events.Subject(keyspace, owner, key), Event: e}
	s.ring.Apply(r)
	s.records = append(s.records, r)
}

func (s *sortable) flush() {
	s.t.Helper()
	for batch := range slices.Chunk(s.records, 5000) {
		s.apply(projections.Keys{}, batch...)
	}
	s.records = nil
}

// used writes what the projection of uses would have written.
func (s *sortable) used(uses map[string]struct {
	count         int64
	last, success events.Time
}) {
	s.t.Helper()
	var ids, owners []string
	var counts []int64
	var lasts []time.Time
	var successes []*time.Time
	for id, u := range uses {
		k := s.ring.Key(id)
		ids, owners, counts, lasts = append(ids, id), append(owners, k.Owner), append(counts, u.count), append(lasts, u.last.Time())
		at := new(u.success.Time())
		if u.success == 0 {
			at = nil
		}
		successes = append(successes, at)
		s.count[id], s.last[id] = u.count, u.success
		if k.Keyspace != "pb" {
			s.last[id] = u.last
		}
	}
	if _, err := s.pool.Exec(s.t.Context(), `insert into keyledger.last_used_v2 (key, keyspace, owner, uses, successes, last_used_at, last_success_at, last_secret)
		select u.id, k.keyspace, u.owner, u.count, 0, u.last, u.success, 'current' from unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::timestamptz[]) u(id, owner, count, last, success)
		join keyledger.keys_v1 k on k.id = u.id`,
		ids, owners, counts, lasts, successes); err != nil {
		s.t.Fatal(err)
	}
}

// want is the plainest sorting that there can be.
func (s *sortable) want(sort string, of func(*domain.Key) bool) (ids []string) {
	by, down := strings.CutPrefix(sort, "-")
	value := func(k *domain.Key) (n int64, text string, none bool) {
		switch by {
		case "name":
			return 0, strings.ToLower(k.Name), k.Name == ""
		case "created_at":
			return int64(k.CreatedAt), "", false
		case "expires_at":
			return int64(k.ExpiresAt), "", k.ExpiresAt == 0
		case "last_used_at":
			return int64(s.last[k.ID]), "", s.last[k.ID] == 0
		}
		return s.count[k.ID], "", false
	}
	var with, without []*domain.Key
	for k := range s.ring.All("", "") {
		if k.Deleted() || !of(k) {
			continue
		}
		if _, _, none := value(k); none {
			without = append(without, k)
		} else {
			with = append(with, k)
		}
	}
	for _, part := range [][]*domain.Key{with, without} {
		slices.SortFunc(part, func(a, b *domain.Key) int {
			n, x, _ := value(a)
			m, y, _ := value(b)
			return cmp.Or(cmp.Compare(n, m), cmp.Compare(x, y), cmp.Compare(a.ID, b.ID))
		})
		if down {
			slices.Reverse(part)
		}
		for _, k := range part {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// pages are the ids of all pages from a cursor on.
func (s *sortable) pages(f KeyFilter, now time.Time) (ids []string) {
	s.t.Helper()
	for range 10_000 {
		keys, next, err := s.FindKeys(s.t.Context(), s.ring, f, now)
		if err != nil {
			s.t.Fatalf("%s: %v", f, err)
		}
		for _, k := range keys {
			ids = append(ids, k.ID)
		}
		if f.Cursor = next; next == "" {
			return ids
		}
	}
	s.t.Fatalf("%s has no end", f)
	return nil
}

// In every order and direction, all pages together are the keys that match, each once:
// those of one value by id, those without one last. So it is where a keyspace is so large
// that pages are guessed, and for the few of an owner or a filter.
func TestSortedKeys(t *testing.T) {
	defer func(n int) { few = n }(few)
	few = 1000
	s := newSortable(t)
	const n = 4500
	random := rand.New(rand.NewPCG(1, 2))
	names := []string{"alpha", "Alpha", "ALPHA 2", "beta", "_x", "Ärger", "ärger", "Öl", "日本", "Zeta", "zeta é", "<b>"}
	uses := map[string]struct {
		count         int64
		last, success events.Time
	}{}
	now := start.Add(100 * 24 * time.Hour)
	for i := range n {
		// Ids are in no order, and many keys are of one moment.
		id := fmt.Sprintf("key_%04x%08d", random.IntN(1<<16), i)
		at := start.Add(time.Duration(random.IntN(n/4)) * time.Hour)
		k := events.KeyCreated{Name: names[random.IntN(len(names))], Environment: "live", Secret: events.Secret{SHA256: fmt.Sprintf("%064x", i+1), First: fmt.Sprintf("pb_live_%04d", i), Last: "wxyz"}}
		if random.IntN(2) == 0 {
			k.ExpiresAt = events.At(start.Add(time.Duration(random.IntN(200)) * 24 * time.Hour))
		}
		if i%50 == 0 {
			k.Scopes = []string{"some"}
		}
		keyspace, owner := "pb", fmt.Sprint("o", i%200)
		if i%100 == 7 {
			keyspace = "other" // its last uses are any
		}
		s.fact(keyspace, owner, id, 1, at, k)
		switch {
		case i%90 == 3:
			s.fact(keyspace, owner, id, 2, at, events.KeyRevoked{Reason: "r"})
			s.fact(keyspace, owner, id, 3, at, events.KeyDeleted{})
		case i%9 == 3:
			s.fact(keyspace, owner, id, 2, at, events.KeyRevoked{Reason: "r"})
		}
		if random.IntN(3) > 0 {
			used := start.Add(time.Duration(random.IntN(100)) * 24 * time.Hour)
			u := uses[id]
			u.count, u.last = int64(1+random.IntN(30)), events.At(used)
			if random.IntN(4) > 0 {
				u.success = events.At(used.Add(-time.Hour))
			}
			uses[id] = u
		}
	}
	s.flush()
	s.used(uses)
	var limited []string
	for k := range s.ring.All("pb", "") {
		if limited = append(limited, k.ID); len(limited) == 40 {
			break
		}
	}
	since := events.At(start.Add(60 * 24 * time.Hour))
	unused := func(k *domain.Key) bool {
		return k.CreatedAt < since && cmp.Or(s.last[k.ID], k.CreatedAt) < since
	}
	pb := func(k *domain.Key) bool { return k.Keyspace == "pb" }
	for _, c := range []struct {
		f    KeyFilter
		want func(*domain.Key) bool
	}{
		{KeyFilter{Keyspace: "pb", Limit: 900}, pb},
		{KeyFilter{Limit: 1000}, func(*domain.Key) bool { return true }},
		{KeyFilter{Keyspace: "pb", Owner: "o3", Limit: 4}, func(k *domain.Key) bool { return pb(k) && k.Owner == "o3" }},
		{KeyFilter{Owner: "o107", Limit: 100}, func(k *domain.Key) bool { return k.Owner == "o107" }},
		{KeyFilter{Keyspace: "pb", Owner: "nobody"}, func(*domain.Key) bool { return false }},
		{KeyFilter{Keyspace: "pb", Scope: "some", Limit: 30}, func(k *domain.Key) bool { return pb(k) && slices.Contains(k.Scopes, "some") }},
		{KeyFilter{Keyspace: "pb", Status: "revoked", Q: "ZETA", Limit: 30}, func(k *domain.Key) bool {
			return pb(k) && k.Status(events.At(now)) == "revoked" && strings.Contains(strings.ToLower(k.Name), "zeta")
		}},
		{KeyFilter{Keyspace: "pb", Status: "rate_limited", Limited: limited, Limit: 10}, func(k *domain.Key) bool {
			return pb(k) && k.Status(events.At(now)) == "active" && slices.Contains(limited, k.ID)
		}},
		{KeyFilter{Keyspace: "pb", ExpiresBefore: events.At(now), Limit: 500}, func(k *domain.Key) bool { return pb(k) && k.ExpiresAt != 0 && k.ExpiresAt < events.At(now) }},
		{KeyFilter{Keyspace: "pb", UnusedSince: since, Limit: 400}, func(k *domain.Key) bool { return pb(k) && unused(k) }},
		{KeyFilter{Keyspace: "pb", UnusedSince: since, Owner: "o8", Limit: 3}, func(k *domain.Key) bool { return pb(k) && unused(k) && k.Owner == "o8" }},
	} {
		for _, c.f.Sort = range Sorts {
			if d := gocmp.Diff(s.want(c.f.Sort, c.want), s.pages(c.f, now)); d != "" {
				t.Errorf("%s: (-want +got)\n%s", c.f, d)
			}
		}
	}
	// The first pages of a large keyspace, which are guessed, and some from the midst.
	for _, sort := range Sorts {
		want := s.want(sort, pb)
		f := KeyFilter{Keyspace: "pb", Sort: sort, Limit: 13}
		for page := range 4 {
			keys, next, err := s.FindKeys(t.Context(), s.ring, f, now)
			if err != nil || len(keys) != 13 || next == "" {
				t.Fatal(len(keys), err)
			}
			for i, k := range keys {
				if k.ID != want[page*13+i] {
					t.Fatalf("%s: key %d of page %d is %s, want %s", sort, i, page, k.ID, want[page*13+i])
				}
			}
			f.Cursor = next
		}
	}
}

// What memory knows and PostgreSQL does not yet is left out, however much that is, and
// nothing else.
func TestSortedKeysOfAReadModelBehind(t *testing.T) {
	s := newSortable(t)
	for i := range 20 {
		s.fact("pb", "o1", fmt.Sprintf("key_old_%02d", i), 1, start.Add(time.Duration(i)*time.Second), events.KeyCreated{Name: fmt.Sprint("n", i)})
	}
	s.flush()
	for i := range 3 * spare {
		s.fact("pb", "o1", fmt.Sprintf("key_new_%04d", i), 1, start.Add(-time.Hour), events.KeyCreated{Name: fmt.Sprint("a", i), ExpiresAt: events.At(start)})
	}
	for _, sort := range Sorts {
		got := s.pages(KeyFilter{Keyspace: "pb", Sort: sort, Limit: 7}, start)
		slices.Sort(got)
		if len(got) != 20 || len(slices.Compact(got)) != 20 {
			t.Errorf("%s: %d keys: %v", sort, len(got), got)
		}
	}
}

// Newest first is the order of whoever names none, its cursors included; a cursor of one
// order is none of another, and what is made up is refused.
func TestSortRefusals(t *testing.T) {
	s := newSortable(t)
	for i := range 4 {
		s.fact("pb", "o1", fmt.Sprint("key_", i), 1, start, events.KeyCreated{Name: strings.Repeat("Ж", 200)})
	}
	s.flush()
	find := func(f KeyFilter) (string, error) {
		_, next, err := s.FindKeys(t.Context(), s.ring, f, start)
		return next, err
	}
	for _, sort := range Sorts {
		next, err := find(KeyFilter{Sort: sort, Limit: 1})
		if err != nil || next == "" {
			t.Fatal(sort, next, err)
		}
		for _, other := range append([]string{""}, Sorts...) {
			_, err := find(KeyFilter{Sort: other, Limit: 1, Cursor: next})
			if same := cmp.Or(other, Sorts[0]) == sort; same != (err == nil) || !same && !refused(err, "INVALID") {
				t.Errorf("a cursor of %s where %q is asked for: %v", sort, other, err)
			}
		}
		if _, err := find(KeyFilter{Sort: sort, Limit: 1, Owner: "o1", Cursor: next}); !refused(err, "INVALID") {
			t.Errorf("%s: a cursor of another filter: %v", sort, err)
		}
		for range 50 {
			forged := []byte(next)
			forged[rand.IntN(len(forged))] ^= byte(1 + rand.IntN(3))
			if _, err := find(KeyFilter{Sort: sort, Limit: 1, Cursor: string(forged)}); !refused(err, "INVALID") {
				t.Errorf("%s: a forged cursor %s: %v", sort, forged, err)
			}
		}
		f := KeyFilter{Sort: sort}
		const huge = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
		for _, place := range []string{"", "\x00", "\x00\x00", "\x00\x00\x00", "\x00\x05ab\x00", huge + "\x00a\x00", "\x00" + huge + "a\x00", "\x00\x00a\x00b\x00", "\x00\x00\xfe\x00"} {
			if sort == Sorts[0] {
				break
			}
			f.Cursor = cursor(f.String(), []byte(place))
			if _, err := find(f); !refused(err, "INVALID") {
				t.Errorf("%s: the place %q: %v", sort, place, err)
			}
		}
	}
	for _, bad := range []string{"colour", "Name", "--name", "-", "name,created_at", "display"} {
		if _, err := find(KeyFilter{Sort: bad}); !refused(err, "INVALID") {
			t.Errorf("sorted by %q: %v", bad, err)
		}
	}
	for name, f := range map[string]KeyFilter{"status": {Sort: "name", Status: "sleeping"}, "limit": {Sort: "name", Limit: -1}, "NUL": {Sort: "-use_count", Q: "a\x00"}} {
		if _, err := find(f); !refused(err, "INVALID") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&KeyFilter{Sort: "name"}).ofThePast(); !refused(err, "INVALID") {
		t.Errorf("the past by name: %v", err)
	}
	if err := (&KeyFilter{Sort: "-created_at"}).ofThePast(); err != nil {
		t.Errorf("the past, newest first: %v", err)
	}
}

// Names are compared as if they had been folded.
func TestCompareFolded(t *testing.T) {
	names := []string{"", "a", "A", "ab", "aB", "b", "Z", "_", "é", "É", "éa", "\u212a", "k", "ß", "ẞ", "日", "😀", "a😀", "İ", "\xff", "\xfe", "a\xff"}
	for _, a := range names {
		for _, b := range names {
			if got, want := compareFolded(a, b), strings.Compare(strings.ToLower(a), strings.ToLower(b)); got != want {
				t.Errorf("%q and %q: %d, want %d", a, b, got, want)
			}
		}
	}
}
