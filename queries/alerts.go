package queries

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
)

// AlertFilter says which alerts; empty fields do not filter.
type AlertFilter struct {
	Keyspace string
	Owner    string
	Key      string
	When     string
	State    string      // raised, resolved
	From     events.Time // raised at this time or later
	To       events.Time // raised before
	Limit    int
	Before   string // of the page before, see ListAlerts
}

// AlertView is an alert as it is answered.
type AlertView struct {
	ID               string      `json:"id"`
	Keyspace         string      `json:"keyspace"`
	Owner            string      `json:"owner"`
	Key              string      `json:"key"` // empty: the keys of the owner together
	When             string      `json:"when"`
	Rule             string      `json:"rule"`
	From             string      `json:"from"`
	State            string      `json:"state"`
	Value            float64     `json:"value"`
	Threshold        float64     `json:"threshold"`
	Detail           string      `json:"detail"`
	RaisedAt         events.Time `json:"raised_at"`
	ResolvedAt       events.Time `json:"resolved_at"` // null: it was not
	Reason           string      `json:"reason"`      // of resolving
	RaisedSequence   uint64      `json:"raised_sequence"`
	ResolvedSequence *uint64     `json:"resolved_sequence"`
}

// ListAlerts answers a page of alerts, raised last first, and where the next one begins;
// empty: this is the last.
func (q *Queries) ListAlerts(ctx context.Context, f AlertFilter) (list []AlertView, next string, err error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	var c conditions
	for column, value := range map[string]string{"keyspace": f.Keyspace, "owner": f.Owner, "key": f.Key, "condition": f.When} {
		if value != "" {
			c.add(column+" = ?", value)
		}
	}
	if f.When != "" && !slices.Contains(domain.AlertConditions(), f.When) {
		return nil, "", invalid("when", fmt.Sprintf("%q is not an alert", f.When), "one of "+fmt.Sprint(domain.AlertConditions()))
	}
	if f.From != 0 {
		c.add("raised_at >= ?", f.From.Time())
	}
	if f.To != 0 {
		c.add("raised_at < ?", f.To.Time())
	}
	where := ""
	switch f.State {
	case "":
	case "raised":
		where = " and resolved_at is null"
	case "resolved":
		where = " and resolved_at is not null"
	default:
		return nil, "", invalid("state", fmt.Sprintf("%q is not a state", f.State), "raised or resolved")
	}
	if f.Before != "" {
		at, err := strconv.ParseInt(f.Before, 10, 64)
		if err != nil {
			return nil, "", invalid("cursor", "is not a cursor of this list", "leave it out")
		}
		c.add("raised_sequence < ?", at)
	}
	rows, err := q.pool.Query(ctx, `select * from keyledger.alerts_v1 where `+c.where()+where+fmt.Sprintf(` order by raised_sequence desc limit %d`, limit+1), c.args...)
	if err != nil {
		return nil, "", fmt.Errorf("read alerts: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByName[projections.Alert])
	if err != nil {
		return nil, "", fmt.Errorf("read alerts: %w", err)
	}
	if len(found) > limit {
		found = found[:limit]
		next = strconv.FormatInt(found[limit-1].RaisedSequence, 10)
	}
	for _, a := range found {
		v := AlertView{ID: a.Alert, Keyspace: a.Keyspace, Owner: a.Owner, Key: a.Key, When: a.Condition, Rule: a.Rule, From: a.RuleFrom, State: "raised",
			Value: a.Value, Threshold: a.Threshold, Detail: a.Detail, RaisedAt: events.At(a.RaisedAt), ResolvedAt: moment(a.ResolvedAt), Reason: a.Reason, RaisedSequence: uint64(a.RaisedSequence)}
		if a.ResolvedSequence != nil {
			v.State, v.ResolvedSequence = "resolved", new(uint64(*a.ResolvedSequence))
		}
		list = append(list, v)
	}
	return list, next, nil
}

// RaisedAlerts counts those that are raised, by condition.
func (q *Queries) RaisedAlerts(ctx context.Context) (map[string]int64, error) {
	rows, err := q.pool.Query(ctx, `select condition, count(*) from keyledger.alerts_v1 where resolved_at is null group by condition`)
	if err != nil {
		return nil, fmt.Errorf("count alerts: %w", err)
	}
	counts := map[string]int64{}
	var when string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&when, &n}, func() error {
		counts[when] = n
		return nil
	})
	return counts, err
}

// AlertCount is how many alerts of a condition are raised in a keyspace.
type AlertCount struct {
	Keyspace string `json:"keyspace"`
	When     string `json:"when"`
	Count    int64  `json:"count"`
}

// AlertCounts counts those that are raised, by keyspace and condition; of one keyspace and
// one owner where these are named.
func (q *Queries) AlertCounts(ctx context.Context, keyspace, owner string) ([]AlertCount, error) {
	rows, err := q.pool.Query(ctx, `select keyspace, condition as "when", count(*) as count from keyledger.alerts_v1
		where resolved_at is null and ($1 = '' or keyspace = $1) and ($2 = '' or owner = $2)
		group by keyspace, condition order by keyspace, condition`, keyspace, owner)
	if err != nil {
		return nil, fmt.Errorf("count alerts: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[AlertCount])
	if err != nil {
		return nil, fmt.Errorf("count alerts: %w", err)
	}
	return list, nil
}
