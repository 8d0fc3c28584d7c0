package merkle_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections/merkle"
)

// database is one with the schema.
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

// memory is a tree kept by tlog alone.
type memory struct {
	hashes []tlog.Hash
	leaves []audit.Leaf
	parts  map[audit.Scope]*audit.Part
}

func (m *memory) ReadHashes(indexes []int64) (list []tlog.Hash, err error) {
	for _, i := range indexes {
		list = append(list, m.hashes[i])
	}
	return list, nil
}

func (m *memory) add(t interface{ Fatal(...any) }, r *events.Record) {
	l := audit.LeafOf(r)
	more, err := tlog.StoredHashesForRecordHash(int64(len(m.leaves)), l.Hash(), m)
	if err != nil {
		t.Fatal(err)
	}
	m.hashes, m.leaves = append(m.hashes, more...), append(m.leaves, l)
	for _, s := range l.Scopes() {
		if m.parts[s] == nil {
			m.parts[s] = &audit.Part{Scope: s.ID()}
		}
		m.parts[s].Add(l.Hash())
	}
}

func (m *memory) root(t interface{ Fatal(...any) }, size int64) tlog.Hash {
	root, err := tlog.TreeHash(size, m)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

type folder interface {
	Apply(context.Context, pgx.Tx, []events.Record) error
}

func apply(t interface{ Fatal(...any) }, pool *pgxpool.Pool, batch []events.Record, all ...folder) {
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(context.Background(), `set local search_path = keyledger`); err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if err := f.Apply(context.Background(), tx, batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Any messages, cut into batches in any way, give the tree and the parts that tlog
// makes of them in memory; every leaf is found by its place, and its place by the leaf.
func TestFold(t *testing.T) {
	pool := database(t)
	tree, parts := merkle.Tree{Stream: events.Usage}, merkle.Parts{Stream: events.Usage}
	l := merkle.Reading(pool)
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		if _, err := pool.Exec(ctx, `truncate keyledger.tree_usage_v1, keyledger.parts_usage_v1`); err != nil {
			t.Fatal(err)
		}
		m := &memory{parts: map[audit.Scope]*audit.Part{}}
		var batch []events.Record
		lines := rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(1, 700))
		for sequence := range uint64(rapid.IntRange(0, 40).Draw(t, "messages")) {
			for line := range lines.Draw(t, "lines") {
				r := events.Record{Stream: events.Usage, Sequence: sequence + 1, Line: line, Subject: "usage.ks.n1", Body: fmt.Appendf(nil, "%d %d", sequence, line)}
				r.Event.Keyspace = "ks"
				if o := (line + int(sequence)) % 4; o > 0 {
					r.Event.Owner = fmt.Sprint("o", o)
					r.Event.Key = fmt.Sprint("key_", line%3)
				}
				m.add(t, &r)
				batch = append(batch, r)
			}
			if rapid.Bool().Draw(t, "cut") {
				apply(t, pool, batch, tree, parts)
				batch = nil
			}
		}
		if len(batch) > 0 {
			apply(t, pool, batch, tree, parts)
		}

		size := int64(len(m.leaves))
		reader := l.UncheckedHashReader(ctx, events.Usage)
		if got, err := tlog.TreeHash(size, reader); err != nil || got != m.root(t, size) {
			t.Fatalf("root of %d leaves: %v, %v", size, got, err)
		}
		if size == 0 {
			return
		}
		for range 5 {
			earlier := rapid.Int64Range(1, size).Draw(t, "earlier")
			checked := l.HashReader(ctx, events.Usage, audit.Tree{Size: earlier, Root: m.root(t, earlier)})
			index := rapid.Int64Range(0, earlier-1).Draw(t, "leaf")
			want, err1 := tlog.ProveRecord(earlier, index, m)
			got, err2 := tlog.ProveRecord(earlier, index, checked)
			if err1 != nil || err2 != nil || fmt.Sprint(want) != fmt.Sprint(got) {
				t.Fatalf("leaf %d of %d: %v %v", index, earlier, err1, err2)
			}
			at := m.leaves[index].Place
			if got, err := l.Index(ctx, at); err != nil || got != index {
				t.Fatalf("%s is leaf %d, not %d: %v", at, got, index, err)
			}
			if got, err := l.Place(ctx, events.Usage, index); err != nil || got != at {
				t.Fatalf("leaf %d is %s, not %s: %v", index, got, at, err)
			}
		}
		last := m.leaves[size-1].Place
		for _, no := range []audit.Place{{Stream: events.Usage}, {Stream: events.Usage, Sequence: last.Sequence, Line: last.Line + 1}, {Stream: events.Usage, Sequence: last.Sequence + 1}} {
			if i, err := l.Index(ctx, no); err == nil {
				t.Fatalf("%s is leaf %d", no, i)
			}
		}

		for s, want := range m.parts {
			id := s.ID()
			var count int64
			var chain []byte
			if err := pool.QueryRow(ctx, `select events, chain from keyledger.parts_usage_v1 where scope = $1`, id[:]).Scan(&count, &chain); err != nil || count != want.Count || string(chain) != string(want.Chain[:]) {
				t.Fatalf("%s: %d events, chain %x, %v; want %+v", s, count, chain, err, want)
			}
		}
		var rows int
		var all int64
		if err := pool.QueryRow(ctx, `select count(*), max(events) filter (where scope = '') from keyledger.parts_usage_v1`).Scan(&rows, &all); err != nil || rows != len(m.parts)+1 || all != size {
			t.Fatalf("%d rows, %d events, %v; want %d and %d", rows, all, err, len(m.parts)+1, size)
		}
	})
}

// A batch that does not go on where the tree ends is refused: nothing is skipped.
func TestFoldGap(t *testing.T) {
	pool := database(t)
	tree := merkle.Tree{Stream: events.Ledger}
	record := func(sequence uint64) []events.Record {
		return []events.Record{{Stream: events.Ledger, Sequence: sequence, Subject: "ledger.ks._._", Body: []byte("x")}}
	}
	apply(t, pool, record(1), tree)
	for _, wrong := range []uint64{1, 3} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `set local search_path = keyledger`); err != nil {
			t.Fatal(err)
		}
		if err := tree.Apply(t.Context(), tx, record(wrong)); err == nil {
			t.Errorf("sequence %d follows 1", wrong)
		}
		_ = tx.Rollback(t.Context())
	}
	apply(t, pool, record(2), tree)
}

// BenchmarkSeal measures leaves appended to a tree in PostgreSQL, beside the same
// hashes made by tlog alone, in memory.
func BenchmarkSeal(b *testing.B) {
	const batch = 20_000
	body := make([]byte, 640)
	records := make([]events.Record, batch)
	for i := range records {
		r := &records[i]
		r.Stream, r.Line, r.Subject, r.Body = events.Usage, i%256, "usage.parcelbird.node-1", body
		r.Event.Keyspace, r.Event.Owner, r.Event.Key = "parcelbird", fmt.Sprint("org_", i%50), fmt.Sprintf("key_01a201b4-19f8-7cb5-9bcc-ec83c23c%04d", i%1000)
	}
	sequence := uint64(0)
	next := func() []events.Record {
		for i := range records {
			if records[i].Line == 0 {
				sequence++
			}
			records[i].Sequence = sequence
		}
		return records
	}
	for name, f := range map[string]folder{"tree": merkle.Tree{Stream: events.Usage}, "parts": merkle.Parts{Stream: events.Usage}} {
		b.Run(name, func(b *testing.B) {
			pool := database(b)
			sequence = 0
			for b.Loop() {
				apply(b, pool, next(), f)
			}
			b.ReportMetric(float64(b.N)*batch/b.Elapsed().Seconds(), "leaves/s")
		})
	}
	b.Run("tlog", func(b *testing.B) {
		m := &memory{}
		n := int64(0)
		for b.Loop() {
			for i := range next() {
				r := &records[i]
				text := audit.Leaf{Place: audit.Place{Stream: r.Stream, Sequence: r.Sequence, Line: r.Line}, Subject: r.Subject,
					Keyspace: r.Event.Keyspace, Owner: r.Event.Owner, Key: r.Event.Key, Digest: sha256.Sum256(r.Body)}
				more, err := tlog.StoredHashesForRecordHash(n, text.Hash(), m)
				if err != nil {
					b.Fatal(err)
				}
				m.hashes = append(m.hashes, more...)
				n++
			}
		}
		b.ReportMetric(float64(b.N)*batch/b.Elapsed().Seconds(), "leaves/s")
	})
}
