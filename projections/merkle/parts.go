package merkle

import (
	"context"
	"fmt"
	"strings"

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
	changed := map[audit.Scope]*audit.Part{}
	var order []*audit.Part
	var ids [][]byte
	var of [3]audit.Scope
	each := func(add func(s audit.Scope, leaf tlog.Hash)) {
		for i := range batch {
			e := &batch[i].Event
			for _, s := range scopes(e, &of) {
				add(s, hashes[i])
			}
		}
	}
	each(func(s audit.Scope, _ tlog.Hash) {
		if changed[s] == nil {
			part := &audit.Part{Scope: s.ID()}
			changed[s], order, ids = part, append(order, part), append(ids, part.Scope[:])
		}
	})
	total, err := p.load(ctx, tx, order, ids)
	if err != nil {
		return err
	}
	if total == 0 && len(batch) > 0 && batch[0].Sequence != 1 {
		return fmt.Errorf("%s is read from sequence %d: what its parts held before is not known", p.Stream, batch[0].Sequence)
	}
	each(func(s audit.Scope, leaf tlog.Hash) { changed[s].Add(leaf) })

	n := len(order) + 1
	counts, chains := make([]int64, n), make([][]byte, n)
	for i, part := range order {
		counts[i], chains[i] = part.Count, part.Chain[:]
	}
	ids = append(ids, all)
	counts[n-1], chains[n-1] = total+int64(len(batch)), all
	_, err = tx.Exec(ctx, `insert into `+p.Table()+` (scope, events, chain) select * from unnest($1::bytea[], $2::bigint[], $3::bytea[]) order by 1
		on conflict (scope) do update set events = excluded.events, chain = excluded.chain`, ids, counts, chains)
	return err
}

func scopes(e *events.Envelope, room *[3]audit.Scope) []audit.Scope {
	if e.Keyspace == "" {
		return nil
	}
	list := append(room[:0], audit.Scope{Keyspace: e.Keyspace})
	if e.Owner != "" {
		list = append(list, audit.Scope{Keyspace: e.Keyspace, Owner: e.Owner})
	}
	if e.Key != "" {
		list = append(list, audit.Scope{Keyspace: e.Keyspace, Owner: e.Owner, Key: e.Key})
	}
	return list
}

// load fills in what is stored of parts, and returns how many events there are.
func (p Parts) load(ctx context.Context, tx pgx.Tx, parts []*audit.Part, ids [][]byte) (total int64, err error) {
	byID := make(map[audit.ScopeID]*audit.Part, len(parts))
	for _, part := range parts {
		byID[part.Scope] = part
	}
	rows, err := tx.Query(ctx, `select scope, events, chain from `+p.Table()+` where scope = any($1)`, append(ids[:len(ids):len(ids)], all))
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
