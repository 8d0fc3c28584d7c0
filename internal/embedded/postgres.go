package embedded

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/jackc/pgx/v5"
)

// PostgresConfig says how a private PostgreSQL is to run. Only Dir is needed.
type PostgresConfig struct {
	Dir            string       // everything of this server; made when absent (mode 0711)
	BinDir         string       // where postgres and initdb are; "" searches the machine, then downloads
	SocketDir      string       // "" is a directory in Dir, or a short one in the system's temporary directory
	Listen         string       // host:port for people with psql; "" listens on the Unix socket alone; port 0 is any free one
	MaxConnections int          // 0 is 50
	CacheDir       string       // where downloaded binaries are kept; "" is the user's cache directory
	Repository     string       // Maven repository to download from; "" is KEYLEDGER_POSTGRES_REPOSITORY, else Maven Central
	NoSync         bool         // no fsync. For tests alone: a power cut destroys the data
	Log            *slog.Logger // nil discards

	// candidates lists directories to look for binaries in; nil is those of the machine.
	candidates func() []string
	// patience is how long a server left behind may take to end by itself; 0 is 3 s.
	patience time.Duration
}

// Postgres is a running server, a child of this process that ends with it.
type Postgres struct {
	dir, socketDir  string
	ownSocketDir    bool
	port            int
	host            string // "" without a TCP listener
	password        string
	lock            *flock.Flock
	child           *child
	version, binDir string
}

const (
	// role owns the cluster, database is the one URL names.
	role     = "keyledger"
	database = "keyledger"

	// sun_path holds 108 bytes on Linux and 104 on macOS, the last of them zero.
	maxSocketPath = 103

	stopWait = 30 * time.Second
)

// VersionError says that a data directory was written by another major version
// of PostgreSQL than any at hand. The data is untouched.
type VersionError struct {
	Dir, Data, Binaries string
}

func (e *VersionError) Error() string {
	found := "this machine has no PostgreSQL"
	if e.Binaries != "" {
		found = "this machine has PostgreSQL " + e.Binaries
	}
	return fmt.Sprintf("the data in %q was written by PostgreSQL %s and %s; nothing was changed: install PostgreSQL %s or set PG_BIN_DIR to its bin directory, or move the directory away (its tables are rebuilt from the streams)",
		e.Dir, e.Data, found, e.Data)
}

// StartPostgres starts a server on cfg.Dir, making its data directory first where
// there is none, and returns when it takes connections. Errors: *LockedError,
// *VersionError, no binaries and no way to download them, or whatever
// PostgreSQL said when it would not start. ctx bounds the start alone.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (_ *Postgres, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	if err := makeRoot(cfg.Dir); err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	p := &Postgres{dir: cfg.Dir}
	if p.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()

	if err := p.choosePort(cfg.Listen); err != nil {
		return nil, err
	}
	data := filepath.Join(cfg.Dir, "data")
	major, err := dataVersion(data)
	if err != nil {
		return nil, err
	}
	who, err := runAs(data)
	if err != nil {
		return nil, err
	}
	bin, err := findOrDownload(ctx, cfg, major, who)
	if err != nil {
		return nil, err
	}
	p.binDir, p.version = bin.dir, bin.version
	if err := who.reach(cfg.Dir); err != nil {
		return nil, err
	}
	if major == "" {
		if err := initData(ctx, cfg, bin, who, data); err != nil {
			return nil, err
		}
	}
	if err := clearPostmaster(ctx, data, cfg.patience, cfg.Log); err != nil {
		return nil, err
	}
	if err := p.openSocketDir(cfg.SocketDir, who); err != nil {
		return nil, err
	}
	if err := p.run(ctx, cfg, bin, who, data); err != nil {
		return nil, err
	}
	if err := p.prepare(ctx, cfg); err != nil {
		return nil, err
	}
	return p, nil
}

// makeRoot makes the directory that another user must be able to walk through.
func makeRoot(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm() != 0o711 {
		return os.Chmod(dir, 0o711)
	}
	return nil
}

// dataVersion is the major version that wrote the directory, "" when there is none.
func dataVersion(data string) (string, error) {
	b, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("PostgreSQL: read the version of the data: %w: was it started as another user before? Start as that one", err)
	}
	if _, err := os.Lstat(data); err == nil {
		return "", fmt.Errorf("PostgreSQL: %q exists and is not a PostgreSQL data directory (it has no PG_VERSION); nothing was changed: move it away", data)
	}
	return "", nil
}

// osUser is who PostgreSQL runs as.
type osUser struct {
	name     string
	uid, gid int
	// switched is true where this process is root, as which PostgreSQL refuses to run.
	switched bool
	// caps are Linux capabilities the server needs to walk through directories
	// closed to its user; see reach.
	caps []uintptr
}

// runAs chooses the user: this process's own; for root the owner of existing
// data, else postgres, else nobody.
func runAs(data string) (*osUser, error) {
	if uid := os.Geteuid(); uid != 0 {
		if info, err := os.Stat(data); err == nil {
			if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != uid {
				return nil, fmt.Errorf("PostgreSQL: %q belongs to user %s: start as the user who started it before, or choose another directory", data, userName(owner))
			}
		}
		return &osUser{name: userName(uid), uid: uid, gid: os.Getegid()}, nil
	}
	if info, err := os.Stat(data); err == nil {
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid == 0 {
			return nil, fmt.Errorf("PostgreSQL: %q belongs to root, as whom PostgreSQL refuses to run; nothing was changed: give it to the user who wrote it (chown -R) or move it away", data)
		}
		return &osUser{name: userName(int(st.Uid)), uid: int(st.Uid), gid: int(st.Gid), switched: true}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid > 0 {
			return &osUser{name: name, uid: uid, gid: gid, switched: true}, nil
		}
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody: run as an ordinary user, or give --postgres-url")
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// blocked is the first directory on the way to path that u cannot walk through, "" when there is none.
func (u *osUser) blocked(path string) string {
	if !u.switched {
		return ""
	}
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return dir
		}
		st := info.Sys().(*syscall.Stat_t)
		bit := fs.FileMode(0o001)
		switch {
		case int(st.Uid) == u.uid:
			bit = 0o100
		case int(st.Gid) == u.gid:
			bit = 0o010
		}
		if info.Mode().Perm()&bit == 0 {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

// reach makes sure that the server can get to dir. Under a directory closed to
// it (the state of root lies in /root, which is 0700) the server is given the
// one capability to pass, rather than opening the directory to everybody.
func (u *osUser) reach(dir string) error {
	closed := u.blocked(dir)
	if closed == "" || len(u.caps) > 0 {
		return nil
	}
	if u.caps = searchCapability(); len(u.caps) > 0 {
		return nil
	}
	return fmt.Errorf("PostgreSQL runs as user %s, who cannot enter %q: choose a state directory that this user can reach, e.g. /var/lib/keyledger, or give --postgres-url", u.name, closed)
}

func (u *osUser) own(path string) error {
	if !u.switched {
		return nil
	}
	return os.Lchown(path, u.uid, u.gid)
}

// passedOn are the variables a PostgreSQL program gets. The others may hold
// secrets, and the user it runs as can read them.
var passedOn = []string{"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}

// command prepares a PostgreSQL program, in a process group of its own, so that
// Ctrl-C in a terminal reaches this process alone.
func (u *osUser) command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC"}
	for _, name := range passedOn {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if u.switched {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.gid)}
	}
	u.bind(cmd.SysProcAttr)
	// A backend that outlives a killed postmaster holds the log pipe open.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// initData makes the data directory under another name first: data under its
// own name is always whole, whenever the power went.
func initData(ctx context.Context, cfg PostgresConfig, bin binaries, who *osUser, data string) error {
	left, err := filepath.Glob(filepath.Join(globQuote(cfg.Dir), "data.new-*"))
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("PostgreSQL: remove an unfinished data directory: %w", err)
		}
	}
	tmp, err := os.MkdirTemp(cfg.Dir, "data.new-")
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	if err := who.own(tmp); err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	args := []string{"-D", tmp, "-U", role, "-E", "UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256"}
	if cfg.NoSync || syncFilesystem != nil {
		args = append(args, "--no-sync")
	}
	cfg.Log.Info("making the PostgreSQL data directory", "dir", data, "version", bin.version, "user", who.name)
	out := newChildLog(cfg.Log)
	cmd := who.command(filepath.Join(bin.dir, "initdb"), args...)
	cmd.Stdout, cmd.Stderr = io.Discard, out
	c, err := startChild(cmd)
	if err != nil {
		return fmt.Errorf("PostgreSQL: start initdb: %w", err)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		// The whole group: initdb runs servers of its own.
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-c.done
		return fmt.Errorf("PostgreSQL: initdb was interrupted: %w", context.Cause(ctx))
	}
	if c.err != nil {
		os.RemoveAll(tmp)
		return fmt.Errorf("PostgreSQL: initdb in %q failed: %w%s", cfg.Dir, c.err, out.tail())
	}
	if !cfg.NoSync && syncFilesystem != nil {
		if err := syncFilesystem(tmp); err != nil {
			return fmt.Errorf("PostgreSQL: sync the new data directory: %w", err)
		}
	}
	if err := os.Rename(tmp, data); err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	return syncDir(cfg.Dir)
}

func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// openSocketDir prepares the directory of the Unix socket. It is 0700 and its
// connections need no password: whoever can enter it is the user whom the data
// files belong to, or root, and could read those just as well.
func (p *Postgres) openSocketDir(want string, who *osUser) error {
	dir := want
	if dir == "" {
		dir = filepath.Join(p.dir, "socket")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	// Clients take a comma for the start of another host.
	if limit := maxSocketPath - len("/.s.PGSQL.65535"); len(dir) > limit || strings.Contains(dir, ",") {
		if want != "" {
			return fmt.Errorf("PostgreSQL: a Unix socket cannot be in directory %q: choose one of at most %d bytes without a comma", dir, limit)
		}
		if dir, err = shortSocketDir(p.dir, who); err != nil {
			return fmt.Errorf("PostgreSQL: %w", err)
		}
		p.ownSocketDir = true
	}
	p.socketDir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	if err := who.own(dir); err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	// The postmaster that made them is gone (clearPostmaster); its lock file
	// would make the new one wait for whatever has its process number now.
	stale, _ := filepath.Glob(filepath.Join(globQuote(dir), ".s.PGSQL.*"))
	for _, f := range stale {
		os.Remove(f)
	}
	return who.reach(dir)
}

// shortSocketDir is a directory whose name follows from the data directory's,
// unless somebody else made one of that name first in the shared directory.
func shortSocketDir(dir string, who *osUser) (string, error) {
	base := os.TempDir()
	if len(base) > 60 || strings.Contains(base, ",") {
		base = "/tmp"
	}
	sum := sha256.Sum256([]byte(dir))
	path := filepath.Join(base, "keyledger-"+hex.EncodeToString(sum[:6]))
	err := os.Mkdir(path, 0o700)
	if err == nil {
		return path, nil
	}
	if info, serr := os.Lstat(path); serr == nil && info.IsDir() {
		owner := int(info.Sys().(*syscall.Stat_t).Uid)
		if owner == who.uid || owner == os.Geteuid() {
			return path, nil
		}
	}
	return os.MkdirTemp(base, "keyledger-")
}

func (p *Postgres) choosePort(listen string) error {
	p.port = 5432 // names the socket only
	if listen == "" {
		return nil
	}
	// Taking the port and letting it go tells a person what is wrong in one
	// sentence, where PostgreSQL would write five lines.
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("PostgreSQL cannot listen on %q: %w: choose another address", listen, err)
	}
	defer l.Close()
	addr := l.Addr().(*net.TCPAddr)
	p.host, p.port = addr.IP.String(), addr.Port
	return nil
}

func (p *Postgres) run(ctx context.Context, cfg PostgresConfig, bin binaries, who *osUser, data string) error {
	connections := cfg.MaxConnections
	if connections == 0 {
		connections = 50
	}
	settings := []string{
		"unix_socket_directories=" + `"` + strings.ReplaceAll(p.socketDir, `"`, `""`) + `"`,
		"unix_socket_permissions=0700",
		"listen_addresses=" + p.host,
		"port=" + strconv.Itoa(p.port),
		"max_connections=" + strconv.Itoa(connections),
		"password_encryption=scram-sha-256",
		"shared_buffers=64MB",
		"max_wal_size=512MB",
		"wal_level=minimal",
		"max_wal_senders=0",
		"huge_pages=off",
		"jit=off",
		"timezone=UTC",
		"log_timezone=UTC",
		"log_line_prefix=",
		"log_checkpoints=off",
		"lc_messages=C",
	}
	if cfg.NoSync {
		settings = append(settings, "fsync=off", "full_page_writes=off", "synchronous_commit=off")
	} else {
		settings = append(settings, "fsync=on")
	}
	args := []string{"-D", data}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	out := newChildLog(cfg.Log)
	cmd := who.command(filepath.Join(bin.dir, "postgres"), args...)
	cmd.Stdout, cmd.Stderr = out, out
	c, err := startChild(cmd)
	if err != nil {
		return fmt.Errorf("PostgreSQL: start %s: %w", cmd.Path, err)
	}
	p.child = c
	select {
	case <-out.ready:
		return nil
	case <-c.done:
		return fmt.Errorf("PostgreSQL did not start on %q: %v%s", p.dir, c.err, out.tail())
	case <-ctx.Done():
		return fmt.Errorf("PostgreSQL did not start on %q in time: %w%s", p.dir, context.Cause(ctx), out.tail())
	}
}

// prepare makes the database where there is none and, for a TCP listener, sets the password.
func (p *Postgres) prepare(ctx context.Context, cfg PostgresConfig) error {
	conn, err := pgx.Connect(ctx, p.url("postgres"))
	if err != nil {
		return fmt.Errorf("PostgreSQL started on %q but cannot be reached: %w", p.dir, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var exists bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", database).Scan(&exists); err != nil {
		return fmt.Errorf("PostgreSQL on %q: %w", p.dir, err)
	}
	if !exists {
		if _, err := conn.Exec(ctx, "create database "+database); err != nil {
			return fmt.Errorf("PostgreSQL on %q: make database %s: %w", p.dir, database, err)
		}
	}
	if p.host == "" {
		return nil
	}
	if p.password, err = readPassword(filepath.Join(p.dir, "password")); err != nil {
		return err
	}
	// An error of this statement could quote the password; the cause is dropped.
	if _, err := conn.Exec(ctx, "alter role "+role+" password '"+p.password+"'"); err != nil {
		return fmt.Errorf("PostgreSQL on %q: cannot set the password of role %s", p.dir, role)
	}
	return nil
}

// readPassword reads the password from path (mode 0600) or makes one: 32 hex digits.
func readPassword(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		if pw := strings.TrimSpace(string(b)); len(pw) == 32 && strings.Trim(pw, "0123456789abcdef") == "" {
			return pw, nil
		}
		return "", fmt.Errorf("PostgreSQL: %q does not hold a password of 32 hex digits: remove the file and a new one is made", path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("PostgreSQL: %w", err)
	}
	var raw [16]byte
	rand.Read(raw[:])
	pw := hex.EncodeToString(raw[:])
	if err := os.WriteFile(path, []byte(pw+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("PostgreSQL: %w", err)
	}
	return pw, nil
}

func (p *Postgres) url(db string) string {
	q := url.Values{"host": {p.socketDir}, "port": {strconv.Itoa(p.port)}, "user": {role}}
	// libpq reads + in a query as itself and not as a space.
	return "postgres:///" + db + "?" + strings.ReplaceAll(q.Encode(), "+", "%20")
}

// URL names database keyledger through the Unix socket, without a password; for
// this process and for others of the same user.
func (p *Postgres) URL() string { return p.url(database) }

// TCPURL names the same database through the TCP listener, "" without one. It
// holds a password: MUST NOT be logged. The password is also in the file
// PasswordFile names.
func (p *Postgres) TCPURL() string {
	if p.host == "" {
		return ""
	}
	return (&url.URL{Scheme: "postgres", User: url.UserPassword(role, p.password), Host: p.Addr(), Path: "/" + database}).String()
}

// Addr is host:port of the TCP listener, "" without one.
func (p *Postgres) Addr() string {
	if p.host == "" {
		return ""
	}
	return net.JoinHostPort(p.host, strconv.Itoa(p.port))
}

// PasswordFile holds the password for the TCP listener, mode 0600.
func (p *Postgres) PasswordFile() string { return filepath.Join(p.dir, "password") }

// Version is that of the binaries, e.g. "15.13".
func (p *Postgres) Version() string { return p.version }

// BinDir is the directory of the binaries in use.
func (p *Postgres) BinDir() string { return p.binDir }

// PID is the process number of the server.
func (p *Postgres) PID() int { return p.child.cmd.Process.Pid }

// Done is closed when the server has ended, whoever ended it.
func (p *Postgres) Done() <-chan struct{} { return p.child.done }

// Stop ends the server in order (open transactions are rolled back), harder when
// it does not follow, and unlocks the directory. It may be called twice.
func (p *Postgres) Stop() error {
	defer p.lock.Close()
	if p.ownSocketDir {
		defer os.Remove(p.socketDir)
	}
	if p.child == nil {
		return nil
	}
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{syscall.SIGINT, stopWait}, {syscall.SIGQUIT, 5 * time.Second}, {syscall.SIGKILL, 5 * time.Second}} {
		p.child.cmd.Process.Signal(step.sig)
		select {
		case <-p.child.done:
			if step.sig != syscall.SIGINT {
				return fmt.Errorf("PostgreSQL on %q ended only at %s; it recovers at the next start", p.dir, step.sig)
			}
			return nil
		case <-time.After(step.wait):
		}
	}
	return fmt.Errorf("PostgreSQL on %q (process %d) does not end", p.dir, p.PID())
}
