package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/events/wal"
)

// Recorder writes what was decided to USAGE: admitted requests one by one, in
// pages; refusals counted by second, shortly after the second is over. It is safe
// for concurrent use and may serve several verifiers of one process.
//
// With a write-ahead log ([OpenRecorder]) what was recorded or counted survives
// kill -9, and a power cut but for the last 50 ms: the next recorder of the same
// directory writes it. Without one ([NewRecorder], for a process that has no
// directory) the end of the process loses what has not been written yet, some
// milliseconds of uses and a second of refusals.
type Recorder struct {
	node    string
	pages   *ledger.Pages
	keys    *seal.Keys
	folds   *folds
	wal     *wal.Log // nil: there is none
	log     *slog.Logger
	lines   sync.Map // keyspace -> *lines
	stop    context.CancelFunc
	running sync.WaitGroup
}

// RecorderOptions change how a [Recorder] writes; the zero value is what the
// contract says.
type RecorderOptions struct {
	Memory  int                                              // about so many bytes of uses wait while NATS is away; 0: 64 MiB
	Written func(keyspace string, sequence uint64, uses int) // told of every page that is on the server's disk; may be nil
	Log     *slog.Logger                                     // nil: slog.Default()

	// Of [OpenRecorder] alone: where the write-ahead logs of this ledger's
	// processes on this machine are, the key that wraps theirs, and the keyspaces
	// in which a loss is declared that nobody can say the keyspace of.
	Dir       string
	Master    seal.Master
	Keyspaces []string
}

// NewRecorder starts a recorder for a node, without a write-ahead log. The name is
// a subject token, and of no other running process. Personal data is sealed with
// keys. [Recorder.Close] MUST be called.
func NewRecorder(l *ledger.Ledger, keys *seal.Keys, node string, o RecorderOptions) *Recorder {
	return newRecorder(l, keys, node, o, nil)
}

func newRecorder(l *ledger.Ledger, keys *seal.Keys, node string, o RecorderOptions, log *wal.Log) *Recorder {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	r := &Recorder{node: node, keys: keys, wal: log, log: o.Log}
	r.pages = ledger.NewPages(l, node, ledger.PagesOptions{
		Memory: o.Memory, Prepare: r.keys.Prepare, Uses: r.uses, Written: o.Written, Log: o.Log, WAL: log, Keep: keep,
	})
	r.folds = newFolds(node, func(e events.Envelope) { r.pages.Record(r.fold(e)) })
	r.folds.log, r.folds.kept = log, r.recordKept
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.running.Go(func() { r.flushSeconds(ctx) })
	return r
}

// settled is how long after a second its refusals are written: whoever decided
// in it has counted by then.
const settled = 50 * time.Millisecond

// always is after every second.
var always = time.Unix(1<<40, 0)

func (r *Recorder) flushSeconds(ctx context.Context) {
	for {
		now := time.Now()
		r.folds.flush(now.Add(-settled))
		next := time.NewTimer(now.Truncate(time.Second).Add(time.Second + settled).Sub(now))
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-next.C:
		}
	}
}

// Node is the name under which this process records.
func (r *Recorder) Node() string { return r.node }

// Held is about how many facts wait in memory to be written.
func (r *Recorder) Held() int { return r.pages.Held() }

// Flush returns when everything recorded before the call is on the server's
// disk, refusals of the current second included, or with the error of ctx.
// A second that is flushed before it is over is counted in two facts.
func (r *Recorder) Flush(ctx context.Context) error {
	r.folds.flush(always)
	return r.pages.Flush(ctx)
}

// ErrUnprotected says that a killed process, or a power cut, would lose what is
// recorded.
var ErrUnprotected = errors.New("the last uses are not safe")

// Unprotected is nil where a killed process loses nothing and a power cut no more
// than 50 ms, else an [ErrUnprotected] that says why.
func (r *Recorder) Unprotected() error {
	if r.wal == nil {
		return fmt.Errorf("%w: there is no write-ahead log, a killed process loses the uses of its last milliseconds and the refusals of its last second", ErrUnprotected)
	}
	if err := r.wal.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnprotected, err)
	}
	return nil
}

// LogBytes is what the write-ahead log takes on disk.
func (r *Recorder) LogBytes() int64 {
	if r.wal == nil {
		return 0
	}
	return r.wal.Bytes()
}

// Close writes what is left and stops. When ctx ends first, its error says how
// much was lost; nothing where there is a write-ahead log, which then stays.
func (r *Recorder) Close(ctx context.Context) error {
	r.stop()
	r.running.Wait()
	r.folds.flush(always)
	err := r.pages.Close(ctx)
	if r.wal == nil {
		return err
	}
	open, failed := r.wal.Close()
	if open > 0 && failed == nil {
		r.log.Warn("not everything has reached the event store: the next start records it", "log", r.wal.Dir(), "error", err)
		return nil
	}
	return errors.Join(err, failed)
}

// Use is what is told of an admitted request besides the decision.
type Use struct {
	Via        string // gateway, api, authz, …
	RequestID  string // req_…
	UserAgent  string
	Status     int           // that the caller was answered with; 0: not known yet
	Latency    time.Duration // 0: not known
	CostMicros int64
}

// Record makes the one key.used of an admitted request, without waiting: it is
// written within milliseconds. It is false when memory is full because NATS has
// been away for long; the use is then declared as a gap. For a decision that
// admits without a key (a public route), and for a refusal, there is nothing to
// record.
func (v *Verifier) Record(d *Decision, req *domain.Request, u Use) bool {
	if v.recorder == nil || !d.Valid || d.Key == nil {
		return true
	}
	return v.recorder.pages.RecordUse(d.Key.Keyspace, v.recorder.use(d, req, &u))
}

// ErrAuditUnavailable says that a use could not be made durable. The request
// MUST be answered with AUDIT_UNAVAILABLE; [Verifier.RecordDurably] has recorded
// that it was.
var ErrAuditUnavailable = errors.New("the use could not be made durable")

// RecordDurably is [Verifier.Record], and returns when the use is on the
// server's disk: all requests that wait at the same time share one write.
func (v *Verifier) RecordDurably(ctx context.Context, d *Decision, req *domain.Request, u Use) error {
	if v.recorder == nil || !d.Valid || d.Key == nil {
		return nil
	}
	err := v.recorder.pages.RecordUseDurable(ctx, d.Key.Keyspace, v.recorder.use(d, req, &u))
	if err != nil {
		v.giveBack(d)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ledger.ErrFull) || errors.Is(err, ledger.ErrClosed):
		v.recorder.folds.deny(d.Key, domain.CodeAuditUnavailable, req.Path, d.Time)
	default:
		// It waits in memory and will be written: as a use that ended with the
		// refusal, so that nobody takes it for a request that was served.
		a := d.AnswerAs(domain.CodeAuditUnavailable, req, u.RequestID)
		v.recorder.pages.Record(v.recorder.report(d.Key, UseReport{DecisionID: d.ID(), Status: a.Status, CostMicros: new(int64(0))}, d.Time, u.Via))
	}
	return errors.Join(ErrAuditUnavailable, err)
}

// refused counts a refusal.
func (r *Recorder) refused(d *Decision, req *domain.Request) {
	if d.Code == domain.CodeRateLimited {
		r.folds.limit(d.Key, &d.taken.Limits[d.taken.Refused], d.Time)
		return
	}
	if d.Key != nil {
		r.folds.deny(d.Key, d.Code, req.Path, d.Time)
		return
	}
	if d.Keyspace == nil {
		return // no such keyspace: there is no page it could stand in
	}
	r.folds.reject(req.Keyspace, d.Code, source(req.IP), d.Time)
}

func (r *Recorder) fold(e events.Envelope) events.Envelope {
	e.Actor, e.Via = events.Actor{Type: "system", ID: r.node}, "verifier"
	if e.Key != "" {
		e.Actor = events.Actor{Type: "key", ID: e.Key}
	}
	return e
}

func (r *Recorder) recordKept(e events.Envelope, t *wal.Tally) {
	if errors.Is(r.pages.RecordKept(r.fold(e), t.Ref()), ledger.ErrFull) {
		// It is declared as lost, and must not come back from the log.
		t.Set(0, 0, 0, 0)
		r.wal.Done(t.Ref(), 1)
	}
}
