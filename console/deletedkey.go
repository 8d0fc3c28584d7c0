package console

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// deletedData is what is left to say of a deleted key.
type deletedData struct {
	ID    string
	Name  string // its last; empty: it had none, or that is not known
	Event *said  // its deletion; nil: whoever asks may not read the log, or it cannot be read now
}

// deletedKey answers for a key that the API says is gone: when it was deleted and by
// whom, as the audit log has it. The API tells that a key is gone only to whoever could
// see it: to all others there never was one.
func (v *visit) deletedKey(id string) error {
	d := deletedData{ID: id}
	if v.may(domain.AuditRead) {
		var list api.AuditEvents
		if err := v.get("/v1/audit/events", url.Values{"key": {id}, "stream": {events.Ledger}, "type": {"key.deleted"}, "limit": {"1"}}, &list); err != nil {
			v.Log.WarnContext(v.r.Context(), "the deletion of a key cannot be shown", "key", id, "error", err)
		}
		if len(list.Events) > 0 {
			e := &list.Events[0]
			d.Event = new(v.said(e))
			var before api.Key
			if err := v.get("/v1/keys/"+url.PathEscape(id), url.Values{"as_of": {fmt.Sprint(e.Sequence - 1)}}, &before); err == nil {
				d.Name = before.Name
			}
		}
	}
	v.w.WriteHeader(http.StatusGone)
	return v.show("deletedkey", cmp.Or(d.Name, "This key")+" was deleted", d)
}
