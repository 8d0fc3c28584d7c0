package middleware

import (
	"bufio"
	"io"
	"net"
	"net/http"

	"github.com/keyledger/keyledger/verify/inbound"
)

// writer notes when the handler answers and how. What else the connection can do
// is reached through http.ResponseController; Flush and Hijack are there for who
// asks for the interfaces.
type writer struct {
	http.ResponseWriter
	x     *exchange
	begun bool
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader is http.ResponseWriter's. What is only informational, 100 to 199, is
// no answer yet.
func (w *writer) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.begin(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) begin(status int) {
	if w.begun {
		return
	}
	w.begun = true
	h := w.Header()
	h.Set("X-Request-Id", w.x.requestID) // it is the one in the ledger
	inbound.TellRoom(h, &w.x.decision)
	cost := ""
	if name := w.x.keyspace.Cost.Header; name != "" {
		cost = h.Get(name)
	}
	w.x.finish(status, cost)
}

func (w *writer) Write(b []byte) (int, error) {
	w.begin(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

// ReadFrom is io.ReaderFrom's, which lets the kernel send files.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	w.begin(http.StatusOK)
	return io.Copy(w.ResponseWriter, r)
}

// Flush is http.Flusher's.
func (w *writer) Flush() { _ = w.FlushError() }

// FlushError is what http.ResponseController calls.
func (w *writer) FlushError() error {
	w.begin(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack is http.Hijacker's. The use counts as answered with 101, whatever the
// handler says on the connection.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.begin(http.StatusSwitchingProtocols)
	}
	return conn, rw, err
}
