// Package inspect says what was done to an installation: whether its streams are
// those that were signed, its checkpoints those that its key has signed, and its
// read models what the streams give. It asks NATS, PostgreSQL and the published
// directory themselves, beside the service or where that refuses to start.
//
//	r, err := inspect.Run(ctx, inspect.Options{…})   // Report: a Line for each thing looked at
//
// It promises that a PASS of a stream says: each of its events is the one that every
// checkpoint was signed over which NATS, PostgreSQL, the published directory and
// whoever gave [Evidence] remember; none is missing between the first and the last.
// Who has every right on all three, but not the log's key, cannot have it say PASS
// after a change, since no checkpoint of the changed history is signed. It changes
// nothing but for tables beside the live ones, as a comparison of read models does.
//
// How it can disappoint. Who has the master key has the log's key too, and can put
// another history in the place of this one, with everything that remembers it. Only
// what somebody else has kept shows that: give it as [Evidence]. Where nobody outside
// has kept anything, nothing shows it. What was signed last, up to a second ago, may
// lack an event that was written since: such events are counted as not signed yet.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/merkle"
)

// Options of [Run]. Conn and Pool are needed.
type Options struct {
	Conn      *nats.Conn
	Replicas  int // of each stream: 1 (also for 0) or 3
	Pool      *pgxpool.Pool
	Dir       string            // where the audit log is published; empty: nowhere
	HeadFiles []string          // in which processes remember how far the streams were
	Known     []ledger.Position // others that somebody remembers
	Master    *seal.Master      // nil: what only it opens is not looked at

	Keys     []note.Verifier // of the log, as somebody trusts them; none: those that the installation names
	Policy   *audit.Policy   // whose cosignatures must be there; nil: nobody's
	Evidence []Evidence      // what others have kept

	WithoutModels bool // read models are not compared

	Progress func(what string, done, total int64) // may be nil
	Log      *slog.Logger                         // nil: slog.Default()
}

// Status of a line.
const (
	Pass    = "PASS"
	Fail    = "FAIL"
	Unknown = "UNKNOWN" // it could not be looked at, and why
)

// What was found, in one word.
const (
	Trimmed       = "trimmed"       // the beginning or the end of a stream is gone
	Missing       = "missing"       // messages in between are gone, or cannot be read
	Recreated     = "recreated"     // the stream is another one, or another history stands in it
	Edited        = "edited"        // an event is not the one that was signed
	Row           = "row"           // a read model does not say what the stream says
	Checkpoint    = "checkpoint"    // what somebody remembers as signed was not, or is gone
	Rewritten     = "rewritten"     // what is shown now does not fit what was shown and signed before
	Configuration = "configuration" // something is set so that it can drop or change history
)

// Line is the outcome of one check.
type Line struct {
	Status  string       `json:"status"`
	Subject string       `json:"subject"` // a stream, a projection, a file
	Finding string       `json:"finding,omitempty"`
	Said    string       `json:"said"`
	Place   *audit.Place `json:"place,omitempty"` // the first that is wrong, where it has one
}

// Report is the outcome of all checks.
type Report struct {
	Pass  bool   `json:"pass"`
	Log   string `json:"log"` // the name in its key
	Lines []Line `json:"lines"`
}

// Failed says whether something was found, which is more than that something could
// not be looked at.
func (r *Report) Failed() bool {
	return slices.ContainsFunc(r.Lines, func(l Line) bool { return l.Status == Fail })
}

type run struct {
	Options
	ledger *ledger.Ledger
	memory *merkle.Memory
	name   string          // of the log
	keys   []note.Verifier // that count
	report Report
	doubts map[string]bool // streams that failed
	pruned []pruning       // that OPS records, in order

	exported  map[string][]*memory // trees that OPS records of exports, by stream
	evidences []evidence
}

// pruning is what OPS says of how USAGE begins.
type pruning struct {
	events.UsagePruned
	actor events.Actor
}

// Run looks at everything. It fails where NATS or PostgreSQL cannot be asked; what is
// found is the report.
func Run(ctx context.Context, o Options) (Report, error) {
	r := &run{Options: o, doubts: map[string]bool{}, exported: map[string][]*memory{}, report: Report{Lines: []Line{}}}
	if r.Progress == nil {
		r.Progress = func(string, int64, int64) {}
	}
	if r.Log == nil {
		r.Log = slog.Default()
	}
	js, err := jetstream.New(o.Conn)
	if err != nil {
		return r.report, err
	}
	// What remembers is read before the streams: those only grow.
	if r.memory, err = merkle.ReadMemory(ctx, js, o.Pool, o.Dir, o.Master); err != nil {
		return r.report, err
	}
	if err := r.streams(ctx); err != nil {
		return r.report, err
	}
	defer r.ledger.Close()
	if err := r.trust(); err != nil {
		return r.report, err
	}
	// OPS first: it says which keys followed which, and what was pruned.
	for _, stream := range []string{events.Ops, events.Ledger, events.Usage, events.Feed} {
		if err := r.stream(ctx, stream); err != nil {
			return r.report, err
		}
	}
	if err := r.receipts(ctx); err != nil {
		return r.report, err
	}
	if !r.WithoutModels {
		if err := r.models(ctx, js); err != nil {
			return r.report, err
		}
	}
	r.report.Pass = !slices.ContainsFunc(r.report.Lines, func(l Line) bool { return l.Status != Pass })
	return r.report, nil
}

func (r *run) line(status, subject, finding string, place *audit.Place, format string, args ...any) {
	r.report.Lines = append(r.report.Lines, Line{status, subject, finding, fmt.Sprintf(format, args...), place})
}

func (r *run) fail(stream, finding string, place *audit.Place, format string, args ...any) {
	r.doubts[stream] = true
	r.line(Fail, stream, finding, place, format, args...)
}

// streams opens the streams as they are, and notes what a start of the service would
// refuse.
func (r *run) streams(ctx context.Context) error {
	known := slices.Clone(r.Known)
	for _, read := range []func(context.Context, *pgxpool.Pool) ([]ledger.Position, error){projections.Positions, merkle.Known} {
		more, err := read(ctx, r.Pool)
		if err != nil {
			return err
		}
		known = append(known, more...)
	}
	var findings []ledger.Finding
	var err error
	r.ledger, findings, err = ledger.Inspect(ctx, r.Conn, ledger.Options{Replicas: r.Replicas, Known: known, Log: r.Log}, r.HeadFiles...)
	if err != nil {
		return err
	}
	for i := 0; i < len(findings); {
		f, n := findings[i], 1
		for i+n < len(findings) && findings[i+n].Stream == f.Stream && findings[i+n].Kind() == f.Kind() {
			n++
		}
		said := f.Problem
		if n > 1 {
			said += fmt.Sprintf(" (and %d more say so)", n-1)
		}
		r.fail(f.Stream, finding(f.Kind()), nil, "%s. %s", said, f.Means)
		i += n
	}
	return nil
}

func finding(kind ledger.Kind) string {
	switch kind {
	case ledger.KindBegins, ledger.KindEnds:
		return Trimmed
	case ledger.KindGone, ledger.KindOther:
		return Recreated
	case ledger.KindSettings:
		return Configuration
	}
	return Missing
}

// trust decides which keys count.
func (r *run) trust() error {
	const subject = "log key"
	named := map[string]bool{}
	var own []note.Verifier
	for _, k := range r.memory.Keys {
		v, err := note.NewVerifier(k.Verifier)
		if err == nil {
			own = append(own, v)
		}
		named[k.Verifier] = true
	}
	if r.keys = r.Keys; len(r.keys) == 0 {
		r.keys = own
	}
	if len(r.keys) == 0 {
		r.line(Fail, subject, Checkpoint, nil, "the bucket %s has no key of the log, and none was given: nothing that was signed can be checked. Give the key with --log-key", merkle.Bucket)
		return nil
	}
	r.name = r.keys[0].Name()
	r.report.Log = r.name
	failed := len(r.report.Lines)
	switch {
	case !r.memory.Bucket:
		r.line(Fail, subject, Checkpoint, nil, "the bucket %s, where the key and the newest checkpoints are, is gone", merkle.Bucket)
	case len(r.memory.Keys) == 0:
		r.line(Fail, subject, Checkpoint, nil, "the bucket %s has no key of the log", merkle.Bucket)
	case r.memory.Doubt != nil:
		r.line(Fail, subject, Checkpoint, nil, "%v", r.memory.Doubt)
	}
	for _, k := range r.memory.Published {
		if len(named) > 0 && !named[k] {
			r.line(Fail, subject, Checkpoint, nil, "the published directory names the key %s, which the bucket %s does not have: one of them was put there by somebody else", k, merkle.Bucket)
		}
	}
	if len(r.report.Lines) == failed && len(r.Keys) == 0 {
		r.line(Pass, subject, "", nil, "%s, as the installation itself names it: give the one that you were given with --log-key", r.memory.Keys[0].Verifier)
	}
	return nil
}

// successors adds the keys that a known one has named, and says whether the key that
// signs now is one of them.
func (r *run) successors(statements []string) {
	for _, s := range statements {
		if _, v, err := audit.OpenSuccessor([]byte(s), r.keys...); err == nil && !r.has(v) {
			r.keys = append(r.keys, v)
		}
	}
	if len(r.Keys) == 0 || len(r.memory.Keys) == 0 {
		return
	}
	current := r.memory.Keys[0].Verifier
	v, err := note.NewVerifier(current)
	if err != nil || !r.has(v) {
		r.line(Fail, "log key", Checkpoint, nil, "the log signs with %s, which is not the key that was given, nor one that it named as the next: the key was replaced", current)
		return
	}
	r.line(Pass, "log key", "", nil, "%s is the key that was given, or follows it", current)
}

func (r *run) has(v note.Verifier) bool {
	return slices.ContainsFunc(r.keys, func(k note.Verifier) bool { return k.Name() == v.Name() && k.KeyHash() == v.KeyHash() })
}

// refused is what a reader of a stream found, or nil where it says nothing about the
// stream.
func refused(err error) *ledger.Finding {
	if x, ok := errors.AsType[*ledger.RefusalError](err); ok && len(x.Findings) > 0 {
		return &x.Findings[0]
	}
	return nil
}
