package verify

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stream is a stream whose head a test moves, and a ring that is told of it.
type stream struct {
	head, ring atomic.Uint64
	away       atomic.Bool
	asked      atomic.Int64
}

func (s *stream) ask(context.Context) (uint64, error) {
	s.asked.Add(1)
	if s.away.Load() {
		return 0, errors.New("away")
	}
	return s.head.Load(), nil
}

func (s *stream) wait(ctx context.Context, sequence uint64) error {
	for s.ring.Load() < sequence {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// While the stream answers, the state is fresh; when it is lost, the state
// stays good for the window and no longer; it is good again when it is back.
func TestStaleWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stream{}
		f := newFreshness(s.ask, s.wait, 10*time.Second)
		s.away.Store(true)
		if f.ok(time.Now()) || f.okSlow() {
			t.Error("fresh before the stream ever answered")
		}
		begun := time.Now()
		if f.okSlow() || time.Since(begun) > 0 {
			t.Error("a second request waited for a stream that did not answer the first")
		}
		s.away.Store(false)
		f = newFreshness(s.ask, s.wait, 10*time.Second)
		if !f.okSlow() {
			t.Error("the first request of a process does not wait for the stream's first answer")
		}
		ctx, stop := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer stop()
		go f.run(ctx)
		time.Sleep(time.Minute)
		if !f.ok(time.Now()) {
			t.Error("not fresh while the stream answers")
		}
		s.away.Store(true)
		time.Sleep(8 * time.Second)
		if !f.ok(time.Now()) {
			t.Error("not fresh within the window")
		}
		time.Sleep(3 * time.Second)
		asked := s.asked.Load()
		if f.ok(time.Now()) || f.okSlow() {
			t.Error("fresh beyond the window")
		}
		if s.asked.Load() != asked {
			t.Error("a refusal asked the stream")
		}
		if lost := f.lost(time.Now()); lost < 10*time.Second || lost > 13*time.Second {
			t.Errorf("lost for %v", lost)
		}
		s.away.Store(false)
		time.Sleep(2 * time.Second)
		if !f.ok(time.Now()) {
			t.Error("not fresh after the stream came back")
		}
		// The stream answers, but the ring does not follow: that is as stale.
		s.head.Add(1)
		time.Sleep(20 * time.Second)
		if f.ok(time.Now()) || f.okSlow() {
			t.Error("fresh with a ring that stands still")
		}
	})
}

// After a pause nothing is answered before the ring has what was appended in
// it.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stream{}
		f := newFreshness(s.ask, s.wait, time.Minute)
		f.probe(t.Context())
		if !f.okSlow() || !f.ok(time.Now()) {
			t.Fatal("not fresh")
		}
		time.Sleep(3 * time.Second) // no ticker runs: the process was stopped
		s.head.Store(7)
		if f.ok(time.Now()) {
			t.Error("the lease outlives a pause")
		}
		go func() {
			time.Sleep(40 * time.Millisecond)
			s.ring.Store(7)
		}()
		begun := time.Now()
		if !f.okSlow() || s.ring.Load() != 7 {
			t.Error("answered before it caught up")
		}
		if took := time.Since(begun); took < 40*time.Millisecond || took > 100*time.Millisecond {
			t.Errorf("caught up in %v", took)
		}
		// Where the stream cannot be asked either, the window decides, after a while.
		time.Sleep(3 * time.Second)
		s.away.Store(true)
		begun = time.Now()
		if !f.okSlow() {
			t.Error("refused within the window")
		}
		if took := time.Since(begun); took < catchTime {
			t.Errorf("gave up catching up after %v", took)
		}
		time.Sleep(2 * time.Minute)
		if f.okSlow() {
			t.Error("fresh beyond the window")
		}
	})
}

// A pause that only the wall clock shows is one too.
func TestSuspended(t *testing.T) {
	f := newFreshness(func(context.Context) (uint64, error) { return 0, nil }, func(context.Context, uint64) error { return nil }, time.Minute)
	f.probe(t.Context())
	f.okSlow()
	now := time.Now()
	if !f.ok(now) {
		t.Fatal("not fresh")
	}
	f.leaseWall.Store(now.UnixNano() - 1) // the monotonic clock stood still
	if f.ok(now) {
		t.Error("the lease outlives a suspension")
	}
}
