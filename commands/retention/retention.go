// Package retention takes away what the log need not keep for ever: personal data
// ([Retention.Erase]), by destroying the data keys that it is sealed with, and the
// front of USAGE ([Retention.Prune]). A legal hold ([Retention.Hold]) stops both.
//
// Each of these is an act on OPS, recorded before it is carried out. An act is
// appended behind exactly what it was decided with (the expectation is OPS's last
// sequence), so that of a hold and an erasure that race, the one that is first in
// OPS counts and the other one is decided again. What a crash left recorded and not
// carried out is finished by [Retention.Finish], which every act and every start of
// the service calls.
//
// It promises that no stored byte and no hash is changed by an erasure; that what is
// erased is not opened, listed or found again by any process that reaches NATS,
// whatever is rebuilt; that before USAGE is pruned there are a baseline to rebuild
// every read model from, and the tree over what goes, agreed on by whoever keeps it;
// and that each may be repeated.
//
// How it can disappoint. Copies made before are out of reach: exports, backups of the
// bucket of data keys. A process that is cut off from NATS opens what it has the data
// key of until it is back. The baselines are in PostgreSQL and nowhere else: who
// prunes has to back that schema up. Pruning reads what it prunes several times, and
// takes about as long as a rebuild of those days.
package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
)

// Retention carries out acts. Ledger, Seal and Models are needed; it is safe for
// concurrent use, and several processes may have one each.
type Retention struct {
	Ledger *ledger.Ledger
	Seal   *seal.Keys
	Models *projections.Runner

	// Tree is the root of the tree over USAGE through a message, which has so many
	// leaves, from what is signed: pruning fails where that does not reach, or is
	// another one. nil: nobody signs.
	Tree func(ctx context.Context, through, size uint64) (tlog.Hash, error)

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: slog.Default()

	recorded func() // for tests: between a record and what it announces

	mu   sync.Mutex // guards what follows
	acts acts
	kept uint64 // how far the fold goes that was last kept, or found
}

// By says who acts, and how.
type By struct {
	Actor     events.Actor
	Via       string // api, cli, schedule
	RequestID string
}

func (by By) envelope(data events.Payload, now time.Time) events.Envelope {
	e := events.New(data, now)
	e.Actor, e.Via, e.RequestID = by.Actor, by.Via, by.RequestID
	return e
}

// acts are the fold of OPS up to a sequence.
type acts struct {
	at       uint64
	id       string // of the event there
	holds    []Hold // active ones, oldest first
	pruned   events.UsagePruned
	prunedAt uint64 // its sequence; 0: none
	erased   []erased
}

// erased is one recorded erasure that is not known to be carried out.
type erased struct {
	sequence uint64
	at       events.Time
	keys     []string
}

func (r *Retention) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

func (r *Retention) log() *slog.Logger {
	if r.Log != nil {
		return r.Log
	}
	return slog.Default()
}

// read folds OPS to its end.
func (r *Retention) read(ctx context.Context) (acts, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.acts.at == 0 {
		r.recall(ctx)
	}
	for rec, err := range r.Ledger.Read(ctx, events.Ops, r.acts.at+1, 0) {
		if err != nil {
			return acts{}, fmt.Errorf("read the acts in %s: %w", events.Ops, err)
		}
		r.acts.apply(&rec)
	}
	if r.acts.at >= r.kept+keepEvery {
		r.keep(ctx)
	}
	a := r.acts
	a.holds = append([]Hold(nil), a.holds...)
	a.erased = append([]erased(nil), a.erased...)
	return a, nil
}

func (a *acts) apply(r *events.Record) {
	a.at, a.id = r.Sequence, r.Event.ID
	switch d := r.Event.Data.(type) {
	case events.HoldSet:
		a.set(r, d)
	case events.UsagePruned:
		if (d.Stream == events.Usage || d.Stream == "") && d.Through >= a.pruned.Through {
			a.pruned, a.prunedAt = d, r.Sequence
		}
	case events.PrivacyErased:
		if len(d.DataKeys) > 0 {
			a.erased = append(a.erased, erased{r.Sequence, r.Event.Time, d.DataKeys})
		}
	}
}

// errNothing ends a decision: there is nothing to record.
var errNothing = errors.New("nothing to record")

// record appends the act that decide makes of what OPS holds, as the next thing in
// OPS; whatever else came first is decided with.
func (r *Retention) record(ctx context.Context, decide func(acts) (events.Envelope, error)) (uint64, events.Envelope, error) {
	for {
		a, err := r.read(ctx)
		if err != nil {
			return 0, events.Envelope{}, err
		}
		e, err := decide(a)
		if err != nil {
			return 0, e, err
		}
		sequence, err := r.Ledger.AppendOpsAfter(ctx, a.at, e)
		if errors.Is(err, ledger.ErrConflict) {
			if err := ctx.Err(); err != nil {
				return 0, e, err
			}
			continue
		}
		return sequence, e, err
	}
}

// Finish carries out what was recorded and not carried out, because a process was
// killed in between.
func (r *Retention) Finish(ctx context.Context) error {
	a, err := r.read(ctx)
	if err != nil {
		return err
	}
	for _, e := range a.erased {
		if err := r.finishErasure(ctx, e); err != nil {
			return err
		}
	}
	return r.finishPruning(ctx, a)
}

func (r *Retention) finishPruning(ctx context.Context, a acts) error {
	if a.prunedAt == 0 {
		return nil
	}
	first, err := r.Ledger.First(ctx, events.Usage)
	if err != nil || first > a.pruned.Through {
		return err
	}
	r.log().Warn("USAGE is pruned as recorded: a process was ended before it did", "through", a.pruned.Through, "recorded_at", a.prunedAt)
	_, err = r.purge(ctx, a.pruned.Through)
	return err
}

func done(sequence uint64) string { return fmt.Sprintf("erased %d", sequence) }

func (r *Retention) finishErasure(ctx context.Context, e erased) error {
	is, err := r.Seal.Noted(ctx, done(e.sequence))
	if err == nil && !is {
		_, err = r.destroy(ctx, e)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.acts.erased {
		if r.acts.erased[i].sequence == e.sequence {
			r.acts.erased = append(r.acts.erased[:i:i], r.acts.erased[i+1:]...)
			break
		}
	}
	return nil
}

// destroy carries out a recorded erasure. The rows go when nothing can be opened any
// more that they could be made of again.
func (r *Retention) destroy(ctx context.Context, e erased) (rows int64, err error) {
	if err := r.Seal.Destroy(ctx, e.at.Time(), e.keys...); err != nil {
		return 0, err
	}
	if rows, err = r.Models.Erase(ctx, e.keys); err != nil {
		return rows, err
	}
	return rows, r.Seal.Note(ctx, done(e.sequence))
}

// refuse is a refusal for what somebody asked.
func refuse(kind domain.Kind, code, detail string, problems ...domain.Problem) error {
	return &domain.Refusal{Kind: kind, Code: code, Detail: detail, Problems: problems}
}

// held is the refusal that names the holds which stop something.
func held(what string, holds []Hold) error {
	names := make([]string, len(holds))
	for i, h := range holds {
		names[i] = h.String()
	}
	return refuse(domain.Conflict, "LEGAL_HOLD", fmt.Sprintf("%s, because of the legal hold %s. Nothing was recorded. Whoever set it can lift it: `keyledger audit hold lift`.",
		what, strings.Join(names, "; and ")))
}
