package merkle

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events/cluster"
)

// Bucket is the NATS KV bucket of the log: its keys, wrapped by the master key, and
// the newest checkpoint of each stream.
const Bucket = "keyledger_log"

// kept is how many values of each place the bucket keeps: what was signed lately
// can be looked at with `nats kv history`.
const kept = 64

func openBucket(ctx context.Context, js jetstream.JetStream, replicas int) (jetstream.KeyValue, error) {
	return cluster.OpenBucket(ctx, js, jetstream.KeyValueConfig{
		Bucket:      Bucket,
		Description: "keys of the audit log, wrapped by the master key, and its newest checkpoints",
		History:     kept,
		Storage:     jetstream.FileStorage,
		Replicas:    replicas,
	})
}

// get reads a value from the bucket's leader; nil where there is none, or no bucket.
func (l *Log) get(ctx context.Context, place string) (value []byte, revision uint64, err error) {
	return cluster.Get(ctx, l.o.JetStream.Conn(), Bucket, place)
}
