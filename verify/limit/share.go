package limit

import (
	"slices"
	"time"

	"github.com/keyledger/keyledger/domain"
)

// What nodes tell each other. Each counts what it admitted itself, by calendar
// seconds, minutes and hours (UTC) for the three windows: counts that only grow,
// so that whoever hears one twice, late or not in order keeps the larger, and
// nothing is counted twice. What the log says of a node is merged in the same
// way: a use stands in it with its node and its time, and so in the same bucket.

// Bucket is how much was admitted in one second, minute or hour: that of this
// number since 1970.
type Bucket struct{ At, N int64 }

// Share is what one node admitted of one pool: by window, in buckets of
// [BucketSeconds].
type Share struct {
	Pool    domain.Pool
	Buckets [most][]Bucket
}

// Node is a process that counts. Another one of the same name, after it, has a
// later start.
type Node struct {
	Name  string
	Start int64
}

// BucketSeconds are the lengths of the buckets of the three windows, MaxBuckets
// how many of them a Share has at most: as many as touch a window.
var (
	BucketSeconds = [most]int64{1, 60, 3600}
	MaxBuckets    = [most]int{61, 61, 25}
)

const (
	// tellAt is the part of a limit, 1/tellAt, from which on a pool is told of.
	// Up to tellAt nodes then know of each other what they admitted before all of
	// them together reach the limit.
	tellAt = 8

	// recent buckets are told again each time, so that what was lost is made good.
	recentSeconds, recentLonger = 3, 2

	// maxNodes is how many others a pool hears of.
	maxNodes = 64
)

// shared is what a pool needs to be told of and to hear of.
type shared struct {
	own    [most][]Bucket // oldest first; the newest may grow
	peers  []peer
	known  bool // told of once
	whole  bool // the next telling is of everything
	queued bool
}

// peer is what another node admitted, as far as it was heard.
type peer struct {
	node   Node
	counts [most][]heard // in the order in which they were heard of
}

// heard is one bucket of a peer. What it admitted is before plus the larger of
// told and logged, which both are counts of the same requests.
type heard struct {
	at     int64
	before int64 // by earlier processes of its name
	told   int64
	logged int64
}

func (h *heard) sum() int64 { return h.before + max(h.told, h.logged) }

// ShareWith makes the limiter keep what it has to tell. wake is called when
// there is something, with a lock held, and MUST return at once. It MUST be called
// before the first Take.
func (l *Limiter) ShareWith(wake func()) { l.wake = wake }

// tell notes what was admitted for those who will be told. It needs the pool's mu.
func (l *Limiter) tell(p *pool, q *domain.Quota, n, wall int64, hot bool) {
	if p.shared == nil {
		p.shared = &shared{}
	}
	for i, limit := range q {
		if limit != 0 {
			p.shared.bump(i, wall/int64(time.Second)/BucketSeconds[i], n)
		}
	}
	if hot {
		l.enqueue(p, false)
	}
}

func (h *shared) bump(window int, at, n int64) {
	own := h.own[window]
	for i := len(own) - 1; i >= 0; i-- { // the last, but for a clock that was set back
		if own[i].At == at {
			own[i].N += n
			return
		}
	}
	if len(own) == MaxBuckets[window] {
		own = slices.Delete(own, 0, 1)
	}
	h.own[window] = append(own, Bucket{at, n})
}

// enqueue needs the pool's mu.
func (l *Limiter) enqueue(p *pool, whole bool) {
	h := p.shared
	h.whole = h.whole || whole || !h.known
	h.known = true
	if h.queued {
		return
	}
	h.queued = true
	l.telling.Lock()
	l.queue = append(l.queue, p)
	l.untold.Add(1)
	l.telling.Unlock()
	l.wake()
}

// Untold is how many pools have something to be told.
func (l *Limiter) Untold() int { return int(l.untold.Load()) }

// TellAll queues everything that was ever told.
func (l *Limiter) TellAll() {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for _, p := range s.pools {
			for ; p != nil; p = p.next {
				p.mu.Lock()
				if p.shared != nil && p.shared.known {
					l.enqueue(p, true)
				}
				p.mu.Unlock()
			}
		}
		s.mu.Unlock()
	}
}

// Next takes what is to be told of one pool into sh, whose lists it reuses; it is
// false when there is nothing. It MUST NOT be called by two at once.
func (l *Limiter) Next(now time.Time, sh *Share) bool {
	if l.untold.Load() == 0 {
		return false
	}
	l.telling.Lock()
	if len(l.queue) == 0 {
		l.telling.Unlock()
		return false
	}
	p := l.queue[0]
	if l.queue = l.queue[1:]; len(l.queue) == 0 {
		l.queue = nil
	}
	l.untold.Add(-1)
	l.telling.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shared.take(now.Unix(), sh)
	sh.Pool = p.id
	return true
}

func (h *shared) take(now int64, sh *Share) {
	for i := range h.own {
		sh.Buckets[i] = sh.Buckets[i][:0]
		last := now / BucketSeconds[i]
		span := int64(MaxBuckets[i])
		if !h.whole {
			span = recentLonger
			if i == 0 {
				span = recentSeconds
			}
		}
		for _, b := range h.own[i] {
			if b.At > last-span && b.At <= last+1 { // no later ones: of a clock that was set back
				sh.Buckets[i] = append(sh.Buckets[i], b)
			}
		}
	}
	h.queued, h.whole = false, false
}

// Hear counts what another node says that it admitted. sent is its clock's time
// of saying so, by which its buckets are placed: its clock need not be ours.
func (l *Limiter) Hear(from Node, sh *Share, q *domain.Quota, sent, now time.Time) {
	if *q == (domain.Quota{}) {
		return
	}
	p := l.lock(nil, &sh.Pool)
	defer p.mu.Unlock()
	other := p.peer(from)
	if other == nil {
		return
	}
	at, today := int64(now.Sub(l.base)), dayOf(now.UnixNano())
	p.latest = max(p.latest, at)
	hot := false
	for i, limit := range q {
		if limit == 0 {
			continue
		}
		for _, b := range sh.Buckets[i] {
			end := (b.At + 1) * BucketSeconds[i] * int64(time.Second)
			age := max(sent.UnixNano()-end, 0)
			if age >= windows[i] {
				continue // it has left: whether it was counted may be forgotten
			}
			c := other.bucket(i, b.At)
			before := c.sum()
			c.told = max(c.told, b.N)
			if n := c.sum() - before; n > 0 {
				day := b.At * BucketSeconds[i] / daySeconds
				if day > today+1 { // of a clock that is days ahead
					day = today
				}
				p.admit(i, at-age, day, n)
			}
		}
		hot = hot || p.used(i, p.latest, today)*tellAt >= limit
	}
	if hot && !p.shared.known && slices.ContainsFunc(p.shared.own[:], func(own []Bucket) bool { return len(own) > 0 }) {
		l.enqueue(p, true)
	}
}

// Recall counts n requests that the log says a node admitted at a time, not after
// now. Its Start is that of its latest process, 0 where that is not known.
func (l *Limiter) Recall(by Node, id *domain.Pool, q *domain.Quota, n int64, when, now time.Time) {
	if l.wake == nil {
		l.Count(id, q, n, when)
		return
	}
	if *q == (domain.Quota{}) {
		return
	}
	p := l.lock(nil, id)
	defer p.mu.Unlock()
	other := p.peer(by)
	if other == nil {
		return
	}
	at, wall := int64(when.Sub(l.base)), when.UnixNano()
	p.latest = max(p.latest, at)
	for i, limit := range q {
		if limit == 0 || int64(now.Sub(when)) >= windows[i] {
			continue
		}
		c := other.bucket(i, wall/int64(time.Second)/BucketSeconds[i])
		before := c.sum()
		if wall < other.node.Start {
			c.before += n
		} else {
			c.logged += n
		}
		if n := c.sum() - before; n > 0 {
			p.admit(i, at, dayOf(wall), n)
		}
	}
}

// peer needs mu. It is nil where nothing of this node can be counted.
func (p *pool) peer(node Node) *peer {
	if p.shared == nil {
		p.shared = &shared{}
	}
	for i := range p.shared.peers {
		other := &p.shared.peers[i]
		if other.node.Name != node.Name {
			continue
		}
		if node.Start > other.node.Start {
			other.restarted(node.Start)
		} else if node.Start < other.node.Start && node.Start != 0 {
			return nil // late, from a process that has ended
		}
		return other
	}
	if len(p.shared.peers) == maxNodes {
		return nil
	}
	p.shared.peers = append(p.shared.peers, peer{node: node})
	return &p.shared.peers[len(p.shared.peers)-1]
}

// restarted keeps what the process before admitted. Of a node that was not heard
// before there are only uses from the log, of whichever of its processes.
func (o *peer) restarted(start int64) {
	if o.node.Start != 0 {
		for i := range o.counts {
			for j := range o.counts[i] {
				c := &o.counts[i][j]
				*c = heard{at: c.at, before: c.sum()}
			}
		}
	}
	o.node.Start = start
}

func (o *peer) bucket(window int, at int64) *heard {
	counts := o.counts[window]
	for i := len(counts) - 1; i >= 0; i-- {
		if counts[i].at == at {
			return &counts[i]
		}
	}
	if len(counts) == MaxBuckets[window]+1 {
		counts = slices.Delete(counts, 0, 1)
	}
	o.counts[window] = append(counts, heard{at: at})
	return &o.counts[window][len(counts)]
}
