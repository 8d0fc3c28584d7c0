package api

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

// RootKeyRequest asks for a key for keyledger itself.
type RootKeyRequest struct {
	Name     string `json:"name" example:"the console"`
	Role     string `json:"role" enum:"operator,verifier,auditor,manager" doc:"operator: everything. verifier: verify, uses, limits and forward-auth only. auditor: reading and exporting only. manager: the keys of one keyspace and owner." example:"verifier"`
	Keyspace string `json:"keyspace,omitempty" doc:"Of a manager."`
	Owner    string `json:"owner,omitempty" doc:"Of a manager."`
}

type rootKeyInput struct{ Body RootKeyRequest }

func (a *API) rootKeys() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "create-root-key", Method: http.MethodPost, Path: "/v1/root-keys", Tags: []string{"Root keys"},
			Summary:     "Create a root key",
			Description: "Makes a key for keyledger itself. Root keys are read, rotated and revoked like other keys, by operators; they are listed in the keyspace keyledger. The last operator key cannot be revoked.",
		},
		action: domain.RootKeys, command: true, status: http.StatusCreated,
	}, a.createRootKey)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-root-keys", Method: http.MethodGet, Path: "/v1/root-keys", Tags: []string{"Root keys"},
			Summary:     "List the root keys",
			Description: "All root keys that are not deleted, newest first, from this node's memory: it needs no read models.",
		},
		action: domain.RootKeys, read: true,
	}, a.listRootKeys)
}

func (a *API) listRootKeys(ctx context.Context, _ *struct{}) (*keysOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	out := &keysOutput{Keys{Keys: []Key{}}}
	for k := range a.Ring.Keys(events.RootKeyspace, "") {
		if !k.Deleted() {
			out.Body.Keys = append(out.Body.Keys, Key(queries.ViewOf(k, a.Now())))
		}
	}
	slices.Reverse(out.Body.Keys)
	return out, nil
}

func (a *API) createRootKey(ctx context.Context, in *rootKeyInput) (*keyCreated, error) {
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	cmd := domain.CreateKey{Name: in.Body.Name, Role: in.Body.Role}
	if in.Body.Keyspace != "" || in.Body.Owner != "" {
		cmd.For = &events.Reach{Keyspace: in.Body.Keyspace, Owner: in.Body.Owner}
	}
	r, err := a.Commands.CreateRootKey(ctx, q, cmd)
	if err != nil {
		return nil, err
	}
	return a.createdAnswer(ctx, r), nil
}
