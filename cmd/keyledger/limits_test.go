package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
)

const simulation = `{"keyspace":"parcelbird","from":"2026-01-17T12:00:00.000Z","to":"2026-01-18T12:00:00.000Z","bucket":"hour",
	"total":{"requests":4000,"refused_then":40,"refused":640,"newly_refused":610,"no_longer_refused":10},"seen":7,"keys_hit":1,"owners_hit":1,
	"keys":[{"key":"key_1","name":"Production \u001b[2Jserver","owner":"org_1","requests":2000,"refused_then":40,"refused":640,"newly_refused":610,"no_longer_refused":10,
		"first":"2026-01-17T13:05:00.000Z","last":"2026-01-18T10:00:00.000Z","worst_minute":"2026-01-17T13:06:00.000Z","worst_count":80,"windows":{"minute":600,"day":40},"share":0.32}],
	"owners":[],"timeline":[{"time":"2026-01-17T13:00:00.000Z","requests":3000,"refused_then":0,"refused":600,"newly_refused":600,"no_longer_refused":0},
		{"time":"2026-01-18T10:00:00.000Z","requests":1000,"refused_then":40,"refused":40,"newly_refused":10,"no_longer_refused":10}],
	"folded":40,"unknown":3,"late":0,"unrecorded":2}`

// What is asked for is sent as the API takes it, and what comes is printed as lines,
// or with --json as it came.
func TestSimulateLimits(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		io.WriteString(w, `{"done":500,"total":1000}`+"\n"+`{"result":`+strings.ReplaceAll(simulation, "\n", "")+"}\n")
	})
	r := invoke(t, "", "limits", "simulate", "--keyspace", "parcelbird", "--plan", "basic", "--limit", "minute=20", "--limit", "day=1000", "--from", "24h").want(t, 0)
	if q := s.only(t); q.body != `{"keyspace":"parcelbird","plan":"basic","limits":{"day":1000,"minute":20},"from":"2026-01-17T12:00:00.000Z","top":20}` || q.header.Get("Accept") != "application/x-ndjson" {
		t.Errorf("asked %v", q)
	}
	contains(t, "stdout", r.stdout, "key_1\torg_1\tProduction \\x1b[2Jserver\t2000\t40\t640\t610\t10\t2026-01-17T13:05:00.000Z\t", "\t80\tminute\n")
	contains(t, "stderr", r.stderr, "replaying: 500 of 1000")
	r = invoke(t, "", "limits", "simulate", "--keyspace", "parcelbird", "--unlimited", "--json").want(t, 0)
	contains(t, "stdout", r.stdout, `"newly_refused":610`)
	if body := s.seen[1].body; !strings.Contains(body, `"limits":{}`) {
		t.Errorf("asked %s", body)
	}
	file := filepath.Join(t.TempDir(), "doc.yaml")
	if err := os.WriteFile(file, []byte("keyspace: parcelbird\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	invoke(t, "", "limits", "simulate", "--keyspace", "parcelbird", "-f", file).want(t, 0)
	if body := s.seen[2].body; !strings.Contains(body, `"document":"keyspace: parcelbird\n"`) || strings.Contains(body, `"limits"`) {
		t.Errorf("asked %s", body)
	}
	for _, limit := range []string{"minute", "minute=0", "week=3", "minute=1,minute=2"} {
		invoke(t, "", "limits", "simulate", "--keyspace", "parcelbird", "--limit", limit).want(t, exitUsage)
	}
	invoke(t, "", "limits", "simulate", "--keyspace", "parcelbird", "--limit", "minute=3", "--unlimited").want(t, exitUsage)
}

// A problem that comes after the first line is one, and an answer that is cut off is
// no result.
func TestSimulateLimitsFails(t *testing.T) {
	answer := `{"done":1,"total":2}` + "\n"
	newService(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) })
	r := invoke(t, "", "limits", "simulate", "--keyspace", "parcelbird").want(t, exitUnreachable)
	contains(t, "stderr", r.stderr, "ended before its result")
	answer += `{"error":{"status":422,"code":"INVALID","detail":"The input is not valid.","errors":[{"path":"from","message":"more was recorded","fix":"ask for a shorter time"}]}}`
	r = invoke(t, "", "limits", "simulate", "--keyspace", "parcelbird").want(t, exitFailed)
	contains(t, "stderr", r.stderr, "ask for a shorter time")
}

// What a person sees is no wider than the terminal.
func TestSimulationDrawn(t *testing.T) {
	for _, color := range []bool{false, true} {
		var out strings.Builder
		a := &app{stdout: &out, stderr: &out, tty: true, color: color, width: 100, now: time.Now}
		if err := a.printSimulation([]byte(simulation), simulationAsked{Keyspace: "parcelbird", Plan: "basic", Limits: &map[string]int64{"minute": 20, "day": 1000}}); err != nil {
			t.Fatal(err)
		}
		contains(t, "stdout", out.String(), "parcelbird/basic", "20 per minute, 1000 per day", "16.0 % refused (then 1.0 %)", "610 newly, 10 no longer", "newly refused 610", "Production", "2 uses of this time could not be recorded")
		for line := range strings.Lines(out.String()) {
			if n := text.StringWidthWithoutEscSequences(strings.TrimSuffix(line, "\n")); n > 100 && !strings.Contains(line, "--json has all") {
				t.Errorf("%d columns: %s", n, line)
			}
		}
		if strings.Contains(out.String(), "\x1b[2J") || !color && strings.Contains(out.String(), "\x1b[3") {
			t.Errorf("drawn %q", out.String())
		}
	}
}
