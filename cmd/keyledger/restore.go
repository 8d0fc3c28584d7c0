package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/backup"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/migrations"
)

func (a *app) restoreCommand() *cobra.Command {
	var config string
	var check, replace, keyless bool
	c := &cobra.Command{
		Use: "restore FILE", Short: "Put a backup back into an empty NATS", Args: takes("FILE"),
		Long: `Reads the backup to its end and restores it into an empty server of its own, to see
that it is whole; --check ends there. Then it makes the streams on the NATS of the
settings (--config, as a user who may restore streams), or in the state directory of
` + "`keyledger dev`" + ` (--state-dir), reads them to their end and compares them, byte for byte,
with what was backed up. PostgreSQL gets what nothing else can be built from; the rest
of it is built again from the streams when the service starts.

Stop every ` + "`keyledger`" + ` process first. A NATS that has any of the streams is refused,
unless --replace says that they are to be deleted first.

The master key is not in a backup: its file has to be where the settings say, or for
dev is named with --master-key-file. Where it is lost, --without-master-key restores
what does without: keys are verified as before, personal data is lost for ever, and the
audit log begins anew with another key.`,
		Example: `  keyledger restore --check today.zip
  keyledger restore --config serve.yaml --nats-user-file nats_admin today.zip
  keyledger restore --state-dir ./restored --master-key-file master.key today.zip`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := backup.Open(args[0])
			if err != nil {
				return damagedExit(err)
			}
			defer f.Close()
			var p *place
			if !check {
				rows := int64(0)
				for _, t := range f.Manifest.Postgres {
					rows += t.Rows
				}
				if p, err = a.place(cmd, reach{config: config, fresh: true, postgres: rows > 0 || keyless}); err != nil {
					return err
				}
				defer p.close()
			}
			return a.restore(cmd, f, args[0], p, replace, keyless)
		},
	}
	addSettings(c, &config)
	c.Flags().BoolVar(&check, "check", false, "only see that the backup is whole and can be restored")
	c.Flags().BoolVar(&replace, "replace", false, "delete the streams that are there")
	c.Flags().BoolVar(&keyless, "without-master-key", false, "the master key is lost: restore without data keys and the audit log's key")
	return c
}

// damagedExit gives a damaged backup the exit code of a failed proof.
func damagedExit(err error) error {
	if _, ok := errors.AsType[*backup.DamagedError](err); ok {
		return &exitError{code: exitProof, name: "BACKUP_DAMAGED", err: err}
	}
	return err
}

// restore tries a backup and, where p is not nil, puts it back.
func (a *app) restore(cmd *cobra.Command, f *backup.File, file string, p *place, replace, keyless bool) error {
	ctx := cmd.Context()
	m := &f.Manifest
	var master *seal.Master
	if p != nil {
		names, err := backup.Names(ctx, p.conn)
		if err != nil {
			return err
		}
		if len(names) > 0 && !replace {
			slices.Sort(names)
			return &exitError{code: exitConflict, name: "NOT_EMPTY", err: fmt.Errorf("%s has streams already (%s); nothing was changed. Restore into an empty NATS, or keep a copy of its data directory and give --replace, which deletes them", p.name, strings.Join(names, ", "))}
		}
		if master, err = p.master(); err != nil {
			return err
		}
		if master == nil && !keyless {
			return &exitError{code: exitRefused, name: "NO_MASTER_KEY", err: fmt.Errorf("the master key is not in %s, and no backup holds it; nothing was changed. Put the file there (for dev: --master-key-file), or give --without-master-key when it is lost: then personal data is lost for ever", p.masterKey)}
		}
	}
	beside, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return err
	}
	bar := a.progress("try")
	err = f.Try(ctx, beside, slog.New(slog.DiscardHandler), bar.set, func(conn *nats.Conn) error {
		if master == nil || keyless {
			return nil
		}
		js, err := jetstream.New(conn)
		if err != nil {
			return err
		}
		keys, err := seal.Open(ctx, js, *master, 1)
		if err != nil {
			return fmt.Errorf("the master key in %s: %w; nothing was changed", p.masterKey, err)
		}
		keys.Close()
		return nil
	})
	bar.end(err == nil)
	if err != nil {
		return damagedExit(err)
	}
	if p == nil {
		if err := a.printBackup(file, m); err != nil {
			return err
		}
		a.note("It is whole, and was restored into an empty server to see that.")
		return nil
	}
	return a.putBack(cmd, f, file, p, replace, keyless)
}

func (a *app) putBack(cmd *cobra.Command, f *backup.File, file string, p *place, replace, keyless bool) error {
	ctx := cmd.Context()
	m := &f.Manifest
	if replace {
		if err := backup.Remove(ctx, p.conn); err != nil {
			return err
		}
	}
	now := time.Now()
	bar := a.progress("restore")
	err := f.Restore(ctx, p.conn, backup.RestoreOptions{
		Replicas: p.replicas, Buckets: !keyless, Progress: bar.set,
		Label: map[string]string{backup.MetaBackup: m.Began.String(), backup.MetaRestored: events.At(now).String()},
	})
	bar.end(err == nil)
	if err != nil {
		return fmt.Errorf("%w. What is there now is not whole and the service refuses it: restore again with --replace", err)
	}
	if p.pool != nil {
		if _, err := migrations.Up(ctx, p.pool); err != nil {
			return fmt.Errorf("PostgreSQL: %w", err)
		}
		if err := f.RestorePostgres(ctx, p.pool); err != nil {
			return err
		}
		if keyless {
			if err := a.closeLog(ctx, p, file+".checkpoints-"+now.UTC().Format("20060102T150405Z")+".ndjson"); err != nil {
				return err
			}
		}
	}
	if err := p.keepMaster(); err != nil {
		return err
	}
	l, err := ledger.Open(ctx, p.conn, ledger.Options{Replicas: p.replicas, AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer l.Close()
	act := events.BackupRestored{Began: m.Began, Ended: m.Ended, Program: m.Program, Streams: []events.StreamRange{}, Buckets: !keyless}
	for _, s := range m.Streams {
		if !strings.HasPrefix(s.Name, "KV_") {
			act.Streams = append(act.Streams, events.StreamRange{Stream: s.Name, From: s.First, To: s.Last})
		}
	}
	e := events.New(act, now)
	e.Actor, e.Via = events.Actor{Type: "system", ID: "restore"}, "cli"
	if _, err := l.AppendOps(ctx, e); err != nil {
		return err
	}
	if err := a.printBackup(file, m); err != nil {
		return err
	}
	a.note(`Restored. What was acknowledged after %s is NOT in it: revocations perhaps among it.
  Where PostgreSQL, a head file or the audit log remembers more, the service says so when it starts, names
  the keys that would come back to life, and refuses to serve until `+"`keyledger accept-loss --go-on`"+`.
  Where nothing remembers, that date is all there is: go through your own records of what was revoked since.`, m.Began)
	if keyless {
		a.note("Without the master key: personal data in it is lost for ever, and the audit log begins anew with another key.")
	}
	return nil
}

// keepMaster puts the master key that --master-key-file names into a state directory
// of dev that has none.
func (p *place) keepMaster() error {
	if p.stateKey == "" || p.stateKey == p.masterKey {
		return nil
	}
	if _, err := os.Stat(p.stateKey); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := os.ReadFile(p.masterKey)
	if errors.Is(err, fs.ErrNotExist) { // --without-master-key
		return nil
	}
	if err != nil {
		return err
	}
	return replaceFile(p.stateKey, b)
}

// closeLog ends an audit log whose key cannot be opened any more. What PostgreSQL
// remembers as signed is saved in a file, and the published directory put aside.
func (a *app) closeLog(ctx context.Context, p *place, save string) error {
	if _, err := (&loss{}).export(ctx, p.pool, save); err != nil {
		return err
	}
	if _, err := p.pool.Exec(ctx, `delete from keyledger.log_checkpoints`); err != nil {
		return err
	}
	a.note("What the audit log had signed is saved in %s.", save)
	return p.putAside()
}
