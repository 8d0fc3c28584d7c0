package console_test

import (
	"strings"
	"testing"
)

// The past of a key that was changed, looked at as an auditor looks: the table as it
// was, what differs now, what changed in between, and who could do something then.
func TestTimeMachine(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme Ltd", "plan": "basic"}, nil)
	type made struct {
		Key struct {
			ID        string
			CreatedAt string `json:"created_at"`
		}
	}
	var ci, gone, late made
	create := func(name string, scopes []string, into *made) {
		s.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": "acme", "plan": "large", "name": name, "scopes": scopes}, into)
	}
	create("CI <img src=x onerror=alert(1)>", []string{"parcels:read"}, &ci)
	create("Gone", []string{}, &gone)
	then := gone.Key.CreatedAt
	s.call("PATCH", "/v1/keys/"+ci.Key.ID, map[string]any{"name": "Build server", "scopes": []string{"keys:manage"}}, nil)
	s.call("DELETE", "/v1/keys/"+gone.Key.ID, nil, nil)
	create("Late", []string{"parcels:read"}, &late)
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.signIn(s.root)
			b.open("/time?keyspace=parcelbird&owner=acme&at=" + then)
			b.wait(".later[data-loaded] .around")
			table := b.text("table.then")
			for _, want := range []string{"CI <img", "Gone", "renamed to “Build server”", "scopes taken away: parcels:read", "deleted"} {
				if !strings.Contains(table, want) {
					t.Errorf("the keys of then lack %q: %s", want, table)
				}
			}
			if strings.Contains(table, "Late") {
				t.Errorf("a key is there before it was made: %s", table)
			}
			b.check("time")
			// The event after this moment is the change of the one key.
			b.click(".steps ul:last-child li:first-child a")
			b.wait("table.then")
			if table := b.text("table.then"); !strings.Contains(table, "Build server") || strings.Contains(table, "renamed") {
				t.Errorf("a step on: %s", table)
			}
			b.open("/time/changes?keyspace=parcelbird&owner=acme&from=" + then)
			list := b.text("main")
			for _, want := range []string{"Build server", "created", "deleted", "CI <img", "Gone"} {
				if !strings.Contains(list, want) {
					t.Errorf("what changed lacks %q: %s", want, list)
				}
			}
			b.check("time-changes")
			b.open("/time/who?keyspace=parcelbird&owner=acme&at=" + then)
			b.press(`input[name=scope][value="parcels:read"]`)
			b.click("#whocould button")
			b.wait(".later[data-loaded] table")
			if answer := b.text(".answer"); !strings.Contains(answer, "1 of 2 could") || !strings.Contains(answer, "CI <img") {
				t.Errorf("who could: %s", answer)
			}
			b.check("time-who")
			b.click(`.kinds a:last-child`)
			b.wait(".later[data-loaded] table")
			if answer := b.text(".answer"); !strings.Contains(answer, "Gone") || !strings.Contains(answer, "INSUFFICIENT_SCOPE") {
				t.Errorf("who could not: %s", answer)
			}
			b.check("time-who-not")
			b.open("/time/who?keyspace=parcelbird&owner=acme&at=" + then)
			b.fill("input[name=path]", "/v1/parcels/1")
			b.press(`input[name=scope][value=""]`)
			b.click("#whocould button")
			b.wait(".later[data-loaded] table")
			if answer := b.text(".answer"); !strings.Contains(answer, "1 of 2 could") || !strings.Contains(answer, "It needs the scope parcels:read") {
				t.Errorf("who could, by a path: %s", answer)
			}
			b.open("/time?at=2001-01-01")
			b.wait("[role=alert]")
			b.check("time-before")
		})
	}
}
