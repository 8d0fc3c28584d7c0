package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// An orchestrator can ask a gateway how it is without a path of the API's.
func TestGatewayHealth(t *testing.T) {
	w := verifytest.New(t, verify.Options{})
	n := &node{ledger: w.Ledger, ring: w.Ring, recorder: w.Recorder, verifier: w.Verifier}
	server := httptest.NewServer(health(n))
	defer server.Close()
	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": `"ready":true`, "/metrics": "keyledger_keyring_sequence",
	} {
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s %s, want %s", path, resp.Status, body, want)
		}
	}
}
