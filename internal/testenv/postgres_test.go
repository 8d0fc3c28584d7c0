package testenv_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/internal/testenv"
)

// Every call has a database of its own.
func TestPostgres(t *testing.T) {
	for range 2 {
		conn, err := pgx.Connect(t.Context(), testenv.Postgres(t))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if _, err := conn.Exec(t.Context(), "create table same_name (a int)"); err != nil {
			t.Fatal(err)
		}
	}
}

const killedEnv = "KEYLEDGER_TEST_KILLED"

// A test process that is killed leaves no server and no directory.
func TestPostgresLeavesNothing(t *testing.T) {
	if os.Getenv(killedEnv) != "" {
		conn, err := pgx.Connect(t.Context(), testenv.Postgres(t))
		if err != nil {
			t.Fatal(err)
		}
		var data string
		if err := conn.QueryRow(t.Context(), "show data_directory").Scan(&data); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("data in %s\n", data)
		select {}
	}
	t.Parallel()
	p := testenv.Start(t, []string{killedEnv + "=1"}, os.Args[0], "-test.run=^TestPostgresLeavesNothing$")
	_, data, _ := strings.Cut(p.WaitOutput("data in ", time.Minute), "data in ")
	dir := strings.TrimSuffix(data, "/data")
	if _, err := os.Stat(dir); err != nil || dir == data {
		t.Fatalf("data in %q: %v", data, err)
	}
	p.Kill()
	// Neither is a child of this process; nothing signals their end.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", dir)
		}
	}
}
