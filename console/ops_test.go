package console_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/nats-io/nkeys"
)

// await waits until the API answers something.
func (s *site) await(path, what string, is func(map[string]any) bool) {
	s.t.Helper()
	for end := time.Now().Add(patience); ; {
		var out map[string]any
		s.call("GET", path, nil, &out)
		if is(out) {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s: no %s in %v", path, what, out)
		}
	}
}

// An owner is registered, put on another plan, watched, alarmed about, and all of its
// keys are revoked.
func TestOwnersAndAlerts(t *testing.T) {
	s := newSite(t)
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.signIn(s.root)
			b.refused.Store(true) // forms that are not valid are part of it
			owner := "acme-" + look.theme
			if look.theme == "light" {
				b.open("/")
				b.wait(".todo")
				b.check("overview-first")
				b.open("/owners?keyspace=parcelbird")
				b.check("owners-empty")
				b.open("/alerts")
				b.check("alerts-empty")
			}
			b.open("/owners/new?keyspace=parcelbird")
			b.check("owner-new")
			b.fill("#owner", owner)
			b.fill("#name", "Acme <b>"+look.theme+"</b>")
			b.press(`input[name=plan][value=basic]`)
			b.click("form.sheet .primary")
			b.wait(".done")
			b.wait("#usage ~ *, .chart")
			b.check("owner-empty")

			// Another one with the same id is refused, and renames nobody.
			b.open("/owners/new?keyspace=parcelbird")
			b.fill("#owner", owner)
			b.fill("#name", "somebody else")
			b.click("form.sheet .primary")
			b.wait(".wrong")
			b.check("owner-taken")

			var made struct {
				Key    struct{ ID string }
				Secret string
			}
			for i := range 2 {
				s.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": owner, "name": fmt.Sprintf("Server <i>%d</i>", i), "scopes": []string{"parcels:read"}}, &made)
			}
			for range 12 {
				s.call("POST", "/v1/verify", map[string]any{"keyspace": "parcelbird", "key": made.Secret, "scopes": []string{"keys:manage"}}, nil)
			}
			s.await("/v1/alerts?key="+made.Key.ID, "alert", func(a map[string]any) bool { return len(a["alerts"].([]any)) > 0 })
			b.open("/owners/parcelbird/" + owner)
			b.wait(".chart")
			b.check("owner")
			if n := b.text("dl.facts .capped"); !strings.HasPrefix(n, "2 of 2") {
				t.Errorf("the cap says %q", n)
			}
			b.open("/")
			b.wait(".chart")
			if said := b.text(".needs"); !strings.Contains(said, "many requests are refused") {
				t.Errorf("what needs attention: %q", said)
			}
			b.check("overview")
			b.open("/owners?keyspace=parcelbird&q=" + look.theme)
			b.check("owners")

			b.open("/alerts")
			b.wait(".alert.raised")
			b.check("alerts")
			b.open("/alerts/rules?key=" + made.Key.ID)
			b.check("alert-rules")
			b.press(`input[name="choice.error_rate"][value=own]`)
			b.fill(`[id="threshold.error_rate.0"]`, "150")
			b.fill(`[id="over.error_rate.0"]`, "soon")
			b.click(".rules .primary")
			b.wait(`[id="threshold.error_rate.0"][aria-invalid]`)
			b.wait(`[id="over.error_rate.0"][aria-invalid]`)
			b.check("alert-rules-wrong")
			b.fill(`[id="threshold.error_rate.0"]`, "15")
			b.fill(`[id="over.error_rate.0"]`, "5m")
			b.press(`input[name="choice.denied"][value=off]`)
			b.click(".rules .primary")
			b.wait(".done")
			var set struct {
				Rules []struct {
					When  string
					Above float64
					Off   bool
				}
			}
			s.call("GET", "/v1/alert-rules/keys/"+made.Key.ID, nil, &set)
			if len(set.Rules) != 2 || set.Rules[0].Above != 0.15 || !set.Rules[1].Off {
				t.Errorf("the rules that are set: %+v", set.Rules)
			}
			b.check("alert-rules-set")
			s.await("/v1/alerts?state=resolved&key="+made.Key.ID, "resolved alert", func(a map[string]any) bool { return len(a["alerts"].([]any)) > 0 })
			b.open("/alerts?state=resolved")
			b.wait(".alert.resolved")
			b.check("alerts-past")

			b.open("/owners/parcelbird/" + owner + "/edit")
			b.check("owner-edit")
			b.press(`input[name=plan][value=large]`)
			b.click("form.sheet .primary")
			b.wait(".done")

			b.open("/owners/parcelbird/" + owner + "/revoke")
			b.check("revoke-all")
			b.fill("#reason", "contract ended")
			b.fill("#sure", "acme")
			b.click("form.sheet .danger")
			b.wait(".wrong")
			b.fill("#reason", "contract ended")
			b.fill("#sure", owner)
			b.click("form.sheet .danger")
			b.wait(".done")
			var o struct {
				ActiveKeys int `json:"active_keys"`
				Name, Plan string
			}
			s.call("GET", "/v1/keyspaces/parcelbird/owners/"+owner, nil, &o)
			if o.ActiveKeys != 0 || o.Plan != "large" || o.Name != "Acme <b>"+look.theme+"</b>" {
				t.Errorf("the owner afterwards: %+v", o)
			}
		})
	}
	// A manager sees one owner, and nothing of another one.
	t.Run("manager", func(t *testing.T) {
		var m struct{ Secret string }
		s.call("POST", "/v1/root-keys", map[string]any{"name": "m", "role": "manager", "keyspace": "parcelbird", "owner": "acme-light"}, &m)
		b := s.tab(t, "light", 1440)
		b.signIn(m.Secret)
		b.refused.Store(true)
		b.open("/owners")
		if at := b.location(); at != "/owners/parcelbird/acme-light" {
			t.Errorf("the owners of a manager are at %s", at)
		}
		b.check("owner-manager")
		b.open("/")
		b.wait(".chart")
		b.check("overview-manager")
		if said := run(b, chromedp.Text(chromedp.CSS("main"))); strings.Contains(said, "acme-dark") {
			t.Errorf("a manager's overview says %q", said)
		}
		for _, path := range []string{"/owners/parcelbird/acme-dark", "/owners/parcelbird/acme-dark/revoke", "/alerts/rules?keyspace=parcelbird&owner=acme-dark", "/alerts?keyspace=parcelbird&owner=acme-dark", "/owners/parcelbird/acme-light/edit"} {
			b.open(path)
			if said := run(b, chromedp.Text(chromedp.CSS("main"))); strings.Contains(said, "acme-dark") || strings.Contains(said, "Save") {
				t.Errorf("%s shows a manager %q", path, said)
			}
		}
	})
}

// Services are let in and removed, with a key that only the browser has seen; webhooks
// are registered, tested, given another secret and removed; and the system says how it is.
func TestSubscribersAndSystem(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme Ltd", "plan": "large"}, nil)
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.refused.Store(true) // forms that are not valid are part of it
			b.signIn(s.root)
			b.open("/subscribers")
			b.check("subscribers-empty")
			b.open("/subscribers/new")
			b.fill("#name", "billing-"+look.theme)
			b.press("#make button")
			b.wait("#made:not([hidden])")
			seed := b.text("#seed")
			pair, err := nkeys.FromSeed([]byte(seed))
			if err != nil {
				t.Fatalf("the seed that was made: %v", err)
			}
			want, err := pair.PublicKey()
			if err != nil {
				t.Fatal(err)
			}
			if got := eval[string](b, `document.getElementById("public_key").value`); got != want {
				t.Fatalf("the public key is %s, of the seed %s", got, want)
			}
			b.check("subscriber-new")
			b.press("#kept")
			b.click("#subscriber .primary")
			b.wait(".done")
			if page := run(b, chromedp.OuterHTML(chromedp.CSS("html"))); strings.Contains(page, seed) {
				t.Error("the seed came back from the server")
			}
			b.check("subscriber")
			b.open("/subscribers")
			b.check("subscribers")
			b.open("/subscribers/billing-" + look.theme + "/remove")
			b.check("subscriber-remove")
			b.click("main .danger")
			b.wait(".done")

			status := http.StatusNoContent
			receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
			t.Cleanup(receiver.Close)
			if look.theme == "light" {
				b.open("/webhooks")
				b.check("webhooks-empty")
			}
			b.open("/webhooks/new")
			b.fill("#url", "ftp://example.com/")
			b.click("form.sheet .primary")
			b.wait(".wrong")
			b.check("webhook-wrong")
			b.fill("#url", receiver.URL+"/hooks")
			b.press(`input[name=types][value="key.revoked"]`)
			b.press(`input[name=types][value="alert.raised"]`)
			b.fill("#description", "dispatch <b>"+look.theme+"</b>")
			b.click("form.sheet .primary")
			secret := b.text("#secret")
			if !strings.HasPrefix(secret, "whsec_") {
				t.Fatalf("the secret shown is %q", secret)
			}
			b.check("webhook-secret")
			b.click("#saved button")
			b.wait("#log")
			hook := strings.Trim(strings.TrimPrefix(b.location(), "/webhooks/"), "?")
			if page := run(b, chromedp.OuterHTML(chromedp.CSS("html"))); strings.Contains(page, secret) {
				t.Error("the secret is shown again")
			}
			b.click(".acts .primary")
			b.wait(".note[role=status]")
			if said := b.text(".note[role=status]"); !strings.HasPrefix(said, "The test arrived.") {
				t.Errorf("the test: %q", said)
			}
			var made struct{ Key struct{ ID string } }
			s.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": "acme", "name": "n"}, &made)
			s.call("POST", "/v1/keys/"+made.Key.ID+"/revoke", map[string]any{"reason": "leaked"}, nil)
			s.await("/v1/webhooks/"+hook, "delivery", func(w map[string]any) bool { return w["delivery"].(map[string]any)["delivered"].(float64) > 0 })
			s.await("/v1/webhooks/"+hook+"/deliveries", "attempts", func(w map[string]any) bool { return len(w["deliveries"].([]any)) > 1 })
			b.open("/webhooks/" + hook)
			b.check("webhook")
			b.open("/webhooks")
			b.check("webhooks")
			b.open("/webhooks/" + hook + "/rotate-secret")
			b.check("webhook-rotate")
			b.click("form.sheet .primary")
			if again := b.text("#secret"); again == secret || !strings.HasPrefix(again, "whsec_") {
				t.Errorf("the secret afterwards is %q", again)
			}
			b.click("#saved button")
			b.wait("#log")
			status = http.StatusGone
			s.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": "acme", "name": "m"}, &made)
			s.call("POST", "/v1/keys/"+made.Key.ID+"/revoke", map[string]any{"reason": "leaked"}, nil)
			s.await("/v1/webhooks/"+hook, "disabled", func(w map[string]any) bool { return w["status"] == "disabled" })
			b.open("/webhooks/" + hook)
			b.check("webhook-disabled")
			status = http.StatusNoContent
			b.click(`form[action$="/enable"] button`)
			b.wait(".done")
			b.open("/webhooks/" + hook + "/remove")
			b.click("form.sheet .danger")
			b.wait(".done")

			b.eventually(func() bool { // what a revocation took is recorded a moment after it
				b.open("/system?revocations=1")
				return eval[bool](b, `!!document.querySelector(".figures")`)
			}, func() string { return "no revocation is reported" })
			b.open("/system")
			b.check("system")
			b.press("#pause")
			if b.text("#pause") != "Paused" {
				t.Error("the page goes on asking")
			}
		})
	}
	t.Run("manager", func(t *testing.T) {
		var m struct{ Secret string }
		s.call("POST", "/v1/root-keys", map[string]any{"name": "m", "role": "manager", "keyspace": "parcelbird", "owner": "acme"}, &m)
		b := s.tab(t, "light", 1440)
		b.refused.Store(true)
		b.signIn(m.Secret)
		b.open("/webhooks/new")
		b.check("webhook-new-manager")
		for _, path := range []string{"/subscribers", "/subscribers/new", "/system", "/system/now"} {
			b.open(path)
			if said := run(b, chromedp.Text(chromedp.CSS("h1"))); said != "Not for this sign-in" {
				t.Errorf("%s shows a manager %q", path, said)
			}
		}
	})
}
