package front_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyledger/keyledger/gateway/front"
)

// mirror answers with the request as it sees it. Its short way is for paths that
// begin with /s.
type mirror struct{ long, short atomic.Int64 }

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.long.Add(1)
	m.answer(w, r)
}

func (m *mirror) ServeShort(w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasPrefix(r.RequestURI, "/s") {
		return false
	}
	m.short.Add(1)
	m.answer(w, r)
	return true
}

func (m *mirror) answer(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.RequestURI, "/s/panic") {
		panic(http.ErrAbortHandler)
	}
	body, err := io.ReadAll(r.Body)
	answer := fmt.Appendf(nil, "%s %s %s %s %d %v %s %q %v", r.Method, r.RequestURI, r.Proto, r.Host, r.ContentLength, r.TransferEncoding, r.RemoteAddr, body, err)
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		answer = fmt.Appendf(answer, "\n%s %q", name, r.Header[name])
	}
	h := w.Header()
	h["X-Seen"], h["Content-Length"] = []string{r.Method}, []string{strconv.Itoa(len(answer))}
	switch {
	case strings.HasPrefix(r.RequestURI, "/s/204"):
		w.WriteHeader(http.StatusNoContent)
		return
	case strings.HasPrefix(r.RequestURI, "/s/typed"):
		h["Content-Type"], h["X-Lines"] = []string{"application/json"}, []string{"a\r\nb", "c"}
		w.WriteHeader(http.StatusTeapot)
	}
	_, _ = w.Write(answer)
}

// script is a connection on which all has been said: one piece after the other,
// then the end. It keeps what was answered.
type script struct {
	mu     sync.Mutex // guards what follows
	pieces [][]byte
	out    bytes.Buffer
	closed chan struct{}
	once   sync.Once
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
	}
	for len(s.pieces) > 0 && len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	s.pieces[0] = s.pieces[0][n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *script) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 4711} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// scripts is a listener whose connections are scripts.
type scripts struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *scripts) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *scripts) Addr() net.Addr { return &net.TCPAddr{} }
func (l *scripts) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// played serves scripts.
func played(t testing.TB, h http.Handler) *scripts {
	l := &scripts{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := front.New(front.Config{MaxHeaderBytes: 12 << 10}, h, nil, slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Drain(context.Background())
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l
}

// play is what is answered, with each answer's header lines in order and without
// the date.
func (l *scripts) play(pieces ...[]byte) string {
	s := &script{pieces: slices.Clone(pieces), closed: make(chan struct{})}
	l.conns <- s
	<-s.closed
	s.mu.Lock()
	defer s.mu.Unlock()
	var all strings.Builder
	for out := s.out.String(); out != ""; {
		head, rest, _ := strings.Cut(out, "\r\n\r\n")
		lines := strings.Split(head, "\r\n")
		slices.Sort(lines[1:])
		length, bodiless := len(rest), strings.HasPrefix(lines[0], "HTTP/1.1 1")
		for _, line := range lines {
			if strings.HasPrefix(line, "Date: ") {
				continue
			}
			if n, ok := strings.CutPrefix(line, "Content-Length: "); ok {
				length, _ = strconv.Atoi(n)
			}
			bodiless = bodiless || line == "X-Seen: HEAD" || strings.Contains(line, " 204 ")
			fmt.Fprintln(&all, line)
		}
		if bodiless {
			length = 0
		}
		length = min(length, len(rest))
		fmt.Fprintf(&all, "\n%s\n", rest[:length])
		out = rest[length:]
	}
	return all.String()
}

const (
	asked  = "GET /s/a?b=%20c HTTP/1.1\r\nHost: x.example:80\r\nX-Original-URI: /a\r\nx_y.z: 1\r\nx_Y.z:\t2 \r\n\r\n"
	posted = "POST /s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 7\r\nConnection: Keep-Alive\r\nPragma: no-cache\r\n\r\n{\"a\":1}"
	longer = "POST /long HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
)

// conversations are what clients say, well or badly.
var conversations = []string{
	asked, posted, longer, "",
	asked + posted + asked + posted,
	posted + longer + posted,
	posted + "\r\n" + posted + "\r\n\r\n" + asked,
	posted + "\r\n\r\n\r\n" + asked,
	asked + "\r\n" + asked,
	"HEAD /s/x HTTP/1.1\r\nHost: x\r\n\r\nHEAD /long HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"GET /s/204 HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"GET /s/typed HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"GET /s/panic HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"GET /s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + asked,
	"GET /s HTTP/1.0\r\nHost: x\r\n\r\n" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nabc",
	"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: 0003\r\n\r\nabc" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n" + asked,
	"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc" + asked,
	"POST /s HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" + asked,
	"GET /s HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + asked,
	"GET /s HTTP/1.1\r\nHost:\r\n\r\n" + asked,
	"GET /s HTTP/1.1\r\nHost: a b\r\n\r\n" + asked,
	"GET  /s HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"GET /s HTTP/1.1\nHost: x\n\n" + asked,
	"GET /s HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n" + asked,
	"GET /s HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n" + asked,
	"GET /s HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n" + asked,
	"GET http://y/s HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"CONNECT /s HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"GET /s%zz HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"GET /s#a HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"GET /s\xff HTTP/1.1\r\nHost: x\r\n\r\n" + asked,
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"GET /s HTTP/1.1\r\nHost: x\r\nA: b",
	"nonsense",
}

// A client cannot tell which way was gone: whatever it says, in whatever pieces, it
// gets the same answers from a handler with a short way as from net/http alone.
func TestShortAnswersAlike(t *testing.T) {
	m := &mirror{}
	both, alone := played(t, m), played(t, http.HandlerFunc(m.ServeHTTP))
	for _, said := range conversations {
		want := alone.play([]byte(said))
		for at := range len(said) + 1 {
			if got := both.play([]byte(said[:at]), []byte(said[at:])); got != want {
				t.Fatalf("%q, cut at %d: answered %s\nby net/http alone: %s", said, at, got, want)
			}
		}
		if got := both.play(bytes.SplitAfter([]byte(said), nil)...); got != want {
			t.Fatalf("%q, byte by byte: answered %s\nby net/http alone: %s", said, got, want)
		}
	}
	for _, size := range []int{4 << 10, 4<<10 + 1, 11 << 10, 30 << 10} { // bodies and heads that are long or too long
		body := strings.Repeat("b", size)
		for _, said := range []string{
			asked + fmt.Sprintf("POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", size, body) + asked,
			asked + "GET /s HTTP/1.1\r\nHost: x\r\nX-Long: " + body + "\r\n\r\n" + asked,
			posted + "POST /s HTTP/1.1\r\nHost: x\r\nX-Long: " + body[:min(size, 11<<10)] + fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n%s", 4096, strings.Repeat("b", 4096)) + asked,
		} {
			want := alone.play([]byte(said))
			for _, at := range []int{0, 4200, len(said) - 5} {
				if got := both.play([]byte(said[:at]), []byte(said[at:])); got != want {
					t.Errorf("%.200q of %d bytes, cut at %d: answered %.500s\nby net/http alone: %.500s", said, len(said), at, got, want)
				}
			}
		}
	}
}

// The short way is what plain requests get, and what follows another kind on its
// connection does not.
func TestShortIsUsed(t *testing.T) {
	for said, want := range map[string]int64{asked + posted + asked: 3, posted + longer + posted: 1, longer + posted: 0, "POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: 4096\r\n\r\n" + strings.Repeat("b", 4096): 1} {
		m := &mirror{}
		l := played(t, m)
		l.play([]byte(said))
		if m.short.Load() != want {
			t.Errorf("%.100q: %d by the short way, want %d", said, m.short.Load(), want)
		}
	}
}

func FuzzShortAnswersAlike(f *testing.F) {
	for _, said := range conversations {
		f.Add([]byte(said), uint16(len(said)/2))
	}
	m := &mirror{}
	both, alone := played(f, m), played(f, http.HandlerFunc(m.ServeHTTP))
	f.Fuzz(func(t *testing.T, said []byte, cut uint16) {
		at := min(int(cut), len(said))
		if got, want := both.play(said[:at], said[at:]), alone.play(said); got != want {
			t.Errorf("%q, cut at %d: answered %s\nby net/http alone: %s", said, at, got, want)
		}
	})
}

// What the short way takes, net/http reads alike.
func FuzzPlain(f *testing.F) {
	for _, head := range []string{
		"GET /v1/authz/birds HTTP/1.1\r\nHost: x\r\nX-Original-URI: /a\r\n", "GET /a%zz HTTP/1.1\r\nHost: x\r\n", "GET /a#b?c HTTP/1.1\r\nHost: x\r\n",
		"HEAD // HTTP/1.1\r\nhost: x:1\r\na: b\r\nA:\tc \r\n", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\n a: b\r\n", "GET / HTTP/1.1\r\nHost: x\r\nPragma: no-cache\r\n", "GET /\xff HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1\r\nHost: x\r\na:b\nc: d\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0012\r\nContent-Type: a\r\nConnection: KEEP-alive\r\n",
	} {
		f.Add([]byte(head))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		got, ok := front.ReadPlain(string(head))
		if !ok {
			return
		}
		want, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(append(bytes.Clone(head), "\r\n"...))))
		if err != nil {
			t.Fatalf("%q is taken, and net/http says %v", head, err)
		}
		if got.Method != want.Method || got.RequestURI != want.RequestURI || got.Host != want.Host || got.ContentLength != want.ContentLength || want.Close || fmt.Sprint(got.Header) != fmt.Sprint(want.Header) {
			t.Errorf("%q is read as %s %s %s %d %v, and by net/http as %s %s %s %d %v", head,
				got.Method, got.RequestURI, got.Host, got.ContentLength, got.Header, want.Method, want.RequestURI, want.Host, want.ContentLength, want.Header)
		}
	})
}

// hijacker has a short way, and takes connections over on the long one.
type hijacker struct{ mirror }

func (h *hijacker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	_, _ = io.CopyN(rw, rw, int64(rw.Reader.Buffered()))
	rw.Flush()
	_, _ = io.Copy(conn, conn)
}

// What a client sends ahead of an upgrade reaches who takes the connection over,
// however long it is, and the connection is drained as others are.
func TestShortUpgrade(t *testing.T) {
	s := start(t, front.Config{DrainTimeout: 50 * time.Millisecond}, &hijacker{})
	conn, err := net.Dial("tcp", s.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ahead := strings.Repeat("ahead ", 1500)
	fmt.Fprint(conn, "GET /s HTTP/1.1\r\nHost: x\r\n\r\nGET /u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"+ahead)
	in := bufio.NewReader(conn)
	for _, want := range []int{200, 101} {
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != want {
			t.Fatalf("%v, %v, want %d", res, err, want)
		}
		if want == 200 {
			_, _ = io.Copy(io.Discard, res.Body)
		}
	}
	back := make([]byte, len(ahead))
	if _, err := io.ReadFull(in, back); err != nil || string(back) != ahead {
		t.Errorf("%q, %v", back, err)
	}
	s.server.Drain(t.Context())
	if b, err := io.ReadAll(in); err == nil && len(b) > 0 {
		t.Errorf("after the drain: %q", b)
	}
}

// Limits on slow clients hold on the short way: from the beginning of a connection,
// between requests, and for a header that comes byte by byte.
func TestShortSlow(t *testing.T) {
	s := start(t, front.Config{HeaderTimeout: 50 * time.Millisecond, IdleTimeout: 50 * time.Millisecond}, &mirror{})
	for name, sent := range map[string]string{"nothing": "", "half a header": asked[:30], "idle after a request": asked, "half a header after a request": asked + asked[:30]} {
		conn, err := net.Dial("tcp", s.plain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
	conn, err := net.Dial("tcp", s.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, asked[:20])
	var gone error
	for until := time.Now().Add(20 * time.Second); gone == nil && time.Now().Before(until); {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, gone = conn.Read(make([]byte, 1)); errors.Is(gone, os.ErrDeadlineExceeded) {
			_, gone = conn.Write([]byte("x"))
		}
	}
	if gone == nil {
		t.Error("a header that never ends keeps its connection")
	}
}

// Draining finishes what is under way on the short way, and closes what is left when
// its time is over.
func TestShortDrain(t *testing.T) {
	for _, late := range []bool{false, true} {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		h := &pausing{arrived: arrived, proceed: proceed}
		s := start(t, front.Config{DrainTimeout: map[bool]time.Duration{false: time.Minute, true: 50 * time.Millisecond}[late]}, h)
		idle, err := net.Dial("tcp", s.plain)
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
		conn, err := net.Dial("tcp", s.plain)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, asked)
		<-arrived
		drained := make(chan struct{})
		go func() {
			s.server.Drain(t.Context())
			close(drained)
		}()
		if _, err := io.Copy(io.Discard, idle); err != nil { // closed at once
			t.Error(err)
		}
		if late {
			<-drained
			close(proceed)
			if b, _ := io.ReadAll(conn); len(b) > 0 {
				t.Errorf("after the drain: %q", b)
			}
			continue
		}
		close(proceed)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || res.StatusCode != 200 || !res.Close {
			t.Errorf("%+v, %v", res, err)
		}
		<-drained
	}
}

type pausing struct {
	mirror
	arrived, proceed chan struct{}
}

func (p *pausing) ServeShort(w http.ResponseWriter, r *http.Request) bool {
	p.arrived <- struct{}{}
	<-p.proceed
	return p.mirror.ServeShort(w, r)
}
