package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/front"
	"github.com/keyledger/keyledger/reactors/sinks"
)

const drainWithin = 15 * time.Second

func (a *app) serveCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use: "serve", Short: "Run the service in production: with your NATS and PostgreSQL", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSettings(cmd, config)
			if err != nil {
				return err
			}
			if err := readOpenID(s.OpenID); err != nil {
				return err
			}
			return a.withNode(cmd.Context(), s, "serve", func(ctx context.Context, n *node) error {
				if !hasOperator(n) {
					n.config.Log.Warn("there is no operator key yet: make the first one with `keyledger init`")
				}
				if s.Front.BodyTimeout == 0 {
					s.Front.BodyTimeout = 30 * time.Second // the API takes documents, no streams
				}
				z, err := forwardAuth(n, s.Gateway)
				if err != nil {
					return err
				}
				proxies, err := s.endpoints(z, n.config.Log)
				if err != nil {
					return err
				}
				deps := apiDeps(ctx, n)
				deps.Authz = z
				if deps.DurableTime, err = s.Gateway.DurableTime(); err != nil {
					return err
				}
				_, pages, err := withConsole(ctx, n, api.New(deps), s.OpenID, s.Gateway.TrustedProxies)
				if err != nil {
					return err
				}
				e, err := n.open(ctx, s, "the API", "127.0.0.1:7070", pages)
				if err != nil {
					return err
				}
				return n.serve(ctx, nil, append(proxies, e)...)
			})
		},
	}
	addSettings(c, &config)
	return c
}

func (a *app) gatewayCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use: "gateway", Short: "Run a gateway in front of your API: NATS is all it needs", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSettings(cmd, config)
			if err != nil {
				return err
			}
			if len(s.Gateway.Routes) == 0 && s.AuthzListen == "" && s.AuthzSocket == "" {
				return usageError("the gateway has no routes: write them into the file that --config names, or name authz_listen or authz_socket for forward-auth")
			}
			if err := s.Gateway.Validate(); err != nil {
				return err
			}
			return a.withNode(cmd.Context(), s, "gateway", func(ctx context.Context, n *node) error {
				gw, err := gateway.New(s.Gateway, n.verifier, n.recorder, n.config.Log)
				if err != nil {
					return err
				}
				e, err := n.open(ctx, s, "the gateway", "127.0.0.1:7071", gw)
				if err != nil {
					return err
				}
				z, err := forwardAuth(n, s.Gateway)
				if err != nil {
					return err
				}
				endpoints, err := s.endpoints(z, n.config.Log)
				if err != nil {
					return err
				}
				endpoints = append(endpoints, e)
				var h *endpoint
				if s.HealthListen != "" {
					l, err := listen("the gateway's health", "health-listen", s.HealthListen)
					if err != nil {
						return err
					}
					h = plainly("the gateway's health", l, health(n), n.config.Log)
				}
				err = n.serve(ctx, h, endpoints...)
				drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
				defer cancel()
				return errors.Join(err, gw.Shutdown(drain))
			})
		},
	}
	addSettings(c, &config)
	return c
}

// open makes the endpoint that the settings describe. Its certificates are read
// again, until ctx ends, when their files change and on SIGHUP; that signal ends
// no process that serves.
func (n *node) open(ctx context.Context, s *settings, name, otherwise string, h http.Handler) (*endpoint, error) {
	e := &endpoint{name: name, server: front.New(s.Front, h, n.certificates, n.config.Log)}
	said := []any{"sequence", n.ring.Sequence()}
	plain := s.Listen
	if plain == "" && n.certificates == nil {
		plain = otherwise
	}
	var err error
	if plain != "" {
		if e.plain, err = listen(name, "listen", plain); err != nil {
			return nil, err
		}
		said = append(said, "address", e.plain.Addr().String())
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	if n.certificates != nil {
		if e.tls, err = listen(name, "tls-listen", s.Front.TLS.Listen); err != nil {
			return nil, err
		}
		said = append(said, "tls_address", e.tls.Addr().String())
		go n.certificates.Watch(ctx, hup)
	}
	n.config.Log.Info("serving "+name, said...)
	return e, nil
}

// withNode runs f with a node made from settings. A gateway gets no PostgreSQL.
func (a *app) withNode(ctx context.Context, s *settings, program string, f func(context.Context, *node) error) (err error) {
	log := s.logger(a)
	master, err := s.master()
	if err != nil {
		return err
	}
	keep, err := usageRetention(s.UsageRetention)
	if err != nil {
		return err
	}
	var delivered []*sinks.Sink
	switch {
	case s.Sinks == nil:
	case program == "gateway":
		return usageError("a gateway delivers nothing: write sinks into the settings of serve")
	case program == "serve":
		if delivered, err = readSinks(s.file, false); err != nil {
			return err
		}
	}
	policy, err := s.Webhooks.policy()
	if err != nil {
		return err
	}
	figures, err := s.keepFigures()
	if err != nil {
		return err
	}
	conn, err := s.natsConn(log)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := nodeConfig{
		Sinks: delivered, Webhooks: policy,

		Program: program, Name: s.Node, Conn: conn, Replicas: s.NATS.Replicas,
		SyncAlways: ledger.SyncedBy(s.NATS.Monitor), Unverified: s.NATS.AllowUnverifiedSync,
		Master: master, Stale: s.StaleWindow, UsageRetention: keep, KeepFigures: figures, AlertHold: s.AlertsHold, Log: log, Signs: program == "serve",
	}
	if c.Signs {
		if s.LogPolicy != "" {
			if c.LogPolicy, err = readLogPolicy(s.LogPolicy); err != nil {
				return err
			}
		}
		c.LogDir, c.LogHashesOnly = s.LogDir, s.LogHashesOnly
		if s.ScrubRate < 0 {
			return usageError("scrub_rate is %d: say how many MiB a second are read, at least 1", s.ScrubRate)
		}
		c.ScrubRate = int64(s.ScrubRate) << 20
	}
	if records := program == "serve" || program == "gateway"; records || s.StateDir != "" {
		dir, err := s.openStateDir(program, master)
		if err != nil {
			return err
		}
		// Only where somebody said which directory is this ledger's: NATS that was
		// made anew under the same master key is no doubt about history.
		if dir != "" && s.StateDir != "" {
			c.HeadFile = filepath.Join(dir, "head."+program+".json")
			if c.Signs && c.LogDir == "" {
				c.LogDir = filepath.Join(dir, "log")
			}
		}
		if dir != "" && records {
			c.WAL = filepath.Join(dir, "wal")
		}
	}
	if c.LogDir == noState {
		c.LogDir = ""
	}
	var certificates *front.Certificates
	if s.Front.TLS.Listen != "" && (program == "gateway" || program == "serve") {
		if certificates, err = front.LoadCertificates(s.Front.TLS.Certificates, log); err != nil {
			return err
		}
	}
	if program != "gateway" {
		if c.Pool, err = s.pool(ctx); err != nil {
			return err
		}
		defer c.Pool.Close()
	}
	n, err := openNode(ctx, c)
	if err != nil {
		return err
	}
	n.certificates = certificates
	err = f(ctx, n)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
	defer cancel()
	return errors.Join(err, n.close(end))
}

// readLogPolicy reads the file that names the log's witnesses.
func readLogPolicy(file string) (*audit.Policy, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("log_policy: %w", err)
	}
	p, err := audit.ParsePolicy(text)
	if err != nil {
		return nil, fmt.Errorf("log_policy %s: %w", file, err)
	}
	return p, nil
}

func hasOperator(n *node) bool {
	for k := range n.ring.Keys(events.RootKeyspace, "") {
		if k.Role == domain.Operator && k.Active(events.At(time.Now())) {
			return true
		}
	}
	return false
}

// initCommand makes what `serve` needs once: the master key and the first
// operator key.
func (a *app) initCommand() *cobra.Command {
	var config, keyFile string
	c := &cobra.Command{
		Use: "init", Short: "Make the master key and the first root key, once", Args: takes(),
		Long: `Makes the file with the master key where there is none, and the first operator
key, which is written to the file that --root-key-file names (mode 0600) and
shown nowhere. It refuses when there is an operator key already: lost ones are
replaced by ` + "`keyledger root-key reset`" + `.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSettings(cmd, config)
			if err != nil {
				return err
			}
			if _, err := seal.LoadOrCreateMaster(s.MasterKeyFile); err != nil {
				return err
			}
			return a.makeRootKey(cmd.Context(), s, keyFile, "init", true)
		},
	}
	addSettings(c, &config)
	c.Flags().StringVar(&keyFile, "root-key-file", "root.key", "where the root key is written")
	return c
}

// rootKeyResetCommand replaces operator keys that were lost.
func (a *app) rootKeyResetCommand() *cobra.Command {
	var config, keyFile string
	c := &cobra.Command{
		Use: "reset", Short: "Replace lost operator keys, on the machine that has NATS' credentials; it is recorded", Args: takes(),
		Long: `Makes a new operator key, writes it to the file that --root-key-file names (mode
0600) and revokes all other operator keys. It needs the settings of ` + "`serve`" + `, so
that only whoever owns the machine can do it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSettings(cmd, config)
			if err != nil {
				return err
			}
			return a.makeRootKey(cmd.Context(), s, keyFile, "root-key-reset", false)
		},
	}
	addSettings(c, &config)
	c.Flags().StringVar(&keyFile, "root-key-file", "root.key", "where the root key is written")
	return c
}

func (a *app) makeRootKey(ctx context.Context, s *settings, file, program string, first bool) error {
	if _, err := os.Stat(file); first && !errors.Is(err, fs.ErrNotExist) {
		return usageError("%s is there already: choose another --root-key-file, so that no key is overwritten", file)
	}
	return a.withNode(ctx, s, program, func(ctx context.Context, n *node) error {
		if first && hasOperator(n) {
			return &exitError{code: 4, err: errors.New("there is an operator key already: create others with `keyledger root-key create`, or replace lost ones with `keyledger root-key reset`")}
		}
		if err := resetRootKey(ctx, n, file); err != nil {
			return err
		}
		if a.asJSON {
			return a.printValue(map[string]string{"root_key_file": file})
		}
		_, err := fmt.Fprintf(a.stdout, "The root key is in %s. Use it with --token-file %s.\n", file, file)
		return err
	})
}
