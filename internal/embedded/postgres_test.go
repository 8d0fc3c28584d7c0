package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func startPostgres(t *testing.T, cfg PostgresConfig) *Postgres {
	t.Helper()
	p, err := StartPostgres(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}

func query[T any](t *testing.T, url, sql string) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// The whole life of one data directory, in the order in which things happen to it.
func TestPostgres(t *testing.T) {
	dir := filepath.Join(openDir(t), "pg")
	data := filepath.Join(dir, "data")
	pidFile := filepath.Join(data, "postmaster.pid")

	p := startPostgres(t, PostgresConfig{Dir: dir})
	if got := query[string](t, p.URL(), "show fsync"); got != "on" {
		t.Errorf("fsync is %s", got)
	}
	if got := query[string](t, p.URL(), "select current_database()"); got != "keyledger" {
		t.Errorf("the URL names database %q", got)
	}
	if p.TCPURL() != "" || p.Addr() != "" {
		t.Errorf("TCPURL() = %q, Addr() = %q without a listener", p.TCPURL(), p.Addr())
	}
	if info, err := os.Stat(p.socketDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the socket directory: %v, %v, want 0700", info, err)
	}
	execute(t, p.URL(), "create table kept as select 42 as v")

	var locked *LockedError
	if _, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir}); !errors.As(err, &locked) || locked.Dir != dir {
		t.Errorf("a second server: %v, want *LockedError for %s", err, dir)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("Stop again: %v", err)
	}

	// Over TCP a person needs the password, which stays the same.
	p = startPostgres(t, PostgresConfig{Dir: dir, NoSync: true, Listen: "127.0.0.1:0"})
	first := p.password
	p.Stop()
	p = startPostgres(t, PostgresConfig{Dir: dir, NoSync: true, Listen: "127.0.0.1:0"})
	if p.password != first {
		t.Error("the password changed between two starts")
	}
	if got := query[int](t, p.TCPURL(), "select v from kept"); got != 42 {
		t.Errorf("over TCP, after a restart, the table holds %d", got)
	}
	if got := query[int](t, p.URL(), "select v from kept"); got != 42 {
		t.Errorf("over the socket, after a restart, the table holds %d", got)
	}
	if info, err := os.Stat(p.PasswordFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the password file: %v, %v, want 0600", info, err)
	}
	wrong, _ := url.Parse(p.TCPURL())
	wrong.User = url.UserPassword("keyledger", "wrong")
	if conn, err := pgx.Connect(t.Context(), wrong.String()); err == nil {
		conn.Close(t.Context())
		t.Error("a wrong password was accepted")
	}
	addr := p.Addr()
	if _, err := StartPostgres(t.Context(), PostgresConfig{Dir: openDir(t), Listen: addr}); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("listening on a taken address: %v", err)
	}
	p.Stop()

	// The path of a Unix socket is short; that of the directory need not be.
	long := filepath.Join(filepath.Dir(dir), strings.Repeat("long", 20))
	if err := os.Rename(dir, long); err != nil {
		t.Fatal(err)
	}
	p = startPostgres(t, PostgresConfig{Dir: long, NoSync: true})
	query[int](t, p.URL(), "select v from kept")
	socket := p.socketDir
	p.Stop()
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the short socket directory %s is still there: %v", socket, err)
	}
	if err := os.Rename(long, dir); err != nil {
		t.Fatal(err)
	}

	// The server is killed: its lock file names a process that is gone.
	p = startPostgres(t, PostgresConfig{Dir: dir, NoSync: true})
	syscall.Kill(p.PID(), syscall.SIGKILL)
	<-p.Done()
	if _, err := os.Stat(pidFile); err != nil {
		t.Fatalf("a killed server leaves its lock file: %v", err)
	}
	p.Stop()
	p = startPostgres(t, PostgresConfig{Dir: dir, NoSync: true})
	if got := query[int](t, p.URL(), "select v from kept"); got != 42 {
		t.Errorf("after a kill, the table holds %d", got)
	}
	p.Stop()

	t.Run("process number of a stranger", func(t *testing.T) {
		writeLock(t, data, os.Getpid())
		p := startPostgres(t, PostgresConfig{Dir: dir, NoSync: true})
		p.Stop()
	})
	t.Run("process number of a zombie", func(t *testing.T) {
		cmd := exec.Command("/bin/sh", "-c", "exit 0")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It ends, closing its output, and is not waited for yet.
		out.Read(make([]byte, 1))
		for deadline := time.Now().Add(10 * time.Second); inspect(cmd.Process.Pid, data) != processZombie; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no zombie")
			}
		}
		writeLock(t, data, cmd.Process.Pid)
		p := startPostgres(t, PostgresConfig{Dir: dir, NoSync: true})
		p.Stop()
		cmd.Wait()
	})
	t.Run("damaged lock file", func(t *testing.T) {
		if err := os.WriteFile(pidFile, []byte("?\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		p := startPostgres(t, PostgresConfig{Dir: dir, NoSync: true})
		p.Stop()
	})
	// A keyledger that died left its server running: the new one ends it.
	t.Run("process number of a live server", func(t *testing.T) {
		orphan := startPostgres(t, PostgresConfig{Dir: dir, NoSync: true})
		orphan.lock.Close()
		p := startPostgres(t, PostgresConfig{Dir: dir, NoSync: true, patience: time.Nanosecond})
		<-orphan.Done()
		if got := query[int](t, p.URL(), "select v from kept"); got != 42 {
			t.Errorf("the table holds %d", got)
		}
		p.Stop()
	})
	// Data of a user's, opened by root, is served as that user. Only root can come by it.
	if os.Geteuid() == 0 {
		t.Run("data of another user", func(t *testing.T) {
			const nobody = 65534
			err := filepath.WalkDir(data, func(path string, _ fs.DirEntry, err error) error {
				return errors.Join(err, os.Lchown(path, nobody, nobody))
			})
			if err != nil {
				t.Fatal(err)
			}
			p := startPostgres(t, PostgresConfig{Dir: dir, NoSync: true})
			if got := query[int](t, p.URL(), "select v from kept"); got != 42 {
				t.Errorf("the table holds %d", got)
			}
			p.Stop()
		})
	}
	t.Run("another major version", func(t *testing.T) {
		file := filepath.Join(data, "PG_VERSION")
		was, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("11\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var version *VersionError
		if _, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir}); !errors.As(err, &version) || version.Data != "11" || version.Binaries == "" {
			t.Errorf("data of PostgreSQL 11: %v, want *VersionError", err)
		}
		if err := os.WriteFile(file, was, 0o600); err != nil {
			t.Fatal(err)
		}
		p := startPostgres(t, PostgresConfig{Dir: dir, NoSync: true})
		if got := query[int](t, p.URL(), "select v from kept"); got != 42 {
			t.Errorf("after the refusal, the table holds %d", got)
		}
		p.Stop()
	})
	t.Run("not a data directory", func(t *testing.T) {
		dir := openDir(t)
		file := filepath.Join(dir, "data", "letters.txt")
		if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("dear"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), "PG_VERSION") {
			t.Errorf("a directory of letters: %v", err)
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != "dear" {
			t.Errorf("the letters were changed: %q, %v", b, err)
		}
	})
}

func TestSocketDir(t *testing.T) {
	who, err := runAs("")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		inside bool
	}{
		{"pg", true},
		{"a,b", false},
		{strings.Repeat("long", 20), false},
	} {
		p := &Postgres{dir: filepath.Join(openDir(t), c.name)}
		if err := makeRoot(p.dir); err != nil {
			t.Fatal(err)
		}
		if err := p.openSocketDir("", who); err != nil {
			t.Fatalf("%q: %v", c.name, err)
		}
		if inside := filepath.Dir(p.socketDir) == p.dir; inside != c.inside {
			t.Errorf("data in %q, socket in %q: inside %v, want %v", p.dir, p.socketDir, inside, c.inside)
		}
		if again := (&Postgres{dir: p.dir}); again.openSocketDir("", who) != nil || again.socketDir != p.socketDir {
			t.Errorf("the socket moved from %q to %q", p.socketDir, again.socketDir)
		}
		if !c.inside {
			os.Remove(p.socketDir)
			if err := (&Postgres{}).openSocketDir(p.dir, who); err == nil {
				t.Errorf("a person's own directory %q was accepted", p.dir)
			}
		}
	}
}

func execute(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// writeLock leaves the lock file of a server that had this process number.
func writeLock(t *testing.T, data string, pid int) {
	t.Helper()
	content := fmt.Sprintf("%d\n%s\n1700000000\n5432\n\n\n", pid, data)
	if err := os.WriteFile(filepath.Join(data, "postmaster.pid"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(data, "postmaster.pid"), int(info.Sys().(*syscall.Stat_t).Uid), -1); err != nil {
		t.Fatal(err)
	}
}

// A start that is given up leaves nothing running and is made good by the next.
func TestPostgresGivenUp(t *testing.T) {
	t.Parallel()
	cfg := PostgresConfig{Dir: filepath.Join(openDir(t), "pg"), NoSync: true}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := StartPostgres(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("StartPostgres = %v, want the deadline", err)
	}
	startPostgres(t, cfg)
}

// However the program dies, its PostgreSQL does not outlive it.
func TestPostgresEndsWithItsParent(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+filepath.Join(openDir(t), "pg"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1000)
	n, _ := out.Read(buf)
	cmd.Process.Kill()
	cmd.Wait()
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		t.Fatalf("the program wrote %q", buf[:n])
	}
	// The server is not our child; nothing signals its end.
	data := filepath.Join(strings.TrimPrefix(cmd.Env[len(cmd.Env)-1], childEnv+"="), "data")
	for deadline := time.Now().Add(30 * time.Second); inspect(pid, data) == processServer; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("PostgreSQL (process %d) outlives the program that started it", pid)
		}
	}
}

// The state of root lies in /root, which no other user can enter. An ordinary
// user has nothing to switch to and no such directory.
func TestPostgresUnderClosedDirectory(t *testing.T) {
	t.Parallel()
	closed := filepath.Join(openDir(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	// What an initdb that was interrupted leaves is removed.
	left := filepath.Join(closed, "pg", "data.new-1")
	if err := os.MkdirAll(filepath.Join(left, "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := StartPostgres(t.Context(), PostgresConfig{Dir: filepath.Join(closed, "pg"), NoSync: true})
	if os.Geteuid() == 0 && (runtime.GOOS != "linux" || len(searchCapability()) == 0) {
		if err == nil || !strings.Contains(err.Error(), closed) {
			t.Fatalf("without a capability to pass: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	query[int](t, p.URL(), "select 1")
	p.Stop()
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the unfinished directory is still there: %v", err)
	}
	if info, err := os.Stat(closed); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the closed directory: %v, %v, want 0700 as before", info.Mode(), err)
	}
}

// What root can do an ordinary user can, too. Run by an ordinary user, the other tests
// have shown it already, and this one shows that such a user may repeat them.
func TestAsOrdinaryUser(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	binary := filepath.Join(dir, "embedded.test")
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, b, 0o755); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run=^(TestPostgresEndsWithItsParent|TestPostgresUnderClosedDirectory|TestNATS|TestStateDir)$")
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home)
	if os.Geteuid() == 0 {
		const uid = 65534 // nobody
		if err := os.Chown(home, uid, uid); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}
