package merkle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/merkle"
)

// scrubbed is a stage whose NATS server can be stopped, damaged and started again.
type scrubbed struct {
	stage
	dir   string // of the server
	nats  *embedded.NATS
	ends  func() // the log alone
	shut  func()
	nodes *testenv.Nodes // instead of dir
}

func newScrubbed(t *testing.T) *scrubbed {
	t.Helper()
	s := &scrubbed{stage: stage{t: t, pool: database(t)}, dir: t.TempDir()}
	s.start()
	return s
}

// start starts all of it.
func (s *scrubbed) start() {
	s.t.Helper()
	var server func()
	replicas, watch := 1, 100*time.Millisecond
	if s.nodes != nil {
		// A server that comes back empty may answer for a moment that a stream is empty.
		s.conn, server, replicas, watch = s.nodes.Conn(0), func() {}, 3, 0
	} else {
		n := testenv.NATS(s.t, testenv.InDir(s.dir))
		s.conn, server, s.nats = testenv.Conn(s.t, n), n.Shutdown, n
	}
	var err error
	if s.js, err = jetstream.New(s.conn); err != nil {
		s.t.Fatal(err)
	}
	known, err := merkle.Known(s.t.Context(), s.pool)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.ledger, err = ledger.Open(s.t.Context(), s.conn, ledger.Options{AllowUnverifiedSync: true, WatchEvery: watch, Replicas: replicas, Known: known}); err != nil {
		s.t.Fatal(err)
	}
	s.runner = projections.New(s.ledger, s.pool, slog.New(slog.DiscardHandler))
	s.o = merkle.Options{Ledger: s.ledger, Pool: s.pool, JetStream: s.js, Master: seal.Master{1}, Node: "n1", Replicas: replicas,
		Every: 20 * time.Millisecond, ScrubEvery: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	if s.log, err = merkle.Open(s.t.Context(), s.o); err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { s.runner.Run(ctx) })
	log, stopLog := context.WithCancel(ctx)
	s.ends = stopLog
	done.Go(func() { _ = s.log.Run(log) })
	done.Go(func() { _ = s.log.Scrub(log) })
	s.shut = sync.OnceFunc(func() {
		stop()
		done.Wait()
		_ = s.ledger.Close()
		s.conn.Close()
		server()
	})
	s.t.Cleanup(s.shut)
}

// whole waits until a pass over every stream that began after now found nothing.
func (s *scrubbed) whole() {
	s.t.Helper()
	now := events.At(time.Now())
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%+v", s.log.ScrubState())
		}
	}()
	until(s.t, "a whole pass that finds nothing", func() bool {
		for _, x := range s.log.ScrubState().Streams {
			if x.Last == nil || x.Last.Began < now || len(x.Findings) > 0 || x.Error != "" {
				return false
			}
			for _, server := range x.Servers {
				if server.Skipped != "" {
					return false
				}
			}
		}
		return true
	})
	if err := s.log.Damage(); err != nil {
		s.t.Errorf("damage after a whole pass: %v", err)
	}
}

// finds waits for a finding, and checks that nothing is recorded or signed over it,
// and uses are.
func (s *scrubbed) finds(stream, what string, sequence uint64, line int) merkle.Finding {
	s.t.Helper()
	var found merkle.Finding
	until(s.t, fmt.Sprintf("%s %s %d %d is found; it is %+v", stream, what, sequence, line, s.log.ScrubState()), func() bool {
		for _, x := range s.log.ScrubState().Streams {
			for _, f := range x.Findings {
				if f.Stream == stream && f.What == what && f.Sequence == sequence && f.Line == line {
					found = f
					return true
				}
			}
		}
		return false
	})
	for _, want := range []string{stream, found.Problem, found.Fix, "docs/runbooks/" + found.Runbook} {
		if err := s.log.Damage(); err == nil || !strings.Contains(err.Error(), want) {
			s.t.Errorf("%q is not in: %v", want, err)
		}
	}
	if _, err := os.Stat(filepath.Join("..", "..", "docs", "runbooks", found.Runbook)); err != nil {
		s.t.Error(err)
	}
	e := events.New(events.KeyCreated{Name: "k", Environment: "live"}, time.Now())
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "o1", "key_refused", 1
	if _, err := s.ledger.Append(s.t.Context(), 0, e); !held(err) {
		s.t.Errorf("an append is answered with %v", err)
	}
	if _, err := s.ledger.AppendBatch(s.t.Context(), []ledger.Expect{{Event: e}, {Event: e}}); !held(err) {
		s.t.Errorf("a batch is answered with %v", err)
	}
	if _, err := s.ledger.Prune(s.t.Context(), 1); !held(err) {
		s.t.Errorf("a pruning is answered with %v", err)
	}
	until(s.t, "nothing is signed", func() bool { return s.log.Doubt() != nil })
	return found
}

func held(err error) bool {
	_, is := errors.AsType[*ledger.HeldError](err)
	return is
}

// goesOn shows that facts are recorded and signed again.
func (s *scrubbed) goesOn() {
	s.t.Helper()
	s.whole()
	until(s.t, "signed again", func() bool { return s.log.Doubt() == nil })
	s.facts(1)
	head, err := s.ledger.Head(s.t.Context(), events.Ledger)
	if err != nil {
		s.t.Fatal(err)
	}
	s.sealed(events.Ledger, head)
}

// fill records something in LEDGER and USAGE, over more than a tile.
func (s *scrubbed) fill() {
	s.t.Helper()
	s.facts(300)
	for range 40 {
		s.page(20)
	}
	head, err := s.ledger.Head(s.t.Context(), events.Ledger)
	if err != nil {
		s.t.Fatal(err)
	}
	s.sealed(events.Ledger, head)
	s.sealed(events.Usage, s.last)
}

// What NATS itself does not notice, a scrub does: which event, and what to do. Done
// as the runbook says, the log goes on.
func TestScrub(t *testing.T) {
	t.Parallel()
	s := newScrubbed(t)
	s.fill()
	s.goesOn()
	for _, x := range s.log.ScrubState().Streams {
		if x.Last.Ended < x.Last.Began || x.Stream == events.Usage && (x.Last.Events != 800 || x.Last.Bytes < 800*100) || len(x.Servers) != 1 || x.Servers[0].Checked == 0 {
			t.Errorf("%+v, %+v", x, x.Last)
		}
	}

	// A copy of the server's directory is what is restored, as in restore.md.
	s.shut()
	intact := t.TempDir()
	if err := os.CopyFS(intact, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name     string
		damage   func()
		stream   string
		what     string
		sequence uint64
		line     int
	}{
		{"flipped bit", func() { testenv.FlipBit(t, s.dir, events.Usage, 17) }, events.Usage, merkle.FoundMissing, 17, 0},
		{"flipped bit in the ledger", func() { testenv.FlipBit(t, s.dir, events.Ledger, 120) }, events.Ledger, merkle.FoundMissing, 120, 0},
		{"forged use", func() { testenv.Forge(t, s.dir, events.Usage, 23, `"count":1`, `"count":7`) }, events.Usage, merkle.FoundAltered, 23, 19},
		{"forged fact", func() { testenv.Forge(t, s.dir, events.Ledger, 271, `live`, `test`) }, events.Ledger, merkle.FoundAltered, 271, 0},
		{"unreadable use", func() { testenv.Forge(t, s.dir, events.Usage, 5, `"count":1`, `"count",1`) }, events.Usage, merkle.FoundUnreadable, 5, 19},
		{"made anew with one event edited", func() { s.edited(events.Ledger, 33) }, events.Ledger, merkle.FoundAltered, 33, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			s.t, s.stage.t = t, t
			x.damage()
			s.start()
			s.finds(x.stream, x.what, x.sequence, x.line)
			if x.name != "unreadable use" && x.name != "flipped bit in the ledger" && len(s.ledger.Doubts()) > 0 {
				t.Errorf("NATS or somebody else noticed it: %v", s.ledger.Doubts())
			}
			// It is known from the first moment of the next start, and by every process.
			s.shut()
			s.start()
			if s.log.Damage() == nil {
				t.Error("it is forgotten")
			}
			s.shut()
			if err := os.RemoveAll(s.dir); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(s.dir, os.DirFS(intact)); err != nil {
				t.Fatal(err)
			}
			s.start()
			s.whole()
			s.shut()
		})
	}
	s.t, s.stage.t = t, t
	s.start()
	s.goesOn()
}

// edited makes a stream anew, with every message as it was but one.
func (s *scrubbed) edited(stream string, sequence uint64) {
	s.t.Helper()
	s.anew(stream, func(all []*jetstream.RawStreamMsg) []*jetstream.RawStreamMsg {
		all[sequence-1].Data = bytes.Replace(all[sequence-1].Data, []byte(`"live"`), []byte(`"test"`), 1)
		return all
	})
}

// shorter makes a stream anew, without its end.
func (s *scrubbed) shorter(stream string, last uint64) {
	s.t.Helper()
	s.anew(stream, func(all []*jetstream.RawStreamMsg) []*jetstream.RawStreamMsg { return all[:last] })
}

// anew deletes a stream and writes what becomes of its messages.
func (s *scrubbed) anew(stream string, becomes func([]*jetstream.RawStreamMsg) []*jetstream.RawStreamMsg) {
	s.t.Helper()
	n := testenv.NATS(s.t, testenv.InDir(s.dir))
	defer n.Shutdown()
	conn := testenv.Conn(s.t, n)
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	old, err := js.Stream(s.t.Context(), stream)
	if err != nil {
		s.t.Fatal(err)
	}
	var all []*jetstream.RawStreamMsg
	for i := range old.CachedInfo().State.LastSeq {
		m, err := old.GetMsg(s.t.Context(), i+1)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, m)
	}
	err = js.DeleteStream(s.t.Context(), stream)
	if err == nil {
		_, err = js.CreateStream(s.t.Context(), ledger.Config(stream, 1))
	}
	for _, m := range becomes(all) {
		if err == nil {
			m.Header.Del(jetstream.ExpectedLastSubjSeqHeader)
			_, err = js.PublishMsg(s.t.Context(), &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Rows of the tree that were changed are told from events that were. A rebuild mends
// them.
func TestScrubRows(t *testing.T) {
	t.Parallel()
	s := newScrubbed(t)
	s.fill()
	s.goesOn()
	table := merkle.Tree{Stream: events.Usage}.Table()
	for _, x := range []struct {
		name, change string
		sequence     uint64
		line         int
	}{
		{"hash", `update keyledger.` + table + ` set hashes = set_byte(hashes, 3210, get_byte(hashes, 3210) # 1) where level = 0 and number = 1`, 13, 16},
		{"hash above", `update keyledger.` + table + ` set hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1) where level = 1`, 0, 0},
		{"place", `update keyledger.` + table + ` set first_line = 3 where level = 0 and number = 2`, 26, 12},
		{"runs", `update keyledger.` + table + ` set runs = set_byte(runs, 2, 19) where level = 0 and number = 2`, 26, 12},
		{"row gone", `delete from keyledger.` + table + ` where level = 0 and number = 1`, 13, 16},
	} {
		t.Run(x.name, func(t *testing.T) {
			s.t, s.stage.t = t, t
			if tag, err := s.pool.Exec(t.Context(), x.change); err != nil || tag.RowsAffected() != 1 {
				t.Fatal(tag, err)
			}
			s.finds(events.Usage, merkle.FoundTree, x.sequence, x.line)
			if _, err := s.runner.Rebuild(t.Context(), table, nil); err != nil {
				t.Fatal(err)
			}
			s.goesOn()
		})
	}
	s.t, s.stage.t = t, t

	// Both at once: the stream is not found to be well.
	t.Run("row and event", func(t *testing.T) {
		s.t, s.stage.t = t, t
		s.shut()
		testenv.Forge(t, s.dir, events.Usage, 20, `"count":1`, `"count":7`)
		if _, err := s.pool.Exec(t.Context(), `update keyledger.`+table+` set hashes = set_byte(hashes, 3210, get_byte(hashes, 3210) # 1) where level = 0 and number = 1`); err != nil {
			t.Fatal(err)
		}
		s.start()
		s.finds(events.Usage, merkle.FoundTree, 13, 16)
		s.finds(events.Usage, merkle.FoundAltered, 13, 0)
		s.shut()
		testenv.Forge(t, s.dir, events.Usage, 20, `"count":7`, `"count":1`)
		s.start()
		if _, err := s.runner.Rebuild(t.Context(), table, nil); err != nil {
			t.Fatal(err)
		}
		s.goesOn()
	})
}

// What the bucket remembers is a part of the log too, and a stream that ends before
// what was signed is found where PostgreSQL has forgotten it.
func TestScrubOfMemory(t *testing.T) {
	t.Parallel()
	s := newScrubbed(t)
	s.fill()
	s.goesOn()
	kv, err := s.js.KeyValue(t.Context(), merkle.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	good, err := kv.Get(t.Context(), "checkpoint.usage")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "checkpoint.usage", bytes.Replace(good.Value(), []byte(`800\n`), []byte(`801\n`), 1)); err != nil {
		t.Fatal(err)
	}
	s.finds(events.Usage, merkle.FoundCheckpoint, 0, 0)
	// As the runbook says: the value that `nats kv history` shows as the last good one.
	if _, err := kv.Put(t.Context(), "checkpoint.usage", good.Value()); err != nil {
		t.Fatal(err)
	}
	s.goesOn()

	s.shut()
	intact := t.TempDir()
	if err := os.CopyFS(intact, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.pool.Exec(t.Context(), `truncate keyledger.log_checkpoints, keyledger.positions`); err != nil {
		t.Fatal(err)
	}
	for _, stream := range audit.Streams {
		if _, err := s.pool.Exec(t.Context(), `truncate keyledger.`+merkle.Tree{Stream: stream}.Table()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.dir, os.DirFS(intact)); err != nil {
		t.Fatal(err)
	}
	s.shorter(events.Usage, 30)
	s.start()
	s.finds(events.Usage, merkle.FoundShort, 31, 0)
	s.shut()
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.dir, os.DirFS(intact)); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.whole()
}

// Where the beginning of USAGE was pruned, what is left is read and compared, from the
// signed tree before it on.
func TestScrubOfPruned(t *testing.T) {
	t.Parallel()
	s := newScrubbed(t)
	s.fill()
	for _, through := range []uint64{17, 32} { // in the middle of a tile, and at the end of none
		if _, err := s.ledger.AppendOps(t.Context(), events.New(events.UsagePruned{Stream: events.Usage, Through: through}, time.Now())); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ledger.Prune(t.Context(), through); err != nil {
			t.Fatal(err)
		}
		s.goesOn()
	}
	s.shut()
	testenv.Forge(t, s.dir, events.Usage, 35, `"count":1`, `"count":7`)
	s.start()
	s.finds(events.Usage, merkle.FoundAltered, 35, 19)
	s.shut()
	testenv.Forge(t, s.dir, events.Usage, 35, `"count":7`, `"count":1`)
	s.start()
	s.goesOn()
	// All of it.
	if _, err := s.ledger.AppendOps(t.Context(), events.New(events.UsagePruned{Stream: events.Usage, Through: s.last}, time.Now())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ledger.Prune(t.Context(), s.last); err != nil {
		t.Fatal(err)
	}
	s.goesOn()
	s.page(20)
	s.sealed(events.Usage, s.last)
	s.goesOn()
}

// One process scrubs, the others wait; what it finds stops all of them, and when it
// ends another goes on.
func TestScrubIsDoneOnce(t *testing.T) {
	t.Parallel()
	s := newScrubbed(t)
	s.fill()
	s.goesOn()
	conn := testenv.Conn(t, s.nats)
	o := s.o
	o.Node = "n2"
	var err error
	if o.JetStream, err = jetstream.New(conn); err != nil {
		t.Fatal(err)
	}
	if o.Ledger, err = ledger.Open(t.Context(), conn, ledger.Options{AllowUnverifiedSync: true, ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	defer o.Ledger.Close()
	other, err := merkle.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	defer done.Wait()
	defer stop()
	done.Go(func() { _ = other.Scrub(ctx) })
	until(t, "the other one shows who scrubs", func() bool { return other.ScrubState().Node == "n1" && other.ScrubState().Streams[0].Last != nil })

	table := merkle.Tree{Stream: events.Usage}.Table()
	if _, err := s.pool.Exec(t.Context(), `update keyledger.`+table+` set hashes = set_byte(hashes, 3210, get_byte(hashes, 3210) # 1) where level = 0 and number = 1`); err != nil {
		t.Fatal(err)
	}
	s.finds(events.Usage, merkle.FoundTree, 13, 16)
	until(t, "the other one knows what was found", func() bool { return other.Damage() != nil })
	e := events.New(events.KeyCreated{Name: "k", Environment: "live"}, time.Now())
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "o1", "key_refused", 1
	if _, err := o.Ledger.Append(t.Context(), 0, e); !held(err) {
		t.Errorf("an append of the other one is answered with %v", err)
	}
	if err := other.ScrubNow(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := s.runner.Rebuild(t.Context(), table, nil); err != nil {
		t.Fatal(err)
	}
	s.whole()
	until(t, "the other one knows that it is repaired", func() bool { return other.Damage() == nil })
	s.ends()
	until(t, "the other one scrubs", func() bool {
		x := other.ScrubState()
		return x.Node == "n2" && x.Streams[1].Last != nil && x.Streams[1].Last.Events == 800
	})
}

// Of three servers each one's copy is read, whichever leads: damage on one of them is
// found there and nowhere else, also where the two others answer everybody rightly.
// A copy made anew from the others, as restore.md says, mends it while the service runs.
func TestScrubOfReplicas(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := &scrubbed{stage: stage{t: t, pool: database(t)}, dir: base, nodes: testenv.Cluster(t, 3, testenv.InDir(base))}
	s.start()
	s.fill()
	s.goesOn()
	for _, x := range s.log.ScrubState().Streams {
		var servers []string
		for _, server := range x.Servers {
			servers = append(servers, server.Server)
		}
		if slices.Sort(servers); !slices.Equal(servers, []string{"n0", "n1", "n2"}) {
			t.Errorf("%s was read on %v", x.Stream, servers)
		}
	}

	// A server that is away is no finding: its copy is left out, which is said.
	s.nodes.Stop(2)
	until(t, "n2 is left out", func() bool {
		for _, server := range s.log.ScrubState().Streams[0].Servers {
			if server.Server == "n2" && server.Skipped != "" {
				return true
			}
		}
		return false
	})
	s.facts(1)
	if err := s.log.Damage(); err != nil {
		t.Errorf("a server that is away is found to be damaged: %v", err)
	}
	s.nodes.Restart(2)
	s.goesOn()
	for _, x := range []struct {
		name     string
		node     int
		damage   func(dir string)
		stream   string
		what     string
		sequence uint64
		line     int
	}{
		{"flipped bit", 1, func(dir string) { testenv.FlipBit(t, dir, events.Usage, 17) }, events.Usage, merkle.FoundMissing, 17, 0},
		{"forged fact", 2, func(dir string) { testenv.Forge(t, dir, events.Ledger, 120, `live`, `test`) }, events.Ledger, merkle.FoundAltered, 120, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			s.t, s.stage.t = t, t
			dir := filepath.Join(base, fmt.Sprint("n", x.node))
			s.nodes.Stop(x.node)
			x.damage(dir)
			s.nodes.Restart(x.node)
			f := s.finds(x.stream, x.what, x.sequence, x.line)
			if f.Server != fmt.Sprint("n", x.node) || !strings.Contains(f.Problem, f.Server) || !strings.Contains(f.Fix, "from the other servers") {
				t.Errorf("%+v", f)
			}
			for _, other := range s.log.ScrubState().Streams {
				for _, o := range other.Findings {
					if o != f {
						t.Errorf("found as well: %+v", o)
					}
				}
			}
			if doubts := s.ledger.Doubts(); len(doubts) > 0 {
				t.Errorf("somebody else noticed it: %v", doubts)
			}
			s.page(20) // uses are recorded as ever
			s.nodes.Stop(x.node)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			s.nodes.Restart(x.node)
			s.goesOn()
		})
	}
}
