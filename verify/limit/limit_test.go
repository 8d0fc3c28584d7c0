package limit_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify/limit"
)

// limiter takes limits as documents write them.
type limiter struct{ *limit.Limiter }

func newLimiter(base time.Time) limiter { return limiter{limit.New(base)} }

func (l limiter) Take(id domain.Pool, limits events.Limits, n int64, now time.Time) taken {
	return l.TakeAt(nil, id, limits, n, now)
}

func (l limiter) TakeAt(place *limit.Place, id domain.Pool, limits events.Limits, n int64, now time.Time) taken {
	var t limit.Taken
	l.Limiter.TakeAt(place, func() domain.Pool { return id }, new(domain.QuotaOf(limits)), n, now, &t)
	return taken{t, t.Limits[:t.N], now.Add(t.Later)}
}

func (l limiter) Count(id domain.Pool, limits events.Limits, n int64, when time.Time) {
	l.Limiter.Count(&id, new(domain.QuotaOf(limits)), n, when)
}

func (l limiter) GiveBack(id domain.Pool, limits events.Limits, n int64, when time.Time) {
	l.Limiter.GiveBack(&id, new(domain.QuotaOf(limits)), n, when)
}

func (l limiter) UsedUp(id domain.Pool, limits events.Limits, now time.Time) bool {
	return l.Limiter.UsedUp(&id, new(domain.QuotaOf(limits)), now)
}

func (l limiter) Stand(id domain.Pool, limits events.Limits, now time.Time) taken {
	var t limit.Taken
	l.Limiter.Stand(&id, new(domain.QuotaOf(limits)), now, &t)
	return taken{t, t.Limits[:t.N], now}
}

type taken struct {
	limit.Taken
	Limits []limit.Limit
	Time   time.Time
}

var (
	windows = []string{"minute", "hour", "day"}
	length  = map[string]time.Duration{"minute": time.Minute, "hour": time.Hour}
	evening = time.Date(2026, 1, 18, 22, 30, 0, 0, time.UTC) // so that schedules cross midnight
)

// cases makes rapid try at least n schedules.
func cases(t *testing.T, n int) {
	was := flag.Lookup("rapid.checks").Value.String()
	if set, _ := strconv.Atoi(was); set < n {
		_ = flag.Set("rapid.checks", strconv.Itoa(n))
		t.Cleanup(func() { _ = flag.Set("rapid.checks", was) })
	}
}

// truth is every request that one pool admitted, and in which windows it was
// counted: what the limiter may only approximate from one side.
type truth []admission

type admission struct {
	at     time.Time
	n      int64
	counts events.Limits
}

// used is what was admitted in the window that ends at a time, and in the
// window made longer by so much.
func (a truth) used(window string, at time.Time, longer time.Duration) (n int64) {
	for _, x := range a {
		if _, ok := x.counts[window]; !ok {
			continue
		}
		if window == "day" {
			if x.at.Truncate(24 * time.Hour).Equal(at.Truncate(24 * time.Hour)) {
				n += x.n
			}
		} else if x.at.After(at.Add(-length[window] - longer)) {
			n += x.n
		}
	}
	return n
}

// drawLimits are few enough to be reached, and not always in every window.
func drawLimits(t *rapid.T) events.Limits {
	limits := events.Limits{}
	for i, window := range windows {
		if n := rapid.Int64Range(0, 12).Draw(t, window); n > 0 {
			limits[window] = n * int64(i+1)
		}
	}
	return limits
}

// steps lead to the edges of windows and of sub-buckets as often as between them.
func drawStep(t *rapid.T) time.Duration {
	edge := rapid.SampledFrom([]time.Duration{
		0, 0, 0, time.Nanosecond, time.Millisecond, 300 * time.Millisecond, time.Second - 1, time.Second, 7 * time.Second,
		time.Minute - time.Second, time.Minute - 1, time.Minute, 61 * time.Second, 20 * time.Minute, time.Hour - 1, time.Hour,
	}).Draw(t, "step")
	if rapid.Bool().Draw(t, "between") {
		edge += time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "more"))
	}
	return edge
}

// Whatever the schedule: no rolling window ever holds more than the limit in
// force, a refusal is never earlier than one sub-bucket, consumes nothing and
// says honestly how long to wait, and what is said to remain does.
func TestSchedules(t *testing.T) {
	n := 12000
	if testing.Short() { // with the race detector, which finds nothing here
		n = 1000
	}
	cases(t, n)
	rapid.Check(t, func(t *rapid.T) {
		l := newLimiter(evening)
		pools := []domain.Pool{{Keyspace: "a", Owner: "o", Key: "key_1"}, {Keyspace: "a", Owner: "o"}, {Keyspace: "b", Owner: "o"}}
		admitted, places := make([]truth, len(pools)), make([]limit.Place, len(pools))
		now := evening.Add(time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "start")))
		limits := drawLimits(t)
		take := func(i int, n int64, now time.Time) taken {
			place := &places[i]
			if rapid.IntRange(0, 3).Draw(t, "search") == 0 {
				place = nil
			}
			got := l.TakeAt(place, pools[i], limits, n, now)
			if !got.Time.Equal(now) {
				t.Fatalf("a clock that only goes forward is moved by %s", got.Time.Sub(now))
			}
			if got.OK {
				admitted[i] = append(admitted[i], admission{now, n, limits})
			}
			check(t, admitted[i], limits, n, now, got)
			return got
		}
		for range rapid.IntRange(1, 25).Draw(t, "requests") {
			now = now.Add(drawStep(t))
			i := rapid.IntRange(0, len(pools)-1).Draw(t, "pool")
			n := rapid.SampledFrom([]int64{1, 1, 1, 2, 5}).Draw(t, "n")
			switch rapid.IntRange(0, 10).Draw(t, "act") {
			case 0:
				limits = drawLimits(t)
			case 1:
				l.Sweep(now)
			case 2: // admitted by another node
				before := now.Add(-rapid.SampledFrom([]time.Duration{0, 0, 1, 900 * time.Millisecond, 10 * time.Second, time.Minute, 50 * time.Minute}).Draw(t, "late"))
				l.Count(pools[i], limits, n, before)
				admitted[i] = append(admitted[i], admission{before, n, limits})
			case 3: // refused after all
				if got := take(i, n, now); got.OK {
					l.GiveBack(pools[i], limits, n, got.Time)
					admitted[i] = admitted[i][:len(admitted[i])-1]
				}
			case 4: // the same, when others were admitted meanwhile
				if len(admitted[i]) > 0 {
					j := rapid.IntRange(0, len(admitted[i])-1).Draw(t, "which")
					x := admitted[i][j]
					l.GiveBack(pools[i], x.counts, x.n, x.at)
					admitted[i] = slices.Delete(slices.Clone(admitted[i]), j, j+1)
				}
			}
			stood := l.Stand(pools[i], limits, now)
			got := take(i, n, now)
			for w, s := range stood.Limits {
				left := s.Remaining
				if got.OK {
					left -= n
				}
				if g := got.Limits[w]; s.Window != g.Window || s.Limit != g.Limit || left != g.Remaining || s.Reset < events.At(now) {
					t.Fatalf("it stood at %+v, and %d more made it %+v", s, n, g)
				}
			}
			if used := l.UsedUp(pools[i], limits, now); used == l.Stand(pools[i], limits, now).OK || used != (take(i, 1, now).OK == false) {
				t.Fatal("whether a limit is used up is not what the next request finds")
			}
			if got.OK || got.RetryAfter == 0 || rapid.Bool().Draw(t, "go on") {
				continue
			}
			got = take(i, n, now) // one may have been admitted meanwhile, by the look above
			wait := time.Duration(got.RetryAfter) * time.Second
			if early := l.Take(pools[i], limits, n, now.Add(wait-time.Second)); early.OK {
				t.Fatalf("told to wait %s, was admitted a second earlier", wait)
			}
			now = now.Add(wait)
			if again := take(i, n, now); !again.OK {
				t.Fatalf("told to wait %s, is refused then: %+v", wait, again)
			}
		}
	})
}

func check(t *rapid.T, a truth, limits events.Limits, n int64, now time.Time, got taken) {
	t.Helper()
	if len(got.Limits) != len(limits) {
		t.Fatalf("%d windows for the limits %v", len(got.Limits), limits)
	}
	early, never := false, false
	for _, w := range got.Limits {
		most, bucket := limits[w.Window], length[w.Window]/60
		exact, longer := a.used(w.Window, now, 0), a.used(w.Window, now, bucket)
		if got.OK && exact > most {
			t.Fatalf("%d in a %s with a limit of %d", exact, w.Window, most)
		}
		if longer+n > most {
			early = true
		}
		never = never || n > most
		if w.Limit != most || w.Remaining > max(most-exact, 0) || w.Remaining < max(most-longer, 0) {
			t.Fatalf("%+v, where %d of %d are used and at most %d counted", w, exact, most, longer)
		}
		if end := w.Reset.Time(); end.Before(now.Truncate(time.Millisecond)) || w.Window != "day" && end.After(now.Add(length[w.Window]+time.Millisecond)) {
			t.Fatalf("at %s the %s ends %s", now, w.Window, end)
		}
	}
	switch {
	case got.OK:
		if got.RetryAfter != 0 || got.Refused != -1 {
			t.Fatalf("admitted, and %+v", got)
		}
	case !early:
		t.Fatalf("refused earlier than by a sub-bucket: %+v", got)
	case never != (got.RetryAfter == 0) || got.Refused < 0:
		t.Fatalf("%+v", got)
	}
}

// Requests that are decided at once by many leave no more than the limit behind,
// in any window, whatever order they come in.
func TestTogether(t *testing.T) {
	l := newLimiter(time.Now())
	pool, limits := domain.Pool{Keyspace: "a", Owner: "o"}, events.Limits{"minute": 500, "hour": 700, "day": 900}
	var admitted atomic.Int64
	var place limit.Place
	places := make([]limit.Place, 500)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				if l.TakeAt(&place, pool, limits, 1, time.Now()).OK {
					admitted.Add(1)
				}
				other := domain.Pool{Keyspace: "a", Owner: "o", Key: fmt.Sprint(i)}
				l.TakeAt(&places[i], other, limits, 1, time.Now())
				l.GiveBack(other, limits, 1, time.Now())
				if i%100 == 0 {
					l.Sweep(time.Now())
				}
			}
		})
	}
	wg.Wait()
	if admitted.Load() != 500 {
		t.Errorf("%d are admitted, want 500", admitted.Load())
	}
}

// A request that is decided late counts from when it was decided, so that the
// times that are recorded never show more than the limit.
func TestOutOfOrder(t *testing.T) {
	l := newLimiter(evening)
	pool, limits := domain.Pool{Key: "key_1"}, events.Limits{"minute": 1}
	l.Take(pool, limits, 1, evening)
	later := evening.Add(time.Minute)
	if got := l.Take(pool, limits, 1, later); !got.OK {
		t.Fatal("refused after a minute")
	}
	if got := l.Take(pool, events.Limits{"minute": 2}, 1, later.Add(-time.Millisecond)); !got.OK || !got.Time.Equal(later) {
		t.Errorf("%+v, want it at %s", got, later)
	}
}

// A wall clock that is set back over midnight finds the day as it was.
func TestDaySetBack(t *testing.T) {
	l := newLimiter(evening)
	pool, limits := domain.Pool{Key: "key_1"}, events.Limits{"day": 3}
	midnight := evening.Truncate(24 * time.Hour).Add(24 * time.Hour)
	l.Take(pool, limits, 3, midnight.Add(-time.Second))
	got := l.Take(pool, limits, 1, midnight.Add(-1))
	if got.OK || got.RetryAfter != 1 || !got.Limits[0].Reset.Time().Equal(midnight) {
		t.Errorf("before midnight: %+v", got)
	}
	if !l.Take(pool, limits, 2, midnight).OK {
		t.Error("refused on a new day")
	}
	l.Count(pool, limits, 5, midnight.Add(-2)) // of a node whose clock is behind
	if got := l.Take(pool, limits, 1, midnight.Add(1)); !got.OK || got.Limits[0].Remaining != 0 {
		t.Errorf("what belongs to yesterday is counted today: %+v", got)
	}
}

// What was counted elsewhere may come late and out of order: it is never
// forgotten before its time.
func TestCountLate(t *testing.T) {
	l := newLimiter(evening)
	evening := evening.Truncate(24 * time.Hour).Add(time.Hour)
	pool, limits := domain.Pool{Owner: "o"}, events.Limits{"minute": 10, "hour": 10, "day": 10}
	for _, at := range []time.Duration{-2 * time.Hour, 30 * time.Second, 10 * time.Second, -30 * time.Minute, 20 * time.Second, -3 * time.Hour} {
		l.Count(pool, limits, 1, evening.Add(at))
	}
	got := l.Take(pool, limits, 1, evening.Add(79*time.Second))
	for i, used := range []int64{3, 5, 5} { // two are of the day before
		if got.Limits[i].Remaining != 10-used {
			t.Errorf("%+v, want %d used", got.Limits[i], used)
		}
	}
}

// Memory follows the pools in use: what is idle for longer than its windows is
// dropped, and nothing else.
func TestSweep(t *testing.T) {
	l := newLimiter(evening)
	for i := range 5000 {
		limits := []events.Limits{{"minute": 10}, {"hour": 10}, {"day": 10}, {}}[i%4]
		l.Take(domain.Pool{Key: fmt.Sprint("key_", i)}, limits, 1, evening)
	}
	for _, c := range []struct {
		after time.Duration
		left  int
	}{{0, 3750}, {time.Minute - 1, 3750}, {time.Minute, 2500}, {time.Hour, 1250}, {90*time.Minute - 1, 1250}, {90 * time.Minute, 0}} {
		if left := l.Sweep(evening.Add(c.after)); left != c.left {
			t.Errorf("%s after their last use %d pools are kept, want %d", c.after, left, c.left)
		}
	}
}

// A place remembers its pool for as long as it is in use, whoever counted there,
// and nothing that another limiter counted.
func TestPlace(t *testing.T) {
	pool, limits := domain.Pool{Keyspace: "a", Key: "key_1"}, events.Limits{"minute": 3}
	var place limit.Place
	l, other := newLimiter(evening), newLimiter(evening)
	for i, want := range []int64{2, 1} {
		for _, l := range []limiter{l, other} {
			if got := l.TakeAt(&place, pool, limits, 1, evening); got.Limits[0].Remaining != want {
				t.Errorf("%d: %d are left, want %d", i, got.Limits[0].Remaining, want)
			}
		}
	}
	l.Count(pool, limits, 1, evening)
	if l.TakeAt(&place, pool, limits, 1, evening).OK {
		t.Error("What was counted without the place is not counted at it.")
	}
	if !limit.Ahead(&place) {
		t.Error("The place remembers nothing.")
	}
	later := evening.Add(time.Minute)
	if l.Sweep(later)+other.Sweep(later) != 0 || limit.Ahead(&place) {
		t.Error("The place remembers a pool that was swept.")
	}
	if got := l.TakeAt(&place, pool, limits, 1, later); !got.OK || got.Limits[0].Remaining != 2 || !l.UsedUp(pool, events.Limits{"minute": 1}, later) {
		t.Errorf("After the sweep: %+v", got)
	}
}

func BenchmarkTake(b *testing.B) {
	quota := domain.Quota{1 << 40, 1 << 40, 1 << 40}
	for _, n := range []int{1000, 1000000} {
		pools := make([]domain.Pool, n)
		for i := range pools {
			pools[i] = domain.Pool{Keyspace: "a", Owner: "o" + strconv.Itoa(i%1000), Key: events.NewID("key", time.Now())}
		}
		l := newLimiter(time.Now())
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				var t limit.Taken
				now := time.Now()
				r := rand.New(rand.NewPCG(rand.Uint64(), 1))
				for p.Next() {
					l.Limiter.Take(&pools[r.IntN(n)], &quota, 1, now, &t)
				}
			})
		})
	}
}
