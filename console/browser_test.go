package console_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdp "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/keyledger/keyledger/internal/testenv"
)

// site is the program itself, as `keyledger dev` starts it, with its console.
type site struct {
	t    testing.TB
	url  string
	gate string // the gateway
	root string // an operator's root key
	axe  string

	process  *testenv.Process
	postgres string // its address
}

func newSite(t testing.TB, args ...string) *site {
	t.Helper()
	dir := t.TempDir()
	// PostgreSQL ends a moment after the program that is killed, and writes until then.
	t.Cleanup(func() {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(dir, "state", "postgres", "data", "postmaster.pid")); err != nil {
				return
			}
		}
	})
	where := filepath.Join(dir, "context.json")
	p := testenv.Start(t, []string{"KEYLEDGER_CONTEXT=" + where}, testenv.Build(t), append([]string{"dev", "--no-sample", "--state-dir", filepath.Join(dir, "state"),
		"--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0"}, args...)...)
	p.WaitOutput("Ctrl-C stops it.", time.Minute)
	var at struct {
		URL        string `json:"url"`
		GatewayURL string `json:"gateway_url"`
		TokenFile  string `json:"token_file"`
		Postgres   string `json:"postgres_url"`
	}
	b, err := os.ReadFile(where)
	if err == nil {
		err = json.Unmarshal(b, &at)
	}
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(at.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	return &site{t: t, url: at.URL, gate: at.GatewayURL, root: strings.TrimSpace(string(root)), axe: testenv.Axe(t), process: p, postgres: at.Postgres}
}

// call asks the API as an operator.
func (s *site) call(method, path string, in, out any) {
	s.t.Helper()
	s.callAs(s.root, method, path, in, out)
}

func (s *site) callAs(secret, method, path string, in, out any) {
	s.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			s.t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
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
	if resp.StatusCode >= 300 {
		s.t.Fatalf("%s %s: %s %s", method, path, resp.Status, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			s.t.Fatal(err)
		}
	}
}

// tab is one browser window of somebody.
type tab struct {
	*site
	ctx   context.Context
	look  string // theme and width, for names of pictures
	begun bool

	refused atomic.Bool // an answer that is an error is no complaint here
}

// Looks are how every flow is looked at.
var looks = []struct {
	theme string
	width int64
}{{"light", 1440}, {"dark", 390}}

// tab opens a window in a browser of its own. What goes wrong on its pages, in a
// script or against the content policy, fails the test.
func (s *site) tab(t testing.TB, theme string, width int64) *tab {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(testenv.Chromium(t)), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-gpu", true),
		chromedp.NoSandbox) // the pages are ours, and root and many containers may have no sandbox
	alloc, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	b := &tab{site: &site{t: t, url: s.url, gate: s.gate, root: s.root, axe: s.axe}, ctx: ctx, look: fmt.Sprintf("%s-%d", theme, width)}
	b.do(chromedp.EmulateViewport(width, 900))
	said := chromedp.Console(ctx)
	var reading sync.WaitGroup
	reading.Go(func() {
		for m, err := range said {
			if err != nil {
				return
			}
			if m.Type == chromedp.ConsoleException || m.Type == "error" {
				if b.refused.Load() && strings.HasPrefix(m.Text, "Failed to load resource: the server responded with a status of 4") {
					continue
				}
				t.Errorf("a page complains: %s", m.Text)
			}
		}
	})
	t.Cleanup(func() { cancel(); reading.Wait() })
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}},
	}); err != nil {
		t.Fatal(err)
	}
	return b
}

// patience is how long something on a page is waited for.
const patience = 20 * time.Second

// do runs steps; run one whose value counts.
func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	run(b, chromedp.Steps(steps...))
}

// passing says that a step met a page that was just being replaced by the next one.
func passing(err error) bool {
	return slices.ContainsFunc([]string{"No node with given id", "Cannot find context", "context was destroyed", "does not belong to the document"}, func(s string) bool {
		return strings.Contains(err.Error(), s)
	})
}

func run[T any](b *tab, a chromedp.Action[T]) T {
	b.t.Helper()
	ctx := b.ctx
	if b.begun {
		var over context.CancelFunc
		ctx, over = context.WithTimeout(ctx, patience)
		defer over()
	}
	b.begun = true // the first context is the browser's life
	v, err := chromedp.Run(ctx, a)
	for err != nil && passing(err) && ctx.Err() == nil {
		v, err = chromedp.Run(ctx, a)
	}
	if err != nil {
		at, _ := chromedp.Run(b.ctx, chromedp.Location())
		b.t.Fatalf("at %s: %v", at, err)
	}
	return v
}

// signIn signs in with a root key, typed as a person types it.
func (b *tab) signIn(secret string) {
	b.t.Helper()
	b.open("/signin")
	b.fill("#credential", secret)
	b.click("#signin button")
	b.wait("nav.side")
}

// open goes to a page of the console, and waits for what follows it.
func (b *tab) open(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.url + path))
	b.whole()
}

// behind goes to a page that nobody looks at yet, and lookedAt looks at it.
func (b *tab) behind(path string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, cdp.AddScriptToEvaluateOnNewDocument, cdp.AddScriptToEvaluateOnNewDocumentParams{
		Source: "let behind = true; Object.defineProperty(document, 'hidden', { get: () => behind })",
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.do(chromedp.Navigate(b.url + path))
}

func (b *tab) lookedAt() {
	b.t.Helper()
	eval[bool](b, "behind = false; document.dispatchEvent(new Event('visibilitychange'))")
}

// whole waits until what follows a page has come, or failed to.
func (b *tab) whole() {
	b.t.Helper()
	eval[bool](b, `new Promise((done) => { const look = () => document.querySelector("[data-fragment][aria-busy=true]") ? setTimeout(look, 10) : done(true); look() })`)
}

// click clicks what a selector finds, and waits for the page that follows.
func (b *tab) click(selector string) {
	b.t.Helper()
	ctx, over := context.WithTimeout(b.ctx, patience)
	defer over()
	if _, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible)); err != nil {
		b.t.Fatalf("click %s: %v", selector, err)
	}
	b.whole()
}

// press clicks what changes the page without leaving it.
func (b *tab) press(selector string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
}

func (b *tab) fill(selector, text string) {
	b.t.Helper()
	b.do(chromedp.SetValue(chromedp.CSS(selector), text))
}

// wait waits for something to be on the page.
func (b *tab) wait(selector string) {
	b.t.Helper()
	b.do(chromedp.WaitReady(chromedp.CSS(selector)))
}

// text is what a reader sees of an element.
func (b *tab) text(selector string) string {
	b.t.Helper()
	return strings.TrimSpace(run(b, chromedp.Text(chromedp.CSS(selector))))
}

// eval answers what a script on the page answers.
func eval[T any](b *tab, script string) T {
	b.t.Helper()
	return run(b, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
}

func (b *tab) location() string {
	b.t.Helper()
	return strings.TrimPrefix(run(b, chromedp.Location()), b.url)
}

// check holds the page against axe-core and the width of the window, and keeps a
// picture of it.
func (b *tab) check(name string) {
	b.t.Helper()
	if dir := pictures(b.t); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+"-"+b.look+".png"), run(b, chromedp.FullScreenshot(100)), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	if eval[bool](b, "document.documentElement.scrollWidth > innerWidth") {
		b.t.Errorf("%s (%s): the page is wider than its window", name, b.look)
	}
	type violation struct {
		ID    string `json:"id"`
		Help  string `json:"help"`
		Nodes []struct {
			HTML           string `json:"html"`
			FailureSummary string `json:"failureSummary"`
		} `json:"nodes"`
	}
	for _, v := range eval[[]violation](b, b.axe+`;axe.run({resultTypes: ["violations"]}).then(r => r.violations.map(v => ({id: v.id, help: v.help, nodes: v.nodes.map(n => ({html: n.html, failureSummary: n.failureSummary}))})))`) {
		for _, n := range v.Nodes {
			b.t.Errorf("%s (%s): %s: %s\n%s\n%s", name, b.look, v.ID, v.Help, n.HTML, n.FailureSummary)
		}
	}
}

// pictures is where pictures of pages are kept: what KEYLEDGER_PICTURES names, or
// nowhere.
func pictures(t testing.TB) string {
	dir := os.Getenv("KEYLEDGER_PICTURES")
	if dir == "" {
		return ""
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A key is created, shown once, rotated and revoked, by somebody who came by a link.
func TestLifeOfAKey(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme Ltd", "plan": "basic"}, nil)
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.open("/keys?keyspace=parcelbird&owner=acme")
			if at := b.location(); !strings.HasPrefix(at, "/signin?to=") {
				t.Fatalf("a stranger is at %s", at)
			}
			b.check("signin")
			b.fill("#credential", s.root)
			b.click("#signin button")
			if at := b.location(); at != "/keys?keyspace=parcelbird&owner=acme" {
				t.Fatalf("signed in, and at %s", at)
			}
			b.check("keys-empty")
			b.click(".head .primary")
			b.check("create")
			b.fill("#name", "Production "+look.theme)
			b.press(`input[name=scopes][value="parcels:read"]`)
			b.click("#create .primary")
			secret := b.text("#secret")
			if !strings.HasPrefix(secret, "pb_live_") || len(secret) != len("pb_live_")+40 {
				t.Fatalf("the secret shown is %q", secret)
			}
			b.check("reveal")
			var v struct{ Valid bool }
			s.call("POST", "/v1/verify", map[string]any{"keyspace": "parcelbird", "authorization": "Bearer " + secret}, &v)
			if !v.Valid {
				t.Fatal("the secret that was shown does not verify")
			}
			b.click("#saved button")
			key := strings.Trim(strings.TrimPrefix(b.location(), "/keys/"), "?")
			b.wait(".status.active")
			b.check("key")

			b.open("/keys/" + key + "/rotate")
			b.check("rotate")
			b.click("form.sheet .primary")
			if again := b.text("#secret"); again == secret {
				t.Fatal("the secret after the rotation is the one before")
			}
			b.click("#saved button")

			b.open("/keys/" + key + "/revoke")
			b.press(`input[name=reason][value="no longer needed"]`)
			b.check("revoke")
			b.click("form.sheet .danger")
			b.wait(".status.revoked")
			b.check("revoked")
		})
	}
}
