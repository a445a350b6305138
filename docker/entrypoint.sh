#!/bin/sh
# Each file in /run/secrets is a setting named like the file: neither Prefect nor MLflow reads secrets from files.
# What is set in the environment stays as it is.
set -eu
for file in "${SECRETS_DIRECTORY:-/run/secrets}"/*; do
  [ -f "$file" ] || continue
  name=$(basename "$file")
  if printenv "$name" >/dev/null; then continue; fi
  if [ ! -s "$file" ]; then
    echo "The secret $name is empty: $file. Write it, then start again; docker/README.md says how." >&2
    exit 1
  fi
  export "$name=$(cat "$file")"
done
exec "$@"
