package api

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// keepAlive is how often a silent tail says that it is still there.
const keepAlive = 15 * time.Second

// sendEvents begins an answer of Server-Sent Events, whose sign of life it gives. ctx
// ends with the client, and with the program; end MUST be called before the handler
// returns. send is for one goroutine.
func (a *API) sendEvents(w http.ResponseWriter, r *http.Request) (ctx context.Context, send func(format string, args ...any), end func()) {
	ctx, stop := context.WithCancel(r.Context())
	undrain := func() bool { return false }
	if a.Draining != nil {
		undrain = context.AfterFunc(a.Draining, stop)
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	flush := http.NewResponseController(w)
	var mu sync.Mutex // guards w, which the tail and its sign of life write to
	send = func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if _, err := fmt.Fprintf(w, format, args...); err != nil || flush.Flush() != nil {
			stop()
		}
	}
	var alive sync.WaitGroup
	alive.Go(func() {
		t := time.NewTicker(keepAlive)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				send(": still here\n\n")
			}
		}
	})
	return ctx, send, func() {
		stop()
		alive.Wait()
		undrain()
	}
}
