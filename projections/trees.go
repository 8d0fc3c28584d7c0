package projections

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/merkle"
)

// tree keeps the Merkle tree over a stream.
type tree struct{ merkle.Tree }

func (t tree) Name() string    { return t.Table() }
func (t tree) Stream() string  { return t.Tree.Stream }
func (t tree) Tables() []Table { return []Table{{t.Table(), false}} }
func (t tree) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	return t.Tree.Apply(ctx, tx, batch)
}

// parts counts the events of each scope of a stream. It is apart from the tree, so
// that sealing does not wait for it.
type parts struct{ merkle.Parts }

func (p parts) Name() string    { return p.Table() }
func (p parts) Stream() string  { return p.Parts.Stream }
func (p parts) Tables() []Table { return []Table{{p.Table(), true}} }
func (p parts) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	return p.Parts.Apply(ctx, tx, batch)
}

// trees are the projections that prove: of each stream that has a tree, the tree
// and its parts.
func trees() (all []Projection) {
	for _, stream := range audit.Streams {
		all = append(all, tree{merkle.Tree{Stream: stream}}, parts{merkle.Parts{Stream: stream}})
	}
	return all
}
