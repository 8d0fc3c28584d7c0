package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// eventView is an event as the audit calls answer it: its envelope and its
// place. The data is left as it is: this program may be older than it.
type eventView struct {
	ID         string          `json:"id"`
	Type       string          `json:"type"`
	Time       events.Time     `json:"time"`
	Keyspace   string          `json:"keyspace"`
	Owner      string          `json:"owner"`
	Key        string          `json:"key"`
	KeyVersion uint64          `json:"key_version"`
	Actor      events.Actor    `json:"actor"`
	Via        string          `json:"via"`
	Data       json.RawMessage `json:"data"`
	Stream     string          `json:"stream"`
	Sequence   uint64          `json:"sequence"`
	Line       int             `json:"line"`
}

// place is where an event stands: stream, sequence and, in a page, line.
func (e eventView) place() string {
	if e.Stream == "" {
		return "-"
	}
	s := e.Stream + " " + strconv.FormatUint(e.Sequence, 10)
	if e.Stream == events.Usage {
		s += "/" + strconv.Itoa(e.Line)
	}
	return s
}

func (a *app) auditCommand() *cobra.Command {
	c := group("audit", "Read the audit log, ask about the past, and prove what stands in it")
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"read", "What happened:", []*cobra.Command{a.auditListCommand(), a.auditTailCommand(), a.auditHistoryCommand(), a.auditLeakedCommand()}},
		{"past", "What was, and why:", []*cobra.Command{a.auditAsOfCommand(), a.auditDiffCommand(), a.auditExplainCommand(), a.auditWhoCouldCommand()}},
		{"proof", "That it is complete and unaltered:", []*cobra.Command{a.auditExportCommand(), a.auditVerifyCommand(), a.auditKeyCommand(),
			a.auditProveCommand(), a.auditCheckpointCommand(), a.auditReceiptCommand(), a.auditWitnessCommand(), a.auditScrubCommand()}},
		{"keep", "How long it is kept:", []*cobra.Command{a.auditPruneCommand(), a.auditHoldCommand()}},
	} {
		c.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, sub := range g.commands {
			sub.GroupID = g.id
			c.AddCommand(sub)
		}
	}
	return c
}

// eventFlags choose events.
type eventFlags struct{ keyspace, owner, key, endpoint, ip, kind, actor string }

func (f *eventFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.keyspace, "keyspace", "", "of this keyspace")
	cmd.Flags().StringVar(&f.owner, "owner", "", "of this owner")
	cmd.Flags().StringVar(&f.key, "key", "", "of this key id")
	cmd.Flags().StringVar(&f.endpoint, "endpoint", "", "uses and refusals at this path, such as /v1/parcels")
	cmd.Flags().StringVar(&f.ip, "ip", "", "uses and refusals from this address")
	cmd.Flags().StringVar(&f.kind, "type", "", "of this type, such as key.revoked")
	cmd.Flags().StringVar(&f.actor, "actor", "", "caused by this actor's id")
	_ = cmd.RegisterFlagCompletionFunc("type", completeTypes)
}

func completeTypes(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for name := range events.Types() {
		names = append(names, name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (f *eventFlags) query() url.Values {
	return set(url.Values{}, "keyspace", f.keyspace, "owner", f.owner, "key", f.key, "endpoint", f.endpoint, "ip", f.ip, "type", f.kind, "actor", f.actor)
}

var eventHeading = []string{"Time", "Type", "Keyspace", "Owner", "Key", "Place", "Actor"}

func (a *app) eventRow(e eventView) []string {
	return []string{
		a.when(e.Time), e.Type, orDash(e.Keyspace), orDash(e.Owner), orDash(e.Key),
		e.place(), orDash(e.Actor.ID),
	}
}

func (a *app) auditListCommand() *cobra.Command {
	var ef eventFlags
	var from, to, after, format string
	var limit int
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List events, read from the streams themselves", Args: takes(),
		Long: `List events, read from the streams themselves. --format ndjson and csv print
everything that matches, one event per line; the table and --json print a page.`,
		Example: `  keyledger audit list --key key_… --from 24h
  keyledger audit list --ip 203.0.113.7 --from 90d
  keyledger audit list --keyspace parcelbird --type key.revoked --format csv > revoked.csv`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if from, err = a.past("--from", from); err != nil {
				return err
			}
			if to, err = a.past("--to", to); err != nil {
				return err
			}
			q := set(ef.query(), "from", from, "to", to, "after", after)
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			switch format {
			case "ndjson":
				return a.copyEvents(cmd, q, "application/x-ndjson")
			case "csv":
				return a.copyEvents(cmd, q, "text/csv")
			case "":
			default:
				return usageError("--format is ndjson or csv")
			}
			members, next, body, err := a.pages(cmd, path("audit", "events"), "events", "after", q, nil, all)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[eventView](members)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, e := range list {
				rows[i] = a.eventRow(e)
			}
			defer a.more("after", next)
			if len(rows) == 0 && next == "" {
				a.note("No event is like this.")
			}
			return a.rows(eventHeading, rows)
		},
	}
	ef.add(cmd)
	cmd.Flags().StringVar(&from, "from", "", "not before this time, date or distance (24h)")
	cmd.Flags().StringVar(&to, "to", "", "before this time, date or distance")
	cmd.Flags().StringVar(&after, "after", "", "go on where an earlier list ended")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this many in a page")
	cmd.Flags().BoolVar(&all, "all", false, "all pages")
	cmd.Flags().StringVar(&format, "format", "", "ndjson or csv: everything that matches, one event per line")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"ndjson", "csv"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

// copyEvents prints the answer as it comes, without holding all of it.
func (a *app) copyEvents(cmd *cobra.Command, q url.Values, kind string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	resp, err := c.open(cmd.Context(), call{method: http.MethodGet, path: path("audit", "events"), query: q, header: http.Header{"Accept": {kind}}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(a.stdout, resp.Body); err != nil {
		return fmt.Errorf("the list ended before its end: %w", &unreachable{c.target.URL, c.target.urlFrom, true, "", err})
	}
	return nil
}

func (a *app) auditTailCommand() *cobra.Command {
	var ef eventFlags
	var after string
	var count int
	cmd := &cobra.Command{
		Use: "tail", Short: "Print events as they happen, until Ctrl-C", Args: takes(),
		Long: `Print events as they happen, one per line. A lost connection is taken up again
after the last event that was printed, so that none is missed or printed twice.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n := 0
			return a.tail(cmd.Context(), ef.query(), after, func(data []byte) (bool, error) {
				if err := a.printEvent(data); err != nil {
					return false, err
				}
				n++
				return count > 0 && n >= count, nil
			})
		},
	}
	ef.add(cmd)
	cmd.Flags().StringVar(&after, "after", "", "begin after this place instead of now")
	cmd.Flags().IntVar(&count, "count", 0, "end after this many events")
	a.completeFlags(cmd)
	return cmd
}

// printEvent prints one event on one line: its JSON, or time, type, whom it is
// about, who caused it and its place. Its width is not known beforehand, so it
// is a line on a terminal too.
func (a *app) printEvent(data []byte) error {
	if a.asJSON {
		_, err := fmt.Fprintf(a.stdout, "%s\n", trimNewline(data))
		return err
	}
	var e eventView
	if err := (&answer{body: data}).decode(&e); err != nil {
		return err
	}
	return a.printEventLine(e)
}

func (a *app) printEventLine(e eventView) error {
	if !a.tty {
		return a.rows(nil, [][]string{a.eventRow(e)})
	}
	_, err := fmt.Fprintf(a.stdout, "%s  %-20s %s %s %s  by %s  %s\n", e.Time.Time().Local().Format(time.TimeOnly), clean(e.Type),
		clean(e.Keyspace), orDash(clean(e.Owner)), orDash(clean(e.Key)), orDash(clean(e.Actor.ID)), e.place())
	return err
}

// retryFirst and retryLast are the shortest and the longest pause before a lost
// connection is taken up again.
const retryFirst, retryLast = 100 * time.Millisecond, 10 * time.Second

// tail reads Server-Sent Events until emit has enough or the context ends,
// which is no error: that is how a tail ends.
func (a *app) tail(ctx context.Context, q url.Values, after string, emit func(data []byte) (enough bool, err error)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	wait := retryFirst
	for connected := false; ; {
		header := http.Header{"Accept": {"text/event-stream"}}
		if after != "" {
			header.Set("Last-Event-ID", after)
		}
		resp, err := c.open(ctx, call{method: http.MethodGet, path: path("audit", "tail"), query: q, header: header})
		if err == nil {
			connected, wait = true, retryFirst
			var enough bool
			after, enough, err = readEvents(resp.Body, after, emit)
			resp.Body.Close()
			if enough {
				return nil
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if _, lost := errors.AsType[*unreachable](err); err != nil && (!lost || !connected) && !errors.Is(err, errStreamEnded) {
			return err
		}
		a.note("keyledger: the connection was lost; trying again")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, retryLast)
	}
}
