package limit

import (
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/domain"
)

// A wall clock that is set forward and back opens no rolling window, which follow
// the process's own clock, and no day: of a day by the clock as it was set, no more
// than the limit is admitted, as long as the steps stay within a day.
func TestClockSteps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := time.Date(2026, 1, 18, 23, 0, 0, 0, time.UTC)
		l, pool, quota := New(base), domain.Pool{Key: "key_1"}, domain.Quota{4, 9, 12}
		wall, now := base.UnixNano(), int64(0)
		var admitted []int64 // moments
		days := map[int64]int{}
		for range rapid.IntRange(1, 60).Draw(t, "requests") {
			now += int64(rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second, 20 * time.Second, time.Minute, 10 * time.Minute, time.Hour}).Draw(t, "later"))
			if rapid.IntRange(0, 3).Draw(t, "steps") == 0 {
				wall = base.UnixNano() + int64(rapid.SampledFrom([]time.Duration{0, -time.Second, time.Minute, -2 * time.Hour, 3 * time.Hour, -11 * time.Hour, 11 * time.Hour}).Draw(t, "to"))
			}
			var got Taken
			l.take(nil, func() domain.Pool { return pool }, &quota, 1, now, wall, &got)
			if got.OK {
				admitted = append(admitted, now)
				days[dayOf(wall+now)]++
			}
			for i, span := range spans {
				n, early := int64(0), int64(0)
				for _, at := range admitted {
					if at > now-span {
						n++
					}
					if at > now-span-span/buckets {
						early++
					}
				}
				if n > quota[i] {
					t.Fatalf("%d of %d are admitted in a %s", n, quota[i], names[i])
				}
				if left := got.Limits[i].Remaining; left > quota[i]-n || left < quota[i]-early {
					t.Fatalf("%d of %d are left after %d", left, quota[i], n)
				}
			}
			for day, n := range days {
				if int64(n) > quota[2] {
					t.Fatalf("%d of %d are admitted on day %d", n, quota[2], day)
				}
			}
		}
	})
}

// A clock that was days ahead for a while does not end the counting of days.
func TestClockDaysAhead(t *testing.T) {
	l, pool, quota := New(time.Now()), domain.Pool{Key: "key_1"}, domain.Quota{0, 0, 3}
	const length = int64(24 * time.Hour)
	for _, ahead := range []int64{0, 2, 3, 4, 0} {
		admitted := 0
		for range 10 {
			var got Taken
			if l.take(nil, func() domain.Pool { return pool }, &quota, 1, 0, (100+ahead)*length, &got); got.OK {
				admitted++
			}
		}
		if admitted != 3 {
			t.Errorf("with a clock %d days ahead %d are admitted, want 3", ahead, admitted)
		}
	}
}

// A pool begins where a cache line does, and what a decision reads is in the first
// three: the allocator has room of just this size.
func TestLines(t *testing.T) {
	var p pool
	if size, rows, rest := unsafe.Sizeof(p), unsafe.Offsetof(p.latest), unsafe.Offsetof(p.shared); size != 256 || rows != 128 || rest > 192 {
		t.Errorf("a pool has %d bytes, its rows end at %d and its days at %d", size, rows, rest)
	}
}
