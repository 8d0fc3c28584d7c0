package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/commands/retention"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
)

const (
	tidyFirst = time.Minute // after a failure, as long as PostgreSQL or NATS is away
	tidyEvery = time.Hour
)

// tidy finishes what a killed process had recorded, and prunes USAGE and the figures of
// it day by day where a retention is set: what was recorded before the day (UTC) that
// lies so far back. Of several processes one does it, whichever is first.
func (n *node) tidy(ctx context.Context) {
	by := retention.By{Actor: events.Actor{Type: "system", ID: n.config.Name}, Via: "schedule"}
	log := n.config.Log
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		next := tidyEvery
		err := n.retention.Finish(ctx)
		if keep := n.config.UsageRetention; err == nil && keep > 0 {
			var out retention.Pruned
			out, err = n.retention.Prune(ctx, by, retention.Pruning{
				Before: time.Now().Add(-keep).UTC().Truncate(24 * time.Hour), Reason: fmt.Sprintf("usage_retention %s", domain.Duration(keep)), UpToHolds: true,
			}, nil)
			switch {
			case err == nil && out.Messages > 0:
				log.Info("USAGE is pruned", "through", out.Through, "messages", out.Messages, "events", out.Events, "before", out.Before)
			case err == nil && len(out.HeldBy) > 0:
				log.Info("USAGE is not pruned any further, because of a legal hold", "hold", out.HeldBy[0].String())
			}
		}
		if err == nil && n.config.KeepFigures != (figuresKept{}) {
			var rows int64
			rows, err = n.runner.Forget(ctx, n.config.KeepFigures.until(time.Now()))
			if rows > 0 {
				log.Info("old figures of usage are removed", "rows", rows)
			}
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			log.Warn("retention could not be carried out; it is tried again", "error", err)
			next = tidyFirst
		}
		wait.Reset(next)
	}
}

// signedTree is the root of the tree over USAGE through a message, with so many
// leaves, as what is signed has it.
func (n *node) signedTree(ctx context.Context, through, size uint64) (tlog.Hash, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	signed, err := n.log.Sealed(ctx, events.Usage, through)
	if err != nil {
		return tlog.Hash{}, err
	}
	return tlog.TreeHash(int64(size), n.log.HashReader(ctx, events.Usage, signed.Tree))
}

// usageRetention reads the setting.
func usageRetention(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := domain.ParseDuration(s)
	if err != nil {
		return 0, usageError("usage_retention: %w: a time such as 400d", err)
	}
	if time.Duration(d) < retention.Least+24*time.Hour {
		return 0, usageError("usage_retention: at least 4d: limits, outcomes and the recovery of a killed process need the last days")
	}
	return time.Duration(d), nil
}

// figuresKept is how long figures of usage are kept in each resolution; 0: for ever.
type figuresKept struct{ minutes, hours, days time.Duration }

// until is what is removed now: whole days.
func (k figuresKept) until(now time.Time) projections.Until {
	before := func(keep time.Duration) time.Time {
		if keep == 0 {
			return time.Time{}
		}
		return now.Add(-keep).UTC().Truncate(24 * time.Hour)
	}
	return projections.Until{Minutes: before(k.minutes), Hours: before(k.hours), Days: before(k.days)}
}

// keepFigures reads the settings.
func (s *settings) keepFigures() (k figuresKept, err error) {
	least, than := 48*time.Hour, "late outcomes are still added to the minutes of the last days"
	for _, x := range []struct {
		name, text string
		to         *time.Duration
	}{{"usage_minutes", s.Retention.UsageMinutes, &k.minutes}, {"usage_hours", s.Retention.UsageHours, &k.hours}, {"usage_days", s.Retention.UsageDays, &k.days}} {
		if x.text == "" {
			continue
		}
		d, err := domain.ParseDuration(x.text)
		if err != nil {
			return k, usageError("retention.%s: %w: a time such as 90d", x.name, err)
		}
		if time.Duration(d) < least {
			return k, usageError("retention.%s: at least %s: %s", x.name, domain.Duration(least), than)
		}
		*x.to = time.Duration(d)
		least, than = time.Duration(d), "coarser figures hold what is gone of the finer ones"
	}
	return k, nil
}
