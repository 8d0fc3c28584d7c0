package projections

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Whoever reads while projections are rebuilt and switched gets the right answer every
// time: through the views and from the tables, in statements that are prepared already and
// in new ones, in one statement and in a transaction of several.
func TestReadsWhileSwitching(t *testing.T) {
	l, pool := openLedger(t), database(t)
	w := newWriter(t, l)
	const keys = 50
	w.keys(keys)
	for i := range 30 {
		w.page(use(fmt.Sprintf("key_%04d", i), start, nil), use("key_0000", start, new(200)))
	}
	r, _ := running(t, l, pool)
	w.caughtUp(r)

	reads := []struct {
		sql  string
		want int64
	}{
		{`select count(*) from analytics.keys`, keys},
		{`select count(*) from keyledger.keys_v1 where id >= 'key_'`, keys},
		{`select sum(requests)::bigint from analytics.usage_hour`, w.requests},
		{`select sum(requests)::bigint from analytics.usage_day`, w.requests},
		{`select sum(requests)::bigint from keyledger.usage_v2`, w.requests},
		{`select count(*) from analytics.lifecycle_events`, int64(w.ledger)},
		{`select count(*) from analytics.unused_keys`, keys},
		{`select count(*) from analytics.keys k join analytics.last_used u on u.key = k.id`, 30},
	}
	reading, stop := context.WithCancel(t.Context())
	defer stop()
	var readers sync.WaitGroup
	answers, failures := make([]int, len(reads)), make(chan error, 1000)
	for i, x := range reads {
		readers.Go(func() {
			for n := 0; reading.Err() == nil; n++ {
				var got int64
				var err error
				switch n % 3 {
				case 0: // prepared, and kept by the connection
					err = pool.QueryRow(t.Context(), x.sql).Scan(&got)
				case 1:
					err = pool.QueryRow(t.Context(), x.sql, pgx.QueryExecModeExec).Scan(&got)
				case 2:
					err = pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
						if err := tx.QueryRow(t.Context(), `select count(*) from analytics.key_caps`).Scan(&got); err != nil {
							return err
						}
						return tx.QueryRow(t.Context(), x.sql).Scan(&got)
					})
				}
				answers[i]++
				if err == nil && got != x.want {
					err = fmt.Errorf("%d, not %d", got, x.want)
				}
				if err != nil {
					select {
					case failures <- fmt.Errorf("%s (%d): %w", x.sql, n%3, err):
					default:
					}
				}
			}
		})
	}
	switched := 0
	began := time.Now()
	for range 5 {
		for _, name := range []string{"keys_v1", "usage_v2", "ledger_v1"} {
			if result, err := r.Rebuild(t.Context(), name, nil); err != nil || result.Differences != 0 {
				t.Errorf("%+v, %v", result, err)
			} else {
				switched++
			}
		}
	}
	stop()
	readers.Wait()
	close(failures)
	t.Logf("%d switches in %s, answers %v, %d failures", switched, time.Since(began), answers, len(failures))
	for err := range failures {
		t.Error(err)
	}
}
