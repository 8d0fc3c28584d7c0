package verify_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

const secret = "bd_live_0123456789abcdefABCDEFxyzXYZ0000"

func request(secret string) domain.Request {
	return domain.Request{
		Keyspace: "birds", Credential: []string{"Bearer " + secret}, Method: "GET", Path: "/v1/birds/7?q=1",
		Origin: new("https://birds.example"), IP: "203.0.113.9",
	}
}

func birds(t testing.TB) (w *verifytest.World, key string) {
	w = verifytest.New(t, verify.Options{})
	w.Configure(verifytest.Birds)
	return w, w.Key("birds", "org_1", secret, events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"birds:read"}})
}

// The decision follows the facts from the moment that they are known: valid,
// rotated with grace, revoked.
func TestVerify(t *testing.T) {
	w, key := birds(t)
	expect := func(secret string, code domain.Code, which string) verify.Decision {
		t.Helper()
		d := w.Verifier.Verify(request(secret))
		if d.Code != code || d.Secret != which || d.Valid != (code == domain.CodeValid) {
			t.Errorf("%s with %q secret, want %s with %q", d.Code, d.Secret, code, which)
		}
		if d.Sequence != w.Ring.Sequence() {
			t.Errorf("judged with sequence %d, want %d", d.Sequence, w.Ring.Sequence())
		}
		return d
	}
	d := expect(secret, domain.CodeValid, "current")
	if d.Key.ID != key || d.Owner.ID != "org_1" || d.Keyspace.DocumentVersion != 1 {
		t.Errorf("decided about %v of %v", d.Key, d.Owner)
	}
	second := strings.ToUpper(secret)
	w.Append("birds", "org_1", key, events.KeyRotated{Secret: verifytest.Secret(second), GraceUntil: events.At(time.Now().Add(time.Hour))})
	expect(second, domain.CodeValid, "current")
	expect(secret, domain.CodeValid, "previous")
	w.Append("birds", "org_1", key, events.KeyGraceEnded{})
	expect(second, domain.CodeValid, "current")
	expect(secret, domain.CodeSuperseded, "previous")
	w.Append("birds", "org_1", key, events.KeyRevoked{Reason: "leaked"})
	expect(second, domain.CodeRevoked, "current")
	expect("bd_live_nobody", domain.CodeMalformedKey, "")
	expect("bd_live_ffffffffffffffffffffffffffffffff", domain.CodeUnknownKey, "")
}

// A keyspace that does not exist, and that of root keys, admit nobody.
func TestForeignKeyspace(t *testing.T) {
	w, _ := birds(t)
	root := "klr_0123456789"
	w.Append(events.RootKeyspace, "", events.NewID("key", time.Now()), events.KeyCreated{Role: "operator", Secret: verifytest.Secret(root)})
	for _, keyspace := range []string{"fish", events.RootKeyspace} {
		for _, s := range []string{secret, root} {
			req := request(s)
			req.Keyspace = keyspace
			d := w.Verifier.Verify(req)
			if d.Code != domain.CodeUnknownKey {
				t.Errorf("keyspace %s: %s", keyspace, d.Code)
			}
			if a := d.Answer(&req, "req_1"); a.Status != 401 || !strings.Contains(string(a.Body), "UNKNOWN_KEY") {
				t.Errorf("answered %d %s", a.Status, a.Body)
			}
		}
	}
}

// A refusal is rendered with what the request needed.
func TestAnswer(t *testing.T) {
	w, _ := birds(t)
	req := request(secret)
	req.Method = "POST"
	d := w.Verifier.Verify(req)
	a := d.Answer(&req, "req_1")
	if a.Status != 403 || string(a.Body) != `{"problem": "Scope missing", "needs": ["birds:write"]}` && string(a.Body) != `{"problem":"Scope missing","needs":["birds:write"]}` {
		t.Errorf("%s answered as %d %s", d.Code, a.Status, a.Body)
	}
}

// An admitted request is one key.used that says everything, with the personal
// data sealed.
func TestRecord(t *testing.T) {
	w, key := birds(t)
	req := request(secret)
	d := w.Verifier.Verify(req)
	if !w.Verifier.Record(&d, &req, verify.Use{Via: "gateway", RequestID: "req_1", UserAgent: "curl/8", Status: 201, Latency: 12 * time.Millisecond, CostMicros: 7}) {
		t.Fatal("dropped")
	}
	unknown := w.Verifier.Verify(req)
	if err := w.Verifier.RecordDurably(t.Context(), &unknown, &req, verify.Use{Via: "api"}); err != nil {
		t.Fatal(err)
	}
	all := w.Recorded()
	if len(all) != 2 {
		t.Fatalf("%d facts, want 2", len(all))
	}
	e := all[0].Event
	if e.Type != "key.used" || e.Keyspace != "birds" || e.Owner != "org_1" || e.Key != key || e.Via != "gateway" || e.RequestID != "req_1" ||
		e.Actor != (events.Actor{Type: "key", ID: key}) || e.Time != events.At(d.Time) || !strings.HasPrefix(e.ID, "evt_") {
		t.Errorf("%+v", e)
	}
	used := e.Data.(events.KeyUsed)
	for _, c := range []struct {
		s    *events.Sealed
		want string
	}{{used.SourceIP, "203.0.113.9"}, {used.UserAgent, "curl/8"}} {
		if plain, err := w.Keys.Open(t.Context(), c.s); plain != c.want || err != nil {
			t.Errorf("sealed %q, %v, want %q", plain, err, c.want)
		}
	}
	used.SourceIP, used.UserAgent = nil, nil
	got := fmt.Sprintf("%+v %d %d", events.KeyUsed{
		Decision: used.Decision, Method: used.Method, Endpoint: used.Endpoint, Origin: used.Origin, CostMicros: used.CostMicros,
		Environment: used.Environment, Secret: used.Secret, Node: used.Node, LedgerSequence: used.LedgerSequence, DocumentVersion: used.DocumentVersion,
	}, *used.Status, *used.LatencyMS)
	want := fmt.Sprintf("%+v 201 12", events.KeyUsed{
		Decision: d.ID(), Method: "GET", Endpoint: "/v1/birds/7", Origin: "https://birds.example", CostMicros: 7,
		Environment: "live", Secret: "current", Node: verifytest.Node, LedgerSequence: 3, DocumentVersion: 1,
	})
	if got != want {
		t.Errorf("recorded %s\nwant %s", got, want)
	}
	if later := all[1].Event.Data.(events.KeyUsed); later.Status != nil || later.LatencyMS != nil || later.Decision != unknown.ID() {
		t.Errorf("an unknown outcome is recorded as %+v", later)
	}
	for _, r := range all {
		if b := string(r.Body); strings.Contains(b, "203.0.113.9") || strings.Contains(b, "curl") || strings.Contains(b, secret) {
			t.Errorf("in clear: %s", b)
		}
	}
}

// Refusals are counted by second: exactly, and in few facts.
func TestFolding(t *testing.T) {
	now := time.Now().Add(time.Hour) // no second of it is over before the test ends
	w := verifytest.New(t, verify.Options{Now: func() time.Time { return now }})
	w.Configure(verifytest.Birds)
	key := w.Key("birds", "org_1", secret, events.KeyCreated{Environment: "live"}) // without a scope
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				w.Verifier.Verify(request(secret))
				for _, ip := range []string{"203.0.113.9", "::ffff:203.0.113.9", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "not an address"} {
					req := request("bd_live_nobody")
					req.IP = ip
					w.Verifier.Verify(req)
				}
			}
		})
	}
	wg.Wait()
	denied := verifytest.RecordedAs[events.KeyDenied](w)
	if len(denied) != 1 || denied[0] != (events.KeyDenied{Code: "INSUFFICIENT_SCOPE", Endpoint: "/v1/birds/7", Node: verifytest.Node, Fold: events.Fold{Count: 100, First: events.At(now), Last: events.At(now)}}) {
		t.Errorf("denied %+v", denied)
	}
	counts := map[string]int64{}
	for _, r := range w.Recorded() {
		switch d := r.Event.Data.(type) {
		case events.KeyDenied:
			if r.Event.Key != key || r.Event.Owner != "org_1" {
				t.Errorf("denied to %+v", r.Event)
			}
		case events.CredentialRejected:
			source, err := w.Keys.Open(t.Context(), d.SourceIP)
			if err != nil {
				t.Error(err)
			}
			if d.Code != "MALFORMED_KEY" || d.Overflow {
				t.Errorf("%+v", d)
			}
			counts[source] += d.Count
		}
	}
	if got, want := fmt.Sprint(counts), "map[:100 2001:db8:0:1::/64:100 2001:db8::/64:200 203.0.113.9:200]"; got != want {
		t.Errorf("rejected %s, want %s", got, want)
	}
}

// Beyond the caps the detail is given up, not the count.
func TestFoldingOverflow(t *testing.T) {
	now := time.Now().Add(time.Hour)
	w := verifytest.New(t, verify.Options{Now: func() time.Time { return now }})
	w.Configure(verifytest.Birds)
	w.Key("birds", "org_1", secret, events.KeyCreated{Environment: "live", Resources: []string{"n1"}})
	for i := range 3000 {
		req := request("bd_live_nobody")
		req.IP = fmt.Sprintf("198.51.%d.%d", i/250, i%250)
		w.Verifier.Verify(req)
		req = request(secret)
		req.Path = fmt.Sprint("/v1/nests/", i)
		w.Verifier.Verify(req)
	}
	var rejected, overflow, denied int64
	facts := 0
	for _, r := range verifytest.RecordedAs[events.CredentialRejected](w) {
		rejected += r.Count
		facts++
		if r.Overflow {
			overflow += r.Count
			if r.SourceIP != nil {
				t.Error("the overflow count names a source")
			}
		}
	}
	if rejected != 3000 || overflow != 2900 || facts != 101 {
		t.Errorf("%d rejected, %d of them overflow, in %d facts", rejected, overflow, facts)
	}
	all := verifytest.RecordedAs[events.KeyDenied](w)
	for _, d := range all {
		denied += d.Count
	}
	if denied != 3000 || len(all) != 1025 {
		t.Errorf("%d denied in %d facts", denied, len(all))
	}
}

// A second is written soon after it is over, without anybody asking.
func TestFoldingBySecond(t *testing.T) {
	w, _ := birds(t)
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	w.Verifier.Verify(request("bd_live_nobody"))
	for r, err := range w.Ledger.Follow(ctx, events.Usage, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if d := r.Event.Data.(events.CredentialRejected); d.Count != 1 {
			t.Errorf("%+v", d)
		}
		return
	}
}

// An outcome is reported once however often it is sent, for admitted requests
// only.
func TestReport(t *testing.T) {
	w, key := birds(t)
	req := request(secret)
	d := w.Verifier.Verify(req)
	w.Verifier.Record(&d, &req, verify.Use{Via: "api"})
	report := []verify.UseReport{{DecisionID: d.ID(), Status: 502, LatencyMS: 30, Endpoint: "/v1/birds/7?x=1"}}
	for range 2 {
		if err := w.Verifier.Report(t.Context(), report, "api"); err != nil {
			t.Fatal(err)
		}
	}
	other := verify.New(w.Ring, w.Recorder, verify.Options{}) // another node, which does not know the first report
	t.Cleanup(other.Close)
	if err := other.Report(t.Context(), report, "api"); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range w.Recorded() {
		if d, ok := r.Event.Data.(events.KeyUseReported); ok {
			ids = append(ids, r.Event.ID)
			if r.Event.Key != key || d.Status != 502 || d.Endpoint != "/v1/birds/7" || d.CostMicros != nil {
				t.Errorf("%+v", r.Event)
			}
		}
	}
	if len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("reports have the ids %v, want the same one twice", ids)
	}

	refused := w.Verifier.Verify(request("bd_live_nobody"))
	gone := verify.NewDecisionID(events.NewID("key", time.Now()), true, time.Now())
	for id, want := range map[string]error{
		refused.ID(): verify.ErrNotAdmitted, gone: verify.ErrNoSuchKey, "dec_1": verify.ErrNoDecision, d.ID() + "0": verify.ErrNoDecision,
		strings.ToUpper(d.ID()): verify.ErrNoDecision,
	} {
		if err := w.Verifier.Report(t.Context(), []verify.UseReport{{DecisionID: id, Status: 200}}, "api"); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", id, err, want)
		}
	}
}

// Without NATS known keys are still admitted, and a use that must be durable is
// refused in time.
func TestWithoutNATS(t *testing.T) {
	w, _ := birds(t)
	req := request(secret)
	w.NATS.Shutdown()
	d := w.Verifier.Verify(req)
	if !d.Valid {
		t.Fatal(d.Code)
	}
	if !w.Verifier.Record(&d, &req, verify.Use{}) {
		t.Error("an ordinary use is dropped")
	}
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := w.Verifier.RecordDurably(ctx, &d, &req, verify.Use{}); !errors.Is(err, verify.ErrAuditUnavailable) {
		t.Errorf("%v, want ErrAuditUnavailable", err)
	}
}

// A verifier that has lost the stream for longer than the window says so.
func TestStale(t *testing.T) {
	w, _ := birds(t)
	lost := verify.New(w.Ring, w.Recorder, verify.Options{Head: func(context.Context) (uint64, error) { return 0, errors.New("away") }})
	t.Cleanup(lost.Close)
	req := request(secret)
	d := lost.Verify(req)
	if d.Code != domain.CodeStateTooStale || d.Key != nil {
		t.Errorf("%s about %v", d.Code, d.Key)
	}
	if a := d.Answer(&req, "req_1"); a.Status != 503 {
		t.Errorf("answered %d", a.Status)
	}
}

func TestDecisionID(t *testing.T) {
	now := time.UnixMilli(1771245001500).UTC()
	key := events.NewID("key", now)
	for _, c := range []verify.DecisionID{{key, true, now}, {key, false, now}, {"", false, now}} {
		id := verify.NewDecisionID(c.Key, c.Admitted, c.Time)
		if got, err := verify.ParseDecisionID(id); err != nil || got != c {
			t.Errorf("%s says %+v, %v, want %+v", id, got, err, c)
		}
		for range 100 { // reading one, with encoding/base32, refuses another spelling
			if id := verify.NewDecisionID(c.Key, c.Admitted, c.Time); len(id) != len("dec_")+52 {
				t.Errorf("%s", id)
			} else if _, err := verify.ParseDecisionID(id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		if id != strings.ToLower(id) || id == verify.NewDecisionID(c.Key, c.Admitted, c.Time) {
			t.Errorf("%s", id)
		}
	}
}

func FuzzParseDecisionID(f *testing.F) {
	f.Add(verify.NewDecisionID(events.NewID("key", time.Now()), true, time.Now()))
	f.Add("dec_")
	f.Fuzz(func(t *testing.T, id string) {
		if d, err := verify.ParseDecisionID(id); err == nil && (d.Time.IsZero() || strings.ToLower(id) != id) {
			t.Errorf("%q is read as %+v", id, d)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	w, _ := birds(b)
	req := request(secret)
	b.Run("decide", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if d := w.Verifier.Verify(req); !d.Valid {
				b.Fatal(d.Code)
			}
		}
	})
	b.Run("record", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d := w.Verifier.Verify(req)
			w.Verifier.Record(&d, &req, verify.Use{Via: "api", RequestID: "req_1", UserAgent: "curl/8", Status: 200, Latency: time.Millisecond})
		}
	})
	b.Run("refuse", func(b *testing.B) {
		b.ReportAllocs()
		req := request("bd_live_nobody")
		for b.Loop() {
			w.Verifier.Verify(req)
		}
	})
}
