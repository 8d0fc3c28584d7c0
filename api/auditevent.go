package api

import (
	"cmp"
	"errors"
	"maps"
	"net/http"
	"strconv"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections/merkle"
	"github.com/keyledger/keyledger/queries"
)

// AuditPlace is where an event stands, and what it is.
type AuditPlace struct {
	Stream   string      `json:"stream" example:"LEDGER"`
	Sequence uint64      `json:"sequence"`
	Line     int         `json:"line" doc:"In a page of uses, from 0."`
	Type     string      `json:"type" example:"key.revoked"`
	Time     events.Time `json:"time"`
}

// AuditRecord is one event with what it changed and what stands around it.
type AuditRecord struct {
	Event    AuditEvent       `json:"event"`
	Void     bool             `json:"void" doc:"Another fact had come first: this one changed nothing."`
	Changes  []queries.Change `json:"changes" nullable:"false" doc:"What a fact of LEDGER changed of its key, owner or keyspace."`
	Previous *AuditPlace      `json:"previous,omitempty" doc:"What stands before it in its stream about the same key; absent: nothing, or too far away to be found in one page, or it is about no key."`
	Next     *AuditPlace      `json:"next,omitempty" doc:"Likewise behind it."`
}

func noEvent() *domain.Refusal {
	return &domain.Refusal{Kind: domain.NotFound, Code: "EVENT_NOT_FOUND", Detail: "The log has no event at this place."}
}

func (a *API) auditEvent(w http.ResponseWriter, r *http.Request, c *call) error {
	ctx := r.Context()
	stream, ok := merkle.Stream(r.PathValue("stream"))
	sequence, err := strconv.ParseUint(r.PathValue("sequence"), 10, 63)
	if !ok || stream == events.Feed || err != nil || sequence == 0 {
		return noEvent()
	}
	line, err := strconv.ParseUint(cmp.Or(r.URL.Query().Get("line"), "0"), 10, 31)
	if err != nil {
		return unprocessable(Detail{Path: "line", Message: "is not a line", Fix: "the line of the event in its page, from 0"})
	}
	e, err := a.streams().One(ctx, stream, sequence, int(line), a.opener(c))
	if errors.Is(err, ledger.ErrNotFound) {
		return noEvent()
	}
	if err != nil {
		return unread(err)
	}
	about := e.Event
	if reach := c.authority.Reach; reach != nil && (about.Keyspace != reach.Keyspace || about.Owner != reach.Owner) {
		return noEvent()
	}
	changed, void := []queries.Change{}, false
	if stream == events.Ledger {
		if changed, void, err = a.past().Changed(ctx, &e.Record); err != nil {
			return unread(err)
		}
	}
	before, behind, err := a.streams().Around(ctx, &e.Record)
	if err != nil {
		return unread(err)
	}
	asked := map[string]string{"stream": stream, "sequence": strconv.FormatUint(sequence, 10), "line": strconv.FormatUint(line, 10),
		"keyspace": about.Keyspace, "owner": about.Owner, "key": about.Key}
	maps.DeleteFunc(asked, func(_, value string) bool { return value == "" })
	if err := a.read(ctx, "event", asked, 1); err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, "application/json", struct {
		Event    queries.AuditEvent `json:"event"`
		Void     bool               `json:"void"`
		Changes  []queries.Change   `json:"changes"`
		Previous *AuditPlace        `json:"previous,omitempty"`
		Next     *AuditPlace        `json:"next,omitempty"`
	}{e, void, changed, auditPlace(before), auditPlace(behind)})
	return nil
}

func auditPlace(r *events.Record) *AuditPlace {
	if r == nil {
		return nil
	}
	return &AuditPlace{r.Stream, r.Sequence, r.Line, r.Event.Type, r.Event.Time}
}
