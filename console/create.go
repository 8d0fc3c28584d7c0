package console

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
)

// createData is the form for a new key: the fields that its keyspace has.
type createData struct {
	Keyspace, Owner string
	Document        *domain.Document
	Kind            string // what its people call an owner
	Owners          []api.Owner
	Cap             *keyCap
	Refused         string // why no key can be created
	Upgrade         string // where to change that
	Scopes          []scopeOffer
	Environments    []string
	Resource        string // the key is bound to it: where the form was come to from
	Expiries        []choice
	LimitRows       []limitRow
	Plans           []string
	Presets         []preset
	Deliveries      []choice
	More            bool // what few need is shown at once
	Once            string
	Given           url.Values
	Problem         *api.Problem
	FixedOwner      bool
}

// scopeOffer is a scope in the form for a new key.
type scopeOffer struct {
	Name, About string
	Off         string // why it cannot be chosen
	Chosen      bool
}

// scopeChoice is a scope in the form of a key that there is.
type scopeChoice struct {
	Name, About       string
	Available, Chosen bool
}

// choice is one of several that exclude each other.
type choice struct {
	Value, Word string
	Chosen      bool
}

type preset struct {
	Name, Words       string
	Minute, Hour, Day string // empty: not limited
}

type limitRow struct{ Window, Given, Default string }

var windows = []string{"minute", "hour", "day"}

func (v *visit) newKey() error {
	_, ks, owner, err := v.chosen()
	if err != nil {
		return err
	}
	if ks == nil || !v.may(domain.KeysCreate) {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "This sign-in may not create keys."}
	}
	given := url.Values{}
	if r := strings.TrimSpace(v.r.URL.Query().Get("resource")); r != "" {
		given.Set("resource", r)
	}
	return v.showCreate(ks, owner, given, nil)
}

func (v *visit) showCreate(ks *keyspace, owner string, given url.Values, problem *api.Problem) error {
	doc := &ks.Document
	d := createData{Keyspace: ks.ID, Owner: owner, Document: doc, Kind: cmp.Or(doc.Owner.Kind, "owner"), Given: given, Problem: problem, FixedOwner: v.me.For != nil,
		Once: newToken(), Resource: given.Get("resource"), Environments: slices.Sorted(maps.Keys(doc.Format.Prefixes)), Plans: slices.Sorted(maps.Keys(doc.Plans))}
	plan := doc.DefaultPlan
	var err error
	if d.Cap, err = v.cap(ks, owner); err != nil {
		return err
	}
	if d.Cap != nil {
		plan = d.Cap.Plan
	}
	if d.Refused = d.Cap.refusal(doc); d.Refused != "" {
		d.Upgrade = d.Cap.upgrade(doc)
	}
	supported, limited := doc.Plans[plan], false
	if owner != "" && supported.Scopes != nil {
		limited = true
	}
	for _, name := range slices.Sorted(maps.Keys(doc.Scopes)) {
		s := doc.Scopes[name]
		c := scopeOffer{Name: name, About: s.About, Chosen: slices.Contains(given["scopes"], name)}
		switch {
		case s.Available != nil && !*s.Available:
			c.Off = "not available yet"
		case limited && !slices.Contains(supported.Scopes, name):
			c.Off = "not in the plan " + plan
		}
		d.Scopes = append(d.Scopes, c)
	}
	d.Expiries = expiries(doc, given.Get("expiry"), v.Now())
	if doc.Limits.From == "key" {
		for _, w := range windows {
			row := limitRow{Window: w, Given: given.Get("limit_" + w), Default: "unlimited"}
			if n, ok := doc.Limits.Default[w]; ok {
				row.Default = strconv.FormatInt(n, 10)
			}
			d.LimitRows = append(d.LimitRows, row)
		}
		d.Presets = presets(doc)
	}
	d.Deliveries = []choice{{Value: "here", Word: "To me, on the next page, once"}, {Value: "24h", Word: "1 day"}, {Value: "72h", Word: "3 days"}, {Value: "168h", Word: "7 days"}, {Value: "720h", Word: "30 days"}}
	for i := range d.Deliveries {
		d.Deliveries[i].Chosen = d.Deliveries[i].Value == cmp.Or(given.Get("claim"), "72h")
	}
	d.More = given.Get("plan")+given.Get("allowed_ips") != ""
	if !d.FixedOwner {
		d.Owners = v.owners(ks.ID)
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("newkey", "Create a key", d)
}

// presets are the document's, the smallest first.
func presets(doc *domain.Document) []preset {
	var all []preset
	names := slices.SortedFunc(maps.Keys(doc.Limits.Presets), func(a, b string) int {
		x, y := doc.Limits.Presets[a], doc.Limits.Presets[b]
		return cmp.Or(cmp.Compare(x["minute"], y["minute"]), cmp.Compare(x["hour"], y["hour"]), cmp.Compare(x["day"], y["day"]), cmp.Compare(a, b))
	})
	for _, name := range names {
		limits, p, said := doc.Limits.Presets[name], preset{Name: name}, []string{}
		for i, field := range []*string{&p.Minute, &p.Hour, &p.Day} {
			*field = "unlimited"
			if n, ok := limits[windows[i]]; ok {
				*field = strconv.FormatInt(n, 10)
				said = append(said, *field+" per "+windows[i])
			}
		}
		p.Words = strings.Join(said, ", ")
		all = append(all, p)
	}
	return all
}

// expiries are the document's presets, with the day that each means.
func expiries(doc *domain.Document, given string, now time.Time) []choice {
	given = cmp.Or(given, doc.Lifecycle.Expiry.Default)
	var all []choice
	for _, p := range doc.Lifecycle.Expiry.Presets {
		c := choice{Value: p, Word: p, Chosen: p == given}
		switch d, err := domain.ParseDuration(p); {
		case p == "never":
			c.Word = "Never"
		case p == "custom":
			c.Word = "On a day …"
		case err == nil:
			c.Word = fmt.Sprintf("In %s, on %s", spoken(time.Duration(d)), now.Add(time.Duration(d)).UTC().Format("2 January 2006"))
		}
		all = append(all, c)
	}
	return all
}

// spoken is a length of time in words.
func spoken(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d%day == 0 && d > 0:
		return plural(int(d/day), "day")
	case d%time.Hour == 0 && d > 0:
		return plural(int(d/time.Hour), "hour")
	case d%time.Minute == 0 && d > 0:
		return plural(int(d/time.Minute), "minute")
	}
	return d.String()
}

// words are the parts of a field of several lines, or with commas.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' || r == ' ' || r == '\t' })
}

func (v *visit) createKey() error {
	if err := v.r.ParseForm(); err != nil {
		return &api.Problem{Status: http.StatusBadRequest, Title: "Bad Request", Detail: "The form could not be read."}
	}
	f := v.r.PostForm
	ks, err := v.keyspace(f.Get("keyspace"))
	if err != nil {
		return err
	}
	owner := strings.TrimSpace(f.Get("owner"))
	if v.me.For != nil {
		owner = v.me.For.Owner
	}
	in := map[string]any{"keyspace": ks.ID, "owner": owner, "name": strings.TrimSpace(f.Get("name"))}
	put := func(name string, value any, given bool) {
		if given {
			in[name] = value
		}
	}
	put("environment", f.Get("environment"), f.Get("environment") != "")
	put("plan", f.Get("plan"), f.Get("plan") != "")
	put("scopes", f["scopes"], len(ks.Document.Scopes) > 0 && len(ks.Document.FixedScopes) == 0 && len(f["scopes"]) > 0)
	resources := words(f.Get("resources") + " " + f.Get("resource"))
	put("resources", resources, len(resources) > 0)
	put("allowed_origins", words(f.Get("allowed_origins")), len(words(f.Get("allowed_origins"))) > 0)
	put("allowed_ips", words(f.Get("allowed_ips")), len(words(f.Get("allowed_ips"))) > 0)
	limits := map[string]any{}
	for _, window := range windows {
		s := strings.TrimSpace(f.Get("limit_" + window))
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			limits[window] = n
		} else if s == "unlimited" {
			limits[window] = nil
		} else if s != "" {
			limits[window] = s // the API says what is wrong with it
		}
	}
	put("limits", limits, len(limits) > 0)
	switch expiry := f.Get("expiry"); expiry {
	case "":
	case "never":
		in["expires_at"] = nil
	case "custom":
		day := f.Get("expires_on")
		if _, err := time.Parse(time.DateOnly, day); err != nil {
			return v.showCreate(ks, owner, f, &api.Problem{Status: http.StatusUnprocessableEntity, Detail: "Choose the day on which the key expires.",
				Errors: []api.Detail{{Path: "expires_on", Message: "is not a day", Fix: "such as " + v.Now().AddDate(0, 6, 0).Format(time.DateOnly)}}})
		}
		in["expires_at"] = day + "T23:59:59.999Z"
	default:
		in["expires_in"] = expiry
	}
	claimOf(f, in)
	var out api.KeySecret
	_, err = v.call(http.MethodPost, "/v1/keys", nil, once(f.Get("once")), in, &out)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status < 500 && p.Status != http.StatusUnauthorized {
		if p.Code == "IDEMPOTENCY_KEY_REUSED" {
			p.Detail = "This form has made a key already. Send it again to make another one, as it is now."
		}
		return v.showCreate(ks, owner, f, p)
	}
	if err != nil {
		return err
	}
	return v.reveal(ks, out, "created")
}

// claimOf asks for a link in place of the secret, where the form says so.
func claimOf(f url.Values, in map[string]any) {
	if f.Get("deliver") == "link" {
		in["claim"] = map[string]any{"expires_in": cmp.Or(f.Get("claim"), "72h")}
	}
}

// once are the headers that make a form take effect once, however often it is sent.
func once(token string) http.Header {
	if token == "" {
		return nil
	}
	return http.Header{"Idempotency-Key": {"console-" + token}}
}

// revealData is a page that shows a secret, or the link to one.
type revealData struct {
	ID, Name, Display string
	What              string // created, rotated, claimed
	Secret            string
	Snippets          []snippet
	Facts             []fact
	Link              string // in place of the secret: where it is seen, once
	Claim             *api.ClaimLink
	Variable          string // of the environment, that the secret is put in
	Theirs            bool   // whoever sees it has no account here
}

type fact struct{ Name, Value string }

// snippet is a way to use a secret, ready to be pasted.
type snippet struct{ ID, Name, Code string }

// credential is how a secret is sent, and where to.
type credential struct{ header, scheme, path, variable, secret string }

func credentialOf(ks, header, scheme, path, secret string) credential {
	variable := strings.ToUpper(strings.ReplaceAll(ks, "-", "_")) + "_API_KEY"
	if variable[0] >= '0' && variable[0] <= '9' {
		variable = "API_KEY"
	}
	return credential{header, scheme, path, variable, secret}
}

// before stands before the secret in its header.
func (c *credential) before() string {
	if c.scheme == "" {
		return ""
	}
	return c.scheme + " "
}

func (c *credential) snippets() []snippet {
	url := "https://api.example.com" + c.path
	return []snippet{
		{"curl", "curl", fmt.Sprintf("export %[1]s=%[2]q\ncurl -H \"%[3]s: %[4]s$%[1]s\" \\\n  %[5]s", c.variable, c.secret, c.header, c.before(), shellWord(url))},
		{"node", "Node.js", fmt.Sprintf("const answer = await fetch(%q, {\n  headers: { %q: `%s${process.env.%s}` },\n});", url, c.header, c.before(), c.variable)},
		{"python", "Python", fmt.Sprintf("import os, requests\n\nanswer = requests.get(\n    %q,\n    headers={%q: f\"%s{os.environ['%s']}\"},\n)", url, c.header, c.before(), c.variable)},
		{"env", ".env", fmt.Sprintf("# .env, in .gitignore\n%s=%s", c.variable, c.secret)},
		{"github", "GitHub Actions", fmt.Sprintf("# once: gh secret set %[1]s\nenv:\n  %[1]s: ${{ secrets.%[1]s }}", c.variable)},
		{"gitlab", "GitLab CI", fmt.Sprintf("# Settings, CI/CD, Variables: %[1]s, masked and hidden\ncall:\n  script:\n    - 'curl -H \"%[2]s: %[3]s$%[1]s\" %[4]s'", c.variable, c.header, c.before(), shellWord(url))},
	}
}

// shellWord quotes an address where a shell would read more into it.
func shellWord(s string) string {
	if strings.ContainsAny(s, "{}*?&;<>|") {
		return `"` + s + `"`
	}
	return s
}

// examplePath is the path of a request that a key may make, of its keyspace's document.
func examplePath(doc *domain.Document, k *api.Key) string {
	path, reads := "", false
	scopes := k.Scopes
	if len(scopes) == 0 {
		scopes = slices.Sorted(maps.Keys(doc.Scopes))
	}
	for _, name := range scopes {
		for _, route := range doc.Scopes[name].Routes {
			method, p, _ := strings.Cut(route, " ")
			if read := method == "*" || strings.Contains(method, "GET"); path == "" || read && !reads {
				path, reads = p, read
			}
		}
		if path != "" {
			break
		}
	}
	if doc.Resource.Path != "" && (path == "" || len(k.Resources) > 0) {
		path = doc.Resource.Path
	}
	path = cmp.Or(path, doc.Owner.Path, "/")
	if len(k.Resources) > 0 {
		path = strings.ReplaceAll(path, "{resource}", k.Resources[0])
	}
	path = strings.TrimSuffix(strings.ReplaceAll(path, "{owner}", k.Owner), "**")
	return strings.ReplaceAll(path, "/*/", "/ID/")
}

// reveal shows a secret. The page is the answer to a form and is kept by nobody:
// going back, or sending the form again, shows that it was shown.
func (v *visit) reveal(ks *keyspace, k api.KeySecret, what string) error {
	d := revealData{ID: k.Key.ID, Name: k.Key.Name, Display: k.Key.Display, What: what}
	c := credentialOf(ks.ID, ks.Document.Credential.Header, ks.Document.Credential.Scheme, examplePath(&ks.Document, &k.Key), "")
	d.Variable = c.variable
	d.Facts = factsOf(&k.Key)
	switch {
	case k.Claim != nil:
		d.Claim, d.Link = k.Claim, v.origin()+k.Claim.Path
		return v.alone("claimlink", "The link to the secret", d)
	case k.Secret == nil:
		return v.alone("reveal", "The secret was shown already", d)
	}
	d.Secret, c.secret = *k.Secret, *k.Secret
	d.Snippets = c.snippets()
	return v.alone("reveal", "The secret of "+cmp.Or(k.Key.Name, k.Key.ID), d)
}

func factsOf(k *api.Key) []fact {
	all := []fact{{"Name", k.Name}, {"Owner", k.Owner}, {"Environment", k.Environment}}
	if len(k.Scopes) > 0 {
		all = append(all, fact{"Scopes", strings.Join(k.Scopes, ", ")})
	}
	if len(k.Resources) > 0 {
		all = append(all, fact{"Works for", strings.Join(k.Resources, ", ")})
	}
	expires := "Never"
	if k.ExpiresAt != 0 {
		expires = k.ExpiresAt.Time().UTC().Format("2 January 2006, 15:04 UTC")
	}
	all = append(all, fact{"Expires", expires})
	if k.GraceUntil != 0 {
		all = append(all, fact{"The previous secret works until", k.GraceUntil.Time().UTC().Format("2 January 2006, 15:04 UTC")})
	}
	return all
}

// origin is where the browser finds this console.
func (v *visit) origin() string {
	scheme := "http"
	if secure(v.r) {
		scheme = "https"
	}
	return scheme + "://" + v.r.Host
}

// claimPages are for customers, who are not signed in.
func (c *Console) claimPages() {
	c.mux.HandleFunc("GET /claim", func(w http.ResponseWriter, r *http.Request) { c.showClaim(w, r, http.StatusOK, "") })
	c.mux.HandleFunc("POST /claim", c.openClaim)
	c.page("POST /keys/{id}/withdraw-claim", (*visit).withdrawClaim)
}

func (c *Console) showClaim(w http.ResponseWriter, r *http.Request, status int, wrong string) {
	if status != http.StatusOK {
		w.WriteHeader(status)
	}
	if err := c.render(w, layout{Title: "A secret for you", Page: "claim", Alone: true, Path: r.URL.Path, Version: c.Version, Data: wrong}); err != nil {
		c.Log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
	}
}

// openClaim shows a secret to whoever has the code of a link. Only the form opens it:
// programs that look at links in mails and chats follow them with GET.
func (c *Console) openClaim(w http.ResponseWriter, r *http.Request) {
	v := &visit{Console: c, w: w, r: r, session: &session{}}
	code := strings.TrimSpace(r.PostFormValue("code"))
	if _, after, ok := strings.Cut(code, "#"); ok { // the whole link was pasted
		code = after
	}
	var out api.ClaimedKey
	if _, err := v.call(http.MethodPost, "/v1/claims/open", nil, http.Header{"Authorization": {"Bearer " + code}}, nil, &out); err != nil {
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Status == http.StatusUnauthorized {
			c.showClaim(w, r, p.Status, "This is no code of a link: it begins with claim_ and stands behind the #. Copy the whole link.")
			return
		} else if ok {
			c.showClaim(w, r, p.Status, p.Detail)
			return
		}
		c.Log.ErrorContext(r.Context(), "a claim was not opened", "error", err)
		c.showClaim(w, r, http.StatusInternalServerError, "Something went wrong here; it was logged. The link may be tried again.")
		return
	}
	cred := credentialOf(out.Keyspace, out.Header, out.Scheme, "/", out.Secret)
	d := revealData{ID: out.ID, Name: out.Name, Display: out.Display, What: "claimed", Secret: out.Secret, Snippets: cred.snippets(), Variable: cred.variable, Theirs: true,
		Facts: factsOf(&api.Key{Name: out.Name, Owner: out.About, Environment: out.Environment, Scopes: out.Scopes, Resources: out.Resources, ExpiresAt: out.ExpiresAt})}
	d.Facts[1].Name = "For"
	if err := v.alone("reveal", "A secret for you", d); err != nil {
		c.Log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
	}
}

// claimed is what became of the link that a key's secret was handed over by; nil: there
// was none.
func (v *visit) claimed(id string) *api.Claim {
	var c api.Claim
	if err := v.get("/v1/keys/"+url.PathEscape(id)+"/claim", nil, &c); err != nil {
		return nil
	}
	return &c
}

func (v *visit) withdrawClaim() error {
	id := v.r.PathValue("id")
	if _, err := v.call(http.MethodDelete, "/v1/keys/"+url.PathEscape(id)+"/claim", nil, nil, nil, nil); err != nil {
		return err
	}
	return v.redirect("/keys/"+url.PathEscape(id), "claim-withdrawn")
}
