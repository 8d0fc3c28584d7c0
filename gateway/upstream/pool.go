// Package upstream is an HTTP/1.1 client made for a proxy: the caller writes a
// request's bytes and reads the response's head and body where they have
// arrived, on its own goroutine, without a map or a copy in between.
//
// What it promises. A response is read one way only: what net/http would refuse
// is refused, and also what two readers could take differently (folded lines, a
// length beside a coding, several codings). A connection carries one request at a
// time, and another one only after its response was read to the end, nothing was
// left over, and nothing has been said since: an answer never reaches a request
// that it was not for. Whether a request may be sent again is the caller's to
// decide; Reused and Touched are what it needs to know.
//
// How it can disappoint. A response's head may be 64 KiB long, its trailers 16
// KiB. Over TLS only HTTP/1.1 is spoken: an upstream that chooses HTTP/2 is left
// to the caller, which ErrHTTP2 tells.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// ErrHTTP2 says that the upstream has chosen HTTP/2.
var ErrHTTP2 = errors.New("the upstream speaks HTTP/2")

// Options of a pool. All are needed but TLS.
type Options struct {
	DialTimeout time.Duration // until a connection is open; the handshake of TLS may take as long again
	IdleTimeout time.Duration // connections that nobody uses are closed then
	MaxIdle     int           // no more of them than that
	TLS         *tls.Config   // for https; its ServerName and NextProtos are set here
}

// Pool keeps connections to one upstream. It is safe for concurrent use.
type Pool struct {
	address string
	tls     *tls.Config // nil: none
	options Options
	http2   atomic.Bool

	mu     sync.Mutex // guards what follows
	idle   []*Conn    // the one used last is at the end
	closed bool
	sweep  *time.Timer // nil while nothing is idle
}

// New makes a pool for the host of a URL with the scheme http or https.
func New(u *url.URL, o Options) *Pool {
	p := &Pool{options: o}
	port := u.Port()
	if u.Scheme == "https" {
		p.tls = &tls.Config{}
		if o.TLS != nil {
			p.tls = o.TLS.Clone()
		}
		p.tls.ServerName, p.tls.NextProtos = u.Hostname(), []string{"h2", "http/1.1"}
		if p.tls.ClientSessionCache == nil {
			p.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
		}
		if port == "" {
			port = "443"
		}
	} else if port == "" {
		port = "80"
	}
	p.address = net.JoinHostPort(u.Hostname(), port)
	return p
}

// HTTP2 says whether the upstream chose HTTP/2 when it was last asked.
func (p *Pool) HTTP2() bool { return p.http2.Load() }

// Get is a connection for one request: one that was used before, unless fresh,
// else a new one. ErrHTTP2 says that the upstream is for another client.
func (p *Pool) Get(ctx context.Context, fresh bool) (*Conn, error) {
	for !fresh {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			break
		}
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if c.alive() {
			return c, nil
		}
		_ = c.Close()
	}
	return p.dial(ctx)
}

func (p *Pool) dial(ctx context.Context) (*Conn, error) {
	tcp, err := (&net.Dialer{Timeout: p.options.DialTimeout}).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, err
	}
	if p.tls == nil {
		return newConn(p, tcp, tcp), nil
	}
	ctx, stop := context.WithTimeout(ctx, p.options.DialTimeout)
	defer stop()
	c := tls.Client(tcp, p.tls)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = tcp.Close()
		return nil, err
	}
	if c.ConnectionState().NegotiatedProtocol == "h2" {
		_ = tcp.Close()
		p.http2.Store(true)
		return nil, ErrHTTP2
	}
	return newConn(p, c, tcp), nil
}

func (p *Pool) put(c *Conn) {
	c.idle = time.Now()
	p.mu.Lock()
	full := p.closed || len(p.idle) >= p.options.MaxIdle
	if !full {
		p.idle = append(p.idle, c)
		if p.sweep == nil {
			p.sweep = time.AfterFunc(p.options.IdleTimeout, p.closeOld)
		}
	}
	p.mu.Unlock()
	if full {
		_ = c.Close()
	}
}

// closeOld closes what has been idle for too long, and comes back while anything
// is idle. The connections used longest ago are in front.
func (p *Pool) closeOld() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, old := time.Now(), 0
	for old < len(p.idle) && now.Sub(p.idle[old].idle) >= p.options.IdleTimeout {
		_ = p.idle[old].Close()
		old++
	}
	kept := copy(p.idle, p.idle[old:])
	clear(p.idle[kept:])
	p.idle = p.idle[:kept]
	p.sweep = nil
	if kept > 0 {
		p.sweep = time.AfterFunc(p.options.IdleTimeout-now.Sub(p.idle[0].idle), p.closeOld)
	}
}

// Close closes what is idle, and lets connections in use be closed when they are
// given back. Requests may still be sent.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		_ = c.Close()
	}
	p.idle = nil
	if p.sweep != nil {
		p.sweep.Stop()
		p.sweep = nil
	}
}
