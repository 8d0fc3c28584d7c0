package console

import (
	"strings"
	"testing"

	"github.com/keyledger/keyledger/api"
)

// What a reading has found is shown with the way out, wherever it is looked at.
func TestDamageIsShown(t *testing.T) {
	found := scrubFinding{Stream: "LEDGER", Sequence: 41, Server: "nats-2", Problem: "the event <b> is not the one that was signed", Fix: "restore the stream", Runbook: "scrub-altered.md"}
	scrub := &scrubState{Node: "n1", Streams: []scrubStream{{Stream: "LEDGER", Findings: []scrubFinding{found}}}}
	for page, data := range map[string]any{
		"proofs":       proofsData{Key: api.LogKeys{Key: "log+1+x"}, Scrub: scrub},
		"proofsverify": verifyData{Node: "n1", Findings: scrub.Findings(), Streams: []verifyStream{{scrubStream: scrub.Streams[0], Done: true}}},
	} {
		tmpl, err := templates(page)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := tmpl.ExecuteTemplate(&b, "content", layout{Title: "x", Data: data}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`role="alert"`, "LEDGER, event 41, the copy on nats-2", "the event &lt;b&gt; is not", "restore the stream", "docs/runbooks/scrub-altered.md"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s lacks %q:\n%s", page, want, b.String())
			}
		}
		if strings.Contains(b.String(), "All is as it was signed") || strings.Contains(b.String(), "Nothing was found") {
			t.Errorf("%s says that all is well", page)
		}
	}
}
