package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// scrubView is how the scrub is doing, as the API answers it.
type scrubView struct {
	Node    string `json:"node"`
	Streams []struct {
		Stream   string      `json:"stream"`
		Server   string      `json:"server"`
		Position uint64      `json:"position"`
		Of       uint64      `json:"of"`
		Began    events.Time `json:"began"`
		Last     *struct {
			Began  events.Time `json:"began"`
			Ended  events.Time `json:"ended"`
			Events int64       `json:"events"`
			Bytes  int64       `json:"bytes"`
		} `json:"last"`
		Servers []struct {
			Server  string `json:"server"`
			Skipped string `json:"skipped"`
		} `json:"servers"`
		Findings []struct {
			Server   string `json:"server"`
			What     string `json:"what"`
			Sequence uint64 `json:"sequence"`
			Line     int    `json:"line"`
			Problem  string `json:"problem"`
			Fix      string `json:"fix"`
			Runbook  string `json:"runbook"`
		} `json:"findings"`
		Error string `json:"error"`
	} `json:"streams"`
}

func (v *scrubView) findings() (n int) {
	for _, s := range v.Streams {
		n += len(s.Findings)
	}
	return n
}

func (a *app) auditScrubCommand() *cobra.Command {
	var now bool
	c := &cobra.Command{
		Use: "scrub", Short: "Show how the streams compare with what was signed", Args: takes(),
		Long: `Show how far the service is in reading the streams again, every server's copy in
turn, and what it has found that is not as it was signed. While there is a finding,
commands are refused and nothing is signed; keys are verified as ever. Exit code 7
says that there is one.

With --now a pass over every stream is asked for and waited for.`,
		Example: `  keyledger audit scrub
  keyledger audit scrub --now --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if now {
				if err := a.scrubNow(cmd.Context(), c); err != nil {
					return err
				}
			}
			v, r, err := scrubState(cmd.Context(), c)
			if err != nil {
				return err
			}
			return a.printScrub(v, r)
		},
	}
	c.Flags().BoolVar(&now, "now", false, "read everything again now, and wait for it")
	return c
}

func scrubState(ctx context.Context, c *client) (v scrubView, r *answer, err error) {
	if r, err = c.do(ctx, call{method: http.MethodGet, path: path("audit", "scrub")}); err == nil {
		err = r.decode(&v)
	}
	return v, r, err
}

// scrubNow asks for a pass and waits until every stream has had one since, or
// cannot have it.
func (a *app) scrubNow(ctx context.Context, c *client) error {
	r, err := c.do(ctx, call{method: http.MethodPost, path: path("audit", "scrub")})
	if err != nil {
		return err
	}
	var asked struct {
		Asked events.Time `json:"asked"`
	}
	if err := r.decode(&asked); err != nil {
		return err
	}
	bar := a.progress("reading again")
	ok := false
	defer func() { bar.end(ok) }()
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		v, _, err := scrubState(ctx, c)
		if err != nil {
			return err
		}
		var done, total uint64
		waits := false
		for _, s := range v.Streams {
			share := max(uint64(len(s.Servers)), 1)
			switch {
			case s.Last != nil && s.Last.Began >= asked.Asked:
				done, total = done+100*share, total+100*share
			case s.Began >= asked.Asked && s.Of > 0:
				done, total, waits = done+100*s.Position/s.Of, total+100*share, true
			default:
				total, waits = total+100*share, true
			}
		}
		bar.set(int64(done), int64(total))
		if !waits {
			ok = true
			return nil
		}
	}
}

func (a *app) printScrub(v scrubView, r *answer) error {
	found := func() error {
		if v.findings() > 0 {
			return quietly(exitProof)
		}
		return nil
	}
	if a.asJSON {
		if err := a.printJSON(r.body); err != nil {
			return err
		}
		return found()
	}
	var rows [][]string
	for _, s := range v.Streams {
		now := "between passes"
		if s.Of > 0 {
			now = strings.TrimSpace(fmt.Sprintf("%d of %d %s", s.Position, s.Of, clean(s.Server)))
		}
		last, took := "-", "-"
		if s.Last != nil {
			last, took = a.when(s.Last.Ended), (time.Duration(s.Last.Ended-s.Last.Began) * time.Millisecond).Round(time.Millisecond).String()
		}
		note := clean(s.Error)
		for _, x := range s.Servers {
			if x.Skipped != "" {
				note = strings.TrimSpace(note + " " + clean(x.Server) + " was not read: " + clean(x.Skipped))
			}
		}
		rows = append(rows, []string{s.Stream, now, last, took, strconv.Itoa(len(s.Findings)), orDash(note)})
	}
	if err := a.rows([]string{"Stream", "Now", "Last whole pass", "Took", "Findings", "Note"}, rows); err != nil {
		return err
	}
	for _, s := range v.Streams {
		for _, f := range s.Findings {
			if _, err := fmt.Fprintf(a.stdout, "%s: %s\n  What to do: %s (docs/runbooks/%s)\n", s.Stream, clean(f.Problem), clean(f.Fix), clean(f.Runbook)); err != nil {
				return err
			}
		}
	}
	if v.Node == "" {
		a.note("no process scrubs at present: see whether one runs `keyledger serve`")
	}
	return found()
}
