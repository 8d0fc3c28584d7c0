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
//
// Outcomes that are reported later are looked for as long as they count, a day after
// the range, when uses of it have none; those whose clock says that they came more
// than five minutes before the range are not found. Nor are refusals that were
// written down more than a minute after it.
func (a *Audit) Usage(ctx context.Context, f UsageFilter, bucket string, by []string, o Opener) ([]UsageRow, error) {
	width, ok := map[string]time.Duration{"": 0, "minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour}[bucket]
	if !ok {
		return nil, notABucket(bucket)
	}
	for _, name := range by {
		if name != ByIP && !isDimension(name) {
			return nil, notADimension(name)
		}
	}
	from, to, err := f.minutes()
	if err != nil {
		return nil, err
	}
	t := &tally{width: width, by: by, from: from, to: to, rows: map[group]*sum{}, uses: map[string]*use{}, reports: map[string]report{}}
	read := func(from, to time.Time, kinds ...string) error {
		all := AuditFilter{Keyspace: f.Keyspace, Owner: f.Owner, Key: f.Key, Types: kinds, From: events.At(from)}
		if to.Before(end) {
			all.To = events.At(to)
		}
		for e, err := range a.All(ctx, all, o) {
			if err != nil {
				return fmt.Errorf("read usage: %w", err)
			}
			t.add(e)
			if len(t.rows) > maxUsageRows || len(t.uses)+len(t.reports) > maxOpen {
				return invalid("bucket", "this is too much to add up by address", "ask for a shorter time, a longer bucket or fewer groups")
			}
		}
		return nil
	}
	early, late := from, to
	if from.After(beginning) {
		early = from.Add(-clockSkew)
	}
	if to.Before(end) {
		late = to.Add(time.Minute)
	}
	if err := read(early, late, "key.used", "key.use_reported", "key.denied", "key.rate_limited", "credential.rejected"); err != nil {
		return nil, err
	}
	if t.open > 0 && late.Before(end) && late.Before(time.Now()) {
		if err := read(late, to.Add(projections.OutcomeWindow), "key.use_reported"); err != nil {
			return nil, err
		}
	}
	for _, u := range t.uses {
		if !u.settled {
			t.count(u, 0, nil, u.cost)
		}
	}
	if len(t.rows) > maxUsageRows {
		return nil, invalid("bucket", "this is too much to add up by address", "ask for a shorter time, a longer bucket or fewer groups")
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

// use is an admitted request whose outcome was not known when it was decided.
type use struct {
	group
	cost    int64
	settled bool
}

type report struct {
	events.KeyUseReported
	at events.Time
}

// tally counts as projections.Usage does.
type tally struct {
	width    time.Duration
	by       []string
	from, to time.Time
	rows     map[group]*sum
	uses     map[string]*use   // by decision
	reports  map[string]report // the first of each decision
	open     int               // uses that are not settled
}

// within says whether a fact of that time is counted.
func (t *tally) within(at events.Time) bool {
	when := at.Time()
	return !when.Before(t.from) && when.Before(t.to)
}

func (t *tally) add(e AuditEvent) {
	g := group{start: e.Event.Time, keyspace: e.Event.Keyspace, owner: e.Event.Owner, key: e.Event.Key, ip: e.SourceIP}
	refused := func(code string, fold events.Fold, endpoint string) {
		g.code, g.endpoint, g.start = code, projections.KeptEndpoint(endpoint), cmp.Or(fold.First, g.start)
		if !t.within(g.start) {
			return
		}
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
		if !t.within(g.start) {
			return
		}
		g.code, g.endpoint, g.method = string(domain.CodeValid), projections.KeptEndpoint(d.Endpoint), projections.KeptMethod(d.Method)
		u := &use{group: g, cost: d.CostMicros}
		if d.Status != nil {
			t.count(u, *d.Status, d.LatencyMS, d.CostMicros)
			return
		}
		if t.uses[d.Decision] != nil {
			return // recorded before
		}
		t.uses[d.Decision] = u
		t.open++
		t.settle(d.Decision)
	case events.KeyUseReported:
		if _, said := t.reports[d.Decision]; said {
			return
		}
		t.reports[d.Decision] = report{d, e.Event.Time}
		t.settle(d.Decision)
	case events.KeyDenied:
		refused(d.Code, d.Fold, d.Endpoint)
	case events.KeyRateLimited:
		refused(string(domain.CodeRateLimited), d.Fold, "")
	case events.CredentialRejected:
		refused(d.Code, d.Fold, "")
	}
}

// settle counts a use with its outcome when both are there.
func (t *tally) settle(decision string) {
	u, r := t.uses[decision], t.reports[decision]
	if u == nil || u.settled || r.at == 0 || r.at.Time().Sub(u.start.Time()) > projections.OutcomeWindow {
		return
	}
	u.settled = true
	t.open--
	cost := u.cost
	if r.CostMicros != nil {
		cost = *r.CostMicros
	}
	to := *u
	if r.Endpoint != "" {
		to.endpoint = projections.KeptEndpoint(r.Endpoint)
	}
	t.count(&to, r.Status, &r.LatencyMS, cost)
}

// count counts a use; status 0: it is not known.
func (t *tally) count(u *use, status int, latency *int64, cost int64) {
	g := u.group
	g.status = projections.KeptStatus(status)
	status = g.status
	s := t.sum(g)
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
