package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"

	"github.com/keyledger/keyledger/verify/inbound"
)

// newProxy is what carries upgrades, and everything to upstreams that choose
// HTTP/2: several times slower than forward, and complete.
func (g *Gateway) newProxy() (*httputil.ReverseProxy, *http.Transport) {
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       g.upstreamTLS,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: g.upstreamTime,
		ExpectContinueTimeout: continueTimeout,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConnsPerHost:   maxIdle,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // what client and upstream agree on is theirs
	}
	return &httputil.ReverseProxy{
		Rewrite:        g.rewrite,
		Transport:      transport,
		FlushInterval:  -1,
		BufferPool:     &buffers{},
		ModifyResponse: g.answered,
		ErrorHandler:   func(w http.ResponseWriter, r *http.Request, err error) { g.failed(w, r, of(r), err) },
		ErrorLog:       slog.NewLogLogger(g.log.Handler(), slog.LevelDebug), // aborted bodies; the client sees them itself
	}, transport
}

type exchangeKey struct{}

func of(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

// relay forwards with httputil.ReverseProxy.
func (g *Gateway) relay(w http.ResponseWriter, r *http.Request, x *exchange) {
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	x.w, x.http1 = w, r.ProtoMajor == 1
	if hasBody(r) {
		if r.ProtoMajor == 1 {
			x.body = &duplex{ReadCloser: r.Body, w: w}
			r.Body = x.body
			defer x.body.end()
		}
		if len(r.Trailer) > 0 {
			r.Body = &trailed{ReadCloser: r.Body, in: r, x: x}
		}
	}
	g.proxy.ServeHTTP(w, r)
}

// trailed is a body that hands on the trailers of its request when it has been
// read to its end.
type trailed struct {
	io.ReadCloser
	in *http.Request
	x  *exchange
}

func (b *trailed) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		for name := range b.x.trailer {
			b.x.trailer[name] = b.in.Trailer[name]
		}
	}
	return n, err
}

// rewrite makes the upstream's request.
func (g *Gateway) rewrite(p *httputil.ProxyRequest) {
	x := of(p.In)
	p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = x.route.upstream.Scheme, x.route.upstream.Host, ""
	p.Out.URL.RawPath = x.route.upstream.EscapedPath() + x.path
	p.Out.URL.Path = inbound.Unescape(p.Out.URL.RawPath)
	p.Out.URL.RawQuery = escapeBlanks(p.In.URL.RawQuery) // whole, also what Go would not parse
	x.trailer = http.Header{}
	for name := range p.In.Trailer {
		if x.mayTrail(name) {
			x.trailer[name] = nil
		}
	}
	p.Out.Trailer = x.trailer

	h := p.Out.Header
	for name := range h {
		if x.isOurs(name) {
			delete(h, name)
		}
	}
	for _, line := range x.identity(p.In) {
		h[line.Name] = []string{line.Value}
	}
	if !isUpgrade(p.In) {
		delete(h, "Upgrade")
		delete(h, "Connection")
	}
}

// answered is called with the upstream's response header, before it is sent on.
func (g *Gateway) answered(res *http.Response) error {
	x := of(res.Request)
	cost := ""
	if name := x.keyspace.Cost.Header; name != "" {
		cost = res.Header.Get(name)
	}
	g.finish(x, res.StatusCode, cost)
	inbound.TellRoom(res.Header, &x.decision)
	if res.StatusCode != http.StatusSwitchingProtocols {
		x.body.begin()
	}
	if len(res.Trailer) > 0 && res.ContentLength > 0 && x.http1 {
		res.Header.Del("Content-Length") // beside which HTTP/1 has no trailers
	}
	res.Header.Del("X-Request-Id")                       // ours is set, and is the one in the ledger
	x.w.Header()["X-Request-Id"] = []string{x.requestID} // informational responses have cleared it
	return nil
}

// isUpgrade says whether a request asks for another protocol on its connection.
func isUpgrade(r *http.Request) bool {
	return lists(r.Header["Connection"], "upgrade") && mayUpgrade(strings.Join(r.Header["Upgrade"], ","))
}

// mayUpgrade says whether a protocol may be had. Over those that carry requests
// one could send some that nobody has verified.
func mayUpgrade(protocols string) bool {
	for p := range strings.SplitSeq(protocols, ",") {
		p, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(p)), "/")
		if p == "" || p == "h2c" || p == "h2" || p == "http" || p == "tls" {
			return false
		}
	}
	return true
}

// lists says whether a header whose values are lists has the element.
func lists(values []string, element string) bool {
	for _, v := range values {
		for e := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(e, " \t"), element) {
				return true
			}
		}
	}
	return false
}

// statusClientGone is what is recorded when the client left before the upstream
// answered; nginx made the number known.
const statusClientGone = 499

// failed is called when there is no response of the upstream.
func (g *Gateway) failed(w http.ResponseWriter, r *http.Request, x *exchange, err error) {
	status, code, message := http.StatusBadGateway, "UPSTREAM_FAILED", "The API behind this gateway cannot be reached."
	if timeout := net.Error(nil); errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		status, code, message = http.StatusGatewayTimeout, "UPSTREAM_TIMEOUT", "The API behind this gateway did not answer in time."
	}
	if r.Context().Err() != nil {
		g.finish(x, statusClientGone, "")
		panic(http.ErrAbortHandler) // returning would answer 200
	}
	g.log.Warn("upstream failed", "keyspace", x.route.Keyspace, "upstream", x.route.upstream.Redacted(), "request_id", x.requestID, "status", status, "error", err)
	g.finish(x, status, "")
	inbound.TellRoom(w.Header(), &x.decision)
	inbound.Problem(w, r, x.requestID, status, code, message)
}

// buffers are what bodies are copied through.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

const (
	dialTimeout     = 5 * time.Second
	continueTimeout = time.Second // how long a client that asked first waits for leave to send its body
	idleTimeout     = 90 * time.Second
	maxIdle         = 256
)
