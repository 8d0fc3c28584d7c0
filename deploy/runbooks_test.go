package deploy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
)

// onDisk starts a server on a directory; the caller shuts it down.
func onDisk(t *testing.T, dir string) *embedded.NATS {
	t.Helper()
	n, err := embedded.StartNATS(embedded.NATSConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// opened opens the ledger of a server as the service does; the caller closes it.
func opened(t *testing.T, n *embedded.NATS, o ledger.Options) (*ledger.Ledger, error) {
	t.Helper()
	o.SyncAlways = func(context.Context) (bool, error) { return n.SyncAlways(), nil }
	return ledger.Open(t.Context(), testenv.Conn(t, n), o)
}

func appendFacts(t *testing.T, l *ledger.Ledger, keys ...string) {
	t.Helper()
	for _, key := range keys {
		e := events.New(events.KeyRevoked{Reason: "test"}, time.Now())
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "org_1", key, 1
		if _, err := l.Append(t.Context(), 0, e); err != nil {
			t.Fatal(err)
		}
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func refusal(t *testing.T, err error, part string) {
	t.Helper()
	if _, ok := errors.AsType[*ledger.RefusalError](err); !ok || !strings.Contains(err.Error(), part) {
		t.Fatalf("want a refusal that says %q, got: %v", part, err)
	}
}

// docs/runbooks/restore.md, "One server": a copy of the data directory, made while
// the server was stopped, is put back.
func TestRestoreDirectory(t *testing.T) {
	dir, backup, heads := filepath.Join(t.TempDir(), "nats"), filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "head.json")
	n := onDisk(t, dir)
	l, err := opened(t, n, ledger.Options{HeadFile: heads})
	if err != nil {
		t.Fatal(err)
	}
	appendFacts(t, l, "key_1", "key_2", "key_3")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	n.Shutdown()
	copyDir(t, dir, backup)

	blocks, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", events.Ledger, "msgs", "*.blk"))
	if err != nil || len(blocks) == 0 {
		t.Fatal("no block file of LEDGER", err)
	}
	for _, b := range blocks {
		if err := os.Remove(b); err != nil {
			t.Fatal(err)
		}
	}
	n = onDisk(t, dir)
	if _, err = opened(t, n, ledger.Options{HeadFile: heads}); err == nil {
		t.Fatal("a stream without its data file was opened")
	}
	refusal(t, err, events.Ledger)
	n.Shutdown()

	copyDir(t, backup, dir)
	n = onDisk(t, dir)
	defer n.Shutdown()
	l, err = opened(t, n, ledger.Options{HeadFile: heads})
	if err != nil {
		t.Fatalf("after the restore: %v", err)
	}
	defer l.Close()
	appendFacts(t, l, "key_4")
}

// docs/runbooks/restore.md, "Three servers": a node that lost its disk gets its
// streams back from the other two.
func TestRestoreFromReplicas(t *testing.T) {
	dir := t.TempDir()
	c := testenv.Cluster(t, 3, testenv.InDir(dir))
	l, err := ledger.Open(t.Context(), c.Conn(0), ledger.Options{Replicas: 3, AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	appendFacts(t, l, "key_1", "key_2", "key_3")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c.Stop(2)
	if err := os.RemoveAll(filepath.Join(dir, "n2")); err != nil {
		t.Fatal(err)
	}
	c.Restart(2)
	// What the node itself has; nothing signals that it has caught up.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		there := map[string]uint64{}
		jsz, err := c.Node(2).Server().Jsz(&server.JSzOptions{Accounts: true, Streams: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range jsz.AccountDetails {
			for _, s := range a.Streams {
				there[s.Name] = s.State.LastSeq
			}
		}
		if len(there) == 5 && there[events.Ledger] == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute the node has the streams %v", there)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err = ledger.Open(ctx, c.Conn(2), ledger.Options{Replicas: 3, AllowUnverifiedSync: true,
		Known: []ledger.Position{{Name: "the test", Stream: events.Ledger, Sequence: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Check(ctx); err != nil {
		t.Error(err)
	}
}

// Every finding of a refusal has its runbook, found by the words of the message.
func TestEveryFindingHasARunbook(t *testing.T) {
	index := read(t, "..", "docs", "runbooks", "README.md")
	for _, words := range []string{
		"nobody has checked that it syncs every write", "reading back whether it syncs every write failed", "it does not sync every write",
		"cannot be read", // the head file
		"the stream does not exist, although", "the stream does not exist",
		"it ends at sequence", "its configuration was changed", "its configuration cannot be read",
		"it begins at sequence", "are missing", "the server reports lost data",
		"is gone or cannot be read", "is missing or cannot be read", "it holds event", "the stream was created at",
		"is not a fact", "is about another keyspace, owner or key",
		"is not the one that was signed", "other events than were signed", "was changed in PostgreSQL", "was not signed by this log", "of scrubs is not as it was written",
	} {
		found := false
		for _, f := range []string{"refusal.go", "streams.go", "ledger.go", "follow.go", "read.go", "scan.go"} {
			found = found || strings.Contains(read(t, "..", "events", "ledger", f), words)
		}
		for _, f := range []string{"scrub.go", "scrubbing.go", "sign.go"} {
			found = found || strings.Contains(read(t, "..", "projections", "merkle", f), words)
		}
		if !found {
			t.Errorf("no finding says %q any more", words)
		}
		if !strings.Contains(index, words) {
			t.Errorf("docs/runbooks/README.md does not say what to do about %q", words)
		}
	}
	for _, m := range regexp.MustCompile(`\]\(([a-z-]+\.md)\)`).FindAllStringSubmatch(index, -1) {
		read(t, "..", "docs", "runbooks", m[1])
	}
}
