package verify_test

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
)

// flood is the n-th request of an attack: every one from another source, with
// another secret, to another endpoint.
func flood(n int64) domain.Request {
	req := request(fmt.Sprintf("bd_live_%032d", n))
	switch n % 4 {
	case 0:
		req.Credential[0] = fmt.Sprintf("Bearer nobody%d", n)
	case 1:
		req.Credential = nil
	}
	req.Path = fmt.Sprintf("/v1/birds/%d", n)
	if req.IP = fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255); n%3 == 0 {
		req.IP = fmt.Sprintf("2001:db8:%x:%x::1", n>>16&0xffff, n&0xffff)
	}
	return req
}

// While unknown keys are tried as fast as the machine can, the stream grows by
// what the folds allow, every attempt is counted, and memory does not grow with
// them. A known key goes on being admitted, each use recorded.
func TestFlood(t *testing.T) {
	w, _ := birds(t)
	revoked := w.Key("birds", "org_1", secret+"r", events.KeyCreated{Environment: "live"})
	w.Append("birds", "org_1", revoked, events.KeyRevoked{Reason: "leaked"})
	var next atomic.Int64
	var mu sync.Mutex
	sent := map[domain.Code]int64{}
	enough := time.Now().Add(1500 * time.Millisecond)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			own := map[domain.Code]int64{}
			for time.Now().Before(enough) {
				n := next.Add(1)
				req := flood(n)
				if n%8 == 7 {
					req.Credential = []string{"Bearer " + secret + "r"}
				}
				own[w.Verifier.Verify(req).Code]++
			}
			mu.Lock()
			defer mu.Unlock()
			for code, n := range own {
				sent[code] += n
			}
		})
	}
	uses := 0
	for req := request(secret); time.Now().Before(enough); <-time.After(time.Millisecond) {
		d := w.Verifier.Verify(req)
		if !d.Valid || !w.Verifier.Record(&d, &req, verify.Use{Via: "api"}) {
			t.Fatalf("a known key is refused: %s", d.Code)
		}
		uses++
	}
	wg.Wait()
	recorded := map[domain.Code]int64{}
	admitted := 0
	facts := map[int64]int{}
	pages := map[uint64]bool{}
	for _, r := range w.Recorded() {
		switch d := r.Event.Data.(type) {
		case events.KeyUsed:
			admitted++
			continue
		case events.KeyDenied:
			recorded[domain.Code(d.Code)] += d.Count
			facts[d.First.Time().Unix()]++
		case events.CredentialRejected:
			recorded[domain.Code(d.Code)] += d.Count
			facts[d.First.Time().Unix()]++
		}
		pages[r.Sequence] = true
	}
	if !maps.Equal(recorded, sent) {
		t.Errorf("recorded %v, refused %v", recorded, sent)
	}
	if admitted != uses {
		t.Errorf("%d uses of the known key are recorded, %d were admitted", admitted, uses)
	}
	// 1,024 endpoints and 100 sources, an overflow for each of three codes, and
	// the revoked key's other endpoints; twice where a flush came between.
	const most = 2 * (1024 + 100 + 3 + 1)
	for second, n := range facts {
		if n > most {
			t.Errorf("second %d is written in %d facts", second, n)
		}
	}
	// A page of refusals holds some hundred of them.
	if n := len(pages); n > 20*len(facts) {
		t.Errorf("%d pages for %d seconds", n, len(facts))
	}
	t.Logf("%d attempts in %d facts of %d pages", next.Load(), len(facts), len(pages))
}
