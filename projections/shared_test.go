package projections

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
)

// Whoever takes from a shared reader gets every record after its own position, in order
// and in whole messages, up to the end or until it is told that it is behind; and the
// reader keeps no more than it may.
func TestSeats(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var parts [][]events.Record
		var sizes = rapid.SliceOfN(rapid.IntRange(1, 4), 1, 40).Draw(rt, "lines of messages")
		largest, head := 0, uint64(0)
		for len(sizes) > 0 {
			var records []events.Record
			for range min(len(sizes), rapid.IntRange(1, 3).Draw(rt, "messages of a part")) {
				head++
				for line := range sizes[0] {
					records = append(records, events.Record{Sequence: head, Line: line, Body: make([]byte, 10)})
				}
				sizes = sizes[1:]
			}
			parts, largest = append(parts, records), max(largest, 10*len(records))
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &shared{stream: "S", bytes: rapid.IntRange(10, 300).Draw(rt, "bytes")}
		s.read = func(ctx context.Context, after uint64) iter.Seq2[[]events.Record, error] {
			return func(yield func([]events.Record, error) bool) {
				for _, p := range parts {
					if !yield(p, nil) {
						return
					}
				}
				<-ctx.Done()
			}
		}
		type follower struct {
			seat *seat
			at   uint64
		}
		var followers []*follower
		if s.join(ctx, 0, false) != nil {
			rt.Fatal("there is a seat where nobody reads")
		}
		first := &follower{s.join(ctx, 0, true), 0}
		followers = append(followers, first)
		for first.at < head {
			if rapid.IntRange(0, 3).Draw(rt, "what") == 0 {
				at := rapid.Uint64Range(0, first.at).Draw(rt, "position")
				if seat := s.join(ctx, at, false); seat != nil {
					followers = append(followers, &follower{seat, at})
				}
				continue
			}
			// The first is never behind, since the reader waits for the fastest and it
			// alone may pass the others here.
			f := rapid.SampledFrom(followers).Draw(rt, "who")
			if f != first && f.at >= first.at || f.seat == nil {
				f = first
			}
			most := rapid.IntRange(1, 9).Draw(rt, "most")
			batch, ok := f.seat.next(ctx, most, 0, nil)
			if !ok {
				if f == first {
					rt.Fatal("the fastest is behind")
				}
				f.seat.leave()
				f.seat = nil
				continue
			}
			line := -1
			for _, r := range batch {
				if r.Line == 0 {
					f.at, line = f.at+1, -1
				}
				if line++; r.Sequence != f.at || r.Line != line {
					rt.Fatalf("after %d comes sequence %d, line %d", f.at, r.Sequence, r.Line)
				}
			}
			s.mu.Lock()
			kept, next := f.seat.w.bytes, f.seat.w.next
			s.mu.Unlock()
			if kept > max(s.bytes, largest) {
				rt.Fatalf("%d bytes are kept of %d", kept, s.bytes)
			}
			if f.at >= next {
				rt.Fatalf("taken up to %d, read up to %d", f.at, next-1)
			}
		}
		cancel()
		for _, f := range followers {
			if f.seat == nil {
				continue
			}
			if f == first {
				if _, ok := f.seat.next(ctx, 1, 0, nil); ok {
					rt.Fatal("there is more after the end")
				}
			}
			f.seat.leave()
		}
		if s.now != nil {
			rt.Fatal("somebody reads for nobody")
		}
	})
}

// consumers waits until a stream has so many readers.
func consumers(t *testing.T, js jetstream.JetStream, stream string, want int) {
	t.Helper()
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		info, err := s.Info(t.Context())
		if err == nil && info.State.Consumers == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has %d readers, want %d (%v)", stream, info.State.Consumers, want, err)
		}
	}
}

// held is Usage whose Apply waits for the test.
type held struct {
	Usage
	in, out chan struct{}
}

func (h held) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	select {
	case h.in <- struct{}{}:
		select {
		case <-h.out:
		case <-ctx.Done():
		}
	default:
	}
	return h.Usage.Apply(ctx, tx, batch)
}

// The followers of a stream have one reader. One that is held up is passed by the
// others, reads for itself when it goes on, and then takes part again; nothing is
// missing and nothing counted twice.
func TestOneReader(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	l, pool := openOn(t, nc), database(t)
	slow := held{in: make(chan struct{}), out: make(chan struct{})}
	r := newRunner(l, pool, slog.New(slog.DiscardHandler), append(trees(), slow, Uses{}))
	r.followers[len(r.followers)-1].source.bytes = 1 // a part is kept at a time
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { r.Run(ctx) })
	defer all.Wait()
	defer cancel()
	w := newWriter(t, l)
	w.page(use("key_0001", start, new(200)))
	<-slow.in
	for i := range 30 {
		w.page(use(fmt.Sprintf("key_%04d", i), start.Add(time.Duration(i)*time.Second), new(200)), use("key_0001", start, new(500)))
		if err := r.Wait(ctx, Uses{}.Name(), w.usage); err != nil {
			t.Fatal(err)
		}
	}
	consumers(t, js, events.Usage, 1)
	slow.out <- struct{}{}
	w.caughtUp(r)
	consumers(t, js, events.Usage, 1)
	if n := scan[int64](t, pool, `select sum(requests)::bigint from keyledger.usage_v2`); n != w.requests {
		t.Errorf("%d requests are counted, %d were made", n, w.requests)
	}
	for _, f := range r.followers {
		if d, err := r.Compare(ctx, f.p.Name(), nil); err != nil || d.Differences > 0 {
			t.Errorf("%s: %+v, %v", f.p.Name(), d, err)
		}
	}
	cancel()
	all.Wait()
	consumers(t, js, events.Usage, 0)
}

// Where much comes, batches wait for more; but not while somebody waits for them.
func TestAwaitedWhileBusy(t *testing.T) {
	l, pool := openLedger(t), database(t)
	r := newRunner(l, pool, slog.New(slog.DiscardHandler), []Projection{Usage{}})
	r.busy = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { r.Run(ctx) })
	defer all.Wait()
	defer cancel()
	w := newWriter(t, l)
	var page []events.Envelope
	for i := range busyRecords {
		page = append(page, use(fmt.Sprintf("key_%04d", i), start, new(200)))
	}
	for range 5 {
		w.page(page...)
		if err := r.Wait(ctx, Usage{}.Name(), w.usage); err != nil {
			t.Fatal(err)
		}
	}
	before := w.usage
	w.page(page...)
	w.page(page...)
	f := r.followers[0]
	for read := false; !read; {
		f.source.mu.Lock()
		moved := f.source.now.moved
		read = f.source.now.next > w.usage
		f.source.mu.Unlock()
		if !read {
			<-moved
		}
	}
	if at := f.position(); at != before {
		t.Errorf("it went from %d to %d and did not wait for more", before, at)
	}
	if err := r.Wait(ctx, Usage{}.Name(), before+1); err != nil {
		t.Fatal(err)
	}
	if at := f.position(); at != w.usage {
		t.Errorf("the batch went to %d, both pages to %d", at, w.usage)
	}
}
