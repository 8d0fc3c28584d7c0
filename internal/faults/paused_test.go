package faults

import (
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process is stopped while another one revokes a key. What it is asked from
// then on it answers, once it wakes, with what was known when it was asked: the
// key is revoked, or the process says that it does not know.
func TestPausedVerifier(t *testing.T) {
	t.Parallel()
	s, _, one := serving(t)
	two := s.service()
	two.start()
	c, paused := s.client(one), s.client(two)
	codes := map[string]int{}
	for i := range times(2, 50) {
		a := c.until(t.Context(), http.MethodPost, "/v1/keys", fmt.Sprint("paused-", i), map[string]string{"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI"})
		var m made
		a.decode(t, &m)
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			code, err := paused.verify(t.Context(), m.Secret)
			if err == nil && code == "VALID" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the other process does not learn of a key: %s %v", code, err)
			}
		}
		two.process.Signal(syscall.SIGSTOP)
		if a := c.until(t.Context(), http.MethodPost, "/v1/keys/"+m.Key.ID+"/revoke", "", map[string]string{}); a.status != http.StatusOK {
			t.Fatalf("revoke: %d %s", a.status, a.body)
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				code, err := paused.verify(t.Context(), m.Secret)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				codes[code]++
			})
		}
		// The process takes more than a second without a tick of its own clock
		// for a pause; meanwhile the requests lie in its socket.
		<-time.After(1300 * time.Millisecond)
		two.process.Signal(syscall.SIGCONT)
		wg.Wait()
	}
	t.Logf("answered after waking: %v", codes)
	if codes["VALID"] > 0 || codes["REVOKED"] == 0 {
		t.Errorf("A process that was stopped answered %v.", codes)
	}
}
