package console

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/reactors/delivery"
)

func (c *Console) webhookPages() {
	c.page("GET /webhooks", (*visit).webhooks)
	c.page("GET /webhooks/new", func(v *visit) error { return v.showWebhookForm(nil) })
	c.page("POST /webhooks/new", (*visit).registerWebhook)
	c.page("GET /webhooks/{id}", func(v *visit) error { return v.showWebhook(nil) })
	c.page("GET /webhooks/{id}/dead/{sequence}", (*visit).deadLetter)
	c.page("GET /webhooks/{id}/{act}", (*visit).askWebhook)
	c.page("POST /webhooks/{id}/{act}", (*visit).actOnWebhook)
}

func (v *visit) webhooks() error {
	d := struct {
		Webhooks []api.Webhook
		Away     *api.Problem
		MayWrite bool
		Operator bool
	}{MayWrite: v.may(domain.WebhooksWrite), Operator: v.may(domain.Operate)}
	var list api.Webhooks
	if err := orAway(v.get("/v1/webhooks", nil, &list), &d.Away); err != nil {
		return err
	}
	d.Webhooks = list.Webhooks
	return v.show("webhooks", "Webhooks", d)
}

// eventTypes are those that people send to an address, with what they tell.
var eventTypes = []struct{ Type, About string }{
	{"key.*", "everything about keys"},
	{"key.created", "a key was made"},
	{"key.updated", "its name, scopes or limits changed"},
	{"key.rotated", "it has a new secret"},
	{"key.grace_ended", "the previous secret works no more"},
	{"key.revoked", "it works no more"},
	{"key.deleted", "it has left the list"},
	{"owner.*", "an owner was registered or changed its plan"},
	{"keyspace.configured", "a keyspace document changed"},
	{"alert.raised", "a rule began to hold"},
	{"alert.resolved", "and holds no more"},
}

type webhookForm struct {
	Keyspaces []string
	Types     []struct{ Type, About string }
	Given     url.Values
	Once      string
	Problem   *api.Problem
	Wrong     map[string]string
	Manager   bool
}

// Chosen says whether a type was ticked in the form that was sent.
func (f webhookForm) Chosen(t string) bool {
	for _, g := range f.Given["types"] {
		if g == t {
			return true
		}
	}
	return false
}

func (v *visit) showWebhookForm(problem *api.Problem) error {
	if !v.may(domain.WebhooksWrite) {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "This sign-in reads webhooks and makes none."}
	}
	d := webhookForm{Types: eventTypes, Given: v.r.PostForm, Once: newToken(), Problem: problem, Wrong: besides(problem), Manager: v.me.For != nil}
	if !d.Manager {
		all, err := v.keyspaces()
		if err != nil {
			return err
		}
		for _, k := range all {
			d.Keyspaces = append(d.Keyspaces, k.ID)
		}
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("newwebhook", "Register a webhook", d)
}

func (v *visit) registerWebhook() error {
	if err := v.r.ParseForm(); err != nil {
		return &api.Problem{Status: http.StatusBadRequest, Title: "Bad Request", Detail: "The form could not be read."}
	}
	in := api.WebhookRequest{URL: v.form("url"), Keyspace: v.form("keyspace"), Owner: v.form("owner"), Types: v.r.PostForm["types"], Keys: words(v.form("keys")), Description: v.form("description")}
	var out api.WebhookSecret
	if _, err := v.call(http.MethodPost, "/v1/webhooks", nil, once(v.form("once")), in, &out); err != nil {
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Status < 500 && p.Status != http.StatusForbidden && p.Status != http.StatusUnauthorized {
			return v.showWebhookForm(p)
		}
		return err
	}
	return v.revealWebhook(out, "registered")
}

// revealWebhook shows a webhook's secret, as a key's is shown: once.
func (v *visit) revealWebhook(out api.WebhookSecret, what string) error {
	title := "The webhook’s secret"
	if out.Secret == nil {
		title = "The secret was shown already"
	}
	d := struct {
		Webhook api.Webhook
		Secret  string
		What    string
	}{Webhook: out.Webhook, What: what}
	if out.Secret != nil {
		d.Secret = *out.Secret
	}
	return v.alone("webhooksecret", title, d)
}

type webhookData struct {
	api.Webhook
	Deliveries []delivery.Attempt
	Earlier    string // where older attempts are
	Letters    []delivery.DeadLetter
	Tested     *api.WebhookTested
	MayWrite   bool
	Dead       int // letters that may be replayed
	Act        string
	Once       string
	Problem    *api.Problem
}

// attemptsShown of deliveries are on a page.
const attemptsShown = 50

func (v *visit) webhookPath() string { return "/v1/webhooks/" + url.PathEscape(v.r.PathValue("id")) }

func (v *visit) showWebhook(tested *api.WebhookTested) error {
	d := webhookData{Tested: tested, MayWrite: v.may(domain.WebhooksWrite), Once: newToken()}
	if err := v.get(v.webhookPath(), nil, &d.Webhook); err != nil {
		return err
	}
	ask := url.Values{"limit": {strconv.Itoa(attemptsShown)}}
	if before := v.r.URL.Query().Get("before"); before != "" {
		ask.Set("before", before)
	}
	var log api.Deliveries
	if err := v.get(v.webhookPath()+"/deliveries", ask, &log); err != nil {
		return err
	}
	d.Deliveries = log.Deliveries
	if n := len(log.Deliveries); n >= attemptsShown {
		d.Earlier = "/webhooks/" + url.PathEscape(d.ID) + "?" + url.Values{"before": {log.Deliveries[n-1].Time.String()}}.Encode()
	}
	if d.Delivery.DeadLetters > 0 || v.r.URL.Query().Get("dead") != "" {
		var letters api.DeadLetters
		if err := v.get("/v1/dead-letters", url.Values{"target": {d.ID}, "limit": {"100"}}, &letters); err != nil {
			return err
		}
		d.Letters = letters.DeadLetters
		for _, l := range d.Letters {
			if l.State == delivery.Dead {
				d.Dead++
			}
		}
	}
	return v.show("webhook", hostOf(d.URL), d)
}

// hostOf is what a webhook is called: the host of its address.
func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Host
	}
	return address
}

func (v *visit) deadLetter() error {
	var d delivery.DeadLetter
	if err := v.get("/v1/dead-letters/"+url.PathEscape(v.r.PathValue("sequence")), nil, &d); err != nil {
		return err
	}
	if d.Target != v.r.PathValue("id") {
		return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no such dead letter of this webhook."}
	}
	var body bytes.Buffer
	if err := json.Indent(&body, d.Body, "", "  "); err != nil {
		return err
	}
	return v.show("deadletter", "Dead letter "+strconv.FormatUint(d.Sequence, 10), struct {
		delivery.DeadLetter
		Text     string
		MayWrite bool
	}{d, body.String(), v.may(domain.WebhooksWrite) && d.State == delivery.Dead})
}

func (v *visit) askWebhook() error {
	act := v.r.PathValue("act")
	if act != "rotate-secret" && act != "remove" {
		return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no page at this address."}
	}
	return v.showAskWebhook(act, nil)
}

func (v *visit) showAskWebhook(act string, problem *api.Problem) error {
	d := webhookData{Act: act, Once: newToken(), Problem: problem}
	if err := v.get(v.webhookPath(), nil, &d.Webhook); err != nil {
		return err
	}
	title := "Remove the webhook"
	if act == "rotate-secret" {
		title = "Give the webhook another secret"
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("askwebhook", title, d)
}

func (v *visit) actOnWebhook() error {
	path, act := v.webhookPath(), v.r.PathValue("act")
	page := "/webhooks/" + url.PathEscape(v.r.PathValue("id"))
	header := once(v.form("once"))
	retry := func(err error) error {
		if p, ok := errors.AsType[*api.Problem](err); ok && (p.Status == http.StatusUnprocessableEntity || p.Status == http.StatusBadRequest) {
			return v.showAskWebhook(act, p)
		}
		return err
	}
	switch act {
	case "test":
		var tested api.WebhookTested
		if _, err := v.call(http.MethodPost, path+"/test", nil, nil, nil, &tested); err != nil {
			return err
		}
		return v.showWebhook(&tested)
	case "rotate-secret":
		var out api.WebhookSecret
		if _, err := v.call(http.MethodPost, path+"/rotate-secret", nil, header, api.RotateSecretRequest{Grace: v.form("grace")}, &out); err != nil {
			return retry(err)
		}
		return v.revealWebhook(out, "rotated")
	case "enable":
		if _, err := v.call(http.MethodPost, path+"/enable", nil, header, nil, nil); err != nil {
			return err
		}
		return v.redirect(page, "webhook-enabled")
	case "replay":
		in := api.ReplayRequest{Target: v.r.PathValue("id")}
		if n, err := strconv.ParseUint(strings.TrimSpace(v.form("sequence")), 10, 64); err == nil {
			in.Sequences = []uint64{n}
		}
		if _, err := v.call(http.MethodPost, "/v1/dead-letters/replay", nil, nil, in, nil); err != nil {
			return err
		}
		return v.redirect(page+"?dead=1", "replaying")
	case "remove":
		if _, err := v.call(http.MethodDelete, path, nil, header, nil, nil); err != nil {
			return retry(err)
		}
		return v.redirect("/webhooks", "webhook-removed")
	}
	return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no page at this address."}
}
