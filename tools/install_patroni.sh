#!/bin/sh
# Installs what the failover of `make scale` takes: Debian's etcd, as root or with sudo, and Patroni, which is no part of
# Tandem, in a virtual environment of its own. Without them that scenario says that it cannot run.
set -u
here=$(dirname "$0")
command -v etcd >/dev/null || reason=$("$here/apt_install.sh" etcd-server) \
    || echo "etcd is missing ($reason). To get it: apt-get install etcd-server"
folder=$("${PYTHON:-python3}" -m benchmarks.scale.patroni) || exit 1
[ ! -x "$folder/bin/patroni" ] || exit 0
# PostgreSQL's user runs it, who cannot reach a Python below a private folder: the system's own is nowhere private.
python=/usr/bin/python3
[ -x "$python" ] || python=${PYTHON:-python3}
"$python" -c 'import ensurepip, venv' 2>/dev/null || reason=$("$here/apt_install.sh" python3-venv) \
    || echo "Patroni needs a virtual environment ($reason). To get it: apt-get install python3-venv"
echo "Installing Patroni into $folder ..." >&2
{ mkdir -p "$(dirname "$folder")" && "$python" -m venv "$folder" \
    && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$here/patroni.txt"; } \
    || { rm -rf "$folder"; echo "Patroni could not be installed into $folder"; }
