package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
)

// stoppedView is what GET /v1/revocations/{sequence} answers.
type stoppedView struct {
	Sequence   uint64   `json:"sequence"`
	Everywhere bool     `json:"everywhere"`
	SlowestMS  *float64 `json:"slowest_ms"`
	Basis      string   `json:"basis"`
	Verifiers  []struct {
		Node    string   `json:"node"`
		State   string   `json:"state"`
		DelayMS *float64 `json:"delay_ms"`
		StaleMS *int64   `json:"stale_ms"`
	} `json:"verifiers"`
}

// waitFlags say whether a command waits until every verifier refuses what it ended.
type waitFlags struct {
	wait    bool
	timeout time.Duration
}

func (f *waitFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until every verifier refuses, and show when each did; exit code 5 where one has not confirmed")
	cmd.Flags().DurationVar(&f.timeout, "wait-timeout", 30*time.Second, "how long to wait at most")
}

// pollStopped is how long one question waits: between two of them the picture is drawn.
const pollStopped = 500 * time.Millisecond

// stopped prints the answer of a command and, where --wait says so, waits for the
// verifiers. What is to be printed is, whatever becomes of them: it may hold a secret.
func (a *app) stopped(cmd *cobra.Command, f *waitFlags, r *answer, print func() error) error {
	if !f.wait {
		return print()
	}
	if f.timeout < 0 {
		return errors.Join(print(), usageError("--wait-timeout is a time such as 30s"))
	}
	if !a.asJSON {
		if err := print(); err != nil {
			return err
		}
	}
	v, body, failed := a.awaitStopped(cmd.Context(), f.timeout, r.header.Get("Ledger-Sequence"))
	if a.asJSON {
		if merged, err := withMember(r.body, "revocation", body); err == nil {
			r.body = merged
		}
		if err := print(); err != nil {
			return err
		}
	}
	switch {
	case failed != nil:
		return fmt.Errorf("it happened, but when the verifiers stopped is not known: %w", failed)
	case v == nil:
		a.note("Nothing ended at once: there is nothing to wait for.")
	case !v.Everywhere:
		return &exitError{exitUnreachable, "UNCONFIRMED", unconfirmedError(v, f.timeout)}
	}
	return nil
}

func unconfirmedError(v *stoppedView, waited time.Duration) error {
	var names []string
	for _, n := range v.Verifiers {
		if n.State == "stopped" {
			continue
		}
		name := clean(n.Node)
		switch {
		case n.State == "stale":
			name += " (if it runs, it answers STATE_TOO_STALE by now)"
		case n.StaleMS != nil && *n.StaleMS > 0:
			name += fmt.Sprintf(" (if it runs, it answers STATE_TOO_STALE from %s after the revocation on)", time.Duration(*n.StaleMS)*time.Millisecond)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return fmt.Errorf("it happened, but not all verifiers were heard of within %s: `keyledger doctor` lists them", waited)
	}
	return fmt.Errorf("it happened, but these verifiers did not confirm within %s that they refuse: %s", waited, strings.Join(names, ", "))
}

// awaitStopped asks until every verifier has confirmed or the time is over, and shows
// on a terminal how far they are. Nil without an error: nothing ended.
func (a *app) awaitStopped(ctx context.Context, timeout time.Duration, sequence string) (v *stoppedView, body []byte, err error) {
	if _, err := strconv.ParseUint(sequence, 10, 64); err != nil {
		return nil, nil, errors.New("the answer has no Ledger-Sequence")
	}
	c, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	drawn := 0
	for end := time.Now().Add(timeout); ; {
		left := max(min(time.Until(end), pollStopped), 0)
		next := time.Now().Add(left)
		r, err := c.do(ctx, call{method: http.MethodGet, path: path("revocations", sequence), query: url.Values{"wait": {left.String()}}})
		if p, ok := errors.AsType[*problem](err); ok && p.Code == "REVOCATION_NOT_FOUND" {
			return nil, nil, nil
		}
		if err != nil {
			return v, body, err
		}
		v, body = &stoppedView{}, r.body
		if err := r.decode(v); err != nil {
			return nil, nil, err
		}
		last := v.Everywhere || !time.Now().Before(end)
		if !a.asJSON && (a.tty || last) {
			if drawn, err = a.drawStopped(v, drawn); err != nil {
				return v, body, err
			}
		}
		if last {
			return v, body, nil
		}
		select {
		case <-time.After(time.Until(next)): // it answered at once: nothing more is known there
		case <-ctx.Done():
			return v, body, ctx.Err()
		}
	}
}

// drawStopped prints the table of verifiers over the one before it, of so many lines.
func (a *app) drawStopped(v *stoppedView, before int) (lines int, err error) {
	var rows [][]string
	for _, n := range v.Verifiers {
		delay := "-"
		if n.DelayMS != nil {
			delay = fmt.Sprintf("%.3f ms", *n.DelayMS)
		}
		rows = append(rows, []string{n.Node, n.State, delay})
	}
	if !a.tty {
		return 0, a.rows(nil, rows)
	}
	t := table.NewWriter()
	t.SetStyle(table.StyleRounded)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"Verifier", "State", "Refused after at most"})
	for _, r := range rows {
		state := r[1]
		if a.color && state != "stopped" {
			state = text.FgYellow.Sprint(state)
		} else if a.color {
			state = text.FgGreen.Sprint(state)
		}
		t.AppendRow(table.Row{clean(r[0]), state, r[2]})
	}
	drawing := t.Render()
	if before > 0 {
		drawing = fmt.Sprintf("\x1b[%dA\x1b[J", before) + drawing
	}
	_, err = fmt.Fprintln(a.stdout, drawing)
	return strings.Count(t.Render(), "\n") + 1, err
}

// withMember adds a member to a JSON object; an empty body becomes one.
func withMember(body []byte, name string, value []byte) ([]byte, error) {
	members := map[string]json.RawMessage{}
	if len(trimNewline(body)) > 0 {
		if err := json.Unmarshal(body, &members); err != nil {
			return nil, err
		}
	}
	if len(value) == 0 {
		value = []byte("null")
	}
	members[name] = value
	return json.Marshal(members)
}
