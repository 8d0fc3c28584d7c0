package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

const secret = "pb_live_0123456789abcdefABCDEF0123456789abcdefAB"

// The example in a process of its own, beside a NATS server and nothing else: there
// is no keyledger that it could ask. A key works, from the moment on that it is
// revoked it does not, and SIGTERM leaves nothing unrecorded.
func TestExample(t *testing.T) {
	w := verifytest.New(t, verify.Options{}, testenv.Listening())
	source, err := os.ReadFile("../../keyspaces/parcelbird.yaml")
	if err != nil {
		t.Fatal(err)
	}
	document, err := domain.ParseDocument(source)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	w.Configure(string(text))
	// A plan without limits: on a slow machine many requests pass before the revocation arrives.
	w.Append("parcelbird", "org_1", "", events.OwnerRegistered{Name: "One", Plan: "large"})
	key := w.Key("parcelbird", "org_1", secret, events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"parcels:read"}})

	dir := t.TempDir()
	program, master := filepath.Join(dir, "inprocess"), filepath.Join(dir, "master.key")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(master, []byte("01"+strings.Repeat("00", 31)), 0o600); err != nil {
		t.Fatal(err)
	}
	address := testenv.FreeAddress(t)
	p := testenv.Start(t, []string{"NATS_URL=" + w.NATS.ClientURL(), "MASTER_KEY_FILE=" + master, "LISTEN=" + address}, program)
	p.WaitOutput("serving with the keys", 30*time.Second)
	get := func(path string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+secret)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	for deadline := time.Now().Add(20 * time.Second); ; { // it listens a moment after it says so
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not listen")
		}
	}
	if status, body := get("/readyz"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	served := 1
	if status, body := get("/v1/parcels/7"); status != 200 || body != "parcel 7, for org_1\n" {
		t.Fatalf("%d %s", status, body)
	}

	w.Append("parcelbird", "org_1", key, events.KeyRevoked{Reason: "leaked"})
	at := time.Now()
	for status := 200; status == 200; served++ {
		var body string
		if status, body = get("/v1/parcels/7"); status != 200 && status != 401 {
			t.Fatalf("%d %s", status, body)
		}
		if status == 401 {
			t.Logf("refused %s after the revocation, after %d more requests", time.Since(at).Round(100*time.Microsecond), served-1)
			break
		}
		if time.Since(at) > 10*time.Second {
			t.Fatal("a revoked key still works")
		}
	}

	p.Signal(syscall.SIGTERM)
	if err := p.Wait(30 * time.Second); err != nil {
		t.Error(err)
	}
	used, denied := 0, 0
	for _, r := range w.Recorded() {
		switch d := r.Event.Data.(type) {
		case events.KeyUsed:
			used++
			if d.Status == nil || *d.Status != 200 || d.CostMicros != 250 || d.Endpoint != "/v1/parcels/7" || r.Event.Via != "middleware" || r.Event.Key != key {
				t.Errorf("%+v", r.Event)
			}
		case events.KeyDenied:
			denied += int(d.Count)
		}
	}
	if used != served || denied != 1 {
		t.Errorf("%d uses and %d refusals are recorded, want %d and 1", used, denied, served)
	}
}

// Whoever copies the example has these packages too, and the integrators' manual
// shows it as it is.
func TestExampleIsPublic(t *testing.T) {
	imports, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(imports), "/internal/") {
		t.Errorf("it imports\n%s", imports)
	}
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	manual, err := os.ReadFile("../../docs/integrators.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, run, _ := strings.Cut(string(source), "func run("); !strings.Contains(string(manual), fmt.Sprintf("```go\nfunc run(%s```", run)) {
		t.Error("docs/integrators.md shows another func run: copy it from main.go")
	}
}
