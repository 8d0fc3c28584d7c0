package migrations_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
)

func connect(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Several processes that start at once on an empty database end with the same
// schema, and a later start finds nothing to do.
func TestUpTogether(t *testing.T) {
	url := testenv.Postgres(t)
	var starting sync.WaitGroup
	applied := make([]int, 4)
	for i := range applied {
		pool := connect(t, url)
		starting.Go(func() {
			var err error
			if applied[i], err = migrations.Up(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	sum := 0
	for _, n := range applied {
		sum += n
	}
	files, err := filepath.Glob("0*.sql")
	if err != nil {
		t.Fatal(err)
	}
	if sum != len(files) || sum == 0 {
		t.Errorf("migrations applied by each: %v", applied)
	}
	if n, err := migrations.Up(t.Context(), connect(t, url)); n != 0 || err != nil {
		t.Errorf("another start applied %d, %v", n, err)
	}
}

// Every view of section 8 of the contract is there, and each of its columns says
// what it means.
func TestViewsAreDocumented(t *testing.T) {
	pool := connect(t, testenv.Postgres(t))
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	for _, v := range strings.Fields("keys usage_minute usage_hour usage_day last_used unused_keys expiring_keys rotation_age key_caps lifecycle_events projection_status") {
		if _, err := pool.Exec(t.Context(), "select * from analytics."+v); err != nil {
			t.Error(err)
		}
	}
	rows, err := pool.Query(t.Context(), `select c.relname || coalesce('.' || a.attname, '') from pg_class c
		left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
		where c.relnamespace = 'analytics'::regnamespace and c.relkind = 'v'
		and (obj_description(c.oid, 'pg_class') is null or col_description(c.oid, a.attnum) is null)`)
	if err != nil {
		t.Fatal(err)
	}
	silent, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(silent) > 0 {
		t.Errorf("without a comment: %v, %v", silent, err)
	}
}

// The reader reads every view and calls every function, and nothing else: no table, view
// or sequence of another schema, and it cannot write.
func TestReader(t *testing.T) {
	pool := connect(t, testenv.Postgres(t))
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	names := func(sql string) []string {
		t.Helper()
		rows, err := pool.Query(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(list) == 0 {
			t.Fatal(list, err)
		}
		return list
	}
	relations := `select quote_ident(n.nspname) || '.' || quote_ident(c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'v', 'm', 'p') and n.nspname `
	views, others := names(relations+`= 'analytics'`), names(relations+`like 'keyledger%'`)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), "set role keyledger_reader"); err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		if _, err := conn.Exec(t.Context(), "select * from "+v+" limit 1"); err != nil {
			t.Errorf("%s: %v", v, err)
		}
		for _, sql := range []string{"delete from " + v, "drop view " + v} {
			if _, err := conn.Exec(t.Context(), sql); err == nil {
				t.Errorf("%s is allowed", sql)
			}
		}
	}
	for _, o := range others {
		for _, sql := range []string{"select * from " + o + " limit 1", "delete from " + o, "truncate " + o} {
			if _, err := conn.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "permission denied") {
				t.Errorf("%s: %v", sql, err)
			}
		}
	}
	for sql, allowed := range map[string]bool{
		"select analytics.percentile(0.95, analytics.add_up(histogram)) from analytics.usage_hour": true,
		"select analytics.plus(array[1, 2]::bigint[], array[3, 4]::bigint[])":                      true,
		"select analytics.percentile(0.5, array[0, 4]::bigint[])":                                  true,
		"create table analytics.mine (id int)":                                                     false,
		"select pg_read_file('/etc/passwd')":                                                       false,
	} {
		if _, err := conn.Exec(t.Context(), sql); (err == nil) != allowed {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// What docs/analytics.md shows in SQL can be asked, by the reader.
func TestDocumentedQueries(t *testing.T) {
	pool := connect(t, testenv.Postgres(t))
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/analytics.md")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	// 10 requests in the last class up to 250 ms, 30 above; p50 is in the class above.
	if _, err := conn.Exec(t.Context(), `insert into keyledger.usage_v2 (key, minute, keyspace, owner, code, status, environment, method, endpoint, requests, measured, latency_ms, cost_micros, `+classes+`)
		select 'key_1', date_trunc('minute', now()) - n * interval '1 hour', 'parcelbird', 'o1', 'VALID', 200, 'live', 'GET', '/v1/parcels', 40, 40, 10000, 7, 0,0,0,0,0,0,0,0,0,0,0,0,10,30,0,0,0,0,0,0,0,0,0
		from generate_series(1, 20) n; insert into keyledger.usage_state_v2 (one, clock, folded, days_folded) values (true, now(), '2026-01-01Z', '2026-01-01Z')`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "set role keyledger_reader"); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, block := range strings.Split(string(page), "```sql\n")[1:] {
		sql, _, _ := strings.Cut(block, "```")
		tag, err := conn.Exec(t.Context(), sql)
		if err != nil || tag.RowsAffected() == 0 {
			t.Errorf("%d rows, %v of\n%s", tag.RowsAffected(), err, sql)
		}
		n++
		if strings.Contains(sql, "within_250_ms") {
			var key string
			var share float64
			if err := conn.QueryRow(t.Context(), sql).Scan(&key, &share); err != nil || share != 0.25 {
				t.Errorf("within 250 ms: %g, %v", share, err)
			}
		}
	}
	if n < 3 {
		t.Errorf("%d queries", n)
	}
}

const classes = `to_1, to_2, to_3, to_5, to_7, to_10, to_15, to_25, to_40, to_65, to_100, to_150, to_250, to_400, to_650, to_1000, to_1500, to_2500, to_4000, to_6500, to_10000, to_30000, to_more`

// A database of a newer program is refused with words, before anything is touched.
func TestNewerDatabase(t *testing.T) {
	pool := connect(t, testenv.Postgres(t))
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), "insert into keyledger.goose_db_version (version_id, is_applied) values (99999, true)"); err != nil {
		t.Fatal(err)
	}
	if _, err := migrations.Up(t.Context(), pool); err == nil || !strings.Contains(err.Error(), "newer program") {
		t.Errorf("Up = %v", err)
	}
}
