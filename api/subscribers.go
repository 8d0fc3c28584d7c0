package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/commands/subscribers"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// SubscriberRequest asks that a service outside may follow FEED over NATS.
type SubscriberRequest struct {
	Name      string `json:"name" doc:"1 to 32 of a-z, 0-9 and -." example:"billing"`
	Keyspace  string `json:"keyspace,omitempty" doc:"The one whose facts it sees; empty: all of FEED." example:"parcelbird"`
	Owner     string `json:"owner,omitempty" doc:"The one whose facts it sees; empty: all of the keyspace." example:"org_1"`
	PublicKey string `json:"public_key" doc:"Of the NATS user, an nkey, whose seed never leaves the machine that made it." example:"UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"`
	From      string `json:"from,omitempty" enum:"beginning,now" default:"beginning" doc:"Where its consumer begins in FEED."`
}

// SubscriberAnswer is what came of it.
type SubscriberAnswer struct {
	Subscriber subscribers.Subscriber `json:"subscriber"`
	Config     string                 `json:"config" doc:"Its entry of accounts in the configuration of the NATS server."`
	Applied    bool                   `json:"applied" doc:"true: the server has it already, or has it no more. false: put it there, or take it out, and reload the server twice."`
}

// SubscriberList are the services outside that follow FEED.
type SubscriberList struct {
	Subscribers []subscribers.Subscriber `json:"subscribers" nullable:"false" doc:"Oldest first."`
	Config      string                   `json:"config" doc:"subscribers.conf, whole, for the NATS server."`
}

type (
	subscriberInput struct{ Body SubscriberRequest }
	subscriberNamed struct {
		Name string `path:"name" doc:"Of the subscriber." example:"billing"`
	}
	subscriberOutput struct{ Body SubscriberAnswer }
	subscriberList   struct{ Body SubscriberList }
)

func (a *API) subscribers() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "add-subscriber", Method: http.MethodPost, Path: "/v1/subscribers", Tags: []string{"Feeds"},
			Summary:     "Let a service follow FEED over NATS",
			Description: "Makes a durable consumer on FEED that holds one owner's facts, one keyspace's, or all, and answers the entry of the NATS server's configuration that lets the holder of the key in, to this and to the same subjects of live, and to nothing else. Recorded as subscriber.added on OPS. `keyledger subscribers add` makes the key as well.",
		},
		action: domain.Operate, status: http.StatusCreated,
	}, a.addSubscriber)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-subscribers", Method: http.MethodGet, Path: "/v1/subscribers", Tags: []string{"Feeds"},
			Summary: "List who follows FEED over NATS", Description: "Read from OPS.",
		},
		action: domain.Operate,
	}, a.listSubscribers)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "remove-subscriber", Method: http.MethodDelete, Path: "/v1/subscribers/{name}", Tags: []string{"Feeds"},
			Summary:     "End a subscriber",
			Description: "Removes its consumer, and answers the entry to take out of the NATS server's configuration: until then it still hears live. Recorded as subscriber.removed on OPS.",
		},
		action: domain.Operate, absent: true,
	}, a.removeSubscriber)
}

func (a *API) subscribed() (*subscribers.Subscribers, error) {
	if a.Subscribers == nil {
		return nil, unavailable("FEED_UNAVAILABLE", "This program does not write FEED: ask one that runs `keyledger serve`.", 30)
	}
	return a.Subscribers, nil
}

func (a *API) addSubscriber(ctx context.Context, in *subscriberInput) (*subscriberOutput, error) {
	s, err := a.subscribed()
	if err != nil {
		return nil, err
	}
	if err := a.within(ctx, &in.Body.Keyspace, &in.Body.Owner, nil, true); err != nil {
		return nil, err
	}
	after := uint64(0)
	if in.Body.From == "now" {
		if after, err = a.Ledger.Head(ctx, events.Feed); err != nil {
			return nil, unread(err)
		}
	}
	c := callOf(ctx)
	x, applied, err := s.Add(ctx, subscribers.By{Actor: c.authority.Actor, Via: c.via(), RequestID: c.requestID}, in.Body.Name, in.Body.Keyspace, in.Body.Owner, in.Body.PublicKey, after)
	if err != nil {
		return nil, err
	}
	return &subscriberOutput{SubscriberAnswer{x, x.Config(), applied}}, nil
}

func (a *API) listSubscribers(ctx context.Context, _ *struct{}) (*subscriberList, error) {
	s, err := a.subscribed()
	if err != nil {
		return nil, err
	}
	list, err := s.List(ctx)
	if err != nil {
		return nil, unread(err)
	}
	return &subscriberList{SubscriberList{append([]subscribers.Subscriber{}, list...), subscribers.Config(list)}}, nil
}

func (a *API) removeSubscriber(ctx context.Context, in *subscriberNamed) (*subscriberOutput, error) {
	s, err := a.subscribed()
	if err != nil {
		return nil, err
	}
	c := callOf(ctx)
	x, applied, err := s.Remove(ctx, subscribers.By{Actor: c.authority.Actor, Via: c.via(), RequestID: c.requestID}, in.Name)
	if err != nil {
		return nil, err
	}
	return &subscriberOutput{SubscriberAnswer{x, x.Config(), applied}}, nil
}
