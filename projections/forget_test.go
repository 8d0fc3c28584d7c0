package projections

import (
	"strings"
	"testing"
	"time"
)

// More rows than one step takes are removed in steps, hours and days keep what they were,
// and a second time there is nothing to do.
func TestForgetInSteps(t *testing.T) {
	l, pool := openLedger(t), database(t)
	r, stop := running(t, l, pool, Usage{})
	defer stop()
	if _, err := pool.Exec(t.Context(), `insert into keyledger.usage_v2 (key, minute, keyspace, owner, code, status, environment, method, endpoint, requests, measured, latency_ms, cost_micros, `+strings.Join(classColumns, ", ")+`)
		select 'key_' || k, $1::timestamptz + m * interval '1 minute', 'parcelbird', 'o1', 'VALID', 200, 'live', 'GET', '/', 1, 0, 0, 0`+strings.Repeat(", 0", len(classColumns))+`
		from generate_series(0, 119) m, generate_series(1, case when m = 7 then 25000 else 400 end) k`, start); err != nil {
		t.Fatal(err)
	}
	const all = 119*400 + 25_000
	sum := func(view string) int64 {
		return scan[int64](t, pool, `select coalesce(sum(requests), 0)::bigint from analytics.usage_`+view)
	}
	if n, err := r.Forget(t.Context(), Until{Minutes: start.Add(90*time.Minute + time.Second)}); err != nil || n != all-30*400 {
		t.Errorf("%d rows are removed, %v", n, err)
	}
	if m, h, d := sum("minute"), sum("hour"), sum("day"); m != 30*400 || h != all || d != all {
		t.Errorf("%d requests in minutes, %d in hours, %d in days", m, h, d)
	}
	if n, err := r.Forget(t.Context(), Until{Minutes: start.Add(80 * time.Minute), Hours: start.Add(-time.Hour)}); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	// Hours take what is finer with them.
	if _, err := r.Forget(t.Context(), Until{Hours: start.Add(100 * time.Minute)}); err != nil {
		t.Fatal(err)
	}
	left := int64(all - 25_000 - 59*400)
	if start.Truncate(time.Hour) != start {
		t.Fatal("this test begins with an hour")
	}
	if m, h, d := sum("minute"), sum("hour"), sum("day"); m != 30*400 || h != left || d != all {
		t.Errorf("%d requests in minutes, %d in hours, %d in days", m, h, d)
	}
}
