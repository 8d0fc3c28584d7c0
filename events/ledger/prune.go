package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// Prune purges USAGE from the front, up to and with a sequence, and returns how
// many messages that took away. OPS MUST hold a usage.pruned that reaches as far:
// without it nothing is purged. It may be repeated; a crash of the server in the
// middle leaves a beginning that the record covers.
func (l *Ledger) Prune(ctx context.Context, through uint64) (purged uint64, err error) {
	if err := cmp.Or(l.Err(events.Usage), l.held()); err != nil {
		return 0, err
	}
	first, err := l.mayBegin(ctx, events.Usage, through+1)
	if err != nil {
		return 0, fmt.Errorf("prune %s: %w", events.Usage, err)
	}
	if through >= first {
		return 0, fmt.Errorf("prune %s: OPS holds no record of a pruning through sequence %d", events.Usage, through)
	}
	var answer struct {
		Success bool   `json:"success"`
		Purged  uint64 `json:"purged"`
	}
	err = cluster.Ask(ctx, func(ctx context.Context) error {
		return l.api(ctx, "STREAM.PURGE."+events.Usage, map[string]any{"seq": through + 1}, &answer)
	})
	if err == nil && !answer.Success {
		err = errors.New("the server says that it did not")
	}
	if err != nil {
		return 0, fmt.Errorf("prune %s through sequence %d: %w", events.Usage, through, err)
	}
	return answer.Purged, nil
}

// mayBegin is the sequence at which a stream may begin at the latest: 1, or of
// USAGE one past the last recorded pruning. The retention command records first
// and purges then, so that a crash in between, or of a server in the middle of
// purging, leaves an earlier one. OPS is read only where what is known of it does
// not reach a sequence that is asked for: from its end, in parts, as far back as
// there is a pruning that does.
func (l *Ledger) mayBegin(ctx context.Context, stream string, asked uint64) (uint64, error) {
	if stream != events.Usage {
		return 1, nil
	}
	l.mu.Lock()
	begins := l.begins
	l.mu.Unlock()
	if begins >= asked {
		return begins, nil
	}
	begins = 1
	rest, err := l.Head(ctx, events.Ops)
	if err != nil {
		return 0, err
	}
	for part := uint64(1000); rest > 0 && begins < asked; part *= 4 {
		from := rest - min(part, rest) + 1
		for r, err := range l.Read(ctx, events.Ops, from, rest, events.OpsSubject(events.Envelope{})) {
			if err != nil {
				return 0, err
			}
			if p, ok := r.Event.Data.(events.UsagePruned); ok && (p.Stream == stream || p.Stream == "") {
				begins = max(begins, p.Through+1)
			}
		}
		rest = from - 1
	}
	l.mu.Lock()
	l.begins = max(l.begins, begins)
	l.mu.Unlock()
	return begins, nil
}
