package merkle

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
)

// Parts folds a stream into how many events it holds of each scope, and the chain
// over them. It is what a projection of the name parts_<stream>_v1 applies.
type Parts struct{ Stream string }

// Table is its one table.
func (p Parts) Table() string { return "parts_" + strings.ToLower(p.Stream) + "_v1" }

// all is the scope of the row that counts all events.
var all = []byte{}

// Apply adds a batch of whole messages.
func (p Parts) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	hashes := leafHashes(batch)
	parts, of := scopesOf(batch)
	total, err := p.load(ctx, tx, parts)
	if err != nil {
		return err
	}
	if total == 0 && len(batch) > 0 && batch[0].Sequence != 1 {
		return fmt.Errorf("%s is read from sequence %d: what its parts held before is not known", p.Stream, batch[0].Sequence)
	}
	addLeaves(parts, of, hashes)

	n := len(parts) + 1
	ids, counts, chains := make([][]byte, n), make([]int64, n), make([][]byte, n)
	for i := range parts {
		ids[i], counts[i], chains[i] = parts[i].Scope[:], parts[i].Count, parts[i].Chain[:]
	}
	ids[n-1], counts[n-1], chains[n-1] = all, total+int64(len(batch)), all
	_, err = tx.Exec(ctx, `insert into `+p.Table()+` (scope, events, chain) select * from unnest($1::bytea[], $2::bigint[], $3::bytea[]) order by 1
		on conflict (scope) do update set events = excluded.events, chain = excluded.chain`, ids, counts, chains)
	return err
}

// partsOf are the places of a record's parts in a list; -1: it has no such part.
type partsOf struct{ keyspace, owner, key int32 }

// scopesOf lists the parts that a batch is about, empty, and where in the list those of
// each record are. Records that follow each other are mostly of one keyspace, and often
// of one owner.
func scopesOf(batch []events.Record) (parts []audit.Part, of []partsOf) {
	places := map[audit.Scope]int32{}
	place := func(s audit.Scope) int32 {
		at, ok := places[s]
		if !ok {
			at = int32(len(parts))
			places[s] = at
			parts = append(parts, audit.Part{Scope: s.ID()})
		}
		return at
	}
	of = make([]partsOf, len(batch))
	var last *events.Envelope
	for i := range batch {
		e, at := &batch[i].Event, partsOf{-1, -1, -1}
		if e.Keyspace != "" {
			if last != nil && last.Keyspace == e.Keyspace {
				at.keyspace = of[i-1].keyspace
			} else {
				at.keyspace = place(audit.Scope{Keyspace: e.Keyspace})
			}
			switch {
			case e.Owner == "":
			case last != nil && last.Keyspace == e.Keyspace && last.Owner == e.Owner:
				at.owner = of[i-1].owner
			default:
				at.owner = place(audit.Scope{Keyspace: e.Keyspace, Owner: e.Owner})
			}
			if e.Key != "" {
				at.key = place(audit.Scope{Keyspace: e.Keyspace, Owner: e.Owner, Key: e.Key})
			}
		}
		of[i], last = at, e
	}
	return parts, of
}

// addLeaves extends the chains. Chains of different parts have nothing to do with each
// other: one processor takes those of keyspaces and another the rest, where there is
// enough to do.
func addLeaves(parts []audit.Part, of []partsOf, hashes []tlog.Hash) {
	add := func(at int32, leaf tlog.Hash) {
		if at >= 0 {
			parts[at].Add(leaf)
		}
	}
	var wide sync.WaitGroup
	keyspaces := func() {
		for i := range of {
			add(of[i].keyspace, hashes[i])
		}
	}
	if len(of) > leafShare {
		wide.Go(keyspaces)
	} else {
		keyspaces()
	}
	for i := range of {
		add(of[i].owner, hashes[i])
		add(of[i].key, hashes[i])
	}
	wide.Wait()
}

// load fills in what is stored of parts, and returns how many events there are.
func (p Parts) load(ctx context.Context, tx pgx.Tx, parts []audit.Part) (total int64, err error) {
	byID := make(map[audit.ScopeID]*audit.Part, len(parts))
	ids := make([][]byte, 0, len(parts)+1)
	for i := range parts {
		byID[parts[i].Scope] = &parts[i]
		ids = append(ids, parts[i].Scope[:])
	}
	rows, err := tx.Query(ctx, `select scope, events, chain from `+p.Table()+` where scope = any($1)`, append(ids, all))
	if err != nil {
		return 0, err
	}
	var scope, chain []byte
	var count int64
	_, err = pgx.ForEachRow(rows, []any{&scope, &count, &chain}, func() error {
		if len(scope) == 0 {
			total = count
			return nil
		}
		part := byID[audit.ScopeID(scope)]
		if part == nil || len(chain) != tlog.HashSize {
			return fmt.Errorf("a row of %s is no part: scope %x, chain %x", p.Table(), scope, chain)
		}
		part.Count, part.Chain = count, tlog.Hash(chain)
		return nil
	})
	return total, err
}
