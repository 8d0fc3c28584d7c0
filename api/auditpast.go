package api

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/queries"
	"github.com/keyledger/keyledger/verify"
)

// auditPast are the questions about what was: what changed, a key's history, why
// a request was decided as it was, and what a leaked secret was used for. Like
// every reading of the log, each is recorded.
func (a *API) auditPast() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "audit-diff", Method: http.MethodGet, Path: "/v1/audit/diff", Tags: []string{"Audit"},
			Summary:     "What changed between two moments",
			Description: "The keys, owners and keyspaces that facts of LEDGER behind from and up to to have changed, in the order in which each was first changed: every field before and after, and the events with their actors. What only time changed has no fact: a key that just expired is not listed.",
		},
		action: domain.AuditRead, read: true, absent: true,
	}, a.auditDiff)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "audit-key-history", Method: http.MethodGet, Path: "/v1/audit/keys/{id}/history", Tags: []string{"Audit"},
			Summary:     "The history of a key",
			Description: "Everything that the streams hold about a key, oldest first: each fact with what it changed and who caused it, uses and refusals added up between them, what time did, and declared gaps of its keyspace. A deleted key has its history.",
		},
		action: domain.AuditRead, read: true, absent: true,
	}, a.auditHistory)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "audit-decision", Method: http.MethodGet, Path: "/v1/audit/decisions/{decision_id}", Tags: []string{"Audit"},
			Summary:     "Why a request was decided as it was",
			Description: "What the log holds of a decision, judged again with the document and the state of key and owner that were in force: every check in its order, with its verdict. Refusals are recorded folded by second: of one, the folds that it can have been counted in are answered.",
		},
		action: domain.AuditRead, absent: true,
	}, a.auditDecision)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "audit-leaked", Method: http.MethodPost, Path: "/v1/audit/leaked", Tags: []string{"Audit"},
			Summary:     "What a leaked secret was used for",
			Description: "Finds the key that has or had a secret, also a deleted one, and adds up what was done with this secret: how often, when, on which endpoints and, for operators and auditors, from which addresses. The secret is hashed, compared and forgotten; that somebody asked is recorded without it.",
		},
		action: domain.AuditRead, absent: true,
	}, a.auditLeaked)
}

// LeakedRequest is a secret that has leaked.
type LeakedRequest struct {
	Keyspace string `json:"keyspace,omitempty" doc:"Of the key; absent: any."`
	Secret   string `json:"secret" minLength:"1" doc:"The whole secret." writeOnly:"true"`
}

// LeakList are the keys that have or had a secret: one, but for a secret that was
// imported into several keyspaces.
type LeakList struct {
	Leaks []queries.Leak `json:"leaks" nullable:"false"`
}

type leakedInput struct{ Body LeakedRequest }

type leakedOutput struct {
	CacheControl string `header:"Cache-Control" doc:"no-store"`
	Body         LeakList
}

func (a *API) auditLeaked(ctx context.Context, in *leakedInput) (*leakedOutput, error) {
	c := callOf(ctx)
	var spaces []string
	switch id := in.Body.Keyspace; {
	case id == events.RootKeyspace && c.authority.Role == domain.Operator:
		spaces = []string{id}
	case id != "":
		if _, err := a.keyspace(ctx, id); err != nil {
			return nil, err
		}
		spaces = []string{id}
	default:
		for _, ks := range a.Ring.Keyspaces() {
			spaces = append(spaces, ks.Document.Keyspace)
		}
		spaces = append(spaces, events.RootKeyspace)
	}
	hash := domain.HashSecret(in.Body.Secret)
	out := &leakedOutput{"no-store", LeakList{[]queries.Leak{}}}
	for _, id := range spaces {
		k := a.Ring.BySecret(id, hash)
		if k == nil || !c.authority.Reaches(k.Keyspace, k.Owner) {
			continue
		}
		l, err := a.past().Leaked(ctx, k, hash, a.opener(c), a.Now())
		if err != nil {
			return nil, unread(err)
		}
		out.Body.Leaks = append(out.Body.Leaks, *l)
		if err := a.read(ctx, "leaked", map[string]string{"keyspace": k.Keyspace, "owner": k.Owner, "key": k.ID}, int(l.Uses.Count)); err != nil {
			return nil, err
		}
	}
	if len(out.Body.Leaks) > 0 {
		return out, nil
	}
	if err := a.read(ctx, "leaked", map[string]string{}, 0); err != nil {
		return nil, err
	}
	return nil, &domain.Refusal{Kind: domain.NotFound, Code: "SECRET_NOT_FOUND", Detail: "No key has or had this secret."}
}

type decisionInput struct {
	ID string `path:"decision_id" doc:"As the decision was answered." example:"dec_06f0nh3b4tvo0sc2rk1hgq6bhk01jk8cdc03mms7b8o0e6dn4kr0"`
}

type decisionOutput struct {
	Body queries.Explanation
}

func (a *API) auditDecision(ctx context.Context, in *decisionInput) (*decisionOutput, error) {
	id, err := verify.ParseDecisionID(in.ID)
	if err != nil {
		return nil, unprocessable(Detail{Path: "decision_id", Message: "is not the id of a decision", Fix: "the decision_id as verification answered it, dec_ and 52 characters"})
	}
	c := callOf(ctx)
	ref := queries.DecisionRef{ID: in.ID, Key: id.Key, Admitted: id.Admitted, Time: events.At(id.Time)}
	var keyspace, owner string
	switch k := a.Ring.Key(id.Key); {
	case id.Key == "" && c.authority.Reach == nil:
	case k == nil || !c.authority.Reaches(k.Keyspace, k.Owner):
		return nil, &domain.Refusal{Kind: domain.NotFound, Code: "DECISION_NOT_FOUND", Detail: "There is no decision with this id: the log holds no key that it would be about."}
	default:
		keyspace, owner = k.Keyspace, k.Owner
	}
	out := &decisionOutput{}
	err = a.inPast(ctx, func(ctx context.Context, p *queries.Past) error {
		x, err := p.Explain(ctx, ref, keyspace, owner, a.opener(c), a.Now())
		if err == nil {
			out.Body = *x
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, a.read(ctx, "decision", map[string]string{"decision": in.ID, "keyspace": keyspace, "owner": owner, "key": id.Key}, len(out.Body.Judgements))
}

// KeyHistory is what happened to a key.
type KeyHistory struct {
	Key     Key                    `json:"key" doc:"As it is now."`
	Entries []queries.HistoryEntry `json:"entries" nullable:"false"`
}

type historyInput struct {
	KeyPath
	Uses bool `query:"uses" default:"true" doc:"false: without uses, refusals and gaps, which USAGE is read for."`
}

type historyOutput struct{ Body KeyHistory }

func (a *API) auditHistory(ctx context.Context, in *historyInput) (*historyOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	keyspace, owner, id := "", "", in.ID
	if err := a.within(ctx, &keyspace, &owner, &id, callOf(ctx).authority.Reach == nil); err != nil {
		return nil, err
	}
	entries, _, err := a.streams().History(ctx, keyspace, owner, id, in.Uses, a.Now())
	if err != nil {
		return nil, unread(err)
	}
	out := &historyOutput{KeyHistory{a.view(ctx, a.Ring.Key(id)), entries}}
	return out, a.read(ctx, "history", map[string]string{"keyspace": keyspace, "owner": owner, "key": id}, len(entries))
}

type diffInput struct {
	From     string `query:"from" required:"true" doc:"A time, a sequence of LEDGER, or now." example:"2026-01-18T12:00:00.000Z"`
	To       string `query:"to" doc:"Likewise; absent: now."`
	Keyspace string `query:"keyspace" doc:"Of this keyspace."`
	Owner    string `query:"owner" doc:"Of this owner."`
	Key      string `query:"key" doc:"Of this key."`
	Limit    int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many in a page."`
	Cursor   string `query:"cursor" doc:"The next_cursor of the page before, with the same filters, from and to; it is of the same moments."`
}

// AuditDiff is a page of what changed.
type AuditDiff struct {
	From       queries.Moment       `json:"from"`
	To         queries.Moment       `json:"to"`
	Changed    []queries.Difference `json:"changed" nullable:"false"`
	NextCursor *string              `json:"next_cursor" doc:"Where the next page begins; null: this is the last."`
}

type diffOutput struct {
	LedgerSequence string `header:"Ledger-Sequence" doc:"The sequence of to."`
	Body           AuditDiff
}

func (a *API) auditDiff(ctx context.Context, in *diffInput) (*diffOutput, error) {
	reach := callOf(ctx).authority.Reach
	asked := map[string]string{"from": in.From, "to": in.To, "keyspace": in.Keyspace, "owner": in.Owner, "key": in.Key}
	if err := a.within(ctx, &in.Keyspace, &in.Owner, &in.Key, reach == nil); err != nil {
		return nil, err
	}
	f := queries.DiffFilter{Keyspace: in.Keyspace, Owner: in.Owner, Key: in.Key, From: in.From, To: in.To, Limit: in.Limit, Cursor: in.Cursor}
	out := &diffOutput{}
	err := a.readModel(ctx, projections.LedgerCopy{}.Name(), func(ctx context.Context, _ *queries.Queries) error {
		return a.inPast(ctx, func(ctx context.Context, p *queries.Past) (err error) {
			if out.Body.From, out.Body.To, err = p.Between(ctx, f, a.Now()); err != nil {
				return err
			}
			if err := a.copied(ctx, out.Body.To); err != nil {
				return err
			}
			list, next, err := p.Diff(ctx, f, out.Body.From, out.Body.To)
			out.Body.Changed, out.Body.NextCursor = list, more(next)
			out.LedgerSequence = strconv.FormatUint(out.Body.To.Sequence, 10)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	for name, value := range asked {
		if value == "" {
			delete(asked, name)
		}
	}
	return out, a.read(ctx, "diff", asked, len(out.Body.Changed))
}
