// Package limit counts requests in the windows of section 2 of the contract:
// minute (rolling 60 s), hour (rolling 60 min) and day (calendar day, UTC).
//
// What it promises. In no rolling window does one [Limiter] admit more than the
// limit that is in force: a window is half open, so what was admitted at second
// 0 has left at second 60. It refuses early by at most one sub-bucket, a 60th of
// the window. All windows of a request are decided together: a refusal consumes
// nothing in any of them. Where waiting helps, [Taken].RetryAfter is the first
// whole number of seconds after which the same request is admitted, if nobody
// else takes meanwhile; a second earlier it is refused. A limit that changes
// holds at once, against what was counted already.
//
// How it works. A rolling window is a row of entries. An entry spans at most one
// sub-bucket and counts as a whole until its newest request leaves the window,
// and a new entry begins at the earliest one sub-bucket after the last one began,
// so there are never more than 61. Requests that are further apart than a
// sub-bucket are counted exactly. The newest entry, and when the oldest one
// leaves, are kept beside the count: most requests look at nothing else, which is
// three cache lines that lie together. A pool is found by its id, or at once where
// the caller has a [Place] for it.
//
// Memory follows the pools in use: a few hundred bytes each, at most about 3.5 KB
// for one that is busy all the time (twice that where [Limiter.Count] filled it), and nothing once its windows are empty and
// [Limiter.Sweep] has passed.
//
// How it can disappoint. A window that has no limit is not counted: when it gets
// one, it begins empty. A pool whose keys have different limits counts in the
// windows of whoever asks. Rolling windows follow the process's monotonic clock,
// which stands still while the machine sleeps, so that no step of the wall clock
// opens them; days follow the wall clock. Nothing here talks to other nodes:
// [Limiter.Next] says what they are to be told, and [Limiter.Hear] takes what they
// tell. What they admitted leaves a rolling window up to a sub-bucket late.
package limit

import (
	"hash/maphash"
	"maps"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Limit is where a pool stands in one window.
type Limit struct {
	Window    string      `json:"window"` // minute, hour or day
	Limit     int64       `json:"limit"`
	Remaining int64       `json:"remaining"`
	Reset     events.Time `json:"reset"` // when there is more room than now, or (refused by it) enough
}

// Seconds is the length of a window.
func (l *Limit) Seconds() int64 {
	for i, name := range names {
		if l.Window == name {
			return seconds[i]
		}
	}
	return 0
}

const (
	rollingWindows = 2 // minute and hour; the day is the last of the three
	buckets        = 60
	daySeconds     = 86400
)

var (
	names   = [...]string{"minute", "hour", "day"}
	seconds = [...]int64{60, 3600, daySeconds}
	windows = [...]int64{int64(time.Minute), int64(time.Hour), daySeconds * int64(time.Second)}
	spans   = [rollingWindows]int64{windows[0], windows[1]}
)

// Limiter counts for many pools. It is safe for concurrent use.
type Limiter struct {
	base   time.Time // moments count from here, in nanoseconds
	seed   maphash.Seed
	shards [shards]shard

	wake   func()       // nil: nobody is told anything
	untold atomic.Int64 // pools in the queue

	telling sync.Mutex // guards queue; taken last
	queue   []*pool    // to be told of
}

// shards is far above the cores of a machine, so that two requests seldom meet,
// and keeps what a sweep holds at once small.
const shards = 1024

// shard is some of the pools. mu guards the map and which pools are in it; who
// holds it may take the lock of a pool, and not the other way round.
type shard struct {
	mu    sync.Mutex
	pools map[uint64]*pool
	most  int      // pools since the map was made: maps do not shrink
	_     [40]byte // up to a cache line
}

// pool is what was counted for one pool. mu guards all that changes. With a
// million of them in use a decision costs what it takes to fetch their lines, so
// what it reads comes first, in three of them that belong to no other pool.
type pool struct {
	mu      sync.Mutex
	of      atomic.Pointer[Limiter] // set under mu; nil: swept, whoever came here has to search
	rolling [rollingWindows]row
	latest  int64    // the newest moment at which it was asked
	days    [2]int32 // an even and an odd day, so that a clock that is set back over midnight loses nothing
	counted [2]int64 // in them
	shared  *shared

	id   domain.Pool
	next *pool  // of the same hash; the shard's
	at   *Place // where it is remembered, or nil
	_    [24]byte
}

// Place remembers the pool of a key or an owner where its user has room beside
// them. Its zero value remembers nothing. It MUST be of one pool, and MAY be of
// several limiters, the last of which it remembers. A swept pool is forgotten.
type Place = atomic.Value

// row is the entries of one rolling window: older ones, oldest first, in a ring
// whose size is a power of two, then the newest. None of them is empty.
type row struct {
	sum    int64
	oldest int64 // last of the first entry
	newest entry // the last of them
	ring   *entry
	size   int16 // of the ring
	n      int16 // entries, the newest included
	head   int16
}

// older is the ring, which as a slice would take another cache line of a pool.
func (r *row) older() []entry { return unsafe.Slice(r.ring, r.size) }

// entry is n requests that were admitted from first to last.
type entry struct{ first, last, n int64 }

// New is a limiter whose moments count from base, which is any reading of the
// clock that it will be asked by.
func New(base time.Time) *Limiter { return &Limiter{base: base, seed: maphash.MakeSeed()} }

// Taken is the answer to one request.
type Taken struct {
	OK         bool
	N          int           // how many of Limits there are
	Limits     [most]Limit   // every window that has a limit, shortest first
	Refused    int           // index in Limits of the window that makes the request wait longest; -1: none
	RetryAfter int64         // seconds; 0: admitted, or more than a limit allows at all
	Later      time.Duration // than now it was counted: not 0 where a request that was decided first came with a later time
}

const most = len(domain.Quota{})

// Take admits n requests in all windows, or in none. q is the quota in force
// now; n is at least 1. The answer is written to t, whose Limits beyond N are
// left as they were.
func (l *Limiter) Take(id *domain.Pool, q *domain.Quota, n int64, now time.Time, t *Taken) {
	l.TakeAt(nil, func() domain.Pool { return *id }, q, n, now, t)
}

// TakeAt is [Limiter.Take] with the pool's place, or nil. Which pool it is, is
// asked only where the place does not remember it.
func (l *Limiter) TakeAt(place *Place, id func() domain.Pool, q *domain.Quota, n int64, now time.Time, t *Taken) {
	if *q == (domain.Quota{}) {
		t.OK, t.N, t.Refused, t.RetryAfter, t.Later = true, 0, -1, 0, 0
		return
	}
	asked := int64(now.Sub(l.base))
	l.take(place, id, q, n, asked, now.UnixNano()-asked, t)
}

// Ahead begins to fetch the pool that a place remembers, for whoever will ask
// [Limiter.TakeAt] and has to wait for something else before: a lock is not taken
// ahead by a processor, but a load is. It says whether there is one.
func Ahead(place *Place) bool {
	p, _ := place.Load().(*pool)
	return p != nil && p.of.Load() != nil && p.id.Keyspace != "" // a line of the first two, and the third
}

// take is asked so long after base, of which wall is the time by the wall clock as
// it is set now.
func (l *Limiter) take(place *Place, id func() domain.Pool, q *domain.Quota, n, asked, wall int64, t *Taken) {
	t.OK, t.N, t.Refused, t.RetryAfter, t.Later = true, 0, -1, 0, 0
	p := l.remembered(place)
	if p == nil {
		pool := id()
		p = l.lock(place, &pool)
	}
	at := max(asked, p.latest)
	p.latest = at
	today := dayOf(wall + at)

	var used [most]int64
	for i, limit := range q {
		if limit != 0 {
			used[i] = p.used(i, at, today)
			t.OK = t.OK && n <= limit-used[i]
		}
	}
	if t.OK {
		hot := false
		for i, limit := range q {
			if limit != 0 {
				p.admit(i, at, today, n)
				t.add(i, limit, limit-used[i]-n, wall+p.gone(i, today, 1, wall))
				hot = hot || (used[i]+n)*tellAt >= limit
			}
		}
		if l.wake != nil {
			l.tell(p, q, n, wall+at, hot)
		}
		t.Later = time.Duration(at - asked)
	} else {
		p.refuse(q, &used, n, at, asked, wall, t)
	}
	p.mu.Unlock()
}

func (t *Taken) add(window int, limit, remaining, reset int64) {
	// Field by field: a literal would be put together elsewhere and then copied.
	to := &t.Limits[t.N]
	to.Window, to.Limit, to.Remaining, to.Reset = names[window], limit, max(remaining, 0), events.Time(ceil(reset, int64(time.Millisecond)))
	t.N++
}

// refuse tells how long to wait.
func (p *pool) refuse(q *domain.Quota, used *[most]int64, n, at, asked, wall int64, t *Taken) {
	const ever = 1<<63 - 1
	today := dayOf(wall + at)
	var longest int64
	for i, limit := range q {
		if limit == 0 {
			continue
		}
		lacks := n - (limit - used[i])                // of what is counted has to go until there is enough room
		gone := p.gone(i, today, max(lacks, 1), wall) // or more than now
		if lacks > 0 {
			wait := gone - asked
			if n > limit {
				wait = ever
			}
			if wait > longest {
				longest, t.Refused = wait, t.N
			}
		}
		t.add(i, limit, limit-used[i], wall+gone)
	}
	if longest < ever {
		t.RetryAfter = ceil(longest, int64(time.Second))
	}
}

// Count counts n requests that were admitted elsewhere, or before this limiter
// began, whatever the limits say. They may come late and in any order.
func (l *Limiter) Count(id *domain.Pool, q *domain.Quota, n int64, when time.Time) {
	if *q == (domain.Quota{}) {
		return
	}
	p := l.lock(nil, id)
	defer p.mu.Unlock()
	at := int64(when.Sub(l.base))
	p.latest = max(p.latest, at)
	for i, limit := range q {
		if limit != 0 {
			p.admit(i, at, dayOf(when.UnixNano()), n)
		}
	}
}

// GiveBack takes back what [Limiter.Take] counted at a time, for requests that
// were refused in the end.
func (l *Limiter) GiveBack(id *domain.Pool, q *domain.Quota, n int64, when time.Time) {
	p := l.locked(id)
	if p == nil {
		return
	}
	defer p.mu.Unlock()
	at := int64(when.Sub(l.base))
	for i, limit := range q {
		if limit != 0 {
			p.giveBack(i, at, dayOf(when.UnixNano()), n)
		}
	}
}

// UsedUp says whether one more request would be refused now.
func (l *Limiter) UsedUp(id *domain.Pool, q *domain.Quota, now time.Time) bool {
	p := l.locked(id)
	if p == nil {
		return false
	}
	defer p.mu.Unlock()
	at := max(int64(now.Sub(l.base)), p.latest)
	for i, limit := range q {
		if limit != 0 && p.used(i, at, dayOf(now.UnixNano())) >= limit {
			return true
		}
	}
	return false
}

// Stand tells where a pool stands now, as [Limiter.Take] would, and takes nothing. OK
// says whether one more request would be admitted; t's other answers are none.
func (l *Limiter) Stand(id *domain.Pool, q *domain.Quota, now time.Time, t *Taken) {
	t.OK, t.N, t.Refused, t.RetryAfter, t.Later = true, 0, -1, 0, 0
	asked := int64(now.Sub(l.base))
	wall := now.UnixNano() - asked
	p := l.locked(id)
	if p == nil {
		p = &pool{latest: asked} // nothing was counted
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	at := max(asked, p.latest)
	today := dayOf(wall + at)
	for i, limit := range q {
		if limit != 0 {
			used := p.used(i, at, today)
			t.OK = t.OK && used < limit
			t.add(i, limit, limit-used, wall+max(p.gone(i, today, 1, wall), at))
		}
	}
}

// Pools are those in use, and some that are not swept yet.
func (l *Limiter) Pools() []domain.Pool {
	var all []domain.Pool
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for _, p := range s.pools {
			for ; p != nil; p = p.next {
				all = append(all, p.id)
			}
		}
		s.mu.Unlock()
	}
	return all
}

// Sweep drops the pools whose windows are empty and says how many are left. It
// holds a thousandth of them at a time.
func (l *Limiter) Sweep(now time.Time) (left int) {
	at, today := int64(now.Sub(l.base)), dayOf(now.UnixNano())
	for i := range l.shards {
		left += l.shards[i].sweep(at, today)
	}
	return left
}

// hash is of what tells pools apart in nearly all cases; find compares the rest.
func (l *Limiter) hash(id *domain.Pool) uint64 {
	if id.Key != "" {
		return maphash.String(l.seed, id.Key)
	}
	return maphash.String(l.seed, id.Owner) + 31*maphash.String(l.seed, id.Keyspace)
}

// remembered is the pool that a place remembers, locked, or nil.
func (l *Limiter) remembered(place *Place) *pool {
	if place == nil {
		return nil
	}
	p, _ := place.Load().(*pool)
	if p == nil {
		return nil
	}
	p.mu.Lock()
	if p.of.Load() != l {
		p.mu.Unlock()
		return nil
	}
	return p
}

// lock finds a pool, or adds it, and locks it.
func (l *Limiter) lock(place *Place, id *domain.Pool) *pool {
	hash := l.hash(id)
	s := &l.shards[hash%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.find(hash, id)
	if p == nil {
		p = s.add(l, hash, id)
	}
	p.mu.Lock() // before the shard is let go, so that nobody sweeps it
	if place != nil {
		p.at = place
		place.Store(p)
	}
	return p
}

// locked finds a pool and locks it; nil: there is none.
func (l *Limiter) locked(id *domain.Pool) *pool {
	hash := l.hash(id)
	s := &l.shards[hash%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.find(hash, id)
	if p != nil {
		p.mu.Lock()
	}
	return p
}

// find needs mu.
func (s *shard) find(hash uint64, id *domain.Pool) *pool {
	p := s.pools[hash]
	for p != nil && p.id != *id {
		p = p.next
	}
	return p
}

// add needs mu, and that the pool is not there.
func (s *shard) add(l *Limiter, hash uint64, id *domain.Pool) *pool {
	if s.pools == nil {
		s.pools = make(map[uint64]*pool)
	}
	p := &pool{id: *id, next: s.pools[hash], latest: -1 << 63}
	p.of.Store(l)
	s.pools[hash] = p
	s.most = max(s.most, len(s.pools))
	return p
}

func (s *shard) sweep(at, today int64) (left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for hash, p := range s.pools {
		var kept, next *pool
		for ; p != nil; p = next {
			next = p.next
			if !p.sweep(at, today) {
				p.next, kept = kept, p
				left++
			}
		}
		if kept == nil {
			delete(s.pools, hash)
		} else {
			s.pools[hash] = kept
		}
	}
	if s.most > 64 && len(s.pools) < s.most/4 {
		smaller := make(map[uint64]*pool, len(s.pools))
		maps.Copy(smaller, s.pools)
		s.pools, s.most = smaller, len(smaller)
	}
	return left
}

// sweep says whether the pool is empty, and then makes its place forget it.
func (p *pool) sweep(at, today int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.empty(max(at, p.latest), today) {
		return false
	}
	p.of.Store(nil)
	if p.at != nil {
		p.at.CompareAndSwap(p, (*pool)(nil))
	}
	return true
}

func (p *pool) empty(at, today int64) bool {
	for i := range p.rolling {
		if p.used(i, at, today) > 0 {
			return false
		}
	}
	for i, n := range p.counted {
		if n > 0 && int64(p.days[i]) >= today {
			return false
		}
	}
	return true
}

func (p *pool) used(window int, at, today int64) int64 {
	if window == rollingWindows {
		i := today & 1
		if int64(p.days[i]) > today { // the clock was days ahead for a while: it counts from here
			p.days[i], p.counted[i] = int32(today), 0
		}
		if int64(p.days[i]) == today {
			return p.counted[i]
		}
		return 0
	}
	r := &p.rolling[window]
	if r.n > 0 && r.oldest <= at-spans[window] {
		r.leave(at - spans[window])
	}
	return r.sum
}

func (p *pool) admit(window int, at, today, n int64) {
	if window < rollingWindows {
		p.rolling[window].admit(at, spans[window], n)
		return
	}
	i := today & 1
	if int64(p.days[i]) < today {
		p.days[i], p.counted[i] = int32(today), 0
	}
	if int64(p.days[i]) == today {
		p.counted[i] += n
	}
}

func (p *pool) giveBack(window int, at, today, n int64) {
	if window < rollingWindows {
		p.rolling[window].giveBack(at, n)
		return
	}
	if i := today & 1; int64(p.days[i]) == today {
		p.counted[i] = max(p.counted[i]-n, 0)
	}
}

// gone is the moment at which need of what is counted now has left a window;
// all, where need is more. It counts from the limiter's base.
func (p *pool) gone(window int, today, need, wall int64) int64 {
	if window == rollingWindows {
		return (today+1)*daySeconds*int64(time.Second) - wall
	}
	r := &p.rolling[window]
	switch {
	case r.n == 0:
		return p.latest
	case need == 1:
		return r.oldest + spans[window]
	}
	for i := range r.n {
		e := r.at(i)
		if need -= e.n; need <= 0 {
			return e.last + spans[window]
		}
	}
	return r.newest.last + spans[window]
}

// at is the i-th entry.
func (r *row) at(i int16) *entry {
	if i == r.n-1 {
		return &r.newest
	}
	return &r.older()[(r.head+i)&(r.size-1)]
}

// leave drops what was admitted up to a moment, of which there is some.
func (r *row) leave(until int64) {
	for r.n > 0 {
		e := r.at(0)
		if e.last > until {
			r.oldest = e.last
			return
		}
		r.sum -= e.n
		if r.n--; r.n > 0 {
			r.head = (r.head + 1) & (r.size - 1)
		}
	}
}

// place is the oldest entry that is counted until at or longer, n where there is none.
func (r *row) place(at int64) int16 {
	i := r.n
	for i > 0 && r.at(i-1).last >= at {
		i--
	}
	return i
}

func (r *row) admit(at, span, n int64) {
	e := &r.newest
	switch {
	case r.n == 0:
		r.n, r.oldest = 1, at
		*e = entry{at, at, n}
	case at < e.last:
		if at <= e.last-span {
			return // it has left already
		}
		r.insert(at, span, n)
	case at-e.first < span/buckets:
		e.last = at
		e.n += n
		if r.n == 1 {
			r.oldest = at
		}
	default:
		if r.oldest <= at-span {
			r.leave(at - span)
		}
		if r.n == 0 {
			r.n, r.oldest = 1, at
		} else {
			r.push()
		}
		*e = entry{at, at, n}
	}
	r.sum += n
}

// push makes room for another newest entry.
func (r *row) push() {
	if r.n > r.size {
		larger := make([]entry, max(2, 2*r.size))
		for i := range r.n - 1 {
			larger[i] = *r.at(i)
		}
		r.ring, r.size, r.head = &larger[0], int16(len(larger)), 0
	}
	r.n++
	*r.at(r.n - 2) = r.newest
}

// maxEntries is never reached by requests that come in order.
const maxEntries = 2 * buckets

// insert counts what is older than the newest entry, and not over yet.
func (r *row) insert(at, span, n int64) {
	i := r.place(at)
	e := r.at(i)
	switch {
	case at >= e.first || r.n >= maxEntries:
		e.n += n
	case e.last-at < span/buckets:
		e.first = at
		e.n += n
	case i > 0 && at-r.at(i-1).first < span/buckets:
		r.at(i - 1).last = at
		r.at(i - 1).n += n
	default:
		r.push()
		for j := r.n - 1; j > i; j-- {
			*r.at(j) = *r.at(j - 1)
		}
		*r.at(i) = entry{at, at, n}
	}
	r.oldest = r.at(0).last
}

// giveBack takes back what was admitted at a moment, if that has not left yet.
func (r *row) giveBack(at, n int64) {
	i := r.place(at)
	if i == r.n || r.at(i).first > at {
		return
	}
	n = min(n, r.at(i).n)
	r.at(i).n -= n
	r.sum -= n
	if r.at(i).n > 0 {
		return
	}
	for ; i+1 < r.n; i++ {
		*r.at(i) = *r.at(i + 1)
	}
	if r.n > 1 {
		r.newest = *r.at(r.n - 2)
		r.oldest = r.at(0).last
	}
	r.n--
}

// dayOf is the calendar day of a wall clock's time in nanoseconds.
func dayOf(wall int64) int64 {
	const length = daySeconds * int64(time.Second)
	if wall < 0 {
		wall -= length - 1
	}
	return wall / length
}

// ceil is n in whole units, of which what is begun counts.
func ceil(n, unit int64) int64 {
	if n <= 0 {
		return n / unit
	}
	return (n-1)/unit + 1
}
