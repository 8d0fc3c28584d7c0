#!/bin/sh
# Run once by the postgres image on a new data directory. The role that may read
# the views is granted them by the service's migrations; Grafana is a member.
set -eu
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" -v password="$(cat /run/secrets/postgres_reader_password)" <<'END'
create role keyledger_reader nologin;
create role grafana login password :'password' in role keyledger_reader;
alter role grafana set default_transaction_read_only = on;
alter role grafana set statement_timeout = '30s';
END
