package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Me is whoever asks.
type Me struct {
	Actor   events.Actor    `json:"actor" doc:"What the audit log calls them."`
	Role    string          `json:"role" doc:"Of a root key or a person; empty: a key of a keyspace." enum:"operator,verifier,auditor,manager,"`
	For     *events.Reach   `json:"for" doc:"The one keyspace and owner that they may see; null: all."`
	Name    string          `json:"name" doc:"Of the key; empty for a person."`
	Actions []domain.Action `json:"actions" nullable:"false" doc:"What they may do."`
}

func (a *API) me() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "me", Method: http.MethodGet, Path: "/v1/me", Tags: []string{"Operation"},
			Summary: "Who asks", Description: "What the credential of this request is, and what it may do.",
		},
		known: true,
	}, a.getMe)
}

type meOutput struct{ Body Me }

func (a *API) getMe(ctx context.Context, _ *struct{}) (*meOutput, error) {
	who := callOf(ctx).authority
	me := Me{Actor: who.Actor, Role: who.Role, For: who.Reach, Actions: []domain.Action{}}
	for _, action := range domain.Actions {
		if who.May(action) {
			me.Actions = append(me.Actions, action)
		}
	}
	if key := a.Ring.Key(who.Actor.ID); key != nil {
		me.Name = key.Name
	}
	return &meOutput{Body: me}, nil
}
