package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/reactors/lease"
)

// driver delivers to one target. What is not under mu is of the goroutine in run.
type driver struct {
	*Engine
	ctx     context.Context
	stop    context.CancelFunc
	name    string
	log     *attempts
	working sync.WaitGroup

	mu      sync.Mutex // guards what follows
	reg     Registration
	asked   []replay
	changed chan struct{} // has an element when either was changed

	state    State
	revision uint64
	dirty    bool      // state differs from what is kept
	urgent   bool      // and not only in how far what nobody wants was read
	saved    time.Time // when it was kept

	lanes   map[laneID]*lane
	replays int     // of the lanes
	ready   []*lane // may go on now
	later   []*lane // dead letters that may, when nothing else does
	busy    int     // lanes in the hands of a worker
	done    chan result
	reading map[string]bool // streams that are being read for this target
	pages   chan page
	streak  map[laneID]bool // lanes that failed since anything arrived
	looked  time.Time       // when all lanes were looked at
	pause   time.Time       // nothing is delivered before
	off     string          // why nothing is delivered at all
	gone    string          // what the target said, in an epoch
	epoch   uint64
}

// lane is a key, or a dead letter, with facts that wait.
type lane struct {
	id    laneID
	queue []uint64 // places of facts, in order; the first is the one to deliver
	last  uint64   // all places up to here were in queue, or are not of this lane
	more  bool     // after last, and up to what was read, there may be others
	busy  bool     // ready, or in the hands of a worker
	loads bool     // a worker fills queue; what comes meanwhile is found later

	attempts int // to deliver the first
	since    time.Time
	next     time.Time
}

// laneQueue is how many places a lane holds; the rest is found again by subject.
const laneQueue = 64

// result is what a worker did for a lane.
type result struct {
	lane    *lane
	err     error    // it failed
	failure *Failure // what err says of itself; nil: the attempt was not made
	settled bool     // the first fact is delivered, or dead, or void
	dead    bool
	void    bool // a dead letter that nobody wants replayed any more
	begun   time.Time
	epoch   uint64 // of the registration

	loaded  bool // places were looked for, up to through
	places  []uint64
	through uint64
	more    bool
}

// page is what was read of a stream.
type page struct {
	stream  string
	facts   []Fact
	through uint64
	err     error
}

const pageFacts = 256

func newDriver(ctx context.Context, e *Engine, r Registration, log *attempts) *driver {
	d := &driver{
		Engine: e, name: r.Target.Name(), log: log, reg: r, changed: make(chan struct{}, 1),
		lanes: map[laneID]*lane{}, done: make(chan result), reading: map[string]bool{}, pages: make(chan page),
		streak: map[laneID]bool{},
	}
	d.ctx, d.stop = context.WithCancel(ctx)
	return d
}

func (d *driver) end() { d.stop() }

func (d *driver) update(r Registration) {
	d.mu.Lock()
	d.reg = r
	d.mu.Unlock()
	d.signal()
}

func (d *driver) again(r replay) {
	d.mu.Lock()
	d.asked = append(d.asked, r)
	d.mu.Unlock()
	d.signal()
}

func (d *driver) signal() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

func (d *driver) registration() Registration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reg
}

// run delivers until the driver is ended. An error ends all drivers of the engine.
func (d *driver) run() error {
	defer d.stop()
	for pause := d.MinBackoff; ; {
		err := d.begin()
		if err == nil || d.ctx.Err() != nil || errors.Is(err, errStale) {
			if err != nil {
				return err
			}
			break
		}
		d.Log.Warn("delivery: where a target is cannot be read, tried again", "reactor", d.Reactor, "target", d.name, "error", err)
		select {
		case <-time.After(pause):
		case <-d.ctx.Done():
			return d.ctx.Err()
		}
	}
	err := d.loop()
	d.stop()
	// What the workers still achieve is kept, so that it is not done again.
	go func() {
		d.working.Wait()
		close(d.done)
	}()
	for r := range d.done {
		d.settle(r)
	}
	if err == nil && d.dirty && !errors.Is(context.Cause(d.ctx), lease.ErrLost) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), 2*time.Second)
		defer cancel()
		if err := d.save(ctx); err != nil {
			d.Log.Debug("delivery: what was done last is done again", "reactor", d.Reactor, "target", d.name, "error", err)
		}
	}
	return err
}

// begin reads where the target is, or notes where it begins.
func (d *driver) begin() error {
	st, revision, known, err := d.Store.state(d.ctx, d.Reactor, d.name)
	if err != nil {
		return err
	}
	heads := Place{}
	for _, stream := range streams {
		// Not what has been followed: the target may have been registered behind that.
		if *heads.of(stream), err = d.Ledger.Head(d.ctx, stream); err != nil {
			return err
		}
	}
	if !known {
		st.Read = heads
		if after := d.registration().After; after != nil {
			st.Read = *after
		}
		if st.Dead, err = d.Store.buried(d.ctx, d.Reactor, d.name); err != nil {
			return err
		}
	}
	for _, stream := range streams {
		if at := st.Read.of(stream); *at > *heads.of(stream) {
			// FEED comes before the buckets in a backup; it is made again of LEDGER.
			d.Log.Warn("delivery: a stream is shorter than what was delivered of it: it was restored; what comes now is delivered",
				"reactor", d.Reactor, "target", d.name, "stream", stream, "at", *at, "end", *heads.of(stream))
			*at = *heads.of(stream)
		}
	}
	for _, b := range st.Behind {
		l := &lane{id: laneID{b.Stream, b.Key}, last: max(b.Sequence, 1) - 1, more: true, attempts: b.Attempts, since: b.Since.Time(), next: b.Next.Time()}
		d.lanes[l.id] = l
	}
	st.Token = lease.Token(d.ctx)
	d.state, d.revision = st, revision
	return d.save(d.ctx)
}

// save keeps the state. errStale says that somebody else did since.
func (d *driver) save(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	d.state.Behind = d.state.Behind[:0]
	for _, l := range d.lanes {
		if l.id.stream == events.DLQ {
			continue
		}
		b := Behind{Stream: l.id.stream, Key: l.id.key, Sequence: l.last + 1, Attempts: l.attempts, Since: events.At(l.since), Next: events.At(l.next)}
		if len(l.queue) > 0 {
			b.Sequence = l.queue[0]
		}
		d.state.Behind = append(d.state.Behind, b)
	}
	revision, err := d.Store.save(ctx, &d.state, d.revision)
	if cluster.Conflict(err) {
		st, there, known, read := d.Store.state(ctx, d.Reactor, d.name)
		switch {
		case read != nil:
			return read
		case known && st.Token == d.state.Token && there > d.revision:
			d.revision = there // a write of this process that was not answered
			return errors.New("a write before was not answered")
		case !known && d.revision > 0:
			d.stop() // the target was forgotten
			return nil
		}
		return fmt.Errorf("%w to %s", errStale, d.name)
	}
	if err != nil {
		return err
	}
	d.revision, d.dirty, d.urgent, d.saved = revision, false, false, time.Now()
	return nil
}

// idleSave is how often it is kept that nothing was wanted.
const idleSave = 10 * time.Second

func (d *driver) loop() error {
	tick := time.NewTicker(d.SaveEvery)
	defer tick.Stop()
	for {
		feed, ops := d.windows[events.Feed].signal(), d.windows[events.Ops].signal()
		d.take()
		d.fill()
		wake := d.dispatch()
		var due <-chan time.Time
		if wake > 0 {
			due = time.After(wake)
		}
		select {
		case <-d.ctx.Done():
			return nil
		case r := <-d.done:
			d.settle(r)
		case p := <-d.pages:
			d.reading[p.stream] = false
			if p.err == nil {
				d.accept(p.stream, p.facts, p.through)
			}
		case <-feed:
		case <-ops:
		case <-d.changed:
		case <-due:
		case <-tick.C:
			if d.urgent || d.dirty && time.Since(d.saved) > idleSave {
				if err := d.save(d.ctx); errors.Is(err, errStale) {
					return err
				} else if err != nil && d.ctx.Err() == nil {
					d.Log.Warn("delivery: where a target is cannot be kept, tried again", "reactor", d.Reactor, "target", d.name, "error", err)
				}
			}
		}
	}
}

// take looks at what others have said.
func (d *driver) take() {
	d.mu.Lock()
	reg, asked := d.reg, d.asked
	d.asked = nil
	d.mu.Unlock()
	if d.gone != "" && reg.Epoch != d.epoch {
		d.gone = ""
	}
	d.off = cmp.Or(reg.Disabled, d.gone)
	for _, r := range asked {
		id := laneID{events.DLQ, strconv.FormatUint(r.sequence, 10)}
		l := d.lanes[id]
		if l == nil {
			d.lanes[id] = &lane{id: id, queue: []uint64{r.sequence}, last: r.sequence}
			d.replays++
		} else if len(l.queue) == 1 {
			// Dead again, and asked for again before that was settled; or told twice.
			l.queue = append(l.queue, r.sequence)
		}
	}
}

// fill reads on, unless too much waits.
func (d *driver) fill() {
	for _, stream := range streams {
		for d.off == "" && !d.reading[stream] && len(d.lanes)-d.replays < MaxLanes {
			at := *d.state.Read.of(stream)
			facts, through, ok := d.windows[stream].after(at, pageFacts)
			if !ok {
				d.reading[stream] = true
				d.working.Go(func() {
					p := page{stream: stream}
					if p.facts, p.through, p.err = d.Engine.read(d.ctx, stream, at, through, pageFacts); p.err != nil && d.ctx.Err() == nil {
						d.Log.Warn("delivery: a stream cannot be read, tried again", "reactor", d.Reactor, "target", d.name, "stream", stream, "error", p.err)
						select {
						case <-time.After(time.Second):
						case <-d.ctx.Done():
						}
					}
					select {
					case d.pages <- p:
					case <-d.ctx.Done():
					}
				})
				break
			}
			if through == at {
				break
			}
			d.accept(stream, facts, through)
		}
	}
}

func (d *driver) accept(stream string, facts []Fact, through uint64) {
	target := d.registration().Target
	for i := range facts {
		if !target.Wants(facts[i]) {
			continue
		}
		d.urgent = true
		id := laneOf(&facts[i])
		l := d.lanes[id]
		if l == nil {
			l = &lane{id: id}
			d.lanes[id] = l
		}
		if l.more || l.loads || len(l.queue) == laneQueue {
			l.more = true
			continue
		}
		l.queue = append(l.queue, facts[i].Sequence)
		l.last = facts[i].Sequence
		if len(l.queue) == 1 && !l.busy {
			l.busy = true
			d.ready = append(d.ready, l)
		}
	}
	*d.state.Read.of(stream) = through
	d.dirty = true
}

// lookEvery is how often lanes that wait are looked at while others keep coming.
const lookEvery = 100 * time.Millisecond

// dispatch gives lanes to workers; it answers after which time it is to be called
// again whatever happens, 0: never.
func (d *driver) dispatch() (wake time.Duration) {
	if d.off != "" {
		return 0
	}
	now := time.Now()
	if left := d.pause.Sub(now); left > 0 {
		return left
	}
	if d.busy < d.Parallel && (len(d.ready) == 0 || now.Sub(d.looked) > lookEvery) {
		d.looked = now
		for _, l := range d.lanes {
			left := l.next.Sub(now)
			switch {
			case l.busy:
			case left > 0:
				if wake == 0 || left < wake {
					wake = left
				}
			case l.id.stream == events.DLQ:
				l.busy = true
				d.later = append(d.later, l)
			default:
				l.busy = true
				d.ready = append(d.ready, l)
			}
		}
	}
	if len(d.ready) > 0 {
		wake = lookEvery
	}
	for d.busy < d.Parallel && len(d.ready)+len(d.later) > 0 {
		from := &d.ready
		if len(*from) == 0 {
			from = &d.later
		}
		l := (*from)[0]
		*from = (*from)[1:]
		d.busy++
		load := len(l.queue) == 0
		if load {
			l.more, l.loads = false, true
		}
		copied, through := *l, *d.state.Read.of(l.id.stream)
		d.working.Go(func() {
			if load {
				d.done <- d.load(l, copied, through)
			} else {
				d.done <- d.deliver(l, copied)
			}
		})
	}
	return wake
}

// load looks for the facts of a lane up to a place.
func (d *driver) load(l *lane, c lane, through uint64) result {
	r := result{lane: l, loaded: true, through: through}
	target := d.registration().Target
	for rec, err := range d.Ledger.Read(d.ctx, c.id.stream, c.last+1, max(through, 1), c.id.subject()) {
		if err != nil {
			r.err = fmt.Errorf("read %s: %w", c.id.stream, err)
			return r
		}
		if rec.Sequence > through || !outside(&rec) || !target.Wants(factOf(&rec)) {
			continue
		}
		if len(r.places) == laneQueue {
			r.more = true
			break
		}
		r.places = append(r.places, rec.Sequence)
	}
	if d.ctx.Err() != nil {
		r.err = d.ctx.Err()
	}
	return r
}

// deliver makes one attempt with the first fact of a lane.
func (d *driver) deliver(l *lane, c lane) result {
	r := result{lane: l, begun: time.Now()}
	replays := c.id.stream == events.DLQ
	var f Fact
	var letter DeadLetter
	var revision uint64
	var err error
	if replays {
		var found *Fact
		letter, found, revision, err = d.Store.judged(d.ctx, c.queue[0])
		if errors.Is(err, ledger.ErrNotFound) || err == nil && letter.State != Replaying {
			r.settled, r.void = true, true
			return r
		} else if err == nil {
			f = *found
		}
	} else {
		f, err = d.fact(d.ctx, c.id.stream, c.queue[0])
	}
	if err == nil {
		err = lease.Check(d.ctx)
	}
	if err != nil {
		r.err = err
		return r
	}

	r.begun = time.Now()
	ctx, cancel := context.WithTimeout(d.ctx, d.Timeout)
	ctx, answered := WithAnswer(ctx)
	reg := d.registration()
	r.epoch = reg.Epoch
	err = reg.Target.Deliver(ctx, f)
	cancel()
	if err != nil && d.ctx.Err() != nil {
		r.err = err
		return r
	}
	took := time.Since(r.begun)
	a := Attempt{Time: events.At(r.begun), Target: d.name, ID: f.ID, Type: f.Type, Key: f.Key, Stream: f.Stream, Sequence: f.Sequence,
		Attempt: c.attempts + 1, Outcome: Delivered, MS: took.Milliseconds()}
	a.Status, a.Response = answered()
	defer func() { d.log.add(a) }()
	if err == nil {
		r.settled = true
		if replays {
			r.err = d.Store.replayed(d.ctx, &letter, revision, Replayed)
			r.settled = r.err == nil
		}
		return r
	}

	r.err = err
	var ok bool
	if r.failure, ok = errors.AsType[*Failure](err); !ok {
		r.failure = &Failure{Class: "error", Err: err}
		if errors.Is(err, context.DeadlineExceeded) {
			r.failure.Class = "timeout"
		}
	}
	a.Outcome, a.Class, a.Error = Failed, r.failure.Class, printable([]byte(err.Error()))
	if r.failure.Gone {
		a.Outcome = Disabled
		return r
	}
	since := c.since
	if since.IsZero() {
		since = r.begun
	}
	if !r.failure.Permanent && r.begun.Sub(since) < d.GiveUp {
		return r
	}
	reason := fmt.Sprintf("tried %d times since %s: %v", c.attempts+1, events.At(since), err)
	if r.failure.Permanent {
		reason = err.Error()
	}
	if replays {
		err = d.Store.replayed(d.ctx, &letter, revision, Dead)
	} else {
		err = d.Store.bury(d.ctx, d.Reactor, d.name, &f, r.failure.Class, reason, c.attempts+1, since)
	}
	if err != nil {
		d.Log.Warn("delivery: a dead letter could not be stored, its fact is tried again", "reactor", d.Reactor, "target", d.name, "event", f.ID, "error", err)
		return r
	}
	d.Log.Warn("delivery: a fact could not be delivered and is a dead letter", "reactor", d.Reactor, "target", d.name, "event", f.ID, "reason", reason)
	a.Outcome = GivenUp
	r.settled, r.dead = true, true
	return r
}

// settle takes what a worker did into the state.
func (d *driver) settle(r result) {
	l := r.lane
	d.busy--
	l.busy, l.loads = false, false
	switch {
	case r.loaded && r.err != nil:
		l.more = true
		l.next = time.Now().Add(d.MinBackoff)
		return
	case r.loaded:
		l.queue = r.places
		l.last = r.through
		if r.more {
			l.last, l.more = r.places[len(r.places)-1], true
		}
	case r.settled:
		d.settled(l, r)
	case r.failure == nil: // no attempt was made
		l.next = time.Now().Add(d.MinBackoff)
		return
	default:
		d.failed(l, r)
		return
	}
	switch {
	case len(l.queue) > 0 || l.more:
		// By way of the list, so that it is the other lanes' turn.
		if l.next.After(time.Now()) {
			return
		}
		l.busy = true
		if l.id.stream == events.DLQ {
			d.later = append(d.later, l)
		} else {
			d.ready = append(d.ready, l)
		}
	default:
		if l.id.stream == events.DLQ {
			d.replays--
		}
		delete(d.lanes, l.id)
		d.dirty, d.urgent = true, true
	}
}

func (d *driver) settled(l *lane, r result) {
	d.dirty, d.urgent = true, true
	l.queue = l.queue[1:]
	l.attempts, l.next = 0, time.Time{}
	replays := l.id.stream == events.DLQ
	switch {
	case r.void:
		return
	case r.dead && replays:
		d.note(r)
		l.since = time.Time{}
		return
	case r.dead:
		// The next fact has one attempt of its own, and no other day.
		d.note(r)
		d.state.Dead++
		return
	}
	l.since = time.Time{}
	d.state.Delivered++
	if replays {
		d.state.Replayed++
	}
	d.state.LastSuccess, d.state.FailingSince = events.At(time.Now()), 0
	if len(d.streak) > 1 {
		// It was away, and is back: nobody has to wait any longer.
		for id := range d.streak {
			if l := d.lanes[id]; l != nil {
				l.next = time.Time{}
			}
		}
	}
	clear(d.streak)
}

// note says that an attempt failed.
func (d *driver) note(r result) {
	now := events.At(time.Now())
	if d.state.FailingSince == 0 {
		d.state.FailingSince = events.At(r.begun)
	}
	d.state.LastFailure, d.state.LastError = now, printable([]byte(r.err.Error()))
	d.streak[r.lane.id] = true
}

func (d *driver) failed(l *lane, r result) {
	d.dirty, d.urgent = true, true
	d.note(r)
	now := time.Now()
	if r.failure.Gone {
		if d.gone == "" {
			d.gone, d.epoch = r.err.Error(), r.epoch
			d.working.Go(func() { d.tellGone(r.err.Error()) })
		}
		return
	}
	l.attempts++
	if l.since.IsZero() {
		l.since = r.begun
	}
	wait := min(r.failure.RetryAfter, d.GiveUp)
	if r.failure.Everything && wait > 0 {
		d.pause = now.Add(wait)
	}
	wait = max(wait, d.backoff(l.attempts))
	if left := l.since.Add(d.GiveUp).Sub(now); left > 0 {
		wait = min(wait, left)
	}
	l.next = now.Add(wait)
}

// backoff doubles from the least to the most, give or take a fifth.
func (d *driver) backoff(attempts int) time.Duration {
	wait := d.MaxBackoff
	if shift := attempts - 1; shift < 40 && d.MinBackoff<<shift>>shift == d.MinBackoff {
		wait = min(wait, d.MinBackoff<<shift)
	}
	return wait - wait/5 + rand.N(2*wait/5+1)
}

// tellGone says that the target wants nothing any more, until somebody has heard it.
func (d *driver) tellGone(why string) {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		if d.Gone == nil {
			return
		}
		err := d.Gone(d.ctx, d.name, why)
		if err == nil || d.ctx.Err() != nil {
			return
		}
		d.Log.Warn("delivery: that a target is gone cannot be recorded, tried again", "reactor", d.Reactor, "target", d.name, "error", err)
		select {
		case <-time.After(pause):
		case <-d.ctx.Done():
			return
		}
	}
}
