package api

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Owner is the customer's organization or project that keys belong to.
type Owner struct {
	ID         string      `json:"id" example:"org_1"`
	Owner      string      `json:"owner" doc:"The same as id." example:"org_1"`
	Keyspace   string      `json:"keyspace" example:"parcelbird"`
	Name       string      `json:"name" example:"Example Ltd"`
	Plan       string      `json:"plan" doc:"Empty where the keyspace has no plans." example:"basic"`
	ActiveKeys int         `json:"active_keys" doc:"Keys that are neither revoked, deleted nor expired." example:"1"`
	MaxKeys    *int        `json:"max_keys" doc:"The plan's cap on active keys; null: none." example:"2"`
	CreatedAt  events.Time `json:"created_at"`
	Version    uint32      `json:"version" doc:"Counts the facts of this owner." example:"1"`
}

func (a *API) ownerView(ks *domain.Keyspace, o *domain.Owner) Owner {
	v := Owner{
		ID: o.ID, Owner: o.ID, Keyspace: o.Keyspace, Name: o.Name, Plan: o.Plan,
		ActiveKeys: a.Ring.ActiveKeys(o.Keyspace, o.ID, a.Now()), CreatedAt: o.CreatedAt, Version: o.Version,
	}
	if _, plan, ok := ks.PlanInForce(nil, o); ok {
		v.MaxKeys = plan.MaxKeys
	}
	return v
}

// OwnerPath names an owner of a keyspace.
type OwnerPath struct {
	KeyspacePath
	Owner string `path:"owner" doc:"The owner's id." example:"org_1"`
}

func (a *API) owners() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "set-owner", Method: http.MethodPut, Path: "/v1/keyspaces/{ks}/owners/{owner}", Tags: []string{"Owners"},
			Summary:     "Register or change an owner",
			Description: "Registers an owner, renames it or puts it on another plan. What is left out stays as it is; a new owner without a plan gets the keyspace's default.",
		},
		action: domain.OwnersWrite, command: true, bodyOptional: true,
	}, a.setOwner)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-owners", Method: http.MethodGet, Path: "/v1/keyspaces/{ks}/owners", Tags: []string{"Owners"},
			Summary: "List the owners of a keyspace", Description: "Owners by id.",
		},
		action: domain.OwnersRead, read: true,
	}, a.listOwners)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "get-owner", Method: http.MethodGet, Path: "/v1/keyspaces/{ks}/owners/{owner}", Tags: []string{"Owners"},
			Summary: "Show an owner", Description: "An owner with its active keys and its cap, from this node's memory.",
		},
		action: domain.OwnersRead, read: true,
	}, a.getOwner)
}

// OwnerRequest registers or changes an owner.
type OwnerRequest struct {
	Name *string `json:"name,omitempty" doc:"What people call it." example:"Example Ltd"`
	Plan *string `json:"plan,omitempty" doc:"One of the keyspace's plans." example:"basic"`
}

type ownerInput struct {
	OwnerPath
	Body *OwnerRequest
}

type ownerChanged struct {
	LedgerSequence uint64 `header:"Ledger-Sequence" doc:"What a reader must have reached to see this."`
	Body           Owner
}

func (a *API) setOwner(ctx context.Context, in *ownerInput) (*ownerChanged, error) {
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	cmd := domain.SetOwner{}
	if in.Body != nil {
		cmd = domain.SetOwner{Name: in.Body.Name, Plan: in.Body.Plan}
	}
	res, err := a.Commands.SetOwner(ctx, q, in.Keyspace, in.Owner, cmd)
	if err != nil {
		return nil, err
	}
	return &ownerChanged{res.Sequence, a.ownerView(a.Ring.Keyspace(in.Keyspace), a.Ring.Owner(in.Keyspace, in.Owner))}, nil
}

type ownerListInput struct {
	KeyspacePath
	Q      string `query:"q" doc:"In the name or the id, whatever the case of letters." example:"acme"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many in a page."`
	Cursor string `query:"cursor" doc:"The next_cursor of the page before."`
}

type ownerList struct {
	Body struct {
		Owners     []Owner `json:"owners" nullable:"false"`
		NextCursor *string `json:"next_cursor" doc:"Where the next page begins; null: this is the last."`
	} `nameHint:"OwnerList"`
}

// soughtBy says whether a text that people search by is in an owner's name or id.
func soughtBy(o *domain.Owner, q string) bool {
	if q == "" {
		return true
	}
	q = strings.ToLower(q)
	return strings.Contains(strings.ToLower(o.ID), q) || strings.Contains(strings.ToLower(o.Name), q)
}

func (a *API) listOwners(ctx context.Context, in *ownerListInput) (*ownerList, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	ks, err := a.keyspace(ctx, in.Keyspace)
	if err != nil {
		return nil, err
	}
	after, err := readCursor("owners", in.Cursor)
	if err != nil {
		return nil, err
	}
	owners := slices.DeleteFunc(a.Ring.Owners(in.Keyspace), func(o *domain.Owner) bool {
		return o.ID <= after || !soughtBy(o, in.Q) || !callOf(ctx).authority.Reaches(o.Keyspace, o.ID)
	})
	slices.SortFunc(owners, func(a, b *domain.Owner) int { return strings.Compare(a.ID, b.ID) })
	out := &ownerList{}
	if len(owners) > in.Limit {
		owners = owners[:in.Limit]
		out.Body.NextCursor = new(writeCursor("owners", owners[in.Limit-1].ID))
	}
	out.Body.Owners = make([]Owner, len(owners))
	for i, o := range owners {
		out.Body.Owners[i] = a.ownerView(ks, o)
	}
	return out, nil
}

type ownerOutput struct {
	LedgerSequence string `header:"Ledger-Sequence" doc:"Only with as_of: the place in LEDGER that the moment is."`
	Body           Owner
}

type getOwnerInput struct {
	OwnerPath
	AsOf string `query:"as_of" doc:"A time, a sequence of LEDGER, or now: the owner as it was then." example:"2026-01-18T12:00:00.000Z"`
}

func (a *API) getOwner(ctx context.Context, in *getOwnerInput) (*ownerOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	ks, err := a.keyspace(ctx, in.Keyspace)
	if err != nil {
		return nil, err
	}
	o := a.Ring.Owner(in.Keyspace, in.Owner)
	if o == nil || !callOf(ctx).authority.Reaches(in.Keyspace, in.Owner) {
		return nil, domain.OwnerNotFound()
	}
	if in.AsOf != "" {
		return a.ownerAsOf(ctx, in)
	}
	return &ownerOutput{Body: a.ownerView(ks, o)}, nil
}
