package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// Erasure says whose personal data is erased, and from when. Months are those of the
// uses, yyyy-mm in UTC.
type Erasure struct {
	Keyspace string // empty: every one
	Owner    string // empty: every one, and what is of no owner
	From     string // first month; empty: from the beginning
	Through  string // last month; empty: up to now, what still waits to be written included
	Reason   string
	SkipHeld bool // leave out what a legal hold covers, instead of refusing all
	DryRun   bool // only say what would be erased
}

// Erased is what an erasure has done, or would do.
type Erased struct {
	DryRun   bool     `json:"dry_run"`
	Months   []string `json:"months"`    // of which there was personal data
	DataKeys []string `json:"data_keys"` // that are destroyed
	Closed   []string `json:"closed"`    // of which there was no data key: late uses of them are sealed away too
	Held     []string `json:"held"`      // left out, because of a legal hold
	Rows     int64    `json:"rows"`      // removed from read models
	Acts     []uint64 `json:"acts"`      // where it is recorded, in OPS
}

// erasedAtOnce is how many data keys one act names: their ids must fit in a message.
const erasedAtOnce = 2000

// Erase destroys data keys, so that what they sealed (source addresses and user
// agents of uses and of refusals) can be opened by nobody, removes what read models
// hold of it, and records that first. Other owners and months are not touched, nor
// is any stored byte. What happened before and is recorded later, by a process that
// waits for NATS, is sealed away too where the erasure covers the present.
//
// It is refused, with nothing recorded, where a legal hold covers a part and that was
// not to be left out. progress gets data keys done and all; it may be nil.
func (r *Retention) Erase(ctx context.Context, by By, x Erasure, progress func(done, total uint64)) (Erased, error) {
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	if err := x.check(); err != nil {
		return Erased{}, err
	}
	if err := r.Finish(ctx); err != nil {
		return Erased{}, err
	}
	keys, err := r.Seal.Held(ctx, seal.Held{Keyspace: x.Keyspace, Owner: x.Owner, From: x.From, Through: x.Through})
	if err != nil {
		return Erased{}, err
	}
	open, err := r.open(ctx, x, keys)
	if err != nil {
		return Erased{}, err
	}
	out := Erased{DryRun: x.DryRun, Months: []string{}, DataKeys: []string{}, Closed: []string{}, Held: []string{}, Acts: []uint64{}}
	all := slices.Concat(keys, open)
	if !x.SkipHeld || x.DryRun { // all at once, before the first is gone
		a, err := r.read(ctx)
		if err != nil {
			return out, err
		}
		free, kept, holds := a.free(all)
		if len(kept) > 0 && !x.SkipHeld {
			return out, held("This may not be erased", holds)
		}
		if x.DryRun {
			out.add(free, open)
			out.Held = kept
			return out, nil
		}
	}
	for chunk := range slices.Chunk(all, erasedAtOnce) {
		var free []string
		sequence, e, err := r.record(ctx, func(a acts) (events.Envelope, error) {
			var kept []string
			var holds []Hold
			free, kept, holds = a.free(chunk)
			if len(kept) > 0 && !x.SkipHeld {
				return events.Envelope{}, held("This may not be erased", holds)
			}
			out.Held = append(out.Held, kept...)
			if len(free) == 0 {
				return events.Envelope{}, errNothing
			}
			e := by.envelope(events.PrivacyErased{DataKeys: free, Reason: x.Reason}, r.now())
			e.Keyspace = x.Keyspace
			if x.Owner != events.None {
				e.Owner = x.Owner
			}
			return e, nil
		})
		if errors.Is(err, errNothing) {
			continue
		}
		if err != nil {
			return out, err
		}
		if r.recorded != nil {
			r.recorded()
		}
		rows, err := r.destroy(ctx, erased{sequence, e.Time, free})
		if err != nil {
			return out, fmt.Errorf("this is recorded (%s %d) and not yet done, repeat it: %w", events.Ops, sequence, err)
		}
		out.add(free, open)
		out.Rows += rows
		out.Acts = append(out.Acts, sequence)
		progress(uint64(len(out.DataKeys)+len(out.Closed)), uint64(len(all)))
	}
	slices.Sort(out.Held)
	out.Held = slices.Compact(out.Held)
	return out, nil
}

func (out *Erased) add(ids, closed []string) {
	for _, id := range ids {
		if slices.Contains(closed, id) {
			out.Closed = append(out.Closed, id)
			continue
		}
		out.DataKeys = append(out.DataKeys, id)
		if m := seal.Month(id); !slices.Contains(out.Months, m) {
			out.Months = append(out.Months, m)
		}
	}
	slices.Sort(out.Months)
}

func (x *Erasure) check() error {
	var wrong []domain.Problem
	if x.Keyspace == "" && x.Owner != "" {
		wrong = append(wrong, domain.Problem{Path: "keyspace", Message: "is missing", Fix: "name the keyspace of the owner"})
	}
	if x.Owner == "" && x.From == "" && x.Through == "" {
		wrong = append(wrong, domain.Problem{Path: "owner", Message: "neither an owner nor a period is named", Fix: "name an owner, a period, or both"})
	}
	for path, month := range map[string]string{"from": x.From, "through": x.Through} {
		if _, err := time.Parse("2006-01", month); month != "" && err != nil {
			wrong = append(wrong, domain.Problem{Path: path, Message: "is not a month", Fix: "yyyy-mm, such as 2026-03"})
		}
	}
	if len(wrong) > 0 {
		return refuse(domain.Invalid, "INVALID", "The input is not valid.", wrong...)
	}
	return nil
}

// open are the months that something of an owner may still have to be written of,
// and that have no data key: an erasure up to now closes them.
func (r *Retention) open(ctx context.Context, x Erasure, keys []string) (ids []string, err error) {
	if x.Owner == "" || x.Through != "" {
		return nil, nil
	}
	owner := x.Owner
	if owner == events.None {
		owner = ""
	}
	now := r.now().UTC()
	first := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	for _, at := range []time.Time{first.Add(-time.Second), now} {
		id := seal.KeyID(x.Keyspace, owner, at)
		if seal.Month(id) < x.From || slices.Contains(keys, id) {
			continue
		}
		closed, err := r.Seal.IsDestroyed(ctx, id, time.Unix(0, 0))
		if err != nil {
			return nil, err
		}
		if !closed {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// free divides data keys by whether a hold covers them.
func (a *acts) free(ids []string) (free, kept []string, by []Hold) {
	kept = []string{}
	for _, id := range ids {
		i := slices.IndexFunc(a.holds, func(h Hold) bool { return h.covers(id) })
		if i < 0 {
			free = append(free, id)
			continue
		}
		kept = append(kept, id)
		if !slices.Contains(by, a.holds[i]) {
			by = append(by, a.holds[i])
		}
	}
	return free, kept, by
}
