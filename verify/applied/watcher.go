package applied

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections/keyring"
)

// WatchOptions of a [Watcher]. Teller is required.
type WatchOptions struct {
	Teller *Teller // of this node

	// Record stores a measurement once, whoever else tries to; nil: none is recorded.
	Record func(context.Context, events.Envelope) error

	Bound time.Duration // zero: the constant of this name
	Log   *slog.Logger  // nil: slog.Default()
}

// Watcher knows the verifiers and what they tell. It is safe for concurrent use.
type Watcher struct {
	o     WatchOptions
	self  string
	since time.Time // it listens

	ignored atomic.Uint64 // messages that were of no use
	dropped atomic.Uint64 // facts that stayed without a recorded measurement

	mu     sync.Mutex // guards what follows
	nodes  map[string]*node
	facts  map[uint64]*fact
	order  []*fact // as they came
	recent []int64 // microseconds of the slowest verifier, of what was measured last
}

// Memory that a burst of revocations may take.
const (
	mostFacts  = 100_000
	keepFor    = 10 * time.Minute // a measurement after it was recorded
	mostRecent = 1000
	mostNodes  = 1024
	forgetFrom = time.Hour
)

// node is a verifier as it was heard.
type node struct {
	message
	heard    time.Time
	ended    bool
	delays   Histogram
	unproven uint64
}

// fact is one that ended something.
type fact struct {
	sequence                     uint64
	kind, keyspace, owner, keyID string
	decided                      events.Time

	began, acknowledged time.Time // by this node; zero: another one appended it
	seen                time.Time // when it was first known here
	known               bool      // what it is, not only its sequence

	told     map[string]confirmation
	recorded time.Time // by whomever; zero: not yet
	writing  bool
	retry    time.Time
	changed  chan struct{} // closed and replaced
}

type confirmation struct {
	arrived time.Time
	at      int64 // by its clock; 0: it did not tell
}

// NewWatcher returns one that [Watcher.Run] starts.
func NewWatcher(o WatchOptions) *Watcher {
	o.Bound = cmp.Or(o.Bound, Bound)
	o.Log = cmp.Or(o.Log, slog.Default())
	w := &Watcher{o: o, self: o.Teller.o.Node, since: time.Now(), nodes: map[string]*node{}, facts: map[uint64]*fact{}}
	o.Teller.mu.Lock()
	o.Teller.hear = w.own
	o.Teller.mu.Unlock()
	return w
}

// Run listens until ctx ends. listens is called once it does, or fails to for
// now.
func (w *Watcher) Run(ctx context.Context, conn *nats.Conn, listens func()) error {
	hear, err := conn.Subscribe(prefix+"*", func(m *nats.Msg) { w.Hear(m.Subject, m.Data, time.Now()) })
	if err != nil {
		return fmt.Errorf("listen to the verifiers: %w", err)
	}
	defer hear.Unsubscribe()
	_ = conn.FlushTimeout(Every)
	w.mu.Lock()
	w.since = time.Now()
	w.mu.Unlock()
	listens()
	tick := time.NewTicker(Every / 4)
	defer tick.Stop()
	var writing sync.WaitGroup
	defer writing.Wait()
	room := make(chan struct{}, 4)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, f := range w.due(time.Now()) {
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			writing.Go(func() {
				defer func() { <-room }()
				w.record(ctx, f)
			})
		}
	}
}

// Hear takes in a message. It never fails: what cannot be used is ignored.
func (w *Watcher) Hear(subject string, data []byte, now time.Time) {
	var m message
	if len(data) > maxBytes || json.Unmarshal(data, &m) != nil || !m.valid() || subject != prefix+m.Node {
		w.ignored.Add(1)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[m.Node]
	if n == nil {
		if len(w.nodes) == mostNodes || m.Ends {
			w.ignored.Add(1)
			return
		}
		n = &node{}
		w.nodes[m.Node] = n
	} else if m.Start < n.Start {
		return // of a process that another has followed
	}
	stopped, measured := m.Stopped, m.Measured
	m.Stopped, m.Measured = nil, nil
	n.message, n.heard, n.ended = m, now, m.Ends
	for _, s := range stopped {
		if len(w.order) > 2*mostFacts {
			break // whoever tells so much makes it up
		}
		w.confirm(w.fact(s.Sequence, now), m.Node, confirmation{now, s.At})
	}
	for _, f := range w.open() {
		if m.From < f.sequence && (f.sequence <= m.Sequence || m.Ends) {
			w.confirm(f, m.Node, confirmation{now, 0})
		}
	}
	for _, sequence := range measured {
		if f := w.facts[sequence]; f != nil && m.Node != w.self && f.recorded.IsZero() {
			f.recorded = now
		}
	}
}

// own is what this node's ring has applied. It is called by the goroutine that
// applies records.
func (w *Watcher) own(s keyring.Stopped) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.fact(s.Sequence, s.At)
	f.describe(&s.Event)
	w.confirm(f, w.self, confirmation{s.At, s.At.UnixNano()})
}

// Appended says that this node appended a batch: the sequence of its first fact, when
// it was given to the server, and when that had acknowledged it.
func (w *Watcher) Appended(first uint64, batch []ledger.Expect, began, acknowledged time.Time) {
	for i := range batch {
		if !keyring.Stops(&batch[i].Event) {
			continue
		}
		w.mu.Lock()
		f := w.fact(first+uint64(i), acknowledged)
		f.describe(&batch[i].Event)
		f.began, f.acknowledged = began, acknowledged
		f.announce()
		w.mu.Unlock()
	}
}

// fact needs mu.
func (w *Watcher) fact(sequence uint64, now time.Time) *fact {
	f := w.facts[sequence]
	if f == nil {
		f = &fact{sequence: sequence, seen: now, told: map[string]confirmation{}, changed: make(chan struct{})}
		w.facts[sequence] = f
		w.order = append(w.order, f)
	}
	return f
}

func (f *fact) describe(e *events.Envelope) {
	if !f.known {
		f.known, f.kind, f.decided = true, e.Type, e.Time
		f.keyspace, f.owner, f.keyID = strings.Clone(e.Keyspace), strings.Clone(e.Owner), strings.Clone(e.Key)
	}
}

func (f *fact) announce() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// confirm needs mu. The first word counts; its moment may come later.
func (w *Watcher) confirm(f *fact, name string, c confirmation) {
	before, ok := f.told[name]
	switch {
	case !ok:
		f.told[name] = c
	case before.at == 0 && c.at != 0:
		f.told[name] = confirmation{before.arrived, c.at}
	default:
		return
	}
	f.announce()
}

// open are the facts of the last while that somebody may still confirm. It needs mu.
func (w *Watcher) open() []*fact {
	i := len(w.order)
	for i > 0 && len(w.order)-i < maxStops && (w.order[i-1].recorded.IsZero() || time.Since(w.order[i-1].seen) < 2*w.o.Bound) {
		i--
	}
	return w.order[i:]
}

// window is after how long without LEDGER a node answers STATE_TOO_STALE.
func (n *node) window() time.Duration { return time.Duration(n.WindowMS) * time.Millisecond }

// expects says whether a node is to confirm a fact: it may have accepted what the fact
// ended, and was heard, or it has not been silent for as long as it may go on without
// LEDGER.
func (n *node) expects(f *fact) bool {
	return !n.ended && n.From < f.sequence && f.seen.Sub(n.heard) <= n.window()+Silent
}

// missing needs mu. Who has applied more than the fact by now has confirmed it, with
// the last word that came.
func (w *Watcher) missing(f *fact) (names []string) {
	for name, n := range w.nodes {
		if _, ok := f.told[name]; ok || !n.expects(f) {
			continue
		}
		if n.Sequence >= f.sequence {
			f.told[name] = confirmation{n.heard, 0}
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// base is from when delays count.
func (f *fact) base() (at time.Time, basis string) {
	if !f.acknowledged.IsZero() {
		return f.acknowledged, Acknowledged
	}
	return f.decided.Time(), Clocks
}

// What a delay counts from.
const (
	Acknowledged = "acknowledged" // by the clock of the node that appended the fact
	Clocks       = "clocks"       // by those of two machines
)

// due takes what is to be recorded now, and forgets what is over.
func (w *Watcher) due(now time.Time) (list []*fact) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.order) > 0 {
		f := w.order[0]
		over := !f.recorded.IsZero() && now.Sub(f.recorded) > keepFor || !f.known && now.Sub(f.seen) > keepFor || len(w.order) > mostFacts
		if !over || f.writing {
			break
		}
		if f.known && f.recorded.IsZero() {
			w.dropped.Add(1)
		}
		delete(w.facts, f.sequence)
		w.order = w.order[1:]
	}
	maps.DeleteFunc(w.nodes, func(name string, n *node) bool {
		silent := now.Sub(n.heard)
		return n.ended && silent > Silent || silent > max(2*n.window(), forgetFrom)
	})
	for _, f := range w.order {
		if !f.known || f.writing || !f.recorded.IsZero() || now.Before(f.retry) {
			continue
		}
		age := now.Sub(f.seen)
		if !f.acknowledged.IsZero() {
			if age < settle || age < w.o.Bound && len(w.missing(f)) > 0 {
				continue
			}
		} else if age < w.o.Bound+w.o.Bound/takeover {
			continue
		}
		f.writing = true
		list = append(list, f)
		if len(list) == maxStops {
			break
		}
	}
	return list
}

// record stores the measurement of a fact.
func (w *Watcher) record(ctx context.Context, f *fact) {
	w.mu.Lock()
	m := w.measured(f, time.Now())
	e := events.New(m, time.Now())
	e.Keyspace, e.Owner, e.Key = f.keyspace, f.owner, f.keyID
	w.mu.Unlock()
	e.Actor, e.Via = events.Actor{Type: "system", ID: w.self}, w.o.Teller.o.Program
	var err error
	if w.o.Record != nil {
		err = w.o.Record(ctx, e)
	}
	w.mu.Lock()
	f.writing = false
	if err != nil {
		f.retry = time.Now().Add(5 * Every)
		w.mu.Unlock()
		if ctx.Err() == nil {
			w.o.Log.WarnContext(ctx, "how long a revocation took is not recorded yet", "sequence", f.sequence, "error", err)
		}
		return
	}
	f.recorded = time.Now()
	slowest := int64(0)
	for _, s := range m.Stopped {
		slowest = max(slowest, s.DelayUS)
		if n := w.nodes[s.Node]; n != nil {
			n.delays.add(s.DelayUS)
		}
	}
	for _, u := range m.Unconfirmed {
		if n := w.nodes[u.Node]; n != nil {
			n.unproven++
		}
	}
	if len(m.Stopped) > 0 {
		if w.recent = append(w.recent, slowest); len(w.recent) > mostRecent {
			w.recent = w.recent[1:]
		}
	}
	w.mu.Unlock()
	w.o.Teller.recorded(f.sequence)
}

// measured needs mu.
func (w *Watcher) measured(f *fact, now time.Time) events.RevocationMeasured {
	missing := w.missing(f)
	base, basis := f.base()
	m := events.RevocationMeasured{Sequence: f.sequence, Fact: f.kind, Decided: f.decided, Node: w.self, Basis: basis,
		Stopped: []events.VerifierStopped{}, Unconfirmed: []events.VerifierUnconfirmed{}}
	if basis == Acknowledged {
		m.AppendUS = f.acknowledged.Sub(f.began).Microseconds()
	}
	for _, name := range slices.Sorted(maps.Keys(f.told)) {
		c := f.told[name]
		s := events.VerifierStopped{Node: name, DelayUS: delay(c, base)}
		if c.at != 0 {
			s.ClockUS = new((c.at - f.decided.Time().UnixNano()) / 1000)
		}
		m.Stopped = append(m.Stopped, s)
	}
	for _, name := range missing {
		m.Unconfirmed = append(m.Unconfirmed, events.VerifierUnconfirmed{Node: name, StaleMS: w.nodes[name].WindowMS})
	}
	if len(m.Unconfirmed) > 0 {
		m.WaitedMS = now.Sub(f.seen).Milliseconds()
	}
	return m
}

// delay is in whole microseconds, rounded up: never shorter than it was.
func delay(c confirmation, base time.Time) int64 {
	return int64((max(c.arrived.Sub(base), 0) + time.Microsecond - 1) / time.Microsecond)
}
