package upstream

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// counted is an upstream that answers every request on a connection and says
// when a connection has ended.
func counted(t *testing.T) (*url.URL, <-chan bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ended := make(chan bool, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { conn.Close(); ended <- true }()
				for in := bufio.NewReader(conn); ; {
					if _, err := http.ReadRequest(in); err != nil {
						return
					}
					if _, err := io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
						return
					}
				}
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return &url.URL{Scheme: "http", Host: "localhost:" + port}, ended // which may be ::1 first, where nobody listens
}

func ask(t *testing.T, c *Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for {
		h, err := c.Head("GET")
		if err == ErrMore {
			err = c.More()
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Status == 204 {
			return
		}
	}
}

func get(t *testing.T, p *Pool, fresh bool) *Conn {
	t.Helper()
	c, err := p.Get(t.Context(), fresh)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The connection used last is used next; no more are kept than allowed; those
// that nobody uses are closed after their time, and all when the pool is.
func TestPool(t *testing.T) {
	to, ended := counted(t)
	p := New(to, Options{DialTimeout: 5 * time.Second, IdleTimeout: time.Hour, MaxIdle: 2})
	a, b, c := get(t, p, false), get(t, p, false), get(t, p, false)
	for _, c := range []*Conn{a, b, c} {
		if c.Reused() {
			t.Error("a new connection counts as used")
		}
		ask(t, c)
	}
	a.Release()
	b.Release()
	c.Release()
	<-ended // one too many
	again := get(t, p, false)
	if again != b || !again.Reused() || again.Touched() {
		t.Errorf("not the connection that was used last, or not as new: %+v", again)
	}
	ask(t, again)
	fresh := get(t, p, true)
	if fresh == a || fresh == b {
		t.Error("a fresh connection was used before")
	}
	fresh.Discard()
	<-ended
	p.Close()
	<-ended // a, which was idle
	again.Release()
	<-ended // b, given back to a closed pool

	p = New(to, Options{DialTimeout: 5 * time.Second, IdleTimeout: time.Millisecond, MaxIdle: 10})
	for range 3 {
		c := get(t, p, true)
		ask(t, c)
		c.Release()
	}
	for range 3 {
		<-ended
	}
}

// A connection whose answer was not read to the end, or that the upstream wants
// closed, is not kept.
func TestNotKept(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		gone := make(chan error)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_, _ = io.WriteString(conn, answer)
				_, err = conn.Read(make([]byte, 1))
			}
			gone <- err
		}()
		p := New(&url.URL{Scheme: "http", Host: l.Addr().String()}, Options{DialTimeout: 5 * time.Second, IdleTimeout: time.Hour, MaxIdle: 2})
		c := get(t, p, false)
		for {
			h, err := c.Head("GET")
			if err == ErrMore {
				err = c.More()
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Status == 200 {
				break
			}
		}
		if _, err := c.Next(); err != io.EOF {
			t.Errorf("%q: %v", answer, err)
		}
		c.Release()
		if err := <-gone; err == nil {
			t.Errorf("%q: the connection is kept", answer)
		}
	}
}
