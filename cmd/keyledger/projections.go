package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) projectionsCommand() *cobra.Command {
	return group("projections", "See how far the read models are, and rebuild them",
		a.projectionsStatusCommand(), a.projectionsRebuildCommand(), a.projectionsCompareCommand())
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
			return a.printFigures(members)
		},
	}
}

func (a *app) projectionsRebuildCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rebuild NAME", Short: "Rebuild a projection beside the live one, compare, and switch", Args: takes("NAME"),
		Long: `Rebuild a projection from the first record beside the live one, compare both by
row hash, and switch. The live one answers until then.`,
		ValidArgsFunction: a.completeProjection,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rebuild(cmd, args[0], nil)
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
			return a.rebuild(cmd, args[0], url.Values{"compare_only": {"true"}})
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

// rebuild follows a rebuild: lines of {done, total}, and a last one with the
// result or with the problem that ended it.
func (a *app) rebuild(cmd *cobra.Command, name string, q url.Values) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	resp, err := c.open(cmd.Context(), call{
		method: http.MethodPost, path: path("projections", name, "rebuild"), query: q,
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
			return fmt.Errorf("the rebuild's answer ended before its result: %w", &unreachable{c.target.URL, c.target.urlFrom, true, "", err})
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

// printRebuilt prints the result. One that says equal: false is a failure.
func (a *app) printRebuilt(line, result json.RawMessage) error {
	var members map[string]json.RawMessage
	if json.Unmarshal(result, &members) != nil {
		members = map[string]json.RawMessage{"result": result}
	}
	var err error
	if a.asJSON {
		err = a.printJSON(line)
	} else {
		var f [][2]string
		for _, name := range slices.Sorted(maps.Keys(members)) {
			f = append(f, [2]string{strings.ReplaceAll(name, "_", " "), a.figure(members[name])})
		}
		err = a.fields(f)
	}
	if err == nil && string(members["equal"]) == "false" {
		return quietly(exitFailed)
	}
	return err
}
