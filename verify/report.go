package verify

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// UseReport is the outcome of a use whose status was not known when it was
// decided.
type UseReport struct {
	DecisionID string
	Status     int // an HTTP status
	LatencyMS  int64
	CostMicros *int64 // nil: as recorded with the use
	Endpoint   string // empty: as recorded with the use
}

// Errors of [Verifier.Reportable].
var (
	ErrNoDecision  = errNoDecision
	ErrNotAdmitted = errors.New("this decision refused the request: there is no use whose outcome could be reported")
	ErrNoSuchKey   = errors.New("the key of this decision is not known here")
)

// Reportable is the key that a report is about; who may report for it is the
// caller's to check. It fails with [ErrNoDecision], [ErrNotAdmitted] or
// [ErrNoSuchKey].
func (v *Verifier) Reportable(decision string) (*domain.Key, error) {
	d, err := ParseDecisionID(decision)
	if err != nil {
		return nil, err
	}
	if !d.Admitted || d.Key == "" {
		return nil, ErrNotAdmitted
	}
	key := v.ring.Key(d.Key)
	if key == nil || key.Keyspace == events.RootKeyspace {
		return nil, ErrNoSuchKey
	}
	return key, nil
}

// Report records outcomes and returns when they are on the server's disk. It is
// idempotent by decision: a repeated report is dropped where this process
// remembers the first, and everywhere else it has the same event id, by which
// readers recognise it. All reports are checked first; with an error of
// [Verifier.Reportable] nothing is recorded.
func (v *Verifier) Report(ctx context.Context, reports []UseReport, via string) error {
	keys := make([]*domain.Key, len(reports))
	for i, u := range reports {
		key, err := v.Reportable(u.DecisionID)
		if err != nil {
			return fmt.Errorf("[%d].decision_id: %w", i, err)
		}
		keys[i] = key
	}
	if v.recorder == nil {
		return nil
	}
	now := v.now() // the clock that the decision was made by: readers compare the two
	for i, u := range reports {
		if !v.reported.add(u.DecisionID) {
			continue
		}
		if !v.recorder.pages.Record(v.recorder.report(keys[i], u, now, via)) {
			v.reported.remove(u.DecisionID)
			return fmt.Errorf("[%d]: %w", i, ErrAuditUnavailable)
		}
	}
	if err := v.recorder.pages.Flush(ctx); err != nil {
		return errors.Join(ErrAuditUnavailable, err)
	}
	return nil
}

// ReportLater records the outcome of an own use without waiting.
func (v *Verifier) ReportLater(d *Decision, u UseReport, via string) {
	if v.recorder == nil || d.Key == nil {
		return
	}
	u.DecisionID = d.ID()
	if v.reported.add(u.DecisionID) {
		v.recorder.pages.Record(v.recorder.report(d.Key, u, v.now(), via))
	}
}

func (r *Recorder) report(key *domain.Key, u UseReport, now time.Time, via string) events.Envelope {
	e := events.New(events.KeyUseReported{
		Decision: u.DecisionID, Status: u.Status, LatencyMS: u.LatencyMS, CostMicros: u.CostMicros, Endpoint: endpoint(u.Endpoint),
	}, now)
	if d, err := ParseDecisionID(u.DecisionID); err == nil {
		e.ID = reportID(u.DecisionID, d.Time)
	}
	e.Keyspace, e.Owner, e.Key = key.Keyspace, key.Owner, key.ID
	e.Actor, e.Via = events.Actor{Type: "system", ID: r.node}, via
	return e
}

// recentReports remembers the last maxReports decisions that were reported
// here. It spares the log repetitions; nothing depends on it.
type recentReports struct {
	mu    sync.Mutex
	known map[string]struct{}
	order []string // a ring once it is full
	next  int
}

const maxReports = 1 << 16

// add is false for one that is known.
func (r *recentReports) add(decision string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.known[decision]; ok {
		return false
	}
	if r.known == nil {
		r.known = make(map[string]struct{})
	}
	if len(r.order) < maxReports {
		r.order = append(r.order, decision)
	} else {
		delete(r.known, r.order[r.next])
		r.order[r.next] = decision
		r.next = (r.next + 1) % maxReports
	}
	r.known[decision] = struct{}{}
	return true
}

func (r *recentReports) remove(decision string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, decision)
}
