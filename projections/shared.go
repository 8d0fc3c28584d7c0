package projections

import (
	"context"
	"iter"
	"runtime/pprof"
	"sort"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

const (
	// Of the stored bytes that a shared reader keeps for those who are not yet there:
	// of USAGE a second of 40,000 uses. Decoded, they take twice as much memory.
	sharedUsageBytes = 24 << 20
	sharedOtherBytes = 2 << 20

	sharedRecords = 4096            // in one part, at most
	nearHead      = 256             // messages: a reader that begins there has little to read for itself
	headAsked     = time.Second / 4 // the least between two questions where the stream ends
)

// shared reads a stream once for all followers of this process that are near its
// end, and keeps what it has read last. Each follower takes from there what comes after
// its own position, as much and as fast as it can. Who is behind what is kept reads
// for itself until it has caught up, and so does everybody when the reader meets an
// error: what an error means is for each to find out at its own position.
//
// The reader waits for the fastest of its followers, and ends with the last of them.
type shared struct {
	stream string
	bytes  int // kept at most, unless one part has more
	read   func(ctx context.Context, after uint64) iter.Seq2[[]events.Record, error]

	mu  sync.Mutex // guards what follows and all of now
	now *window    // nil: nobody reads
}

// window is what one reader keeps. Its parts follow each other without gaps.
type window struct {
	parts  []part
	bytes  int
	next   uint64 // the sequence that the next part begins with
	seats  map[*seat]bool
	ended  bool          // nothing more comes
	moved  chan struct{} // closed and replaced when a part comes or it has ended
	room   chan struct{} // has one when the reader may look for room again
	cancel context.CancelFunc
	done   chan struct{} // closed when the reader has returned
}

// part are whole messages. MUST NOT be changed: others read them too.
type part struct {
	records []events.Record
	bytes   int
}

func (p *part) last() uint64 { return p.records[len(p.records)-1].Sequence }

// first is the earliest position that a follower may have.
func (w *window) first() uint64 {
	if len(w.parts) > 0 {
		return w.parts[0].records[0].Sequence - 1
	}
	return w.next - 1
}

// seat is one follower at a window. It is for that follower's goroutine alone.
type seat struct {
	*shared
	w  *window
	at uint64 // taken up to here; guarded by mu

	batch []events.Record // reused
}

func newShared(l *ledger.Ledger, stream string) *shared {
	bytes := sharedOtherBytes
	if stream == events.Usage {
		bytes = sharedUsageBytes
	}
	return &shared{stream: stream, bytes: bytes, read: func(ctx context.Context, after uint64) iter.Seq2[[]events.Record, error] {
		return l.FollowBatches(ctx, stream, after, sharedRecords, 0)
	}}
}

// join takes a seat for a follower at a position; nil where that is behind what is
// kept. Where nobody reads, a reader begins there if the follower says that this is
// near the end.
func (s *shared) join(ctx context.Context, at uint64, near bool) *seat {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil && near {
		reading, cancel := context.WithCancel(context.WithoutCancel(ctx))
		s.now = &window{next: at + 1, seats: map[*seat]bool{}, moved: make(chan struct{}), room: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
		go pprof.Do(reading, pprof.Labels("projection", "all of "+s.stream), s.now.run(s, at))
	}
	if s.now == nil || at < s.now.first() {
		return nil
	}
	t := &seat{shared: s, w: s.now, at: at}
	s.now.seats[t] = true
	return t
}

// leave gives the seat back. The last one sees the reader off.
func (t *seat) leave() {
	t.mu.Lock()
	delete(t.w.seats, t)
	last := len(t.w.seats) == 0
	if last && t.now == t.w {
		t.now = nil
	}
	t.w.wake()
	t.mu.Unlock()
	if last {
		t.w.cancel()
		<-t.w.done
	}
}

func (w *window) wake() {
	select {
	case w.room <- struct{}{}:
	default:
	}
}

func (w *window) run(s *shared, after uint64) func(context.Context) {
	return func(ctx context.Context) {
		defer close(w.done)
		for records, err := range s.read(ctx, after) {
			if err != nil || !w.add(ctx, s, records) {
				break
			}
		}
		s.mu.Lock()
		w.ended = true
		if s.now == w {
			s.now = nil
		}
		close(w.moved)
		w.moved = make(chan struct{})
		s.mu.Unlock()
	}
}

// add keeps a part when there is room: what somebody has taken makes room. It is
// false when ctx has ended.
func (w *window) add(ctx context.Context, s *shared, records []events.Record) bool {
	p := part{records: records}
	for i := range records {
		p.bytes += len(records[i].Body)
	}
	for {
		s.mu.Lock()
		fastest := uint64(0)
		for t := range w.seats {
			fastest = max(fastest, t.at)
		}
		gone := 0
		for gone < len(w.parts) && w.bytes+p.bytes > s.bytes && w.parts[gone].last() <= fastest {
			w.bytes -= w.parts[gone].bytes
			w.parts[gone] = part{}
			gone++
		}
		w.parts = w.parts[gone:]
		if len(w.parts) == 0 || w.bytes+p.bytes <= s.bytes {
			w.parts = append(w.parts, p)
			w.bytes += p.bytes
			w.next = p.last() + 1
			close(w.moved)
			w.moved = make(chan struct{})
			s.mu.Unlock()
			return true
		}
		s.mu.Unlock()
		select {
		case <-w.room:
		case <-ctx.Done():
			return false
		}
	}
}

// next is what comes after the last batch: up to most records, or what is there so
// long after the first was, or when hurry has something. It is good until the next call.
// It is false when ctx has ended, and when the follower has to read for itself.
func (t *seat) next(ctx context.Context, most int, within time.Duration, hurry <-chan struct{}) ([]events.Record, bool) {
	clear(t.batch) // which may hold pages that nobody needs any more
	waited := within <= 0
	for {
		t.mu.Lock()
		if t.at < t.w.first() {
			t.mu.Unlock()
			return nil, false
		}
		there, moved := t.there(most), t.w.moved
		if there >= most || there > 0 && (waited || t.w.ended) {
			t.take(most)
			t.w.wake()
			t.mu.Unlock()
			return t.batch, true
		}
		ended := t.w.ended
		t.mu.Unlock()
		if ended {
			return nil, false
		}
		if there == 0 {
			select {
			case <-moved:
			case <-ctx.Done():
				return nil, false
			}
			continue
		}
		timer := time.NewTimer(within)
		select {
		case <-timer.C:
		case <-hurry:
		case <-ctx.Done():
		}
		timer.Stop()
		waited = true
	}
}

// begin is where in the parts the first record is that was not taken.
func (t *seat) begin() (part, record int) {
	parts := t.w.parts
	part = sort.Search(len(parts), func(i int) bool { return parts[i].last() > t.at })
	if part < len(parts) {
		list := parts[part].records
		record = sort.Search(len(list), func(i int) bool { return list[i].Sequence > t.at })
	}
	return part, record
}

// there is how many records can be taken, or most where there are more.
func (t *seat) there(most int) int {
	part, record := t.begin()
	n := -record
	for ; part < len(t.w.parts) && n < most; part++ {
		n += len(t.w.parts[part].records)
	}
	return min(n, most)
}

// take copies the records of whole parts into the batch.
func (t *seat) take(most int) {
	part, record := t.begin()
	t.batch = t.batch[:0]
	for ; part < len(t.w.parts); part, record = part+1, 0 {
		list := t.w.parts[part].records[record:]
		if len(t.batch) > 0 && len(t.batch)+len(list) > most {
			break
		}
		t.batch = append(t.batch, list...)
	}
	t.at = t.batch[len(t.batch)-1].Sequence
}

// isAwaited says whether somebody waits for what comes after a position.
func (f *follower) isAwaited(at uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted > at
}

// records yields batches of what comes after a position, from the shared reader where
// it can. A batch is good until the next one is asked for. It ends with an error, or
// when ctx does.
func (f *follower) records(ctx context.Context, at uint64) iter.Seq2[[]events.Record, error] {
	return func(yield func([]events.Record, error) bool) {
		var asked time.Time
		near := func() bool {
			if time.Since(asked) < headAsked {
				return false
			}
			asked = time.Now()
			head, err := f.ledger.Head(ctx, f.p.Stream())
			return err == nil && at <= head && head-at <= nearHead
		}
		var t *seat
		if near() { // else nobody knows yet whether the stream reaches as far as the position
			t = f.source.join(ctx, at, true)
		}
		for {
			last := 0 // records of the batch before
			for t != nil {
				select {
				case <-f.hurry: // for a batch that was taken before
				default:
				}
				within := batchWithin
				if last >= busyRecords && !f.isAwaited(at) {
					within = f.busy
				}
				batch, ok := t.next(ctx, batchRecords, within, f.hurry)
				last = len(batch)
				if ok && yield(batch, nil) {
					at = batch[len(batch)-1].Sequence
					continue
				}
				t.leave()
				if ok || ctx.Err() != nil {
					return
				}
				t = nil
			}
			for batch, err := range f.ledger.FollowBatches(ctx, f.p.Stream(), at, batchRecords, batchWithin) {
				if !yield(batch, err) || err != nil {
					return
				}
				at = batch[len(batch)-1].Sequence
				if t = f.source.join(ctx, at, near()); t != nil {
					break
				}
			}
			if t == nil {
				return
			}
		}
	}
}

// Records yields batches of what comes after a position of a stream that a projection
// reads, for a reader in this process that keeps what it folds in memory: near the end of
// the stream it costs no reading of its own. The records MUST NOT be changed, and a batch
// is good until the next one is asked for. It ends with an error, or when ctx does.
func (r *Runner) Records(ctx context.Context, stream string, after uint64) iter.Seq2[[]events.Record, error] {
	f := &follower{Runner: r, p: aside{stream}, source: r.sources[stream], hurry: make(chan struct{}), moved: make(chan struct{})}
	return f.records(ctx, after)
}

// aside is a reader that writes nothing.
type aside struct{ stream string }

func (aside) Name() string                                         { return "" }
func (a aside) Stream() string                                     { return a.stream }
func (aside) Tables() []Table                                      { return nil }
func (aside) Apply(context.Context, pgx.Tx, []events.Record) error { return nil }
