package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// entryView is one line of a key's history.
type entryView struct {
	Kind      string         `json:"kind"`
	What      string         `json:"what"`
	From      events.Time    `json:"from"`
	Until     events.Time    `json:"until"`
	Count     int64          `json:"count"`
	Act       *actView       `json:"act"`
	Reason    string         `json:"reason"`
	Asked     string         `json:"asked"`
	Previous  int64          `json:"previous"`
	Endpoints []endpointView `json:"endpoints"`
}

// endpointView is how often an endpoint was asked for.
type endpointView struct {
	Method   string `json:"method"`
	Endpoint string `json:"endpoint"`
	Count    int64  `json:"count"`
}

func endpointsText(list []endpointView) string {
	var parts []string
	for _, e := range list {
		if at := strings.TrimSpace(e.Method + " " + e.Endpoint); at != "" {
			parts = append(parts, fmt.Sprintf("%s ×%d", at, e.Count))
		}
	}
	return strings.Join(parts, ", ")
}

func (a *app) auditHistoryCommand() *cobra.Command {
	var noUses bool
	cmd := &cobra.Command{
		Use: "history KEY", Short: "Tell the life of a key: each event with before and after", Args: takes("KEY"),
		Long: `Tell everything that the log holds about a key, oldest first: each change with
the fields before and after, who caused it, from where and by which request; uses
and refusals added up between two changes; the ends of graces and the expiry; and
gaps that were declared for its keyspace. A deleted key has its history.`,
		ValidArgsFunction: a.completeKey,
		Example: `  keyledger audit history key_…
  keyledger audit history key_… --no-uses --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := keyID(args[0]); err != nil {
				return err
			}
			q := url.Values{}
			if noUses {
				q.Set("uses", "false")
			}
			r, err := a.get(cmd, path("audit", "keys", args[0], "history"), q, nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var h struct {
				Entries []entryView `json:"entries"`
			}
			if err := r.decode(&h); err != nil {
				return err
			}
			rows := make([][]string, len(h.Entries))
			for i, e := range h.Entries {
				rows[i] = a.entryRow(e)
			}
			return a.rows([]string{"Time", "What", "Count", "Detail", "By", "Via", "Place", "Request", "Until"}, rows)
		},
	}
	cmd.Flags().BoolVar(&noUses, "no-uses", false, "without uses, refusals and gaps, for which the stream of uses is read")
	return cmd
}

func (a *app) entryRow(e entryView) []string {
	row := []string{a.when(e.From), e.What, "-", "-", "-", "-", "-", "-", "-"}
	if e.Count > 0 {
		row[2] = strconv.FormatInt(e.Count, 10)
	}
	if e.Until != e.From {
		row[8] = a.when(e.Until)
	}
	var detail []string
	if e.Kind == "uses" {
		row[1] = "used"
		if e.Previous > 0 {
			detail = append(detail, fmt.Sprintf("%d with a previous secret", e.Previous))
		}
	}
	if e.Kind == "refused" {
		row[1] = "refused: " + e.What
	}
	if v := e.Act; v != nil {
		row[4], row[5], row[6], row[7] = orDash(v.by()), orDash(v.Via), fmt.Sprintf("%s %d", v.Stream, v.Sequence), orDash(v.RequestID)
		if v.Void {
			detail = append(detail, "void: another event came first")
		}
		for _, c := range v.Changes {
			detail = append(detail, changeText(c))
		}
	}
	if e.Asked != "" {
		detail = append(detail, e.Asked)
	}
	if e.Reason != "" && e.What != "revoked" { // which has it as a field
		detail = append(detail, "reason: "+e.Reason)
	}
	if s := endpointsText(e.Endpoints); s != "" {
		detail = append(detail, s)
	}
	row[3] = orDash(strings.Join(detail, "; "))
	return row
}

func changeText(c changeView) string {
	if before := valueText(c.Before); before != "-" {
		return c.Field + " " + before + " → " + valueText(c.After)
	}
	return c.Field + " " + valueText(c.After)
}
