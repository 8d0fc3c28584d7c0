package main

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/commands/webhooks"
	"github.com/keyledger/keyledger/reactors/delivery"
	"github.com/keyledger/keyledger/reactors/lease"
	sender "github.com/keyledger/keyledger/reactors/webhooks"
)

// webhookSettings say where facts may be sent to.
type webhookSettings struct {
	// AllowPrivate are networks (10.1.0.0/16), addresses and names of hosts that
	// webhooks may be sent to although they are not public.
	AllowPrivate []string `yaml:"allow_private"`
	// AllowHTTP lets webhooks be sent without TLS.
	AllowHTTP bool `yaml:"allow_http"`
}

func (s webhookSettings) policy() (webhooks.Policy, error) {
	p, err := webhooks.ParsePolicy(s.AllowHTTP, s.AllowPrivate)
	if err != nil {
		return p, usageError("webhooks.allow_private: %w", err)
	}
	return p, nil
}

// sendToWebhooks sends to webhooks until ctx ends, whenever this is the process that
// does. Where it ends over a doubt the node goes on.
func (n *node) sendToWebhooks(ctx context.Context, js jetstream.JetStream) error {
	c := n.config
	store, err := delivery.Open(ctx, n.ledger, js, c.Replicas)
	if err != nil {
		return err
	}
	leases, err := lease.Open(ctx, js, c.Replicas)
	if err != nil {
		return err
	}
	n.webhooks = &sender.Webhooks{
		Registry: &webhooks.Registry{Ledger: n.ledger, Master: c.Master, Seal: n.seal, Policy: c.Webhooks, Log: c.Log},
		Sender:   sender.NewSender(sender.Options{Master: c.Master, Policy: c.Webhooks, Version: build().Version}),
		Store:    store, Log: c.Log,
	}
	if err := n.webhooks.Engine(delivery.Options{Ledger: n.ledger, Leases: leases, Holder: c.Name, Log: c.Log}); err != nil {
		return err
	}
	n.done.Go(func() {
		defer n.webhooks.Sender.Close()
		for pause := time.Second; ; pause = min(2*pause, time.Minute) {
			err := n.webhooks.Run(ctx)
			if ctx.Err() != nil || errors.Is(err, context.Canceled) {
				return
			}
			c.Log.Error("nothing is sent to webhooks by this process, tried again in a while", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
		}
	})
	return nil
}
