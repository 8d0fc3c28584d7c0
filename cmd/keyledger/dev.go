package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/commands/subscribers"
	"github.com/keyledger/keyledger/console"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/demo"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/keyspaces"
	"github.com/keyledger/keyledger/reactors/sinks"
	"github.com/keyledger/keyledger/verify"
)

// devMemory is in bytes, a soft limit: a million keys take a tenth of it.
const devMemory = 3 << 30

// devFlags are the settings of `keyledger dev`; every one has a default that
// works.
type devFlags struct {
	stateDir, listen, gatewayListen, natsListen, postgresURL string
	noSample, ephemeral, verbose                             bool
	usageRetention, logPolicy, sinks, openID                 string
	open                                                     bool
	authz                                                    authzSettings
}

func (a *app) devCommand() *cobra.Command {
	var f devFlags
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run everything here, to try it: NATS, PostgreSQL, the API and a gateway",
		Long: `Runs NATS JetStream and a private PostgreSQL, the API and a gateway in front of
a demo upstream, with sample keyspaces and keys. Ctrl-C keeps all data; the next
start continues with it. A context file is written, so that the other commands
work in another terminal.

It is for one machine and one person: NATS is open to every program on this
machine.`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.dev(cmd.Context(), f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.stateDir, "state-dir", "", "where all data is kept (else KEYLEDGER_STATE_DIR, keyledger/dev in the user's state directory)")
	fl.StringVar(&f.listen, "listen", "127.0.0.1:7070", "address of the API")
	fl.StringVar(&f.gatewayListen, "gateway-listen", "127.0.0.1:7071", "address of the gateway")
	fl.StringVar(&f.natsListen, "nats-listen", "127.0.0.1:7072", "address of NATS for subscribers")
	fl.StringVar(&f.authz.AuthzSocket, "authz-socket", "", "Unix socket that answers forward-auth without a token (default: none; the API answers it with X-Authz-Token)")
	fl.StringVar(&f.postgresURL, "postgres-url", "", "use this PostgreSQL instead of a private one (a URL with a password belongs into KEYLEDGER_POSTGRES_URL)")
	fl.StringVar(&f.logPolicy, "log-policy", "", "file that names the witnesses of the audit log")
	fl.StringVar(&f.sinks, "sinks", "", "file in YAML that names systems to deliver facts to")
	fl.StringVar(&f.openID, "openid", "", "file in YAML with the settings openid of serve: the identity provider of the console")
	fl.BoolVar(&f.open, "open", false, "open the console in the browser")
	fl.BoolVar(&f.noSample, "no-sample", false, "leave out sample owners, keys and traffic")
	fl.BoolVar(&f.ephemeral, "ephemeral", false, "keep nothing: use a temporary state directory and remove it at the end")
	fl.StringVar(&f.usageRetention, "usage-retention", "", "how long uses stay in USAGE, such as 400d (default: for ever)")
	fl.BoolVar(&f.verbose, "verbose", false, "log every request and what the servers say")
	return c
}

// dev runs everything in this process until ctx ends.
func (a *app) dev(ctx context.Context, f devFlags) (err error) {
	started := time.Now()
	log := a.logger(f.verbose)
	keep, err := usageRetention(f.usageRetention)
	if err != nil {
		return err
	}
	var delivered []*sinks.Sink
	if f.sinks != "" {
		if delivered, err = readSinks(f.sinks, true); err != nil {
			return err
		}
	}
	var openID *console.OpenID
	if f.openID != "" {
		if openID, err = openIDOf(f.openID); err != nil {
			return err
		}
	}
	if f.stateDir, err = a.stateDir(f); err != nil {
		return err
	}
	if f.ephemeral {
		defer os.RemoveAll(f.stateDir)
	}
	// A NATS server keeps what it has read until memory is collected: reading a large log
	// once would leave all of it here.
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(devMemory)
	}
	state, err := embedded.OpenStateDir(f.stateDir)
	if err != nil {
		return err
	}
	defer state.Close()

	// Addresses first: what is taken is found before anything is started.
	apiListener, err := listen("the API", "listen", f.listen)
	if err != nil {
		return err
	}
	defer apiListener.Close()
	gatewayListener, err := listen("the gateway", "gateway-listen", f.gatewayListen)
	if err != nil {
		return err
	}
	defer gatewayListener.Close()
	upstream, err := listen("the demo upstream", "gateway-listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer upstream.Close()
	probe, err := listen("NATS", "nats-listen", f.natsListen)
	if err != nil {
		return err
	}
	natsAddr := probe.Addr().String()
	probe.Close()

	server, err := embedded.StartNATS(embedded.NATSConfig{Dir: state.NATS(), Listen: natsAddr, Account: subscribers.Account, Offers: subscribers.Exports, Log: log.With("part", "nats")})
	if err != nil {
		return err
	}
	defer server.Shutdown()
	conn, err := server.Conn(nats.Name("keyledger dev"), nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer conn.Close()

	postgresURL, private := f.postgresURL, (*embedded.Postgres)(nil)
	if postgresURL == "" {
		postgresURL = os.Getenv("KEYLEDGER_POSTGRES_URL")
	}
	if postgresURL == "" {
		private, err = embedded.StartPostgres(ctx, embedded.PostgresConfig{Dir: state.Postgres(), Log: log.With("part", "postgres")})
		if err != nil {
			return err
		}
		defer private.Stop()
		postgresURL = private.URL()
	}
	pool, err := pgxpool.New(ctx, postgresURL)
	if err != nil {
		return errors.New("the PostgreSQL URL is not one that can be read: postgres://user@host:5432/database")
	}
	defer pool.Close()

	master, err := seal.LoadOrCreateMaster(state.File("master.key"))
	if err != nil {
		return err
	}
	var policy *audit.Policy
	if f.logPolicy != "" {
		if policy, err = readLogPolicy(f.logPolicy); err != nil {
			return err
		}
	}
	// Receivers under development are on this machine.
	hooks, err := webhookSettings{AllowHTTP: true, AllowPrivate: []string{"127.0.0.0/8", "::1"}}.policy()
	if err != nil {
		return err
	}
	var routed atomic.Pointer[gateway.Gateway] // set once there is a gateway that new keyspaces get a route in
	name := verify.NodeName("dev")
	var n *node
	n, err = openNode(ctx, nodeConfig{
		Program: "dev", Name: name, Conn: conn, Pool: pool, Replicas: 1,
		SyncAlways: func(context.Context) (bool, error) { return server.SyncAlways(), nil },
		HeadFile:   state.File("head.json"), WAL: state.File("wal"), Master: master, Signs: true, LogDir: state.File("log"), LogPolicy: policy, UsageRetention: keep, Sinks: delivered, Webhooks: hooks, Accounts: server.SetAccounts, Log: log,
		OnKeyspace: func(*domain.Keyspace) {
			if g := routed.Load(); g != nil {
				if err := g.SetRoutes(devRoutes(n, upstream.Addr().String())); err != nil {
					log.Error("the gateway has no route to the new keyspace", "error", err)
				}
			}
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
		defer cancel()
		err = errors.Join(err, n.close(end))
	}()

	rootFile := state.File("root.key")
	if err := ensureRootKey(ctx, n, rootFile); err != nil {
		return err
	}
	configured, err := configureMissing(ctx, n.commands)
	if err != nil {
		return err
	}
	here := []string{"127.0.0.0/8", "::1/128"}
	gw, err := gateway.New(gateway.Config{
		Routes:         devRoutes(n, upstream.Addr().String()),
		TrustedProxies: here,
	}, n.verifier, n.recorder, log)
	if err != nil {
		return err
	}
	routed.Store(gw)
	// One more may have been configured between the two lines above.
	if err := gw.SetRoutes(devRoutes(n, upstream.Addr().String())); err != nil {
		return err
	}

	z, err := forwardAuth(n, gateway.Config{TrustedProxies: here})
	if err != nil {
		return err
	}
	endpoints, err := f.authz.endpoints(z, log)
	if err != nil {
		return err
	}
	deps := apiDeps(ctx, n)
	deps.Authz = z
	sessions, pages, err := withConsole(ctx, n, api.New(deps), openID, here)
	if err != nil {
		return err
	}
	endpoints = append(endpoints,
		plainly("the API", apiListener, pages, log),
		plainly("the gateway", gatewayListener, gw, log),
		plainly("the demo upstream", upstream, demo.Handler(), log),
	)
	places := devPlaces{
		API: "http://" + apiListener.Addr().String(), Gateway: "http://" + gatewayListener.Addr().String(),
		NATS: "nats://" + natsAddr, Postgres: postgresURL, State: f.stateDir, RootKey: rootFile,
		LogKey: n.log.Key(), LogDir: state.File("log"),
		private: private != nil, ephemeral: f.ephemeral, sample: !f.noSample, started: started, configured: configured,
	}
	ctxFile, err := ContextPath()
	if err == nil {
		err = WriteContext(ctxFile, Context{URL: places.API, TokenFile: rootFile, NATSURL: places.NATS, GatewayURL: places.Gateway, PostgresURL: postgresURL, StateDir: f.stateDir})
	}
	if err != nil {
		log.Warn("no context file was written; give --url and --token-file to the other commands", "error", err)
	}
	running := make(chan error, 1)
	go func() { running <- n.serve(ctx, nil, endpoints...) }()
	if !f.noSample {
		if err := sample(ctx, n, places.Gateway); err != nil && ctx.Err() == nil {
			log.Warn("the sample is not complete", "error", err)
		}
	}
	if places.Console, err = signInLink(ctx, sessions, rootFile, places.API); err != nil {
		log.Warn("nobody can sign in at the console", "error", err)
	}
	a.announce(places)
	if f.open && places.Console != "" {
		if err := openBrowser(ctx, f.stateDir, places.Console); err != nil {
			log.Warn(err.Error())
		}
	}
	err = <-running
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
	defer cancel()
	err = errors.Join(err, gw.Shutdown(drain))
	if err == nil && !f.ephemeral {
		fmt.Fprintf(a.stderr, "\nStopped. Everything is kept in %s; start again to go on.\n", f.stateDir)
	}
	return err
}

func (a *app) logger(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}

func (a *app) stateDir(f devFlags) (string, error) {
	switch {
	case f.ephemeral && f.stateDir != "":
		return "", usageError("--ephemeral keeps nothing, so --state-dir has no meaning with it: give one of them")
	case f.ephemeral:
		return os.MkdirTemp("", "keyledger-dev-")
	case f.stateDir != "":
		return filepath.Abs(f.stateDir)
	}
	if dir := os.Getenv("KEYLEDGER_STATE_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "keyledger", "dev"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("there is no home directory to keep data in (%w): give --state-dir", err)
	}
	return filepath.Join(home, ".local", "state", "keyledger", "dev"), nil
}

// signInLink is where a browser signs in at the console as the root key of a file, once.
func signInLink(ctx context.Context, sessions *console.Sessions, rootFile, url string) (string, error) {
	b, err := os.ReadFile(rootFile)
	if err != nil {
		return "", err
	}
	path, _, err := sessions.Link(ctx, domain.HashSecret(strings.TrimSpace(string(b))))
	return url + path, err
}

// devRoutes are one route per keyspace, /{keyspace}/…, to the demo upstream.
func devRoutes(n *node, upstream string) []gateway.Route {
	var routes []gateway.Route
	for _, ks := range n.ring.Keyspaces() {
		id := ks.Document.Keyspace
		routes = append(routes, gateway.Route{PathPrefix: "/" + id, StripPrefix: gateway.StripAll, Keyspace: id, Upstream: "http://" + upstream})
	}
	return routes
}

// ensureRootKey makes sure that the file holds an operator key that works. A
// file that was lost is replaced, as `keyledger root-key reset` does.
func ensureRootKey(ctx context.Context, n *node, file string) error {
	b, err := os.ReadFile(file)
	if err == nil {
		k := n.ring.BySecret("keyledger", domain.HashSecret(strings.TrimSpace(string(b))))
		if k != nil && k.Active(events.At(time.Now())) && k.Role == domain.Operator {
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("root key: %w", err)
	}
	return resetRootKey(ctx, n, file)
}

func resetRootKey(ctx context.Context, n *node, file string) error {
	r, err := n.commands.ResetRoot(ctx, commands.Request{Authority: domain.System(n.config.Name), Via: n.config.Program}, "first operator")
	if err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	if err := replaceFile(file, []byte(r.Secret+"\n")); err != nil {
		return fmt.Errorf("root key: %w; it was made and is lost now: `keyledger root-key reset` makes another", err)
	}
	return nil
}

// configureMissing applies the keyspace documents that come with the program
// where they are not there yet, never over a changed one.
func configureMissing(ctx context.Context, c *commands.Commands) (configured int, err error) {
	for _, source := range keyspaces.All() {
		doc, err := domain.ParseDocument(source.Source)
		if err != nil {
			return configured, fmt.Errorf("keyspaces/%s: %w", source.Name, err)
		}
		if c.Ring.Keyspace(doc.Keyspace) != nil {
			continue
		}
		if _, err := c.ConfigureKeyspace(ctx, commands.Request{Authority: domain.System("dev"), Via: "dev"}, doc, false); err != nil {
			return configured, fmt.Errorf("keyspaces/%s: %w", source.Name, err)
		}
		configured++
	}
	return configured, nil
}

// devPlaces is where everything is, as dev prints it.
type devPlaces struct {
	API      string `json:"api"`
	Console  string `json:"console"` // a link that signs in, once
	Gateway  string `json:"gateway"`
	NATS     string `json:"nats"`
	Postgres string `json:"-"` // may hold a password
	State    string `json:"state_dir"`
	RootKey  string `json:"root_key_file"`
	LogKey   string `json:"log_key"`
	LogDir   string `json:"log_dir"`

	private    bool // PostgreSQL is ours
	ephemeral  bool
	sample     bool // there are sample owners
	started    time.Time
	configured int
}
