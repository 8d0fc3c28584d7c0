package api

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/merkle"
	"github.com/keyledger/keyledger/queries"
)

// ExportRequest asks for an export that proves itself.
type ExportRequest struct {
	Keyspace string      `json:"keyspace,omitempty" doc:"Of this keyspace; absent: everything." example:"parcelbird"`
	Owner    string      `json:"owner,omitempty" doc:"Of this owner and its keys."`
	Key      string      `json:"key,omitempty" doc:"Of this key."`
	From     events.Time `json:"from,omitempty" doc:"Bodies of events from this time on."`
	To       events.Time `json:"to,omitempty" doc:"And before this."`

	Witnessed bool `json:"witnessed,omitempty" doc:"End each stream where the newest signatures end that log_policy asks for; of everything only. What came later is counted and not in the export."`
}

// WitnessedExport is what witnesses have signed of an export.
type WitnessedExport struct {
	Complete  bool            `json:"complete" doc:"All streams have the signatures that the log's policy asks for, as of the export or later."`
	Streams   []WitnessedTree `json:"streams" nullable:"false" doc:"LEDGER, USAGE, OPS and FEED, in this order."`
	Witnesses []WitnessedLast `json:"witnesses" nullable:"false" doc:"Those of the policy, for each stream."`
}

// WitnessedTree is one stream of an export.
type WitnessedTree struct {
	Stream string `json:"stream" example:"LEDGER"`
	Size   int64  `json:"size" doc:"Events in the export's tree."`

	Checkpoint  string `json:"checkpoint,omitempty" doc:"The newest with all signatures, whose tree contains the export's; absent: there is none yet."`
	Consistency string `json:"consistency,omitempty" doc:"The proof of that: hashes in base64, a line each."`
}

// WitnessedLast is what a witness has signed last of a stream.
type WitnessedLast struct {
	Name   string      `json:"name" example:"witness.example.com"`
	Stream string      `json:"stream" example:"LEDGER"`
	Size   *int64      `json:"size" doc:"Events in that tree; null: none that is known."`
	Time   events.Time `json:"time" doc:"By the witness's clock; null likewise."`
}

type exportInput struct{ Body ExportRequest }

type exportOutput struct{ Body bundle.Head }

type witnessedInput struct {
	Sequence uint64 `path:"sequence" doc:"Of the export's event on OPS: manifest.exported.sequence." example:"17"`
	Ledger   int64  `query:"ledger" minimum:"0" doc:"Events in the export's tree of LEDGER: manifest.streams.size."`
	Usage    int64  `query:"usage" minimum:"0" doc:"Likewise of USAGE."`
	Ops      int64  `query:"ops" minimum:"0" doc:"Likewise of OPS."`
	Feed     int64  `query:"feed" minimum:"0" doc:"Likewise of FEED."`
}

type witnessedOutput struct{ Body WitnessedExport }

func (a *API) auditExport() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "begin-export", Method: http.MethodPost, Path: "/v1/audit/exports", Tags: []string{"Audit"},
			Summary:     "Begin an export that proves itself",
			Description: "Records the export on OPS and answers what is signed about it: all of a bundle but its leaves and events, which are read by streams. It is complete as of now. `keyledger audit export` writes the bundle, and `keyledger audit verify` checks it offline.",
		},
		action: domain.LogRead, status: http.StatusCreated,
	}, a.beginExport)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "witnessed-export", Method: http.MethodGet, Path: "/v1/audit/exports/{sequence}/checkpoints", Tags: []string{"Audit"},
			Summary:     "What witnesses have signed of an export",
			Description: "Witnesses come by themselves, so their signatures on what an export shows come after it: ask again until it is complete, and put checkpoints and consistency in the place of those in proofs. `keyledger audit export` does that.",
		},
		action: domain.LogRead, absent: true,
	}, a.witnessedExport)
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "read-export", Method: http.MethodGet, Path: "/v1/audit/exports/{sequence}", Tags: []string{"Audit"},
			Summary:     "Read one stream of an export",
			Description: "For each event a line with its leaf and, where its time is within the export's, a line with its stored bytes. What the export is about is what its event on OPS says. A reading that was cut off goes on behind the last place: after_sequence and after_line. One that cannot be finished ends with a broken connection, never as if it were whole.",
			Parameters: []*huma.Param{
				pathParam("sequence", "Of the export's event on OPS: manifest.exported.sequence.", "17"),
				queryParam("stream", "LEDGER, USAGE, OPS or FEED.", &huma.Schema{Type: "string"}),
				queryParam("last", "The stream's last sequence: manifest.streams.last.", &huma.Schema{Type: "integer", Format: "int64", Minimum: new(0.0)}),
				queryParam("after_sequence", "Go on behind this place.", &huma.Schema{Type: "integer", Format: "int64", Minimum: new(0.0)}),
				queryParam("after_line", "Likewise; in a page of uses, from 0.", &huma.Schema{Type: "integer", Minimum: new(0.0)}),
			},
			Responses: map[string]*huma.Response{"200": {Description: "Leaves and events.", Content: map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: "string"}}}}},
		},
		action: domain.LogRead, absent: true,
	}, a.readExport)
}

func (a *API) exports() (*queries.Exports, error) {
	if a.AuditLog == nil || a.Queries == nil || a.Runner == nil {
		return nil, unavailable("AUDIT_LOG_UNAVAILABLE", "This program does not keep the tree over the log: ask one that runs `keyledger serve`.", 30)
	}
	return a.Queries.Exports(a.Ledger, a.AuditLog, a.Runner, a.Version).Indexed(a.Index), nil
}

func (a *API) beginExport(ctx context.Context, in *exportInput) (*exportOutput, error) {
	x, err := a.exports()
	if err != nil {
		return nil, err
	}
	q := in.Body
	switch {
	case q.From != 0 && q.To != 0 && q.From >= q.To:
		return nil, unprocessable(Detail{Path: "to", Message: "is not after from", Fix: "send a later one"})
	case q.Owner != "" && q.Keyspace == "" && q.Key == "":
		return nil, unprocessable(Detail{Path: "keyspace", Message: "is missing", Fix: "the keyspace of the owner"})
	}
	owner := q.Owner
	if err := a.within(ctx, &q.Keyspace, &q.Owner, &q.Key, true); err != nil {
		return nil, err
	}
	if owner != "" && owner != q.Owner {
		return nil, domain.KeyNotFound()
	}
	c := callOf(ctx)
	by := func(e *events.Envelope) {
		e.Actor, e.Via, e.RequestID = c.authority.Actor, c.via(), c.requestID
	}
	scope := bundle.Scope{Keyspace: q.Keyspace, Owner: q.Owner, Key: q.Key}
	var head bundle.Head
	switch {
	case !q.Witnessed:
		head, err = x.Begin(ctx, scope, q.From, q.To, a.Now(), by)
	case scope != bundle.Scope{}:
		return nil, unprocessable(Detail{Path: "witnessed", Message: "is for exports of everything", Fix: "export a part without it, and wait until the witnesses have signed a later tree"})
	default:
		head, err = x.BeginWitnessed(ctx, q.From, q.To, a.Now(), by)
		if doubt, _ := errors.AsType[*merkle.Doubt](err); doubt == nil && errors.Is(err, merkle.ErrNotSealed) {
			return nil, unavailable("NOT_COSIGNED", "The witnesses have not signed every stream as log_policy asks: "+err.Error(), 60)
		}
	}
	if err != nil {
		return nil, logError(err)
	}
	return &exportOutput{head}, nil
}

func (a *API) witnessedExport(ctx context.Context, in *witnessedInput) (*witnessedOutput, error) {
	x, err := a.exports()
	if err != nil {
		return nil, err
	}
	sizes := []int64{in.Ledger, in.Usage, in.Ops, in.Feed}
	proofs, err := x.Witness(ctx, in.Sequence, sizes)
	if errors.Is(err, queries.ErrNoExport) {
		return nil, problem(http.StatusNotFound, "EXPORT_NOT_FOUND", "OPS has no export at this sequence.")
	}
	if err != nil {
		return nil, logError(err)
	}
	out := WitnessedExport{Complete: true, Witnesses: []WitnessedLast{}}
	for i, stream := range audit.Streams {
		out.Streams = append(out.Streams, WitnessedTree{stream, sizes[i], proofs[i].Checkpoint, proofs[i].Consistency})
		out.Complete = out.Complete && proofs[i].Checkpoint != ""
	}
	cosigners, err := x.Cosigners(ctx)
	if err != nil {
		return nil, logError(err)
	}
	for _, c := range cosigners {
		out.Witnesses = append(out.Witnesses, witnessedLast(c))
	}
	return &witnessedOutput{out}, nil
}

func witnessedLast(c merkle.Cosigner) WitnessedLast {
	last := WitnessedLast{Name: c.Name, Stream: c.Stream}
	if c.Size >= 0 {
		last.Size, last.Time = &c.Size, events.At(c.Time)
	}
	return last
}

func (a *API) readExport(w http.ResponseWriter, r *http.Request, c *call) error {
	x, err := a.exports()
	if err != nil {
		return err
	}
	var wrong []Detail
	number := func(name, value string) uint64 {
		n, err := strconv.ParseUint(value, 10, 63)
		if err != nil && value != "" {
			wrong = append(wrong, Detail{Path: name, Message: "is not a number", Fix: "a whole number from 0"})
		}
		return n
	}
	q := r.URL.Query()
	stream, ok := merkle.Stream(q.Get("stream"))
	if !ok {
		wrong = append(wrong, Detail{Path: "stream", Message: "is not a stream of the log", Fix: "LEDGER, USAGE, OPS or FEED"})
	}
	export := number("sequence", r.PathValue("sequence"))
	after := audit.Place{Stream: stream, Sequence: number("after_sequence", q.Get("after_sequence")), Line: int(min(number("after_line", q.Get("after_line")), 1<<30))}
	last := number("last", q.Get("last"))
	if len(wrong) > 0 {
		return unprocessable(wrong...)
	}
	m, records, err := x.Records(r.Context(), export, stream, after, last)
	if errors.Is(err, queries.ErrNoExport) {
		return problem(http.StatusNotFound, "EXPORT_NOT_FOUND", "OPS has no export at this sequence.")
	}
	if err != nil {
		return unread(err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	out := bufio.NewWriterSize(w, 64<<10)
	var line []byte
	for record, err := range records {
		if err == nil {
			leaf := audit.LeafOf(&record)
			line = bundle.AppendLine(line[:0], &leaf)
			if m.Within(leaf.Time) {
				line = append(append(line, record.Body...), '\n')
			}
			_, err = out.Write(line)
		}
		if err != nil {
			a.broken(r.Context(), c, err)
		}
	}
	if err := out.Flush(); err != nil {
		a.broken(r.Context(), c, err)
	}
	return nil
}

// broken ends an answer that has begun in the only way in which it cannot be taken
// for a whole one.
func (a *API) broken(ctx context.Context, c *call, err error) {
	a.Log.LogAttrs(ctx, slog.LevelError, "export not finished", slog.String("request_id", c.requestID), slog.Any("error", err))
	panic(http.ErrAbortHandler)
}
