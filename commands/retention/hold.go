package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// Scope is what a hold covers: a keyspace, an owner in it, or a key of that owner.
type Scope struct {
	Keyspace string `json:"keyspace"`
	Owner    string `json:"owner"` // empty: all
	Key      string `json:"key"`   // empty: all
}

func (s Scope) String() string {
	text := s.Keyspace
	for _, part := range []string{s.Owner, s.Key} {
		if part != "" {
			text += "/" + part
		}
	}
	return text
}

// Hold is one that is in force.
type Hold struct {
	Scope
	Reason   string       `json:"reason"`
	Since    events.Time  `json:"since"`
	Actor    events.Actor `json:"actor"`
	Sequence uint64       `json:"sequence"` // in OPS
}

func (h Hold) String() string {
	return fmt.Sprintf("on %s (%q, since %s, %s %d)", h.Scope, h.Reason, h.Since, events.Ops, h.Sequence)
}

// covers says whether a hold is about a data key. Those of a key's owner are the
// ones that the key's uses are sealed with.
func (h *Hold) covers(dataKey string) bool {
	keyspace, owner, _, ok := seal.ParseID(dataKey)
	return ok && h.Keyspace == keyspace && (h.Owner == "" || h.Owner == owner)
}

// holds says whether a hold is about an event.
func (h *Hold) holds(e *events.Envelope) bool {
	return h.Keyspace == e.Keyspace && (h.Owner == "" || h.Owner == e.Owner) && (h.Key == "" || h.Key == e.Key)
}

func (a *acts) set(r *events.Record, d events.HoldSet) {
	e := &r.Event
	scope := Scope{e.Keyspace, e.Owner, e.Key}
	i := slices.IndexFunc(a.holds, func(h Hold) bool { return h.Scope == scope })
	switch {
	case d.Active && i < 0:
		a.holds = append(a.holds, Hold{scope, d.Reason, e.Time, e.Actor, r.Sequence})
	case d.Active:
		a.holds[i].Reason = d.Reason // as old as it was
	case i >= 0:
		a.holds = slices.Delete(slices.Clone(a.holds), i, i+1)
	}
}

// Holds are those in force, oldest first.
func (r *Retention) Holds(ctx context.Context) ([]Hold, error) {
	a, err := r.read(ctx)
	return a.holds, err
}

// Hold stops erasing and pruning of what a scope covers. A hold that is there with
// the same reason is left as it is: changed is false then, as for one that is lifted
// and was not there. It refuses a scope without a keyspace, and a reason of nothing.
func (r *Retention) Hold(ctx context.Context, by By, scope Scope, reason string) (h Hold, changed bool, err error) {
	if reason == "" {
		return h, false, refuse(domain.Invalid, "INVALID", "The input is not valid.", domain.Problem{Path: "reason", Message: "is missing", Fix: "say why, for whoever asks in years: a case number, no person's name"})
	}
	return r.setHold(ctx, by, scope, events.HoldSet{Active: true, Reason: reason})
}

// Lift ends a hold; what it kept may be erased and pruned from then on.
func (r *Retention) Lift(ctx context.Context, by By, scope Scope, reason string) (h Hold, changed bool, err error) {
	return r.setHold(ctx, by, scope, events.HoldSet{Reason: reason})
}

func (r *Retention) setHold(ctx context.Context, by By, scope Scope, d events.HoldSet) (h Hold, changed bool, err error) {
	if scope.Keyspace == "" || scope.Key != "" && scope.Owner == "" && scope.Keyspace != events.RootKeyspace {
		return h, false, refuse(domain.Invalid, "INVALID", "The input is not valid.", domain.Problem{Path: "keyspace", Message: "is missing, or the owner is", Fix: "name the keyspace; the keyspace and the owner; or those and the key"})
	}
	sequence, e, err := r.record(ctx, func(a acts) (events.Envelope, error) {
		i := slices.IndexFunc(a.holds, func(h Hold) bool { return h.Scope == scope })
		if i >= 0 {
			h = a.holds[i]
		}
		if d.Active == (i >= 0) && (!d.Active || h.Reason == d.Reason) {
			return events.Envelope{}, errNothing
		}
		e := by.envelope(d, r.now())
		e.Keyspace, e.Owner, e.Key = scope.Keyspace, scope.Owner, scope.Key
		return e, nil
	})
	if errors.Is(err, errNothing) {
		h.Scope = scope
		return h, false, nil
	}
	if err != nil {
		return h, false, err
	}
	if h.Sequence == 0 {
		h = Hold{scope, d.Reason, e.Time, by.Actor, sequence}
	}
	if d.Active {
		h.Reason = d.Reason
	}
	return h, true, nil
}
