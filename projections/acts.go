package projections

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// Acts lists what stands on OPS, for people: who read the log, who held, erased or
// pruned what, which program started where. It keeps a line of words of each, and
// nothing that is sealed.
type Acts struct{}

// Name is acts_v1.
func (Acts) Name() string { return "acts_v1" }

// Stream is OPS.
func (Acts) Stream() string { return events.Ops }

// Tables is acts_v1.
func (Acts) Tables() []Table { return []Table{{"acts_v1", false}} }

var actColumns = strings.Fields("sequence event_id type time keyspace owner key actor_type actor_id detail reason count")

// Apply adds a batch.
func (Acts) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"acts_v1"}, actColumns, pgx.CopyFromSlice(len(batch), func(i int) ([]any, error) {
		e := &batch[i].Event
		detail, reason, count := told(e.Data)
		return []any{int64(batch[i].Sequence), clean(e.ID), e.Type, e.Time.Time(), e.Keyspace, e.Owner, e.Key,
			clean(e.Actor.Type), clean(e.Actor.ID), clean(detail), clean(reason), count}, nil
	}))
	return err
}

// told is what an act says beside its envelope. Types that are not here are listed
// with what their envelope says. What is told of a type MUST NOT change: rows that
// were made before would differ from a rebuild's.
func told(data events.Payload) (detail, reason string, count int64) {
	switch d := data.(type) {
	case events.AuditRead:
		return d.What, "", d.Count
	case events.UsagePruned:
		return fmt.Sprintf("%s through %d", d.Stream, d.Through), d.Reason, int64(d.TreeSize)
	case events.PrivacyErased:
		return "", d.Reason, int64(len(d.DataKeys))
	case events.HoldSet:
		return map[bool]string{true: "held", false: "released"}[d.Active], d.Reason, 0
	case events.ServiceStarted:
		return strings.Join([]string{d.Program, d.Build, "on", d.Node}, " "), "", 0
	case events.SigninFailed:
		return "", d.Reason, d.Count
	case events.RootKeyReset:
		return d.Key, "", int64(len(d.Revoked))
	case events.BackupRestored:
		return "of " + d.Began.String(), "", 0
	case events.LossAccepted:
		return strconv.FormatInt(d.Facts, 10) + " facts", d.Reason, d.Count
	}
	return "", "", 0
}

// Gaps lists the uses that could not be recorded, as they were declared.
type Gaps struct{}

// Name is gaps_v1.
func (Gaps) Name() string { return "gaps_v1" }

// Stream is USAGE.
func (Gaps) Stream() string { return events.Usage }

// Tables is gaps_v1.
func (Gaps) Tables() []Table { return []Table{{"gaps_v1", false}} }

var gapColumns = strings.Fields("sequence line time keyspace node count reason began ended")

// Apply adds what a batch declares, which is nearly always nothing.
func (Gaps) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	var rows [][]any
	for i := range batch {
		e := &batch[i].Event
		if d, ok := e.Data.(events.UsageGap); ok {
			rows = append(rows, []any{int64(batch[i].Sequence), int32(batch[i].Line), e.Time.Time(), e.Keyspace, clean(d.Node), d.Count, clean(d.Reason), nullable(d.From), nullable(d.To)})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"gaps_v1"}, gapColumns, pgx.CopyFromRows(rows))
	return err
}
