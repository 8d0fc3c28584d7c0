package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Least is how much of USAGE always stays: limits are recounted from the present day,
// outcomes come for a day after their uses, and a killed process's write-ahead log is
// compared with what it recorded last.
const Least = 72 * time.Hour

// Pruning says what of USAGE goes.
type Pruning struct {
	Before    time.Time // what the server stored before
	Reason    string
	UpToHolds bool // prune what a legal hold leaves, instead of refusing
	DryRun    bool // only say what would be pruned
}

// Pruned is what a pruning has done, or would do.
type Pruned struct {
	DryRun   bool        `json:"dry_run"`
	Before   events.Time `json:"before"`
	First    uint64      `json:"first"`     // where USAGE began
	Through  uint64      `json:"through"`   // last message that is gone; below first: there was nothing
	Messages uint64      `json:"messages"`  // that are gone
	Events   uint64      `json:"events"`    // in them
	TreeSize uint64      `json:"tree_size"` // leaves of the tree up to there
	RootHash string      `json:"root_hash"` // of it, base64
	Act      uint64      `json:"act"`       // where it is recorded, in OPS; 0: it is not
	HeldBy   []Hold      `json:"held_by"`   // what kept more from being pruned
}

// Prune purges the front of USAGE. First it keeps a baseline of every read model of
// it and continues the tree over what goes, which must be the one that is signed;
// then it records size, root and frontier of that on OPS; then it purges. It is
// refused, with nothing recorded, where a legal hold covers an event that would go,
// unless it was to stop before that. progress gets messages done and all, several
// times over; it may be nil.
func (r *Retention) Prune(ctx context.Context, by By, x Pruning, progress func(done, total uint64)) (Pruned, error) {
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	if limit := r.now().Add(-Least); x.Before.After(limit) {
		return Pruned{}, refuse(domain.Invalid, "INVALID", "The input is not valid.", domain.Problem{Path: "before",
			Message: "is less than 72 hours ago", Fix: "an earlier time: limits, outcomes and the recovery of a killed process need the last days"})
	}
	if err := r.Finish(ctx); err != nil {
		return Pruned{}, err
	}
	for {
		out, err := r.prune(ctx, by, x, progress)
		if !errors.Is(err, errAgain) {
			return out, err
		}
	}
}

// errAgain says that something came first that a pruning must be decided with.
var errAgain = errors.New("another act came first")

func (r *Retention) prune(ctx context.Context, by By, x Pruning, progress func(done, total uint64)) (out Pruned, err error) {
	out = Pruned{DryRun: x.DryRun, Before: events.At(x.Before), HeldBy: []Hold{}}
	decided, err := r.read(ctx)
	if err != nil {
		return out, err
	}
	if out.First, err = r.Ledger.First(ctx, events.Usage); err != nil {
		return out, err
	}
	next, err := r.Ledger.SequenceAt(ctx, events.Usage, x.Before)
	if err != nil {
		return out, err
	}
	out.Through = max(next, 1) - 1
	if out.Through < out.First {
		return out, nil
	}
	tree, err := decided.frontier(out.First)
	if err != nil {
		return out, err
	}
	if err := r.look(ctx, decided.holds, &out, &tree, progress); err != nil {
		return out, err
	}
	if len(out.HeldBy) > 0 && !x.UpToHolds {
		detail := "USAGE may not be pruned that far"
		if out.Through >= out.First {
			detail = fmt.Sprintf("USAGE may be pruned through sequence %d and no further", out.Through)
		}
		return out, held(detail, out.HeldBy)
	}
	if out.Through < out.First {
		return out, nil
	}
	out.TreeSize, out.RootHash = uint64(tree.Size()), tree.Root().String()
	if r.Tree != nil {
		root, err := r.Tree(ctx, out.Through, out.TreeSize)
		if err != nil {
			return out, fmt.Errorf("nothing is pruned: the signed tree over %s does not say what it is at %d leaves: %w", events.Usage, tree.Size(), err)
		}
		if root != tree.Root() {
			return out, fmt.Errorf("nothing is pruned: the tree over %s with %d leaves has root %s by the stream and %s by what is signed; see `keyledger audit verify`", events.Usage, tree.Size(), out.RootHash, root)
		}
	}
	if x.DryRun {
		return out, nil
	}
	if err := r.Models.Keep(ctx, events.Usage, out.Through, progress); err != nil {
		return out, err
	}
	out.Act, _, err = r.record(ctx, func(a acts) (events.Envelope, error) {
		if a.prunedAt != decided.prunedAt || !slices.Equal(a.holds, decided.holds) {
			return events.Envelope{}, errAgain
		}
		return by.envelope(events.UsagePruned{
			Stream: events.Usage, Through: out.Through, Before: out.Before,
			TreeSize: out.TreeSize, RootHash: out.RootHash, Frontier: tree.Texts(), Reason: x.Reason,
		}, r.now()), nil
	})
	if err != nil {
		return out, err
	}
	if r.recorded != nil {
		r.recorded()
	}
	if _, err = r.purge(ctx, out.Through); err != nil {
		return out, fmt.Errorf("this is recorded (%s %d) and not yet done, repeat it: %w", events.Ops, out.Act, err)
	}
	return out, nil
}

// purge carries out a recorded pruning. What leads to messages goes before them, so
// that nobody is led to what is not there, and a crash in between is seen.
func (r *Retention) purge(ctx context.Context, through uint64) (uint64, error) {
	if err := r.Models.Pruned(ctx, events.Usage, through); err != nil {
		return 0, err
	}
	return r.Ledger.Prune(ctx, through)
}

// frontier is the tree up to where USAGE begins.
func (a *acts) frontier(first uint64) (audit.Frontier, error) {
	if first == 1 {
		return audit.Frontier{}, nil
	}
	if a.prunedAt == 0 || a.pruned.Through+1 != first {
		return audit.Frontier{}, fmt.Errorf("%s begins at sequence %d, and the last pruning that is recorded went through %d: see the runbook begins-late", events.Usage, first, a.pruned.Through)
	}
	f, err := audit.ParseFrontier(a.pruned.TreeSize, a.pruned.RootHash, a.pruned.Frontier)
	if err != nil {
		return f, fmt.Errorf("the tree over %s cannot be continued from what %s %d says: %w", events.Usage, events.Ops, a.prunedAt, err)
	}
	return f, nil
}

// look reads what would go, continues the tree over it, and stops before the first
// message with an event that a hold covers.
func (r *Retention) look(ctx context.Context, holds []Hold, out *Pruned, tree *audit.Frontier, progress func(done, total uint64)) error {
	total := out.Through - out.First + 1
	last, counted := tree.Clone(), uint64(0) // at the end of the last whole message
	at := out.First
	for rec, err := range r.Ledger.Read(ctx, events.Usage, out.First, out.Through) {
		if err != nil {
			return err
		}
		if rec.Sequence != at {
			last, counted, at = tree.Clone(), out.Events, rec.Sequence
			if at%1024 == 0 {
				progress(at-out.First, total)
			}
		}
		for i := range holds {
			if holds[i].holds(&rec.Event) && !slices.Contains(out.HeldBy, holds[i]) {
				out.HeldBy = append(out.HeldBy, holds[i])
			}
		}
		if len(out.HeldBy) > 0 {
			*tree, out.Events, out.Through = last, counted, rec.Sequence-1
			break
		}
		leaf := audit.LeafOf(&rec)
		tree.Add(leaf.Hash())
		out.Events++
	}
	if out.Through >= out.First {
		out.Messages = out.Through - out.First + 1
		progress(out.Messages, out.Messages)
	}
	return nil
}
