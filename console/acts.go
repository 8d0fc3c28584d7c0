package console

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
)

// askData is a page that asks before it does something to a key.
type askData struct {
	listed
	Document   *domain.Document
	Act        string
	Once       string
	Graces     []graceChoice
	Deliveries []choice
	Given      url.Values
	Reasons    []string
	Recent     *api.Usage // of the last 24 hours; nil: not known
	Previous   *api.PreviousUses
	MayLook    bool // at addresses
	Problem    *api.Problem
}

// graceChoice is how long the previous secret works on, and what that means.
type graceChoice struct {
	choice
	Means string
}

var actTitles = map[string]string{"rotate": "Rotate", "revoke": "Revoke", "delete": "Delete", "end-grace": "End the grace of"}

// Reasons are what is mostly the case; anything else can be written.
var (
	revokeReasons = []string{"leaked or exposed", "no longer needed", "employee left", "changing environments"}
	rotateReasons = []string{"as planned", "leaked or exposed", "employee left", "the secret was lost"}
)

func (v *visit) ask() error { return v.showAsk(nil, url.Values{}) }

func (v *visit) showAsk(problem *api.Problem, given url.Values) error {
	act := v.r.PathValue("act")
	if actTitles[act] == "" {
		return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no page at this address."}
	}
	k, ks, err := v.keyOf()
	if err != nil {
		return err
	}
	d := askData{listed: listed{Key: k, Status: k.Status, Word: ks.word(k.Status)}, Document: &ks.Document, Act: act, Once: newToken(), Problem: problem, Given: given,
		MayLook: v.may(domain.AuditRead) && v.me.For == nil}
	switch act {
	case "rotate":
		d.Graces, d.Reasons = graces(ks.Document.Lifecycle.Rotation, given.Get("grace"), v.Now()), rotateReasons
		d.Deliveries = []choice{{"24h", "1 day", false}, {"72h", "3 days", true}, {"168h", "7 days", false}, {"720h", "30 days", false}}
	case "revoke":
		d.Reasons = revokeReasons
	}
	if act == "end-grace" || act == "rotate" && k.GraceUntil != 0 {
		d.Previous = v.previous(k.ID)
	}
	if act != "end-grace" && v.may(domain.UsageRead) {
		var list api.UsageList
		if err := v.get("/v1/analytics/usage", url.Values{"key": {k.ID}, "from": {v.Now().Add(-24 * time.Hour).UTC().Format(time.RFC3339)}}, &list); err == nil {
			d.Recent = &api.Usage{}
			if len(list.Usage) > 0 {
				d.Recent = &list.Usage[0]
			}
		}
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("ask", actTitles[act]+" "+cmp.Or(k.Name, k.ID), d)
}

// previous is who used the secret before the current one; nil: that is not known.
func (v *visit) previous(id string) *api.PreviousUses {
	var p api.PreviousUses
	if err := v.get("/v1/keys/"+url.PathEscape(id)+"/previous-uses", nil, &p); err != nil {
		return nil
	}
	return &p
}

// graces are times that a previous secret may go on working, up to the most that
// the keyspace allows, the shortest first.
func graces(r domain.Rotation, given string, now time.Time) []graceChoice {
	all := []time.Duration{time.Duration(r.GraceDefault), time.Duration(r.GraceMax)}
	for _, d := range []time.Duration{0, time.Hour, 24 * time.Hour, 48 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour} {
		if d <= time.Duration(r.GraceMax) {
			all = append(all, d)
		}
	}
	slices.Sort(all)
	var list []graceChoice
	for _, d := range slices.Compact(all) {
		g := graceChoice{choice: choice{Value: domain.Duration(d).String(), Word: "For " + spoken(d)}}
		g.Means = fmt.Sprintf("Both work until %s.", now.Add(d).UTC().Format("2 January, 15:04 UTC"))
		if d == 0 {
			g.Word, g.Means = "Not at all", "It ends the moment the new one is made. Whatever uses it is refused until it has the new one. For a secret that has leaked."
		}
		g.Chosen = g.Value == cmp.Or(given, r.GraceDefault.String())
		list = append(list, g)
	}
	return list
}

// reason is what was chosen, or written.
func (v *visit) reason() string {
	if r := v.form("reason"); r != "" && r != "other" {
		return r
	}
	return cmp.Or(v.form("other"), v.form("reason"))
}

func (v *visit) act() error {
	id, act := v.r.PathValue("id"), v.r.PathValue("act")
	path := "/v1/keys/" + url.PathEscape(id)
	header := once(v.form("once"))
	retry := func(err error) error {
		if p, ok := errors.AsType[*api.Problem](err); ok && (p.Status == http.StatusUnprocessableEntity || p.Status == http.StatusConflict || p.Status == http.StatusBadRequest) {
			return v.showAsk(p, v.r.PostForm)
		}
		return err
	}
	switch act {
	case "rotate":
		in := map[string]any{"reason": v.reason()}
		if g := v.form("grace"); g != "" {
			in["grace"] = g
		}
		if v.form("end_grace") != "" {
			in["end_grace"] = true
		}
		claimOf(v.r.PostForm, in)
		var out api.KeySecret
		if _, err := v.call(http.MethodPost, path+"/rotate", nil, header, in, &out); err != nil {
			return retry(err)
		}
		ks, err := v.keyspace(out.Key.Keyspace)
		if err != nil {
			return err
		}
		return v.reveal(ks, out, "rotated")
	case "revoke":
		if _, err := v.call(http.MethodPost, path+"/revoke", nil, header, map[string]any{"reason": v.reason()}, nil); err != nil {
			return retry(err)
		}
		return v.redirect("/keys/"+url.PathEscape(id), "revoked")
	case "end-grace":
		if _, err := v.call(http.MethodPost, path+"/end-grace", nil, header, nil, nil); err != nil {
			return retry(err)
		}
		return v.redirect("/keys/"+url.PathEscape(id), "grace-ended")
	case "delete":
		var k api.Key
		if err := v.get(path, nil, &k); err != nil {
			return err
		}
		if _, err := v.call(http.MethodDelete, path, nil, header, nil, nil); err != nil {
			return retry(err)
		}
		return v.redirect("/keys?"+url.Values{"keyspace": {k.Keyspace}, "owner": {k.Owner}}.Encode(), "deleted")
	}
	return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no page at this address."}
}

// revokeChosen asks about, and then revokes, keys that were chosen in the list.
func (v *visit) revokeChosen() error {
	ids, back := v.r.PostForm["id"], ours(v.form("back"))
	if len(ids) == 0 {
		return v.redirect(back, "none-chosen")
	}
	if len(ids) > 100 {
		return &api.Problem{Status: http.StatusUnprocessableEntity, Title: "Too many keys", Detail: "Choose at most 100 keys at once."}
	}
	type asked struct {
		Keys    []api.Key
		Back    string
		Once    string
		Reasons []string
		Problem *api.Problem
	}
	d := asked{Back: back, Once: newToken(), Reasons: revokeReasons}
	if v.form("sure") != "" {
		var left []string
		for _, id := range ids {
			_, err := v.call(http.MethodPost, "/v1/keys/"+url.PathEscape(id)+"/revoke", nil, once(v.form("once")+id), map[string]any{"reason": v.reason()}, nil)
			p, refused := errors.AsType[*api.Problem](err)
			switch {
			case refused:
				d.Problem, left = p, append(left, id)
			case err != nil:
				return err
			}
		}
		if len(left) == 0 {
			return v.redirect(back, "revoked-all")
		}
		// What was revoked is; the page asks about the others again.
		d.Problem.Detail = fmt.Sprintf("%s revoked, %d not. %s", plural(len(ids)-len(left), "key"), len(left), d.Problem.Detail)
		ids = left
		v.w.WriteHeader(d.Problem.Status)
	}
	for _, id := range ids {
		var k api.Key
		if err := v.get("/v1/keys/"+url.PathEscape(id), nil, &k); err != nil {
			return err
		}
		d.Keys = append(d.Keys, k)
	}
	return v.show("revokechosen", "Revoke "+plural(len(ids), "key"), d)
}
