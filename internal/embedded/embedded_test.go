package embedded

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// childEnv makes the test binary a program that runs PostgreSQL until it is killed.
const childEnv = "KEYLEDGER_TEST_POSTGRES_DIR"

// recoverEnv makes it a program that starts NATS on a directory, with a second
// for the recovery, twice, and says what came of it.
const recoverEnv = "KEYLEDGER_TEST_RECOVER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p, err := StartPostgres(ctx, PostgresConfig{Dir: dir, NoSync: true})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(p.PID())
		<-p.Done()
		os.Exit(1)
	}
	if dir := os.Getenv(recoverEnv); dir != "" {
		_, err := StartNATS(NATSConfig{Dir: dir, RecoverWithin: time.Second})
		fmt.Println(err)
		_, err = StartNATS(NATSConfig{Dir: dir})
		fmt.Println(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// openDir is a directory that every user can reach, unlike t.TempDir, and
// whose name has what breaks careless quoting.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keyledger test 'a' -")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
