package console

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/console/chart"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

//go:embed templates
var templateFiles embed.FS

// layout is what every page has around it.
type layout struct {
	Title   string
	Page    string // its template, also a class of its body
	Of      string // of a page that a part follows: the part's template, whose style counts
	Me      api.Me
	Theme   string
	Path    string
	Menu    []menuItem
	Done    string // what the form before did
	Version string
	Alone   bool // without the menu: nothing else is to be done here
	Data    any
}

type menuItem struct {
	Name, To, Icon string
	Here           bool
}

// menu is what somebody may see.
func (v *visit) menu() []menuItem {
	all := []struct {
		name, to, icon string
		action         domain.Action
	}{
		{"Overview", "/", "home", domain.KeysRead},
		{"Keys", "/keys", "key", domain.KeysRead},
		{"Owners", "/owners", "people", domain.OwnersRead},
		{"Audit log", "/audit", "log", domain.AuditRead},
		{"Time machine", "/time", "clock", domain.AuditRead},
		{"Proofs", "/proofs", "seal", domain.LogRead},
		{"Alerts", "/alerts", "bell", domain.KeysRead},
		{"Keyspaces", "/keyspaces", "document", domain.KeyspacesRead},
		{"Gateways", "/gateways", "gate", domain.Configure},
		{"Subscribers", "/subscribers", "broadcast", domain.Operate},
		{"Webhooks", "/webhooks", "send", domain.WebhooksRead},
		{"System", "/system", "pulse", domain.Operate},
	}
	var items []menuItem
	for _, m := range all {
		if v.may(m.action) && v.has(m.to) {
			here := v.r.URL.Path == m.to || m.to != "/" && strings.HasPrefix(v.r.URL.Path, m.to+"/")
			items = append(items, menuItem{m.name, m.to, m.icon, here})
		}
	}
	return items
}

// has says whether there is a page at a path.
func (c *Console) has(path string) bool {
	_, pattern := c.mux.Handler(&http.Request{Method: http.MethodGet, URL: mustPath(path)})
	return pattern != "" && pattern != "GET /"
}

func (v *visit) may(action domain.Action) bool { return slices.Contains(v.me.Actions, action) }

// done are the messages after a form took effect, by the name that [visit.redirect]
// was given. They are fixed: a link cannot put words on a page.
var done = map[string]string{
	"revoked":        "The key is revoked.",
	"revoked-all":    "The keys are revoked.",
	"none-chosen":    "Choose keys first, with the boxes before their names.",
	"deleted":        "The key is deleted.",
	"changed":        "The change is recorded.",
	"grace-ended":    "The grace is over: the previous secret no longer works.",
	"sessions-ended": "The session is ended: its next page is the sign-in.",
	"signed-out":     "You are signed out.",

	"claim-withdrawn":    "The link opens nothing any more. Rotate the key to make another one.",
	"rules-saved":        "The rules are saved. They count within a second, for what was used before too.",
	"rules-gone":         "The rules of this place are removed: the more general ones count again.",
	"owner-saved":        "The owner is saved.",
	"subscriber-removed": "The subscriber is removed.",
	"webhook-enabled":    "The webhook is enabled: it is sent what it has missed, and what follows.",
	"webhook-removed":    "The webhook is removed: nothing more is sent to it.",
	"replaying":          "What was dead is being delivered again.",
	"configured":         "The document is recorded and in force.",
}

// show writes a page.
func (v *visit) show(name, title string, data any) error {
	return v.write(v.layout(name, title, data))
}

func (v *visit) layout(name, title string, data any) layout {
	l := layout{Title: title, Page: name, Me: v.me, Path: v.r.URL.RequestURI(), Version: v.Version, Done: done[v.r.URL.Query().Get("done")], Data: data}
	if v.session != nil {
		l.Theme = v.session.Theme
		l.Menu = v.menu()
	} else {
		l.Alone = true
	}
	return l
}

// alone writes a page that has no menu: nothing else is to be done on it. Secrets are
// shown on such pages alone.
func (v *visit) alone(name, title string, data any) error {
	return v.write(layout{Title: title, Page: name, Me: v.me, Path: v.r.URL.RequestURI(), Version: v.Version, Theme: v.session.Theme, Alone: true, Data: data})
}

func (c *Console) render(w http.ResponseWriter, l layout) error {
	t, err := templates(l.Page)
	if err != nil {
		return err
	}
	var b bytes.Buffer // a page that fails halfway is not begun
	if err := t.ExecuteTemplate(&b, "layout", l); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if l.Alone {
		w.Header().Set("Cache-Control", uncompressed)
	}
	_, err = b.WriteTo(w)
	return err
}

// fragment writes a template of a page's file alone: what a page fetches after itself.
func (v *visit) fragment(page, name string, data any) error {
	t, err := templates(page)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, data); err != nil {
		return err
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, err = b.WriteTo(v.w)
	return err
}

// later answers the page of a part that takes longer than a page may: the part follows
// the page, or comes with it when that is asked for with whole=1. Where it says false,
// the part is to be answered now.
func (v *visit) later(name, title string) (bool, error) {
	q := v.r.URL.Query()
	if q.Has("part") || q.Has("whole") {
		return false, nil
	}
	q.Set("whole", "1")
	l := v.layout("later", title, struct{ Part, Whole string }{v.r.URL.RequestURI(), v.r.URL.Path + "?" + q.Encode()})
	l.Of = name
	return true, v.write(l)
}

// part is [visit.fragment] for a script, which asks with part=1, and a page of its own
// for whoever has none. The block content is the page's own.
func (v *visit) part(page, block, title string, data any) error {
	if !v.r.URL.Query().Has("part") {
		return v.show(page, title, data)
	}
	if block == "content" {
		data = layout{Title: title, Page: page, Me: v.me, Path: v.r.URL.RequestURI(), Data: data}
	}
	return v.fragment(page, block, data)
}

func (v *visit) write(l layout) error { return v.render(v.w, l) }

// plainProblem answers where nothing is known of who asks.
func (c *Console) plainProblem(w http.ResponseWriter, r *http.Request, status int, detail string) {
	w.WriteHeader(status)
	p := &api.Problem{Status: status, Title: http.StatusText(status), Detail: detail}
	if err := c.render(w, layout{Title: titleOf(p), Page: "problem", Alone: true, Path: r.URL.Path, Data: p}); err != nil {
		c.Log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
	}
}

// templates returns one page's templates: its own file on top of what all share.
// They are parsed once.
func templates(page string) (*template.Template, error) {
	parsed.mu.Lock()
	defer parsed.mu.Unlock()
	if t := parsed.pages[page]; t != nil {
		return t, nil
	}
	t, err := template.New("").Funcs(functions).Funcs(operating).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html", "templates/"+page+".html")
	if err != nil {
		return nil, err
	}
	parsed.pages[page] = t
	return t, nil
}

var parsed = struct {
	mu    sync.Mutex // guards pages
	pages map[string]*template.Template
}{pages: map[string]*template.Template{}}

var functions = template.FuncMap{
	"asset":   asset,
	"scripts": scripts,
	"ago":     func(t events.Time) template.HTML { return moment(t, time.Now()) },
	"count":   chart.Count,
	"micros": func(n int64) string {
		return fmt.Sprintf("%.2f", float64(n)/1e6)
	},
	"text": func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	},
	"join":  strings.Join,
	"lines": func(s []string) string { return strings.Join(s, "\n") },
	"dict":  dict,
	"list":  func(s ...string) []string { return s },
	"path": func(route string) string {
		_, path, _ := strings.Cut(route, " ")
		return path
	},
	"rates":   rateWords,
	"article": article,
	"fields":  changedFields,
	"next":    func(n int) int { return n + 1 },
	"grouped": func(n any) string {
		switch n := n.(type) {
		case *int:
			return grouped(int64(*n))
		case int:
			return grouped(int64(n))
		}
		return fmt.Sprint(n)
	},
	"words3": func() []string { return []string{"minute", "hour", "day"} },
	"float": func(x *float64) float64 {
		if x == nil {
			return 0
		}
		return *x
	},
	"refused": func(u usageLine) int64 { return u.Denied + u.RateLimited },
	"count64": func(n int) string { return chart.Count(int64(n)) },
	"share": func(part, whole int) int { // in percent
		return min(100*part/max(whole, 1), 100)
	},
	"deref": func(n *int64) int64 {
		if n == nil {
			return 0
		}
		return *n
	},
}

// dict gives a part of a page several values by name.
func dict(pairs ...any) (map[string]any, error) {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: %v is no name", pairs[i])
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// moment is a time in words, with the exact one in its tooltip.
func moment(t events.Time, now time.Time) template.HTML {
	if t == 0 {
		return ""
	}
	exact := t.Time().UTC()
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s UTC">%s</time>`,
		exact.Format("2006-01-02T15:04:05.000Z"), exact.Format("2006-01-02 15:04:05.000"), template.HTMLEscapeString(inWords(exact, now))))
}

// inWords is a time as people say it.
func inWords(t, now time.Time) string {
	d := now.Sub(t)
	before := d >= 0
	d = d.Abs()
	var s string
	switch {
	case d < 10*time.Second && before:
		return "just now"
	case d < time.Minute:
		s = plural(int(d.Seconds()), "second")
	case d < time.Hour:
		s = plural(int(d.Minutes()), "minute")
	case d < 24*time.Hour:
		s = plural(int(d.Hours()), "hour")
	case d < 60*24*time.Hour:
		s = plural(int(d.Hours()/24), "day")
	case t.Year() == now.Year():
		return t.Format("2 January")
	default:
		return t.Format("2 January 2006")
	}
	if before {
		return s + " ago"
	}
	return "in " + s
}

func plural(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}
