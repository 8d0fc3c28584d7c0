package queries

import "context"

// Now is the cursor behind everything that is in the log at this moment: a Tail
// that goes on from it misses nothing that is recorded after the call.
func (a *Audit) Now(ctx context.Context) (string, error) {
	var at spots
	for i, stream := range auditStreams {
		head, err := a.ledger.Head(ctx, stream)
		if err != nil {
			return "", err
		}
		at[i] = spot{head, whole}
	}
	return at.cursor(), nil
}
