package upstream

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	smallBuffer  = 4 << 10
	largeBuffer  = 32 << 10
	maxHead      = 64 << 10
	maxTrailer   = 16 << 10
	maxChunkLine = 1 << 10
)

// ErrMore says that More must be called before there is anything new.
var ErrMore = errors.New("more must be read from the upstream first")

// Conn is a connection that carries one request at a time. A request is written
// with Write, its response is read with Head and Next; these two never wait, and
// return ErrMore where they would have to: then More does. Close may be called at
// any time from anywhere and ends a Write or More under way; Deadlines likewise.
// The rest belongs to one goroutine at a time, writing and reading to one each.
type Conn struct {
	net.Conn // TCP, or TLS over it
	tcp      net.Conn
	raw      syscall.RawConn
	pool     *Pool
	idle     time.Time // since when nobody uses it

	buffer     []byte // what was read and not used yet is buffer[from:to]
	from, to   int
	small      []byte // the buffer that comes with the connection
	large      *[]byte
	searched   int  // of buffer[from:to], for the end of the head
	ended      bool // nothing follows
	reused     bool // it carried a request before this one
	touched    bool // something of the response has arrived
	inBody     bool
	lastFilled bool // the last read filled the buffer
	lines      []Line
	body       body
	keep       bool
	peek       func(fd uintptr)
	quiet      bool
}

func newConn(p *Pool, c, tcp net.Conn) *Conn {
	small := make([]byte, smallBuffer)
	n := &Conn{Conn: c, tcp: tcp, pool: p, small: small, buffer: small}
	if s, ok := tcp.(syscall.Conn); ok {
		n.raw, _ = s.SyscallConn() // without it, idle connections are not looked at
	}
	n.peek = func(fd uintptr) { n.quiet = nothingToRead(fd) }
	return n
}

// Reused says whether the connection carried a request before this one: the
// upstream may have closed it meanwhile.
func (c *Conn) Reused() bool { return c.reused }

// Touched says whether anything of the response has arrived.
func (c *Conn) Touched() bool { return c.touched }

// Close ends the connection without the ceremony of TLS, which could wait.
func (c *Conn) Close() error { return c.tcp.Close() }

// More reads what has arrived, and waits until something has. io.EOF and
// io.ErrUnexpectedEOF say that the upstream has closed the connection.
func (c *Conn) More() error {
	if c.from == c.to {
		c.from, c.to, c.searched = 0, 0, 0
		if c.inBody && c.large == nil && (c.body.left > int64(len(c.buffer)) || c.lastFilled) {
			c.large = largeBuffers.Get().(*[]byte)
			c.buffer = *c.large
		}
	}
	if c.to == len(c.buffer) {
		if c.from > 0 {
			c.to = copy(c.buffer, c.buffer[c.from:c.to])
			c.from = 0
		} else {
			if len(c.buffer) >= maxHead {
				return errHead
			}
			grown := make([]byte, 2*len(c.buffer))
			copy(grown, c.buffer)
			c.buffer = grown
		}
	}
	n, err := c.Read(c.buffer[c.to:])
	c.to += n
	c.lastFilled = c.to == len(c.buffer)
	if n > 0 {
		c.touched = true
		return nil // an error comes again
	}
	if err == io.EOF {
		switch {
		case c.inBody && c.body.left == untilClose && c.body.chunks == noChunks:
			c.ended = true
			return nil
		case c.touched:
			return io.ErrUnexpectedEOF
		}
	}
	return err
}

// Head is the next head of the response, ErrMore while it is not there whole.
// After a head with a status of 1xx another one follows.
func (c *Conn) Head(method string) (Head, error) {
	b := c.buffer[c.from:c.to]
	end := endOfHead(b, c.searched)
	if end == 0 {
		if len(b) >= maxHead {
			return Head{}, errHead
		}
		c.searched = max(len(b)-2, 0) // a line's end may have come in part
		return Head{}, ErrMore
	}
	c.from, c.searched = c.from+end, 0
	h, err := parseHead(string(b[:end]), method, c.lines[:0])
	if err != nil {
		return Head{}, err
	}
	c.lines = h.Lines[:0]
	if h.Status < 200 {
		return h, nil
	}
	c.keep, c.inBody = h.keep, true
	c.body = body{left: h.length}
	if h.length == chunked {
		c.body = body{chunks: chunkSize}
	}
	return h, nil
}

// Next is the next piece of the body, valid until More is called; io.EOF at the
// body's end, ErrMore where it has not arrived.
func (c *Conn) Next() ([]byte, error) {
	piece, used, err := c.body.next(c.buffer[c.from:c.to], c.ended)
	c.from += used
	return piece, err
}

// Trailer is what followed a chunked body that has been read to its end.
func (c *Conn) Trailer() []Line { return c.body.trailer }

// Release gives the connection back once the response was read to its end and
// the request was sent whole. It is closed where either side asked for that, or
// where more has arrived than was asked for.
func (c *Conn) Release() {
	if !c.keep || c.from != c.to {
		_ = c.Close()
		c.free()
		return
	}
	c.free()
	c.reused, c.touched, c.inBody, c.lastFilled, c.keep = true, false, false, false, false
	clear(c.lines[:cap(c.lines)])
	c.body = body{}
	c.pool.put(c)
}

// Discard closes the connection when nothing reads from it any more.
func (c *Conn) Discard() {
	_ = c.Close()
	c.free()
}

func (c *Conn) free() {
	c.buffer, c.from, c.to, c.searched = c.small, 0, 0, 0
	if c.large != nil {
		largeBuffers.Put(c.large)
		c.large = nil
	}
}

var largeBuffers = sync.Pool{New: func() any { return new(make([]byte, largeBuffer)) }}

// alive says whether an idle connection is open and silent. What an upstream
// says unasked would be taken for the answer to the next request.
func (c *Conn) alive() bool {
	if c.Conn != c.tcp {
		_ = c.SetReadDeadline(time.Unix(1, 0))
		if _, err := c.Read(c.small[:1]); !isTimeout(err) { // what TLS has read and not handed out
			return false
		}
	}
	if c.raw == nil {
		return false
	}
	return c.raw.Control(c.peek) == nil && c.quiet
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}
