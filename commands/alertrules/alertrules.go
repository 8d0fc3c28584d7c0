// Package alertrules sets which alert rules count for a keyspace, an owner, a resource or
// a key, in place of those of the keyspace's document.
//
// It promises that what is recorded, as alert_rules.set on OPS, was checked like a
// document's, and was decided with all that OPS held until then: of two that set rules for
// the same, one comes after the other. Rules that are so already are not recorded again.
//
// How it can disappoint. It needs PostgreSQL, where the rules are read; rules count a moment
// after they were set.
package alertrules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
)

// Rules sets and reads. All fields are needed. It is safe for concurrent use.
type Rules struct {
	Ledger *ledger.Ledger
	Pool   *pgxpool.Pool
	Models *projections.Runner
}

// Scope is what rules are set for: a keyspace, an owner of it, a key of that owner, or
// the keys of the keyspace that are bound to a resource.
type Scope struct {
	Keyspace string `json:"keyspace"`
	Owner    string `json:"owner"`    // empty: all
	Key      string `json:"key"`      // empty: all
	Resource string `json:"resource"` // empty: no resource is meant
}

// Setting is what was set for a scope.
type Setting struct {
	Scope
	Rules    []domain.AlertRule `json:"rules"`
	SetAt    events.Time        `json:"set_at"` // null: nothing is set
	SetBy    events.Actor       `json:"set_by"`
	Sequence uint64             `json:"sequence"` // in OPS
}

// By says who sets, and how.
type By struct {
	Actor     events.Actor
	Via       string
	RequestID string
}

// Of is what is set for a scope; with no rules where nothing is.
func (r *Rules) Of(ctx context.Context, s Scope) (Setting, error) {
	list, err := r.list(ctx, `keyspace = $1 and owner = $2 and key = $3 and resource = $4`, s.Keyspace, s.Owner, s.Key, s.Resource)
	if err != nil || len(list) == 0 {
		return Setting{Scope: s, Rules: []domain.AlertRule{}}, err
	}
	return list[0], nil
}

// List are the settings of a keyspace, and of one owner of it where there is one.
func (r *Rules) List(ctx context.Context, keyspace, owner string) ([]Setting, error) {
	return r.list(ctx, `($1 = '' or keyspace = $1) and ($2 = '' or owner = $2)`, keyspace, owner)
}

func (r *Rules) list(ctx context.Context, where string, args ...any) ([]Setting, error) {
	rows, err := r.Pool.Query(ctx, `select * from keyledger.alert_rules_v1 where `+where+` order by keyspace, owner, key, resource`, args...)
	if err != nil {
		return nil, fmt.Errorf("read alert rules: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByName[projections.AlertRules])
	if err != nil {
		return nil, fmt.Errorf("read alert rules: %w", err)
	}
	list := make([]Setting, 0, len(found))
	for _, f := range found {
		s := Setting{Scope: Scope{f.Keyspace, f.Owner, f.Key, f.Resource}, SetAt: events.At(f.SetAt), SetBy: events.Actor{Type: f.SetByType, ID: f.SetByID}, Sequence: uint64(f.Sequence)}
		if err := json.Unmarshal(f.Rules, &s.Rules); err != nil {
			return nil, fmt.Errorf("alert rules at %s %d were set by a newer program: %w", events.Ops, f.Sequence, err)
		}
		list = append(list, s)
	}
	return list, nil
}

// Set puts rules in place of what was set for a scope, all of them; none: the more general
// ones count again. changed is false where it was so already.
func (r *Rules) Set(ctx context.Context, by By, s Scope, rules []domain.AlertRule) (set Setting, changed bool, err error) {
	if rules == nil {
		rules = []domain.AlertRule{}
	}
	for {
		head, err := r.Ledger.Head(ctx, events.Ops)
		if err == nil {
			err = r.Models.Wait(ctx, projections.Alerts{}.Name(), head)
		}
		if err == nil {
			set, err = r.Of(ctx, s)
		}
		if err != nil {
			return set, false, err
		}
		if reflect.DeepEqual(set.Rules, rules) {
			return set, false, nil
		}
		e := events.New(events.AlertRulesSet{Resource: s.Resource, Rules: domain.AlertRulesJSON(rules)}, time.Now())
		e.Keyspace, e.Owner, e.Key = s.Keyspace, s.Owner, s.Key
		e.Actor, e.Via, e.RequestID = by.Actor, by.Via, by.RequestID
		sequence, err := r.Ledger.AppendOpsAfter(ctx, head, e)
		if errors.Is(err, ledger.ErrConflict) {
			continue
		}
		if err != nil {
			return set, false, err
		}
		set = Setting{Scope: s, Rules: rules, SetAt: e.Time, SetBy: by.Actor, Sequence: sequence}
		// So that whoever asks next sees it; it is recorded anyway.
		waiting, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_ = r.Models.Wait(waiting, projections.Alerts{}.Name(), sequence)
		return set, true, nil
	}
}
