package ledger

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Inspect is [Open] for whoever wants to know what was done to the streams: it
// refuses nothing, changes nothing and remembers nothing, and answers what Open
// would have refused. heads are files as [Options.HeadFile] names one. What is read
// of a stream in doubt ends where it is broken. Close MUST be called.
func Inspect(ctx context.Context, nc *nats.Conn, o Options, heads ...string) (*Ledger, []Finding, error) {
	o.ReadOnly, o.AllowUnverifiedSync, o.HeadFile = true, true, ""
	o.Replicas = max(o.Replicas, 1)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, err
	}
	l := &Ledger{
		nc: nc, js: js, o: o, log: o.Log, stop: func() {},
		created: map[string]time.Time{}, heads: map[string]head{}, behind: map[string]int{},
		refused: map[string]*RefusalError{}, doubt: make(chan struct{}),
	}
	l.relink()
	for _, file := range heads {
		l.o.HeadFile = file
		known, err := l.loadHeads()
		l.o.HeadFile = ""
		if err != nil {
			return nil, nil, err
		}
		l.o.Known = append(l.o.Known, known...)
	}
	err = l.open(ctx)
	if refusal, ok := errors.AsType[*RefusalError](err); ok {
		return l, refusal.Findings, nil
	}
	return l, nil, err
}
