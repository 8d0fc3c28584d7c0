package api

import (
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/queries"
)

// KeyCounts are the keys of one keyspace by status.
type KeyCounts struct {
	Keyspace    string `json:"keyspace" example:"parcelbird"`
	Owners      int    `json:"owners" doc:"That the caller may see and that match."`
	Active      int    `json:"active" doc:"Those among them with a limit that is used up on this node included."`
	RateLimited int    `json:"rate_limited" doc:"Of the active ones."`
	Expired     int    `json:"expired"`
	Revoked     int    `json:"revoked" doc:"Without the deleted ones."`
}

// KeyCountList are the keys of all keyspaces.
type KeyCountList struct {
	Counts []KeyCounts `json:"counts" nullable:"false" doc:"By keyspace; one without keys is there with zeros."`
}

// AlertCountList are alerts that are raised, counted.
type AlertCountList struct {
	Raised []queries.AlertCount `json:"raised" nullable:"false" doc:"By keyspace and condition; what is not there is zero."`
}

// LatestFacts are the newest facts.
type LatestFacts struct {
	Facts []queries.Latest `json:"facts" nullable:"false" doc:"Newest first, without their data."`
}

type (
	latestInput struct {
		Keyspace string `query:"keyspace" doc:"Of this keyspace." example:"parcelbird"`
		Owner    string `query:"owner" doc:"Of this owner."`
		Limit    int    `query:"limit" minimum:"1" maximum:"100" default:"10" doc:"At most this many."`
	}
	latestOutput struct{ Body LatestFacts }

	countsInput struct {
		Keyspace string `query:"keyspace" doc:"Of this keyspace." example:"parcelbird"`
		Owner    string `query:"owner" doc:"Of this owner."`
	}
	keyCountsOutput   struct{ Body KeyCountList }
	alertCountsOutput struct{ Body AlertCountList }
)

func (a *API) counts() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "count-keys", Method: http.MethodGet, Path: "/v1/analytics/keys", Tags: []string{"Usage"},
			Summary: "How many keys there are, by status", Description: "Of every keyspace that the credential reaches, from this node's memory: with PostgreSQL away as well. Root keys and deleted keys are not among them.",
		},
		action: domain.KeysRead, read: true, absent: true,
	}, a.countKeys)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "latest-facts", Method: http.MethodGet, Path: "/v1/feeds/latest", Tags: []string{"Feeds"},
			Summary: "What happened last", Description: "The newest facts about keys, owners and keyspaces among the last 20,000 of LEDGER, from the read models: who did what, without the data, for a glance. Reading it is not recorded; what changed is told by /v1/audit/events.",
		},
		action: domain.KeysRead, read: true, absent: true,
	}, a.latestFacts)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "count-alerts", Method: http.MethodGet, Path: "/v1/alerts/counts", Tags: []string{"Alerts"},
			Summary: "How many alerts are raised", Description: "By keyspace and condition, from the read models.",
		},
		action: domain.AlertsRead, absent: true,
	}, a.countAlerts)
}

func (a *API) countKeys(ctx context.Context, in *countsInput) (*keyCountsOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, false); err != nil {
		return nil, err
	}
	found := map[string]*KeyCounts{}
	authority := callOf(ctx).authority
	for _, ks := range a.Ring.Keyspaces() {
		if ks.Document.Keyspace == events.RootKeyspace || in.Keyspace != "" && ks.Document.Keyspace != in.Keyspace {
			continue
		}
		n := &KeyCounts{Keyspace: ks.Document.Keyspace}
		for _, o := range a.Ring.Owners(ks.Document.Keyspace) {
			if (in.Owner == "" || in.Owner == o.ID) && authority.Reaches(ks.Document.Keyspace, o.ID) {
				n.Owners++
			}
		}
		found[ks.Document.Keyspace] = n
	}
	now := events.At(a.Now())
	for k := range a.Ring.All(in.Keyspace, in.Owner) {
		n := found[k.Keyspace]
		if n == nil || k.Deleted() {
			continue
		}
		switch k.Status(now) {
		case "revoked":
			n.Revoked++
		case "expired":
			n.Expired++
		default:
			n.Active++
		}
	}
	if a.Verifier != nil {
		limited := a.Verifier.LimitedKeys(in.Keyspace, in.Owner)
		slices.Sort(limited)
		for _, id := range slices.Compact(limited) {
			if k := a.Ring.Key(id); k != nil && found[k.Keyspace] != nil && k.Status(now) == "active" {
				found[k.Keyspace].RateLimited++
			}
		}
	}
	out := &keyCountsOutput{KeyCountList{[]KeyCounts{}}}
	for _, ks := range slices.Sorted(maps.Keys(found)) {
		out.Body.Counts = append(out.Body.Counts, *found[ks])
	}
	return out, nil
}

func (a *API) countAlerts(ctx context.Context, in *countsInput) (*alertCountsOutput, error) {
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, false); err != nil {
		return nil, err
	}
	out := &alertCountsOutput{AlertCountList{[]queries.AlertCount{}}}
	err := a.readModel(ctx, projections.Alerts{}.Name(), func(ctx context.Context, q *queries.Queries) error {
		found, err := q.AlertCounts(ctx, in.Keyspace, in.Owner)
		out.Body.Raised = append(out.Body.Raised, found...)
		return err
	})
	return out, err
}

func (a *API) latestFacts(ctx context.Context, in *latestInput) (*latestOutput, error) {
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, false); err != nil {
		return nil, err
	}
	out := &latestOutput{}
	err := a.readModel(ctx, projections.LedgerCopy{}.Name(), func(ctx context.Context, q *queries.Queries) (err error) {
		out.Body.Facts, err = q.Latest(ctx, in.Keyspace, in.Owner, in.Limit)
		return err
	})
	return out, err
}
