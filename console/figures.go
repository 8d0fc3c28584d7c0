package console

import (
	"fmt"
	"html/template"
	"math"
	"net/url"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/console/chart"
)

// span is a stretch of time that figures are shown of.
type span struct {
	Name   string
	Word   string // as it is chosen
	Words  string // in a sentence: requests in …
	Length time.Duration
	Bucket string
	Step   time.Duration
	Here   bool
}

var spans = []span{
	{"1h", "1 h", "the last hour", time.Hour, "minute", time.Minute, false},
	{"24h", "24 h", "the last 24 hours", 24 * time.Hour, "hour", time.Hour, false},
	{"7d", "7 d", "the last 7 days", 7 * 24 * time.Hour, "hour", time.Hour, false},
	{"30d", "30 d", "the last 30 days", 30 * 24 * time.Hour, "day", 24 * time.Hour, false},
	{"1y", "1 year", "the last 52 weeks", 52 * week, "day", 24 * time.Hour, false},
}

const week = 7 * 24 * time.Hour

// span is the one that the address names, or the last day.
func (v *visit) span() (span, []span) {
	all, at := slices.Clone(spans), 1
	for i, s := range all {
		if s.Name == v.r.URL.Query().Get("span") {
			at = i
		}
	}
	all[at].Here = true
	return all[at], all
}

// from is when a span begins that ends now: with a whole bucket.
func (v *visit) from(s span) (from, to time.Time) {
	to = v.Now().UTC().Truncate(s.Step).Add(s.Step)
	return to.Add(-s.Length), to
}

// usage asks for the figures of a span, by the filter's keyspace, owner or key: one row
// for each bucket, nil where nothing was recorded.
func (v *visit) usage(s span, filter url.Values) (buckets []time.Time, rows []*api.Usage, err error) {
	from, to := v.from(s)
	ask := url.Values{"bucket": {s.Bucket}, "from": {from.Format(time.RFC3339)}, "to": {to.Format(time.RFC3339)}}
	for name, value := range filter {
		ask[name] = value
	}
	var list api.UsageList
	if err := v.get("/v1/analytics/usage", ask, &list); err != nil {
		return nil, nil, err
	}
	n := int(s.Length / s.Step)
	rows = make([]*api.Usage, n)
	for i := range n {
		buckets = append(buckets, from.Add(time.Duration(i)*s.Step))
	}
	for _, u := range list.Usage {
		if i := int(u.Time.Time().Sub(from) / s.Step); i >= 0 && i < n {
			rows[i] = &u
		}
	}
	return buckets, rows, nil
}

// weeks adds days up, for charts whose days would be too narrow to be seen. Latencies do
// not add up and are left out.
func weeks(s span, at []time.Time, rows []*api.Usage) (span, []time.Time, []*api.Usage) {
	if s.Length < 100*24*time.Hour {
		return s, at, rows
	}
	s.Step = week
	var begins []time.Time
	var sums []*api.Usage
	for i := range rows {
		if i%7 == 0 {
			begins, sums = append(begins, at[i]), append(sums, nil)
		}
		u := rows[i]
		if u == nil {
			continue
		}
		if sums[len(sums)-1] == nil {
			sums[len(sums)-1] = &api.Usage{}
		}
		w := sums[len(sums)-1]
		w.Requests += u.Requests
		w.Successes += u.Successes
		w.Errors += u.Errors
		w.Unknown += u.Unknown
		w.Denied += u.Denied
		w.RateLimited += u.RateLimited
		w.CostMicros += u.CostMicros
	}
	return s, begins, sums
}

func series(name, class string, rows []*api.Usage, value func(*api.Usage) float64) chart.Series {
	s := chart.Series{Name: name, Class: class}
	for _, u := range rows {
		if u == nil {
			s.Values = append(s.Values, math.NaN())
		} else {
			s.Values = append(s.Values, value(u))
		}
	}
	return s
}

// outcomes are requests over time, by how they ended.
func outcomes(title string, s span, at []time.Time, rows []*api.Usage) template.HTML {
	s, at, rows = weeks(s, at, rows)
	c := chart.Chart{Title: title, Times: at, Step: s.Step, Empty: "No requests in " + s.Words + ".", Series: []chart.Series{
		series("succeeded", "success", rows, func(u *api.Usage) float64 { return float64(u.Successes) }),
		series("failed", "error", rows, func(u *api.Usage) float64 { return float64(u.Errors) }),
		series("rate limited", "limited", rows, func(u *api.Usage) float64 { return float64(u.RateLimited) }),
		series("denied", "denied", rows, func(u *api.Usage) float64 { return float64(u.Denied) }),
	}}
	// Most keyspaces know how every request ended.
	if slices.ContainsFunc(rows, func(u *api.Usage) bool { return u != nil && u.Unknown > 0 }) {
		c.Series = slices.Insert(c.Series, 1, series("outcome not known", "unknown", rows, func(u *api.Usage) float64 { return float64(u.Unknown) }))
	}
	return chart.Bars(c)
}

// rateLines are the shares of requests, of those whose outcome is known.
func rateLines(s span, at []time.Time, rows []*api.Usage) template.HTML {
	s, at, rows = weeks(s, at, rows)
	share := func(part func(*api.Usage) int64) func(*api.Usage) float64 {
		return func(u *api.Usage) float64 {
			if known := u.Requests - u.Unknown; known > 0 {
				return 100 * float64(part(u)) / float64(known)
			}
			return math.NaN()
		}
	}
	return chart.Lines(chart.Chart{Title: "Success and error rates", Unit: "%", Whole: 100, Times: at, Step: s.Step,
		Empty: "No request whose outcome is known in " + s.Words + ".", Series: []chart.Series{
			series("succeeded", "success", rows, share(func(u *api.Usage) int64 { return u.Successes })),
			series("failed", "error", rows, share(func(u *api.Usage) int64 { return u.Errors })),
			series("refused", "denied", rows, share(func(u *api.Usage) int64 { return u.Denied + u.RateLimited })),
		}})
}

func latencies(s span, at []time.Time, rows []*api.Usage) template.HTML {
	ms := func(f func(*api.Usage) *float64) func(*api.Usage) float64 {
		return func(u *api.Usage) float64 {
			if x := f(u); x != nil {
				return *x
			}
			return math.NaN()
		}
	}
	return chart.Lines(chart.Chart{Title: "Latency", Unit: "ms", Times: at, Step: s.Step, Empty: "No latency was measured in " + s.Words + ".", Series: []chart.Series{
		series("average", "average", rows, ms(func(u *api.Usage) *float64 { return u.AverageMS })),
		series("p50", "p50", rows, ms(func(u *api.Usage) *float64 { return u.P50MS })),
		series("p95", "p95", rows, ms(func(u *api.Usage) *float64 { return u.P95MS })),
		series("p99", "p99", rows, ms(func(u *api.Usage) *float64 { return u.P99MS })),
	}})
}

// costs are drawn where there are any.
func costs(s span, at []time.Time, rows []*api.Usage) template.HTML {
	if !slices.ContainsFunc(rows, func(u *api.Usage) bool { return u != nil && u.CostMicros != 0 }) {
		return ""
	}
	s, at, rows = weeks(s, at, rows)
	return chart.Bars(chart.Chart{Title: "Cost", Fractions: true, Times: at, Step: s.Step, Series: []chart.Series{
		series("cost", "cost", rows, func(u *api.Usage) float64 { return float64(u.CostMicros) / 1e6 }),
	}})
}

// rate is a share in words; empty where it is of nothing.
func rate(part, whole int64) string {
	if whole <= 0 {
		return ""
	}
	switch share := 100 * float64(part) / float64(whole); {
	case part == whole:
		return "100 %"
	case share > 99.9:
		return "> 99.9 %"
	case part > 0 && share < 0.1:
		return "< 0.1 %"
	case share >= 10:
		return fmt.Sprintf("%.1f %%", share)
	default:
		return fmt.Sprintf("%.2g %%", share)
	}
}

// together asks for several things at once, and answers the first of their errors, in
// the order given.
func together(asks ...func() error) error {
	errs := make([]error, len(asks))
	var wg sync.WaitGroup
	for i, ask := range asks {
		wg.Go(func() {
			// A panic here would end the program and not the page.
			defer func() {
				if cause := recover(); cause != nil {
					errs[i] = fmt.Errorf("panic: %v\n%s", cause, debug.Stack())
				}
			}()
			errs[i] = ask()
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
