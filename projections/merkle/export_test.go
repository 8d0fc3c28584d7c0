package merkle

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"
)

// Unguarded makes options replace checkpoints without comparing.
func Unguarded(o Options) Options { o.unguarded = true; return o }

// Reading is a log that only reads.
func Reading(pool *pgxpool.Pool) *Log { return &Log{o: Options{Pool: pool}} }

// UncheckedHashReader reads hashes as the rows have them.
func (l *Log) UncheckedHashReader(ctx context.Context, stream string) tlog.HashReader {
	return l.hashReader(ctx, l.o.Pool, stream)
}

// ScrubOnce reads one server's copy of a stream once, and returns how many bytes of
// events that were.
func (l *Log) ScrubOnce(ctx context.Context, stream, server string) (int64, error) {
	last, _, err := l.bucket(ctx, stream)
	if err != nil {
		return 0, err
	}
	p := &scrubbing{l: l, stream: stream, server: server, last: last}
	err = p.run(ctx)
	return p.bytes, err
}
