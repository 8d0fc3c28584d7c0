package queries

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// Latest is one of the newest facts, without its data.
type Latest struct {
	Sequence uint64       `json:"sequence"` // in LEDGER
	Type     string       `json:"type"`
	Time     events.Time  `json:"time"`
	Keyspace string       `json:"keyspace"`
	Owner    string       `json:"owner"`
	Key      string       `json:"key"`
	Name     string       `json:"name"` // of the key now; empty: none, or it is deleted
	Actor    events.Actor `json:"actor"`
}

// latestAmong is how many facts are looked through, so that it takes no longer the
// longer the ledger is.
const latestAmong = 20_000

// Latest are the newest facts that held, newest first, among the last 20,000 of LEDGER; of
// one keyspace and one owner where these are named. Those about root keys are not told.
func (q *Queries) Latest(ctx context.Context, keyspace, owner string, limit int) ([]Latest, error) {
	rows, err := q.pool.Query(ctx, `select l.sequence, l.type, l.time, l.keyspace, l.owner, l.key, coalesce(k.name, ''), l.actor_type, l.actor_id
		from keyledger.ledger_v1 l
		left join keyledger.keys_v1 k on k.id = l.key and k.deleted_at is null
		where l.sequence > (select coalesce(max(sequence), 0) from keyledger.ledger_v1) - $1 and not l.void and l.keyspace <> $2
			and ($3 = '' or l.keyspace = $3) and ($4 = '' or l.owner = $4)
		order by l.sequence desc limit $5`, latestAmong, events.RootKeyspace, keyspace, owner, limit)
	if err != nil {
		return nil, fmt.Errorf("read the newest facts: %w", err)
	}
	list := []Latest{}
	var l Latest
	var sequence int64
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&sequence, &l.Type, &at, &l.Keyspace, &l.Owner, &l.Key, &l.Name, &l.Actor.Type, &l.Actor.ID}, func() error {
		l.Sequence, l.Time = uint64(sequence), events.At(at)
		list = append(list, l)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the newest facts: %w", err)
	}
	return list, nil
}
