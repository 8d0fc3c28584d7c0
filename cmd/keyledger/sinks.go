package main

import (
	"cmp"
	"context"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/reactors/delivery"
	"github.com/keyledger/keyledger/reactors/lease"
	"github.com/keyledger/keyledger/reactors/sinks"
)

// deliverToSinks delivers to the sinks of the settings until ctx ends, whenever this is
// the process that does. Where it cannot over a doubt the node goes on, and status says so.
func (n *node) deliverToSinks(ctx context.Context, js jetstream.JetStream) error {
	store, err := delivery.Open(ctx, n.ledger, js, n.config.Replicas)
	if err != nil {
		return err
	}
	var failed atomic.Pointer[error]
	n.sinks = &api.Sinks{Store: store, Err: func() error {
		if err := failed.Load(); err != nil {
			return *err
		}
		return nil
	}}
	if len(n.config.Sinks) == 0 {
		return nil
	}
	leases, err := lease.Open(ctx, js, n.config.Replicas)
	if err != nil {
		return err
	}
	engine, err := delivery.New(delivery.Options{Ledger: n.ledger, Store: store, Leases: leases, Reactor: api.SinkReactor, Holder: n.config.Name, Log: n.config.Log})
	if err != nil {
		return err
	}
	var all []delivery.Registration
	for _, s := range n.config.Sinks {
		all = append(all, delivery.Registration{Target: s})
		n.sinks.Configured = append(n.sinks.Configured, api.SinkName{Name: s.Name(), Kind: s.Kind()})
	}
	if err := engine.Set(all); err != nil {
		return err
	}
	n.done.Go(func() {
		for pause := time.Second; ; pause = min(2*pause, time.Minute) {
			err := engine.Run(ctx)
			if ctx.Err() != nil {
				return
			}
			failed.Store(&err)
			n.config.Log.Error("nothing is delivered to sinks by this process, tried again in a while", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
				failed.Store(nil)
			case <-ctx.Done():
			}
		}
	})
	return nil
}

// readSinks opens those of a file of settings; it must name some where they were asked for.
func readSinks(file string, asked bool) ([]*sinks.Sink, error) {
	all, err := sinks.Read(file)
	if err != nil {
		return nil, &exitError{code: exitUsage, err: err}
	}
	if asked && len(all) == 0 {
		return nil, usageError("%s names no sinks: write them as docs/sinks.md shows", file)
	}
	return all, nil
}

func (a *app) sinksCommand() *cobra.Command {
	return group("sinks", "See what reaches the systems that the settings name", a.sinksStatusCommand())
}

// sinkView is a sink as the API answers it.
type sinkView struct {
	Name         string      `json:"name"`
	Kind         string      `json:"kind"`
	Delivered    uint64      `json:"delivered"`
	Lag          uint64      `json:"lag"`
	Behind       int         `json:"behind"`
	Dead         uint64      `json:"dead"`
	Replayed     uint64      `json:"replayed"`
	FailingSince events.Time `json:"failing_since"`
	LastError    string      `json:"last_error"`
	Error        string      `json:"error"`
}

func (a *app) sinksStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what each sink has taken, and since when it fails", Args: takes(),
		Long: `Shows for each sink the facts that it has taken, how far FEED has not been looked at
for it (lag), keys whose next fact waits (behind), dead letters that were not delivered
later, and since when nothing arrives and why. What went to DLQ is shown and sent again
with "keyledger webhooks dead --reactor sinks" and "replay".`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			members, _, body, err := a.pages(cmd, path("sinks"), "sinks", "cursor", url.Values{}, nil, true)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[sinkView](members)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, s := range list {
				why := s.Error
				if why == "" && s.FailingSince != 0 {
					why = s.LastError
				}
				rows[i] = []string{
					s.Name, cmp.Or(s.Kind, "not configured"), strconv.FormatUint(s.Delivered, 10), strconv.FormatUint(s.Lag, 10), strconv.Itoa(s.Behind),
					strconv.FormatUint(s.Dead-min(s.Dead, s.Replayed), 10), a.when(s.FailingSince), orDash(why),
				}
			}
			return a.rows([]string{"Sink", "Kind", "Delivered", "Lag", "Behind", "Dead", "Failing since", "Error"}, rows)
		},
	}
}
