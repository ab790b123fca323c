#!/bin/sh
# Installs what the failover of `make scale` takes: Debian's etcd, as root or with sudo, and Patroni, which is no part of
# Tandem, in a virtual environment of its own, which PostgreSQL's user can reach. Without them that scenario cannot run.
set -u
here=$(dirname "$0")
if ! command -v etcd >/dev/null; then
    # The packaged service begins at once, with a port of its own that somebody may need: nobody starts it here.
    reason=$("$here/apt_install.sh" etcd-server) || echo "etcd is missing ($reason). To get it: apt-get install etcd-server"
fi
folder=$("${PYTHON:-python3}" -m benchmarks.scale.patroni) || exit 1
[ ! -x "$folder/bin/patroni" ] || exit 0
echo "Installing Patroni into $folder ..." >&2
{ "${PYTHON:-python3}" -m venv "$folder" \
    && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$here/patroni.txt"; } \
    || { rm -rf "$folder"; echo "Patroni could not be installed into $folder"; }
