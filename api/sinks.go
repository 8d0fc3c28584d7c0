package api

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/reactors/delivery"
)

// SinkReactor is what deliveries to sinks are kept under.
const SinkReactor = "sinks"

// Sinks are the systems that serve's settings name, as the API shows them.
type Sinks struct {
	Store      *delivery.Store
	Configured []SinkName
	Err        func() error // why nothing is delivered by this process at present; nil: it delivers, or stands by
}

// SinkName is a sink of the settings.
type SinkName struct{ Name, Kind string }

// SinkStatus is how the deliveries to a sink are doing.
type SinkStatus struct {
	Name         string      `json:"name" example:"billing"`
	Kind         string      `json:"kind" doc:"Empty: it is in this process's settings no more." example:"redis_stream"`
	FeedPosition uint64      `json:"feed_position" doc:"All that it wants of FEED up to there is delivered, in DLQ, or behind."`
	OpsPosition  uint64      `json:"ops_position" doc:"The same of OPS, for alerts."`
	Lag          uint64      `json:"lag" doc:"Messages of FEED that have not been looked at for it."`
	Behind       int         `json:"behind" doc:"Keys whose next fact waits to be delivered."`
	Delivered    uint64      `json:"delivered" doc:"Facts that it has taken."`
	Dead         uint64      `json:"dead" doc:"Facts that went to DLQ: /v1/dead-letters?reactor=sinks."`
	Replayed     uint64      `json:"replayed" doc:"Of those, facts that it took later."`
	FailingSince events.Time `json:"failing_since" doc:"Since when nothing has arrived, where that is so; else null."`
	LastSuccess  events.Time `json:"last_success"`
	LastFailure  events.Time `json:"last_failure"`
	LastError    string      `json:"last_error" doc:"Of the last attempt that failed."`
	Error        string      `json:"error,omitempty" doc:"Why nothing is delivered to any sink by this process at present."`
}

type sinkListOutput struct {
	Body struct {
		Sinks []SinkStatus `json:"sinks" nullable:"false"`
	}
}

func (a *API) sinkRoutes() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-sinks", Method: http.MethodGet, Path: "/v1/sinks", Tags: []string{"Operation"},
			Summary: "How the sinks are doing", Description: "The systems that the settings of serve name, and how far they are. What they did not take for a day is under /v1/dead-letters?reactor=sinks.",
		},
		action: domain.Operate,
	}, a.listSinks)
}

// sinkStatus is of the sinks in the settings, and of those that were there once.
func (a *API) sinkStatus(ctx context.Context, head uint64) ([]SinkStatus, error) {
	states, err := a.Sinks.Store.States(ctx, SinkReactor)
	if err != nil {
		return nil, err
	}
	list := []SinkStatus{}
	for _, s := range states {
		list = append(list, SinkStatus{
			Name: s.Target, FeedPosition: s.Read.Feed, OpsPosition: s.Read.Ops, Lag: max(head, s.Read.Feed) - s.Read.Feed, Behind: len(s.Behind),
			Delivered: s.Delivered, Dead: s.Dead, Replayed: s.Replayed,
			FailingSince: s.FailingSince, LastSuccess: s.LastSuccess, LastFailure: s.LastFailure, LastError: s.LastError,
		})
	}
	for _, c := range a.Sinks.Configured {
		i := slices.IndexFunc(list, func(s SinkStatus) bool { return s.Name == c.Name })
		if i < 0 {
			i = len(list)
			list = append(list, SinkStatus{Name: c.Name})
		}
		list[i].Kind = c.Kind
		if err := a.Sinks.Err(); err != nil {
			list[i].Error = err.Error()
		}
	}
	return list, nil
}

func (a *API) listSinks(ctx context.Context, _ *struct{}) (*sinkListOutput, error) {
	if a.Sinks == nil {
		return nil, unavailable("SINKS_UNAVAILABLE", "This program delivers nothing: ask one that runs `keyledger serve`.", 30)
	}
	head, err := a.Ledger.Head(ctx, events.Feed)
	if err != nil {
		return nil, unread(err)
	}
	list, err := a.sinkStatus(ctx, head)
	if err != nil {
		return nil, unread(err)
	}
	out := &sinkListOutput{}
	out.Body.Sinks = list
	return out, nil
}
