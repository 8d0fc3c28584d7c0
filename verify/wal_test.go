package verify_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// mortal is a node with a write-ahead log in dir and a connection of its own,
// which is to be closed: from then on it writes nothing, as a killed one.
func mortal(t testing.TB, w *verifytest.World, dir, node string, now func() time.Time) (*verify.Verifier, *verify.Recorder, *nats.Conn) {
	t.Helper()
	conn := testenv.Conn(t, w.NATS)
	l, err := ledger.Open(t.Context(), conn, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r, err := verify.OpenRecorder(t.Context(), l, w.Keys, node, options(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, stop := context.WithCancel(context.Background())
		stop()
		_ = r.Close(ctx)
	})
	v := verify.New(w.Ring, r, verify.Options{Now: now})
	t.Cleanup(v.Close)
	return v, r, conn
}

func options(dir string) verify.RecorderOptions {
	return verify.RecorderOptions{Dir: dir, Master: seal.Master{1}, Keyspaces: []string{"birds"}, Log: slog.New(slog.DiscardHandler)}
}

// killed is a copy of a directory of logs as a process that is killed now leaves
// it.
func killed(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "wal")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// recovered opens and closes a recorder on what was left.
func recovered(t testing.TB, w *verifytest.World, dir string) {
	t.Helper()
	r, err := verify.OpenRecorder(t.Context(), w.Ledger, w.Keys, "later", options(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "[^.]*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left of the logs, %v", left, err)
	}
}

// of are the facts of a node, by what they say of it.
func of(t testing.TB, w *verifytest.World, node string) (uses, reports map[string]int, counts map[string]int64, gaps []events.UsageGap) {
	uses, reports, counts = map[string]int{}, map[string]int{}, map[string]int64{}
	for _, r := range w.Recorded() {
		by := ""
		switch d := r.Event.Data.(type) {
		case events.KeyUsed:
			if by = d.Node; by == node {
				uses[d.Decision]++
			}
		case events.KeyUseReported:
			reports[d.Decision]++
		case events.KeyDenied:
			if by = d.Node; by == node {
				counts[d.Code] += d.Count
			}
		case events.KeyRateLimited:
			if by = d.Node; by == node {
				counts[fmt.Sprint("RATE_LIMITED ", d.Limit)] += d.Count
			}
		case events.CredentialRejected:
			if by = d.Node; by == node {
				source, _ := w.Keys.Open(t.Context(), d.SourceIP)
				counts[strings.TrimSpace(d.Code+" "+source)] += d.Count
			}
		case events.LimitTaken:
			if by = d.Node; by == node {
				counts["taken"] += d.Count
			}
		case events.UsageGap:
			if d.Node == node {
				gaps = append(gaps, d)
			}
		}
		if by == node && !strings.HasSuffix(r.Subject, "."+node) {
			t.Errorf("a fact of %s stands on %s", node, r.Subject)
		}
	}
	return uses, reports, counts, gaps
}

const limited = `, "default": {"minute": 2}`

// What was answered and not written when the process was killed is written by the
// next one, with the same ids, once; what was written already is not written
// again.
func TestKilled(t *testing.T) {
	now := time.Now().Add(time.Hour) // no second of it is over before the test ends
	w := verifytest.New(t, verify.Options{})
	w.Configure(strings.Replace(verifytest.Birds, `"from": "plan", "count_by": "key"`, `"from": "key", "count_by": "key"`+limited, 1))
	w.Key("birds", "org_1", secret, events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}, Limits: events.Limits{}})
	few := "bd_live_fewfewfewfewfewfewfewfewfewfewfe"
	w.Key("birds", "org_1", few, events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}, Limits: events.Limits{"minute": 2}})
	dir := filepath.Join(t.TempDir(), "wal")
	v, r, conn := mortal(t, w, dir, "gw", func() time.Time { return now })
	ask := func(n int) (ids []string) {
		for i := range n {
			req := request(secret)
			d := v.Verify(req)
			if !d.Valid || !v.Record(&d, &req, verify.Use{Via: "gateway", RequestID: fmt.Sprint("req_", i), UserAgent: "curl/8", Status: 200, Latency: time.Millisecond}) {
				t.Fatal(d.Code)
			}
			ids = append(ids, d.ID())
		}
		return ids
	}
	early := ask(300)
	durably := func(within time.Duration) (string, error) {
		req := request(secret)
		d := v.Verify(req)
		ctx, stop := context.WithTimeout(t.Context(), within)
		defer stop()
		return d.ID(), v.RecordDurably(ctx, &d, &req, verify.Use{Via: "gateway", Status: 200})
	}
	id, err := durably(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	early = append(early, id)
	v.Verify(request("bd_live_nobody"))
	if err := r.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	// From here on the server has nothing: its connection is taken away.
	conn.Close()
	late := ask(200)
	for range 7 {
		v.Verify(request("bd_live_nobody"))
		req := request(secret)
		req.Method = "POST"
		v.Verify(req)
	}
	for range 5 {
		if d := v.Verify(request(few)); d.Valid {
			req := request(few)
			v.Record(&d, &req, verify.Use{})
			late = append(late, d.ID())
		}
	}
	if d, err := v.Take("birds", "org_1", 2); err != nil || !d.Valid {
		t.Fatal(d.Code, err)
	}
	// Its caller is told AUDIT_UNAVAILABLE, and that is kept like any other answer.
	untold, err := durably(time.Millisecond)
	if !errors.Is(err, verify.ErrAuditUnavailable) {
		t.Fatal(err)
	}
	late = append(late, untold)
	left := killed(t, dir)
	recovered(t, w, killed(t, left)) // once
	recovered(t, w, left)            // and by one who does not know of the first

	uses, reports, counts, gaps := of(t, w, "gw")
	if reports[untold] != 1 {
		t.Errorf("%d reports of the use that was refused, want 1", reports[untold])
	}
	for _, id := range append(early, late...) {
		if uses[id] != 1 {
			t.Fatalf("a use is recorded %d times", uses[id])
		}
	}
	if len(uses) != len(early)+len(late) {
		t.Errorf("%d uses of %d", len(uses), len(early)+len(late))
	}
	want := "map[INSUFFICIENT_SCOPE:7 MALFORMED_KEY 203.0.113.9:8 RATE_LIMITED 2:3 taken:2]"
	if got := fmt.Sprint(counts); got != want || len(gaps) > 0 {
		t.Errorf("%s, %v, want %s", got, gaps, want)
	}
	for _, r := range w.Recorded() {
		if d, ok := r.Event.Data.(events.KeyUsed); ok {
			ip, err := w.Keys.Open(t.Context(), d.SourceIP)
			if ip != "203.0.113.9" || err != nil || d.Endpoint != "/v1/birds/7" || d.Node != "gw" {
				t.Errorf("%q %v %+v", ip, err, d)
			}
		}
	}
}

// What the write-ahead log costs a recorded use, beside one without.
func BenchmarkLogged(b *testing.B) {
	w, _ := birds(b)
	_, plain, _ := mortal(b, w, filepath.Join(b.TempDir(), "wal"), "gw", nil)
	for _, c := range []struct {
		name string
		r    *verify.Recorder
	}{{"without", w.Recorder}, {"with", plain}} {
		v := verify.New(w.Ring, c.r, verify.Options{})
		b.Cleanup(v.Close)
		b.Run("use/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			req := request(secret)
			for b.Loop() {
				d := v.Verify(req)
				v.Record(&d, &req, verify.Use{Via: "api", RequestID: "req_0190d0c0-0000-7000-8000-000000000001", UserAgent: "curl/8", Status: 200, Latency: time.Millisecond})
			}
			b.StopTimer()
			if err := c.r.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
		b.Run("refusal/"+c.name, func(b *testing.B) {
			req := request("bd_live_nobody")
			for b.Loop() {
				v.Verify(req)
			}
		})
	}
}

// What memory has no room for is counted in the log too, so that a kill does not
// lose the declaration.
func TestKilledWithGap(t *testing.T) {
	w, _ := birds(t)
	dir := filepath.Join(t.TempDir(), "wal")
	conn := testenv.Conn(t, w.NATS)
	l, err := ledger.Open(t.Context(), conn, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	o := options(dir)
	o.Memory = 32 << 10
	r, err := verify.OpenRecorder(t.Context(), l, w.Keys, "gw", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, stop := context.WithCancel(context.Background())
		stop()
		_ = r.Close(ctx)
	})
	v := verify.New(w.Ring, r, verify.Options{})
	t.Cleanup(v.Close)
	conn.Close()
	const asked = 500
	dropped := 0
	for range asked {
		req := request(secret)
		d := v.Verify(req)
		if !v.Record(&d, &req, verify.Use{}) {
			dropped++
		}
	}
	left := killed(t, dir)
	recovered(t, w, killed(t, left))
	recovered(t, w, left)
	uses, _, _, gaps := of(t, w, "gw")
	declared := int64(0) // in one gap, or in more where there was room again between
	for _, g := range gaps {
		if declared += g.Count; g.From == 0 || g.To < g.From {
			t.Errorf("%+v", g)
		}
	}
	if len(uses) < 50 || dropped < 50 || len(uses)+dropped != asked || declared != int64(dropped) {
		t.Errorf("%d uses, %d dropped, %+v", len(uses), dropped, gaps)
	}
}

// A machine that stopped is declared, once, however often the next start is
// interrupted; a log under another master key is refused and stays.
func TestPowerCut(t *testing.T) {
	w, _ := birds(t)
	dir := filepath.Join(t.TempDir(), "wal")
	v, _, conn := mortal(t, w, dir, "gw", nil)
	conn.Close()
	begun := time.Now()
	req := request(secret)
	d := v.Verify(req)
	v.Record(&d, &req, verify.Use{})
	left := killed(t, dir)
	meta := filepath.Join(left, "gw", "log.json")
	b, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	b = regexp.MustCompile(`"boot_id": "[^"]*"`).ReplaceAll(b, []byte(`"boot_id": "before"`))
	if err := os.WriteFile(meta, b, 0o600); err != nil {
		t.Fatal(err)
	}
	o := options(left)
	o.Master = seal.Master{2}
	if _, err := verify.OpenRecorder(t.Context(), w.Ledger, w.Keys, "later", o); err == nil || !strings.Contains(err.Error(), filepath.Join(left, "gw")) {
		t.Errorf("with another master key: %v", err)
	}
	recovered(t, w, killed(t, left))
	recovered(t, w, left)
	uses, _, _, gaps := of(t, w, "gw")
	if len(uses) != 1 || len(gaps) != 1 || gaps[0].Count != 0 || gaps[0].From > events.At(time.Now()) || gaps[0].To < events.At(begun) || !strings.Contains(gaps[0].Reason, "the machine stopped") {
		t.Errorf("%d uses, %+v", len(uses), gaps)
	}
}

// What ends well leaves nothing.
func TestDrained(t *testing.T) {
	w, _ := birds(t)
	dir := filepath.Join(t.TempDir(), "wal")
	v, r, _ := mortal(t, w, dir, "gw", nil)
	for range 100 {
		req := request(secret)
		d := v.Verify(req)
		v.Record(&d, &req, verify.Use{})
		v.Verify(request("bd_live_nobody"))
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "[^.]*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	uses, _, counts, gaps := of(t, w, "gw")
	if len(uses) != 100 || counts["MALFORMED_KEY 203.0.113.9"] != 100 || len(gaps) > 0 {
		t.Errorf("%d uses, %v, %v", len(uses), counts, gaps)
	}
}
