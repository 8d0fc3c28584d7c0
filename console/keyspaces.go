package console

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

func (c *Console) keyspacesPages() {
	c.page("GET /keyspaces", (*visit).keyspaceList)
	c.page("GET /keyspaces/new", (*visit).newKeyspace)
	c.page("POST /keyspaces/new", (*visit).configure)
	c.page("POST /keyspaces/check", (*visit).checkKeyspace)
	c.page("GET /keyspaces/{ks}", (*visit).keyspacePage)
	c.page("GET /keyspaces/{ks}/edit", (*visit).editKeyspace)
	c.page("POST /keyspaces/{ks}/edit", (*visit).configure)
	c.page("GET /keyspaces/{ks}/versions/{version}", (*visit).keyspaceVersion)
}

// space is a keyspace as its own pages show it. Its methods say in words what the
// document says.
type space struct {
	keyspace
	Owners, Active *int
}

func (v *visit) space(id string) (*space, error) {
	k, err := v.keyspace(id)
	if err != nil {
		return nil, err
	}
	return &space{keyspace: *k}, nil
}

// YAML is the document as its editor sees it.
func (s *space) YAML() string { return string(s.Document.YAML()) }

// Credential is the header line of a request.
func (s *space) Credential() string {
	return s.Document.Credential.Header + ": " + strings.TrimSpace(s.Document.Credential.Scheme+" "+s.Prefix()+"…")
}

// Prefix is that of the environment that counts where none is named.
func (s *space) Prefix() string {
	return s.Document.Format.Prefixes[s.Document.Format.DefaultEnvironment]
}

// Limited says in a sentence what is counted.
func (s *space) Limited() string {
	by := "each key by itself"
	if s.Document.Limits.CountBy == "owner" {
		by = "all keys of " + article(s.OwnerKind()) + " together"
	}
	if s.Document.Limits.From == "key" {
		if len(s.Document.Limits.Default) == 0 {
			return "no limits unless a key has its own"
		}
		return rateWords(s.Document.Limits.Default) + ", unless a key has limits of its own; " + by
	}
	limited := 0
	for _, p := range s.Document.Plans {
		if len(p.Limits) > 0 {
			limited++
		}
	}
	if limited == 0 {
		return "no limits"
	}
	return "limits of the plan, " + by
}

// rateWords are limits in words.
func rateWords(l events.Limits) string {
	var list []string
	for _, w := range domain.Windows {
		if n, ok := l[w]; ok {
			list = append(list, fmt.Sprintf("%s a %s", grouped(n), w))
		}
	}
	if len(list) == 0 {
		return "unlimited"
	}
	return strings.Join(list, ", ")
}

// grouped is a whole number with its thousands apart.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// article puts a or an before a noun.
func article(noun string) string {
	if strings.ContainsAny(noun[:1], "aeiouAEIOU") {
		return "an " + noun
	}
	return "a " + noun
}

// OwnerKind is what its people call an owner.
func (s *space) OwnerKind() string {
	if s.Document.Owner.Kind == "" {
		return "owner"
	}
	return s.Document.Owner.Kind
}

// ResourceKind likewise.
func (s *space) ResourceKind() string {
	if s.Document.Resource.Kind == "" {
		return "resource"
	}
	return s.Document.Resource.Kind
}

// ScopeNames are sorted.
func (s *space) ScopeNames() []string { return slices.Sorted(maps.Keys(s.Document.Scopes)) }

// PlanNames are sorted, the default one first.
func (s *space) PlanNames() []string {
	names := slices.Sorted(maps.Keys(s.Document.Plans))
	if i := slices.Index(names, s.Document.DefaultPlan); i > 0 {
		names = slices.Insert(slices.Delete(names, i, i+1), 0, s.Document.DefaultPlan)
	}
	return names
}

// Environments are sorted, the default one first.
func (s *space) Environments() []string {
	names, first := slices.Sorted(maps.Keys(s.Document.Format.Prefixes)), s.Document.Format.DefaultEnvironment
	if i := slices.Index(names, first); i > 0 {
		names = slices.Insert(slices.Delete(names, i, i+1), 0, first)
	}
	return names
}

// Shown says which characters of a secret are kept.
func (s *space) Shown() string {
	switch d := s.Document.Display; {
	case d.First == 0 && d.Last == 0:
		return "nothing"
	case d.Last == 0:
		return fmt.Sprintf("the first %d characters", d.First)
	case d.First == 0:
		return fmt.Sprintf("the last %d characters", d.Last)
	default:
		return fmt.Sprintf("the first %d and the last %d characters", d.First, d.Last)
	}
}

// Letters are those of a secret.
func (s *space) Letters() string {
	if s.Document.Format.Alphabet == "base36" {
		return "a–z and 0–9"
	}
	return "A–Z, a–z and 0–9"
}

// Rate is the limit of a window, or a dash.
func (s *space) Rate(l events.Limits, window string) string {
	if n, ok := l[window]; ok {
		return grouped(n)
	}
	return "—"
}

// Allows says whether a plan has access.
func (s *space) Allows(p domain.Plan) bool { return p.Access == nil || *p.Access }

// Grantable says whether a scope can be given to a key by now.
func (s *space) Grantable(r domain.ScopeRules) bool { return r.Available == nil || *r.Available }

// AlertWords are the alert rules in sentences.
func (s *space) AlertWords() []string {
	var list []string
	for _, a := range s.Document.Alerts {
		above := 0.0
		if a.Above != nil {
			above = *a.Above
		}
		n := strconv.FormatFloat(above, 'f', -1, 64)
		percent := strconv.FormatFloat(above*100, 'f', -1, 64) + " %"
		over := a.Over.String()
		w := map[string]string{
			"limit_used":       "More than " + percent + " of a limit is used.",
			"error_rate":       "More than " + percent + " of the requests in " + over + " fail.",
			"unusual_volume":   "The requests of " + over + " are more than " + n + " standard deviations from the key’s own past.",
			"new_source_ip":    "A key is used from an address that is new to it.",
			"denied":           "More than " + n + " requests are denied in " + over + ".",
			"cost":             "More than " + strconv.FormatFloat(above/1e6, 'f', 2, 64) + " is spent in " + over + ".",
			"expiring":         "A key expires within " + a.Within.String() + ".",
			"expired":          "A key has expired.",
			"unused":           "A key is not used for " + a.For.String() + ".",
			"rotation_overdue": "A secret is older than it should be.",
		}[a.When]
		if w == "" {
			w = strings.ReplaceAll(a.When, "_", " ") + "."
		}
		if a.Off {
			w = "Switched off: " + strings.ReplaceAll(a.When, "_", " ") + "."
		}
		list = append(list, w)
	}
	return list
}

type keyspaceListData struct {
	Spaces  []space
	MayEdit bool
}

func (v *visit) keyspaceList() error {
	var list struct{ Keyspaces []api.Keyspace }
	if err := v.get("/v1/keyspaces", url.Values{"count": {"true"}}, &list); err != nil {
		return err
	}
	d := keyspaceListData{MayEdit: v.may(domain.Configure)}
	for _, k := range list.Keyspaces {
		if k.Keyspace == events.RootKeyspace {
			continue
		}
		s := space{keyspace: keyspace{ID: k.Keyspace, Version: k.Version}, Owners: k.Owners, Active: k.Active}
		if err := json.Unmarshal(k.Document, &s.Document); err != nil {
			return fmt.Errorf("the document of %s: %w", k.Keyspace, err)
		}
		d.Spaces = append(d.Spaces, s)
	}
	return v.show("keyspaces", "Keyspaces", d)
}

// wire are refusals that look the same, as they go over the wire.
type wire struct {
	Codes   []string
	When    []string
	Status  int
	Reason  string // of the status
	Text    string // the whole answer
	Entry   string
	Changed bool
}

// wires puts together what clients cannot tell apart, in the order in which it is
// decided.
func wires(list []api.KeyspaceRefusal) []wire {
	var all []wire
	for _, x := range list {
		var b strings.Builder
		fmt.Fprintf(&b, "HTTP/1.1 %d %s\n", x.Status, http.StatusText(x.Status))
		for _, h := range x.Headers {
			fmt.Fprintf(&b, "%s: %s\n", h.Name, h.Value)
		}
		if len(x.Body) > 0 && string(x.Body) != "null" {
			var body bytes.Buffer
			if json.Indent(&body, x.Body, "", "  ") != nil {
				body.Reset()
				body.Write(x.Body)
			}
			b.WriteString("\n" + body.String())
		}
		i := slices.IndexFunc(all, func(w wire) bool { return w.Text == b.String() && w.Changed == x.Changed })
		if i < 0 {
			i = len(all)
			all = append(all, wire{Status: x.Status, Reason: http.StatusText(x.Status), Text: b.String(), Entry: x.Entry, Changed: x.Changed})
		}
		all[i].Codes, all[i].When = append(all[i].Codes, x.Code), append(all[i].When, x.When)
	}
	return all
}

type keyspaceData struct {
	*space
	Answers  []wire
	Versions []api.KeyspaceVersion
	Past     *api.Problem // why the versions cannot be told
	MayEdit  bool
}

func (v *visit) keyspacePage() error {
	s, err := v.space(v.r.PathValue("ks"))
	if err != nil {
		return err
	}
	d := keyspaceData{space: s, MayEdit: v.may(domain.Configure)}
	var answers api.KeyspaceAnswers
	if err := v.get("/v1/keyspaces/"+url.PathEscape(s.ID)+"/answers", nil, &answers); err != nil {
		return err
	}
	d.Answers = wires(answers.Answers)
	var versions api.KeyspaceVersions
	err = v.get("/v1/keyspaces/"+url.PathEscape(s.ID)+"/versions", nil, &versions)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status == http.StatusServiceUnavailable {
		d.Past = p
	} else if err != nil {
		return err
	}
	d.Versions = versions.Versions
	return v.show("keyspace", s.ID, d)
}

type keyspaceVersionData struct {
	ID             string
	This           api.KeyspaceVersion
	Before         int // the version that it is compared with; 0: none
	Diff           diff
	YAML           string
	Earlier, Later int // 0: there is none
}

func (v *visit) keyspaceVersion() error {
	id := v.r.PathValue("ks")
	n, err := strconv.Atoi(v.r.PathValue("version"))
	var versions api.KeyspaceVersions
	if err == nil {
		err = v.get("/v1/keyspaces/"+url.PathEscape(id)+"/versions", nil, &versions)
		if err != nil {
			return err
		}
	}
	at := slices.IndexFunc(versions.Versions, func(x api.KeyspaceVersion) bool { return x.Version == n })
	if err != nil || at < 0 {
		return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "The keyspace has no such version."}
	}
	d := keyspaceVersionData{ID: id, This: versions.Versions[at]}
	of := func(x api.KeyspaceVersion) (string, error) {
		var k api.Keyspace
		if err := v.get("/v1/keyspaces/"+url.PathEscape(id), url.Values{"as_of": {strconv.FormatUint(x.Sequence, 10)}}, &k); err != nil {
			return "", err
		}
		var doc domain.Document
		if err := json.Unmarshal(k.Document, &doc); err != nil {
			return "", fmt.Errorf("version %d of %s: %w", x.Version, id, err)
		}
		return string(doc.YAML()), nil
	}
	if d.YAML, err = of(d.This); err != nil {
		return err
	}
	if at > 0 {
		d.Later = versions.Versions[at-1].Version
	}
	if at+1 < len(versions.Versions) {
		d.Earlier = versions.Versions[at+1].Version
		before := versions.Versions[at+1]
		if i := slices.IndexFunc(versions.Versions, func(x api.KeyspaceVersion) bool {
			return strconv.Itoa(x.Version) == v.r.URL.Query().Get("against")
		}); i >= 0 {
			before = versions.Versions[i]
		}
		d.Before = before.Version
		old, err := of(before)
		if err != nil {
			return err
		}
		d.Diff = difference(old, d.YAML)
	}
	return v.show("keyspaceversion", fmt.Sprintf("%s, version %d", id, n), d)
}

// checked is what would become of a document that is being written.
type checked struct {
	api.KeyspaceCheck
	Refusals []wire
	Diff     diff
}

// Changing are the refusals that would look otherwise.
func (c *checked) Changing() []wire {
	return slices.DeleteFunc(slices.Clone(c.Refusals), func(w wire) bool { return !w.Changed })
}

// check asks the API about a document. id is the keyspace that it has to be of;
// empty: any.
func (v *visit) check(id, document string) (*checked, error) {
	query := url.Values{}
	if id != "" {
		query.Set("keyspace", id)
	}
	c := &checked{}
	if _, err := v.call(http.MethodPost, "/v1/keyspaces/validate", query, yamlBody, []byte(document), &c.KeyspaceCheck); err != nil {
		return nil, err
	}
	c.Refusals = wires(c.Answers)
	if c.Valid {
		c.Diff = difference(c.Before, c.YAML)
	}
	return c, nil
}

var yamlBody = http.Header{"Content-Type": {"application/yaml"}}

// documentEdit is the editor, and the page that asks whether a change is meant.
type documentEdit struct {
	ID       string // empty: of a new keyspace
	Version  int    // that the text was begun from
	Text     string
	Once     string
	Checked  *checked
	Problem  *api.Problem
	Overtook *api.KeyspaceVersion // somebody else's, since the text was begun
}

// Action is where its forms go.
func (d *documentEdit) Action() string {
	if d.ID == "" {
		return "/keyspaces/new"
	}
	return "/keyspaces/" + url.PathEscape(d.ID) + "/edit"
}

// Back is where one goes who gives up.
func (d *documentEdit) Back() string {
	return strings.TrimSuffix(strings.TrimSuffix(d.Action(), "/new"), "/edit")
}

// Lines is how many the editor has room for.
func (d *documentEdit) Lines() int { return min(max(strings.Count(d.Text, "\n")+2, 12), 34) }

func (v *visit) showEditor(d *documentEdit) error {
	title := "A new keyspace"
	if d.ID != "" {
		title = "Edit " + d.ID
	}
	return v.show("keyspaceedit", title, d)
}

func (v *visit) mayConfigure() error {
	if v.may(domain.Configure) {
		return nil
	}
	return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "Only operators may change keyspaces. Everything that the document says is on its page."}
}

func (v *visit) newKeyspace() error {
	if err := v.mayConfigure(); err != nil {
		return err
	}
	d := &documentEdit{Text: newDocument}
	return v.showEditor(d)
}

func (v *visit) editKeyspace() error {
	if err := v.mayConfigure(); err != nil {
		return err
	}
	s, err := v.space(v.r.PathValue("ks"))
	if err != nil {
		return err
	}
	return v.showEditor(&documentEdit{ID: s.ID, Version: s.Version, Text: s.YAML()})
}

// checkKeyspace answers an editor while somebody types.
func (v *visit) checkKeyspace() error {
	c, err := v.check(v.form("keyspace"), typed(v.r))
	if err != nil {
		return err
	}
	return v.fragment("keyspaceedit", "checked", c)
}

// typed is the text of the editor. Browsers send lines that end with CR LF.
func typed(r *http.Request) string {
	return strings.ReplaceAll(r.PostFormValue("document"), "\r\n", "\n")
}

// configure takes a document through its three steps: write it, look at what it
// changes, record it. A text is never lost on the way.
func (v *visit) configure() error {
	if err := v.mayConfigure(); err != nil {
		return err
	}
	d := &documentEdit{ID: v.r.PathValue("ks"), Text: typed(v.r), Once: v.form("once")}
	d.Version, _ = strconv.Atoi(v.form("version"))
	if v.form("do") == "edit" {
		return v.showEditor(d)
	}
	var err error
	d.Checked, err = v.check(d.ID, d.Text)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status != http.StatusUnauthorized {
		d.Problem = p
		v.w.WriteHeader(p.Status)
		return v.showEditor(d)
	}
	if err != nil {
		return err
	}
	if !d.Checked.Valid {
		v.w.WriteHeader(http.StatusUnprocessableEntity)
		return v.showEditor(d)
	}
	if v.form("do") == "record" && d.Checked.Version == d.Version {
		id := d.Checked.Keyspace
		header := once(d.Once)
		if header == nil {
			header = http.Header{}
		}
		header["Content-Type"] = yamlBody["Content-Type"]
		header.Set("If-Match", strconv.Quote(strconv.Itoa(d.Version)))
		_, err := v.call(http.MethodPut, "/v1/keyspaces/"+url.PathEscape(id), nil, header, []byte(d.Text), nil)
		if err == nil {
			return v.redirect("/keyspaces/"+url.PathEscape(id), "configured")
		}
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Status == http.StatusUnauthorized {
			return err
		}
		if p.Status != http.StatusPreconditionFailed {
			d.Problem = p
			v.w.WriteHeader(p.Status)
			return v.showEditor(d)
		}
		if d.Checked, err = v.check(d.ID, d.Text); err != nil {
			return err
		}
	}
	if d.Checked.Version != d.Version {
		// Whoever goes on from here has seen the difference to what counts now.
		var versions api.KeyspaceVersions
		if err := v.get("/v1/keyspaces/"+url.PathEscape(d.Checked.Keyspace)+"/versions", nil, &versions); err != nil {
			return err
		}
		for _, x := range versions.Versions {
			if x.Version == d.Checked.Version {
				d.Overtook = &x
			}
		}
		d.Version = d.Checked.Version
		v.w.WriteHeader(http.StatusConflict)
	}
	d.Once = newToken() // a form that was sent in vain is not this one
	return v.show("keyspaceconfirm", "Record this change?", d)
}

// changedFields are the fields of a change in words, at most a few.
func changedFields(list []queries.Change) string {
	var names []string
	for _, c := range list {
		names = append(names, c.Field)
	}
	if len(names) > 4 {
		return strings.Join(names[:4], ", ") + fmt.Sprintf(" and %d more", len(names)-4)
	}
	return strings.Join(names, ", ")
}

// newDocument is what a new keyspace begins with.
const newDocument = `# One API product. Only keyspace and format are required; what is left out has
# a careful default. docs/keyspaces.md explains every field.
keyspace: my-api              # a-z, 0-9 and -; it stays for ever
about: My API

credential:
  header: Authorization
  scheme: Bearer              # "" takes the bare header value, as X-API-Key does

format:
  prefixes: {live: my_live_, test: my_test_}   # environment: what its secrets begin with
  default_environment: live
  length: 40                  # characters after the prefix
  checksum: crc32             # tells a mistyped key from an unknown one

display: {first: 12, last: 4} # the only characters of a secret that are ever shown

scopes:                       # what keys may do; without any, every key may do everything
  things:read:  {about: Read things, routes: ["GET /v1/things/**"]}
  things:write: {about: Create and change things, routes: ["POST,PUT,PATCH,DELETE /v1/things/**"]}

plans:
  free:  {limits: {minute: 20, day: 1000}, max_keys: 2}
  large: {limits: {minute: 1000}}
default_plan: free

limits:
  from: plan                  # key: every key has limits of its own
  count_by: owner             # all keys of an owner draw from one pool

lifecycle:
  expiry:   {presets: [never, 30d, 90d, custom], default: 90d}
  rotation: {enabled: true, grace_default: 24h, grace_max: 48h, max_age: 90d}

rate_headers: [x-ratelimit, retry-after]

answers:                      # how a refusal looks; without any, a problem document (RFC 9457)
  default:
    status: 401
    message: Invalid API key
    body: {error: "${code}", message: "${message}", request_id: "${request_id}"}
`
