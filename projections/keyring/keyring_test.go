package keyring

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
)

// history writes facts as the ledger would hold them.
type history struct {
	sequence uint64
	versions map[string]uint64
}

func (h *history) record(key string, data events.Payload) events.Record {
	if h.versions == nil {
		h.versions = map[string]uint64{}
	}
	e := events.New(data, time.Now())
	e.Keyspace = "parcelbird"
	switch data.(type) {
	case events.KeyspaceConfigured:
	case events.OwnerRegistered, events.OwnerPlanChanged, events.OwnerKeyAdmitted:
		e.Owner = "acme"
	default:
		e.Owner, e.Key = "acme", key
	}
	h.sequence++
	h.versions[e.Owner+e.Key]++
	e.KeyVersion = h.versions[e.Owner+e.Key]
	return events.Record{Stream: events.Ledger, Sequence: h.sequence, Event: e}
}

func secret(s string) (events.Secret, [32]byte) {
	h := sha256.Sum256([]byte(s))
	return events.Secret{SHA256: hex.EncodeToString(h[:])}, h
}

func TestAKeyIsFoundByEverySecretItHad(t *testing.T) {
	r, h := New(), history{}
	one, first := secret("one")
	two, second := secret("two")
	r.Apply(h.record("key_1", events.KeyCreated{Secret: one}))
	r.Apply(h.record("key_1", events.KeyRotated{Secret: two}))
	for _, hash := range [][32]byte{first, second} {
		if k := r.BySecret("parcelbird", hash); k == nil || k.ID != "key_1" || k.Version != 2 {
			t.Errorf("By %x: %v, want version 2 of key_1", hash[:4], k)
		}
	}
	if r.BySecret("other", first) != nil {
		t.Error("A key was found in another keyspace.")
	}
}

// Whoever imports hashes chooses them, so that two may share what the ring
// looks for first.
func TestSecretsThatLookAlike(t *testing.T) {
	r, h := New(), history{}
	a := sha256.Sum256([]byte("a"))
	b := a
	b[31]++
	r.Apply(h.record("key_a", events.KeyCreated{Secret: events.Secret{SHA256: hex.EncodeToString(a[:])}}))
	r.Apply(h.record("key_b", events.KeyCreated{Secret: events.Secret{SHA256: hex.EncodeToString(b[:])}}))
	if k := r.BySecret("parcelbird", a); k == nil || k.ID != "key_a" {
		t.Errorf("a is %v", k)
	}
	if k := r.BySecret("parcelbird", b); k == nil || k.ID != "key_b" {
		t.Errorf("b is %v", k)
	}
	b[30]++
	if r.BySecret("parcelbird", b) != nil {
		t.Error("A secret nobody has found a key.")
	}
}

// Between an admission and its key, which stand in one atomic batch, the
// place is taken already.
func TestAnAdmissionCountsBeforeItsKey(t *testing.T) {
	r, h := New(), history{}
	doc := &domain.Document{Keyspace: "parcelbird", Plans: map[string]domain.Plan{"basic": {MaxKeys: new(5)}}}
	r.Apply(h.record("", events.KeyspaceConfigured{DocumentVersion: 1, Document: doc.JSON()}))
	r.Apply(h.record("", events.OwnerRegistered{Plan: "basic"}))
	active := func() int {
		s, _ := r.State("parcelbird", "acme", "key_x", time.Now())
		return s.ActiveKeys
	}
	r.Apply(h.record("", events.OwnerKeyAdmitted{Key: "key_1"}))
	if n := active(); n != 1 {
		t.Errorf("After the admission %d keys are active, want 1.", n)
	}
	one, _ := secret("one")
	r.Apply(h.record("key_1", events.KeyCreated{Secret: one}))
	if n := active(); n != 1 {
		t.Errorf("After its key %d keys are active, want 1.", n)
	}
	r.Apply(h.record("key_1", events.KeyRevoked{}))
	if n := active(); n != 0 {
		t.Errorf("After its end %d keys are active, want 0.", n)
	}
}

func TestVoidFactsAreKnownAndMoveTheSequence(t *testing.T) {
	r, h := New(), history{}
	one, _ := secret("one")
	r.Apply(h.record("key_1", events.KeyCreated{Secret: one}))
	late := h.record("key_1", events.KeyRevoked{})
	late.Event.KeyVersion = 1
	r.Apply(late)
	if void, err := r.Void(t.Context(), late.Sequence); err != nil || !void {
		t.Errorf("Void says %v, %v of a second fact at version 1.", void, err)
	}
	if void, _ := r.Void(t.Context(), 1); void {
		t.Error("The first fact is called void.")
	}
	if _, expect := r.State("parcelbird", "acme", "key_1", time.Now()); expect.Key != late.Sequence {
		t.Errorf("The next append expects %d, the subject is at %d.", expect.Key, late.Sequence)
	}
}

func TestIdempotencyKeysAreForgottenAfterADay(t *testing.T) {
	r, h := New(), history{}
	id := domain.CommandID(events.Actor{Type: "root_key", ID: "key_0"}, "abc", []byte("body"))
	which, what, _ := domain.SplitCommandID(id)
	one, _ := secret("one")
	rec := h.record("key_1", events.KeyCreated{Secret: one})
	rec.Event.Command = id
	r.Apply(rec)
	if d, ok := r.Done(which, time.Now()); !ok || d.What != what || d.Key != "key_1" {
		t.Errorf("Done is %+v, %v", d, ok)
	}
	if _, ok := r.Done(which, time.Now().Add(Remembered+time.Second)); ok {
		t.Error("It is still known after a day.")
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	r := New()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Wait(ctx, 1); err == nil {
		t.Error("Waiting for a sequence that never comes ended without an error.")
	}
	if len(r.waiters) != 0 {
		t.Error("The waiter stayed behind.")
	}
}

// BenchmarkMillion reads a ledger of a million keys from JetStream into
// memory: what a start of the service costs, and what the keys weigh.
func BenchmarkMillion(b *testing.B) {
	n := 1_000_000
	if testing.Short() {
		n = 20_000
	}
	// Another server than the one that reads writes them, as it would have
	// been before a start.
	dir := b.TempDir()
	writer, err := embedded.StartNATS(embedded.NATSConfig{Dir: dir, NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	defer writer.Shutdown()
	open := func(server *embedded.NATS) *ledger.Ledger {
		l, err := ledger.Open(b.Context(), testenv.Conn(b, server), ledger.Options{AllowUnverifiedSync: true})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { l.Close() })
		return l
	}
	fill(b, open(writer), n)
	writer.Shutdown()
	l := open(testenv.NATS(b, testenv.InDir(dir)))
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as the program does while it starts
	b.ResetTimer()
	for range b.N {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		r := New()
		ctx, cancel := context.WithCancel(b.Context())
		start := time.Now()
		go r.Run(ctx, l)
		<-r.Ready()
		took := time.Since(start)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(n)/took.Seconds(), "records/s")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		if got := r.Sequence(); got != uint64(n) {
			b.Fatalf("read %d of %d", got, n)
		}
		cancel()
		runtime.KeepAlive(r)
	}
}

// fill writes n keys of n/10 owners in atomic batches.
func fill(b *testing.B, l *ledger.Ledger, n int) {
	now := time.Now()
	for at := 0; at < n; {
		var batch []ledger.Expect
		for ; at < n && len(batch) < ledger.MaxBatch; at++ {
			s, _ := secret(fmt.Sprint(at))
			s.First, s.Last = "pb_live_a1b2", "wxyz"
			e := events.New(events.KeyCreated{
				Name: fmt.Sprintf("Production server %d", at), Environment: "live", Scopes: []string{"parcels:read", "parcels:write"},
				Limits: events.Limits{"minute": 100, "hour": 5000, "day": 100000}, Secret: s,
			}, now)
			e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", fmt.Sprintf("org_%d", at/10), events.NewID("key", now), 1
			e.Actor, e.Via, e.RequestID, e.Command = events.Actor{Type: "root_key", ID: "key_0190c5f0-0000-7000-8000-000000000000"}, "api", events.NewID("req", now), events.NewID("cmd", now)
			batch = append(batch, ledger.Expect{Event: e})
		}
		if _, err := l.AppendBatch(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
}
