package api_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	formats "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/audit/witness"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/merkle"
)

// logKey is the verifier key of the log that is served.
func (s *service) logKey() note.Verifier {
	s.t.Helper()
	key, err := note.NewVerifier(s.must("GET", "/v1/audit/log/key", s.root, "").json["key"].(string))
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

// receipts are those of an answer, opened.
func (s *service) receipts(key note.Verifier, encoded []string) (leaves []audit.Leaf) {
	s.t.Helper()
	for _, e := range encoded {
		b, err := base64.StdEncoding.DecodeString(e)
		if err != nil {
			s.t.Fatal(err)
		}
		l, _, err := audit.OpenReceipt(b, key)
		if err != nil {
			s.t.Fatalf("%v: %s", err, b)
		}
		leaves = append(leaves, l)
	}
	return leaves
}

// Who asks for it is given a receipt for each event that a command recorded, the
// same again for the same command; who does not ask is given none.
func TestReceipts(t *testing.T) {
	s := start(t)
	s.withLog()
	s.configure("pb")
	key := s.logKey()
	asked := []string{"Receipt", "1"}

	if h := s.must("POST", "/v1/keys", s.root, keyBody(nil)).header; h.Get("Receipt") != "" || h.Get("Receipt-Missing") != "" {
		t.Errorf("a receipt that nobody asked for: %v", h)
	}
	made := s.must("POST", "/v1/keys", s.root, keyBody(nil), "Receipt", "1", "Idempotency-Key", "one")
	leaves := s.receipts(key, made.header.Values("Receipt"))
	id := made.key()["id"].(string)
	if n := len(leaves); n == 0 || leaves[n-1].Sequence != s.head() || leaves[n-1].Key != id || leaves[n-1].Stream != events.Ledger {
		t.Fatalf("the receipts are %+v", leaves)
	}
	again := s.must("POST", "/v1/keys", s.root, keyBody(nil), "Receipt", "1", "Idempotency-Key", "one")
	if got, want := again.header.Values("Receipt"), made.header.Values("Receipt"); again.json["replayed"] != true || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the same command again has the receipts %v, not %v", got, want)
	}
	// The receipt says what the proof says later.
	last := leaves[len(leaves)-1]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := s.deps.AuditLog.Sealed(ctx, events.Ledger, last.Sequence); err != nil {
		t.Fatal(err)
	}
	p := s.must("GET", fmt.Sprintf("/v1/audit/log/ledger/proof?sequence=%d", last.Sequence), s.root, "")
	if p.json["leaf"] != string(last.Append(nil)) {
		t.Errorf("the tree has %v", p.json["leaf"])
	}

	for name, c := range map[string]struct {
		answer answer
		events int
	}{
		"an owner":            {s.must("PUT", "/v1/keyspaces/pb/owners/org_9", s.root, `{"name":"nine"}`, asked...), 1},
		"an owner as it was":  {s.must("PUT", "/v1/keyspaces/pb/owners/org_9", s.root, `{"name":"nine"}`, asked...), 0},
		"a keyspace":          {s.must("PUT", "/v1/keyspaces/qq", s.root, fmt.Sprintf(parcelbird, "qq", "qq", "qq"), "Receipt", "1", "Content-Type", "application/yaml"), 1},
		"a revocation":        {s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"x"}`, asked...), 1},
		"revoked already":     {s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"x"}`, asked...), 0},
		"deleting a live key": {s.must("DELETE", "/v1/keys/"+s.made(), s.root, "", asked...), 2},
	} {
		if got := s.receipts(key, c.answer.header.Values("Receipt")); len(got) != c.events {
			t.Errorf("%s has %d receipts, want %d: %v", name, len(got), c.events, got)
		}
	}
	var lines strings.Builder
	for i := range 20 {
		fmt.Fprintf(&lines, `{"keyspace":"pb","owner":"org_1","name":"i","sha256":"%064x"}`+"\n", 1000+i)
	}
	imported := s.must("POST", "/v1/keys/import", s.root, lines.String(), "Receipt", "1", "Content-Type", "application/x-ndjson")
	for i, r := range imported.json["results"].([]any) {
		line := r.(map[string]any)
		var encoded []string
		for _, e := range line["receipts"].([]any) {
			encoded = append(encoded, e.(string))
		}
		if got := s.receipts(key, encoded); len(got) == 0 || got[len(got)-1].Key != line["key"].(map[string]any)["id"] {
			t.Errorf("line %d has the receipts %+v", i+1, got)
		}
	}

	head := s.head()
	s.refused(s.do("POST", "/v1/keys", s.root, keyBody(nil), "Receipt", "yes"), 400, "INVALID_RECEIPT")
	s.deps.AuditLog = nil
	s.serve()
	s.refused(s.do("POST", "/v1/keys", s.root, keyBody(nil), asked...), 503, "AUDIT_LOG_UNAVAILABLE")
	if s.head() != head {
		t.Error("a command that was refused for its receipt was recorded")
	}
}

func (s *service) made() string {
	id, _ := s.create(nil)
	return id
}

// fetch reads the served log as a witness does.
func (s *service) fetch(credential string) witness.Fetch {
	return func(_ context.Context, path string) ([]byte, error) {
		a := s.do("GET", "/v1/audit/log/"+path, credential, "")
		if a.status == http.StatusNotFound {
			return nil, fs.ErrNotExist
		}
		if a.status != http.StatusOK {
			return nil, fmt.Errorf("%d %s", a.status, a.body)
		}
		return a.body, nil
	}
}

// newWitness is a witness of the log, and its verifier key.
func (s *service) newWitness(name string) (*witness.Witness, string) {
	s.t.Helper()
	dir := s.t.TempDir()
	text, _, err := witness.Key(dir, name)
	if err != nil {
		s.t.Fatal(err)
	}
	w, err := witness.Open(dir, []note.Verifier{s.logKey()})
	if err != nil {
		s.t.Fatal(err)
	}
	w.Patience = 0
	s.t.Cleanup(func() { _ = w.Close() })
	return w, text
}

// Witnesses of the policy cosign what the log shows, and it is shown with their
// signatures from then on; nobody else's are taken.
func TestCosignatures(t *testing.T) {
	s := start(t)
	policy := &audit.Policy{}
	s.withLog(func(o *merkle.Options) { o.Policy = policy })
	one, oneKey := s.newWitness("one.example")
	two, twoKey := s.newWitness("two.example")
	stranger, _ := s.newWitness("three.example")
	text := "witness one " + oneKey + "\nwitness two " + twoKey + "\ngroup both all one two\nquorum both\n"
	p, err := audit.ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	*policy = *p
	auditor := s.must("POST", "/v1/root-keys", s.root, `{"name":"a","role":"auditor"}`).json["secret"].(string)
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	s.configure("pb")
	if got := s.must("GET", "/v1/audit/log/key", auditor, "").json["policy"]; got != text {
		t.Errorf("the policy is answered as %v", got)
	}
	const at = "/v1/audit/log/ledger/checkpoint"
	seal := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := s.deps.AuditLog.Sealed(ctx, events.Ledger, s.head()); err != nil {
			t.Fatal(err)
		}
	}
	look := func(w *witness.Witness) witness.Seen {
		t.Helper()
		seen, err := w.Look(t.Context(), events.Ledger, s.fetch(auditor))
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	give := func(seen witness.Seen) answer {
		return s.do("POST", at, auditor, string(seen.Note), "Content-Type", "text/plain")
	}
	seal()
	s.refused(s.do("GET", at+"?which=cosigned", auditor, ""), 503, "NOT_SEALED")
	s.refused(s.do("GET", at+"?which=other", auditor, ""), 422, "INVALID")
	first := look(one)
	if a := give(first); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	// The second is led to what the first has cosigned, although the log went on.
	s.create(nil)
	seal()
	second := look(two)
	if second.Tree != first.Tree {
		t.Fatalf("the second witness cosigned %+v, the first %+v", second.Tree, first.Tree)
	}
	if a := give(second); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	oneV, _ := fnote.NewVerifierForCosignatureV1(oneKey)
	twoV, _ := fnote.NewVerifierForCosignatureV1(twoKey)
	both := s.must("GET", at+"?which=cosigned", auditor, "")
	c, _, n, err := formats.ParseCheckpoint(both.body, audit.Origin(s.logKey().Name(), events.Ledger), s.logKey(), oneV, twoV)
	if err != nil || len(n.Sigs) != 3 || int64(c.Size) != first.Size || !policy.Satisfied(both.body) {
		t.Fatalf("%v: %s", err, both.body)
	}
	newest := s.must("GET", at, auditor, "")
	if policy.Satisfied(newest.body) {
		t.Errorf("the newest was cosigned by nobody: %s", newest.body)
	}
	// Metrics and status say what is signed, and how old each witness's signature is.
	metrics := string(s.must("GET", "/metrics", s.root, "").body)
	label := fmt.Sprintf(`{stream="LEDGER",witness="two.example+%08x"}`, twoV.KeyHash())
	for _, want := range []string{fmt.Sprintf("keyledger_log_cosigned_events%s %d\n", label, first.Size), "keyledger_log_cosigned_timestamp_seconds" + label + " 1.",
		fmt.Sprintf(`keyledger_log_signed_events{stream="LEDGER"} %d`, s.head()), `keyledger_log_unsigned_messages{stream="LEDGER"} 0`, `keyledger_log_unsigned_leaves{stream="LEDGER"} 0`,
		`keyledger_log_signed_timestamp_seconds{stream="LEDGER"} 1.`, `keyledger_log_sign_failures_total{stream="LEDGER"}`, `keyledger_log_in_doubt{stream="LEDGER"} 0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics have no %s: %s", want, metrics)
		}
	}
	for _, x := range s.must("GET", "/v1/status", s.root, "").json["streams"].([]any) {
		stream := x.(map[string]any)
		signing, _ := stream["signing"].(map[string]any)
		if (stream["stream"] == "DLQ") != (signing == nil) {
			t.Errorf("%v", stream)
		}
		if stream["stream"] != "LEDGER" {
			continue
		}
		watch := signing["witnesses"].([]any)
		if len(watch) != 2 || watch[1].(map[string]any)["size"] != float64(first.Size) || watch[1].(map[string]any)["time"] == nil || signing["signed_at"] == nil {
			t.Errorf("%v", signing)
		}
	}
	// Then the next is the newest again, and shows who has signed it.
	if seen := look(one); seen.Size <= first.Size || !seen.New || give(seen).status != 200 {
		t.Errorf("%+v", seen)
	}
	if seen := look(one); !seen.Known || seen.New {
		t.Errorf("a signature that was given is not shown: %+v", seen)
	}

	// What one has cosigned and others are led to is signed by the key that signs now: a
	// witness that is told no other one is not lost.
	pending := look(one)
	before := s.logKey()
	s.must("POST", "/v1/audit/log/key/rotate", s.root, "")
	fresh, _ := s.newWitness("fresh.example")
	if keys := fresh.Keys(); len(keys) != 1 || keys[0].KeyHash() == before.KeyHash() {
		t.Fatalf("%v", keys)
	}
	if seen := look(fresh); seen.Tree != pending.Tree || !seen.First {
		t.Errorf("a new witness cosigned %+v, the first %+v", seen.Tree, pending.Tree)
	}

	// What is not a witness's of the policy, or not of this log, is not taken.
	s.refused(give(look(stranger)), 403, "UNKNOWN_WITNESS")
	s.refused(s.do("POST", at, auditor, string(newest.body), "Content-Type", "text/plain"), 403, "UNKNOWN_WITNESS")
	s.refused(s.do("POST", at, auditor, "nothing", "Content-Type", "text/plain"), 422, "INVALID")
	s.refused(s.do("POST", "/v1/audit/log/usage/checkpoint", auditor, string(first.Note), "Content-Type", "text/plain"), 422, "INVALID")
	s.refused(s.do("POST", at, auditor, strings.Replace(string(first.Note), "/ledger\n", "/ledgers\n", 1), "Content-Type", "text/plain"), 422, "INVALID")
	s.refused(s.do("POST", at, verifier, string(first.Note), "Content-Type", "text/plain"), 403, "FORBIDDEN")
	s.refused(s.do("POST", at, auditor, string(first.Note)), 415, "UNSUPPORTED_MEDIA_TYPE")
	secret, _, err := note.GenerateKey(rand.Reader, s.logKey().Name())
	if err != nil {
		t.Fatal(err)
	}
	false_, _ := note.NewSigner(secret)
	forged, err := note.Sign(&note.Note{Text: first.Text()}, false_)
	if err != nil {
		t.Fatal(err)
	}
	s.refused(s.do("POST", at, auditor, string(forged), "Content-Type", "text/plain"), 422, "INVALID")
}

// What witnesses have signed of an export is answered when they have, not before; until
// then one may end where their signatures end.
func TestWitnessedExport(t *testing.T) {
	s := start(t)
	policy := &audit.Policy{}
	s.withLog(func(o *merkle.Options) { o.Policy = policy })
	one, oneKey := s.newWitness("one.example")
	p, err := audit.ParsePolicy([]byte("witness one " + oneKey + "\nquorum one\n"))
	if err != nil {
		t.Fatal(err)
	}
	*policy = *p
	s.configure("pb")
	round := func() {
		t.Helper()
		for _, stream := range audit.Streams {
			seen, err := one.Look(t.Context(), stream, s.fetch(s.root))
			if err != nil {
				t.Fatal(err)
			}
			if a := s.do("POST", "/v1/audit/log/"+strings.ToLower(stream)+"/checkpoint", s.root, string(seen.Note), "Content-Type", "text/plain"); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
	}
	s.refused(s.do("POST", "/v1/audit/exports", s.root, `{"witnessed":true}`), 503, "NOT_COSIGNED")
	s.refused(s.do("POST", "/v1/audit/exports", s.root, `{"witnessed":true,"keyspace":"pb"}`), 422, "INVALID")
	for _, body := range []string{`{}`, `{"keyspace":"pb"}`} {
		var head bundle.Head
		begun := s.must("POST", "/v1/audit/exports", s.root, body)
		if err := json.Unmarshal(begun.body, &head); err != nil {
			t.Fatal(err)
		}
		at := fmt.Sprintf("/v1/audit/exports/%d/checkpoints?", head.Manifest.Exported.Sequence)
		for _, stream := range head.Manifest.Streams {
			at += fmt.Sprintf("&%s=%d", strings.ToLower(stream.Stream), stream.Size)
		}
		if a := s.must("GET", at, s.root, ""); a.json["complete"] != false {
			t.Errorf("nobody has looked since: %s", a.body)
		}
		round()
		a := s.must("GET", at, s.root, "")
		if a.json["complete"] != true || len(a.json["witnesses"].([]any)) != 4 {
			t.Fatalf("%s", a.body)
		}
		for i, x := range a.json["streams"].([]any) {
			checkpoint := x.(map[string]any)["checkpoint"].(string)
			c, _, err := audit.Open([]byte(checkpoint), audit.Origin(s.logKey().Name(), audit.Streams[i]), s.logKey())
			if err != nil || c.Size < head.Manifest.Streams[i].Size || !policy.Satisfied([]byte(checkpoint)) {
				t.Errorf("%s: %v: %s", audit.Streams[i], err, checkpoint)
			}
		}
	}
	short := s.must("POST", "/v1/audit/exports", s.root, `{"witnessed":true}`)
	var head bundle.Head
	if err := json.Unmarshal(short.body, &head); err != nil {
		t.Fatal(err)
	}
	if ops := head.Manifest.Streams[2]; ops.Last >= head.Manifest.Exported.Sequence || head.Proof == "" {
		t.Errorf("%s", short.body)
	}
	s.refused(s.do("GET", "/v1/audit/exports/99999/checkpoints", s.root, ""), 404, "EXPORT_NOT_FOUND")
	verifier := s.must("POST", "/v1/root-keys", s.root, `{"name":"v","role":"verifier"}`).json["secret"].(string)
	s.refused(s.do("GET", "/v1/audit/exports/1/checkpoints", verifier, ""), 403, "FORBIDDEN")
}

// Two services that sign with one key over different streams are caught by whoever
// witnesses both; the evidence is two notes that the log has signed.
func TestForkIsCaught(t *testing.T) {
	a := start(t)
	a.withLog()
	a.configure("pb")
	b := start(t)
	copyLogKey(t, a, b)
	b.withLog()
	b.configure("pb")
	if a.logKey().Name() != b.logKey().Name() || a.logKey().KeyHash() != b.logKey().KeyHash() {
		t.Fatal("the two have different keys")
	}
	seal := func(s *service) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := s.deps.AuditLog.Sealed(ctx, events.Ledger, s.head()); err != nil {
			t.Fatal(err)
		}
	}
	w, _ := a.newWitness("w.example")
	seal(a)
	if _, err := w.Look(t.Context(), events.Ledger, a.fetch(a.root)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		b.create(nil)
	}
	seal(b)
	_, err := w.Look(t.Context(), events.Ledger, b.fetch(b.root))
	alarm, ok := errors.AsType[*witness.Alarm](err)
	if !ok || len(alarm.Files) != 3 {
		t.Fatalf("%v", err)
	}
	for _, f := range alarm.Files[:2] {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := audit.Open(text, audit.Origin(a.logKey().Name(), events.Ledger), a.logKey()); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	// And what the one has answered with a receipt the other does not have.
	leaf := a.receipts(a.logKey(), a.must("POST", "/v1/keys", a.root, keyBody(nil), "Receipt", "1").header.Values("Receipt"))[0]
	p := b.do("GET", fmt.Sprintf("/v1/audit/log/ledger/proof?sequence=%d", leaf.Sequence), b.root, "")
	if p.status == 200 && p.json["leaf"] == string(leaf.Append(nil)) {
		t.Errorf("the fork proves an event that it never had: %s", p.body)
	}
}

// copyLogKey gives the second service the log key of the first, as somebody with
// administrator's rights on both could.
func copyLogKey(t *testing.T, from, to *service) {
	t.Helper()
	old, err := jetstream.New(from.conn)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := old.KeyValue(t.Context(), merkle.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	key, err := kv.Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(to.conn)
	if err != nil {
		t.Fatal(err)
	}
	if kv, err = js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: merkle.Bucket, History: 64}); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "key", key.Value()); err != nil {
		t.Fatal(err)
	}
}
