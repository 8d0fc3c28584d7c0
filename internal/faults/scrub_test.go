package faults

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
)

// scrubbed is what GET /v1/audit/scrub answers.
type scrubbed struct {
	Streams []struct {
		Stream string
		Began  string
		Last   *struct {
			Began, Ended  string
			Events, Bytes int64
		}
		Findings []struct {
			Stream, What, Problem, Fix, Runbook string
			Sequence                            uint64
			Line                                int
		}
	}
}

// A fact of which somebody edited a letter, and the server's checksum with it, is not
// noticed by NATS and by nobody who reads it. The scrub names it: commands are refused
// and say why, nothing is signed, keys are verified. It is known over a restart. With
// the stream from a copy, as the runbook says, everything goes on.
func TestScrub(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	postgres := testenv.Postgres(t)
	d := newDev(t, state, "KEYLEDGER_POSTGRES_URL="+postgres)
	d.start()
	c := d.client()
	c.prepare()
	key := func(name string) answer {
		return c.until(t.Context(), http.MethodPost, "/v1/keys", name, map[string]any{"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI"})
	}
	var first made
	a := key("k1")
	a.decode(t, &first)
	sequence, err := strconv.ParseUint(a.header.Get("Ledger-Sequence"), 10, 64)
	if err != nil {
		t.Fatal(err, a)
	}
	d.audit(t, 0)
	c.scrubbed(func(s scrubbed) bool {
		return s.Streams[0].Last != nil && s.Streams[0].Last.Events >= int64(sequence) && s.Streams[0].Last.Bytes > 0 && len(s.Streams[0].Findings) == 0
	})
	if out := d.audit(t, 0); !strings.Contains(out, `"LEDGER"`) {
		t.Errorf("audit scrub --now: %s", out)
	}
	stop := func() {
		t.Helper()
		if err := d.process.Interrupt(patience); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	ledger := filepath.Join(state, "nats", "jetstream", "$G", "streams", events.Ledger)
	intact := t.TempDir()
	copyDir(t, intact, ledger)
	testenv.Forge(t, filepath.Join(state, "nats"), events.Ledger, sequence, `"CI"`, `"CJ"`)

	for range 2 {
		d.start()
		found := c.scrubbed(func(s scrubbed) bool { return len(s.Streams[0].Findings) > 0 })
		f := found.Streams[0].Findings[0]
		if f.What != "altered" || f.Stream != events.Ledger || f.Sequence != sequence || f.Runbook != "scrub-altered.md" || !strings.Contains(f.Fix, "restore") {
			t.Errorf("found %+v", f)
		}
		a, err := c.once(t.Context(), http.MethodPost, "/v1/keys", "k2", map[string]any{"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI"})
		if err != nil || a.status != http.StatusServiceUnavailable || a.code() != "LOG_DAMAGED" || a.header.Get("Retry-After") == "" {
			t.Errorf("a command is answered %d %s, %v", a.status, a.body, err)
		}
		for _, want := range []string{fmt.Sprintf("LEDGER %d 0", sequence), "is not the one that was signed", "scrub-altered.md", "verified as ever"} {
			if !strings.Contains(string(a.body), want) {
				t.Errorf("%q is not in %s", want, a.body)
			}
		}
		if code, err := c.verify(t.Context(), first.Secret); err != nil || code != "VALID" {
			t.Errorf("verify answers %q, %v", code, err)
		}
		for path, want := range map[string]int{"/readyz": 503, "/readyz?for=verify": 200, "/healthz": 200} {
			if a, err := c.once(t.Context(), http.MethodGet, path, "", nil); err != nil || a.status != want {
				t.Errorf("%s answers %d %s, %v", path, a.status, a.body, err)
			}
		}
		if a, err := c.once(t.Context(), http.MethodGet, "/metrics", "", nil); err != nil || !strings.Contains(string(a.body), `keyledger_scrub_findings{stream="LEDGER"} 1`) {
			t.Errorf("no finding in the metrics, %v", err)
		}
		if out := d.audit(t, 7); !strings.Contains(out, "scrub-altered.md") {
			t.Errorf("audit scrub --now: %s", out)
		}
		stop()
	}

	if err := os.RemoveAll(ledger); err != nil {
		t.Fatal(err)
	}
	copyDir(t, ledger, intact)
	d.start()
	c.scrubbed(func(s scrubbed) bool { return s.Streams[0].Last != nil && len(s.Streams[0].Findings) == 0 })
	if a := key("k3"); a.status != http.StatusCreated {
		t.Errorf("a command is answered %d %s", a.status, a.body)
	}
	if a, err := c.once(t.Context(), http.MethodGet, "/readyz", "", nil); err != nil || a.status != 200 {
		t.Errorf("/readyz answers %d %s, %v", a.status, a.body, err)
	}
	d.audit(t, 0)
	invariants(t, d.places().NATSURL, postgres, 1, d.seen)
}

// scrubbed waits for a state of the scrub.
func (c *client) scrubbed(is func(scrubbed) bool) (s scrubbed) {
	c.t.Helper()
	for end := time.Now().Add(patience); ; {
		a, err := c.once(c.t.Context(), http.MethodGet, "/v1/audit/scrub", "", nil)
		if err == nil && a.status == http.StatusOK {
			s = scrubbed{}
			if a.decode(c.t, &s); is(s) {
				return s
			}
		}
		if time.Now().After(end) {
			c.t.Fatalf("the scrub never came so far: %d %s, %v", a.status, a.body, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// audit runs `keyledger audit scrub --now --json` and checks its exit code.
func (d *dev) audit(t *testing.T, code int) string {
	t.Helper()
	p := testenv.Start(t, []string{"KEYLEDGER_CONTEXT=" + d.context}, testenv.Build(t), "audit", "scrub", "--now", "--json")
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](p.Wait(patience)); ok {
		got = exit.ExitCode()
	}
	if got != code {
		t.Errorf("audit scrub --now ended with %d instead of %d: %s", got, code, p.Output())
	}
	return p.Output()
}
