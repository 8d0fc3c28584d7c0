package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/audit/inspect"
)

// verifyInstallation checks the streams, what remembers them, and the read models.
func (a *app) verifyInstallation(cmd *cobra.Command, config string, o inspect.Options, earlier []string) error {
	for _, name := range earlier {
		f, err := os.Open(name)
		if err != nil {
			return usageError("--earlier cannot be read: %v", err)
		}
		defer f.Close()
		o.Evidence = append(o.Evidence, inspect.Evidence{Name: name, File: f})
	}
	p, err := a.place(cmd, reach{config: config, running: true, postgres: true})
	if err != nil {
		return err
	}
	defer p.close()
	o.Conn, o.Pool, o.Replicas, o.Dir = p.conn, p.pool, p.replicas, p.published
	o.Known, o.Log = publishedHeads(p.published), slog.New(slog.DiscardHandler)
	if o.HeadFiles, err = p.headFiles(); err != nil {
		return err
	}
	if o.Master, err = p.master(); err != nil {
		return err
	}
	var bar *progressBar
	shown := ""
	o.Progress = func(what string, done, total int64) {
		if what != shown {
			if bar != nil {
				bar.end(true)
			}
			bar, shown = a.progress(what), what
		}
		bar.set(done, total)
	}
	r, err := inspect.Run(cmd.Context(), o)
	if bar != nil {
		bar.end(err == nil)
	}
	if err != nil {
		return err
	}
	if err := a.printInspection(&r); err != nil {
		return err
	}
	switch {
	case r.Failed():
		return quietly(exitProof)
	case !r.Pass:
		return quietly(exitFailed)
	}
	return nil
}

func (a *app) printInspection(r *inspect.Report) error {
	if a.asJSON {
		return a.printValue(r)
	}
	verdict := inspect.Fail
	if r.Pass {
		verdict = inspect.Pass
	} else if !r.Failed() {
		verdict = inspect.Unknown
	}
	lines := append(r.Lines[:len(r.Lines):len(r.Lines)], inspect.Line{Status: verdict, Subject: orDash(r.Log), Said: "the whole"})
	width := 0
	for _, l := range lines {
		width = max(width, len(l.Subject))
	}
	for _, l := range lines {
		said := clean(l.Said)
		if l.Finding != "" {
			said = l.Finding + ": " + said
		}
		text := l.Status + "\t" + clean(l.Subject) + "\t" + said
		if a.tty {
			text = a.paint(l.Status) + strings.Repeat(" ", 9-len(l.Status)) + fmt.Sprintf("%-*s  %s", width, clean(l.Subject), said)
		}
		if _, err := fmt.Fprintln(a.stdout, text); err != nil {
			return err
		}
	}
	return nil
}
