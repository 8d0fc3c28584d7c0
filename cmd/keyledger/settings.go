package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	yamlv3 "go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/console"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/front"
	"github.com/keyledger/keyledger/verify"
)

// settings are what `serve` and `gateway` read from a YAML file, from the
// environment (KEYLEDGER_NATS_URL is nats.url) and from flags (--nats-url),
// the later ones counting. These comments are the manual.
type settings struct {
	// Listen is where HTTP is served without TLS: the API of serve, the proxy of
	// gateway. Default: 127.0.0.1:7070 and :7071, or with tls.listen nowhere.
	Listen string `yaml:"listen"`

	// tls, h2c, header_timeout, …
	Front front.Config `yaml:",inline"`

	// HealthListen is where a gateway answers /healthz, /readyz and /metrics,
	// apart from the API's own paths. Default: nowhere.
	HealthListen string `yaml:"health_listen"`

	// Node is the name that uses are recorded under. No two running processes
	// may share it. Default: one made of the host's name.
	Node string `yaml:"node"`

	// StateDir keeps how far the streams were, and the write-ahead logs of uses
	// that are answered and not yet in NATS: on a disk that stays when the
	// process, or its container, is replaced. Default: for the logs alone, a
	// directory of this ledger and program in systemd's STATE_DIRECTORY, else
	// /var/lib/keyledger (as root) or keyledger in the user's state directory.
	// none: nothing is kept, and a killed process loses its last uses. Where it is
	// not named a lost tail of the streams is found only by what PostgreSQL
	// remembers.
	StateDir string `yaml:"state_dir"`

	// LogDir is where serve publishes the audit log: checkpoints, tiles and entries as
	// C2SP tlog-tiles lays them out, for auditors and as a memory of what was
	// signed outside NATS and PostgreSQL. Several processes may share it, each
	// may have its own. Default: log in a state_dir that was named, else nowhere.
	// none: nowhere.
	LogDir string `yaml:"log_dir"`

	// LogHashesOnly leaves the texts of leaves out of LogDir: each names the owner and
	// the key that an event is about. Witnesses need none.
	LogHashesOnly bool `yaml:"log_hashes_only"`

	// LogPolicy is a file that says which witnesses the audit log is cosigned by, in
	// Sigsum's format with C2SP verifier keys: their signatures are taken and shown
	// with checkpoints, and exports say so. Default: nobody is asked.
	LogPolicy string `yaml:"log_policy"`

	// ScrubRate is how many MiB of the streams a second serve reads again, to compare
	// them with what was signed. Default 16.
	ScrubRate int `yaml:"scrub_rate"`

	// MasterKeyFile holds the key that personal data is sealed under: 32 bytes
	// in hex or base64, mode 0600, the same for all processes of one ledger.
	// `keyledger init` makes it. Losing it erases all personal data.
	MasterKeyFile string `yaml:"master_key_file"`

	NATS struct {
		// URL names the servers, separated by commas.
		URL string `yaml:"url"`
		// Credentials is a .creds file (JWT and seed); or UserFile a file that
		// holds user:password.
		Credentials string `yaml:"credentials"`
		UserFile    string `yaml:"user_file"`
		// CA is a PEM file of who signed the servers' certificates.
		CA string `yaml:"ca"`
		// Replicas of every stream: 1 or 3.
		Replicas int `yaml:"replicas"`
		// Monitor are the monitoring addresses of all servers
		// (http://nats-1:8222), where it is read back that they sync every
		// write before they acknowledge it: jetstream {sync_interval: always}.
		Monitor []string `yaml:"monitor"`
		// AllowUnverifiedSync starts without that. A power cut may then lose
		// what was answered.
		AllowUnverifiedSync bool `yaml:"allow_unverified_sync"`
	} `yaml:"nats"`

	Postgres struct {
		// URL of the database; better in KEYLEDGER_POSTGRES_URL, or in the file
		// that URLFile names, where it holds a password.
		URL     string `yaml:"url"`
		URLFile string `yaml:"url_file"`
	} `yaml:"postgres"`

	// StaleWindow is how long requests are still decided after NATS was lost.
	// Default 5m.
	StaleWindow time.Duration `yaml:"stale_window"`

	// AlertsHold is how long an alert stays as it is, at least: an alert is resolved
	// when its condition has been away for as long, and raised again no sooner.
	// Default 5m.
	AlertsHold time.Duration `yaml:"alerts_hold"`

	// UsageRetention is how long uses stay in USAGE, such as 400d; at least 4d. The
	// figures of older days stay, their events do not. Of serve. Default: for ever.
	UsageRetention string `yaml:"usage_retention"`

	// webhooks.allow_private, webhooks.allow_http: where facts may be sent to besides
	// public addresses with https. Of serve.
	Webhooks webhookSettings `yaml:"webhooks"`

	// Sinks are systems that facts are delivered to, of serve: see docs/sinks.md and
	// the settings of reactors/sinks, which reads them from the file itself.
	Sinks any    `yaml:"sinks"`
	file  string // that was read

	// OpenID is the identity provider that people sign in at the console by; see
	// docs/console.md and console.OpenID. Of serve. Default: none, only root keys.
	OpenID *console.OpenID `yaml:"openid"`

	// Retention is how long the read models keep figures of usage; the events that
	// they are made of are usage_retention's. Coarser ones keep what is gone of the
	// finer ones. Of serve. Default: for ever.
	Retention struct {
		UsageMinutes string `yaml:"usage_minutes"` // such as 90d; at least 2d
		UsageHours   string `yaml:"usage_hours"`   // at least as long
		UsageDays    string `yaml:"usage_days"`    // at least as long
	} `yaml:"retention"`

	Log struct {
		Level  string `yaml:"level"`  // debug, info (default), warn, error
		Format string `yaml:"format"` // text (default), json
	} `yaml:"log"`

	// Forward-auth: authz_listen, authz_socket, authz_socket_mode.
	authzSettings `yaml:",inline"`

	// Of a gateway: routes, trusted_proxies, audit, … The latter two are also
	// those of forward-auth.
	Gateway gateway.Config `yaml:",inline"`
}

// flagged are the settings that are also flags and environment variables.
var flagged = []struct{ path, usage string }{
	{"listen", "address to serve on"},
	{"tls.listen", "address to serve on over TLS"},
	{"tls.certificates", "PEM files of certificate and key, cert:key, separated by commas"},
	{"tls.min_version", "least version of TLS: 1.2, 1.3"},
	{"h2c", "take HTTP/2 without TLS too (true)"},
	{"header_timeout", "how long a client may take for a request's header"},
	{"idle_timeout", "how long a connection may wait for its next request"},
	{"body_timeout", "how long a client may pause while it sends a body"},
	{"drain_timeout", "how long requests under way may take at the end"},
	{"max_header_bytes", "how long a request's header may be"},
	{"health_listen", "address of a gateway's /healthz, /readyz and /metrics"},
	{"authz_listen", "address that answers forward-auth alone, to proxies with a token"},
	{"authz_socket", "Unix socket that answers forward-auth without a token"},
	{"authz_socket_mode", "permissions of that socket, in octal"},
	{"node", "name to record uses under"},
	{"state_dir", "directory for what this process remembers, or none"},
	{"log_dir", "directory to publish the audit log in, or none"},
	{"log_hashes_only", "publish hashes alone, without the leaves' texts (true)"},
	{"log_policy", "file that names the witnesses of the audit log"},
	{"scrub_rate", "MiB of the streams a second to read again and compare with what was signed"},
	{"master_key_file", "file with the key that personal data is sealed under"},
	{"nats.url", "NATS servers, separated by commas"},
	{"nats.credentials", "NATS .creds file"},
	{"nats.user_file", "file with NATS user:password"},
	{"nats.ca", "PEM file of the NATS servers' CA"},
	{"nats.replicas", "replicas of every stream: 1 or 3"},
	{"nats.monitor", "monitoring addresses of all NATS servers, separated by commas"},
	{"nats.allow_unverified_sync", "start although nobody says that NATS syncs every write (true)"},
	{"postgres.url_file", "file with the PostgreSQL URL"},
	{"stale_window", "how long to decide after NATS was lost"},
	{"alerts_hold", "how long an alert stays as it is, at least (default 5m)"},
	{"usage_retention", "how long uses stay in USAGE, such as 400d"},
	{"retention.usage_minutes", "how long figures are kept per minute, such as 90d"},
	{"retention.usage_hours", "how long figures are kept per hour, such as 730d"},
	{"retention.usage_days", "how long figures are kept per day"},
	{"openid.issuer", "identity provider that people sign in at the console by"},
	{"openid.client_id", "what the provider calls this console"},
	{"openid.client_secret_file", "file with the secret that the provider gave for it"},
	{"openid.url", "where people open the console, such as https://keys.example.com"},
	{"openid.scopes", "what is asked of the provider, separated by commas"},
	{"openid.name", "what the sign-in page calls the provider"},
	{"openid.claim", "claim that roles are told by (default groups)"},
	{"log.level", "debug, info, warn, error"},
	{"log.format", "text, json"},
}

func flagName(path string) string { return strings.NewReplacer(".", "-", "_", "-").Replace(path) }

func envName(path string) string {
	return "KEYLEDGER_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

func addSettings(c *cobra.Command, config *string) {
	c.Flags().StringVar(config, "config", "", "settings in YAML")
	for _, f := range flagged {
		c.Flags().String(flagName(f.path), "", f.usage+" ("+envName(f.path)+")")
	}
}

// readSettings merges file, environment and flags, and refuses what it does
// not know.
func readSettings(cmd *cobra.Command, config string) (*settings, error) {
	k := koanf.New(".")
	if config != "" {
		if err := k.Load(file.Provider(config), yaml.Parser()); err != nil {
			return nil, fmt.Errorf("settings %s: %w", config, err)
		}
	}
	paths := map[string]string{"KEYLEDGER_POSTGRES_URL": "postgres.url", envName("openid.client_secret"): "openid.client_secret"}
	for _, f := range flagged {
		paths[envName(f.path)] = f.path
	}
	if err := k.Load(env.Provider(".", env.Opt{Prefix: "KEYLEDGER_", TransformFunc: func(name, v string) (string, any) {
		return paths[name], scalar(paths[name], v)
	}}), nil); err != nil {
		return nil, err
	}
	byFlag := map[string]string{}
	for _, f := range flagged {
		byFlag[flagName(f.path)] = f.path
	}
	if err := k.Load(posflag.ProviderWithValue(cmd.Flags(), ".", nil, func(name, v string) (string, any) {
		if path := byFlag[name]; path != "" && cmd.Flags().Changed(name) {
			return path, scalar(path, v)
		}
		return "", nil
	}), nil); err != nil {
		return nil, err
	}
	merged, err := yamlv3.Marshal(k.Raw())
	if err != nil {
		return nil, err
	}
	var s settings
	d := yamlv3.NewDecoder(bytes.NewReader(merged))
	d.KnownFields(true)
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	if err := s.Front.Validate(); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	s.file = config
	if s.NATS.Replicas == 0 {
		s.NATS.Replicas = 1
	}
	if s.NATS.URL == "" {
		return nil, usageError("no NATS server is named: set nats.url in the file, %s or --nats-url", envName("nats.url"))
	}
	if s.MasterKeyFile == "" {
		return nil, usageError("no master key is named: set master_key_file (`keyledger init` makes one)")
	}
	if s.Node == "" {
		s.Node = verify.NodeName(cmd.Name())
	}
	return &s, nil
}

// scalar reads a value as YAML would, so that true and 3 are no strings.
func scalar(path, v string) any {
	switch path {
	case "nats.monitor", "openid.scopes":
		return strings.Split(v, ",")
	case "authz_socket_mode", "tls.min_version", "openid.client_id", "openid.client_secret", "openid.name": // no numbers, although they look like some
		return v
	case "tls.certificates":
		var pairs []any
		for _, pair := range strings.Split(v, ",") {
			cert, key, _ := strings.Cut(pair, ":")
			pairs = append(pairs, map[string]any{"cert": cert, "key": key})
		}
		return pairs
	}
	var x any
	if yamlv3.Unmarshal([]byte(v), &x) != nil || x == nil {
		return v
	}
	return x
}

func (s *settings) logger(a *app) *slog.Logger {
	level := slog.LevelInfo
	if s.Log.Level != "" {
		_ = level.UnmarshalText([]byte(s.Log.Level))
	}
	o := &slog.HandlerOptions{Level: level}
	if s.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(a.stderr, o))
	}
	return slog.New(slog.NewTextHandler(a.stderr, o))
}

func (s *settings) natsConn(log *slog.Logger) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name("keyledger " + s.Node), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.Timeout(5 * time.Second),
		nats.DisconnectErrHandler(func(c *nats.Conn, err error) {
			if !c.IsClosed() { // by ourselves, at the end
				log.Warn("NATS is lost; trying again", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { log.Info("NATS is back", "server", c.ConnectedUrlRedacted()) }),
	}
	if s.NATS.Credentials != "" {
		opts = append(opts, nats.UserCredentials(s.NATS.Credentials))
	}
	if s.NATS.UserFile != "" {
		b, err := os.ReadFile(s.NATS.UserFile)
		if err != nil {
			return nil, fmt.Errorf("nats.user_file: %w", err)
		}
		user, password, ok := strings.Cut(strings.TrimSpace(string(b)), ":")
		if !ok {
			return nil, fmt.Errorf("nats.user_file %s holds no user:password", s.NATS.UserFile)
		}
		opts = append(opts, nats.UserInfo(user, password))
	}
	if s.NATS.CA != "" {
		pem, err := os.ReadFile(s.NATS.CA)
		if err != nil {
			return nil, fmt.Errorf("nats.ca: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("nats.ca %s holds no certificate in PEM", s.NATS.CA)
		}
		opts = append(opts, nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}))
	}
	conn, err := nats.Connect(s.NATS.URL, opts...)
	if err != nil {
		return nil, &exitError{code: 5, err: fmt.Errorf("NATS cannot be reached: %w; is it running, and is nats.url right?", err)}
	}
	return conn, nil
}

func (s *settings) pool(ctx context.Context) (*pgxpool.Pool, error) {
	url := s.Postgres.URL
	if s.Postgres.URLFile != "" {
		b, err := os.ReadFile(s.Postgres.URLFile)
		if err != nil {
			return nil, fmt.Errorf("postgres.url_file: %w", err)
		}
		url = strings.TrimSpace(string(b))
	}
	if url == "" {
		return nil, usageError("no PostgreSQL is named: set postgres.url_file, or KEYLEDGER_POSTGRES_URL")
	}
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, errors.New("the PostgreSQL URL is not one that can be read: postgres://user@host:5432/database")
	}
	return pool, nil
}

func (s *settings) master() (seal.Master, error) { return seal.LoadMaster(s.MasterKeyFile) }

// noState is the state_dir of a process that has no directory.
const noState = "none"

// openStateDir makes the state directory of a program and says where it is; empty
// for none. The default is one for each ledger, told by its master key: what one
// ledger's processes left must never be recorded in another.
func (s *settings) openStateDir(program string, master seal.Master) (string, error) {
	dir := s.StateDir
	if dir == noState {
		return "", nil
	}
	if dir == "" {
		base := os.Getenv("STATE_DIRECTORY") // of systemd: several are separated by colons
		base, _, _ = strings.Cut(base, ":")
		if base == "" && os.Geteuid() == 0 {
			base = "/var/lib/keyledger"
		}
		if base == "" {
			if base = os.Getenv("XDG_STATE_HOME"); !filepath.IsAbs(base) {
				home, err := os.UserHomeDir()
				if err != nil {
					return "", usageError("there is no directory for what must survive this process: set state_dir (or %s) to one on a disk, or to none, and a killed process loses its last uses", envName("state_dir"))
				}
				base = filepath.Join(home, ".local", "state")
			}
			base = filepath.Join(base, "keyledger")
		}
		print := hmac.New(sha256.New, master[:])
		print.Write([]byte("state directory"))
		dir = filepath.Join(base, program+"-"+hex.EncodeToString(print.Sum(nil)[:6]))
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var probe *os.File
		if probe, err = os.CreateTemp(dir, ".probe-*"); err == nil {
			err = errors.Join(probe.Close(), os.Remove(probe.Name()))
		}
	}
	if err != nil {
		return "", fmt.Errorf("state_dir %s cannot be written: %w. It holds what was answered and is not yet in NATS, so name a directory on a disk that stays (in a container, a volume) with state_dir or %s; with state_dir: none a killed process loses its last uses", dir, err, envName("state_dir"))
	}
	return dir, nil
}
