package ledger

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// group lets facts that wait for the server's disk at the same time go there
// together. A server syncs every message alone, one after the other; an atomic
// batch of any size costs it about as much as twenty. So the first few appends in
// flight go as they are, what gathers behind them goes as one batch, and what
// comes meanwhile is the next one.
//
// A batch stands or falls as a whole, and the facts of others are no reason for
// ours to fall: when one does, each goes again by itself and meets its own fate.
type group struct {
	mu       sync.Mutex // guards what follows
	inFlight int        // plain appends
	batching bool       // a batch of this group is on its way
	waiting  []*joint
}

// joint is the messages of one append, which stand or fall together.
type joint struct {
	messages []*nats.Msg
	done     chan struct{}
	last     uint64 // sequence of the last message
	err      error
}

const (
	// alone is how many appends are in flight by themselves before others
	// gather.
	alone = 8

	// worthwhile is how many messages make a batch cheaper than as many plain
	// messages.
	worthwhile = 16
)

// store publishes the messages of one append and returns the sequence of the
// last. An error that the server answered is about these messages and no others.
func (g *group) store(ctx context.Context, l *Ledger, messages []*nats.Msg) (uint64, error) {
	if l.o.Replicas > 1 {
		return l.publishAll(ctx, messages) // the replicas' own log gathers what comes together
	}
	g.mu.Lock()
	if g.inFlight < alone && !g.batching && len(g.waiting) == 0 {
		g.inFlight++
		g.mu.Unlock()
		defer g.landed(l)
		return l.publishAll(ctx, messages)
	}
	j := &joint{messages: copies(messages), done: make(chan struct{})}
	g.waiting = append(g.waiting, j)
	g.mu.Unlock()
	select {
	case <-j.done:
		return j.last, j.err
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		g.waiting = slices.DeleteFunc(g.waiting, func(w *joint) bool { return w == j })
		return 0, ctx.Err() // it may be on its way: an unknown outcome
	}
}

// copies are for a batch, whose headers would stay with the messages, and for
// what goes on when its caller has given up and repeats it.
func copies(messages []*nats.Msg) []*nats.Msg {
	out := make([]*nats.Msg, len(messages))
	for i, m := range messages {
		out[i] = &nats.Msg{Subject: m.Subject, Header: maps.Clone(m.Header), Data: m.Data}
	}
	return out
}

// landed is called when an append that went alone has its answer.
func (g *group) landed(l *Ledger) {
	g.mu.Lock()
	g.inFlight--
	g.next(l)
	g.mu.Unlock()
}

// next sends what waits as far as it may go now. It needs mu.
func (g *group) next(l *Ledger) {
	if !g.batching {
		if together := g.gather(); together != nil {
			g.batching = true
			go func() {
				g.storeTogether(l, together)
				g.mu.Lock()
				g.batching = false
				g.next(l)
				g.mu.Unlock()
			}()
		}
	}
	for g.inFlight < alone && !g.batching && len(g.waiting) > 0 {
		j := g.waiting[0]
		g.waiting = g.waiting[1:]
		g.inFlight++
		go func() {
			g.storeAlone(l, j)
			g.landed(l)
		}()
	}
}

// gather takes what may go in one batch off the queue: nil where that is too
// little to be worthwhile. Two appends on one subject cannot both hold, so that
// they never go together. It needs mu.
func (g *group) gather() []*joint {
	if len(g.waiting) < 2 {
		return nil
	}
	var together, rest []*joint
	subjects := make(map[string]bool, len(g.waiting))
	messages := 0
	for _, j := range g.waiting {
		if messages+len(j.messages) > MaxBatch || j.meets(subjects) {
			rest = append(rest, j)
			continue
		}
		together = append(together, j)
		messages += len(j.messages)
		for _, m := range j.messages {
			subjects[m.Subject] = true
		}
	}
	if messages < worthwhile {
		return nil
	}
	g.waiting = rest
	return together
}

func (j *joint) meets(subjects map[string]bool) bool {
	for _, m := range j.messages {
		if subjects[m.Subject] {
			return true
		}
	}
	return false
}

func (g *group) storeAlone(l *Ledger, j *joint) {
	ctx, cancel := context.WithTimeout(context.Background(), answerWait)
	defer cancel()
	j.last, j.err = l.publishAll(ctx, j.messages)
	close(j.done)
}

func (g *group) storeTogether(l *Ledger, together []*joint) {
	var messages []*nats.Msg
	for _, j := range together {
		messages = append(messages, copies(j.messages)...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerWait)
	defer cancel()
	last, err := l.publishAll(ctx, messages)
	if _, answered := errors.AsType[*jetstream.APIError](err); answered && !lostAnswer(err) {
		var each sync.WaitGroup
		for _, j := range together {
			each.Go(func() { g.storeAlone(l, j) })
		}
		each.Wait()
		return
	}
	place := last - uint64(len(messages))
	for _, j := range together {
		place += uint64(len(j.messages))
		j.last, j.err = place, err
		close(j.done)
	}
}

// publishAll publishes one message as it is, several as one atomic batch.
func (l *Ledger) publishAll(ctx context.Context, messages []*nats.Msg) (uint64, error) {
	if len(messages) == 1 {
		ack, err := l.publish(ctx, messages[0])
		return ack.Sequence, err
	}
	select {
	case l.batches <- struct{}{}:
		defer func() { <-l.batches }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return l.publishBatch(ctx, messages)
}
