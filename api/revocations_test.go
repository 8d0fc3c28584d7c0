package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections/endings"
	"github.com/keyledger/keyledger/projections/recent"
	"github.com/keyledger/keyledger/reactors"
)

// withFeed adds FEED's writer.
func (s *service) withFeed() {
	s.t.Helper()
	feed, err := reactors.NewFeed(reactors.FeedOptions{Ledger: s.ledger, Conn: s.conn, Void: s.ring.Void, Log: s.deps.Log})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = feed.Run(ctx) })
	s.t.Cleanup(func() { stop(); running.Wait() })
}

// withRecent serves anew the newest facts of FEED, of which there are those from now on.
func (s *service) withRecent() (end func()) {
	s.t.Helper()
	feed, at, err := s.ledger.LastFed(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	x := recent.New(recent.Place{Feed: feed, Ledger: at})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = x.Run(ctx, s.ledger.Follow(ctx, events.Feed, feed)) })
	deps := s.deps
	deps.Recent = x
	server := httptest.NewServer(api.New(deps))
	s.url = server.URL
	end = sync.OnceFunc(func() {
		server.CloseClientConnections()
		server.Close()
		stop()
		running.Wait()
	})
	s.t.Cleanup(end)
	return end
}

// withEndings serves anew what FEED tells, as a process that has just started.
func (s *service) withEndings() (end func()) {
	s.t.Helper()
	x := endings.New()
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = x.Run(ctx, fedFacts(ctx, s.conn)) })
	deps := s.deps
	deps.Endings = x
	server := httptest.NewServer(api.New(deps))
	s.url = server.URL
	end = sync.OnceFunc(func() {
		server.CloseClientConnections()
		server.Close()
		stop()
		running.Wait()
	})
	s.t.Cleanup(end)
	return end
}

func fedFacts(ctx context.Context, nc *nats.Conn) iter.Seq2[endings.Fact, error] {
	return func(yield func(endings.Fact, error) bool) {
		for f, err := range reactors.Watch(ctx, nc, reactors.WatchFilter{After: new(uint64(0))}) {
			if !yield(endings.Fact{Sequence: f.Sequence, Ledger: f.LedgerSequence, Event: f.Event}, err) {
				return
			}
		}
	}
}

type revocation struct {
	api.Revocation
	Previous uint64
	event    string // of Server-Sent Events
	id       string
}

type revocationPage struct {
	Revocations, Announced []revocation
	Sequence               uint64
	LedgerSequence         uint64 `json:"ledger_sequence"`
	More                   bool
}

func (s *service) revocations(query, credential string, header ...string) (p revocationPage) {
	s.t.Helper()
	a := s.must("GET", "/v1/feeds/revocations"+query, credential, "", header...)
	if err := json.Unmarshal(a.body, &p); err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (r revocation) String() string {
	secret := ""
	if r.Secret != nil {
		secret = fmt.Sprint(" ", *r.Secret)
	}
	return r.Key + " " + r.Why + secret + " " + string(r.Code) + " " + r.Reason
}

func texts(list []revocation) (all []string) {
	for _, r := range list {
		all = append(all, r.String())
	}
	return all
}

// follow hands on what is sent until the connection ends, which closes the channel.
func follow(ctx context.Context, url, credential, last string) (<-chan revocation, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+credential)
	req.Header.Set("Accept", "text/event-stream")
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", resp.Status, body)
	}
	sent := make(chan revocation)
	go func() {
		defer close(sent)
		defer resp.Body.Close()
		var r revocation
		for in := bufio.NewScanner(resp.Body); in.Scan(); {
			field, value, _ := strings.Cut(in.Text(), ": ")
			switch field {
			case "event":
				r.event = value
			case "id":
				r.id = value
			case "data":
				if json.Unmarshal([]byte(value), &r) != nil {
					return
				}
			case "":
				if r.Sequence > 0 {
					select {
					case sent <- r:
					case <-ctx.Done():
						return
					}
				}
				r = revocation{}
			}
		}
	}()
	return sent, nil
}

func TestRevocations(t *testing.T) {
	s := start(t)
	s.withFeed()
	s.withEndings()
	s.configure("pb")
	s.configure("other")
	revoked, _ := s.create(nil)
	alive, _ := s.create(nil)
	expiring, _ := s.create(map[string]any{"expires_in": "30d"})
	rotated, _ := s.create(map[string]any{"owner": "org_2"})
	deleted, _ := s.create(map[string]any{"keyspace": "other"})
	s.must("POST", "/v1/keys/"+revoked+"/revoke", s.root, `{"reason":"leaked"}`)
	s.must("POST", "/v1/keys/"+rotated+"/rotate", s.root, `{"grace":"24h"}`)
	s.must("POST", "/v1/keys/"+rotated+"/rotate", s.root, `{"reason":"again"}`)
	min := s.must("DELETE", "/v1/keys/"+deleted, s.root, "").header.Get("Ledger-Sequence")

	p := s.revocations("", s.root, "Min-Sequence", min)
	if want := []string{revoked + " revoked REVOKED leaked", rotated + " superseded 2 SUPERSEDED again", deleted + " deleted REVOKED deleted"}; !slices.Equal(texts(p.Revocations), want) {
		t.Errorf("%q, want %q", texts(p.Revocations), want)
	}
	if want := []string{expiring + " expired EXPIRED ", rotated + " superseded 1 SUPERSEDED "}; !slices.Equal(texts(p.Announced), want) {
		t.Errorf("announced %q, want %q", texts(p.Announced), want)
	}
	if n := strconv.FormatUint(p.LedgerSequence, 10); n != min || p.More || p.Revocations[2].Sequence != p.Sequence || p.Revocations[2].LedgerSequence != p.LedgerSequence || p.Revocations[0].Since == 0 {
		t.Errorf("%+v", p)
	}

	// In pages the same is told, once.
	var paged []string
	for after, more := uint64(0), true; more; {
		page := s.revocations(fmt.Sprintf("?limit=1&after=%d", after), s.root)
		paged = append(append(paged, texts(page.Revocations)...), texts(page.Announced)...)
		after, more = page.Sequence, page.More
	}
	all := append(texts(p.Revocations), texts(p.Announced)...)
	slices.Sort(all)
	if slices.Sort(paged); !slices.Equal(paged, all) {
		t.Errorf("in pages %q, want %q", paged, all)
	}

	// Behind a place stands what came since; an expiry that is lifted is told.
	s.must("PATCH", "/v1/keys/"+expiring, s.root, `{"expires_at":null}`)
	since := s.must("POST", "/v1/keys/"+alive+"/revoke", s.root, `{"reason":"later"}`).header.Get("Ledger-Sequence")
	later := s.revocations(fmt.Sprintf("?after=%d", p.Sequence), s.root, "Min-Sequence", since)
	if want := []string{alive + " revoked REVOKED later"}; !slices.Equal(texts(later.Revocations), want) || len(later.Announced) != 1 || later.Announced[0].Since != 0 {
		t.Errorf("later: %+v", later)
	}

	// Owners, managers and customers' keys see their own.
	if p := s.revocations("?keyspace=pb&owner=org_2", s.root); len(p.Revocations) != 1 || p.Revocations[0].Key != rotated {
		t.Errorf("of org_2: %q", texts(p.Revocations))
	}
	root := func(body string) string {
		return s.must("POST", "/v1/root-keys", s.root, body).json["secret"].(string)
	}
	manager := root(`{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`)
	_, customer := s.create(map[string]any{"scopes": []string{"keys:manage"}})
	for _, credential := range []string{manager, customer} {
		if p := s.revocations("", credential); !slices.Equal(texts(p.Revocations), []string{revoked + " revoked REVOKED leaked", alive + " revoked REVOKED later"}) {
			t.Errorf("of org_1: %q", texts(p.Revocations))
		}
		s.refused(s.do("GET", "/v1/feeds/revocations?owner=org_2", credential, ""), 404, "OWNER_NOT_FOUND")
		s.refused(s.do("GET", "/v1/feeds/revocations?keyspace=other", credential, ""), 404, "KEYSPACE_NOT_FOUND")
	}
	auditor := root(`{"name":"a","role":"auditor"}`)
	if p := s.revocations("", auditor); len(p.Revocations) != 4 {
		t.Errorf("an auditor sees %q", texts(p.Revocations))
	}
	s.refused(s.do("GET", "/v1/feeds/revocations", root(`{"name":"v","role":"verifier"}`), ""), 403, "FORBIDDEN")

	for _, wrong := range []string{"?after=x", "?after=-1", "?after=9999", "?limit=0", "?limit=1001", "?before=1"} {
		s.refused(s.do("GET", "/v1/feeds/revocations"+wrong, s.root, ""), 422, "INVALID")
	}
	s.refused(s.do("GET", "/v1/feeds/revocations", s.root, "", "Last-Event-ID", "forged", "Accept", "text/event-stream"), 422, "INVALID")
}

// The state comes first, then "reached", then what happens; a manager's stream has
// nothing of others, and ends with its key.
func TestRevocationEvents(t *testing.T) {
	s := start(t)
	s.withFeed()
	s.withEndings()
	s.configure("pb")
	first, _ := s.create(nil)
	theirs, _ := s.create(map[string]any{"owner": "org_2"})
	second, _ := s.create(map[string]any{"expires_in": "1h"})
	s.must("POST", "/v1/keys/"+first+"/revoke", s.root, `{"reason":"leaked"}`)
	m := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`)
	manager := m.json["secret"].(string)
	s.revocations("", s.root, "Min-Sequence", m.header.Get("Ledger-Sequence"))
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	sent, err := follow(ctx, s.url+"/v1/feeds/revocations", manager, "")
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	expect := func(event, key, why string) {
		t.Helper()
		r := <-sent
		if r.event != event || r.Key != key || r.Why != why || r.id != strconv.FormatUint(r.Sequence, 10) || r.Previous != last {
			t.Errorf("sent %+v, want %q %s %s after %d", r, event, key, why, last)
		}
		last = r.Sequence
	}
	expect("announced", second, "expired")
	expect("", first, "revoked")
	expect("reached", "", "")
	s.must("POST", "/v1/keys/"+theirs+"/revoke", s.root, `{"reason":"leaked"}`)
	s.must("POST", "/v1/keys/"+second+"/revoke", s.root, `{"reason":"leaked"}`)
	expect("", second, "revoked")
	s.must("POST", "/v1/keys/"+m.key()["id"].(string)+"/revoke", s.root, `{"reason":"gone"}`)
	if r, ok := <-sent; ok {
		t.Errorf("sent after its key was revoked: %+v", r)
	}
	if ctx.Err() != nil {
		t.Error("the stream goes on although its key was revoked")
	}
}

// A subscriber whose connection breaks again and again, while keys are revoked by
// several, the service starts anew and the event store is restarted, sees each once,
// in order, and never a hole between what it saw last and previous.
func TestRevocationsOverBreaks(t *testing.T) {
	config := embedded.NATSConfig{Dir: t.TempDir(), Listen: testenv.FreeAddress(t), NoSync: true}
	server, err := embedded.StartNATS(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Shutdown() }) // whichever it is by then
	nc, err := nats.Connect(server.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	s := startOn(t, nc)
	s.withFeed()
	end := s.withEndings()
	s.configure("pb")
	const n = 200
	var ids []string
	for range n {
		id, _ := s.create(nil)
		ids = append(ids, id)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	var urls sync.Mutex // guards s.url
	url := func() string { urls.Lock(); defer urls.Unlock(); return s.url }

	seen, last, breaks := map[string]int{}, "", 0
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		for len(seen) < n && ctx.Err() == nil {
			connected, disconnect := context.WithCancel(ctx)
			sent, err := follow(connected, url()+"/v1/feeds/revocations", s.root, last)
			if err != nil {
				disconnect()
				runtime.Gosched()
				continue
			}
			got := 0
			for r := range sent {
				if previous := strconv.FormatUint(r.Previous, 10); previous != last && !(last == "" && previous == "0") {
					t.Errorf("%+v comes after %s", r, last)
				}
				last = r.id
				if r.event == "" {
					seen[r.Key]++
					if got++; got == 7 || len(seen) == n { // the rest of what is under way is lost
						break
					}
				}
			}
			disconnect()
			breaks++
		}
	}()
	var revoking sync.WaitGroup
	half := make(chan struct{})
	for i := range 4 {
		revoking.Go(func() {
			for j, id := range ids[i*n/4 : (i+1)*n/4] {
				if j == n/8 && i == 0 {
					close(half)
				}
				for { // commands go on behind the address of the day
					req, err := http.NewRequestWithContext(ctx, "POST", url()+"/v1/keys/"+id+"/revoke", strings.NewReader(`{"reason":"test"}`))
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Authorization", "Bearer "+s.root)
					req.Header.Set("Content-Type", "application/json")
					resp, err := http.DefaultClient.Do(req)
					if err == nil {
						_, _ = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					if err == nil && resp.StatusCode == 200 || ctx.Err() != nil {
						break
					}
				}
			}
		})
	}
	<-half
	end()
	urls.Lock()
	s.withEndings()
	urls.Unlock()
	server.Shutdown()
	if server, err = embedded.StartNATS(config); err != nil {
		t.Fatal(err)
	}
	revoking.Wait()
	<-followed
	if ctx.Err() != nil {
		t.Errorf("%d of %d were seen in time", len(seen), n)
	}
	for _, id := range ids {
		if seen[id] != 1 {
			t.Errorf("%s was seen %d times", id, seen[id])
		}
	}
	if breaks < n/7 {
		t.Errorf("the connection broke %d times", breaks)
	}
}

// From the answer to a revocation's command, and from the command itself, to whoever
// follows: by Server-Sent Events, and beside it by a plain NATS subscription.
func BenchmarkRevocationToSubscriber(b *testing.B) {
	s := startOn(b, testenv.Conn(b, testenv.NATS(b, testenv.Synced())))
	s.withFeed()
	s.withEndings()
	s.configure("pb")
	live, err := s.conn.SubscribeSync("live.key.revoked.>")
	if err != nil {
		b.Fatal(err)
	}
	sent, err := follow(b.Context(), s.url+"/v1/feeds/revocations", s.root, "")
	if err != nil {
		b.Fatal(err)
	}
	for r := range sent {
		if r.event == "reached" {
			break
		}
	}
	var ids []string
	for range b.N {
		id, _ := s.create(nil)
		ids = append(ids, id)
	}
	var plain, sse []time.Duration
	b.ResetTimer()
	for _, id := range ids {
		began := time.Now()
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := live.NextMsg(10 * time.Second); err != nil {
				b.Error(err)
			}
			plain = append(plain, time.Since(began))
		})
		both.Go(func() {
			if r := <-sent; r.Key != id {
				b.Errorf("sent %+v", r)
			}
			sse = append(sse, time.Since(began))
		})
		s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"test"}`)
		both.Wait()
	}
	for name, list := range map[string][]time.Duration{"nats": plain, "sse": sse} {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, "ms-"+name+"-p50")
		b.ReportMetric(float64(list[len(list)*99/100].Microseconds())/1000, "ms-"+name+"-p99")
	}
}

// What the first who asks after a start waits for: all of FEED, each fact an ending.
func BenchmarkRevocationsFirstAsked(b *testing.B) {
	nc := testenv.Conn(b, testenv.NATS(b))
	l, err := ledger.Open(b.Context(), nc, ledger.Options{AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	for at := uint64(0); at < uint64(b.N); {
		var batch []ledger.FeedEntry
		for range min(500, b.N-int(at)) {
			e := events.New(events.KeyRevoked{Reason: "test"}, time.Now())
			e.Keyspace, e.Owner, e.Key, e.KeyVersion = "pb", "org_1", events.NewID("key", time.Now()), 2
			batch = append(batch, ledger.FeedEntry{Ledger: at + uint64(len(batch)) + 1, Event: e})
		}
		if _, err := l.AppendFeedBatch(b.Context(), at, batch); err != nil {
			b.Fatal(err)
		}
		at += uint64(len(batch))
	}
	x := endings.New()
	ctx, stop := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = x.Run(ctx, fedFacts(ctx, nc)) })
	b.ResetTimer()
	if _, err := x.Reach(ctx, func(p endings.Place) bool { return p.Feed == uint64(b.N) }); err != nil {
		b.Error(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "facts/s")
	b.StopTimer()
	stop()
	running.Wait()
}
