package main

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// changeView is one field before and after.
type changeView struct {
	Field  string          `json:"field"`
	Before json.RawMessage `json:"before"`
	After  json.RawMessage `json:"after"`
}

// actView is a fact in a timeline.
type actView struct {
	Time       events.Time  `json:"time"`
	Type       string       `json:"type"`
	Stream     string       `json:"stream"`
	Sequence   uint64       `json:"sequence"`
	KeyVersion uint64       `json:"key_version"`
	Actor      events.Actor `json:"actor"`
	Via        string       `json:"via"`
	RequestID  string       `json:"request_id"`
	Void       bool         `json:"void"`
	Changes    []changeView `json:"changes"`
}

func (v actView) by() string { return strings.TrimSpace(v.Actor.Type + " " + v.Actor.ID) }

// differenceView is what changed of one key, owner or keyspace.
type differenceView struct {
	Kind     string       `json:"kind"`
	Keyspace string       `json:"keyspace"`
	Owner    string       `json:"owner"`
	Key      string       `json:"key"`
	What     []string     `json:"what"`
	Changes  []changeView `json:"changes"`
	Events   []actView    `json:"events"`
}

// valueText writes a value on one line: text without quotes, the rest as JSON.
func valueText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil && s != "" {
		return s
	}
	if t := string(raw); t != "null" && t != "" && t != "[]" && t != `""` {
		return t
	}
	return "-"
}

func (a *app) auditDiffCommand() *cobra.Command {
	var keyspace, owner, key, cursor string
	var limit int
	var all bool
	cmd := &cobra.Command{
		Use: "diff FROM [TO]", Short: "Show what changed between two moments, and who did it", Args: takesUpTo("FROM", "TO"),
		Long: `Show the keys, owners and keyspaces that were changed after FROM and up to TO
(now, where it is left out): one line for each changed field, with its value
before and after, who did it, and the places of the events. A moment is a time, a
date, a distance such as 24h, now, or a sequence of LEDGER. What only time changed
is not shown: a key that expired has no event.`,
		Example: `  keyledger audit diff 24h
  keyledger audit diff 2026-01-01 2026-02-01 --keyspace parcelbird --all
  keyledger audit diff 4000 4711 --key key_… --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := a.pastMoment("FROM", args[0])
			if err != nil {
				return err
			}
			q := set(url.Values{}, "from", from, "keyspace", keyspace, "owner", owner, "key", key, "cursor", cursor)
			if len(args) == 2 {
				to, err := a.pastMoment("TO", args[1])
				if err != nil {
					return err
				}
				q.Set("to", to)
			}
			if key != "" {
				if err := keyID(key); err != nil {
					return err
				}
			}
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			members, next, body, err := a.pages(cmd, path("audit", "diff"), "changed", "cursor", q, nil, all)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[differenceView](members)
			if err != nil {
				return err
			}
			defer a.more("cursor", next)
			return a.printDifferences(list)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyspace, "keyspace", "", "of this keyspace")
	f.StringVar(&owner, "owner", "", "of this owner")
	f.StringVar(&key, "key", "", "of this key id")
	f.StringVar(&cursor, "cursor", "", "go on where an earlier list ended")
	f.IntVar(&limit, "limit", 0, "at most so many keys, owners and keyspaces in a page")
	f.BoolVar(&all, "all", false, "all pages")
	a.completeFlags(cmd)
	return cmd
}

func (a *app) printDifferences(list []differenceView) error {
	var rows [][]string
	for _, d := range list {
		who, places := d.Keyspace, []string{}
		switch d.Kind {
		case "key":
			who = d.Key
		case "owner":
			who = d.Keyspace + " " + d.Owner
		}
		var by []string
		for _, e := range d.Events {
			if s := e.by(); !slices.Contains(by, s) {
				by = append(by, s)
			}
			places = append(places, strconv.FormatUint(e.Sequence, 10))
		}
		line := []string{d.Kind, who, strings.Join(d.What, ", "), "-", "-", "-", strings.Join(by, ", "), "LEDGER " + strings.Join(places, ", ")}
		if len(d.Changes) == 0 {
			rows = append(rows, line) // changed, and changed back
		}
		for _, c := range d.Changes {
			line = slices.Clone(line)
			line[3], line[4], line[5] = c.Field, valueText(c.Before), valueText(c.After)
			rows = append(rows, line)
		}
	}
	return a.rows([]string{"Kind", "Of", "What", "Field", "Before", "After", "By", "Events"}, rows)
}
