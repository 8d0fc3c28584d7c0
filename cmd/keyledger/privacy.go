package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) privacyCommand() *cobra.Command {
	return group("privacy", "Erase personal data", a.privacyEraseCommand())
}

// erasedView is what an erasure has done, or would do.
type erasedView struct {
	Months   []string `json:"months"`
	DataKeys []string `json:"data_keys"`
	Closed   []string `json:"closed"`
	Held     []string `json:"held"`
	Rows     int64    `json:"rows"`
	Acts     []uint64 `json:"acts"`
}

func (a *app) privacyEraseCommand() *cobra.Command {
	var keyspace, owner, before, period, reason string
	var dryRun, skipHeld, yes bool
	cmd := &cobra.Command{
		Use: "erase", Short: "Destroy the data keys of an owner or of a period", Args: takes(),
		Long: `Erase the source addresses and user agents of an owner, or of a period: the data
keys that they are sealed with are destroyed, so that nobody can open them again,
here or in a bundle exported before. No stored byte changes; every proof stays valid.
What happened goes on being counted and shown, without those.

It is recorded first, as privacy.erased on OPS. A legal hold stops it (exit code 6).
Again it finds nothing to do.`,
		Example: `  keyledger privacy erase --keyspace parcelbird --owner org_1 --reason 'request 17' --dry-run
  keyledger privacy erase --keyspace parcelbird --before 2026-01`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body := map[string]any{}
			for name, value := range map[string]string{"keyspace": keyspace, "owner": owner, "reason": reason} {
				if value != "" {
					body[name] = value
				}
			}
			switch {
			case before != "" && period != "":
				return usageError("--before and --period exclude each other")
			case period != "":
				if _, err := time.Parse("2006-01", period); err != nil {
					return usageError("--period: a month, such as 2026-03")
				}
				body["from"], body["through"] = period, period
			case before != "":
				month, err := time.Parse("2006-01", before)
				if err != nil {
					return usageError("--before: a month, such as 2026-03")
				}
				body["through"] = month.AddDate(0, -1, 0).Format("2006-01")
			case owner == "":
				return usageError("`keyledger privacy erase` needs --owner, --before or --period")
			}
			if skipHeld {
				body["skip_held"] = true
			}
			if a.asks(yes) && !dryRun {
				body["dry_run"] = true
				v, _, err := a.erase(cmd, body)
				if err != nil {
					return err
				}
				if len(v.DataKeys)+len(v.Closed) == 0 {
					a.note("There is nothing to erase.")
					return nil
				}
				if err := a.confirm(fmt.Sprintf("This destroys %d data keys, of %s. Nobody can undo it.", len(v.DataKeys), joined(v.Months))); err != nil {
					return err
				}
				delete(body, "dry_run")
			}
			if dryRun {
				body["dry_run"] = true
			}
			v, line, err := a.erase(cmd, body)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(line)
			}
			return a.fields([][2]string{
				{"months", joined(v.Months)}, {"data keys", strconv.Itoa(len(v.DataKeys))}, {"closed", joined(v.Closed)},
				{"rows", strconv.FormatInt(v.Rows, 10)}, {"held", joined(v.Held)}, {"recorded", recordedAt(v.Acts...)},
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&keyspace, "keyspace", "", "of this keyspace")
	fl.StringVar(&owner, "owner", "", "of this owner; _ for what is of no owner")
	fl.StringVar(&before, "before", "", "of the months before this one, such as 2026-03 (UTC)")
	fl.StringVar(&period, "period", "", "of this month")
	fl.StringVar(&reason, "reason", "", "kept for ever: a case number, no person's name")
	fl.BoolVar(&skipHeld, "skip-held", false, "leave out what a legal hold covers, instead of refusing")
	addActFlags(cmd, &dryRun, &yes)
	a.completeFlags(cmd)
	return cmd
}

func addActFlags(cmd *cobra.Command, dryRun, yes *bool) {
	cmd.Flags().BoolVar(dryRun, "dry-run", false, "only say what would be done")
	cmd.Flags().BoolVar(yes, "yes", false, "do not ask on a terminal")
}

func recordedAt(acts ...uint64) string {
	var places []string
	for _, n := range acts {
		if n > 0 {
			places = append(places, fmt.Sprintf("OPS %d", n))
		}
	}
	return joined(places)
}

func (a *app) erase(cmd *cobra.Command, body map[string]any) (v erasedView, result []byte, err error) {
	result, err = a.work(cmd, path("privacy", "erasures"), body, "erase")
	if err == nil {
		err = (&answer{body: result}).decode(&v)
	}
	return v, result, err
}

// asks says whether somebody is there to be asked.
func (a *app) asks(yes bool) bool {
	f, ok := a.stdin.(*os.File)
	return !yes && !a.asJSON && a.errTTY && ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks somebody at a terminal before something that cannot be undone.
func (a *app) confirm(what string) error {
	fmt.Fprintf(a.stderr, "%s\nGo on? Type yes: ", what)
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && line == "" || !strings.EqualFold(strings.TrimSpace(line), "yes") {
		return &exitError{exitFailed, "NOT_CONFIRMED", errors.New("nothing was done")}
	}
	return nil
}

// work sends a call that may take long and follows its progress; it answers the
// result.
func (a *app) work(cmd *cobra.Command, path string, body any, message string) (json.RawMessage, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	c.http.Transport.(*http.Transport).ResponseHeaderTimeout = 0 // reading what goes may take minutes before the first line
	resp, err := c.open(cmd.Context(), call{
		method: http.MethodPost, path: path, body: jsonBody(body), header: http.Header{"Accept": {"application/x-ndjson"}},
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	bar := a.progress(message)
	ok := false
	defer func() { bar.end(ok) }()
	in := bufio.NewReader(resp.Body)
	for {
		line, err := in.ReadBytes('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			var step struct {
				Done   int64           `json:"done"`
				Total  int64           `json:"total"`
				Result json.RawMessage `json:"result"`
				Error  json.RawMessage `json:"error"`
			}
			if err := (&answer{body: line}).decode(&step); err != nil {
				return nil, err
			}
			switch {
			case step.Error != nil:
				return nil, streamProblem(step.Error)
			case step.Result != nil:
				ok = true
				return step.Result, nil
			}
			bar.set(step.Done, step.Total)
		}
		if err != nil {
			if cmd.Context().Err() != nil {
				return nil, cmd.Context().Err()
			}
			return nil, fmt.Errorf("the answer ended before its result: %w; repeat the command, what was begun is finished", &unreachable{c.target.URL, c.target.urlFrom, true, "", err})
		}
	}
}
