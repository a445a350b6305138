#!/bin/sh
# Run once by the PostgreSQL image, on an empty data directory: a role and its databases for each who needs some.
set -eu

create() { # role, databases ...
  role=$1
  shift
  run_sql --set role="$role" <<SQL
\set password \`cat ${SECRETS_DIRECTORY:-/run/secrets}/${role}_database_password\`
CREATE ROLE :"role" LOGIN PASSWORD :'password';
SQL
  for database in "$@"; do
    run_sql --set role="$role" --set database="$database" <<'SQL'
CREATE DATABASE :"database" OWNER :"role" ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
SQL
  done
}

run_sql() {
  psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres "$@"
}

create prefect prefect
create mlflow mlflow mlflow_auth
# Without containers, sweeps share this server; in containers they have one of their own, and no password here.
if [ -f "${SECRETS_DIRECTORY:-/run/secrets}/sweeps_database_password" ]; then
  create sweeps sweeps
fi
