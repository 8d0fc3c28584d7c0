package api

import (
	"context"
	"fmt"
	"strconv"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/queries"
)

func (a *API) past() *queries.Past {
	return queries.NewPast(a.Ledger, a.Ring, a.Queries).Indexed(a.Index)
}

// inPast runs a reading of LEDGER's past, with a deadline: a stream that is away
// is waited for elsewhere.
func (a *API) inPast(ctx context.Context, read func(context.Context, *queries.Past) error) error {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	if err := read(ctx, a.past()); err != nil {
		return unread(err)
	}
	return nil
}

func (a *API) keyAsOf(ctx context.Context, id, asOf string) (*keyOutput, error) {
	now := a.Ring.Key(id)
	if now == nil || !callOf(ctx).authority.Reaches(now.Keyspace, now.Owner) {
		return nil, domain.KeyNotFound()
	}
	var out *keyOutput
	err := a.inPast(ctx, func(ctx context.Context, p *queries.Past) error {
		at, err := p.At(ctx, "as_of", asOf, a.Now())
		if err != nil {
			return err
		}
		k, err := p.Key(ctx, id, at)
		switch {
		case err != nil:
			return err
		case k == nil:
			return notYet("KEY_NOT_FOUND", "key", at)
		case k.Deleted():
			return &domain.Refusal{Kind: domain.Gone, Code: "KEY_DELETED", Detail: "This key had been deleted by then."}
		}
		out = &keyOutput{etag(k), at.Sequence, Key(queries.ViewAt(k, at))}
		return nil
	})
	return out, err
}

// notYet is told of what the caller may see and what came later: it is no secret
// to them that it is there now.
func notYet(code, what string, at queries.Moment) *domain.Refusal {
	return &domain.Refusal{Kind: domain.NotFound, Code: code,
		Detail: fmt.Sprintf("There was no such %s at sequence %d of LEDGER, %s: it was made later.", what, at.Sequence, at.Time)}
}

func (a *API) keysAsOf(ctx context.Context, in *keyListInput) (*keyPage, error) {
	f := queries.KeyFilter{
		Keyspace: in.Keyspace, Owner: in.Owner, Status: in.Status, Scope: in.Scope, Resource: in.Resource, Environment: in.Environment,
		Q: in.Q, UnusedSince: events.At(in.UnusedSince), ExpiresBefore: events.At(in.ExpiresBefore), AsOf: in.AsOf, Sort: in.Sort, Limit: in.Limit, Cursor: in.Cursor,
	}
	out := &keyPage{Body: KeyPage{Keys: []Key{}}}
	copied := projections.LedgerCopy{}.Name()
	err := a.readModel(ctx, copied, func(ctx context.Context, _ *queries.Queries) error {
		return a.inPast(ctx, func(ctx context.Context, p *queries.Past) error {
			at, err := p.AtOf(ctx, f, a.Now())
			if err != nil {
				return err
			}
			if err := a.copied(ctx, at); err != nil {
				return err
			}
			keys, next, err := p.ListKeys(ctx, f, at)
			for _, k := range keys {
				out.Body.Keys = append(out.Body.Keys, Key(k))
			}
			out.LedgerSequence, out.Body.NextCursor = strconv.FormatUint(at.Sequence, 10), more(next)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// copied waits until PostgreSQL holds LEDGER up to a moment.
func (a *API) copied(ctx context.Context, at queries.Moment) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if a.Runner.Wait(ctx, projections.LedgerCopy{}.Name(), at.Sequence) != nil {
		return unavailable("SEQUENCE_NOT_REACHED", "The copy of LEDGER in PostgreSQL has not reached that moment yet: ask again.", 1)
	}
	return nil
}

func (a *API) ownerAsOf(ctx context.Context, in *getOwnerInput) (*ownerOutput, error) {
	var out *ownerOutput
	err := a.inPast(ctx, func(ctx context.Context, p *queries.Past) error {
		at, err := p.At(ctx, "as_of", in.AsOf, a.Now())
		if err != nil {
			return err
		}
		o, err := p.Owner(ctx, in.Keyspace, in.Owner, at)
		if err != nil {
			return err
		}
		if o == nil {
			return notYet("OWNER_NOT_FOUND", "owner", at)
		}
		v := Owner{ID: o.ID, Owner: o.ID, Keyspace: o.Keyspace, Name: o.Name, Plan: o.Plan, CreatedAt: o.CreatedAt, Version: o.Version}
		if v.ActiveKeys, err = p.ActiveKeys(ctx, in.Keyspace, in.Owner, at); err != nil {
			return err
		}
		ks, err := p.Keyspace(ctx, in.Keyspace, at)
		if err != nil {
			return err
		}
		if ks != nil {
			if _, plan, ok := ks.PlanInForce(nil, o); ok {
				v.MaxKeys = plan.MaxKeys
			}
		}
		out = &ownerOutput{strconv.FormatUint(at.Sequence, 10), v}
		return nil
	})
	return out, err
}

func (a *API) keyspaceAsOf(ctx context.Context, id, asOf string) (*keyspaceOutput, error) {
	var out *keyspaceOutput
	err := a.inPast(ctx, func(ctx context.Context, p *queries.Past) error {
		at, err := p.At(ctx, "as_of", asOf, a.Now())
		if err != nil {
			return err
		}
		ks, err := p.Keyspace(ctx, id, at)
		if err != nil {
			return err
		}
		if ks == nil {
			return notYet("KEYSPACE_NOT_FOUND", "keyspace", at)
		}
		out = &keyspaceOutput{strconv.FormatUint(at.Sequence, 10), keyspaceETag(ks), keyspaceView(ks)}
		return nil
	})
	return out, err
}
