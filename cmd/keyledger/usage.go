package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

func (a *app) usageCommand() *cobra.Command {
	var x usageAsked
	var asCSV, table, plot, follow bool
	cmd := &cobra.Command{
		Use: "usage", Short: "Show what was done with keys, in figures and plots", Args: takes(),
		Long: `Show what was done with keys. On a terminal: requests and latency over time, and
the busiest endpoints, statuses and keys, or what --by names. Elsewhere, and with
--table, --csv or --json: the figures, a line for each bucket and group.

Times below the plots are UTC. Grouping by ip reads the log itself, is for operators
and auditors, and is recorded.`,
		Example: `  keyledger usage --keyspace parcelbird --since 7d
  keyledger usage --keyspace parcelbird --by ip --since 1h
  keyledger usage --keyspace parcelbird --since 24h --bucket hour --csv`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			since := x.from
			var err error
			if x.from, err = a.past("--since", cmp.Or(since, "24h")); err != nil {
				return err
			}
			if x.to, err = a.past("--to", x.to); err != nil {
				return err
			}
			plots := plot || a.tty && !table && !asCSV && !a.asJSON
			switch {
			case asCSV && a.asJSON, plot && (asCSV || a.asJSON || table):
				return usageError("--plot, --table, --csv and --json are different ways to print the same: give one of them")
			case follow && (!a.tty || !plots):
				return usageError("--follow draws the same plots again and again, which needs a terminal; elsewhere `keyledger audit tail` tells what happens")
			case follow:
				return a.followUsage(cmd, x, cmp.Or(since, "24h"))
			case plots:
				drawn, err := a.drawUsage(cmd, x)
				if err != nil {
					return err
				}
				_, err = io.WriteString(a.stdout, drawn)
				return err
			}
			if since == "" { // the API's own default, so that its answer is the same as without this program
				x.from = ""
			}
			members, body, err := a.figures(cmd, x, x.bucket, x.by)
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(body)
			case asCSV:
				return a.printCSV(members)
			}
			return a.printFigures(members)
		},
	}
	f := cmd.Flags()
	f.StringVar(&x.keyspace, "keyspace", "", "of this keyspace")
	f.StringVar(&x.owner, "owner", "", "of this owner")
	f.StringVar(&x.key, "key", "", "of this key id")
	f.StringVar(&x.from, "since", "", "not before this time, date or distance (24h); also --from")
	f.StringVar(&x.to, "to", "", "before this time, date or distance")
	f.StringVar(&x.bucket, "bucket", "", "minute, hour or day")
	f.StringVar(&x.by, "by", "", "endpoint, status, code, key, owner or ip; several with commas")
	f.IntVar(&x.top, "top", 10, "so many rows of each group in the plots")
	f.BoolVar(&table, "table", false, "a table of the figures instead of plots")
	f.BoolVar(&plot, "plot", false, "plots where there is no terminal too, 80 columns wide or as COLUMNS says")
	f.BoolVar(&asCSV, "csv", false, "comma-separated values with a heading")
	f.BoolVar(&follow, "follow", false, "draw again every two seconds until Ctrl-C")
	also(cmd, "from", "since")
	_ = cmd.RegisterFlagCompletionFunc("bucket", cobra.FixedCompletions([]string{"minute", "hour", "day"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions([]string{"endpoint", "status", "code", "key", "owner", "ip"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

// usageAsked is what was asked for.
type usageAsked struct {
	keyspace, owner, key, from, to, bucket, by string
	top                                        int
}

func (a *app) figures(cmd *cobra.Command, x usageAsked, bucket, by string) (members []json.RawMessage, body []byte, err error) {
	q := set(url.Values{}, "keyspace", x.keyspace, "owner", x.owner, "key", x.key, "from", x.from, "to", x.to, "bucket", bucket, "by", by)
	members, _, body, err = a.pages(cmd, path("analytics", "usage"), "usage", "cursor", q, nil, true)
	return members, body, err
}

// usageFigures is one row of figures, as the API answers it.
type usageFigures struct {
	Time                                       events.Time
	Keyspace, Owner, Key, Endpoint, Method, IP *string
	Code                                       *string
	Status                                     *int
	Requests, Successes, Errors, Unknown       int64
	Denied                                     int64
	RateLimited                                int64    `json:"rate_limited"`
	AverageMS                                  *float64 `json:"average_ms"`
	P50MS                                      *float64 `json:"p50_ms"`
	P95MS                                      *float64 `json:"p95_ms"`
	P99MS                                      *float64 `json:"p99_ms"`
	CostMicros                                 int64    `json:"cost_micros"`
}

func (c *usageFigures) parts() []int64 {
	return []int64{c.Successes, c.Unknown, c.Errors, c.RateLimited, c.Denied}
}

func (a *app) count(cmd *cobra.Command, x usageAsked, bucket, by string) ([]usageFigures, error) {
	members, _, err := a.figures(cmd, x, bucket, by)
	if err != nil {
		return nil, err
	}
	return decodeAll[usageFigures](members)
}

// widths of a plot's buckets.
var bucketWidth = map[string]time.Duration{"minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour}

// drawUsage asks for what the plots need and draws them.
func (a *app) drawUsage(cmd *cobra.Command, x usageAsked) (string, error) {
	from, err := time.Parse(time.RFC3339, x.from)
	if err != nil {
		return "", err
	}
	to := a.now()
	if x.to != "" {
		if to, err = time.Parse(time.RFC3339, x.to); err != nil {
			return "", err
		}
	}
	bucket := x.bucket
	if bucket == "" {
		switch length := to.Sub(from); {
		case length <= 6*time.Hour:
			bucket = "minute"
		case length <= 14*24*time.Hour:
			bucket = "hour"
		default:
			bucket = "day"
		}
	}
	width, ok := bucketWidth[bucket]
	if !ok {
		return "", usageError("--bucket: write minute, hour or day")
	}
	p := plotter{width: a.width, color: a.color}
	if p.width == 0 {
		p.width = columnsOf(80)
	}
	total, err := a.count(cmd, x, "", "")
	if err != nil {
		return "", err
	}
	over, err := a.count(cmd, x, bucket, "")
	if err != nil {
		return "", err
	}
	groups := []string{"endpoint", "status", "key"}
	if x.by != "" {
		groups = strings.Split(x.by, ",")
	} else if x.key != "" {
		groups = []string{"endpoint", "status", "code"}
	}
	var b strings.Builder
	p.heading(&b, x, from, to, total)
	if len(over) == 0 {
		return b.String() + "No requests in this time.\n", nil
	}
	p.overTime(&b, over, from, to, width)
	for _, by := range groups {
		rows, err := a.count(cmd, x, "", by)
		if err != nil {
			return "", err
		}
		if by == "key" {
			a.nameKeys(cmd, rows[:min(len(rows), max(x.top, 1))])
		}
		b.WriteByte('\n')
		p.group(&b, by, rows, x.top)
	}
	return b.String(), nil
}

// nameKeys puts names before ids. A key that is not to be had stays an id.
func (a *app) nameKeys(cmd *cobra.Command, rows []usageFigures) {
	for i := range rows {
		if rows[i].Key == nil || *rows[i].Key == "" {
			continue
		}
		r, err := a.get(cmd, path("keys", *rows[i].Key), nil, nil)
		var k struct{ Name string }
		if err == nil && r.decode(&k) == nil && k.Name != "" {
			rows[i].Key = new(k.Name + " " + *rows[i].Key)
		}
	}
}

// heading says in words what the plots show.
func (p plotter) heading(b *strings.Builder, x usageAsked, from, to time.Time, total []usageFigures) {
	of := cmp.Or(x.key, strings.Join(slices.DeleteFunc([]string{x.keyspace, x.owner}, func(s string) bool { return s == "" }), "/"), "all keyspaces")
	of = clean(of)
	when := from.UTC().Format("2006-01-02 15:04") + " to " + to.UTC().Format("2006-01-02 15:04") + " UTC"
	if len(of)+2+len(when) <= p.width {
		fmt.Fprintf(b, "%s, %s\n", p.paint(1, of), when)
	} else {
		fmt.Fprintf(b, "%s\n%s\n", p.paint(1, of), when)
	}
	if len(total) == 0 {
		return
	}
	t := total[0]
	words := []string{fmt.Sprintf("%d requests", t.Requests)}
	if known := t.Successes + t.Errors; known > 0 {
		words = append(words, share(t.Successes, known)+" of the admitted ok")
	}
	if t.RateLimited > 0 {
		words = append(words, share(t.RateLimited, t.Requests)+" limited")
	}
	if t.Denied > 0 {
		words = append(words, share(t.Denied, t.Requests)+" denied")
	}
	if t.P95MS != nil {
		words = append(words, fmt.Sprintf("p50 %s, p95 %s, p99 %s ms", inShort(*t.P50MS), inShort(*t.P95MS), inShort(*t.P99MS)))
	}
	if t.CostMicros != 0 {
		words = append(words, fmt.Sprintf("cost %.2f", float64(t.CostMicros)/1e6))
	}
	p.wrapped(b, words)
	b.WriteByte('\n')
}

// share is a part of a whole in percent, never 0 % or 100 % where that is not true.
func share(part, whole int64) string {
	percent := 100 * float64(part) / float64(whole)
	switch {
	case part == 0 || part == whole:
		return fmt.Sprintf("%.0f %%", percent)
	case percent < 0.1:
		return "<0.1 %"
	case percent > 99.9:
		return ">99.9 %"
	}
	return fmt.Sprintf("%.1f %%", percent)
}

// overTime draws requests, and latency where any was measured. Buckets that nothing
// happened in are not answered, and drawn as empty.
func (p plotter) overTime(b *strings.Builder, rows []usageFigures, from, to time.Time, each time.Duration) {
	begin := from.UTC().Truncate(each)
	if first := rows[0].Time.Time(); first.Before(begin) {
		begin = first
	}
	n := max(int((to.Sub(begin)+each-1)/each), 1)
	stacks := make([][]int64, n)
	lines := []line{{layer: layer{"p99 ms", 31, '*'}}, {layer: layer{"p95 ms", 33, '+'}}, {layer: layer{"p50 ms", 32, '.'}}}
	for i := range lines {
		lines[i].values = slices.Repeat([]float64{math.NaN()}, n)
	}
	measured := false
	for _, r := range rows {
		at := int(r.Time.Time().Sub(begin) / each)
		if at < 0 || at >= n {
			continue
		}
		stacks[at] = r.parts()
		for i, v := range []*float64{r.P99MS, r.P95MS, r.P50MS} {
			if v != nil {
				lines[i].values[at], measured = *v, true
			}
		}
	}
	for i := range stacks {
		if stacks[i] == nil {
			stacks[i] = make([]int64, len(outcomes))
		}
	}
	p.stacks(b, "Requests", outcomes, stacks, begin, each)
	if measured {
		b.WriteByte('\n')
		p.lines(b, "Latency", lines, begin, each)
	}
}

// group draws the busiest rows of a group.
func (p plotter) group(b *strings.Builder, by string, rows []usageFigures, top int) {
	var whole int64
	for i := range rows {
		whole += rows[i].Requests
	}
	list := make([]bar, 0, top)
	for i := range rows[:min(len(rows), max(top, 1))] {
		r := &rows[i]
		list = append(list, bar{label: r.label(by), parts: r.parts(), note: fmt.Sprintf("%6s %7s", inShort(float64(r.Requests)), share(r.Requests, whole))})
	}
	title := "By " + by
	if more := len(rows) - len(list); more > 0 {
		title += fmt.Sprintf(", the first %d of %d", len(list), len(rows))
	}
	p.bars(b, title, outcomes, list)
}

// label names a row by what it was grouped by.
func (c *usageFigures) label(by string) string {
	text := func(s *string, none string) string {
		if s == nil || *s == "" {
			return none
		}
		return *s
	}
	switch by {
	case "endpoint":
		if text(c.Endpoint, "") == "" {
			return "(refused: path not kept)"
		}
		return strings.TrimSpace(text(c.Method, "") + " " + *c.Endpoint)
	case "status":
		if c.Status == nil || *c.Status == 0 {
			return "none: refused, or not known"
		}
		return strconv.Itoa(*c.Status)
	case "key":
		return text(c.Key, "(no known key)")
	case "owner":
		return text(c.Owner, "(no known key)")
	case "ip":
		return text(c.IP, "(not known)")
	case "code":
		return text(c.Code, "-")
	}
	return text(c.Keyspace, "-")
}

// followUsage draws again and again, over what it drew before.
func (a *app) followUsage(cmd *cobra.Command, x usageAsked, since string) error {
	again := time.NewTicker(2 * time.Second)
	defer again.Stop()
	for first := true; ; first = false {
		var err error
		if x.from, err = a.past("--since", since); err != nil {
			return err
		}
		drawn, err := a.drawUsage(cmd, x)
		switch {
		case errors.Is(err, context.Canceled):
			return nil
		case err != nil:
			return err
		}
		if first {
			drawn = "\x1b[2J" + drawn
		}
		a.width = widthOf(a.stdout)
		if _, err := io.WriteString(a.stdout, "\x1b[H"+strings.ReplaceAll(drawn, "\n", "\x1b[K\n")+"\x1b[J"); err != nil {
			return err
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-again.C:
		}
	}
}

// printCSV prints rows of JSON objects with a heading, every cell as it was answered.
func (a *app) printCSV(members []json.RawMessage) error {
	heading, figures, err := columnsOfFigures(members)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write(heading)
	for _, f := range figures {
		row := make([]string, len(heading))
		for i, name := range heading {
			var s string
			switch raw := f[name]; {
			case len(raw) == 0 || string(raw) == "null":
			case json.Unmarshal(raw, &s) == nil:
				row[i] = queries.Cell(s)
			default:
				row[i] = string(raw)
			}
		}
		_ = w.Write(row)
	}
	w.Flush()
	_, err = a.stdout.Write(b.Bytes())
	return err
}

// figureOrder is the order in which people read figures. What is not in it
// follows, by name.
var figureOrder = []string{
	"time", "keyspace", "owner", "key", "endpoint", "method", "status", "code", "ip",
	"requests", "successes", "errors", "unknown", "denied", "rate_limited",
	"average_ms", "p50_ms", "p95_ms", "p99_ms", "cost_micros",
}

// shortFigure are names that let more columns fit a terminal.
var shortFigure = map[string]string{
	"successes": "ok", "rate_limited": "limited", "average_ms": "avg ms", "p50_ms": "p50 ms", "p95_ms": "p95 ms", "p99_ms": "p99 ms",
	"cost_micros": "micros",
}

// printFigures prints rows of JSON objects, whatever members they have: a
// column each, in the order of figureOrder. Outside a terminal the first line
// names them.
func (a *app) printFigures(members []json.RawMessage) error {
	heading, figures, err := columnsOfFigures(members)
	if err != nil {
		return err
	}
	rows := make([][]string, len(figures))
	for i, f := range figures {
		for _, name := range heading {
			rows[i] = append(rows[i], a.figure(f[name]))
		}
	}
	if !a.tty {
		// Which columns there are depends on what was asked for.
		return a.rows(nil, append([][]string{heading}, rows...))
	}
	for i, name := range heading {
		heading[i] = shortFigure[name]
		if heading[i] == "" {
			heading[i] = name
		}
	}
	return a.rows(heading, rows)
}

// figure writes one JSON value for people: times as times, fractions short.
func (a *app) figure(raw json.RawMessage) string {
	var v any
	if len(raw) == 0 || json.Unmarshal(raw, &v) != nil {
		return "-"
	}
	switch v := v.(type) {
	case nil:
		return "-"
	case string:
		var t events.Time
		if json.Unmarshal(raw, &t) == nil {
			return a.when(t)
		}
		return orDash(v)
	case float64:
		if v != float64(int64(v)) {
			return strconv.FormatFloat(v, 'f', 1, 64)
		}
	}
	return string(raw)
}

// columnsOfFigures decodes rows and names their columns.
func columnsOfFigures(members []json.RawMessage) (heading []string, figures []map[string]json.RawMessage, err error) {
	if figures, err = decodeAll[map[string]json.RawMessage](members); err != nil {
		return nil, nil, err
	}
	columns := map[string]bool{}
	for _, f := range figures {
		for name := range f {
			columns[name] = true
		}
	}
	for _, name := range figureOrder {
		if columns[name] {
			heading = append(heading, name)
			delete(columns, name)
		}
	}
	return append(heading, slices.Sorted(maps.Keys(columns))...), figures, nil
}

// columnsOf is the width that the environment names for what is no terminal.
func columnsOf(otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	return otherwise
}
