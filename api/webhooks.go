package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/commands/webhooks"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/reactors/delivery"
)

// WebhookRequest says what to send where.
type WebhookRequest struct {
	URL         string   `json:"url" doc:"A public address with https, without a user and a fragment; the operator may allow others. A token in it can be read by operators, auditors and the owner's managers." example:"https://example.com/hooks/keys"`
	Keyspace    string   `json:"keyspace,omitempty" doc:"What happens in this keyspace; absent: in all. Of a manager: theirs." example:"parcelbird"`
	Owner       string   `json:"owner,omitempty" doc:"Of this owner; absent: of all. Of a manager: theirs." example:"org_1"`
	Types       []string `json:"types,omitempty" doc:"Of these types, or of families such as key.*; absent or empty: all of FEED, and alerts." example:"[\"key.revoked\"]"`
	Keys        []string `json:"keys,omitempty" doc:"About these keys; absent or empty: all."`
	Description string   `json:"description,omitempty" maxLength:"500" doc:"For people; no person's name." example:"the dispatch service"`
	From        *uint64  `json:"from,omitempty" doc:"Begin with what came after this sequence of FEED; 0: with everything; absent: with what comes next. Alerts begin now." example:"42"`
}

// RotateSecretRequest says how long two secrets sign.
type RotateSecretRequest struct {
	Grace string `json:"grace,omitempty" doc:"For how long the secret before signs as well: 0s to 7d; absent: 24h." example:"24h"`
}

// Webhook is an endpoint, and how the deliveries to it are.
type Webhook struct {
	ID                  string          `json:"id" example:"whk_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	URL                 string          `json:"url" example:"https://example.com/hooks/keys"`
	Keyspace            string          `json:"keyspace" doc:"Empty: all." example:"parcelbird"`
	Owner               string          `json:"owner" doc:"Empty: all." example:"org_1"`
	Types               []string        `json:"types" nullable:"false" doc:"Empty: all."`
	Keys                []string        `json:"keys" nullable:"false" doc:"Empty: all."`
	Description         string          `json:"description"`
	Status              string          `json:"status" enum:"active,failing,disabled" doc:"failing: the last attempt failed, it is tried again. disabled: it answered 410 Gone; nothing is sent until it is enabled, and then what it has missed as well."`
	DisabledReason      string          `json:"disabled_reason"`
	DisabledAt          events.Time     `json:"disabled_at"`
	CreatedAt           events.Time     `json:"created_at"`
	CreatedBy           events.Actor    `json:"created_by"`
	SecretRotatedAt     events.Time     `json:"secret_rotated_at"`
	PreviousSecretUntil events.Time     `json:"previous_secret_until" doc:"Until then the secret before signs as well; null: it does not."`
	Delivery            WebhookDelivery `json:"delivery"`
}

// WebhookDelivery is how the deliveries to an endpoint are.
type WebhookDelivery struct {
	Position     uint64      `json:"position" doc:"All that it wants of FEED up to this sequence is delivered, dead or in flight."`
	InFlight     int         `json:"in_flight" doc:"Keys of which a fact is being sent or waits for its next attempt."`
	Delivered    uint64      `json:"delivered" doc:"Facts."`
	DeadLetters  uint64      `json:"dead_letters" doc:"Facts that were given up and not replayed since."`
	FailingSince events.Time `json:"failing_since" doc:"Of the first failure since anything arrived; null: the last attempt succeeded."`
	LastSuccess  events.Time `json:"last_success_at"`
	LastFailure  events.Time `json:"last_failure_at"`
	LastError    string      `json:"last_error"`
}

// WebhookSecret is an endpoint with its secret, which is answered this once.
type WebhookSecret struct {
	Webhook  Webhook `json:"webhook"`
	Secret   *string `json:"secret" doc:"What is sent is signed with it, as Standard Webhooks says. It is never answered again; null when the command was replayed." example:"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"`
	Replayed bool    `json:"replayed,omitempty" doc:"true: this Idempotency-Key had taken effect before."`
}

// WebhookChanged is an endpoint after a command.
type WebhookChanged struct {
	Webhook  Webhook `json:"webhook"`
	Replayed bool    `json:"replayed,omitempty" doc:"true: this Idempotency-Key had taken effect before."`
}

// Webhooks are endpoints.
type Webhooks struct {
	Webhooks []Webhook `json:"webhooks" nullable:"false" doc:"Oldest first."`
}

// WebhookTested is what came of a test.
type WebhookTested struct {
	Delivered bool             `json:"delivered" doc:"true: it answered with 200 to 299."`
	Delivery  delivery.Attempt `json:"delivery"`
}

// Deliveries are attempts of deliveries.
type Deliveries struct {
	Deliveries []delivery.Attempt `json:"deliveries" nullable:"false" doc:"Newest first."`
}

// DeadLetters are facts that were given up.
type DeadLetters struct {
	DeadLetters []delivery.DeadLetter `json:"dead_letters" nullable:"false" doc:"Oldest first, without the facts."`
	Next        *uint64               `json:"next" doc:"Send it as after for what follows; null: this is the end."`
}

// ReplayRequest says which dead letters to deliver again.
type ReplayRequest struct {
	Reactor   string   `json:"reactor,omitempty" doc:"webhooks or sinks; absent: webhooks." example:"webhooks"`
	Target    string   `json:"target,omitempty" doc:"All that are dead of this webhook or sink." example:"whk_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Sequences []uint64 `json:"sequences,omitempty" maxItems:"1000" doc:"Or of it these, by their sequence in DLQ."`
}

// Replay is what came of it.
type Replay struct {
	Replaying []uint64 `json:"replaying" nullable:"false" doc:"Sequences in DLQ that are delivered again from now on."`
	Skipped   []uint64 `json:"skipped" nullable:"false" doc:"Those that are not dead: they are being replayed, or were."`
}

type (
	WebhookPath struct {
		ID string `path:"id" doc:"The webhook's id." example:"whk_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	}
	webhookInput struct{ Body WebhookRequest }
	rotateSecret struct {
		WebhookPath
		Body *RotateSecretRequest
	}
	webhooksAsked struct {
		Keyspace string `query:"keyspace" doc:"Of this keyspace." example:"parcelbird"`
		Owner    string `query:"owner" doc:"Of this owner." example:"org_1"`
	}
	deliveriesAsked struct {
		WebhookPath
		Before string `query:"before" doc:"Before this time, RFC 3339; absent: the newest." example:"2026-01-18T12:00:00.000Z"`
		Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many, and what else began in the millisecond of the last."`
	}
	lettersAsked struct {
		Reactor string `query:"reactor" default:"webhooks" doc:"webhooks or sinks." example:"webhooks"`
		Target  string `query:"target" doc:"Of this webhook or sink; absent: of all. A manager names one of theirs."`
		State   string `query:"state" enum:"dead,replaying,replayed" doc:"In this state; absent: all."`
		After   uint64 `query:"after" doc:"After this sequence of DLQ."`
		Limit   int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many."`
	}
	letterPath struct {
		Sequence uint64 `path:"sequence" doc:"In DLQ." example:"1"`
	}
	replayInput struct{ Body ReplayRequest }

	webhookCreated struct {
		Location string `header:"Location" doc:"Where the webhook is read."`
		opsChanged
		Body WebhookSecret
	}
	webhookSecret struct {
		opsChanged
		Body WebhookSecret
	}
	webhookChanged struct {
		opsChanged
		Body WebhookChanged
	}
	webhookOutput struct{ Body Webhook }
	webhookList   struct{ Body Webhooks }
	webhookTested struct{ Body WebhookTested }
	deliveryList  struct{ Body Deliveries }
	letterList    struct{ Body DeadLetters }
	letterOutput  struct{ Body delivery.DeadLetter }
	replayOutput  struct{ Body Replay }
)

// opsChanged are the headers of an answer to an act on OPS.
type opsChanged struct {
	LedgerSequence uint64 `header:"Ledger-Sequence" doc:"How far LEDGER was on this node; what was recorded stands on OPS."`
	CacheControl   string `header:"Cache-Control" doc:"no-store"`
}

func (a *API) webhooks() {
	tags := []string{"Webhooks"}
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "register-webhook", Method: http.MethodPost, Path: "/v1/webhooks", Tags: tags, Summary: "Register a webhook",
			Description: "What happens is sent to an address from now on, signed as Standard Webhooks says with a secret that is answered this once: at least once, under the event's id, in order for each key, tried again for a day. Recorded as webhook.registered on OPS. docs/webhooks.md has receivers.",
		},
		action: domain.WebhooksWrite, command: true, status: http.StatusCreated,
	}, a.registerWebhook)
	serve(a, route{
		Operation: huma.Operation{OperationID: "list-webhooks", Method: http.MethodGet, Path: "/v1/webhooks", Tags: tags, Summary: "List the webhooks",
			Description: "Those that the credential reaches, with how the deliveries to each are."},
		action: domain.WebhooksRead, absent: true,
	}, a.listWebhooks)
	serve(a, route{
		Operation: huma.Operation{OperationID: "get-webhook", Method: http.MethodGet, Path: "/v1/webhooks/{id}", Tags: tags, Summary: "Show a webhook",
			Description: "With how the deliveries to it are."},
		action: domain.WebhooksRead, absent: true,
	}, a.getWebhook)
	serve(a, route{
		Operation: huma.Operation{OperationID: "remove-webhook", Method: http.MethodDelete, Path: "/v1/webhooks/{id}", Tags: tags, Summary: "Remove a webhook",
			Description: "Nothing more is sent to it. Its dead letters stay in DLQ. Recorded as webhook.removed on OPS."},
		action: domain.WebhooksWrite, command: true,
	}, a.removeWebhook)
	serve(a, route{
		Operation: huma.Operation{OperationID: "test-webhook", Method: http.MethodPost, Path: "/v1/webhooks/{id}/test", Tags: tags, Summary: "Test a webhook",
			Description: "Sends it an event of type webhook.test, which stands in no stream, once and now, and answers what came of it."},
		action: domain.WebhooksWrite, absent: true,
	}, a.testWebhook)
	serve(a, route{
		Operation: huma.Operation{OperationID: "rotate-webhook-secret", Method: http.MethodPost, Path: "/v1/webhooks/{id}/rotate-secret", Tags: tags, Summary: "Give a webhook another secret",
			Description: "The new secret is answered this once. For the time of the grace what is sent has two signatures, so that receivers can change over. Recorded as webhook.secret_rotated on OPS."},
		action: domain.WebhooksWrite, command: true, bodyOptional: true,
	}, a.rotateWebhookSecret)
	serve(a, route{
		Operation: huma.Operation{OperationID: "enable-webhook", Method: http.MethodPost, Path: "/v1/webhooks/{id}/enable", Tags: tags, Summary: "Enable a webhook",
			Description: "One that answered 410 Gone is sent what it has missed, and what follows. One that is enabled is left as it is. Recorded as webhook.enabled on OPS."},
		action: domain.WebhooksWrite, command: true,
	}, a.enableWebhook)
	serve(a, route{
		Operation: huma.Operation{OperationID: "list-deliveries", Method: http.MethodGet, Path: "/v1/webhooks/{id}/deliveries", Tags: tags, Summary: "List attempts of deliveries",
			Description: "Each attempt of the last 30 days, newest first: when, what was answered, how long it took, why it failed. Where more than 20 succeed in a second, the others are counted under omitted. It is behind by up to half a second, and what a killed process did last may be missing; it is no proof."},
		action: domain.WebhooksRead, absent: true,
	}, a.listDeliveries)
	serve(a, route{
		Operation: huma.Operation{OperationID: "list-dead-letters", Method: http.MethodGet, Path: "/v1/dead-letters", Tags: tags, Summary: "List what could not be delivered",
			Description: "Facts that a webhook or a sink did not take for a day, with the reason. They stay in DLQ for ever."},
		action: domain.WebhooksRead, absent: true,
	}, a.listDeadLetters)
	serve(a, route{
		Operation: huma.Operation{OperationID: "get-dead-letter", Method: http.MethodGet, Path: "/v1/dead-letters/{sequence}", Tags: tags, Summary: "Show what could not be delivered",
			Description: "One dead letter, with the fact under event."},
		action: domain.WebhooksRead, absent: true,
	}, a.getDeadLetter)
	serve(a, route{
		Operation: huma.Operation{OperationID: "replay-dead-letters", Method: http.MethodPost, Path: "/v1/dead-letters/replay", Tags: tags, Summary: "Deliver dead letters again",
			Description: "At most 1,000 in a call. They are delivered under the same ids, not in order with other facts of their keys, and stay in DLQ; GET /v1/dead-letters says what became of them. Repeating it changes nothing."},
		action: domain.WebhooksWrite, absent: true,
	}, a.replayDeadLetters)
}

func (a *API) hooks() (*webhooks.Registry, error) {
	if a.Webhooks == nil || a.Deliveries == nil {
		return nil, unavailable("WEBHOOKS_UNAVAILABLE", "This program sends to no webhooks: ask one that runs `keyledger serve`.", 30)
	}
	return a.Webhooks, nil
}

func webhookView(w *webhooks.Webhook, st delivery.State) Webhook {
	v := Webhook{
		ID: w.ID, URL: w.URL, Keyspace: w.Keyspace, Owner: w.Owner, Types: append([]string{}, w.Types...), Keys: append([]string{}, w.Keys...),
		Description: w.Description, Status: "active", DisabledReason: w.Disabled, DisabledAt: w.DisabledAt, CreatedAt: w.CreatedAt, CreatedBy: w.CreatedBy,
		SecretRotatedAt: w.RotatedAt, PreviousSecretUntil: w.GraceUntil,
		Delivery: WebhookDelivery{
			Position: max(st.Read.Feed, w.After), InFlight: len(st.Behind), Delivered: st.Delivered, DeadLetters: st.Dead - min(st.Replayed, st.Dead),
			FailingSince: st.FailingSince, LastSuccess: st.LastSuccess, LastFailure: st.LastFailure, LastError: st.LastError,
		},
	}
	switch {
	case w.Disabled != "":
		v.Status = "disabled"
	case st.FailingSince != 0:
		v.Status = "failing"
	}
	return v
}

// webhookNow is a webhook with how its deliveries are; where that cannot be known, without.
func (a *API) webhookNow(ctx context.Context, w *webhooks.Webhook) Webhook {
	st, _, err := a.Deliveries.State(ctx, "webhooks", w.ID)
	if err != nil {
		a.Log.WarnContext(ctx, "how deliveries are is not known", "webhook", w.ID, "error", err)
	}
	return webhookView(w, st)
}

func (a *API) opsDone(ctx context.Context, r webhooks.Result) opsChanged {
	if r.Changed {
		a.giveOpsReceipt(ctx, r.Sequence)
	}
	return opsChanged{a.Ring.Sequence(), "no-store"}
}

func secretOf(r webhooks.Result) *string {
	if r.Secret == "" {
		return nil
	}
	return &r.Secret
}

func (a *API) registerWebhook(ctx context.Context, in *webhookInput) (*webhookCreated, error) {
	hooks, err := a.hooks()
	if err != nil {
		return nil, err
	}
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	x := webhooks.Registration{URL: in.Body.URL, Keyspace: in.Body.Keyspace, Owner: in.Body.Owner, Types: in.Body.Types, Keys: in.Body.Keys,
		Description: in.Body.Description, After: in.Body.From}
	if err := a.within(ctx, &x.Keyspace, &x.Owner, nil, q.Authority.Role == domain.Operator); err != nil {
		return nil, err
	}
	wrong := details(hooks.Check(x))
	for i, id := range x.Keys {
		k := a.Ring.Key(id)
		if k == nil || !q.Authority.Reaches(k.Keyspace, k.Owner) || x.Keyspace != "" && k.Keyspace != x.Keyspace || x.Owner != "" && k.Owner != x.Owner {
			wrong = append(wrong, Detail{Path: "keys." + strconv.Itoa(i), Message: "is no key of this keyspace and owner", Fix: "the id of one, or none for all"})
		}
	}
	if len(wrong) > 0 {
		return nil, unprocessable(wrong...)
	}
	r, err := hooks.Register(ctx, q, x)
	if err != nil {
		return nil, err
	}
	return &webhookCreated{"/v1/webhooks/" + r.Webhook.ID, a.opsDone(ctx, r), WebhookSecret{webhookView(&r.Webhook, delivery.State{}), secretOf(r), r.Replayed}}, nil
}

func (a *API) listWebhooks(ctx context.Context, in *webhooksAsked) (*webhookList, error) {
	hooks, err := a.hooks()
	if err != nil {
		return nil, err
	}
	authority := callOf(ctx).authority
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, authority.Role == domain.Operator); err != nil {
		return nil, err
	}
	all, err := hooks.All(ctx)
	if err != nil {
		return nil, unread(err)
	}
	states, err := a.Deliveries.States(ctx, "webhooks")
	if err != nil {
		return nil, unread(err)
	}
	by := map[string]delivery.State{}
	for _, st := range states {
		by[st.Target] = st
	}
	out := &webhookList{Webhooks{[]Webhook{}}}
	for _, w := range all {
		if authority.Reaches(w.Keyspace, w.Owner) && (in.Keyspace == "" || in.Keyspace == w.Keyspace) && (in.Owner == "" || in.Owner == w.Owner) {
			out.Body.Webhooks = append(out.Body.Webhooks, webhookView(&w, by[w.ID]))
		}
	}
	return out, nil
}

// WebhookStatus is how the deliveries to a webhook are, for operators.
type WebhookStatus struct {
	Webhook      string      `json:"webhook" example:"whk_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Status       string      `json:"status" enum:"active,failing,disabled"`
	FeedPosition uint64      `json:"feed_position" doc:"All that it wants of FEED up to there is delivered, dead, or in flight."`
	OpsPosition  uint64      `json:"ops_position" doc:"The same of OPS, for alerts."`
	Lag          uint64      `json:"lag" doc:"Messages of FEED that have not been looked at for it."`
	InFlight     int         `json:"in_flight" doc:"Keys of which a fact is being sent or waits for its next attempt."`
	Delivered    uint64      `json:"delivered" doc:"Facts that it has taken."`
	Dead         uint64      `json:"dead" doc:"Facts that went to DLQ."`
	Replayed     uint64      `json:"replayed" doc:"Of those, facts that it took later."`
	FailingSince events.Time `json:"failing_since" doc:"Since when nothing has arrived, where that is so; else null."`
	LastError    string      `json:"last_error" doc:"Of the last attempt that failed."`
}

func (a *API) webhookStatus(ctx context.Context, head uint64) ([]WebhookStatus, error) {
	all, err := a.Webhooks.All(ctx)
	if err != nil {
		return nil, err
	}
	states, err := a.Deliveries.States(ctx, "webhooks")
	if err != nil {
		return nil, err
	}
	by := map[string]delivery.State{}
	for _, st := range states {
		by[st.Target] = st
	}
	list := []WebhookStatus{}
	for _, w := range all {
		st := by[w.ID]
		at := max(st.Read.Feed, w.After)
		list = append(list, WebhookStatus{w.ID, webhookView(&w, st).Status, at, max(st.Read.Ops, w.Sequence), max(head, at) - at, len(st.Behind),
			st.Delivered, st.Dead, st.Replayed, st.FailingSince, st.LastError})
	}
	return list, nil
}

// webhook is one that the caller may see.
func (a *API) webhook(ctx context.Context, id string) (webhooks.Webhook, error) {
	hooks, err := a.hooks()
	if err != nil {
		return webhooks.Webhook{}, err
	}
	return hooks.Get(ctx, callOf(ctx).authority, id)
}

func (a *API) getWebhook(ctx context.Context, in *WebhookPath) (*webhookOutput, error) {
	w, err := a.webhook(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &webhookOutput{a.webhookNow(ctx, &w)}, nil
}

func (a *API) removeWebhook(ctx context.Context, in *WebhookPath) (*webhookChanged, error) {
	hooks, err := a.hooks()
	if err != nil {
		return nil, err
	}
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	r, err := hooks.Remove(ctx, q, in.ID)
	if err != nil {
		return nil, err
	}
	return &webhookChanged{a.opsDone(ctx, r), WebhookChanged{webhookView(&r.Webhook, delivery.State{}), r.Replayed}}, nil
}

func (a *API) rotateWebhookSecret(ctx context.Context, in *rotateSecret) (*webhookSecret, error) {
	hooks, err := a.hooks()
	if err != nil {
		return nil, err
	}
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	grace := webhooks.GraceDefault
	if in.Body != nil && in.Body.Grace != "" {
		d, err := duration("grace", in.Body.Grace)
		if err != nil {
			return nil, err
		}
		grace = time.Duration(d)
	}
	r, err := hooks.Rotate(ctx, q, in.ID, grace)
	if err != nil {
		return nil, err
	}
	return &webhookSecret{a.opsDone(ctx, r), WebhookSecret{a.webhookNow(ctx, &r.Webhook), secretOf(r), r.Replayed}}, nil
}

func (a *API) enableWebhook(ctx context.Context, in *WebhookPath) (*webhookChanged, error) {
	hooks, err := a.hooks()
	if err != nil {
		return nil, err
	}
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	r, err := hooks.Enable(ctx, q, in.ID)
	if err != nil {
		return nil, err
	}
	return &webhookChanged{a.opsDone(ctx, r), WebhookChanged{a.webhookNow(ctx, &r.Webhook), r.Replayed}}, nil
}

func (a *API) testWebhook(ctx context.Context, in *WebhookPath) (*webhookTested, error) {
	w, err := a.webhook(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if a.TestWebhook == nil {
		return nil, unavailable("WEBHOOKS_UNAVAILABLE", "This program sends to no webhooks: ask one that runs `keyledger serve`.", 30)
	}
	at, err := a.TestWebhook(ctx, &w)
	if err != nil {
		a.Log.WarnContext(ctx, "a test is missing in the delivery log", "webhook", w.ID, "error", err)
	}
	return &webhookTested{WebhookTested{at.Outcome == delivery.Delivered, at}}, nil
}

func (a *API) listDeliveries(ctx context.Context, in *deliveriesAsked) (*deliveryList, error) {
	w, err := a.webhook(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	var before time.Time
	if in.Before != "" {
		if before, err = time.Parse(time.RFC3339, in.Before); err != nil {
			return nil, unprocessable(Detail{Path: "before", Message: "is no time", Fix: "RFC 3339, such as 2026-01-18T12:00:00Z"})
		}
	}
	list, err := a.Deliveries.Attempts(ctx, "webhooks", w.ID, before, in.Limit)
	if err != nil {
		return nil, unread(err)
	}
	return &deliveryList{Deliveries{append([]delivery.Attempt{}, list...)}}, nil
}

// mayReadLetters refuses the dead letters of a target that is not the caller's.
func (a *API) mayReadLetters(ctx context.Context, reactor, target string) error {
	if _, err := a.hooks(); err != nil {
		return err
	}
	if callOf(ctx).authority.Reach == nil {
		return nil
	}
	if reactor != "webhooks" || target == "" {
		return problem(http.StatusForbidden, "FORBIDDEN", "This credential may see the dead letters of its own webhooks: name one in target.")
	}
	_, err := a.webhook(ctx, target)
	return err
}

func checkLetters(reactor, target string) error {
	for path, s := range map[string]string{"reactor": reactor, "target": target} {
		if s != "" && !delivery.IsName(s) {
			return unprocessable(Detail{Path: path, Message: "is no name", Fix: "webhooks or sinks, and the id of a webhook or the name of a sink"})
		}
	}
	return nil
}

func (a *API) listDeadLetters(ctx context.Context, in *lettersAsked) (*letterList, error) {
	if err := a.mayReadLetters(ctx, in.Reactor, in.Target); err != nil {
		return nil, err
	}
	if err := checkLetters(in.Reactor, in.Target); err != nil {
		return nil, err
	}
	list, err := a.Deliveries.DeadLetters(ctx, in.Reactor, in.Target, in.State, in.After, in.Limit)
	if err != nil {
		return nil, unread(err)
	}
	out := &letterList{DeadLetters{list, nil}}
	if len(list) == in.Limit {
		out.Body.Next = &list[len(list)-1].Sequence
	}
	return out, nil
}

func letterNotFound() error {
	return problem(http.StatusNotFound, "DEAD_LETTER_NOT_FOUND", "There is no dead letter with this sequence.")
}

// letter is a dead letter that the caller may see.
func (a *API) letter(ctx context.Context, sequence uint64) (delivery.DeadLetter, error) {
	if _, err := a.hooks(); err != nil {
		return delivery.DeadLetter{}, err
	}
	d, err := a.Deliveries.DeadLetter(ctx, sequence)
	if errors.Is(err, ledger.ErrNotFound) {
		return d, letterNotFound()
	}
	if err != nil {
		return d, unread(err)
	}
	if callOf(ctx).authority.Reach != nil {
		if d.Reactor != "webhooks" {
			return d, letterNotFound()
		}
		if _, err := a.webhook(ctx, d.Target); err != nil {
			return d, letterNotFound()
		}
	}
	return d, nil
}

func (a *API) getDeadLetter(ctx context.Context, in *letterPath) (*letterOutput, error) {
	d, err := a.letter(ctx, in.Sequence)
	if err != nil {
		return nil, err
	}
	return &letterOutput{d}, nil
}

// mostReplayed is how many dead letters one call replays.
const mostReplayed = 1000

func (a *API) replayDeadLetters(ctx context.Context, in *replayInput) (*replayOutput, error) {
	reactor, c := cmp.Or(in.Body.Reactor, "webhooks"), callOf(ctx)
	if err := a.mayReadLetters(ctx, reactor, in.Body.Target); err != nil && (in.Body.Target != "" || len(in.Body.Sequences) == 0) {
		return nil, err
	}
	if err := checkLetters(reactor, in.Body.Target); err != nil {
		return nil, err
	}
	if in.Body.Target == "" && len(in.Body.Sequences) == 0 {
		return nil, unprocessable(Detail{Path: "target", Message: "is missing, and so are sequences", Fix: "a webhook or sink whose dead letters are to be delivered again, or the sequences of some"})
	}
	sequences := in.Body.Sequences
	if len(sequences) == 0 {
		list, err := a.Deliveries.DeadLetters(ctx, reactor, in.Body.Target, delivery.Dead, 0, mostReplayed)
		if err != nil {
			return nil, unread(err)
		}
		for _, d := range list {
			sequences = append(sequences, d.Sequence)
		}
	}
	out := &replayOutput{Replay{[]uint64{}, []uint64{}}}
	for i, sequence := range sequences {
		d, err := a.letter(ctx, sequence)
		if err == nil && (d.Reactor != reactor || in.Body.Target != "" && d.Target != in.Body.Target) {
			err = letterNotFound()
		}
		if p, ok := errors.AsType[*Problem](err); ok && p.Status == http.StatusNotFound && len(in.Body.Sequences) > 1 {
			return nil, unprocessable(Detail{Path: "sequences." + strconv.Itoa(i), Message: fmt.Sprintf("%d is no dead letter of this reactor and target", sequence), Fix: "a sequence as it was listed"})
		}
		if err != nil {
			return nil, err
		}
		err = a.Deliveries.Replay(ctx, sequence, c.authority.Actor.ID)
		switch {
		case errors.Is(err, delivery.ErrNotDead):
			out.Body.Skipped = append(out.Body.Skipped, sequence)
		case err != nil:
			return nil, unread(err)
		default:
			out.Body.Replaying = append(out.Body.Replaying, sequence)
		}
	}
	return out, nil
}
