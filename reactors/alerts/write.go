package alerts

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

// task is a change that is to be written.
type task struct {
	subject
	condition
	raise        bool
	when         string
	from, reason string // of raising, of resolving
}

// ask queues a task, one for a subject at a time.
func (e *Engine) ask(t *task) {
	e.pending[t.subject] = true
	e.queue = append(e.queue, t)
	select {
	case e.work <- struct{}{}:
	default:
	}
}

func (e *Engine) write(ctx context.Context) error {
	for {
		e.mu.Lock()
		var t *task
		if len(e.queue) > 0 {
			t = e.queue[0]
			e.queue[0] = nil
			e.queue = e.queue[1:]
		}
		e.mu.Unlock()
		if t == nil {
			select {
			case <-e.work:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if err := e.tell(ctx, t); err != nil {
			return err
		}
		e.mu.Lock()
		delete(e.pending, t.subject)
		e.mu.Unlock()
	}
}

// foldWithin is how long the fold of OPS may take to reach what was just appended.
const foldWithin = 10 * time.Second

// tell writes a change when the fold of its subject still asks for it: the fact is the
// next one on the subject, or none.
func (e *Engine) tell(ctx context.Context, t *task) error {
	for {
		ev := events.New(events.AlertResolved{}, e.Now())
		ev.Keyspace, ev.Owner, ev.Key = t.keyspace, t.owner, t.key
		ev.Actor, ev.Via = events.Actor{Type: "system", ID: e.Node}, "alerts"
		last, err := e.Ledger.LastOn(ctx, events.Ops, events.OpsSubject(ev))
		if err == nil {
			err = e.folded(ctx, last)
		}
		if err != nil {
			return err
		}
		if !e.complete(t, &ev, last) {
			return nil
		}
		if e.May != nil {
			if err := e.May(ctx); err != nil {
				return err
			}
		}
		sequence, err := e.Ledger.AppendOpsOn(ctx, last, ev)
		if errors.Is(err, ledger.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("tell of an alert: %w", err)
		}
		e.mu.Lock()
		at := e.book.at
		e.book.apply(&events.Record{Sequence: sequence, Event: ev})
		e.book.at = at // what is between has not been read
		e.mu.Unlock()
		return nil
	}
}

// folded waits until the book knows OPS up to a sequence.
func (e *Engine) folded(ctx context.Context, sequence uint64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, foldWithin, fmt.Errorf("%s was not read up to %d in time", events.Ops, sequence))
	defer cancel()
	for {
		e.mu.Lock()
		at, moved := e.book.at, e.book.moved
		e.mu.Unlock()
		if at >= sequence {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// complete fills in a fact that is decided with all that its subject says up to last. It
// is false where that asks for nothing.
func (e *Engine) complete(t *task, ev *events.Envelope, last uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	ep := e.book.episode(t.subject)
	now := int64(ev.Time)
	var data events.Payload
	switch {
	case t.raise && (ep == nil || !ep.raised && now-ep.since >= e.hold):
		data = events.AlertRaised{Alert: alertID(t.subject, last), When: t.when, Rule: t.rule, From: t.from,
			Value: t.value, Threshold: t.threshold, Detail: t.detail, SourceIP: t.ip}
	case !t.raise && ep != nil && ep.raised:
		data = events.AlertResolved{Alert: ep.alert, When: t.when, Rule: t.rule, Value: t.value, Reason: t.reason}
	default:
		return false
	}
	ev.Type, ev.Version = data.Kind()
	ev.Data = data
	return true
}

// alertID is the same for whoever decides the same with the same facts.
func alertID(s subject, last uint64) string {
	h := sha256.New()
	for _, part := range []string{s.keyspace, s.owner, s.key, s.rule} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write([]byte(part))
	}
	h.Write(binary.BigEndian.AppendUint64(nil, last))
	return events.FormatID("alr", [16]byte(h.Sum(nil)[:16]))
}
