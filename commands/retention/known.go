package retention

import (
	"context"
	"encoding/json"

	"github.com/keyledger/keyledger/events"
)

// OPS grows with every question to the audit log, and the fold of it is small. So it
// is kept, sealed under the master key, beside the data keys: a start reads what has
// come since. Whoever changes it has to have that key; an older one, or none, costs
// reading more.

// keepEvery is after how many acts the fold is kept again.
const keepEvery = 1000

// knownName changes with what apply does.
const knownName = "acts 1"

type known struct {
	At       uint64             `json:"at"`
	ID       string             `json:"id"`
	Holds    []Hold             `json:"holds"`
	Pruned   events.UsagePruned `json:"pruned"`
	PrunedAt uint64             `json:"pruned_at"`
	Erased   []knownErased      `json:"erased"`
}

type knownErased struct {
	Sequence uint64      `json:"sequence"`
	At       events.Time `json:"at"`
	Keys     []string    `json:"keys"`
}

// recall begins with the fold that was kept, where OPS still is what it was made of.
// r.mu is held.
func (r *Retention) recall(ctx context.Context) {
	b, err := r.Seal.Remembered(ctx, knownName)
	var k known
	if err == nil && b != nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil {
		r.log().Warn("what was kept of the acts in "+events.Ops+" cannot be used, all of them are read", "error", err)
		return
	}
	if k.At == 0 {
		return
	}
	// After a restore there may be nothing there yet, or something else.
	if at, err := r.Ledger.At(ctx, events.Ops, k.At); err != nil || at[0].Event.ID != k.ID {
		r.log().Info("what was kept of the acts in "+events.Ops+" is of another past, all of them are read", "sequence", k.At)
		return
	}
	a := acts{at: k.At, id: k.ID, holds: k.Holds, pruned: k.Pruned, prunedAt: k.PrunedAt}
	for _, e := range k.Erased {
		a.erased = append(a.erased, erased{e.Sequence, e.At, e.Keys})
	}
	r.acts, r.kept = a, k.At
}

// keep keeps the fold. r.mu is held.
func (r *Retention) keep(ctx context.Context) {
	a := &r.acts
	k := known{At: a.at, ID: a.id, Holds: a.holds, Pruned: a.pruned, PrunedAt: a.prunedAt}
	for _, e := range a.erased {
		k.Erased = append(k.Erased, knownErased{e.sequence, e.at, e.keys})
	}
	b, err := json.Marshal(k)
	if err == nil {
		err = r.Seal.Remember(ctx, knownName, b)
	}
	if err != nil {
		r.log().Warn("the fold of "+events.Ops+" could not be kept, the next start reads more", "error", err)
		return
	}
	r.kept = a.at
}
