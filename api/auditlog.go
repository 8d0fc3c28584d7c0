package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections/merkle"
)

// LogKeys are the verifier keys of the audit log.
type LogKeys struct {
	Name string   `json:"name" doc:"Of the log: the first part of every origin." example:"keyledger-9f3a0c1d2e4b5a67"`
	Key  string   `json:"key" doc:"The verifier key that signs now, C2SP signed-note; it is for all streams." example:"keyledger-9f3a0c1d2e4b5a67+1a2b3c4d+AeI…"`
	Keys []LogKey `json:"keys" nullable:"false" doc:"All that the log ever had, newest first."`

	Sequence uint64 `json:"sequence,omitempty" doc:"Of a rotation: of log.key_rotated on OPS."`
	Replayed bool   `json:"replayed,omitempty" doc:"true: this Idempotency-Key had taken effect before."`

	Policy string `json:"policy" doc:"Whose cosignatures the log asks for, in Sigsum's format: the operator's setting log_policy."`
}

// LogKey is a verifier key.
type LogKey struct {
	Key   string      `json:"key"`
	Since events.Time `json:"since"`
	Until events.Time `json:"until" doc:"null: it signs now."`
	Named string      `json:"named,omitempty" doc:"Signed note in which the key before names this one; absent: it is the first."`
}

// LogProof is that an event stands in a signed tree.
type LogProof struct {
	Stream     string   `json:"stream" example:"LEDGER"`
	Sequence   uint64   `json:"sequence"`
	Line       int      `json:"line" doc:"In a page of uses, from 0."`
	Leaf       string   `json:"leaf" doc:"What the tree holds of the event: place, subject, whom it is about, time, and the SHA-256 of the stored bytes."`
	Index      int64    `json:"index" doc:"Of the leaf, from 0."`
	Size       int64    `json:"size" doc:"Leaves of the tree."`
	Hashes     []string `json:"hashes" nullable:"false" doc:"Base64, from the leaf to the root (RFC 6962)."`
	Checkpoint string   `json:"checkpoint" doc:"The signed tree head, C2SP tlog-checkpoint."`
}

const tlogProof = "text/plain"

func (a *API) auditLog() {
	stream := pathParam("stream", "LEDGER, USAGE, OPS or FEED, in any case.", "ledger")
	text := func(doc, kind string) map[string]*huma.Response {
		return map[string]*huma.Response{"200": {Description: doc, Content: map[string]*huma.MediaType{kind: {Schema: &huma.Schema{Type: "string"}}}}}
	}
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "log-key", Method: http.MethodGet, Path: "/v1/audit/log/key", Tags: []string{"Audit"},
			Summary:     "The keys that the audit log is signed with",
			Description: "Give the key to auditors by another way than the log itself.",
			Responses:   map[string]*huma.Response{"200": a.answer("The keys.", a.schema(LogKeys{}))},
		},
		action: domain.LogRead,
	}, a.logKey)
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "rotate-log-key", Method: http.MethodPost, Path: "/v1/audit/log/key/rotate", Tags: []string{"Audit"},
			Summary:     "Sign the audit log with a new key",
			Description: "Announced by log.key_rotated on OPS, which the old key signs, so that whoever trusts that one can trust the new one; witnesses follow by themselves. Old keys stay listed. Receipt: 1 gives one for that event, signed by the new key.",
			Responses:   map[string]*huma.Response{"200": a.answer("The keys.", a.schema(LogKeys{}))},
		},
		action: domain.Operate, command: true,
	}, a.rotateLogKey)
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "log-key-successor", Method: http.MethodGet, Path: "/v1/audit/log/successor/{hash}", Tags: []string{"Audit"},
			Summary:     "What a key of the log says of the next one",
			Description: "A signed note, by the key of this hash, that names the verifier key which signs after it: whoever trusts the one trusts the other.",
			Parameters:  []*huma.Param{pathParam("hash", "The second part of a verifier key, eight hexadecimal digits.", "1a2b3c4d")},
			Responses:   text("A signed note.", "text/plain"),
		},
		action: domain.LogRead, absent: true,
	}, a.logSuccessor)
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "log-checkpoint", Method: http.MethodGet, Path: "/v1/audit/log/{stream}/checkpoint", Tags: []string{"Audit"},
			Summary:     "The signed tree head of a stream",
			Description: "C2SP tlog-checkpoint: origin, size and root of the RFC 6962 tree over the stream's events, signed within a second of the last one. It carries the cosignatures (C2SP tlog-cosignature) that witnesses have given for it.",
			Parameters: []*huma.Param{stream, queryParam("which",
				"newest; cosigned, the newest that has every cosignature the log's policy asks for; or next, for a witness: the one that others are cosigning now, else the newest.",
				&huma.Schema{Type: "string", Enum: []any{merkle.Newest, merkle.Cosigned, merkle.Next}, Default: merkle.Newest})},
			Responses: text("A signed note.", "text/plain"),
		},
		action: domain.LogRead, absent: true,
	}, a.logCheckpoint)
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "cosign-log-checkpoint", Method: http.MethodPost, Path: "/v1/audit/log/{stream}/checkpoint", Tags: []string{"Audit"},
			Summary:     "Give the cosignature of a witness",
			Description: "The checkpoint as it was read, with the log's signature and the witness's. It is shown with the checkpoint from then on. Whoever may read the log may bring it: the witness must be one of the log's policy.",
			Parameters:  []*huma.Param{stream},
			RequestBody: &huma.RequestBody{Required: true, Description: "A signed note.", Content: map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: "string"}}}},
			Responses:   text("The checkpoint with all signatures that it has.", "text/plain"),
		},
		action: domain.LogRead, absent: true, accepts: []string{"text/plain"},
	}, a.takeCosignature)
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "log-tile", Method: http.MethodGet, Path: "/v1/audit/log/{stream}/tile/{level}/{number}", Tags: []string{"Audit"},
			Summary:     "A tile of the tree over a stream",
			Description: "C2SP tlog-tiles: 256 hashes, or as many as .p/<width> says. Level is a number, or entries for the texts of leaves; number is written as x001/x234/067.",
			Parameters:  []*huma.Param{stream, pathParam("level", "0 and up, or entries.", "0"), pathParam("number", "x001/x234/067, with .p/<width> where it is partial.", "000.p/1")},
			Responses:   text("The tile.", "application/octet-stream"),
		},
		pattern: "/v1/audit/log/{stream}/tile/*",
		action:  domain.LogRead, absent: true,
	}, a.logTile)
	proof := a.answer("The proof.", a.schema(LogProof{}))
	proof.Content[tlogProof] = &huma.MediaType{Schema: &huma.Schema{Type: "string"}}
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "log-proof", Method: http.MethodGet, Path: "/v1/audit/log/{stream}/proof", Tags: []string{"Audit"},
			Summary:     "Prove that an event stands in the log",
			Description: "An inclusion proof in the newest signed tree. Accept: text/plain, or format=tlog-proof, answers it as C2SP tlog-proof, with the leaf's text as extra data. One that was just written is waited for.",
			Parameters: []*huma.Param{stream,
				queryParam("sequence", "Of the event.", &huma.Schema{Type: "integer", Format: "int64", Minimum: new(1.0)}),
				queryParam("line", "In a page of uses, from 0.", &huma.Schema{Type: "integer", Minimum: new(0.0), Default: 0}),
				queryParam("format", "json, or tlog-proof.", &huma.Schema{Type: "string", Enum: []any{"json", "tlog-proof"}, Default: "json"})},
			Responses: map[string]*huma.Response{"200": proof},
		},
		action: domain.LogRead, absent: true,
	}, a.logProof)
}

// logOf is the log and the stream that a call is about.
func (a *API) logOf(r *http.Request) (*merkle.Log, string, error) {
	if a.AuditLog == nil {
		return nil, "", unavailable("AUDIT_LOG_UNAVAILABLE", "This program does not keep the tree over the log: ask one that runs `keyledger serve`.", 30)
	}
	stream, ok := merkle.Stream(r.PathValue("stream"))
	if !ok && r.PathValue("stream") != "" {
		return nil, "", problem(http.StatusNotFound, "STREAM_NOT_FOUND", "There is no tree over a stream of this name: there are LEDGER, USAGE, OPS and FEED.")
	}
	return a.AuditLog, stream, nil
}

// logError is what a call on the log says where it fails.
func logError(err error) error {
	doubt, _ := errors.AsType[*merkle.Doubt](err)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return problem(http.StatusNotFound, "NOT_FOUND", "The log has nothing there: no event at this place, or no tile of this number.")
	case doubt != nil:
		return &readError{unavailable("AUDIT_LOG_IN_DOUBT", "The audit log is in doubt, nothing is signed: "+doubt.Error(), 30), err}
	case errors.Is(err, merkle.ErrDoubt):
		return &readError{unavailable("AUDIT_LOG_IN_DOUBT", "The key of the audit log is in doubt: GET /readyz says why.", 30), err}
	case errors.Is(err, merkle.ErrNotSealed):
		return unavailable("NOT_SEALED", "It is not in a signed tree yet: ask again.", 1)
	case errors.Is(err, merkle.ErrAltered):
		return &readError{problem(http.StatusInternalServerError, "AUDIT_PROOF_FAILED", "What is stored is not what was signed: "+err.Error()+". Compare the tree (`keyledger projections compare`); where it is right, the stream was changed."), err}
	case errors.Is(err, context.DeadlineExceeded):
		return unread(err)
	}
	return err
}

func (a *API) logKey(w http.ResponseWriter, r *http.Request, _ *call) error {
	log, _, err := a.logOf(r)
	if err != nil {
		return err
	}
	return answerKeys(w, log, merkle.Rotation{})
}

func answerKeys(w http.ResponseWriter, log *merkle.Log, done merkle.Rotation) error {
	k := LogKeys{Name: log.Name(), Key: log.Key(), Keys: []LogKey{}, Policy: string(log.Policy()), Sequence: done.Sequence, Replayed: done.Replayed}
	if k.Key == "" {
		return logError(merkle.ErrDoubt)
	}
	for _, key := range log.Keys() {
		k.Keys = append(k.Keys, LogKey{key.Verifier, key.Since, key.Until, key.Named})
	}
	writeJSON(w, http.StatusOK, "application/json", k)
	return nil
}

func (a *API) rotateLogKey(w http.ResponseWriter, r *http.Request, c *call) error {
	log, _, err := a.logOf(r)
	if err != nil {
		return err
	}
	q, err := a.request(r.Context())
	if err != nil {
		return err
	}
	command := events.NewID("cmd", a.Now())
	if q.IdempotencyKey != "" {
		command = domain.CommandID(q.Authority.Actor, q.IdempotencyKey, q.Body)
		if which, _, ok := domain.SplitCommandID(command); ok {
			if _, used := a.Ring.Done(which, a.Now()); used {
				return problem(http.StatusConflict, "IDEMPOTENCY_KEY_REUSED", "This Idempotency-Key was used for another command in the last 24 hours: take a new one.")
			}
		}
	}
	done, err := log.Rotate(r.Context(), command, func(e *events.Envelope) {
		e.Actor, e.Via, e.RequestID = c.authority.Actor, c.via(), c.requestID
	})
	if err != nil {
		return logError(err)
	}
	w.Header().Set("Ledger-Sequence", strconv.FormatUint(a.Ring.Sequence(), 10))
	a.giveOpsReceipt(r.Context(), done.Sequence)
	return answerKeys(w, log, done)
}

func (a *API) logSuccessor(w http.ResponseWriter, r *http.Request, _ *call) error {
	log, _, err := a.logOf(r)
	if err != nil {
		return err
	}
	hash, err := strconv.ParseUint(r.PathValue("hash"), 16, 32)
	named, ok := log.Successor(uint32(hash))
	if err != nil || !ok {
		return problem(http.StatusNotFound, "NOT_FOUND", "The log has no key of this hash, or it has named none after it.")
	}
	writeText(w, "no-store", named)
	return nil
}

func (a *API) logCheckpoint(w http.ResponseWriter, r *http.Request, _ *call) error {
	log, stream, err := a.logOf(r)
	if err != nil {
		return err
	}
	which := cmp.Or(r.URL.Query().Get("which"), merkle.Newest)
	if which != merkle.Newest && which != merkle.Cosigned && which != merkle.Next {
		return unprocessable(Detail{Path: "which", Message: "is no checkpoint of a stream", Fix: "newest, cosigned or next"})
	}
	signed, err := log.Shown(r.Context(), stream, which)
	if err != nil {
		return logError(err)
	}
	writeText(w, "no-store", signed)
	return nil
}

func writeText(w http.ResponseWriter, cache string, b []byte) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", cache)
	_, _ = w.Write(b)
}

func (a *API) logTile(w http.ResponseWriter, r *http.Request, _ *call) error {
	log, stream, err := a.logOf(r)
	if err != nil {
		return err
	}
	t, err := merkle.ParseTilePath("tile/" + r.PathValue("*"))
	if err != nil {
		return problem(http.StatusNotFound, "TILE_NOT_FOUND", "This is no path of a tile: tile/<level or entries>/<number>, as C2SP tlog-tiles says.")
	}
	data, err := log.Tile(r.Context(), stream, t)
	if err != nil {
		return logError(err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	_, _ = w.Write(data)
	return nil
}

func (a *API) logProof(w http.ResponseWriter, r *http.Request, _ *call) error {
	log, stream, err := a.logOf(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	var wrong []Detail
	at := audit.Place{Stream: stream}
	if at.Sequence, err = strconv.ParseUint(q.Get("sequence"), 10, 63); err != nil || at.Sequence == 0 {
		wrong = append(wrong, Detail{Path: "sequence", Message: "is not a sequence", Fix: "the sequence of the event, from 1"})
	}
	if s := q.Get("line"); s != "" {
		line, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			wrong = append(wrong, Detail{Path: "line", Message: "is not a line", Fix: "the line of the event in its page, from 0"})
		}
		at.Line = int(line)
	}
	asText := acceptsFirst(r, tlogProof)
	switch q.Get("format") {
	case "":
	case "json":
		asText = false
	case "tlog-proof":
		asText = true
	default:
		wrong = append(wrong, Detail{Path: "format", Message: "is no format of a proof", Fix: "json or tlog-proof"})
	}
	if len(wrong) > 0 {
		return unprocessable(wrong...)
	}
	p, err := log.Prove(r.Context(), at)
	if err != nil {
		return logError(err)
	}
	if asText {
		writeText(w, "no-store", p.TLogProof())
		return nil
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, "application/json", LogProof{
		Stream: at.Stream, Sequence: at.Sequence, Line: at.Line, Leaf: string(p.Leaf.Append(nil)),
		Index: p.Index, Size: p.Size, Hashes: proofHashes(p.Hashes), Checkpoint: string(p.Note),
	})
	return nil
}

func proofHashes(p tlog.RecordProof) []string {
	list := []string{}
	for _, h := range p {
		list = append(list, base64.StdEncoding.EncodeToString(h[:]))
	}
	return list
}

// acceptsFirst says whether a media type is the first that a client names.
func acceptsFirst(r *http.Request, kind string) bool {
	first, _, _ := strings.Cut(r.Header.Get("Accept"), ",")
	first, _, _ = strings.Cut(first, ";")
	return strings.TrimSpace(first) == kind
}
