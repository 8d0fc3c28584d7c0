package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/embedded"
)

// place is an installation as backup, restore and accept-loss reach it: that of
// `serve` by its settings, or that of `dev` by its state directory.
type place struct {
	name      string // for messages
	conn      *nats.Conn
	pool      *pgxpool.Pool // nil: not asked for
	replicas  int
	masterKey string // file
	stateKey  string // file of a state directory of dev; empty: there is none
	published string // directory that the audit log is published to; empty: none
	heads     string // directory of the head files; empty: there are none
	sync      func(context.Context) (bool, error)
	unsynced  bool
	closers   []func()
}

func (p *place) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
}

// reach says how a place is wanted.
type reach struct {
	config   string
	running  bool // beside the running service; else `dev` MUST NOT run on it
	fresh    bool // a state directory that is not there yet is made
	postgres bool
}

// place opens the installation that the flags and the environment name: with a
// settings file or a NATS server that of `serve`, else that of `dev`.
func (a *app) place(cmd *cobra.Command, r reach) (_ *place, err error) {
	ctx := cmd.Context()
	p := &place{replicas: 1}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if r.config != "" || cmd.Flags().Changed("nats-url") || os.Getenv(envName("nats.url")) != "" {
		s, err := readSettings(cmd, r.config)
		if err != nil {
			return nil, err
		}
		return p, p.openSettings(ctx, s, r, a)
	}
	named, err := cmd.Flags().GetString("state-dir")
	if err != nil {
		return nil, err
	}
	if named == "" && r.running && os.Getenv("KEYLEDGER_STATE_DIR") == "" {
		if file, err := ContextPath(); err == nil { // of the `dev` that started last
			if c, err := ReadContext(file); err == nil {
				named = c.StateDir
			}
		}
	}
	dir, err := a.stateDir(devFlags{stateDir: named})
	if err != nil {
		return nil, err
	}
	p.name, p.published = dir, filepath.Join(dir, "log")
	if _, err := os.Stat(filepath.Join(dir, "version")); errors.Is(err, fs.ErrNotExist) && !r.fresh {
		return nil, usageError("%s is no state directory of `keyledger dev`: name one with --state-dir, or the settings of `keyledger serve` with --config", dir)
	}
	if p.masterKey, err = cmd.Flags().GetString("master-key-file"); err != nil {
		return nil, err
	}
	p.stateKey = filepath.Join(dir, "master.key")
	if p.masterKey == "" {
		p.masterKey = p.stateKey
	}
	state, err := embedded.OpenStateDir(dir)
	if _, locked := errors.AsType[*embedded.LockedError](err); locked && r.running {
		return p, p.openRunning(ctx, dir, r)
	}
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, func() { _ = state.Close() })
	p.heads = dir
	quiet := slog.New(slog.DiscardHandler)
	server, err := embedded.StartNATS(embedded.NATSConfig{Dir: state.NATS(), Log: quiet})
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, server.Shutdown)
	p.sync = func(context.Context) (bool, error) { return server.SyncAlways(), nil }
	if p.conn, err = server.Conn(nats.Name("keyledger " + cmd.Name())); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.conn.Close)
	if !r.postgres {
		return p, nil
	}
	url := os.Getenv("KEYLEDGER_POSTGRES_URL")
	if url == "" {
		private, err := embedded.StartPostgres(ctx, embedded.PostgresConfig{Dir: state.Postgres(), Log: quiet})
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, func() { _ = private.Stop() })
		url = private.URL()
	}
	return p, p.openPool(ctx, url)
}

func (p *place) openPool(ctx context.Context, url string) (err error) {
	if p.pool, err = pgxpool.New(ctx, url); err != nil {
		return errors.New("the PostgreSQL URL is not one that can be read: postgres://user@host:5432/database")
	}
	p.closers = append(p.closers, p.pool.Close)
	return nil
}

func (p *place) openSettings(ctx context.Context, s *settings, r reach, a *app) (err error) {
	p.name, p.replicas, p.masterKey = s.NATS.URL, s.NATS.Replicas, s.MasterKeyFile
	p.sync, p.unsynced = ledger.SyncedBy(s.NATS.Monitor), s.NATS.AllowUnverifiedSync
	if s.StateDir != noState {
		p.heads = s.StateDir
	}
	switch p.published = s.LogDir; {
	case p.published == noState:
		p.published = ""
	case p.published == "" && p.heads != "":
		p.published = filepath.Join(p.heads, "log")
	}
	if p.conn, err = s.natsConn(s.logger(a)); err != nil {
		return err
	}
	p.closers = append(p.closers, p.conn.Close)
	if r.postgres {
		if p.pool, err = s.pool(ctx); err != nil {
			return err
		}
		p.closers = append(p.closers, p.pool.Close)
	}
	return nil
}

// openRunning finds the `dev` that runs on a state directory by the context file that
// it wrote.
func (p *place) openRunning(ctx context.Context, dir string, r reach) error {
	file, err := ContextPath()
	if err != nil {
		return err
	}
	c, err := ReadContext(file)
	if err != nil || c.NATSURL == "" || filepath.Dir(c.TokenFile) != dir {
		return fmt.Errorf("a `keyledger dev` runs on %s, but the context file %s is not the one that it wrote: stop it, or set KEYLEDGER_CONTEXT as it was set there", dir, file)
	}
	if p.conn, err = nats.Connect(c.NATSURL, nats.Name("keyledger backup")); err != nil {
		return &exitError{code: exitUnreachable, name: "UNREACHABLE", err: fmt.Errorf("the NATS of `keyledger dev` does not answer: %w", err)}
	}
	p.closers = append(p.closers, p.conn.Close)
	p.unsynced = true // of this machine: it was checked at its start
	if r.postgres {
		return p.openPool(ctx, c.PostgresURL)
	}
	return nil
}

// master reads the master key; nil where there is no such file.
func (p *place) master() (*seal.Master, error) {
	if _, err := os.Stat(p.masterKey); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	m, err := seal.LoadMaster(p.masterKey)
	if err != nil {
		return nil, err
	}
	return &m, nil
}

// headFiles are the files in which processes remember how far the streams were.
func (p *place) headFiles() ([]string, error) {
	if p.heads == "" {
		return nil, nil
	}
	one, err := filepath.Glob(filepath.Join(p.heads, "head.json"))
	if err != nil {
		return nil, err
	}
	more, err := filepath.Glob(filepath.Join(p.heads, "head.*.json"))
	return append(one, more...), err
}
