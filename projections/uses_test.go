package projections

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
)

// What a block holds is read back from its rows, with and without tags, and each
// hash stands in one row, the last that does not begin behind it.
func TestPostings(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tags := rapid.Bool().Draw(rt, "tags")
		b := &block{starts: 7, ends: 7 + widest}
		hash := rapid.OneOf(rapid.Uint64Range(0, 1<<hashBits-1), rapid.Uint64Range(0, 9))
		for range rapid.IntRange(0, 600).Draw(rt, "hashes") {
			h, tag := hash.Draw(rt, "hash"), uint64(0)
			if tags {
				tag = rapid.Uint64Range(0, 3).Draw(rt, "tag") << 60
			}
			first := rapid.Uint64Range(0, widest-1).Draw(rt, "first")
			for o := first; o < min(first+rapid.SampledFrom([]uint64{1, 1, 2, 900}).Draw(rt, "offsets"), widest); o += rapid.Uint64Range(1, 9).Draw(rt, "step") {
				b.entries = append(b.entries, entry{h<<16 | o, tag})
			}
		}
		slices.SortFunc(b.entries, entry.compare)
		b.entries = slices.Compact(b.entries)
		var read []entry
		var last int64 = -1
		for _, r := range b.rows(tags) {
			if r.first <= last {
				rt.Fatalf("a row that begins with %d follows one that ends with %d", r.first, last)
			}
			if err := r.each(tags, func(hash, tag, offset uint64) bool {
				read = append(read, entry{hash<<16 | offset, tag})
				last = int64(hash)
				return true
			}); err != nil {
				rt.Fatal(err)
			}
		}
		if !slices.Equal(read, b.entries) {
			rt.Fatalf("%d entries are read as %d", len(b.entries), len(read))
		}
	})
}

// Damaged postings are an error or other postings, never a crash.
func FuzzPostings(f *testing.F) {
	b := &block{entries: []entry{{at: 5 << 16}, {at: 5<<16 | 9}, {at: 900<<16 | 31}}}
	for _, r := range b.rows(false) {
		f.Add(r.postings, false)
	}
	for _, r := range b.rows(true) {
		f.Add(r.postings, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, tags bool) {
		n := 0
		_ = row{postings: b}.each(tags, func(_, _, _ uint64) bool { n++; return n < 1000 })
		_, _ = parseTimes(b)
	})
}

// openKeys opens data keys beside a ledger.
func openKeys(t testing.TB) (*ledger.Ledger, *seal.Keys) {
	t.Helper()
	nc := testenv.Conn(t, testenv.NATS(t))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(t.Context(), js, seal.Master{1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return openOn(t, nc), keys
}

// from is a use by an owner from an address.
func from(t testing.TB, keys *seal.Keys, owner, key, address string, at time.Time) events.Envelope {
	t.Helper()
	e := []events.Envelope{events.New(seal.Use{KeyUsed: events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: "/v1/parcels", Secret: "current"}, ClearIP: address}, at)}
	e[0].Keyspace, e[0].Owner, e[0].Key = "parcelbird", owner, key
	if err := keys.Prepare(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	return e[0]
}

// dump is every row of an index.
func dump(t testing.TB, conn *pgx.Conn, p postings) (all []string) {
	t.Helper()
	for _, table := range p.tables() {
		rows, err := conn.Query(t.Context(), `select t::text from `+table.Name+` t order by 1`)
		if err != nil {
			t.Fatal(err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list...)
	}
	return all
}

// However messages are cut into batches, and whenever the front is pruned, the rows
// are the same.
func TestIndexDoesNotDependOnBatches(t *testing.T) {
	_, keys := openKeys(t)
	conn := connection(t, database(t))
	random := rand.New(rand.NewPCG(5, 6))
	const messages = widest + 3*fan + 5
	var records []events.Record
	for s := uint64(1); s <= messages; s++ {
		for line := range 1 + random.IntN(3) {
			at := start.Add(time.Duration(random.IntN(3600)) * time.Second)
			e := from(t, keys, fmt.Sprint("o", random.IntN(20)), fmt.Sprint("key_", random.IntN(300)), fmt.Sprint("203.0.113.", random.IntN(256)), at)
			records = append(records, events.Record{Stream: events.Usage, Sequence: s, Line: line, Event: e})
		}
	}
	for _, p := range []struct {
		Projection
		postings
	}{{Uses{}, usesIndex}, {Addresses{keys}, addressesIndex}} {
		var want []string
		const through = 2*fan + 9
		prune := func(tx pgx.Tx) {
			if err := p.Projection.(Pruner).Prune(t.Context(), tx, through); err != nil {
				t.Fatal(err)
			}
		}
		for _, most := range []int{messages, 1, 7, 700} {
			pruned := false
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			rest := records
			for len(rest) > 0 {
				end := rest[0].Sequence + 1 + uint64(random.IntN(most))
				n, _ := slices.BinarySearchFunc(rest, end, func(r events.Record, end uint64) int { return int(int64(r.Sequence) - int64(end)) })
				if err := p.Apply(t.Context(), tx, rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
				if !pruned && most > 1 && len(rest) > 0 && rest[0].Sequence > through {
					prune(tx)
					pruned = true
				}
			}
			if !pruned {
				prune(tx)
			}
			got := dump(t, conn, p.postings)
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = got
			} else if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("%s in batches of up to %d messages (-want +got):\n%s", p.Name(), most, d)
			}
		}
		if len(want) < 10 {
			t.Errorf("%s has %d rows", p.Name(), len(want))
		}
	}
}

func located(t testing.TB, pool *pgxpool.Pool, keys *seal.Keys, w Wanted) []uint64 {
	t.Helper()
	l, err := NewIndex(pool, keys).Locate(t.Context(), w, 1)
	if err != nil {
		t.Fatal(err)
	}
	return l.Sequences
}

// After the data keys of an owner are destroyed, its addresses are in neither the
// index nor a rebuild of it; those of others, and those that it sealed since, are.
func TestForgottenAddresses(t *testing.T) {
	l, keys := openKeys(t)
	pool := database(t)
	w := newWriter(t, l)
	const address = "203.0.113.7"
	for range fan + 5 {
		w.page(from(t, keys, "o1", "key_1", address, start), from(t, keys, "o2", "key_2", "203.0.113.8", start))
	}
	w.page(from(t, keys, "o2", "key_2", address, start))
	shared := w.usage
	p := Addresses{keys}
	r, _ := running(t, l, pool, p)
	reached := func() {
		t.Helper()
		if err := r.Wait(t.Context(), p.Name(), w.usage); err != nil {
			t.Fatal(err)
		}
	}
	reached()
	if n := len(located(t, pool, keys, Wanted{IP: address})); n != int(shared) {
		t.Fatalf("the address is in %d messages of %d", n, shared)
	}
	id := seal.KeyID("parcelbird", "o1", start)
	if err := keys.Destroy(t.Context(), start.Add(time.Hour), id); err != nil {
		t.Fatal(err)
	}
	w.page(from(t, keys, "o1", "key_1", address, start)) // too late to be opened by anybody
	w.page(from(t, keys, "o1", "key_1", address, start.Add(2*time.Hour)))
	reached()
	for _, want := range []int64{fan + 5, 0} { // once more after an interruption
		if n, err := r.Erase(t.Context(), []string{id}); err != nil || n != want {
			t.Fatalf("%d places were erased, not %d: %v", n, want, err)
		}
	}
	if d := cmp.Diff([]uint64{shared, w.usage}, located(t, pool, keys, Wanted{IP: address})); d != "" {
		t.Errorf("the address is still found (-want +got):\n%s", d)
	}
	if n := len(located(t, pool, keys, Wanted{IP: "203.0.113.8"})); n != int(shared)-1 {
		t.Errorf("another's address is in %d messages", n)
	}
	result, err := r.Rebuild(t.Context(), p.Name(), nil)
	if err != nil || result.Differences != 0 || !result.Switched {
		t.Errorf("rebuilt: %+v, %v", result, err)
	}
	if d := cmp.Diff([]uint64{shared, w.usage}, located(t, pool, keys, Wanted{IP: address})); d != "" {
		t.Errorf("a rebuild brings it back (-want +got):\n%s", d)
	}
}

// An index that is away from its data keys waits; nothing is stopped or skipped.
func TestAddressesWaitForDataKeys(t *testing.T) {
	if permanent(fmt.Errorf("at 7: %w", awayError{fmt.Errorf("no answer")})) {
		t.Error("a projection stops because NATS does not answer")
	}
}
