package faults

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyledger/keyledger/internal/testenv"
)

// Several processes rotate and revoke one key, create keys at a cap of five and
// repeat one create under one idempotency key, all at once. Exactly what the
// rules permit comes of it, on one node and on three.
func TestManyProcesses(t *testing.T) {
	t.Parallel()
	t.Run("one node", func(t *testing.T) {
		t.Parallel()
		b := startBroker(t, t.TempDir(), true)
		race(t, times(4, 8), 1, newStage(t, b.url, testenv.Postgres(t), fmt.Sprintf("monitor: [%q]", b.monitor)))
	})
	t.Run("three nodes", func(t *testing.T) {
		t.Parallel()
		cluster := testenv.Cluster(t, 3, testenv.Synced())
		race(t, times(3, 8), 3, newStage(t, cluster.URL(), testenv.Postgres(t), "replicas: 3", "allow_unverified_sync: true"))
	})
}

func race(t *testing.T, processes, replicas int, s *stage) {
	var all []*client
	for range processes {
		x := s.service()
		x.launch()
		all = append(all, s.client(x))
	}
	for _, c := range all {
		c.s.wait()
	}
	all[0].prepare()
	for i := range times(1, 20) {
		permitted(t, s, all, replicas, fmt.Sprint("org_", i))
	}
	invariants(t, s.nats, s.postgres, replicas, s.seen)
}

// together sends something to every process at once, two at a time to each.
func together(all []*client, send func(c *client, i int) answer) []answer {
	answers := make([]answer, 2*len(all))
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = send(all[i%len(all)], i) })
	}
	wg.Wait()
	return answers
}

// permitted runs one round with an owner of its own, whose plan allows five keys.
func permitted(t *testing.T, s *stage, all []*client, replicas int, owner string) {
	t.Helper()
	ctx := t.Context()
	if a := all[0].until(ctx, http.MethodPut, "/v1/keyspaces/parcelbird/owners/"+owner, "", map[string]string{"name": "Acme"}); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	// What one process did the others know within milliseconds, not at once.
	for _, c := range all {
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			a, err := c.once(ctx, http.MethodGet, "/v1/keyspaces/parcelbird/owners/"+owner, "", nil)
			if err == nil && a.status == http.StatusOK {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("owner %s is not known everywhere: %d, %v", owner, a.status, err)
			}
		}
	}
	create := func(c *client, idempotencyKey string) answer {
		return c.until(ctx, http.MethodPost, "/v1/keys", idempotencyKey, map[string]string{"keyspace": "parcelbird", "owner": owner, "name": "CI"})
	}

	ids, secrets := map[string]bool{}, 0
	var id string
	for _, a := range together(all, func(c *client, _ int) answer { return create(c, owner+"-the-one") }) {
		var m made
		a.decode(t, &m)
		if a.status/100 != 2 || m.Key.ID == "" {
			t.Errorf("a repeated create: %d %s", a.status, a.body)
			continue
		}
		id = m.Key.ID
		ids[id] = true
		if m.Secret != "" {
			secrets++
		}
	}
	if len(ids) != 1 || secrets != 1 {
		t.Errorf("Repeating one create made %d keys and answered %d secrets, want one of each.", len(ids), secrets)
	}

	made := 1
	for _, a := range together(all, func(c *client, i int) answer { return create(c, fmt.Sprint(owner, "-", i)) }) {
		switch {
		case a.status == http.StatusCreated:
			made++
		case a.status != http.StatusConflict || a.code() != "KEY_LIMIT_REACHED":
			t.Errorf("creating past the cap: %d %s", a.status, a.body)
		}
	}
	if made != 5 {
		t.Errorf("%d keys were made under a cap of five.", made)
	}

	rotated := 0
	for i, a := range together(all, func(c *client, i int) answer {
		if i%4 == 0 {
			return c.until(ctx, http.MethodPost, "/v1/keys/"+id+"/revoke", fmt.Sprint(owner, "-revoke-", i), map[string]string{"reason": fmt.Sprint(i)})
		}
		return c.until(ctx, http.MethodPost, "/v1/keys/"+id+"/rotate", fmt.Sprint(owner, "-rotate-", i), map[string]string{})
	}) {
		switch {
		case i%4 == 0 && a.status == http.StatusOK:
		case i%4 != 0 && a.status == http.StatusOK:
			rotated++
		case i%4 != 0 && a.status == http.StatusConflict && a.code() == "KEY_REVOKED":
		default:
			t.Errorf("rotating and revoking at once: %d %s", a.status, a.body)
		}
	}
	var types []string
	for _, r := range facts(t, s.nats, replicas)[id] {
		types = append(types, r.Event.Type)
	}
	want := "key.created" + strings.Repeat(" key.rotated", rotated) + " key.revoked"
	if got := strings.Join(types, " "); got != want {
		t.Errorf("The ledger says %s; answered was %s.", got, want)
	}
}
