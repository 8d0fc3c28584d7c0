package merkle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/merkle"
)

const patience = time.Minute

// stage is a ledger with projections and a log over it.
type stage struct {
	t      testing.TB
	conn   *nats.Conn
	js     jetstream.JetStream
	ledger *ledger.Ledger
	pool   *pgxpool.Pool
	runner *projections.Runner
	log    *merkle.Log
	o      merkle.Options
	stop   func() // of the log
	keys   uint64
	last   uint64 // sequence in USAGE
}

func newStage(t testing.TB, change ...func(*merkle.Options)) *stage {
	t.Helper()
	s := &stage{t: t, conn: testenv.Conn(t, testenv.NATS(t)), pool: database(t)}
	var err error
	if s.js, err = jetstream.New(s.conn); err != nil {
		t.Fatal(err)
	}
	if s.ledger, err = ledger.Open(t.Context(), s.conn, ledger.Options{AllowUnverifiedSync: true, WatchEvery: 100 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.ledger.Close() })
	s.runner = projections.New(s.ledger, s.pool, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { s.runner.Run(ctx) })
	t.Cleanup(func() { stop(); done.Wait() })
	s.o = merkle.Options{Ledger: s.ledger, Pool: s.pool, JetStream: s.js, Master: seal.Master{1}, Dir: filepath.Join(t.TempDir(), "log"), Node: "n1", Every: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&s.o)
	}
	s.open()
	return s
}

// open starts a log, after the one before has ended.
func (s *stage) open() {
	s.t.Helper()
	if s.stop != nil {
		s.stop()
	}
	var err error
	if s.log, err = merkle.Open(s.t.Context(), s.o); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = s.log.Run(ctx) })
	s.stop = func() { cancel(); done.Wait() }
	s.t.Cleanup(func() { s.stop() })
}

// facts appends n facts to LEDGER, each about a key of its own.
func (s *stage) facts(n int) {
	s.t.Helper()
	for range n {
		s.keys++
		e := events.New(events.KeyCreated{Name: "k", Environment: "live"}, time.Now())
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "o1", fmt.Sprintf("key_%d", s.keys), 1
		if _, err := s.ledger.Append(s.t.Context(), 0, e); err != nil {
			s.t.Fatal(err)
		}
	}
}

// page appends a page of uses.
func (s *stage) page(lines int) {
	s.t.Helper()
	var bodies [][]byte
	for i := range lines {
		e := events.New(events.LimitTaken{Node: "n1", Fold: events.Fold{Count: 1}}, time.Now())
		e.Keyspace, e.Owner = "parcelbird", fmt.Sprint("o", i%3)
		b, err := events.Encode(e)
		if err != nil {
			s.t.Fatal(err)
		}
		bodies = append(bodies, b)
	}
	sequence, err := s.ledger.AppendPage(s.t.Context(), "parcelbird", "n1", bodies)
	if err != nil {
		s.t.Fatal(err)
	}
	s.last = sequence
}

func (s *stage) sealed(stream string, sequence uint64) merkle.Signed {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	c, err := s.log.Sealed(ctx, stream, sequence)
	if err != nil {
		s.t.Fatalf("%v; %+v", err, s.log.State())
	}
	return c
}

// until waits until a condition holds that nothing signals.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (s *stage) verifier() note.Verifier {
	s.t.Helper()
	v, err := note.NewVerifier(s.log.Key())
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// Every stream has a signed checkpoint from the first moment on; what is appended is
// signed, proven, and proven against that alone.
func TestSealAndProve(t *testing.T) {
	s := newStage(t)
	for _, stream := range audit.Streams {
		if c := s.sealed(stream, 0); c.Size != 0 {
			t.Errorf("%s: %+v", stream, c)
		}
	}
	s.facts(3)
	for _, lines := range []int{1, 300, 2, 40} {
		s.page(lines)
	}
	s.sealed(events.Ledger, 3)
	c := s.sealed(events.Usage, 4)
	if c.Size != 343 {
		t.Errorf("size %d", c.Size)
	}
	if got, _, err := audit.Open(c.Note, audit.Origin(s.log.Name(), events.Usage), s.verifier()); err != nil || got.Tree != c.Tree {
		t.Errorf("%+v, %v", got, err)
	}
	for _, at := range []audit.Place{{Stream: events.Ledger, Sequence: 2, Line: 0}, {Stream: events.Usage, Sequence: 2, Line: 299}, {Stream: events.Usage, Sequence: 4, Line: 39}, {Stream: events.Usage, Sequence: 1, Line: 0}} {
		p, err := s.log.Prove(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		if p.Leaf.Place != at {
			t.Errorf("%s is proven as %s", at, p.Leaf.Place)
		}
		if err := tlog.CheckRecord(p.Hashes, p.Size, p.Root, p.Index, p.Leaf.Hash()); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
	for _, no := range []audit.Place{{Stream: events.Ledger, Sequence: 4, Line: 0}, {Stream: events.Usage, Sequence: 2, Line: 300}, {Stream: events.Usage, Sequence: 9, Line: 0}} {
		if _, err := s.log.Prove(t.Context(), no); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("%s: %v", no, err)
		}
	}
}

// A part is proven with a checkpoint that names the tree it is of; for what no event
// is about, two neighbours say so.
func TestParts(t *testing.T) {
	s := newStage(t)
	s.page(30)
	s.page(31)
	s.sealed(events.Usage, 2)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.runner.Wait(ctx, "parts_usage_v1", 2); err != nil {
		t.Fatal(err)
	}
	c, err := s.log.Parts(ctx, events.Usage)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := audit.Open(c.Note, audit.PartsOrigin(s.log.Name(), events.Usage), s.verifier())
	if err != nil || got.Of == nil || *got.Of != c.Log.Tree || got.Size != 4 || got.Of.Size != 61 {
		t.Fatalf("%+v, %v", got, err)
	}
	var chain audit.Part
	for i := range int64(61) {
		at, err := s.log.Place(ctx, events.Usage, i)
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.log.Prove(ctx, at)
		if err != nil {
			t.Fatal(err)
		}
		if (audit.Scope{Keyspace: "parcelbird", Owner: "o1"}).Holds(&p.Leaf) {
			chain.Add(p.Leaf.Hash())
		}
	}
	found, _, err := c.Prove(audit.Scope{Keyspace: "parcelbird", Owner: "o1"})
	if err != nil || found == nil || found.Part.Count != chain.Count || found.Part.Chain != chain.Chain {
		t.Fatalf("%+v, %v; want %+v", found, err, chain)
	}
	if err := tlog.CheckRecord(found.Hashes, c.Size, c.Root, found.Index, found.Part.Hash()); err != nil {
		t.Error(err)
	}
	for i := range 20 {
		found, between, err := c.Prove(audit.Scope{Keyspace: "parcelbird", Owner: fmt.Sprint("none", i)})
		if err != nil || found != nil || len(between) == 0 {
			t.Fatalf("%+v, %+v, %v", found, between, err)
		}
		for _, p := range between {
			if err := tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Index, p.Part.Hash()); err != nil {
				t.Error(err)
			}
		}
		if len(between) == 2 && between[1].Index != between[0].Index+1 {
			t.Errorf("%d and %d are no neighbours", between[0].Index, between[1].Index)
		}
	}
}

// The next key is announced by an event that the old one signed; what is signed
// afterwards is signed by the new one, and both stay known.
func TestRotation(t *testing.T) {
	s := newStage(t)
	s.facts(1)
	s.sealed(events.Ledger, 1)
	old := s.verifier()
	rotated, err := s.log.Rotate(t.Context(), "cmd_1", func(e *events.Envelope) { e.Actor.ID = "key_1" })
	if err != nil {
		t.Fatal(err)
	}
	next := rotated.Key
	if again, err := s.log.Rotate(t.Context(), "cmd_1", nil); err != nil || !again.Replayed || again.Key.Verifier != next.Verifier || again.Sequence != 1 || rotated.Sequence != 1 {
		t.Errorf("the same command again: %+v, %v", again, err)
	}
	r, err := s.ledger.At(t.Context(), events.Ops, 1)
	if err != nil {
		t.Fatal(err)
	}
	said := r[0].Event.Data.(events.LogKeyRotated)
	text, verifier, err := audit.OpenSuccessor([]byte(said.Statement), old)
	if err != nil || text != next.Verifier || text != said.Key || r[0].Event.Actor.ID != "key_1" {
		t.Errorf("%+v: %q, %v", r[0].Event, text, err)
	}
	if named, ok := s.log.Successor(old.KeyHash()); !ok || string(named) != said.Statement || r[0].Event.Command != "cmd_1" {
		t.Errorf("it is answered as %s, the event %+v", named, r[0].Event)
	}
	if named, ok := s.log.Successor(verifier.KeyHash()); ok {
		t.Errorf("the new key names %s", named)
	}
	until(t, "LEDGER is signed by the new key, at the same size", func() bool {
		c, err := s.log.Checkpoint(events.Ledger)
		if err != nil {
			return false
		}
		_, _, err = audit.Open(c.Note, audit.Origin(s.log.Name(), events.Ledger), verifier)
		return err == nil && c.Size == 1
	})
	s.open()
	if keys := s.log.Keys(); len(keys) != 2 || keys[0].Verifier != next.Verifier || keys[1].Until == 0 {
		t.Errorf("%+v", keys)
	}
}

// On doubt nothing is signed, and what is said names the stream, the size and what
// to do. What was signed is answered on.
func TestDoubts(t *testing.T) {
	doubt := func(s *stage, stream string, words ...string) {
		s.t.Helper()
		var said string
		until(s.t, "a doubt about "+stream+" that says "+strings.Join(words, ", "), func() bool {
			for _, st := range s.log.State() {
				if st.Doubt != nil && st.Stream == stream {
					said = st.Doubt.Error()
				}
			}
			for _, w := range append(words, "What to do:") {
				if !strings.Contains(said, w) {
					return false
				}
			}
			return true
		})
	}
	prepared := func(t *testing.T) *stage {
		s := newStage(t)
		s.facts(5)
		s.sealed(events.Ledger, 5)
		until(t, "the checkpoint is published", func() bool { return s.log.State()[0].Published == 5 })
		return s
	}
	exec := func(s *stage, sql string, args ...any) {
		s.t.Helper()
		if _, err := s.pool.Exec(s.t.Context(), sql, args...); err != nil {
			s.t.Fatal(err)
		}
	}
	kv := func(s *stage) jetstream.KeyValue {
		kv, err := s.js.KeyValue(s.t.Context(), merkle.Bucket)
		if err != nil {
			s.t.Fatal(err)
		}
		return kv
	}
	notSigned := func(s *stage) {
		s.t.Helper()
		if e, err := kv(s).Get(s.t.Context(), "checkpoint.ledger"); err == nil && strings.Contains(string(e.Value()), "\\n6\\n") {
			s.t.Error("it was signed nevertheless")
		}
	}

	t.Run("the checkpoint is gone", func(t *testing.T) {
		s := prepared(t)
		if err := kv(s).Purge(t.Context(), "checkpoint.ledger"); err != nil {
			t.Fatal(err)
		}
		s.facts(1)
		doubt(s, events.Ledger, "LEDGER at size 5", "has no checkpoint", "PostgreSQL")
		notSigned(s)
		if c, err := s.log.Checkpoint(events.Ledger); err != nil || c.Size != 5 {
			t.Errorf("what was signed is not answered: %+v %v", c, err)
		}
	})
	t.Run("the bucket is gone", func(t *testing.T) {
		s := prepared(t)
		s.stop()
		if err := s.js.DeleteKeyValue(t.Context(), merkle.Bucket); err != nil {
			t.Fatal(err)
		}
		exec(s, `delete from keyledger.log_checkpoints`)
		s.open()
		doubt(s, events.Ledger, "has no key", "the published directory")
		if s.log.Key() != "" {
			t.Error("another key was made")
		}
	})
	t.Run("the checkpoint was set back", func(t *testing.T) {
		s := prepared(t)
		k := kv(s)
		older, err := k.Get(t.Context(), "checkpoint.ledger")
		if err != nil {
			t.Fatal(err)
		}
		s.facts(1)
		s.sealed(events.Ledger, 6)
		until(t, "the checkpoint is published", func() bool { return s.log.State()[0].Published == 6 })
		s.stop()
		if _, err := k.Put(t.Context(), "checkpoint.ledger", older.Value()); err != nil {
			t.Fatal(err)
		}
		s.open()
		doubt(s, events.Ledger, "LEDGER at size 6", "set back")
	})
	t.Run("a row of the tree was changed", func(t *testing.T) {
		s := prepared(t)
		exec(s, `update keyledger.tree_ledger_v1 set hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1)`)
		s.facts(1)
		doubt(s, events.Ledger, "LEDGER at size 5", "does not contain the checkpoint", "rebuild")
		notSigned(s)
		if _, err := s.log.Prove(t.Context(), audit.Place{Stream: events.Ledger, Sequence: 3}); !errors.Is(err, merkle.ErrAltered) {
			t.Errorf("a proof from changed rows: %v", err)
		}
		if _, err := s.runner.Rebuild(t.Context(), "tree_ledger_v1", nil); err != nil {
			t.Fatal(err)
		}
		until(t, "the rebuilt tree is signed", func() bool {
			c, err := s.log.Checkpoint(events.Ledger)
			return err == nil && c.Size == 6
		})
	})
	t.Run("a checkpoint that this log has not signed", func(t *testing.T) {
		s := prepared(t)
		exec(s, `update keyledger.log_checkpoints set signed = replace(signed, E'\n5\n', E'\n4\n')`)
		s.facts(1)
		doubt(s, events.Ledger, "was not signed by this log", "PostgreSQL")
		notSigned(s)
	})
	t.Run("the stream was deleted", func(t *testing.T) {
		s := prepared(t)
		if err := s.js.DeleteStream(t.Context(), events.Feed); err != nil {
			t.Fatal(err)
		}
		until(t, "the ledger is in doubt", func() bool { return len(s.ledger.Doubts()) > 0 })
		doubt(s, events.Ledger, "the event streams are in doubt")
	})
}

// What is published is read by the paths of C2SP tlog-tiles, and a directory that
// was lost is written anew.
func TestPublish(t *testing.T) {
	s := newStage(t)
	for range 6 {
		s.page(200)
	}
	check := func() {
		t.Helper()
		c := s.sealed(events.Usage, s.last)
		until(t, "it is published", func() bool {
			b, err := os.ReadFile(filepath.Join(s.o.Dir, "usage", "checkpoint"))
			return err == nil && string(b) == string(c.Note)
		})
		tiles := fileTiles{filepath.Join(s.o.Dir, "usage")}
		checked := tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, tiles)
		for _, i := range []int64{0, 255, 256, c.Size - 1} {
			at, err := s.log.Place(t.Context(), events.Usage, i)
			if err != nil {
				t.Fatal(err)
			}
			p, err := s.log.Prove(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			if h, err := checked.ReadHashes([]int64{tlog.StoredHashIndex(0, i)}); err != nil || h[0] != p.Leaf.Hash() {
				t.Errorf("leaf %d of the directory: %v %v", i, h, err)
			}
		}
	}
	check()
	s.page(300)
	check()
	s.stop()
	if err := os.RemoveAll(s.o.Dir); err != nil {
		t.Fatal(err)
	}
	s.open()
	check()
}

// fileTiles reads tiles from a published directory, as a client would.
type fileTiles struct{ dir string }

func (fileTiles) Height() int                     { return 8 }
func (fileTiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (f fileTiles) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, t := range tiles {
		b, err := os.ReadFile(filepath.Join(f.dir, filepath.FromSlash(merkle.TilePath(t))))
		if err != nil {
			return nil, err
		}
		data = append(data, b)
	}
	return data, nil
}
