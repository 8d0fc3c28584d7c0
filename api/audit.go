package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

// AuditEvents are a page of the audit log.
type AuditEvents struct {
	Events     []AuditEvent `json:"events" nullable:"false"`
	NextCursor *string      `json:"next_cursor" doc:"Where the next page begins; null: everything up to now was looked at."`
	EndCursor  string       `json:"end_cursor" doc:"Behind everything that was looked at: ask again from here later."`
}

// Event is a fact: its envelope, section 4 of the contract.
type Event struct {
	ID         string       `json:"id" example:"evt_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Type       string       `json:"type" example:"key.revoked"`
	Version    int          `json:"version" doc:"Of the type's meaning." example:"1"`
	Time       events.Time  `json:"time"`
	Keyspace   string       `json:"keyspace"`
	Owner      string       `json:"owner"`
	Key        string       `json:"key"`
	KeyVersion uint64       `json:"key_version" doc:"Counts the facts of one key, owner or keyspace; 0 for acts and uses."`
	Actor      events.Actor `json:"actor"`
	Via        string       `json:"via" example:"api"`
	RequestID  string       `json:"request_id"`
	Command    string       `json:"command"`
	Data       any          `json:"data" doc:"By type and version; see the JSON Schemas of events."`
}

// AuditEvent is an event with its place.
type AuditEvent struct {
	Event
	Stream   string `json:"stream" example:"LEDGER"`
	Sequence uint64 `json:"sequence"`
	Line     int    `json:"line" doc:"In a page of uses, from 0."`
}

// CloudEvent is an event with its place in the JSON format of CloudEvents 1.0.
type CloudEvent struct {
	SpecVersion     string      `json:"specversion" enum:"1.0"`
	ID              string      `json:"id" example:"evt_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Source          string      `json:"source" example:"/keyledger/parcelbird"`
	Type            string      `json:"type" example:"key.revoked"`
	Subject         string      `json:"subject,omitempty" doc:"<owner>/<key>, <owner>, or the keyspace; absent: none of them." example:"org_1/key_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Time            events.Time `json:"time"`
	DataContentType string      `json:"datacontenttype" enum:"application/json"`
	Stream          string      `json:"stream" example:"LEDGER"`
	Sequence        string      `json:"sequence" example:"17"`
	Line            int         `json:"line" doc:"In a page of uses, from 0."`
	Data            AuditEvent  `json:"data"`
}

// cloudEvents is their JSON batch format.
const cloudEvents = "application/cloudevents-batch+json"

func (a *API) audit() {
	params := []*huma.Param{
		queryParam("keyspace", "Of this keyspace.", &huma.Schema{Type: "string"}),
		queryParam("owner", "Of this owner.", &huma.Schema{Type: "string"}),
		queryParam("key", "Of this key.", &huma.Schema{Type: "string"}),
		queryParam("endpoint", "Uses and refusals at this path, as it was recorded: without its query.", &huma.Schema{Type: "string", Examples: []any{"/v1/parcels"}}),
		queryParam("ip", "Uses and refusals from this address; of IPv6 also those folded by its /64. For operators and auditors.", &huma.Schema{Type: "string", Examples: []any{"203.0.113.7"}}),
		queryParam("type", "Of this type; several with commas.", &huma.Schema{Type: "string", Examples: []any{"key.revoked"}}),
		queryParam("except", "Not of this type; several with commas.", &huma.Schema{Type: "string", Examples: []any{"audit.read"}}),
		queryParam("stream", "Of this stream: LEDGER, what was changed; USAGE, what was asked for; OPS, acts around it. Several with commas.", &huma.Schema{Type: "string", Examples: []any{"LEDGER"}}),
		queryParam("code", "Requests that were decided so: VALID, or the code of the refusal.", &huma.Schema{Type: "string", Examples: []any{"EXPIRED"}}),
		queryParam("actor", "Caused by this actor: its id, or type:id.", &huma.Schema{Type: "string"}),
	}
	times := []*huma.Param{
		queryParam("from", "From this time on.", &huma.Schema{Type: "string", Format: "date-time"}),
		queryParam("to", "Before this time.", &huma.Schema{Type: "string", Format: "date-time"}),
		queryParam("limit", "At most this many in a page.", &huma.Schema{Type: "integer", Minimum: new(1.0), Maximum: new(float64(queries.MaxLimit)), Default: queries.DefaultLimit}),
	}
	order := queryParam("order", "Of a page: asc, oldest first; desc, newest first, of what was there when the first page was asked for. A cursor is for the order that it came with, but end_cursor is always for asc and for the tail.",
		&huma.Schema{Type: "string", Enum: []any{"asc", "desc"}, Default: "asc"})
	after := queryParam("after", "Go on behind this cursor.", &huma.Schema{Type: "string"})
	page := a.answer("A page; or everything, as NDJSON, CSV or CloudEvents.", a.schema(AuditEvents{}))
	page.Content["application/x-ndjson"] = &huma.MediaType{Schema: a.schema(AuditEvent{})}
	page.Content["text/csv"] = &huma.MediaType{Schema: &huma.Schema{Type: "string"}}
	page.Content[cloudEvents] = &huma.MediaType{Schema: &huma.Schema{Type: "array", Items: a.schema(CloudEvent{})}}
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "audit-events", Method: http.MethodGet, Path: "/v1/audit/events", Tags: []string{"Audit"},
			Summary:     "Read the audit log",
			Description: "Events from the streams themselves, oldest first, or newest first with order=desc. A page that is filtered by what no index knows may end before it is full, with a next_cursor. Personal data is opened for operators and auditors. Accept: application/x-ndjson, text/csv or application/cloudevents-batch+json answers everything that matches; cells of CSV never begin a formula, and of a batch of CloudEvents each event has its line. An export that cannot be finished ends with a broken connection, never as if it were whole. That the log was read is itself recorded: an export before its first byte, and how it ended after its last.",
			Parameters:  slices.Concat(params, times, []*huma.Param{order, after}),
			Responses:   map[string]*huma.Response{"200": page},
		},
		action: domain.AuditRead, absent: true,
	}, a.auditEvents)
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "audit-event", Method: http.MethodGet, Path: "/v1/audit/events/{stream}/{sequence}", Tags: []string{"Audit"},
			Summary:     "Read one event",
			Description: "What stands at a place of LEDGER, USAGE or OPS, what a fact of LEDGER changed, and what stands before and behind it about the same key in the same stream. That it was read is recorded.",
			Parameters: []*huma.Param{pathParam("stream", "LEDGER, USAGE or OPS, in any case.", "ledger"), pathParam("sequence", "Of the event.", "17"),
				queryParam("line", "In a page of uses, from 0.", &huma.Schema{Type: "integer", Minimum: new(0.0), Default: 0})},
			Responses: map[string]*huma.Response{"200": a.answer("The event.", a.schema(AuditRecord{}))},
		},
		action: domain.AuditRead, absent: true,
	}, a.auditEvent)
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "audit-tail", Method: http.MethodGet, Path: "/v1/audit/tail", Tags: []string{"Audit"},
			Summary:     "Follow the audit log",
			Description: "Server-Sent Events from now on, or from behind Last-Event-ID or after: the data of each is one event with its place.",
			Parameters:  slices.Concat(params, []*huma.Param{after, headerParam("Last-Event-ID", "Go on behind the event with this id.", &huma.Schema{Type: "string"})}),
			Responses: map[string]*huma.Response{"200": {Description: "Events as they happen.",
				Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: "string"}}}}},
		},
		action: domain.AuditRead, absent: true,
	}, a.auditTail)
}

// auditFilter reads the query of an audit call.
func (a *API) auditFilter(r *http.Request) (f queries.AuditFilter, asked map[string]string, err error) {
	asked = map[string]string{}
	given := r.URL.Query()
	for _, name := range []string{"keyspace", "owner", "key", "endpoint", "ip", "type", "except", "stream", "code", "actor", "from", "to", "order", "after", "limit"} {
		if value := given.Get(name); value != "" {
			asked[name] = value
		}
	}
	var wrong []Detail
	moment := func(name string) (at events.Time) {
		if s, ok := asked[name]; ok {
			t, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				wrong = append(wrong, Detail{Path: name, Message: "is not a time", Fix: "RFC 3339, such as 2026-01-18T12:00:00.000Z"})
			}
			at = events.At(t)
		}
		return at
	}
	f = queries.AuditFilter{Keyspace: asked["keyspace"], Owner: asked["owner"], Key: asked["key"], Endpoint: asked["endpoint"], IP: asked["ip"], Actor: asked["actor"],
		From: moment("from"), To: moment("to"), After: asked["after"]}
	// The facts of a key stand on one subject, which only its owner tells.
	if k := a.Ring.Key(f.Key); k != nil && f.Keyspace == "" && f.Owner == "" && callOf(r.Context()).authority.Reaches(k.Keyspace, k.Owner) {
		f.Keyspace, f.Owner = k.Keyspace, k.Owner
	}
	if s := asked["type"]; s != "" {
		f.Types = strings.Split(s, ",")
	}
	if s := asked["except"]; s != "" {
		f.Except = strings.Split(s, ",")
	}
	if s := asked["stream"]; s != "" {
		f.Streams = strings.Split(strings.ToUpper(s), ",")
	}
	if f.Code = asked["code"]; f.Code != "" && !slices.Contains(domain.Codes(), domain.Code(f.Code)) {
		wrong = append(wrong, Detail{Path: "code", Message: "is not how a request can be decided", Fix: "VALID, or a code of a refusal such as EXPIRED"})
	}
	if order := asked["order"]; order != "" && order != "asc" && order != "desc" {
		wrong = append(wrong, Detail{Path: "order", Message: "is no order", Fix: "asc or desc"})
	}
	if s, ok := asked["limit"]; ok {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > queries.MaxLimit {
			wrong = append(wrong, Detail{Path: "limit", Message: "is not a page size", Fix: fmt.Sprintf("1 to %d", queries.MaxLimit)})
		}
		f.Limit = n
	}
	if len(wrong) > 0 {
		return f, nil, unprocessable(wrong...)
	}
	if f.IP != "" && a.opener(callOf(r.Context())) == nil {
		return f, nil, problem(http.StatusForbidden, "FORBIDDEN", "Addresses are personal data: only operators and auditors see them.")
	}
	err = a.within(r.Context(), &f.Keyspace, &f.Owner, &f.Key, callOf(r.Context()).authority.Reach == nil)
	return f, asked, err
}

// streams reads the streams, USAGE with the help of the index.
func (a *API) streams() *queries.Audit { return queries.NewAudit(a.Ledger).Indexed(a.Index) }

// opener opens personal data for whoever may see it.
func (a *API) opener(c *call) queries.Opener {
	if a.Seal != nil && (c.authority.Role == domain.Operator || c.authority.Role == domain.Auditor) {
		return a.Seal
	}
	return nil
}

func (a *API) auditEvents(w http.ResponseWriter, r *http.Request, c *call) error {
	f, asked, err := a.auditFilter(r)
	if err != nil {
		return err
	}
	log := a.streams()
	newest := asked["order"] == "desc"
	if kind := exportType(r.Header.Get("Accept")); kind != "" {
		if newest {
			return unprocessable(Detail{Path: "order", Message: "is for pages: an export is oldest first", Fix: "leave it out"})
		}
		return a.export(w, r, kind, log.All(r.Context(), f, a.opener(c)), asked)
	}
	read := log.Events
	if newest {
		read = log.Newest
	}
	page, err := read(r.Context(), f, a.opener(c))
	if err != nil {
		return unread(err)
	}
	if err := a.read(r.Context(), "events", asked, len(page.Events)); err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, "application/json", struct {
		Events     []queries.AuditEvent `json:"events"`
		NextCursor *string              `json:"next_cursor"`
		EndCursor  string               `json:"end_cursor"`
	}{page.Events, more(page.NextCursor), page.End})
	return nil
}

// exportType is what of NDJSON, CSV and CloudEvents an Accept header asks for first.
func exportType(accept string) string {
	for part := range strings.SplitSeq(accept, ",") {
		kind, _, _ := strings.Cut(part, ";")
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "application/x-ndjson", "application/ndjson":
			return "application/x-ndjson"
		case "text/csv":
			return "text/csv"
		case cloudEvents:
			return cloudEvents
		case "application/json", "*/*":
			return ""
		}
	}
	return ""
}

// export answers everything. What is wrong before the first event is a problem;
// after that only a cut connection can say that the rest is missing.
//
// That somebody exports is on disk in OPS before the first byte leaves, so that neither
// a client that goes away nor a killed process takes something unseen; how much it was
// is a second act, "export.ended", whose filter names the first.
func (a *API) export(w http.ResponseWriter, r *http.Request, kind string, list iter.Seq2[queries.AuditEvent, error], asked map[string]string) error {
	next, stop := iter.Pull2(list)
	defer stop()
	first, err, ok := next()
	if ok && err != nil {
		return unread(err)
	}
	n := 0
	counted := func(yield func(queries.AuditEvent, error) bool) {
		for e, err := first, err; ok; e, err, ok = next() {
			if err == nil {
				n++
			}
			if !yield(e, err) {
				return
			}
		}
	}
	// An endpoint that was found stands in USAGE anyway.
	began, err := a.reading(r.Context(), "export", asked, 0, ok)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	switch kind {
	case "text/csv":
		w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
		err = queries.WriteCSV(w, counted)
	case cloudEvents:
		err = queries.WriteCloudEvents(w, counted)
	default:
		err = writeLines(w, counted)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), recordTime)
	defer cancel()
	ended := map[string]string{"export": "OPS " + strconv.FormatUint(began, 10), "outcome": "whole"}
	if err != nil {
		ended["outcome"] = "broken off"
	}
	for _, name := range []string{"keyspace", "owner", "key"} {
		if asked[name] != "" {
			ended[name] = asked[name]
		}
	}
	if err := errors.Join(err, a.read(ctx, "export.ended", ended, n)); err != nil {
		a.Log.LogAttrs(ctx, slog.LevelError, "export not finished", slog.String("request_id", callOf(r.Context()).requestID), slog.Any("error", err))
		panic(http.ErrAbortHandler)
	}
	return nil
}

func writeLines(w http.ResponseWriter, list iter.Seq2[queries.AuditEvent, error]) error {
	for e, err := range list {
		if err != nil {
			return err
		}
		line, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// unread is an error of reading the streams: nothing was to be recorded, so
// there is nothing to find out with an Idempotency-Key.
func unread(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return &readError{unavailable("LEDGER_UNAVAILABLE", "The event store cannot be reached: ask again.", 2), err}
	}
	return err
}

const recordTime = 5 * time.Second

// read records that somebody read the log.
func (a *API) read(ctx context.Context, what string, asked map[string]string, count int) error {
	_, err := a.reading(ctx, what, asked, count, count > 0)
	return err
}

// reading is read with what else is known of it: found says that the log holds something
// of what was asked for, and the answer is the act's sequence in OPS.
func (a *API) reading(ctx context.Context, what string, asked map[string]string, count int, found bool) (uint64, error) {
	c := callOf(ctx)
	filter := maps.Clone(asked)
	delete(filter, "after")
	delete(filter, "order")
	// People paste secrets, and what is recorded stays: of what the log does not hold
	// anyway it is recorded that it was asked for, not what it was; so of an address.
	hide := func(name string, known bool) {
		if filter[name] != "" && !known {
			filter[name] = "…"
		}
	}
	_, err := events.ParseID("key", filter["actor"])
	hide("actor", err == nil)
	hide("owner", slices.ContainsFunc(a.Ring.Keyspaces(), func(k *domain.Keyspace) bool {
		return a.Ring.Owner(k.Document.Keyspace, filter["owner"]) != nil
	}))
	hide("key", a.Ring.Key(filter["key"]) != nil)
	hide("endpoint", found) // then it stands in USAGE
	hide("ip", false)
	e := events.New(events.AuditRead{What: what, Filter: filter, Count: int64(count)}, a.Now())
	e.Keyspace = asked["keyspace"]
	if filter["owner"] != "…" {
		e.Owner = filter["owner"]
	}
	if filter["key"] != "…" {
		e.Key = filter["key"]
	}
	// What is asked about a key is about its owner and its keyspace.
	if k := a.Ring.Key(e.Key); k != nil && e.Keyspace+e.Owner == "" {
		e.Keyspace, e.Owner = k.Keyspace, k.Owner
	}
	if reach := c.authority.Reach; reach != nil {
		e.Keyspace, e.Owner = reach.Keyspace, reach.Owner
	}
	e.Actor, e.Via, e.RequestID = c.authority.Actor, c.via(), c.requestID
	return a.Ledger.AppendOps(ctx, e)
}

func (a *API) auditTail(w http.ResponseWriter, r *http.Request, c *call) error {
	f, asked, err := a.auditFilter(r)
	if err != nil {
		return err
	}
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		f.After = id
	}
	log := a.streams()
	if f.After == "" {
		if f.After, err = log.Now(r.Context()); err != nil {
			return unread(err)
		}
	}
	// A filter that makes no sense and a forged cursor are refused before the
	// answer has begun.
	probe := f
	probe.Limit = 1
	if _, err := log.Events(r.Context(), probe, a.opener(c)); err != nil {
		return unread(err)
	}
	if err := a.read(r.Context(), "tail", asked, 0); err != nil {
		return err
	}
	ctx, send, end := a.sendEvents(w, r)
	defer end()
	// An id without data makes a client resume here although nothing has happened.
	send("id: %s\n\n", f.After)
	for e, err := range log.Tail(ctx, f, a.opener(c)) {
		if err != nil {
			if ctx.Err() == nil {
				a.Log.LogAttrs(ctx, slog.LevelError, "tail ended", slog.String("request_id", c.requestID), slog.Any("error", err))
			}
			return nil
		}
		data, err := json.Marshal(e)
		if err != nil {
			return nil
		}
		send("id: %s\ndata: %s\n\n", e.Cursor, data)
		if ctx.Err() != nil {
			return nil
		}
	}
	return nil
}
