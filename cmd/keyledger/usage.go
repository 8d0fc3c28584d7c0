package main

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

func (a *app) usageCommand() *cobra.Command {
	var keyspace, owner, key, from, to, bucket, by string
	cmd := &cobra.Command{
		Use: "usage", Short: "Show what was done with keys, in figures", Args: takes(),
		Example: `  keyledger usage --keyspace parcelbird --from 24h --bucket hour
  keyledger usage --keyspace parcelbird --by key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if from, err = a.past("--from", from); err != nil {
				return err
			}
			if to, err = a.past("--to", to); err != nil {
				return err
			}
			q := set(url.Values{}, "keyspace", keyspace, "owner", owner, "key", key, "from", from, "to", to, "bucket", bucket, "by", by)
			members, _, body, err := a.pages(cmd, path("analytics", "usage"), "usage", "cursor", q, nil, true)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			return a.printFigures(members)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyspace, "keyspace", "", "of this keyspace")
	f.StringVar(&owner, "owner", "", "of this owner")
	f.StringVar(&key, "key", "", "of this key id")
	f.StringVar(&from, "from", "", "not before this time, date or distance (24h)")
	f.StringVar(&to, "to", "", "before this time, date or distance")
	f.StringVar(&bucket, "bucket", "", "minute, hour or day")
	f.StringVar(&by, "by", "", "endpoint, status, code, key, owner or ip; several with commas")
	_ = cmd.RegisterFlagCompletionFunc("bucket", cobra.FixedCompletions([]string{"minute", "hour", "day"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions([]string{"endpoint", "status", "code", "key", "owner", "ip"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
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
	figures, err := decodeAll[map[string]json.RawMessage](members)
	if err != nil {
		return err
	}
	columns := map[string]bool{}
	for _, f := range figures {
		for name := range f {
			columns[name] = true
		}
	}
	var heading []string
	for _, name := range figureOrder {
		if columns[name] {
			heading = append(heading, name)
			delete(columns, name)
		}
	}
	heading = append(heading, slices.Sorted(maps.Keys(columns))...)
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
