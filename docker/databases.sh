#!/bin/sh
# Run once by the PostgreSQL image, on an empty data directory: a role and its databases for each who needs some. Run
# again, it makes what is missing, and leaves what is there.
set -eu

create() { # role, databases ...
  role=$1
  shift
  if ! exists pg_roles rolname "$role"; then
    run_sql --set role="$role" <<SQL
\set password \`cat ${SECRETS_DIRECTORY:-/run/secrets}/${role}_database_password\`
CREATE ROLE :"role" LOGIN PASSWORD :'password';
SQL
  fi
  for database in "$@"; do
    if exists pg_database datname "$database"; then continue; fi
    run_sql --set role="$role" --set database="$database" <<'SQL'
CREATE DATABASE :"database" OWNER :"role" ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
SQL
  done
}

exists() { # catalog, column, name
  [ -n "$(run_sql --tuples-only --command "SELECT 1 FROM $1 WHERE $2 = '$3'")" ]
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
