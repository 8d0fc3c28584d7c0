package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/merkle"
)

const (
	receiptHeader  = "Receipt"         // asks with 1, and answers with a note in base64 for each event
	receiptMissing = "Receipt-Missing" // says why there is none although there should be
	receiptDoc     = "1: the answer carries, for each event that the command recorded, a header Receipt: base64 of a signed note in which the log stands by the event, before its tree holds it. With the same Idempotency-Key it is given again, the same. No event, no receipt. Where one cannot be made after the command took effect, Receipt-Missing says why."
)

// receiptTime is how long an answer waits for its events to be read back.
const receiptTime = 2 * time.Second

// askedReceipt keeps that a command is to be answered with receipts. It is refused
// before anything happens where nobody could sign them.
func (a *API) askedReceipt(w http.ResponseWriter, r *http.Request) error {
	switch values := r.Header.Values(receiptHeader); {
	case len(values) == 0:
		return nil
	case len(values) > 1 || values[0] != "1":
		p := problem(http.StatusBadRequest, "INVALID_RECEIPT", "The Receipt header cannot be read.")
		p.Errors = []Detail{{Path: "header.Receipt", Message: "is not 1", Fix: "send Receipt: 1, or leave it out"}}
		return p
	}
	if a.AuditLog == nil || a.AuditLog.Key() == "" {
		return unavailable("AUDIT_LOG_UNAVAILABLE", "Nobody here can sign a receipt, so nothing was done: ask a process that runs `keyledger serve`, or send the command without Receipt.", 30)
	}
	callOf(r.Context()).answerHeader = w.Header()
	return nil
}

// appended is an answer that knows the last sequence of what was recorded.
type appended interface{ lastSequence() uint64 }

func (c Changed) lastSequence() uint64      { return c.LedgerSequence }
func (c ownerChanged) lastSequence() uint64 { return c.LedgerSequence }

// giveReceipts answers with receipts where they were asked for. The command has
// taken effect: what goes wrong here is said beside its answer.
func (a *API) giveReceipts(ctx context.Context, out any) {
	c := callOf(ctx)
	x, ok := out.(appended)
	if c.answerHeader == nil || !ok {
		return
	}
	q, err := a.request(ctx)
	if err == nil {
		var notes []string
		notes, err = a.receiptsOf(ctx, q, x.lastSequence())
		for _, n := range notes {
			c.answerHeader.Add(receiptHeader, n)
		}
	}
	if err != nil {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "a command is answered without its receipt", slog.String("request_id", c.requestID), slog.Any("error", err))
		c.answerHeader.Del(receiptHeader)
		c.answerHeader.Set(receiptMissing, receiptAgain)
	}
}

// giveOpsReceipt answers with the receipt of an act on OPS where one was asked for.
func (a *API) giveOpsReceipt(ctx context.Context, sequence uint64) {
	c := callOf(ctx)
	if c.answerHeader == nil {
		return
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), receiptTime)
	defer cancel()
	records, err := a.Ledger.At(wait, events.Ops, sequence)
	if err == nil {
		var n []byte
		if n, err = a.AuditLog.Receipt(audit.LeafOf(&records[0])); err == nil {
			c.answerHeader.Set(receiptHeader, base64.StdEncoding.EncodeToString(n))
			return
		}
	}
	a.Log.LogAttrs(ctx, slog.LevelWarn, "an act is answered without its receipt", slog.String("request_id", c.requestID), slog.Any("error", err))
	c.answerHeader.Set(receiptMissing, receiptAgain)
}

const receiptAgain = "the command took effect; repeat it with the same Idempotency-Key for its receipt"

// receiptsOf are the receipts for the events of a command, the last of which is at a
// sequence of LEDGER; none where what stands there is another's, because the command
// recorded nothing.
func (a *API) receiptsOf(ctx context.Context, q commands.Request, last uint64) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), receiptTime)
	defer cancel()
	command := ""
	if q.IdempotencyKey != "" {
		command = domain.CommandID(q.Authority.Actor, q.IdempotencyKey, q.Body)
	}
	var notes []string
	for sequence := last; sequence > 0; sequence-- {
		records, err := a.Ledger.At(ctx, events.Ledger, sequence)
		if err != nil {
			return nil, err
		}
		if len(records) != 1 {
			return nil, fmt.Errorf("LEDGER %d holds %d events", sequence, len(records))
		}
		r := &records[0]
		if len(notes) == 0 && command == "" && r.Event.RequestID == q.RequestID {
			command = r.Event.Command
		}
		if command == "" || r.Event.Command != command || r.Event.Actor != q.Authority.Actor {
			break
		}
		n, err := a.AuditLog.Receipt(audit.LeafOf(r))
		if err != nil {
			return nil, err
		}
		notes = append(notes, base64.StdEncoding.EncodeToString(n))
	}
	slices.Reverse(notes)
	return notes, nil
}

// takeCosignature takes what a witness gives back: whoever may read the log may bring
// it, because it is its key that makes it count.
func (a *API) takeCosignature(w http.ResponseWriter, r *http.Request, c *call) error {
	log, stream, err := a.logOf(r)
	if err != nil {
		return err
	}
	merged, err := log.Cosign(r.Context(), stream, c.body)
	switch {
	case errors.Is(err, merkle.ErrNotOurs):
		return unprocessable(Detail{Message: "is not a checkpoint of this stream that this log has signed", Fix: "send the checkpoint as it was read, with the signature added"})
	case errors.Is(err, merkle.ErrUnknownWitness):
		return problem(http.StatusForbidden, "UNKNOWN_WITNESS", "No witness of this log's policy has signed this: the operator names witnesses in the file that the setting log_policy names.")
	case err != nil:
		return logError(err)
	}
	writeText(w, "no-store", merged)
	return nil
}
