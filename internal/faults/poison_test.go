package faults

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Somebody has changed a table by hand, so that one projection cannot apply an event.
// It stops in front of it, and that one alone: keys are made, verified and copied on.
// Status and metrics say which event, why, and the way out; that way leads out.
func TestPoisonOfOneProjection(t *testing.T) {
	t.Parallel()
	s, _, one := serving(t)
	c := s.client(one)
	conn, err := pgx.Connect(t.Context(), s.postgres)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	run := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(t.TempDir(), "root.key")
	writeFile(t, root, s.root)
	status := func(projection string, shows ...string) {
		t.Helper()
		for late := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			out, code := s.cli("projections", "status", "--url", one.url, "--token-file", root)
			missing := ""
			for line := range strings.Lines(out) {
				if !strings.HasPrefix(line, projection+"\t") {
					continue
				}
				for _, text := range shows {
					if !strings.Contains(line, text) {
						missing = text
					}
				}
				if missing == "" && code == 0 {
					return
				}
			}
			if time.Now().After(late) {
				t.Fatalf("%s does not show %q, code %d:\n%s", projection, missing, code, out)
			}
		}
	}
	create := func(name string) (m made) {
		t.Helper()
		a := c.until(t.Context(), http.MethodPost, "/v1/keys", name, map[string]string{"keyspace": "parcelbird", "owner": "birdwatch", "name": name})
		if a.status != http.StatusCreated {
			t.Fatalf("%d %s", a.status, a.body)
		}
		a.decode(t, &m)
		return m
	}
	create("before")
	run(`alter table keyledger.keys_v1 add constraint poison check (name <> 'poison')`)
	poison := create("poison")
	after := create("after")

	var id string
	for late := time.Now().Add(patience); id == ""; time.Sleep(20 * time.Millisecond) {
		if err := conn.QueryRow(t.Context(), `select coalesce(max(event_id), '') from keyledger.ledger_v1 where key = $1`, poison.Key.ID).Scan(&id); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(late) {
			t.Fatal("the copy of LEDGER stands still, too")
		}
	}
	status("keys_v1", "\tstopped\t", id, `violates check constraint "poison"`, "keyledger projections rebuild keys_v1")
	status("ledger_v1", "\trunning\t", "\t0\t")
	for _, m := range []made{poison, after} {
		if code, err := c.verify(t.Context(), m.Secret); err != nil || code != "VALID" {
			t.Errorf("%s %v", code, err)
		}
	}
	a, err := c.once(t.Context(), http.MethodGet, "/metrics", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`keyledger_projection_stopped{projection="keys_v1"} 1`, `keyledger_projection_lag{projection="keys_v1"} 2`, `keyledger_projection_stopped{projection="ledger_v1"} 0`, `keyledger_projection_lag{projection="ledger_v1"} 0`} {
		if !strings.Contains(string(a.body), line+"\n") {
			t.Errorf("/metrics has no %s", line)
		}
	}

	run(`alter table keyledger.keys_v1 drop constraint poison`)
	if out, code := s.cli("projections", "rebuild", "keys_v1", "--url", one.url, "--token-file", root); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	status("keys_v1", "\trunning\t", "\t0\t", "\t-")
	for name, m := range map[string]made{"poison": poison, "after": after} {
		var got string
		if err := conn.QueryRow(t.Context(), `select name from analytics.keys where id = $1`, m.Key.ID).Scan(&got); err != nil || got != name {
			t.Errorf("%q %v", got, err)
		}
	}
	invariants(t, s.nats, s.postgres, 1, s.seen)
}
