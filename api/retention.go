package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/commands/retention"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// ErasureRequest says whose personal data is erased, and from when.
type ErasureRequest struct {
	Keyspace string `json:"keyspace,omitempty" doc:"Of this keyspace; empty: of every one, and then with a period." example:"parcelbird"`
	Owner    string `json:"owner,omitempty" doc:"Of this owner; _: what is of no owner; empty: of everybody, and then with a period." example:"org_1"`
	From     string `json:"from,omitempty" doc:"First month of the uses, in UTC; empty: from the beginning." example:"2026-01"`
	Through  string `json:"through,omitempty" doc:"Last month of the uses; empty: up to now." example:"2026-03"`
	Reason   string `json:"reason,omitempty" maxLength:"500" doc:"Kept for ever: a case number, no person's name." example:"request 17"`
	SkipHeld bool   `json:"skip_held,omitempty" doc:"Leave out what a legal hold covers, instead of refusing all."`
	DryRun   bool   `json:"dry_run,omitempty" doc:"Only say what would be erased."`
}

// PruningRequest says what of USAGE goes.
type PruningRequest struct {
	Before    time.Time `json:"before" doc:"What was recorded before this time; at least 72 hours ago."`
	Reason    string    `json:"reason,omitempty" maxLength:"500" doc:"Kept for ever." example:"retention of 400 days"`
	UpToHolds bool      `json:"up_to_holds,omitempty" doc:"Prune what legal holds leave, instead of refusing all."`
	DryRun    bool      `json:"dry_run,omitempty" doc:"Only say what would be pruned."`
}

// HoldRequest names what a legal hold covers.
type HoldRequest struct {
	Keyspace string `json:"keyspace,omitempty" doc:"A whole keyspace, or that of the owner." example:"parcelbird"`
	Owner    string `json:"owner,omitempty" doc:"An owner of it." example:"org_1"`
	Key      string `json:"key,omitempty" doc:"Or one key: its keyspace and owner are known by it."`
	Reason   string `json:"reason,omitempty" maxLength:"500" doc:"Kept for ever, and told to whoever is refused: a case number, no person's name." example:"case 4711"`
}

// HoldAnswer is what came of it.
type HoldAnswer struct {
	Hold    retention.Hold `json:"hold"`
	Changed bool           `json:"changed" doc:"false: it was so already, and nothing was recorded."`
}

// HoldList are the legal holds in force.
type HoldList struct {
	Holds []retention.Hold `json:"holds" nullable:"false"`
}

// ErasureLine is one line of an erasure's answer.
type ErasureLine struct {
	Done   *uint64           `json:"done,omitempty" doc:"Data keys destroyed."`
	Total  *uint64           `json:"total,omitempty"`
	Result *retention.Erased `json:"result,omitempty"`
	Error  *Problem          `json:"error,omitempty"`
}

// PruningLine is one line of a pruning's answer.
type PruningLine struct {
	Done   *uint64           `json:"done,omitempty" doc:"Messages read, several times over."`
	Total  *uint64           `json:"total,omitempty"`
	Result *retention.Pruned `json:"result,omitempty"`
	Error  *Problem          `json:"error,omitempty"`
}

type (
	holdInput  struct{ Body HoldRequest }
	holdOutput struct{ Body HoldAnswer }
	holdList   struct{ Body HoldList }
)

func (a *API) retention() {
	const lines = " Answers lines of {done, total} while it works, and at the end one with result, or with error, a problem document; what is refused before it began is answered as a problem."
	long := func(id, path, summary, text string, body, line any, handle func(decode func([]byte, any) error) func(http.ResponseWriter, *http.Request, *call) error) {
		schema := a.schema(body)
		a.stream(route{
			Operation: huma.Operation{
				OperationID: id, Method: http.MethodPost, Path: path, Tags: []string{"Retention"}, Summary: summary, Description: text + lines,
				RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}},
				Responses: map[string]*huma.Response{"200": {Description: "Progress, then the result.",
					Content: map[string]*huma.MediaType{"application/x-ndjson": {Schema: a.schema(line)}}}},
			},
			action: domain.Operate, absent: true,
		}, handle(a.decode(schema)))
	}
	long("erase", "/v1/privacy/erasures", "Erase personal data",
		"Destroys the data keys that source addresses and user agents are sealed with, so that nobody can open them, and removes what read models hold of them. No stored byte changes, and every proof stays valid. Recorded first, as privacy.erased on OPS; repeating it finds nothing to do. 409 LEGAL_HOLD where a hold covers a part.",
		ErasureRequest{}, ErasureLine{}, a.erase)
	long("prune", "/v1/audit/prunings", "Prune old uses",
		"Purges USAGE from the front. Before that it keeps a baseline of every read model, and records the tree's size and root, as usage.pruned on OPS. 409 LEGAL_HOLD where a hold covers an event that would go.",
		PruningRequest{}, PruningLine{}, a.prune)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-holds", Method: http.MethodGet, Path: "/v1/audit/holds", Tags: []string{"Retention"},
			Summary: "List the legal holds", Description: "Those in force, oldest first, read from OPS.",
		},
		action: domain.LogRead,
	}, a.listHolds)
	for _, kind := range []struct {
		id, path, summary, text string
		active                  bool
	}{
		{"set-hold", "/v1/audit/holds", "Set a legal hold", "Stops erasing and pruning of what a keyspace, an owner or a key has in the log, until it is lifted. Recorded as hold.set on OPS; the same again changes nothing.", true},
		{"lift-hold", "/v1/audit/holds/lift", "Lift a legal hold", "Allows erasing and pruning again. Recorded as hold.set, not active; one that is not there changes nothing.", false},
	} {
		serve(a, route{
			Operation: huma.Operation{OperationID: kind.id, Method: http.MethodPost, Path: kind.path, Tags: []string{"Retention"}, Summary: kind.summary, Description: kind.text},
			action:    domain.Operate, absent: true,
		}, func(ctx context.Context, in *holdInput) (*holdOutput, error) {
			return a.setHold(ctx, in.Body, kind.active)
		})
	}
}

func (a *API) keeper() (*retention.Retention, error) {
	if a.Retention == nil {
		return nil, unavailable("READ_MODELS_UNAVAILABLE", "This program has no PostgreSQL, and neither erases nor prunes.", 30)
	}
	return a.Retention, nil
}

func (c *call) by() retention.By {
	return retention.By{Actor: c.authority.Actor, Via: c.via(), RequestID: c.requestID}
}

func (a *API) listHolds(ctx context.Context, _ *struct{}) (*holdList, error) {
	keeper, err := a.keeper()
	if err != nil {
		return nil, err
	}
	holds, err := keeper.Holds(ctx)
	if err != nil {
		return nil, err
	}
	out := &holdList{HoldList{[]retention.Hold{}}}
	out.Body.Holds = append(out.Body.Holds, holds...)
	return out, nil
}

func (a *API) setHold(ctx context.Context, in HoldRequest, active bool) (*holdOutput, error) {
	keeper, err := a.keeper()
	if err != nil {
		return nil, err
	}
	if in.Key != "" || in.Keyspace != "" {
		if err := a.within(ctx, &in.Keyspace, &in.Owner, &in.Key, true); err != nil {
			return nil, err
		}
	}
	set := keeper.Lift
	if active {
		set = keeper.Hold
	}
	hold, changed, err := set(ctx, callOf(ctx).by(), retention.Scope{Keyspace: in.Keyspace, Owner: in.Owner, Key: in.Key}, in.Reason)
	if err != nil {
		return nil, err
	}
	return &holdOutput{HoldAnswer{hold, changed}}, nil
}

func (a *API) erase(decode func([]byte, any) error) func(http.ResponseWriter, *http.Request, *call) error {
	return func(w http.ResponseWriter, r *http.Request, c *call) error {
		var in ErasureRequest
		if err := decode(c.body, &in); err != nil {
			return err
		}
		keeper, err := a.keeper()
		if err != nil {
			return err
		}
		owner := in.Owner
		if owner == events.None {
			owner = ""
		}
		if err := a.within(r.Context(), &in.Keyspace, &owner, nil, true); err != nil {
			return err
		}
		return a.work(w, r, func(ctx context.Context, progress func(done, total uint64)) (any, error) {
			out, err := keeper.Erase(ctx, c.by(), retention.Erasure{Keyspace: in.Keyspace, Owner: in.Owner, From: in.From, Through: in.Through,
				Reason: in.Reason, SkipHeld: in.SkipHeld, DryRun: in.DryRun}, progress)
			return ErasureLine{Result: &out}, err
		})
	}
}

func (a *API) prune(decode func([]byte, any) error) func(http.ResponseWriter, *http.Request, *call) error {
	return func(w http.ResponseWriter, r *http.Request, c *call) error {
		var in PruningRequest
		if err := decode(c.body, &in); err != nil {
			return err
		}
		keeper, err := a.keeper()
		if err != nil {
			return err
		}
		return a.work(w, r, func(ctx context.Context, progress func(done, total uint64)) (any, error) {
			out, err := keeper.Prune(ctx, c.by(), retention.Pruning{Before: in.Before, Reason: in.Reason, UpToHolds: in.UpToHolds, DryRun: in.DryRun}, progress)
			return PruningLine{Result: &out}, err
		})
	}
}

// work answers with lines of progress and a last one with the result. What fails
// before the first line is answered as a problem.
func (a *API) work(w http.ResponseWriter, r *http.Request, run func(ctx context.Context, progress func(done, total uint64)) (any, error)) error {
	out, flush := json.NewEncoder(w), http.NewResponseController(w)
	var told time.Time
	send := func(line any) {
		if told.IsZero() {
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.Header().Set("Cache-Control", "no-store")
		}
		told = time.Now()
		_ = out.Encode(line) // the client is gone; what it asked for is done all the same
		_ = flush.Flush()
	}
	// What was begun is not left half-done because somebody has hung up.
	result, err := run(context.WithoutCancel(r.Context()), func(done, total uint64) {
		if time.Since(told) > 100*time.Millisecond {
			send(RebuildLine{Done: &done, Total: &total})
		}
	})
	switch {
	case err == nil:
		send(result)
		return nil
	case told.IsZero():
		return err
	}
	send(RebuildLine{Error: a.answered(r.Context(), err).(*Problem)})
	return nil
}
