package console_test

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// The sweeps below visit every page that there is: all that the source registers, and all
// that links lead to. A new page is swept without being named here; only what a new
// {wildcard} stands for has to be told in fills.

// registered are the routes that the console's source registers, GET and POST.
func registered(t *testing.T) (gets, posts []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	registers := regexp.MustCompile(`(?:\bpage|HandleFunc|Handle)\("(GET|POST) ([^"]+)"`)
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range registers.FindAllStringSubmatch(string(b), -1) {
			if m[1] == "GET" {
				gets = append(gets, m[2])
			} else {
				posts = append(posts, m[2])
			}
		}
	}
	if len(gets) < 8 || len(posts) < 5 {
		t.Fatalf("the source registers %q and %q: is this how routes are registered?", gets, posts)
	}
	return gets, posts
}

// hostileNames are names that people may give things.
var hostileNames = []string{
	`<img src=x onerror=alert(1)>zebra`, `"><script>alert(1)</script>zebra`, `' onmouseover='alert(1)' zebra`,
	`=cmd()|' /C calc'!A0 zebra`, `+1+1 zebra`, `{{.}} {{template "layout"}} zebra`, `javascript:alert(1)//zebra`,
}

// harm is a console with two owners, who know nothing of each other, and somebody of each
// role.
type harm struct {
	*site
	t        *testing.T
	gets     []string
	posts    []string
	secrets  map[string]string // none of them may be seen anywhere, by what they are
	ours     []string          // ids of what is acme's
	theirs   []string          // of what is the zebra's
	keyspace string
	route    *http.ServeMux // knows which pattern an address is of
	roles    map[string]string
}

const theOther = "zebra-owner"

func newHarm(t *testing.T) *harm {
	t.Helper()
	h := &harm{site: newSite(t), t: t, secrets: map[string]string{}, keyspace: "parcelbird", route: http.NewServeMux(), roles: map[string]string{}}
	h.gets, h.posts = registered(t)
	for _, p := range slices.Compact(slices.Sorted(slices.Values(h.gets))) {
		h.route.HandleFunc("GET "+p, func(http.ResponseWriter, *http.Request) {})
	}
	h.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme Ltd", "plan": "large"}, nil)
	h.call("PUT", "/v1/keyspaces/parcelbird/owners/"+theOther, map[string]any{"name": hostileNames[0], "plan": "large"}, nil)
	type made struct {
		Key    struct{ ID string }
		Secret string
	}
	create := func(owner, name string) string {
		var k made
		h.call("POST", "/v1/keys", map[string]any{"keyspace": h.keyspace, "owner": owner, "name": name, "scopes": []string{"parcels:read"}}, &k)
		h.secrets["the secret of "+name] = k.Secret
		return k.Key.ID
	}
	for _, name := range []string{"in use", "old"} {
		h.ours = append(h.ours, create("acme", name))
	}
	for _, name := range hostileNames {
		h.theirs = append(h.theirs, create(theOther, name))
	}
	var rotated made
	h.call("POST", "/v1/keys/"+h.theirs[1]+"/rotate", map[string]any{"grace": "1h", "reason": hostileNames[1]}, &rotated)
	h.secrets["a rotated secret"] = rotated.Secret
	h.call("POST", "/v1/keys/"+h.theirs[2]+"/revoke", map[string]any{"reason": hostileNames[0]}, nil)
	// Something to draw, at paths that are hostile too.
	for _, path := range []string{"/v1/parcels/1", "/v1/parcels/%3Cimg%20src=x%20onerror=alert(1)%3Ezebra"} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", h.gate+"/parcelbird"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+h.secrets["the secret of "+hostileNames[0]])
		r.Header.Set("User-Agent", hostileNames[0])
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	var hook struct {
		Webhook struct{ ID string }
		Secret  string
	}
	h.call("POST", "/v1/webhooks", map[string]any{"url": "http://127.0.0.1:9/zebra", "keyspace": h.keyspace, "owner": theOther, "description": hostileNames[0]}, &hook)
	h.secrets["the secret of a webhook"] = hook.Secret
	h.theirs = append(h.theirs, hook.Webhook.ID)
	h.secrets["the root key"] = h.root
	h.roles["operator"] = h.root
	for role, more := range map[string]map[string]any{"auditor": {}, "manager": {"keyspace": h.keyspace, "owner": "acme"}} {
		in := map[string]any{"name": "a " + role, "role": role}
		maps.Copy(in, more)
		var k made
		h.call("POST", "/v1/root-keys", in, &k)
		h.secrets["the root key of the "+role] = k.Secret
		h.roles[role] = k.Secret
	}
	for what, s := range h.secrets {
		if len(s) < 20 {
			t.Fatalf("%s is %q", what, s)
		}
	}
	return h
}

// fills are what a {name} of a route may be: what exists, of both owners.
func (h *harm) fills(name string) []string {
	switch strings.TrimSuffix(name, "...") {
	case "id", "key":
		return slices.Concat(h.theirs[:3], h.theirs[len(h.theirs)-1:], h.ours[:1])
	case "act":
		return []string{"rotate", "revoke", "delete", "end-grace", "withdraw-claim", "test", "enable", "remove", "edit"}
	case "keyspace", "ks":
		return []string{h.keyspace}
	case "owner":
		return []string{theOther, "acme"}
	case "stream", "log":
		return []string{"LEDGER", "OPS"}
	case "sequence", "position":
		return []string{"20"}
	case "name": // of subscribers
		return []string{"nobody"}
	case "hash": // of assets
		return nil
	}
	return []string{h.theirs[0], "LEDGER", h.keyspace, "1"}
}

// filled are the sweptLinks of a pattern.
func (h *harm) filled(pattern string) []string {
	pattern = strings.ReplaceAll(pattern, "{$}", "")
	all := []string{pattern}
	for _, m := range regexp.MustCompile(`\{([^}]+)\}`).FindAllStringSubmatch(pattern, -1) {
		var next []string
		for _, p := range all {
			for _, v := range h.fills(m[1]) {
				next = append(next, strings.Replace(p, m[0], v, 1))
			}
		}
		all = next
	}
	return all
}

// got is an answer.
type answered struct {
	path, role string
	status     int
	header     http.Header
	body       string
}

func (h *harm) do(c *http.Client, method, path string, form url.Values, header ...string) answered {
	h.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, body)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Del(header[i])
		if header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := c.Do(r)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	g := answered{path: path, status: resp.StatusCode, header: resp.Header}
	// What goes on for ever is looked at as far as it comes at once.
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return g
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	g.body = string(b)
	return g
}

// as is somebody who signed in without scripts.
func (h *harm) as(role string) *http.Client {
	h.t.Helper()
	c := h.stranger(h.t)
	if g := h.do(c, "POST", "/signin", url.Values{"credential": {h.roles[role]}}); g.status != http.StatusSeeOther {
		h.t.Fatalf("%s: signing in is %d", role, g.status)
	}
	return c
}

var sweptLinks = regexp.MustCompile(`(?:href|src|data-[a-z-]+)="(/[^"]*)"`)

// crawl visits every registered page and every link from there on, a few of each kind.
func (h *harm) crawl(c *http.Client, role string) []answered {
	h.t.Helper()
	var queue []string
	for _, p := range h.gets {
		if p != "/signin/openid" && p != "/signin/openid/callback" && !strings.HasPrefix(p, "/assets/") {
			queue = append(queue, h.filled(p)...)
		}
	}
	for _, q := range []string{"?keyspace=parcelbird&owner=" + theOther, "?owner=" + theOther + "&q=img", "?key=" + h.theirs[0], "?as_of=now"} {
		for _, p := range h.gets {
			if !strings.Contains(p, "{") {
				queue = append(queue, p+q)
			}
		}
	}
	seen, kinds := map[string]bool{}, map[string]int{}
	var all []answered
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		u, err := url.Parse(path)
		if err != nil || seen[path] {
			continue
		}
		seen[path] = true
		if strings.HasPrefix(path, "/assets/") { // the same for everybody, and kept
			continue
		}
		_, pattern := h.route.Handler(&http.Request{Method: "GET", URL: &url.URL{Path: u.Path}})
		kind := pattern + "?" + strings.Join(slices.Sorted(maps.Keys(u.Query())), "&")
		if kinds[kind]++; kinds[kind] > 6 || len(all) >= 400 || u.Path == "/signout" {
			continue
		}
		g := h.do(c, "GET", path, nil)
		g.role = role
		all = append(all, g)
		if g.status == http.StatusSeeOther || g.status == http.StatusFound {
			if to := g.header.Get("Location"); strings.HasPrefix(to, "/signin") && !strings.HasPrefix(path, "/signin") {
				h.t.Fatalf("%s is signed out by %s", role, path)
			} else if strings.HasPrefix(to, "/") {
				queue = append(queue, to)
			}
		}
		if strings.HasPrefix(g.header.Get("Content-Type"), "text/html") {
			for _, m := range sweptLinks.FindAllStringSubmatch(g.body, -1) {
				if to := html.UnescapeString(m[1]); !strings.HasPrefix(to, "/assets/") {
					queue = append(queue, to)
				}
			}
		}
	}
	return all
}

var (
	runsInline = regexp.MustCompile(`(?i)<script(?:\s[^>]*)?>[^<]|<style|\sstyle=["']|<[a-z][^>]*\son[a-z]+\s*=\s*["'][^"']|href="javascript:|<img src=x|<script>alert`)
	calculates = regexp.MustCompile(`(?m)(?:^|,)"?[=+]`)
)

// harmless holds an answer against what must hold of all of them.
func (h *harm) harmless(g answered) {
	h.t.Helper()
	at := g.role + " at " + g.path
	for what, secret := range h.secrets {
		if strings.Contains(g.body, secret) {
			h.t.Errorf("%s: shows %s", at, what)
		}
		for name, values := range g.header {
			if strings.Contains(strings.Join(values, " "), secret) {
				h.t.Errorf("%s: the header %s has %s", at, name, what)
			}
		}
	}
	if g.status >= 500 {
		h.t.Errorf("%s: %d", at, g.status)
	}
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin", "Content-Security-Policy": "frame-ancestors 'none'",
	} {
		if !strings.Contains(g.header.Get(name), want) {
			h.t.Errorf("%s: %s is %q", at, name, g.header.Get(name))
		}
	}
	if policy := g.header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") {
		h.t.Errorf("%s: the policy is %q", at, policy)
	}
	if !strings.Contains(g.header.Get("Cache-Control"), "no-store") {
		h.t.Errorf("%s: Cache-Control is %q", at, g.header.Get("Cache-Control"))
	}
	kind := g.header.Get("Content-Type")
	switch {
	case strings.HasPrefix(kind, "text/html"):
		if m := runsInline.FindString(g.body); m != "" {
			i := strings.Index(g.body, m)
			h.t.Errorf("%s: %q", at, g.body[max(0, i-100):min(len(g.body), i+100)])
		}
	case strings.HasPrefix(kind, "text/csv"):
		if m := calculates.FindStringIndex(g.body); m != nil {
			h.t.Errorf("%s: a spreadsheet calculates %q", at, g.body[m[0]:min(len(g.body), m[1]+30)])
		}
	case kind == "" && g.body != "":
		h.t.Errorf("%s: no Content-Type", at)
	}
}

// form is a form of a page, filled in.
type sweptForm struct {
	page, action string
	values       url.Values
	button       bool // there is one to send it with
}

var (
	sweptForms  = regexp.MustCompile(`(?s)<form\b([^>]*)>(.*?)</form>`)
	sweptFields = regexp.MustCompile(`(?s)<(input|button|textarea|select)\b([^>]*)>(?:(.*?)</(?:textarea|select)>)?`)
	sweptAttr   = regexp.MustCompile(`([a-z-]+)(?:="([^"]*)")?`)
	sweptOption = regexp.MustCompile(`<option(?: value="([^"]*)")?[^>]*>([^<]*)`)
)

func attrsOf(s string) map[string]string {
	m := map[string]string{}
	for _, a := range sweptAttr.FindAllStringSubmatch(s, -1) {
		m[a[1]] = html.UnescapeString(a[2])
	}
	return m
}

// forms are those of a page that change something, with what is in them and something in
// what is empty.
func formsOf(g answered) []sweptForm {
	var all []sweptForm
	for _, m := range sweptForms.FindAllStringSubmatch(g.body, -1) {
		a := attrsOf(m[1])
		if !strings.EqualFold(a["method"], "post") {
			continue
		}
		f := sweptForm{page: g.path, action: a["action"], values: url.Values{}}
		if f.action == "" {
			f.action = g.path
		}
		fields := m[2]
		if a["id"] != "" { // fields that stand elsewhere
			for _, x := range sweptFields.FindAllString(g.body, -1) {
				if strings.Contains(x, `form="`+a["id"]+`"`) {
					fields += x
				}
			}
		}
		for _, x := range sweptFields.FindAllStringSubmatch(fields, -1) {
			b := attrsOf(x[2])
			f.button = f.button || x[1] == "button"
			name, value := b["name"], b["value"]
			if name == "" {
				continue
			}
			switch {
			case x[1] == "select":
				if o := sweptOption.FindStringSubmatch(x[3]); o != nil {
					value = html.UnescapeString(o[1])
				}
			case x[1] == "textarea":
				value = html.UnescapeString(x[3])
			case b["type"] == "radio" && f.values.Has(name):
				continue
			case value == "":
				value = "changed"
			}
			f.values.Add(name, value)
		}
		all = append(all, f)
	}
	return all
}

// heads is how far the streams are. Figures of what was looked at are no change.
func (h *harm) heads() (ledger, usage uint64, acts map[string]int) {
	h.t.Helper()
	var status struct {
		Streams []struct {
			Stream, Name string
			LastSequence uint64 `json:"last_sequence"`
			Head         uint64 `json:"head"`
			Sequence     uint64 `json:"sequence"`
		}
	}
	h.call("GET", "/v1/status", nil, &status)
	for _, s := range status.Streams {
		switch s.Stream + s.Name {
		case "LEDGER":
			ledger = max(s.LastSequence, s.Head, s.Sequence)
		case "USAGE":
			usage = max(s.LastSequence, s.Head, s.Sequence)
		}
	}
	if ledger == 0 {
		h.t.Fatalf("/v1/status names no head: %s", h.get(h.t, "/v1/status", h.root))
	}
	acts = map[string]int{}
	for after := ""; ; {
		var list struct {
			Events []struct{ Stream, Type string }
			Next   *string `json:"next_cursor"`
		}
		h.call("GET", "/v1/audit/events?limit=1000&after="+url.QueryEscape(after), nil, &list)
		for _, e := range list.Events {
			if e.Stream == "OPS" {
				acts[e.Type]++
			}
		}
		if list.Next == nil || len(list.Events) == 0 {
			return ledger, usage, acts
		}
		after = *list.Next
	}
}

// unchanged runs f and holds that it changed nothing.
func (h *harm) unchanged(what string, f func()) {
	h.t.Helper()
	ledger, usage, acts := h.heads()
	f()
	ledgerNow, usageNow, actsNow := h.heads()
	if ledger != ledgerNow || usage != usageNow {
		h.t.Errorf("%s: LEDGER was at %d and is at %d, USAGE at %d and %d", what, ledger, ledgerNow, usage, usageNow)
	}
	for kind, n := range actsNow {
		// Reading is recorded, and who could not sign in; the others are about what was done before.
		if !slices.Contains([]string{"audit.read", "signin.failed", "revocation.measured", "alert.raised", "alert.resolved"}, kind) && n != acts[kind] {
			h.t.Errorf("%s: %d more %s", what, n-acts[kind], kind)
		}
	}
}

// What must not happen does not happen on any page.
func TestSweep(t *testing.T) {
	h := newHarm(t)
	operator := h.as("operator")
	pages := h.crawl(operator, "operator")
	var all []sweptForm
	for _, g := range pages {
		h.harmless(g)
		for _, f := range formsOf(g) {
			if !slices.ContainsFunc(all, func(o sweptForm) bool { return o.action == f.action && o.values.Encode() == f.values.Encode() }) {
				all = append(all, f)
			}
		}
	}
	t.Logf("%d pages and %d forms", len(pages), len(all))
	if len(pages) < 30 || len(all) < 8 {
		t.Fatalf("only %d pages and %d forms were found", len(pages), len(all))
	}

	// Names that read as something else, or are too long, are refused on the page.
	for _, name := range []string{"\u202eevil\u2066 zebra", "a\x00b", strings.Repeat("<b>long</b>", 1000)} {
		g := h.do(operator, "POST", "/keys/new", url.Values{"keyspace": {h.keyspace}, "owner": {theOther}, "name": {name}})
		if g.role, g.path = "operator", "/keys/new"; g.status != http.StatusUnprocessableEntity {
			t.Errorf("a key named %.20q: %d", name, g.status)
		}
		h.harmless(g)
	}

	// Every form that somebody else's site sends is refused, signed in or not.
	t.Run("cross-site", func(t *testing.T) {
		h := h.in(t)
		h.unchanged("forms of other sites", func() {
			for _, p := range h.posts {
				for _, path := range h.filled(p)[:1] {
					for _, from := range [][]string{
						{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, {"Sec-Fetch-Site", "", "Origin", "null"},
						{"Sec-Fetch-Site", "cross-site", "Origin", h.url},
					} {
						if g := h.do(operator, "POST", path, url.Values{"reason": {"x"}}, from...); g.status != http.StatusForbidden {
							t.Errorf("POST %s with %v: %d", path, from, g.status)
						}
					}
				}
			}
		})
	})

	// The manager of one owner sees nothing of another's, whatever they ask for.
	t.Run("manager", func(t *testing.T) {
		h := h.in(t)
		manager := h.as("manager")
		h.unchanged("a manager with another owner's ids", func() {
			blind := func(g answered) {
				h.harmless(g)
				body := g.body
				// What was asked for stands in forms that come back to it.
				for _, echo := range []string{g.path, url.QueryEscape(g.path), "keyspace=parcelbird&owner=" + theOther, theOther} {
					body = strings.ReplaceAll(strings.ReplaceAll(body, html.EscapeString(echo), ""), echo, "")
				}
				if i := strings.Index(body, "zebra"); i >= 0 {
					t.Errorf("a manager at %s reads of another owner: %q", g.path, body[max(0, i-120):min(len(body), i+40)])
				}
				for _, id := range h.theirs {
					if strings.Contains(body, id) && !strings.Contains(g.path, id) {
						t.Errorf("a manager at %s reads another owner's id %s", g.path, id)
					}
				}
			}
			for _, g := range h.crawl(manager, "manager") {
				blind(g)
			}
			for _, p := range pages {
				if strings.Contains(p.path, "zebra") || slices.ContainsFunc(h.theirs, func(id string) bool { return strings.Contains(p.path, id) }) {
					g := h.do(manager, "GET", p.path, nil)
					g.role = "manager"
					blind(g)
				}
			}
			for _, f := range all {
				text := f.action + f.values.Encode()
				if !strings.Contains(text, "zebra") && !slices.ContainsFunc(h.theirs, func(id string) bool { return strings.Contains(text, id) }) {
					continue
				}
				f.values.Set("once", "manager-"+fmt.Sprint(len(f.page)))
				g := h.do(manager, "POST", f.action, f.values)
				g.role, g.path = "manager", f.action
				if g.status < 400 && !elsewhere(f) {
					t.Errorf("a manager sends the form %s %s: %d to %q", f.action, f.values.Encode(), g.status, g.header.Get("Location"))
				}
				blind(g)
			}
		})
	})

	// An auditor changes nothing, by any form that an operator has.
	t.Run("auditor", func(t *testing.T) {
		h := h.in(t)
		auditor := h.as("auditor")
		h.unchanged("an auditor", func() {
			for _, g := range h.crawl(auditor, "auditor") {
				h.harmless(g)
				for _, f := range formsOf(g) {
					if f.button && !elsewhere(f) && strings.HasPrefix(f.action, "/keys/") {
						t.Errorf("an auditor at %s is offered the form %s", g.path, f.action)
					}
				}
			}
			for _, f := range all {
				if elsewhere(f) {
					continue
				}
				f.values.Set("once", "auditor-"+fmt.Sprint(len(f.page)))
				g := h.do(auditor, "POST", f.action, f.values)
				g.role, g.path = "auditor", f.action
				h.harmless(g)
			}
		})
	})

	// Nobody gets anything without a sign-in, and no redirect leads elsewhere.
	t.Run("stranger", func(t *testing.T) {
		h := h.in(t)
		c := h.stranger(t)
		h.unchanged("a stranger", func() {
			for _, p := range pages {
				if strings.HasPrefix(p.path, "/signin") || strings.HasPrefix(p.path, "/claim") || strings.HasPrefix(p.path, "/favicon") {
					continue
				}
				if g := h.do(c, "GET", p.path, nil); g.status != http.StatusSeeOther && g.status != http.StatusFound && g.status < 400 {
					t.Errorf("a stranger at %s: %d", p.path, g.status)
				} else if strings.Contains(strings.ReplaceAll(g.body, html.EscapeString(p.path), ""), "zebra") && !strings.Contains(p.path, "zebra") {
					t.Errorf("a stranger at %s reads %s", p.path, g.body)
				}
			}
			for _, f := range all {
				if g := h.do(c, "POST", f.action, f.values); g.status < 300 || g.status >= 500 {
					t.Errorf("a stranger sends %s: %d", f.action, g.status)
				}
			}
		})
		for _, to := range []string{"https://evil.example/", "//evil.example/", `/\evil.example`, "/\t/evil.example", "javascript:alert(1)"} {
			if g := h.do(c, "GET", "/signin?to="+url.QueryEscape(to), nil); strings.Contains(g.body, "evil") || strings.Contains(g.body, "javascript:") {
				t.Errorf("?to=%s stands in the page", to)
			}
			for path, form := range map[string]url.Values{
				"/signin": {"credential": {h.roles["auditor"]}, "to": {to}}, "/theme": {"theme": {"dark"}, "to": {to}}, "/keys/revoke": {"back": {to}},
			} {
				if at := h.do(operator, "POST", path, form).header.Get("Location"); at != "" && at != "/" && !strings.HasPrefix(at, "/?done=") {
					t.Errorf("POST %s goes on to %q", path, at)
				}
				operator = h.as("operator")
			}
		}
	})

	t.Run("sessions", func(t *testing.T) { h.in(t).sessions() })
	for what, secret := range h.secrets {
		if strings.Contains(h.process.Output(), secret) {
			t.Errorf("the program's log has %s", what)
		}
	}

	// Last, since it holds up all who come from this machine.
	t.Run("throttle", func(t *testing.T) {
		h := h.in(t)
		c := h.stranger(t)
		for i := range 30 {
			g := h.do(c, "POST", "/signin", url.Values{"credential": {"klr_wrong"}})
			if g.status == http.StatusTooManyRequests {
				if i < 5 || g.header.Get("Retry-After") == "" {
					t.Errorf("after %d wrong ones, Retry-After %q", i, g.header.Get("Retry-After"))
				}
				return
			}
			if g.status != http.StatusUnauthorized {
				t.Fatalf("a wrong root key: %d", g.status)
			}
		}
		t.Error("30 wrong root keys in a row are heard")
	})
	var log struct {
		Events []struct{ Data struct{ Reason string } }
	}
	h.call("GET", "/v1/audit/events?type=signin.failed", nil, &log)
	if len(log.Events) < 5 || !strings.Contains(log.Events[0].Data.Reason, "no root key") {
		t.Errorf("of the wrong sign-ins the log has %+v", log.Events)
	}
}

// elsewhere says whether a form is about who is signed in, not about the ledger.
func elsewhere(f sweptForm) bool {
	return slices.Contains([]string{"/signout", "/theme", "/signin", "/sessions/end"}, f.action)
}

func (h *harm) in(t *testing.T) *harm {
	other := *h
	s := *h.site
	s.t = t
	other.site, other.t = &s, t
	return &other
}

// sessions end as they must.
func (h *harm) sessions() {
	t := h.t
	in := func(c *http.Client) bool { return h.do(c, "GET", "/keys", nil).status == http.StatusOK }
	token := func(c *http.Client) string {
		u, _ := url.Parse(h.url)
		return c.Jar.Cookies(u)[0].Value
	}
	// A sign-in makes a new token, and the one before is worth nothing.
	c := h.as("auditor")
	before := token(c)
	h.do(c, "POST", "/signin", url.Values{"credential": {h.roles["auditor"]}})
	if token(c) == before {
		t.Error("the token is the same after another sign-in")
	}
	stale := h.stranger(t)
	u, _ := url.Parse(h.url)
	stale.Jar.SetCookies(u, []*http.Cookie{{Name: "keyledger_session", Value: before}})
	if in(stale) {
		t.Error("the token before a sign-in works on")
	}
	// A token that was put into the browser by somebody else is not taken over.
	fixed := h.stranger(t)
	fixed.Jar.SetCookies(u, []*http.Cookie{{Name: "keyledger_session", Value: strings.Repeat("A", 52)}})
	h.do(fixed, "POST", "/signin", url.Values{"credential": {h.roles["auditor"]}})
	if token(fixed) == strings.Repeat("A", 52) || !in(fixed) {
		t.Error("a token that somebody else chose was taken")
	}
	// Signing out ends it wherever it is used.
	twin := h.stranger(t)
	twin.Jar.SetCookies(u, []*http.Cookie{{Name: "keyledger_session", Value: token(c)}})
	if !in(twin) {
		t.Fatal("the twin is not signed in")
	}
	if g := h.do(c, "POST", "/signout", url.Values{}); !strings.Contains(g.header.Get("Clear-Site-Data"), "storage") {
		t.Error("signing out leaves what the browser keeps")
	}
	if in(twin) || in(c) {
		t.Error("a session goes on after the sign-out")
	}

	ids := func(body string) []string {
		var all []string
		for _, m := range regexp.MustCompile(`name="id" value="([0-9a-f]{64})"`).FindAllStringSubmatch(body, -1) {
			all = append(all, m[1])
		}
		return all
	}
	manager, operator := h.as("manager"), h.as("operator")
	own := ids(h.do(manager, "GET", "/sessions", nil).body)
	everybody := ids(h.do(operator, "GET", "/sessions", nil).body)
	if len(own) == 0 || len(everybody) <= len(own) {
		t.Fatalf("a manager sees %d sessions, an operator %d", len(own), len(everybody))
	}
	for _, id := range everybody {
		if !slices.Contains(own, id) {
			if g := h.do(manager, "POST", "/sessions/end", url.Values{"id": {id}}); g.status != http.StatusNotFound {
				t.Errorf("a manager ends somebody else's session: %d", g.status)
			}
		}
	}
	h.do(manager, "POST", "/sessions/end", url.Values{"all": {"others"}})
	if !in(operator) {
		t.Error("a manager ended an operator's session")
	}
	for _, id := range own {
		h.do(operator, "POST", "/sessions/end", url.Values{"id": {id}})
	}
	if in(manager) || !in(operator) {
		t.Error("an operator cannot end a manager's session")
	}

	// A revoked root key ends its sessions with their next request.
	var k struct {
		Key    struct{ ID string }
		Secret string
	}
	h.call("POST", "/v1/root-keys", map[string]any{"name": "leaves", "role": "auditor"}, &k)
	h.roles["leaver"] = k.Secret
	leaver := h.as("leaver")
	if !in(leaver) {
		t.Fatal("not signed in")
	}
	h.call("POST", "/v1/keys/"+k.Key.ID+"/revoke", map[string]any{"reason": "left"}, nil)
	if in(leaver) {
		t.Error("a session goes on after its root key was revoked")
	}
}

// In a browser: a secret is on the one page and nowhere after, names run nothing, and no
// other site can send a form or show a page.
func TestBrowserKeepsNothing(t *testing.T) {
	h := newHarm(t)
	b := h.tab(t, "light", 1440)
	b.refused.Store(true)
	b.signIn(h.root)
	b.open("/keys/new?keyspace=parcelbird&owner=acme")
	b.fill("#name", hostileNames[0])
	b.click("#create .primary")
	secret := b.text("#secret")
	kept := func(when string) {
		t.Helper()
		if n := eval[int](b, `localStorage.length + sessionStorage.length`); n != 0 {
			t.Errorf("%s: the browser's storage has %d entries", when, n)
		}
		if n := eval[int](b, `indexedDB.databases().then(d => d.length)`); n != 0 {
			t.Errorf("%s: there are %d databases", when, n)
		}
		if n := eval[int](b, `caches.keys().then(k => k.length)`); n != 0 {
			t.Errorf("%s: there are %d caches", when, n)
		}
		if c := eval[string](b, `document.cookie`); c != "" {
			t.Errorf("%s: scripts see the cookie %q", when, c)
		}
		text, err := json.Marshal(run(b, chromedp.NavigationEntries()))
		if err != nil {
			t.Fatal(err)
		}
		for what, s := range h.secrets {
			if strings.Contains(string(text), s) {
				t.Errorf("%s: the history has %s", when, what)
			}
		}
		if strings.Contains(string(text), secret) {
			t.Errorf("%s: the history has the new secret", when)
		}
	}
	kept("on the page with the secret")
	b.click("#saved button")
	kept("after it")
	// The page was an answer to a form and is kept by nobody: going back, the browser asks
	// whether to send that again.
	before := b.location()
	eval[bool](b, `setTimeout(() => history.back()) > 0`) // the answer comes before the page goes
	for deadline := time.Now().Add(patience); b.location() == before && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond) // an error page signals nothing
	}
	if now := b.location(); now == before {
		t.Error("going back leads nowhere")
	}
	if strings.Contains(run(b, chromedp.OuterHTML(chromedp.CSS("html"))), secret) {
		t.Errorf("back at %s the secret is shown", b.location())
	}
	if h.process.Output() == "" || strings.Contains(h.process.Output(), secret) {
		t.Error("the program's log has the new secret")
	}

	// Names do nothing on any page of the menu, nor on the pages of what has them.
	places := []string{"/keys?keyspace=parcelbird&owner=" + theOther, "/sessions"}
	for _, id := range h.theirs[:3] {
		places = append(places, "/keys/"+id, "/keys/"+id+"/rotate", "/keys/"+id+"/delete")
	}
	b.open("/")
	places = append(places, eval[[]string](b, `[...document.querySelectorAll("nav.side a")].map(a => a.getAttribute("href"))`)...)
	for _, p := range places {
		b.open(p)
		if n := eval[int](b, `document.querySelectorAll("img[src=x], main script, [onerror], [onmouseover], [onclick]").length`); n != 0 {
			t.Errorf("%s: a name became part of the page", p)
		}
		kept(p)
	}

	// A form of another site, and of another port of this one.
	ids := h.theirs
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<title>evil</title><form method="post" action="%s/keys/%s/revoke"><input name="reason" value="x"><button id="send">Win a prize</button></form>`, h.url, ids[0])
	}))
	defer evil.Close()
	for _, at := range []string{evil.URL, strings.Replace(evil.URL, "127.0.0.1", "localhost", 1)} {
		h.unchanged("a form of "+at, func() {
			b.do(chromedp.Navigate(at))
			b.click("#send")
			if text := b.text("main"); !strings.Contains(text, "another site") {
				t.Errorf("a form of %s is answered with %q", at, text)
			}
		})
	}
}
