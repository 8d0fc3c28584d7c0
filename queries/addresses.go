package queries

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
)

// ByIP is the dimension that figures in PostgreSQL do not have: addresses are
// personal data and stay sealed in USAGE.
const ByIP = "ip"

// maxOpen bounds the uses that wait for their outcome while USAGE is read.
const maxOpen = 1_000_000

// Usage adds requests up as [Queries.Usage] does, by source IP too. It reads
// USAGE and opens every address in it, so its cost is that of the range, and
// whoever asks MUST be allowed to see addresses. Where none is known, was
// erased, or stands for refusals that were folded over callers, it is empty.
func (a *Audit) Usage(ctx context.Context, f UsageFilter, bucket string, by []string, o Opener) ([]UsageRow, error) {
	width, ok := map[string]time.Duration{"": 0, "minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour}[bucket]
	if !ok {
		return nil, invalid("bucket", fmt.Sprintf("%q is not a bucket", bucket), "one of minute, hour, day")
	}
	for _, name := range by {
		if name != ByIP && !isDimension(name) {
			return nil, notADimension(name)
		}
	}
	from, to := f.From, f.To
	if from != 0 {
		from = events.At(from.Time().Truncate(time.Minute))
	}
	if to != 0 {
		to = events.At(to.Time().Add(time.Minute - 1).Truncate(time.Minute))
	}
	t := &tally{width: width, by: by, rows: map[group]*sum{}, open: map[string]use{}, reports: map[string]events.KeyUseReported{}}
	kinds := []string{"key.used", "key.use_reported", "key.denied", "key.rate_limited", "credential.rejected"}
	for e, err := range a.All(ctx, AuditFilter{Keyspace: f.Keyspace, Owner: f.Owner, Key: f.Key, Types: kinds, From: from, To: to}, o) {
		if err != nil {
			return nil, fmt.Errorf("read usage: %w", err)
		}
		t.add(e)
		if len(t.rows) > maxUsageRows || len(t.open)+len(t.reports) > maxOpen {
			return nil, invalid("bucket", "this is too much to add up by address", "ask for a shorter time, a longer bucket or fewer groups")
		}
	}
	for _, u := range t.open {
		t.settle(u, 0, nil, u.cost)
	}
	return t.list(), nil
}

func isDimension(name string) bool {
	return slices.ContainsFunc(dimensions, func(d struct{ name, columns string }) bool { return d.name == name })
}

func notADimension(name string) error {
	return invalid("by", fmt.Sprintf("%q is not kept in the figures", name), "any of keyspace, owner, key, endpoint, status, code and ip")
}

// group is what one row stands for; what is not grouped by is empty.
type group struct {
	start                                        events.Time
	keyspace, owner, key, endpoint, method, code string
	ip                                           string
	status                                       int
}

type sum struct {
	row               UsageRow
	measured, latency int64
	classes           []int64
}

// use is an admitted request whose outcome has not been read yet.
type use struct {
	group
	cost int64
}

type tally struct {
	width   time.Duration
	by      []string
	rows    map[group]*sum
	open    map[string]use                   // by decision
	reports map[string]events.KeyUseReported // that came before their use
}

func (t *tally) add(e AuditEvent) {
	g := group{start: e.Event.Time, keyspace: e.Event.Keyspace, owner: e.Event.Owner, key: e.Event.Key, ip: e.SourceIP}
	refused := func(code string, fold events.Fold, endpoint string) {
		g.code, g.endpoint, g.start = code, endpoint, cmp.Or(fold.First, g.start)
		row := &t.sum(g).row
		row.Requests += fold.Count
		if code == string(domain.CodeRateLimited) {
			row.RateLimited += fold.Count
		} else {
			row.Denied += fold.Count
		}
	}
	switch d := e.Event.Data.(type) {
	case events.KeyUsed:
		g.code, g.endpoint, g.method = string(domain.CodeValid), d.Endpoint, d.Method
		u := use{g, d.CostMicros}
		if d.Status != nil {
			t.settle(u, *d.Status, d.LatencyMS, d.CostMicros)
			return
		}
		t.open[d.Decision] = u
		if r, ok := t.reports[d.Decision]; ok {
			t.reported(r)
		}
	case events.KeyUseReported:
		t.reported(d)
	case events.KeyDenied:
		refused(d.Code, d.Fold, d.Endpoint)
	case events.KeyRateLimited:
		refused(string(domain.CodeRateLimited), d.Fold, "")
	case events.CredentialRejected:
		refused(d.Code, d.Fold, "")
	}
}

func (t *tally) reported(r events.KeyUseReported) {
	u, ok := t.open[r.Decision]
	if !ok {
		t.reports[r.Decision] = r
		return
	}
	delete(t.open, r.Decision)
	delete(t.reports, r.Decision)
	if r.CostMicros != nil {
		u.cost = *r.CostMicros
	}
	u.endpoint = cmp.Or(r.Endpoint, u.endpoint)
	t.settle(u, r.Status, &r.LatencyMS, u.cost)
}

// settle counts a use whose outcome is known; status 0: it is not.
func (t *tally) settle(u use, status int, latency *int64, cost int64) {
	u.status = status
	s := t.sum(u.group)
	s.row.Requests++
	s.row.CostMicros += cost
	switch {
	case status == 0:
		s.row.Unknown++
	case status < 400:
		s.row.Successes++
	default:
		s.row.Errors++
	}
	if latency != nil {
		ms := max(*latency, 0)
		s.measured++
		s.latency += ms
		class, _ := slices.BinarySearch(projections.Bounds[:], ms)
		s.classes[class]++
	}
}

// sum is the row of what g has of the dimensions that are asked for.
func (t *tally) sum(g group) *sum {
	var k group
	if t.width > 0 {
		k.start = events.At(g.start.Time().Truncate(t.width))
	}
	row := UsageRow{Time: k.start}
	for _, name := range t.by {
		switch name {
		case "keyspace":
			k.keyspace, row.Keyspace = g.keyspace, &g.keyspace
		case "owner":
			k.owner, row.Owner = g.owner, &g.owner
		case "key":
			k.key, row.Key = g.key, &g.key
		case "endpoint":
			k.endpoint, row.Endpoint, k.method, row.Method = g.endpoint, &g.endpoint, g.method, &g.method
		case "status":
			k.status, row.Status = g.status, &g.status
		case "code":
			k.code, row.Code = g.code, &g.code
		case ByIP:
			k.ip, row.IP = g.ip, &g.ip
		}
	}
	s := t.rows[k]
	if s == nil {
		s = &sum{row: row, classes: make([]int64, len(projections.Bounds)+1)}
		t.rows[k] = s
	}
	return s
}

func (t *tally) list() []UsageRow {
	keys := make([]group, 0, len(t.rows))
	for k := range t.rows {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b group) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(t.rows[b].row.Requests, t.rows[a].row.Requests),
			strings.Compare(a.ip, b.ip), strings.Compare(a.keyspace, b.keyspace), strings.Compare(a.owner, b.owner), strings.Compare(a.key, b.key),
			strings.Compare(a.endpoint, b.endpoint), strings.Compare(a.method, b.method), strings.Compare(a.code, b.code), cmp.Compare(a.status, b.status))
	})
	rows := make([]UsageRow, 0, len(keys))
	for _, k := range keys {
		s := t.rows[k]
		if s.measured > 0 {
			s.row.AverageMS = new(float64(s.latency) / float64(s.measured))
			s.row.P50MS, s.row.P95MS, s.row.P99MS = percentile(0.50, s.classes), percentile(0.95, s.classes), percentile(0.99, s.classes)
		}
		rows = append(rows, s.row)
	}
	return rows
}
