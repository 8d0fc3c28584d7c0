package ledger

import (
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// lanes are connections of their own for single messages of the past. The server
// reads one of them while it takes requests of the same connection, for milliseconds
// where the message lies alone: on one connection they would come one after another,
// and appends behind them.
type lanes struct {
	mu      sync.Mutex // guards what follows
	open    []*nats.Conn
	next    int
	dialled time.Time // when opening them was last begun
	dialing bool
	closed  bool
	done    sync.WaitGroup
}

// laneCount is as many as the server reads for at once on a machine like this one.
var laneCount = min(max(runtime.GOMAXPROCS(0), 2), 4)

// redial is how long lanes that could not be opened, or were lost for good, are left.
const redial = 10 * time.Second

// lane is a connection to read on: one of the lanes in turn, or the ledger's own
// while there is none.
func (l *Ledger) lane() *nats.Conn {
	a := &l.lanes
	a.mu.Lock()
	defer a.mu.Unlock()
	for range a.open {
		a.next = (a.next + 1) % len(a.open)
		if nc := a.open[a.next]; nc.IsConnected() {
			return nc
		}
	}
	if !a.dialing && !a.closed && l.nc.IsConnected() && time.Since(a.dialled) > redial {
		a.dialing, a.dialled = true, time.Now()
		a.done.Go(l.openLanes)
	}
	return l.nc
}

// openLanes replaces the lanes.
func (l *Ledger) openLanes() {
	o := l.nc.Opts
	o.Name = strings.TrimSpace(o.Name + " (reading)")
	// What they would be told is told by the ledger's own connection too.
	o.ConnectedCB, o.DisconnectedCB, o.ReconnectedCB, o.ClosedCB, o.LameDuckModeHandler, o.DiscoveredServersCB = nil, nil, nil, nil, nil, nil
	o.DisconnectedErrCB, o.ReconnectErrCB = nil, nil
	o.AsyncErrorCB = func(*nats.Conn, *nats.Subscription, error) {}
	o.RetryOnFailedConnect = false
	var open []*nats.Conn
	for range laneCount {
		nc, err := o.Connect()
		if err != nil {
			l.log.Warn("a connection for reading could not be opened; the first one is used", "error", err)
			break
		}
		open = append(open, nc)
	}
	a := &l.lanes
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dialing = false
	if a.closed {
		open, a.open = nil, append(a.open, open...)
	}
	for _, nc := range a.open {
		nc.Close()
	}
	a.open = open
}

func (a *lanes) close() {
	a.mu.Lock()
	a.closed = true
	for _, nc := range a.open {
		nc.Close()
	}
	a.open = nil
	a.mu.Unlock()
	a.done.Wait()
}
