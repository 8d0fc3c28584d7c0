package alerts

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

const (
	second = int64(time.Second / time.Millisecond)
	minute = 60 * second
	hour   = 60 * minute
)

func of(when string, above float64, over time.Duration, least int64) *rule {
	return &rule{AlertInForce: domain.AlertInForce{AlertRule: domain.AlertRule{When: when, Above: &above, Over: domain.Duration(over), MinRequests: least}}}
}

func TestFigures(t *testing.T) {
	flat := func(n int64, times int) (list []int64) {
		for range times {
			list = append(list, n)
		}
		return list
	}
	rate, volume, limit := of("error_rate", 0.05, 5*time.Minute, 20), of("unusual_volume", 4, time.Hour, 0), of("limit_used", 0.8, 0, 0)
	for name, x := range map[string]struct {
		condition
		holds, near bool
	}{
		"a share of errors above the rule's":                 {errorRate(2, 20, rate), true, true},
		"the same share of too few requests":                 {errorRate(1, 10, rate), false, false},
		"exactly the rule's share is not above it":           {errorRate(1, 20, rate), false, true},
		"a share below the lower bound":                      {errorRate(1, 25, rate), false, false},
		"nothing known":                                      {errorRate(0, 0, rate), false, false},
		"an hour like the others":                            {unusualVolume(105, 95, flat(100, 28), volume), false, false},
		"an hour far above the others":                       {unusualVolume(200, 100, flat(100, 28), volume), true, true},
		"the hour before was, and this one has only begun":   {unusualVolume(0, 200, flat(100, 28), volume), true, true},
		"far above, and yet few":                             {unusualVolume(29, 0, flat(0, 28), volume), false, false},
		"far above nothing":                                  {unusualVolume(30, 0, flat(0, 28), volume), true, true},
		"too short a past":                                   {unusualVolume(1000, 0, flat(1, 6), volume), false, false},
		"a past that was never the same is hard to surprise": {unusualVolume(200, 0, append(flat(10, 14), flat(190, 14)...), volume), false, false},
		"a limit of which most is used":                      {limitUsed([3]int64{17, 17, 17}, [3]int64{}, [3]int64{20, 0, 1000}, limit), true, true},
		"exactly the share":                                  {limitUsed([3]int64{16, 0, 0}, [3]int64{}, [3]int64{20, 0, 0}, limit), false, true},
		"a limit that refused, however little is counted":    {limitUsed([3]int64{3, 3, 3}, [3]int64{0, 1, 0}, [3]int64{20, 100, 0}, limit), true, true},
		"no limit at all":                                    {limitUsed([3]int64{3, 3, 3}, [3]int64{}, [3]int64{}, limit), false, false},
		"too many denials":                                   {deniedCount(11, of("denied", 10, time.Minute, 0)), true, true},
		"as many as are allowed":                             {deniedCount(10, of("denied", 10, time.Minute, 0)), false, true},
		"a cost above the rule's":                            {costOver(20_000_001, of("cost", 20_000_000, time.Hour, 0)), true, true},
	} {
		if x.condition.holds != x.holds || x.condition.near != x.near {
			t.Errorf("%s: holds %v, near %v (%s)", name, x.condition.holds, x.condition.near, x.detail)
		}
	}
}

func TestTime(t *testing.T) {
	now := int64(1_800_000_000_000)
	days := func(n int64) int64 { return n * 24 * hour }
	ks := &domain.Keyspace{Document: &domain.Document{Lifecycle: domain.Lifecycle{Rotation: domain.Rotation{MaxAge: domain.Duration(90 * 24 * time.Hour)}}}}
	key := func(change func(*domain.Key)) *domain.Key {
		k := &domain.Key{CreatedAt: events.Time(now - days(100)), More: &domain.More{}}
		change(k)
		return k
	}
	rules := map[string]*rule{}
	for _, r := range []domain.AlertRule{{When: "expiring", Within: domain.Duration(7 * 24 * time.Hour)}, {When: "expired"},
		{When: "unused", For: domain.Duration(30 * 24 * time.Hour)}, {When: "rotation_overdue"}, {When: "previous_secret", Within: domain.Duration(24 * time.Hour)}} {
		rules[r.When] = &rule{AlertInForce: domain.AlertInForce{AlertRule: r}}
	}
	expires := func(at int64) *domain.Key { return key(func(k *domain.Key) { k.ExpiresAt = events.Time(at) }) }
	rotated := func(ago, grace int64) *domain.Key {
		return key(func(k *domain.Key) {
			k.RotatedAt, k.Earlier = events.Time(now-ago), []domain.Earlier{{Until: events.Time(now - ago + grace)}}
		})
	}
	for _, x := range []struct {
		when     string
		key      *domain.Key
		last     int64
		previous int64
		want     bool
		why      string
	}{
		{"expiring", expires(now + days(7)), 0, 0, true, "within the time"},
		{"expiring", expires(now + days(7) + 1), 0, 0, false, "not within it yet"},
		{"expiring", expires(now), 0, 0, false, "it has expired"},
		{"expiring", key(func(*domain.Key) {}), 0, 0, false, "it never expires"},
		{"expired", expires(now), 0, 0, true, "since now"},
		{"expired", expires(now - days(7)), 0, 0, false, "long known"},
		{"expired", expires(now + 1), 0, 0, false, "not yet"},
		{"unused", key(func(*domain.Key) {}), now - days(31), 0, true, "for longer"},
		{"unused", key(func(*domain.Key) {}), now - days(29), 0, false, "used since"},
		{"unused", key(func(*domain.Key) {}), 0, 0, false, "not among the unused"},
		{"unused", key(func(k *domain.Key) { k.CreatedAt = events.Time(now - days(3)) }), 1, 0, false, "made since"},
		{"rotation_overdue", key(func(*domain.Key) {}), 0, 0, true, "as old as the key"},
		{"rotation_overdue", rotated(days(89), 0), 0, 0, false, "rotated in time"},
		{"previous_secret", rotated(2*hour, 3*hour), 0, now, true, "in the last half of a short grace"},
		{"previous_secret", rotated(hour, 3*hour), 0, now, false, "in its first half"},
		{"previous_secret", rotated(24*hour, 47*hour), 0, now, true, "in the last day of a long one"},
		{"previous_secret", rotated(3*hour, 3*hour), 0, now - 1, false, "the grace is over"},
		{"previous_secret", rotated(2*hour, 3*hour), 0, 0, false, "never used"},
	} {
		if c := timed(x.key, ks, rules[x.when], x.last, x.previous, now); c.holds != x.want || c.near != x.want {
			t.Errorf("%s, %s: %+v", x.when, x.why, c)
		}
	}
}

// A window counts what happened in it, never more, and at most a part of it less, in
// whatever order the times come.
func TestSeries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sp := window(used, rapid.Int64Range(20, 100_000).Draw(t, "over"))
		now := rapid.Int64Range(1_000_000, 2_000_000).Draw(t, "now")
		ages := rapid.SliceOf(rapid.Int64Range(0, 200_000)).Draw(t, "ages")
		var s series
		var most, least int64
		for _, age := range ages {
			s.add(sp, now-age, 1)
			if age < sp.width*sp.keep {
				most++
			}
			if age <= sp.width*(sp.keep-1) {
				least++
			}
		}
		if n := s.sum(sp, now); n > most || n < least {
			t.Fatalf("%d, not between %d and %d", n, least, most)
		}
		if int64(len(s)) > sp.keep {
			t.Fatalf("%d buckets are kept", len(s))
		}
	})
}

// Whatever is measured, an alert is raised and resolved in turn, with at least the hold
// between two changes, and what holds for long enough is told.
func TestNeverFlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hold := rapid.Int64Range(0, 100).Draw(t, "hold")
		quiet := hold + rapid.Int64Range(0, 100).Draw(t, "quiet")
		var e episode
		var last, held int64 // of the last change; since when the condition holds without a break
		now := int64(1000)
		for i, value := range rapid.SliceOf(rapid.Float64Range(0, 2)).Draw(t, "values") {
			now += rapid.Int64Range(1, 60).Draw(t, fmt.Sprint("pause ", i))
			c := above(value, 1, func() string { return "" })
			if !c.holds {
				held = 0
			} else if held == 0 {
				held = now
			}
			change := e.step(c, now, hold, quiet)
			switch {
			case change == raises && e.raised, change == resolves && !e.raised:
				t.Fatal("the same twice")
			case change != stays && last != 0 && now-last < hold:
				t.Fatalf("two changes within %d", now-last)
			case change == raises && !c.holds, change == resolves && c.near:
				t.Fatal("for no reason")
			}
			if change != stays {
				e.raised, e.since, e.seen, last = change == raises, now, now, now
			}
			if held != 0 && now-held > hold && !e.raised {
				t.Fatal("it holds and nobody was told")
			}
		}
	})
}
