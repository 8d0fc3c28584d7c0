// Package replay asks what other limits would have done to traffic that is recorded:
// it takes the facts of USAGE in turn and lets the limiter that verifiers use decide
// each request again, at the time at which it was made.
//
// It promises that the limits that were in force, replayed over what one node recorded
// since its windows were empty, refuse exactly what was refused. Memory follows the
// keys that are seen, up to [MaxKeys], and a few seconds of traffic.
//
// How it can disappoint. It knows a time to the millisecond, so two requests that lie
// a window apart to within one may be decided the other way round. What was refused is
// recorded as a count per key, window and second: all of a count is replayed at the
// first of its requests, which is exact for the limits that were in force and up to a
// second early for larger ones. What other traffic drew from an owner's pool (limit.taken)
// is a count per second too, and is spread over the time it took. Which entries of a
// rolling window count together depends on everything before, so that a replay that
// begins in the middle of traffic may refuse up to one sub-bucket earlier or later than
// the node did; several nodes that told each other of their traffic did so with some
// delay, which a replay does not have. And callers react: who is refused comes back, or
// stays away, and recorded traffic does neither.
package replay

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify/limit"
)

const (
	// MaxKeys is how many keys one replay tells apart.
	MaxKeys = 200_000

	// slack is how far behind the newest fact another one may stand in the stream and
	// still be replayed in its turn. Counts come when their second is over, pages of
	// several nodes within milliseconds of each other.
	slack = 10_000 // milliseconds

	// maxWaiting bounds the requests within slack.
	maxWaiting = 2_000_000
)

// ErrTooMuch says that more keys, or more requests at once, were seen than are told
// apart.
var ErrTooMuch = errors.New("more is recorded than can be replayed at once")

// Rule is what a key draws from in the replay.
type Rule struct {
	Pool  domain.Pool
	Quota domain.Quota
	Count bool // whether its requests are told of; others only draw
	Known bool // false: nobody knows the key any more, and it is left out
}

// Options of a [Replay].
type Options struct {
	// From and To are the time that is told of, in milliseconds; To is exclusive. What
	// is added from before only fills the windows.
	From, To events.Time

	// Rule says how a key of an owner is limited; an empty key is other traffic of the
	// owner. It is asked once for each.
	Rule func(key, owner string) Rule

	Bucket time.Duration // of the timeline
}

// Figures say what was refused when it was recorded, and what would be.
type Figures struct {
	Requests        int64 `json:"requests"`          // admitted or refused by a limit
	RefusedThen     int64 `json:"refused_then"`      // by a limit, as recorded
	Refused         int64 `json:"refused"`           // by the limits of the replay
	NewlyRefused    int64 `json:"newly_refused"`     // admitted then
	NoLongerRefused int64 `json:"no_longer_refused"` // refused then
}

func (f *Figures) add(g Figures) {
	f.Requests += g.Requests
	f.RefusedThen += g.RefusedThen
	f.Refused += g.Refused
	f.NewlyRefused += g.NewlyRefused
	f.NoLongerRefused += g.NoLongerRefused
}

// Who are the figures of a key, or of an owner with all its keys and other traffic.
type Who struct {
	Key   string `json:"key,omitempty"`
	Owner string `json:"owner"`
	Figures
	First       events.Time      `json:"first"`        // refusal of the replay; null: none
	Last        events.Time      `json:"last"`         // likewise
	WorstMinute events.Time      `json:"worst_minute"` // with the most of them
	WorstCount  int64            `json:"worst_count"`  // refusals in it
	Windows     map[string]int64 `json:"windows"`      // refusals by the window that made them wait longest
}

// Bucket is a part of the timeline.
type Bucket struct {
	Time events.Time `json:"time"`
	Figures
}

// Result is what a replay came to. Keys and owners are those of which anything was
// refused, then or in the replay, those first that would be refused newly the most.
type Result struct {
	Total    Figures  `json:"total"`
	Keys     []Who    `json:"keys"`
	Owners   []Who    `json:"owners"`
	Timeline []Bucket `json:"timeline"` // without buckets in which nothing happened
	Seen     int      `json:"seen"`     // keys with any request

	Folded  int64 `json:"folded"`  // requests whose time is known to the second alone
	Unknown int64 `json:"unknown"` // of keys that are not known any more; left out
	Late    int64 `json:"late"`    // that were recorded too late to be replayed in their turn
}

// Replay is one replay. It is for one goroutine.
type Replay struct {
	o       Options
	limits  *limit.Limiter
	waiting []second // in order
	waits   int      // requests in them
	spare   []request
	next    uint64 // to keep the order of the stream
	newest  events.Time
	turn    events.Time // of the request that was replayed last
	swept   events.Time

	rules    map[[2]string]*rule
	owners   map[string]*tally
	timeline map[events.Time]*Figures
	result   Result
}

// rule is what a key draws from, with its figures; nil: it only draws.
type rule struct {
	Rule
	tally *tally
	owner *tally
}

type tally struct {
	Who
	minute      events.Time // that is being counted
	minuteCount int64
}

// New begins a replay.
func New(o Options) *Replay {
	return &Replay{
		o: o, rules: map[[2]string]*rule{}, owners: map[string]*tally{}, timeline: map[events.Time]*Figures{},
	}
}

// Before is how long before From facts MUST be added from, so that windows of these
// limits are full when it begins.
func Before(from events.Time, q domain.Quota) events.Time {
	at := from.Time().UTC()
	switch midnight := at.Truncate(24 * time.Hour); {
	case q[2] != 0 && midnight.Before(at.Add(-time.Hour)):
		return events.At(midnight)
	case q[1] != 0 || q[2] != 0:
		return events.At(at.Add(-time.Hour))
	case q[0] != 0:
		return events.At(at.Add(-time.Minute))
	}
	return from
}

// request are n requests of one moment.
type request struct {
	at      events.Time
	last    events.Time // of the count that it stands for
	order   uint64
	rule    *rule
	n       int64
	refused bool // then
}

// compare orders requests by time; of one millisecond what was admitted comes before
// what was refused, because it is what the others were refused for.
func (a *request) compare(b *request) int {
	switch {
	case a.at != b.at:
		return cmp.Compare(a.at, b.at)
	case a.refused != b.refused:
		if b.refused {
			return -1
		}
		return 1
	}
	return cmp.Compare(a.order, b.order)
}

// second is the requests of one second that wait for their turn.
type second struct {
	at       int64 // since 1970
	requests []request
}

// Add takes the next fact of USAGE, in the order of the stream. Facts that say nothing
// of limits are passed over. It fails with [ErrTooMuch].
func (r *Replay) Add(e *events.Envelope) error {
	switch d := e.Data.(type) {
	case events.KeyUsed:
		if err := r.add(e, request{at: e.Time, last: e.Time, n: 1}); err != nil {
			return err
		}
	case events.KeyRateLimited:
		at := cmp.Or(d.First, e.Time)
		if err := r.add(e, request{at: at, last: max(d.Last, at), n: d.Count, refused: true}); err != nil {
			return err
		}
	case events.LimitTaken:
		at, last := cmp.Or(d.First, e.Time), cmp.Or(d.Last, e.Time)
		// One at each end, the others in as many steps as there are milliseconds.
		steps := min(d.Count, int64(last-at)+1)
		for i := range steps {
			n := d.Count/steps + min(1, max(0, d.Count%steps-i))
			when := at
			if steps > 1 {
				when += events.Time(int64(last-at) * i / (steps - 1))
			}
			if err := r.add(e, request{at: when, last: when, n: n}); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	r.newest = max(r.newest, e.Time)
	r.turns(int64(r.newest-slack) / 1000)
	return nil
}

// turns replays the seconds before one.
func (r *Replay) turns(before int64) {
	over := 0
	for ; over < len(r.waiting) && r.waiting[over].at < before; over++ {
		s := r.waiting[over]
		slices.SortFunc(s.requests, func(a, b request) int { return a.compare(&b) })
		for i := range s.requests {
			r.replay(&s.requests[i])
		}
		r.waits -= len(s.requests)
		r.spare = s.requests[:0]
	}
	if over > 0 {
		r.waiting = slices.Delete(r.waiting, 0, over)
	}
}

func (r *Replay) add(e *events.Envelope, q request) error {
	if q.at >= r.o.To || q.n < 1 {
		return nil
	}
	of, err := r.rule(e.Key, e.Owner)
	if err != nil {
		return err
	}
	if !of.Known {
		if q.at >= r.o.From {
			r.result.Unknown += q.n
		}
		return nil
	}
	if r.waits >= maxWaiting {
		return ErrTooMuch
	}
	q.rule, q.order = of, r.next
	r.next++
	r.waits++
	at := int64(q.at) / 1000
	i := len(r.waiting) // nearly always the last one
	for i > 0 && r.waiting[i-1].at > at {
		i--
	}
	if i == 0 || r.waiting[i-1].at != at {
		r.waiting = slices.Insert(r.waiting, i, second{at, r.spare})
		r.spare = nil
		i++
	}
	r.waiting[i-1].requests = append(r.waiting[i-1].requests, q)
	return nil
}

func (r *Replay) rule(key, owner string) (*rule, error) {
	id := [2]string{key, owner}
	if of := r.rules[id]; of != nil {
		return of, nil
	}
	if len(r.rules) >= MaxKeys {
		return nil, ErrTooMuch
	}
	// A part of a page would keep all of it in memory.
	id = [2]string{strings.Clone(key), strings.Clone(owner)}
	of := &rule{Rule: r.o.Rule(id[0], id[1])}
	if of.Known && of.Count {
		of.owner = r.owners[id[1]]
		if of.owner == nil {
			of.owner = &tally{Who: Who{Owner: id[1]}}
			r.owners[id[1]] = of.owner
		}
		of.tally = &tally{Who: Who{Key: id[0], Owner: id[1]}}
	}
	r.rules[id] = of
	return of, nil
}

// replay decides requests again. They come in the order of time.
func (r *Replay) replay(q *request) {
	if q.at < r.turn {
		r.result.Late += q.n
	}
	r.turn = max(r.turn, q.at)
	now := q.at.Time()
	if r.limits == nil {
		r.limits = limit.New(now)
	}
	if r.turn >= r.swept+60_000 {
		r.swept = r.turn
		r.limits.Sweep(r.turn.Time())
	}
	before := q.at < r.o.From
	if before && q.refused { // it drew nothing
		return
	}
	var admitted int64
	var t limit.Taken
	window := ""
	for admitted < q.n {
		r.limits.Take(&q.rule.Pool, &q.rule.Quota, 1, now, &t)
		if !t.OK {
			window = t.Limits[t.Refused].Window
			break // and so are the others: nothing leaves a window meanwhile
		}
		if t.N == 0 { // no limits
			admitted = q.n
			break
		}
		admitted++
	}
	if before || q.rule.tally == nil {
		return
	}
	f := Figures{Requests: q.n, Refused: q.n - admitted}
	if q.refused {
		f.RefusedThen, f.NoLongerRefused = q.n, admitted
		r.result.Folded += q.n
	} else {
		f.NewlyRefused = q.n - admitted
	}
	r.result.Total.add(f)
	at := events.At(now.UTC().Truncate(max(r.o.Bucket, time.Minute)))
	b := r.timeline[at]
	if b == nil {
		b = &Figures{}
		r.timeline[at] = b
	}
	b.add(f)
	for _, who := range []*tally{q.rule.tally, q.rule.owner} {
		who.add(f)
		if f.Refused > 0 {
			who.refused(q, f.Refused, window)
		}
	}
}

func (t *tally) refused(q *request, n int64, window string) {
	if t.First == 0 {
		t.First = q.at
	}
	t.Last = max(t.Last, q.last)
	if t.Windows == nil {
		t.Windows = map[string]int64{}
	}
	t.Windows[window] += n
	if minute := q.at - q.at%60_000; minute > t.minute {
		t.minute, t.minuteCount = minute, 0
	}
	if t.minuteCount += n; t.minuteCount > t.WorstCount {
		t.WorstMinute, t.WorstCount = t.minute, t.minuteCount
	}
}

// End replays what still waits, and tells what everything came to.
func (r *Replay) End() Result {
	r.turns(1<<63 - 1)
	out := r.result
	out.Keys, out.Owners, out.Timeline = []Who{}, []Who{}, []Bucket{}
	for _, of := range r.rules {
		if of.tally == nil || of.tally.Key == "" {
			continue
		}
		if of.tally.Requests > 0 {
			out.Seen++
		}
		if of.tally.Refused+of.tally.RefusedThen > 0 {
			out.Keys = append(out.Keys, of.tally.Who)
		}
	}
	for _, o := range r.owners {
		if o.Refused+o.RefusedThen > 0 {
			out.Owners = append(out.Owners, o.Who)
		}
	}
	for _, list := range [][]Who{out.Keys, out.Owners} {
		slices.SortFunc(list, func(a, b Who) int {
			return cmp.Or(cmp.Compare(b.NewlyRefused, a.NewlyRefused), cmp.Compare(b.Refused, a.Refused), cmp.Compare(b.RefusedThen, a.RefusedThen),
				strings.Compare(a.Owner, b.Owner), strings.Compare(a.Key, b.Key))
		})
	}
	for at, f := range r.timeline {
		out.Timeline = append(out.Timeline, Bucket{at, *f})
	}
	slices.SortFunc(out.Timeline, func(a, b Bucket) int { return cmp.Compare(a.Time, b.Time) })
	return out
}
