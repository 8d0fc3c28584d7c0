package console_test

import (
	"encoding/json"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/internal/testenv"
)

// newProvider starts an identity provider with people and their groups, and answers the
// file that tells a console of it.
func newProvider(t *testing.T, people ...string) (issuer, settings string) {
	t.Helper()
	out := testenv.Start(t, nil, testenv.OpenID(t), people...).WaitOutput(" .\n", time.Minute)
	issuer = regexp.MustCompile(`issuer (\S+) \.`).FindStringSubmatch(out)[1]
	dir := t.TempDir()
	secret, settings := filepath.Join(dir, "secret"), filepath.Join(dir, "openid.yaml")
	if err := os.WriteFile(secret, []byte("the secret of the client\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := `openid:
  issuer: ` + issuer + `
  client_id: keyledger
  client_secret_file: ` + secret + `
  name: Example Login
  roles:
    - {value: operators, role: operator}
    - {value: security, role: auditor}
    - {value: acme-admins, role: manager, keyspace: parcelbird, owner: acme}
`
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return issuer, settings
}

// People sign in by an identity provider, are what their groups make them, and are
// strangers in the audit log.
func TestOpenID(t *testing.T) {
	issuer, settings := newProvider(t, "olga=operators,everybody", "audrey=security", "mark=acme-admins", "nina=everybody", "nobody=")
	s := newSite(t, "--openid", settings)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme Ltd", "plan": "large"}, nil)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/other", map[string]any{"name": "Other Ltd", "plan": "large"}, nil)
	signIn := func(b *tab, who string) {
		t.Helper()
		b.wait("#username")
		b.fill("#username", who)
		b.fill("#password", "verysecure")
		b.click("button[type=submit]")
	}
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.refused.Store(true) // the provider has no icon, and nina is let in nowhere
			b.open("/keys?keyspace=parcelbird&owner=acme")
			b.check("signin-openid")
			b.click("#provider")
			if at := b.location(); !strings.HasPrefix(at, issuer) {
				t.Fatalf("sent to %s", at)
			}
			signIn(b, "olga")
			if at := b.location(); at != "/keys?keyspace=parcelbird&owner=acme" {
				t.Fatalf("signed in, and at %s", at)
			}
			b.wait("nav.side")
			if name := eval[string](b, `document.querySelector(".who .me").textContent`); name != "Olga Example, operator" {
				t.Errorf("the page calls her %q", name)
			}
			b.open("/keys/new?keyspace=parcelbird&owner=acme")
			b.fill("#name", "By a person "+look.theme)
			b.click("#create .primary")
			b.click("#saved button")
			b.open("/sessions")
			b.check("sessions-openid")

			// Signing out leads on to the provider, and back.
			b.click("form[action='/signout'] button")
			b.check("signedout")
			b.click("#provider")
			if at := b.location(); !strings.HasPrefix(at, "/signin") {
				t.Errorf("signed out at the provider, and at %s", at)
			}
			b.open("/keys")
			b.wait("#signin")

			// Who is known and in no group that counts gets in nowhere, and reads why.
			b.click("#provider")
			signIn(b, "nina")
			b.check("noentry")
			if text := b.text("main"); !strings.Contains(text, "everybody") || !strings.Contains(text, "not let in") {
				t.Errorf("somebody who is not let in reads %q", text)
			}
			b.open("/keys")
			b.wait("#signin")
		})
	}
	b := s.tab(t, "light", 1440)
	b.refused.Store(true)
	b.open("/signin/openid")
	signIn(b, "audrey")
	b.wait("nav.side")
	b.open("/keys?keyspace=parcelbird&owner=acme")
	if eval[bool](b, `!!document.querySelector("a[href*='/keys/new']")`) {
		t.Error("an auditor is offered to create keys")
	}

	m := s.tab(t, "light", 1440)
	m.refused.Store(true)
	m.open("/signin/openid")
	signIn(m, "mark")
	m.open("/keys?keyspace=parcelbird&owner=other")
	if text := m.text("main"); strings.Contains(text, "other") {
		t.Errorf("the manager of one owner reads of another: %s", text)
	}

	// What is recorded of people is an id that says nothing.
	var log struct {
		Events []struct {
			Type  string
			Actor struct{ Type, ID string }
		}
	}
	s.call("GET", "/v1/audit/events?type=key.created&keyspace=parcelbird&owner=acme", nil, &log)
	if len(log.Events) != len(looks) {
		t.Fatalf("%d keys were created", len(log.Events))
	}
	id := log.Events[0].Actor.ID
	for _, e := range log.Events {
		if e.Actor.Type != "user" || e.Actor.ID != id || !regexp.MustCompile(`^user_[0-9a-f]{32}$`).MatchString(id) {
			t.Errorf("the audit log names %+v", e.Actor)
		}
	}
	raw := s.get(t, "/v1/audit/events?limit=1000", s.root)
	for _, personal := range []string{"olga", "Olga", "example.com", "audrey"} {
		if strings.Contains(raw, personal) {
			t.Errorf("the audit log has %s", personal)
		}
	}
	if strings.Contains(s.process.Output(), "Olga") || strings.Contains(s.process.Output(), "eyJ") {
		t.Error("the program's log says who signed in")
	}
}

// get asks with a root key and answers the body.
func (s *site) get(t *testing.T, path, secret string) string {
	t.Helper()
	var body json.RawMessage
	s.callAs(secret, "GET", path, nil, &body)
	return string(body)
}

// client is a browser without scripts.
func (s *site) stranger(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: patience}
}

// A sign-in that was tampered with, is used again, or was begun by somebody else signs
// nobody in.
func TestOpenIDTampered(t *testing.T) {
	issuer, settings := newProvider(t, "olga=operators")
	s := newSite(t, "--openid", settings)
	get := func(c *http.Client, url string) *http.Response {
		t.Helper()
		resp, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	// Through the provider, as a browser goes; the answer is where it sends back to.
	provide := func(c *http.Client) *url.URL {
		t.Helper()
		at := get(c, s.url+"/signin/openid?to=/keys").Header.Get("Location")
		if u, _ := url.Parse(at); u.Query().Get("code_challenge_method") != "S256" || u.Query().Get("nonce") == "" || len(u.Query().Get("state")) < 32 {
			t.Fatalf("the provider is asked with %s", at)
		}
		at = get(c, at).Header.Get("Location")
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.PostForm(issuer+"/login/username", url.Values{"id": {u.Query().Get("authRequestID")}, "username": {"olga"}, "password": {"verysecure"}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		at = resp.Header.Get("Location")
		if !strings.HasPrefix(at, "http") {
			at = issuer + at
		}
		back, err := url.Parse(get(c, at).Header.Get("Location"))
		if err != nil || back.Path != "/signin/openid/callback" {
			t.Fatalf("the provider sends back to %s (%v)", back, err)
		}
		return back
	}
	in := func(c *http.Client) bool { return get(c, s.url+"/keys").StatusCode == http.StatusOK }

	c := s.stranger(t)
	if resp := get(c, provide(c).String()); resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/keys" || !in(c) {
		t.Fatalf("an untouched sign-in: %s to %s", resp.Status, resp.Header.Get("Location"))
	}
	for what, tamper := range map[string]func(c *http.Client, back *url.URL) *http.Client{
		"another state": func(c *http.Client, back *url.URL) *http.Client {
			q := back.Query()
			q.Set("state", "0"+q.Get("state")[1:]) // no character of one
			back.RawQuery = q.Encode()
			return c
		},
		"no state": func(c *http.Client, back *url.URL) *http.Client {
			q := back.Query()
			q.Del("state")
			back.RawQuery = q.Encode()
			return c
		},
		"another browser": func(_ *http.Client, back *url.URL) *http.Client { return s.stranger(t) },
		"another code": func(c *http.Client, back *url.URL) *http.Client {
			q := back.Query()
			q.Set("code", "A"+q.Get("code"))
			back.RawQuery = q.Encode()
			return c
		},
		"another provider": func(c *http.Client, back *url.URL) *http.Client {
			q := back.Query()
			q.Set("iss", "https://other.example.com")
			back.RawQuery = q.Encode()
			return c
		},
		// Somebody who has the answer and a sign-in of their own lacks its verifier.
		"a sign-in of another browser with its state": func(_ *http.Client, back *url.URL) *http.Client {
			thief := s.stranger(t)
			at, err := url.Parse(get(thief, s.url+"/signin/openid").Header.Get("Location"))
			if err != nil {
				t.Fatal(err)
			}
			q := back.Query()
			q.Set("state", at.Query().Get("state"))
			back.RawQuery = q.Encode()
			return thief
		},
	} {
		c := s.stranger(t)
		back := provide(c)
		by := tamper(c, back)
		if resp := get(by, back.String()); resp.StatusCode < 400 || in(by) {
			t.Errorf("%s: %s", what, resp.Status)
		}
	}
	c = s.stranger(t)
	back := provide(c)
	get(c, back.String())
	if resp := get(c, back.String()); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("an answer of the provider's counts twice: %s", resp.Status)
	}
	var log struct{ Events []struct{ ID string } }
	s.call("GET", "/v1/audit/events?type=signin.failed", nil, &log)
	if len(log.Events) != 7 {
		t.Errorf("of seven sign-ins that failed the audit log has %d", len(log.Events))
	}
}
