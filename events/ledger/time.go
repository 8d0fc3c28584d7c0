package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/keyledger/keyledger/events"
)

// SequenceAt is the first sequence that a stream's server stored at a moment or
// later, one past the head when there is none. A fact is stored after the time
// in its envelope; uses that waited for a server that was away, long after.
func (l *Ledger) SequenceAt(ctx context.Context, stream string, at time.Time) (uint64, error) {
	// Asked directly, the message there comes without base64.
	request, err := json.Marshal(map[string]any{"start_time": at.UTC()})
	if err != nil {
		return 0, err
	}
	if m, err := l.direct(ctx, stream, request); err == nil {
		return m.sequence, nil
	}
	// A replica may be behind; the leader is not.
	var answer struct {
		Message struct {
			Sequence uint64 `json:"seq"`
		} `json:"message"`
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = l.api(ctx, "STREAM.MSG.GET."+stream, map[string]any{"start_time": at.UTC(), "no_hdr": true}, &answer)
	if isNotFound(err) {
		head, err := l.Head(ctx, stream)
		return head + 1, err
	}
	if err != nil {
		return 0, fmt.Errorf("find the place of %s in %s: %w", events.At(at), stream, err)
	}
	return answer.Message.Sequence, nil
}
