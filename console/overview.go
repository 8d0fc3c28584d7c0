package console

import (
	"cmp"
	"errors"
	"html/template"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/queries"
)

func (c *Console) overviewPages() {
	c.page("GET /{$}", (*visit).overview)
	c.page("GET /overview/figures", func(v *visit) error {
		part, err := v.dayPart()
		if err != nil {
			return err
		}
		return v.fragment("overview", "day", part)
	})
}

// overviewSpace is a keyspace at a glance.
type overviewSpace struct {
	ID, About string
	Keys      api.KeyCounts
	Words     map[string]string // of statuses, as its people say them
	Alerts    int64
}

// need is something that somebody should look at.
type need struct {
	Icon, Class string
	Count       int64
	Words, To   string
	More        string
}

// step is one of the first things to do.
type step struct {
	Title, Text, To, Action, Command string
	Done                             bool
}

type overviewData struct {
	Owner    string // of a manager
	Spaces   []overviewSpace
	Needs    []need
	Unknown  *api.Problem // why not all is known of what needs attention
	Latest   []latestRow
	Steps    []step // of an empty system
	Day      *dayPart
	Audit    bool
	MayWatch bool // the state of the service
}

// latestRow is a fact in words.
type latestRow struct {
	queries.Latest
	Words, To string
}

// dayPart are the requests of the last 24 hours, which take a moment to add up.
type dayPart struct {
	Chart       template.HTML
	Total       *api.Usage
	Spaces      []spaceDay
	Unavailable *api.Problem
}

type spaceDay struct {
	Keyspace string
	api.Usage
}

func (v *visit) overview() error {
	d := overviewData{Audit: v.may(domain.AuditRead) && v.has("/audit"), MayWatch: v.may(domain.Operate)}
	filter, ask := url.Values{}, url.Values{"limit": {"16"}}
	if v.me.For != nil {
		d.Owner = v.me.For.Owner
		filter = url.Values{"keyspace": {v.me.For.Keyspace}, "owner": {v.me.For.Owner}}
		maps.Copy(ask, filter)
	}
	var all []keyspace
	var counts api.KeyCountList
	var raised api.AlertCountList
	var latest api.LatestFacts
	var service []need
	var noAlerts, noLatest *api.Problem
	err := together(func() (err error) {
		all, err = v.keyspaces()
		return err
	}, func() error {
		return v.get("/v1/analytics/keys", filter, &counts)
	}, func() error {
		if !v.may(domain.AlertsRead) {
			return nil
		}
		return orAway(v.get("/v1/alerts/counts", filter, &raised), &noAlerts)
	}, func() (err error) {
		if d.MayWatch {
			service, err = v.serviceNeeds()
		}
		return err
	}, func() error {
		return orAway(v.get("/v1/feeds/latest", ask, &latest), &noLatest)
	})
	if err != nil {
		return err
	}
	d.Needs, d.Unknown = append(service, alertNeeds(raised.Raised)...), cmp.Or(noAlerts, noLatest)
	by := map[string]api.KeyCounts{}
	keys, owners := 0, 0
	for _, c := range counts.Counts {
		by[c.Keyspace] = c
		keys += c.Active + c.Expired + c.Revoked
		owners += c.Owners
	}
	alerts := map[string]int64{}
	for _, a := range raised.Raised {
		alerts[a.Keyspace] += a.Count
	}
	for _, k := range all {
		s := overviewSpace{ID: k.ID, About: k.Document.About, Keys: by[k.ID], Alerts: alerts[k.ID], Words: map[string]string{}}
		for _, w := range k.statuses() {
			s.Words[w.Status] = w.Word
		}
		d.Spaces = append(d.Spaces, s)
	}
	if keys == 0 {
		d.Steps = v.steps(all, owners)
	} else if v.r.URL.Query().Get("figures") != "" {
		if d.Day, err = v.dayPart(); err != nil {
			return err
		}
	}
	for _, f := range latest.Facts {
		// That a key was counted against the cap stands beside its creation, which says it.
		if f.Type != "owner.key_admitted" && len(d.Latest) < 8 {
			d.Latest = append(d.Latest, latestWords(f))
		}
	}
	return v.show("overview", "Overview", d)
}

// alertNeeds are what raised alerts ask for, the most urgent first.
func alertNeeds(raised []queries.AlertCount) []need {
	sums := map[string]int64{}
	for _, a := range raised {
		sums[a.When] += a.Count
	}
	var list []need
	for _, kind := range alertKinds {
		n := sums[kind.When]
		if n == 0 {
			continue
		}
		x := need{Icon: "rate_limited", Class: "warn", Count: n, Words: kind.Title, More: kind.Advice, To: "/alerts?" + url.Values{"when": {kind.When}}.Encode()}
		switch kind.When {
		case "expiring":
			x.Words = plural(int(n), "key") + " expiring soon"
		case "expired":
			x.Words, x.Icon = plural(int(n), "key")+" expired lately", "expired"
		case "unused":
			x.Words, x.Class, x.Icon = plural(int(n), "key")+" not used for long", "quiet-need", "clock"
		case "rotation_overdue":
			x.Words = plural(int(n), "key") + " with an overdue rotation"
		case "previous_secret":
			x.Words = plural(int(n), "key") + " whose old secret is still used"
		default:
			x.Words = plural(int(n), "alert") + ": " + strings.ToLower(kind.Title[:1]) + kind.Title[1:]
		}
		list = append(list, x)
	}
	return list
}

// serviceNeeds are what is wrong with the service itself.
func (v *visit) serviceNeeds() ([]need, error) {
	now, err := v.systemNow()
	if err != nil {
		return nil, err
	}
	var list []need
	for _, f := range now.Findings {
		list = append(list, need{Icon: "revoked", Class: "wrong", Words: "The log is not as it was signed: " + f.Problem, More: f.Fix, To: "/system#scrub"})
	}
	if !now.Ready {
		list = append(list, need{Icon: "revoked", Class: "wrong", Words: "The service is not ready", To: "/system"})
	}
	if now.Status != nil {
		if n := len(lagging(now.Status.Projections)); n > 0 {
			list = append(list, need{Icon: "rate_limited", Class: "warn", Words: plural(n, "read model") + " behind", More: "Lists and figures are older than what happened.", To: "/system#projections"})
		}
		late := 0
		for _, x := range now.Status.Verifiers {
			if x.State != "current" {
				late++
			}
		}
		if late > 0 {
			list = append(list, need{Icon: "rate_limited", Class: "warn", Words: plural(late, "verifier") + " behind or silent", More: "What is revoked now may be accepted there until its stale window is over.", To: "/system#verifiers"})
		}
		failing := 0
		for _, w := range now.Status.Webhooks {
			if w.Status != "active" {
				failing++
			}
		}
		if failing > 0 {
			list = append(list, need{Icon: "rate_limited", Class: "warn", Words: plural(failing, "webhook") + " failing or disabled", To: "/webhooks"})
		}
	}
	return list, nil
}

// steps are what one does first, as far as somebody may.
func (v *visit) steps(all []keyspace, owners int) []step {
	var list []step
	ks := ""
	if len(all) > 0 {
		ks = all[0].ID
	}
	if v.me.For == nil {
		list = append(list, step{Title: "Describe a product", Text: "A keyspace says what its keys look like, what they may do, and how refusals are worded.", Command: "keyledger keyspaces apply -f product.yaml", To: "/keyspaces", Action: "Keyspaces", Done: len(all) > 0})
		register := step{Title: "Register an owner", Text: "The customer that keys belong to, on a plan with limits and a number of keys.", Done: owners > 0, Command: "keyledger owners set acme --keyspace " + cmp.Or(ks, "NAME")}
		if ks != "" && v.may(domain.OwnersWrite) {
			register.To, register.Action = "/owners/new?keyspace="+url.QueryEscape(ks), "Register an owner"
		}
		list = append(list, register)
	}
	create := step{Title: "Create a key", Text: "Its secret is shown once.", Command: "keyledger keys create --keyspace " + cmp.Or(ks, "NAME") + " --owner acme --name \"First key\""}
	if ks != "" && v.may(domain.KeysCreate) && (owners > 0 || v.me.For != nil) {
		create.To, create.Action = "/keys/new?keyspace="+url.QueryEscape(ks), "Create a key"
	}
	list = append(list, create)
	verify := step{Title: "Verify requests", Text: "Put the gateway or a proxy in front of your API, or ask from your code: what is allowed, and what was used, shows here."}
	if v.may(domain.Configure) && v.has("/gateways") {
		verify.To, verify.Action = "/gateways", "Gateways"
	}
	list = append(list, verify)
	for i := range list {
		if list[i].To != "" && !v.has(strings.SplitN(list[i].To, "?", 2)[0]) {
			list[i].To = ""
		}
	}
	return list
}

func (v *visit) dayPart() (*dayPart, error) {
	filter := url.Values{}
	if v.me.For != nil {
		filter = url.Values{"keyspace": {v.me.For.Keyspace}, "owner": {v.me.For.Owner}}
	}
	part := &dayPart{}
	day := spans[1]
	at, rows, spaces, err := v.usageOfAll(day, filter)
	if p, ok := errors.AsType[*api.Problem](err); ok {
		part.Unavailable = p
		return part, nil
	}
	if err != nil {
		return nil, err
	}
	part.Chart, part.Total = outcomes("Requests, last 24 hours", day, at, rows), sum(rows)
	for name, u := range spaces {
		if v.me.For == nil && name != "keyledger" {
			part.Spaces = append(part.Spaces, spaceDay{name, *u})
		}
	}
	slices.SortFunc(part.Spaces, func(a, b spaceDay) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Keyspace, b.Keyspace))
	})
	return part, nil
}

// usageOfAll asks for the counts of a span by keyspace and answers them added up over time
// and by keyspace. It is one answer for both, since what it costs is reading the figures of
// every key.
func (v *visit) usageOfAll(s span, filter url.Values) (buckets []time.Time, rows []*api.Usage, spaces map[string]*api.Usage, err error) {
	to := v.Now().UTC().Truncate(s.Step).Add(s.Step)
	from := to.Add(-s.Length)
	ask := url.Values{"by": {"keyspace"}, "bucket": {s.Bucket}, "from": {from.Format(time.RFC3339)}, "to": {to.Format(time.RFC3339)}}
	for name, value := range filter {
		ask[name] = value
	}
	var list api.UsageList
	if err := v.get("/v1/analytics/usage", ask, &list); err != nil {
		return nil, nil, nil, err
	}
	n := int(s.Length / s.Step)
	rows, spaces = make([]*api.Usage, n), map[string]*api.Usage{}
	for i := range n {
		buckets = append(buckets, from.Add(time.Duration(i)*s.Step))
	}
	for _, u := range list.Usage {
		if i := int(u.Time.Time().Sub(from) / s.Step); i >= 0 && i < n && u.Keyspace != nil {
			rows[i] = counted(rows[i], u)
			spaces[*u.Keyspace] = counted(spaces[*u.Keyspace], u)
		}
	}
	return buckets, rows, spaces, nil
}

// counted adds counts up. Percentiles cannot be added.
func counted(to *api.Usage, u api.Usage) *api.Usage {
	if to == nil {
		to = &api.Usage{}
	}
	to.Requests, to.Successes, to.Errors, to.Unknown = to.Requests+u.Requests, to.Successes+u.Successes, to.Errors+u.Errors, to.Unknown+u.Unknown
	to.Denied, to.RateLimited, to.CostMicros = to.Denied+u.Denied, to.RateLimited+u.RateLimited, to.CostMicros+u.CostMicros
	return to
}

// factWords say what a type of fact means.
var factWords = map[string]string{
	"key.created": "was created", "key.updated": "was changed", "key.rotated": "has a new secret", "key.grace_ended": "lost its previous secret",
	"key.revoked": "was revoked", "key.deleted": "was deleted", "owner.registered": "was registered", "owner.plan_changed": "changed its plan",
	"owner.key_admitted": "was given room for a key", "keyspace.configured": "was configured",
}

func latestWords(f queries.Latest) latestRow {
	row := latestRow{Latest: f, Words: cmp.Or(factWords[f.Type], f.Type)}
	switch {
	case f.Key != "" && f.Type != "key.deleted":
		row.To = "/keys/" + url.PathEscape(f.Key)
	case f.Key == "" && f.Owner != "":
		row.To = ownerPath(f.Keyspace, f.Owner)
	case f.Key == "":
		row.To = "/keys?" + url.Values{"keyspace": {f.Keyspace}}.Encode()
	}
	return row
}

// What names the thing that a fact is about.
func (r latestRow) What() string {
	switch {
	case r.Key != "":
		return cmp.Or(r.Name, r.Key)
	case r.Owner != "":
		return r.Owner
	}
	return r.Keyspace
}
