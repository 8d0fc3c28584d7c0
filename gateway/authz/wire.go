package authz

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Most of what an answer costs is HTTP itself. Proxies ask the same way every time,
// in a few plain lines without a body, so a listener of forward-auth's own reads
// those itself, in half the time of net/http. Whatever is not plain, and all that
// comes after it on its connection, is net/http's: what is refused, and how, is
// decided in one place.

// Listener is l for a server of the handler: of [Handler.Proven] where proven is
// set, else of the Handler itself. It answers plain questions on the spot; its
// Accept returns the connections on which something else was asked. Close returns
// when all questions under way are answered, at most after some seconds.
func (z *Handler) Listener(l net.Listener, proven bool) net.Listener {
	w := &wire{Listener: l, handler: z, proven: proven, odd: make(chan net.Conn), closed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	w.running.Go(w.accept)
	return w
}

type wire struct {
	net.Listener
	handler *Handler
	proven  bool
	odd     chan net.Conn // for net/http
	closed  chan struct{}
	running sync.WaitGroup

	mu    sync.Mutex // guards conns; holding it, closed is closed or not
	conns map[net.Conn]struct{}
}

// maxHead is the longest head of a request, in bytes, that is read here.
const maxHead = 16 << 10

// headTime is how long a request may take to arrive once it has begun, idleTime how
// long a connection may wait for one, give or take a minute, and closing how long
// Close waits.
const (
	headTime = 10 * time.Second
	idleTime = 3 * time.Minute
	closing  = 5 * time.Second
)

func (w *wire) Accept() (net.Conn, error) {
	select {
	case c := <-w.odd:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

func (w *wire) Close() error {
	w.mu.Lock()
	select {
	case <-w.closed:
		w.mu.Unlock()
		return nil
	default:
	}
	close(w.closed)
	for c := range w.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // who waits for a question stops waiting
	}
	w.mu.Unlock()
	err := w.Listener.Close()
	done := make(chan struct{})
	go func() {
		w.running.Wait()
		close(done)
	}()
	late := time.NewTimer(closing)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		w.mu.Lock()
		for c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
	}
	return err
}

func (w *wire) ending() bool {
	select {
	case <-w.closed:
		return true
	default:
		return false
	}
}

func (w *wire) accept() {
	for {
		c, err := w.Listener.Accept()
		if err != nil {
			if w.ending() || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: it passes.
			select {
			case <-w.closed:
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		w.mu.Lock()
		if w.ending() {
			w.mu.Unlock()
			c.Close()
			return
		}
		w.conns[c] = struct{}{}
		w.running.Add(1)
		w.mu.Unlock()
		go func() {
			defer w.running.Done()
			w.serve(c)
		}()
	}
}

// leave forgets a connection.
func (w *wire) leave(c net.Conn) {
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
}

// heads are the buffers of connections.
var heads = sync.Pool{New: func() any { return new([maxHead]byte) }}

// serve answers the questions of one connection.
func (w *wire) serve(c net.Conn) {
	mine := true
	defer func() {
		if cause := recover(); cause != nil {
			slog.Error("forward-auth: panic", "cause", cause, "stack", string(debug.Stack()))
		}
		if mine {
			w.leave(c)
			c.Close()
		}
	}()
	buffer := heads.Get().(*[maxHead]byte)
	defer heads.Put(buffer)
	q := question{request: http.Request{Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: c.RemoteAddr().String(), Body: http.NoBody}}
	a := reply{header: http.Header{}}
	var out []byte
	n := 0               // bytes in buffer
	var waited time.Time // when the deadline was set
	for {
		end := bytes.Index(buffer[:n], headEnd)
		for end < 0 && n < maxHead {
			switch now := time.Now(); {
			case n > 0:
				if waited = (time.Time{}); !w.until(c, now.Add(headTime)) {
					return
				}
			case now.Sub(waited) > time.Minute:
				if waited = now; !w.until(c, now.Add(idleTime)) {
					return
				}
			}
			got, err := c.Read(buffer[n:])
			if got == 0 || err != nil {
				return // its end, or ours
			}
			from := max(0, n-len(headEnd)+1)
			n += got
			if end = bytes.Index(buffer[from:n], headEnd); end >= 0 {
				end += from
			}
		}
		if end < 0 || !q.read(string(buffer[:end+2])) {
			if !w.until(c, time.Time{}) {
				return
			}
			mine = false
			w.leave(c)
			rest := &rest{Conn: c, head: bytes.Clone(buffer[:n])}
			select {
			case w.odd <- rest:
			case <-w.closed:
				c.Close()
			}
			return
		}
		w.handler.serve(&a, &q.request, w.proven)
		last := w.ending()
		out = a.append(out[:0], q.request.Method == http.MethodHead, last)
		if _, err := c.Write(out); err != nil || last {
			return
		}
		n = copy(buffer[:], buffer[end+len(headEnd):n])
		q.reset()
		a.reset()
	}
}

var headEnd = []byte("\r\n\r\n")

// until sets a deadline, unless the listener is closing, which has set another.
func (w *wire) until(c net.Conn, deadline time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.ending() && c.SetReadDeadline(deadline) == nil
}

// rest is a connection of which a part was read already.
type rest struct {
	net.Conn
	head []byte
}

func (r *rest) Read(b []byte) (int, error) {
	if len(r.head) == 0 {
		return r.Conn.Read(b)
	}
	n := copy(b, r.head)
	r.head = r.head[n:]
	return n, nil
}

// question is a request, and what it is made of, used again for the next one.
type question struct {
	request http.Request
	values  []string
}

func (q *question) reset() {
	clear(q.request.Header)
	clear(q.values)
	q.values = q.values[:0]
}

// maxLines is how many header lines are read here.
const maxLines = 100

// read takes the head of a plain request, with the line end of its last line. It is
// false for everything else; what it takes, [http.ReadRequest] reads alike.
func (q *question) read(head string) bool {
	line, head, _ := strings.Cut(head, "\r\n")
	method, line, _ := strings.Cut(line, " ")
	target, proto, _ := strings.Cut(line, " ")
	if proto != "HTTP/1.1" || method == "" || !strings.HasPrefix(target, "/") {
		return false
	}
	for i := range len(method) {
		if method[i] < 'A' || method[i] > 'Z' {
			return false
		}
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '%' && !escaped(target[i:]) {
			return false
		}
	}
	r := &q.request
	r.Method, r.RequestURI = method, target
	r.Host = ""
	for n := 0; head != ""; n++ {
		line, rest, ok := strings.Cut(head, "\r\n")
		name, value, colon := strings.Cut(line, ":")
		if head = rest; !ok || !colon || n == maxLines {
			return false
		}
		name = canonical(name)
		value = strings.Trim(value, " \t")
		for i := range len(value) {
			if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
				return false
			}
		}
		switch name {
		case "":
			return false
		case "Host":
			if r.Host != "" || value == "" || strings.Trim(value, hostChars) != "" {
				return false
			}
			r.Host = value
			continue
		case "Connection":
			if value != "keep-alive" {
				return false
			}
		case "Content-Length":
			if value != "0" {
				return false
			}
		case "Transfer-Encoding", "Trailer", "Expect", "Upgrade":
			return false
		}
		q.values = append(q.values, value)
		if earlier := r.Header[name]; earlier != nil {
			if name == "Content-Length" || name == "Connection" {
				return false
			}
			r.Header[name] = append(earlier, value)
		} else {
			at := len(q.values)
			r.Header[name] = q.values[at-1 : at : at]
		}
	}
	return r.Host != ""
}

const hostChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]"

func escaped(s string) bool {
	return len(s) > 2 && strings.IndexByte(hexDigits, s[1]) >= 0 && strings.IndexByte(hexDigits, s[2]) >= 0
}

const hexDigits = "0123456789abcdefABCDEF"

// canonical is a header's name as net/http writes it, or empty where it is none.
func canonical(name string) string {
	if name == "X-Original-URI" { // as nginx writes it
		return "X-Original-Uri"
	}
	same, upper := true, true
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z':
			same = same && !upper
		case c >= 'A' && c <= 'Z':
			same = same && upper
		case !isToken(c):
			return ""
		}
		upper = c == '-'
	}
	if same {
		return name
	}
	return http.CanonicalHeaderKey(name)
}

// reply is an answer being made. It is an [http.ResponseWriter].
type reply struct {
	header http.Header
	status int
	body   []byte
	date   []byte // of second
	second int64
}

func (a *reply) Header() http.Header { return a.header }
func (a *reply) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}
func (a *reply) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.body = append(a.body, b...)
	return len(b), nil
}

func (a *reply) reset() {
	clear(a.header)
	a.status, a.body = 0, a.body[:0]
}

// append writes the answer as it goes over the wire.
func (a *reply) append(b []byte, head, last bool) []byte {
	a.WriteHeader(http.StatusOK)
	b = strconv.AppendInt(append(b, "HTTP/1.1 "...), int64(a.status), 10)
	b = append(append(append(b, ' '), http.StatusText(a.status)...), "\r\nDate: "...)
	if now := time.Now(); now.Unix() != a.second {
		a.second = now.Unix()
		a.date = now.UTC().AppendFormat(a.date[:0], http.TimeFormat)
	}
	b = append(append(b, a.date...), "\r\nContent-Length: "...)
	b = append(strconv.AppendInt(b, int64(len(a.body)), 10), "\r\n"...)
	for name, values := range a.header {
		if name == "Content-Length" || name == "Date" {
			continue
		}
		for _, v := range values {
			b = append(append(b, name...), ": "...)
			from := len(b)
			b = append(append(b, v...), "\r\n"...)
			for i := from; i < len(b)-2; i++ { // no value ends its line
				if b[i] == '\r' || b[i] == '\n' {
					b[i] = ' '
				}
			}
		}
	}
	if last {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	if head {
		return b
	}
	return append(b, a.body...)
}
