package faults

import (
	"net/http"
	"testing"
	"time"
)

// Three processes draw from one pool at five times its limit, and one of them is
// killed and comes back meanwhile: together they admit at most a tenth more. What
// each of them alone would admit is the control: three times as much, which is
// what verify's TestShared sees without sharing.
func TestLimitsOfThreeProcesses(t *testing.T) {
	t.Parallel()
	s, _, one := serving(t)
	all := []*service{one, s.service(), s.service()}
	var clients []*client
	for i, at := range all {
		if i > 0 {
			at.start()
		}
		clients = append(clients, s.client(at))
	}
	const owner = "/v1/keyspaces/parcelbird/owners/census"
	if a := clients[0].until(t.Context(), http.MethodPut, owner, "", map[string]string{"name": "Census", "plan": "hourly"}); a.status != http.StatusOK {
		t.Fatalf("PUT %s: %d %s", owner, a.status, a.body)
	}
	a := clients[0].until(t.Context(), http.MethodPost, "/v1/keys", "census", map[string]string{"keyspace": "parcelbird", "owner": "census", "name": "CI"})
	var m made
	a.decode(t, &m)
	const limit = 1500
	admitted, refused := 0, 0
	for _, c := range clients { // each learns of the key by a use of it
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			if code, err := c.verify(t.Context(), m.Secret); err == nil && code == "VALID" {
				admitted++
				break
			} else if time.Now().After(end) {
				t.Fatalf("a process does not learn of a key: %s %v", code, err)
			}
		}
	}
	for i := range 5 * limit {
		switch i {
		case limit / 2:
			all[2].process.Kill()
			all[2].launch()
		case limit:
			all[2].wait()
		}
		at := i % len(all)
		if at == 2 && i >= limit/2 && i < limit {
			at = 1
		}
		code, err := clients[at].verify(t.Context(), m.Secret)
		switch {
		case err == nil && code == "VALID":
			admitted++
		case err == nil && code == "RATE_LIMITED":
			refused++
		default:
			t.Fatal(code, err)
		}
	}
	t.Logf("%d were admitted and %d refused", admitted, refused)
	if admitted < limit || admitted > limit*11/10 {
		t.Errorf("%d are admitted by three processes, with a limit of %d", admitted, limit)
	}
}
