package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

func (a *app) projectionsCommand() *cobra.Command {
	c := group("projections", "See how far the read models are, and rebuild them",
		a.projectionsStatusCommand(), a.projectionsRebuildCommand(), a.projectionsCompareCommand())
	c.Long = `See how far the read models are, compare them with the streams, and rebuild them.

A release that changes what a read model holds brings it under a new name, such as
usage_v2, beside the old one, which is read as before; ` + "`status`" + ` shows both. When
the new one has read as far, the views change over and the old tables go.

One that met an event it cannot apply is stopped, alone: ` + "`status`" + ` says at which
event, why, and what to do.`
	return c
}

func (a *app) projectionsStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show positions and lag", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			members, _, body, err := a.pages(cmd, path("projections"), "projections", "cursor", url.Values{}, nil, true)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[projectionView](members)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, p := range list {
				rows[i] = []string{
					p.Name, p.Stream, orDash(p.State), strconv.FormatUint(p.Position, 10), strconv.FormatUint(p.Head, 10),
					strconv.FormatUint(p.Lag, 10), a.when(p.moved()), strconv.FormatInt(p.Rebuilds, 10), orDash(p.Error),
				}
			}
			return a.rows([]string{"Projection", "Stream", "State", "Position", "Head", "Lag", "Moved", "Rebuilds", "Error"}, rows)
		},
	}
}

// projectionView is how one projection is doing.
type projectionView struct {
	Name     string      `json:"name"`
	Stream   string      `json:"stream"`
	State    string      `json:"state"`
	Position uint64      `json:"position"`
	Head     uint64      `json:"head"`
	Lag      uint64      `json:"lag"` // messages
	Error    string      `json:"error"`
	MovedAt  events.Time `json:"moved_at"`
	Rebuilds int64       `json:"rebuilds"`
}

// moved is when the position last moved; a time before 1970 is Go's zero time.
func (p projectionView) moved() events.Time { return max(p.MovedAt, 0) }

// rebuiltView is how a projection compares with its rebuild at one position.
type rebuiltView struct {
	Name        string `json:"name"`
	Sequence    uint64 `json:"sequence"`
	Rows        int64  `json:"rows"`
	LiveHash    string `json:"live_hash"`
	RebuiltHash string `json:"rebuilt_hash"`
	Differences int64  `json:"differences"` // rows
	Switched    bool   `json:"switched"`
}

func (a *app) projectionsRebuildCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rebuild NAME", Short: "Rebuild a projection beside the live one, compare, and switch", Args: takes("NAME"),
		Long: `Rebuild a projection from the first record beside the live one, compare both by
row hash, and switch. The live one answers until then.`,
		ValidArgsFunction: a.completeProjection,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rebuild(cmd, args[0], "rebuild")
		},
	}
	return cmd
}

func (a *app) projectionsCompareCommand() *cobra.Command {
	return &cobra.Command{
		Use: "compare NAME", Short: "Rebuild a projection and compare it with the live one, without switching", Args: takes("NAME"),
		Long: `Rebuild a projection from the first record, compare it with the live one by row
hash, and throw it away. A difference ends with exit code 1.`,
		ValidArgsFunction: a.completeProjection,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rebuild(cmd, args[0], "compare")
		},
	}
}

func (a *app) completeProjection(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	type named struct {
		Name string `json:"name"`
	}
	return propose(a, cmd, path("projections"), "projections", nil, func(n named) (string, string) { return n.Name, "" })
}

// rebuild follows a rebuild, or a comparison with one: lines of {done, total}, and a last one with the
// result or with the problem that ended it.
func (a *app) rebuild(cmd *cobra.Command, name, what string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	resp, err := c.open(cmd.Context(), call{
		method: http.MethodPost, path: path("projections", name, what),
		header: http.Header{"Accept": {"application/x-ndjson"}},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	bar := a.progress(clean(name))
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
				return err
			}
			switch {
			case step.Error != nil:
				return streamProblem(step.Error)
			case step.Result != nil:
				ok = true
				bar.end(ok)
				return a.printRebuilt(line, step.Result)
			}
			bar.set(step.Done, step.Total)
		}
		if err != nil {
			if cmd.Context().Err() != nil {
				return cmd.Context().Err()
			}
			return fmt.Errorf("the answer ended before its result: %w", &unreachable{c.target.URL, c.target.urlFrom, true, "", err})
		}
	}
}

// streamProblem reads a problem that came after the answer had begun: a problem
// document, or a sentence.
func streamProblem(raw json.RawMessage) error {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return errors.New(clean(s))
	}
	p := &problem{raw: raw}
	if err := (&answer{body: raw}).decode(p); err != nil {
		return err
	}
	return p
}

// printRebuilt prints the result. Differences that stay are a failure; a
// rebuild puts an end to them.
func (a *app) printRebuilt(line, result json.RawMessage) error {
	var v rebuiltView
	if err := (&answer{body: result}).decode(&v); err != nil {
		return err
	}
	var err error
	if a.asJSON {
		err = a.printJSON(line)
	} else {
		err = a.fields([][2]string{
			{"projection", v.Name}, {"sequence", strconv.FormatUint(v.Sequence, 10)}, {"rows", strconv.FormatInt(v.Rows, 10)},
			{"live hash", v.LiveHash}, {"rebuilt hash", v.RebuiltHash},
			{"differences", strconv.FormatInt(v.Differences, 10)}, {"switched", strconv.FormatBool(v.Switched)},
		})
	}
	if err == nil && v.Differences > 0 && !v.Switched {
		return quietly(exitFailed)
	}
	return err
}
