package conformance

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

const productsPage = "../../docs/products.md"

// compareProducts fails where docs/products.md is not what was seen; with
// -update it writes it.
func compareProducts(t *testing.T, all []*observations) {
	t.Helper()
	page := productsMarkdown(t, all)
	if *update {
		if err := os.WriteFile(productsPage, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	b, err := os.ReadFile(productsPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) == page {
		return
	}
	was, is := strings.Split(string(b), "\n"), strings.Split(page, "\n")
	for i := range min(len(was), len(is)) {
		if was[i] != is[i] {
			t.Errorf("docs/products.md is not what was seen, from line %d on (go test ./internal/conformance -update):\n%s\nseen:\n%s", i+1, was[i], is[i])
			return
		}
	}
	t.Errorf("docs/products.md has %d lines, seen were %d", len(was), len(is))
}

// glance are the rows of the first table that the document in force says, as it
// was read back through the API.
var glance = []struct {
	row  string
	cell func(*domain.Document) string
}{
	{"Credential", func(d *domain.Document) string {
		return code(strings.TrimSpace(d.Credential.Header + ": " + d.Credential.Scheme + " …"))
	}},
	{"Environments", func(d *domain.Document) string {
		return each(d.Format.Prefixes, func(environment, prefix string) string { return environment + " " + code(prefix) })
	}},
	{"After the prefix", func(d *domain.Document) string { return fmt.Sprintf("%d × %s", d.Format.Length, d.Format.Alphabet) }},
	{"Shown of a key", func(d *domain.Document) string {
		return strings.Join(texts(some(d.Display.First > 0, fmt.Sprintf("first %d", d.Display.First)), some(d.Display.Last > 0, fmt.Sprintf("last %d", d.Display.Last))), ", ")
	}},
	{"Belongs to", func(d *domain.Document) string { return d.Owner.Kind }},
	{"Bound to", func(d *domain.Document) string {
		return map[string]string{"none": "—", "optional": "one or more " + d.Resource.Kind + "s, or any", "required": "one or more " + d.Resource.Kind + "s"}[d.Resource.Mode]
	}},
	{"Scopes", func(d *domain.Document) string {
		if len(d.FixedScopes) > 0 {
			return "always " + code(strings.Join(d.FixedScopes, ", "))
		}
		return each(d.Scopes, func(name string, s domain.ScopeRules) string {
			return code(name) + map[bool]string{true: " (not yet)"}[s.Available != nil && !*s.Available]
		})
	}},
	{"Plans", func(d *domain.Document) string {
		return each(d.Plans, func(name string, p domain.Plan) string {
			return name + map[bool]string{true: " (default)"}[name == d.DefaultPlan] + ": " + strings.Join(texts(
				some(p.Access != nil && !*p.Access, "no access"),
				some(p.MaxKeys != nil, fmt.Sprintf("%d keys", deref(p.MaxKeys))),
				some(p.Access == nil && d.Limits.From == "plan", limits(p.Limits))), ", ")
		})
	}},
	{"Limits", func(d *domain.Document) string {
		if d.Limits.From == "key" {
			return "of the key, else " + limits(d.Limits.Default)
		}
		if d.Limits.CountBy == "owner" {
			return "of the plan, one pool for the " + d.Owner.Kind
		}
		return "of the plan, for each key"
	}},
	{"Limit headers", func(d *domain.Document) string { return strings.Join(d.RateHeaders, ", ") }},
	{"Expiry offered", func(d *domain.Document) string { return strings.Join(d.Lifecycle.Expiry.Presets, ", ") }},
	{"Rotation", func(d *domain.Document) string {
		r := d.Lifecycle.Rotation
		switch {
		case !r.Enabled:
			return "none"
		case r.GraceMax == 0:
			return "immediate"
		}
		return fmt.Sprintf("grace %s, at most %s", r.GraceDefault, r.GraceMax) + map[bool]string{true: fmt.Sprintf("; overdue after %s", r.MaxAge)}[r.MaxAge > 0]
	}},
	{"Last used", func(d *domain.Document) string { return d.LastUsed + " call" }},
	{"Requires", func(d *domain.Document) string {
		return cmp.Or(strings.Join(texts(some(d.Credential.RequireTLS, "HTTPS"), some(d.Credential.RequireContentType != "", "Content-Type "+code(d.Credential.RequireContentType))), ", "), "—")
	}},
	{"Origins", func(d *domain.Document) string {
		return map[bool]string{true: "a list per key", false: "—"}[d.AllowedOrigins]
	}},
	{"Without a key", func(d *domain.Document) string {
		var all []string
		for _, r := range d.PublicRoutes {
			all = append(all, code(r.Route))
		}
		return cmp.Or(strings.Join(all, "<br>"), "—")
	}},
	{"Alerts asked for", func(d *domain.Document) string {
		var all []string
		for _, a := range d.Alerts {
			all = append(all, strings.ReplaceAll(a.When, "_", " "))
		}
		return cmp.Or(strings.Join(all, "<br>"), "—")
	}},
	{"Columns of the list", func(d *domain.Document) string { return strings.Join(d.Console.Columns, ", ") }},
}

// seen are the rows that scripts fill, in the order in which they are shown.
var seen = []string{
	"Secret", "The secret, once", "A key, later", "Found by", "Scopes", "Resources", "Plans", "Key cap", "Environments", "Expiry", "Rotation",
	"Revoked", "Deleted", "Statuses", "Last used", "Limits", "Limit presets", "Limit headers", "HTTPS", "Content-Type", "Origins", "Health",
	"Keys that manage keys", "Usage", "Audit log", "Alerts",
}

func productsMarkdown(t *testing.T, all []*observations) string {
	t.Helper()
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format, a...) }
	row := func(cells ...string) {
		for i := range cells {
			cells[i] = strings.ReplaceAll(cells[i], "|", `\|`)
		}
		p("| %s |\n", strings.Join(cells, " | "))
	}
	head := func(cells ...string) {
		row(cells...)
		p("|%s\n", strings.Repeat("---|", len(cells)))
	}
	var names []string
	for _, o := range all {
		names = append(names, o.suite.Product)
	}

	p("# Five products, one binary\n\n")
	p("<!-- Written by go test ./internal/conformance -update. A test fails when this is not what was seen. -->\n\n")
	p("What each product's own page promises about its keys, and what keyledger was seen to\ndo. Nothing here is written by hand: each sentence of a page has a script in\n")
	p("[`internal/conformance/testdata`](../internal/conformance/testdata), which runs through the gateway and through\n`POST /v1/verify`; both must answer the same, byte for byte. The products differ in\ntheir documents in [`keyspaces/`](../keyspaces) and in nothing else.\n\n")
	p("In what is shown, %s is the script's owner, %s the secret of its key, %s\nthe one before a rotation, and %s, %s stand for what differs from run to run.\n\n", code("$owner"), code("$key.secret"), code("$key.old"), code("<now+60s>"), code("<key_id>"))

	p("## At a glance\n\n")
	head(append([]string{""}, names...)...)
	for _, g := range glance {
		cells := []string{"**" + g.row + "**"}
		for _, o := range all {
			cells = append(cells, cmp.Or(g.cell(o.document), "—"))
		}
		row(cells...)
	}

	p("\n## How a refusal looks\n\nThe code is what the ledger records; the status is what the caller of each product sees.\n\n")
	head(append([]string{"code"}, names...)...)
	for _, c := range domain.Codes() {
		cells := []string{code(string(c))}
		for _, o := range all {
			cell := "—"
			if seen, ok := o.codes[string(c)]; ok {
				cell = fmt.Sprint(seen.status)
			}
			cells = append(cells, cell)
		}
		row(cells...)
	}
	p("\n— is a code that no request to this product meets:\n\n")
	for _, o := range all {
		var why []string
		for _, c := range domain.Codes() {
			if reason := o.suite.Unreached[string(c)]; reason != "" {
				why = append(why, code(string(c))+" ("+reason+")")
			}
		}
		p("- %s: %s.\n", o.suite.Product, strings.Join(why, ", "))
	}
	for _, o := range all {
		p("\n**%s**\n\n", o.suite.Product)
		head("status", "codes", "headers", "body")
		var order []string // of the different refusals
		codes := map[string][]string{}
		for _, c := range domain.Codes() {
			seen, ok := o.codes[string(c)]
			if !ok || c == domain.CodeValid {
				continue
			}
			var headers []string
			for _, name := range slices.Sorted(maps.Keys(seen.headers)) {
				headers = append(headers, code(strings.NewReplacer("Www-", "WWW-", "Ratelimit", "RateLimit").Replace(name)+": "+seen.headers[name]))
			}
			rest := fmt.Sprintf("%d\x00%s\x00%s", seen.status, strings.Join(headers, "<br>"), code(seen.body))
			if codes[rest] == nil {
				order = append(order, rest)
			}
			codes[rest] = append(codes[rest], code(string(c)))
		}
		for _, rest := range order {
			parts := strings.Split(rest, "\x00")
			row(parts[0], strings.Join(codes[rest], "<br>"), parts[1], parts[2])
		}
	}

	p("\n## Seen side by side\n")
	for _, name := range seen {
		p("\n### %s\n\n", name)
		head("", "sent → came back")
		for _, o := range all {
			if list := o.rows[name]; len(list) > 0 {
				row(o.suite.Product, strings.Join(slices.Compact(list), "<br>"))
			}
		}
	}
	for _, o := range all {
		for name := range o.rows {
			if !slices.Contains(seen, name) {
				t.Errorf("%s has a row %q, which is not in the list of rows", o.suite.Product, name)
			}
		}
	}

	for _, o := range all {
		o.sentences(p, row, head)
	}
	return b.String()
}

// sentences is the page, with what was seen of each sentence.
func (o *observations) sentences(p func(string, ...any), row, head func(...string)) {
	quoted, passed := 0, 0
	for _, c := range o.suite.Sentences {
		quoted += len(sentencesOf(c.Says))
		passed += c.Pass
	}
	p("\n## %s, sentence by sentence\n\n%d sentences and lines of the page are below, %d promise nothing (the suite says why of each).\n\n", o.suite.Product, quoted, passed)
	head("The page", "For a system of keys", "sent → came back")
	for i := range o.suite.Sentences {
		if c := &o.suite.Sentences[i]; c.Says != "" {
			o.sentence(row, c, "“"+prose(strings.Join(sentencesOf(c.Says), " "))+"”")
		}
	}
	for i := range o.suite.Beside {
		o.sentence(row, &o.suite.Beside[i], "*(silent)*")
	}
}

func (o *observations) sentence(row func(...string), c *sentence, says string) {
	means := prose(c.Means)
	if c.By != "" {
		means = strings.TrimSpace(means + " *Carried by: " + prose(c.By) + ".*")
	}
	var steps []string
	for _, x := range o.sent[c] {
		if x.sent != "" {
			steps = append(steps, strings.TrimSuffix(x.sent+" → "+x.got, " → "))
		}
	}
	row(says, means, strings.Join(steps, "<br>"))
}

// code is text as it is, in Markdown.
func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// prose is text whose signs are no Markdown.
func prose(s string) string {
	return strings.NewReplacer("<", "&lt;", "*", `\*`, "_", `\_`, "`", "'").Replace(s)
}

func each[V any](m map[string]V, f func(string, V) string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		all = append(all, f(name, m[name]))
	}
	return cmp.Or(strings.Join(all, "<br>"), "—")
}

func some(is bool, s string) string {
	if is {
		return s
	}
	return ""
}

func texts(all ...string) []string {
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}

func limits(l events.Limits) string {
	var all []string
	for _, window := range domain.Windows {
		if n, ok := l[window]; ok {
			all = append(all, fmt.Sprintf("%d/%s", n, window))
		}
	}
	return cmp.Or(strings.Join(all, ", "), "no limits")
}

func deref(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}
