package testenv

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/internal/embedded"
)

// postgresServer starts the one server of this test process. fsync is off: what
// must survive a power cut is tested on the program itself.
var postgresServer = sync.OnceValues(func() (*embedded.Postgres, error) {
	// Not t.TempDir: the server outlives the test that happens to come first,
	// and runs as another user where the tests run as root.
	dir, err := os.MkdirTemp("", "keyledger-test-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	p, err := embedded.StartPostgres(ctx, embedded.PostgresConfig{Dir: dir, NoSync: true, MaxConnections: 200})
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return p, removeAfter(dir)
})

// removeAfter leaves a shell behind that removes dir when this process has ended,
// in whatever way, and the server after it. The shell learns of the end by its
// standard input; it has no part of the test's output, for which go test waits.
//
// The server's process number would not do to see its end: in a container whose
// first process does not ask for orphans, it stays for ever as a zombie.
func removeAfter(dir string) error {
	sh := exec.Command("/bin/sh", "-c",
		`read -r _; n=0; while [ -e "$0/data/postmaster.pid" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done; rm -rf -- "$0"`,
		dir)
	sh.Dir = "/"
	sh.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := sh.StdinPipe()
	if err != nil {
		return err
	}
	if err := sh.Start(); err != nil {
		return fmt.Errorf("start the shell that removes %s: %w", dir, err)
	}
	keepOpen.Store(in, true)
	return nil
}

// keepOpen holds the write ends whose closing tells a shell that the process has ended.
var keepOpen sync.Map

var databases atomic.Int64

// Postgres makes an empty database of this test's own on the server that all
// tests of this process share, starting that at the first call, and drops it
// when the test ends. The answer is a URL for pgx and psql; its role is a
// superuser. Roles belong to the server and are shared by all databases.
func Postgres(t testing.TB) (rawURL string) {
	t.Helper()
	return postgres(t, "")
}

// CopyPostgres is Postgres with a copy of another database of it, to which nobody
// MUST be connected.
func CopyPostgres(t testing.TB, of string) (rawURL string) {
	t.Helper()
	u, err := url.Parse(of)
	if err != nil {
		t.Fatal(err)
	}
	return postgres(t, " template "+strings.TrimPrefix(u.Path, "/"))
}

// copying keeps two from copying one database at a time.
var copying sync.Mutex

func postgres(t testing.TB, how string) (rawURL string) {
	t.Helper()
	p, err := postgresServer()
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(p.URL())
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test_%d", databases.Add(1))
	exec := func(ctx context.Context, sql string) error {
		conn, err := pgx.Connect(ctx, p.URL())
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, sql)
		return err
	}
	copying.Lock()
	err = exec(t.Context(), "create database "+name+how)
	copying.Unlock()
	if err != nil {
		t.Fatalf("make a database for the test: %v", err)
	}
	t.Cleanup(func() {
		// t.Context is done by now. Force ends connections a test forgot.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := exec(ctx, "drop database "+name+" with (force)"); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	u.Path = "/" + name
	return u.String()
}
