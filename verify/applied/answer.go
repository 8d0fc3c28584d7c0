package applied

import (
	"context"
	"slices"
	"time"

	"github.com/keyledger/keyledger/events"
)

// Revocation is how far the verifiers are with one fact.
type Revocation struct {
	events.RevocationMeasured
	Keyspace, Owner, Key string
	Since                time.Time // delays count from here, by this node's clock
	Recorded             bool
	Settled              bool // every running verifier has been heard of
}

// Revocation is what is known of the fact at a sequence of LEDGER, if it was seen here
// in the last minutes.
func (w *Watcher) Revocation(sequence uint64, now time.Time) (r Revocation, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.facts[sequence]
	if f == nil || !f.known {
		return r, false
	}
	return w.revocation(f, now), true
}

// revocation needs mu.
func (w *Watcher) revocation(f *fact, now time.Time) Revocation {
	base, _ := f.base()
	return Revocation{w.measured(f, now), f.keyspace, f.owner, f.keyID, base, !f.recorded.IsZero(), now.Sub(w.since) >= settle}
}

// Revocations are those that were seen here in the last minutes, in the order in which
// they came.
func (w *Watcher) Revocations(now time.Time) (list []Revocation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.order {
		if f.known {
			list = append(list, w.revocation(f, now))
		}
	}
	return list
}

// Wait waits until every known verifier refuses what the fact at a sequence ended, and
// answers what is known then, or when ctx ends. It is not ok where the fact is not
// known here.
func (w *Watcher) Wait(ctx context.Context, sequence uint64) (r Revocation, ok bool) {
	again := time.NewTicker(Every / 4) // a node may be forgotten, or be new
	defer again.Stop()
	for {
		w.mu.Lock()
		f := w.facts[sequence]
		if f == nil || !f.known {
			w.mu.Unlock()
			return r, false
		}
		r = w.revocation(f, time.Now())
		changed := f.changed
		w.mu.Unlock()
		if r.Settled && len(r.Unconfirmed) == 0 {
			return r, true
		}
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return r, true
		}
	}
}

// Verifier is one as it was heard last.
type Verifier struct {
	Node, Program string
	Sequence      uint64        // of LEDGER, that it has applied
	Lost          time.Duration // since its state was last known to be complete, now
	Window        time.Duration // after how long of that it answers STATE_TOO_STALE
	Held          int
	Heard         time.Time
	Clock         time.Duration // its clock minus this one's, less what the message took
	Silent        bool          // nothing has been heard of it for longer than it is ever quiet

	Delays      Histogram // of what this node has recorded
	Unconfirmed uint64    // revocations that it did not confirm in time
}

// Verifiers are those that were heard, by name. One that ends says so and is not among
// them any more; one that dies stays for an hour, silent.
func (w *Watcher) Verifiers(now time.Time) (list []Verifier) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, n := range w.nodes {
		if n.ended {
			continue
		}
		list = append(list, Verifier{
			Node: name, Program: n.Program, Sequence: n.Sequence, Held: n.Held, Heard: n.heard, Window: n.window(),
			Lost:   time.Duration(n.LostMS)*time.Millisecond + now.Sub(n.heard),
			Clock:  time.Duration(n.Sent - n.heard.UnixNano()),
			Silent: now.Sub(n.heard) > Silent, Delays: n.delays, Unconfirmed: n.unproven,
		})
	}
	slices.SortFunc(list, func(a, b Verifier) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	return list
}

// Summary is of the last measurements that this node recorded, at most a thousand:
// until the slowest verifier that confirmed had stopped.
type Summary struct {
	Measured      int
	P50, P99, Max time.Duration
	Dropped       uint64 // facts that stayed unmeasured
	Waiting       int    // facts that are not recorded yet
}

// Summary sums up.
func (w *Watcher) Summary() (s Summary) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.order {
		if f.known && f.recorded.IsZero() {
			s.Waiting++
		}
	}
	s.Dropped = w.dropped.Load()
	sorted := slices.Sorted(slices.Values(w.recent))
	if s.Measured = len(sorted); s.Measured == 0 {
		return s
	}
	at := func(share int) time.Duration {
		return time.Duration(sorted[(len(sorted)*share+99)/100-1]) * time.Microsecond
	}
	s.P50, s.P99, s.Max = at(50), at(99), at(100)
	return s
}

// Buckets are the upper bounds of a histogram's classes, in seconds.
var Buckets = [...]float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60}

// Histogram counts delays; Classes are cumulative.
type Histogram struct {
	Classes [len(Buckets)]uint64
	Count   uint64
	Sum     float64 // seconds
}

func (h *Histogram) add(us int64) {
	seconds := float64(us) / 1e6
	h.Count++
	h.Sum += seconds
	for i, bound := range Buckets {
		if seconds <= bound {
			h.Classes[i]++
		}
	}
}
