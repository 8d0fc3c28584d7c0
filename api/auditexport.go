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
}

type exportInput struct{ Body ExportRequest }

type exportOutput struct{ Body bundle.Head }

func (a *API) auditExport() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "begin-export", Method: http.MethodPost, Path: "/v1/audit/exports", Tags: []string{"Audit"},
			Summary:     "Begin an export that proves itself",
			Description: "Records the export on OPS and answers what is signed about it: all of a bundle but its leaves and events, which are read by streams. It is complete as of now. `keyledger audit export` writes the bundle, and `keyledger audit verify` checks it offline.",
		},
		action: domain.LogRead, status: http.StatusCreated,
	}, a.beginExport)
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
	return a.Queries.Exports(a.Ledger, a.AuditLog, a.Runner, a.Version), nil
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
	head, err := x.Begin(ctx, bundle.Scope{Keyspace: q.Keyspace, Owner: q.Owner, Key: q.Key}, q.From, q.To, a.Now(), func(e *events.Envelope) {
		e.Actor, e.Via, e.RequestID = c.authority.Actor, c.via(), c.requestID
	})
	if err != nil {
		return nil, logError(err)
	}
	return &exportOutput{head}, nil
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
