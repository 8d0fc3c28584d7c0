package applied

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/projections/keyring"
)

// Options of a [Teller]. Node, Program and Ring are required.
type Options struct {
	Node    string // of this process, a subject token that no other running one has
	Program string // serve, gateway, dev, verifier
	Ring    *keyring.Ring

	Lost   func() time.Duration // how long ago the state was last known to be complete; nil: it always is
	Window time.Duration        // after how long of that it answers STATE_TOO_STALE
	Held   func() int           // uses that wait to be written; nil: none
}

// Teller tells what this node has applied.
type Teller struct {
	o     Options
	start time.Time
	from  uint64
	wake  chan struct{} // has room for one

	mu       sync.Mutex // guards what follows
	fresh    []stop     // not told yet
	told     []told     // to be told again, oldest first
	measured []uint64
	hear     func(keyring.Stopped)
}

type told struct {
	stop
	at time.Time
}

// mostFresh bounds what waits while NATS is away: what is dropped is confirmed by the
// sequence alone, later.
const mostFresh = 64 << 10

// NewTeller begins to note what the ring applies. The ring MUST be ready; it tells one
// teller alone.
func NewTeller(o Options) *Teller {
	t := &Teller{o: o, start: time.Now(), wake: make(chan struct{}, 1)}
	o.Ring.OnStopped(t.stopped)
	t.from = o.Ring.Sequence()
	return t
}

// stopped is called by the goroutine that applies records.
func (t *Teller) stopped(s keyring.Stopped) {
	t.mu.Lock()
	if len(t.fresh) == mostFresh {
		t.fresh = t.fresh[1:]
	}
	t.fresh = append(t.fresh, stop{s.Sequence, s.At.UnixNano()})
	hear := t.hear
	t.mu.Unlock()
	t.poke()
	if hear != nil {
		hear(s)
	}
}

func (t *Teller) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// recorded says to the others that a measurement is recorded.
func (t *Teller) recorded(sequence uint64) {
	t.mu.Lock()
	t.measured = append(t.measured, sequence)
	t.mu.Unlock()
	t.poke()
}

// Run tells until ctx ends, and then that this node verifies no more. What is to be
// told while the connection is down is told when it is back.
func (t *Teller) Run(ctx context.Context, conn *nats.Conn) {
	defer t.o.Ring.OnStopped(nil)
	beat := time.NewTicker(Every)
	defer beat.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for whole := true; ; {
		more := false
		if conn.IsConnected() {
			var b []byte
			b, more = t.message(time.Now(), whole, false)
			_ = conn.Publish(prefix+t.o.Node, b)
		}
		whole = false
		pause.Reset(between)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		if more && ctx.Err() == nil {
			continue
		}
		select {
		case <-t.wake:
		case <-beat.C:
			whole = true
		case <-ctx.Done():
			if conn.IsConnected() {
				b, _ := t.message(time.Now(), true, true)
				_ = conn.Publish(prefix+t.o.Node, b)
				_ = conn.FlushTimeout(Every / 4)
			}
			return
		}
	}
}

// message takes what is fresh; a whole one repeats what was told a moment ago. more
// says that not everything fitted.
func (t *Teller) message(now time.Time, whole, ends bool) (b []byte, more bool) {
	m := message{Version: version, Node: t.o.Node, Program: t.o.Program, Start: t.start.UnixNano(), Sent: now.UnixNano(),
		From: t.from, WindowMS: t.o.Window.Milliseconds(), Ends: ends}
	if t.o.Lost != nil {
		m.LostMS = max(t.o.Lost().Milliseconds(), 0)
	}
	if t.o.Held != nil {
		m.Held = t.o.Held()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.told) > 0 && now.Sub(t.told[0].at) > repeatFor {
		t.told = t.told[1:]
	}
	n := min(len(t.fresh), maxStops)
	m.Stopped = append(m.Stopped, t.fresh[:n]...)
	if whole {
		// The youngest: the older ones were repeated before.
		for i := len(t.told) - 1; i >= 0 && len(m.Stopped) < maxStops; i-- {
			m.Stopped = append(m.Stopped, t.told[i].stop)
		}
	}
	for _, s := range t.fresh[:n] {
		t.told = append(t.told, told{s, now})
	}
	if n > 0 {
		// What stands before it in the stream is applied too, though the ring may not
		// have announced it yet.
		m.Sequence = t.fresh[n-1].Sequence
	}
	t.fresh = append(t.fresh[:0], t.fresh[n:]...)
	if len(t.fresh) == 0 {
		m.Sequence = max(m.Sequence, t.o.Ring.Sequence())
	}
	k := min(len(t.measured), maxStops)
	m.Measured = append(m.Measured, t.measured[:k]...)
	t.measured = append(t.measured[:0], t.measured[k:]...)
	b, err := json.Marshal(m)
	if err != nil {
		return nil, false // numbers and names: it cannot be
	}
	return b, len(t.fresh) > 0 || len(t.measured) > 0
}
