package main

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/internal/testenv"
)

// runBench runs `keyledger bench verify` as a program: it keeps itself on one
// core, which is not for a test process.
func runBench(t testing.TB, args ...string) benchReport {
	t.Helper()
	args = append([]string{"bench", "verify", "--json", "--rounds", "1", "--keys", "20", "--connections", "4"}, args...)
	c := exec.CommandContext(t.Context(), testenv.Build(t), args...)
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var r benchReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

// Every mode ends well, which it does only where everything that was answered
// was recorded. How fast it was says nothing here.
func TestBench(t *testing.T) {
	r := runBench(t, "--mode", "all", "--seconds", "0.2", "--many", "2000", "--revocations", "3")
	recorded, told := 0, 0
	for _, row := range r.Rows {
		if strings.HasPrefix(row.Name, "revoke sent → ") && row.Answered == 3 && row.P50 > 0 {
			told++
		}
		if row.PerSecond <= 0 {
			t.Errorf("%s: nothing was measured", row.Name)
		}
		if row.Recorded > 0 {
			recorded++
			if row.Recorded != row.Answered {
				t.Errorf("%s: %d answered, %d recorded", row.Name, row.Answered, row.Recorded)
			}
		}
	}
	if told != 4 {
		t.Errorf("%d ways of being told were measured: %+v", told, r.Rows)
	}
	if want := 4; recorded != want {
		t.Errorf("%d rows say what was recorded, want %d: %+v", recorded, want, r.Rows)
	}
}

// Figures beside their floors, by the command that prints them.
func BenchmarkBench(b *testing.B) {
	for _, mode := range benchModes {
		b.Run(mode, func(b *testing.B) {
			for b.Loop() {
				for _, row := range runBench(b, "--mode", mode, "--seconds", "0.2", "--many", "2000", "--revocations", "3").Rows {
					if row.OfFloor > 0 {
						b.ReportMetric(row.OfFloor, "of-floor")
					}
				}
			}
		})
	}
}

func TestBenchFlags(t *testing.T) {
	for _, args := range [][]string{{"--mode", "fast"}, {"--seconds", "0"}, {"--rounds", "0"}, {"--keys", "3"}, {"--without", "nats"}} {
		if said := invoke(t, "", append([]string{"bench", "verify"}, args...)...); said.code != exitUsage || said.stdout != "" {
			t.Errorf("%v: exit code %d, %s", args, said.code, said.stdout)
		}
	}
}
