package verify_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

const connectSecret = "bd_live_0123456789abcdefABCDEFxyzXYZ0000"

// masterFile is the key under which verifytest seals.
func masterFile(t *testing.T, first string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	if err := os.WriteFile(path, []byte(first+strings.Repeat("00", 31)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// One call gives a service what it needs to decide: it knows every key, learns of
// changes, counts limits on from the log, and records with its end.
func TestConnect(t *testing.T) {
	w := verifytest.New(t, verify.Options{}, testenv.Listening())
	w.Configure(strings.Replace(verifytest.Birds, `"limits": {"from": "plan"`, `"limits": {"from": "key"`, 1))
	key := w.Key("birds", "org_1", connectSecret, events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"birds:read"}, Limits: events.Limits{"day": 10}})
	req := domain.Request{Keyspace: "birds", Key: connectSecret, Method: "GET", Path: "/v1/birds", IP: "192.0.2.1"}
	state := t.TempDir()
	for i, c := range []verify.Config{{URL: w.NATS.ClientURL()}, {Conn: w.Conn}} {
		c.MasterKeyFile, c.Node, c.StateDir = masterFile(t, "01"), "service", filepath.Join(state, "new")
		n, err := verify.Connect(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Ready(); err != nil {
			t.Error(err)
		}
		d := n.Verify(req)
		if limits := d.Limits(); !d.Valid || len(limits) != 1 || limits[0].Remaining != int64(9-i) {
			t.Errorf("%s, %+v", d.Code, limits)
		}
		n.Record(&d, &req, verify.Use{Via: "test", Status: 200})
		if i == 1 {
			w.Append("birds", "org_1", key, events.KeyRevoked{Reason: "leaked"})
			if err := n.Ring.Wait(t.Context(), w.Ring.Sequence()); err != nil {
				t.Fatal(err)
			}
			if d := n.Verify(req); d.Code != domain.CodeRevoked {
				t.Errorf("a revoked key: %s", d.Code)
			}
		}
		select {
		case <-n.Done():
			t.Error("it is done before its end")
		default:
		}
		if err := n.Close(t.Context()); err != nil {
			t.Error(err)
		}
		<-n.Done()
		used := verifytest.RecordedAs[events.KeyUsed](w)
		if len(used) != i+1 || used[i].Node != "service" {
			t.Errorf("recorded: %+v", used)
		}
	}
	if w.Conn.IsClosed() {
		t.Error("a connection that is the caller's was closed")
	}
	started := 0
	for r, err := range w.Ledger.Read(t.Context(), events.Ops, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := r.Event.Data.(events.ServiceStarted); ok && s.Node == "service" && s.Program == "verifier" {
			started++
		}
	}
	if started != 2 {
		t.Errorf("%d starts are recorded, want 2", started)
	}
}

// A node whose keys are not followed any more says so, and is not believed for
// longer than the stale window.
func TestConnectionInDoubt(t *testing.T) {
	w := verifytest.New(t, verify.Options{}, testenv.Listening())
	w.Configure(verifytest.Birds)
	n, err := verify.Connect(t.Context(), verify.Config{URL: w.NATS.ClientURL(), MasterKeyFile: masterFile(t, "01"), StaleWindow: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		end, stop := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer stop()
		if err := n.Close(end); err == nil {
			t.Error("without NATS the refusals above were recorded")
		}
	}()
	w.NATS.Shutdown()
	for deadline := time.Now().Add(30 * time.Second); n.Verify(domain.Request{Keyspace: "birds"}).Code != domain.CodeStateTooStale; {
		if time.Now().After(deadline) {
			t.Fatal("it decides without NATS for longer than its stale window")
		}
	}
}

// What cannot work is said at once, with what to do.
func TestConnectRefuses(t *testing.T) {
	w := verifytest.New(t, verify.Options{}, testenv.Listening())
	empty := testenv.NATS(t, testenv.Listening())
	for name, c := range map[string]verify.Config{
		"another master key":     {URL: w.NATS.ClientURL(), MasterKeyFile: masterFile(t, "02")},
		"no master key":          {URL: w.NATS.ClientURL(), MasterKeyFile: filepath.Join(t.TempDir(), "none")},
		"no streams":             {URL: empty.ClientURL(), MasterKeyFile: masterFile(t, "01")},
		"nobody at this address": {URL: "nats://127.0.0.1:1", MasterKeyFile: masterFile(t, "01"), Options: []nats.Option{nats.Timeout(time.Second)}},
	} {
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		n, err := verify.Connect(ctx, c)
		stop()
		if err == nil {
			n.Close(t.Context())
			t.Errorf("%s: connected", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}
