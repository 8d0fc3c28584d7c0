package authz_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway/authz"
	"github.com/keyledger/keyledger/gateway/front"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// served is a rig on a listener of forward-auth's own; odd counts the questions that
// net/http answered.
type served struct {
	*rig
	address string
	server  *front.Server
	odd     atomic.Int64
}

// ServeHTTP is asked by net/http alone.
func (s *served) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.odd.Add(1)
	s.handler.ServeHTTP(w, r)
}

func (s *served) ServeShort(w http.ResponseWriter, r *http.Request) bool {
	return s.handler.ServeShort(w, r)
}

func newServed(t *testing.T) *served {
	t.Helper()
	s := &served{rig: newRig(t, authz.Options{})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.server = front.New(front.Config{}, s, nil, nil)
	done := make(chan struct{})
	go func() {
		_ = s.server.Serve(l)
		close(done)
	}()
	t.Cleanup(func() {
		s.server.Drain(context.Background())
		<-done
	})
	return s
}

// talk sends parts of a conversation, one write each, and reads as many answers as
// methods are named.
func (s *served) talk(methods []string, parts ...string) (answers []string) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		for _, part := range parts {
			fmt.Fprint(c, strings.ReplaceAll(part, "|", "\r\n"))
		}
	}()
	in := bufio.NewReader(c)
	for _, method := range methods {
		res, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			s.t.Fatalf("%q: %v", parts, err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := http.ParseTime(res.Header.Get("Date")); err != nil && res.StatusCode != 400 { // which net/http writes without
			s.t.Errorf("%v", err)
		}
		answers = append(answers, fmt.Sprintf("%d %d %s %s", res.StatusCode, res.ContentLength, res.Header.Get("X-Key-Id"), body))
	}
	return answers
}

// Questions are answered alike by the short way and by net/http, whatever comes
// before them on their connection.
func TestListener(t *testing.T) {
	s := newServed(t)
	const plain = "GET /v1/authz/birds?for=nginx HTTP/1.1" + proof + bearer + "|X-Original-Method: GET|X-Original-URI: /v1/birds||"
	const refused = "GET /v1/authz/birds HTTP/1.1" + proof + bearer + "|X-Original-Method: POST|X-Original-URI: /v1/birds||"
	const body = `{"problem":"Scope missing","needs":["birds:write"]}`
	admitted, told := "200 0 "+s.key+" ", fmt.Sprintf("403 %d  %s", len(body), body)
	head := fmt.Sprintf("403 %d  ", len(body))
	get := func(n int) (methods []string) {
		for range n {
			methods = append(methods, "GET")
		}
		return methods
	}
	for _, c := range []struct {
		name    string
		methods []string
		parts   []string
		want    []string
		odd     int64
	}{
		{"one", get(1), []string{plain}, []string{admitted}, 0},
		{"kept open", get(3), []string{plain, refused, plain}, []string{admitted, told, admitted}, 0},
		{"all at once", get(3), []string{plain + refused + plain}, []string{admitted, told, admitted}, 0},
		{"in pieces", get(2), []string{plain[:7], plain[7:150], plain[150:] + refused[:3], refused[3:]}, []string{admitted, told}, 0},
		{"HEAD of Envoy", []string{"HEAD", "GET"}, []string{"HEAD /v1/authz/birds/v1/birds HTTP/1.1" + proof + bearer + "|Content-Length: 0||" + plain}, []string{admitted, admitted}, 0},
		{"HEAD, refused", []string{"HEAD", "GET"}, []string{strings.Replace(refused, "GET", "HEAD", 1) + plain}, []string{head, admitted}, 0},
		{"odd names", get(1), []string{strings.Replace(plain, "|X-Orig", "|x_y.z: 1|user-agent: x|X-Orig", 1)}, []string{admitted}, 0},
		{"a body", get(3), []string{plain + "POST /v1/authz/birds/v1/eggs HTTP/1.1" + proof + bearer + "|Content-Length: 5||hello" + plain}, []string{admitted, admitted, admitted}, 0},
		{"chunked", get(2), []string{"POST /v1/authz/birds/v1/eggs HTTP/1.1" + proof + bearer + "|Transfer-Encoding: chunked||5|hello|0||" + plain}, []string{admitted, admitted}, 2},
		{"HTTP/1.0", get(1), []string{strings.Replace(plain, "HTTP/1.1", "HTTP/1.0", 1)}, []string{admitted}, 1},
		{"the last one", get(1), []string{strings.Replace(plain, "|Host", "|Connection: close|Host", 1)}, []string{admitted}, 1},
		{"a long head", get(2), []string{strings.Replace(plain, "|Host", "|X-Long: "+strings.Repeat("x", 20_000)+"|Host", 1) + plain}, []string{admitted, admitted}, 2},
		{"without proof", get(1), []string{strings.Replace(plain, "|X-Authz-Token: "+token, "", 1)}, []string{""}, 0},
	} {
		before := s.odd.Load()
		got := s.talk(c.methods, c.parts...)
		if c.want[0] == "" {
			if !strings.HasPrefix(got[0], "401 ") {
				t.Errorf("%s: %q", c.name, got)
			}
		} else if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if odd := s.odd.Load() - before; odd != c.odd {
			t.Errorf("%s: net/http answered %d", c.name, odd)
		}
	}
	for _, broken := range []string{
		"GET /v1/authz/birds HTTP/1.1|X-Authz-Token: x||", "GET /v1/authz/birds HTTP/1.1|Host: x|Host: y||", "GET  /v1/authz/birds HTTP/1.1|Host: x||",
		"GET /v1/authz/birds HTTP/1.1|Host: x|X : y||", "GET /v1/authz/birds HTTP/1.1|Host: x|Content-Length: 0|Content-Length: 5||",
	} {
		if got := s.talk(get(1), broken); !strings.HasPrefix(got[0], "400 ") && !strings.HasPrefix(got[0], "401 ") {
			t.Errorf("%s: %q", broken, got)
		}
	}
}

// What is answered is recorded, and closing waits for what is under way; who waits
// with an open connection is not waited for.
func TestListenerClose(t *testing.T) {
	s := newServed(t)
	idle, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	var answered atomic.Int64
	var wg sync.WaitGroup
	begun := make(chan struct{}, 100)
	for range 4 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.address+"/v1/authz/birds", nil)
				if err != nil {
					t.Error(err)
					return
				}
				r.Header = http.Header{"Authorization": {"Bearer " + secret}, "X-Authz-Token": {token}, "X-Original-Method": {"GET"}, "X-Original-Uri": {"/v1/birds"}}
				res, err := client.Do(r)
				if err != nil {
					return // closed
				}
				res.Body.Close()
				answered.Add(1)
				select {
				case begun <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 50 {
		<-begun
	}
	began := time.Now()
	s.server.Drain(t.Context())
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("closing took %s", took)
	}
	wg.Wait()
	if uses := int64(len(verifytest.RecordedAs[events.KeyUsed](s.World))); uses < answered.Load() || uses > answered.Load()+4 || s.odd.Load() != 0 {
		t.Errorf("%d answered, %d recorded, %d by net/http", answered.Load(), uses, s.odd.Load())
	}
}
