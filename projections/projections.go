// Package projections writes the read models in PostgreSQL and keeps them
// following the streams.
//
// A [Projection] turns batches of records into rows of its own tables. The
// [Runner] feeds it: one transaction per batch, which moves the projection's
// position by compare-and-swap and writes its rows, both or neither. Of two
// runners on one database, one wins each step and the other stands by.
//
// It promises that rows are exactly the fold of the records up to the position,
// whatever was killed or restarted; that a record is never skipped; and that a
// rebuild from the stream gives the same rows, which [Runner.Rebuild] and
// [Runner.Compare] check while everything is being served.
//
// How it can disappoint. Rows are behind the stream by a few milliseconds, or
// for as long as PostgreSQL is away; whoever needs their own write waits with
// [Runner.Wait]. A record that cannot be applied stops its projection, and that
// one alone, until somebody acts: [Runner.Status] says on which record, why, and
// what to do. The last moments before a crash of PostgreSQL may be lost
// (synchronous_commit is off) and are then read again. Usage is kept per
// endpoint as it was called: an API that puts ids into its paths makes a row
// per id and minute.
package projections

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// Projection is a fold of one stream into tables.
//
// Apply MUST write to its own tables alone, without naming their schema, since
// a rebuild writes to tables of the same names elsewhere. It MUST depend on
// nothing but the records and its own rows, and the rows MUST NOT depend on how
// the records were cut into batches. It never gets a part of a page. It MUST NOT
// change a record, which others read too, nor keep the batch.
type Projection interface {
	Name() string    // "keys_v1": also names its position
	Stream() string  // that it reads
	Tables() []Table // that it owns
	Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error
}

// Table is a table of a projection.
type Table struct {
	Name string

	// ByKeyAlone says that Apply finds its rows by the primary key, so that a
	// rebuild may make the other indexes when it is done.
	ByKeyAlone bool
}

// All are the projections that need nothing but their stream.
func All() []Projection {
	return append([]Projection{Keys{}, LedgerCopy{}, Usage{}, Uses{}, Acts{}, Gaps{}, Alerts{}, Revocations{}}, trees()...)
}

// place is a record's message: what a position points at.
type place struct {
	sequence uint64
	eventID  string // of its last line
}

func placeOf(r events.Record) place { return place{r.Sequence, r.Event.ID} }

// column collects one column of rows for unnest.
func column[R, T any](rows []R, value func(*R) T) []T {
	values := make([]T, len(rows))
	for i := range rows {
		values[i] = value(&rows[i])
	}
	return values
}

// clean makes a text that PostgreSQL can hold: it takes no NUL and nothing but
// UTF-8, and paths of requests contain whatever a caller wrote.
func clean(s string) string {
	if strings.IndexByte(s, 0) < 0 {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

// short is clean and cut to a length that fits into an index, in bytes.
func short(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return clean(s)
}
