// Package verifytest sets up what verification needs in a test: a real NATS, a
// ledger with facts in it, a ring that follows them, a recorder and a verifier.
//
// Facts are appended as given, by no command: a test says what the state is, and
// how it came about does not matter to it.
package verifytest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/internal/testenv/check"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/verify"
)

// Node is the name under which World records.
const Node = "test"

// World is everything up to a verifier.
type World struct {
	NATS     *embedded.NATS
	Conn     *nats.Conn
	Ledger   *ledger.Ledger
	Keys     *seal.Keys
	Ring     *keyring.Ring
	Recorder *verify.Recorder
	Verifier *verify.Verifier

	t       testing.TB
	version map[string]uint64 // of each subject and key
	last    map[string]uint64 // sequence of each subject
}

// New starts a world with a verifier of these options; Head is set. The other
// options are for the NATS server.
func New(t testing.TB, o verify.Options, server ...testenv.Option) *World {
	t.Helper()
	w := &World{NATS: testenv.NATS(t, server...), t: t, version: map[string]uint64{}, last: map[string]uint64{}}
	w.Conn = testenv.Conn(t, w.NATS)
	var err error
	if w.Ledger, err = ledger.Open(t.Context(), w.Conn, ledger.Options{AllowUnverifiedSync: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Ledger.Close() })
	js, err := jetstream.New(w.Conn)
	if err != nil {
		t.Fatal(err)
	}
	if w.Keys, err = seal.Open(t.Context(), js, seal.Master{1}, 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Keys.Close)
	w.Ring = keyring.New()
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.Ring.Run(ctx, w.Ledger) }()
	t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil && !errors.Is(err, context.Canceled) {
			t.Error("keyring:", err)
		}
	})
	w.Recorder = verify.NewRecorder(w.Ledger, w.Keys, Node, verify.RecorderOptions{})
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
		if !w.Conn.IsConnected() { // a test that took NATS away loses something
			stop()
		}
		defer stop()
		_ = w.Recorder.Close(ctx)
	})
	if o.Head == nil {
		o.Head = w.Head
	}
	w.Verifier = verify.New(w.Ring, w.Recorder, o)
	t.Cleanup(w.Verifier.Close)
	<-w.Ring.Ready()
	for deadline := time.Now().Add(10 * time.Second); w.Verifier.Verify(domain.Request{Keyspace: "none"}).Code == domain.CodeStateTooStale; {
		if time.Now().After(deadline) {
			t.Fatal("the verifier does not become fresh")
		}
		time.Sleep(time.Millisecond)
	}
	t.Cleanup(func() {
		if w.Conn.IsConnected() { // a test that took NATS away has nothing left to check
			check.Ledger(t, check.Subject{Conn: w.Conn})
		}
	})
	return w
}

// Head is that of LEDGER.
func (w *World) Head(ctx context.Context) (uint64, error) { return w.Ledger.Head(ctx, events.Ledger) }

// Append appends a fact about a keyspace, an owner or a key and waits until the
// ring knows it.
func (w *World) Append(keyspace, owner, key string, data events.Payload) uint64 {
	w.t.Helper()
	subject := events.Subject(keyspace, owner, key)
	e := events.New(data, time.Now())
	w.version[subject+key]++ // all root keys share one subject
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = keyspace, owner, key, w.version[subject+key]
	e.Actor, e.Via = events.Actor{Type: "system", ID: "test"}, "test"
	sequence, err := w.Ledger.Append(w.t.Context(), w.last[subject], e)
	if err != nil {
		w.t.Fatal(err)
	}
	w.last[subject] = sequence
	if err := w.Ring.Wait(w.t.Context(), sequence); err != nil {
		w.t.Fatal(err)
	}
	return sequence
}

// Configure makes a keyspace with a document in JSON.
func (w *World) Configure(document string) {
	w.t.Helper()
	var d domain.Document
	if err := json.Unmarshal([]byte(document), &d); err != nil {
		w.t.Fatal(err)
	}
	version := int(w.version[events.Subject(d.Keyspace, "", "")]) + 1
	w.Append(d.Keyspace, "", "", events.KeyspaceConfigured{DocumentVersion: version, Document: json.RawMessage(document)})
}

// Key makes a key with a secret, and its owner where there is none, and returns
// its id. created may be empty.
func (w *World) Key(keyspace, owner, secret string, created events.KeyCreated) string {
	w.t.Helper()
	if w.Ring.Owner(keyspace, owner) == nil {
		w.Append(keyspace, owner, "", events.OwnerRegistered{Name: owner})
	}
	id := events.NewID("key", time.Now())
	created.Secret = Secret(secret)
	w.Append(keyspace, owner, id, created)
	return id
}

// Secret is what is kept of a secret.
func Secret(plain string) events.Secret {
	h := domain.HashSecret(plain)
	return events.Secret{SHA256: hex.EncodeToString(h[:])}
}

// Recorded are all facts in USAGE, after what was recorded so far is written.
func (w *World) Recorded() []events.Record {
	w.t.Helper()
	if err := w.Recorder.Flush(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	var all []events.Record
	for r, err := range w.Ledger.Read(w.t.Context(), events.Usage, 1, 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// RecordedAs are those of one type.
func RecordedAs[T events.Payload](w *World) []T {
	w.t.Helper()
	var all []T
	for _, r := range w.Recorded() {
		if d, ok := r.Event.Data.(T); ok {
			all = append(all, d)
		}
	}
	return all
}

// Birds is a keyspace document with the usual parts: bearer credentials, scopes
// by route, answers of its own.
const Birds = `{
	"keyspace": "birds",
	"credential": {"header": "Authorization", "scheme": "Bearer"},
	"format": {"prefixes": {"live": "bd_live_", "test": "bd_test_"}, "default_environment": "live", "alphabet": "base62", "length": 32, "checksum": "none"},
	"display": {"first": 8, "last": 4},
	"resource": {"mode": "optional", "path": "/v1/nests/{resource}/**"},
	"scopes": {"birds:read": {"routes": ["GET /v1/birds/**"]}, "birds:write": {"routes": ["POST,DELETE /v1/birds/**"]}},
	"limits": {"from": "plan", "count_by": "key"},
	"lifecycle": {"expiry": {}, "rotation": {"enabled": true, "grace_default": "0s", "grace_max": "48h", "max_age": "90d"}},
	"last_used": "any", "allowed_origins": true,
	"cost": {"header": "X-Usage-Cost-Micros", "per_request": 7},
	"answers": {
		"INSUFFICIENT_SCOPE": {"status": 403, "message": "Scope missing", "headers": {"X-Reason": "${code}"}, "body": {"problem": "${message}", "needs": "${scopes_required}"}},
		"default": {"status": 401, "message": "Invalid key", "body": {"problem": "${message}", "code": "${code}", "request": "${request_id}"}}
	},
	"public_routes": [{"route": "GET /health", "status": 200, "body": {"service": "Birds"}}],
	"console": {}
}`
