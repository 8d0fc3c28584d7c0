package console

import (
	"errors"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/queries"
)

func (c *Console) alertPages() {
	c.page("GET /alerts", (*visit).alerts)
	c.page("GET /alerts/rules", func(v *visit) error { return v.showRules(nil, nil) })
	c.page("POST /alerts/rules", (*visit).saveRules)
}

// alertKind is what people should know of one condition.
type alertKind struct {
	When   string
	Title  string // of an alert
	About  string // what it watches
	Field  string // of the threshold: above, within or for; empty: it has none
	Label  string
	Unit   string // beside the field
	Scale  float64
	Over   bool // it looks at a window
	Least  bool // it may ask for so many requests
	Hint   string
	Advice string // what one does about it
}

var alertKinds = []alertKind{
	{"limit_used", "A limit is nearly used up", "The largest share used of a minute’s, an hour’s or a day’s limit.", "above", "Above", "% of the limit", 100, false, false, "80", "Raise the limit or the plan, or ask its users to call less."},
	{"error_rate", "Many requests fail", "The share of requests answered with 400 or above, among those whose outcome is known.", "above", "Above", "% of requests", 100, true, true, "5", "See by endpoint on the key’s page what fails."},
	{"unusual_volume", "Unusually many requests", "Requests within the window, compared with the key’s own past: 28 windows of the same length.", "above", "Above", "standard deviations", 1, true, true, "4", "Ask its owner whether this is theirs; revoke the key if it is not."},
	{"new_source_ip", "Used from a new address", "An address that the key was never used from. Its first one raises nothing.", "", "", "", 1, false, false, "", "If nobody of its owner knows the address, rotate the key."},
	{"denied", "Many requests are refused", "Requests refused for another reason than a limit: a scope, an origin, an expired key.", "above", "Above", "requests", 1, true, false, "100", "See the codes on the key’s page: something is configured wrongly, or somebody tries."},
	{"cost", "It costs much", "What its requests cost together.", "above", "Above", "in the currency of your costs", 1e-6, true, false, "20", "Lower its limits, or speak with its owner."},
	{"expiring", "Expires soon", "How near a key’s expiry is.", "within", "Within", "such as 14d", 1, false, false, "14d", "Put the expiry off, or make its successor now."},
	{"expired", "Has expired", "That its expiry has passed. Resolved after seven days.", "", "", "", 1, false, false, "", "If it is still needed, create another one."},
	{"unused", "Is not used", "How long ago the last use is, or its creation.", "for", "For", "such as 90d", 1, false, false, "90d", "Revoke what nobody needs: it can only leak."},
	{"rotation_overdue", "Rotation is overdue", "A secret older than the keyspace’s lifecycle.rotation.max_age.", "", "", "", 1, false, false, "", "Rotate it, with a grace in which both secrets work."},
	{"previous_secret", "The old secret is still used", "Uses of the previous secret near the end of its grace.", "within", "Within", "of its end, such as 24h", 1, false, false, "24h", "Somebody has not changed over yet: tell them before the grace ends."},
}

func alertKindOf(when string) *alertKind {
	for i := range alertKinds {
		if alertKinds[i].When == when {
			return &alertKinds[i]
		}
	}
	return &alertKind{When: when, Title: strings.ReplaceAll(when, "_", " "), Scale: 1}
}

// plainNumber is a figure of a rule without needless digits.
func plainNumber(f float64) string {
	return strconv.FormatFloat(math.Round(f*100)/100, 'f', -1, 64)
}

// alertRow is an alert in words.
type alertRow struct {
	queries.AlertView
	Title, Figure, Threshold, Advice, Because, KeyName string
	Rules                                              string // where its rules are set
}

var resolvedWords = map[string]string{"quiet": "it is quiet again", "over": "it is over", "key_ended": "the key was revoked or deleted", "rule_gone": "the rule counts no more"}

// days are a length of time that is told in days.
func days(f float64) string {
	switch d := time.Duration(f * float64(24*time.Hour)); {
	case d < 2*time.Hour:
		return plural(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return plural(int(d.Hours()), "hour")
	default:
		return plural(int(math.Round(f)), "day")
	}
}

// figureOf says what was measured, and against what.
func figureOf(a *queries.AlertView) (figure, threshold string) {
	percent := func(f float64) string { return plainNumber(math.Round(f*1000)/10) + " %" }
	switch a.When {
	case "limit_used", "error_rate":
		return percent(a.Value), "above " + percent(a.Threshold)
	case "unusual_volume":
		return plainNumber(a.Value) + " standard deviations above its past", "above " + plainNumber(a.Threshold)
	case "denied":
		return plural(int(a.Value), "refusal"), "above " + grouped(int64(a.Threshold))
	case "cost":
		return fmt.Sprintf("%.2f", a.Value/1e6), fmt.Sprintf("above %.2f", a.Threshold/1e6)
	case "expiring":
		return days(a.Value) + " left when it was raised", "within " + days(a.Threshold)
	case "unused":
		return "unused for " + days(a.Value), "for " + days(a.Threshold)
	case "rotation_overdue":
		return "secret " + days(a.Value) + " old", "every " + days(a.Threshold)
	case "previous_secret":
		return "used " + days(a.Value) + " before its end", "within " + days(a.Threshold)
	}
	return "", ""
}

func (v *visit) alertRows(list []queries.AlertView) []alertRow {
	var rows []alertRow
	names := map[string]string{}
	for _, a := range list {
		kind := alertKindOf(a.When)
		row := alertRow{AlertView: a, Title: kind.Title, Advice: kind.Advice, Because: resolvedWords[a.Reason]}
		row.Figure, row.Threshold = figureOf(&a)
		if a.Key != "" {
			name, known := names[a.Key]
			if !known {
				var k api.Key
				if v.get("/v1/keys/"+url.PathEscape(a.Key), nil, &k) == nil { // deleted: its id says which
					name = k.Name
				}
				names[a.Key] = name
			}
			row.KeyName = name
		}
		row.Rules = "/alerts/rules?" + scopeOf(a.Keyspace, a.Owner, a.Key, "").Encode()
		rows = append(rows, row)
	}
	return rows
}

func scopeOf(keyspace, owner, key, resource string) url.Values {
	q := url.Values{}
	if key != "" {
		q.Set("key", key)
		return q
	}
	q.Set("keyspace", keyspace)
	if resource != "" {
		q.Set("resource", resource)
	} else if owner != "" {
		q.Set("owner", owner)
	}
	return q
}

var alertStates = []statusWord{{"raised", "Open"}, {"resolved", "Past"}, {"all", "All"}}

// alertQuery are the filters of a list with another state.
func alertQuery(d alertsData, state string) template.URL {
	q := url.Values{"state": {state}}
	for name, value := range map[string]string{"keyspace": d.Keyspace, "owner": d.Owner, "when": d.When, "key": d.Key} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return template.URL(q.Encode())
}

type alertsData struct {
	Audit                      bool // there are pages of the audit log
	Keyspaces                  []string
	Keyspace, Owner, When, Key string
	State                      string // raised, resolved, all
	ChooseOwner                bool
	Kinds                      []alertKind
	Alerts                     []alertRow
	Next                       string
	Open                       int64
	Filtered                   bool
	Problem                    *api.Problem
	Rules                      string
}

func (v *visit) alerts() error {
	all, err := v.keyspaces()
	if err != nil {
		return err
	}
	q := v.r.URL.Query()
	d := alertsData{Keyspace: q.Get("keyspace"), Owner: strings.TrimSpace(q.Get("owner")), When: q.Get("when"), Key: q.Get("key"), State: q.Get("state"),
		ChooseOwner: v.me.For == nil, Kinds: alertKinds, Audit: v.may(domain.AuditRead) && v.has("/audit")}
	for _, k := range all {
		d.Keyspaces = append(d.Keyspaces, k.ID)
	}
	if v.me.For != nil {
		d.Keyspace, d.Owner = v.me.For.Keyspace, v.me.For.Owner
	}
	if d.State != "resolved" && d.State != "all" {
		d.State = "raised"
	}
	d.Filtered = d.When != "" || d.Key != "" || d.ChooseOwner && (d.Owner != "" || d.Keyspace != "")
	d.Rules = "/alerts/rules"
	if d.Keyspace != "" {
		d.Rules += "?" + scopeOf(d.Keyspace, d.Owner, d.Key, "").Encode()
	}
	ask := url.Values{"limit": {"50"}}
	for name, value := range map[string]string{"keyspace": d.Keyspace, "owner": d.Owner, "when": d.When, "key": d.Key, "cursor": q.Get("cursor")} {
		if value != "" && (name != "owner" || d.Keyspace != "") {
			ask.Set(name, value)
		}
	}
	if d.Owner != "" && d.Keyspace == "" && len(all) > 0 {
		d.Keyspace = all[0].ID // an owner is one of a keyspace
		ask.Set("keyspace", d.Keyspace)
		ask.Set("owner", d.Owner)
	}
	if d.State != "all" {
		ask.Set("state", d.State)
	}
	var page api.AlertPage
	if err := v.get("/v1/alerts", ask, &page); err != nil {
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Status == http.StatusNotFound && v.me.For != nil {
			return err
		}
		d.Problem = p
		return v.show("alerts", "Alerts", d)
	}
	d.Alerts = v.alertRows(page.Alerts)
	if page.NextCursor != nil {
		q.Set("cursor", *page.NextCursor)
		d.Next = "/alerts?" + q.Encode()
	}
	return v.show("alerts", "Alerts", d)
}

// place is what rules are set for.
type place struct {
	Keyspace, Owner, Resource, Key string
	Name                           string // of the key
}

func (p place) path() string {
	at := "/v1/alert-rules/keyspaces/" + url.PathEscape(p.Keyspace)
	switch {
	case p.Key != "":
		return "/v1/alert-rules/keys/" + url.PathEscape(p.Key)
	case p.Resource != "":
		return at + "/resources/" + url.PathEscape(p.Resource)
	case p.Owner != "":
		return at + "/owners/" + url.PathEscape(p.Owner)
	}
	return at
}

// Link is the page about its rules.
func (p place) Link() string {
	return "/alerts/rules?" + scopeOf(p.Keyspace, p.Owner, p.Key, p.Resource).Encode()
}

// Words say what a place is.
func (p place) Words() string {
	switch {
	case p.Key != "" && p.Name != "":
		return "the key " + p.Name
	case p.Key != "":
		return "the key " + p.Key
	case p.Resource != "":
		return "keys bound to " + p.Resource
	case p.Owner != "":
		return "all keys of " + p.Owner
	}
	return "all keys of " + p.Keyspace
}

// ruleFields are what a form holds of one rule.
type ruleFields struct {
	Row                    int
	Threshold, Over, Least string
	Wrong                  map[string]string // by field
}

// ruleGroup are the rules of a form with one condition.
type ruleGroup struct {
	alertKind
	Choice  string // inherit, own, off
	Rows    []ruleFields
	Inforce []ruleWords // what counts at present
	General string      // what would count without rules of this place
	Wrong   string
	Never   string // why it can never be raised here
}

type ruleWords struct{ Words, From string }

type rulesData struct {
	Place     place
	Keyspaces []string
	Groups    []ruleGroup
	Settings  []place // in this keyspace
	SetAt     api.AlertSetting
	MaySet    bool
	WhyNot    string
	Problem   *api.Problem
	Resources bool
	Kind      string
	Manager   bool
}

var fromWords = map[string]string{"key": "set for this key", "resource": "set for what it is bound to", "owner": "set for the owner", "keyspace": "set for the keyspace", "document": "of the keyspace’s document", "built-in": "built in"}

// ruleInWords is a rule as people say it.
func ruleInWords(r api.AlertRule) string {
	kind := alertKindOf(r.When)
	var parts []string
	if r.Above != nil {
		parts = append(parts, "above "+plainNumber(*r.Above*kind.Scale)+" "+strings.TrimPrefix(kind.Unit, "in the currency of your costs"))
	}
	if r.Over != "" {
		parts = append(parts, "within "+r.Over)
	}
	if r.Within != "" {
		parts = append(parts, "within "+r.Within)
	}
	if r.For != "" {
		parts = append(parts, "for "+r.For)
	}
	if r.MinRequests != nil {
		parts = append(parts, fmt.Sprintf("of at least %s requests", grouped(*r.MinRequests)))
	}
	if len(parts) == 0 {
		return "on"
	}
	return strings.Join(strings.Fields(strings.Join(parts, " ")), " ")
}

// placeOf is the place that a page or form is about, of its fields.
func (v *visit) placeOf() (p place, ks *keyspace, err error) {
	get := v.r.URL.Query().Get
	if v.r.Method == http.MethodPost {
		get = v.form
	}
	p = place{Keyspace: get("keyspace"), Owner: strings.TrimSpace(get("owner")), Resource: strings.TrimSpace(get("resource")), Key: strings.TrimSpace(get("key"))}
	if p.Key != "" {
		var k api.Key
		if err := v.get("/v1/keys/"+url.PathEscape(p.Key), nil, &k); err != nil {
			return p, nil, err
		}
		p = place{Keyspace: k.Keyspace, Owner: k.Owner, Key: k.ID, Name: k.Name}
	}
	if p.Keyspace == "" {
		if v.me.For != nil {
			p.Keyspace, p.Owner = v.me.For.Keyspace, v.me.For.Owner
		} else {
			all, err := v.keyspaces()
			if err != nil {
				return p, nil, err
			}
			if len(all) == 0 {
				return p, nil, &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no keyspace yet whose keys could be watched."}
			}
			p.Keyspace = all[0].ID
		}
	}
	ks, err = v.keyspace(p.Keyspace)
	return p, ks, err
}

// showRules shows the rules of a place, as they are or as a form was sent.
func (v *visit) showRules(sent []ruleGroup, problem *api.Problem) error {
	p, ks, err := v.placeOf()
	if err != nil {
		return err
	}
	d := rulesData{Place: p, Problem: problem, MaySet: v.may(domain.AlertsWrite), Resources: ks.Document.Resource.Mode != "none", Kind: ks.Document.Resource.Kind, Manager: v.me.For != nil}
	if !d.MaySet {
		d.WhyNot = "This sign-in reads rules and sets none."
	} else if v.me.For != nil && p.Owner == "" {
		d.MaySet, d.WhyNot = false, "Rules for all of a keyspace are set by an operator; those of your own owner and its keys are yours to set."
	}
	if v.me.For == nil {
		all, err := v.keyspaces()
		if err != nil {
			return err
		}
		for _, k := range all {
			d.Keyspaces = append(d.Keyspaces, k.ID)
		}
	}
	if err := v.get(p.path(), nil, &d.SetAt); err != nil {
		return err
	}
	var general api.AlertSetting
	if up := more(p); up != p {
		// What counts where nothing is set here is what counts one place up.
		if err := v.get(up.path(), nil, &general); err != nil {
			return err
		}
	} else {
		general.InForce = withoutSet(ks)
	}
	d.Groups = sent
	if sent == nil {
		d.Groups = groups(d.SetAt.Rules)
	}
	for i := range d.Groups {
		g := &d.Groups[i]
		for _, r := range d.SetAt.InForce {
			if r.When == g.When {
				g.Inforce = append(g.Inforce, ruleWords{ruleInWords(r.AlertRule), fromWords[r.From]})
			}
		}
		var words []string
		for _, r := range general.InForce {
			if r.When == g.When {
				words = append(words, ruleInWords(r.AlertRule)+", "+fromWords[r.From])
			}
		}
		if g.General = strings.Join(words, "; "); g.General == "" {
			g.General = "off"
		}
		if g.When == "rotation_overdue" && ks.Document.Lifecycle.Rotation.MaxAge == 0 {
			g.Never = "This keyspace calls no secret overdue: its document has no lifecycle.rotation.max_age."
		}
	}
	var list api.AlertSettings
	ask := url.Values{"keyspace": {p.Keyspace}}
	if v.me.For != nil {
		ask.Set("owner", v.me.For.Owner)
	}
	if err := v.get("/v1/alert-rules", ask, &list); err != nil {
		return err
	}
	for _, s := range list.Settings {
		at := place{Keyspace: s.Keyspace, Owner: s.Owner, Resource: s.Resource, Key: s.Key}
		if len(s.Rules) > 0 {
			var k api.Key
			if s.Key != "" && v.get("/v1/keys/"+url.PathEscape(s.Key), nil, &k) == nil {
				at.Name = k.Name
			}
			d.Settings = append(d.Settings, at)
		}
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("alertrules", "Alert rules", d)
}

// more is the next more general place; of a keyspace itself.
func more(p place) place {
	switch {
	case p.Key != "":
		return place{Keyspace: p.Keyspace, Owner: p.Owner}
	case p.Owner != "" || p.Resource != "":
		return place{Keyspace: p.Keyspace}
	}
	return p
}

// withoutSet are the rules of a keyspace's document and those that are built in.
func withoutSet(ks *keyspace) []api.AlertRuleInForce {
	var list []api.AlertRuleInForce
	for _, r := range domain.AlertsFor(&ks.Document, "", "", nil, func(_, _, _ string) []domain.AlertRule { return nil }) {
		rule := api.AlertRule{When: r.When, Above: r.Above}
		for _, d := range []struct {
			of domain.Duration
			to *string
		}{{r.Over, &rule.Over}, {r.Within, &rule.Within}, {r.For, &rule.For}} {
			if d.of != 0 {
				*d.to = d.of.String()
			}
		}
		if r.MinRequests > 0 {
			rule.MinRequests = &r.MinRequests
		}
		list = append(list, api.AlertRuleInForce{AlertRule: rule, From: r.From})
	}
	return list
}

// groups are the form of rules.
func groups(rules []api.AlertRule) []ruleGroup {
	var list []ruleGroup
	for _, kind := range alertKinds {
		g := ruleGroup{alertKind: kind, Choice: "inherit"}
		for _, r := range rules {
			if r.When != kind.When {
				continue
			}
			if r.Off != nil && *r.Off {
				g.Choice = "off"
				continue
			}
			g.Choice = "own"
			f := ruleFields{Row: len(g.Rows), Over: r.Over}
			switch kind.Field {
			case "above":
				if r.Above != nil {
					f.Threshold = plainNumber(*r.Above * kind.Scale)
				}
			case "within":
				f.Threshold = r.Within
			case "for":
				f.Threshold = r.For
			}
			if r.MinRequests != nil {
				f.Least = strconv.FormatInt(*r.MinRequests, 10)
			}
			g.Rows = append(g.Rows, f)
		}
		if kind.Field != "" { // one more, empty, to add
			g.Rows = append(g.Rows, ruleFields{Row: len(g.Rows)})
		}
		list = append(list, g)
	}
	return list
}

// mostRows are the rules of one condition that a form is read for.
const mostRows = 20

func (v *visit) saveRules() error {
	p, _, err := v.placeOf()
	if err != nil {
		return err
	}
	if v.form("remove") != "" {
		if _, err := v.call(http.MethodDelete, p.path(), nil, nil, nil, nil); err != nil {
			return err
		}
		return v.redirect(p.Link(), "rules-gone")
	}
	type spot struct{ group, row int } // of a rule in the form
	rules, spots := []api.AlertRule{}, []spot{}
	var sent []ruleGroup
	wrong := false
	for i, kind := range alertKinds {
		g := ruleGroup{alertKind: kind, Choice: v.form("choice." + kind.When)}
		for row := range mostRows {
			at := "." + kind.When + "." + strconv.Itoa(row)
			f := ruleFields{Row: row, Threshold: v.form("threshold" + at), Over: v.form("over" + at), Least: v.form("least" + at), Wrong: map[string]string{}}
			if f.Threshold == "" && f.Over == "" && f.Least == "" {
				if _, given := v.r.PostForm["threshold"+at]; !given {
					break
				}
				if row > 0 || kind.Field == "" {
					continue // an empty row adds nothing
				}
			}
			f.Row = len(g.Rows)
			g.Rows = append(g.Rows, f)
		}
		switch g.Choice {
		case "off":
			rules, spots = append(rules, api.AlertRule{When: kind.When, Off: new(true)}), append(spots, spot{i, 0})
		case "own":
			if kind.Field == "" {
				rules, spots = append(rules, api.AlertRule{When: kind.When}), append(spots, spot{i, 0})
			}
			for row := range g.Rows {
				f := &g.Rows[row]
				r := api.AlertRule{When: kind.When, Over: f.Over}
				switch kind.Field {
				case "above":
					if n, err := strconv.ParseFloat(strings.ReplaceAll(f.Threshold, ",", ""), 64); err == nil {
						r.Above = new(math.Round(n/kind.Scale*1e6) / 1e6)
					} else {
						f.Wrong["above"] = "a number, such as " + kind.Hint
					}
				case "within":
					r.Within = f.Threshold
				case "for":
					r.For = f.Threshold
				}
				if f.Least != "" {
					if n, err := strconv.ParseInt(f.Least, 10, 64); err == nil {
						r.MinRequests = &n
					} else {
						f.Wrong["min_requests"] = "a whole number"
					}
				}
				wrong = wrong || len(f.Wrong) > 0
				rules, spots = append(rules, r), append(spots, spot{i, row})
			}
		default:
			g.Choice = "inherit"
		}
		if len(g.Rows) == 0 && kind.Field != "" {
			g.Rows = append(g.Rows, ruleFields{})
		}
		sent = append(sent, g)
	}
	if wrong {
		return v.showRules(sent, &api.Problem{Status: http.StatusUnprocessableEntity, Detail: "Some fields are not valid; nothing was recorded."})
	}
	_, err = v.call(http.MethodPut, p.path(), nil, nil, api.AlertRules{Rules: rules}, nil)
	refused, ok := errors.AsType[*api.Problem](err)
	if !ok || refused.Status >= 500 || refused.Status == http.StatusForbidden || refused.Status == http.StatusNotFound {
		if err != nil {
			return err
		}
		return v.redirect(p.Link(), "rules-saved")
	}
	// What the API says of a field is said beside it.
	refused.Errors = slices.DeleteFunc(refused.Errors, func(e api.Detail) bool {
		n, field, ok := ruleField(e.Path)
		if !ok || n >= len(spots) {
			return false
		}
		g := &sent[spots[n].group]
		said := e.Message
		if g.Scale == 100 && field == "above" { // the API counts in shares
			e.Fix = "a number from 0 to 100, such as " + g.Hint
			said = "is not a share"
		}
		if e.Fix != "" {
			said += ": " + e.Fix
		}
		if at := spots[n].row; field != "" && at < len(g.Rows) {
			if g.Rows[at].Wrong == nil {
				g.Rows[at].Wrong = map[string]string{}
			}
			g.Rows[at].Wrong[field] = said
		} else {
			g.Wrong = said
		}
		return true
	})
	return v.showRules(sent, refused)
}

// ruleField reads the path of a problem, such as rules[2].over.
func ruleField(path string) (rule int, field string, ok bool) {
	path = strings.TrimPrefix(path, "body.")
	rest, ok := strings.CutPrefix(path, "rules")
	if !ok {
		return 0, "", false
	}
	parts := strings.FieldsFunc(rest, func(r rune) bool { return r == '[' || r == ']' || r == '.' })
	if len(parts) == 0 {
		return 0, "", false
	}
	n, err := strconv.Atoi(parts[0])
	if len(parts) > 1 {
		field = parts[1]
	}
	return n, field, err == nil
}
