package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// refuses opens the ledger, and reads LEDGER through when that succeeds, as a
// service does at its start. The refusal must say what was found.
func refuses(t *testing.T, nc *nats.Conn, o ledger.Options, says ...string) {
	t.Helper()
	o.AllowUnverifiedSync = true
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := ledger.Open(ctx, nc, o)
	found := "Open"
	if err == nil {
		defer l.Close()
		found = "Check"
		err = l.Check(ctx)
	}
	refusal, ok := errors.AsType[*ledger.RefusalError](err)
	if !ok {
		t.Fatalf("not refused: %v", err)
	}
	t.Logf("found by %s: %v", found, err)
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the refusal does not say %q", s)
		}
	}
	for _, f := range refusal.Findings {
		if f.Stream == "" || f.Problem == "" || f.Means == "" || f.Fix == "" {
			t.Errorf("a finding that helps nobody: %+v", f)
		}
	}
	if found == "Check" {
		if _, err := l.Append(ctx, 0, created("org_1", "key_after", 1)); !errors.Is(err, refusal) {
			t.Errorf("an append after the refusal: %v", err)
		}
	}
}

// blocks are the data files of a stream, oldest first.
func blocks(t *testing.T, dir, stream string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".blk") && strings.Contains(path, string(filepath.Separator)+stream+string(filepath.Separator)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("no data files of %s in %s: %v", stream, dir, err)
	}
	slices.SortFunc(found, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return found
}

// Every way in which the data on disk can be damaged while the server is
// stopped is refused, at the latest when LEDGER is read through.
func TestDamagedFilesAreRefused(t *testing.T) {
	truncate := func(keep func(size int64) int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			s, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, keep(s.Size())); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(at func(size int) int) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[at(len(b))] ^= 0x10
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(t *testing.T, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	first := func(b []string) string { return b[0] }
	middle := func(b []string) string { return b[len(b)/2] }
	last := func(b []string) string { return b[len(b)-1] }
	half := func(n int) int { return n / 2 }

	for _, c := range []struct {
		name    string
		block   func([]string) string
		damage  func(*testing.T, string)
		noState bool // the server's own index is gone too, as after kill -9
	}{
		{"bit flip in the first block", first, flip(half), false},
		{"bit flip in a middle block", middle, flip(half), false},
		{"bit flip in the last block", last, flip(half), false},
		{"bit flip in the first bytes of a block", middle, flip(func(int) int { return 1 }), false},
		{"bit flip in the last byte of a block", middle, flip(func(n int) int { return n - 1 }), false},
		{"bit flip in the last byte of all", last, flip(func(n int) int { return n - 1 }), false},
		{"bit flip, index gone", middle, flip(half), true},
		{"bit flip in the last byte of all, index gone", last, flip(func(n int) int { return n - 1 }), true},
		{"first block truncated", first, truncate(func(n int64) int64 { return n / 2 }), false},
		{"middle block truncated", middle, truncate(func(n int64) int64 { return n / 2 }), false},
		{"last block truncated", last, truncate(func(n int64) int64 { return n / 2 }), false},
		{"last block truncated, index gone", last, truncate(func(n int64) int64 { return n / 2 }), true},
		{"middle block emptied", middle, truncate(func(int64) int64 { return 0 }), false},
		{"first block missing", first, remove, false},
		{"middle block missing", middle, remove, false},
		{"last block missing", last, remove, false},
		{"middle block missing, index gone", middle, remove, true},
		{"last block missing, index gone", last, remove, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			n := testenv.NATS(t, testenv.InDir(dir))
			nc := testenv.Conn(t, n)
			heads := filepath.Join(t.TempDir(), "head.json")
			l := open(t, nc, ledger.Options{HeadFile: heads})
			// The server begins another file after 4 or 8 MB.
			const facts = 120
			for i := range facts {
				e := created("org_1", fmt.Sprintf("key_%d", i), 1)
				d := e.Data.(events.KeyCreated)
				d.Meta = map[string]string{"filler": strings.Repeat("x", 200_000)}
				e.Data = d
				if _, err := l.Append(t.Context(), 0, e); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			nc.Close()
			n.Shutdown()
			files := blocks(t, dir, events.Ledger)
			if len(files) < 3 {
				t.Fatalf("only %d data files", len(files))
			}
			c.damage(t, c.block(files))
			if c.noState {
				if err := os.Remove(filepath.Join(filepath.Dir(files[0]), "index.db")); err != nil {
					t.Fatal(err)
				}
			}
			refuses(t, testenv.Conn(t, testenv.NATS(t, testenv.InDir(dir))), ledger.Options{HeadFile: heads}, "LEDGER", "What to do")
		})
	}
}

// An intact directory is opened again, and the head file with it.
func TestReopen(t *testing.T) {
	dir, heads := t.TempDir(), filepath.Join(t.TempDir(), "head.json")
	for i := range 3 {
		n := testenv.NATS(t, testenv.InDir(dir))
		nc := testenv.Conn(t, n)
		l := open(t, nc, ledger.Options{HeadFile: heads})
		if err := l.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(t.Context(), uint64(i), revoked("org_1", "key_1", uint64(i)+1)); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		nc.Close()
		n.Shutdown()
	}
}

// What was done to the streams through the API, or is missing from them, is
// refused with all that was found.
func TestChangedStreamsAreRefused(t *testing.T) {
	update := func(change func(*jetstream.StreamConfig)) func(*testing.T, jetstream.JetStream) {
		return func(t *testing.T, js jetstream.JetStream) {
			s, err := js.Stream(t.Context(), events.Ledger)
			if err != nil {
				t.Fatal(err)
			}
			config := s.CachedInfo().Config
			change(&config)
			if _, err := js.UpdateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
		}
	}
	recreate := func(fill int) func(*testing.T, jetstream.JetStream) {
		return func(t *testing.T, js jetstream.JetStream) {
			if err := js.DeleteStream(t.Context(), events.Ledger); err != nil {
				t.Fatal(err)
			}
			if _, err := js.CreateStream(t.Context(), ledger.Config(events.Ledger, 1)); err != nil {
				t.Fatal(err)
			}
			for i := range fill {
				e := created("org_2", fmt.Sprintf("key_%d", i), 1)
				body, _ := events.Encode(e)
				if _, err := js.Publish(t.Context(), events.Subject(e.Keyspace, e.Owner, e.Key), body); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, c := range []struct {
		name   string
		breaks func(*testing.T, jetstream.JetStream)
		known  []ledger.Position
		says   []string
	}{
		{"a limit was set", update(func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 }), nil, []string{"max_msgs is 1000 instead of -1"}},
		{"a limit was set and removed facts", update(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 3, jetstream.DiscardOld }), nil, []string{"max_msgs is 3", "begins at sequence 8 instead of 1"}},
		{"a limit removed facts and was set back", func(t *testing.T, js jetstream.JetStream) {
			update(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 3, jetstream.DiscardOld })(t, js)
			update(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = -1, jetstream.DiscardNew })(t, js)
		}, nil, []string{"begins at sequence 8 instead of 1"}},
		{"an age was set", update(func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }), nil, []string{"max_age"}},
		{"another subject was added", update(func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "other") }), nil, []string{"subjects"}},
		{"the stream was deleted", func(t *testing.T, js jetstream.JetStream) {
			if err := js.DeleteStream(t.Context(), events.Ledger); err != nil {
				t.Fatal(err)
			}
		}, []ledger.Position{{"keys_v1", events.Ledger, 10, ""}}, []string{"does not exist", "keys_v1", "10"}},
		{"the stream was made anew", recreate(0), []ledger.Position{{"keys_v1", events.Ledger, 10, ""}}, []string{"ends at sequence 0, but keys_v1 stands at 10"}},
		{"the stream was made anew and filled", recreate(12), []ledger.Position{{"keys_v1", events.Ledger, 10, "evt_1"}}, []string{"at sequence 10 it holds event", "evt_1"}},
		{"the stream acknowledges before it writes", func(t *testing.T, js jetstream.JetStream) {
			if err := js.DeleteStream(t.Context(), events.Ledger); err != nil {
				t.Fatal(err)
			}
			config := ledger.Config(events.Ledger, 1)
			config.PersistMode, config.AllowAtomicPublish = jetstream.AsyncPersistMode, false
			if _, err := js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{`persist_mode is "async"`, "allow_atomic"}},
		{"a projection is ahead", func(*testing.T, jetstream.JetStream) {}, []ledger.Position{{"keys_v1", events.Ledger, 11, ""}, {"merkle", events.Ledger, 12, ""}}, []string{"keys_v1 stands at 11", "merkle stands at 12"}},
		{"FEED is ahead", func(t *testing.T, js jetstream.JetStream) {
			m := &nats.Msg{Subject: "feed.key.revoked.ks.org_1.key_1", Header: nats.Header{"Ledger-Sequence": {"20"}}, Data: []byte(`{}`)}
			if _, err := js.PublishMsg(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"ends at sequence 10, but the last message of FEED stands at 20"}},
		{"something else wrote to the stream", func(t *testing.T, js jetstream.JetStream) {
			if _, err := js.Publish(t.Context(), "ledger.ks.org_1.key_1", []byte("hello")); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"sequence 11", "is not a fact"}},
		{"a fact stands on another's subject", func(t *testing.T, js jetstream.JetStream) {
			body, _ := events.Encode(revoked("org_1", "key_1", 2))
			if _, err := js.Publish(t.Context(), "ledger.ks.org_1.key_2", body); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"sequence 11", "its subject ledger.ks.org_1.key_2"}},
		{"USAGE was purged without a record", func(t *testing.T, js jetstream.JetStream) {
			s, err := js.Stream(t.Context(), events.Usage)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(2)); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"USAGE: it begins at sequence 2 instead of 1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			nc := testenv.Conn(t, testenv.NATS(t))
			l := open(t, nc, ledger.Options{})
			for i := range 10 {
				if _, err := l.Append(t.Context(), 0, created("org_1", fmt.Sprintf("key_%d", i), 1)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				body, _ := events.Encode(used("key_1"))
				if _, err := l.AppendPage(t.Context(), "ks", "n", [][]byte{body}); err != nil {
					t.Fatal(err)
				}
			}
			l.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			c.breaks(t, js)
			refuses(t, nc, ledger.Options{Known: c.known}, c.says...)
		})
	}
}

// A process that starts while others append and carry facts to FEED finds nothing
// wrong with that.
func TestOpenWhileOthersWrite(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	end := make(chan struct{})
	written := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-end:
				written <- nil
				return
			default:
			}
			e := created("org_1", fmt.Sprintf("key_%d", i), 1)
			sequence, err := l.Append(t.Context(), 0, e)
			if err == nil {
				m := &nats.Msg{Subject: "feed.key.created.ks.org_1.x", Data: fmt.Appendf(nil, `{"id":%q}`, e.ID),
					Header: nats.Header{"Ledger-Sequence": {fmt.Sprint(sequence)}}}
				_, err = nc.RequestMsg(m, 10*time.Second)
			}
			if err != nil {
				written <- err
				return
			}
		}
	}()
	for range 200 {
		other, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true})
		if err != nil {
			t.Errorf("%v", err)
			break
		}
		other.Close()
	}
	close(end)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}

// Pruning that was recorded is no doubt; a reader from the start begins where
// USAGE begins, one that was left behind is refused.
func TestRecordedPruning(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	if _, err := l.Append(t.Context(), 0, created("org_1", "key_1", 1)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		body, _ := events.Encode(used("key_1"))
		if _, err := l.AppendPage(t.Context(), "ks", "n", [][]byte{body}); err != nil {
			t.Fatal(err)
		}
	}
	pruned := events.New(events.UsagePruned{Stream: events.Usage, Through: 3}, time.Now())
	if _, err := l.AppendOps(t.Context(), pruned); err != nil {
		t.Fatal(err)
	}
	open(t, nc, ledger.Options{}) // recorded, and not yet done
	if _, err := l.Prune(t.Context(), 4); err == nil {
		t.Error("more is purged than was recorded")
	}
	// A server that was killed in the middle of purging begins somewhere before.
	if _, err := l.Prune(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	open(t, nc, ledger.Options{})
	if n, err := l.Prune(t.Context(), 3); err != nil || n != 1 {
		t.Fatalf("purged %d, %v", n, err)
	}
	if n, err := l.Prune(t.Context(), 3); err != nil || n != 0 {
		t.Fatalf("purged again %d, %v", n, err)
	}
	l = open(t, nc, ledger.Options{})
	if got := take(t, l, events.Usage, 0, 2); got[0].Sequence != 4 {
		t.Errorf("the first record is %d", got[0].Sequence)
	}
	for _, err := range l.Follow(t.Context(), events.Usage, 2) {
		if _, ok := errors.AsType[*ledger.RefusalError](err); !ok {
			t.Errorf("a reader that missed pages: %v", err)
		}
		break
	}
}

// A node whose last page was pruned goes on, at once.
func TestAppendAfterPruning(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	body, _ := events.Encode(used("key_1"))
	for n := uint64(1); n <= 3; n++ {
		if at, err := l.AppendPage(t.Context(), "ks", "n", [][]byte{body}); err != nil || at != n {
			t.Fatalf("page %d: %d, %v", n, at, err)
		}
		if _, err := l.AppendOps(t.Context(), events.New(events.UsagePruned{Stream: events.Usage, Through: n}, time.Now())); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Prune(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		body, _ = events.Encode(used("key_1"))
	}
}

// What is read while it is pruned ends with an error that says so; the stream is in
// no doubt.
func TestPrunedWhileRead(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	const pages = 30_000 // more than is ever read ahead
	body, _ := events.Encode(used("key_1"))
	for range pages {
		if _, err := js.PublishAsync("usage.ks.n", body, jetstream.WithStallWait(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	<-js.PublishAsyncComplete()
	n := 0
	for r, err := range l.Read(t.Context(), events.Usage, 1, 0) {
		if err != nil {
			if !errors.Is(err, ledger.ErrPruned) {
				t.Errorf("it ended with %v", err)
			}
			break
		}
		if n++; n == 1 {
			if _, err := l.AppendOps(t.Context(), events.New(events.UsagePruned{Stream: events.Usage, Through: pages - 10}, time.Now())); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Prune(t.Context(), pages-10); err != nil {
				t.Fatal(err)
			}
		}
		if r.Sequence != uint64(n) {
			t.Fatalf("record %d is at sequence %d", n, r.Sequence)
		}
	}
	if n == pages {
		t.Error("everything was read ahead, so that nothing was tested")
	}
	if err := l.Err(events.Usage); err != nil {
		t.Errorf("the stream is in doubt: %v", err)
	}
	if _, err := l.AppendPage(t.Context(), "ks", "m", [][]byte{body}); err != nil {
		t.Error(err)
	}
}

// An act is stored only behind what it was decided with.
func TestAppendOpsAfter(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	hold := func() events.Envelope {
		e := events.New(events.HoldSet{Active: true, Reason: "litigation"}, time.Now())
		e.Keyspace = "ks"
		return e
	}
	first, err := l.AppendOpsAfter(t.Context(), 0, hold())
	if err != nil || first != 1 {
		t.Fatalf("%d, %v", first, err)
	}
	if _, err := l.AppendOpsAfter(t.Context(), 0, hold()); !errors.Is(err, ledger.ErrConflict) {
		t.Errorf("behind nothing, although there is something: %v", err)
	}
	if at, err := l.AppendOpsAfter(t.Context(), first, hold()); err != nil || at != 2 {
		t.Errorf("%d, %v", at, err)
	}
}

// What happens to the streams while they are open stops appends and followers.
func TestWatch(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{WatchEvery: 20 * time.Millisecond})
	if _, err := l.Append(t.Context(), 0, created("org_1", "key_1", 1)); err != nil {
		t.Fatal(err)
	}
	js, _ := jetstream.New(nc)
	config := ledger.Config(events.Ledger, 1)
	config.MaxAge = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for r, err := range l.Follow(ctx, events.Ledger, 0) {
		if err == nil && r.Sequence == 1 {
			if _, err := js.UpdateStream(ctx, config); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if _, ok := errors.AsType[*ledger.RefusalError](err); !ok || !strings.Contains(err.Error(), "max_age") {
			t.Errorf("the follower ended with %v", err)
		}
	}
	if _, err := l.Append(ctx, 1, revoked("org_1", "key_1", 2)); l.Err(events.Ledger) == nil || !errors.Is(err, l.Err(events.Ledger)) {
		t.Errorf("an append to a stream in doubt: %v", err)
	}
	if len(l.Doubts()) != 1 {
		t.Errorf("doubts: %v", l.Doubts())
	}
}

// Without proof that the server syncs, nothing is opened.
func TestSyncIsAsked(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	for _, o := range []ledger.Options{
		{},
		{SyncAlways: func(context.Context) (bool, error) { return false, nil }},
		{SyncAlways: func(context.Context) (bool, error) { return true, errors.New("no answer") }},
	} {
		_, err := ledger.Open(t.Context(), nc, o)
		if _, ok := errors.AsType[*ledger.RefusalError](err); !ok || !strings.Contains(err.Error(), "sync_interval: always") {
			t.Errorf("opened: %v", err)
		}
	}
	l, err := ledger.Open(t.Context(), nc, ledger.Options{SyncAlways: func(context.Context) (bool, error) { return true, nil }})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = ledger.Open(t.Context(), testenv.Conn(t, testenv.NATS(t)), ledger.Options{AllowUnverifiedSync: true, ReadOnly: true})
	if err == nil || !strings.Contains(err.Error(), "keyledger serve") {
		t.Errorf("a reader created the streams: %v", err)
	}
}
