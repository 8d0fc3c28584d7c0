package console_test

import (
	"bytes"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/internal/testenv"
)

// logged is what the tests of the audit log look at: a key with a hostile name, its life,
// and one request of it, by a program whose name is a formula.
type logged struct {
	*site
	key     string
	secret  string
	stands  map[string]string // pages of its events, by type
	manager string            // of another owner
}

const hostileName = `<img src=x onerror=alert(1)>`

func newLogged(t *testing.T) *logged {
	t.Helper()
	l := &logged{site: newSite(t), stands: map[string]string{}}
	for _, owner := range []string{"acme", "other"} {
		l.call("PUT", "/v1/keyspaces/parcelbird/owners/"+owner, map[string]any{"name": "=cmd() " + owner, "plan": "large"}, nil)
	}
	var made struct {
		Key    struct{ ID string }
		Secret string
	}
	l.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": "acme", "name": hostileName, "scopes": []string{"parcels:read"}}, &made)
	l.key, l.secret = made.Key.ID, made.Secret
	l.call("PATCH", "/v1/keys/"+l.key, map[string]any{"name": "=cmd()", "plan": "basic"}, nil)
	r, err := http.NewRequestWithContext(t.Context(), "GET", l.gate+"/parcelbird/v1/parcels/7", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+l.secret)
	r.Header.Set("User-Agent", "=cmd|' /C calc'!A0")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("the request of the key: %s", resp.Status)
	}
	l.call("POST", "/v1/keys/"+l.key+"/revoke", map[string]any{"reason": "leaked"}, nil)
	var root struct{ Secret string }
	l.call("POST", "/v1/root-keys", map[string]any{"name": "other's manager", "role": "manager", "keyspace": "parcelbird", "owner": "other"}, &root)
	l.manager = root.Secret
	var list struct {
		Events []struct {
			Type, Stream   string
			Sequence, Line int
		}
	}
	auditSoon(t, func() bool {
		l.call("GET", "/v1/audit/events?key="+l.key, nil, &list)
		for _, e := range list.Events {
			l.stands[e.Type] = fmt.Sprintf("/audit/%s/%d?line=%d", strings.ToLower(e.Stream), e.Sequence, e.Line)
		}
		return l.stands["key.used"] != ""
	})
	return l
}

func TestAudit(t *testing.T) {
	l := newLogged(t)
	t.Run("log", l.testAuditLog)
	t.Run("another", l.testAuditOfAnother)
	t.Run("export", l.testAuditExport)
	t.Run("followed", l.testAuditFollowed)
	t.Run("deleted", l.testDeletedKey)
}

// The log is read, searched, followed and exported, and an event is looked at with its
// proof, whatever names it holds.
func (l *logged) testAuditLog(t *testing.T) {
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := l.tab(t, look.theme, look.width)
			b.signIn(l.root)
			b.open("/audit")
			b.wait("#events tr")
			if s := b.text("#events"); !strings.Contains(s, "revoked: leaked") || !strings.Contains(s, hostileName) || strings.Contains(s, "The log was read") {
				t.Errorf("the log is %q", s)
			}
			b.check("audit")

			b.fill("input[name=q]", "revoked acme")
			b.click(".auditfilters .primary")
			if n := eval[int](b, `document.querySelectorAll("#events tr").length`); n != 1 || !strings.Contains(b.text("#q-help"), "owner acme") {
				t.Errorf("%d events are found, understood as %s", n, b.text("#q-help"))
			}
			b.check("audit-search")
			b.open("/audit?what=backup.restored")
			b.wait(".empty")
			b.check("audit-empty")
			b.open("/audit?span=custom&from=yesterday")
			b.wait(".note.wrong")
			b.check("audit-wrong")

			b.open(l.stands["key.updated"])
			b.wait(".verified")
			if s := b.text(".before"); !strings.Contains(s, hostileName) || !strings.Contains(s, "=cmd()") || !strings.Contains(s, "plan") {
				t.Errorf("what it changed is %q", s)
			}
			if s := b.text(".around"); !strings.Contains(s, "Before it: Key created") || !strings.Contains(s, "After it: Key revoked") {
				t.Errorf("around it is %q", s)
			}
			if s := b.text(".checks"); !strings.Contains(s, "byte for byte") {
				t.Errorf("checked is %q", s)
			}
			l.offline(t, b)
			b.check("audit-event")
			b.open(l.stands["key.used"])
			b.wait(".verified")
			if s := b.text("#main"); !strings.Contains(s, "/v1/parcels/7") || !strings.Contains(s, "127.0.0.1") {
				t.Errorf("the use is %q", s)
			}
			b.check("audit-use")
		})
	}
}

// offline saves the proof of the event that a page shows, and checks it with the program
// and the log's key alone, as the page says; a tampered one does not pass.
func (l *logged) offline(t *testing.T, b *tab) {
	t.Helper()
	var log struct{ Key string }
	l.call("GET", "/v1/audit/log/key", nil, &log)
	saved := eval[[]string](b, `fetch(document.querySelector("a[download]").href).then(async r => [r.headers.get("Content-Disposition"), await r.text()])`)
	_, name, _ := strings.Cut(saved[0], `filename="`)
	name = strings.TrimSuffix(name, `"`)
	if s := b.text("#proof-then"); !strings.Contains(s, "keyledger audit verify "+name+" --log-key log.key") {
		t.Errorf("the file is %s, and the page says %q", name, s)
	}
	dir, program := t.TempDir(), testenv.Build(t)
	for file, text := range map[string]string{"log.key": log.Key, name: saved[1], "tampered-" + name: strings.Replace(saved[1], "\nindex ", "\nindex 1", 1)} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]string{name: "PASS  " + name, "tampered-" + name: "FAIL  tampered-" + name} {
		cmd := exec.CommandContext(t.Context(), program, "audit", "verify", file, "--log-key", "log.key")
		cmd.Dir, cmd.Env = dir, []string{"HOME=" + dir, "KEYLEDGER_URL=http://127.0.0.1:1"}
		out, err := cmd.CombinedOutput()
		if !strings.HasPrefix(string(out), want+"\n") || (err == nil) != (file == name) || file == name && !strings.Contains(string(out), l.key) {
			t.Errorf("%s: %v %s", file, err, out)
		}
	}
}

// What happens while the log is followed appears on top; what happens during a pause
// comes after it.
func (l *logged) testAuditFollowed(t *testing.T) {
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := l.tab(t, look.theme, look.width)
			b.signIn(l.root)
			b.open("/audit?what=changes&q=other")
			b.press("#follow")
			b.wait("#follow[aria-pressed=true]")
			var made struct{ Key struct{ ID string } }
			l.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": "other", "name": "=cmd() " + hostileName}, &made)
			b.wait(`tr.new a[href="/keys/` + made.Key.ID + `"]`)
			if s := b.text("#events tr.new bdi"); !strings.Contains(s, hostileName) {
				t.Errorf("what came is %q", s)
			}
			b.check("audit-live")
			b.press("#follow")
			b.wait("#follow[aria-pressed=false]")
			l.call("POST", "/v1/keys/"+made.Key.ID+"/revoke", map[string]any{"reason": "during the pause " + look.theme}, nil)
			b.press("#follow")
			auditSoon(t, func() bool { return strings.Contains(b.text("#events tr.new bdi"), "during the pause "+look.theme) })
			if n := eval[int](b, `document.querySelectorAll("#events tr.new").length`); n != 2 {
				t.Errorf("%d events came", n)
			}
		})
	}
}

// file answers what the export form downloads.
func (b *tab) file(format string) []byte {
	b.t.Helper()
	s := eval[string](b, `(async () => {
		const f = new FormData(document.getElementById("export"));
		f.set("format", "`+format+`");
		const r = await fetch("/audit/export/file", { method: "POST", body: new URLSearchParams(f) });
		if (!r.headers.get("Content-Disposition")?.startsWith("attachment")) return "";
		const bytes = new Uint8Array(await r.arrayBuffer());
		let s = "";
		for (const x of bytes) s += String.fromCharCode(x);
		return btoa(s);
	})()`)
	file, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(file) == 0 {
		b.t.Fatalf("export as %s: %d bytes, %v", format, len(file), err)
	}
	return file
}

// An export is what was asked for: a table without formulas, and a bundle that proves
// itself.
func (l *logged) testAuditExport(t *testing.T) {
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := l.tab(t, look.theme, look.width)
			b.signIn(l.root)
			b.open("/audit?key=" + l.key)
			b.click(`.head a[href^="/audit/export"]`)
			b.check("audit-export")
			rows, err := csv.NewReader(bytes.NewReader(b.file("csv"))).ReadAll()
			if err != nil || len(rows) < 4 {
				t.Fatalf("%d rows, %v", len(rows), err)
			}
			hostile := false
			for _, row := range rows[1:] {
				for _, cell := range row {
					if strings.ContainsAny(cell[:min(len(cell), 1)], "=+-@\t\r") {
						t.Errorf("a cell is a formula: %q", cell)
					}
					hostile = hostile || strings.HasPrefix(cell, "'=cmd|")
				}
			}
			if !hostile {
				t.Error("no cell would be a formula")
			}
			if lines := bytes.Count(b.file("ndjson"), []byte("\n")); lines != len(rows)-1 {
				t.Errorf("%d lines of JSON, %d rows", lines, len(rows)-1)
			}
			var batch []struct{ SpecVersion, Type string }
			if err := json.Unmarshal(b.file("cloudevents"), &batch); err != nil || len(batch) != len(rows)-1 || batch[0].SpecVersion != "1.0" || batch[0].Type != rows[1][1] {
				t.Errorf("as CloudEvents %v, %v", batch, err)
			}
			var log struct{ Key string }
			l.call("GET", "/v1/audit/log/key", nil, &log)
			key, err := note.NewVerifier(log.Key)
			if err != nil {
				t.Fatal(err)
			}
			report, err := bundle.Verify(bytes.NewReader(b.file("bundle")), bundle.Options{Keys: []note.Verifier{key}})
			if err != nil || !report.Pass {
				t.Errorf("the bundle does not prove itself: %+v, %v", report, err)
			}
			auditSoon(t, func() bool {
				return eval[bool](b, `fetch("/audit/export/progress?once=" + document.getElementById("export").elements.once.value).then(r => r.json()).then(p => p.whole && p.done > 0 && p.done === p.total)`)
			})
		})
	}
}

// A manager of another owner sees nothing of this one's, asks for it in vain, and is
// offered no proof.
func (l *logged) testAuditOfAnother(t *testing.T) {
	b := l.tab(t, "light", 1440)
	b.signIn(l.manager)
	b.open("/audit?what=all")
	b.wait("#events tr")
	if s := b.text("#main"); strings.Contains(s, "acme") || strings.Contains(s, l.key[len(l.key)-6:]) {
		t.Errorf("a stranger sees %s", s)
	}
	b.check("audit-manager")
	// Refusals are asked for without the browser, which complains of each.
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	who := &http.Client{Jar: jar}
	page := func(resp *http.Response, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	if s := page(who.PostForm(l.url+"/signin", url.Values{"credential": {l.manager}})); !strings.Contains(s, "manager of other") {
		t.Fatalf("signed in: %s", s)
	}
	for _, path := range []string{"/audit?owner=acme", "/audit?key=" + l.key, "/audit?q=owner:acme", "/audit?ip=127.0.0.1", l.stands["key.created"], l.stands["key.used"], strings.Replace(l.stands["key.created"], "?", "/proof?", 1)} {
		if s := page(who.Get(l.url + path)); strings.Contains(s, "onerror") || strings.Contains(s, "leaked") || strings.Contains(s, `<td class="when"`) || !strings.Contains(s, "manager of other") {
			t.Errorf("%s shows a stranger %s", path, s)
		}
	}
	b.open("/audit/export")
	b.wait("input[value=bundle]:disabled")
	if s := string(b.file("csv")); strings.Contains(s, "acme") || strings.Contains(s, l.key) {
		t.Errorf("a stranger exports %s", s)
	}
	b.check("audit-export-manager")
}

// The page of a deleted key says when it was deleted and by whom, and leads to what
// happened to it; to a stranger there never was one.
func (l *logged) testDeletedKey(t *testing.T) {
	l.call("DELETE", "/v1/keys/"+l.key, nil, nil)
	var list struct {
		Events []struct {
			Time     string
			Sequence int
			Actor    struct{ ID string }
		}
	}
	l.call("GET", "/v1/audit/events?type=key.deleted&key="+l.key, nil, &list)
	if len(list.Events) != 1 {
		t.Fatalf("the log has %+v", list)
	}
	gone := list.Events[0]
	var root struct{ Secret string }
	l.call("POST", "/v1/root-keys", map[string]any{"name": "acme's manager", "role": "manager", "keyspace": "parcelbird", "owner": "acme"}, &root)
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := l.tab(t, look.theme, look.width)
			b.refused.Store(true)
			b.signIn(map[string]string{"light": l.root, "dark": root.Secret}[look.theme])
			for _, page := range []string{"", "/edit", "/revoke"} {
				b.open("/keys/" + l.key + page)
				who := map[string]string{"light": "you", "dark": "root key"}[look.theme]
				if s := b.text("#main"); !strings.Contains(s, "=cmd() was deleted") || !strings.Contains(s, who) || !strings.Contains(s, "root_key:"+gone.Actor.ID) ||
					!strings.Contains(s, "acme in parcelbird") || !strings.Contains(s, strings.NewReplacer("T", " ", "Z", " UTC").Replace(gone.Time)) {
					t.Errorf("%s of the deleted key says %q", page, s)
				}
			}
			b.check("key-deleted")
			b.click(fmt.Sprintf(`#main a[href="/audit/ledger/%d"]`, gone.Sequence))
			b.wait(".eventtitle")
			b.click(`#main a[href="/keys/` + l.key + `"]`)
			b.click(`#main a[href="/audit?key=` + l.key + `"]`)
			b.wait("#events tr")
			if s := b.text("#events"); !strings.Contains(s, "deleted") || !strings.Contains(s, "revoked: leaked") {
				t.Errorf("what happened to it is %q", s)
			}
		})
	}
	b := l.tab(t, "light", 1440)
	b.refused.Store(true)
	b.signIn(l.manager)
	b.open("/keys/" + l.key)
	mine := b.text("#main")
	b.open("/keys/key_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d")
	if nobodys := b.text("#main"); withoutRequest(mine) != withoutRequest(nobodys) || strings.Contains(mine, "was deleted") {
		t.Errorf("a stranger sees %q, and of no key %q", mine, nobodys)
	}
}

// withoutRequest is a page of a refusal without the id of the request.
func withoutRequest(page string) string {
	return regexp.MustCompile(`req_\S+`).ReplaceAllString(page, "")
}

// auditSoon waits for what nothing signals.
func auditSoon(t *testing.T, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
	}
}
