package check

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events/ledger"
)

// tree holds the hashes of a tree in memory, by tlog's index.
type tree struct {
	hashes []tlog.Hash
	size   int64
}

func (m *tree) ReadHashes(indexes []int64) (list []tlog.Hash, err error) {
	for _, i := range indexes {
		if i >= int64(len(m.hashes)) {
			return nil, fmt.Errorf("the stream has only %d events", m.size)
		}
		list = append(list, m.hashes[i])
	}
	return list, nil
}

// Signed says which of the checkpoints that a database remembers are not what
// tlog alone makes of the streams. A pruned stream is left out.
func Signed(ctx context.Context, l *ledger.Ledger, pool *pgxpool.Pool) (wrong []string, err error) {
	for _, stream := range audit.Streams {
		if first, err := l.First(ctx, stream); err != nil || first > 1 {
			if err != nil {
				return nil, err
			}
			continue
		}
		rows, err := pool.Query(ctx, `select size, root from keyledger.log_checkpoints where stream = $1 order by size`, stream)
		if err != nil {
			return nil, err
		}
		type row struct {
			Size int64
			Root []byte
		}
		signed, err := pgx.CollectRows(rows, pgx.RowToStructByName[row])
		if err != nil {
			return nil, err
		}
		if len(signed) == 0 {
			continue
		}
		m := &tree{}
		for r, err := range l.Read(ctx, stream, 1, 0) {
			if err != nil {
				return nil, err
			}
			leaf := audit.LeafOf(&r)
			more, err := tlog.StoredHashesForRecordHash(m.size, leaf.Hash(), m)
			if err != nil {
				return nil, err
			}
			m.hashes, m.size = append(m.hashes, more...), m.size+1
		}
		for _, s := range signed {
			if s.Size > m.size {
				wrong = append(wrong, fmt.Sprintf("%s was signed with %d events and has %d", stream, s.Size, m.size))
				continue
			}
			root, err := tlog.TreeHash(s.Size, m)
			if err != nil {
				return nil, err
			}
			if string(root[:]) != string(s.Root) {
				wrong = append(wrong, fmt.Sprintf("%s was signed with %d events and root %x, and has root %s", stream, s.Size, s.Root, root))
			}
		}
	}
	return wrong, nil
}
