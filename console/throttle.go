package console

import (
	"net/netip"
	"sync"
	"time"
)

// How many sign-ins of one address may be wrong within a time. What is guessed at has
// 128 bits: this keeps logs readable, and providers from being asked for nothing.
const (
	wrongMost = 10
	wrongTime = time.Minute
)

// throttle counts the wrong sign-ins of addresses, of IPv6 by /64, at this process. It
// is safe for concurrent use.
type throttle struct {
	now func() time.Time

	mu    sync.Mutex // guards wrong
	wrong map[netip.Prefix][]time.Time
}

// begin counts a sign-in as a wrong one until it is settled, so that many at once are
// no more than many in a row. wait: it is one too many, and to be tried again after.
func (t *throttle) begin(ip string) (settle func(right bool), wait time.Duration) {
	a, _ := netip.ParseAddr(ip) // what has none is one address
	bits := 64
	if a = a.Unmap().WithZone(""); a.Is4() {
		bits = 32
	}
	from, _ := a.Prefix(bits)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.wrong == nil || len(t.wrong) >= 50_000 && t.wrong[from] == nil {
		t.sweep(now)
	}
	times := t.wrong[from]
	for len(times) > 0 && now.Sub(times[0]) >= wrongTime {
		times = times[1:]
	}
	if len(times) >= wrongMost {
		return nil, wrongTime - now.Sub(times[0])
	}
	t.wrong[from] = append(times, now)
	return func(right bool) {
		if !right {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for i, at := range t.wrong[from] {
			if at.Equal(now) {
				t.wrong[from] = append(t.wrong[from][:i:i], t.wrong[from][i+1:]...)
				break
			}
		}
		if len(t.wrong[from]) == 0 {
			delete(t.wrong, from)
		}
	}, 0
}

// sweep forgets what no longer counts; all of it where that is too little.
func (t *throttle) sweep(now time.Time) {
	for from, times := range t.wrong {
		if now.Sub(times[len(times)-1]) >= wrongTime {
			delete(t.wrong, from)
		}
	}
	if t.wrong == nil || len(t.wrong) >= 50_000 {
		t.wrong = map[netip.Prefix][]time.Time{}
	}
}
