package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/gateway/front"
	"github.com/keyledger/keyledger/gateway/upstream"
	"github.com/keyledger/keyledger/verify/inbound"
)

const (
	// wholeBody is up to which length a body is read before the upstream is
	// asked. It then needs no goroutine, holds no connection while a slow client
	// sends it, and can be sent once more where that is safe.
	wholeBody = 16 << 10

	// patience is how long an answer is waited for before the client's leaving
	// is watched for: most have come by then.
	patience = 50 * time.Millisecond
)

func (g *Gateway) poolOptions() upstream.Options {
	return upstream.Options{DialTimeout: dialTimeout, IdleTimeout: idleTimeout, MaxIdle: maxIdle, TLS: g.upstreamTLS}
}

// forward sends a request to its upstream and the response back.
func (g *Gateway) forward(w http.ResponseWriter, r *http.Request, x *exchange) {
	// Whatever ends the exchange without a response, a panic included.
	defer g.finish(x, http.StatusBadGateway, "")
	if isUpgrade(r) || r.Method == http.MethodConnect || x.route.pool.HTTP2() {
		g.relay(w, r, x)
		return
	}
	scratch := heads.Get().(*[]byte)
	defer heads.Put(scratch)
	f := flight{g: g, w: w, r: r, x: x, pool: x.route.pool}
	f.plan()
	head, ok := x.appendHead((*scratch)[:0], r, &f)
	if !ok {
		g.finish(x, http.StatusBadRequest, "")
		inbound.Problem(w, r, x.requestID, http.StatusBadRequest, "BAD_HEADER", "A header has a name or a value that HTTP does not allow.")
		return
	}
	length := len(head)
	if f.whole {
		var err error
		if head, err = appendBody(head, r); err != nil {
			g.badBody(w, r, x, err)
			return
		}
	}
	if cap(head) <= 2*wholeBody {
		*scratch = head
	}
	err := f.exchange(head)
	if err == upstream.ErrHTTP2 {
		if f.whole {
			r.Body = io.NopCloser(bytes.NewReader(bytes.Clone(head[length:])))
		}
		g.relay(w, r, x)
		return
	}
	if err != nil {
		x.body.begin() // or the answer would wait for the rest of the body
		if body, ok := errors.AsType[*bodyError](err); ok {
			g.badBody(w, r, x, body.error)
			return
		}
		g.failed(w, r, x, err)
		return
	}
	f.answer()
}

var heads = sync.Pool{New: func() any { return new(make([]byte, 0, 2<<10)) }}

func hasBody(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}

// bodyError is what went wrong with the request's body on the client's side.
type bodyError struct{ error }

// badBody ends a request whose body did not come.
func (g *Gateway) badBody(w http.ResponseWriter, r *http.Request, x *exchange, err error) {
	_, broken := errors.AsType[net.Error](err)
	stalled := errors.Is(err, front.ErrBodyStalled)
	if !stalled && (broken || errors.Is(err, io.ErrUnexpectedEOF) || r.Context().Err() != nil) {
		g.finish(x, statusClientGone, "")
		panic(http.ErrAbortHandler)
	}
	status, code, detail := http.StatusBadRequest, "BAD_BODY", "The body of the request cannot be read."
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		status = http.StatusRequestEntityTooLarge
	}
	if stalled {
		status, code, detail = http.StatusRequestTimeout, "BODY_STALLED", "The rest of the request's body did not come in time."
	}
	g.finish(x, status, "")
	inbound.Problem(w, r, x.requestID, status, code, detail)
}

// flight is a request under way to an upstream of HTTP/1.1.
type flight struct {
	g    *Gateway
	w    http.ResponseWriter
	r    *http.Request
	x    *exchange
	pool *upstream.Pool
	conn *upstream.Conn // nil before and after
	head upstream.Head  // of the response
	stop func() bool    // ends the watch for the client's leaving; nil while nobody watches

	whole    bool     // the body is sent with the head
	asks     bool     // the client waits for leave to send its body
	sending  *sending // nil where nothing is sent beside the reading
	answered bool     // the head of the response is there
}

// plan decides how the body is sent.
func (f *flight) plan() {
	if !hasBody(f.r) {
		return
	}
	f.asks = f.r.ProtoAtLeast(1, 1) && lists(f.r.Header["Expect"], "100-continue")
	f.whole = !f.asks && 0 < f.r.ContentLength && f.r.ContentLength <= wholeBody && len(f.r.Trailer) == 0
	if f.whole {
		return
	}
	f.sending = &sending{flight: f, body: f.r.Body, done: make(chan struct{})}
	if f.r.ProtoMajor == 1 {
		f.x.body = &duplex{ReadCloser: f.r.Body, w: f.w}
		f.sending.body = f.x.body
	}
}

// appendBody reads a body of known length behind a head.
func appendBody(head []byte, r *http.Request) ([]byte, error) {
	at := len(head)
	head = append(head, make([]byte, r.ContentLength)...)
	_, err := io.ReadFull(r.Body, head[at:])
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return head, err
}

// exchange sends a request until the head of its response is there. It is sent a
// second time only on a connection of its own, after one that was used before
// turned out to be closed, and only where nothing of it can have been taken or
// the method allows it (RFC 9110, 9.2.2).
func (f *flight) exchange(head []byte) error {
	again := false
	for {
		var err error
		if f.conn, err = f.pool.Get(f.r.Context(), again); err != nil {
			f.conn = nil
			return err
		}
		sent, err := f.send(head)
		if err == nil {
			err = f.await()
		}
		if err == nil {
			return nil
		}
		closed := isClosed(err) && f.conn.Reused() && !f.conn.Touched() && f.r.Context().Err() == nil
		safe := sent == 0 || f.sending == nil && isIdempotent(f.r.Method)
		err = f.abandon(err)
		if !closed || !safe || again || f.sending != nil && f.sending.begun {
			return err
		}
		again = true
	}
}

// isClosed says whether an error is that the upstream has closed the connection.
func isClosed(err error) bool {
	return err == io.EOF || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF)
}

func isIdempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// send sends what is sent before the response is waited for, and says how much
// of it was.
func (f *flight) send(head []byte) (int, error) {
	c := f.conn
	if len(head) > 4<<10 { // less fits where the system keeps it
		if err := c.SetWriteDeadline(time.Now().Add(f.g.upstreamTime)); err != nil {
			return 0, err
		}
	}
	n, err := c.Write(head)
	if err != nil {
		return n, err
	}
	if len(head) > 4<<10 {
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			return n, err
		}
	}
	switch {
	case f.sending == nil:
		return n, c.SetReadDeadline(time.Now().Add(min(patience, f.g.upstreamTime)))
	case f.asks:
		return n, c.SetReadDeadline(time.Now().Add(min(continueTimeout, f.g.upstreamTime)))
	}
	f.sendBody()
	return n, nil
}

// sendBody lets the body be sent while the response is waited for.
func (f *flight) sendBody() {
	_ = f.conn.SetReadDeadline(time.Time{}) // until the body is sent; where this fails, so does reading
	f.watch()
	f.sending.begun = true
	go f.sending.run(f.conn)
}

// watch drops the upstream when the client leaves.
func (f *flight) watch() {
	if f.stop == nil {
		c := f.conn
		f.stop = context.AfterFunc(f.r.Context(), func() { _ = c.Close() })
	}
}

// await waits for the head of the response and hands on what comes before it.
func (f *flight) await() error {
	for informed := 0; ; {
		head, err := f.conn.Head(f.r.Method)
		switch {
		case err == upstream.ErrMore:
			if err = f.conn.More(); err != nil && !f.wait(err) {
				return err
			}
			continue
		case err != nil:
			return err
		case head.Status == http.StatusSwitchingProtocols:
			return errUnasked
		case head.Status >= 200:
			f.head = head
			f.gotHead()
			return nil
		}
		if informed++; informed > 16 {
			return errChatter
		}
		if head.Status == http.StatusContinue {
			if f.asks && !f.sending.begun {
				f.sendBody() // which reads it, which tells the client
			}
			continue
		}
		f.inform(&head)
	}
}

var (
	errUnasked = errors.New("the upstream changes to a protocol that nobody asked for")
	errChatter = errors.New("the upstream sends one informational response after the other")
)

// wait says whether to wait on after an error of reading: where it was only the
// time for the first of several.
func (f *flight) wait(err error) bool {
	if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
		return false
	}
	switch {
	case f.asks && !f.sending.begun:
		f.sendBody()
		return true
	case f.sending == nil && f.stop == nil && f.g.upstreamTime > patience:
		_ = f.conn.SetReadDeadline(time.Now().Add(f.g.upstreamTime - patience))
		f.watch()
		return true
	}
	return false
}

// gotHead ends the time that there is for it.
func (f *flight) gotHead() {
	if s := f.sending; s != nil {
		s.mu.Lock()
		f.answered = true
		_ = f.conn.SetDeadline(time.Time{})
		s.mu.Unlock()
	}
}

// abandon closes the connection, waits until nobody uses it nor the request's
// body any more, and says what the reason was.
func (f *flight) abandon(err error) error {
	c := f.conn
	if c == nil {
		return err
	}
	f.conn = nil
	if f.stop != nil {
		f.stop()
		f.stop = nil
	}
	_ = c.Close()
	if s := f.sending; s != nil && s.begun {
		f.x.body.begin() // so that nobody waits for the rest of the body before the answer
		s.end()
		if body, ok := errors.AsType[*bodyError](s.err); ok {
			err = body
		} else if s.err != nil && f.r.Context().Err() == nil && errors.Is(err, net.ErrClosed) {
			err = s.err
		}
	}
	c.Discard()
	return err
}

// inform hands on an informational response.
func (f *flight) inform(head *upstream.Head) {
	if !f.r.ProtoAtLeast(1, 1) {
		return
	}
	h := f.w.Header()
	kept := h.Clone()
	clear(h)
	for _, l := range head.Lines {
		if l.Name != "Content-Length" {
			h[l.Name] = append(h[l.Name], l.Value)
		}
	}
	f.w.WriteHeader(head.Status)
	clear(h)
	for name, values := range kept {
		h[name] = values
	}
}

// answer sends the response on.
func (f *flight) answer() {
	defer f.abandon(nil)
	x, head, h := f.x, &f.head, f.w.Header()
	cost := ""
	if name := x.keyspace.Cost.Header; name != "" {
		for _, l := range head.Lines {
			if strings.EqualFold(l.Name, name) {
				cost = l.Value
				break
			}
		}
	}
	f.g.finish(x, head.Status, cost)
	values := make([]string, 0, len(head.Lines))
	for _, l := range head.Lines {
		if l.Name == "X-Request-Id" { // ours is set, and is the one in the ledger
			continue
		}
		if l.Name == "Content-Length" && head.Status == http.StatusNotModified && f.r.ProtoMajor > 1 {
			continue // of the body that is not sent, which clients of HTTP/2 miss
		}
		if there, ok := h[l.Name]; ok {
			h[l.Name] = append(there, l.Value)
			continue
		}
		values = append(values, l.Value)
		n := len(values)
		h[l.Name] = values[n-1 : n : n]
	}
	inbound.TellRoom(h, &x.decision)
	if head.HasBody() {
		if _, ok := h["Content-Type"]; !ok {
			h["Content-Type"] = nil // nobody shall guess one
		}
	}
	announced := f.announce()
	x.body.begin()
	f.w.WriteHeader(head.Status)
	f.copyBody()
	if trailer := f.conn.Trailer(); len(announced) > 0 || len(trailer) > 0 {
		f.trail(announced, trailer)
	}
	f.release()
}

// copyBody sends the body on, each piece when it has come. It panics when
// either side is gone: an answer that is cut off must look it.
func (f *flight) copyBody() {
	control := http.NewResponseController(f.w)
	for flushed := false; ; {
		piece, err := f.conn.Next()
		switch {
		case len(piece) > 0:
			if _, err := f.w.Write(piece); err != nil {
				panic(http.ErrAbortHandler)
			}
			flushed = false
			continue
		case err == io.EOF:
			return
		case err != upstream.ErrMore:
			f.g.log.Warn("upstream failed in its body", "keyspace", f.x.route.Keyspace, "upstream", f.x.route.upstream.Redacted(), "request_id", f.x.requestID, "error", err)
			_ = control.Flush()
			panic(http.ErrAbortHandler)
		}
		if !flushed {
			if err := control.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
				panic(http.ErrAbortHandler)
			}
			flushed = true
		}
		if f.stop == nil {
			f.answered = true
			_ = f.conn.SetReadDeadline(time.Time{})
			f.watch()
		} else if f.sending == nil && !f.answered {
			f.answered = true
			_ = f.conn.SetReadDeadline(time.Time{}) // that of the head
		}
		if err := f.conn.More(); err != nil {
			f.g.log.Debug("upstream's body ended early", "keyspace", f.x.route.Keyspace, "request_id", f.x.requestID, "error", err)
			panic(http.ErrAbortHandler)
		}
	}
}

// announce names the trailers that will follow, as the upstream did.
func (f *flight) announce() []string {
	var names []string
	for _, name := range f.head.Trailer {
		if upstream.IsName(name) && f.x.mayTrailBack(name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		f.w.Header()["Trailer"] = []string{strings.Join(names, ", ")}
	}
	return names
}

// trail sends the trailers of the response on.
func (f *flight) trail(announced []string, trailer []upstream.Line) {
	h := f.w.Header()
	for _, name := range announced {
		delete(h, name)
	}
	if len(trailer) > 0 {
		_ = http.NewResponseController(f.w).Flush() // a short answer would get a length, and then no trailers
	}
	for _, l := range trailer {
		if !f.x.mayTrailBack(l.Name) {
			continue
		}
		name := http.TrailerPrefix + l.Name
		for _, a := range announced {
			if a == l.Name {
				name = a
			}
		}
		h[name] = append(h[name], l.Value)
	}
}

// release gives the connection back where nothing is left of either direction.
func (f *flight) release() {
	if s := f.sending; s != nil {
		if !s.begun || !s.sent() {
			return // and it is abandoned
		}
	}
	if f.stop != nil && !f.stop() {
		return // it is being closed
	}
	f.stop = nil
	c := f.conn
	f.conn = nil
	c.Release()
}

// sending sends a request's body from a goroutine of its own.
type sending struct {
	*flight
	body  io.ReadCloser
	begun bool          // owned by the handler's goroutine
	read  atomic.Bool   // the body was read to its end
	done  chan struct{} // closed when run returns
	err   error         // before done is closed, run's

	mu sync.Mutex // guards flight.answered, and the deadlines while it is false
}

func (s *sending) run(c *upstream.Conn) {
	defer close(s.done)
	s.err = s.copy(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch body := (*bodyError)(nil); {
	case errors.As(s.err, &body):
		_ = c.Close() // the upstream must not take what it has for the whole
	case s.answered:
	case s.err != nil && isTimeout(s.err):
		_ = c.SetReadDeadline(time.Unix(1, 0))
	default: // an upstream that takes no more may still answer
		_ = c.SetReadDeadline(time.Now().Add(s.g.upstreamTime))
	}
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

var copyBuffers = sync.Pool{New: func() any { return new(make([]byte, 32<<10)) }}

// chunkRoom is what the size of a chunk takes in front of it.
const chunkRoom = 8

func (s *sending) copy(c *upstream.Conn) error {
	buffer := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buffer)
	b, left := *buffer, s.r.ContentLength
	coded := s.chunks()
	for {
		n, err := s.body.Read(b[chunkRoom : len(b)-2])
		piece := b[chunkRoom : chunkRoom+n]
		if !coded {
			if left -= int64(n); left < 0 || left > 0 && err == io.EOF {
				return &bodyError{io.ErrUnexpectedEOF}
			}
		}
		if err == io.EOF || !coded && left == 0 {
			s.read.Store(true)
		}
		if coded && n > 0 {
			size := strconv.AppendInt(b[:0:chunkRoom], int64(n), 16)
			at := chunkRoom - len(size) - 2
			copy(b[at:], size)
			b[chunkRoom-2], b[chunkRoom-1] = '\r', '\n'
			piece = append(b[at:chunkRoom+n], '\r', '\n')
		}
		if len(piece) > 0 {
			if err := s.write(c, piece); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF && coded:
			return s.write(c, s.x.appendTrailer(b[:0], s.r.Trailer))
		case err == io.EOF || !coded && left == 0:
			return nil
		case err != nil:
			return &bodyError{err}
		}
	}
}

// write allows for the usual time until the answer is there: an upstream that
// takes nothing and says nothing is not waited for.
func (s *sending) write(c *upstream.Conn, p []byte) error {
	s.mu.Lock()
	if !s.answered {
		_ = c.SetWriteDeadline(time.Now().Add(s.g.upstreamTime))
	}
	s.mu.Unlock()
	_, err := c.Write(p)
	return err
}

// sent says whether the body was sent whole. One that was read whole is on its way.
func (s *sending) sent() bool {
	if !s.read.Load() {
		return false
	}
	timer := time.NewTimer(50 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-s.done:
		return s.err == nil
	case <-timer.C:
		return false
	}
}

// end returns when the body is not read any more. The connection must be closed.
func (s *sending) end() {
	if s.x.body != nil {
		s.x.body.end()
	} else {
		_ = s.body.Close() // of HTTP/2, where this ends a read
	}
	<-s.done
}

// chunks says whether the body is sent in chunks.
func (f *flight) chunks() bool {
	return f.sending != nil && (f.r.ContentLength < 0 || len(f.r.Trailer) > 0)
}

// appendHead writes the upstream's request line and header. It fails where a
// header would be read as something else.
func (x *exchange) appendHead(b []byte, r *http.Request, f *flight) ([]byte, bool) {
	to := x.route.upstream
	b = append(append(b, r.Method...), ' ')
	b = append(append(b, x.base()...), x.path...)
	if r.URL.ForceQuery || r.URL.RawQuery != "" {
		b = append(append(b, '?'), escapeBlanks(r.URL.RawQuery)...)
	}
	b = append(append(append(b, " HTTP/1.1\r\nHost: "...), to.Host...), "\r\n"...)
	ok := true
	line := func(name, value string) {
		ok = ok && upstream.IsValue(value)
		b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
	}
	named := r.Header["Connection"]
	if len(named) == 1 && (named[0] == "keep-alive" || named[0] == "close") {
		named = nil
	}
	for name, values := range r.Header {
		switch name {
		case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
			"Content-Length", "Host", "Expect", "Forwarded":
			continue
		}
		if x.isOurs(name) || named != nil && lists(named, name) {
			continue
		}
		ok = ok && upstream.IsName(name)
		for _, v := range values {
			line(name, v)
		}
	}
	for _, l := range x.identity(r) {
		line(l.Name, l.Value)
	}
	if lists(r.Header["Te"], "trailers") {
		b = append(b, "Te: trailers\r\nConnection: Te\r\n"...)
	}
	if f.asks {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	switch {
	case f.chunks():
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		for name := range r.Trailer {
			if x.mayTrail(name) {
				line("Trailer", name)
			}
		}
	case hasBody(r):
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), r.ContentLength, 10), "\r\n"...)
	case r.Method == "POST" || r.Method == "PUT" || r.Method == "PATCH":
		b = append(b, "Content-Length: 0\r\n"...)
	}
	return append(b, "\r\n"...), ok
}

// appendTrailer writes the end of a chunked body.
func (x *exchange) appendTrailer(b []byte, trailer http.Header) []byte {
	b = append(b, "0\r\n"...)
	for name, values := range trailer {
		if !x.mayTrail(name) {
			continue
		}
		for _, v := range values {
			if upstream.IsValue(v) {
				b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
			}
		}
	}
	return append(b, "\r\n"...)
}

// base is the path of the upstream.
func (x *exchange) base() string {
	if x.route.upstream.Path == "" {
		return ""
	}
	return x.route.upstream.EscapedPath()
}

// escapeBlanks makes a query one word, which HTTP/2 does not see to.
func escapeBlanks(query string) string {
	if strings.IndexByte(query, ' ') < 0 {
		return query
	}
	return strings.ReplaceAll(query, " ", "%20")
}

// identity are the headers that say whose request it is.
func (x *exchange) identity(r *http.Request) [8]domain.Header {
	id, owner, scopes, environment := inbound.Identity(&x.decision)
	return [8]domain.Header{
		{Name: "X-Key-Id", Value: id}, {Name: "X-Key-Owner", Value: owner}, {Name: "X-Key-Scopes", Value: scopes}, {Name: "X-Key-Environment", Value: environment},
		{Name: "X-Request-Id", Value: x.requestID},
		{Name: "X-Forwarded-For", Value: x.client.Chain}, {Name: "X-Forwarded-Host", Value: r.Host}, {Name: "X-Forwarded-Proto", Value: x.client.Scheme()},
	}
}

// mayTrail says whether a trailer of the request may be sent on: nothing that
// frames, routes, authenticates or explains a message (RFC 9110, 6.5.1), and
// nothing that only the gateway may say.
func (x *exchange) mayTrail(name string) bool {
	return mayTrail(name) && upstream.IsName(name) && !x.isOurs(name)
}

// mayTrailBack is mayTrail for the response.
func (x *exchange) mayTrailBack(name string) bool {
	return mayTrail(name) && name != "X-Request-Id"
}

func mayTrail(name string) bool {
	switch name {
	case "Authorization", "Cache-Control", "Connection", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type", "Cookie", "Expect", "Forwarded",
		"Host", "Keep-Alive", "Max-Forwards", "Pragma", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Range", "Realm", "Set-Cookie", "Te",
		"Trailer", "Transfer-Encoding", "Upgrade", "Www-Authenticate":
		return false
	}
	return !strings.HasPrefix(name, "If-")
}
