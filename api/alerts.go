package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/commands/alertrules"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/queries"
)

type alertsInput struct {
	Keyspace string    `query:"keyspace" doc:"Of this keyspace." example:"parcelbird"`
	Owner    string    `query:"owner" doc:"Of this owner."`
	Key      string    `query:"key" doc:"About this key."`
	When     string    `query:"when" doc:"Of rules with this condition." example:"error_rate"`
	State    string    `query:"state" doc:"raised or resolved." enum:"raised,resolved"`
	From     time.Time `query:"from" doc:"Raised at this time or later."`
	To       time.Time `query:"to" doc:"Raised before this time."`
	Limit    int       `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many in a page."`
	Cursor   string    `query:"cursor" doc:"The next_cursor of the page before, with the same filters."`
}

// AlertPage is a page of alerts.
type AlertPage struct {
	Alerts     []queries.AlertView `json:"alerts" nullable:"false"`
	NextCursor *string             `json:"next_cursor" doc:"Where the next page begins; null: this is the last."`
}

type alertsOutput struct{ Body AlertPage }

// AlertRule is one rule, as in a keyspace document.
type AlertRule struct {
	When        string   `json:"when" doc:"What it watches: see docs/alerts.md." example:"denied"`
	Above       *float64 `json:"above,omitempty" doc:"The alert is raised above it." example:"10"`
	Over        string   `json:"over,omitempty" doc:"The time that is looked at." example:"10m"`
	Within      string   `json:"within,omitempty" doc:"How near the end is." example:"14d"`
	For         string   `json:"for,omitempty" doc:"How long nothing has happened." example:"90d"`
	MinRequests *int64   `json:"min_requests,omitempty" doc:"Fewer requests raise nothing." example:"20"`
	Off         *bool    `json:"off,omitempty" doc:"true: nobody wants to hear of it. Alone with when."`
}

// AlertRules are the rules of one place.
type AlertRules struct {
	Rules []AlertRule `json:"rules" nullable:"false" doc:"All of them; of each condition that one of them names, no more general rule counts. Empty: the more general ones count again."`
}

// AlertRuleInForce is a rule that counts.
type AlertRuleInForce struct {
	AlertRule
	From string `json:"from" doc:"Where it comes from: key, resource, owner, keyspace, document or built-in." example:"document"`
}

// AlertSetting is what is set for one place.
type AlertSetting struct {
	alertrules.Scope
	Rules    []AlertRule  `json:"rules" nullable:"false"`
	SetAt    events.Time  `json:"set_at" doc:"null: nothing is set."`
	SetBy    events.Actor `json:"set_by"`
	Sequence uint64       `json:"sequence" doc:"Of the fact in OPS; 0: nothing is set."`

	InForce []AlertRuleInForce `json:"in_force,omitempty" doc:"Of one place: the rules that count there."`
	Changed *bool              `json:"changed,omitempty" doc:"Of a change: false where it was so already, and nothing was recorded."`
}

// AlertSettings are those of a keyspace.
type AlertSettings struct {
	Settings []AlertSetting `json:"settings" nullable:"false"`
}

func alertRule(r domain.AlertRule) AlertRule {
	text := func(d domain.Duration) string {
		if d == 0 {
			return ""
		}
		return d.String()
	}
	v := AlertRule{When: r.When, Above: r.Above, Over: text(r.Over), Within: text(r.Within), For: text(r.For)}
	if r.MinRequests > 0 {
		v.MinRequests = &r.MinRequests
	}
	if r.Off {
		v.Off = &r.Off
	}
	return v
}

func alertSetting(s alertrules.Setting) AlertSetting {
	v := AlertSetting{Scope: s.Scope, Rules: []AlertRule{}, SetAt: s.SetAt, SetBy: s.SetBy, Sequence: s.Sequence}
	for _, r := range s.Rules {
		v.Rules = append(v.Rules, alertRule(r))
	}
	return v
}

type (
	alertRulesOutput struct{ Body AlertSetting }
	alertRulesList   struct{ Body AlertSettings }

	alertRulesFilter struct {
		Keyspace string `query:"keyspace" doc:"Of this keyspace." example:"parcelbird"`
		Owner    string `query:"owner" doc:"Of this owner and its keys."`
	}
)

// What rules are set for, as paths name it.
type (
	KeyspaceRules struct{ KeyspacePath } // a keyspace
	OwnerRules    struct{ OwnerPath }    // an owner of it
	ResourceRules struct {               // keys of it that are bound to a resource
		KeyspacePath
		Resource string `path:"resource" doc:"Keys that are bound to it." example:"depot_1"`
	}
	KeyRules struct { // a key
		ID string `path:"id" doc:"The key's id."`
	}
)

type (
	setKeyspaceRules struct {
		KeyspaceRules
		Body AlertRules
	}
	setOwnerRules struct {
		OwnerRules
		Body AlertRules
	}
	setResourceRules struct {
		ResourceRules
		Body AlertRules
	}
	setKeyRules struct {
		KeyRules
		Body AlertRules
	}
)

func (in KeyspaceRules) scope() alertrules.Scope { return alertrules.Scope{Keyspace: in.Keyspace} }
func (in OwnerRules) scope() alertrules.Scope {
	return alertrules.Scope{Keyspace: in.Keyspace, Owner: in.Owner}
}
func (in ResourceRules) scope() alertrules.Scope {
	return alertrules.Scope{Keyspace: in.Keyspace, Resource: in.Resource}
}
func (in KeyRules) scope() alertrules.Scope { return alertrules.Scope{Key: in.ID} }

func (in setKeyspaceRules) rules() *AlertRules { return &in.Body }
func (in setOwnerRules) rules() *AlertRules    { return &in.Body }
func (in setResourceRules) rules() *AlertRules { return &in.Body }
func (in setKeyRules) rules() *AlertRules      { return &in.Body }

func (a *API) alerts() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-alerts", Method: http.MethodGet, Path: "/v1/alerts", Tags: []string{"Alerts"},
			Summary: "List alerts", Description: "Those that are raised and those that were, raised last first, from the read models.",
		},
		action: domain.AlertsRead, absent: true,
	}, a.listAlerts)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-alert-rules", Method: http.MethodGet, Path: "/v1/alert-rules", Tags: []string{"Alerts"},
			Summary: "List what is set", Description: "The alert rules that were set in place of those of the documents.",
		},
		action: domain.AlertsRead, absent: true,
	}, a.listAlertRules)
	rulesOf[KeyspaceRules, setKeyspaceRules](a, "keyspace", "/v1/alert-rules/keyspaces/{ks}", "the keys of a keyspace")
	rulesOf[OwnerRules, setOwnerRules](a, "owner", "/v1/alert-rules/keyspaces/{ks}/owners/{owner}", "the keys of an owner")
	rulesOf[ResourceRules, setResourceRules](a, "resource", "/v1/alert-rules/keyspaces/{ks}/resources/{resource}", "the keys that are bound to a resource")
	rulesOf[KeyRules, setKeyRules](a, "key", "/v1/alert-rules/keys/{id}", "a key")
}

// rulesOf registers the calls about the rules of one kind of place.
func rulesOf[P interface{ scope() alertrules.Scope }, B interface {
	scope() alertrules.Scope
	rules() *AlertRules
}](a *API, kind, path, what string) {
	operation := func(method, id, summary, text string) huma.Operation {
		return huma.Operation{OperationID: id + "-" + kind + "-alert-rules", Method: method, Path: path, Tags: []string{"Alerts"}, Summary: summary + what, Description: text}
	}
	serve(a, route{Operation: operation(http.MethodPut, "set", "Set the alert rules of ", "Puts rules in force there, in place of all that were set. Recorded as alert_rules.set on OPS; the same again records nothing."),
		action: domain.AlertsWrite, absent: true}, func(ctx context.Context, in *B) (*alertRulesOutput, error) {
		return a.setAlertRules(ctx, (*in).scope(), (*in).rules())
	})
	serve(a, route{Operation: operation(http.MethodGet, "get", "Show the alert rules of ", "What is set there, and which rules count there."),
		action: domain.AlertsRead, absent: true}, func(ctx context.Context, in *P) (*alertRulesOutput, error) {
		return a.alertRules(ctx, (*in).scope())
	})
	serve(a, route{Operation: operation(http.MethodDelete, "delete", "Remove the alert rules of ", "The more general ones count again. Recorded as alert_rules.set on OPS; where nothing is set, nothing is."),
		action: domain.AlertsWrite, absent: true}, func(ctx context.Context, in *P) (*alertRulesOutput, error) {
		return a.setAlertRules(ctx, (*in).scope(), nil)
	})
}

func (a *API) listAlerts(ctx context.Context, in *alertsInput) (*alertsOutput, error) {
	if err := a.within(ctx, &in.Keyspace, &in.Owner, &in.Key, false); err != nil {
		return nil, err
	}
	before, err := readCursor("alerts", in.Cursor)
	if err != nil {
		return nil, err
	}
	out := &alertsOutput{AlertPage{Alerts: []queries.AlertView{}}}
	err = a.readModel(ctx, projections.Alerts{}.Name(), func(ctx context.Context, q *queries.Queries) error {
		list, next, err := q.ListAlerts(ctx, queries.AlertFilter{Keyspace: in.Keyspace, Owner: in.Owner, Key: in.Key, When: in.When, State: in.State,
			From: events.At(in.From), To: events.At(in.To), Limit: in.Limit, Before: before})
		out.Body.Alerts = append(out.Body.Alerts, list...)
		if next != "" {
			out.Body.NextCursor = new(writeCursor("alerts", next))
		}
		return err
	})
	return out, err
}

func (a *API) rulesKeeper() (*alertrules.Rules, error) {
	if a.AlertRules == nil {
		return nil, unavailable("READ_MODELS_UNAVAILABLE", "This program has no PostgreSQL, where alert rules are read.", 30)
	}
	return a.AlertRules, nil
}

func (a *API) listAlertRules(ctx context.Context, in *alertRulesFilter) (*alertRulesList, error) {
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, false); err != nil {
		return nil, err
	}
	keeper, err := a.rulesKeeper()
	if err != nil {
		return nil, err
	}
	out := &alertRulesList{AlertSettings{[]AlertSetting{}}}
	err = a.readModel(ctx, projections.Alerts{}.Name(), func(ctx context.Context, _ *queries.Queries) error {
		list, err := keeper.List(ctx, in.Keyspace, in.Owner)
		for _, l := range list {
			out.Body.Settings = append(out.Body.Settings, alertSetting(l))
		}
		return err
	})
	return out, err
}

// reachOf completes a scope and says which keyspace it is in. What is foreign is absent;
// what is the caller's to see and not to change is forbidden.
func (a *API) reachOf(ctx context.Context, s *alertrules.Scope, changes bool) (*domain.Keyspace, error) {
	authority := callOf(ctx).authority
	if s.Key != "" {
		k := a.Ring.Key(s.Key)
		if k == nil || k.Keyspace == events.RootKeyspace || !authority.Reaches(k.Keyspace, k.Owner) {
			return nil, domain.KeyNotFound()
		}
		s.Keyspace, s.Owner = k.Keyspace, k.Owner
	}
	ks, err := a.keyspace(ctx, s.Keyspace)
	if err != nil {
		return nil, err
	}
	if s.Owner != "" && (a.Ring.Owner(s.Keyspace, s.Owner) == nil || !authority.Reaches(s.Keyspace, s.Owner)) {
		return nil, domain.OwnerNotFound()
	}
	if s.Resource != "" && !domain.ValidEntityID(s.Resource) {
		return nil, unprocessable(Detail{Path: "resource", Message: "is not an id of a resource", Fix: "letters, digits, - and _, at most 64"})
	}
	if changes && authority.Reach != nil && s.Owner == "" {
		return nil, problem(http.StatusForbidden, "FORBIDDEN", "This credential may set alert rules for its own owner and that one's keys alone.")
	}
	return ks, nil
}

func (a *API) alertRules(ctx context.Context, s alertrules.Scope) (*alertRulesOutput, error) {
	ks, err := a.reachOf(ctx, &s, false)
	if err != nil {
		return nil, err
	}
	keeper, err := a.rulesKeeper()
	if err != nil {
		return nil, err
	}
	out := &alertRulesOutput{}
	err = a.readModel(ctx, projections.Alerts{}.Name(), func(ctx context.Context, _ *queries.Queries) (err error) {
		own, err := keeper.Of(ctx, s)
		if err != nil {
			return err
		}
		out.Body = alertSetting(own)
		list, err := keeper.List(ctx, s.Keyspace, "")
		set := map[alertrules.Scope][]domain.AlertRule{}
		for _, l := range list {
			set[l.Scope] = l.Rules
		}
		var resources []string
		if k := a.Ring.Key(s.Key); k != nil {
			resources = k.Resources
		} else if s.Resource != "" {
			resources = []string{s.Resource}
		}
		for _, r := range domain.AlertsFor(ks.Document, s.Owner, s.Key, resources, func(owner, key, resource string) []domain.AlertRule {
			return set[alertrules.Scope{Keyspace: s.Keyspace, Owner: owner, Key: key, Resource: resource}]
		}) {
			out.Body.InForce = append(out.Body.InForce, AlertRuleInForce{alertRule(r.AlertRule), r.From})
		}
		return err
	})
	return out, err
}

func (a *API) setAlertRules(ctx context.Context, s alertrules.Scope, in *AlertRules) (*alertRulesOutput, error) {
	ks, err := a.reachOf(ctx, &s, true)
	if err != nil {
		return nil, err
	}
	keeper, err := a.rulesKeeper()
	if err != nil {
		return nil, err
	}
	var rules []domain.AlertRule
	if in != nil {
		source, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		rules, err = domain.ParseAlertRules(source, ks.Document)
		if bad, ok := errors.AsType[*domain.DocumentError](err); ok {
			refusal := &domain.Refusal{Kind: domain.Invalid, Code: "INVALID", Detail: "The rules are not valid; nothing was recorded."}
			for _, p := range bad.Problems {
				p.Line = 0 // of what nobody has written
				refusal.Problems = append(refusal.Problems, p)
			}
			return nil, refusal
		}
		if err != nil {
			return nil, err
		}
	}
	c := callOf(ctx)
	set, changed, err := keeper.Set(ctx, alertrules.By{Actor: c.authority.Actor, Via: c.via(), RequestID: c.requestID}, s, rules)
	if err != nil {
		return nil, err
	}
	out := &alertRulesOutput{alertSetting(set)}
	out.Body.Changed = &changed
	return out, nil
}
