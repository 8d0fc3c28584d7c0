package projections

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// BenchmarkFold is what a batch takes that adds a minute of KEYLEDGER_KEYS active keys,
// 100, with two rows each, to the hours: once a minute the projection does nothing else for
// so long. Over an hour and two minutes, so that one batch adds an hour to the days, too.
//
//	KEYLEDGER_KEYS=10000 go test -run '^$' -bench Fold -benchtime 1x ./projections
func BenchmarkFold(b *testing.B) {
	keys, err := strconv.Atoi(os.Getenv("KEYLEDGER_KEYS"))
	if err != nil {
		keys = 100
	}
	conn := connection(b, database(b))
	var took []time.Duration
	var cost time.Duration // processor time at the server
	pid := int(conn.PgConn().PID())
	n := uint64(0)
	for b.Loop() {
		for m := range 65 {
			at := start.Add(time.Duration(m) * time.Minute)
			if _, err := conn.Exec(b.Context(), `insert into usage_v2 (key, minute, keyspace, owner, code, status, environment, method, endpoint, requests, measured, latency_ms, cost_micros, `+strings.Join(classColumns, ", ")+`)
				select 'key_' || lpad(k::text, 36, '0'), $1, 'parcelbird', 'o' || k/10, 'VALID', 200, 'live', 'GET', '/v1/parcels/' || e, 240, 240, 24000, 0`+strings.Repeat(", 10", len(classColumns))+`
				from generate_series(1, $2) k, generate_series(0, 1) e`, at, keys); err != nil {
				b.Fatal(err)
			}
			n++
			batch := []events.Record{{Stream: events.Usage, Sequence: n, Event: use("key_a", at.Add(foldedAfter), new(200))}}
			began, used := time.Now(), backendUse(pid)
			if err := pgx.BeginFunc(b.Context(), conn, func(tx pgx.Tx) error { return (Usage{}).Apply(b.Context(), tx, batch) }); err != nil {
				b.Fatal(err)
			}
			if m > 0 { // the first has nothing to add up
				took, cost = append(took, time.Since(began)), cost+backendUse(pid)-used
			}
		}
		if _, err := conn.Exec(b.Context(), `truncate usage_v2, usage_hours_v2, usage_days_v2, usage_state_v2, last_used_v2, outcomes_v2`); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "most-ms")
	b.ReportMetric(float64(cost.Microseconds())/1000/float64(len(took)), "postgres-ms/fold")
	b.ReportMetric(0, "ns/op")
}
