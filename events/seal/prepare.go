package seal

import (
	"context"
	"slices"

	"github.com/keyledger/keyledger/events"
)

// Use is a key.used whose personal data is still in clear: in memory only,
// until [Keys.Prepare] seals it as its page is written. Encoded without that, it
// lacks them rather than showing them.
type Use struct {
	events.KeyUsed
	ClearIP        string `json:"-"`
	ClearUserAgent string `json:"-"`
}

// Rejected is a credential.rejected whose source is still in clear, likewise.
type Rejected struct {
	events.CredentialRejected
	ClearIP string `json:"-"`
}

// Prepare seals the personal data of events in place: each [Use] becomes its
// events.KeyUsed, each [Rejected] its events.CredentialRejected. It fails where
// a data key can neither be read nor made; the events not yet sealed are then as
// they were, and it may be called again.
func (k *Keys) Prepare(ctx context.Context, page []events.Envelope) error {
	var ids []string
	for i := range page {
		switch page[i].Data.(type) {
		case Use, Rejected:
			id := KeyID(page[i].Keyspace, page[i].Owner, page[i].Time.Time())
			if k.cached(id) == nil && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	if len(ids) > 0 {
		if err := k.Prime(ctx, ids...); err != nil {
			return err
		}
	}
	for i := range page {
		if err := k.sealEvent(ctx, &page[i]); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keys) sealEvent(ctx context.Context, e *events.Envelope) error {
	var err error
	seal := func(to **events.Sealed, plain string) {
		if err == nil {
			*to, err = k.Seal(ctx, e.Keyspace, e.Owner, e.Time.Time(), plain)
		}
	}
	var data events.Payload
	switch d := e.Data.(type) {
	case Use:
		seal(&d.SourceIP, d.ClearIP)
		seal(&d.UserAgent, d.ClearUserAgent)
		data = d.KeyUsed
	case Rejected:
		seal(&d.SourceIP, d.ClearIP)
		data = d.CredentialRejected
	default:
		return nil
	}
	if err != nil {
		return err
	}
	e.Data = data
	return nil
}
