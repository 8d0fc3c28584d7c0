package console

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
)

// clock is told the time.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }

func newSessions(t *testing.T) (*Sessions, *clock) {
	t.Helper()
	js, err := jetstream.New(testenv.Conn(t, testenv.NATS(t)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenSessions(t.Context(), js, 1)
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{time.Now()}
	s.now = c.now
	return s, c
}

func begin(t *testing.T, s *Sessions, actor string) string {
	t.Helper()
	token, err := s.begin(t.Context(), session{RootKey: make([]byte, 32), Actor: events.Actor{Type: "root_key", ID: actor}})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Who has just signed in at one process is known at the others, whichever replica tells.
func TestSessionsOnReplicas(t *testing.T) {
	nodes := testenv.Cluster(t, 3)
	var all []*Sessions
	for i := range 3 {
		js, err := jetstream.New(nodes.Conn(i))
		if err != nil {
			t.Fatal(err)
		}
		s, err := OpenSessions(t.Context(), js, 3)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	var people sync.WaitGroup
	for i := range 6 {
		people.Go(func() {
			for n := range 300 {
				token, err := all[i%3].begin(t.Context(), session{RootKey: make([]byte, 32)})
				if err == nil {
					_, err = all[(i+n)%3].find(t.Context(), token, true)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	people.Wait()
}

// A session ends two hours after somebody was there last, and twelve after it began. What
// a page does by itself keeps nobody signed in.
func TestSessionsExpire(t *testing.T) {
	s, c := newSessions(t)
	ctx := t.Context()
	signedIn := func(token string, somebody bool) bool {
		t.Helper()
		_, err := s.find(ctx, token, somebody)
		if err != nil && !errors.Is(err, errSignedOut) {
			t.Fatal(err)
		}
		return err == nil
	}
	token := begin(t, s, "a")
	for range 6 { // 11 h 54 min
		c.pass(idleTime - time.Minute)
		if !signedIn(token, true) {
			t.Fatal("somebody who is there is signed out")
		}
	}
	if c.pass(7 * time.Minute); signedIn(token, true) {
		t.Error("a session goes on after twelve hours")
	}
	if c.at = c.at.Add(-time.Hour); signedIn(token, true) {
		t.Error("a session that is over comes back")
	}

	token = begin(t, s, "a")
	for range 3 {
		c.pass(idleTime / 3)
		if !signedIn(token, false) {
			t.Fatal("a session ends early")
		}
	}
	if c.pass(time.Second); signedIn(token, false) {
		t.Error("a page that asks by itself keeps somebody signed in")
	}

	// A change of what is kept does not bring back what was ended meanwhile.
	token = begin(t, s, "a")
	v, err := s.find(ctx, token, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.end(ctx, token); err != nil {
		t.Fatal(err)
	}
	v.Theme = "dark"
	if err := s.update(ctx, v); err == nil || signedIn(token, true) {
		t.Error("an ended session was written again")
	}
}

// All sessions are listed that have not ended, and what listens to one hears of its end.
func TestSessionsEnd(t *testing.T) {
	s, c := newSessions(t)
	ctx := t.Context()
	old := begin(t, s, "a")
	c.pass(idleTime)
	c.pass(time.Minute)
	first, second := begin(t, s, "a"), begin(t, s, "b")
	if first == second || len(first) < 32 {
		t.Fatalf("tokens %q and %q", first, second)
	}
	if all, err := s.all(ctx); err != nil || len(all) != 2 {
		t.Fatalf("%d sessions (%v)", len(all), err)
	}
	if _, err := s.find(ctx, old, true); !errors.Is(err, errSignedOut) {
		t.Errorf("the old one: %v", err)
	}
	v, err := s.find(ctx, first, true)
	if err != nil {
		t.Fatal(err)
	}
	listens, stop, err := s.ended(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := s.forget(ctx, v.id); err != nil {
		t.Fatal(err)
	}
	select {
	case <-listens.Done():
	case <-time.After(10 * time.Second):
		t.Error("what listens to a session that ended goes on")
	}
	if _, err := s.find(ctx, second, true); err != nil {
		t.Errorf("the session of somebody else: %v", err)
	}
}

// A one-time code works once, for ten minutes.
func TestCodes(t *testing.T) {
	s, c := newSessions(t)
	make := func() string {
		t.Helper()
		token, _, err := s.newCode(t.Context(), [32]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	redeem := func(token string) error {
		_, err := s.redeem(t.Context(), token)
		return err
	}
	token := make()
	results := [8]error{}
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() { results[i] = redeem(token) })
	}
	all.Wait()
	var worked int
	for _, err := range results {
		if err == nil {
			worked++
		}
	}
	if worked != 1 {
		t.Errorf("of %d who had one code %d were signed in", len(results), worked)
	}
	token = make()
	if c.pass(codeTime + time.Second); redeem(token) == nil {
		t.Error("a code works after ten minutes")
	}
	if redeem("once_"+newToken()) == nil {
		t.Error("a code that nobody made works")
	}
}

// Ten wrong sign-ins of an address in a minute are the most; right ones do not count, and
// other addresses neither.
func TestThrottle(t *testing.T) {
	c := &clock{time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	tries := &throttle{now: c.now}
	try := func(ip string, right bool) time.Duration {
		settle, wait := tries.begin(ip)
		if wait == 0 {
			settle(right)
		}
		return wait
	}
	for i := range wrongMost {
		if try("192.0.2.1", true) != 0 || try("192.0.2.1", false) != 0 {
			t.Fatalf("the %d. is refused", i+1)
		}
		c.pass(time.Second)
	}
	if wait := try("192.0.2.1", true); wait != wrongTime-wrongMost*time.Second {
		t.Errorf("one too many waits %v", wait)
	}
	if try("192.0.2.2", true) != 0 || try("", true) != 0 {
		t.Error("another address is refused")
	}
	if c.pass(wrongTime - wrongMost*time.Second); try("192.0.2.1", true) != 0 {
		t.Error("a minute later it is still refused")
	}
	// Those at once are no more than those in a row, and a network of IPv6 is one address.
	for i := range 3 * wrongMost {
		_, wait := tries.begin("2001:db8::" + string(rune('1'+i%9)))
		if (wait != 0) != (i >= wrongMost) {
			t.Fatalf("the %d. at once: %v", i+1, wait)
		}
	}
	if try("2001:db8:0:1::1", true) != 0 {
		t.Error("another network is refused")
	}
}

// Where a page goes on to is a page of this console.
func TestOurs(t *testing.T) {
	for _, to := range []string{"/", "/keys", "/keys?keyspace=a&owner=b", "/keys/key_1?span=24h", "/audit?to=https://example.com"} {
		if got := ours(to); got != to {
			t.Errorf("ours(%q) = %q", to, got)
		}
	}
	for _, to := range []string{"", "keys", "https://example.com", "//example.com", "///example.com", `/\example.com`, `\\example.com`, "/\t/example.com", "/\n/example.com",
		" /keys", "javascript:alert(1)", "/%", "http:/keys", "/keys\r\nSet-Cookie: a=b", "/\x00", "@example.com", "//user@example.com/keys"} {
		if got := ours(to); got != "/" {
			t.Errorf("ours(%q) = %q", to, got)
		}
	}
}

// A session shows a browser by two words.
func TestBrowser(t *testing.T) {
	for agent, want := range map[string]string{
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36":                                "Chrome on Linux",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36 Edg/156.0.0.0":        "Edge on Windows",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15":                   "Safari on macOS",
		"Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0":                                                                 "Firefox on Android",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/130.0 Mobile/15E148 Safari/604": "Chrome on iPhone",
		"": "A browser", "<script>": "A browser",
	} {
		if got := browser(agent); got != want {
			t.Errorf("%s: %q", agent, got)
		}
	}
}
