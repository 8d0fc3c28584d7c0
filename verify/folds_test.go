package verify

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// entries is how much a second holds.
func (f *folds) entries() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.seconds {
		n = max(n, len(s.denied)+len(s.limited)+len(s.rejected)+len(s.taken))
	}
	return n
}

// tally adds up what was emitted.
type tally struct {
	mu     sync.Mutex // guards what follows
	counts map[string]int64
	facts  map[int64]int // by second
}

func (y *tally) add(e events.Envelope) {
	y.mu.Lock()
	defer y.mu.Unlock()
	var code string
	var f events.Fold
	switch d := e.Data.(type) {
	case events.KeyDenied:
		code, f = d.Code, d.Fold
	case events.KeyRateLimited:
		code, f = "RATE_LIMITED", d.Fold
	case seal.Rejected:
		code, f = d.Code, d.Fold
	}
	y.counts[code] += f.Count
	y.facts[f.First.Time().Unix()]++
}

// A million refusals of a million sources and endpoints take up what the caps
// allow, become as many facts, and are counted to the last one.
func TestFoldsUnderFlood(t *testing.T) {
	y := &tally{counts: map[string]int64{}, facts: map[int64]int{}}
	f := newFolds("n1", y.add)
	keyspaces := []string{"birds", "fish"}
	unknown := []domain.Code{domain.CodeUnknownKey, domain.CodeMalformedKey, domain.CodeMissingCredential}
	known := []*domain.Key{
		{ID: "key_1", Grant: &domain.Grant{Keyspace: "birds", Owner: "a"}}, {ID: "key_2", Grant: &domain.Grant{Keyspace: "fish", Owner: "b"}},
	}
	const seconds, perSecond, writers = 4, 250_000, 4
	begun := time.Unix(1771245000, 0)
	// Beyond the caps a second holds: for each known key and code one count
	// without the endpoint, for each known key and window one, for each keyspace
	// and code one overflow.
	most := maxEndpoints + maxSources + len(known) + len(known) + len(keyspaces)*len(unknown)
	for second := range seconds {
		now := begun.Add(time.Duration(second) * time.Second)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range perSecond / writers {
					n := i*writers + w
					switch key := known[n%len(known)]; n % 5 {
					case 0:
						f.deny(key, domain.CodeRevoked, fmt.Sprintf("/v1/birds/%d", n), now)
					case 1:
						f.limit(key, &Limit{Window: "minute", Limit: 10}, now)
					default:
						ip := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
						if n%2 == 0 {
							ip = netip.AddrFrom16([16]byte{0x20, 1, 4: byte(n >> 16), 5: byte(n >> 8), 6: byte(n), 15: 1})
						}
						f.reject(keyspaces[n%len(keyspaces)], unknown[n%len(unknown)], ip, now)
					}
				}
			})
		}
		wg.Wait()
		if n := f.entries(); n > most {
			t.Errorf("a second holds %d entries, more than %d", n, most)
		}
		f.flush(now.Add(time.Second))
	}
	if len(f.seconds) != 0 {
		t.Errorf("%d seconds are kept", len(f.seconds))
	}
	var total int64
	for _, n := range y.counts {
		total += n
	}
	if total != seconds*perSecond || y.counts["REVOKED"] != total/5 || y.counts["RATE_LIMITED"] != total/5 {
		t.Errorf("%d of %d refusals are counted: %v", total, seconds*perSecond, y.counts)
	}
	for second, n := range y.facts {
		if n > most {
			t.Errorf("second %d is written in %d facts, more than %d", second, n, most)
		}
	}
}

// What is counted holds on to no request: their lines may be long.
func TestFoldsKeepNoRequests(t *testing.T) {
	const long = 256 << 10
	f := newFolds("n1", func(events.Envelope) {})
	key := &domain.Key{ID: "key_1", Grant: &domain.Grant{Keyspace: "birds", Owner: "a"}}
	now := time.Unix(1771245000, 0)
	before := heap()
	for i := range 200 {
		line := fmt.Sprintf("/v1/birds/%d?%s", i, strings.Repeat("q", long))
		f.deny(key, domain.CodeRevoked, line, now)
		body := fmt.Sprintf("birds%s", strings.Repeat(" ", long))
		f.reject(body[:5], domain.CodeUnknownKey, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), now)
	}
	if grown := heap() - before; grown > 20*long {
		t.Errorf("200 refused requests of %d bytes keep %d bytes in use", long, grown)
	}
	runtime.KeepAlive(f)
}

// heap is what is in use when all that can be freed is.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
