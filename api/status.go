package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/merkle"
	"github.com/keyledger/keyledger/verify/applied"
)

// Status is how the service is doing.
type Status struct {
	Version     string             `json:"version"`
	Time        events.Time        `json:"time"`
	Streams     []StreamStatus     `json:"streams" nullable:"false"`
	Projections []ProjectionStatus `json:"projections" nullable:"false" doc:"Empty where this program has no PostgreSQL."`
	Verifiers   []VerifierStatus   `json:"verifiers" nullable:"false" doc:"Those that this node knows of."`
	Scrub       *merkle.ScrubState `json:"scrub,omitempty" doc:"How far the streams have been read again and compared with what was signed, and what was found; absent where this program does not know."`

	Webhooks []WebhookStatus `json:"webhooks,omitempty" doc:"How the deliveries to each webhook are; absent where there are none."`

	Sinks []SinkStatus `json:"sinks,omitempty" doc:"The systems that the settings of serve name; absent where there are none."`

	Revocations *RevocationStatus `json:"revocations,omitempty" doc:"How long verifiers still accepted what was revoked last; absent where this program does not know."`

	RevocationLatencyMS *float64 `json:"revocation_latency_ms" doc:"How long after its decision the last revocation took effect on this node; null before the first one since it started." example:"1.4"`
}

// StreamStatus is one stream.
type StreamStatus struct {
	Stream string `json:"stream" example:"LEDGER"`
	Head   uint64 `json:"head" doc:"Its last sequence."`

	First    uint64 `json:"first" doc:"Its first sequence, behind what was pruned; behind the last one where it is empty." example:"1"`
	Messages uint64 `json:"messages" doc:"That it holds. In USAGE a message is a page of many uses."`
	Bytes    uint64 `json:"bytes" doc:"That it takes on one server."`

	Doubt string `json:"doubt,omitempty" doc:"Why it is refused, where it is."`

	Signed   *int64 `json:"signed,omitempty" doc:"Events in its newest checkpoint; absent where there is none here."`
	Unsigned string `json:"unsigned,omitempty" doc:"Why nothing is signed, where it is so."`

	Signing *Signing `json:"signing,omitempty" doc:"How this process signs it and publishes that; absent where it does not."`
}

// Signing is how the audit log over a stream is doing.
type Signing struct {
	SignedAt         events.Time     `json:"signed_at" doc:"When its newest checkpoint was signed; null: not known."`
	UnsignedMessages uint64          `json:"unsigned_messages" doc:"Of the stream, behind that checkpoint."`
	UnsignedLeaves   int64           `json:"unsigned_leaves" doc:"Of the tree, behind that checkpoint."`
	Failures         uint64          `json:"failures" doc:"Attempts to sign that met an error or a doubt, since this process started."`
	Failed           string          `json:"failed,omitempty" doc:"What the last attempt to sign or to publish met."`
	Published        *int64          `json:"published" doc:"Events in the checkpoint of the published directory; null: none is known."`
	PublishFailures  uint64          `json:"publish_failures" doc:"Attempts to publish that met an error, since this process started."`
	Witnesses        []WitnessedLast `json:"witnesses" nullable:"false" doc:"Those of log_policy, with what each has cosigned last."`
}

// RevocationStatus is of the last thousand revocations, and the like, that this node
// has recorded: until the slowest verifier that confirmed refused.
type RevocationStatus struct {
	Measured int      `json:"measured" doc:"How many the figures are made of."`
	P50MS    *float64 `json:"p50_ms"`
	P99MS    *float64 `json:"p99_ms"`
	MaxMS    *float64 `json:"max_ms"`
	Waiting  int      `json:"waiting" doc:"Not recorded yet."`
	Dropped  uint64   `json:"dropped" doc:"That stay unmeasured since this process started: there were too many, or OPS was away for too long."`
}

// VerifierStatus is one verifier.
type VerifierStatus struct {
	Node     string `json:"node"`
	Program  string `json:"program,omitempty" doc:"serve, gateway, dev, or verifier for a service that verifies in process."`
	State    string `json:"state" enum:"current,behind,silent,stale" doc:"current: it has applied everything, or will in a moment. behind: it has lost LEDGER for longer than a few seconds. silent: it is not heard. stale: behind or silent for so long that it answers STATE_TOO_STALE, if it runs."`
	Sequence uint64 `json:"sequence" doc:"The last fact of LEDGER that it has applied."`
	Lag      uint64 `json:"lag" doc:"Facts that it has not applied yet."`
	LostMS   int64  `json:"lost_ms" doc:"How long ago its state was last known to be complete; about a second while all is well."`
	Held     int    `json:"held" doc:"Uses in memory that wait to be written."`

	WindowMS    int64       `json:"window_ms,omitempty" doc:"Its stale window: after so long without LEDGER it answers STATE_TOO_STALE."`
	SeenAt      events.Time `json:"seen_at" doc:"When it was last heard; it tells how far it is every second."`
	ClockMS     *float64    `json:"clock_ms,omitempty" doc:"Its clock against this node's, less what the message took."`
	Unconfirmed uint64      `json:"unconfirmed" doc:"Revocations that it did not confirm in time, since this node started."`
}

// ProjectionStatus is how far a read model is.
type ProjectionStatus struct {
	Name           string      `json:"name" example:"keys_v1"`
	Stream         string      `json:"stream" example:"LEDGER"`
	Position       uint64      `json:"position"`
	Head           uint64      `json:"head"`
	Lag            uint64      `json:"lag" doc:"Messages that it has not applied yet."`
	State          string      `json:"state" enum:"starting,running,standby,waiting,stopped"`
	Error          string      `json:"error" doc:"Why it waits or has stopped, and what to do."`
	FailedSequence uint64      `json:"failed_sequence" doc:"The record that it cannot apply; 0: none."`
	MovedAt        events.Time `json:"moved_at"`
	Rebuilds       int64       `json:"rebuilds"`
}

// ProjectionList are the read models.
type ProjectionList struct {
	Projections []ProjectionStatus `json:"projections" nullable:"false"`
}

// Rebuilt is how a projection compares with its rebuild.
type Rebuilt struct {
	projections.RebuildResult
	Equal bool `json:"equal"`
}

func (a *API) status() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "status", Method: http.MethodGet, Path: "/v1/status", Tags: []string{"Operation"},
			Summary: "How the service is doing", Description: "Heads of the streams, positions and lag of the read models, and what verifiers have applied.",
		},
		action: domain.Operate,
	}, a.getStatus)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-projections", Method: http.MethodGet, Path: "/v1/projections", Tags: []string{"Operation"},
			Summary: "How far the read models are", Description: "Position, lag and state of every projection.",
		},
		action: domain.Operate,
	}, a.listProjections)
	for _, kind := range []struct {
		name, summary, text string
		compare             bool
	}{
		{"rebuild", "Rebuild a read model", "Builds a projection from the first record beside the live one, compares both by row hash, and switches. The live one answers until then.", false},
		{"compare", "Compare a read model with its rebuild", "Rebuilds a projection from the first record, compares it with the live one by row hash, and throws it away.", true},
	} {
		params := []*huma.Param{pathParam("name", "The projection's name.", "keys_v1")}
		if !kind.compare {
			params = append(params, queryParam("compare_only", "true: the same as compare.", &huma.Schema{Type: "boolean"}))
		}
		a.stream(route{
			Operation: huma.Operation{
				OperationID: kind.name + "-projection", Method: http.MethodPost, Path: "/v1/projections/{name}/" + kind.name, Tags: []string{"Operation"},
				Summary: kind.summary, Description: kind.text + " Answers lines of {done, total} while it works, and at the end one with result, or with error, a problem document.",
				Parameters: params,
				Responses: map[string]*huma.Response{"200": {Description: "Progress, then the result.", Content: map[string]*huma.MediaType{
					"application/x-ndjson": {Schema: a.schema(RebuildLine{})}}}},
			},
			action: domain.Operate, absent: true,
		}, func(w http.ResponseWriter, r *http.Request, c *call) error { return a.rebuild(w, r, c, kind.compare) })
	}
}

// RebuildLine is one line of a rebuild's answer.
type RebuildLine struct {
	Done   *uint64  `json:"done,omitempty" doc:"Messages read."`
	Total  *uint64  `json:"total,omitempty" doc:"Messages to be read."`
	Result *Rebuilt `json:"result,omitempty"`
	Error  *Problem `json:"error,omitempty"`
}

// statusTime bounds what a status asks of others.
const statusTime = 3 * time.Second

type statusOutput struct{ Body Status }

func (a *API) getStatus(ctx context.Context, _ *struct{}) (*statusOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	s := Status{Version: a.Version, Time: events.At(a.Now()), Projections: []ProjectionStatus{}, Verifiers: []VerifierStatus{}}
	heads := map[string]uint64{}
	for _, name := range []string{events.Ledger, events.Usage, events.Feed, events.Ops, events.DLQ} {
		extent, err := a.Ledger.Extent(ctx, name)
		if err != nil {
			return nil, unread(err)
		}
		heads[name] = extent.Last
		status := StreamStatus{Stream: name, Head: extent.Last, First: extent.First, Messages: extent.Messages, Bytes: extent.Bytes}
		if doubt := a.Ledger.Err(name); doubt != nil {
			status.Doubt = doubt.Error()
		}
		s.Streams = append(s.Streams, status)
	}
	if a.AuditLog != nil {
		a.signed(ctx, s.Streams)
		s.Scrub = new(a.AuditLog.ScrubState())
	}
	if a.Runner != nil {
		list, err := a.projectionStatus(ctx)
		if err != nil {
			return nil, err
		}
		s.Projections = list
	}
	if a.Webhooks != nil && a.Deliveries != nil {
		list, err := a.webhookStatus(ctx, heads[events.Feed])
		if err != nil {
			return nil, unread(err)
		}
		s.Webhooks = list
	}
	if a.Sinks != nil {
		list, err := a.sinkStatus(ctx, heads[events.Feed])
		if err != nil {
			return nil, unread(err)
		}
		s.Sinks = list
	}
	s.Verifiers = a.verifierStatus(heads[events.Ledger])
	if a.Verifiers != nil {
		s.Revocations = revocationStatus(a.Verifiers.Summary())
	}
	if latency, ok := a.Ring.RevocationLatency(); ok {
		s.RevocationLatencyMS = new(float64(latency.Microseconds()) / 1000)
	}
	return &statusOutput{s}, nil
}

// verifierStatus lists this node and those that it hears.
func (a *API) verifierStatus(head uint64) []VerifierStatus {
	list, now := []VerifierStatus{}, a.Now()
	self := ""
	if a.Verifier != nil {
		sequence := a.Ring.Sequence()
		v := VerifierStatus{State: "current", Sequence: sequence, LostMS: a.Verifier.Lost().Milliseconds(), Lag: max(head, sequence) - sequence, SeenAt: events.At(now)}
		if a.Recorder != nil {
			v.Node, v.Held = a.Recorder.Node(), a.Recorder.Held()
			self = v.Node
		}
		if a.Verifier.Lost() > lostForLong {
			v.State = "behind"
		}
		list = append(list, v)
	}
	if a.Verifiers == nil {
		return list
	}
	for _, o := range a.Verifiers.Verifiers(time.Now()) {
		if o.Node == self {
			list[0].Program, list[0].WindowMS, list[0].Unconfirmed = o.Program, o.Window.Milliseconds(), o.Unconfirmed
			continue
		}
		v := VerifierStatus{Node: o.Node, Program: o.Program, State: "current", Sequence: o.Sequence, Lag: max(head, o.Sequence) - o.Sequence,
			LostMS: o.Lost.Milliseconds(), Held: o.Held, WindowMS: o.Window.Milliseconds(), SeenAt: events.At(o.Heard),
			ClockMS: millis(o.Clock.Microseconds()), Unconfirmed: o.Unconfirmed}
		switch {
		case o.Window > 0 && o.Lost > o.Window:
			v.State = "stale"
		case o.Silent:
			v.State = "silent"
		case o.Lost > lostForLong:
			v.State = "behind"
		}
		list = append(list, v)
	}
	return list
}

// lostForLong is from when on a verifier is behind: while all is well it is about a
// second.
const lostForLong = 5 * time.Second

func revocationStatus(s applied.Summary) *RevocationStatus {
	r := &RevocationStatus{Measured: s.Measured, Waiting: s.Waiting, Dropped: s.Dropped}
	if s.Measured > 0 {
		r.P50MS, r.P99MS, r.MaxMS = millis(s.P50.Microseconds()), millis(s.P99.Microseconds()), millis(s.Max.Microseconds())
	}
	return r
}

// signed fills in how far each stream is signed.
func (a *API) signed(ctx context.Context, streams []StreamStatus) {
	cosigners, err := a.AuditLog.Cosigners(ctx)
	if err != nil {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "the status does not say what witnesses have signed", slog.Any("error", err))
	}
	for _, state := range a.AuditLog.State() {
		for i := range streams {
			if streams[i].Stream != state.Stream {
				continue
			}
			if state.Size >= 0 {
				streams[i].Signed = &state.Size
			}
			if state.Doubt != nil {
				streams[i].Unsigned = state.Doubt.Error()
			}
			signing := Signing{SignedAt: state.SignedAt, UnsignedLeaves: state.Unsigned, UnsignedMessages: max(streams[i].Head, state.Sequence) - state.Sequence,
				Failures: state.Failures, PublishFailures: state.PublishFailures, Witnesses: []WitnessedLast{}}
			if state.Failed != nil {
				signing.Failed = state.Failed.Error()
			}
			if state.Published >= 0 {
				signing.Published = &state.Published
			}
			for _, c := range cosigners {
				if c.Stream == state.Stream {
					signing.Witnesses = append(signing.Witnesses, witnessedLast(c))
				}
			}
			streams[i].Signing = &signing
		}
	}
}

func (a *API) projectionStatus(ctx context.Context) ([]ProjectionStatus, error) {
	found, err := a.Runner.Status(ctx)
	if err != nil {
		return nil, unread(err)
	}
	list := []ProjectionStatus{}
	for _, p := range found {
		list = append(list, ProjectionStatus{p.Name, p.Stream, p.Position, p.Head, p.Lag, p.State, p.Error, p.FailedSequence, events.At(p.MovedAt), p.Rebuilds})
	}
	return list, nil
}

type projectionList struct{ Body ProjectionList }

func (a *API) listProjections(ctx context.Context, _ *struct{}) (*projectionList, error) {
	if a.Runner == nil {
		return nil, unavailable("READ_MODELS_UNAVAILABLE", "This program has no PostgreSQL, and no read models.", 30)
	}
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	list, err := a.projectionStatus(ctx)
	if err != nil {
		return nil, err
	}
	return &projectionList{ProjectionList{list}}, nil
}

func (a *API) rebuild(w http.ResponseWriter, r *http.Request, c *call, compare bool) error {
	if a.Runner == nil {
		return unavailable("READ_MODELS_UNAVAILABLE", "This program has no PostgreSQL, and no read models.", 30)
	}
	only, err := strictBool(r, "compare_only")
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	if !slices.Contains(a.Runner.Names(), name) {
		return problem(http.StatusNotFound, "PROJECTION_NOT_FOUND", "There is no projection of this name: see GET /v1/projections.")
	}
	run := a.Runner.Rebuild
	if compare || only {
		run = a.Runner.Compare
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	out := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	send := func(l RebuildLine) {
		_ = out.Encode(l)
		_ = flush.Flush()
	}
	var told time.Time
	result, err := run(r.Context(), name, func(done, total uint64) {
		if now := time.Now(); done == total || now.Sub(told) > 100*time.Millisecond {
			told = now
			send(RebuildLine{Done: &done, Total: &total})
		}
	})
	if err != nil {
		p := a.answered(r.Context(), &rebuildError{err}).(*Problem)
		send(RebuildLine{Error: p})
		return nil
	}
	send(RebuildLine{Result: &Rebuilt{result, result.LiveHash == result.RebuiltHash}})
	return nil
}

// rebuildError tells an operator the reason: it says what to do and holds nothing
// that they may not see.
type rebuildError struct{ error }

func (e *rebuildError) Unwrap() error {
	return problem(http.StatusInternalServerError, "REBUILD_FAILED", e.error.Error())
}
