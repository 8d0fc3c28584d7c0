// Package front is how the program meets its clients: HTTP/1.1 and HTTP/2, in
// plain and over TLS, with certificates that are read again while it runs, limits
// on clients that take their time, and an end that leaves nothing half-answered.
//
// What it promises. A connection that came over TLS is seen as such by the
// handler (http.Request.TLS), one that did not is not. A broken certificate file
// is refused at start, and later leaves the certificate that works in place.
// [Server.Drain] takes no new connection, tells HTTP/2 clients to go elsewhere
// (GOAWAY), answers what is under way, and closes what is left when its time is
// over, upgraded connections included: no handler outlives it with a client. Where
// a handler has a short way ([Short]), a client cannot tell which way was gone.
//
// How it can disappoint. A client that reads its answer slowly keeps its
// connection for as long as it likes. HTTP/2 without TLS is for clients that begin
// with it (prior knowledge, RFC 9113 section 3.3); the Upgrade of HTTP/1.1 to h2c,
// which that RFC has taken back, is not offered. A connection on which something was
// asked that is not for the short way has lost it until its end.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config is what a server's file says of its front. The zero value serves plain
// HTTP/1.1 with limits that suit most.
type Config struct {
	TLS TLS `yaml:"tls,omitempty" json:"tls,omitzero"`

	// H2C lets clients without TLS begin in HTTP/2, which is for proxies and
	// services on the same network. Over TLS the client chooses (ALPN).
	H2C bool `yaml:"h2c,omitempty" json:"h2c,omitempty"`

	// HeaderTimeout is how long a client may take for its TLS handshake, and then
	// for the header of a request. Default 10s.
	HeaderTimeout time.Duration `yaml:"header_timeout,omitempty" json:"header_timeout,omitzero"`

	// IdleTimeout is how long a connection may wait for its next request, where a
	// handler has a short way up to an eighth longer. Default 2m.
	IdleTimeout time.Duration `yaml:"idle_timeout,omitempty" json:"idle_timeout,omitzero"`

	// BodyTimeout is how long a client may pause while it sends a body. It bounds
	// no body as a whole. Default: as long as it likes, for streams that are silent
	// now and then.
	BodyTimeout time.Duration `yaml:"body_timeout,omitempty" json:"body_timeout,omitzero"`

	// DrainTimeout is how long requests under way may take after SIGTERM. What is
	// left then, upgraded connections too, is closed. Default 10s.
	DrainTimeout time.Duration `yaml:"drain_timeout,omitempty" json:"drain_timeout,omitzero"`

	// MaxHeaderBytes bounds a request's header, the request line included; more is
	// answered with 431. Default 64 KiB.
	MaxHeaderBytes int `yaml:"max_header_bytes,omitempty" json:"max_header_bytes,omitempty"`
}

// TLS is where a server speaks TLS, and as whom.
type TLS struct {
	// Listen is the address. Default: no TLS.
	Listen string `yaml:"listen,omitempty" json:"listen,omitempty"`

	// MinVersion is "1.2" (default) or "1.3".
	MinVersion string `yaml:"min_version,omitempty" json:"min_version,omitempty"`

	// Certificates are tried in their order: the first that fits the name which the
	// client asks for (SNI) and what it can verify is used, else the first of all.
	// The files are read again when they change, and on SIGHUP.
	Certificates []Pair `yaml:"certificates,omitempty" json:"certificates,omitempty"`
}

// Pair names the PEM files of a certificate with its chain, and of its key.
type Pair struct {
	Cert string `yaml:"cert" json:"cert"`
	Key  string `yaml:"key" json:"key"`
}

const minHeaderBytes = 4 << 10

// Validate reports everything that is wrong, with its path. It reads no file.
func (c *Config) Validate() error {
	var problems []error
	bad := func(format string, a ...any) { problems = append(problems, fmt.Errorf(format, a...)) }
	if c.TLS.Listen != "" && len(c.TLS.Certificates) == 0 {
		bad("tls.certificates: there is none: name the files, [{cert: server.pem, key: server.key}]")
	}
	if c.TLS.Listen == "" && len(c.TLS.Certificates) > 0 {
		bad("tls.listen: the certificates are for no address: name one, such as 0.0.0.0:443")
	}
	if v := c.TLS.MinVersion; v != "" && v != "1.2" && v != "1.3" {
		bad(`tls.min_version: %q is not offered: write "1.2" or "1.3"`, v)
	}
	for i, p := range c.TLS.Certificates {
		if p.Cert == "" || p.Key == "" {
			bad("tls.certificates[%d]: both cert and key are needed", i)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"header_timeout", c.HeaderTimeout}, {"idle_timeout", c.IdleTimeout}, {"body_timeout", c.BodyTimeout}, {"drain_timeout", c.DrainTimeout}} {
		if d.value < 0 {
			bad("%s: %v is negative: leave it out for the default", d.name, d.value)
		}
	}
	if c.MaxHeaderBytes != 0 && c.MaxHeaderBytes < minHeaderBytes {
		bad("max_header_bytes: %d would refuse ordinary browsers: at least %d", c.MaxHeaderBytes, minHeaderBytes)
	}
	return errors.Join(problems...)
}

// Server serves one handler on any number of listeners.
type Server struct {
	http  http.Server
	short *short // nil: the handler has no short way
	drain time.Duration
	log   *slog.Logger

	// mu guards upgraded: connections that net/http has handed over and knows
	// nothing of any more.
	mu       sync.Mutex
	upgraded map[*conn]struct{}
	changed  chan struct{} // closed and replaced when upgraded shrinks
}

// New makes a server. certificates may be nil where [Server.ServeTLS] is not
// called; a nil log is slog.Default().
func New(c Config, h http.Handler, certificates *Certificates, log *slog.Logger) *Server {
	if log == nil {
		log = slog.Default()
	}
	s := &Server{drain: or(c.DrainTimeout, 10*time.Second), log: log, upgraded: map[*conn]struct{}{}, changed: make(chan struct{})}
	quick, hasShort := h.(Short)
	if c.BodyTimeout > 0 {
		h = patient(h, c.BodyTimeout)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(c.H2C)
	s.http = http.Server{
		Handler:           h,
		Protocols:         &protocols,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: 30 * time.Second}, // a peer that is gone would hold its streams for ever
		ReadHeaderTimeout: or(c.HeaderTimeout, 10*time.Second),
		IdleTimeout:       or(c.IdleTimeout, 2*time.Minute),
		MaxHeaderBytes:    or(c.MaxHeaderBytes, 64<<10),
		ConnState:         s.stateChanged,
		ErrorLog:          slog.NewLogLogger(serverLog{log.Handler()}, slog.LevelDebug),
	}
	if hasShort {
		s.short = &short{
			handler: quick, header: s.http.ReadHeaderTimeout, idle: s.http.IdleTimeout, most: min(s.http.MaxHeaderBytes, maxPlain), log: log,
			listeners: map[*shortListener]struct{}{}, clients: map[*client]struct{}{},
		}
	}
	if certificates != nil {
		s.http.TLSConfig = &tls.Config{
			MinVersion: tls.VersionTLS12, GetCertificate: certificates.get,
			// Named although net/http would: it sets HTTP/2 up once, and where Serve
			// comes before ServeTLS only if it stands here.
			NextProtos: []string{"h2", "http/1.1"},
		}
		if c.TLS.MinVersion == "1.3" {
			s.http.TLSConfig.MinVersion = tls.VersionTLS13
		}
	}
	return s
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// Serve takes connections from l until [Server.Drain]; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	l = listener{l, s}
	if s.short != nil {
		l = s.short.listen(l)
	}
	return ended(s.http.Serve(l))
}

// ServeTLS is [Server.Serve] for connections that begin with a TLS handshake.
func (s *Server) ServeTLS(l net.Listener) error {
	return ended(s.http.ServeTLS(listener{l, s}, "", ""))
}

func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Drain ends the server: as soon as nothing is under way, and after the drain
// timeout, or when ctx ends, by closing the connections that are left. Their
// handlers see their context end, and may still run for a moment.
func (s *Server) Drain(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, s.drain)
	defer stop()
	if s.short != nil {
		s.short.end()
	}
	late := s.http.Shutdown(ctx) != nil
	if s.short != nil && !s.short.wait(ctx.Done()) {
		late = true
	}
	if late {
		s.log.Warn("requests were still under way at the end of the drain: their connections are closed", "drain_timeout", s.drain.String())
		_ = s.http.Close()
	}
	for ctx.Err() == nil {
		s.mu.Lock()
		left, changed := len(s.upgraded), s.changed
		s.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.upgraded))
	s.mu.Unlock()
	if len(left) > 0 {
		s.log.Info("upgraded connections are closed at the end of the drain", "connections", len(left))
	}
	for _, c := range left {
		_ = c.Close()
	}
}

// listener hands out connections that tell when they are closed: net/http does
// not, of one that it has handed over.
type listener struct {
	net.Listener
	s *Server
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		return &conn{TCPConn: t, s: l.s}, nil
	}
	return c, err
}

type conn struct {
	*net.TCPConn
	s     *Server
	begun begun
}

func (c *conn) Read(p []byte) (int, error) { return c.begun.read(c.TCPConn, p) }

// WriteTo is [io.Copy]'s, which would leave out what was read before.
func (c *conn) WriteTo(w io.Writer) (int64, error) {
	if len(c.begun) == 0 {
		return c.TCPConn.WriteTo(w)
	}
	n, err := w.Write(c.begun)
	if c.begun = c.begun[n:]; err != nil {
		return int64(n), err
	}
	more, err := c.TCPConn.WriteTo(w)
	return int64(n) + more, err
}

func (c *conn) Close() error {
	c.s.mu.Lock()
	if _, ok := c.s.upgraded[c]; ok {
		delete(c.s.upgraded, c)
		close(c.s.changed)
		c.s.changed = make(chan struct{})
	}
	c.s.mu.Unlock()
	return c.TCPConn.Close()
}

func (s *Server) stateChanged(c net.Conn, state http.ConnState) {
	if state != http.StateHijacked {
		return
	}
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c, ok := c.(*conn); ok {
		s.mu.Lock()
		s.upgraded[c] = struct{}{}
		s.mu.Unlock()
	}
}

// serverLog keeps what net/http says of clients (handshakes that failed, requests
// that are none) to those who debug, and panics of handlers to everybody.
type serverLog struct{ slog.Handler }

func (l serverLog) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "panic serving") {
		r.Level = slog.LevelError
	}
	if !l.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return l.Handler.Handle(ctx, r)
}

// Enabled is slog.Handler's: what it is about is not known yet.
func (l serverLog) Enabled(context.Context, slog.Level) bool { return true }
