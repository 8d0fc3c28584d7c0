package console_test

import (
	"strings"
	"testing"
)

// Everything is read again from a button, to its end; an auditor reads the same and
// finds what to take along.
func TestProofs(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme Ltd", "plan": "basic"}, nil)
	s.call("POST", "/v1/audit/holds", map[string]any{"keyspace": "parcelbird", "owner": "acme", "reason": "case 4711"}, nil)
	var auditor struct{ Secret string }
	s.call("POST", "/v1/root-keys", map[string]any{"name": "auditor", "role": "auditor"}, &auditor)
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.signIn(s.root)
			b.open("/proofs")
			b.wait(".later[data-loaded] .keptlist")
			if kept := b.text(".keptlist"); !strings.Contains(kept, "case 4711") {
				t.Errorf("the hold is not told: %s", kept)
			}
			b.check("proofs")
			if key := eval[string](b, `fetch("/proofs/log.key").then(r => r.text())`); strings.TrimSpace(key) != b.text("#logkey") || !strings.HasPrefix(key, "keyledger-") {
				t.Errorf("the key to hand over is %q", key)
			}
			if note := eval[string](b, `fetch("/proofs/checkpoint/LEDGER").then(r => r.text())`); !strings.Contains(note, "/ledger\n") {
				t.Errorf("the checkpoint to hand over is %q", note)
			}
			b.click(".head form button")
			b.check("proofs-verifying")
			b.wait("#verification:not([data-running]) .note.good")
			if states := b.text("#verification table"); strings.Count(states, "As signed") != 4 {
				t.Errorf("verified: %s", states)
			}
			b.check("proofs-verified")
			other := s.tab(t, look.theme, look.width)
			other.signIn(auditor.Secret)
			other.open("/proofs")
			other.wait(".note.good")
			if eval[bool](other, `!!document.querySelector(".head form")`) {
				t.Error("an auditor is offered what only operators may do")
			}
			other.check("proofs-auditor")
		})
	}
}
