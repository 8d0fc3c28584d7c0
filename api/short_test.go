package api_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway/front"
)

// aside counts what goes the long way.
type aside struct {
	front.Short
	long atomic.Int64
}

func (a *aside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.long.Add(1)
	a.Short.ServeHTTP(w, r)
}

// serveFront is the address of a server of the handler, as the program makes it.
func (s *service) serveFront(h http.Handler) string {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	server := front.New(front.Config{}, h, nil, slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	s.t.Cleanup(func() {
		server.Drain(context.Background())
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	return l.Addr().String()
}

// What differs from one answer to the next, whichever way.
var changing = regexp.MustCompile(`dec_[0-9a-z]+|"remaining":[0-9]+|"reset":"[^"]+"|Date: [^\n]+|X-RateLimit-[^,}\n]+`)

// talk sends requests on one connection, all at once, and returns the answers.
func (s *service) talk(address string, requests ...string) string {
	s.t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, strings.Join(requests, "")); err != nil {
		s.t.Fatal(err)
	}
	var all strings.Builder
	in := bufio.NewReader(conn)
	for range requests {
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			s.t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			s.t.Fatal(err)
		}
		var lines []string
		for name, values := range res.Header {
			lines = append(lines, fmt.Sprintf("%s: %q", name, values))
		}
		slices.Sort(lines)
		fmt.Fprintf(&all, "%s %s %d\n%s\n\n%s\n", res.Proto, res.Status, res.ContentLength, strings.Join(lines, "\n"), body)
	}
	return changing.ReplaceAllString(all.String(), "…")
}

// POST /v1/verify is answered alike by the short way and by net/http alone, and is
// recorded and counted the same.
func TestVerifyShort(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}, "limits": map[string]any{"minute": 1000}})
	handler := api.New(s.deps).(front.Short)
	both := &aside{Short: handler}
	short, long := s.serveFront(both), s.serveFront(http.HandlerFunc(handler.ServeHTTP))
	ask := func(credential, body string, lines ...string) string {
		return fmt.Sprintf("POST /v1/verify HTTP/1.1\r\nHost: x\r\nX-Request-Id: req_1\r\nAuthorization: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s",
			credential, len(body), strings.Join(lines, ""), body)
	}
	root := "Bearer " + s.root
	good := ask(root, `{"keyspace":"pb","key":"`+secret+`","method":"GET","path":"/v1/parcels/17","ip":"203.0.113.7"}`)
	asked := int64(0)
	for _, c := range []struct {
		requests []string
		long     int64 // of them
	}{
		{[]string{good, good, good}, 0},
		{[]string{good, ask(root, `{"keyspace":"pb","key":"`+secret+`","method":"DELETE","path":"/v1/parcels/17"}`), good}, 0},
		{[]string{ask(root, `{"keyspace":"pb","authorization":"Basic x"}`), ask(root, `{"keyspace":"pb"}`), ask(root, `{"keyspace":"nobody"}`)}, 0},
		{[]string{good, ask(root, `{"keyspace":"pb","key":"\u0041"}`), good}, 2},
		{[]string{good, ask(root, `{"keyspace":7}`)}, 1},
		{[]string{ask("Bearer nobody", `{"keyspace":"pb"}`)}, 1},
		{[]string{good, ask(root, `{"keyspace":"pb","path":"`+strings.Repeat("/a", 3000)+`"}`), good}, 2},
		{[]string{strings.Replace(good, "/v1/verify", "/v1/verify?a=b", 1), good}, 2},
		{[]string{strings.Replace(good, "/v1/verify", "/v1/verif%79", 1)}, 1},
		{[]string{"GET /v1/verify HTTP/1.1\r\nHost: x\r\nX-Request-Id: req_1\r\n\r\n", good}, 2},
		{[]string{good, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: req_1\r\nConnection: close\r\n\r\n"}, 1},
	} {
		before := both.long.Load()
		got, want := s.talk(short, c.requests...), s.talk(long, c.requests...)
		if got != want {
			t.Errorf("%q: answered %s\nby net/http alone: %s", c.requests, got, want)
		}
		if n := both.long.Load() - before; n != c.long {
			t.Errorf("%q: %d went the long way, want %d", c.requests, n, c.long)
		}
		asked += 2 * int64(strings.Count(got, `"valid":true`))
	}
	if err := s.recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	recorded := int64(0)
	for r, err := range s.ledger.Read(t.Context(), events.Usage, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := r.Event.Data.(events.KeyUsed); ok {
			recorded++
		}
	}
	if recorded != asked || asked == 0 {
		t.Errorf("%d admitted, %d recorded", asked, recorded)
	}
}
