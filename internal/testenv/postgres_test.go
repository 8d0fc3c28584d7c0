package testenv_test

import (
	"testing"

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
