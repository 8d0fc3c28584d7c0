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
