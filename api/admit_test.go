package api_test

import (
	"testing"

	"github.com/keyledger/keyledger/events"
)

// A fact says whether it came through the command line or another client.
func TestVia(t *testing.T) {
	s := start(t)
	s.configure("pb")
	for agent, via := range map[string]string{"keyledger-cli/1.2.3": "cli", "curl/8.0": "api", "": "api", "not-keyledger-cli/1": "api"} {
		s.must("POST", "/v1/keys", s.root, keyBody(nil), "User-Agent", agent)
		records, err := s.ledger.At(t.Context(), events.Ledger, s.head())
		if err != nil {
			t.Fatal(err)
		}
		if got := records[0].Event.Via; got != via {
			t.Errorf("User-Agent %q: via %q, want %q", agent, got, via)
		}
	}
}
