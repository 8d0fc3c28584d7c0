package console

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/console/chart"
	"github.com/keyledger/keyledger/domain"
)

func (c *Console) pages() {
	c.sessionPages()
	c.overviewPages()
	c.page("POST /theme", (*visit).theme)
	c.timePages()
	c.proofsPages()
	c.page("GET /keys", (*visit).keys)
	c.page("GET /keys/new", (*visit).newKey)
	c.page("POST /keys/new", (*visit).createKey)
	c.page("POST /keys/revoke", (*visit).revokeChosen)
	c.keyPages()
	c.claimPages()
	c.page("GET /keys/{id}/{act}", (*visit).ask)
	c.page("POST /keys/{id}/{act}", (*visit).act)
	c.auditPages()
	c.ownerPages()
	c.alertPages()
	c.systemPages()
	c.subscriberPages()
	c.webhookPages()
	c.keyspacesPages()
	c.gatewaysPages()
	c.page("GET /", func(*visit) error {
		return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no page at this address."}
	})
}

func (v *visit) theme() error {
	if theme := v.form("theme"); theme == "light" || theme == "dark" {
		v.session.Theme = theme
	} else {
		v.session.Theme = ""
	}
	if err := v.Sessions.update(v.r.Context(), v.session); err != nil {
		return err
	}
	return v.redirect(ours(v.form("to")), "")
}

// keyspace is a keyspace as pages use it.
type keyspace struct {
	ID       string
	Version  int
	Document domain.Document
}

func (v *visit) keyspaces() ([]keyspace, error) {
	var list struct{ Keyspaces []api.Keyspace }
	if err := v.get("/v1/keyspaces", nil, &list); err != nil {
		return nil, err
	}
	var all []keyspace
	for _, k := range list.Keyspaces {
		if k.Keyspace == "keyledger" {
			continue
		}
		d := keyspace{ID: k.Keyspace, Version: k.Version}
		if err := json.Unmarshal(k.Document, &d.Document); err != nil {
			return nil, fmt.Errorf("the document of %s: %w", k.Keyspace, err)
		}
		all = append(all, d)
	}
	return all, nil
}

func (v *visit) keyspace(id string) (*keyspace, error) {
	var k api.Keyspace
	if err := v.get("/v1/keyspaces/"+url.PathEscape(id), nil, &k); err != nil {
		return nil, err
	}
	d := &keyspace{ID: k.Keyspace, Version: k.Version}
	if err := json.Unmarshal(k.Document, &d.Document); err != nil {
		return nil, fmt.Errorf("the document of %s: %w", id, err)
	}
	return d, nil
}

// word is what a keyspace's people call a status.
func (k *keyspace) word(status string) string {
	if w := k.Document.Console.Statuses[status]; w != "" {
		return w
	}
	w := strings.ReplaceAll(status, "_", " ")
	return strings.ToUpper(w[:1]) + w[1:]
}

type statusWord struct{ Status, Word string }

func (k *keyspace) statuses() []statusWord {
	var all []statusWord
	for _, s := range []string{"active", "expired", "revoked", "rate_limited"} {
		all = append(all, statusWord{s, k.word(s)})
	}
	return all
}

// column is one of the key list.
type column struct {
	Name, Word string
	Number     bool
	To         string // the list sorted by it, or turned round; empty: it cannot be
	Sorted     string // ascending or descending; empty: by another one
}

// order is one that the list can be had in. The first needs not be asked for.
type order struct{ Sort, Word string }

var orders = []order{
	{"", "Newest first"}, {"created_at", "Oldest first"},
	{"name", "Name, A to Z"}, {"-name", "Name, Z to A"},
	{"-last_used_at", "Most recently used first"}, {"last_used_at", "Least recently used first"},
	{"-use_count", "Most uses first"}, {"use_count", "Fewest uses first"},
	{"expires_at", "Earliest expiry first"}, {"-expires_at", "Latest expiry first"},
}

// firstOrder is how a column is sorted when its header is followed first.
var firstOrder = map[string]string{"name": "name", "created_at": "-created_at", "expires_at": "expires_at", "last_used": "-last_used_at", "use_count": "-use_count"}

// sortable says of columns how the list is sorted, and makes links of their headers.
func sortable(columns []column, sort string, query url.Values) {
	sort = cmp.Or(sort, "-created_at")
	by, down := strings.CutPrefix(sort, "-")
	for i := range columns {
		c := &columns[i]
		next := firstOrder[c.Name]
		if next == "" {
			continue
		}
		if strings.TrimPrefix(next, "-") == by {
			c.Sorted, next = "ascending", "-"+by
			if down {
				c.Sorted, next = "descending", by
			}
		}
		to := maps.Clone(query)
		to.Del("cursor")
		to.Set("sort", next)
		c.To = "/keys?" + to.Encode()
	}
}

var columnWords = map[string]string{
	"id": "Id", "name": "Name", "display": "Key", "owner": "Owner", "environment": "Environment", "status": "Status", "plan": "Plan",
	"scopes": "Scopes", "resources": "Bound to", "limits": "Limits", "allowed_origins": "Origins", "allowed_ips": "Addresses",
	"created_at": "Created", "created_by": "Created by", "expires_at": "Expires", "rotated_at": "Rotated", "grace_until": "Grace until",
	"revoked_at": "Revoked", "last_used": "Last used", "use_count": "Uses", "use": "Last 24 h",
}

// columns are those that the keyspace's product shows, with the name first, the
// owner where it is not one owner's list, and the last day's use.
func (k *keyspace) columns(owner string) []column {
	names := slices.Clone(k.Document.Console.Columns)
	if len(names) == 0 {
		names = []string{"name", "display", "status", "last_used", "use_count", "expires_at"}
	}
	if !slices.Contains(names, "name") {
		names = append([]string{"name"}, names...)
	}
	if owner == "" && !slices.Contains(names, "owner") {
		names = slices.Insert(names, 1, "owner")
	}
	names = append(names, "use")
	var all []column
	for _, n := range names {
		all = append(all, column{Name: n, Word: columnWords[n], Number: n == "use_count"})
	}
	return all
}

// listed is a key in the list, or on its page.
type listed struct {
	Key          api.Key
	Status, Word string
	Spark        template.HTML
}

// keyCap is an owner's plan: its active keys against the most that it allows.
type keyCap struct {
	Active, Max int // Max 0: any number
	Plan        string
	Full        bool
	Name        string // of the owner
}

// refusal is why no key can be created under a plan; empty: one can.
func (c *keyCap) refusal(doc *domain.Document) string {
	if c == nil {
		return ""
	}
	if p, ok := doc.Plans[c.Plan]; ok && p.Access != nil && !*p.Access {
		return fmt.Sprintf("The plan %s has no access to this API: with another plan keys can be created.", c.Plan)
	}
	if c.Full {
		return fmt.Sprintf("The plan %s allows %s, and all are in use: revoke or delete one that is not needed, or choose a larger plan.", c.Plan, plural(c.Max, "active key"))
	}
	return ""
}

// upgrade is where the document says that plans are changed; empty: nowhere.
func (c *keyCap) upgrade(doc *domain.Document) string {
	var to string
	if json.Unmarshal(doc.Plans[c.Plan].Details["upgrade_url"], &to) != nil || !strings.HasPrefix(to, "https://") {
		return ""
	}
	return to
}

// filters are what a list is narrowed by.
type filters struct{ Status, Scope, Resource, Environment, Q string }

func (f filters) any() bool { return f != filters{} }

type keysData struct {
	Keyspaces    []string
	Keyspace     string
	Document     *domain.Document
	Owner        string
	Kind         string // what its people call an owner
	Owners       []api.Owner
	ChooseOwner  bool
	Filters      filters
	More         bool // the filters that few need are shown at once
	Statuses     []statusWord
	Scopes       []string
	Environments []string
	Columns      []column
	Sort         string // empty: newest first
	Order        string // in words
	Orders       []order
	Keys         []listed
	Next         string
	First        string // the first page, where this is a further one
	Clear        string // the list without filters
	Filtered     bool
	Cap          *keyCap
	Refused      string // why no key can be created
	Upgrade      string
	MayCreate    bool
	MayRevoke    bool
	Create       string // the form for a new key
	Curl         string // a first request
	Problem      *api.Problem
}

// chosen is the keyspace and owner that a page is about, of the address or the
// only ones that there are.
func (v *visit) chosen() (all []keyspace, ks *keyspace, owner string, err error) {
	if all, err = v.keyspaces(); err != nil || len(all) == 0 {
		return all, nil, "", err
	}
	ks, q := &all[0], v.r.URL.Query()
	if id := q.Get("keyspace"); id != "" {
		i := slices.IndexFunc(all, func(k keyspace) bool { return k.ID == id })
		if i < 0 {
			return all, nil, "", &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no such keyspace, or it is not yours to see."}
		}
		ks = &all[i]
	}
	owner = strings.TrimSpace(q.Get("owner"))
	if v.me.For != nil {
		owner = v.me.For.Owner
	}
	return all, ks, owner, nil
}

func (v *visit) cap(ks *keyspace, owner string) (*keyCap, error) {
	if owner == "" {
		return nil, nil
	}
	var o api.Owner
	if err := v.get("/v1/keyspaces/"+url.PathEscape(ks.ID)+"/owners/"+url.PathEscape(owner), nil, &o); err != nil {
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Status == http.StatusNotFound {
			return nil, nil
		}
		return nil, err
	}
	c := &keyCap{Active: o.ActiveKeys, Plan: o.Plan, Name: o.Name}
	if o.MaxKeys != nil {
		c.Max, c.Full = *o.MaxKeys, o.ActiveKeys >= *o.MaxKeys
	}
	return c, nil
}

// owners help to type one; a page without them is whole.
func (v *visit) owners(ks string) []api.Owner {
	var list struct{ Owners []api.Owner }
	if err := v.get("/v1/keyspaces/"+url.PathEscape(ks)+"/owners", url.Values{"limit": {"100"}}, &list); err != nil {
		return nil
	}
	return list.Owners
}

func (v *visit) keys() error {
	all, ks, owner, err := v.chosen()
	if err != nil {
		return err
	}
	d := keysData{Owner: owner, ChooseOwner: v.me.For == nil, MayRevoke: v.may(domain.KeysRevoke)}
	if ks == nil {
		return v.show("keys", "Keys", d)
	}
	for _, k := range all {
		d.Keyspaces = append(d.Keyspaces, k.ID)
	}
	doc := &ks.Document
	d.Keyspace, d.Document, d.Statuses, d.Columns, d.Kind = ks.ID, doc, ks.statuses(), ks.columns(owner), cmp.Or(doc.Owner.Kind, "owner")
	d.Scopes, d.Environments = slices.Sorted(maps.Keys(doc.Scopes)), slices.Sorted(maps.Keys(doc.Format.Prefixes))
	if len(doc.FixedScopes) > 0 {
		d.Scopes = nil // every key has the same
	}
	q := v.r.URL.Query()
	d.Filters = filters{q.Get("status"), q.Get("scope"), strings.TrimSpace(q.Get("resource")), q.Get("environment"), strings.TrimSpace(q.Get("q"))}
	d.More = d.Filters.Scope+d.Filters.Resource+d.Filters.Environment != ""
	d.Filtered = d.Filters.any()
	here := url.Values{"keyspace": {ks.ID}}
	if owner != "" && v.me.For == nil {
		here.Set("owner", owner)
	}
	if d.Sort = q.Get("sort"); d.Sort == "-created_at" {
		d.Sort = ""
	}
	sortable(d.Columns, d.Sort, q)
	d.Orders = orders
	if i := slices.IndexFunc(orders, func(o order) bool { return o.Sort == d.Sort }); i >= 0 {
		d.Order = strings.ToLower(orders[i].Word[:1]) + orders[i].Word[1:]
		if strings.HasPrefix(d.Order, "name") {
			d.Order = "by " + d.Order
		}
	}
	unfiltered := maps.Clone(here)
	if d.Sort != "" {
		unfiltered.Set("sort", d.Sort)
	}
	d.Clear = "/keys?" + unfiltered.Encode()
	if d.Filters.Resource != "" {
		here.Set("resource", d.Filters.Resource)
	}
	d.Create = "/keys/new?" + here.Encode()
	if d.Cap, err = v.cap(ks, owner); err != nil {
		return err
	}
	if d.Refused = d.Cap.refusal(doc); d.Refused != "" {
		d.Upgrade = d.Cap.upgrade(doc)
	}
	d.MayCreate = v.may(domain.KeysCreate)
	ask := url.Values{"keyspace": {ks.ID}, "limit": {"50"}}
	for name, value := range map[string]string{"owner": owner, "status": d.Filters.Status, "q": d.Filters.Q, "sort": d.Sort, "cursor": q.Get("cursor"), "scope": d.Filters.Scope, "resource": d.Filters.Resource, "environment": d.Filters.Environment} {
		if value != "" {
			ask.Set(name, value)
		}
	}
	var page struct {
		Keys       []api.Key `json:"keys"`
		NextCursor *string   `json:"next_cursor"`
	}
	if err := v.get("/v1/keys", ask, &page); err != nil {
		p, ok := errors.AsType[*api.Problem](err)
		if !ok {
			return err
		}
		d.Problem = p
	}
	sparks := v.sparks(ks.ID, owner, page.Keys)
	for _, k := range page.Keys {
		d.Keys = append(d.Keys, listed{k, k.Status, ks.word(k.Status), sparks[k.ID]})
	}
	if q.Has("cursor") {
		back := maps.Clone(q)
		back.Del("cursor")
		d.First = "/keys?" + back.Encode()
	}
	if page.NextCursor != nil {
		q.Set("cursor", *page.NextCursor)
		d.Next = "/keys?" + q.Encode()
	}
	if len(d.Keys) == 0 && !d.Filtered {
		c := credentialOf(ks.ID, doc.Credential.Header, doc.Credential.Scheme, examplePath(doc, &api.Key{Owner: cmp.Or(owner, "OWNER")}), "")
		d.Curl = fmt.Sprintf("curl -H \"%s: %s$%s\" \\\n  %s", c.header, c.before(), c.variable, shellWord("https://api.example.com"+c.path))
	}
	if d.ChooseOwner {
		d.Owners = v.owners(ks.ID)
	}
	return v.show("keys", "Keys", d)
}

// sparks draws the requests of the last 24 hours of some keys of a list. Where
// figures are not to be had, there are none.
func (v *visit) sparks(ks, owner string, keys []api.Key) map[string]template.HTML {
	if len(keys) == 0 || !v.may(domain.UsageRead) {
		return nil
	}
	to := v.Now().UTC().Truncate(time.Hour).Add(time.Hour)
	from := to.Add(-24 * time.Hour)
	values := map[string][]float64{}
	var ids []string
	for _, k := range keys {
		// Where only successful calls count as uses, others are drawn all the same.
		if !k.LastUsedAt.Time().Before(from) || k.LastUsedAt == 0 && k.UseCount != nil && *k.UseCount > 0 {
			ids, values[k.ID] = append(ids, k.ID), make([]float64, 24)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	ask := url.Values{"keys": {strings.Join(ids, ",")}, "by": {"key"}, "bucket": {"hour"}, "from": {from.Format(time.RFC3339)}, "to": {to.Format(time.RFC3339)}}
	if ks != "" {
		ask.Set("keyspace", ks)
	}
	if owner != "" {
		ask.Set("owner", owner)
	}
	var list api.UsageList
	if err := v.get("/v1/analytics/usage", ask, &list); err != nil {
		return nil
	}
	sums := map[string]int64{}
	for _, u := range list.Usage {
		if i := int(u.Time.Time().Sub(from) / time.Hour); u.Key != nil && i >= 0 && i < 24 && values[*u.Key] != nil {
			values[*u.Key][i] = float64(u.Requests)
			sums[*u.Key] += u.Requests
		}
	}
	drawn := map[string]template.HTML{}
	for id, v := range values {
		drawn[id] = chart.Spark(v, fmt.Sprintf("%s requests in the last 24 hours", chart.Count(sums[id])))
	}
	return drawn
}
