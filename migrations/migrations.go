// Package migrations holds the schema of the read models as SQL, and brings a
// database to it.
//
// Tables of projections live in schema keyledger and are theirs alone; people
// and dashboards read the views in schema analytics, section 8 of the contract.
// There is no way down: read models are disposable, the way back is a rebuild.
//
// [Up] may run in several processes at once; they wait for each other. It can
// disappoint where the database user may not create schemas, which is an error,
// or roles, which is only noticed by the server: the role keyledger_reader then
// has to be made by somebody who may.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

// Views is the SQL of schema analytics. It is several statements, may be
// applied again and again, and binds the views to the tables that have their
// names at that moment.
//
//go:embed views.sql
var Views string

const versionTable = "keyledger.goose_db_version"

// Up brings the database to the newest schema and returns how many migrations
// it applied. A database that a newer program has migrated is refused.
func Up(ctx context.Context, pool *pgxpool.Pool) (applied int, err error) {
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	return up(ctx, db)
}

func up(ctx context.Context, db *sql.DB) (applied int, err error) {
	// One process at a time from here on, whatever goose itself locks: two
	// sessions that create the same schema or view at once fail.
	conn, err := db.Conn(ctx)
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, `select pg_advisory_lock(hashtext('keyledger.migrations'))`); err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	defer func() {
		_, unlock := conn.ExecContext(context.WithoutCancel(ctx), `select pg_advisory_unlock(hashtext('keyledger.migrations'))`)
		if err == nil && unlock != nil {
			err = fmt.Errorf("migrate: %w", unlock)
		}
	}()
	if _, err := conn.ExecContext(ctx, `create schema if not exists keyledger`); err != nil {
		return 0, fmt.Errorf("migrate: the database user must be allowed to create schemas: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
	if err != nil {
		return 0, err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versionTable), goose.WithSessionLocker(locker),
		goose.WithDisableGlobalRegistry(true), goose.WithExcludeNames([]string{"views.sql"}))
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	newest := provider.ListSources()[len(provider.ListSources())-1].Version
	current, err := provider.GetDBVersion(ctx)
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	if current > newest {
		return 0, fmt.Errorf("the database has schema version %d, this program knows up to %d: it was migrated by a newer program, run that, or give this one another database and rebuild", current, newest)
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := conn.ExecContext(ctx, Views); err != nil {
		return 0, fmt.Errorf("migrate: views: %w", err)
	}
	return len(results), nil
}
