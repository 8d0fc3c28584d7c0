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
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/console/chart"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

// timePages are the time machine: the keys as they were, what changed between two
// moments, and who could do something then. All of it is answered by the API's as_of,
// /v1/audit/diff, /v1/audit/moments and /v1/audit/who-could.
func (c *Console) timePages() {
	c.page("GET /time", (*visit).timeMachine)
	c.page("GET /time/step", (*visit).step)
	c.page("GET /time/around", (*visit).around)
	c.page("GET /time/changes", (*visit).changes)
	c.page("GET /time/who", (*visit).who)
	c.page("GET /time/who/answer", (*visit).whoAnswer)
}

// refusal is what the API refused, to be shown where it was asked; nil where it is
// not about what was asked.
func refusal(err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status != http.StatusUnauthorized && p.Status != http.StatusForbidden && p.Status < 500 {
		return p
	}
	return nil
}

// when is the moment that an address asks for: a place (a sequence of LEDGER or the
// id of an event), a time as a form sends it, or now.
func when(q url.Values, place, on string) string {
	if s := strings.TrimSpace(q.Get(place)); s != "" {
		return readMoment(s)
	}
	s := strings.TrimSpace(q.Get(on))
	if was := q.Get(on + "_is"); was != "" && s == q.Get(on+"_was") {
		return was // the field, which has no milliseconds, was left alone
	}
	if s != "" {
		return readMoment(s)
	}
	return "now"
}

// readMoment reads what people and forms write of a time in UTC, as RFC 3339 where it is
// one; the API judges the rest.
func readMoment(s string) string {
	for _, form := range []string{"2006-01-02T15:04:05.999", "2006-01-02T15:04", "2006-01-02 15:04:05.999", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(form, strings.TrimSuffix(strings.TrimSuffix(s, " UTC"), "Z")); err == nil {
			return events.At(t).String()
		}
	}
	return s
}

// asked is whom and when a page of the time machine is about.
type asked struct {
	Keyspaces   []string
	Keyspace    string
	Document    *domain.Document
	Owner       string
	ChooseOwner bool
	At          string // as it was asked for
	Moment      queries.Moment
	Known       bool         // Moment was found
	Problem     *api.Problem // why not
	AuditLinks  bool         // there are pages of events

	space *keyspace
	now   time.Time
}

// asked finds it out. Without keyspaces there is nothing to ask about.
func (v *visit) asked() (*asked, error) {
	if !v.may(domain.AuditRead) {
		return nil, &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "This sign-in may not read the past."}
	}
	all, ks, owner, err := v.chosen()
	if err != nil {
		return nil, err
	}
	a := &asked{Owner: owner, ChooseOwner: v.me.For == nil, At: when(v.r.URL.Query(), "at", "on"), space: ks, now: v.Now(), AuditLinks: v.has("/audit/LEDGER/1")}
	for _, k := range all {
		a.Keyspaces = append(a.Keyspaces, k.ID)
	}
	if ks == nil {
		return a, nil
	}
	a.Keyspace, a.Document = ks.ID, &ks.Document
	var m queries.Moments
	err = v.get("/v1/audit/moments", url.Values{"at": {a.At}}, &m)
	if a.Problem = refusal(err); a.Problem != nil {
		return a, nil
	}
	a.Moment, a.Known = m.At, err == nil
	return a, err
}

// Day is the day of a time, with the time where that counts.
func (*asked) Day(t events.Time) string { return t.Time().UTC().Format("2 Jan 2006, 15:04") }

// Number is a sequence as an address has it.
func (*asked) Number(n uint64) string { return strconv.FormatUint(n, 10) }

// Exact is a time as a heading says it.
func (*asked) Exact(t events.Time) string { return exact(t) }

func exact(t events.Time) string {
	return t.Time().UTC().Format("2 January 2006, 15:04:05.000") + " UTC"
}

// Field is the moment as a field for times wants it.
func (a *asked) Field() string {
	if !a.Known {
		return ""
	}
	return a.Moment.Time.Time().UTC().Format("2006-01-02T15:04:05")
}

// Place is the moment as a sequence, which the next fact does not move.
func (a *asked) Place() string { return strconv.FormatUint(a.Moment.Sequence, 10) }

// query are the parameters of another page about the same.
func (a *asked) query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	if a.Keyspace != "" {
		q.Set("keyspace", a.Keyspace)
	}
	if a.Owner != "" && a.ChooseOwner {
		q.Set("owner", a.Owner)
	}
	return q
}

// To is the address of another page of the time machine about the same.
func (a *asked) To(page string, pairs ...string) string {
	return page + "?" + a.query(pairs...).Encode()
}

// pastLink goes to another moment.
type pastLink struct{ Name, To string } // without To there is nothing there

// Back and Forth are the steps from the moment.
func (a *asked) Back() []pastLink {
	day, hour := a.by(-24*time.Hour), a.by(-time.Hour)
	return []pastLink{{"First event", a.To("/time/step", "at", a.At, "to", "first")}, {"1 day", day}, {"1 hour", hour}, {"Earlier event", a.To("/time/step", "at", a.At, "to", "earlier")}}
}

func (a *asked) Forth() []pastLink {
	later := ""
	if a.At != "now" {
		later = a.To("/time/step", "at", a.At, "to", "later")
	}
	now := ""
	if a.At != "now" {
		now = a.To("/time", "at", "now")
	}
	return []pastLink{{"Later event", later}, {"1 hour", a.by(time.Hour)}, {"1 day", a.by(24 * time.Hour)}, {"Now", now}}
}

func (a *asked) by(d time.Duration) string {
	t := a.Moment.Time.Time().Add(d)
	if !a.Known || t.After(a.now) {
		return ""
	}
	return a.To("/time", "at", events.At(t).String())
}

// step goes to the fact next to a moment, of whom the page is about.
func (v *visit) step() error {
	a, err := v.asked()
	if err != nil {
		return err
	}
	if a.Problem != nil {
		return v.redirect(a.To("/time", "at", a.At), "")
	}
	ask := a.query("at", a.At)
	if !a.ChooseOwner {
		ask.Set("owner", a.Owner)
	}
	var m queries.Moments
	if err := v.get("/v1/audit/moments", ask, &m); err != nil {
		return err
	}
	to, at := m.Earlier, ""
	switch v.r.URL.Query().Get("to") {
	case "first":
		to = m.First
	case "later":
		if to = m.Later; to == nil {
			at = "now"
		}
	default:
		if to == nil {
			to = m.First
		}
	}
	if to != nil {
		at = strconv.FormatUint(to.Sequence, 10)
	}
	return v.redirect(a.To("/time", "at", at), "")
}

// wasKey is a key as it was, beside what it is now.
type wasKey struct {
	listed
	Gone  bool     // deleted since
	Since []string // what has changed, in words
}

type timeData struct {
	*asked
	Status, Q string
	Statuses  []statusWord
	Keys      []wasKey
	Next      string
	Around    string // where the picture of when there were events is
	Differ    int    // of the keys on the page
}

// aroundSpans are the lengths of the picture of when there were facts.
var aroundSpans = []struct {
	name   string
	length time.Duration
}{{"24 hours", 24 * time.Hour}, {"7 days", 7 * 24 * time.Hour}, {"30 days", 30 * 24 * time.Hour}, {"all", 0}}

func (v *visit) timeMachine() error {
	a, err := v.asked()
	if err != nil {
		return err
	}
	q := v.r.URL.Query()
	d := timeData{asked: a, Status: q.Get("status"), Q: strings.TrimSpace(q.Get("q")), Around: a.To("/time/around", "at", a.At, "span", q.Get("span"))}
	if a.space == nil || !a.Known {
		return v.show("time", "Time machine", d)
	}
	for _, s := range a.space.statuses() {
		if s.Status != "rate_limited" { // the ledger does not hold it
			d.Statuses = append(d.Statuses, s)
		}
	}
	ask := url.Values{"keyspace": {a.Keyspace}, "as_of": {strconv.FormatUint(a.Moment.Sequence, 10)}, "limit": {"25"}}
	if a.At != "now" {
		ask.Set("as_of", a.At)
	}
	for name, value := range map[string]string{"owner": a.Owner, "status": d.Status, "q": d.Q, "cursor": q.Get("cursor")} {
		if value != "" {
			ask.Set(name, value)
		}
	}
	var page api.KeyPage
	if err := v.get("/v1/keys", ask, &page); err != nil {
		if d.Problem = refusal(err); d.Problem == nil {
			return err
		}
	}
	for _, k := range page.Keys {
		w := wasKey{listed: listed{Key: k, Status: k.Status, Word: a.space.word(k.Status)}}
		if a.At != "now" {
			if w.Since, w.Gone, err = v.since(a.space, &k); err != nil {
				return err
			}
			if len(w.Since) > 0 {
				d.Differ++
			}
		}
		d.Keys = append(d.Keys, w)
	}
	if page.NextCursor != nil {
		next := a.query("at", a.At, "status", d.Status, "q", d.Q, "cursor", *page.NextCursor)
		d.Next = "/time?" + next.Encode()
	}
	return v.show("time", "Time machine", d)
}

// since tells what of a key is no longer as it was.
func (v *visit) since(ks *keyspace, then *api.Key) (words []string, gone bool, err error) {
	var now api.Key
	if err := v.get("/v1/keys/"+url.PathEscape(then.ID), nil, &now); err != nil {
		if p, ok := errors.AsType[*api.Problem](err); ok && (p.Status == http.StatusGone || p.Status == http.StatusNotFound) {
			return []string{"deleted"}, true, nil
		}
		return nil, false, err
	}
	if now.Version == then.Version && now.Status == then.Status && now.GraceUntil == then.GraceUntil {
		return nil, false, nil
	}
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if now.Status != then.Status {
		say("now %s", strings.ToLower(ks.word(now.Status)))
	}
	if now.Name != then.Name {
		say("renamed to “%s”", now.Name)
	}
	if now.Display != then.Display || now.RotatedAt != then.RotatedAt {
		say("rotated")
	} else if then.GraceUntil != 0 && now.GraceUntil != then.GraceUntil {
		say("grace over")
	}
	list := func(what string, before, after []string) {
		if slices.Equal(before, after) {
			return
		}
		var more, less []string
		for _, s := range after {
			if !slices.Contains(before, s) {
				more = append(more, s)
			}
		}
		for _, s := range before {
			if !slices.Contains(after, s) {
				less = append(less, s)
			}
		}
		if len(more) > 0 {
			say("%s added: %s", what, strings.Join(more, ", "))
		}
		if len(less) > 0 {
			say("%s taken away: %s", what, strings.Join(less, ", "))
		}
	}
	list("scopes", then.Scopes, now.Scopes)
	list("binding", then.Resources, now.Resources)
	list("origins", then.AllowedOrigins, now.AllowedOrigins)
	list("addresses", then.AllowedIPs, now.AllowedIPs)
	if now.Plan != then.Plan {
		say("plan %s, was %s", cmp.Or(now.Plan, "of the owner"), cmp.Or(then.Plan, "that of the owner"))
	}
	if !maps.Equal(now.Limits, then.Limits) {
		say("other limits")
	}
	if now.ExpiresAt != then.ExpiresAt {
		if now.ExpiresAt == 0 {
			say("never expires")
		} else {
			say("expires %s", now.ExpiresAt.Time().UTC().Format("2 Jan 2006"))
		}
	}
	if !maps.Equal(now.Meta, then.Meta) {
		say("other details")
	}
	return words, false, nil
}

// aroundData is the picture of when there were facts.
type aroundData struct {
	*asked
	Span    string
	Spans   []pastLink
	Drawing template.HTML
	Bars    []aroundBar
	Sum     int64
	From    events.Time
	Until   events.Time
}

type aroundBar struct {
	From, Until events.Time
	Count       int64
	To          string
}

func (v *visit) around() error {
	a, err := v.asked()
	if err != nil {
		return err
	}
	d := aroundData{asked: a, Span: v.r.URL.Query().Get("span")}
	if a.space == nil || !a.Known {
		return v.part("timearound", "content", "When there were events", d)
	}
	ask := a.query("at", a.At, "buckets", "60")
	if !a.ChooseOwner {
		ask.Set("owner", a.Owner)
	}
	until := a.now
	span := aroundSpans[len(aroundSpans)-1]
	for _, s := range aroundSpans {
		if s.name == d.Span {
			span = s
		}
	}
	d.Span = span.name
	for _, s := range aroundSpans {
		d.Spans = append(d.Spans, pastLink{s.name, a.To("/time", "at", a.At, "span", s.name)})
	}
	if span.length > 0 {
		// The moment is in the picture, in its middle where there is room after it.
		if end := a.Moment.Time.Time().Add(span.length / 2); end.Before(until) {
			until = end
		}
		ask.Set("from", events.At(until.Add(-span.length)).String())
	}
	ask.Set("to", events.At(until.Add(time.Millisecond)).String())
	var m queries.Moments
	if err := v.get("/v1/audit/moments", ask, &m); err != nil {
		return err
	}
	for i, b := range m.Timeline {
		end := events.At(until)
		if i+1 < len(m.Timeline) {
			end = m.Timeline[i+1].Time - 1
		}
		d.Bars = append(d.Bars, aroundBar{b.Time, end, b.Count, a.To("/time", "at", end.String(), "span", d.Span)})
		d.Sum += b.Count
	}
	if len(d.Bars) > 0 {
		d.From, d.Until = d.Bars[0].From, events.At(until)
		d.Drawing = drawAround(d.Bars, a.Moment.Time, events.At(until))
	}
	return v.part("timearound", "content", "When there were events", d)
}

// drawAround draws bars to click on, and where the moment is. Steps and the list
// behind it do the same for whoever does not point.
func drawAround(bars []aroundBar, at, until events.Time) template.HTML {
	high := int64(1)
	for _, b := range bars {
		high = max(high, b.Count)
	}
	const width, height, axis = 960.0, 84.0, 18.0
	from := bars[0].From
	x := func(t events.Time) float64 {
		return width * float64(t-from) / float64(max(until-from, 1))
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="around" viewBox="0 0 %g %g" preserveAspectRatio="none" aria-hidden="true" focusable="false">`, width, height)
	w := width / float64(len(bars))
	for i, bar := range bars {
		left := w * float64(i)
		fmt.Fprintf(&b, `<a href="%s" tabindex="-1"><title>%s: %s</title><rect class="room" x="%.1f" y="0" width="%.1f" height="%g"/>`,
			template.HTMLEscapeString(bar.To), exact(bar.From), plural(int(bar.Count), "event"), left, w, height-axis)
		if bar.Count > 0 {
			h := max(3, (height-axis-4)*float64(bar.Count)/float64(high))
			fmt.Fprintf(&b, `<rect class="bar" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, left+1, height-axis-h, w-2, h)
		}
		b.WriteString(`</a>`)
	}
	fmt.Fprintf(&b, `<line class="base" x1="0" x2="%g" y1="%g" y2="%g"/>`, width, height-axis, height-axis)
	mark := min(max(x(at), 1), width-1)
	fmt.Fprintf(&b, `<line class="mark" x1="%.1f" x2="%.1f" y1="0" y2="%g"/></svg>`, mark, mark, height-axis+6)
	return template.HTML(b.String())
}

type changesData struct {
	*asked
	From, Until  queries.Moment
	AskedFrom    string
	AskedTo      string
	FromOn, ToOn string // as fields for times want them
	List         []pastChange
	Next         string
	Presets      []pastLink
}

// pastChange is one thing that facts between two moments changed.
type pastChange struct {
	queries.Difference
	Name   string // what people call it
	To     string // its page
	Fields []pastFieldChange
	Acts   []pastAct
}

type pastFieldChange struct {
	Name          string
	Before, After string
}

type pastAct struct {
	queries.Act
	What string
}

func (v *visit) changes() error {
	a, err := v.asked()
	if err != nil {
		return err
	}
	q := v.r.URL.Query()
	d := changesData{asked: a, AskedFrom: when(q, "from", "from_on"), AskedTo: when(q, "to", "to_on")}
	if d.AskedFrom == "now" {
		d.AskedFrom = events.At(a.now.Add(-24 * time.Hour)).String()
	}
	for _, p := range []struct {
		name string
		ago  time.Duration
	}{{"Last hour", time.Hour}, {"Last 24 hours", 24 * time.Hour}, {"Last 7 days", 7 * 24 * time.Hour}, {"Last 30 days", 30 * 24 * time.Hour}} {
		d.Presets = append(d.Presets, pastLink{p.name, a.To("/time/changes", "from", events.At(a.now.Add(-p.ago)).String())})
	}
	if a.space == nil {
		return v.show("timechanges", "What changed", d)
	}
	ask := a.query("from", d.AskedFrom, "to", d.AskedTo, "limit", "25", "cursor", q.Get("cursor"))
	if a.Owner != "" {
		ask.Set("owner", a.Owner)
	}
	var page api.AuditDiff
	if err := v.get("/v1/audit/diff", ask, &page); err != nil {
		if d.Problem = refusal(err); d.Problem == nil {
			return err
		}
		return v.show("timechanges", "What changed", d)
	}
	d.From, d.Until = page.From, page.To
	field := func(t events.Time) string {
		if t == 0 {
			return ""
		}
		return t.Time().UTC().Format("2006-01-02T15:04:05")
	}
	d.FromOn, d.ToOn = field(d.From.Time), field(d.Until.Time)
	for _, x := range page.Changed {
		d.List = append(d.List, v.changed(x, d.From))
	}
	if page.NextCursor != nil {
		d.Next = a.To("/time/changes", "from", d.AskedFrom, "to", d.AskedTo, "cursor", *page.NextCursor)
	}
	return v.show("timechanges", "What changed", d)
}

func (v *visit) changed(x queries.Difference, from queries.Moment) pastChange {
	c := pastChange{Difference: x}
	switch x.Kind {
	case "key":
		c.Name = x.Key
		var k api.Key
		if v.get("/v1/keys/"+url.PathEscape(x.Key), nil, &k) == nil {
			c.Name, c.To = cmp.Or(k.Name, k.Display, k.ID), "/keys/"+url.PathEscape(k.ID)
		} else if v.get("/v1/keys/"+url.PathEscape(x.Key), url.Values{"as_of": {strconv.FormatUint(from.Sequence, 10)}}, &k) == nil {
			c.Name = cmp.Or(k.Name, k.Display, k.ID)
		}
		for _, f := range x.Changes { // of one that was made and deleted in between the change knows
			if s, ok := f.After.(string); f.Field == "name" && ok && s != "" && c.To == "" {
				c.Name = s
			}
		}
	case "owner":
		c.Name, c.To = x.Owner, "/time?"+url.Values{"keyspace": {x.Keyspace}, "owner": {x.Owner}, "at": {"now"}}.Encode()
	default:
		c.Name, c.To = x.Keyspace, "/time?"+url.Values{"keyspace": {x.Keyspace}}.Encode()
	}
	for _, f := range x.Changes {
		c.Fields = append(c.Fields, pastFieldChange{pastField(f.Field), pastValue(f.Before), pastValue(f.After)})
	}
	for _, e := range x.Events {
		c.Acts = append(c.Acts, pastAct{e, strings.ReplaceAll(e.Type, "_", " ")})
	}
	return c
}

// pastField is what people call a field of a key, an owner or a document.
func pastField(f string) string {
	first, rest, more := strings.Cut(f, ".")
	if w := columnWords[first]; w != "" {
		if first == "limits" && more {
			return "Limit per " + rest
		}
		if more {
			return w + ": " + rest
		}
		return w
	}
	switch first {
	case "deleted_at":
		return "Deleted"
	case "revoke_reason":
		return "Reason of the revocation"
	case "document_version":
		return "Version of the document"
	case "meta":
		return "Detail “" + rest + "”"
	}
	return f // of a document: its own words
}

// pastValue is a value of JSON as people read it.
func pastValue(x any) string {
	switch x := x.(type) {
	case nil:
		return ""
	case string:
		if t, err := time.Parse("2006-01-02T15:04:05.000Z", x); err == nil {
			return t.Format("2 Jan 2006, 15:04:05") + " UTC"
		}
		return x
	case bool:
		if x {
			return "yes"
		}
		return "no"
	case float64:
		return chart.Count(x)
	case []any:
		var all []string
		for _, e := range x {
			all = append(all, pastValue(e))
		}
		return strings.Join(all, ", ")
	}
	b, err := json.Marshal(x)
	if err != nil {
		return "" // of what was JSON
	}
	return string(b)
}

// whoData asks who could do something.
type whoData struct {
	*asked
	Scopes                 []scopeChoice // of the document of that moment
	By                     string        // scope or path
	Scope, Method, Path    string
	Resource, Origin, IP   string
	Could                  string
	Methods                []string
	Asked                  bool   // there is something to answer
	Answer                 string // where the answer is
	DocumentVersion        int
	ResourceKind, OwnerKin string
}

// whoAsked reads the question of an address.
func (v *visit) whoAsked() (*whoData, error) {
	a, err := v.asked()
	if err != nil {
		return nil, err
	}
	q := v.r.URL.Query()
	d := &whoData{asked: a, By: q.Get("by"), Scope: q.Get("scope"), Method: cmp.Or(q.Get("method"), "GET"), Path: strings.TrimSpace(q.Get("path")),
		Resource: strings.TrimSpace(q.Get("resource")), Origin: strings.TrimSpace(q.Get("origin")), IP: strings.TrimSpace(q.Get("ip")),
		Could: cmp.Or(q.Get("could"), "yes"), Methods: []string{"GET", "POST", "PUT", "PATCH", "DELETE"}}
	if a.space == nil || !a.Known {
		return d, nil
	}
	var ks api.Keyspace
	if err := v.get("/v1/keyspaces/"+url.PathEscape(a.Keyspace), url.Values{"as_of": {a.At}}, &ks); err != nil {
		if a.Problem = refusal(err); a.Problem == nil {
			return nil, err
		}
		return d, nil
	}
	var doc domain.Document
	if err := json.Unmarshal(ks.Document, &doc); err != nil {
		return nil, fmt.Errorf("the document of %s: %w", a.Keyspace, err)
	}
	d.DocumentVersion = ks.Version
	d.ResourceKind, d.OwnerKin = cmp.Or(doc.Resource.Kind, "resource"), cmp.Or(doc.Owner.Kind, "owner")
	if doc.Resource.Mode == "none" {
		d.ResourceKind = ""
	}
	for _, name := range slices.Sorted(maps.Keys(doc.Scopes)) {
		s := doc.Scopes[name]
		d.Scopes = append(d.Scopes, scopeChoice{Name: name, About: s.About, Available: s.Available == nil || *s.Available, Chosen: name == d.Scope})
	}
	if d.By == "" {
		d.By = "scope"
		if d.Scope == "" && (d.Path != "" || q.Has("scope")) || len(d.Scopes) == 0 {
			d.By = "path"
		}
	}
	d.Asked = d.By == "scope" && d.Scope != "" || d.By == "path" && d.Path != ""
	d.Answer = "/time/who/answer?" + d.query("").Encode()
	return d, nil
}

// query is the question as an address, with another kind of answer.
func (d *whoData) query(could string) url.Values {
	q := d.asked.query("at", d.At, "by", d.By, "resource", d.Resource, "origin", d.Origin, "ip", d.IP, "could", cmp.Or(could, d.Could))
	if d.By == "scope" {
		q.Set("scope", d.Scope)
	} else {
		q.Set("method", d.Method)
		q.Set("path", d.Path)
	}
	return q
}

// Kind is the address of the same question about those that could, or could not.
func (d *whoData) Kind(could string) string { return "/time/who?" + d.query(could).Encode() }

func (v *visit) who() error {
	d, err := v.whoAsked()
	if err != nil {
		return err
	}
	return v.show("timewho", "Who could do that?", d)
}

type whoAnswerData struct {
	*whoData
	api.WhoCould
	Rows    []couldRow
	Next    string
	Reasons []couldReason
}

// All is how many keys there were.
func (w whoAnswerData) All() int { return w.Count.Could + w.Count.Not }

type couldRow struct {
	listed
	queries.Possible
}

type couldReason struct {
	Count int
	Says  string
}

// couldNot are the refusals, as people say why somebody could not.
var couldNot = map[domain.Code]string{
	domain.CodeRevoked: "revoked", domain.CodeExpired: "expired", domain.CodeSuperseded: "rotated away", domain.CodeWrongEnvironment: "of another environment",
	domain.CodePlanDenied: "not on a plan that allows it", domain.CodeWrongOwner: "of another owner", domain.CodeWrongResource: "bound to something else, or to nothing",
	domain.CodeInsufficientScope: "without the scope", domain.CodeOriginDenied: "not for this origin", domain.CodeIPDenied: "not from this address",
}

func (v *visit) whoAnswer() error {
	d, err := v.whoAsked()
	if err != nil {
		return err
	}
	w := whoAnswerData{whoData: d}
	if !d.Asked {
		return v.redirect("/time/who?"+d.query("").Encode(), "")
	}
	ask := url.Values{"keyspace": {d.Keyspace}, "as_of": {d.At}, "limit": {"25"}, "could": {d.Could}}
	put := func(name, value string) {
		if value != "" {
			ask.Set(name, value)
		}
	}
	put("owner", d.Owner)
	put("resource", d.Resource)
	put("origin", d.Origin)
	put("ip", d.IP)
	if d.By == "scope" {
		put("scope", d.Scope)
	} else {
		put("method", d.Method)
		put("path", d.Path)
	}
	cursor := v.r.URL.Query().Get("cursor")
	if put("cursor", cursor); cursor == "" {
		ask.Set("count", "true")
	}
	if err := v.get("/v1/audit/who-could", ask, &w.WhoCould); err != nil {
		if d.Problem = refusal(err); d.Problem == nil {
			return err
		}
		return v.part("timewhoanswer", "content", "Who could do that?", w)
	}
	for _, k := range w.WhoCould.Keys {
		w.Rows = append(w.Rows, couldRow{listed{Key: api.Key(k.Key), Status: k.Key.Status, Word: d.space.word(k.Key.Status)}, k})
	}
	if c := w.Count; c != nil {
		for _, code := range domain.Codes() {
			if n := c.Codes[code]; n > 0 {
				w.Reasons = append(w.Reasons, couldReason{n, cmp.Or(couldNot[code], strings.ToLower(code.Message()))})
			}
		}
		slices.SortStableFunc(w.Reasons, func(a, b couldReason) int { return cmp.Compare(b.Count, a.Count) })
	}
	if w.NextCursor != nil {
		q := d.query("")
		q.Set("cursor", *w.NextCursor)
		w.Next = "/time/who/answer?" + q.Encode()
	}
	return v.part("timewhoanswer", "content", "Who could do that?", w)
}
