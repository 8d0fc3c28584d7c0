package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/backup"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

const withoutMaster = `The master key (%s) is NOT in it, so that a stolen backup opens no personal data.
  Keep a copy of that file somewhere else. Without it a restored ledger goes on verifying keys, but
  every sealed source address and user agent is lost for ever, and the audit log begins anew with another key.`

func (a *app) backupCommand() *cobra.Command {
	var config, out string
	c := &cobra.Command{
		Use: "backup", Short: "Copy the whole installation into one file, while it runs", Args: takes(),
		Long: `Copies all streams, the data keys (wrapped), the wrapped key of the audit log, and
what PostgreSQL alone has, into one file: consistent in itself, with everything that
was acknowledged before it began. The copy is restored once into an empty server
beside the file and read to its end before the file appears under its name.

It runs beside the service: with its settings (--config), or for ` + "`keyledger dev`" + ` with
its state directory. -o names a new file, or a directory in which the file is named
by the time. The master key is not in it: keep that apart.`,
		Example: `  keyledger backup --config serve.yaml --nats-user-file nats_backup -o /backups/
  keyledger backup -o today.zip`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.place(cmd, reach{config: config, running: true, postgres: true})
			if err != nil {
				return err
			}
			defer p.close()
			path := out
			if info, err := os.Stat(out); err == nil && info.IsDir() {
				path = filepath.Join(out, "keyledger-"+a.now().UTC().Format("20060102T150405Z")+".zip")
			}
			if err := announceBackup(cmd, p); err != nil {
				return err
			}
			bar := a.progress("backup")
			m, err := backup.Write(cmd.Context(), path, backup.Options{
				Conn: p.conn, Pool: p.pool, Program: build().Version, Progress: bar.set, Log: slog.New(slog.DiscardHandler),
			})
			bar.end(err == nil)
			if err != nil {
				return err
			}
			if err := a.printBackup(path, m); err != nil {
				return err
			}
			a.note(withoutMaster, p.masterKey)
			return nil
		},
	}
	addSettings(c, &config)
	c.Flags().StringVarP(&out, "output", "o", "", "the file to make, or a directory")
	must(c, "output")
	return c
}

// announceBackup refuses to copy a ledger in doubt, and records that somebody takes
// everything there is.
func announceBackup(cmd *cobra.Command, p *place) error {
	l, err := ledger.Open(cmd.Context(), p.conn, ledger.Options{ReadOnly: true, Replicas: p.replicas, AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer l.Close()
	e := events.New(events.AuditRead{What: "backup", Filter: map[string]string{}}, time.Now())
	e.Actor, e.Via = events.Actor{Type: "system", ID: "backup"}, "cli"
	_, err = l.AppendOps(cmd.Context(), e)
	return err
}

// backupView is what backup and restore print.
type backupView struct {
	File     string      `json:"file"`
	Bytes    int64       `json:"bytes"`
	Began    events.Time `json:"began"`
	Ended    events.Time `json:"ended"`
	Program  string      `json:"program"`
	Streams  []headView  `json:"streams"`
	Postgres int         `json:"postgres_tables"`
	Without  []string    `json:"without"`
}

type headView struct {
	Stream    string      `json:"stream"`
	First     uint64      `json:"first"`
	Last      uint64      `json:"last"`
	Messages  uint64      `json:"messages"`
	Events    uint64      `json:"events"`
	LastEvent string      `json:"last_event"`
	LastTime  events.Time `json:"last_time"`
	Digest    string      `json:"digest"`
}

func viewOf(path string, m *backup.Manifest) (backupView, error) {
	info, err := os.Stat(path)
	if err != nil {
		return backupView{}, err
	}
	v := backupView{File: path, Bytes: info.Size(), Began: m.Began, Ended: m.Ended, Program: m.Program, Postgres: len(m.Postgres), Without: m.Without}
	for _, s := range m.Streams {
		v.Streams = append(v.Streams, headView{s.Name, s.First, s.Last, s.Messages, s.Events, s.LastEvent, s.LastTime, s.Digest})
	}
	return v, nil
}

func (a *app) printBackup(path string, m *backup.Manifest) error {
	v, err := viewOf(path, m)
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.printValue(v)
	}
	rows := make([][]string, len(v.Streams))
	for i, s := range v.Streams {
		rows[i] = []string{s.Stream, fmt.Sprint(s.Last), fmt.Sprint(s.Messages), fmt.Sprint(s.Events), a.when(s.LastTime), orDash(s.LastEvent)}
	}
	if err := a.rows([]string{"Stream", "Ends at", "Messages", "Events", "Last", "Last event"}, rows); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s: %d bytes, all that was acknowledged before %s\n", v.File, v.Bytes, v.Began)
	return err
}
