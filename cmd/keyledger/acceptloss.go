package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/projections/merkle"
)

func (a *app) acceptLossCommand() *cobra.Command {
	var config, by, reason, export string
	var goOn, revoke bool
	c := &cobra.Command{
		Use: "accept-loss", Short: "Say what history is missing after a restore, and go on without it", Args: takes(),
		Long: `Compares the streams with everything that remembers more of them: the copy of LEDGER
and the positions in PostgreSQL, the signed checkpoints, the published directory and the
head files. It says what is missing, since when, and which keys would come back to life:
those that were revoked, deleted, rotated or cut short by a fact that is missing.
Without --go-on it changes nothing; exit code 6 says that something is missing.

With --go-on it saves what PostgreSQL still has of the missing facts in a new file,
records who went on without what (loss.accepted on OPS), and makes the read models,
and the audit log where it has signed what is missing, begin again. With
--revoke-returned the keys that would come back to life are revoked first. Every
` + "`keyledger`" + ` process has to be stopped. It needs the settings of ` + "`serve`" + `, or the state
directory of ` + "`dev`" + `, so that only whoever owns the machine can do it.`,
		Example: `  keyledger accept-loss --config serve.yaml
  keyledger accept-loss --config serve.yaml --go-on --revoke-returned --by ops-17 --reason 'disk lost, INC-301' --export lost.ndjson`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if goOn && (by == "" || reason == "" || export == "") {
				return usageError("--go-on needs --by (who decides, an opaque id), --reason, and --export (a new file for what PostgreSQL still has)")
			}
			if !goOn && revoke {
				return usageError("--revoke-returned belongs to --go-on")
			}
			p, err := a.place(cmd, reach{config: config, postgres: true})
			if err != nil {
				return err
			}
			defer p.close()
			ctx := cmd.Context()
			if _, err := migrations.Up(ctx, p.pool); err != nil {
				return fmt.Errorf("PostgreSQL: %w", err)
			}
			heads, err := p.headFiles()
			if err != nil {
				return err
			}
			l, err := assess(ctx, p.conn, p.pool, p.replicas, heads, p.published)
			if err != nil {
				return err
			}
			if l == nil {
				if a.asJSON {
					return a.printValue(map[string]bool{"missing": false})
				}
				_, err := fmt.Fprintln(a.stdout, "Nothing is missing that anybody here remembers.")
				return err
			}
			if !goOn {
				if a.asJSON {
					err = a.printValue(l)
				} else {
					_, err = fmt.Fprintf(a.stdout, "%s\n\nTo go on:\n  keyledger accept-loss … --go-on --revoke-returned --by WHO --reason WHY --export FILE\n", l)
				}
				return errors.Join(err, quietly(exitRefused))
			}
			return a.goOn(ctx, p, l, heads, by, reason, export, revoke)
		},
	}
	addSettings(c, &config)
	c.Flags().BoolVar(&goOn, "go-on", false, "go on without what is missing")
	c.Flags().BoolVar(&revoke, "revoke-returned", false, "revoke the keys that would come back to life")
	c.Flags().StringVar(&by, "by", "", "who decides: an opaque id, for the event")
	c.Flags().StringVar(&reason, "reason", "", "why, for the event")
	c.Flags().StringVar(&export, "export", "", "a new file for the missing facts that PostgreSQL still has (mode 0600)")
	return c
}

// namedKeys is how many keys the event names; the exported file has all.
const namedKeys = 1000

// accepted is what accept-loss prints.
type accepted struct {
	*loss
	Event   string   `json:"event"`
	Revoked []string `json:"revoked"`
	Export  string   `json:"export"`
	SHA256  string   `json:"export_sha256"`
}

// goOn does all that makes the service start again. Cut off anywhere it can be
// repeated: what remembers the loss is forgotten last.
func (a *app) goOn(ctx context.Context, p *place, l *loss, heads []string, by, reason, export string, revoke bool) error {
	sum, err := l.export(ctx, p.pool, export)
	if err != nil {
		return err
	}
	led, err := ledger.Open(ctx, p.conn, ledger.Options{Replicas: p.replicas, SyncAlways: p.sync, AllowUnverifiedSync: p.unsynced, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer led.Close()
	done := accepted{loss: l, Revoked: []string{}, Export: export, SHA256: sum}
	if revoke && len(l.Returned) > 0 {
		if done.Revoked, err = revokeAll(ctx, led, by, reason, l.Returned); err != nil {
			return fmt.Errorf("%d of %d keys were revoked, then: %w. Nothing else was changed; run it again, with another --export", len(done.Revoked), len(l.Returned), err)
		}
	}
	act := events.LossAccepted{
		Backup: l.Backup, Missing: l.Missing, Since: l.Since, Facts: l.Facts, Count: int64(len(l.Returned)), Returned: []string{},
		Revoked: int64(len(done.Revoked)), Unknown: int64(len(l.Unknown)), NewLog: l.NewLog, Export: sum, Reason: reason,
	}
	for _, k := range l.Returned[:min(len(l.Returned), namedKeys)] {
		act.Returned = append(act.Returned, k.Key)
	}
	e := events.New(act, time.Now())
	e.Actor, e.Via = events.Actor{Type: "system", ID: by}, "cli"
	if _, err := led.AppendOps(ctx, e); err != nil {
		return err
	}
	done.Event = e.ID
	if l.NewLog {
		if err := endLog(ctx, p); err != nil {
			return err
		}
		if err := p.putAside(); err != nil {
			return err
		}
	}
	if err := forget(ctx, p.pool, led, l); err != nil {
		return err
	}
	for _, file := range heads {
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	if a.asJSON {
		return a.printValue(done)
	}
	fmt.Fprintf(a.stdout, "Recorded as %s. %d facts of LEDGER are saved in %s (SHA-256 %s).\n", e.ID, l.Facts, export, sum)
	fmt.Fprintf(a.stdout, "%d of %d keys that came back to life are revoked.\n", len(done.Revoked), len(l.Returned))
	_, err = fmt.Fprintln(a.stdout, "The service starts again now; its read models are built from the streams. Repeat what else is in that file by hand.")
	a.note("Gateways and other processes on other machines remember too: remove their head.*.json files.")
	if l.NewLog {
		a.note("The audit log begins anew, and the directory that it was published in is put aside as evidence. Give auditors the new key (`keyledger audit key`).")
	}
	return err
}

func revokeAll(ctx context.Context, led *ledger.Ledger, by, reason string, keys []returnedKey) ([]string, error) {
	ring := keyring.New()
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- ring.Run(running, led) }()
	defer func() { stop(); <-ended }()
	select {
	case <-ring.Ready():
	case err := <-ended:
		ended <- err
		return nil, err
	}
	c := &commands.Commands{Ledger: led, Ring: ring}
	q := commands.Request{Authority: domain.System(by), Via: "accept-loss"}
	revoked := []string{}
	for _, k := range keys {
		if _, err := c.RevokeKey(ctx, q, k.Key, domain.RevokeKey{Reason: "came back to life by a restore: " + reason}); err != nil {
			return revoked, fmt.Errorf("revoke %s: %w", k.Key, err)
		}
		revoked = append(revoked, k.Key)
	}
	return revoked, nil
}

// export saves the loss and every missing fact, one JSON object a line, and the
// checkpoints that were signed. It never replaces a file.
func (l *loss) export(ctx context.Context, pool *pgxpool.Pool, path string) (sum string, err error) {
	var b bytes.Buffer
	line := func(v any) {
		if err == nil {
			var j []byte
			j, err = json.Marshal(v)
			b.Write(append(j, '\n'))
		}
	}
	line(map[string]any{"loss": l})
	for _, f := range l.lost {
		line(map[string]any{"stream": events.Ledger, "sequence": f.sequence, "subject": f.subject, "body": string(f.body)})
	}
	rows, queryErr := pool.Query(ctx, `select signed from keyledger.log_checkpoints order by stream, size`)
	if queryErr != nil {
		return "", queryErr
	}
	signed, queryErr := pgx.CollectRows(rows, pgx.RowTo[string])
	if queryErr != nil {
		return "", queryErr
	}
	for _, s := range signed {
		line(map[string]any{"checkpoint": s})
	}
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("--export: %w", err)
	}
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("--export: %w", err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	s := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(s[:]), errors.Join(d.Sync(), d.Close())
}

// endLog ends the audit log that has signed what is missing: going on with its key
// would make two roots for one size. The next start makes another key, under another
// name.
func endLog(ctx context.Context, p *place) error {
	js, err := jetstream.New(p.conn)
	if err != nil {
		return err
	}
	kv, err := js.KeyValue(ctx, merkle.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return err
	}
	for _, name := range names {
		if err := kv.Delete(ctx, name); err != nil {
			return fmt.Errorf("end the audit log: %w", err)
		}
	}
	return nil
}

// putAside renames the directory that the audit log was published in: it is evidence.
func (p *place) putAside() error {
	if p.published == "" {
		return nil
	}
	err := os.Rename(p.published, p.published+".until-"+time.Now().UTC().Format("20060102T150405Z"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("put the published log aside: %w", err)
	}
	return nil
}

// forget makes the read models of the streams with missing history begin again. The
// baselines of what was pruned stay, where they do not go beyond the stream.
func forget(ctx context.Context, pool *pgxpool.Pool, led *ledger.Ledger, l *loss) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	missing := map[string]bool{}
	for _, r := range l.Missing {
		missing[r.Stream] = true
		head, err := led.Head(ctx, r.Stream)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `delete from keyledger.heads where stream = $1`, r.Stream); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `delete from keyledger.baselines where stream = $1 and sequence > $2`, r.Stream, int64(head)); err != nil {
			return err
		}
	}
	for _, p := range append(projections.All(), projections.Addresses{}) {
		if !missing[p.Stream()] {
			continue
		}
		for _, t := range p.Tables() {
			if _, err := tx.Exec(ctx, `truncate `+pgx.Identifier{"keyledger", t.Name}.Sanitize()); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `delete from keyledger.positions where name = $1`, p.Name()); err != nil {
			return err
		}
	}
	for stream := range missing { // of a program that was here before
		if _, err := tx.Exec(ctx, `delete from keyledger.positions where stream = $1`, stream); err != nil {
			return err
		}
	}
	if l.NewLog {
		if _, err := tx.Exec(ctx, `delete from keyledger.log_checkpoints`); err != nil {
			return err
		}
	}
	return tx.Commit(ctx)
}
