package gateway

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// duplex lets a response begin before the request's body has ended, over
// HTTP/1. net/http would read the rest of the body first, and wait for ever for
// a client that waits for us; told not to, it must never see the connection
// again, because what is left of the body would be read as the next request, and
// a read of the transport may still be under way. So such a connection is closed
// after its answer, and the read is ended before the handler returns. Over
// HTTP/2 a stream has none of this.
type duplex struct {
	io.ReadCloser
	w     http.ResponseWriter
	ended atomic.Bool // the body was read to its end

	mu     sync.Mutex // held while a read is under way
	closed bool       // guarded by mu
}

// begin must be called before the response's header is written.
func (d *duplex) begin() {
	if d == nil || d.ended.Load() {
		return
	}
	if http.NewResponseController(d.w).EnableFullDuplex() != nil {
		return
	}
	d.w.Header().Set("Connection", "close")
}

// end returns when nobody reads the body any more, nor will.
func (d *duplex) end() {
	if d == nil {
		return
	}
	control := http.NewResponseController(d.w)
	for !d.mu.TryLock() {
		if control.SetReadDeadline(time.Unix(1, 0)) != nil { // the connection is gone, which ends the read too
			d.mu.Lock()
			break
		}
		time.Sleep(time.Millisecond) // and once more: what wraps the body may just be setting a deadline of its own
	}
	d.closed = true
	d.mu.Unlock()
}

func (d *duplex) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := d.ReadCloser.Read(p)
	if err == io.EOF {
		d.ended.Store(true)
	}
	return n, err
}
