package verify

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// freshness answers, with two loads, whether the state in memory may be
// trusted at a moment.
//
// A ticker grants a lease of maxPause again and again. The lease ends early
// where the stream was lost for longer than the stale window. A process that was
// stopped (SIGSTOP, a suspended or migrated machine, a starved scheduler) finds
// its lease run out when it wakes: whoever asks then waits until the stream's
// head, asked anew, has been folded. Time is taken from both clocks, because the
// monotonic one may stand still in a suspended machine and the wall clock may be
// set back.
//
// Where NATS cannot be asked after a pause either, the verifier is one that has
// lost the stream, and answers by the stale window.
type freshness struct {
	head   func(context.Context) (uint64, error) // of LEDGER; nil: always fresh
	wait   func(context.Context, uint64) error   // until the ring has it
	window time.Duration

	start     time.Time    // monotonic readings count from here
	leaseMono atomic.Int64 // the lease ends when either clock passes: nanoseconds since start
	leaseWall atomic.Int64 // and since 1970

	// mu guards the rest.
	mu       sync.Mutex
	known    time.Time     // the state was complete at least up to here; zero: never yet
	tried    bool          // the stream's first answer has been waited for
	last     time.Time     // last tick that found no gap behind it
	catching chan struct{} // closed when the catching-up under way ends; nil when none is
}

const (
	tick       = 100 * time.Millisecond
	maxPause   = 3 * tick        // without a tick; longer is a pause
	probeEvery = time.Second     // how often the head is asked
	probeTime  = 2 * time.Second // at most for one answer
	catchTime  = 5 * time.Second // after a pause; covers a reconnection
)

func newFreshness(head func(context.Context) (uint64, error), wait func(context.Context, uint64) error, window time.Duration) *freshness {
	now := time.Now()
	return &freshness{head: head, wait: wait, window: window, start: now, last: now}
}

// ok is the fast path.
func (f *freshness) ok(now time.Time) bool {
	return int64(now.Sub(f.start)) < f.leaseMono.Load() && now.UnixNano() < f.leaseWall.Load()
}

// okSlow decides where the lease has run out: a pause is waited out, and so is the
// first answer of the stream after a start, once; a lost stream is refused at once.
func (f *freshness) okSlow() bool {
	if f.head == nil {
		return true
	}
	f.mu.Lock()
	if now := time.Now(); (f.tried || !f.known.IsZero()) && !f.paused(now) {
		defer f.mu.Unlock()
		f.grant(now)
		return f.ok(now)
	}
	done := f.catchUp()
	f.mu.Unlock()
	<-done
	return f.ok(time.Now())
}

// paused needs mu.
func (f *freshness) paused(now time.Time) bool {
	return now.Sub(f.last) > maxPause || now.UnixNano()-f.last.UnixNano() > int64(maxPause)
}

// grant needs mu, and that there is no pause to catch up with.
func (f *freshness) grant(now time.Time) {
	f.last = now
	if f.known.IsZero() {
		return
	}
	until := now.Add(maxPause)
	if end := f.known.Add(f.window); end.Before(until) {
		until = end
	}
	f.leaseMono.Store(int64(until.Sub(f.start)))
	wall := now.UnixNano() + int64(maxPause)
	f.leaseWall.Store(min(wall, f.known.UnixNano()+int64(f.window)))
}

// catchUp needs mu. It returns what is closed when the stream was caught up
// with, or cannot be.
func (f *freshness) catchUp() <-chan struct{} {
	if f.catching != nil {
		return f.catching
	}
	done := make(chan struct{})
	f.catching = done
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), catchTime)
		defer cancel()
		for !f.caughtUp(ctx) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(tick):
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.catching, f.tried = nil, true
		f.grant(time.Now())
	}()
	return done
}

// caughtUp says whether the state is complete up to a moment ago. An answer that
// was asked for before yet another pause does not count.
func (f *freshness) caughtUp(ctx context.Context) bool {
	asked := time.Now()
	if !f.probe(ctx) {
		return false
	}
	now := time.Now()
	return now.Sub(asked) <= maxPause && now.UnixNano()-asked.UnixNano() <= int64(maxPause)
}

// probe asks the head of the stream and waits until it is folded: the state is
// then complete up to the moment of asking.
func (f *freshness) probe(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	asked := time.Now()
	head, err := f.head(ctx)
	if err != nil || f.wait(ctx, head) != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if asked.After(f.known) {
		f.known = asked
	}
	return true
}

// run grants leases and asks for the head until ctx ends.
func (f *freshness) run(ctx context.Context) {
	if f.head == nil {
		f.leaseMono.Store(1<<63 - 1)
		f.leaseWall.Store(1<<63 - 1)
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		every(ctx, probeEvery, func() { f.probe(ctx) })
	})
	every(ctx, tick, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		now := time.Now()
		switch {
		case f.catching != nil:
		case f.paused(now):
			f.catchUp()
		default:
			f.grant(now)
		}
	})
	wg.Wait()
}

// lost is how long ago the state was last known to be complete.
func (f *freshness) lost(now time.Time) time.Duration {
	if f.head == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known.IsZero() {
		return now.Sub(f.start)
	}
	return now.Sub(f.known)
}

// every calls do at once and then regularly until ctx ends.
func every(ctx context.Context, d time.Duration, do func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		do()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
