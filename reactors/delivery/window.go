package delivery

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
)

// window holds the newest facts of a stream, so that each is read once for all targets.
type window struct {
	mu    sync.Mutex // guards what follows
	facts []Fact     // all that are for outside, after low and up to head
	size  int        // bytes of their bodies
	low   uint64
	head  uint64
	moved chan struct{} // closed and replaced when a fact was added
}

const (
	windowFacts = 2048
	windowBytes = 8 << 20
)

// outside says whether a fact of a stream is for anybody outside.
func outside(r *events.Record) bool {
	return r.Stream == events.Feed || strings.HasPrefix(r.Event.Type, "alert.")
}

func factOf(r *events.Record) Fact {
	e := &r.Event
	header := nats.Header{}
	for name, value := range events.CloudEvents(*e) {
		header[name] = []string{value}
	}
	return Fact{e.ID, e.Type, r.Subject, r.Stream, r.Sequence, header, r.Body, e.Keyspace, e.Owner, e.Key, e.Time}
}

// follow keeps a window at the end of its stream.
func (e *Engine) follow(ctx context.Context, stream string, after uint64, w *window) error {
	for records, err := range e.Ledger.FollowBatches(ctx, stream, after, 256, 0) {
		if err != nil {
			return err
		}
		w.add(records)
	}
	return nil
}

func (w *window) add(records []events.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	any := false
	for i := range records {
		r := &records[i]
		if outside(r) {
			w.facts = append(w.facts, factOf(r))
			w.size += len(r.Body)
			any = true
		}
		w.head = r.Sequence
	}
	drop := 0
	for len(w.facts)-drop > windowFacts || w.size > windowBytes && drop < len(w.facts) {
		w.low = w.facts[drop].Sequence
		w.size -= len(w.facts[drop].Body)
		drop++
	}
	if drop > 0 {
		w.facts = slices.Clone(w.facts[drop:])
	}
	if any {
		close(w.moved)
		w.moved = make(chan struct{})
	}
}

// after is up to most of the facts that come next, and how far they go; false: they
// have to be read from the stream, up to the sequence through.
func (w *window) after(sequence uint64, most int) (facts []Fact, through uint64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if sequence < w.low {
		return nil, w.low, false
	}
	i := sort.Search(len(w.facts), func(i int) bool { return w.facts[i].Sequence > sequence })
	if len(w.facts)-i > most {
		return w.facts[i : i+most], w.facts[i+most-1].Sequence, true
	}
	return w.facts[i:], max(w.head, sequence), true
}

func (w *window) find(sequence uint64) (Fact, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := sort.Search(len(w.facts), func(i int) bool { return w.facts[i].Sequence >= sequence })
	if i == len(w.facts) || w.facts[i].Sequence != sequence {
		return Fact{}, false
	}
	return w.facts[i], true
}

func (w *window) signal() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.moved
}

// step is how many messages are read at once for a target that is behind.
const step = 4096

// read reads what comes after a sequence from the stream.
func (e *Engine) read(ctx context.Context, stream string, after, through uint64, most int) (facts []Fact, to uint64, err error) {
	through = min(through, after+step)
	for r, err := range e.Ledger.Read(ctx, stream, after+1, through) {
		if err != nil {
			return facts, 0, err
		}
		if outside(&r) {
			facts = append(facts, factOf(&r))
			if len(facts) == most {
				return facts, r.Sequence, nil
			}
		}
	}
	return facts, through, nil
}

// fact reads one fact.
func (e *Engine) fact(ctx context.Context, stream string, sequence uint64) (Fact, error) {
	if f, ok := e.windows[stream].find(sequence); ok {
		return f, nil
	}
	records, err := e.Ledger.At(ctx, stream, sequence)
	if err != nil {
		return Fact{}, fmt.Errorf("read %s at sequence %d: %w", stream, sequence, err)
	}
	return factOf(&records[0]), nil
}

// laneOf names what is delivered in order: a stream and <keyspace>.<owner>.<key>.
func laneOf(f *Fact) laneID {
	tokens := strings.TrimPrefix(f.Subject, "ops.")
	if f.Stream == events.Feed {
		tokens = strings.TrimPrefix(f.Subject, "feed."+f.Type+".")
	}
	return laneID{f.Stream, tokens}
}

type laneID struct{ stream, key string }

// subject is of all facts of a lane.
func (l laneID) subject() string {
	if l.stream == events.Feed {
		return "feed.*.*." + l.key
	}
	return "ops." + l.key
}
