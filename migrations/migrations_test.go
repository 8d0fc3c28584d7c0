package migrations_test

import (
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

// The reader reads the views and nothing else, and cannot write.
func TestReader(t *testing.T) {
	pool := connect(t, testenv.Postgres(t))
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), "set role keyledger_reader"); err != nil {
		t.Fatal(err)
	}
	for sql, allowed := range map[string]bool{
		"select count(*) from analytics.keys":                                                      true,
		"select analytics.percentile(0.95, analytics.add_up(histogram)) from analytics.usage_hour": true,
		"select count(*) from keyledger.keys_v1":                                                   false,
		"delete from analytics.projection_status":                                                  false,
		"update keyledger.positions set sequence = 0":                                              false,
		"create table analytics.mine (id int)":                                                     false,
		"select pg_read_file('/etc/passwd')":                                                       false,
	} {
		if _, err := conn.Exec(t.Context(), sql); (err == nil) != allowed {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

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
