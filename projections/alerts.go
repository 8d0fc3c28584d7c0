package projections

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// Alerts folds OPS into one row per alert, and the alert rules that were set. Other acts
// are not its business.
type Alerts struct{}

// Name is alerts_v1.
func (Alerts) Name() string { return "alerts_v1" }

// Stream is OPS.
func (Alerts) Stream() string { return events.Ops }

// Tables are alerts_v1 and alert_rules_v1.
func (Alerts) Tables() []Table { return []Table{{"alerts_v1", true}, {"alert_rules_v1", true}} }

// Apply folds a batch: in order, as there are few of these facts.
func (Alerts) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	var b pgx.Batch
	for _, r := range batch {
		e := r.Event
		at := e.Time.Time()
		switch d := e.Data.(type) {
		case events.AlertRaised:
			b.Queue(`insert into alerts_v1 (alert, keyspace, owner, key, condition, rule, rule_from, value, threshold, detail, raised_at, raised_sequence)
				values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) on conflict (alert) do nothing`,
				clean(d.Alert), clean(e.Keyspace), clean(e.Owner), clean(e.Key), clean(d.When), clean(d.Rule), clean(d.From), d.Value, d.Threshold, clean(d.Detail), at, int64(r.Sequence))
		case events.AlertResolved:
			b.Queue(`update alerts_v1 set resolved_at = $2, resolved_sequence = $3, resolved_value = $4, reason = $5 where alert = $1 and resolved_at is null`,
				clean(d.Alert), at, int64(r.Sequence), d.Value, clean(d.Reason))
		case events.AlertRulesSet:
			if string(d.Rules) == "[]" || len(d.Rules) == 0 {
				b.Queue(`delete from alert_rules_v1 where keyspace = $1 and owner = $2 and key = $3 and resource = $4`, clean(e.Keyspace), clean(e.Owner), clean(e.Key), clean(d.Resource))
				continue
			}
			b.Queue(`insert into alert_rules_v1 (keyspace, owner, key, resource, rules, set_at, set_by_type, set_by_id, sequence)
				values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
				on conflict (keyspace, owner, key, resource) do update set rules = excluded.rules, set_at = excluded.set_at,
					set_by_type = excluded.set_by_type, set_by_id = excluded.set_by_id, sequence = excluded.sequence`,
				clean(e.Keyspace), clean(e.Owner), clean(e.Key), clean(d.Resource), withoutNUL(d.Rules), at, clean(e.Actor.Type), clean(e.Actor.ID), int64(r.Sequence))
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, &b).Close()
}

// Alert is a row of alerts_v1.
type Alert struct {
	Alert            string
	Keyspace         string
	Owner            string
	Key              string
	Condition        string
	Rule             string
	RuleFrom         string
	Value            float64
	Threshold        float64
	Detail           string
	RaisedAt         time.Time
	RaisedSequence   int64
	ResolvedAt       *time.Time
	ResolvedSequence *int64
	ResolvedValue    *float64
	Reason           string
}

// AlertRules is a row of alert_rules_v1.
type AlertRules struct {
	Keyspace  string
	Owner     string
	Key       string
	Resource  string
	Rules     []byte
	SetAt     time.Time
	SetByType string
	SetByID   string `db:"set_by_id"`
	Sequence  int64
}
