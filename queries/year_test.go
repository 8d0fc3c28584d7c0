package queries

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
)

// BenchmarkYear asks for what the dashboard of one key shows (requests over time, success
// and errors, latency with percentiles, cost and endpoints), of 50 keys by chance, in a
// database with a year of figures. KEYLEDGER_YEAR is how many keys are active, 20:
//
//	KEYLEDGER_YEAR=10000 go test -run '^$' -bench Year -benchtime 1x -timeout 30m ./queries
//
// Every key is used at two endpoints in each of four hours a day and in a tenth of their
// minutes; days are kept for a year, hours for a month, minutes for four days (with 10,000
// keys some 6 GB). Rows are made in SQL, day by day: those of a key are as far apart on the
// disk as in an installation. postgres-ms is processor time of a dashboard at the server:
// what it would take at least on a machine that does nothing else.
func BenchmarkYear(b *testing.B) {
	keys, err := strconv.Atoi(os.Getenv("KEYLEDGER_YEAR"))
	if err != nil {
		keys = 20
	}
	url := testenv.Postgres(b)
	making, err := pgxpool.New(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer making.Close()
	if _, err := migrations.Up(b.Context(), making); err != nil {
		b.Fatal(err)
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		b.Fatal(err)
	}
	config.MaxConns = 1 // whose processor time is told
	pool, err := pgxpool.NewWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	now := time.Date(2026, 11, 22, 15, 37, 0, 0, time.UTC)
	began := time.Now()
	year(b, pool, now, keys)
	b.Logf("made in %s", time.Since(began).Round(time.Second))
	for _, table := range []string{"usage_v2", "usage_hours_v2", "usage_days_v2"} {
		var n, size int64
		if err := pool.QueryRow(b.Context(), `select count(*), pg_total_relation_size('keyledger.`+table+`') from keyledger.`+table).Scan(&n, &size); err != nil {
			b.Fatal(err)
		}
		b.Logf("%s: %d rows, %d MB", table, n, size>>20)
	}
	q := New(pool)
	for _, c := range []struct {
		name   string
		from   time.Time
		bucket string
	}{
		{"day-by-minutes", now.Add(-24 * time.Hour), "minute"},
		{"month-by-hours", now.AddDate(0, 0, -30), "hour"},
		{"year-by-days", now.AddDate(-1, 0, 0), "day"},
	} {
		b.Run(c.name+"/api", func(b *testing.B) {
			dashboards(b, pool, keys, func(key string) {
				f := UsageFilter{Key: key, From: events.At(c.from), To: events.At(now)}
				for _, panel := range []struct {
					bucket string
					by     []string
				}{{c.bucket, nil}, {c.bucket, []string{"status"}}, {"", nil}, {"", []string{"endpoint"}}} {
					list, err := q.Usage(b.Context(), f, panel.bucket, panel.by)
					if err != nil || len(list) == 0 {
						b.Fatal(len(list), err)
					}
				}
			})
		})
		b.Run(c.name+"/views", func(b *testing.B) {
			dashboards(b, pool, keys, func(key string) {
				for _, sql := range []string{
					`select BUCKET, sum(successes), sum(errors), sum(unknown), sum(denied), sum(rate_limited) from analytics.usage_BUCKET where key = $1 and BUCKET >= $2 group by 1 order by 1`,
					`select BUCKET, sum(errors)::float8 / nullif(sum(successes + errors), 0) from analytics.usage_BUCKET where key = $1 and BUCKET >= $2 group by 1 order by 1`,
					`select BUCKET, sum(latency_ms) / nullif(sum(measured), 0), analytics.percentile(0.50, analytics.add_up(histogram)), analytics.percentile(0.95, analytics.add_up(histogram)),
						analytics.percentile(0.99, analytics.add_up(histogram)) from analytics.usage_BUCKET where key = $1 and BUCKET >= $2 group by 1 order by 1`,
					`select endpoint, sum(requests), sum(cost_micros) from analytics.usage_BUCKET where key = $1 and BUCKET >= $2 group by 1 order by 2 desc`,
				} {
					tag, err := pool.Exec(b.Context(), strings.ReplaceAll(sql, "BUCKET", c.bucket), key, c.from)
					if err != nil || tag.RowsAffected() == 0 {
						b.Fatal(tag, err)
					}
				}
			})
		})
	}
}

func dashboards(b *testing.B, pool *pgxpool.Pool, keys int, show func(key string)) {
	var pid int
	if err := pool.QueryRow(b.Context(), `select pg_backend_pid()`).Scan(&pid); err != nil {
		b.Fatal(err)
	}
	used := processorTimeOf(b, pid)
	var took []time.Duration
	for b.Loop() {
		for range min(max(50, keys/20), 500) {
			key := fmt.Sprintf("key_%012d", rand.IntN(keys))
			began := time.Now()
			show(key)
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "most-ms")
	b.ReportMetric(float64((processorTimeOf(b, pid)-used).Microseconds())/1000/float64(len(took)), "postgres-ms")
	b.ReportMetric(0, "ns/op")
}

// year fills the tables up to now.
func year(b *testing.B, pool *pgxpool.Pool, now time.Time, keys int) {
	exec := func(sql string, args ...any) {
		b.Helper()
		if _, err := pool.Exec(b.Context(), sql, args...); err != nil {
			b.Fatalf("%s: %v", sql, err)
		}
	}
	var classes []string
	for i := range projections.ClassColumns() { // most between 25 and 150 ms
		classes = append(classes, map[int]string{8: "2", 9: "5", 10: "5", 11: "5", 15: "3"}[i])
		if classes[i] == "" {
			classes[i] = "0"
		}
	}
	exec(`insert into keyledger.usage_state_v2 (one, clock, folded, days_folded)
		select true, $1, f, date_trunc('hour', f, 'UTC') from (select $1::timestamptz - interval '2 minutes' as f) s`, now)
	for _, t := range []struct {
		table, at, every, only string
		days                   int
	}{
		{"usage_days_v2", "day", "1 day", "true", 365},
		{"usage_hours_v2", "hour", "1 hour", "(extract(hour from t at time zone 'UTC')::int + k) % 6 = 0", 30},
		{"usage_v2", "minute", "1 minute", "(extract(hour from t at time zone 'UTC')::int + k) % 6 = 0 and (extract(minute from t)::int + k) % 10 = 0", 4},
	} {
		exec(fmt.Sprintf(`drop index keyledger.%[1]s_%[2]s_idx; drop index keyledger.%[1]s_keyspace_owner_%[2]s_idx`, t.table, t.at))
		for d := t.days; d >= 0; d-- {
			exec(fmt.Sprintf(`insert into keyledger.%[1]s (%[2]s, keyspace, owner, key, code, status, environment, method, endpoint, requests, measured, latency_ms, cost_micros, %[3]s)
				select t, 'parcelbird', 'o' || k/10, 'key_' || lpad(k::text, 12, '0'), 'VALID', 200 + 204 * e, 'live', 'GET', '/v1/parcels/' || e, 20, 20, 1800, 140, %[4]s
				from generate_series($1::timestamptz, least($1::timestamptz + interval '1 day' - interval '%[5]s', $2), interval '%[5]s') t, generate_series(0, $3 - 1) k, generate_series(0, 1) e
				where %[6]s`, t.table, t.at, strings.Join(projections.ClassColumns(), ", "), strings.Join(classes, ", "), t.every, t.only), now.Truncate(24*time.Hour).AddDate(0, 0, -d), now, keys)
		}
		exec(fmt.Sprintf(`create index on keyledger.%[1]s (%[2]s); create index on keyledger.%[1]s (keyspace, owner, %[2]s)`, t.table, t.at))
		exec(`vacuum analyze keyledger.` + t.table)
	}
	exec(`checkpoint`) // what was written now is not what is measured
}
