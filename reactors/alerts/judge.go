package alerts

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// condition is what a rule finds at a moment.
type condition struct {
	value, threshold float64
	holds            bool // the alert is raised
	near             bool // it is not resolved
	detail           string
	ip               *events.Sealed
}

// lower is the share of its threshold that a value has to fall to before an alert is
// resolved.
const lower = 0.8

// above is asked for every key that was used: the words are made for what holds alone.
func above(value, threshold float64, detail func() string) condition {
	c := condition{value: value, threshold: threshold, holds: value > threshold, near: value > lower*threshold}
	if c.holds {
		c.detail = detail()
	}
	return c
}

func number(f float64) string { return strconv.FormatFloat(math.Round(f*1000)/1000, 'f', -1, 64) }

// errorRate is the share of failed requests among those whose outcome is known, of
// which there must be some.
func errorRate(failed, known int64, r *rule) condition {
	if known == 0 || known < r.MinRequests {
		return condition{threshold: *r.Above}
	}
	return above(float64(failed)/float64(known), *r.Above, func() string { return fmt.Sprintf("%d of %d requests failed within %s", failed, known, r.Over) })
}

func deniedCount(n int64, r *rule) condition {
	return above(float64(n), *r.Above, func() string { return fmt.Sprintf("%d requests were denied within %s", n, r.Over) })
}

func costOver(micros int64, r *rule) condition {
	return above(float64(micros), *r.Above, func() string { return fmt.Sprintf("%s were spent within %s", number(float64(micros)/1e6), r.Over) })
}

const (
	// A key's own past are so many windows, of those that have passed since it was
	// made; with fewer than leastPast there is no past to compare with.
	volumePast = 28
	leastPast  = 7

	// leastVolume is how many requests a window must have to be unusual, where the
	// rule says no number.
	leastVolume = 30
)

// unusualVolume compares the window under way, and the one before, with the past: by how
// many standard deviations they are above its mean. A past that is all alike has the
// deviation that chance alone would give (the root of the mean), and at least one request.
func unusualVolume(current, previous int64, past []int64, r *rule) condition {
	least := r.MinRequests
	if least == 0 {
		least = leastVolume
	}
	n := max(current, previous)
	if len(past) < leastPast || n < least {
		return condition{threshold: *r.Above}
	}
	var mean, squares float64
	for _, x := range past {
		mean += float64(x)
	}
	mean /= float64(len(past))
	for _, x := range past {
		squares += (float64(x) - mean) * (float64(x) - mean)
	}
	deviation := max(math.Sqrt(squares/float64(len(past)-1)), math.Sqrt(mean), 1)
	return above((float64(n)-mean)/deviation, *r.Above, func() string {
		return fmt.Sprintf("%d requests within %s, where the %d before it had %s on average (standard deviation %s)", n, r.Over, len(past), number(mean), number(deviation))
	})
}

// limitUsed is the largest share of a limit. A refusal by it is all of it.
func limitUsed(counts, refusals, quota [3]int64, r *rule) (c condition) {
	c.threshold = *r.Above
	for i, limit := range quota {
		if limit <= 0 {
			continue
		}
		share := float64(counts[i]) / float64(limit)
		if refusals[i] > 0 {
			share = max(share, 1)
		}
		if share < c.value {
			continue
		}
		detail := func() string {
			text := fmt.Sprintf("%d of %d requests of the %s", counts[i], limit, domain.Windows[i])
			if refusals[i] > 0 {
				text += fmt.Sprintf(", and %d more were refused", refusals[i])
			}
			return text
		}
		if c = above(share, *r.Above, detail); refusals[i] > 0 && !c.holds {
			c.holds, c.detail = true, detail()
		}
	}
	return c
}

// expiredFor is how long an expired key stays raised.
const expiredFor = 7 * 24 * time.Hour

const day = float64(24 * time.Hour / time.Millisecond)

func milliseconds(d domain.Duration) int64 { return time.Duration(d).Milliseconds() }

// timed judges what only passing time makes true of a key. lastUsed is its last use, or
// when it was made, and previousUsed the last use of a previous secret; 0: not known.
func timed(k *domain.Key, ks *domain.Keyspace, r *rule, lastUsed, previousUsed, now int64) (c condition) {
	at := events.Time(now)
	is := func(holds bool, value, threshold int64, detail func() string) condition {
		c := condition{value: float64(value) / day, threshold: float64(threshold) / day, holds: holds, near: holds}
		if holds { // all keys are asked
			c.detail = detail()
		}
		return c
	}
	switch r.When {
	case "expiring":
		left, within := int64(k.ExpiresAt)-now, milliseconds(r.Within)
		return is(k.ExpiresAt != 0 && left > 0 && left <= within, left, within, func() string { return "expires at " + k.ExpiresAt.String() })
	case "expired":
		ago := now - int64(k.ExpiresAt)
		return is(k.Expired(at) && ago < expiredFor.Milliseconds(), ago, 0, func() string { return "expired at " + k.ExpiresAt.String() })
	case "unused":
		since := max(lastUsed, int64(k.CreatedAt))
		return is(k.Active(at) && lastUsed != 0 && now-since > milliseconds(r.For), now-since, milliseconds(r.For), func() string { return "not used since " + events.Time(since).String() })
	case "rotation_overdue":
		most, age := milliseconds(ks.Lifecycle.Rotation.MaxAge), now-int64(k.SecretSince())
		return is(k.Active(at) && most > 0 && age > most, age, most, func() string {
			return fmt.Sprintf("the secret was made at %s and should be rotated every %s", k.SecretSince(), ks.Lifecycle.Rotation.MaxAge)
		})
	case "previous_secret":
		until := int64(k.GraceUntil(at))
		near := min(milliseconds(r.Within), (until-int64(k.SecretSince()))/2)
		return is(until != 0 && k.Active(at) && previousUsed >= until-near, until-previousUsed, near, func() string {
			return fmt.Sprintf("the previous secret was still used at %s and ends at %s", events.Time(previousUsed), events.Time(until))
		})
	}
	return c
}

// episode is what is known of one rule and subject. The zero value was never raised.
type episode struct {
	alert    string
	raised   bool
	since    int64  // of the last change
	sequence uint64 // in OPS, of the last change
	seen     int64  // when its condition was last near
}

type change int

const (
	stays change = iota
	raises
	resolves
)

// step says what becomes of an episode: it is raised at least hold after it was resolved,
// and resolved when its condition was not near for as long as quiet, which is hold or more.
func (e *episode) step(c condition, now, hold, quiet int64) change {
	switch {
	case e.raised && (c.near || c.holds):
		e.seen = now
	case e.raised && now-max(e.seen, e.since) >= quiet:
		return resolves
	case !e.raised && c.holds && (e.since == 0 || now-e.since >= hold):
		return raises
	}
	return stays
}
