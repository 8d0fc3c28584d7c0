package api

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/queries"
)

func (a *API) auditCould() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "audit-who-could", Method: http.MethodGet, Path: "/v1/audit/who-could", Tags: []string{"Audit"},
			Summary: "Who could do something at a moment",
			Description: "The keys that could have made a request at a moment, newest first, and why; those that could not, with the first reason. " +
				"Every key is judged as verifiers judge, with the keys, owners and document of that moment. The request is named by method and path, or by a scope; what of it is not told may be anything, and is a condition then. " +
				"What had been counted against limits is not known: they are conditions, too. A page reads as many keys as it takes to fill it, so that a rare answer reads all of them, as count does: 100,000 keys take about half a second.",
		},
		action: domain.AuditRead, read: true, absent: true,
	}, a.whoCould)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "audit-moments", Method: http.MethodGet, Path: "/v1/audit/moments", Tags: []string{"Audit"},
			Summary:     "Places in LEDGER around a moment",
			Description: "The sequence of a moment, the facts next to it, and how many facts there are when: what to ask for with as_of. Of what facts say nothing is told, so that it is not recorded as reading. Facts about root keys are left out.",
		},
		action: domain.AuditRead, read: true, absent: true,
	}, a.moments)
}

type momentsInput struct {
	At       string    `query:"at" doc:"A time, a sequence of LEDGER, the id of an event, or now; absent: now." example:"2026-01-18T12:00:00.000Z"`
	Keyspace string    `query:"keyspace" doc:"Facts of this keyspace."`
	Owner    string    `query:"owner" doc:"Facts about this owner and its keys."`
	From     time.Time `query:"from" doc:"Of the timeline; absent: the first fact."`
	To       time.Time `query:"to" doc:"Of the timeline; absent: now."`
	Buckets  int       `query:"buckets" minimum:"0" maximum:"500" doc:"Of the timeline, of the same length each; 0: no timeline."`
}

type momentsOutput struct{ Body queries.Moments }

func (a *API) moments(ctx context.Context, in *momentsInput) (*momentsOutput, error) {
	if in.At == "" {
		in.At = "now"
	}
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, false); err != nil {
		return nil, err
	}
	if in.To.IsZero() {
		in.To = a.Now()
	}
	if !in.From.IsZero() && !in.From.Before(in.To) {
		return nil, unprocessable(Detail{Path: "to", Message: "is not after from", Fix: "send a later one"})
	}
	out := &momentsOutput{}
	err := a.readModel(ctx, projections.LedgerCopy{}.Name(), func(ctx context.Context, _ *queries.Queries) error {
		return a.inPast(ctx, func(ctx context.Context, p *queries.Past) error {
			at, err := p.At(ctx, "at", in.At, a.Now())
			if err != nil {
				return err
			}
			head, err := p.Now(ctx, a.Now()) // what comes later is looked for, too
			if err != nil {
				return err
			}
			if err := a.copied(ctx, head); err != nil {
				return err
			}
			found, err := p.Moments(ctx, queries.MomentsFilter{Keyspace: in.Keyspace, Owner: in.Owner, From: in.From, To: in.To, Buckets: in.Buckets}, at)
			if err == nil {
				out.Body = *found
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

type couldInput struct {
	Keyspace    string   `query:"keyspace" doc:"Of this keyspace. Known by itself where key is named, and to a manager." example:"parcelbird"`
	Owner       string   `query:"owner" doc:"Of this owner."`
	Key         string   `query:"key" doc:"Of this key alone, a deleted one, too."`
	AsOf        string   `query:"as_of" doc:"A time, a sequence of LEDGER, or now; absent: now. Further pages are of the same moment." example:"2026-01-18T12:00:00.000Z"`
	Scope       []string `query:"scope" doc:"Scopes that the request needs, each of them, as a document of that moment has them; several with commas." example:"parcels:read"`
	Method      string   `query:"method" doc:"Of the request; with path." example:"GET"`
	Path        string   `query:"path" doc:"Of the request; with method. The document's routes say which scopes it needs." example:"/v1/parcels/4711"`
	Resource    string   `query:"resource" doc:"That the request is about."`
	Environment string   `query:"environment" doc:"That is admitted."`
	Origin      string   `query:"origin" doc:"That the request comes from, as browsers send it." example:"https://app.example.com"`
	IP          string   `query:"ip" doc:"Address that the request comes from." example:"203.0.113.7"`
	Could       string   `query:"could" enum:"yes,no,any" default:"yes" doc:"yes: the keys that could; no: the others; any: both."`
	Count       bool     `query:"count" doc:"true: count all of them, which reads all."`
	Limit       int      `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many in a page."`
	Cursor      string   `query:"cursor" doc:"The next_cursor of the page before, with the same filters."`
}

// WhoCould is a page of the keys that could, or could not, make a request.
type WhoCould struct {
	At              queries.Moment      `json:"at" doc:"Keys, owners and document are those of this moment."`
	Keyspace        string              `json:"keyspace"`
	DocumentVersion int                 `json:"document_version"`
	Needs           []string            `json:"needs" nullable:"false" doc:"Scopes that the request needs: any one of those of its route, each of those that were named. Empty: none."`
	Public          bool                `json:"public" doc:"true: the request needs no key at all."`
	Keys            []queries.Possible  `json:"keys" nullable:"false"`
	Count           *queries.CouldCount `json:"count,omitempty" doc:"Where it was asked for: of all keys, whatever the page holds."`
	NextCursor      *string             `json:"next_cursor" doc:"Where the next page begins; null: this is the last."`
}

type couldOutput struct {
	LedgerSequence string `header:"Ledger-Sequence" doc:"The sequence of the moment."`
	Body           WhoCould
}

func (a *API) whoCould(ctx context.Context, in *couldInput) (*couldOutput, error) {
	if in.Keyspace == "" && in.Key == "" && callOf(ctx).authority.Reach == nil {
		return nil, unprocessable(Detail{Path: "keyspace", Message: "is missing", Fix: "send the id of a keyspace"})
	}
	if in.AsOf == "" {
		in.AsOf = "now"
	}
	if err := a.within(ctx, &in.Keyspace, &in.Owner, &in.Key, false); err != nil {
		return nil, err
	}
	req, err := in.request()
	if err != nil {
		return nil, err
	}
	f := queries.CouldFilter{Keyspace: in.Keyspace, Owner: in.Owner, Key: in.Key, Request: *req, Could: in.Could, Count: in.Count, AsOf: in.AsOf, Limit: in.Limit, Cursor: in.Cursor}
	if f.Could == "any" || f.Key != "" {
		f.Could = ""
	}
	out := &couldOutput{Body: WhoCould{Keyspace: in.Keyspace, Needs: []string{}}}
	err = a.readModel(ctx, projections.LedgerCopy{}.Name(), func(ctx context.Context, _ *queries.Queries) error {
		return a.inPast(ctx, func(ctx context.Context, p *queries.Past) error {
			at, err := p.AtOfCould(ctx, f, a.Now())
			if err != nil {
				return err
			}
			ks, err := p.Keyspace(ctx, in.Keyspace, at)
			if err != nil {
				return err
			}
			if ks == nil {
				return notYet("KEYSPACE_NOT_FOUND", "keyspace", at)
			}
			if err := needed(ks, req, &out.Body); err != nil {
				return err
			}
			if err := a.copied(ctx, at); err != nil {
				return err
			}
			page, err := p.WhoCould(ctx, f, ks, at)
			if err == nil && f.Key != "" && len(page.Keys) == 0 {
				err = notYet("KEY_NOT_FOUND", "key", at)
			}
			out.LedgerSequence, out.Body.At, out.Body.DocumentVersion = strconv.FormatUint(at.Sequence, 10), at, ks.DocumentVersion
			out.Body.Keys, out.Body.Count, out.Body.NextCursor = page.Keys, page.Count, more(page.Next)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	asked := map[string]string{"as_of": in.AsOf, "keyspace": in.Keyspace, "owner": in.Owner, "key": in.Key, "method": req.Method, "scopes": strings.Join(out.Body.Needs, ",")}
	// What the log does not hold anyway is not repeated in it: see reading.
	for name, given := range map[string]bool{"path": in.Path != "", "resource": in.Resource != "", "origin": in.Origin != "", "ip": in.IP != ""} {
		if given {
			asked[name] = "…"
		}
	}
	for name, value := range asked {
		if value == "" {
			delete(asked, name)
		}
	}
	return out, a.read(ctx, "who-could", asked, len(out.Body.Keys))
}

// request is the one that is asked about.
func (in *couldInput) request() (*domain.Request, error) {
	req := &domain.Request{Keyspace: in.Keyspace, Method: in.Method, Path: in.Path, Scopes: in.Scope, IP: in.IP}
	var wrong []Detail
	switch {
	case len(in.Scope) == 0 && in.Method == "" && in.Path == "":
		wrong = append(wrong, Detail{Path: "path", Message: "is missing, and so is scope", Fix: "send method and path of the request, or the scope that it needs"})
	case in.Path != "" && !strings.HasPrefix(in.Path, "/"):
		wrong = append(wrong, Detail{Path: "path", Message: "is no path", Fix: "as on the request line: /v1/…"})
	case in.Path == "" && in.Method != "":
		wrong = append(wrong, Detail{Path: "path", Message: "is missing", Fix: "send the path with the method"})
	case in.Path != "" && in.Method == "":
		wrong = append(wrong, Detail{Path: "method", Message: "is missing", Fix: "send the method with the path"})
	}
	if in.Method != "" && !methods[in.Method] {
		wrong = append(wrong, Detail{Path: "method", Message: "is no method", Fix: "one of " + strings.Join(slices.Sorted(maps.Keys(methods)), ", ")})
	}
	if len(wrong) > 0 {
		return nil, unprocessable(wrong...)
	}
	if in.Resource != "" {
		req.Resource = &in.Resource
	}
	if in.Origin != "" {
		req.Origin = &in.Origin
	}
	if in.Environment != "" {
		req.Environments = []string{in.Environment}
	}
	return req, nil
}

// needed says which scopes the request needs, and refuses those that the document
// does not have: nobody could have had them, which is a mistake more often than an
// answer.
func needed(ks *domain.Keyspace, req *domain.Request, out *WhoCould) error {
	if unknown := ks.UnknownScopes(req.Scopes); len(unknown) > 0 {
		fix := "the document of that moment has no scopes: ask by method and path"
		if len(ks.Scopes) > 0 {
			fix = "one of " + strings.Join(slices.Sorted(maps.Keys(ks.Scopes)), ", ")
		}
		return unprocessable(Detail{Path: "scope", Message: "is no scope of the keyspace at that moment", Fix: fix})
	}
	out.Needs = append(out.Needs, req.Scopes...)
	if req.Path != "" {
		for _, s := range ks.ScopesFor(req.Method, req.Path) {
			if !slices.Contains(out.Needs, s) {
				out.Needs = append(out.Needs, s)
			}
		}
		out.Public = ks.PublicRoute(req.Method, req.Path) != nil
	}
	return nil
}
