package embedded

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// NATSConfig says how a NATS server in this process is to run. Only Dir is needed.
type NATSConfig struct {
	Dir        string // state of the server, made when absent (mode 0700)
	Listen     string // host:port for clients outside this process; "" is none; port 0 is any free one
	ServerName string // "" is "keyledger"; a node of a cluster needs its own
	Cluster    *NATSCluster
	NoSync     bool         // acknowledge before fsync. For tests alone: a power cut loses acknowledged facts
	Log        *slog.Logger // nil discards

	// Account and Offers let clients in that see no more of this server than what accounts
	// of their own import, see [NATS.SetAccounts]: what these call the account of
	// everybody else, and its exports, in the server's configuration. "": there are none.
	Account, Offers string

	// RecoverWithin bounds the recovery of the streams: on certain damaged files
	// the server never ends it. Zero: 2 minutes.
	RecoverWithin time.Duration
}

// NATSCluster makes the server a node of a JetStream cluster. It needs
// NATSConfig.Listen and ServerName: the route listener waits for the client listener.
type NATSCluster struct {
	Name   string
	Listen string   // host:port for routes
	Routes []string // nats://host:port of the route listeners of all nodes
}

// NATS is a running server. Shutdown MUST be called before the process ends in order.
type NATS struct {
	server   *server.Server
	config   NATSConfig
	lock     *flock.Flock
	listen   bool
	shutdown sync.Once

	accounts sync.Mutex // held while they are changed
	current  string     // of them
}

// maxStore takes the place of the server's own limit of three quarters of the
// free disk at start, which would refuse appends on a disk filled mostly by the streams.
const maxStore = 1 << 50

// startWait bounds the time a listener takes, after the recovery of the streams.
const startWait = 20 * time.Second

// StartNATS starts a server with JetStream on cfg.Dir and returns when it takes
// connections and has recovered its streams. Errors: *LockedError when the
// directory is open elsewhere, an address in use, a directory that belongs to a
// server of another kind (alone or of another cluster), a *RecoveryError. After
// that last one the server still reads, since nothing stops it, and keeps the
// directory locked: the process should end.
func StartNATS(cfg NATSConfig) (*NATS, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = "keyledger"
	}
	if cfg.Cluster != nil && cfg.Listen == "" {
		return nil, errors.New("NATS: a node of a cluster needs a listen address for clients")
	}
	opts, err := cfg.options("")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("NATS: make the store directory: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("NATS: %w", err)
	}
	if err := claimKind(cfg); err != nil {
		lock.Close()
		return nil, err
	}
	s, err := server.NewServer(opts)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("NATS: %w", err)
	}
	n := &NATS{server: s, config: cfg, lock: lock, listen: cfg.Listen != ""}
	log := &natsLog{log: cfg.Log}
	s.SetLoggerV2(log, false, false, false)
	if err := n.start(cfg); err != nil {
		return nil, err
	}
	if fatal := log.fatal(); fatal != "" {
		n.Shutdown()
		return nil, fmt.Errorf("NATS did not start on %q: %s", cfg.Dir, strings.TrimSpace(fatal))
	}
	if !s.ReadyForConnections(startWait) {
		n.Shutdown()
		return nil, fmt.Errorf("NATS did not take connections within %s (directory %q, listen %q)%s", startWait, cfg.Dir, cfg.Listen, log.suffix())
	}
	if s.JetStreamConfig() == nil {
		n.Shutdown()
		return nil, fmt.Errorf("NATS started without JetStream on %q%s", cfg.Dir, log.suffix())
	}
	return n, nil
}

// options are what the server runs with, and with accounts.
func (cfg NATSConfig) options(accounts string) (*server.Options, error) {
	opts := &server.Options{
		ServerName:             cfg.ServerName,
		DontListen:             cfg.Listen == "",
		NoSigs:                 true,
		JetStream:              true,
		StoreDir:               cfg.Dir,
		SyncAlways:             !cfg.NoSync,
		JetStreamMaxStore:      maxStore,
		DisableJetStreamBanner: true,
	}
	if cfg.Listen != "" {
		host, port, err := splitListen(cfg.Listen)
		if err != nil {
			return nil, err
		}
		opts.Host, opts.Port = host, port
	}
	if c := cfg.Cluster; c != nil {
		host, port, err := splitListen(c.Listen)
		if err != nil {
			return nil, err
		}
		opts.Cluster.Name, opts.Cluster.Host, opts.Cluster.Port = c.Name, host, port
		for _, r := range c.Routes {
			u, err := url.Parse(r)
			if err != nil {
				return nil, fmt.Errorf("NATS: route %q is not a URL: write it as nats://host:port", r)
			}
			opts.Routes = append(opts.Routes, u)
		}
	}
	if cfg.Account == "" {
		return opts, nil
	}
	// Whoever gives no credentials is everybody else, as on a server without accounts.
	let := server.Options{}
	if err := let.ProcessConfigString(fmt.Sprintf("no_auth_user: everybody\naccounts {\n%s {\njetstream: enabled\nusers: [{user: everybody, password: \"\"}]\n%s\n}\n%s\n}\n",
		cfg.Account, cfg.Offers, accounts)); err != nil {
		return nil, fmt.Errorf("NATS: accounts: %w", err)
	}
	for _, a := range let.Accounts {
		if a.Name == cfg.Account {
			a.Name = server.DEFAULT_GLOBAL_ACCOUNT
		}
	}
	opts.Accounts, opts.Users, opts.Nkeys, opts.NoAuthUser = let.Accounts, let.Users, let.Nkeys, let.NoAuthUser
	return opts, nil
}

// SetAccounts replaces the accounts beside the one of everybody else, which these call
// [NATSConfig.Account]: entries of accounts of the server's configuration. Clients of an
// account that is not there any more are disconnected; all others stay.
func (n *NATS) SetAccounts(accounts string) error {
	n.accounts.Lock()
	defer n.accounts.Unlock()
	if accounts == n.current {
		return nil
	}
	// An account that was not there before imports nothing until the second time.
	for range 2 {
		opts, err := n.config.options(accounts)
		if err != nil {
			return err
		}
		if err := n.server.ReloadOptions(opts); err != nil {
			return fmt.Errorf("NATS: accounts: %w", err)
		}
	}
	n.current = accounts
	return nil
}

// RecoveryError says that the server did not come to the end of its streams.
type RecoveryError struct {
	Dir   string
	Bound time.Duration
}

func (e *RecoveryError) Error() string {
	return fmt.Sprintf("NATS has not recovered the streams in %q within %s: a stream file is probably damaged so that the server reads it for ever; "+
		"keep a copy of the directory and restore it from a backup, see docs/runbooks/restore.md", e.Dir, e.Bound)
}

// start returns once the streams are recovered, or did not in time.
func (n *NATS) start(cfg NATSConfig) error {
	began := time.Now()
	started := make(chan struct{})
	go func() {
		n.server.Start()
		close(started)
	}()
	bound := cmp.Or(cfg.RecoverWithin, 2*time.Minute)
	late := time.NewTimer(bound)
	defer late.Stop()
	progress := time.NewTicker(10 * time.Second)
	defer progress.Stop()
	for {
		select {
		case <-started:
			return nil
		case <-progress.C:
			cfg.Log.Warn("NATS is still recovering its streams", "dir", cfg.Dir, "since", time.Since(began).Round(time.Second), "at_most", bound)
		case <-late.C:
			// Unlocked only when nothing touches the directory any more.
			go func() {
				<-started
				n.Shutdown()
			}()
			return &RecoveryError{cfg.Dir, bound}
		}
	}
}

// splitListen turns host:port into what the server takes, where port 0 is the default and -1 any free one.
func splitListen(listen string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(listen)
	if err != nil {
		return "", 0, fmt.Errorf("NATS: listen address %q: write it as host:port, e.g. 127.0.0.1:4222", listen)
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("NATS: listen address %q: the port must be a number from 0 to 65535", listen)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if host == "" {
		host = "0.0.0.0"
	}
	return host, port, nil
}

// claimKind refuses a directory that was written by a server alone for a node of
// a cluster and the other way round: started as the wrong kind, JetStream
// deletes the streams it finds after half a minute.
func claimKind(cfg NATSConfig) error {
	kind := "alone"
	if cfg.Cluster != nil {
		kind = fmt.Sprintf("node %s of cluster %s", cfg.ServerName, cfg.Cluster.Name)
	}
	path := filepath.Join(cfg.Dir, "kind")
	was, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return writeFileSynced(path, []byte(kind+"\n"))
	}
	if err != nil {
		return fmt.Errorf("NATS: %w", err)
	}
	if got := strings.TrimSpace(string(was)); got != kind {
		return fmt.Errorf("NATS: directory %q was written by a server running as %q, not as %q: start it as before, or choose another directory", cfg.Dir, got, kind)
	}
	return nil
}

// Conn opens a connection through memory, which needs no listener. It does not
// survive Shutdown.
func (n *NATS) Conn(opts ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect("", append([]nats.Option{nats.InProcessServer(n.server)}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS in process: %w", err)
	}
	return nc, nil
}

// ClientURL is where clients outside this process connect, "" without a listener.
func (n *NATS) ClientURL() string {
	if !n.listen {
		return ""
	}
	return n.server.ClientURL()
}

// SyncAlways reports whether the running server syncs every write before it
// acknowledges: what it does, not what it was asked to do.
func (n *NATS) SyncAlways() bool {
	c := n.server.JetStreamConfig()
	return c != nil && c.SyncAlways
}

// Server is the server itself, for what this type does not offer.
func (n *NATS) Server() *server.Server { return n.server }

// Shutdown stops the server, waits until its files are closed, and unlocks the directory.
func (n *NATS) Shutdown() {
	n.shutdown.Do(func() {
		n.server.Shutdown()
		n.server.WaitForShutdown()
		n.lock.Close()
	})
}

// natsLog writes the server's lines to slog and keeps the last fatal and error
// lines, since Start returns no error.
type natsLog struct {
	log *slog.Logger

	mu                   sync.Mutex // guards what follows
	lastFatal, lastError string
}

func (l *natsLog) line(level func(string, ...any), format string, v []any) string {
	s := fmt.Sprintf(format, v...)
	level(s, "from", "nats")
	return s
}

func (l *natsLog) Noticef(f string, v ...any) { l.line(l.log.Debug, f, v) }
func (l *natsLog) Debugf(f string, v ...any)  { l.line(l.log.Debug, f, v) }
func (l *natsLog) Tracef(f string, v ...any)  { l.line(l.log.Debug, f, v) }

func (l *natsLog) Warnf(f string, v ...any) {
	if strings.HasPrefix(f, "Plaintext passwords detected") {
		return // it is the empty one of the user that everybody is
	}
	l.line(l.log.Warn, f, v)
}

func (l *natsLog) Errorf(f string, v ...any) {
	s := l.line(l.log.Error, f, v)
	l.mu.Lock()
	l.lastError = s
	l.mu.Unlock()
}

func (l *natsLog) Fatalf(f string, v ...any) {
	s := l.line(l.log.Error, f, v)
	l.mu.Lock()
	l.lastFatal = s
	l.mu.Unlock()
}

func (l *natsLog) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastFatal
}

func (l *natsLog) suffix() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.lastFatal != "":
		return ": " + l.lastFatal
	case l.lastError != "":
		return ": " + l.lastError
	}
	return ""
}
