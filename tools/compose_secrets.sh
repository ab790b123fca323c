#!/usr/bin/env bash
# Makes the secrets of deploy/compose.yaml that are not there yet: random, in deploy/secrets. Compose hands a file on as it is, and
# containers run as other users than you: so the files can be read by all, and the folder by you alone.
set -euo pipefail
cd "$(dirname "$0")/../deploy"
mkdir -p -m 0700 secrets
for name in write-password read-password cache-secret; do
    [ -s "secrets/$name" ] || python3 -c 'import secrets; print(secrets.token_hex(24), end="")' >"secrets/$name"
    chmod 0444 "secrets/$name"
done
echo "The secrets are in deploy/secrets."
