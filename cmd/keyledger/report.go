package main

import (
	"encoding/csv"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

func (a *app) reportCommand() *cobra.Command {
	return group("report", "Figures for customers", a.reportRevocationsCommand())
}

// figuresView are those of revocations, as GET /v1/reports/revocations has them for a
// period and for each group.
type figuresView struct {
	Day         events.Time `json:"day"`
	Keyspace    *string     `json:"keyspace"`
	Owner       *string     `json:"owner"`
	Measured    int64       `json:"measured"`
	Everywhere  int64       `json:"everywhere"`
	Unconfirmed int64       `json:"unconfirmed"`
	ByClocks    int64       `json:"by_clocks"`
	P50MS       *float64    `json:"p50_ms"`
	P99MS       *float64    `json:"p99_ms"`
	MaxMS       *float64    `json:"max_ms"`
	Met         int64       `json:"met"`
	Missed      int64       `json:"missed"`
}

// reportView is the whole answer.
type reportView struct {
	From       events.Time `json:"from"`
	To         events.Time `json:"to"`
	TargetMS   int64       `json:"target_ms"`
	Unmeasured int64       `json:"unmeasured"`
	figuresView
	Classes []classView `json:"classes"`
	Nodes   []struct {
		Node        string   `json:"node"`
		Confirmed   int64    `json:"confirmed"`
		Unconfirmed int64    `json:"unconfirmed"`
		P50MS       *float64 `json:"p50_ms"`
		P99MS       *float64 `json:"p99_ms"`
		MaxMS       *float64 `json:"max_ms"`
	} `json:"nodes"`
	Groups []figuresView `json:"groups"`
}

// classView is a class of delays; without a bound it holds what is above all others.
type classView struct {
	UpToMS *float64 `json:"up_to_ms"`
	Count  int64    `json:"count"`
}

func (a *app) reportRevocationsCommand() *cobra.Command {
	var keyspace, owner, from, to, by, target string
	var asCSV bool
	cmd := &cobra.Command{
		Use: "revocations", Short: "How long revoked keys were still accepted", Args: takes(),
		Long: `How long after a key, or a secret of it, was ended by a fact its verifiers still
accepted it: p50, p99 and the longest time until every verifier refused, how many were
refused everywhere within --target, and each verifier's part. Delays are upper bounds by
one clock. --csv prints every revocation, one a line.`,
		Example: `  keyledger report revocations --from 2026-01-01 --to 2026-02-01 --target 5m
  keyledger report revocations --keyspace parcelbird --by owner
  keyledger report revocations --from 365d --csv > revocations.csv`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if from, err = a.past("--from", from); err != nil {
				return err
			}
			if to, err = a.past("--to", to); err != nil {
				return err
			}
			q := set(url.Values{}, "keyspace", keyspace, "owner", owner, "from", from, "to", to)
			if asCSV {
				if a.asJSON || by != "" {
					return usageError("--csv prints every revocation: --json and --by do not go with it")
				}
				return a.revocationsCSV(cmd, q)
			}
			r, err := a.get(cmd, path("reports", "revocations"), set(q, "by", by, "target", target), nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var v reportView
			if err := r.decode(&v); err != nil {
				return err
			}
			return a.printRevocations(&v)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyspace, "keyspace", "", "of this keyspace")
	f.StringVar(&owner, "owner", "", "of this owner")
	f.StringVar(&from, "from", "", "not before this time, date or distance (30d, which it is else)")
	f.StringVar(&to, "to", "", "before this time, date or distance")
	f.StringVar(&by, "by", "", "keyspace, owner or day; several with commas")
	f.StringVar(&target, "target", "", "how many were refused everywhere within this time (else 5m)")
	f.BoolVar(&asCSV, "csv", false, "print every revocation, one a line, as CSV")
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions([]string{"keyspace", "owner", "day"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

func msText(ms *float64) string {
	if ms == nil {
		return "-"
	}
	return strconv.FormatFloat(*ms, 'f', -1, 64) + " ms"
}

// partOf is [share], of nothing too.
func partOf(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return share(part, whole)
}

func (a *app) printRevocations(v *reportView) error {
	target := domain.Duration(time.Duration(v.TargetMS) * time.Millisecond).String()
	fields := [][2]string{
		{"from", v.From.String()}, {"to", v.To.String()},
		{"measured", strconv.FormatInt(v.Measured, 10)},
		{"p50", msText(v.P50MS)}, {"p99", msText(v.P99MS)}, {"longest", msText(v.MaxMS)},
		{"within " + target, fmt.Sprintf("%d of %d (%s)", v.Met, v.Measured, partOf(v.Met, v.Measured))},
		{"unconfirmed", strconv.FormatInt(v.Unconfirmed, 10)},
		{"unmeasured", strconv.FormatInt(v.Unmeasured, 10)},
	}
	if v.ByClocks > 0 {
		fields = append(fields, [2]string{"by two clocks", strconv.FormatInt(v.ByClocks, 10)})
	}
	if err := a.fields(fields); err != nil {
		return err
	}
	if a.tty && v.Everywhere > 0 {
		fmt.Fprintf(a.stdout, "\nUntil every verifier refused:\n%s\n", a.classes(v))
	}
	var rows [][]string
	for _, n := range v.Nodes {
		rows = append(rows, []string{n.Node, strconv.FormatInt(n.Confirmed, 10), strconv.FormatInt(n.Unconfirmed, 10), msText(n.P50MS), msText(n.P99MS), msText(n.MaxMS)})
	}
	if err := a.rows([]string{"Verifier", "Confirmed", "Unconfirmed", "p50", "p99", "Longest"}, rows); err != nil || len(v.Groups) == 0 {
		return err
	}
	rows = nil
	for _, g := range v.Groups {
		day, keyspace, owner := "-", "-", "-"
		if g.Day != 0 {
			day = g.Day.Time().Format(time.DateOnly)
		}
		if g.Keyspace != nil {
			keyspace = *g.Keyspace
		}
		if g.Owner != nil {
			owner = *g.Owner
		}
		rows = append(rows, []string{day, keyspace, owner, strconv.FormatInt(g.Measured, 10), msText(g.P50MS), msText(g.P99MS), msText(g.MaxMS),
			partOf(g.Met, g.Measured), strconv.FormatInt(g.Unconfirmed, 10)})
	}
	return a.rows([]string{"Day", "Keyspace", "Owner", "Measured", "p50", "p99", "Longest", "Within " + target, "Unconfirmed"}, rows)
}

// classes draws a bar for each class of delays between the first and the last that
// have any.
func (a *app) classes(v *reportView) string {
	const label = 12
	classes := v.Classes
	for len(classes) > 0 && classes[len(classes)-1].Count == 0 {
		classes = classes[:len(classes)-1]
	}
	most := int64(1)
	for _, c := range classes {
		most = max(most, c.Count)
	}
	begin := max(slices.IndexFunc(classes, func(c classView) bool { return c.Count > 0 }), 0)
	room := int64(max(a.width, 40) - label - 12)
	var b strings.Builder
	for _, c := range classes[begin:] {
		name := "above"
		if c.UpToMS != nil {
			name = "≤ " + msText(c.UpToMS)
		}
		// A class with one of a million is seen too.
		bar := (c.Count*room + most - 1) / most
		fmt.Fprintf(&b, "%*s │%s %d\n", label, name, strings.Repeat("█", int(bar)), c.Count)
	}
	return strings.TrimRight(b.String(), "\n")
}

// measuredView is one of the list of revocations.
type measuredView struct {
	stoppedView
	Fact      string      `json:"fact"`
	Keyspace  string      `json:"keyspace"`
	Owner     string      `json:"owner"`
	Key       string      `json:"key"`
	DecidedAt events.Time `json:"decided_at"`
	AppendMS  *float64    `json:"append_ms"`
	By        string      `json:"by"`
}

// revocationsCSV prints all pages as they come.
func (a *app) revocationsCSV(cmd *cobra.Command, q url.Values) error {
	if q.Get("from") == "" {
		from, err := a.past("--from", "30d")
		if err != nil {
			return err
		}
		q.Set("from", from)
	}
	q.Set("limit", "1000")
	out := csv.NewWriter(a.stdout)
	_ = out.Write([]string{"sequence", "decided_at", "fact", "keyspace", "owner", "key", "basis", "append_ms", "slowest_ms", "confirmed", "unconfirmed", "unconfirmed_verifiers", "measured_by"})
	number := func(ms *float64) string {
		if ms == nil {
			return ""
		}
		return strconv.FormatFloat(*ms, 'f', -1, 64)
	}
	for {
		members, next, _, err := a.pages(cmd, path("revocations"), "revocations", "cursor", q, nil, false)
		if err != nil {
			return err
		}
		list, err := decodeAll[measuredView](members)
		if err != nil {
			return err
		}
		for _, m := range list {
			var missing []string
			for _, n := range m.Verifiers {
				if n.State != "stopped" {
					missing = append(missing, clean(n.Node))
				}
			}
			_ = out.Write([]string{strconv.FormatUint(m.Sequence, 10), m.DecidedAt.String(), m.Fact, m.Keyspace, m.Owner, m.Key, m.Basis, number(m.AppendMS), number(m.SlowestMS),
				strconv.Itoa(len(m.Verifiers) - len(missing)), strconv.Itoa(len(missing)), strings.Join(missing, " "), clean(m.By)})
		}
		if out.Flush(); out.Error() != nil || next == "" {
			return out.Error()
		}
		q.Set("cursor", next)
	}
}
