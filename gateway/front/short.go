package front

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// Half of what a small answer costs is net/http around it. Programs ask the same
// way every time, in a few plain lines, so where a handler has a short way, the
// connections of a listener without TLS are read here. Whatever is not plain, or is
// not for the short way, and all that comes after it on its connection, is
// net/http's: what is refused, and how, is decided in one place.

// Short is a handler that has a short way for some requests.
type Short interface {
	http.Handler

	// ServeShort answers r with what ServeHTTP would answer, or is false and has
	// written nothing: ServeHTTP gets the request then, unread. Of r are set Method,
	// RequestURI (a path, and perhaps a query), Proto, Host, Header, RemoteAddr,
	// Body, which is all there, and ContentLength; its context never ends. It MUST
	// NOT keep r or w, nor expect more of w than an [http.ResponseWriter]; the
	// answer MUST be short, because it is sent when it is complete.
	ServeShort(w http.ResponseWriter, r *http.Request) bool
}

// maxPlain is the longest plain request, head and body, in bytes, and maxPlainBody
// the longest body of one.
const (
	maxPlain     = 16 << 10
	maxPlainBody = 4 << 10
)

// bodyTime is how long the rest of a short body is waited for here. Those who take
// more have the time that net/http gives them.
const bodyTime = time.Second

// short is a server's short way.
type short struct {
	handler      Short
	header, idle time.Duration // see Config
	most         int           // of a head, in bytes
	log          *slog.Logger

	running sync.WaitGroup // connections

	mu        sync.Mutex // guards what follows
	ended     bool
	listeners map[*shortListener]struct{}
	clients   map[*client]struct{}
}

// shortListener hands out the connections that are net/http's.
type shortListener struct {
	net.Listener
	way    *short
	odd    chan accepted
	closed chan struct{}
}

type accepted struct {
	conn net.Conn
	err  error
}

func (s *short) listen(l net.Listener) net.Listener {
	o := &shortListener{Listener: l, way: s, odd: make(chan accepted), closed: make(chan struct{})}
	s.mu.Lock()
	s.listeners[o] = struct{}{}
	s.mu.Unlock()
	go o.accept()
	return o
}

func (o *shortListener) Accept() (net.Conn, error) {
	select {
	case a := <-o.odd:
		return a.conn, a.err
	case <-o.closed:
		return nil, net.ErrClosed
	}
}

// Close is called once, by net/http.
func (o *shortListener) Close() error {
	close(o.closed)
	o.way.mu.Lock()
	delete(o.way.listeners, o)
	o.way.mu.Unlock()
	if err := o.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// hand gives net/http a connection, or the error of accepting one. It is false
// where the listener is closed.
func (o *shortListener) hand(a accepted) bool {
	select {
	case o.odd <- a:
		return true
	case <-o.closed:
		return false
	}
}

func (o *shortListener) accept() {
	for {
		conn, err := o.Listener.Accept()
		if err != nil {
			// net/http knows which errors pass, and asks again then.
			if o.way.isEnded() || !o.hand(accepted{err: err}) {
				return
			}
			continue
		}
		c := &client{Conn: conn, way: o.way}
		if !o.way.enter(c) {
			conn.Close()
			return
		}
		go func() {
			defer o.way.running.Done()
			if c.serve() {
				o.way.leave(c)
				if !o.hand(accepted{conn: c.rest()}) {
					conn.Close()
				}
				return
			}
			o.way.leave(c)
			conn.Close()
		}()
	}
}

func (s *short) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (s *short) enter(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.clients[c] = struct{}{}
	s.running.Add(1)
	return true
}

func (s *short) leave(c *client) {
	s.mu.Lock()
	delete(s.clients, c)
	s.mu.Unlock()
}

// end takes no more connections and no more requests. What has begun to be answered
// goes on.
func (s *short) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for o := range s.listeners {
		_ = o.Listener.Close()
	}
	for c := range s.clients {
		if !c.begun {
			_ = c.SetReadDeadline(time.Unix(1, 0)) // who waits for a request stops waiting
		}
	}
}

// wait returns when the last request is answered, or closes the connections that
// are left when late is over, and is false.
func (s *short) wait(late <-chan struct{}) bool {
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-late:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		c.Close()
	}
	return false
}

// client is a connection while it is read here. Its goroutine's, but for begun.
type client struct {
	net.Conn
	way    *short
	buffer *[maxPlain]byte
	n      int       // bytes in buffer
	due    time.Time // when the read deadline for the next request is; zero: it is another
	blank  int       // ends of lines that may stand before the next request

	request request
	reply   reply

	begun bool // a body is waited for; guarded by way.mu
}

// buffers are those of clients.
var buffers = sync.Pool{New: func() any { return new([maxPlain]byte) }}

// rest is the connection for net/http, from the request on that was not answered.
func (c *client) rest() net.Conn {
	_ = c.SetReadDeadline(time.Time{})
	b := begun(bytes.Clone(c.buffer[:c.n]))
	buffers.Put(c.buffer)
	if t, ok := c.Conn.(*conn); ok {
		t.begun = b
		return t
	}
	return &begunConn{c.Conn, b}
}

// serve answers plain requests until there are no more, or one is net/http's.
func (c *client) serve() (odd bool) {
	c.buffer = buffers.Get().(*[maxPlain]byte)
	defer func() {
		if cause := recover(); cause != nil {
			odd = false
			if cause != http.ErrAbortHandler { //nolint:errorlint // it is compared as net/http does
				c.way.log.Error("http: panic serving "+c.request.RemoteAddr, "cause", cause, "stack", string(debug.Stack()))
			}
		}
		if !odd {
			buffers.Put(c.buffer)
		}
	}()
	c.request.init(c.RemoteAddr().String())
	c.reply.init()
	var out []byte
	now := time.Now()
	for first := true; ; first = false {
		head, end, found := c.next(now, first)
		if found != plain {
			return found == foreign
		}
		c.request.content(c.buffer[head:end])
		if !c.way.handler.ServeShort(&c.reply, &c.request.Request) {
			return true
		}
		last := c.way.isEnded()
		now = time.Now()
		out = c.reply.append(out[:0], c.request.Method == http.MethodHead, last, now)
		if _, err := c.Write(out); err != nil || last {
			return false
		}
		c.blank = 0
		if c.request.Method == http.MethodPost {
			c.blank = begins
		}
		c.n = copy(c.buffer[:], c.buffer[end:c.n])
		c.request.reset()
		c.reply.reset()
	}
}

// What there is on a connection.
const (
	gone    = iota // nothing more
	foreign        // what is net/http's
	plain          // a whole request
)

// next reads the next request into the buffer: where its head and where all of it
// ends.
func (c *client) next(now time.Time, first bool) (head, end, found int) {
	searched, skipped, timed := 0, 0, false
	for {
		// Old clients send an empty line behind a POST (RFC 9112 section 2.2).
		for ; c.n > 0 && c.blank > 0; c.blank-- {
			if c.buffer[0] != '\r' && c.buffer[0] != '\n' {
				c.blank = 0
				break
			}
			c.n = copy(c.buffer[:], c.buffer[1:c.n])
			skipped++
		}
		if i := bytes.Index(c.buffer[searched:c.n], headEnd); i >= 0 {
			head = searched + i + len(headEnd)
			break
		}
		searched = max(0, c.n-len(headEnd)+1)
		if c.n >= c.way.most {
			return 0, 0, foreign
		}
		ok := true
		switch {
		case first || timed: // from the beginning of its connection on
			if !timed {
				timed, ok = true, c.until(now.Add(c.way.header))
			}
		case c.n > 0:
			timed, ok = true, c.until(time.Now().Add(c.way.header))
			c.due = time.Time{}
		case c.due.Sub(now) < c.way.idle: // setting it is not free: it may be an eighth later
			c.due = now.Add(c.way.idle + c.way.idle/8)
			ok = c.until(c.due)
		}
		if !ok {
			return 0, 0, gone
		}
		got, err := c.Read(c.buffer[c.n:])
		c.n += got
		if got == 0 {
			if c.n == 0 || errors.Is(err, os.ErrDeadlineExceeded) || !first && c.n+skipped < begins {
				return 0, 0, gone
			}
			return 0, 0, foreign // an end where there should be none
		}
	}
	if head > c.way.most || !c.request.read(string(c.buffer[:head-2])) {
		return 0, 0, foreign
	}
	if end = head + int(c.request.ContentLength); end > len(c.buffer) {
		return 0, 0, foreign
	}
	if c.n < end {
		c.due = time.Time{}
		c.way.mu.Lock()
		c.begun = true
		_ = c.SetReadDeadline(time.Now().Add(bodyTime))
		c.way.mu.Unlock()
	}
	for c.n < end {
		got, err := c.Read(c.buffer[c.n:])
		if c.n += got; err != nil {
			return 0, 0, foreign
		}
	}
	return head, end, plain
}

// begins is how many bytes net/http takes for the beginning of another request.
const begins = 4

var headEnd = []byte("\r\n\r\n")

// until sets a deadline for what is no begun request, unless the server has ended,
// which has set another.
func (c *client) until(deadline time.Time) bool {
	c.way.mu.Lock()
	defer c.way.mu.Unlock()
	c.begun = false
	return !c.way.ended && c.SetReadDeadline(deadline) == nil
}

// begun is what was read of a connection before net/http got it.
type begun []byte

func (b *begun) read(c net.Conn, p []byte) (int, error) {
	if len(*b) == 0 {
		return c.Read(p)
	}
	n := copy(p, *b)
	if *b = (*b)[n:]; len(*b) == 0 {
		*b = nil
	}
	return n, nil
}

// begunConn is a connection that is none of TCP.
type begunConn struct {
	net.Conn
	begun begun
}

func (c *begunConn) Read(p []byte) (int, error) { return c.begun.read(c.Conn, p) }
