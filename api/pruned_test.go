package api_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/commands/retention"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/merkle"
)

// export writes the bundle that a request begins, checks it with both verifiers, and
// answers it with what it says of USAGE.
func (s *service) export(body string) ([]byte, bundle.Stream) {
	s.t.Helper()
	var head bundle.Head
	if err := json.Unmarshal(s.must("POST", "/v1/audit/exports", s.root, body).body, &head); err != nil {
		s.t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := bundle.NewWriter(&out, head)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, stream := range head.Manifest.Streams {
		lines := bufio.NewScanner(bytes.NewReader(s.must("GET", fmt.Sprintf("/v1/audit/exports/%d?stream=%s&last=%d", head.Manifest.Exported.Sequence, stream.Stream, stream.Last), s.root, "").body))
		for lines.Scan() {
			leaf, err := bundle.ParseLine(stream.Stream, lines.Bytes())
			if err != nil || !lines.Scan() {
				s.t.Fatalf("%v: %s", err, lines.Bytes())
			}
			if err := w.Leaf(&leaf, lines.Bytes()); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.checked(out.Bytes())
	return out.Bytes(), head.Manifest.Streams[1]
}

// checked fails the test where a verifier does not say PASS.
func (s *service) checked(b []byte) {
	s.t.Helper()
	r, err := bundle.Verify(bytes.NewReader(b), bundle.Options{Keys: []note.Verifier{s.logKey()}})
	if err != nil || !r.Pass {
		s.t.Fatalf("%+v, %v", r, err)
	}
	name := filepath.Join(s.t.TempDir(), "bundle.tar.gz")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
	key := s.must("GET", "/v1/audit/log/key", s.root, "").json["key"].(string)
	if out, err := exec.CommandContext(s.t.Context(), "python3", "-B", "../tools/verify_bundle.py", name, key).CombinedOutput(); err != nil {
		s.t.Fatalf("tools/verify_bundle.py: %v: %s", err, out)
	}
}

// What is exported after a real pruning proves what is left, of everything and of each
// part, also when the parts were rebuilt from the baseline; what was exported before it
// goes on proving what is gone.
func TestExportsAfterPruning(t *testing.T) {
	s := start(t)
	s.withLog(func(o *merkle.Options) { o.Log = slog.New(slog.DiscardHandler) })
	s.configure("pb")
	key, secret := s.create(nil)
	_, other := s.create(map[string]any{"owner": "org_2"})
	use := func(secrets ...string) uint64 {
		t.Helper()
		for _, secret := range secrets {
			s.verify(s.root, map[string]any{"key": secret, "ip": "203.0.113.7"})
		}
		return s.flush()
	}
	// Uses of org_2 only in what is pruned first, of org_1 throughout.
	use(secret, other, secret)
	use(other)
	type cut struct {
		before time.Time
		last   uint64
	}
	cuts := []cut{{time.Now(), use()}}
	use(secret)
	cuts = append(cuts, cut{time.Now(), use()})
	whole, _ := s.export(`{}`)
	part, before := s.export(`{"keyspace":"pb","owner":"org_1"}`)
	if before.Leaves != 3 || before.Pruned != 0 {
		t.Fatalf("%+v", before)
	}
	keeper := &retention.Retention{Ledger: s.ledger, Seal: s.deps.Seal, Models: s.deps.Runner, Now: func() time.Time { return time.Now().Add(retention.Least + time.Second) }}
	for i, c := range cuts {
		out, err := keeper.Prune(t.Context(), retention.By{Actor: events.Actor{Type: "root_key", ID: "key_root"}, Via: "test"}, retention.Pruning{Before: c.before}, nil)
		if err != nil || out.Through != c.last {
			t.Fatalf("%+v, %v", out, err)
		}
		use(secret) // so that something is left
		for _, again := range []bool{false, true} {
			if again {
				if _, err := s.deps.Runner.Rebuild(t.Context(), merkle.Parts{Stream: events.Usage}.Table(), nil); err != nil {
					t.Fatal(err)
				}
			}
			for _, want := range []struct {
				scope          string
				pruned, leaves int64
			}{
				{`{}`, []int64{4, 5}[i], []int64{2, 2}[i]},
				{`{"keyspace":"pb"}`, []int64{4, 5}[i], []int64{2, 2}[i]},
				{`{"keyspace":"pb","owner":"org_1"}`, []int64{2, 3}[i], []int64{2, 2}[i]},
				{`{"keyspace":"pb","owner":"org_1","key":"` + key + `"}`, []int64{2, 3}[i], []int64{2, 2}[i]},
				{`{"keyspace":"pb","owner":"org_2"}`, 2, 0},
			} {
				if _, u := s.export(want.scope); u.Pruned != want.pruned || u.Leaves != want.leaves || u.First != c.last+1 {
					t.Errorf("pruned through %d, rebuilt %v, %s: %+v, want %d pruned and %d left", c.last, again, want.scope, u, want.pruned, want.leaves)
				}
			}
		}
	}
	s.checked(whole)
	s.checked(part)
}
