package console_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// gateway sends a request with a key to a product's API, and answers its status and body.
func (s *site) gateway(method, keyspace, path, header, value string, more ...string) (status int, body string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.gate+"/"+keyspace+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set(header, value)
	r.Header.Set("X-Forwarded-Proto", "https")
	r.Header.Set("X-Forwarded-For", "203.0.113.7")
	for i := 0; i+1 < len(more); i += 2 {
		r.Header.Set(more[i], more[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// says waits until a part of the page says all of some texts. What follows the ledger
// with a moment's delay is asked for again.
func (b *tab) says(selector string, texts ...string) {
	b.t.Helper()
	all := func() string {
		if !eval[bool](b, "!!document.querySelector("+quoted(selector)+")") {
			return ""
		}
		return eval[string](b, "[...document.querySelectorAll("+quoted(selector)+")].map(e => e.innerText).join('\\n')")
	}
	said := ""
	b.eventually(func() bool {
		said = all()
		for _, text := range texts {
			if !strings.Contains(strings.ToLower(said), strings.ToLower(text)) {
				return false
			}
		}
		return true
	}, func() string {
		return "of " + selector + ", which says " + said + ": none of this may be missing: " + strings.Join(texts, "; ")
	})
}

// eventually waits for what nothing signals: figures that follow the streams.
func (b *tab) eventually(holds func() bool, what func() string) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("at %s: not within %s: %s", b.location(), patience, what())
		}
	}
}

func quoted(s string) string { return "`" + s + "`" }

// made creates a key with the form that the page shows, and answers its id and secret.
func (b *tab) made(name string, fields ...chromedp.Action[chromedp.Void]) (id, secret string) {
	b.t.Helper()
	b.fill("#name", name)
	b.do(fields...)
	b.click("#create .primary")
	secret = b.text("#secret")
	b.click("#saved button")
	id, _, _ = strings.Cut(strings.TrimPrefix(b.location(), "/keys/"), "?")
	if !strings.HasPrefix(id, "key_") || secret == "" {
		b.t.Fatalf("a key %q with a secret of %d characters, at %s", id, len(secret), b.location())
	}
	return id, secret
}

// because says why a key is revoked, by one of the reasons that the page offers.
func (b *tab) because(reason string) {
	b.t.Helper()
	b.press(`input[name=reason][value="` + reason + `"]`)
}

func tick(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible)
}

func set(selector, value string) chromedp.Action[chromedp.Void] {
	return chromedp.SetValue(chromedp.CSS(selector), value)
}

// The flows that the documentation of five products describes, each with nothing but its
// document.
func TestProducts(t *testing.T) {
	s := newSite(t)
	for _, look := range looks {
		b := s.tab(t, look.theme, look.width)
		b.signIn(s.root)
		owner := func(keyspace, plan string) string {
			id := "owner-" + look.theme
			in := map[string]any{"name": "Acme Ltd"}
			if plan != "" {
				in["plan"] = plan
			}
			s.call("PUT", "/v1/keyspaces/"+keyspace+"/owners/"+id, in, nil)
			return id
		}
		at := func(path, keyspace, owner string, more ...string) string {
			q := url.Values{"keyspace": {keyspace}, "owner": {owner}}
			for i := 0; i+1 < len(more); i += 2 {
				q.Set(more[i], more[i+1])
			}
			return path + "?" + q.Encode()
		}
		flow := func(name string, run func(t *testing.T, b *tab)) {
			t.Run(name+"/"+look.theme, func(t *testing.T) {
				outer := b.t
				b.t = t
				defer func() { b.t = outer }()
				run(t, b)
			})
		}

		// "Pass the key as a Bearer token", scopes, expiry, rotation that "immediately
		// invalidates the old key", and an audit log with "the endpoint called, HTTP method,
		// response status, and source IP address".
		flow("forecasting", func(t *testing.T, b *tab) {
			o := owner("ltprophecy", "")
			b.open(at("/keys/new", "ltprophecy", o))
			b.says("#create", "org:forecasts:read", "Read forecast results", "org:api_keys:manage")
			id, secret := b.made("CI Pipeline", tick(`input[name=scopes][value="org:forecasts:read"]`))
			if status, body := b.gateway("GET", "ltprophecy", "/api/forecasts", "Authorization", "Bearer "+secret); status != 200 {
				t.Fatalf("the new key: %d %s", status, body)
			}
			if status, _ := b.gateway("POST", "ltprophecy", "/api/forecasts", "Authorization", "Bearer "+secret); status != 403 {
				t.Errorf("what its scopes do not allow: %d", status)
			}
			b.open("/keys/" + id + "/rotate")
			b.check("products-rotate-at-once")
			b.click("form.sheet .primary")
			next := b.text("#secret")
			b.click("#saved button")
			if status, _ := b.gateway("GET", "ltprophecy", "/api/forecasts", "Authorization", "Bearer "+secret); status != 401 {
				t.Errorf("the old secret after the rotation: %d", status)
			}
			if status, _ := b.gateway("GET", "ltprophecy", "/api/forecasts", "Authorization", "Bearer "+next); status != 200 {
				t.Errorf("the new secret: %d", status)
			}
			b.eventually(func() bool { // uses are recorded a moment after they were answered
				b.open("/audit?key=" + id)
				log := b.text("#events")
				return strings.Contains(log, "GET /api/forecasts → 200") && strings.Contains(log, "203.0.113.7") && strings.Contains(log, "insufficient scope")
			}, func() string { return "its audit log says " + b.text("main") })
			b.check("products-audit")
		})

		// A key of a deployment with a read-only scope, the table with "Never", revoking,
		// deleting, and the cap of the plan.
		flow("prediction", func(t *testing.T, b *tab) {
			o := owner("chemolytic", "pro")
			b.open(at("/keys", "chemolytic", o))
			b.says("main", "0 of 5 keys")
			b.open(at("/keys/new", "chemolytic", o, "resource", "dep_7"))
			b.says("#create", "predict", "dep_7")
			id, secret := b.made("Production LIMS integration")
			b.open(at("/keys", "chemolytic", o))
			b.says("table.keys", "Production LIMS integration", secret[:12]+"...", "Active", "Never")
			path := "/api/organizations/o/projects/" + o + "/deployments/dep_7/predict/"
			if status, body := b.gateway("POST", "chemolytic", path, "Authorization", "Api-Key "+secret); status != 200 {
				t.Fatalf("the new key: %d %s", status, body)
			}
			if status, body := b.gateway("POST", "chemolytic", strings.Replace(path, "dep_7", "dep_8", 1), "Authorization", "Api-Key "+secret); status != 403 || !strings.Contains(body, "API key is not authorized for this deployment.") {
				t.Errorf("another deployment: %d %s", status, body)
			}
			b.eventually(func() bool {
				b.open(at("/keys", "chemolytic", o))
				return !strings.Contains(b.text("table.keys"), "Never")
			}, func() string { return "it was used, and the list says Never" })
			for i := range 4 {
				b.call("POST", "/v1/keys", map[string]any{"keyspace": "chemolytic", "owner": o, "name": "spare", "resources": []string{"dep_" + string(rune('1'+i))}}, nil)
			}
			b.open(at("/keys", "chemolytic", o))
			b.says("main", "5 of 5 keys", "Revoke")
			if eval[bool](b, `!!document.querySelector('.head a[href^="/keys/new"]')`) {
				t.Error("at the cap, a key can be created")
			}
			b.check("products-cap")
			b.open("/keys/" + id + "/revoke")
			b.because("no longer needed")
			b.click("form.sheet .danger")
			b.wait(".status.revoked")
			if status, _ := b.gateway("POST", "chemolytic", path, "Authorization", "Api-Key "+secret); status != 403 {
				t.Errorf("the revoked key: %d", status)
			}
			b.open(at("/keys", "chemolytic", o))
			b.says("main", "4 of 5 keys", "Revoked")
			b.open("/keys/" + id + "/delete")
			b.check("products-delete")
			b.click("form.sheet .danger")
			b.open(at("/keys", "chemolytic", o))
			if strings.Contains(b.text("table.keys"), "Production LIMS integration") {
				t.Error("the deleted key is in the list")
			}
		})

		// Environments by prefix, the organization chosen in the form, and snippets for CI.
		flow("conversations", func(t *testing.T, b *tab) {
			o := owner("logtalk", "growth")
			b.open("/keys/new?keyspace=logtalk")
			b.fill("#owner", o)
			b.fill("#name", "Production CI/CD")
			b.check("products-environments")
			b.click("#create .primary")
			b.says("main", "GitHub Actions", "GitLab CI", "once")
			if secret := b.text("#secret"); !strings.HasPrefix(secret, "lt_live_") {
				t.Errorf("a secret with the prefix %.8s", secret)
			}
			b.check("products-reveal")
			b.click("#saved button")
		})

		// Keys of an agent with limits of their own, expiry choices, origins; a list with the
		// use count; analytics; statuses; alerts.
		flow("agents", func(t *testing.T, b *tab) {
			o := owner("promptick", "")
			b.open(at("/keys/new", "promptick", o, "resource", "agent_1"))
			b.says("#create", "Development", "Production", "Enterprise", "Never", "30", "90", "origins")
			id, secret := b.made("Mobile App - iOS", set("[name=limit_minute]", "3"), set("#allowed_origins", "https://app.example.com"))
			call := func(origin string) int {
				status, _ := b.gateway("POST", "promptick", "/api/v1/agents/agent_1/execute", "Authorization", "Bearer "+secret, "Origin", origin)
				return status
			}
			if status := call("https://evil.example.com"); status != 403 {
				t.Errorf("another origin: %d", status)
			}
			for range 3 {
				if status := call("https://app.example.com"); status != 200 {
					t.Errorf("its own origin: %d", status)
				}
			}
			if status := call("https://app.example.com"); status != 429 {
				t.Errorf("the fourth in a minute: %d", status)
			}
			b.eventually(func() bool {
				b.open(at("/keys", "promptick", o))
				text := b.text("table.keys")
				return strings.Contains(text, secret[len(secret)-8:]) && strings.Contains(text, "Rate Limited")
			}, func() string { return "the list says " + b.text("table.keys") })
			b.check("products-statuses")
			b.eventually(func() bool {
				b.open("/keys/" + id)
				text := b.text("main")
				return strings.Contains(text, "Requests over time") && strings.Contains(text, "/execute")
			}, func() string { return "its page says " + b.text("main") })
			b.check("products-analytics")
			b.open("/alerts")
			b.check("products-alerts")
		})

		// Keys that an account manager hands out, found by their shown characters, revoked.
		flow("companies", func(t *testing.T, b *tab) {
			o := owner("openprospect", "pro")
			b.open(at("/keys/new", "openprospect", o))
			b.says("#create", "companies:read", "companies:write", "not available")
			id, secret := b.made("Sandbox", tick(`input[name=scopes][value="companies:read"]`))
			if status, body := b.gateway("GET", "openprospect", "/api/v1/companies", "Authorization", "Bearer "+secret); status != 200 {
				t.Fatalf("the new key: %d %s", status, body)
			}
			b.open(at("/keys", "openprospect", o, "q", secret[len(secret)-8:]))
			b.says("table.keys", "Sandbox")
			b.open("/keys/" + id + "/revoke")
			b.because("leaked or exposed")
			b.click("form.sheet .danger")
			b.wait(".status.revoked")
			if status, body := b.gateway("GET", "openprospect", "/api/v1/companies", "Authorization", "Bearer "+secret); status != 401 || !strings.Contains(body, "UNAUTHORIZED") {
				t.Errorf("the revoked key: %d %s", status, body)
			}
			b.open("/audit?key=" + id)
			b.says("main", "revoked", "leaked or exposed")
		})
	}
}
