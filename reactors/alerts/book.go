package alerts

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
)

// book is the fold of OPS up to a sequence: what is raised, what was resolved lately, and
// which rules are set.
type book struct {
	at    uint64
	open  map[subject]*episode
	rest  map[subject]*episode // resolved, no longer ago than the hold
	rules map[place]json.RawMessage
	turn  int           // counts changes of rules
	moved chan struct{} // closed and replaced when at moves
}

func newBook() *book {
	return &book{open: map[subject]*episode{}, rest: map[subject]*episode{}, rules: map[place]json.RawMessage{}, moved: make(chan struct{})}
}

func (b *book) episode(s subject) *episode {
	if e := b.open[s]; e != nil {
		return e
	}
	return b.rest[s]
}

// apply folds a record. Repeating one changes nothing.
func (b *book) apply(r *events.Record) {
	e := &r.Event
	of := func(rule, when string) subject {
		if rule == "" {
			rule = when // of version 1
		}
		return subject{strings.Clone(e.Keyspace), strings.Clone(e.Owner), strings.Clone(e.Key), strings.Clone(rule)}
	}
	switch d := e.Data.(type) {
	case events.AlertRaised:
		s := of(d.Rule, d.When)
		if ep := b.episode(s); ep == nil || ep.sequence < r.Sequence {
			delete(b.rest, s)
			b.open[s] = &episode{alert: strings.Clone(d.Alert), raised: true, since: int64(e.Time), seen: int64(e.Time), sequence: r.Sequence}
		}
	case events.AlertResolved:
		s := of(d.Rule, d.When)
		if ep := b.episode(s); ep == nil || ep.sequence < r.Sequence {
			delete(b.open, s)
			b.rest[s] = &episode{since: int64(e.Time), sequence: r.Sequence}
		}
	case events.AlertRulesSet:
		p := place{strings.Clone(e.Keyspace), strings.Clone(e.Owner), strings.Clone(e.Key), strings.Clone(d.Resource)}
		b.turn++
		if len(d.Rules) == 0 || string(d.Rules) == "[]" {
			delete(b.rules, p)
		} else {
			b.rules[p] = append(json.RawMessage(nil), d.Rules...)
		}
	}
	b.reach(r.Sequence)
}

func (b *book) reach(sequence uint64) {
	if sequence > b.at {
		b.at = sequence
		close(b.moved)
		b.moved = make(chan struct{})
	}
}

// loadBook begins with the rows that are folded from OPS, as of their position.
func (e *Engine) loadBook(ctx context.Context) error {
	head, err := e.Ledger.Head(ctx, events.Ops)
	if err != nil {
		return err
	}
	if err := e.Runner.Wait(ctx, projections.Alerts{}.Name(), head); err != nil {
		return fmt.Errorf("wait for what OPS says of alerts: %w", err)
	}
	b := newBook()
	err = pgx.BeginTxFunc(ctx, e.Pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var at int64
		if err := tx.QueryRow(ctx, `select sequence from keyledger.positions where name = $1`, projections.Alerts{}.Name()).Scan(&at); err != nil {
			return err
		}
		b.at = uint64(at)
		rows, err := tx.Query(ctx, `select * from keyledger.alerts_v1 where resolved_at is null or resolved_at > $1 order by raised_sequence`,
			e.Now().Add(-e.Hold-time.Hour)) // clocks differ
		if err != nil {
			return err
		}
		alerts, err := pgx.CollectRows(rows, pgx.RowToStructByName[projections.Alert])
		if err != nil {
			return err
		}
		now := e.now()
		for _, a := range alerts {
			rule := a.Rule
			if rule == "" {
				rule = a.Condition
			}
			s := subject{a.Keyspace, a.Owner, a.Key, rule}
			if a.ResolvedAt == nil {
				delete(b.rest, s)
				// When it was last near is not known: now, which only resolves it later.
				b.open[s] = &episode{alert: a.Alert, raised: true, since: a.RaisedAt.UnixMilli(), sequence: uint64(a.RaisedSequence), seen: now}
			} else if b.open[s] == nil {
				b.rest[s] = &episode{since: a.ResolvedAt.UnixMilli(), sequence: uint64(*a.ResolvedSequence)}
			}
		}
		if rows, err = tx.Query(ctx, `select * from keyledger.alert_rules_v1`); err != nil {
			return err
		}
		rules, err := pgx.CollectRows(rows, pgx.RowToStructByName[projections.AlertRules])
		for _, r := range rules {
			b.rules[place{r.Keyspace, r.Owner, r.Key, r.Resource}] = r.Rules
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read what is raised: %w", err)
	}
	e.mu.Lock()
	e.book = b
	e.mu.Unlock()
	return nil
}

func (e *Engine) followOps(ctx context.Context) error {
	for batch, err := range e.Runner.Records(ctx, events.Ops, e.book.at) {
		if err != nil {
			return err
		}
		e.mu.Lock()
		for i := range batch {
			e.book.apply(&batch[i])
		}
		e.mu.Unlock()
	}
	return ctx.Err()
}
