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
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/console/chart"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

// keyPages are the pages about one key. What changes its secret or ends it is in key.go.
func (c *Console) keyPages() {
	c.page("GET /keys/{id}", (*visit).key)
	c.page("GET /keys/{id}/edit", (*visit).editKey)
	c.page("POST /keys/{id}/edit", (*visit).saveKey)
	c.page("GET /keys/{id}/timeline", (*visit).keyTimeline)
	c.page("GET /keys/{id}/addresses", (*visit).keyAddresses)
	c.page("GET /keys/{id}/figures", (*visit).keyFiguresLater)
}

type keyData struct {
	listed
	Document   *domain.Document
	Claim      *api.Claim // nil: its secret was not handed over by a link
	Owner      string     // its kind, as the product calls it
	Scopes     []scopeLine
	Secrets    []secretLine
	Overdue    string // how old the secret may be, where it is older
	Standing   *api.KeyLimits
	Meters     []meterLine
	Open, Past []alertLine
	MorePast   bool
	AlertsAt   string // where all of them are; empty: there is no such page
	RulesAt    string // likewise of the rules that raise them
	Span       span
	Spans      []span
	Charts     []template.HTML
	Total      *api.Usage
	SumRates   [3]string // succeeded, failed, refused
	Endpoints  []usageLine
	Endings    []usageLine
	Figures    *api.Problem // why there are none
	Later      string       // where they come from after the page; empty: they are here
	MayRotate  bool
	MayRevoke  bool
	MayDelete  bool
	MayEdit    bool
	MayRead    bool   // the log
	Addresses  string // why nobody shows them here; empty: they are shown
}

type scopeLine struct {
	Name, About string
	Known       bool // the document has it
}

type secretLine struct {
	api.KeySecretState
	Word string
}

type meterLine struct {
	api.KeyLimitUsage
	Word  string // of the window
	Share string
	Bar   template.HTML
	Full  bool
}

type alertLine struct {
	queries.AlertView
	Title string
}

// usageLine are the figures of one group, as a table shows them.
type usageLine struct {
	api.Usage
	Title, Fine string
	Bar         template.HTML // its share of the busiest one
}

// keyOf is the key that a page is about.
func (v *visit) keyOf() (api.Key, *keyspace, error) {
	var k api.Key
	if err := v.get("/v1/keys/"+url.PathEscape(v.r.PathValue("id")), nil, &k); err != nil {
		return k, nil, err
	}
	ks, err := v.keyspace(k.Keyspace)
	return k, ks, err
}

// mostLines are shown of a table of figures.
const mostLines = 10

func (v *visit) key() error {
	k, ks, err := v.keyOf()
	if err != nil {
		return err
	}
	live := k.RevokedAt == 0
	d := keyData{listed: listed{Key: k, Status: k.Status, Word: ks.word(k.Status)}, Document: &ks.Document, Owner: cmp.Or(ks.Document.Owner.Kind, "owner"),
		MayRotate: v.may(domain.KeysRotate) && ks.Document.Lifecycle.Rotation.Enabled && live,
		MayRevoke: v.may(domain.KeysRevoke) && live, MayDelete: v.may(domain.KeysDelete), MayEdit: v.may(domain.KeysUpdate) && live, MayRead: v.may(domain.AuditRead)}
	d.Claim = v.claimed(k.ID)
	d.Span, d.Spans = v.span()
	for _, name := range k.Scopes {
		s, known := ks.Document.Scopes[name]
		d.Scopes = append(d.Scopes, scopeLine{name, s.About, known})
	}
	if age := ks.Document.Lifecycle.Rotation.MaxAge; age > 0 && live && v.Now().Sub(max(k.RotatedAt, k.CreatedAt).Time()) > time.Duration(age) {
		d.Overdue = age.String()
	}
	d.Addresses = v.noAddresses()
	if v.may(domain.AlertsRead) && v.has("/alerts") {
		d.AlertsAt = "/alerts?" + url.Values{"keyspace": {k.Keyspace}, "owner": {k.Owner}, "key": {k.ID}}.Encode()
	}
	if v.may(domain.AlertsRead) && v.has("/alerts/rules") {
		d.RulesAt = "/alerts/rules?" + url.Values{"key": {k.ID}}.Encode()
	}
	figures := func() error { return v.keyFigures(&d) }
	if d.Span.Length > 24*time.Hour && !v.r.URL.Query().Has("whole") {
		d.Later = "/keys/" + url.PathEscape(k.ID) + "/figures?span=" + d.Span.Name
		figures = func() error { return nil }
	}
	if err := together(func() error { return v.keyLimits(&d) }, func() error { return v.keySecrets(&d) }, func() error { return v.keyAlerts(&d) }, figures); err != nil {
		return err
	}
	return v.show("key", cmp.Or(k.Name, k.Display, k.ID), d)
}

// keyFiguresLater are the figures of a long time, which take a moment to add up.
func (v *visit) keyFiguresLater() error {
	k, _, err := v.keyOf()
	if err != nil {
		return err
	}
	d := keyData{listed: listed{Key: k}, Addresses: v.noAddresses()}
	d.Span, _ = v.span()
	if err := v.keyFigures(&d); err != nil {
		return err
	}
	return v.fragment("key", "figures", d)
}

// noAddresses is why nobody is shown addresses; empty: they are.
func (v *visit) noAddresses() string {
	if v.seesAddresses() {
		return ""
	}
	return "Addresses are personal data: only operators and auditors see them."
}

// seesAddresses says whether the API opens source addresses for who asks.
func (v *visit) seesAddresses() bool {
	return v.may(domain.UsageRead) && (v.me.Role == domain.Operator || v.me.Role == domain.Auditor)
}

// lacking is what a page does without when the API cannot answer it at the moment.
func lacking(err error) (*api.Problem, error) {
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status == http.StatusServiceUnavailable {
		return p, nil
	}
	return nil, err
}

func (v *visit) keyLimits(d *keyData) error {
	var l api.KeyLimits
	if err := v.get("/v1/keys/"+url.PathEscape(d.Key.ID)+"/limits", nil, &l); err != nil {
		_, err = lacking(err)
		return err
	}
	d.Standing = &l
	for _, w := range l.Limits {
		line := meterLine{KeyLimitUsage: w, Word: windowWords[w.Window], Share: rate(w.Used, w.Limit), Full: w.Remaining <= 0}
		line.Bar = chart.Meter(w.Used, w.Limit, fmt.Sprintf("%s of %s used per %s", chart.Count(w.Used), chart.Count(w.Limit), w.Window))
		d.Meters = append(d.Meters, line)
	}
	return nil
}

var windowWords = map[string]string{"minute": "in the last 60 seconds", "hour": "in the last 60 minutes", "day": "today, UTC"}

func (v *visit) keySecrets(d *keyData) error {
	var list api.KeySecrets
	if err := v.get("/v1/keys/"+url.PathEscape(d.Key.ID)+"/secrets", nil, &list); err != nil {
		_, err = lacking(err)
		return err
	}
	for _, s := range list.Secrets {
		if len(d.Secrets) < 5 { // older ones are in what happened to it
			d.Secrets = append(d.Secrets, secretLine{s, map[string]string{"current": "Current", "grace": "Previous, still works", "ended": "Ended"}[s.State]})
		}
	}
	return nil
}

// alertTitles are what people call the conditions of alerts.
var alertTitles = map[string]string{
	"limit_used": "High usage", "error_rate": "Error rate", "unusual_volume": "Unusual volume", "new_source_ip": "New source address",
	"denied": "Refused requests", "cost": "Cost", "expiring": "Expires soon", "expired": "Expired", "unused": "Not used",
	"rotation_overdue": "Rotation overdue", "previous_secret_used": "Previous secret still used",
}

func (v *visit) keyAlerts(d *keyData) error {
	if !v.may(domain.AlertsRead) {
		return nil
	}
	lines := func(state string, most int) (list []alertLine, more bool, err error) {
		var page api.AlertPage
		ask := url.Values{"keyspace": {d.Key.Keyspace}, "owner": {d.Key.Owner}, "key": {d.Key.ID}, "state": {state}, "limit": {fmt.Sprint(most)}}
		if err := v.get("/v1/alerts", ask, &page); err != nil {
			_, err = lacking(err)
			return nil, false, err
		}
		for _, a := range page.Alerts {
			title := alertTitles[a.When]
			if title == "" {
				title = sentence(a.When)
			}
			list = append(list, alertLine{a, title})
		}
		return list, page.NextCursor != nil, nil
	}
	return together(func() (err error) {
		d.Open, _, err = lines("raised", 20)
		return err
	}, func() (err error) {
		d.Past, d.MorePast, err = lines("resolved", 5)
		return err
	})
}

// sentence is a name of the API as people read it.
func sentence(name string) string {
	name = strings.NewReplacer("_", " ", ".", " ").Replace(name)
	if name == "" {
		return ""
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

func (v *visit) keyFigures(d *keyData) error {
	if !v.may(domain.UsageRead) {
		return nil
	}
	filter := url.Values{"keyspace": {d.Key.Keyspace}, "owner": {d.Key.Owner}, "key": {d.Key.ID}}
	from, to := v.from(d.Span)
	grouped := func(by string, list *api.UsageList) func() error {
		ask := maps.Clone(filter)
		ask.Set("from", from.Format(time.RFC3339))
		ask.Set("to", to.Format(time.RFC3339))
		if by != "" {
			ask.Set("by", by)
		}
		return func() error { return v.get("/v1/analytics/usage", ask, list) }
	}
	var at []time.Time
	var rows []*api.Usage
	var total, endpoints, endings api.UsageList
	err := together(func() (err error) {
		at, rows, err = v.usage(d.Span, filter)
		return err
	}, grouped("", &total), grouped("endpoint", &endpoints), grouped("status,code", &endings))
	if p, ok := errors.AsType[*api.Problem](err); ok {
		d.Figures = p
		return nil
	}
	if err != nil {
		return err
	}
	d.Charts = []template.HTML{outcomes("Requests over time", d.Span, at, rows)}
	if len(total.Usage) == 0 {
		return nil // one empty chart says it
	}
	u := &total.Usage[0]
	d.Total = u
	d.SumRates = [3]string{rate(u.Successes, u.Requests-u.Unknown), rate(u.Errors, u.Requests-u.Unknown), rate(u.Denied+u.RateLimited, u.Requests-u.Unknown)}
	d.Charts = append(d.Charts, rateLines(d.Span, at, rows), latencies(d.Span, at, rows))
	if c := costs(d.Span, at, rows); c != "" {
		d.Charts = append(d.Charts, c)
	}
	d.Endpoints = usageLines(endpoints.Usage, func(u *api.Usage) (string, string) {
		title := deref(u.Endpoint)
		if m := deref(u.Method); m != "" && title != "" {
			title = m + " " + title
		}
		return cmp.Or(title, "not recorded"), ""
	})
	d.Endings = usageLines(endings.Usage, ending)
	return nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// usageLines are the busiest groups, and the others as one line.
func usageLines(list []api.Usage, title func(*api.Usage) (title, fine string)) []usageLine {
	slices.SortStableFunc(list, func(a, b api.Usage) int { return cmp.Compare(b.Requests, a.Requests) })
	var lines []usageLine
	var rest api.Usage
	for i := range list {
		u := &list[i]
		if len(list) > mostLines+1 && i >= mostLines {
			rest.Requests += u.Requests
			rest.Errors += u.Errors
			rest.Denied += u.Denied
			rest.RateLimited += u.RateLimited
			rest.CostMicros += u.CostMicros
			continue
		}
		words, fine := title(u)
		bar := chart.Share(float64(u.Requests), float64(list[0].Requests))
		lines = append(lines, usageLine{*u, words, fine, bar})
	}
	if rest.Requests > 0 {
		lines = append(lines, usageLine{rest, plural(len(list)-mostLines, "other"), "", chart.Share(float64(rest.Requests), float64(max(list[0].Requests, rest.Requests)))})
	}
	return lines
}

// ending is how requests ended: the status of the answer, or why they were refused.
func ending(u *api.Usage) (title, fine string) {
	status := 0
	if u.Status != nil {
		status = *u.Status
	}
	switch code := domain.Code(deref(u.Code)); {
	case code != domain.CodeValid:
		return codeWords(string(code)), string(code)
	case status == 0:
		return "Outcome not known", "admitted; nobody reported how it ended"
	default:
		return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status))), ""
	}
}

// codeWords are a code of a refusal as people read it.
func codeWords(code string) string { return sentence(strings.ToLower(code)) }

type addressesData struct {
	Key     api.Key
	Span    span
	Lines   []usageLine
	Problem *api.Problem
}

// keyAddresses are where requests came from. It reads the stream, which is recorded: it is
// asked for, and not shown with every view of a key.
func (v *visit) keyAddresses() error {
	k, _, err := v.keyOf()
	if err != nil {
		return err
	}
	title := "Addresses of " + cmp.Or(k.Name, k.ID)
	if later, err := v.later("addresses", title); later {
		return err
	}
	d := addressesData{Key: k}
	d.Span, _ = v.span()
	from, to := v.from(d.Span)
	var list api.UsageList
	err = v.get("/v1/analytics/usage", url.Values{"keyspace": {k.Keyspace}, "owner": {k.Owner}, "key": {k.ID}, "by": {"ip"},
		"from": {from.Format(time.RFC3339)}, "to": {to.Format(time.RFC3339)}}, &list)
	if p, ok := errors.AsType[*api.Problem](err); ok {
		d.Problem = p
	} else if err != nil {
		return err
	}
	d.Lines = usageLines(list.Usage, func(u *api.Usage) (string, string) {
		if ip := deref(u.IP); ip != "" {
			return ip, ""
		}
		return "Not told apart", "refusals that were added up over callers, and what was erased"
	})
	return v.part("addresses", "addresses", title, d)
}

// moments that happened to a key, as its timeline shows them.
type happening struct {
	queries.HistoryEntry
	Title   string
	Icon    string
	Who     string // in words; empty: nobody, or it is not known
	Via     string
	Changes []changeLine
	Times   int    // reads of the log, one after the other
	Proof   string // address of the page that proves it; empty: there is none
}

type changeLine struct{ Field, Before, After string }

type timelineData struct {
	Key     api.Key
	Uses    bool
	Entries []happening // newest first
	Newer   string
	Older   string
	All     int
}

// mostHappenings are on one page of a timeline.
const mostHappenings = 50

// keyTimeline is everything that happened to a key, newest first. It reads the log, which
// is recorded: it is asked for, and not shown with every view of a key.
func (v *visit) keyTimeline() error {
	q := v.r.URL.Query()
	id, uses := v.r.PathValue("id"), q.Get("uses") == "true"
	if uses { // adding up a million takes seconds
		if later, err := v.later("timeline", "What happened to "+id); later {
			return err
		}
	}
	var past api.KeyHistory
	if err := v.get("/v1/audit/keys/"+url.PathEscape(id)+"/history", url.Values{"uses": {fmt.Sprint(uses)}}, &past); err != nil {
		return err
	}
	d := timelineData{Key: past.Key, Uses: uses}
	for _, e := range slices.Backward(past.Entries) {
		h := v.happening(e)
		if n := len(d.Entries); n > 0 && e.What == "audit.read" && d.Entries[n-1].What == "audit.read" && d.Entries[n-1].Who == h.Who && d.Entries[n-1].Asked == h.Asked {
			d.Entries[n-1].Times++
			d.Entries[n-1].From = e.From
			continue
		}
		d.Entries = append(d.Entries, h)
	}
	d.All = len(d.Entries)
	var skip int
	if _, err := fmt.Sscan(q.Get("skip"), &skip); err != nil || skip < 0 || skip >= d.All {
		skip = 0
	}
	at := func(skip int) string {
		ask := url.Values{}
		if uses {
			ask.Set("uses", "true")
		}
		if skip > 0 {
			ask.Set("skip", fmt.Sprint(skip))
		}
		return "/keys/" + url.PathEscape(id) + "/timeline?" + ask.Encode()
	}
	if skip > 0 {
		d.Newer = at(max(skip-mostHappenings, 0))
	}
	if skip+mostHappenings < d.All {
		d.Older = at(skip + mostHappenings)
	}
	d.Entries = d.Entries[skip:min(skip+mostHappenings, d.All)]
	return v.part("timeline", "timeline", "What happened to "+cmp.Or(past.Key.Name, id), d)
}

// happeningTitles are facts and acts in words, by the words of the API.
var happeningTitles = map[string][2]string{
	"created": {"Created", "plus"}, "changed": {"Changed", "pencil"}, "rotated": {"Rotated: it has a new secret", "turn"},
	"grace ended": {"Grace ended: the previous secret stopped working", "clock"}, "revoked": {"Revoked", "revoked"}, "deleted": {"Deleted", "bin"},
	"expired": {"Expired", "expired"}, "grace over": {"Grace was over: the previous secret stopped working", "clock"},
	"audit.read": {"The log about it was read", "eye"}, "alert.raised": {"An alert was raised", "bell"}, "alert.resolved": {"An alert was resolved", "check"},
	"alert_rules.set": {"Its alert rules were set", "bell"}, "revocation.measured": {"It was measured when every verifier stopped accepting it", "pulse"},
	"uses not recorded": {"Uses could not be recorded", "rate_limited"}, "VALID": {"Used", "pulse"},
}

func (v *visit) happening(e queries.HistoryEntry) happening {
	h := happening{HistoryEntry: e, Title: sentence(e.What), Icon: "log", Times: 1}
	if t, ok := happeningTitles[e.What]; ok {
		h.Title, h.Icon = t[0], t[1]
	}
	if e.Kind == "refused" {
		h.Title, h.Icon = "Refused: "+strings.ToLower(codeWords(e.What)), "revoked"
	}
	a := e.Act
	if a == nil {
		return h
	}
	h.Via = a.Via
	h.Who = v.actor(a.Actor)
	if a.Void {
		h.Title += " (without effect: another fact had come first)"
	}
	for _, c := range a.Changes {
		if line, ok := changeWords(c); ok {
			if e.What == "created" {
				line.Before = ""
			}
			h.Changes = append(h.Changes, line)
		}
	}
	if v.may(domain.LogRead) {
		if at := fmt.Sprintf("/audit/%s/%d", url.PathEscape(a.Stream), a.Sequence); v.has(at) {
			h.Proof = at
		}
	}
	return h
}

// actor is who did something.
func (v *visit) actor(a events.Actor) string {
	kind := map[string]string{"root_key": "root key", "key": "key", "system": "keyledger itself", "person": ""}[a.Type]
	who := strings.TrimSpace(kind + " " + a.ID)
	if a == v.me.Actor {
		who += " (you)"
	}
	return who
}

// fieldWords are fields of a key in words, and what they say when they are empty. Fields
// without a word are told by the title, or by no one.
var fieldWords = map[string][2]string{
	"name": {"Name", "none"}, "plan": {"Plan", "the owner's"}, "scopes": {"Scopes", "none"}, "resources": {"Bound to", "nothing: any"},
	"limits.minute": {"Limit per minute", "unlimited"}, "limits.hour": {"Limit per hour", "unlimited"}, "limits.day": {"Limit per day", "unlimited"},
	"allowed_origins": {"Origins", "all"}, "allowed_ips": {"Addresses", "all"}, "expires_at": {"Expires", "never"}, "environment": {"Environment", "none"},
	"display": {"Secret", "none"}, "grace_until": {"Previous secret works until", "no longer"}, "role": {"Role", "none"},
}

func changeWords(c queries.Change) (changeLine, bool) {
	words, ok := fieldWords[c.Field]
	if name, meta := strings.CutPrefix(c.Field, "meta."); meta {
		words, ok = [2]string{"Meta " + name, "none"}, true
	}
	if !ok {
		return changeLine{}, false
	}
	return changeLine{words[0], fieldValue(c.Before, words[1]), fieldValue(c.After, words[1])}, true
}

func fieldValue(v any, none string) string {
	switch v := v.(type) {
	case nil:
		return none
	case string:
		if t, err := time.Parse(time.RFC3339, v); err == nil {
			return t.UTC().Format("2 Jan 2006 15:04 UTC")
		}
		return cmp.Or(v, none)
	case float64:
		return chart.Count(v)
	case []any:
		list := make([]string, 0, len(v))
		for _, x := range v {
			list = append(list, fmt.Sprint(x))
		}
		return cmp.Or(strings.Join(list, ", "), none)
	default:
		return fmt.Sprint(v)
	}
}
