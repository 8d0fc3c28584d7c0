package console_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// write writes into a field as a person does, so that scripts hear of it.
func (b *tab) write(selector, text string) {
	b.t.Helper()
	b.fill(selector, text)
	eval[bool](b, fmt.Sprintf(`document.querySelector(%q).dispatchEvent(new Event("input", {bubbles: true}))`, selector))
}

// Every keyspace that comes with the program can be read, and its refusals look as
// the API answers them.
func TestKeyspacePages(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme", "plan": "basic"}, nil)
	s.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": "acme", "name": "a"}, nil)
	documents, err := filepath.Glob("../keyspaces/*.yaml")
	if err != nil || len(documents) < 5 {
		t.Fatalf("%v, %v", documents, err)
	}
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.signIn(s.root)
			b.open("/keyspaces")
			b.check("keyspaces")
			if n := eval[int](b, `document.querySelectorAll(".spaces > li").length`); n != len(documents) {
				t.Errorf("%d keyspaces are listed, want %d", n, len(documents))
			}
			for _, d := range documents {
				id := strings.TrimSuffix(filepath.Base(d), ".yaml")
				b.open("/keyspaces/" + id)
				b.check("keyspace-" + id)
				var answers struct {
					Answers []struct {
						Code   string
						Status int
					}
				}
				s.call("GET", "/v1/keyspaces/"+id+"/answers", nil, &answers)
				page := eval[string](b, `document.querySelector("#refusals").innerText`)
				for _, a := range answers.Answers {
					if !strings.Contains(page, a.Code) || !strings.Contains(page, fmt.Sprintf("HTTP/1.1 %d ", a.Status)) {
						t.Errorf("%s: the page does not show %s with %d", id, a.Code, a.Status)
					}
				}
			}
		})
	}
}

// A document is written with its problems beside its lines, its change is looked
// at and recorded, and two editors do not overwrite each other.
func TestEditKeyspace(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme", "plan": "basic"}, nil)
	s.call("POST", "/v1/keys", map[string]any{"keyspace": "parcelbird", "owner": "acme", "name": "a"}, nil)
	version := func() (k struct{ Version int }) {
		s.call("GET", "/v1/keyspaces/parcelbird", nil, &k)
		return k
	}
	for i, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.signIn(s.root)
			begun := version().Version
			b.refused.Store(true) // what is not valid or late is answered with 4xx
			b.open("/keyspaces/parcelbird/edit")
			b.wait(`#editing[data-checked]`)
			b.check("keyspace-edit")
			text := eval[string](b, `document.getElementById("document").value`)

			b.write("#document", strings.Replace(text, "about:", "abuot:", 1))
			b.wait(`.problems li[data-line="2"]`)
			if beside := b.text(`.beside span[data-line="2"]`); !strings.Contains(beside, "abuot") {
				t.Errorf("beside line 2: %q", beside)
			}
			b.check("keyspace-edit-problem")
			b.click("#editing .primary") // the same without a script
			b.wait(`.problems li[data-line="2"]`)

			smaller := strings.Replace(text, fmt.Sprintf("minute: %d}", 20-i*5), fmt.Sprintf("minute: %d}", 15-i*5), 1)
			smaller = strings.NewReplacer("message: Slow down", "message: Slower "+look.theme, "message: Slower light", "message: Slower "+look.theme).Replace(smaller)
			if smaller == text {
				t.Fatal("nothing was changed in\n" + text)
			}
			b.write("#document", smaller)
			b.wait(".effects .narrows")
			b.check("keyspace-edit-valid")
			b.click("#editing .primary")
			b.wait(".confirm .primary")
			if got := b.text(".diff ins"); got == "" {
				t.Error("no difference is shown")
			}
			if version().Version != begun {
				t.Fatal("a preview recorded something")
			}
			b.check("keyspace-confirm")

			// Meanwhile somebody else records another document.
			other := strings.Replace(text, "Parcelbird tracking API", "Parcelbird of "+look.theme, 1)
			s.configure("parcelbird", other)
			b.click(".confirm .primary")
			b.wait(".note.warn")
			b.check("keyspace-conflict")
			if kept := eval[string](b, `document.querySelector("textarea[name=document]").value`); !strings.Contains(kept, "Slower "+look.theme) {
				t.Error("the text of the one who came late is lost")
			}
			b.click(`.confirm button[value=edit]`)
			if kept := eval[string](b, `document.getElementById("document").value`); !strings.Contains(kept, "Slower "+look.theme) {
				t.Error("the text of the one who came late is lost in the editor")
			}
			b.click("#editing .primary")
			b.click(".confirm .primary")
			b.wait(".done")
			if at := version().Version; at != begun+2 {
				t.Errorf("version %d, want %d", at, begun+2)
			}
			b.open(fmt.Sprintf("/keyspaces/parcelbird/versions/%d", begun+2))
			b.check("keyspace-version")
			if got := b.text(".diff ins"); got == "" {
				t.Error("the version shows no difference")
			}

			// A new one begins with a document that is valid as it stands.
			b.open("/keyspaces/new")
			b.wait(`#editing[data-checked]`)
			b.check("keyspace-new")
			b.write("#document", strings.Replace(eval[string](b, `document.getElementById("document").value`), "my-api", "mine-"+look.theme, 1))
			b.do(chromedp.WaitReady(chromedp.CSS("#checked .wires")))
			b.click("#editing .primary")
			b.click(".confirm .primary")
			if at := b.location(); !strings.HasPrefix(at, "/keyspaces/mine-"+look.theme) {
				t.Errorf("recorded, and at %s", at)
			}
		})
	}
	t.Run("others", func(t *testing.T) {
		for _, role := range []map[string]any{{"name": "m", "role": "manager", "keyspace": "parcelbird", "owner": "acme"}, {"name": "a", "role": "auditor"}} {
			var key struct{ Secret string }
			s.call("POST", "/v1/root-keys", role, &key)
			b := s.tab(t, "light", 1440)
			b.signIn(key.Secret)
			b.open("/keyspaces/parcelbird")
			if eval[bool](b, `document.querySelector('a[href$="/edit"]') !== null`) {
				t.Errorf("%s is offered to edit", role["role"])
			}
			b.refused.Store(true)
			b.open("/keyspaces/parcelbird/edit")
			if title := b.text("h1"); title != "Not for this sign-in" {
				t.Errorf("%s: %s", role["role"], title)
			}
		}
	})
}

// configure records a document, in YAML.
func (s *site) configure(id, document string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPut, s.url+"/v1/keyspaces/"+id, strings.NewReader(document))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.root)
	r.Header.Set("Content-Type", "application/yaml")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("configure %s: %s", id, resp.Status)
	}
}
