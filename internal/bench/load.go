package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// Load is what one server is asked. An answer is right when its status is 200
// and its body begins with Begin.
type Load struct {
	Address     string
	Connections int
	Requests    [][]byte // whole ones, of HTTP/1.1; each connection sends them in turn from a place of its own on
	Begin       string
}

// Result is what one run of a load measured.
type Result struct {
	Answered  int64 // as expected
	Wrong     int64 // answered otherwise
	Example   string
	Took      time.Duration
	Latencies Latencies
}

// PerSecond is how many requests a second were answered, rightly or not.
func (r *Result) PerSecond() float64 { return float64(r.Answered+r.Wrong) / r.Took.Seconds() }

// Conn is one connection.
type Conn struct {
	net.Conn
	requests [][]byte
	next     int
	buffer   []byte
	begin    string

	result Result
	err    error
}

// Open opens one connection. An answer is right when its status is 200 and its
// body begins with begin.
func Open(ctx context.Context, address, begin string) (*Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(answerTime))
	return &Conn{Conn: c, buffer: make([]byte, 16<<10), begin: begin}, nil
}

// Example is the first answer that was not right.
func (c *Conn) Example() string { return c.result.Example }

func (l *Load) dial(ctx context.Context) ([]*Conn, error) {
	conns := make([]*Conn, l.Connections)
	for i := range conns {
		c, err := Open(ctx, l.Address, l.Begin)
		if err != nil {
			for _, c := range conns[:i] {
				c.Close()
			}
			return nil, err
		}
		c.requests, c.next = l.Requests, i*len(l.Requests)/l.Connections
		conns[i] = c
	}
	return conns, nil
}

// answerTime is how long an answer may take before the server is taken for dead.
const answerTime = 10 * time.Second

// Run opens the connections, sends requests for a while, or until ctx ends, and
// waits for the answer of every one that was sent. every is the least time
// between two requests of one connection; 0: none.
func (l *Load) Run(ctx context.Context, during, every time.Duration) (*Result, error) {
	conns, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	until := began.Add(during)
	var running sync.WaitGroup
	for i, c := range conns {
		defer c.Close()
		_ = c.SetDeadline(until.Add(answerTime))
		offset := every * time.Duration(i) / time.Duration(len(conns))
		running.Go(func() { c.err = c.run(ctx, began.Add(offset), until, every) })
	}
	running.Wait()
	sum := &Result{Took: time.Since(began)}
	for _, c := range conns {
		if c.err != nil {
			return nil, fmt.Errorf("%s: %w", c.RemoteAddr(), c.err)
		}
		sum.Answered += c.result.Answered
		sum.Wrong += c.result.Wrong
		sum.Latencies.Merge(&c.result.Latencies)
		if sum.Example == "" {
			sum.Example = c.result.Example
		}
	}
	return sum, nil
}

func (c *Conn) run(ctx context.Context, at, until time.Time, every time.Duration) error {
	for sent := time.Now(); sent.Before(until) && ctx.Err() == nil; {
		if every > 0 {
			if wait := at.Sub(sent); wait > 0 {
				time.Sleep(wait)
				sent = time.Now()
			}
			at = at.Add(every)
		}
		right, err := c.Ask(c.requests[c.next])
		if err != nil {
			return err
		}
		if c.next++; c.next == len(c.requests) {
			c.next = 0
		}
		now := time.Now()
		c.result.Latencies.Add(now.Sub(sent))
		sent = now
		if right {
			c.result.Answered++
		} else {
			c.result.Wrong++
		}
	}
	return nil
}

// Ask sends one request and says whether the answer was right.
func (c *Conn) Ask(request []byte) (right bool, err error) {
	if _, err := c.Write(request); err != nil {
		return false, err
	}
	n := 0
	for {
		m, err := c.Read(c.buffer[n:])
		n += m
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return false, err
		}
		head := bytes.Index(c.buffer[:n], blankLine)
		if head < 0 {
			if n == len(c.buffer) {
				return false, errors.New("the head of an answer has more than 16 KiB")
			}
			continue
		}
		length, err := contentLength(c.buffer[:head+2])
		if err != nil {
			return false, err
		}
		end := head + len(blankLine) + length
		if end > len(c.buffer) {
			return false, fmt.Errorf("an answer has %d bytes, more than the 16 KiB that a load is made for", end)
		}
		for n < end {
			m, err := c.Read(c.buffer[n:])
			if n += m; err != nil {
				return false, err
			}
		}
		if n > end {
			return false, errors.New("more was answered than asked")
		}
		body := c.buffer[head+len(blankLine) : end]
		if bytes.HasPrefix(c.buffer, ok) && len(body) >= len(c.begin) && string(body[:len(c.begin)]) == c.begin {
			return true, nil
		}
		if c.result.Example == "" {
			line, _, _ := bytes.Cut(c.buffer[:head], []byte("\r\n"))
			c.result.Example = fmt.Sprintf("%s: %.200s", line, body)
		}
		return false, nil
	}
}

var (
	blankLine   = []byte("\r\n\r\n")
	ok          = []byte("HTTP/1.1 200 ")
	lengthField = []byte("\r\nContent-Length: ")
)

func contentLength(head []byte) (int, error) {
	at := bytes.Index(head, lengthField)
	if at < 0 {
		return 0, errors.New("an answer has no Content-Length")
	}
	at += len(lengthField)
	end := at
	for end < len(head) && head[end] != '\r' {
		end++
	}
	return strconv.Atoi(string(head[at:end]))
}

// Request is the bytes of a request without a body, or with one in JSON.
func Request(method, host, path string, body []byte, headers ...string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	for i := 0; i < len(headers); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", headers[i], headers[i+1])
	}
	if body != nil {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}
