package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	formats "github.com/transparency-dev/formats/log"
	tlogproof "github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections/merkle"
)

// withLog signs the log into a directory, and serves it when every stream has a tree.
func (s *service) withLog(change ...func(*merkle.Options)) (dir string) {
	s.t.Helper()
	s.withPostgres()
	js, err := jetstream.New(s.conn)
	if err != nil {
		s.t.Fatal(err)
	}
	dir = filepath.Join(s.t.TempDir(), "log")
	o := merkle.Options{Ledger: s.ledger, Pool: s.pool, JetStream: js, Master: seal.Master{1},
		Dir: dir, Node: "test", Every: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&o)
	}
	if s.deps.AuditLog, err = merkle.Open(s.t.Context(), o); err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.deps.AuditLog.Run(ctx) })
	s.t.Cleanup(func() {
		stop()
		running.Wait()
	})
	s.serve()
	within, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	for _, stream := range audit.Streams {
		if _, err := s.deps.AuditLog.Sealed(within, stream, 0); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

// source is where a published log is read: paths as in C2SP tlog-tiles.
type source func(path string) ([]byte, error)

// sealed waits until a checkpoint of a stream has so many events, read with other
// people's code.
func (s *service) sealed(read source, origin string, key note.Verifier, size uint64) *formats.Checkpoint {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; <-time.After(10 * time.Millisecond) {
		b, err := read("checkpoint")
		if err == nil {
			c, _, _, err := formats.ParseCheckpoint(b, origin, key)
			if err != nil {
				s.t.Fatalf("%v: %s", err, b)
			}
			if c.Size >= size {
				return c
			}
		}
		if time.Now().After(end) {
			s.t.Fatalf("no checkpoint of %s with %d events in time: %v %s", origin, size, err, b)
		}
	}
}

// tileClient reads tiles of a published log as golang.org/x/mod does.
type tileClient struct{ read source }

func (tileClient) Height() int                     { return 8 }
func (tileClient) SaveTiles([]tlog.Tile, [][]byte) {}
func (c tileClient) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, t := range tiles {
		b, err := c.read(strings.Replace(t.Path(), "tile/8/", "tile/", 1))
		if err != nil {
			return nil, err
		}
		data = append(data, b)
	}
	return data, nil
}

func bytesOf[H ~[32]byte](list []H) (all [][]byte) {
	for _, h := range list {
		all = append(all, h[:])
	}
	return all
}

// The published log is read by libraries that know nothing of this program, over HTTP
// and from the directory: checkpoints, inclusion of every leaf, consistency.
func TestLogIsReadByOthers(t *testing.T) {
	s := start(t)
	dir := s.withLog()
	s.configure("pb")
	auditor := s.must("POST", "/v1/root-keys", s.root, `{"name":"a","role":"auditor"}`).json["secret"].(string)
	keys := s.must("GET", "/v1/audit/log/key", auditor, "")
	key, err := note.NewVerifier(keys.json["key"].(string))
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]source{
		"HTTP": func(path string) ([]byte, error) {
			a := s.do("GET", "/v1/audit/log/ledger/"+path, auditor, "")
			if a.status != 200 {
				return nil, fmt.Errorf("%d %s", a.status, a.body)
			}
			return a.body, nil
		},
		"directory": func(path string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, "ledger", path)) },
	}
	origin := key.Name() + "/ledger"
	older := map[string]*formats.Checkpoint{}
	for name, read := range sources {
		older[name] = s.sealed(read, origin, key, s.head())
	}
	for range 300 {
		s.create(nil)
	}
	head := s.head()
	for name, read := range sources {
		t.Run(name, func(t *testing.T) {
			c := s.sealed(read, origin, key, head)
			if c.Size != head {
				t.Fatalf("%d events of %d", c.Size, head)
			}
			tree := tlog.TileHashReader(tlog.Tree{N: int64(c.Size), Hash: tlog.Hash(c.Hash)}, tileClient{read})
			old := older[name]
			consistency, err := tlog.ProveTree(int64(c.Size), int64(old.Size), tree)
			if err != nil {
				t.Fatal(err)
			}
			if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.Size, c.Size, bytesOf(consistency), old.Hash, c.Hash); err != nil {
				t.Error(err)
			}
			for i := range c.Size {
				leaf, err := tree.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(i))})
				if err != nil {
					t.Fatal(err)
				}
				path, err := tlog.ProveRecord(int64(c.Size), int64(i), tree)
				if err != nil {
					t.Fatal(err)
				}
				if err := proof.VerifyInclusion(rfc6962.DefaultHasher, i, c.Size, leaf[0][:], bytesOf(path), c.Hash); err != nil {
					t.Errorf("leaf %d: %v", i, err)
				}
				if i%50 > 0 || name != "HTTP" {
					continue
				}
				// The proof that the service makes says the same, for the same event.
				a := s.do("GET", fmt.Sprintf("/v1/audit/log/LEDGER/proof?sequence=%d", i+1), auditor, "", "Accept", "text/plain")
				var p tlogproof.TLogProof
				if err := p.Unmarshal(a.body); err != nil {
					t.Fatalf("%v: %s", err, a.body)
				}
				if !bytes.Equal(rfc6962.DefaultHasher.HashLeaf(p.ExtraData), leaf[0][:]) || p.Index != i {
					t.Errorf("leaf %d is answered as %d: %s", i, p.Index, p.ExtraData)
				}
				if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, c.Size, leaf[0][:], bytesOf(p.Hashes), c.Hash); err != nil {
					t.Errorf("leaf %d: %v", i, err)
				}
				j := s.must("GET", fmt.Sprintf("/v1/audit/log/ledger/proof?sequence=%d", i+1), auditor, "")
				if j.json["leaf"] != string(p.ExtraData) || j.json["index"] != float64(i) || j.json["checkpoint"] != string(p.Checkpoint) ||
					len(j.json["hashes"].([]any)) != len(p.Hashes) || len(p.Hashes) > 0 && j.json["hashes"].([]any)[0] != base64.StdEncoding.EncodeToString(p.Hashes[0][:]) {
					t.Errorf("JSON says something else: %s", j.body)
				}
			}
		})
	}

	// A bundle of entries holds the texts whose hashes are in the tile.
	hashes, err := sources["HTTP"]("tile/0/000")
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := sources["HTTP"]("tile/entries/000")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; len(bundle) > 0; n++ {
		size := int(binary.BigEndian.Uint16(bundle))
		if got := rfc6962.DefaultHasher.HashLeaf(bundle[2 : 2+size]); !bytes.Equal(got, hashes[32*n:32*n+32]) {
			t.Errorf("entry %d is not the leaf of the tile", n)
		}
		bundle = bundle[2+size:]
	}
	if n != 256 {
		t.Errorf("%d entries", n)
	}
}

// Only operators and auditors read the log's tree; what is not there is not found.
func TestLogRefusals(t *testing.T) {
	s := start(t)
	s.withLog()
	s.configure("pb")
	made := func(role string) string {
		return s.must("POST", "/v1/root-keys", s.root, `{"name":"x","role":"`+role+`"}`).json["secret"].(string)
	}
	auditor, verifier := made("auditor"), made("verifier")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := s.deps.AuditLog.Sealed(ctx, events.Ledger, s.head()); err != nil {
		t.Fatal(err)
	}
	for path, status := range map[string]int{
		"/key": 200, "/ledger/checkpoint": 200, "/Usage/checkpoint": 200, "/dlq/checkpoint": 404, "/ledger/tile/0/000.p/1": 200,
		"/ledger/tile/0/000": 404, "/ledger/tile/0/001.p/1": 404, "/ledger/tile/1/000.p/1": 404, "/ledger/tile/0/000.p/0": 404,
		"/ledger/tile/8/0/000": 404, "/ledger/tile/entries/000.p/2": 200, "/ledger/tile/entries/000": 404, "/ledger/tile/-1/000.p/1": 404,
		"/ledger/tile/data/000.p/1": 404, "/ledger/tile/0/../0/000.p/1": 404, "/ledger/tile/63/000.p/1": 404,
		"/ledger/proof?sequence=1": 200, "/ledger/proof?sequence=0": 422, "/ledger/proof": 422, "/ledger/proof?sequence=1&line=1": 404,
		"/ledger/proof?sequence=1&line=-1": 422, "/ledger/proof?sequence=99999": 404, "/ledger/proof?sequence=9223372036854775808": 422,
		"/ledger/proof?sequence=1&format=xml": 422, "/ledger/proof?sequence=1&format=tlog-proof": 200,
	} {
		if a := s.do("GET", "/v1/audit/log"+path, auditor, ""); a.status != status {
			t.Errorf("%s is answered %d: %s", path, a.status, a.body)
		}
		if a := s.do("GET", "/v1/audit/log"+path, verifier, ""); a.status != 403 && a.status != 404 {
			t.Errorf("a verifier is answered %d at %s", a.status, path)
		}
	}
	if a := s.must("GET", "/v1/status", s.root, ""); !bytes.Contains(a.body, []byte(`"signed":`)) || bytes.Contains(a.body, []byte(`"unsigned":`)) {
		t.Errorf("the status does not say what is signed: %s", a.body)
	}
	before := s.must("GET", "/v1/audit/log/key", auditor, "").json["key"]
	s.refused(s.do("POST", "/v1/audit/log/key/rotate", auditor, ""), 403, "FORBIDDEN")
	w, _ := s.newWitness("follows.example")
	look := func() {
		t.Helper()
		if _, err := w.Look(t.Context(), events.Ops, s.fetch(auditor)); err != nil {
			t.Error(err)
		}
	}
	look()
	after := s.must("POST", "/v1/audit/log/key/rotate", s.root, "", "Idempotency-Key", "one", "Receipt", "1")
	again := s.must("POST", "/v1/audit/log/key/rotate", s.root, "", "Idempotency-Key", "one", "Receipt", "1")
	if again.json["replayed"] != true || again.json["key"] != after.json["key"] || again.json["sequence"] != after.json["sequence"] ||
		again.header.Get("Receipt") != after.header.Get("Receipt") || after.header.Get("Ledger-Sequence") != strconv.FormatUint(s.head(), 10) {
		t.Errorf("the same again is answered %s, %v", again.body, again.header)
	}
	if l := s.receipts(s.logKey(), after.header.Values("Receipt")); len(l) != 1 || l[0].Stream != events.Ops || float64(l[0].Sequence) != after.json["sequence"] {
		t.Errorf("the receipt is %+v", l)
	}
	s.must("PUT", "/v1/keyspaces/pb/owners/org_7", s.root, `{"name":"seven"}`, "Idempotency-Key", "two")
	s.refused(s.do("POST", "/v1/audit/log/key/rotate", s.root, "", "Idempotency-Key", "two"), 409, "IDEMPOTENCY_KEY_REUSED")
	oldHash := strings.Split(before.(string), "+")[1]
	if named := s.must("GET", "/v1/audit/log/successor/"+oldHash, auditor, ""); !strings.Contains(string(named.body), after.json["key"].(string)) {
		t.Errorf("the old key says %s", named.body)
	}
	s.refused(s.do("GET", "/v1/audit/log/successor/00000000", auditor, ""), 404, "NOT_FOUND")
	s.refused(s.do("GET", "/v1/audit/log/successor/x", auditor, ""), 404, "NOT_FOUND")
	if _, err := s.deps.AuditLog.Sealed(ctx, events.Ops, uint64(after.json["sequence"].(float64))); err != nil {
		t.Fatal(err)
	}
	look()
	if len(w.Keys()) != 2 {
		t.Errorf("the witness knows %d keys", len(w.Keys()))
	}
	if after.json["key"] == before || len(after.json["keys"].([]any)) != 2 {
		t.Errorf("%s", after.body)
	}
}
