package queries

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
)

// UsageFilter says which requests; empty fields do not filter.
type UsageFilter struct {
	Keyspace string
	Owner    string
	Key      string
	Keys     []string    // any of these; nil: no matter
	From     events.Time // of a request, inclusive; cut to the minute
	To       events.Time // exclusive; cut up to the minute
}

// UsageRow are the figures of one bucket and group. What is not grouped by is
// null.
type UsageRow struct {
	Time     events.Time `json:"time"` // start of the bucket; null: the whole range
	Keyspace *string     `json:"keyspace,omitempty"`
	Owner    *string     `json:"owner,omitempty"`
	Key      *string     `json:"key,omitempty"`
	Endpoint *string     `json:"endpoint,omitempty"`
	Method   *string     `json:"method,omitempty"` // with endpoint
	Status   *int        `json:"status,omitempty"` // 0: not known, or refused
	Code     *string     `json:"code,omitempty"`
	IP       *string     `json:"ip,omitempty"` // see [Audit.Usage]; empty: not known, folded or erased

	Requests    int64    `json:"requests"`     // refused ones included
	Successes   int64    `json:"successes"`    // admitted, answered below 400
	Errors      int64    `json:"errors"`       // admitted, answered with 400 or above
	Unknown     int64    `json:"unknown"`      // admitted, outcome not reported (yet)
	Denied      int64    `json:"denied"`       // refused for another reason than a limit
	RateLimited int64    `json:"rate_limited"` // refused by a limit
	AverageMS   *float64 `json:"average_ms"`   // latency; null: none was measured
	P50MS       *float64 `json:"p50_ms"`       // estimated from classes, see projections.Bounds
	P95MS       *float64 `json:"p95_ms"`
	P99MS       *float64 `json:"p99_ms"`
	CostMicros  int64    `json:"cost_micros"`
}

// minutes is the time in whole minutes: from is cut, to is cut up.
func (f *UsageFilter) minutes() (from, to time.Time, err error) {
	from, to = beginning, end
	if f.From != 0 {
		from = f.From.Time().Truncate(time.Minute)
	}
	if f.To != 0 {
		to = f.To.Time().Add(time.Minute - 1).Truncate(time.Minute)
	}
	if f.To != 0 && f.To < f.From {
		return from, to, invalid("to", "is before from", "send a later to, or an earlier from")
	}
	return from, to, nil
}

func notABucket(bucket string) error {
	return invalid("bucket", fmt.Sprintf("%q is not a bucket", bucket), "one of minute, hour, day")
}

// maxUsageRows bounds an answer; whoever needs more reads the views.
const maxUsageRows = 10_000

// The dimensions that usage can be grouped by, with their columns.
var dimensions = []struct{ name, columns string }{
	{"keyspace", "keyspace"},
	{"owner", "owner"},
	{"key", "key"},
	{"endpoint", "endpoint, method"},
	{"status", "status"},
	{"code", "code"},
}

// Usage adds requests up per bucket (minute, hour, day, or empty: the whole
// range) and by any of keyspace, owner, key, endpoint, status and code, in time order,
// the busiest groups first within a bucket. It reads days, hours and minutes, whichever
// are the fewest rows that answer exactly; so an answer costs what it shows. It refuses
// what makes no sense, and more than 10,000 rows, with a [*domain.Refusal].
func (q *Queries) Usage(ctx context.Context, f UsageFilter, bucket string, by []string) ([]UsageRow, error) {
	rows, _, err := q.UsageKept(ctx, f, bucket, by)
	return rows, err
}

// UsageKept is [Queries.Usage], and says from when on each resolution is kept. Buckets
// of a resolution that is not kept any more are missing.
func (q *Queries) UsageKept(ctx context.Context, f UsageFilter, bucket string, by []string) ([]UsageRow, Kept, error) {
	start := "null::timestamptz"
	switch bucket {
	case "":
	case "minute":
		start = "at"
	case "hour", "day":
		start = "date_trunc('" + bucket + "', at, 'UTC')"
	default:
		return nil, Kept{}, notABucket(bucket)
	}
	selected := []string{start + " as bucket"}
	grouped := []string{"bucket"}
	for _, d := range dimensions {
		if slices.Contains(by, d.name) {
			selected, grouped = append(selected, d.columns), append(grouped, d.columns)
		}
	}
	for _, name := range by {
		if !isDimension(name) {
			return nil, Kept{}, notADimension(name)
		}
	}
	from, to, err := f.minutes()
	if err != nil {
		return nil, Kept{}, err
	}
	var c conditions
	c.sql = append(c.sql, "requests <> 0")
	for column, value := range map[string]string{"keyspace": f.Keyspace, "owner": f.Owner, "key": f.Key} {
		if value != "" {
			c.add(column+" = ?", value)
		}
	}
	if f.Keys != nil {
		c.add("key = any(?)", f.Keys)
	}
	// Minutes, hours and days must be those of one moment.
	tx, err := q.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, Kept{}, fmt.Errorf("read usage: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	r, err := readRollups(ctx, tx)
	if err != nil {
		return nil, Kept{}, fmt.Errorf("read usage: %w", err)
	}
	var parts []string
	for _, s := range r.spans(bucket, from, to) {
		parts = append(parts, s.sql(&c))
	}
	if len(parts) == 0 {
		return []UsageRow{}, r.kept, nil
	}
	rows, err := tx.Query(ctx, `select `+strings.Join(selected, ", ")+`,
			sum(requests)::bigint as requests,
			coalesce(sum(requests) filter (where code = 'VALID' and status between 1 and 399), 0)::bigint as successes,
			coalesce(sum(requests) filter (where code = 'VALID' and status >= 400), 0)::bigint as errors,
			coalesce(sum(requests) filter (where code = 'VALID' and status = 0), 0)::bigint as unknown,
			coalesce(sum(requests) filter (where code not in ('VALID', 'RATE_LIMITED')), 0)::bigint as denied,
			coalesce(sum(requests) filter (where code = 'RATE_LIMITED'), 0)::bigint as rate_limited,
			sum(measured)::bigint as measured, sum(latency_ms)::bigint as latency_ms, sum(cost_micros)::bigint as cost_micros,
			array[sum(`+strings.Join(projections.ClassColumns(), "), sum(")+`)]::bigint[] as classes
		from (`+strings.Join(parts, " union all ")+`) u
		group by `+strings.Join(grouped, ", ")+` having sum(requests) <> 0
		order by bucket, sum(requests) desc, `+strings.Join(grouped, ", ")+fmt.Sprintf(` limit %d`, maxUsageRows+1), c.args...)
	if err != nil {
		return nil, Kept{}, fmt.Errorf("read usage: %w", err)
	}
	type found struct {
		Bucket                                                    *time.Time
		Keyspace, Owner, Key, Endpoint, Method, Code              *string
		Status                                                    *int16
		Requests, Successes, Errors, Unknown, Denied, RateLimited int64
		Measured, LatencyMs, CostMicros                           int64
		Classes                                                   []int64
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByNameLax[found])
	if err != nil {
		return nil, Kept{}, fmt.Errorf("read usage: %w", err)
	}
	if len(list) > maxUsageRows {
		return nil, Kept{}, invalid("bucket", fmt.Sprintf("this would answer more than %d rows", maxUsageRows), "ask for a shorter time, a longer bucket or fewer groups")
	}
	out := make([]UsageRow, 0, len(list))
	for _, r := range list {
		row := UsageRow{
			Time: moment(r.Bucket), Keyspace: r.Keyspace, Owner: r.Owner, Key: r.Key, Endpoint: r.Endpoint, Method: r.Method, Code: r.Code,
			Requests: r.Requests, Successes: r.Successes, Errors: r.Errors, Unknown: r.Unknown, Denied: r.Denied, RateLimited: r.RateLimited,
			CostMicros: r.CostMicros,
		}
		if r.Status != nil {
			row.Status = new(int(*r.Status))
		}
		if r.Measured > 0 {
			row.AverageMS = new(float64(r.LatencyMs) / float64(r.Measured))
			row.P50MS, row.P95MS, row.P99MS = percentile(0.50, r.Classes), percentile(0.95, r.Classes), percentile(0.99, r.Classes)
		}
		out = append(out, row)
	}
	return out, r.kept, nil
}

// percentile estimates as analytics.percentile does: within a class latencies
// are taken as spread evenly, and the last class as one value.
func percentile(p float64, classes []int64) *float64 {
	var total int64
	for _, n := range classes {
		total += n
	}
	if total == 0 {
		return nil
	}
	var low, upto float64
	for i, n := range classes {
		high := float64(projections.Bounds[min(i, len(projections.Bounds)-1)])
		upto += float64(n)
		if n > 0 && upto >= p*float64(total) {
			return new(low + (high-low)*(p*float64(total)-(upto-float64(n)))/float64(n))
		}
		low = high
	}
	return new(low)
}
