package console_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// answeredKey is what the API answers to a creation.
type answeredKey struct {
	Key struct {
		ID string `json:"id"`
	} `json:"key"`
	Secret string `json:"secret"`
}

// newKey creates a key over the API.
func (s *site) newKey(keyspace, owner, name string, more map[string]any) (id, secret string) {
	s.t.Helper()
	in := map[string]any{"keyspace": keyspace, "owner": owner, "name": name}
	for k, v := range more {
		in[k] = v
	}
	var m answeredKey
	s.call("POST", "/v1/keys", in, &m)
	return m.Key.ID, m.Secret
}

func (s *site) owner(keyspace, id, name, plan string) {
	s.t.Helper()
	s.call("PUT", "/v1/keyspaces/"+keyspace+"/owners/"+id, map[string]any{"name": name, "plan": plan}, nil)
}

// visible are the labels of the fields of a form that a person sees.
const visibleFields = `[...document.querySelectorAll("#create .field, #create > fieldset")].filter(e => e.checkVisibility()).map(e => (e.querySelector("legend, label, .label, summary")||{}).textContent.trim().replace(/\s+/g, " "))`

// The form for a new key has the fields of its product, by its document alone.
func TestCreateFormsOfTheProducts(t *testing.T) {
	s := newSite(t)
	s.owner("ltprophecy", "org_1", "Acme", "growth")
	s.owner("chemolytic", "proj_1", "Acme", "pro")
	s.owner("chemolytic", "poor", "Poor", "free")
	s.owner("logtalk", "org_1", "Acme", "growth")
	s.call("PUT", "/v1/keyspaces/promptick/owners/proj_1", map[string]any{"name": "Acme"}, nil)
	s.owner("openprospect", "org_1", "Acme", "pro")
	forms := []struct {
		path   string
		fields string
		see    map[string]string // text of a selector
		click  string
	}{
		// Name, permissions from a list, an optional expiry.
		{"ltprophecy&owner=org_1", "Name|organization|Scopes|Expires|More|Who sees the secret", map[string]string{".scopes": "Upload and modify datasets", "#expiry": "30 days"}, ""},
		// Name, expiry, scope as a badge, the deployment that the form was come to from.
		{"chemolytic&owner=proj_1&resource=dep_7", "Name|project|Scopes|deployment|Expires|More|Who sees the secret", map[string]string{".badges": "predict"}, ""},
		// Name, organization, environment.
		{"logtalk&owner=org_1", "Name|organization|Environment|Expires|More|Who sees the secret", map[string]string{"#create": "lt_test_"}, ""},
		// Name, rate limits with presets, expiry, origins.
		{"promptick&owner=proj_1&resource=agent_1", "Name|project|Environment|agent|Expires|Limits|Allowed origins (empty: all)|More|Who sees the secret", map[string]string{".presets": "Development"}, `.presets button[data-minute="100"]`},
		// Scopes, one of which cannot be granted yet.
		{"openprospect&owner=org_1", "Name|organization|Environment|Scopes|Expires|More|Who sees the secret", map[string]string{".scopes": "not available yet"}, ""},
	}
	for _, look := range looks {
		b := s.tab(t, look.theme, look.width)
		b.signIn(s.root)
		for _, f := range forms {
			name, _, _ := strings.Cut(f.path, "&")
			b.open("/keys/new?keyspace=" + f.path)
			b.wait("#create")
			if got := strings.Join(eval[[]string](b, visibleFields), "|"); got != f.fields {
				t.Errorf("%s has the fields\n%s, want\n%s", name, got, f.fields)
			}
			for selector, want := range f.see {
				if got := b.text(selector); !strings.Contains(got, want) {
					t.Errorf("%s: %s has no %q: %s", name, selector, want, got)
				}
			}
			if f.click != "" {
				b.press(f.click)
				if got := eval[string](b, `[...document.querySelectorAll("[name^=limit_]")].map(e => e.value).join()`); got != "100,5000,100000" {
					t.Errorf("a preset sets %s", got)
				}
			}
			b.check("create-" + name)
		}
		b.open("/keys?keyspace=chemolytic&owner=poor")
		if got := b.text("#refused"); !strings.Contains(got, "no access") || eval[bool](b, `!!document.querySelector("a.primary")`) {
			t.Errorf("without access: %s", got)
		}
		b.check("keys-without-access")
		b.open("/keys?keyspace=promptick&owner=proj_1")
		b.check("keys-empty-teaches")
		if got := b.text(".teach"); !strings.Contains(got, "Authorization: Bearer $PROMPTICK_API_KEY") {
			t.Errorf("an empty list teaches %s", got)
		}
	}
}

// Keys are listed as their product shows them, narrowed, chosen, and revoked together; at
// the cap no more are created.
func TestKeyList(t *testing.T) {
	s := newSite(t)
	for _, look := range looks {
		owner := "list_" + look.theme
		s.owner("parcelbird", owner, "Acme Ltd", "large")
		hostile := `<img src=x onerror=document.title="owned">=cmd()`
		for _, name := range []string{"Production", "Mobile app, iOS", hostile, "Nightly"} {
			s.newKey("parcelbird", owner, name, map[string]any{"scopes": []string{"parcels:read"}})
		}
		id, secret := s.newKey("parcelbird", owner, "Busy", map[string]any{"environment": "test", "resources": []string{"depot_9"}})
		for range 3 {
			s.call("POST", "/v1/verify", map[string]any{"keyspace": "parcelbird", "key": secret, "method": "GET", "path": "/v1/depots/depot_9/x"}, nil)
		}
		b := s.tab(t, look.theme, look.width)
		b.signIn(s.root)
		// Uses are drawn when the projection has them.
		s.until("what follows by itself", func() bool {
			var k struct {
				UseCount int `json:"use_count"`
			}
			s.call("GET", "/v1/keys/"+id, nil, &k)
			return k.UseCount == 3
		})
		list := "/keys?keyspace=parcelbird&owner=" + owner
		b.open(list)
		b.wait("table.keys")
		if n := eval[int](b, `document.querySelectorAll("table.keys tbody tr").length`); n != 5 {
			t.Errorf("%d keys are listed", n)
		}
		if title := eval[string](b, "document.title"); strings.Contains(title, "owned") || !strings.Contains(b.text("table.keys"), hostile) {
			t.Errorf("a hostile name: title %q", title)
		}
		if n := eval[int](b, `document.querySelectorAll("svg.spark").length`); n != 1 {
			t.Errorf("%d keys have a line of use", n)
		}
		b.check("keys")
		for query, want := range map[string]string{"&environment=test": "Busy", "&resource=depot_9": "Busy", "&q=nightly": "Nightly", "&status=revoked": "", "&scope=keys:manage": ""} {
			b.open(list + query)
			got := eval[[]string](b, `[...document.querySelectorAll("table.keys tbody a")].map(e => e.textContent)`)
			if strings.Join(got, "|") != want {
				t.Errorf("%s lists %q", query, got)
			}
		}
		b.check("keys-none-like-that")
		// Two are chosen and revoked together, after a question.
		b.open(list)
		if eval[bool](b, `!document.getElementById("revoke-chosen").disabled`) {
			t.Error("nothing is chosen, and can be revoked")
		}
		for _, name := range []string{"Nightly", "Production"} {
			b.press(fmt.Sprintf(`input[aria-label="Choose %s"]`, name))
		}
		if got := b.text("#chosen"); got != "2 keys chosen" {
			t.Errorf("chosen: %s", got)
		}
		b.click("#revoke-chosen")
		b.check("revoke-chosen")
		b.press(`input[name=reason][value="no longer needed"]`)
		b.click("form.sheet .danger")
		s.until("what follows by itself", func() bool {
			b.open(list + "&status=revoked")
			return eval[int](b, `document.querySelectorAll(".status.revoked").length`) == 2
		})

		capped := "capped_" + look.theme
		s.owner("parcelbird", capped, "Small Ltd", "basic")
		s.newKey("parcelbird", capped, "one", nil)
		b.open("/keys?keyspace=parcelbird&owner=" + capped)
		if got := b.text(".cap"); !strings.Contains(got, "1 of 2 keys") {
			t.Errorf("cap: %s", got)
		}
		s.newKey("parcelbird", capped, "two", nil)
		b.open("/keys?keyspace=parcelbird&owner=" + capped)
		if got := b.text(".cap") + b.text("#refused"); !strings.Contains(got, "2 of 2 keys") || !strings.Contains(got, "all are in use") || eval[bool](b, `!!document.querySelector("a.primary")`) {
			t.Errorf("at the cap: %s", got)
		}
		b.check("keys-at-the-cap")
	}
}

// The list is sorted by the headers of its table, and by a field where there is no room for
// them; the order stays while somebody filters and turns pages, without scripts too.
func TestKeyListSorted(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/promptick/owners/acme", map[string]any{"name": "Acme Ltd"}, nil)
	var busy, secret string
	for i := range 52 {
		id, made := s.newKey("promptick", "acme", fmt.Sprintf("%s %02d", []string{"Server", "app"}[i%2], i), map[string]any{"resources": []string{"agent_1"}})
		if i == 17 {
			busy, secret = id, made
		}
	}
	for range 2 {
		s.call("POST", "/v1/verify", map[string]any{"keyspace": "promptick", "key": secret, "method": "POST", "path": "/api/v1/agents/agent_1/execute"}, nil)
	}
	s.until("what follows by itself", func() bool {
		var k struct {
			UseCount int `json:"use_count"`
		}
		s.call("GET", "/v1/keys/"+busy, nil, &k)
		return k.UseCount == 2
	})
	list := "/keys?keyspace=promptick&owner=acme"
	const header = `thead th:has(a[href*="sort=%s&"], a[href$="sort=%[1]s"])`

	b := s.tab(t, looks[0].theme, looks[0].width)
	b.signIn(s.root)
	is := func(caption, sorted, first string) {
		t.Helper()
		b.wait("table.keys")
		if got := eval[string](b, `document.querySelector("table.keys caption").textContent`); got != caption {
			t.Errorf("at %s the list is called %q, want %q", b.location(), got, caption)
		}
		got := eval[[]string](b, `[...document.querySelectorAll("th[aria-sort]")].map(e => e.textContent + " " + e.ariaSort)`)
		if strings.Join(got, "|") != sorted {
			t.Errorf("at %s %q is sorted, want %q", b.location(), got, sorted)
		}
		if got := eval[string](b, `document.querySelector("table.keys tbody a").textContent`); first != "" && got != first {
			t.Errorf("at %s the first key is %q, want %q", b.location(), got, first)
		}
	}
	b.open(list)
	is("Keys, newest first", "", "") // many are made in one millisecond
	if n := eval[int](b, `[...document.querySelectorAll("thead th a")].filter(e => e.tabIndex == 0 && e.checkVisibility()).length`); n != 4 {
		t.Errorf("%d headers can be followed", n)
	}
	b.check("keys-sortable")
	b.click(fmt.Sprintf(header, "name") + " a")
	is("Keys, by name, A to Z", "Name ascending", "app 01")
	b.check("keys-by-name")
	b.click(`.foot a[rel=next]`)
	is("Keys, by name, A to Z", "Name ascending", "Server 48")
	b.click(`.foot .acts:last-child a`)
	is("Keys, by name, A to Z", "Name ascending", "app 01")
	b.click(fmt.Sprintf(header, "-name") + " a")
	is("Keys, by name, Z to A", "Name descending", "Server 50")
	b.fill(`input[name=q]`, "app")
	b.click(".filters .acts button")
	is("Keys, by name, Z to A", "Name descending", "app 51")
	b.click(fmt.Sprintf(header, "-use_count") + " a")
	is("Keys, most uses first", "Uses descending", "app 17")
	b.click(".filters .acts a") // Clear
	is("Keys, most uses first", "Uses descending", "app 17")
	if at := b.location(); strings.Contains(at, "q=") {
		t.Errorf("cleared, and at %s", at)
	}
	b.open(list + "&sort=colour")
	if got := b.text("[role=alert]"); !strings.Contains(got, "sort") {
		t.Errorf("sorted by colour: %s", got)
	}

	b = s.tab(t, looks[1].theme, looks[1].width)
	b.signIn(s.root)
	b.open(list)
	b.wait("table.keys")
	b.fill("select[name=sort]", "name")
	b.click(".filters .acts button")
	is("Keys, by name, A to Z", "Name ascending", "app 01")
	if eval[bool](b, `document.querySelector("thead").checkVisibility()`) || eval[string](b, `document.querySelector("select[name=sort]").value`) != "name" {
		t.Error("in a narrow window the field does not say how the list is sorted")
	}
	b.check("keys-by-name")
	b.click(`.foot a[rel=next]`)
	is("Keys, by name, A to Z", "Name ascending", "Server 48")
	b.fill("select[name=sort]", "-last_used_at")
	b.click(".filters .acts button")
	is("Keys, most recently used first", "Last used descending", "app 17")

	// Without scripts there are the same links and the same field.
	page := s.plain(s.root).page(list + "&sort=-name&status=active")
	for _, want := range []string{`<option value="-name" selected>`, `aria-sort="descending"`, `sort=name&amp;status=active`, `rel="next"`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s", want)
		}
	}
}

// A secret is shown once, and cannot be lost by a stray key; going back shows nothing.
func TestRevealOnce(t *testing.T) {
	s := newSite(t)
	s.owner("parcelbird", "acme", "Acme Ltd", "large")
	for _, look := range looks {
		b := s.tab(t, look.theme, look.width)
		b.signIn(s.root)
		b.open("/keys/new?keyspace=parcelbird&owner=acme")
		b.fill("#name", "CI")
		b.press(`input[name=scopes][value="parcels:read"]`)
		// Something is wrong with the form: what was written stays.
		b.refused.Store(true)
		eval[bool](b, `(() => { document.querySelector("details.more").open = true; return true })()`)
		b.fill("#allowed_ips", "nowhere")
		b.click("#create .primary")
		b.wait("[role=alert]")
		if name := eval[string](b, `document.getElementById("name").value`); name != "CI" {
			t.Errorf("the form has forgotten the name: %q", name)
		}
		b.check("create-wrong")
		eval[string](b, `document.getElementById("allowed_ips").value = ""`)
		b.click("#create .primary")
		secret := b.text("#secret")
		if !strings.HasPrefix(secret, "pb_live_") {
			t.Fatalf("the secret is %q", secret)
		}
		if !eval[bool](b, `!dispatchEvent(new Event("beforeunload", {cancelable: true}))`) {
			t.Error("leaving the page would not be asked about")
		}
		names := eval[[]string](b, `[...document.querySelectorAll(".snippets summary")].map(e => e.textContent)`)
		if !slices.Equal(names, []string{"curl", "Node.js", "Python", ".env", "GitHub Actions", "GitLab CI"}) {
			t.Errorf("snippets: %q", names)
		}
		if got := eval[string](b, `document.querySelector(".snippets").textContent`); !strings.Contains(got, "PARCELBIRD_API_KEY") || !strings.Contains(got, "Authorization: Bearer $PARCELBIRD_API_KEY") || !strings.Contains(got, "/v1/parcels/") {
			t.Errorf("snippets: %s", got)
		}
		// What is copied is the secret, and nothing else.
		eval[bool](b, `(() => { window.copied = ""; Object.defineProperty(navigator, "clipboard", {value: {writeText: async (s) => { window.copied = s }}}); return true })()`)
		b.press(`[data-copy=secret]`)
		if got := eval[string](b, "window.copied"); got != secret {
			t.Errorf("%q is copied", got)
		}
		if kept := eval[string](b, `JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + JSON.stringify(history.state) + location.href`); strings.Contains(kept, secret) {
			t.Errorf("the browser keeps the secret: %s", kept)
		}
		b.check("reveal-once")
		b.click("#saved button")
		b.wait(".status.active")
		for range 2 { // the page with the secret was the answer to a form
			if got := b.back(); strings.Contains(got, secret) {
				t.Error("going back shows the secret")
			}
		}
	}
	// The same form once more makes nothing and shows nothing.
	c := s.plain(s.root)
	once := textBetween(c.page("/keys/new?keyspace=parcelbird&owner=acme"), `name="once" value="`, `"`)
	form := url.Values{"keyspace": {"parcelbird"}, "owner": {"acme"}, "name": {"twice"}, "once": {once}, "deliver": {"here"}}
	first, again := c.post("/keys/new", form), c.post("/keys/new", form)
	if !strings.Contains(first, "Your new key") || strings.Contains(again, "pb_live_") && strings.Contains(again, `id="secret"`) || !strings.Contains(again, "shown already") {
		t.Errorf("a form that is sent twice: %s", again)
	}
	form.Set("name", "another")
	if got := c.post("/keys/new", form); !strings.Contains(got, "has made a key already") || strings.Contains(got, once) {
		t.Errorf("a form that is sent again with another name: %s", got)
	}
}

// The customer, who has no account, sees the secret by a link, once; who made it sees when.
func TestClaimLink(t *testing.T) {
	s := newSite(t)
	s.owner("openprospect", "org_1", "Acme", "pro")
	for _, look := range looks {
		b := s.tab(t, look.theme, look.width)
		b.signIn(s.root)
		b.open("/keys/new?keyspace=openprospect&owner=org_1")
		b.fill("#name", "Acme CRM "+look.theme)
		b.press(`input[name=deliver][value=link]`)
		b.click("#create .primary")
		link := b.text("#secret")
		before, code, _ := strings.Cut(link, "#")
		if before != s.url+"/claim" || !strings.HasPrefix(code, "claim_") || strings.Contains(b.text("main"), "lnc_live_") && strings.Contains(b.text("#secret"), "lnc_live_") {
			t.Fatalf("the link is %q", link)
		}
		b.check("claim-link")
		b.click("#saved button")
		key := strings.Trim(strings.TrimPrefix(b.location(), "/keys/"), "?")
		if got := b.text(".claimed"); !strings.Contains(got, "unopened") {
			t.Errorf("the key's page says %q", got)
		}
		b.check("claim-waiting")

		customer := s.tab(t, look.theme, look.width)
		customer.open("/claim")
		customer.check("claim-empty")
		customer.open("/claim#" + code)
		if at := customer.location(); at != "/claim" {
			t.Errorf("the code stays in the address: %s", at)
		}
		customer.check("claim")
		customer.click("#claim button")
		secret := customer.text("#secret")
		var d struct {
			Code string `json:"code"`
		}
		s.call("POST", "/v1/verify", map[string]any{"keyspace": "openprospect", "authorization": "Bearer " + secret, "tls": true}, &d)
		if d.Code != "VALID" {
			t.Errorf("the secret that the customer saw is %s", d.Code)
		}
		customer.check("claim-opened")
		customer.click("#saved button")
		if got := customer.back(); strings.Contains(got, secret) {
			t.Error("going back shows the secret")
		}
		// Pasted whole, without scripts it is the same form: it was used.
		other := s.plain("")
		if got := other.post("/claim", url.Values{"code": {link}}); strings.Contains(got, secret) || !strings.Contains(got, "was used already") {
			t.Errorf("opened again: %s", got)
		}
		b.open("/keys/" + key)
		if got := b.text(".claimed"); !strings.Contains(got, "was seen through a link") {
			t.Errorf("the key's page says %q", got)
		}
		b.check("claim-seen")

		// Rotated for them once more, and withdrawn.
		b.open("/keys/" + key + "/rotate")
		b.press(`input[name=deliver][value=link]`)
		b.check("rotate-by-link")
		b.click("#ask .primary")
		_, code, _ = strings.Cut(b.text("#secret"), "#")
		b.click("#saved button")
		b.click(".claimed button")
		if got := b.text(".claimed"); !strings.Contains(got, "withdrawn") {
			t.Errorf("the key's page says %q", got)
		}
		if got := other.post("/claim", url.Values{"code": {code}}); !strings.Contains(got, "was withdrawn") {
			t.Errorf("opened when it was withdrawn: %s", got)
		}
	}
}

// Rotation with a grace shows who still uses the previous secret, and ends it; revoking
// and deleting say what follows.
func TestRotateRevokeDelete(t *testing.T) {
	s := newSite(t)
	s.owner("parcelbird", "acme", "Acme Ltd", "large")
	for _, look := range looks {
		b := s.tab(t, look.theme, look.width)
		b.signIn(s.root)
		id, old := s.newKey("parcelbird", "acme", "Rotated "+look.theme, map[string]any{"scopes": []string{"parcels:read"}})
		b.open("/keys/" + id + "/rotate")
		words := eval[[]string](b, `[...document.querySelectorAll("[name=grace]")].map(e => e.value)`)
		if !slices.Equal(words, []string{"0s", "1h", "24h", "48h"}) || eval[string](b, `document.querySelector("[name=grace]:checked").value`) != "0s" {
			t.Errorf("grace choices: %q", words)
		}
		b.press(`input[name=grace][value="24h"]`)
		b.check("rotate-choices")
		b.click("#ask .primary")
		b.wait("#secret")
		b.click("#saved button")
		b.open("/keys/" + id + "/end-grace")
		if got := b.text("main"); !strings.Contains(got, "Nothing has used the previous secret") {
			t.Errorf("unused: %s", got)
		}
		s.call("POST", "/v1/verify", map[string]any{"keyspace": "parcelbird", "key": old, "method": "GET", "path": "/v1/parcels/7", "ip": "203.0.113.9"}, nil)
		s.until("what follows by itself", func() bool {
			b.open("/keys/" + id + "/end-grace")
			return strings.Contains(b.text("main"), "203.0.113.9")
		})
		b.check("end-grace")
		b.click("#ask .danger")
		b.open("/keys/" + id + "/revoke")
		s.until("what follows by itself", func() bool {
			b.open("/keys/" + id + "/revoke")
			return strings.Contains(b.text("main"), "1 request in the last 24 hours")
		})
		b.check("revoke-in-use")
		b.click(`main a[href$="/addresses"]`)
		if got := b.text("table"); !strings.Contains(got, "203.0.113.9") {
			t.Errorf("addresses: %s", got)
		}
		b.check("addresses")
		b.open("/keys/" + id + "/revoke")
		b.fill("[name=other]", "case 4711")
		eval[bool](b, `document.querySelector("[name=other]").dispatchEvent(new Event("input"))`)
		b.click("#ask .danger")
		b.wait(".status.revoked")
		var k struct {
			RevokeReason string `json:"revoke_reason"`
		}
		s.call("GET", "/v1/keys/"+id, nil, &k)
		if k.RevokeReason != "case 4711" {
			t.Errorf("the reason is %q", k.RevokeReason)
		}
		b.open("/keys/" + id + "/delete")
		b.check("delete")
		b.click("#ask .danger")
		if at := b.location(); !strings.HasPrefix(at, "/keys?") {
			t.Errorf("after deleting at %s", at)
		}
	}
}

// A manager of one owner reaches no page and no form of another's keys.
func TestManagerKeys(t *testing.T) {
	s := newSite(t)
	s.owner("parcelbird", "acme", "Acme Ltd", "large")
	s.owner("parcelbird", "other", "Other Ltd", "large")
	theirs, secret := s.newKey("parcelbird", "other", "theirs", nil)
	var m answeredKey
	s.call("POST", "/v1/root-keys", map[string]any{"name": "manager", "role": "manager", "keyspace": "parcelbird", "owner": "acme"}, &m)
	c := s.plain(m.Secret)
	for _, path := range []string{"/keys?keyspace=parcelbird&owner=other", "/keys?keyspace=promptick", "/keys/new?keyspace=parcelbird&owner=other", "/keys/" + theirs, "/keys/" + theirs + "/rotate", "/keys/" + theirs + "/revoke", "/keys/" + theirs + "/delete", "/keys/" + theirs + "/end-grace", "/keys/" + theirs + "/addresses"} {
		if got := c.page(path); strings.Contains(got, "theirs") || strings.Contains(got, "Other Ltd") {
			t.Errorf("%s shows another's: %s", path, got)
		}
	}
	for path, form := range map[string]url.Values{
		"/keys/new":                           {"keyspace": {"parcelbird"}, "owner": {"other"}, "name": {"mine"}},
		"/keys/" + theirs + "/rotate":         {"grace": {"0s"}},
		"/keys/" + theirs + "/revoke":         {"reason": {"x"}},
		"/keys/" + theirs + "/delete":         {},
		"/keys/" + theirs + "/end-grace":      {},
		"/keys/" + theirs + "/withdraw-claim": {},
		"/keys/revoke":                        {"id": {theirs}, "sure": {"1"}, "reason": {"x"}},
	} {
		c.post(path, form)
	}
	var list struct {
		Keys []struct{ Name, Owner, Status string } `json:"keys"`
	}
	s.until("what follows by itself", func() bool {
		s.call("GET", "/v1/keys?keyspace=parcelbird", nil, &list)
		return len(list.Keys) == 2
	})
	for _, k := range list.Keys {
		if k.Name == "theirs" && (k.Status != "active" || k.Owner != "other") || k.Name == "mine" && k.Owner != "acme" {
			t.Errorf("a manager changed another's keys: %+v", k)
		}
	}
	var d struct{ Valid bool }
	s.call("POST", "/v1/verify", map[string]any{"keyspace": "parcelbird", "key": secret}, &d)
	if !d.Valid {
		t.Error("the other's secret no longer works")
	}
}

// plainBrowser is a browser without scripts.
type plainBrowser struct {
	*site
	http   *http.Client
	cookie *http.Cookie
}

func (s *site) plain(secret string) *plainBrowser {
	s.t.Helper()
	c := &plainBrowser{site: s, http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	if secret == "" {
		return c
	}
	resp, err := c.http.PostForm(s.url+"/signin", url.Values{"credential": {secret}})
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, cookie := range resp.Cookies() {
		c.cookie = cookie
	}
	if c.cookie == nil {
		s.t.Fatalf("not signed in: %s", resp.Status)
	}
	return c
}

func (c *plainBrowser) do(r *http.Request) string {
	c.t.Helper()
	if c.cookie != nil {
		r.AddCookie(c.cookie)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Cache-Control"); !strings.Contains(got, "no-store") {
		c.t.Errorf("%s may be kept: %q", r.URL, got)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

func (c *plainBrowser) page(path string) string {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.url+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.do(r)
}

func (c *plainBrowser) post(path string, form url.Values) string {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.do(r)
}

func textBetween(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}

// back goes back and answers with the page that is there then. Chromium has none where
// that was the answer to a form, and offers to send the form again.
func (b *tab) back() string {
	b.t.Helper()
	ctx, over := context.WithTimeout(b.ctx, patience)
	defer over()
	if _, err := chromedp.Run(ctx, chromedp.NavigateBack()); err != nil && !strings.Contains(err.Error(), "net::ERR_CACHE_MISS") {
		b.t.Fatal(err)
	}
	return eval[string](b, "document.documentElement.outerHTML")
}
