package console

import (
	"cmp"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
)

func (c *Console) ownerPages() {
	c.page("GET /owners", (*visit).ownerList)
	c.page("GET /owners/new", func(v *visit) error { return v.showOwnerForm(nil) })
	c.page("POST /owners/new", (*visit).saveOwner)
	c.page("GET /owners/{ks}/{owner}", (*visit).owner)
	c.page("GET /owners/{ks}/{owner}/figures", (*visit).ownerFigures)
	c.page("GET /owners/{ks}/{owner}/edit", func(v *visit) error { return v.showOwnerForm(nil) })
	c.page("POST /owners/{ks}/{owner}/edit", (*visit).saveOwner)
	c.page("GET /owners/{ks}/{owner}/revoke", func(v *visit) error { return v.askRevokeAll(nil, 0) })
	c.page("POST /owners/{ks}/{owner}/revoke", (*visit).revokeAll)
}

// planView is a plan in words.
type planView struct {
	Name, Words string
	Here        bool
}

// planWords say what a plan allows.
func planWords(p domain.Plan) string {
	if p.Access != nil && !*p.Access {
		return "no access to the API: its keys are refused"
	}
	var parts []string
	for _, w := range windows {
		if n, ok := p.Limits[w]; ok {
			if len(parts) == 0 {
				w = "requests a " + w
			} else {
				w = "a " + w
			}
			parts = append(parts, grouped(n)+" "+w)
		}
	}
	words := "unlimited requests"
	if len(parts) > 0 {
		words = strings.Join(parts, ", ")
	}
	if p.MaxKeys != nil {
		words += ", " + plural(*p.MaxKeys, "key")
	} else {
		words += ", any number of keys"
	}
	if p.Scopes != nil {
		words += fmt.Sprintf(", %d of the scopes", len(p.Scopes))
	}
	return words
}

func (k *keyspace) plans(here string) []planView {
	var list []planView
	for _, name := range slices.Sorted(maps.Keys(k.Document.Plans)) {
		list = append(list, planView{name, planWords(k.Document.Plans[name]), name == here})
	}
	return list
}

type ownerRow struct {
	api.Owner
	Full bool
}

// ownerPath is where an owner's page is.
func ownerPath(keyspace, owner string) string {
	return "/owners/" + url.PathEscape(keyspace) + "/" + url.PathEscape(owner)
}

func (v *visit) ownerList() error {
	if v.me.For != nil { // there is one
		return v.redirect(ownerPath(v.me.For.Keyspace, v.me.For.Owner), "")
	}
	all, ks, _, err := v.chosen()
	if err != nil {
		return err
	}
	d := struct {
		Keyspaces         []string
		Keyspace, Q, Kind string
		Owners            []ownerRow
		Next              string
		MayWrite, Counted bool
		Plans             bool
		Matching          int
	}{MayWrite: v.may(domain.OwnersWrite)}
	if ks == nil {
		return v.show("owners", "Owners", d)
	}
	for _, k := range all {
		d.Keyspaces = append(d.Keyspaces, k.ID)
	}
	q := v.r.URL.Query()
	d.Keyspace, d.Q, d.Kind, d.Plans = ks.ID, strings.TrimSpace(q.Get("q")), cmp.Or(ks.Document.Owner.Kind, "owner"), len(ks.Document.Plans) > 0
	ask := url.Values{"limit": {"50"}}
	for name, value := range map[string]string{"q": d.Q, "cursor": q.Get("cursor")} {
		if value != "" {
			ask.Set(name, value)
		}
	}
	var page struct {
		Owners     []api.Owner `json:"owners"`
		NextCursor *string     `json:"next_cursor"`
	}
	if err := v.get("/v1/keyspaces/"+url.PathEscape(ks.ID)+"/owners", ask, &page); err != nil {
		return err
	}
	for _, o := range page.Owners {
		d.Owners = append(d.Owners, ownerRow{o, o.MaxKeys != nil && o.ActiveKeys >= *o.MaxKeys})
	}
	if page.NextCursor != nil {
		q.Set("cursor", *page.NextCursor)
		d.Next = "/owners?" + q.Encode()
	}
	return v.show("owners", "Owners", d)
}

// ownerOf is the owner that a page is about.
func (v *visit) ownerOf() (o api.Owner, ks *keyspace, err error) {
	if ks, err = v.keyspace(v.r.PathValue("ks")); err != nil {
		return o, nil, err
	}
	return o, ks, v.get("/v1/keyspaces/"+url.PathEscape(ks.ID)+"/owners/"+url.PathEscape(v.r.PathValue("owner")), nil, &o)
}

type ownerData struct {
	ownerRow
	Kind      string
	PlanWords string
	Keys      []listed
	More      bool // keys than are shown
	KeysAway  *api.Problem
	Alerts    []alertRow
	MayCreate bool
	MayEdit   bool
	MayRevoke bool
	MayAlert  bool
	Figures   *figuresPart // where they are asked for with the page
	Path      string
	Span      span
	Spans     []span
}

// figuresPart is what is slow to add up.
type figuresPart struct {
	Chart       template.HTML
	Total       *api.Usage
	Unavailable *api.Problem
}

// keysShown of an owner are on its page; all of them are in the key list.
const keysShown = 10

func (v *visit) owner() error {
	o, ks, err := v.ownerOf()
	if err != nil {
		return err
	}
	full := o.MaxKeys != nil && o.ActiveKeys >= *o.MaxKeys
	d := ownerData{ownerRow: ownerRow{o, full}, Kind: cmp.Or(ks.Document.Owner.Kind, "owner"), Path: ownerPath(o.Keyspace, o.ID),
		MayCreate: v.may(domain.KeysCreate), MayEdit: v.may(domain.OwnersWrite), MayRevoke: v.may(domain.KeysRevoke) && o.ActiveKeys > 0, MayAlert: v.may(domain.AlertsRead)}
	d.Span, d.Spans = v.span()
	if p, ok := ks.Document.Plans[o.Plan]; ok {
		d.PlanWords = planWords(p)
	}
	var page api.KeyPage
	err = v.get("/v1/keys", url.Values{"keyspace": {o.Keyspace}, "owner": {o.ID}, "limit": {strconv.Itoa(keysShown)}}, &page)
	if p, ok := errors.AsType[*api.Problem](err); ok {
		d.KeysAway = p
	} else if err != nil {
		return err
	}
	for _, k := range page.Keys {
		d.Keys = append(d.Keys, listed{Key: k, Status: k.Status, Word: ks.word(k.Status)})
	}
	d.More = page.NextCursor != nil
	if d.MayAlert && d.KeysAway == nil {
		var alerts api.AlertPage
		if err := v.get("/v1/alerts", url.Values{"keyspace": {o.Keyspace}, "owner": {o.ID}, "state": {"raised"}, "limit": {"5"}}, &alerts); err != nil {
			return err
		}
		d.Alerts = v.alertRows(alerts.Alerts)
	}
	if v.r.URL.Query().Get("figures") != "" {
		if d.Figures, err = v.figures(d.Span, o); err != nil {
			return err
		}
	}
	return v.show("owner", cmp.Or(o.Name, o.ID), d)
}

func (v *visit) figures(s span, o api.Owner) (*figuresPart, error) {
	filter := url.Values{"keyspace": {o.Keyspace}, "owner": {o.ID}}
	part := &figuresPart{}
	at, rows, err := v.usage(s, filter)
	if p, ok := errors.AsType[*api.Problem](err); ok {
		part.Unavailable = p
		return part, nil
	}
	if err != nil {
		return nil, err
	}
	part.Chart = outcomes("Requests of all keys", s, at, rows)
	part.Total = sum(rows)
	return part, nil
}

// sum adds up what buckets count.
func sum(rows []*api.Usage) *api.Usage {
	t := &api.Usage{}
	for _, u := range rows {
		if u == nil {
			continue
		}
		t.Requests += u.Requests
		t.Successes += u.Successes
		t.Errors += u.Errors
		t.Unknown += u.Unknown
		t.Denied += u.Denied
		t.RateLimited += u.RateLimited
		t.CostMicros += u.CostMicros
	}
	return t
}

func (v *visit) ownerFigures() error {
	o, _, err := v.ownerOf()
	if err != nil {
		return err
	}
	s, _ := v.span()
	part, err := v.figures(s, o)
	if err != nil {
		return err
	}
	return v.fragment("owner", "figures", part)
}

type ownerForm struct {
	Keyspace, Kind string
	Keyspaces      []string
	ID, Name       string
	New            bool
	Plans          []planView
	Once           string
	Problem        *api.Problem
	Back           string
	ActiveKeys     int
	MaxKeys        map[string]int // by plan
}

// showOwnerForm is the form for a new owner, or for one that there is.
func (v *visit) showOwnerForm(problem *api.Problem) error {
	if !v.may(domain.OwnersWrite) {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "Owners are registered and put on plans by an operator."}
	}
	d := ownerForm{Once: newToken(), Problem: problem}
	var ks *keyspace
	plan := ""
	if v.r.PathValue("owner") != "" {
		o, space, err := v.ownerOf()
		if err != nil {
			return err
		}
		ks, plan, d.ID, d.Name, d.ActiveKeys, d.Back = space, o.Plan, o.ID, o.Name, o.ActiveKeys, ownerPath(o.Keyspace, o.ID)
	} else {
		all, space, _, err := v.chosen()
		if err != nil {
			return err
		}
		if v.r.Method == http.MethodPost {
			if space, err = v.keyspace(v.form("keyspace")); err != nil {
				return err
			}
		}
		if space == nil {
			return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no keyspace yet that owners could belong to: an operator makes one first."}
		}
		for _, k := range all {
			d.Keyspaces = append(d.Keyspaces, k.ID)
		}
		ks, d.New, plan, d.Back = space, true, space.Document.DefaultPlan, "/owners?keyspace="+url.QueryEscape(space.ID)
	}
	if v.r.Method == http.MethodPost {
		d.ID, d.Name, plan = cmp.Or(v.r.PathValue("owner"), v.form("owner")), v.form("name"), cmp.Or(v.form("plan"), plan)
	}
	d.Keyspace, d.Kind, d.Plans = ks.ID, cmp.Or(ks.Document.Owner.Kind, "owner"), ks.plans(plan)
	title := "Edit " + cmp.Or(d.Name, d.ID)
	if d.New {
		title = "Register " + article(d.Kind)
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("ownerform", title, d)
}

func (v *visit) saveOwner() error {
	keyspace, owner := v.r.PathValue("ks"), v.r.PathValue("owner")
	fresh := owner == ""
	if fresh {
		keyspace, owner = v.form("keyspace"), v.form("owner")
	}
	path := "/v1/keyspaces/" + url.PathEscape(keyspace) + "/owners/" + url.PathEscape(owner)
	if !domain.ValidEntityID(owner) {
		return v.showOwnerForm(&api.Problem{Status: http.StatusUnprocessableEntity, Detail: "The id is not valid; nothing was recorded.",
			Errors: []api.Detail{{Path: "owner", Message: "is not an id", Fix: "letters, digits, - and _, at most 64, beginning with a letter or digit"}}})
	}
	if fresh {
		// A form to register must not rename somebody.
		var there api.Owner
		err := v.get(path, nil, &there)
		p, ok := errors.AsType[*api.Problem](err)
		if err == nil {
			return v.showOwnerForm(&api.Problem{Status: http.StatusConflict, Detail: "There is an owner with this id already.",
				Errors: []api.Detail{{Path: "owner", Message: "is taken by " + cmp.Or(there.Name, there.ID), Fix: "another id, or change that owner on its page"}}})
		}
		if !ok || p.Status != http.StatusNotFound {
			return err
		}
	}
	in := map[string]any{"name": v.form("name")}
	if plan := v.form("plan"); plan != "" {
		in["plan"] = plan
	}
	if _, err := v.call(http.MethodPut, path, nil, once(v.form("once")), in, nil); err != nil {
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Status < 500 && p.Status != http.StatusForbidden && p.Status != http.StatusNotFound {
			return v.showOwnerForm(p)
		}
		return err
	}
	return v.redirect(ownerPath(keyspace, owner), "owner-saved")
}

// revokedAtOnce is how many keys one form revokes: each is on disk before the next.
const revokedAtOnce = 500

type revokeAllData struct {
	Owner   api.Owner
	Keys    []api.Key
	Once    string
	Most    int
	Done    int
	Problem *api.Problem
}

func (v *visit) askRevokeAll(problem *api.Problem, revoked int) error {
	if !v.may(domain.KeysRevoke) {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "This sign-in may not revoke keys."}
	}
	o, _, err := v.ownerOf()
	if err != nil {
		return err
	}
	d := revokeAllData{Owner: o, Once: newToken(), Most: revokedAtOnce, Done: revoked, Problem: problem}
	var page api.KeyPage
	if err := v.get("/v1/keys", url.Values{"keyspace": {o.Keyspace}, "owner": {o.ID}, "status": {"active"}, "limit": {"5"}}, &page); err != nil {
		return err
	}
	d.Keys = page.Keys
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("revokeall", "Revoke all keys of "+cmp.Or(o.Name, o.ID), d)
}

// revokeAll revokes what an owner has, key by key. Keys that are made meanwhile may
// stay: the page says how many are left.
func (v *visit) revokeAll() error {
	o, _, err := v.ownerOf()
	if err != nil {
		return err
	}
	if v.form("sure") != o.ID {
		return v.askRevokeAll(&api.Problem{Status: http.StatusUnprocessableEntity, Detail: "Nothing was revoked.",
			Errors: []api.Detail{{Path: "sure", Message: "is not the id of the owner", Fix: "type " + o.ID}}}, 0)
	}
	reason := v.form("reason")
	var page api.KeyPage
	if err := v.get("/v1/keys", url.Values{"keyspace": {o.Keyspace}, "owner": {o.ID}, "status": {"active"}, "limit": {strconv.Itoa(revokedAtOnce)}}, &page); err != nil {
		return err
	}
	for _, k := range page.Keys {
		if _, err := v.call(http.MethodPost, "/v1/keys/"+url.PathEscape(k.ID)+"/revoke", nil, once(v.form("once")+k.ID), map[string]any{"reason": reason}, nil); err != nil {
			if p, ok := errors.AsType[*api.Problem](err); ok && (p.Status == http.StatusGone || p.Status == http.StatusConflict) {
				continue // somebody else ended it meanwhile
			}
			return err
		}
	}
	if o, _, err = v.ownerOf(); err != nil {
		return err
	}
	if o.ActiveKeys > 0 {
		return v.askRevokeAll(nil, len(page.Keys))
	}
	return v.redirect(ownerPath(o.Keyspace, o.ID), "revoked-all")
}
