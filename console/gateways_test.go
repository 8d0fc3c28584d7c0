package console_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// Every way is filled in for the keyspace, and a request is tried with a key whose
// secret is on no page, in no log and in nothing that the browser keeps.
func TestGateways(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme", "plan": "basic"}, nil)
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			var made struct {
				Key    struct{ ID string }
				Secret string
			}
			s.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": "acme", "name": "Tried " + look.theme, "scopes": []string{"parcels:read"}}, &made)
			b := s.tab(t, look.theme, look.width)
			b.signIn(s.root)
			service := strings.TrimPrefix(s.url, "http://")
			for _, way := range []struct{ name, holds string }{
				{"nginx", "server " + service + ";"}, {"traefik", "http://" + service + "/v1/authz/parcelbird?for=traefik"}, {"caddy", "reverse_proxy " + service},
				{"envoy", "/v1/authz/parcelbird"}, {"gateway", "keyspace: parcelbird"}, {"middleware", `Keyspace: "parcelbird"`},
				{"inprocess", `Keyspace: "parcelbird"`}, {"verify", service + "}/v1/verify"},
			} {
				b.open("/gateways?keyspace=parcelbird&for=" + way.name)
				if text := b.text("#snippet"); !strings.Contains(text, way.holds) {
					t.Errorf("%s does not hold %s", way.name, way.holds)
				}
				if strings.Contains(eval[string](b, "document.documentElement.outerHTML"), s.root) {
					t.Errorf("%s shows a root key", way.name)
				}
			}
			for _, id := range []string{"chemolytic", "logtalk", "ltprophecy", "openprospect", "promptick"} {
				b.open("/gateways?for=nginx&keyspace=" + id)
				if text := b.text("#snippet"); !strings.Contains(text, "/v1/authz/"+id+"?for=nginx") {
					t.Errorf("the snippet of %s asks about another", id)
				}
			}
			b.open("/gateways?keyspace=parcelbird&for=nginx")
			b.check("gateways")

			unseen := func(when string) {
				t.Helper()
				kept := eval[string](b, `document.documentElement.outerHTML + document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + location.href`)
				if strings.Contains(kept, made.Secret) {
					t.Errorf("%s the secret is on the page", when)
				}
			}
			b.fill("#trying [name=path]", "/v1/parcels/7")
			b.fill("#secret", made.Secret)
			b.press("#trying .primary")
			b.wait(".tried.valid")
			if text := b.text(".tried"); !strings.Contains(text, "VALID") || !strings.Contains(text, "Tried "+look.theme) || !strings.Contains(text, "minute") || !strings.Contains(text, "200 OK") {
				t.Errorf("an admitted request: %s", text)
			}
			unseen("after it was tried,")
			b.check("gateways-valid")

			s.call("POST", "/v1/keys/"+made.Key.ID+"/revoke", map[string]any{"reason": "tried"}, nil)
			b.press("#trying .primary") // the secret is still in its field
			b.wait(".tried:not(.valid)")
			if text := b.text(".tried"); !strings.Contains(text, "REVOKED") || !strings.Contains(text, "HTTP/1.1 401") || !strings.Contains(text, "Invalid key") {
				t.Errorf("a refused request: %s", text)
			}
			b.check("gateways-refused")

			// Without scripts the answer is a page, without the secret.
			b.do(chromedp.Click(chromedp.CSS("#trying input[value=value]"), chromedp.NodeVisible))
			b.fill("#secret", "Bearer  "+made.Secret)
			eval[bool](b, `(document.getElementById("trying").submit(), true)`)
			b.wait("#tried .tried:not(.valid)")
			b.do(chromedp.WaitReady(chromedp.CSS(`#trying input[value=value]:checked`)))
			if text := b.text(".tried .tag"); text != "MALFORMED_CREDENTIAL" && text != "REVOKED" {
				t.Errorf("two blanks: %s", text)
			}
			unseen("without scripts")
			if strings.Contains(s.process.Output(), made.Secret) {
				t.Error("the secret is in the log")
			}
		})
	}
	for _, role := range []map[string]any{{"name": "m", "role": "manager", "keyspace": "parcelbird", "owner": "acme"}, {"name": "a", "role": "auditor"}} {
		var key struct{ Secret string }
		s.call("POST", "/v1/root-keys", role, &key)
		b := s.tab(t, "light", 1440)
		b.refused.Store(true)
		b.signIn(key.Secret)
		if eval[bool](b, `document.querySelector('nav.side a[href="/gateways"]') !== null`) {
			t.Errorf("%s has the page in the menu", fmt.Sprint(role["role"]))
		}
		b.open("/gateways?keyspace=parcelbird")
		if title := b.text("h1"); title != "Not for this sign-in" {
			t.Errorf("%s: %s", role["role"], title)
		}
	}
}
