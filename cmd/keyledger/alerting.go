package main

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/reactors/alerts"
	"github.com/keyledger/keyledger/reactors/lease"
)

// alert raises and resolves alerts while this process holds the lease for it. Its end
// keeps nobody from verifying: they are told, and the others go on.
func (n *node) alert(ctx context.Context, js jetstream.JetStream) {
	kv, err := lease.Open(ctx, js, n.config.Replicas)
	if err == nil {
		engine := alerts.New(alerts.Options{Ledger: n.ledger, Ring: n.ring, Pool: n.config.Pool, Runner: n.runner, Seal: n.seal, Keep: kv, Node: n.config.Name,
			Hold: n.config.AlertHold, May: lease.Check, Log: n.config.Log})
		err = lease.Options{Holder: n.config.Name, Log: n.config.Log}.Run(ctx, kv, "alerts", engine.Run)
	}
	if ctx.Err() == nil {
		n.config.Log.Error("nobody is told of alerts by this process any more, until a restart", "error", err)
	}
}
