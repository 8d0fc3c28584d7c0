package console

import (
	"errors"
	"net/http"
	"net/url"
	"slices"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/commands/subscribers"
	"github.com/keyledger/keyledger/domain"
)

func (c *Console) subscriberPages() {
	c.page("GET /subscribers", (*visit).subscribers)
	c.page("GET /subscribers/new", func(v *visit) error { return v.showSubscriberForm(nil) })
	c.page("POST /subscribers/new", (*visit).addSubscriber)
	c.page("GET /subscribers/{name}", (*visit).subscriber)
	c.page("GET /subscribers/{name}/remove", (*visit).subscriber)
	c.page("POST /subscribers/{name}/remove", (*visit).removeSubscriber)
	c.page("POST /subscribers/sinks/{sink}/replay", (*visit).replaySink)
}

type subscribersData struct {
	Subscribers []subscribers.Subscriber
	Config      string
	Away        *api.Problem
	Sinks       []api.SinkStatus
	SinksAway   *api.Problem
}

// orAway keeps an answer that says that something is not there at the moment, for the
// page to show; any other error is the page's own.
func orAway(err error, away **api.Problem) error {
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status >= 500 {
		*away = p
		return nil
	}
	return err
}

func (v *visit) subscribers() error {
	var d subscribersData
	var list api.SubscriberList
	if err := orAway(v.get("/v1/subscribers", nil, &list), &d.Away); err != nil {
		return err
	}
	d.Subscribers, d.Config = list.Subscribers, list.Config
	var sinks struct{ Sinks []api.SinkStatus }
	if err := orAway(v.get("/v1/sinks", nil, &sinks), &d.SinksAway); err != nil {
		return err
	}
	d.Sinks = sinks.Sinks
	return v.show("subscribers", "Subscribers", d)
}

type subscriberForm struct {
	Keyspaces []string
	Given     url.Values
	Problem   *api.Problem
	Wrong     map[string]string
}

// besides moves what a problem says of fields to the fields.
func besides(p *api.Problem) map[string]string {
	wrong := map[string]string{}
	if p == nil {
		return wrong
	}
	for _, e := range p.Errors {
		said := e.Message
		if e.Fix != "" {
			said += ": " + e.Fix
		}
		path := e.Path
		if len(path) > 5 && path[:5] == "body." {
			path = path[5:]
		}
		wrong[path] = said
	}
	return wrong
}

func (v *visit) showSubscriberForm(problem *api.Problem) error {
	if !v.may(domain.Operate) {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "Subscribers are let in by operators. Managers make webhooks for their own owner."}
	}
	all, err := v.keyspaces()
	if err != nil {
		return err
	}
	d := subscriberForm{Given: v.r.PostForm, Problem: problem, Wrong: besides(problem)}
	for _, k := range all {
		d.Keyspaces = append(d.Keyspaces, k.ID)
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("newsubscriber", "Let a service subscribe", d)
}

func (v *visit) addSubscriber() error {
	in := api.SubscriberRequest{Name: v.form("name"), Keyspace: v.form("keyspace"), Owner: v.form("owner"), PublicKey: v.form("public_key"), From: v.form("from")}
	var out api.SubscriberAnswer
	if _, err := v.call(http.MethodPost, "/v1/subscribers", nil, nil, in, &out); err != nil {
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Status < 500 && p.Status != http.StatusForbidden {
			return v.showSubscriberForm(p)
		}
		return err
	}
	return v.show("subscriber", out.Subscriber.Name, subscriberData{Subscriber: out.Subscriber, Config: out.Config, Added: true, Applied: out.Applied})
}

type subscriberData struct {
	subscribers.Subscriber
	Config         string
	Added, Applied bool // by the form before
	Remove         bool // asked about
	Removed        bool
}

func (v *visit) subscriber() error {
	var list api.SubscriberList
	if err := v.get("/v1/subscribers", nil, &list); err != nil {
		return err
	}
	name := v.r.PathValue("name")
	i := slices.IndexFunc(list.Subscribers, func(s subscribers.Subscriber) bool { return s.Name == name })
	if i < 0 {
		return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no subscriber of this name."}
	}
	x := list.Subscribers[i]
	title, remove := x.Name, v.r.URL.Path == "/subscribers/"+name+"/remove"
	if remove {
		title = "Remove " + x.Name
	}
	return v.show("subscriber", title, subscriberData{Subscriber: x, Config: x.Config(), Remove: remove})
}

func (v *visit) removeSubscriber() error {
	var out api.SubscriberAnswer
	if _, err := v.call(http.MethodDelete, "/v1/subscribers/"+url.PathEscape(v.r.PathValue("name")), nil, nil, nil, &out); err != nil {
		return err
	}
	if out.Applied {
		return v.redirect("/subscribers", "subscriber-removed")
	}
	return v.show("subscriber", out.Subscriber.Name, subscriberData{Subscriber: out.Subscriber, Config: out.Config, Removed: true})
}

func (v *visit) replaySink() error {
	if _, err := v.call(http.MethodPost, "/v1/dead-letters/replay", nil, nil, api.ReplayRequest{Reactor: api.SinkReactor, Target: v.r.PathValue("sink")}, nil); err != nil {
		return err
	}
	return v.redirect("/subscribers", "replaying")
}
